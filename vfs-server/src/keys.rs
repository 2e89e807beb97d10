//! Layout of the keys in the store, and the records under them.
//!
//! ```text
//! V                                        → version of this layout (u32)
//! C                                        → Counters
//! I ino                                    → Inode
//! N dir name                               → Entry                  one `get` finds a name
//! R dir cookie                             → ino, kind, name        the order of readdir
//! T ino                                    → target of a symbolic link
//! X ino name                               → value of an extended attribute
//! O fh                                     → OpenRecord
//! L ino family endpoint owner start        → LockRecord
//! G ino                                    → nothing: no name and no handle is left, to be destroyed
//! H endpoint                               → nothing: a file agent that may hold leases
//! P inode endpoint                         → nothing: it may hold pages of that file which nobody else has
//! Q tree                                   → Tree                   what a quota counts
//! W dir                                    → cookie: what is in it from there on is yet to be counted with it
//! K                                        → SnapshotCounters       there was one once
//! S snapshot                               → Snapshot, name
//! Z snapshot key                           → 0, or 1 and value: what was under a key of I, N, R, T, X or B then
//! B ino                                    → Bytes                  which blob has a file's bytes; none: that of its number
//! A blob                                   → Layer
//! M blob group                             → bitmap: which of its chunks (of 128 KiB, 1024 in a group) are not its parent's
//! J blob                                   → nothing: what it has for the blob that it is the parent of is to go there
//! ```
//! The tag is one byte; numbers in keys are big-endian, so ranges are in their order; records are
//! little-endian. File data are blobs, numbered by inode, until a snapshot keeps one (`snapshot/layers.rs`).

use calls::vfs::Time;
use calls::wire::Wire;
use calls::wire_structs;
use dvk::store::Store;
use m3ipc::Endpoint;
use std::ops::ControlFlow;

/// Version of this layout. A store of another version is refused, but for those since [`OLDEST_VERSION`].
pub const VERSION: u32 = 4;
/// The same without access control lists (2), without quotas (3) and without snapshots (4), which a server of that time would not obey.
pub const OLDEST_VERSION: u32 = 1;

wire_structs! {
    /// An inode. `mode` includes the type. For a directory `size` counts its entries without `.`
    /// and `..`, `parent` is the directory it is in, and `next_cookie` the next entry's place.
    pub struct Inode {
        pub ino: u64, pub size: u64, pub parent: u64, pub next_cookie: u64,
        pub atime: Time, pub mtime: Time, pub ctime: Time,
        pub mode: u32, pub nlink: u32, pub uid: u32, pub gid: u32, pub rdev: u32,
        /// Of [`mark`].
        pub marks: u16,
        /// The tree with a quota that it is counted in; 0: none (`quota.rs`).
        pub tree: u16,
    }

    /// What a name stands for. `kind` is a DT_* value.
    pub struct Entry { pub ino: u64, pub cookie: u64, pub kind: u8 }

    /// Head of what is under a directory's cookie; the name follows.
    pub struct Place { pub ino: u64, pub kind: u8 }

    /// An open file: which inode, how it was opened, and who may use the handle.
    pub struct OpenRecord { pub ino: u64, pub owner: Endpoint, pub flags: u32 }

    /// A lock's range, after the key: its inclusive end, F_RDLCK or F_WRLCK, the process it is
    /// reported for, and the handle it was taken through.
    pub struct LockRecord { pub end: u64, pub fh: u64, pub kind: u32, pub pid: u32 }

    /// A directory, `root`, and all below it, for a quota; `root` 0: its quota is gone, and what it still counts goes to others. `parent` is
    /// the tree that this one is within; 0: none. It may have as many blocks (of 4 KiB) and inodes, and has so many, those within it included.
    pub struct Tree {
        pub root: u64, pub blocks_limit: u64, pub inodes_limit: u64, pub blocks: u64, pub inodes: u64, pub parent: u16,
    }

    /// `ino_limit` and `fh_limit`: no number from there on was ever given out. `inodes` exist.
    pub struct Counters { pub ino_limit: u64, pub fh_limit: u64, pub inodes: u64 }

    /// The number of the last snapshot, and that of the next blob that is not a file's own.
    pub struct SnapshotCounters { pub last: u64, pub next_blob: u64 }

    /// A snapshot, taken at `taken`, when no inode had a number from `ino_limit` on. `stage` is of [`stage`].
    pub struct Snapshot { pub ino_limit: u64, pub taken: Time, pub stage: u8 }

    /// A file's bytes are in `blob`, since there was no later snapshot than `since`.
    pub struct Bytes { pub blob: u64, pub since: u64 }

    /// A blob that is one layer of the bytes of file `ino`: what is not its own below byte `limit` is as in blob `parent` (0: nothing is). It may be the
    /// parent of blob `child`. With `is_used` 1 it is what the file has, or had in a snapshot.
    pub struct Layer { pub ino: u64, pub parent: u64, pub limit: u64, pub child: u64, pub is_used: u8 }
}

/// Bits of [`Inode::marks`].
pub(crate) mod mark {
    /// There is a `security.capability` to drop when the file is written.
    pub(crate) const CAPABILITY: u16 = 1;
    /// It was made without a name, with O_TMPFILE and not O_EXCL, and may be given one.
    pub(crate) const LINKABLE: u16 = 2;
    /// It has an access control list (`acl.rs`).
    pub(crate) const ACL_ACCESS: u16 = 4;
    /// It has one for what is made in it.
    pub(crate) const ACL_DEFAULT: u16 = 8;
    /// It had several names when it came to be counted in another tree: they may be in different ones (`quota.rs`). For whoever checks a store.
    pub(crate) const SPREAD: u16 = 16;
    /// It is garbage (`G`), and no quota counts it any more.
    pub(crate) const GARBAGE: u16 = 32;
}

/// Values of [`Snapshot::stage`].
pub(crate) mod stage {
    pub(crate) const THERE: u8 = 0;
    /// Nobody can find it any more.
    pub(crate) const REMOVED: u8 = 1;
    /// And what it alone keeps goes.
    pub(crate) const GOING: u8 = 2;
}

pub(crate) const VERSION_KEY: &[u8] = b"V";
pub(crate) const COUNTERS: &[u8] = b"C";

pub(crate) fn inode(ino: u64) -> Vec<u8> {
    key(b'I', &[ino], &[])
}

pub(crate) fn entry(dir: u64, name: &[u8]) -> Vec<u8> {
    key(b'N', &[dir], name)
}

pub(crate) fn place(dir: u64, cookie: u64) -> Vec<u8> {
    key(b'R', &[dir, cookie], &[])
}

/// Places of `dir` from `cookie` on.
pub(crate) fn places_from(dir: u64, cookie: u64) -> (Vec<u8>, Vec<u8>) {
    (place(dir, cookie), key(b'R', &[dir + 1], &[]))
}

pub(crate) fn target(ino: u64) -> Vec<u8> {
    key(b'T', &[ino], &[])
}

pub(crate) fn xattr(ino: u64, name: &[u8]) -> Vec<u8> {
    key(b'X', &[ino], name)
}

/// The extended attributes of `ino`.
pub(crate) fn xattrs(ino: u64) -> (Vec<u8>, Vec<u8>) {
    (key(b'X', &[ino], &[]), key(b'X', &[ino + 1], &[]))
}

/// The attribute's name in a key made by [`xattr`].
pub(crate) fn xattr_name(key: &[u8]) -> &[u8] {
    key.get(9..).unwrap_or_default()
}

pub(crate) fn open(fh: u64) -> Vec<u8> {
    key(b'O', &[fh], &[])
}

pub(crate) fn opens() -> (Vec<u8>, Vec<u8>) {
    (vec![b'O'], vec![b'O' + 1])
}

pub(crate) fn lock(ino: u64, family: u8, endpoint: Endpoint, owner: u64, start: u64) -> Vec<u8> {
    key(b'L', &[ino, u64::from(family), endpoint.to_bits(), owner, start], &[])
}

pub(crate) fn locks() -> (Vec<u8>, Vec<u8>) {
    (vec![b'L'], vec![b'L' + 1])
}

pub(crate) fn garbage(ino: u64) -> Vec<u8> {
    key(b'G', &[ino], &[])
}

pub(crate) fn all_garbage() -> (Vec<u8>, Vec<u8>) {
    (vec![b'G'], vec![b'G' + 1])
}

pub(crate) fn agent(endpoint: Endpoint) -> Vec<u8> {
    key(b'H', &[endpoint.to_bits()], &[])
}

pub(crate) fn agents() -> (Vec<u8>, Vec<u8>) {
    (vec![b'H'], vec![b'H' + 1])
}

pub(crate) fn pages(ino: u64, endpoint: Endpoint) -> Vec<u8> {
    key(b'P', &[ino, endpoint.to_bits()], &[])
}

/// From where to where the keys of [`pages`] are.
pub(crate) fn all_pages() -> (Vec<u8>, Vec<u8>) {
    (vec![b'P'], vec![b'P' + 1])
}

pub(crate) fn tree(tree: u16) -> Vec<u8> {
    key(b'Q', &[tree.into()], &[])
}

pub(crate) fn trees() -> (Vec<u8>, Vec<u8>) {
    (vec![b'Q'], vec![b'Q' + 1])
}

pub(crate) fn walk(dir: u64) -> Vec<u8> {
    key(b'W', &[dir], &[])
}

pub(crate) fn walks() -> (Vec<u8>, Vec<u8>) {
    (vec![b'W'], vec![b'W' + 1])
}

pub(crate) const SNAPSHOT_COUNTERS: &[u8] = b"K";

pub(crate) fn snapshot(number: u64) -> Vec<u8> {
    key(b'S', &[number], &[])
}

pub(crate) fn snapshots() -> (Vec<u8>, Vec<u8>) {
    (vec![b'S'], vec![b'S' + 1])
}

/// What snapshot `number` keeps of `kept`.
pub(crate) fn kept(number: u64, kept: &[u8]) -> Vec<u8> {
    key(b'Z', &[number], kept)
}

/// All that snapshot `number` keeps.
pub(crate) fn all_kept(number: u64) -> (Vec<u8>, Vec<u8>) {
    (kept(number, &[]), kept(number + 1, &[]))
}

/// The key that was given to [`kept`].
pub(crate) fn kept_key(key: &[u8]) -> &[u8] {
    key.get(9..).unwrap_or_default()
}

/// Whose a key of I, N, R, T, X or B is; `None`: it is none of these, or cut.
pub(crate) fn owner(key: &[u8]) -> Option<u64> {
    let (tag, rest) = key.split_first()?;
    let number = rest.first_chunk()?;
    matches!(tag, b'I' | b'N' | b'R' | b'T' | b'X' | b'B').then(|| u64::from_be_bytes(*number))
}

pub(crate) fn bytes(ino: u64) -> Vec<u8> {
    key(b'B', &[ino], &[])
}

pub(crate) fn layer(blob: u64) -> Vec<u8> {
    key(b'A', &[blob], &[])
}

pub(crate) fn own_chunks(blob: u64, group: u64) -> Vec<u8> {
    key(b'M', &[blob, group], &[])
}

pub(crate) fn all_own_chunks(blob: u64) -> (Vec<u8>, Vec<u8>) {
    (key(b'M', &[blob], &[]), key(b'M', &[blob + 1], &[]))
}

pub(crate) fn merge(blob: u64) -> Vec<u8> {
    key(b'J', &[blob], &[])
}

pub(crate) fn merges() -> (Vec<u8>, Vec<u8>) {
    (vec![b'J'], vec![b'J' + 1])
}

/// The numbers in a key behind its tag; `None` if there are not exactly `N`.
pub(crate) fn numbers<const N: usize>(key: &[u8]) -> Option<[u64; N]> {
    let (words, rest) = key.get(1..)?.as_chunks::<8>();
    let words: &[[u8; 8]; N] = words.try_into().ok()?;
    rest.is_empty().then(|| words.map(u64::from_be_bytes))
}

/// Reads the record under `key`; `None` if there is none.
///
/// # Errors
/// [`Corrupt`]: there are bytes, but not a record.
pub(crate) fn read<T: Wire>(store: &dyn Store, key: &[u8]) -> Result<Option<T>, Corrupt> {
    match store.get(key) {
        None => Ok(None),
        Some(bytes) => T::get(&bytes).map(Some).ok_or(Corrupt),
    }
}

/// Collects the pairs of `range`.
pub(crate) fn collect(
    store: &dyn Store,
    range: &(Vec<u8>, Vec<u8>),
    mut each: impl FnMut(&[u8], &[u8]),
) {
    store.range(&range.0, &range.1, &mut |key, value| {
        each(key, value);
        ControlFlow::Continue(())
    });
}

/// The store holds something that this server never wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt;

fn key(tag: u8, numbers: &[u64], tail: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * numbers.len() + tail.len());
    key.push(tag);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key.extend_from_slice(tail);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_one_directory_are_not_found_in_another() {
        let (from, to) = places_from(7, 0);
        for (key, inside) in [
            (place(7, 0), true),
            (place(7, u64::MAX), true),
            (place(6, u64::MAX), false),
            (place(8, 0), false),
            (entry(7, b"x"), false),
        ] {
            assert_eq!(from <= key && key < to, inside, "{key:?}");
        }
    }

    #[test]
    fn the_numbers_of_a_key_come_back_and_a_cut_key_is_refused() {
        let key = lock(1, 1, Endpoint::from_bits(77), 3, u64::MAX);
        assert_eq!(numbers::<5>(&key), Some([1, 1, 77, 3, u64::MAX]));
        for cut in 0..key.len() {
            assert_eq!(numbers::<5>(&key[..cut]), None, "cut at {cut}");
        }
    }
}
