//! The command line: what there is, and who does it.

use crate::{
    barrier, container, dc, demo, group, hold, init, ipcs, join, kv, lab, mount, node, ps, quota,
    run, scrub, server, snapshot, state, token, top,
};
use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::Path;

/// One operating system image for programs on many machines.
#[derive(Debug, Parser)]
#[command(name = "dvs", version, arg_required_else_help = true, propagate_version = true)]
#[command(after_help = "Start here: \"dvs lab demo\".\n\n\
    Exit status: 0 success, 1 failure, 2 usage; for \"run\" see \"dvs run --help\".")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program in a distributed container
    Run(run::Options),
    /// A cluster of nodes on this machine, for a try
    Lab {
        #[command(subcommand)]
        command: LabCommand,
    },
    /// Begin a DVS: this machine becomes its first node
    Init(init::Options),
    /// Tokens with which other machines may join
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Make this machine a node of a DVS
    Join(join::Options),
    /// The processes of all nodes
    Ps(ListOptions),
    /// Semaphores and message queues of all nodes
    Ipcs(ListOptions),
    /// Compare all files with their checksums
    #[command(after_help = scrub::HELP)]
    Scrub(scrub::Options),
    /// What directories and all below them may have
    #[command(after_help = quota::HELP)]
    Quota {
        #[command(subcommand)]
        command: quota::QuotaCommand,
    },
    /// The files as they were
    #[command(after_help = snapshot::HELP)]
    Snapshot {
        #[command(subcommand)]
        command: snapshot::SnapshotCommand,
    },
    /// How busy the nodes and distributed containers are
    Top(top::TopOptions),
    /// How busy a node has been in the last minutes
    History(top::HistoryOptions),
    /// Nodes
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Distributed containers
    Dc {
        #[command(subcommand)]
        command: DcCommand,
    },
    /// Keys and values that the whole cluster agrees on
    Kv {
        #[command(subcommand)]
        command: kv::KvCommand,
    },
    /// Run a command while no other node has the same lock
    Lock(hold::LockOptions),
    /// Run a command when this is the leader
    Elect(hold::ElectOptions),
    /// Wait until so many are there
    Barrier(barrier::BarrierOptions),
    /// The group of nodes that agrees on everything, and messages to groups of programs
    Group {
        #[command(subcommand)]
        command: group::GroupCommand,
    },
    /// Mount the files of a distributed container on a directory of this machine
    Mount(mount::Options),

    /// (internal) The node daemon
    #[command(hide = true)]
    Dvkd(lab::DvkdOptions),
    /// (internal) A node daemon with its servers inside
    #[command(hide = true)]
    Muk2(lab::DvkdOptions),
    /// (internal) The file server of a distributed container
    #[command(hide = true)]
    VfsServer(server::Options),
    /// (internal) The process server of a distributed container
    #[command(hide = true)]
    PmServer(server::Options),
    /// (internal) The server of semaphores and queues of a distributed container
    #[command(hide = true)]
    IpcServer(server::Options),
    /// (internal) The part of a distributed container on one node
    #[command(hide = true)]
    Container(container::Options),
    /// (internal) Serves the files of a distributed container on a directory
    #[command(hide = true)]
    MountAgent(mount::AgentOptions),
    /// (internal) Keeps the network of a lab
    #[command(hide = true)]
    Switch,
    /// (internal) Becomes a program in a container
    #[command(hide = true)]
    Start { launch: RawFd, report: RawFd },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start a lab: nodes and one distributed container that spans them
    Up(lab::UpOptions),
    /// Show the nodes of the lab and how they are
    Status(JsonOption),
    /// Show files, locks, semaphores, queues and processes shared by three nodes
    Demo,
    /// Cut a node off from all others, as a broken cable would
    Cut(lab::CutOptions),
    /// Mend what was cut
    Mend(lab::CableOptions),
    /// End a node's dvkd, if it is alive, and start it again
    Restart(lab::CableOptions),
    /// End the lab: its processes, its mounts, its directory
    Down,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes
    Ls(JsonOption),
    /// Take a node's membership away, at once and for ever
    #[command(after_help = node::REVOKE_HELP)]
    Revoke(node::RevokeOptions),
    /// Get a new certificate for this node now; it gets one by itself after two thirds of the old one's life
    Renew(state::StateOption),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it
    Create(token::Options),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DcCommand {
    /// Make one that spans all nodes, also those that join later
    Create(dc::CreateOptions),
    /// Remove one: its programs end on all nodes
    Rm(dc::RemoveOptions),
    /// List the distributed containers
    Ls(JsonOption),
}

/// For commands that list something of a distributed container.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ListOptions {
    /// The distributed container
    #[arg(long, value_name = "DC")]
    pub(crate) dc: Option<String>,
    /// The node to ask; every node gives the same answer
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct JsonOption {
    /// One JSON object per row
    #[arg(long)]
    pub(crate) json: bool,
}

/// Names that are sub-commands: one binary may be installed under each of them.
const NAMES: [(&str, &str); 11] = [
    ("dvs-run", "run"),
    ("dvkd", "dvkd"),
    ("muk2", "muk2"),
    ("vfs-server", "vfs-server"),
    ("pm-server", "pm-server"),
    ("ipc-server", "ipc-server"),
    ("dvs-container", "container"),
    ("dvs-mount", "mount-agent"),
    ("dvs-agent", "mount-agent"),
    ("dvs-switch", "switch"),
    ("dvs-start", "start"),
];

/// The command, and the name under which it speaks. Ends the process with help or usage if asked to, or wrong.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> (String, Command) {
    let (name, arguments) = by_name(arguments.into_iter().collect());
    match Cli::try_parse_from(arguments) {
        Ok(cli) => (name, cli.command),
        Err(error) => error.exit(),
    }
}

/// `dvs-run X` is `dvs run X`; so is `dvs-run run X` when a parent names the role twice.
fn by_name(arguments: Vec<OsString>) -> (String, Vec<OsString>) {
    let name = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or(OsStr::new(""));
    let name = name.to_string_lossy().into_owned();
    let Some((_, command)) = NAMES.iter().find(|(known, _)| *known == name) else {
        return ("dvs".into(), arguments);
    };
    let rest = arguments.into_iter().skip(1);
    let named = [OsString::from("dvs"), OsString::from(command)];
    let twice = *command != "run";
    let rest: Vec<OsString> = rest.collect();
    let rest = if twice && rest.first().is_some_and(|first| first == command) {
        rest[1..].to_vec()
    } else {
        rest
    };
    (name, named.into_iter().chain(rest).collect())
}

/// Does it; returns the exit code.
///
/// # Errors
/// One sentence for the user; `exit::code` has the exit code.
pub(crate) fn execute(command: Command) -> Result<u8> {
    match command {
        Command::Run(options) => return run::main(&options),
        Command::Lab { command: LabCommand::Demo } => return demo::main(),
        Command::Lab { command: LabCommand::Up(options) } => lab::up(&options)?,
        Command::Lab { command: LabCommand::Status(options) } => return lab::status(options.json),
        Command::Lab { command: LabCommand::Down } => lab::down()?,
        Command::Lab { command: LabCommand::Cut(options) } => lab::cut(&options)?,
        Command::Lab { command: LabCommand::Mend(options) } => lab::mend(&options)?,
        Command::Lab { command: LabCommand::Restart(options) } => lab::restart(&options)?,
        Command::Ps(options) => ps::main(&options)?,
        Command::Ipcs(options) => ipcs::main(&options)?,
        Command::Scrub(options) => return scrub::main(&options),
        Command::Quota { command } => quota::main(&command)?,
        Command::Snapshot { command } => snapshot::main(&command)?,
        Command::Top(options) => top::top(&options)?,
        Command::History(options) => top::history(&options)?,
        Command::Node { command: NodeCommand::Ls(options) } => node::list(options.json)?,
        Command::Node { command: NodeCommand::Revoke(options) } => node::revoke(&options)?,
        Command::Node { command: NodeCommand::Renew(options) } => node::renew(&options)?,
        Command::Init(options) => init::main(&options)?,
        Command::Token { command: TokenCommand::Create(options) } => token::create(&options)?,
        Command::Join(options) => join::main(&options)?,
        Command::Dc { command: DcCommand::Create(options) } => dc::create(&options)?,
        Command::Dc { command: DcCommand::Rm(options) } => dc::remove(&options)?,
        Command::Dc { command: DcCommand::Ls(options) } => dc::list(options.json)?,
        Command::Mount(options) => mount::main(&options)?,
        Command::Kv { command } => kv::main(&command)?,
        Command::Lock(options) => return hold::lock(&options),
        Command::Elect(options) => return hold::elect(&options),
        Command::Barrier(options) => barrier::main(&options)?,
        Command::Group { command } => return group::main(&command),
        internal => execute_internal(internal)?,
    }
    Ok(0)
}

fn execute_internal(command: Command) -> Result<()> {
    start_log();
    match command {
        Command::Dvkd(options) => lab::dvkd(&options),
        Command::Muk2(options) => lab::muk2(&options),
        Command::VfsServer(options) => server::vfs(&options),
        Command::PmServer(options) => server::pm(&options),
        Command::IpcServer(options) => server::ipc(&options),
        Command::Container(options) => container::main(&options),
        Command::MountAgent(options) => mount::agent(&options),
        Command::Switch => lab::keep_switch(),
        Command::Start { launch, report } => container::start::main(launch, report),
        _ => Ok(()),
    }
}

/// Daemons write what happens to their standard error; `DVS_LOG` chooses how much. What openraft takes for an error is
/// usually a node that is not there, of which dvkd says more.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DVS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,openraft=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_is_well_formed() {
        Cli::command().debug_assert();
    }
}
