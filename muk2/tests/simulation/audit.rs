//! What is there before the programs start, and what is found when they are gone.

use crate::actors::{
    COUNTER, LOG, Outcome, Shared, call, get_lock, get_sysv_queue, open_file, open_queue,
    open_semaphore, outcome,
};
use calls::ipc::{MqOpen, MqReceive, MsgGet, MsgReceive, SemCtl, SemGet, SemGetvalue, SemOpen};
use calls::vfs::{Attr, Create, Read, WRITE_AT, Write};
use calls::wire::Wire;
use dvk::sim::{Ended, Program, Random, Step};
use ipc_server::flags::{GETVAL, IPC_NOWAIT, SETVAL};
use m3ipc::Endpoint;
use m3ipc::errno::numbers::{ENOMSG, ETIMEDOUT};

/// Makes everything that is shared.
pub(crate) struct Setup {
    step: u32,
    world: Shared,
}

impl Setup {
    pub(crate) fn new(world: Shared) -> Setup {
        Setup { step: 0, world }
    }
}

/// The reply to a call that nothing can go wrong with.
fn reply<R: calls::Row>(ended: Option<Ended>, world: &Shared) -> (R::Reply, Vec<u8>)
where
    R::Reply: Default,
{
    match ended.map(outcome::<R>) {
        Some(Outcome::Done(reply, payload)) => (reply, payload),
        Some(Outcome::Failed(errno)) => {
            world
                .borrow_mut()
                .wrong
                .push(format!("{} failed with errno {errno} while nothing goes wrong", R::NAME));
            Default::default()
        }
        _ => {
            world.borrow_mut().wrong.push(format!("{} was lost while nothing goes wrong", R::NAME));
            Default::default()
        }
    }
}

impl Program for Setup {
    fn next(&mut self, ended: Option<Ended>, _: &mut Random) -> Step {
        self.step += 1;
        match self.step {
            1 => open_semaphore(),
            2 => open_queue(),
            3 => get_sysv_queue(),
            4 => get_lock(),
            5 => {
                let id = reply::<SemGet>(ended, &self.world).0.value;
                call(Endpoint::IPC, SemCtl { id, number: 0, command: SETVAL, value: 1 }, [])
            }
            6 => {
                reply::<SemCtl>(ended, &self.world);
                open_file(LOG, 0)
            }
            7 => open_file(COUNTER, 0),
            8 => {
                let (opened, attr) = reply::<Create>(ended, &self.world);
                let ino = Attr::get(&attr).unwrap_or_default().ino;
                call(
                    Endpoint::VFS,
                    Write { fh: opened.fh, ino, offset: WRITE_AT },
                    0u64.to_le_bytes(),
                )
            }
            _ => {
                reply::<Write>(ended, &self.world);
                Step::Exit
            }
        }
    }
}

/// Looks at everything that is shared, and empties the queues.
pub(crate) struct Auditor {
    looking: Looking,
    world: Shared,
}

#[derive(Clone, Copy)]
enum Looking {
    Start,
    Semaphore,
    Value,
    Queue,
    Message(u64),
    SysvQueue,
    SysvMessage(i32),
    Lock,
    LockValue,
    Log,
    Records { fh: u64, ino: u64, offset: u64 },
    Counter,
    Total,
}

/// Bytes of the log that are read at once: records of eight.
const PIECE: u32 = 4096;

impl Auditor {
    pub(crate) fn new(world: Shared) -> Auditor {
        Auditor { looking: Looking::Start, world }
    }

    /// A number from a message or a record.
    fn number(&self, payload: Vec<u8>) -> u64 {
        payload.try_into().map(u64::from_le_bytes).unwrap_or_else(|payload: Vec<u8>| {
            self.world
                .borrow_mut()
                .wrong
                .push(format!("{} bytes where there should be eight", payload.len()));
            0
        })
    }

    fn take_message(&self, id: u64) -> Step {
        call(Endpoint::IPC, MqReceive { id, size: 64, wait_ns: 0 }, [])
    }

    fn take_sysv_message(&self, id: i32) -> Step {
        call(Endpoint::IPC, MsgReceive { id, kind: 0, size: 64, flags: IPC_NOWAIT }, [])
    }

    fn read(&self, fh: u64, ino: u64, offset: u64) -> Step {
        call(Endpoint::VFS, Read { fh, ino, offset, size: PIECE }, [])
    }
}

impl Program for Auditor {
    fn next(&mut self, ended: Option<Ended>, _: &mut Random) -> Step {
        let world = self.world.clone();
        let (looking, step) = match self.looking {
            Looking::Start => (Looking::Semaphore, open_semaphore()),
            Looking::Semaphore => {
                let id = reply::<SemOpen>(ended, &world).0.id;
                (Looking::Value, call(Endpoint::IPC, SemGetvalue { id }, []))
            }
            Looking::Value => {
                let value = reply::<SemGetvalue>(ended, &world).0.value;
                world.borrow_mut().value = u64::try_from(value).unwrap_or(u64::MAX);
                (Looking::Queue, open_queue())
            }
            Looking::Queue => {
                let id = reply::<MqOpen>(ended, &world).0.id;
                (Looking::Message(id), self.take_message(id))
            }
            Looking::Message(id) => match ended.map(outcome::<MqReceive>) {
                Some(Outcome::Done(_, payload)) => {
                    let number = self.number(payload);
                    world.borrow_mut().queue.left.push(number);
                    (Looking::Message(id), self.take_message(id))
                }
                other => {
                    if !matches!(other, Some(Outcome::Failed(ETIMEDOUT))) {
                        world.borrow_mut().wrong.push("the queue cannot be emptied".to_owned());
                    }
                    (Looking::SysvQueue, get_sysv_queue())
                }
            },
            Looking::SysvQueue => {
                let id = reply::<MsgGet>(ended, &world).0.value;
                (Looking::SysvMessage(id), self.take_sysv_message(id))
            }
            Looking::SysvMessage(id) => match ended.map(outcome::<MsgReceive>) {
                Some(Outcome::Done(_, payload)) => {
                    let number = self.number(payload);
                    world.borrow_mut().sysv_queue.left.push(number);
                    (Looking::SysvMessage(id), self.take_sysv_message(id))
                }
                other => {
                    if !matches!(other, Some(Outcome::Failed(ENOMSG))) {
                        world
                            .borrow_mut()
                            .wrong
                            .push("the System V queue cannot be emptied".to_owned());
                    }
                    (Looking::Lock, get_lock())
                }
            },
            Looking::Lock => {
                let id = reply::<SemGet>(ended, &world).0.value;
                (
                    Looking::LockValue,
                    call(Endpoint::IPC, SemCtl { id, number: 0, command: GETVAL, value: 0 }, []),
                )
            }
            Looking::LockValue => {
                world.borrow_mut().lock_value = reply::<SemCtl>(ended, &world).0.value;
                (Looking::Log, open_file(LOG, 0))
            }
            Looking::Log => {
                let (opened, attr) = reply::<Create>(ended, &world);
                let (fh, ino) = (opened.fh, Attr::get(&attr).unwrap_or_default().ino);
                (Looking::Records { fh, ino, offset: 0 }, self.read(fh, ino, 0))
            }
            Looking::Records { fh, ino, offset } => {
                let (_, payload) = reply::<Read>(ended, &world);
                for record in payload.chunks(8) {
                    let record = self.number(record.to_vec());
                    world.borrow_mut().log.push(record);
                }
                if payload.is_empty() {
                    (Looking::Counter, open_file(COUNTER, 0))
                } else {
                    let offset = offset + payload.len() as u64;
                    (Looking::Records { fh, ino, offset }, self.read(fh, ino, offset))
                }
            }
            Looking::Counter => {
                let (opened, attr) = reply::<Create>(ended, &world);
                let ino = Attr::get(&attr).unwrap_or_default().ino;
                (
                    Looking::Total,
                    call(Endpoint::VFS, Read { fh: opened.fh, ino, offset: 0, size: 8 }, []),
                )
            }
            Looking::Total => {
                let (_, payload) = reply::<Read>(ended, &world);
                world.borrow_mut().total = self.number(payload);
                (Looking::Total, Step::Exit)
            }
        };
        self.looking = looking;
        step
    }
}
