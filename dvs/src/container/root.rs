//! The file tree of a container: the host's, with `/dvs`, `/run/dvs` and the shim added.
//!
//! Nothing is made on the host. The root is a small tmpfs in which every entry of the host's root
//! is mounted again; where a mount needs a directory that the host lacks, its parent is replaced in
//! the same way (a *mirror*). All of it exists in this mount namespace only and ends with it.

use crate::limits::MIRROR_ENTRIES_MAX;
use crate::procfs;
use crate::shim;
use anyhow::{Context, Result};
use dvk::dvkd::Description;
use m3ipc::door;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, unmount,
};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Where every container has the tree of its DC.
pub(crate) const TREE: &str = "/dvs";
/// The shim, as programs see it.
const SHIM: &str = "/run/dvs/libdvs_preload.so";
/// What the dynamic loader reads (ld.so(8)).
const PRELOAD: &str = "/etc/ld.so.preload";
/// What the tree is made for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The DC's socket on the host.
    pub(crate) socket: PathBuf,
    /// An empty directory of the node's own, on which the new root is put together.
    pub(crate) stage: PathBuf,
    /// Directories of the host that programs are not to see: the sockets of other DCs and nodes, and the node's secrets.
    pub(crate) hidden: Vec<PathBuf>,
}

/// Makes the tree in this mount namespace and enters it. Returns the shim as programs see it.
///
/// # Errors
/// Which mount the kernel refused. Where the shim cannot be set up, programs run without it.
pub(crate) fn build(plan: &Plan) -> Result<Option<PathBuf>> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make this mount namespace private")?;
    enter_new_root(&plan.stage)?;
    let socket = path_descriptor(&plan.socket).context("the container's socket is gone")?;
    let description = fs::read(Description::path(&plan.socket))?;
    private_run(&socket, &description)?;
    plan.hidden.iter().try_for_each(|path| hide(path))?;
    match preload() {
        Ok(()) => Ok(Some(PathBuf::from(SHIM))),
        Err(error) => {
            tracing::warn!("programs run without the shim: cannot set up {PRELOAD}: {error}");
            Ok(None)
        }
    }
}

/// Mounts the tree over more paths, in a mount namespace of this process's own.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn map(paths: &[Vec<u8>]) -> std::io::Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    // A new mount of the tree, after a restart of its agent, still arrives here.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    paths.iter().try_for_each(|path| bind_tree(Path::new(OsStr::from_bytes(path))))
}

/// Mounts the tree over `path`, in this mount namespace.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn bind_tree(path: &Path) -> std::io::Result<()> {
    mount_point(path)?;
    Ok(mount_bind(TREE, path)?)
}

/// A tmpfs with everything that the root has, and /proc of this pid namespace, becomes the root.
fn enter_new_root(stage: &Path) -> Result<()> {
    fs::create_dir_all(stage).with_context(|| format!("cannot make {}", stage.display()))?;
    tmpfs(stage, 0o755, 0, 0).context("cannot mount a root")?;
    // Else the mirror of its own parent would contain it, again and again.
    mount_change(stage, MountPropagationFlags::UNBINDABLE).context("cannot mount a root")?;
    let own = [OsStr::new("proc"), OsStr::new("dvs")];
    mirror(Path::new("/"), stage, &own).context("cannot mirror /")?;
    fs::create_dir(stage.join("dvs"))?;
    let proc = stage.join("proc");
    fs::create_dir(&proc)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", &proc, "proc", flags, None).context("cannot mount /proc")?;
    std::env::set_current_dir(stage)?;
    // The old root is put on top of the new one, and taken away: pivot_root(2).
    rustix::process::pivot_root(".", ".").context("cannot change the root")?;
    unmount(".", UnmountFlags::DETACH).context("cannot leave the old root")?;
    std::env::set_current_dir("/")?;
    // Mounts below the root are to reach the namespaces of single runs (see `map`).
    mount_change("/", MountPropagationFlags::DOWNSTREAM)?;
    mount_change("/", MountPropagationFlags::SHARED)?;
    Ok(())
}

/// `/run/dvs` with nothing in it but this DC's socket and what it says beside it, and the shim.
fn private_run(socket: &OwnedFd, description: &[u8]) -> Result<()> {
    let path = Path::new(door::SOCKET_PATH);
    let run = path.parent().unwrap_or(Path::new("/run/dvs"));
    mount_point(run).with_context(|| format!("cannot make {}", run.display()))?;
    tmpfs(run, 0o755, 0, 0).with_context(|| format!("cannot mount {}", run.display()))?;
    File::create(path)?;
    mount_bind(descriptor_path(socket), path).context("cannot mount the container's socket")?;
    fs::write(Description::path(path), description)?;
    fs::write(SHIM, shim::SHIM)?;
    Ok(fs::set_permissions(SHIM, fs::Permissions::from_mode(0o755))?)
}

/// Puts an empty directory over `path`, if it can still be seen.
fn hide(path: &Path) -> Result<()> {
    if path.is_dir() {
        tmpfs(path, 0o755, 0, 0).with_context(|| format!("cannot hide {}", path.display()))?;
    }
    Ok(())
}

/// Makes the dynamic loader load the shim into every program.
fn preload() -> std::io::Result<()> {
    let mut lines = fs::read(PRELOAD).unwrap_or_default();
    if lines.last().is_some_and(|byte| *byte != b'\n') {
        lines.push(b'\n');
    }
    lines.extend(SHIM.bytes().chain([b'\n']));
    let file = Path::new("/run/dvs/ld.so.preload");
    fs::write(file, &lines)?;
    if !Path::new(PRELOAD).exists() {
        overlay_etc(&lines).or_else(|error| {
            tracing::info!("no overlay over /etc ({error}), a mirror instead");
            mirror_over(Path::new("/etc"))?;
            fs::write(PRELOAD, b"")
        })?;
    }
    Ok(mount_bind(file, PRELOAD)?)
}

/// Puts an overlay over /etc with an `ld.so.preload`. Changes to /etc are then the container's own.
fn overlay_etc(lines: &[u8]) -> std::io::Result<()> {
    let (upper, work) = (Path::new("/run/dvs/.etc/upper"), Path::new("/run/dvs/.etc/work"));
    fs::create_dir_all(upper)?;
    fs::create_dir_all(work)?;
    fs::set_permissions("/run/dvs/.etc", fs::Permissions::from_mode(0o700))?;
    fs::set_permissions(upper, fs::Permissions::from_mode(0o755))?;
    fs::write(upper.join("ld.so.preload"), lines)?;
    // An overlay does not show what is mounted below its lower directory.
    let inner: Vec<(PathBuf, OwnedFd)> = procfs::mounts()?
        .into_iter()
        .map(|mount| PathBuf::from(OsStr::from_bytes(&mount.point)))
        .filter(|point| point.starts_with("/etc/"))
        .filter_map(|point| Some((point.clone(), path_descriptor(&point).ok()?)))
        .collect();
    let options = CString::new(format!(
        "lowerdir=/etc,upperdir={},workdir={}",
        upper.display(),
        work.display()
    ))?;
    mount("overlay", "/etc", "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    for (point, mounted) in inner {
        mount_bind_recursive(descriptor_path(&mounted), &point)?;
    }
    Ok(())
}

/// Makes sure that there is a directory `path` to mount on, without touching what is mounted here.
fn mount_point(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if fs::symlink_metadata(path).is_ok() {
        return Err(ErrorKind::NotADirectory.into());
    }
    let parent = path.ancestors().skip(1).find(|parent| parent.is_dir());
    let parent = parent.unwrap_or(Path::new("/")).canonicalize()?;
    // The root is the container's own anyway.
    if parent != Path::new("/") {
        mirror_over(&parent)?;
    }
    fs::create_dir_all(path)
}

/// Replaces `directory` by a tmpfs in which all its entries are mounted again.
fn mirror_over(directory: &Path) -> std::io::Result<()> {
    let below = path_descriptor(directory)?;
    let meta = fs::metadata(directory)?;
    if fs::read_dir(directory)?.count() > MIRROR_ENTRIES_MAX {
        return Err(Error::from_raw_os_error(libc::E2BIG));
    }
    tmpfs(directory, meta.mode() & 0o7777, meta.uid(), meta.gid())?;
    mirror(&descriptor_path(&below), directory, &[])
}

/// Mounts each entry of `from`, but those named, in the empty directory `to`.
fn mirror(from: &Path, to: &Path, without: &[&OsStr]) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        if !without.contains(&name.as_os_str()) {
            mirror_entry(&from.join(&name), &to.join(&name))?;
        }
    }
    Ok(())
}

fn mirror_entry(from: &Path, to: &Path) -> std::io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(from) else { return Ok(()) };
    if meta.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if meta.is_dir() {
        fs::create_dir(to)?;
    } else {
        File::create(to)?;
    }
    if let Err(error) = mount_bind_recursive(from, to) {
        // A mount that must not be seen twice, or a dead one: the name stays, empty.
        tracing::debug!("{} is not there: {error}", to.display());
    }
    Ok(())
}

fn tmpfs(at: &Path, mode: u32, uid: u32, gid: u32) -> std::io::Result<()> {
    let options = CString::new(format!("mode={mode:o},uid={uid},gid={gid}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let mounted = mount("tmpfs", at, "tmpfs", flags, Some(options.as_c_str()));
    // In a user namespace an owner that is not mapped cannot be named.
    mounted.or_else(|error| {
        let options = CString::new(format!("mode={mode:o}")).map_err(|_| error)?;
        mount("tmpfs", at, "tmpfs", flags, Some(options.as_c_str()))
    })?;
    Ok(())
}

/// A descriptor that only stands for a place in the tree.
fn path_descriptor(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn descriptor_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
