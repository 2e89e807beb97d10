//! `dvs scrub`: compares all files of a DC with their checksums, and says what is damaged.

use crate::cli::ListOptions;
use crate::files::Files;
use crate::limits::SCRUB_LOOK;
use crate::place::Place;
use crate::table::{self, Cell, Table};
use anyhow::{Context, Result, anyhow, ensure};
use calls::call;
use calls::vfs::{Damaged, Health, NO_SCRUB, Scrub};
use calls::wire::Wire;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, Errno, Sendrec, Wait};
use rustix::termios::isatty;
use std::io::{Write, stderr};

pub(crate) const HELP: &str = "A scrub also begins by itself a week after the last one, and then leaves the disk to others for most of the \
    time.\n\nA damaged block is read as an error (EIO) until it is written anew, or its file is replaced. \"find /dvs /dvs/.snapshots -inum INODE\" \
    finds the names of its file.\n\nOnly who runs this node's dvkd may begin one; --status is for everybody.\n\nExit status: 0 all is well, 1 something is damaged or was not compared.";

/// What to scrub.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    list: ListOptions,
    /// Only say what is known; begin nothing
    #[arg(long)]
    status: bool,
}

/// `dvs scrub`.
///
/// # Errors
/// One sentence: no DVS, it does not answer, this user may not, or the server was restarted.
pub(crate) fn main(options: &Options) -> Result<u8> {
    let (dc, node) = (options.list.dc.as_deref(), options.list.node.as_deref());
    let state = if options.status {
        ask(&Place::required(dc, node)?.connect(|| ())?)?
    } else {
        scrub(&Files::reach(dc, node)?)?
    };
    let (health, damaged) = &state;
    print(health, damaged, options.list.json.json)?;
    let is_well = damaged.is_empty() && health.map_damaged == 0 && health.unchecked == 0;
    Ok(u8::from(!is_well))
}

/// Waits until a scrub that begins now, or is under way, has ended.
fn scrub(files: &Files) -> Result<(Health, Vec<Damaged>)> {
    let ask = |begin: bool| {
        let asked = files.call(&Scrub { begin: begin.into() }, &[]);
        told(asked.map(|(_, payload)| payload))
    };
    let (before, damaged) = ask(true)?;
    if before.percent == NO_SCRUB {
        // A store in memory has nothing to compare.
        return Ok((before, damaged));
    }
    let shows = isatty(stderr());
    loop {
        let (health, damaged) = ask(false)?;
        if health.scrubs > before.scrubs {
            if shows {
                write!(stderr(), "\r\x1b[K")?;
            }
            return Ok((health, damaged));
        }
        ensure!(
            health.percent != NO_SCRUB && health.scrubs == before.scrubs,
            "vfs-server was restarted, and has not compared everything: try again"
        );
        if shows {
            write!(stderr(), "\rcomparing: {} %", health.percent)?;
        }
        std::thread::sleep(SCRUB_LOOK);
    }
}

/// What is known, which everybody may ask.
fn ask(port: &impl Sendrec) -> Result<(Health, Vec<Damaged>)> {
    let mut payload = vec![0; PAYLOAD_MAX];
    let asked = call(port, Endpoint::VFS, &Scrub { begin: 0 }, &[], &mut payload, Wait::FOREVER);
    told(asked.map(|(_, len)| payload[..len].to_vec()))
}

fn told(answer: Result<Vec<u8>, Errno>) -> Result<(Health, Vec<Damaged>)> {
    let payload =
        answer.map_err(|errno| anyhow!("vfs-server does not compare its files: {errno}"))?;
    decode(&payload).context("vfs-server's answer is malformed")
}

fn decode(payload: &[u8]) -> Option<(Health, Vec<Damaged>)> {
    let health = Health::get(payload)?;
    let records = payload.get(Health::SIZE..)?.chunks(Damaged::SIZE);
    Some((health, records.map(Damaged::get).collect::<Option<_>>()?))
}

fn print(health: &Health, damaged: &[Damaged], json: bool) -> Result<()> {
    let mut table = Table::new(&["INODE", "OFFSET"]);
    for Damaged { ino, offset } in damaged {
        table.row(vec![Cell::number(*ino), Cell::number(*offset)]);
    }
    if json || !damaged.is_empty() {
        table.print(json)?;
    }
    let of_map = match health.map_damaged {
        0 => "",
        _ => "; the names and attributes of some files cannot be read, see the log of vfs-server",
    };
    let under_way = match health.percent {
        NO_SCRUB => String::new(),
        percent => format!("; a scrub is at {percent} %"),
    };
    let unchecked = match health.unchecked {
        0 => String::new(),
        count => format!(", {count} parts not compared (see the log of vfs-server)"),
    };
    let summary = format!(
        "{} MiB compared, {} damaged blocks{unchecked}{of_map}; {} parts of files have changed and have no checksums yet{under_way}\n",
        health.checked >> 20,
        damaged.len(),
        health.fresh
    );
    // The rows are for a program; whoever looks on is told of what is not in them.
    if !json {
        table::say(&summary)
    } else if health.map_damaged != 0 || health.unchecked != 0 {
        Ok(stderr().write_all(summary.as_bytes())?)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_cut_is_refused() {
        let health = Health { scrubs: 1, percent: NO_SCRUB, ..Health::default() };
        let damaged = Damaged { ino: 7, offset: 4096 };
        let bytes = [health.bytes().as_ref(), damaged.bytes().as_ref()].concat();
        assert_eq!(decode(&bytes), Some((health, vec![damaged])));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]).is_some(), cut == Health::SIZE, "cut at {cut}");
        }
    }
}
