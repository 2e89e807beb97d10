//! List: what `dvs ipcs` shows.

use crate::host::{Host, root, user};
use calls::ipc::{FOREVER, List, Listed, MqOpen, MqSend, MsgGet, SemGet, SemOpen, SemWait};
use calls::vfs::Count;
use calls::wire::Wire;
use ipc_server::flags::{IPC_CREAT, O_CREAT, O_RDWR};

/// The records of a list: each with its name.
fn records(mut payload: &[u8]) -> Vec<(Listed, String)> {
    let mut records = Vec::new();
    while let Some(listed) = Listed::get(payload) {
        let (name, rest) = payload[Listed::SIZE..].split_at(usize::from(listed.name_len));
        records.push((listed, String::from_utf8(name.to_vec()).unwrap()));
        payload = rest;
    }
    assert!(payload.is_empty());
    records
}

fn populated() -> Host {
    let mut host = Host::new();
    let make = SemOpen { flags: O_CREAT, mode: 0o640, value: 0 };
    let (object, _) = host.call(user(1, 5), make, b"/sem").unwrap();
    host.send(user(2, 5), SemWait { id: object.id, wait_ns: FOREVER }, b"");
    let make = MqOpen { flags: O_CREAT | O_RDWR, mode: 0o600, attr_len: 0 };
    let (object, _) = host.call(root(1), make, b"/mq").unwrap();
    host.call(root(1), MqSend { id: object.id, priority: 0, wait_ns: 0 }, b"x").unwrap();
    host.call(root(1), SemGet { key: 7, count: 3, flags: IPC_CREAT | 0o600 }, b"").unwrap();
    host.call(root(1), MsgGet { key: 8, flags: IPC_CREAT | 0o666 }, b"").unwrap();
    host
}

#[test]
fn every_object_is_listed_with_its_kind_and_counts() {
    let mut host = populated();
    let (Count { count }, payload) =
        host.call(user(9, 77), List { from: 0, size: 1 << 20 }, b"").unwrap();
    assert_eq!(count, 4);
    let rows = records(&payload);
    let told: Vec<_> = rows
        .iter()
        .map(|(row, name)| {
            (char::from(row.kind), &name[..], row.mode, row.uid, row.key, row.a, row.b)
        })
        .collect();
    let expected = [
        ('s', "/sem", 0o640, 5, 0, 0, 1),
        ('q', "/mq", 0o600, 0, 0, 1, 10),
        ('S', "", 0o600, 0, 7, 3, 0),
        ('Q', "", 0o666, 0, 8, 0, 0),
    ];
    assert_eq!(told, expected);
    assert!(rows.iter().all(|(row, _)| row.id == 0), "a list tells numbers, never capabilities");
}

#[test]
fn pages_of_any_size_make_up_the_list() {
    let mut host = populated();
    let (_, all) = host.call(root(9), List { from: 0, size: 1 << 20 }, b"").unwrap();
    for size in (Listed::SIZE + 4)..200 {
        let mut pages = Vec::new();
        loop {
            let from = u32::try_from(records(&pages).len()).unwrap();
            let row = List { from, size: u32::try_from(size).unwrap() };
            let (_, page) = host.call(root(9), row, b"").unwrap();
            assert!(page.len() <= size);
            if page.is_empty() {
                break;
            }
            pages.extend(page);
        }
        assert_eq!(pages, all, "pages of {size} bytes");
    }
}
