//! One member, by hand; whole groups of them are in `tests/slots`.

use super::message::{Body, Message};
use super::table::Table;
use super::{Broken, NotInUse, Output, Shares, Slots};
use crate::command::ClientId;
use crate::limits::{SLOT_CALLERS_MAX, SLOTS_MAX, SLOTS_PAUSE, SLOTS_RETRIES};
use crate::slots::message::{decode_state, encode_state};
use crate::state::{Delivery, Item, Member, View};
use proptest::prelude::*;

const ME: ClientId = ClientId(1);
const SECOND: ClientId = ClientId(2);
const THIRD: ClientId = ClientId(3);

/// A member with the items that it has got.
struct One {
    slots: Slots,
    number: u64,
}

impl One {
    /// The first member of its group, with all 16 slots; 4 nodes have at least 2 each.
    fn first() -> One {
        let mut one = One { slots: Slots::new(ME, Shares::new(16, 4).unwrap()), number: 0 };
        one.view(&[ME]);
        one
    }

    fn with(others: &[ClientId]) -> One {
        let mut one = One::first();
        one.view(&[&[ME], others].concat());
        for other in others {
            one.hear(*other, 1, Body::Ready);
        }
        one
    }

    fn item(&mut self, item: Item) -> Vec<Output> {
        self.number += 1;
        let delivery = Delivery::Item { number: self.number, item };
        self.slots.deliver(&delivery, 0).unwrap()
    }

    fn view(&mut self, clients: &[ClientId]) -> Vec<Output> {
        let member = |client: &ClientId| Member { client: *client, synced: true };
        let members = clients.iter().map(member).collect();
        self.item(Item::View(View { members, fresh: false }))
    }

    fn hear(&mut self, from: ClientId, number: u64, body: Body) -> Vec<Body> {
        let bytes = Message { number, body }.encode();
        bodies(&self.item(Item::Message { from, bytes }))
    }

    /// Takes so many slots that none or more are free.
    fn take(&mut self, count: u64) {
        for caller in 0..count {
            let outputs = self.slots.allocate(caller, false, 0);
            assert!(matches!(outputs[0], Output::Granted { .. }), "{outputs:?}");
        }
    }

    fn free_count(&self) -> usize {
        self.slots.free_slots().count()
    }
}

fn bodies(outputs: &[Output]) -> Vec<Body> {
    let cast = outputs.iter().filter_map(|output| match output {
        Output::Cast(bytes) => Some(Message::decode(bytes).unwrap().body),
        _ => None,
    });
    cast.collect()
}

#[test]
fn what_is_given_is_out_of_use_and_comes_back_if_the_requester_is_gone() {
    let mut one = One::with(&[SECOND]);
    let said = one.hear(SECOND, 2, Body::Request { needed: 3 });
    let slots = vec![15, 14, 13];
    assert_eq!(said, [Body::Donation { to: SECOND, request: 2, slots: slots.clone(), last: true }]);
    assert_eq!((one.free_count(), one.slots.given().collect::<Vec<_>>()), (13, slots.clone()));
    one.view(&[ME]);
    assert_eq!((one.free_count(), one.slots.given().count()), (16, 0));
    // It was on its way: nobody has it now.
    one.hear(ME, 1, Body::Donation { to: SECOND, request: 2, slots, last: true });
    assert_eq!((one.free_count(), one.slots.owner(15)), (16, Some(ME)));
}

#[test]
fn an_answer_comes_in_messages_of_four() {
    let mut one = One::with(&[SECOND]);
    let said = one.hear(SECOND, 2, Body::Request { needed: 9 });
    let parts: Vec<_> = said
        .iter()
        .map(|body| match body {
            Body::Donation { slots, last, .. } => (slots.len(), *last),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(parts, [(4, false), (4, false), (1, true)]);
}

#[test]
fn only_the_next_in_the_ring_says_that_it_has_nothing_and_behind_it_the_next() {
    let mut one = One::with(&[SECOND, THIRD]);
    one.take(16);
    let request = Body::Request { needed: 1 };
    assert_eq!(one.hear(SECOND, 2, request.clone()), [], "the third has to answer");
    let nothing = |to| Body::Donation { to, request: 2, slots: vec![], last: true };
    assert_eq!(one.hear(THIRD, 2, request), [nothing(THIRD)]);
    let outputs = one.view(&[ME, SECOND]);
    assert_eq!(bodies(&outputs), [nothing(SECOND)], "the third is gone");
}

#[test]
fn the_next_slot_that_is_freed_is_that_of_one_who_has_less_than_its_share() {
    let mut one = One::with(&[SECOND]);
    one.take(16);
    one.hear(SECOND, 2, Body::Request { needed: 1 });
    assert_eq!(one.slots.allocate(99, true, 0), [], "it waits");
    let outputs = one.slots.free(5, 0).unwrap();
    let donation = Body::Donation { to: SECOND, request: 2, slots: vec![5], last: true };
    assert_eq!(bodies(&outputs), [donation]);
    assert_eq!(one.slots.free(5, 0), Err(NotInUse(5)));
    let outputs = one.slots.free(6, 0).unwrap();
    assert_eq!(outputs[0], Output::Granted { caller: 99, slot: 6 }, "one is under way");
}

#[test]
fn who_waits_is_told_in_the_end_and_without_them_there_is_no_deadline() {
    let mut one = One::with(&[SECOND]);
    one.take(16);
    assert_eq!(one.slots.deadline(), None);
    one.slots.allocate(99, true, 100);
    let end = 100 + SLOTS_PAUSE * SLOTS_RETRIES;
    assert_eq!(one.slots.deadline(), Some(end));
    assert_eq!(one.slots.tick(end - 1), []);
    assert_eq!(one.slots.tick(end), [Output::Failed { caller: 99 }]);
    assert_eq!(one.slots.deadline(), None);
    one.slots.allocate(100, true, end);
    assert!(one.slots.abandon(100) && !one.slots.abandon(100));
}

#[test]
fn those_who_wait_are_bounded() {
    let mut one = One::first();
    one.take(16);
    for caller in 0..SLOT_CALLERS_MAX as u64 {
        assert_eq!(one.slots.allocate(caller, true, 0), []);
    }
    assert_eq!(one.slots.allocate(7777, true, 0), [Output::Failed { caller: 7777 }]);
}

#[test]
fn a_fenced_member_has_nothing_and_does_nothing() {
    let mut one = One::with(&[SECOND]);
    one.take(16);
    one.slots.allocate(99, true, 0);
    assert_eq!(one.slots.fence(), [Output::Failed { caller: 99 }]);
    assert_eq!(one.slots.free(5, 0), Err(NotInUse(5)));
    assert_eq!(one.slots.allocate(100, true, 0), [Output::Failed { caller: 100 }]);
    assert_eq!(one.hear(SECOND, 2, Body::Request { needed: 1 }), []);
    assert_eq!((one.slots.deadline(), one.slots.state()), (None, None));
}

#[test]
fn a_gap_in_the_order_ends_the_member_and_a_repetition_does_nothing() {
    let mut one = One::with(&[SECOND]);
    one.number -= 1;
    assert_eq!(one.view(&[ME]), [], "it came before");
    one.number += 1;
    let delivery = Delivery::Item {
        number: one.number + 1,
        item: Item::Message { from: SECOND, bytes: Vec::new() },
    };
    let error = Broken::Order { number: one.number + 1, position: one.number - 1 };
    assert_eq!(one.slots.deliver(&delivery, 0), Err(error));
    assert!(one.slots.is_fenced());
}

#[test]
fn there_are_no_fewer_slots_than_nodes_and_no_more_than_the_limit() {
    assert_eq!(Shares::new(3, 4), None);
    assert_eq!(Shares::new(3, 0), None);
    assert_eq!(Shares::new(SLOTS_MAX + 1, 1), None);
    assert!(Shares::new(SLOTS_MAX, SLOTS_MAX).is_some());
}

fn anything() -> impl Strategy<Value = (u64, u64, Body)> {
    let slots = proptest::collection::vec(0..20u16, 0..=4);
    let donation =
        (0..5u64, 0..5u64, slots, any::<bool>()).prop_map(|(to, request, slots, last)| {
            Body::Donation { to: ClientId(to), request, slots, last }
        });
    let request = any::<u16>().prop_map(|needed| Body::Request { needed });
    (0..5u64, 0..6u64, prop_oneof![Just(Body::Ready), request, donation])
}

proptest! {
    #[test]
    fn whatever_others_say_each_slot_is_owned_and_known_to_its_owner(
        said in proptest::collection::vec(anything(), 0..40)
    ) {
        let mut one = One::with(&[SECOND, THIRD]);
        one.take(4);
        let used: Vec<u16> = one.slots.used().collect();
        // Nobody else can speak for this member: the group says who sent a message.
        for (from, number, body) in said.into_iter().filter(|(from, _, _)| *from != ME.0) {
            one.hear(ClientId(from), number, body);
            let table: Table = decode_state(&one.slots.state().unwrap()).unwrap();
            prop_assert_eq!(encode_state(&table), one.slots.state().unwrap());
            let mut mine: Vec<u16> =
                one.slots.used().chain(one.slots.given()).chain(one.slots.free_slots()).collect();
            mine.sort_unstable();
            let owned: Vec<u16> =
                (0..16).filter(|slot| one.slots.owner(*slot) == Some(ME)).collect();
            prop_assert_eq!(mine, owned);
        }
        prop_assert_eq!(used, one.slots.used().collect::<Vec<_>>());
    }
}
