//! Any calls with any payload to pm-server; containers' reports are among them.
#![no_main]

use pm_server::PmServer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::feed(0x200, |store| PmServer::open(store), data);
});
