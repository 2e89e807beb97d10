//! Which nodes shall be voters: a function of who there is and who lives.

use crate::limits::VOTERS_MAX;
use crate::types::RaftId;
use std::collections::BTreeSet;

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    pub node: RaftId,
    /// It is a voter now.
    pub voter: bool,
    pub standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Alive,
    /// Silent, but not for so long that it counts as gone.
    Silent,
    /// Silent for so long that it is replaced.
    Gone,
    /// Removed from the cluster: it is no voter any more, even if nobody takes its place.
    Expelled,
}

/// The voters there should be.
///
/// Voters stay as they are unless they are gone and somebody who lives takes their place, or there is room for
/// more: an even number tolerates no more deaths than the odd one below it, so it is 1, 3 or 5. Of the nodes
/// that live those with the smallest numbers become voters. The majority of the result lives if the majority of
/// the voters does.
pub fn wanted(nodes: &[Liveness]) -> BTreeSet<RaftId> {
    let of = |wanted: &dyn Fn(&Liveness) -> bool| -> BTreeSet<RaftId> {
        nodes.iter().filter(|node| wanted(node)).map(|node| node.node).collect()
    };
    let voters = of(&|node| node.voter);
    let expelled = of(&|node| node.voter && node.standing == Standing::Expelled);
    let gone =
        of(&|node| node.voter && matches!(node.standing, Standing::Gone | Standing::Expelled));
    let mut fresh: Vec<RaftId> =
        of(&|node| !node.voter && node.standing == Standing::Alive).into_iter().rev().collect();
    let mut wanted = voters.clone();
    for lost in gone {
        let Some(node) = fresh.pop() else { break };
        wanted.remove(&lost);
        wanted.insert(node);
    }
    if wanted.iter().any(|node| !expelled.contains(node)) {
        wanted.retain(|node| !expelled.contains(node));
    }
    // All there are of the rest, two at a time.
    while wanted.len() < VOTERS_MAX {
        let step = 2 - (wanted.len() + 1) % 2;
        if fresh.len() < step {
            break;
        }
        wanted.extend(fresh.drain(fresh.len() - step..));
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::Standing::{Alive, Expelled, Gone, Silent};
    use super::*;
    use proptest::prelude::*;

    /// Voters and others with their standing, and the voters that are wanted.
    fn check(voters: &[(RaftId, Standing)], others: &[(RaftId, Standing)], expected: &[RaftId]) {
        let one = |voter| {
            move |(node, standing): &(RaftId, Standing)| Liveness {
                node: *node,
                voter,
                standing: *standing,
            }
        };
        let nodes: Vec<Liveness> =
            voters.iter().map(one(true)).chain(others.iter().map(one(false))).collect();
        assert_eq!(wanted(&nodes), expected.iter().copied().collect(), "{nodes:?}");
    }

    #[test]
    fn one_that_is_gone_is_replaced_by_one_that_lives() {
        check(&[(1, Alive), (2, Alive), (3, Gone)], &[(4, Silent), (5, Alive)], &[1, 2, 5]);
    }

    #[test]
    fn one_that_is_silent_for_a_while_is_not() {
        check(&[(1, Alive), (2, Alive), (3, Silent)], &[(4, Alive)], &[1, 2, 3]);
    }

    #[test]
    fn one_that_is_gone_stays_if_there_is_nobody_for_its_place() {
        check(&[(1, Alive), (2, Alive), (3, Gone)], &[(4, Gone)], &[1, 2, 3]);
    }

    #[test]
    fn one_that_is_expelled_is_no_voter_any_more_unless_nobody_else_is() {
        check(&[(1, Alive), (2, Alive), (3, Expelled)], &[], &[1, 2]);
        check(&[(1, Alive), (2, Alive), (3, Expelled)], &[(4, Alive)], &[1, 2, 4]);
        check(&[(1, Alive), (2, Expelled), (3, Expelled)], &[(4, Alive)], &[1, 4]);
        check(&[(1, Expelled)], &[(2, Silent)], &[1]);
    }

    #[test]
    fn there_are_one_three_or_five() {
        check(&[(1, Alive)], &[(2, Alive)], &[1]);
        check(&[(1, Alive)], &[(2, Alive), (3, Alive)], &[1, 2, 3]);
        check(&[(1, Alive), (2, Alive)], &[(3, Alive)], &[1, 2, 3]);
        let others = [(2, Alive), (3, Alive), (4, Alive), (5, Alive), (6, Alive)];
        check(&[(1, Alive)], &others, &[1, 2, 3, 4, 5]);
        let five = [(1, Alive), (2, Alive), (3, Alive), (4, Gone), (5, Alive)];
        check(&five, &[(6, Alive), (7, Alive)], &[1, 2, 3, 5, 6]);
    }

    proptest! {
        #[test]
        fn a_majority_that_lives_stays_one_and_nobody_dead_is_added(
            nodes in proptest::collection::btree_map(1..12u64, (any::<bool>(), 0..4u8), 1..10)
        ) {
            let standing = |number| match number { 0 => Alive, 1 => Silent, 2 => Gone, _ => Expelled };
            let nodes: Vec<Liveness> = nodes
                .into_iter()
                .map(|(node, (voter, number))| Liveness { node, voter, standing: standing(number) })
                .collect();
            let alive: BTreeSet<RaftId> =
                nodes.iter().filter(|node| node.standing == Alive).map(|node| node.node).collect();
            let voters: BTreeSet<RaftId> =
                nodes.iter().filter(|node| node.voter).map(|node| node.node).collect();
            let wanted = wanted(&nodes);
            let expelled = nodes.iter().filter(|node| node.standing == Expelled).count();
            prop_assert!(wanted.len() + expelled >= voters.len());
            prop_assert!(voters.is_empty() || !wanted.is_empty());
            prop_assert!(wanted.difference(&voters).all(|node| alive.contains(node)));
            prop_assert!(wanted.len() <= VOTERS_MAX.max(voters.len()));
            if 2 * voters.intersection(&alive).count() > voters.len() {
                prop_assert!(2 * wanted.intersection(&alive).count() > wanted.len());
            }
        }
    }
}
