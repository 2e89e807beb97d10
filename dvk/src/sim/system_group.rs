//! The system group as a node's kernel sees it: a directory of entries, and who is up.
//!
//! Consensus itself is simulated elsewhere (the crate `group`). Here a node that a majority hears, and that hears it, can
//! ask and learn, sooner or later; one that is not can do neither, fences itself, and is taken for down a little later.

use super::{Event, MICROSECOND, MILLISECOND, SECOND, Sim};
use crate::kernel::{Entry, Input};
use crate::server::Nanos;
use m3ipc::{Endpoint, NodeId};
use std::collections::BTreeMap;

/// How often nodes look how they stand. Each look may notice so much late.
const LOOK: Nanos = 50 * MILLISECOND;

/// The group takes a node for down that it has not heard for so long, and the node fences itself before that
/// (`group::fence`: a lease of 2 s and its margin).
const LEASE: Nanos = 2 * SECOND;
const FENCED_AFTER: Nanos = 1750 * MILLISECOND - LOOK;

/// A majority hears a node for so long until it has signed on.
const SIGN_ON: Nanos = 200 * MILLISECOND;

/// What the group has agreed on.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Every entry that was made, in order. The epoch of each is its place, from 1.
    log: Vec<Entry>,
    /// The last of each slot.
    entries: BTreeMap<u32, Entry>,
    /// By node: the life in which it is up.
    up: BTreeMap<NodeId, u64>,
    /// Counts the changes of `up`.
    changes: u64,
    /// When a node was heard last.
    heard: BTreeMap<NodeId, Nanos>,
}

/// How a node stands with the group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    is_fenced: bool,
    /// When a majority heard it last, and when none did.
    heard: Nanos,
    unheard: Nanos,
    /// So much of the group's log has it learned.
    learned: usize,
    /// What it was told: until when it may act, and how often it had changed who is up.
    told: Option<(Nanos, u64)>,
}

impl Standing {
    pub(super) fn new(now: Nanos) -> Standing {
        Standing { is_fenced: true, heard: now, unheard: now, learned: 0, told: None }
    }
}

/// What a kernel asks the group for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proposal {
    pub(crate) node: NodeId,
    /// The life of the node's daemon, as the simulation counts them and as the kernel knows it.
    pub(crate) incarnation: u64,
    pub(crate) life: u64,
    pub(crate) entry: Entry,
    pub(crate) expected: u64,
}

impl Group {
    /// Does what is asked for, or refuses (`Output::Propose`).
    pub(crate) fn decide(&mut self, proposal: &Proposal) -> Option<Entry> {
        let Proposal { node, life, entry, expected, .. } = *proposal;
        let is_up = |node: NodeId, life: u64| self.up.get(&node) == Some(&life);
        let slot = entry.endpoint.slot;
        let now = self.entries.get(&slot);
        let is_others = now.is_some_and(|now| {
            let is_own = (now.node, now.incarnation) == (node, life);
            !now.is_over && !is_own && is_up(now.node, now.incarnation)
        });
        let is_nowhere = !entry.is_over && !is_up(entry.node, entry.incarnation);
        if now.map_or(0, |now| now.epoch) != expected || is_others || is_nowhere {
            return None;
        }
        let epoch = self.log.len() as u64 + 1;
        let entry = Entry { epoch, ..entry };
        self.log.push(entry);
        self.entries.insert(slot, entry);
        Some(entry)
    }

    /// A node is up, or not any more. True: it was not so before.
    pub(crate) fn set_up(&mut self, node: NodeId, life: Option<u64>) -> bool {
        let changed = match life {
            Some(life) => self.up.insert(node, life) != Some(life),
            None => self.up.remove(&node).is_some(),
        };
        self.changes += u64::from(changed);
        changed
    }
}

/// What tests of single kernels look at.
#[cfg(test)]
impl Group {
    pub(crate) fn up(&self) -> &BTreeMap<NodeId, u64> {
        &self.up
    }

    /// Every entry that was made, in order.
    pub(crate) fn log(&self) -> &[Entry] {
        &self.log
    }
}

impl Sim {
    /// Sooner or later.
    fn group_delay(&mut self) -> Nanos {
        let most = if self.random.chance(100) { 200 * MILLISECOND } else { 5 * MILLISECOND };
        self.random.between(100 * MICROSECOND, most)
    }

    /// A kernel asks for something.
    pub(super) fn propose(&mut self, proposal: Proposal) {
        let at = self.now + self.group_delay();
        self.at(at, Event::Propose(proposal));
    }

    /// It reaches the group, if it can: else it is asked for again, by a daemon that lives.
    pub(super) fn proposed(&mut self, proposal: Proposal) {
        let Proposal { node: id, incarnation, .. } = proposal;
        let lives = self.lives(id, incarnation);
        if lives && !self.is_heard(id) {
            return self.after(MILLISECOND, LOOK, Event::Propose(proposal));
        }
        // What was asked for before the node crashed may happen later, or never.
        if !lives && self.random.chance(500) {
            return;
        }
        if let Some(entry) = self.group.decide(&proposal) {
            self.note(format!("the group has {entry:?}"));
            let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
            for node in nodes {
                let at = self.now + self.group_delay();
                self.at(at, Event::Learn(node));
            }
        } else if lives {
            let at = self.now + self.group_delay();
            self.at(at, Event::Unplaced(proposal));
        }
    }

    pub(super) fn unplaced(&mut self, proposal: Proposal) {
        let Proposal { node: id, incarnation, entry, expected, .. } = proposal;
        if !self.lives(id, incarnation) {
            return;
        }
        if !self.is_heard(id) {
            return self.after(MILLISECOND, LOOK, Event::Unplaced(proposal));
        }
        // The answer is later than what it answers.
        self.learn(id);
        let (dc, slot) = (self.dc.id, entry.endpoint.slot);
        self.step(id, Input::Unplaced { dc, slot, expected, is_full: false });
    }

    fn lives(&self, id: NodeId, incarnation: u64) -> bool {
        let node = &self.nodes[&id];
        node.kernel.is_some() && node.incarnation == incarnation
    }

    /// A node hears what the group has decided.
    pub(super) fn learn(&mut self, id: NodeId) {
        if !self.is_heard(id) {
            return;
        }
        loop {
            let node = self.nodes.get_mut(&id).filter(|node| node.kernel.is_some());
            let Some(standing) = node.map(|node| &mut node.standing) else { return };
            let Some(entry) = self.group.log.get(standing.learned).copied() else { break };
            standing.learned += 1;
            self.step(id, Input::Placed { dc: self.dc.id, entry });
        }
        self.tell_standing(id);
    }

    fn tell_standing(&mut self, id: NodeId) {
        let changes = self.group.changes;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let standing = &mut node.standing;
        let until = if standing.is_fenced { 0 } else { standing.heard + FENCED_AFTER };
        let before = standing.told.replace((until, changes));
        if before != Some((until, changes)) {
            let up = self.group.up.clone();
            if before.is_none_or(|(before, of)| (before == 0, of) != (until == 0, changes)) {
                self.note(format!("{id:?} may act: {}, up are {up:?}", until > 0));
            }
            self.step(id, Input::Standing { until, up: &up });
        }
    }

    /// Nodes look how they stand, and the group whom it hears.
    pub(super) fn look_at_group(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let now = self.now;
        // Without a majority there is no leader, and the group's clock stands still.
        if !ids.iter().any(|id| self.is_heard(*id)) {
            self.group.heard.values_mut().for_each(|heard| *heard += LOOK);
        }
        for id in ids {
            let is_heard = self.is_heard(id);
            let heard = self.group.heard.entry(id).or_default();
            if is_heard {
                *heard = now;
            } else if now - *heard >= LEASE && self.group.set_up(id, None) {
                self.stats.taken_for_down += 1;
            }
            self.look(id, is_heard);
        }
        // Beside the dice, so that what it costs changes no history.
        let number = self.number();
        self.queue.insert((self.now + LOOK, number), Event::LookAtGroup);
    }

    fn look(&mut self, id: NodeId, is_heard: bool) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.kernel.is_some()) else {
            return;
        };
        let (life, standing) = (node.life, &mut node.standing);
        *(if is_heard { &mut standing.heard } else { &mut standing.unheard }) = now;
        if !standing.is_fenced && now - standing.heard >= FENCED_AFTER {
            standing.is_fenced = true;
            return self.tell_standing(id);
        }
        self.stats.fenced += u64::from(standing.is_fenced && now > SECOND);
        if !is_heard {
            return;
        }
        // As long as an earlier life of this node is taken for up, it cannot sign on.
        let is_free = self.group.up.get(&id).is_none_or(|up| *up == life);
        let signs_on = standing.is_fenced && now - standing.unheard >= SIGN_ON && is_free;
        if signs_on {
            self.group.set_up(id, Some(life));
        }
        self.learn(id);
        if signs_on && let Some(node) = self.nodes.get_mut(&id) {
            node.standing.is_fenced = false;
            self.tell_standing(id);
        }
    }

    /// Do more than half of all nodes, itself included, hear this one, and it them?
    fn is_heard(&self, id: NodeId) -> bool {
        let hears = |one: NodeId, two: NodeId| self.silence(one, two) <= self.now;
        let is_met = |other: &NodeId| {
            self.nodes[other].kernel.is_some()
                && (*other == id || hears(id, *other) && hears(*other, id))
        };
        is_met(&id)
            && 2 * self.nodes.keys().filter(|other| is_met(other)).count() > self.nodes.len()
    }

    /// No two nodes act as one endpoint.
    pub(super) fn check_alone(&mut self, endpoint: Endpoint) {
        let dc = self.dc.id;
        let acts = |(id, node): (&NodeId, &super::Node)| {
            let acts = node.kernel.as_ref().is_some_and(|kernel| kernel.acts_as(dc, endpoint));
            acts.then_some(*id)
        };
        let acting: Vec<NodeId> = self.nodes.iter().filter_map(acts).collect();
        if acting.len() > 1 {
            self.wrong(format!("{acting:?} act as {endpoint:?}"));
        }
    }
}
