//! Rounds of calls, chosen at random but the same for the same seed, on any store.

use calls::Row;
use calls::vfs::{
    Attr, CopyRange, Create, Fallocate, Fsync, Link, Lookup, Mkdir, Offsets, ROOT_INO, Read,
    Release, RemoveSnapshot, Rename, Rmdir, SetAttr, Setattr, Setxattr, Symlink, TakeSnapshot,
    Unlink, WRITE_AT, Write, set,
};
use calls::wire::Wire;
use dvk::host::disk::DiskStore;
use dvk::server::{Answers, Call, Context, Server};
use dvk::store::{MemoryStore, Store, StoreError};
use m3ipc::{CallId, Cred, Endpoint, Message, NodeId, Tag};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use vfs_server::VfsServer;
use xxhash_rust::xxh3::Xxh3;

/// In front of what the run writes to its output between the calls.
pub(crate) const MARK: &str = "power: ";
/// Clock of the first round, and from one to the next, in nanoseconds.
const START: u64 = 1_700_000_000_000_000_000;
const PACE: u64 = 30_000_000;

/// Bytes of the map in memory that become a table: so few that there are many tables.
const MEMTABLE: u64 = 16 << 10;

/// Of blobs that are longer only so much is looked at.
pub(crate) const SIZE_MAX: usize = 1 << 16;

/// Bytes that are read at once.
pub(crate) const PART: u32 = 1 << 17;

const O_RDWR: u32 = 2;
const O_CREAT: u32 = 0o100;
const O_TRUNC: u32 = 0o1000;
const O_SYNC: u32 = 0o4_010_000;

/// What was true after each round.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// Hash of the map to the rounds after which it was that; the first is 0, before any.
    pub(crate) rounds: BTreeMap<u64, Vec<usize>>,
    /// For each file each round in which it was synced, and its bytes then.
    pub(crate) synced: BTreeMap<u64, Vec<(usize, Vec<u8>)>>,
    /// The rounds that changed a file's bytes, and the one that removed them.
    pub(crate) changed: BTreeMap<u64, Vec<usize>>,
    pub(crate) removed: BTreeMap<u64, usize>,
    /// What programs know of files and snapshots, in its order.
    pub(crate) history: Vec<(usize, Happened)>,
}

/// Something that happened to a file, or a snapshot.
#[derive(Clone, Debug)]
pub(crate) enum Happened {
    /// The file has been synced, and has these bytes.
    Synced {
        ino: u64,
        content: Vec<u8>,
    },
    Changed {
        ino: u64,
    },
    Taken {
        number: u64,
    },
    Removed {
        number: u64,
    },
}

/// A store of which is noted what is done to blobs.
struct Noting<S> {
    store: S,
    round: usize,
    changed: Vec<(u64, usize)>,
    removed: Vec<(u64, usize)>,
    synced: Vec<u64>,
}

impl<S: Store> Store for Noting<S> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.store.get(key)
    }
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.store.put(key, value);
    }
    fn remove(&mut self, key: &[u8]) {
        self.store.remove(key);
    }
    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        self.store.range(from, to, visit);
    }
    fn blob_read(&self, blob: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        self.store.blob_read(blob, offset, buffer)
    }
    fn blob_write(&mut self, blob: u64, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.changed.push((blob, self.round));
        self.store.blob_write(blob, offset, data)
    }
    fn blob_truncate(&mut self, blob: u64, length: u64) -> Result<(), StoreError> {
        self.changed.push((blob, self.round));
        self.store.blob_truncate(blob, length)
    }
    fn blob_punch(&mut self, blob: u64, offset: u64, length: u64) -> Result<(), StoreError> {
        self.changed.push((blob, self.round));
        self.store.blob_punch(blob, offset, length)
    }
    fn blob_seek(&self, blob: u64, offset: u64, hole: bool) -> Option<u64> {
        self.store.blob_seek(blob, offset, hole)
    }
    fn blob_used(&self, _: u64) -> u64 {
        // What a file takes on a disk is not what it takes in memory.
        0
    }
    fn blob_remove(&mut self, blob: u64) {
        self.removed.push((blob, self.round));
        self.store.blob_remove(blob);
    }
    fn blob_sync(&mut self, blob: u64) {
        self.synced.push(blob);
        self.store.blob_sync(blob);
    }
    fn space(&self) -> (u64, u64) {
        (1 << 40, 1 << 39)
    }
}

/// A pseudo-random sequence (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A server, and a program that uses it.
struct Run<S> {
    store: Noting<S>,
    server: VfsServer,
    program: Program,
}

/// What the program knows. It outlives the server.
struct Program {
    random: Random,
    clock: u64,
    calls: u64,
    /// Does the round end with a sync?
    sync: bool,
    directories: Vec<u64>,
    /// Open files: handle and inode.
    files: Vec<(u64, u64)>,
    /// Numbers of snapshots, which are their names; and how many were taken.
    snapshots: Vec<u64>,
    taken: u64,
    round: usize,
    history: Vec<(usize, Happened)>,
}

impl<S: Store> Run<S> {
    fn new(store: S, program: Program) -> Run<S> {
        let mut store = Noting {
            store,
            round: 0,
            changed: Vec::new(),
            removed: Vec::new(),
            synced: Vec::new(),
        };
        let server = VfsServer::open(&mut store, program.clock).unwrap();
        Run { store, server, program }
    }

    fn input(&mut self, input: impl FnOnce(&mut VfsServer, &mut Context<'_>)) -> Answers {
        let mut answers = Answers::default();
        let mut cx = Context {
            now: self.program.clock - START,
            wall: self.program.clock,
            entropy: self.program.calls,
            store: &mut self.store,
            answers: &mut answers,
        };
        input(&mut self.server, &mut cx);
        self.program.sync |= answers.sync;
        answers
    }

    fn call<R: Row>(&mut self, row: &R, payload: &[u8]) -> Option<(R::Reply, Vec<u8>)> {
        self.call_as(Cred::new(7, 0, 0), row, payload)
    }

    fn call_as<R: Row>(
        &mut self,
        cred: Cred,
        row: &R,
        payload: &[u8],
    ) -> Option<(R::Reply, Vec<u8>)> {
        self.program.calls += 1;
        let source = Endpoint::new(NodeId(1), 1, 1);
        let id = CallId { source, tag: Tag::new(0, self.program.calls) };
        let mut message = Message::request(R::NUMBER);
        row.put(&mut message.args);
        (message.source, message.tag) = (id.source, id.tag);
        message.payload_len = payload.len().try_into().unwrap();
        let answers = self.input(|server, cx| {
            server.serve(&Call { id, cred: &cred, message: &message, payload }, cx);
        });
        let answer = answers.list.into_iter().next().unwrap();
        answer.message.outcome().unwrap().ok()?;
        Some((R::Reply::get(&answer.message.args).unwrap(), answer.payload))
    }

    fn note(&mut self, happened: Happened) {
        self.program.history.push((self.program.round, happened));
    }

    /// All bytes of an open file.
    fn content(&mut self, fh: u64, ino: u64) -> Vec<u8> {
        let mut content = Vec::new();
        loop {
            let row = Read { fh, ino, offset: content.len() as u64, size: PART };
            match self.call(&row, &[]) {
                Some((_, data)) if !data.is_empty() => content.extend(data),
                _ => return content,
            }
        }
    }

    fn directory(&mut self) -> u64 {
        let index = self.program.random.below(self.program.directories.len() as u64);
        self.program.directories[usize::try_from(index).unwrap()]
    }

    fn name(&mut self) -> Vec<u8> {
        format!("n{}", self.program.random.below(5)).into_bytes()
    }

    fn file(&mut self) -> Option<(u64, u64)> {
        let index = self.program.random.below(self.program.files.len().max(1) as u64);
        self.program.files.get(usize::try_from(index).unwrap()).copied()
    }

    fn data(&mut self) -> Vec<u8> {
        let length = [10, 700, 4096, 9000][usize::try_from(self.program.random.below(4)).unwrap()];
        let byte = u8::try_from(self.program.random.below(255)).unwrap() + 1;
        vec![byte; length]
    }

    /// Handles calls, and the time that passes.
    fn round(&mut self) {
        self.program.clock += PACE;
        self.program.sync = false;
        if self.server.deadline().is_some_and(|due| due <= self.program.clock - START) {
            self.input(|server, cx| server.tick(cx));
        }
        for _ in 0..=self.program.random.below(3) {
            self.step();
        }
    }

    fn step(&mut self) {
        let parent = self.directory();
        let name = self.name();
        match self.program.random.below(27) {
            0..=4 => {
                let sync = if self.program.random.below(4) == 0 { O_SYNC } else { 0 };
                let trunc = if self.program.random.below(4) == 0 { O_TRUNC } else { 0 };
                let flags = O_RDWR | O_CREAT | sync | trunc;
                let row = Create { parent, forgotten: 0, mode: 0o644, umask: 0, flags };
                if let Some((opened, attr)) = self.call(&row, &name) {
                    self.note(Happened::Changed { ino: Attr::get(&attr).unwrap().ino });
                    self.program.files.push((opened.fh, Attr::get(&attr).unwrap().ino));
                }
                if self.program.files.len() > 8 {
                    let (fh, ino) = self.program.files.remove(0);
                    self.call(&Release { fh, ino }, &[]);
                }
            }
            5..=10 => {
                let (data, offset) = (self.data(), self.program.random.below(12_000));
                // Some are so long that they are not copied as a whole.
                let far = [0, 0, 0, 128 << 10, 300_000];
                let offset = offset + far[usize::try_from(self.program.random.below(5)).unwrap()];
                if let Some((fh, ino)) = self.file() {
                    self.note(Happened::Changed { ino });
                    self.call(&Write { fh, ino, offset: offset | WRITE_AT }, &data);
                }
            }
            11 | 12 => {
                if let Some((fh, ino)) = self.file()
                    && self.call(&Fsync { fh, ino, datasync: 0 }, &[]).is_some()
                {
                    let content = self.content(fh, ino);
                    self.note(Happened::Synced { ino, content });
                }
            }
            13 => {
                let size = self.program.random.below(12_000);
                if let Some((_, ino)) = self.file() {
                    self.note(Happened::Changed { ino });
                    let change = SetAttr { valid: set::SIZE, size, ..SetAttr::default() };
                    self.call(&Setattr { ino, fh: 0 }, &change.bytes());
                }
            }
            14 => {
                let (offset, length) =
                    (self.program.random.below(12_000), 1 + self.program.random.below(9000));
                if let Some((fh, ino)) = self.file() {
                    self.note(Happened::Changed { ino });
                    // FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE.
                    self.call(&Fallocate { fh, ino, offset, length, mode: 3 }, &[]);
                }
            }
            15 => {
                if let (Some((fh, ino)), Some((to_fh, to_ino))) = (self.file(), self.file()) {
                    self.note(Happened::Changed { ino: to_ino });
                    let row = CopyRange { fh, ino, to_fh, to_ino, length: 5000 };
                    self.call(&row, &Offsets { from: 0, to: 6000 }.bytes());
                }
            }
            16 => {
                if let Some((_, attr)) = self.call(&Mkdir { parent, mode: 0o755, umask: 0 }, &name)
                    && self.program.directories.len() < 6
                {
                    self.program.directories.push(Attr::get(&attr).unwrap().ino);
                }
            }
            17 | 18 => drop(self.call(&Unlink { parent, forgotten: 0 }, &name)),
            19 => {
                self.call(&Rmdir { parent, forgotten: 0 }, &name);
                let known = self.program.directories.clone();
                self.program.directories = known
                    .into_iter()
                    .filter(|ino| self.call(&Lookup { parent: *ino }, b".").is_some())
                    .collect();
            }
            20 | 21 => {
                let (new_parent, new_name) = (self.directory(), self.name());
                let flags = if self.program.random.below(4) == 0 { 2 } else { 0 };
                let name_len = u16::try_from(name.len()).unwrap();
                let row =
                    Rename { parent, new_parent, forgotten: 0, new_forgotten: 0, name_len, flags };
                self.call(&row, &[name, new_name].concat());
            }
            22 => {
                if let Some((_, ino)) = self.file() {
                    self.call(&Link { ino, new_parent: parent }, &name);
                }
            }
            23 | 24 => {
                if self.program.snapshots.len() < 4 {
                    let number = self.program.taken + 1;
                    let name = number.to_string();
                    let taken = self.call_as(Cred::ROOT, &TakeSnapshot {}, name.as_bytes());
                    if taken.is_some() {
                        self.program.taken = number;
                        self.program.snapshots.push(number);
                        self.note(Happened::Taken { number });
                    }
                }
            }
            25 => {
                let count = self.program.snapshots.len();
                if count > 0 {
                    let index = usize::try_from(self.program.random.below(count as u64)).unwrap();
                    let number = self.program.snapshots.remove(index);
                    let name = number.to_string();
                    self.call_as(Cred::ROOT, &RemoveSnapshot {}, name.as_bytes()).unwrap();
                    self.note(Happened::Removed { number });
                }
            }
            _ => {
                let row = Symlink { parent, name_len: u16::try_from(name.len()).unwrap() };
                self.call(&row, &[&name[..], b"somewhere"].concat());
                let value = self.data();
                if let Some((_, ino)) = self.file() {
                    let row = Setxattr { ino, name_len: 6, flags: 0 };
                    self.call(&row, &[b"user.a", &value[..]].concat());
                }
            }
        }
    }
}

/// Is the server killed after this round?
fn is_restart(round: usize) -> bool {
    round % 40 == 39
}

/// Is there time to tidy up after this round?
fn is_idle(round: usize) -> bool {
    round % 7 == 6
}

/// What happens to the store.
enum Moment {
    /// A round begins.
    Begin,
    /// It is over, and is to be committed: synced, perhaps.
    End { sync: bool },
}

/// Plays all rounds. `open` opens the store, again when the server is killed; `moment` is told what happens.
fn play<S: Store>(
    seed: u64,
    rounds: usize,
    mut open: impl FnMut(Option<S>) -> S,
    mut moment: impl FnMut(Moment, &mut Noting<S>),
) -> Vec<(usize, Happened)> {
    let program = Program {
        random: Random(seed),
        clock: START,
        calls: 0,
        sync: false,
        directories: vec![ROOT_INO],
        files: Vec::new(),
        snapshots: Vec::new(),
        taken: 0,
        round: 0,
        history: Vec::new(),
    };
    let mut run = Run::new(open(None), program);
    for round in 1..=rounds {
        (run.store.round, run.program.round) = (round, round);
        moment(Moment::Begin, &mut run.store);
        run.round();
        let sync = run.program.sync;
        moment(Moment::End { sync }, &mut run.store);
        if is_restart(round) {
            // What it does when it opens is committed with the next round.
            run = Run::new(open(Some(run.store.store)), run.program);
        }
    }
    run.program.history
}

/// The run that is recorded.
pub(crate) fn on_disk(place: &Path, seed: u64, rounds: usize) {
    let open = |old: Option<DiskStore>| {
        drop(old);
        DiskStore::open_sized(place, MEMTABLE).unwrap()
    };
    play(seed, rounds, open, |moment, Noting { store, round, .. }| match moment {
        Moment::Begin => say(&format!("begin {round}")),
        Moment::End { sync } => {
            if sync {
                store.commit_sync().unwrap();
                say(&format!("synced {round}"));
            } else {
                store.commit().unwrap();
            }
            if is_idle(*round) {
                store.sweep().unwrap();
            }
            match *round % 20 {
                3 | 8 | 13 => store.sum_all().unwrap(),
                18 => assert_eq!(store.scrub_all().unwrap().damage, []),
                _ => {}
            }
        }
    });
}

/// The same in memory: what must be found.
pub(crate) fn in_memory(seed: u64, rounds: usize) -> Truth {
    let mut truth = Truth::default();
    truth.rounds.insert(hash(&MemoryStore::default()), vec![0]);
    let open = |old: Option<MemoryStore>| old.unwrap_or_default();
    let history = play(seed, rounds, open, |moment, noting| {
        let Moment::End { .. } = moment else { return };
        let round = noting.round;
        truth.rounds.entry(hash(&noting.store)).or_default().push(round);
        for (ino, round) in std::mem::take(&mut noting.changed) {
            truth.changed.entry(ino).or_default().push(round);
        }
        truth.removed.extend(std::mem::take(&mut noting.removed));
        for ino in std::mem::take(&mut noting.synced) {
            truth.synced.entry(ino).or_default().push((round, bytes(&noting.store, ino)));
        }
    });
    truth.history = history;
    truth
}

/// All of a store's map.
pub(crate) fn hash(store: &dyn Store) -> u64 {
    let mut hash = Xxh3::new();
    store.range(&[0], &[0xff], &mut |key, value| {
        for part in [key, value] {
            hash.update(&u64::try_from(part.len()).unwrap().to_le_bytes());
            hash.update(part);
        }
        ControlFlow::Continue(())
    });
    hash.digest()
}

/// What a program reads of a file that has no more than that; what the blob does not have are zeros.
pub(crate) fn bytes(store: &dyn Store, ino: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE_MAX];
    store.blob_read(ino, 0, &mut bytes).unwrap();
    bytes
}

/// One write(2), which is seen in the trace.
fn say(what: &str) {
    rustix::io::write(std::io::stdout(), format!("{MARK}{what}\n").as_bytes()).unwrap();
}
