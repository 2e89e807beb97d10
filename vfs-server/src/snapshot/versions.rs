//! The store between the server and its own: it keeps what changes for the snapshots that see it, and makes of what it has kept what they see.

use super::layers;
use super::{DIRECTORY, NUMBER_END, Snapshots, Taken, is_in_snapshot, number_in, split};
use crate::dir::{DT_DIR, FIRST_COOKIE};
use crate::keys::{self, Entry, Inode, Place, mark};
use crate::linux::S_IFDIR;
use calls::vfs::{ROOT_INO, SNAPSHOTS_NAME};
use calls::wire::Wire;
use dvk::store::{Damage, Health, Store, StoreError};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Pairs that are looked at together when a range is made of several.
const WINDOW: usize = if cfg!(test) { 4 } else { 128 };

/// The server's store with the snapshots in it.
pub(super) struct Versions<'a> {
    pub(super) store: &'a mut dyn Store,
    pub(super) snapshots: &'a mut Snapshots,
    /// This round must end on stable storage.
    pub(super) must_sync: bool,
    /// What is done gives room back.
    pub(super) is_clearing_up: bool,
}

impl<'a> Versions<'a> {
    pub(super) fn new(store: &'a mut dyn Store, snapshots: &'a mut Snapshots) -> Versions<'a> {
        Versions { store, snapshots, must_sync: false, is_clearing_up: false }
    }

    /// Was there never a snapshot?
    fn is_plain(&self) -> bool {
        self.snapshots.counters.is_none()
    }

    /// What is under `key` is about to change, to `new` if that is an inode.
    pub(super) fn keep(&mut self, key: &[u8], new: Option<&[u8]>) {
        let Some(owner) = keys::owner(key) else { return };
        for (number, taken) in self.snapshots.list.iter().rev() {
            // It was made later, or something is kept of it already.
            if owner >= taken.record.ino_limit
                || self.store.get(&keys::kept(*number, key)).is_some()
            {
                return;
            }
            if !taken.is_going() {
                let old = self.store.get(key);
                if self.is_new_name(*number, key, old.as_deref())
                    || self.is_of_nobody(key, owner, old.as_deref(), new)
                {
                    return;
                }
                let value = old.map_or(vec![0], |old| [&[1], &old[..]].concat());
                self.store.put(&keys::kept(*number, key), &value);
                return;
            }
        }
    }

    /// What is under `key` is about to go, and it was made after the last snapshot: it need not be said any more that there was nothing.
    fn was_nothing(&mut self, key: &[u8]) -> bool {
        let Some(last) = self.snapshots.list.keys().next_back() else { return false };
        let kept = keys::kept(*last, key);
        let was_nothing = self.store.get(&kept).is_some_and(|value| value == [0]);
        if was_nothing {
            self.store.remove(&kept);
        }
        was_nothing
    }

    /// Is `old`, under `key`, a name that was made after snapshot `number`? (`None`: there is none, so it was not there then either.)
    fn is_new_name(&self, number: u64, key: &[u8], old: Option<&[u8]>) -> bool {
        let cookie = match key.first() {
            Some(b'N') => old.and_then(Entry::get).map(|entry| entry.cookie),
            Some(b'R') => keys::numbers(key).map(|[_, cookie]| cookie),
            _ => return false,
        };
        let dir = keys::owner(key).and_then(|dir| self.value_in(number, &keys::inode(dir)));
        let dir = dir.and_then(|value| Inode::get(&value));
        old.is_none() || cookie.zip(dir).is_some_and(|(cookie, dir)| cookie >= dir.next_cookie)
    }

    /// Does `old`, under `key`, which is to be `new`, belong to an inode that had no name whenever a snapshot was taken? One that gets a name
    /// later must not be taken for one that had it.
    fn is_of_nobody(&self, key: &[u8], owner: u64, old: Option<&[u8]>, new: Option<&[u8]>) -> bool {
        let is_nameless =
            |inode: Option<&[u8]>| inode.and_then(Inode::get).is_some_and(|inode| inode.nlink == 0);
        match key.first() {
            Some(b'I') => is_nameless(old) && (new.is_none() || is_nameless(new)),
            Some(b'T' | b'X' | b'B') => self.is_nameless(owner),
            _ => false,
        }
    }

    /// Is inode `ino` in snapshot `number`, with a name?
    pub(super) fn is_named_in(&self, number: u64, taken: &Taken, ino: u64) -> bool {
        ino < taken.record.ino_limit
            && self
                .value_in(number, &keys::inode(ino))
                .and_then(|value| Inode::get(&value))
                .is_some_and(|inode| inode.nlink != 0)
    }

    /// Had file `ino` no name whenever a snapshot was taken? Then nobody can find it there.
    pub(super) fn is_nameless(&self, ino: u64) -> bool {
        let mut all = self.snapshots.list.iter();
        !all.any(|(number, taken)| self.is_named_in(*number, taken, ino))
    }

    /// What snapshot `number` has under `key`, if that was made before it.
    fn value_in(&self, number: u64, key: &[u8]) -> Option<Vec<u8>> {
        let mut later = self.snapshots.list.range(number..).map(|(number, _)| number);
        match later.find_map(|number| self.store.get(&keys::kept(*number, key))) {
            Some(kept) => kept.split_first().filter(|(is, _)| **is != 0).map(|(_, old)| old.into()),
            None => self.store.get(key),
        }
    }

    /// What snapshot `number` has under `key`.
    fn seen(&self, number: u64, key: &[u8]) -> Option<Vec<u8>> {
        let taken = self.snapshots.find(number)?;
        let owner = keys::owner(key).filter(|owner| *owner < taken.record.ino_limit)?;
        let value = self.value_in(number, key)?;
        match key.first() {
            // Without a name nobody can find it.
            Some(b'I') if Inode::get(&value).is_some_and(|inode| inode.nlink == 0) => None,
            Some(b'N') => {
                let end = self.cookies_end(number, owner)?;
                Entry::get(&value).is_none_or(|entry| entry.cookie < end).then_some(value)
            }
            _ => Some(value),
        }
    }

    /// Names of directory `ino` with this cookie or a greater one are not in snapshot `number`.
    fn cookies_end(&self, number: u64, ino: u64) -> Option<u64> {
        let inode = self.seen(number, &keys::inode(ino))?;
        Inode::get(&inode).map(|inode| inode.next_cookie)
    }

    /// As [`Store::range`], of what snapshot `number` has.
    #[expect(clippy::type_complexity, reason = "as in the trait")]
    fn seen_range(
        &self,
        number: u64,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        let mut at = from.to_vec();
        loop {
            // What is kept earlier counts.
            let mut window: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
            let mut last: Option<Vec<u8>> = None;
            let bounded = |found: &[(Vec<u8>, Vec<u8>)], last: Option<Vec<u8>>| {
                let end = found.last().filter(|_| found.len() == WINDOW).map(|(key, _)| key);
                last.into_iter().chain(end.cloned()).min()
            };
            for number in self.snapshots.list.range(number..).map(|(number, _)| *number) {
                let (first, end) = (keys::kept(number, &at), keys::kept(number, to));
                let mut found = layers::first(self.store, &first, &end, WINDOW);
                for (key, _) in &mut found {
                    *key = keys::kept_key(key).to_vec();
                }
                last = bounded(&found, last);
                for (key, value) in found {
                    let old = value.split_first().filter(|(is, _)| **is != 0);
                    window.entry(key).or_insert_with(|| old.map(|(_, old)| old.to_vec()));
                }
            }
            let found = layers::first(self.store, &at, to, WINDOW);
            last = bounded(&found, last);
            for (key, value) in found {
                window.entry(key).or_insert(Some(value));
            }
            for (key, value) in &window {
                if last.as_ref().is_some_and(|last| last < key) {
                    break;
                }
                if let Some(value) = value
                    && visit(key, value).is_break()
                {
                    return;
                }
            }
            let Some(last) = last else { return };
            at = [&last[..], &[0]].concat();
        }
    }

    /// What is under `key`, which belongs to inode `ino` of snapshot `number`.
    fn get_in(&self, number: u64, ino: u64, key: &[u8]) -> Option<Vec<u8>> {
        if number == 0 {
            return self.get_of_directory(key);
        }
        let value = self.seen(number, &with_owner(key, ino))?;
        Some(translated(number, key, value))
    }

    /// What is under a key of the directory of all snapshots.
    fn get_of_directory(&self, key: &[u8]) -> Option<Vec<u8>> {
        match key.first()? {
            b'I' => Some(self.directory().bytes().into()),
            b'N' => {
                let number = self.snapshots.named(key.get(9..)?)?;
                Some(entry_of(number).bytes().into())
            }
            _ => None,
        }
    }

    fn directory(&self) -> Inode {
        let taken = self.snapshots.visible().last().map(|(_, taken)| taken.record.taken);
        let taken = taken.unwrap_or_default();
        let count = self.snapshots.visible().count();
        Inode {
            ino: DIRECTORY,
            parent: ROOT_INO,
            size: count as u64,
            next_cookie: cookie_of(NUMBER_END),
            atime: taken,
            mtime: taken,
            ctime: taken,
            mode: S_IFDIR | 0o555,
            nlink: u32::try_from(count).unwrap_or(u32::MAX).saturating_add(2),
            ..Inode::default()
        }
    }

    /// Where the bytes of an inode of a snapshot are; `None`: it has been removed.
    pub(super) fn blob_in(&self, number: u64, ino: u64) -> Option<u64> {
        self.snapshots.find(number).filter(|taken| ino < taken.record.ino_limit)?;
        match self.seen(number, &keys::bytes(ino)) {
            None => Some(ino),
            Some(value) => keys::Bytes::get(&value).map(|bytes| bytes.blob),
        }
    }

    /// Where the bytes of inode `ino` are.
    fn blob_of(&self, ino: u64) -> std::result::Result<u64, StoreError> {
        match split(ino) {
            Some((number, ino)) => self.blob_in(number, ino).ok_or(StoreError::Io),
            None if self.is_plain() => Ok(ino),
            None => layers::bytes_of(self.store, ino).map(|bytes| bytes.blob),
        }
    }
}

/// A key of inode `ino` instead of whose it is.
fn with_owner(key: &[u8], ino: u64) -> Vec<u8> {
    let mut key = key.to_vec();
    if let Some(owner) = key.get_mut(1..9) {
        owner.copy_from_slice(&ino.to_be_bytes());
    }
    key
}

/// What is under `key` in snapshot `number`, with the numbers that inodes have there.
fn translated(number: u64, key: &[u8], value: Vec<u8>) -> Vec<u8> {
    let found = match key.first() {
        Some(b'I') => Inode::get(&value).map(|inode| {
            let parent = match inode.ino {
                ROOT_INO => DIRECTORY,
                _ => number_in(number, inode.parent),
            };
            let marks = inode.marks & (mark::CAPABILITY | mark::ACL_ACCESS | mark::ACL_DEFAULT);
            let ino = number_in(number, inode.ino);
            Inode { ino, parent, marks, tree: 0, ..inode }.bytes().to_vec()
        }),
        Some(b'N') => Entry::get(&value)
            .map(|entry| Entry { ino: number_in(number, entry.ino), ..entry }.bytes().to_vec()),
        Some(b'R') => Place::get(&value).map(|place| {
            let head = Place { ino: number_in(number, place.ino), ..place }.bytes();
            [&head[..], value.get(Place::SIZE..).unwrap_or_default()].concat()
        }),
        _ => None,
    };
    // What is damaged stays so.
    found.unwrap_or(value)
}

fn cookie_of(number: u64) -> u64 {
    FIRST_COOKIE + number
}

/// What the name of snapshot `number` stands for.
fn entry_of(number: u64) -> Entry {
    Entry { ino: number_in(number, ROOT_INO), cookie: cookie_of(number), kind: DT_DIR }
}

impl Store for Versions<'_> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match keys::owner(key).and_then(split) {
            Some((number, ino)) => self.get_in(number, ino, key),
            None => self.store.get(key).or_else(|| {
                let is_directory = key.first() == Some(&b'N')
                    && keys::owner(key) == Some(ROOT_INO)
                    && key.get(9..) == Some(SNAPSHOTS_NAME);
                let directory = Entry { ino: DIRECTORY, cookie: u64::MAX, kind: DT_DIR };
                is_directory.then(|| directory.bytes().into())
            }),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        if keys::owner(key).is_some_and(is_in_snapshot) {
            return;
        }
        self.keep(key, Some(value));
        self.store.put(key, value);
        if key.first() == Some(&b'S')
            && let (Some([number]), Some(taken)) = (keys::numbers(key), Taken::get(value))
        {
            self.snapshots.put(number, taken, self.store);
        }
    }

    fn remove(&mut self, key: &[u8]) {
        let owner = keys::owner(key);
        if owner.is_some_and(is_in_snapshot) {
            return;
        }
        if owner.is_some() && !self.was_nothing(key) {
            self.keep(key, None);
        }
        self.store.remove(key);
    }

    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        let Some((number, ino)) = keys::owner(from).and_then(split) else {
            return self.store.range(from, to, visit);
        };
        if number == 0 {
            for (number, taken) in self.snapshots.visible() {
                let key = keys::place(DIRECTORY, cookie_of(number));
                let place = Place { ino: number_in(number, ROOT_INO), kind: DT_DIR };
                let value = [&place.bytes()[..], &taken.name].concat();
                if from <= &key[..] && &key[..] < to && visit(&key, &value).is_break() {
                    return;
                }
            }
            return;
        }
        if self.snapshots.find(number).is_none() {
            return;
        }
        let end = keys::owner(to).and_then(split).map_or(ino + 1, |(_, end)| end);
        let (from, mut to) = (with_owner(from, ino), with_owner(to, end));
        if from.first() == Some(&b'R') {
            let Some(end) = self.cookies_end(number, ino) else { return };
            to = to.min(keys::place(ino, end));
        }
        self.seen_range(number, &from, &to, &mut |key, value| {
            let owner = keys::owner(key).unwrap_or(ino);
            let key = with_owner(key, number_in(number, owner));
            visit(&key, &translated(number, &key, value.to_vec()))
        });
    }

    fn blob_read(
        &self,
        ino: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> std::result::Result<usize, StoreError> {
        let blob = self.blob_of(ino)?;
        if self.is_plain() {
            return self.store.blob_read(blob, offset, buffer);
        }
        layers::read(self.store, blob, offset, buffer)
    }

    fn blob_write(
        &mut self,
        ino: u64,
        offset: u64,
        data: &[u8],
    ) -> std::result::Result<(), StoreError> {
        if self.is_plain() {
            return self.store.blob_write(ino, offset, data);
        }
        self.write_bytes(ino, offset, data)
    }

    fn blob_truncate(&mut self, ino: u64, length: u64) -> std::result::Result<(), StoreError> {
        if self.is_plain() {
            return self.store.blob_truncate(ino, length);
        }
        self.truncate_bytes(ino, length)
    }

    fn blob_punch(
        &mut self,
        ino: u64,
        offset: u64,
        length: u64,
    ) -> std::result::Result<(), StoreError> {
        if self.is_plain() {
            return self.store.blob_punch(ino, offset, length);
        }
        self.punch_bytes(ino, offset, length)
    }

    fn blob_seek(&self, ino: u64, offset: u64, hole: bool) -> Option<u64> {
        let blob = self.blob_of(ino).ok()?;
        if self.is_plain() {
            return self.store.blob_seek(blob, offset, hole);
        }
        layers::seek(self.store, blob, offset, hole)
    }

    fn blob_used(&self, ino: u64) -> u64 {
        let Ok(blob) = self.blob_of(ino) else { return 0 };
        if self.is_plain() {
            return self.store.blob_used(blob);
        }
        layers::used(self.store, blob)
    }

    fn blob_remove(&mut self, ino: u64) {
        if self.is_plain() {
            return self.store.blob_remove(ino);
        }
        if !is_in_snapshot(ino) {
            // What is damaged stays.
            self.remove_bytes(ino).ok();
        }
    }

    fn blob_is_shared(&self, ino: u64) -> bool {
        // Of what is damaged nothing is known.
        !self.is_plain() && (is_in_snapshot(ino) || self.is_shared(ino).unwrap_or(true))
    }

    fn blob_sync(&mut self, ino: u64) {
        if self.is_plain() {
            return self.store.blob_sync(ino);
        }
        // What a snapshot has is as safe as it was.
        if !is_in_snapshot(ino) {
            self.sync_bytes(ino).ok();
        }
    }

    fn space(&self) -> (u64, u64) {
        self.store.space()
    }

    fn scrub(&mut self) {
        self.store.scrub();
    }

    fn health(&self) -> Health {
        let mut health = self.store.health();
        if !self.is_plain() {
            let found = health.damage.into_iter();
            let of_file = |Damage { blob, offset }| {
                self.file_of(blob, offset).map(|blob| Damage { blob, offset })
            };
            health.damage = found.filter_map(of_file).collect();
        }
        health
    }
}
