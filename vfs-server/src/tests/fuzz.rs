//! Whatever a caller sends, the server answers it, does not panic, and its store stays sound.

use crate::limits::LEASE;
use crate::tests::driver::{ALIEN, Client, MATE, ROOT, USER};
use crate::tests::errors::world;
use crate::tests::leases::agent;
use calls::vfs::VfsCall;
use m3ipc::message::ARGS_SIZE;
use m3ipc::{Message, Tag};
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_oneof, proptest};

/// Numbers that a server trips over if it trips at all.
fn a_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..40_u64,
        Just(u64::MAX),
        Just(i64::MAX as u64),
        Just(i64::MAX as u64 + 1),
        Just(u64::from(u32::MAX)),
        any::<u64>(),
    ]
}

fn a_payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => prop_oneof![Just("f"), Just("d"), Just("u"), Just("fd"), Just("uf"), Just(".."), Just("user.a")]
            .prop_map(|name| name.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..100),
        1 => an_attribute(),
        1 => proptest::collection::vec(a_number(), 0..10)
            .prop_map(|numbers| numbers.iter().flat_map(|number| number.to_le_bytes()).collect()),
    ]
}

/// What `Setxattr` takes: the name of an access control list, and one that is valid now and then.
fn an_attribute() -> impl Strategy<Value = Vec<u8>> {
    let entries = prop_oneof![
        Just(vec![1u16, 4, 32]),
        Just(vec![1, 2, 4, 16, 32]),
        proptest::collection::vec((0..7u32).prop_map(|bit| 1 << bit), 0..5),
    ];
    let name = prop_oneof![Just("system.posix_acl_access"), Just("system.posix_acl_default")];
    (name, entries, 0..9u16).prop_map(|(name, tags, permissions)| {
        let entry = |tag: &u16| {
            let id = if matches!(tag, 2 | 8) { 1001 } else { u32::MAX };
            [&tag.to_le_bytes(), &permissions.to_le_bytes(), &id.to_le_bytes()[..]].concat()
        };
        let entries: Vec<u8> = tags.iter().flat_map(entry).collect();
        [name.as_bytes(), &2u32.to_le_bytes(), &entries].concat()
    })
}

fn a_message() -> impl Strategy<Value = Message> {
    // Aligned as most rows have it, or a byte at a time.
    let args = prop_oneof![
        proptest::collection::vec(a_number(), ARGS_SIZE / 8).prop_map(|numbers| numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect::<Vec<u8>>()),
        proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], ARGS_SIZE),
    ];
    (0x100..0x12b_u16, args).prop_map(|(call, args)| Message {
        args: args.try_into().unwrap(),
        ..Message::request(call)
    })
}

fn a_client() -> impl Strategy<Value = Client> {
    prop_oneof![Just(ROOT), Just(USER), Just(MATE), Just(ALIEN), Just(agent(1)), Just(agent(2))]
}

proptest! {
    #[test]
    fn any_message_is_answered_and_leaves_the_store_sound(
        inputs in proptest::collection::vec((a_client(), a_message(), a_payload()), 1..60),
    ) {
        let mut w = world();
        let opened = [&ROOT, &USER, &MATE, &ALIEN].map(|client| w.open(client, "/u/f", 0).is_ok());
        prop_assert!(opened.iter().all(|opened| *opened));
        // The first is a sole writer.
        prop_assert!(w.open(&agent(2), "/u/f", 2).is_ok());
        w.begin(&agent(1));
        prop_assert!(w.open(&agent(1), "/u/f", 2).is_ok());
        w.begin(&agent(2));
        let mut put_off = Vec::new();
        for (client, message, payload) in inputs {
            let id = w.send(&client, message, &payload);
            if w.answer(id).is_none() {
                let is_put_off = w.server.leases.is_put_off(id);
                let kept = matches!(
                    VfsCall::decode(&message),
                    Some(VfsCall::Setlk(_) | VfsCall::Recalls(_))
                );
                prop_assert!(kept || is_put_off, "{:x} is kept", message.call);
                put_off.extend(is_put_off.then_some(id));
            }
        }
        w.pass(1 + LEASE / 1_000_000_000);
        prop_assert!(put_off.iter().all(|id| w.answer(*id).is_some()), "nobody is left to wait for");
        w.restart();
    }
}

#[test]
fn every_payload_cut_anywhere_is_answered() {
    let mut w = world();
    let payload = [b"f".as_slice(), &[1; 200]].concat();
    for call in 0x100..0x12b {
        for cut in 0..payload.len() {
            let mut message = Message::request(call);
            message.args[0] = 3;
            message.tag = Tag(9);
            let id = w.send(&USER, message, &payload[..cut]);
            assert!(w.answer(id).is_some(), "{call:x} with {cut} bytes");
        }
    }
}
