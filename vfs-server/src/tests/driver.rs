//! A small host: a store in memory, a clock, and calls by path as one of several programs.

use crate::VfsServer;
use crate::inode::time;
use crate::tests::fsck;
use calls::Row;
use calls::vfs::{
    Access, Attr, CopyRange, Count, Create, Created, DirEntry, Fallocate, Flush, Fsync, Getattr,
    Getlk, Getxattr, Link, Listxattr, Lock, Lookup, Mkdir, Mknod, Offsets, Open, Opened, ROOT_INO,
    Read, Readdir, Readlink, Release, Removexattr, Rename, Rmdir, Seek, SetAttr, Setattr, Setlk,
    Setxattr, Symlink, Tmpfile, Unlink, Write, set,
};
use calls::wire::Wire;
use dvk::server::{Answers, Call, Context, Gone, Server};
use dvk::store::{MemoryStore, Store, StoreError};
use m3ipc::{CallId, Cred, Endpoint, IpcError, Message, NodeId, Tag};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// What a call gives: a value, or the errno.
pub(crate) type Got<T> = Result<T, i32>;

/// A file agent and the program it speaks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub endpoint: Endpoint,
    pub cred: Cred,
}

const fn client(node: u16, uid: u32, gid: u32) -> Client {
    Client { endpoint: Endpoint::new(NodeId(node), 1, 1), cred: Cred::new(100 + uid, uid, gid) }
}

pub(crate) const ROOT: Client = client(1, 0, 0);
pub(crate) const USER: Client = client(1, 1000, 100);
/// Another user of the same group, on another node.
pub(crate) const MATE: Client = client(2, 1001, 100);
/// A user of another group.
pub(crate) const ALIEN: Client = client(3, 1002, 200);

/// The map and the blobs of a store apart, so that a crash can lose the one and keep the other;
/// and a disk that can be full.
pub(crate) struct TestStore {
    pub map: MemoryStore,
    pub blobs: Box<dyn Store>,
    /// Free bytes to claim.
    pub free: Option<u64>,
    /// What every change of a blob's bytes fails with, and how many succeed before.
    pub broken: Option<StoreError>,
    pub breaks_after: u32,
    /// A blob that cannot be read.
    pub unreadable: Option<u64>,
    pub synced: Vec<u64>,
    /// Blobs that are there, and those that go when the round is committed.
    pub present: BTreeSet<u64>,
    pub removed: Vec<u64>,
    /// Rounds are not committed.
    pub crashes: bool,
    /// Blobs that were made in such: the map may not know of them.
    pub lost: BTreeSet<u64>,
    /// Zeros are holes.
    pub is_sparse: bool,
}

/// Bytes of a hole, at least.
const HOLE: u64 = 16;

impl TestStore {
    fn note(&mut self, blob: u64) {
        if self.present.insert(blob) && self.crashes {
            self.lost.insert(blob);
        } else if !self.crashes {
            self.lost.remove(&blob);
        }
    }

    fn check(&mut self) -> Result<(), StoreError> {
        match self.broken {
            Some(error) if self.breaks_after == 0 => Err(error),
            Some(_) => {
                self.breaks_after -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Store for TestStore {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.map.get(key)
    }
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.map.put(key, value);
    }
    fn remove(&mut self, key: &[u8]) {
        self.map.remove(key);
    }
    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        self.map.range(from, to, visit);
    }
    fn blob_read(&self, blob: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        if self.unreadable == Some(blob) {
            return Err(StoreError::Io);
        }
        self.blobs.blob_read(blob, offset, buffer)
    }
    fn blob_write(&mut self, blob: u64, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.check()?;
        self.note(blob);
        self.blobs.blob_write(blob, offset, data)
    }
    fn blob_truncate(&mut self, blob: u64, length: u64) -> Result<(), StoreError> {
        self.check()?;
        self.note(blob);
        self.blobs.blob_truncate(blob, length)
    }
    fn blob_punch(&mut self, blob: u64, offset: u64, length: u64) -> Result<(), StoreError> {
        self.check()?;
        self.blobs.blob_punch(blob, offset, length)
    }
    fn blob_seek(&self, blob: u64, offset: u64, hole: bool) -> Option<u64> {
        if !self.is_sparse {
            return self.blobs.blob_seek(blob, offset, hole);
        }
        let len = self.blobs.blob_seek(blob, 0, true).filter(|len| offset < *len)?;
        let mut at = offset;
        while at < len {
            let end = (at / HOLE * HOLE + HOLE).min(len);
            let mut data = vec![0; usize::try_from(end - at).unwrap()];
            self.blobs.blob_read(blob, at, &mut data).unwrap();
            if data.iter().all(|byte| *byte == 0) == hole {
                return Some(at);
            }
            at = end;
        }
        hole.then_some(len)
    }
    fn blob_used(&self, blob: u64) -> u64 {
        if self.removed.contains(&blob) { 0 } else { self.blobs.blob_used(blob) }
    }
    fn blob_remove(&mut self, blob: u64) {
        self.removed.push(blob);
    }
    fn blob_sync(&mut self, blob: u64) {
        self.synced.push(blob);
    }
    fn space(&self) -> (u64, u64) {
        let (total, free) = self.blobs.space();
        (total, self.free.unwrap_or(free))
    }
}

/// A server and its host.
pub(crate) struct World {
    pub store: TestStore,
    pub server: VfsServer,
    /// Nanoseconds; grows with every input.
    pub clock: u64,
    /// Did the last input ask for a sync?
    pub sync: bool,
    calls: u64,
    answers: BTreeMap<CallId, (Message, Vec<u8>)>,
    /// In the order in which they came.
    pub answered: Vec<CallId>,
}

impl World {
    pub(crate) fn new() -> World {
        World::with_blobs(Box::new(MemoryStore::default()))
    }

    /// A world whose files' bytes are elsewhere.
    pub(crate) fn with_blobs(blobs: Box<dyn Store>) -> World {
        let map = MemoryStore::default();
        let mut store = TestStore {
            map,
            blobs,
            free: None,
            broken: None,
            breaks_after: 0,
            unreadable: None,
            synced: Vec::new(),
            present: BTreeSet::new(),
            removed: Vec::new(),
            crashes: false,
            lost: BTreeSet::new(),
            is_sparse: false,
        };
        let clock = 1_000_000_000_000;
        let server = VfsServer::open(&mut store, clock).unwrap();
        World {
            store,
            server,
            clock,
            sync: false,
            calls: 0,
            answers: BTreeMap::new(),
            answered: Vec::new(),
        }
    }

    /// The server dies and comes back.
    pub(crate) fn restart(&mut self) {
        self.server = VfsServer::open(&mut self.store, self.clock).unwrap();
    }

    /// Runs `round`, and crashes before its changes of the map are committed.
    pub(crate) fn crash_in(&mut self, round: impl FnOnce(&mut World)) {
        let map = self.store.map.clone();
        self.store.crashes = true;
        round(self);
        self.store.crashes = false;
        self.store.removed.clear();
        self.store.map = map;
        self.restart();
    }

    /// Sends a message, and returns the name of the call.
    pub(crate) fn send(&mut self, client: &Client, message: Message, payload: &[u8]) -> CallId {
        self.calls += 1;
        let id = CallId { source: client.endpoint, tag: Tag::new(0, self.calls) };
        self.send_as(id, client, message, payload);
        id
    }

    /// Sends a message as call `id`, again perhaps.
    pub(crate) fn send_as(
        &mut self,
        id: CallId,
        client: &Client,
        mut message: Message,
        payload: &[u8],
    ) {
        (message.source, message.tag) = (id.source, id.tag);
        message.payload_len = payload.len().try_into().unwrap();
        let call = Call { id, cred: &client.cred, message: &message, payload };
        self.input(|server, cx| server.serve(&call, cx));
    }

    /// The answer to a call, if it has come.
    pub(crate) fn answer(&mut self, id: CallId) -> Option<Got<(Message, Vec<u8>)>> {
        let (message, payload) = self.answers.remove(&id)?;
        Some(match message.outcome() {
            Ok(Ok(())) => Ok((message, payload)),
            Ok(Err(errno)) => Err(errno.errno),
            Err(IpcError::Interrupted) => Err(m3ipc::errno::numbers::EINTR),
            Err(error) => panic!("the server answered {error:?}"),
        })
    }

    /// Makes a call that is answered at once.
    pub(crate) fn call<R: Row>(
        &mut self,
        client: &Client,
        row: &R,
        payload: &[u8],
    ) -> Got<(R::Reply, Vec<u8>)> {
        let mut message = Message::request(R::NUMBER);
        row.put(&mut message.args);
        let id = self.send(client, message, payload);
        let (message, payload) =
            self.answer(id).unwrap_or_else(|| panic!("{} was kept", R::NAME))?;
        assert_eq!(message.call, R::NUMBER);
        Ok((R::Reply::get(&message.args).unwrap(), payload))
    }

    pub(crate) fn cancel(&mut self, id: CallId) {
        self.input(|server, cx| server.cancel(id, cx));
    }

    pub(crate) fn gone(&mut self, gone: Gone) {
        self.input(|server, cx| server.gone(gone, cx));
    }

    pub(crate) fn tick(&mut self) {
        self.input(|server, cx| server.tick(cx));
    }

    /// Lets `seconds` pass, with as many ticks as the server asks for.
    pub(crate) fn pass(&mut self, seconds: u64) {
        let end = self.clock + seconds * 1_000_000_000;
        while let Some(deadline) = self.server.deadline().filter(|deadline| *deadline < end) {
            self.clock = self.clock.max(deadline);
            self.tick();
        }
        self.clock = end;
    }

    pub(crate) fn input(&mut self, input: impl FnOnce(&mut VfsServer, &mut Context<'_>)) {
        self.clock += 1000;
        let mut answers = Answers::default();
        let mut cx = Context {
            now: self.clock,
            wall: self.clock,
            entropy: self.clock,
            store: &mut self.store,
            answers: &mut answers,
        };
        input(&mut self.server, &mut cx);
        self.sync = answers.sync;
        if !self.store.crashes {
            for blob in std::mem::take(&mut self.store.removed) {
                self.store.present.remove(&blob);
                self.store.blobs.blob_remove(blob);
            }
        }
        for answer in answers.list {
            self.answered.push(answer.to);
            let before = self.answers.insert(answer.to, (answer.message, answer.payload));
            assert!(before.is_none(), "two answers to {:?}", answer.to);
        }
    }
}

/// After each test the store must make sense.
impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            fsck::check(self);
        }
    }
}

/// Calls by path. No link is followed.
impl World {
    /// The inode of the directory that `path` is in, and its last name.
    pub(crate) fn parent<'p>(&mut self, client: &Client, path: &'p str) -> Got<(u64, &'p str)> {
        let (parents, name) = path.rsplit_once('/').unwrap();
        let mut ino = ROOT_INO;
        for name in parents.split('/').filter(|name| !name.is_empty()) {
            ino = self.lookup_in(client, ino, name)?.ino;
        }
        Ok((ino, name))
    }

    pub(crate) fn lookup_in(&mut self, client: &Client, parent: u64, name: &str) -> Got<Attr> {
        self.call(client, &Lookup { parent }, name.as_bytes()).map(attr)
    }

    pub(crate) fn stat(&mut self, client: &Client, path: &str) -> Got<Attr> {
        if path == "/" {
            return self.getattr(client, ROOT_INO);
        }
        let (parent, name) = self.parent(client, path)?;
        self.lookup_in(client, parent, name)
    }

    pub(crate) fn getattr(&mut self, client: &Client, ino: u64) -> Got<Attr> {
        self.call(client, &Getattr { ino, fh: 0 }, &[]).map(attr)
    }

    pub(crate) fn mkdir(&mut self, client: &Client, path: &str, mode: u32) -> Got<Attr> {
        let (parent, name) = self.parent(client, path)?;
        self.call(client, &Mkdir { parent, mode, umask: 0 }, name.as_bytes()).map(attr)
    }

    pub(crate) fn mknod(&mut self, client: &Client, path: &str, mode: u32, rdev: u32) -> Got<Attr> {
        let (parent, name) = self.parent(client, path)?;
        self.call(client, &Mknod { parent, mode, umask: 0, rdev }, name.as_bytes()).map(attr)
    }

    pub(crate) fn symlink(&mut self, client: &Client, path: &str, target: &str) -> Got<Attr> {
        let (parent, name) = self.parent(client, path)?;
        let row = Symlink { parent, name_len: name.len().try_into().unwrap() };
        self.call(client, &row, format!("{name}{target}").as_bytes()).map(attr)
    }

    pub(crate) fn readlink(&mut self, client: &Client, path: &str) -> Got<String> {
        let ino = self.stat(client, path)?.ino;
        let (_, target) = self.call(client, &Readlink { ino }, &[])?;
        Ok(String::from_utf8(target).unwrap())
    }

    pub(crate) fn link(&mut self, client: &Client, old: &str, new: &str) -> Got<Attr> {
        let ino = self.stat(client, old)?.ino;
        self.link_ino(client, ino, new)
    }

    pub(crate) fn unlink(&mut self, client: &Client, path: &str) -> Got<()> {
        let (parent, name) = self.parent(client, path)?;
        self.call(client, &Unlink { parent, forgotten: 0 }, name.as_bytes()).map(drop)
    }

    pub(crate) fn rmdir(&mut self, client: &Client, path: &str) -> Got<()> {
        let (parent, name) = self.parent(client, path)?;
        self.call(client, &Rmdir { parent, forgotten: 0 }, name.as_bytes()).map(drop)
    }

    pub(crate) fn rename(&mut self, client: &Client, old: &str, new: &str, flags: u32) -> Got<()> {
        let (parent, old_name) = self.parent(client, old)?;
        let (new_parent, new_name) = self.parent(client, new)?;
        let name_len = old_name.len().try_into().unwrap();
        let row = Rename { parent, new_parent, forgotten: 0, new_forgotten: 0, name_len, flags };
        self.call(client, &row, format!("{old_name}{new_name}").as_bytes()).map(drop)
    }

    pub(crate) fn setattr(&mut self, client: &Client, path: &str, change: SetAttr) -> Got<Attr> {
        let ino = self.stat(client, path)?.ino;
        self.call(client, &Setattr { ino, fh: 0 }, &change.bytes()).map(attr)
    }

    pub(crate) fn chmod(&mut self, client: &Client, path: &str, mode: u32) -> Got<u32> {
        let change = SetAttr { valid: set::MODE, mode, ..SetAttr::default() };
        self.setattr(client, path, change).map(|attr| attr.mode & 0o7777)
    }

    pub(crate) fn chown(
        &mut self,
        client: &Client,
        path: &str,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Got<u32> {
        let valid = uid.map_or(0, |_| set::UID) | gid.map_or(0, |_| set::GID);
        let (uid, gid) = (uid.unwrap_or(0), gid.unwrap_or(0));
        let change = SetAttr { valid, uid, gid, ..SetAttr::default() };
        self.setattr(client, path, change).map(|attr| attr.mode & 0o7777)
    }

    pub(crate) fn truncate(&mut self, client: &Client, path: &str, size: u64) -> Got<Attr> {
        self.setattr(client, path, SetAttr { valid: set::SIZE, size, ..SetAttr::default() })
    }

    pub(crate) fn access(&mut self, client: &Client, path: &str, mask: u32) -> Got<()> {
        let ino = self.stat(client, path)?.ino;
        self.call(client, &Access { ino, mask }, &[]).map(drop)
    }

    pub(crate) fn open(&mut self, client: &Client, path: &str, flags: u32) -> Got<File> {
        let ino = self.stat(client, path)?.ino;
        self.open_ino(client, ino, flags)
    }

    pub(crate) fn open_ino(&mut self, client: &Client, ino: u64, flags: u32) -> Got<File> {
        let (Opened { fh, .. }, _) = self.call(client, &Open { ino, flags }, &[])?;
        Ok(File { fh, ino, client: *client })
    }

    pub(crate) fn create(
        &mut self,
        client: &Client,
        path: &str,
        mode: u32,
        flags: u32,
    ) -> Got<File> {
        let (parent, name) = self.parent(client, path)?;
        let row = Create { parent, forgotten: 0, mode, umask: 0, flags };
        let (Created { fh, .. }, payload) = self.call(client, &row, name.as_bytes())?;
        Ok(File { fh, ino: Attr::get(&payload).unwrap().ino, client: *client })
    }

    /// A file without a name, made in directory `path`.
    pub(crate) fn tmpfile(
        &mut self,
        client: &Client,
        path: &str,
        mode: u32,
        flags: u32,
    ) -> Got<File> {
        let parent = self.stat(client, path)?.ino;
        let row = Tmpfile { parent, mode, umask: 0, flags };
        let (Opened { fh, .. }, payload) = self.call(client, &row, &[])?;
        Ok(File { fh, ino: Attr::get(&payload).unwrap().ino, client: *client })
    }

    pub(crate) fn copy(&mut self, from: (&File, u64), to: (&File, u64), length: u32) -> Got<u64> {
        let (file, target) = (from.0, to.0);
        let row =
            CopyRange { fh: file.fh, ino: file.ino, to_fh: target.fh, to_ino: target.ino, length };
        let offsets = Offsets { from: from.1, to: to.1 };
        let (Count { count }, _) = self.call(&target.client, &row, &offsets.bytes())?;
        Ok(count)
    }

    /// Gives an inode a name.
    pub(crate) fn link_ino(&mut self, client: &Client, ino: u64, new: &str) -> Got<Attr> {
        let (new_parent, name) = self.parent(client, new)?;
        self.call(client, &Link { ino, new_parent }, name.as_bytes()).map(attr)
    }

    /// Makes or replaces a file with some content.
    pub(crate) fn put(&mut self, client: &Client, path: &str, mode: u32, data: &[u8]) -> Got<u64> {
        let file = self.create(client, path, mode, 0o1001)?;
        self.write(&file, 0, data)?;
        self.release(&file)?;
        Ok(file.ino)
    }

    /// All of a file.
    pub(crate) fn cat(&mut self, client: &Client, path: &str) -> Got<Vec<u8>> {
        let file = self.open(client, path, 0)?;
        let data = self.read(&file, 0, 1 << 20)?;
        self.release(&file)?;
        Ok(data)
    }

    /// The names in a directory, without `.` and `..`.
    pub(crate) fn ls(&mut self, client: &Client, path: &str) -> Got<Vec<String>> {
        let dir = self.open(client, path, 0o200_000)?;
        let mut names = Vec::new();
        let mut cookie = 0;
        loop {
            let batch = self.readdir(&dir, cookie, 100)?;
            let Some((last, _)) = batch.last() else { break };
            cookie = last.next;
            names.extend(
                batch
                    .into_iter()
                    .map(|(_, name)| name)
                    .filter(|name| !matches!(&name[..], "." | "..")),
            );
        }
        self.release(&dir)?;
        Ok(names)
    }

    pub(crate) fn setxattr(
        &mut self,
        client: &Client,
        path: &str,
        name: &str,
        value: &[u8],
        flags: u32,
    ) -> Got<()> {
        let ino = self.stat(client, path)?.ino;
        let row = Setxattr { ino, name_len: name.len().try_into().unwrap(), flags };
        self.call(client, &row, &[name.as_bytes(), value].concat()).map(drop)
    }

    pub(crate) fn getxattr(
        &mut self,
        client: &Client,
        path: &str,
        name: &str,
        size: u32,
    ) -> Got<(u64, Vec<u8>)> {
        let ino = self.stat(client, path)?.ino;
        let (Count { count }, value) =
            self.call(client, &Getxattr { ino, size }, name.as_bytes())?;
        Ok((count, value))
    }

    pub(crate) fn listxattr(
        &mut self,
        client: &Client,
        path: &str,
        size: u32,
    ) -> Got<(u64, Vec<u8>)> {
        let ino = self.stat(client, path)?.ino;
        let (Count { count }, value) = self.call(client, &Listxattr { ino, size }, &[])?;
        Ok((count, value))
    }

    pub(crate) fn removexattr(&mut self, client: &Client, path: &str, name: &str) -> Got<()> {
        let ino = self.stat(client, path)?.ino;
        self.call(client, &Removexattr { ino }, name.as_bytes()).map(drop)
    }
}

/// An open file and who opened it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    pub fh: u64,
    pub ino: u64,
    pub client: Client,
}

impl World {
    pub(crate) fn read(&mut self, file: &File, offset: u64, size: u32) -> Got<Vec<u8>> {
        let row = Read { fh: file.fh, ino: file.ino, offset, size };
        self.call(&file.client, &row, &[]).map(|(_, data)| data)
    }

    pub(crate) fn write(&mut self, file: &File, offset: u64, data: &[u8]) -> Got<u64> {
        let row = Write { fh: file.fh, ino: file.ino, offset };
        self.call(&file.client, &row, data).map(|(count, _)| count.count)
    }

    pub(crate) fn fstat(&mut self, file: &File) -> Got<Attr> {
        self.call(&file.client, &Getattr { ino: file.ino, fh: file.fh }, &[]).map(attr)
    }

    pub(crate) fn ftruncate(&mut self, file: &File, size: u64) -> Got<Attr> {
        let change = SetAttr { valid: set::SIZE, size, ..SetAttr::default() };
        self.call(&file.client, &Setattr { ino: file.ino, fh: file.fh }, &change.bytes()).map(attr)
    }

    pub(crate) fn fallocate(
        &mut self,
        file: &File,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Got<()> {
        let row = Fallocate { fh: file.fh, ino: file.ino, offset, length, mode };
        self.call(&file.client, &row, &[]).map(drop)
    }

    pub(crate) fn seek(&mut self, file: &File, offset: u64, whence: u32) -> Got<u64> {
        let row = Seek { fh: file.fh, ino: file.ino, offset, whence };
        self.call(&file.client, &row, &[]).map(|(count, _)| count.count)
    }

    pub(crate) fn fsync(&mut self, file: &File) -> Got<()> {
        let row = Fsync { fh: file.fh, ino: file.ino, datasync: 0 };
        self.call(&file.client, &row, &[]).map(drop)
    }

    pub(crate) fn flush(&mut self, file: &File, owner: u64) -> Got<()> {
        self.call(&file.client, &Flush { fh: file.fh, ino: file.ino, owner }, &[]).map(drop)
    }

    pub(crate) fn release(&mut self, file: &File) -> Got<()> {
        self.call(&file.client, &Release { fh: file.fh, ino: file.ino }, &[]).map(drop)
    }

    /// Entries behind a cookie, in at most `size` bytes.
    pub(crate) fn readdir(
        &mut self,
        dir: &File,
        offset: u64,
        size: u32,
    ) -> Got<Vec<(DirEntry, String)>> {
        let row = Readdir { fh: dir.fh, ino: dir.ino, offset, size };
        let (_, payload) = self.call(&dir.client, &row, &[])?;
        let mut rest = &payload[..];
        let mut entries = Vec::new();
        while let Some(entry) = DirEntry::get(rest) {
            let (name, tail) = rest[DirEntry::SIZE..].split_at(entry.name_len.into());
            entries.push((entry, String::from_utf8(name.to_vec()).unwrap()));
            rest = tail;
        }
        assert!(rest.is_empty() && payload.len() <= size as usize);
        Ok(entries)
    }

    pub(crate) fn getlk(&mut self, file: &File, lock: Lock) -> Got<Lock> {
        let row = Getlk { ino: file.ino, fh: file.fh };
        self.call(&file.client, &row, &lock.bytes())
            .map(|(_, payload)| Lock::get(&payload).unwrap())
    }

    /// F_SETLK, or flock(2) with LOCK_NB.
    pub(crate) fn lock(&mut self, file: &File, lock: Lock, flock: u8) -> Got<()> {
        let row = Setlk { ino: file.ino, fh: file.fh, wait: 0, flock };
        self.call(&file.client, &row, &lock.bytes()).map(drop)
    }

    /// F_SETLKW, or flock(2).
    pub(crate) fn lock_wait(&mut self, file: &File, lock: Lock, flock: u8) -> CallId {
        self.send(&file.client, setlkw(file, flock), &lock.bytes())
    }
}

/// The request of a lock that is waited for.
pub(crate) fn setlkw(file: &File, flock: u8) -> Message {
    let mut message = Message::request(Setlk::NUMBER);
    Setlk { ino: file.ino, fh: file.fh, wait: 1, flock }.put(&mut message.args);
    message
}

pub(crate) fn now(world: &World) -> calls::vfs::Time {
    time(world.clock)
}

pub(crate) fn attr<R>((_, payload): (R, Vec<u8>)) -> Attr {
    assert_eq!(payload.len(), Attr::SIZE);
    Attr::get(&payload).unwrap()
}
