//! What the programs know of what they did, and whether the cluster can have done it right.

use std::collections::{BTreeMap, BTreeSet};

/// Initial value of the POSIX semaphore.
pub(crate) const TOKENS: u64 = 1;

/// Calls of one kind. What is neither done nor failed may have happened or not.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) sent: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

impl Count {
    /// At most so many have happened.
    pub(crate) fn most(&self) -> u64 {
        self.sent - self.failed
    }
}

/// What became of something with a number: a message, a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Sent,
    Done,
    Failed,
}

/// Messages of a queue.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) messages: BTreeMap<u64, Fate>,
    pub(crate) receives: Count,
    pub(crate) received: Vec<u64>,
    /// Found in the queue at the end.
    pub(crate) left: Vec<u64>,
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) waits: Count,
    pub(crate) posts: Count,
    pub(crate) value: u64,

    pub(crate) queue: Ledger,
    pub(crate) sysv_queue: Ledger,

    /// Who is between lock and unlock of the System V semaphore, and of the counter file.
    pub(crate) locker: BTreeSet<u64>,
    pub(crate) counter: BTreeSet<u64>,
    pub(crate) lock_value: i32,
    pub(crate) additions: Count,
    pub(crate) total: u64,

    pub(crate) records: BTreeMap<u64, Fate>,
    pub(crate) log: Vec<u64>,
    /// Records written before an fsync that was answered.
    pub(crate) synced: BTreeSet<u64>,

    /// What must never be.
    pub(crate) wrong: Vec<String>,
    /// What may be if somebody was given up, and only then.
    pub(crate) doubts: Vec<String>,
}

impl World {
    /// `is_strict`: nobody was given up, no node crashed.
    pub(crate) fn check(&self, is_strict: bool) -> Result<(), String> {
        let mut wrong = self.wrong.clone();
        if is_strict {
            wrong.extend(self.doubts.iter().cloned());
        }
        self.check_semaphore(&mut wrong);
        check_ledger("mq", &self.queue, &mut wrong);
        check_ledger("msg", &self.sysv_queue, &mut wrong);
        self.check_log(&mut wrong);
        let additions = self.additions.done..=self.additions.most();
        if is_strict && !additions.contains(&self.total) {
            wrong.push(format!("{additions:?} additions, but the counter is {}", self.total));
        }
        if is_strict && self.lock_value != 1 {
            wrong.push(format!(
                "the lock's value is {} after all who had it are gone",
                self.lock_value
            ));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    /// When the power failed, only what was synced must be there, and nothing that was never written.
    pub(crate) fn check_synced(&self) -> Result<(), String> {
        let mut wrong = Vec::new();
        for record in self.synced.iter().filter(|record| !self.log.contains(record)) {
            wrong.push(format!("record {record} was synced and is lost"));
        }
        for record in self.log.iter().filter(|record| !self.records.contains_key(record)) {
            wrong.push(format!("record {record} was never written"));
        }
        check_order("record", &self.log, &mut wrong);
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    fn check_semaphore(&self, wrong: &mut Vec<String>) {
        let least = (TOKENS + self.posts.done).saturating_sub(self.waits.most());
        let most = (TOKENS + self.posts.most()).saturating_sub(self.waits.done);
        if !(least..=most).contains(&self.value) {
            let (waits, posts) = (&self.waits, &self.posts);
            wrong.push(format!("value {} of a semaphore, {waits:?}, {posts:?}", self.value));
        }
    }

    fn check_log(&self, wrong: &mut Vec<String>) {
        let found: BTreeSet<u64> = self.log.iter().copied().collect();
        if found.len() != self.log.len() {
            wrong.push(format!("records are doubled: {:?}", self.log));
        }
        for (record, fate) in &self.records {
            match (fate, found.contains(record)) {
                (Fate::Done, false) => wrong.push(format!("record {record} is lost")),
                (Fate::Failed, true) => {
                    wrong.push(format!("record {record} is there, but its write failed"))
                }
                _ => {}
            }
        }
        for record in found.iter().filter(|record| !self.records.contains_key(*record)) {
            wrong.push(format!("record {record} was never written"));
        }
        check_order("record", &self.log, wrong);
    }
}

/// Each message is received once, or still there.
fn check_ledger(queue: &str, ledger: &Ledger, wrong: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for message in ledger.received.iter().chain(&ledger.left) {
        if !seen.insert(*message) {
            wrong.push(format!("{queue}: message {message} was received twice"));
        }
        match ledger.messages.get(message) {
            None => wrong.push(format!("{queue}: message {message} was never sent")),
            Some(Fate::Failed) => {
                wrong.push(format!("{queue}: message {message} was received, but its send failed"))
            }
            Some(Fate::Sent | Fate::Done) => {}
        }
    }
    let lost = ledger
        .messages
        .iter()
        .filter(|(message, fate)| **fate == Fate::Done && !seen.contains(*message))
        .count();
    // Taken by receivers that were killed, or did not get the answer.
    let perhaps = ledger.receives.most() - ledger.receives.done;
    if lost as u64 > perhaps {
        wrong.push(format!(
            "{queue}: {lost} messages are lost, {perhaps} at most may have been received unheard"
        ));
    }
}

/// A number is a writer and that writer's count: each writer's come in order.
pub(crate) fn check_order(what: &str, list: &[u64], wrong: &mut Vec<String>) {
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for number in list {
        let (writer, count) = (number >> 32, number & 0xffff_ffff);
        if last.insert(writer, count).is_some_and(|before| before >= count) {
            wrong.push(format!("{what} {count} of {writer} comes too late: {list:x?}"));
        }
    }
}
