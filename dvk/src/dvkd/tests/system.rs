//! The system group in daemons that are threads of this process.

use super::*;
use crate::dvkd::services::{
    Change, Client, Failure, GroupStatus, Lease, Op, Reply, Standing, Text, group_status,
};
use crate::limits::GROUP_BYTES;

fn connect(cluster: &Cluster, node: usize) -> Client {
    Client::connect(&cluster.configs[node - 1].run, None).unwrap()
}

fn ask(client: &mut Client, op: Op) -> Reply {
    client.ask(op, None, |_| {}).unwrap()
}

fn put(cluster: &Cluster, node: usize, key: &str, value: &str) {
    let op = Op::Put { key: key.into(), value: value.into(), lease: Lease::None };
    let reply = ask(&mut connect(cluster, node), op);
    assert!(matches!(reply, Reply::Changed { .. }), "{reply:?}");
}

fn get(cluster: &Cluster, node: usize, key: &str) -> Option<Text> {
    match ask(&mut connect(cluster, node), Op::Get { key: key.into() }) {
        Reply::Value { entry } => entry.map(|entry| entry.value),
        other => panic!("{other:?}"),
    }
}

fn status(cluster: &Cluster, node: usize) -> GroupStatus {
    group_status(&cluster.configs[node - 1].run).unwrap().unwrap()
}

/// Waits until these nodes, and no others, are voters and up, as each of them sees it; says who leads.
pub(super) fn settled(cluster: &Cluster, nodes: &[u16]) -> u16 {
    let is_settled = |node: &u16| {
        let status = status(cluster, usize::from(*node));
        let listed = |wanted: fn(&services::MemberStatus) -> bool| -> Vec<u16> {
            status.members.iter().filter(|one| wanted(one)).map(|one| one.node).collect()
        };
        status.standing == Standing::Up
            && status.trouble.is_none()
            && listed(|one| one.is_voter) == nodes
            && listed(|one| one.is_up) == nodes
    };
    wait_until(&format!("{nodes:?} are the group"), || nodes.iter().all(is_settled));
    status(cluster, usize::from(nodes[0])).leader.unwrap()
}

#[test]
fn what_one_node_puts_all_have_also_when_the_leader_has_stopped_and_is_back() {
    let mut cluster = Cluster::start(3);
    let leader = settled(&cluster, &[1, 2, 3]);
    put(&cluster, 1, "a", "one");
    assert_eq!(get(&cluster, 3, "a"), Some("one".into()));
    let config = cluster.configs[usize::from(leader) - 1].clone();
    cluster.stop(leader.into());
    let rest: Vec<usize> = (1..=3).filter(|node| *node != usize::from(leader)).collect();
    put(&cluster, rest[0], "b", "two");
    assert_eq!(get(&cluster, rest[1], "b"), Some("two".into()));
    cluster.daemons[usize::from(leader) - 1] = Some(cluster.start_daemon(config));
    settled(&cluster, &[1, 2, 3]);
    for key in ["a", "b"] {
        assert!(get(&cluster, leader.into(), key).is_some(), "{key}");
    }
}

#[test]
fn without_a_majority_it_is_said_who_is_missing_and_a_fenced_node_changes_nothing() {
    let mut cluster = Cluster::start(3);
    settled(&cluster, &[1, 2, 3]);
    cluster.stop(2);
    cluster.stop(3);
    let mut client = connect(&cluster, 1);
    let op = Op::Put { key: "k".into(), value: "v".into(), lease: Lease::None };
    let refused = || match client.ask(op.clone(), Some(100), |_| {}).unwrap() {
        Reply::Failed { failure: Failure::Fenced, why } => why.contains("n2, n3 missing, of 3"),
        Reply::Failed { failure: Failure::Unavailable, .. } => false,
        other => panic!("{other:?}"),
    };
    wait_until("it is fenced and says who is missing", refused);
    assert_eq!(status(&cluster, 1).standing, Standing::Fenced);
}

#[test]
fn a_lock_goes_on_when_the_connection_of_its_holder_ends_and_watchers_see_leased_keys_end() {
    let cluster = Cluster::start(3);
    settled(&cluster, &[1, 2, 3]);
    let (mut first, mut second, mut watcher) =
        (connect(&cluster, 1), connect(&cluster, 2), connect(&cluster, 3));
    let lock = |wait| Op::Lock { name: "l".into(), wait };
    let Reply::Locked { token } = ask(&mut first, lock(true)) else { panic!("no token") };
    let key = || "k".into();
    let leased = Op::Put { key: key(), value: "v".into(), lease: Lease::Connection };
    assert!(matches!(ask(&mut first, leased), Reply::Changed { .. }));
    let watch = |from| Op::Watch { start: key(), end: None, from };
    let Reply::Changes { next, .. } = ask(&mut watcher, watch(None)) else { panic!("no revision") };
    watcher.send(watch(Some(next)), None).unwrap();
    let taken = ask(&mut second, lock(false));
    assert!(matches!(taken, Reply::Failed { failure: Failure::Taken, .. }), "{taken:?}");
    let late = second.ask(lock(true), Some(10), |_| {}).unwrap();
    assert!(matches!(late, Reply::Failed { failure: Failure::Timeout, .. }), "{late:?}");
    second.send(lock(true), None).unwrap();
    drop(first);
    let next = loop {
        match second.receive(None).unwrap().unwrap() {
            Reply::Waiting { .. } => {}
            Reply::Locked { token } => break token,
            other => panic!("{other:?}"),
        }
    };
    assert!(next > token);
    let changes = loop {
        match watcher.receive(None).unwrap().unwrap() {
            Reply::Waiting { .. } => {}
            Reply::Changes { changes, .. } => break changes,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(&changes[..], [Change { value: None, .. }]), "{changes:?}");
}

#[test]
fn a_node_that_joins_becomes_a_voter_and_one_that_is_revoked_is_none_any_more() {
    let mut cluster = Cluster::start(2);
    // One of two can be missing only if it does not vote.
    wait_until("node 2 follows", || {
        let status = status(&cluster, 2);
        status.standing == Standing::Up && !status.members[1].is_voter
    });
    let token = create_token(&cluster.configs[0].credentials.clone().unwrap(), HANDSHAKE_TIMEOUT);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap();
    drop(listener);
    let credentials = cluster.dir.path().join("credentials3");
    let address = cluster.configs[0].listen;
    let joined = join(address, &token.unwrap(), "n3", |_| own, &credentials).unwrap();
    let config = Config {
        node: joined.node,
        name: joined.name,
        listen: joined.address,
        credentials: Some(credentials),
        run: cluster.dir.path().join("run3"),
        store: cluster.dir.path().join("store3"),
        dcs: Vec::new(),
        ..cluster.configs[0].clone()
    };
    put(&cluster, 2, "before", "x");
    cluster.configs.push(config.clone());
    cluster.daemons.push(Some(cluster.start_daemon(config)));
    settled(&cluster, &[1, 2, 3]);
    assert_eq!(get(&cluster, 3, "before"), Some("x".into()));
    admin::command(&cluster.configs[0].run, Query::Revoke { node: 3 }).unwrap();
    let is_out = |node| {
        let status = status(&cluster, node);
        status.members.iter().map(|one| one.node).eq([1, 2])
    };
    wait_until("node 3 is out of voters and tables", || is_out(1) && is_out(2));
    put(&cluster, 2, "after", "y");
}

#[test]
fn a_node_alone_has_no_group_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        node: 1,
        name: "n1".into(),
        listen: "127.0.0.1:1".parse().unwrap(),
        credentials: None,
        run: dir.path().join("run"),
        store: dir.path().join("store"),
        command: Vec::new(),
        servers_inside: false,
        compression: Packing::Never,
        dcs: Vec::new(),
    };
    let run = config.run.clone();
    let daemon = Daemon::start(config).unwrap();
    assert_eq!(group_status(&run).unwrap(), None);
    let error = Client::connect(&run, None).unwrap_err().to_string();
    assert!(error.contains("alone"), "{error}");
    assert!(!dir.path().join("store/system.group").exists());
    daemon.stop();
}

#[test]
fn junk_among_the_groups_messages_and_requests_disturbs_nobody() {
    let cluster = Cluster::start(3);
    settled(&cluster, &[1, 2, 3]);
    let shared = &cluster.daemon(1).shared;
    for length in [0, 1, 2, 3, 50, 1000, GROUP_BYTES] {
        for byte in [0, 1, 0xff] {
            let body: Vec<u8> = [vec![1], vec![byte; length]].concat();
            let body = &body[..body.len().min(GROUP_BYTES)];
            links::offer(shared, 2, control::Control::Group(body).encode());
            links::offer(shared, 3, control::Control::Group(&vec![byte; length]).encode());
        }
    }
    let errors = |node| cluster.daemon(node).status().counters.protocol_errors;
    put(&cluster, 2, "a", "b");
    assert_eq!((errors(2), errors(3)), (0, 0), "the links are not to blame");
    assert_eq!((cluster.linked(2), cluster.linked(3)), (vec![1, 3], vec![1, 2]));
    for junk in ["\n", "{}\n", "{\"op\":{\"Get\":{}}}\n", "\u{0}\u{1}\n", "not a line"] {
        let mut stream = admin::open(&cluster.configs[0].run, Query::Services).unwrap();
        std::io::Write::write_all(&mut stream, junk.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut stream, &mut said).unwrap();
        assert!(!said.contains("Done"), "{said}");
    }
    put(&cluster, 1, "a", "c");
    assert_eq!(get(&cluster, 3, "a"), Some("c".into()));
}
