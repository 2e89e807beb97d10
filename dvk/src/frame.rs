//! What two nodes say to each other, and its bytes.
//!
//! A link is two byte streams (TLS), its tracks: [`Track::Bulk`] for frames with much payload, [`Track::Small`]
//! for all others. Each frame is a header and a body, little-endian:
//!
//! ```text
//!   length u32   the whole frame    kind u16    reserved u16 = 0    sequence u64    received u64
//!   but in a Hello:    received_bulk u64    after u64
//! ```
//! The first frame on a track is [`Hello`], in both directions. Frames that must not get lost carry a
//! `sequence`, counted from 1 on each track of each *session*; a session outlives its links. `received` and
//! `received_bulk` say how many the sender has got in order, so the other side can forget them; what it cannot forget
//! it sends again on the next link. So a broken link loses nothing and doubles nothing, whatever the kind of frame.
//!
//! A small frame may overtake bulk ones, never the other way round: a frame on the bulk track is taken after the first
//! `after` small ones. What must not overtake bulk frames goes on their track ([`crate::kernel`] decides).
//!
//! There is no checksum: TCP has one, and TLS will authenticate. Every field is checked.

use crate::limits::{FRAME_MAX, SMALL_MAX};
use crate::server::Nanos;
use bytes::Bytes;
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{CallId, Cred, DcId, Endpoint, Message, NodeId, Rights};
use zerocopy::{FromBytes, IntoBytes};

/// Version of this protocol. Both nodes must have the same.
pub const VERSION: u32 = 6;

/// Bytes of the header.
pub const HEADER: usize = 24;

/// Bytes of what follows it in every frame but a Hello, which every version can read.
pub const ORDER: usize = 16;

/// "DVSl", the first word of a [`Hello`]: somebody else's connection is told from an old version.
const MAGIC: u32 = u32::from_le_bytes(*b"DVSl");

/// The highest node number: 12 bits of an endpoint.
pub(crate) const NODE_MAX: u16 = 4095;

/// One of the two streams of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Track {
    Small = 0,
    Bulk = 1,
}

impl Track {
    pub const ALL: [Track; 2] = [Track::Small, Track::Bulk];
}

/// One frame as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its number on its track in the session, 0 for kinds that may get lost (see [`Frame::is_sequenced`]).
    pub sequence: u64,
    /// How many sequenced frames of the session the sender has received on the small track, and on the bulk track.
    pub received: u64,
    pub received_bulk: u64,
    /// On the bulk track: how many small frames of the session go before it.
    pub after: u64,
    pub frame: Frame<'a>,
    /// What it was decoded from, if its payload may be kept as a part of that; else it is copied.
    pub whole: Option<&'a Bytes>,
}

/// What a node says to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a frame lives on the stack for a moment; the large one is the common one"
)]
pub enum Frame<'a> {
    Hello(Hello),
    Request(Request<'a>),
    Answer(Answer<'a>),
    /// A signal interrupted the caller: the server shall end the call if it is still kept.
    Cancel {
        dc: DcId,
        to: Endpoint,
        id: CallId,
    },
    /// `gone`, an endpoint of the sending node, is dead; `to`, one of the receiving node, knew it.
    Gone {
        dc: DcId,
        to: Endpoint,
        gone: Endpoint,
    },
    /// An asynchronous notification.
    Notify {
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        value: u64,
    },
    /// `from` wants to know when `to`, an endpoint of the receiving node, is bound or unbound; or does not any more.
    Await {
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        /// The sender's name for the question.
        number: u64,
        wish: Wish,
    },
    /// The answer to question `number` of `to`: who is bound (`Endpoint::NONE`: nobody), or the status of an error.
    Awaited {
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        number: u64,
        outcome: Result<Endpoint, u16>,
    },
    /// `from`, an administrator, orders something about `to`, which is at the receiving node. Answered by `Awaited`.
    Order {
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        /// The sender's name for the question.
        number: u64,
        order: Order,
    },
    /// Does the receiver go by the entry that the directory has of `endpoint` since `epoch`? Answered by `Noted` when it does.
    Entry {
        dc: DcId,
        endpoint: Endpoint,
        epoch: u64,
    },
    /// The sender goes by the entry of this epoch.
    Noted {
        dc: DcId,
        endpoint: Endpoint,
        epoch: u64,
    },
    /// `endpoint`, now at the sending node, is to be taken on by `backup` of the receiving one (`Endpoint::NONE`: by any
    /// of its backups). Answered by `Adopted`; it acts as `endpoint` when the system group has placed that there.
    Adopt {
        dc: DcId,
        endpoint: Endpoint,
        backup: Endpoint,
        epoch: u64,
        rights: Rights,
    },
    /// 0: it is taken on; else the status of an error. From the node that has sent `Adopt`: `endpoint` stays there.
    Adopted {
        dc: DcId,
        endpoint: Endpoint,
        epoch: u64,
        status: u16,
    },
    /// The call is not here: its receiver's entry says where it belongs. It is made there again, by the same tag.
    Moved {
        dc: DcId,
        to: Endpoint,
        id: CallId,
        /// It has been received, and waits for its answer.
        is_received: bool,
    },
    /// `backup` of the sending node stands by for `to`, and may take over when that dies; or does not any more.
    StandBy {
        dc: DcId,
        to: Endpoint,
        backup: Endpoint,
        is_over: bool,
    },
    /// `endpoint` of the sending node is one of the replicas of its number; or is not any more.
    Replica {
        dc: DcId,
        endpoint: Endpoint,
        is_over: bool,
    },
    /// The link is alive. `sent` is the sender's clock.
    Ping {
        sent: Nanos,
    },
    /// The answer to a ping, with its `sent`.
    Pong {
        sent: Nanos,
    },
    /// Only carries the header's `received`.
    Received,
}

/// The first frame on a track: who I am, and which session I have with you. The two tracks of a link say the same but for
/// `track`.
///
/// Both sides of a link compute the session's name from the two Hellos on it: (incarnation, epoch)
/// of both. If a side has that session already, it goes on with it; otherwise whatever it had with
/// the other is over: the other had restarted, or one had given the other up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub node: NodeId,
    /// The node that the sender wants to talk to.
    pub to: NodeId,
    /// Random at each start of the sender.
    pub incarnation: u64,
    /// How often this incarnation of the sender has given up the receiver.
    pub epoch: u64,
    /// The last session: incarnation and epoch of the receiver in it; 0 and 0 if there is none.
    pub peer_incarnation: u64,
    pub peer_epoch: u64,
    /// Sequenced frames of that session that the sender has received on each track.
    pub received: u64,
    pub received_bulk: u64,
    pub track: Track,
    /// Joins the two tracks of a link: the same on both, from both sides. Random, of who has connected.
    pub pair: u64,
    /// Frames may come compressed, and are if the other side takes them so, too.
    pub packs: bool,
}

/// A call to an endpoint of the receiving node, or to a server it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub dc: DcId,
    pub to: Endpoint,
    pub cred: Cred,
    /// With the caller in `source`, and the tag.
    pub message: Message,
    pub payload: &'a [u8],
}

/// The answer to a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub dc: DcId,
    /// The caller.
    pub to: Endpoint,
    /// With who answers in `source`, and the call's tag.
    pub message: Message,
    pub payload: &'a [u8],
}

impl Request<'_> {
    pub fn id(&self) -> CallId {
        CallId { source: self.message.source, tag: self.message.tag }
    }
}

impl Answer<'_> {
    /// The call it ends.
    pub fn id(&self) -> CallId {
        CallId { source: self.to, tag: self.message.tag }
    }
}

/// What an [`Frame::Await`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Answer when it is bound; `now`: at once, in any case.
    Bound { now: bool },
    /// Answer when it is not bound any more.
    Unbound { now: bool },
    /// The question is withdrawn.
    Nothing,
}

impl Wish {
    fn code(self) -> u16 {
        match self {
            Wish::Nothing => 0,
            Wish::Bound { now } => 1 + 2 * u16::from(now),
            Wish::Unbound { now } => 2 + 2 * u16::from(now),
        }
    }

    fn from_code(code: u16) -> Option<Wish> {
        Some(match code {
            0 => Wish::Nothing,
            1 | 3 => Wish::Bound { now: code == 3 },
            2 | 4 => Wish::Unbound { now: code == 4 },
            _ => return None,
        })
    }
}

/// What an administrator orders about an endpoint, where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It is going to move: it stops, and messages to it wait.
    Start,
    /// It goes on where it is.
    Rollback,
    /// `backup` of `node` becomes it; `Endpoint::NONE`: any backup that it has there.
    Commit { node: NodeId, backup: Endpoint },
    /// Its blocked calls end.
    Wake,
}

impl Order {
    fn code(self) -> (u16, NodeId, Endpoint) {
        match self {
            Order::Start => (1, NodeId(0), Endpoint::NONE),
            Order::Rollback => (2, NodeId(0), Endpoint::NONE),
            Order::Commit { node, backup } => (3, node, backup),
            Order::Wake => (4, NodeId(0), Endpoint::NONE),
        }
    }

    fn from_code(code: u16, node: NodeId, backup: Endpoint) -> Option<Order> {
        let order = match code {
            1 => Order::Start,
            2 => Order::Rollback,
            3 if (1..=NODE_MAX).contains(&node.0) => Order::Commit { node, backup },
            4 => Order::Wake,
            _ => return None,
        };
        (order.code() == (code, node, backup)).then_some(order)
    }
}

/// Why bytes are not a frame. After any but `Incomplete` the stream cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame's end has not come yet; decode again when there are `need` bytes in all.
    #[error("frame is incomplete, {need} bytes are needed")]
    Incomplete { need: usize },
    #[error("frame length {length} is impossible")]
    Length { length: usize },
    #[error("unknown kind of frame {kind}")]
    Kind { kind: u16 },
    #[error("the other side does not speak the DVS link protocol")]
    Magic,
    #[error(
        "link protocol version {theirs} on the other node, {VERSION} on this one: both need the same dvs"
    )]
    Version { theirs: u32 },
    #[error("malformed {what} in a frame")]
    Malformed { what: &'static str },
}

mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const REQUEST: u16 = 2;
    pub(super) const ANSWER: u16 = 3;
    pub(super) const CANCEL: u16 = 4;
    pub(super) const GONE: u16 = 5;
    pub(super) const NOTIFY: u16 = 6;
    pub(super) const PING: u16 = 7;
    pub(super) const PONG: u16 = 8;
    pub(super) const RECEIVED: u16 = 9;
    pub(super) const AWAIT: u16 = 10;
    pub(super) const AWAITED: u16 = 11;
    pub(super) const ORDER: u16 = 12;
    pub(super) const ENTRY: u16 = 13;
    pub(super) const NOTED: u16 = 14;
    pub(super) const ADOPT: u16 = 15;
    pub(super) const ADOPTED: u16 = 16;
    pub(super) const MOVED: u16 = 17;
    pub(super) const STAND_BY: u16 = 18;
    pub(super) const REPLICA: u16 = 19;
}

impl Frame<'_> {
    /// Must it not get lost? Then it has a number, and is kept until the other side has it.
    pub fn is_sequenced(&self) -> bool {
        match self {
            Frame::Request(_)
            | Frame::Answer(_)
            | Frame::Cancel { .. }
            | Frame::Gone { .. }
            | Frame::Notify { .. }
            | Frame::Await { .. }
            | Frame::Awaited { .. }
            | Frame::Order { .. }
            | Frame::Entry { .. }
            | Frame::Noted { .. }
            | Frame::Adopt { .. }
            | Frame::Adopted { .. }
            | Frame::Moved { .. }
            | Frame::StandBy { .. }
            | Frame::Replica { .. } => true,
            Frame::Hello(_) | Frame::Ping { .. } | Frame::Pong { .. } | Frame::Received => false,
        }
    }

    /// Is it about where endpoints are, or will be?
    pub fn is_of_directory(&self) -> bool {
        matches!(
            self,
            Frame::Order { .. }
                | Frame::Entry { .. }
                | Frame::Noted { .. }
                | Frame::Adopt { .. }
                | Frame::Adopted { .. }
                | Frame::Moved { .. }
                | Frame::StandBy { .. }
        )
    }

    /// Has it so much payload that small frames should not wait for it?
    pub fn is_bulk(&self) -> bool {
        self.payload_len() > SMALL_MAX
    }

    /// Bytes of payload that it carries.
    pub fn payload_len(&self) -> usize {
        self.payload().len()
    }

    fn kind(&self) -> u16 {
        match self {
            Frame::Hello(_) => kind::HELLO,
            Frame::Request(_) => kind::REQUEST,
            Frame::Answer(_) => kind::ANSWER,
            Frame::Cancel { .. } => kind::CANCEL,
            Frame::Gone { .. } => kind::GONE,
            Frame::Notify { .. } => kind::NOTIFY,
            Frame::Ping { .. } => kind::PING,
            Frame::Pong { .. } => kind::PONG,
            Frame::Received => kind::RECEIVED,
            Frame::Await { .. } => kind::AWAIT,
            Frame::Awaited { .. } => kind::AWAITED,
            Frame::Order { .. } => kind::ORDER,
            Frame::Entry { .. } => kind::ENTRY,
            Frame::Noted { .. } => kind::NOTED,
            Frame::Adopt { .. } => kind::ADOPT,
            Frame::Adopted { .. } => kind::ADOPTED,
            Frame::Moved { .. } => kind::MOVED,
            Frame::StandBy { .. } => kind::STAND_BY,
            Frame::Replica { .. } => kind::REPLICA,
        }
    }

    fn payload(&self) -> &[u8] {
        match self {
            Frame::Request(request) => request.payload,
            Frame::Answer(answer) => answer.payload,
            _ => &[],
        }
    }
}

impl<'a> Packet<'a> {
    /// A frame outside of any session: a Hello.
    pub fn alone(frame: Frame<'a>) -> Packet<'a> {
        Packet { sequence: 0, received: 0, received_bulk: 0, after: 0, frame, whole: None }
    }

    /// A payload of it, to be kept: without a copy if it is a part of `whole`.
    pub(crate) fn keep(&self, payload: &[u8]) -> Bytes {
        match self.whole {
            Some(whole) if is_part_of(whole, payload) => whole.slice_ref(payload),
            _ => Bytes::copy_from_slice(payload),
        }
    }

    /// The bytes of the packet. The payload must have the length that the message says, at most
    /// `PAYLOAD_MAX`: whoever makes a frame has checked that.
    #[expect(clippy::cast_possible_truncation, reason = "a frame is shorter than FRAME_MAX")]
    pub fn encode(&self) -> Vec<u8> {
        let payload = self.frame.payload();
        let mut out = Vec::with_capacity(HEADER + ORDER + 128 + CRED_SIZE_MAX + payload.len());
        let mut put = Put(&mut out);
        put.u32(0);
        put.u16(self.frame.kind());
        put.u16(0);
        put.u64(self.sequence);
        put.u64(self.received);
        if !matches!(self.frame, Frame::Hello(_)) {
            put.u64(self.received_bulk);
            put.u64(self.after);
        }
        put.body(&self.frame);
        out.extend_from_slice(payload);
        debug_assert!(out.len() <= FRAME_MAX, "a payload beyond PAYLOAD_MAX");
        let length = (out.len() as u32).to_le_bytes();
        out[..4].copy_from_slice(&length);
        out
    }
}

/// Reads the packet at the front of `bytes`. Returns it and how many bytes it took.
///
/// # Errors
/// [`FrameError::Incomplete`] until the whole frame is there; anything else if it is not a frame.
pub fn decode(bytes: &[u8]) -> Result<(Packet<'_>, usize), FrameError> {
    let Some((prefix, _)) = bytes.split_first_chunk::<4>() else {
        return Err(FrameError::Incomplete { need: HEADER });
    };
    let length = u32::from_le_bytes(*prefix) as usize;
    if !(HEADER..=FRAME_MAX).contains(&length) {
        return Err(FrameError::Length { length });
    }
    let frame = bytes.get(..length).ok_or(FrameError::Incomplete { need: length })?;
    let mut get = Get(&frame[4..]);
    let kind = get.u16("kind")?;
    check(get.u16("header")? == 0, "header")?;
    let sequence = get.u64("sequence")?;
    let received = get.u64("received")?;
    let mut order = [0; 2];
    if kind != kind::HELLO {
        order = [get.u64("received")?, get.u64("order")?];
    }
    let [received_bulk, after] = order;
    let frame = get.body(kind)?;
    check(get.0.is_empty(), "length")?;
    check(frame.is_sequenced() == (sequence != 0), "sequence")?;
    Ok((Packet { sequence, received, received_bulk, after, frame, whole: None }, length))
}

fn is_part_of(whole: &[u8], part: &[u8]) -> bool {
    let (whole, part) = (whole.as_ptr_range(), part.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

fn check(fine: bool, what: &'static str) -> Result<(), FrameError> {
    if fine { Ok(()) } else { Err(FrameError::Malformed { what }) }
}

/// Appends fields.
struct Put<'a>(&'a mut Vec<u8>);

impl Put<'_> {
    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn endpoint(&mut self, endpoint: Endpoint) {
        self.u64(endpoint.to_bits());
    }

    fn cred(&mut self, cred: &Cred) {
        let mut bytes = [0; CRED_SIZE_MAX];
        let length = cred.encode(&mut bytes);
        self.0.extend_from_slice(&bytes[..length]);
    }

    fn body(&mut self, frame: &Frame<'_>) {
        match frame {
            Frame::Hello(hello) => self.hello(hello),
            Frame::Request(request) => {
                self.u32(request.dc.0);
                self.endpoint(request.to);
                self.cred(&request.cred);
                self.0.extend_from_slice(request.message.as_bytes());
            }
            Frame::Answer(answer) => {
                self.u32(answer.dc.0);
                self.endpoint(answer.to);
                self.0.extend_from_slice(answer.message.as_bytes());
            }
            Frame::Cancel { dc, to, id } => {
                self.u32(dc.0);
                self.endpoint(*to);
                self.endpoint(id.source);
                self.u64(id.tag.0);
            }
            Frame::Gone { dc, to, gone } => {
                self.u32(dc.0);
                self.endpoint(*to);
                self.endpoint(*gone);
            }
            Frame::Notify { dc, from, to, value } => {
                self.u32(dc.0);
                self.endpoint(*from);
                self.endpoint(*to);
                self.u64(*value);
            }
            Frame::Await { dc, from, to, number, wish } => {
                self.u32(dc.0);
                self.endpoint(*from);
                self.endpoint(*to);
                self.u64(*number);
                self.u16(wish.code());
            }
            Frame::Awaited { dc, from, to, number, outcome } => {
                self.u32(dc.0);
                self.endpoint(*from);
                self.endpoint(*to);
                self.u64(*number);
                self.u16(outcome.err().unwrap_or(0));
                self.endpoint(outcome.unwrap_or(Endpoint::NONE));
            }
            Frame::Ping { sent } | Frame::Pong { sent } => self.u64(*sent),
            Frame::Received => {}
            _ => self.directory(frame),
        }
    }

    /// Frames about where endpoints are.
    fn directory(&mut self, frame: &Frame<'_>) {
        match frame {
            Frame::Order { dc, from, to, number, order } => {
                self.u32(dc.0);
                self.endpoint(*from);
                self.endpoint(*to);
                self.u64(*number);
                let (code, node, backup) = order.code();
                self.u16(code);
                self.u16(node.0);
                self.endpoint(backup);
            }
            Frame::Entry { dc, endpoint, epoch } | Frame::Noted { dc, endpoint, epoch } => {
                self.u32(dc.0);
                self.endpoint(*endpoint);
                self.u64(*epoch);
            }
            Frame::Adopt { dc, endpoint, backup, epoch, rights } => {
                self.u32(dc.0);
                self.endpoint(*endpoint);
                self.endpoint(*backup);
                self.u64(*epoch);
                self.0.extend_from_slice(rights.as_bytes());
            }
            Frame::Adopted { dc, endpoint, epoch, status } => {
                self.u32(dc.0);
                self.endpoint(*endpoint);
                self.u64(*epoch);
                self.u16(*status);
            }
            Frame::Moved { dc, to, id, is_received } => {
                self.u32(dc.0);
                self.endpoint(*to);
                self.endpoint(id.source);
                self.u64(id.tag.0);
                self.u16(u16::from(*is_received));
            }
            Frame::Replica { dc, endpoint, is_over } => {
                self.u32(dc.0);
                self.endpoint(*endpoint);
                self.u16(u16::from(*is_over));
            }
            Frame::StandBy { dc, to, backup, is_over } => {
                self.u32(dc.0);
                self.endpoint(*to);
                self.endpoint(*backup);
                self.u16(u16::from(*is_over));
            }
            _ => {}
        }
    }

    fn hello(&mut self, hello: &Hello) {
        self.u32(MAGIC);
        self.u32(VERSION);
        self.u16(hello.node.0);
        self.u16(hello.to.0);
        self.u64(hello.incarnation);
        self.u64(hello.epoch);
        self.u64(hello.peer_incarnation);
        self.u64(hello.peer_epoch);
        self.u64(hello.received);
        self.u64(hello.received_bulk);
        self.u16(hello.track as u16);
        self.u64(hello.pair);
        self.u16(hello.packs.into());
    }
}

/// Takes fields from the front.
struct Get<'a>(&'a [u8]);

impl<'a> Get<'a> {
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(FrameError::Malformed { what })?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, FrameError> {
        self.array(what).map(u16::from_le_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, FrameError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, FrameError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn dc(&mut self) -> Result<DcId, FrameError> {
        self.u32("container").map(DcId)
    }

    fn node(&mut self) -> Result<NodeId, FrameError> {
        let node = self.u16("node")?;
        check((1..=NODE_MAX).contains(&node), "node")?;
        Ok(NodeId(node))
    }

    fn endpoint(&mut self) -> Result<Endpoint, FrameError> {
        let endpoint = Endpoint::from_bits(self.u64("endpoint")?);
        check(endpoint.slot != 0 && endpoint != Endpoint::ANY, "endpoint")?;
        Ok(endpoint)
    }

    fn cred(&mut self) -> Result<Cred, FrameError> {
        let (cred, rest) =
            Cred::decode(self.0).ok_or(FrameError::Malformed { what: "credentials" })?;
        self.0 = rest;
        Ok(cred)
    }

    fn message(&mut self) -> Result<Message, FrameError> {
        let bytes = self.array::<{ size_of::<Message>() }>("message")?;
        Message::read_from_bytes(&bytes).map_err(|_| FrameError::Malformed { what: "message" })
    }

    /// The rest of the frame, which must be as long as the message says.
    fn payload(&mut self, message: &Message) -> Result<&'a [u8], FrameError> {
        let payload = std::mem::take(&mut self.0);
        check(
            payload.len() == message.payload_len as usize && payload.len() <= PAYLOAD_MAX,
            "payload",
        )?;
        Ok(payload)
    }

    fn body(&mut self, kind: u16) -> Result<Frame<'a>, FrameError> {
        Ok(match kind {
            kind::HELLO => Frame::Hello(self.hello()?),
            kind::REQUEST => Frame::Request(self.request()?),
            kind::ANSWER => Frame::Answer(self.answer()?),
            kind::CANCEL => {
                Frame::Cancel { dc: self.dc()?, to: self.endpoint()?, id: self.call_id()? }
            }
            kind::GONE => {
                Frame::Gone { dc: self.dc()?, to: self.endpoint()?, gone: self.endpoint()? }
            }
            kind::NOTIFY => Frame::Notify {
                dc: self.dc()?,
                from: self.endpoint()?,
                to: self.endpoint()?,
                value: self.u64("value")?,
            },
            kind::PING => Frame::Ping { sent: self.u64("time")? },
            kind::PONG => Frame::Pong { sent: self.u64("time")? },
            kind::RECEIVED => Frame::Received,
            kind::AWAIT => Frame::Await {
                dc: self.dc()?,
                from: self.endpoint()?,
                to: self.endpoint()?,
                number: self.u64("number")?,
                wish: self.wish()?,
            },
            kind::AWAITED => Frame::Awaited {
                dc: self.dc()?,
                from: self.endpoint()?,
                to: self.endpoint()?,
                number: self.u64("number")?,
                outcome: self.outcome()?,
            },
            kind => return self.directory(kind),
        })
    }

    /// Frames about where endpoints are.
    fn directory(&mut self, kind: u16) -> Result<Frame<'a>, FrameError> {
        Ok(match kind {
            kind::ORDER => Frame::Order {
                dc: self.dc()?,
                from: self.endpoint()?,
                to: self.endpoint()?,
                number: self.u64("number")?,
                order: self.order()?,
            },
            kind::ENTRY => {
                Frame::Entry { dc: self.dc()?, endpoint: self.mobile()?, epoch: self.u64("epoch")? }
            }
            kind::NOTED => {
                Frame::Noted { dc: self.dc()?, endpoint: self.mobile()?, epoch: self.u64("epoch")? }
            }
            kind::ADOPT => Frame::Adopt {
                dc: self.dc()?,
                endpoint: self.mobile()?,
                backup: Endpoint::from_bits(self.u64("endpoint")?),
                epoch: self.u64("epoch")?,
                rights: self.rights()?,
            },
            kind::ADOPTED => Frame::Adopted {
                dc: self.dc()?,
                endpoint: self.mobile()?,
                epoch: self.u64("epoch")?,
                status: self.status()?,
            },
            kind::MOVED => Frame::Moved {
                dc: self.dc()?,
                to: self.endpoint()?,
                id: self.call_id()?,
                is_received: self.flag()?,
            },
            kind::STAND_BY => Frame::StandBy {
                dc: self.dc()?,
                to: self.endpoint()?,
                backup: self.endpoint()?,
                is_over: self.flag()?,
            },
            kind::REPLICA => {
                Frame::Replica { dc: self.dc()?, endpoint: self.mobile()?, is_over: self.flag()? }
            }
            kind => return Err(FrameError::Kind { kind }),
        })
    }

    /// An endpoint that can have an entry in the directory: of a number and a generation.
    fn mobile(&mut self) -> Result<Endpoint, FrameError> {
        let endpoint = self.endpoint()?;
        check(endpoint.is_well_known() && endpoint.generation != 0, "endpoint")?;
        Ok(endpoint)
    }

    fn flag(&mut self) -> Result<bool, FrameError> {
        let flag = self.u16("flag")?;
        check(flag <= 1, "flag")?;
        Ok(flag == 1)
    }

    fn order(&mut self) -> Result<Order, FrameError> {
        let (code, node) = (self.u16("order")?, NodeId(self.u16("order")?));
        let backup = Endpoint::from_bits(self.u64("order")?);
        Order::from_code(code, node, backup).ok_or(FrameError::Malformed { what: "order" })
    }

    fn rights(&mut self) -> Result<Rights, FrameError> {
        let bytes = self.array::<{ size_of::<Rights>() }>("rights")?;
        Rights::decode(&bytes).ok_or(FrameError::Malformed { what: "rights" })
    }

    fn status(&mut self) -> Result<u16, FrameError> {
        let status = self.u16("status")?;
        check(status == 0 || status >= 4096, "status")?;
        Ok(status)
    }

    /// Magic and version come first in every version, so that versions can tell each other apart.
    fn hello(&mut self) -> Result<Hello, FrameError> {
        if self.u32("greeting")? != MAGIC {
            return Err(FrameError::Magic);
        }
        let theirs = self.u32("greeting")?;
        if theirs != VERSION {
            return Err(FrameError::Version { theirs });
        }
        Ok(Hello {
            node: self.node()?,
            to: self.node()?,
            incarnation: self.u64("incarnation")?,
            epoch: self.u64("epoch")?,
            peer_incarnation: self.u64("incarnation")?,
            peer_epoch: self.u64("epoch")?,
            received: self.u64("received")?,
            received_bulk: self.u64("received")?,
            track: if self.flag()? { Track::Bulk } else { Track::Small },
            pair: self.u64("pair")?,
            packs: self.flag()?,
        })
    }

    fn request(&mut self) -> Result<Request<'a>, FrameError> {
        let (dc, to, cred, message) = (self.dc()?, self.endpoint()?, self.cred()?, self.message()?);
        check(message.source.slot != 0 && message.source != Endpoint::ANY, "caller")?;
        let payload = self.payload(&message)?;
        Ok(Request { dc, to, cred, message, payload })
    }

    fn answer(&mut self) -> Result<Answer<'a>, FrameError> {
        let (dc, to, message) = (self.dc()?, self.endpoint()?, self.message()?);
        let payload = self.payload(&message)?;
        Ok(Answer { dc, to, message, payload })
    }

    fn wish(&mut self) -> Result<Wish, FrameError> {
        Wish::from_code(self.u16("wish")?).ok_or(FrameError::Malformed { what: "wish" })
    }

    fn outcome(&mut self) -> Result<Result<Endpoint, u16>, FrameError> {
        let status = self.u16("outcome")?;
        let bound = Endpoint::from_bits(self.u64("endpoint")?);
        // Only an error of the DVK ends a question, and then there is no endpoint.
        check(status == 0 || status >= 4096 && bound == Endpoint::NONE, "outcome")?;
        Ok(if status == 0 { Ok(bound) } else { Err(status) })
    }

    fn call_id(&mut self) -> Result<CallId, FrameError> {
        Ok(CallId { source: self.endpoint()?, tag: m3ipc::Tag(self.u64("tag")?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::Tag;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            node: NodeId(1),
            to: NodeId(2),
            incarnation: 0x1234_5678_9abc_def0,
            epoch: 3,
            peer_incarnation: 9,
            peer_epoch: 1,
            received: 77,
            received_bulk: 78,
            track: Track::Bulk,
            pair: 79,
            packs: true,
        }
    }

    fn any_endpoint() -> impl Strategy<Value = Endpoint> {
        (1..u32::MAX, any::<u32>()).prop_map(|(slot, generation)| Endpoint { slot, generation })
    }

    fn any_payload() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![proptest::collection::vec(any::<u8>(), 0..64), Just(vec![7; PAYLOAD_MAX])]
    }

    fn any_message() -> impl Strategy<Value = Message> {
        (any_endpoint(), any::<u64>(), any::<u16>(), any::<u16>(), any::<[u8; 32]>()).prop_map(
            |(source, tag, call, status, bytes)| {
                let mut message =
                    Message { source, tag: Tag(tag), status, ..Message::request(call) };
                message.args[..32].copy_from_slice(&bytes);
                message
            },
        )
    }

    fn any_cred() -> impl Strategy<Value = Cred> {
        (any::<[u32; 3]>(), proptest::collection::vec(any::<u32>(), 0..=m3ipc::limits::GROUPS_MAX))
            .prop_map(|([pid, uid, gid], groups)| Cred::new(pid, uid, gid).with_groups(groups))
    }

    /// Bytes of a packet with `frame`, and the check that they are read as what was written.
    fn check_round_trip(sequence: u64, received: u64, frame: Frame<'_>) -> Vec<u8> {
        let sequence = if frame.is_sequenced() { sequence.max(1) } else { 0 };
        let order = if matches!(frame, Frame::Hello(_)) { [0; 2] } else { [6, 7] };
        let [received_bulk, after] = order;
        let packet = Packet { sequence, received, received_bulk, after, frame, whole: None };
        let mut bytes = packet.encode();
        let length = bytes.len();
        assert_eq!(decode(&bytes), Ok((packet, length)));
        bytes.extend_from_slice(b"the next frame");
        assert_eq!(decode(&bytes), Ok((packet, length)));
        bytes.truncate(length);
        bytes
    }

    /// One packet of each kind.
    fn samples() -> Vec<Vec<u8>> {
        let (dc, to, from) = (DcId(1), Endpoint::VFS, Endpoint::new(NodeId(2), 5, 6));
        let id = CallId { source: from, tag: Tag::new(1, 2) };
        let message =
            Message { source: from, tag: id.tag, payload_len: 3, ..Message::request(0x101) };
        let cred = Cred::new(1, 2, 3).with_groups([4, 5]);
        let (node, mobile) = (NodeId(2), Endpoint::new(NodeId(1), 70, 3));
        let rights = Rights::of_level(m3ipc::rights::level::SERVER);
        [
            Frame::Hello(hello()),
            Frame::Request(Request { dc, to, cred, message, payload: b"abc" }),
            Frame::Answer(Answer {
                dc,
                to: from,
                message: Message { source: to, ..message },
                payload: b"abc",
            }),
            Frame::Cancel { dc, to, id },
            Frame::Gone { dc, to, gone: from },
            Frame::Notify { dc, from, to, value: 1 },
            Frame::Ping { sent: 5 },
            Frame::Pong { sent: 5 },
            Frame::Received,
            Frame::Await { dc, from, to, number: 7, wish: Wish::Bound { now: true } },
            Frame::Awaited { dc, from: to, to: from, number: 7, outcome: Ok(to) },
            Frame::Awaited { dc, from: to, to: from, number: 7, outcome: Err(4098) },
            Frame::Order { dc, from, to: mobile, number: 7, order: Order::Start },
            Frame::Order {
                dc,
                from,
                to: mobile,
                number: 7,
                order: Order::Commit { node, backup: from },
            },
            Frame::Entry { dc, endpoint: mobile, epoch: 8 },
            Frame::Noted { dc, endpoint: mobile, epoch: 8 },
            Frame::Adopt { dc, endpoint: mobile, backup: from, epoch: 8, rights },
            Frame::Adopted { dc, endpoint: mobile, epoch: 8, status: 4098 },
            Frame::Moved { dc, to: mobile, id, is_received: true },
            Frame::StandBy { dc, to: mobile, backup: from, is_over: false },
            Frame::Replica { dc, endpoint: mobile, is_over: true },
        ]
        .into_iter()
        .map(|frame| check_round_trip(9, 8, frame))
        .collect()
    }

    #[test]
    fn every_kind_of_frame_cut_anywhere_is_incomplete_and_cut_with_its_length_malformed() {
        for bytes in samples() {
            for cut in 0..bytes.len() {
                let need = if cut < 4 { HEADER } else { bytes.len() };
                assert_eq!(
                    decode(&bytes[..cut]),
                    Err(FrameError::Incomplete { need }),
                    "cut at {cut}"
                );
                let mut short = bytes[..cut].to_vec();
                if let Some(prefix) = short.first_chunk_mut::<4>() {
                    *prefix = u32::try_from(cut).unwrap().to_le_bytes();
                    let error = decode(&short).expect_err("a frame without its end");
                    assert!(
                        !matches!(error, FrameError::Incomplete { .. }),
                        "cut at {cut}: {error}"
                    );
                }
            }
            let mut long = bytes.clone();
            long.push(0);
            let length = u32::try_from(long.len()).unwrap();
            long[..4].copy_from_slice(&length.to_le_bytes());
            assert!(matches!(decode(&long), Err(FrameError::Malformed { .. })));
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_is_read() {
        for length in [0, 1, HEADER - 1, FRAME_MAX + 1, u32::MAX as usize] {
            let prefix = u32::try_from(length).unwrap().to_le_bytes();
            assert_eq!(decode(&prefix), Err(FrameError::Length { length }));
        }
    }

    #[test]
    fn a_frame_with_all_it_can_carry_is_not_too_long() {
        let message = Message {
            source: Endpoint::new(NodeId(1), 1, 1),
            payload_len: u32::try_from(PAYLOAD_MAX).unwrap(),
            ..Message::request(1)
        };
        let cred = Cred::ROOT.with_groups([7; m3ipc::limits::GROUPS_MAX]);
        let payload = vec![1; PAYLOAD_MAX];
        let request = Request { dc: DcId(1), to: Endpoint::VFS, cred, message, payload: &payload };
        assert_eq!(check_round_trip(1, 0, Frame::Request(request)).len(), FRAME_MAX);
    }

    #[test]
    fn a_payload_is_kept_without_a_copy_only_if_it_is_a_part_of_what_came() {
        let whole = Bytes::from(vec![1, 2, 3, 4]);
        let packet = Packet { whole: Some(&whole), ..Packet::alone(Frame::Received) };
        assert_eq!(packet.keep(&whole[1..3]).as_ptr(), whole[1..].as_ptr());
        let others = [2, 3];
        for (packet, payload) in
            [(Packet { whole: None, ..packet }, &whole[1..3]), (packet, &others)]
        {
            let kept = packet.keep(payload);
            assert_eq!(kept, others[..]);
            assert_ne!(kept.as_ptr(), payload.as_ptr());
        }
        assert!(packet.keep(&[]).is_empty());
    }

    #[test]
    fn another_version_is_named_and_another_protocol_told_apart() {
        let bytes = Packet::alone(Frame::Hello(hello())).encode();
        let mut newer = bytes.clone();
        newer[HEADER + 4] = 9;
        let error = decode(&newer).unwrap_err();
        assert_eq!(error, FrameError::Version { theirs: 9 });
        assert!(
            error.to_string().contains("version 9")
                && error.to_string().contains(&VERSION.to_string())
        );
        let mut other = bytes;
        other[HEADER] = b'H';
        assert_eq!(decode(&other), Err(FrameError::Magic));
    }

    #[test]
    fn fields_without_a_meaning_are_refused() {
        for (index, what) in [(6, "header"), (HEADER + 8, "node"), (HEADER + 10, "node")] {
            let mut bytes = Packet::alone(Frame::Hello(hello())).encode();
            bytes[index..index + 2].copy_from_slice(&if what == "node" { [0, 0] } else { [1, 0] });
            assert_eq!(decode(&bytes), Err(FrameError::Malformed { what }), "byte {index}");
        }
        for bytes in samples() {
            let (packet, _) = decode(&bytes).unwrap();
            let sequence = u64::from(packet.sequence == 0);
            let wrong = Packet { sequence, ..packet }.encode();
            assert_eq!(decode(&wrong), Err(FrameError::Malformed { what: "sequence" }));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            numbers in any::<(u64, u64, u32, u64)>(), ends in (any_endpoint(), any_endpoint()),
            cred in any_cred(), message in any_message(), payload in any_payload(),
        ) {
            let ((sequence, received, dc, value), (to, from)) = (numbers, ends);
            let dc = DcId(dc);
            let message = Message { payload_len: u32::try_from(payload.len()).unwrap(), ..message };
            let id = CallId { source: from, tag: message.tag };
            check_round_trip(sequence, received, Frame::Request(Request { dc, to, cred, message, payload: &payload }));
            check_round_trip(sequence, received, Frame::Answer(Answer { dc, to, message, payload: &payload }));
            check_round_trip(sequence, received, Frame::Cancel { dc, to, id });
            check_round_trip(sequence, received, Frame::Gone { dc, to, gone: from });
            check_round_trip(sequence, received, Frame::Notify { dc, from, to, value });
            check_round_trip(sequence, received, Frame::Ping { sent: value });
            let wish = Wish::from_code(u16::try_from(value % 5).unwrap()).unwrap();
            check_round_trip(sequence, received, Frame::Await { dc, from, to, number: value, wish });
            for outcome in [Ok(from), Ok(Endpoint::NONE), Err(4096 + u16::try_from(value % 1000).unwrap())] {
                check_round_trip(sequence, received, Frame::Awaited { dc, from, to, number: value, outcome });
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!matches!(decode(&bytes), Ok((_, 0))));
        }

        /// Bytes changed in a good frame: an error, or a frame that is written as those same bytes.
        #[test]
        fn changed_bytes_are_refused_or_mean_what_they_say(
            which in 0usize..20, changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = samples().swap_remove(which);
            for (at, value) in changes {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            if let Ok((packet, used)) = decode(&bytes) {
                prop_assert_eq!(packet.encode(), &bytes[..used]);
            }
        }
    }
}
