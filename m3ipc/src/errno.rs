//! Failures, sorted by who must act: `Errno` is a server's answer, `IpcError` says it never came.

pub use syscall::error as numbers;
/// A POSIX error number, the server's answer. Numbers are Linux's
/// (never take `EWOULDBLOCK` or `EDEADLOCK` from the table: those two aliases are not).
pub use syscall::error::Error as Errno;

/// `Errno` numbers that the neutral table lacks.
pub const ENOTSUP: i32 = numbers::EOPNOTSUPP;

/// Why a message did not arrive or its answer did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum IpcError {
    /// The destination died or unbound before it answered.
    DestinationDied = 4096,
    /// The source of a `receive` died or unbound.
    SourceDied = 4097,
    /// The destination's node is down or unreachable. The call may have been executed.
    NodeDown = 4098,
    /// The time the caller was willing to wait is over.
    TimedOut = 4099,
    /// A signal ended the wait.
    Interrupted = 4100,
    /// No such endpoint, or one of an earlier generation.
    Stale = 4101,
    /// Not bound: the process has no DVK, or the DVK refused it.
    NotBound = 4102,
    /// The caller may not send this there.
    Denied = 4103,
    /// A limit of `limits.rs` is reached.
    Exhausted = 4104,
    /// It would block, and the caller does not want to wait.
    WouldBlock = 4105,
    /// The peer broke the protocol (a malformed message, frame or channel).
    Protocol = 4106,
    /// The message or its payload is larger than `limits::PAYLOAD_MAX` or the caller's buffer.
    TooLarge = 4107,
    /// A notification of the same source is already pending (`notify`).
    Overrun = 4108,
    /// The destination itself waits for the caller to receive: both would wait for ever.
    Deadlock = 4109,
    /// Nobody waits for this reply: the caller has given its call up, or was answered before.
    NotWaiting = 4110,
    /// An address of a `vcopy` is not in its process's memory.
    Fault = 4111,
    /// Somebody else is bound there.
    InUse = 4112,
    /// The endpoint is somewhere else, or on its way: the caller is a backup, or has been made one; or it is moving
    /// already. As the reason of a closed channel: open another one, and go on there.
    Moved = 4113,
    /// Somebody ended the wait (`wakeup`).
    WokenUp = 4114,
}

impl IpcError {
    /// The number in a reply's `status`.
    pub const fn status(self) -> u16 {
        self as u16
    }

    /// The error of a reply's `status` ≥ 4096; unknown ones are a broken protocol.
    pub const fn from_status(status: u16) -> IpcError {
        match status {
            4096 => IpcError::DestinationDied,
            4097 => IpcError::SourceDied,
            4098 => IpcError::NodeDown,
            4099 => IpcError::TimedOut,
            4100 => IpcError::Interrupted,
            4101 => IpcError::Stale,
            4102 => IpcError::NotBound,
            4103 => IpcError::Denied,
            4104 => IpcError::Exhausted,
            4105 => IpcError::WouldBlock,
            4107 => IpcError::TooLarge,
            4108 => IpcError::Overrun,
            4109 => IpcError::Deadlock,
            4110 => IpcError::NotWaiting,
            4111 => IpcError::Fault,
            4112 => IpcError::InUse,
            4113 => IpcError::Moved,
            4114 => IpcError::WokenUp,
            _ => IpcError::Protocol,
        }
    }
}

/// What a program is told when the DVK, not a server, ended its call. The one place that decides it.
impl From<IpcError> for Errno {
    fn from(error: IpcError) -> Errno {
        Errno::new(match error {
            IpcError::DestinationDied | IpcError::SourceDied | IpcError::NodeDown => {
                numbers::EHOSTDOWN
            }
            IpcError::TimedOut => numbers::ETIMEDOUT,
            IpcError::Interrupted | IpcError::WokenUp => numbers::EINTR,
            IpcError::Stale => numbers::ESTALE,
            IpcError::NotBound => numbers::ENOSYS,
            IpcError::Denied => numbers::EACCES,
            IpcError::Exhausted => numbers::ENOSPC,
            IpcError::WouldBlock | IpcError::Overrun => numbers::EAGAIN,
            IpcError::Protocol => numbers::EPROTO,
            IpcError::TooLarge => numbers::EMSGSIZE,
            IpcError::Deadlock => numbers::EDEADLK,
            IpcError::NotWaiting => numbers::ESRCH,
            IpcError::Fault => numbers::EFAULT,
            IpcError::InUse => numbers::EADDRINUSE,
            IpcError::Moved => numbers::EBUSY,
        })
    }
}
