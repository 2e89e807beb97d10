//! Several subjects at once: how much all of them get done together.

use crate::cpus::Layout;
use crate::rounds::Subject;
use anyhow::Result;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// A subject that another thread may run.
pub(crate) type Item<'a> = Box<dyn Subject + Send + 'a>;

/// Pairs that work side by side. Its time is that of one operation of all: the wall's, divided by their number.
pub(crate) struct Parallel<'a> {
    name: String,
    items: Vec<Item<'a>>,
}

impl<'a> Parallel<'a> {
    pub(crate) fn new(name: String, items: Vec<Item<'a>>) -> Parallel<'a> {
        Parallel { name, items }
    }
}

impl Subject for Parallel<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.items.iter_mut().try_for_each(|item| item.pin(layout))
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        let number = u32::try_from(self.items.len())?.max(1);
        let each = count.div_ceil(number);
        let begin = Barrier::new(self.items.len() + 1);
        let start = std::thread::scope(|scope| -> Result<Instant> {
            let begin = &begin;
            let all: Vec<_> = self
                .items
                .iter_mut()
                .map(|item| {
                    scope.spawn(move || {
                        begin.wait();
                        item.run(each)
                    })
                })
                .collect();
            begin.wait();
            let start = Instant::now();
            all.into_iter().try_for_each(|one| one.join().expect("it does not panic").map(drop))?;
            Ok(start)
        })?;
        // `each` of all are up to `number - 1` more than were asked for.
        Ok(start.elapsed().mul_f64(f64::from(count) / (f64::from(each) * f64::from(number))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Counting(Arc<AtomicU32>);

    impl Subject for Counting {
        fn name(&self) -> String {
            "counting".to_owned()
        }
        fn run(&mut self, count: u32) -> Result<Duration> {
            self.0.fetch_add(count, Ordering::Relaxed);
            Ok(Duration::ZERO)
        }
    }

    #[test]
    fn the_work_is_divided_among_all() {
        let done = Arc::new(AtomicU32::new(0));
        let item = || -> Item<'_> { Box::new(Counting(Arc::clone(&done))) };
        Parallel::new("4 pairs".to_owned(), vec![item(), item(), item(), item()]).run(100).unwrap();
        assert_eq!(done.load(Ordering::Relaxed), 100);
    }
}
