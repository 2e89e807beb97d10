//! Every bound of the kernel and the daemon, with its reason.

/// Bytes of one replayable answer that a server keeps per lane. Answers with more payload are made
/// by calls that read, which are repeated instead.
pub const KEPT_ANSWER_MAX: usize = m3ipc::limits::PAYLOAD_AREA;

/// Blob files that a store keeps open: a quarter of the 1 024 descriptors a process has by default.
pub const BLOB_FILES_OPEN: usize = 256;

/// Removed blobs whose files wait for the next sync to be unlinked.
pub const REMOVED_BLOBS_MAX: usize = 4096;

/// Bytes of the store's block cache.
pub const MAP_CACHE: u64 = 32 << 20;

/// Bytes of the map that are kept in memory before they become a table.
pub const MAP_MEMTABLE: u64 = 16 << 20;

/// Bytes of all journals of a store, the least that fjall takes. Read again at each start.
pub const MAP_JOURNALS: u64 = 64 << 20;
