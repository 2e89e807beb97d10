//! The server of processes of a DC: its process table, and signals to any process on any node.
//!
//! Each node's container reports its processes and carries out orders, which it fetches with `Await`.
//! What a container must know: it begins with `Join` (again when `Await` says ESRCH), then reports
//! what it has with `Started`, or `Report` with order 0; `Started` comes before `Exited`; it checks
//! that a pid of an order is a process of its own; -1 in an order is all its processes.
//!
//! To read: `kill` and `list`, on top of `orders` and `table`; `report` is what containers say.

mod kill;
pub mod limits;
mod list;
mod orders;
mod record;
mod report;
mod table;
mod wait;

use crate::kill::Kills;
use crate::list::Lists;
use crate::orders::{Orders, Purpose};
use crate::report::Reported;
use crate::table::Table;
use crate::wait::Waits;
use calls::pm::{Await, Done, Ended, Exited, Join, List, PmCall, Process, Report, Started, Wait};
use calls::{Retry, Row, answer};
use dvk::server::{Call, Context, Gone, Nanos, Server};
use dvk::store::Store;
use m3ipc::errno::numbers::{EINVAL, EIO, ENOSYS, EPERM, ESRCH};
use m3ipc::{CallId, Endpoint, Errno, IpcError, Message, NodeId, Tag};
use std::ops::RangeInclusive;

/// The processes of a DC.
#[derive(Debug)]
pub struct PmServer {
    table: Table,
    orders: Orders,
    kills: Kills,
    lists: Lists,
    waits: Waits,
}

/// What a handler has done with a call; an error is an answer, too.
enum Outcome {
    Done(Message),
    /// It is answered already, or a later event answers it.
    Later,
}

type Served = Result<Outcome, Errno>;

/// How a process ends whose node is gone: killed by SIGKILL, as wait(2) says it.
const KILLED: i32 = 9;

impl PmServer {
    /// The server as its store says.
    pub fn open(store: &dyn Store) -> PmServer {
        let mut orders = Orders::open(store);
        let kills = Kills::open(store, &mut orders);
        let (table, lists, waits) = (Table::open(store), Lists::default(), Waits::default());
        PmServer { table, orders, kills, lists, waits }
    }

    fn dispatch(&mut self, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        match PmCall::decode(call.message).ok_or(Errno::new(ENOSYS))? {
            PmCall::Join(args) => self.join(args, call, cx),
            PmCall::Await(args) => self.await_order(args, call, cx),
            PmCall::Done(args) => self.done(args, call, cx),
            PmCall::Started(args) => self.started(args, call, cx),
            PmCall::Exited(args) => self.exited(args, call, cx),
            PmCall::Report(args) => self.report(args, call, cx),
            PmCall::Kill(args) => {
                self.kills.kill(args, call, (&self.table, &mut self.orders), cx)?;
                Ok(Outcome::Later)
            }
            PmCall::List(args) => self.list(args, call, cx),
            PmCall::Wait(args) => self.wait(args, call, cx),
        }
    }

    fn join(&mut self, args: Join, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let node = container(call, Some(args.node))?;
        self.node_gone(node, true, cx);
        self.orders.join(node, cx.store);
        Ok(Outcome::Done(answer::<Join>(&())))
    }

    fn await_order(&mut self, args: Await, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let node = container(call, Some(args.node))?;
        let Some((order, purpose)) = self.orders.wait(node, call.id)? else {
            return Ok(Outcome::Later);
        };
        if let Purpose::Kill(kill) = purpose {
            self.kills.fetched(kill, order.id, cx.store);
        }
        Ok(Outcome::Done(answer::<Await>(&order)))
    }

    fn done(&mut self, args: Done, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let node = container(call, None)?;
        let errno = if (0..=4095).contains(&args.errno) { args.errno } else { EIO };
        if let Some(purpose) = self.orders.done(node, args.id) {
            self.order_done(args.id, purpose, errno, cx);
        }
        Ok(Outcome::Done(answer::<Done>(&())))
    }

    fn order_done(&mut self, id: u64, purpose: Purpose, errno: i32, cx: &mut Context<'_>) {
        match purpose {
            Purpose::Kill(kill) => self.kills.done(kill, id, errno, cx),
            Purpose::Report => self.lists.reported(id, &self.table, cx),
        }
    }

    fn started(&mut self, args: Started, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let node = container(call, Some(args.node))?;
        let Started { pid, ppid, pgid, sid, .. } = args;
        if !report::is_pid(pid) {
            return Err(Errno::new(EINVAL));
        }
        self.joined(node)?;
        let start = (cx.wall / 1_000_000_000).cast_signed();
        let (node, state) = (node.0, b'R');
        let process = Process { pid, ppid, pgid, sid, node, state, start, ..Process::default() };
        self.table.start(Reported::new(process, call.payload), cx.store)?;
        Ok(Outcome::Done(answer::<Started>(&())))
    }

    fn exited(&mut self, args: Exited, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let node = container(call, None)?;
        // Where pids are not unique by their numbers, another node may have a new process of this pid.
        if report::is_pid(args.pid) && self.table.node(args.pid).is_none_or(|at| at == node) {
            self.ended(args.pid, args.status, cx);
        }
        Ok(Outcome::Done(answer::<Exited>(&())))
    }

    fn ended(&mut self, pid: u32, status: i32, cx: &mut Context<'_>) {
        self.table.end(pid, status, cx.store);
        for waiter in self.waits.take_all(pid) {
            cx.answer(waiter, answer::<Wait>(&Ended { pid, status }), []);
        }
    }

    fn report(&mut self, args: Report, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let node = container(call, Some(args.node))?;
        self.joined(node)?;
        let used = report::parse(call.payload).map(|all| self.use_report(node, all, cx));
        if let Some(purpose) = self.orders.done(node, args.id) {
            self.order_done(args.id, purpose, 0, cx);
        }
        used.map(|()| Outcome::Done(answer::<Report>(&())))
    }

    fn use_report(&mut self, node: NodeId, all: Vec<Reported>, cx: &mut Context<'_>) {
        for pid in self.table.report(node, all, cx.store) {
            // Its parent has its status, nobody else.
            for waiter in self.waits.take_all(pid) {
                cx.answer(waiter, Message::failed(Wait::NUMBER, Errno::new(ESRCH)), []);
            }
        }
    }

    fn joined(&self, node: NodeId) -> Result<(), Errno> {
        if self.orders.is_joined(node) { Ok(()) } else { Err(Errno::new(ESRCH)) }
    }

    fn list(&mut self, args: List, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        self.lists.list(args, call.id, (&self.table, &mut self.orders), cx)?;
        Ok(Outcome::Later)
    }

    fn wait(&mut self, args: Wait, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let pid = args.pid;
        if self.table.node(pid).is_some() {
            self.waits.keep(pid, call.id, !self.table.is_started(pid), cx.now)?;
            return Ok(Outcome::Later);
        }
        let status = self.table.status(pid).ok_or(Errno::new(ESRCH))?;
        Ok(Outcome::Done(answer::<Wait>(&Ended { pid, status })))
    }

    /// The container of a node is gone, and with it all processes of the node.
    fn node_gone(&mut self, node: NodeId, told: bool, cx: &mut Context<'_>) {
        for (id, purpose) in self.orders.leave(node, told, cx) {
            self.order_done(id, purpose, ESRCH, cx);
        }
        for pid in self.table.of_node(node) {
            self.ended(pid, KILLED, cx);
        }
    }

    /// Asks the nodes of processes whose end only a report shows.
    fn watch(&mut self, cx: &mut Context<'_>) {
        let pids = self.waits.due(cx.now);
        let watched = pids.into_iter().filter(|pid| !self.table.is_started(*pid));
        let nodes: std::collections::BTreeSet<NodeId> =
            watched.filter_map(|pid| self.table.node(pid)).collect();
        for node in &nodes {
            if self.orders.report_of(*node, false).is_none() {
                list::ask(*node, &mut self.orders, cx);
            }
        }
        self.waits.watch_again(!nodes.is_empty(), cx.now);
    }
}

impl Server for PmServer {
    fn serve(&mut self, call: &Call<'_>, cx: &mut Context<'_>) {
        // A call may arrive again while it waits: a link was broken, or the server was.
        let kept = self.orders.is_kept(call.id) || self.lists.is_kept(call.id);
        if kept || self.waits.is_kept(call.id) || self.kills.arrived(call.id, cx) {
            return;
        }
        match self.dispatch(call, cx) {
            Ok(Outcome::Done(message)) => cx.answer(call.id, message, []),
            Ok(Outcome::Later) => {}
            Err(errno) => cx.answer(call.id, Message::failed(call.message.call, errno), []),
        }
    }

    /// Kill goes on: kill(2) is not interrupted, and its answer is under way as soon as it is kept.
    fn cancel(&mut self, id: CallId, cx: &mut Context<'_>) {
        let number = if self.orders.cancel(id) {
            Await::NUMBER
        } else if self.lists.cancel(id, &mut self.orders) {
            List::NUMBER
        } else if self.waits.cancel(id) {
            Wait::NUMBER
        } else {
            return;
        };
        cx.end(id, number, IpcError::Interrupted);
    }

    fn gone(&mut self, gone: Gone, cx: &mut Context<'_>) {
        let calls = calls_of(gone);
        self.kills.gone(&calls, cx);
        self.lists.gone(&calls, &mut self.orders);
        self.waits.gone(&calls);
        match gone {
            Gone::Node(node) => self.node_gone(node, false, cx),
            Gone::Endpoint(endpoint) if endpoint.index() == 0 => {
                self.node_gone(endpoint.node(), false, cx);
            }
            Gone::Endpoint(_) => {}
        }
    }

    fn tick(&mut self, cx: &mut Context<'_>) {
        self.lists.tick(&self.table, &mut self.orders, cx);
        self.watch(cx);
    }

    fn deadline(&self) -> Option<Nanos> {
        self.lists.deadline().into_iter().chain(self.waits.deadline()).min()
    }

    fn once(&self, message: &Message) -> bool {
        PmCall::retry(message) == Retry::Once
    }
}

/// The node for which a container speaks; EPERM for everybody else. Who may have a container's
/// endpoint is the DVK's decision.
fn container(call: &Call<'_>, node: Option<u16>) -> Result<NodeId, Errno> {
    let source = call.id.source;
    let own = source.node();
    if source.index() != 0 || own == NodeId(0) || node.is_some_and(|node| node != own.0) {
        return Err(Errno::new(EPERM));
    }
    Ok(own)
}

/// All calls of who is gone.
fn calls_of(gone: Gone) -> RangeInclusive<CallId> {
    let (first, last) = match gone {
        Gone::Endpoint(endpoint) => (endpoint, endpoint),
        Gone::Node(node) => (Endpoint::new(node, 0, 0), Endpoint::new(node, u32::MAX, u32::MAX)),
    };
    CallId { source: first, tag: Tag(0) }..=CallId { source: last, tag: Tag(u64::MAX) }
}
