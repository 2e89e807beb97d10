//! A VOS for real processes: the three servers as coroutines of one thread, behind the door of a dvkd.
//!
//! Each server's task is the round of the `Solo` host; where a process of its own would sleep on its bell, the
//! task gives its turn away. All share one bell: whoever is called wakes the house.

use crate::task::{Pause, Tasks};
use anyhow::{Result, anyhow};
use dvk::host::disk::Durable;
use dvk::host::solo::Solo;
use dvk::server::Server;
use dvk::store::MemoryStore;
use ipc_server::IpcServer;
use m3ipc::Endpoint;
use m3ipc::bell::Bell;
use m3ipc::spin::Spin;
use pm_server::PmServer;
use rustix::fd::{AsFd, BorrowedFd};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use vfs_server::VfsServer;

/// Serves the container whose door is `socket` with state in memory, until dvkd says stop.
///
/// # Errors
/// One sentence: no dvkd at the socket, it refuses, or the connection to it is lost.
pub fn serve(socket: &Path) -> Result<()> {
    let (bell, descriptor) =
        Bell::create().map_err(|error| anyhow!("cannot make a bell: {error:?}"))?;
    let bell = Arc::new(bell);
    let door = Door { socket, bell: &bell, descriptor: descriptor.as_fd() };
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut store = MemoryStore::default();
    let vfs = VfsServer::open(&mut store, u64::try_from(since_epoch.as_nanos())?)?;
    let vfs = door.admit(Endpoint::VFS, vfs, store)?;
    let store = MemoryStore::default();
    let pm = door.admit(Endpoint::PM, PmServer::open(&store), store)?;
    let store = MemoryStore::default();
    let ipc = door.admit(Endpoint::IPC, IpcServer::open(&store), store)?;
    House { bell, residents: vec![vfs, pm, ipc], tasks: Tasks::default(), spin: Spin::new() }.run()
}

/// What all servers of a house have in common at the door.
struct Door<'a> {
    socket: &'a Path,
    bell: &'a Arc<Bell>,
    descriptor: BorrowedFd<'a>,
}

impl Door<'_> {
    fn admit<S: Server + 'static>(
        &self,
        endpoint: Endpoint,
        server: S,
        store: MemoryStore,
    ) -> Result<Resident> {
        let number = endpoint.index();
        let solo = Solo::connect(
            number,
            self.socket,
            server,
            store,
            Arc::clone(self.bell),
            self.descriptor,
        )?;
        Ok(Resident {
            solo: Rc::new(RefCell::new(solo)),
            worked: Rc::default(),
            failure: Rc::default(),
        })
    }
}

/// A server of the house.
struct Resident {
    solo: Rc<RefCell<dyn Rounds>>,
    /// Did its last turn find anything to do?
    worked: Rc<Cell<bool>>,
    failure: Rc<Cell<Option<anyhow::Error>>>,
}

/// What the house needs of a [`Solo`], whatever its server.
trait Rounds {
    fn round(&mut self) -> Result<bool>;
    fn is_stopping(&self) -> bool;
    fn has_news(&self) -> bool;
    fn ring_again(&mut self);
    fn patience(&self) -> Option<Duration>;
}

impl<S: Server, D: Durable> Rounds for Solo<S, D> {
    fn round(&mut self) -> Result<bool> {
        Solo::round(self)
    }
    fn is_stopping(&self) -> bool {
        Solo::is_stopping(self)
    }
    fn has_news(&self) -> bool {
        Solo::has_news(self)
    }
    fn ring_again(&mut self) {
        Solo::ring_again(self);
    }
    fn patience(&self) -> Option<Duration> {
        Solo::patience(self)
    }
}

struct House {
    bell: Arc<Bell>,
    residents: Vec<Resident>,
    tasks: Tasks,
    spin: Spin,
}

impl House {
    fn run(mut self) -> Result<()> {
        for resident in &self.residents {
            let (solo, worked) = (Rc::clone(&resident.solo), Rc::clone(&resident.worked));
            let failure = Rc::clone(&resident.failure);
            self.tasks.add(move |turn| {
                loop {
                    let round = solo.borrow_mut().round();
                    match round {
                        Ok(busy) => worked.set(busy),
                        Err(error) => return failure.set(Some(error)),
                    }
                    if solo.borrow().is_stopping() {
                        return;
                    }
                    turn.suspend(Pause::Ready);
                }
            })?;
        }
        loop {
            let mut worked = false;
            for _ in 0..self.residents.len() {
                let Some((id, mut coroutine)) = self.tasks.take_next() else { return self.end() };
                let result = coroutine.resume(());
                self.tasks.put_back(id, coroutine, result);
                worked |= self.residents[id].worked.get();
                if self.tasks.has_ended(id) && self.residents[id].solo.borrow().is_stopping() {
                    continue;
                }
                if self.tasks.has_ended(id) {
                    return self.end();
                }
            }
            if !worked {
                self.rest();
            }
        }
    }

    /// Sleeps until somebody rings or time brings something.
    fn rest(&self) {
        if self.spin.until(|| self.has_news()) {
            return;
        }
        for resident in &self.residents {
            resident.solo.borrow_mut().ring_again();
        }
        let ticket = self.bell.prepare();
        if self.has_news() {
            self.bell.awake();
        } else {
            let patience = self
                .residents
                .iter()
                .filter_map(|resident| resident.solo.borrow().patience())
                .min();
            self.bell.sleep(ticket, patience);
        }
    }

    fn has_news(&self) -> bool {
        self.residents.iter().any(|resident| resident.solo.borrow().has_news())
    }

    /// Everybody has stopped, or one has failed.
    fn end(self) -> Result<()> {
        self.residents.iter().find_map(|resident| resident.failure.take()).map_or(Ok(()), Err)
    }
}
