//! Requests, answers, and what stands in them.

use serde::{Deserialize, Serialize};

/// Bytes as JSON: a string if they are UTF-8, else `{"hex": "00ff"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Form", into = "Form")]
pub struct Text(pub Vec<u8>);

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Plain(String),
    Hex {
        #[serde(deserialize_with = "from_hex", serialize_with = "to_hex")]
        hex: Vec<u8>,
    },
}

impl From<Text> for Form {
    fn from(text: Text) -> Form {
        match String::from_utf8(text.0) {
            Ok(plain) => Form::Plain(plain),
            Err(error) => Form::Hex { hex: error.into_bytes() },
        }
    }
}

impl From<Form> for Text {
    fn from(form: Form) -> Text {
        match form {
            Form::Plain(plain) => Text(plain.into_bytes()),
            Form::Hex { hex } => Text(hex),
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text(text.as_bytes().to_vec())
    }
}

fn to_hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&digits)
}

fn from_hex<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let digits = String::deserialize(deserializer)?;
    let wrong = || serde::de::Error::custom("hex has pairs of hexadecimal digits");
    let pair = |pair: &[u8]| -> Option<u8> {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let value = digit(*pair.first()?)? * 16 + digit(*pair.get(1)?)?;
        u8::try_from(value).ok()
    };
    digits.as_bytes().chunks(2).map(|chunk| pair(chunk).ok_or_else(wrong)).collect()
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A key's value, as of now in the whole cluster.
    Get {
        key: Text,
    },
    /// Stores a value. See [`Lease`].
    Put {
        key: Text,
        value: Text,
        lease: Lease,
    },
    Delete {
        key: Text,
    },
    /// Stores a value, or deletes the key if there is none, if the key's last change was at the revision
    /// `expected` (0: there is no such key).
    Swap {
        key: Text,
        expected: u64,
        value: Option<Text>,
        lease: Lease,
    },
    /// Keys from `start` up to and without `end`.
    Range {
        start: Text,
        end: Option<Text>,
        limit: usize,
    },
    /// Waits for changes of such keys of revision `from` or later. Without it the answer is at once from where on to
    /// ask, if everything behind now shall be seen.
    Watch {
        start: Text,
        end: Option<Text>,
        from: Option<u64>,
    },
    /// Takes a lock; waits for it, or not. The session has it: what it has it is given again.
    Lock {
        name: String,
        wait: bool,
    },
    Unlock {
        name: String,
    },
    /// Becomes a candidate and waits until it leads.
    Campaign {
        name: String,
        value: Text,
    },
    Resign {
        name: String,
    },
    /// Who leads an election.
    Leader {
        name: String,
    },
    /// Waits until so many are there.
    Barrier {
        name: String,
        parties: u32,
    },
    /// Joins a group.
    Join {
        group: String,
    },
    /// Waits for what a member gets behind the number `after`; everything up to that it has dealt with.
    Receive {
        group: String,
        after: u64,
    },
    /// The state that a member has after the view with this number, for those who have joined.
    Give {
        group: String,
        view: u64,
        state: Text,
    },
    /// Sends to all members, the sender too.
    Cast {
        group: String,
        bytes: Text,
    },
    Leave {
        group: String,
    },
    /// A lease of so many milliseconds. It does not end with this connection, but is no other's.
    Grant {
        ttl_ms: u64,
    },
    /// Gives a lease that was granted here its time anew, or ends it and its keys.
    Renew {
        lease: u64,
        ends: bool,
    },
    /// The asker does not wait for the request with this number any more. This has no answer; that one still has.
    Cancel {
        id: u64,
    },
}

/// With what a key ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lease {
    /// With nothing.
    #[default]
    None,
    /// With this connection.
    Connection,
    /// After so many milliseconds.
    After(u64),
    /// With this lease, which was granted to this connection.
    Held(u64),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The asker's number for it: not 0, and of no other open request.
    pub id: u64,
    pub op: Op,
    /// How long it may take. None: as long as it takes to wait for somebody, else `SERVICE_PATIENCE`.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub key: Text,
    pub value: Text,
    /// The revision that made the key, and the last that changed it.
    pub created: u64,
    pub modified: u64,
    /// How often it was changed since it was made, from 1.
    pub version: u64,
    /// The session that it ends with.
    pub lease: Option<u64>,
}

/// A change of a key; without a value it was deleted, or its lease ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub revision: u64,
    pub key: Text,
    pub value: Option<Text>,
}

/// What a member of a group gets, numbered in the one order that all members see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    Message {
        from: u64,
        bytes: Text,
    },
    /// Who is in the group from here on, the longest member first.
    View {
        members: Vec<u64>,
        /// All who had the group's state are gone: whoever gets this begins with none.
        fresh: bool,
        /// Others wait for the state that this member has after this view: [`Op::Give`].
        gives: bool,
    },
    /// The group's state after the item with this number: what a joiner gets first.
    State {
        bytes: Text,
    },
}

/// An answer, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The request's number; 0: the connection is meant.
    pub id: u64,
    pub reply: Reply,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Requests may come.
    Ready,
    /// The answer follows; this is what it waits for.
    Waiting {
        why: String,
    },
    /// The session may have ended: what it held may be somebody else's. The connection ends.
    Lost {
        why: String,
    },
    Failed {
        failure: Failure,
        why: String,
    },
    Done,
    Value {
        entry: Option<Entry>,
    },
    /// A change of a key; `found` says whether it was there before.
    Changed {
        revision: u64,
        found: bool,
    },
    Range {
        revision: u64,
        entries: Vec<Entry>,
        more: bool,
    },
    /// Changes in order, none if time was over, and from where on to ask for those that follow.
    Changes {
        changes: Vec<Change>,
        next: u64,
    },
    Locked {
        token: u64,
    },
    Elected {
        epoch: u64,
    },
    /// Who leads: the epoch, what it says of itself, its session.
    Leader {
        leader: Option<(u64, Text, u64)>,
    },
    Passed,
    Leased {
        lease: u64,
    },
    /// The session is a member of the group under this number, since the view `view`.
    Joined {
        member: u64,
        view: u64,
    },
    Item {
        number: u64,
        item: Item,
    },
    Sent {
        number: u64,
    },
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// No majority could be asked. It may have happened.
    Unavailable,
    /// This node is cut off: nothing has happened.
    Fenced,
    /// Its time was over before it was one's turn.
    Timeout,
    /// The lock is somebody else's.
    Taken,
    /// The key's last change was at this revision, 0 if it is not there.
    Revision(u64),
    /// Changes are remembered from this revision on only.
    Forgotten(u64),
    /// One of those at the barrier has died or gone.
    Broken,
    /// The lock, the leadership, the membership or the lease is not this session's, or has ended.
    NotHeld,
    /// A limit is reached, as told.
    Limit,
    /// Against a rule, as told.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_survive_json(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let text = Text(bytes);
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text);
        }

        #[test]
        fn no_line_makes_the_decoder_panic(line in ".{0,200}") {
            serde_json::from_str::<Request>(&line).ok();
            serde_json::from_str::<Told>(&line).ok();
        }
    }

    #[test]
    fn a_request_survives_its_line_and_no_part_of_it_is_one() {
        let op = Op::Swap {
            key: "k".into(),
            expected: 3,
            value: Some(Text(vec![0xff, 0])),
            lease: Lease::After(5),
        };
        let request = Request { id: 1, op, timeout_ms: Some(7) };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        for end in 0..line.len() {
            assert!(serde_json::from_str::<Request>(&line[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_hexadecimal_and_junk_is_refused() {
        let check = |json: &str, expected: Option<&[u8]>| {
            let text = serde_json::from_str::<Text>(json).ok();
            assert_eq!(text.as_ref().map(|text| &text.0[..]), expected, "{json}");
        };
        assert_eq!(serde_json::to_string(&Text(vec![0, 0xfe])).unwrap(), "{\"hex\":\"00fe\"}");
        check("\"a\"", Some(b"a"));
        check("{\"hex\":\"00FE\"}", Some(&[0, 0xfe]));
        check("{\"hex\":\"0\"}", None);
        check("{\"hex\":\"0é\"}", None);
        check("{\"hex\":\"+1\"}", None);
        check("7", None);
    }
}
