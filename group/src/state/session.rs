//! Sessions: who lives until when, and the answers that a repeated command gets.

use super::{Serial, bounded, shared, together};
use crate::command::{Answer, ClientId, Done, Limit, Millis, Refusal, Sign};
use crate::limits::{
    ANSWERS_MAX, DC_SESSIONS_MAX, DCS_SESSIONS_MAX, SESSIONS_MAX, TTL_MAX, TTL_MIN,
};
use crate::realm::Realm;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sessions {
    table: BTreeMap<ClientId, Session>,
    #[serde(skip)]
    by_deadline: BTreeSet<(Millis, ClientId)>,
    #[serde(skip)]
    by_nonce: BTreeMap<(u64, u64), ClientId>,
    #[serde(skip)]
    count: BTreeMap<Realm, usize>,
}

/// Who asks, or only something for keys to end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// Opened with this number, through this node.
    Client { nonce: u64, from: u64 },
    /// A lease that this session was granted. It asks nothing, and may live longer.
    Lease { owner: ClientId },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    realm: Realm,
    kind: Kind,
    ttl: Millis,
    deadline: Millis,
    /// The client has the answers of all commands up to this number.
    acked: u64,
    answers: BTreeMap<u64, Answer>,
}

impl Sessions {
    /// The sessions whose time is over, in the order of their deadlines.
    pub(super) fn due(&self, now: Millis) -> Vec<ClientId> {
        let due = self.by_deadline.iter().take_while(|(deadline, _)| *deadline <= now);
        due.map(|(_, client)| *client).collect()
    }

    pub(super) fn deadline(&self) -> Option<Millis> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn alive(&self, client: ClientId) -> Result<(), Refusal> {
        if self.table.contains_key(&client) { Ok(()) } else { Err(Refusal::NoSession) }
    }

    /// Is it a session that may ask for something, and this node's to speak for?
    pub(super) fn speaks(&self, client: ClientId, node: u64) -> Result<(), Refusal> {
        match self.table.get(&client).map(|session| session.kind) {
            Some(Kind::Client { from, .. }) if from == node => Ok(()),
            _ => Err(Refusal::NoSession),
        }
    }

    /// Was the lease granted to this session, and has not ended?
    pub(super) fn is_lease_of(&self, client: ClientId, lease: ClientId) -> Result<(), Refusal> {
        match self.table.get(&lease).map(|session| session.kind) {
            Some(Kind::Lease { owner }) if owner == client => Ok(()),
            _ => Err(Refusal::NotHeld),
        }
    }

    pub(super) fn realm_of(&self, client: ClientId) -> Option<Realm> {
        self.table.get(&client).map(|session| session.realm)
    }

    pub(super) fn open(
        &mut self,
        from: u64,
        nonce: u64,
        ttl: Millis,
        realm: Realm,
        now: Millis,
        serial: &mut Serial,
    ) -> Result<ClientId, Refusal> {
        if let Some(client) = self.by_nonce.get(&(from, nonce)).copied() {
            self.prolong(client, now)?;
            return Ok(client);
        }
        let client = self.add(Kind::Client { nonce, from }, ttl, realm, now, serial)?;
        self.by_nonce.insert((from, nonce), client);
        Ok(client)
    }

    pub(super) fn grant(
        &mut self,
        owner: ClientId,
        ttl: Millis,
        now: Millis,
        serial: &mut Serial,
    ) -> Result<ClientId, Refusal> {
        let realm = self.realm_of(owner).ok_or(Refusal::NoSession)?;
        self.add(Kind::Lease { owner }, ttl, realm, now, serial)
    }

    fn add(
        &mut self,
        kind: Kind,
        ttl: Millis,
        realm: Realm,
        now: Millis,
        serial: &mut Serial,
    ) -> Result<ClientId, Refusal> {
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(Refusal::Limit { what: Limit::Ttl, limit: TTL_MAX });
        }
        bounded(self.table.len() + 1, SESSIONS_MAX, Limit::Sessions)?;
        let count = self.count.get(&realm).copied().unwrap_or(0) + 1;
        shared(realm, count, DC_SESSIONS_MAX, Limit::Sessions)?;
        let system = self.count.get(&Realm::System).copied().unwrap_or(0);
        let all = self.table.len() - system + 1;
        together(realm, all, DCS_SESSIONS_MAX, Limit::Sessions)?;
        let client = ClientId(serial.next());
        let deadline = now.saturating_add(ttl);
        let session = Session { realm, kind, ttl, deadline, acked: 0, answers: BTreeMap::new() };
        self.count.insert(realm, count);
        self.table.insert(client, session);
        self.by_deadline.insert((deadline, client));
        Ok(client)
    }

    /// Takes signs of life; says which of them are not of sessions.
    pub(super) fn keep_alive(&mut self, signs: &[Sign]) -> Done {
        let mut ended = Vec::new();
        for (place, sign) in (0..).zip(signs) {
            let speaks = self.speaks(sign.client, sign.from);
            if speaks.and_then(|()| self.prolong(sign.client, sign.at)).is_err() {
                ended.push(place);
            }
        }
        Done::Alive { ended }
    }

    /// The session, or lease, lives its time from `at` on, if it does not live longer.
    pub(super) fn prolong(&mut self, client: ClientId, at: Millis) -> Answer {
        let session = self.table.get_mut(&client).ok_or(Refusal::NoSession)?;
        self.by_deadline.remove(&(session.deadline, client));
        session.deadline = session.deadline.max(at.saturating_add(session.ttl));
        self.by_deadline.insert((session.deadline, client));
        Ok(Done::Fine)
    }

    pub(super) fn life_of(&self, client: ClientId) -> Option<(Millis, Millis)> {
        self.table.get(&client).map(|session| (session.ttl, session.deadline))
    }

    pub(super) fn remove(&mut self, client: ClientId) {
        if let Some(session) = self.table.remove(&client) {
            self.by_deadline.remove(&(session.deadline, client));
            if let Kind::Client { nonce, from } = session.kind {
                self.by_nonce.remove(&(from, nonce));
            }
            if let Some(count) = self.count.get_mut(&session.realm) {
                *count -= 1;
                if *count == 0 {
                    self.count.remove(&session.realm);
                }
            }
        }
    }

    /// The answer that the command had when it came before.
    ///
    /// # Errors
    /// The answer is forgotten because the client has it; the command has no number; too many of the
    /// client's commands are not acknowledged.
    pub(super) fn earlier_answer(
        &mut self,
        client: ClientId,
        sequence: u64,
        acked: u64,
    ) -> Result<Option<Answer>, Refusal> {
        let session = self.table.get_mut(&client).ok_or(Refusal::NoSession)?;
        if sequence == 0 {
            return Err(Refusal::NoSequence);
        }
        // A client acknowledges what it has, so a command does not acknowledge itself.
        let acked = acked.min(sequence - 1);
        if acked > session.acked {
            session.acked = acked;
            session.answers = session.answers.split_off(&(acked + 1));
        }
        if sequence <= session.acked {
            return Err(Refusal::Answered);
        }
        if let Some(answer) = session.answers.get(&sequence) {
            return Ok(Some(answer.clone()));
        }
        bounded(session.answers.len() + 1, ANSWERS_MAX, Limit::Unacknowledged)?;
        Ok(None)
    }

    pub(super) fn remember(&mut self, client: ClientId, sequence: u64, answer: &Answer) {
        if let Some(session) = self.table.get_mut(&client) {
            session.answers.insert(sequence, answer.clone());
        }
    }

    pub(super) fn rebuild(&mut self) {
        let table = &self.table;
        self.by_deadline = table.iter().map(|(id, session)| (session.deadline, *id)).collect();
        let nonce = |(id, session): (&ClientId, &Session)| match session.kind {
            Kind::Client { nonce, from } => Some(((from, nonce), *id)),
            Kind::Lease { .. } => None,
        };
        self.by_nonce = table.iter().filter_map(nonce).collect();
        self.count.clear();
        for session in self.table.values() {
            *self.count.entry(session.realm).or_default() += 1;
        }
    }
}
