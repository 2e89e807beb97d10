//! What an endpoint asks about others: who is bound, pids, information, rights; and binding other processes.

use crate::bound::Bound;
use m3ipc::door::{Ask, Tell, ask, event, info, node, order};
use m3ipc::info::{DcInfo, DvsInfo, EndpointInfo, NodeInfo, decode};
use m3ipc::{Endpoint, IpcError, NodeId, Rights};
use rustix::fd::AsFd;
use std::time::Duration;

impl Bound {
    /// Waits until somebody is bound as `to`, on any node, and returns who. A zero timeout asks whether it is so now.
    ///
    /// # Errors
    /// [`IpcError::TimedOut`], [`IpcError::WouldBlock`]; [`IpcError::NodeDown`]: its node is down, or goes down
    /// meanwhile; [`IpcError::Stale`]: that generation will never be there; [`IpcError::NotBound`]: the DC has no
    /// such node.
    pub fn wait_bind(&self, to: Endpoint, timeout: Option<Duration>) -> Result<Endpoint, IpcError> {
        self.wait_for(event::BOUND, to, timeout)
    }

    /// Waits until nobody is bound as `to`, on any node.
    ///
    /// # Errors
    /// As [`Bound::wait_bind`], but a stale endpoint is unbound. A node that goes down is an error: whether
    /// the endpoint was unbound cannot be known.
    pub fn wait_unbind(&self, to: Endpoint, timeout: Option<Duration>) -> Result<(), IpcError> {
        self.wait_for(event::UNBOUND, to, timeout).map(|_| ())
    }

    fn wait_for(
        &self,
        what: u32,
        to: Endpoint,
        timeout: Option<Duration>,
    ) -> Result<Endpoint, IpcError> {
        let value = timeout.map_or(event::FOREVER, |timeout| {
            u64::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(event::FOREVER - 1)
        });
        self.question(Ask { number: what, value, ..Ask::new(ask::AWAIT, to) })
            .map(|told| told.endpoint)
    }

    /// The endpoint of the process with this pid (in its own pid namespace) on this node; the one at which it receives,
    /// if it has several.
    ///
    /// # Errors
    /// [`IpcError::NotBound`].
    pub fn getep(&self, pid: u32) -> Result<Endpoint, IpcError> {
        self.question(Ask { value: pid.into(), ..Ask::new(ask::GET_EP, Endpoint::NONE) })
            .map(|told| told.endpoint)
    }

    /// Unbinds another endpoint of this node. Only for the administrator.
    ///
    /// # Errors
    /// [`IpcError::Denied`]: no administrator, or a server or container. [`IpcError::NotBound`], [`IpcError::Stale`].
    pub fn unbind_other(&self, to: Endpoint) -> Result<(), IpcError> {
        self.question(Ask::new(ask::UNBIND, to)).map(|_| ())
    }

    /// Binds the process with this pid (as the caller sees it) of this node as `number` (0: any). It counts as bound from
    /// now on; who sends to it waits until it has bound itself, which gives it that endpoint. Only for the
    /// administrator.
    ///
    /// # Errors
    /// [`IpcError::Stale`]: no such process. [`IpcError::Denied`], [`IpcError::InUse`], [`IpcError::NotBound`].
    pub fn bind_other(&self, pid: u32, number: u32) -> Result<Endpoint, IpcError> {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(pid.ok_or(IpcError::Stale)?, flags)
            .map_err(|_| IpcError::Stale)?;
        let asked = Ask { number, ..Ask::new(ask::BIND, Endpoint::NONE) };
        let (told, _) = self.core.inbox.ask_with(asked, Some(pidfd.as_fd()))?;
        Ok(told.endpoint)
    }

    /// Unbinds every peer and backup of this node in the DC, this one too: who waits for them is told that they died. The
    /// DC's servers, and processes that only have the shim, stay. Only for the administrator.
    ///
    /// # Errors
    /// [`IpcError::Denied`].
    pub fn unbind_all(&self) -> Result<(), IpcError> {
        self.question(Ask { number: 1, ..Ask::new(ask::UNBIND, Endpoint::NONE) }).map(|_| ())
    }

    /// Leaves a notification for `to`, on any node, as if `source`, a peer of this node, had. Only for the administrator,
    /// and only if `source` itself might.
    ///
    /// # Errors
    /// [`IpcError::Denied`], [`IpcError::NotBound`], [`IpcError::Stale`]. No overrun is reported.
    pub fn notify_as(&self, source: Endpoint, to: Endpoint, value: u64) -> Result<(), IpcError> {
        let asked = Ask { value, ..Ask::new(ask::NOTIFY_AS, to) };
        self.question(asked.with_second(source)).map(|_| ())
    }

    /// Leaves a notification of this node's hardware ([`Endpoint::HARDWARE`]) for `to`, an endpoint of this node: a
    /// driver in user space tells of an interrupt so. Only for the administrator.
    ///
    /// # Errors
    /// As [`Bound::notify_as`]; [`IpcError::NotBound`]: `to` is on another node.
    pub fn notify_hardware(&self, to: Endpoint, value: u64) -> Result<(), IpcError> {
        self.notify_as(Endpoint::HARDWARE, to, value)
    }

    /// About the DVS: what there can be.
    ///
    /// # Errors
    /// [`IpcError::NotBound`]: this endpoint is not bound any more.
    pub fn dvs_info(&self) -> Result<DvsInfo, IpcError> {
        self.record(Ask { number: info::DVS, ..Ask::new(ask::INFO, Endpoint::NONE) })
    }

    /// About the DC, as this node sees it.
    ///
    /// # Errors
    /// [`IpcError::NotBound`]: this endpoint is not bound any more.
    pub fn dc_info(&self) -> Result<DcInfo, IpcError> {
        self.record(Ask { number: info::DC, ..Ask::new(ask::INFO, Endpoint::NONE) })
    }

    /// About an endpoint of this node.
    ///
    /// # Errors
    /// [`IpcError::NotBound`], [`IpcError::Stale`].
    pub fn endpoint_info(&self, to: Endpoint) -> Result<EndpointInfo, IpcError> {
        self.record(Ask { number: info::ENDPOINT, ..Ask::new(ask::INFO, to) })
    }

    /// About a node of the DC, and the link to it.
    ///
    /// # Errors
    /// [`IpcError::NotBound`]: the DC does not span it.
    pub fn node_info(&self, node: NodeId) -> Result<NodeInfo, IpcError> {
        let value = node.0.into();
        self.record(Ask { number: info::NODE, value, ..Ask::new(ask::INFO, Endpoint::NONE) })
    }

    /// What an endpoint of this node may do.
    ///
    /// # Errors
    /// [`IpcError::NotBound`], [`IpcError::Stale`].
    pub fn get_priv(&self, to: Endpoint) -> Result<Rights, IpcError> {
        let told = self.question(Ask::new(ask::GET_RIGHTS, to))?;
        told.data().and_then(Rights::decode).ok_or(IpcError::Protocol)
    }

    /// Sets what an endpoint of this node may do, from now on: its channels are closed and opened again by whoever
    /// still may. Only for the administrator.
    ///
    /// # Errors
    /// [`IpcError::Denied`], [`IpcError::NotBound`], [`IpcError::Stale`].
    pub fn set_priv(&self, to: Endpoint, rights: &Rights) -> Result<(), IpcError> {
        self.question(Ask::new(ask::SET_RIGHTS, to).with_rights(rights)).map(|_| ())
    }

    /// `to`, an endpoint with a number on any node, is going to move: its process stops (its calls wait), and messages
    /// and notifications for it are held. Ends after five minutes by itself, as by [`Bound::migrate_rollback`]. Only
    /// for the administrator.
    ///
    /// # Errors
    /// [`IpcError::Moved`]: it is on the move already. [`IpcError::TimedOut`]: its process has not stopped within a
    /// second (a signal has stopped it); it goes on. [`IpcError::DestinationDied`]: it died. `Denied`, `NotBound`,
    /// `Stale`, `NodeDown`.
    pub fn migrate_start(&self, to: Endpoint) -> Result<Endpoint, IpcError> {
        self.order(to, order::START, 0, Endpoint::NONE)
    }

    /// `to` goes on where it was: messages that were held are delivered as if nothing had happened.
    ///
    /// # Errors
    /// [`IpcError::NotWaiting`]: it has not been started. [`IpcError::Moved`]: it is just being handed over. `Denied`,
    /// `NotBound`, `Stale`, `NodeDown`.
    pub fn migrate_rollback(&self, to: Endpoint) -> Result<Endpoint, IpcError> {
        self.order(to, order::ROLLBACK, 0, Endpoint::NONE)
    }

    /// `backup` on `node` (`None`: any backup of `to` there) is `to` from now on, under the same address: what was held
    /// goes there, and what had been received and not answered is its to answer ([`Bound::inherited`]). Who was `to`
    /// becomes a backup; its own open calls end with [`IpcError::Moved`], its grants end.
    ///
    /// # Errors
    /// As [`Bound::migrate_rollback`]; [`IpcError::NotBound`]: there is no such backup. After an error it is as before
    /// the call: commit to another, or roll back.
    pub fn migrate_commit(
        &self,
        to: Endpoint,
        node: NodeId,
        backup: Option<Endpoint>,
    ) -> Result<Endpoint, IpcError> {
        self.order(to, order::COMMIT, node.0, backup.unwrap_or(Endpoint::NONE))
    }

    /// Ends the calls of `to`, an endpoint of any node, that are blocked now: with [`IpcError::WokenUp`]. One that waits for
    /// an answer may have been executed. Only for the administrator.
    ///
    /// # Errors
    /// [`IpcError::Denied`], [`IpcError::NotBound`], [`IpcError::Stale`], [`IpcError::NodeDown`].
    pub fn wakeup(&self, to: Endpoint) -> Result<Endpoint, IpcError> {
        self.order(to, order::WAKE, 0, Endpoint::NONE)
    }

    /// Cuts the link of this node to another node of the DC: no frame goes or comes. As with a link that is lost, nothing is
    /// lost if [`Bound::connect`] follows within three seconds; then the nodes give each other up. (The prototype
    /// disconnects a pair of proxies.) Only for the administrator; it lasts until dvkd ends.
    ///
    /// # Errors
    /// [`IpcError::Denied`]; [`IpcError::NotBound`]: the DC has no such other node.
    pub fn disconnect(&self, node: NodeId) -> Result<(), IpcError> {
        self.steer(node, node::DISCONNECT)
    }

    /// The link to a node may be made again, after [`Bound::disconnect`] or [`Bound::node_down`].
    ///
    /// # Errors
    /// As [`Bound::disconnect`].
    pub fn connect(&self, node: NodeId) -> Result<(), IpcError> {
        self.steer(node, node::CONNECT)
    }

    /// Gives another node of the DC up at once (calls to it fail with [`IpcError::NodeDown`]), and has no link with it
    /// until [`Bound::node_up`]. Only this node does. Only for the administrator; it lasts until dvkd ends.
    ///
    /// # Errors
    /// As [`Bound::disconnect`].
    pub fn node_down(&self, node: NodeId) -> Result<(), IpcError> {
        self.steer(node, node::DOWN)
    }

    /// The same as [`Bound::connect`].
    ///
    /// # Errors
    /// As [`Bound::disconnect`].
    pub fn node_up(&self, node: NodeId) -> Result<(), IpcError> {
        self.steer(node, node::UP)
    }

    /// This node's part of the DC has nothing to do with `node` any more, as if that were down (calls under way end with
    /// [`IpcError::NodeDown`], others with [`IpcError::NotBound`]), until [`Bound::add_node`] or until dvkd ends. The node
    /// itself, and others, are not told: as in the prototype each node is. Only for the administrator.
    ///
    /// # Errors
    /// [`IpcError::InUse`]: it is this node, or the DC's servers are there. [`IpcError::Denied`],
    /// [`IpcError::NotBound`]: the DC does not span it.
    pub fn del_node(&self, node: NodeId) -> Result<(), IpcError> {
        self.steer(node, node::LEAVE)
    }

    /// This node's part of the DC spans `node`, a member of the DVS, (again).
    ///
    /// # Errors
    /// [`IpcError::InUse`]: it does. [`IpcError::Denied`], [`IpcError::NotBound`]: there is no such other node.
    pub fn add_node(&self, node: NodeId) -> Result<(), IpcError> {
        self.steer(node, node::ENTER)
    }

    fn steer(&self, node: NodeId, number: u32) -> Result<(), IpcError> {
        let value = node.0.into();
        self.question(Ask { number, value, ..Ask::new(ask::NODE, Endpoint::NONE) }).map(|_| ())
    }

    fn order(
        &self,
        to: Endpoint,
        number: u32,
        node: u16,
        backup: Endpoint,
    ) -> Result<Endpoint, IpcError> {
        let asked = Ask { number, value: node.into(), ..Ask::new(ask::ORDER, to) };
        self.question(asked.with_second(backup)).map(|told| told.endpoint)
    }

    fn question(&self, asked: Ask) -> Result<Tell, IpcError> {
        self.core.inbox.ask(asked).map(|(told, _)| told)
    }

    /// A record about how busy `node` was.
    pub(crate) fn load<T>(&self, what: u32, node: NodeId, ago: Duration) -> Result<T, IpcError>
    where
        T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable,
    {
        let seconds = u32::try_from(ago.as_secs()).unwrap_or(u32::MAX);
        let asked =
            Ask { number: what, value: node.0.into(), ..Ask::new(ask::INFO, Endpoint::NONE) };
        self.record(Ask { kind: seconds, ..asked })
    }

    fn record<T>(&self, asked: Ask) -> Result<T, IpcError>
    where
        T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable,
    {
        let told = self.question(asked)?;
        told.data().and_then(decode).ok_or(IpcError::Protocol)
    }
}
