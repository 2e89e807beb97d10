//! What /proc says of a thread that waits for our answer.
//!
//! It sleeps until it is answered, so its number cannot be another thread's by now and what is read cannot change
//! meanwhile, except that signals come. Nothing is cached: a program started by newgrp(1) has the pid, start time and uid
//! of the one before, but other groups.

use crate::limits::STATUS_SIZE;
use crate::names::Progress;
use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;

/// The text of a `/proc/<tid>/status` (proc_pid_status(5)), from its start.
#[derive(Debug)]
pub(crate) struct Status {
    bytes: [u8; STATUS_SIZE],
    len: usize,
}

/// Signals that do nothing to who has no handler for them (signal(7)), or stop it.
const HARMLESS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

impl Status {
    /// `None` if nothing is known of thread `tid`: it is of another pid namespace, or gone.
    pub(crate) fn read(tid: u32) -> Option<Status> {
        if tid == 0 || !proc_is_ours() {
            return None;
        }
        let mut status = Status { bytes: [0; STATUS_SIZE], len: 0 };
        status.fill(tid).inspect_err(|error| tracing::debug!(%error, tid, "not known")).ok()?;
        Some(status)
    }

    fn fill(&mut self, tid: u32) -> std::io::Result<()> {
        let mut file = File::open(format!("/proc/{tid}/status"))?;
        loop {
            let more = file.read(&mut self.bytes[self.len..])?;
            self.len += more;
            if more == 0 {
                return Ok(());
            }
        }
    }

    /// What stands behind `name` at the start of a line, or nothing.
    fn line(&self, name: &[u8]) -> &[u8] {
        let mut lines = self.bytes[..self.len].split(|byte| *byte == b'\n');
        lines.find_map(|line| line.strip_prefix(name)).unwrap_or_default()
    }

    /// The supplementary groups.
    pub(crate) fn groups(&self) -> impl Iterator<Item = u32> {
        let words = self.line(b"Groups:").split(u8::is_ascii_whitespace);
        words.filter_map(|word| str::from_utf8(word).ok()?.parse().ok())
    }

    /// Has it got a signal that ends it?
    pub(crate) fn is_dying(&self) -> bool {
        let set = |name: &[u8]| {
            let text = str::from_utf8(self.line(name)).unwrap_or_default();
            u64::from_str_radix(text.trim(), 16).unwrap_or(0)
        };
        let harmless = HARMLESS.iter().fold(0, |all, signal| all | 1 << (signal - 1));
        let kill = 1 << (libc::SIGKILL - 1);
        let pending = set(b"SigPnd:") | set(b"ShdPnd:");
        let survived = set(b"SigBlk:") | set(b"SigIgn:") | set(b"SigCgt:") | harmless;
        pending & (!survived | kill) != 0
    }
}

/// How far thread `tid` has come that was sent an answer: proc_pid_stat(5), proc_pid_wchan(5), and its CPU time as
/// Documentation/scheduler/sched-stats.rst has it.
pub(crate) fn progress(tid: u32) -> Progress {
    match std::fs::read(format!("/proc/{tid}/stat")) {
        Ok(stat) => match state(&stat) {
            Some(b'R') => {
                let text = std::fs::read_to_string(format!("/proc/{tid}/schedstat"));
                let used = text.ok().and_then(|text| text.split(' ').next()?.parse().ok());
                used.map_or(Progress::Unknown, Progress::Runs)
            }
            // Taking up an answer may wait for memory, but not for these.
            Some(b'D') => {
                let place = std::fs::read(format!("/proc/{tid}/wchan")).unwrap_or_default();
                let is_later = PLACES_LATER.iter().any(|later| place.starts_with(later));
                if is_later { Progress::Past } else { Progress::Unknown }
            }
            Some(_) => Progress::Past,
            None => Progress::Unknown,
        },
        // Who may not be seen is not gone (hidepid of proc(5)).
        Err(_) => {
            let pid = i32::try_from(tid).ok().and_then(rustix::process::Pid::from_raw);
            let found = pid.map(rustix::process::test_kill_process);
            let is_gone = found == Some(Err(rustix::io::Errno::SRCH));
            if is_gone { Progress::Gone } else { Progress::Unknown }
        }
    }
}

/// Where a thread waits in the kernel for a directory's lock, or for a FUSE request.
const PLACES_LATER: [&[u8]; 2] = [b"rwsem_", b"request_wait_answer"];

/// The letter behind the name, which may have blanks and brackets in it.
fn state(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2).copied()
}

/// Is /proc that of our pid namespace? If not, a pid names another process there.
pub(crate) fn proc_is_ours() -> bool {
    static OURS: OnceLock<bool> = OnceLock::new();
    *OURS.get_or_init(|| {
        let own = std::process::id().to_string();
        let ours = std::fs::read_link("/proc/self").is_ok_and(|target| target.as_os_str() == own.as_str());
        if !ours {
            tracing::warn!(
                "/proc is not that of this pid namespace: supplementary groups are not seen, and programs that are \
                 killed while a server does not answer stay; mount it anew"
            );
        }
        ours
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn status(text: &[u8]) -> Status {
        let mut status = Status { bytes: [0; STATUS_SIZE], len: text.len() };
        status.bytes[..text.len()].copy_from_slice(text);
        status
    }

    #[test]
    fn the_groups_are_read_from_their_line() {
        let check = |text: &str, expected: &[u32]| {
            assert_eq!(status(text.as_bytes()).groups().collect::<Vec<_>>(), expected, "{text:?}");
        };
        check("Name:\tsh\nTgid:\t7\nGroups:\t4 24 27 \nNStgid:\t7\n", &[4, 24, 27]);
        check("Name:\tGroups:\nGroups:\t \n", &[]);
        check("Groups:\t1 2 x 99999999999 3", &[1, 2, 3]);
        check("", &[]);
    }

    #[test]
    fn a_signal_kills_unless_it_is_blocked_ignored_caught_or_harmless() {
        let check = |pending: u64, blocked: u64, ignored: u64, caught: u64, expected: bool| {
            for (own, shared) in [(pending, 0), (0, pending)] {
                let text = format!(
                    "Name:\tx\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n\
                     SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
                );
                assert_eq!(status(text.as_bytes()).is_dying(), expected, "{text}");
            }
        };
        let bit = |signal: i32| 1u64 << (signal - 1);
        let (kill, term, alarm) = (bit(libc::SIGKILL), bit(libc::SIGTERM), bit(libc::SIGALRM));
        check(0, 0, 0, 0, false);
        check(kill, 0, 0, 0, true);
        check(kill, u64::MAX, u64::MAX, u64::MAX, true);
        check(term, 0, 0, 0, true);
        check(term | alarm, term, 0, alarm, false);
        check(term | alarm, 0, term, 0, true);
        check(bit(libc::SIGCHLD) | bit(libc::SIGTSTP), 0, 0, 0, false);
    }

    #[test]
    fn a_thread_that_is_gone_is_not_known() {
        assert!(Status::read(u32::MAX).is_none());
        assert!(Status::read(0).is_none());
        assert!(!Status::read(std::process::id()).unwrap().is_dying());
    }

    #[test]
    fn a_thread_is_past_its_answer_when_it_sleeps_or_is_gone() {
        assert_eq!(state(b"7 (a) R (b)) S 1 2"), Some(b'S'));
        assert_eq!((state(b"7 (a"), state(b"7 (a)"), state(b"")), (None, None, None));
        assert_eq!(progress(i32::MAX.cast_unsigned()), Progress::Gone);
        assert_eq!(progress(u32::MAX), Progress::Unknown);
        let own = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        assert!(matches!(progress(own), Progress::Runs(1..)));
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()).unwrap();
            ended.recv().ok();
        });
        let tid = told.recv().unwrap();
        while progress(tid) != Progress::Past {}
        drop(end);
        sleeper.join().unwrap();
        while progress(tid) != Progress::Gone {}
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in proptest::collection::vec(any::<u8>(), 0..STATUS_SIZE)) {
            let status = status(&text);
            status.groups().for_each(drop);
            status.is_dying();
        }
    }
}
