//! What a container and pm-server say to each other: orders are fetched and carried out, starts
//! and ends of programs are told, and on demand the whole process list.

use super::{is_own, kill};
use crate::limits::PM_RETRY_PAUSE;
use crate::procfs::{self, TICKS_PER_SECOND};
use calls::pm::{Await, COMMAND_MAX, Done, Exited, Join, Order, Process, Report, Started, order};
use calls::wire::Wire;
use m3ipc::client::Process as Client;
use m3ipc::errno::numbers::{ENOSYS, ESRCH};
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, Errno, Wait};
use std::path::Path;

/// The way to pm-server.
#[derive(Debug)]
pub(super) struct Pm {
    pub(super) client: Client,
    pub(super) node: u16,
}

impl Pm {
    /// Makes calls until dvkd is gone: an error of the way there is tried again.
    fn call<R: calls::Row>(&self, row: &R, payload: &[u8]) -> Result<R::Reply, Errno> {
        let (reply, _) =
            calls::call(&self.client, Endpoint::PM, row, &[payload], &mut [], Wait::FOREVER)?;
        Ok(reply)
    }

    /// Tells that this container is there. Returns when pm-server knows.
    pub(super) fn join_until_there(&self) {
        while let Err(error) = self.call(&Join { node: self.node }, &[]) {
            tracing::debug!("pm-server: {error}");
            std::thread::sleep(PM_RETRY_PAUSE);
        }
    }

    /// Fetches orders and carries them out, for ever.
    pub(super) fn obey(&self) -> ! {
        // The error that the log has: a server that is away for long is told of once.
        let mut said = None;
        loop {
            let outcome = self.call(&Await { node: self.node }, &[]);
            match outcome.and_then(|order| self.carry_out(order)) {
                Ok(()) => said = None,
                // It took this node for gone, and has forgotten its processes.
                Err(error) if error.errno == ESRCH => self.join_again(),
                Err(error) => {
                    if said.replace(error.errno) != Some(error.errno) {
                        tracing::warn!("pm-server: {error}; it is asked again until it answers");
                    }
                    std::thread::sleep(PM_RETRY_PAUSE);
                }
            }
        }
    }

    fn join_again(&self) {
        tracing::info!("pm-server is told again what runs here");
        self.join_until_there();
        let records = encode(&processes(self.node));
        if let Err(error) = self.call(&Report { id: 0, node: self.node }, &records) {
            tracing::warn!("pm-server: {error}");
            std::thread::sleep(PM_RETRY_PAUSE);
        }
    }

    fn carry_out(&self, order: Order) -> Result<(), Errno> {
        let outcome = match order.kind {
            order::KILL => kill::kill(order.pid, order.signal, order.uid),
            order::REPORT => {
                let records = encode(&processes(self.node));
                return self.call(&Report { id: order.id, node: self.node }, &records);
            }
            _ => Err(Errno::new(ENOSYS)),
        };
        let errno = outcome.err().map_or(0, |errno| errno.errno);
        self.call(&Done { id: order.id, errno }, &[])
    }

    /// Tells that a program has been started.
    ///
    /// # Errors
    /// As pm-server or the way there says.
    pub(super) fn started(&self, pid: i32, command: &[u8]) -> Result<(), Errno> {
        let Some(stat) = procfs::stat(pid) else { return Ok(()) };
        let row = Started {
            pid: number(pid),
            ppid: number(stat.ppid),
            pgid: number(stat.pgid),
            sid: number(stat.sid),
            node: self.node,
        };
        self.call(&row, &command[..command.len().min(COMMAND_MAX)])
    }

    /// Tells how a process has ended.
    ///
    /// # Errors
    /// As pm-server or the way there says.
    pub(super) fn exited(&self, pid: i32, status: i32) -> Result<(), Errno> {
        self.call(&Exited { pid: number(pid), status }, &[])
    }
}

fn number(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}

/// The processes of this pid namespace, without the container's own.
fn processes(node: u16) -> Vec<(Process, Vec<u8>)> {
    let boot = procfs::boot_time().unwrap_or(0);
    let pids = procfs::pids(Path::new("/proc")).unwrap_or_default();
    pids.into_iter()
        .filter(|pid| !is_own(*pid))
        .filter_map(|pid| process(pid, node, boot))
        .collect()
}

/// A process's record; `None` if it has gone in the meantime.
fn process(pid: i32, node: u16, boot: i64) -> Option<(Process, Vec<u8>)> {
    let stat = procfs::stat(pid)?;
    let directory = Path::new("/proc").join(pid.to_string());
    let uid = procfs::parse_uid(&std::fs::read(directory.join("status")).ok()?)?;
    let mut command = procfs::command_line(&std::fs::read(directory.join("cmdline")).ok()?);
    if command.is_empty() {
        // As ps(1) shows those that have none: zombies.
        command = [b"[", &procfs::command_line(&stat.command)[..], b"]"].concat();
    }
    command.truncate(COMMAND_MAX);
    let seconds = i64::try_from(stat.start / TICKS_PER_SECOND).unwrap_or(0);
    let record = Process {
        pid: number(stat.pid),
        ppid: number(stat.ppid),
        pgid: number(stat.pgid),
        sid: number(stat.sid),
        uid,
        node,
        state: stat.state,
        command_len: u8::try_from(command.len()).unwrap_or(0),
        start: boot.saturating_add(seconds),
        cpu_ms: stat.cpu.saturating_mul(1000 / TICKS_PER_SECOND),
    };
    Some((record, command))
}

/// The records as a payload. If there is not room for all, first the commands are shortened: a
/// process without its command's end is better than a process that is missing.
fn encode(processes: &[(Process, Vec<u8>)]) -> Vec<u8> {
    let room = (PAYLOAD_MAX / processes.len().max(1)).saturating_sub(Process::SIZE);
    let fits = |limit: usize| {
        let total: usize =
            processes.iter().map(|(_, command)| Process::SIZE + command.len().min(limit)).sum();
        total <= PAYLOAD_MAX
    };
    let limit = if fits(COMMAND_MAX) { COMMAND_MAX } else { room.min(COMMAND_MAX) };
    let mut payload = Vec::new();
    for (record, command) in processes {
        let command = &command[..command.len().min(limit)];
        let record = Process { command_len: u8::try_from(command.len()).unwrap_or(0), ..*record };
        if payload.len() + Process::SIZE + command.len() > PAYLOAD_MAX {
            tracing::warn!("more processes than a report can carry: {}", processes.len());
            break;
        }
        payload.extend_from_slice(&record.bytes());
        payload.extend_from_slice(command);
    }
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(mut payload: &[u8]) -> Vec<(Process, Vec<u8>)> {
        let mut processes = Vec::new();
        while let Some(process) = Process::get(payload) {
            let (command, rest) =
                payload[Process::SIZE..].split_at(usize::from(process.command_len));
            processes.push((process, command.to_vec()));
            payload = rest;
        }
        assert!(payload.is_empty());
        processes
    }

    fn some(count: u32) -> Vec<(Process, Vec<u8>)> {
        let command = vec![b'x'; COMMAND_MAX];
        (0..count)
            .map(|pid| {
                let command_len = u8::try_from(COMMAND_MAX).unwrap();
                (Process { pid, command_len, ..Process::default() }, command.clone())
            })
            .collect()
    }

    #[test]
    fn this_process_is_in_the_report() {
        let all = decode(&encode(&processes(7)));
        let (own, command) =
            all.iter().find(|(process, _)| process.pid == std::process::id()).unwrap();
        // The thread group's first thread may wait for this one.
        assert!(own.node == 7 && matches!(own.state, b'R' | b'S'));
        assert_eq!(own.uid, rustix::process::getuid().as_raw());
        assert!(own.start > 1_000_000_000);
        let first = std::env::args_os().next().unwrap();
        let first = first.as_encoded_bytes();
        assert!(command.starts_with(&first[..first.len().min(COMMAND_MAX)]));
    }

    #[test]
    fn many_processes_are_reported_with_shorter_commands_rather_than_left_out() {
        assert_eq!(decode(&encode(&some(10))), some(10));
        let crowded = decode(&encode(&some(2_500)));
        assert_eq!(crowded.len(), 2_500);
        assert!(crowded.iter().all(|(_, command)| command.len() < COMMAND_MAX));
        let most = decode(&encode(&some(10_000)));
        assert_eq!(most.len(), PAYLOAD_MAX / Process::SIZE);
        assert!(encode(&[]).is_empty());
    }
}
