//! Requests of the kernel's FUSE, as one read of `/dev/fuse` brings them.
#![no_main]

use mount::fuse::request::Request;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The length in the head is the kernel's: set right, so that what is behind it is reached.
    let mut bytes = data.to_vec();
    if let (Some(head), Ok(len)) = (bytes.get_mut(..4), u32::try_from(data.len())) {
        head.copy_from_slice(&len.to_ne_bytes());
    }
    let _ = Request::decode(&bytes);
    let _ = Request::decode(data);
});
