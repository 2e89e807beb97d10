//! Where a server's state is: an ordered map of byte strings, and blobs for bulk data.
//!
//! The effects of one round of calls become durable together or not at all (the map), in the order
//! blobs then map. `MemoryStore` serves the simulator and muk2, `DiskStore` (`host::disk`) a `Solo` server.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Why a blob could not be changed. Failures of the map are the host's business: it stops the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// No space left.
    Full,
    /// The disk failed.
    Io,
}

/// A server's durable state.
pub trait Store {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>>;
    fn put(&mut self, key: &[u8], value: &[u8]);
    fn remove(&mut self, key: &[u8]);
    /// Visits the pairs with `from <= key < to` in order, until `visit` breaks.
    #[expect(clippy::type_complexity, reason = "a name for the visitor would hide what it is told")]
    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>);

    /// Reads blob `blob` from `offset`; returns how much there was. A blob never written is empty;
    /// a hole reads as zeros.
    fn blob_read(&self, blob: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError>;
    /// Writes at `offset`, growing the blob; what lies between becomes a hole.
    fn blob_write(&mut self, blob: u64, offset: u64, data: &[u8]) -> Result<(), StoreError>;
    /// Sets a blob's length, down or up (a hole).
    fn blob_truncate(&mut self, blob: u64, length: u64) -> Result<(), StoreError>;
    /// Makes `offset..offset + length` a hole without changing the blob's length.
    fn blob_punch(&mut self, blob: u64, offset: u64, length: u64) -> Result<(), StoreError>;
    /// First byte at or after `offset` that is data (`hole` false) or in a hole (`hole` true);
    /// the end of the blob counts as a hole; `None` beyond it.
    fn blob_seek(&self, blob: u64, offset: u64, hole: bool) -> Option<u64>;
    /// Bytes of storage that the blob uses.
    fn blob_used(&self, blob: u64) -> u64;
    fn blob_remove(&mut self, blob: u64);
    /// The blob's data is to be on stable storage when the answers of this round leave.
    fn blob_sync(&mut self, blob: u64);

    /// May a change of the blob's bytes take more room than they do, as others have the same?
    fn blob_is_shared(&self, _: u64) -> bool {
        false
    }

    /// Bytes in all, and bytes free.
    fn space(&self) -> (u64, u64);

    /// Begins to compare all that is stored with its checksums, if that is not under way.
    fn scrub(&mut self) {}
    /// What is known of how well it is stored.
    fn health(&self) -> Health {
        Health::default()
    }
}

/// What a store knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// How far a scrub has come, of a hundred; `None`: none is under way.
    pub percent: Option<u8>,
    /// Scrubs that have ended since the store was opened.
    pub scrubs: u64,
    /// Bytes of blobs that were compared, in the last scrub or this one.
    pub checked: u64,
    /// Parts of blobs that it could not look at.
    pub unchecked: u64,
    /// When a scrub has ended, in seconds since 1970; 0: never.
    pub last: u64,
    /// Parts of blobs that were changed and have no checksums yet.
    pub fresh: u64,
    /// The last scrub could not read all of the map.
    pub is_map_damaged: bool,
    /// What is not as it was written, at least.
    pub damage: Vec<Damage>,
}

/// A block of 4 KiB that cannot be read, as it is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    pub blob: u64,
    /// In bytes.
    pub offset: u64,
}

/// A store in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    blobs: BTreeMap<u64, Vec<u8>>,
}

/// What a `MemoryStore` claims to have, in bytes.
const MEMORY_SPACE: u64 = 1 << 34;

impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.map.get(key).cloned()
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.map.insert(key.to_vec(), value.to_vec());
    }

    fn remove(&mut self, key: &[u8]) {
        self.map.remove(key);
    }

    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        if from >= to {
            return;
        }
        for (key, value) in self.map.range(from.to_vec()..to.to_vec()) {
            if visit(key, value).is_break() {
                return;
            }
        }
    }

    fn blob_read(&self, blob: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        let data = self.blobs.get(&blob).map_or(&[][..], |data| data);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let count = buffer.len().min(data.len() - start);
        buffer[..count].copy_from_slice(&data[start..start + count]);
        Ok(count)
    }

    fn blob_write(&mut self, blob: u64, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let end = offset
            .checked_add(bytes.len() as u64)
            .filter(|end| *end <= MEMORY_SPACE)
            .ok_or(StoreError::Full)?;
        let (start, end) = (index(offset)?, index(end)?);
        let data = self.blobs.entry(blob).or_default();
        if data.len() < end {
            data.resize(end, 0);
        }
        data[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn blob_truncate(&mut self, blob: u64, length: u64) -> Result<(), StoreError> {
        if length > MEMORY_SPACE {
            return Err(StoreError::Full);
        }
        self.blobs.entry(blob).or_default().resize(index(length)?, 0);
        Ok(())
    }

    fn blob_punch(&mut self, blob: u64, offset: u64, length: u64) -> Result<(), StoreError> {
        let data = self.blobs.entry(blob).or_default();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let end =
            usize::try_from(offset.saturating_add(length)).unwrap_or(usize::MAX).min(data.len());
        data[start..end].fill(0);
        Ok(())
    }

    fn blob_seek(&self, blob: u64, offset: u64, hole: bool) -> Option<u64> {
        let length = self.blobs.get(&blob).map_or(0, |data| data.len() as u64);
        (offset < length).then_some(if hole { length } else { offset })
    }

    fn blob_used(&self, blob: u64) -> u64 {
        self.blobs.get(&blob).map_or(0, |data| data.len() as u64)
    }

    fn blob_remove(&mut self, blob: u64) {
        self.blobs.remove(&blob);
    }

    fn blob_sync(&mut self, _: u64) {}

    fn space(&self) -> (u64, u64) {
        let used = self.blobs.values().map(|data| data.len() as u64).sum();
        (MEMORY_SPACE, MEMORY_SPACE.saturating_sub(used))
    }
}

fn index(offset: u64) -> Result<usize, StoreError> {
    usize::try_from(offset).map_err(|_| StoreError::Full)
}
