//! What everybody may know of a container: a file beside its door, which the daemon keeps true.

use super::config::{Dc, Peer};
use super::node::Shared;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A container, and the nodes that it spans. Beside the socket `NAME.sock` it is in `NAME.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    pub dc: String,
    pub id: u32,
    /// The node that the socket leads to.
    pub node: u16,
    /// The node where the servers run.
    pub home: u16,
    pub nodes: Vec<Peer>,
}

impl Description {
    /// Reads what stands beside `socket`.
    ///
    /// # Errors
    /// One sentence with the file's name.
    pub fn beside(socket: &Path) -> Result<Description> {
        let path = Description::path(socket);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not understood", path.display()))
    }

    /// Writes it beside `socket`: who reads it meanwhile sees all of it, or of the one before.
    ///
    /// # Errors
    /// One sentence with the file's name.
    pub fn write_beside(&self, socket: &Path) -> Result<()> {
        let path = Description::path(socket);
        let fresh = socket.with_extension("new");
        std::fs::write(&fresh, toml::to_string(self)?)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The file beside `socket`.
    pub fn path(socket: &Path) -> PathBuf {
        socket.with_extension("toml")
    }

    /// A node by its name, or by its number.
    pub fn find(&self, name: &str) -> Option<&Peer> {
        let by_name = self.nodes.iter().find(|node| node.name == name);
        by_name.or_else(|| self.nodes.iter().find(|node| node.node.to_string() == name))
    }

    /// The name of a node; its number if it is unknown.
    pub fn name_of(&self, node: u16) -> String {
        let known = self.nodes.iter().find(|known| known.node == node);
        known.map_or_else(|| node.to_string(), |known| known.name.clone())
    }

    /// As this node knows the container now.
    pub(super) fn of(shared: &Shared, dc: &Dc) -> Description {
        let config = &shared.config;
        let own = Peer { node: config.node, name: config.name.clone(), address: config.listen };
        let mut nodes =
            shared.linking.as_ref().map(|linking| linking.membership.peers()).unwrap_or_default();
        nodes.push(own);
        nodes.retain(|node| dc.nodes.contains(&node.node));
        nodes.sort_by_key(|node| node.node);
        Description { dc: dc.name.clone(), id: dc.id, node: config.node, home: dc.home, nodes }
    }

    /// Says it beside the container's door. Without it commands do not find the container, and its programs do not start.
    pub(super) fn publish(shared: &Shared, dc: &Dc) {
        let socket = shared.config.socket(&dc.name);
        if let Err(error) = Description::of(shared, dc).write_beside(&socket) {
            let error = format!("{error:#}");
            tracing::error!(name = dc.name, error, "commands do not find a container here");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        let node = |node: u16| Peer {
            node,
            name: format!("n{node}"),
            address: ([10, 83, 0, 1], 7083).into(),
        };
        let nodes = vec![node(1), node(2), node(12)];
        Description { dc: "lab".into(), id: 1, node: 1, home: 1, nodes }
    }

    #[test]
    fn what_stands_beside_a_socket_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("dc-lab.sock");
        assert!(Description::beside(&socket).is_err());
        description().write_beside(&socket).unwrap();
        assert_eq!(Description::beside(&socket).unwrap(), description());
    }

    #[test]
    fn a_node_is_found_by_name_and_by_number() {
        let description = description();
        assert_eq!(description.find("n2").map(|node| node.node), Some(2));
        assert_eq!(description.find("12").map(|node| node.node), Some(12));
        assert_eq!(description.find("n1x"), None);
        assert_eq!(description.name_of(12), "n12");
        assert_eq!(description.name_of(13), "13");
    }
}
