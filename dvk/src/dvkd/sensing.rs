//! The thread that looks each second how busy this node and its DCs are, and tells the other nodes.
//!
//! A look reads three small files, and one per process that is bound: of a DC with many all at once but the more seldom, so
//! that it costs well under a millisecond a second. What is told may get lost: the next is due soon.

use super::children::SERVERS;
use super::control::Control;
use super::figures::{Figures, LoadReport};
use super::links;
use super::load::{
    Loads, ProcessTimes, Processors, Report, dc_load, parse_averages, parse_memory, per_second,
    saturated, ticks_between,
};
use super::node::{Node, Shared};
use crate::host::solo::monotonic;
use crate::kernel::NodeState;
use crate::limits::{LOAD_DCS, LOAD_EVERY, LOAD_PEERS_PER_LOOK, LOAD_PROCESSES};
use crate::server::Nanos;
use m3ipc::info::VERSION;
use m3ipc::load::NodeLoad;
use m3ipc::{DcId, Endpoint, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a DC's processes have exchanged with other nodes, since this dvkd started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    calls_out: u64,
    calls_in: u64,
    bytes_out: u64,
    bytes_in: u64,
    /// Calls to the servers, in the order of their numbers, and to all others.
    served: [u64; 4],
}

impl Traffic {
    /// A call of a process here to another node.
    pub(super) fn note_out(&mut self, bytes: usize) {
        self.calls_out += 1;
        self.bytes_out += bytes as u64;
    }

    /// A call of another node to an endpoint here.
    pub(super) fn note_in(&mut self, to: Endpoint, bytes: usize) {
        self.calls_in += 1;
        self.bytes_in += bytes as u64;
        let server =
            SERVERS.iter().position(|(_, number)| Endpoint::server(*number).slot == to.slot);
        self.served[server.unwrap_or(SERVERS.len())] += 1;
    }
}

const _: () = assert!(SERVERS.len() == 3);

/// What dvkd counts by itself, at one look.
#[derive(Clone, Debug, Default)]
struct Counted {
    node: NodeLoad,
    /// Since the start, of all DCs.
    frames: Traffic,
    dcs: BTreeMap<DcId, (Traffic, BTreeSet<u32>, usize)>,
    /// Nodes to which there is a link.
    up: Vec<NodeId>,
}

/// What a look needs of the one before.
#[derive(Debug, Default)]
struct Before {
    time: Nanos,
    processors: Processors,
    counted: Counted,
    processes: BTreeMap<DcId, Processes>,
}

/// The processes of a DC at their last look.
#[derive(Clone, Debug, Default)]
struct Processes {
    time: Nanos,
    times: BTreeMap<u32, ProcessTimes>,
    busy: u32,
    memory: u64,
}

/// The body of the sensing thread.
pub(super) fn run(shared: &Shared) {
    let mut before = Before { time: monotonic(), ..Before::default() };
    before.processors = processors();
    before.counted = shared.with(|node| node.count_load());
    let mut looks = 0_usize;
    loop {
        shared.nap(Duration::from_nanos(LOAD_EVERY));
        if shared.is_stopping() {
            return;
        }
        let (report, up) = look(shared, &mut before);
        let message = Control::Load(&report.encode()).encode();
        let now = before.time;
        shared.with(|node| {
            let members: BTreeSet<NodeId> = node.kernel.nodes().map(|info| info.node).collect();
            node.loads.retain(|other| members.contains(&other));
            node.loads.note(now, report);
        });
        // Each is told in its turn, some at each look.
        let turns = up.len().div_ceil(LOAD_PEERS_PER_LOOK).max(1);
        for to in up.into_iter().skip(looks % turns).step_by(turns) {
            links::offer(shared, to.0, message.clone());
        }
        looks = looks.wrapping_add(1);
    }
}

/// Looks at everything; `before` becomes this look.
fn look(shared: &Shared, before: &mut Before) -> (Report, Vec<NodeId>) {
    let now = monotonic();
    let span = now.saturating_sub(before.time);
    let processors = processors();
    let counted = shared.with(|node| node.count_load());
    let mut node = counted.node;
    node.span_ms = saturated(u128::from(span / 1_000_000));
    node.cpus = processors.count;
    node.busy = processors.busy_since(&before.processors);
    if let Some([one, five, fifteen]) = read("/proc/loadavg").as_deref().and_then(parse_averages) {
        (node.load1, node.load5, node.load15) = (one, five, fifteen);
    }
    if let Some((total, available)) = read("/proc/meminfo").as_deref().and_then(parse_memory) {
        (node.memory_total, node.memory_available) = (total, available);
    }
    let old = &before.counted.frames;
    let rate = |now: u64, before: u64| per_second(now.saturating_sub(before), span);
    node.calls_out = rate(counted.frames.calls_out, old.calls_out);
    node.calls_in = rate(counted.frames.calls_in, old.calls_in);
    node.bytes_out = rate(counted.frames.bytes_out, old.bytes_out);
    node.bytes_in = rate(counted.frames.bytes_in, old.bytes_in);
    let mut report = Report { node, dcs: Vec::new() };
    before.processes.retain(|dc, _| counted.dcs.contains_key(dc));
    for (dc, (traffic, pids, endpoints)) in counted.dcs.iter().take(LOAD_DCS) {
        let processes = before.processes.entry(*dc).or_default();
        look_at_processes(now, pids, processes);
        let old = before.counted.dcs.get(dc).map(|(old, ..)| *old).unwrap_or_default();
        let mut load = dc_load(*dc, NodeId(shared.config.node));
        load.span_ms = node.span_ms;
        load.endpoints = saturated(*endpoints as u128);
        load.processes = saturated(pids.len() as u128);
        (load.busy, load.memory) = (processes.busy, processes.memory);
        load.calls_out = rate(traffic.calls_out, old.calls_out);
        load.calls_in = rate(traffic.calls_in, old.calls_in);
        load.bytes_out = rate(traffic.bytes_out, old.bytes_out);
        load.bytes_in = rate(traffic.bytes_in, old.bytes_in);
        for (served, (now, before)) in
            load.served.iter_mut().zip(traffic.served.iter().zip(old.served))
        {
            *served = saturated(rate(*now, before).into());
        }
        report.dcs.push(load);
    }
    let up = counted.up.clone();
    (before.time, before.processors, before.counted) = (now, processors, counted);
    (report, up)
}

/// Looks at the processes of a DC, if it is time: the more there are, the less often.
fn look_at_processes(now: Nanos, pids: &BTreeSet<u32>, last: &mut Processes) {
    let looks = pids.len().div_ceil(LOAD_PROCESSES).max(1) as u64;
    let every = LOAD_EVERY.saturating_mul(looks);
    // A look comes when it comes; half a period is early enough.
    if last.time != 0 && now.saturating_sub(last.time) + every / (2 * looks) < every {
        return;
    }
    let times = pids.iter().filter_map(|pid| {
        let text = read(&format!("/proc/{pid}/stat"))?;
        Some((*pid, ProcessTimes::parse(&text)?))
    });
    let times: BTreeMap<u32, ProcessTimes> = times.collect();
    let ticks = ticks_between(&last.times, &times);
    let milliseconds = ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1);
    let pages = times.values().fold(0_u64, |sum, one| sum.saturating_add(one.pages));
    last.busy = saturated(per_second(milliseconds, now.saturating_sub(last.time)).into());
    last.memory = pages.saturating_mul(rustix::param::page_size() as u64);
    (last.time, last.times) = (now, times);
}

fn processors() -> Processors {
    read("/proc/stat").as_deref().and_then(Processors::parse).unwrap_or_default()
}

/// A file of /proc; `None` if it cannot be read, for its process has ended.
fn read(path: &str) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

impl Node {
    fn count_load(&self) -> Counted {
        let mut counted = Counted::default();
        counted.node.version = VERSION;
        counted.node.node = self.door.node.into();
        let mut round_trips = Vec::new();
        for info in self.kernel.nodes() {
            if let NodeState::Up { round_trip, .. } = info.state {
                counted.up.push(info.node);
                round_trips.extend(round_trip);
            }
        }
        counted.node.links = saturated(counted.up.len() as u128);
        let sum = round_trips.iter().fold(0_u64, |sum, one| sum.saturating_add(*one));
        counted.node.round_trip = sum.checked_div(round_trips.len() as u64).unwrap_or(0);
        counted.frames = Traffic {
            calls_out: self.counters.calls_out,
            calls_in: self.counters.calls_in,
            bytes_out: self.counters.bytes_out,
            bytes_in: self.counters.bytes_in,
            served: [0; 4],
        };
        for dc in self.kernel.dcs() {
            let traffic = self.traffic.get(&dc.id).copied().unwrap_or_default();
            counted.dcs.insert(dc.id, (traffic, BTreeSet::new(), 0));
        }
        for ((dc, endpoint), process) in &self.processes {
            if let Some((_, pids, endpoints)) = counted.dcs.get_mut(dc)
                && !endpoint.is_memory()
            {
                pids.insert(process.pid);
                *endpoints += 1;
            }
        }
        let endpoints = counted.dcs.values().map(|(_, _, endpoints)| *endpoints).sum::<usize>();
        counted.node.endpoints = saturated(endpoints as u128);
        counted
    }
}

/// What a node has reported; nobody may report for a DC that does not span it.
pub(super) fn hear(shared: &Shared, from: NodeId, bytes: &[u8]) -> Result<(), String> {
    let mut report = Report::decode(bytes, from).ok_or("its report of its load is malformed")?;
    shared.with(|node| {
        let spans = |dc: u32| {
            node.kernel.dcs().any(|known| known.id.0 == dc && known.nodes.contains(&from))
        };
        report.dcs.retain(|load| spans(load.dc));
        node.loads.hear(monotonic(), from, report);
    });
    Ok(())
}

/// The figures of all nodes as of now, or of one node within the last `span`, for the command line.
pub(super) fn figures(shared: &Shared, of: Option<(u16, Nanos)>) -> Figures {
    let own = NodeId(shared.config.node);
    let mut names: BTreeMap<u16, String> = BTreeMap::from([(own.0, shared.config.name.clone())]);
    let members = shared.linking.as_ref().map(|linking| linking.membership.peers());
    names.extend(members.into_iter().flatten().map(|peer| (peer.node, peer.name)));
    let dcs = shared.dcs().into_iter().map(|dc| (dc.id, dc.name)).collect();
    let now = monotonic();
    let reports = shared.with(|node| match of {
        Some((node_number, span)) => node.loads.since(now, own, NodeId(node_number), span),
        None => latest(&node.loads, now, own, names.keys().copied()),
    });
    let reports = reports.iter().map(|one| LoadReport::new(one.node, &one.dcs)).collect();
    Figures { names, dcs, reports }
}

fn latest(loads: &Loads, now: Nanos, own: NodeId, nodes: impl Iterator<Item = u16>) -> Vec<Report> {
    nodes.filter_map(|node| loads.at(now, own, NodeId(node), 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_the_server_that_they_are_for_whatever_its_generation() {
        let mut traffic = Traffic::default();
        for (_, number) in SERVERS {
            traffic.note_in(Endpoint { generation: 7, ..Endpoint::server(number) }, 3);
        }
        traffic.note_in(Endpoint::well_known(NodeId(1), 100), 5);
        traffic.note_in(Endpoint::well_known(NodeId(2), 1), 5);
        assert_eq!(traffic.served, [1, 1, 1, 2]);
        assert_eq!((traffic.calls_in, traffic.bytes_in, traffic.calls_out), (5, 19, 0));
    }
}
