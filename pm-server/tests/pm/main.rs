//! pm-server from outside: containers and callers, with restarts, deaths and time.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod host;
mod junk;
mod kill;
mod list;
mod table;
