//! Frames between nodes: what is decoded is encoded again to the same bytes.
#![no_main]

use dvk::frame::decode;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok((packet, length)) = decode(data) {
        assert_eq!(packet.encode(), &data[..length]);
    }
});
