//! kill(2): which nodes are told, and what becomes of their answers.
//!
//! A kill is stored until it is answered, so that a crash of the server neither loses a signal nor
//! delivers one twice. It is not ended by a signal to its caller, as kill(2) is not; the death of a
//! node ends its part of it.

use crate::limits::{SIGNAL_MAX, WAITS_MAX, node_of};
use crate::orders::{Orders, Purpose};
use crate::record;
use crate::table::Table;
use calls::pm::{Kill, Order, order};
use calls::wire::Wire;
use calls::{Row, answer};
use dvk::server::{Call, Context};
use dvk::store::Store;
use m3ipc::errno::numbers::{EAGAIN, EINVAL, EPERM, ESRCH};
use m3ipc::{CallId, Endpoint, Errno, Message, NodeId, Tag};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Who wants to know what came of a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Waits,
    /// The server has started anew and the call has not arrived again yet.
    Returns,
    Gone,
}

#[derive(Debug)]
struct Pending {
    pid: i32,
    signal: u32,
    uid: u32,
    caller: Caller,
    /// The best that a node has answered so far: 0 or an errno.
    outcome: i32,
    /// Orders that are not done: where, and whether the container has fetched it.
    orders: BTreeMap<u64, (NodeId, bool)>,
}

#[derive(Debug)]
pub(crate) struct Kills {
    pending: BTreeMap<CallId, Pending>,
}

impl Kills {
    /// As stored; the orders are put back into their lines.
    pub(crate) fn open(store: &dyn Store, orders: &mut Orders) -> Kills {
        let mut pending = BTreeMap::new();
        for ([source, tag], kill) in record::all(store, b'k', Pending::from_store) {
            let id = CallId { source: Endpoint::from_bits(source), tag: Tag(tag) };
            for (number, (node, fetched)) in &kill.orders {
                orders.restore(*node, kill.order(*number), Purpose::Kill(id), *fetched);
            }
            pending.insert(id, kill);
        }
        Kills { pending }
    }

    /// A call that was known before a crash arrives again. Says whether it is one.
    pub(crate) fn arrived(&mut self, call: CallId, cx: &mut Context<'_>) -> bool {
        let Some(kill) = self.pending.get_mut(&call) else { return false };
        kill.caller = Caller::Waits;
        self.settle(call, cx);
        true
    }

    pub(crate) fn kill(
        &mut self,
        args: Kill,
        call: &Call<'_>,
        (table, orders): (&Table, &mut Orders),
        cx: &mut Context<'_>,
    ) -> Result<(), Errno> {
        let nodes = addressees(&args, table, orders)?;
        if self.pending.len() >= WAITS_MAX {
            return Err(Errno::new(EAGAIN));
        }
        let mut kill = Pending {
            pid: args.pid,
            signal: args.signal,
            uid: call.cred.uid,
            caller: Caller::Waits,
            outcome: ESRCH,
            orders: BTreeMap::new(),
        };
        for node in nodes {
            let id = orders.unused_id(cx.entropy);
            match orders.give(node, kill.order(id), Purpose::Kill(call.id), cx) {
                Ok(fetched) => drop(kill.orders.insert(id, (node, fetched))),
                Err(errno) => kill.outcome = better(kill.outcome, errno.errno),
            }
        }
        kill.put(call.id, cx.store);
        self.pending.insert(call.id, kill);
        self.settle(call.id, cx);
        Ok(())
    }

    /// A container has fetched an order.
    pub(crate) fn fetched(&mut self, call: CallId, order: u64, store: &mut dyn Store) {
        let Some(kill) = self.pending.get_mut(&call) else { return };
        if let Some((_, fetched)) = kill.orders.get_mut(&order) {
            *fetched = true;
            kill.put(call, store);
        }
    }

    /// An order is done, with 0 or an errno.
    pub(crate) fn done(&mut self, call: CallId, order: u64, errno: i32, cx: &mut Context<'_>) {
        let Some(kill) = self.pending.get_mut(&call) else { return };
        kill.orders.remove(&order);
        kill.outcome = better(kill.outcome, errno);
        kill.put(call, cx.store);
        self.settle(call, cx);
    }

    /// Answers the kill if nothing is left to be done and there is somebody to be answered.
    fn settle(&mut self, call: CallId, cx: &mut Context<'_>) {
        let kill = &self.pending[&call];
        if !kill.orders.is_empty() || kill.caller == Caller::Returns {
            return;
        }
        match (kill.caller, kill.outcome) {
            (Caller::Gone | Caller::Returns, _) => {}
            (Caller::Waits, 0) => cx.answer(call, answer::<Kill>(&()), []),
            (Caller::Waits, errno) => {
                cx.answer(call, Message::failed(Kill::NUMBER, Errno::new(errno)), []);
            }
        }
        self.pending.remove(&call);
        record::remove(cx.store, b'k', &key(call));
    }

    /// The callers are gone; what they wanted is done all the same.
    pub(crate) fn gone(&mut self, sources: &RangeInclusive<CallId>, cx: &mut Context<'_>) {
        let calls: Vec<CallId> = self.pending.range(sources.clone()).map(|(id, _)| *id).collect();
        for call in calls {
            let kill = self.pending.get_mut(&call).expect("it has just been found");
            kill.caller = Caller::Gone;
            kill.put(call, cx.store);
            self.settle(call, cx);
        }
    }
}

/// The nodes that are to be told.
fn addressees(args: &Kill, table: &Table, orders: &Orders) -> Result<Vec<NodeId>, Errno> {
    if args.signal > SIGNAL_MAX || args.pid == 0 {
        return Err(Errno::new(EINVAL));
    }
    let Ok(pid) = u32::try_from(args.pid) else {
        // -1 is everybody, -n a group whose members may be anywhere. -2^31 is neither (as in Linux).
        return if args.pid == i32::MIN { Err(Errno::new(ESRCH)) } else { Ok(orders.nodes()) };
    };
    // The table may not know a grandchild of a container yet, but its number says where it is.
    let node = table.node(pid).or(node_of(pid)).filter(|node| orders.is_joined(*node));
    node.map(|node| vec![node]).ok_or(Errno::new(ESRCH))
}

/// Of the answers of several nodes: success, then EPERM, then what went wrong, then ESRCH.
fn better(one: i32, other: i32) -> i32 {
    let rank = |errno: &i32| match *errno {
        0 => 0,
        EPERM => 1,
        ESRCH => 3,
        _ => 2,
    };
    if rank(&other) < rank(&one) { other } else { one }
}

fn key(call: CallId) -> [u64; 2] {
    [call.source.to_bits(), call.tag.0]
}

impl Pending {
    fn order(&self, id: u64) -> Order {
        Order { id, kind: order::KILL, pid: self.pid, signal: self.signal, uid: self.uid }
    }

    fn put(&self, call: CallId, store: &mut dyn Store) {
        let mut value = [self.pid, self.outcome].map(i32::to_le_bytes).concat();
        value.extend([self.signal, self.uid].map(u32::to_le_bytes).concat());
        value.push(u8::from(self.caller == Caller::Gone));
        for (id, (node, fetched)) in &self.orders {
            value.extend_from_slice(&id.to_le_bytes());
            value.extend_from_slice(&node.0.to_le_bytes());
            value.push(u8::from(*fetched));
        }
        record::put(store, b'k', &key(call), &value);
    }

    fn from_store(bytes: &[u8]) -> Option<Pending> {
        let (head, rest) = bytes.split_at_checked(17)?;
        let order = |part: &[u8]| {
            let (id, node) = (u64::get(part)?, u16::get(part.get(8..)?)?);
            Some((id, (NodeId(node), part[10] != 0)))
        };
        Some(Pending {
            pid: i32::get(head)?,
            outcome: i32::get(&head[4..])?,
            signal: u32::get(&head[8..])?,
            uid: u32::get(&head[12..])?,
            caller: if head[16] == 0 { Caller::Returns } else { Caller::Gone },
            orders: rest.chunks_exact(11).map(order).collect::<Option<_>>()?,
        })
    }
}
