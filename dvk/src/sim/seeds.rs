//! Many runs, each from its own seed, on all CPUs; a failure names the seed that repeats it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Environment variable with the one seed to run instead of all.
pub const SEED: &str = "SEED";

/// Environment variable with how many seeds to run instead of a test's own number.
pub const SEEDS: &str = "SEEDS";

/// Runs `run` for the seeds in `known` (each once showed a fault that is now mended) and for 0..`count`, or as many as
/// the environment's `SEEDS` says; with its `SEED` only for that one. `run` is told whether to print what happens.
///
/// # Panics
/// If a run fails or panics, with the lowest seed that does.
pub fn check_seeds(
    known: &[u64],
    count: u64,
    run: impl Fn(u64, bool) -> Result<(), String> + Sync,
) {
    if let Some(seed) = number(SEED) {
        return report(seed, attempt(seed, true, &run));
    }
    let total = known.len() as u64 + number(SEEDS).unwrap_or(count);
    let next = AtomicU64::new(0);
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let work = || {
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            if turn >= total {
                return;
            }
            let index = usize::try_from(turn).expect("few seeds");
            let seed = known.get(index).copied().unwrap_or_else(|| turn - known.len() as u64);
            if let Err(error) = attempt(seed, false, &run) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(least, _)| seed < *least) {
                    *failed = Some((seed, error));
                }
                next.store(total, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    if let Some((seed, error)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        report(seed, Err(error));
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn attempt(
    seed: u64,
    print: bool,
    run: &impl Fn(u64, bool) -> Result<(), String>,
) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, print))).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

fn report(seed: u64, result: Result<(), String>) {
    if let Err(error) = result {
        panic!("{error}\nreplay with {SEED}={seed}");
    }
}
