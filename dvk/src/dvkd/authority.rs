//! The DVS's own certification authority: it certifies nodes and signs the list of them.

use super::certificate::{self, Clock, NodeKey, Subject, dvs_of, offset, random, seconds};
use crate::limits::{AUTHORITY_LIFE, CERTIFICATE_LIFE, CLOCK_DIFFERENCE};
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber, SigningKey,
};
use rustls::pki_types::CertificateDer;

/// The authority. Only one node has it.
pub(super) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({:016x})", self.dvs())
    }
}

impl Authority {
    /// A new authority, the beginning of a new DVS.
    pub(super) fn create(clock: &Clock) -> Result<Authority> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).context("cannot make a key")?;
        let mut params = params(clock, AUTHORITY_LIFE.as_secs())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "DVS");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let made = params.self_signed(&key).context("cannot make the authority's certificate")?;
        Authority::load(made.der().clone(), key)
    }

    /// The authority with this certificate and key.
    ///
    /// # Errors
    /// They are not what [`Authority::create`] makes.
    pub(super) fn load(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Authority> {
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .context("the authority's certificate is not valid")?;
        Ok(Authority { certificate, issuer })
    }

    pub(super) fn dvs(&self) -> u64 {
        dvs_of(&self.certificate)
    }

    /// Its private key, for its file.
    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The certificate of `node`, for the owner of `key`.
    pub(super) fn certify(
        &self,
        clock: &Clock,
        node: u16,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>> {
        let mut params = params(clock, CERTIFICATE_LIFE.as_secs())?;
        let name = Subject { dvs: self.dvs(), node }.name();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).context("cannot certify a node")?;
        Ok(certificate.der().clone())
    }

    /// As [`Authority::certify`], for a request that came from the node.
    pub(super) fn certify_request(
        &self,
        clock: &Clock,
        node: u16,
        request: &[u8],
    ) -> Result<CertificateDer<'static>> {
        self.certify(clock, node, &certificate::requested_key(request)?)
    }

    /// A new key and its certificate, for a node on this machine.
    pub(super) fn certify_new(
        &self,
        clock: &Clock,
        node: u16,
    ) -> Result<(NodeKey, CertificateDer<'static>)> {
        let key = NodeKey::generate()?;
        let certificate = self.certify(clock, node, key.public())?;
        Ok((key, certificate))
    }

    /// Signs a message that begins like no certificate does.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.issuer.key().sign(message).context("cannot sign")
    }
}

/// What all certificates have, from a little before now on: clocks differ.
fn params(clock: &Clock, life: u64) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let now = seconds(clock);
    params.not_before = offset(now.saturating_sub(CLOCK_DIFFERENCE.as_secs()))?;
    params.not_after = offset(now + life)?;
    // Positive, and never the same: the highest bit is clear.
    let mut serial = random::<16>();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}
