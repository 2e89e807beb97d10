//! Wait: who waits for the end of which process.

use crate::limits::{WAITS_MAX, WATCH_INTERVAL};
use dvk::server::Nanos;
use m3ipc::Endpoint;
use m3ipc::errno::numbers::EAGAIN;
use m3ipc::{CallId, Errno, Tag};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

#[derive(Debug, Default)]
pub(crate) struct Waits {
    calls: BTreeMap<CallId, u32>,
    by_pid: BTreeSet<(u32, CallId)>,
    /// When somebody waits for a process whose end only a report shows: when to ask for one.
    next_watch: Option<Nanos>,
}

impl Waits {
    /// Keeps `call` until `pid` ends. `watched`: only a report shows that.
    pub(crate) fn keep(
        &mut self,
        pid: u32,
        call: CallId,
        watched: bool,
        now: Nanos,
    ) -> Result<(), Errno> {
        if self.calls.len() >= WAITS_MAX {
            return Err(Errno::new(EAGAIN));
        }
        self.calls.insert(call, pid);
        self.by_pid.insert((pid, call));
        if watched && self.next_watch.is_none() {
            self.next_watch = Some(now);
        }
        Ok(())
    }

    /// All who wait for `pid`, which has ended.
    pub(crate) fn take_all(&mut self, pid: u32) -> Vec<CallId> {
        let first = CallId { source: Endpoint::from_bits(0), tag: Tag(0) };
        let last = CallId { source: Endpoint::from_bits(u64::MAX), tag: Tag(u64::MAX) };
        let waiting = self.by_pid.range((pid, first)..=(pid, last));
        let calls: Vec<CallId> = waiting.map(|(_, call)| *call).collect();
        for call in &calls {
            self.cancel(*call);
        }
        calls
    }

    pub(crate) fn is_kept(&self, call: CallId) -> bool {
        self.calls.contains_key(&call)
    }

    /// Forgets a waiting call; says whether there was one.
    pub(crate) fn cancel(&mut self, call: CallId) -> bool {
        let pid = self.calls.remove(&call);
        pid.map(|pid| self.by_pid.remove(&(pid, call))).is_some()
    }

    pub(crate) fn gone(&mut self, sources: &RangeInclusive<CallId>) {
        let calls: Vec<CallId> = self.calls.range(sources.clone()).map(|(id, _)| *id).collect();
        for call in calls {
            self.cancel(call);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.next_watch
    }

    /// The processes that somebody waits for, if it is time to ask for them.
    pub(crate) fn due(&self, now: Nanos) -> BTreeSet<u32> {
        if self.next_watch.is_none_or(|next| next > now) {
            return BTreeSet::new();
        }
        self.by_pid.iter().map(|(pid, _)| *pid).collect()
    }

    /// It has been asked, if it was time to; `watched`: and is to be asked again.
    pub(crate) fn watch_again(&mut self, watched: bool, now: Nanos) {
        if self.next_watch.is_some_and(|next| next <= now) {
            self.next_watch = watched.then(|| now.saturating_add(WATCH_INTERVAL));
        }
    }
}
