//! What a node daemon is told when it starts: a TOML file.

use super::packing::Packing;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Highest node number (12 bits of an endpoint's slot; 0 is "no particular node").
const NODE_MAX: u16 = 4095;

/// Longest name of a node or container: it becomes part of a socket's path (108 bytes in all).
const NAME_MAX: usize = 32;

/// The configuration of one node's `dvkd`.
///
/// ```toml
/// node = 1
/// name = "n1"
/// listen = "10.77.0.1:7700"
/// run = "/run/dvs/n1"
/// store = "/var/lib/dvs/n1"
/// credentials = "/var/lib/dvs/credentials"
/// command = ["/usr/bin/dvs"]
///
/// [[dcs]]
/// id = 1
/// name = "lab"
/// nodes = [1, 2]
/// home = 1
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node, 1..=4095.
    pub node: u16,
    /// Its name for people.
    pub name: String,
    /// Where other nodes connect.
    pub listen: SocketAddr,
    /// Directory of the node's key and certificate and of the list of members (`dvs init`, `dvs join`). Without it the
    /// node is alone: it listens nowhere and connects to nobody.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
    /// Directory of the sockets: `dc-NAME.sock` for each container, `admin.sock`.
    pub run: PathBuf,
    /// Directory of the servers' stores: `DC/SERVER` for each server whose home is this node; `DC.NUMBER/SERVER` for those of
    /// containers that all members agree on.
    pub store: PathBuf,
    /// How children are started: this, then the role and its options. Empty: no children are
    /// started (servers and containers are then started by others).
    #[serde(default)]
    pub command: Vec<String>,
    /// The servers run inside this process (muk2); only containers are started.
    #[serde(default)]
    pub servers_inside: bool,
    /// Whether large frames to other nodes are compressed with LZ4: `"never"`, `"auto"` (to nodes that have it so, too, as
    /// long as that is faster), `"always"`. Lengths then tell who sees the network something about what is sent.
    #[serde(default)]
    pub compression: Packing,
    /// All distributed containers that span this node.
    #[serde(default)]
    pub dcs: Vec<Dc>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub node: u16,
    pub name: String,
    pub address: SocketAddr,
}

/// A distributed container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dc {
    pub id: u32,
    pub name: String,
    /// The nodes it spans.
    pub nodes: Vec<u16>,
    /// The node where its servers run.
    pub home: u16,
    /// Absolute paths that each container maps into the tree, beside `/dvs`.
    #[serde(default)]
    pub maps: Vec<PathBuf>,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// One sentence that names the file and what is wrong in it.
    pub fn read(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Config::parse(&text)
            .with_context(|| format!("{} is not a valid configuration", path.display()))
    }

    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// As told.
    pub fn parse(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// The configuration as a file.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// One sentence that names the value.
    pub fn check(&self) -> Result<()> {
        check_node(self.node)?;
        check_name(&self.name)?;
        let mut ids = BTreeSet::new();
        let mut names = BTreeSet::new();
        for dc in &self.dcs {
            check_name(&dc.name)?;
            ensure!(dc.id != 0 && ids.insert(dc.id), "container id {} is 0 or there twice", dc.id);
            ensure!(names.insert(&dc.name), "container {} is there twice", dc.name);
            ensure!(dc.nodes.contains(&self.node), "container {} does not span this node", dc.name);
            ensure!(
                dc.nodes.contains(&dc.home),
                "container {} does not span its home node {}",
                dc.name,
                dc.home
            );
            dc.nodes.iter().try_for_each(|node| check_node(*node))?;
            for map in &dc.maps {
                ensure!(
                    map.is_absolute(),
                    "container {}: {} is not an absolute path",
                    dc.name,
                    map.display()
                );
            }
        }
        Ok(())
    }

    /// Checks that each container is on nodes that are there: this one and `others`.
    ///
    /// # Errors
    /// One sentence that names the node.
    pub(super) fn check_spans(&self, others: &[u16]) -> Result<()> {
        for dc in &self.dcs {
            for node in dc.nodes.iter().filter(|node| **node != self.node) {
                ensure!(
                    others.contains(node),
                    "container {} spans node {node}, which is not a member",
                    dc.name
                );
            }
        }
        Ok(())
    }

    /// The socket of container `dc` on this node.
    pub fn socket(&self, dc: &str) -> PathBuf {
        self.run.join(format!("dc-{dc}.sock"))
    }

    /// The socket for [`super::admin`].
    pub fn admin_socket(&self) -> PathBuf {
        self.run.join("admin.sock")
    }
}

pub(super) fn check_node(node: u16) -> Result<()> {
    ensure!((1..=NODE_MAX).contains(&node), "node {node} is not in 1..={NODE_MAX}");
    Ok(())
}

pub(super) fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    ensure!(
        !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(good),
        "{name:?} is not a name (1 to {NAME_MAX} letters, digits, '-' or '_')"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        node = 1
        name = "n1"
        listen = "127.0.0.1:7700"
        run = "/run/dvs/n1"
        store = "/var/lib/dvs/n1"
        command = ["/usr/bin/dvs"]
        [[dcs]]
        id = 1
        name = "lab"
        nodes = [1, 2]
        home = 2
    "#;

    #[test]
    fn a_configuration_survives_its_file() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(Config::parse(&config.to_toml().unwrap()).unwrap(), config);
    }

    #[test]
    fn each_mistake_is_refused_with_its_name() {
        check("node = 1", "node = 0", "node 0 is not in");
        check("name = \"lab\"", "name = \"../lab\"", "is not a name");
        check("id = 1", "id = 0", "container id 0");
        check("nodes = [1, 2]", "nodes = [1, 2, 5000]", "node 5000 is not in");
        check("nodes = [1, 2]", "nodes = [2]", "does not span this node");
        check("home = 2", "home = 3", "home node 3");
        check("home = 2", "home = 2\nmaps = [\"srv\"]", "not an absolute path");
        check("home = 2", "hom = 2", "unknown field");
    }

    #[test]
    fn a_container_on_a_node_that_is_no_member_is_refused() {
        let config = Config::parse(GOOD).unwrap();
        config.check_spans(&[2]).unwrap();
        let error = config.check_spans(&[]).unwrap_err().to_string();
        assert!(error.contains("spans node 2, which is not a member"), "{error}");
    }

    fn check(good: &str, bad: &str, says: &str) {
        let error = format!("{:#}", Config::parse(&GOOD.replacen(good, bad, 1)).unwrap_err());
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}
