//! Programs of two containers use the services of the system group: none sees or disturbs what is another's.

use super::*;
use crate::dvkd::services::{Client as Admin, Failure, Item, Lease, Op, Reply, Text};
use crate::limits::{DC_SERVICES_MAX, DC_SERVICES_OPEN};
use ::services::Client;
use ::services::limits::{CHUNK, OPEN_MAX, REQUEST_MAX};
use rustix::fd::OwnedFd;

/// Node 1 alone, with the containers 1 and 2.
pub(super) fn start() -> Cluster {
    let mut cluster = Cluster::start(1);
    cluster.stop(1);
    let second = Dc { id: 2, name: "other".into(), ..cluster.configs[0].dcs[0].clone() };
    cluster.configs[0].dcs.push(second);
    cluster.daemons[0] = Some(cluster.start_daemon(cluster.configs[0].clone()));
    cluster
}

/// The door of a container, as a connection that has been let in.
pub(super) fn enter(cluster: &Cluster, dc: u32) -> OwnedFd {
    let name = if dc == 1 { "lab" } else { "other" };
    let socket = cluster.configs[0].socket(name);
    let connection = Connection::connect(socket.as_os_str().as_bytes()).unwrap();
    let welcome = connection.hello(hello(::services::VERSION), None).unwrap();
    assert_eq!((welcome.dc, welcome.node), (dc, 1));
    connection.into()
}

fn hello(version: u32) -> Ask {
    Ask::hello(kind::SERVICES, version, 0)
}

/// The first that dvkd says on a connection.
pub(super) fn first(client: &Client) -> Option<Reply> {
    client.next(0, soon()).unwrap()
}

pub(super) fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(20))
}

/// A program of a container, when the group is at work.
pub(super) fn program(cluster: &Cluster, dc: u32) -> Client {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        let client = Client::new(enter(cluster, dc));
        match first(&client) {
            Some(Reply::Ready) => return client,
            // Not begun yet, or who was there before is being seen off.
            Some(Reply::Failed { failure: Failure::Unavailable | Failure::Limit, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < limit, "the group is never at work");
        std::thread::yield_now();
    }
}

pub(super) fn post(client: &Client, op: Op) -> u64 {
    client.post(op, None, None).unwrap().unwrap()
}

pub(super) fn hear(client: &Client, id: u64) -> Reply {
    client.next(id, soon()).unwrap().expect("it does not answer")
}

/// Asks again as long as the group has no leader yet.
pub(super) fn ask(client: &Client, op: Op) -> Reply {
    loop {
        match hear(client, post(client, op.clone())) {
            Reply::Failed { failure: Failure::Unavailable, .. } => {}
            reply => return reply,
        }
    }
}

pub(super) fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease: Lease::None }
}

fn value(reply: Reply) -> Option<Text> {
    match reply {
        Reply::Value { entry } => entry.map(|entry| entry.value),
        other => panic!("{other:?}"),
    }
}

fn keys(reply: Reply) -> Vec<Text> {
    match reply {
        Reply::Range { entries, .. } => entries.into_iter().map(|entry| entry.key).collect(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn failure(reply: Reply) -> Failure {
    match reply {
        Reply::Failed { failure, .. } => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_of_one_container_are_not_there_for_another_nor_for_the_system() {
    let cluster = start();
    let (one, two) = (program(&cluster, 1), program(&cluster, 2));
    let mut system = Admin::connect(&cluster.configs[0].run, None).unwrap();
    let mut admin = |op: Op| system.ask(op, None, |_| {}).unwrap();
    assert!(matches!(ask(&one, put("k", "one")), Reply::Changed { revision: 1, found: false }));
    // Its revisions are its own too: nobody sees how much others do.
    assert!(matches!(ask(&two, put("k", "two")), Reply::Changed { revision: 1, found: false }));
    assert!(matches!(admin(put("k", "three")), Reply::Changed { revision: 1, found: false }));
    assert!(matches!(ask(&two, put("l", "two")), Reply::Changed { revision: 2, found: false }));
    let get = |key: &[u8]| Op::Get { key: Text(key.to_vec()) };
    assert_eq!(value(ask(&one, get(b"k"))), Some("one".into()));
    assert_eq!(value(ask(&two, get(b"k"))), Some("two".into()));
    assert_eq!(value(admin(get(b"k"))), Some("three".into()));
    // As the state has the other's key; and all that there is, from every place on.
    let placed = ::group::Realm::Dc(2).key(b"k").unwrap();
    assert_eq!(value(ask(&one, get(&placed))), None);
    assert_eq!(failure(admin(get(&placed))), Failure::Refused);
    for start in [vec![], vec![0xff], placed.clone()] {
        for end in [None, Some(Text(vec![0xff; 9])), Some(Text(placed.clone()))] {
            let range = Op::Range { start: Text(start.clone()), end, limit: 100 };
            let seen = keys(ask(&one, range));
            assert!(seen.iter().all(|key| *key == Text::from("k")), "{seen:?}");
        }
    }
    let all = Op::Range { start: Text::default(), end: None, limit: 100 };
    assert_eq!(keys(admin(all)), [Text::from("k")]);
    // Deleting and swapping reach its own only.
    let delete = |key: &str| Op::Delete { key: key.into() };
    assert!(matches!(ask(&one, delete("l")), Reply::Changed { found: false, .. }));
    assert!(matches!(ask(&one, delete("k")), Reply::Changed { found: true, .. }));
    let swap = Op::Swap { key: "k".into(), expected: 1, value: None, lease: Lease::None };
    assert_eq!(failure(ask(&one, swap)), Failure::Revision(0));
    assert_eq!(value(ask(&two, get(b"k"))), Some("two".into()));
    assert_eq!(value(admin(get(b"k"))), Some("three".into()));
    // The administrator reaches a container's keys when that is said.
    let mut of_two = Admin::connect(&cluster.configs[0].run, Some(2)).unwrap();
    assert_eq!(value(of_two.ask(get(b"l"), None, |_| {}).unwrap()), Some("two".into()));
}

#[test]
fn a_watcher_sees_the_changes_of_its_own_container() {
    let cluster = start();
    let (one, two) = (program(&cluster, 1), program(&cluster, 2));
    let watch = |from| Op::Watch { start: Text::default(), end: None, from };
    let Reply::Changes { next, .. } = ask(&one, watch(None)) else { panic!("no revision") };
    let watching = post(&one, watch(Some(next)));
    for number in 0..3 {
        ask(&two, put("k", &number.to_string()));
    }
    ask(&one, put("k", "own"));
    let Reply::Changes { changes, next } = hear(&one, watching) else { panic!("no changes") };
    let seen: Vec<_> = changes.into_iter().map(|change| (change.revision, change.value)).collect();
    assert_eq!((seen, next), (vec![(1, Some("own".into()))], 2));
}

#[test]
fn locks_elections_barriers_and_leases_of_one_container_are_not_anothers() {
    let cluster = start();
    let (one, two) = (program(&cluster, 1), program(&cluster, 2));
    let name = || "n".to_owned();
    let placed = ::group::Realm::Dc(1).name("n").unwrap();
    for op in [
        Op::Lock { name: name(), wait: false },
        Op::Campaign { name: name(), value: "mine".into() },
        Op::Join { group: name() },
    ] {
        assert!(!matches!(ask(&one, op), Reply::Failed { .. }));
    }
    // The same names are free in the other; and how the state has them is a name like any other.
    for name in ["n".to_owned(), placed] {
        assert_eq!(failure(ask(&two, Op::Unlock { name: name.clone() })), Failure::NotHeld);
        let lock = Op::Lock { name: name.clone(), wait: false };
        assert!(matches!(ask(&two, lock), Reply::Locked { .. }));
        assert!(matches!(
            ask(&two, Op::Leader { name: name.clone() }),
            Reply::Leader { leader: None }
        ));
        assert_eq!(failure(ask(&two, Op::Resign { name: name.clone() })), Failure::NotHeld);
        let cast = Op::Cast { group: name.clone(), bytes: "x".into() };
        assert_eq!(failure(ask(&two, cast)), Failure::NotHeld);
        let receive = Op::Receive { group: name.clone(), after: 0 };
        assert_eq!(failure(ask(&two, receive)), Failure::NotHeld);
        let give = Op::Give { group: name.clone(), view: 1, state: "x".into() };
        assert_eq!(failure(ask(&two, give)), Failure::NotHeld);
    }
    // A member of a group is alone in its own.
    let Reply::Joined { member, .. } = ask(&two, Op::Join { group: name() }) else {
        panic!("not in")
    };
    let Reply::Item { item: Item::View { members, fresh, .. }, .. } =
        ask(&two, Op::Receive { group: name(), after: 0 })
    else {
        panic!("no view")
    };
    assert_eq!((members, fresh), (vec![member], false));
    // A barrier for two is not passed by one of each.
    let arrive = |client: &Client| {
        let op = Op::Barrier { name: name(), parties: 2 };
        client.post(op, Some(300), None).unwrap().unwrap()
    };
    let (first, second) = (arrive(&one), arrive(&two));
    assert_eq!(failure(hear(&one, first)), Failure::Timeout);
    assert_eq!(failure(hear(&two, second)), Failure::Timeout);
    // Leases are numbers that can be guessed; sessions are leases too.
    let Reply::Leased { lease } = ask(&one, Op::Grant { ttl_ms: 60_000 }) else { panic!("none") };
    for lease in [lease, lease - 1, 1, 2, 3] {
        for ends in [false, true] {
            assert_eq!(failure(ask(&two, Op::Renew { lease, ends })), Failure::NotHeld, "{lease}");
        }
        let put = Op::Put { key: "k".into(), value: "v".into(), lease: Lease::Held(lease) };
        assert_eq!(failure(ask(&two, put)), Failure::NotHeld, "{lease}");
    }
    assert_eq!(ask(&one, Op::Renew { lease, ends: false }), Reply::Done);
}

#[test]
fn a_program_that_opens_all_it_can_and_asks_all_it_can_leaves_room_for_others() {
    let cluster = start();
    let other = program(&cluster, 2);
    let _first = program(&cluster, 1);
    let mut all = Vec::new();
    let refused = loop {
        let client = Client::new(enter(&cluster, 1));
        match first(&client) {
            Some(Reply::Ready) => all.push(client),
            Some(Reply::Failed { failure, why }) => break (failure, why),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused.0, Failure::Limit, "{}", refused.1);
    assert_eq!(all.len() + 1, DC_SERVICES_MAX);
    // Each waits for nearly as much as it may; together there is less than that.
    let watch = |client: &Client| {
        post(client, Op::Watch { start: Text::default(), end: None, from: Some(1) })
    };
    let mut watches = Vec::new();
    for (at, client) in all.iter().enumerate() {
        let count = (OPEN_MAX - 1).min(DC_SERVICES_OPEN - watches.len());
        watches.extend((0..count).map(|_| (at, watch(client))));
        // Connections are read in any order: its answer comes when all before it on this one has been taken.
        hear(client, post(client, Op::Get { key: "k".into() }));
        if watches.len() == DC_SERVICES_OPEN {
            break;
        }
    }
    let last = all.last().unwrap();
    let refused = hear(last, watch(last));
    assert!(
        matches!(&refused, Reply::Failed { failure: Failure::Limit, why } if why.contains("this container")),
        "{refused:?}"
    );
    ask(&other, put("k", "v"));
    assert_eq!(value(ask(&other, Op::Get { key: "k".into() })), Some("v".into()));
    // One more than a connection may have open is refused, the others go on.
    let mut admin = Admin::connect(&cluster.configs[0].run, Some(1)).unwrap();
    assert!(matches!(admin.ask(put("k", "v"), None, |_| {}).unwrap(), Reply::Changed { .. }));
    for (at, id) in watches {
        assert!(matches!(hear(&all[at], id), Reply::Changes { .. }), "{at} {id}");
    }
    // What it gives back it can have again.
    all.clear();
    let again = program(&cluster, 1);
    assert!(matches!(ask(&again, put("k", "w")), Reply::Changed { .. }));
}

#[test]
fn a_process_of_another_container_is_refused_at_the_door() {
    let cluster = start();
    drop(program(&cluster, 2));
    let confine = |dc| {
        cluster.daemon(1).shared.with(|node| node.confined.started(std::process::id(), DcId(dc)));
    };
    let enter = |name| {
        let socket = cluster.configs[0].socket(name);
        let connection = Connection::connect(socket.as_os_str().as_bytes()).unwrap();
        connection.hello(hello(::services::VERSION), None).map(|welcome| welcome.dc)
    };
    confine(1);
    assert_eq!((enter("lab"), enter("other")), (Ok(1), Err(IpcError::Denied)));
    confine(2);
    assert_eq!((enter("lab"), enter("other")), (Err(IpcError::Denied), Ok(2)));
}

/// Sends bytes as packets, as long as there is room.
pub(super) fn send_raw(socket: &OwnedFd, bytes: &[u8]) {
    for piece in bytes.chunks(CHUNK) {
        let flags = rustix::net::SendFlags::NOSIGNAL;
        if rustix::net::send(socket, piece, flags).is_err() {
            return;
        }
    }
}

#[test]
fn garbage_ends_the_connection_that_it_comes_on_and_no_other() {
    let cluster = start();
    let own = program(&cluster, 1);
    let other = program(&cluster, 2);
    ask(&own, put("k", "v"));
    let too_long = [vec![b'{'; REQUEST_MAX + 1], b"\n".to_vec()].concat();
    let twice = b"{\"id\":1,\"op\":{\"Lock\":{\"name\":\"l\",\"wait\":true}}}\n".repeat(2);
    let deep = [b"[".repeat(10_000), b"\n".to_vec()].concat();
    let junk: [&[u8]; 9] = [
        b"\n",
        b"{}\n",
        b"\0\x01\xff\n",
        b"{\"id\":-1,\"op\":{\"Get\":{\"key\":\"k\"}}}\n",
        b"{\"id\":1,\"op\":{\"Get\":{\"key\":{\"hex\":\"0\"}}}}\n",
        b"{\"id\":1,\"op\":{\"Open\":{\"realm\":\"System\"}}}\n",
        &deep,
        &too_long,
        &twice,
    ];
    for bytes in junk {
        let socket = enter(&cluster, 1);
        send_raw(&socket, bytes);
        let client = Client::new(socket);
        let heard = std::iter::repeat_with(|| client.next(0, soon()));
        let ended = heard.take(4).find_map(Result::err);
        assert!(ended.is_some(), "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]));
    }
    // Packets of which each is a piece of a line.
    let socket = enter(&cluster, 1);
    for byte in b"{\"id\":7,\"op\":{\"Get\":{\"key\":\"k\"}}}\n" {
        send_raw(&socket, &[*byte]);
    }
    let mut bytes = vec![0; CHUNK];
    let answer = std::iter::repeat_with(|| {
        let (length, _) =
            rustix::net::recv(&socket, &mut bytes, rustix::net::RecvFlags::empty()).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    });
    assert!(answer.take(2).any(|line| line.contains("\"id\":7") && line.contains("\"v\"")));
    for client in [&own, &other] {
        assert!(matches!(ask(client, put("k", "w")), Reply::Changed { .. }));
    }
}

#[test]
fn whoever_sends_half_of_a_long_request_or_reads_no_answer_keeps_nobody_waiting() {
    let cluster = start();
    let (own, other) = (program(&cluster, 1), program(&cluster, 2));
    let big = "x".repeat(20 << 10);
    for number in 0..3 {
        assert!(matches!(ask(&own, put(&number.to_string(), &big)), Reply::Changed { .. }));
    }
    // Each of these has more answers to read than its socket takes, and reads none.
    let range = b"{\"id\":ID,\"op\":{\"Range\":{\"start\":\"\",\"end\":null,\"limit\":9}}}\n";
    let range = String::from_utf8(range.to_vec()).unwrap();
    let deaf: Vec<OwnedFd> = (0..3).map(|_| enter(&cluster, 1)).collect();
    for socket in &deaf {
        let all: String = (1..=OPEN_MAX).map(|id| range.replace("ID", &id.to_string())).collect();
        send_raw(socket, all.as_bytes());
    }
    // And these are in the middle of a long line: as many as may be, and more.
    let slow: Vec<OwnedFd> = (0..crate::limits::DC_SERVICES_LONG + 4)
        .map(|_| {
            let socket = enter(&cluster, 1);
            send_raw(&socket, &vec![b' '; 3 * CHUNK]);
            socket
        })
        .collect();
    for client in [&own, &other] {
        for _ in 0..10 {
            assert!(matches!(ask(client, put("k", "v")), Reply::Changed { .. }));
        }
    }
    let range = Op::Range { start: Text::default(), end: None, limit: 9 };
    assert_eq!(keys(ask(&own, range)).len(), 4);
    drop((deaf, slow));
}

#[test]
fn another_version_and_a_second_hello_are_refused() {
    let cluster = start();
    drop(program(&cluster, 1));
    let socket = cluster.configs[0].socket("lab");
    let connect = || Connection::connect(socket.as_os_str().as_bytes()).unwrap();
    let connection = connect();
    connection.hello(hello(99), None).unwrap();
    let client = Client::new(connection.into());
    let Some(Reply::Failed { failure: Failure::Refused, why }) = first(&client) else {
        panic!("it is not refused")
    };
    assert!(why.contains("99") && why.contains(&::services::VERSION.to_string()), "{why}");
    // A peer that is bound cannot become one that uses the services: it breaks the protocol, and is bound no more.
    let endpoints = || cluster.daemon(1).status().dcs[0].endpoints;
    let connection = connect();
    let (_bell, descriptor) = m3ipc::bell::Bell::create().unwrap();
    connection.hello(Ask::hello(kind::PEER, 0, 1), Some(descriptor.as_fd())).unwrap();
    assert_eq!(endpoints(), 1);
    assert!(connection.hello(hello(::services::VERSION), None).is_err());
    wait_until("the peer is not bound any more", || endpoints() == 0);
}

#[test]
fn what_a_killed_process_held_is_free_although_its_child_has_the_connection() {
    let cluster = start();
    let waiting = program(&cluster, 1);
    let mut holder = Guard::start("holder", &cluster.socket(1), cluster.dir.path());
    let lock = |wait| Op::Lock { name: "l".into(), wait };
    wait_until("the process has the lock", || match ask(&waiting, lock(false)) {
        Reply::Failed { failure: Failure::Taken, .. } => true,
        Reply::Locked { .. } => {
            ask(&waiting, Op::Unlock { name: "l".into() });
            false
        }
        other => panic!("{other:?}"),
    });
    let key = Op::Get { key: "child".into() };
    let mut child = None;
    wait_until("its key is there", || {
        child = value(ask(&waiting, key.clone()));
        child.is_some()
    });
    let id = post(&waiting, lock(true));
    holder.kill();
    let next = hear(&waiting, id);
    let child = String::from_utf8(child.unwrap().0).unwrap().parse().unwrap();
    let child = rustix::process::Pid::from_raw(child).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    assert!(matches!(next, Reply::Locked { .. }), "{next:?}");
    assert_eq!(value(ask(&waiting, key)), None, "its key has ended with it");
}

/// The body of a process that has a lock, and a key with the pid of a child that has inherited its connection.
pub(super) fn hold(socket: &Path) {
    let connection = Connection::connect(socket.as_os_str().as_bytes()).unwrap();
    connection.hello(hello(::services::VERSION), None).unwrap();
    let socket: OwnedFd = connection.into();
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
    let client = Client::new(socket);
    assert_eq!(first(&client), Some(Reply::Ready));
    loop {
        let lock = Op::Lock { name: "l".into(), wait: true };
        if matches!(ask(&client, lock), Reply::Locked { .. }) {
            break;
        }
    }
    // Longer than anybody waits for the lock.
    let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let op = Op::Put {
        key: "child".into(),
        value: child.id().to_string().as_str().into(),
        lease: Lease::Connection,
    };
    ask(&client, op);
    // Until it is killed.
    client.next(0, None).ok();
    child.wait().unwrap();
}
