//! List: all objects of the DC, for `dvs ipcs`.

use crate::{IpcServer, Served, done_with};
use calls::ipc::{List, Listed, Perm};
use calls::vfs::Count;
use calls::wire::Wire;
use m3ipc::limits::PAYLOAD_MAX;

/// One object: its record and its name.
type Row = (Listed, Vec<u8>);

/// Answers records `from` and following, as many as fit; each object is one record, POSIX
/// semaphores first, then POSIX queues, SysV semaphores and SysV queues.
pub(crate) fn list(server: &IpcServer, args: List) -> Served {
    let rows = rows(server);
    let room = (args.size as usize).min(PAYLOAD_MAX);
    let mut payload = Vec::new();
    for (listed, name) in rows.iter().skip(args.from as usize) {
        if payload.len() + Listed::SIZE + name.len() > room {
            break;
        }
        payload.extend_from_slice(&listed.bytes());
        payload.extend_from_slice(name);
    }
    done_with::<List>(Count { count: rows.len() as u64 }, payload)
}

fn rows(server: &IpcServer) -> Vec<Row> {
    let semaphores = server.semaphores.rows().into_iter().map(|row| {
        let (owner, counts) = (row.owner, (u64::from(row.value), row.waiters as u64));
        posix(b's', row.number, row.name, (owner.mode, owner.uid, owner.gid), counts)
    });
    let queues = server.queues.rows().into_iter().map(|row| {
        let (owner, counts) = (row.owner, (row.messages, row.messages_max));
        posix(b'q', row.number, row.name, (owner.mode, owner.uid, owner.gid), counts)
    });
    let sets = server.sets.rows().map(|(id, perm, count)| sysv(b'S', id, perm, (count, 0)));
    let sysv_queues = server.sysv_queues.rows();
    let sysv_queues =
        sysv_queues.map(|(id, perm, messages, bytes)| sysv(b'Q', id, perm, (messages, bytes)));
    semaphores.chain(queues).chain(sets).chain(sysv_queues).collect()
}

/// `owner` is mode, uid and gid. The longest name loses its last byte to the slash.
fn posix(kind: u8, id: u64, name: &[u8], owner: (u32, u32, u32), counts: (u64, u64)) -> Row {
    let mut full = Vec::new();
    if !name.is_empty() {
        full.push(b'/');
        full.extend_from_slice(name);
        full.truncate(usize::from(u8::MAX));
    }
    let name_len = u8::try_from(full.len()).expect("it is cut to 255");
    let (mode, uid, gid) = owner;
    (Listed { kind, name_len, mode, uid, gid, key: 0, id, a: counts.0, b: counts.1 }, full)
}

fn sysv(kind: u8, id: i32, perm: &Perm, counts: (u64, u64)) -> Row {
    let Perm { mode, uid, gid, key, .. } = *perm;
    let id = u64::from(id.cast_unsigned());
    (Listed { kind, name_len: 0, mode, uid, gid, key, id, a: counts.0, b: counts.1 }, Vec::new())
}
