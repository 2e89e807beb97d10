//! Nodes that the group takes for down, or may: who takes over, and what rests.

use super::moves::{Moving, moving};
use super::*;
use crate::limits::FENCE_STOP;

impl Pair {
    fn fence(&mut self, node: NodeId, is_fenced: bool) -> Vec<Output> {
        let up = self.group.up().clone();
        let until = if is_fenced { 0 } else { Nanos::MAX };
        let out = self.at(node).step(Input::Standing { until, up: &up });
        self.sort(node, out)
    }

    fn acts(&self, node: NodeId, endpoint: Endpoint) -> bool {
        self.nodes[&node].kernel.acts_as(BLUE, endpoint)
    }
}

fn is_promoted(out: &[Output]) -> bool {
    out.iter().any(|output| matches!(output, Output::Promote { inherits: false, .. }))
}

/// Both have given each other up, and node 1 is cut off from the group.
fn cut_off() -> Moving {
    let mut moving = moving(true);
    moving.pair.fence(N1, true);
    moving.pair.disconnect();
    for node in [N1, N2] {
        moving.pair.wait(node, NODE_DOWN_AFTER + 1);
    }
    moving
}

#[test]
fn an_endpoint_that_may_be_taken_over_rests_while_its_node_is_fenced() {
    let mut moving = moving(true);
    let mover = moving.mover;
    let (freeze, thaw) =
        (Output::Freeze { dc: BLUE, endpoint: mover }, Output::Thaw { dc: BLUE, endpoint: mover });
    let out = moving.pair.fence(N1, true);
    assert!(out.contains(&freeze), "{out:?}");
    assert!(!moving.pair.acts(N1, mover));
    // Whether it has stopped or not, and however long it lasts.
    for has_stopped in [false, true] {
        if has_stopped {
            moving.pair.at(N1).step(Input::Frozen { dc: BLUE, endpoint: mover });
        }
        let out = moving.pair.wait(N1, crate::limits::MIGRATION_MAX + crate::limits::FREEZE_WAIT);
        assert!(!out.contains(&thaw), "{out:?}");
    }
    assert_eq!(moving.pair.fence(N1, true), [], "it is fenced already");
    let out = moving.pair.fence(N1, false);
    assert!(out.contains(&thaw), "{out:?}");
    assert!(moving.pair.acts(N1, mover));
}

#[test]
fn a_process_that_does_not_stop_at_the_fence_is_cut_off_until_it_is_gone() {
    let mut moving = moving(true);
    let mover = moving.mover;
    let cut = Output::CutOff { dc: BLUE, endpoint: mover };
    let other = moving.pair.at(N1).bind(BLUE, Role::Peer(0), 77);
    moving.pair.fence(N1, true);
    let out = moving.pair.wait(N1, FENCE_STOP - 1);
    assert!(!out.contains(&cut), "it has its time: {out:?}");
    assert_eq!(channels(&moving.pair.at(N1).open(BLUE, mover, other)), [(mover, other, None)]);
    let out = moving.pair.wait(N1, 1);
    assert!(out.contains(&cut), "{out:?}");
    let out = moving.pair.wait(N1, crate::limits::MIGRATION_MAX);
    assert!(!out.contains(&cut), "once: {out:?}");
    assert_eq!(refusals(&moving.pair.at(N1).open(BLUE, mover, other)), [IpcError::Moved]);
    moving.pair.fence(N1, false);
    assert_eq!(channels(&moving.pair.at(N1).open(BLUE, mover, other)), [(mover, other, None)]);
    // One that stops is left alone.
    moving.pair.fence(N1, true);
    moving.pair.at(N1).step(Input::Frozen { dc: BLUE, endpoint: mover });
    let out = moving.pair.wait(N1, 2 * FENCE_STOP);
    assert!(!out.contains(&cut), "{out:?}");
}

#[test]
fn a_node_fences_itself_in_time_though_nobody_tells_it() {
    let mut moving = moving(true);
    let mover = moving.mover;
    let (up, bench) = (moving.pair.group.up().clone(), moving.pair.at(N1));
    let until = bench.now + 1_000;
    bench.step(Input::Standing { until, up: &up });
    // At its deadline, or whatever comes first after it.
    assert_eq!(bench.kernel.next_deadline().map(|at| at <= until), Some(true));
    bench.now = until;
    let out = bench.hello(BLUE, Role::Process, 99, 0);
    assert_eq!(out.first(), Some(&Output::Freeze { dc: BLUE, endpoint: mover }));
    // A later sign of life was answered in time, and heard of late.
    let later = until + 1_000;
    let out = bench.step(Input::Standing { until: later, up: &up });
    assert!(out.contains(&Output::Thaw { dc: BLUE, endpoint: mover }), "{out:?}");
}

#[test]
fn one_that_nobody_can_take_over_goes_on() {
    let mut pair = Pair::new();
    let mover = pair.at(N1).bind(BLUE, Role::Peer(70), 30);
    pair.welcome(N1, Role::Backup(mover, true), 31);
    pair.settle();
    assert_eq!(pair.fence(N1, true), []);
    assert!(pair.acts(N1, mover));
    // A backup elsewhere that comes now is none before this node can tell the group.
    pair.welcome(N2, Role::Backup(mover, true), 32);
    pair.settle();
    assert!(pair.acts(N1, mover) && pair.group.log().is_empty());
    pair.fence(N1, false);
    pair.settle();
    assert_eq!(pair.group.log().len(), 1);
}

#[test]
fn a_backup_takes_over_when_the_group_says_that_its_place_is_down_and_not_before() {
    let mut moving = cut_off();
    let mover = moving.mover;
    moving.pair.settle();
    assert!(!moving.pair.acts(N2, mover), "nobody has said so");
    moving.pair.fence(N2, true);
    moving.pair.stand(N1, None);
    moving.pair.fence(N2, true);
    moving.pair.fence(N2, false);
    let (_, out) = moving.pair.settle();
    assert!(is_promoted(&out), "{out:?}");
    assert!(moving.pair.acts(N2, mover) && !moving.pair.acts(N1, mover));
}

#[test]
fn a_backup_that_claims_an_endpoint_whose_node_is_up_is_refused_and_asks_again_later() {
    let mut moving = cut_off();
    let mover = moving.mover;
    // Node 2 knows before the group takes it back.
    let up = BTreeMap::from([(N2, 2)]);
    let out = moving.pair.at(N2).step(Input::Standing { until: Nanos::MAX, up: &up });
    moving.pair.sort(N2, out);
    let (_, out) = moving.pair.settle();
    assert!(!is_promoted(&out) && !moving.pair.acts(N2, mover), "{out:?}");
    moving.pair.stand(N1, None);
    let (_, out) = moving.pair.settle();
    assert!(is_promoted(&out), "{out:?}");
}

#[test]
fn what_was_taken_over_meanwhile_does_not_go_on() {
    let mut moving = cut_off();
    let mover = moving.mover;
    moving.pair.group.set_up(N1, None);
    let up = moving.pair.group.up().clone();
    let out = moving.pair.at(N2).step(Input::Standing { until: Nanos::MAX, up: &up });
    moving.pair.sort(N2, out);
    // Both learn it, node 1 before it is up again.
    let (one, _) = moving.pair.settle();
    assert!(one.iter().any(|output| matches!(output, Output::Demote { .. })), "{one:?}");
    moving.pair.connect();
    moving.pair.settle();
    let out = moving.pair.stand(N1, Some(1));
    assert!(!out.contains(&Output::Thaw { dc: BLUE, endpoint: mover }), "{out:?}");
    assert!(!moving.pair.acts(N1, mover) && moving.pair.acts(N2, mover));
}

#[test]
fn a_number_whose_owner_ended_with_its_node_is_bound_when_the_group_has_heard_of_that() {
    let mut moving = moving(false);
    let mover = moving.mover;
    let commit = Order::Commit { node: N2, backup: Endpoint::NONE };
    moving.stop(&[]);
    assert_eq!(told(&moving.order(N1, commit)), [Ok(mover)]);
    assert_eq!(refusals(&moving.pair.at(N1).hello(BLUE, Role::Peer(70), 50, 0)), [IpcError::InUse]);
    moving.pair.stand(N2, None);
    let out = moving.pair.at(N1).hello(BLUE, Role::Peer(70), 51, 0);
    let out = moving.pair.sort(N1, out);
    assert_eq!(out, [], "it waits");
    let (one, _) = moving.pair.settle();
    let is_welcome = |output: &Output| {
        matches!(output, Output::Welcome { endpoint, .. }
            if endpoint.slot == mover.slot && endpoint.generation > mover.generation)
    };
    assert!(one.iter().any(is_welcome), "{one:?}");
    // Where the group does not answer it is told so in the end.
    let mut moving = super::moves::moving(true);
    moving.pair.nodes.insert(N1, Bench::new(N1, 3));
    let entry = *moving.pair.group.log().last().unwrap();
    moving.pair.learn(N1, entry);
    let out = moving.pair.at(N1).hello(BLUE, Role::Peer(70), 50, 0);
    assert_eq!(moving.pair.sort(N1, out), []);
    let out = moving.pair.wait(N1, crate::limits::PLACING_MAX);
    assert_eq!(refusals(&out), [IpcError::TimedOut]);
}

#[test]
fn a_node_that_starts_binds_no_number_before_it_knows_who_has_it() {
    let mut pair = Pair::new();
    let mut again = Bench::new(N1, 3);
    again.step(Input::Standing { until: 0, up: &BTreeMap::new() });
    pair.nodes.insert(N1, again);
    assert_eq!(pair.at(N1).hello(BLUE, Role::Peer(70), 50, 0), [], "it waits");
    let out = pair.stand(N1, Some(3));
    assert!(matches!(out[..], [Output::Welcome { .. }]), "{out:?}");
    // It knows: later no fence keeps anybody from it.
    pair.fence(N1, true);
    pair.at(N1).bind(BLUE, Role::Peer(71), 51);
}
