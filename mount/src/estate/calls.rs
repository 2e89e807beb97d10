//! Calls whose effect somebody waits for: each is made once, whoever asks for it again.
//!
//! A request that an agent has not answered when it dies is given to its successor by the kernel once more. If it had made a call for it that must be
//! executed once, that is here, with its tag: the successor waits for that call's answer, and gives it to the request when it comes. What calls
//! belong to is their *key*: a request's number, or what is to be known of an answer though no request waits for it.

use super::Table;
use m3ipc::{Message, Tag};
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of an answer's payload that are kept.
pub(crate) const PAYLOAD_MAX: usize = 512;

/// Words of a row: key, tag, call, inode that is opened, what is so (below); then message and payload.
pub(crate) const WORDS: usize = MESSAGE + 8 + PAYLOAD_MAX / 8;
const KEY: usize = 0;
const TAG: usize = 1;
const CALL: usize = 2;
const INODE: usize = 3;
const STATE: usize = 4;
const MESSAGE: usize = 5;
/// In the word of that name: it is answered, with so many bytes in the lowest 16 bits; somebody may know the answer; and how far the request had come before,
/// in the bits between. One word, as a call that is answered is that much more progress.
const IS_ANSWERED: u64 = 1 << 63;
const IS_TOLD: u64 = 1 << 62;
const LENGTH: u64 = 0xffff;
const PROGRESS_AT: u32 = 16;

fn progress_of(state: u64) -> u64 {
    (state & !(IS_ANSWERED | IS_TOLD)) >> PROGRESS_AT
}

/// What a call belongs to; 0: nothing that a successor would ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Key(u64);

/// In keys that are no request's.
const OF_PROMISE: u64 = 1 << 63;
const OF_PLACE: u64 = 1 << 62;

/// What a [`Key`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Request,
    /// The opening of a promised file, by its handle.
    Promise(u64),
    /// What is put off in a place, by its number.
    Place(usize),
}

impl Key {
    pub(crate) const NONE: Key = Key(0);

    /// Of a request with this number, which is neither 0 nor as great as those of anything else.
    pub(crate) fn request(number: u64) -> Key {
        Key(number & !(OF_PROMISE | OF_PLACE))
    }

    /// Of a handle with its highest bit set.
    pub(crate) fn promise(fh: u64) -> Key {
        Key(fh | OF_PROMISE)
    }

    pub(crate) fn place(number: usize) -> Key {
        Key(number as u64 | OF_PLACE)
    }

    /// That of a request, if it is one's.
    pub(crate) fn number(self) -> Option<u64> {
        (self != Key::NONE && self.of() == Of::Request).then_some(self.0)
    }

    pub(crate) fn of(self) -> Of {
        match self.0 {
            key if key & OF_PROMISE != 0 => Of::Promise(key),
            key if key & OF_PLACE != 0 => {
                Of::Place(usize::try_from(key & !OF_PLACE).unwrap_or(usize::MAX))
            }
            _ => Of::Request,
        }
    }
}

/// A call that is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) message: Message,
    pub(crate) payload: Vec<u8>,
}

/// The calls.
#[derive(Debug)]
pub(crate) struct Calls {
    table: Table<WORDS>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Rows of calls of this agent.
    own: HashMap<Key, usize>,
    /// What the one before has left.
    left: HashMap<Key, Left>,
}

/// A call that an agent had made that is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Left {
    row: usize,
    call: u16,
    ino: u64,
    progress: u64,
    is_told: bool,
    /// `None`: what has become of it is about to be known.
    outcome: Option<Outcome>,
}

/// What has become of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was not made, or nobody can say: it is to be made, with this tag if that is not 0.
    Unmade(Tag),
    Answered(Box<Answered>),
}

/// A call that was left and is not known to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) key: Key,
    pub(crate) tag: Tag,
    pub(crate) call: u16,
}

impl Calls {
    pub(super) fn new(table: Table<WORDS>) -> Calls {
        let mut left = HashMap::new();
        for (row, words) in table.rows() {
            let state = words[STATE];
            let outcome = (state & IS_ANSWERED != 0).then(|| {
                let bytes: Vec<u8> =
                    words[MESSAGE..].iter().flat_map(|word| word.to_le_bytes()).collect();
                let (message, payload) = bytes.split_at(size_of::<Message>());
                let len = usize::try_from(state & LENGTH).unwrap_or(0);
                let payload = payload[..len.min(PAYLOAD_MAX)].to_vec();
                let message = zerocopy::FromBytes::read_from_bytes(message);
                message.map_or(Outcome::Unmade(Tag(0)), |message| {
                    Outcome::Answered(Box::new(Answered { message, payload }))
                })
            });
            // Without a tag it was not made, or has ended otherwise.
            let outcome = outcome.or((words[TAG] == 0).then_some(Outcome::Unmade(Tag(0))));
            let call = u16::try_from(words[CALL]).unwrap_or(0);
            let (ino, is_told) = (words[INODE], state & IS_TOLD != 0);
            let it = Left { row, call, ino, progress: progress_of(state), is_told, outcome };
            left.insert(Key(words[KEY]), it);
        }
        let state = Mutex::new(State { own: HashMap::new(), left });
        Calls { table, state, changed: Condvar::new() }
    }

    /// Calls that were left of which it is not known what has become.
    pub(crate) fn open(&self) -> Vec<Open> {
        let state = self.state();
        let open = state.left.iter().filter(|(_, left)| left.outcome.is_none());
        let it = |(key, left): (&Key, &Left)| {
            let tag = Tag(self.table.word(left.row, TAG));
            Open { key: *key, tag, call: left.call }
        };
        open.map(it).collect()
    }

    /// The keys of all that were left.
    pub(crate) fn left(&self) -> Vec<Key> {
        self.state().left.keys().copied().collect()
    }

    /// It is known what has become of a call that was left.
    pub(crate) fn resolve(&self, key: Key, outcome: Outcome) {
        let mut state = self.state();
        if let Some(left) = state.left.get_mut(&key) {
            if let Outcome::Answered(answered) = &outcome {
                self.write(left.row, answered);
            }
            left.outcome = Some(outcome);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Was a call left that belongs to `key`?
    pub(crate) fn has_left(&self, key: Key) -> bool {
        self.state().left.contains_key(&key)
    }

    /// How far a request had come before the call that was left for it.
    pub(crate) fn left_progress(&self, key: Key) -> Option<u64> {
        self.state().left.get(&key).map(|left| left.progress)
    }

    /// What has become of call number `call` that was left for `key`, when that is known, and how far its request had come before. It is told once;
    /// until [`Calls::end`] a successor would be told the same. `None`: none was.
    pub(crate) fn take(&self, key: Key, call: u16) -> Option<(Outcome, u64)> {
        let mut state = self.state();
        loop {
            let left = state.left.get(&key).filter(|left| left.call == call)?;
            if let Some(outcome) = left.outcome.clone() {
                let (row, progress) = (left.row, left.progress);
                state.left.remove(&key);
                state.own.insert(key, row);
                return Some((outcome, progress));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A call that was left for `key` and answered, and nobody knows; with the inode that it was to open.
    pub(crate) fn orphan(&self, key: Key) -> Option<(Answered, u64)> {
        let state = self.state();
        let left = state.left.get(&key).filter(|left| !left.is_told)?;
        match left.outcome.as_ref()? {
            Outcome::Answered(answered) => Some(((**answered).clone(), left.ino)),
            Outcome::Unmade(_) => None,
        }
    }

    /// Call number `call` is about to be made for `key` with `tag`.
    pub(crate) fn begin(&self, key: Key, call: u16, tag: Tag, ino: u64) {
        if key == Key::NONE {
            return;
        }
        let mut state = self.state();
        match state.own.get(&key).copied() {
            // The one that was left, with its own tag: it is known as such all the time.
            Some(row)
                if self.table.word(row, TAG) == tag.0
                    && self.table.word(row, STATE) & IS_ANSWERED == 0 => {}
            // Another attempt, or the next part of the request.
            Some(row) => {
                self.table.set(row, TAG, 0);
                self.table.set(row, STATE, self.unanswered(row));
                self.table.set(row, INODE, ino);
                self.table.set(row, CALL, call.into());
                self.table.set(row, TAG, tag.0);
            }
            None => {
                let mut words = [0; WORDS];
                (words[KEY], words[TAG], words[CALL]) = (key.0, tag.0, call.into());
                words[INODE] = ino;
                if let Some(row) = self.table.must_put(words) {
                    state.own.insert(key, row);
                }
            }
        }
    }

    /// The call that was begun for `key` is answered.
    pub(crate) fn answer(&self, key: Key, message: &Message, payload: &[u8]) {
        if key == Key::NONE {
            return;
        }
        let state = self.state();
        if let Some(row) = state.own.get(&key) {
            let payload = payload.get(..PAYLOAD_MAX).unwrap_or(payload).to_vec();
            self.write(*row, &Answered { message: *message, payload });
        }
    }

    /// Somebody is about to be told the answer for `key`.
    pub(crate) fn tell(&self, key: Key) {
        if let Some(row) = self.state().own.get(&key) {
            self.table.set(*row, STATE, self.table.word(*row, STATE) | IS_TOLD);
        }
    }

    /// The call that was begun for `key` had no effect, and is to be made once more.
    pub(crate) fn again(&self, key: Key) {
        if let Some(row) = self.state().own.get(&key) {
            self.table.set(*row, TAG, 0);
            self.table.set(*row, STATE, self.unanswered(*row));
        }
    }

    /// The state of a row, without an answer.
    fn unanswered(&self, row: usize) -> u64 {
        progress_of(self.table.word(row, STATE)) << PROGRESS_AT
    }

    fn write(&self, row: usize, answered: &Answered) {
        let mut bytes = zerocopy::IntoBytes::as_bytes(&answered.message).to_vec();
        bytes.extend_from_slice(&answered.payload);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        for (index, word) in bytes.as_chunks().0.iter().enumerate() {
            self.table.set(row, MESSAGE + index, u64::from_le_bytes(*word));
        }
        let len = answered.payload.len() as u64 & LENGTH;
        self.table.set(row, STATE, IS_ANSWERED | self.unanswered(row) | len);
    }

    /// How far the request of `key` has come, before it makes another call.
    pub(crate) fn progress(&self, key: Key, progress: u64) {
        if let Some(row) = self.state().own.get(&key) {
            self.table.set(*row, TAG, 0);
            self.table.set(*row, STATE, progress << PROGRESS_AT & !(IS_ANSWERED | IS_TOLD));
        }
    }

    /// The tag with which what was left for `key` would have to be made.
    pub(crate) fn unmade(&self, key: Key) -> Option<Tag> {
        match self.state().left.get(&key)?.outcome.as_ref()? {
            Outcome::Unmade(tag) => Some(*tag),
            Outcome::Answered(_) => None,
        }
    }

    /// Nobody will ask for what belongs to `key` again.
    pub(crate) fn end(&self, key: Key) {
        let mut state = self.state();
        let own = state.own.remove(&key);
        let left = state.left.remove(&key).map(|left| left.row);
        drop(state);
        for row in own.into_iter().chain(left) {
            self.table.remove(row);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
