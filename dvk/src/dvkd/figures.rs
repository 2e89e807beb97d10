//! How busy nodes and DCs are, as the command line is told: [`m3ipc::load`]'s records as JSON.

use super::admin::{self, Query};
use anyhow::Result;
use m3ipc::load::{DcLoad, NodeLoad};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What a dvkd knows of how busy nodes are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Names of all nodes that are members.
    pub names: BTreeMap<u16, String>,
    /// Names of the DCs that span the node that tells.
    pub dcs: BTreeMap<u32, String>,
    /// The last report of each node; or those of one node, the oldest first.
    pub reports: Vec<LoadReport>,
}

/// What a node has said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    #[serde(with = "NodeLoadJson")]
    pub node: NodeLoad,
    pub dcs: Vec<DcPart>,
}

/// A DC's part on that node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DcPart(#[serde(with = "DcLoadJson")] pub DcLoad);

#[derive(Serialize, Deserialize)]
#[serde(remote = "NodeLoad")]
struct NodeLoadJson {
    version: u32,
    node: u32,
    age_ms: u32,
    span_ms: u32,
    cpus: u32,
    busy: u32,
    load1: u32,
    load5: u32,
    load15: u32,
    links: u32,
    endpoints: u32,
    reserved: u32,
    memory_total: u64,
    memory_available: u64,
    calls_out: u64,
    calls_in: u64,
    bytes_out: u64,
    bytes_in: u64,
    round_trip: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "DcLoad")]
struct DcLoadJson {
    version: u32,
    dc: u32,
    node: u32,
    age_ms: u32,
    span_ms: u32,
    endpoints: u32,
    processes: u32,
    busy: u32,
    served: [u32; 4],
    memory: u64,
    calls_out: u64,
    calls_in: u64,
    bytes_out: u64,
    bytes_in: u64,
}

impl LoadReport {
    pub(super) fn new(node: NodeLoad, dcs: &[DcLoad]) -> LoadReport {
        LoadReport { node, dcs: dcs.iter().copied().map(DcPart).collect() }
    }
}

/// The last report of each node, as the dvkd with the run directory `run` has it.
///
/// # Errors
/// One sentence: no dvkd there, or it does not answer.
pub fn loads(run: &Path) -> Result<Figures> {
    admin::question(run, Query::Loads)
}

/// What node `node` has reported in the last `minutes`, the oldest first: of the node that is asked each second, of
/// others every ten seconds.
///
/// # Errors
/// As [`loads`].
pub fn history(run: &Path, node: u16, minutes: u16) -> Result<Figures> {
    admin::question(run, Query::History { node, minutes })
}
