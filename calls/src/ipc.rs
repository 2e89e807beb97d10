//! The rows of ipc-server: POSIX named semaphores and message queues, SysV semaphores and queues.
//!
//! Deadlines are relative, in nanoseconds from the server's receipt of the call: [`FOREVER`], 0 (do
//! not wait) or a time. The client turns an absolute deadline into a relative one.
//! Names travel as payload, with their leading slash, without a NUL.

use crate::wire_structs;

/// Wait for ever.
pub const FOREVER: u64 = u64::MAX;

wire_structs! {
    /// An object of this server, by number. Numbers are not used again.
    pub struct Object { pub id: u64 }
    /// A SysV identifier, 0..=i32::MAX, or what a *ctl call returns.
    pub struct Value { pub value: i32 }
    /// A message that was received: its priority or type, and its length (the payload's).
    pub struct Received { pub kind: i64, pub len: u64 }

    /// mq_getattr(3) and the attributes for mq_open(3).
    pub struct MqAttr { pub flags: i64, pub max_messages: i64, pub message_size: i64, pub messages: i64 }

    /// One operation of semop(2).
    pub struct SemOp { pub number: u16, pub op: i32, pub flags: u16 }

    /// `struct ipc_perm` of a SysV object.
    pub struct Perm {
        pub key: i32, pub uid: u32, pub gid: u32, pub cuid: u32, pub cgid: u32, pub mode: u32, pub seq: u32,
    }
    /// semctl(IPC_STAT). Times are seconds since the epoch, 0 if never.
    pub struct SemStat { pub perm: Perm, pub semaphores: u64, pub otime: i64, pub ctime: i64 }
    /// msgctl(IPC_STAT).
    pub struct MsgStat {
        pub perm: Perm, pub bytes: u64, pub messages: u64, pub bytes_max: u64,
        pub last_send_pid: u32, pub last_receive_pid: u32, pub stime: i64, pub rtime: i64, pub ctime: i64,
    }
    /// What semctl(IPC_SET) and msgctl(IPC_SET) change; `bytes_max` only for queues.
    pub struct SetPerm { pub uid: u32, pub gid: u32, pub mode: u32, pub bytes_max: u64 }

    /// A row of `List`: kind 's' POSIX semaphore, 'q' POSIX queue, 'S' SysV semaphores, 'Q' SysV
    /// queue; `a` and `b`: value and waiters, messages and maximum, semaphores and 0, messages and
    /// bytes. `name_len` bytes of name follow.
    pub struct Listed {
        pub kind: u8, pub name_len: u8, pub mode: u32, pub uid: u32, pub gid: u32, pub key: i32, pub id: u64,
        pub a: u64, pub b: u64,
    }
}

calls! {
    /// Every call of ipc-server.
    pub enum IpcCall = 0x300;

    /// sem_open(3) with O_CREAT, O_EXCL of `flags`. Payload: name. The calling process holds the
    /// semaphore from now on; an unlinked one lives until its last holder is gone.
    0x01 SemOpen { flags: u32, mode: u32, value: u32 } -> Object, Once;
    /// sem_close(3).
    0x02 SemClose { id: u64 } -> (), Once;
    /// sem_unlink(3). Payload: name.
    0x03 SemUnlink {} -> (), Once;
    /// sem_wait, sem_trywait (`wait_ns` 0, EAGAIN), sem_timedwait (ETIMEDOUT).
    0x04 SemWait { id: u64, wait_ns: u64 } -> (), Once;
    /// sem_post(3). EOVERFLOW at SEM_VALUE_MAX.
    0x05 SemPost { id: u64 } -> (), Once;
    /// sem_getvalue(3).
    0x06 SemGetvalue { id: u64 } -> Value, Safe;

    /// mq_open(3). Payload: name, `attr_len` 0 or the size of an [`MqAttr`] in front of it. The
    /// answer is an open queue description: a number hard to guess.
    0x10 MqOpen { flags: u32, mode: u32, attr_len: u16 } -> Object, Once;
    /// mq_close(3) of the last descriptor of an open description.
    0x11 MqClose { id: u64 } -> (), Once;
    /// mq_unlink(3). Payload: name.
    0x12 MqUnlink {} -> (), Once;
    /// mq_timedsend(3). Payload: the message. O_NONBLOCK of the description: `wait_ns` is ignored.
    0x13 MqSend { id: u64, priority: u32, wait_ns: u64 } -> (), Once;
    /// mq_timedreceive(3) into a buffer of `size` bytes (EMSGSIZE if below the queue's message size).
    0x14 MqReceive { id: u64, size: u64, wait_ns: u64 } -> Received, Once;
    /// mq_getattr(3), and mq_setattr(3) if `set` is 1 (only O_NONBLOCK of `flags`). The answer's
    /// payload is the [`MqAttr`] from before.
    0x15 MqAttributes { id: u64, set: u8, flags: i64 } -> (), Once;

    /// semget(2).
    0x20 SemGet { key: i32, count: u32, flags: u32 } -> Value, Once;
    /// semtimedop(2). Payload: [`SemOp`]s. All or none.
    0x21 SemOps { id: i32, wait_ns: u64 } -> (), Once;
    /// semctl(2). GETALL answers u16s, IPC_STAT a [`SemStat`]; SETALL takes u16s, IPC_SET a [`SetPerm`].
    0x22 SemCtl { id: i32, number: i32, command: i32, value: i32 } -> Value, Once;

    /// msgget(2).
    0x30 MsgGet { key: i32, flags: u32 } -> Value, Once;
    /// msgsnd(2). Payload: the message's text. IPC_NOWAIT in `flags`.
    0x31 MsgSend { id: i32, kind: i64, flags: u32 } -> (), Once;
    /// msgrcv(2). The answer's payload is the text.
    0x32 MsgReceive { id: i32, kind: i64, size: u64, flags: u32 } -> Received, Once;
    /// msgctl(2). IPC_STAT answers a [`MsgStat`]; IPC_SET takes a [`SetPerm`].
    0x33 MsgCtl { id: i32, command: i32 } -> Value, Once;

    /// All objects of the DC, from record number `from` on, as many as fit `size` bytes. Payload:
    /// [`Listed`] records; the answer says how many there are in all.
    0x40 List { from: u32, size: u32 } -> crate::vfs::Count, Safe;
}
