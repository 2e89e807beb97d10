//! A lab's directory and what stands in its `lab.toml`.

use super::process::ProcessId;
use crate::limits::LOG_TAIL;
use anyhow::{Context, Result, bail};
use dvk::dvkd::Packing;
use rustix::fs::FlockOperation;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// In the environment of every daemon of a lab: the lab's directory. Set by a user, it chooses the
/// directory, so that there can be several labs.
pub(super) const DIRECTORY_VARIABLE: &str = "DVS_LAB_DIR";

/// A lab, as its `lab.toml` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lab {
    /// Random: tells the processes of this lab from those of any other.
    pub(crate) id: String,
    pub(crate) dc: String,
    /// Are the nodes network namespaces?
    pub(crate) namespaces: bool,
    pub(crate) nodes: Vec<LabNode>,
    /// The lab of one `dvs-run`: its servers are in its only daemon, which ends with it.
    #[serde(default)]
    pub(crate) private: bool,
    /// Are large frames between its nodes compressed?
    #[serde(default)]
    pub(crate) compression: Packing,
    #[serde(skip)]
    pub(crate) directory: PathBuf,
}

/// A node of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabNode {
    pub(crate) node: u16,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

/// The directory of this user's lab.
pub(crate) fn directory() -> PathBuf {
    if let Some(chosen) = directory_of_this() {
        return chosen;
    }
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/dvs/lab");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir()) {
        Some(runtime) => runtime.join("dvs/lab"),
        None => std::env::temp_dir().join(format!("dvs-{}", uid.as_raw())).join("lab"),
    }
}

/// The directory of the lab that this daemon is part of.
pub(crate) fn directory_of_this() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from)
}

/// The door of a lab's DC: at the node named, else at the first one. A user without a lab is led
/// to root's, unless a directory was chosen: then that one counts, even if it is empty.
pub(crate) fn door(node: Option<&str>) -> Option<PathBuf> {
    let own = Lab::read(&directory()).ok().flatten();
    let roots = || Lab::read(Path::new("/run/dvs/lab")).ok().flatten();
    let lab = own.or_else(|| directory_of_this().map_or_else(roots, |_| None))?;
    let named = node.and_then(|name| lab.nodes.iter().find(|node| node.name == name));
    let node = named.or_else(|| lab.nodes.first())?;
    Some(lab.run(node).join(format!("dc-{}.sock", lab.dc)))
}

/// Makes the directory's parent, and lets only one `up` or `down` at a time go on.
pub(super) fn lock(directory: &Path) -> Result<File> {
    let parent = directory.parent().context("the lab's directory has no parent")?;
    // Root's labs can be used by all, with their own rights; a user's lab is the user's own.
    let mode = if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(parent)
        .with_context(|| format!("cannot make {}", parent.display()))?;
    let owner = fs::metadata(parent)?.uid();
    if owner != rustix::process::geteuid().as_raw() {
        bail!("{} belongs to another user", parent.display());
    }
    let path = directory.with_extension("lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
    Ok(file)
}

/// Removes a lab's directory, with what is still mounted in it.
pub(super) fn remove(directory: &Path) -> Result<()> {
    let mounts = crate::procfs::mounts()?;
    let inside = mounts.iter().rev().map(|mount| Path::new(OsStr::from_bytes(&mount.point)));
    for point in inside.filter(|point| point.starts_with(directory)) {
        unmount(point, UnmountFlags::DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The last line of a log, for a message.
pub(super) fn last_line(log: &Path) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let tail = tail().unwrap_or_default();
    let line = tail.lines().rfind(|line| !line.trim().is_empty());
    line.map_or_else(|| "it has written nothing".into(), |line| line.trim().to_owned())
}

impl Lab {
    /// A new lab; its directory and `lab.toml` are written.
    ///
    /// # Errors
    /// The directory cannot be made, or an address is not to be had.
    pub(super) fn new(
        directory: PathBuf,
        count: u16,
        dc: &str,
        compression: Packing,
    ) -> Result<Lab> {
        let namespaces = rustix::process::geteuid().is_root();
        Lab::make(directory, count, dc, namespaces, Some(compression))
    }

    /// The private lab of one program.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub(super) fn new_private(directory: PathBuf) -> Result<Lab> {
        Lab::make(directory, 1, "private", false, None)
    }

    /// `compression`: between its nodes, if it has several.
    fn make(
        directory: PathBuf,
        count: u16,
        dc: &str,
        namespaces: bool,
        compression: Option<Packing>,
    ) -> Result<Lab> {
        let private = compression.is_none();
        // A private system has no peer that must know its port: any that is free when it listens.
        let alone = || Ok(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let addresses = if private { alone() } else { super::addresses(count, namespaces) };
        let nodes = (1..).zip(addresses?);
        let nodes =
            nodes.map(|(node, address)| LabNode { node, name: format!("n{node}"), address });
        let mut random = [0u8; 8];
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut random)?;
        let lab = Lab {
            id: format!("{:016x}", u64::from_ne_bytes(random)),
            dc: dc.to_owned(),
            namespaces,
            nodes: nodes.collect(),
            private,
            compression: compression.unwrap_or_default(),
            directory,
        };
        // A name that dvkd would refuse is refused before anything is there.
        lab.nodes.iter().try_for_each(|node| lab.config(node).map(|_| ()))?;
        if lab.directory.exists() {
            remove(&lab.directory)?;
        }
        fs::create_dir_all(&lab.directory)
            .with_context(|| format!("cannot make {}", lab.directory.display()))?;
        fs::set_permissions(&lab.directory, fs::Permissions::from_mode(0o755))?;
        fs::write(lab.directory.join("lab.toml"), toml::to_string(&lab)?)?;
        Ok(lab)
    }

    /// The lab in `directory`; `None` if there is none.
    ///
    /// # Errors
    /// `lab.toml` is there, but is not understood.
    pub(crate) fn read(directory: &Path) -> Result<Option<Lab>> {
        let path = directory.join("lab.toml");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let lab: Lab = toml::from_str(&text)
            .with_context(|| format!("{} is not understood", path.display()))?;
        Ok(Some(Lab { directory: directory.to_owned(), ..lab }))
    }

    pub(crate) fn count(&self) -> u16 {
        u16::try_from(self.nodes.len()).unwrap_or(u16::MAX)
    }

    /// Names of the nodes whose dvkd is not there.
    pub(super) fn dead_nodes(&self) -> Vec<&str> {
        let alive = |node: &&LabNode| {
            ProcessId::read(&self.pid_file(node)).is_some_and(|process| process.is_alive())
        };
        self.nodes.iter().filter(|node| !alive(node)).map(|node| node.name.as_str()).collect()
    }

    /// A node's run directory.
    pub(crate) fn run(&self, node: &LabNode) -> PathBuf {
        self.directory.join(&node.name)
    }

    /// A node's key and certificate.
    pub(super) fn credentials(&self, node: &LabNode) -> PathBuf {
        self.run(node).join("credentials")
    }

    pub(super) fn log(&self, node: &LabNode) -> PathBuf {
        self.run(node).join("dvkd.log")
    }

    pub(super) fn pid_file(&self, node: &LabNode) -> PathBuf {
        self.run(node).join("dvkd.pid")
    }

    /// Says where the node's network namespace is to be found.
    pub(super) fn namespace_file(&self, node: &LabNode) -> PathBuf {
        self.run(node).join("namespace")
    }

    pub(super) fn switch_file(&self) -> PathBuf {
        self.directory.join("switch.pid")
    }

    /// Where `dvs mount` leaves the pid files of its agents.
    pub(crate) fn mounts(&self) -> PathBuf {
        self.directory.join("mounts")
    }

    pub(super) fn mount_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.mounts()).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(directory: &Path) -> Lab {
        let node = |node: u16| LabNode {
            node,
            name: format!("n{node}"),
            address: ([127, 0, 0, 1], 7000 + node).into(),
        };
        Lab {
            id: "00ff".into(),
            dc: "shop".into(),
            namespaces: false,
            nodes: vec![node(1), node(2)],
            private: false,
            compression: Packing::Auto,
            directory: directory.to_owned(),
        }
    }

    #[test]
    fn a_lab_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Lab::read(dir.path()).unwrap(), None);
        let file = dir.path().join("lab.toml");
        fs::write(&file, toml::to_string(&lab(dir.path())).unwrap()).unwrap();
        assert_eq!(Lab::read(dir.path()).unwrap(), Some(lab(dir.path())));
        fs::write(&file, "id = 3").unwrap();
        let error = format!("{:#}", Lab::read(dir.path()).unwrap_err());
        assert!(error.contains("lab.toml is not understood"), "{error}");
    }

    #[test]
    fn a_node_without_its_process_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let lab = lab(dir.path());
        for node in &lab.nodes {
            fs::create_dir_all(lab.run(node)).unwrap();
        }
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        own.write(&lab.pid_file(&lab.nodes[0])).unwrap();
        // The pid is in use, but by a process that started at another time.
        fs::write(lab.pid_file(&lab.nodes[1]), "1 999999999 x\n").unwrap();
        assert_eq!(lab.dead_nodes(), ["n2"]);
    }

    #[test]
    fn the_last_line_that_says_something_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_line(&log), "it has written nothing");
        fs::write(&log, format!("{}\n the end \n\n", "x".repeat(9000))).unwrap();
        assert_eq!(last_line(&log), "the end");
    }
}
