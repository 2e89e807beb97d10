//! The services of the system group for programs of the daemon's own user: what is asked, what is answered, a client.
//!
//! A connection to `admin.sock` on which [`super::admin::Query::Services`] was answered with [`Reply::Ready`] takes
//! requests, one JSON line each, and answers each before it takes the next. It has one session with the group at
//! most: locks, leaderships, places at a barrier, memberships and keys that are leased end with the connection, however that
//! ends. Hanging up is how one stops waiting.

use super::admin::{self, Query};
use crate::limits::SERVICE_LINE_MAX;
use ::group::limits::{KEY_MAX, RANGE_BYTES_MAX, VALUE_MAX};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

// Whatever the group answers is a line.
const _: () = assert!(6 * (RANGE_BYTES_MAX + KEY_MAX + VALUE_MAX) < SERVICE_LINE_MAX);

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
    /// Changes of such keys from revision `from` on (none: from now on), until the connection ends.
    Watch {
        start: Text,
        end: Option<Text>,
        from: Option<u64>,
    },
    /// Takes a lock; waits for it, or not.
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
    /// Joins a group and gets what its members get, until the connection ends.
    Listen {
        group: String,
    },
    /// Joins a group, if this connection has not, to send to it. Such a member gets nothing.
    Cast {
        group: String,
        bytes: Text,
    },
    Leave {
        group: String,
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
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
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
    },
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
    /// The watch has begun: changes from this revision on follow.
    Watching {
        from: u64,
    },
    Changes {
        changes: Vec<Change>,
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
    /// Against a limit or a rule, as told.
    Refused,
}

/// Whether a node may act for the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The group is not at work here.
    #[default]
    Stopped,
    Joining,
    Up,
    Fenced,
}

/// What a node knows of the system group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub node: u16,
    pub name: String,
    pub standing: Standing,
    pub leader: Option<u16>,
    pub term: u64,
    /// Index of the last command that this node has carried out.
    pub applied: u64,
    /// The last change of a key.
    pub revision: u64,
    pub sessions: usize,
    /// Why nothing can be decided, if so.
    pub trouble: Option<String>,
    pub members: Vec<MemberStatus>,
}

/// A node of the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub node: u16,
    pub name: String,
    pub is_voter: bool,
    /// The group takes it for up.
    pub is_up: bool,
    /// There is a link to it.
    pub is_linked: bool,
    /// Milliseconds since the last two-way contact of two voters.
    pub contact_ms: Option<u64>,
}

/// The system group as the dvkd with the run directory `run` knows it; none if that node is alone.
///
/// # Errors
/// One sentence: no dvkd there, or it does not answer.
pub fn group_status(run: &Path) -> Result<Option<GroupStatus>> {
    admin::question(run, Query::Group)
}

/// A connection that uses the services. What it holds ends with it.
#[derive(Debug)]
pub struct Client {
    stream: Arc<UnixStream>,
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the dvkd whose run directory is `run`.
    ///
    /// # Errors
    /// One sentence: no dvkd there, it is alone or has too much to do, or it is somebody else's.
    pub fn connect(run: &Path) -> Result<Client> {
        let stream = admin::open(run, Query::Services)?;
        let mut client =
            Client { reader: BufReader::new(stream.try_clone()?), stream: Arc::new(stream) };
        match client.receive()? {
            Some(Reply::Ready) => {}
            Some(Reply::Failed { why, .. }) => bail!("{why}"),
            Some(_) => bail!("dvkd's answer is not understood; is it another version?"),
            None => bail!("dvkd refuses: only root and its own user may use the system group"),
        }
        // From here on answers may take as long as others hold a lock.
        client.stream.set_read_timeout(None)?;
        Ok(client)
    }

    /// Asks; the answer is with [`Client::receive`].
    ///
    /// # Errors
    /// dvkd has ended.
    pub fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        (&*self.stream).write_all(line.as_bytes()).context("dvkd has ended")
    }

    /// The next line of an answer; none if dvkd has ended the connection.
    ///
    /// # Errors
    /// The line is not understood, or does not come.
    pub fn receive(&mut self) -> Result<Option<Reply>> {
        let mut line = String::new();
        let mut limited = (&mut self.reader).take(SERVICE_LINE_MAX as u64);
        limited.read_line(&mut line).context("dvkd does not answer")?;
        if line.is_empty() {
            return Ok(None);
        }
        let reply = serde_json::from_str(&line);
        reply.map(Some).context("dvkd's answer is not understood; is it another version?")
    }

    /// Asks and waits for the answer; `waiting` is told what for, if it takes long.
    ///
    /// # Errors
    /// dvkd has ended.
    pub fn ask(&mut self, request: &Request, mut waiting: impl FnMut(&str)) -> Result<Reply> {
        self.send(request)?;
        loop {
            match self.receive()? {
                Some(Reply::Waiting { why }) => waiting(&why),
                Some(reply) => return Ok(reply),
                None => bail!("dvkd has ended the connection; what was asked may have happened"),
            }
        }
    }

    /// The connection, to end it from another thread.
    pub fn stream(&self) -> Arc<UnixStream> {
        self.stream.clone()
    }
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
            serde_json::from_str::<Reply>(&line).ok();
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
        let request = Request { op, timeout_ms: Some(7) };
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
