//! `dvs kv`: keys and values that the whole cluster agrees on.

use crate::cli::JsonOption;
use crate::exit::{self, Failure as Exit};
use crate::services::{self, Options, parse_time, text, text_or_input, unexpected};
use crate::table::{Cell, Table, say};
use anyhow::{Result, bail};
use dvk::dvkd::services::{Change, Entry, Lease, Op, Reply, Text};
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::time::Duration;

/// `dvs kv …`.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(after_help = services::HELP)]
pub(crate) enum KvCommand {
    /// Print a key's value
    Get(GetOptions),
    /// Store a value; prints the revision
    Put(PutOptions),
    /// Delete a key; prints the revision
    Del(DelOptions),
    /// Store a value if nobody has changed the key since a revision; prints the new one
    Cas(CasOptions),
    /// List keys in order
    Range(RangeOptions),
    /// Print changes as they happen
    Watch(WatchOptions),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GetOptions {
    key: OsString,
    /// Print the revision of the key's last change instead, 0 if there is no such key
    #[arg(long)]
    rev: bool,
    #[command(flatten)]
    json: JsonOption,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PutOptions {
    key: OsString,
    /// The value, 32 KiB at most; "-" reads it from standard input; one that begins with "-" stands behind "--"
    value: OsString,
    /// The key is deleted after: a number with ms, s, m, h or d
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    lease: Option<Duration>,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DelOptions {
    key: OsString,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CasOptions {
    key: OsString,
    /// The new value; without one the key is deleted. "-" reads it from standard input
    value: Option<OsString>,
    /// The revision that the key must have ("dvs kv get --rev"), 0: it must not be there
    #[arg(long, value_name = "REVISION")]
    rev: u64,
    /// The key is deleted after: a number with ms, s, m, h or d
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    lease: Option<Duration>,
    #[command(flatten)]
    options: Options,
}

/// Which keys.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Keys {
    /// The first key [default: the first there is]
    start: Option<OsString>,
    /// Up to and without this key [default: to the last]
    end: Option<OsString>,
    /// Keys that begin so
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<OsString>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RangeOptions {
    #[command(flatten)]
    keys: Keys,
    /// So many at most
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    #[command(flatten)]
    json: JsonOption,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "One line per change: the revision, put or del, the key, the value.")]
pub(crate) struct WatchOptions {
    /// The key
    #[arg(required_unless_present = "prefix")]
    key: Option<OsString>,
    /// Keys that begin so
    #[arg(long, conflicts_with = "key")]
    prefix: Option<OsString>,
    /// Begin with the changes of this revision; some thousand are remembered [default: from now on]
    #[arg(long, value_name = "REVISION")]
    rev: Option<u64>,
    /// End after so many changes
    #[arg(long)]
    count: Option<usize>,
    #[command(flatten)]
    json: JsonOption,
    #[command(flatten)]
    options: Options,
}

/// `dvs kv`.
///
/// # Errors
/// One sentence with its exit code.
pub(crate) fn main(command: &KvCommand) -> Result<()> {
    match command {
        KvCommand::Get(options) => get(options),
        KvCommand::Put(PutOptions { key, value, lease, options }) => {
            let (key, value) = (text(key), text_or_input(value)?);
            change(options, Op::Put { key, value, lease: leased(*lease) })
        }
        KvCommand::Del(options) => change(&options.options, Op::Delete { key: text(&options.key) }),
        KvCommand::Cas(CasOptions { key, value, rev, lease, options }) => {
            let value = value.as_ref().map(text_or_input).transpose()?;
            let lease = leased(*lease);
            change(options, Op::Swap { key: text(key), expected: *rev, value, lease })
        }
        KvCommand::Range(options) => range(options),
        KvCommand::Watch(options) => watch(options),
    }
}

fn leased(lease: Option<Duration>) -> Lease {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    lease.map_or(Lease::None, |time| Lease::After(milliseconds(time)))
}

fn get(options: &GetOptions) -> Result<()> {
    let op = Op::Get { key: text(&options.key) };
    let entry = match options.options.connect()?.ask(op)? {
        Reply::Value { entry } => entry,
        other => return unexpected(&other),
    };
    match entry {
        found if options.rev => say(&format!("{}\n", found.map_or(0, |entry| entry.modified))),
        Some(entry) if options.json.json => say(&(serde_json::to_string(&entry)? + "\n")),
        Some(entry) => say_bytes(&[&entry.value.0[..], b"\n"].concat()),
        None => {
            let why = format!("there is no key {}", options.key.to_string_lossy());
            Err(Exit::error(exit::FAILED, why))
        }
    }
}

fn change(options: &Options, op: Op) -> Result<()> {
    let is_delete = matches!(op, Op::Delete { .. });
    match options.connect()?.ask(op)? {
        Reply::Changed { found: false, .. } if is_delete => {
            Err(Exit::error(exit::FAILED, "there is no such key"))
        }
        Reply::Changed { revision, .. } => say(&format!("{revision}\n")),
        other => unexpected(&other),
    }
}

/// The key behind all that begin with `prefix`; none if there is no such key.
fn behind(prefix: &Text) -> Option<Text> {
    let mut bytes = prefix.0.clone();
    while let Some(last) = bytes.pop() {
        if last < u8::MAX {
            bytes.push(last + 1);
            return Some(Text(bytes));
        }
    }
    None
}

impl Keys {
    fn bounds(&self) -> (Text, Option<Text>) {
        match &self.prefix {
            Some(prefix) => (text(prefix), behind(&text(prefix))),
            None => {
                let start = self.start.as_ref().map(|start| text(start)).unwrap_or_default();
                (start, self.end.as_ref().map(|end| text(end)))
            }
        }
    }
}

fn range(options: &RangeOptions) -> Result<()> {
    let mut services = options.options.connect()?;
    let (mut start, end) = options.keys.bounds();
    let mut left = options.limit.unwrap_or(usize::MAX);
    let mut table = Table::new(&["KEY", "VALUE", "REVISION", "VERSION", "LEASE"]);
    loop {
        let (entries, more) =
            match services.ask(Op::Range { start, end: end.clone(), limit: left })? {
                Reply::Range { entries, more, .. } => (entries, more),
                other => return unexpected(&other),
            };
        left -= entries.len().min(left);
        let last = entries.last().map(|entry| entry.key.clone());
        for Entry { key, value, modified, version, lease, .. } in entries {
            table.row(vec![
                Cell::text(shown(&key)),
                Cell::text(shown(&value)),
                Cell::number(modified),
                Cell::number(version),
                Cell::text(lease.map_or_else(|| "-".into(), |lease| lease.to_string())),
            ]);
        }
        let Some(last) = last.filter(|_| more && left > 0) else { break };
        start = Text([&last.0[..], &[0]].concat());
    }
    table.print(options.json.json)
}

fn shown(text: &Text) -> String {
    String::from_utf8_lossy(&text.0).into_owned()
}

fn watch(options: &WatchOptions) -> Result<()> {
    let mut services = options.options.connect()?;
    let (start, end) = match (&options.key, &options.prefix) {
        (Some(key), _) => (text(key), Some(Text([text(key).0, vec![0]].concat()))),
        (None, Some(prefix)) => (text(prefix), behind(&text(prefix))),
        (None, None) => bail!("watch what?"),
    };
    let mut left = options.count.unwrap_or(usize::MAX);
    let mut from = options.rev;
    while left > 0 {
        let watch = Op::Watch { start: start.clone(), end: end.clone(), from };
        let (changes, next) = match services.ask(watch) {
            Ok(Reply::Changes { changes, .. }) if changes.is_empty() && from.is_some() => {
                return Err(Exit::error(exit::NOT_TAKEN, "nothing has changed"));
            }
            Ok(Reply::Changes { changes, next }) => (changes, next),
            Ok(other) => return unexpected(&other),
            Err(error) => {
                from.iter().for_each(|from| eprintln!("dvs: to go on: --rev {from}"));
                return Err(error);
            }
        };
        for change in changes.iter().take(left) {
            say_change(change, options.json.json)?;
        }
        left -= changes.len().min(left);
        if from.is_none() {
            eprintln!("dvs: watching from revision {next} on");
        }
        from = Some(next);
    }
    Ok(())
}

fn say_change(change: &Change, json: bool) -> Result<()> {
    if json {
        return say(&(serde_json::to_string(change)? + "\n"));
    }
    let (word, value) = match &change.value {
        Some(value) => ("put", &value.0[..]),
        None => ("del", &[][..]),
    };
    let head = format!("{}\t{word}\t", change.revision);
    let tail = if change.value.is_some() { &b"\t"[..] } else { b"" };
    say_bytes(&[head.as_bytes(), &change.key.0, tail, value, b"\n"].concat())
}

/// Writes bytes as they are. A reader that has had enough is no failure.
fn say_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_that_does_not_begin_so() {
        let check = |prefix: &[u8], expected: Option<&[u8]>| {
            let found = behind(&Text(prefix.to_vec())).map(|text| text.0);
            assert_eq!(found.as_deref(), expected, "{prefix:?}");
        };
        check(b"ab", Some(b"ac"));
        check(b"a\xff\xff", Some(b"b"));
        check(b"\xff", None);
        check(b"", None);
    }
}
