//! Programs in the simulator, and the client half of M3-IPC: hello, open, call, and again when a channel closes.

use super::node::Ask;
use super::service::{Item, Origin};
use super::{Event, MICROSECOND, MILLISECOND, Random, Sim};
use crate::kernel::{Asker, Event as Wanted, Input, Order, Role};
use crate::server::Nanos;
use m3ipc::port::RECEIVED;
use m3ipc::{CallId, Cred, Endpoint, IpcError, Message, NodeId, Tag};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What a thread does: one thing after the other.
pub trait Program {
    /// What next? `ended` is how the last call ended.
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step;
}

/// How a call ended: `message.outcome()` says.
#[derive(Clone, Debug)]
pub struct Ended {
    pub message: Message,
    pub payload: Vec<u8>,
}

/// The next thing that a thread does.
#[derive(Clone, Debug)]
pub enum Step {
    /// `message` without source, tag and length of the payload, which the port sets.
    Call {
        to: Endpoint,
        message: Message,
        payload: Vec<u8>,
    },
    /// Waits until `to` is bound or unbound. It ends as a call whose answer has the endpoint as its source.
    Await {
        to: Endpoint,
        event: Wanted,
        timeout: Option<Nanos>,
    },
    /// Orders something about `to`. It ends as [`Step::Await`].
    Order {
        to: Endpoint,
        order: Order,
    },
    Pause(Nanos),
    Exit,
}

/// A process.
pub(super) struct Process {
    pub(super) node: NodeId,
    pub(super) is_alive: bool,
    cred: Cred,
    endpoint: Option<Endpoint>,
    has_asked: bool,
    channels: BTreeMap<Endpoint, Channel>,
    threads: Vec<Thread>,
}

#[derive(Clone, Copy, Debug)]
enum Channel {
    /// The number of the question, once it has reached the daemon.
    Opening(Option<Asker>),
    Open {
        number: u64,
        receiver: Endpoint,
        via: Option<NodeId>,
    },
}

struct Thread {
    program: Box<dyn Program>,
    sequence: u64,
    call: Option<OpenCall>,
    question: Option<Question>,
    is_done: bool,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) to: Endpoint,
    pub(super) wish: Wish,
    pub(super) timeout: Option<Nanos>,
    is_sent: bool,
    /// Once it has reached the daemon.
    asker: Option<Asker>,
}

/// What a question is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wish {
    Event(Wanted),
    Order(Order),
}

/// The call that a thread has open.
#[derive(Debug)]
struct OpenCall {
    to: Endpoint,
    message: Message,
    payload: Vec<u8>,
    /// The channel in whose lane it is.
    placed: Option<u64>,
    /// The lane has its end.
    answer: Option<Ended>,
    is_cancelled: bool,
}

/// A record from the daemon.
#[derive(Debug)]
pub(super) enum Told {
    Welcome(Endpoint),
    Refused(Asker, IpcError),
    /// `era`: how often the receiver's channels had been closed when it was made.
    Channel {
        asker: Asker,
        receiver: Endpoint,
        via: Option<NodeId>,
        era: u64,
    },
    Done(Asker, Endpoint),
}

impl Process {
    pub(super) fn new(node: NodeId, cred: Cred, programs: Vec<Box<dyn Program>>) -> Process {
        let thread =
            |program| Thread { program, sequence: 0, call: None, question: None, is_done: false };
        Process {
            node,
            is_alive: false,
            cred,
            endpoint: None,
            has_asked: false,
            channels: BTreeMap::new(),
            threads: programs.into_iter().map(thread).collect(),
        }
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let calls: Vec<_> = self
            .threads
            .iter()
            .map(|thread| (thread.is_done, &thread.call, thread.question))
            .collect();
        let state = if self.is_alive { "alive" } else { "dead or unborn" };
        write!(
            f,
            "{state} on {:?} as {:?}, channels {:?}, threads {calls:?}",
            self.node, self.endpoint, self.channels
        )
    }
}

impl Sim {
    pub(super) fn start_process(&mut self, pid: u32) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if self.nodes.get(&process.node).is_none_or(|node| node.kernel.is_none()) {
            return self.after(100 * MILLISECOND, 300 * MILLISECOND, Event::Spawn { pid });
        }
        process.is_alive = true;
        for thread in 0..process.threads.len() {
            self.soon(Event::Think { pid, thread });
        }
    }

    /// kill -9, or the end of its last thread. The daemon and the servers learn it later.
    pub(super) fn kill_process(&mut self, pid: u32) {
        self.note(format!("process {pid} is dead"));
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.is_alive = false;
        let node = process.node;
        process.threads.clear();
        let incarnation = self.nodes.get(&node).map_or(0, |node| node.incarnation);
        self.soon(Event::NoticeDeath { node, incarnation, pid });
    }

    pub(super) fn think(&mut self, pid: u32, thread: usize) {
        self.go_on(pid, thread, None);
    }

    /// The program says what comes next.
    fn go_on(&mut self, pid: u32, thread: usize, ended: Option<Ended>) {
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.is_alive) else {
            return;
        };
        let Some(state) = process.threads.get_mut(thread) else { return };
        match state.program.next(ended, &mut self.random) {
            Step::Call { to, mut message, payload } => {
                state.sequence += 1;
                message.tag = Tag::new(u16::try_from(thread).expect("few threads"), state.sequence);
                message.payload_len = u32::try_from(payload.len()).expect("at most PAYLOAD_MAX");
                let tag = message.tag;
                state.call = Some(OpenCall {
                    to,
                    message,
                    payload,
                    placed: None,
                    answer: None,
                    is_cancelled: false,
                });
                self.stats.calls += 1;
                self.place(pid, thread);
                if self.random.chance(self.faults.signals) {
                    self.after(0, 5 * MILLISECOND, Event::Signal { pid, thread, tag });
                }
            }
            Step::Await { to, event, timeout } => {
                let (wish, is_sent, asker) = (Wish::Event(event), false, None);
                state.question = Some(Question { to, wish, timeout, is_sent, asker });
                self.pose(pid, thread);
            }
            Step::Order { to, order } => {
                let (wish, timeout, is_sent, asker) = (Wish::Order(order), None, false, None);
                state.question = Some(Question { to, wish, timeout, is_sent, asker });
                self.pose(pid, thread);
            }
            Step::Pause(time) => self.after(time, time + 1, Event::Think { pid, thread }),
            Step::Exit => {
                state.is_done = true;
                if process.threads.iter().all(|thread| thread.is_done) {
                    self.kill_process(pid);
                }
            }
        }
    }

    /// Sends the thread's question to the daemon, when the process has an endpoint.
    fn pose(&mut self, pid: u32, thread: usize) {
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.is_alive) else {
            return;
        };
        let node = process.node;
        let incarnation = self.nodes.get(&node).map_or(0, |node| node.incarnation);
        let question = process.threads.get_mut(thread).and_then(|thread| thread.question.as_mut());
        let Some(question) = question.filter(|question| !question.is_sent) else { return };
        let Some(from) = process.endpoint else {
            if !std::mem::replace(&mut process.has_asked, true) {
                self.soon(Event::Asked { node, incarnation, pid, ask: Ask::Hello(Role::Process) });
            }
            return;
        };
        question.is_sent = true;
        let ask = Ask::Await { from, question: *question, thread };
        self.soon(Event::Asked { node, incarnation, pid, ask });
    }

    /// The thread's question has reached the daemon.
    pub(super) fn asking(&mut self, pid: u32, thread: usize, asker: Asker) {
        let process = self.processes.get_mut(&pid);
        let thread = process.and_then(|process| process.threads.get_mut(thread));
        if let Some(question) = thread.and_then(|thread| thread.question.as_mut()) {
            question.asker = Some(asker);
        }
    }

    /// A question has its answer: the thread goes on. False: it is none of the process.
    fn told_answer(&mut self, pid: u32, asker: Asker, answer: Result<Endpoint, IpcError>) -> bool {
        let Some(process) = self.processes.get_mut(&pid) else { return false };
        let asked =
            |thread: &Thread| thread.question.is_some_and(|question| question.asker == Some(asker));
        let Some(thread) = process.threads.iter().position(asked) else { return false };
        process.threads[thread].question = None;
        let message = match answer {
            Ok(source) => Message { source, ..Message::request(0) },
            Err(error) => Message::undelivered(0, error),
        };
        self.go_on(pid, thread, Some(Ended { message, payload: Vec::new() }));
        true
    }

    /// Brings the thread's call into a lane: first an endpoint, then a channel.
    fn place(&mut self, pid: u32, thread: usize) {
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.is_alive) else {
            return;
        };
        let (node, to) = match process.threads.get(thread).and_then(|thread| thread.call.as_ref()) {
            Some(call) if call.placed.is_none() && call.answer.is_none() => (process.node, call.to),
            _ => return,
        };
        let incarnation = self.nodes.get(&node).map_or(0, |node| node.incarnation);
        let Some(from) = process.endpoint else {
            if !std::mem::replace(&mut process.has_asked, true) {
                self.soon(Event::Asked { node, incarnation, pid, ask: Ask::Hello(Role::Process) });
            }
            return;
        };
        match process.channels.get(&to).copied() {
            None => {
                process.channels.insert(to, Channel::Opening(None));
                self.soon(Event::Asked { node, incarnation, pid, ask: Ask::Open { from, to } });
            }
            Some(Channel::Opening(_)) => {}
            Some(Channel::Open { receiver, via: None, .. })
                if self.nodes[&node].is_closed(receiver) =>
            {
                process.channels.remove(&to);
                self.place(pid, thread);
            }
            Some(Channel::Open { number, receiver, via }) => {
                self.put(pid, thread, from, number, receiver, via)
            }
        }
    }

    /// Puts the call into the thread's lane of an open channel.
    fn put(
        &mut self,
        pid: u32,
        thread: usize,
        from: Endpoint,
        number: u64,
        receiver: Endpoint,
        via: Option<NodeId>,
    ) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(call) = process.threads.get_mut(thread).and_then(|thread| thread.call.as_mut())
        else {
            return;
        };
        call.placed = Some(number);
        call.message.source = from;
        let (message, node, is_cancelled) = (call.message, process.node, call.is_cancelled);
        if via.is_some() {
            return self.soon(Event::ReadLane { pid, thread, tag: message.tag });
        }
        let origin = Origin::Process(pid);
        let request =
            Item::Request { origin, cred: process.cred, message, payload: call.payload.clone() };
        self.post(node, receiver, request);
        if is_cancelled {
            self.post(node, receiver, Item::Cancel(CallId { source: from, tag: message.tag }));
        }
    }

    fn call(&mut self, pid: u32, thread: usize, tag: Tag) -> Option<(&Process, &OpenCall)> {
        let process = self.processes.get(&pid).filter(|process| process.is_alive)?;
        let call = process.threads.get(thread)?.call.as_ref()?;
        (call.message.tag == tag).then_some((process, call))
    }

    /// The daemon, the receiver of the channel as proxy, finds the call.
    pub(super) fn read_lane(&mut self, pid: u32, thread: usize, tag: Tag) {
        let Some((process, call)) = self.call(pid, thread, tag) else { return };
        if call.placed.is_none() || call.answer.is_some() {
            return;
        }
        let (node, cred, to, message, payload) =
            (process.node, process.cred, call.to, call.message, call.payload.clone());
        let is_cancelled = call.is_cancelled;
        let dc = self.dc.id;
        self.step(
            node,
            Input::LocalRequest { dc, to, cred: &cred, message: &message, payload: &payload },
        );
        if is_cancelled {
            self.step(
                node,
                Input::LocalCancel { dc, to, id: CallId { source: message.source, tag } },
            );
        }
    }

    /// A signal interrupts the thread, if it still waits.
    pub(super) fn signal(&mut self, pid: u32, thread: usize, tag: Tag) {
        if self.call(pid, thread, tag).is_none() {
            return;
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(call) = process.threads.get_mut(thread).and_then(|thread| thread.call.as_mut())
        else {
            return;
        };
        if call.answer.is_some() || call.is_cancelled {
            return;
        }
        // In a lane or on the way into one: with the call goes the wish to end it.
        call.is_cancelled = true;
        let (node, to, source) = (process.node, call.to, call.message.source);
        match (call.placed, process.channels.get(&to)) {
            (Some(_), Some(Channel::Open { receiver, via: None, .. })) => {
                let receiver = *receiver;
                self.post(node, receiver, Item::Cancel(CallId { source, tag }));
            }
            (Some(_), Some(Channel::Open { via: Some(_), .. })) => {
                self.soon(Event::Cancel { pid, thread, tag })
            }
            _ => {}
        }
    }

    /// The daemon, as proxy, finds the cancel. It may see it before the call itself, which then takes it along.
    pub(super) fn read_cancel(&mut self, pid: u32, thread: usize, tag: Tag) {
        let Some((process, call)) = self.call(pid, thread, tag) else { return };
        let (node, to, source) = (process.node, call.to, call.message.source);
        self.step(node, Input::LocalCancel { dc: self.dc.id, to, id: CallId { source, tag } });
    }

    /// A lane has got its end: from a server of this node, or from the daemon as proxy.
    pub(super) fn lane_answered(
        &mut self,
        pid: Option<u32>,
        id: CallId,
        message: Message,
        payload: Vec<u8>,
    ) {
        let Some(pid) = pid else { return };
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.is_alive) else {
            return;
        };
        let thread = usize::from(id.tag.lane());
        let call = process.threads.get_mut(thread).and_then(|thread| thread.call.as_mut());
        match call {
            Some(call)
                if call.message.tag == id.tag && call.placed.is_some() && call.answer.is_none() =>
            {
                call.answer = Some(Ended { message, payload });
                self.soon(Event::Wake { pid, thread, tag: id.tag });
            }
            other => {
                let other = format!("{other:?}");
                self.wrong(format!("process {pid} got an answer to {id:?}, but has {other}"));
            }
        }
    }

    /// Every channel with the dead receiver is closed; answers that are in lanes stay there.
    pub(super) fn close_channels(&mut self, node: NodeId, dead: Endpoint) {
        let mut wake = Vec::new();
        for (pid, process) in self.processes.iter_mut().filter(|(_, process)| process.node == node)
        {
            let closed = process.channels.iter().find_map(|(to, channel)| match channel {
                Channel::Open { number, receiver, via: None } if *receiver == dead => {
                    Some((*to, *number))
                }
                _ => None,
            });
            let Some((to, number)) = closed else { continue };
            process.channels.remove(&to);
            for (thread, state) in process.threads.iter_mut().enumerate() {
                if let Some(call) = state
                    .call
                    .as_mut()
                    .filter(|call| call.placed == Some(number) && call.answer.is_none())
                {
                    call.placed = None;
                    wake.push(Event::Wake { pid: *pid, thread, tag: call.message.tag });
                }
            }
        }
        for event in wake {
            self.soon(event);
        }
    }

    /// Every channel with the receiver is closed, as it moves or is dead: who has a call there makes it again, or, if it
    /// had been received and that is lost, has its end.
    pub(super) fn vacate(
        &mut self,
        node: NodeId,
        receiver: Endpoint,
        claimed: &BTreeSet<CallId>,
        is_dead: bool,
    ) {
        if let Some(node) = self.nodes.get_mut(&node) {
            *node.vacated.entry(receiver).or_default() += 1;
        }
        let mut wake = Vec::new();
        for (pid, process) in self.processes.iter_mut().filter(|(_, process)| process.node == node)
        {
            let of = |channel: &Channel| match channel {
                Channel::Open { number, receiver: other, via: None } if *other == receiver => {
                    Some(*number)
                }
                _ => None,
            };
            let closed: Vec<(Endpoint, u64)> = process
                .channels
                .iter()
                .filter_map(|(to, channel)| of(channel).map(|number| (*to, number)))
                .collect();
            for (to, number) in closed {
                process.channels.remove(&to);
                for (thread, state) in process.threads.iter_mut().enumerate() {
                    let Some(call) = state
                        .call
                        .as_mut()
                        .filter(|call| call.placed == Some(number) && call.answer.is_none())
                    else {
                        continue;
                    };
                    let id = CallId { source: call.message.source, tag: call.message.tag };
                    match (claimed.contains(&id), is_dead) {
                        (true, true) => {
                            let error = IpcError::DestinationDied;
                            let message = Message::undelivered(call.message.call, error);
                            call.answer = Some(Ended { message, payload: Vec::new() });
                        }
                        (true, false) => {
                            call.message.status |= RECEIVED;
                            call.placed = None;
                        }
                        (false, _) => call.placed = None,
                    }
                    wake.push(Event::Wake { pid: *pid, thread, tag: call.message.tag });
                }
            }
        }
        for event in wake {
            self.soon(event);
        }
    }

    /// The receiver is dead, and nobody comes after it: the calls on its channels end.
    pub(super) fn vacate_dead(&mut self, node: NodeId, receiver: Endpoint) {
        let of = |process: &&Process| process.node == node;
        let ids = self.processes.values().filter(of).flat_map(|process| {
            process
                .threads
                .iter()
                .filter_map(|thread| thread.call.as_ref())
                .map(|call| CallId { source: call.message.source, tag: call.message.tag })
        });
        let ids: BTreeSet<CallId> = ids.collect();
        self.vacate(node, receiver, &ids, true);
    }

    /// `to` is on this node: channels with it over the daemon are closed if nothing is open there.
    pub(super) fn retire_channels(&mut self, node: NodeId, to: Endpoint) {
        for process in self.processes.values_mut().filter(|process| process.node == node) {
            let idle: Vec<Endpoint> = process
                .channels
                .iter()
                .filter_map(|(of, channel)| match channel {
                    Channel::Open { number, via: Some(_), .. } if of.slot == to.slot => {
                        let is_open = process.threads.iter().any(|thread| {
                            thread.call.as_ref().is_some_and(|call| {
                                call.placed == Some(*number) && call.answer.is_none()
                            })
                        });
                        (!is_open).then_some(*of)
                    }
                    _ => None,
                })
                .collect();
            for of in idle {
                process.channels.remove(&of);
            }
        }
    }

    /// A waiting thread looks at its lane.
    pub(super) fn wake(&mut self, pid: u32, thread: usize, tag: Tag) {
        if self.call(pid, thread, tag).is_none() {
            return;
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(state) = process.threads.get_mut(thread) else { return };
        match state.call.take_if(|call| call.answer.is_some()) {
            Some(call) => self.go_on(pid, thread, call.answer),
            // The channel was closed under it: once more, with the same tag.
            None => self.place(pid, thread),
        }
    }

    pub(super) fn opening(&mut self, pid: u32, to: Endpoint, asker: Asker) {
        let channel =
            self.processes.get_mut(&pid).and_then(|process| process.channels.get_mut(&to));
        if let Some(channel @ Channel::Opening(None)) = channel {
            *channel = Channel::Opening(Some(asker));
        }
    }

    pub(super) fn told(&mut self, pid: u32, told: Told) {
        let number = self.number();
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let of = |process: &Process, asker: Asker| {
            let opening = |channel: &Channel| matches!(channel, Channel::Opening(Some(opened)) if *opened == asker);
            process.channels.iter().find(|(_, channel)| opening(channel)).map(|(to, _)| *to)
        };
        match told {
            Told::Welcome(endpoint) => process.endpoint = Some(endpoint),
            Told::Channel { asker, receiver, via, era } => {
                let node = self.nodes.get(&process.node);
                let now = node.and_then(|node| node.vacated.get(&receiver).copied()).unwrap_or(0);
                if let (Some(to), true) = (of(process, asker), now != era && via.is_none()) {
                    // Closed before it was there: another one.
                    process.channels.remove(&to);
                } else if let Some(to) = of(process, asker) {
                    process.channels.insert(to, Channel::Open { number, receiver, via });
                }
            }
            Told::Done(asker, endpoint) => {
                self.told_answer(pid, asker, Ok(endpoint));
                return;
            }
            Told::Refused(asker, error) if of(process, asker).is_none() => {
                self.told_answer(pid, asker, Err(error));
                return;
            }
            Told::Refused(asker, error) => {
                if let Some(to) = of(process, asker) {
                    process.channels.remove(&to);
                    return self.end_calls(pid, to, error);
                }
            }
        }
        for thread in 0..process.threads.len() {
            self.place(pid, thread);
            self.pose(pid, thread);
        }
    }

    /// There is no channel: the calls that wait for it end.
    fn end_calls(&mut self, pid: u32, to: Endpoint, error: IpcError) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let mut wake = Vec::new();
        for (thread, state) in process.threads.iter_mut().enumerate() {
            if let Some(call) =
                state.call.as_mut().filter(|call| call.to == to && call.placed.is_none())
            {
                // As the client of M3-IPC says it: it was there, and has the request.
                let is_received = call.message.status & RECEIVED != 0;
                let error = if is_received { IpcError::DestinationDied } else { error };
                let message = Message::undelivered(call.message.call, error);
                call.answer = Some(Ended { message, payload: Vec::new() });
                wake.push(Event::Wake { pid, thread, tag: call.message.tag });
            }
        }
        for event in wake {
            self.after(MICROSECOND, 100 * MICROSECOND, event);
        }
    }
}

/// Where the answer to a [`OneCall`] is put.
type Place = Rc<RefCell<Option<(Message, Vec<u8>)>>>;

/// A program that makes one call.
pub(super) struct OneCall {
    step: Option<Step>,
    answer: Place,
}

impl OneCall {
    pub(super) fn new(to: Endpoint, message: Message, payload: Vec<u8>, answer: Place) -> OneCall {
        OneCall { step: Some(Step::Call { to, message, payload }), answer }
    }
}

impl Program for OneCall {
    fn next(&mut self, ended: Option<Ended>, _: &mut Random) -> Step {
        if let Some(ended) = ended {
            *self.answer.borrow_mut() = Some((ended.message, ended.payload));
        }
        self.step.take().unwrap_or(Step::Exit)
    }
}
