//! Locks, leaderships and barriers: what a request waits for, what its session has then, and how it gives up.

use super::{Answer, Answered, Command, Served, Text, Trouble, over, strange};
use crate::dvkd::answers::refused;
use crate::dvkd::services::{Failure, Op, Reply};
use ::group::command::{ClientId, Done, Refusal};
use ::group::state::State;
use ::group::{Failure as Refused, Realm, Session, Unavailable};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

impl Served {
    /// Waits for something that depends on others, also while the group has no majority.
    ///
    /// The limit is for the others. The question itself takes as long as the group takes to answer it, or as the session
    /// lives: so whoever does not want to wait gets what is free, and it is known what there is to be given up.
    pub(super) async fn wait_for(
        &self,
        what: Awaited,
        limit: Option<Duration>,
        cancelled: &Notify,
    ) -> Answered {
        let until = limit.map(|limit| Instant::now() + limit);
        let Some(_asking) = Asking::begin(self, &what) else {
            let why = "this session asks for that already, in another thread";
            return Err(Trouble::Failed(Failure::Refused, why.into()));
        };
        let session = self.session_within(limit).await?;
        let client = session.client();
        let held_before = self.cx.group.look(|state| what.is_held(state, client));
        let mut taking = pin!(what.take(session));
        let is_cancelled = tokio::select! {
            biased;
            taken = &mut taking => return self.cx.explain(taken).map(Answer::Say),
            () = session.lost() => return Ok(Answer::Say(self.cx.lost())),
            () = over(until) => false,
            () = cancelled.notified() => true,
        };
        let taken = tokio::select! {
            biased;
            taken = &mut taking => Some(taken),
            () = session.lost() => return Ok(Answer::Say(self.cx.lost())),
            () = self.cx.group.wait(|state| what.is_waiting(state, client).then_some(())) => None,
        };
        let why = self.cx.why(&what);
        let is_in_line = taken.is_none();
        match taken {
            // What it had before stays its own; what nobody waits for any more does not.
            Some(Ok(_)) if is_cancelled && !held_before => {}
            Some(taken) => return self.cx.explain(taken).map(Answer::Say),
            None => {}
        }
        if !self.give_up(session, &what).await? && is_in_line {
            // Too late: it has ended meanwhile.
            return self.cx.explain(taking.await).map(Answer::Say);
        }
        Err(Trouble::Failed(Failure::Timeout, format!("gave up: {why}")))
    }

    /// Takes back what was asked for; false if there is nothing to take back any more. If the group does not hear it, only the
    /// session's end does it: until then it may be given what nobody knows of.
    async fn give_up(
        &self,
        session: &Session,
        what: &Awaited,
    ) -> std::result::Result<bool, Trouble> {
        let heard = tokio::select! {
            heard = session.run(what.give_up()) => heard,
            () = session.lost() => Err(Unavailable.into()),
        };
        match heard {
            Ok(_) => Ok(true),
            Err(Refused::Refused(Refusal::NotHeld)) => Ok(false),
            Err(error) => {
                let why = self.cx.trouble().unwrap_or_else(|| error.to_string());
                Err(Trouble::Lost(format!("the session ends, as it could not give up: {why}")))
            }
        }
    }

    /// Takes a lock, if it is free and no other request of this session is about to get it.
    pub(super) async fn try_lock(&self, name: &str, patience: Duration) -> Answered {
        let name = self.cx.name(name)?;
        let taken = || self.cx.explain(Err(Refusal::Taken.into()));
        let Some(_asking) = Asking::begin(self, &Awaited::Lock(name.clone())) else {
            return taken();
        };
        match self.run(Command::Lock { name, wait: false }, patience).await? {
            Done::Locked { fence } => Ok(Answer::Say(Reply::Locked { token: fence })),
            // It has a place in line that nobody waits at.
            Done::Waiting => taken(),
            other => Err(strange(&other)),
        }
    }
}

/// What somebody waits for.
pub(in crate::dvkd) enum Awaited {
    Lock(String),
    Election(String, Text),
    Barrier(String, u32),
}

/// A session that asks for something that one waits for; it does so once at a time, as having and giving up are for all
/// of it.
struct Asking<'a>(&'a Served, (u8, String));

impl Asking<'_> {
    fn begin<'a>(served: &'a Served, what: &Awaited) -> Option<Asking<'a>> {
        let key = match what {
            Awaited::Lock(name) => (0, name.clone()),
            Awaited::Election(name, _) => (1, name.clone()),
            Awaited::Barrier(name, _) => (2, name.clone()),
        };
        let is_first = served.notes().asked.insert(key.clone());
        is_first.then_some(Asking(served, key))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.notes().asked.remove(&self.1);
    }
}

impl Awaited {
    pub(super) fn of(op: &Op) -> Option<Awaited> {
        match op {
            Op::Lock { name, wait: true } => Some(Awaited::Lock(name.clone())),
            Op::Campaign { name, value } => Some(Awaited::Election(name.clone(), value.clone())),
            Op::Barrier { name, parties } => Some(Awaited::Barrier(name.clone(), *parties)),
            _ => None,
        }
    }

    /// With its name as the state has it.
    pub(super) fn placed(self, realm: Realm) -> std::result::Result<Awaited, Trouble> {
        let place = |name: String| realm.name(&name).map_err(|refusal| refused(&refusal));
        Ok(match self {
            Awaited::Lock(name) => Awaited::Lock(place(name)?),
            Awaited::Election(name, value) => Awaited::Election(place(name)?, value),
            Awaited::Barrier(name, parties) => Awaited::Barrier(place(name)?, parties),
        })
    }

    async fn take(&self, session: &Session) -> std::result::Result<Reply, Refused> {
        loop {
            let taken = match self {
                Awaited::Lock(name) => {
                    session.lock(name).await.map(|token| Reply::Locked { token })
                }
                Awaited::Election(name, value) => {
                    let elected = session.campaign(name, &value.0).await;
                    elected.map(|epoch| Reply::Elected { epoch })
                }
                Awaited::Barrier(name, parties) => {
                    session.barrier(name, *parties).await.map(|()| Reply::Passed)
                }
            };
            // One who has perhaps been at a barrier must not wait at the next one.
            let again = !matches!(self, Awaited::Barrier(..));
            if !again || !matches!(taken, Err(Refused::Unavailable(_))) {
                return taken;
            }
        }
    }

    /// Has the session got it?
    fn is_held(&self, state: &State, client: ClientId) -> bool {
        match self {
            Awaited::Lock(name) => state.lock_token(name, client).is_some(),
            Awaited::Election(name, _) => state.epoch(name, client).is_some(),
            Awaited::Barrier(..) => false,
        }
    }

    /// Does the session wait for others?
    fn is_waiting(&self, state: &State, client: ClientId) -> bool {
        let is_in_line = match self {
            Awaited::Lock(name) => state.is_in_lock_line(name, client),
            Awaited::Election(name, _) => state.is_candidate(name, client),
            Awaited::Barrier(name, _) => state.is_at_barrier(name, client),
        };
        is_in_line && !self.is_held(state, client)
    }

    fn give_up(&self) -> Command {
        match self {
            Awaited::Lock(name) => Command::Unlock { name: name.clone() },
            Awaited::Election(name, _) => Command::Resign { name: name.clone() },
            Awaited::Barrier(name, _) => Command::Abandon { name: name.clone() },
        }
    }
}
