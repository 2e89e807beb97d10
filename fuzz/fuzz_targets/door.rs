//! Records at the door, in both directions, on a socket that every program can reach.
#![no_main]

use m3ipc::door::{Ask, Tell};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(ask) = Ask::decode(data) {
        let _ = ask.rights();
    }
    if let Some(tell) = Tell::decode(data) {
        let _ = tell.cred();
        let record = tell.data().unwrap_or_default();
        let _ = m3ipc::Rights::decode(record);
        let _ = m3ipc::info::decode::<m3ipc::info::DcInfo>(record);
        let _ = m3ipc::info::decode::<m3ipc::info::EndpointInfo>(record);
        let _ = m3ipc::info::decode::<m3ipc::info::NodeInfo>(record);
        let _ = m3ipc::info::decode::<m3ipc::load::NodeLoad>(record);
        let _ = m3ipc::info::decode::<m3ipc::load::DcLoad>(record);
    }
});
