//! What others feel of a neighbour: one that writes garbage over all that it shares, and honest ones that are as busy.
#![expect(unsafe_code, reason = "writes where it has no business to")]

use crate::bound::PREFIX;
use crate::cpus::Layout;
use crate::place::Place;
use crate::rounds::Subject;
use anyhow::{Context, Result, ensure};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Of each mapping so much is written over: of a channel the header, the lanes and the first payloads.
const REACH: usize = 64 << 10;

/// A thread that keeps a CPU busy until this value is dropped.
#[derive(Debug)]
pub(crate) struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// One that does `act` all the time.
    fn start(mut act: impl FnMut() + Send + 'static) -> Neighbour {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                act();
            }
        });
        Neighbour { stop, thread: Some(thread) }
    }

    /// One that computes, and writes to its own memory only.
    pub(crate) fn busy() -> Neighbour {
        let mut own = vec![0u64; REACH / 8];
        let mut random = Random::new();
        Neighbour::start(move || {
            for _ in 0..1000 {
                let at = random.next() % own.len();
                own[at] = black_box(random.word());
            }
        })
    }

    /// One that writes garbage into every page that this process can write and another has mapped.
    pub(crate) fn scribbler() -> Result<Neighbour> {
        let places = shared_places()?;
        ensure!(!places.is_empty(), "nothing is shared with anybody");
        let mut random = Random::new();
        Ok(Neighbour::start(move || {
            for (start, len) in &places {
                let at = start + random.next() % len / 8 * 8;
                // States, bits and lengths that look right get further than noise.
                let value = match random.next() % 4 {
                    0 => random.word() % 5,
                    1 => (random.word() % 5) << 20 | random.word() & 0xffff,
                    _ => random.word(),
                };
                // SAFETY: inside a writable mapping of this process, aligned; whoever shares it expects anything there.
                unsafe { std::ptr::write_volatile(at as *mut u64, value) };
            }
        }))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it does not panic");
        }
    }
}

/// Start and length of each mapping that is shared and writable.
fn shared_places() -> Result<Vec<(usize, usize)>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut places = Vec::new();
    let is_shared = |line: &&str| line.contains("/memfd:dvs-channel") && line.contains(" rw-s ");
    for line in maps.lines().filter(is_shared) {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let (start, end) = range.context("a line of /proc/self/maps begins with a range")?;
        let (start, end) = (usize::from_str_radix(start, 16)?, usize::from_str_radix(end, 16)?);
        places.push((start, (end - start).min(REACH)));
    }
    Ok(places)
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    #[expect(clippy::cast_possible_truncation, reason = "any part of it is as good")]
    fn next(&mut self) -> usize {
        self.word() as usize
    }
}

/// A subject while a neighbour on the CPU that asks does something.
pub(crate) struct Beside<'a> {
    pub(crate) name: String,
    pub(crate) subject: Box<dyn Subject + 'a>,
    pub(crate) neighbour: &'a Place,
    /// As a worker has it.
    pub(crate) what: &'a str,
}

impl Subject for Beside<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.subject.pin(layout)?;
        self.neighbour.pin(layout.asks)
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        self.neighbour.perform(1, &format!("{PREFIX}{}", self.what))?;
        let time = self.subject.run(count);
        self.neighbour.perform(1, &format!("{PREFIX}rest"))?;
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::channel::{self, SharedChannel};
    use std::os::fd::AsFd;
    use std::time::Instant;

    #[test]
    fn a_scribbler_finds_the_channels_of_its_process_and_writes_to_them() {
        let memory = channel::create().unwrap();
        let channel = SharedChannel::map(memory.as_fd()).unwrap();
        assert!(channel.is_current());
        let scribbler = Neighbour::scribbler().unwrap();
        let start = Instant::now();
        while channel.is_current() && start.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
        drop(scribbler);
        assert!(!channel.is_current(), "even the first words have been written over");
    }
}
