//! Is a history linearizable? The algorithm of Wing and Gong with Lowe's memory of what was tried.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// One operation as a client saw it.
#[derive(Clone, Debug)]
pub(crate) struct Operation<I, O> {
    pub(crate) input: I,
    /// None: there was no answer; it happened at some time after the call, or not at all.
    pub(crate) output: Option<O>,
    /// Steps of the run: between them the operation happened. Without an answer `returned` is when it could
    /// not happen any more.
    pub(crate) called: u64,
    pub(crate) returned: u64,
}

/// What one copy on one machine would do.
pub(crate) trait Model: Clone + Eq + Hash + Debug {
    type Input: Clone + Debug;
    type Output: Clone + Debug;

    /// Does the operation, and says whether this answer is the right one. Without an answer any is.
    fn step(&mut self, input: &Self::Input, output: Option<&Self::Output>) -> bool;
}

/// Is there an order of the operations that the model explains, and that nobody who waited for an answer can refute?
pub(crate) fn is_linearizable<M: Model>(
    start: M,
    history: &[Operation<M::Input, M::Output>],
) -> bool {
    let mut order: Vec<&Operation<M::Input, M::Output>> = history.iter().collect();
    order.sort_by_key(|operation| operation.called);
    search(&start, &order, 0, &mut vec![false; order.len()], &mut HashSet::new())
}

/// `latest` is the last call among those that are done.
fn search<M: Model>(
    state: &M,
    order: &[&Operation<M::Input, M::Output>],
    latest: u64,
    done: &mut Vec<bool>,
    tried: &mut HashSet<(Vec<bool>, M)>,
) -> bool {
    let answered = |index: usize| order[index].output.is_some();
    let open: Vec<usize> = (0..order.len()).filter(|index| !done[*index]).collect();
    // Everything that was answered has its place; the rest need not have happened.
    let returns = open.iter().filter(|index| answered(**index)).map(|index| order[*index].returned);
    let Some(first_return) = returns.min() else { return true };
    for index in open {
        let operation = order[index];
        if operation.called > first_return {
            break;
        }
        let mut next = state.clone();
        if !next.step(&operation.input, operation.output.as_ref()) {
            continue;
        }
        // One without an answer may have happened, but not behind its end, and only if that matters.
        if !answered(index) && (latest > operation.returned || next == *state) {
            continue;
        }
        let latest = latest.max(operation.called);
        done[index] = true;
        let mut key = done.clone();
        for (other, done) in key.iter_mut().enumerate() {
            *done |= !answered(other) && order[other].returned < latest;
        }
        if tried.insert((key, next.clone())) && search(&next, order, latest, done, tried) {
            return true;
        }
        done[index] = false;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register: write, or read.
    impl Model for u64 {
        type Input = Option<u64>;
        type Output = u64;

        fn step(&mut self, input: &Option<u64>, output: Option<&u64>) -> bool {
            match input {
                Some(value) => *self = *value,
                None => return output.is_none_or(|output| output == self),
            }
            true
        }
    }

    fn check(history: &[(Option<u64>, Option<u64>, u64, u64)], expected: bool) {
        let history: Vec<_> = history
            .iter()
            .map(|(input, output, called, returned)| Operation {
                input: *input,
                output: *output,
                called: *called,
                returned: *returned,
            })
            .collect();
        assert_eq!(is_linearizable(0u64, &history), expected, "{history:#?}");
    }

    #[test]
    fn a_read_behind_a_write_sees_it_and_one_beside_it_may() {
        check(&[(Some(1), Some(0), 1, 2), (None, Some(1), 3, 4)], true);
        check(&[(Some(1), Some(0), 1, 2), (None, Some(0), 3, 4)], false);
        check(&[(Some(1), Some(0), 1, 4), (None, Some(0), 2, 3)], true);
        check(&[(Some(1), Some(0), 1, 4), (None, Some(1), 2, 3)], true);
    }

    #[test]
    fn what_two_readers_saw_cannot_go_back() {
        let write = (Some(1), Some(0), 1, 9);
        check(&[write, (None, Some(1), 2, 3), (None, Some(0), 4, 5)], false);
        check(&[write, (None, Some(0), 2, 3), (None, Some(1), 4, 5)], true);
    }

    #[test]
    fn a_write_without_an_answer_may_happen_late_or_never() {
        let write = (Some(1), None, 1, u64::MAX);
        check(&[write, (None, Some(0), 3, 4), (None, Some(1), 5, 6)], true);
        check(&[write, (None, Some(0), 3, 4)], true);
        check(&[write, (None, Some(2), 3, 4)], false);
        let ended = (Some(1), None, 1, 4);
        check(&[ended, (None, Some(0), 5, 6), (None, Some(1), 7, 8)], false);
    }
}
