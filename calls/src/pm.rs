//! The rows of pm-server: the DC's process table, and signals to any process on any node.
//!
//! The container of each node (`Endpoint::container`) reports its processes and carries out orders.
//! It fetches orders with [`Await`], a call that is kept until there is one.

use crate::wire_structs;

/// Bytes of a process's command that the table keeps.
pub const COMMAND_MAX: usize = 128;

wire_structs! {
    /// A row of the table; `command_len` bytes of the command line follow (NULs as spaces).
    /// `state` is the letter of proc(5): R, S, D, Z, T …; `start` is seconds since the epoch.
    pub struct Process {
        pub pid: u32, pub ppid: u32, pub pgid: u32, pub sid: u32, pub uid: u32,
        pub node: u16, pub state: u8, pub command_len: u8, pub start: i64, pub cpu_ms: u64,
    }

    /// What a container is to do: `kind` is one of [`order`].
    pub struct Order { pub id: u64, pub kind: u32, pub pid: i32, pub signal: u32, pub uid: u32 }

    /// How a process ended: a status as wait(2) has it, or none yet.
    pub struct Ended { pub pid: u32, pub status: i32 }
}

/// Kinds of [`Order`].
pub mod order {
    /// kill(2) `pid` (a process of this node) with `signal`, on behalf of `uid`. 0 only probes.
    pub const KILL: u32 = 1;
    /// Report all processes of this node with [`super::Report`].
    pub const REPORT: u32 = 2;
}

calls! {
    /// Every call of pm-server.
    pub enum PmCall = 0x200;

    /// A container is there (again): processes of its node that the table has are gone.
    0x01 Join { node: u16 } -> (), Once;
    /// A container waits for its next order. Kept until there is one.
    0x02 Await { node: u16 } -> super::pm::Order, Once;
    /// A container has carried out order `id`: 0, or the errno.
    0x03 Done { id: u64, errno: i32 } -> (), Once;
    /// A container has started, or found, a process. Payload: the command.
    0x04 Started { pid: u32, ppid: u32, pgid: u32, sid: u32, node: u16 } -> (), Once;
    /// A container has reaped a process: its wait(2) status.
    0x05 Exited { pid: u32, status: i32 } -> (), Once;
    /// A container reports all its processes (order `id`). Payload: [`Process`] records.
    0x06 Report { id: u64, node: u16 } -> (), Once;
    /// kill(2): `pid` > 0 one process of the DC, -1 all that the caller may signal, < -1 a process
    /// group. Answered when the signal has been delivered: ESRCH, EPERM as kill(2).
    0x07 Kill { pid: i32, signal: u32 } -> (), Once;
    /// All processes of the DC, fresh from all nodes, from record number `from` on, as many as fit
    /// `size` bytes. Payload: [`Process`] records; the answer says how many records there are in all.
    0x08 List { from: u32, size: u32 } -> crate::vfs::Count, Safe;
    /// Waits for the end of a process (not only of a child). ESRCH if the table never had it.
    0x09 Wait { pid: u32 } -> super::pm::Ended, Safe;
}
