//! Ping-pong over the queues of Linux: POSIX message queues and SysV messages.
#![expect(unsafe_code, reason = "libc is the interface of both")]

use crate::cpus::Layout;
use crate::peer::Peer;
use crate::rounds::Subject;
use crate::stream::MESSAGE;
use anyhow::{Context, Result};
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A POSIX queue; its descriptor is one of files (mq_overview(7)).
#[derive(Debug)]
struct Posix(OwnedFd);

/// A SysV queue, removed when dropped by its maker.
#[derive(Debug)]
struct SysV {
    id: libc::c_int,
    is_ours: bool,
}

/// A SysV message (msgop(2)).
#[repr(C)]
struct Text {
    kind: libc::c_long,
    bytes: [u8; MESSAGE],
}

/// One direction of a ping-pong.
trait Queue {
    fn send(&self, message: &[u8; MESSAGE]) -> Result<()>;
    fn receive(&self) -> Result<[u8; MESSAGE]>;
}

impl Posix {
    /// A queue that only its descriptor names.
    fn create() -> Result<Posix> {
        let name = std::ffi::CString::new(format!("/bench-{}", std::process::id()))?;
        // SAFETY: an all-zero mq_attr is a valid value.
        let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
        attributes.mq_maxmsg = 1;
        attributes.mq_msgsize = libc::c_long::try_from(MESSAGE)?;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        // SAFETY: the name ends with NUL, and the attributes outlive the call.
        let fd = unsafe { libc::mq_open(name.as_ptr(), flags, 0o600, &raw const attributes) };
        if fd < 0 {
            return Err(Error::last_os_error()).context("mq_open");
        }
        // SAFETY: the name ends with NUL.
        let unlinked = unsafe { libc::mq_unlink(name.as_ptr()) };
        debug_assert_eq!(unlinked, 0, "it has just been made");
        // SAFETY: a descriptor that was just opened and belongs to nobody else.
        Ok(Posix(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl Queue for Posix {
    fn send(&self, message: &[u8; MESSAGE]) -> Result<()> {
        // SAFETY: the bytes outlive the call.
        let sent =
            unsafe { libc::mq_send(self.0.as_raw_fd(), message.as_ptr().cast(), MESSAGE, 0) };
        if sent < 0 { Err(Error::last_os_error()).context("mq_send") } else { Ok(()) }
    }

    fn receive(&self) -> Result<[u8; MESSAGE]> {
        let mut message = [0; MESSAGE];
        let none = std::ptr::null_mut();
        // SAFETY: as many bytes as are said may be written.
        let length = unsafe {
            libc::mq_receive(self.0.as_raw_fd(), message.as_mut_ptr().cast(), MESSAGE, none)
        };
        if length < 0 { Err(Error::last_os_error()).context("mq_receive") } else { Ok(message) }
    }
}

impl SysV {
    fn create() -> Result<SysV> {
        // SAFETY: no memory is involved.
        let id = unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) };
        if id < 0 {
            return Err(Error::last_os_error()).context("msgget");
        }
        Ok(SysV { id, is_ours: true })
    }
}

impl Queue for SysV {
    fn send(&self, message: &[u8; MESSAGE]) -> Result<()> {
        let text = Text { kind: 1, bytes: *message };
        // SAFETY: a msgbuf with as many bytes as are said, which outlives the call.
        let sent = unsafe { libc::msgsnd(self.id, (&raw const text).cast(), MESSAGE, 0) };
        if sent < 0 { Err(Error::last_os_error()).context("msgsnd") } else { Ok(()) }
    }

    fn receive(&self) -> Result<[u8; MESSAGE]> {
        let mut text = Text { kind: 0, bytes: [0; MESSAGE] };
        // SAFETY: a msgbuf with room for as many bytes as are said.
        let length = unsafe { libc::msgrcv(self.id, (&raw mut text).cast(), MESSAGE, 1, 0) };
        if length < 0 { Err(Error::last_os_error()).context("msgrcv") } else { Ok(text.bytes) }
    }
}

impl Drop for SysV {
    fn drop(&mut self) {
        if self.is_ours {
            // SAFETY: no memory is involved.
            unsafe { libc::msgctl(self.id, libc::IPC_RMID, std::ptr::null_mut()) };
        }
    }
}

/// A peer between two queues.
struct Queues<Q> {
    /// First, so that it ends before the queues do.
    peer: Peer,
    name: &'static str,
    there: Q,
    back: Q,
}

pub(crate) fn posix() -> Result<Box<dyn Subject>> {
    let (there, back) = (Posix::create()?, Posix::create()?);
    let input = there.0.try_clone()?;
    let peer = Peer::start("posix-queues", &[], input.into(), back.0.try_clone()?.into())?;
    Ok(Box::new(Queues { name: "posix mq", there, back, peer }))
}

pub(crate) fn sysv() -> Result<Box<dyn Subject>> {
    let (there, back) = (SysV::create()?, SysV::create()?);
    let ids = [there.id, back.id].map(|id| id.to_string());
    let peer = Peer::start("sys-v-queues", &ids, Stdio::null(), Stdio::null())?;
    Ok(Box::new(Queues { name: "sysv msg", there, back, peer }))
}

impl<Q: Queue> Subject for Queues<Q> {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.peer.pin(layout)
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        let mut message = [7; MESSAGE];
        let start = Instant::now();
        for _ in 0..count {
            self.there.send(&message)?;
            message = self.back.receive()?;
        }
        Ok(start.elapsed())
    }
}

fn echo(there: &impl Queue, back: &impl Queue) -> Result<()> {
    loop {
        back.send(&there.receive()?)?;
    }
}

/// The other side of [`posix`]; ends only by being killed.
pub(crate) fn echo_posix(input: OwnedFd, output: OwnedFd) -> Result<()> {
    echo(&Posix(input), &Posix(output))
}

/// The other side of [`sysv`], with the numbers of the queues; ends when they are removed.
pub(crate) fn echo_sysv(ids: &[i32]) -> Result<()> {
    let [there, back] = ids else { anyhow::bail!("two queues are needed") };
    let queue = |id: &i32| SysV { id: *id, is_ours: false };
    echo(&queue(there), &queue(back))
}
