//! Three daemons in this process, and endpoints bound at their doors. Two of them are a majority: what one that is down
//! was can be taken over.

use dvk::dvkd::{Config, Daemon, Dc, Packing, Peer, found};
use dvk_client::{Bound, Endpoint, NodeId};
use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Longer than anything takes; whoever waits so long waits for ever.
pub(crate) const NEVER: Option<Duration> = Some(Duration::from_secs(20));
/// Long enough that a wait is seen to wait.
pub(crate) const SHORT: Option<Duration> = Some(Duration::from_millis(30));
pub(crate) const NOWAIT: Option<Duration> = Some(Duration::ZERO);

/// Nobody, on every Linux.
const NOBODY: u32 = 65_534;

/// A cluster of the nodes 1 to 3 with the DC in which endpoints are bound, and another.
pub(crate) struct Cluster {
    _dir: tempfile::TempDir,
    configs: Vec<Config>,
    daemons: Vec<Option<Daemon>>,
}

impl Cluster {
    pub(crate) fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let ports = [1, 2, 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = ports.each_ref().map(|port| port.local_addr().unwrap());
        drop(ports);
        let config = |node: u16| Config {
            node,
            name: format!("n{node}"),
            listen: addresses[usize::from(node) - 1],
            run: dir.path().join(format!("run{node}")),
            store: dir.path().join(format!("store{node}")),
            command: Vec::new(),
            servers_inside: false,
            compression: Packing::Never,
            credentials: Some(dir.path().join(format!("credentials{node}"))),
            dcs: [(1, "lab"), (2, "other")]
                .map(|(id, name)| Dc {
                    id,
                    name: name.into(),
                    nodes: vec![1, 2, 3],
                    home: 1,
                    maps: Vec::new(),
                })
                .to_vec(),
        };
        let configs = vec![config(1), config(2), config(3)];
        let places = configs.iter().map(|config| {
            let Config { node, name, listen, credentials, .. } = config.clone();
            (Peer { node, name, address: listen }, credentials.unwrap())
        });
        found(&places.collect::<Vec<_>>()).unwrap();
        let daemons =
            configs.iter().map(|config| Some(Daemon::start(config.clone()).unwrap())).collect();
        let cluster = Cluster { _dir: dir, configs, daemons };
        wait_until("the links are up", || {
            let all = cluster.daemons.iter().flatten();
            all.map(Daemon::status).all(|status| status.nodes.iter().all(|node| node.up))
        });
        cluster
    }

    pub(crate) fn socket(&self, node: usize) -> PathBuf {
        self.socket_of(node, "lab")
    }

    pub(crate) fn socket_of(&self, node: usize, dc: &str) -> PathBuf {
        self.configs[node - 1].socket(dc)
    }

    /// Any endpoint on `node`.
    pub(crate) fn bind(&self, node: usize) -> Bound {
        self.bind_as(node, 0)
    }

    pub(crate) fn bind_as(&self, node: usize, number: u32) -> Bound {
        Bound::bind(Some(&self.socket(node)), number).unwrap()
    }

    /// A test of this program, to be run by a user without rights who can reach the node's socket.
    pub(crate) fn as_nobody(&self, node: usize, test: &str) -> Command {
        let socket = self.socket(node);
        let run = socket.parent().unwrap();
        for directory in [run, run.parent().unwrap()] {
            std::fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
        }
        // That user cannot look into the target directory.
        let copy = run.join(test);
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let mut command = Command::new(copy);
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]).current_dir("/");
        command.uid(NOBODY).gid(NOBODY);
        command
    }

    /// Endpoints of the first container whose place the system group keeps, as a node knows it.
    pub(crate) fn placed(&self, node: usize) -> usize {
        self.daemons[node - 1].as_ref().unwrap().status().dcs[0].placed
    }

    /// Times that the daemon of a node has met something that breaks a protocol.
    pub(crate) fn protocol_errors(&self, node: usize) -> u64 {
        let daemon = self.daemons[node - 1].as_ref().unwrap();
        daemon.status().counters.protocol_errors
    }

    /// The daemon of a node ends, and everything bound there.
    pub(crate) fn stop(&mut self, node: usize) {
        self.daemons[node - 1].take().unwrap().stop();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.daemons.drain(..).flatten().for_each(Daemon::stop);
    }
}

pub(crate) fn well_known(node: u16, number: u32) -> Endpoint {
    Endpoint::well_known(NodeId(node), number)
}

/// Waits until `condition`; twenty seconds are "never".
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < limit, "never: {what}");
        std::thread::yield_now();
    }
}
