//! Records at the door, in both directions, on a socket that every program can reach.
#![no_main]

use m3ipc::door::{Ask, Tell};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Ask::decode(data);
    if let Some(tell) = Tell::decode(data) {
        let _ = tell.cred();
    }
});
