//! A program that has been started somewhere: its output so far, and its end.

use crate::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a program of a test may take. A test that reaches it has failed.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A started program. It is ended with this value.
#[derive(Debug)]
pub struct Running {
    pub(crate) what: String,
    pub(crate) output: PathBuf,
    pub(crate) errors: PathBuf,
    pub(crate) handle: Handle,
}

/// How one sees that it has ended.
#[derive(Debug)]
pub(crate) enum Handle {
    /// A process of ours: the program itself, or its `dvs-run`.
    Child(Child),
    /// A shell that runs it in the background writes these two files.
    Shell { shell: Arc<Shell>, pid: PathBuf, status: PathBuf, ended: bool },
}

/// How a program has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code; 128 + N after signal N.
    pub code: i32,
    pub output: String,
    pub errors: String,
}

/// The exit code as a shell has it.
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .expect("a process exits or is killed")
}

impl Running {
    /// Waits for the end.
    ///
    /// # Panics
    /// It does not end within [`LIMIT`].
    pub fn wait(mut self) -> Outcome {
        match until(LIMIT, || self.ended()) {
            Some(code) => Outcome { code, output: self.output(), errors: self.errors() },
            None => panic!("{} has not ended after {LIMIT:?}\n{}", self.what, self.said()),
        }
    }

    /// Waits for the end, which must be a success; returns the output.
    ///
    /// # Panics
    /// It fails, or does not end.
    pub fn succeed(self) -> String {
        let what = self.what.clone();
        let outcome = self.wait();
        assert!(
            outcome.code == 0,
            "{what} exits with {}\n--- output\n{}--- errors\n{}",
            outcome.code,
            outcome.output,
            outcome.errors
        );
        outcome.output
    }

    /// Waits until the output has a line that begins with `word`; returns the rest of that line.
    ///
    /// # Panics
    /// It does not come, or the program ends before.
    pub fn says(&mut self, word: &str) -> String {
        let found = until(LIMIT, || {
            let ended = self.ended();
            let output = self.output();
            let complete = output.rfind('\n').map_or("", |end| &output[..end]);
            let line = complete.lines().find_map(|line| line.strip_prefix(word));
            match (line, ended) {
                (Some(rest), _) => Some(Ok(rest.trim().to_owned())),
                (None, Some(code)) => Some(Err(code)),
                (None, None) => None,
            }
        });
        match found {
            Some(Ok(rest)) => rest,
            Some(Err(code)) => {
                panic!("{} exits with {code} before it says {word:?}\n{}", self.what, self.said())
            }
            None => panic!("{} has not said {word:?} after {LIMIT:?}\n{}", self.what, self.said()),
        }
    }

    /// What it has written to its standard output so far.
    pub fn output(&self) -> String {
        read(&self.output)
    }

    /// What it has written to its standard error output so far.
    pub fn errors(&self) -> String {
        read(&self.errors)
    }

    /// The pid of the process that was started here: the program, or its `dvs-run`.
    ///
    /// # Panics
    /// It has been started by a shell and has no pid of ours.
    pub fn host_pid(&self) -> Pid {
        match &self.handle {
            Handle::Child(child) => {
                Pid::from_raw(i32::try_from(child.id()).expect("a pid is positive"))
                    .expect("a pid is not 0")
            }
            Handle::Shell { .. } => panic!("{} is not a process of ours", self.what),
        }
    }

    /// The exit code, if it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        match &mut self.handle {
            Handle::Child(child) => child.try_wait().expect("it is our child").map(code),
            Handle::Shell { shell, status, ended, .. } => {
                let code = read(status).trim().parse().ok();
                assert!(
                    code.is_some() || shell.is_alive(),
                    "the shell that runs {} is gone",
                    self.what
                );
                *ended = code.is_some();
                code
            }
        }
    }

    fn said(&self) -> String {
        format!("--- output\n{}--- errors\n{}", self.output(), self.errors())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match &mut self.handle {
            Handle::Child(child) => {
                // dvs-run passes SIGTERM on to its program; SIGKILL would leave that behind.
                if matches!(child.try_wait(), Ok(None)) {
                    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                    pid.map(|pid| kill_process(pid, Signal::TERM));
                    until(Duration::from_secs(5), || child.try_wait().ok().flatten());
                    child.kill().ok();
                    child.wait().ok();
                }
            }
            Handle::Shell { shell, pid, ended, .. } if !*ended => {
                shell
                    .feed(&format!("kill $(cat {}) 2>/dev/null", quoted(&pid.to_string_lossy())))
                    .ok();
            }
            Handle::Shell { .. } => {}
        }
    }
}

fn read(path: &PathBuf) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// A shell that runs programs in the background, as it is told line by line.
#[derive(Debug)]
pub(crate) struct Shell {
    process: Mutex<(Child, Option<ChildStdin>)>,
}

impl Shell {
    /// `command` runs `sh`.
    pub(crate) fn start(mut command: Command) -> std::io::Result<Arc<Shell>> {
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        Ok(Arc::new(Shell { process: Mutex::new((child, input)) }))
    }

    pub(crate) fn feed(&self, line: &str) -> std::io::Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let input = process.1.as_mut().expect("it is open until this value is dropped");
        writeln!(input, "{line}")
    }

    pub(crate) fn is_alive(&self) -> bool {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(process.0.try_wait(), Ok(None))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The end of its input ends a shell; what it runs in the background ends with its system.
        process.1 = None;
        if until(Duration::from_secs(10), || process.0.try_wait().ok().flatten()).is_none() {
            process.0.kill().ok();
            process.0.wait().ok();
        }
    }
}

/// A word for a shell.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_reaches_the_program_as_it_is() {
        for word in ["", "a b", "it's", "$HOME `x` \\ \"", "'\n'"] {
            let line = format!("printf %s {}", quoted(word));
            let output = Command::new("sh").args(["-c", &line]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
