//! The list of the nodes of a DVS, and of the containers that span them all: one document with a revision, signed by the
//! authority.
//!
//! Every node has a copy. The newest revision counts; it travels over links and when a node joins. A number
//! that was revoked is never given out again.

use super::authority::Authority;
use super::certificate::dvs_of;
use super::config::{Dc, check_name, check_node};
use crate::limits::{DCS_MAX, MEMBERS_BYTES};
use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use webpki::EndEntityCert;

/// The nodes of a DVS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Members {
    /// The DVS, by its authority's certificate.
    pub(super) dvs: u64,
    /// Grows with each change.
    pub(super) revision: u64,
    /// The node that has the authority.
    pub(super) authority: u16,
    /// In the order of their numbers.
    pub(super) nodes: Vec<Member>,
    /// In the order of their numbers.
    pub(super) dcs: Vec<Spanning>,
    /// The highest number that a container has had: what is left of one is never another's.
    pub(super) last_dc: u32,
}

/// A container that spans all nodes, also those that join later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spanning {
    pub(super) id: u32,
    pub(super) name: String,
    /// The node where its servers run.
    pub(super) home: u16,
}

/// A node of a DVS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) node: u16,
    pub(super) name: String,
    /// Where it listens for links.
    pub(super) address: SocketAddr,
    /// Fingerprint of the last certificate that it was given.
    pub(super) certificate: [u8; 32],
    pub(super) revoked: bool,
}

/// The document as it travels and as it is on disk.
#[derive(Serialize, Deserialize)]
struct Signed<'a> {
    body: &'a [u8],
    signature: &'a [u8],
}

/// In front of what is signed: nothing else that the authority signs begins like this.
const CONTEXT: &[u8] = b"DVS members 3\0";

impl Members {
    pub(super) fn find(&self, node: u16) -> Option<&Member> {
        let at = self.nodes.binary_search_by_key(&node, |member| member.node).ok()?;
        self.nodes.get(at)
    }

    pub(super) fn find_mut(&mut self, node: u16) -> Option<&mut Member> {
        let at = self.nodes.binary_search_by_key(&node, |member| member.node).ok()?;
        self.nodes.get_mut(at)
    }

    /// May a node with this number have links?
    ///
    /// # Errors
    /// Why not, in a few words.
    pub(super) fn check(&self, node: u16) -> Result<()> {
        let member = self.find(node).with_context(|| format!("node {node} is not a member"))?;
        ensure!(!member.revoked, "node {node} has been revoked");
        Ok(())
    }

    /// The containers, each on all nodes: one that has been revoked never comes back, so it does no harm.
    pub(super) fn dcs(&self) -> Vec<Dc> {
        let nodes: Vec<u16> = self.nodes.iter().map(|member| member.node).collect();
        let dc = |spanning: &Spanning| Dc {
            id: spanning.id,
            name: spanning.name.clone(),
            nodes: nodes.clone(),
            home: spanning.home,
            maps: Vec::new(),
        };
        self.dcs.iter().map(dc).collect()
    }

    /// A number that no node has had yet.
    pub(super) fn free_number(&self) -> Result<u16> {
        let number = self.nodes.last().map_or(1, |last| last.node.saturating_add(1));
        check_node(number).context("there are no more numbers for nodes")?;
        Ok(number)
    }

    /// Signs the document; returns its bytes.
    pub(super) fn sign(&self, authority: &Authority) -> Result<Vec<u8>> {
        let body = postcard::to_stdvec(self)?;
        let signature = authority.sign(&[CONTEXT, &body].concat())?;
        let bytes = postcard::to_stdvec(&Signed { body: &body, signature: &signature })?;
        ensure!(bytes.len() <= MEMBERS_BYTES, "the list of members is too long");
        Ok(bytes)
    }

    /// Reads a document, from disk or from another node.
    ///
    /// # Errors
    /// It is malformed, or not of the authority that has `certificate`.
    pub(super) fn decode(bytes: &[u8], certificate: &CertificateDer<'_>) -> Result<Members> {
        ensure!(bytes.len() <= MEMBERS_BYTES, "the list of members is too long");
        let (signed, rest): (Signed<'_>, _) =
            postcard::take_from_bytes(bytes).context("malformed list of members")?;
        ensure!(rest.is_empty(), "malformed list of members");
        let authority = EndEntityCert::try_from(certificate).context("not a certificate")?;
        authority
            .verify_signature(
                webpki::ring::ED25519,
                &[CONTEXT, signed.body].concat(),
                signed.signature,
            )
            .ok()
            .context("the list of members is not signed by this DVS")?;
        Members::decode_body(signed.body, dvs_of(certificate))
    }

    /// Reads what has been signed.
    pub(super) fn decode_body(body: &[u8], dvs: u64) -> Result<Members> {
        let (members, rest): (Members, _) =
            postcard::take_from_bytes(body).context("malformed list of members")?;
        ensure!(rest.is_empty(), "malformed list of members");
        members.check_form(dvs)?;
        Ok(members)
    }

    /// Checks what the types cannot say.
    fn check_form(&self, dvs: u64) -> Result<()> {
        ensure!(self.dvs == dvs, "the list of members is of another DVS");
        let mut names = BTreeSet::new();
        let mut last = 0;
        for member in &self.nodes {
            check_node(member.node)?;
            check_name(&member.name)?;
            ensure!(member.node > last, "node {} is out of order", member.node);
            ensure!(names.insert(&member.name), "there are two nodes {}", member.name);
            last = member.node;
        }
        self.check_dcs()?;
        self.check(self.authority).context("the authority")
    }

    fn check_dcs(&self) -> Result<()> {
        ensure!(self.dcs.len() <= DCS_MAX, "there are more than {DCS_MAX} containers");
        let mut names = BTreeSet::new();
        let mut last = 0;
        for dc in &self.dcs {
            check_name(&dc.name)?;
            ensure!(dc.id > last, "container {} is out of order", dc.id);
            ensure!(names.insert(&dc.name), "there are two containers {}", dc.name);
            let home = self.find(dc.home);
            home.with_context(|| format!("container {} is at home nowhere", dc.name))?;
            last = dc.id;
        }
        ensure!(last <= self.last_dc, "container {last} has a number that nobody was given");
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::dvkd::certificate::system_clock;
    use proptest::prelude::*;

    pub(in crate::dvkd) fn member(node: u16) -> Member {
        Member {
            node,
            name: format!("n{node}"),
            address: ([127, 0, 0, 1], 7000 + node).into(),
            certificate: [7; 32],
            revoked: false,
        }
    }

    fn signed() -> (Authority, Members, Vec<u8>) {
        let authority = Authority::create(&system_clock()).unwrap();
        let nodes = vec![member(1), member(2), member(9)];
        let dc = |id: u32, home| Spanning { id, name: format!("dc{id}"), home };
        let dcs = vec![dc(3, 1), dc(8, 9)];
        let members =
            Members { dvs: authority.dvs(), revision: 3, authority: 1, nodes, dcs, last_dc: 8 };
        let bytes = members.sign(&authority).unwrap();
        (authority, members, bytes)
    }

    #[test]
    fn a_document_survives_its_bytes_and_no_changed_or_missing_byte_does() {
        let (authority, members, bytes) = signed();
        let decode = |bytes: &[u8]| Members::decode(bytes, &authority.certificate);
        assert_eq!(decode(&bytes).unwrap(), members);
        for at in 0..bytes.len() {
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(decode(&bad).is_err(), "byte {at}");
        }
        assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn a_document_of_another_authority_is_refused() {
        let (_, _, bytes) = signed();
        let (other, _, _) = signed();
        let error = Members::decode(&bytes, &other.certificate).unwrap_err().to_string();
        assert!(error.contains("not signed by this DVS"), "{error}");
    }

    #[test]
    fn what_contradicts_itself_is_refused_even_if_it_is_signed() {
        let check = |change: fn(&mut Members), says: &str| {
            let (authority, mut members, _) = signed();
            change(&mut members);
            let bytes = members.sign(&authority).unwrap();
            let error = Members::decode(&bytes, &authority.certificate).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{error:#}");
        };
        check(|members| members.dvs += 1, "another DVS");
        check(|members| members.nodes[2].node = 2, "out of order");
        check(|members| members.nodes[0].node = 0, "not in 1..=");
        check(|members| members.nodes[1].name = "n1".into(), "two nodes n1");
        check(|members| members.nodes[1].name = "../n".into(), "not a name");
        check(|members| members.authority = 5, "node 5 is not a member");
        check(|members| members.dcs[1].id = 3, "out of order");
        check(|members| members.dcs[0].id = 0, "out of order");
        check(|members| members.last_dc = 7, "that nobody was given");
        check(|members| members.dcs[1].name = "dc3".into(), "two containers dc3");
        check(|members| members.dcs[1].name = "a/b".into(), "not a name");
        check(|members| members.dcs[1].home = 3, "dc8 is at home nowhere");
        check(|members| members.nodes[0].revoked = true, "node 1 has been revoked");
    }

    #[test]
    fn a_number_is_never_given_out_twice() {
        let (_, mut members, _) = signed();
        assert_eq!(members.free_number().unwrap(), 10);
        members.nodes[2].revoked = true;
        assert_eq!(members.free_number().unwrap(), 10);
        members.nodes.push(member(4095));
        assert!(members.free_number().is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (authority, _, _) = signed();
            prop_assert!(Members::decode(&bytes, &authority.certificate).is_err());
        }
    }
}
