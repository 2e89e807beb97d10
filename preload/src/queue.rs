//! mq_open(3) and its family. A descriptor of a DC's queue is a sealed memfd that holds the number of
#![expect(unsafe_code, reason = "exported names")]
//! its open queue description: dup, fork, close and SCM_RIGHTS are the kernel's business.
//!
//! A descriptor that is not one of these goes to the kernel: it may be a queue of its own.

use crate::errno::{or_kernel, result, status};
use crate::kernel::{self, call};
use crate::libc::{cancellable, cancellation_point, is_glibc};
use core::ffi::{c_int, c_long, c_uint, c_void};
use core::ptr;
use libdvsposix::deadline::{Clock, Deadline, Timespec};
use libdvsposix::name::Name;
use libdvsposix::pointer::{Array, Bytes, BytesMut, Out, Text};
use libdvsposix::session::Session;
use libdvsposix::{mq, umask};
use m3ipc::Errno;
use m3ipc::errno::numbers::{EINVAL, EIO, ENOSYS};

/// `struct mq_attr`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct MqAttr {
    flags: c_long,
    max_messages: c_long,
    message_size: c_long,
    messages: c_long,
    reserved: [c_long; 4],
}

const O_CREAT: c_int = 0o100;

/// What a memfd holds: this, and the description's number.
const MAGIC: [u8; 16] = *b"DVS\0mq\0\x9c\x1f\x5e\xb3\x07\xd2\x66\xa8\x41";
const CONTENT: usize = MAGIC.len() + size_of::<u64>();

#[unsafe(no_mangle)]
pub(crate) extern "C" fn mq_open(
    name: Text<'_>,
    flags: c_int,
    mode: c_uint,
    attributes: Array<'_, MqAttr>,
) -> c_int {
    // Without O_CREAT there are no further arguments: what is in their registers means nothing.
    let (mode, attributes) =
        if flags & O_CREAT != 0 { (mode, attributes) } else { (0, Array::at(ptr::null())) };
    result(bare(name).and_then(|name| open(name, flags, mode, attributes)))
}

/// What `mq_open` becomes with _FORTIFY_SOURCE when it has two arguments.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn __mq_open_2(name: Text<'_>, flags: c_int) -> c_int {
    if flags & O_CREAT != 0 {
        return result(Err(Errno::new(EINVAL)));
    }
    mq_open(name, flags, 0, Array::at(ptr::null()))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn mq_close(descriptor: c_int) -> c_int {
    let description = description(descriptor);
    status(call!(close, descriptor).map(|_| {
        // Others may still have it; the server knows who does.
        description.map(|id| mq::close(&Session, id));
    }))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn mq_unlink(name: Text<'_>) -> c_int {
    result(bare(name).and_then(unlink))
}

#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn mq_send(
    descriptor: c_int,
    message: Bytes<'_>,
    len: usize,
    priority: c_uint,
) -> c_int {
    result(send(descriptor, message, len, priority, None))
}

#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn mq_timedsend(
    descriptor: c_int,
    message: Bytes<'_>,
    len: usize,
    priority: c_uint,
    deadline: Option<&Timespec>,
) -> c_int {
    result(send(descriptor, message, len, priority, deadline))
}

#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn mq_receive(
    descriptor: c_int,
    buffer: BytesMut<'_>,
    len: usize,
    priority: Out<'_, c_uint>,
) -> isize {
    result(receive(descriptor, buffer, len, priority, None))
}

#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn mq_timedreceive(
    descriptor: c_int,
    buffer: BytesMut<'_>,
    len: usize,
    priority: Out<'_, c_uint>,
    deadline: Option<&Timespec>,
) -> isize {
    result(receive(descriptor, buffer, len, priority, deadline))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn mq_getattr(descriptor: c_int, attributes: Out<'_, MqAttr>) -> c_int {
    result(attributes_of(descriptor, None, attributes))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn mq_setattr(
    descriptor: c_int,
    new: Option<&MqAttr>,
    old: Out<'_, MqAttr>,
) -> c_int {
    result(attributes_of(descriptor, new, old))
}

/// Not there yet for the DC's queues: ENOSYS.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn mq_notify(descriptor: c_int, event: *const c_void) -> c_int {
    result(match description(descriptor) {
        Some(_) => Err(Errno::new(ENOSYS)),
        None => call!(mq_notify, descriptor, event).map(kernel::int),
    })
}

/// mq_open(2): the name comes without its slash.
pub(crate) fn open(
    name: Text<'_>,
    flags: c_int,
    mode: c_uint,
    attributes: Array<'_, MqAttr>,
) -> Result<c_int, Errno> {
    let local = || call!(mq_open, name.address(), flags, mode, attributes.address());
    if Session.is_outside() {
        return local().map(kernel::int);
    }
    let creates = flags & O_CREAT != 0;
    let given =
        if creates && !attributes.address().is_null() { attributes.get(1)?.first() } else { None };
    let given = given.map(|given| calls::ipc::MqAttr {
        flags: given.flags,
        max_messages: given.max_messages,
        message_size: given.message_size,
        messages: given.messages,
    });
    let mode = if creates { umask::apply(mode) } else { 0 };
    let name = Name::queue(name.bytes()?)?;
    // The descriptor first: once the description is there nothing may fail for want of one.
    let descriptor = Descriptor::new()?;
    let opened = mq::open(&Session, &name, flags.cast_unsigned(), mode, given);
    let opened = opened.and_then(|id| {
        descriptor.fill(id).inspect_err(|_| {
            mq::close(&Session, id).ok();
        })
    });
    match opened {
        Ok(()) => Ok(descriptor.into_number()),
        Err(error) => or_kernel(Err(error), local),
    }
}

/// mq_unlink(2): the name comes without its slash.
pub(crate) fn unlink(name: Text<'_>) -> Result<c_int, Errno> {
    let unlinked = name.bytes().and_then(|bytes| mq::unlink(&Session, &Name::queue(bytes)?));
    or_kernel(unlinked.map(|()| 0), || call!(mq_unlink, name.address()))
}

pub(crate) fn send(
    descriptor: c_int,
    message: Bytes<'_>,
    len: usize,
    priority: c_uint,
    deadline: Option<&Timespec>,
) -> Result<c_int, Errno> {
    cancellation_point();
    match description(descriptor) {
        Some(id) => {
            mq::send(&Session, id, message.get(len)?, priority, until(deadline)).map(|()| 0)
        }
        None => {
            let deadline = deadline.map_or(ptr::null(), ptr::from_ref);
            let message = message.address();
            cancellable(|| call!(mq_timedsend, descriptor, message, len, priority, deadline))
                .map(kernel::int)
        }
    }
}

pub(crate) fn receive(
    descriptor: c_int,
    buffer: BytesMut<'_>,
    len: usize,
    priority: Out<'_, c_uint>,
    deadline: Option<&Timespec>,
) -> Result<isize, Errno> {
    cancellation_point();
    match description(descriptor) {
        Some(id) => {
            let (len, found) = mq::receive(&Session, id, buffer.get(len)?, until(deadline))?;
            if let Some(priority) = priority {
                priority.write(found);
            }
            isize::try_from(len).map_err(|_| Errno::new(EIO))
        }
        None => {
            let deadline = deadline.map_or(ptr::null(), ptr::from_ref);
            let priority = priority.map_or(ptr::null_mut(), |priority| priority.as_mut_ptr());
            let buffer = buffer.address();
            let received = cancellable(|| {
                call!(mq_timedreceive, descriptor, buffer, len, priority, deadline)
            })?;
            isize::try_from(received).map_err(|_| Errno::new(EIO))
        }
    }
}

/// mq_getsetattr(2).
pub(crate) fn attributes_of(
    descriptor: c_int,
    new: Option<&MqAttr>,
    old: Out<'_, MqAttr>,
) -> Result<c_int, Errno> {
    let Some(id) = description(descriptor) else {
        let new = new.map_or(ptr::null(), ptr::from_ref);
        let old = old.map_or(ptr::null_mut(), |old| old.as_mut_ptr());
        return call!(mq_getsetattr, descriptor, new, old).map(kernel::int);
    };
    let found = mq::attributes(&Session, id, new.map(|new| new.flags))?;
    if let Some(old) = old {
        old.write(MqAttr {
            flags: found.flags,
            max_messages: found.max_messages,
            message_size: found.message_size,
            messages: found.messages,
            reserved: [0; 4],
        });
    }
    Ok(0)
}

/// The number of the open queue description that this descriptor stands for.
fn description(descriptor: c_int) -> Option<u64> {
    let mut content = [0u8; CONTENT];
    let read = call!(pread64, descriptor, content.as_mut_ptr(), CONTENT, 0);
    if read != Ok(CONTENT) {
        return None;
    }
    Some(u64::from_le_bytes(*content.strip_prefix(&MAGIC)?.first_chunk()?))
}

/// A memfd that is to stand for a description; closed if it comes to nothing.
struct Descriptor(c_int);

impl Descriptor {
    /// Closed on exec, as Linux has it for its own queues.
    fn new() -> Result<Descriptor, Errno> {
        const MFD_CLOEXEC_ALLOW_SEALING: c_int = 3;
        call!(memfd_create, c"dvs-mq".as_ptr(), MFD_CLOEXEC_ALLOW_SEALING)
            .map(|descriptor| Descriptor(kernel::int(descriptor)))
    }

    fn fill(&self, id: u64) -> Result<(), Errno> {
        const F_ADD_SEALS: c_int = 1033;
        const F_SEAL_ALL: c_int = 15;
        let mut content = [0u8; CONTENT];
        let (magic, number) = content.split_at_mut(MAGIC.len());
        magic.copy_from_slice(&MAGIC);
        number.copy_from_slice(&id.to_le_bytes());
        if call!(pwrite64, self.0, content.as_ptr(), CONTENT, 0)? != CONTENT {
            return Err(Errno::new(EIO));
        }
        call!(fcntl, self.0, F_ADD_SEALS, F_SEAL_ALL).map(|_| ())
    }

    fn into_number(self) -> c_int {
        let number = self.0;
        core::mem::forget(self);
        number
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        call!(close, self.0).ok();
    }
}

/// The name as the system call wants it. glibc insists on the slash, musl does not.
fn bare(name: Text<'_>) -> Result<Text<'_>, Errno> {
    match name.bytes()?.first() {
        Some(b'/') => Ok(Text::at(name.address().wrapping_add(1))),
        _ if is_glibc() => Err(Errno::new(EINVAL)),
        _ => Ok(name),
    }
}

fn until(deadline: Option<&Timespec>) -> Deadline {
    deadline.map_or(Deadline::Never, |at| Deadline::At(Clock::Realtime, *at))
}
