//! (to come)
#![no_std]
