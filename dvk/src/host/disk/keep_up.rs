//! What a store does for itself between two rounds: checksums for what has lain still, scrubs, and forgetting those of what is gone.

use super::{DiskStore, Summing, seconds_since};
use crate::host::checksums::CHUNK;
#[cfg(test)]
use crate::host::checksums::Checksums;
use crate::host::scrub::{Scrub, Step};
use crate::host::upkeep::{Found, Job};
use crate::limits::{
    FORGET_MAX, SCRUB_EVERY, SCRUB_PAUSE, STILL_AFTER, UPKEEP_LOOK, UPKEEP_LOOK_MAX,
    UPKEEP_LOOK_URGENT, UPKEEP_OPEN_MAX,
};
use crate::server::Nanos;
use crate::store::{Health, Store};
use anyhow::{Context, Result};
use fjall::{OwnedWriteBatch, PersistMode};
use std::time::SystemTime;

impl DiskStore {
    /// Gives checksums to what has lain still, and goes on with a scrub: between two rounds.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn keep_up(&mut self, now: Nanos) -> Result<()> {
        let mut has_more = self.take_all_found()?;
        // One after the other, so that a scrub has its turn.
        let is_idle = |store: &DiskStore| store.summing.is_none() && store.upkeep.open() == 0;
        if now >= self.scrub_at && is_idle(self) && self.scrub.is_some() {
            self.go_on_with_scrub();
            let is_patient = self.scrub.as_ref().is_some_and(|scrub| !scrub.is_urgent);
            self.scrub_at = now + if is_patient { SCRUB_PAUSE } else { 0 };
        }
        if now >= self.still_at && self.summing.is_none() && (self.scrub.is_none() || is_idle(self))
        {
            self.still_at = now + STILL_AFTER;
            self.summing = Some(Summing::default());
            self.begin_scrub_if_due();
        }
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        let mut most = FORGET_MAX;
        while most > 0
            && let Some((blob, from)) = self.forgetting.pop_first()
        {
            self.forget(blob, from, &mut most, &mut batch)?;
        }
        self.write_found(batch)?;
        has_more |= !self.forgetting.is_empty();
        self.sum_still()?;
        self.keep_up_at = if has_more {
            now
        } else if self.upkeep.open() > 0 {
            let is_urgent = self.scrub.as_ref().is_some_and(|scrub| scrub.is_urgent);
            now + if is_urgent { UPKEEP_LOOK_URGENT } else { UPKEEP_LOOK }
        } else if self.scrub.is_some() {
            self.scrub_at
        } else {
            self.still_at
        };
        Ok(())
    }

    /// Takes up what the thread has found, not too much at once. True: there may be more.
    fn take_all_found(&mut self) -> Result<bool> {
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        let mut count = 0;
        while count < UPKEEP_LOOK_MAX
            && let Some(found) = self.upkeep.found()?
        {
            if let Found::Data { blob, range } = found {
                // It asks the database which sums there are.
                self.write_found(batch)?;
                batch = self.database.batch().durability(Some(PersistMode::Buffer));
                if !self.is_removed(blob)
                    && let Err(error) = self.checksums.take_up(blob, &range)
                {
                    self.map_damaged(&error);
                }
            } else {
                self.take_found(found, &mut batch)?;
            }
            count += 1;
        }
        self.write_found(batch)?;
        Ok(count == UPKEEP_LOOK_MAX)
    }

    fn write_found(&mut self, batch: OwnedWriteBatch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.unsynced = true;
        batch.commit().context("cannot write the journal (is the disk full?)")
    }

    fn begin_scrub_if_due(&mut self) {
        let since = |last| seconds_since(last, SystemTime::now());
        if self.scrub.is_none()
            && self.last_scrub.is_none_or(|last| since(last) >= SCRUB_EVERY.as_secs())
        {
            self.begin_scrub(false);
        }
    }

    pub(super) fn begin_scrub(&mut self, is_urgent: bool) {
        self.scrub = Some(Scrub::begin(is_urgent));
        self.is_map_damaged = false;
    }

    /// Gives checksums to all that has changed, at once, and waits for that: for those who want to see what comes of it.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn sum_all(&mut self) -> Result<()> {
        self.commit()?;
        self.summing = Some(Summing { also_young: true, behind: None });
        while self.summing.is_some() || self.upkeep.open() > 0 {
            self.sum_still()?;
            let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
            if let Some(found) = self.upkeep.wait()? {
                self.take_found(found, &mut batch)?;
            }
            self.write_found(batch)?;
        }
        Ok(())
    }

    /// Compares everything, and waits for that: for those who want to see what comes of it. Returns what is known then.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn scrub_all(&mut self) -> Result<Health> {
        self.commit()?;
        let before = self.scrubs;
        Store::scrub(self);
        while self.scrubs == before && self.scrub.is_some() {
            let now = self.scrub_at;
            self.keep_up(now)?;
            std::thread::yield_now();
        }
        Ok(self.health())
    }

    #[cfg(test)]
    pub(in crate::host) fn batch(&self) -> OwnedWriteBatch {
        self.database.batch()
    }

    #[cfg(test)]
    pub(in crate::host) fn checksums_mut(&mut self) -> &mut Checksums {
        &mut self.checksums
    }

    /// Hands out what is to be summed, as much as the thread can do in a while.
    fn sum_still(&mut self) -> Result<()> {
        let Some(Summing { also_young, behind }) = self.summing else { return Ok(()) };
        let most = UPKEEP_OPEN_MAX.saturating_sub(self.upkeep.open());
        if most == 0 {
            return Ok(());
        }
        let (still, behind) = self.checksums.take_still(behind, also_young, most);
        self.summing = behind.map(|window| Summing { also_young, behind: Some(window) });
        for still in still {
            self.upkeep.ask(Job::Sum { path: self.blobs.path(still.window.0), still })?;
        }
        Ok(())
    }

    fn take_found(&mut self, found: Found, batch: &mut OwnedWriteBatch) -> Result<()> {
        match found {
            Found::Summed { still, summed: Some(summed) } => {
                if let Err(error) = self.checksums.put_summed(&still, &summed, batch) {
                    self.checksums.put_back(&still);
                    self.map_damaged(&error);
                }
            }
            Found::Summed { still, summed: None } => self.checksums.put_back(&still),
            Found::Checked { blob, chunk, row, outcome } => {
                if !self.is_removed(blob)
                    && let Some(scrub) = &mut self.scrub
                {
                    scrub.compared(&self.checksums, (blob, chunk), &row, &outcome);
                }
            }
            Found::Listed { missed } => {
                if let Some(scrub) = &mut self.scrub {
                    scrub.unchecked += missed;
                }
            }
            Found::Data { .. } => {}
        }
        Ok(())
    }

    /// Whoever needs what is there gets an error as well; the others go on.
    fn map_damaged(&mut self, error: &anyhow::Error) {
        tracing::error!("the map is damaged, or cannot be read: {error:#}");
        self.is_map_damaged = true;
    }

    fn go_on_with_scrub(&mut self) {
        let Some(scrub) = &mut self.scrub else { return };
        match scrub.go_on(&self.checksums, &self.map, &self.blobs, &mut self.upkeep) {
            Ok(Step::More) => return,
            Ok(Step::Sum) => {
                self.summing = Some(Summing { also_young: true, behind: None });
                return;
            }
            // If that fails the next scrub comes early: after the next start.
            Ok(Step::Over) => {
                if let Err(error) = std::fs::write(&self.scrubbed, b"") {
                    tracing::warn!("cannot write {}: {error}", self.scrubbed.display());
                }
            }
            // So it does when this one has not come to its end.
            Err(error) => self.map_damaged(&error),
        }
        let Some(scrub) = self.scrub.take() else { return };
        (self.checked, self.unchecked) = (scrub.checked * CHUNK, scrub.unchecked);
        self.scrubs += 1;
        self.last_scrub = Some(SystemTime::now());
    }
}
