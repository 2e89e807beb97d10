//! A subject while something else goes on: what it costs to be beside it.

use crate::cpus::Layout;
use crate::parallel::Item;
use crate::rounds::Subject;
use anyhow::Result;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// `subject`, while `other` is done over and over.
pub(crate) struct Alongside<'a> {
    name: String,
    subject: Item<'a>,
    other: Item<'a>,
}

impl<'a> Alongside<'a> {
    pub(crate) fn new(name: String, subject: Item<'a>, other: Item<'a>) -> Alongside<'a> {
        Alongside { name, subject, other }
    }
}

/// Ends the other, also if the subject fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Subject for Alongside<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.subject.pin(layout)?;
        self.other.pin(layout)
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        let is_over = AtomicBool::new(false);
        let (subject, other) = (&mut self.subject, &mut self.other);
        std::thread::scope(|scope| {
            let going_on = scope.spawn(|| -> Result<()> {
                while !is_over.load(Ordering::Relaxed) {
                    other.run(1)?;
                }
                Ok(())
            });
            let over = Over(&is_over);
            let time = subject.run(count);
            drop(over);
            going_on.join().expect("it does not panic")?;
            time
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    struct Counting(Arc<AtomicU32>);

    impl Subject for Counting {
        fn name(&self) -> String {
            "counting".to_owned()
        }
        fn run(&mut self, count: u32) -> Result<Duration> {
            self.0.fetch_add(count, Ordering::SeqCst);
            Ok(Duration::from_secs(1))
        }
    }

    /// Ends when another has been done five times.
    struct Patient(Arc<AtomicU32>);

    impl Subject for Patient {
        fn name(&self) -> String {
            "patient".to_owned()
        }
        fn run(&mut self, count: u32) -> Result<Duration> {
            while self.0.load(Ordering::SeqCst) < 5 {
                std::thread::yield_now();
            }
            Ok(Duration::from_secs(count.into()))
        }
    }

    #[test]
    fn the_other_goes_on_until_the_subject_has_ended() {
        let done = Arc::new(AtomicU32::new(0));
        let (subject, other) = (Box::new(Patient(done.clone())), Box::new(Counting(done.clone())));
        let mut beside = Alongside::new("both".to_owned(), subject, other);
        assert_eq!(beside.run(7).unwrap(), Duration::from_secs(7));
        assert!(done.load(Ordering::SeqCst) >= 5);
    }
}
