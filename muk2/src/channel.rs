//! A channel inside one process: what a program posts, the server finds, without a copy through shared memory.

use m3ipc::channel::News;
use m3ipc::limits::{LANES, PAYLOAD_AREA};
use m3ipc::port::Channel;
use m3ipc::{IpcError, Message, Tag};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// One lane: a call on its way there or back.
#[derive(Debug, Default)]
struct Lane {
    request: Option<Message>,
    answer: Option<Message>,
    payload: Vec<u8>,
    cancel: Tag,
}

/// The channel; both ends hold it.
#[derive(Debug)]
pub struct LocalChannel {
    lanes: RefCell<Vec<Lane>>,
    pending: Cell<u64>,
    cancelled: Cell<u64>,
    answered: Cell<u64>,
}

impl LocalChannel {
    pub fn new() -> Rc<LocalChannel> {
        let lanes = (0..LANES).map(|_| Lane::default()).collect();
        Rc::new(LocalChannel {
            lanes: RefCell::new(lanes),
            pending: Cell::new(0),
            cancelled: Cell::new(0),
            answered: Cell::new(0),
        })
    }

    /// Posts a request.
    ///
    /// # Errors
    /// [`IpcError::TooLarge`].
    pub fn post(&self, lane: usize, message: &Message, send: &[&[u8]]) -> Result<(), IpcError> {
        let mut lanes = self.lanes.borrow_mut();
        let slot = &mut lanes[lane];
        slot.payload.clear();
        for part in send {
            slot.payload.extend_from_slice(part);
        }
        let len = slot.payload.len();
        if len > PAYLOAD_AREA {
            return Err(IpcError::TooLarge);
        }
        slot.answer = None;
        slot.request = Some(Message { payload_len: u32::try_from(len).unwrap_or(0), ..*message });
        self.pending.set(self.pending.get() | 1 << lane);
        Ok(())
    }

    /// The answer on `lane`, if it is there; its payload goes to `receive` as far as it fits.
    pub fn take_answer(&self, lane: usize, receive: &mut [u8]) -> Option<(Message, usize)> {
        let mut lanes = self.lanes.borrow_mut();
        let slot = &mut lanes[lane];
        let answer = slot.answer.take()?;
        let len = slot.payload.len();
        let copied = len.min(receive.len());
        receive[..copied].copy_from_slice(&slot.payload[..copied]);
        Some((answer, len))
    }

    /// Asks for the call `tag` on `lane` to be given up.
    pub fn cancel(&self, lane: usize, tag: Tag) {
        self.lanes.borrow_mut()[lane].cancel = tag;
        self.cancelled.set(self.cancelled.get() | 1 << lane);
    }

    /// Lanes answered since the last look.
    pub fn take_answered(&self) -> u64 {
        self.answered.take()
    }
}

/// The receiver's end.
#[derive(Clone, Debug)]
pub struct ServerEnd(pub Rc<LocalChannel>);

impl Channel for ServerEnd {
    fn closed(&self) -> Option<IpcError> {
        None
    }

    fn has_requests(&self) -> bool {
        self.0.pending.get() | self.0.cancelled.get() != 0
    }

    fn take_news(&self) -> News {
        News { pending: self.0.pending.take(), cancelled: self.0.cancelled.take() }
    }

    fn take_notification(&self) -> Option<u64> {
        None
    }

    fn request(&self, lane: usize) -> Option<Message> {
        self.0.lanes.borrow()[lane].request
    }

    fn read_request(&self, lane: usize, out: &mut [u8]) -> Result<(), IpcError> {
        let lanes = self.0.lanes.borrow();
        out.copy_from_slice(lanes[lane].payload.get(..out.len()).ok_or(IpcError::TooLarge)?);
        Ok(())
    }

    fn cancelled(&self, lane: usize) -> Tag {
        self.0.lanes.borrow()[lane].cancel
    }

    fn answer(&self, lane: usize, message: &Message, payload: &[u8], _by_bell: bool) -> bool {
        let mut lanes = self.0.lanes.borrow_mut();
        let slot = &mut lanes[lane];
        slot.request = None;
        slot.payload.clear();
        slot.payload.extend_from_slice(payload);
        slot.answer =
            Some(Message { payload_len: u32::try_from(payload.len()).unwrap_or(0), ..*message });
        self.0.answered.set(self.0.answered.get() | 1 << lane);
        true
    }
}
