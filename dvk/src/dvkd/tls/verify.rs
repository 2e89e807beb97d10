//! Which certificates a node accepts: of its own DVS, valid now, and not revoked.

use crate::dvkd::certificate::{Subject, dvs_of, fingerprint};
use crate::dvkd::members::Members;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use std::sync::{Arc, PoisonError, RwLock};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// Whom a member trusts: certificates of its authority, of nodes in the newest list of members.
#[derive(Debug)]
pub(in crate::dvkd) struct Trust {
    pub(super) authority: CertificateDer<'static>,
    members: RwLock<Arc<Members>>,
}

/// Whom a node trusts that is about to join: the authority whose fingerprint is in its token.
#[derive(Debug)]
pub(in crate::dvkd) struct Pinned(pub(in crate::dvkd) [u8; 32]);

impl Trust {
    pub(in crate::dvkd) fn new(authority: CertificateDer<'static>, members: Arc<Members>) -> Trust {
        Trust { authority, members: RwLock::new(members) }
    }

    pub(in crate::dvkd) fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub(in crate::dvkd) fn members(&self) -> Arc<Members> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on this list counts.
    pub(in crate::dvkd) fn replace(&self, members: Arc<Members>) {
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members;
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let subject = check_chain(certificate, &self.authority, now, usage)?;
        match self.members().find(subject.node) {
            Some(member) if member.revoked => Err(CertificateError::Revoked.into()),
            Some(_) => Ok(()),
            None => Err(refusal(format!("node {} is not a member (yet)", subject.node))),
        }
    }
}

/// Has the authority made this certificate, for a node of its DVS, and does it count now?
fn check_chain(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
    now: UnixTime,
    usage: KeyUsage,
) -> Result<Subject, Error> {
    let parsed = EndEntityCert::try_from(certificate).map_err(error_of)?;
    let anchor = anchor_from_trusted_cert(authority).map_err(error_of)?;
    let algorithms = &[webpki::ring::ED25519];
    parsed
        .verify_for_usage(algorithms, &[anchor], &[], now, usage, None, None)
        .map_err(error_of)?;
    let subject = Subject::of(certificate).map_err(|error| refusal(error.to_string()))?;
    if subject.dvs != dvs_of(authority) {
        return Err(refusal("it is of another DVS".into()));
    }
    Ok(subject)
}

fn error_of(error: webpki::Error) -> Error {
    match error {
        webpki::Error::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }.into()
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }.into()
        }
        webpki::Error::UnknownIssuer
        | webpki::Error::InvalidSignatureForPublicKey
        | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            CertificateError::UnknownIssuer.into()
        }
        other => refusal(format!("its certificate is not valid: {other:?}")),
    }
}

/// A refusal for a reason that TLS has no word for.
fn refusal(reason: String) -> Error {
    let reason: Box<dyn std::error::Error + Send + Sync> = reason.into();
    CertificateError::Other(OtherError(Arc::from(reason))).into()
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = ring::default_provider().signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signed, &algorithms)
}

/// There is no TLS 1.2 here.
fn refuse_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The node's number is compared by whoever asked for the link, which can say both.
        self.check(end_entity, now, KeyUsage::server_auth())
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, now, KeyUsage::client_auth())
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|certificate| fingerprint(certificate) == self.0);
        let authority = authority
            .ok_or_else(|| refusal("the token is for another DVS than the one there".into()))?;
        check_chain(end_entity, authority, now, KeyUsage::server_auth())
            .map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
