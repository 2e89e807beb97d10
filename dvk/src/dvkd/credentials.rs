//! A node's directory of secrets: its key and certificate, the authority's certificate, the list of members.
//!
//! The directory is 0700, each file 0600. A file is replaced as a whole, so that a crash leaves the old or the new.

use super::authority::Authority;
use super::certificate::{NodeKey, Subject, dvs_of, fingerprint, system_clock};
use super::config::{Peer, check_name, check_node};
use super::members::{Member, Members};
use ::group::limits::VOTERS_MAX;
use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The authority's certificate; every node has it.
const AUTHORITY: &str = "authority.pem";
/// Its key, on one node only.
const AUTHORITY_KEY: &str = "authority.key";
/// The node's key and certificate, together so that they cannot be of different nodes.
const NODE: &str = "node.pem";
/// The signed list of members.
const MEMBERS: &str = "members";

/// The first voters of the system group, and the word behind them once it has begun here.
const FOUNDERS: &str = "founders";
const BEGUN: &str = "begun";
const CERTIFICATE_TAG: &str = "CERTIFICATE";

/// What a node needs to have links.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) authority_certificate: CertificateDer<'static>,
    /// On one node only.
    pub(super) authority: Option<Authority>,
    pub(super) key: NodeKey,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) members: Members,
    /// The same, as it was signed.
    pub(super) document: Vec<u8>,
}

/// Begins a new DVS: an authority, kept by the first of `nodes`, and for each node a directory with its credentials.
/// A node that joins later makes its own.
///
/// # Errors
/// One sentence: a directory that has credentials already, or cannot be written.
pub fn found(nodes: &[(Peer, PathBuf)]) -> Result<()> {
    let clock = system_clock();
    let authority = Authority::create(&clock)?;
    let (first, home) = nodes.first().context("a DVS has at least one node")?;
    let mut members = Members {
        dvs: authority.dvs(),
        revision: 1,
        authority: first.node,
        nodes: Vec::with_capacity(nodes.len()),
        dcs: Vec::new(),
        last_dc: 0,
    };
    let mut keys = Vec::with_capacity(nodes.len());
    for (node, directory) in nodes {
        check_node(node.node)?;
        check_name(&node.name)?;
        make_directory(directory)?;
        let (key, certificate) = authority.certify_new(&clock, node.node)?;
        members.nodes.push(Member {
            node: node.node,
            name: node.name.clone(),
            address: node.address,
            certificate: fingerprint(&certificate),
            revoked: false,
        });
        keys.push((directory, key, certificate));
    }
    members.nodes.sort_by_key(|member| member.node);
    let document = members.sign(&authority)?;
    Members::decode(&document, &authority.certificate)?;
    let founders = Founders { voters: first_voters(nodes), begun: false };
    for (directory, key, certificate) in keys {
        write_founders(directory, &founders)?;
        write(directory, &authority.certificate, &key, &certificate, &document)?;
    }
    replace(&home.join(AUTHORITY_KEY), authority.key_pem().as_bytes())
}

/// Writes all files of a node; its directory is there.
pub(super) fn write(
    directory: &Path,
    authority: &CertificateDer<'_>,
    key: &NodeKey,
    certificate: &CertificateDer<'_>,
    document: &[u8],
) -> Result<()> {
    let authority = pem::Pem::new(CERTIFICATE_TAG, authority.to_vec()).to_string();
    replace(&directory.join(AUTHORITY), authority.as_bytes())?;
    write_members(directory, document)?;
    // The last one: without it nothing is there.
    write_identity(directory, key, certificate)
}

/// Replaces the node's key and certificate.
pub(super) fn write_identity(
    directory: &Path,
    key: &NodeKey,
    certificate: &CertificateDer<'_>,
) -> Result<()> {
    let certificate = pem::Pem::new(CERTIFICATE_TAG, certificate.to_vec()).to_string();
    replace(&directory.join(NODE), (key.to_pem() + &certificate).as_bytes())
}

/// Replaces the list of members.
pub(super) fn write_members(directory: &Path, document: &[u8]) -> Result<()> {
    replace(&directory.join(MEMBERS), document)
}

/// Makes a directory for credentials; there may be none in it yet.
///
/// # Errors
/// One sentence with the directory's name.
pub(super) fn make_directory(directory: &Path) -> Result<()> {
    let name = directory.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make {name}"))?;
    ensure!(
        !directory.join(NODE).exists() && !directory.join(AUTHORITY_KEY).exists(),
        "{name} has credentials of a node already; remove it only if that node is to be no more"
    );
    Ok(())
}

/// The first voters of the system group: those of the nodes with which the DVS begins that have the smallest numbers,
/// an odd number of them.
fn first_voters(nodes: &[(Peer, PathBuf)]) -> BTreeSet<u16> {
    let all: BTreeSet<u16> = nodes.iter().map(|(node, _)| node.node).collect();
    let count = all.len().min(VOTERS_MAX);
    let odd = count - (count + 1) % 2;
    all.into_iter().take(odd).collect()
}

/// What a node knows of the beginning of the system group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Founders {
    /// The same on all nodes that are among them.
    pub(super) voters: BTreeSet<u16>,
    /// This node has been in the group: it must not make it again.
    pub(super) begun: bool,
}

/// Reads who makes the system group. A DVS in which it is not written (it was begun by an earlier version) leaves it to
/// the node with the authority, as does one that this node has joined.
///
/// # Errors
/// One sentence with the file's name.
pub(super) fn founders(directory: &Path, authority: u16) -> Result<Founders> {
    let path = directory.join(FOUNDERS);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => authority.to_string(),
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    parse_founders(&text).with_context(|| format!("{} is not understood", path.display()))
}

fn parse_founders(text: &str) -> Result<Founders> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (numbers, begun) = match words.split_last() {
        Some((&BEGUN, numbers)) => (numbers, true),
        _ => (&words[..], false),
    };
    let voters = numbers.iter().map(|word| {
        let node = word.parse().context("it is a list of nodes")?;
        check_node(node)?;
        Ok(node)
    });
    let voters = voters.collect::<Result<BTreeSet<u16>>>()?;
    ensure!(!voters.is_empty(), "it lists no node");
    Ok(Founders { voters, begun })
}

/// Writes who makes the system group.
///
/// # Errors
/// One sentence with the file's name.
pub(super) fn write_founders(directory: &Path, founders: &Founders) -> Result<()> {
    let mut words: Vec<String> = founders.voters.iter().map(u16::to_string).collect();
    if founders.begun {
        words.push(BEGUN.into());
    }
    replace(&directory.join(FOUNDERS), (words.join(" ") + "\n").as_bytes())
}

impl Credentials {
    /// Reads and checks what is in `directory`.
    ///
    /// # Errors
    /// One sentence with the file's name.
    pub(super) fn read(directory: &Path) -> Result<Credentials> {
        let authority_certificate = read_certificate(&directory.join(AUTHORITY))?;
        let (key, certificate) = in_file(&directory.join(NODE), identity)?;
        let subject = Subject::of(&certificate)?;
        ensure!(
            subject.dvs == dvs_of(&authority_certificate),
            "{} mixes files of two DVSs",
            directory.display()
        );
        let decode = |bytes: &[u8]| Members::decode(bytes, &authority_certificate);
        let path = directory.join(MEMBERS);
        let members = in_file(&path, decode)?;
        let document = std::fs::read(&path)?;
        let path = directory.join(AUTHORITY_KEY);
        let authority = if path.exists() {
            let key =
                in_file(&path, |bytes| Ok(rcgen::KeyPair::from_pem(std::str::from_utf8(bytes)?)?))?;
            Some(Authority::load(authority_certificate.clone(), key)?)
        } else {
            None
        };
        Ok(Credentials { authority_certificate, authority, key, certificate, members, document })
    }
}

/// The fingerprint of the authority whose certificate is in `directory`, and whether its key is there.
///
/// # Errors
/// One sentence: there are no credentials.
pub(super) fn authority_in(directory: &Path) -> Result<([u8; 32], bool)> {
    let certificate = read_certificate(&directory.join(AUTHORITY))?;
    Ok((fingerprint(&certificate), directory.join(AUTHORITY_KEY).exists()))
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>> {
    in_file(path, |bytes| match &pem::parse_many(bytes)?[..] {
        [one] if one.tag() == CERTIFICATE_TAG => Ok(CertificateDer::from(one.contents().to_vec())),
        _ => bail!("one certificate was expected"),
    })
}

fn identity(bytes: &[u8]) -> Result<(NodeKey, CertificateDer<'static>)> {
    match &pem::parse_many(bytes)?[..] {
        [key, certificate] if certificate.tag() == CERTIFICATE_TAG => {
            let key = NodeKey::from_der(key.contents())?;
            let certificate = CertificateDer::from(certificate.contents().to_vec());
            key.check(&certificate)?;
            Ok((key, certificate))
        }
        _ => bail!("a key and a certificate were expected"),
    }
}

/// Reads a file; errors name it.
fn in_file<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&bytes).with_context(|| format!("{} is not valid", path.display()))
}

/// Writes a file that only its owner may read, in place of what was there.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    let written = || -> std::io::Result<()> {
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn nodes(directory: &Path) -> Vec<(Peer, PathBuf)> {
        let peer = |node: u16| Peer {
            node,
            name: format!("n{node}"),
            address: ([127, 0, 0, 1], 7000 + node).into(),
        };
        (1..=2).map(|node| (peer(node), directory.join(format!("{node}")))).collect()
    }

    #[test]
    fn what_is_founded_is_read_again_and_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let nodes = nodes(directory.path());
        found(&nodes).unwrap();
        for (peer, directory) in &nodes {
            let credentials = Credentials::read(directory).unwrap();
            assert_eq!(Subject::of(&credentials.certificate).unwrap().node, peer.node);
            assert_eq!(credentials.authority.is_some(), peer.node == 1);
            assert_eq!(credentials.members.nodes.len(), 2);
            assert_eq!(std::fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700);
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "{entry:?}");
            }
        }
        let error = found(&nodes).unwrap_err().to_string();
        assert!(error.contains("has credentials of a node already"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_named() {
        for name in [AUTHORITY, NODE, MEMBERS, AUTHORITY_KEY] {
            let directory = tempfile::tempdir().unwrap();
            let nodes = nodes(directory.path());
            found(&nodes).unwrap();
            let path = nodes[0].1.join(name);
            let bytes = std::fs::read(&path).unwrap();
            for bad in [&bytes[..bytes.len() / 2], b"", b"-----BEGIN X-----\n-----END X-----\n"] {
                std::fs::write(&path, bad).unwrap();
                let error = format!("{:#}", Credentials::read(&nodes[0].1).unwrap_err());
                assert!(error.contains(name), "{error}");
            }
        }
    }

    #[test]
    fn the_key_of_one_node_does_not_go_with_the_certificate_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let nodes = nodes(directory.path());
        found(&nodes).unwrap();
        let own = Credentials::read(&nodes[0].1).unwrap();
        let other = Credentials::read(&nodes[1].1).unwrap();
        write_identity(&nodes[0].1, &own.key, &other.certificate).unwrap();
        let error = format!("{:#}", Credentials::read(&nodes[0].1).unwrap_err());
        assert!(error.contains("for another key"), "{error}");
    }
}
