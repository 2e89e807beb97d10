//! Checksums of blobs: what has lain still for a while is summed, and whoever reads it is told if it is not what it was.
//!
//! A blob is summed in blocks of 4 KiB; the sums of a *chunk* of 128 KiB are one row. Whether sums still hold is known by
//! *window*, of 8 MiB: one in which bytes may have changed since they were summed is *dirty*, which is a row as well.
//!
//! ```text
//! sums    blob chunk  → XXH3-64 of each block, seeded with where it is; zeros at the end of the chunk are left out
//! dirty   blob window → nothing, or a bit for each chunk that may have changed            (numbers big-endian, all else little-endian)
//! ```
//! That a window is dirty is on stable storage before the first of its bytes that has been summed changes, and what was summed
//! is on stable storage before its sums are committed. So neither a crash nor a power failure makes good bytes look bad. After
//! an orderly end it is known what has changed; else all of a dirty window may have, and what differs from its sums is told
//! when it is summed anew. What no row tells of is not checked: it is a hole, or has not been summed yet.
//!
//! Known gaps: damage that a write would have replaced is forgotten if that write fails half-way; who looks for holes
//! (SEEK_DATA) is told of one where the disk has lost data; and a cut through many dense windows marks them all at once.

use super::blobs::Blobs;
use super::disk::or_unwind;
use crate::store::{Damage, StoreError};
use anyhow::{Context, Result};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What has one sum, in bytes: a page, the least that programs read.
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCK_BYTES: usize = 4096;
/// What has one row of sums, in bytes: the most that a server reads at once.
pub(crate) const CHUNK: u64 = 128 << 10;
const CHUNKS: u64 = 64;
/// What is dirty at once, in bytes.
pub(crate) const WINDOW: u64 = CHUNK * CHUNKS;
const SUM: usize = size_of::<u64>();

/// Damage that is remembered, to be told.
const DAMAGE_MAX: usize = 1024;

/// A part of a blob that is dirty as one: the blob, and which of its windows.
pub(crate) type Window = (u64, u64);

/// The sums of one store's blobs.
pub(crate) struct Checksums {
    sums: Keyspace,
    dirty_rows: Keyspace,
    dirty: BTreeMap<Window, Dirty>,
    /// Dirty windows whose rows are to be written with the round.
    fresh: BTreeSet<Window>,
    /// How often the journal has been brought to stable storage.
    syncs: u64,
    /// No blob with a greater number has sums.
    last_summed: u64,
    /// Numbers for [`Dirty::serial`].
    serials: u64,
    damage: RefCell<BTreeSet<Damage>>,
}

/// What may have changed in a window.
#[derive(Clone, Copy, Debug, Default)]
struct Dirty {
    /// Since it was summed.
    changed: Chunks,
    /// Since the last [`Checksums::take_still`].
    young: Chunks,
    /// Perhaps, before the last start.
    unknown: Chunks,
    /// It is being summed.
    is_in_hand: bool,
    /// May there be sums in it?
    has_sums: bool,
    /// Its row is in the journal since [`Checksums::syncs`] was that.
    stored: Option<u64>,
    /// Of each that there ever was, another.
    serial: u64,
}

/// A window to be summed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Still {
    pub(crate) window: Window,
    pub(crate) chunks: Chunks,
    serial: u64,
}

/// What was summed of a window.
#[derive(Debug, Default)]
pub(crate) struct Summed {
    /// The sums of chunks that have data, by their numbers in the blob.
    pub(crate) rows: BTreeMap<u64, Vec<u8>>,
    /// Chunks that cannot be read.
    pub(crate) unread: Chunks,
}

impl Checksums {
    /// Takes up what an earlier life has left.
    pub(crate) fn open(
        database: &Database,
        options: impl Fn() -> KeyspaceCreateOptions,
    ) -> Result<Checksums> {
        let keyspace = |name| {
            database
                .keyspace(name, &options)
                .with_context(|| format!("cannot open the {name} rows"))
        };
        let (sums, dirty_rows) = (keyspace("sums")?, keyspace("dirty")?);
        let mut checksums = Checksums {
            sums,
            dirty_rows,
            dirty: BTreeMap::new(),
            fresh: BTreeSet::new(),
            syncs: 0,
            last_summed: 0,
            serials: 0,
            damage: RefCell::default(),
        };
        for guard in checksums.dirty_rows.iter() {
            let (key, changed) = guard.into_inner().context("cannot read which blobs are dirty")?;
            let window = numbers(&key).context("a strange row of a dirty blob")?;
            let known = <[u8; 8]>::try_from(&*changed).ok();
            let changed = known.map_or(Chunks::ALL, |known| Chunks(u64::from_le_bytes(known)));
            let unknown = if known.is_none() { Chunks::ALL } else { Chunks::default() };
            checksums.serials += 1;
            let serial = checksums.serials;
            let dirty = Dirty { changed, unknown, has_sums: true, serial, ..Dirty::default() };
            // As it has sums, and no row that is known to be stored, that is written anew before anything changes.
            checksums.dirty.insert(window, dirty);
        }
        // What cannot be read costs look-ups in vain, not the whole store.
        checksums.last_summed = checksums.last_blob().unwrap_or_else(|error| {
            tracing::error!("{error:#}");
            u64::MAX
        });
        Ok(checksums)
    }

    /// The server ends in an orderly way: the next one shall know what has changed.
    pub(crate) fn write_end(&mut self, batch: &mut OwnedWriteBatch) {
        self.fresh.clear();
        for ((blob, window), dirty) in &self.dirty {
            batch.insert(&self.dirty_rows, key(*blob, *window), dirty.changed.0.to_le_bytes());
        }
    }

    /// The journal has been brought to stable storage.
    pub(crate) fn synced(&mut self) {
        self.syncs += 1;
    }

    /// Is there nothing to be written with this round?
    pub(crate) fn round_is_empty(&self) -> bool {
        self.fresh.is_empty()
    }

    /// Puts what is to be written with this round into its batch.
    pub(crate) fn write_round(&mut self, batch: &mut OwnedWriteBatch) {
        for window in std::mem::take(&mut self.fresh) {
            batch.insert(&self.dirty_rows, key(window.0, window.1), []);
            if let Some(dirty) = self.dirty.get_mut(&window) {
                dirty.stored = Some(self.syncs);
            }
        }
    }

    /// Is called before bytes `range` of a blob are written.
    ///
    /// # Errors
    /// What stays of a block, or of others that have their sums in the same row, is damaged.
    pub(crate) fn before_write(
        &mut self,
        database: &Database,
        blobs: &Blobs,
        blob: u64,
        range: &Range<u64>,
    ) -> Result<(), StoreError> {
        let windows = range.start / WINDOW..range.end.div_ceil(WINDOW);
        self.before(database, blobs, blob, range, &windows.collect::<Vec<_>>())
    }

    /// Is called before bytes `range` of a blob are cut off, or made a hole.
    ///
    /// # Errors
    /// As [`Checksums::before_write`].
    pub(crate) fn before_cut(
        &mut self,
        database: &Database,
        blobs: &Blobs,
        blob: u64,
        range: &Range<u64>,
    ) -> Result<(), StoreError> {
        // The range may be of many windows, of which most are holes.
        let (first, end) = (range.start / WINDOW, range.end.div_ceil(WINDOW));
        let mut windows: BTreeSet<u64> =
            self.dirty.range((blob, first)..(blob, end)).map(|((_, window), _)| *window).collect();
        let mut from = first;
        while from < end
            && let Some(chunk) = self.first_row(blob, from * CHUNKS..end.saturating_mul(CHUNKS))?
        {
            windows.insert(chunk / CHUNKS);
            from = chunk / CHUNKS + 1;
        }
        self.before(database, blobs, blob, range, &windows.into_iter().collect::<Vec<_>>())
    }

    fn before(
        &mut self,
        database: &Database,
        blobs: &Blobs,
        blob: u64,
        range: &Range<u64>,
        windows: &[u64],
    ) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        let edges = [range.start / CHUNK, (range.end - 1) / CHUNK];
        for chunk in &edges[usize::from(edges[0] == edges[1])..] {
            if !self.is_changed(blob, *chunk) {
                self.check_rest(blobs, blob, *chunk, range)?;
            }
        }
        let mut unstable = Vec::new();
        for window in windows.iter().map(|window| (blob, *window)) {
            if !self.dirty.contains_key(&window) {
                let chunks = window.1 * CHUNKS..(window.1 + 1) * CHUNKS;
                self.make_dirty(window, self.first_row(blob, chunks)?.is_some());
            }
            let dirty = self.dirty[&window];
            if dirty.has_sums && dirty.stored.is_none_or(|stored| stored >= self.syncs) {
                unstable.push(window);
            }
        }
        if !unstable.is_empty() {
            let mut batch = database.batch().durability(Some(PersistMode::SyncData));
            for (blob, window) in &unstable {
                batch.insert(&self.dirty_rows, key(*blob, *window), []);
            }
            or_unwind(batch.commit().context("cannot write the journal (is the disk full?)"));
            for window in unstable {
                self.fresh.remove(&window);
                self.dirty.entry(window).and_modify(|dirty| dirty.stored = Some(self.syncs));
            }
            self.synced();
        }
        for window in windows {
            let chunks = Chunks::of(range, *window);
            self.dirty.entry((blob, *window)).and_modify(|dirty| {
                dirty.changed = dirty.changed.and_also(chunks);
                dirty.young = dirty.young.and_also(chunks);
                dirty.unknown = dirty.unknown.without(chunks);
            });
        }
        self.forget_damage(blob, range);
        Ok(())
    }

    fn make_dirty(&mut self, window: Window, has_sums: bool) {
        self.serials += 1;
        if !has_sums {
            self.fresh.insert(window);
        }
        let dirty = Dirty { has_sums, serial: self.serials, ..Dirty::default() };
        self.dirty.insert(window, dirty);
    }

    /// Checks the blocks of a chunk of which something stays when `range` changes: they lose their sums.
    fn check_rest(
        &self,
        blobs: &Blobs,
        blob: u64,
        chunk: u64,
        range: &Range<u64>,
    ) -> Result<(), StoreError> {
        let Some(row) = self.row(blob, chunk)? else { return Ok(()) };
        let bytes = chunk * CHUNK..(chunk + 1) * CHUNK;
        // Of the last block nothing stays, if all that there is of it changes.
        let length = blobs.length(blob)?;
        let is_end = range.end >= length && range.end / BLOCK * BLOCK < length;
        let end = if is_end { range.end.div_ceil(BLOCK) } else { range.end / BLOCK };
        let goes = range.start.div_ceil(BLOCK)..end;
        let mut blocks = bytes.start / BLOCK..bytes.end / BLOCK;
        if goes.start <= blocks.start && blocks.end <= goes.end {
            return Ok(());
        }
        let mut found = vec![0; to_usize(CHUNK)];
        let count = blobs.read(blob, bytes.start, &mut found)?;
        found.truncate(count);
        let is_bad = |block: &u64| {
            !goes.contains(block)
                && !holds(&row, blob, *block, of_block(&found, bytes.start, *block))
        };
        match blocks.find(is_bad) {
            Some(block) => Err(self.damaged(blob, block * BLOCK)),
            None => Ok(()),
        }
    }

    /// Reads, as [`Blobs::read`], what is as it was summed.
    ///
    /// # Errors
    /// It is not, or the disk failed.
    pub(crate) fn read(
        &self,
        blobs: &Blobs,
        blob: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, StoreError> {
        let count = blobs.read(blob, offset, buffer)?;
        let end = offset.saturating_add(buffer.len() as u64);
        if buffer.is_empty() || end > i64::MAX as u64 {
            return Ok(count);
        }
        for chunk in offset / CHUNK..end.div_ceil(CHUNK) {
            if self.is_changed(blob, chunk) {
                continue;
            }
            let Some(row) = self.row(blob, chunk)? else { continue };
            let part = offset.max(chunk * CHUNK)..end.min((chunk + 1) * CHUNK);
            let whole = part.start / BLOCK * BLOCK..part.end.next_multiple_of(BLOCK);
            let in_buffer = to_usize(part.start - offset)..to_usize(part.end - offset);
            let mut blocks = Vec::new();
            let found = if whole == part {
                &buffer[in_buffer.start.min(count)..in_buffer.end.min(count)]
            } else {
                blocks.resize(to_usize(whole.end - whole.start), 0);
                let found = blobs.read(blob, whole.start, &mut blocks)?;
                let there = in_buffer.start..in_buffer.end.min(count);
                let from = to_usize(part.start - whole.start);
                if let Some(there) = buffer.get_mut(there) {
                    let same = blocks.get(from..from + there.len());
                    there.copy_from_slice(same.ok_or(StoreError::Io)?);
                }
                &blocks[..found]
            };
            let mut numbers = whole.start / BLOCK..whole.end / BLOCK;
            let is_bad =
                |block: &u64| !holds(&row, blob, *block, of_block(found, whole.start, *block));
            if let Some(block) = numbers.find(is_bad) {
                return Err(self.damaged(blob, block * BLOCK));
            }
        }
        Ok(count)
    }

    /// May the chunk have changed since it was summed?
    pub(crate) fn is_changed(&self, blob: u64, chunk: u64) -> bool {
        let dirty = self.dirty.get(&(blob, chunk / CHUNKS));
        dirty.is_some_and(|dirty| dirty.changed.has(chunk))
    }

    /// The sums of a chunk. If they cannot be read, neither can the chunk.
    fn row(&self, blob: u64, chunk: u64) -> Result<Option<Vec<u8>>, StoreError> {
        if blob > self.last_summed {
            return Ok(None);
        }
        let row = self.sums.get(key(blob, chunk)).map_err(|error| unreadable(blob, &error))?;
        Ok(row.map(|row| row.to_vec()))
    }

    /// Is this still what the chunk is to be compared with?
    pub(crate) fn has_row(&self, blob: u64, chunk: u64, row: &[u8]) -> bool {
        let is_same = |found: Option<Vec<u8>>| found.is_some_and(|found| found == row);
        !self.is_changed(blob, chunk) && self.row(blob, chunk).is_ok_and(is_same)
    }

    /// The first of these chunks that has a row.
    fn first_row(&self, blob: u64, chunks: Range<u64>) -> Result<Option<u64>, StoreError> {
        if blob > self.last_summed {
            return Ok(None);
        }
        let mut rows = self.sums.range(key(blob, chunks.start)..key(blob, chunks.end));
        let Some(guard) = rows.next() else { return Ok(None) };
        let key = guard.key().map_err(|error| unreadable(blob, &error))?;
        Ok(numbers(&key).map(|(_, chunk)| chunk))
    }

    /// The rows from the one behind `after` on, `most` at most: blob, chunk, sums.
    pub(crate) fn rows_behind(
        &self,
        after: Option<(u64, u64)>,
        most: usize,
    ) -> Result<Vec<(u64, u64, Vec<u8>)>> {
        let from = after.map_or([0; 16], |(blob, chunk)| key(blob, chunk + 1));
        let mut rows = Vec::new();
        for guard in self.sums.range(from..).take(most) {
            let (key, row) = guard.into_inner().context("cannot read the checksums")?;
            let (blob, chunk) = numbers(&key).context("a strange row of checksums")?;
            rows.push((blob, chunk, row.to_vec()));
        }
        Ok(rows)
    }

    /// The number of the last blob that has sums, or 0.
    fn last_blob(&self) -> Result<u64> {
        let Some(guard) = self.sums.last_key_value() else { return Ok(0) };
        let key = guard.key().context("cannot read the checksums")?;
        Ok(numbers(&key).map_or(0, |(blob, _)| blob))
    }

    /// No blob with a greater number has sums.
    pub(crate) fn last_summed(&self) -> u64 {
        self.last_summed
    }

    /// Takes up those chunks with data that have no sums.
    pub(crate) fn take_up(&mut self, blob: u64, data: &Range<u64>) -> Result<()> {
        for chunk in data.start / CHUNK..data.end.div_ceil(CHUNK) {
            let window = (blob, chunk / CHUNKS);
            if self.is_changed(blob, chunk)
                || self.sums.contains_key(key(blob, chunk)).context("cannot read the checksums")?
            {
                continue;
            }
            if !self.dirty.contains_key(&window) {
                self.make_dirty(window, true);
            }
            self.dirty.entry(window).and_modify(|dirty| {
                dirty.changed = dirty.changed.and_also(Chunks::one(chunk));
            });
        }
        Ok(())
    }

    /// The next windows behind `behind`, `most` at most, and of these what has not changed since they were asked for before, or, with
    /// `also_young`, all that has changed: to be summed. Each is given back by [`Checksums::put_summed`] or [`Checksums::put_back`].
    /// With them, the last window that was looked at; `None`: there are no more.
    pub(crate) fn take_still(
        &mut self,
        behind: Option<Window>,
        also_young: bool,
        most: usize,
    ) -> (Vec<Still>, Option<Window>) {
        let mut still = Vec::new();
        let from = behind.map_or(Bound::Unbounded, Bound::Excluded);
        for (window, dirty) in self.dirty.range_mut((from, Bound::Unbounded)) {
            if still.len() == most {
                let last = still.last().map(|still: &Still| still.window);
                return (still, last);
            }
            if dirty.is_in_hand {
                continue;
            }
            let young = if also_young { Chunks::default() } else { dirty.young };
            let chunks = dirty.changed.without(young);
            dirty.young = Chunks::default();
            if !chunks.is_empty() {
                dirty.is_in_hand = true;
                still.push(Still { window: *window, chunks, serial: dirty.serial });
            }
        }
        (still, None)
    }

    /// A window that could not be summed.
    pub(crate) fn put_back(&mut self, still: &Still) {
        if let Some(dirty) = self.dirty.get_mut(&still.window)
            && dirty.serial == still.serial
        {
            dirty.is_in_hand = false;
        }
    }

    /// Takes the sums of what was handed out; they are of bytes that are on stable storage.
    pub(crate) fn put_summed(
        &mut self,
        still: &Still,
        summed: &Summed,
        batch: &mut OwnedWriteBatch,
    ) -> Result<()> {
        let (blob, window) = still.window;
        let chunks = key(blob, window * CHUNKS)..key(blob, (window + 1) * CHUNKS);
        let mut before = Vec::new();
        for guard in self.sums.range(chunks) {
            let (key, row) = guard.into_inner().context("cannot read the checksums")?;
            before.extend(numbers(&key).map(|(_, chunk)| (chunk, row)));
        }
        let Some(dirty) = self.dirty.get_mut(&still.window) else { return Ok(()) };
        if dirty.serial != still.serial {
            return Ok(());
        }
        dirty.is_in_hand = false;
        let unread = summed.unread.without(dirty.young);
        // What has been changed meanwhile is summed another time.
        let valid = still.chunks.without(dirty.young).without(summed.unread);
        let unknown = dirty.unknown;
        dirty.unknown = unknown.without(valid);
        dirty.changed = dirty.changed.without(valid);
        dirty.has_sums = true;
        let is_clean = dirty.changed.is_empty();
        for (chunk, row) in before {
            if !valid.has(chunk) {
                continue;
            }
            let now = summed.rows.get(&chunk);
            if unknown.has(chunk) && now.is_none_or(|now| **now != *row) {
                tracing::warn!(
                    blob = format!("{blob:016x}"),
                    offset = chunk * CHUNK,
                    "bytes are not what they were when this server's predecessor died: it was changing them, or the disk has"
                );
            }
            if now.is_none() {
                batch.remove(&self.sums, key(blob, chunk));
            }
        }
        valid.in_window(window).for_each(|chunk| self.is_well(blob, chunk));
        for (chunk, row) in &summed.rows {
            if valid.has(*chunk) {
                batch.insert(&self.sums, key(blob, *chunk), row.as_slice());
                self.last_summed = self.last_summed.max(blob);
            }
        }
        for chunk in unread.in_window(window) {
            self.damaged(blob, chunk * CHUNK);
        }
        if is_clean {
            self.dirty.remove(&still.window);
            self.fresh.remove(&still.window);
            batch.remove(&self.dirty_rows, key(blob, window));
        }
        Ok(())
    }

    /// Removes what is known of a blob that is gone, from chunk `from` on: as many rows as `most` has left. Returns where to go on,
    /// if there may be more.
    pub(crate) fn forget(
        &mut self,
        blob: u64,
        from: u64,
        most: &mut usize,
        batch: &mut OwnedWriteBatch,
    ) -> Result<Option<u64>> {
        let windows: Vec<Window> =
            self.dirty.range((blob, 0)..=(blob, u64::MAX)).map(|(window, _)| *window).collect();
        for window in windows {
            self.dirty.remove(&window);
            self.fresh.remove(&window);
            batch.remove(&self.dirty_rows, key(window.0, window.1));
        }
        self.forget_damage(blob, &(0..u64::MAX));
        if blob > self.last_summed {
            return Ok(None);
        }
        let mut last = Some(from);
        let mut count = 0;
        for guard in self.sums.range(key(blob, from)..=key(blob, u64::MAX)).take(*most) {
            let key = guard.key().context("cannot read the checksums")?;
            last = numbers(&key).map(|(_, chunk)| chunk + 1);
            batch.remove(&self.sums, key);
            count += 1;
        }
        let may_be_more = count == *most;
        *most -= count;
        Ok(last.filter(|_| may_be_more))
    }

    /// Notes damage, and says so in the log once.
    pub(crate) fn damaged(&self, blob: u64, offset: u64) -> StoreError {
        let mut damage = self.damage.borrow_mut();
        if damage.len() < DAMAGE_MAX && damage.insert(Damage { blob, offset }) {
            tracing::error!(
                blob = format!("{blob:016x}"),
                offset,
                "a block is not what was written: it is read as an error (EIO) until it is written anew"
            );
        }
        StoreError::Io
    }

    fn forget_damage(&self, blob: u64, range: &Range<u64>) {
        self.damage.borrow_mut().retain(|damage| {
            damage.blob != blob
                || !(range.start / BLOCK * BLOCK..range.end).contains(&damage.offset)
        });
    }

    /// A chunk that is as it was summed.
    pub(crate) fn is_well(&self, blob: u64, chunk: u64) {
        self.forget_damage(blob, &(chunk * CHUNK..(chunk + 1) * CHUNK));
    }

    pub(crate) fn damage(&self) -> Vec<Damage> {
        self.damage.borrow().iter().copied().collect()
    }

    /// How many windows are dirty.
    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty.len()
    }
}

fn unreadable(blob: u64, error: &fjall::Error) -> StoreError {
    tracing::error!(blob = format!("{blob:016x}"), %error, "cannot read the checksums of a blob");
    StoreError::Io
}

/// The sums of a chunk with these bytes; what is missing at its end is zeros.
pub(crate) fn sum(blob: u64, chunk: u64, bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let first = chunk * (CHUNK / BLOCK);
    let blocks = (first..).zip(bytes[..end].chunks(to_usize(BLOCK)));
    blocks.flat_map(|(block, bytes)| sum_of_block(blob, block, bytes).to_le_bytes()).collect()
}

/// The first block, in bytes from the blob's begin, of a chunk with these bytes that is not as it was summed.
pub(crate) fn first_bad(blob: u64, chunk: u64, bytes: &[u8], row: &[u8]) -> Option<u64> {
    let mut blocks = chunk * CHUNK / BLOCK..(chunk + 1) * CHUNK / BLOCK;
    let is_bad = |block: &u64| !holds(row, blob, *block, of_block(bytes, chunk * CHUNK, *block));
    blocks.find(is_bad).map(|block| block * BLOCK)
}

/// Is this the block that was summed? What is missing at its end is zeros.
fn holds(row: &[u8], blob: u64, block: u64, bytes: &[u8]) -> bool {
    let at = to_usize(block % (CHUNK / BLOCK)) * SUM;
    match row.get(at..at + SUM) {
        Some(sum) => sum_of_block(blob, block, bytes).to_le_bytes() == *sum,
        None => bytes.iter().all(|byte| *byte == 0),
    }
}

fn sum_of_block(blob: u64, block: u64, bytes: &[u8]) -> u64 {
    // A block that the disk has taken from elsewhere is not this one.
    let seed = blob.rotate_left(32) ^ block;
    if bytes.len() == to_usize(BLOCK) {
        return xxh3_64_with_seed(bytes, seed);
    }
    let mut whole = [0; BLOCK_BYTES];
    whole[..bytes.len()].copy_from_slice(bytes);
    xxh3_64_with_seed(&whole, seed)
}

/// The part of `bytes`, which begin at `start` of the blob, that is block `block`.
fn of_block(bytes: &[u8], start: u64, block: u64) -> &[u8] {
    let at = to_usize(block * BLOCK - start).min(bytes.len());
    &bytes[at..(at + to_usize(BLOCK)).min(bytes.len())]
}

fn key(blob: u64, number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&blob.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

fn numbers(key: &[u8]) -> Option<(u64, u64)> {
    let key = u128::from_be_bytes(key.try_into().ok()?);
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the key")]
    Some(((key >> 64) as u64, key as u64))
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a part of a buffer")
}

/// A set of a window's chunks, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunks(u64);

impl Chunks {
    pub(crate) const ALL: Chunks = Chunks(u64::MAX);

    fn one(chunk: u64) -> Chunks {
        Chunks(1 << (chunk % CHUNKS))
    }

    /// Those of a window that have bytes of `range`.
    fn of(range: &Range<u64>, window: u64) -> Chunks {
        let first = (range.start / CHUNK).max(window * CHUNKS);
        let end = range.end.div_ceil(CHUNK).min((window + 1) * CHUNKS);
        (first..end).fold(Chunks::default(), |all, chunk| all.and_also(Chunks::one(chunk)))
    }

    /// This chunk of the blob, if it has it.
    pub(crate) fn only(self, chunk: u64) -> Chunks {
        self.without(self.without(Chunks::one(chunk)))
    }

    /// Has it this chunk of the blob, which is of its window?
    pub(crate) fn has(self, chunk: u64) -> bool {
        self.0 & Chunks::one(chunk).0 != 0
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn and_also(self, other: Chunks) -> Chunks {
        Chunks(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Chunks) -> Chunks {
        Chunks(self.0 & !other.0)
    }

    /// The chunks of `window`, by their numbers in the blob.
    pub(crate) fn in_window(self, window: u64) -> impl Iterator<Item = u64> {
        (window * CHUNKS..(window + 1) * CHUNKS).filter(move |chunk| self.has(*chunk))
    }
}

#[cfg(test)]
pub(crate) mod tests;
