//! What the members say to each other, and the bytes of that and of a joiner's state.

use super::table::Table;
use crate::command::{ClientId, DecodeError, decode, encode};
use crate::limits::{SLOTS_MAX, SLOTS_PER_MESSAGE, STATE_MAX};
use serde::{Deserialize, Serialize};

/// Version of messages and states: their first byte.
const VERSION: u8 = 1;

/// Bytes of the longest message: two numbers and a member of 10 bytes each, slots of 3, and what is around them.
const MESSAGE_MAX: usize = 3 * 10 + SLOTS_PER_MESSAGE * 3 + 8;

/// A message of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    /// Counts the sender's messages from 1: one that is sent again is known by it.
    pub(super) number: u64,
    pub(super) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Body {
    /// I have the state: from here on I count, may own slots and must answer.
    Ready,
    /// I need so many slots.
    Request { needed: u16 },
    /// These slots are yours, in answer to your request with this number. There is no more of the answer behind
    /// the `last` message of it.
    Donation { to: ClientId, request: u64, slots: Vec<u16>, last: bool },
}

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        versioned(encode(self))
    }

    /// # Errors
    /// Another version, too many bytes, too many slots, or no message.
    pub(super) fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
        let message: Message = decode(body(bytes)?, MESSAGE_MAX)?;
        let fits = |slots: &Vec<u16>| {
            slots.len() <= SLOTS_PER_MESSAGE && slots.iter().all(|slot| *slot < SLOTS_MAX)
        };
        match &message.body {
            Body::Donation { slots, .. } if !fits(slots) => Err(DecodeError::Malformed),
            _ => Ok(message),
        }
    }
}

pub(super) fn encode_state(table: &Table) -> Vec<u8> {
    versioned(encode(table))
}

/// # Errors
/// Another version, too many bytes, or no table that the members could have come to.
pub(super) fn decode_state(bytes: &[u8]) -> Result<Table, DecodeError> {
    let mut table: Table = decode(body(bytes)?, STATE_MAX)?;
    table.recount();
    if table.is_sound() { Ok(table) } else { Err(DecodeError::Malformed) }
}

/// Are these the bytes of a message or of a state? For the fuzzer.
pub fn is_message_or_state(bytes: &[u8]) -> bool {
    Message::decode(bytes).is_ok() || decode_state(bytes).is_ok()
}

fn versioned(rest: Vec<u8>) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend(rest);
    bytes
}

fn body(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        _ => Err(DecodeError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn messages() -> impl Strategy<Value = Message> {
        let slots = proptest::collection::vec(0..SLOTS_MAX, 0..=SLOTS_PER_MESSAGE);
        let donation = (any::<u64>(), any::<u64>(), slots, any::<bool>()).prop_map(
            |(to, request, slots, last)| Body::Donation { to: ClientId(to), request, slots, last },
        );
        let request = any::<u16>().prop_map(|needed| Body::Request { needed });
        let body = prop_oneof![Just(Body::Ready), request, donation];
        (any::<u64>(), body).prop_map(|(number, body)| Message { number, body })
    }

    fn full_table() -> Table {
        let mut table = Table::new(SLOTS_MAX, 256);
        let members: Vec<ClientId> = (0..256).map(|member| ClientId(u64::MAX - member)).collect();
        table.change_members(&members);
        for member in members {
            table.make_ready(member);
            table.request(member, 1, 1);
        }
        table
    }

    proptest! {
        #[test]
        fn a_message_is_read_as_it_was_written_and_no_part_of_it_is_one(message in messages()) {
            let bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes).unwrap(), message);
            for length in 0..bytes.len() {
                prop_assert!(Message::decode(&bytes[..length]).is_err());
            }
            prop_assert!(Message::decode(&[&bytes[..], &[0]].concat()).is_err());
        }

        #[test]
        fn no_bytes_make_the_decoders_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            is_message_or_state(&bytes);
            is_message_or_state(&[&[VERSION], &bytes[..]].concat());
        }

        #[test]
        fn a_state_with_a_changed_byte_is_refused_or_sound(at in any::<prop::sample::Index>(), to: u8) {
            let mut table = Table::new(20, 3);
            table.change_members(&[ClientId(4), ClientId(7)]);
            table.make_ready(ClientId(4));
            table.make_ready(ClientId(7));
            table.request(ClientId(7), 9, 3);
            let mut bytes = encode_state(&table);
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(table) = decode_state(&bytes) {
                prop_assert!(table.is_sound());
            }
        }
    }

    #[test]
    fn the_longest_state_fits_and_no_part_of_a_state_is_one() {
        let table = full_table();
        let bytes = encode_state(&table);
        assert!(bytes.len() <= STATE_MAX, "{}", bytes.len());
        assert_eq!(decode_state(&bytes).unwrap(), table);
        for length in 0..bytes.len() {
            assert!(decode_state(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn more_slots_than_a_message_carries_are_refused() {
        let donation = |slots| Body::Donation { to: ClientId(1), request: 1, slots, last: true };
        let message = |slots| Message { number: 1, body: donation(slots) }.encode();
        assert!(Message::decode(&message(vec![0; SLOTS_PER_MESSAGE])).is_ok());
        assert!(Message::decode(&message(vec![0; SLOTS_PER_MESSAGE + 1])).is_err());
        assert!(Message::decode(&message(vec![SLOTS_MAX])).is_err());
    }
}
