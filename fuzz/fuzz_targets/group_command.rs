//! Commands of the system group, one behind the other: what is decoded is applied, and the state stays restorable.
#![no_main]

use group::command::{Command, decode_answer};
use group::state::State;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = decode_answer(data);
    let mut state = State::default();
    for bytes in data.split(|byte| *byte == 0xff) {
        if let Ok(command) = Command::decode(bytes) {
            let _ = state.apply(command);
        }
    }
    assert_eq!(State::restore(&state.snapshot()).as_ref(), Ok(&state));
});
