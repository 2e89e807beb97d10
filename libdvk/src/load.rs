//! How busy nodes are, and the caller's own DC on each of them: now, or some time ago.

use crate::bound::Bound;
use m3ipc::door::info;
use m3ipc::load::{DcLoad, NodeLoad};
use m3ipc::{IpcError, NodeId};
use std::time::Duration;

impl Bound {
    /// How busy a node of the DC is, as it said `ago` before now, or the last that it said before that. Nodes look once a
    /// second; ten minutes are kept, of other nodes one look in ten seconds.
    ///
    /// # Errors
    /// [`IpcError::NotBound`]: the DC does not span that node. [`IpcError::WouldBlock`]: nothing is known of it
    /// for that time (yet).
    pub fn node_load(&self, node: NodeId, ago: Duration) -> Result<NodeLoad, IpcError> {
        self.load(info::NODE_LOAD, node, ago)
    }

    /// How busy this DC is on a node, as [`Bound::node_load`]. Nobody is told about another DC.
    ///
    /// # Errors
    /// As [`Bound::node_load`].
    pub fn dc_load(&self, node: NodeId, ago: Duration) -> Result<DcLoad, IpcError> {
        self.load(info::DC_LOAD, node, ago)
    }
}
