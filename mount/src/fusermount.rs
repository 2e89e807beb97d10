//! Mounting as an ordinary user: fusermount3(1), which is set-user-id root, mounts and hands `/dev/fuse` over.

use crate::mountpoint::Wanted;
use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A mount that fusermount3 has made.
#[derive(Debug)]
pub(crate) struct Helped {
    pub(crate) descriptor: OwnedFd,
    /// Our end of its socket: it stays, and unmounts when this is closed, so also if this process dies.
    pub(crate) helper: OwnedFd,
}

/// Mounts at `place`.
///
/// # Errors
/// One sentence: the program is missing, or what it says.
pub(crate) fn mount(place: &Path, wanted: Wanted<'_>) -> Result<Helped> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context("no socket for fusermount3")?;
    let options = format!(
        "fsname={},subtype=dvs,allow_other,nodev,nosuid,max_read={},auto_unmount",
        escaped(wanted.name),
        wanted.max_read
    );
    // The socket is its standard input: so it is passed on without a descriptor that others could inherit.
    let mut child = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(place)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stderr(Stdio::piped())
        .spawn()
        .context(
            "mounting needs root (CAP_SYS_ADMIN), or the program fusermount3 (package fuse3)",
        )?;
    match receive(&ours) {
        Ok(descriptor) => Ok(Helped { descriptor, helper: ours }),
        Err(error) => {
            let said = said(&mut child);
            Err(anyhow!(
                "fusermount3 did not mount, which needs `user_allow_other` in /etc/fuse.conf: {}",
                if said.is_empty() { format!("{error:#}") } else { said }
            ))
        }
    }
}

/// A comma would begin another option.
fn escaped(name: &str) -> String {
    name.replace('\\', "\\\\").replace(',', "\\,")
}

/// What a program that has failed says, in one line.
fn said(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(stderr) = &mut child.stderr {
        // What can be read is all that there is to say.
        stderr.read_to_string(&mut text).ok();
    }
    child.wait().ok();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The descriptor that comes with one byte.
fn receive(socket: &OwnedFd) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)
    })
    .context("nothing comes from fusermount3")?;
    ensure!(received.bytes == 1, "fusermount3 has ended");
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.context("fusermount3 has sent no descriptor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_option() {
        assert_eq!(escaped(r"a,b\c"), r"a\,b\\c");
    }

    #[test]
    fn a_helper_that_ends_or_sends_nothing_is_an_error() {
        let pair = || {
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
        };
        let (ours, theirs) = pair();
        drop(theirs);
        assert!(receive(&ours).unwrap_err().to_string().contains("ended"));
        let (ours, theirs) = pair();
        rustix::io::write(&theirs, b"x").unwrap();
        assert!(receive(&ours).unwrap_err().to_string().contains("no descriptor"));
    }
}
