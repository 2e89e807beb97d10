//! `dvs-run`: runs a program in the container of any node, as if it ran here.

use crate::exit::{self, Failure};
use crate::limits::{INPUT_SIZE, MAPS_MAX};
use crate::place::{Connected, Place};
use crate::session::Request;
use crate::terminal::{self, RawTerminal};
use crate::{embedded, procfs};
use anyhow::{Context, Result, ensure};
use calls::container::{
    CloseStream, ERROR, INPUT, OUTPUT, Prepare, PrepareMore, ReadStream, Resize, Signal, Spawn,
    Spawned, WaitExit, WriteInput, shim, step,
};
use calls::{Row, call};
use m3ipc::errno::numbers::{EHOSTDOWN, ENOSYS, EPIPE, ESRCH, ESTALE};
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, Errno, Wait};
use nix::sys::signal::{SigSet, Signal as Sig};
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// Options of `dvs run` and `dvs-run`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = exit::RUN_HELP)]
pub(crate) struct Options {
    /// The distributed container
    #[arg(long, value_name = "DC")]
    pub(crate) dc: Option<String>,
    /// The node, by name or number [default: this one; on the host of a lab its first one]
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// The program sees the files of the distributed container also at PATH, beside /dvs. A PATH
    /// that does not exist is made in the container only
    #[arg(long, value_name = "PATH")]
    pub(crate) map: Vec<PathBuf>,
    /// Leave standard input alone; the program reads an empty one
    #[arg(short = 'n', long)]
    pub(crate) no_stdin: bool,
    /// Say where the program runs, and whether the shim is in it
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(crate) command: Vec<OsString>,
}

/// Runs the program; returns the exit code.
///
/// # Errors
/// One sentence, with one of the codes of `exit`.
pub(crate) fn main(options: &Options) -> Result<u8> {
    run(options).map_err(|error| match error.downcast_ref::<Failure>() {
        Some(_) => error,
        None => Failure::error(exit::RUN_FAILED, format!("{error:#}")),
    })
}

fn run(options: &Options) -> Result<u8> {
    let request = request(options)?;
    match Place::find(options.dc.as_deref(), options.node.as_deref())? {
        Some(place) => attend(options, &place, &request),
        None if options.dc.is_none() && options.node.is_none() => embedded::run(options, &request),
        None => Err(Failure::error(
            exit::NO_DVS,
            "no DVS is running here, so there is no such node or container; \"dvs lab up\" starts one",
        )),
    }
}

/// Runs the program at `place` and waits for its end; returns the exit code.
///
/// # Errors
/// One sentence.
pub(crate) fn attend(options: &Options, place: &Place, request: &Request) -> Result<u8> {
    Run::start(options, place, request)?.wait()
}

/// What the program is to be, from the options and this process's own surroundings.
fn request(options: &Options) -> Result<Request> {
    ensure!(options.map.len() <= MAPS_MAX, "too many paths to map");
    let maps = options.map.iter().map(|path| {
        let path = std::path::absolute(path).context("a path to map has no name")?;
        Ok(path.into_os_string().into_vec())
    });
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    Ok(Request {
        argv: options.command.iter().map(|word| word.as_bytes().to_vec()).collect(),
        environment: std::env::vars_os().filter_map(|pair| variable(&pair)).collect(),
        cwd: cwd.into_os_string().into_vec(),
        maps: maps.collect::<Result<_>>()?,
        umask: umask.as_raw_mode(),
    })
}

/// `NAME=value`, unless it is about this process's place in a DVS and not about the program's.
fn variable((name, value): &(OsString, OsString)) -> Option<Vec<u8>> {
    let name = name.as_bytes();
    // A name with a `=` cannot be passed on, one from the DVS would lead the program astray, and
    // `_` is the path of this command.
    if name.is_empty() || name.contains(&b'=') || name.starts_with(b"DVS_") || name == b"_" {
        return None;
    }
    Some([name, b"=", value.as_bytes()].concat())
}

/// A session with a running program.
#[derive(Debug)]
struct Run {
    session: Arc<Session>,
    streams: Vec<JoinHandle<()>>,
    raw: Arc<OnceLock<RawTerminal>>,
}

/// The caller's end of a session.
#[derive(Debug)]
struct Session {
    client: Connected,
    container: Endpoint,
    id: u64,
    node: String,
}

impl Run {
    fn start(options: &Options, place: &Place, request: &Request) -> Result<Run> {
        // Before there is a second thread: they all leave these signals to one.
        let signals = forwarded_signals()?;
        let raw = Arc::new(OnceLock::<RawTerminal>::new());
        let terminal = Arc::clone(&raw);
        let client = place.connect(move || restore(&terminal))?;
        let node = place.info.name_of(place.target);
        let container = Endpoint::container(place.target());
        let id = prepare(&client, container, &node, &request.encode()?)?;
        let session = Arc::new(Session { client, container, id, node });
        let interactive = !options.no_stdin && terminal::is_interactive();
        let (rows, columns) = if interactive { terminal::size() } else { (0, 0) };
        let spawned =
            session.call(&Spawn { id, terminal: interactive.into(), rows, columns }, &[])?;
        check(&spawned, request, &session.node)?;
        if options.verbose {
            explain(&spawned, place);
        }
        if interactive {
            // Nobody else sets it.
            raw.set(RawTerminal::enter()?).ok();
        }
        spawn_forwarder(&session, signals, Arc::clone(&raw));
        let mut streams = vec![spawn_output(&session, OUTPUT, std::io::stdout())];
        if !interactive {
            streams.push(spawn_output(&session, ERROR, std::io::stderr()));
        }
        spawn_input(&session, options.no_stdin);
        Ok(Run { session, streams, raw })
    }

    /// Waits for the program's end; returns the exit code.
    fn wait(self) -> Result<u8> {
        let ended = self.session.call(&WaitExit { id: self.session.id }, &[]);
        if ended.is_ok() {
            // All that it has written before.
            for stream in self.streams {
                stream.join().ok();
            }
        }
        self.session.client.finish();
        restore(&self.raw);
        Ok(exit_code(ended?.status))
    }
}

/// The user's terminal as it was before.
fn restore(raw: &OnceLock<RawTerminal>) {
    if let Some(raw) = raw.get() {
        raw.restore();
    }
}

impl Session {
    /// A call about this session, with the errors of its transport explained.
    fn call<R: Row>(&self, row: &R, payload: &[u8]) -> Result<R::Reply> {
        self.try_call(row, payload, &mut [])
            .map(|(reply, _)| reply)
            .map_err(|e| lost(&self.node, e))
    }

    fn try_call<R: Row>(
        &self,
        row: &R,
        payload: &[u8],
        receive: &mut [u8],
    ) -> Result<(R::Reply, usize), Errno> {
        call(&self.client, self.container, row, &[payload], receive, Wait::FOREVER)
    }
}

/// Sends the request, in as many parts as it needs; returns the session's number.
fn prepare(client: &Connected, container: Endpoint, node: &str, request: &[u8]) -> Result<u64> {
    let total = u32::try_from(request.len())?;
    let (first, rest) = request.split_at(request.len().min(PAYLOAD_MAX));
    let begun = call(client, container, &Prepare { total }, &[first], &mut [], Wait::FOREVER);
    let id = begun.map_err(|errno| lost(node, errno))?.0.id;
    let mut offset = u32::try_from(first.len())?;
    for part in rest.chunks(PAYLOAD_MAX) {
        let row = PrepareMore { id, offset };
        call(client, container, &row, &[part], &mut [], Wait::FOREVER)
            .map_err(|errno| lost(node, errno))?;
        offset += u32::try_from(part.len())?;
    }
    Ok(id)
}

/// The program does not run: why.
fn check(spawned: &Spawned, request: &Request, node: &str) -> Result<()> {
    let command = String::from_utf8_lossy(&request.argv[0]);
    let why = std::io::Error::from_raw_os_error(spawned.errno);
    let (code, message) = match spawned.step {
        step::RUNNING => return Ok(()),
        step::NOT_FOUND => {
            (exit::NOT_FOUND, format!("{command}: there is no such command on node {node}"))
        }
        step::EXEC => (exit::NOT_EXECUTABLE, format!("{command}: cannot be executed: {why}")),
        step::MAP => (exit::RUN_FAILED, format!("a path of --map cannot be mounted: {why}")),
        _ => (exit::RUN_FAILED, format!("node {node} cannot start a program: {why}")),
    };
    Err(Failure::error(code, message))
}

/// For `-v`.
fn explain(spawned: &Spawned, place: &Place) {
    let without = "files are shared all the same, semaphores and queues stay on its node";
    let shim = match spawned.shim {
        shim::LOADED => "the shim is loaded".into(),
        shim::STATIC => format!("no shim: the program is linked statically ({without})"),
        shim::FOREIGN => format!("no shim: the program is for another kind of machine ({without})"),
        shim::ABSENT => format!("no shim: this DVS was started without one ({without})"),
        _ => format!("no shim: the program is neither ELF nor a script ({without})"),
    };
    let (pid, dc, node) = (spawned.pid, &place.info.dc, place.info.name_of(place.target));
    eprintln!("dvs-run: process {pid} on node {node} of {dc}; {shim}");
}

/// A call about the session has failed: what that means.
fn lost(node: &str, errno: Errno) -> anyhow::Error {
    let (code, message) = match errno.errno {
        EHOSTDOWN | ESTALE => (exit::NODE_DOWN, format!("node {node} is down")),
        ESRCH => (exit::NODE_DOWN, format!("the container on node {node} has been restarted")),
        ENOSYS => (exit::NODE_DOWN, "this node's dvkd is gone".into()),
        _ => (exit::RUN_FAILED, format!("node {node}: {errno}")),
    };
    Failure::error(code, message)
}

/// The exit code for a status as wait(2) has it; like a shell, says how a signal ended the program.
fn exit_code(status: i32) -> u8 {
    let signal = status & 0x7f;
    if signal == 0 {
        return status.to_le_bytes()[1];
    }
    // As shells: these two are what the user or a pipe's reader wanted.
    if signal != libc::SIGINT && signal != libc::SIGPIPE {
        let core = if status & 0x80 != 0 { " (core dumped)" } else { "" };
        eprintln!("{}{core}", signal_text(signal));
    }
    u8::try_from(signal).map_or(u8::MAX, |signal| exit::SIGNAL_BASE.saturating_add(signal))
}

/// strsignal(3) for those that end programs.
fn signal_text(signal: i32) -> String {
    let text = match signal {
        libc::SIGHUP => "Hangup",
        libc::SIGQUIT => "Quit",
        libc::SIGILL => "Illegal instruction",
        libc::SIGTRAP => "Trace/breakpoint trap",
        libc::SIGABRT => "Aborted",
        libc::SIGBUS => "Bus error",
        libc::SIGFPE => "Floating point exception",
        libc::SIGKILL => "Killed",
        libc::SIGUSR1 => "User defined signal 1",
        libc::SIGSEGV => "Segmentation fault",
        libc::SIGUSR2 => "User defined signal 2",
        libc::SIGALRM => "Alarm clock",
        libc::SIGTERM => "Terminated",
        libc::SIGXCPU => "CPU time limit exceeded",
        libc::SIGXFSZ => "File size limit exceeded",
        libc::SIGSYS => "Bad system call",
        other => return format!("Signal {other}"),
    };
    text.into()
}

/// The signals that are passed on; blocked from now on in every thread. One that this process has
/// been told to ignore (nohup) stays ignored.
fn forwarded_signals() -> Result<SigSet> {
    let ignored = procfs::ignored_signals().unwrap_or(0);
    let mut set = SigSet::empty();
    for signal in [
        Sig::SIGINT,
        Sig::SIGTERM,
        Sig::SIGHUP,
        Sig::SIGQUIT,
        Sig::SIGUSR1,
        Sig::SIGUSR2,
        Sig::SIGTSTP,
        Sig::SIGCONT,
        Sig::SIGWINCH,
    ] {
        if ignored & 1 << (signal as i32 - 1) == 0 {
            set.add(signal);
        }
    }
    set.thread_block()?;
    Ok(set)
}

fn spawn_forwarder(session: &Arc<Session>, signals: SigSet, raw: Arc<OnceLock<RawTerminal>>) {
    let session = Arc::clone(session);
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            forward(&session, signal, raw.get());
        }
    });
}

/// Passes a signal on. That the program has ended meanwhile is no failure.
fn forward(session: &Session, signal: Sig, raw: Option<&RawTerminal>) {
    let id = session.id;
    let send = |signal: i32| {
        let signal = signal.unsigned_abs();
        session.try_call(&Signal { id, signal }, &[], &mut []).ok();
    };
    let resize = || {
        let (rows, columns) = terminal::size();
        session.try_call(&Resize { id, rows, columns }, &[], &mut []).ok();
    };
    match signal {
        Sig::SIGWINCH if raw.is_some() => resize(),
        Sig::SIGWINCH => {}
        Sig::SIGTSTP => {
            // SIGTSTP has no effect on a process group without a shell above it; SIGSTOP has.
            send(libc::SIGSTOP);
            if let Some(raw) = raw {
                raw.restore();
            }
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP)
                .ok();
        }
        Sig::SIGCONT => {
            if let Some(raw) = raw {
                raw.again().ok();
                resize();
            }
            send(libc::SIGCONT);
        }
        other => send(other as i32),
    }
}

/// Copies one of the program's streams here, until it ends or nobody reads it here.
fn spawn_output(
    session: &Arc<Session>,
    stream: u8,
    mut out: impl Write + Send + 'static,
) -> JoinHandle<()> {
    let session = Arc::clone(session);
    std::thread::spawn(move || {
        let id = session.id;
        let mut bytes = vec![0; PAYLOAD_MAX];
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        while let Ok((_, count)) =
            session.try_call(&ReadStream { id, stream, size }, &[], &mut bytes)
        {
            if count == 0 {
                return;
            }
            if out.write_all(&bytes[..count]).and_then(|()| out.flush()).is_err() {
                session.try_call(&CloseStream { id, stream }, &[], &mut []).ok();
                return;
            }
        }
    })
}

/// Copies standard input to the program, until it ends or the program does not want any more.
fn spawn_input(session: &Arc<Session>, none: bool) {
    let session = Arc::clone(session);
    std::thread::spawn(move || {
        let id = session.id;
        let mut bytes = vec![0; if none { 0 } else { INPUT_SIZE }];
        // An empty buffer reads nothing: the end.
        loop {
            let count = match std::io::stdin().lock().read(&mut bytes) {
                Ok(count) if count > 0 => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    // Somebody has made it non-blocking; it may be shared with them.
                    poll(&mut [PollFd::new(&rustix::stdio::stdin(), PollFlags::IN)], None).ok();
                    continue;
                }
                Ok(_) | Err(_) => break,
            };
            match session.try_call(&WriteInput { id }, &bytes[..count], &mut []) {
                Ok(_) => {}
                Err(errno) if errno.errno == EPIPE => return,
                Err(_) => return,
            }
        }
        session.try_call(&CloseStream { id, stream: INPUT }, &[], &mut []).ok();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_shells() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(255 << 8), 255);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(libc::SIGSEGV | 0x80), 139);
    }

    #[test]
    fn variables_about_the_callers_own_place_are_not_passed_on() {
        let passed = |name: &str| variable(&(name.into(), "v".into()));
        assert_eq!(passed("HOME"), Some(b"HOME=v".to_vec()));
        for name in ["DVS_SOCKET", "DVS_LAB_ID", "_", ""] {
            assert_eq!(passed(name), None, "{name}");
        }
    }

    #[test]
    fn what_failed_decides_the_exit_code() {
        let request = Request { argv: vec![b"x".to_vec()], ..Request::default() };
        let code = |step: u8| {
            let spawned = Spawned { step, errno: libc::EACCES, ..Spawned::default() };
            check(&spawned, &request, "n1").err().map(|error| exit::code(&error))
        };
        assert_eq!(code(step::RUNNING), None);
        assert_eq!(code(step::NOT_FOUND), Some(127));
        assert_eq!(code(step::EXEC), Some(126));
        assert_eq!(code(step::MAP), Some(125));
        assert_eq!(code(step::PREPARE), Some(125));
        let lost = |errno: i32| exit::code(&lost("n1", Errno::new(errno)));
        assert_eq!((lost(EHOSTDOWN), lost(ESRCH), lost(libc::EMFILE)), (124, 124, 125));
    }
}
