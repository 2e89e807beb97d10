//! What open calls between two nodes take up: in all, and for each user of a container.
//!
//! A bound that all share is one that somebody can use up. So an ordinary user may have a quarter of it.

use crate::limits::{CALLS_BYTES, CALLS_BYTES_PER_USER, CALLS_PER_NODE, CALLS_PER_USER};
use m3ipc::DcId;
use std::collections::BTreeMap;

/// A user of a container, by number.
pub(super) type User = (DcId, u32);

/// Calls that are open, and bytes kept for them.
#[derive(Debug, Default)]
pub(super) struct Shares {
    all: Share,
    by_user: BTreeMap<User, Share>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    calls: usize,
    bytes: usize,
}

impl Share {
    fn is_below(self, calls: usize, bytes: usize) -> bool {
        self.calls < calls && self.bytes <= bytes
    }
}

impl Shares {
    /// Is there room for one more call of this user?
    pub(super) fn has_room(&self, user: User) -> bool {
        let own = self.by_user.get(&user).copied().unwrap_or_default();
        let is_ordinary = user.1 != 0;
        self.all.is_below(CALLS_PER_NODE, CALLS_BYTES)
            && (!is_ordinary || own.is_below(CALLS_PER_USER, CALLS_BYTES_PER_USER))
    }

    pub(super) fn add(&mut self, user: User, bytes: usize) {
        for share in [&mut self.all, self.by_user.entry(user).or_default()] {
            share.calls += 1;
            share.bytes += bytes;
        }
    }

    /// More is kept for one of them.
    pub(super) fn grow(&mut self, user: User, bytes: usize) {
        for share in [&mut self.all, self.by_user.entry(user).or_default()] {
            share.bytes += bytes;
        }
    }

    pub(super) fn remove(&mut self, user: User, bytes: usize) {
        let Some(own) = self.by_user.get_mut(&user) else { return };
        for share in [&mut self.all, &mut *own] {
            share.calls -= 1;
            share.bytes -= bytes;
        }
        if *own == Share::default() {
            self.by_user.remove(&user);
        }
    }

    pub(super) fn calls(&self) -> usize {
        self.all.calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: User = (DcId(1), 1000);
    const SAME_IN_ANOTHER: User = (DcId(2), 1000);
    const ROOT: User = (DcId(1), 0);

    #[test]
    fn a_user_uses_up_its_own_share_of_calls_and_nobody_elses() {
        let mut shares = Shares::default();
        for _ in 0..CALLS_PER_USER {
            assert!(shares.has_room(ONE));
            shares.add(ONE, 0);
        }
        assert!(!shares.has_room(ONE) && shares.has_room(SAME_IN_ANOTHER));
        for _ in CALLS_PER_USER..CALLS_PER_NODE {
            assert!(shares.has_room(ROOT));
            shares.add(ROOT, 0);
        }
        assert!(!shares.has_room(ROOT) && !shares.has_room(SAME_IN_ANOTHER));
        shares.remove(ONE, 0);
        assert!(shares.has_room(ONE) && shares.has_room(ROOT));
        assert_eq!(shares.calls(), CALLS_PER_NODE - 1);
    }

    #[test]
    fn nor_of_bytes() {
        let mut shares = Shares::default();
        shares.add(ONE, CALLS_BYTES_PER_USER);
        assert!(shares.has_room(ONE));
        shares.grow(ONE, 1);
        assert!(!shares.has_room(ONE) && shares.has_room(SAME_IN_ANOTHER));
        shares.add(ROOT, CALLS_BYTES);
        assert!(!shares.has_room(SAME_IN_ANOTHER));
        shares.remove(ROOT, CALLS_BYTES);
        shares.remove(ONE, CALLS_BYTES_PER_USER + 1);
        assert_eq!((shares.all, shares.by_user.len()), (Share::default(), 0));
    }
}
