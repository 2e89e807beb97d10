//! List: every node is asked for a report, and the table is told page by page.

use crate::limits::{LISTS_MAX, REPORT_WAIT, SNAPSHOT_LIFE, SNAPSHOTS_MAX};
use crate::orders::{Orders, Purpose};
use crate::table::Table;
use calls::answer;
use calls::pm::{List, Order, order};
use calls::vfs::Count;
use dvk::server::{Context, Nanos};
use m3ipc::errno::numbers::EAGAIN;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{CallId, Endpoint, Errno, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// A list for which reports are collected.
#[derive(Debug)]
struct Collection {
    args: List,
    /// Reports that have not come yet.
    missing: BTreeSet<u64>,
    deadline: Nanos,
}

/// A list as one caller has seen the beginning of it.
#[derive(Debug)]
struct Snapshot {
    records: Vec<Vec<u8>>,
    end: Nanos,
}

#[derive(Debug, Default)]
pub(crate) struct Lists {
    collections: BTreeMap<CallId, Collection>,
    deadlines: BTreeSet<(Nanos, CallId)>,
    snapshots: BTreeMap<Endpoint, Snapshot>,
}

impl Lists {
    /// Answers a later page at once; for a first one, orders reports and waits for them.
    pub(crate) fn list(
        &mut self,
        args: List,
        call: CallId,
        (table, orders): (&Table, &mut Orders),
        cx: &mut Context<'_>,
    ) -> Result<(), Errno> {
        if args.from > 0
            && let Some(snapshot) = self.snapshots.get(&call.source)
        {
            tell(call, args, &snapshot.records, cx);
            return Ok(());
        }
        if self.collections.len() >= LISTS_MAX {
            return Err(Errno::new(EAGAIN));
        }
        let nodes = orders.nodes().into_iter();
        let missing = nodes.filter_map(|node| ask(node, orders, cx)).collect();
        let deadline = cx.now.saturating_add(REPORT_WAIT);
        self.deadlines.insert((deadline, call));
        self.collections.insert(call, Collection { args, missing, deadline });
        self.settle(table, cx);
        Ok(())
    }

    /// A report has come, or will not.
    pub(crate) fn reported(&mut self, order: u64, table: &Table, cx: &mut Context<'_>) {
        for collection in self.collections.values_mut() {
            collection.missing.remove(&order);
        }
        self.settle(table, cx);
    }

    /// Answers the lists that miss nothing any more.
    fn settle(&mut self, table: &Table, cx: &mut Context<'_>) {
        let complete = self.collections.iter().filter(|(_, one)| one.missing.is_empty());
        let complete: Vec<CallId> = complete.map(|(call, _)| *call).collect();
        for call in complete {
            self.finish(call, table, cx);
        }
    }

    /// Answers a list with what the table has.
    fn finish(&mut self, call: CallId, table: &Table, cx: &mut Context<'_>) -> Option<Collection> {
        let collection = self.take(call)?;
        let records = table.records();
        tell(call, collection.args, &records, cx);
        let end = cx.now.saturating_add(SNAPSHOT_LIFE);
        self.snapshots.insert(call.source, Snapshot { records, end });
        if self.snapshots.len() > SNAPSHOTS_MAX {
            let oldest = self.snapshots.iter().min_by_key(|(_, snapshot)| snapshot.end);
            let oldest = *oldest.expect("there are more than that").0;
            self.snapshots.remove(&oldest);
        }
        Some(collection)
    }

    fn take(&mut self, call: CallId) -> Option<Collection> {
        let collection = self.collections.remove(&call)?;
        self.deadlines.remove(&(collection.deadline, call));
        Some(collection)
    }

    /// Withdraws the reports for which no other list waits.
    fn withdraw(&self, collection: &Collection, orders: &mut Orders) {
        for order in &collection.missing {
            if self.collections.values().all(|other| !other.missing.contains(order)) {
                orders.forget(*order);
            }
        }
    }

    pub(crate) fn is_kept(&self, call: CallId) -> bool {
        self.collections.contains_key(&call)
    }

    /// Forgets a list; says whether there was one.
    pub(crate) fn cancel(&mut self, call: CallId, orders: &mut Orders) -> bool {
        let taken = self.take(call);
        taken.map(|collection| self.withdraw(&collection, orders)).is_some()
    }

    pub(crate) fn gone(&mut self, sources: &RangeInclusive<CallId>, orders: &mut Orders) {
        let calls: Vec<CallId> =
            self.collections.range(sources.clone()).map(|(id, _)| *id).collect();
        for call in calls {
            self.cancel(call, orders);
        }
        self.snapshots.retain(|endpoint, _| {
            !(sources.start().source..=sources.end().source).contains(endpoint)
        });
    }

    pub(crate) fn tick(&mut self, table: &Table, orders: &mut Orders, cx: &mut Context<'_>) {
        while let Some((_, call)) =
            self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= cx.now)
        {
            if let Some(collection) = self.finish(call, table, cx) {
                self.withdraw(&collection, orders);
            }
        }
        self.snapshots.retain(|_, snapshot| snapshot.end > cx.now);
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        let ends = self.snapshots.values().map(|snapshot| snapshot.end);
        ends.chain(self.deadlines.first().map(|(deadline, _)| *deadline)).min()
    }
}

/// Orders a report from a node, or joins in one that the node has not begun. None if the node has
/// too much to do already: the list is made without it.
pub(crate) fn ask(node: NodeId, orders: &mut Orders, cx: &mut Context<'_>) -> Option<u64> {
    if let Some(order) = orders.report_of(node, true) {
        return Some(order);
    }
    let id = orders.unused_id(cx.entropy);
    let order = Order { id, kind: order::REPORT, ..Order::default() };
    orders.give(node, order, Purpose::Report, cx).ok().map(|_| id)
}

/// Answers with records `from` and following, as many as fit.
fn tell(call: CallId, args: List, records: &[Vec<u8>], cx: &mut Context<'_>) {
    let room = (args.size as usize).min(PAYLOAD_MAX);
    let mut payload = Vec::new();
    for record in records.iter().skip(args.from as usize) {
        if payload.len() + record.len() > room {
            break;
        }
        payload.extend_from_slice(record);
    }
    cx.answer(call, answer::<List>(&Count { count: records.len() as u64 }), payload);
}
