//! What a handler gives back, and how it becomes the answer of its row.

use crate::keys::Corrupt;
use calls::{Row, answer};
use dvk::store::StoreError;
use m3ipc::errno::numbers::{EIO, ENOSPC};
use m3ipc::{Errno, Message};

/// ERESTARTSYS: never told to a program. A handler that ends with it has changed nothing and is to run again later (`lease.rs`);
/// an agent that is told it calls again.
pub(crate) const RESTART: i32 = calls::vfs::RESTART;

/// A handler's result: what it found or did, or the errno its caller gets.
pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// What became of a call.
pub(crate) enum Outcome {
    Answer(Message, Vec<u8>),
    /// It waits; a later input answers it.
    Kept,
}

/// The call fails with errno `number`.
pub(crate) fn err<T>(number: i32) -> Result<T> {
    Err(Errno::new(number))
}

/// Success, told in the arguments.
pub(crate) fn reply<R: Row>(reply: R::Reply) -> Outcome {
    Outcome::Answer(answer::<R>(&reply), Vec::new())
}

/// Success, told in the payload.
pub(crate) fn payload<R: Row<Reply = ()>>(payload: Vec<u8>) -> Outcome {
    Outcome::Answer(answer::<R>(&()), payload)
}

/// Success, told in both.
pub(crate) fn both<R: Row>((reply, payload): (R::Reply, Vec<u8>)) -> Outcome {
    Outcome::Answer(answer::<R>(&reply), payload)
}

/// The caller's errno for a blob that could not be changed.
pub(crate) fn blob_error(error: StoreError) -> Errno {
    Errno::new(match error {
        StoreError::Full => ENOSPC,
        StoreError::Io => EIO,
    })
}

/// A damaged record is the caller's EIO, and nobody else's trouble.
impl From<Corrupt> for Errno {
    fn from(_: Corrupt) -> Errno {
        Errno::new(EIO)
    }
}
