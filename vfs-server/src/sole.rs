//! Sole writers: files of which nobody but one agent remembers anything, so that it may put off what its programs write.
//!
//! The agent through whose handle a file is written is its *sole writer* as long as it alone has a lease on the inode and nobody has pages of it. It answers
//! write(2), and changes of mode, owner and times, by itself, and tells the server a little later all at once ([`WriteBack`]); at the latest when the
//! program closes the file, or asks for anything that only the server knows. Whoever else calls for that inode waits until the agent has, which is
//! the recall of its lease ([`VfsServer::look`]). So nobody can tell that anything was put off.
//!
//! Who is given up, as it is not heard of, stays the sole writer until somebody else comes: then what it has put off is refused (EIO), as others
//! have seen the file without it.
//!
//! That a handle is a sole writer's is in its record, so it outlives the server. What was put off is the agent's: if that dies, its programs
//! find their open files dead (ENOTCONN).

use crate::VfsServer;
use crate::answer::{Result, err};
use crate::inode::time;
use crate::keys::Inode;
use crate::limits::{FILE_SIZE_MAX, SOLE_MAX, SOLE_SPACE};
use calls::vfs::{Attr, PutOff, SetAttr, Time, VfsCall, WriteBack, WrittenBack, attributes, set};
use calls::wire::Wire;
use dvk::server::{Call, Context};
use m3ipc::Errno;
use m3ipc::errno::numbers::{EBADF, EFBIG, EINVAL, EIO};

/// Something that was put off.
enum Part<'a> {
    Write { offset: u64, data: &'a [u8] },
    Set(SetAttr),
}

impl VfsServer {
    /// May the caller of `call`, which has just opened a file as `fh`, put off what is written through it? Then it is told what it may
    /// remember, of [`attributes`]; else 0.
    pub(crate) fn make_sole(
        &mut self,
        inode: &Inode,
        fh: u64,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> u8 {
        let may_be = inode.is_regular()
            && cx.now >= self.no_soles_until
            && inode.is_plain()
            && self.opens.may_be_sole(fh, SOLE_MAX)
            && !cx.store.blob_is_shared(inode.ino)
            && self.leases.is_of_nobody_but(inode.ino, call.id.source)
            // Whoever is told that there is room is told so in time.
            && self.has_sole_space(inode, cx);
        let leased = if may_be { self.lease(inode, call, cx) } else { 0 };
        if leased == 0 {
            return 0;
        }
        self.opens.set_sole(fh, true, cx.store);
        leased | attributes::SOLE
    }

    /// To be called before anything is told of inode `ino`.
    ///
    /// # Errors
    /// As [`VfsServer::claim`]: somebody else may have put off changes of it.
    pub(crate) fn look(&mut self, ino: u64, call: &Call<'_>, cx: &mut Context<'_>) -> Result<()> {
        match self.opens.sole(ino) {
            Some((_, writer)) if writer != call.id.source => {
                self.wait_for(&[(ino, false)], &[], call, cx)
            }
            _ => Ok(()),
        }
    }

    /// As [`VfsServer::look`], for the inodes that a call names by their numbers.
    pub(crate) fn look_at_all(
        &mut self,
        row: &VfsCall,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        for ino in looked_at(row) {
            self.look(ino, call, cx)?;
        }
        // Its kernel is about to have pages of it, which others may ask for at any time.
        if let VfsCall::ReadPages(row) = row {
            self.end_sole(row.ino, cx);
        }
        Ok(())
    }

    /// Nobody may put off changes of inode `ino` any more.
    pub(crate) fn end_sole(&mut self, ino: u64, cx: &mut Context<'_>) {
        if let Some((fh, _)) = self.opens.sole(ino) {
            self.opens.set_sole(fh, false, cx.store);
        }
    }

    /// What a sole writer has put off, one after the other. It waits for nobody, as others wait for it. A part that cannot be done is passed
    /// over, and after a write all further ones; the first errno is told.
    pub(crate) fn write_back(
        &mut self,
        row: WriteBack,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(WrittenBack, Vec<u8>)> {
        let open = self.writable_handle(row.fh, row.ino, call.id.source, EBADF)?;
        if self.opens.sole(row.ino).is_none_or(|(fh, _)| fh != row.fh) {
            return err(EIO);
        }
        let mut inode = self.file(row.ino, EBADF, cx)?;
        let parts = parts(call.payload).ok_or(Errno::new(EINVAL))?;
        let (mut failed, mut has_gap) = (Ok(()), false);
        let order = |time: &Time| (time.seconds, time.nanos);
        for (age, part) in parts {
            // When the program did it, by this clock: no earlier than what was done before, unless that is to come.
            let at = time(cx.wall.saturating_sub(u64::from(age) * 1000));
            let at = if order(&at) < order(&inode.ctime) { inode.ctime } else { at };
            let now = time(cx.wall);
            let at = if order(&now) < order(&at) { now } else { at };
            let outcome = match part {
                // What was written behind what is missing would have a hole before it.
                Part::Write { .. } if has_gap => Ok(()),
                Part::Write { offset, data } => {
                    let outcome = self.write_part(&mut inode, offset, data, call, cx);
                    has_gap = outcome.is_err();
                    outcome.inspect(|()| (inode.mtime, inode.ctime) = (at, at))
                }
                Part::Set(change) => {
                    crate::attr::check(&inode, &change, call.cred, cx.store).map(|()| {
                        crate::attr::change(&mut inode, &change, at, call.cred, cx.store);
                    })
                }
            };
            failed = failed.and(outcome);
        }
        self.save(&inode, cx);
        if row.sync != 0 || open.is_synchronous() {
            cx.store.blob_sync(inode.ino);
            cx.sync();
        }
        if !self.has_sole_space(&inode, cx) {
            self.end_sole(row.ino, cx);
        }
        let sole = if self.opens.sole(row.ino).is_some() { attributes::SOLE } else { 0 };
        let attr = self.lease(&inode, call, cx) | sole;
        let errno = failed.err().map_or(0, |error| u16::try_from(error.errno).unwrap_or(u16::MAX));
        Ok((WrittenBack { errno, attr }, Attr::bytes(&inode.attr(cx.store)).into()))
    }

    /// Is there room for all that may be put off?
    fn has_sole_space(&mut self, inode: &Inode, cx: &Context<'_>) -> bool {
        self.trees.free_bytes(inode.tree) >= SOLE_SPACE && self.available_lately(cx) >= SOLE_SPACE
    }

    /// Of bytes it was promised that there is room, so no quota is asked; of holes, which quotas count, it was not.
    fn write_part(
        &mut self,
        inode: &mut Inode,
        offset: u64,
        data: &[u8],
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let len = data.len() as u64;
        let end = offset.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX);
        let Some(end) = end else { return err(EFBIG) };
        if offset > inode.size {
            self.check_growth(inode, end)?;
            crate::read_write::cut_behind_end(inode, cx.store)?;
        }
        self.take_space(len, cx)?;
        self.write_blob(inode.ino, offset, data, cx)?;
        self.save_end(inode, end, cx);
        inode.drop_privileges(call.cred, cx.store);
        Ok(())
    }
}

/// The inodes of which a call wants to know something, or to change something; 0: none.
fn looked_at(row: &VfsCall) -> [u64; 2] {
    let one = |ino| [ino, 0];
    match row {
        VfsCall::Getattr(row) => one(row.ino),
        VfsCall::Setattr(row) => one(row.ino),
        VfsCall::Link(row) => one(row.ino),
        VfsCall::Open(row) => one(row.ino),
        VfsCall::Read(row) => one(row.ino),
        VfsCall::Write(row) => one(row.ino),
        VfsCall::WriteStaged(row) => one(row.ino),
        VfsCall::Fsync(row) => one(row.ino),
        VfsCall::Access(row) => one(row.ino),
        VfsCall::Getxattr(row) => one(row.ino),
        VfsCall::Setxattr(row) => one(row.ino),
        VfsCall::Listxattr(row) => one(row.ino),
        VfsCall::Removexattr(row) => one(row.ino),
        VfsCall::Fallocate(row) => one(row.ino),
        VfsCall::Seek(row) => one(row.ino),
        VfsCall::ReadPages(row) => one(row.ino),
        VfsCall::WritePages(row) => one(row.ino),
        VfsCall::CopyRange(row) => [row.ino, row.to_ino],
        // Of the inodes that names stand for their handlers see to it; locks, lists of names and targets of links do not tell of what is put off.
        VfsCall::Lookup(_)
        | VfsCall::Readlink(_)
        | VfsCall::Symlink(_)
        | VfsCall::Mknod(_)
        | VfsCall::Mkdir(_)
        | VfsCall::Unlink(_)
        | VfsCall::Rmdir(_)
        | VfsCall::Rename(_)
        | VfsCall::Create(_)
        | VfsCall::Tmpfile(_)
        | VfsCall::Flush(_)
        | VfsCall::Release(_)
        | VfsCall::Releases(_)
        | VfsCall::Readdir(_)
        | VfsCall::Statfs(_)
        | VfsCall::Getlk(_)
        | VfsCall::Setlk(_)
        | VfsCall::Recalls(_)
        | VfsCall::LetGo(_)
        | VfsCall::Stage(_)
        | VfsCall::WriteBack(_)
        | VfsCall::SetQuota(_)
        | VfsCall::Quotas(_)
        | VfsCall::TakeSnapshot(_)
        | VfsCall::RemoveSnapshot(_)
        | VfsCall::Snapshots(_)
        | VfsCall::Scrub(_) => [0, 0],
    }
}

/// What a payload says was put off, and how many microseconds ago each was done. `None`: it is malformed.
fn parts(mut payload: &[u8]) -> Option<Vec<(u32, Part<'_>)>> {
    let mut parts = Vec::new();
    while !payload.is_empty() {
        let head = PutOff::get(payload)?;
        let (data, rest) =
            payload[PutOff::SIZE..].split_at_checked(usize::try_from(head.len).ok()?)?;
        let part = match head.kind {
            PutOff::WRITE => Part::Write { offset: head.offset, data },
            PutOff::SET if data.len() == SetAttr::SIZE => {
                // A change of size is not put off.
                Part::Set(SetAttr::get(data).filter(|change| change.valid & set::SIZE == 0)?)
            }
            _ => return None,
        };
        parts.push((head.age, part));
        payload = rest;
    }
    Some(parts)
}
