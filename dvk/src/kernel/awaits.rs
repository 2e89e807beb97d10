//! Questions that end when an endpoint is bound or unbound, on any node: `wait_bind`, `wait_unbind`, and `receive` from one.
//!
//! The endpoint's node knows when; the asker's node knows how long. Each forgets a question when it ends, when its
//! asker gives it up, and when either of the two is gone.

use super::container::{Container, Found};
use super::{Asker, Kernel, NodeState, Output};
use crate::frame::{Frame, Wish};
use crate::limits::AWAITS_PER_NODE;
use crate::server::Nanos;
use m3ipc::{DcId, Endpoint, IpcError, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Bound,
    Unbound,
}

/// A question of this node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    dc: DcId,
    pub(super) from: Endpoint,
    pub(super) to: Endpoint,
    /// Where `to` is.
    home: NodeId,
    pub(super) until: Option<Nanos>,
    /// What it waits for; `None`: it is an order, and waits for its end.
    pub(super) event: Option<Event>,
    /// Of the endpoint's entry in the directory when it was asked.
    epoch: u64,
}

/// The questions of this node, and those of other nodes about endpoints of this one.
#[derive(Debug, Default)]
pub(super) struct Awaits {
    questions: BTreeMap<Asker, Question>,
    deadlines: BTreeSet<(Nanos, Asker)>,
    /// By container, slot, and who asks.
    watched: BTreeMap<(DcId, u32, Watcher), Watch>,
    /// How many of them other nodes have.
    of_nodes: BTreeMap<NodeId, usize>,
}

/// Who is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Watcher {
    Here(Asker),
    There { node: NodeId, number: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Watch {
    from: Endpoint,
    to: Endpoint,
    event: Event,
}

impl Awaits {
    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.deadlines.first().map(|(until, _)| *until)
    }

    /// Open questions of this node, and of others here.
    pub(super) fn count(&self) -> usize {
        self.questions.len() + self.watched.len()
    }

    /// An order to another node.
    pub(super) fn ask(
        &mut self,
        asker: Asker,
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        home: NodeId,
    ) {
        let question = Question { dc, from, to, home, until: None, event: None, epoch: 0 };
        self.questions.insert(asker, question);
    }

    /// Questions of this node about the endpoint in `slot`, which is here.
    pub(super) fn watched_here(&self, dc: DcId, slot: u32) -> Vec<(Asker, Question)> {
        let here = self.watched.keys().filter_map(|(of, at, watcher)| match watcher {
            Watcher::Here(asker) if (*of, *at) == (dc, slot) => Some(*asker),
            _ => None,
        });
        here.filter_map(|asker| Some((asker, *self.questions.get(&asker)?))).collect()
    }

    pub(super) fn forget(&mut self, asker: Asker) {
        self.remove(asker);
    }

    fn remove(&mut self, asker: Asker) -> Option<Question> {
        let question = self.questions.remove(&asker)?;
        if let Some(until) = question.until {
            self.deadlines.remove(&(until, asker));
        }
        self.watched.remove(&(question.dc, question.to.slot, Watcher::Here(asker)));
        Some(question)
    }

    fn unwatch(&mut self, key: (DcId, u32, Watcher)) -> Option<Watch> {
        let watch = self.watched.remove(&key)?;
        if let Watcher::There { node, .. } = key.2
            && let Some(count) = self.of_nodes.get_mut(&node)
        {
            *count -= 1;
        }
        Some(watch)
    }
}

impl Container {
    /// What is already known: who is bound as `to`, or why that will never be.
    fn look_for(&self, to: Endpoint, event: Event) -> Option<Result<Endpoint, IpcError>> {
        let bound = match self.find(to) {
            _ if to.is_replicated() => self.replica(to.index()).ok_or(IpcError::NotBound),
            Found::Bound(endpoint) => Ok(endpoint),
            // It is bound, though nobody may send there.
            Found::No(IpcError::Denied) => {
                self.slots.by_slot(to.slot).map(|binding| binding.endpoint).ok_or(IpcError::Stale)
            }
            Found::Absent => Err(IpcError::WouldBlock),
            Found::Moving => Ok(self.directory.moving(to.slot).unwrap_or(to)),
            Found::No(error) => Err(error),
        };
        match (event, bound) {
            (Event::Bound, Ok(endpoint)) => Some(Ok(endpoint)),
            // Generations never come back; a slot may.
            (Event::Bound, Err(IpcError::WouldBlock)) => None,
            (Event::Bound, Err(_)) if to.generation == 0 => None,
            (Event::Bound, Err(error)) => Some(Err(error)),
            (Event::Unbound, Ok(_)) => None,
            (Event::Unbound, Err(_)) => Some(Ok(Endpoint::NONE)),
        }
    }
}

impl Kernel {
    /// A process of this node asks.
    #[expect(clippy::too_many_arguments, reason = "the fields of Input::Await")]
    pub(super) fn ask_await(
        &mut self,
        now: Nanos,
        asker: Asker,
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        event: Event,
        timeout: Option<Nanos>,
        out: &mut Vec<Output>,
    ) -> Result<(), IpcError> {
        let container = self.containers.get(&dc).ok_or(IpcError::NotBound)?;
        container.slots.get(from).ok_or(IpcError::Stale)?;
        let home = container.home(to).ok_or(IpcError::NotBound)?;
        let is_now = timeout == Some(0);
        let until =
            timeout.filter(|timeout| *timeout != 0).map(|timeout| now.saturating_add(timeout));
        let epoch = container.directory.epoch(to.slot);
        let question = Question { dc, from, to, home, until, event: Some(event), epoch };
        if home == self.node {
            match container.look_for(to, event) {
                Some(Ok(endpoint)) => {
                    out.push(Output::Done { asker, endpoint });
                    return Ok(());
                }
                Some(Err(error)) => return Err(error),
                None if is_now => return Err(IpcError::WouldBlock),
                None => {}
            }
            let key = (dc, to.slot, Watcher::Here(asker));
            self.awaits.watched.insert(key, Watch { from, to, event });
        } else {
            let peer = self.peers.get(&home).ok_or(IpcError::NotBound)?;
            if matches!(peer.state(), NodeState::Down { .. }) {
                return Err(IpcError::NodeDown);
            }
            let wish = match event {
                Event::Bound => Wish::Bound { now: is_now },
                Event::Unbound => Wish::Unbound { now: is_now },
            };
            self.send(now, home, &Frame::Await { dc, from, to, number: asker.0, wish }, out);
        }
        self.awaits.questions.insert(asker, question);
        self.awaits.deadlines.extend(until.map(|until| (until, asker)));
        Ok(())
    }

    /// Ends a question of this node that has not been answered.
    fn end_await(&mut self, now: Nanos, asker: Asker, out: &mut Vec<Output>) -> bool {
        let Some(Question { dc, from, to, home, event, .. }) = self.awaits.remove(asker) else {
            return false;
        };
        // An order cannot be taken back.
        if home != self.node && event.is_some() {
            let wish = Wish::Nothing;
            self.send(now, home, &Frame::Await { dc, from, to, number: asker.0, wish }, out);
        }
        true
    }

    /// Nobody waits for the answer any more.
    pub(super) fn withdraw_await(&mut self, now: Nanos, asker: Asker, out: &mut Vec<Output>) {
        self.end_await(now, asker, out);
    }

    /// Questions whose time is over.
    pub(super) fn refuse_overdue_awaits(&mut self, now: Nanos, out: &mut Vec<Output>) {
        while let Some((until, asker)) = self.awaits.deadlines.first().copied()
            && until <= now
        {
            self.end_await(now, asker, out);
            out.push(Output::Refused { asker, error: IpcError::TimedOut });
        }
    }

    /// Another node asks, or withdraws a question.
    #[expect(clippy::too_many_arguments, reason = "the fields of Frame::Await")]
    pub(super) fn remote_await(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        number: u64,
        wish: Wish,
        out: &mut Vec<Output>,
    ) {
        let watcher = Watcher::There { node, number };
        let (event, is_now) = match wish {
            Wish::Nothing => {
                self.awaits.unwatch((dc, to.slot, watcher));
                return;
            }
            Wish::Bound { now } => (Event::Bound, now),
            Wish::Unbound { now } => (Event::Unbound, now),
        };
        let container = self.containers.get(&dc);
        let known = match container.filter(|container| container.dc.nodes.contains(&node)) {
            None => Some(Err(IpcError::NotBound)),
            Some(container) if container.is_elsewhere(to) => Some(Err(IpcError::Moved)),
            // Who asks may know before this node that it comes here.
            Some(container)
                if container.home(to) != Some(self.node)
                    && container.directory.moving(to.slot).is_none() =>
            {
                Some(Err(IpcError::NotBound))
            }
            Some(container) => container.look_for(to, event),
        };
        let count = self.awaits.of_nodes.entry(node).or_default();
        let outcome = match known {
            Some(known) => known,
            None if is_now => Err(IpcError::WouldBlock),
            None if *count >= AWAITS_PER_NODE => Err(IpcError::Exhausted),
            None => {
                let watch = Watch { from, to, event };
                if self.awaits.watched.insert((dc, to.slot, watcher), watch).is_none() {
                    *count += 1;
                }
                return;
            }
        };
        self.send_awaited(now, node, dc, to, from, number, outcome, out);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of Frame::Awaited")]
    fn send_awaited(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        number: u64,
        outcome: Result<Endpoint, IpcError>,
        out: &mut Vec<Output>,
    ) {
        let outcome = outcome.map_err(IpcError::status);
        self.send(now, node, &Frame::Awaited { dc, from, to, number, outcome }, out);
    }

    /// Another node answers. A question that is not open any more it answers in vain.
    pub(super) fn awaited(
        &mut self,
        now: Nanos,
        node: NodeId,
        number: u64,
        outcome: Result<Endpoint, u16>,
        out: &mut Vec<Output>,
    ) {
        let asker = Asker(number);
        let Some(question) = self.awaits.questions.get(&asker).copied() else { return };
        if question.home != node {
            return;
        }
        self.awaits.remove(asker);
        if let (Some(event), Err(status)) = (question.event, outcome)
            && IpcError::from_status(status) == IpcError::Moved
        {
            return self.ask_again(now, asker, question, event, out);
        }
        out.push(match outcome {
            Ok(endpoint) => Output::Done { asker, endpoint },
            Err(status) => Output::Refused { asker, error: IpcError::from_status(status) },
        });
    }

    /// The endpoint has moved: the question is asked where it is now.
    fn ask_again(
        &mut self,
        now: Nanos,
        asker: Asker,
        question: Question,
        event: Event,
        out: &mut Vec<Output>,
    ) {
        let Question { dc, from, to, until, .. } = question;
        let container = self.containers.get(&dc);
        let epoch = container.map_or(0, |container| container.directory.epoch(to.slot));
        let timeout = until.map(|until| until.saturating_sub(now).max(1));
        // Its node does not say where: it is not known there.
        let asked = if epoch <= question.epoch {
            Err(IpcError::NodeDown)
        } else {
            self.ask_await(now, asker, dc, from, to, event, timeout, out)
        };
        if let Err(error) = asked {
            out.push(Output::Refused { asker, error });
        }
    }

    /// The endpoint in `slot` has moved: those of other nodes who wait for something of it hear that.
    pub(super) fn refuse_watchers(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        error: IpcError,
        out: &mut Vec<Output>,
    ) {
        let least = Watcher::Here(Asker(0));
        let most = Watcher::There { node: NodeId(u16::MAX), number: u64::MAX };
        let keys: Vec<_> = self
            .awaits
            .watched
            .range((dc, slot, least)..=(dc, slot, most))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.end_watch(now, key, Err(error), out);
        }
    }

    /// Something has been bound to `slot` of this node, or unbound: who waited for that is told.
    pub(super) fn tell_awaits(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get(&dc) else { return };
        let least = Watcher::Here(Asker(0));
        let most = Watcher::There { node: NodeId(u16::MAX), number: u64::MAX };
        let mut known = Vec::new();
        for (key, watch) in self.awaits.watched.range((dc, slot, least)..=(dc, slot, most)) {
            if let Some(outcome) = container.look_for(watch.to, watch.event) {
                known.push((*key, outcome));
            }
        }
        for (key, outcome) in known {
            self.end_watch(now, key, outcome, out);
        }
    }

    fn end_watch(
        &mut self,
        now: Nanos,
        key: (DcId, u32, Watcher),
        outcome: Result<Endpoint, IpcError>,
        out: &mut Vec<Output>,
    ) {
        let Some(watch) = self.awaits.unwatch(key) else { return };
        match key.2 {
            Watcher::Here(asker) => {
                self.awaits.remove(asker);
                out.push(match outcome {
                    Ok(endpoint) => Output::Done { asker, endpoint },
                    Err(error) => Output::Refused { asker, error },
                });
            }
            Watcher::There { node, number } => {
                self.send_awaited(now, node, key.0, watch.to, watch.from, number, outcome, out);
            }
        }
    }

    /// An endpoint of this node is gone, and its questions with it.
    pub(super) fn forget_awaits_of(
        &mut self,
        now: Nanos,
        dc: DcId,
        dead: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let of = |(asker, question): (&Asker, &Question)| {
            (question.dc == dc && question.from == dead).then_some(*asker)
        };
        let askers: Vec<Asker> = self.awaits.questions.iter().filter_map(of).collect();
        for asker in askers {
            self.end_await(now, asker, out);
            out.push(Output::Refused { asker, error: IpcError::Stale });
        }
    }

    /// A container of this node is over.
    pub(super) fn end_awaits_of_dc(&mut self, now: Nanos, dc: DcId, out: &mut Vec<Output>) {
        let keys: Vec<_> =
            self.awaits.watched.keys().filter(|(of, ..)| *of == dc).copied().collect();
        for key in keys {
            self.end_watch(now, key, Err(IpcError::NotBound), out);
        }
    }

    /// A container has nothing to do with a node any more: nobody there answers, and who waits there is told.
    pub(super) fn end_awaits_between(
        &mut self,
        now: Nanos,
        dc: DcId,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        let of = |(asker, question): (&Asker, &Question)| {
            (question.home == node && question.dc == dc).then_some(*asker)
        };
        let askers: Vec<Asker> = self.awaits.questions.iter().filter_map(of).collect();
        for asker in askers {
            self.end_await(now, asker, out);
            out.push(Output::Refused { asker, error: IpcError::NodeDown });
        }
        let is_there =
            |watcher: &Watcher| matches!(watcher, Watcher::There { node: at, .. } if *at == node);
        let keys: Vec<_> = self
            .awaits
            .watched
            .keys()
            .filter(|(of, _, watcher)| *of == dc && is_there(watcher))
            .copied()
            .collect();
        for key in keys {
            self.end_watch(now, key, Err(IpcError::NodeDown), out);
        }
    }

    /// Another node is given up: nobody there answers, and nobody there waits.
    pub(super) fn end_awaits_of_node(&mut self, node: NodeId, out: &mut Vec<Output>) {
        let of = |(asker, question): (&Asker, &Question)| (question.home == node).then_some(*asker);
        let askers: Vec<Asker> = self.awaits.questions.iter().filter_map(of).collect();
        for asker in askers {
            self.awaits.remove(asker);
            out.push(Output::Refused { asker, error: IpcError::NodeDown });
        }
        self.awaits.watched.retain(
            |(.., watcher), _| !matches!(watcher, Watcher::There { node: of, .. } if *of == node),
        );
        self.awaits.of_nodes.remove(&node);
    }
}
