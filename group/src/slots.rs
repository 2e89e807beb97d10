//! SLOTS: the nodes of a container share its process slots by donation, over a totally ordered group.
//!
//! A member owns some of the slots. It takes and frees them without a message. When few of its own are free it
//! asks all others; those with a surplus give (Pessolani's "A Fault-Tolerant Algorithm for Distributed Resource
//! Allocation", 2017). [`Slots`] is one member, pure: inputs are the group's deliveries in their order, local
//! calls and the time of any clock that does not go back; outputs what is to be sent and told.
//!
//! **Safe.** Who owns a slot follows from the items of the group alone ([`table`]), so all members agree behind
//! each item. A donor stops using a slot before it says that it gives it, and the slot is the other's when that
//! message comes back in the order. If the requester is gone by then it stays the donor's; if the donor is gone
//! its message came before the view or never does.
//!
//! **Views.** A joiner gets the table as of a view from the oldest member, says that it is ready, and owns nothing
//! until it asks. The slots of a member that is gone are dealt at that view to those who own fewest: it took its
//! processes along, so none is in use. That is why a member must be fenced before the group takes it out.
//!
//! **Partitions.** One component goes on, that with the majority; members elsewhere are fenced and come back as
//! new ones. Unlike the prototype on Spread, whose groups go on in every component, there are never two
//! histories, so there is nothing to merge.
//!
//! **Live.** The requester's next in the ring must answer, be it with nothing, and its end passes that duty on: each
//! request ends. **No starvation.** One that has less than the least share and got nothing has a claim: whoever
//! has more than the least gives it the next slot that it frees, before its own callers. As there are at least
//! `least × members` slots, somebody has.
//!
//! | 16 slots a node, 100 000 rounds of forks and exits (32 nodes: 25 000) (`tests/slots`) | 3 nodes | 8 nodes | 32 nodes | prototype, 8 nodes |
//! |---|---|---|---|---|
//! | slots in use | 88 % | 87 % | 89 % | 75–80 % |
//! | forks that succeed : fail, of 30 | 26 : 4 | 27 : 3 | 26 : 4 | 21–25 : 5–7 |
//! | first donation behind a request, in broadcast times | 2–3, all ≤ 4 | 1–3, all ≤ 4 | 2–3, all ≤ 4 | mostly 2–3, all ≤ 19 |
//! | messages a fork | 1.1 | 1.2 | 1.2 | |
//!
//! The distributions are the prototype's; its load is not known: here about as many slots are wanted as there are.

mod message;
mod table;
#[cfg(test)]
mod tests;

pub use message::is_message_or_state;

use crate::command::{ClientId, DecodeError, Millis};
use crate::limits::{
    SLOT_CALLERS_MAX, SLOTS_MAX, SLOTS_PAUSE, SLOTS_PER_ANSWER, SLOTS_PER_MESSAGE, SLOTS_RETRIES,
};
use crate::state::{Delivery, Item, View};
use message::{Body, Message, decode_state, encode_state};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use table::{Request, Table, Transfer};

/// How many slots there are, and for how many nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    total: u16,
    nodes: u16,
}

impl Shares {
    /// None if there are too many slots, or fewer than nodes.
    pub fn new(total: u16, nodes: u16) -> Option<Shares> {
        (total <= SLOTS_MAX && (1..=total).contains(&nodes)).then_some(Shares { total, nodes })
    }
}

/// Whoever wants a slot: a number that the member's user gives and finds in the answer.
pub type Caller = u64;

/// What the member's user shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send to the group; in the order of the outputs, and again until it is certain that it was sent. What is
    /// sent twice has one effect.
    Cast(Vec<u8>),
    /// Give this state, as of the view with this number, to those who have none.
    GiveState { view: u64, bytes: Vec<u8> },
    /// The caller has this slot until it is freed.
    Granted { caller: Caller, slot: u16 },
    /// There is none for the caller: EAGAIN.
    Failed { caller: Caller },
}

/// Why a member cannot go on: it has to leave and join anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the state for a joiner: {0}")]
    State(#[from] DecodeError),
    /// The group's order has a gap, or a state where there is one already.
    #[error("item {number} behind {position}")]
    Order { number: u64, position: u64 },
}

/// The slot is not in use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot {0} is not in use here")]
pub struct NotInUse(pub u16);

/// One member.
#[derive(Clone, Debug)]
pub struct Slots {
    me: ClientId,
    shares: Shares,
    /// None until the group has begun here, or its state has come.
    table: Option<Table>,
    /// Number of the last item.
    position: u64,
    /// Latest time seen.
    now: Millis,
    free: BTreeSet<u16>,
    used: BTreeSet<u16>,
    /// Donations under way by the number of their message: neither free nor anybody else's yet.
    given: BTreeMap<u64, Given>,
    /// Number of the last own message.
    sent: u64,
    asking: Option<Asking>,
    /// No request before.
    pause_until: Millis,
    waiting: VecDeque<Waiting>,
    fenced: bool,
    outputs: Vec<Output>,
}

#[derive(Clone, Debug)]
struct Given {
    to: ClientId,
    slots: Vec<u16>,
}

/// The own request, from its sending to its end.
#[derive(Clone, Copy, Debug)]
struct Asking {
    number: u64,
    /// Is it in the order yet?
    seen: bool,
    got_any: bool,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    caller: Caller,
    until: Millis,
}

impl Slots {
    /// A member that has joined the group and got nothing of it yet. `shares` count only where it is the first.
    pub fn new(me: ClientId, shares: Shares) -> Slots {
        Slots {
            me,
            shares,
            table: None,
            position: 0,
            now: 0,
            free: BTreeSet::new(),
            used: BTreeSet::new(),
            given: BTreeMap::new(),
            sent: 0,
            asking: None,
            pause_until: 0,
            waiting: VecDeque::new(),
            fenced: false,
            outputs: Vec::new(),
        }
    }

    /// Takes a delivery of the group. One that came before has no effect.
    ///
    /// # Errors
    /// The member cannot go on, and has nothing any more.
    pub fn deliver(&mut self, delivery: &Delivery, now: Millis) -> Result<Vec<Output>, Broken> {
        self.now = self.now.max(now);
        let number = delivery.number();
        if !self.fenced && number > self.position {
            let position = self.position;
            if self.table.is_some() && number != position + 1 {
                self.end();
                return Err(Broken::Order { number, position });
            }
            let taken = match delivery {
                Delivery::State { bytes, .. } => self.take_state(number, bytes),
                Delivery::Item { item, .. } => self.take_item(number, item),
            };
            if let Err(broken) = taken {
                self.end();
                return Err(broken);
            }
            self.position = number;
            self.settle();
        }
        Ok(std::mem::take(&mut self.outputs))
    }

    /// Wants a slot: with `wait` for as long as it is asked for, otherwise at once or not at all.
    pub fn allocate(&mut self, caller: Caller, wait: bool, now: Millis) -> Vec<Output> {
        self.now = self.now.max(now);
        let in_line = !self.waiting.is_empty();
        if let Some(slot) = self.free.first().copied().filter(|_| !in_line) {
            self.grant(caller, slot);
        } else if wait && !self.fenced && self.waiting.len() < SLOT_CALLERS_MAX {
            let until = self.now.saturating_add(SLOTS_PAUSE * SLOTS_RETRIES);
            self.waiting.push_back(Waiting { caller, until });
        } else {
            self.outputs.push(Output::Failed { caller });
        }
        self.ask();
        std::mem::take(&mut self.outputs)
    }

    /// The caller does not wait any more. False: it has its answer.
    pub fn abandon(&mut self, caller: Caller) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.caller != caller);
        self.waiting.len() < before
    }

    /// The process in this slot is gone.
    ///
    /// # Errors
    /// There was none.
    pub fn free(&mut self, slot: u16, now: Millis) -> Result<Vec<Output>, NotInUse> {
        self.now = self.now.max(now);
        if !self.used.remove(&slot) {
            return Err(NotInUse(slot));
        }
        self.free.insert(slot);
        self.settle();
        Ok(std::mem::take(&mut self.outputs))
    }

    /// It is as late as that: callers whose time is over are told, and slots asked for again.
    pub fn tick(&mut self, now: Millis) -> Vec<Output> {
        self.now = self.now.max(now);
        while let Some(waiting) = self.waiting.front().filter(|waiting| waiting.until <= self.now) {
            self.outputs.push(Output::Failed { caller: waiting.caller });
            self.waiting.pop_front();
        }
        self.settle();
        std::mem::take(&mut self.outputs)
    }

    /// When [`Slots::tick`] has something to do; never if nobody waits.
    pub fn deadline(&self) -> Option<Millis> {
        let until = self.waiting.front()?.until;
        let again = (self.pause_until > self.now).then_some(self.pause_until);
        Some(again.map_or(until, |again| again.min(until)))
    }

    /// The group may take this member out soon, or has: its processes have ended, its slots are others'.
    pub fn fence(&mut self) -> Vec<Output> {
        self.end();
        std::mem::take(&mut self.outputs)
    }

    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Does it count as a member that has the state?
    pub fn is_ready(&self) -> bool {
        self.table.as_ref().is_some_and(|table| table.is_ready(self.me))
    }

    /// Has it asked the others, and not been answered?
    pub fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// Slots that can be had at once.
    pub fn free_slots(&self) -> impl Iterator<Item = u16> {
        self.free.iter().copied()
    }

    /// Slots in use.
    pub fn used(&self) -> impl Iterator<Item = u16> {
        self.used.iter().copied()
    }

    /// Slots on their way to others.
    pub fn given(&self) -> impl Iterator<Item = u16> {
        self.given.values().flat_map(|given| given.slots.iter().copied())
    }

    /// Who owns a slot, as far as this member is in the group's order.
    pub fn owner(&self, slot: u16) -> Option<ClientId> {
        self.table.as_ref().and_then(|table| table.owner(slot))
    }

    /// The bytes of what all members know.
    pub fn state(&self) -> Option<Vec<u8>> {
        self.table.as_ref().map(encode_state)
    }

    fn end(&mut self) {
        self.fenced = true;
        self.table = None;
        self.asking = None;
        self.free.clear();
        self.used.clear();
        self.given.clear();
        for waiting in std::mem::take(&mut self.waiting) {
            self.outputs.push(Output::Failed { caller: waiting.caller });
        }
    }

    fn take_state(&mut self, number: u64, bytes: &[u8]) -> Result<(), Broken> {
        if self.table.is_some() {
            return Err(Broken::Order { number, position: self.position });
        }
        let table = decode_state(bytes)?;
        if !table.is_member(self.me) {
            return Err(DecodeError::Malformed.into());
        }
        self.table = Some(table);
        self.cast(Body::Ready);
        Ok(())
    }

    fn take_item(&mut self, number: u64, item: &Item) -> Result<(), Broken> {
        match item {
            Item::View(view) => self.take_view(number, view),
            // Bytes that are no message have no effect: with none of the members.
            Item::Message { from, bytes } => {
                if let Ok(message) = Message::decode(bytes) {
                    self.take_message(*from, message);
                }
            }
        }
        if self.table.is_none() && !self.fenced {
            return Err(Broken::Order { number, position: self.position });
        }
        Ok(())
    }

    fn take_view(&mut self, number: u64, view: &View) {
        let clients: Vec<ClientId> = view.members.iter().map(|member| member.client).collect();
        if !clients.contains(&self.me) {
            return self.end();
        }
        let begins = self.table.is_none();
        let table =
            self.table.get_or_insert_with(|| Table::new(self.shares.total, self.shares.nodes));
        let before = table.duties(self.me);
        let mut transfers = table.change_members(&clients);
        if begins {
            // Nobody has a state, so the first begins: all slots are its own.
            transfers.extend(table.make_ready(self.me));
        }
        let duties = table.duties(self.me);
        let given = std::mem::take(&mut self.given);
        let (kept, restored) =
            given.into_iter().partition(|(_, given)| clients.contains(&given.to));
        self.given = kept;
        self.free.extend(restored.into_values().flat_map(|given| given.slots));
        self.carry_out(&transfers);
        for (client, request) in duties {
            if !before.iter().any(|(known, _)| *known == client) {
                self.answer(client, request);
            }
        }
        self.look_for_end();
        if view.donor() == Some(self.me)
            && let Some(bytes) = self.state()
        {
            self.outputs.push(Output::GiveState { view: number, bytes });
        }
    }

    fn take_message(&mut self, from: ClientId, message: Message) {
        let Some(table) = &mut self.table else { return };
        if !table.accept(from, message.number) {
            return;
        }
        match message.body {
            Body::Ready => {
                let transfers = table.make_ready(from);
                self.carry_out(&transfers);
                if from == self.me {
                    self.ask();
                }
            }
            Body::Request { needed } => {
                let request = table.request(from, message.number, needed);
                if from == self.me {
                    self.asking = self.asking.map(|asking| Asking { seen: true, ..asking });
                } else if let Some(request) = request {
                    self.answer(from, request);
                }
            }
            Body::Donation { to, request, slots, last } => {
                let transfers = table.donate(from, to, &slots);
                if last {
                    table.answered(from, to, request);
                }
                if from == self.me {
                    self.given.remove(&message.number);
                }
                self.carry_out(&transfers);
            }
        }
        self.look_for_end();
    }

    /// Takes what has become its own. What was is gone already: it was marked when it was given.
    fn carry_out(&mut self, transfers: &[Transfer]) {
        for transfer in transfers.iter().filter(|transfer| transfer.to == self.me) {
            self.free.insert(transfer.slot);
            // What comes behind the answer that has ended a request was not in vain either.
            self.pause_until = self.now;
            if let Some(asking) = &mut self.asking {
                asking.got_any = true;
            }
        }
    }

    /// Has the own request ended?
    fn look_for_end(&mut self) {
        let Some(asking) = self.asking.filter(|asking| asking.seen) else { return };
        let open = self.table.as_ref().and_then(|table| table.request_of(self.me));
        if open.is_none_or(|open| open.number != asking.number) {
            self.asking = None;
            if !asking.got_any {
                self.pause_until = self.now.saturating_add(SLOTS_PAUSE);
            }
        }
    }

    /// Gives of its surplus; says so even if that is nothing when it must answer.
    fn answer(&mut self, client: ClientId, request: Request) {
        let Some(table) = self.table.as_ref().filter(|table| table.is_ready(self.me)) else {
            return;
        };
        let others = table.ready_count().saturating_sub(1).max(1);
        let share = usize::from(request.needed).div_ceil(others);
        let surplus = if table.owned(client) < table.least() {
            self.free.len().saturating_sub(table.low()).max(self.spare(table))
        } else {
            self.free.len().saturating_sub(table.low())
        };
        let amount = surplus.min(share).min(SLOTS_PER_ANSWER);
        if amount > 0 || request.duty == self.me {
            self.give(client, request.number, amount);
        }
    }

    /// Free slots that it has beyond the least share.
    fn spare(&self, table: &Table) -> usize {
        let kept = table.owned(self.me).saturating_sub(self.given().count());
        kept.saturating_sub(table.least()).min(self.free.len())
    }

    fn give(&mut self, to: ClientId, request: u64, amount: usize) {
        let mut left = amount;
        loop {
            let mut slots = Vec::new();
            while slots.len() < left.min(SLOTS_PER_MESSAGE) {
                slots.extend(self.free.pop_last());
            }
            left -= slots.len();
            let last = left == 0;
            let number = self.cast(Body::Donation { to, request, slots: slots.clone(), last });
            if !slots.is_empty() {
                self.given.insert(number, Given { to, slots });
            }
            if last {
                return;
            }
        }
    }

    fn cast(&mut self, body: Body) -> u64 {
        self.sent += 1;
        self.outputs.push(Output::Cast(Message { number: self.sent, body }.encode()));
        self.sent
    }

    fn grant(&mut self, caller: Caller, slot: u16) {
        self.free.remove(&slot);
        self.used.insert(slot);
        self.outputs.push(Output::Granted { caller, slot });
    }

    /// Whatever is free goes to those who have a claim, then to callers; for the rest of them it is asked.
    fn settle(&mut self) {
        if !self.is_ready() {
            return;
        }
        self.repay();
        while !self.waiting.is_empty()
            && let Some(slot) = self.free.first().copied()
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.grant(waiting.caller, slot);
        }
        if !self.waiting.is_empty() {
            self.ask();
        }
    }

    /// One slot for each claim, as long as there are some beyond the least share.
    fn repay(&mut self) {
        if self.free.is_empty() {
            return;
        }
        let claims = self.table.as_ref().map(Table::claims).unwrap_or_default();
        for claim in claims {
            let spare = self.table.as_ref().map_or(0, |table| self.spare(table));
            let given = self.given.values().any(|given| given.to == claim.client);
            if spare > 0 && !given && claim.client != self.me {
                self.give(claim.client, claim.request, 1);
            }
        }
    }

    /// Asks the others for slots if few are free, it may own more, and it has not just asked for nothing.
    fn ask(&mut self) {
        let Some(table) = self.table.as_ref().filter(|table| table.is_ready(self.me)) else {
            return;
        };
        let (ready, most, low) = (table.ready_count(), table.most(), table.low());
        let (owned, free) = (table.owned(self.me), self.free.len());
        let calm = self.asking.is_some() || self.now < self.pause_until;
        if calm || ready < 2 || owned >= most || free >= low {
            return;
        }
        let even = most.div_ceil(ready).saturating_sub(owned);
        let needed = even.max(low - free).min(most - owned);
        let needed = u16::try_from(needed).expect("no more than all slots");
        let number = self.cast(Body::Request { needed });
        self.asking = Some(Asking { number, seen: false, got_any: false });
    }
}
