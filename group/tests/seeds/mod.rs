//! Runs by seed on all CPUs: `SEED=7` replays one, `SEEDS=10000` runs that many instead of the test's own number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Calls `run` with each seed of 0..`count` (see above), and `add` with what it reports. How many there were.
///
/// # Panics
/// If a run fails, with the seed that repeats it.
pub(crate) fn each<R>(
    count: u64,
    run: impl Fn(u64) -> Result<R, String> + Sync,
    add: impl FnMut(R) + Send,
) -> u64 {
    let seeds = match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, other) => 0..other.unwrap_or(count),
    };
    let next = AtomicU64::new(seeds.start);
    let add = Mutex::new(add);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            match run(seed) {
                Ok(report) => (add.lock().unwrap_or_else(PoisonError::into_inner))(report),
                Err(violation) => {
                    next.store(seeds.end, Ordering::Relaxed);
                    panic!("replay with SEED={seed}: {violation}");
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    seeds.end - seeds.start
}
