//! Kept calls: who waits for what, in which order, until when.

use crate::limits::{WAITING_BYTES_MAX, WAITING_MAX};
use calls::ipc::FOREVER;
use dvk::server::{Call, Gone, Nanos};
use m3ipc::errno::numbers::ENOMEM;
use m3ipc::{CallId, Endpoint, Errno, Tag};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// One kept call: it waits for something to happen to `target`.
#[derive(Debug)]
pub(crate) struct Kept<T, W> {
    pub(crate) id: CallId,
    /// The call's number, for its answer.
    pub(crate) call: u16,
    pub(crate) target: T,
    pub(crate) wants: W,
    ticket: u64,
    deadline: Option<Nanos>,
    weight: usize,
}

/// The kept calls of one kind, each target's in the order of their arrival.
#[derive(Debug)]
pub(crate) struct Waiting<T, W> {
    calls: BTreeMap<CallId, Kept<T, W>>,
    order: BTreeMap<(T, u64), CallId>,
    deadlines: BTreeSet<(Nanos, CallId)>,
    next_ticket: u64,
    weight: usize,
}

impl<T: Copy + Ord, W> Waiting<T, W> {
    pub(crate) fn new() -> Waiting<T, W> {
        Waiting {
            calls: BTreeMap::new(),
            order: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_ticket: 0,
            weight: 0,
        }
    }

    /// Keeps `call` until something happens to `target` or `wait_ns` from `now` are over. It weighs
    /// as much as its payload.
    pub(crate) fn keep(
        &mut self,
        call: &Call<'_>,
        target: T,
        wants: W,
        wait_ns: u64,
        now: Nanos,
    ) -> Result<(), Errno> {
        let weight = self.weight + call.payload.len();
        if self.calls.len() >= WAITING_MAX || weight > WAITING_BYTES_MAX {
            return Err(Errno::new(ENOMEM));
        }
        let deadline = (wait_ns != FOREVER).then(|| now.saturating_add(wait_ns));
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.weight = weight;
        self.order.insert((target, ticket), call.id);
        self.deadlines.extend(deadline.map(|deadline| (deadline, call.id)));
        let (id, number, weight) = (call.id, call.message.call, call.payload.len());
        self.calls.insert(id, Kept { id, call: number, target, wants, ticket, deadline, weight });
        Ok(())
    }

    pub(crate) fn contains(&self, id: CallId) -> bool {
        self.calls.contains_key(&id)
    }

    /// Those who wait for `target`, longest first.
    pub(crate) fn on(&self, target: T) -> impl Iterator<Item = &Kept<T, W>> {
        self.order.range((target, 0)..=(target, u64::MAX)).map(|(_, id)| &self.calls[id])
    }

    pub(crate) fn take(&mut self, id: CallId) -> Option<Kept<T, W>> {
        let kept = self.calls.remove(&id)?;
        self.order.remove(&(kept.target, kept.ticket));
        if let Some(deadline) = kept.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        self.weight -= kept.weight;
        Some(kept)
    }

    /// The one that has waited for `target` longest.
    pub(crate) fn take_first(&mut self, target: T) -> Option<Kept<T, W>> {
        let id = self.on(target).next()?.id;
        self.take(id)
    }

    /// The one that has waited longest of those on `target` that are `wanted`.
    pub(crate) fn take_where(
        &mut self,
        target: T,
        wanted: impl Fn(&W) -> bool,
    ) -> Option<Kept<T, W>> {
        let id = self.on(target).find(|kept| wanted(&kept.wants))?.id;
        self.take(id)
    }

    /// One whose time is over.
    pub(crate) fn take_expired(&mut self, now: Nanos) -> Option<Kept<T, W>> {
        let (_, id) = *self.deadlines.first().filter(|(deadline, _)| *deadline <= now)?;
        self.take(id)
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Forgets the calls of who is gone; they need no answer.
    pub(crate) fn forget(&mut self, gone: Gone) {
        let sources = sources(gone);
        let from = CallId { source: *sources.start(), tag: Tag(0) };
        let to = CallId { source: *sources.end(), tag: Tag(u64::MAX) };
        let ids: Vec<CallId> = self.calls.range(from..=to).map(|(id, _)| *id).collect();
        for id in ids {
            self.take(id);
        }
    }
}

/// The endpoints that are gone.
pub(crate) fn sources(gone: Gone) -> RangeInclusive<Endpoint> {
    match gone {
        Gone::Endpoint(endpoint) => endpoint..=endpoint,
        Gone::Node(node) => Endpoint::new(node, 0, 0)..=Endpoint::new(node, u32::MAX, u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::NodeId;

    #[test]
    fn a_node_is_all_its_endpoints_and_no_others() {
        let gone = sources(Gone::Node(NodeId(2)));
        for (node, index, inside) in [
            (1, (1 << 20) - 1, false),
            (2, 0, true),
            (2, 9, true),
            (2, (1 << 20) - 1, true),
            (3, 0, false),
        ] {
            assert_eq!(
                gone.contains(&Endpoint::new(NodeId(node), index, 5)),
                inside,
                "{node} {index}"
            );
        }
    }
}
