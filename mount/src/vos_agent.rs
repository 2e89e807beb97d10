//! The agent that asks vfs-server, and remembers what it may.

mod bytes;
mod later;
mod succession;

use crate::agent::{
    Agent, Caller, Entry, LockKind, Looked, NewMode, OpenFile, Place, Skill, Through, Told,
    VisitEntry, VisitLooked,
};
use crate::closing::Closing;
use crate::cred::{self, By};
use crate::estate::calls::{Calls, Key, Outcome};
use crate::estate::{Estate, Heirlooms};
use crate::kernel::Kernel;
use crate::leases::{self, Files, Kept, Wish};
use crate::limits::{
    AGAIN_PAUSE, CALL_SIZE_MAX, COPY_MAX, LISTING_SIZE_MAX, LOCK_WAITS_MAX, MORE_CALLS_MAX,
};
use crate::memory::{Asked, Change, Found, Memory};
use crate::owners::Owners;
use crate::pages::{How, Pages, Recall};
use crate::promised::{Promise, Promised, is_promised};
use crate::put_off::Soles;
use crate::staging::Staging;
use crate::status;
use calls::Row;
use calls::vfs::{
    Access, Attr, Closed, CopyRange, Create, Created, DirEntry, Fallocate, Flush, FsStats, Fsync,
    Getattr, Getlk, Getxattr, Leased, LetGo, Link, Listed, Listxattr, Lock, Lookup, Mkdir, Mknod,
    Offsets, Open, Opened, PAGE_SIZE, Paged, Parent, RESTART, Readdir, Readlink, Release, Releases,
    Removexattr, Rename, Renamed, Rmdir, Seek, SetAttr, Setattr, Setlk, Setxattr, Statfs, Symlink,
    Tmpfile, Unlink, WRITE_APPEND, WRITE_AT, Write, WriteBack, WriteStaged, pages, set,
};
use calls::wire::Wire;
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::errno::numbers::{
    EAGAIN, EBADF, EDQUOT, ENAMETOOLONG, ENODATA, ENOENT, ENOLCK, ENOSPC, EPROTO,
};
use m3ipc::{Cred, Endpoint, Errno, Interrupt, IpcError, Message, Note, Sendrec, Tag, Wait};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// The agent that asks vfs-server. `P` is a port whose channel is trusted (`door::kind::AGENT`):
/// the caller's credentials stand in front of each payload.
#[derive(Debug)]
pub struct VosAgent<P> {
    port: P,
    /// Calls that wait for a lock.
    waits: Places<LOCK_WAITS_MAX>,
    /// Calls beside the one that each thread has.
    more: Places<MORE_CALLS_MAX>,
    memory: Memory,
    wish: Wish,
    owners: Owners,
    promised: Promised,
    closing: Closing,
    /// Held by who tells the server of closed files.
    telling: Mutex<()>,
    /// How often it was told of some.
    told: AtomicU64,
    soles: Soles,
    pages: Pages,
    staging: Staging,
    estate: Estate,
    /// Nothing is left of a predecessor that was put off.
    is_settled: AtomicBool,
    /// Of the kernel.
    skill: OnceLock<Skill>,
}

/// Places of which `N` can be taken.
#[derive(Debug, Default)]
struct Places<const N: usize>(AtomicUsize);

impl<const N: usize> Places<N> {
    /// Takes up to `wanted`; they are given back when what is returned is dropped.
    fn take(&self, wanted: usize) -> Taken<'_> {
        let free = |taken: usize| wanted.min(N - taken);
        let after = |taken| Some(taken + free(taken));
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
        Taken { count: before.map_or(0, free), of: &self.0 }
    }
}

/// Some of them.
#[derive(Debug)]
struct Taken<'a> {
    count: usize,
    of: &'a AtomicUsize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.of.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Longest target of a symbolic link (PATH_MAX).
const TARGET_MAX: usize = 4096;
/// Attributes of which is remembered that an inode has none: kernels ask for them all the time.
const MARKED: [&[u8]; 3] =
    [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
/// Everybody may search a directory with these.
const SEARCH_BITS: u32 = 0o111;
/// Files whose end one call tells.
const CLOSED_MAX: usize = CALL_SIZE_MAX / Closed::SIZE;
const F_UNLCK: u32 = 2;
const FALLOC_FL_KEEP_SIZE: u32 = 1;
const O_ACCMODE: u32 = 3;
const O_RDWR: u32 = 2;
const O_TRUNC: u32 = 0o1000;
const O_EXCL: u32 = 0o200;
const O_DIRECT: u32 = libc::O_DIRECT.cast_unsigned();
const O_NOATIME: u32 = libc::O_NOATIME.cast_unsigned();
/// Linux's own flag of a file that is opened to be executed (linux/fs.h).
const FMODE_EXEC: u32 = 0x20;

impl<P: Sendrec> VosAgent<P> {
    /// One that has neither predecessor nor successor.
    ///
    /// # Panics
    /// There is no address space left.
    pub fn new(port: P) -> VosAgent<P> {
        VosAgent::with(port, Estate::default())
    }

    /// One that goes on with what is in `estate`.
    pub(crate) fn with(port: P, mut estate: Estate) -> VosAgent<P> {
        let predecessors = estate.predecessors();
        let calls = estate.calls.clone();
        let Heirlooms { promises, closed, errors, done, owners, locked, paged, writers, places } =
            estate.take();
        VosAgent {
            port,
            waits: Places::default(),
            more: Places::default(),
            memory: Memory::default(),
            wish: Wish::default(),
            owners: Owners::new(owners),
            promised: Promised::new(promises, calls.clone(), predecessors),
            closing: Closing::new(closed, locked),
            telling: Mutex::default(),
            told: AtomicU64::default(),
            soles: Soles::new(places, errors, done, calls),
            pages: Pages::new(paged, writers),
            staging: Staging::default(),
            estate,
            is_settled: AtomicBool::new(predecessors == 0),
            skill: OnceLock::new(),
        }
    }

    /// Before the server is asked for what may be remembered.
    fn asked(&self) -> Asked {
        if !self.memory.has_session() {
            self.wish.want();
        }
        self.memory.asked()
    }

    fn call<R: Row>(&self, by: &By, row: &R, payload: [&[u8]; 2], receive: &mut [u8]) -> Reply<R> {
        with_cred(&by.cred, payload, |send| {
            let mut call = || again(|| self.make_call(by, row, send, receive));
            // Parts of a large write are gone by now; and who tells of closed files does not wait for who does.
            let is_final = matches!(R::NUMBER, WriteStaged::NUMBER | Releases::NUMBER);
            if is_final { call() } else { self.with_room(by.key, call) }
        })
    }

    /// Makes a call, unless a predecessor has made it for the same request.
    fn make_call<R: Row>(&self, by: &By, row: &R, send: &[&[u8]], receive: &mut [u8]) -> Reply<R> {
        let By { key, ino, .. } = *by;
        if key == Key::NONE || !is_noted(R::NUMBER) {
            return calls::call(&self.port, Endpoint::VFS, row, send, receive, Wait::FOREVER);
        }
        let mut note = Noted { calls: &self.estate.calls, key, ino, call: R::NUMBER };
        match self.estate.calls.take(key, R::NUMBER) {
            Some((Outcome::Answered(answered), _)) => {
                // What it says may be remembered is of another session.
                self.memory.outdate();
                let len = answered.payload.len().min(receive.len());
                receive[..len].copy_from_slice(&answered.payload[..len]);
                calls::answered::<R>(&answered.message, answered.payload.len())
            }
            Some((Outcome::Unmade(tag), _)) if tag.0 != 0 => {
                self.memory.outdate();
                let whom = (Endpoint::VFS, tag);
                calls::call_again(&self.port, whom, row, send, receive, &mut note)
            }
            _ => calls::call_noted(&self.port, Endpoint::VFS, row, send, receive, &mut note),
        }
    }

    /// Has a predecessor made a call for the request? Then the same one is to be made for it, and no other way taken.
    fn is_resumed(&self, caller: Caller) -> bool {
        self.estate.calls.has_left(Key::request(caller.request))
    }

    /// Does it, and once more if there was no room before the server knew of all closed files: some of them may have been removed.
    fn with_room<T>(
        &self,
        key: Key,
        mut attempt: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let told = self.told.load(Ordering::Relaxed);
        match attempt() {
            Err(error) if is_full(error) && self.tell_all_closed(told) => {
                self.estate.calls.again(key);
                attempt()
            }
            outcome => outcome,
        }
    }

    /// A call whose answer's payload is one fixed struct.
    fn call_for<R: Row, T: Wire>(
        &self,
        by: &By,
        row: &R,
        payload: [&[u8]; 2],
    ) -> Result<(R::Reply, T), Errno> {
        let mut answer = [0; 128];
        let (reply, len) = self.call(by, row, payload, &mut answer)?;
        let value = T::get(&answer[..len.min(answer.len())]).ok_or(Errno::new(EPROTO))?;
        Ok((reply, value))
    }

    /// A call that gives an inode a name, or opens it by one: the inode's attributes, and the directory if that may be remembered.
    fn call_for_name<R: Row>(
        &self,
        by: &By,
        row: &R,
        payload: [&[u8]; 2],
    ) -> Result<(R::Reply, Attr, Option<Parent>), Errno> {
        let mut answer = [0; Attr::SIZE + Parent::SIZE];
        let (reply, len) = self.call(by, row, payload, &mut answer)?;
        let answer = &answer[..len.min(answer.len())];
        let attr = Attr::get(answer).ok_or(Errno::new(EPROTO))?;
        Ok((reply, attr, Parent::get(&answer[Attr::SIZE..])))
    }

    /// Attributes as they are told to a kernel that has the inode.
    fn told(&self, attr: Attr) -> Told {
        Told { attr, lent: self.memory.lend(&attr, true).0 }
    }

    /// Has the server open a file.
    fn open_at_server(
        &self,
        by: &By,
        ino: u64,
        flags: u32,
    ) -> Result<(Opened, Option<Attr>), Errno> {
        let mut attr = [0; Attr::SIZE];
        let (opened, len) =
            self.call(&By { ino, ..by.clone() }, &Open { ino, flags }, [&[], &[]], &mut attr)?;
        Ok((opened, Attr::get(&attr[..len.min(Attr::SIZE)])))
    }

    /// Has the server close a file, if it has opened it.
    fn close(&self, caller: Caller, file: OpenFile) -> Result<(), Errno> {
        let Some((fh, row)) = self.promised.close(file.fh) else { return Ok(()) };
        let outcome = if self.closing.close(Closed { fh, ino: file.ino }) {
            Ok(())
        } else {
            self.order(&cred::plain(caller), &Release { fh, ino: file.ino }, [&[], &[]])
        };
        self.promised.forget(row);
        outcome
    }

    /// Takes back a promise that nobody has been given.
    fn withdraw(&self, caller: Caller, file: OpenFile) {
        // Somebody may have had the server open it.
        if !self.promised.close_unknown(file.fh)
            && let Err(error) = self.close(caller, file)
        {
            tracing::debug!(?error, "a file that nobody has opened stays open");
        }
    }

    /// As the server knows an open file.
    fn at_server(&self, file: OpenFile) -> Result<OpenFile, Errno> {
        let fh = self.promised.ask(file.fh, |promise| self.redeem(promise))?;
        Ok(OpenFile { ino: file.ino, fh })
    }

    fn redeem(&self, Promise { fh, ino, flags, cred, .. }: &Promise) -> Result<u64, Errno> {
        let by = By { cred: *cred, key: Key::promise(*fh), ino: *ino };
        self.open_at_server(&by, *ino, *flags).map(|(opened, _)| opened.fh)
    }

    /// A program is about to take away inode `ino` (0: none), or to change who may read it: that is no matter of who has it open.
    ///
    /// # Errors
    /// The server does not open it for them. So the program must not.
    fn keep_open(&self, ino: u64) -> Result<(), Errno> {
        if ino == 0 { Ok(()) } else { self.promised.keep(ino, |promise| self.redeem(promise)) }
    }

    /// Leave to wait for a lock, while the place is held.
    ///
    /// # Errors
    /// ENOLCK: as many wait as may.
    fn place_to_wait(&self) -> Result<Taken<'_>, Errno> {
        let place = self.waits.take(1);
        if place.count == 1 { Ok(place) } else { Err(Errno::new(ENOLCK)) }
    }

    /// A file has been opened, perhaps so that it can be mapped to be written to.
    fn add_writer(&self, file: OpenFile, flags: u32) {
        if flags & O_ACCMODE == O_RDWR && self.skill().maps {
            self.pages.add_writer(file.ino, file.fh);
        }
    }

    fn skill(&self) -> Skill {
        self.skill.get().copied().unwrap_or_default()
    }

    /// Makes a call that gives an inode a name in a directory, and keeps what it tells.
    fn make<R: Row<Reply = Leased>>(
        &self,
        caller: Caller,
        entry: Entry<'_>,
        row: &R,
        payload: [&[u8]; 2],
    ) -> Result<Attr, Errno> {
        let asked = self.asked();
        let change = self.change_in(caller, entry);
        let (leased, attr, parent) =
            self.call_for_name(&cred::with_groups(caller), row, payload)?;
        change.keep_name(entry.name, leased, attr.ino);
        change.keep_parent(parent);
        self.memory.keep_attr(asked, leased.attr, attr);
        self.memory.keep_empty(asked, leased.attr, attr);
        Ok(attr)
    }

    /// Makes a call that takes a name away, and keeps that it is not there any more.
    fn remove<R: Row<Reply = Leased>>(
        &self,
        caller: Caller,
        entry: Entry<'_>,
        row: impl FnOnce(u64) -> R,
    ) -> Result<(), Errno> {
        let (change, forgotten) = self.change_at(caller, entry);
        self.write_back_named(forgotten.ino());
        self.keep_open(forgotten.ino())?;
        let row = row(forgotten.ino());
        let mut parent = [0; Parent::SIZE];
        let by = cred::with_groups(caller);
        let (leased, len) = self.call(&by, &row, [entry.name, &[]], &mut parent)?;
        change.keep_name(entry.name, leased, 0);
        change.keep_parent(Parent::get(&parent[..len.min(Parent::SIZE)]));
        Ok(())
    }

    /// A program of this node is about to change an inode (0: none): nothing of it is remembered until that is done.
    fn change(&self, ino: u64) -> Change<'_> {
        let change = self.memory.change(ino);
        // After that: what was told before is not known here any more.
        self.soles.disturb(ino);
        change
    }

    /// As [`VosAgent::change`], of which also follows who may search the directory.
    fn change_rights(&self, ino: u64) -> Change<'_> {
        let change = self.memory.change_rights(ino);
        self.soles.disturb(ino);
        change
    }

    /// A name is about to be made.
    fn change_in(&self, caller: Caller, entry: Entry<'_>) -> Change<'_> {
        let change = self.change(entry.parent);
        self.memory.change_name(entry.parent, entry.name);
        self.memory.change_names(&[entry.parent], caller.pid);
        change
    }

    /// What is remembered to be under a name, for who may be told. The kernel may remember it, too, if it can be known when
    /// the thread that asks has been told.
    fn remembered(&self, caller: Caller, entry: Entry<'_>, found: Found) -> Result<Looked, Errno> {
        let (ino, told, is_settled) = match found {
            Found::Missing => (0, None, true),
            Found::Inode(attr) => {
                let (lent, is_repeated) = self.memory.lend(&attr, false);
                (attr.ino, Some(Told { attr, lent }), is_repeated)
            }
        };
        let lent = if caller.pid != 0 && status::proc_is_ours() {
            let name = (entry.parent, entry.name);
            self.memory.lend_name(name, ino, is_settled, caller.pid)
        } else {
            Duration::ZERO
        };
        match (told, lent) {
            (None, Duration::ZERO) => Err(Errno::new(ENOENT)),
            _ => Ok(Looked { told, lent }),
        }
    }

    /// An extended attribute is about to change.
    fn change_attribute(&self, ino: u64, name: &[u8]) -> Result<Change<'_>, Errno> {
        let change = self.change_rights(ino);
        if MARKED.contains(&name) {
            self.end_sole(ino);
        }
        self.write_back(ino);
        if name.starts_with(b"system.posix_acl_") {
            self.keep_open(ino)?;
            self.memory.wait_for_names(&[ino]);
        }
        Ok(change)
    }

    /// What is under a name is about to change: the directory, and the inode as far as it is known.
    fn change_at(&self, caller: Caller, entry: Entry<'_>) -> (Change<'_>, Change<'_>) {
        let change = self.change(entry.parent);
        let ino = self.memory.change_name(entry.parent, entry.name);
        self.memory.change_names(&[entry.parent], caller.pid);
        (change, self.change(ino))
    }

    /// A call that is answered by success or an error.
    fn order<R: Row>(&self, by: &By, row: &R, payload: [&[u8]; 2]) -> Result<R::Reply, Errno> {
        self.call(by, row, payload, &mut []).map(|(reply, _)| reply)
    }
}

/// A call of which a successor must know.
struct Noted<'a> {
    calls: &'a Calls,
    key: Key,
    ino: u64,
    call: u16,
}

impl Note for Noted<'_> {
    fn asked(&mut self, tag: Tag) {
        self.calls.begin(self.key, self.call, tag, self.ino);
    }

    fn answered(&mut self, answer: &Message, payload: &[u8]) {
        self.calls.answer(self.key, answer, payload);
    }

    fn failed(&mut self, error: IpcError) {
        // Nobody knows whether it has been executed. Who asks again is told the same.
        self.calls.answer(self.key, &Message::undelivered(self.call, error), &[]);
    }
}

/// May a call with this number not be made twice for one request? Not among them: what closes, tells or locks, and pages that come back from the
/// kernel, which is the same done twice, as nobody else can have done something in between.
fn is_noted(number: u16) -> bool {
    matches!(
        number,
        Setattr::NUMBER
            | Symlink::NUMBER
            | Mknod::NUMBER
            | Mkdir::NUMBER
            | Unlink::NUMBER
            | Rmdir::NUMBER
            | Rename::NUMBER
            | Link::NUMBER
            | Open::NUMBER
            | Create::NUMBER
            | Tmpfile::NUMBER
            | Write::NUMBER
            | WriteStaged::NUMBER
            | WriteBack::NUMBER
            | Setxattr::NUMBER
            | Removexattr::NUMBER
            | Fallocate::NUMBER
            | CopyRange::NUMBER
    )
}

/// Is there no room for what was asked for?
fn is_full(error: Errno) -> bool {
    matches!(error.errno, ENOSPC | EDQUOT)
}

fn is_read_only(flags: u32) -> bool {
    flags & (O_ACCMODE | O_TRUNC | O_DIRECT) == 0
}

/// Makes a call, again as long as the server sends it back because too many wait.
fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(error) if error.errno == RESTART => std::thread::sleep(AGAIN_PAUSE),
            outcome => return outcome,
        }
    }
}

type Reply<R> = Result<(<R as Row>::Reply, usize), Errno>;

/// Makes a call whose payload is preceded by credentials.
fn with_cred<T>(cred: &Cred, payload: [&[u8]; 2], call: impl FnOnce(&[&[u8]]) -> T) -> T {
    let mut encoded = [0; CRED_SIZE_MAX];
    let len = cred.encode(&mut encoded);
    call(&[&encoded[..len], payload[0], payload[1]])
}

/// How long the first of two names in a payload is.
fn name_len(name: &[u8]) -> Result<u16, Errno> {
    u16::try_from(name.len()).map_err(|_| Errno::new(ENAMETOOLONG))
}

/// The pages on which `len` bytes from `offset` on are.
fn page_range(offset: u64, len: usize) -> Range<u64> {
    offset / PAGE_SIZE..offset.saturating_add(len as u64).div_ceil(PAGE_SIZE)
}

/// A length as a row has it. Requests are bounded far below 4 GiB by the protocol above.
fn size(buffer: &[u8]) -> u32 {
    u32::try_from(buffer.len()).unwrap_or(u32::MAX)
}

/// A count in a reply, as a length of what was asked for.
fn count(reply: u64, most: usize) -> Result<usize, Errno> {
    usize::try_from(reply).ok().filter(|count| *count <= most).ok_or(Errno::new(EPROTO))
}

impl<P: Sendrec + Send + Sync + 'static> Agent for VosAgent<P> {
    fn lookup(&self, caller: Caller, entry: Entry<'_>) -> Result<Looked, Errno> {
        if let Some(looked) = self.lookup_at_once(caller, entry) {
            return looked;
        }
        let concerned = self.soles.concerned();
        let (asked, size_asked) = (self.asked(), self.pages.asked());
        let row = Lookup { parent: entry.parent };
        let (leased, attr): (Leased, Attr) =
            self.call_for(&cred::with_groups(caller), &row, [entry.name, &[]])?;
        if leased.name != 0 {
            self.memory.keep_name(asked, (entry.parent, entry.name), leased, attr.ino);
        }
        if attr.ino == 0 {
            return Err(Errno::new(ENOENT));
        }
        if concerned.contains(&attr.ino) {
            // The server may not have known all.
            let told = self.getattr(caller, attr.ino, None)?;
            return Ok(Looked { told: Some(told), lent: Duration::ZERO });
        }
        self.pages.tell_size(attr.ino, attr.size, size_asked);
        self.memory.keep_attr(asked, leased.attr, attr);
        let (lent, _) = self.memory.lend(&attr, false);
        Ok(Looked { told: Some(Told { attr, lent }), lent: Duration::ZERO })
    }

    fn settle(&self) {
        if self.estate.predecessors() > 0 {
            self.settle_now();
        }
    }

    fn resume(&self) {
        self.resume_now();
    }

    fn answers_open(&self, caller: Caller) {
        self.estate.calls.tell(Key::request(caller.request));
    }

    fn has_answered(&self, caller: Caller) {
        self.estate.calls.end(Key::request(caller.request));
        self.soles.has_answered(caller.request);
    }

    fn has_told(&self, caller: Caller) {
        self.memory.told(caller.pid);
    }

    fn getattr(&self, caller: Caller, ino: u64, fh: Option<u64>) -> Result<Told, Errno> {
        if self.memory.has_lapsed() {
            // Others may have changed what its pages hold; it asks for attributes before it reads them.
            self.pages.lose_all(ino);
        }
        self.write_back(ino);
        if let Some(told) = self.getattr_at_once(ino) {
            return Ok(told);
        }
        let (asked, size_asked) = (self.asked(), self.pages.asked());
        let row = Getattr { ino, fh: fh.map_or(0, |fh| self.promised.asked(fh)) };
        let (leased, attr): (Leased, Attr) =
            self.call_for(&cred::plain(caller), &row, [&[], &[]])?;
        self.pages.tell_size(ino, attr.size, size_asked);
        self.memory.keep_attr(asked, leased.attr, attr);
        self.soles.know(attr, || self.memory.is_as_asked(ino, asked));
        Ok(self.told(attr))
    }

    fn setattr(
        &self,
        caller: Caller,
        ino: u64,
        fh: Option<u64>,
        set: &SetAttr,
    ) -> Result<Attr, Errno> {
        if self.soles.has_done(caller.request).is_some() {
            return self.getattr(caller, ino, None).map(|told| told.attr);
        }
        if set.valid & (set::MODE | set::UID | set::GID) != 0 && self.promised.has(ino) {
            self.keep_open(ino)?;
        }
        if !self.is_resumed(caller)
            && let Some(attr) = self.put_off_set(false, caller, ino, set)
        {
            return Ok(attr);
        }
        self.write_back(ino);
        let change = self.change_rights(ino);
        // What was put off in between; from now on nothing is.
        self.write_back(ino);
        if set.valid & (set::MODE | set::UID | set::GID) != 0 {
            self.keep_open(ino)?;
        }
        if set.valid & set::MODE != 0 && set.mode & SEARCH_BITS != SEARCH_BITS {
            self.memory.wait_for_names(&[ino]);
        }
        self.pages.set_size(ino);
        let row = Setattr { ino, fh: fh.map_or(0, |fh| self.promised.asked(fh)) };
        let (leased, attr): (Leased, Attr) =
            self.call_for(&cred::with_groups(caller), &row, [&set.bytes(), &[]])?;
        self.pages.has_size(ino, attr.size);
        self.soles.know(attr, || change.is_all_of(ino));
        change.keep_attr(leased.attr, attr);
        Ok(attr)
    }

    fn readlink(&self, caller: Caller, ino: u64) -> Result<Vec<u8>, Errno> {
        let _reading = self.memory.read(ino);
        let mut target = vec![0; TARGET_MAX];
        let (_, len) =
            self.call(&cred::plain(caller), &Readlink { ino }, [&[], &[]], &mut target)?;
        target.truncate(len);
        Ok(target)
    }

    fn symlink(&self, caller: Caller, entry: Entry<'_>, target: &[u8]) -> Result<Attr, Errno> {
        let row = Symlink { parent: entry.parent, name_len: name_len(entry.name)? };
        self.make(caller, entry, &row, [entry.name, target])
    }

    fn mknod(
        &self,
        caller: Caller,
        entry: Entry<'_>,
        new: NewMode,
        rdev: u32,
    ) -> Result<Attr, Errno> {
        let row = Mknod { parent: entry.parent, mode: new.mode, umask: new.umask, rdev };
        self.make(caller, entry, &row, [entry.name, &[]])
    }

    fn mkdir(&self, caller: Caller, entry: Entry<'_>, new: NewMode) -> Result<Attr, Errno> {
        let row = Mkdir { parent: entry.parent, mode: new.mode, umask: new.umask };
        self.make(caller, entry, &row, [entry.name, &[]])
    }

    fn unlink(&self, caller: Caller, entry: Entry<'_>) -> Result<(), Errno> {
        self.remove(caller, entry, |forgotten| Unlink { parent: entry.parent, forgotten })
    }

    fn rmdir(&self, caller: Caller, entry: Entry<'_>) -> Result<(), Errno> {
        self.remove(caller, entry, |forgotten| Rmdir { parent: entry.parent, forgotten })
    }

    fn rename(
        &self,
        caller: Caller,
        from: Entry<'_>,
        to: Entry<'_>,
        flags: u32,
    ) -> Result<(), Errno> {
        let is_new = self.memory.is_missing(to.parent, to.name);
        let change = self.change(from.parent);
        let other = (from.parent != to.parent).then(|| self.change(to.parent));
        let moved = self.memory.change_name(from.parent, from.name);
        let forgotten = self.change(moved);
        self.write_back_named(moved);
        let new_forgotten = self.change(self.memory.change_name(to.parent, to.name));
        if !is_new {
            self.write_back_named(new_forgotten.ino());
        }
        self.keep_open(new_forgotten.ino())?;
        self.memory.change_names(&[from.parent, to.parent], caller.pid);
        let row = Rename {
            parent: from.parent,
            new_parent: to.parent,
            forgotten: forgotten.ino(),
            new_forgotten: new_forgotten.ino(),
            name_len: name_len(from.name)?,
            flags,
        };
        let mut answer = [0; Attr::SIZE + 2 * Parent::SIZE];
        let (renamed, len) =
            self.call(&cred::with_groups(caller), &row, [from.name, to.name], &mut answer)?;
        let mut answer = &answer[..len.min(answer.len())];
        let Renamed { ino, attr: may_keep, name, owner, new_name, new_owner } = renamed;
        if ino != 0 {
            let leased = Leased { name: new_name, attr: may_keep, owner: new_owner };
            let old = (from.name, Leased { name, attr: 0, owner }, 0);
            let new = (to.name, leased, ino);
            if let Some(other) = &other {
                change.keep_names(&[old]);
                other.keep_names(&[new]);
            } else {
                change.keep_names(&[old, new]);
            }
        }
        // Whose attributes were not known changes for the first time here.
        if may_keep != 0
            && let Some(attr) = Attr::get(answer)
        {
            forgotten.keep_attr(may_keep, attr);
            answer = &answer[Attr::SIZE..];
        }
        if name != 0 {
            change.keep_parent(Parent::get(answer));
            answer = answer.get(Parent::SIZE..).unwrap_or_default();
        }
        if let Some(other) = other {
            other.keep_parent(Parent::get(answer));
        }
        Ok(())
    }

    fn link(&self, caller: Caller, ino: u64, to: Entry<'_>) -> Result<Attr, Errno> {
        let (change, its) = (self.change_in(caller, to), self.change(ino));
        self.write_back(ino);
        let row = Link { ino, new_parent: to.parent };
        let (leased, attr, parent) =
            self.call_for_name(&cred::with_groups(caller), &row, [to.name, &[]])?;
        change.keep_name(to.name, leased, ino);
        change.keep_parent(parent);
        its.keep_attr(leased.attr, attr);
        Ok(attr)
    }

    fn open(&self, caller: Caller, ino: u64, flags: u32) -> Result<(u64, Through), Errno> {
        if let Some(fh) = self.promised.opened_for(caller.request) {
            return Ok((fh, Through::Pages));
        }
        if !self.is_resumed(caller) {
            if let Some(fh) = self.open_at_once(caller, ino, flags) {
                return Ok((fh, Through::Pages));
            }
            if let Some(fh) = self.opendir_at_once(caller, ino, flags) {
                return Ok((fh, Through::Requests));
            }
        }
        let asked = self.asked();
        let change = (flags & O_TRUNC != 0).then(|| self.change(ino));
        self.write_back(ino);
        let (opened, attr) = self.open_at_server(&cred::with_groups(caller), ino, flags)?;
        let fh = opened.fh;
        self.add_writer(OpenFile { ino, fh }, flags);
        if let Some(attr) = attr.filter(|attr| attr.ino == ino) {
            self.note_sole(opened.attr, attr, fh, || match &change {
                Some(change) => change.is_all_of(ino),
                None => self.memory.is_as_asked(ino, asked),
            });
            match &change {
                Some(change) => change.keep_attr(opened.attr, attr),
                None => self.memory.keep_attr(asked, opened.attr, attr),
            }
        }
        let is_paged = is_read_only(flags) && self.skill().reads && self.memory.has_lease(ino);
        Ok((fh, if is_paged { Through::Pages } else { Through::Requests }))
    }

    fn create(
        &self,
        caller: Caller,
        entry: Entry<'_>,
        new: NewMode,
        flags: u32,
    ) -> Result<(Attr, OpenFile), Errno> {
        let asked = self.asked();
        let is_new = flags & O_EXCL != 0 || self.memory.is_missing(entry.parent, entry.name);
        let (change, forgotten) = self.change_at(caller, entry);
        if !is_new {
            self.write_back_named(forgotten.ino());
        }
        let row = Create {
            parent: entry.parent,
            forgotten: forgotten.ino(),
            mode: new.mode,
            umask: new.umask,
            flags,
        };
        let (created, attr, parent) =
            self.call_for_name(&cred::with_groups(caller), &row, [entry.name, &[]])?;
        let Created { fh, name, attr: may_keep, owner } = created;
        let leased = Leased { name, attr: may_keep, owner };
        change.keep_name(entry.name, leased, attr.ino);
        change.keep_parent(parent);
        let file = OpenFile { ino: attr.ino, fh };
        self.add_writer(file, flags);
        self.note_sole(leased.attr, attr, fh, || {
            forgotten.is_all_of(attr.ino) || self.memory.is_as_asked(attr.ino, asked)
        });
        // Unless it was there, and has been changed.
        self.memory.keep_attr(asked, leased.attr, attr);
        Ok((attr, file))
    }

    fn tmpfile(
        &self,
        caller: Caller,
        parent: u64,
        new: NewMode,
        flags: u32,
    ) -> Result<(Attr, OpenFile), Errno> {
        let row = Tmpfile { parent, mode: new.mode, umask: new.umask, flags };
        let (opened, attr): (_, Attr) =
            self.call_for(&cred::with_groups(caller), &row, [&[], &[]])?;
        let file = OpenFile { ino: attr.ino, fh: opened.fh };
        self.add_writer(file, flags);
        Ok((attr, file))
    }

    fn read(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        let file = self.at_server(file)?;
        self.write_back(file.ino);
        let _reading = self.memory.read(file.ino);
        self.read_now(caller, file, offset, buffer)
    }

    fn read_pages(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        // A kernel that also has pages without having read them asks for attributes before it uses any.
        if !self.pages.is_attached() || !self.skill().maps || buffer.is_empty() {
            return self.read(caller, file, offset, buffer);
        }
        let reading = self.pages.reading(file.ino, page_range(offset, buffer.len()));
        // Its kernel may be asked for them at any time. Who becomes the sole writer after this sees that it is being read, or was.
        self.end_sole(file.ino);
        let _until = self.memory.until(file.ino);
        // The server need not have opened it for that.
        let mut at_server = OpenFile { fh: self.promised.peek(file.fh)?, ..file };
        let mut looking = self.memory.read(file.ino);
        loop {
            self.memory.use_it();
            if !self.pages.has_session() {
                self.wish.want();
            }
            let how = reading.how()?;
            let (is_exclusive, waits) = match how {
                How::Leased { is_exclusive, waits: true } => (is_exclusive, pages::ALWAYS),
                How::Leased { is_exclusive, waits: false } => (is_exclusive, pages::NEVER),
                How::AsTheyAre => (false, pages::OWN),
                // The kernel reads the page that it needs by itself.
                How::Refused => return Err(Errno::new(EAGAIN)),
            };
            match self.read_leased(caller, at_server, offset, buffer, (is_exclusive, waits)) {
                Ok((Paged { kept: pages::KEPT, atime }, len))
                    if how == How::AsTheyAre || reading.keep() =>
                {
                    looking.tell(atime);
                    return Ok(len);
                }
                Ok((Paged { kept: pages::KEPT, .. }, _)) => {}
                Ok((Paged { kept: pages::TAKEN, .. }, _)) => {
                    reading.refuse();
                    return Err(Errno::new(EAGAIN));
                }
                // The session is over, of which another thread is about to hear; or it is to be read again.
                Ok(_) => std::thread::sleep(AGAIN_PAUSE),
                // The lease has gone by which it was opened here.
                Err(error) if error.errno == EBADF && at_server.fh == 0 => {
                    at_server = self.at_server(file)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn write(
        &self,
        caller: Caller,
        file: OpenFile,
        place: Place,
        data: &[u8],
    ) -> Result<usize, Errno> {
        if let Some(bytes) = self.soles.has_done(caller.request) {
            return count(bytes, data.len());
        }
        let file = self.at_server(file)?;
        if let Place::Page(offset) = place
            && self.skill().maps
        {
            return self.write_pages(caller, file, offset, data);
        }
        let is_resumed = self.is_resumed(caller);
        if !is_resumed && let Some(outcome) = self.put_off_write(false, caller, file, place, data) {
            return outcome;
        }
        let _change = self.change(file.ino);
        self.write_back(file.ino);
        if !is_resumed {
            self.soles.tell(file.fh)?;
        }
        let by = cred::plain(caller);
        let offset = match place {
            Place::Offset(offset) | Place::Page(offset) => offset | WRITE_AT,
            Place::End => WRITE_APPEND,
        };
        let written = if data.len() <= CALL_SIZE_MAX {
            self.order(&by, &Write { fh: file.fh, ino: file.ino, offset }, [data, &[]])?
        } else {
            self.with_room(by.key, || self.write_large(&by, file, offset, data))?
        };
        if let Place::Offset(offset) = place {
            self.pages.has_written(file.ino, offset.saturating_add(written.count));
        }
        count(written.count, data.len())
    }

    fn flush(&self, caller: Caller, file: OpenFile, owner: u64) -> Result<(), Errno> {
        if self.flush_at_once(file, owner) {
            return Ok(());
        }
        self.write_back(file.ino);
        let outcome = self.soles.tell(file.fh);
        if !self.owners.may_hold(file.ino, owner) {
            return outcome;
        }
        // Another thread of the same program that locks at the same moment adds it again when it has the lock.
        let removed = self.owners.remove(file.ino, owner);
        let flushed = self.at_server(file).and_then(|at_server| {
            let row = Flush { fh: at_server.fh, ino: file.ino, owner };
            self.order(&cred::plain(caller), &row, [&[], &[]])
        });
        if flushed.is_err() {
            self.owners.add(file.ino, owner, file.fh);
        }
        self.owners.forget(removed);
        flushed.and(outcome)
    }

    fn release(&self, caller: Caller, file: OpenFile) -> Result<(), Errno> {
        self.end_sole_of(file);
        self.owners.close(file.fh);
        self.pages.remove_writer(file.ino, file.fh);
        self.close(caller, file)
    }

    fn fsync(&self, caller: Caller, file: OpenFile, datasync: bool) -> Result<(), Errno> {
        let file = self.at_server(file)?;
        let stored = self.soles.write_back(&self.memory, file.ino, true, &self.sending());
        self.soles.tell(file.fh)?;
        if let Some(outcome) = stored {
            return outcome;
        }
        let row = Fsync { fh: file.fh, ino: file.ino, datasync: datasync.into() };
        self.order(&cred::plain(caller), &row, [&[], &[]])
    }

    fn readdir(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        size: u32,
        visit: &mut VisitEntry<'_>,
    ) -> Result<(), Errno> {
        if self.readdir_at_once(file, offset, visit) {
            return Ok(());
        }
        let file = self.at_server(file)?;
        let asked = self.asked();
        let reading = self.memory.read(file.ino);
        // An entry is longer in the kernel's format than in the server's. From the start on perhaps all can be remembered.
        let size = if offset == 0 { (size as usize).max(LISTING_SIZE_MAX) } else { size as usize };
        let size = size.min(CALL_SIZE_MAX);
        let mut entries = vec![0; size];
        let row = Readdir { fh: file.fh, ino: file.ino, offset, size: self::size(&entries) };
        let (listed, len) = self.call(&cred::plain(caller), &row, [&[], &[]], &mut entries)?;
        let entries = &entries[..len.min(size)];
        visit_entries(entries, visit)?;
        drop(reading);
        if let (0, Listed { is_end: 1, kept: 1 }) = (offset, listed)
            && len <= LISTING_SIZE_MAX
        {
            self.memory.keep_listing(asked, file.ino, entries);
        }
        Ok(())
    }

    fn statfs(&self, caller: Caller, ino: u64) -> Result<FsStats, Errno> {
        self.call_for(&cred::plain(caller), &Statfs { ino }, [&[], &[]]).map(|(_, stats)| stats)
    }

    fn access(&self, caller: Caller, ino: u64, mask: u32) -> Result<(), Errno> {
        self.write_back(ino);
        self.order(&cred::with_groups(caller), &Access { ino, mask }, [&[], &[]])
    }

    fn getlk(&self, caller: Caller, file: OpenFile, lock: Lock) -> Result<Lock, Errno> {
        let row = Getlk { ino: file.ino, fh: self.at_server(file)?.fh };
        self.call_for(&cred::plain(caller), &row, [&lock.bytes(), &[]]).map(|(_, lock)| lock)
    }

    fn setlk(
        &self,
        caller: Caller,
        file: OpenFile,
        lock: Lock,
        kind: LockKind,
        wait: Option<&Interrupt>,
    ) -> Result<(), Errno> {
        let by = cred::plain(caller);
        let flock = u8::from(kind == LockKind::Flock);
        let note_owner = || {
            if kind == LockKind::Record && lock.kind != F_UNLCK {
                self.owners.add(file.ino, lock.owner, file.fh);
            }
        };
        note_owner();
        let fh = self.at_server(file)?.fh;
        if lock.kind != F_UNLCK {
            self.closing.lock(fh);
        }
        let row = Setlk { ino: file.ino, fh, wait: 0, flock };
        let payload = [&lock.bytes()[..], &[]];
        // Most locks are free: only those that are not take one of the places of those that wait.
        match (self.order(&by, &row, payload), wait) {
            (Err(error), Some(interrupt)) if error.errno == EAGAIN && lock.kind != F_UNLCK => {
                let _place = self.place_to_wait()?;
                let row = Setlk { wait: 1, ..row };
                with_cred(&by.cred, payload, |send| {
                    calls::call_until(&self.port, Endpoint::VFS, &row, send, &mut [], interrupt)
                })
                .map(drop)
            }
            (outcome, _) => outcome,
        }
        .inspect(|()| note_owner())
    }

    fn interrupt(&self, interrupt: &Interrupt) {
        self.port.interrupt(interrupt);
    }

    fn getxattr(
        &self,
        caller: Caller,
        ino: u64,
        name: &[u8],
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        if let Some(error) = self.getxattr_at_once(ino, name) {
            return Err(error);
        }
        self.write_back(ino);
        let row = Getxattr { ino, size: size(buffer) };
        let (reply, len) = self.call(&cred::with_groups(caller), &row, [name, &[]], buffer)?;
        value_length(reply.count, len, buffer)
    }

    fn setxattr(
        &self,
        caller: Caller,
        ino: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        let _change = self.change_attribute(ino, name)?;
        let row = Setxattr { ino, name_len: name_len(name)?, flags };
        self.order(&cred::with_groups(caller), &row, [name, value])
    }

    fn listxattr(&self, caller: Caller, ino: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let row = Listxattr { ino, size: size(buffer) };
        let (reply, len) = self.call(&cred::with_groups(caller), &row, [&[], &[]], buffer)?;
        value_length(reply.count, len, buffer)
    }

    fn removexattr(&self, caller: Caller, ino: u64, name: &[u8]) -> Result<(), Errno> {
        let _change = self.change_attribute(ino, name)?;
        self.order(&cred::with_groups(caller), &Removexattr { ino }, [name, &[]])
    }

    fn fallocate(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<(), Errno> {
        let file = self.at_server(file)?;
        let _change = self.change(file.ino);
        self.write_back(file.ino);
        let row = Fallocate { fh: file.fh, ino: file.ino, offset, length, mode };
        self.order(&cred::plain(caller), &row, [&[], &[]])?;
        if mode & FALLOC_FL_KEEP_SIZE == 0 {
            self.pages.has_written(file.ino, offset.saturating_add(length));
        }
        Ok(())
    }

    fn copy_range(
        &self,
        caller: Caller,
        from: (OpenFile, u64),
        to: (OpenFile, u64),
        length: u64,
    ) -> Result<u32, Errno> {
        let from = (self.at_server(from.0)?, from.1);
        let to = (self.at_server(to.0)?, to.1);
        let _changes = (self.memory.read(from.0.ino), self.change(to.0.ino));
        self.write_back(from.0.ino);
        self.write_back(to.0.ino);
        let by = cred::plain(caller);
        let most = u32::try_from(length).unwrap_or(u32::MAX).min(COPY_MAX);
        let (mut copied, mut is_resumed) = (0, false);
        if let Some(progress) = self.estate.calls.left_progress(by.key) {
            // What a predecessor's last call has copied is behind that.
            copied = u32::try_from(progress).unwrap_or(0).min(most);
            is_resumed = true;
        }
        while copied < most {
            if copied > 0 && !std::mem::take(&mut is_resumed) {
                self.estate.calls.progress(by.key, copied.into());
            }
            let offsets =
                Offsets { from: from.1 + u64::from(copied), to: to.1 + u64::from(copied) };
            let row = CopyRange {
                fh: from.0.fh,
                ino: from.0.ino,
                to_fh: to.0.fh,
                to_ino: to.0.ino,
                length: most - copied,
            };
            let count = match self.order(&by, &row, [&offsets.bytes(), &[]]) {
                Ok(reply) => reply.count,
                Err(error) if copied == 0 => return Err(error),
                // What is copied is copied; the error comes with the next attempt.
                Err(_) => break,
            };
            let count = u32::try_from(count).ok().filter(|count| *count <= most - copied);
            match count.ok_or(Errno::new(EPROTO))? {
                0 => break,
                count => copied += count,
            }
        }
        self.pages.has_written(to.0.ino, to.1.saturating_add(copied.into()));
        Ok(copied)
    }

    fn seek(&self, caller: Caller, file: OpenFile, offset: u64, whence: u32) -> Result<u64, Errno> {
        let file = self.at_server(file)?;
        self.write_back(file.ino);
        let row = Seek { fh: file.fh, ino: file.ino, offset, whence };
        self.order(&cred::plain(caller), &row, [&[], &[]]).map(|reply| reply.count)
    }

    fn lookup_at_once(&self, caller: Caller, entry: Entry<'_>) -> Option<Result<Looked, Errno>> {
        self.memory.use_it();
        let found = self.memory.name(entry.parent, entry.name, caller.uid)?;
        Some(self.remembered(caller, entry, found))
    }

    fn getattr_at_once(&self, ino: u64) -> Option<Told> {
        self.memory.use_it();
        Some(self.told(self.memory.attr(ino)?))
    }

    fn open_at_once(&self, caller: Caller, ino: u64, flags: u32) -> Option<u64> {
        if !self.skill().reads || !is_read_only(flags) || flags & (O_NOATIME | FMODE_EXEC) != 0 {
            return None;
        }
        if !self.memory.may_open(ino, caller.uid) {
            return None;
        }
        let fh = self.promised.open(ino, flags, cred::plain(caller).cred, caller.request)?;
        // What was so a moment ago may have gone.
        if self.memory.may_open(ino, caller.uid) {
            return Some(fh);
        }
        self.withdraw(caller, OpenFile { ino, fh });
        None
    }

    fn opendir_at_once(&self, caller: Caller, ino: u64, flags: u32) -> Option<u64> {
        if !is_read_only(flags) || flags & O_NOATIME != 0 {
            return None;
        }
        if !self.memory.may_open_directory(ino, caller.uid) {
            return None;
        }
        let fh = self.promised.open(ino, flags, cred::plain(caller).cred, caller.request)?;
        // As above.
        if self.memory.may_open_directory(ino, caller.uid) {
            return Some(fh);
        }
        self.withdraw(caller, OpenFile { ino, fh });
        None
    }

    fn readdir_at_once(&self, file: OpenFile, offset: u64, visit: &mut VisitEntry<'_>) -> bool {
        let listing = self.memory.listing(file.ino);
        let rest = listing.as_ref().and_then(|entries| entries_behind(entries, offset));
        rest.is_some_and(|rest| visit_entries(rest, visit).is_ok())
    }

    fn readdir_looked_at_once(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        visit: &mut VisitLooked<'_>,
    ) -> bool {
        self.memory.use_it();
        let Some(listing) = self.memory.listing(file.ino) else { return false };
        let Some(rest) = entries_behind(&listing, offset) else { return false };
        // Before it is asked what is there: who takes that away from now on waits for who is told.
        let may_lend = caller.pid != 0 && status::proc_is_ours();
        let lent = if rest.is_empty() {
            self.memory.has_listed(caller.pid);
            Duration::ZERO
        } else if may_lend {
            self.memory.lend_listing(file.ino, &listing, caller.pid)
        } else {
            Duration::ZERO
        };
        let looked = &mut |entry: DirEntry, name: &[u8]| {
            let attr =
                if matches!(name, b"." | b"..") { None } else { self.memory.attr(entry.ino) };
            let looked = attr.map(|attr| {
                let (attr_lent, is_repeated) = self.memory.lend(&attr, false);
                let told = Some(Told { attr, lent: attr_lent });
                Looked { told, lent: if is_repeated { lent } else { Duration::ZERO } }
            });
            visit(entry, name, looked)
        };
        let is_done = visit_entries(rest, looked).is_ok();
        if !is_done {
            self.memory.told(caller.pid);
        }
        is_done
    }

    fn setattr_at_once(&self, caller: Caller, ino: u64, set: &SetAttr) -> Option<Attr> {
        if set.valid & (set::MODE | set::UID | set::GID) != 0 && self.promised.has(ino) {
            return None;
        }
        self.put_off_set(true, caller, ino, set)
    }

    fn write_at_once(
        &self,
        caller: Caller,
        file: OpenFile,
        place: Place,
        data: &[u8],
    ) -> Option<Result<usize, Errno>> {
        self.put_off_write(true, caller, file, place, data)
    }

    fn getxattr_at_once(&self, ino: u64, name: &[u8]) -> Option<Errno> {
        let is_plain = || self.memory.is_plain(ino) || self.soles.is_plain(&self.memory, ino);
        (MARKED.contains(&name) && is_plain()).then_some(Errno::new(ENODATA))
    }

    fn flush_at_once(&self, file: OpenFile, owner: u64) -> bool {
        !self.soles.concerns(file.ino)
            && !self.soles.has_error(file.fh)
            && !self.owners.may_hold(file.ino, owner)
    }

    fn release_at_once(&self, file: OpenFile) -> bool {
        if self.promised.close_unknown(file.fh) {
            self.owners.close(file.fh);
            return true;
        }
        if is_promised(file.fh)
            || self.closing.is_locked(file.fh)
            || !self.soles.remove_at_once(file.ino, file.fh)
        {
            return false;
        }
        self.owners.close(file.fh);
        self.pages.remove_writer(file.ino, file.fh);
        self.closing.close(Closed { fh: file.fh, ino: file.ino })
    }

    fn follow_up(&self) {
        while self.closing.wait() {
            self.tell_all_closed(0);
            // What was put off a moment ago as well: what is put off after this asks for the next time itself.
            self.write_back_all();
        }
    }

    fn forgotten(&self, ino: u64) {
        self.pages.is_forgotten(ino);
    }

    fn attach(&self, kernel: Arc<dyn Kernel>, skill: Skill) {
        self.memory.attach(kernel.clone());
        self.pages.attach(kernel);
        // A mount has one kernel.
        self.skill.set(skill).ok();
    }

    fn run(&self) {
        let redeem = |promise: &Promise| self.redeem(promise);
        let write_back = |ino: u64| self.end_sole(ino);
        let files = Files { promised: &self.promised, redeem: &redeem, write_back: &write_back };
        let session = &self.estate.head().session;
        let is_settled = &self.is_settled;
        let kept = Kept { memory: &self.memory, pages: &self.pages, files, session, is_settled };
        leases::keep(&self.port, kept, &self.wish);
    }

    fn give_back(&self) {
        self.pages.give_back(|recall| {
            let Recall { session, ino, ref pages } = *recall;
            let (first, count) = (pages.start, pages.end - pages.start);
            // Process 0: the agent itself.
            self.order(&By::agent(), &LetGo { session, ino, first, count }, [&[], &[]])
        });
    }

    fn stop(&self) {
        self.wish.end();
        self.pages.end();
        self.closing.end();
    }
}

/// Length of an xattr answer: told when only that was asked for, else that of the payload.
fn value_length(told: u64, len: usize, buffer: &[u8]) -> Result<usize, Errno> {
    if buffer.is_empty() { count(told, usize::MAX) } else { count(len as u64, buffer.len()) }
}

/// Visits the entries of a `Readdir` payload until `visit` breaks.
fn visit_entries(mut rest: &[u8], visit: &mut VisitEntry<'_>) -> Result<(), Errno> {
    while !rest.is_empty() {
        let (entry, name, tail) = split_entry(rest).ok_or(Errno::new(EPROTO))?;
        if visit(entry, name).is_break() {
            break;
        }
        rest = tail;
    }
    Ok(())
}

/// What is behind the entry with cookie `offset`; `None`: there is none.
fn entries_behind(mut entries: &[u8], offset: u64) -> Option<&[u8]> {
    let mut at = 0;
    while at != offset {
        let (entry, _, tail) = split_entry(entries)?;
        (at, entries) = (entry.next, tail);
    }
    Some(entries)
}

/// The first entry of a `Readdir` payload, its name, and the rest; `None` if it is malformed.
fn split_entry(payload: &[u8]) -> Option<(DirEntry, &[u8], &[u8])> {
    let entry = DirEntry::get(payload)?;
    let (name, rest) = payload[DirEntry::SIZE..].split_at_checked(entry.name_len.into())?;
    (!name.is_empty()).then_some((entry, name, rest))
}

#[cfg(test)]
mod tests;
