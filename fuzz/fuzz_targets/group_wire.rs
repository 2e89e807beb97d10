//! Messages between the nodes of the system group.
#![no_main]

use group::wire::{VERSION, is_message};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    is_message(data);
    is_message(&[&[VERSION], data].concat());
});
