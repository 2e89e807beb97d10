//! Writes that are too large for one message: how many are under way, and what they are named.

use crate::limits::STAGING_MAX;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// All that are under way.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    count: Mutex<usize>,
    ended: Condvar,
    next: AtomicU64,
}

/// One of them.
#[derive(Debug)]
#[must_use]
pub(crate) struct Large<'a>(&'a Staging);

impl Staging {
    /// Waits until another may begin.
    pub(crate) fn begin(&self) -> Large<'_> {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |count: &mut usize| *count >= STAGING_MAX;
        let mut count =
            self.ended.wait_while(count, is_full).unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        Large(self)
    }
}

impl Large<'_> {
    /// What it is named; nothing else ever is.
    pub(crate) fn token(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Large<'_> {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn so_many_are_under_way_and_no_more() {
        let staging = Staging::default();
        let mut begun: Vec<Large<'_>> = (0..STAGING_MAX).map(|_| staging.begin()).collect();
        assert_ne!(begun[0].token(), begun[1].token());
        thread::scope(|scope| {
            let next = scope.spawn(|| staging.begin().token());
            thread::yield_now();
            assert!(!next.is_finished());
            begun.pop();
            assert_eq!(next.join().unwrap(), 2);
        });
    }
}
