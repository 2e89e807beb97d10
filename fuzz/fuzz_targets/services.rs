//! What programs and dvkd say to each other about the group services: however lines are cut, they are the same; what is understood
//! survives being said again.
#![no_main]

use services::{Lines, Request, Told};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let (whole, pieces) = (lines(bytes, bytes.len()), lines(bytes, cut.into()));
    assert_eq!(whole, pieces);
    for line in whole {
        if let Ok(request) = serde_json::from_slice::<Request>(&line) {
            let again = serde_json::to_vec(&request).expect("it was understood");
            assert_eq!(serde_json::from_slice::<Request>(&again).ok(), Some(request));
        }
        if let Ok(told) = serde_json::from_slice::<Told>(&line) {
            let again = serde_json::to_vec(&told).expect("it was understood");
            assert_eq!(serde_json::from_slice::<Told>(&again).ok(), Some(told));
        }
    }
});

/// The lines of bytes that come in pieces, up to one that is too long.
fn lines(bytes: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let (mut lines, mut found) = (Lines::new(4096), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        lines.push(piece);
        loop {
            match lines.take() {
                Ok(Some(line)) => found.push(line),
                Ok(None) => break,
                Err(()) => return found,
            }
        }
    }
    found
}
