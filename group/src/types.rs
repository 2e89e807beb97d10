//! The types that openraft is given: what is in the log, who is a node, whose clock and randomness.

use crate::command::{Answer, Command};
use openraft::async_runtime::TokioOneShotSender;
use openraft::{AsyncRuntime, EmptyNode, OptionalSend, TokioInstant, TokioRuntime};
use rand_core::RngCore;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

/// A node's number, as openraft has it.
pub(crate) type RaftId = u64;

openraft::declare_raft_types!(
    /// What the system group agrees on: commands and their answers.
    pub(crate) Types:
        D = Command,
        R = Reply,
        NodeId = RaftId,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Vec<u8>,
        AsyncRuntime = Runtime,
);

pub(crate) type Raft = openraft::Raft<Types>;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type LogId = openraft::LogId<RaftId>;
pub(crate) type Vote = openraft::Vote<RaftId>;
pub(crate) type Membership = openraft::StoredMembership<RaftId, EmptyNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, EmptyNode>;
pub(crate) type Snapshot = openraft::Snapshot<Types>;
pub(crate) type StorageError = openraft::StorageError<RaftId>;

/// What an entry of the log led to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reply(pub(crate) Answer);

/// Tokio, but with randomness from [`seed`]: a simulation is the same each time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime;

thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0x5eed) };
}

/// Begins this thread's randomness: election timeouts, and the numbers by which new sessions are told apart. It needs no
/// secrecy, only that all threads of all nodes differ that run a group or open sessions.
pub fn seed(seed: u64) {
    SEED.set(seed);
}

/// Numbers for election timeouts.
#[derive(Debug)]
pub(crate) struct Jitter;

impl RngCore for Jitter {
    fn next_u32(&mut self) -> u32 {
        u32::try_from(self.next_u64() >> 32).expect("32 bits are left")
    }

    /// splitmix64 (Steele, Lea, Flood, 2014).
    fn next_u64(&mut self) -> u64 {
        let state = SEED.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        SEED.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        rand_core::impls::fill_bytes_via_next(self, bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = Jitter;
    type OneshotSender<T: OptionalSend> = TokioOneShotSender<T>;
    type OneshotReceiver<T: OptionalSend> = tokio::sync::oneshot::Receiver<T>;
    type OneshotReceiverError = tokio::sync::oneshot::error::RecvError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Jitter
    }

    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}
