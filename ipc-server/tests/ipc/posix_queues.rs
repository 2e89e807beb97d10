//! mq_open, mq_close, mq_unlink, mq_send, mq_receive, mq_getattr, mq_setattr.

use crate::host::{Host, Process, SECOND, on_node, root, user};
use calls::ipc::{
    FOREVER, MqAttr, MqAttributes, MqClose, MqOpen, MqReceive, MqSend, MqUnlink, Object,
};
use calls::wire::Wire;
use dvk::server::Gone;
use ipc_server::flags::{O_CREAT, O_EXCL, O_NONBLOCK, O_RDWR, O_WRONLY};
use ipc_server::limits::{
    LINGER, MQ_BYTES_PER_USER, MQ_MESSAGES_MAX, MQ_PRIORITY_MAX, MQ_SIZE_MAX,
};
use m3ipc::errno::numbers::{
    EACCES, EAGAIN, EBADF, EEXIST, EINVAL, EMFILE, EMSGSIZE, ENOENT, ETIMEDOUT,
};
use m3ipc::{CallId, NodeId};
use proptest::prelude::*;

const O_RDONLY: u32 = 0;
const NO_ATTR: u16 = 0;

fn open(host: &mut Host, process: Process, name: &str, flags: u32) -> Result<u64, i32> {
    let row = MqOpen { flags, mode: 0o600, attr_len: NO_ATTR };
    host.call(process, row, name.as_bytes()).map(|(Object { id }, _)| id)
}

/// A queue of `messages` messages of `size` bytes.
fn sized(host: &mut Host, process: Process, messages: i64, size: i64) -> Result<u64, i32> {
    let attr = MqAttr { max_messages: messages, message_size: size, ..MqAttr::default() };
    let attr_len = u16::try_from(MqAttr::SIZE).unwrap();
    let row = MqOpen { flags: O_CREAT | O_EXCL | O_RDWR, mode: 0o600, attr_len };
    let payload = [&attr.bytes()[..], format!("/q{messages}x{size}").as_bytes()].concat();
    host.call(process, row, &payload).map(|(Object { id }, _)| id)
}

fn send(host: &mut Host, process: Process, id: u64, priority: u32, text: &[u8]) -> CallId {
    host.send(process, MqSend { id, priority, wait_ns: FOREVER }, text)
}

fn receive(host: &mut Host, process: Process, id: u64) -> CallId {
    host.send(process, MqReceive { id, size: 8192, wait_ns: FOREVER }, b"")
}

/// What a receive got: priority and text.
fn got(host: &Host, call: CallId) -> Option<Result<(i64, Vec<u8>), i32>> {
    let answer = host.answer::<MqReceive>(call)?;
    Some(answer.map(|(received, text)| {
        assert_eq!(received.len, text.len() as u64);
        (received.kind, text)
    }))
}

fn attributes(host: &mut Host, process: Process, id: u64) -> Result<MqAttr, i32> {
    let (_, bytes) = host.call(process, MqAttributes { id, set: 0, flags: 0 }, b"")?;
    Ok(MqAttr::get(&bytes).unwrap())
}

#[test]
fn opening_follows_the_flags_and_the_name() {
    let table = [
        ("/old", O_RDWR, Ok(())),
        ("/old", O_CREAT | O_RDONLY, Ok(())),
        ("/old", O_CREAT | O_EXCL, Err(EEXIST)),
        ("/old", 3, Err(EINVAL)),
        ("/old", O_CREAT | O_EXCL | 3, Err(EEXIST)),
        ("/new", 3, Err(ENOENT)),
        ("/new", O_CREAT | 3, Ok(())),
        ("/new", O_RDWR, Err(ENOENT)),
        ("/new", O_CREAT | O_EXCL | O_WRONLY, Ok(())),
        ("new", O_CREAT, Err(EINVAL)),
        ("/", O_CREAT, Err(ENOENT)),
        ("/a/b", O_CREAT, Err(EACCES)),
    ];
    for (name, flags, expected) in table {
        let mut host = Host::new();
        open(&mut host, root(1), "/old", O_CREAT).unwrap();
        assert_eq!(open(&mut host, root(2), name, flags).map(|_| ()), expected, "{name} {flags:o}");
    }
}

#[test]
fn a_queue_has_the_size_it_was_asked_for_within_limits() {
    let table = [
        (1, 1, true),
        (MQ_MESSAGES_MAX, 16, true),
        (10, MQ_SIZE_MAX, true),
        (0, 1, false),
        (1, 0, false),
        (-1, 8, false),
        (8, -1, false),
        (MQ_MESSAGES_MAX + 1, 1, false),
        (1, MQ_SIZE_MAX + 1, false),
        (i64::MAX, i64::MAX, false),
    ];
    for (messages, size, fits) in table {
        let mut host = Host::new();
        match sized(&mut host, user(1, 5), messages, size) {
            Ok(id) => {
                let attr = attributes(&mut host, user(1, 5), id).unwrap();
                assert_eq!((attr.max_messages, attr.message_size), (messages, size));
                assert!(fits, "{messages} {size}");
            }
            Err(errno) => assert_eq!((errno, fits), (EINVAL, false), "{messages} {size}"),
        }
    }
    let mut host = Host::new();
    let id = open(&mut host, root(1), "/q", O_CREAT).unwrap();
    let default = MqAttr { flags: 0, max_messages: 10, message_size: 8192, messages: 0 };
    assert_eq!(attributes(&mut host, root(1), id), Ok(default));
}

#[test]
fn a_malformed_attribute_block_is_refused() {
    for (attr_len, payload) in [(31, &[1; 40][..]), (32, &[1; 31]), (33, &[1; 40]), (32, &[])] {
        let row = MqOpen { flags: O_CREAT, mode: 0o600, attr_len };
        assert_eq!(Host::new().call(root(1), row, payload), Err(EINVAL), "{attr_len}");
    }
}

#[test]
fn one_user_cannot_reserve_everything() {
    let mut host = Host::new();
    let size = MQ_SIZE_MAX;
    let most = i64::try_from(MQ_BYTES_PER_USER).unwrap() / (size + 64);
    let id = sized(&mut host, user(1, 5), most, size).unwrap();
    assert_eq!(sized(&mut host, user(1, 5), most - 1, size), Err(EMFILE));
    assert!(sized(&mut host, user(2, 6), most - 1, size).is_ok(), "another user has its own");
    assert!(sized(&mut host, root(3), MQ_MESSAGES_MAX, size).is_ok(), "the superuser may");
    let name = format!("/q{most}x{size}");
    host.call(user(1, 5), MqUnlink {}, name.as_bytes()).unwrap();
    host.call(user(1, 5), MqClose { id }, b"").unwrap();
    assert!(sized(&mut host, user(1, 5), most, size).is_ok(), "what lingers makes room at once");
}

#[test]
fn the_mode_and_the_access_decide_who_may_open() {
    let table = [
        (0o400, user(2, 5), O_RDONLY, true),
        (0o400, user(2, 5), O_WRONLY, false),
        (0o400, user(2, 5), O_RDWR, false),
        (0o620, user(2, 6), O_WRONLY, true),
        (0o620, user(2, 6), O_RDONLY, false),
        (0o600, user(2, 6), O_RDONLY, false),
        (0o000, root(2), O_RDWR, true),
    ];
    for (mode, process, flags, opens) in table {
        let mut host = Host::new();
        let row = MqOpen { flags: O_CREAT | O_RDWR, mode, attr_len: NO_ATTR };
        assert!(host.call(user(1, 5), row, b"/q").is_ok());
        let opened = open(&mut host, process, "/q", flags).map(|_| ());
        assert_eq!(opened, if opens { Ok(()) } else { Err(EACCES) }, "{mode:o} {flags}");
    }
}

#[test]
fn only_the_owner_unlinks() {
    let mut host = Host::new();
    open(&mut host, user(1, 5), "/q", O_CREAT).unwrap();
    assert_eq!(host.call(user(2, 6), MqUnlink {}, b"/q"), Err(EACCES));
    assert_eq!(host.call(user(2, 5), MqUnlink {}, b"/q"), Ok(((), vec![])));
    assert_eq!(host.call(user(2, 5), MqUnlink {}, b"/q"), Err(ENOENT));
}

#[test]
fn a_description_allows_only_what_it_was_opened_for() {
    let mut host = Host::new();
    let reader = open(&mut host, root(1), "/q", O_CREAT | O_RDONLY).unwrap();
    let writer = open(&mut host, root(1), "/q", O_WRONLY).unwrap();
    let row = |id| MqSend { id, priority: 0, wait_ns: 0 };
    assert_eq!(host.call(root(1), row(reader), b"x"), Err(EBADF));
    assert_eq!(host.call(root(1), row(writer), b"x"), Ok(((), vec![])));
    let row = |id| MqReceive { id, size: 8192, wait_ns: 0 };
    assert_eq!(host.call(root(1), row(writer), b""), Err(EBADF));
    assert!(host.call(root(1), row(reader), b"").is_ok());
    assert_eq!(host.call(root(1), row(12345), b""), Err(EBADF));
    assert_eq!(host.call(root(1), MqClose { id: 12345 }, b""), Err(EBADF));
}

#[test]
fn sizes_and_priorities_are_checked() {
    let mut host = Host::new();
    let id = sized(&mut host, root(1), 2, 4).unwrap();
    let table = [
        (0, &b"12345"[..], Err(EMSGSIZE)),
        (0, b"1234", Ok(())),
        (MQ_PRIORITY_MAX, b"", Err(EINVAL)),
        (MQ_PRIORITY_MAX - 1, b"", Ok(())),
    ];
    for (priority, text, expected) in table {
        let row = MqSend { id, priority, wait_ns: 0 };
        assert_eq!(host.call(root(1), row, text).map(|_| ()), expected, "{priority}");
    }
    let row = |size| MqReceive { id, size, wait_ns: 0 };
    assert_eq!(host.call(root(1), row(3), b""), Err(EMSGSIZE));
    let (received, text) = host.call(root(1), row(4), b"").unwrap();
    assert_eq!((received.kind, text), (i64::from(MQ_PRIORITY_MAX) - 1, vec![]));
}

#[test]
fn who_would_wait_and_does_not_want_to_is_told() {
    let mut host = Host::new();
    let waits = open(&mut host, root(1), "/q", O_CREAT | O_RDWR).unwrap();
    let nonblocking = open(&mut host, root(1), "/q", O_RDWR | O_NONBLOCK).unwrap();
    let row = |id, wait_ns| MqReceive { id, size: 8192, wait_ns };
    assert_eq!(host.call(root(1), row(nonblocking, FOREVER), b""), Err(EAGAIN));
    assert_eq!(host.call(root(1), row(waits, 0), b""), Err(ETIMEDOUT));
    for _ in 0..10 {
        host.call(root(1), MqSend { id: waits, priority: 0, wait_ns: 0 }, b"x").unwrap();
    }
    let row = |id, wait_ns| MqSend { id, priority: 0, wait_ns };
    assert_eq!(host.call(root(1), row(nonblocking, FOREVER), b"x"), Err(EAGAIN));
    assert_eq!(host.call(root(1), row(waits, 0), b"x"), Err(ETIMEDOUT));
    let late = host.send(root(1), row(waits, SECOND), b"x");
    host.pass(SECOND);
    assert_eq!(host.answer::<MqSend>(late), Some(Err(ETIMEDOUT)));
    assert_eq!(attributes(&mut host, root(1), waits).unwrap().messages, 10);
}

#[test]
fn nonblocking_is_of_the_description_and_can_be_changed() {
    let mut host = Host::new();
    let id = open(&mut host, root(1), "/q", O_CREAT | O_RDWR).unwrap();
    let other = open(&mut host, root(1), "/q", O_RDWR).unwrap();
    let set = |flags| MqAttributes { id, set: 1, flags };
    assert_eq!(host.call(root(1), set(1), b""), Err(EINVAL));
    let (_, before) = host.call(root(2), set(i64::from(O_NONBLOCK)), b"").unwrap();
    assert_eq!(MqAttr::get(&before).unwrap().flags, 0);
    host.restart();
    let nonblocking = i64::from(O_NONBLOCK);
    assert_eq!(attributes(&mut host, root(1), id).unwrap().flags, nonblocking);
    assert_eq!(attributes(&mut host, root(1), other).unwrap().flags, 0);
    let (_, before) = host.call(root(1), set(0), b"").unwrap();
    assert_eq!(MqAttr::get(&before).unwrap().flags, nonblocking);
    assert_eq!(attributes(&mut host, root(1), id).unwrap().flags, 0);
}

#[test]
fn a_message_goes_to_the_receiver_that_has_waited_longest() {
    let mut host = Host::new();
    let id = open(&mut host, root(1), "/q", O_CREAT | O_RDWR).unwrap();
    let receivers: Vec<_> = (2..5).map(|index| receive(&mut host, root(index), id)).collect();
    for (number, receiver) in receivers.iter().enumerate() {
        let text = format!("message {number}");
        send(&mut host, root(1), id, 7, text.as_bytes());
        assert_eq!(got(&host, *receiver), Some(Ok((7, text.into_bytes()))));
    }
    assert_eq!(attributes(&mut host, root(1), id).unwrap().messages, 0);
}

#[test]
fn room_goes_to_the_sender_that_has_waited_longest() {
    let mut host = Host::new();
    let id = sized(&mut host, root(1), 1, 8).unwrap();
    send(&mut host, root(1), id, 0, b"first");
    let low = send(&mut host, root(2), id, 0, b"low");
    let high = send(&mut host, root(3), id, 9, b"high");
    let text = |host: &mut Host| {
        let call = receive(host, root(4), id);
        String::from_utf8(got(host, call).unwrap().unwrap().1).unwrap()
    };
    assert_eq!(text(&mut host), "first");
    assert!(!host.waits(low) && host.waits(high), "its place, not its priority, counts");
    assert_eq!(text(&mut host), "low");
    assert_eq!(text(&mut host), "high");
    assert!(!host.waits(high));
}

#[test]
fn the_dead_and_the_interrupted_leave_the_lines() {
    let mut host = Host::new();
    let id = sized(&mut host, root(1), 1, 8).unwrap();
    let first = receive(&mut host, root(2), id);
    receive(&mut host, root(3), id);
    receive(&mut host, on_node(2, 1, 0), id);
    let last = receive(&mut host, root(4), id);
    host.cancel(first);
    host.dies(root(3));
    host.gone(Gone::Node(NodeId(2)));
    assert!(host.was_interrupted(first));
    send(&mut host, root(1), id, 1, b"x");
    assert_eq!(got(&host, last), Some(Ok((1, b"x".to_vec()))));
    send(&mut host, root(1), id, 0, b"full");
    send(&mut host, root(5), id, 0, b"dead");
    host.dies(root(5));
    let call = receive(&mut host, root(6), id);
    assert_eq!(got(&host, call), Some(Ok((0, b"full".to_vec()))));
    assert!({
        let call = receive(&mut host, root(6), id);
        host.waits(call)
    });
}

#[test]
fn an_unlinked_queue_lives_until_its_last_description_ends() {
    let mut host = Host::new();
    let id = open(&mut host, root(1), "/q", O_CREAT | O_RDWR).unwrap();
    send(&mut host, root(1), id, 0, b"x");
    host.call(root(1), MqUnlink {}, b"/q").unwrap();
    assert_eq!(open(&mut host, root(2), "/q", O_RDWR), Err(ENOENT));
    let other = open(&mut host, root(2), "/q", O_CREAT | O_RDWR).unwrap();
    assert_eq!(attributes(&mut host, root(2), other).unwrap().messages, 0, "another queue");
    assert_eq!(attributes(&mut host, root(1), id).unwrap().messages, 1);
    host.call(root(1), MqClose { id }, b"").unwrap();
    host.pass(2 * LINGER);
    assert_eq!(attributes(&mut host, root(1), id), Err(EBADF));
}

#[test]
fn a_description_is_shared_with_forked_children() {
    let mut host = Host::new();
    let id = open(&mut host, root(1), "/q", O_CREAT | O_RDWR).unwrap();
    send(&mut host, root(2), id, 0, b"from a child");
    host.dies(root(1));
    host.pass(2 * LINGER);
    assert_eq!(attributes(&mut host, root(2), id).unwrap().messages, 1);
    host.call(root(2), MqClose { id }, b"").unwrap();
    host.pass(2 * LINGER);
    assert_eq!(attributes(&mut host, root(2), id), Err(EBADF));
    let again = open(&mut host, root(3), "/q", O_RDWR).unwrap();
    assert_eq!(attributes(&mut host, root(3), again).unwrap().messages, 1, "the queue has a name");
}

#[test]
fn what_is_gone_leaves_nothing_in_the_store() {
    let mut host = Host::new();
    let empty = format!("{:?}", host.store);
    let id = open(&mut host, root(1), "/q", O_CREAT | O_RDWR).unwrap();
    for priority in 0..5 {
        send(&mut host, root(2), id, priority, b"text");
    }
    host.call(root(3), MqUnlink {}, b"/q").unwrap();
    host.gone(Gone::Node(NodeId(1)));
    assert_eq!(format!("{:?}", host.store), empty);
}

proptest! {
    /// Against the definition: the oldest of the messages with the highest priority, across restarts.
    #[test]
    fn messages_come_by_priority_and_then_by_age(
        steps in prop::collection::vec((any::<bool>(), 0u32..4, any::<bool>()), 1..80),
    ) {
        let mut host = Host::new();
        let id = sized(&mut host, root(1), 100, 8).unwrap();
        let mut model: Vec<(u32, u8)> = Vec::new();
        for (number, (sends, priority, restarts)) in (0u8..).zip(steps) {
            if restarts {
                host.restart();
            }
            if sends {
                send(&mut host, root(1), id, priority, &[number]);
                model.push((priority, number));
                continue;
            }
            let row = MqReceive { id, size: 8, wait_ns: 0 };
            let answer = host.call(root(1), row, b"").map(|(got, text)| (got.kind, text));
            let highest = model.iter().map(|(priority, _)| *priority).max();
            match highest {
                None => prop_assert_eq!(answer, Err(ETIMEDOUT)),
                Some(highest) => {
                    let first = model.iter().position(|(priority, _)| *priority == highest);
                    let (priority, number) = model.remove(first.unwrap());
                    prop_assert_eq!(answer, Ok((i64::from(priority), vec![number])));
                }
            }
        }
    }
}
