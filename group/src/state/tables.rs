//! The cluster's tables: nodes and whether they are up, containers, and where endpoints are.

use super::{Hold, Holds, Serial, State, bounded};
use crate::command::{Answer, ClientId, Done, Life, Limit, NodeId, Refusal, TableOp, Whereabouts};
use crate::limits::{DIRECTORY_MAX, NAME_MAX, NODES_MAX};
use crate::realm::Realm;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub address: String,
    /// It is up while this session lives, as this incarnation.
    pub up: Option<(ClientId, u64)>,
    /// The epoch of the membership in which it last came or went.
    pub epoch: u64,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dc {
    pub name: String,
    pub nodes: Vec<NodeId>,
    pub epoch: u64,
}

/// An entry of the directory: where an endpoint is that has moved, or has backups. Epochs only grow, from entry to entry
/// of all endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub to: Whereabouts,
    pub epoch: u64,
}

/// The node whose number is in a slot (`m3ipc::Endpoint`).
pub fn home(slot: u32) -> NodeId {
    u16::try_from(slot >> 20).unwrap_or(NodeId::MAX)
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tables {
    /// Changes with each node that comes, goes, is added or removed.
    epoch: u64,
    nodes: BTreeMap<NodeId, Node>,
    dcs: BTreeMap<u32, Dc>,
    directory: BTreeMap<(u32, u32), Place>,
    /// Of the last entry.
    directory_epoch: u64,
}

impl State {
    pub(super) fn table(&mut self, client: ClientId, op: TableOp) -> Answer {
        match op {
            TableOp::PutNode { node, name, address } => self.put_node(node, name, address),
            TableOp::RemoveNode { node } => self.remove_node(node),
            TableOp::NodeUp { node, incarnation } => self.node_up(client, node, incarnation),
            TableOp::PutDc { dc, name, nodes } => {
                self.tables.put_dc(dc, name, nodes, &mut self.serial)
            }
            TableOp::RemoveDc { dc } => {
                self.tables.remove_dc(dc);
                self.delete_realm(Realm::Dc(dc));
                Ok(Done::Fine)
            }
            TableOp::Place { dc, slot, by, to, expected } => {
                self.tables.place((dc, slot), by, to, expected, &mut self.serial)
            }
        }
    }

    fn put_node(&mut self, number: NodeId, name: String, address: String) -> Answer {
        bounded(name.len(), NAME_MAX, Limit::NameBytes)?;
        bounded(address.len(), NAME_MAX, Limit::NameBytes)?;
        let tables = &mut self.tables;
        if tables.nodes.iter().any(|(other, node)| *other != number && node.name == name) {
            return Err(Refusal::Exists);
        }
        if let Some(node) = tables.nodes.get_mut(&number) {
            if (&node.name, &node.address) != (&name, &address) {
                (node.name, node.address) = (name, address);
                tables.epoch = self.serial.next();
            }
            return Ok(Done::Epoch { epoch: tables.epoch });
        }
        bounded(tables.nodes.len() + 1, NODES_MAX, Limit::Nodes)?;
        tables.epoch = self.serial.next();
        tables.nodes.insert(number, Node { name, address, up: None, epoch: tables.epoch });
        Ok(Done::Epoch { epoch: tables.epoch })
    }

    fn remove_node(&mut self, number: NodeId) -> Answer {
        let node = self.tables.nodes.remove(&number).ok_or(Refusal::NotFound)?;
        // It never comes back: nobody will want its numbers.
        self.tables.directory.retain(|(_, slot), place| home(*slot) != number || !place.to.is_over);
        if let Some((client, _)) = node.up {
            self.holds.remove(client, &Hold::Node(number));
        }
        self.tables.epoch = self.serial.next();
        Ok(Done::Epoch { epoch: self.tables.epoch })
    }

    /// A node is up once: as long as one session says so, no other incarnation can.
    fn node_up(&mut self, client: ClientId, number: NodeId, incarnation: u64) -> Answer {
        let tables = &mut self.tables;
        let node = tables.nodes.get_mut(&number).ok_or(Refusal::NotFound)?;
        match node.up {
            Some((other, _)) if other != client => return Err(Refusal::Exists),
            Some(_) => return Ok(Done::Epoch { epoch: node.epoch }),
            None => self.holds.check(client)?,
        }
        self.holds.insert(client, Hold::Node(number));
        tables.epoch = self.serial.next();
        (node.up, node.epoch) = (Some((client, incarnation)), tables.epoch);
        Ok(Done::Epoch { epoch: tables.epoch })
    }

    /// Changes whenever a node comes, goes, is added or removed; never goes back.
    pub fn membership_epoch(&self) -> u64 {
        self.tables.epoch
    }

    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.tables.nodes.iter().map(|(number, node)| (*number, node))
    }

    pub fn node(&self, number: NodeId) -> Option<&Node> {
        self.tables.nodes.get(&number)
    }

    pub fn dcs(&self) -> impl Iterator<Item = (u32, &Dc)> {
        self.tables.dcs.iter().map(|(number, dc)| (*number, dc))
    }

    /// Where an endpoint is, if the directory has it.
    pub fn place(&self, dc: u32, slot: u32) -> Option<Place> {
        self.tables.directory.get(&(dc, slot)).copied()
    }

    /// The epoch of the directory's last entry; 0 if there was none.
    pub fn directory_epoch(&self) -> u64 {
        self.tables.directory_epoch
    }

    /// All entries with a later epoch than `since`, by container and slot, in the order of their epochs.
    pub fn places_since(&self, since: u64) -> Vec<(u32, u32, Place)> {
        let later = self.tables.directory.iter().filter(|(_, place)| place.epoch > since);
        let mut places: Vec<_> = later.map(|((dc, slot), place)| (*dc, *slot, *place)).collect();
        places.sort_unstable_by_key(|(.., place)| place.epoch);
        places
    }

    /// The nodes that are up, and in which incarnation.
    pub fn up(&self) -> impl Iterator<Item = (NodeId, u64)> {
        let up =
            |(node, entry): (NodeId, &Node)| entry.up.map(|(_, incarnation)| (node, incarnation));
        self.nodes().filter_map(up)
    }
}

impl Tables {
    pub(super) fn down(&mut self, number: NodeId, serial: &mut Serial) {
        if let Some(node) = self.nodes.get_mut(&number) {
            self.epoch = serial.next();
            (node.up, node.epoch) = (None, self.epoch);
        }
    }

    fn put_dc(
        &mut self,
        number: u32,
        name: String,
        nodes: Vec<NodeId>,
        serial: &mut Serial,
    ) -> Answer {
        bounded(name.len(), NAME_MAX, Limit::NameBytes)?;
        if self.dcs.iter().any(|(other, dc)| *other != number && dc.name == name) {
            return Err(Refusal::Exists);
        }
        let nodes: Vec<NodeId> = nodes.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        if !nodes.iter().all(|node| self.nodes.contains_key(node)) {
            return Err(Refusal::NotFound);
        }
        let more = usize::from(!self.dcs.contains_key(&number));
        bounded(self.dcs.len() + more, NODES_MAX, Limit::Nodes)?;
        let epoch = serial.next();
        self.dcs.insert(number, Dc { name, nodes, epoch });
        Ok(Done::Epoch { epoch })
    }

    fn remove_dc(&mut self, number: u32) {
        self.dcs.remove(&number);
        self.directory.retain(|(of, _), _| *of != number);
    }

    /// The one that has been so for longest.
    fn forget_one_that_is_over(&mut self) {
        let over = self.directory.iter().filter(|(_, place)| place.to.is_over);
        if let Some((key, _)) = over.min_by_key(|(_, place)| place.epoch) {
            let key = *key;
            self.directory.remove(&key);
        }
    }

    fn is_up(&self, life: Life) -> bool {
        let up = self.nodes.get(&life.node).and_then(|node| node.up);
        up.is_some_and(|(_, incarnation)| incarnation == life.incarnation)
    }

    fn place(
        &mut self,
        key: (u32, u32),
        by: Life,
        to: Whereabouts,
        expected: u64,
        serial: &mut Serial,
    ) -> Answer {
        let now = self.directory.get(&key);
        // One that is over may have been forgotten.
        if let Some(epoch) = now.map(|place| place.epoch).filter(|epoch| *epoch != expected) {
            return Err(Refusal::Epoch { epoch });
        }
        let is_others =
            |now: &Place| !now.to.is_over && now.to.life != by && self.is_up(now.to.life);
        if now.is_some_and(is_others) {
            return Err(Refusal::Exists);
        }
        // Where nobody is, only the home of the slot can say otherwise.
        if now.is_none_or(|now| now.to.is_over) && (to.is_over || by.node != home(key.1)) {
            return Err(Refusal::NotFound);
        }
        if !to.is_over && !self.is_up(to.life) {
            return Err(Refusal::NotFound);
        }
        if now.is_none() && self.directory.len() >= DIRECTORY_MAX {
            self.forget_one_that_is_over();
        }
        let more = usize::from(!self.directory.contains_key(&key));
        bounded(self.directory.len() + more, DIRECTORY_MAX, Limit::Directory)?;
        let epoch = serial.next();
        self.directory.insert(key, Place { to, epoch });
        self.directory_epoch = epoch;
        Ok(Done::Epoch { epoch })
    }

    pub(super) fn rebuild(&self, holds: &mut Holds) {
        for (number, node) in &self.nodes {
            if let Some((client, _)) = node.up {
                holds.insert(client, Hold::Node(*number));
            }
        }
    }
}
