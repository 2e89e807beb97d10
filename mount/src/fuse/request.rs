//! Requests: what the kernel writes, checked and read once, in the agent's terms.
//!
//! The kernel is trusted with everything it could do anyway; but a request that is cut, or of a kernel that has other
//! structs, must end with an error and not with this process.

use super::abi::{self, fattr, opcode};
use crate::agent::{Caller, Entry, LockKind, NewMode, OpenFile, Place};
use calls::vfs::{Lock, SetAttr, Time, set};
use zerocopy::FromBytes;

/// Permission bits of a mode.
const PERMISSION_BITS: u32 = 0o7777;
const O_APPEND: u32 = 0o2000;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// Names the request until it is answered, and no other afterwards.
    pub unique: u64,
    pub caller: Caller,
    pub operation: Operation<'a>,
}

/// What is asked for; most are the calls of an agent by that name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation<'a> {
    Lookup(Entry<'a>),
    Getattr {
        ino: u64,
        fh: Option<u64>,
    },
    Setattr {
        ino: u64,
        fh: Option<u64>,
        set: SetAttr,
    },
    Readlink {
        ino: u64,
    },
    Symlink {
        entry: Entry<'a>,
        target: &'a [u8],
    },
    Mknod {
        entry: Entry<'a>,
        new: NewMode,
        rdev: u32,
    },
    Mkdir {
        entry: Entry<'a>,
        new: NewMode,
    },
    Unlink(Entry<'a>),
    Rmdir(Entry<'a>),
    Rename {
        from: Entry<'a>,
        to: Entry<'a>,
        flags: u32,
    },
    Link {
        ino: u64,
        to: Entry<'a>,
    },
    Open {
        ino: u64,
        flags: u32,
    },
    Opendir {
        ino: u64,
        flags: u32,
    },
    Create {
        entry: Entry<'a>,
        new: NewMode,
        flags: u32,
    },
    Tmpfile {
        parent: u64,
        new: NewMode,
        flags: u32,
    },
    Read {
        file: OpenFile,
        offset: u64,
        size: u32,
        /// Whole pages, which the kernel keeps.
        is_for_pages: bool,
    },
    Write {
        file: OpenFile,
        place: Place,
        data: &'a [u8],
    },
    Flush {
        file: OpenFile,
        owner: u64,
    },
    /// Of a file or a directory.
    Release(OpenFile),
    /// Of a file or a directory.
    Fsync {
        file: OpenFile,
        datasync: bool,
    },
    /// `plus`: with attributes.
    Readdir {
        file: OpenFile,
        offset: u64,
        size: u32,
        plus: bool,
    },
    Statfs {
        ino: u64,
    },
    Access {
        ino: u64,
        mask: u32,
    },
    Getlk {
        file: OpenFile,
        lock: Lock,
    },
    Setlk {
        file: OpenFile,
        lock: Lock,
        kind: LockKind,
        wait: bool,
    },
    Getxattr {
        ino: u64,
        name: &'a [u8],
        size: u32,
    },
    Setxattr {
        ino: u64,
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
    },
    Listxattr {
        ino: u64,
        size: u32,
    },
    Removexattr {
        ino: u64,
        name: &'a [u8],
    },
    Fallocate {
        file: OpenFile,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        file: OpenFile,
        offset: u64,
        whence: u32,
    },
    /// Files and offsets. `flags` must be 0.
    CopyRange {
        from: (OpenFile, u64),
        to: (OpenFile, u64),
        length: u64,
        flags: u64,
    },
    /// The program that made request `unique` has got a signal. Never answered.
    Interrupt {
        unique: u64,
    },
    /// The kernel forgets an inode, or one of the names by which it knew it. Never answered.
    Forget {
        ino: u64,
    },
    /// As `Forget`, several: 16 bytes each, of which the first 8 are its number.
    ForgetAll {
        records: &'a [u8],
    },
    /// Nothing to do and nothing to answer: the kernel has taken the mount away.
    Nothing,
    Ioctl,
    /// One that the kernel has another way for.
    Unknown,
}

/// Bytes that are not a request. If its number could be read, it can be answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub unique: Option<u64>,
    pub opcode: u32,
}

impl<'a> Request<'a> {
    /// The request in `bytes`, which are what one read(2) of `/dev/fuse` returned.
    ///
    /// # Errors
    /// [`Malformed`]: shorter than it says, or than what is asked for needs.
    pub fn decode(bytes: &'a [u8]) -> Result<Request<'a>, Malformed> {
        let (head, body) = Header::decode(bytes)?;
        let malformed = Malformed { unique: Some(head.unique), opcode: head.opcode };
        let operation = operation(&head, body).ok_or(malformed)?;
        let request = head.unique & !abi::UNIQUE_RESEND;
        let caller = Caller { pid: head.pid, uid: head.uid, gid: head.gid, request };
        Ok(Request { unique: head.unique, caller, operation })
    }
}

/// The head of a request, without its extensions.
pub(crate) type Header = abi::fuse_in_header;

impl Header {
    /// The head of the request in `bytes`, and its body.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Header, &[u8]), Malformed> {
        let nothing = Malformed { unique: None, opcode: 0 };
        let (head, body) = Header::read_from_prefix(bytes).map_err(|_| nothing)?;
        let malformed = Malformed { unique: Some(head.unique), opcode: head.opcode };
        if head.len as usize != bytes.len() {
            return Err(malformed);
        }
        let extensions = usize::from(head.total_extlen) * 8;
        let len = body.len().checked_sub(extensions).ok_or(malformed)?;
        Ok((head, &body[..len]))
    }
}

/// Reads a body front to back.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    /// The struct at the front.
    fn take<T: FromBytes>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    /// The name at the front, without its NUL.
    fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let name = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(name)
    }

    /// The `len` bytes at the front.
    fn bytes(&mut self, len: u32) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len as usize)?;
        self.0 = rest;
        Some(bytes)
    }
}

fn operation<'a>(head: &Header, body: &'a [u8]) -> Option<Operation<'a>> {
    let ino = head.nodeid;
    let file = |fh| OpenFile { ino, fh };
    let entry = |name| Entry { parent: ino, name };
    let mut body = Body(body);
    Some(match head.opcode {
        opcode::LOOKUP => Operation::Lookup(entry(body.name()?)),
        opcode::GETATTR => {
            let get: abi::fuse_getattr_in = body.take()?;
            let has_fh = get.getattr_flags & abi::FUSE_GETATTR_FH != 0;
            Operation::Getattr { ino, fh: has_fh.then_some(get.fh) }
        }
        opcode::SETATTR => {
            let asked: abi::fuse_setattr_in = body.take()?;
            let fh = (asked.valid & fattr::FH != 0).then_some(asked.fh);
            Operation::Setattr { ino, fh, set: set_attr(&asked) }
        }
        opcode::READLINK => Operation::Readlink { ino },
        opcode::SYMLINK => {
            let name = body.name()?;
            Operation::Symlink { entry: entry(name), target: body.name()? }
        }
        opcode::MKNOD => {
            let abi::fuse_mknod_in { mode, rdev, umask, .. } = body.take()?;
            let new = NewMode { mode, umask };
            Operation::Mknod { entry: entry(body.name()?), new, rdev }
        }
        opcode::MKDIR => {
            let abi::fuse_mkdir_in { mode, umask } = body.take()?;
            Operation::Mkdir { entry: entry(body.name()?), new: NewMode { mode, umask } }
        }
        opcode::UNLINK => Operation::Unlink(entry(body.name()?)),
        opcode::RMDIR => Operation::Rmdir(entry(body.name()?)),
        opcode::RENAME => {
            let abi::fuse_rename_in { newdir } = body.take()?;
            rename(ino, newdir, 0, &mut body)?
        }
        opcode::RENAME2 => {
            let abi::fuse_rename2_in { newdir, flags, .. } = body.take()?;
            rename(ino, newdir, flags, &mut body)?
        }
        opcode::LINK => {
            let abi::fuse_link_in { oldnodeid } = body.take()?;
            Operation::Link { ino: oldnodeid, to: entry(body.name()?) }
        }
        opcode::OPEN => {
            let abi::fuse_open_in { flags, .. } = body.take()?;
            Operation::Open { ino, flags }
        }
        opcode::OPENDIR => {
            let abi::fuse_open_in { flags, .. } = body.take()?;
            Operation::Opendir { ino, flags }
        }
        opcode::CREATE => {
            let abi::fuse_create_in { flags, mode, umask, .. } = body.take()?;
            let new = NewMode { mode, umask };
            Operation::Create { entry: entry(body.name()?), new, flags }
        }
        opcode::TMPFILE => {
            // The name that follows is what /proc shows, and nothing's.
            let abi::fuse_create_in { flags, mode, umask, .. } = body.take()?;
            Operation::Tmpfile { parent: ino, new: NewMode { mode, umask }, flags }
        }
        opcode::READ => {
            let abi::fuse_read_in { fh, offset, size, read_flags, .. } = body.take()?;
            let is_for_pages = read_flags & abi::FUSE_READ_LOCKOWNER == 0;
            Operation::Read { file: file(fh), offset, size, is_for_pages }
        }
        opcode::WRITE => {
            let asked: abi::fuse_write_in = body.take()?;
            // Dirty pages of a mapping belong where they are, and their file handle is any of the inode's.
            let from_pages = asked.write_flags & abi::FUSE_WRITE_CACHE != 0;
            let place = if from_pages {
                Place::Page(asked.offset)
            } else if asked.flags & O_APPEND != 0 {
                Place::End
            } else {
                Place::Offset(asked.offset)
            };
            Operation::Write { file: file(asked.fh), place, data: body.bytes(asked.size)? }
        }
        opcode::FLUSH => {
            let abi::fuse_flush_in { fh, lock_owner, .. } = body.take()?;
            Operation::Flush { file: file(fh), owner: lock_owner }
        }
        opcode::RELEASE | opcode::RELEASEDIR => {
            let abi::fuse_release_in { fh, .. } = body.take()?;
            Operation::Release(file(fh))
        }
        opcode::FSYNC | opcode::FSYNCDIR => {
            let abi::fuse_fsync_in { fh, fsync_flags, .. } = body.take()?;
            let datasync = fsync_flags & abi::FUSE_FSYNC_FDATASYNC != 0;
            Operation::Fsync { file: file(fh), datasync }
        }
        opcode::READDIR | opcode::READDIRPLUS => {
            let abi::fuse_read_in { fh, offset, size, .. } = body.take()?;
            let plus = head.opcode == opcode::READDIRPLUS;
            Operation::Readdir { file: file(fh), offset, size, plus }
        }
        opcode::STATFS => Operation::Statfs { ino },
        opcode::ACCESS => {
            let abi::fuse_access_in { mask, .. } = body.take()?;
            Operation::Access { ino, mask }
        }
        opcode::GETLK => {
            let asked: abi::fuse_lk_in = body.take()?;
            Operation::Getlk { file: file(asked.fh), lock: lock(&asked) }
        }
        opcode::SETLK | opcode::SETLKW => {
            let asked: abi::fuse_lk_in = body.take()?;
            let is_flock = asked.lk_flags & abi::FUSE_LK_FLOCK != 0;
            Operation::Setlk {
                file: file(asked.fh),
                lock: lock(&asked),
                kind: if is_flock { LockKind::Flock } else { LockKind::Record },
                wait: head.opcode == opcode::SETLKW,
            }
        }
        opcode::GETXATTR => {
            let abi::fuse_getxattr_in { size, .. } = body.take()?;
            Operation::Getxattr { ino, name: body.name()?, size }
        }
        opcode::SETXATTR => {
            let abi::fuse_setxattr_in { size, flags } = body.take()?;
            let name = body.name()?;
            Operation::Setxattr { ino, name, value: body.bytes(size)?, flags }
        }
        opcode::LISTXATTR => {
            let abi::fuse_getxattr_in { size, .. } = body.take()?;
            Operation::Listxattr { ino, size }
        }
        opcode::REMOVEXATTR => Operation::Removexattr { ino, name: body.name()? },
        opcode::FALLOCATE => {
            let abi::fuse_fallocate_in { fh, offset, length, mode, .. } = body.take()?;
            Operation::Fallocate { file: file(fh), offset, length, mode }
        }
        opcode::LSEEK => {
            let abi::fuse_lseek_in { fh, offset, whence, .. } = body.take()?;
            Operation::Seek { file: file(fh), offset, whence }
        }
        opcode::COPY_FILE_RANGE => {
            let asked: abi::fuse_copy_file_range_in = body.take()?;
            let to = OpenFile { ino: asked.nodeid_out, fh: asked.fh_out };
            Operation::CopyRange {
                from: (file(asked.fh_in), asked.off_in),
                to: (to, asked.off_out),
                length: asked.len,
                flags: asked.flags,
            }
        }
        opcode::INTERRUPT => {
            let abi::fuse_interrupt_in { unique } = body.take()?;
            Operation::Interrupt { unique }
        }
        opcode::FORGET => Operation::Forget { ino },
        // Behind their number, which their length tells as well.
        opcode::BATCH_FORGET => Operation::ForgetAll { records: body.0.get(8..).unwrap_or(&[]) },
        opcode::NOTIFY_REPLY | opcode::DESTROY => Operation::Nothing,
        opcode::IOCTL => Operation::Ioctl,
        _ => Operation::Unknown,
    })
}

fn rename<'a>(parent: u64, newdir: u64, flags: u32, body: &mut Body<'a>) -> Option<Operation<'a>> {
    let from = Entry { parent, name: body.name()? };
    Some(Operation::Rename { from, to: Entry { parent: newdir, name: body.name()? }, flags })
}

/// What utimensat(2), chmod, chown and truncate change.
fn set_attr(asked: &abi::fuse_setattr_in) -> SetAttr {
    let bit = |fattr: u32, set: u32| if asked.valid & fattr != 0 { set } else { 0 };
    // With "now" the kernel sets the other bit too.
    let time = |specific: u32, set: u32, now: u32, set_now: u32| {
        if asked.valid & now != 0 { set_now } else { bit(specific, set) }
    };
    SetAttr {
        valid: bit(fattr::MODE, set::MODE)
            | bit(fattr::UID, set::UID)
            | bit(fattr::GID, set::GID)
            | bit(fattr::SIZE, set::SIZE)
            | time(fattr::ATIME, set::ATIME, fattr::ATIME_NOW, set::ATIME_NOW)
            | time(fattr::MTIME, set::MTIME, fattr::MTIME_NOW, set::MTIME_NOW),
        mode: asked.mode & PERMISSION_BITS,
        uid: asked.uid,
        gid: asked.gid,
        size: asked.size,
        atime: Time { seconds: asked.atime.cast_signed(), nanos: asked.atimensec },
        mtime: Time { seconds: asked.mtime.cast_signed(), nanos: asked.mtimensec },
    }
}

fn lock(asked: &abi::fuse_lk_in) -> Lock {
    let abi::fuse_lk_in { owner, start, end, kind, pid, .. } = *asked;
    Lock { owner, start, end, pid, kind }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// A request as the kernel writes it.
    fn request(opcode: u32, body: &[&[u8]], extensions: &[u8]) -> Vec<u8> {
        let body = body.concat();
        let len = u32::try_from(size_of::<Header>() + body.len() + extensions.len()).unwrap();
        let head = Header {
            len,
            opcode,
            unique: 6,
            nodeid: 7,
            uid: 8,
            gid: 9,
            pid: 10,
            total_extlen: u16::try_from(extensions.len() / 8).unwrap(),
            padding: 0,
        };
        [head.as_bytes(), &body, extensions].concat()
    }

    fn check(opcode: u32, body: &[&[u8]], expected: Operation<'_>) {
        let bytes = request(opcode, body, &[]);
        let caller = Caller { pid: 10, uid: 8, gid: 9, request: 6 };
        let decoded = Request { unique: 6, caller, operation: expected };
        assert_eq!(Request::decode(&bytes), Ok(decoded));
    }

    #[test]
    fn requests_mean_what_the_kernel_says() {
        let entry = |name| Entry { parent: 7, name };
        let file = OpenFile { ino: 7, fh: 3 };
        check(opcode::LOOKUP, &[b"a\0"], Operation::Lookup(entry(b"a")));
        check(
            opcode::SYMLINK,
            &[b"n\0to\0"],
            Operation::Symlink { entry: entry(b"n"), target: b"to" },
        );
        let rename = abi::fuse_rename2_in { newdir: 5, flags: 2, padding: 0 };
        check(
            opcode::RENAME2,
            &[rename.as_bytes(), b"a\0b\0"],
            Operation::Rename { from: entry(b"a"), to: Entry { parent: 5, name: b"b" }, flags: 2 },
        );
        let lock = abi::fuse_lk_in { fh: 3, end: 9, kind: 1, lk_flags: 1, ..Default::default() };
        let asked = Lock { end: 9, kind: 1, ..Lock::default() };
        let flock = Operation::Setlk { file, lock: asked, kind: LockKind::Flock, wait: true };
        check(opcode::SETLKW, &[lock.as_bytes()], flock);
        let record = abi::fuse_lk_in { lk_flags: 0, ..lock };
        let record_lock =
            Operation::Setlk { file, lock: asked, kind: LockKind::Record, wait: false };
        check(opcode::SETLK, &[record.as_bytes()], record_lock);
        let value = abi::fuse_setxattr_in { size: 3, flags: 1 };
        check(
            opcode::SETXATTR,
            &[value.as_bytes(), b"user.x\0", b"a\0b"],
            Operation::Setxattr { ino: 7, name: b"user.x", value: b"a\0b", flags: 1 },
        );
        check(opcode::DESTROY, &[], Operation::Nothing);
        check(opcode::FORGET, &[&[1; 8]], Operation::Forget { ino: 7 });
        for (body, records) in [(&[0; 3][..], &[][..]), (&[5; 8], &[]), (&[5; 25], &[5; 17])] {
            check(opcode::BATCH_FORGET, &[body], Operation::ForgetAll { records });
        }
        for (read_flags, is_for_pages) in [(0, true), (abi::FUSE_READ_LOCKOWNER, false)] {
            let read = abi::fuse_read_in { fh: 3, size: 4, read_flags, ..Default::default() };
            let asked = Operation::Read { file, offset: 0, size: 4, is_for_pages };
            check(opcode::READ, &[read.as_bytes()], asked);
        }
        check(9999, &[b"?"], Operation::Unknown);
    }

    #[test]
    fn a_write_goes_to_the_end_or_to_its_place() {
        let write = |flags, write_flags| {
            let head = abi::fuse_write_in {
                fh: 3,
                offset: 4,
                size: 2,
                write_flags,
                flags,
                ..Default::default()
            };
            let bytes = request(opcode::WRITE, &[head.as_bytes(), b"xy"], &[]);
            match Request::decode(&bytes).unwrap().operation {
                Operation::Write { place, data: b"xy", .. } => place,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(write(0, 0), Place::Offset(4));
        assert_eq!(write(O_APPEND, 0), Place::End);
        assert_eq!(write(O_APPEND, abi::FUSE_WRITE_CACHE), Place::Page(4), "pages of a mapping");
    }

    #[test]
    fn times_are_set_to_now_or_to_what_is_given() {
        let set = |valid| set_attr(&abi::fuse_setattr_in { valid, ..Default::default() }).valid;
        assert_eq!(set(fattr::ATIME | fattr::MTIME), set::ATIME | set::MTIME);
        assert_eq!(set(fattr::ATIME | fattr::ATIME_NOW), set::ATIME_NOW);
        assert_eq!(set(fattr::MTIME | fattr::MTIME_NOW | fattr::SIZE), set::MTIME_NOW | set::SIZE);
        let before_epoch = abi::fuse_setattr_in {
            atime: (-2i64).cast_unsigned(),
            atimensec: 5,
            ..Default::default()
        };
        assert_eq!(set_attr(&before_epoch).atime, Time { seconds: -2, nanos: 5 });
    }

    #[test]
    fn extensions_at_the_end_are_no_part_of_the_body() {
        let bytes = request(opcode::UNLINK, &[b"a\0"], &[7; 16]);
        let decoded = Request::decode(&bytes).unwrap();
        assert_eq!(decoded.operation, Operation::Unlink(Entry { parent: 7, name: b"a" }));
        let value = abi::fuse_setxattr_in { size: 3, flags: 0 };
        let bytes = request(opcode::SETXATTR, &[value.as_bytes(), b"n\0", b"ab"], &[7; 8]);
        assert!(Request::decode(&bytes).is_err(), "a value does not reach into them");
    }

    #[test]
    fn what_is_cut_or_longer_than_it_says_is_refused_with_its_number() {
        let whole = request(opcode::MKDIR, &[&[0; 8], b"a\0"], &[]);
        assert!(Request::decode(&whole).is_ok());
        for len in 0..whole.len() {
            let malformed = Request::decode(&whole[..len]).unwrap_err();
            assert_eq!(malformed.unique, (len >= size_of::<Header>()).then_some(6));
        }
        assert!(Request::decode(&[&whole[..], b"x"].concat()).is_err());
        assert!(Request::decode(&request(opcode::MKDIR, &[&[0; 8], b"no NUL"], &[])).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(
            opcode in 0..60u32,
            body in proptest::collection::vec(any::<u8>(), 0..200),
            extensions in any::<u16>(),
        ) {
            Request::decode(&body).ok();
            let mut bytes = request(opcode, &[&body], &[]);
            Request::decode(&bytes).ok();
            bytes[36..38].copy_from_slice(&extensions.to_ne_bytes());
            Request::decode(&bytes).ok();
        }
    }
}
