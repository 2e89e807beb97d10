//! Frames that travel compressed: LZ4, frame by frame, where it moves more bytes in a second than without.
//!
//! A frame is compressed by itself, so what one container sends says nothing about what another does. It still says
//! something about itself: who can choose a part of what a program sends, and sees how long its frames are, can guess the
//! rest (the "CRIME" attack on compression before encryption). Hence both sides must be told to ([`Packing`]).

use crate::frame::FrameError;
use crate::limits::FRAME_MAX;
use crate::server::Nanos;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Shorter frames are sent as they are.
pub(super) const PACKED_MIN: usize = 4096;

/// Bytes that are sent in one way before it is judged: some hundred milliseconds of a link that is worth it.
const WINDOW: usize = 1 << 20;

/// Windows in the better way before the other is tried again: at first, and at most. A try that fails doubles them.
const PATIENCE: u32 = 16;
const PATIENCE_MAX: u32 = 1024;

/// After so many windows in a row that carry less than half of what was usual, or more than twice that, the link is another
/// one: the other way is tried at once.
const STRANGE: u32 = 4;

/// Is anything compressed on this node's links?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    #[default]
    Never,
    /// To nodes that have it so, too: large frames, while that carries more of them than sending them as they are.
    Auto,
    /// All large frames that become shorter. For measurements.
    Always,
}

impl FromStr for Packing {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Packing, &'static str> {
        match text {
            "never" => Ok(Packing::Never),
            "auto" => Ok(Packing::Auto),
            "always" => Ok(Packing::Always),
            _ => Err("it is \"never\", \"auto\" or \"always\""),
        }
    }
}

/// Decides how the frames of one track are sent.
///
/// What counts is how many bytes of frames are carried while the connection has something under way and while they are
/// compressed: not what a socket takes at once, nor pauses.
#[derive(Debug)]
pub(super) struct Packer {
    mode: Packing,
    is_packing: bool,
    /// What has been sent in this window, before compression, and how long that took to compress.
    sent: u64,
    packing: Nanos,
    /// How long the connection had been busy when the window began; None: it is not known.
    busy: Option<Nanos>,
    step: Step,
    /// Bytes that a second carried when the better way was chosen, and how many windows since then were strange.
    usual: u64,
    strange: u32,
    /// Bytes that a second carried in the way that is not tried.
    other: u64,
    patience: u32,
}

/// What a window is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The better way, and so many after it.
    Keep { left: u32 },
    /// The first in the other way.
    Settle,
    /// The other way is measured.
    Try,
}

impl Packer {
    /// None if nothing is to be compressed.
    pub(super) fn new(mode: Packing) -> Option<Packer> {
        (mode != Packing::Never).then_some(Packer {
            mode,
            is_packing: mode == Packing::Always,
            sent: 0,
            packing: 0,
            busy: None,
            step: Step::Keep { left: 0 },
            usual: 0,
            strange: 0,
            other: 0,
            patience: PATIENCE,
        })
    }

    /// Is what is sent now to be compressed?
    pub(super) fn is_packing(&self) -> bool {
        self.is_packing
    }

    /// So many bytes of frames (before they were compressed) have been sent, and so long was compressed; `busy` says how
    /// long the connection has been busy in all.
    pub(super) fn note_sent(
        &mut self,
        bytes: usize,
        packing: Nanos,
        busy: impl FnOnce() -> Option<Nanos>,
    ) {
        if self.mode != Packing::Auto {
            return;
        }
        self.sent += bytes as u64;
        self.packing += packing;
        if self.sent < WINDOW as u64 {
            return;
        }
        let now = busy();
        if let Some(took) = now.zip(self.busy).map(|(now, then)| now.saturating_sub(then)) {
            let took = u128::from(took + self.packing).max(1);
            let rate = u128::from(self.sent) * 1_000_000_000 / took;
            self.judge(u64::try_from(rate).unwrap_or(u64::MAX));
        }
        (self.sent, self.packing, self.busy) = (0, 0, now);
    }

    /// A window has carried so many bytes in a second.
    fn judge(&mut self, rate: u64) {
        match self.step {
            // What was sent in the other way was still under way.
            Step::Settle => self.step = Step::Try,
            Step::Try => {
                // To compress must pay for what it costs others; not to costs nothing.
                let is_better = if self.is_packing {
                    rate > self.other.saturating_add(self.other / 8)
                } else {
                    rate.saturating_add(rate / 8) > self.other
                };
                self.patience =
                    if is_better { PATIENCE } else { (self.patience * 2).min(PATIENCE_MAX) };
                self.step = Step::Keep { left: self.patience };
                self.usual = if is_better { rate } else { self.other };
                self.strange = 0;
                self.is_packing ^= !is_better;
            }
            Step::Keep { left } => {
                let is_strange = rate < self.usual / 2 || rate / 2 > self.usual;
                self.strange = if is_strange { self.strange + 1 } else { 0 };
                if left > 0 && self.strange < STRANGE {
                    self.step = Step::Keep { left: left - 1 };
                    return;
                }
                if self.strange >= STRANGE {
                    self.patience = PATIENCE;
                }
                self.other = rate;
                self.is_packing ^= true;
                self.step = Step::Settle;
            }
        }
    }
}

/// The frame, compressed: its length in four bytes, and a block of LZ4. None if that is hardly shorter.
pub(super) fn pack(frame: &[u8]) -> Option<Vec<u8>> {
    let packed = lz4_flex::compress_prepend_size(frame);
    (packed.len() < frame.len() - frame.len() / 8).then_some(packed)
}

/// The frame that was compressed.
///
/// # Errors
/// [`FrameError::Length`]: it would be longer than a frame; [`FrameError::Malformed`]: it is no block of LZ4, or not of
/// that length.
pub(super) fn unpack(packed: &[u8]) -> Result<Bytes, FrameError> {
    let malformed = FrameError::Malformed { what: "compressed frame" };
    let (length, block) = packed.split_first_chunk::<4>().ok_or(malformed)?;
    let length = u32::from_le_bytes(*length) as usize;
    if !(PACKED_MIN..=FRAME_MAX).contains(&length) {
        return Err(FrameError::Length { length });
    }
    let mut frame = vec![0; length];
    match lz4_flex::block::decompress_into(block, &mut frame) {
        Ok(written) if written == length => Ok(frame.into()),
        _ => Err(malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Nanos = 1_000_000_000;

    /// A link that carries `raw` bytes a second, or so many of them compressed.
    struct Wire {
        packer: Packer,
        busy: Nanos,
    }

    impl Wire {
        fn new() -> Wire {
            Wire { packer: Packer::new(Packing::Auto).unwrap(), busy: 0 }
        }

        /// Of so many windows, how many are compressed?
        fn run(&mut self, windows: u32, raw: u64, packed: u64) -> u32 {
            (0..windows)
                .map(|_| {
                    let is_packing = self.packer.is_packing();
                    self.busy += WINDOW as u64 * SECOND / if is_packing { packed } else { raw };
                    self.packer.note_sent(WINDOW, 0, || Some(self.busy));
                    u32::from(is_packing)
                })
                .sum()
        }
    }

    #[test]
    fn a_slow_link_compresses_and_a_fast_one_hardly_tries() {
        assert!(Wire::new().run(1000, 10 << 20, 30 << 20) > 900);
        // Nor is it done for a tenth.
        assert!(Wire::new().run(1000, 100 << 20, 110 << 20) < 20);
        assert!(Wire::new().run(1000, 1000 << 20, 400 << 20) < 20);
    }

    #[test]
    fn a_link_that_becomes_slow_is_noticed_and_one_that_becomes_fast_again() {
        let mut wire = Wire::new();
        // However long it has been so.
        wire.run(5000, 1000 << 20, 400 << 20);
        wire.run(8, 10 << 20, 30 << 20);
        assert!(wire.run(1000, 10 << 20, 30 << 20) > 900);
        wire.run(5000, 10 << 20, 30 << 20);
        wire.run(8, 1000 << 20, 400 << 20);
        assert!(wire.run(1000, 1000 << 20, 400 << 20) < 100);
        // A single window that is strange is no reason.
        wire.run(5000, 1000 << 20, 400 << 20);
        let tries: u32 = (0..20)
            .map(|_| wire.run(1, 100 << 20, 40 << 20) + wire.run(3, 1000 << 20, 400 << 20))
            .sum();
        assert_eq!(tries, 0);
    }

    #[test]
    fn the_time_that_compression_takes_counts_and_what_is_not_known_is_no_reason() {
        let mut wire = Wire::new();
        for _ in 0..1000 {
            let is_packing = wire.packer.is_packing();
            // The network has three times less to do, the processor five times more.
            let (busy, packing) = if is_packing { (1, 5) } else { (3, 0) };
            wire.busy += busy * SECOND;
            wire.packer.note_sent(WINDOW, packing * SECOND, || Some(wire.busy));
        }
        assert!(!wire.packer.is_packing() && wire.packer.patience > PATIENCE);
        let mut packer = Packer::new(Packing::Auto).unwrap();
        for _ in 0..1000 {
            packer.note_sent(WINDOW, 0, || None);
            assert!(!packer.is_packing());
        }
    }

    #[test]
    fn who_is_told_to_compresses_everything_or_nothing() {
        let mut packer = Packer::new(Packing::Always).unwrap();
        packer.note_sent(usize::MAX / 2, 1, || Some(1));
        assert!(packer.is_packing() && Packer::new(Packing::Never).is_none());
    }

    #[test]
    fn a_frame_comes_back_and_one_that_does_not_get_shorter_is_left() {
        let frame: Vec<u8> = (0..PACKED_MIN).map(|at| u8::try_from(at / 64).unwrap()).collect();
        let packed = pack(&frame).unwrap();
        assert_eq!(unpack(&packed).unwrap(), frame);
        for end in 0..packed.len() {
            assert!(unpack(&packed[..end]).is_err());
        }
        let mut state = 1u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(PACKED_MIN)
        .collect();
        assert_eq!(pack(&noise), None);
    }

    #[test]
    fn what_claims_to_be_longer_than_a_frame_takes_no_memory() {
        let claim = |length: usize| {
            let mut packed = pack(&[0; PACKED_MIN]).unwrap();
            packed[..4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
            unpack(&packed)
        };
        for length in [0, PACKED_MIN - 1, FRAME_MAX + 1, u32::MAX as usize] {
            assert_eq!(claim(length), Err(FrameError::Length { length }));
        }
        let malformed = FrameError::Malformed { what: "compressed frame" };
        assert_eq!(claim(PACKED_MIN + 1), Err(malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 4..200),
            length in 4096_u32..10_000,
        ) {
            unpack(&bytes).ok();
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            unpack(&bytes).ok();
        }
    }
}
