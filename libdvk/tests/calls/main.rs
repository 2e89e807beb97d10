//! Endpoints of two nodes, each a daemon on the loopback interface, and the calls between them.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod bind;
mod cluster;
mod copy;
mod flood;
mod group;
mod liar;
mod load;
mod message;
mod migrate;
mod replicas;
mod rights;
mod scribble;
mod sleepers;
