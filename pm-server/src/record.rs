//! What stands in the store: keys are a letter and big-endian numbers.
//!
//! | letter | key | value |
//! |---|---|---|
//! | `j` | node | nothing: the node has joined |
//! | `p` | pid | a process of the table |
//! | `e` | position | pid and status of a process that has ended |
//! | `k` | endpoint and tag of the caller | a kill that is not answered yet |

use dvk::store::Store;
use std::ops::ControlFlow;

/// A key: its letter and its numbers.
fn key(letter: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * numbers.len());
    key.push(letter);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

pub(crate) fn put(store: &mut dyn Store, letter: u8, numbers: &[u64], value: &[u8]) {
    store.put(&key(letter, numbers), value);
}

pub(crate) fn remove(store: &mut dyn Store, letter: u8, numbers: &[u64]) {
    store.remove(&key(letter, numbers));
}

/// All records of a letter in the order of their keys, each through `decode`.
pub(crate) fn all<T, const N: usize>(
    store: &dyn Store,
    letter: u8,
    decode: impl Fn(&[u8]) -> Option<T>,
) -> Vec<([u64; N], T)> {
    let mut records = Vec::new();
    store.range(&[letter], &[letter + 1], &mut |key, value| {
        let mut numbers = [0; N];
        for (number, word) in numbers.iter_mut().zip(key[1..].as_chunks::<8>().0) {
            *number = u64::from_be_bytes(*word);
        }
        let value = decode(value).expect("the store holds what this server put there");
        records.push((numbers, value));
        ControlFlow::Continue(())
    });
    records
}
