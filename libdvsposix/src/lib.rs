//! POSIX as functions over a port: one function per call, for the shim, for agents and for C programs.
//!
//! No standard library, no allocation, no libc call. Every function takes the [`m3ipc::Sendrec`] it
//! speaks through, so the same code runs above a channel, inside muk2 and above a fake in tests.
//! Modules stand in reading order.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod behalf;
pub mod capi;
pub mod deadline;
pub mod dir;
pub mod file;
pub mod mq;
pub mod name;
pub mod path;
pub mod pointer;
pub mod process;
pub mod sem;
pub mod session;
pub mod sysv_msg;
pub mod sysv_sem;
pub mod umask;

#[cfg(test)]
mod fake;
