//! All decoders of what other machines send before or beside the frames of the kernel, and of what Linux tells in
//! /proc, for `fuzz/`.

use super::certificate::{Subject, Validity, requested_key};
use super::control::{self, Next};
use super::join;
use super::load;
use super::members::Members;
use super::packing;
use super::token::Token;
use rustls::pki_types::CertificateDer;

/// Gives `bytes` to each decoder. None may panic; what one understands it writes back as it was.
pub fn decode_all(bytes: &[u8]) {
    if let Ok(Next::Control(control, length)) = control::next(bytes) {
        assert_eq!(&control.encode()[..], &bytes[..length]);
    }
    if let Ok(frame) = packing::unpack(bytes) {
        crate::frame::decode(&frame).ok();
    }
    join::decode_all(bytes);
    load::decode_all(bytes);
    requested_key(bytes).ok();
    let certificate = CertificateDer::from(bytes);
    Subject::of(&certificate).ok();
    Validity::of(&certificate).ok();
    // Bytes as the document, and as the certificate that it should be signed by; and as what is inside.
    Members::decode(bytes, &certificate).ok();
    Members::decode_body(bytes, 0).ok();
    if let Some(token) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Token>().ok())
    {
        assert_eq!(token.to_string().parse::<Token>().ok(), Some(token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_from_outside_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            decode_all(&bytes);
        }
    }
}
