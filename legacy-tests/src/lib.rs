//! Real programs, on a real lab, on the embedded system, and on Linux itself, which is always right.
//!
//! A test is a function of a [`World`]; `tests/legacy` has them. A world starts programs and has a
//! folder that they share.

pub mod lab;
pub mod program;
pub mod running;
pub mod wait;
pub mod world;

pub use lab::Lab;
pub use running::{Outcome, Running};
pub use world::World;
