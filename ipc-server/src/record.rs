//! What stands in the store: keys are a letter and big-endian numbers, values are postcard.
//!
//! | letter | key | value |
//! |---|---|---|
//! | `s` | semaphore id | name, owner, number |
//! | `v` | semaphore id | value |
//! | `h` | semaphore id, process | times the process has opened it |
//! | `q` | queue number | name, owner, attributes |
//! | `m` | queue number, priority from above, position | message |
//! | `d` | description id | queue, access, O_NONBLOCK |
//! | `e` | description id, process | 1 |
//! | `n` | `S` or `Q` | next sequence number of SysV identifiers |
//! | `S` | index | permissions and size of a semaphore set |
//! | `V` | index, block | values of some semaphores of the set |
//! | `U` | process, index | undo values |
//! | `Q` | index | permissions, limits, times of a SysV queue |
//! | `M` | index, position | type and text of a message |

use dvk::store::Store;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ops::ControlFlow;

/// A key: its letter and its numbers.
pub(crate) fn key(letter: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * numbers.len());
    key.push(letter);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

pub(crate) fn put<T: Serialize>(store: &mut dyn Store, letter: u8, numbers: &[u64], value: &T) {
    let bytes = postcard::to_stdvec(value).expect("a record has no part that cannot be encoded");
    store.put(&key(letter, numbers), &bytes);
}

pub(crate) fn remove(store: &mut dyn Store, letter: u8, numbers: &[u64]) {
    store.remove(&key(letter, numbers));
}

/// Puts bulk bytes as they are.
pub(crate) fn put_bytes(store: &mut dyn Store, letter: u8, numbers: &[u64], bytes: &[u8]) {
    store.put(&key(letter, numbers), bytes);
}

/// All records of a letter, in the order of their keys.
pub(crate) fn all<T: DeserializeOwned, const N: usize>(
    store: &dyn Store,
    letter: u8,
) -> Vec<([u64; N], T)> {
    let decode = |bytes: &[u8]| {
        postcard::from_bytes(bytes).expect("the store holds what this server put there")
    };
    all_bytes(store, letter, decode)
}

/// All that `put_bytes` put under a letter, in the order of the keys, each through `decode`.
pub(crate) fn all_bytes<T, const N: usize>(
    store: &dyn Store,
    letter: u8,
    decode: impl Fn(&[u8]) -> T,
) -> Vec<([u64; N], T)> {
    let mut records = Vec::new();
    store.range(&[letter], &[letter + 1], &mut |key, value| {
        records.push((numbers(key), decode(value)));
        ControlFlow::Continue(())
    });
    records
}

fn numbers<const N: usize>(key: &[u8]) -> [u64; N] {
    let mut numbers = [0; N];
    let (words, _) = key[1..].as_chunks::<8>();
    for (number, word) in numbers.iter_mut().zip(words) {
        *number = u64::from_be_bytes(*word);
    }
    numbers
}
