//! `dvs lab demo`: shows on real programs that three nodes are one machine.
//!
//! Everything shown is the real output of the command above it, and is checked.

use crate::lab::{self, Lab, UpOptions};
use crate::table::say;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::process::{Child, Command, Stdio};

/// Increments of the shared counter by each node.
const INCREMENTS: u32 = 200;

/// Adds to a counter in a file, under a record lock (fcntl(2)).
const COUNTER: &str = "\
import fcntl, sys
with open(sys.argv[1], 'r+') as counter:
    for _ in range(int(sys.argv[2])):
        fcntl.lockf(counter, fcntl.LOCK_EX)
        counter.seek(0)
        value = int(counter.read() or 0)
        counter.seek(0)
        counter.write(str(value + 1))
        counter.flush()
        fcntl.lockf(counter, fcntl.LOCK_UN)
";

/// The same with flock(1), for machines without Python.
const COUNTER_SH: &str = "\
for i in $(seq $2); do
  flock $1 sh -c 'read value < $0; echo $((value + 1)) > $0' $1
done
";

/// A named semaphore (sem_overview(7)) and a message queue (mq_overview(7)), through libc.
const POSIX: &str = "\
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.sem_open.restype = ctypes.c_void_p
libc.mq_receive.restype = ctypes.c_ssize_t
def check(result):
    if result in (-1, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
what, name = sys.argv[1], sys.argv[2].encode()
if what in ('wait', 'post'):
    sem = ctypes.c_void_p(check(libc.sem_open(name, os.O_CREAT, 0o600, 0)))
    if what == 'wait':
        print('waiting', flush=True)
    check(libc.sem_wait(sem) if what == 'wait' else libc.sem_post(sem))
    print('woken' if what == 'wait' else 'posted')
else:
    queue = check(libc.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None))
    if what == 'send':
        for priority, text in ((1, b'first sent'), (9, b'urgent'), (5, b'third sent')):
            check(libc.mq_send(queue, text, len(text), priority))
        print('sent: first sent (1), urgent (9), third sent (5)')
    else:
        buffer, priority = ctypes.create_string_buffer(8192), ctypes.c_uint()
        for _ in range(3):
            size = check(libc.mq_receive(queue, buffer, 8192, ctypes.byref(priority)))
            print(buffer.raw[:size].decode(), '(%d)' % priority.value)
";

/// A System V semaphore (sysvipc(7)) whose holder undoes what it did when it dies (SEM_UNDO).
const SYSV: &str = "\
use IPC::SysV qw(IPC_CREAT IPC_NOWAIT IPC_RMID SEM_UNDO SETVAL GETVAL);
my ($what, $key) = @ARGV;
my $set = semget($key, 1, IPC_CREAT | 0600);
defined $set or die \"semget: $!\\n\";
sub op { semop($set, pack('s!s!s!', 0, $_[0], $_[1])) }
if ($what eq 'hold') {
    semctl($set, 0, SETVAL, 1) // die \"semctl: $!\\n\";
    op(-1, SEM_UNDO) or die \"semop: $!\\n\";
    $| = 1;
    print \"holding, pid $$\\n\";
    sleep 1000;
} elsif ($what eq 'try') {
    print op(-1, IPC_NOWAIT | SEM_UNDO) ? \"free\\n\" : \"taken: $!\\n\";
} else {
    op(-1, SEM_UNDO) or die \"semop: $!\\n\";
    print \"free again\\n\";
    semctl($set, 0, IPC_RMID, 0);
}
";

/// `dvs lab demo`: exit code 0 if everything shown was as it should be.
///
/// # Errors
/// The lab cannot be started, or a program of this machine cannot be run at all.
pub(crate) fn main() -> Result<u8> {
    let own_lab = match Lab::read(&lab::directory())? {
        Some(lab) => {
            ensure!(lab.count() >= 3, "the demo wants three nodes; \"dvs lab down\" ends this lab");
            false
        }
        None => lab::up_quietly(&UpOptions::default())?,
    };
    let mut demo = Demo::new()?;
    let shown = demo.show_all();
    // Whatever happened: what was started for the demo ends with it.
    let down = if own_lab { lab::down_quietly() } else { demo.clean() };
    shown?;
    down?;
    demo.summary()
}

struct Demo {
    colour: bool,
    program: std::path::PathBuf,
    /// A directory in the DC and a part of names, of this demo only.
    directory: String,
    tag: String,
    key: String,
    python: bool,
    perl: bool,
    /// Titles, and whether what was shown was right; `None`: it could not be shown.
    results: Vec<(&'static str, Option<bool>)>,
}

impl Demo {
    fn new() -> Result<Demo> {
        let tag = format!("demo-{}", std::process::id());
        let mut demo = Demo {
            colour: std::io::stdout().is_terminal(),
            program: std::env::current_exe().context("cannot find this program's own file")?,
            directory: format!("/dvs/{tag}"),
            key: (0x6576_0000_u32 | std::process::id() & 0xffff).to_string(),
            tag,
            python: false,
            perl: false,
            results: Vec::new(),
        };
        demo.python = demo.quiet("n1", &["python3", "-c", "import ctypes, fcntl"])?;
        demo.perl = demo.quiet("n1", &["perl", "-MIPC::SysV", "-e", "1"])?;
        Ok(demo)
    }

    fn show_all(&mut self) -> Result<()> {
        say("Three nodes, one machine. Every line after $ is run as shown, on the node it names.\n")?;
        self.files()?;
        self.locks()?;
        self.semaphore()?;
        self.sysv()?;
        self.queue()?;
        self.processes()
    }

    fn files(&mut self) -> Result<()> {
        self.heading("Files: what one node writes, the others read at once")?;
        let directory = self.directory.clone();
        let hello = format!("mkdir {directory} && echo hello from $(hostname) > {directory}/hello");
        self.run("n1", &["sh", "-c", &hello])?;
        self.run("n2", &["sh", "-c", &format!("echo hello from $(hostname) >> {directory}/hello")])?;
        let read = self.run("n3", &["cat", &format!("{directory}/hello")])?;
        self.result("files", read == "hello from n1\nhello from n2\n");
        Ok(())
    }

    fn locks(&mut self) -> Result<()> {
        self.heading("Locks: three nodes count in one file, at the same time")?;
        let counter = format!("{}/counter", self.directory);
        let (interpreter, text, file, count) = if self.python {
            ("python3", COUNTER, "counter.py", INCREMENTS)
        } else {
            ("sh", COUNTER_SH, "counter.sh", INCREMENTS / 10)
        };
        let script = self.script(file, text)?;
        self.quiet("n1", &["sh", "-c", &format!("echo 0 > {counter}")])?;
        let times = count.to_string();
        let command = [interpreter, &script, &counter, &times];
        let mut adders = Vec::new();
        for node in ["n1", "n2", "n3"] {
            adders.push(self.start(node, &command)?);
        }
        for mut adder in adders {
            adder.child.wait()?;
        }
        let sum = self.run("n1", &["cat", &counter])?;
        self.result("locks", sum.trim() == (3 * count).to_string());
        Ok(())
    }

    fn semaphore(&mut self) -> Result<()> {
        self.heading("A named semaphore: n2 waits, n3 posts")?;
        if !self.python {
            return self.cannot("named semaphore", "python3");
        }
        let script = self.script("posix.py", POSIX)?;
        let name = format!("/{}", self.tag);
        let mut waiter = self.start("n2", &["python3", &script, "wait", &name])?;
        let waiting = waiter.line()?;
        self.show(&waiting)?;
        self.run("n3", &["python3", &script, "post", &name])?;
        let woken = waiter.line()?;
        self.show(&woken)?;
        waiter.child.wait()?;
        self.list("ipcs", "POSIX semaphores")?;
        self.result("named semaphore", woken == "woken\n");
        Ok(())
    }

    fn sysv(&mut self) -> Result<()> {
        self.heading("A System V semaphore with SEM_UNDO: its holder on n1 is killed, n3 gets it")?;
        if !self.perl {
            return self.cannot("System V semaphore", "perl with IPC::SysV");
        }
        let (script, key) = (self.script("sysv.pl", SYSV)?, self.key.clone());
        let mut holder = self.start("n1", &["perl", &script, "hold", &key])?;
        let holding = holder.line()?;
        self.show(&holding)?;
        let taken = self.run("n3", &["perl", &script, "try", &key])?;
        let pid = holding.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        self.run("n2", &["sh", "-c", &format!("kill -KILL {pid}")])?;
        let ended = holder.child.wait()?.code();
        let free = self.run("n3", &["perl", &script, "take", &key])?;
        let right = taken.starts_with("taken") && ended == Some(137) && free == "free again\n";
        self.result("System V semaphore", right);
        Ok(())
    }

    fn queue(&mut self) -> Result<()> {
        self.heading("A message queue: n1 sends, n3 receives, the most urgent first")?;
        if !self.python {
            return self.cannot("message queue", "python3");
        }
        let script = self.script("posix.py", POSIX)?;
        let name = format!("/{}", self.tag);
        self.run("n1", &["python3", &script, "send", &name])?;
        self.list("ipcs", "POSIX message queues")?;
        let received = self.run("n3", &["python3", &script, "receive", &name])?;
        self.result("message queue", received == "urgent (9)\nthird sent (5)\nfirst sent (1)\n");
        Ok(())
    }

    fn processes(&mut self) -> Result<()> {
        self.heading("Processes: every node sees all, and a kill reaches any")?;
        let mut sleepers = Vec::new();
        for node in ["n1", "n2", "n3"] {
            sleepers.push(self.start(node, &["sh", "-c", "echo $$; exec sleep 1000"])?);
        }
        let mut pids = Vec::new();
        for sleeper in &mut sleepers {
            pids.push(sleeper.line()?.trim().to_owned());
        }
        let listed = self.own(&["ps"])?;
        let right = pids.iter().all(|pid| listed.split_whitespace().any(|word| word == pid));
        self.result("process table", right && !pids.iter().any(String::is_empty));
        // n3's from n1, the others without much ado.
        self.run("n1", &["sh", "-c", &format!("kill -TERM {}", pids[2])])?;
        let ended = sleepers[2].child.wait()?.code();
        let text = ended.map_or_else(|| "no exit code".to_owned(), |code| code.to_string());
        self.show(&format!("exit code of the dvs-run that started it: {text}\n"))?;
        self.result("kill across nodes", ended == Some(143));
        for (pid, sleeper) in pids.iter().zip(&mut sleepers).take(2) {
            self.quiet("n1", &["sh", "-c", &format!("kill -KILL {pid}")])?;
            sleeper.child.wait()?;
        }
        Ok(())
    }

    /// Removes what the demo made in a lab that was there before.
    fn clean(&self) -> Result<()> {
        self.quiet("n1", &["rm", "-rf", &self.directory])?;
        if self.python {
            let unlink = format!(
                "import ctypes; libc = ctypes.CDLL(None); name = b'/{}'; \
                 libc.sem_unlink(name); libc.mq_unlink(name)",
                self.tag
            );
            self.quiet("n1", &["python3", "-c", &unlink])?;
        }
        Ok(())
    }

    fn summary(&self) -> Result<u8> {
        self.heading("Summary")?;
        let mut failed = 0;
        for (what, right) in &self.results {
            let (colour, word) = match right {
                Some(true) => ("32", "as it should be"),
                Some(false) => ("31", "WRONG"),
                None => ("33", "not shown"),
            };
            failed += usize::from(*right == Some(false));
            say(&format!("{what:20} {}\n", self.paint(colour, word)))?;
        }
        Ok(if failed == 0 { 0 } else { crate::exit::FAILED })
    }

    /// Runs a program on a node, shows the command and its output; returns its output.
    fn run(&self, node: &str, command: &[&str]) -> Result<String> {
        self.own(&[&["run", "--node", node, "--"], command].concat())
    }

    /// Runs a `dvs` command, shows it and its output; returns what it wrote to standard output.
    fn own(&self, arguments: &[&str]) -> Result<String> {
        self.command_line(arguments)?;
        let output = self.command(arguments).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        self.show(&text)?;
        self.show(&String::from_utf8_lossy(&output.stderr))?;
        Ok(text)
    }

    /// Shows one of the tables of a `dvs` command.
    fn list(&self, command: &str, title: &str) -> Result<()> {
        self.command_line(&[command])?;
        let output = self.command(&[command]).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text
            .lines()
            .skip_while(|line| !line.contains(title))
            .take_while(|line| !line.is_empty())
            .collect();
        self.show(&(lines.join("\n") + "\n"))
    }

    /// Starts a program on a node and goes on.
    fn start(&self, node: &str, command: &[&str]) -> Result<Started> {
        let arguments = [&["run", "--node", node, "--"], command].concat();
        self.command_line(&arguments)?;
        let mut child =
            self.command(&arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no output")?;
        Ok(Started { child, output: BufReader::new(Box::new(output)) })
    }

    /// Runs a program on a node without showing it; says whether it succeeded.
    fn quiet(&self, node: &str, command: &[&str]) -> Result<bool> {
        let arguments = [&["run", "--node", node, "--"], command].concat();
        let output = self.command(&arguments).stdin(Stdio::null()).output()?;
        Ok(output.status.success())
    }

    /// Puts a script into the DC's directory; returns its path.
    fn script(&self, name: &str, text: &str) -> Result<String> {
        let path = format!("{}/{name}", self.directory);
        let mut tee = self
            .command(&["run", "--node", "n1", "--", "tee", &path])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        tee.stdin.take().context("no input")?.write_all(text.as_bytes())?;
        tee.wait()?;
        Ok(path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command
    }

    fn result(&mut self, what: &'static str, right: bool) {
        self.results.push((what, Some(right)));
    }

    fn cannot(&mut self, what: &'static str, without: &str) -> Result<()> {
        self.results.push((what, None));
        self.show(&format!("not shown: there is no {without} here\n"))
    }

    fn heading(&self, text: &str) -> Result<()> {
        say(&format!("\n{}\n", self.paint("1;36", text)))
    }

    fn command_line(&self, arguments: &[&str]) -> Result<()> {
        let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
        say(&format!("{} dvs {}\n", self.paint("32", "$"), words.join(" ")))
    }

    fn show(&self, text: &str) -> Result<()> {
        let lines = text.lines().map(|line| format!("  {line}\n"));
        say(&lines.collect::<String>())
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A program that has been started, and its output so far.
struct Started {
    child: Child,
    output: BufReader<Box<dyn Read>>,
}

impl Started {
    /// The next line; empty when there is none any more.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_shown_command_can_be_typed_again() {
        assert_eq!(quoted("/dvs/x"), "/dvs/x");
        assert_eq!(quoted("echo $$"), "'echo $$'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
