//! A pass over a whole store: all blobs are compared with their checksums, those that have none get them, and the map is read.

use super::blobs::Blobs;
use super::checksums::{CHUNK, Checksums};
use super::upkeep::{Job, Outcome, Upkeep};
use crate::limits::{SCRUB_CHUNKS, SCRUB_CHUNKS_URGENT, SCRUB_ROWS};
use anyhow::Result;
use fjall::Keyspace;

/// How far a pass has come.
#[derive(Debug)]
pub(crate) struct Scrub {
    stage: Stage,
    /// As fast as it can be, as somebody waits for it.
    pub(crate) is_urgent: bool,
    /// Chunks that were compared.
    pub(crate) checked: u64,
    /// Chunks and files that could not be looked at.
    pub(crate) unchecked: u64,
}

/// What follows from a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    More,
    /// All that has no checksums shall get them before it goes on.
    Sum,
    Over,
}

#[derive(Debug)]
enum Stage {
    /// Which blobs have no checksums: the directory that is next.
    Listing(u64),
    /// Those with checksums: the last one that was asked for.
    Comparing(Option<(u64, u64)>),
    /// The map: the last key that was read.
    Map(Vec<u8>),
}

impl Scrub {
    pub(crate) fn begin(is_urgent: bool) -> Scrub {
        Scrub { stage: Stage::Listing(0), is_urgent, checked: 0, unchecked: 0 }
    }

    /// Of a hundred.
    pub(crate) fn percent(&self, checksums: &Checksums) -> u8 {
        let percent = match &self.stage {
            // Some seconds, before much longer ones.
            Stage::Listing(_) => 0,
            Stage::Comparing(at) => {
                let last = checksums.last_summed().max(1);
                at.map_or(0, |(blob, _)| u128::from(blob) * 99 / u128::from(last))
            }
            Stage::Map(_) => 99,
        };
        u8::try_from(percent).unwrap_or(99)
    }

    /// Goes on, while the thread has nothing to do.
    ///
    /// # Errors
    /// The map or the checksums cannot be read: they are damaged, or the disk fails.
    pub(crate) fn go_on(
        &mut self,
        checksums: &Checksums,
        map: &Keyspace,
        blobs: &Blobs,
        upkeep: &mut Upkeep,
    ) -> Result<Step> {
        match &mut self.stage {
            Stage::Listing(next) => {
                while let Some(directory) = blobs.directory(*next) {
                    upkeep.ask(Job::List { directory })?;
                    *next += 1;
                    if !self.is_urgent {
                        return Ok(Step::More);
                    }
                }
                if upkeep.open() == 0 {
                    self.stage = Stage::Comparing(None);
                    return Ok(Step::Sum);
                }
            }
            Stage::Comparing(behind) => {
                let most = if self.is_urgent { SCRUB_CHUNKS_URGENT } else { SCRUB_CHUNKS };
                let rows = checksums.rows_behind(*behind, most)?;
                if rows.is_empty() {
                    self.stage = Stage::Map(Vec::new());
                    return Ok(Step::More);
                }
                for (blob, chunk, row) in rows {
                    *behind = Some((blob, chunk));
                    if !checksums.is_changed(blob, chunk) {
                        upkeep.ask(Job::Check { path: blobs.path(blob), blob, chunk, row })?;
                    }
                }
            }
            Stage::Map(behind) => {
                // The smallest key that is greater.
                let mut from = behind.clone();
                from.push(0);
                let mut count = 0;
                for guard in map.range(from..).take(SCRUB_ROWS) {
                    // fjall compares what it reads with its own checksums.
                    *behind = guard.into_inner()?.0.to_vec();
                    count += 1;
                }
                return Ok(if count < SCRUB_ROWS { Step::Over } else { Step::More });
            }
        }
        Ok(Step::More)
    }

    /// Takes up what the thread has found about a chunk that had the sums `row`.
    pub(crate) fn compared(
        &mut self,
        checksums: &Checksums,
        (blob, chunk): (u64, u64),
        row: &[u8],
        outcome: &Outcome,
    ) {
        // It may have been changed meanwhile.
        if !checksums.has_row(blob, chunk, row) {
            return;
        }
        match outcome {
            Outcome::Well => checksums.is_well(blob, chunk),
            Outcome::Bad(offset) => drop(checksums.damaged(blob, *offset)),
            Outcome::Lost(error) => {
                tracing::error!("{error}");
                checksums.damaged(blob, chunk * CHUNK);
            }
            Outcome::Unknown(error) => {
                tracing::error!("{error}");
                self.unchecked += 1;
                return;
            }
        }
        self.checked += 1;
    }
}
