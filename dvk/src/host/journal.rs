//! Checks fjall's journals before fjall reads them: a torn tail is cut off, damage is refused.
//!
//! fjall (3.1) replays a journal up to the first byte that it does not understand and cuts off the
//! rest, whatever it is. That is right for the tail that a crash tore and wrong for anything else: one
//! flipped byte in the middle would silently undo all that was acknowledged after it. So the journals
//! are walked here first. A journal is a sequence of batches, then zeros (it is allocated ahead):
//!
//! ```text
//! batch = 1 count:u32 sequence:u64, count × item, 3 checksum:u64 "FJL" 3     (little-endian)
//! item  = 2 type:u8 compression:u8 keyspace:u64 key_len:u16 len:u32 stored_len:u32 key value
//!       | 4 keyspace:u64
//! checksum = XXH3-64 of the items
//! ```

use anyhow::{Context, Result, bail};
use rustix::fs::SeekFrom;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: [u8; 4] = [b'F', b'J', b'L', 3];

/// What the kernel writes at once: a page that never reached the disk reads as zeros.
const PAGE: usize = 4096;

/// Checks all journals of a database and cuts off the torn tail of the last one.
///
/// # Errors
/// A sentence that names the file, the offset and how to go on.
pub(crate) fn check_all(database: &Path) -> Result<()> {
    let mut journals = list(database)?;
    let last = journals.pop();
    for (_, path) in &journals {
        // A journal is fsynced before the next is begun, so a sealed one has no torn tail.
        match walk(path)? {
            Walk::Whole => {}
            Walk::Torn { at } | Walk::Headless { at } | Walk::Damaged { at } => {
                return Err(damaged(path, at));
            }
        }
    }
    let Some((_, path)) = last else { return Ok(()) };
    loop {
        match walk(&path)? {
            Walk::Whole => return Ok(()),
            Walk::Torn { at } => {
                tracing::warn!(journal = %path.display(), offset = at, "the last record is torn and has been dropped");
                return cut(&path, at);
            }
            Walk::Headless { at } => {
                tracing::warn!(journal = %path.display(), offset = at, "the first byte of a record was lost and has been put back");
                put_start(&path, at)?;
            }
            Walk::Damaged { at } => return Err(damaged(&path, at)),
        }
    }
}

fn damaged(path: &Path, at: u64) -> anyhow::Error {
    anyhow::anyhow!(
        "{} is damaged at offset {at}: restore it from a copy, or cut it off there (truncate -s {at}) to lose what came later",
        path.display()
    )
}

/// The journals, oldest first.
fn list(database: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut journals = Vec::new();
    for entry in std::fs::read_dir(database)
        .with_context(|| format!("cannot list {}", database.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let Some(number) = number else { bail!("{} is not a journal's name", path.display()) };
            journals.push((number, path));
        }
    }
    journals.sort();
    Ok(journals)
}

fn put_start(path: &Path, at: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&[START], at)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot repair {}", path.display()))
}

fn cut(path: &Path, at: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(at)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot shorten {}", path.display()))
}

/// What a walk through a journal found.
#[derive(Debug, PartialEq, Eq)]
enum Walk {
    /// Batches, then nothing or zeros.
    Whole,
    /// The last batch, which begins `at`, is not complete and nothing follows it.
    Torn { at: u64 },
    /// The batch that begins `at`, with the last byte of a page, lacks only that: the page was lost, the next was not.
    Headless { at: u64 },
    /// The batch that begins `at` is not what was written.
    Damaged { at: u64 },
}

fn walk(path: &Path) -> Result<Walk> {
    walk_file(path).with_context(|| format!("cannot read {}", path.display()))
}

fn walk_file(path: &Path) -> std::io::Result<Walk> {
    let mut window = Window::open(path)?;
    let mut before = None;
    while window.position < window.written {
        let at = window.position;
        let torn = match batch(&mut window)? {
            // fjall's checksum does not cover the sequence number, but it grows from batch to batch.
            Parsed::Complete(sequence) if before.is_none_or(|before| before < sequence) => {
                before = Some(sequence);
                continue;
            }
            Parsed::Complete(_) => false,
            // Torn, or a length has been damaged: then there is a batch's end further on.
            Parsed::Short => !window.has_an_end_after(at)?,
            // A power failure may lose one page of what was not fsynced and keep a later one. Where a batch begins or one of
            // its items, its page ends with zeros; inside of a long value the page has nothing else.
            Parsed::Wrong => {
                let end = window.position;
                if end == at && window.is_a_lost_byte(at)? {
                    window.position = at + 1;
                    return Ok(match rest_of_batch(&mut window)? {
                        Parsed::Complete(_) => Walk::Headless { at },
                        // More is lost than a byte that may have been damaged.
                        Parsed::Short | Parsed::Wrong => Walk::Torn { at },
                    });
                }
                window.page_is_zero_from(end)? || window.has_a_zero_page(at, end)?
            }
        };
        return Ok(if torn { Walk::Torn { at } } else { Walk::Damaged { at } });
    }
    Ok(Walk::Whole)
}

enum Parsed {
    /// A batch with this sequence number.
    Complete(u64),
    /// The journal ends first.
    Short,
    /// Not a batch, from the window's position on.
    Wrong,
}

/// Takes a value, or says that the journal ends first.
macro_rules! take {
    ($window:expr, $count:literal) => {{
        let mut bytes = [0; $count];
        if !$window.take(&mut bytes)? {
            return Ok(Parsed::Short);
        }
        bytes
    }};
}

fn batch(window: &mut Window) -> std::io::Result<Parsed> {
    let [tag] = take!(window, 1);
    if tag != START {
        window.position -= 1;
        return Ok(Parsed::Wrong);
    }
    rest_of_batch(window)
}

/// A batch behind its first byte.
fn rest_of_batch(window: &mut Window) -> std::io::Result<Parsed> {
    let count = u32::from_le_bytes(take!(window, 4));
    let sequence = u64::from_le_bytes(take!(window, 8));
    let mut hash = Xxh3::new();
    for _ in 0..count {
        match item(window, &mut hash)? {
            Parsed::Complete(_) => {}
            other => return Ok(other),
        }
    }
    let end = window.position;
    let [tag] = take!(window, 1);
    let checksum = u64::from_le_bytes(take!(window, 8));
    let magic = take!(window, 4);
    if tag != END || magic != MAGIC || checksum != hash.digest() {
        window.position = end;
        return Ok(Parsed::Wrong);
    }
    Ok(Parsed::Complete(sequence))
}

fn item(window: &mut Window, hash: &mut Xxh3) -> std::io::Result<Parsed> {
    let [tag] = take!(window, 1);
    hash.update(&[tag]);
    match tag {
        CLEAR => hash.update(&take!(window, 8)),
        ITEM => {
            let head = take!(window, 20);
            hash.update(&head);
            let key_len = u64::from(u16::from_le_bytes([head[10], head[11]]));
            let stored_len =
                u64::from(u32::from_le_bytes([head[16], head[17], head[18], head[19]]));
            let mut left = key_len + stored_len;
            let mut chunk = [0; PAGE];
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(PAGE).min(PAGE);
                if !window.take(&mut chunk[..count])? {
                    return Ok(Parsed::Short);
                }
                hash.update(&chunk[..count]);
                left -= count as u64;
            }
        }
        _ => {
            window.position -= 1;
            return Ok(Parsed::Wrong);
        }
    }
    Ok(Parsed::Complete(0))
}

/// A journal, read through a buffer, up to the last byte that is not zero.
struct Window {
    file: File,
    position: u64,
    /// Where the zeros begin that the journal was allocated ahead with.
    written: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;

impl Window {
    fn open(path: &Path) -> std::io::Result<Window> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut window =
            Window { file, position: 0, written: len, buffer: Vec::new(), buffer_at: 0 };
        window.written = window.find_end(len)?;
        Ok(window)
    }

    /// One past the last byte that is not zero.
    fn find_end(&mut self, len: u64) -> std::io::Result<u64> {
        // What was allocated ahead is a hole; only what is not need be read.
        let mut end = 0;
        while let Ok(data) = rustix::fs::seek(&self.file, SeekFrom::Data(end)) {
            end = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).unwrap_or(len);
        }
        while end > 0 {
            let start = (end - 1) / BUFFER as u64 * BUFFER as u64;
            self.fill(start, end)?;
            if let Some(last) = self.buffer.iter().rposition(|byte| *byte != 0) {
                return Ok(start + last as u64 + 1);
            }
            end = start;
        }
        Ok(0)
    }

    fn fill(&mut self, start: u64, end: u64) -> std::io::Result<()> {
        let count = usize::try_from(end - start).unwrap_or(BUFFER).min(BUFFER);
        self.buffer.resize(count, 0);
        self.buffer_at = start;
        self.file.read_exact_at(&mut self.buffer, start)
    }

    /// Takes the next bytes; `false` if there are not so many.
    fn take(&mut self, out: &mut [u8]) -> std::io::Result<bool> {
        if self.written - self.position.min(self.written) < out.len() as u64 {
            return Ok(false);
        }
        let mut done = 0;
        while done < out.len() {
            let inside =
                self.position.checked_sub(self.buffer_at).and_then(|at| usize::try_from(at).ok());
            let Some(bytes) =
                inside.and_then(|at| self.buffer.get(at..)).filter(|bytes| !bytes.is_empty())
            else {
                self.fill(self.position, self.written)?;
                continue;
            };
            let count = bytes.len().min(out.len() - done);
            out[done..done + count].copy_from_slice(&bytes[..count]);
            done += count;
            self.position += count as u64;
        }
        Ok(true)
    }

    /// Is there the end of a batch behind `from`: at the very end, or followed by a good batch?
    fn has_an_end_after(&mut self, from: u64) -> std::io::Result<bool> {
        let mut bytes = vec![0; usize::try_from(self.written - from).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, from)?;
        for (index, _) in bytes.windows(MAGIC.len()).enumerate().filter(|(_, four)| **four == MAGIC)
        {
            self.position = from + (index + MAGIC.len()) as u64;
            if self.position == self.written || matches!(batch(self)?, Parsed::Complete(_)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Is there a zero at the very end of a page?
    fn is_a_lost_byte(&mut self, at: u64) -> std::io::Result<bool> {
        self.fill(at, at + 1)?;
        Ok(self.buffer == [0] && (at + 1).is_multiple_of(PAGE as u64))
    }

    /// Is there a whole page of zeros between `from` and `to`?
    fn has_a_zero_page(&mut self, from: u64, to: u64) -> std::io::Result<bool> {
        let page = PAGE as u64;
        for start in (from.next_multiple_of(page)..to).step_by(PAGE) {
            if start + page <= self.written {
                self.fill(start, start + page)?;
                if self.buffer.iter().all(|byte| *byte == 0) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Is there nothing but zeros from `at` to the end of its page?
    fn page_is_zero_from(&mut self, at: u64) -> std::io::Result<bool> {
        let end = ((at / PAGE as u64 + 1) * PAGE as u64).min(self.written);
        self.fill(at, end)?;
        Ok(end - at > 1 && self.buffer.iter().all(|byte| *byte == 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    /// A journal of 50 batches and the offsets where they end.
    fn journal() -> (tempfile::TempDir, PathBuf, Vec<u64>) {
        journal_of(100)
    }

    /// The same; batch `n` is some `n * unit` bytes long.
    fn journal_of(unit: usize) -> (tempfile::TempDir, PathBuf, Vec<u64>) {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::builder(dir.path()).worker_threads(1).open().unwrap();
        let map = db.keyspace("map", KeyspaceCreateOptions::default).unwrap();
        let path = dir.path().join("0.jnl");
        let mut ends = Vec::new();
        for n in 0..50_u32 {
            let mut batch = db.batch();
            batch.insert(&map, format!("key {n}"), vec![7; unit * n as usize]);
            batch.insert(&map, format!("zero {n}"), vec![0; 300]);
            batch.remove(&map, "key 1");
            batch.commit().unwrap();
            ends.push(Window::open(&path).unwrap().written);
        }
        db.persist(PersistMode::SyncAll).unwrap();
        drop((map, db));
        (dir, path, ends)
    }

    #[test]
    fn what_fjall_writes_is_whole() {
        let (dir, path, _) = journal();
        assert_eq!(walk(&path).unwrap(), Walk::Whole);
        check_all(dir.path()).unwrap();
    }

    #[test]
    fn a_journal_cut_anywhere_is_whole_or_torn_at_the_start_of_its_last_batch() {
        let (_dir, path, ends) = journal();
        let (before, last) = (ends[ends.len() - 2], ends[ends.len() - 1]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for cut in (before..last).rev() {
            file.set_len(cut).unwrap();
            // Half of the time with the zeros that it was allocated ahead with.
            if cut % 2 == 0 {
                file.set_len(last + 9999).unwrap();
            }
            let expected = if cut == before { Walk::Whole } else { Walk::Torn { at: before } };
            assert_eq!(walk(&path).unwrap(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_byte_anywhere_is_refused_with_the_offset_of_its_batch() {
        let (dir, path, ends) = journal();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for at in (0..ends[ends.len() - 1]).step_by(7) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
            let index = ends.iter().filter(|end| **end <= at).count();
            let start = if index == 0 { 0 } else { ends[index - 1] };
            // A sequence number that has become too large shows in the next batch, if there is one.
            let unseen = (5..13).contains(&(at - start)) && index + 1 == ends.len();
            let found = walk(&path).unwrap();
            assert!(
                found == Walk::Damaged { at: start }
                    || found == Walk::Damaged { at: ends[index] }
                    || unseen,
                "flip at {at} in the batch at {start}: {found:?}"
            );
            file.write_all_at(&byte, at).unwrap();
        }
        file.write_all_at(&[0xff], ends[20] + 40).unwrap();
        let error = format!("{:#}", check_all(dir.path()).unwrap_err());
        assert!(
            error.contains("0.jnl is damaged at offset") && error.contains("truncate -s"),
            "{error}"
        );
    }

    #[test]
    fn a_batch_that_has_lost_its_first_byte_with_a_page_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.jnl");
        let db = Database::builder(dir.path()).worker_threads(1).open().unwrap();
        let map = db.keyspace("map", KeyspaceCreateOptions::default).unwrap();
        let add = |key: &str, len: u64| {
            let mut batch = db.batch();
            batch.insert(&map, key, vec![7; usize::try_from(len).unwrap()]);
            batch.commit().unwrap();
            Window::open(&path).unwrap().written
        };
        let (first, second) = (add("a", 10), add("b", 20));
        let around = second - first - 20;
        // A batch ends one byte before the end of a page, where the next begins.
        let at = (second / PAGE as u64 + 2) * PAGE as u64 - 1;
        assert_eq!(add("c", at - second - around), at);
        let end = add("d", 5000);
        db.persist(PersistMode::SyncAll).unwrap();
        drop((map, db));
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut whole = vec![0; usize::try_from(end).unwrap()];
        file.read_exact_at(&mut whole, 0).unwrap();
        file.write_all_at(&[0], at).unwrap();
        assert_eq!(walk(&path).unwrap(), Walk::Headless { at });
        check_all(dir.path()).unwrap();
        let mut found = vec![0; whole.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == whole, "it is as it was");
        // With another page lost as well it cannot be.
        file.write_all_at(&[0; PAGE + 1], at).unwrap();
        assert_eq!(walk(&path).unwrap(), Walk::Torn { at });
    }

    #[test]
    fn a_lost_page_of_the_tail_is_a_torn_tail_and_random_bytes_never_panic() {
        // Some pages have nothing but a part of one value.
        let (_dir, path, ends) = journal_of(300);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // Up to there it was fsynced.
        let synced = ends[30];
        let size = PAGE as u64;
        for page in synced / size..ends[49] / size {
            let from = synced.max(page * size);
            let mut bytes = vec![0; usize::try_from((page + 1) * size - from).unwrap()];
            file.read_exact_at(&mut bytes, from).unwrap();
            file.write_all_at(&vec![0; bytes.len()], from).unwrap();
            let first = ends.iter().rev().copied().find(|end| *end <= from).unwrap();
            assert_eq!(walk(&path).unwrap(), Walk::Torn { at: first }, "page {page}");
            file.write_all_at(&bytes, from).unwrap();
        }
        proptest::proptest!(|(bytes in proptest::collection::vec(0..5_u8, 0..600))| {
            file.set_len(0).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            walk(&path).unwrap();
        });
    }
}
