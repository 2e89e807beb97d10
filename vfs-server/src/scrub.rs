//! How well the tree is stored: what the operator asks for, and is told.

use crate::VfsServer;
use crate::answer::{Result, err};
use calls::vfs::{Count, Damaged, Health, NO_SCRUB, Scrub};
use calls::wire::Wire;
use dvk::server::{Call, Context};
use m3ipc::errno::numbers::EPERM;
use m3ipc::limits::PAYLOAD_MAX;

impl VfsServer {
    /// `count` is how much damage is known.
    pub(crate) fn scrub(
        &mut self,
        row: Scrub,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Count, Vec<u8>)> {
        if row.begin != 0 {
            // It makes the disk busy.
            if call.cred.uid != 0 {
                return err(EPERM);
            }
            cx.store.scrub();
        }
        let found = cx.store.health();
        let health = Health {
            scrubs: found.scrubs,
            last: found.last,
            checked: found.checked,
            unchecked: found.unchecked,
            fresh: found.fresh,
            percent: found.percent.unwrap_or(NO_SCRUB),
            map_damaged: found.is_map_damaged.into(),
        };
        let mut payload: Vec<u8> = health.bytes().into();
        let most = (PAYLOAD_MAX - Health::SIZE) / Damaged::SIZE;
        for damage in found.damage.iter().take(most) {
            // Blobs are numbered by inode.
            let damaged = Damaged { ino: damage.blob, offset: damage.offset };
            payload.extend_from_slice(&damaged.bytes());
        }
        Ok((Count { count: found.damage.len() as u64 }, payload))
    }
}
