//! Credentials in front of a payload: what is decoded is encoded again to the same bytes.
#![no_main]

use m3ipc::Cred;
use m3ipc::cred::CRED_SIZE_MAX;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((cred, rest)) = Cred::decode(data) {
        let mut bytes = [0; CRED_SIZE_MAX];
        let length = cred.encode(&mut bytes);
        assert_eq!(&bytes[..length], &data[..data.len() - rest.len()]);
    }
});
