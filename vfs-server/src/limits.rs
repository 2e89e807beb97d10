//! Every bound of the file server, with its reason.

pub use calls::vfs::FILE_SIZE_MAX;

/// Names of one inode that is not a directory. ext4's number, so programs have met it (EMLINK).
pub const LINK_MAX: u32 = 65_000;

/// Subdirectories of one directory; each is a link to it and `nlink` has 32 bits (EMLINK).
pub const SUBDIRECTORY_MAX: u32 = 1 << 30;

/// Longest target of a symbolic link, in bytes (PATH_MAX without its NUL).
pub const SYMLINK_MAX: usize = 4095;

/// Most bytes that one `CopyRange` copies: other calls wait meanwhile.
pub const COPY_MAX: u32 = 1 << 20;

/// Entries of an access control list: each check of a permission reads them. Linux's FUSE takes no more than a page of them
/// (511).
pub const ACL_ENTRIES_MAX: usize = 500;

/// Longest name of an extended attribute, in bytes (XATTR_NAME_MAX).
pub const XATTR_NAME_MAX: usize = 255;

/// Largest value of an extended attribute, in bytes (XATTR_SIZE_MAX).
pub const XATTR_SIZE_MAX: usize = 65_536;

/// Names and values of all extended attributes of one inode, in bytes. Bounds the work of one
/// call, and keeps the list of names below XATTR_LIST_MAX (65 536).
pub const XATTR_TOTAL_MAX: usize = 65_536;

/// Open files of the whole DC. Each is about 200 bytes in memory (ENFILE).
pub const HANDLES_MAX: usize = 1 << 20;

/// Lock ranges of one owner on one inode. Changing one moves those behind it in memory (ENOLCK).
pub const RANGES_PER_OWNER_MAX: usize = 4096;

/// Calls that may wait for a lock at once: more than one per program of a large DC (ENOLCK).
pub const WAITERS_MAX: usize = 1 << 16;

/// Nanoseconds that an agent's session lasts from its last call: how long one that fails delays others, and on the other hand
/// how long an agent can be without an answer, or a CPU, and still remember.
pub const LEASE: u64 = 2_000_000_000;

/// Nanoseconds after which a call that waits for recalls is answered all the same, so that the session goes on.
pub const POLL_TIME: u64 = LEASE / 4;

/// Sessions: one for each agent, of which a node has one per container. Each tick looks at all.
pub const AGENTS_MAX: usize = 4096;

/// Leases of one agent, about 100 bytes each. One that has as many is told to forget all and begin anew.
pub const LEASES_PER_AGENT_MAX: usize = 1 << 17;

/// Runs of pages that one agent holds, about 100 bytes each. One that has as many is told to give all back and begin anew.
pub const PAGE_RUNS_MAX: usize = 1 << 16;

/// Inodes, and runs of pages, that one answer tells an agent to forget.
pub const RECALLS_PER_ANSWER: usize = 1024;

/// Nanoseconds after which an agent that has given back none of the pages that it is to is waited for no longer, though it calls: its kernel does not.
/// Longer than writing back what a kernel may have changed takes.
pub const GIVE_BACK_TIME: u64 = 30_000_000_000;

/// Files with a sole writer at once: a server that starts looks at each.
pub const SOLE_MAX: usize = 1 << 16;

/// Bytes that are free at least while agents may put writes off: more than all of a DC have put off, so that whoever is told that there
/// is no room is told so by write(2).
pub const SOLE_SPACE: u64 = 256 << 20;

/// Parts of large writes that are kept until their last part comes, in bytes, of all and of one agent, and the nanoseconds after which those that nobody
/// came for give way.
pub const STAGED_BYTES_MAX: usize = 256 << 20;
pub const STAGED_PER_AGENT_MAX: usize = 16 << 20;
/// Parts of one: more than a write of the largest size has.
pub const STAGED_PARTS_MAX: u32 = 16;
pub const STAGED_FOR: u64 = 10_000_000_000;

/// Calls that may wait until agents have forgotten, and the bytes kept for them. Further ones are sent back to come again.
pub const PUT_OFF_MAX: usize = 4096;
pub const PUT_OFF_BYTES_MAX: usize = 64 << 20;

/// How long nobody gets a lease on an inode that agents had to forget: the first time, and at most. A recall costs a round trip
/// to another node, as each lease saves one: it should take long enough for a hundred.
pub const CONTESTED_FIRST: u64 = 10_000_000;
pub const CONTESTED_LONGEST: u64 = 1_000_000_000;

/// Inodes of which that is known. Of more, the first recall does not count.
pub const CONTESTED_MAX: usize = 1 << 16;

/// Inodes kept in memory. Each is about 150 bytes; the store is asked for the others.
pub const INODE_CACHE_MAX: usize = 16_384;

/// Numbers (of inodes, of handles) reserved by one write of the counters.
pub const NUMBER_BLOCK: u64 = 1024;

/// Inodes that statfs(2) claims to have room for. Nothing but space limits their number.
pub const INODES_CLAIMED: u64 = 1 << 40;

/// Storage left alone at the end, in bytes: the journal needs some to commit even the calls that
/// free space. On a small store it is a sixteenth.
pub const SPACE_RESERVE: u64 = 64 << 20;

/// Bytes that may be written before the store is asked again how much is free: at most this, and
/// at most a quarter of the reserve, so that the reserve survives a stale answer.
pub const SPACE_GRANT: u64 = 16 << 20;

/// Nanoseconds for which the store is not asked again whether there are [`SOLE_SPACE`]: a disk takes less than a tenth of that meanwhile.
pub const SPACE_KNOWN: u64 = 10_000_000;

/// What a new name or inode is taken to cost in the store, in bytes.
pub const METADATA_COST: u64 = 1024;

/// Quotas within each other: each change of a file counts in all that it is in (ELOOP).
pub const TREE_DEPTH_MAX: usize = 16;

/// Trees with a quota: an inode's record has 16 bits for the one it is in (ENOSPC).
pub const TREES_MAX: usize = u16::MAX as usize;

/// Names that are looked at in one go when a quota begins to count what is there already, or ends, and the nanoseconds to the next
/// go: other calls wait for about a millisecond.
pub const TREE_WALK_BATCH: usize = 128;
pub const TREE_WALK_INTERVAL: u64 = 2_000_000;

/// Snapshots of a tree: what is looked for in one may have to be looked for in all later ones (ENOSPC).
pub const SNAPSHOTS_MAX: usize = 64;

/// Blobs that are to be merged, above which no snapshot is taken (EBUSY): so many may be in one line, all of which a read may have to ask.
pub const MERGES_MAX: usize = 4096;

/// A file of at most so many bytes is copied when it changes after a snapshot.
pub const SNAPSHOT_COPY_MAX: u64 = if cfg!(test) { 64 } else { 256 << 10 };

/// What is done in one go of what is left of removed snapshots, in keys and in chunks of 128 KiB, and the nanoseconds to the next go: other calls wait for
/// a few milliseconds. After an error (the disk is full) it goes on that much later, twice as late each time.
pub const SNAPSHOT_KEYS_BATCH: usize = if cfg!(test) { 4 } else { 128 };
pub const SNAPSHOT_CHUNKS_BATCH: usize = if cfg!(test) { 3 } else { 8 };
pub const SNAPSHOT_INTERVAL: u64 = 5_000_000;
pub const SNAPSHOT_RETRY: u64 = 1_000_000_000;
pub const SNAPSHOT_RETRY_MAX: u64 = 300_000_000_000;

/// For how long no agent becomes a sole writer while a snapshot waits until all have said what they have put off: longer than a lease.
pub const SNAPSHOT_WAIT: u64 = 2 * LEASE;

/// Nanoseconds from one reclaim of deleted inodes to the next. Long enough that a program on
/// another node that has just looked a name up can still open what it found.
pub const RECLAIM_INTERVAL: u64 = 100_000_000;

/// Nanoseconds to the next reclaim when the last one had more to do than it may at once.
pub const RECLAIM_BACKLOG_INTERVAL: u64 = 2_000_000;

/// Inodes that one reclaim destroys at most: about a millisecond of removing blobs.
pub const RECLAIM_BATCH: usize = 64;

/// `st_blksize`: what stdio and coreutils read and write at once. Every read is a round trip, so
/// it is larger than a page.
pub const PREFERRED_IO_SIZE: u32 = 65_536;

/// Block of statfs(2), in bytes.
pub const STATFS_BLOCK_SIZE: u32 = 4096;

const _: () = assert!(RECALLS_PER_ANSWER * 24 <= m3ipc::limits::PAYLOAD_MAX);
const _: () = assert!(SPACE_GRANT * 4 <= SPACE_RESERVE);
const _: () = assert!(FILE_SIZE_MAX <= i64::MAX as u64);
