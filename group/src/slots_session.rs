//! A node's member of SLOTS over the system group: the pure [`Slots`] with a session, a clock and somebody to call it.

use crate::command::{ClientId, Done, Millis, Op, Refusal};
use crate::fence::margin;
use crate::group::Group;
use crate::session::{Failure, Session};
use crate::signs::pause;
use crate::slots::{Caller, Output, Shares, Slots};
use crate::state::Delivery;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Pause before a message is sent again that the group has no room for.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// Items between two acknowledgements: each of them is a command of the group.
const ACKNOWLEDGE_EACH: u64 = 32;

/// There is no slot (EAGAIN), or this member is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no free slot")]
pub struct NoSlot;

/// A member. It leaves when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct SlotMember {
    calls: mpsc::UnboundedSender<Call>,
    fenced: watch::Receiver<bool>,
    client: ClientId,
}

#[derive(Debug)]
enum Call {
    Allocate { wait: bool, answer: oneshot::Sender<u16> },
    Free(u16),
}

/// What goes to the group, one behind the other.
type Outbox = mpsc::UnboundedSender<Op>;

impl SlotMember {
    /// Joins those who share the process slots of container `dc`. It counts for gone `ttl` milliseconds behind its
    /// last sign of life.
    ///
    /// # Errors
    /// The group cannot be reached, or refuses the time or one more member.
    pub async fn join(
        group: &Group,
        dc: u32,
        shares: Shares,
        ttl: Millis,
    ) -> Result<SlotMember, Failure> {
        let opened = Instant::now();
        let session = Session::open(group, ttl).await?;
        let name = format!("slots.{dc}");
        let Done::Joined { view } = session.run(Op::Join { group: name.clone() }).await? else {
            return Err(Refusal::NotMember.into());
        };
        let client = session.client();
        let (calls, called) = mpsc::unbounded_channel();
        let (fence, fenced) = watch::channel(false);
        let (outbox, out) = mpsc::unbounded_channel();
        let (trust, trusted) = watch::channel(opened + trust(ttl));
        tokio::spawn(keep_alive(group.clone(), client, ttl, trust));
        tokio::spawn(send(session.clone(), out));
        let driver = Driver {
            slots: Slots::new(client, shares),
            session,
            name,
            after: view - 1,
            acknowledged: view - 1,
            start: opened,
            answers: BTreeMap::new(),
            callers: 0,
            outbox,
        };
        tokio::spawn(driver.live(called, trusted, fence));
        Ok(SlotMember { calls, fenced, client })
    }

    /// Takes a slot: with `wait` after some seconds at most, otherwise at once or not at all.
    ///
    /// # Errors
    /// There is none.
    pub async fn allocate(&self, wait: bool) -> Result<u16, NoSlot> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Allocate { wait, answer }).map_err(|_| NoSlot)?;
        answered.await.map_err(|_| NoSlot)
    }

    /// The process in this slot is gone.
    pub fn free(&self, slot: u16) {
        // A fenced member has nothing to be freed.
        self.calls.send(Call::Free(slot)).ok();
    }

    /// Turns true when others may soon have this member's slots: its processes must end within an eighth of its
    /// time to live.
    pub fn fenced(&self) -> watch::Receiver<bool> {
        self.fenced.clone()
    }

    pub fn client(&self) -> ClientId {
        self.client
    }
}

/// How long a sign of life counts: an eighth less for clocks that differ, and one for processes to end.
fn trust(ttl: Millis) -> Duration {
    Duration::from_millis(ttl - 2 * margin(ttl))
}

/// Gives signs of life, and says until when those that were answered count (see [`crate::fence`]).
async fn keep_alive(group: Group, client: ClientId, ttl: Millis, until: watch::Sender<Instant>) {
    let patience = Duration::from_millis(ttl / 4);
    while !until.is_closed() && group.is_running() {
        // What is answered late counts from when it was sent, so it is rather sent anew.
        let sent = Instant::now();
        match group.keep_alive(client, patience).await {
            Ok(Ok(())) => drop(until.send_replace(sent + trust(ttl))),
            Ok(Err(Refusal::NoSession)) => return,
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(pause(ttl)).await;
    }
}

/// Sends in order; each until it is certain, or the member is none any more.
async fn send(session: Session, mut out: mpsc::UnboundedReceiver<Op>) {
    while let Some(op) = out.recv().await {
        loop {
            match session.run(op.clone()).await {
                Ok(_) => break,
                // It may have been sent: the members know it by its number.
                Err(Failure::Unavailable(_)) if session.group().is_running() => {}
                Err(Failure::Refused(Refusal::Limit { .. })) => sleep(ROOM_PAUSE).await,
                Err(Failure::Refused(Refusal::NotMember)) if is_state(&op) => break,
                Err(_) => return,
            }
        }
    }
}

/// A state for joiners who have gone, or have got another: nobody needs it.
fn is_state(op: &Op) -> bool {
    matches!(op, Op::GiveState { .. })
}

struct Driver {
    slots: Slots,
    session: Session,
    name: String,
    after: u64,
    acknowledged: u64,
    start: Instant,
    answers: BTreeMap<Caller, oneshot::Sender<u16>>,
    callers: Caller,
    outbox: Outbox,
}

impl Driver {
    async fn live(
        mut self,
        mut calls: mpsc::UnboundedReceiver<Call>,
        mut trusted: watch::Receiver<Instant>,
        fence: watch::Sender<bool>,
    ) {
        while !self.slots.is_fenced() {
            let trust = *trusted.borrow_and_update();
            let due = self.slots.deadline().map(|due| self.start + Duration::from_millis(due));
            let due = due.map_or(trust, |due| due.min(trust));
            let outputs = tokio::select! {
                call = calls.recv() => match call {
                    Some(call) => self.call(call),
                    None => break,
                },
                delivery = self.session.receive(&self.name, self.after) => match delivery {
                    Ok(delivery) => {
                        self.after = delivery.number();
                        let outputs = self.slots.deliver(&delivery, self.now());
                        self.acknowledge(matches!(delivery, Delivery::State { .. }));
                        outputs.unwrap_or_else(|broken| {
                            tracing::warn!(group = self.name, %broken, "starts anew");
                            self.slots.fence()
                        })
                    }
                    Err(_) => self.slots.fence(),
                },
                changed = trusted.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => self.slots.fence(),
                },
                () = sleep_until(due) => {
                    if Instant::now() >= trust { self.slots.fence() } else { self.slots.tick(self.now()) }
                }
            };
            self.carry_out(outputs);
        }
        self.slots.fence();
        fence.send_replace(true);
        let leave = Op::Leave { group: self.name.clone() };
        // If it is not heard of, the session's end is.
        timeout(Duration::from_secs(1), self.session.run(leave)).await.ok();
    }

    fn now(&self) -> Millis {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    fn call(&mut self, call: Call) -> Vec<Output> {
        let now = self.now();
        match call {
            Call::Allocate { wait, answer } => {
                self.callers += 1;
                self.answers.insert(self.callers, answer);
                self.slots.allocate(self.callers, wait, now)
            }
            Call::Free(slot) => self.slots.free(slot, now).unwrap_or_else(|not_in_use| {
                tracing::warn!(group = self.name, %not_in_use, "freed");
                Vec::new()
            }),
        }
    }

    /// Lets the group forget what it has: at once if that is a whole state.
    fn acknowledge(&mut self, at_once: bool) {
        if !at_once && self.after < self.acknowledged + ACKNOWLEDGE_EACH {
            return;
        }
        self.acknowledged = self.after;
        let (session, name, number) = (self.session.clone(), self.name.clone(), self.after);
        tokio::spawn(async move { session.acknowledge(&name, number).await });
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Cast(bytes) => self.send(Op::Cast { group: self.name.clone(), bytes }),
                Output::GiveState { view, bytes } => {
                    let group = self.name.clone();
                    let (session, op) =
                        (self.session.clone(), Op::GiveState { group, view, bytes });
                    // Not behind what it has to send: the joiner's items are kept meanwhile.
                    let (outbox, out) = mpsc::unbounded_channel();
                    outbox.send(op).ok();
                    tokio::spawn(send(session, out));
                }
                Output::Granted { caller, slot } => {
                    let answer = self.answers.remove(&caller);
                    if answer.is_none_or(|answer| answer.send(slot).is_err()) {
                        // Whoever wanted it does not wait any more.
                        let now = self.now();
                        let freed = self.slots.free(slot, now).unwrap_or_default();
                        self.carry_out(freed);
                    }
                }
                Output::Failed { caller } => drop(self.answers.remove(&caller)),
            }
        }
    }

    fn send(&self, op: Op) {
        // It fails only when the session has ended; then the next delivery says so.
        self.outbox.send(op).ok();
    }
}
