//! Numbers and arguments of calls, as all servers decode them.
#![no_main]

use calls::ipc::IpcCall;
use calls::pm::PmCall;
use calls::vfs::VfsCall;
use m3ipc::Message;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((number, rest)) = data.split_first_chunk::<2>() else { return };
    let mut message = Message::request(u16::from_le_bytes(*number));
    for (to, from) in message.args.iter_mut().zip(rest) {
        *to = *from;
    }
    let _ = (VfsCall::decode(&message), PmCall::decode(&message), IpcCall::decode(&message));
    let _ = (VfsCall::retry(&message), PmCall::retry(&message), IpcCall::retry(&message));
});
