//! The bytes of files that snapshots keep.
//!
//! A blob that a snapshot sees never changes any more. What changes such a file first gives it another one: a copy, if it is small, else a *layer*, in which
//! those chunks are that have been changed since, while all others are still its *parent's*. So a change costs a chunk, not a file. Each blob is
//! the parent of at most one, as a file has one history; the last of the line is the file's, the others belong to snapshots.
//!
//! A blob that no snapshot sees any more is *merged* into the one that it is the parent of: what that has not of its own is copied there, little by little.
//!
//! Bytes that were copied are on stable storage before the map says that they count, so that no power failure takes what was safe in its old place.
//! A crash may leave bytes in chunks that are not a layer's own: they are cleared before these become its own.

use super::versions::Versions;
use crate::keys::{self, Bytes, Inode, Layer};
use crate::limits::{MERGES_MAX, SNAPSHOT_COPY_MAX, SNAPSHOTS_MAX};
use crate::reclaim::reserve;
use calls::wire::Wire;
use dvk::store::{Store, StoreError};
use std::ops::{ControlFlow, Range};

/// What is copied for the first byte that changes in it. Tests have small files.
const CHUNK: u64 = if cfg!(test) { 32 } else { 128 << 10 };
/// Chunks in one bitmap.
const GROUP: u64 = if cfg!(test) { 8 } else { 1024 };
/// Bytes of one bitmap.
const BITMAP: usize = if cfg!(test) { 1 } else { 128 };
/// The first number of a blob that is not a file's own: no inode has it.
pub(super) const FIRST_BLOB: u64 = 1 << 61;
/// Bytes of a merged blob that are given back in one go.
const GIVEN_AT_ONCE: u64 = 1 << 30;
/// Bitmaps that are written in one go for a hole.
const BITMAPS_AT_ONCE: u64 = 1024;
/// Steps after which a search for data ends with what may be a hole.
const SEARCH_MAX: usize = 4096;

/// Blobs in a line: of each snapshot one, the file's, and those that are yet to be merged.
const LINE_MAX: usize = 2 * (SNAPSHOTS_MAX + MERGES_MAX);

const _: () = assert!(BITMAP as u64 * 8 == GROUP);

/// From here to `end` the bytes are in `blob`.
struct Run {
    blob: u64,
    end: u64,
}

/// The record under `key`.
fn record<T: Wire>(store: &dyn Store, key: &[u8]) -> Result<Option<T>, StoreError> {
    keys::read(store, key).map_err(|_| StoreError::Io)
}

fn layer(store: &dyn Store, blob: u64) -> Result<Option<Layer>, StoreError> {
    record(store, &keys::layer(blob))
}

/// The layer that blob `blob` is, if it has a parent.
fn above(store: &dyn Store, blob: u64) -> Result<Option<Layer>, StoreError> {
    Ok(layer(store, blob)?.filter(|layer| layer.parent != 0))
}

/// Where the bytes of file `ino` are.
pub(super) fn bytes_of(store: &dyn Store, ino: u64) -> Result<Bytes, StoreError> {
    Ok(record(store, &keys::bytes(ino))?.unwrap_or(Bytes { blob: ino, since: 0 }))
}

/// Is the chunk with byte `at` blob `blob`'s own, and up to where are others as it is?
fn own(store: &dyn Store, blob: u64, at: u64) -> (bool, u64) {
    let (group, first) = (at / CHUNK / GROUP, at / CHUNK % GROUP);
    let (key, (_, to)) = (keys::own_chunks(blob, group), keys::all_own_chunks(blob));
    let Some((found, bitmap)) = self::first(store, &key, &to, 1).pop() else {
        return (false, u64::MAX);
    };
    if found != key {
        let next = keys::numbers(&found).map_or(group + 1, |[_, group]| group);
        return (false, next.saturating_mul(GROUP * CHUNK));
    }
    let is_own = |chunk: &u64| {
        let byte = usize::try_from(*chunk / 8).ok().and_then(|byte| bitmap.get(byte));
        byte.is_some_and(|byte| byte & (1 << (*chunk % 8)) != 0)
    };
    let own = is_own(&first);
    let end = (first..GROUP).find(|chunk| is_own(chunk) != own).unwrap_or(GROUP);
    (own, (group * GROUP + end) * CHUNK)
}

/// Where byte `at` of the line that ends with `blob` is.
fn run(store: &dyn Store, mut blob: u64, at: u64) -> Result<Run, StoreError> {
    let mut end = u64::MAX;
    for _ in 0..LINE_MAX {
        let Some(layer) = above(store, blob)?.filter(|layer| at < layer.limit) else {
            return Ok(Run { blob, end });
        };
        let (is_own, up_to) = own(store, blob, at);
        if is_own {
            return Ok(Run { blob, end: end.min(up_to) });
        }
        end = end.min(up_to).min(layer.limit);
        blob = layer.parent;
    }
    Err(StoreError::Io)
}

/// As [`Store::blob_read`], of a line.
pub(super) fn read(
    store: &dyn Store,
    blob: u64,
    offset: u64,
    buffer: &mut [u8],
) -> Result<usize, StoreError> {
    if above(store, blob)?.is_none() {
        return store.blob_read(blob, offset, buffer);
    }
    let mut done = 0;
    while done < buffer.len() {
        let at = offset.saturating_add(done as u64);
        let run = run(store, blob, at)?;
        let rest = buffer.len() - done;
        let count = usize::try_from(run.end - at).unwrap_or(rest).min(rest);
        let part = &mut buffer[done..done + count];
        let found = store.blob_read(run.blob, at, part)?;
        part[found..].fill(0);
        done += count;
    }
    Ok(done)
}

/// As [`Store::blob_seek`], of a line. It may take a hole for data, if there are many.
pub(super) fn seek(store: &dyn Store, blob: u64, offset: u64, hole: bool) -> Option<u64> {
    let Ok(Some(layer)) = above(store, blob) else { return store.blob_seek(blob, offset, hole) };
    let is_within = |at: u64| at < layer.limit || store.blob_seek(blob, at, true).is_some();
    if !is_within(offset) {
        return None;
    }
    let mut at = offset;
    for _ in 0..SEARCH_MAX {
        if !is_within(at) {
            return hole.then_some(at);
        }
        let run = run(store, blob, at).ok()?;
        match store.blob_seek(run.blob, at, hole) {
            Some(found) if found < run.end => return Some(found),
            None if hole => return Some(at),
            None if run.end == u64::MAX => return None,
            _ => at = run.end,
        }
    }
    Some(if hole { i64::MAX as u64 } else { at })
}

/// As [`Store::blob_used`], of a line, or a little more.
pub(super) fn used(store: &dyn Store, blob: u64) -> u64 {
    let own = store.blob_used(blob);
    let Ok(Some(first)) = above(store, blob) else { return own };
    let (mut parents, mut layer) = (0_u64, Some(first));
    for _ in 0..LINE_MAX {
        let Some(found) = layer else { break };
        parents = parents.saturating_add(store.blob_used(found.parent));
        layer = above(store, found.parent).ok().flatten();
    }
    own.saturating_add(parents.min(first.limit.next_multiple_of(4096)))
}

impl Versions<'_> {
    /// Does a snapshot see the blob that file `ino` has had since snapshot `since`?
    fn is_seen(&self, ino: u64, since: u64) -> bool {
        let sees = |(number, taken): (&u64, &super::Taken)| {
            !taken.is_going() && *number > since && self.is_named_in(*number, taken, ino)
        };
        self.snapshots.list.iter().any(sees)
    }

    /// May a change of file `ino`'s bytes take more room than they do?
    pub(super) fn is_shared(&self, ino: u64) -> Result<bool, StoreError> {
        let bytes = bytes_of(self.store, ino)?;
        Ok(self.is_seen(ino, bytes.since) || above(self.store, bytes.blob)?.is_some())
    }

    pub(super) fn write_bytes(
        &mut self,
        ino: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<(), StoreError> {
        let end = offset.checked_add(data.len() as u64).ok_or(StoreError::Full)?;
        let blob = self.blob_to_change(ino, u64::MAX)?;
        let taken = self.prepare(blob, offset, end, false)?;
        self.store.blob_write(blob, offset, data)?;
        self.take(blob, &taken);
        Ok(())
    }

    pub(super) fn punch_bytes(
        &mut self,
        ino: u64,
        offset: u64,
        length: u64,
    ) -> Result<(), StoreError> {
        let blob = self.blob_to_change(ino, u64::MAX)?;
        let taken = self.prepare(blob, offset, offset.saturating_add(length), true)?;
        self.store.blob_punch(blob, offset, length)?;
        self.take(blob, &taken);
        Ok(())
    }

    pub(super) fn truncate_bytes(&mut self, ino: u64, length: u64) -> Result<(), StoreError> {
        let blob = self.blob_to_change(ino, length)?;
        self.store.blob_truncate(blob, length)?;
        if let Some(mut layer) = above(self.store, blob)?.filter(|layer| layer.limit > length) {
            layer.limit = length;
            self.put_layer(blob, &layer);
            if length == 0 {
                self.separate(blob, layer)?;
            }
        }
        Ok(())
    }

    /// File `ino` is no more.
    pub(super) fn remove_bytes(&mut self, ino: u64) -> Result<(), StoreError> {
        let bytes = bytes_of(self.store, ino)?;
        if self.is_seen(ino, bytes.since) {
            self.keep(&keys::bytes(ino), None);
        } else {
            self.drop_blob(bytes.blob)?;
        }
        self.store.remove(&keys::bytes(ino));
        Ok(())
    }

    /// All that file `ino`'s bytes are in is to be on stable storage.
    pub(super) fn sync_bytes(&mut self, ino: u64) -> Result<(), StoreError> {
        let mut blob = bytes_of(self.store, ino)?.blob;
        for _ in 0..LINE_MAX {
            self.store.blob_sync(blob);
            let Some(layer) = above(self.store, blob)? else { break };
            blob = layer.parent;
        }
        Ok(())
    }

    /// The blob of file `ino`, of which at most `most` bytes will be left, and which no snapshot sees.
    fn blob_to_change(&mut self, ino: u64, most: u64) -> Result<u64, StoreError> {
        let bytes = bytes_of(self.store, ino)?;
        if !self.is_seen(ino, bytes.since) {
            return Ok(bytes.blob);
        }
        let inode = record::<Inode>(self.store, &keys::inode(ino))?.ok_or(StoreError::Io)?;
        let blob = self.snapshots.new_blob(self.store);
        // A crash may have left something under this number.
        let outcome = self.store.blob_truncate(blob, 0);
        let outcome = outcome.and_then(|()| self.branch(ino, &bytes, blob, inode.size.min(most)));
        if outcome.is_err() {
            self.store.blob_remove(blob);
        }
        outcome.map(|()| blob)
    }

    /// File `ino`'s bytes, of which it keeps `size`, are in `blob` from now on.
    fn branch(&mut self, ino: u64, before: &Bytes, blob: u64, size: u64) -> Result<(), StoreError> {
        let alone = Layer { ino, is_used: 1, ..Layer::default() };
        let mut layer = alone;
        if size > SNAPSHOT_COPY_MAX {
            let parent = self::layer(self.store, before.blob)?.unwrap_or(alone);
            self.put_layer(before.blob, &Layer { child: blob, ..parent });
            (layer.parent, layer.limit) = (before.blob, size);
        } else if size > 0 {
            let mut data = vec![0; usize::try_from(size).map_err(|_| StoreError::Full)?];
            read(self.store, before.blob, 0, &mut data)?;
            self.write_copy(blob, 0, &data)?;
            self.sync_copy(blob);
        }
        self.put_layer(blob, &layer);
        let key = keys::bytes(ino);
        self.keep(&key, None);
        self.store.put(&key, &Bytes { blob, since: self.snapshots.last() }.bytes());
        Ok(())
    }

    /// Copies what of `from..to` is not blob `blob`'s own and is not changed as a whole. Returns the chunks that become its own with the change;
    /// if that `punches`, those that are holes already need not.
    fn prepare(
        &mut self,
        blob: u64,
        from: u64,
        to: u64,
        punches: bool,
    ) -> Result<Vec<Range<u64>>, StoreError> {
        let mut taken = Vec::new();
        let Some(layer) = above(self.store, blob)?.filter(|layer| from < layer.limit) else {
            return Ok(taken);
        };
        let mut start = from / CHUNK * CHUNK;
        while start < to.min(layer.limit) {
            let (is_own, up_to) = own(self.store, blob, start);
            if is_own {
                start = up_to;
                continue;
            }
            let end = (start + CHUNK).min(layer.limit);
            if from > start || end > to {
                self.copy_chunk(blob, start, end)?;
                taken.push(start / CHUNK..start / CHUNK + 1);
                start += CHUNK;
                continue;
            }
            // Whole ones.
            let last = if to >= layer.limit { layer.limit.div_ceil(CHUNK) } else { to / CHUNK };
            let end = last.min(up_to / CHUNK) * CHUNK;
            if !punches {
                taken.push(start / CHUNK..end / CHUNK);
                start = end;
                continue;
            }
            let data = seek(self.store, blob, start, false);
            let data = data.map_or(end, |data| data / CHUNK * CHUNK).min(end);
            if data > start {
                start = data;
                continue;
            }
            let hole = seek(self.store, blob, start, true).unwrap_or(end);
            let end = hole.div_ceil(CHUNK).max(start / CHUNK + 1).min(end / CHUNK);
            taken.push(start / CHUNK..end);
            start = end * CHUNK;
        }
        Ok(taken)
    }

    /// Copies what `start..end` is in the line that ends with `blob` into that.
    fn copy_chunk(&mut self, blob: u64, start: u64, end: u64) -> Result<(), StoreError> {
        let mut data = vec![0; usize::try_from(end - start).map_err(|_| StoreError::Full)?];
        read(self.store, blob, start, &mut data)?;
        self.clear(blob, start, end)?;
        self.write_copy(blob, start, &data)
    }

    /// Removes what a crash may have left in blob `blob` where it has nothing of its own.
    fn clear(&mut self, blob: u64, start: u64, end: u64) -> Result<(), StoreError> {
        if self.store.blob_seek(blob, start, false).is_some_and(|found| found < end) {
            self.store.blob_punch(blob, start, end - start)?;
        }
        Ok(())
    }

    /// Nobody has asked whether there is room for this, and none of what is kept back must be taken.
    fn write_copy(&mut self, blob: u64, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if data.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let (total, free) = self.store.space();
        // What gives room back soon may take some that others may not.
        let kept_back = if self.is_clearing_up { reserve(total) / 2 } else { reserve(total) };
        if free.saturating_sub(kept_back) < data.len() as u64 {
            return Err(StoreError::Full);
        }
        self.store.blob_write(blob, offset, data)
    }

    /// These chunks are blob `blob`'s own from now on.
    fn take(&mut self, blob: u64, chunks: &[Range<u64>]) {
        for run in chunks {
            let mut chunk = run.start;
            while chunk < run.end {
                let group = chunk / GROUP;
                let key = keys::own_chunks(blob, group);
                let mut bitmap = self.store.get(&key).unwrap_or_default();
                bitmap.resize(BITMAP, 0);
                let end = run.end.min((group + 1) * GROUP);
                for own in chunk..end {
                    let byte = usize::try_from(own % GROUP / 8).unwrap_or(0);
                    bitmap[byte] |= 1 << (own % 8);
                }
                self.store.put(&key, &bitmap);
                chunk = end;
            }
        }
        if !chunks.is_empty() {
            self.sync_copy(blob);
        }
    }

    /// What is in `blob` was elsewhere before, on stable storage perhaps.
    fn sync_copy(&mut self, blob: u64) {
        self.store.blob_sync(blob);
        self.must_sync = true;
    }

    fn put_layer(&mut self, blob: u64, layer: &Layer) {
        self.store.put(&keys::layer(blob), &layer.bytes());
    }

    /// Blob `blob`, which is `layer`, has nothing of its parent any more.
    fn separate(&mut self, blob: u64, mut layer: Layer) -> Result<(), StoreError> {
        let parent = std::mem::take(&mut layer.parent);
        layer.limit = 0;
        self.put_layer(blob, &layer);
        self.remove_bitmaps(blob);
        if self.childless(parent)? { self.drop_blob(parent) } else { Ok(()) }
    }

    /// Blob `blob` is the parent of none any more. True: so nobody has a use for it.
    fn childless(&mut self, blob: u64) -> Result<bool, StoreError> {
        let Some(mut layer) = layer(self.store, blob)? else { return Ok(false) };
        layer.child = 0;
        self.put_layer(blob, &layer);
        Ok(layer.is_used == 0)
    }

    /// Neither a file nor a snapshot has blob `blob` any more.
    pub(super) fn drop_blob(&mut self, mut blob: u64) -> Result<(), StoreError> {
        loop {
            let Some(mut layer) = layer(self.store, blob)? else {
                self.store.blob_remove(blob);
                return Ok(());
            };
            if layer.child != 0 {
                layer.is_used = 0;
                self.put_layer(blob, &layer);
                self.store.put(&keys::merge(blob), &[]);
                self.snapshots.begin_merge(blob);
                return Ok(());
            }
            self.destroy(blob);
            if layer.parent == 0 || !self.childless(layer.parent)? {
                return Ok(());
            }
            blob = layer.parent;
        }
    }

    fn destroy(&mut self, blob: u64) {
        self.store.blob_remove(blob);
        self.store.remove(&keys::layer(blob));
        self.remove_bitmaps(blob);
        if self.snapshots.end_merge(blob) {
            self.store.remove(&keys::merge(blob));
        }
    }

    fn remove_bitmaps(&mut self, blob: u64) {
        let mut gone = Vec::new();
        keys::collect(self.store, &keys::all_own_chunks(blob), |key, _| gone.push(key.to_vec()));
        for key in gone {
            self.store.remove(&key);
        }
    }

    /// Goes on with giving what blob `blob` has to the one that it is the parent of, from `merge.at` on: at most `most` chunks. True: that has all.
    pub(super) fn merge_some(
        &mut self,
        merge: &mut Merge,
        most: usize,
    ) -> Result<bool, StoreError> {
        let blob = merge.blob;
        let Some(below) = layer(self.store, blob)? else { return Ok(true) };
        let Some(above) = layer(self.store, below.child)? else { return Ok(true) };
        // What the one above has got is safe by now, and nobody else has this blob.
        if merge.given < merge.at {
            let end = merge.at.min(merge.given + GIVEN_AT_ONCE);
            self.store.blob_punch(blob, merge.given, end - merge.given)?;
            merge.given = end;
            if end < merge.at {
                return Ok(false);
            }
        }
        let mut taken = Vec::new();
        let mut outcome = Ok(());
        let (mut copied, mut steps) = (0, 0);
        while outcome.is_ok() && merge.at < above.limit && copied < most && steps < SEARCH_MAX {
            steps += 1;
            let at = merge.at;
            match self.part_to_give(blob, &below, &above, at) {
                Part::Nothing { end } => merge.at = end,
                Part::Hole { end } => {
                    outcome = self.clear(below.child, at, end.min(above.limit));
                    if outcome.is_ok() {
                        merge.at = end;
                        // Without a parent it will be one by itself.
                        if below.parent != 0 {
                            taken.push(at / CHUNK..end / CHUNK);
                            copied = most;
                        }
                    }
                }
                Part::Data => {
                    let end = (at + CHUNK).min(above.limit);
                    outcome = self.copy_chunk(below.child, at, end);
                    if outcome.is_ok() {
                        taken.push(at / CHUNK..at / CHUNK + 1);
                        (merge.at, copied) = (at + CHUNK, copied + 1);
                    }
                }
            }
        }
        self.take(below.child, &taken);
        outcome?;
        let is_over = merge.at >= above.limit;
        if is_over {
            self.end_of_line(blob, &below, above)?;
        }
        Ok(is_over)
    }

    /// What blob `blob`, which is `below`, has from byte `at` on, where a chunk begins, that `above` has not.
    fn part_to_give(&self, blob: u64, below: &Layer, above: &Layer, at: u64) -> Part {
        let (is_own, mut end) = own(self.store, below.child, at);
        if is_own {
            return Part::Nothing { end };
        }
        end = end.min(above.limit.next_multiple_of(CHUNK));
        if below.parent != 0 && at < below.limit {
            let (has_it, up_to) = own(self.store, blob, at);
            if !has_it && at + CHUNK > below.limit {
                // Some of it is this one's parent's.
                return Part::Data;
            }
            end = end.min(up_to).min(below.limit / CHUNK * CHUNK).max(at + CHUNK);
            if !has_it {
                return Part::Nothing { end };
            }
        }
        let data = self.store.blob_seek(blob, at, false).unwrap_or(end) / CHUNK * CHUNK;
        let mut end = data.min(end);
        if below.parent != 0 {
            end = end.min(at.saturating_add(BITMAPS_AT_ONCE * GROUP * CHUNK));
        }
        if end > at { Part::Hole { end } } else { Part::Data }
    }

    /// Blob `blob`, which is `below`, has nothing any more that `above`, of which it is the parent, needs.
    fn end_of_line(&mut self, blob: u64, below: &Layer, above: Layer) -> Result<(), StoreError> {
        let limit = if below.parent == 0 { 0 } else { above.limit.min(below.limit) };
        self.put_layer(below.child, &Layer { parent: below.parent, limit, ..above });
        if below.parent == 0 {
            self.remove_bitmaps(below.child);
        } else if let Some(parent) = layer(self.store, below.parent)? {
            self.put_layer(below.parent, &Layer { child: below.child, ..parent });
        }
        self.destroy(blob);
        // What was copied is safe before this is gone.
        self.must_sync = true;
        Ok(())
    }

    /// An inode whose bytes at `at` are in a blob; of one that only snapshots see, as it is in the first of these. `None`: nobody can read them.
    pub(super) fn file_of(&self, blob: u64, at: u64) -> Option<u64> {
        let ino = layer(self.store, blob).ok().flatten().map_or(blob, |layer| layer.ino);
        let has_it = |line: u64| run(self.store, line, at).is_ok_and(|run| run.blob == blob);
        let is_there = self.store.get(&keys::inode(ino)).is_some();
        if is_there && bytes_of(self.store, ino).is_ok_and(|bytes| has_it(bytes.blob)) {
            return Some(ino);
        }
        let sees = |number: &u64| self.blob_in(*number, ino).is_some_and(has_it);
        let found = self.snapshots.list.keys().copied().find(sees);
        found.map(|number| super::number_in(number, ino))
    }
}

/// How far a blob has been given to the one that it is the parent of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) blob: u64,
    /// Up to here.
    at: u64,
    /// Up to here it has been removed.
    given: u64,
}

impl Merge {
    pub(super) fn of(blob: u64) -> Merge {
        Merge { blob, ..Merge::default() }
    }
}

/// What is to be given next.
enum Part {
    /// Nothing, up to `end`.
    Nothing { end: u64 },
    /// A hole.
    Hole { end: u64 },
    /// A chunk.
    Data,
}

/// The blob that a snapshot keeps of file `ino`; `None`: `value` is damaged.
pub(super) fn kept_blob(value: &[u8], ino: u64) -> Option<u64> {
    match value.split_first()? {
        (0, _) => Some(ino),
        (_, bytes) => Bytes::get(bytes).map(|bytes| bytes.blob),
    }
}

/// Visits until `most` pairs have been collected.
pub(super) fn first(
    store: &dyn Store,
    from: &[u8],
    to: &[u8],
    most: usize,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    store.range(from, to, &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found
}
