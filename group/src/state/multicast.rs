//! Groups: messages and views in one order for all members.
//!
//! An item is a message or a view. A group numbers its items from 1 and keeps each until every member that
//! shall get it has acknowledged it. A member gets all items from the view that it came with; one that
//! joins a group which others are in first gets its state as of some view, and the items behind that.

use super::{Hold, Holds, State, bounded, count_of, is_name, shared, together};
use crate::command::{Answer, ClientId, Done, Limit, Refusal};
use crate::limits::{
    DC_GROUPS_MAX, DC_QUEUES_BYTES_MAX, DCS_QUEUES_BYTES_MAX, GROUPS_MAX, MEMBERS_MAX, QUEUE_MAX,
    QUEUES_BYTES_MAX, STATE_MAX, VALUE_MAX,
};
use crate::realm::Realm;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// What all members see in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    Message { from: ClientId, bytes: Vec<u8> },
    View(View),
}

/// Who is in the group from here on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// In the order in which they joined.
    pub members: Vec<Member>,
    /// All who had the group's state are gone: the first member begins with none.
    pub fresh: bool,
}

/// A member as a view shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub client: ClientId,
    /// It has the group's state. One that has not waits for the [`View::donor`] to give it.
    pub synced: bool,
}

/// What a member gets next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The group's state after the item with this number: what a joiner gets first.
    State {
        number: u64,
        bytes: Vec<u8>,
    },
    Item {
        number: u64,
        item: Item,
    },
}

/// What a member gets next, where it is.
enum Next<'a> {
    State(u64, &'a [u8]),
    Item(u64, &'a Item),
}

/// What a group waits for a member to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debt {
    /// To deal with what it gets.
    Take,
    /// To give its state, as of the view with this number or a later one, to those who have none.
    Give { view: u64 },
}

impl View {
    /// The member that gives its state, as of this view, to those who have none; if there are any.
    pub fn donor(&self) -> Option<ClientId> {
        let wanted = self.members.iter().any(|member| !member.synced);
        let donor = self.members.iter().find(|member| member.synced);
        donor.filter(|_| wanted).map(|member| member.client)
    }
}

impl Delivery {
    /// The number to acknowledge, and to ask behind.
    pub fn number(&self) -> u64 {
        match self {
            Delivery::State { number, .. } | Delivery::Item { number, .. } => *number,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Groups {
    table: BTreeMap<String, Group>,
    #[serde(skip)]
    kept: Kept,
}

/// Bytes of all items and states that are kept, and of those of each container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kept {
    bytes: usize,
    of: BTreeMap<Realm, usize>,
}

impl Kept {
    /// May the group `name` keep so many more?
    fn fits(&self, name: &str, more: usize) -> Result<(), Refusal> {
        let (realm, _) = Realm::of_name(name);
        let own = self.of.get(&realm).copied().unwrap_or(0);
        shared(realm, own + more, DC_QUEUES_BYTES_MAX, Limit::Queue)?;
        let system = self.of.get(&Realm::System).copied().unwrap_or(0);
        together(realm, self.bytes - system + more, DCS_QUEUES_BYTES_MAX, Limit::Queue)?;
        bounded(self.bytes + more, QUEUES_BYTES_MAX, Limit::Queue)
    }

    /// Is half of the room taken that the group `name` can have?
    fn is_half_full(&self, name: &str) -> bool {
        let (realm, _) = Realm::of_name(name);
        let own = self.of.get(&realm).copied().unwrap_or(0);
        let limit = if realm == Realm::System { QUEUES_BYTES_MAX } else { DC_QUEUES_BYTES_MAX };
        own >= limit / 2
    }

    fn change(&mut self, name: &str, more: usize, less: usize) {
        let (realm, _) = Realm::of_name(name);
        let own = self.of.entry(realm).or_default();
        *own = (*own + more).saturating_sub(less);
        if *own == 0 {
            self.of.remove(&realm);
        }
        self.bytes = (self.bytes + more).saturating_sub(less);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Group {
    /// Number of the last item.
    last: u64,
    /// Kept items with their numbers, without gaps.
    items: VecDeque<(u64, Item)>,
    /// In the order in which they joined.
    members: Vec<Standing>,
    /// States for joiners by the number of the item behind which they were taken.
    states: BTreeMap<u64, Vec<u8>>,
}

/// How far a member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    client: ClientId,
    /// It needs nothing up to this number.
    acked: u64,
    /// The number behind which its items begin, once that is settled. Above `acked` it gets a state first.
    base: Option<u64>,
}

impl State {
    pub(super) fn join(&mut self, client: ClientId, group: String) -> Answer {
        let known = self.groups.table.get(&group).into_iter().flat_map(|group| &group.members);
        if let Some(member) = known.into_iter().find(|member| member.client == client) {
            // Nothing is lost by saying less: it has to look from the last it has.
            return Ok(Done::Joined { view: member.acked.saturating_add(1) });
        }
        self.holds.check(client)?;
        let view = self.groups.join(client, &group)?;
        self.holds.insert(client, Hold::Group(group));
        Ok(Done::Joined { view })
    }

    pub(super) fn leave(&mut self, client: ClientId, group: &str) -> Answer {
        self.groups.member(client, group)?;
        self.holds.remove(client, &Hold::Group(group.to_owned()));
        self.groups.remove_member(client, group);
        Ok(Done::Fine)
    }

    /// What a member that has got everything up to `after` gets next, if there is something.
    ///
    /// # Errors
    /// The client is no member of the group.
    pub fn delivery(
        &self,
        client: ClientId,
        group: &str,
        after: u64,
    ) -> Result<Option<Delivery>, Refusal> {
        Ok(self.next_of(client, group, after)?.map(|next| match next {
            Next::State(number, bytes) => Delivery::State { number, bytes: bytes.to_vec() },
            Next::Item(number, item) => Delivery::Item { number, item: item.clone() },
        }))
    }

    /// Is there something that such a member gets next?
    ///
    /// # Errors
    /// As [`State::delivery`].
    pub fn has_delivery(&self, client: ClientId, group: &str, after: u64) -> Result<bool, Refusal> {
        Ok(self.next_of(client, group, after)?.is_some())
    }

    fn next_of(
        &self,
        client: ClientId,
        group: &str,
        after: u64,
    ) -> Result<Option<Next<'_>>, Refusal> {
        let group = self.groups.table.get(group).ok_or(Refusal::NotMember)?;
        let member = group.members.iter().find(|member| member.client == client);
        let member = member.ok_or(Refusal::NotMember)?;
        let Some(base) = member.base else { return Ok(None) };
        let after = after.max(member.acked);
        if after < base {
            let bytes = group.states.get(&base).map_or(&[][..], |bytes| bytes);
            return Ok(Some(Next::State(base, bytes)));
        }
        let index = group.items.partition_point(|(number, _)| *number <= after);
        let item = group.items.get(index);
        Ok(item.map(|(number, item)| Next::Item(*number, item)))
    }

    /// Who is in the group now.
    pub fn view(&self, group: &str) -> Option<View> {
        self.groups.table.get(group).map(|group| group.view(false))
    }

    /// How many messages, views and states the group keeps for members that do not have them yet.
    pub fn queued(&self, group: &str) -> usize {
        self.groups.table.get(group).map_or(0, |group| group.items.len() + group.states.len())
    }

    /// What the member has to do before the group can forget anything, if the group, or its realm, has little room left for
    /// more. One that has not been given the state can do nothing: whoever is to give it can, if there is room for it.
    pub fn holds_up(&self, client: ClientId, name: &str) -> Option<Debt> {
        let group = self.groups.table.get(name)?;
        let (first, _) = group.items.front()?;
        if group.items.len() < QUEUE_MAX / 2 && !self.groups.kept.is_half_full(name) {
            return None;
        }
        let member = group.members.iter().find(|member| member.client == client)?;
        let can_be_given = self.groups.kept.fits(name, STATE_MAX).is_ok();
        if member.acked < *first {
            return (member.base.is_some() || !can_be_given).then_some(Debt::Take);
        }
        let donor = group.members.iter().find(|member| member.base.is_some())?;
        let waits = |other: &&Standing| other.acked < *first && other.base.is_none();
        let joiner = group.members.iter().find(waits).filter(|_| can_be_given)?;
        (donor.client == client).then_some(Debt::Give { view: joiner.acked.saturating_add(1) })
    }

    /// The number of the group's last item; 0 if there is no such group.
    pub fn last_item(&self, group: &str) -> u64 {
        self.groups.table.get(group).map_or(0, |group| group.last)
    }

    /// The groups that the client is a member of.
    pub fn memberships(&self, client: ClientId) -> impl Iterator<Item = &str> {
        self.holds.of(client).filter_map(|hold| match hold {
            Hold::Group(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The groups' names.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.table.keys().map(String::as_str)
    }
}

impl Groups {
    fn member(&mut self, client: ClientId, group: &str) -> Result<&mut Group, Refusal> {
        let group = self.table.get_mut(group).ok_or(Refusal::NotMember)?;
        let known = group.members.iter().any(|member| member.client == client);
        if known { Ok(group) } else { Err(Refusal::NotMember) }
    }

    fn join(&mut self, client: ClientId, name: &str) -> Result<u64, Refusal> {
        is_name(name)?;
        self.kept.fits(name, 0)?;
        let count = self.table.len();
        let (realm, _) = Realm::of_name(name);
        if !self.table.contains_key(name) {
            shared(realm, count_of(realm, &self.table) + 1, DC_GROUPS_MAX, Limit::Groups)?;
        }
        let group = match self.table.get_mut(name) {
            Some(group) => {
                bounded(group.members.len() + 1, MEMBERS_MAX, Limit::Members)?;
                bounded(group.items.len() + 1, QUEUE_MAX, Limit::Queue)?;
                group
            }
            None => {
                bounded(count + 1, GROUPS_MAX, Limit::Groups)?;
                self.table.entry(name.to_owned()).or_insert_with(Group::new)
            }
        };
        let view = group.last.saturating_add(1);
        // The first begins with its own view; others wait for a state.
        let base = group.members.is_empty().then_some(view - 1);
        group.members.push(Standing { client, acked: view - 1, base });
        let added = group.push(Item::View(group.view(false)));
        self.kept.change(name, added, 0);
        Ok(view)
    }

    pub(super) fn remove_member(&mut self, client: ClientId, name: &str) {
        let Some(group) = self.table.get_mut(name) else { return };
        group.members.retain(|member| member.client != client);
        if group.members.is_empty() {
            let freed = group.bytes();
            self.kept.change(name, 0, freed);
            self.table.remove(name);
            return;
        }
        let next = group.last;
        let fresh = group.members.iter().all(|member| member.base.is_none());
        if fresh && let Some(first) = group.members.first_mut() {
            // The state died with those who had it; this view is where the group begins again.
            (first.base, first.acked) = (Some(next), next);
        }
        let added = group.push(Item::View(group.view(fresh)));
        let freed = group.forget();
        self.kept.change(name, added, freed);
    }

    pub(super) fn cast(&mut self, client: ClientId, name: &str, bytes: Vec<u8>) -> Answer {
        bounded(bytes.len(), VALUE_MAX, Limit::ValueBytes)?;
        let fits = self.kept.fits(name, bytes.len());
        let group = self.member(client, name)?;
        bounded(group.items.len() + 1, QUEUE_MAX, Limit::Queue)?;
        fits?;
        let added = group.push(Item::Message { from: client, bytes });
        let number = group.last;
        self.kept.change(name, added, 0);
        Ok(Done::Sent { number })
    }

    pub(super) fn acknowledge(&mut self, client: ClientId, name: &str, number: u64) -> Answer {
        let group = self.member(client, name)?;
        let last = group.last;
        for member in group.members.iter_mut().filter(|member| member.client == client) {
            // One that has got nothing has nothing to acknowledge.
            if member.base.is_some() {
                member.acked = member.acked.max(number.min(last));
            }
        }
        let freed = group.forget();
        self.kept.change(name, 0, freed);
        Ok(Done::Fine)
    }

    pub(super) fn give_state(
        &mut self,
        client: ClientId,
        name: &str,
        view: u64,
        bytes: Vec<u8>,
    ) -> Answer {
        bounded(bytes.len(), STATE_MAX, Limit::StateBytes)?;
        self.kept.fits(name, bytes.len())?;
        let group = self.member(client, name)?;
        let donor = group.members.iter().find(|member| member.client == client);
        if donor.is_none_or(|donor| donor.base.is_none()) || view > group.last {
            return Err(Refusal::NotMember);
        }
        // A joiner's own view is the first behind which its items can begin.
        let mut taken = false;
        for member in &mut group.members {
            if member.base.is_none() && view > member.acked {
                member.base = Some(view);
                taken = true;
            }
        }
        if taken {
            let added = bytes.len();
            let old = group.states.insert(view, bytes).map_or(0, |old| old.len());
            self.kept.change(name, added, old);
        }
        Ok(Done::Fine)
    }

    pub(super) fn rebuild(&mut self, holds: &mut Holds) {
        self.kept = Kept::default();
        for (name, group) in &self.table {
            self.kept.change(name, group.bytes(), 0);
        }
        for (name, group) in &self.table {
            for member in &group.members {
                holds.insert(member.client, Hold::Group(name.clone()));
            }
        }
    }
}

impl Group {
    fn new() -> Group {
        Group { last: 0, items: VecDeque::new(), members: Vec::new(), states: BTreeMap::new() }
    }

    fn view(&self, fresh: bool) -> View {
        let shown =
            |member: &Standing| Member { client: member.client, synced: member.base.is_some() };
        View { members: self.members.iter().map(shown).collect(), fresh }
    }

    /// Appends an item; says how many bytes it has.
    fn push(&mut self, item: Item) -> usize {
        self.last = self.last.saturating_add(1);
        let bytes = item.len();
        self.items.push_back((self.last, item));
        bytes
    }

    /// Forgets what every member has; says how many bytes that were.
    fn forget(&mut self) -> usize {
        let all = self.members.iter().map(|member| member.acked).min().unwrap_or(self.last);
        let mut freed = 0;
        while self.items.front().is_some_and(|(number, _)| *number <= all) {
            freed += self.items.pop_front().map_or(0, |(_, item)| item.len());
        }
        let members = &self.members;
        self.states.retain(|base, bytes| {
            let wanted =
                members.iter().any(|member| member.base == Some(*base) && member.acked < *base);
            freed += if wanted { 0 } else { bytes.len() };
            wanted
        });
        freed
    }

    fn bytes(&self) -> usize {
        let items: usize = self.items.iter().map(|(_, item)| item.len()).sum();
        items + self.states.values().map(Vec::len).sum::<usize>()
    }
}

impl Item {
    /// Bytes that it takes, roughly for a view.
    fn len(&self) -> usize {
        match self {
            Item::Message { bytes, .. } => bytes.len(),
            Item::View(view) => view.members.len() * size_of::<Member>(),
        }
    }
}
