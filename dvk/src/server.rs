//! What a server is to the DVK: a value that answers calls, one after the other, without waiting.

use crate::store::Store;
use m3ipc::{CallId, Cred, Endpoint, IpcError, Message, NodeId};

/// Nanoseconds on the host's monotonic clock.
pub type Nanos = u64;

/// One call as a server sees it. Everything in it is checked: the source and the credentials are
/// the kernel's word, the payload has the length the message says.
#[derive(Debug)]
pub struct Call<'a> {
    pub id: CallId,
    pub cred: &'a Cred,
    pub message: &'a Message,
    pub payload: &'a [u8],
}

/// Who is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// A process that had made calls: dead, or unbound.
    Endpoint(Endpoint),
    /// A whole node, with all its endpoints.
    Node(NodeId),
}

impl Gone {
    /// Is `endpoint` among those that are gone?
    pub fn includes(self, endpoint: Endpoint) -> bool {
        match self {
            Gone::Endpoint(gone) => endpoint == gone,
            Gone::Node(node) => endpoint.node() == node,
        }
    }
}

/// A server: a deterministic value. It does no I/O but on its [`Store`], reads no clock, draws no
/// random numbers, never blocks and never waits for another server (ARCHITECTURE.md, invariants 1, 2).
///
/// Its durable state is what it puts in the store; fields of its own are a cache that `open` makes
/// anew from the store. A call that must wait is *kept*: `serve` returns without an answer, and a
/// later call, `tick` or `gone` answers it by its [`CallId`]. Kept calls are not durable: after a
/// crash of the server they arrive again.
pub trait Server {
    /// Handles one call: answers it, and perhaps others, or keeps it.
    fn serve(&mut self, call: &Call<'_>, cx: &mut Context<'_>);
    /// The caller of a kept call has been interrupted by a signal. If the call is still kept, forget
    /// it and answer `IpcError::Interrupted`; if not, do nothing (its answer is under way).
    fn cancel(&mut self, id: CallId, cx: &mut Context<'_>);
    /// Forget what belongs to who is gone: its kept calls (no answer is needed), locks, undo values.
    fn gone(&mut self, gone: Gone, cx: &mut Context<'_>);
    /// Time has passed: answer those whose deadline is over.
    fn tick(&mut self, cx: &mut Context<'_>);
    /// When `tick` is wanted next, if at all.
    fn deadline(&self) -> Option<Nanos>;
    /// Must this request be executed at most once? (`calls::Retry`; the DVK cannot know.)
    fn once(&self, message: &Message) -> bool;
}

/// What a server may use while it handles one input.
pub struct Context<'a> {
    /// Monotonic time of this input.
    pub now: Nanos,
    /// Wall-clock time of this input, nanoseconds since the epoch.
    pub wall: u64,
    /// 64 fresh random bits for this input.
    pub entropy: u64,
    pub store: &'a mut dyn Store,
    pub answers: &'a mut Answers,
}

/// The answers that one or more inputs have produced, in order.
#[derive(Debug, Default)]
pub struct Answers {
    pub list: Vec<Answer>,
    /// The answers may leave only when everything in the store so far is on stable storage (fsync).
    pub sync: bool,
}

/// One answer to one call.
#[derive(Debug)]
pub struct Answer {
    pub to: CallId,
    pub message: Message,
    pub payload: Vec<u8>,
}

impl Context<'_> {
    /// Answers call `to`. Exactly once per call, now or later.
    pub fn answer(&mut self, to: CallId, message: Message, payload: impl Into<Vec<u8>>) {
        self.answers.list.push(Answer { to, message, payload: payload.into() });
    }

    /// Ends call `to` without the server's answer.
    pub fn end(&mut self, to: CallId, call: u16, error: IpcError) {
        self.answer(to, Message::undelivered(call, error), Vec::new());
    }

    /// The answers of this round wait until the store is on stable storage.
    pub fn sync(&mut self) {
        self.answers.sync = true;
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("now", &self.now)
            .field("wall", &self.wall)
            .finish_non_exhaustive()
    }
}
