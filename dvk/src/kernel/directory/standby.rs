//! Backups that take over by themselves: where an endpoint is, it is known who stands by for it.

use super::super::slots::Binding;
use super::super::{Kernel, Output, Role};
use super::Stage;
use crate::frame::Frame;
use crate::limits::BACKUPS_MAX;
use crate::server::Nanos;
use m3ipc::{DcId, Endpoint, NodeId};

impl Kernel {
    /// Tells the endpoint's place of the backups here that take over when it dies.
    pub(in crate::kernel) fn register_backups(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let to = Endpoint { slot, generation: 0 };
        let Some(place) = container.home(to) else { return };
        let of = |binding: &Binding| match binding.role {
            Role::Backup(of, true) if of.slot == slot => Some(binding.endpoint),
            _ => None,
        };
        let backups: Vec<Endpoint> = container.slots.iter().filter_map(of).collect();
        for backup in backups {
            if place == self.node {
                if let Some(container) = self.containers.get_mut(&dc) {
                    container.directory.standing_by.insert((slot, place, backup));
                }
            } else {
                let frame = Frame::StandBy { dc, to, backup, is_over: false };
                self.send(now, place, &frame, out);
            }
        }
    }

    /// Another node has a backup, or not any more.
    #[expect(clippy::too_many_arguments, reason = "the fields of Frame::StandBy")]
    pub(in crate::kernel) fn stand_by(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        to: Endpoint,
        backup: Endpoint,
        is_over: bool,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        if !container.dc.nodes.contains(&node) || backup.node() != node {
            return;
        }
        let key = (to.slot, node, backup);
        let standing = &mut container.directory.standing_by;
        if is_over {
            standing.remove(&key);
        } else if to.is_well_known() && standing.len() < BACKUPS_MAX {
            standing.insert(key);
            // The group is to know whom it stands by for.
            self.reconcile(now, dc, to.slot, out);
        }
    }

    /// A backup of this node is gone.
    pub(in crate::kernel) fn forget_backup(
        &mut self,
        now: Nanos,
        dc: DcId,
        of: Endpoint,
        backup: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let (own, to) = (self.node, Endpoint { generation: 0, ..of });
        container.directory.standing_by.remove(&(of.slot, own, backup));
        let place = container.home(to);
        // Another of this node may still be it; else it has ended.
        if let Some(moving) = container.directory.moves.get(&of.slot)
            && matches!(&moving.stage, Stage::Arriving { backup: one, .. } if *one == backup)
        {
            container.directory.moves.remove(&of.slot);
            container.directory.arrivals.insert(of.slot);
            self.reconcile(now, dc, of.slot, out);
        }
        if let Some(place) = place.filter(|place| *place != own) {
            self.send(now, place, &Frame::StandBy { dc, to, backup, is_over: true }, out);
        }
    }
}
