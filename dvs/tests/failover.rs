//! A lab of three nodes under load, of which one is killed, cut off, or heard or hears no more: the other two go on, and
//! have it back.
//!
//! What clients of the two wait for at most is printed, and is a second at most on a machine that has time for it. A
//! machine that is busy with something else stops everybody now and then. How long is measured beside (a thread that
//! wakes up and has a few bytes synced to the same disk, as each step of an election does) and printed: each of the steps
//! may take so much longer. Root and /dev/fuse are needed; without them the tests say so and pass.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use dvk::dvkd::services::{self, Client, Failure, GroupStatus, Op, Reply, Standing};
use dvk_client::{Bound, Endpoint, IpcError, Message};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long something may take that takes no time at all on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What nobody on the two nodes may wait for at most.
const WITHIN: Duration = Duration::from_secs(1);

/// Waits for a CPU and a disk one after the other, from the last sign of life of a leader to the first answer of the
/// next: the silence is noticed, vote, its answer, first entry, its answer, entry of the client, its answer.
const STEPS: u32 = 7;

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

    fn tell_logs(&self) {
        for (node, name) in NODES.iter().enumerate() {
            if let Ok(log) = fs::read_to_string(self.run(node).join("dvkd.log")) {
                eprintln!("--- {name}\n{log}");
            }
        }
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
            self.tell_logs();
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

    fn end(self, lab: &Lab, node: usize) {
        let word = if matches!(self, Trouble::Killed) { "restart" } else { "mend" };
        lab.succeeds(&["lab", word, NODES[node]]);
    }
}

/// How long the machine makes everybody wait, until it is told to stop.
fn measure_stalls(lab: &Lab, worst: &Mutex<Duration>, stop: &AtomicBool) {
    let mut file = File::create(lab.directory.path().join("stalls")).unwrap();
    while !stop.load(Ordering::SeqCst) {
        let begin = Instant::now();
        std::thread::sleep(PACE);
        file.write_all(b"x").and_then(|()| file.sync_data()).unwrap();
        let mut worst = worst.lock().unwrap();
        *worst = worst.max(begin.elapsed().saturating_sub(PACE));
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

/// Keys, and the revisions that made them.
type Keys = BTreeMap<String, u64>;

/// Puts keys on a node until it is told to stop, and reads each back; returns those that are acknowledged.
fn put(lab: &Lab, node: usize, prefix: &str, gauge: &Gauge, stop: &AtomicBool) -> Keys {
    let mut client = Client::connect(&lab.run(node), None).unwrap();
    let mut ask = |op| client.ask(op, None, |_| ()).unwrap();
    let mut acknowledged = Keys::new();
    let mut last = 0;
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("{prefix}-{}-{number}", NODES[node]);
        let lease = services::Lease::default();
        let op = Op::Put { key: key.as_str().into(), value: "x".into(), lease };
        match ask(op) {
            Reply::Changed { revision, .. } => {
                assert!(revision > last, "{key}: revision {revision} after {last}");
                last = revision;
                gauge.note();
                read_back(&mut ask, &key, revision);
                acknowledged.insert(key, revision);
            }
            // How long that lasts is what is measured. The first may have happened.
            Reply::Failed { failure: Failure::Unavailable | Failure::Fenced, .. } => {}
            other => panic!("put on {}: {other:?}", NODES[node]),
        }
        std::thread::sleep(PACE);
    }
    acknowledged
}

/// A key is there as it was acknowledged, if anything is to be had now.
fn read_back(ask: &mut impl FnMut(Op) -> Reply, key: &str, revision: u64) {
    match ask(Op::Get { key: key.into() }) {
        Reply::Value { entry } => {
            let found = entry.map(|entry| entry.modified);
            assert_eq!(found, Some(revision), "{key}");
        }
        Reply::Failed { failure: Failure::Unavailable | Failure::Fenced, .. } => {}
        other => panic!("get of {key}: {other:?}"),
    }
}

/// The keys with this prefix that a node has.
fn keys(lab: &Lab, node: usize, prefix: &str) -> Keys {
    let mut client = Client::connect(&lab.run(node), None).unwrap();
    let mut found = Keys::new();
    let mut start: services::Text = prefix.into();
    loop {
        let op = Op::Range { start: start.clone(), end: None, limit: 500 };
        let mut reply = None;
        // A node that has just come back may be choosing a leader with the others.
        wait_until("keys are told", || {
            let told = client.ask(op.clone(), None, |_| ()).unwrap();
            let is_told = !matches!(told, Reply::Failed { .. });
            reply = Some(told);
            is_told
        });
        let Some(Reply::Range { entries, more, .. }) = reply else { panic!("{reply:?}") };
        for entry in entries {
            start = services::Text([&entry.key.0[..], &[0]].concat());
            found.insert(String::from_utf8(entry.key.0).unwrap(), entry.modified);
        }
        if !more {
            return found;
        }
    }
}

/// How many calls have come from each, numbered from 0: each once, and in order.
type Calls = BTreeMap<Endpoint, u64>;

/// Answers until it is told to stop, when nobody asks any more.
fn answer(server: &Bound, stop: &AtomicBool) -> Calls {
    let mut calls = Calls::new();
    let mut payload = [0; 8];
    while !stop.load(Ordering::SeqCst) {
        match server.rcvrqst(&mut payload, Some(Duration::from_millis(100))) {
            Ok(got) => {
                let count = calls.entry(got.message.source).or_default();
                assert_eq!(u64::from_le_bytes(payload), *count, "of {:?}", got.message.source);
                *count += 1;
                // Whoever asked may have gone.
                server.reply(got.message.source, &got.message, &payload).ok();
            }
            Err(IpcError::TimedOut) => {}
            // Its node has been killed.
            Err(_) => break,
        }
    }
    calls
}

/// One call to a peer.
fn call(client: &Bound, to: Endpoint, number: u64) -> Result<(), IpcError> {
    let (number, mut answer) = (number.to_le_bytes(), [0; 8]);
    let mut message = Message::request(0x1001);
    client.sendrec(to, &mut message, &number, &mut answer, Some(PATIENCE))?;
    assert_eq!(answer, number, "the answer to another call");
    Ok(())
}

/// Calls until it is told to stop. Not one may fail. Returns how many there were.
fn call_on(client: &Bound, to: Endpoint, gauge: &Gauge, stop: &AtomicBool) -> u64 {
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        call(client, to, number).unwrap_or_else(|error| panic!("{}: {error:?}", gauge.what));
        number += 1;
        gauge.note();
        std::thread::sleep(PACE);
    }
    number
}

/// Calls the node that is to be in trouble until a call ends with an error; returns that, and how long it took.
fn call_until_it_fails(client: &Bound, to: Endpoint) -> (IpcError, Duration) {
    for number in 0.. {
        let begin = Instant::now();
        if let Err(error) = call(client, to, number) {
            return (error, begin.elapsed());
        }
        std::thread::sleep(PACE);
    }
    unreachable!("it counts for ever")
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
    keys: Keys,
    /// Lines, by the file that they were appended to.
    lines: Vec<(String, Vec<String>)>,
}

impl Acknowledged {
    /// All of it is there, as these nodes see it.
    fn check(&self, lab: &Lab, prefix: &str, nodes: &[usize]) {
        for node in nodes {
            let found = keys(lab, *node, prefix);
            let lost = self.keys.iter().find(|(key, made)| found.get(*key) != Some(*made));
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

/// Ends the clients when the test has failed; else they have ended.
struct Ender<'a>(&'a Load<'a>);

impl Drop for Ender<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.0.over.store(true, Ordering::SeqCst);
        if std::thread::panicking() {
            self.0.lab.tell_logs();
            self.0.lab.command(&["lab", "down"]).output().unwrap();
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
    stalls: Mutex<Duration>,
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
            stalls: Mutex::default(),
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
            let _ender = Ender(self);
            let answering =
                servers.each_ref().map(|server| scope.spawn(|| answer(server, &self.over)));
            scope.spawn(|| measure_stalls(lab, &self.stalls, &self.over));
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
            let made: Vec<u64> = calling.into_iter().map(|one| one.join().unwrap()).collect();
            for (node, _) in &self.appends {
                let end = format!("/dvs/{}.end", self.file(*node));
                lab.succeeds(&["run", "--node", NODES[*node], "--", "touch", &end]);
            }
            let keys = putting.into_iter().flat_map(|one| one.join().unwrap()).collect();
            let files = self.appends.iter().map(|(node, _)| self.file(*node));
            let lines = files.zip(appending.into_iter().map(|one| one.join().unwrap())).collect();
            self.over.store(true, Ordering::SeqCst);
            let [to_a, to_b, _] = answering.map(|one| one.join().unwrap());
            let received = [to_b.get(&callers[0].endpoint()), to_a.get(&callers[1].endpoint())];
            assert_eq!(received.map(|count| count.copied().unwrap_or(0)), made[..]);
            Acknowledged { keys, lines }
        })
    }

    fn print_and_check(&self) {
        let worst: Vec<Duration> = self.gauges().map(Gauge::worst).collect();
        for (gauge, worst) in self.gauges().zip(&worst) {
            eprintln!("  {:<26} {:>5} ms at most", gauge.what, worst.as_millis());
        }
        let stall = *self.stalls.lock().unwrap();
        eprintln!("  {:<26} {:>5} ms at most", "(the machine stalls)", stall.as_millis());
        let bound = WITHIN + STEPS * stall;
        assert!(worst.iter().all(|gap| *gap < bound), "{worst:?}, with stalls of {stall:?}");
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
    trouble.end(lab, victim);
    let mended = Instant::now();
    settled(lab);
    eprintln!("  back in the group {:.1?} after that ended", mended.elapsed());
    acknowledged.check(lab, &prefix, &[0, 1, 2]);
    comes_back(lab, victim);
}

/// Calls reach the node again, and its own others; and its processes are in the table of all.
fn comes_back(lab: &Lab, node: usize) {
    let stop = AtomicBool::new(false);
    let servers = [lab.bind(node), lab.bind((node + 1) % 3)];
    let clients = [lab.bind((node + 1) % 3), lab.bind(node)];
    std::thread::scope(|scope| {
        for server in &servers {
            scope.spawn(|| answer(server, &stop));
        }
        for (client, server) in clients.iter().zip(&servers) {
            call(client, server.endpoint(), 0).unwrap();
        }
        stop.store(true, Ordering::SeqCst);
    });
    let mut command =
        lab.command(&["run", "--node", NODES[node], "--", "sh", "-c", "echo $$; exec cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut cat = command.spawn().unwrap();
    let mut pid = String::new();
    BufReader::new(cat.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    wait_until("the process is listed", || {
        let listed = String::from_utf8(lab.succeeds(&["ps"]).stdout).unwrap();
        listed.split_whitespace().any(|word| word == pid.trim())
    });
    // The end of its input is its own.
    drop(cat.stdin.take());
    assert!(cat.wait().unwrap().success());
}

fn each_is(trouble: Trouble) {
    let Some(lab) = Lab::up() else { return };
    for victim in 0..3 {
        survive(&lab, trouble, victim);
    }
}

#[test]
fn two_nodes_go_on_when_the_third_is_killed_and_have_it_back() {
    each_is(Trouble::Killed);
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
