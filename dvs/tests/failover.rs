//! A lab of three nodes under load, of which one is killed, cut off, or heard or hears no more: the other two go on.
//!
//! What clients of the two wait for at most is printed. Root and /dev/fuse are needed; without them the tests say so
//! and pass.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use dvk::dvkd::services::{self, Client, Failure, GroupStatus, Op, Reply, Request, Standing};
use dvk_client::{Bound, Endpoint, IpcError, Message};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long something may take that takes no time at all on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What nobody on the two nodes may wait for at most. One second is wanted, and kept on a machine that has time for it.
const BOUND: Duration = Duration::from_secs(5);

/// Acknowledgements of each client that show that it is served.
const SERVED: usize = 50;

/// Between two calls of a client: three nodes and a dozen clients share the processors of one machine.
const PACE: Duration = Duration::from_millis(1);

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const DC: &str = "lab";

/// A lab that ends with the test.
struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    /// `None`: this machine does not let us have one.
    fn up() -> Option<Lab> {
        let fuse = fs::File::options().read(true).write(true).open("/dev/fuse");
        if !rustix::process::geteuid().is_root() || fuse.is_err() {
            eprintln!("SKIPPED: a lab with network namespaces needs root and /dev/fuse");
            return None;
        }
        let lab = Lab { directory: tempfile::tempdir().unwrap() };
        lab.succeeds(&["lab", "up", "--nodes", "3"]);
        settled(&lab);
        Some(lab)
    }

    /// The run directory of a node.
    fn run(&self, node: usize) -> PathBuf {
        self.directory.path().join("lab").join(NODES[node])
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.run(node).join(format!("dc-{DC}.sock"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dvs"));
        command.args(arguments).env("DVS_LAB_DIR", self.directory.path().join("lab"));
        command.stdin(Stdio::null());
        command
    }

    fn succeeds(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }

    fn kill(&self, node: usize) {
        let file = fs::read_to_string(self.run(node).join("dvkd.pid")).unwrap();
        let pid = file.split(' ').next().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    fn group(&self, node: usize) -> Option<GroupStatus> {
        services::group_status(&self.run(node)).ok().flatten()
    }

    /// Any endpoint on a node, of this process.
    fn bind(&self, node: usize) -> Bound {
        Bound::bind(Some(&self.socket(node)), 0).unwrap()
    }

    /// A shell on a node that appends numbers to a file of the DC, and says each that it has appended.
    fn append(&self, node: usize, file: &str) -> Child {
        let script = format!(
            "i=0; until [ -e /dvs/{file}.end ]; do echo $i >>/dvs/{file} && echo $i; i=$((i + 1)); sleep 0.005; done"
        );
        let mut command = self.command(&["run", "--node", NODES[node], "--", "sh", "-c", &script]);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in 0..3 {
                let log = fs::read_to_string(self.run(node).join("dvkd.log")).unwrap_or_default();
                eprintln!("--- {}\n{log}", NODES[node]);
            }
        }
        self.command(&["lab", "down"]).output().unwrap();
    }
}

/// Waits for a state, not for a time.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All nodes are up in the group, and have links to each other, as each of them sees it.
fn settled(lab: &Lab) {
    let sees_all = |node: usize| {
        lab.group(node).is_some_and(|status| {
            status.standing == Standing::Up
                && status.leader.is_some()
                && status.members.len() == 3
                && status.members.iter().all(|one| one.is_up && one.is_linked)
        })
    };
    wait_until("the group settles", || (0..3).all(sees_all));
}

/// What happens to a node.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Killed,
    Cut,
    /// It hears nothing.
    Deaf,
    /// Nobody hears it.
    Mute,
}

impl Trouble {
    fn is_mended(self) -> bool {
        !matches!(self, Trouble::Killed)
    }

    fn begin(self, lab: &Lab, node: usize) {
        let words = ["lab", "cut", NODES[node]];
        let cut = |more: &[&str]| drop(lab.succeeds(&[&words[..], more].concat()));
        match self {
            Trouble::Killed => lab.kill(node),
            Trouble::Cut => cut(&[]),
            Trouble::Deaf => cut(&["--only", "in"]),
            Trouble::Mute => cut(&["--only", "out"]),
        }
    }
}

/// The longest time between two things that happen to a client.
#[derive(Debug)]
struct Gauge {
    what: String,
    now: Mutex<(Instant, Duration, usize)>,
}

impl Gauge {
    fn new(what: String) -> Gauge {
        Gauge { what, now: Mutex::new((Instant::now(), Duration::ZERO, 0)) }
    }

    fn note(&self) {
        let mut now = self.now.lock().unwrap();
        let gap = now.0.elapsed();
        // Before the first one nothing had begun.
        let worst = if now.2 == 0 { Duration::ZERO } else { now.1.max(gap) };
        *now = (Instant::now(), worst, now.2 + 1);
    }

    fn count(&self) -> usize {
        self.now.lock().unwrap().2
    }

    fn worst(&self) -> Duration {
        let now = self.now.lock().unwrap();
        now.1.max(now.0.elapsed())
    }
}

/// Puts keys on a node until it is told to stop; returns those that are acknowledged.
fn put(lab: &Lab, node: usize, prefix: &str, gauge: &Gauge, stop: &AtomicBool) -> Vec<String> {
    let mut client = Client::connect(&lab.run(node)).unwrap();
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("{prefix}-{}-{number}", NODES[node]);
        let op = Op::Put {
            key: key.as_str().into(),
            value: "x".into(),
            lease: services::Lease::default(),
        };
        match client.ask(&Request { op, timeout_ms: None }, |_| ()).unwrap() {
            Reply::Changed { .. } => {
                gauge.note();
                acknowledged.push(key);
            }
            // How long that lasts is what is measured. The first may have happened.
            Reply::Failed { failure: Failure::Unavailable | Failure::Fenced, .. } => {}
            other => panic!("put on {}: {other:?}", NODES[node]),
        }
        std::thread::sleep(PACE);
    }
    acknowledged
}

/// The keys with this prefix that a node has.
fn keys(lab: &Lab, node: usize, prefix: &str) -> BTreeSet<String> {
    let mut client = Client::connect(&lab.run(node)).unwrap();
    let mut found = BTreeSet::new();
    let mut start: services::Text = prefix.into();
    loop {
        let op = Op::Range { start: start.clone(), end: None, limit: 500 };
        let reply = client.ask(&Request { op, timeout_ms: None }, |_| ()).unwrap();
        let Reply::Range { entries, more, .. } = reply else { panic!("{reply:?}") };
        for entry in entries {
            start = services::Text([&entry.key.0[..], &[0]].concat());
            found.insert(String::from_utf8(entry.key.0).unwrap());
        }
        if !more {
            return found;
        }
    }
}

/// Answers until it is told to stop, when nobody asks any more.
fn answer(server: &Bound, stop: &AtomicBool) {
    let mut payload = [0; 64];
    while !stop.load(Ordering::SeqCst) {
        match server.rcvrqst(&mut payload, Some(Duration::from_millis(100))) {
            // Whoever asked may have gone.
            Ok(got) => drop(server.reply(got.message.source, &got.message, b"")),
            Err(IpcError::TimedOut) => {}
            // Its node has been killed.
            Err(_) => return,
        }
    }
}

/// One call to a peer.
fn call(client: &Bound, server: Endpoint, timeout: Duration) -> Result<(), IpcError> {
    let mut message = Message::request(0x1001);
    client.sendrec(server, &mut message, b"", &mut [0; 64], Some(timeout)).map(drop)
}

/// Calls until it is told to stop. Not one may fail.
fn call_on(client: &Bound, server: Endpoint, gauge: &Gauge, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        call(client, server, PATIENCE).unwrap_or_else(|error| panic!("{}: {error:?}", gauge.what));
        gauge.note();
        std::thread::sleep(PACE);
    }
}

/// Calls the node that is to be in trouble until a call ends with an error; returns that, and how long it took.
fn call_until_it_fails(client: &Bound, server: Endpoint) -> (IpcError, Duration) {
    loop {
        let begin = Instant::now();
        if let Err(error) = call(client, server, PATIENCE) {
            return (error, begin.elapsed());
        }
        std::thread::sleep(PACE);
    }
}

/// Reads what a shell has appended until it ends, well; returns the lines.
fn follow(mut shell: Child, gauge: &Gauge) -> Vec<String> {
    let output = BufReader::new(shell.stdout.take().unwrap());
    let lines = output.lines().map_while(Result::ok).inspect(|_| gauge.note()).collect();
    assert!(shell.wait().unwrap().success());
    lines
}

/// What clients of two nodes were told that has happened.
struct Acknowledged {
    keys: Vec<String>,
    /// Lines, by the file that they were appended to.
    lines: Vec<(String, Vec<String>)>,
}

impl Acknowledged {
    /// All of it is there, as these nodes see it.
    fn check(&self, lab: &Lab, prefix: &str, nodes: &[usize]) {
        for node in nodes {
            let found = keys(lab, *node, prefix);
            let lost = self.keys.iter().find(|key| !found.contains(*key));
            assert_eq!(lost, None, "acknowledged, and lost on {}", NODES[*node]);
            for (file, lines) in &self.lines {
                let path = format!("/dvs/{file}");
                let output = lab.succeeds(&["run", "--node", NODES[*node], "--", "cat", &path]);
                let text = String::from_utf8(output.stdout).unwrap();
                let found: Vec<&str> = text.lines().collect();
                assert_eq!(found, *lines, "{file} on {}", NODES[*node]);
            }
        }
    }
}

/// The clients of the two nodes that go on, and what they wait for.
struct Load<'a> {
    lab: &'a Lab,
    /// The nodes.
    pair: [usize; 2],
    prefix: &'a str,
    puts: [Gauge; 2],
    calls: [Gauge; 2],
    appends: Vec<(usize, Gauge)>,
    /// For the clients; their servers go on until they have ended.
    stop: AtomicBool,
    over: AtomicBool,
}

impl Load<'_> {
    fn new<'a>(lab: &'a Lab, victim: usize, prefix: &'a str) -> Load<'a> {
        let pair = if victim == 0 { [1, 2] } else { [0, 3 - victim] };
        let gauges = |what: &str| pair.map(|node| Gauge::new(format!("{what} on {}", NODES[node])));
        // The servers are at home on the first node.
        let nodes = if victim == 0 { &[][..] } else { &pair[..] };
        let appends = nodes.iter().copied().zip(gauges("append to a file")).collect();
        Load {
            lab,
            pair,
            prefix,
            puts: gauges("system group"),
            calls: gauges("call to the other"),
            appends,
            stop: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    fn gauges(&self) -> impl Iterator<Item = &Gauge> {
        let appends = self.appends.iter().map(|(_, gauge)| gauge);
        self.puts.iter().chain(&self.calls).chain(appends)
    }

    /// Waits until each client has been served again, a number of times.
    fn served(&self) {
        let wanted: Vec<usize> = self.gauges().map(|gauge| gauge.count() + SERVED).collect();
        for (gauge, wanted) in self.gauges().zip(wanted) {
            wait_until(&gauge.what, || gauge.count() >= wanted);
        }
    }

    fn file(&self, node: usize) -> String {
        format!("{}-{}", self.prefix, NODES[node])
    }

    /// Runs it while `trouble` begins, until both nodes have given `victim` up and gone on.
    fn run(&self, trouble: Trouble, victim: usize) -> Acknowledged {
        let (lab, stop) = (self.lab, &self.stop);
        let [a, b] = self.pair;
        let servers = [lab.bind(a), lab.bind(b), lab.bind(victim)];
        let [at_a, at_b, at_victim] = servers.each_ref().map(Bound::endpoint);
        let callers = [lab.bind(a), lab.bind(b)];
        let losers = [lab.bind(a), lab.bind(b)];
        std::thread::scope(|scope| {
            for server in &servers {
                scope.spawn(move || answer(server, &self.over));
            }
            let putting = self.pair.iter().zip(&self.puts).map(|(node, gauge)| {
                scope.spawn(move || put(lab, *node, self.prefix, gauge, stop))
            });
            let putting: Vec<_> = putting.collect();
            let pairs = callers.iter().zip([at_b, at_a]).zip(&self.calls);
            let calling = pairs.map(|((caller, server), gauge)| {
                scope.spawn(move || call_on(caller, server, gauge, stop))
            });
            let calling: Vec<_> = calling.collect();
            let appending = self.appends.iter().map(|(node, gauge)| {
                scope.spawn(move || follow(lab.append(*node, &self.file(*node)), gauge))
            });
            let appending: Vec<_> = appending.collect();
            let losing = losers
                .iter()
                .map(|caller| scope.spawn(move || call_until_it_fails(caller, at_victim)));
            let losing: Vec<_> = losing.collect();
            self.served();
            trouble.begin(lab, victim);
            for (lost, node) in losing.into_iter().zip(self.pair) {
                let (error, time) = lost.join().unwrap();
                eprintln!(
                    "  a call to it from {} ended with {error:?} after {time:.1?}",
                    NODES[node]
                );
            }
            self.served();
            self.print_and_check();
            stop.store(true, Ordering::SeqCst);
            calling.into_iter().for_each(|one| one.join().unwrap());
            self.over.store(true, Ordering::SeqCst);
            for (node, _) in &self.appends {
                let end = format!("/dvs/{}.end", self.file(*node));
                lab.succeeds(&["run", "--node", NODES[*node], "--", "touch", &end]);
            }
            let keys = putting.into_iter().flat_map(|one| one.join().unwrap()).collect();
            let files = self.appends.iter().map(|(node, _)| self.file(*node));
            let lines = files.zip(appending.into_iter().map(|one| one.join().unwrap())).collect();
            Acknowledged { keys, lines }
        })
    }

    fn print_and_check(&self) {
        let worst: Vec<Duration> = self.gauges().map(Gauge::worst).collect();
        for (gauge, worst) in self.gauges().zip(&worst) {
            eprintln!("  {:<26} {:>5} ms at most", gauge.what, worst.as_millis());
        }
        assert!(worst.iter().all(|gap| *gap < BOUND), "{worst:?}");
    }
}

/// A node gets into trouble. What was acknowledged is there, on the nodes that go on, and on it when it is back.
fn survive(lab: &Lab, trouble: Trouble, victim: usize) {
    let prefix = format!("{trouble:?}-{}", NODES[victim]);
    let load = Load::new(lab, victim, &prefix);
    let leader = lab.group(victim).and_then(|status| status.leader).unwrap();
    eprintln!("{} {trouble:?}; the group's leader was n{leader}", NODES[victim]);
    let acknowledged = load.run(trouble, victim);
    acknowledged.check(lab, &prefix, &load.pair);
    if trouble.is_mended() {
        lab.succeeds(&["lab", "mend", NODES[victim]]);
        let mended = Instant::now();
        settled(lab);
        eprintln!("  back in the group {:.1?} after it was mended", mended.elapsed());
        acknowledged.check(lab, &prefix, &[victim]);
        comes_back(lab, victim);
    }
}

/// Calls reach the node again, and its own others.
fn comes_back(lab: &Lab, node: usize) {
    let stop = AtomicBool::new(false);
    let servers = [lab.bind(node), lab.bind((node + 1) % 3)];
    let clients = [lab.bind((node + 1) % 3), lab.bind(node)];
    std::thread::scope(|scope| {
        for server in &servers {
            scope.spawn(|| answer(server, &stop));
        }
        for (client, server) in clients.iter().zip(&servers) {
            call(client, server.endpoint(), PATIENCE).unwrap();
        }
        stop.store(true, Ordering::SeqCst);
    });
}

fn each_is(trouble: Trouble) {
    let Some(lab) = Lab::up() else { return };
    for victim in 0..3 {
        survive(&lab, trouble, victim);
    }
}

#[test]
fn two_nodes_go_on_when_the_third_is_killed() {
    for victim in 0..3 {
        let Some(lab) = Lab::up() else { return };
        survive(&lab, Trouble::Killed, victim);
    }
}

#[test]
fn two_nodes_go_on_when_the_third_is_cut_off_and_have_it_back() {
    each_is(Trouble::Cut);
}

#[test]
fn two_nodes_go_on_when_the_third_hears_nothing_and_have_it_back() {
    each_is(Trouble::Deaf);
}

#[test]
fn two_nodes_go_on_when_nobody_hears_the_third_and_have_it_back() {
    each_is(Trouble::Mute);
}
