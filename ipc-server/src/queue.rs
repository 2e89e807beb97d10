//! POSIX message queues: MqOpen, MqClose, MqUnlink, MqSend, MqReceive, MqAttributes.
//!
//! Senders wait only while a queue is full, receivers only while it is empty: a message sent while
//! a receiver waits goes to the longest waiting one without touching the queue.

use crate::flags::{O_ACCMODE, O_CREAT, O_EXCL, O_NONBLOCK, O_RDWR, O_WRONLY};
use crate::holders::Holders;
use crate::limits::{
    MQ_BYTES_PER_USER, MQ_DESCRIPTIONS_MAX, MQ_MESSAGE_OVERHEAD, MQ_MESSAGES_DEFAULT,
    MQ_MESSAGES_MAX, MQ_PRIORITY_MAX, MQ_QUEUES_MAX, MQ_SIZE_DEFAULT, MQ_SIZE_MAX,
};
use crate::permission::{Owner, READ, WRITE};
use crate::waiting::Waiting;
use crate::{Outcome, Served, done, done_with, fail, name, record, succeed};
use calls::ipc::{
    MqAttr, MqAttributes, MqClose, MqOpen, MqReceive, MqSend, MqUnlink, Object, Received,
};
use calls::wire::Wire;
use dvk::server::{Call, Context, Gone, Nanos};
use dvk::store::Store;
use m3ipc::errno::numbers::{
    EAGAIN, EBADF, EEXIST, EINVAL, EMFILE, EMSGSIZE, ENFILE, ENOENT, ENOSPC, ETIMEDOUT,
};
use m3ipc::{CallId, Cred, Errno};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A queue but for its messages.
#[derive(Debug, Serialize, Deserialize)]
struct Queue {
    /// Without its slash; none once it is unlinked.
    name: Option<Vec<u8>>,
    owner: Owner,
    messages_max: u64,
    message_size: u64,
    /// Descriptions that are open, counted anew when the store is opened.
    #[serde(skip)]
    descriptions: usize,
    /// The first is the next to be received.
    #[serde(skip)]
    messages: BTreeMap<Place, Vec<u8>>,
}

/// A message's place in its queue: higher priority first, then older first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Priority, counted down from the highest.
    below: u32,
    position: u64,
}

impl Place {
    fn priority(self) -> u32 {
        MQ_PRIORITY_MAX - 1 - self.below
    }
}

/// An open queue description.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Description {
    queue: u64,
    /// READ and WRITE.
    access: u32,
    nonblocking: bool,
}

/// A message whose sender waits for room.
#[derive(Debug)]
struct Message {
    priority: u32,
    text: Vec<u8>,
}

/// All queues of the DC.
#[derive(Debug)]
pub(crate) struct Queues {
    queues: BTreeMap<u64, Queue>,
    names: BTreeMap<Vec<u8>, u64>,
    descriptions: BTreeMap<u64, Description>,
    holders: Holders,
    senders: Waiting<u64, Message>,
    receivers: Waiting<u64, ()>,
    next_number: u64,
}

/// What a list says of a queue.
pub(crate) struct Row<'a> {
    pub(crate) number: u64,
    pub(crate) name: &'a [u8],
    pub(crate) owner: Owner,
    pub(crate) messages: u64,
    pub(crate) messages_max: u64,
}

impl Queues {
    pub(crate) fn open(store: &dyn Store) -> Queues {
        let mut all = Queues {
            queues: record::all(store, b'q').into_iter().map(|([id], queue)| (id, queue)).collect(),
            names: BTreeMap::new(),
            descriptions: BTreeMap::new(),
            holders: Holders::open(store, b'e'),
            senders: Waiting::new(),
            receivers: Waiting::new(),
            next_number: 0,
        };
        for (number, queue) in &all.queues {
            all.names.extend(queue.name.clone().map(|name| (name, *number)));
            all.next_number = number + 1;
        }
        for ([queue, below, position], text) in record::all_bytes(store, b'm', <[u8]>::to_vec) {
            let below = u32::try_from(below).expect("a stored priority is one");
            all.queue_mut(queue).messages.insert(Place { below, position }, text);
        }
        for ([id], description) in record::all::<Description, 1>(store, b'd') {
            all.queue_mut(description.queue).descriptions += 1;
            all.descriptions.insert(id, description);
            if !all.holders.is_held(id) {
                all.holders.linger(id, None);
            }
        }
        all
    }

    fn queue_mut(&mut self, number: u64) -> &mut Queue {
        self.queues.get_mut(&number).expect("a queue lives as long as what refers to it")
    }

    pub(crate) fn mq_open(
        &mut self,
        args: MqOpen,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let (attr, name) = attributes(args.attr_len, call.payload)?;
        let name = name::queue(name)?;
        let access = match args.flags & O_ACCMODE {
            0 => Some(READ),
            O_WRONLY => Some(WRITE),
            O_RDWR => Some(READ | WRITE),
            _ => None,
        };
        self.make_room(cx);
        if self.descriptions.len() >= MQ_DESCRIPTIONS_MAX {
            return Err(Errno::new(ENFILE));
        }
        let exclusive = args.flags & O_EXCL != 0;
        let queue = match self.names.get(name) {
            Some(_) if args.flags & O_CREAT != 0 && exclusive => return Err(Errno::new(EEXIST)),
            Some(number) => {
                let access = access.ok_or(Errno::new(EINVAL))?;
                self.queues[number].owner.allows(call.cred, access)?;
                *number
            }
            None if args.flags & O_CREAT != 0 => self.create(name, args.mode, attr, call, cx)?,
            None => return Err(Errno::new(ENOENT)),
        };
        // As Linux, a queue can be made with the access that is none, but not opened with it.
        let access = access.unwrap_or(0);
        let nonblocking = args.flags & O_NONBLOCK != 0;
        let id = crate::unused_id(cx.entropy, |id| self.descriptions.contains_key(&id));
        self.set_description(id, Description { queue, access, nonblocking }, cx.store);
        self.queue_mut(queue).descriptions += 1;
        self.holders.opened(cx.store, id, call.id.source);
        done::<MqOpen>(Object { id })
    }

    /// Ends what only lingers if a limit is reached.
    fn make_room(&mut self, cx: &mut Context<'_>) {
        let full = self.descriptions.len() >= MQ_DESCRIPTIONS_MAX;
        if full || self.queues.len() >= MQ_QUEUES_MAX {
            self.end(self.holders.all_lingering(), cx);
        }
    }

    fn create(
        &mut self,
        name: &[u8],
        mode: u32,
        attr: Option<MqAttr>,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<u64, Errno> {
        let (messages_max, message_size) = sizes(attr)?;
        if self.queues.len() >= MQ_QUEUES_MAX {
            return Err(Errno::new(ENOSPC));
        }
        if !self.may_reserve(call.cred, messages_max, message_size) {
            self.end(self.holders.all_lingering(), cx);
            if !self.may_reserve(call.cred, messages_max, message_size) {
                return Err(Errno::new(EMFILE));
            }
        }
        let number = self.next_number;
        self.next_number += 1;
        let queue = Queue {
            name: Some(name.to_vec()),
            owner: Owner::new(call.cred, mode),
            messages_max,
            message_size,
            descriptions: 0,
            messages: BTreeMap::new(),
        };
        record::put(cx.store, b'q', &[number], &queue);
        self.names.insert(name.to_vec(), number);
        self.queues.insert(number, queue);
        Ok(number)
    }

    fn may_reserve(&self, cred: &Cred, messages_max: u64, message_size: u64) -> bool {
        let own = self.queues.values().filter(|queue| queue.owner.uid == cred.uid);
        let reserved: u64 = own.map(|queue| reserve(queue.messages_max, queue.message_size)).sum();
        cred.uid == 0 || reserved + reserve(messages_max, message_size) <= MQ_BYTES_PER_USER
    }

    pub(crate) fn mq_close(
        &mut self,
        args: MqClose,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        if !self.descriptions.contains_key(&args.id) {
            return Err(Errno::new(EBADF));
        }
        self.holders.closed(cx.store, args.id, call.id.source);
        if !self.holders.is_held(args.id) {
            self.holders.linger(args.id, Some(cx.now));
        }
        done::<MqClose>(())
    }

    pub(crate) fn mq_unlink(&mut self, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let name = name::queue(call.payload)?;
        let number = *self.names.get(name).ok_or(Errno::new(ENOENT))?;
        let queue = self.queue_mut(number);
        queue.owner.allows_unlink(call.cred)?;
        queue.name = None;
        record::put(cx.store, b'q', &[number], queue);
        self.names.remove(name);
        self.end_queue_without_use(number, cx);
        done::<MqUnlink>(())
    }

    pub(crate) fn mq_send(
        &mut self,
        args: MqSend,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        if args.priority >= MQ_PRIORITY_MAX {
            return Err(Errno::new(EINVAL));
        }
        let description = self.used(args.id, WRITE, call, cx)?;
        let number = description.queue;
        let queue = &self.queues[&number];
        if call.payload.len() as u64 > queue.message_size {
            return Err(Errno::new(EMSGSIZE));
        }
        if queue.messages.len() as u64 >= queue.messages_max {
            let message = Message { priority: args.priority, text: call.payload.to_vec() };
            may_wait(description, args.wait_ns)?;
            self.senders.keep(call, number, message, args.wait_ns, cx.now)?;
            return Ok(Outcome::Kept);
        }
        if let Some(receiver) = self.receivers.take_first(number) {
            let reply = received(args.priority, call.payload);
            succeed::<MqReceive>(&receiver, reply, call.payload.to_vec(), cx);
        } else {
            self.insert(number, args.priority, call.payload.to_vec(), cx.store);
        }
        done::<MqSend>(())
    }

    pub(crate) fn mq_receive(
        &mut self,
        args: MqReceive,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let description = self.used(args.id, READ, call, cx)?;
        let number = description.queue;
        if args.size < self.queues[&number].message_size {
            return Err(Errno::new(EMSGSIZE));
        }
        let Some((place, text)) = self.queue_mut(number).messages.pop_first() else {
            may_wait(description, args.wait_ns)?;
            self.receivers.keep(call, number, (), args.wait_ns, cx.now)?;
            return Ok(Outcome::Kept);
        };
        record::remove(cx.store, b'm', &[number, u64::from(place.below), place.position]);
        if let Some(sender) = self.senders.take_first(number) {
            succeed::<MqSend>(&sender, (), Vec::new(), cx);
            self.insert(number, sender.wants.priority, sender.wants.text, cx.store);
        }
        done_with::<MqReceive>(received(place.priority(), &text), text)
    }

    fn insert(&mut self, number: u64, priority: u32, text: Vec<u8>, store: &mut dyn Store) {
        let messages = &mut self.queue_mut(number).messages;
        let below = MQ_PRIORITY_MAX - 1 - priority;
        let same = Place { below, position: 0 }..=Place { below, position: u64::MAX };
        let position = messages.range(same).next_back().map_or(0, |(last, _)| last.position + 1);
        record::put_bytes(store, b'm', &[number, u64::from(below), position], &text);
        messages.insert(Place { below, position }, text);
    }

    pub(crate) fn mq_attributes(
        &mut self,
        args: MqAttributes,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let description = self.used(args.id, 0, call, cx)?;
        let queue = &self.queues[&description.queue];
        let number = |count: u64| i64::try_from(count).expect("the limits of a queue are small");
        let before = MqAttr {
            flags: if description.nonblocking { i64::from(O_NONBLOCK) } else { 0 },
            max_messages: number(queue.messages_max),
            message_size: number(queue.message_size),
            messages: number(queue.messages.len() as u64),
        };
        if args.set != 0 {
            if args.flags & !i64::from(O_NONBLOCK) != 0 {
                return Err(Errno::new(EINVAL));
            }
            let nonblocking = args.flags != 0;
            self.set_description(args.id, Description { nonblocking, ..description }, cx.store);
        }
        done_with::<MqAttributes>((), before.bytes().to_vec())
    }

    /// The caller uses description `id` for `access`; from now on it is a holder.
    fn used(
        &mut self,
        id: u64,
        access: u32,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Description, Errno> {
        let description = *self.descriptions.get(&id).ok_or(Errno::new(EBADF))?;
        self.holders.used(cx.store, id, call.id.source);
        if access & !description.access == 0 { Ok(description) } else { Err(Errno::new(EBADF)) }
    }

    fn set_description(&mut self, id: u64, description: Description, store: &mut dyn Store) {
        record::put(store, b'd', &[id], &description);
        self.descriptions.insert(id, description);
    }

    pub(crate) fn is_kept(&self, id: CallId) -> bool {
        self.senders.contains(id) || self.receivers.contains(id)
    }

    /// The number of the kept call `id`, which is now forgotten.
    pub(crate) fn cancel(&mut self, id: CallId) -> Option<u16> {
        let sender = self.senders.take(id).map(|kept| kept.call);
        sender.or_else(|| self.receivers.take(id).map(|kept| kept.call))
    }

    pub(crate) fn gone(&mut self, gone: Gone, cx: &mut Context<'_>) {
        self.senders.forget(gone);
        self.receivers.forget(gone);
        let ended = self.holders.gone(cx.store, gone);
        match gone {
            Gone::Node(_) => self.end(ended, cx),
            Gone::Endpoint(_) => {
                ended.into_iter().for_each(|id| self.holders.linger(id, Some(cx.now)));
            }
        }
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        while let Some(sender) = self.senders.take_expired(cx.now) {
            fail(&sender, ETIMEDOUT, cx);
        }
        while let Some(receiver) = self.receivers.take_expired(cx.now) {
            fail(&receiver, ETIMEDOUT, cx);
        }
        let expired = self.holders.expired(cx.now);
        self.end(expired, cx);
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        let waiting = [self.senders.deadline(), self.receivers.deadline()];
        waiting.into_iter().flatten().chain(self.holders.deadline()).min()
    }

    /// These descriptions are no more, and with them the unlinked queues that had no other.
    fn end(&mut self, ids: Vec<u64>, cx: &mut Context<'_>) {
        for id in ids {
            self.holders.forget(cx.store, id);
            record::remove(cx.store, b'd', &[id]);
            if let Some(description) = self.descriptions.remove(&id) {
                self.queue_mut(description.queue).descriptions -= 1;
                self.end_queue_without_use(description.queue, cx);
            }
        }
    }

    fn end_queue_without_use(&mut self, number: u64, cx: &mut Context<'_>) {
        let queue = &self.queues[&number];
        if queue.name.is_some() || queue.descriptions > 0 {
            return;
        }
        for place in queue.messages.keys() {
            record::remove(cx.store, b'm', &[number, u64::from(place.below), place.position]);
        }
        record::remove(cx.store, b'q', &[number]);
        self.queues.remove(&number);
        while let Some(sender) = self.senders.take_first(number) {
            fail(&sender, EBADF, cx);
        }
        while let Some(receiver) = self.receivers.take_first(number) {
            fail(&receiver, EBADF, cx);
        }
    }

    /// The queues in the order of their making; unlinked ones only while a process holds them.
    pub(crate) fn rows(&self) -> Vec<Row<'_>> {
        let held = self.descriptions.iter().filter(|(id, _)| !self.holders.lingers(**id));
        let held: std::collections::BTreeSet<u64> = held.map(|(_, open)| open.queue).collect();
        let there = self.queues.iter();
        there
            .filter(|(number, queue)| queue.name.is_some() || held.contains(number))
            .map(|(number, queue)| Row {
                number: *number,
                name: queue.name.as_deref().unwrap_or_default(),
                owner: queue.owner,
                messages: queue.messages.len() as u64,
                messages_max: queue.messages_max,
            })
            .collect()
    }
}

/// Splits the payload of `MqOpen`: attributes, if there are any, and name.
fn attributes(attr_len: u16, payload: &[u8]) -> Result<(Option<MqAttr>, &[u8]), Errno> {
    match usize::from(attr_len) {
        0 => Ok((None, payload)),
        MqAttr::SIZE => {
            let attr = MqAttr::get(payload).ok_or(Errno::new(EINVAL))?;
            Ok((Some(attr), &payload[MqAttr::SIZE..]))
        }
        _ => Err(Errno::new(EINVAL)),
    }
}

/// How many messages of which size a new queue holds.
fn sizes(attr: Option<MqAttr>) -> Result<(u64, u64), Errno> {
    let (messages, size) = match attr {
        Some(attr) => (attr.max_messages, attr.message_size),
        None => (MQ_MESSAGES_DEFAULT, MQ_SIZE_DEFAULT),
    };
    if !(1..=MQ_MESSAGES_MAX).contains(&messages) || !(1..=MQ_SIZE_MAX).contains(&size) {
        return Err(Errno::new(EINVAL));
    }
    Ok((messages.cast_unsigned(), size.cast_unsigned()))
}

fn reserve(messages_max: u64, message_size: u64) -> u64 {
    messages_max * (message_size + MQ_MESSAGE_OVERHEAD)
}

/// EAGAIN if the description does not wait, ETIMEDOUT if the time is over already.
fn may_wait(description: Description, wait_ns: u64) -> Result<(), Errno> {
    match (description.nonblocking, wait_ns) {
        (true, _) => Err(Errno::new(EAGAIN)),
        (false, 0) => Err(Errno::new(ETIMEDOUT)),
        _ => Ok(()),
    }
}

fn received(priority: u32, text: &[u8]) -> Received {
    Received { kind: i64::from(priority), len: text.len() as u64 }
}
