//! What the nodes of the group say to each other, and its bytes.

use crate::command::{Answer, ClientId, Command, DecodeError, decode, encode};
use crate::limits::COMMAND_MAX;
use crate::types::{LogId, RaftId, SnapshotMeta, Types, Vote};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

/// Version of these messages: their first byte.
pub const VERSION: u8 = 6;

/// Bytes of the longest message: as many log entries as are read at once, one more, and what is around them.
pub const WIRE_MAX: usize = 2 * COMMAND_MAX + (64 << 10);

/// Bytes of a snapshot in one message.
pub(crate) const PIECE: usize = 48 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Wire {
    /// I am here, these I have heard of late, this is the last entry of my log, and I lead.
    Ping {
        hears: Vec<RaftId>,
        last: Option<LogId>,
        leads: Option<Leads>,
    },
    Ask {
        id: u64,
        ask: Ask,
    },
    Tell {
        id: u64,
        tell: Tell,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<RaftId>),
    Piece(Piece),
    /// A command for the leader, who stamps it.
    Submit(Command),
    /// A sign of life of a session.
    Alive(ClientId),
    /// The index that a reader has to wait for.
    ReadIndex,
}

impl Ask {
    /// May `from` ask this? A leader and a candidate speak for themselves, and so does a node of its own place in the tables;
    /// what only the leader does, it asks of itself.
    pub(crate) fn may_be_of(&self, from: RaftId) -> bool {
        let is_of = |vote: &Vote| vote.leader_id.voted_for().is_none_or(|node| node == from);
        match self {
            Ask::Append(request) => is_of(&request.vote),
            Ask::Vote(request) => is_of(&request.vote),
            Ask::Piece(piece) => is_of(&piece.vote),
            Ask::Submit(command) => command.may_be_of(from),
            Ask::Alive(_) | Ask::ReadIndex => true,
        }
    }
}

/// Says that its sender leads.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Leads {
    /// With which a majority has made it leader.
    pub(crate) vote: Vote,
    /// Index of the last entry that is committed, as far as it knows.
    pub(crate) committed: u64,
}

impl Leads {
    /// May `from` say this, and does a majority have it so?
    pub(crate) fn may_be_of(&self, from: RaftId) -> bool {
        self.vote.leader_id.voted_for() == Some(from) && self.vote.is_committed()
    }
}

/// A part of a snapshot. `total` bytes are all of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) total: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Tell {
    Append(AppendEntriesResponse<RaftId>),
    Vote(VoteResponse<RaftId>),
    /// So many bytes of the snapshot are there; go on behind them.
    Have(u64),
    /// The snapshot is installed, or refused because of a later vote.
    Installed(Vote),
    /// The answer of a command, and its place in the log.
    Answer {
        index: u64,
        answer: Answer,
    },
    ReadIndex(u64),
    /// I do not lead; that one does, as far as I know.
    NotLeader(Option<RaftId>),
    /// Nothing could be done; ask again.
    Failed,
}

impl Wire {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(encode(self));
        bytes
    }

    /// # Errors
    /// Another version, too many bytes, no message, or entries of which some are missing.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Wire, WireError> {
        let (version, rest) = bytes.split_first().ok_or(DecodeError::Malformed)?;
        if *version != VERSION {
            return Err(WireError::Version { theirs: *version });
        }
        let wire = decode(rest, WIRE_MAX)?;
        match &wire {
            Wire::Ask { ask: Ask::Append(request), .. } if !is_whole(request) => {
                Err(DecodeError::Malformed.into())
            }
            _ => Ok(wire),
        }
    }
}

/// Does each entry come next? openraft 0.9 takes it for granted.
fn is_whole(request: &AppendEntriesRequest<Types>) -> bool {
    let next = request.prev_log_id.map_or(0, |last| last.index.saturating_add(1));
    request.entries.iter().zip(next..).all(|(entry, index)| entry.log_id.index == index)
}

/// Are these the bytes of a message? For the fuzzer.
pub fn is_message(bytes: &[u8]) -> bool {
    Wire::decode(bytes).is_ok()
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the other node's group speaks version {theirs}, this one {VERSION}")]
    Version { theirs: u8 },
    #[error("message of the group: {0}")]
    Bytes(#[from] DecodeError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{ClientId, Op};
    use proptest::prelude::*;

    fn messages() -> Vec<Wire> {
        let command = Command {
            now: 1,
            from: 1,
            client: ClientId(2),
            sequence: 3,
            acked: 2,
            op: Op::Lock { name: "l".into(), wait: true },
        };
        let payload = openraft::EntryPayload::Normal(command.clone());
        let log_id = openraft::LogId::new(openraft::CommittedLeaderId::new(1, 2), 3);
        let append = AppendEntriesRequest {
            vote: Vote::new_committed(1, 2),
            prev_log_id: Some(openraft::LogId::new(log_id.leader_id, 2)),
            entries: vec![crate::types::Entry { log_id, payload }],
            leader_commit: Some(log_id),
        };
        vec![
            Wire::Ping {
                hears: vec![1, 2],
                last: Some(log_id),
                leads: Some(Leads { vote: append.vote, committed: 6 }),
            },
            Wire::Ask { id: 1, ask: Ask::Append(append) },
            Wire::Ask { id: 2, ask: Ask::Submit(command) },
            Wire::Tell {
                id: 2,
                tell: Tell::Answer { index: 7, answer: Err(crate::command::Refusal::Taken) },
            },
            Wire::Tell { id: 3, tell: Tell::Append(AppendEntriesResponse::Conflict) },
        ]
    }

    #[test]
    fn every_message_is_read_as_it_was_written_and_no_part_of_it_is_one() {
        for message in messages() {
            let bytes = message.encode();
            let again = Wire::decode(&bytes).unwrap();
            assert_eq!(format!("{again:?}"), format!("{message:?}"));
            for length in 0..bytes.len() {
                assert!(Wire::decode(&bytes[..length]).is_err(), "{length} of {message:?}");
            }
        }
    }

    #[test]
    fn entries_of_which_some_are_missing_are_refused() {
        let Some(Wire::Ask { id, ask: Ask::Append(append) }) = messages().into_iter().nth(1) else {
            panic!("it is the second");
        };
        let refused = |prev: Option<u64>, entries: &[u64]| {
            let leader = append.entries[0].log_id.leader_id;
            let at = |index| openraft::LogId::new(leader, index);
            let entry = |index: &u64| {
                let payload = append.entries[0].payload.clone();
                crate::types::Entry { log_id: at(*index), payload }
            };
            let entries = entries.iter().map(entry).collect();
            let append =
                AppendEntriesRequest { prev_log_id: prev.map(at), entries, ..append.clone() };
            Wire::decode(&Wire::Ask { id, ask: Ask::Append(append) }.encode()).is_err()
        };
        let whole = [(None, vec![0, 1]), (Some(2), vec![3, 4]), (Some(u64::MAX), vec![])];
        assert!(whole.iter().all(|(prev, entries)| !refused(*prev, entries)));
        let holes =
            [(None, vec![1]), (Some(2), vec![4]), (Some(2), vec![3, 5]), (Some(2), vec![2])];
        assert!(holes.iter().all(|(prev, entries)| refused(*prev, entries)));
    }

    #[test]
    fn another_version_is_refused_with_both_named() {
        let mut bytes = messages()[0].encode();
        bytes[0] = 9;
        let error = Wire::decode(&bytes).unwrap_err().to_string();
        assert_eq!(error, format!("the other node's group speaks version 9, this one {VERSION}"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            is_message(&bytes);
            is_message(&[&[VERSION], &bytes[..]].concat());
        }
    }
}
