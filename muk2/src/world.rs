//! A world: the three servers of a VOS and the programs that use them, taking turns in one thread.

use crate::channel::{LocalChannel, ServerEnd};
use crate::task::{Pause, TaskId, Tasks, Turn};
use dvk::lanes::Hosted;
use dvk::server::{Answers, Call, Context, Gone, Nanos, Server};
use dvk::store::MemoryStore;
use ipc_server::IpcServer;
use m3ipc::limits::LANES;
use m3ipc::port::{Inbound, Kind, Port, Received, Rest};
use m3ipc::{CallId, Cred, Endpoint, IpcError, Message, NodeId, Sendrec, Tag, Wait};
use pm_server::PmServer;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use vfs_server::VfsServer;

/// The one node of a world.
const NODE: NodeId = NodeId(1);

/// What time it is in a world.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The machine's.
    System,
    /// It stands still while anybody can run, and jumps to the next deadline when nobody can. For tests.
    Simulated,
}

/// Servers and programs in one process.
#[derive(Debug)]
pub struct World {
    shared: Rc<Shared>,
    programs: Vec<TaskId>,
}

/// What all tasks of a world share.
#[derive(Debug)]
struct Shared {
    tasks: RefCell<Tasks>,
    servers: [Desk; 3],
    time: Time,
}

/// A server's task, the channels to it, and the program behind each.
#[derive(Debug)]
struct Desk {
    endpoint: Endpoint,
    task: Cell<TaskId>,
    list: RefCell<Vec<Inbound<ServerEnd>>>,
    callers: RefCell<Vec<Caller>>,
    deadline: Cell<Option<Nanos>>,
    gone: RefCell<Vec<Endpoint>>,
}

#[derive(Clone, Copy, Debug)]
struct Caller {
    task: TaskId,
    cred: Cred,
}

#[derive(Debug)]
struct Time {
    clock: Clock,
    start: Instant,
    now: Cell<Nanos>,
}

/// Every program waits for something that no program and no deadline will bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("every program waits, and nobody is left to answer")]
pub struct Stuck;

impl World {
    /// A fresh VOS.
    ///
    /// # Errors
    /// No memory for the stacks.
    pub fn new(clock: Clock) -> anyhow::Result<World> {
        let desk = |endpoint| Desk {
            endpoint,
            task: Cell::new(0),
            list: RefCell::default(),
            callers: RefCell::default(),
            deadline: Cell::new(None),
            gone: RefCell::default(),
        };
        let servers = [desk(Endpoint::VFS), desk(Endpoint::PM), desk(Endpoint::IPC)];
        let time = Time { clock, start: Instant::now(), now: Cell::new(1) };
        let wall = time.wall();
        let shared = Rc::new(Shared { tasks: RefCell::default(), servers, time });
        let mut stores = [MemoryStore::default(), MemoryStore::default(), MemoryStore::default()];
        let vfs = VfsServer::open(&mut stores[0], wall)?;
        let pm = PmServer::open(&stores[1]);
        let ipc = IpcServer::open(&stores[2]);
        let [vfs_store, pm_store, ipc_store] = stores;
        serve(&shared, 0, vfs, vfs_store)?;
        serve(&shared, 1, pm, pm_store)?;
        serve(&shared, 2, ipc, ipc_store)?;
        Ok(World { shared, programs: Vec::new() })
    }

    /// Adds a program that runs as `cred`.
    ///
    /// # Errors
    /// No memory for its stack.
    pub fn spawn(
        &mut self,
        cred: Cred,
        body: impl FnOnce(&Program<'_>) + 'static,
    ) -> anyhow::Result<()> {
        let shared = Rc::clone(&self.shared);
        let id = Rc::new(Cell::new(0));
        let own = Rc::clone(&id);
        let index = u32::try_from(self.programs.len() + 1)?;
        let task = self.shared.tasks.borrow_mut().add(move |turn| {
            let endpoint = Endpoint::new(NODE, index, 1);
            let ways = [const { RefCell::new(None) }; 3];
            let program = Program {
                shared,
                turn,
                task: own.get(),
                endpoint,
                cred,
                ways,
                sequence: Cell::new(0),
            };
            body(&program);
            program.leave();
        })?;
        id.set(task);
        self.programs.push(task);
        Ok(())
    }

    /// Runs until every program has returned.
    ///
    /// # Errors
    /// [`Stuck`] if none can go on.
    pub fn run(&mut self) -> Result<(), Stuck> {
        loop {
            while self.turn() {}
            if self.programs.iter().all(|&task| self.shared.tasks.borrow().has_ended(task)) {
                return Ok(());
            }
            let deadlines = self.shared.servers.iter().filter_map(|desk| desk.deadline.get());
            self.shared.time.reach(deadlines.min().ok_or(Stuck)?);
            for desk in &self.shared.servers {
                self.shared.tasks.borrow_mut().wake(desk.task.get());
            }
        }
    }

    /// Runs the next ready task; false if there is none.
    fn turn(&self) -> bool {
        let next = self.shared.tasks.borrow_mut().take_next();
        let Some((id, mut coroutine)) = next else { return false };
        let result = coroutine.resume(());
        self.shared.tasks.borrow_mut().put_back(id, coroutine, result);
        true
    }
}

impl Time {
    fn now(&self) -> Nanos {
        if let Clock::System = self.clock {
            self.now.set(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        self.now.get()
    }

    /// Nanoseconds since the epoch.
    fn wall(&self) -> u64 {
        match self.clock {
            Clock::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
            Clock::Simulated => self.now.get(),
        }
    }

    /// Lets time pass until `deadline`.
    fn reach(&self, deadline: Nanos) {
        match self.clock {
            Clock::System => {
                std::thread::sleep(Duration::from_nanos(deadline.saturating_sub(self.now())))
            }
            Clock::Simulated => self.now.set(self.now.get().max(deadline)),
        }
    }
}

/// A server's place to rest is its turn.
#[derive(Debug)]
struct NoRest;

impl Rest for NoRest {
    fn prepare(&self) -> u32 {
        0
    }
    fn sleep(&self, _: u32, _: Option<Duration>) {}
    fn awake(&self) {}
}

/// A server with what its task needs.
struct Served<S> {
    hosted: Hosted<S>,
    store: MemoryStore,
    port: Port<NoRest>,
    kept: BTreeMap<CallId, Received>,
    buffer: Vec<u8>,
}

/// Starts the task of the server at desk number `desk`.
fn serve<S: Server + 'static>(
    shared: &Rc<Shared>,
    desk: usize,
    server: S,
    store: MemoryStore,
) -> anyhow::Result<()> {
    let hosted = Hosted::open(server, &store)?;
    let buffer = vec![0; m3ipc::limits::PAYLOAD_AREA];
    let mut served =
        Served { hosted, store, port: Port::new(NoRest), kept: BTreeMap::new(), buffer };
    let world = Rc::downgrade(shared);
    let task = shared.tasks.borrow_mut().add(move |turn| {
        // The world owns its tasks; when it goes, so do they.
        while let Some(shared) = world.upgrade() {
            served.look(&shared, &shared.servers[desk]);
            drop(shared);
            turn.suspend(Pause::Asleep);
        }
    })?;
    shared.servers[desk].task.set(task);
    Ok(())
}

impl<S: Server> Served<S> {
    /// Handles everything that has come, and what time has brought.
    fn look(&mut self, shared: &Shared, desk: &Desk) {
        for gone in desk.gone.take() {
            self.step(shared, desk, |hosted, cx| hosted.gone(Gone::Endpoint(gone), cx));
        }
        loop {
            let mut list = desk.list.borrow_mut();
            let got =
                self.port.receive(&mut list, Endpoint::ANY, &mut self.buffer, Some(Duration::ZERO));
            drop(list);
            let Ok(received) = got else { break };
            let id = CallId { source: received.message.source, tag: received.message.tag };
            match received.kind {
                Kind::Request => self.request(shared, desk, id, received),
                Kind::Cancelled => self.step(shared, desk, |hosted, cx| hosted.cancel(id, cx)),
                // Servers do not move.
                Kind::Notification(_) | Kind::OneWay | Kind::Again => {}
            }
        }
        if self.hosted.deadline().is_some_and(|deadline| deadline <= shared.time.now()) {
            self.step(shared, desk, Hosted::tick);
        }
        desk.deadline.set(self.hosted.deadline());
    }

    fn request(&mut self, shared: &Shared, desk: &Desk, id: CallId, received: Received) {
        let cred = desk.callers.borrow()[received.channel()].cred;
        let payload = self.buffer[..received.payload_len].to_vec();
        self.kept.insert(id, received);
        let call = Call { id, cred: &cred, message: &received.message, payload: &payload };
        self.step(shared, desk, |hosted, cx| hosted.request(&call, cx));
    }

    /// One input to the server, and its answers to where they belong.
    fn step(
        &mut self,
        shared: &Shared,
        desk: &Desk,
        input: impl FnOnce(&mut Hosted<S>, &mut Context<'_>),
    ) {
        let mut answers = Answers::default();
        let now = shared.time.now();
        // Unique is enough here: nobody in this process guesses numbers.
        let entropy = now.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let wall = shared.time.wall();
        input(
            &mut self.hosted,
            &mut Context { now, wall, entropy, store: &mut self.store, answers: &mut answers },
        );
        for answer in answers.list {
            let Some(received) = self.kept.remove(&answer.to) else { continue };
            let mut list = desk.list.borrow_mut();
            if self.port.reply(&mut list, &received, &answer.message, &answer.payload).is_ok() {
                let task = desk.callers.borrow()[received.channel()].task;
                shared.tasks.borrow_mut().wake(task);
            }
        }
    }
}

/// A program's view of its world: it makes calls.
pub struct Program<'a> {
    shared: Rc<Shared>,
    turn: Turn<'a>,
    task: TaskId,
    endpoint: Endpoint,
    cred: Cred,
    /// Its channels to the three servers.
    ways: [RefCell<Option<Rc<LocalChannel>>>; 3],
    sequence: Cell<u64>,
}

impl std::fmt::Debug for Program<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Program<'_> {
    /// Lets the others run.
    pub fn yield_now(&self) {
        self.turn.suspend(Pause::Ready);
    }

    /// Its endpoint.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    fn desk(&self, to: Endpoint) -> Result<usize, IpcError> {
        self.shared.servers.iter().position(|desk| desk.endpoint == to).ok_or(IpcError::Stale)
    }

    fn way(&self, desk: usize) -> Rc<LocalChannel> {
        let mut way = self.ways[desk].borrow_mut();
        let open = || {
            let channel = LocalChannel::new();
            let place = &self.shared.servers[desk];
            place
                .list
                .borrow_mut()
                .push(Inbound::new(ServerEnd(Rc::clone(&channel)), self.endpoint));
            place.callers.borrow_mut().push(Caller { task: self.task, cred: self.cred });
            channel
        };
        Rc::clone(way.get_or_insert_with(open))
    }

    /// It has returned: servers forget it.
    fn leave(&self) {
        for (desk, way) in self.shared.servers.iter().zip(&self.ways) {
            if way.borrow().is_some() {
                desk.gone.borrow_mut().push(self.endpoint);
                self.shared.tasks.borrow_mut().wake(desk.task.get());
            }
        }
    }
}

impl Sendrec for Program<'_> {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        let desk = self.desk(to)?;
        let way = self.way(desk);
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        // A program is one coroutine: it has one call open.
        let lane = desk % LANES;
        let number = u16::try_from(lane).map_err(|_| IpcError::Exhausted)?;
        message.tag = Tag::new(number, sequence);
        message.source = self.endpoint;
        way.post(lane, message, send)?;
        let task = self.shared.servers[desk].task.get();
        self.shared.tasks.borrow_mut().wake(task);
        if wait.timeout_ms == Some(0) {
            way.cancel(lane, message.tag);
        }
        loop {
            self.turn.suspend(Pause::Asleep);
            if let Some((answer, len)) = way.take_answer(lane, receive) {
                *message = answer;
                return match message.status {
                    4096.. => Err(IpcError::from_status(message.status)),
                    _ if len > receive.len() => Err(IpcError::TooLarge),
                    _ => Ok(len),
                };
            }
        }
    }
}
