//! Rows and structs survive the wire; cut or strange bytes are refused, never a panic.

use calls::vfs::{Attr, Lookup, Rename, Time, VfsCall};
use calls::wire::Wire;
use calls::{Retry, Row};
use m3ipc::Message;

#[test]
fn a_row_comes_out_as_it_went_in() {
    let row = Rename {
        parent: 1,
        new_parent: u64::MAX,
        forgotten: 0,
        new_forgotten: 7,
        name_len: 255,
        flags: 3,
    };
    let mut message = Message::request(Rename::NUMBER);
    row.put(&mut message.args);
    assert_eq!(VfsCall::decode(&message), Some(VfsCall::Rename(row)));
    assert_eq!((VfsCall::retry(&message), VfsCall::Rename(row).name()), (Retry::Once, "Rename"));
}

#[test]
fn numbers_of_nobody_are_refused() {
    assert_eq!(VfsCall::decode(&Message::request(0x1ff)), None);
    assert_eq!(VfsCall::decode(&Message::request(calls::ipc::SemPost::NUMBER)), None);
}

#[test]
fn every_number_is_decoded_by_one_server_at_most() {
    for number in 0..=u16::MAX {
        let message = Message::request(number);
        let servers = [
            VfsCall::decode(&message).is_some(),
            calls::pm::PmCall::decode(&message).is_some(),
            calls::ipc::IpcCall::decode(&message).is_some(),
        ];
        assert!(servers.into_iter().filter(|has| *has).count() <= 1, "call {number:#x}");
    }
}

#[test]
fn a_struct_cut_anywhere_is_refused() {
    let attr =
        Attr { ino: 7, size: 1 << 40, mtime: Time { seconds: -5, nanos: 9 }, ..Attr::default() };
    let bytes = attr.bytes();
    assert_eq!(Attr::get(&bytes), Some(attr));
    for cut in 0..bytes.len() {
        assert_eq!(Attr::get(&bytes[..cut]), None, "cut at {cut}");
    }
    assert_eq!(Lookup::RETRY, Retry::Safe);
}
