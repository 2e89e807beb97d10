//! A cluster on one machine: `lab up`, `lab status`, `lab down`.
//!
//! All of a lab is in one directory: `lab.toml`, and per node the configuration, the log, the
//! sockets and the store. As root a node is a network namespace, else an address 127.0.0.N.

pub(crate) mod network;
pub(crate) mod process;
mod state;

pub(crate) use state::{Lab, LabNode, directory, directory_of_this, door};

use crate::container;
use crate::limits::{ASK_EVERY, DOWN_PATIENCE, NODES_MAX, SILENCE, UP_PATIENCE};
use crate::state::CompressionOption;
use crate::table::{self, Cell, Table};
use crate::{exit, procfs};
use anyhow::{Context, Result, anyhow, bail, ensure};
use dvk::dvkd::{self, Config, Dc, Peer, admin};
use network::Network;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use process::ProcessId;
use rustix::io::FdFlags;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Options of `lab up`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpOptions {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    pub(crate) nodes: u16,
    /// Name of the distributed container that spans them
    #[arg(long, default_value = "lab")]
    pub(crate) dc: String,
    #[command(flatten)]
    pub(crate) compression: CompressionOption,
}

impl Default for UpOptions {
    fn default() -> UpOptions {
        UpOptions { nodes: 3, dc: "lab".into(), compression: CompressionOption::default() }
    }
}

/// Options of `lab mend` and `lab restart`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CableOptions {
    /// The node, by name or number
    node: String,
}

/// Options of `lab cut`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CutOptions {
    #[command(flatten)]
    cable: CableOptions,
    /// Only what others send to the node gets lost, or only what it sends
    #[arg(long, value_name = "DIRECTION")]
    only: Option<Direction>,
}

/// One of the two directions of a node's cable, as the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Direction {
    In,
    Out,
}

/// Options of the node daemon.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DvkdOptions {
    /// The node's configuration, a TOML file
    #[arg(long)]
    config: PathBuf,
    /// Begin a session of its own, so that the end of a terminal does not end the daemon
    #[arg(long)]
    daemon: bool,
}

/// Where a node of a lab listens to its peers. In namespaces nobody else can have it.
const PORT: u16 = 7083;
/// In the environment of every daemon of a lab: the lab's number.
const ID_VARIABLE: &str = "DVS_LAB_ID";

/// `dvs lab up`.
///
/// # Errors
/// One sentence: what could not be started, with the last line of its log.
pub(crate) fn up(options: &UpOptions) -> Result<()> {
    if up_quietly(options)? {
        let dc = &options.dc;
        let last = options.nodes;
        table::say(&format!(
            "The lab is up: {last} nodes, distributed container {dc:?}.\n\
             Try: dvs run --node n{last} -- sh -c 'hostname; ls -la /dvs'\n"
        ))
    } else {
        table::say("The lab is up already.\n")
    }
}

/// Starts a lab; `false` if the same one is up already.
///
/// # Errors
/// As [`up`].
pub(crate) fn up_quietly(options: &UpOptions) -> Result<bool> {
    let directory = directory();
    let _lock = state::lock(&directory)?;
    if let Some(lab) = Lab::read(&directory)? {
        check_same(&lab, options)?;
        return Ok(false);
    }
    container::check_fuse()?;
    let signals = Interrupts::take()?;
    let lab = Lab::new(directory, options.nodes, &options.dc, options.compression.value)?;
    let started = start(&lab).and_then(|children| wait_until_ready(&lab, children, &signals));
    if let Err(error) = started {
        // What was started is of no use without the rest.
        take_down(&lab).context("the lab could not be cleaned up either")?;
        return Err(error);
    }
    Ok(true)
}

/// A lab is there: is it the one that is wanted, and alive?
fn check_same(lab: &Lab, options: &UpOptions) -> Result<()> {
    let (count, dead) = (lab.nodes.len(), lab.dead_nodes());
    ensure!(
        dead.is_empty(),
        "a lab is here, but the dvkd of {} is dead; \"dvs lab down\" clears it away",
        dead.join(", ")
    );
    ensure!(
        count == usize::from(options.nodes) && lab.dc == options.dc,
        "a lab with {count} nodes and distributed container {:?} is up; \"dvs lab down\" ends it",
        lab.dc
    );
    Ok(())
}

/// Starts the private lab of one program: one node whose servers are inside its daemon.
///
/// # Errors
/// As [`up`].
pub(crate) fn up_privately() -> Result<Lab> {
    container::check_fuse()?;
    let base = directory();
    let base = base.parent().context("the lab's directory has no parent")?;
    fs::create_dir_all(base).with_context(|| format!("cannot make {}", base.display()))?;
    let signals = Interrupts::take()?;
    let lab = Lab::new_private(base.join(format!("private-{}", std::process::id())))?;
    match start(&lab).and_then(|children| wait_until_ready(&lab, children, &signals)) {
        Ok(()) => Ok(lab),
        Err(error) => {
            take_down(&lab).context("the private system could not be cleaned up either")?;
            Err(error)
        }
    }
}

/// `dvs muk2`: a node daemon with the servers of its container as coroutines in the same process. It ends with
/// the process that started it.
///
/// # Errors
/// As [`dvkd()`].
pub(crate) fn muk2(options: &DvkdOptions) -> Result<()> {
    rustix::process::setsid().ok();
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    rustix::thread::set_name(c"muk2")?;
    let config = Config::read(&options.config)?;
    let dc = config.dcs.first().context("the configuration has no distributed container")?;
    let socket = config.socket(&dc.name);
    // The daemon's own thread gets these; the house's must not.
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    SigSet::from_iter(signals).thread_set_mask()?;
    let house = std::thread::Builder::new().name("house".into()).spawn(move || {
        while m3ipc::connection::Connection::connect(socket.as_os_str().as_bytes()).is_err() {
            std::thread::sleep(ASK_EVERY);
        }
        if let Err(error) = ::muk2::house::serve(&socket) {
            tracing::error!("the servers have ended: {error:#}");
            // Without servers nothing here is of use: whoever waits for it is told by our end.
            std::process::abort();
        }
    })?;
    dvkd::run(config)?;
    // The daemon has told the servers to stop before it ended.
    house.join().map_err(|_| anyhow!("the servers panicked"))?;
    let directory = options.config.parent().and_then(Path::parent);
    directory.map_or(Ok(()), state::remove)
}

/// Starts the network and one daemon per node.
fn start(lab: &Lab) -> Result<Vec<Child>> {
    let network = lab.namespaces.then(|| Network::create(lab.count())).transpose()?;
    if let Some(network) = &network {
        keep(lab, network)?;
    }
    found(lab)?;
    lab.nodes.iter().map(|node| start_node(lab, node)).collect()
}

/// Starts the process that keeps the lab's network, also the nodes' namespaces: a machine is still there when its dvkd
/// has died, and says that nobody listens.
fn keep(lab: &Lab, network: &Network) -> Result<()> {
    let kept = network.nodes.iter().map(File::try_clone).collect::<std::io::Result<Vec<_>>>()?;
    kept.iter().try_for_each(|node| rustix::io::fcntl_setfd(node, FdFlags::empty()))?;
    let switch = spawn_in(&network.switch, &mut own_command("dvs-switch", "switch", lab)?)?;
    for (node, kept) in lab.nodes.iter().zip(&kept) {
        let path = format!("/proc/{}/fd/{}", switch.id(), kept.as_raw_fd());
        fs::create_dir_all(lab.run(node))?;
        fs::write(lab.namespace_file(node), path)?;
    }
    ProcessId::of(i32::try_from(switch.id())?)
        .ok_or_else(|| anyhow!("the lab's network cannot be kept"))?
        .write(&lab.switch_file())
}

/// Starts a node's daemon, in its namespace if it has one.
fn start_node(lab: &Lab, node: &LabNode) -> Result<Child> {
    let mut command = prepare_node(lab, node)?;
    let child = if lab.namespaces {
        spawn_in(&namespace(lab, node)?, &mut command)?
    } else {
        command.spawn().context("cannot start dvkd")?
    };
    if let Some(process) = ProcessId::of(i32::try_from(child.id())?) {
        process.write(&lab.pid_file(node))?;
    }
    Ok(child)
}

/// Makes the lab's authority, kept by its first node, and the nodes' certificates.
fn found(lab: &Lab) -> Result<()> {
    if lab.private {
        return Ok(());
    }
    for node in &lab.nodes {
        // Made here, since what is made on the way to secrets is closed to others.
        let run = lab.run(node);
        fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))?;
    }
    let places = lab.nodes.iter().map(|node| {
        let peer = Peer { node: node.node, name: node.name.clone(), address: node.address };
        (peer, lab.credentials(node))
    });
    dvkd::found(&places.collect::<Vec<_>>()).context("cannot make the nodes' certificates")
}

/// Writes a node's files; returns the command that starts its daemon.
fn prepare_node(lab: &Lab, node: &LabNode) -> Result<Command> {
    let run = lab.run(node);
    fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))?;
    let config = lab.config(node)?;
    let file = run.join("dvkd.toml");
    fs::write(&file, config.to_toml()?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    // Of one that is started again, what was before stays.
    let log = File::options().create(true).append(true).open(lab.log(node))?;
    let role = if lab.private { "muk2" } else { "dvkd" };
    let mut command = own_command(role, role, lab)?;
    command.arg("--daemon").arg("--config").arg(file);
    command.stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// This program as another of its processes.
fn own_command(name: &str, role: &str, lab: &Lab) -> Result<Command> {
    let mut command = Command::new(own_program()?);
    command.arg0(name).arg(role);
    command.env(ID_VARIABLE, &lab.id).env(state::DIRECTORY_VARIABLE, &lab.directory);
    command.env_remove(m3ipc::door::SOCKET_ENV).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// Starts `command` inside a network namespace.
fn spawn_in(namespace: &File, command: &mut Command) -> Result<Child> {
    std::thread::scope(|scope| {
        let spawned = scope.spawn(|| -> Result<Child> {
            // Of this thread only; a child has the namespace of the thread that forks it.
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            command.spawn().context("cannot start a process of the lab")
        });
        spawned.join().map_err(|_| anyhow!("the thread that starts a node panicked"))?
    })
}

/// Waits until every daemon, server and container is there.
fn wait_until_ready(lab: &Lab, mut children: Vec<Child>, signals: &Interrupts) -> Result<()> {
    let begin = Instant::now();
    let mut said = None;
    loop {
        if let Some(signal) = signals.arrived()? {
            bail!("interrupted ({signal}); what had been started is ended");
        }
        for (child, node) in children.iter_mut().zip(&lab.nodes) {
            if let Some(status) = child.try_wait()? {
                let line = state::last_line(&lab.log(node));
                bail!("dvkd of node {} has ended ({status}): {line}", node.name);
            }
        }
        let Some(missing) = lab.nodes.iter().find_map(|node| missing(lab, node)) else {
            return Ok(());
        };
        if begin.elapsed() > UP_PATIENCE {
            let logs = lab
                .nodes
                .iter()
                .map(|node| format!("\n  {}: {}", node.name, state::last_line(&lab.log(node))));
            bail!(
                "the lab is not ready after {UP_PATIENCE:?}: {missing}{}",
                logs.collect::<String>()
            );
        }
        if begin.elapsed() > SILENCE && said.as_ref() != Some(&missing) {
            eprintln!("waiting for {missing}");
            said = Some(missing);
        }
        std::thread::sleep(ASK_EVERY);
    }
}

/// The signals that interrupt a start. They must not end this process before it has cleaned up.
struct Interrupts {
    before: SigSet,
    descriptor: SignalFd,
}

impl Interrupts {
    fn take() -> Result<Interrupts> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        let descriptor =
            SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Interrupts { before, descriptor })
    }

    fn arrived(&self) -> Result<Option<Signal>> {
        let signal = self.descriptor.read_signal()?;
        Ok(signal.map(|info| i32::try_from(info.ssi_signo).ok().and_then(|n| n.try_into().ok())))
            .map(|signal| signal.map(|signal| signal.unwrap_or(Signal::SIGTERM)))
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // The mask that was valid before is valid now.
        self.before.thread_set_mask().ok();
    }
}

/// What node `node` is still waiting for.
fn missing(lab: &Lab, node: &LabNode) -> Option<String> {
    let Ok(status) = admin::status(&lab.run(node)) else {
        return Some(format!("dvkd of node {}", node.name));
    };
    if let Some(peer) = status.nodes.iter().find(|peer| !peer.up) {
        return Some(format!("the link from {} to {}", node.name, peer.name));
    }
    let children = status.dcs.iter().flat_map(|dc| &dc.children);
    let child = children.into_iter().find(|child| !child.bound)?;
    let why = child.last_exit.as_ref().map(|exit| format!(" (it ended: {exit})"));
    Some(format!("{} on node {}{}", child.role, node.name, why.unwrap_or_default()))
}

/// `dvs lab status`: exit code 0 if all is well, 1 if not, 123 if there is no lab.
///
/// # Errors
/// The state cannot be read.
pub(crate) fn status(json: bool) -> Result<u8> {
    let Some(lab) = Lab::read(&directory())? else {
        return Err(exit::Failure::error(exit::NO_DVS, "no lab is up; \"dvs lab up\" starts one"));
    };
    let mut healthy = true;
    let mut nodes = Table::new(&["NODE", "PID", "ADDRESS", "HEALTH"]);
    let mut servers = Table::new(&["DC", "NODE", "PROCESS", "PID", "RESTARTS", "HEALTH"]);
    for node in &lab.nodes {
        let health = lab.health(node);
        healthy &= health.is_ok();
        let pid = ProcessId::read(&lab.pid_file(node)).map_or(0, |process| process.pid);
        nodes.row(vec![
            Cell::text(&node.name),
            Cell::number(pid),
            Cell::text(node.address),
            Cell::text(health.as_ref().map_or_else(String::clone, |_| "up".into())),
        ]);
        for dc in health.iter().flat_map(|status| &status.dcs) {
            for child in &dc.children {
                healthy &= child.bound;
                servers.row(vec![
                    Cell::text(&dc.name),
                    Cell::text(&node.name),
                    Cell::text(&child.role),
                    Cell::number(child.pid.unwrap_or(0)),
                    Cell::number(child.restarts),
                    Cell::text(if child.bound { "up" } else { "starting" }),
                ]);
            }
        }
    }
    nodes.print(json)?;
    if !json {
        table::say("\n")?;
    }
    servers.print(json)?;
    Ok(if healthy { 0 } else { exit::FAILED })
}

/// `dvs lab down`.
///
/// # Errors
/// A process that does not end, a directory that cannot be removed.
pub(crate) fn down() -> Result<()> {
    let directory = directory();
    let _lock = state::lock(&directory)?;
    match Lab::read(&directory)? {
        None if directory.exists() => {
            // A lab that was interrupted before it had written its state, or whose state is gone.
            state::remove(&directory)?;
            table::say("The lab is down: only an empty directory was left of it.\n")
        }
        None => table::say("No lab is up.\n"),
        Some(lab) => {
            take_down(&lab)?;
            table::say("The lab is down.\n")
        }
    }
}

/// Ends the lab, if there is one, without a word.
///
/// # Errors
/// As [`down`].
pub(crate) fn down_quietly() -> Result<()> {
    let directory = directory();
    let _lock = state::lock(&directory)?;
    Lab::read(&directory)?.map_or(Ok(()), |lab| take_down(&lab))
}

/// `dvs lab cut`: takes a node's cable out of the lab's bridge, or lets one of its directions get lost.
///
/// # Errors
/// One sentence: no lab, no such node, or the nodes have no network of their own.
pub(crate) fn cut(options: &CutOptions) -> Result<()> {
    let (lab, node) = cable(&options.cable)?;
    match options.only {
        None => network::connect(&switch(&lab)?, node.node, false),
        Some(direction) => lose(&lab, &node, direction, true),
    }
}

/// `dvs lab mend`: undoes every [`cut`] of a node.
///
/// # Errors
/// As there.
pub(crate) fn mend(options: &CableOptions) -> Result<()> {
    let (lab, node) = cable(options)?;
    network::connect(&switch(&lab)?, node.node, true)?;
    [Direction::In, Direction::Out]
        .into_iter()
        .try_for_each(|direction| lose(&lab, &node, direction, false))
}

/// `dvs lab restart`: ends a node's dvkd, if it is alive, and starts another in its place.
///
/// # Errors
/// One sentence: no lab, no such node, or the new one does not start.
pub(crate) fn restart(options: &CableOptions) -> Result<()> {
    let _lock = state::lock(&directory())?;
    let (lab, node) = known(options)?;
    if let Some(process) = ProcessId::read(&lab.pid_file(&node)) {
        process.end(DOWN_PATIENCE)?;
    }
    let mut child = start_node(&lab, &node)?;
    let limit = Instant::now() + UP_PATIENCE;
    while admin::status(&lab.run(&node)).is_err() {
        let line = || state::last_line(&lab.log(&node));
        if let Some(status) = child.try_wait()? {
            bail!("dvkd of node {} has ended ({status}): {}", node.name, line());
        }
        ensure!(Instant::now() < limit, "dvkd of node {} does not answer: {}", node.name, line());
        std::thread::sleep(ASK_EVERY);
    }
    Ok(())
}

/// The lab, and the node that is meant.
fn known(options: &CableOptions) -> Result<(Lab, LabNode)> {
    let lab = Lab::read(&directory())?;
    let lab = lab.ok_or_else(|| {
        exit::Failure::error(exit::NO_DVS, "no lab is up; \"dvs lab up\" starts one")
    })?;
    let wanted =
        |node: &&LabNode| node.name == options.node || node.node.to_string() == options.node;
    let node = lab.nodes.iter().find(wanted).cloned();
    let node = node.with_context(|| format!("there is no node {:?} in the lab", options.node))?;
    Ok((lab, node))
}

/// As [`known`], in a lab with a network.
fn cable(options: &CableOptions) -> Result<(Lab, LabNode)> {
    let (lab, node) = known(options)?;
    ensure!(
        lab.namespaces,
        "only a lab of root has a network that can be cut: in this one nodes are addresses of one machine"
    );
    Ok((lab, node))
}

/// The process that keeps the lab's network, if it is alive.
fn switch_process(lab: &Lab) -> Result<ProcessId> {
    let process = ProcessId::read(&lab.switch_file()).filter(ProcessId::is_alive);
    process.context("the lab's network is gone; \"dvs lab down\" clears it away")
}

/// The namespace of the lab's bridge.
fn switch(lab: &Lab) -> Result<File> {
    open_namespace(&format!("/proc/{}/ns/net", switch_process(lab)?.pid))
}

/// The namespace of a node, whether its dvkd is alive or not.
fn namespace(lab: &Lab, node: &LabNode) -> Result<File> {
    switch_process(lab)?;
    let file = lab.namespace_file(node);
    let path = fs::read_to_string(&file);
    open_namespace(&path.with_context(|| format!("cannot read {}", file.display()))?)
}

fn open_namespace(path: &str) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {path}"))
}

/// Lets what `node` sends or hears get lost, or not any more.
fn lose(lab: &Lab, node: &LabNode, direction: Direction, is_lost: bool) -> Result<()> {
    for other in lab.nodes.iter().filter(|other| other.node != node.node) {
        let (from, to) = match direction {
            Direction::In => (other, node),
            Direction::Out => (node, other),
        };
        network::lose(&namespace(lab, from)?, to.node, is_lost)?;
    }
    Ok(())
}

/// Ends everything that belongs to `lab`, whatever state it is in.
pub(crate) fn take_down(lab: &Lab) -> Result<()> {
    let mut files: Vec<PathBuf> = lab.mount_files();
    end_all(&files)?;
    files.clear();
    files.extend(lab.nodes.iter().map(|node| lab.pid_file(node)));
    end_all(&files)?;
    end_all(&[lab.switch_file()])?;
    end_strays(&lab.id)?;
    state::remove(&lab.directory)
}

/// Ends the processes of these pid files, all at the same time.
fn end_all(files: &[PathBuf]) -> Result<()> {
    std::thread::scope(|scope| {
        let processes = files.iter().filter_map(|file| ProcessId::read(file));
        let ends: Vec<_> =
            processes.map(|process| scope.spawn(move || process.end(DOWN_PATIENCE))).collect();
        ends.into_iter().try_for_each(|end| {
            end.join().map_err(|_| anyhow!("the thread that ends a process panicked"))?
        })
    })
}

/// Ends what daemons of this lab have left behind, when they were killed.
fn end_strays(id: &str) -> Result<()> {
    for pid in procfs::pids(Path::new("/proc"))? {
        let Some(process) = ProcessId::of(pid) else { continue };
        let Some(environment) = procfs::environment(pid) else { continue };
        if environment.get(ID_VARIABLE.as_bytes()).is_some_and(|value| value == id.as_bytes()) {
            process.end(Duration::ZERO)?;
        }
    }
    Ok(())
}

/// `dvs dvkd`.
///
/// # Errors
/// One sentence: the configuration, an address in use.
pub(crate) fn dvkd(options: &DvkdOptions) -> Result<()> {
    if options.daemon {
        rustix::process::setsid().ok();
    }
    // `lab up` has some blocked while it starts this daemon.
    SigSet::empty().thread_set_mask()?;
    rustix::thread::set_name(c"dvkd")?;
    dvkd::run(Config::read(&options.config)?)
}

/// `dvs switch`: a process that does nothing but be in the bridge's namespace.
///
/// # Errors
/// None.
pub(crate) fn keep_switch() -> Result<()> {
    rustix::process::setsid().ok();
    rustix::thread::set_name(c"dvs-switch")?;
    let signals = SigSet::from_iter([Signal::SIGTERM]);
    signals.thread_set_mask()?;
    signals.wait()?;
    Ok(())
}

impl Lab {
    /// What the node's dvkd is told.
    fn config(&self, node: &LabNode) -> Result<Config> {
        let dc = Dc {
            id: 1,
            name: self.dc.clone(),
            nodes: self.nodes.iter().map(|node| node.node).collect(),
            home: self.nodes[0].node,
            maps: Vec::new(),
        };
        let program = own_program()?;
        let program = program.to_str().context("this program's path is not UTF-8")?;
        let config = Config {
            node: node.node,
            name: node.name.clone(),
            listen: node.address,
            // The private lab of one program has nobody to talk to.
            credentials: (!self.private).then(|| self.credentials(node)),
            run: self.run(node),
            store: self.run(node).join("store"),
            command: vec![program.to_owned()],
            servers_inside: self.private,
            compression: self.compression,
            dcs: vec![dc],
        };
        config.check()?;
        Ok(config)
    }

    /// What the node's dvkd says of itself, or why it says nothing.
    pub(crate) fn health(&self, node: &LabNode) -> std::result::Result<admin::Status, String> {
        match ProcessId::read(&self.pid_file(node)) {
            Some(process) if process.is_alive() => {
                admin::status(&self.run(node)).map_err(|error| format!("no answer: {error:#}"))
            }
            _ => Err("dead".into()),
        }
    }
}

/// Addresses of a new lab's nodes.
fn addresses(count: u16, namespaces: bool) -> Result<Vec<SocketAddr>> {
    (1..=count)
        .map(|node| {
            if namespaces {
                return Ok((network::address(node), PORT).into());
            }
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + u32::from(node) - 1);
            free_port(ip).map(|port| (ip, port).into())
        })
        .collect()
}

/// The usual port, or if somebody has it, one that is free now.
fn free_port(ip: Ipv4Addr) -> Result<u16> {
    let listener = TcpListener::bind((ip, PORT)).or_else(|_| TcpListener::bind((ip, 0)));
    let listener = listener.with_context(|| format!("no port is free at {ip}"))?;
    Ok(listener.local_addr()?.port())
}
