//! System V semaphores: SemGet, SemOps, SemCtl, and the undo of processes that are gone.
//!
//! Waiting calls are retried in the order of their arrival whenever a value changes; those that wait
//! for zeros come before those that change something, as in Linux.

use crate::flags::{
    GETALL, GETNCNT, GETPID, GETVAL, GETZCNT, IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT,
    SEM_INFO, SEM_STAT, SEM_STAT_ANY, SEM_UNDO, SETALL, SETVAL,
};
use crate::limits::{SEMAEM, SEMMNS, SEMMSL, SEMOPM, SEMVMX, SYSV_IDS_MAX};
use crate::permission::{sysv_allows, sysv_owns};
use crate::sysv::{Entry, Table, index_of};
use crate::waiting::{Waiting, sources};
use crate::{Outcome, Served, done, done_with, fail, record, seconds, succeed};
use calls::ipc::{Perm, SemCtl, SemGet, SemOp, SemOps, SemStat, Value};
use calls::wire::Wire;
use dvk::server::{Call, Context, Gone, Nanos};
use dvk::store::Store;
use m3ipc::errno::numbers::{E2BIG, EAGAIN, EFBIG, EIDRM, EINVAL, ENOSPC, ERANGE};
use m3ipc::{CallId, Endpoint, Errno};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Semaphores of a set that are stored together: a semop mostly touches one block, which stays small.
const BLOCK: usize = 32;

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Semaphore {
    value: u16,
    /// Who changed it last, for GETPID.
    pid: u32,
}

#[derive(Debug)]
struct Set {
    semaphores: Vec<Semaphore>,
    otime: i64,
    ctime: i64,
}

/// A set as it is stored; its semaphores are in blocks beside it.
#[derive(Serialize, Deserialize)]
struct StoredSet {
    perm: [u8; Perm::SIZE],
    count: u32,
    ctime: i64,
}

/// Some semaphores of a set, and when one of them was last operated on.
#[derive(Serialize, Deserialize)]
struct StoredBlock {
    otime: i64,
    semaphores: Vec<Semaphore>,
}

/// What one process's end adds to the semaphores of one set.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Undo {
    /// The process, for GETPID afterwards.
    pid: u32,
    adjust: BTreeMap<u16, i32>,
}

/// A semop(2) that waits.
#[derive(Debug)]
struct Wanted {
    ops: Vec<SemOp>,
    /// Does it change a value, or only wait for zeros?
    alters: bool,
    pid: u32,
}

/// What comes of a semop(2) if it is tried now.
enum Attempt {
    /// The new value and undo value of every semaphore it names.
    Succeeds(BTreeMap<u16, Change>),
    /// That operation cannot be done now.
    Blocks(SemOp),
    Fails(i32),
}

struct Change {
    value: u16,
    adjust: i32,
}

/// All sets of the DC.
#[derive(Debug)]
pub(crate) struct SemaphoreSets {
    sets: Table<Set>,
    undo: BTreeMap<(Endpoint, i32), Undo>,
    waiting: Waiting<i32, Wanted>,
    /// Semaphores in all sets.
    total: usize,
}

impl SemaphoreSets {
    pub(crate) fn open(store: &dyn Store) -> SemaphoreSets {
        let mut all = SemaphoreSets {
            sets: Table::open(store, b'S'),
            undo: BTreeMap::new(),
            waiting: Waiting::new(),
            total: 0,
        };
        let mut blocks: BTreeMap<u64, Vec<StoredBlock>> = BTreeMap::new();
        for ([index, _], block) in record::all::<StoredBlock, 2>(store, b'V') {
            blocks.entry(index).or_default().push(block);
        }
        for ([index], stored) in record::all::<StoredSet, 1>(store, b'S') {
            let blocks = blocks.remove(&index).unwrap_or_default();
            let otime = blocks.iter().map(|block| block.otime).max().unwrap_or(0);
            let semaphores: Vec<_> =
                blocks.into_iter().flat_map(|block| block.semaphores).collect();
            assert_eq!(
                semaphores.len(),
                stored.count as usize,
                "the blocks of a set are all stored"
            );
            all.total += semaphores.len();
            let perm = Perm::get(&stored.perm).expect("it has the size of one");
            let index = u32::try_from(index).expect("an index is below 2^15");
            all.sets.restore(index, perm, Set { semaphores, otime, ctime: stored.ctime });
        }
        for ([process, id], undo) in record::all::<Undo, 2>(store, b'U') {
            let id = i32::try_from(id).expect("an identifier is not negative");
            all.undo.insert((Endpoint::from_bits(process), id), undo);
        }
        all
    }

    pub(crate) fn sem_get(
        &mut self,
        args: SemGet,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        if args.count > SEMMSL {
            return Err(Errno::new(EINVAL));
        }
        let count = args.count as usize;
        let fits = |set: &Set| {
            if count > set.semaphores.len() { Err(Errno::new(EINVAL)) } else { Ok(()) }
        };
        let value = match self.sets.find(args.key, args.flags, call.cred, fits)? {
            Some(id) => id,
            None => self.create(args, call, cx)?,
        };
        done::<SemGet>(Value { value })
    }

    fn create(
        &mut self,
        args: SemGet,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<i32, Errno> {
        let count = args.count as usize;
        if count == 0 {
            return Err(Errno::new(EINVAL));
        }
        if self.total + count > SEMMNS {
            return Err(Errno::new(ENOSPC));
        }
        let semaphores = vec![Semaphore::default(); count];
        let set = Set { semaphores, otime: 0, ctime: seconds(cx) };
        let id = self.sets.add(args.key, args.flags, call.cred, set, cx.store)?;
        self.total += count;
        self.store_set(id, cx.store);
        self.store_all_blocks(id, cx.store);
        Ok(id)
    }

    pub(crate) fn sem_ops(
        &mut self,
        args: SemOps,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let ops = operations(call.payload)?;
        let entry = self.sets.get(args.id)?;
        let count = entry.body.semaphores.len();
        if ops.iter().any(|op| usize::from(op.number) >= count) {
            return Err(Errno::new(EFBIG));
        }
        let alters = ops.iter().any(|op| op.op != 0);
        sysv_allows(&entry.perm, call.cred, if alters { 0o222 } else { 0o444 })?;
        let wanted = Wanted { ops, alters, pid: call.cred.pid };
        match self.attempt(args.id, call.id.source, &wanted.ops) {
            Attempt::Succeeds(changes) => {
                self.apply(args.id, call.id.source, &wanted, changes, cx);
                if alters {
                    self.retry(args.id, cx);
                }
                done::<SemOps>(())
            }
            Attempt::Fails(errno) => Err(Errno::new(errno)),
            Attempt::Blocks(op) if nowait(op) || args.wait_ns == 0 => Err(Errno::new(EAGAIN)),
            Attempt::Blocks(_) => {
                self.waiting.keep(call, args.id, wanted, args.wait_ns, cx.now)?;
                Ok(Outcome::Kept)
            }
        }
    }

    /// Tries all operations in their order, each on what those before it have left; changes nothing.
    fn attempt(&self, id: i32, process: Endpoint, ops: &[SemOp]) -> Attempt {
        let set = &self.set(id).body;
        let undo = self.undo.get(&(process, id));
        let mut changes: BTreeMap<u16, Change> = BTreeMap::new();
        for op in ops {
            let change = changes.entry(op.number).or_insert_with(|| Change {
                value: set.semaphores[usize::from(op.number)].value,
                adjust: undo.and_then(|undo| undo.adjust.get(&op.number)).copied().unwrap_or(0),
            });
            let value = i64::from(change.value) + i64::from(op.op);
            if (op.op == 0 && change.value != 0) || value < 0 {
                return Attempt::Blocks(*op);
            }
            let Some(value) = u16::try_from(value).ok().filter(|value| *value <= SEMVMX) else {
                return Attempt::Fails(ERANGE);
            };
            change.value = value;
            if op.flags & SEM_UNDO != 0 {
                change.adjust -= op.op;
                if !(-SEMAEM - 1..=SEMAEM).contains(&change.adjust) {
                    return Attempt::Fails(ERANGE);
                }
            }
        }
        Attempt::Succeeds(changes)
    }

    /// Makes the changes of a successful attempt of `process`.
    fn apply(
        &mut self,
        id: i32,
        process: Endpoint,
        wanted: &Wanted,
        changes: BTreeMap<u16, Change>,
        cx: &mut Context<'_>,
    ) {
        let now = seconds(cx);
        let set = &mut self.set_mut(id).body;
        set.otime = now;
        for (number, change) in &changes {
            let pid = wanted.pid;
            set.semaphores[usize::from(*number)] = Semaphore { value: change.value, pid };
        }
        self.store_blocks(id, changes.keys().copied(), cx.store);
        if wanted.ops.iter().any(|op| op.flags & SEM_UNDO != 0) {
            let undo = self.undo.entry((process, id)).or_default();
            undo.pid = wanted.pid;
            undo.adjust.extend(changes.iter().map(|(number, change)| (*number, change.adjust)));
            self.store_undo(process, id, cx.store);
        }
    }

    /// A value has changed: completes every waiting call that now can be, longest waiting first.
    fn retry(&mut self, id: i32, cx: &mut Context<'_>) {
        while let Some((call, attempt)) = self.ready(id, false).or_else(|| self.ready(id, true)) {
            let kept = self.waiting.take(call).expect("it has just been found");
            match attempt {
                Attempt::Succeeds(changes) => {
                    self.apply(id, call.source, &kept.wants, changes, cx);
                    succeed::<SemOps>(&kept, (), Vec::new(), cx);
                }
                Attempt::Blocks(_) => fail(&kept, EAGAIN, cx),
                Attempt::Fails(errno) => fail(&kept, errno, cx),
            }
        }
    }

    /// The first waiting call that need not wait any longer.
    fn ready(&self, id: i32, alters: bool) -> Option<(CallId, Attempt)> {
        let calls = self.waiting.on(id).filter(|kept| kept.wants.alters == alters);
        calls.map(|kept| (kept.id, self.attempt(id, kept.id.source, &kept.wants.ops))).find(
            |(_, attempt)| match attempt {
                // Another of its operations blocks now, and that one does not want to wait.
                Attempt::Blocks(op) => nowait(*op),
                _ => true,
            },
        )
    }

    pub(crate) fn sem_ctl(
        &mut self,
        args: SemCtl,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let reply = |value| done::<SemCtl>(Value { value });
        if args.id < 0 {
            return Err(Errno::new(EINVAL));
        }
        match args.command {
            IPC_INFO | SEM_INFO => self.info(args.command),
            IPC_STAT => self.stat(args.id, 0, Some(call)),
            SEM_STAT => {
                let id = self.sets.id_at(args.id)?;
                self.stat(id, id, Some(call))
            }
            SEM_STAT_ANY => {
                let id = self.sets.id_at(args.id)?;
                self.stat(id, id, None)
            }
            GETALL => {
                let set = &self.readable(args.id, call)?.body;
                let values = set.semaphores.iter().flat_map(|one| one.value.to_le_bytes());
                done_with::<SemCtl>(Value { value: 0 }, values.collect())
            }
            GETVAL => reply(i32::from(self.one(&args, call)?.value)),
            GETPID => reply(self.one(&args, call)?.pid.cast_signed()),
            GETNCNT | GETZCNT => {
                self.one(&args, call)?;
                reply(self.waiters(&args))
            }
            SETVAL => self.set_value(&args, call, cx),
            SETALL => self.set_all(args.id, call, cx),
            IPC_SET => self.ipc_set(args.id, call, cx),
            IPC_RMID => {
                sysv_owns(&self.sets.get(args.id)?.perm, call.cred)?;
                self.remove(args.id, cx);
                reply(0)
            }
            _ => Err(Errno::new(EINVAL)),
        }
    }

    /// `struct seminfo` as bytes; for SEM_INFO two of its fields say what is in use.
    fn info(&self, command: i32) -> Served {
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let (ids, semops) = (SYSV_IDS_MAX.cast_signed(), number(SEMOPM));
        let (usz, aem) = match command {
            SEM_INFO => (number(self.sets.count()), number(self.total)),
            _ => (20, SEMAEM),
        };
        let (mns, msl) = (number(SEMMNS), SEMMSL.cast_signed());
        let info = [mns, ids, mns, mns, msl, semops, semops, usz, i32::from(SEMVMX), aem];
        let bytes = info.iter().flat_map(|field| field.to_le_bytes()).collect();
        done_with::<SemCtl>(Value { value: self.sets.highest() }, bytes)
    }

    /// `SemStat` of set `id`, if `reader` may read it or nobody asks.
    fn stat(&self, id: i32, value: i32, reader: Option<&Call<'_>>) -> Served {
        let entry = match reader {
            Some(call) => self.readable(id, call)?,
            None => self.sets.get(id)?,
        };
        let Set { semaphores, otime, ctime } = &entry.body;
        let (semaphores, otime, ctime) = (semaphores.len() as u64, *otime, *ctime);
        let stat = SemStat { perm: entry.perm, semaphores, otime, ctime };
        done_with::<SemCtl>(Value { value }, stat.bytes().to_vec())
    }

    fn readable(&self, id: i32, call: &Call<'_>) -> Result<&Entry<Set>, Errno> {
        let entry = self.sets.get(id)?;
        sysv_allows(&entry.perm, call.cred, 0o444)?;
        Ok(entry)
    }

    /// The semaphore that a command names.
    fn one(&self, args: &SemCtl, call: &Call<'_>) -> Result<Semaphore, Errno> {
        let semaphores = &self.readable(args.id, call)?.body.semaphores;
        let number = usize::try_from(args.number).map_err(|_| Errno::new(EINVAL))?;
        semaphores.get(number).copied().ok_or(Errno::new(EINVAL))
    }

    /// How many calls wait for this semaphore: for an increase, or for zero. A call waits for the
    /// first operation that it cannot do.
    fn waiters(&self, args: &SemCtl) -> i32 {
        let here = |kept: &&crate::waiting::Kept<i32, Wanted>| match self.attempt(
            args.id,
            kept.id.source,
            &kept.wants.ops,
        ) {
            Attempt::Blocks(op) => {
                i32::from(op.number) == args.number && (op.op == 0) == (args.command == GETZCNT)
            }
            _ => false,
        };
        i32::try_from(self.waiting.on(args.id).filter(here).count()).unwrap_or(i32::MAX)
    }

    fn set_value(&mut self, args: &SemCtl, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let value = u16::try_from(args.value).ok().filter(|value| *value <= SEMVMX);
        let value = value.ok_or(Errno::new(ERANGE))?;
        let entry = self.sets.get(args.id)?;
        let number = u16::try_from(args.number).map_err(|_| Errno::new(EINVAL))?;
        if usize::from(number) >= entry.body.semaphores.len() {
            return Err(Errno::new(EINVAL));
        }
        sysv_allows(&entry.perm, call.cred, 0o222)?;
        self.clear_undo(args.id, Some(number), cx.store);
        let now = seconds(cx);
        let set = &mut self.set_mut(args.id).body;
        set.semaphores[usize::from(number)] = Semaphore { value, pid: call.cred.pid };
        set.ctime = now;
        self.store_blocks(args.id, [number], cx.store);
        self.store_set(args.id, cx.store);
        self.retry(args.id, cx);
        done::<SemCtl>(Value { value: 0 })
    }

    fn set_all(&mut self, id: i32, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let entry = self.sets.get(id)?;
        sysv_allows(&entry.perm, call.cred, 0o222)?;
        let (values, rest) = call.payload.as_chunks::<2>();
        if !rest.is_empty() || values.len() != entry.body.semaphores.len() {
            return Err(Errno::new(EINVAL));
        }
        let values: Vec<u16> = values.iter().map(|value| u16::from_le_bytes(*value)).collect();
        if values.iter().any(|value| *value > SEMVMX) {
            return Err(Errno::new(ERANGE));
        }
        self.clear_undo(id, None, cx.store);
        let now = seconds(cx);
        let set = &mut self.set_mut(id).body;
        let pid = call.cred.pid;
        set.semaphores = values.into_iter().map(|value| Semaphore { value, pid }).collect();
        set.ctime = now;
        self.store_set(id, cx.store);
        self.store_all_blocks(id, cx.store);
        self.retry(id, cx);
        done::<SemCtl>(Value { value: 0 })
    }

    fn ipc_set(&mut self, id: i32, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let set = self.sets.set_perm(id, call.cred, call.payload)?;
        let now = seconds(cx);
        let entry = self.set_mut(id);
        entry.give(&set);
        entry.body.ctime = now;
        self.store_set(id, cx.store);
        done::<SemCtl>(Value { value: 0 })
    }

    fn remove(&mut self, id: i32, cx: &mut Context<'_>) {
        while let Some(waiter) = self.waiting.take_first(id) {
            fail(&waiter, EIDRM, cx);
        }
        self.clear_undo(id, None, cx.store);
        let count = self.set(id).body.semaphores.len();
        let index = u64::from(index_of(id));
        for block in 0..count.div_ceil(BLOCK) {
            record::remove(cx.store, b'V', &[index, block as u64]);
        }
        record::remove(cx.store, b'S', &[index]);
        self.total -= count;
        self.sets.remove(id);
    }

    /// Forgets the undo values of all processes for one semaphore of a set, or for all.
    fn clear_undo(&mut self, id: i32, number: Option<u16>, store: &mut dyn Store) {
        let concerned = self.undo.keys().filter(|(_, set)| *set == id);
        let processes: Vec<Endpoint> = concerned.map(|(process, _)| *process).collect();
        for process in processes {
            let undo = self.undo.entry((process, id)).or_default();
            match number {
                Some(number) => drop(undo.adjust.remove(&number)),
                None => undo.adjust.clear(),
            }
            self.store_undo(process, id, store);
        }
    }

    pub(crate) fn is_kept(&self, id: CallId) -> bool {
        self.waiting.contains(id)
    }

    /// The number of the kept call `id`, which is now forgotten.
    pub(crate) fn cancel(&mut self, id: CallId) -> Option<u16> {
        self.waiting.take(id).map(|kept| kept.call)
    }

    /// exit(2): the undo values of who is gone are added, and kept within 0 and SEMVMX as in Linux.
    pub(crate) fn gone(&mut self, gone: Gone, cx: &mut Context<'_>) {
        self.waiting.forget(gone);
        let sources = sources(gone);
        let concerned = self.undo.range((*sources.start(), 0)..=(*sources.end(), i32::MAX));
        let concerned: Vec<(Endpoint, i32)> = concerned.map(|(key, _)| *key).collect();
        for (process, id) in concerned {
            let undo = self.undo.remove(&(process, id)).expect("it has just been found");
            record::remove(cx.store, b'U', &[process.to_bits(), u64::from(id.cast_unsigned())]);
            let now = seconds(cx);
            let set = &mut self.set_mut(id).body;
            set.otime = now;
            for (number, adjust) in &undo.adjust {
                let semaphore = &mut set.semaphores[usize::from(*number)];
                let value = (i32::from(semaphore.value) + adjust).clamp(0, i32::from(SEMVMX));
                let value = u16::try_from(value).expect("it is clamped");
                *semaphore = Semaphore { value, pid: undo.pid };
            }
            self.store_blocks(id, undo.adjust.keys().copied(), cx.store);
            self.retry(id, cx);
        }
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        while let Some(waiter) = self.waiting.take_expired(cx.now) {
            fail(&waiter, EAGAIN, cx);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.waiting.deadline()
    }

    /// Identifier, permissions and size of every set.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (i32, &Perm, u64)> {
        self.sets.all().map(|(id, entry)| (id, &entry.perm, entry.body.semaphores.len() as u64))
    }

    fn set(&self, id: i32) -> &Entry<Set> {
        self.sets.get(id).expect("who waits or has undo values ends before the set")
    }

    fn set_mut(&mut self, id: i32) -> &mut Entry<Set> {
        self.sets.get_mut(id).expect("who waits or has undo values ends before the set")
    }

    fn store_set(&self, id: i32, store: &mut dyn Store) {
        let Entry { perm, body } = self.set(id);
        let count = u32::try_from(body.semaphores.len()).expect("a set has at most SEMMSL");
        let stored = StoredSet { perm: perm.bytes(), count, ctime: body.ctime };
        record::put(store, b'S', &[u64::from(index_of(id))], &stored);
    }

    fn store_all_blocks(&self, id: i32, store: &mut dyn Store) {
        for block in 0..self.set(id).body.semaphores.len().div_ceil(BLOCK) {
            self.store_block(id, block, store);
        }
    }

    /// Stores the blocks of these semaphores, which come in order.
    fn store_blocks(&self, id: i32, numbers: impl IntoIterator<Item = u16>, store: &mut dyn Store) {
        let mut blocks: Vec<usize> =
            numbers.into_iter().map(|number| usize::from(number) / BLOCK).collect();
        blocks.dedup();
        blocks.into_iter().for_each(|block| self.store_block(id, block, store));
    }

    fn store_block(&self, id: i32, block: usize, store: &mut dyn Store) {
        let set = &self.set(id).body;
        let semaphores = set.semaphores.chunks(BLOCK).nth(block).unwrap_or_default().to_vec();
        let stored = StoredBlock { otime: set.otime, semaphores };
        record::put(store, b'V', &[u64::from(index_of(id)), block as u64], &stored);
    }

    /// Stores the undo values of `process` for a set, or forgets them if they are all 0.
    fn store_undo(&mut self, process: Endpoint, id: i32, store: &mut dyn Store) {
        let key = [process.to_bits(), u64::from(id.cast_unsigned())];
        let undo = self.undo.entry((process, id)).or_default();
        undo.adjust.retain(|_, adjust| *adjust != 0);
        if undo.adjust.is_empty() {
            self.undo.remove(&(process, id));
            record::remove(store, b'U', &key);
        } else {
            record::put(store, b'U', &key, undo);
        }
    }
}

fn nowait(op: SemOp) -> bool {
    u32::from(op.flags) & IPC_NOWAIT != 0
}

/// The operations of a semop(2).
fn operations(payload: &[u8]) -> Result<Vec<SemOp>, Errno> {
    let chunks = payload.chunks_exact(SemOp::SIZE);
    if payload.is_empty() || !chunks.remainder().is_empty() {
        return Err(Errno::new(EINVAL));
    }
    if chunks.len() > SEMOPM {
        return Err(Errno::new(E2BIG));
    }
    chunks.map(|chunk| SemOp::get(chunk).ok_or(Errno::new(EINVAL))).collect()
}
