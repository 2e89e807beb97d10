//! What this node's copy of the group's state shows to those who use the services, and why it refuses.

use super::services::{Change, Entry, Failure, Item, Op, Reply, Text};
use super::serving::{Awaited, Context, Trouble, strange};
use ::group::command::Refusal;
use ::group::state::{self, Delivery, State};
use ::group::{Realm, Session};

type Found = std::result::Result<Reply, Trouble>;

pub(super) fn refused(refusal: &Refusal) -> Trouble {
    Trouble::Failed(sorted(refusal), refusal.to_string())
}

/// Who must act.
pub(super) fn sorted(refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::Taken => Failure::Taken,
        Refusal::Revision { revision } => Failure::Revision(*revision),
        Refusal::NotHeld | Refusal::NotMember | Refusal::NoSession => Failure::NotHeld,
        Refusal::Limit { .. } | Refusal::Quota { .. } | Refusal::Quotas { .. } => Failure::Limit,
        _ => Failure::Refused,
    }
}

impl Context {
    /// What the state of this node shows. `session` is the asker's.
    pub(super) fn look(&self, op: &Op, session: Option<&Session>) -> Found {
        self.group.look(|state| match op {
            Op::Get { key } => {
                let found = state.get(&self.key(key)?).cloned();
                Ok(Reply::Value { entry: found.map(|found| entry(key.0.clone(), found)) })
            }
            Op::Range { start, end, limit } => {
                let (start, end) = self.bounds(start, end.as_ref());
                let range = state.range(&start, end.as_deref(), *limit);
                let own = |key: &[u8]| Realm::of_key(key).1.to_vec();
                let entries = range.entries.into_iter().map(|(key, found)| entry(own(&key), found));
                let (revision, more) = (range.revision, range.more);
                Ok(Reply::Range { revision, entries: entries.collect(), more })
            }
            Op::Leader { name } => {
                let leader = state.leader(&self.name(name)?);
                let leader = leader.map(|one| (one.token, Text(one.value), one.client.0));
                Ok(Reply::Leader { leader })
            }
            Op::Watch { start, end, from } => self.changes(state, start, end.as_ref(), *from),
            Op::Receive { group, after } => self.item(state, group, *after, session),
            other => Err(strange(other)),
        })
    }

    fn changes(&self, state: &State, start: &Text, end: Option<&Text>, from: Option<u64>) -> Found {
        let Some(from) = from else {
            return Ok(Reply::Changes {
                changes: Vec::new(),
                next: state.revision(self.realm) + 1,
            });
        };
        let (start, end) = self.bounds(start, end);
        let found = state.changes(&start, end.as_deref(), from.max(1)).map_err(|first| {
            let why = format!("changes are remembered from revision {first} on only");
            Trouble::Failed(Failure::Forgotten(first), why)
        })?;
        let changes = found.events.into_iter().map(|event| Change {
            revision: event.revision,
            key: Text(Realm::of_key(&event.key).1.to_vec()),
            value: event.value.map(Text),
        });
        Ok(Reply::Changes { changes: changes.collect(), next: found.next })
    }

    fn item(&self, state: &State, group: &str, after: u64, session: Option<&Session>) -> Found {
        let member = session.map(Session::client).unwrap_or_default();
        let delivery = state.delivery(member, &self.name(group)?, after);
        let nothing = || refused(&Refusal::NotMember);
        let delivery = delivery.map_err(|refusal| refused(&refusal))?.ok_or_else(nothing)?;
        let number = delivery.number();
        let item = match delivery {
            Delivery::State { bytes, .. } => Item::State { bytes: Text(bytes) },
            Delivery::Item { item: state::Item::Message { from, bytes }, .. } => {
                Item::Message { from: from.0, bytes: Text(bytes) }
            }
            Delivery::Item { item: state::Item::View(view), .. } => Item::View {
                members: view.members.iter().map(|member| member.client.0).collect(),
                fresh: view.fresh,
                gives: view.donor() == Some(member),
            },
        };
        Ok(Reply::Item { number, item })
    }

    /// What somebody waits for, for people.
    pub(super) fn why(&self, what: &Awaited) -> String {
        if let Some(trouble) = self.trouble() {
            return trouble;
        }
        let line = |of: &str, name: &str, holder: Option<state::Holder>| match holder {
            Some(holder) => {
                let (_, name) = Realm::of_name(name);
                let (client, count) = (holder.client.0, holder.waiting);
                format!("{of} {name} is held by session {client}, {count} waiting")
            }
            None => format!("{of} {}", Realm::of_name(name).1),
        };
        match what {
            Awaited::Lock(name) => {
                line("lock", name, self.group.look(|state| state.lock_holder(name)))
            }
            Awaited::Election(name, _) => {
                line("leadership of", name, self.group.look(|state| state.leader(name)))
            }
            Awaited::Barrier(name, _) => {
                format!("others are not at barrier {} yet", Realm::of_name(name).1)
            }
        }
    }
}

fn entry(key: Vec<u8>, found: state::Entry) -> Entry {
    let state::Entry { value, created, modified, version, lease } = found;
    let lease = lease.map(|client| client.0);
    Entry { key: Text(key), value: Text(value), created, modified, version, lease }
}
