//! From a request to a running program: a fresh `dvs start` prepares itself and becomes the program.
//!
//! The container has threads, and a forked child of such a process may do next to nothing; so it
//! executes this program anew, and that one makes the session, the mounts and the user's rights.
#![expect(unsafe_code, reason = "descriptors are inherited by number, and signals are set back")]

use super::{elf, root};
use crate::session::Request;
use anyhow::{Context, Result, ensure};
use calls::container::{Spawned, shim, step};
use m3ipc::Cred;
use nix::unistd::execve;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::thread as rights;
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Starts programs of this container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Starter {
    /// The shim as programs see it, if there is one.
    pub(crate) shim: Option<PathBuf>,
    /// Set in every program's environment.
    pub(crate) environment: Vec<(String, String)>,
}

/// A process that is about to be a program, and the container's ends of its streams.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) pid: i32,
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
    /// `None` on a terminal.
    pub(crate) error: Option<OwnedFd>,
    /// What [`Outcome::decode`] reads, up to its end.
    pub(crate) report: OwnedFd,
}

/// Everything that `dvs start` needs to know.
#[derive(Debug, Serialize, Deserialize)]
struct Launch {
    request: Request,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    terminal: bool,
    shim: Option<PathBuf>,
}

impl Starter {
    /// Starts `request` with the rights of `cred`, on a terminal of that many rows and columns or on pipes.
    ///
    /// Only one thread may be here or in another fork at a time: two descriptors are inheritable for a moment.
    ///
    /// # Errors
    /// The kernel has no descriptor or process left.
    pub(crate) fn start(
        &self,
        request: &Request,
        cred: &Cred,
        window: Option<(u16, u16)>,
    ) -> std::io::Result<Streams> {
        let launch = Launch {
            request: self.surroundings(request),
            uid: cred.uid,
            gid: cred.gid,
            groups: cred.groups().to_vec(),
            terminal: window.is_some(),
            shim: self.shim.clone(),
        };
        let launch = inheritable_file(&postcard::to_stdvec(&launch).map_err(Error::other)?)?;
        let (report, reporter) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::fcntl_setfd(&reporter, FdFlags::empty())?;
        let (ours, theirs) = match window {
            Some(window) => terminal(window, cred)?,
            None => pipes()?,
        };
        let [input, output, error] = ours;
        let [child_input, child_output, child_error] = theirs;
        let child = Command::new("/proc/self/exe")
            .arg0("dvs-start")
            .arg("start")
            .args([launch.as_raw_fd().to_string(), reporter.as_raw_fd().to_string()])
            .env_clear()
            .stdin(child_input)
            .stdout(child_output)
            .stderr(child_error)
            .spawn()?;
        let pid = i32::try_from(child.id()).map_err(Error::other)?;
        for fd in [&input, &output, &error].into_iter().flatten().chain([&report]) {
            rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        let missing = || Error::from(ErrorKind::NotFound);
        let (input, output) = (input.ok_or_else(missing)?, output.ok_or_else(missing)?);
        Ok(Streams { pid, input, output, error, report })
    }

    /// The request with the variables that every program here has.
    fn surroundings(&self, request: &Request) -> Request {
        let mut request = request.clone();
        for (name, value) in &self.environment {
            let prefix = format!("{name}=");
            request.environment.retain(|pair| !pair.starts_with(prefix.as_bytes()));
            request.environment.push(format!("{prefix}{value}").into_bytes());
        }
        request
    }
}

type Ours = [Option<OwnedFd>; 3];
type Theirs = [Stdio; 3];

fn pipes() -> std::io::Result<(Ours, Theirs)> {
    let (child_input, input) = pipe_with(PipeFlags::CLOEXEC)?;
    let (output, child_output) = pipe_with(PipeFlags::CLOEXEC)?;
    let (error, child_error) = pipe_with(PipeFlags::CLOEXEC)?;
    let theirs = [child_input, child_output, child_error].map(Stdio::from);
    Ok(([input, output, error].map(Some), theirs))
}

/// A new terminal that belongs to the user (pty(7)).
fn terminal((rows, columns): (u16, u16), cred: &Cred) -> std::io::Result<(Ours, Theirs)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    if cred.uid != rustix::process::geteuid().as_raw() {
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(cred.uid)), None)?;
    }
    set_window(&master, rows, columns)?;
    let theirs = [slave.try_clone()?, slave.try_clone()?, slave].map(Stdio::from);
    Ok(([Some(master.try_clone()?), Some(master), None], theirs))
}

/// Sets a terminal's size; its foreground processes get SIGWINCH.
pub(crate) fn set_window(terminal: &OwnedFd, rows: u16, columns: u16) -> rustix::io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size)
}

/// A file in memory that a child inherits.
fn inheritable_file(bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(c"dvs-launch", MemfdFlags::empty())?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// How a start went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    step: u8,
    errno: i32,
    shim: u8,
}

/// The record that says which shim the program will have; without it the process has died early.
const WILL_RUN: u8 = b'+';
/// The record that says why there will be no program.
const FAILED: u8 = b'-';

impl Outcome {
    /// The container could not even try.
    pub(crate) fn unprepared(error: &Error) -> Outcome {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Outcome { step: step::PREPARE, errno, shim: shim::UNKNOWN }
    }

    /// What `dvs start` has said until it became the program or ended.
    pub(crate) fn decode(mut said: &[u8]) -> Outcome {
        let died = Outcome { step: step::PREPARE, errno: libc::ECHILD, shim: shim::UNKNOWN };
        let mut outcome = died;
        loop {
            match said {
                [] => return outcome,
                [WILL_RUN, shim, rest @ ..] => {
                    outcome = Outcome { step: step::RUNNING, errno: 0, shim: *shim };
                    said = rest;
                }
                [FAILED, step, rest @ ..] => {
                    let Some((errno, _)) = rest.split_first_chunk() else { return died };
                    return Outcome {
                        step: *step,
                        errno: i32::from_le_bytes(*errno),
                        shim: outcome.shim,
                    };
                }
                _ => return died,
            }
        }
    }

    /// The answer to the caller.
    pub(crate) fn spawned(self, pid: i32) -> Spawned {
        let pid = if self.step == step::RUNNING { u32::try_from(pid).unwrap_or(0) } else { 0 };
        Spawned { pid, step: self.step, errno: self.errno, shim: self.shim }
    }
}

/// Why a program did not start: at which [`step`].
#[derive(Debug)]
struct Failed(u8, Error);

/// `dvs start LAUNCH REPORT`: becomes the program described by the inherited descriptor `launch`.
///
/// # Errors
/// It is not called by a container. Other failures go to the descriptor `report`.
pub(crate) fn main(launch: RawFd, report: RawFd) -> Result<()> {
    let (launch, report) = (inherited(launch)?, inherited(report)?);
    let mut bytes = Vec::new();
    File::from(launch).read_to_end(&mut bytes)?;
    let launch: Launch = postcard::from_bytes(&bytes).context("this is for a container to call")?;
    let mut report = File::from(report);
    let Failed(step, error) = match prepare(&launch) {
        Err(error) => error,
        Ok(()) => execute(&launch, &mut report),
    };
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    report.write_all(&[&[FAILED, step], &errno.to_le_bytes()[..]].concat())?;
    // The reason has been told; the caller has nothing to read from the streams.
    std::process::exit(i32::from(crate::exit::RUN_FAILED));
}

/// Takes over a descriptor that the parent has left open for this program.
fn inherited(fd: RawFd) -> Result<OwnedFd> {
    ensure!(fd > 2 && Path::new(&format!("/proc/self/fd/{fd}")).exists(), "no descriptor {fd}");
    // SAFETY: it is open, and nothing else in this process, which has just begun, knows its number.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

fn prepare(launch: &Launch) -> std::result::Result<(), Failed> {
    let failed = |error: rustix::io::Errno| Failed(step::PREPARE, error.into());
    rustix::process::setsid().map_err(failed)?;
    if launch.terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(failed)?;
    }
    let maps = &launch.request.maps;
    root::map(maps).map_err(|error| Failed(step::MAP, error))?;
    drop_rights(launch).map_err(failed)?;
    rustix::process::umask(Mode::from_raw_mode(launch.request.umask));
    if std::env::set_current_dir(OsStr::from_bytes(&launch.request.cwd)).is_err() {
        std::env::set_current_dir("/").map_err(|error| Failed(step::PREPARE, error))?;
    }
    reset_signals().map_err(|error| Failed(step::PREPARE, error.into()))
}

/// Signals as a login would have them: the daemons that this process descends from block and ignore some.
fn reset_signals() -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
    let fixed = [Signal::SIGKILL, Signal::SIGSTOP];
    for number in Signal::iterator().filter(|number| !fixed.contains(number)) {
        // SAFETY: the default action is no function, so there is none that could be called wrongly.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    SigSet::empty().thread_set_mask()
}

/// From the container's rights to the caller's.
fn drop_rights(launch: &Launch) -> rustix::io::Result<()> {
    let own = rustix::process::geteuid();
    if !launch.request.maps.is_empty() && launch.uid != 0 {
        // With other files in place of known ones, a set-uid program could be led astray.
        rights::set_no_new_privs(true)?;
    }
    if own.is_root() {
        let groups: Vec<_> = launch.groups.iter().map(|gid| rights::Gid::from_raw(*gid)).collect();
        rights::set_thread_groups(&groups)?;
        let gid = rights::Gid::from_raw(launch.gid);
        rights::set_thread_res_gid(gid, gid, gid)?;
        let uid = rights::Uid::from_raw(launch.uid);
        rights::set_thread_res_uid(uid, uid, uid)
    } else if own.as_raw() == launch.uid {
        rights::clear_ambient_capability_set()
    } else {
        Err(rustix::io::Errno::PERM)
    }
}

/// Becomes the program; returns why not.
fn execute(launch: &Launch, report: &mut File) -> Failed {
    let request = &launch.request;
    let mut denied = None;
    for path in candidates(&request.argv[0], request.variable("PATH")) {
        match execute_file(&path, launch, report) {
            error if error.kind() == ErrorKind::NotFound && !path.exists() => {}
            error if error.kind() == ErrorKind::NotADirectory => {}
            error if error.kind() == ErrorKind::PermissionDenied => denied = Some(error),
            error => return Failed(step::EXEC, error),
        }
    }
    match denied {
        Some(error) => Failed(step::EXEC, error),
        None => Failed(step::NOT_FOUND, Error::from_raw_os_error(libc::ENOENT)),
    }
}

/// Where a command may be: as execvp(3) looks for it.
fn candidates(command: &[u8], path: Option<&[u8]>) -> Vec<PathBuf> {
    let command = Path::new(OsStr::from_bytes(command));
    if command.as_os_str().as_bytes().contains(&b'/') {
        return vec![command.to_owned()];
    }
    if command.as_os_str().is_empty() {
        return Vec::new();
    }
    let path = path.unwrap_or(b"/usr/local/bin:/bin:/usr/bin");
    // An empty part means the current directory.
    path.split(|byte| *byte == b':')
        .map(|dir| Path::new(OsStr::from_bytes(dir)).join(command))
        .collect()
}

fn execute_file(path: &Path, launch: &Launch, report: &mut File) -> Error {
    let request = &launch.request;
    let kind = elf::kind(path);
    let shim = shim_of(&kind, launch.shim.is_some());
    if let Err(error) = report.write_all(&[WILL_RUN, shim]) {
        return error;
    }
    let mut environment = request.environment.clone();
    if let (elf::Kind::Musl, Some(shim)) = (&kind, &launch.shim) {
        preload(&mut environment, shim);
    }
    let error = exec(path, &request.argv, &environment);
    if error.raw_os_error() != Some(libc::ENOEXEC) {
        return error;
    }
    // A script without a first line: the shell's, as execvp(3) has it.
    let file = path.as_os_str().as_bytes().to_vec();
    let shell = [vec![b"sh".to_vec(), file], request.argv[1..].to_vec()].concat();
    exec(Path::new("/bin/sh"), &shell, &environment)
}

fn shim_of(kind: &elf::Kind, present: bool) -> u8 {
    match kind {
        _ if !present => shim::ABSENT,
        elf::Kind::Dynamic | elf::Kind::Musl => shim::LOADED,
        elf::Kind::Static => shim::STATIC,
        elf::Kind::Foreign => shim::FOREIGN,
        elf::Kind::Unknown => shim::UNKNOWN,
    }
}

/// Puts the shim in front of what `LD_PRELOAD` has.
fn preload(environment: &mut Vec<Vec<u8>>, shim: &Path) {
    let mut value = b"LD_PRELOAD=".to_vec();
    value.extend(shim.as_os_str().as_bytes());
    if let Some(at) = environment.iter().position(|pair| pair.starts_with(b"LD_PRELOAD=")) {
        let old = environment.swap_remove(at);
        value.push(b':');
        value.extend(&old[b"LD_PRELOAD=".len()..]);
    }
    environment.push(value);
}

fn exec(path: &Path, argv: &[Vec<u8>], environment: &[Vec<u8>]) -> Error {
    let strings = |list: &[Vec<u8>]| -> std::result::Result<Vec<CString>, std::ffi::NulError> {
        list.iter().map(|string| CString::new(string.clone())).collect()
    };
    let path = CString::new(path.to_owned().into_os_string().into_vec());
    match (path, strings(argv), strings(environment)) {
        (Ok(path), Ok(argv), Ok(environment)) => match execve(&path, &argv, &environment) {
            Ok(never) => match never {},
            Err(error) => error.into(),
        },
        _ => Error::from_raw_os_error(libc::EINVAL),
    }
}
