//! What all members know: who owns which slot, who has asked for some, who must answer.
//!
//! It changes with the items of the group only, so it is the same everywhere behind the same item. Which of its
//! slots are in use a member knows alone.

use crate::command::ClientId;
use crate::limits::{MEMBERS_MAX, SLOTS_MAX};
use serde::{Deserialize, Serialize};

/// No member: sessions count from 1.
const NOBODY: ClientId = ClientId(0);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    /// Nodes that the container is for. More may come; then the shares are smaller.
    nodes: u16,
    /// The owner of each slot. Nobody, while no member is ready.
    owners: Vec<ClientId>,
    /// In the order in which they joined: the ring.
    members: Vec<Standing>,
    /// Those who asked while they had less than the least share and have got nothing since, first come first.
    claims: Vec<Claim>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    client: ClientId,
    ready: bool,
    /// Number of its last message.
    last: u64,
    request: Option<Request>,
    /// How many slots are its own: counted, so that taking and freeing one costs nothing with many slots.
    #[serde(skip)]
    owned: usize,
}

/// A request without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) needed: u16,
    /// Who must answer, be it with nothing: that ends the request.
    pub(super) duty: ClientId,
}

/// Who is to get the next slot of one that has more than the least share, for which request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) client: ClientId,
    pub(super) request: u64,
}

/// A slot's way from one owner to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) slot: u16,
    pub(super) from: ClientId,
    pub(super) to: ClientId,
}

impl Table {
    pub(super) fn new(total: u16, nodes: u16) -> Table {
        let owners = vec![NOBODY; usize::from(total)];
        Table { nodes, owners, members: Vec::new(), claims: Vec::new() }
    }

    /// Counts what bytes do not say.
    pub(super) fn recount(&mut self) {
        for member in &mut self.members {
            member.owned = self.owners.iter().filter(|owner| **owner == member.client).count();
        }
    }

    /// Could the members have come to this? For a state that somebody gives.
    pub(super) fn is_sound(&self) -> bool {
        let total = self.owners.len();
        let members = &self.members;
        let one_each = |(index, member): (usize, &Standing)| {
            member.client != NOBODY
                && members[..index].iter().all(|other| other.client != member.client)
        };
        let anyone_ready = members.iter().any(|member| member.ready);
        let owned = |owner: &ClientId| {
            if anyone_ready { self.is_ready(*owner) } else { *owner == NOBODY }
        };
        let asked =
            |member: &Standing| member.request.is_none_or(|request| self.is_ready(request.duty));
        (1..=usize::from(SLOTS_MAX)).contains(&total)
            && (1..=total).contains(&usize::from(self.nodes))
            && members.len() <= MEMBERS_MAX
            && self.claims.len() <= MEMBERS_MAX
            && members.iter().enumerate().all(one_each)
            && self.owners.iter().all(owned)
            && members.iter().all(asked)
            && self.claims.iter().all(|claim| self.is_ready(claim.client))
    }

    fn standing(&self, client: ClientId) -> Option<&Standing> {
        self.members.iter().find(|member| member.client == client)
    }

    fn standing_mut(&mut self, client: ClientId) -> Option<&mut Standing> {
        self.members.iter_mut().find(|member| member.client == client)
    }

    pub(super) fn is_member(&self, client: ClientId) -> bool {
        self.standing(client).is_some()
    }

    pub(super) fn is_ready(&self, client: ClientId) -> bool {
        self.standing(client).is_some_and(|member| member.ready)
    }

    pub(super) fn ready_count(&self) -> usize {
        self.members.iter().filter(|member| member.ready).count()
    }

    pub(super) fn owner(&self, slot: u16) -> Option<ClientId> {
        self.owners.get(usize::from(slot)).copied().filter(|owner| *owner != NOBODY)
    }

    pub(super) fn owned(&self, client: ClientId) -> usize {
        self.standing(client).map_or(0, |member| member.owned)
    }

    fn set_owner(&mut self, index: usize, to: ClientId) {
        let from = std::mem::replace(&mut self.owners[index], to);
        if let Some(member) = self.standing_mut(from) {
            member.owned -= 1;
        }
        if let Some(member) = self.standing_mut(to) {
            member.owned += 1;
        }
    }

    /// Whom the next slots belong to: those who have less than the least share.
    pub(super) fn claims(&self) -> Vec<Claim> {
        let least = self.least();
        self.claims.iter().filter(|claim| self.owned(claim.client) < least).copied().collect()
    }

    pub(super) fn request_of(&self, client: ClientId) -> Option<Request> {
        self.standing(client).and_then(|member| member.request)
    }

    /// The requests that wait for this member's answer.
    pub(super) fn duties(&self, client: ClientId) -> Vec<(ClientId, Request)> {
        let open = self.members.iter().filter_map(|member| Some((member.client, member.request?)));
        open.filter(|(_, request)| request.duty == client).collect()
    }

    /// `min_owned`: what each member can get whatever the others do. Half of an even share: with whole ones
    /// `max_owned` of a full house would be the same, and no slot could ever move.
    pub(super) fn least(&self) -> usize {
        self.owners.len() / (2 * usize::from(self.nodes).max(self.members.len()))
    }

    /// `free_slots_low`: a member with fewer asks for more, and keeps as many when it gives.
    pub(super) fn low(&self) -> usize {
        (self.least() / 2).max(1)
    }

    /// `max_owned`: a member asks for no more, so that the others can have the least.
    pub(super) fn most(&self) -> usize {
        let others = self.ready_count().saturating_sub(1);
        self.owners.len().saturating_sub(self.least() * others)
    }

    /// Takes a message's number. False: it came before, or is none of a member, and must have no effect.
    pub(super) fn accept(&mut self, from: ClientId, number: u64) -> bool {
        match self.standing_mut(from) {
            Some(member) if number == member.last.saturating_add(1) => {
                member.last = number;
                true
            }
            _ => false,
        }
    }

    /// The members are these from here on. The slots of those who have gone are dealt to those who own fewest.
    pub(super) fn change_members(&mut self, clients: &[ClientId]) -> Vec<Transfer> {
        self.members.retain(|member| clients.contains(&member.client));
        for client in clients {
            if !self.is_member(*client) {
                let (client, ready) = (*client, false);
                self.members.push(Standing { client, ready, last: 0, request: None, owned: 0 });
            }
        }
        self.claims.retain(|claim| clients.contains(&claim.client));
        self.pass_duties_on();
        self.deal()
    }

    /// A member has the state. Slots of nobody become its own.
    pub(super) fn make_ready(&mut self, client: ClientId) -> Vec<Transfer> {
        if let Some(member) = self.standing_mut(client) {
            member.ready = true;
        }
        self.deal()
    }

    /// Whoever had to answer and is gone: the next in the ring has to.
    fn pass_duties_on(&mut self) {
        for index in 0..self.members.len() {
            let Some(request) = self.members[index].request else { continue };
            if !self.is_member(request.duty) {
                let next = self.next_in_ring(self.members[index].client);
                self.members[index].request = next.map(|duty| Request { duty, ..request });
            }
        }
    }

    fn next_in_ring(&self, client: ClientId) -> Option<ClientId> {
        let index = self.members.iter().position(|member| member.client == client)?;
        let (before, behind) = self.members.split_at(index);
        let others = behind.iter().skip(1).chain(before);
        others.filter(|member| member.ready).map(|member| member.client).next()
    }

    /// Gives each slot whose owner is no member to the ready one that owns fewest, the oldest of them.
    fn deal(&mut self) -> Vec<Transfer> {
        let ready: Vec<ClientId> =
            self.members.iter().filter(|member| member.ready).map(|member| member.client).collect();
        let mut transfers = Vec::new();
        for index in 0..self.owners.len() {
            let from = self.owners[index];
            if self.is_member(from) {
                continue;
            }
            let fewest = ready.iter().min_by_key(|client| self.owned(**client));
            let to = fewest.copied().unwrap_or(NOBODY);
            self.set_owner(index, to);
            let slot = u16::try_from(index).expect("the total is 16 bits");
            transfers.push(Transfer { slot, from, to });
        }
        transfers
    }

    /// Notes a request; none if nobody is there to answer it.
    pub(super) fn request(&mut self, from: ClientId, number: u64, needed: u16) -> Option<Request> {
        if !self.is_ready(from) {
            return None;
        }
        let duty = self.next_in_ring(from)?;
        let request = Request { number, needed, duty };
        if let Some(member) = self.standing_mut(from) {
            member.request = Some(request);
        }
        if self.owned(from) >= self.least() {
            self.claims.retain(|claim| claim.client != from);
        } else if let Some(claim) = self.claims.iter_mut().find(|claim| claim.client == from) {
            // One that asks again keeps its place.
            claim.request = number;
        } else {
            self.claims.push(Claim { client: from, request: number });
        }
        Some(request)
    }

    /// Carries a donation out: what the donor owns becomes the requester's, if that is still a member.
    pub(super) fn donate(&mut self, from: ClientId, to: ClientId, slots: &[u16]) -> Vec<Transfer> {
        if !self.is_ready(to) || from == to {
            return Vec::new();
        }
        let mut transfers = Vec::new();
        for slot in slots {
            if self.owner(*slot) == Some(from) {
                self.set_owner(usize::from(*slot), to);
                transfers.push(Transfer { slot: *slot, from, to });
            }
        }
        if !transfers.is_empty() {
            // Who has got something is served; who gives something needs nothing.
            self.claims.retain(|claim| claim.client != to && claim.client != from);
        }
        transfers
    }

    /// Ends a member's request if this answer is the one that does.
    pub(super) fn answered(&mut self, by: ClientId, client: ClientId, number: u64) {
        if let Some(member) = self.standing_mut(client)
            && member.request.is_some_and(|open| open.number == number && open.duty == by)
        {
            member.request = None;
        }
    }
}
