//! A server's process in the simulator: its rounds, its disk, and its death at any point of them.

use super::node::Ask;
use super::{CrashStore, Event, MICROSECOND, MILLISECOND, SECOND, Sim};
use crate::kernel::{Input, Role};
use crate::lanes::Hosted;
use crate::server::{Answer, Answers, Call, Context, Gone, Nanos, Server};
use m3ipc::{CallId, Cred, Endpoint, Message, NodeId};
use std::collections::BTreeMap;

/// The process of a server.
pub(super) struct Service {
    pub(super) pid: u32,
    /// Which of the processes that were this server.
    instance: u64,
    hosted: Hosted<Box<dyn Server>>,
    /// `None` until it is bound.
    endpoint: Option<Endpoint>,
    /// What it has not looked at yet.
    inbox: Vec<Item>,
    looks_at: Option<Nanos>,
    /// Where the open calls came from.
    open: BTreeMap<CallId, Origin>,
    /// Answers to calls of other nodes that the daemon has not read yet.
    unread: Vec<Answer>,
    /// It is killed in its next round, there.
    dies: Option<Death>,
}

/// Something in front of a server.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are requests")]
pub(super) enum Item {
    Request { origin: Origin, cred: Cred, message: Message, payload: Vec<u8> },
    Cancel(CallId),
    Gone(u64, Gone),
}

/// Whose channel a request came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Process(u32),
    Daemon,
}

/// Where in a round a server is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// After it has handled so many inputs.
    Handling(usize),
    BeforeCommit,
    /// After the commit, when so many answers have left.
    Answering(usize),
}

/// What a dead server leaves in shared memory.
#[derive(Debug)]
pub(super) struct Dead {
    endpoint: Option<Endpoint>,
    unread: Vec<Answer>,
}

impl Service {
    pub(super) fn open_count(&self) -> usize {
        self.hosted.open_count()
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.hosted.open_count();
        write!(
            f,
            "{{{:?}, {} in front, {open} open: {:?}}}",
            self.endpoint,
            self.inbox.len(),
            self.open.keys()
        )
    }
}

impl Sim {
    pub(super) fn start_server(&mut self, id: NodeId, number: u32, incarnation: u64) {
        let (pid, instance) = (self.next_pid(), self.number());
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.incarnation == incarnation)
        else {
            return;
        };
        let Some(disk) = self.disks.get_mut(&number) else { return };
        if node.kernel.is_none() || node.services.contains_key(&number) {
            return;
        }
        let server = (self.factory)(number, disk);
        disk.commit(true);
        let hosted = match Hosted::open(server, disk) {
            Ok(hosted) => hosted,
            Err(error) => return self.wrong(format!("server {number}: {error}")),
        };
        let service = Service {
            pid,
            instance,
            hosted,
            endpoint: None,
            inbox: Vec::new(),
            looks_at: None,
            open: BTreeMap::new(),
            unread: Vec::new(),
            dies: None,
        };
        node.services.insert(number, service);
        self.soon(Event::Asked {
            node: id,
            incarnation,
            pid,
            ask: Ask::Hello(Role::Server(number)),
        });
    }

    /// Is the welcome for a server? Then it serves from now on.
    pub(super) fn server_welcome(&mut self, id: NodeId, pid: u32, endpoint: Endpoint) -> bool {
        let Some(service) = self
            .nodes
            .get_mut(&id)
            .and_then(|node| node.services.values_mut().find(|service| service.pid == pid))
        else {
            return false;
        };
        service.endpoint = Some(endpoint);
        true
    }

    /// Puts something in front of the server bound as `to`, in memory that it looks at soon.
    pub(super) fn post(&mut self, id: NodeId, to: Endpoint, item: Item) {
        if self.post_to_peer(id, to, &item) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some((number, service)) =
            node.services.iter_mut().find(|(_, service)| service.endpoint == Some(to))
        else {
            // It is dead, and the daemon does not know yet.
            return;
        };
        service.inbox.push(item);
        let number = *number;
        let delay = self.random.between(MICROSECOND, 80 * MICROSECOND);
        self.plan_round(id, number, self.now + delay);
    }

    fn plan_round(&mut self, id: NodeId, number: u32, at: Nanos) {
        let Some(service) = self.nodes.get_mut(&id).and_then(|node| node.services.get_mut(&number))
        else {
            return;
        };
        if service.looks_at.is_none_or(|planned| planned > at || planned < self.now) {
            service.looks_at = Some(at);
            let instance = service.instance;
            self.at(at, Event::Round { node: id, number, instance });
        }
    }

    /// One look of a server at what is in front of it, the commit, and the answers.
    pub(super) fn round(&mut self, id: NodeId, number: u32, instance: u64) {
        let now = self.now;
        let Some(service) = self.nodes.get_mut(&id).and_then(|node| node.services.get_mut(&number))
        else {
            return;
        };
        let Some(disk) = self.disks.get_mut(&number) else { return };
        if service.instance != instance || service.endpoint.is_none() {
            return;
        }
        self.stats.rounds += 1;
        service.looks_at = None;
        service.dies = service.dies.filter(|_| now < self.faults.until);
        let items = in_some_order(std::mem::take(&mut service.inbox), &mut self.random);
        let mut answers = Answers::default();
        let mut left = match service.dies {
            Some(Death::Handling(count)) => count,
            _ => usize::MAX,
        };
        for item in items {
            if left == 0 {
                break;
            }
            left -= 1;
            let mut cx = context(now, self.random.next(), disk, &mut answers);
            service.handle(item, &mut cx);
        }
        if left > 0 && service.hosted.deadline().is_some_and(|deadline| deadline <= now) {
            let mut cx = context(now, self.random.next(), disk, &mut answers);
            service.hosted.tick(&mut cx);
        }
        let leave = match service.dies {
            Some(Death::Handling(_) | Death::BeforeCommit) => return self.kill_server(id, number),
            Some(Death::Answering(count)) => count,
            None => usize::MAX,
        };
        let (dies, deadline) = (service.dies.is_some(), service.hosted.deadline());
        disk.commit(answers.sync);
        for answer in answers.list.into_iter().take(leave) {
            self.server_answers(id, number, answer);
        }
        if dies {
            return self.kill_server(id, number);
        }
        if let Some(deadline) = deadline {
            self.plan_round(id, number, deadline.max(now + MICROSECOND));
        }
    }

    /// An answer leaves: it is in the memory that the server shares with whoever asked.
    fn server_answers(&mut self, id: NodeId, number: u32, mut answer: Answer) {
        let Some(service) = self.nodes.get_mut(&id).and_then(|node| node.services.get_mut(&number))
        else {
            return;
        };
        answer.message.source = service.endpoint.unwrap_or_default();
        match service.open.remove(&answer.to) {
            Some(Origin::Daemon) => {
                service.unread.push(answer);
                let instance = service.instance;
                self.soon(Event::ReadAnswers { node: id, number, instance });
            }
            Some(Origin::Process(pid)) => {
                self.lane_answered(Some(pid), answer.to, answer.message, answer.payload)
            }
            None => {
                self.wrong(format!("server {number} answers {:?}, which is not open", answer.to))
            }
        }
    }

    pub(super) fn read_answers(&mut self, id: NodeId, number: u32, instance: u64) {
        let Some(service) = self.nodes.get_mut(&id).and_then(|node| node.services.get_mut(&number))
        else {
            return;
        };
        if service.instance == instance
            && let Some(from) = service.endpoint
        {
            let unread = std::mem::take(&mut service.unread);
            self.pass_answers(id, from, unread);
        }
    }

    fn pass_answers(&mut self, id: NodeId, from: Endpoint, answers: Vec<Answer>) {
        for Answer { to, message, payload } in answers {
            let dc = self.dc.id;
            self.step(
                id,
                Input::LocalAnswer { dc, from, id: to, message: &message, payload: &payload },
            );
        }
    }

    /// Some server gets a death sentence: at once, or somewhere in its next round.
    pub(super) fn kill_some_server(&mut self) {
        let alive: Vec<(NodeId, u32)> = self
            .nodes
            .iter()
            .flat_map(|(id, node)| node.services.keys().map(|number| (*id, *number)))
            .collect();
        if alive.is_empty() {
            return;
        }
        let (id, number) = alive[self.random.index(alive.len())];
        let death = match self.random.below(4) {
            0 => return self.kill_server(id, number),
            1 => Death::Handling(self.random.index(4)),
            2 => Death::BeforeCommit,
            _ => Death::Answering(self.random.index(4)),
        };
        if let Some(service) =
            self.nodes.get_mut(&id).and_then(|node| node.services.get_mut(&number))
        {
            service.dies = Some(death);
        }
    }

    fn kill_server(&mut self, id: NodeId, number: u32) {
        self.stats.server_kills += 1;
        self.note(format!("server {number} is killed"));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(service) = node.services.remove(&number) else { return };
        if let Some(disk) = self.disks.get_mut(&number) {
            disk.kill();
        }
        let incarnation = node.incarnation;
        let dead = Dead { endpoint: service.endpoint, unread: service.unread };
        node.bound.retain(|_, pid| *pid != service.pid);
        self.soon(Event::NoticeServerDeath { node: id, incarnation, dead, number });
    }

    /// The daemon reads what the server had answered, then lets the kernel know, and starts the next.
    pub(super) fn notice_server_death(
        &mut self,
        id: NodeId,
        incarnation: u64,
        dead: Dead,
        number: u32,
    ) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.incarnation != incarnation || node.kernel.is_none() {
            return;
        }
        // A HELLO that was under way when it was killed may have bound it.
        let bound = node.kernel.as_ref().and_then(|kernel| {
            kernel
                .servers(self.dc.id)
                .find(|server| server.number == number)
                .and_then(|server| server.bound)
        });
        if let Some(endpoint) = dead.endpoint.or(bound) {
            self.pass_answers(id, endpoint, dead.unread);
            self.step(id, Input::Died { dc: self.dc.id, endpoint });
        }
        // Mostly at once; sometimes it takes longer than anybody waits for it.
        let most = if self.random.chance(30) { 15 * SECOND } else { 200 * MILLISECOND };
        self.after(MILLISECOND, most, Event::StartServer { node: id, number, incarnation });
    }
}

impl Service {
    fn handle(&mut self, item: Item, cx: &mut Context<'_>) {
        match item {
            Item::Request { origin, cred, message, payload } => {
                let id = CallId { source: message.source, tag: message.tag };
                self.open.insert(id, origin);
                self.hosted
                    .request(&Call { id, cred: &cred, message: &message, payload: &payload }, cx);
            }
            Item::Cancel(id) => self.hosted.cancel(id, cx),
            Item::Gone(number, gone) => self.hosted.told(number, gone, cx),
        }
    }
}

fn context<'a>(
    now: Nanos,
    entropy: u64,
    store: &'a mut CrashStore,
    answers: &'a mut Answers,
) -> Context<'a> {
    Context { now, wall: now, entropy, store, answers }
}

/// Requests of one look come in any order, but what was there before the news of a death is seen before it,
/// and what came after is not (the daemon uses new channels for it); and a cancel comes after its call.
fn in_some_order(items: Vec<Item>, random: &mut super::Random) -> Vec<Item> {
    let mut ordered: Vec<Item> = Vec::new();
    let mut part: Vec<Item> = Vec::new();
    for item in items {
        if matches!(item, Item::Gone(..)) {
            random.shuffle(&mut part);
            part.sort_by_key(|item| matches!(item, Item::Cancel(_)));
            ordered.append(&mut part);
            ordered.push(item);
        } else {
            part.push(item);
        }
    }
    random.shuffle(&mut part);
    part.sort_by_key(|item| matches!(item, Item::Cancel(_)));
    ordered.append(&mut part);
    ordered
}
