//! System V message queues: MsgGet, MsgSend, MsgReceive, MsgCtl.
//!
//! A message sent while a receiver waits for its type goes to the longest waiting such receiver
//! directly. Room goes to waiting senders in their order; a message that does not fit does not hold
//! up a shorter one, as in Linux.

use crate::flags::{
    IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, MSG_COPY, MSG_EXCEPT, MSG_INFO, MSG_NOERROR,
    MSG_STAT, MSG_STAT_ANY,
};
use crate::limits::{MSGMAX, MSGMNB, MSGMNB_CEILING, SYSV_IDS_MAX};
use crate::permission::{sysv_allows, sysv_owns};
use crate::sysv::{Entry, Table, index_of};
use crate::waiting::{Kept, Waiting};
use crate::{Outcome, Served, done, done_with, fail, record, seconds, succeed};
use calls::ipc::{FOREVER, MsgCtl, MsgGet, MsgReceive, MsgSend, MsgStat, Perm, Received, Value};
use calls::wire::Wire;
use dvk::server::{Call, Context, Gone};
use dvk::store::Store;
use m3ipc::errno::numbers::{E2BIG, EACCES, EAGAIN, EIDRM, EINVAL, ENOMSG, EPERM};
use m3ipc::{CallId, Cred, Errno};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A queue; but for its messages it is stored as one record.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Queue {
    bytes_max: u64,
    last_send_pid: u32,
    last_receive_pid: u32,
    stime: i64,
    rtime: i64,
    ctime: i64,
    /// Sum of the messages' lengths.
    #[serde(skip)]
    bytes: u64,
    /// In the order of sending.
    #[serde(skip)]
    messages: BTreeMap<u64, Message>,
}

#[derive(Clone, Debug)]
struct Message {
    kind: i64,
    text: Vec<u8>,
}

/// A msgsnd(2) that waits for room.
#[derive(Debug)]
struct Send {
    message: Message,
    cred: Cred,
}

/// A msgrcv(2).
#[derive(Debug)]
struct Receive {
    search: Search,
    size: u64,
    truncate: bool,
    cred: Cred,
}

/// Which message msgrcv(2) is about.
#[derive(Clone, Copy, Debug)]
enum Search {
    Any,
    Kind(i64),
    NotKind(i64),
    /// The lowest type up to this one.
    UpTo(i64),
    /// MSG_COPY: by its place.
    Place(i64),
}

/// All queues of the DC.
#[derive(Debug)]
pub(crate) struct SysvQueues {
    queues: Table<Queue>,
    senders: Waiting<i32, Send>,
    receivers: Waiting<i32, Receive>,
}

impl SysvQueues {
    pub(crate) fn open(store: &dyn Store) -> SysvQueues {
        let mut queues = Table::open(store, b'Q');
        let mut messages: BTreeMap<u64, BTreeMap<u64, Message>> = BTreeMap::new();
        for ([index, position], message) in record::all_bytes(store, b'M', Message::from_store) {
            messages.entry(index).or_default().insert(position, message);
        }
        for ([index], (perm, mut queue)) in record::all::<([u8; Perm::SIZE], Queue), 1>(store, b'Q')
        {
            queue.messages = messages.remove(&index).unwrap_or_default();
            queue.bytes = queue.messages.values().map(Message::len).sum();
            let perm = Perm::get(&perm).expect("it has the size of one");
            let index = u32::try_from(index).expect("an index is below 2^15");
            queues.restore(index, perm, queue);
        }
        SysvQueues { queues, senders: Waiting::new(), receivers: Waiting::new() }
    }

    pub(crate) fn msg_get(
        &mut self,
        args: MsgGet,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let value = match self.queues.find(args.key, args.flags, call.cred, |_| Ok(()))? {
            Some(id) => id,
            None => {
                let queue = Queue::new(seconds(cx));
                let id = self.queues.add(args.key, args.flags, call.cred, queue, cx.store)?;
                self.store_queue(id, cx.store);
                id
            }
        };
        done::<MsgGet>(Value { value })
    }

    pub(crate) fn msg_send(
        &mut self,
        args: MsgSend,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        if call.payload.len() > MSGMAX || args.id < 0 || args.kind < 1 {
            return Err(Errno::new(EINVAL));
        }
        let entry = self.queues.get(args.id)?;
        sysv_allows(&entry.perm, call.cred, 0o222)?;
        let message = Message { kind: args.kind, text: call.payload.to_vec() };
        if entry.body.fits(&message) {
            self.send(args.id, message, call.cred, cx);
            return done::<MsgSend>(());
        }
        if args.flags & IPC_NOWAIT != 0 {
            return Err(Errno::new(EAGAIN));
        }
        let send = Send { message, cred: *call.cred };
        self.senders.keep(call, args.id, send, FOREVER, cx.now)?;
        Ok(Outcome::Kept)
    }

    /// Gives a message that fits to a receiver, or puts it in the queue.
    fn send(&mut self, id: i32, message: Message, cred: &Cred, cx: &mut Context<'_>) {
        let now = seconds(cx);
        let queue = &mut self.queue_mut(id).body;
        (queue.last_send_pid, queue.stime) = (cred.pid, now);
        match self.receiver_of(id, &message, cx) {
            Some(receiver) => {
                self.received(id, &receiver.wants.cred, cx);
                let (reply, text) = receiver.wants.take(message);
                succeed::<MsgReceive>(&receiver, reply, text, cx);
            }
            None => {
                let queue = &mut self.queue_mut(id).body;
                queue.bytes += message.len();
                let position = queue.messages.last_key_value().map_or(0, |(last, _)| last + 1);
                let key = [u64::from(index_of(id)), position];
                record::put_bytes(cx.store, b'M', &key, &message.to_store());
                queue.messages.insert(position, message);
            }
        }
        self.store_queue(id, cx.store);
    }

    /// The longest waiting receiver that wants the message. Those that want it, but have no room
    /// for it, are answered E2BIG on the way.
    fn receiver_of(
        &mut self,
        id: i32,
        message: &Message,
        cx: &mut Context<'_>,
    ) -> Option<Kept<i32, Receive>> {
        loop {
            let wants = |receive: &Receive| receive.search.wants(message.kind);
            let receiver = self.receivers.take_where(id, wants)?;
            if receiver.wants.has_room(message) {
                return Some(receiver);
            }
            fail(&receiver, E2BIG, cx);
        }
    }

    pub(crate) fn msg_receive(
        &mut self,
        args: MsgReceive,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        let receive = Receive::new(&args, call.cred)?;
        let entry = self.queues.get(args.id)?;
        sysv_allows(&entry.perm, call.cred, 0o444)?;
        let Some(position) = entry.body.find(receive.search) else {
            if args.flags & IPC_NOWAIT != 0 {
                return Err(Errno::new(ENOMSG));
            }
            self.receivers.keep(call, args.id, receive, FOREVER, cx.now)?;
            return Ok(Outcome::Kept);
        };
        let message = &entry.body.messages[&position];
        if !receive.has_room(message) {
            return Err(Errno::new(E2BIG));
        }
        if args.flags & MSG_COPY != 0 {
            let message = message.clone();
            // The kernel's copy has the size of the buffer and does not shrink the message.
            if message.len() > args.size {
                return Err(Errno::new(EINVAL));
            }
            let (reply, text) = receive.take(message);
            return done_with::<MsgReceive>(reply, text);
        }
        let message = self.take(args.id, position, cx.store);
        self.received(args.id, call.cred, cx);
        self.store_queue(args.id, cx.store);
        self.admit(args.id, cx);
        let (reply, text) = receive.take(message);
        done_with::<MsgReceive>(reply, text)
    }

    /// Takes a message out of its queue.
    fn take(&mut self, id: i32, position: u64, store: &mut dyn Store) -> Message {
        let queue = &mut self.queue_mut(id).body;
        let message = queue.messages.remove(&position).expect("it has just been found");
        queue.bytes -= message.len();
        record::remove(store, b'M', &[u64::from(index_of(id)), position]);
        message
    }

    /// `cred` has received a message. Whoever calls this stores the queue.
    fn received(&mut self, id: i32, cred: &Cred, cx: &Context<'_>) {
        let now = seconds(cx);
        let queue = &mut self.queue_mut(id).body;
        (queue.last_receive_pid, queue.rtime) = (cred.pid, now);
    }

    /// There may be room: sends what waits and fits, in its order.
    fn admit(&mut self, id: i32, cx: &mut Context<'_>) {
        while let Some(sender) = self.fitting_sender(id) {
            succeed::<MsgSend>(&sender, (), Vec::new(), cx);
            let Send { message, cred } = sender.wants;
            self.send(id, message, &cred, cx);
        }
    }

    fn fitting_sender(&mut self, id: i32) -> Option<Kept<i32, Send>> {
        let queue =
            &self.queues.get(id).expect("who waits is told before the queue is removed").body;
        self.senders.take_where(id, |send| queue.fits(&send.message))
    }

    pub(crate) fn msg_ctl(
        &mut self,
        args: MsgCtl,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Served {
        if args.id < 0 {
            return Err(Errno::new(EINVAL));
        }
        match args.command {
            IPC_INFO | MSG_INFO => self.info(args.command),
            IPC_STAT => self.stat(args.id, 0, Some(call)),
            MSG_STAT => {
                let id = self.queues.id_at(args.id)?;
                self.stat(id, id, Some(call))
            }
            MSG_STAT_ANY => {
                let id = self.queues.id_at(args.id)?;
                self.stat(id, id, None)
            }
            IPC_SET => self.ipc_set(args.id, call, cx),
            IPC_RMID => {
                sysv_owns(&self.queues.get(args.id)?.perm, call.cred)?;
                self.remove(args.id, cx);
                done::<MsgCtl>(Value { value: 0 })
            }
            _ => Err(Errno::new(EINVAL)),
        }
    }

    /// `struct msginfo` as bytes; for MSG_INFO three of its fields say what is in use.
    fn info(&self, command: i32) -> Served {
        let number = |count: u64| i32::try_from(count).unwrap_or(i32::MAX);
        let queues = || self.queues.all().map(|(_, entry)| &entry.body);
        let ids = u64::from(SYSV_IDS_MAX);
        let (pool, map, tql) = match command {
            MSG_INFO => (
                self.queues.count() as u64,
                queues().map(|queue| queue.messages.len() as u64).sum(),
                queues().map(|queue| queue.bytes).sum(),
            ),
            _ => (ids * MSGMNB / 1024, MSGMNB, MSGMNB),
        };
        let info = [pool, map, MSGMAX as u64, MSGMNB, ids, 16, tql];
        let mut bytes: Vec<u8> =
            info.iter().flat_map(|field| number(*field).to_le_bytes()).collect();
        // msgseg is unsigned short and unused; two bytes of padding follow.
        bytes.extend_from_slice(&[0xff, 0xff, 0, 0]);
        done_with::<MsgCtl>(Value { value: self.queues.highest() }, bytes)
    }

    /// `MsgStat` of queue `id`, if `reader` may read it or nobody asks.
    fn stat(&self, id: i32, value: i32, reader: Option<&Call<'_>>) -> Served {
        let Entry { perm, body } = self.queues.get(id)?;
        if let Some(call) = reader {
            sysv_allows(perm, call.cred, 0o444)?;
        }
        let stat = MsgStat {
            perm: *perm,
            bytes: body.bytes,
            messages: body.messages.len() as u64,
            bytes_max: body.bytes_max,
            last_send_pid: body.last_send_pid,
            last_receive_pid: body.last_receive_pid,
            stime: body.stime,
            rtime: body.rtime,
            ctime: body.ctime,
        };
        done_with::<MsgCtl>(Value { value }, stat.bytes().to_vec())
    }

    fn ipc_set(&mut self, id: i32, call: &Call<'_>, cx: &mut Context<'_>) -> Served {
        let set = self.queues.set_perm(id, call.cred, call.payload)?;
        if set.bytes_max > MSGMNB && call.cred.uid != 0 {
            return Err(Errno::new(EPERM));
        }
        if set.bytes_max > MSGMNB_CEILING {
            return Err(Errno::new(EINVAL));
        }
        let now = seconds(cx);
        let entry = self.queue_mut(id);
        entry.give(&set);
        (entry.body.bytes_max, entry.body.ctime) = (set.bytes_max, now);
        self.store_queue(id, cx.store);
        self.expel(id, cx);
        self.admit(id, cx);
        done::<MsgCtl>(Value { value: 0 })
    }

    /// The permissions have changed: who waits and may not any longer is told.
    fn expel(&mut self, id: i32, cx: &mut Context<'_>) {
        let perm = self.queue(id).perm;
        let may_not = |cred: &Cred, wanted| sysv_allows(&perm, cred, wanted).is_err();
        while let Some(sender) = self.senders.take_where(id, |send| may_not(&send.cred, 0o222)) {
            fail(&sender, EACCES, cx);
        }
        while let Some(receiver) =
            self.receivers.take_where(id, |receive| may_not(&receive.cred, 0o444))
        {
            fail(&receiver, EACCES, cx);
        }
    }

    fn remove(&mut self, id: i32, cx: &mut Context<'_>) {
        while let Some(sender) = self.senders.take_first(id) {
            fail(&sender, EIDRM, cx);
        }
        while let Some(receiver) = self.receivers.take_first(id) {
            fail(&receiver, EIDRM, cx);
        }
        let index = u64::from(index_of(id));
        for position in self.queue(id).body.messages.keys() {
            record::remove(cx.store, b'M', &[index, *position]);
        }
        record::remove(cx.store, b'Q', &[index]);
        self.queues.remove(id);
    }

    pub(crate) fn is_kept(&self, id: CallId) -> bool {
        self.senders.contains(id) || self.receivers.contains(id)
    }

    /// The number of the kept call `id`, which is now forgotten.
    pub(crate) fn cancel(&mut self, id: CallId) -> Option<u16> {
        let sender = self.senders.take(id).map(|kept| kept.call);
        sender.or_else(|| self.receivers.take(id).map(|kept| kept.call))
    }

    pub(crate) fn gone(&mut self, gone: Gone) {
        self.senders.forget(gone);
        self.receivers.forget(gone);
    }

    /// Identifier, permissions, messages and bytes of every queue.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (i32, &Perm, u64, u64)> {
        self.queues.all().map(|(id, entry)| {
            (id, &entry.perm, entry.body.messages.len() as u64, entry.body.bytes)
        })
    }

    fn queue(&self, id: i32) -> &Entry<Queue> {
        self.queues.get(id).expect("who waits is told before the queue is removed")
    }

    fn queue_mut(&mut self, id: i32) -> &mut Entry<Queue> {
        self.queues.get_mut(id).expect("who waits is told before the queue is removed")
    }

    fn store_queue(&self, id: i32, store: &mut dyn Store) {
        let Entry { perm, body } = self.queue(id);
        record::put(store, b'Q', &[u64::from(index_of(id))], &(perm.bytes(), body));
    }
}

impl Queue {
    fn new(now: i64) -> Queue {
        Queue {
            bytes_max: MSGMNB,
            last_send_pid: 0,
            last_receive_pid: 0,
            stime: 0,
            rtime: 0,
            ctime: now,
            bytes: 0,
            messages: BTreeMap::new(),
        }
    }

    /// Is there room? Empty messages count, too: at most `bytes_max` of them.
    fn fits(&self, message: &Message) -> bool {
        self.bytes + message.len() <= self.bytes_max
            && (self.messages.len() as u64) < self.bytes_max
    }

    /// The position of the message that `search` is about.
    fn find(&self, search: Search) -> Option<u64> {
        let mut messages = self.messages.iter();
        match search {
            Search::Place(place) => messages.nth(usize::try_from(place).ok()?),
            Search::UpTo(_) => messages
                .filter(|(_, message)| search.wants(message.kind))
                .min_by_key(|(_, message)| message.kind),
            _ => messages.find(|(_, message)| search.wants(message.kind)),
        }
        .map(|(position, _)| *position)
    }
}

impl Message {
    fn len(&self) -> u64 {
        self.text.len() as u64
    }

    fn to_store(&self) -> Vec<u8> {
        [&self.kind.to_le_bytes(), &self.text[..]].concat()
    }

    fn from_store(bytes: &[u8]) -> Message {
        let (kind, text) = bytes.split_first_chunk().expect("it was made by `to_store`");
        Message { kind: i64::from_le_bytes(*kind), text: text.to_vec() }
    }
}

impl Receive {
    fn new(args: &MsgReceive, cred: &Cred) -> Result<Receive, Errno> {
        let copy = args.flags & MSG_COPY != 0;
        if args.id < 0 || i64::try_from(args.size).is_err() {
            return Err(Errno::new(EINVAL));
        }
        if copy && (args.flags & MSG_EXCEPT != 0 || args.flags & IPC_NOWAIT == 0) {
            return Err(Errno::new(EINVAL));
        }
        let search = match args.kind {
            place if copy => Search::Place(place),
            0 => Search::Any,
            kind if kind < 0 => Search::UpTo(kind.checked_neg().unwrap_or(i64::MAX)),
            kind if args.flags & MSG_EXCEPT != 0 => Search::NotKind(kind),
            kind => Search::Kind(kind),
        };
        let truncate = args.flags & MSG_NOERROR != 0;
        Ok(Receive { search, size: args.size, truncate, cred: *cred })
    }

    fn has_room(&self, message: &Message) -> bool {
        self.truncate || message.len() <= self.size
    }

    /// What the receiver gets: with MSG_NOERROR, the rest of the text is lost.
    fn take(&self, message: Message) -> (Received, Vec<u8>) {
        let mut text = message.text;
        text.truncate(usize::try_from(self.size).unwrap_or(usize::MAX));
        (Received { kind: message.kind, len: text.len() as u64 }, text)
    }
}

impl Search {
    fn wants(self, kind: i64) -> bool {
        match self {
            Search::Any => true,
            Search::Kind(wanted) => kind == wanted,
            Search::NotKind(unwanted) => kind != unwanted,
            Search::UpTo(highest) => kind <= highest,
            // It never waits.
            Search::Place(_) => false,
        }
    }
}
