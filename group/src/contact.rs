//! Who hears whom: whether this node is in two-way contact with a majority of the voters.
//!
//! openraft 0.9 has neither pre-vote nor a leader that steps down when it hears nobody. So a node without
//! two-way contact to a majority neither stands for election nor sends anything as a leader: one that is
//! cut off, in whatever direction, does not disturb the others, and a leader that cannot hear is replaced.
//!
//! Its voters wait for times that are drawn once and may be alike: of two that stand at the same time neither is elected,
//! again and again. So those who have lost their leader stand in turn, the one with the longest log first.

use crate::command::Millis;
use crate::types::RaftId;
use std::collections::{BTreeMap, BTreeSet};

/// What this node has heard of others. Times are those of any clock that does not go back.
#[derive(Debug)]
pub struct Contact {
    this: RaftId,
    /// A node that was silent for so long is out of contact.
    window: Millis,
    heard: BTreeMap<RaftId, Heard>,
    /// The last that spoke as leader, and when.
    led: Option<(RaftId, Millis)>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Millis,
    /// When it last said that it hears us.
    mutual_at: Option<Millis>,
    /// Entries in its log.
    log: u64,
}

impl Contact {
    pub fn new(this: RaftId, window: Millis) -> Contact {
        Contact { this, window, heard: BTreeMap::new(), led: None }
    }

    /// A sign of life of a node, which has heard these of late, and has so many entries in its log.
    pub fn heard(&mut self, from: RaftId, hears: &[RaftId], log: u64, now: Millis) {
        let before = self.heard.get(&from).and_then(|heard| heard.mutual_at);
        let mutual_at = if hears.contains(&self.this) { Some(now) } else { before };
        self.heard.insert(from, Heard { at: now, mutual_at, log });
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

    /// A node has spoken as the leader.
    pub fn led(&mut self, leader: RaftId, now: Millis) {
        self.led = Some((leader, now));
    }

    /// Does the node lead this one? One whose log hangs says still that it is here, but leads no more: that it has not spoken
    /// as leader may also be because this node takes its time to store what it said, so that gets longer.
    pub fn is_led_by(&self, leader: RaftId, now: Millis) -> bool {
        let spoke =
            self.led.is_some_and(|(other, at)| other == leader && now <= at + 4 * self.window);
        self.reaches(leader, now) && spoke
    }

    /// How many of these voters should stand for election before this node, whose log has so many entries.
    pub fn ahead(&self, voters: &BTreeSet<RaftId>, log: u64, now: Millis) -> usize {
        let is_ahead = |node: &&RaftId| {
            let theirs = self.heard.get(node).map_or(0, |heard| heard.log);
            self.reaches(**node, now) && (theirs > log || theirs == log && **node < self.this)
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

    #[test]
    fn hearing_is_not_enough_one_must_be_heard() {
        let mut contact = Contact::new(1, 100);
        contact.heard(2, &[3], 0, 0);
        assert!(!contact.has_majority(&three(), 0));
        contact.heard(2, &[1, 3], 0, 10);
        assert!(contact.has_majority(&three(), 10));
    }

    #[test]
    fn contact_ends_with_silence_and_when_one_is_not_heard_any_more() {
        let mut contact = Contact::new(1, 100);
        contact.heard(2, &[1], 0, 0);
        assert!(contact.has_majority(&three(), 100));
        contact.heard(2, &[], 0, 90);
        assert_eq!(contact.hears(150), [2]);
        assert!(!contact.has_majority(&three(), 101));
        assert_eq!(contact.hears(191), Vec::<RaftId>::new());
    }

    #[test]
    fn both_halves_of_a_change_of_voters_need_a_majority() {
        let mut contact = Contact::new(1, 100);
        contact.heard(2, &[1], 0, 0);
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 4, 5])];
        assert!(!contact.has_majority(&joint, 0));
        contact.heard(4, &[1], 0, 0);
        assert!(contact.has_majority(&joint, 0));
    }

    #[test]
    fn of_those_in_contact_the_one_with_the_longest_log_stands_first() {
        let turn = |this: RaftId, logs: &[(RaftId, u64)], own: u64| {
            let mut contact = Contact::new(this, 100);
            for (node, log) in logs {
                contact.heard(*node, &[this], *log, 0);
            }
            contact.ahead(&three()[0], own, 50)
        };
        assert_eq!((turn(2, &[(3, 7)], 7), turn(3, &[(2, 7)], 7)), (0, 1));
        assert_eq!((turn(2, &[(3, 8)], 7), turn(3, &[(2, 7)], 8)), (1, 0));
        // One that is no voter, or not in contact, is waited for by nobody.
        assert_eq!(turn(3, &[(4, 9)], 7), 0);
        let mut contact = Contact::new(3, 100);
        contact.heard(1, &[3], 9, 0);
        contact.heard(2, &[], 9, 90);
        assert_eq!(contact.ahead(&three()[0], 7, 101), 0);
    }

    #[test]
    fn a_leader_that_is_here_and_does_not_lead_is_missed() {
        let mut contact = Contact::new(1, 100);
        let here = |contact: &mut Contact, now| contact.heard(2, &[1], 0, now);
        here(&mut contact, 0);
        assert!(!contact.is_led_by(2, 0));
        contact.led(2, 0);
        here(&mut contact, 400);
        assert!(contact.is_led_by(2, 400) && !contact.is_led_by(3, 400));
        here(&mut contact, 401);
        assert!(!contact.is_led_by(2, 401));
        contact.led(2, 401);
        assert!(contact.is_led_by(2, 501) && !contact.is_led_by(2, 502));
    }

    #[test]
    fn a_node_alone_is_its_own_majority() {
        assert!(Contact::new(1, 100).has_majority(&[BTreeSet::from([1])], 5));
    }
}
