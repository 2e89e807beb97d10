//! Signs of life of sessions, gathered by the leader: one command tells of all that have come meanwhile.
//!
//! A command is written to the disks of all nodes, and each session gives four signs in its time. So one waits for
//! others: for an eighth of the session's time at most, and less if that is nearly over. Who gives them pauses after each
//! answer; so those of sessions with the same time soon come together. A sign counts from when the leader got it,
//! however long it has waited. The first of a new leader do not wait: it has taken time to elect it.

use crate::command::{Answer, ClientId, Command, Done, Millis, Op, Refusal, Sign};
use crate::group::{ATTEMPT, Group};
use crate::limits::SIGNS_MAX;
use crate::types::RaftId;
use crate::wire::Tell;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};

/// No sign waits for others for longer, whatever its session's time: who has asked would ask again ([`ATTEMPT`]).
const WAIT_MAX: Duration = Duration::from_millis(250);

const _: () = assert!(WAIT_MAX.as_millis() < ATTEMPT.as_millis());

/// How long a sign of a session with this time may wait for others.
fn patience(ttl: Millis) -> Duration {
    Duration::from_millis(ttl / 8).min(WAIT_MAX)
}

/// How long who gives signs of life pauses after each answer.
pub(crate) fn pause(ttl: Millis) -> Duration {
    Duration::from_millis(ttl / 4) - patience(ttl)
}

/// The signs of life that wait.
#[derive(Debug, Default)]
pub(crate) struct Signs {
    gathered: Mutex<Gathered>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Gathered {
    /// When each came, by session and by the node that spoke for it.
    signs: BTreeMap<(ClientId, RaftId), Millis>,
    answers: Vec<((ClientId, RaftId), oneshot::Sender<Tell>)>,
    /// When they are to be passed on.
    due: Option<Instant>,
    /// In which signs were passed on last.
    term: u64,
}

impl Gathered {
    /// `now` is the group's time, `most` for how long this one may wait.
    fn add(
        &mut self,
        of: (ClientId, RaftId),
        now: Millis,
        most: Duration,
    ) -> oneshot::Receiver<Tell> {
        let (sender, receiver) = oneshot::channel();
        self.signs.insert(of, now);
        self.answers.push((of, sender));
        let latest = Instant::now() + most;
        let due = self.due.map_or(latest, |due| due.min(latest));
        self.due = Some(if self.signs.len() < SIGNS_MAX { due } else { Instant::now() });
        receiver
    }
}

impl Signs {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// Takes the sign of life of a session as the leader.
    pub(crate) async fn take_sign(&self, from: RaftId, client: ClientId) -> Tell {
        let Some(now) = self.clock() else { return Tell::NotLeader(self.leader()) };
        let most = self.look(|state| state.life_of(client)).map(|(ttl, deadline)| {
            let left = Duration::from_millis(deadline.saturating_sub(now));
            patience(ttl).min(left / 4)
        });
        let term = self.term();
        let signs = &self.0.signs;
        let answer = {
            let mut gathered = signs.gathered();
            let most = most.filter(|_| gathered.term == term);
            gathered.add((client, from), now, most.unwrap_or_default())
        };
        signs.more.notify_one();
        // Nobody answers if this node ends.
        answer.await.unwrap_or(Tell::Failed)
    }
}

/// Passes the signs of life on when the first of them has waited for long enough.
pub(crate) async fn pass_on(group: Group) {
    let signs = &group.0.signs;
    while group.is_running() {
        let due = signs.gathered().due;
        match due {
            Some(due) if due <= Instant::now() => {
                let mut gathered = signs.gathered();
                let term = group.term();
                let Gathered { signs, answers, .. } =
                    std::mem::replace(&mut *gathered, Gathered { term, ..Gathered::default() });
                drop(gathered);
                tokio::spawn(commit(group.clone(), signs, answers));
            }
            Some(due) => {
                timeout(due - Instant::now(), signs.more.notified()).await.ok();
            }
            None => {
                timeout(crate::keeping::LOOK, signs.more.notified()).await.ok();
            }
        }
    }
}

/// Has the group take them, and tells those who wait.
async fn commit(
    group: Group,
    signs: BTreeMap<(ClientId, RaftId), Millis>,
    answers: Vec<((ClientId, RaftId), oneshot::Sender<Tell>)>,
) {
    let places: BTreeMap<(ClientId, RaftId), u32> = signs.keys().copied().zip(0..).collect();
    let signs = signs.into_iter().map(|((client, from), at)| Sign { client, from, at });
    let op = Op::Alive { signs: signs.collect() };
    let command = Command::alone(op);
    let tell = match group.write(command).await {
        Tell::Answer { index, answer: Ok(Done::Alive { ended }) } => {
            for (of, waiting) in answers {
                let is_over = places.get(&of).is_none_or(|place| ended.contains(place));
                let answer: Answer = if is_over { Err(Refusal::NoSession) } else { Ok(Done::Fine) };
                // Whoever has given up gives another.
                waiting.send(Tell::Answer { index, answer }).ok();
            }
            return;
        }
        Tell::NotLeader(leader) => Some(leader),
        _ => None,
    };
    for (_, waiting) in answers {
        let tell = tell.map_or(Tell::Failed, Tell::NotLeader);
        waiting.send(tell).ok();
    }
}
