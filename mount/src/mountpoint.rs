//! The place in the tree: checks it before mounting, mounts, and takes a dead mount away.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// File system type of our mounts, as mountinfo shows it.
const FSTYPE: &str = "fuse.dvs";
const DEVICE: &str = "/dev/fuse";

/// What a mount is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Source of the mount, as mountinfo and df(1) show it.
    pub name: &'a str,
    /// Most bytes of one read.
    pub max_read: u32,
}

/// Makes sure that something can be mounted at `path`, and returns it absolute and without links. A mount of ours whose
/// agent has died is taken away.
pub(crate) fn prepare(path: &Path) -> Result<PathBuf> {
    let place = resolve(path)?;
    // Asked of the kernel's list first, because looking at a dead mount is an error and looking at a stuck one waits.
    let mountinfo = std::fs::read("/proc/self/mountinfo")
        .context("cannot read /proc/self/mountinfo: mount /proc")?;
    if let Some(fstype) = top_mount(&mountinfo, &place) {
        clear(&place, &fstype)?;
    }
    let metadata = std::fs::metadata(&place).with_context(|| {
        format!("mount point {} cannot be used: create it with mkdir", place.display())
    })?;
    ensure!(
        metadata.is_dir(),
        "mount point {} is not a directory: choose or create one",
        place.display()
    );
    Ok(place)
}

/// The path without links, but without looking at what is mounted on it.
fn resolve(path: &Path) -> Result<PathBuf> {
    let absolute =
        std::path::absolute(path).context("the current directory is gone: change to another")?;
    let Some(name) = absolute.file_name() else {
        bail!("{} cannot be a mount point: choose a directory below it", path.display());
    };
    let parent = absolute.parent().unwrap_or(Path::new("/"));
    let parent = parent.canonicalize().with_context(|| {
        format!("mount point {} does not exist: create it with mkdir -p", path.display())
    })?;
    let place = parent.join(name);
    match std::fs::symlink_metadata(&place) {
        Ok(metadata) if metadata.is_symlink() => place
            .canonicalize()
            .with_context(|| format!("mount point {} is a broken link", path.display())),
        _ => Ok(place),
    }
}

/// Takes a dead mount of ours away; refuses anything else that is mounted there by FUSE.
fn clear(place: &Path, fstype: &OsStr) -> Result<()> {
    if !fstype.as_bytes().starts_with(b"fuse") {
        return Ok(());
    }
    let shown = place.display();
    // Attributes the kernel may remember of a dead mount, too; this is always asked.
    match rustix::fs::statfs(place).map_err(rustix::io::Errno::raw_os_error) {
        Err(libc::ENOTCONN | libc::ECONNABORTED) if fstype == FSTYPE => {
            tracing::info!("{shown} had a mount whose agent is dead: unmounted");
            unmount(place)
                .with_context(|| format!("cannot unmount the dead mount: run `umount -l {shown}`"))
        }
        Err(libc::ENOTCONN | libc::ECONNABORTED) => {
            bail!(
                "{shown} has a dead mount (transport endpoint is not connected): run `umount -l {shown}`"
            )
        }
        _ if fstype == FSTYPE => {
            bail!("a DVS is mounted at {shown} already: stop it or run `umount {shown}`")
        }
        _ => Ok(()),
    }
}

/// File system type of what is mounted on top at `place`, from the text of a mountinfo file (proc(5)).
fn top_mount(mountinfo: &[u8], place: &Path) -> Option<OsString> {
    mountinfo.split(|byte| *byte == b'\n').rev().find_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let at = unescape(words.nth(4)?);
        let fstype = words.skip_while(|word| *word != b"-").nth(1)?;
        (at == place.as_os_str().as_bytes()).then(|| OsString::from_vec(fstype.to_vec()))
    })
}

/// Undoes the octal escapes (`\040` for a blank) of a mountinfo field.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Mounts at `place` with the system call. `None` if that is not allowed: then fusermount3 may be.
pub(crate) fn mount(place: &Path, wanted: Wanted<'_>) -> Result<Option<OwnedFd>> {
    let Some(device) = open_device()? else {
        return Ok(None);
    };
    let root_mode = std::fs::metadata(place).context("mount point")?.mode();
    let data = format!(
        "fd={},rootmode={root_mode:o},user_id={},group_id={},allow_other,max_read={}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        wanted.max_read,
    );
    let data = CString::new(data).expect("numbers have no NUL");
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    match rustix::mount::mount(wanted.name, place, FSTYPE, flags, Some(&*data)) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::PERM) => Ok(None),
        Err(Errno::NODEV) => bail!("this kernel has no FUSE: load it with `modprobe fuse`"),
        Err(error) => Err(anyhow!(error).context(format!("cannot mount at {}", place.display()))),
    }
}

/// `/dev/fuse`, closed at exec. `None` if it is there but not for us.
fn open_device() -> Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(file) => Ok(Some(file)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) if !rustix::process::geteuid().is_root() => Ok(None),
            Some(libc::EACCES | libc::EPERM) => {
                bail!(
                    "{DEVICE} is not accessible: allow this container the device (docker: --device {DEVICE})"
                )
            }
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => bail!(
                "{DEVICE} is missing: load the kernel module with `modprobe fuse`, or give this container the device \
                 (docker: --device {DEVICE} --cap-add SYS_ADMIN)"
            ),
            _ => Err(anyhow!(error).context(format!("cannot open {DEVICE}"))),
        },
    }
}

/// Takes the mount away; programs that use it keep what they have open.
pub(crate) fn unmount(place: &Path) -> Result<()> {
    match rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Somebody else was faster.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::PERM) => {
            let status = std::process::Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(place)
                .status();
            let status = status
                .context("unmounting needs root or the program fusermount3 (package fuse3)")?;
            ensure!(status.success(), "fusermount3 could not unmount {}", place.display());
            Ok(())
        }
        Err(error) => Err(anyhow!(error).context(format!("cannot unmount {}", place.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOUNTINFO: &[u8] = b"22 1 0:21 / / rw,relatime - ext4 /dev/vda rw\n\
        30 22 0:30 / /dvs rw,nosuid shared:1 - fuse.dvs dvs rw,user_id=0\n\
        31 22 0:31 / /a\\040b rw - tmpfs tmpfs rw\n\
        32 31 0:32 / /a\\040b rw - fuse.other x rw\n";

    #[test]
    fn the_top_mount_of_a_place_is_found() {
        let check = |place: &str, expected: Option<&str>| {
            assert_eq!(
                top_mount(MOUNTINFO, Path::new(place)).as_deref(),
                expected.map(OsStr::new),
                "{place}"
            );
        };
        check("/dvs", Some("fuse.dvs"));
        check("/a b", Some("fuse.other"));
        check("/", Some("ext4"));
        check("/nothing", None);
    }

    #[test]
    fn a_place_that_cannot_be_used_is_told_in_one_sentence() {
        let check = |path: &Path, part: &str| {
            let error = prepare(path).expect_err("must be refused");
            let text = format!("{error:#}");
            assert!(text.contains(part) && !text.contains('\n'), "{text}");
        };
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        check(&place.path().join("none"), "mkdir");
        check(&place.path().join("none/below"), "mkdir -p");
        check(&file, "not a directory");
        check(Path::new("/"), "choose a directory below it");
    }

    #[test]
    fn a_link_to_a_directory_is_followed() {
        let place = tempfile::tempdir().unwrap();
        let real = place.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, place.path().join("link")).unwrap();
        assert_eq!(prepare(&place.path().join("link")).unwrap(), real);
    }

    proptest! {
        #[test]
        fn no_mountinfo_makes_the_reader_panic(text: Vec<u8>, field in "(\\\\[0-9]{0,4}|a)*") {
            top_mount(&text, Path::new("/"));
            unescape(field.as_bytes());
        }
    }
}
