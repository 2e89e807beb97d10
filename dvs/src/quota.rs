//! `dvs quota`: what directories of a distributed container, and all below them, may have.

use crate::cli::ListOptions;
use crate::container::TREE;
use crate::limits::QUOTA_LOOK;
use crate::place::{self, Place};
use crate::table::{Cell, Table};
use anyhow::{Context, Result, anyhow, ensure};
use calls::vfs::{
    Attr, DirEntry, Lookup, NO_LIMIT, Open, Quota, Quotas, RESTART, ROOT_INO, Readdir, Release,
    SetQuota,
};
use calls::wire::Wire;
use calls::{Row, call};
use m3ipc::client::Process;
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::door::kind;
use m3ipc::errno::numbers::{ELOOP, ENOENT, ENOSPC, ENOTDIR};
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Cred, Endpoint, Errno, Wait};
use rustix::termios::isatty;
use std::collections::BTreeMap;
use std::io::{Write, stderr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

pub(crate) const HELP: &str = "PATH is the directory's path in the container, below /dvs; the quota of /dvs is that of the whole container. Quotas may be \
    within each other, and each counts.\n\nWhoever goes beyond one is told EDQUOT. Counted are inodes, and bytes of files up to their ends, \
    holes too, in blocks of 4 KiB. df(1) shows what is left. A directory that has something in it does not move into a directory with another \
    quota, or out of one: mv(1) copies it.\n\nOnly who runs this node's dvkd may ask.";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum QuotaCommand {
    /// List all quotas, and what they count
    Ls(ListOptions),
    /// Give a directory a quota, or another one
    #[command(
        after_help = "What it has already may be more; it is counted in the background, which is waited for."
    )]
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
    let mut known = BTreeMap::from([(ROOT_INO, TREE.as_bytes().to_vec())]);
    for quota in &quotas {
        let path = match files.path_of(quota.ino, &mut known) {
            Ok(path) => String::from_utf8_lossy(&path).into_owned(),
            // It has been removed or moved just now.
            Err(_) => format!("inode {}", quota.ino),
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

/// A container's files, as the administrator sees them.
struct Files {
    port: Process,
}

impl Files {
    fn reach(dc: Option<&str>, node: Option<&str>) -> Result<Files> {
        let place = Place::required(dc, node)?;
        let port = place::connect(&place.socket, kind::AGENT)?;
        Ok(Files { port })
    }

    /// Makes a call as the DVS itself.
    fn call<R: Row>(&self, row: &R, payload: &[u8]) -> Result<(R::Reply, Vec<u8>), Errno> {
        let mut cred = [0; CRED_SIZE_MAX];
        let len = Cred::ROOT.encode(&mut cred);
        let send = [&cred[..len], payload];
        let mut received = vec![0; PAYLOAD_MAX];
        loop {
            match call(&self.port, Endpoint::VFS, row, &send, &mut received, Wait::FOREVER) {
                Err(error) if error.errno == RESTART => std::thread::sleep(QUOTA_LOOK),
                Err(error) => return Err(error),
                Ok((reply, len)) => {
                    received.truncate(len);
                    return Ok((reply, received));
                }
            }
        }
    }

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
            let (_, payload) = self
                .call(&Quotas { after }, &[])
                .map_err(|errno| anyhow!("vfs-server does not tell of quotas: {errno}"))?;
            let batch = decode(&payload).context("vfs-server's answer is malformed")?;
            if batch.is_empty() {
                return Ok(quotas);
            }
            ensure!(batch[0].tree > after, "vfs-server's answer is malformed");
            quotas.extend(batch);
        }
    }

    /// Shows how far it is, as that may take a while.
    fn wait_until_counted(&self, ino: u64) -> Result<()> {
        let shows = isatty(stderr());
        loop {
            let quotas = self.quotas()?;
            let quota = quotas.iter().find(|quota| quota.ino == ino);
            let Some(quota) = quota.filter(|quota| quota.is_counting != 0) else {
                if shows {
                    write!(stderr(), "\r\x1b[K")?;
                }
                return Ok(());
            };
            if shows {
                write!(stderr(), "\rcounting: {} inodes", quota.inodes)?;
            }
            std::thread::sleep(QUOTA_LOOK);
        }
    }

    /// The path of directory `ino`. `known` are paths of directories.
    fn path_of(&self, ino: u64, known: &mut BTreeMap<u64, Vec<u8>>) -> Result<Vec<u8>, Errno> {
        if let Some(path) = known.get(&ino) {
            return Ok(path.clone());
        }
        let parent = self.look(ino, b"..")?.ino;
        let mut path = self.path_of(parent, known)?;
        path.push(b'/');
        path.extend(self.name_in(parent, ino)?);
        known.insert(ino, path.clone());
        Ok(path)
    }

    /// The name of `ino` in directory `parent`.
    fn name_in(&self, parent: u64, ino: u64) -> Result<Vec<u8>, Errno> {
        let flags = u32::try_from(libc::O_DIRECTORY).unwrap_or(0);
        let (opened, _) = self.call(&Open { ino: parent, flags }, &[])?;
        let size = u32::try_from(PAYLOAD_MAX).unwrap_or(u32::MAX);
        let mut row = Readdir { fh: opened.fh, ino: parent, offset: 0, size };
        let found = loop {
            let (listed, payload) = match self.call(&row, &[]) {
                Ok(answer) => answer,
                Err(errno) => break Err(errno),
            };
            let mut rest = &payload[..];
            let mut found = None;
            while let Some(entry) = DirEntry::get(rest) {
                let tail = &rest[DirEntry::SIZE..];
                let Some((name, tail)) = tail.split_at_checked(entry.name_len.into()) else {
                    break;
                };
                let is_own = name == b"." || name == b"..";
                found = found.or_else(|| (entry.ino == ino && !is_own).then(|| name.to_vec()));
                (row.offset, rest) = (entry.next, tail);
            }
            match found {
                Some(name) => break Ok(name),
                None if listed.is_end != 0 || payload.is_empty() => break Err(Errno::new(ENOENT)),
                None => {}
            }
        };
        self.call(&Release { fh: opened.fh, ino: parent }, &[]).ok();
        found
    }
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

/// `None`: it is cut.
fn decode(payload: &[u8]) -> Option<Vec<Quota>> {
    payload.chunks(Quota::SIZE).map(Quota::get).collect()
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
    fn an_answer_that_is_cut_is_refused() {
        let quota = Quota { ino: 7, tree: 3, ..Quota::default() };
        let bytes = [quota.bytes(), quota.bytes()].concat();
        for cut in 0..=bytes.len() {
            let whole = cut % Quota::SIZE == 0;
            assert_eq!(
                decode(&bytes[..cut]).map(|found| found.len()),
                whole.then_some(cut / Quota::SIZE)
            );
        }
    }
}
