//! `Port`: send, receive, sendrec, rcvrqst, reply and notify, written once above `Channel`.

use crate::endpoint::Endpoint;
use crate::errno::IpcError;
use crate::message::Message;

/// How long a call may wait, and what a signal does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Milliseconds; `None` waits for ever. This bounds the transport. A deadline that belongs to
    /// the call's meaning (`sem_timedwait`) is an argument of the call, kept by the server.
    pub timeout_ms: Option<u32>,
    pub signals: Signals,
}

/// What happens when a signal handler runs while the caller waits (signal(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// Go on waiting.
    Ignore,
    /// Go on if the handler was installed with SA_RESTART, else cancel the call.
    Restart,
    /// Cancel the call, whatever SA_RESTART says (semop, msgsnd, msgrcv, and timed waits).
    Interrupt,
}

impl Wait {
    /// Until the answer is there.
    pub const FOREVER: Wait = Wait { timeout_ms: None, signals: Signals::Ignore };
    /// As a restartable system call.
    pub const RESTART: Wait = Wait { timeout_ms: None, signals: Signals::Restart };
    /// As a system call that a handler always interrupts.
    pub const INTERRUPT: Wait = Wait { timeout_ms: None, signals: Signals::Interrupt };
}

/// A way to make calls: a port, or something that has one.
pub trait Sendrec {
    /// Sends `message` with the concatenation of `send` as payload to `to`, waits for the answer,
    /// stores it in `message` and its payload in `receive`, and returns the payload's length.
    ///
    /// `tag` and `source` of `message` are set by the port. A reply whose `status` is an errno is
    /// a success here: it is the server's answer.
    ///
    /// # Errors
    /// [`IpcError`]: the answer did not come. A cancelled call that the server had already
    /// executed returns the server's answer, not `Interrupted`.
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError>;
}

impl<T: Sendrec + ?Sized> Sendrec for &T {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        (**self).sendrec(to, message, send, receive, wait)
    }
}
