//! Who hears whom: whether this node is in two-way contact with a majority of the voters, and with a leader.
//!
//! openraft 0.9 has neither pre-vote nor a leader that steps down when it hears nobody. So a node without
//! two-way contact to a majority neither stands for election nor sends anything as a leader: one that is
//! cut off, in whatever direction, does not disturb the others, and a leader that cannot hear is replaced.
//!
//! What tells of contact tells of leadership, too: openraft's own signs of life would be as many again. A leader is one
//! that says so and gets on: the group has something to commit each time that a node gives its sign of life
//! ([`crate::fence`]), so one whose disk hangs is replaced, though it still says that it is here.
//!
//! Its voters wait for times that are drawn once and may be alike: of two that stand at the same time neither is elected,
//! again and again. So those who have lost their leader stand in turn, the one first for whom all others may vote: whose log is
//! the latest (Raft, section 5.4.1).

use crate::command::Millis;
use crate::types::{LogId, RaftId};
use std::collections::{BTreeMap, BTreeSet};

/// What this node has heard of others. Times are those of any clock that does not go back.
#[derive(Debug)]
pub struct Contact {
    this: RaftId,
    /// A node that was silent for so long is out of contact.
    window: Millis,
    heard: BTreeMap<RaftId, Heard>,
    led: Option<Led>,
}

/// The last that spoke as leader.
#[derive(Clone, Copy, Debug)]
struct Led {
    by: RaftId,
    at: Millis,
    /// The last entry that is committed, and when that was heard of first.
    committed: u64,
    committed_at: Millis,
}

/// A leader that has committed nothing for so long does not get on. Each node gives a sign of life four times in two seconds,
/// and is cut off for itself after nearly two: a new leader must be there before.
const STUCK: Millis = 1000;

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Millis,
    /// When it last said that it hears us.
    mutual_at: Option<Millis>,
    /// The last entry of its log.
    last: Option<LogId>,
}

impl Contact {
    pub fn new(this: RaftId, window: Millis) -> Contact {
        Contact { this, window, heard: BTreeMap::new(), led: None }
    }

    /// A sign of life of a node, which has heard these of late, and whose log ends with this entry.
    pub fn heard(&mut self, from: RaftId, hears: &[RaftId], last: Option<LogId>, now: Millis) {
        let before = self.heard.get(&from).and_then(|heard| heard.mutual_at);
        let mutual_at = if hears.contains(&self.this) { Some(now) } else { before };
        self.heard.insert(from, Heard { at: now, mutual_at, last });
    }

    /// Whom this node has heard of late.
    pub fn hears(&self, now: Millis) -> Vec<RaftId> {
        let recent = self.heard.iter().filter(|(_, heard)| now <= heard.at + self.window);
        recent.map(|(node, _)| *node).collect()
    }

    /// When a node was last in two-way contact.
    pub fn last(&self, node: RaftId) -> Option<Millis> {
        self.heard.get(&node).and_then(|heard| heard.mutual_at)
    }

    /// Is there two-way contact with another node?
    pub fn reaches(&self, node: RaftId, now: Millis) -> bool {
        self.last(node).is_some_and(|last| now <= last + self.window)
    }

    /// A node has said that it leads, and that the log is committed up to that entry.
    pub fn led(&mut self, by: RaftId, committed: u64, now: Millis) {
        self.led = Some(match self.led {
            Some(led) if led.by == by && committed <= led.committed => Led { at: now, ..led },
            _ => Led { by, at: now, committed, committed_at: now },
        });
    }

    /// The node that spoke as leader last, whether or not it still is one.
    pub fn last_leader(&self) -> Option<RaftId> {
        self.led.map(|led| led.by)
    }

    /// Who leads this node.
    pub fn leader(&self, now: Millis) -> Option<RaftId> {
        let led = self.led?;
        let leads = now <= led.at + self.window && now <= led.committed_at + STUCK;
        (leads && self.reaches(led.by, now)).then_some(led.by)
    }

    /// How many of these voters should stand for election before this node, whose log ends with this entry.
    pub fn ahead(&self, voters: &BTreeSet<RaftId>, last: Option<LogId>, now: Millis) -> usize {
        let is_ahead = |node: &&RaftId| {
            let theirs = self.heard.get(node).and_then(|heard| heard.last);
            self.reaches(**node, now) && (theirs > last || theirs == last && **node < self.this)
        };
        voters.iter().filter(is_ahead).count()
    }

    /// Is there two-way contact with a majority of each of these sets of voters?
    pub fn has_majority(&self, voters: &[BTreeSet<RaftId>], now: Millis) -> bool {
        let reached = |node: &RaftId| *node == self.this || self.reaches(*node, now);
        voters.iter().all(|set| 2 * set.iter().filter(|node| reached(node)).count() > set.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Vec<BTreeSet<RaftId>> {
        vec![BTreeSet::from([1, 2, 3])]
    }

    fn entry(term: u64, index: u64) -> Option<LogId> {
        Some(LogId::new(openraft::CommittedLeaderId::new(term, 1), index))
    }

    #[test]
    fn hearing_is_not_enough_one_must_be_heard() {
        let mut contact = Contact::new(1, 100);
        contact.heard(2, &[3], None, 0);
        assert!(!contact.has_majority(&three(), 0));
        contact.heard(2, &[1, 3], None, 10);
        assert!(contact.has_majority(&three(), 10));
    }

    #[test]
    fn contact_ends_with_silence_and_when_one_is_not_heard_any_more() {
        let mut contact = Contact::new(1, 100);
        contact.heard(2, &[1], None, 0);
        assert!(contact.has_majority(&three(), 100));
        contact.heard(2, &[], None, 90);
        assert_eq!(contact.hears(150), [2]);
        assert!(!contact.has_majority(&three(), 101));
        assert_eq!(contact.hears(191), Vec::<RaftId>::new());
    }

    #[test]
    fn both_halves_of_a_change_of_voters_need_a_majority() {
        let mut contact = Contact::new(1, 100);
        contact.heard(2, &[1], None, 0);
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 4, 5])];
        assert!(!contact.has_majority(&joint, 0));
        contact.heard(4, &[1], None, 0);
        assert!(contact.has_majority(&joint, 0));
    }

    #[test]
    fn of_those_in_contact_the_one_with_the_latest_log_stands_first() {
        let turn = |this: RaftId, logs: &[(RaftId, Option<LogId>)], own: Option<LogId>| {
            let mut contact = Contact::new(this, 100);
            for (node, last) in logs {
                contact.heard(*node, &[this], *last, 0);
            }
            contact.ahead(&three()[0], own, 50)
        };
        let (old, new, newest) = (entry(1, 8), entry(2, 7), entry(2, 8));
        assert_eq!((turn(2, &[(3, new)], new), turn(3, &[(2, new)], new)), (0, 1));
        assert_eq!((turn(2, &[(3, newest)], new), turn(3, &[(2, new)], newest)), (1, 0));
        // Entries of an earlier leader's may be many, and are worth less.
        assert_eq!((turn(2, &[(3, new)], old), turn(3, &[(2, old)], new)), (1, 0));
        // One that is no voter, or not in contact, is waited for by nobody.
        assert_eq!(turn(3, &[(4, newest)], new), 0);
        let mut contact = Contact::new(3, 100);
        contact.heard(1, &[3], newest, 0);
        contact.heard(2, &[], newest, 90);
        assert_eq!(contact.ahead(&three()[0], new, 101), 0);
    }

    #[test]
    fn a_leader_is_in_contact_and_says_that_it_leads() {
        let mut contact = Contact::new(1, 100);
        contact.heard(2, &[1], None, 0);
        assert_eq!((contact.leader(0), contact.last_leader()), (None, None));
        contact.led(2, 7, 0);
        assert_eq!((contact.leader(100), contact.leader(101)), (Some(2), None));
        // It is here, and leads no more.
        contact.heard(2, &[1], None, 101);
        assert_eq!((contact.leader(101), contact.last_leader()), (None, Some(2)));
        // It leads, and does not hear this node.
        contact.led(2, 8, 202);
        contact.heard(2, &[], None, 202);
        assert_eq!(contact.leader(202), None);
    }

    #[test]
    fn a_leader_that_does_not_get_on_is_missed() {
        let mut contact = Contact::new(1, 100);
        let mut say = |committed, now| {
            contact.heard(2, &[1], None, now);
            contact.led(2, committed, now);
            contact.leader(now)
        };
        assert_eq!((say(7, 0), say(7, STUCK), say(7, STUCK + 1)), (Some(2), Some(2), None));
        assert_eq!(say(8, STUCK + 2), Some(2));
        // Another one has its own time.
        contact.heard(3, &[1], None, 3 * STUCK);
        contact.led(3, 8, 3 * STUCK);
        assert_eq!(contact.leader(3 * STUCK), Some(3));
    }

    #[test]
    fn a_node_alone_is_its_own_majority() {
        assert!(Contact::new(1, 100).has_majority(&[BTreeSet::from([1])], 5));
    }
}
