//! POSIX message queues, by the number of an open queue description.

use crate::deadline::Deadline;
use crate::name::Name;
use calls::call;
use calls::ipc::{MqAttr, MqAttributes, MqClose, MqOpen, MqReceive, MqSend, MqUnlink};
use calls::wire::Wire;
use m3ipc::errno::numbers::{EINVAL, EMSGSIZE, EPROTO};
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, Errno, Sendrec, Wait};

/// The flag that mq_setattr(3) can change.
pub const O_NONBLOCK: i64 = 0o4000;

/// mq_open(3). `flags` are open(2)'s; `mode` is without the umask's bits already.
///
/// # Errors
/// As mq_open(3).
pub fn open(
    port: &impl Sendrec,
    name: &Name,
    flags: u32,
    mode: u32,
    attributes: Option<MqAttr>,
) -> Result<u64, Errno> {
    let bytes = attributes.map(|attributes| attributes.bytes());
    let bytes = bytes.as_ref().map_or(&[][..], |bytes| bytes);
    let attr_len = u16::try_from(bytes.len()).unwrap_or(0);
    let row = MqOpen { flags, mode, attr_len };
    call(port, Endpoint::IPC, &row, &[bytes, name.bytes()], &mut [], Wait::FOREVER).map(|(object, _)| object.id)
}

/// mq_close(3) of a description that this process will not use any more.
///
/// # Errors
/// EBADF.
pub fn close(port: &impl Sendrec, id: u64) -> Result<(), Errno> {
    call(port, Endpoint::IPC, &MqClose { id }, &[], &mut [], Wait::FOREVER).map(|_| ())
}

/// mq_unlink(3).
///
/// # Errors
/// ENOENT, EACCES.
pub fn unlink(port: &impl Sendrec, name: &Name) -> Result<(), Errno> {
    call(port, Endpoint::IPC, &MqUnlink {}, &[name.bytes()], &mut [], Wait::FOREVER).map(|_| ())
}

/// mq_send, mq_timedsend. Goes on after a signal handler with SA_RESTART, timed or not: Linux does so.
///
/// # Errors
/// EAGAIN, EBADF, EINTR, EINVAL, EMSGSIZE, ETIMEDOUT.
pub fn send(port: &impl Sendrec, id: u64, message: &[u8], priority: u32, deadline: Deadline) -> Result<(), Errno> {
    let row = MqSend { id, priority, wait_ns: wait_ns(deadline)? };
    if message.len() > PAYLOAD_MAX {
        return Err(Errno::new(EMSGSIZE));
    }
    call(port, Endpoint::IPC, &row, &[message], &mut [], Wait::RESTART).map(|_| ())
}

/// mq_receive, mq_timedreceive: length and priority of the message now at the front of `buffer`.
///
/// # Errors
/// EAGAIN, EBADF, EINTR, EINVAL, EMSGSIZE, ETIMEDOUT.
pub fn receive(
    port: &impl Sendrec,
    id: u64,
    buffer: &mut [u8],
    deadline: Deadline,
) -> Result<(usize, u32), Errno> {
    let row = MqReceive { id, size: buffer.len() as u64, wait_ns: wait_ns(deadline)? };
    let room = buffer.len().min(PAYLOAD_MAX);
    let buffer = buffer.get_mut(..room).unwrap_or_default();
    let (received, len) = call(port, Endpoint::IPC, &row, &[], buffer, Wait::RESTART)?;
    Ok((len, u32::try_from(received.kind).map_err(|_| Errno::new(EPROTO))?))
}

/// mq_getattr, or mq_setattr if `flags` are given: the attributes from before.
///
/// # Errors
/// EBADF; EINVAL: flags other than O_NONBLOCK.
pub fn attributes(port: &impl Sendrec, id: u64, flags: Option<i64>) -> Result<MqAttr, Errno> {
    if flags.unwrap_or(0) & !O_NONBLOCK != 0 {
        return Err(Errno::new(EINVAL));
    }
    let row = MqAttributes { id, set: u8::from(flags.is_some()), flags: flags.unwrap_or(0) };
    let mut bytes = [0; MqAttr::SIZE];
    let (_, len) = call(port, Endpoint::IPC, &row, &[], &mut bytes, Wait::FOREVER)?;
    MqAttr::get(bytes.get(..len).unwrap_or_default()).ok_or(Errno::new(EPROTO))
}

/// Linux refuses times before the epoch here, though not for semaphores.
fn wait_ns(deadline: Deadline) -> Result<u64, Errno> {
    match deadline {
        Deadline::At(_, at) if at.sec < 0 => Err(Errno::new(EINVAL)),
        _ => deadline.wait_ns(),
    }
}
