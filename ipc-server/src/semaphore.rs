//! POSIX named semaphores: SemOpen, SemClose, SemUnlink, SemWait, SemPost, SemGetvalue.
//!
//! A semaphore's value is above 0 only while nobody waits: a post goes to the first waiter directly.

use crate::flags::{O_CREAT, O_EXCL};
use crate::holders::Holders;
use crate::limits::{SEM_VALUE_MAX, SEMAPHORES_MAX};
use crate::permission::{Owner, READ, WRITE};
use crate::waiting::Waiting;
use crate::{Outcome, Served, done, fail, name, record, succeed};
use calls::ipc::{Object, SemClose, SemGetvalue, SemOpen, SemPost, SemUnlink, SemWait, Value};
use dvk::server::{Call, Context, Gone, Nanos};
use dvk::store::Store;
use m3ipc::errno::numbers::{EAGAIN, EEXIST, EINVAL, ENOENT, ENOSPC, EOVERFLOW, ETIMEDOUT};
use m3ipc::{CallId, Errno};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A semaphore but for its value, which changes with every operation and stands beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Semaphore {
    /// For lists. The id is a capability and is told to nobody but the holders.
    number: u64,
    /// Without its slash; none once it is unlinked.
    name: Option<Vec<u8>>,
    owner: Owner,
}

/// All semaphores of the DC.
#[derive(Debug)]
pub(crate) struct Semaphores {
    semaphores: BTreeMap<u64, Semaphore>,
    values: BTreeMap<u64, u32>,
    names: BTreeMap<Vec<u8>, u64>,
    holders: Holders,
    waiting: Waiting<u64, ()>,
    next_number: u64,
}

/// What a list says of a semaphore.
pub(crate) struct Row<'a> {
    pub(crate) number: u64,
    pub(crate) name: &'a [u8],
    pub(crate) owner: Owner,
    pub(crate) value: u32,
    pub(crate) waiters: usize,
}

impl Semaphores {
    pub(crate) fn open(store: &dyn Store) -> Semaphores {
        let mut all = Semaphores {
            semaphores: BTreeMap::new(),
            values: record::all(store, b'v').into_iter().map(|([id], value)| (id, value)).collect(),
            names: BTreeMap::new(),
            holders: Holders::open(store, b'h'),
            waiting: Waiting::new(),
            next_number: 0,
        };
        for ([id], semaphore) in record::all::<Semaphore, 1>(store, b's') {
            match &semaphore.name {
                Some(name) => drop(all.names.insert(name.clone(), id)),
                None if !all.holders.is_held(id) => all.holders.linger(id, None),
                None => {}
            }
            all.next_number = all.next_number.max(semaphore.number + 1);
            all.semaphores.insert(id, semaphore);
        }
        all
    }

    pub(crate) fn sem_open(
        &mut self,
        args: SemOpen,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let name = name::semaphore(call.payload)?;
        let create = args.flags & O_CREAT != 0;
        let exclusive = create && args.flags & O_EXCL != 0;
        if exclusive && args.value > SEM_VALUE_MAX {
            return Err(Errno::new(EINVAL));
        }
        let id = match self.names.get(name) {
            Some(_) if exclusive => return Err(Errno::new(EEXIST)),
            Some(id) => {
                // A semaphore is of use only to those who may both read and write it.
                self.semaphores[id].owner.allows(call.cred, READ | WRITE)?;
                *id
            }
            None if create => self.create(name, args, call, cx)?,
            None => return Err(Errno::new(ENOENT)),
        };
        self.holders.opened(cx.store, id, call.id.source);
        done::<SemOpen>(Object { id })
    }

    fn create(
        &mut self,
        name: &[u8],
        args: SemOpen,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<u64, Errno> {
        if args.value > SEM_VALUE_MAX {
            return Err(Errno::new(EINVAL));
        }
        if self.semaphores.len() >= SEMAPHORES_MAX {
            self.end(self.holders.all_lingering(), cx);
        }
        if self.semaphores.len() >= SEMAPHORES_MAX {
            return Err(Errno::new(ENOSPC));
        }
        let id = crate::unused_id(cx.entropy, |id| self.semaphores.contains_key(&id));
        let owner = Owner::new(call.cred, args.mode);
        let semaphore = Semaphore { number: self.next_number, name: Some(name.to_vec()), owner };
        self.next_number += 1;
        record::put(cx.store, b's', &[id], &semaphore);
        self.names.insert(name.to_vec(), id);
        self.semaphores.insert(id, semaphore);
        self.set_value(id, args.value, cx.store);
        Ok(id)
    }

    pub(crate) fn sem_close(
        &mut self,
        args: SemClose,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let semaphore = self.semaphores.get(&args.id).ok_or(Errno::new(EINVAL))?;
        self.holders.closed(cx.store, args.id, call.id.source);
        if semaphore.name.is_none() && !self.holders.is_held(args.id) {
            self.holders.linger(args.id, Some(cx.now));
        }
        done::<SemClose>(())
    }

    pub(crate) fn sem_unlink(&mut self, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let name = name::semaphore(call.payload)
            .map_err(|errno| if errno.errno == EINVAL { Errno::new(ENOENT) } else { errno })?;
        let id = *self.names.get(name).ok_or(Errno::new(ENOENT))?;
        let semaphore = self.semaphores.get_mut(&id).expect("a name leads to a semaphore");
        semaphore.owner.allows_unlink(call.cred)?;
        semaphore.name = None;
        self.names.remove(name);
        record::put(cx.store, b's', &[id], &self.semaphores[&id]);
        if !self.holders.is_held(id) {
            self.holders.linger(id, Some(cx.now));
        }
        done::<SemUnlink>(())
    }

    pub(crate) fn sem_wait(
        &mut self,
        args: SemWait,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let value = self.used(args.id, call, cx)?;
        if value > 0 {
            self.set_value(args.id, value - 1, cx.store);
            return done::<SemWait>(());
        }
        if args.wait_ns == 0 {
            return Err(Errno::new(EAGAIN));
        }
        self.waiting.keep(call, args.id, (), args.wait_ns, cx.now)?;
        Ok(Outcome::Kept)
    }

    pub(crate) fn sem_post(
        &mut self,
        args: SemPost,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let value = self.used(args.id, call, cx)?;
        if let Some(waiter) = self.waiting.take_first(args.id) {
            succeed::<SemWait>(&waiter, (), Vec::new(), cx);
        } else if value < SEM_VALUE_MAX {
            self.set_value(args.id, value + 1, cx.store);
        } else {
            return Err(Errno::new(EOVERFLOW));
        }
        done::<SemPost>(())
    }

    pub(crate) fn sem_getvalue(
        &mut self,
        args: SemGetvalue,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let value = self.used(args.id, call, cx)?;
        let value = i32::try_from(value).expect("no value is above SEM_VALUE_MAX");
        done::<SemGetvalue>(Value { value })
    }

    /// The caller uses semaphore `id`: its value. From now on the caller is a holder.
    fn used(&mut self, id: u64, call: &Call<'_>, cx: &mut Context<'_>) -> Result<u32, Errno> {
        let value = *self.values.get(&id).ok_or(Errno::new(EINVAL))?;
        self.holders.used(cx.store, id, call.id.source);
        Ok(value)
    }

    fn set_value(&mut self, id: u64, value: u32, store: &mut dyn Store) {
        self.values.insert(id, value);
        record::put(store, b'v', &[id], &value);
    }

    pub(crate) fn is_kept(&self, id: CallId) -> bool {
        self.waiting.contains(id)
    }

    /// The number of the kept call `id`, which is now forgotten.
    pub(crate) fn cancel(&mut self, id: CallId) -> Option<u16> {
        self.waiting.take(id).map(|kept| kept.call)
    }

    pub(crate) fn gone(&mut self, gone: Gone, cx: &mut Context<'_>) {
        self.waiting.forget(gone);
        let mut ended = self.holders.gone(cx.store, gone);
        ended.retain(|id| self.semaphores[id].name.is_none());
        match gone {
            Gone::Node(_) => self.end(ended, cx),
            Gone::Endpoint(_) => {
                ended.into_iter().for_each(|id| self.holders.linger(id, Some(cx.now)));
            }
        }
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        while let Some(waiter) = self.waiting.take_expired(cx.now) {
            fail(&waiter, ETIMEDOUT, cx);
        }
        let expired = self.holders.expired(cx.now);
        self.end(expired, cx);
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.waiting.deadline().into_iter().chain(self.holders.deadline()).min()
    }

    /// These unlinked semaphores are no more.
    fn end(&mut self, ids: Vec<u64>, cx: &mut Context<'_>) {
        for id in ids {
            while let Some(waiter) = self.waiting.take_first(id) {
                fail(&waiter, EINVAL, cx);
            }
            self.holders.forget(cx.store, id);
            self.semaphores.remove(&id);
            self.values.remove(&id);
            record::remove(cx.store, b's', &[id]);
            record::remove(cx.store, b'v', &[id]);
        }
    }

    /// The semaphores in the order of their making; those that only linger are not there.
    pub(crate) fn rows(&self) -> Vec<Row<'_>> {
        let there = self.semaphores.iter().filter(|(id, _)| !self.holders.lingers(**id));
        let mut rows: Vec<Row<'_>> = there
            .map(|(id, semaphore)| Row {
                number: semaphore.number,
                name: semaphore.name.as_deref().unwrap_or_default(),
                owner: semaphore.owner,
                value: self.values[id],
                waiters: self.waiting.on(*id).count(),
            })
            .collect();
        rows.sort_by_key(|row| row.number);
        rows
    }
}
