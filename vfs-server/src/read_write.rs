//! The bytes of files: read, write, truncation, fallocate, SEEK_DATA and SEEK_HOLE, fsync.
//!
//! The inode says how long a file is. Its blob may be shorter: what is missing reads as zeros. It may
//! be longer, after a truncation, or after a crash between the write of a blob and the commit of the
//! inode: what lies behind the size is never read, and it is cut before the file grows over it.

use crate::VfsServer;
use crate::answer::{RESTART, Result, blob_error, err};
use crate::keys::{Inode, OpenRecord};
use crate::limits::{COPY_MAX, FILE_SIZE_MAX, STAGED_PARTS_MAX};
use crate::linux::{
    FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, S_IFDIR, S_IFREG, SEEK_DATA,
    SEEK_HOLE,
};
use crate::pages::{Own, PAGES_END, PageClaim, pages_of};
use crate::reclaim::extends_beyond;
use calls::vfs::{
    CopyRange, Count, Fallocate, Fsync, Offsets, PAGE_SIZE, Paged, Read, ReadPages, Seek, Stage,
    WRITE_APPEND, WRITE_AT, WRITE_SIZE_MAX, Write, WritePages, WriteStaged, pages,
};
use calls::wire::Wire;
use dvk::server::{Call, Context};
use dvk::store::{Store, StoreError};
use m3ipc::Cred;
use m3ipc::errno::numbers::{
    EAGAIN, EBADF, EDQUOT, EFBIG, EINVAL, EIO, EISDIR, ENODEV, ENXIO, EOPNOTSUPP,
};
use m3ipc::limits::PAYLOAD_MAX;

/// Largest offset that off_t can say.
const OFFSET_MAX: u64 = i64::MAX as u64;

impl VfsServer {
    pub(crate) fn read(
        &mut self,
        row: Read,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Vec<u8>> {
        let open = self.handle(row.fh, row.ino, call.id.source)?;
        if !open.reads() {
            return err(EBADF);
        }
        let mut inode = self.file(row.ino, EISDIR, cx)?;
        if row.offset > OFFSET_MAX {
            return err(EINVAL);
        }
        let pages = pages_of(row.offset, row.size.into());
        self.claim_all(&[], &[PageClaim::read(row.ino, pages)], call, cx)?;
        let data = read_blob(&inode, row.offset, row.size, cx.store)?;
        if !data.is_empty() && !open.leaves_access_time() && inode.accessed(cx.wall) {
            self.save_accessed(&inode, call, cx);
        }
        Ok(data)
    }

    /// As a read, of pages that the caller's kernel keeps. Who has a lease on the inode may have opened the file by itself: then nobody
    /// has changed since what it went by.
    pub(crate) fn read_pages(
        &mut self,
        row: ReadPages,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Paged, Vec<u8>)> {
        let source = call.id.source;
        let leaves_access_time = match row.fh {
            0 if self.leases.holds(source, row.ino) => false,
            fh => {
                let open = self.handle(fh, row.ino, source)?;
                if !open.reads() {
                    return err(EBADF);
                }
                open.leaves_access_time()
            }
        };
        let mut inode = self.file(row.ino, EISDIR, cx)?;
        if row.offset > OFFSET_MAX || !row.offset.is_multiple_of(PAGE_SIZE) {
            return err(EINVAL);
        }
        // One that holds too much has been told to begin another.
        let has_session = self.leases.has_session(source, cx.now);
        if row.waits != pages::OWN && (!has_session || self.leases.pages.is_full(source)) {
            return Ok((Paged { kept: pages::NO_SESSION, ..Paged::default() }, Vec::new()));
        }
        let size = row.size.min(u32::try_from(PAYLOAD_MAX).unwrap_or(u32::MAX));
        let claim = PageClaim {
            ino: row.ino,
            pages: pages_of(row.offset, size.into()),
            is_exclusive: row.exclusive != 0,
            own: Own::Recalled,
        };
        if row.waits == pages::OWN {
            // Whoever waits for these pages waits until the caller has lost what it is told here.
            let data = read_blob(&inode, row.offset, size, cx.store)?;
            return Ok((Paged { kept: pages::KEPT, atime: inode.atime }, data));
        }
        if row.waits == pages::NEVER && self.leases.is_taken(&claim, source) {
            return Ok((Paged { kept: pages::TAKEN, ..Paged::default() }, Vec::new()));
        }
        self.claim_all(&[], std::slice::from_ref(&claim), call, cx)?;
        let data = read_blob(&inode, row.offset, size, cx.store)?;
        if !data.is_empty() && !leaves_access_time && inode.accessed(cx.wall) {
            self.save_accessed(&inode, call, cx);
        }
        self.keep_pages(&claim, call, cx);
        Ok((Paged { kept: pages::KEPT, atime: inode.atime }, data))
    }

    /// Pages come back from a kernel that nobody else has. They never make a file longer.
    pub(crate) fn write_pages(
        &mut self,
        row: WritePages,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Count> {
        let open = self.writable_handle(row.fh, row.ino, call.id.source, EBADF)?;
        let mut inode = self.file(row.ino, EISDIR, cx)?;
        if row.offset > OFFSET_MAX {
            return err(EINVAL);
        }
        let whole = call.payload.len() as u64;
        let pages = pages_of(row.offset, whole);
        if !self.leases.pages.may_write_back(call.id.source, row.ino, &pages) {
            return err(EIO);
        }
        let count = inode.size.saturating_sub(row.offset).min(whole);
        if count == 0 {
            return Ok(Count { count: whole });
        }
        // It waits for nobody, as others wait for it: those who remember the inode's times are told late.
        self.take_space(count, cx)?;
        let data = &call.payload[..usize::try_from(count).unwrap_or(call.payload.len())];
        let bytes = row.offset..row.offset + count;
        for run in self.leases.pages.of_use(call.id.source, row.ino, &bytes) {
            let place = |at: u64| usize::try_from(at - row.offset).unwrap_or(data.len());
            let part = &data[place(run.start)..place(run.end)];
            self.write_blob(inode.ino, run.start, part, cx)?;
        }
        inode.drop_privileges(call.cred, cx.store);
        inode.modified(cx.wall);
        self.save(&inode, cx);
        self.recall_late(inode.ino, Some(call.id.source), cx);
        if open.is_synchronous() {
            cx.store.blob_sync(inode.ino);
            cx.sync();
        }
        Ok(Count { count: whole })
    }

    pub(crate) fn write(
        &mut self,
        row: Write,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Count> {
        self.write_parts(row, &[call.payload], call, cx)
    }

    /// Keeps a part of a write that has several.
    pub(crate) fn stage(
        &mut self,
        row: Stage,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let total = usize::try_from(row.total).unwrap_or(usize::MAX);
        let is_part = row.index < STAGED_PARTS_MAX && !call.payload.is_empty();
        if !is_part || total > WRITE_SIZE_MAX || call.payload.len() > total {
            return err(EINVAL);
        }
        let write = (call.id.source, row.token);
        if self.staged.keep(write, row.index, total, call.payload, cx.now) {
            Ok(())
        } else {
            err(EAGAIN)
        }
    }

    /// A write of several parts, of which this is the last.
    pub(crate) fn write_staged(
        &mut self,
        row: WriteStaged,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Count> {
        let WriteStaged { fh, ino, offset, token, parts } = row;
        let source = call.id.source;
        let Some(staged) = self.staged.take(source, token, parts) else { return err(EAGAIN) };
        let parts: Vec<&[u8]> = staged.iter().chain([call.payload]).collect();
        let outcome = self.write_parts(Write { fh, ino, offset }, &parts, call, cx);
        if matches!(&outcome, Err(error) if error.errno == RESTART) {
            self.staged.put_back(source, token, staged, cx.now);
        }
        outcome
    }

    /// Writes parts one behind the other, as many whole ones as there is room for.
    fn write_parts(
        &mut self,
        row: Write,
        parts: &[&[u8]],
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Count> {
        let open = self.writable_handle(row.fh, row.ino, call.id.source, EBADF)?;
        let mut inode = self.file(row.ino, EISDIR, cx)?;
        let offset = write_offset(row.offset, &open, &inode)?;
        let whole: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if whole == 0 {
            return Ok(Count { count: 0 });
        }
        if offset >= FILE_SIZE_MAX {
            return err(EFBIG);
        }
        // Also those of the writer's own kernel, which may have read them again since it dropped them.
        let whole = whole.min(FILE_SIZE_MAX - offset);
        let pages = PageClaim::change(inode.ino, pages_of(offset, whole), Own::All);
        self.claim_all(&[(inode.ino, true)], &[pages], call, cx)?;
        let whole = self.within_quota(&inode, offset + whole).saturating_sub(offset);
        if whole == 0 {
            return err(EDQUOT);
        }
        if offset > inode.size {
            cut_behind_end(&inode, cx.store)?;
        }
        let mut written = 0;
        for part in parts {
            let count = (whole - written).min(part.len() as u64);
            if count == 0 {
                break;
            }
            let data = &part[..usize::try_from(count).unwrap_or(part.len())];
            if written > 0 {
                self.save_end(&mut inode, offset + written, cx);
            }
            let outcome = self.take_space(count, cx);
            match outcome.and_then(|()| self.write_blob(inode.ino, offset + written, data, cx)) {
                Ok(()) => written += count,
                // What is written is written; the error comes with the next attempt.
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        inode.size = inode.size.max(offset + written);
        inode.drop_privileges(call.cred, cx.store);
        inode.modified(cx.wall);
        self.save(&inode, cx);
        if open.is_synchronous() {
            cx.store.blob_sync(inode.ino);
            cx.sync();
        }
        Ok(Count { count: written })
    }

    /// As a read and a write, without the bytes leaving the server.
    pub(crate) fn copy_range(
        &mut self,
        row: CopyRange,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Count> {
        let Some(Offsets { from, to }) = Offsets::get(call.payload) else { return err(EINVAL) };
        let read = self.handle(row.fh, row.ino, call.id.source)?;
        if !read.reads() {
            return err(EBADF);
        }
        let open = self.writable_handle(row.to_fh, row.to_ino, call.id.source, EBADF)?;
        if open.appends() {
            return err(EBADF);
        }
        let mut source = self.file(row.ino, EINVAL, cx)?;
        let mut target = self.file(row.to_ino, EINVAL, cx)?;
        let length = u64::from(row.length.min(COPY_MAX));
        if from > OFFSET_MAX || to > OFFSET_MAX {
            return err(EINVAL);
        }
        if row.ino == row.to_ino && from < to + length && to < from + length {
            return err(EINVAL);
        }
        let count = length.min(source.size.saturating_sub(from));
        if count == 0 {
            return Ok(Count { count });
        }
        if to >= FILE_SIZE_MAX {
            return err(EFBIG);
        }
        let count = count.min(FILE_SIZE_MAX - to);
        let claims = [
            PageClaim::read(source.ino, pages_of(from, count)),
            PageClaim::change(target.ino, pages_of(to, count), Own::All),
        ];
        self.claim_all(&[(target.ino, true)], &claims, call, cx)?;
        let count = self.within_quota(&target, to + count).saturating_sub(to);
        if count == 0 {
            return err(EDQUOT);
        }
        self.take_space(count, cx)?;
        let mut data = vec![0; usize::try_from(count).unwrap_or(0)];
        // What the blob does not have stays zero.
        cx.store.blob_read(row.ino, from, &mut data).map_err(blob_error)?;
        // A hole behind the end stays one.
        let is_hole = to >= target.size && data.iter().all(|byte| *byte == 0);
        if is_hole || to > target.size {
            cut_behind_end(&target, cx.store)?;
        }
        if !is_hole {
            self.write_blob(row.to_ino, to, &data, cx)?;
        }
        if !read.leaves_access_time() && source.accessed(cx.wall) {
            self.save_accessed(&source, call, cx);
            if source.ino == target.ino {
                target.atime = source.atime;
            }
        }
        target.size = target.size.max(to + count);
        target.drop_privileges(call.cred, cx.store);
        target.modified(cx.wall);
        self.save(&target, cx);
        if open.is_synchronous() {
            cx.store.blob_sync(target.ino);
            cx.sync();
        }
        Ok(Count { count })
    }

    pub(crate) fn fallocate(
        &mut self,
        row: Fallocate,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let open = self.writable_handle(row.fh, row.ino, call.id.source, EBADF)?;
        let mut inode = self.file(row.ino, ENODEV, cx)?;
        if row.length == 0 || row.length > OFFSET_MAX || row.offset > OFFSET_MAX {
            return err(EINVAL);
        }
        let end = row.offset + row.length;
        if end > FILE_SIZE_MAX {
            return err(EFBIG);
        }
        let pages = pages_of(row.offset, row.length);
        let is_zeroed = row.mode & !FALLOC_FL_KEEP_SIZE != 0;
        let pages = is_zeroed.then(|| PageClaim::change(inode.ino, pages, Own::All));
        self.claim_all(&[(inode.ino, true)], pages.as_slice(), call, cx)?;
        let keep_size = row.mode & FALLOC_FL_KEEP_SIZE != 0;
        if !keep_size && matches!(row.mode, 0 | FALLOC_FL_ZERO_RANGE) {
            self.check_growth(&inode, end)?;
        }
        match row.mode & !FALLOC_FL_KEEP_SIZE {
            0 => self.check_room(&inode, row.offset, end, cx)?,
            FALLOC_FL_PUNCH_HOLE if keep_size => zero(&inode, row.offset, end, cx.store)?,
            FALLOC_FL_ZERO_RANGE => zero(&inode, row.offset, end, cx.store)?,
            _ => return err(EOPNOTSUPP),
        }
        if end > inode.size && !keep_size {
            cut_behind_end(&inode, cx.store)?;
            inode.size = end;
        }
        inode.drop_privileges(call.cred, cx.store);
        inode.modified(cx.wall);
        self.save(&inode, cx);
        if open.is_synchronous() {
            cx.store.blob_sync(inode.ino);
            cx.sync();
        }
        Ok(())
    }

    pub(crate) fn seek(
        &mut self,
        row: Seek,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Count> {
        self.handle(row.fh, row.ino, call.id.source)?;
        let inode = self.file(row.ino, EINVAL, cx)?;
        let hole = match row.whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return err(EINVAL),
        };
        if row.offset >= inode.size {
            return err(ENXIO);
        }
        // Programs may have filled holes; no kernel writes that back by itself.
        let pages = row.offset / PAGE_SIZE..PAGES_END;
        let claim = PageClaim { own: Own::All, ..PageClaim::read(row.ino, pages) };
        self.claim_all(&[], &[claim], call, cx)?;
        match (cx.store.blob_seek(inode.ino, row.offset, hole), hole) {
            (Some(found), true) => Ok(Count { count: found.min(inode.size) }),
            (Some(found), false) if found < inode.size => Ok(Count { count: found }),
            // Behind the blob's end the file is one hole.
            (None, true) => Ok(Count { count: row.offset }),
            (_, false) => err(ENXIO),
        }
    }

    pub(crate) fn fsync(
        &mut self,
        row: Fsync,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        self.handle(row.fh, row.ino, call.id.source)?;
        if self.inode(row.ino, cx)?.is_regular() {
            // What programs of other nodes have written to mappings belongs to the file.
            self.claim_all(&[], &[PageClaim::read(row.ino, 0..PAGES_END)], call, cx)?;
            cx.store.blob_sync(row.ino);
        }
        cx.sync();
        Ok(())
    }

    /// Makes a file longer or shorter. The caller checks permissions and stores the inode.
    ///
    /// # Errors
    /// EFBIG, ENOSPC, EDQUOT, EIO.
    pub(crate) fn resize(
        &mut self,
        inode: &mut Inode,
        size: u64,
        cred: &Cred,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        if size > OFFSET_MAX {
            return err(EINVAL);
        }
        if size > FILE_SIZE_MAX {
            return err(EFBIG);
        }
        self.check_growth(inode, size)?;
        if size > inode.size {
            cut_behind_end(inode, cx.store)?;
        }
        if size < inode.size {
            self.cut_later(inode.ino, size, cx);
        }
        inode.size = size;
        inode.drop_privileges(cred, cx.store);
        inode.modified(cx.wall);
        Ok(())
    }

    /// Regular file `ino`.
    ///
    /// # Errors
    /// EISDIR for a directory, `other` for what is neither.
    pub(crate) fn file(&mut self, ino: u64, other: i32, cx: &Context<'_>) -> Result<Inode> {
        let inode = self.inode(ino, cx)?;
        match inode.kind() {
            S_IFREG => Ok(inode),
            S_IFDIR => err(EISDIR),
            _ => err(other),
        }
    }

    /// fallocate(2) in mode 0: there must be room now. It is not reserved, because a store has no
    /// operation for that.
    fn check_room(
        &mut self,
        inode: &Inode,
        offset: u64,
        end: u64,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let used = cx.store.blob_used(inode.ino);
        self.take_space((end - offset).min(end.saturating_sub(used)), cx)
    }

    /// A file that is being written reaches to `end` by now: so much must not be cut off by who looks for room.
    pub(crate) fn save_end(&mut self, inode: &mut Inode, end: u64, cx: &mut Context<'_>) {
        if end > inode.size {
            inode.size = end;
            self.save(inode, cx);
        }
    }

    pub(crate) fn write_blob(
        &mut self,
        ino: u64,
        offset: u64,
        data: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<()> {
        match cx.store.blob_write(ino, offset, data) {
            Err(StoreError::Full) => {
                self.reclaim_all(cx);
                cx.store.blob_write(ino, offset, data).map_err(blob_error)
            }
            result => result.map_err(blob_error),
        }
    }
}

/// Where a write goes: to the end with O_APPEND, unless the row insists.
///
/// # Errors
/// EINVAL if the offset is none that off_t can say.
fn write_offset(offset: u64, open: &OpenRecord, inode: &Inode) -> Result<u64> {
    match offset {
        WRITE_APPEND => Ok(inode.size),
        _ if offset & WRITE_AT != 0 => Ok(offset & !WRITE_AT),
        _ if open.appends() => Ok(inode.size),
        _ => Ok(offset),
    }
}

/// At most `size` bytes at `offset`, fewer at the end of the file.
fn read_blob(inode: &Inode, offset: u64, size: u32, store: &dyn Store) -> Result<Vec<u8>> {
    let count = inode.size.saturating_sub(offset).min(u64::from(size)).min(PAYLOAD_MAX as u64);
    let mut data = vec![0; usize::try_from(count).unwrap_or(PAYLOAD_MAX)];
    // What the blob does not have stays zero.
    store.blob_read(inode.ino, offset, &mut data).map_err(blob_error)?;
    Ok(data)
}

/// Removes stale bytes behind the end, before the file grows over them.
pub(crate) fn cut_behind_end(inode: &Inode, store: &mut dyn Store) -> Result<()> {
    if extends_beyond(store, inode.ino, inode.size) {
        store.blob_truncate(inode.ino, inode.size).map_err(blob_error)?;
    }
    Ok(())
}

/// Lets `offset..end` read as zeros, as far as the file goes.
fn zero(inode: &Inode, offset: u64, end: u64, store: &mut dyn Store) -> Result<()> {
    let end = end.min(inode.size);
    if offset < end {
        store.blob_punch(inode.ino, offset, end - offset).map_err(blob_error)?;
    }
    Ok(())
}
