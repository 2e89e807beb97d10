//! Reads and writes as calls: one, or several that are under way at once.

use super::{VosAgent, again, size, with_cred};
use crate::agent::{Caller, OpenFile};
use crate::cred::{self, By};
use crate::limits::{AGAIN_PAUSE, CALL_SIZE_MAX, PARTS_MAX};
use calls::Each;
use calls::vfs::{Count, Paged, Read, ReadPages, Stage, WritePages, WriteStaged, pages};
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::errno::numbers::{EAGAIN, EIO};
use m3ipc::{Cred, Endpoint, Errno, Sendrec, Wait};

/// A page in memory.
const PAGE: usize = 4096;

impl<P: Sendrec> VosAgent<P> {
    /// Reads with several calls that are under way at once, of [`CALL_SIZE_MAX`] each. What is behind a short one is not
    /// told, nor an error behind something.
    fn read_at_once(
        &self,
        cred: &Cred,
        file: OpenFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        let starts = (offset..).step_by(CALL_SIZE_MAX);
        let (mut read, mut failed, mut is_over) = (0, None, false);
        with_cred(cred, [&[], &[]], |send| {
            let parts =
                buffer.chunks_mut(CALL_SIZE_MAX).zip(starts).map(|(receive, offset)| Each {
                    row: Read { fh: file.fh, ino: file.ino, offset, size: size(receive) },
                    send,
                    receive,
                });
            let done = |outcome: Result<((), usize), Errno>| match outcome {
                _ if is_over => {}
                Ok((_, len)) => {
                    read += len;
                    is_over = len < CALL_SIZE_MAX;
                }
                Err(error) => (failed, is_over) = (Some(error), true),
            };
            calls::call_all::<PARTS_MAX, _>(&self.port, Endpoint::VFS, parts, Wait::FOREVER, done);
        });
        match failed {
            Some(error) if read == 0 => Err(error),
            _ => Ok(read),
        }
    }

    /// Reads from an open file as the server knows it.
    pub(super) fn read_now(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        let by = cred::plain(caller);
        if buffer.len() <= CALL_SIZE_MAX {
            let row = Read { fh: file.fh, ino: file.ino, offset, size: size(buffer) };
            return self.call(&by, &row, [&[], &[]], buffer).map(|(_, len)| len);
        }
        // Larger ones in several calls that are under way at once, as many as there is room for.
        let parts = buffer.len().div_ceil(CALL_SIZE_MAX).min(PARTS_MAX);
        let more = self.more.take(parts - 1);
        let mut read = 0;
        for stretch in buffer.chunks_mut((more.count + 1) * CALL_SIZE_MAX) {
            let wanted = stretch.len();
            let from = offset + read as u64;
            let len = match again(|| self.read_at_once(&by.cred, file, from, stretch)) {
                Ok(len) => len,
                Err(error) if read == 0 => return Err(error),
                Err(_) => break,
            };
            read += len;
            if len < wanted {
                break;
            }
        }
        Ok(read)
    }

    /// As [`VosAgent::read_now`], whole pages that the kernel keeps. With it, of [`pages`] whether it may, and then also when the file was
    /// read last.
    pub(super) fn read_leased(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        buffer: &mut [u8],
        (is_exclusive, waits): (bool, u8),
    ) -> Result<(Paged, usize), Errno> {
        let by = cred::plain(caller);
        let (mut read, mut is_over) = (0, false);
        let mut told = Paged { kept: pages::KEPT, ..Paged::default() };
        for (offset, part) in
            (offset..).step_by(CALL_SIZE_MAX).zip(buffer.chunks_mut(CALL_SIZE_MAX))
        {
            let row = ReadPages {
                fh: file.fh,
                ino: file.ino,
                offset,
                size: size(part),
                exclusive: is_exclusive.into(),
                waits,
            };
            let wanted = part.len();
            let (paged, len) = self.call(&by, &row, [&[], &[]], part)?;
            if paged.kept != pages::KEPT {
                return Ok((paged, 0));
            }
            told = paged;
            // What is behind the end is kept, too. If there is something meanwhile, the end is another.
            if is_over && len > 0 {
                return Ok((Paged { kept: pages::NO_SESSION, ..Paged::default() }, 0));
            }
            read += if is_over { 0 } else { len.min(wanted) };
            is_over |= len < wanted;
        }
        Ok((told, read))
    }

    /// Writes what does not fit one message, at once: its parts wait at the server for the last one.
    pub(super) fn write_large(
        &self,
        by: &By,
        file: OpenFile,
        offset: u64,
        data: &[u8],
    ) -> Result<Count, Errno> {
        let large = self.staging.begin();
        let chunks: Vec<&[u8]> = data.chunks(CALL_SIZE_MAX).collect();
        let (last, parts) = chunks.split_last().ok_or(Errno::new(EIO))?;
        // The same each time, also of a successor: what is there of it need not make room for itself.
        let token = by.key.number().unwrap_or_else(|| large.token());
        loop {
            // Of one that a predecessor has sent the parts are gone.
            let is_staged = self.estate.calls.has_left(by.key);
            let stage = || self.stage(&by.cred, token, parts, size(data));
            let staged = if is_staged { Ok(()) } else { stage() }.and_then(|()| {
                let row = WriteStaged {
                    fh: file.fh,
                    ino: file.ino,
                    offset,
                    token,
                    parts: u32::try_from(parts.len()).unwrap_or(u32::MAX),
                };
                self.order(by, &row, [last, &[]])
            });
            match staged {
                // There is no room, or the server has begun anew.
                Err(error) if error.errno == EAGAIN => std::thread::sleep(AGAIN_PAUSE),
                outcome => return outcome,
            }
        }
    }

    /// Sends parts with several calls that are under way at once, as many as there is room for.
    fn stage(&self, cred: &Cred, token: u64, parts: &[&[u8]], total: u32) -> Result<(), Errno> {
        let mut encoded = [0; CRED_SIZE_MAX];
        let len = cred.encode(&mut encoded);
        let sends: Vec<[&[u8]; 2]> = parts.iter().map(|part| [&encoded[..len], *part]).collect();
        let more = self.more.take(parts.len().saturating_sub(1));
        let numbered: Vec<(u32, &[&[u8]; 2])> = (0..).zip(&sends).collect();
        for stretch in numbered.chunks(more.count + 1) {
            let calls = stretch.iter().map(|(index, send)| Each {
                row: Stage { token, index: *index, total },
                send: &send[..],
                receive: &mut [],
            });
            let mut outcome = Ok(());
            calls::call_all::<PARTS_MAX, _>(
                &self.port,
                Endpoint::VFS,
                calls,
                Wait::FOREVER,
                |done| {
                    if let Err(error) = done {
                        outcome = Err(error);
                    }
                },
            );
            outcome?;
        }
        Ok(())
    }

    /// Pages come back from the kernel.
    pub(super) fn write_pages(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        let _change = self.change(file.ino);
        let by = cred::plain(caller);
        let write = |offset, part: &[u8]| {
            let row = WritePages { fh: file.fh, ino: file.ino, offset };
            self.order(&by, &row, [part, &[]]).map(drop)
        };
        let mut outcome = Ok(data.len());
        for (offset, part) in (offset..).step_by(CALL_SIZE_MAX).zip(data.chunks(CALL_SIZE_MAX)) {
            match write(offset, part) {
                Ok(()) => {}
                // It may be that of one page only.
                Err(error) if error.errno == EIO => {
                    for (offset, page) in (offset..).step_by(PAGE).zip(part.chunks(PAGE)) {
                        if let Err(error) = write(offset, page) {
                            outcome = Err(error);
                        }
                    }
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }
}
