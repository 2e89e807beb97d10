//! A node that the group may take for down soon stops what only one node may do.
//!
//! An endpoint that has an entry in the directory, or for which the group has been asked for one, may be taken over by a
//! backup elsewhere when this node is taken for down. So it stops before that, as if it were to move. A process that does
//! not say in time that it has is cut off from whom it could call. When the fence is gone, what has stopped goes on, unless
//! the group has placed it elsewhere meanwhile.

use super::super::{Kernel, Output};
use super::{Directory, Move, Reply, Stage};
use crate::limits::FENCE_STOP;
use crate::server::Nanos;
use m3ipc::{DcId, Endpoint, IpcError};
use std::collections::BTreeSet;

impl Kernel {
    /// This node is fenced from now on, or is so no longer.
    pub(in crate::kernel) fn fence(&mut self, now: Nanos, is_fenced: bool, out: &mut Vec<Output>) {
        if std::mem::replace(&mut self.is_fenced, is_fenced) == is_fenced {
            return;
        }
        let dcs: Vec<DcId> = self.containers.keys().copied().collect();
        for dc in dcs {
            if is_fenced {
                self.stop_all_at_fence(now, dc, out);
            } else {
                self.go_on_after_fence(now, dc, out);
            }
        }
    }

    fn stop_all_at_fence(&mut self, now: Nanos, dc: DcId, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get(&dc) else { return };
        let (entries, proposed) = (&container.directory.entries, &container.directory.proposed);
        let slots: BTreeSet<u32> = entries.keys().chain(proposed.keys()).copied().collect();
        for slot in slots {
            self.stop_at_fence(now, dc, slot, out);
        }
    }

    fn stop_at_fence(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        if !container.directory.is_registered(slot) {
            return;
        }
        if let Some(moving) = container.directory.moves.get_mut(&slot) {
            moving.is_fenced |=
                matches!(moving.stage, Stage::Freezing { .. } | Stage::Frozen { .. });
            if let Stage::Freezing { until, .. } = &mut moving.stage {
                *until = (*until).min(now + FENCE_STOP);
            }
            return;
        }
        let Some(binding) = container.slots.by_slot(slot) else { return };
        if !binding.role.can_move() {
            return;
        }
        let endpoint = binding.endpoint;
        let stage = Stage::Freezing { reply: Reply::Nobody, until: now + FENCE_STOP };
        let moving = Move::new(endpoint, binding.rights, stage);
        container.directory.moves.insert(slot, Move { is_fenced: true, ..moving });
        container.incoming.hold(slot);
        out.push(Output::Freeze { dc, endpoint });
    }

    /// What has stopped in `slot`, whatever for, stays so as long as this node is fenced. False: it need not.
    pub(super) fn rests_on(&mut self, dc: DcId, slot: u32) -> bool {
        let is_fenced = self.is_fenced;
        let Some(container) = self.containers.get_mut(&dc) else { return false };
        let must = is_fenced && container.directory.is_registered(slot);
        if let Some(moving) = container.directory.moves.get_mut(&slot).filter(|_| must) {
            moving.is_fenced = true;
        }
        must
    }

    /// The process of an endpoint that rests has died. Whether there is somebody who takes over is known when the fence is
    /// gone.
    pub(super) fn died_at_fence(
        &mut self,
        now: Nanos,
        dc: DcId,
        endpoint: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.get_mut(&endpoint.slot) else { return };
        let stage = std::mem::replace(&mut moving.stage, Stage::Frozen { until: now });
        (moving.is_dead, moving.is_takeover) = (true, true);
        if let Stage::Freezing { reply, .. } = stage {
            self.reply(now, dc, endpoint, reply, Err(IpcError::DestinationDied), out);
        }
        out.push(Output::TakeOver { dc, endpoint });
    }

    fn go_on_after_fence(&mut self, now: Nanos, dc: DcId, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let mut stopped: Vec<(Endpoint, bool)> = Vec::new();
        for moving in container.directory.moves.values_mut() {
            if std::mem::take(&mut moving.is_fenced) {
                stopped.push((moving.endpoint, moving.is_dead));
            }
        }
        let slots: Vec<u32> = container.directory.moves.keys().copied().collect();
        for (endpoint, is_dead) in stopped {
            if is_dead {
                self.take_over(now, dc, endpoint, out);
            } else {
                self.thaw(now, dc, endpoint, out);
            }
        }
        for slot in slots {
            self.go_if_all_know(now, dc, slot, out);
        }
    }
}

impl Move {
    /// Its process has not stopped in time.
    pub(super) fn cut_off(&mut self, dc: DcId, out: &mut Vec<Output>) {
        self.is_cut_off = true;
        out.push(Output::CutOff { dc, endpoint: self.endpoint });
    }
}

impl Directory {
    /// May a process of this node not call anybody as `endpoint`, as it has not stopped at the fence?
    pub(in crate::kernel) fn is_cut_off(&self, endpoint: Endpoint) -> bool {
        let moving = self.moves.get(&endpoint.slot);
        moving.is_some_and(|moving| moving.is_cut_off && moving.endpoint == endpoint)
    }

    /// Has the group an entry of who is in `slot`, or may it have one soon?
    fn is_registered(&self, slot: u32) -> bool {
        self.entries.get(&slot).is_some_and(|entry| !entry.is_over)
            || self.proposed.contains_key(&slot)
    }
}
