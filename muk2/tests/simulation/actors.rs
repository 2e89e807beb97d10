//! The programs: each does one kind of thing again and again, and tells the world what it knows.

use crate::world::{Count, Fate, Ledger, TOKENS, World, check_order};
use calls::Row;
use calls::ipc::{
    FOREVER, MqAttr, MqOpen, MqReceive, MqSend, MsgGet, MsgReceive, MsgSend, SemGet, SemOp,
    SemOpen, SemOps, SemPost, SemWait,
};
use calls::vfs::{Create, Fsync, Lock, ROOT_INO, Read, Setlk, WRITE_AT, Write};
use calls::wire::Wire;
use dvk::server::Nanos;
use dvk::sim::{Ended, MILLISECOND, Program, Random, Step};
use ipc_server::flags::{IPC_NOWAIT, O_CREAT, O_RDWR, SEM_UNDO};
use m3ipc::errno::numbers::{EAGAIN, EBADF, ENOMSG, ESTALE, ETIMEDOUT};
use m3ipc::{Endpoint, IpcError, Message};
use std::cell::RefCell;
use std::rc::Rc;

pub(crate) type Shared = Rc<RefCell<World>>;

pub(crate) const SEMAPHORE: &[u8] = b"/tokens";
pub(crate) const QUEUE: &[u8] = b"/queue";
pub(crate) const LOG: &[u8] = b"log";
pub(crate) const COUNTER: &[u8] = b"counter";
pub(crate) const LOCK_KEY: i32 = 1;
pub(crate) const QUEUE_KEY: i32 = 2;
const O_APPEND: u32 = 0o2000;
const F_WRLCK: u32 = 1;
const F_UNLCK: u32 = 2;

/// How a call of row `R` ended.
pub(crate) enum Outcome<R: Row> {
    Done(R::Reply, Vec<u8>),
    Failed(i32),
    /// By a signal, and without any effect.
    Interrupted,
    /// Nobody knows.
    Lost,
}

pub(crate) fn outcome<R: Row>(ended: Ended) -> Outcome<R> {
    match ended.message.outcome() {
        Ok(Ok(())) => {
            let reply = R::Reply::get(&ended.message.args).expect("the answer is the row's");
            Outcome::Done(reply, ended.payload)
        }
        Ok(Err(errno)) => Outcome::Failed(errno.errno),
        Err(IpcError::Interrupted) => Outcome::Interrupted,
        Err(IpcError::NodeDown | IpcError::DestinationDied) => Outcome::Lost,
        Err(error) => panic!("{} ended with {error:?}", R::NAME),
    }
}

pub(crate) fn call<R: Row>(to: Endpoint, row: R, payload: impl Into<Vec<u8>>) -> Step {
    let mut message = Message::request(R::NUMBER);
    row.put(&mut message.args);
    Step::Call { to, message, payload: payload.into() }
}

/// A short wait, so that those for what never comes end.
fn patience(random: &mut Random) -> Nanos {
    random.below(400 * MILLISECOND)
}

fn pause(random: &mut Random) -> Step {
    Step::Pause(random.below(20 * MILLISECOND))
}

impl Count {
    fn settle<R: Row>(&mut self, outcome: &Outcome<R>) {
        match outcome {
            Outcome::Done(..) => self.done += 1,
            Outcome::Failed(_) | Outcome::Interrupted => self.failed += 1,
            Outcome::Lost => {}
        }
    }
}

fn fate<R: Row>(outcome: &Outcome<R>) -> Fate {
    match outcome {
        Outcome::Done(..) => Fate::Done,
        Outcome::Failed(_) | Outcome::Interrupted => Fate::Failed,
        Outcome::Lost => Fate::Sent,
    }
}

/// An errno that no fault explains.
fn unexpected<R: Row>(errno: i32, world: &Shared) {
    world.borrow_mut().wrong.push(format!("{} failed with errno {errno}", R::NAME));
}

/// What was open is not any more: fine if its owner was given up, else not.
fn doubtful<R: Row>(errno: i32, world: &Shared) {
    world.borrow_mut().doubts.push(format!("{} failed with errno {errno}", R::NAME));
}

pub(crate) fn open_semaphore() -> Step {
    let flags = O_CREAT;
    call(
        Endpoint::IPC,
        SemOpen { flags, mode: 0o666, value: u32::try_from(TOKENS).expect("small") },
        SEMAPHORE,
    )
}

pub(crate) fn open_queue() -> Step {
    let attr = MqAttr { flags: 0, max_messages: 5, message_size: 64, messages: 0 }.bytes();
    let attr_len = u16::try_from(attr.len()).expect("small");
    call(
        Endpoint::IPC,
        MqOpen { flags: O_CREAT | O_RDWR, mode: 0o666, attr_len },
        [&attr[..], QUEUE].concat(),
    )
}

pub(crate) fn open_file(name: &[u8], flags: u32) -> Step {
    let flags = O_CREAT | O_RDWR | flags;
    call(
        Endpoint::VFS,
        Create { parent: ROOT_INO, forgotten: 0, mode: 0o666, umask: 0, flags },
        name,
    )
}

/// Waits for a POSIX semaphore for a while, and posts it.
pub(crate) struct Poster {
    left: u64,
    id: u64,
    doing: Posting,
    world: Shared,
}

#[derive(Clone, Copy)]
enum Posting {
    Opening,
    Waiting,
    Giving,
    Idle,
}

impl Poster {
    pub(crate) fn new(left: u64, world: Shared) -> Poster {
        Poster { left, id: 0, doing: Posting::Opening, world }
    }

    fn waited(&mut self, outcome: &Outcome<SemWait>) {
        let mut world = self.world.borrow_mut();
        world.waits.settle(outcome);
        self.doing = Posting::Idle;
        match outcome {
            Outcome::Done(..) => {
                self.doing = Posting::Giving;
                if world.waits.done > TOKENS + world.posts.most() {
                    let text = format!(
                        "a semaphore is granted too often: {:?}, {:?}",
                        world.waits, world.posts
                    );
                    world.wrong.push(text);
                }
            }
            Outcome::Failed(ETIMEDOUT) => {}
            Outcome::Failed(errno) => {
                drop(world);
                doubtful::<SemWait>(*errno, &self.world);
                self.doing = Posting::Opening;
            }
            Outcome::Interrupted | Outcome::Lost => {}
        }
    }

    fn ended(&mut self, ended: Ended) {
        match self.doing {
            Posting::Opening => match outcome::<SemOpen>(ended) {
                Outcome::Done(object, _) => {
                    self.id = object.id;
                    self.doing = Posting::Idle;
                }
                Outcome::Failed(errno) => unexpected::<SemOpen>(errno, &self.world),
                Outcome::Interrupted | Outcome::Lost => {}
            },
            Posting::Waiting => self.waited(&outcome(ended)),
            Posting::Giving | Posting::Idle => {
                let outcome = outcome::<SemPost>(ended);
                self.world.borrow_mut().posts.settle(&outcome);
                self.doing = Posting::Idle;
                if let Outcome::Failed(errno) = outcome {
                    doubtful::<SemPost>(errno, &self.world);
                    self.doing = Posting::Opening;
                }
            }
        }
    }
}

impl Program for Poster {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(ended) = ended {
            self.ended(ended);
            if random.chance(300) {
                return pause(random);
            }
        }
        match self.doing {
            Posting::Opening => open_semaphore(),
            Posting::Giving => {
                self.world.borrow_mut().posts.sent += 1;
                call(Endpoint::IPC, SemPost { id: self.id }, [])
            }
            Posting::Waiting | Posting::Idle if self.left == 0 => Step::Exit,
            Posting::Waiting | Posting::Idle => {
                self.left -= 1;
                self.doing = Posting::Waiting;
                self.world.borrow_mut().waits.sent += 1;
                call(Endpoint::IPC, SemWait { id: self.id, wait_ns: patience(random) }, [])
            }
        }
    }
}

/// Sends numbered messages to a POSIX queue.
pub(crate) struct QueueSender {
    name: u64,
    left: u64,
    id: Option<u64>,
    message: Option<u64>,
    world: Shared,
}

impl QueueSender {
    pub(crate) fn new(name: u64, left: u64, world: Shared) -> QueueSender {
        QueueSender { name, left, id: None, message: None, world }
    }

    fn ended(&mut self, ended: Ended) {
        let Some(message) = self.message.take() else {
            return match outcome::<MqOpen>(ended) {
                Outcome::Done(object, _) => self.id = Some(object.id),
                Outcome::Failed(errno) => unexpected::<MqOpen>(errno, &self.world),
                Outcome::Interrupted | Outcome::Lost => {}
            };
        };
        let outcome = outcome::<MqSend>(ended);
        self.world.borrow_mut().queue.messages.insert(message, fate(&outcome));
        match outcome {
            Outcome::Failed(EBADF) => {
                doubtful::<MqSend>(EBADF, &self.world);
                self.id = None;
            }
            Outcome::Failed(errno) if errno != ETIMEDOUT => {
                unexpected::<MqSend>(errno, &self.world)
            }
            _ => {}
        }
    }
}

impl Program for QueueSender {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(ended) = ended {
            self.ended(ended);
            if random.chance(300) {
                return pause(random);
            }
        }
        let Some(id) = self.id else { return open_queue() };
        if self.left == 0 {
            return Step::Exit;
        }
        self.left -= 1;
        let message = self.name << 32 | self.left;
        self.message = Some(message);
        self.world.borrow_mut().queue.messages.insert(message, Fate::Sent);
        let priority = u32::try_from(random.below(3)).expect("small");
        call(
            Endpoint::IPC,
            MqSend { id, priority, wait_ns: patience(random) },
            message.to_le_bytes(),
        )
    }
}

/// Notes a message that was received.
fn receive(ledger: &mut Ledger, payload: Vec<u8>, wrong: &mut Vec<String>) -> u64 {
    let number = <[u8; 8]>::try_from(payload).map(u64::from_le_bytes);
    let number = number.unwrap_or_else(|payload| {
        wrong.push(format!("a message of {} bytes", payload.len()));
        0
    });
    ledger.received.push(number);
    number
}

/// Receives from it.
pub(crate) struct QueueReceiver {
    left: u64,
    id: Option<u64>,
    is_receiving: bool,
    /// By priority: messages of one sender and priority come in the order they were sent.
    received: [Vec<u64>; 3],
    world: Shared,
}

impl QueueReceiver {
    pub(crate) fn new(left: u64, world: Shared) -> QueueReceiver {
        QueueReceiver {
            left: 2 * left,
            id: None,
            is_receiving: false,
            received: Default::default(),
            world,
        }
    }

    fn ended(&mut self, ended: Ended) {
        if !std::mem::take(&mut self.is_receiving) {
            return match outcome::<MqOpen>(ended) {
                Outcome::Done(object, _) => self.id = Some(object.id),
                Outcome::Failed(errno) => unexpected::<MqOpen>(errno, &self.world),
                Outcome::Interrupted | Outcome::Lost => {}
            };
        }
        let outcome = outcome::<MqReceive>(ended);
        let world = &mut *self.world.borrow_mut();
        world.queue.receives.settle(&outcome);
        match outcome {
            Outcome::Done(reply, payload) => {
                let number = receive(&mut world.queue, payload, &mut world.wrong);
                // Senders count down.
                let upwards = number ^ 0xffff_ffff;
                let list = &mut self.received[usize::try_from(reply.kind).expect("a priority")];
                list.push(upwards);
                check_order("message", list, &mut world.wrong);
            }
            Outcome::Failed(EBADF) => {
                world.doubts.push("MqReceive failed with EBADF".to_owned());
                self.id = None;
            }
            Outcome::Failed(errno) if errno != ETIMEDOUT => {
                world.wrong.push(format!("MqReceive failed with errno {errno}"));
            }
            _ => {}
        }
    }
}

impl Program for QueueReceiver {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(ended) = ended {
            self.ended(ended);
            if random.chance(200) {
                return pause(random);
            }
        }
        let Some(id) = self.id else { return open_queue() };
        if self.left == 0 {
            return Step::Exit;
        }
        self.left -= 1;
        self.is_receiving = true;
        self.world.borrow_mut().queue.receives.sent += 1;
        call(Endpoint::IPC, MqReceive { id, size: 64, wait_ns: patience(random) }, [])
    }
}

pub(crate) fn get_sysv_queue() -> Step {
    call(Endpoint::IPC, MsgGet { key: QUEUE_KEY, flags: 0o1666 }, [])
}

/// Sends numbered messages to a System V queue.
pub(crate) struct SysvSender {
    name: u64,
    left: u64,
    id: Option<i32>,
    message: Option<u64>,
    world: Shared,
}

impl SysvSender {
    pub(crate) fn new(name: u64, left: u64, world: Shared) -> SysvSender {
        SysvSender { name, left, id: None, message: None, world }
    }

    fn ended(&mut self, ended: Ended) {
        let Some(message) = self.message.take() else {
            return match outcome::<MsgGet>(ended) {
                Outcome::Done(value, _) => self.id = Some(value.value),
                Outcome::Failed(errno) => unexpected::<MsgGet>(errno, &self.world),
                Outcome::Interrupted | Outcome::Lost => {}
            };
        };
        let outcome = outcome::<MsgSend>(ended);
        self.world.borrow_mut().sysv_queue.messages.insert(message, fate(&outcome));
        if let Outcome::Failed(errno) = outcome
            && errno != EAGAIN
        {
            unexpected::<MsgSend>(errno, &self.world);
        }
    }
}

impl Program for SysvSender {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(ended) = ended {
            self.ended(ended);
            if random.chance(300) {
                return pause(random);
            }
        }
        let Some(id) = self.id else { return get_sysv_queue() };
        if self.left == 0 {
            return Step::Exit;
        }
        self.left -= 1;
        let message = self.name << 32 | self.left;
        self.message = Some(message);
        self.world.borrow_mut().sysv_queue.messages.insert(message, Fate::Sent);
        call(Endpoint::IPC, MsgSend { id, kind: 1, flags: IPC_NOWAIT }, message.to_le_bytes())
    }
}

/// Receives from it.
pub(crate) struct SysvReceiver {
    left: u64,
    id: Option<i32>,
    is_receiving: bool,
    world: Shared,
}

impl SysvReceiver {
    pub(crate) fn new(left: u64, world: Shared) -> SysvReceiver {
        SysvReceiver { left: 2 * left, id: None, is_receiving: false, world }
    }

    fn ended(&mut self, ended: Ended) {
        if !std::mem::take(&mut self.is_receiving) {
            return match outcome::<MsgGet>(ended) {
                Outcome::Done(value, _) => self.id = Some(value.value),
                Outcome::Failed(errno) => unexpected::<MsgGet>(errno, &self.world),
                Outcome::Interrupted | Outcome::Lost => {}
            };
        }
        let outcome = outcome::<MsgReceive>(ended);
        let world = &mut *self.world.borrow_mut();
        world.sysv_queue.receives.settle(&outcome);
        match outcome {
            Outcome::Done(_, payload) => {
                receive(&mut world.sysv_queue, payload, &mut world.wrong);
            }
            Outcome::Failed(errno) if errno != ENOMSG => {
                world.wrong.push(format!("MsgReceive failed with errno {errno}"));
            }
            _ => {}
        }
    }
}

impl Program for SysvReceiver {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(ended) = ended {
            self.ended(ended);
            if random.chance(400) {
                return pause(random);
            }
        }
        let Some(id) = self.id else { return get_sysv_queue() };
        if self.left == 0 {
            return Step::Exit;
        }
        self.left -= 1;
        self.is_receiving = true;
        self.world.borrow_mut().sysv_queue.receives.sent += 1;
        call(Endpoint::IPC, MsgReceive { id, kind: 0, size: 64, flags: IPC_NOWAIT }, [])
    }
}

pub(crate) fn get_lock() -> Step {
    call(Endpoint::IPC, SemGet { key: LOCK_KEY, count: 1, flags: 0o1666 }, [])
}

/// Locks and unlocks a System V semaphore with SEM_UNDO: whoever dies gives it back.
pub(crate) struct Locker {
    name: u64,
    left: u64,
    id: Option<i32>,
    doing: Locking,
    world: Shared,
}

#[derive(Clone, Copy, PartialEq)]
enum Locking {
    Idle,
    Taking,
    Inside,
    Unlocking,
    Lost,
}

impl Locker {
    pub(crate) fn new(name: u64, left: u64, world: Shared) -> Locker {
        Locker { name, left, id: None, doing: Locking::Idle, world }
    }

    fn ended(&mut self, ended: Ended) {
        if self.id.is_none() {
            return match outcome::<SemGet>(ended) {
                Outcome::Done(value, _) => self.id = Some(value.value),
                Outcome::Failed(errno) => unexpected::<SemGet>(errno, &self.world),
                Outcome::Interrupted | Outcome::Lost => {}
            };
        }
        self.doing = match (self.doing, outcome::<SemOps>(ended)) {
            (Locking::Taking, Outcome::Done(..)) => {
                let world = &mut *self.world.borrow_mut();
                enter("lock", &mut world.locker, self.name, &mut world.doubts);
                Locking::Inside
            }
            (Locking::Unlocking, Outcome::Done(..)) => Locking::Idle,
            (doing, Outcome::Failed(errno)) => {
                unexpected::<SemOps>(errno, &self.world);
                doing
            }
            // To unlock never waits.
            (Locking::Unlocking, Outcome::Interrupted) => {
                unexpected::<SemOps>(0, &self.world);
                Locking::Lost
            }
            (_, Outcome::Interrupted) => Locking::Idle,
            // Perhaps it has it, perhaps not: its death tells the server.
            _ => Locking::Lost,
        };
    }

    fn operate(&self, op: i32) -> Step {
        let operation = SemOp { number: 0, op, flags: SEM_UNDO }.bytes();
        call(Endpoint::IPC, SemOps { id: self.id.unwrap_or_default(), wait_ns: FOREVER }, operation)
    }
}

fn enter(
    what: &str,
    inside: &mut std::collections::BTreeSet<u64>,
    name: u64,
    doubts: &mut Vec<String>,
) {
    inside.insert(name);
    if inside.len() > 1 {
        doubts.push(format!("{inside:?} have the {what} at once"));
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        self.world.borrow_mut().locker.remove(&self.name);
    }
}

impl Program for Locker {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(ended) = ended {
            self.ended(ended);
            if random.chance(300) {
                return pause(random);
            }
        }
        if self.id.is_none() {
            return get_lock();
        }
        match self.doing {
            Locking::Inside => {
                self.world.borrow_mut().locker.remove(&self.name);
                self.doing = Locking::Unlocking;
                self.operate(1)
            }
            Locking::Idle if self.left > 0 => {
                self.left -= 1;
                self.doing = Locking::Taking;
                self.operate(-1)
            }
            _ => Step::Exit,
        }
    }
}

/// Adds to a number in a file under a record lock.
pub(crate) struct Counter {
    name: u64,
    left: u64,
    file: Option<(u64, u64)>,
    doing: Counting,
    world: Shared,
}

#[derive(Clone, Copy, PartialEq)]
enum Counting {
    Opening,
    Locking,
    Reading,
    Writing(u64),
    Unlocking,
    Lost,
}

impl Counter {
    pub(crate) fn new(name: u64, left: u64, world: Shared) -> Counter {
        Counter { name, left, file: None, doing: Counting::Opening, world }
    }

    fn leave(&self) {
        self.world.borrow_mut().counter.remove(&self.name);
    }

    /// The file is not open any more, and the lock not held.
    fn failed<R: Row>(&self, errno: i32) -> Counting {
        self.leave();
        match errno {
            EBADF | ESTALE => {
                doubtful::<R>(errno, &self.world);
                Counting::Opening
            }
            _ => {
                unexpected::<R>(errno, &self.world);
                Counting::Lost
            }
        }
    }

    fn step_for<R: Row>(
        &self,
        ended: Ended,
        next: impl FnOnce(R::Reply, Vec<u8>) -> Counting,
    ) -> Counting {
        match outcome::<R>(ended) {
            Outcome::Done(reply, payload) => next(reply, payload),
            Outcome::Failed(errno) => self.failed::<R>(errno),
            Outcome::Interrupted => self.doing,
            // Perhaps it has the lock: its death tells the server.
            Outcome::Lost => Counting::Lost,
        }
    }

    fn ended(&mut self, ended: Ended) {
        self.doing = match self.doing {
            Counting::Opening => {
                let mut file = None;
                let doing = self.step_for::<Create>(ended, |opened, attr| {
                    let attr = calls::vfs::Attr::get(&attr).expect("attributes");
                    file = Some((opened.fh, attr.ino));
                    Counting::Locking
                });
                self.file = file;
                doing
            }
            Counting::Locking => self.step_for::<Setlk>(ended, |(), _| {
                let world = &mut *self.world.borrow_mut();
                enter("record lock", &mut world.counter, self.name, &mut world.doubts);
                Counting::Reading
            }),
            Counting::Reading => self.step_for::<Read>(ended, |(), payload| {
                Counting::Writing(u64::from_le_bytes(payload.try_into().expect("eight bytes")))
            }),
            Counting::Writing(value) => {
                let outcome = outcome::<Write>(ended);
                self.world.borrow_mut().additions.settle(&outcome);
                match outcome {
                    Outcome::Done(..) => Counting::Unlocking,
                    Outcome::Failed(errno) => self.failed::<Write>(errno),
                    Outcome::Interrupted => Counting::Writing(value),
                    Outcome::Lost => Counting::Lost,
                }
            }
            Counting::Unlocking => self.step_for::<Setlk>(ended, |(), _| Counting::Locking),
            Counting::Lost => Counting::Lost,
        };
    }

    fn lock(&self, kind: u32) -> Step {
        let (fh, ino) = self.file.unwrap_or_default();
        let pid = 100 + u32::try_from(self.name).expect("few");
        let lock = Lock { owner: self.name, start: 0, end: 7, pid, kind };
        call(Endpoint::VFS, Setlk { ino, fh, wait: 1, flock: 0 }, lock.bytes())
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Program for Counter {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(ended) = ended {
            self.ended(ended);
            if random.chance(200) {
                return pause(random);
            }
        }
        let (fh, ino) = self.file.unwrap_or_default();
        match self.doing {
            Counting::Opening => open_file(COUNTER, 0),
            Counting::Locking if self.left == 0 => Step::Exit,
            Counting::Locking => {
                self.left -= 1;
                self.lock(F_WRLCK)
            }
            Counting::Reading => call(Endpoint::VFS, Read { fh, ino, offset: 0, size: 8 }, []),
            Counting::Writing(value) => {
                self.world.borrow_mut().additions.sent += 1;
                call(Endpoint::VFS, Write { fh, ino, offset: WRITE_AT }, (value + 1).to_le_bytes())
            }
            Counting::Unlocking => {
                self.leave();
                self.lock(F_UNLCK)
            }
            Counting::Lost => Step::Exit,
        }
    }
}

/// Appends numbered records to a file, and syncs it now and then.
pub(crate) struct Appender {
    name: u64,
    left: u64,
    file: Option<(u64, u64)>,
    doing: Appending,
    /// Written through this open file and not synced. What was written before may have got lost with
    /// the open file.
    written: Vec<u64>,
    world: Shared,
}

#[derive(Clone, Copy, PartialEq)]
enum Appending {
    Opening,
    Writing(u64),
    Syncing,
}

impl Appender {
    pub(crate) fn new(name: u64, left: u64, world: Shared) -> Appender {
        Appender { name, left, file: None, doing: Appending::Opening, written: Vec::new(), world }
    }

    /// An open file that is not any more; anything else is an error.
    fn failed<R: Row>(&mut self, errno: i32) {
        match errno {
            EBADF | ESTALE => doubtful::<R>(errno, &self.world),
            _ => unexpected::<R>(errno, &self.world),
        }
        self.file = None;
        self.written.clear();
    }

    fn ended(&mut self, ended: Ended) {
        match self.doing {
            Appending::Opening => match outcome::<Create>(ended) {
                Outcome::Done(opened, attr) => {
                    self.file =
                        Some((opened.fh, calls::vfs::Attr::get(&attr).expect("attributes").ino));
                }
                Outcome::Failed(errno) => self.failed::<Create>(errno),
                Outcome::Interrupted | Outcome::Lost => {}
            },
            Appending::Writing(record) => {
                let outcome = outcome::<Write>(ended);
                self.world.borrow_mut().records.insert(record, fate(&outcome));
                match outcome {
                    Outcome::Done(..) => self.written.push(record),
                    Outcome::Failed(errno) => self.failed::<Write>(errno),
                    Outcome::Interrupted | Outcome::Lost => {}
                }
            }
            Appending::Syncing => match outcome::<Fsync>(ended) {
                Outcome::Done(..) => self.world.borrow_mut().synced.extend(self.written.drain(..)),
                Outcome::Failed(errno) => self.failed::<Fsync>(errno),
                Outcome::Interrupted | Outcome::Lost => {}
            },
        }
    }
}

impl Program for Appender {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(ended) = ended {
            self.ended(ended);
            if random.chance(300) {
                return pause(random);
            }
        }
        let Some((fh, ino)) = self.file else {
            self.doing = Appending::Opening;
            return open_file(LOG, O_APPEND);
        };
        if self.left == 0 {
            return Step::Exit;
        }
        if random.chance(150) {
            self.doing = Appending::Syncing;
            return call(Endpoint::VFS, Fsync { fh, ino, datasync: 0 }, []);
        }
        self.left -= 1;
        // Upwards: the log is checked for the order.
        let record = self.name << 32 | (0xffff_ffff - self.left);
        self.doing = Appending::Writing(record);
        self.world.borrow_mut().records.insert(record, Fate::Sent);
        call(Endpoint::VFS, Write { fh, ino, offset: 0 }, record.to_le_bytes())
    }
}
