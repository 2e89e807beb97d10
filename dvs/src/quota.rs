//! `dvs quota`: what directories of a distributed container, and all below them, may have.

use crate::cli::ListOptions;
use crate::container::TREE;
use crate::files::Files;
use crate::limits::QUOTA_LOOK;
use crate::table::{Cell, Table};
use anyhow::{Context, Result, anyhow};
use calls::vfs::{
    Attr, DirEntry, Lookup, NO_LIMIT, Open, Quota, Quotas, ROOT_INO, Readdir, Release, SetQuota,
};
use calls::wire::Wire;
use m3ipc::Errno;
use m3ipc::errno::numbers::{ELOOP, ENOENT, ENOSPC, ENOTDIR};
use m3ipc::limits::PAYLOAD_MAX;
use rustix::termios::isatty;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Write, stderr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Directories that are looked through on the way up: a path has no more.
const DEPTH_MAX: usize = 4096;

pub(crate) const HELP: &str = "PATH is the directory's path in the container, below /dvs; the quota of /dvs is that of the whole container. Quotas may be \
    within each other, and each counts.\n\nWhoever goes beyond one is told EDQUOT. Counted are inodes, and bytes of files up to their ends, \
    holes too, in blocks of 4 KiB; not names, extended attributes and targets of links, which --inodes bounds. df(1) shows what is left. A directory that has something in it does not move into a directory with another \
    quota, or out of one, nor does one that has a quota: mv(1) copies it. Nor do files get names with several quotas.\n\nOnly who runs this node's dvkd may ask.";

const SET_HELP: &str = "Both limits are set anew: one that is not given is none. What the directory has already may be more. All of it is counted in \
    the background, and until then what is made in parts that are not counted yet may be too much; this is waited for.";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum QuotaCommand {
    /// List all quotas, and what they count
    Ls(ListOptions),
    /// Give a directory a quota, or another one
    #[command(after_help = SET_HELP)]
    Set(SetOptions),
    /// Take a directory's quota away
    Rm(RemoveOptions),
}

/// Options of `dvs quota set`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetOptions {
    /// The directory
    path: PathBuf,
    /// Bytes; with K, M, G, T or P so many times 1024, 1024^2, ... [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Files, directories and others [default: no limit]
    #[arg(long, value_name = "COUNT")]
    inodes: Option<u64>,
    /// The distributed container
    #[arg(long, value_name = "DC")]
    dc: Option<String>,
}

/// Options of `dvs quota rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RemoveOptions {
    /// The directory
    path: PathBuf,
    /// The distributed container
    #[arg(long, value_name = "DC")]
    dc: Option<String>,
}

/// `dvs quota`.
///
/// # Errors
/// One sentence: no DVS, this user may not, no such directory, or what the server refuses.
pub(crate) fn main(command: &QuotaCommand) -> Result<()> {
    match command {
        QuotaCommand::Ls(options) => {
            list(&Files::reach(options.dc.as_deref(), options.node.as_deref())?, options.json.json)
        }
        QuotaCommand::Set(options) => {
            let files = Files::reach(options.dc.as_deref(), None)?;
            let (bytes, inodes) =
                (options.size.unwrap_or(NO_LIMIT), options.inodes.unwrap_or(NO_LIMIT));
            let ino = files.find(&options.path)?;
            files.set(&options.path, &SetQuota { ino, bytes, inodes, remove: 0 })?;
            files.wait_until_counted(ino)
        }
        QuotaCommand::Rm(options) => {
            let files = Files::reach(options.dc.as_deref(), None)?;
            let ino = files.find(&options.path)?;
            files.set(&options.path, &SetQuota { ino, bytes: 0, inodes: 0, remove: 1 })
        }
    }
}

/// As fallocate(1) has it. A smaller one than a block would be none at all.
fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let shift = match suffix {
        "" => Some(0),
        "K" | "k" | "KiB" => Some(10),
        "M" | "MiB" => Some(20),
        "G" | "GiB" => Some(30),
        "T" | "TiB" => Some(40),
        "P" | "PiB" => Some(50),
        _ => None,
    };
    let number: Option<u64> = digits.parse().ok();
    match number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift)) {
        Some(size) if size >= 4096 => Ok(size),
        Some(_) => Err("it counts in blocks of 4K, and that is less than one".into()),
        None => Err("say a number of bytes, or one with K, M, G, T or P behind it".into()),
    }
}

fn list(files: &Files, json: bool) -> Result<()> {
    let mut table = Table::new(&["PATH", "KIB", "LIMIT", "INODES", "LIMIT-INODES"]);
    let limit = |limit: u64, unit: u64| match limit {
        NO_LIMIT => Cell::text("none"),
        limit => Cell::number(limit / unit),
    };
    let quotas = files.quotas()?;
    let roots: Vec<u64> = quotas.iter().map(|quota| quota.ino).collect();
    let places = files.places_of(&roots);
    for quota in &quotas {
        let path = match path_of(quota.ino, &places) {
            Some(path) => String::from_utf8_lossy(&path).into_owned(),
            // It has been removed or moved just now, or is too deep.
            None => format!("inode {}", quota.ino),
        };
        table.row(vec![
            Cell::text(path),
            Cell::number(quota.bytes / 1024),
            limit(quota.bytes_limit, 1024),
            Cell::number(quota.inodes),
            limit(quota.inodes_limit, 1),
        ]);
    }
    table.print(json)?;
    if quotas.iter().any(|quota| quota.is_counting != 0) {
        stderr().write_all(b"dvs: not everything is counted yet\n")?;
    }
    Ok(())
}

impl Files {
    fn look(&self, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
        let (_, payload) = self.call(&Lookup { parent }, name)?;
        // With number 0 the name is not there.
        Attr::get(&payload).filter(|attr| attr.ino != 0).ok_or(Errno::new(ENOENT))
    }

    /// The inode of what programs find at `path`. No link is followed.
    fn find(&self, path: &Path) -> Result<u64> {
        let inside = path.strip_prefix(TREE);
        let inside = inside.map_err(|_| {
            anyhow!("{}: the files of a distributed container are below {TREE}", path.display())
        })?;
        let mut at = ROOT_INO;
        for part in inside.components() {
            let name = match part {
                Component::Normal(name) => name.as_bytes(),
                Component::ParentDir => b"..",
                _ => continue,
            };
            let found = self.look(at, name).map_err(|errno| said(path, errno))?;
            at = found.ino;
        }
        Ok(at)
    }

    fn set(&self, path: &Path, row: &SetQuota) -> Result<()> {
        self.call(row, &[]).map(drop).map_err(|errno| match errno.errno {
            ENOENT => anyhow!("{} has no quota", path.display()),
            ELOOP => anyhow!("{}: too many quotas are within each other", path.display()),
            ENOSPC => anyhow!("there are too many quotas"),
            _ => said(path, errno),
        })
    }

    fn quotas(&self) -> Result<Vec<Quota>> {
        let mut quotas: Vec<Quota> = Vec::new();
        loop {
            let after = quotas.last().map_or(0, |quota| quota.tree);
            let batch = self.quotas_behind(after)?;
            if batch.is_empty() {
                return Ok(quotas);
            }
            quotas.extend(batch);
        }
    }

    /// Those with greater numbers than `after`, as many as an answer has.
    fn quotas_behind(&self, after: u16) -> Result<Vec<Quota>> {
        let (_, payload) = self
            .call(&Quotas { after }, &[])
            .map_err(|errno| anyhow!("vfs-server does not tell of quotas: {errno}"))?;
        decode(&payload, after).context("vfs-server's answer is malformed")
    }

    /// Shows how far it is, as that may take a while.
    fn wait_until_counted(&self, ino: u64) -> Result<()> {
        let quotas = self.quotas()?;
        // It may be gone already.
        let Some(quota) = quotas.iter().find(|quota| quota.ino == ino) else { return Ok(()) };
        let shows = isatty(stderr());
        loop {
            let now = self.quotas_behind(quota.tree - 1)?;
            let now = now.first().filter(|now| now.ino == ino && now.is_counting != 0);
            if shows {
                match now {
                    Some(now) => write!(stderr(), "\rcounting: {} inodes", now.inodes)?,
                    None => write!(stderr(), "\r\x1b[K")?,
                }
            }
            if now.is_none() {
                return Ok(());
            }
            std::thread::sleep(QUOTA_LOOK);
        }
    }

    /// The directories that `roots` are in, and those that these are in, as far as they can be found.
    fn places_of(&self, roots: &[u64]) -> BTreeMap<u64, Entry> {
        let mut places = BTreeMap::new();
        for root in roots {
            let mut at = *root;
            for _ in 0..DEPTH_MAX {
                if at == ROOT_INO || places.contains_key(&at) {
                    break;
                }
                let Ok(parent) = self.look(at, b"..") else { break };
                places.insert(at, Entry { parent: parent.ino, name: Vec::new() });
                at = parent.ino;
            }
        }
        let parents: BTreeSet<u64> = places.values().map(|place| place.parent).collect();
        for parent in parents {
            // What is gone has no name.
            self.name_those_in(parent, &mut places).ok();
        }
        places
    }

    /// Reads the names of `places` in directory `parent`.
    fn name_those_in(&self, parent: u64, places: &mut BTreeMap<u64, Entry>) -> Result<(), Errno> {
        let flags = u32::try_from(libc::O_DIRECTORY).unwrap_or(0);
        let (opened, _) = self.call(&Open { ino: parent, flags }, &[])?;
        let size = u32::try_from(PAYLOAD_MAX).unwrap_or(u32::MAX);
        let mut row = Readdir { fh: opened.fh, ino: parent, offset: 0, size };
        let outcome = loop {
            let (listed, payload) = match self.call(&row, &[]) {
                Ok(answer) => answer,
                Err(errno) => break Err(errno),
            };
            let before = row.offset;
            for (entry, name) in entries(&payload) {
                row.offset = entry.next;
                let place = places.get_mut(&entry.ino).filter(|place| place.parent == parent);
                if let Some(place) = place
                    && !matches!(name, b"." | b"..")
                {
                    place.name = name.to_vec();
                }
            }
            if listed.is_end != 0 || row.offset == before {
                break Ok(());
            }
        };
        self.call(&Release { fh: opened.fh, ino: parent }, &[]).ok();
        outcome
    }
}

/// The name of a directory, and which one it is in.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    parent: u64,
    name: Vec<u8>,
}

/// The path of directory `ino`.
fn path_of(mut ino: u64, places: &BTreeMap<u64, Entry>) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    while ino != ROOT_INO {
        let place = places.get(&ino).filter(|place| !place.name.is_empty())?;
        names.push(&place.name[..]);
        ino = place.parent;
        if names.len() > DEPTH_MAX {
            return None;
        }
    }
    names.push(TREE.as_bytes());
    names.reverse();
    Some(names.join(&b'/'))
}

/// What a listing tells.
fn entries(mut payload: &[u8]) -> Vec<(DirEntry, &[u8])> {
    let mut entries = Vec::new();
    while let Some(entry) = DirEntry::get(payload) {
        let tail = &payload[DirEntry::SIZE..];
        let Some((name, rest)) = tail.split_at_checked(entry.name_len.into()) else { break };
        entries.push((entry, name));
        payload = rest;
    }
    entries
}

fn said(path: &Path, errno: Errno) -> anyhow::Error {
    match errno.errno {
        ENOENT => anyhow!("there is no {}", path.display()),
        ENOTDIR => {
            anyhow!("{} is no directory, or leads through something that is none", path.display())
        }
        _ => anyhow!("{}: {errno}", path.display()),
    }
}

/// `None`: it is cut, or not in the order of numbers behind `after`.
fn decode(payload: &[u8], after: u16) -> Option<Vec<Quota>> {
    let quotas: Vec<Quota> = payload.chunks(Quota::SIZE).map(Quota::get).collect::<Option<_>>()?;
    let numbers = std::iter::once(after).chain(quotas.iter().map(|quota| quota.tree));
    numbers.is_sorted_by(|before, number| before < number).then_some(quotas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_people_write_them() {
        for (text, size) in [("4096", 4096), ("10G", 10 << 30), ("1MiB", 1 << 20), ("5k", 5 << 10)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "10X", "100", "99999999P", "0", "10 G", "4096iB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_that_is_cut_or_goes_round_is_refused() {
        let quota = |tree| Quota { ino: 7, tree, ..Quota::default() };
        let bytes = [quota(3).bytes(), quota(5).bytes()].concat();
        for cut in 0..=bytes.len() {
            let whole = cut % Quota::SIZE == 0;
            let found = decode(&bytes[..cut], 2).map(|found| found.len());
            assert_eq!(found, whole.then_some(cut / Quota::SIZE));
        }
        assert!(decode(&bytes, 3).is_none());
        assert!(decode(&[quota(3).bytes(), quota(3).bytes()].concat(), 2).is_none());
    }

    #[test]
    fn a_path_that_cannot_be_found_is_none() {
        let place = |parent, name: &str| Entry { parent, name: name.into() };
        let places = BTreeMap::from([
            (2, place(1, "a")),
            (3, place(2, "b")),
            (4, place(9, "x")),
            (5, place(6, "x")),
            (6, place(5, "y")),
            (7, place(1, "")),
        ]);
        assert_eq!(path_of(1, &places).unwrap(), b"/dvs");
        assert_eq!(path_of(3, &places).unwrap(), b"/dvs/a/b");
        for ino in [4, 5, 7, 8] {
            assert_eq!(path_of(ino, &places), None, "{ino}");
        }
    }

    #[test]
    fn a_listing_may_be_cut_anywhere() {
        let entry = DirEntry { ino: 7, next: 3, kind: 4, name_len: 2 };
        let bytes = [&entry.bytes()[..], b"ab", &entry.bytes()[..], b"cd"].concat();
        for cut in 0..=bytes.len() {
            assert_eq!(entries(&bytes[..cut]).len(), cut / (DirEntry::SIZE + 2));
        }
    }
}
