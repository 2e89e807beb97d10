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
    call(port, Endpoint::IPC, &row, &[bytes, name.bytes()], &mut [], Wait::FOREVER)
        .map(|(object, _)| object.id)
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
pub fn send(
    port: &impl Sendrec,
    id: u64,
    message: &[u8],
    priority: u32,
    deadline: Deadline,
) -> Result<(), Errno> {
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

#[cfg(test)]
mod tests {
    use super::{O_NONBLOCK, PAYLOAD_MAX, attributes, open, receive, send};
    use crate::deadline::{Clock, Deadline, Timespec};
    use crate::fake::Fake;
    use crate::name::Name;
    use calls::ipc::{FOREVER, MqAttr, MqAttributes, MqOpen, MqReceive, MqSend, Object, Received};
    use calls::wire::Wire;
    use m3ipc::Wait;
    use m3ipc::errno::numbers::{EINVAL, EMSGSIZE, EPROTO};
    use std::vec;

    const ATTRIBUTES: MqAttr = MqAttr { flags: 0, max_messages: 3, message_size: 16, messages: 1 };

    #[test]
    fn attributes_stand_in_front_of_the_name() {
        let fake = Fake::replying::<MqOpen>(&Object { id: 77 }, []);
        let name = Name::slash_queue(b"/q").expect("a name");
        assert_eq!(open(&fake, &name, 0o102, 0o600, Some(ATTRIBUTES)), Ok(77));
        assert_eq!(usize::from(fake.row::<MqOpen>().attr_len), MqAttr::SIZE);
        assert_eq!(fake.payload(), [&ATTRIBUTES.bytes()[..], b"/q"].concat());
        assert_eq!(open(&fake, &name, 0o2, 0, None), Ok(77));
        assert_eq!((fake.row::<MqOpen>().attr_len, fake.payload()), (0, b"/q".to_vec()));
    }

    #[test]
    fn a_message_arrives_with_its_length_and_priority() {
        let fake = Fake::replying::<MqReceive>(&Received { kind: 9, len: 3 }, b"abc");
        let mut buffer = [0; 16];
        assert_eq!(receive(&fake, 1, &mut buffer, Deadline::Never), Ok((3, 9)));
        assert_eq!(&buffer[..3], b"abc");
        assert_eq!(fake.row::<MqReceive>(), MqReceive { id: 1, size: 16, wait_ns: FOREVER });
        assert_eq!(fake.last().wait, Wait::RESTART);
    }

    #[test]
    fn a_buffer_larger_than_a_payload_is_told_to_the_server_but_only_its_front_used() {
        let fake = Fake::replying::<MqReceive>(&Received { kind: 0, len: 1 }, b"a");
        let mut buffer = vec![0; PAYLOAD_MAX + 5];
        assert_eq!(receive(&fake, 1, &mut buffer, Deadline::Never), Ok((1, 0)));
        assert_eq!(fake.row::<MqReceive>().size, PAYLOAD_MAX as u64 + 5);
        assert_eq!(fake.last().room, PAYLOAD_MAX);
    }

    #[test]
    fn what_linux_refuses_is_refused_without_a_call() {
        let fake = Fake::answering([]);
        let early = Deadline::At(Clock::Realtime, Timespec { sec: -1, nsec: 0 });
        assert_eq!(send(&fake, 1, b"m", 0, early).map_err(|error| error.errno), Err(EINVAL));
        let large = vec![0; PAYLOAD_MAX + 1];
        assert_eq!(
            send(&fake, 1, &large, 0, Deadline::Never).map_err(|error| error.errno),
            Err(EMSGSIZE)
        );
        assert_eq!(
            attributes(&fake, 1, Some(O_NONBLOCK | 1)).map_err(|error| error.errno),
            Err(EINVAL)
        );
        assert_eq!(fake.calls(), 0);
        assert_eq!(send(&fake, 1, b"m", 4, Deadline::Never), Ok(()));
        assert_eq!(fake.row::<MqSend>(), MqSend { id: 1, priority: 4, wait_ns: FOREVER });
    }

    #[test]
    fn attributes_are_asked_or_set_and_a_cut_answer_is_refused() {
        let fake = Fake::answering(ATTRIBUTES.bytes());
        assert_eq!(attributes(&fake, 1, None), Ok(ATTRIBUTES));
        assert_eq!(fake.row::<MqAttributes>(), MqAttributes { id: 1, set: 0, flags: 0 });
        assert_eq!(attributes(&fake, 1, Some(O_NONBLOCK)), Ok(ATTRIBUTES));
        assert_eq!(fake.row::<MqAttributes>(), MqAttributes { id: 1, set: 1, flags: O_NONBLOCK });
        for cut in 0..MqAttr::SIZE {
            let fake = Fake::answering(&ATTRIBUTES.bytes()[..cut]);
            assert_eq!(
                attributes(&fake, 1, None).map_err(|error| error.errno),
                Err(EPROTO),
                "cut at {cut}"
            );
        }
    }
}
