//! A VOS of one server inside the test: calls are served under a lock, kept calls wait on a condition.

use calls::Row;
use calls::vfs::Recalls;
use dvk::server::{Answer, Answers, Call, Context, Server};
use dvk::store::MemoryStore;
use m3ipc::{CallId, Cred, Endpoint, Interrupt, IpcError, Message, NodeId, Sendrec, Tag, Wait};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};
use vfs_server::VfsServer;

/// A vfs-server that several nodes share.
pub(crate) struct Vos {
    state: Mutex<State>,
    answered: Condvar,
    start: Instant,
    sequence: AtomicU64,
    down: AtomicBool,
}

struct State {
    server: VfsServer,
    store: MemoryStore,
    answers: BTreeMap<CallId, Answer>,
    /// Calls with these numbers wait.
    stalled: fn(u16) -> bool,
    /// How many do.
    waiting: usize,
    /// How many calls of each number there have been.
    served: BTreeMap<u16, usize>,
    sessions: usize,
}

/// The port of one node's file agent.
pub(crate) struct Node {
    vos: Arc<Vos>,
    endpoint: Endpoint,
}

fn wall() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}

impl Vos {
    pub(crate) fn new() -> Arc<Vos> {
        let mut store = MemoryStore::default();
        let server = VfsServer::open(&mut store, wall()).unwrap();
        Arc::new(Vos {
            state: Mutex::new(State {
                server,
                store,
                answers: BTreeMap::new(),
                stalled: |_| false,
                waiting: 0,
                served: BTreeMap::new(),
                sessions: 0,
            }),
            answered: Condvar::new(),
            start: Instant::now(),
            sequence: AtomicU64::new(1),
            down: AtomicBool::new(false),
        })
    }

    pub(crate) fn node(self: &Arc<Vos>, number: u16) -> Node {
        Node { vos: self.clone(), endpoint: Endpoint::new(NodeId(number), 1, 1) }
    }

    /// From now on calls with these numbers wait.
    pub(crate) fn stall(&self, which: fn(u16) -> bool) {
        self.state.lock().unwrap().stalled = which;
        self.answered.notify_all();
    }

    /// Does anybody wait because of that?
    pub(crate) fn has_stalled(&self) -> bool {
        self.state.lock().unwrap().waiting > 0
    }

    /// How many calls `R` there have been.
    pub(crate) fn served<R: Row>(&self) -> usize {
        self.state.lock().unwrap().served.get(&R::NUMBER).copied().unwrap_or(0)
    }

    /// How many there have been.
    pub(crate) fn served_in_all(&self) -> usize {
        self.state.lock().unwrap().served.values().sum()
    }

    /// How many sessions agents have begun.
    pub(crate) fn sessions(&self) -> usize {
        self.state.lock().unwrap().sessions
    }

    /// Has anybody a file open?
    pub(crate) fn has_open_files(&self) -> bool {
        !self.state.lock().unwrap().server.holders().is_empty()
    }

    /// From now on calls fail as if the server's node were down, or not any more.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }
}

impl Sendrec for Node {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        _: Wait,
    ) -> Result<usize, IpcError> {
        self.sendrec_until(to, message, send, receive, &Interrupt::new())
    }

    fn sendrec_until(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        interrupt: &Interrupt,
    ) -> Result<usize, IpcError> {
        assert_eq!(to, Endpoint::VFS);
        if self.vos.down.load(Ordering::Relaxed) {
            return Err(IpcError::NodeDown);
        }
        let sequence = self.vos.sequence.fetch_add(1, Ordering::Relaxed);
        let id = CallId { source: self.endpoint, tag: Tag::new(0, sequence) };
        let bytes = send.concat();
        let (cred, payload) = Cred::decode(&bytes).ok_or(IpcError::Protocol)?;
        (message.source, message.tag) = (id.source, id.tag);
        message.payload_len = u32::try_from(payload.len()).unwrap();
        let mut state = self.vos.state.lock().unwrap();
        state.waiting += 1;
        while (state.stalled)(message.call) {
            state = self.vos.answered.wait(state).unwrap();
        }
        state.waiting -= 1;
        *state.served.entry(message.call).or_default() += 1;
        let begins = Recalls::get(&message.args).is_some_and(|row| row.session == 0);
        state.sessions += usize::from(message.call == Recalls::NUMBER && begins);
        state.serve(&Call { id, cred: &cred, message, payload }, self.vos.start);
        self.vos.answered.notify_all();
        let mut is_cancelled = false;
        let answer = loop {
            if let Some(answer) = state.answers.remove(&id) {
                break answer;
            }
            if interrupt.is_wanted() && !is_cancelled {
                is_cancelled = true;
                state.act(id.tag.0, self.vos.start, |server, cx| server.cancel(id, cx));
                continue;
            }
            // The clock's part is done by whoever waits when it is due.
            let Some(due) = state.server.deadline().map(Duration::from_nanos) else {
                state = self.vos.answered.wait(state).unwrap();
                continue;
            };
            let left = due.saturating_sub(self.vos.start.elapsed());
            let (guard, waited) = self.vos.answered.wait_timeout(state, left).unwrap();
            state = guard;
            if waited.timed_out() {
                state.act(id.tag.0, self.vos.start, |_, _| ());
                self.vos.answered.notify_all();
            }
        };
        drop(state);
        *message = answer.message;
        if message.status >= 4096 {
            return Err(IpcError::from_status(message.status));
        }
        let room = receive.get_mut(..answer.payload.len()).ok_or(IpcError::TooLarge)?;
        room.copy_from_slice(&answer.payload);
        Ok(answer.payload.len())
    }

    fn interrupt(&self, interrupt: &Interrupt) {
        interrupt.mark(|_| ());
        // Who waits looks at it under this lock.
        drop(self.vos.state.lock().unwrap());
        self.vos.answered.notify_all();
    }
}

impl State {
    fn serve(&mut self, call: &Call<'_>, start: Instant) {
        self.act(call.id.tag.0, start, |server, cx| server.serve(call, cx));
    }

    fn act(
        &mut self,
        entropy: u64,
        start: Instant,
        act: impl FnOnce(&mut VfsServer, &mut Context<'_>),
    ) {
        let mut answers = Answers::default();
        let mut cx = Context {
            now: u64::try_from(start.elapsed().as_nanos()).unwrap(),
            wall: wall(),
            entropy,
            store: &mut self.store,
            answers: &mut answers,
        };
        act(&mut self.server, &mut cx);
        if self.server.deadline().is_some() {
            self.server.tick(&mut cx);
        }
        self.answers.extend(answers.list.into_iter().map(|answer| (answer.to, answer)));
    }
}
