//! Any calls with any payload to ipc-server.
#![no_main]

use ipc_server::IpcServer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::feed(0x300, |store| IpcServer::open(store), data);
});
