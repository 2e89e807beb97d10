//! What of the daemon's own each user of a container has: counted for as long as it is kept.

use m3ipc::{DcId, IpcError};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many of one kind of thing there are, by user.
#[derive(Debug)]
pub(super) struct Quota {
    by_user: BTreeMap<(DcId, u32), Arc<AtomicUsize>>,
    /// That an ordinary user may have.
    most: usize,
}

/// One of them. Dropped, it counts no more.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Quota {
    pub(super) fn new(most: usize) -> Quota {
        Quota { by_user: BTreeMap::new(), most }
    }

    /// Counts one more.
    ///
    /// # Errors
    /// [`IpcError::Exhausted`]: an ordinary user has as many as it may.
    pub(super) fn take(
        &mut self,
        user: (DcId, u32),
        is_privileged: bool,
    ) -> Result<Counted, IpcError> {
        if !self.by_user.contains_key(&user) {
            self.by_user.retain(|_, count| count.load(Ordering::Relaxed) > 0);
        }
        let count = self.by_user.entry(user).or_default();
        if !is_privileged && count.load(Ordering::Relaxed) >= self.most {
            return Err(IpcError::Exhausted);
        }
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Counted(Arc::clone(count)))
    }

    #[cfg(test)]
    pub(super) fn count(&self, user: (DcId, u32)) -> usize {
        self.by_user.get(&user).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

/// The descriptor of a channel between two processes of this node, counted for its requester's user.
#[derive(Debug)]
pub(super) struct KeptChannel {
    fd: OwnedFd,
    _counted: Counted,
}

impl KeptChannel {
    pub(super) fn new(fd: OwnedFd, counted: Counted) -> KeptChannel {
        KeptChannel { fd, _counted: counted }
    }
}

impl AsFd for KeptChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_user_has_so_many_at_once_and_others_have_theirs() {
        let mut quota = Quota::new(2);
        let (one, other) = ((DcId(1), 1000), (DcId(2), 1000));
        let [first, _second] = [(); 2].map(|()| quota.take(one, false).unwrap());
        assert_eq!(quota.take(one, false).err(), Some(IpcError::Exhausted));
        let _theirs = quota.take(other, false).unwrap();
        let _any = quota.take(one, true).unwrap();
        assert!(quota.take(one, false).is_err(), "three are there");
        drop((first, _any));
        let _again = quota.take(one, false).unwrap();
        assert_eq!(quota.by_user.len(), 2);
        drop(_theirs);
        let _new = quota.take((DcId(3), 1), false).unwrap();
        assert_eq!(quota.by_user.len(), 2, "who has none is forgotten");
    }
}
