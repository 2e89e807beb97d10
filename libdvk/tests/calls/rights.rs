//! Who may send to whom, and which calls: set by the administrator, checked by dvkd and by receivers.
#![expect(unsafe_code, reason = "memory is granted, and copied, by address")]

use crate::cluster::{Cluster, NEVER, SHORT};
use crate::liar::Liar;
use dvk::limits::{LENT_PER_USER, QUESTIONS_PER_USER};
use dvk_client::{
    Access, Allowed, Bound, Endpoint, IpcError, Message, NodeId, Rights, call, level,
};
use m3ipc::bell::Bell;
use m3ipc::connection::Connection;
use m3ipc::door::{Ask, ask, event, kind, tell};
use m3ipc::limits::{LENT_MAX, QUESTIONS_MAX};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::thread::scope;

const SOCKET: &str = "DVK_RIGHTS_SOCKET";
const PEER: &str = "DVK_RIGHTS_PEER";

fn only(calls: u32) -> Rights {
    Rights { calls, ..Rights::of_level(level::USER) }
}

fn call_once(from: &Bound, to: Endpoint) -> Result<(), IpcError> {
    let mut request = Message::request(0x1001);
    from.sendrec(to, &mut request, b"", &mut [], SHORT).map(|_| ())
}

#[test]
fn a_right_that_is_taken_away_is_refused_on_every_way() {
    let cluster = Cluster::start();
    let admin = cluster.bind(1);
    for node in [1, 2] {
        let (one, two) = (cluster.bind(1), cluster.bind(node));
        assert_eq!(one.rights(), Rights::of_level(level::SERVER));
        let message = Message::request(0x1001);
        // There is a channel already when the rights change.
        assert_eq!(one.send(two.endpoint(), &message, b"", SHORT), Err(IpcError::TimedOut));
        admin.set_priv(one.endpoint(), &only(call::SENDREC)).unwrap();
        assert_eq!(admin.get_priv(one.endpoint()), Ok(only(call::SENDREC)));
        crate::cluster::wait_until("it is told", || one.rights() == only(call::SENDREC));
        assert_eq!(one.send(two.endpoint(), &message, b"", SHORT), Err(IpcError::Denied));
        assert_eq!(one.notify(two.endpoint(), 1), Err(IpcError::Denied));
        assert_eq!(one.receive(Endpoint::ANY, &mut [], SHORT), Err(IpcError::Denied));
        assert_eq!(one.rcvrqst(&mut [], SHORT), Err(IpcError::Denied));
        assert_eq!(one.reply(two.endpoint(), &message, b""), Err(IpcError::Denied));
        assert_eq!(call_once(&one, two.endpoint()), Err(IpcError::TimedOut), "it may call");
        admin.set_priv(one.endpoint(), &only(0)).unwrap();
        assert_eq!(call_once(&one, two.endpoint()), Err(IpcError::Denied));
    }
}

#[test]
fn an_endpoint_exchanges_messages_only_with_whom_it_may() {
    let cluster = Cluster::start();
    let admin = cluster.bind(1);
    let (one, friend, stranger, far) =
        (cluster.bind(1), cluster.bind(1), cluster.bind(1), cluster.bind(2));
    let rights = Rights {
        to: Allowed::only(&[friend.endpoint()]).unwrap(),
        from: Allowed::only(&[friend.endpoint()]).unwrap(),
        ..Rights::of_level(level::SERVER)
    };
    // Channels from before do not count any more.
    assert_eq!(call_once(&stranger, one.endpoint()), Err(IpcError::TimedOut));
    assert_eq!(call_once(&far, one.endpoint()), Err(IpcError::TimedOut));
    admin.set_priv(one.endpoint(), &rights).unwrap();
    for other in [&stranger, &far] {
        assert_eq!(call_once(&one, other.endpoint()), Err(IpcError::Denied));
        assert_eq!(call_once(other, one.endpoint()), Err(IpcError::Denied));
    }
    assert_eq!(stranger.notify(one.endpoint(), 1), Err(IpcError::Denied));
    // Between nodes it is under way, and ends there.
    assert_eq!(far.notify(one.endpoint(), 1), Ok(()));
    assert_eq!(call_once(&one, friend.endpoint()), Err(IpcError::TimedOut));
    assert_eq!(call_once(&friend, one.endpoint()), Err(IpcError::TimedOut));
    assert_eq!(one.receive(Endpoint::ANY, &mut [], SHORT), Err(IpcError::TimedOut));
}

#[test]
fn a_copy_needs_the_right_to_copy() {
    let cluster = Cluster::start();
    let admin = cluster.bind(1);
    let (one, two) = (cluster.bind(1), cluster.bind(2));
    let lent = [7_u8; 10];
    // SAFETY: nobody writes `lent`.
    unsafe { two.grant(Endpoint::ANY, lent.as_ptr(), lent.len(), Access::Read) }.unwrap();
    let mut got = [0_u8; 10];
    let mut copy = || {
        let (from, to) = (lent.as_ptr() as u64, got.as_mut_ptr() as u64);
        // SAFETY: `got` is this thread's.
        unsafe { one.vcopy(two.endpoint(), from, one.endpoint(), to, 10) }
    };
    copy().unwrap();
    admin.set_priv(one.endpoint(), &only(call::SENDREC)).unwrap();
    crate::cluster::wait_until("it is told", || one.rights() == only(call::SENDREC));
    assert_eq!(copy().unwrap_err().error, IpcError::Denied);
    assert_eq!(got, lent);
}

#[test]
fn a_channel_that_was_closed_brings_nothing_whatever_its_requester_writes_into_it() {
    let cluster = Cluster::start();
    let (admin, two) = (cluster.bind(1), cluster.bind(1));
    let all = Rights::of_level(level::SERVER);
    let takes = |from: &Liar| {
        // Whatever dvkd had told it before it answers this has come.
        two.get_priv(from.endpoint).unwrap();
        let mut sources = Vec::new();
        while let Ok(got) = two.receive(Endpoint::ANY, &mut [], SHORT) {
            sources.push(got.message.source);
        }
        assert!(sources.iter().all(|source| *source == from.endpoint), "{sources:?}");
        sources.len()
    };
    // The requester has lost its rights.
    let mut liar = Liar::open(&cluster, 0, two.endpoint());
    liar.send();
    assert_eq!(takes(&liar), 2, "a notification and a message");
    admin.set_priv(liar.endpoint, &only(0)).unwrap();
    liar.reopen();
    liar.send();
    assert_eq!(takes(&liar), 0);
    // The receiver wants nobody any more, and then everybody again: that is no reason to take the old channel.
    let mut liar = Liar::open(&cluster, 0, two.endpoint());
    liar.send();
    assert_eq!(takes(&liar), 2);
    admin.set_priv(two.endpoint(), &Rights { from: Allowed::NOBODY, ..all }).unwrap();
    admin.set_priv(two.endpoint(), &all).unwrap();
    liar.reopen();
    liar.send();
    assert_eq!(takes(&liar), 0);
    assert_eq!(call_once(&admin, two.endpoint()), Err(IpcError::TimedOut), "others may");
}

/// Not a test by itself: an ordinary user's process.
#[test]
fn ordinary_process() {
    let Some(socket) = std::env::var_os(SOCKET).map(std::path::PathBuf::from) else { return };
    let peer: u64 = std::env::var(PEER).unwrap().parse().unwrap();
    let peer = Endpoint::from_bits(peer);
    assert_eq!(Bound::bind(Some(&socket), 7).err(), Some(IpcError::Denied));
    let bound = Bound::bind(Some(&socket), 70).unwrap();
    assert_eq!(bound.rights(), Rights::of_level(level::USER));
    assert_eq!(bound.unbind_other(peer), Err(IpcError::Denied));
    assert_eq!(bound.bind_other(std::process::id(), 71), Err(IpcError::Denied));
    let all = Rights::of_level(level::SERVER);
    assert_eq!(bound.set_priv(bound.endpoint(), &all), Err(IpcError::Denied));
    let message = Message::request(0x1001);
    assert_eq!(bound.send(peer, &message, b"", NEVER), Err(IpcError::Denied));
    let mut request = message;
    bound.sendrec(peer, &mut request, b"", &mut [], NEVER).unwrap();
    // What is lent costs dvkd descriptors: a user may have so many, over however many endpoints.
    let mut owners = Vec::new();
    let mut lent = Vec::new();
    let refused = loop {
        if lent.len() % LENT_MAX == 0 {
            owners.push(Bound::bind(Some(&socket), 0).unwrap());
        }
        match owners.last().unwrap().lend(Endpoint::ANY, 1, Access::Read) {
            Ok(shared) => lent.push(shared),
            Err(error) => break error,
        }
    };
    assert_eq!((refused, lent.len()), (IpcError::Exhausted, LENT_PER_USER));
    let owner = owners.pop().unwrap();
    assert!(owner.lend(Endpoint::ANY, 1, Access::Read).is_err());
    lent.pop();
    owner.lend(Endpoint::ANY, 1, Access::Read).unwrap();
    // Endpoints that end take what they lent with them.
    drop(owners);
    crate::cluster::wait_until("they are gone", || {
        let again = owner.lend(Endpoint::ANY, 1, Access::Read);
        again.map(|shared| lent.push(shared)).is_ok()
    });
    ask_too_much(&socket);
}

/// Asks, over as many connections as it takes, for what never happens: a user may wait for so much at once.
fn ask_too_much(socket: &std::path::Path) {
    let never = Endpoint::new(NodeId(1), 99, 0);
    // What is answered at once, behind all that was asked before on that connection.
    let answered = |connection: &Connection| {
        let at_once = Ask { nonce: u64::MAX, ..Ask::new(ask::GET_RIGHTS, never) };
        connection.ask(&at_once, None).unwrap();
        connection.hear().unwrap().0
    };
    let connect = |_| {
        let connection = Connection::connect(socket.as_os_str().as_bytes()).unwrap();
        let (bell, descriptor) = Bell::create().unwrap();
        connection.hello(Ask::hello(kind::PEER, 0, 1), Some(descriptor.as_fd())).unwrap();
        (connection, bell)
    };
    let mut connections: Vec<(Connection, Bell)> =
        (0..=QUESTIONS_PER_USER / QUESTIONS_MAX).map(connect).collect();
    for number in 0..=QUESTIONS_PER_USER {
        let (connection, _) = &connections[number / QUESTIONS_MAX];
        let (nonce, value) = (number as u64, event::FOREVER);
        let asked = Ask { number: event::BOUND, nonce, value, ..Ask::new(ask::AWAIT, never) };
        connection.ask(&asked, None).unwrap();
        if number % QUESTIONS_MAX == QUESTIONS_MAX - 1 {
            assert_eq!(answered(connection).number, u64::MAX);
        }
    }
    let refused = answered(&connections.last().unwrap().0);
    assert_eq!(refused.number, QUESTIONS_PER_USER as u64);
    assert_eq!(refused.expect(tell::DONE).err(), Some(IpcError::Exhausted));
    // Those of a connection that ends are over.
    connections.swap_remove(0);
    let is_room = || Bound::bind(Some(socket), 0).is_ok();
    crate::cluster::wait_until("there is room", is_room);
}

#[test]
fn an_ordinary_user_calls_and_no_more_until_the_administrator_says_so() {
    let cluster = Cluster::start();
    let server = cluster.bind(1);
    scope(|threads| {
        threads.spawn(|| {
            let got = server.rcvrqst(&mut [], NEVER).unwrap();
            server.reply(got.message.source, &got.message, b"").unwrap();
        });
        let status = cluster
            .as_nobody(1, "rights::ordinary_process")
            .env(SOCKET, cluster.socket(1))
            .env(PEER, server.endpoint().to_bits().to_string())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    });
}
