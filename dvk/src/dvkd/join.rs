//! How a machine becomes a node: what it says to the node with the authority, and the answer.
//!
//! One message each way over TLS, a length and its bytes. The machine knows the authority from its token, and says
//! nothing before the handshake has shown that it talks to it. It has no certificate yet: the token is its right.

use super::certificate::{NodeKey, Subject, fingerprint, system_clock};
use super::config::{check_name, check_node};
use super::credentials;
use super::members::Members;
use super::membership::{Change, Membership};
use super::tls::{self, Pinned, Tls};
use super::token::Token;
use crate::frame::VERSION;
use crate::limits::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, JOIN_BYTES, JOIN_TIMEOUT, MEMBERS_BYTES};
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Instant;

/// What a machine says that wants to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request<'a> {
    /// Version of the link protocol that it speaks.
    pub(super) version: u32,
    /// Of its token.
    pub(super) secret: [u8; 16],
    /// What it wants to be called.
    pub(super) name: &'a str,
    /// Where it will listen.
    pub(super) address: SocketAddr,
    /// Its request for a certificate (PKCS #10).
    pub(super) request: &'a [u8],
}

/// What it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Granted {
    pub(super) node: u16,
    pub(super) certificate: Vec<u8>,
    pub(super) authority: Vec<u8>,
    pub(super) members: Vec<u8>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    Granted(Granted),
    /// One sentence that says what to do.
    Refused(String),
}

/// Bytes of the longest answer: the list of members, two certificates.
const ANSWER_BYTES: usize = MEMBERS_BYTES + 2 * JOIN_BYTES;

/// A machine that has become a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub node: u16,
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Reads what a machine says that wants to join.
///
/// # Errors
/// It is malformed.
fn decode_request(bytes: &[u8]) -> Result<Request<'_>> {
    let (request, rest) = postcard::take_from_bytes(bytes).context("malformed request to join")?;
    ensure!(rest.is_empty(), "malformed request to join");
    Ok(request)
}

/// Reads the answer.
///
/// # Errors
/// It is malformed.
fn decode_answer(bytes: &[u8]) -> Result<Answer> {
    let (answer, rest) =
        postcard::take_from_bytes(bytes).context("malformed answer to a request to join")?;
    ensure!(rest.is_empty(), "malformed answer to a request to join");
    Ok(answer)
}

/// Both decoders, for `super::outside`.
pub(super) fn decode_all(bytes: &[u8]) {
    decode_request(bytes).ok();
    decode_answer(bytes).ok();
}

fn write(tls: &Tls, message: &[u8], deadline: Instant) -> Result<()> {
    let length = u32::try_from(message.len())?;
    tls.write_all_by(&[&length.to_le_bytes(), message].concat(), deadline)?;
    Ok(())
}

fn read(tls: &Tls, most: usize, deadline: Instant) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    tls.read_exact_by(&mut length, deadline)?;
    let length = usize::try_from(u32::from_le_bytes(length))?;
    ensure!(length <= most, "a message of {length} bytes");
    let mut message = vec![0; length];
    tls.read_exact_by(&mut message, deadline)?;
    Ok(message)
}

/// Hears a machine that wants to join, and answers it. Returns what has changed, if it has joined.
///
/// # Errors
/// Why it has not, after it has been told.
pub(super) fn serve(membership: &Membership, tls: &Tls) -> Result<Change> {
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let message = read(tls, JOIN_BYTES, deadline)?;
    let admitted = decode_request(&message).and_then(|request| membership.admit(&request));
    let (answer, result) = match admitted {
        Ok((granted, change)) => (Answer::Granted(granted), Ok(change)),
        Err(error) => (Answer::Refused(format!("{error:#}")), Err(error)),
    };
    // It is a member, whether it hears of it or not.
    if let Err(error) = write(tls, &postcard::to_stdvec(&answer)?, deadline) {
        tracing::warn!(
            error = format!("{error:#}"),
            "one that wanted to join has not heard the answer"
        );
    }
    result
}

/// Tells a machine that it may not join now.
pub(super) fn refuse(tls: &Tls, why: &str) {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let answer = postcard::to_stdvec(&Answer::Refused(why.to_owned()));
    if let Err(error) = answer.map_err(Into::into).and_then(|bytes| write(tls, &bytes, deadline)) {
        tracing::debug!(error = format!("{error:#}"), "a refusal is not heard");
    }
}

/// Makes this machine a node of the DVS whose authority is at `address`, and writes its credentials to `directory`.
/// `listen`: where it will listen, given the address that it has towards the authority.
///
/// # Errors
/// One sentence that says what to do.
pub fn join(
    address: SocketAddr,
    token: &Token,
    name: &str,
    listen: impl FnOnce(SocketAddr) -> SocketAddr,
    directory: &Path,
) -> Result<Joined> {
    check_name(name)?;
    credentials::make_directory(directory)?;
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .with_context(|| format!("nobody answers at {address}"))?;
    let own = listen(stream.local_addr()?);
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let tls = tls::connect_to_join(stream, Pinned(token.authority), &system_clock(), deadline)
        .map_err(|error| explain(address, &error))?;
    let key = NodeKey::generate()?;
    let request = Request {
        version: VERSION,
        secret: token.secret,
        name,
        address: own,
        request: &key.request()?,
    };
    write(&tls, &postcard::to_stdvec(&request)?, deadline)?;
    let answer = read(&tls, ANSWER_BYTES, deadline).context("the answer does not come")?;
    let granted = match decode_answer(&answer)? {
        Answer::Granted(granted) => granted,
        Answer::Refused(why) => bail!("{why}"),
    };
    let authority = CertificateDer::from(granted.authority);
    let certificate = CertificateDer::from(granted.certificate);
    check_node(granted.node)?;
    ensure!(fingerprint(&authority) == token.authority, "the answer is of another DVS");
    key.check(&certificate)?;
    ensure!(Subject::of(&certificate)?.node == granted.node, "the certificate is another node's");
    Members::decode(&granted.members, &authority)?.check(granted.node)?;
    credentials::write(directory, &authority, &key, &certificate, &granted.members)?;
    Ok(Joined { node: granted.node, name: name.to_owned(), address: own })
}

/// What a failed handshake means for the one who has typed the address.
fn explain(address: SocketAddr, error: &anyhow::Error) -> anyhow::Error {
    let said = format!("{error:#}");
    if said.contains("NoApplicationProtocol") {
        anyhow!(
            "the node at {address} has not the authority; join at the one where \"dvs init\" was run"
        )
    } else {
        anyhow!("cannot join at {address}: {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_survive_their_bytes_and_no_part_of_them_is_one() {
        let request = Request {
            version: 1,
            secret: [3; 16],
            name: "n4",
            address: ([10, 0, 0, 4], 7083).into(),
            request: b"request",
        };
        let bytes = postcard::to_stdvec(&request).unwrap();
        assert_eq!(decode_request(&bytes).unwrap(), request);
        let granted = Granted {
            node: 4,
            certificate: vec![1; 9],
            authority: vec![2; 9],
            members: vec![3; 9],
        };
        for answer in [Answer::Granted(granted), Answer::Refused("no".into())] {
            let bytes = postcard::to_stdvec(&answer).unwrap();
            assert_eq!(decode_answer(&bytes).unwrap(), answer);
            for end in 0..bytes.len() {
                assert!(decode_answer(&bytes[..end]).is_err());
            }
            assert!(decode_answer(&[&bytes[..], b"x"].concat()).is_err());
        }
        for end in 0..bytes.len() {
            assert!(decode_request(&bytes[..end]).is_err());
        }
        assert!(decode_request(&[&bytes[..], b"x"].concat()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            decode_all(&bytes);
        }
    }
}
