//! Where a node of a real DVS keeps everything: one directory, with `dvkd.toml` in it.

use crate::lab::{self, Lab};
use anyhow::{Context, Result, ensure};
use dvk::dvkd::{Config, Packing};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where nodes listen, if nothing else is said.
pub(crate) const PORT: u16 = 7083;

/// The state directory if nothing else is said.
const DIRECTORY: &str = "/var/lib/dvs";

/// In the environment: the state directory.
const VARIABLE: &str = "DVS_STATE_DIR";

/// Which node of this machine is meant.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct StateOption {
    /// The node's state directory [default: $DVS_STATE_DIR, the first node of the lab that is up, or /var/lib/dvs]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Whether a node compresses what it sends to others.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct CompressionOption {
    /// Compress large messages to nodes that do it, too: never, auto (as long as that is faster) or always
    #[arg(
        long = "compression",
        value_name = "WHEN",
        default_value = "never",
        long_help = "\
Compress large messages to nodes that do it, too, with LZ4: never, auto (as long as that is faster) or always.

Whoever sees the network sees how long messages are; compressed, that says something about what is in them. Leave it \
at \"never\" where a stranger can choose a part of what your programs send."
    )]
    pub(crate) value: Packing,
}

impl StateOption {
    /// The directory of a node that is to be made.
    pub(crate) fn directory(&self) -> PathBuf {
        let named = self.state.clone().or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
        named.unwrap_or_else(|| DIRECTORY.into())
    }

    /// Has anybody said which?
    pub(crate) fn is_named(&self) -> bool {
        self.state.is_some() || std::env::var_os(VARIABLE).is_some()
    }

    /// The configuration of a node that is there.
    ///
    /// # Errors
    /// One sentence: there is none.
    pub(crate) fn config(&self) -> Result<Config> {
        self.config_of(None)
    }

    /// The configuration of a node of the lab, by name or number, or of the usual one.
    ///
    /// # Errors
    /// One sentence: there is none.
    pub(crate) fn config_of(&self, node: Option<&str>) -> Result<Config> {
        let lab = if self.is_named() { None } else { Lab::read(&lab::directory())? };
        let is_it = |number: u16, name: &str| {
            node.is_none_or(|wanted| name == wanted || number.to_string() == wanted)
        };
        let found = lab.as_ref().map(|lab| {
            let found = lab.nodes.iter().find(|node| is_it(node.node, &node.name));
            let found = found.with_context(|| format!("there is no node {node:?} in the lab"));
            found.map(|node| lab.run(node))
        });
        let path = found.transpose()?.unwrap_or_else(|| self.directory()).join("dvkd.toml");
        ensure!(
            path.exists(),
            "{} is not there: this machine is no node yet (\"dvs init\", \"dvs join\")",
            path.display()
        );
        let config = Config::read(&path)?;
        ensure!(
            is_it(config.node, &config.name),
            "this machine is node {}; ask another on its own machine",
            config.name
        );
        Ok(config)
    }
}

/// The node of this machine, if it is one. Where a lab is up that is meant, unless somebody says otherwise.
///
/// # Errors
/// One sentence: what is named is no node, or its configuration is not understood.
pub(crate) fn own_node() -> Result<Option<Config>> {
    let usual = StateOption::default();
    let is_there = || usual.directory().join("dvkd.toml").exists();
    if usual.is_named() || is_there() && Lab::read(&lab::directory())?.is_none() {
        return usual.config().map(Some);
    }
    Ok(None)
}

/// Makes a state directory; there may be no node in it.
///
/// # Errors
/// One sentence with the directory's name.
pub(crate) fn make(directory: &Path) -> Result<()> {
    let shown = directory.display();
    ensure!(!directory.join("dvkd.toml").exists(), "{shown} is the state of a node already");
    fs::create_dir_all(directory).with_context(|| format!("cannot make {shown}"))
}

/// Where the node's secrets are.
pub(crate) fn credentials(directory: &Path) -> PathBuf {
    directory.join("credentials")
}

/// Writes the configuration of a node without containers, and says how to start it.
///
/// # Errors
/// One sentence with the file's name.
pub(crate) fn write(
    directory: &Path,
    node: u16,
    name: &str,
    listen: SocketAddr,
    compression: Packing,
) -> Result<String> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let program = program.to_str().context("this program's path is not UTF-8")?.to_owned();
    let directory = fs::canonicalize(directory)?;
    let config = Config {
        node,
        name: name.to_owned(),
        listen,
        credentials: Some(credentials(&directory)),
        run: directory.join("run"),
        store: directory.join("store"),
        command: vec![program.clone()],
        servers_inside: false,
        compression,
        dcs: Vec::new(),
    };
    config.check()?;
    let path = directory.join("dvkd.toml");
    fs::write(&path, config.to_toml()?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(format!("{program} dvkd --config {}", path.display()))
}

/// The name of this machine, as a node's name.
///
/// # Errors
/// It cannot be one.
pub(crate) fn own_name() -> Result<String> {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy().into_owned();
    let short = name.split('.').next().unwrap_or_default().to_owned();
    ensure!(!short.is_empty(), "this machine has no name; choose one with --name");
    Ok(short)
}

/// `IP` or `IP:PORT`, with the usual port.
///
/// # Errors
/// It is neither.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr> {
    let alone = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    let address = text.parse().or_else(|_| alone());
    let address = address.with_context(|| format!("{text:?} is not IP or IP:PORT"))?;
    ensure!(!address.ip().is_unspecified(), "other nodes cannot connect to {}", address.ip());
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_or_the_usual_one() {
        let check = |text: &str, expected: Option<&str>| {
            let address = parse_address(text).ok().map(|address| address.to_string());
            assert_eq!(address.as_deref(), expected, "{text:?}");
        };
        check("10.0.0.1", Some("10.0.0.1:7083"));
        check("10.0.0.1:80", Some("10.0.0.1:80"));
        check("::1", Some("[::1]:7083"));
        check("[::1]:80", Some("[::1]:80"));
        check("0.0.0.0", None);
        check("[::]:7083", None);
        check("host", None);
        check("10.0.0.1:99999", None);
    }
}
