//! `dvs snapshot`: the files of a distributed container as they were.

use crate::cli::ListOptions;
use crate::files::Files;
use crate::limits::SNAPSHOT_LOOK;
use crate::place::Place;
use crate::table::{Cell, Table};
use anyhow::{Context, Result, anyhow};
use calls::call;
use calls::vfs::{NAME_MAX, RemoveSnapshot, SnapshotHead, Snapshots, TakeSnapshot, Time};
use calls::wire::Wire;
use m3ipc::errno::numbers::{EBUSY, EEXIST, EINVAL, ENAMETOOLONG, ENOENT, ENOSPC};
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, Errno, Wait};
use rustix::termios::isatty;
use std::ffi::OsString;
use std::io::{Write, stderr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use time::OffsetDateTime;

pub(crate) const HELP: &str = "Programs find snapshots in /dvs/.snapshots, on every node, with the rights that the files had; nothing in there can be \
    changed. No listing of /dvs shows that directory: \"ls /dvs/.snapshots\" does. To bring something back, copy it from there.\n\nTaking one takes no longer with many \
    files, and copies nothing: what changes afterwards is kept as it was. Everything is in it that a program has been told it has written, and what it has stored in mapped memory as far as \
    msync(2) has been called. A snapshot is on the same disk as the files: it is no backup.\n\nOnly who runs this node's dvkd may take and remove them.";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum SnapshotCommand {
    /// List all snapshots
    Ls(ListOptions),
    /// Keep all files as they are now
    Create(CreateOptions),
    /// Remove a snapshot
    #[command(after_help = REMOVE_HELP)]
    Rm(RemoveOptions),
}

const REMOVE_HELP: &str = "What only this snapshot had is freed, which is waited for, but for what large files had that have changed a little since: that goes on in the background, and \
    after a restart.";

/// Options of `dvs snapshot create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateOptions {
    /// Its name [default: the time, as 2026-01-31T12:00:00Z]
    name: Option<OsString>,
    /// The distributed container
    #[arg(long, value_name = "DC")]
    dc: Option<String>,
}

/// Options of `dvs snapshot rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RemoveOptions {
    /// Its name
    name: OsString,
    /// The distributed container
    #[arg(long, value_name = "DC")]
    dc: Option<String>,
    /// Do not wait until all that it had is freed
    #[arg(long)]
    no_wait: bool,
}

/// `dvs snapshot`.
///
/// # Errors
/// One sentence: no DVS, this user may not, or what the server refuses.
pub(crate) fn main(command: &SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Ls(options) => {
            let place = Place::required(options.dc.as_deref(), options.node.as_deref())?;
            let port = place.connect(|| ())?;
            let ask = |row: &Snapshots| {
                let mut payload = vec![0; PAYLOAD_MAX];
                let asked = call(&port, Endpoint::VFS, row, &[], &mut payload, Wait::FOREVER);
                asked.map(|(_, len)| payload[..len].to_vec())
            };
            list(&snapshots(ask)?, options.json.json)
        }
        SnapshotCommand::Create(options) => {
            let name =
                options.name.clone().unwrap_or_else(|| shown(OffsetDateTime::now_utc()).into());
            let files = Files::reach(options.dc.as_deref(), None)?;
            let taken = files.call(&TakeSnapshot {}, name.as_bytes());
            taken.map(drop).map_err(|errno| refused(&name, errno))
        }
        SnapshotCommand::Rm(options) => {
            let files = Files::reach(options.dc.as_deref(), None)?;
            remove(&files, &options.name, options.no_wait)
        }
    }
}

/// A snapshot, and its name.
type Snapshot = (SnapshotHead, OsString);

fn list(found: &[Snapshot], json: bool) -> Result<()> {
    let mut table = Table::new(&["NAME", "TAKEN", "STATE"]);
    for (head, name) in found {
        table.row(vec![
            Cell::text(name.to_string_lossy()),
            Cell::text(time_of(head.taken)),
            Cell::text(if head.is_going == 0 { "there" } else { "going" }),
        ]);
    }
    table.print(json)
}

/// Removes a snapshot, and waits until nothing is left of it, as that may take a while.
fn remove(files: &Files, name: &OsString, no_wait: bool) -> Result<()> {
    let is_it = |(head, its): &&Snapshot| head.is_going == 0 && its == name;
    let ask = |row: &Snapshots| files.call(row, &[]).map(|(_, payload)| payload);
    let found = snapshots(ask)?.iter().find(is_it).map(|(head, _)| head.number);
    files.call(&RemoveSnapshot {}, name.as_bytes()).map_err(|errno| refused(name, errno))?;
    let shows = isatty(stderr());
    while !no_wait
        && let known = snapshots(ask)?
        && known.iter().any(|(head, _)| Some(head.number) == found)
    {
        if shows {
            write!(stderr(), "\rfreeing what it had ...")?;
        }
        std::thread::sleep(SNAPSHOT_LOOK);
    }
    if shows {
        write!(stderr(), "\r\x1b[K")?;
    }
    Ok(())
}

/// All of them; `ask` makes the call, and everybody may.
fn snapshots(ask: impl Fn(&Snapshots) -> Result<Vec<u8>, Errno>) -> Result<Vec<Snapshot>> {
    let mut found: Vec<Snapshot> = Vec::new();
    loop {
        let after = found.last().map_or(0, |(head, _)| head.number);
        let payload = ask(&Snapshots { after })
            .map_err(|errno| anyhow!("vfs-server does not tell of snapshots: {errno}"))?;
        let batch = decode(&payload, after).context("vfs-server's answer is malformed")?;
        if batch.is_empty() {
            return Ok(found);
        }
        found.extend(batch);
    }
}

/// `None`: it is cut, or not in the order of numbers behind `after`.
fn decode(mut payload: &[u8], mut after: u64) -> Option<Vec<Snapshot>> {
    let mut found = Vec::new();
    while !payload.is_empty() {
        let head = SnapshotHead::get(payload).filter(|head| head.number > after)?;
        let tail = payload.get(SnapshotHead::SIZE..)?;
        let (name, rest) = tail.split_at_checked(head.name_len.into())?;
        found.push((head, OsString::from_vec(name.to_vec())));
        (payload, after) = (rest, head.number);
    }
    Some(found)
}

fn time_of(time: Time) -> String {
    OffsetDateTime::from_unix_timestamp(time.seconds)
        .map_or_else(|_| format!("{} s", time.seconds), shown)
}

/// As RFC 3339 has it.
fn shown(time: OffsetDateTime) -> String {
    let (date, month) = (time.date(), u8::from(time.month()));
    let (hour, minute, second) = time.to_hms();
    format!("{:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", date.year(), date.day())
}

fn refused(name: &OsString, errno: Errno) -> anyhow::Error {
    let name = name.display();
    match errno.errno {
        EEXIST if matches!(&*name.to_string(), "." | "..") => anyhow!("{name} is no name"),
        EEXIST => anyhow!(
            "there is a snapshot {name}, or a program has made its own /dvs/.snapshots, which must be renamed first"
        ),
        ENOENT if name.to_string().is_empty() => anyhow!("a snapshot needs a name"),
        ENOENT => anyhow!("there is no snapshot {name}"),
        EINVAL => anyhow!("{name} cannot be a snapshot's name: it is one of a directory"),
        ENAMETOOLONG => anyhow!("a snapshot's name has at most {NAME_MAX} bytes"),
        ENOSPC => anyhow!("there are too many snapshots, or the disk is full: remove some"),
        EBUSY => anyhow!("too much of removed snapshots is still to be freed: try again later"),
        _ => anyhow!("snapshot {name}: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_cut_or_goes_round_is_refused() {
        let one = |number, name: &str| {
            let name_len = u8::try_from(name.len()).unwrap();
            let head = SnapshotHead { number, name_len, ..SnapshotHead::default() };
            [&head.bytes()[..], name.as_bytes()].concat()
        };
        let (first, second) = (one(3, "first"), one(5, ""));
        let both = [&first[..], &second].concat();
        for cut in 0..=both.len() {
            let whole = [0, first.len(), both.len()].iter().position(|whole| *whole == cut);
            assert_eq!(decode(&both[..cut], 2).map(|found| found.len()), whole, "{cut}");
        }
        assert!(decode(&both, 3).is_none());
        assert!(decode(&[&first[..], &first].concat(), 2).is_none());
        assert_eq!(decode(&both, 2).unwrap()[0].1, "first");
    }

    #[test]
    fn times_are_as_rfc_3339_has_them() {
        let at = |seconds| time_of(Time { seconds, nanos: 999 });
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(at(i64::MAX), format!("{} s", i64::MAX));
    }
}
