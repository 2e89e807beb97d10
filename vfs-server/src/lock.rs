//! Record locks (fcntl, also of open file descriptions), flock, and the calls that wait for them.
//!
//! An owner is a number that a file agent gives, and that agent's endpoint. Locks are in the store
//! and survive a crash of the server; waiting calls are not, they arrive again. Every lock and every
//! waiting call belongs to an open handle and goes with it.
//!
//! A lock is granted when nobody holds one in its way, as Linux does it: who asks is not held up by
//! others who wait. When something is released, those who wait are looked at in the order they came.

use crate::VfsServer;
use crate::answer::{Outcome, Result, err, reply};
use crate::keys::{self, LockRecord};
use crate::limits::{RANGES_PER_OWNER_MAX, WAITERS_MAX};
use crate::linux::{F_RDLCK, F_UNLCK, F_WRLCK};
use crate::ranges::{self, END, Kind, Range, Splice};
use calls::vfs::{Flush, Getlk, Lock, Setlk};
use calls::wire::Wire;
use calls::{Row, answer};
use dvk::server::{Call, Context};
use dvk::store::Store;
use m3ipc::errno::numbers::{EAGAIN, EBADF, EDEADLK, EINVAL, ENOLCK};
use m3ipc::{CallId, Endpoint, Errno, IpcError, Message};
use std::collections::{BTreeMap, BTreeSet};

/// Locks of different families do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Record,
    Flock,
}

/// Who holds a lock, as the file agent at `endpoint` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    endpoint: Endpoint,
    number: u64,
}

impl VfsServer {
    pub(crate) fn getlk(&mut self, row: Getlk, call: &Call<'_>) -> Result<Vec<u8>> {
        self.handle(row.fh, row.ino, call.id.source)?;
        let asked = parse(call)?;
        let Some(kind) = asked.kind else { return err(EINVAL) };
        let wanted = asked.range(kind, row.fh);
        let blocking = self.locks.blocking(row.ino, Family::Record, asked.owner, &wanted);
        let found = match blocking.min_by_key(|(_, held)| held.start) {
            Some((owner, held)) => Lock {
                owner: owner.number,
                start: held.start,
                end: held.end,
                pid: held.pid,
                kind: number_of(held.kind),
            },
            None => Lock { kind: F_UNLCK, ..asked.lock },
        };
        Ok(found.bytes().into())
    }

    pub(crate) fn setlk(
        &mut self,
        row: Setlk,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Outcome> {
        if self.locks.waiting.contains_key(&call.id) {
            return Ok(Outcome::Kept);
        }
        let open = self.handle(row.fh, row.ino, call.id.source)?;
        let mut asked = parse(call)?;
        let family = if row.flock == 0 { Family::Record } else { Family::Flock };
        if family == Family::Flock {
            (asked.lock.start, asked.lock.end) = (0, END);
            // It is the open file's. Kernels name it by an address, which is another's as soon as it is closed, before they say so.
            asked.owner.number = row.fh;
        }
        let Some(kind) = asked.kind else {
            self.locks.clear(
                row.ino,
                family,
                asked.owner,
                asked.lock.start,
                asked.lock.end,
                cx.store,
            )?;
            self.grant(row.ino, cx);
            return Ok(reply::<Setlk>(()));
        };
        // flock(2) needs no particular access mode, and a file agent that cannot tell it from a
        // lock of the whole file sends it as one.
        let whole_file = (asked.lock.start, asked.lock.end) == (0, END);
        let opened_for_it = if kind == Kind::Read { open.reads() } else { open.writes() };
        if !whole_file && !opened_for_it {
            return err(EBADF);
        }
        let range = asked.range(kind, row.fh);
        let wish = Waiting { ino: row.ino, family, owner: asked.owner, range };
        if family == Family::Flock && self.give_up_to_convert(&wish, cx) {
            return Ok(reply::<Setlk>(()));
        }
        self.acquire(wish, row.wait != 0, call.id, cx)
    }

    pub(crate) fn flush(
        &mut self,
        row: Flush,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        self.handle(row.fh, row.ino, call.id.source)?;
        let owner = Owner { endpoint: call.id.source, number: row.owner };
        if self.locks.clear(row.ino, Family::Record, owner, 0, END, cx.store)? {
            self.grant(row.ino, cx);
        }
        Ok(())
    }

    /// A signal has interrupted a caller.
    pub(crate) fn cancel_wait(&mut self, id: CallId, cx: &mut Context<'_>) {
        if self.locks.forget(id).is_some() {
            cx.end(id, Setlk::NUMBER, IpcError::Interrupted);
        }
    }

    /// A handle is closed: its locks go. Returns the calls that waited through it; they will not be
    /// answered from here.
    pub(crate) fn drop_locks_of_handle(
        &mut self,
        ino: u64,
        fh: u64,
        cx: &mut Context<'_>,
    ) -> Vec<CallId> {
        let waited = self.locks.forget_waiting_through(ino, fh);
        if self.locks.clear_handle(ino, fh, cx.store) {
            self.grant(ino, cx);
        }
        waited
    }

    /// flock(2) converts by giving up first. True if the lock is held already as it is wanted.
    fn give_up_to_convert(&mut self, wish: &Waiting, cx: &mut Context<'_>) -> bool {
        match self.locks.held(wish.ino, wish.family, wish.owner).first() {
            Some(held) if held.kind == wish.range.kind => return true,
            Some(_) => {}
            None => return false,
        }
        // Clearing the whole of one range cannot split it, the only way clearing fails.
        if self.locks.clear(wish.ino, wish.family, wish.owner, 0, END, cx.store).is_ok() {
            self.grant(wish.ino, cx);
        }
        false
    }

    fn acquire(
        &mut self,
        wish: Waiting,
        wait: bool,
        id: CallId,
        cx: &mut Context<'_>,
    ) -> Result<Outcome> {
        if !self.locks.is_blocked(&wish) {
            self.locks.set(&wish, cx.store)?;
            // Writing a lock over with a weaker one may let others in.
            self.grant(wish.ino, cx);
            return Ok(reply::<Setlk>(()));
        }
        if !wait {
            return err(EAGAIN);
        }
        if wish.family == Family::Record && self.locks.would_deadlock(&wish) {
            return err(EDEADLK);
        }
        if self.locks.waiting.len() >= WAITERS_MAX {
            return err(ENOLCK);
        }
        self.locks.wait(id, wish);
        Ok(Outcome::Kept)
    }

    /// Something on `ino` was released: answers those who waited for it, in the order they came.
    fn grant(&mut self, ino: u64, cx: &mut Context<'_>) {
        loop {
            let granted = self.locks.grantable(ino);
            if granted.is_empty() {
                return;
            }
            for id in granted {
                // Who was granted just before may now be in the way.
                if self.locks.waiting.get(&id).is_none_or(|wish| self.locks.is_blocked(wish)) {
                    continue;
                }
                let Some(wish) = self.locks.forget(id) else { continue };
                let message = match self.locks.set(&wish, cx.store) {
                    Ok(()) => answer::<Setlk>(&()),
                    Err(errno) => Message::failed(Setlk::NUMBER, errno),
                };
                cx.answer(id, message, []);
            }
        }
    }
}

/// What a call about a lock asks for.
struct Asked {
    owner: Owner,
    /// `None` to unlock.
    kind: Option<Kind>,
    lock: Lock,
    pid: u32,
}

impl Asked {
    fn range(&self, kind: Kind, fh: u64) -> Range {
        Range { start: self.lock.start, end: self.lock.end, kind, pid: self.pid, fh }
    }
}

/// Reads the [`Lock`] of a call.
///
/// # Errors
/// EINVAL if it is malformed, of no known kind, or not a range.
fn parse(call: &Call<'_>) -> Result<Asked> {
    let Some(lock) = Lock::get(call.payload) else { return err(EINVAL) };
    let kind = match lock.kind {
        F_RDLCK => Some(Kind::Read),
        F_WRLCK => Some(Kind::Write),
        F_UNLCK => None,
        _ => return err(EINVAL),
    };
    if lock.start > lock.end || lock.end > END {
        return err(EINVAL);
    }
    let owner = Owner { endpoint: call.id.source, number: lock.owner };
    let pid = if lock.pid == 0 { call.cred.pid } else { lock.pid };
    Ok(Asked { owner, kind, lock, pid })
}

fn number_of(kind: Kind) -> u32 {
    match kind {
        Kind::Read => F_RDLCK,
        Kind::Write => F_WRLCK,
    }
}

/// A lock that somebody wants.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    ino: u64,
    family: Family,
    owner: Owner,
    range: Range,
}

/// The locks on one inode, and the calls that wait for one, in the order they came.
#[derive(Debug, Default)]
struct Table {
    held: BTreeMap<(Family, Owner), Vec<Range>>,
    queue: Vec<CallId>,
}

/// All locks.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    tables: BTreeMap<u64, Table>,
    waiting: BTreeMap<CallId, Waiting>,
    /// The calls in `waiting` by owner.
    waits_of: BTreeSet<(Owner, CallId)>,
}

impl Locks {
    pub(crate) fn open(store: &dyn Store) -> Locks {
        let mut locks = Locks::default();
        keys::collect(store, &keys::locks(), |key, value| {
            if let (Some([ino, family, endpoint, number, start]), Some(record)) =
                (keys::numbers(key), LockRecord::get(value))
            {
                let family = if family == 0 { Family::Record } else { Family::Flock };
                let owner = Owner { endpoint: Endpoint::from_bits(endpoint), number };
                let kind = if record.kind == F_WRLCK { Kind::Write } else { Kind::Read };
                let LockRecord { end, fh, pid, .. } = record;
                let table = locks.tables.entry(ino).or_default();
                let held = table.held.entry((family, owner)).or_default();
                held.push(Range { start, end, kind, pid, fh });
            }
        });
        locks
    }

    fn held(&self, ino: u64, family: Family, owner: Owner) -> &[Range] {
        let table = self.tables.get(&ino);
        table.and_then(|table| table.held.get(&(family, owner))).map_or(&[], |ranges| ranges)
    }

    /// All locks, for comparison.
    #[cfg(test)]
    pub(crate) fn all_held(&self) -> Vec<String> {
        let tables = self
            .tables
            .iter()
            .flat_map(|(ino, table)| table.held.iter().map(move |held| (ino, held)));
        tables.map(|held| format!("{held:?}")).collect()
    }

    /// For every other owner who is in the way of `wanted`, the first range that is.
    fn blocking<'a>(
        &'a self,
        ino: u64,
        family: Family,
        owner: Owner,
        wanted: &'a Range,
    ) -> impl Iterator<Item = (Owner, &'a Range)> {
        let table = self.tables.get(&ino);
        let others = table.into_iter().flat_map(|table| &table.held);
        others
            .filter(move |((other_family, other), _)| *other_family == family && *other != owner)
            .filter_map(|((_, other), held)| Some((*other, ranges::conflict(held, wanted)?)))
    }

    fn blocking_wish<'a>(&'a self, wish: &'a Waiting) -> impl Iterator<Item = Owner> {
        self.blocking(wish.ino, wish.family, wish.owner, &wish.range).map(|(owner, _)| owner)
    }

    fn is_blocked(&self, wish: &Waiting) -> bool {
        self.blocking_wish(wish).next().is_some()
    }

    /// Is somebody in the way of `wish` waiting, perhaps through others, for its owner?
    fn would_deadlock(&self, wish: &Waiting) -> bool {
        let mut seen = BTreeSet::new();
        let mut blocking: Vec<Owner> = self.blocking_wish(wish).collect();
        while let Some(owner) = blocking.pop() {
            if owner == wish.owner {
                return true;
            }
            if seen.insert(owner) {
                let waits = self.waits(owner).filter(|wish| wish.family == Family::Record);
                blocking.extend(waits.flat_map(|wish| self.blocking_wish(wish)));
            }
        }
        false
    }

    fn waits(&self, owner: Owner) -> impl Iterator<Item = &Waiting> {
        let first = CallId { source: Endpoint::NONE, tag: m3ipc::Tag(0) };
        let of_owner =
            self.waits_of.range((owner, first)..).take_while(move |(at, _)| *at == owner);
        of_owner.filter_map(|(_, id)| self.waiting.get(id))
    }

    /// Those who wait on `ino` and need not any more.
    fn grantable(&self, ino: u64) -> Vec<CallId> {
        let Some(table) = self.tables.get(&ino) else { return Vec::new() };
        let free = |id: &&CallId| self.waiting.get(id).is_some_and(|wish| !self.is_blocked(wish));
        table.queue.iter().filter(free).copied().collect()
    }

    /// Forgets the calls that wait through a handle, and names them.
    pub(crate) fn forget_waiting_through(&mut self, ino: u64, fh: u64) -> Vec<CallId> {
        let Some(table) = self.tables.get(&ino) else { return Vec::new() };
        let through = |id: &&CallId| self.waiting.get(id).is_some_and(|wish| wish.range.fh == fh);
        let waiting: Vec<CallId> = table.queue.iter().filter(through).copied().collect();
        for id in &waiting {
            self.forget(*id);
        }
        waiting
    }

    fn wait(&mut self, id: CallId, wish: Waiting) {
        self.tables.entry(wish.ino).or_default().queue.push(id);
        self.waits_of.insert((wish.owner, id));
        self.waiting.insert(id, wish);
    }

    fn forget(&mut self, id: CallId) -> Option<Waiting> {
        let wish = self.waiting.remove(&id)?;
        self.waits_of.remove(&(wish.owner, id));
        if let Some(table) = self.tables.get_mut(&wish.ino) {
            table.queue.retain(|queued| *queued != id);
        }
        self.tidy(wish.ino);
        Some(wish)
    }

    /// Gives `wish` to its owner, who must not be blocked.
    ///
    /// # Errors
    /// ENOLCK.
    fn set(&mut self, wish: &Waiting, store: &mut dyn Store) -> Result<()> {
        let splice = ranges::set(self.held(wish.ino, wish.family, wish.owner), wish.range);
        self.apply(wish.ino, wish.family, wish.owner, splice, store)
    }

    /// Unlocks a range. Says whether anything was locked there.
    ///
    /// # Errors
    /// ENOLCK if that would split a range and there are too many.
    fn clear(
        &mut self,
        ino: u64,
        family: Family,
        owner: Owner,
        start: u64,
        end: u64,
        store: &mut dyn Store,
    ) -> Result<bool> {
        let splice = ranges::clear(self.held(ino, family, owner), start, end);
        let found = splice.from < splice.to;
        if found {
            self.apply(ino, family, owner, splice, store)?;
        }
        Ok(found)
    }

    fn clear_handle(&mut self, ino: u64, fh: u64, store: &mut dyn Store) -> bool {
        let Some(table) = self.tables.get_mut(&ino) else { return false };
        let mut found = false;
        for ((family, owner), held) in &mut table.held {
            held.retain(|range| {
                let goes = range.fh == fh;
                if goes {
                    found = true;
                    store.remove(&key(ino, *family, *owner, range.start));
                }
                !goes
            });
        }
        table.held.retain(|_, held| !held.is_empty());
        self.tidy(ino);
        found
    }

    /// Changes an owner's ranges, in memory and in the store.
    fn apply(
        &mut self,
        ino: u64,
        family: Family,
        owner: Owner,
        splice: Splice,
        store: &mut dyn Store,
    ) -> Result<()> {
        let table = self.tables.entry(ino).or_default();
        let held = table.held.entry((family, owner)).or_default();
        let Splice { from, to, with } = splice;
        let grows = with.len() > to - from;
        if grows && held.len() + with.len() - (to - from) > RANGES_PER_OWNER_MAX {
            return Err(Errno::new(ENOLCK));
        }
        for old in &held[from..to] {
            store.remove(&key(ino, family, owner, old.start));
        }
        for new in &with {
            let Range { end, fh, pid, kind, .. } = *new;
            let record = LockRecord { end, fh, kind: number_of(kind), pid };
            store.put(&key(ino, family, owner, new.start), &record.bytes());
        }
        held.splice(from..to, with);
        if held.is_empty() {
            table.held.remove(&(family, owner));
        }
        self.tidy(ino);
        Ok(())
    }

    /// Forgets a table with nothing in it.
    fn tidy(&mut self, ino: u64) {
        if self
            .tables
            .get(&ino)
            .is_some_and(|table| table.held.is_empty() && table.queue.is_empty())
        {
            self.tables.remove(&ino);
        }
    }
}

fn key(ino: u64, family: Family, owner: Owner, start: u64) -> Vec<u8> {
    let family = match family {
        Family::Record => 0,
        Family::Flock => 1,
    };
    keys::lock(ino, family, owner.endpoint, owner.number, start)
}
