//! `dvs mount PATH`: the files of a DC on a directory of this machine; and `dvs-mount` and `dvs-agent` themselves.

use crate::lab::{self, Lab};
use crate::limits::ASK_EVERY;
use crate::place::{self, Place};
use crate::{procfs, table};
use anyhow::{Context, Result, bail, ensure};
use m3ipc::door::{self, kind};
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Options of `dvs mount`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The distributed container
    #[arg(long, value_name = "DC")]
    dc: Option<String>,
    /// The node through which files are reached
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Serve until it is unmounted or interrupted, instead of in the background
    #[arg(long)]
    foreground: bool,
    /// An existing directory. "umount PATH" or "dvs lab down" ends the mount
    path: PathBuf,
}

/// Options of `dvs-mount`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AgentOptions {
    /// The distributed container's socket
    #[arg(long, default_value = door::SOCKET_PATH)]
    socket: PathBuf,
    /// What mount(8) and df(1) show as the source
    #[arg(long, default_value = "dvs")]
    name: String,
    /// Begin a session of its own, so that the end of a terminal does not end the mount
    #[arg(long)]
    daemon: bool,
    /// Serve what the dvs-mount at standard input holds
    #[arg(long, hide = true, exclusive = true)]
    held: bool,
    /// An existing directory
    #[arg(required_unless_present = "held")]
    path: Option<PathBuf>,
}

/// `dvs mount`.
///
/// # Errors
/// One sentence: no DVS, no such directory, or what the kernel refuses.
pub(crate) fn main(options: &Options) -> Result<()> {
    let place = Place::required(options.dc.as_deref(), options.node.as_deref())?;
    let path = options.path.canonicalize();
    let path = path.with_context(|| format!("no directory {}", options.path.display()))?;
    ensure!(path.is_dir(), "{} is no directory", path.display());
    let agent_options = AgentOptions {
        socket: place.socket.clone(),
        name: place.info.dc.clone(),
        daemon: false,
        held: false,
        path: Some(path.clone()),
    };
    if options.foreground {
        return agent(&agent_options);
    }
    ensure!(!is_mounted(&path)?, "a DVS tree is mounted at {} already", path.display());
    let log = Log::create(&path)?;
    let mut child = start(&agent_options, &log)?;
    while !is_mounted(&path)? {
        if let Some(status) = child.try_wait()? {
            let said = fs::read_to_string(&log.path).unwrap_or_default();
            bail!(
                "dvs-mount has ended ({status}): {}",
                said.lines().last().unwrap_or("no message")
            );
        }
        std::thread::sleep(ASK_EVERY);
    }
    log.keep(&child)?;
    table::say(&format!("{} is mounted at {}.\n", place.info.dc, path.display()))
}

/// Serves the tree until it is unmounted or a signal ends it.
///
/// # Errors
/// One sentence: what the kernel refuses.
pub(crate) fn agent(options: &AgentOptions) -> Result<()> {
    if options.daemon {
        rustix::process::setsid().ok();
    }
    // The container blocks those that it waits for.
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    if options.held {
        return ::mount::holder::serve(std::io::stdin().as_fd().try_clone_to_owned()?);
    }
    let process = place::connect(&options.socket, kind::AGENT)?;
    let path = options.path.as_deref().context("no directory to mount at")?;
    let mut mount_options = ::mount::Options::new(path);
    mount_options.name.clone_from(&options.name);
    ::mount::holder::hold(&mount_options, &process, |link| {
        Command::new("/proc/self/exe")
            .arg0("dvs-agent")
            .args(["mount-agent", "--held"])
            .stdin(link)
            .spawn()
    })
}

fn start(options: &AgentOptions, log: &Log) -> Result<Child> {
    let output = File::create(&log.path)?;
    Command::new(std::env::current_exe()?)
        .arg0("dvs-mount")
        .args(["mount-agent", "--daemon", "--name", &options.name, "--socket"])
        .arg(&options.socket)
        .args(&options.path)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot start dvs-mount")
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = procfs::mounts()?;
    let at = mounts.iter().rev().find(|mount| mount.point == path.as_os_str().as_bytes());
    Ok(at.is_some_and(|mount| mount.kind.starts_with(b"fuse")))
}

/// Where a background agent writes, and where `lab down` finds it.
struct Log {
    path: PathBuf,
    /// The lab's directory of pid files; outside of a lab the log is removed.
    lab: Option<PathBuf>,
}

impl Log {
    fn create(mounted: &Path) -> Result<Log> {
        let lab = Lab::read(&lab::directory())?.map(|lab| lab.mounts());
        let directory = lab.clone().unwrap_or_else(std::env::temp_dir);
        fs::create_dir_all(&directory)
            .with_context(|| format!("this user may not mount here: {}", directory.display()))?;
        let name = mounted.to_string_lossy().replace('/', "-");
        let path = directory.join(format!("mount{name}-{}.log", std::process::id()));
        Ok(Log { path, lab })
    }

    fn keep(&self, child: &Child) -> Result<()> {
        match (&self.lab, lab::process::ProcessId::of(i32::try_from(child.id())?)) {
            (Some(_), Some(process)) => process.write(&self.path.with_extension("pid")),
            _ => Ok(fs::remove_file(&self.path)?),
        }
    }
}
