//! What two daemons say to each other about the links themselves, between the frames of their kernels.
//!
//! The header is that of [`crate::frame`], with numbers that the kernel's frames do not have, and nothing in
//! its last two fields; the body is bytes. What may be lost is said again on the next link.

use crate::frame::{FrameError, HEADER};
use crate::limits::{FRAME_MAX, GROUP_BYTES, JOIN_BYTES, LOAD_BYTES, MEMBERS_BYTES};
use bytes::Bytes;

/// One such message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control<'a> {
    /// A signed list of members (`super::members`).
    Members(&'a [u8]),
    /// To the node with the authority: a request for a new certificate.
    Renew(&'a [u8]),
    /// Its answer, the certificate.
    Renewed(&'a [u8]),
    /// Its answer: why not, a sentence in UTF-8.
    NotRenewed(&'a [u8]),
    /// A message of the system group (`::group::wire`). It may get lost, and overtake others.
    Group(&'a [u8]),
    /// How busy the sender is (`super::load`). It may get lost, and overtake others.
    Load(&'a [u8]),
    /// A frame of the kernel, compressed (`super::packing`).
    Packed(&'a [u8]),
}

// The group can say all that it has to say.
const _: () = assert!(::group::wire::WIRE_MAX < GROUP_BYTES);

/// What is next on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A message of this module, and its length.
    Control(Control<'a>, usize),
    /// A frame for the kernel, or the beginning of one.
    Kernel,
}

mod kind {
    /// From here on numbers are ours.
    pub(super) const FIRST: u16 = 0x100;
    pub(super) const MEMBERS: u16 = FIRST;
    pub(super) const RENEW: u16 = FIRST + 1;
    pub(super) const RENEWED: u16 = FIRST + 2;
    pub(super) const NOT_RENEWED: u16 = FIRST + 3;
    pub(super) const GROUP: u16 = FIRST + 4;
    pub(super) const LOAD: u16 = FIRST + 5;
    pub(super) const PACKED: u16 = FIRST + 6;
}

impl Control<'_> {
    fn parts(&self) -> (u16, &[u8]) {
        match self {
            Control::Members(body) => (kind::MEMBERS, body),
            Control::Renew(body) => (kind::RENEW, body),
            Control::Renewed(body) => (kind::RENEWED, body),
            Control::NotRenewed(body) => (kind::NOT_RENEWED, body),
            Control::Group(body) => (kind::GROUP, body),
            Control::Load(body) => (kind::LOAD, body),
            Control::Packed(body) => (kind::PACKED, body),
        }
    }

    /// The bytes of the message. A body longer than its kind may have is cut: only sentences come near that.
    pub(super) fn encode(&self) -> Bytes {
        let (kind, body) = self.parts();
        let body = &body[..body.len().min(body_max(kind).unwrap_or(0))];
        let length = u32::try_from(HEADER + body.len()).expect("a body is shorter than 1 MiB");
        let mut out = Vec::with_capacity(HEADER + body.len());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        out.resize(HEADER, 0);
        out.extend_from_slice(body);
        out.into()
    }
}

fn body_max(kind: u16) -> Option<usize> {
    match kind {
        kind::MEMBERS => Some(MEMBERS_BYTES),
        kind::RENEW | kind::RENEWED | kind::NOT_RENEWED => Some(JOIN_BYTES),
        kind::GROUP => Some(GROUP_BYTES),
        kind::LOAD => Some(LOAD_BYTES),
        // It is sent if it is shorter than the frame.
        kind::PACKED => Some(FRAME_MAX),
        _ => None,
    }
}

/// Is this one whole frame of a kernel, and no message of this module?
pub(super) fn is_kernels(frame: &[u8]) -> bool {
    matches!(next(frame), Ok(Next::Kernel))
}

/// Looks at the front of what has come over a link.
///
/// # Errors
/// As [`crate::frame::decode`].
pub(super) fn next(bytes: &[u8]) -> Result<Next<'_>, FrameError> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(FrameError::Incomplete { need: HEADER });
    };
    let length = u32::from_le_bytes(*prefix) as usize;
    let Some((kind, _)) = rest.split_first_chunk::<2>() else {
        return Err(FrameError::Incomplete { need: HEADER });
    };
    let kind = u16::from_le_bytes(*kind);
    if kind < kind::FIRST {
        return Ok(Next::Kernel);
    }
    let most = body_max(kind).ok_or(FrameError::Kind { kind })?;
    if !(HEADER..=HEADER + most).contains(&length) {
        return Err(FrameError::Length { length });
    }
    let message = bytes.get(..length).ok_or(FrameError::Incomplete { need: length })?;
    if message[6..HEADER].iter().any(|byte| *byte != 0) {
        return Err(FrameError::Malformed { what: "header" });
    }
    let body = &message[HEADER..];
    let control = match kind {
        kind::MEMBERS => Control::Members(body),
        kind::RENEW => Control::Renew(body),
        kind::RENEWED => Control::Renewed(body),
        kind::NOT_RENEWED => Control::NotRenewed(body),
        kind::LOAD => Control::Load(body),
        kind::PACKED => Control::Packed(body),
        _ => Control::Group(body),
    };
    Ok(Next::Control(control, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, Packet};
    use proptest::prelude::*;

    fn all() -> [Control<'static>; 7] {
        [
            Control::Members(b"list"),
            Control::Renew(b"request"),
            Control::Renewed(b""),
            Control::NotRenewed(b"no"),
            Control::Group(b"append"),
            Control::Load(b"figures"),
            Control::Packed(b"frame"),
        ]
    }

    #[test]
    fn a_message_survives_its_bytes_and_a_part_of_it_is_incomplete() {
        for control in all() {
            let bytes = control.encode();
            let longer = [&bytes[..], b"more"].concat();
            assert_eq!(next(&longer), Ok(Next::Control(control, bytes.len())));
            for end in 0..bytes.len() {
                assert!(
                    matches!(next(&bytes[..end]), Err(FrameError::Incomplete { need }) if need > end)
                );
            }
        }
    }

    #[test]
    fn the_longest_message_of_the_group_fits_and_one_byte_more_is_refused() {
        let body = vec![7; GROUP_BYTES];
        let bytes = Control::Group(&body).encode();
        assert_eq!(next(&bytes), Ok(Next::Control(Control::Group(&body), bytes.len())));
        let length = HEADER + GROUP_BYTES + 1;
        let mut longer = [&bytes[..], &[7]].concat();
        longer[..4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        assert_eq!(next(&longer), Err(FrameError::Length { length }));
    }

    #[test]
    fn a_frame_of_the_kernel_is_left_to_it() {
        let ping = Packet { received: 5, ..Packet::alone(Frame::Ping { sent: 3 }) }.encode();
        assert_eq!(next(&ping), Ok(Next::Kernel));
    }

    #[test]
    fn what_no_message_can_be_is_an_error() {
        let check = |at: usize, byte: u8, expected: FrameError| {
            let mut bytes = Control::Renew(b"request").encode().to_vec();
            bytes[at] = byte;
            assert_eq!(next(&bytes), Err(expected));
        };
        check(4, 0xff, FrameError::Kind { kind: 0x1ff });
        check(3, 1, FrameError::Length { length: (1 << 24) + 31 });
        check(0, 23, FrameError::Length { length: 23 });
        for at in 6..HEADER {
            check(at, 1, FrameError::Malformed { what: "header" });
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Next::Control(control, length)) = next(&bytes) {
                prop_assert_eq!(&control.encode()[..], &bytes[..length]);
            }
        }
    }
}
