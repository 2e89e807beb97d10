//! `dvs lab demo`: shows on real programs that three nodes are one machine.
//!
//! Each step runs commands with `dvs run`, prints them with what they really wrote, and checks it. The programs
//! are perl (in every Debian) and, for POSIX semaphores, python3 if it is there.

use crate::lab::{self, UpOptions};
use crate::table::say;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// Adds 200 times to a counter file under a record lock.
const COUNT_UNDER_LOCK: &str = r#"
use Fcntl qw(:flock :seek); use strict;
open(my $f, "+>>", "/dvs/demo/counter") or die "open: $!";
for (1..200) {
    flock($f, LOCK_EX) or die "flock: $!";
    seek($f, 0, SEEK_SET); my $n = <$f> || 0;
    truncate($f, 0); syswrite($f, $n + 1);
    flock($f, LOCK_UN);
}
print "added 200\n";"#;

/// Takes the SysV semaphore with SEM_UNDO (0x1000), and holds it until it is killed.
const HOLD: &str = r#"
$| = 1; my $id = semget(0xd5, 1, 0666); defined $id or die "semget: $!";
semop($id, pack("s3", 0, -1, 0x1000)) or die "semop: $!";
print "$$\n"; sleep 1 while 1;"#;

/// Makes the semaphore with value 1 (SETVAL is 16).
const MAKE: &str = r#"
my $id = semget(0xd5, 1, 01666); semctl($id, 0, 16, 1) or die "semctl: $!";
print "semaphore array $id made, value 1\n";"#;

/// Takes the semaphore; waits as long as it must.
const TAKE: &str = r#"
my $id = semget(0xd5, 1, 0666); semop($id, pack("s3", 0, -1, 0)) or die "semop: $!";
print "taken\n";"#;

const MSG_SEND: &str = r#"
my $q = msgget(0xd6, 01666); defined $q or die "msgget: $!";
for (1..3) { msgsnd($q, pack("l! a*", $_, "letter $_"), 0) or die "msgsnd: $!" }
print "3 letters sent\n";"#;

const MSG_RECEIVE: &str = r#"
my $q = msgget(0xd6, 0666); my $m;
for (1..3) { msgrcv($q, $m, 100, 0, 0) or die "msgrcv: $!"; print((unpack "l! a*", $m)[1], "\n") }"#;

/// mq_open is system call 240, mq_timedsend 242, mq_timedreceive 243 (x86-64).
const MQ_SEND: &str = r#"
my $q = syscall(240, my $n = "demo", 0102, 0600, 0); $q >= 0 or die "mq_open: $!";
for (["later", 1], ["urgent", 9]) { syscall(242, $q, my $t = $_->[0], length $_->[0], $_->[1], 0) == 0 or die "mq_send: $!" }
print "sent: later (priority 1), urgent (priority 9)\n";"#;

const MQ_RECEIVE: &str = r#"
my $q = syscall(240, my $n = "demo", 2, 0, 0); $q >= 0 or die "mq_open: $!";
for (1..2) { my $t = " " x 8192; my $l = syscall(243, $q, $t, 8192, 0, 0); $l > 0 or die "mq_receive: $!"; print substr($t, 0, $l), "\n" }"#;

const POSIX_SEMAPHORE: &str = r#"
import ctypes, os
c = ctypes.CDLL(None, use_errno=True); c.sem_open.restype = ctypes.c_void_p
s = ctypes.c_void_p(c.sem_open(b"/demo", os.O_CREAT, 0o600, 1))
for _ in range(200):
    assert c.sem_wait(s) == 0
    try: n = int(open("/dvs/demo/guarded").read())
    except FileNotFoundError: n = 0
    with open("/dvs/demo/guarded", "w") as f: f.write(str(n + 1))
    assert c.sem_post(s) == 0
print("added 200")"#;

/// `dvs lab demo`: exit code 0 if everything shown was as it should be.
///
/// # Errors
/// The lab cannot be started, or a command of the demonstration not be run.
pub(crate) fn main() -> Result<u8> {
    let started = lab::up_quietly(&UpOptions::default())?;
    let mut demo = Demo::new()?;
    demo.heading(if started {
        "A lab of three nodes is up"
    } else {
        "The lab that is up is shown"
    })?;
    let shown = demo.show();
    if started {
        lab::down()?;
    }
    shown?;
    let text = format!("{} of {} checks passed\n", demo.passed, demo.passed + demo.failed);
    demo.heading(&text)?;
    Ok(u8::from(demo.failed > 0))
}

struct Demo {
    program: PathBuf,
    colour: bool,
    passed: u32,
    failed: u32,
}

/// A command on its way, with what it has written so far taken off.
struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Demo {
    fn new() -> Result<Demo> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        Ok(Demo { program, colour: std::io::stdout().is_terminal(), passed: 0, failed: 0 })
    }

    fn show(&mut self) -> Result<()> {
        self.heading("One file tree: what n1 writes, n3 reads")?;
        self.run(
            "n1",
            &["sh", "-c", "rm -rf /dvs/demo; mkdir /dvs/demo; uname -n > /dvs/demo/from"],
        )?;
        let read = self.run("n3", &["sh", "-c", "uname -n; cat /dvs/demo/from"])?;
        self.check("n3 read what n1 wrote", read == "n3\nn1\n")?;
        self.heading("One lock: three nodes add to one counter")?;
        self.everywhere(&["perl", "-e", COUNT_UNDER_LOCK])?;
        let count = self.run("n2", &["cat", "/dvs/demo/counter"])?;
        self.check("600 additions are 600", count == "600")?;
        self.semaphores()?;
        self.queues()?;
        self.processes()
    }

    fn semaphores(&mut self) -> Result<()> {
        if Path::new("/usr/bin/python3").exists() {
            self.heading("One POSIX semaphore: three nodes take turns")?;
            self.everywhere(&["/usr/bin/python3", "-c", POSIX_SEMAPHORE])?;
            let count = self.run("n1", &["cat", "/dvs/demo/guarded"])?;
            self.check("600 additions are 600", count == "600")?;
        }
        self.heading("One SysV semaphore, given back for a process that is killed (SEM_UNDO)")?;
        self.run("n1", &["perl", "-e", MAKE])?;
        let mut holder = self.start("n2", &["perl", "-e", HOLD])?;
        let pid = holder.line()?;
        let kill = format!("kill -KILL {}", pid.trim());
        self.run("n1", &["bash", "-c", &kill])?;
        let taken = self.run("n3", &["perl", "-e", TAKE])?;
        self.check("n3 has what n2 held", taken == "taken\n" && !pid.is_empty())?;
        let status = holder.end()?.1;
        self.check("n2's dvs-run reports the signal", status.code() == Some(128 + 9))
    }

    fn queues(&mut self) -> Result<()> {
        self.heading("Message queues, SysV and POSIX")?;
        self.run("n2", &["perl", "-e", MSG_SEND])?;
        let letters = self.run("n3", &["perl", "-e", MSG_RECEIVE])?;
        self.check("they come in order", letters == "letter 1\nletter 2\nletter 3\n")?;
        self.run("n3", &["perl", "-e", MQ_SEND])?;
        let texts = self.run("n1", &["perl", "-e", MQ_RECEIVE])?;
        self.check("the urgent one comes first", texts == "urgent\nlater\n")
    }

    fn processes(&mut self) -> Result<()> {
        self.heading("One process table")?;
        let nodes = ["n1", "n2", "n3"];
        let sleepers =
            nodes.map(|node| self.start(node, &["sh", "-c", "echo $$; exec sleep 1000"]));
        let mut sleepers = sleepers.into_iter().collect::<Result<Vec<_>>>()?;
        let pids = sleepers.iter_mut().map(Running::line).collect::<Result<Vec<_>>>()?;
        let list = self.show_and_run(&["ps"], &mut self.command(&["ps"]))?;
        let all = pids
            .iter()
            .all(|pid| list.lines().any(|row| row.split_whitespace().next() == Some(pid.trim())));
        self.check("processes of all nodes are in it", all)?;
        let kill = format!("kill {}", pids.join(" ").replace('\n', ""));
        self.run("n1", &["bash", "-c", &kill])?;
        for (running, node) in sleepers.into_iter().zip(nodes) {
            let (_, status) = running.end()?;
            let what = format!("the kill on n1 has ended the process on {node}");
            self.check(&what, status.code() == Some(128 + 15))?;
        }
        Ok(())
    }

    /// This program with arguments; its standard error is the user's.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg0("dvs").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Runs a command on a node and prints what it writes.
    fn run(&self, node: &str, command: &[&str]) -> Result<String> {
        let arguments = [&["run", "--node", node, "--"], command].concat();
        self.show_and_run(&arguments, &mut self.command(&arguments))
    }

    /// Starts a command on a node.
    fn start(&self, node: &str, command: &[&str]) -> Result<Running> {
        let arguments = [&["run", "--node", node, "--"], command].concat();
        self.print_command(&arguments)?;
        let mut child = self.command(&arguments).spawn().context("cannot start dvs-run")?;
        let output = BufReader::new(child.stdout.take().context("the output is a pipe")?);
        Ok(Running { child, output })
    }

    /// Runs a command on all nodes at the same time.
    fn everywhere(&mut self, command: &[&str]) -> Result<()> {
        let started: Result<Vec<Running>> =
            ["n1", "n2", "n3"].iter().map(|node| self.start(node, command)).collect();
        for running in started? {
            let (text, status) = running.end()?;
            say(&text)?;
            if !status.success() {
                bail!("a command of the demonstration failed ({status})");
            }
        }
        Ok(())
    }

    fn show_and_run(&self, arguments: &[&str], command: &mut Command) -> Result<String> {
        self.print_command(arguments)?;
        let output =
            command.spawn().and_then(Child::wait_with_output).context("cannot run a command")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        say(&text)?;
        if !text.is_empty() && !text.ends_with('\n') {
            say("\n")?;
        }
        Ok(text)
    }

    fn heading(&self, text: &str) -> Result<()> {
        let text = text.trim();
        say(&if self.colour {
            format!("\n\x1b[1;36m{text}\x1b[0m\n")
        } else {
            format!("\n== {text}\n")
        })
    }

    /// As a user would type it; of a long program the beginning.
    fn print_command(&self, arguments: &[&str]) -> Result<()> {
        let words = arguments.iter().map(|word| {
            let word = word.trim().lines().next().unwrap_or("").to_owned()
                + if word.trim().contains('\n') { " …" } else { "" };
            if word.contains(' ') { format!("'{word}'") } else { word }
        });
        let line = words.collect::<Vec<_>>().join(" ");
        say(&if self.colour {
            format!("\x1b[2m$ dvs {line}\x1b[0m\n")
        } else {
            format!("$ dvs {line}\n")
        })
    }

    fn check(&mut self, what: &str, holds: bool) -> Result<()> {
        *(if holds { &mut self.passed } else { &mut self.failed }) += 1;
        let (mark, colour) = if holds { ("ok", "32") } else { ("FAILED", "31") };
        say(&if self.colour {
            format!("\x1b[{colour}m{mark}: {what}\x1b[0m\n")
        } else {
            format!("{mark}: {what}\n")
        })
    }
}

impl Running {
    /// Waits for the next line.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("cannot read a command's output")?;
        say(&line)?;
        Ok(line)
    }

    /// Waits for the end; returns the rest of the output, and how it ended.
    fn end(mut self) -> Result<(String, ExitStatus)> {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).context("cannot read a command's output")?;
        Ok((rest, self.child.wait()?))
    }
}
