//! POSIX as functions over a port: one function per call, for the shim, for agents and for C programs.
//!
//! No standard library, no allocation, no libc call. Every function takes the [`m3ipc::Sendrec`] it
//! speaks through, so the same code runs above a channel, inside muk2 and above a fake in tests.
//! Modules stand in reading order.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod session;
pub mod behalf;
pub mod deadline;
pub mod name;
pub mod umask;
pub mod sem;
pub mod mq;
pub mod sysv_sem;
pub mod sysv_msg;
pub mod process;
pub mod file;
pub mod dir;
pub mod path;
pub mod pointer;
pub mod capi;

#[cfg(test)]
mod fake;
