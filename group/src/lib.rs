//! The system group: tables and services of the cluster that a majority of its voters agrees on.

pub mod command;
pub mod disk;
pub mod limits;
pub mod state;
mod store;
mod types;
