//! How often something that others cause may be said in the log: a flood of it must not fill the disk.

use crate::server::Nanos;

/// So many lines at once, and one more each `every`.
#[derive(Debug)]
pub(super) struct LogLimit {
    burst: u32,
    every: Nanos,
    /// Lines that may be said now, and since when that is so.
    left: u32,
    since: Nanos,
    /// Those that were not said since the last one.
    unsaid: u64,
}

impl LogLimit {
    pub(super) fn new(burst: u32, every: Nanos) -> LogLimit {
        LogLimit { burst, every, left: burst, since: 0, unsaid: 0 }
    }

    /// May a line be said at time `now`? Then the number of lines before it that were not.
    pub(super) fn admit(&mut self, now: Nanos) -> Option<u64> {
        let earned = now.saturating_sub(self.since) / self.every;
        if earned > 0 {
            let left = u64::from(self.left).saturating_add(earned).min(u64::from(self.burst));
            self.left = u32::try_from(left).unwrap_or(self.burst);
            self.since += earned * self.every;
        }
        if self.left == 0 {
            self.unsaid += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_burst_and_a_trickle_and_counted() {
        let mut limit = LogLimit::new(3, 10);
        let now = 1_000_005;
        let said = |limit: &mut LogLimit, now| -> Vec<u64> {
            (0..100).filter_map(|_| limit.admit(now)).collect()
        };
        assert_eq!(said(&mut limit, now), [0, 0, 0]);
        assert!(said(&mut limit, now + 4).is_empty());
        assert_eq!(said(&mut limit, now + 5), [197]);
        // Silence is rewarded, up to a burst.
        assert_eq!(said(&mut limit, now + 1_000), [99, 0, 0]);
    }
}
