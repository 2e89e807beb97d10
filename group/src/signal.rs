//! A number that others wait for.
//!
//! tokio's `watch` wakes those who wait in a random order, which no seed reaches; here it is the order in which
//! they came, so that a simulation is the same each time.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Signal {
    value: AtomicU64,
    changed: Notify,
}

impl Signal {
    pub(crate) fn new(value: u64) -> Signal {
        Signal { value: AtomicU64::new(value), changed: Notify::new() }
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, value: u64) {
        self.value.store(value, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Asks `look` now and after each change, until it finds something.
    pub(crate) async fn find<T>(&self, mut look: impl FnMut(u64) -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(found) = look(self.get()) {
                return found;
            }
            changed.await;
        }
    }
}
