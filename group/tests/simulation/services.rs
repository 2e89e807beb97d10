//! The services as a program uses them, on a cluster of three.

use crate::world::World;
use group::command::{Done, Op, Refusal};
use group::state::{Delivery, Item};
use group::{Failure, Realm, Session};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const TTL: u64 = 2000;

fn run(test: impl AsyncFnOnce(Arc<World>)) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let world = World::start(11, 3).await;
        timeout(Duration::from_secs(60), test(world.clone())).await.expect("it does not get on");
        assert_eq!(world.violations(), Vec::<String>::new());
    });
}

/// A session at a node.
async fn session(world: &World, node: u64) -> Session {
    Session::open(&world.group(node).unwrap(), TTL).await.unwrap()
}

/// Does it wait? For a second at least.
async fn waits<T>(what: impl Future<Output = T>) -> bool {
    timeout(Duration::from_secs(1), what).await.is_err()
}

#[test]
fn a_lock_goes_from_node_to_node_with_a_greater_token() {
    run(async |world| {
        let (one, two) = (session(&world, 1).await, session(&world, 2).await);
        let first = one.lock("l").await.unwrap();
        assert_eq!(two.try_lock("l").await, Err(Refusal::Taken.into()));
        let waiting = two.lock("l");
        tokio::pin!(waiting);
        assert!(waits(&mut waiting).await);
        one.unlock("l").await.unwrap();
        assert!(waiting.await.unwrap() > first);
    });
}

#[test]
fn a_lock_is_free_when_its_owner_lets_go_of_the_session_or_its_node_dies() {
    run(async |world| {
        let (one, two, three) =
            (session(&world, 1).await, session(&world, 2).await, session(&world, 3).await);
        one.lock("l").await.unwrap();
        drop(one);
        let first = two.lock("l").await.unwrap();
        let start = Instant::now();
        world.crash(2);
        let second = three.lock("l").await.unwrap();
        assert!(second > first && start.elapsed() < Duration::from_millis(TTL + 1500));
    });
}

#[test]
fn who_gives_up_waiting_leaves_the_line() {
    run(async |world| {
        let (one, two) = (session(&world, 1).await, session(&world, 2).await);
        one.lock("l").await.unwrap();
        assert!(waits(two.lock("l")).await);
        two.unlock("l").await.unwrap();
        one.unlock("l").await.unwrap();
        one.lock("l").await.unwrap();
    });
}

#[test]
fn a_new_leader_is_seen_by_those_who_observe() {
    run(async |world| {
        let (one, two, three) =
            (session(&world, 1).await, session(&world, 2).await, session(&world, 3).await);
        let first = one.campaign("e", b"one").await.unwrap();
        let seen = three.observe("e", None).await.unwrap().unwrap();
        assert_eq!((seen.token, seen.value), (first, b"one".to_vec()));
        let (second, seen) = tokio::join!(two.campaign("e", b"two"), async {
            let seen = three.observe("e", Some(first));
            tokio::pin!(seen);
            assert!(waits(&mut seen).await);
            one.resign("e").await.unwrap();
            seen.await.unwrap().unwrap()
        });
        assert_eq!((seen.token, seen.value), (second.unwrap(), b"two".to_vec()));
    });
}

#[test]
fn a_barrier_holds_until_all_are_there_and_breaks_when_one_dies() {
    run(async |world| {
        let (one, two, three) =
            (session(&world, 1).await, session(&world, 2).await, session(&world, 3).await);
        {
            let early = async { tokio::join!(one.barrier("b", 3), two.barrier("b", 3)) };
            tokio::pin!(early);
            assert!(waits(&mut early).await);
            assert_eq!(three.barrier("b", 3).await, Ok(()));
            assert_eq!(early.await, (Ok(()), Ok(())));
        }
        let rest = async { tokio::join!(one.barrier("b", 3), three.barrier("b", 3)) };
        tokio::pin!(rest);
        assert!(waits(&mut rest).await);
        drop(two);
        assert!(waits(&mut rest).await, "one that is not there yet cannot break it");
        // One that is there can: it abandons.
        one.run(Op::Abandon { name: "b".into() }).await.unwrap();
        assert_eq!(rest.await.1, Err(Failure::Broken));
    });
}

#[test]
fn members_on_two_nodes_get_the_same_and_a_joiner_the_state_first() {
    run(async |world| {
        let (one, two) = (session(&world, 1).await, session(&world, 2).await);
        let join = || Op::Join { group: "g".into() };
        let cast = |text: &str| Op::Cast { group: "g".into(), bytes: text.into() };
        one.run(join()).await.unwrap();
        one.run(cast("before")).await.unwrap();
        let Ok(Done::Joined { view }) = two.run(join()).await else { panic!() };
        two.run(cast("after")).await.unwrap();
        let bytes = b"state".to_vec();
        one.run(Op::GiveState { group: "g".into(), view, bytes: bytes.clone() }).await.unwrap();
        let state = two.receive("g", view - 1).await.unwrap();
        assert_eq!(state, Delivery::State { number: view, bytes });
        let after = two.receive("g", view).await.unwrap();
        assert_eq!(after, one.receive("g", view).await.unwrap());
        let Delivery::Item { item: Item::Message { from, .. }, number } = after else { panic!() };
        assert_eq!(from, two.client());
        for member in [&one, &two] {
            member.acknowledge("g", number).await.unwrap();
        }
        assert!(waits(two.receive("g", number)).await);
        let queued = |state: &group::state::State| state.queued("g");
        assert_eq!(one.group().read(queued, Duration::from_secs(1)).await, Ok(0));
    });
}

#[test]
fn signs_of_life_wait_for_each_other_and_not_for_long() {
    run(async |world| {
        let group = world.group(1).unwrap();
        let mut sessions = Vec::new();
        for ttl in [2000, 3_600_000] {
            sessions.push(Session::open(&group, ttl).await.unwrap());
        }
        let begin = group.applied();
        let mut asked = JoinSet::new();
        for (turn, session) in (0..24).zip(sessions.iter().cycle()) {
            let (group, client) = (group.clone(), session.client());
            asked.spawn(async move {
                sleep(Duration::from_millis(turn * 10)).await;
                let sent = Instant::now();
                let answer = group.keep_alive(client, Duration::from_secs(10)).await;
                (answer, sent.elapsed())
            });
        }
        for (answer, took) in asked.join_all().await {
            assert_eq!(answer, Ok(Ok(())));
            assert!(took < Duration::from_millis(300), "{took:?}");
        }
        // Some are of the nodes, which have just come.
        let commands = group.applied() - begin;
        assert!(commands <= 12, "{commands} commands for 24 signs in a quarter of a second");
    });
}

#[test]
fn a_session_that_has_ended_says_so_to_those_who_wait() {
    run(async |world| {
        let (one, two) = (session(&world, 1).await, session(&world, 2).await);
        one.lock("l").await.unwrap();
        let waiting = two.lock("l");
        tokio::pin!(waiting);
        assert!(waits(&mut waiting).await);
        let close = async |node| {
            let group = world.group(node).unwrap();
            let closed = group.submit(two.client(), 0, 0, Op::Close, Duration::from_secs(1));
            closed.await.unwrap().1
        };
        assert_eq!(close(1).await, Err(Refusal::NoSession), "it is no session of that node's");
        // Somebody else of its node closes it, as its end by the clock would.
        assert_eq!(close(2).await, Ok(Done::Fine));
        assert_eq!(waiting.await, Err(Refusal::NoSession.into()));
    });
}

#[test]
fn without_a_majority_nothing_is_answered_and_nothing_is_made_up() {
    run(async |world| {
        let one = world.group(1).unwrap();
        let patience = Duration::from_secs(2);
        one.read(|state| state.revision(Realm::System), patience).await.unwrap();
        world.crash(2);
        world.crash(3);
        assert!(one.read(|state| state.revision(Realm::System), patience).await.is_err());
        let open = Op::Open { nonce: 1, ttl: 1000, realm: Realm::System };
        let client = group::command::ClientId::default();
        assert!(one.submit(client, 0, 0, open, patience).await.is_err());
    });
}
