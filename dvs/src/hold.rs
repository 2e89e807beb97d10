//! `dvs lock` and `dvs elect`: a command that runs while a lock is held, or as the leader.
#![expect(unsafe_code, reason = "what a child does between fork(2) and execve(2)")]

use crate::exit::{self, Failure as Exit};
use crate::limits::{HELD_RELEASE_PATIENCE, HELD_STOP_PATIENCE};
use crate::services::{Options, Services, text, unexpected};
use crate::table::say;
use anyhow::{Context, Result};
use dvk::dvkd::services::{Op, Reply, Text};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::Instant;

/// In the environment of the command: the fencing token of the lock, or the epoch of the leadership.
const TOKEN_VARIABLE: &str = "DVS_LOCK_TOKEN";
const EPOCH_VARIABLE: &str = "DVS_ELECT_EPOCH";

const HELP: &str = "\
The lock is released when the command ends. It also is when dvs is killed (then the command is killed too), and a few \
seconds after its node has died or was cut off (the command gets SIGTERM, a little later SIGKILL). A command that was \
stopped may wake up late: let it give its token to whatever it changes, and let that refuse a smaller token than it \
has seen. Tokens of later holders are greater.\n\n\
Exit status: the command's own; 121 it was not one's turn (--try, --timeout); 124 the system group cannot be asked, or \
the lock was lost; 125 dvs itself failed; 126, 127 the command cannot be executed, is not there; 128+N ended by signal N.";

/// Options of `dvs lock`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct LockOptions {
    /// The lock: any name, for the whole cluster
    name: String,
    /// Do not wait if somebody else has it
    #[arg(long = "try")]
    try_only: bool,
    #[command(flatten)]
    options: Options,
    /// The command; its fencing token is in $DVS_LOCK_TOKEN
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Options of `dvs elect`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct ElectOptions {
    /// The election: any name, for the whole cluster
    name: String,
    /// What others read of the leader
    #[arg(long, default_value = "")]
    value: OsString,
    /// Print who leads (epoch, session, value) instead
    #[arg(long, conflicts_with = "command")]
    who: bool,
    #[command(flatten)]
    options: Options,
    /// The command, run as the leader; its epoch is in $DVS_ELECT_EPOCH
    #[arg(required_unless_present = "who", last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// `dvs lock`; returns the exit code.
///
/// # Errors
/// One sentence with its exit code.
pub(crate) fn lock(options: &LockOptions) -> Result<u8> {
    let LockOptions { name, try_only, options, command } = options;
    let mut services = options.connect()?;
    let token = match services.ask(Op::Lock { name: name.clone(), wait: !try_only })? {
        Reply::Locked { token } => token,
        other => return unexpected(&other),
    };
    run(&mut services, command, (TOKEN_VARIABLE, token), Op::Unlock { name: name.clone() })
}

/// `dvs elect`; returns the exit code.
///
/// # Errors
/// One sentence with its exit code.
pub(crate) fn elect(options: &ElectOptions) -> Result<u8> {
    let ElectOptions { name, value, who, options, command } = options;
    let mut services = options.connect()?;
    if *who {
        return match services.ask(Op::Leader { name: name.clone() })? {
            Reply::Leader { leader: Some((epoch, Text(value), session)) } => {
                say(&format!("{epoch}\t{session}\t{}\n", String::from_utf8_lossy(&value)))?;
                Ok(0)
            }
            Reply::Leader { leader: None } => Err(Exit::error(exit::FAILED, "nobody leads")),
            other => unexpected(&other),
        };
    }
    let epoch = match services.ask(Op::Campaign { name: name.clone(), value: text(value) })? {
        Reply::Elected { epoch } => epoch,
        other => return unexpected(&other),
    };
    run(&mut services, command, (EPOCH_VARIABLE, epoch), Op::Resign { name: name.clone() })
}

/// Runs a command while something is held; releases it then.
fn run(
    services: &mut Services,
    command: &[OsString],
    variable: (&str, u64),
    release: Op,
) -> Result<u8> {
    // From here on this process must see the command's end.
    let signals = SigSet::from_iter([
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
    ]);
    let before = signals.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let descriptor =
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut child = start(command, variable, before)?;
    let (status, lost) = attend(services, &mut child, &descriptor)?;
    if let Some(why) = lost {
        return Err(Exit::error(exit::NODE_DOWN, why));
    }
    // If that is not answered soon, the end of the connection does it.
    services.ask_for(release, HELD_RELEASE_PATIENCE).ok();
    Ok(code(status))
}

fn start(command: &[OsString], (name, token): (&str, u64), before: SigSet) -> Result<Child> {
    let (program, arguments) = command.split_first().context("which command?")?;
    let mut builder = Command::new(program);
    builder.args(arguments).env(name, token.to_string());
    let parent = rustix::process::getpid();
    let prepare = move || -> std::io::Result<()> {
        // Whoever has the lock next must not meet this one.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        Ok(before.thread_set_mask()?)
    };
    // SAFETY: it makes three system calls and allocates nothing.
    unsafe { builder.pre_exec(prepare) };
    builder.spawn().map_err(|error| {
        let code = match error.kind() {
            ErrorKind::NotFound => exit::NOT_FOUND,
            _ => exit::NOT_EXECUTABLE,
        };
        Exit::error(code, format!("cannot execute {}: {error}", program.to_string_lossy()))
    })
}

/// Waits for the command's end. If what it holds is lost it is ended, and the reason is told.
fn attend(
    services: &mut Services,
    child: &mut Child,
    signals: &SignalFd,
) -> Result<(ExitStatus, Option<String>)> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let mut lost: Option<(String, Instant)> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, lost.map(|(why, _)| why)));
        }
        let patience = lost.as_ref().map(|(_, since)| {
            HELD_STOP_PATIENCE.saturating_sub(since.elapsed()).try_into().unwrap_or_default()
        });
        let mut all = vec![PollFd::new(signals, PollFlags::IN)];
        if lost.is_none() {
            all.push(PollFd::from_borrowed_fd(services.client.as_fd(), PollFlags::IN));
        }
        match poll(&mut all, patience.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => child.kill()?,
            other => drop(other?),
        }
        let says = all.get(1).is_some_and(|socket| !socket.revents().is_empty());
        while let Some(info) = signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
            // The terminal sends the others to the command as well.
            if let Some(signal @ (Signal::SIGTERM | Signal::SIGHUP)) = signal {
                kill(pid, signal).ok();
            }
        }
        if says {
            let why = match services.next() {
                Ok(reply) => format!("dvkd says {reply:?}"),
                Err(error) => format!("{error:#}"),
            };
            let why = format!("what the command ran under is lost: {why}");
            eprintln!("dvs: {why}; the command is ended");
            kill(pid, Signal::SIGTERM).ok();
            lost = Some((why, Instant::now()));
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| Some(i32::from(exit::SIGNAL_BASE) + status.signal()?));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(exit::RUN_FAILED)
}
