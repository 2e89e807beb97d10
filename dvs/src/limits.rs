//! Every bound of the command line and of containers, with its reason.

use std::time::Duration;

// ---- sessions of dvs-run ----

/// Bytes of an encoded request at most: with the usual stack limit of 8 MiB, Linux takes 2 MiB of arguments
/// and environment.
pub(crate) const REQUEST_MAX: usize = 4 << 20;
/// Paths that one run may map: each is a mount.
pub(crate) const MAPS_MAX: usize = 64;
/// Sessions that one caller may have: `dvs-run` has one.
pub(crate) const SESSIONS_PER_OWNER: usize = 64;
/// Sessions of a container in all: each has four descriptors, and a process may have 1 024 by default.
pub(crate) const SESSIONS_MAX: usize = 256;
/// Bytes that dvs-run reads from its standard input at once: what a pipe holds.
pub(crate) const INPUT_SIZE: usize = 64 * 1024;

// ---- containers ----

/// Entries of a directory that is mirrored: each becomes a mount, of which a namespace may have 100 000.
pub(crate) const MIRROR_ENTRIES_MAX: usize = 4096;
/// A script's interpreter may be a script, and so on: Linux stops after so many.
pub(crate) const SCRIPTS_MAX: usize = 5;
/// Bytes of a program's headers that are looked at: there are about a dozen, of 56 bytes each.
pub(crate) const PROGRAM_HEADERS_MAX: usize = 64 * 1024;
/// Process numbers of a node: node n has n × this + 1 and up. 40 nodes fit below the kernel's limit.
pub(crate) const PID_RANGE: u32 = 100_000;
/// From here on in a range, numbers are given out from its front again: the rest is for bursts.
pub(crate) const PID_RANGE_USED: u32 = 80_000;
/// How far the numbers of a container that is started again are from those of the one before.
pub(crate) const PID_RANGE_STEP: u32 = 10_000;
/// How long the tree may take to be mounted.
pub(crate) const MOUNT_PATIENCE: Duration = Duration::from_secs(20);
/// A file agent that keeps dying is not started more often than this.
pub(crate) const AGENT_RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How long programs have between SIGTERM and SIGKILL when their container is stopped; dvkd waits for 10 s.
pub(crate) const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How long the file agent has to end after its programs.
pub(crate) const AGENT_STOP_PATIENCE: Duration = Duration::from_millis(500);
/// Pause after a call to pm-server that failed: it is being started again.
pub(crate) const PM_RETRY_PAUSE: Duration = Duration::from_millis(200);

// ---- commands that hold something of the system group ----

/// How long a command has between SIGTERM and SIGKILL when what it ran under is lost.
pub(crate) const HELD_STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How long `dvs lock` waits to hear that it is released: the end of its connection releases it as well.
pub(crate) const HELD_RELEASE_PATIENCE: Duration = Duration::from_secs(2);

// ---- labs ----

/// Most nodes of a lab: the addresses of one /24 network.
pub(crate) const NODES_MAX: u16 = 254;
/// How long all daemons, servers and containers of a lab may take to be there.
pub(crate) const UP_PATIENCE: Duration = Duration::from_secs(60);
/// After this long, `lab up` says what it is waiting for.
pub(crate) const SILENCE: Duration = Duration::from_secs(2);
/// How often a command asks whether what it waits for is there.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(20);
/// How long a dvkd has to end its containers and servers (10 s each) before it is killed.
pub(crate) const DOWN_PATIENCE: Duration = Duration::from_secs(25);
/// How long a process may take to end after SIGKILL: its memory has to be given back.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes at the end of a log in which its last line is looked for.
pub(crate) const LOG_TAIL: u64 = 4096;
/// Milliseconds that a node may take to answer `dvs node ls` before it counts as down.
pub(crate) const NODE_ANSWER_MS: u32 = 2_000;

/// How often `dvs scrub` asks how far it is.
pub(crate) const SCRUB_LOOK: Duration = Duration::from_millis(100);
/// How long a call waits that vfs-server has no room to keep.
pub(crate) const RESTART_PAUSE: Duration = Duration::from_millis(5);
/// How often `dvs snapshot rm` asks whether all is freed.
pub(crate) const SNAPSHOT_LOOK: Duration = Duration::from_millis(50);
/// How often `dvs quota set` asks whether all is counted: half a thousand names are looked at meanwhile.
pub(crate) const QUOTA_LOOK: Duration = Duration::from_millis(5);
