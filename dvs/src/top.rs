//! `dvs top` and `dvs history`: how busy the nodes and distributed containers are, now and in the last minutes.

use crate::cli::JsonOption;
use crate::exit::{self, Failure};
use crate::table::{Cell, Table, say};
use crate::{state, terminal};
use anyhow::{Context, Result};
use dvk::dvkd::figures::{self, Figures, LoadReport};
use m3ipc::load::DcLoad;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::path::{Path, PathBuf};

/// What the help of both commands says at its end.
const HELP: &str = "\
BUSY is processor time in percent of one processor; AGE how old the figures are, in seconds: a node that is cut off \
or dead tells nothing new. CALLS and bytes are per second, between nodes: calls on one node pass no daemon and are not \
counted. Of a DC, BUSY and MEMORY are those of the processes that are bound in it, and bytes are what requests carry. VFS, PM and IPC are calls of other \
nodes to its servers.";

/// Whom to ask.
#[derive(Clone, Debug, clap::Args)]
struct Asked {
    /// The node of the lab to ask; every node knows of all [default: the first]
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    state: state::StateOption,
}

impl Asked {
    fn run(&self) -> Result<PathBuf> {
        Ok(self.state.config_of(self.node.as_deref())?.run)
    }
}

/// Options of `dvs top`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct TopOptions {
    /// Print once and end, as it does when standard output is no terminal
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    json: JsonOption,
    #[command(flatten)]
    asked: Asked,
}

/// Options of `dvs history`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct HistoryOptions {
    /// The node, by name or number
    of: String,
    /// How far back, ten minutes at most
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10))]
    minutes: u16,
    #[command(flatten)]
    json: JsonOption,
    #[command(flatten)]
    asked: Asked,
}

/// `dvs top`.
///
/// # Errors
/// One sentence: no DVS, or its dvkd does not answer.
pub(crate) fn top(options: &TopOptions) -> Result<()> {
    let run = options.asked.run()?;
    let ask = || ask(&run, figures::loads);
    if options.once || options.json.json || !terminal::is_interactive() {
        let [nodes, dcs] = tables(&ask()?);
        nodes.print(options.json.json)?;
        if !options.json.json {
            say("\n")?;
        }
        return dcs.print(options.json.json);
    }
    let raw = terminal::RawTerminal::enter()?;
    loop {
        let text = screen(&ask()?);
        // From the top left corner; what was there is erased line by line, so that nothing flickers.
        say(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\r\n")))?;
        if is_over()? {
            drop(raw);
            return say("\n");
        }
    }
}

/// What fits the terminal.
fn screen(figures: &Figures) -> String {
    let [nodes, dcs] = tables(figures).map(|table| table.text());
    let (rows, columns) = terminal::size();
    let text = format!("dvs top: q ends it\n\n{nodes}\n{dcs}");
    let lines = text.lines().take(usize::from(rows).saturating_sub(1));
    lines.map(|line| line.chars().take(columns.into()).collect::<String>() + "\n").collect()
}

/// Waits a second, or until a key ends it.
fn is_over() -> Result<bool> {
    let input = rustix::stdio::stdin();
    let mut waits = [PollFd::new(&input, PollFlags::IN)];
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    match poll(&mut waits, Some(&second)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
        ready => ready?,
    };
    let mut keys = [0; 16];
    let count = rustix::io::read(input, &mut keys)?;
    // Ctrl-C is a key like others on a raw terminal.
    Ok(count == 0 || keys[..count].iter().any(|key| matches!(key, b'q' | b'Q' | 3 | 4)))
}

fn ask(run: &Path, ask: impl FnOnce(&Path) -> Result<Figures>) -> Result<Figures> {
    ask(run).map_err(|error| Failure::error(exit::NODE_DOWN, format!("{error:#}")))
}

/// Of the nodes, and of the DCs on each.
fn tables(figures: &Figures) -> [Table; 2] {
    let mut nodes = Table::new(&[
        "NODE",
        "AGE",
        "BUSY",
        "CPUS",
        "LOAD1",
        "LOAD15",
        "MEM-USED",
        "MEM-TOTAL",
        "ENDPOINTS",
        "LINKS",
        "CALLS-OUT",
        "CALLS-IN",
        "BYTES-OUT",
        "BYTES-IN",
        "RTT-US",
    ]);
    let mut dcs = Table::new(&[
        "DC",
        "NODE",
        "AGE",
        "BUSY",
        "MEMORY",
        "PROCESSES",
        "ENDPOINTS",
        "CALLS-OUT",
        "CALLS-IN",
        "BYTES-OUT",
        "BYTES-IN",
        "VFS",
        "PM",
        "IPC",
    ]);
    for report in &figures.reports {
        nodes.row(node_row(figures, report));
        for part in &report.dcs {
            dcs.row(dc_row(figures, &part.0));
        }
    }
    [nodes, dcs]
}

fn node_row(figures: &Figures, report: &LoadReport) -> Vec<Cell> {
    let node = &report.node;
    vec![
        Cell::text(name(figures, node.node)),
        Cell::number(node.age_ms / 1000),
        Cell::number(node.busy / 10),
        Cell::number(node.cpus),
        Cell::text(hundredths(node.load1)),
        Cell::text(hundredths(node.load15)),
        Cell::number(node.memory_total.saturating_sub(node.memory_available)),
        Cell::number(node.memory_total),
        Cell::number(node.endpoints),
        Cell::number(node.links),
        Cell::number(node.calls_out),
        Cell::number(node.calls_in),
        Cell::number(node.bytes_out),
        Cell::number(node.bytes_in),
        Cell::number(node.round_trip / 1000),
    ]
}

fn dc_row(figures: &Figures, part: &DcLoad) -> Vec<Cell> {
    let known = figures.dcs.get(&part.dc);
    vec![
        Cell::text(known.cloned().unwrap_or_else(|| part.dc.to_string())),
        Cell::text(name(figures, part.node)),
        Cell::number(part.age_ms / 1000),
        Cell::number(part.busy / 10),
        Cell::number(part.memory),
        Cell::number(part.processes),
        Cell::number(part.endpoints),
        Cell::number(part.calls_out),
        Cell::number(part.calls_in),
        Cell::number(part.bytes_out),
        Cell::number(part.bytes_in),
        Cell::number(part.served[0]),
        Cell::number(part.served[1]),
        Cell::number(part.served[2]),
    ]
}

fn name(figures: &Figures, node: u32) -> String {
    let known = u16::try_from(node).ok().and_then(|node| figures.names.get(&node));
    known.cloned().unwrap_or_else(|| node.to_string())
}

fn hundredths(number: u32) -> String {
    format!("{}.{:02}", number / 100, number % 100)
}

/// `dvs history`.
///
/// # Errors
/// One sentence: no DVS, no such node, or its dvkd does not answer.
pub(crate) fn history(options: &HistoryOptions) -> Result<()> {
    let run = options.asked.run()?;
    let names = ask(&run, figures::loads)?.names;
    let is_it =
        |(number, name): &(&u16, &String)| **name == options.of || number.to_string() == options.of;
    let node = names.iter().find(is_it).map(|(number, _)| *number);
    let node = node.with_context(|| format!("there is no node {:?}", options.of))?;
    let figures = ask(&run, |run| figures::history(run, node, options.minutes))?;
    let [nodes, dcs] = tables(&figures);
    nodes.print(options.json.json)?;
    if !options.json.json {
        say("\n")?;
    }
    dcs.print(options.json.json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::load::NodeLoad;
    use std::collections::BTreeMap;

    #[test]
    fn a_row_shows_names_and_whole_figures() {
        let node =
            NodeLoad { node: 2, busy: 1234, load1: 205, age_ms: 1999, ..NodeLoad::default() };
        let part = DcLoad { dc: 7, node: 2, served: [5, 6, 7, 8], ..DcLoad::default() };
        let figures = Figures {
            names: BTreeMap::from([(2, "n2".to_owned())]),
            dcs: BTreeMap::from([(7, "lab".to_owned())]),
            reports: vec![LoadReport { node, dcs: vec![figures::DcPart(part)] }],
        };
        let [nodes, dcs] = tables(&figures).map(|table| table.text());
        let words = |text: &str| -> Vec<String> {
            text.lines().nth(1).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words(&nodes)[..5], ["n2", "1", "123", "0", "2.05"]);
        assert_eq!(words(&dcs)[..2], ["lab", "n2"]);
        assert!(words(&dcs).ends_with(&["5".into(), "6".into(), "7".into()]));
        let unknown = DcLoad { dc: 9, node: 3, ..part };
        let text = Table::new(&["A"]).text();
        assert_eq!(text, "A\n");
        assert_eq!(dc_row(&figures, &unknown)[..2], [Cell::text("9"), Cell::text("3")]);
    }
}
