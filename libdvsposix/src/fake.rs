//! A server for tests: remembers what it was sent and answers what it was told to.

use calls::{Row, answer};
use core::cell::RefCell;
use m3ipc::{Endpoint, Errno, IpcError, Message, Sendrec, Wait};
use std::vec::Vec;

#[derive(Debug)]
pub(crate) struct Fake {
    answer: Result<Message, IpcError>,
    bytes: Vec<u8>,
    sent: RefCell<Vec<Sent>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) to: Endpoint,
    pub(crate) message: Message,
    pub(crate) payload: Vec<u8>,
    pub(crate) room: usize,
    pub(crate) wait: Wait,
}

impl Fake {
    /// Answers every call with success, no arguments and `bytes`.
    pub(crate) fn answering(bytes: impl Into<Vec<u8>>) -> Fake {
        Fake { answer: Ok(Message::request(0)), bytes: bytes.into(), sent: RefCell::default() }
    }

    /// Answers every call as row `R` would, with `bytes`.
    pub(crate) fn replying<R: Row>(reply: &R::Reply, bytes: impl Into<Vec<u8>>) -> Fake {
        Fake { answer: Ok(answer::<R>(reply)), ..Fake::answering(bytes) }
    }

    pub(crate) fn failing(errno: i32) -> Fake {
        Fake { answer: Ok(Message::failed(0, Errno::new(errno))), ..Fake::answering([]) }
    }

    pub(crate) fn unreachable(error: IpcError) -> Fake {
        Fake { answer: Err(error), ..Fake::answering([]) }
    }

    /// How many calls came.
    pub(crate) fn calls(&self) -> usize {
        self.sent.borrow().len()
    }

    /// The last call.
    pub(crate) fn last(&self) -> Sent {
        self.sent.borrow().last().cloned().expect("a call was made")
    }

    /// The last call's arguments.
    pub(crate) fn row<R: Row>(&self) -> R {
        let message = self.last().message;
        assert_eq!(message.call, R::NUMBER, "another call than {}", R::NAME);
        R::get(&message.args).expect("arguments of this row")
    }

    /// The last call's payload.
    pub(crate) fn payload(&self) -> Vec<u8> {
        self.last().payload
    }
}

impl Sendrec for Fake {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        let sent =
            Sent { to, message: *message, payload: send.concat(), room: receive.len(), wait };
        self.sent.borrow_mut().push(sent);
        *message = self.answer?;
        let len = self.bytes.len();
        receive.get_mut(..len).ok_or(IpcError::TooLarge)?.copy_from_slice(&self.bytes);
        Ok(len)
    }
}
