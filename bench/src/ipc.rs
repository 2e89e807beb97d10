//! The rows of M3-IPC: messages, copies and crowds, on one node and between two, beside what Linux has for it.

use crate::alongside::Alongside;
use crate::beside::Beside;
use crate::bound::{COPY_MAX, PREFIX, Pair, RECEIVER, REQUESTS_ONLY};
use crate::cpus::{self, Layout};
use crate::parallel::{Item, Parallel};
use crate::peer::Peer;
use crate::place::Place;
use crate::report::{Group, Report};
use crate::rounds::{Subject, Time, medians};
use crate::system::System;
use crate::{channel, queue, shared, stream, worker};
use anyhow::Result;
use legacy_tests::lab::NODES;

/// Where receivers are: the home node.
const HOME: u32 = 1;

/// Sizes of copies.
const SIZES: [usize; 6] = [512, 4096, 64 << 10, 256 << 10, 1 << 20, COPY_MAX];

/// Pairs that work side by side.
const CROWDS: [u32; 3] = [2, 4, 8];

/// Threads that call one receiver.
const THREADS: u32 = 64;

/// The workers of a lab: one on the home node and one on another who ask, and receivers.
struct Workers<'a> {
    system: &'a System,
    near: Place,
    far: Place,
    receiver: Place,
    /// At its end, that side ends.
    echoes: Vec<Peer>,
}

impl Workers<'_> {
    fn start(system: &System) -> Result<Workers<'_>> {
        let (home, other) = (NODES[0], NODES[1]);
        let receiver = system.worker("receiver", home)?;
        receiver.perform(1, &format!("{PREFIX}serve {RECEIVER}"))?;
        receiver.perform(1, &format!("{PREFIX}rcvrqst {REQUESTS_ONLY}"))?;
        let (near, far) = (system.worker(home, home)?, system.worker(other, other)?);
        Ok(Workers { system, near, far, receiver, echoes: Vec::new() })
    }

    /// Puts each node on its CPU; the workers follow when their subjects are pinned.
    fn pin(&self, layout: Layout) -> Result<()> {
        self.system.pin(NODES[0], layout.answers)?;
        self.system.pin(NODES[1], layout.asks)
    }

    /// `operation` with what follows the node in it; `to` is the receiver's number.
    fn pair<'a>(
        &'a self,
        name: &str,
        caller: &'a Place,
        operation: &str,
        to: u32,
        more: &str,
    ) -> Item<'a> {
        let operation = format!("{PREFIX}{operation} {HOME} {to} {more}");
        Box::new(Pair { name: name.to_owned(), caller, receiver: &self.receiver, operation })
    }
}

/// All rows of messages.
pub(crate) fn rows(system: Option<&System>, rounds: usize, report: &Report) -> Result<()> {
    let layouts = cpus::layouts()?;
    let Some(system) = system else {
        let mut linux = linux()?;
        let baselines = linux.len();
        linux.push(Box::new(channel::Channel::start()?));
        for layout in layouts {
            let times = pinned(&mut linux, layout, rounds)?;
            report.beside(&times[baselines..], &times[..baselines]);
        }
        return Ok(());
    };
    let mut workers = Workers::start(system)?;
    messages(&mut workers, &layouts, rounds, report)?;
    neighbours(&workers, &layouts, rounds, report)?;
    copies(&mut workers, &layouts, rounds, report)?;
    beside_bulk(&mut workers, &layouts, rounds, report)?;
    crowds(&workers, &layouts, rounds, report)
}

/// What Linux has for one message there and one back.
fn linux() -> Result<Vec<Box<dyn Subject>>> {
    Ok(vec![
        Box::new(shared::Shared::start(shared::SPINS)?),
        Box::new(shared::Shared::start(0)?),
        Box::new(stream::pipe()?),
        Box::new(stream::fifo()?),
        Box::new(stream::unix()?),
        Box::new(stream::seqpacket()?),
        queue::posix()?,
        queue::sysv()?,
        Box::new(stream::tcp()?),
    ])
}

/// One message there and one back.
fn messages(
    workers: &mut Workers<'_>,
    layouts: &[Layout],
    rounds: usize,
    report: &Report,
) -> Result<()> {
    if !report.wants(Group::Messages) {
        return Ok(());
    }
    let (echo, address) = workers.system.echo()?;
    let (tls_echo, tls_address) = workers.system.tls_echo()?;
    workers.echoes.extend([echo, tls_echo]);
    let tcp = format!("{}{address}", worker::TCP);
    let tls = format!("{}{tls_address} {}", worker::TLS, stream::MESSAGE);
    let mut subjects: Vec<Box<dyn Subject + '_>> = Vec::new();
    for subject in linux()? {
        subjects.push(subject);
    }
    let baselines = subjects.len();
    subjects.push(Box::new(channel::Channel::start()?));
    for (place, caller) in [("same node", &workers.near), ("across nodes", &workers.far)] {
        for (what, to) in [("sendrec", RECEIVER), ("send", RECEIVER), ("notify", RECEIVER)] {
            subjects.push(workers.pair(&format!("{what} {place}"), caller, what, to, ""));
        }
        let name = format!("sendrec to rcvrqst {place}");
        subjects.push(workers.pair(&name, caller, "sendrec", REQUESTS_ONLY, ""));
        subjects.push(caller.subject(&format!("call to ipc-server {place}"), worker::SENDREC));
    }
    let (here, there) = (baselines + 6, subjects.len());
    subjects.push(workers.far.subject("tcp across nodes", &tcp));
    subjects.push(workers.far.subject("tls across nodes", &tls));
    for layout in layouts {
        workers.pin(*layout)?;
        let times = pinned(&mut subjects, *layout, rounds)?;
        report.beside(&times[baselines..here], &times[..baselines]);
        report.beside(&times[here..there], &times[there..]);
    }
    Ok(())
}

/// A call while another process of the DC writes garbage over all that it shares with its receiver, which is the same,
/// and while an honest one that has called it is as busy.
fn neighbours(
    workers: &Workers<'_>,
    layouts: &[Layout],
    rounds: usize,
    report: &Report,
) -> Result<()> {
    if !report.wants(Group::Messages) {
        return Ok(());
    }
    let home = NODES[0];
    let call = format!("{PREFIX}sendrec {HOME} {RECEIVER}");
    let (scribbler, busy) =
        (workers.system.worker("scribbler", home)?, workers.system.worker("busy", home)?);
    for neighbour in [&scribbler, &busy] {
        neighbour.perform(1, &call)?;
    }
    let pair = || workers.pair("", &workers.near, "sendrec", RECEIVER, "");
    let beside = |name: &str, neighbour, what| -> Box<dyn Subject + '_> {
        Box::new(Beside { name: name.to_owned(), subject: pair(), neighbour, what })
    };
    let mut subjects = vec![
        beside("sendrec beside a scribbler", &scribbler, "scribble"),
        beside("sendrec beside a busy process", &busy, "busy"),
    ];
    for layout in layouts {
        workers.pin(*layout)?;
        let times = pinned(&mut subjects, *layout, rounds)?;
        report.beside(&times[..1], &times[1..]);
    }
    Ok(())
}

/// Copies out of another program's memory: `vcopy`.
fn copies(
    workers: &mut Workers<'_>,
    layouts: &[Layout],
    rounds: usize,
    report: &Report,
) -> Result<()> {
    if !report.wants(Group::Copies) {
        return Ok(());
    }
    let (echo, address) = workers.system.tls_echo()?;
    workers.echoes.push(echo);
    let (memcpy, tls): (Vec<_>, Vec<_>) = SIZES
        .iter()
        .map(|size| {
            let tls = format!("{}{address} {size}", worker::TLS);
            (format!("{}{size}", worker::MEMCPY), tls)
        })
        .unzip();
    for (index, size) in SIZES.iter().enumerate() {
        let unit = if *size < 1024 { format!("{size} B") } else { format!("{} KiB", size / 1024) };
        let pair = |name: &str, caller, what| {
            workers.pair(&format!("{name} {unit}"), caller, what, RECEIVER, &size.to_string())
        };
        let mut subjects: Vec<Box<dyn Subject + '_>> = vec![
            pair("vcopy same node", &workers.near, "vcopy"),
            pair("vcopy of lent memory same node", &workers.near, "vcopy-lent"),
            workers.near.subject(&format!("memcpy {unit}"), &memcpy[index]),
            pair("vcopy across nodes", &workers.far, "vcopy"),
            workers.far.subject(&format!("tls {unit}"), &tls[index]),
        ];
        for layout in layouts {
            workers.pin(*layout)?;
            let times = pinned(&mut subjects, *layout, rounds)?;
            report.beside(&times[..2], &times[2..3]);
            report.beside(&times[3..4], &times[4..]);
        }
    }
    Ok(())
}

/// A small call between nodes while a copy fills the link, beside the same on an idle one.
fn beside_bulk(
    workers: &mut Workers<'_>,
    layouts: &[Layout],
    rounds: usize,
    report: &Report,
) -> Result<()> {
    if !report.wants(Group::Beside) {
        return Ok(());
    }
    let copier = workers.system.worker("copier", NODES[1])?;
    let call = |name: &str| workers.pair(name, &workers.far, "sendrec", RECEIVER, "");
    let copy = workers.pair("copy", &copier, "vcopy", RECEIVER, &COPY_MAX.to_string());
    let name = "sendrec across nodes beside a bulk copy".to_owned();
    let mut subjects: Vec<Box<dyn Subject + '_>> = vec![
        Box::new(Alongside::new(name, call(""), copy)),
        call("sendrec across nodes, nothing else"),
    ];
    for layout in layouts {
        workers.pin(*layout)?;
        let times = pinned(&mut subjects, *layout, rounds)?;
        report.beside(&times[..1], &times[1..]);
    }
    Ok(())
}

/// Many at once: the time of one message of all.
fn crowds(workers: &Workers<'_>, layouts: &[Layout], rounds: usize, report: &Report) -> Result<()> {
    if !report.wants(Group::Crowds) {
        return Ok(());
    }
    let (home, most) = (NODES[0], *CROWDS.last().expect("there are some"));
    let callers: Vec<Place> =
        (0..most).map(|_| workers.system.worker("caller", home)).collect::<Result<_>>()?;
    let receivers: Vec<Place> = (1..=most)
        .map(|index| {
            let place = workers.system.worker("receiver", home)?;
            place.perform(1, &format!("{PREFIX}serve {}", RECEIVER + index))?;
            place.perform(1, &format!("{PREFIX}rcvrqst {}", REQUESTS_ONLY - index))?;
            Ok(place)
        })
        .collect::<Result<_>>()?;
    let pairs = |number: u32, name: &str, what: &str| -> Box<dyn Subject + '_> {
        let both = callers.iter().zip(&receivers).zip(1..=number);
        let items = both.map(|((caller, receiver), index)| -> Item<'_> {
            let (what, to) = match what {
                "rcvrqst" => ("sendrec", REQUESTS_ONLY - index),
                _ => (what, RECEIVER + index),
            };
            let operation = format!("{PREFIX}{what} {HOME} {to}");
            Box::new(Pair { name: String::new(), caller, receiver, operation })
        });
        Box::new(Parallel::new(format!("{name} {number} pairs"), items.collect()))
    };
    for number in CROWDS {
        let many = |start: fn() -> Result<Item<'static>>| -> Result<Vec<Item<'_>>> {
            (0..number).map(|_| start()).collect()
        };
        let pipes = many(|| Ok(Box::new(stream::pipe()?)))?;
        let memory = many(|| Ok(Box::new(shared::Shared::start(shared::SPINS)?)))?;
        let mut subjects: Vec<Box<dyn Subject + '_>> = vec![
            pairs(number, "sendrec", "sendrec"),
            pairs(number, "send", "send"),
            pairs(number, "notify", "notify"),
            pairs(number, "sendrec to rcvrqst", "rcvrqst"),
            Box::new(Parallel::new(format!("shared memory {number} pairs"), memory)),
            Box::new(Parallel::new(format!("pipe {number} pairs"), pipes)),
        ];
        for layout in layouts {
            let times = pinned(&mut subjects, *layout, rounds)?;
            report.beside(&times[..4], &times[4..]);
        }
    }
    let threads = THREADS.to_string();
    for (place, caller) in [("same node", &workers.near), ("across nodes", &workers.far)] {
        let name = format!("sendrec {THREADS} threads {place}");
        let mut subjects: Vec<Box<dyn Subject + '_>> = vec![
            workers.pair(&name, caller, "threads", RECEIVER, &threads),
            workers.pair(&format!("sendrec one thread {place}"), caller, "sendrec", RECEIVER, ""),
        ];
        for layout in layouts {
            workers.pin(*layout)?;
            let times = pinned(&mut subjects, *layout, rounds)?;
            report.beside(&times[..1], &times[1..]);
            let Time { name, nanos } = &times[0];
            report.figure(&format!("{name}, throughput"), 1e9 / nanos, "calls/s");
        }
    }
    Ok(())
}

/// The median times, with both sides where `layout` says.
fn pinned(
    subjects: &mut [Box<dyn Subject + '_>],
    layout: Layout,
    rounds: usize,
) -> Result<Vec<Time>> {
    for subject in subjects.iter_mut() {
        subject.pin(layout)?;
    }
    let times = medians(subjects, rounds)?.into_iter();
    Ok(times.map(|time| Time { name: format!("{}, {}", time.name, layout.name), ..time }).collect())
}
