//! A real DVS, not a lab: `dvs init`, `dvs token create`, `dvs join`, `dvs dc create`, and what becomes of a node that is
//! revoked.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use dvk::dvkd::admin::{self, Status};
use dvk_client::{Bound, Message};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long something may take that takes no time at all on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Machines, each a state directory.
struct World {
    directory: tempfile::TempDir,
}

/// A running dvkd.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl World {
    fn new() -> World {
        World { directory: tempfile::tempdir().unwrap() }
    }

    fn state(&self, machine: &str) -> PathBuf {
        self.directory.path().join(machine)
    }

    fn dvs(&self, machine: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dvs"));
        command.args(arguments).env("DVS_STATE_DIR", self.state(machine)).stdin(Stdio::null());
        command.output().unwrap()
    }

    fn succeeds(&self, machine: &str, arguments: &[&str]) -> String {
        let output = self.dvs(machine, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// It fails with one line that says `says`.
    fn fails(&self, machine: &str, arguments: &[&str], says: &str) {
        self.fails_with(1, machine, arguments, says);
    }

    /// The same with another exit status.
    fn fails_with(&self, status: i32, machine: &str, arguments: &[&str], says: &str) {
        let output = self.dvs(machine, arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
        assert!(
            error.contains(says) && error.trim().lines().count() == 1,
            "{error:?}, not {says:?}"
        );
    }

    fn start(&self, machine: &str) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dvs"));
        command.arg("dvkd").arg("--config").arg(self.state(machine).join("dvkd.toml"));
        let daemon = Daemon(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("dvkd answers", || self.status(machine).is_some());
        daemon
    }

    fn status(&self, machine: &str) -> Option<Status> {
        admin::status(&self.state(machine).join("run")).ok()
    }

    /// Do the container and its servers answer, so far as they are on this machine?
    fn is_ready(&self, machine: &str, dc: &str) -> bool {
        let status = self.status(machine);
        let dc = status.and_then(|status| status.dcs.into_iter().find(|known| known.name == dc));
        dc.is_some_and(|dc| dc.children.iter().all(|child| child.bound))
    }

    /// A process that is bound in a container, on this machine.
    fn bind(&self, machine: &str, dc: &str) -> Option<Bound> {
        let socket = self.state(machine).join("run").join(format!("dc-{dc}.sock"));
        Bound::bind(Some(&socket), 0).ok()
    }

    /// Machine b becomes a node of the DVS of a, where it is reached, and is started.
    fn join(&self, [a, b]: [&str; 2]) -> Daemon {
        let token = self.succeeds("a", &["token", "create"]);
        self.succeeds("b", &as_strs(&join_words(a, token.trim(), "b", b)));
        self.start("b")
    }

    /// Do a and b have a link, and nobody else?
    fn are_linked(&self) -> bool {
        self.linked("a") == ["b"] && self.linked("b") == ["a"]
    }

    /// The other nodes to which `machine` has a link.
    fn linked(&self, machine: &str) -> Vec<String> {
        let nodes = self.status(machine).unwrap().nodes.into_iter().skip(1);
        nodes.filter(|node| node.up).map(|node| node.name).collect()
    }
}

/// Waits for a state, not for a time.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// Addresses at which nobody listens now.
fn addresses(count: usize) -> Vec<SocketAddr> {
    let ports: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    ports.iter().map(|port| port.local_addr().unwrap()).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn machines_become_nodes_and_one_of_them_is_revoked() {
    let world = World::new();
    let addresses = addresses(3);
    let [a, b, c] = &addresses[..] else { panic!("three") };
    let (a, b, c) = (a.to_string(), b.to_string(), c.to_string());
    world.fails("a", &["token", "create"], "this machine is no node yet");
    world.succeeds("a", &["init", "--name", "a", "--listen", &a]);
    world.fails("a", &["init", "--name", "a", "--listen", &a], "the state of a node already");
    assert_eq!(mode(&world.state("a").join("credentials")), 0o700);
    assert_eq!(mode(&world.state("a").join("credentials/authority.key")), 0o600);
    let token = world.succeeds("a", &["token", "create", "--ttl", "5m"]);
    let token = token.trim();
    let words = |name: &str, listen: &str| join_words(&a, token, name, listen);
    world.fails("b", &as_strs(&words("b", &b)), "nobody answers at");
    let _a = world.start("a");
    world.succeeds("b", &as_strs(&words("b", &b)));
    world.fails("c", &as_strs(&words("c", &c)), "used already; create another one");
    let _b = world.start("b");
    wait_until("a and b have a link", || world.linked("a") == ["b"] && world.linked("b") == ["a"]);
    // Only where the authority is.
    world.fails("b", &["token", "create"], "create tokens where \"dvs init\" was run");
    let token = world.succeeds("a", &["token", "create"]);
    let at_b = join_words(&b, token.trim(), "c", &c);
    world.fails("c", &as_strs(&at_b), "has not the authority");
    world.succeeds("c", &as_strs(&join_words(&a, token.trim(), "c", &c)));
    let _c = world.start("c");
    wait_until("all have links", || {
        world.linked("a") == ["b", "c"]
            && world.linked("b") == ["a", "c"]
            && world.linked("c") == ["a", "b"]
    });
    let until = || world.status("c").unwrap().certificate_until.unwrap();
    let (before, revision) = (until(), world.status("a").unwrap().members_revision);
    assert!(world.succeeds("c", &["node", "renew"]).contains("counts until"));
    assert!(until() >= before);
    wait_until("the new certificate is known", || {
        world.status("b").unwrap().members_revision > revision
    });
    world.fails("b", &["node", "revoke", "c"], "is on node a; ask there");
    world.fails("a", &["node", "revoke", "x"], "there is no node \"x\"");
    world.succeeds("a", &["node", "revoke", "c"]);
    wait_until("c is out", || {
        world.linked("a") == ["b"] && world.linked("b") == ["a"] && world.linked("c").is_empty()
    });
}

/// A call from one to the other.
fn call(from: &Bound, to: &Bound) {
    let patience = Some(PATIENCE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let got = to.rcvrqst(&mut [0; 8], patience).unwrap();
            to.reply(got.message.source, &got.message, b"").unwrap();
        });
        let mut request = Message::request(0x1001);
        from.sendrec(to.endpoint(), &mut request, b"", &mut [0; 8], patience).unwrap();
    });
}

#[test]
fn a_node_that_joins_has_the_containers_that_were_made_before() {
    let world = World::new();
    let addresses = addresses(2);
    let [a, b] = &addresses[..] else { panic!("two") };
    let (a, b) = (a.to_string(), b.to_string());
    world.succeeds("a", &["init", "--name", "a", "--listen", &a]);
    let first = world.start("a");
    let said = world.succeeds("a", &["dc", "create", "early"]);
    assert!(said.contains("dc-early.sock"), "{said}");
    world.fails("a", &["dc", "create", "early"], "there is a container \"early\" already");
    world.fails("a", &["dc", "create", "a/b"], "is not a name");
    world.fails("a", &["dc", "create", "c", "--home", "x"], "there is no node \"x\"");
    let at_a = world.bind("a", "early").unwrap();
    let second = world.join([&a, &b]);
    wait_until("a and b have a link", || world.are_linked());
    // It is there from its start on.
    let at_b = world.bind("b", "early").unwrap();
    call(&at_a, &at_b);
    call(&at_b, &at_a);
    world.fails("b", &["dc", "create", "late"], "is on node a; ask there");
    world.succeeds("a", &["dc", "create", "late", "--home", "b"]);
    wait_until("b has the new one", || world.bind("b", "late").is_some());
    call(&world.bind("a", "late").unwrap(), &world.bind("b", "late").unwrap());
    assert_eq!(world.status("a").unwrap().dcs[1].home, 2);
    // Both have them when they are started again.
    drop((at_a, at_b, first, second));
    let _daemons = ["a", "b"].map(|machine| world.start(machine));
    wait_until("a and b have a link again", || world.are_linked());
    call(&world.bind("a", "early").unwrap(), &world.bind("b", "early").unwrap());
}

fn join_words(address: &str, token: &str, name: &str, listen: &str) -> [String; 8] {
    ["join", address, "--token", token, "--name", name, "--listen", listen].map(str::to_owned)
}

fn as_strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// A world where a has been founded, and where it and b listen; none where no programs can run.
fn with_programs() -> Option<(World, [String; 2])> {
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if fuse.is_err() {
        eprintln!("SKIPPED: programs need /dev/fuse");
        return None;
    }
    let (world, addresses) = (World::new(), addresses(2));
    let listen = [addresses[0].to_string(), addresses[1].to_string()];
    world.succeeds("a", &["init", "--name", "a", "--listen", &listen[0]]);
    Some((world, listen))
}

#[test]
fn programs_run_on_any_of_the_machines_see_one_tree_and_none_of_the_nodes_secrets() {
    let Some((world, [a, b])) = with_programs() else { return };
    world.fails_with(
        124,
        "a",
        &["run", "--", "true"],
        "this machine is node a, but no dvkd answers",
    );
    let first = world.start("a");
    world.fails_with(122, "a", &["run", "--", "true"], "\"dvs dc create NAME\" makes one");
    world.succeeds("a", &["dc", "create", "web"]);
    let _second = world.join([&a, &b]);
    for machine in ["a", "b"] {
        wait_until("its programs can run", || world.is_ready(machine, "web"));
    }
    wait_until("they have a link", || world.are_linked());
    world.succeeds("a", &["run", "--node", "b", "--", "sh", "-c", "hostname > /dvs/x"]);
    assert_eq!(world.succeeds("a", &["run", "--", "cat", "/dvs/x"]), "b\n");
    assert_eq!(world.succeeds("b", &["run", "--", "sh", "-c", "hostname; cat /dvs/x"]), "b\nb\n");
    // In a container as on a host, the nodes have names.
    let inside = ["run", "--", env!("CARGO_BIN_EXE_dvs"), "node", "ls"];
    for listed in [world.succeeds("a", &["node", "ls"]), world.succeeds("b", &inside)] {
        assert!(listed.contains(&a) && listed.contains(&b), "{listed}");
    }
    let listed = world.succeeds("b", &["dc", "ls"]);
    assert_eq!(listed.lines().nth(1).unwrap().split_whitespace().last(), Some("a,b"), "{listed}");
    // Neither keys nor stores nor sockets, not even for root.
    let state = world.state("a");
    let seen = world.succeeds("a", &["run", "--", "find", state.to_str().unwrap(), "-type", "f"]);
    assert_eq!(seen.trim(), state.join("dvkd.toml").to_str().unwrap());
    world.succeeds("a", &["dc", "create", "other"]);
    world.fails_with(122, "a", &["run", "--", "true"], "say which distributed container: --dc ");
    world.fails_with(122, "a", &["run", "--dc", "no", "--", "true"], "no distributed container");
    drop(first);
}

#[test]
fn a_container_that_is_removed_ends_everywhere_and_its_name_begins_anew() {
    let Some((world, [a, b])) = with_programs() else { return };
    let _first = world.start("a");
    world.succeeds("a", &["dc", "create", "stays"]);
    world.succeeds("a", &["dc", "create", "web"]);
    let second = world.join([&a, &b]);
    let is_everywhere = |dc: &str| ["a", "b"].iter().all(|machine| world.is_ready(machine, dc));
    wait_until("its programs can run", || is_everywhere("web") && is_everywhere("stays"));
    wait_until("they have a link", || world.are_linked());
    let run = [
        "run",
        "--dc",
        "web",
        "--node",
        "b",
        "--",
        "sh",
        "-c",
        "touch /dvs/x; exec tail -f /dev/null",
    ];
    let mut running = Command::new(env!("CARGO_BIN_EXE_dvs"));
    running.args(run).env("DVS_STATE_DIR", world.state("a")).stdin(Stdio::null());
    let mut running = Daemon(running.stderr(Stdio::null()).spawn().unwrap());
    let has_begun = ["run", "--dc", "web", "--", "test", "-e", "/dvs/x"];
    wait_until("the program runs", || world.dvs("a", &has_begun).status.success());
    world.succeeds("a", &["kv", "put", "--dc", "web", "k", "v"]);
    let outside = world.bind("a", "web").unwrap();
    world.fails("b", &["dc", "rm", "web"], "is on node a; ask there");
    world.fails("a", &["dc", "rm", "no"], "there is no container \"no\"");
    let said = world.succeeds("a", &["dc", "rm", "web"]);
    assert!(said.contains("in web.2 of its stores") && !said.contains("as soon as"), "{said}");
    assert!(!running.0.wait().unwrap().success(), "its programs end");
    let is_over = |machine: &str| {
        let names = world.status(machine).unwrap().dcs.into_iter().map(|dc| dc.name);
        names.eq(["stays".to_owned()])
            && world.bind(machine, "web").is_none()
            && !world.state(machine).join("run/dc-web.sock").exists()
            && !world.state(machine).join("run/dc-web.toml").exists()
    };
    wait_until("it is over", || is_over("a") && is_over("b"));
    let mut request = Message::request(0x1001);
    let to = outside.endpoint();
    let lost = || outside.sendrec(to, &mut request, b"", &mut [0; 8], Some(PATIENCE)).is_err();
    wait_until("who was in it is out", lost);
    assert!(world.state("a").join("store/web.2/vfs-server").is_dir(), "its files are there");
    // What is not its own goes on; what has its name is another, without its files and keys.
    world.succeeds("b", &["run", "--", "true"]);
    world.succeeds("a", &["dc", "create", "web"]);
    wait_until("its programs can run", || is_everywhere("web"));
    assert_eq!(world.succeeds("b", &["run", "--dc", "web", "--", "ls", "-A", "/dvs"]), "");
    assert!(!world.dvs("a", &["kv", "get", "--dc", "web", "k"]).status.success());
    let web = world.status("a").unwrap().dcs.into_iter().find(|dc| dc.name == "web");
    assert_eq!(web.unwrap().id, 3);
    // A node that was away hears of it.
    drop(second);
    world.succeeds("a", &["dc", "rm", "web"]);
    let _second = world.start("b");
    wait_until("b has heard of it", || is_over("b"));
}
