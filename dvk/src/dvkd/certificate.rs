//! Certificates of nodes: the name in them, their validity, and the keys they are for.
//!
//! A node is `nNUMBER.DVS.dvs`, its only subject alternative name. DVS, the number of the whole system, is the
//! beginning of the hash of the authority's certificate; so a name of another system cannot be mistaken.

use anyhow::{Context, Result, ensure};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, UnixTime};
use std::sync::Arc;
use std::time::Duration;
use webpki::EndEntityCert;

/// Where the time of day comes from: certificates and tokens expire by it, nothing else does.
pub(super) type Clock = Arc<dyn rustls::time_provider::TimeProvider>;

/// The clock of this machine.
pub(super) fn system_clock() -> Clock {
    Arc::new(rustls::time_provider::DefaultTimeProvider)
}

/// Seconds since 1970 on `clock`.
pub(super) fn seconds(clock: &Clock) -> u64 {
    clock.current_time().map_or(0, |time: UnixTime| time.as_secs())
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) dvs: u64,
    pub(super) node: u16,
}

impl Subject {
    /// Its name in a certificate.
    pub(super) fn name(self) -> String {
        format!("n{}.{:016x}.dvs", self.node, self.dvs)
    }

    /// The subject with this name, written exactly as [`Subject::name`] does.
    fn parse(name: &str) -> Option<Subject> {
        let (node, rest) = name.strip_prefix('n')?.split_once('.')?;
        let subject = Subject {
            dvs: u64::from_str_radix(rest.strip_suffix(".dvs")?, 16).ok()?,
            node: node.parse().ok()?,
        };
        (subject.name() == name).then_some(subject)
    }

    /// Whom a certificate names. It says nothing about who has signed it.
    ///
    /// # Errors
    /// It is no certificate, or not one of a node.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Subject> {
        let parsed = EndEntityCert::try_from(certificate).context("not a certificate")?;
        let mut names = parsed.valid_dns_names();
        let subject = names.next().and_then(Subject::parse);
        subject
            .filter(|_| names.next().is_none())
            .context("a certificate that is not for a node of a DVS")
    }
}

/// SHA-256 of a certificate, or of anything else.
pub(super) fn fingerprint(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// The number of the DVS whose authority has this certificate.
pub(super) fn dvs_of(authority: &CertificateDer<'_>) -> u64 {
    let hash = fingerprint(authority);
    let (front, _) = hash.split_first_chunk::<8>().expect("a SHA-256 has 32 bytes");
    u64::from_be_bytes(*front)
}

/// Random bytes for keys' neighbours: tokens and serial numbers.
pub(super) fn random<const COUNT: usize>() -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    SystemRandom::new().fill(&mut bytes).expect("the kernel has randomness after boot");
    bytes
}

/// From when until when a certificate counts, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: u64,
    pub(super) until: u64,
}

impl Validity {
    /// # Errors
    /// It is no certificate, or of a time before 1970.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Validity> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).context("not a certificate")?;
        let validity = parsed.validity();
        Ok(Validity {
            from: validity.not_before.timestamp().try_into()?,
            until: validity.not_after.timestamp().try_into()?,
        })
    }

    /// Its end, for people.
    pub(super) fn until_text(self) -> Result<String> {
        let until = offset(self.until)?;
        let (date, time) = (until.date(), until.time());
        Ok(format!(
            "{}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
            date.year(),
            u8::from(date.month()),
            date.day(),
            time.hour(),
            time.minute(),
            time.second()
        ))
    }

    /// When it is to be renewed: after two thirds of its life.
    pub(super) fn renewal(self) -> u64 {
        self.from + self.until.saturating_sub(self.from) / 3 * 2
    }
}

/// A node's private key. It never leaves the node.
#[derive(Debug)]
pub(super) struct NodeKey(rcgen::KeyPair);

impl NodeKey {
    pub(super) fn generate() -> Result<NodeKey> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519);
        Ok(NodeKey(key.context("cannot make a key")?))
    }

    pub(super) fn public(&self) -> &impl rcgen::PublicKeyData {
        &self.0
    }

    /// The request for a certificate, signed by this key. The name in it means nothing: the authority knows
    /// whom it certifies.
    pub(super) fn request(&self) -> Result<Vec<u8>> {
        let request = rcgen::CertificateParams::default().serialize_request(&self.0);
        Ok(request.context("cannot make a certificate request")?.der().to_vec())
    }

    /// # Errors
    /// It is not what [`NodeKey::to_pem`] has in it.
    pub(super) fn from_der(der: &[u8]) -> Result<NodeKey> {
        let der = PrivateKeyDer::Pkcs8(der.into());
        let key = rcgen::KeyPair::from_der_and_sign_algo(&der, &rcgen::PKCS_ED25519);
        Ok(NodeKey(key.context("not a key of a node")?))
    }

    pub(super) fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    pub(super) fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.0.serialize_der().into())
    }

    /// # Errors
    /// The certificate is for another key.
    pub(super) fn check(&self, certificate: &CertificateDer<'_>) -> Result<()> {
        let parsed = EndEntityCert::try_from(certificate).context("not a certificate")?;
        let own = rcgen::PublicKeyData::subject_public_key_info(&self.0);
        ensure!(
            parsed.subject_public_key_info().as_ref() == own.as_slice(),
            "the certificate is for another key"
        );
        Ok(())
    }
}

/// The key in a request for a certificate that came from outside, if its owner has signed it.
///
/// # Errors
/// It is no request, its signature is wrong, or its key is of another kind than ours.
pub(super) fn requested_key(request: &[u8]) -> Result<rcgen::PublicKey> {
    let request = CertificateSigningRequestDer::from(request);
    let parsed = rcgen::CertificateSigningRequestParams::from_der(&request)
        .context("the certificate request is not valid")?;
    let is_ours = *parsed.public_key.algorithm() == rcgen::PKCS_ED25519;
    ensure!(is_ours, "the certificate request is for a key of an unknown kind");
    Ok(parsed.public_key)
}

/// A duration as seconds for a certificate.
pub(super) fn offset(seconds: u64) -> Result<time::OffsetDateTime> {
    let time =
        time::OffsetDateTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds).try_into()?);
    time.context("a time that a certificate cannot have")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_no_other_way() {
        let subject = Subject { dvs: 0xab, node: 7 };
        assert_eq!(subject.name(), "n7.00000000000000ab.dvs");
        assert_eq!(Subject::parse(&subject.name()), Some(subject));
        for bad in [
            "",
            "n7",
            "n7.ab.dvs",
            "n07.00000000000000ab.dvs",
            "n7.00000000000000AB.dvs",
            "n+7.00000000000000ab.dvs",
            "n70000.00000000000000ab.dvs",
            "x7.00000000000000ab.dvs",
            "n7.00000000000000ab.dvs.",
        ] {
            assert_eq!(Subject::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_validity_is_told_as_a_date_and_renewed_after_two_thirds() {
        let validity = Validity { from: 1_000_000_000, until: 1_000_000_000 + 30 * 86_400 };
        assert_eq!(validity.until_text().unwrap(), "2001-10-09 01:46:40 UTC");
        assert_eq!(validity.renewal(), 1_000_000_000 + 20 * 86_400);
    }

    #[test]
    fn a_request_gives_back_its_key_and_one_changed_bit_is_noticed() {
        let key = NodeKey::generate().unwrap();
        let request = key.request().unwrap();
        let got = requested_key(&request).unwrap();
        assert_eq!(
            rcgen::PublicKeyData::subject_public_key_info(&got),
            rcgen::PublicKeyData::subject_public_key_info(key.public())
        );
        for at in 0..request.len() {
            let mut bad = request.clone();
            bad[at] ^= 1;
            if let Ok(got) = requested_key(&bad) {
                assert_eq!(
                    rcgen::PublicKeyData::subject_public_key_info(&got),
                    rcgen::PublicKeyData::subject_public_key_info(key.public()),
                    "byte {at}"
                );
            }
            assert!(requested_key(&request[..at]).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(requested_key(&bytes).is_err());
            let certificate = CertificateDer::from(bytes);
            prop_assert!(Subject::of(&certificate).is_err());
            prop_assert!(Validity::of(&certificate).is_err());
        }
    }
}
