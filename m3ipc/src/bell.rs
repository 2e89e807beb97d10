//! A bell wakes a receiver that may have thousands of peers, and no peer can muffle it for another.
//!
//! The owner's page holds one word, the *ticket*. Even: awake. Odd: about to sleep, or asleep on it.
//! Peers map the page read-only. Ringing is: if the ticket is odd, FUTEX_WAKE it; if that woke nobody,
//! the owner was between deciding to sleep and sleeping, so look again. The owner looks for news
//! after it has made the ticket odd, and peers post news before they look at the ticket, so news is never missed.
//! One that has been woken and has no CPU yet sleeps on the same ticket: a ringer remembers for which it has woken
//! somebody, and wakes nobody twice for one.
//!
//! Any peer can sleep on the word as well, and be taken for its owner; so all who do are woken, not one. And it can let
//! the owner sleep on another word (FUTEX_REQUEUE asks only for a mapping to read). So an owner that has peers of other
//! users than its own ([`Bell::beware_of`]) does not rely on being rung: it looks by itself now and then, soon after it
//! has found something, seldom when it is idle.
//!
//! A second word counts the threads that look for news in the sleeping owner's place ([`Bell::watch`]): while there
//! are some, peers wake nobody. A watcher looks once more after it has taken itself off.
#![expect(unsafe_code, reason = "the word lives in memory shared with other processes")]

use crate::errno::IpcError;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use core::time::Duration;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;

const PAGE: usize = 4096;
/// Where in the page the watchers are counted; the ticket, which every peer reads, has its cache line for itself.
const WATCHERS_AT: usize = 128;
/// Looks at the ticket before ringing gives up for now: the owner is stopped, killed, or its CPU is taken. On a busy
/// machine giving the CPU away once can take milliseconds, and whoever rings may have others to serve.
const LOOKS_MAX: u32 = LOOKS_BUSY + 4;
/// Looks when it is tried again.
const LOOKS_AGAIN: u32 = 4;
/// Looks without giving the CPU away: the owner's way from deciding to sleeping is about this long.
const LOOKS_BUSY: u32 = 50;
/// How long a wary owner sleeps before it looks by itself; the next time four times as long, if it has found nothing.
const NAP: Duration = Duration::from_millis(5);
/// So many times: then every 1.28 s. What a peer can take from others is so much of their time.
const NAPS: u32 = 4;
/// All who sleep, in what futex(2) takes for a number of them.
const ALL: u32 = i32::MAX as u32;

/// The owner's side.
#[derive(Debug)]
pub struct Bell {
    page: Page,
    rung: Rung,
    /// Some of the peers may be hostile.
    is_wary: AtomicBool,
    /// How many times it has looked by itself, and in vain, since it was rung.
    naps: AtomicU32,
}

/// A peer's side: it can ring, nothing else.
#[derive(Debug)]
pub struct Ringer {
    page: Page,
    rung: Rung,
}

/// The ticket of the last sleep that one side has ended. (Tickets come again after 2^31 sleeps.)
#[derive(Debug)]
pub(crate) struct Rung(AtomicU32);

impl Rung {
    pub(crate) const fn never() -> Rung {
        Rung(AtomicU32::new(0))
    }

    /// The bell is another one now.
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Bell {
    /// Makes a bell, and the descriptor to give to peers: sealed, so that nobody else can map it writable.
    ///
    /// # Errors
    /// [`IpcError::Exhausted`] if the kernel has no memory or descriptor for it.
    pub fn create() -> Result<(Bell, OwnedFd), IpcError> {
        let fd =
            rustix::fs::memfd_create(c"dvs-bell", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
                .map_err(|_| IpcError::Exhausted)?;
        rustix::fs::ftruncate(&fd, PAGE as u64).map_err(|_| IpcError::Exhausted)?;
        let page = Page::map(fd.as_fd(), ProtFlags::READ | ProtFlags::WRITE)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|_| IpcError::Exhausted)?;
        let (rung, is_wary, naps) = (Rung::never(), AtomicBool::new(false), AtomicU32::new(0));
        Ok((Bell { page, rung, is_wary, naps }, fd))
    }

    /// Announces sleep. Look for news once more after this, then [`Bell::sleep`] or [`Bell::awake`].
    pub fn prepare(&self) -> u32 {
        let ticket = self.page.word().load(Ordering::Relaxed) | 1;
        self.page.word().store(ticket, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        ticket
    }

    /// Sleeps until rung or until `timeout` is over, then is awake. Spurious returns happen.
    pub fn sleep(&self, ticket: u32, timeout: Option<Duration>) {
        let nap = self.nap();
        let is_nap = nap.is_some_and(|nap| timeout.is_none_or(|timeout| nap < timeout));
        let timeout = if is_nap { nap } else { timeout }.map(timespec);
        // Every outcome (woken, timed out, interrupted, rung before) means the same: look again.
        let slept = futex::wait(self.page.word(), futex::Flags::empty(), ticket, timeout.as_ref());
        if slept != Err(Errno::TIMEDOUT) {
            self.naps.store(0, Ordering::Relaxed);
        } else if is_nap {
            self.naps.fetch_add(1, Ordering::Relaxed);
        }
        self.awake();
    }

    /// Says after a sleep whether there was news: who has found some by itself has been robbed of a ring, and looks again
    /// soon.
    pub fn found(&self, has_news: impl FnOnce() -> bool) {
        if self.naps.load(Ordering::Relaxed) != 0 && has_news() {
            self.naps.store(0, Ordering::Relaxed);
        }
    }

    /// A process of this user gets the bell. Of one's own, and of the superuser, there is no need to be wary: those could
    /// stop the owner as well.
    pub fn beware_of(&self, uid: u32) {
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            self.beware();
        }
    }

    /// Anybody may get the bell.
    pub fn beware(&self) {
        self.is_wary.store(true, Ordering::Relaxed);
    }

    /// How long to sleep at most.
    fn nap(&self) -> Option<Duration> {
        let is_wary = self.is_wary.load(Ordering::Relaxed);
        is_wary.then(|| NAP * 4u32.pow(self.naps.load(Ordering::Relaxed).min(NAPS)))
    }

    /// Takes the announcement back.
    pub fn awake(&self) {
        let next = (self.page.word().load(Ordering::Relaxed) | 1).wrapping_add(1);
        self.page.word().store(next, Ordering::SeqCst);
    }

    /// Rings one's own bell, from another thread, whether somebody watches or not.
    pub fn ring(&self) -> bool {
        // What the owner is told of may be under a lock, or in any kind of word.
        fence(Ordering::SeqCst);
        self.page.ring(LOOKS_MAX, false, &self.rung)
    }

    /// Another thread looks for news itself: until the guard is dropped, peers do not wake the owner. Look for news
    /// once more after that, and [`Bell::ring`] if there is any.
    pub fn watch(&self) -> Watch<'_> {
        self.page.watchers().fetch_add(1, Ordering::SeqCst);
        Watch { bell: self }
    }
}

/// A thread that looks for news in the owner's place.
#[derive(Debug)]
pub struct Watch<'a> {
    bell: &'a Bell,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.bell.page.watchers().fetch_sub(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

impl Ringer {
    /// Maps a peer's bell.
    ///
    /// # Errors
    /// [`IpcError::Protocol`] if `fd` is no bell.
    pub fn map(fd: BorrowedFd<'_>) -> Result<Ringer, IpcError> {
        check_size(fd, PAGE as u64)?;
        Page::map(fd, ProtFlags::READ).map(|page| Ringer { page, rung: Rung::never() })
    }

    /// Wakes the owner if it sleeps. Call it after the news is written, with `SeqCst`, as a channel's is: then either
    /// the owner sees the news, or this sees that it sleeps. `false`: the owner announced sleep but does not get on
    /// with it (stopped, or out of CPU): ring again in a while.
    #[must_use]
    pub fn ring(&self) -> bool {
        self.page.ring(LOOKS_MAX, true, &self.rung)
    }

    /// Address of the mapping, for a client that keeps it as a number; see [`Ringer::from_address`].
    pub(crate) fn into_address(self) -> usize {
        let address = self.page.base.as_ptr() as usize;
        core::mem::forget(self);
        address
    }

    /// Rings a bell kept as a number. `again`: it has been rung and not heard, so a few looks will do.
    pub(crate) fn ring_at(address: usize, rung: &Rung, again: bool) -> bool {
        let Some(base) = NonNull::new(address as *mut u8) else { return false };
        let page = core::mem::ManuallyDrop::new(Page { base });
        page.ring(if again { LOOKS_AGAIN } else { LOOKS_MAX }, true, rung)
    }

    /// Replaces the mapping at `address` by the bell `fd`, in one step: a thread that is ringing there goes on
    /// with the new bell.
    ///
    /// # Safety
    /// `address` came from [`Ringer::into_address`].
    pub(crate) unsafe fn replace(address: usize, fd: BorrowedFd<'_>) -> Result<(), IpcError> {
        check_size(fd, PAGE as u64)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the caller's contract: the page is a bell's mapping, which is only read atomically.
        let base =
            unsafe { rustix::mm::mmap(address as *mut _, PAGE, ProtFlags::READ, flags, fd, 0) };
        base.map(|_| ()).map_err(|_| IpcError::Exhausted)
    }
}

/// One shared page, unmapped when dropped.
#[derive(Debug)]
struct Page {
    base: NonNull<u8>,
}

// SAFETY: the page is only touched through its atomic word.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    fn map(fd: BorrowedFd<'_>, protection: ProtFlags) -> Result<Page, IpcError> {
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            rustix::mm::mmap(core::ptr::null_mut(), PAGE, protection, MapFlags::SHARED, fd, 0)
        };
        let base = NonNull::new(base.map_err(|_| IpcError::Exhausted)?.cast());
        base.map(|base| Page { base }).ok_or(IpcError::Exhausted)
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the page is mapped as long as `self`, aligned, and every process uses this word atomically.
        unsafe { self.base.cast().as_ref() }
    }

    fn watchers(&self) -> &AtomicU32 {
        // SAFETY: the page is mapped as long as `self`, and this is inside it.
        let at = unsafe { self.base.add(WATCHERS_AT) };
        // SAFETY: aligned, and every process uses this word atomically.
        unsafe { at.cast().as_ref() }
    }

    /// `for_watcher`: a thread that watches will find the news.
    fn ring(&self, looks: u32, for_watcher: bool, rung: &Rung) -> bool {
        for look in 0..looks {
            if for_watcher && self.watchers().load(Ordering::SeqCst) != 0 {
                return true;
            }
            let ticket = self.word().load(Ordering::SeqCst);
            if ticket & 1 == 0 || rung.0.load(Ordering::Relaxed) == ticket {
                return true;
            }
            if futex::wake(self.word(), futex::Flags::empty(), ALL).is_ok_and(|woken| woken > 0) {
                rung.0.store(ticket, Ordering::Relaxed);
                return true;
            }
            if look < LOOKS_BUSY { core::hint::spin_loop() } else { rustix::thread::sched_yield() }
        }
        false
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `map` and nothing refers to it any more.
        unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), PAGE) }.ok();
    }
}

/// A memfd from a peer must have exactly this size and be sealed against shrinking: else touching
/// the mapping could end the process with SIGBUS.
pub(crate) fn check_size(fd: BorrowedFd<'_>, size: u64) -> Result<(), IpcError> {
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| IpcError::Protocol)?;
    let stat = rustix::fs::fstat(fd).map_err(|_| IpcError::Protocol)?;
    let fits = u64::try_from(stat.st_size) == Ok(size);
    if fits && seals.contains(SealFlags::SHRINK) { Ok(()) } else { Err(IpcError::Protocol) }
}

/// A duration as futex(2) wants it.
pub(crate) fn timespec(duration: Duration) -> futex::Timespec {
    futex::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::ToString;
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    /// "For ever": a lost ring would show as a wait of a minute.
    const AGES: Duration = Duration::from_secs(60);

    /// Waits until `thread` of this process sleeps in futex(2).
    fn await_sleep(thread: &AtomicU32) {
        loop {
            let path = format!("/proc/self/task/{}/syscall", thread.load(Ordering::SeqCst));
            let call = std::fs::read_to_string(path).unwrap_or_default();
            if call.split(' ').next() == Some(&libc::SYS_futex.to_string()) {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Sleeps on the bell's word without being its owner, and says who that is.
    fn steal(ringer: &Ringer, ticket: u32, thief: &AtomicU32) {
        let id = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        thief.store(id, Ordering::SeqCst);
        let patience = timespec(AGES);
        futex::wait(ringer.page.word(), futex::Flags::empty(), ticket, Some(&patience)).unwrap();
    }

    #[test]
    fn one_that_has_been_woken_and_has_no_cpu_yet_is_not_rung_again() {
        let (bell, fd) = Bell::create().expect("memfd");
        let [ringer, other] = [(); 2].map(|()| Ringer::map(fd.as_fd()).expect("a bell"));
        let ticket = bell.prepare();
        let owner = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| steal(&ringer, ticket, &owner));
            await_sleep(&owner);
            assert!(ringer.ring());
        });
        // It has not got so far as to say that it is awake.
        assert!(ringer.ring());
        assert!(!other.ring(), "who has not woken it goes on trying");
        bell.awake();
        let next = bell.prepare();
        assert!(!ringer.ring(), "its next sleep is another");
        assert_ne!(ticket, next);
    }

    #[test]
    fn a_peer_that_sleeps_on_the_bell_does_not_take_its_owners_place() {
        let (bell, fd) = Bell::create().expect("memfd");
        let ringer = Ringer::map(fd.as_fd()).expect("a bell");
        let [thief, owner] = [const { AtomicU32::new(0) }; 2];
        let ticket = bell.prepare();
        std::thread::scope(|scope| {
            scope.spawn(|| steal(&ringer, ticket, &thief));
            await_sleep(&thief);
            scope.spawn(|| {
                let id = rustix::thread::gettid().as_raw_pid().cast_unsigned();
                owner.store(id, Ordering::SeqCst);
                let start = Instant::now();
                bell.sleep(ticket, Some(AGES));
                assert!(start.elapsed() < AGES);
            });
            await_sleep(&owner);
            assert!(ringer.ring());
        });
    }

    #[test]
    fn a_ring_that_a_stranger_has_taken_before_the_owner_slept_is_made_good() {
        let (bell, fd) = Bell::create().expect("memfd");
        let ringer = Ringer::map(fd.as_fd()).expect("a bell");
        bell.beware_of(rustix::process::geteuid().as_raw() + 1);
        let thief = AtomicU32::new(0);
        let ticket = bell.prepare();
        std::thread::scope(|scope| {
            scope.spawn(|| steal(&ringer, ticket, &thief));
            await_sleep(&thief);
            assert!(ringer.ring());
        });
        let start = Instant::now();
        bell.sleep(ticket, Some(AGES));
        assert!(start.elapsed() < AGES, "it looks by itself");
    }

    #[test]
    fn an_owner_that_a_stranger_has_moved_to_another_word_comes_back() {
        let (bell, fd) = Bell::create().expect("memfd");
        let ringer = Ringer::map(fd.as_fd()).expect("a bell");
        bell.beware();
        let owner = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                owner
                    .store(rustix::thread::gettid().as_raw_pid().cast_unsigned(), Ordering::SeqCst);
                // As idle as it gets, so that there is time for the theft.
                bell.naps.store(NAPS, Ordering::Relaxed);
                let start = Instant::now();
                bell.sleep(bell.prepare(), Some(AGES));
                assert!(start.elapsed() < AGES);
            });
            await_sleep(&owner);
            let elsewhere = AtomicU32::new(0);
            let (word, none) = (ringer.page.word(), futex::Flags::empty());
            assert_eq!(futex::requeue(word, none, 0, ALL, &elsewhere), Ok(1));
            assert!(!ringer.ring(), "it hears nothing");
        });
    }

    #[test]
    fn a_wary_owner_looks_seldom_when_it_finds_nothing_and_soon_when_it_does() {
        let (bell, _fd) = Bell::create().expect("memfd");
        for uid in [0, rustix::process::geteuid().as_raw()] {
            bell.beware_of(uid);
            assert_eq!(bell.nap(), None, "they could stop it anyway");
        }
        bell.beware();
        let naps = [(); 7].map(|()| {
            let nap = bell.nap().expect("it is wary").as_millis();
            bell.naps.fetch_add(1, Ordering::Relaxed);
            nap
        });
        assert_eq!(naps, [5, 20, 80, 320, 1280, 1280, 1280]);
        bell.found(|| false);
        assert_eq!(bell.nap(), Some(NAP * 256));
        bell.found(|| true);
        assert_eq!(bell.nap(), Some(NAP));
        bell.sleep(bell.prepare(), Some(Duration::ZERO));
        assert_eq!(bell.nap(), Some(NAP), "its own time is no nap");
        bell.sleep(bell.prepare(), None);
        assert_eq!(bell.nap(), Some(NAP * 4));
    }

    #[test]
    fn no_ring_is_lost_between_deciding_and_sleeping() {
        let (bell, fd) = Bell::create().expect("memfd");
        let ringer = Ringer::map(fd.as_fd()).expect("a bell");
        let news = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        const ROUNDS: u64 = 20_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    news.store(round, Ordering::SeqCst);
                    while !ringer.ring() {}
                    while news.load(Ordering::SeqCst) != 0 {
                        std::thread::yield_now();
                    }
                }
                done.store(true, Ordering::SeqCst);
                bell.ring();
            });
            let mut seen = 0;
            while !done.load(Ordering::SeqCst) {
                let ticket = bell.prepare();
                if news.swap(0, Ordering::SeqCst) != 0 {
                    seen += 1;
                    bell.awake();
                } else if !done.load(Ordering::SeqCst) {
                    // A minute is "for ever": a lost ring would show as a hang.
                    bell.sleep(ticket, Some(Duration::from_secs(60)));
                }
            }
            assert_eq!(seen, ROUNDS);
        });
    }

    #[test]
    fn peers_wake_nobody_while_somebody_watches_and_the_owner_can_still_be_rung() {
        let (bell, fd) = Bell::create().expect("memfd");
        let ringer = Ringer::map(fd.as_fd()).expect("a bell");
        let asleep = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let ticket = bell.prepare();
                asleep.store(true, Ordering::SeqCst);
                bell.sleep(ticket, Some(Duration::from_secs(60)));
                asleep.store(false, Ordering::SeqCst);
            });
            let watch = bell.watch();
            while !asleep.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            for _ in 0..1_000 {
                assert!(ringer.ring(), "the watcher looks");
            }
            assert!(asleep.load(Ordering::SeqCst), "nobody was woken");
            drop(watch);
            while !ringer.ring() {}
            while asleep.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let ticket = bell.prepare();
            let _watch = bell.watch();
            assert_eq!(ticket & 1, 1);
            bell.awake();
            assert!(bell.ring());
        });
    }

    #[test]
    fn a_peer_cannot_map_the_bell_writable() {
        let (_bell, fd) = Bell::create().expect("memfd");
        assert!(Page::map(fd.as_fd(), ProtFlags::READ | ProtFlags::WRITE).is_err());
        assert!(rustix::io::write(&fd, b"x").is_err());
    }

    #[test]
    fn a_descriptor_that_is_no_bell_is_refused() {
        let fd = rustix::fs::memfd_create(c"x", MemfdFlags::CLOEXEC).expect("memfd");
        assert_eq!(Ringer::map(fd.as_fd()).err(), Some(IpcError::Protocol));
    }
}
