//! What Linux tells about a node and its processes, what nodes tell each other of it, and some minutes of both. Pure.

use crate::limits::{
    LOAD_DCS, LOAD_EVERY, LOAD_HISTORY, LOAD_HISTORY_OTHERS, LOAD_KEEP_EVERY, LOAD_REPORTS,
};
use crate::server::Nanos;
use m3ipc::info::{VERSION, decode};
use m3ipc::load::{DcLoad, NodeLoad};
use m3ipc::{DcId, NodeId};
use std::collections::{BTreeMap, VecDeque};
use zerocopy::IntoBytes;

/// Processor time since the machine's start, in ticks of `sysconf(_SC_CLK_TCK)` (proc_stat(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Processors {
    pub(super) count: u32,
    /// Of all of them together.
    pub(super) busy: u64,
    pub(super) total: u64,
}

impl Processors {
    /// From `/proc/stat`. Waiting for a disk is not work; a guest's time is in its host's.
    pub(super) fn parse(text: &str) -> Option<Processors> {
        let mut lines = text.lines();
        let first = lines.next()?.strip_prefix("cpu ")?;
        let times: Vec<u64> =
            first.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        let times = times.get(..8.min(times.len())).filter(|times| times.len() >= 4)?;
        let total = times.iter().fold(0_u64, |sum, time| sum.saturating_add(*time));
        let idle = times[3].saturating_add(times.get(4).copied().unwrap_or(0));
        let count = lines.take_while(|line| line.starts_with("cpu")).count();
        Some(Processors {
            count: u32::try_from(count).ok().filter(|count| *count > 0)?,
            busy: total.saturating_sub(idle),
            total,
        })
    }

    /// How busy they were since `before`, in thousandths of one.
    pub(super) fn busy_since(&self, before: &Processors) -> u32 {
        let total = self.total.saturating_sub(before.total);
        let busy = self.busy.saturating_sub(before.busy).min(total);
        let all = u128::from(self.count) * 1000;
        (u128::from(busy) * all).checked_div(total.into()).map_or(0, saturated)
    }
}

/// MemTotal and MemAvailable in bytes, from `/proc/meminfo`.
pub(super) fn parse_memory(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kilobytes: u64 = line.strip_suffix("kB")?.trim().parse().ok()?;
        kilobytes.checked_mul(1024)
    };
    Some((field("MemTotal")?, field("MemAvailable")?))
}

/// The three load averages in hundredths, from `/proc/loadavg`.
pub(super) fn parse_averages(text: &str) -> Option<[u32; 3]> {
    let mut words = text.split_whitespace();
    let mut next = || {
        let (whole, part) = words.next()?.split_once('.')?;
        let part = part.get(..2)?;
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let whole: u32 = whole.parse().ok().filter(|_| digits(whole))?;
        let part: u32 = part.parse().ok().filter(|_| digits(part))?;
        whole.checked_mul(100)?.checked_add(part)
    };
    Some([next()?, next()?, next()?])
}

/// A process, as `/proc/PID/stat` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessTimes {
    /// Ticks of processor time, of all its threads.
    pub(super) ticks: u64,
    /// When it was started: tells apart two processes with one pid.
    pub(super) started: u64,
    /// Pages in memory.
    pub(super) pages: u64,
}

impl ProcessTimes {
    pub(super) fn parse(text: &str) -> Option<ProcessTimes> {
        // The name is in parentheses, and may have some in it.
        let (_, rest) = text.rsplit_once(')')?;
        let words: Vec<&str> = rest.split_whitespace().take(22).collect();
        // Fields are counted from 1 in proc_pid_stat(5); the first here is field 3.
        let field = |number: usize| words.get(number - 3)?.parse::<u64>().ok();
        Some(ProcessTimes {
            ticks: field(14)?.saturating_add(field(15)?),
            started: field(22)?,
            pages: field(24)?,
        })
    }
}

/// Ticks that processes have used between two looks: of those that are in both.
pub(super) fn ticks_between(
    before: &BTreeMap<u32, ProcessTimes>,
    now: &BTreeMap<u32, ProcessTimes>,
) -> u64 {
    let used = now.iter().filter_map(|(pid, now)| {
        let before = before.get(pid).filter(|before| before.started == now.started)?;
        Some(now.ticks.saturating_sub(before.ticks))
    });
    used.fold(0, u64::saturating_add)
}

/// A rate per second, of `count` things in `span`.
pub(super) fn per_second(count: u64, span: Nanos) -> u64 {
    let in_a_second = (u128::from(count) * 1_000_000_000).checked_div(span.into());
    in_a_second.map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
}

pub(super) fn saturated(number: u128) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// What a node says of itself at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) node: NodeLoad,
    /// By their numbers; [`LOAD_DCS`] at most.
    pub(super) dcs: Vec<DcLoad>,
}

impl Report {
    /// The bytes for other nodes: the records one after the other.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.node.as_bytes().to_vec();
        for dc in self.dcs.iter().take(LOAD_DCS) {
            bytes.extend_from_slice(dc.as_bytes());
        }
        bytes
    }

    /// What node `from` says, of itself and of nobody else.
    pub(super) fn decode(bytes: &[u8], from: NodeId) -> Option<Report> {
        let (first, rest) = bytes.split_at_checked(size_of::<NodeLoad>())?;
        let node: NodeLoad =
            decode(first).filter(|node: &NodeLoad| node.node == u32::from(from.0))?;
        let records = rest.chunks_exact(size_of::<DcLoad>());
        if !records.remainder().is_empty() || records.len() > LOAD_DCS {
            return None;
        }
        let dcs: Vec<DcLoad> = records.map(decode).collect::<Option<_>>()?;
        let is_in_order = dcs.is_sorted_by(|one, next| one.dc < next.dc);
        let is_its_own = dcs.iter().all(|dc| dc.node == u32::from(from.0));
        (is_in_order && is_its_own).then_some(Report { node, dcs })
    }

    pub(super) fn dc(&self, dc: DcId) -> Option<&DcLoad> {
        self.dcs.iter().find(|load| load.dc == dc.0)
    }
}

// A report is one message between two daemons.
const _: () =
    assert!(size_of::<NodeLoad>() + LOAD_DCS * size_of::<DcLoad>() <= crate::limits::LOAD_BYTES);

/// Some minutes of what this node and the others have reported, and when it came here.
#[derive(Debug, Default)]
pub(super) struct Loads {
    own: VecDeque<(Nanos, Report)>,
    others: BTreeMap<NodeId, Other>,
}

/// Another node's: the last report, and of those before it one in [`LOAD_KEEP_EVERY`].
#[derive(Debug, Default)]
struct Other {
    last: Option<(Nanos, Report)>,
    kept: VecDeque<(Nanos, Report)>,
}

impl Loads {
    /// This node's own report.
    pub(super) fn note(&mut self, now: Nanos, report: Report) {
        if self.own.len() >= LOAD_HISTORY {
            self.own.pop_front();
        }
        self.own.push_back((now, report));
    }

    /// A report of another node, that is a member. One that reports more often than it should fills no memory.
    pub(super) fn hear(&mut self, now: Nanos, from: NodeId, report: Report) {
        let other = self.others.entry(from).or_default();
        if other.last.as_ref().is_some_and(|(last, _)| now - last < LOAD_EVERY / 2) {
            return;
        }
        let is_due = other.kept.back().is_none_or(|(last, _)| now - last >= LOAD_KEEP_EVERY);
        if is_due {
            other.kept.push_back((now, report.clone()));
        }
        other.last = Some((now, report));
        // The more nodes, the shorter.
        let depth = (LOAD_REPORTS / self.others.len()).clamp(1, LOAD_HISTORY_OTHERS);
        for other in self.others.values_mut() {
            while other.kept.len() > depth {
                other.kept.pop_front();
            }
        }
    }

    /// Forgets nodes that are no members any more.
    pub(super) fn retain(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.others.retain(|node, _| is_member(*node));
    }

    /// What `node` reported `ago` before now, or the last before that; each report has its age in it.
    pub(super) fn at(&self, now: Nanos, own: NodeId, node: NodeId, ago: Nanos) -> Option<Report> {
        let until = now.saturating_sub(ago);
        let all = self.of(own, node).rev();
        all.into_iter().find(|(time, _)| *time <= until).map(|entry| aged(now, entry))
    }

    /// What `node` reported within the last `span`, the oldest first.
    pub(super) fn since(&self, now: Nanos, own: NodeId, node: NodeId, span: Nanos) -> Vec<Report> {
        let from = now.saturating_sub(span);
        let all = self.of(own, node).filter(|(time, _)| *time >= from);
        all.map(|entry| aged(now, entry)).collect()
    }

    fn of(&self, own: NodeId, node: NodeId) -> impl DoubleEndedIterator<Item = &(Nanos, Report)> {
        let own = (node == own).then_some(&self.own).into_iter().flatten();
        let other = self.others.get(&node);
        let kept = other.into_iter().flat_map(|other| &other.kept);
        let last = other.and_then(|other| other.last.as_ref());
        // It may be the last that is kept, too.
        let last = last.filter(|last| {
            other.and_then(|other| other.kept.back()).is_none_or(|kept| kept.0 != last.0)
        });
        own.chain(kept).chain(last)
    }
}

/// With its age, as of now.
fn aged(now: Nanos, (time, report): &(Nanos, Report)) -> Report {
    let age = saturated(u128::from(now.saturating_sub(*time) / 1_000_000));
    let mut report = report.clone();
    report.node.age_ms = age;
    report.dcs.iter_mut().for_each(|dc| dc.age_ms = age);
    report
}

/// An empty record of a DC's part on `node`.
pub(super) fn dc_load(dc: DcId, node: NodeId) -> DcLoad {
    DcLoad { version: VERSION, dc: dc.0, node: node.0.into(), ..DcLoad::default() }
}

/// For `fuzz/`: what is understood is written back as it was.
pub(super) fn decode_all(bytes: &[u8]) {
    let from = bytes.get(4..6).map_or(0, |low| u16::from_le_bytes([low[0], low[1]]));
    if let Some(report) = Report::decode(bytes, NodeId(from)) {
        assert_eq!(report.encode(), bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        Processors::parse(text);
        parse_memory(text);
        parse_averages(text);
        ProcessTimes::parse(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Nanos = 1_000_000_000;

    const STAT: &str = "cpu  300 20 80 500 100 5 5 0 40 0\n\
        cpu0 150 10 40 250 50 2 3 0 20 0\n\
        cpu1 150 10 40 250 50 3 2 0 20 0\n\
        intr 114930548 113199788 3\n";

    #[test]
    fn what_linux_writes_is_understood() {
        let all = Processors::parse(STAT).unwrap();
        // user, nice, system, irq, softirq; a guest's time is in user's already.
        assert_eq!(all, Processors { count: 2, busy: 410, total: 1010 });
        let memory = "MemTotal:       24684092 kB\nMemFree: 1 kB\nMemAvailable:   23198940 kB\n";
        assert_eq!(parse_memory(memory), Some((24_684_092 << 10, 23_198_940 << 10)));
        assert_eq!(parse_averages("4.28 14.50 0.04 5/251 30252\n"), Some([428, 1450, 4]));
        let process = "77 (a) b (c)) S 1 77 77 0 -1 4194560 900 0 1 0 13 29 0 0 20 0 5 0 4711 \
            1073741824 1234 18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0";
        let times = ProcessTimes { ticks: 42, started: 4711, pages: 1234 };
        assert_eq!(ProcessTimes::parse(process), Some(times));
    }

    #[test]
    fn what_is_cut_short_or_something_else_is_not_taken_for_figures() {
        for text in ["", "cpu ", "cpu 1 2 3\ncpu0 1 2 3\n", "cpu 1 2 3 4\n", "intr 1 2 3 4 5"] {
            assert_eq!(Processors::parse(text), None, "{text:?}");
        }
        for text in ["", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 5 kB\n"] {
            assert_eq!(parse_memory(text), None, "{text:?}");
        }
        for text in ["", "1.00 2.00", "1 2 3", "+1.00 1.00 1.00", "1.0 2.0 3.0", "-1.00 0.00 0.00"]
        {
            assert_eq!(parse_averages(text), None, "{text:?}");
        }
        for text in ["", "1 (a) S", "1 (a S 1 2 3", ")"] {
            assert_eq!(ProcessTimes::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn how_busy_processors_were_is_a_share_of_all_of_them() {
        let at = |busy, total| Processors { count: 4, busy, total };
        assert_eq!(at(150, 1400).busy_since(&at(100, 1000)), 500);
        assert_eq!(at(100, 1000).busy_since(&at(100, 1000)), 0, "no time has passed");
        assert_eq!(at(50, 900).busy_since(&at(100, 1000)), 0, "it went back");
    }

    #[test]
    fn a_pid_that_is_another_process_now_counts_from_its_next_look() {
        let times = |ticks, started| ProcessTimes { ticks, started, pages: 1 };
        let before = BTreeMap::from([(1, times(10, 5)), (2, times(90, 6)), (3, times(7, 7))]);
        let now = BTreeMap::from([(1, times(14, 5)), (2, times(95, 8)), (4, times(50, 9))]);
        assert_eq!(ticks_between(&before, &now), 4);
    }

    #[test]
    fn a_rate_is_of_a_second_and_of_no_time_is_none() {
        assert_eq!(per_second(300, 2 * SECOND), 150);
        assert_eq!(per_second(300, 0), 0);
        assert_eq!(per_second(u64::MAX, 1), u64::MAX);
    }

    fn report(node: u16, dcs: &[u32], busy: u32) -> Report {
        let load = NodeLoad { version: VERSION, node: node.into(), busy, ..NodeLoad::default() };
        Report { node: load, dcs: dcs.iter().map(|dc| dc_load(DcId(*dc), NodeId(node))).collect() }
    }

    #[test]
    fn a_report_survives_its_bytes_and_no_other_length_is_one() {
        let sent = report(3, &[1, 2, 9], 77);
        let bytes = sent.encode();
        assert_eq!(Report::decode(&bytes, NodeId(3)), Some(sent));
        for end in 0..bytes.len() {
            let is_whole = Report::decode(&bytes[..end], NodeId(3)).is_some();
            let part = end.checked_sub(size_of::<NodeLoad>());
            assert_eq!(is_whole, part.is_some_and(|part| part % size_of::<DcLoad>() == 0));
        }
    }

    #[test]
    fn a_node_reports_of_itself_only_and_of_no_dc_twice() {
        let decode = |report: &Report| Report::decode(&report.encode(), NodeId(3));
        assert_eq!(decode(&report(4, &[], 0)), None);
        let mut others = report(3, &[1], 0);
        others.dcs[0].node = 4;
        assert_eq!(decode(&others), None);
        assert_eq!(decode(&report(3, &[2, 2], 0)), None);
        let many: Vec<u32> = (0..u32::try_from(LOAD_DCS).unwrap() + 1).collect();
        let mut bytes = report(3, &many[..LOAD_DCS], 0).encode();
        assert!(Report::decode(&bytes, NodeId(3)).is_some());
        bytes.extend_from_slice(dc_load(DcId(u32::MAX), NodeId(3)).as_bytes());
        assert_eq!(Report::decode(&bytes, NodeId(3)), None);
    }

    #[test]
    fn minutes_are_kept_and_memory_is_bounded() {
        let own = NodeId(1);
        let mut loads = Loads::default();
        let end = 2 * LOAD_HISTORY as u64;
        for second in 1..=end {
            let busy = u32::try_from(second).unwrap();
            loads.note(second * SECOND, report(1, &[1], busy));
            loads.hear(second * SECOND, NodeId(2), report(2, &[], busy));
        }
        let now = end * SECOND;
        assert_eq!(loads.own.len(), LOAD_HISTORY);
        assert_eq!(loads.others[&NodeId(2)].kept.len(), LOAD_HISTORY_OTHERS);
        let ago = |node, ago| loads.at(now, own, NodeId(node), ago).map(|found| found.node);
        let last = ago(1, 0).unwrap();
        assert_eq!((u64::from(last.busy), last.age_ms), (end, 0));
        assert_eq!(u64::from(ago(1, 60 * SECOND).unwrap().busy), end - 60);
        assert_eq!(ago(1, now), None, "so long ago nothing is kept");
        assert_eq!(u64::from(ago(2, 0).unwrap().busy), end, "the last is there");
        let age = u64::from(ago(2, 60 * SECOND).unwrap().age_ms);
        assert!((60_000..60_000 + LOAD_KEEP_EVERY / 1_000_000).contains(&age), "{age}");
        assert_eq!(ago(3, 0), None);
        assert_eq!(loads.since(now, own, NodeId(1), 59 * SECOND).len(), 60);
        let others = loads.since(now, own, NodeId(2), Nanos::MAX);
        assert!(others.is_sorted_by(|one, next| one.node.age_ms > next.node.age_ms));
        // The more nodes there are, the less is kept of each.
        for node in 3..4096 {
            loads.hear(now, NodeId(node), report(node, &[], 0));
        }
        let kept: usize = loads.others.values().map(|other| other.kept.len()).sum();
        assert!(kept <= LOAD_REPORTS, "{kept}");
        loads.retain(|node| node.0 < 3);
        assert_eq!(loads.others.len(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            decode_all(&bytes);
        }

        #[test]
        fn no_text_like_linux_makes_a_parser_panic(
            text in "(cpu ?|MemTotal:|MemAvailable:|[0-9]{1,20} |\\.|\\) |kB|\n| ){0,60}",
        ) {
            decode_all(text.as_bytes());
        }
    }
}
