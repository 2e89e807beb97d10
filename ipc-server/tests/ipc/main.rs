//! ipc-server from outside: calls through a small host, with restarts, deaths and time.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod crash;
mod host;
mod junk;
mod list;
mod posix_queues;
mod posix_semaphores;
mod sysv_queues;
mod sysv_semaphores;
