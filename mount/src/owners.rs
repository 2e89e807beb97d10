//! Who may hold record locks through this agent. close(2) drops those of its process: of all others it need not tell the server.

use crate::estate;
use crate::limits::LOCK_OWNERS_MAX;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock's inode and its owner, as the kernel names them.
type Key = (u64, u64);

/// The owners of record locks.
#[derive(Debug)]
pub(crate) struct Owners {
    table: Mutex<Table>,
    /// How many are in the table, to be looked at without its lock.
    count: AtomicUsize,
    /// As a successor finds them.
    rows: estate::Table<3>,
}

#[derive(Debug, Default)]
struct Table {
    /// The open file through which each has asked for a lock last, and its row.
    file_of: HashMap<Key, (u64, usize)>,
    /// Those that have through an open file.
    of_file: HashMap<u64, Vec<Key>>,
    /// There have been more than there is room for: anybody may hold one.
    is_full: bool,
}

impl Owners {
    /// With those that the rows have. If there have been too many, there are as many again.
    pub(crate) fn new(rows: estate::Table<3>) -> Owners {
        let mut table = Table::default();
        for (row, [ino, owner, fh]) in rows.rows() {
            // It was dropping its locks, and took others.
            if table.file_of.contains_key(&(ino, owner)) {
                rows.remove(row);
                continue;
            }
            table.file_of.insert((ino, owner), (fh, row));
            table.of_file.entry(fh).or_default().push((ino, owner));
        }
        table.is_full = table.file_of.len() >= LOCK_OWNERS_MAX;
        let owners = Owners { table: Mutex::default(), count: AtomicUsize::new(0), rows };
        owners.count(&table);
        *owners.table() = table;
        owners
    }

    /// An owner is about to ask for a lock through open file `fh`.
    pub(crate) fn add(&self, ino: u64, owner: u64, fh: u64) {
        let mut table = self.table();
        match table.file_of.get(&(ino, owner)).copied() {
            Some((before, _)) if before == fh => {}
            Some((_, row)) => {
                self.rows.set(row, 2, fh);
                table.file_of.insert((ino, owner), (fh, row));
                table.of_file.entry(fh).or_default().push((ino, owner));
            }
            None => match self.rows.must_put([ino, owner, fh]) {
                Some(row) => {
                    table.file_of.insert((ino, owner), (fh, row));
                    table.of_file.entry(fh).or_default().push((ino, owner));
                }
                None => table.is_full = true,
            },
        }
        self.count(&table);
    }

    /// May an owner have locks on an inode?
    pub(crate) fn may_hold(&self, ino: u64, owner: u64) -> bool {
        // An owner's own locks are added before it can close anything.
        self.count.load(Ordering::SeqCst) > 0 && {
            let table = self.table();
            table.is_full || table.file_of.contains_key(&(ino, owner))
        }
    }

    /// An owner drops all its locks on an inode. A successor is to know of them until [`Owners::forget`].
    pub(crate) fn remove(&self, ino: u64, owner: u64) -> Option<usize> {
        let mut table = self.table();
        let removed = table.file_of.remove(&(ino, owner));
        self.count(&table);
        removed.map(|(_, row)| row)
    }

    /// The server knows that those are dropped.
    pub(crate) fn forget(&self, row: Option<usize>) {
        row.into_iter().for_each(|row| self.rows.remove(row));
    }

    /// An open file is closed, and the locks that were taken through it are gone.
    pub(crate) fn close(&self, fh: u64) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut table = self.table();
        for key in table.of_file.remove(&fh).unwrap_or_default() {
            if let Some((_, row)) = table.file_of.get(&key).copied().filter(|(last, _)| *last == fh)
            {
                table.file_of.remove(&key);
                self.rows.remove(row);
            }
        }
        self.count(&table);
    }

    fn count(&self, table: &Table) {
        let count = table.of_file.len() + table.file_of.len() + usize::from(table.is_full);
        self.count.store(count, Ordering::SeqCst);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Default for Owners {
    fn default() -> Owners {
        Owners::new(crate::estate::Estate::default().take().owners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_may_hold_locks_from_when_it_asks_until_it_closes_a_descriptor() {
        let owners = Owners::default();
        assert!(!owners.may_hold(1, 7));
        owners.add(1, 7, 100);
        assert!(owners.may_hold(1, 7));
        assert!(!owners.may_hold(1, 8) && !owners.may_hold(2, 7));
        owners.remove(1, 7);
        assert!(!owners.may_hold(1, 7));
    }

    #[test]
    fn what_is_closed_late_takes_nothing_from_who_has_locked_again() {
        let owners = Owners::default();
        owners.add(1, 7, 100);
        owners.remove(1, 7);
        owners.add(1, 7, 200);
        owners.close(100);
        assert!(owners.may_hold(1, 7));
        owners.close(200);
        assert!(!owners.may_hold(1, 7));
        assert_eq!(owners.count.load(Ordering::SeqCst), 0, "nothing is left");
    }

    #[test]
    fn owners_are_bounded() {
        let owners = Owners::default();
        for owner in 0..=LOCK_OWNERS_MAX as u64 {
            owners.add(1, owner, 9);
            owners.add(1, owner, 9);
        }
        assert_eq!(owners.table().file_of.len(), LOCK_OWNERS_MAX);
        assert_eq!(owners.table().of_file[&9].len(), LOCK_OWNERS_MAX);
        assert!(owners.may_hold(1, u64::MAX), "anybody may");
    }
}
