//! SysV message queues: msgget(2), msgsnd(2), msgrcv(2), msgctl(2).

use crate::sysv_sem::command;
use calls::call;
use calls::ipc::{MsgCtl, MsgGet, MsgReceive, MsgSend, MsgStat, SetPerm};
use calls::wire::Wire;
use m3ipc::errno::numbers::{EINVAL, EPROTO};
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, Errno, Sendrec, Wait};

/// msgget(2).
///
/// # Errors
/// As msgget(2).
pub fn get(port: &impl Sendrec, key: i32, flags: i32) -> Result<i32, Errno> {
    let row = MsgGet { key, flags: flags.cast_unsigned() };
    call(port, Endpoint::IPC, &row, &[], &mut [], Wait::FOREVER).map(|(value, _)| value.value)
}

/// msgsnd(2); a signal handler always interrupts it.
///
/// # Errors
/// As msgsnd(2).
pub fn send(port: &impl Sendrec, id: i32, kind: i64, text: &[u8], flags: i32) -> Result<(), Errno> {
    if id < 0 || kind < 1 || text.len() > PAYLOAD_MAX {
        return Err(Errno::new(EINVAL));
    }
    let row = MsgSend { id, kind, flags: flags.cast_unsigned() };
    call(port, Endpoint::IPC, &row, &[text], &mut [], Wait::INTERRUPT).map(|_| ())
}

/// msgrcv(2): length and type of the message whose text is now at the front of `buffer`. A signal
/// handler always interrupts it.
///
/// # Errors
/// As msgrcv(2).
pub fn receive(
    port: &impl Sendrec,
    id: i32,
    kind: i64,
    buffer: &mut [u8],
    flags: i32,
) -> Result<(usize, i64), Errno> {
    if id < 0 {
        return Err(Errno::new(EINVAL));
    }
    let row = MsgReceive { id, kind, size: buffer.len() as u64, flags: flags.cast_unsigned() };
    let room = buffer.len().min(PAYLOAD_MAX);
    let buffer = buffer.get_mut(..room).unwrap_or_default();
    let (received, len) = call(port, Endpoint::IPC, &row, &[], buffer, Wait::INTERRUPT)?;
    Ok((len, received.kind))
}

/// msgctl with IPC_STAT of `id`, or MSG_STAT or MSG_STAT_ANY of place `id` of the table: what msgctl
/// returns, and the queue.
///
/// # Errors
/// EACCES, EIDRM, EINVAL.
pub fn stat(port: &impl Sendrec, id: i32, command: i32) -> Result<(i32, MsgStat), Errno> {
    let mut bytes = [0; MsgStat::SIZE];
    let row = MsgCtl { id, command };
    let (value, len) = call(port, Endpoint::IPC, &row, &[], &mut bytes, Wait::FOREVER)?;
    let stat = MsgStat::get(bytes.get(..len).unwrap_or_default()).ok_or(Errno::new(EPROTO))?;
    Ok((value.value, stat))
}

/// msgctl with IPC_INFO or MSG_INFO: the highest place of the table in use, and `struct msginfo`.
///
/// # Errors
/// EINVAL.
pub fn info(port: &impl Sendrec, command: i32) -> Result<(i32, [u8; 32]), Errno> {
    let mut bytes = [0; 32];
    let (value, _) =
        call(port, Endpoint::IPC, &MsgCtl { id: 0, command }, &[], &mut bytes, Wait::FOREVER)?;
    Ok((value.value, bytes))
}

/// msgctl(IPC_SET).
///
/// # Errors
/// EIDRM, EINVAL, EPERM.
pub fn set_perm(port: &impl Sendrec, id: i32, perm: SetPerm) -> Result<(), Errno> {
    let row = MsgCtl { id, command: command::IPC_SET };
    call(port, Endpoint::IPC, &row, &[&perm.bytes()], &mut [], Wait::FOREVER).map(|_| ())
}

/// msgctl(IPC_RMID), and other commands without data.
///
/// # Errors
/// EIDRM, EINVAL, EPERM.
pub fn control(port: &impl Sendrec, id: i32, command: i32) -> Result<i32, Errno> {
    call(port, Endpoint::IPC, &MsgCtl { id, command }, &[], &mut [], Wait::FOREVER)
        .map(|(value, _)| value.value)
}

#[cfg(test)]
mod tests {
    use super::{PAYLOAD_MAX, get, receive, send};
    use crate::fake::Fake;
    use calls::ipc::{MsgGet, MsgReceive, MsgSend, Received, Value};
    use m3ipc::Wait;
    use m3ipc::errno::numbers::EINVAL;
    use std::vec;

    #[test]
    fn a_message_keeps_its_type_and_text() {
        let fake = Fake::replying::<MsgReceive>(&Received { kind: 4, len: 2 }, b"hi");
        let mut text = [0; 8];
        assert_eq!(receive(&fake, 3, -5, &mut text, 0o10000), Ok((2, 4)));
        assert_eq!(
            fake.row::<MsgReceive>(),
            MsgReceive { id: 3, kind: -5, size: 8, flags: 0o10000 }
        );
        assert_eq!((&text[..2], fake.last().wait), (&b"hi"[..], Wait::INTERRUPT));
        let fake = Fake::answering([]);
        assert_eq!(send(&fake, 3, 4, b"hi", 0o4000), Ok(()));
        assert_eq!(fake.row::<MsgSend>(), MsgSend { id: 3, kind: 4, flags: 0o4000 });
        assert_eq!((fake.payload(), fake.last().wait), (b"hi".to_vec(), Wait::INTERRUPT));
    }

    #[test]
    fn what_linux_refuses_is_refused_without_a_call() {
        let fake = Fake::replying::<MsgGet>(&Value { value: 2 }, []);
        let large = vec![0; PAYLOAD_MAX + 1];
        for (id, kind, text) in [(-1, 1, &b"a"[..]), (1, 0, b"a"), (1, -1, b"a"), (1, 1, &large)] {
            assert_eq!(send(&fake, id, kind, text, 0).map_err(|error| error.errno), Err(EINVAL));
        }
        assert_eq!(receive(&fake, -1, 0, &mut [], 0).map_err(|error| error.errno), Err(EINVAL));
        assert_eq!(fake.calls(), 0);
        assert_eq!(get(&fake, 7, 0o600), Ok(2));
    }
}
