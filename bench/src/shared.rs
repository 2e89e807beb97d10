//! Ping-pong over shared memory: two words and two futexes, the least that two processes need.
#![expect(unsafe_code, reason = "maps a page that two processes share")]

use crate::cpus::Layout;
use crate::peer::Peer;
use crate::rounds::Subject;
use crate::stream::MESSAGE;
use anyhow::{Result, bail};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::thread::futex;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

/// One direction: the message, and how many have been written so far.
#[repr(C, align(128))]
#[derive(Debug)]
struct Lane {
    message: [AtomicU64; MESSAGE / 8],
    written: AtomicU32,
    sleeping: AtomicU32,
}

/// The shared page.
#[repr(C)]
#[derive(Debug)]
struct Page {
    ping: Lane,
    pong: Lane,
}

/// Looks at the other side's word before going to sleep: about as long as a wake-up costs.
pub(crate) const SPINS: u32 = 4000;

impl Lane {
    fn write(&self, message: &[u64; MESSAGE / 8]) {
        for (to, from) in self.message.iter().zip(message) {
            to.store(*from, Relaxed);
        }
        self.written.fetch_add(1, SeqCst);
        if self.sleeping.load(SeqCst) != 0 {
            self.sleeping.store(0, Release);
            // A failure wakes nobody; the sleeper's own time limit would show it.
            futex::wake(&self.sleeping, futex::Flags::empty(), 1).ok();
        }
    }

    /// Waits for message number `number`.
    fn read(&self, number: u32, spins: u32) -> Result<[u64; MESSAGE / 8]> {
        while !self.is_there(number, spins) {
            self.sleeping.store(1, SeqCst);
            if self.written.load(SeqCst) == number {
                break;
            }
            match futex::wait(&self.sleeping, futex::Flags::empty(), 1, None) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => bail!("futex wait: {error}"),
            }
        }
        self.sleeping.store(0, Relaxed);
        Ok(std::array::from_fn(|index| self.message[index].load(Relaxed)))
    }

    fn is_there(&self, number: u32, spins: u32) -> bool {
        (0..spins).any(|_| {
            std::hint::spin_loop();
            self.written.load(Acquire) == number
        })
    }
}

fn map(memory: &OwnedFd) -> Result<&'static Page> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice takes no memory from anyone.
    let page = unsafe {
        mmap(std::ptr::null_mut(), size_of::<Page>(), protection, MapFlags::SHARED, memory, 0)?
    };
    // SAFETY: the mapping is aligned to a page, large enough, zeroed, never unmapped, and `Page` is all atomics.
    Ok(unsafe { &*page.cast::<Page>() })
}

/// Memory that two processes can share, with something in it; never unmapped.
pub(crate) fn bytes(len: usize) -> Result<&'static [u8]> {
    let memory = memfd_create("bench", MemfdFlags::CLOEXEC)?;
    rustix::io::write(&memory, &vec![7; len])?;
    let flags = MapFlags::SHARED | MapFlags::POPULATE;
    // SAFETY: a new mapping at an address of the kernel's choice takes no memory from anyone.
    let start = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, flags, &memory, 0)? };
    // SAFETY: the mapping has `len` bytes that nobody writes to any more, and is never unmapped.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<u8>(), len) })
}

/// A peer at the other end of a shared page.
#[derive(Debug)]
pub(crate) struct Shared {
    page: &'static Page,
    sent: u32,
    spins: u32,
    peer: Peer,
}

impl Shared {
    /// `spins`: looks before going to sleep, [`SPINS`] or none.
    pub(crate) fn start(spins: u32) -> Result<Shared> {
        let memory = memfd_create("bench", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, size_of::<Page>() as u64)?;
        let page = map(&memory)?;
        let kind = if spins == 0 { "futex" } else { "shared" };
        let input = memory.as_fd().try_clone_to_owned()?;
        let peer = Peer::start(kind, &[], input.into(), Stdio::null())?;
        Ok(Shared { page, sent: 0, spins, peer })
    }
}

impl Subject for Shared {
    fn name(&self) -> String {
        if self.spins == 0 { "futex" } else { "shared memory" }.to_owned()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.peer.pin(layout)
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        let mut message = [7; MESSAGE / 8];
        let start = Instant::now();
        for _ in 0..count {
            self.sent = self.sent.wrapping_add(1);
            self.page.ping.write(&message);
            message = self.page.pong.read(self.sent, self.spins)?;
        }
        Ok(start.elapsed())
    }
}

/// Sends back each message; ends only by being killed.
pub(crate) fn echo(memory: &OwnedFd, spins: u32) -> Result<()> {
    let page = map(memory)?;
    let mut number: u32 = 0;
    loop {
        number = number.wrapping_add(1);
        page.pong.write(&page.ping.read(number, spins)?);
    }
}
