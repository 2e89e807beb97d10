//! `dvs-mount`: holds a mount and its endpoint, and has a file agent, `dvs-agent`, serve them. When that dies, another one goes on.
//!
//! What must outlive an agent is here: the descriptors of the mount, so that the kernel keeps what it has asked for and waits; the connection to
//! dvkd, so that vfs-server sees no death, and keeps open files, locks and leases; channels, with the calls that are under way; the
//! estate. All else a successor finds in these, or asks for.
//!
//! The holder uses nothing of the mount, and does little, so that it has little to die of. If it does, the kernel ends what hangs on it.

mod link;

use crate::estate::{self, Estate};
use crate::fuse::device::Device;
use crate::fuse::session::{Agreed, Terms, agree, start};
use crate::limits::{
    DEATHS_MAX, DEATHS_WITHIN, DYING_PATIENCE, DYING_PAUSE, HELLO_PATIENCE, STOP_GRACE_SECONDS,
};
use crate::vos_agent::VosAgent;
use crate::{Attached, Options, attach, become_process, die_of_panics, mountpoint};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use link::{Channels, Heard, Link, Record, kind};
use m3ipc::client::{Identity, Process};
use m3ipc::connection::{Connection, Opened};
use m3ipc::{Endpoint, IpcError, NodeId, Tag, door};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, pidfd_open, set_dumpable_behavior,
    set_parent_process_death_signal,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::collections::BTreeMap;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::{Duration, Instant};

/// `PIDFD_THREAD` of `linux/pidfd.h` (Linux 6.9): the descriptor is of a thread.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());

/// Calls of an agent are numbered from this many times the number of agents before it.
const CALLS_OF_AGENT: u64 = 1 << 32;

/// Everything that outlives an agent.
struct Holder<'a> {
    place: PathBuf,
    /// Of fusermount3.
    _helper: Option<OwnedFd>,
    agreed: Agreed,
    threads: NonZero<usize>,
    estate: OwnedFd,
    identity: Identity,
    endpoint: Endpoint,
    node: NodeId,
    nonce: u64,
    channels: BTreeMap<u32, (Record, OwnedFd, OwnedFd)>,
    start: &'a dyn Fn(OwnedFd) -> io::Result<Child>,
}

/// An agent that is running.
struct Running {
    child: Child,
    link: Link,
    process: OwnedFd,
    /// Tells sooner than the process that it begins to die.
    life: Option<OwnedFd>,
    ended: Option<u32>,
}

/// How the agent has ended.
enum End {
    /// The mount is gone.
    Over(ExitStatus),
    /// It has died, perhaps not entirely.
    Died(String),
    /// A signal asks to stop.
    Stop,
}

/// Mounts the tree at `options.mountpoint` as the endpoint that `process` is, and has it served by agents until it is unmounted or the
/// process gets SIGTERM, SIGINT or SIGHUP. `start` starts a process that calls [`serve`] with what it is given.
///
/// # Errors
/// One sentence that says what to do: no dvkd, `/dev/fuse` missing or not allowed, the mount point missing or in use; agents die again and again.
pub fn hold(
    options: &Options,
    process: &Process,
    start: impl Fn(OwnedFd) -> io::Result<Child>,
) -> Result<()> {
    become_process(c"dvs-mount")?;
    let (signals, tell) = UnixStream::pair().context("cannot handle signals")?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let tell = tell.try_clone().context("cannot handle signals")?;
        signal_hook::low_level::pipe::register(signal, tell).context("cannot handle signals")?;
    }
    let who = process.whoami();
    let (endpoint, node) = who.map_err(|error| anyhow!("dvkd does not answer ({error:?})"))?;
    let threads = options.threads();
    let estate = estate::create()?;
    let Attached { place, descriptor, helper } = attach(options)?;
    let agreed = agree(descriptor, threads, options.features)
        .inspect_err(|_| drop(mountpoint::unmount(&place)))?;
    let holder = Holder {
        place: place.clone(),
        _helper: helper,
        agreed,
        threads,
        estate,
        identity: *process.opener(),
        endpoint,
        node,
        nonce: process.nonce(),
        channels: BTreeMap::new(),
        start: &start,
    };
    let outcome = holder.run(&signals);
    if outcome.is_err() {
        // Who has taken the mount away has done so.
        mountpoint::unmount(&place).ok();
    }
    outcome
}

impl Holder<'_> {
    fn run(mut self, signals: &UnixStream) -> Result<()> {
        let mut deaths = 0;
        let mut dead: Vec<Child> = Vec::new();
        let (mut agent, mut begun) = (self.begin()?, Instant::now());
        tracing::info!("mounted at {}", self.place.display());
        loop {
            match self.attend(&mut agent, signals)? {
                End::Over(status) => {
                    ensure!(status.success(), "the FUSE session broke");
                    return Ok(());
                }
                End::Stop => return self.stop(agent),
                End::Died(how) => {
                    deaths = if begun.elapsed() < DEATHS_WITHIN { deaths + 1 } else { 1 };
                    let can_go_on = self.agreed.terms.can_go_on();
                    ensure!(can_go_on, "dvs-agent {how}; before Linux 6.9 no other can go on");
                    ensure!(
                        deaths < DEATHS_MAX,
                        "dvs-agent {how}, as {deaths} have one after the other"
                    );
                    tracing::warn!("dvs-agent {how}: another one goes on");
                    if deaths > 1 {
                        // What it lacked may be what the one before had not given back yet.
                        thread::sleep(DYING_PAUSE * 2u32.pow(deaths));
                    }
                    dead.push(agent.child);
                    dead.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
                    (agent, begun) = (self.begin()?, Instant::now());
                }
            }
        }
    }

    /// Starts an agent.
    fn begin(&self) -> Result<Running> {
        let (link, other) = Link::pair().context("no socket to an agent")?;
        let mut child = (self.start)(other).context("cannot start dvs-agent")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no pid")?;
        let process = pidfd_open(pid, PidfdFlags::empty()).context("no descriptor of dvs-agent")?;
        let Terms { flags, minor } = self.agreed.terms;
        let threads = u64::try_from(self.threads.get()).unwrap_or(1);
        let begin = Record { kind: kind::BEGIN, number: minor, endpoint: threads, flags };
        let node = u32::from(self.node.0);
        let bits = self.endpoint.to_bits();
        let endpoint = Record { kind: kind::ENDPOINT, number: node, endpoint: bits, flags: 0 };
        let go = Record { kind: kind::GO, ..Record::default() };
        let tell = || -> io::Result<()> {
            link.say(begin, &[self.estate.as_fd()])?;
            link.say(endpoint, &[])?;
            for device in &self.agreed.devices {
                let record = Record { kind: kind::DEVICE, ..Record::default() };
                link.say(record, &[device.as_fd()])?;
            }
            for (record, channel, bell) in self.channels.values() {
                link.say(*record, &[channel.as_fd(), bell.as_fd()])?;
            }
            link.say(go, &[])
        };
        if let Err(error) = tell() {
            // It is dead already, or cannot begin: the caller is about to hear of it.
            tracing::warn!(%error, "dvs-agent does not hear what it is to serve");
            child.kill().ok();
        }
        Ok(Running { child, link, process, life: None, ended: None })
    }

    /// Does what the agent asks for, until it ends.
    fn attend(&mut self, agent: &mut Running, signals: &UnixStream) -> Result<End> {
        loop {
            let life = agent.life.as_ref().unwrap_or(&agent.process);
            let mut ready = [
                PollFd::new(signals, PollFlags::IN),
                PollFd::new(&agent.link, PollFlags::IN),
                PollFd::new(&agent.process, PollFlags::IN),
                PollFd::new(life, PollFlags::IN),
            ];
            rustix::io::retry_on_intr(|| poll(&mut ready, None)).context("cannot wait")?;
            let [stop, says, process, life] = ready.map(|fd| !fd.revents().is_empty());
            if says && self.listen(agent)? {
                continue;
            }
            if process || life {
                return agent.end();
            }
            if stop {
                return Ok(End::Stop);
            }
        }
    }

    /// Hears one record of the agent. False: there is none, and will be none.
    fn listen(&mut self, agent: &mut Running) -> Result<bool> {
        let heard = match agent.link.hear() {
            Ok(Some(heard)) => heard,
            Ok(None) => return Ok(false),
            Err(error) => bail!("what dvs-agent says cannot be understood: {error}"),
        };
        let Heard { record, fds } = heard;
        let mut fds = fds.into_iter();
        match (record.kind, fds.next(), fds.next()) {
            (kind::CONNECT, ..) => {
                let connection = self.connect();
                // It is to ask again of a dvkd that is stopped: as long as that is, others are heard in between.
                let is_late = matches!(connection, Err(IpcError::TimedOut));
                let fds = connection.as_ref().ok().map(|connection| connection.as_fd());
                let fds: Vec<BorrowedFd<'_>> = fds.into_iter().collect();
                // It may be dead by now.
                let flags = u64::from(is_late);
                let record = Record { kind: kind::CONNECTED, flags, ..Record::default() };
                agent.link.say(record, &fds).ok();
            }
            (kind::CHANNEL, Some(channel), Some(bell)) => {
                self.channels.insert(record.number, (record, channel, bell));
            }
            (kind::LIFE, life, _) => agent.life = life,
            (kind::ENDED, ..) => agent.ended = Some(record.number),
            _ => bail!("dvs-agent says what is nothing: {record:?}"),
        }
        Ok(true)
    }

    /// A connection to dvkd of this endpoint.
    fn connect(&self) -> Result<Connection, IpcError> {
        let connection = Connection::connect(self.identity.path())?;
        let hello = door::Ask::hello(door::kind::AGENT, 0, self.nonce);
        connection.hello_within(hello, HELLO_PATIENCE).inspect_err(|error| {
            tracing::warn!(?error, "dvkd does not answer");
        })?;
        Ok(connection)
    }

    /// Unmounts the tree. Programs with files open in it have some seconds to close them; those that do not get
    /// ENOTCONN when the agent ends.
    fn stop(mut self, mut agent: Running) -> Result<()> {
        mountpoint::unmount(&self.place)?;
        let limit = Instant::now() + Duration::from_secs(STOP_GRACE_SECONDS);
        loop {
            let left = limit.saturating_duration_since(Instant::now());
            let mut ready = [
                PollFd::new(&agent.link, PollFlags::IN),
                PollFd::new(&agent.process, PollFlags::IN),
            ];
            let timeout = Timespec::try_from(left).context("cannot wait")?;
            rustix::io::retry_on_intr(|| poll(&mut ready, Some(&timeout)))
                .context("cannot wait")?;
            let [says, process] = ready.map(|fd| !fd.revents().is_empty());
            if says && self.listen(&mut agent)? {
                continue;
            }
            if process || says {
                agent.child.wait().context("cannot wait for dvs-agent")?;
                // What it had put off is another one's to do.
                if agent.ended.is_none() && self.agreed.terms.can_go_on() && !left.is_zero() {
                    agent = self.begin()?;
                    continue;
                }
                return Ok(());
            }
            let shown = self.place.display();
            tracing::warn!("files at {shown} are still open: they are cut off");
            agent.child.kill().ok();
            agent.child.wait().context("cannot wait for dvs-agent")?;
            return Ok(());
        }
    }
}

impl Terms {
    /// Does the kernel ask a successor for what an agent that has died had not answered?
    fn can_go_on(self) -> bool {
        self.flags & crate::fuse::abi::init::HAS_RESEND != 0
    }
}

impl Running {
    /// It has ended, or begins to. One that dies is not waited for if a thread of it waits in the kernel: for its successor, perhaps.
    fn end(&mut self) -> Result<End> {
        if self.ended.is_none() {
            let pause = Timespec::try_from(DYING_PAUSE).context("cannot wait")?;
            let mut process = [PollFd::new(&self.process, PollFlags::IN)];
            let limit = Instant::now() + DYING_PATIENCE;
            while rustix::io::retry_on_intr(|| poll(&mut process, Some(&pause)))
                .context("cannot wait")?
                == 0
                && !are_stuck(self.child.id())
                && Instant::now() < limit
            {}
            return Ok(match self.child.try_wait().context("cannot wait for dvs-agent")? {
                Some(status) => End::Died(format!("has died ({status})")),
                None => End::Died("is dying".into()),
            });
        }
        self.child.wait().map(End::Over).context("cannot wait for dvs-agent")
    }
}

/// Do all threads of a process that are left wait in the kernel, and for nothing that a signal ends? One that runs, or is about to, might still take a
/// request.
fn are_stuck(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.filter_map(Result::ok).all(|thread| {
        let stat = std::fs::read(thread.path().join("stat")).unwrap_or_default();
        let end = stat.iter().rposition(|byte| *byte == b')').unwrap_or(0);
        matches!(stat.get(end + 2), None | Some(b'D' | b'Z' | b'X'))
    })
}

/// What a process does that [`hold`] has started: serves the mount, at which a predecessor may have been before. `link` is what it was given.
///
/// # Errors
/// One sentence: the mount cannot be served.
pub fn serve(link: OwnedFd) -> Result<()> {
    become_process(c"dvs-agent")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow dvs-mount")?;
    die_of_panics();
    // A process that leaves a core waits for its threads, of which some may wait for its successor.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot do without a core")?;
    // A signal for all processes of a terminal or a service is dvs-mount's: it ends this one when all is done.
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
        let nothing = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal, nothing).context("cannot handle signals")?;
    }
    let link = Link::of(link);
    // It may have died before that.
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut holder = [PollFd::new(&link, PollFlags::RDHUP)];
    rustix::io::retry_on_intr(|| poll(&mut holder, Some(&now))).context("cannot wait")?;
    ensure!(holder[0].revents().is_empty(), "dvs-mount is gone");
    let next = || -> Result<Heard> {
        link.hear().context("dvs-mount cannot be understood")?.context("dvs-mount is gone")
    };
    let begin = next()?;
    ensure!(begin.record.kind == kind::BEGIN, "dvs-mount is of another version");
    let terms = Terms { flags: begin.record.flags, minor: begin.record.number };
    let threads = usize::try_from(begin.record.endpoint).ok().and_then(NonZero::new);
    let threads = threads.context("dvs-mount is of another version")?;
    let memory = begin.fds.into_iter().next().context("dvs-mount is of another version")?;
    let estate = Estate::inherit(&memory)?;
    let (mut devices, mut channels, mut who) = (Vec::new(), Vec::new(), None);
    loop {
        let Heard { record, fds } = next()?;
        let mut fds = fds.into_iter();
        match (record.kind, fds.next(), fds.next()) {
            (kind::ENDPOINT, ..) => {
                who = Some((Endpoint::from_bits(record.endpoint), link::node(record)));
            }
            (kind::DEVICE, Some(device), _) => devices.push(Device::new(device)),
            (kind::CHANNEL, Some(channel), Some(bell)) => {
                let flags = u32::try_from(record.flags).unwrap_or(0);
                channels.push((record, Opened { channel, bell, flags }));
            }
            (kind::GO, ..) => break,
            _ => bail!("dvs-mount is of another version"),
        }
    }
    let (endpoint, node) = who.context("dvs-mount is of another version")?;
    ensure!(!devices.is_empty(), "dvs-mount is of another version");
    let port = Process::new(Channels::new(link));
    let client = port.client();
    client.number_from(estate.predecessors() * CALLS_OF_AGENT);
    client.adopt(endpoint, node);
    let kept: Vec<Tag> = estate.calls.open().into_iter().map(|open| open.tag).collect();
    for (record, opened) in &channels {
        let (slot, peer) = (record.number as usize, Endpoint::from_bits(record.endpoint));
        client
            .inherit(slot, peer, opened, &kept)
            .map_err(|error| anyhow!("a channel cannot be taken over ({error:?})"))?;
    }
    // As long as the process.
    let port: &'static Process<Channels> = Box::leak(Box::new(port));
    live(port)?;
    let (tell, told) = std::sync::mpsc::channel();
    let end = Box::new(move |outcome| {
        tell.send(outcome).ok();
    });
    let agent = VosAgent::with(port, estate);
    start(agent, Agreed { devices, terms }, threads, Arc::new(AtomicU64::new(0)), end)?;
    let outcome: io::Result<()> = told.recv().context("nobody serves the mount")?;
    port.opener().say(Record { kind: kind::ENDED, ..Record::default() }, &[]).ok();
    outcome.context("the FUSE session broke")
}

/// Has a thread that does nothing but be there: it dies at once when the process is killed, though others may wait in the kernel.
fn live(port: &'static Process<Channels>) -> Result<()> {
    let live = move || {
        match pidfd_open(rustix::thread::gettid(), PIDFD_THREAD) {
            Ok(life) => {
                let record = Record { kind: kind::LIFE, ..Record::default() };
                port.opener().say(record, &[life.as_fd()]).ok();
            }
            // Not before Linux 6.9.
            Err(error) => tracing::debug!(%error, "no descriptor of a thread"),
        }
        loop {
            thread::park();
        }
    };
    let thread = thread::Builder::new().name("dvs-life".into()).stack_size(crate::limits::STACK);
    thread.spawn(live).context("no thread dvs-life").map(drop)
}
