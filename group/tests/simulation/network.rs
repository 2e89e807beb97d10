//! A network of the simulation: delays, loss, doubles, one-way cuts, and nodes that are off.

use crate::random::Random;
use group::{Group, Transport};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What may happen to messages.
#[derive(Debug, Default)]
pub(crate) struct Weather {
    /// In thousandths.
    pub(crate) loss: u64,
    pub(crate) doubles: u64,
    /// Links in one direction that carry nothing.
    pub(crate) cut: BTreeSet<(u64, u64)>,
    /// Nodes whose links take so many milliseconds.
    pub(crate) slow: BTreeMap<u64, u64>,
}

pub(crate) struct Network {
    inner: Mutex<Inner>,
}

struct Inner {
    random: Random,
    weather: Weather,
    /// The nodes that are on, with the number of their start.
    nodes: BTreeMap<u64, (u64, Group)>,
    sent: u64,
    /// Of everything that was sent, and when: two runs of a seed have the same.
    trace: u64,
}

/// A node's way into the network, until it is turned off.
pub(crate) struct Port {
    pub(crate) network: Arc<Network>,
    pub(crate) node: u64,
    pub(crate) start: u64,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Arc<Network> {
        let inner = Inner {
            random: Random::new(seed),
            weather: Weather::default(),
            nodes: BTreeMap::new(),
            sent: 0,
            trace: 0,
        };
        Arc::new(Network { inner: Mutex::new(inner) })
    }

    pub(crate) fn weather(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.inner.lock().unwrap().weather);
    }

    pub(crate) fn turn_on(&self, node: u64, start: u64, group: Group) {
        self.inner.lock().unwrap().nodes.insert(node, (start, group));
    }

    pub(crate) fn turn_off(&self, node: u64) {
        self.inner.lock().unwrap().nodes.remove(&node);
    }

    pub(crate) fn sent(&self) -> u64 {
        self.inner.lock().unwrap().sent
    }

    pub(crate) fn trace(&self) -> u64 {
        self.inner.lock().unwrap().trace
    }

    /// The node as it is now, if that start of it is still on.
    fn receiver(&self, node: u64) -> Option<Group> {
        self.inner.lock().unwrap().nodes.get(&node).map(|(_, group)| group.clone())
    }
}

impl Transport for Port {
    fn send(&self, to: u64, bytes: Vec<u8>) {
        let mut inner = self.network.inner.lock().unwrap();
        let inner = &mut *inner;
        // One that is turned off says nothing, though its tasks may not have ended.
        if inner.nodes.get(&self.node).is_none_or(|(start, _)| *start != self.start) {
            return;
        }
        inner.sent += 1;
        inner.trace = bytes.iter().chain(&to.to_le_bytes()).fold(inner.trace, |trace, byte| {
            (trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let weather = &inner.weather;
        if weather.cut.contains(&(self.node, to)) || inner.random.below(1000) < weather.loss {
            return;
        }
        let slow = |node| weather.slow.get(&node).copied().unwrap_or(1);
        let slowest = slow(self.node).max(slow(to));
        let copies = if inner.random.below(1000) < weather.doubles { 2 } else { 1 };
        for _ in 0..copies {
            // In microseconds, so that hardly two arrive at once; those on the way overtake each other.
            let delay = Duration::from_micros(100 + inner.random.below(slowest * 1000));
            let (network, from, bytes) = (self.network.clone(), self.node, bytes.clone());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                if let Some(group) = network.receiver(to) {
                    group.deliver(from, &bytes);
                }
            });
        }
    }
}
