//! Any calls with any payload to vfs-server.
#![no_main]

use vfs_server::VfsServer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::feed(0x100, |store| VfsServer::open(store, 1).expect("the store is its own"), data);
});
