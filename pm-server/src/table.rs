//! The process table, and the statuses of those that have ended.

use crate::limits::{ENDED_MAX, PROCESSES_PER_NODE};
use crate::record;
use crate::report::Reported;
use calls::pm::Process;
use calls::wire::Wire;
use dvk::store::Store;
use m3ipc::errno::numbers::EAGAIN;
use m3ipc::{Errno, NodeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Clone, Debug)]
struct Entry {
    reported: Reported,
    /// The container has started it, so it will say when it ends. Others end by not being reported.
    started: bool,
}

#[derive(Debug)]
pub(crate) struct Table {
    processes: BTreeMap<u32, Entry>,
    by_node: BTreeSet<(u16, u32)>,
    /// Position and pid of those that have ended, oldest first.
    ended: VecDeque<(u64, u32)>,
    /// The last end of a pid: position and status.
    statuses: BTreeMap<u32, (u64, i32)>,
}

impl Table {
    pub(crate) fn open(store: &dyn Store) -> Table {
        let mut table = Table {
            processes: BTreeMap::new(),
            by_node: BTreeSet::new(),
            ended: VecDeque::new(),
            statuses: BTreeMap::new(),
        };
        for ([_], entry) in record::all::<Entry, 1>(store, b'p', Entry::from_store) {
            table.insert(entry);
        }
        let ended = |bytes: &[u8]| Some((u32::get(bytes)?, i32::get(bytes.get(4..)?)?));
        for ([position], (pid, status)) in record::all(store, b'e', ended) {
            table.ended.push_back((position, pid));
            table.statuses.insert(pid, (position, status));
        }
        table
    }

    fn insert(&mut self, entry: Entry) {
        let Process { pid, node, .. } = entry.reported.process;
        if let Some(old) = self.processes.insert(pid, entry) {
            self.by_node.remove(&(old.reported.process.node, pid));
        }
        self.by_node.insert((node, pid));
    }

    /// The node where a process is.
    pub(crate) fn node(&self, pid: u32) -> Option<NodeId> {
        self.processes.get(&pid).map(|entry| NodeId(entry.reported.process.node))
    }

    /// Will its container say when this process ends?
    pub(crate) fn is_started(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_some_and(|entry| entry.started)
    }

    /// How a process ended, if that is still known.
    pub(crate) fn status(&self, pid: u32) -> Option<i32> {
        self.statuses.get(&pid).map(|(_, status)| *status)
    }

    /// A container has started this process. EAGAIN if the node has too many.
    pub(crate) fn start(
        &mut self,
        mut reported: Reported,
        store: &mut dyn Store,
    ) -> Result<(), Errno> {
        let Process { pid, node, .. } = reported.process;
        match self.processes.get(&pid) {
            Some(known) => reported.process.uid = known.reported.process.uid,
            None if self.of_node(NodeId(node)).len() >= PROCESSES_PER_NODE => {
                return Err(Errno::new(EAGAIN));
            }
            None => {}
        }
        let entry = Entry { reported, started: true };
        entry.put(store);
        self.insert(entry);
        Ok(())
    }

    /// What a node says of all its processes. Returns those that it does not mention any more and
    /// that nobody else will say anything about.
    pub(crate) fn report(
        &mut self,
        node: NodeId,
        all: Vec<Reported>,
        store: &mut dyn Store,
    ) -> Vec<u32> {
        let mut mentioned = BTreeSet::new();
        for mut reported in all {
            reported.process.node = node.0;
            let pid = reported.process.pid;
            mentioned.insert(pid);
            let known = self.processes.get(&pid);
            // Where pids are not unique by their numbers, another node's own child is not this one's.
            if known.is_some_and(|known| known.started && known.reported.process.node != node.0) {
                continue;
            }
            let started = known.is_some_and(|known| known.started);
            let entry = Entry { reported, started };
            if known.is_none_or(|known| known.differs_from(&entry)) {
                entry.put(store);
            }
            self.insert(entry);
        }
        let gone: Vec<u32> = self
            .of_node(node)
            .into_iter()
            .filter(|pid| !mentioned.contains(pid) && !self.is_started(*pid))
            .collect();
        gone.iter().for_each(|pid| self.remove(*pid, store));
        gone
    }

    /// A process has ended: its status is kept for a while.
    pub(crate) fn end(&mut self, pid: u32, status: i32, store: &mut dyn Store) {
        self.remove(pid, store);
        let position = self.ended.back().map_or(0, |(last, _)| last + 1);
        self.ended.push_back((position, pid));
        self.statuses.insert(pid, (position, status));
        let value = [pid.to_le_bytes(), status.to_le_bytes()].concat();
        record::put(store, b'e', &[position], &value);
        if self.ended.len() > ENDED_MAX {
            let (oldest, pid) = self.ended.pop_front().expect("one has just been added");
            record::remove(store, b'e', &[oldest]);
            if self.statuses.get(&pid).is_some_and(|(position, _)| *position == oldest) {
                self.statuses.remove(&pid);
            }
        }
    }

    fn remove(&mut self, pid: u32, store: &mut dyn Store) {
        if let Some(entry) = self.processes.remove(&pid) {
            self.by_node.remove(&(entry.reported.process.node, pid));
            record::remove(store, b'p', &[u64::from(pid)]);
        }
    }

    /// The processes of a node.
    pub(crate) fn of_node(&self, node: NodeId) -> Vec<u32> {
        self.by_node.range((node.0, 0)..=(node.0, u32::MAX)).map(|(_, pid)| *pid).collect()
    }

    /// All processes by pid, as records of a list.
    pub(crate) fn records(&self) -> Vec<Vec<u8>> {
        self.processes.values().map(|entry| entry.reported.bytes()).collect()
    }
}

impl Entry {
    fn put(&self, store: &mut dyn Store) {
        let value = [&[u8::from(self.started)][..], &self.reported.bytes()].concat();
        record::put(store, b'p', &[u64::from(self.reported.process.pid)], &value);
    }

    fn from_store(bytes: &[u8]) -> Option<Entry> {
        let (started, rest) = bytes.split_first()?;
        let (reported, _) = Reported::take(rest)?;
        Some(Entry { reported, started: *started != 0 })
    }

    /// Worth storing anew? State and processor time change all the time, and come with each report.
    fn differs_from(&self, other: &Entry) -> bool {
        let steady = |entry: &Entry| {
            let process = Process { state: 0, cpu_ms: 0, ..entry.reported.process };
            (entry.started, process, entry.reported.command.clone())
        };
        steady(self) != steady(other)
    }
}
