//! What every host does above its server: each call ends once, and one that must not be repeated is executed once.
//!
//! A caller whose answer got lost (the server was killed, a channel was closed) sends the same tag
//! again. For calls that the server wants executed once, the answer is therefore stored with the effect, in the
//! same round: one record per lane of each caller, since a lane has one call open. Repeated sequence: the stored
//! answer. Older sequence: refused. Open at the moment: nothing, its answer will come. All is forgotten when the caller is gone.
//!
//! The records live in the server's own store, under keys that begin with [`LANE_PREFIX`].

use crate::limits::KEPT_ANSWER_MAX;
use crate::server::{Answer, Answers, Call, Context, Gone, Nanos, Server};
use crate::store::Store;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{CallId, Endpoint, IpcError, Message, NodeId, Tag};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use zerocopy::{FromBytes, IntoBytes};

/// First bytes of the keys of this module. Keys of servers never begin with 0xff.
pub const LANE_PREFIX: [u8; 2] = [0xff, b'L'];
/// The first key after them.
const LANE_END: [u8; 2] = [0xff, b'L' + 1];
/// Key of the number of the last death that has been dealt with.
const DEATH_KEY: [u8; 2] = [0xff, b'D'];

const _: () = assert!(KEPT_ANSWER_MAX >= PAYLOAD_MAX, "every answer can be kept");

/// A caller's lane: at most one call of it is open.
type Lane = (Endpoint, u16);

/// A server with what its host must remember. Every host holds its server in this.
#[derive(Debug)]
pub struct Hosted<S> {
    server: S,
    /// Calls that the server has and has not answered.
    open: BTreeMap<Lane, Open>,
    /// The call that it is being given: most are answered at once, and never get into `open`.
    current: Option<(Lane, Open)>,
    /// Where it leaves its answers: empty between two inputs.
    answers: Answers,
    /// Sequence of the last call that has an answer in the store.
    done: BTreeMap<Lane, u64>,
    /// Number of the last death that has been dealt with.
    deaths: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    sequence: u64,
    call: u16,
    once: bool,
}

/// A record of this module in the store is not what it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a kept answer in the store is malformed: the store is damaged")]
pub struct DamagedLane;

impl<S: Server> Hosted<S> {
    /// `server` has been opened from the same `store`.
    ///
    /// # Errors
    /// The store is damaged.
    pub fn open(server: S, store: &dyn Store) -> Result<Hosted<S>, DamagedLane> {
        let mut done = BTreeMap::new();
        let mut damaged = false;
        store.range(&LANE_PREFIX, &LANE_END, &mut |key, value| match lane_of_key(key)
            .zip(Kept::decode(value))
        {
            Some((lane, kept)) => {
                done.insert(lane, kept.sequence);
                ControlFlow::Continue(())
            }
            None => {
                damaged = true;
                ControlFlow::Break(())
            }
        });
        let deaths = store.get(&DEATH_KEY).unwrap_or_else(|| vec![0; 8]);
        match deaths.try_into() {
            Ok(deaths) if !damaged => Ok(Hosted {
                server,
                open: BTreeMap::new(),
                current: None,
                answers: Answers::default(),
                done,
                deaths: u64::from_le_bytes(deaths),
            }),
            _ => Err(DamagedLane),
        }
    }

    pub fn server(&self) -> &S {
        &self.server
    }

    /// A request has come. It ends in exactly one answer with its id, now or later; sent twice while it is
    /// open, it still ends in one.
    pub fn request(&mut self, call: &Call<'_>, cx: &mut Context<'_>) {
        let lane = (call.id.source, call.id.tag.lane());
        let sequence = call.id.tag.sequence();
        match self.open.get(&lane).copied() {
            Some(open) if open.sequence == sequence => return,
            Some(open) if open.sequence > sequence => return refuse(call, cx),
            Some(open) => self.abandon(lane, open, cx),
            None => {}
        }
        match self.done.get(&lane) {
            Some(&done) if done == sequence => return replay(call, lane, cx),
            Some(&done) if done > sequence => return refuse(call, cx),
            _ => {}
        }
        let once = self.server.once(call.message);
        self.current = Some((lane, Open { sequence, call: call.message.call, once }));
        self.run(cx, |server, cx| server.serve(call, cx));
        if let Some((lane, open)) = self.current.take() {
            self.open.insert(lane, open);
        }
    }

    /// The caller of a call has been interrupted.
    pub fn cancel(&mut self, id: CallId, cx: &mut Context<'_>) {
        if self.is_open(id) {
            self.run(cx, |server, cx| server.cancel(id, cx));
        }
    }

    /// As `gone`, for a host that may be told the same death again after it was killed: `number` grows from one
    /// death to the next (`Output::Gone`). What an earlier owner of the store has dealt with is dropped; the same caller's node
    /// may be back since, and its state is new.
    pub fn told(&mut self, number: u64, gone: Gone, cx: &mut Context<'_>) {
        if number > self.deaths {
            self.deaths = number;
            cx.store.put(&DEATH_KEY, &number.to_le_bytes());
            self.gone(gone, cx);
        }
    }

    /// Callers are gone. Their open calls end here, with an answer that nobody waits for but that
    /// frees its place in a channel.
    pub fn gone(&mut self, gone: Gone, cx: &mut Context<'_>) {
        self.run(cx, |server, cx| server.gone(gone, cx));
        let lanes = lanes_of(gone);
        let open: Vec<(Lane, Open)> =
            self.open.range(lanes.clone()).map(|(lane, open)| (*lane, *open)).collect();
        for (lane, open) in open {
            self.open.remove(&lane);
            end(lane, open, IpcError::SourceDied, cx);
        }
        let done: Vec<Lane> = self.done.range(lanes).map(|(lane, _)| *lane).collect();
        for lane in done {
            self.done.remove(&lane);
            cx.store.remove(&key_of_lane(lane));
        }
    }

    /// The server's deadline has come, or perhaps not.
    pub fn tick(&mut self, cx: &mut Context<'_>) {
        self.run(cx, Server::tick);
    }

    /// When [`Hosted::tick`] is wanted next.
    pub fn deadline(&self) -> Option<Nanos> {
        self.server.deadline()
    }

    /// Calls that wait in the server.
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    fn is_open(&self, id: CallId) -> bool {
        self.open
            .get(&(id.source, id.tag.lane()))
            .is_some_and(|open| open.sequence == id.tag.sequence())
    }

    fn take_open(&mut self, lane: Lane, sequence: u64) -> Option<Open> {
        let is_it = |open: &Open| open.sequence == sequence;
        if self.current.as_ref().is_some_and(|(current, open)| *current == lane && is_it(open)) {
            return self.current.take().map(|(_, open)| open);
        }
        if self.open.get(&lane).is_some_and(is_it) { self.open.remove(&lane) } else { None }
    }

    /// The caller uses the lane for another call although one is open on it: it does not wait for the
    /// old one any more.
    fn abandon(&mut self, lane: Lane, open: Open, cx: &mut Context<'_>) {
        self.cancel(id_of(lane, open.sequence), cx);
        if self.open.remove(&lane).is_some() {
            end(lane, open, IpcError::Interrupted, cx);
        }
    }

    /// Lets the server handle one input, and passes on its answers.
    fn run(&mut self, cx: &mut Context<'_>, input: impl FnOnce(&mut S, &mut Context<'_>)) {
        let mut answers = std::mem::take(&mut self.answers);
        input(
            &mut self.server,
            &mut Context {
                now: cx.now,
                wall: cx.wall,
                entropy: cx.entropy,
                store: &mut *cx.store,
                answers: &mut answers,
            },
        );
        let sync = std::mem::take(&mut answers.sync);
        cx.answers.sync |= sync;
        for answer in answers.list.drain(..) {
            self.pass_on(answer, sync, cx);
        }
        self.answers = answers;
    }

    /// An answer to a call that is not open (the caller is gone meanwhile) is dropped.
    fn pass_on(&mut self, answer: Answer, sync: bool, cx: &mut Context<'_>) {
        let lane = (answer.to.source, answer.to.tag.lane());
        let Some(open) = self.take_open(lane, answer.to.tag.sequence()) else { return };
        let answer = sealed(answer);
        if open.once {
            let kept = Kept {
                sequence: open.sequence,
                sync,
                message: answer.message,
                payload: &answer.payload,
            };
            cx.store.put(&key_of_lane(lane), &kept.encode());
            self.done.insert(lane, open.sequence);
        }
        cx.answers.list.push(answer);
    }
}

impl<S: Server + ?Sized> Server for Box<S> {
    fn serve(&mut self, call: &Call<'_>, cx: &mut Context<'_>) {
        (**self).serve(call, cx);
    }
    fn cancel(&mut self, id: CallId, cx: &mut Context<'_>) {
        (**self).cancel(id, cx);
    }
    fn gone(&mut self, gone: Gone, cx: &mut Context<'_>) {
        (**self).gone(gone, cx);
    }
    fn tick(&mut self, cx: &mut Context<'_>) {
        (**self).tick(cx);
    }
    fn deadline(&self) -> Option<Nanos> {
        (**self).deadline()
    }
    fn once(&self, message: &Message) -> bool {
        (**self).once(message)
    }
}

/// An answer with its tag, and the length that its payload has.
fn sealed(mut answer: Answer) -> Answer {
    if answer.payload.len() > PAYLOAD_MAX {
        answer.message = Message::undelivered(answer.message.call, IpcError::TooLarge);
        answer.payload.clear();
    }
    answer.message.tag = answer.to.tag;
    answer.message.payload_len = u32::try_from(answer.payload.len()).expect("at most PAYLOAD_MAX");
    answer
}

/// Older than what the lane has done already: a caller that keeps to the rules never sends it.
fn refuse(call: &Call<'_>, cx: &mut Context<'_>) {
    let message = Message::undelivered(call.message.call, IpcError::Stale);
    cx.answers.list.push(sealed(Answer { to: call.id, message, payload: Vec::new() }));
}

fn end(lane: Lane, open: Open, error: IpcError, cx: &mut Context<'_>) {
    let message = Message::undelivered(open.call, error);
    cx.answers.list.push(sealed(Answer {
        to: id_of(lane, open.sequence),
        message,
        payload: Vec::new(),
    }));
}

fn replay(call: &Call<'_>, lane: Lane, cx: &mut Context<'_>) {
    let value = cx.store.get(&key_of_lane(lane));
    let Some(kept) = value.as_deref().and_then(Kept::decode) else {
        // `done` and the store are written together; only a damaged store comes here.
        let message = Message::undelivered(call.message.call, IpcError::Protocol);
        cx.answers.list.push(sealed(Answer { to: call.id, message, payload: Vec::new() }));
        return;
    };
    // The first answer may have got lost because the sync that it waited for never ended.
    cx.answers.sync |= kept.sync;
    cx.answers.list.push(Answer {
        to: call.id,
        message: kept.message,
        payload: kept.payload.to_vec(),
    });
}

fn id_of(lane: Lane, sequence: u64) -> CallId {
    CallId { source: lane.0, tag: Tag::new(lane.1, sequence) }
}

/// Every lane of who is gone.
fn lanes_of(gone: Gone) -> RangeInclusive<Lane> {
    let (first, last) = match gone {
        Gone::Endpoint(endpoint) => (endpoint, endpoint),
        Gone::Node(node) => endpoints_of(node),
    };
    (first, 0)..=(last, u16::MAX)
}

fn endpoints_of(node: NodeId) -> (Endpoint, Endpoint) {
    (Endpoint::new(node, 0, 0), Endpoint::new(node, u32::MAX, u32::MAX))
}

fn key_of_lane((endpoint, lane): Lane) -> [u8; 12] {
    let mut key = [0; 12];
    key[..2].copy_from_slice(&LANE_PREFIX);
    key[2..10].copy_from_slice(&endpoint.to_bits().to_be_bytes());
    key[10..].copy_from_slice(&lane.to_be_bytes());
    key
}

fn lane_of_key(key: &[u8]) -> Option<Lane> {
    let key: &[u8; 12] = key.try_into().ok()?;
    let endpoint = u64::from_be_bytes(*key[2..].first_chunk()?);
    let lane = u16::from_be_bytes(*key[10..].first_chunk()?);
    Some((Endpoint::from_bits(endpoint), lane))
}

/// A stored answer: sequence (u64), whether it must wait for stable storage (u8), message, payload.
struct Kept<'a> {
    sequence: u64,
    sync: bool,
    message: Message,
    payload: &'a [u8],
}

impl Kept<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(9 + size_of::<Message>() + self.payload.len());
        value.extend_from_slice(&self.sequence.to_le_bytes());
        value.push(self.sync.into());
        value.extend_from_slice(self.message.as_bytes());
        value.extend_from_slice(self.payload);
        value
    }

    fn decode(value: &[u8]) -> Option<Kept<'_>> {
        let (sequence, rest) = value.split_first_chunk::<8>()?;
        let (&sync, rest) = rest.split_first()?;
        let (message, payload) = Message::read_from_prefix(rest).ok()?;
        let fits = message.payload_len as usize == payload.len();
        fits.then_some(Kept {
            sequence: u64::from_le_bytes(*sequence),
            sync: sync != 0,
            message,
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;
    use m3ipc::Cred;

    /// ADD adds 1 to a counter in the store and answers its value; KEEP waits until the next ADD; GET reads.
    struct Counter {
        kept: Vec<CallId>,
    }
    const ADD: u16 = 1;
    const KEEP: u16 = 2;
    const GET: u16 = 3;

    impl Counter {
        fn value(store: &dyn Store) -> u64 {
            store.get(b"n").map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()))
        }
        fn add(cx: &mut Context<'_>) -> Vec<u8> {
            let value = (Self::value(cx.store) + 1).to_le_bytes();
            cx.store.put(b"n", &value);
            value.to_vec()
        }
    }

    impl Server for Counter {
        fn serve(&mut self, call: &Call<'_>, cx: &mut Context<'_>) {
            match call.message.call {
                ADD => {
                    for kept in std::mem::take(&mut self.kept) {
                        let value = Self::add(cx);
                        cx.answer(kept, Message::request(KEEP), value);
                    }
                    let value = Self::add(cx);
                    cx.sync();
                    cx.answer(call.id, Message::request(ADD), value);
                }
                KEEP => self.kept.push(call.id),
                _ => {
                    let value = Self::value(cx.store);
                    cx.answer(call.id, Message::request(GET), value.to_le_bytes());
                }
            }
        }
        fn cancel(&mut self, id: CallId, cx: &mut Context<'_>) {
            if let Some(at) = self.kept.iter().position(|kept| *kept == id) {
                self.kept.remove(at);
                cx.end(id, KEEP, IpcError::Interrupted);
            }
        }
        fn gone(&mut self, gone: Gone, _: &mut Context<'_>) {
            self.kept.retain(|kept| match gone {
                Gone::Endpoint(endpoint) => kept.source != endpoint,
                Gone::Node(node) => kept.source.node() != node,
            });
        }
        fn tick(&mut self, _: &mut Context<'_>) {}
        fn deadline(&self) -> Option<Nanos> {
            None
        }
        fn once(&self, message: &Message) -> bool {
            message.call != GET
        }
    }

    struct Bench {
        store: MemoryStore,
        hosted: Hosted<Counter>,
        sync: bool,
    }

    /// One answer in short: who, which sequence, value or error.
    type Said = (Endpoint, u64, Result<u64, IpcError>);

    impl Bench {
        fn new() -> Bench {
            let store = MemoryStore::default();
            Bench {
                hosted: Hosted::open(Counter { kept: Vec::new() }, &store).unwrap(),
                store,
                sync: false,
            }
        }

        /// The server is killed and started again from its store.
        fn restart(&mut self) {
            self.hosted = Hosted::open(Counter { kept: Vec::new() }, &self.store).unwrap();
        }

        fn with(
            &mut self,
            input: impl FnOnce(&mut Hosted<Counter>, &mut Context<'_>),
        ) -> Vec<Said> {
            let mut answers = Answers::default();
            let cx = &mut Context {
                now: 0,
                wall: 0,
                entropy: 0,
                store: &mut self.store,
                answers: &mut answers,
            };
            input(&mut self.hosted, cx);
            self.sync = answers.sync;
            answers.list.iter().map(said).collect()
        }

        fn call(&mut self, source: Endpoint, lane: u16, sequence: u64, call: u16) -> Vec<Said> {
            let id = CallId { source, tag: Tag::new(lane, sequence) };
            let message = Message { source, tag: id.tag, ..Message::request(call) };
            self.with(|hosted, cx| {
                hosted.request(&Call { id, cred: &Cred::ROOT, message: &message, payload: &[] }, cx)
            })
        }
    }

    fn said(answer: &Answer) -> Said {
        assert_eq!(answer.message.tag, answer.to.tag);
        assert_eq!(answer.message.payload_len as usize, answer.payload.len());
        let result = answer
            .message
            .outcome()
            .map(|_| u64::from_le_bytes(answer.payload[..].try_into().unwrap()));
        (answer.to.source, answer.to.tag.sequence(), result)
    }

    const A: Endpoint = Endpoint::new(NodeId(1), 1, 1);
    const B: Endpoint = Endpoint::new(NodeId(2), 1, 1);

    #[test]
    fn a_repeated_call_gets_the_first_answer_and_is_not_executed_again() {
        let mut bench = Bench::new();
        assert_eq!(bench.call(A, 0, 1, ADD), [(A, 1, Ok(1))]);
        assert!(bench.sync);
        assert_eq!(bench.call(A, 0, 1, ADD), [(A, 1, Ok(1))]);
        bench.restart();
        assert_eq!(bench.call(A, 0, 1, ADD), [(A, 1, Ok(1))]);
        assert!(bench.sync, "the repeated answer waits for stable storage as the first did");
        assert_eq!(bench.call(A, 1, 1, ADD), [(A, 1, Ok(2))], "another lane is another call");
        assert_eq!(bench.call(B, 0, 1, ADD), [(B, 1, Ok(3))], "another caller is another call");
        assert_eq!(bench.call(A, 0, 2, ADD), [(A, 2, Ok(4))]);
        assert_eq!(bench.call(A, 0, 1, ADD), [(A, 1, Err(IpcError::Stale))]);
        assert_eq!(bench.call(A, 0, 3, GET), [(A, 3, Ok(4))]);
        assert_eq!(
            bench.call(A, 0, 3, GET),
            [(A, 3, Ok(4))],
            "a safe call is simply executed again"
        );
    }

    #[test]
    fn a_kept_call_sent_again_ends_once_and_after_a_restart_waits_again() {
        let mut bench = Bench::new();
        assert_eq!(bench.call(A, 0, 1, KEEP), []);
        assert_eq!(bench.call(A, 0, 1, KEEP), []);
        bench.restart();
        assert_eq!(bench.call(A, 0, 1, KEEP), []);
        assert_eq!(bench.call(B, 0, 1, ADD), [(A, 1, Ok(1)), (B, 1, Ok(2))]);
        assert_eq!(
            bench.call(A, 0, 1, KEEP),
            [(A, 1, Ok(1))],
            "its answer is stored like any other"
        );
    }

    #[test]
    fn a_cancelled_call_is_interrupted_and_one_that_is_not_open_ignored() {
        let mut bench = Bench::new();
        bench.call(A, 0, 1, KEEP);
        let id = |sequence| CallId { source: A, tag: Tag::new(0, sequence) };
        assert_eq!(bench.with(|hosted, cx| hosted.cancel(id(2), cx)), []);
        assert_eq!(
            bench.with(|hosted, cx| hosted.cancel(id(1), cx)),
            [(A, 1, Err(IpcError::Interrupted))]
        );
        assert_eq!(bench.with(|hosted, cx| hosted.cancel(id(1), cx)), []);
    }

    #[test]
    fn a_lane_used_again_ends_the_call_that_was_open_on_it() {
        let mut bench = Bench::new();
        bench.call(A, 0, 1, KEEP);
        assert_eq!(bench.call(A, 0, 2, ADD), [(A, 1, Err(IpcError::Interrupted)), (A, 2, Ok(1))]);
        assert_eq!(bench.call(A, 0, 1, KEEP), [(A, 1, Err(IpcError::Stale))]);
    }

    #[test]
    fn who_is_gone_leaves_neither_open_calls_nor_records() {
        for gone in [Gone::Endpoint(A), Gone::Node(NodeId(1))] {
            let mut bench = Bench::new();
            bench.call(A, 0, 1, ADD);
            bench.call(B, 0, 1, ADD);
            bench.call(A, 1, 1, KEEP);
            let said = bench.with(|hosted, cx| hosted.gone(gone, cx));
            assert_eq!(said, [(A, 1, Err(IpcError::SourceDied))], "{gone:?}");
            assert_eq!(bench.hosted.open_count(), 0);
            let mut keys = 0;
            bench.store.range(&LANE_PREFIX, &LANE_END, &mut |_, _| {
                keys += 1;
                ControlFlow::Continue(())
            });
            assert_eq!(keys, 1, "B's record stays");
        }
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let mut bench = Bench::new();
        bench.call(A, 0, 1, ADD);
        let key = key_of_lane((A, 0));
        let value = bench.store.get(&key).unwrap();
        for cut in 0..value.len() {
            bench.store.put(&key, &value[..cut]);
            assert_eq!(
                Hosted::open(Counter { kept: Vec::new() }, &bench.store).err(),
                Some(DamagedLane),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_death_told_again_after_a_kill_is_dealt_with_once() {
        let mut bench = Bench::new();
        bench.call(A, 0, 1, ADD);
        bench.with(|hosted, cx| hosted.told(7, Gone::Node(NodeId(1)), cx));
        assert_eq!(
            bench.call(A, 0, 1, ADD),
            [(A, 1, Ok(2))],
            "the node is back, and its lanes are new"
        );
        bench.restart();
        bench.with(|hosted, cx| hosted.told(7, Gone::Node(NodeId(1)), cx));
        assert_eq!(bench.call(A, 0, 1, ADD), [(A, 1, Ok(2))], "still known");
        bench.with(|hosted, cx| hosted.told(8, Gone::Node(NodeId(1)), cx));
        assert_eq!(bench.call(A, 0, 1, ADD), [(A, 1, Ok(3))]);
    }

    /// However often each call is sent, and whenever the server is killed, each is executed once.
    #[test]
    fn under_repetition_and_restarts_every_call_counts_once() {
        let mut seed = 1u64;
        let mut random = |bound: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        let mut bench = Bench::new();
        let mut last = [(0, 0); 4];
        for _ in 0..2_000 {
            let lane = u16::try_from(random(4)).unwrap();
            let (sequence, value) = &mut last[usize::from(lane)];
            match random(4) {
                0 => bench.restart(),
                1 if *sequence > 0 => {
                    assert_eq!(bench.call(A, lane, *sequence, ADD), [(A, *sequence, Ok(*value))]);
                }
                _ => {
                    *sequence += 1;
                    let said = bench.call(A, lane, *sequence, ADD);
                    *value = said[0].2.unwrap();
                }
            }
        }
        let sent: u64 = last.iter().map(|(sequence, _)| sequence).sum();
        assert_eq!(Counter::value(&bench.store), sent);
    }
}
