//! Programs on three nodes that use one directory and one file at once: what they see is one order of what they do.
//!
//! Rounds of some operations of all programs at once; between two rounds all of them look at everything, and see the same.
//! A round's history, with what was seen behind it, is linearizable: there is an order of its operations, in which each
//! lies between its call and its return, that a directory, a file and a log on one machine would have answered so.

#[expect(dead_code, reason = "its own tests run where it is at home")]
#[path = "../../../group/tests/simulation/linear.rs"]
mod linear;

use crate::faults::{AGENT_LIVES_FOR, Agents, kill_server};
use crate::{LAB, OURS, Test};
use legacy_tests::{Running, World};
use linear::{Model, Operation, is_linearizable};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("what_programs_on_all_nodes_do_to_one_directory_is_one_order", OURS, |world| {
        hammer(world, |_, _| false)
    }),
    ("it_is_one_order_too_while_the_server_is_killed", LAB, |world| {
        hammer(world, |world, round| {
            let is_due = round.is_multiple_of(20);
            if is_due {
                kill_server(world, "vfs-server");
            }
            is_due
        });
    }),
    ("it_is_one_order_too_while_file_agents_are_killed", LAB, |world| {
        let agents = RefCell::new(Agents::new(world, AGENT_LIVES_FOR));
        hammer(world, |_, round| agents.borrow_mut().kill(round));
    }),
    ("it_is_one_order_too_while_the_server_and_file_agents_are_killed", LAB, |world| {
        let agents = RefCell::new(Agents::new(world, AGENT_LIVES_FOR));
        hammer(world, |world, round| {
            let kills = agents.borrow_mut().kill(round);
            if round.is_multiple_of(8) {
                kill_server(world, "vfs-server");
            }
            kills
        });
    }),
];

/// How long each test hammers: `HAMMER_SECONDS`, or this.
const SECONDS: u64 = 10;
const WORKERS: usize = 6;
/// Of each worker in a round: so many together that the checker tries all orders at once.
const OPERATIONS: u32 = 6;

/// What an operation did, as its worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Done {
    kind: String,
    arguments: Vec<String>,
    result: String,
}

/// The result of a rename that was none.
const NOTHING: &str = "nothing";

/// A line of a history.
type Line = Operation<Done, Done>;

fn parse(line: &str) -> Line {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [called, returned, kind, arguments @ .., result] = &words[..] else {
        panic!("a worker says {line:?}")
    };
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("a worker says {line:?}"));
    let done = Done {
        kind: (*kind).to_owned(),
        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        result: (*result).to_owned(),
    };
    let (called, returned) = (number(called), number(returned));
    Operation { input: done.clone(), output: Some(done), called, returned }
}

/// A directory of some names: which inode each stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Directory {
    names: BTreeMap<String, String>,
    /// Which each has stood for in this round.
    seen: BTreeSet<(String, String)>,
}

impl Directory {
    fn set(&mut self, name: &str, inode: String) {
        self.seen.insert((name.to_owned(), inode.clone()));
        self.names.insert(name.to_owned(), inode);
    }

    /// Two names of one inode are renamed into each other by doing nothing (rename(2)). The kernel looks for the names one
    /// after the other, and finds one inode twice if it is moved from the one to the other in between; then it asks nobody.
    fn look_like_one(&self, name: &str, other: &str) -> bool {
        let inode = self.names.get(other);
        inode.is_some_and(|inode| self.seen.contains(&(name.to_owned(), inode.clone())))
    }
}

impl Model for Directory {
    type Input = Done;
    type Output = Done;

    fn step(&mut self, done: &Done, _: Option<&Done>) -> bool {
        let name = |at: usize| done.arguments[at].as_str();
        let has = |of: &Directory, at: usize| of.names.contains_key(name(at));
        match (done.kind.as_str(), done.result.as_str()) {
            ("list", all) => {
                let found: Vec<&str> = self.names.keys().map(String::as_str).collect();
                all == if found.is_empty() { "-".into() } else { found.join(",") }
            }
            ("create", "EEXIST") => has(self, 0),
            ("unlink" | "rename" | "stat" | "noreplace", "ENOENT") => !has(self, 0),
            ("exchange", "ENOENT") => !has(self, 0) || !has(self, 1),
            // The kernel looks for both names, one after the other, before it asks for a rename.
            ("noreplace", "EEXIST") => has(self, 1),
            ("stat", inode) => self.names.get(name(0)).is_some_and(|found| found == inode),
            ("create", inode) => {
                let is_new = !has(self, 0) && self.names.values().all(|other| other != inode);
                self.set(name(0), inode.to_owned());
                is_new
            }
            ("unlink", "0") => self.names.remove(name(0)).is_some(),
            ("rename" | "exchange", NOTHING) => self.look_like_one(name(0), name(1)),
            ("noreplace", "0") if has(self, 1) => false,
            ("rename" | "noreplace", "0") => match self.names.remove(name(0)) {
                Some(inode) => {
                    self.set(name(1), inode);
                    true
                }
                None => false,
            },
            ("exchange", "0") => match (self.names.remove(name(0)), self.names.remove(name(1))) {
                (Some(first), Some(second)) => {
                    self.set(name(0), second);
                    self.set(name(1), first);
                    true
                }
                _ => false,
            },
            _ => false,
        }
    }
}

/// Eight bytes of a file, or how many records a log has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Number(u64);

impl Model for Number {
    type Input = Done;
    type Output = Done;

    fn step(&mut self, done: &Done, _: Option<&Done>) -> bool {
        let number = |word: &String| word.parse::<u64>().ok();
        match done.kind.as_str() {
            "write" => {
                self.0 = number(&done.arguments[1]).unwrap_or(u64::MAX);
                done.result == "0"
            }
            "append" => {
                self.0 += 1;
                done.result == "0"
            }
            "read" | "size" => number(&done.result) == Some(self.0),
            _ => false,
        }
    }
}

/// Everything, as it is between two rounds.
#[derive(Clone, Debug, Default)]
struct State {
    directory: Directory,
    cells: BTreeMap<String, Number>,
    log: Number,
}

impl State {
    /// Checks a round that begins in this state and ends in what was seen.
    fn check(&self, history: &[Line]) {
        let of = |is_of: &dyn Fn(&Done) -> bool| -> Vec<Line> {
            history.iter().filter(|line| is_of(&line.input)).cloned().collect()
        };
        let in_cell = |done: &Done| ["read", "write"].contains(&done.kind.as_str());
        let in_log = |done: &Done| ["append", "size"].contains(&done.kind.as_str());
        let names = of(&|done| !in_cell(done) && !in_log(done));
        assert!(self.explains(&names), "{self:?}\n{}", text(&names));
        let log = of(&in_log);
        assert!(is_linearizable(self.log.clone(), &log), "{self:?}\n{}", text(&log));
        let numbers = history.iter().map(|line| &line.input).filter(|done| in_cell(done));
        let used: BTreeSet<&String> = numbers.map(|done| &done.arguments[0]).collect();
        for cell in used {
            let one = of(&|done| in_cell(done) && done.arguments[0] == *cell);
            let start = self.cells.get(cell).cloned().unwrap_or_default();
            assert!(is_linearizable(start, &one), "{self:?}\n{}", text(&one));
        }
    }

    /// Is this what a directory would have done? With at most three renames of which the kernel made nothing: one exchange is enough
    /// for all that look at its names just then.
    fn explains(&self, names: &[Line]) -> bool {
        let explains = |names: &[Line]| is_linearizable(self.directory.clone(), names);
        if explains(names) {
            return true;
        }
        let is_rename = |done: &Done| ["rename", "exchange"].contains(&done.kind.as_str());
        let renames: Vec<usize> = (0..names.len())
            .filter(|at| is_rename(&names[*at].input) && names[*at].input.result == "0")
            .collect();
        let with = |some: Vec<usize>| {
            let last = some.last().copied().unwrap_or(0);
            let more = renames.iter().filter(move |at| **at >= last);
            more.map(move |at| [&some[..], &[*at]].concat())
        };
        let triples = with(Vec::new()).flat_map(with).flat_map(with);
        let mut tries = triples.map(|triple| {
            let mut names = names.to_vec();
            for at in triple {
                names[at].input.result = NOTHING.to_owned();
            }
            names
        });
        tries.any(|names| explains(&names))
    }

    /// What a worker has seen while nobody did anything.
    fn seen(look: &[Line]) -> State {
        let mut state = State::default();
        for Done { kind, arguments, result } in look.iter().map(|line| &line.input) {
            let number = || Number(result.parse().unwrap_or(u64::MAX));
            match kind.as_str() {
                "stat" if result != "ENOENT" => {
                    state.directory.set(&arguments[0], result.clone());
                }
                "read" => drop(state.cells.insert(arguments[0].clone(), number())),
                "size" => state.log = number(),
                _ => {}
            }
        }
        state
    }
}

/// A history for people, in the order of the calls.
fn text(history: &[Line]) -> String {
    let mut lines: Vec<&Line> = history.iter().collect();
    lines.sort_by_key(|line| line.called);
    let line = |line: &&Line| {
        let Done { kind, arguments, result } = &line.input;
        let (called, returned) = (line.called, line.returned);
        format!("{called} {returned} {kind} {} -> {result}\n", arguments.join(" "))
    };
    lines.iter().map(line).collect()
}

/// A worker and the way to it.
struct Worker {
    running: Running,
    connection: BufReader<UnixStream>,
}

impl Worker {
    fn tell(&mut self, command: &str) {
        writeln!(self.connection.get_mut(), "{command}").expect("the worker is there");
    }

    fn history(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.connection.read_line(&mut line).expect("the worker is there");
            assert!(read > 0, "a worker has ended: {}", self.running.errors());
            if line == "done\n" {
                return lines;
            }
            lines.push(parse(&line));
        }
    }
}

fn start(world: &World, folder: &str) -> Vec<Worker> {
    world.run(0, &["mkdir", &format!("{folder}/names")]);
    let socket = world.scratch().join(format!("{}.socket", world.name()));
    let listener = UnixListener::bind(&socket).expect("the scratch folder is ours");
    let anybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(&socket, anybody).expect("the socket is ours");
    let path = socket.to_string_lossy().into_owned();
    let workers = (0..WORKERS).map(|number| {
        let running = world.start_script(number % 3, "hammer.py", &[&path, folder]);
        // A worker that cannot start would not connect.
        listener.set_nonblocking(true).expect("a socket can be asked");
        let connection =
            legacy_tests::wait::until(legacy_tests::running::LIMIT, || listener.accept().ok());
        let (connection, _) = connection.unwrap_or_else(|| panic!("{}", running.errors()));
        connection.set_nonblocking(false).expect("a socket can be waited for");
        Worker { running, connection: BufReader::new(connection) }
    });
    workers.collect()
}

/// `kill` kills something in a round, or not.
fn hammer(world: &World, kill: impl Fn(&World, u64) -> bool) {
    let seconds = std::env::var("HAMMER_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
    let folder = world.folder();
    let mut workers = start(world, &folder);
    let (mut state, mut history) = (State::default(), Vec::new());
    let mut appended: Vec<Line> = Vec::new();
    let (mut rounds, mut kills) = (0, 0);
    while Instant::now() < end {
        rounds += 1;
        for (number, worker) in (0u64..).zip(&mut workers) {
            let seed = rounds * 100 + number;
            worker.tell(&format!("work {seed} {OPERATIONS}"));
        }
        kills += u64::from(kill(world, rounds));
        history.extend(workers.iter_mut().flat_map(Worker::history));
        appended.extend(history.iter().filter(|line: &&Line| line.input.kind == "append").cloned());
        let mut looks = Vec::new();
        for worker in &mut workers {
            worker.tell("look");
            looks.push(worker.history());
        }
        history.extend(looks.iter().flatten().cloned());
        state.check(&history);
        state = State::seen(&looks[0]);
        history.clear();
    }
    for worker in workers {
        drop(worker.connection);
        worker.running.succeed();
    }
    check_log(world, &folder, appended);
    let operations = rounds * WORKERS as u64 * u64::from(OPERATIONS);
    eprint!("{operations} operations in {rounds} rounds, {kills} kills ... ");
    world.run(2, &["rm", "-r", &folder]);
}

/// The log has each record that was appended, once, and none before one that had been there when it was called for.
fn check_log(world: &World, folder: &str, mut appended: Vec<Line>) {
    let script = "import struct, sys
for record, check in struct.iter_unpack('QQ', open(sys.argv[1], 'rb').read()):
    assert record ^ check == 2**64 - 1; print(record)";
    let log = format!("{folder}/log");
    let found = world.run(1, &[legacy_tests::program::PYTHON, "-c", script, &log]);
    let places: BTreeMap<&str, usize> = found.lines().zip(0..).collect();
    assert_eq!(places.len(), found.lines().count(), "a record is there twice");
    assert_eq!(places.len(), appended.len());
    appended.sort_by_key(|line| places.get(line.input.arguments[0].as_str()).copied());
    let mut latest_call = 0;
    for line in &appended {
        assert!(places.contains_key(line.input.arguments[0].as_str()), "lost: {line:?}");
        assert!(line.returned >= latest_call, "behind one that was called later: {line:?}");
        latest_call = latest_call.max(line.called);
    }
}
