//! This node as a member of a DVS: whom it trusts, how it shows itself, and how both change while it runs.
//!
//! [`Membership`] is the one entry point. The list of members has one writer, the node with the authority; a
//! replicated group can take that place without anybody else noticing.

use super::authority::Authority;
use super::certificate::{Clock, NodeKey, Subject, Validity, dvs_of, fingerprint, seconds};
use super::config::{Config, Dc, Peer};
use super::control::Control;
use super::credentials::{self, Credentials};
use super::join::{Granted, Request};
use super::members::{Member, Members, Spanning};
use super::tls::{Configs, Trust};
use super::token;
use crate::frame::VERSION;
use crate::limits::{DCS_MAX, RENEWAL_PAUSE, RENEWAL_WAIT};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A node's membership.
#[derive(Debug)]
pub(super) struct Membership {
    node: u16,
    directory: PathBuf,
    clock: Clock,
    authority: Option<Authority>,
    trust: Arc<Trust>,
    /// The signed list that counts. Whoever changes the list holds it.
    document: Mutex<Vec<u8>>,
    identity: Mutex<Identity>,
    /// The identity, or the wish for another one, has changed.
    changed: Condvar,
    /// When each node was last given a certificate.
    renewed: Mutex<BTreeMap<u16, Instant>>,
}

/// How the node shows itself.
#[derive(Debug)]
struct Identity {
    configs: Configs,
    validity: Validity,
    /// Grows with each new certificate.
    generation: u64,
    /// The key of the certificate that has been asked for.
    pending: Option<NodeKey>,
    /// An administrator wants a new certificate now.
    wanted: bool,
    /// Why the last request was refused.
    refusal: Option<String>,
    stopping: bool,
}

/// What another list of members means for this node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// New members, without this node.
    pub(super) joined: Vec<u16>,
    pub(super) revoked: Vec<u16>,
}

/// What is to be done for a new certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// Nothing more, the daemon stops.
    Stop,
    /// Nothing now.
    Later,
    /// It is done: the authority is here.
    Done(Change),
    /// To be sent to this node.
    Ask(u16, Bytes),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Membership {
    /// Reads the credentials in `directory`, which must be those of the configured node.
    ///
    /// # Errors
    /// One sentence with the file's name, or the number.
    pub(super) fn open(config: &Config, directory: &Path, clock: Clock) -> Result<Membership> {
        let credentials = Credentials::read(directory)?;
        let Credentials { authority_certificate, authority, key, certificate, members, document } =
            credentials;
        let subject = Subject::of(&certificate)?;
        ensure!(
            subject.node == config.node,
            "the certificate in {} is node {}'s, the configuration is of node {}",
            directory.display(),
            subject.node,
            config.node
        );
        ensure!(
            (members.authority == config.node) == authority.is_some(),
            "{} is the node with the authority, but its key is elsewhere",
            members.authority
        );
        let trust = Arc::new(Trust::new(authority_certificate, Arc::new(members)));
        let configs =
            Configs::new(&trust, &certificate, &key.to_der(), &clock, authority.is_some())?;
        let identity = Identity {
            configs,
            validity: Validity::of(&certificate)?,
            generation: 0,
            pending: None,
            wanted: false,
            refusal: None,
            stopping: false,
        };
        Ok(Membership {
            node: config.node,
            directory: directory.to_owned(),
            clock,
            authority,
            trust,
            document: Mutex::new(document),
            identity: Mutex::new(identity),
            changed: Condvar::new(),
            renewed: Mutex::default(),
        })
    }

    pub(super) fn members(&self) -> Arc<Members> {
        self.trust.members()
    }

    /// The numbers of all other nodes, also those that have been revoked.
    pub(super) fn others(&self) -> Vec<u16> {
        let members = self.members();
        members.nodes.iter().map(|one| one.node).filter(|node| *node != self.node).collect()
    }

    /// The other nodes that may have links with this one.
    pub(super) fn peers(&self) -> Vec<Peer> {
        let members = self.members();
        let others = members.nodes.iter().filter(|one| one.node != self.node && !one.revoked);
        others
            .map(|one| Peer { node: one.node, name: one.name.clone(), address: one.address })
            .collect()
    }

    /// How to show oneself on a new connection.
    pub(super) fn configs(&self) -> Configs {
        locked(&self.identity).configs.clone()
    }

    /// The name that a node's certificate must have.
    pub(super) fn subject(&self, node: u16) -> Subject {
        Subject { dvs: dvs_of(self.trust.authority()), node }
    }

    /// The list of members as it is told to others.
    pub(super) fn announcement(&self) -> Bytes {
        Control::Members(&locked(&self.document)).encode()
    }

    /// Takes a list that another node has told. `None`: it is not newer than the one that is known.
    ///
    /// # Errors
    /// It is not the authority's.
    pub(super) fn adopt(&self, document: &[u8]) -> Result<Option<Change>> {
        let members = Members::decode(document, self.trust.authority())?;
        let mut current = locked(&self.document);
        if members.revision <= self.members().revision {
            return Ok(None);
        }
        self.install(&mut current, members, document.to_vec()).map(Some)
    }

    /// Changes the list, signs it and keeps it. Only with the authority.
    fn change(&self, act: impl FnOnce(&mut Members) -> Result<()>) -> Result<Change> {
        let authority = self.authority()?;
        let mut current = locked(&self.document);
        let mut members = Members::clone(&self.members());
        act(&mut members)?;
        members.revision += 1;
        let document = members.sign(authority)?;
        self.install(&mut current, members, document)
    }

    fn install(
        &self,
        current: &mut Vec<u8>,
        members: Members,
        document: Vec<u8>,
    ) -> Result<Change> {
        credentials::write_members(&self.directory, &document)?;
        let before = self.members();
        let change = Change::between(&before, &members, self.node);
        tracing::info!(revision = members.revision, ?change, "another list of members counts");
        if members.check(self.node).is_err() && before.check(self.node).is_ok() {
            tracing::error!("this node has been revoked: no other node has links with it any more");
        }
        self.trust.replace(Arc::new(members));
        *current = document;
        Ok(change)
    }

    fn authority(&self) -> Result<&Authority> {
        let members = self.members();
        let name = members.find(members.authority).map_or("?", |member| member.name.as_str());
        self.authority
            .as_ref()
            .with_context(|| format!("the authority of this DVS is on node {name}; ask there"))
    }

    /// Lets a node join that has a token.
    ///
    /// # Errors
    /// One sentence for the one who wants to join.
    pub(super) fn admit(&self, request: &Request<'_>) -> Result<(Granted, Change)> {
        let authority = self.authority()?;
        ensure!(
            request.version == VERSION,
            "link protocol version {} on the new node, {VERSION} here: both need the same dvs",
            request.version
        );
        let key = token::redeem(&self.directory, &request.secret, &self.clock, || {
            super::config::check_name(request.name)?;
            let members = self.members();
            ensure!(
                members.nodes.iter().all(|member| member.name != request.name),
                "there is a node {:?} already; choose another name",
                request.name
            );
            let address = request.address;
            ensure!(
                !address.ip().is_unspecified() && address.port() != 0,
                "{address} is no address that others can connect to; choose one with --listen"
            );
            super::certificate::requested_key(request.request)
        })?;
        let mut granted = None;
        let change = self.change(|members| {
            let node = members.free_number()?;
            let certificate = authority.certify(&self.clock, node, &key)?;
            members.nodes.push(Member {
                node,
                name: request.name.to_owned(),
                address: request.address,
                certificate: fingerprint(&certificate),
                revoked: false,
            });
            granted = Some((node, certificate));
            Ok(())
        })?;
        let (node, certificate) = granted.context("the list of members was not changed")?;
        tracing::info!(node, name = request.name, "a node has joined");
        let granted = Granted {
            node,
            certificate: certificate.to_vec(),
            authority: self.trust.authority().to_vec(),
            members: locked(&self.document).clone(),
        };
        Ok((granted, change))
    }

    /// Takes a node's membership away, for ever.
    ///
    /// # Errors
    /// One sentence: there is no such node, or it is the one with the authority.
    pub(super) fn revoke(&self, node: u16) -> Result<Change> {
        let change = self.change(|members| {
            ensure!(
                node != members.authority,
                "node {node} has the authority; without it there is no DVS"
            );
            let member = members.find_mut(node);
            let member = member.with_context(|| format!("node {node} is not a member"))?;
            ensure!(!member.revoked, "node {node} has been revoked already");
            member.revoked = true;
            Ok(())
        })?;
        tracing::info!(node, "a node has been revoked");
        Ok(change)
    }

    /// The containers that span all nodes.
    pub(super) fn dcs(&self) -> Vec<Dc> {
        self.members().dcs()
    }

    /// Makes a container that spans all nodes, also those that join later. `known` are those of this node.
    ///
    /// # Errors
    /// One sentence: there is one with this name, its home is no member, or the authority is elsewhere.
    pub(super) fn create_dc(&self, name: &str, home: u16, known: &[Dc]) -> Result<Change> {
        let change = self.change(|members| {
            members.check(home)?;
            super::config::check_name(name)?;
            let mut names = members.dcs.iter().map(|dc| &dc.name);
            ensure!(
                names.all(|known| known != name) && known.iter().all(|dc| dc.name != name),
                "there is a container {name:?} already; choose another name"
            );
            ensure!(members.dcs.len() < DCS_MAX, "there are {DCS_MAX} containers already");
            // None that this node knows. (A node whose configuration has it goes by that, and says so: `dcs`.)
            let used = known.iter().map(|dc| dc.id).fold(members.last_dc, u32::max);
            let id = used.checked_add(1).context("there are no more numbers")?;
            members.last_dc = id;
            members.dcs.push(Spanning { id, name: name.to_owned(), home });
            Ok(())
        })?;
        tracing::info!(name, home, "a container has been made");
        Ok(change)
    }

    /// Takes a container that was made so off the list; returns what it was.
    ///
    /// # Errors
    /// One sentence: there is none of this name, or the authority is elsewhere.
    pub(super) fn remove_dc(&self, name: &str) -> Result<(Spanning, Change)> {
        let mut removed = None;
        let change = self.change(|members| {
            let at = members.dcs.iter().position(|dc| dc.name == name);
            let at = at.with_context(|| {
                format!("there is no container {name:?} that \"dvs dc create\" has made")
            })?;
            removed = Some(members.dcs.remove(at));
            Ok(())
        })?;
        tracing::info!(name, "a container has been removed");
        Ok((removed.context("the list of members was not changed")?, change))
    }

    /// A new certificate for a member that asks for one over its link.
    ///
    /// # Errors
    /// One sentence for the other node.
    pub(super) fn renew_for(&self, node: u16, request: &[u8]) -> Result<(Vec<u8>, Change)> {
        let authority = self.authority()?;
        self.members().check(node)?;
        let now = Instant::now();
        let mut renewed = locked(&self.renewed);
        let is_soon =
            renewed.get(&node).is_some_and(|last| now.duration_since(*last) < RENEWAL_PAUSE / 2);
        ensure!(!is_soon, "node {node} has just been given a certificate");
        renewed.insert(node, now);
        drop(renewed);
        let certificate = authority.certify_request(&self.clock, node, request)?;
        let change = self.note_certificate(node, &certificate)?;
        Ok((certificate.to_vec(), change))
    }

    fn note_certificate(&self, node: u16, certificate: &CertificateDer<'_>) -> Result<Change> {
        self.change(|members| {
            let member = members.find_mut(node).context("the node is not a member")?;
            member.certificate = fingerprint(certificate);
            Ok(())
        })
    }

    /// Waits until something is to be done for a new certificate, for `patience` at most.
    pub(super) fn await_renewal(&self, patience: Duration) -> Result<Renewal> {
        let identity = locked(&self.identity);
        let is_due = |identity: &Identity| {
            identity.wanted || seconds(&self.clock) >= identity.validity.renewal()
        };
        let quiet = |identity: &mut Identity| !identity.stopping && !is_due(identity);
        let waited = self.changed.wait_timeout_while(identity, patience, quiet);
        let (mut identity, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if identity.stopping {
            return Ok(Renewal::Stop);
        }
        if !is_due(&identity) {
            return Ok(Renewal::Later);
        }
        identity.wanted = false;
        let key = NodeKey::generate()?;
        if let Some(authority) = &self.authority {
            drop(identity);
            let certificate = authority.certify(&self.clock, self.node, key.public())?;
            self.show(key, certificate.clone())?;
            return self.note_certificate(self.node, &certificate).map(Renewal::Done);
        }
        let request = Control::Renew(&key.request()?).encode();
        identity.pending = Some(key);
        identity.refusal = None;
        Ok(Renewal::Ask(self.members().authority, request))
    }

    /// Waits for the answer to a request, for `patience` at most. True if it was no, or there is none.
    pub(super) fn await_answer(&self, patience: Duration) -> bool {
        let waits = |identity: &mut Identity| {
            identity.pending.is_some() && !identity.stopping && !identity.wanted
        };
        let waited = self.changed.wait_timeout_while(locked(&self.identity), patience, waits);
        let (identity, _) = waited.unwrap_or_else(PoisonError::into_inner);
        identity.refusal.is_some() || identity.pending.is_some()
    }

    /// The certificate that had been asked for has come.
    ///
    /// # Errors
    /// It is not what was asked for.
    pub(super) fn renewed(&self, certificate: &[u8]) -> Result<()> {
        let certificate = CertificateDer::from(certificate.to_vec());
        let key = locked(&self.identity).pending.take();
        let key = key.context("a certificate that nobody has asked for")?;
        key.check(&certificate)?;
        ensure!(
            Subject::of(&certificate)? == self.subject(self.node),
            "a certificate of another node"
        );
        self.show(key, certificate)
    }

    /// The authority has said why there is no new certificate.
    pub(super) fn refused(&self, why: &[u8]) {
        let why = String::from_utf8_lossy(why).into_owned();
        tracing::warn!(why, "the certificate is not renewed");
        let mut identity = locked(&self.identity);
        identity.pending = None;
        identity.refusal = Some(why);
        drop(identity);
        self.changed.notify_all();
    }

    /// From now on new connections show this certificate; those that are there stay.
    fn show(&self, key: NodeKey, certificate: CertificateDer<'static>) -> Result<()> {
        let admits = self.authority.is_some();
        let configs = Configs::new(&self.trust, &certificate, &key.to_der(), &self.clock, admits)?;
        let validity = Validity::of(&certificate)?;
        credentials::write_identity(&self.directory, &key, &certificate)?;
        let mut identity = locked(&self.identity);
        identity.configs = configs;
        identity.validity = validity;
        identity.generation += 1;
        drop(identity);
        self.changed.notify_all();
        tracing::info!(until = validity.until, "this node has a new certificate");
        Ok(())
    }

    /// Makes the node get a new certificate now, and waits until it has.
    ///
    /// # Errors
    /// One sentence: the authority refuses, or cannot be reached.
    pub(super) fn renew_now(&self) -> Result<Validity> {
        let mut identity = locked(&self.identity);
        let before = identity.generation;
        identity.wanted = true;
        identity.refusal = None;
        self.changed.notify_all();
        let waits =
            |identity: &mut Identity| identity.generation == before && identity.refusal.is_none();
        let waited = self.changed.wait_timeout_while(identity, RENEWAL_WAIT, waits);
        let (identity, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match &identity.refusal {
            _ if identity.generation != before => Ok(identity.validity),
            Some(why) => bail!("the authority refuses: {why}"),
            None => bail!("the node with the authority does not answer; the old certificate stays"),
        }
    }

    /// Until when the certificate counts.
    pub(super) fn validity(&self) -> Validity {
        locked(&self.identity).validity
    }

    pub(super) fn stop(&self) {
        locked(&self.identity).stopping = true;
        self.changed.notify_all();
    }

    /// Somebody should look at the clock again.
    #[cfg(test)]
    pub(super) fn poke(&self) {
        self.changed.notify_all();
    }
}

impl Change {
    fn between(before: &Members, after: &Members, own: u16) -> Change {
        let others = || after.nodes.iter().filter(|member| member.node != own);
        let was_fine = |member: &&Member| before.check(member.node).is_ok();
        let joined =
            others().filter(|member| !member.revoked && before.find(member.node).is_none());
        let revoked = others().filter(|member| member.revoked).filter(was_fine);
        Change {
            joined: joined.map(|member| member.node).collect(),
            revoked: revoked.map(|member| member.node).collect(),
        }
    }
}
