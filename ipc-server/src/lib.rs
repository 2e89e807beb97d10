//! The server of semaphores and message queues of a DC: POSIX and System V.
//!
//! Each kind of object is a module with the handlers of its calls. All values (flags, commands,
//! errno, limits unless `limits.rs` says otherwise) are Linux's.
//! Two things differ from one Linux machine: SEM_UNDO values belong to an endpoint (a process
//! since its last exec), and a wait that arrives again after a crash of the server starts anew.
//!
//! To read: `semaphore` and `queue` (POSIX), `sysv_semaphore` and `sysv_queue` (System V, what they
//! share is in `sysv`); below them `waiting` (kept calls), `holders`, `permission`, `record` (the store).

pub mod flags;
mod holders;
pub mod limits;
mod list;
mod name;
mod permission;
mod queue;
mod record;
mod semaphore;
mod sysv;
mod sysv_queue;
mod sysv_semaphore;
mod waiting;

use crate::queue::Queues;
use crate::semaphore::Semaphores;
use crate::sysv_queue::SysvQueues;
use crate::sysv_semaphore::SemaphoreSets;
use crate::waiting::Kept;
use calls::ipc::IpcCall;
use calls::{Retry, Row, answer};
use dvk::server::{Call, Context, Gone, Nanos, Server};
use dvk::store::Store;
use m3ipc::errno::numbers::ENOSYS;
use m3ipc::{CallId, Errno, IpcError, Message};

/// The semaphores and message queues of a DC.
#[derive(Debug)]
pub struct IpcServer {
    semaphores: Semaphores,
    queues: Queues,
    sets: SemaphoreSets,
    sysv_queues: SysvQueues,
}

impl IpcServer {
    /// The server as its store says.
    pub fn open(store: &dyn Store) -> IpcServer {
        IpcServer {
            semaphores: Semaphores::open(store),
            queues: Queues::open(store),
            sets: SemaphoreSets::open(store),
            sysv_queues: SysvQueues::open(store),
        }
    }

    fn dispatch(&mut self, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        match IpcCall::decode(call.message).ok_or(Errno::new(ENOSYS))? {
            IpcCall::SemOpen(args) => self.semaphores.sem_open(args, call, cx),
            IpcCall::SemClose(args) => self.semaphores.sem_close(args, call, cx),
            IpcCall::SemUnlink(_) => self.semaphores.sem_unlink(call, cx),
            IpcCall::SemWait(args) => self.semaphores.sem_wait(args, call, cx),
            IpcCall::SemPost(args) => self.semaphores.sem_post(args, call, cx),
            IpcCall::SemGetvalue(args) => self.semaphores.sem_getvalue(args, call, cx),
            IpcCall::MqOpen(args) => self.queues.mq_open(args, call, cx),
            IpcCall::MqClose(args) => self.queues.mq_close(args, call, cx),
            IpcCall::MqUnlink(_) => self.queues.mq_unlink(call, cx),
            IpcCall::MqSend(args) => self.queues.mq_send(args, call, cx),
            IpcCall::MqReceive(args) => self.queues.mq_receive(args, call, cx),
            IpcCall::MqAttributes(args) => self.queues.mq_attributes(args, call, cx),
            IpcCall::SemGet(args) => self.sets.sem_get(args, call, cx),
            IpcCall::SemOps(args) => self.sets.sem_ops(args, call, cx),
            IpcCall::SemCtl(args) => self.sets.sem_ctl(args, call, cx),
            IpcCall::MsgGet(args) => self.sysv_queues.msg_get(args, call, cx),
            IpcCall::MsgSend(args) => self.sysv_queues.msg_send(args, call, cx),
            IpcCall::MsgReceive(args) => self.sysv_queues.msg_receive(args, call, cx),
            IpcCall::MsgCtl(args) => self.sysv_queues.msg_ctl(args, call, cx),
            IpcCall::List(args) => list::list(self, args),
        }
    }

    fn is_kept(&self, id: CallId) -> bool {
        self.semaphores.is_kept(id)
            || self.queues.is_kept(id)
            || self.sets.is_kept(id)
            || self.sysv_queues.is_kept(id)
    }
}

impl Server for IpcServer {
    fn serve(&mut self, call: &Call<'_>, cx: &mut Context<'_>) {
        // A link that was broken may deliver a call again while it still waits here.
        if self.is_kept(call.id) {
            return;
        }
        match self.dispatch(call, cx) {
            Ok(Outcome::Done(message, payload)) => cx.answer(call.id, message, payload),
            Ok(Outcome::Kept) => {}
            Err(errno) => cx.answer(call.id, Message::failed(call.message.call, errno), []),
        }
    }

    fn cancel(&mut self, id: CallId, cx: &mut Context<'_>) {
        let number = self.semaphores.cancel(id);
        let number = number.or_else(|| self.queues.cancel(id));
        let number = number.or_else(|| self.sets.cancel(id));
        if let Some(number) = number.or_else(|| self.sysv_queues.cancel(id)) {
            cx.end(id, number, IpcError::Interrupted);
        }
    }

    fn gone(&mut self, gone: Gone, cx: &mut Context<'_>) {
        self.semaphores.gone(gone, cx);
        self.queues.gone(gone, cx);
        self.sets.gone(gone, cx);
        self.sysv_queues.gone(gone);
    }

    fn tick(&mut self, cx: &mut Context<'_>) {
        self.semaphores.tick(cx);
        self.queues.tick(cx);
        self.sets.tick(cx);
    }

    fn deadline(&self) -> Option<Nanos> {
        let deadlines = [self.semaphores.deadline(), self.queues.deadline(), self.sets.deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn once(&self, message: &Message) -> bool {
        IpcCall::retry(message) == Retry::Once
    }
}

/// What a handler has done with a call; an error is an answer, too.
enum Outcome {
    Done(Message, Vec<u8>),
    /// A later event answers it.
    Kept,
}

type Served = Result<Outcome, Errno>;

/// The handler's call is answered with `reply`.
fn done<R: Row>(reply: R::Reply) -> Served {
    done_with::<R>(reply, Vec::new())
}

/// The handler's call is answered with `reply` and a payload.
fn done_with<R: Row>(reply: R::Reply, payload: Vec<u8>) -> Served {
    Ok(Outcome::Done(answer::<R>(&reply), payload))
}

/// Answers a call that was kept.
fn succeed<R: Row>(
    kept: &Kept<impl Sized, impl Sized>,
    reply: R::Reply,
    payload: Vec<u8>,
    cx: &mut Context<'_>,
) {
    debug_assert_eq!(kept.call, R::NUMBER, "a kept call is answered by its own row");
    cx.answer(kept.id, answer::<R>(&reply), payload);
}

/// Answers a call that was kept with an error.
fn fail(kept: &Kept<impl Sized, impl Sized>, errno: i32, cx: &mut Context<'_>) {
    cx.answer(kept.id, Message::failed(kept.call, Errno::new(errno)), []);
}

/// A number that is hard to guess and not used: the next free one from `entropy` on, never 0.
fn unused_id(entropy: u64, used: impl Fn(u64) -> bool) -> u64 {
    let mut id = entropy;
    while id == 0 || used(id) {
        id = id.wrapping_add(1);
    }
    id
}

/// Seconds since the epoch, as the times of SysV objects are.
fn seconds(cx: &Context<'_>) -> i64 {
    (cx.wall / 1_000_000_000).cast_signed()
}
