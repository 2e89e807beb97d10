//! Whose keys and names are whose: each container has a realm of its own in the one state, and a share of its room.
//!
//! Whoever lets a program ask the group (dvkd) puts the realm in front of each key and name, and takes it off what the
//! program is told: the program can say nothing that is in another realm.

use crate::command::Refusal;
use serde::{Deserialize, Serialize};

/// The first byte of a container's keys. They stand behind all others, as this is the greatest byte.
const KEY_MARK: u8 = 0xff;
/// The first character of a container's names; the number of the container and another one follow.
const NAME_MARK: char = '\u{1}';
/// Bytes in front of a container's key.
const KEY_HEAD: usize = 5;

/// Whose keys, names and sessions.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Realm {
    /// The administrator's and the daemons' own.
    #[default]
    System,
    /// Those of the container with this number.
    Dc(u32),
}

impl Realm {
    /// A key of this realm, as the state has it.
    ///
    /// # Errors
    /// [`Refusal::Reserved`]: it would be a container's.
    pub fn key(self, key: &[u8]) -> Result<Vec<u8>, Refusal> {
        match self {
            Realm::System if key.first() == Some(&KEY_MARK) => Err(Refusal::Reserved),
            Realm::System => Ok(key.to_vec()),
            Realm::Dc(dc) => Ok([&[KEY_MARK], &dc.to_be_bytes()[..], key].concat()),
        }
    }

    /// A name of this realm, as the state has it.
    ///
    /// # Errors
    /// [`Refusal::Reserved`]: it would be a container's.
    pub fn name(self, name: &str) -> Result<String, Refusal> {
        match self {
            Realm::System if name.starts_with(NAME_MARK) => Err(Refusal::Reserved),
            Realm::System => Ok(name.to_owned()),
            Realm::Dc(dc) => Ok(format!("{}{name}", head(dc))),
        }
    }

    /// The keys from `start` up to and without `end` (to the realm's last if there is none), as the state has them.
    pub fn bounds(self, start: &[u8], end: Option<&[u8]>) -> (Vec<u8>, Option<Vec<u8>>) {
        match self {
            Realm::System => {
                let end = end.filter(|end| *end <= &[KEY_MARK][..]).unwrap_or(&[KEY_MARK]);
                (start.to_vec(), Some(end.to_vec()))
            }
            Realm::Dc(dc) => {
                let place = |key: &[u8]| [&[KEY_MARK], &dc.to_be_bytes()[..], key].concat();
                let behind = || {
                    let next = dc.checked_add(1)?;
                    Some([&[KEY_MARK], &next.to_be_bytes()[..]].concat())
                };
                (place(start), end.map(place).or_else(behind))
            }
        }
    }

    /// Whose a key of the state is, and the key as its owner has it.
    pub fn of_key(key: &[u8]) -> (Realm, &[u8]) {
        match key.split_first_chunk::<KEY_HEAD>() {
            Some((&[KEY_MARK, a, b, c, d], rest)) => {
                (Realm::Dc(u32::from_be_bytes([a, b, c, d])), rest)
            }
            _ => (Realm::System, key),
        }
    }

    /// Whose a name of the state is, and the name as its owner has it.
    pub fn of_name(name: &str) -> (Realm, &str) {
        let found = name.strip_prefix(NAME_MARK).and_then(|rest| rest.split_once(NAME_MARK));
        let found = found.and_then(|(dc, rest)| Some((Realm::Dc(dc.parse().ok()?), rest)));
        found.unwrap_or((Realm::System, name))
    }

    /// In front of each name of this realm; a container's only.
    pub(crate) fn name_head(self) -> Option<String> {
        match self {
            Realm::System => None,
            Realm::Dc(dc) => Some(head(dc)),
        }
    }
}

fn head(dc: u32) -> String {
    format!("{NAME_MARK}{dc}{NAME_MARK}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn realm() -> impl Strategy<Value = Realm> {
        prop_oneof![
            Just(Realm::System),
            prop_oneof![0..3u32, Just(u32::MAX), any::<u32>()].prop_map(Realm::Dc)
        ]
    }

    proptest! {
        #[test]
        fn what_a_realm_says_is_its_own_and_comes_back(
            realm in realm(),
            key in prop::collection::vec(any::<u8>(), 0..8),
            name in "[\u{1}-\u{2}0-9a]{0,6}",
        ) {
            if let Ok(placed) = realm.key(&key) {
                prop_assert_eq!(Realm::of_key(&placed), (realm, &key[..]));
            } else {
                prop_assert_eq!((realm, key[0]), (Realm::System, KEY_MARK));
            }
            match realm.name(&name) {
                Ok(placed) => prop_assert_eq!(Realm::of_name(&placed), (realm, &name[..])),
                Err(_) => prop_assert!(realm == Realm::System && name.starts_with(NAME_MARK)),
            }
        }

        #[test]
        fn bounds_reach_what_they_say_of_the_own_realm_and_nothing_of_another(
            (own, other) in (realm(), realm()),
            start in prop::collection::vec(any::<u8>(), 0..3),
            end in prop::option::of(prop::collection::vec(any::<u8>(), 0..3)),
            key in prop::collection::vec(any::<u8>(), 0..3),
        ) {
            let (first, behind) = own.bounds(&start, end.as_deref());
            if let Ok(placed) = other.key(&key) {
                let reached = placed >= first && behind.is_none_or(|behind| placed < behind);
                let meant = own == other && key >= start && end.is_none_or(|end| key < end);
                prop_assert_eq!(reached, meant);
            }
        }
    }
}
