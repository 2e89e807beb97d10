//! Rounds of all subjects in turn, so that whatever disturbs the machine disturbs them alike.

use crate::cpus::Layout;
use anyhow::{Context, Result};
use std::time::Duration;

/// Something that can be done many times in a row.
pub(crate) trait Subject {
    fn name(&self) -> String;
    /// Does it `count` times and returns how long that took.
    fn run(&mut self, count: u32) -> Result<Duration>;
    /// Moves both sides to their CPUs.
    fn pin(&mut self, _layout: Layout) -> Result<()> {
        Ok(())
    }
    /// Most times that it may be done in a row.
    fn count_max(&self) -> u32 {
        u32::MAX
    }
}

/// The median time of one subject.
#[derive(Debug)]
pub(crate) struct Time {
    pub(crate) name: String,
    /// Nanoseconds for doing it once.
    pub(crate) nanos: f64,
}

/// How long one round of one subject should take: long beside a scheduler's tick, short enough that
/// a disturbance of the machine meets all subjects.
const ROUND: Duration = Duration::from_millis(60);

/// Runs all subjects in turn, `rounds` times after one for warming up.
pub(crate) fn medians(subjects: &mut [Box<dyn Subject + '_>], rounds: usize) -> Result<Vec<Time>> {
    let mut counts = Vec::new();
    for subject in subjects.iter_mut() {
        let name = subject.name();
        counts.push(count(subject.as_mut()).with_context(|| format!("cannot measure {name}"))?);
    }
    timed(subjects, &counts, rounds)
}

/// Runs all subjects in turn, once each in a round: what takes seconds, and cannot be done twice in a row.
pub(crate) fn rounds_of(
    subjects: &mut [Box<dyn Subject + '_>],
    rounds: usize,
) -> Result<Vec<Time>> {
    let counts = vec![1; subjects.len()];
    timed(subjects, &counts, rounds)
}

fn timed(
    subjects: &mut [Box<dyn Subject + '_>],
    counts: &[u32],
    rounds: usize,
) -> Result<Vec<Time>> {
    let mut times = vec![Vec::new(); subjects.len()];
    for _ in 0..rounds.max(1) {
        for ((subject, count), times) in subjects.iter_mut().zip(counts).zip(&mut times) {
            let time = subject.run(*count);
            let time = time.with_context(|| format!("cannot measure {}", subject.name()))?;
            times.push(time.as_secs_f64() * 1e9 / f64::from(*count));
        }
    }
    let named = subjects.iter().zip(times);
    Ok(named.map(|(subject, times)| Time { name: subject.name(), nanos: median(times) }).collect())
}

/// How often a subject is to be done in a round; finding it out warms it up.
fn count(subject: &mut (dyn Subject + '_)) -> Result<u32> {
    let max = subject.count_max();
    let mut count = 16;
    loop {
        let time = subject.run(count)?;
        if count >= max || time >= ROUND / 4 || count >= 1 << 20 {
            let wanted = f64::from(count) * ROUND.as_secs_f64() / time.as_secs_f64().max(1e-9);
            return Ok(num_between(wanted, max));
        }
        count = (count * 4).min(max);
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
fn num_between(wanted: f64, max: u32) -> u32 {
    wanted.clamp(1.0, f64::from(max)) as u32
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a microsecond each, but for one slow round.
    struct Fake {
        runs: u32,
    }

    impl Subject for Fake {
        fn name(&self) -> String {
            "fake".to_owned()
        }
        fn run(&mut self, count: u32) -> Result<Duration> {
            self.runs += 1;
            let slow = if self.runs == 20 { 1000 } else { 1 };
            Ok(Duration::from_micros(u64::from(count) * slow))
        }
    }

    #[test]
    fn one_slow_round_does_not_move_the_median() {
        let times = medians(&mut [Box::new(Fake { runs: 0 })], 21).unwrap();
        assert!((times[0].nanos - 1000.0).abs() < 1.0, "{times:?}");
    }
}
