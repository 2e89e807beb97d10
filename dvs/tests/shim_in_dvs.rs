//! C programs with the shim inside a DC of one node: the same programs as outside, and the same expectations.

use dvk::dvkd::{Config, Daemon, Dc, Packing};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use tempfile::TempDir;

const SHIM: &str = env!("DVS_SHIM");

/// A node: its daemon as threads of the test, its servers as processes.
struct Node {
    daemon: Option<Daemon>,
    servers: Vec<Child>,
    socket: PathBuf,
    directory: TempDir,
}

impl Node {
    fn start() -> Node {
        let directory = TempDir::new().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let dc = Dc { id: 1, name: "t".into(), nodes: vec![1], home: 1, maps: vec![] };
        let config = Config {
            node: 1,
            name: "n1".into(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            credentials: None,
            run: path("run"),
            store: path("store"),
            command: vec![],
            servers_inside: false,
            compression: Packing::Never,
            dcs: vec![dc],
        };
        let socket = config.socket("t");
        let daemon = Daemon::start(config).expect("it starts");
        let server = |name: &str| {
            let store = path(name);
            std::fs::create_dir(&store).expect("a directory");
            let mut command = Command::new(env!("CARGO_BIN_EXE_dvs"));
            command.arg(name).arg("--socket").arg(&socket).arg("--store").arg(store);
            command.spawn().expect("the server starts")
        };
        // A call waits until its server is there.
        let servers = ["vfs-server", "pm-server", "ipc-server"].map(server).into();
        Node { daemon: Some(daemon), servers, socket, directory }
    }

    /// Compiles and runs a program of `preload/tests`; it finds what it expects.
    fn check(&self, name: &str, preload: bool, arguments: &[&str]) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let program = self.directory.path().join(name);
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-Wall", "-Werror", "-pthread", "-DMIXED=0", "-o"]).arg(&program);
        compiler.arg(root.join("preload/tests").join(format!("{name}.c")));
        compiler.arg("-I").arg(root.join("libdvsposix/include"));
        if !preload {
            compiler.arg(SHIM);
        }
        succeeds(name, &compiler.output().expect("a C compiler is installed"));
        let mut command = Command::new(program);
        command.env_clear().env("DVS_SOCKET", &self.socket).args(arguments);
        match preload {
            true => command.env("LD_PRELOAD", SHIM),
            false => command.env("LD_LIBRARY_PATH", Path::new(SHIM).parent().expect("a directory")),
        };
        succeeds(name, &command.output().expect("the program starts"));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
        for server in &mut self.servers {
            server.kill().ok();
            server.wait().ok();
        }
    }
}

fn succeeds(name: &str, output: &Output) {
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{name}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn programs_find_in_a_dc_what_they_find_outside() {
    let node = Node::start();
    for name in
        ["unnamed_threads", "cancel", "interrupted", "named", "sysv", "mqueue", "kill_and_syscall"]
    {
        node.check(name, true, &[]);
    }
}

#[test]
fn a_c_program_linked_to_the_library_shares_the_objects_of_the_dc() {
    Node::start().check("linked", false, &["inside"]);
}

#[test]
fn a_semaphore_of_the_dc_is_no_file_of_the_node() {
    let node = Node::start();
    let before = names_in("/dev/shm");
    node.check("named", true, &[]);
    assert!(
        !names_in("/dev/shm")
            .iter()
            .any(|name| name.contains("shim-test") && !before.contains(name))
    );
}

fn names_in(directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect()
}
