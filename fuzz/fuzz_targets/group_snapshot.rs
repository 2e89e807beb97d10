//! Snapshots of the system group: whatever they hold, the state that comes out of them goes on.
#![no_main]

use group::command::Command;
use group::state::{SNAPSHOT_VERSION, State};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let cut = data.len() / 2;
    let mut snapshot = SNAPSHOT_VERSION.to_le_bytes().to_vec();
    snapshot.extend_from_slice(&data[..cut]);
    if let Ok(mut state) = State::restore(&snapshot) {
        if let Ok(command) = Command::decode(&data[cut..]) {
            let _ = state.apply(command);
        }
    }
});
