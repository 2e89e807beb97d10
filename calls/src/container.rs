//! The rows of a node's container: run a program, feed it, read what it says, wait for its end.
//!
//! `dvs-run` calls them on `Endpoint::container(node)`. A session belongs to the endpoint that
//! prepared it: nobody else can read or feed it. When that endpoint is gone, the program gets SIGHUP.

use crate::wire_structs;

/// The program's standard input.
pub const INPUT: u8 = 0;
/// Its standard output; with a terminal, all it writes.
pub const OUTPUT: u8 = 1;
/// Its standard error; at its end from the beginning if it has a terminal.
pub const ERROR: u8 = 2;

/// What became of an attempt to start a program.
pub mod step {
    /// It runs.
    pub const RUNNING: u8 = 0;
    /// There is no such command.
    pub const NOT_FOUND: u8 = 1;
    /// The command cannot be executed.
    pub const EXEC: u8 = 2;
    /// A path of `--map` could not be mounted.
    pub const MAP: u8 = 3;
    /// The container could not prepare the program's surroundings (terminal, user, namespaces).
    pub const PREPARE: u8 = 4;
}

/// Is the shim in the program?
pub mod shim {
    /// The program's loader loads it.
    pub const LOADED: u8 = 0;
    /// The program is linked statically: no loader, no shim.
    pub const STATIC: u8 = 1;
    /// The program is for another kind of machine than the shim.
    pub const FOREIGN: u8 = 2;
    /// The file is neither ELF nor a script: the container cannot tell.
    pub const UNKNOWN: u8 = 3;
    /// This container has no shim.
    pub const ABSENT: u8 = 4;
}

wire_structs! {
    /// A session, by number: one program with its streams. Numbers are not used again.
    pub struct Session { pub id: u64 }
    /// `step` is one of [`step`]; if it is not `RUNNING`, `errno` says why and there is no process.
    /// `shim` is one of [`shim`]. `pid` is the process's in the DC.
    pub struct Spawned { pub pid: u32, pub step: u8, pub errno: i32, pub shim: u8 }
    /// A status as wait(2) has it.
    pub struct Status { pub status: i32 }
}

calls! {
    /// Every call of a container.
    pub enum ContainerCall = 0x400;

    /// Begins a session. Payload: the front of an encoded request of `total` bytes (its form is the
    /// business of `dvs-run` and the container; it is longer than a payload when the environment is large).
    0x01 Prepare { total: u32 } -> super::container::Session, Once;
    /// More of the request, from `offset` on.
    0x02 PrepareMore { id: u64, offset: u32 } -> (), Once;
    /// Starts the program, on a terminal of `rows` × `columns` if `terminal` is 1, else on three pipes.
    /// Answered when it runs, or cannot.
    0x03 Spawn { id: u64, terminal: u8, rows: u16, columns: u16 } -> super::container::Spawned, Once;
    /// The next bytes of [`OUTPUT`] or [`ERROR`], at most `size`. Kept until there are some; an empty
    /// payload is the end of the stream. Nothing is read ahead: who does not read, stops the program.
    0x04 ReadStream { id: u64, stream: u8, size: u32 } -> (), Once;
    /// Payload: bytes for the program's input. Kept until the program has room for all of them; EPIPE
    /// if it has closed its input.
    0x05 WriteInput { id: u64 } -> (), Once;
    /// The caller will not feed (or read) this stream any more: the program sees the end of its input
    /// (or SIGPIPE).
    0x06 CloseStream { id: u64, stream: u8 } -> (), Once;
    /// Sends a signal to the program's process group.
    0x07 Signal { id: u64, signal: u32 } -> (), Once;
    /// The caller's window has a new size.
    0x08 Resize { id: u64, rows: u16, columns: u16 } -> (), Safe;
    /// Kept until the program has ended.
    0x09 WaitExit { id: u64 } -> super::container::Status, Safe;
}
