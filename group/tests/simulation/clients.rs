//! Clients of a simulated cluster: what they do, what they see, and how that is judged.

use crate::linear::{Model, Operation};
use crate::world::World;
use group::Realm;
use group::command::{Answer, ClientId, Done, Op, Refusal};
use group::state::{Delivery, Item};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_millis(1500);

/// A client with its own numbers, whose commands go by way of the node where it opened its session.
pub(crate) struct Client {
    pub(crate) world: Arc<World>,
    pub(crate) id: ClientId,
    node: u64,
    sequence: u64,
}

impl Client {
    /// Opens a session; tries until it works.
    pub(crate) async fn open(world: &Arc<World>, ttl: u64) -> Client {
        let nonce = world.random(|random| random.next());
        loop {
            if let Some(group) = world.any() {
                let open = Op::Open { nonce, ttl, realm: Realm::System };
                let opened = group.submit(ClientId::default(), 0, 0, open, PATIENCE).await;
                if let Ok((_, Ok(Done::Opened { client }))) = opened {
                    let (world, node) = (world.clone(), group.node());
                    return Client { world, id: client, node, sequence: 0 };
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// None: no answer.
    pub(crate) async fn ask(&mut self, op: Op) -> Option<Answer> {
        self.sequence += 1;
        self.ask_again(op).await
    }

    /// The last command once more, perhaps after its node was off.
    async fn ask_again(&self, op: Op) -> Option<Answer> {
        let group = self.world.group(self.node)?;
        let (sequence, acked) = (self.sequence, self.sequence - 1);
        Some(group.submit(self.id, sequence, acked, op, PATIENCE).await.ok()?.1)
    }

    /// Until somebody answers again, or the time is over.
    async fn patience(&self, until: Instant) {
        while Instant::now() < until && self.keep_alive().await.is_none() {
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// A sign of life. None: no answer.
    async fn keep_alive(&self) -> Option<Result<(), Refusal>> {
        self.world.group(self.node)?.keep_alive(self.id, PATIENCE).await.ok()
    }

    /// A command that may happen twice. None: no answer.
    async fn say(&self, op: Op) -> Option<Answer> {
        Some(self.world.group(self.node)?.submit(self.id, 0, 0, op, PATIENCE).await.ok()?.1)
    }
}

/// What is asked of the store and the lock whose histories are checked.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Put { key: u8, value: u8 },
    Delete { key: u8 },
    Swap { key: u8, expected: u64, value: u8 },
    Get { key: u8 },
    TryLock { client: u64 },
    Unlock { client: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Changed { revision: u64, found: bool },
    Differs { revision: u64 },
    Value { value: Option<(u8, u64)>, revision: u64 },
    Locked,
    Taken,
    Released,
    NotHeld,
}

/// The store and one lock on one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Machine {
    revision: u64,
    keys: BTreeMap<u8, (u8, u64)>,
    holder: Option<u64>,
}

impl Machine {
    fn put(&mut self, key: u8, value: u8) -> Seen {
        self.revision += 1;
        let found = self.keys.insert(key, (value, self.revision)).is_some();
        Seen::Changed { revision: self.revision, found }
    }

    fn answer(&mut self, call: &Call) -> Seen {
        match *call {
            Call::Put { key, value } => self.put(key, value),
            Call::Swap { key, expected, value } => {
                let revision = self.keys.get(&key).map_or(0, |(_, revision)| *revision);
                if revision == expected { self.put(key, value) } else { Seen::Differs { revision } }
            }
            Call::Delete { key } => {
                let found = self.keys.remove(&key).is_some();
                self.revision += u64::from(found);
                Seen::Changed { revision: self.revision, found }
            }
            Call::Get { key } => {
                Seen::Value { value: self.keys.get(&key).copied(), revision: self.revision }
            }
            Call::TryLock { client } if self.holder.is_none_or(|holder| holder == client) => {
                self.holder = Some(client);
                Seen::Locked
            }
            Call::TryLock { .. } => Seen::Taken,
            Call::Unlock { client } if self.holder == Some(client) => {
                self.holder = None;
                Seen::Released
            }
            Call::Unlock { .. } => Seen::NotHeld,
        }
    }
}

impl Model for Machine {
    type Input = Call;
    type Output = Seen;

    fn step(&mut self, call: &Call, seen: Option<&Seen>) -> bool {
        let answer = self.answer(call);
        seen.is_none_or(|seen| *seen == answer)
    }
}

pub(crate) type History = Arc<Mutex<Vec<Operation<Call, Seen>>>>;

/// Works on the store and the lock until the time is over.
pub(crate) async fn work(world: Arc<World>, history: History, until: Instant) {
    let mut client = Client::open(&world, 3_600_000).await;
    let mut known = BTreeMap::new();
    let mut unanswered = Vec::new();
    while Instant::now() < until {
        let call = next_call(&world, client.id.0, &known);
        let called = world.step();
        let seen = perform(&mut client, &call).await;
        let returned = world.step();
        if let (Call::Get { key } | Call::Put { key, .. } | Call::Swap { key, .. }, Some(seen)) =
            (&call, &seen)
        {
            let revision = match seen {
                Seen::Changed { revision, .. } | Seen::Differs { revision } => *revision,
                Seen::Value { value, .. } => value.map_or(0, |(_, revision)| revision),
                _ => 0,
            };
            known.insert(*key, revision);
        }
        {
            let mut history = history.lock().unwrap();
            match (&call, &seen) {
                // A read that nobody saw the end of is nothing.
                (Call::Get { .. }, None) => {}
                (Call::Get { .. }, Some(_)) => {
                    history.push(Operation { input: call, output: seen, called, returned });
                }
                // The client's next command has said that it does not wait for this one any more.
                (_, None) => {
                    unanswered.push(history.len());
                    let returned = u64::MAX;
                    history.push(Operation { input: call, output: None, called, returned });
                }
                (_, Some(_)) => {
                    for index in unanswered.drain(..) {
                        history[index].returned = returned;
                    }
                    history.push(Operation { input: call, output: seen, called, returned });
                }
            }
        }
        client.patience(until).await;
        let pause = world.random(|random| random.below(150));
        sleep(Duration::from_millis(pause)).await;
    }
}

fn next_call(world: &World, client: u64, known: &BTreeMap<u8, u64>) -> Call {
    world.random(|random| {
        let key = u8::try_from(random.below(2)).unwrap();
        let value = u8::try_from(random.below(100)).unwrap();
        match random.below(8) {
            0 | 1 => Call::Put { key, value },
            2 => Call::Delete { key },
            3 => Call::Swap { key, expected: known.get(&key).copied().unwrap_or(0), value },
            4 => Call::TryLock { client },
            5 => Call::Unlock { client },
            _ => Call::Get { key },
        }
    })
}

async fn perform(client: &mut Client, call: &Call) -> Option<Seen> {
    let name = || "history".to_owned();
    let op = match *call {
        Call::Put { key, value } => Op::Put { key: vec![key], value: vec![value], lease: None },
        Call::Delete { key } => Op::Delete { key: vec![key] },
        Call::Swap { key, expected, value } => {
            Op::Swap { key: vec![key], expected, value: Some(vec![value]), lease: None }
        }
        Call::TryLock { .. } => Op::Lock { name: name(), wait: false },
        Call::Unlock { .. } => Op::Unlock { name: name() },
        Call::Get { key } => {
            let group = client.world.any()?;
            let look = |state: &group::state::State| {
                let value = state.get(&[key]).map(|entry| (entry.value[0], entry.modified));
                Seen::Value { value, revision: state.revision(Realm::System) }
            };
            return group.read(look, PATIENCE).await.ok();
        }
    };
    let mut answer = client.ask(op.clone()).await;
    while answer.is_none() && client.world.random(|random| random.one_in(2)) {
        answer = client.ask_again(op.clone()).await;
    }
    Some(match answer? {
        Ok(Done::Changed { revision, found }) => Seen::Changed { revision, found },
        Err(Refusal::Revision { revision }) => Seen::Differs { revision },
        Ok(Done::Locked { .. }) => Seen::Locked,
        Err(Refusal::Taken) => Seen::Taken,
        Ok(Done::Fine) => Seen::Released,
        Err(Refusal::NotHeld) => Seen::NotHeld,
        other => panic!("{call:?}: {other:?}"),
    })
}

/// Takes locks and stands for elections, and dies now and then.
pub(crate) async fn contend(world: Arc<World>, until: Instant) {
    while Instant::now() < until {
        let mut client = Client::open(&world, 1500).await;
        let mut last = 0;
        while !world.random(|random| random.one_in(12)) && Instant::now() < until {
            let name = if world.random(|random| random.one_in(2)) { "short" } else { "long" };
            let name = name.to_owned();
            let (of, op) = match world.random(|random| random.below(4)) {
                0 => ("lock", Op::Lock { name: name.clone(), wait: true }),
                1 => ("lock", Op::Unlock { name: name.clone() }),
                2 => ("leader", Op::Campaign { name: name.clone(), value: vec![1] }),
                _ => ("leader", Op::Resign { name: name.clone() }),
            };
            let answer = client.ask(op).await;
            if let Some(Ok(Done::Locked { fence: token } | Done::Elected { epoch: token })) = answer
            {
                world.token(format!("{of} {name}"), token, client.id);
                last = last.max(token);
            }
            if let Some(Err(Refusal::NoSession)) = client.keep_alive().await {
                break;
            }
            let pause = world.random(|random| random.below(200));
            sleep(Duration::from_millis(pause)).await;
        }
        // It says nothing any more: what it had is the next one's.
        sleep(Duration::from_millis(300)).await;
    }
}

/// What the members of the group have seen: of each number the item, and the state behind it.
#[derive(Default)]
pub(crate) struct Order {
    items: BTreeMap<u64, (String, u64)>,
    pub(crate) delivered: u64,
}

pub(crate) type SharedOrder = Arc<Mutex<Order>>;

/// Is a member of the group: its state is a number that each message changes. With `mortal` it dies now and then.
pub(crate) async fn member(world: Arc<World>, order: SharedOrder, until: Instant, mortal: bool) {
    while Instant::now() < until {
        let mut client = Client::open(&world, if mortal { 1500 } else { 3_600_000 }).await;
        let joined = client.ask(Op::Join { group: "g".into() }).await;
        let Some(Ok(Done::Joined { view })) = joined else { continue };
        let mut member = Member { client, after: view - 1, state: 0, got_any: false };
        while !(mortal && world.random(|random| random.one_in(25))) && Instant::now() < until {
            if !member.turn(&order).await {
                break;
            }
        }
        sleep(Duration::from_millis(300)).await;
    }
}

struct Member {
    client: Client,
    after: u64,
    state: u64,
    got_any: bool,
}

impl Member {
    /// Looks for deliveries, sends something now and then. False: it is no member any more.
    async fn turn(&mut self, order: &SharedOrder) -> bool {
        let world = self.client.world.clone();
        let id = self.client.id;
        if let Some(group) = world.any() {
            while let Ok(Some(delivery)) = group.look(|state| state.delivery(id, "g", self.after)) {
                self.deliver(&world, order, delivery).await;
            }
        }
        if world.random(|random| random.one_in(3)) {
            let bytes = vec![u8::try_from(world.random(|random| random.below(256))).unwrap()];
            self.client.ask(Op::Cast { group: "g".into(), bytes }).await;
        }
        let acknowledge = Op::Acknowledge { group: "g".into(), number: self.after };
        self.client.say(acknowledge).await;
        let alive = self.client.keep_alive().await;
        let pause = world.random(|random| random.below(100));
        sleep(Duration::from_millis(pause)).await;
        alive != Some(Err(Refusal::NoSession))
    }

    async fn deliver(&mut self, world: &World, order: &SharedOrder, delivery: Delivery) {
        let number = delivery.number();
        match delivery {
            Delivery::State { bytes, .. } => {
                if self.got_any {
                    world.violation(format!("a state, number {number}, behind items"));
                }
                self.state = u64::from_le_bytes(bytes.try_into().unwrap());
                self.see(world, order, number, None);
            }
            Delivery::Item { item, .. } => {
                if self.got_any && number != self.after + 1 {
                    world.violation(format!("number {number} behind {}", self.after));
                }
                let text = format!("{item:?}");
                let donor = match &item {
                    Item::Message { from, bytes } => {
                        let mixed = from.0 * 256 + u64::from(bytes[0]);
                        self.state = (self.state ^ mixed).wrapping_mul(0x0100_0000_01b3);
                        None
                    }
                    Item::View(view) => {
                        if !view.members.iter().any(|member| member.client == self.client.id) {
                            world.violation(format!("a view without its receiver: {view:?}"));
                        }
                        view.donor()
                    }
                };
                self.see(world, order, number, Some(text));
                if donor == Some(self.client.id) {
                    let bytes = self.state.to_le_bytes().to_vec();
                    let give = Op::GiveState { group: "g".into(), view: number, bytes };
                    // It is asked again until somebody answers, or another member is the donor.
                    while self.client.ask(give.clone()).await.is_none() {
                        sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
        (self.got_any, self.after) = (true, number);
    }

    /// All members see the same item under a number, and have the same state behind it.
    fn see(&self, world: &World, order: &SharedOrder, number: u64, item: Option<String>) {
        let mut order = order.lock().unwrap();
        order.delivered += 1;
        match order.items.get(&number) {
            Some((known, state)) => {
                let same_item = item.as_ref().is_none_or(|item| item == known);
                if !same_item || *state != self.state {
                    world.violation(format!(
                        "number {number} is {known} with {state}, and {item:?} with {}",
                        self.state
                    ));
                }
            }
            None => {
                if let Some(item) = item {
                    order.items.insert(number, (item, self.state));
                }
            }
        }
    }
}
