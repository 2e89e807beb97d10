//! The rows of vfs-server: files. All values (flags, modes, errno) are Linux's on x86-64.
//!
//! Names travel as payload: single path components, never a slash, never a NUL. A row with two
//! names says how long the first is. Who calls is in the credentials of the call, not in the row.

use crate::wire_structs;

/// Inode number of the root directory of the tree.
pub const ROOT_INO: u64 = 1;
/// Longest name of a directory entry, in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;

/// `Write::offset` of a write to the end of the file, whatever the open file's flags say
/// (fcntl(2) sets O_APPEND long after open(2)).
pub const WRITE_APPEND: u64 = u64::MAX;
/// Bit of `Write::offset` that says: exactly there, even with O_APPEND. For pages of a shared
/// mapping that a kernel writes back through some descriptor of the file. off_t leaves it free.
pub const WRITE_AT: u64 = 1 << 63;

/// Largest file, in bytes: what ext4 with 4 KiB blocks stores in one file, because a blob is one file of the host. Growing beyond it is EFBIG.
pub const FILE_SIZE_MAX: u64 = (1 << 44) - 4096;

/// Most bytes of a write that is done at once.
pub const WRITE_SIZE_MAX: usize = 1 << 20;

/// Bytes of a page, of which agents hold leases. A kernel whose pages are larger has several at once.
pub const PAGE_SIZE: u64 = 4096;

/// [`Health::percent`] when no scrub is under way.
pub const NO_SCRUB: u8 = 255;

/// Name of the directory in the root directory that the snapshots are in. No listing of the root directory shows it.
pub const SNAPSHOTS_NAME: &[u8] = b".snapshots";

/// Bit of the numbers of inodes that belong to snapshots, and of that directory: what has one never changes.
pub const IN_SNAPSHOT: u64 = 1 << 62;

/// A limit of a [`SetQuota`] that is none.
pub const NO_LIMIT: u64 = u64::MAX;

/// `Recalls::forgotten` of an agent that ends its session.
pub const FAREWELL: u64 = u64::MAX;

/// The errno (Linux' ERESTARTSYS) that tells a file agent to make the call again a little later. It was not executed.
pub const RESTART: i32 = 512;

wire_structs! {
    /// A point in time: seconds and nanoseconds since the epoch.
    pub struct Time { pub seconds: i64, pub nanos: u32 }

    /// What stat(2) tells of an inode. `mode` includes the type bits; `blocks` are of 512 bytes.
    pub struct Attr {
        pub ino: u64, pub size: u64, pub blocks: u64,
        pub atime: Time, pub mtime: Time, pub ctime: Time,
        pub mode: u32, pub nlink: u32, pub uid: u32, pub gid: u32, pub rdev: u32, pub block_size: u32,
    }

    /// What `Setattr` changes: those fields whose bit of [`set`] is in `valid`.
    pub struct SetAttr {
        pub valid: u32, pub mode: u32, pub uid: u32, pub gid: u32, pub size: u64,
        pub atime: Time, pub mtime: Time,
    }

    /// A record lock of fcntl(2), or a whole-file lock of flock(2). `owner` is the open file table
    /// (POSIX) or open file description (OFD) as the file agent names it; a flock is the handle's; `end` is inclusive,
    /// `i64::MAX as u64` is the end of the file. `kind` is F_RDLCK, F_WRLCK or F_UNLCK.
    pub struct Lock { pub owner: u64, pub start: u64, pub end: u64, pub pid: u32, pub kind: u32 }

    /// How well the tree is stored. `scrubs` have ended since the server was started, the last of any at `last`, in seconds since
    /// the epoch (0: never). `percent` is how far one is that is under way, else [`NO_SCRUB`]. `checked` are the bytes of files
    /// that it, or the last one, has compared; `unchecked` parts it could not look at;
    /// `fresh` parts of files were changed and have no checksums yet. `map_damaged` 1:
    /// not all of what is known of files could be read.
    pub struct Health {
        pub scrubs: u64, pub last: u64, pub checked: u64, pub unchecked: u64, pub fresh: u64, pub percent: u8, pub map_damaged: u8,
    }

    /// A block of 4 KiB of a file that is not what was written to it: reading it is an EIO.
    pub struct Damaged { pub ino: u64, pub offset: u64 }

    /// An open file. `attr` as in [`Leased`], if there is an [`Attr`].
    pub struct Opened { pub fh: u64, pub attr: u8 }

    /// An open file that nobody has open any more.
    pub struct Closed { pub fh: u64, pub ino: u64 }

    /// Head of something that was put off `age` microseconds ago: [`PutOff::WRITE`] of `len` bytes, which follow, to `offset`, or [`PutOff::SET`] of the
    /// [`SetAttr`] that follows.
    pub struct PutOff { pub offset: u64, pub age: u32, pub len: u32, pub kind: u8 }

    /// What has become of what was put off: the first error, or 0. `attr` as in [`Leased`].
    pub struct WrittenBack { pub errno: u16, pub attr: u8 }

    /// Whether a file agent may remember what it is told of the inode's attributes (of [`attributes`]; 0: not), and of the name in its directory (of
    /// [`search`]; 0: not): what a `Lookup` has found, or what another call has made of it.
    pub struct Leased { pub name: u8, pub attr: u8, pub owner: u32 }

    /// An open file that may have been created; the rest as [`Leased`].
    pub struct Created { pub fh: u64, pub name: u8, pub attr: u8, pub owner: u32 }

    /// A directory of which a name has just been changed; `leased` as [`Leased::attr`].
    pub struct Parent { pub leased: u8, pub attr: Attr }

    /// The inode that has another name now, and what an agent may remember: its attributes, the old name as one that is not
    /// there, the new one. With `ino` 0 nothing.
    pub struct Renamed {
        pub ino: u64, pub attr: u8, pub name: u8, pub owner: u32, pub new_name: u8, pub new_owner: u32,
    }

    /// What an agent is to forget, in the payload: [`Forget`]s, of which this is number `batch`. `session` 0: it has
    /// no session, and is to forget everything. Else the session lasts `lease` milliseconds from when the call was sent.
    pub struct Recalled { pub session: u64, pub batch: u64, pub lease: u32 }

    /// With `count` 0 what is remembered of an inode, its attributes and names. Else `count` of its pages from `first` on, which its
    /// kernel is to lose; a `LetGo` tells when it has.
    pub struct Forget { pub ino: u64, pub first: u64, pub count: u64 }

    /// Whether pages may be kept: of [`pages`]; and if they are, when the file was read last, by now.
    pub struct Paged { pub kept: u8, pub atime: Time }

    /// Where `CopyRange` reads and writes.
    pub struct Offsets { pub from: u64, pub to: u64 }

    /// How much was read or written, or found.
    pub struct Count { pub count: u64 }

    /// statfs(2).
    pub struct FsStats {
        pub blocks: u64, pub blocks_free: u64, pub blocks_available: u64,
        pub files: u64, pub files_free: u64, pub block_size: u32, pub name_max: u32,
    }

    /// A directory's quota: what it and all below it may have, and have. Bytes are counted in blocks of 4 KiB, as far as files go (holes too); a
    /// limit may be [`NO_LIMIT`]. `tree` is its number. `is_counting` 1: not all is counted yet where it belongs.
    pub struct Quota {
        pub ino: u64, pub bytes_limit: u64, pub inodes_limit: u64, pub bytes: u64, pub inodes: u64, pub tree: u16, pub is_counting: u8,
    }

    /// A snapshot of the tree, the `number`th, taken at `taken`; `name_len` bytes of name follow. `is_going` 1: it has been removed, and its storage is being
    /// freed.
    pub struct SnapshotHead { pub number: u64, pub taken: Time, pub is_going: u8, pub name_len: u8 }

    /// Whether the entries in the payload are the last (1), and an agent may remember them (1).
    pub struct Listed { pub is_end: u8, pub kept: u8 }

    /// Head of one entry of a `Readdir` payload; `name_len` bytes of name follow, then the next.
    /// `next` is the cookie that continues after this entry; `kind` is a DT_* value.
    pub struct DirEntry { pub ino: u64, pub next: u64, pub kind: u8, pub name_len: u8 }
}

impl PutOff {
    pub const WRITE: u8 = 1;
    pub const SET: u8 = 2;
}

/// Values of [`Paged::kept`].
pub mod pages {
    /// The agent has no session: it is told nothing.
    pub const NO_SESSION: u8 = 0;
    /// They may be kept until they are recalled.
    pub const KEPT: u8 = 1;
    /// Somebody else has some of them, and the call does not wait: it is told nothing.
    pub const TAKEN: u8 = 2;

    /// Values of [`super::ReadPages::waits`]: only if nobody has to give any up for that;
    pub const NEVER: u8 = 0;
    /// for as long as it takes;
    pub const ALWAYS: u8 = 1;
    /// not, as the caller has these pages, and is about to give them back. It keeps what it has.
    pub const OWN: u8 = 2;
}

/// Bits of [`Leased::attr`].
pub mod attributes {
    pub const KEPT: u8 = 1;
    /// Everybody may read the file, whatever its access control list says.
    pub const READABLE: u8 = 2;
    /// It has neither an access control list nor `security.capability`.
    pub const PLAIN: u8 = 4;
    /// Nobody else remembers anything of it, or has pages of it: the agent may put off what is written through the file that it has just been told
    /// of, until it is to forget the inode.
    pub const SOLE: u8 = 8;
}

/// Bits of [`Leased::name`]: who may be told, as who may search the directory. The superuser may in any case.
pub mod search {
    pub const SUPERUSER: u8 = 1;
    /// User [`super::Leased::owner`].
    pub const OWNER: u8 = 2;
    pub const EVERYBODY: u8 = 4;
}

/// Bits of [`SetAttr::valid`].
pub mod set {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 2;
    pub const GID: u32 = 4;
    pub const SIZE: u32 = 8;
    pub const ATIME: u32 = 16;
    pub const MTIME: u32 = 32;
    pub const ATIME_NOW: u32 = 64;
    pub const MTIME_NOW: u32 = 128;
}

calls! {
    /// Every call of vfs-server.
    pub enum VfsCall = 0x100;

    /// Finds `name` (payload) in a directory. The answer's payload is an [`Attr`]; with `ino` 0 if the name is not there and an
    /// agent may remember that (else ENOENT).
    0x01 Lookup { parent: u64 } -> Leased, Safe;
    /// fstat(2) by inode. `fh` 0 if there is no open file. The answer's payload is an [`Attr`].
    0x02 Getattr { ino: u64, fh: u64 } -> Leased, Safe;
    /// chmod, chown, truncate, utimensat. Payload: [`SetAttr`]. The answer's payload is an [`Attr`].
    0x03 Setattr { ino: u64, fh: u64 } -> Leased, Once;
    /// readlink(2). The answer's payload is the target.
    0x04 Readlink { ino: u64 } -> (), Safe;
    /// symlink(2). Payload: name, then target. The answer's payload is an [`Attr`] and, if the name may be remembered, the [`Parent`]. So for all
    /// calls that give an inode a name.
    0x05 Symlink { parent: u64, name_len: u16 } -> Leased, Once;
    /// mknod(2). Payload: name. The answer's payload is an [`Attr`].
    0x06 Mknod { parent: u64, mode: u32, umask: u32, rdev: u32 } -> Leased, Once;
    /// mkdir(2). Payload: name. The answer's payload is an [`Attr`].
    0x07 Mkdir { parent: u64, mode: u32, umask: u32 } -> Leased, Once;
    /// unlink(2). Payload: name. `forgotten`: the inode that the agent has forgotten before, for which it took the name to stand;
    /// 0: none. The answer's payload is the [`Parent`] if the name may be remembered.
    0x08 Unlink { parent: u64, forgotten: u64 } -> Leased, Once;
    /// rmdir(2). Payload: name. `forgotten` and the answer's payload as in `Unlink`.
    0x09 Rmdir { parent: u64, forgotten: u64 } -> Leased, Once;
    /// renameat2(2) with RENAME_NOREPLACE and RENAME_EXCHANGE. Payload: old name, then new name. `forgotten` as in `Unlink`, for
    /// the old name; `new_forgotten` for the new one. The answer's payload is the renamed inode's [`Attr`] if that may be
    /// remembered, the old name's [`Parent`] if that may be, and the new one's if that may be and is another.
    0x0a Rename {
        parent: u64, new_parent: u64, forgotten: u64, new_forgotten: u64, name_len: u16, flags: u32,
    } -> Renamed, Once;
    /// link(2). Payload: new name. The answer's payload is an [`Attr`].
    0x0b Link { ino: u64, new_parent: u64 } -> Leased, Once;
    /// open(2) of an existing inode, directories too. O_TRUNC is honoured here. The answer's payload is an [`Attr`] if the agent may put off
    /// what is written through the file.
    0x0c Open { ino: u64, flags: u32 } -> Opened, Once;
    /// open(2) with O_CREAT: opens the name if it is there (EEXIST with O_EXCL), else creates it.
    /// Payload: name. The answer's payload is an [`Attr`]. `forgotten` as in `Unlink`: O_TRUNC may change it.
    0x0d Create { parent: u64, forgotten: u64, mode: u32, umask: u32, flags: u32 } -> Created, Once;
    /// pread(2). The answer's payload is the data; shorter than `size` at the end of the file.
    0x0e Read { fh: u64, ino: u64, offset: u64, size: u32 } -> (), Safe;
    /// pwrite(2). Payload: data. With O_APPEND the offset is the server's choice: the end of the file.
    /// `offset` may say otherwise: [`WRITE_APPEND`], [`WRITE_AT`].
    0x0f Write { fh: u64, ino: u64, offset: u64 } -> Count, Once;
    /// close(2) of one descriptor: drops the POSIX locks of `owner` on the inode.
    0x10 Flush { fh: u64, ino: u64, owner: u64 } -> (), Once;
    /// The last descriptor of an open file is gone: drops all locks taken through it.
    0x11 Release { fh: u64, ino: u64 } -> (), Once;
    /// fsync(2), fdatasync(2): answered when the file's data and metadata are on stable storage.
    0x12 Fsync { fh: u64, ino: u64, datasync: u8 } -> (), Safe;
    /// getdents(2) from cookie `offset` (0 is the start), at most `size` bytes: a payload of
    /// [`DirEntry`]s, `.` and `..` included; empty at the end.
    0x13 Readdir { fh: u64, ino: u64, offset: u64, size: u32 } -> Listed, Safe;
    /// statfs(2). The answer's payload is a [`FsStats`].
    0x14 Statfs { ino: u64 } -> (), Safe;
    /// access(2), and the kernel's check before chdir and exec: `mask` of R_OK 4, W_OK 2, X_OK 1.
    0x15 Access { ino: u64, mask: u32 } -> (), Safe;
    /// F_GETLK. Payload: [`Lock`]. The answer's payload is the [`Lock`] in the way, or one with
    /// `kind` F_UNLCK.
    0x16 Getlk { ino: u64, fh: u64 } -> (), Safe;
    /// F_SETLK (`wait` 0), F_SETLKW (`wait` 1, kept until granted; EDEADLK), flock(2) (`flock` 1).
    /// Payload: [`Lock`].
    0x17 Setlk { ino: u64, fh: u64, wait: u8, flock: u8 } -> (), Once;
    /// getxattr(2). Payload: name. The answer's payload is the value (empty if `size` is 0, then
    /// only the length is told); ERANGE if it does not fit `size`.
    0x18 Getxattr { ino: u64, size: u32 } -> Count, Safe;
    /// setxattr(2) with XATTR_CREATE 1, XATTR_REPLACE 2. Payload: name, then value.
    0x19 Setxattr { ino: u64, name_len: u16, flags: u32 } -> (), Once;
    /// listxattr(2): names, each with a NUL. `size` as for `Getxattr`.
    0x1a Listxattr { ino: u64, size: u32 } -> Count, Safe;
    /// removexattr(2). Payload: name.
    0x1b Removexattr { ino: u64 } -> (), Once;
    /// fallocate(2); mode 0, FALLOC_FL_KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE.
    0x1c Fallocate { fh: u64, ino: u64, offset: u64, length: u64, mode: u32 } -> (), Once;
    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    0x1d Seek { fh: u64, ino: u64, offset: u64, whence: u32 } -> Count, Safe;
    /// open(2) with O_TMPFILE: makes a file without a name and opens it. The answer's payload is an [`Attr`].
    0x1e Tmpfile { parent: u64, mode: u32, umask: u32, flags: u32 } -> Opened, Once;
    /// copy_file_range(2) inside the server: from the open file `fh` of inode `ino` to another, or to another place of it.
    /// Payload: [`Offsets`]. It may copy less than `length`, and nothing at the end of the file.
    0x1f CopyRange { fh: u64, ino: u64, to_fh: u64, to_ino: u64, length: u32 } -> Count, Once;
    /// A file agent's leases: it has forgotten what batch `forgotten` told it to ([`FAREWELL`]: it ends its session), and waits to be
    /// told more, at most as long as keeps its session. With `session` 0 it has forgotten everything and begins one. Only
    /// process 0 of user 0 may, who is no program.
    0x20 Recalls { session: u64, forgotten: u64 } -> Recalled, Safe;
    /// As `Read`, of whole pages that a kernel keeps, until the agent is told to have them lost. `exclusive` 1: programs may write to
    /// them, so nobody else keeps them at the same time. `waits` is of [`pages`]. `fh` 0: the agent has opened the file for its program by what
    /// it remembers of the inode; EBADF if it does not have the lease for that any more.
    0x21 ReadPages { fh: u64, ino: u64, offset: u64, size: u32, exclusive: u8, waits: u8 } -> Paged, Safe;
    /// Writes pages back that were read exclusively. Payload: data. What is behind the end of the file by now is left out. EIO: the agent
    /// does not hold them any more, and others may have changed them.
    0x22 WritePages { fh: u64, ino: u64, offset: u64 } -> Count, Once;
    /// The kernel of an agent's node has none of `count` pages of an inode from `first` on, and may keep none of them. Of a `session` that
    /// is over it says nothing. As `Recalls`, only an agent may.
    0x23 LetGo { session: u64, ino: u64, first: u64, count: u64 } -> (), Safe;
    /// Data of a write that is too large for one message: part `index` of those that the caller has named `token`, which have `total` bytes in all.
    /// Payload: data. EAGAIN: there is no room for them now.
    0x24 Stage { token: u64, index: u32, total: u32 } -> (), Safe;
    /// As `Write`, of `parts` parts that have been staged and the payload behind them: all at once, or as many whole parts as there is room
    /// for. They are gone then. EAGAIN: some are not there (any more); nothing was done.
    0x25 WriteStaged { fh: u64, ino: u64, offset: u64, token: u64, parts: u32 } -> Count, Once;
    /// How well the tree is stored. With `begin` 1 it begins to be compared with its checksums, if that is not under way, which this
    /// does not wait for; only user 0 may. The answer's payload is [`Health`] and the [`Damaged`] that are known, as many as fit.
    0x26 Scrub { begin: u8 } -> Count, Safe;
    /// As `Release`, of several. Payload: [`Closed`]s. Those that are not open are passed over.
    0x27 Releases {} -> (), Once;
    /// What a sole writer has put off. Payload: [`PutOff`]s. With `sync` 1 it is on stable storage when this is answered. The answer's payload is an [`Attr`]. EIO: it is
    /// the sole writer no more, and others may have seen the file.
    0x28 WriteBack { fh: u64, ino: u64, sync: u8 } -> WrittenBack, Once;
    /// Gives directory `ino` a quota, or another one, or with `remove` 1 none (ENOENT: it has none). What is there may be more. Growing beyond it is
    /// EDQUOT; a directory with something in it or a quota, and a file with several names, do not move from one quota to another, nor do files get names
    /// in several (EXDEV). EPERM:
    /// only process 0 of user 0 may; ELOOP: too many are within each other; ENOSPC: there are too many.
    0x29 SetQuota { ino: u64, bytes: u64, inodes: u64, remove: u8 } -> (), Once;
    /// All quotas behind tree `after` (0: from the first), as many as fit: a payload of [`Quota`]s, empty at the end. EPERM as above.
    0x2a Quotas { after: u16 } -> (), Safe;
    /// Keeps the tree as it is now, for [`SNAPSHOTS_NAME`]. Payload: name. EEXIST; ENOSPC: there are too many, or the
    /// disk is full; EBUSY: too much of removed ones is yet to be freed. EPERM as above.
    0x2b TakeSnapshot {} -> (), Once;
    /// Removes a snapshot: it is not found any more, and its storage is freed little by little. Payload: name. ENOENT. EPERM as above.
    0x2c RemoveSnapshot {} -> (), Once;
    /// Snapshots behind number `after` (0: from the first), as many as fit: a payload of [`SnapshotHead`]s and names, empty at the end. Everybody may ask.
    0x2d Snapshots { after: u64 } -> (), Safe;
}
