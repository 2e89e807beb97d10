//! Parts of large writes, until the last one comes: a write is done at once, or not at all.
//!
//! They are in memory only. Room for all parts of a write is taken with the first, so that those that have begun can end. What nobody comes for
//! goes after a while.

use crate::limits::{STAGED_BYTES_MAX, STAGED_FOR, STAGED_PER_AGENT_MAX};
use dvk::server::{Gone, Nanos};
use m3ipc::Endpoint;
use std::collections::BTreeMap;

/// Writes that have begun.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    writes: BTreeMap<(Endpoint, u64), Parts>,
    /// Bytes of all of them, those that are to come included.
    bytes: usize,
}

/// Parts of one write.
#[derive(Debug)]
pub(crate) struct Parts {
    total: usize,
    parts: BTreeMap<u32, Vec<u8>>,
    until: Nanos,
}

impl Parts {
    /// In their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.values().map(Vec::as_slice)
    }
}

impl Staged {
    /// Keeps a part. False: there is no room for it.
    pub(crate) fn keep(
        &mut self,
        (source, token): (Endpoint, u64),
        index: u32,
        total: usize,
        data: &[u8],
        now: Nanos,
    ) -> bool {
        if !self.writes.contains_key(&(source, token)) {
            if !self.has_room(source, total) {
                self.drop_those(|_, parts| parts.until <= now);
            }
            if !self.has_room(source, total) {
                return false;
            }
            self.bytes += total;
            let parts = Parts { total, parts: BTreeMap::new(), until: 0 };
            self.writes.insert((source, token), parts);
        }
        let Some(parts) = self.writes.get_mut(&(source, token)) else { return false };
        let others = parts.parts.iter().filter(|(other, _)| **other != index);
        let kept: usize = others.map(|(_, part)| part.len()).sum();
        let fits = kept + data.len() <= parts.total;
        if fits {
            parts.until = now.saturating_add(STAGED_FOR);
            parts.parts.insert(index, data.to_vec());
        }
        fits
    }

    fn has_room(&self, source: Endpoint, total: usize) -> bool {
        let its = self.writes.range((source, 0)..=(source, u64::MAX));
        let its: usize = its.map(|(_, parts)| parts.total).sum();
        self.bytes + total <= STAGED_BYTES_MAX && its + total <= STAGED_PER_AGENT_MAX
    }

    /// Takes the `count` parts of a write; `None`: they are not all there.
    pub(crate) fn take(&mut self, source: Endpoint, token: u64, count: u32) -> Option<Parts> {
        let parts = self.writes.get(&(source, token))?;
        if !parts.parts.keys().copied().eq(0..count) {
            return None;
        }
        let parts = self.writes.remove(&(source, token))?;
        self.bytes -= parts.total;
        Some(parts)
    }

    /// Puts them back: the write waits for something.
    pub(crate) fn put_back(&mut self, source: Endpoint, token: u64, parts: Parts, now: Nanos) {
        self.bytes += parts.total;
        let parts = Parts { until: now.saturating_add(STAGED_FOR), ..parts };
        self.writes.insert((source, token), parts);
    }

    /// Who began them does not end them any more.
    pub(crate) fn drop_of(&mut self, gone: Gone) {
        self.drop_those(|source, _| gone.includes(source));
    }

    fn drop_those(&mut self, is: impl Fn(Endpoint, &Parts) -> bool) {
        self.writes.retain(|(source, _), parts| {
            let goes = is(*source, parts);
            if goes {
                self.bytes -= parts.total;
            }
            !goes
        });
    }
}
