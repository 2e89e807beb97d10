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
    /// Steps of the run: between them the operation happened.
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
    let mut tried = HashSet::new();
    search(&start, &order, vec![false; order.len()], &mut tried)
}

fn search<M: Model>(
    state: &M,
    order: &[&Operation<M::Input, M::Output>],
    done: Vec<bool>,
    tried: &mut HashSet<(Vec<bool>, M)>,
) -> bool {
    let open = || order.iter().enumerate().filter(|(index, _)| !done[*index]);
    // Everything that was answered has its place; the rest need not have happened.
    if open().all(|(_, operation)| operation.output.is_none()) {
        return true;
    }
    let first_return = open()
        .filter(|(_, operation)| operation.output.is_some())
        .map(|(_, operation)| operation.returned)
        .min()
        .unwrap_or(u64::MAX);
    for (index, operation) in open() {
        if operation.called > first_return {
            break;
        }
        let mut next = state.clone();
        if !next.step(&operation.input, operation.output.as_ref()) {
            continue;
        }
        let mut with = done.clone();
        with[index] = true;
        if tried.insert((with.clone(), next.clone())) && search(&next, order, with, tried) {
            return true;
        }
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
        let write = (Some(1), None, 1, 2);
        check(&[write, (None, Some(0), 3, 4), (None, Some(1), 5, 6)], true);
        check(&[write, (None, Some(0), 3, 4)], true);
        check(&[write, (None, Some(2), 3, 4)], false);
    }
}
