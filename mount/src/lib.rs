//! `dvs-mount`, the FUSE door: serves the VOS tree to the unmodified programs of a node.
//!
//! Each FUSE request becomes a call of vfs-server, a large one several, with the credentials of the process that made it.
//! Only `fuse` knows the protocol.
//!
//! The process that holds `/dev/fuse` must never use its own mount: it would wait for itself, and could not even be
//! killed. So it has no file and no directory there, and starts no program while it serves but its successor (`holder`).

pub mod agent;
mod closing;
mod cred;
pub mod estate;
pub mod fuse;
mod fusermount;
pub mod holder;
pub mod kernel;
mod leases;
pub mod limits;
pub mod memory;
mod mountpoint;
mod names;
mod owners;
mod pages;
mod promised;
mod put_off;
mod staging;
mod status;
pub mod vos_agent;

use anyhow::{Context as _, Result};
use fusermount::Helped;
use m3ipc::Sendrec;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;
use vos_agent::VosAgent;

/// Threads at least: one slow call does not stop the others.
const TWO: NonZero<usize> = NonZero::new(2).expect("it is not 0");

/// How a tree is mounted.
#[derive(Clone, Debug)]
pub struct Options {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// Source of the mount, as mountinfo and df(1) show it. For example `dvs` or the name of the DC.
    pub name: String,
    /// Threads that wait for requests at first; `None`: one per core, two at least. There are more when more is asked at
    /// once.
    pub threads: Option<NonZero<usize>>,
    /// Features of the kernel's FUSE that may be used: `FUSE_*` flags of INIT in `linux/fuse.h`. Fewer, to see what happens
    /// on an older kernel.
    pub features: u64,
}

impl Options {
    /// A mount named `dvs` at `mountpoint`.
    pub fn new(mountpoint: impl Into<PathBuf>) -> Options {
        Options {
            mountpoint: mountpoint.into(),
            name: "dvs".into(),
            threads: None,
            features: u64::MAX,
        }
    }

    fn threads(&self) -> NonZero<usize> {
        let cores = thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        self.threads.unwrap_or(cores.max(TWO))
    }
}

/// Serves the tree at `options.mountpoint` until it is unmounted or the process gets SIGTERM, SIGINT or SIGHUP. If it dies, so does the
/// mount ([`holder::hold`] is for those that must not).
///
/// `port` is a port of a trusted channel (`m3ipc::door::kind::AGENT`). Meant for a process of its own, which it renames.
///
/// # Errors
/// One sentence that says what to do: `/dev/fuse` missing or not allowed, the mount point missing or in use.
pub fn run(options: Options, port: impl Sendrec + Send + Sync + 'static) -> Result<()> {
    become_process(c"dvs-mount")?;
    die_of_panics();
    // Before there is a mount that a signal could leave behind.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot handle signals")?;
    mount(&options, port)?.until_signal(signals)
}

/// Takes name and place of a process that keeps no file system busy, least of all its own.
fn become_process(name: &std::ffi::CStr) -> Result<()> {
    rustix::thread::set_name(name).context("cannot set the process name")?;
    std::env::set_current_dir("/").context("cannot change to /")
}

/// With a thread missing an agent would serve on, until none is left: better it dies and another is started.
fn die_of_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        // Not by abort(3): a process that leaves a core waits for its threads, of which some may wait for its successor.
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).ok();
        std::process::abort();
    }));
}

/// A tree that is being served by threads of this process. Unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    place: PathBuf,
    news: Receiver<News>,
    tell: Sender<News>,
    requests: Arc<AtomicU64>,
    /// Whoever unmounts twice may take away what somebody else has mounted there since.
    attached: bool,
}

/// What the thread that waits for the end is told.
#[derive(Debug)]
enum News {
    /// The kernel has ended the session.
    Ended(std::io::Result<()>),
    /// A signal asks to stop.
    Stop,
}

/// Mounts the tree and returns when it can be used.
///
/// # Errors
/// As [`run`].
pub fn mount(options: &Options, port: impl Sendrec + Send + Sync + 'static) -> Result<Mounted> {
    let Attached { place, descriptor, helper } = attach(options)?;
    let (tell, news) = channel();
    let told = tell.clone();
    let end = move |outcome| {
        // Nobody listens any more if the mount has been dropped.
        told.send(News::Ended(outcome)).ok();
        drop(helper);
    };
    let threads = options.threads();
    let agent = VosAgent::new(port);
    let requests = Arc::new(AtomicU64::new(0));
    let agreed = fuse::session::agree(descriptor, threads, options.features);
    agreed
        .and_then(|agreed| {
            fuse::session::start(agent, agreed, threads, requests.clone(), Box::new(end))
        })
        .inspect_err(|_| drop(mountpoint::unmount(&place)))?;
    let mounted = Mounted { place, news, tell, requests, attached: true };
    tracing::info!("mounted at {}", mounted.place.display());
    Ok(mounted)
}

/// A mount that nobody serves yet.
struct Attached {
    place: PathBuf,
    descriptor: OwnedFd,
    /// Of fusermount3, as long as the mount is to last.
    helper: Option<OwnedFd>,
}

/// Makes the mount.
///
/// # Errors
/// As [`run`].
fn attach(options: &Options) -> Result<Attached> {
    let place = mountpoint::prepare(&options.mountpoint)?;
    let wanted = mountpoint::Wanted { name: &options.name, max_read: limits::IO_SIZE_MAX };
    let (descriptor, helper) = match mountpoint::mount(&place, wanted)? {
        Some(descriptor) => (descriptor, None),
        None => {
            let Helped { descriptor, helper } = fusermount::mount(&place, wanted)?;
            (descriptor, Some(helper))
        }
    };
    Ok(Attached { place, descriptor, helper })
}

impl Mounted {
    /// The mount point, absolute and without links.
    pub fn path(&self) -> &Path {
        &self.place
    }

    /// How many requests the kernel has made so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Waits until the tree is unmounted, or unmounts it at one of `signals`.
    ///
    /// # Errors
    /// The session broke, or it could not be unmounted.
    fn until_signal(mut self, mut signals: Signals) -> Result<()> {
        let handle = signals.handle();
        let tell = self.tell.clone();
        let watch = move || {
            for _ in signals.forever() {
                tell.send(News::Stop).ok();
            }
        };
        thread::Builder::new()
            .name("dvs-signals".into())
            .spawn(watch)
            .context("no thread for signals")?;
        let news = self.news.recv();
        handle.close();
        match news {
            Ok(News::Ended(outcome)) => {
                self.attached = false;
                outcome.context("the FUSE session broke")
            }
            Ok(News::Stop) | Err(_) => self.unmount(),
        }
    }

    /// Unmounts the tree. Programs with files open in it have some seconds to close them; those that do not get
    /// ENOTCONN when this process ends.
    ///
    /// # Errors
    /// It could not be unmounted.
    pub fn unmount(mut self) -> Result<()> {
        self.attached = false;
        mountpoint::unmount(&self.place)?;
        match self.news.recv_timeout(Duration::from_secs(limits::STOP_GRACE_SECONDS)) {
            Ok(News::Ended(outcome)) => outcome.context("the FUSE session broke"),
            Ok(News::Stop) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                tracing::warn!(
                    "files at {} are still open: they are cut off",
                    self.place.display()
                );
                Ok(())
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.attached
            && let Err(error) = mountpoint::unmount(&self.place)
        {
            tracing::warn!("{error:#}");
        }
    }
}
