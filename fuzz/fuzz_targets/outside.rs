//! What other machines say before or beside the frames: requests to join, certificates, lists of members, tokens.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dvk::dvkd::outside::decode_all(data));
