//! A process that does things many times and says how long they took: on this machine, or in a container.

use crate::bound::{self, Endpoints};
use crate::files::Files;
use crate::mapped::{self, Mapped};
use crate::stream::MESSAGE;
use crate::{cpus, idle, shared, takeover, tls, workloads};
use anyhow::{Context, Result, bail, ensure};
use calls::call;
use calls::ipc::SemGetvalue;
use m3ipc::client::{Identity, Process};
use m3ipc::{Endpoint, Wait};
use std::fs;
use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A call to a server that answers at once, without looking at its store.
pub(crate) const SENDREC: &str = "sendrec";
/// Ping-pong with an `echo` at the address that follows.
pub(crate) const TCP: &str = "tcp ";
/// Bytes from the same over TLS: its address, the file with its certificate, how many.
pub(crate) const TLS: &str = "tls ";
/// A copy of so many bytes out of memory that two processes share.
pub(crate) const MEMCPY: &str = "memcpy ";

/// The count is the CPU to run on.
pub(crate) const PIN: &str = "pin";

const PAGE: usize = 4096;

/// The state of a worker.
struct Worker {
    files: Files,
    mapped: Mapped,
    port: Process,
    connection: Option<TcpStream>,
    secure: Option<tls::Connection>,
    endpoints: Endpoints,
}

/// Reads lines `count operation`, does that, prints the nanoseconds.
pub(crate) fn work(folder: &Path) -> Result<()> {
    let folder = folder.join(format!("bench-{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let result = serve(&folder);
    fs::remove_dir_all(&folder)?;
    result
}

fn serve(folder: &Path) -> Result<()> {
    let files = Files::make(folder)?;
    let port = Process::new(Identity::PROCESS);
    let (connection, secure, endpoints) = (None, None, Endpoints::default());
    let mut worker =
        Worker { files, mapped: Mapped::default(), port, connection, secure, endpoints };
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (count, operation) = line.split_once(' ').context("a line is `count operation`")?;
        let time = worker.perform(operation, count.parse()?)?;
        writeln!(std::io::stdout(), "{}", time.as_nanos())?;
    }
    Ok(())
}

impl Worker {
    fn perform(&mut self, operation: &str, count: u32) -> Result<Duration> {
        if let Some(time) = self.files.perform(operation, count)? {
            return Ok(time);
        }
        match operation {
            PIN => {
                cpus::pin_self(count as usize)?;
                Ok(Duration::ZERO)
            }
            idle::OWN_CPU | idle::OWN_MEMORY => idle::own(operation),
            SENDREC => timed(count, || self.sendrec()),
            _ => {
                if let Some(workload) = operation.strip_prefix(workloads::PREFIX) {
                    workloads::perform(workload, count, self.files.folder())
                } else if let Some(operation) = operation.strip_prefix(bound::PREFIX) {
                    self.endpoints.perform(operation, count)
                } else if let Some(arguments) = operation.strip_prefix(mapped::TURNS) {
                    self.mapped.take_turns(arguments, count)
                } else if let Some(arguments) = operation.strip_prefix(takeover::LONGEST) {
                    takeover::longest(arguments, count)
                } else if let Some(address) = operation.strip_prefix(TCP) {
                    self.tcp(address, count)
                } else if let Some(arguments) = operation.strip_prefix(TLS) {
                    self.tls(arguments, count)
                } else if let Some(size) = operation.strip_prefix(MEMCPY) {
                    copy(size.parse()?, count)
                } else {
                    bail!("no operation {operation}")
                }
            }
        }
    }

    /// A call about a semaphore that nobody has: the server looks it up, and says EINVAL.
    fn sendrec(&self) -> std::io::Result<()> {
        match call(
            &self.port,
            Endpoint::IPC,
            &SemGetvalue { id: u64::MAX },
            &[],
            &mut [],
            Wait::FOREVER,
        ) {
            Err(errno) if errno.errno == m3ipc::errno::numbers::EINVAL => Ok(()),
            other => Err(std::io::Error::other(format!("the server says {other:?}"))),
        }
    }

    fn tcp(&mut self, address: &str, count: u32) -> Result<Duration> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connection = TcpStream::connect(address)
                    .with_context(|| format!("cannot connect to {address}"))?;
                connection.set_nodelay(true)?;
                self.connection.insert(connection)
            }
        };
        let mut message = [7; MESSAGE];
        timed(count, || {
            connection.write_all(&message)?;
            connection.read_exact(&mut message)
        })
    }

    fn tls(&mut self, arguments: &str, count: u32) -> Result<Duration> {
        let words: Vec<_> = arguments.split_whitespace().collect();
        let [address, certificate, size] = words[..] else { bail!("TLS to whom?") };
        let connection = match &mut self.secure {
            Some(connection) => connection,
            None => self.secure.insert(tls::connect(address, Path::new(certificate))?),
        };
        let mut bytes = vec![0; size.parse()?];
        ensure!(!bytes.is_empty(), "no bytes, no round trip");
        timed(count, || tls::fetch(connection, &mut bytes))
    }
}

/// Copies out of a shared page or more into memory of this process, from page to page: at some other places processors
/// have copies that take ten times longer.
fn copy(size: usize, count: u32) -> Result<Duration> {
    let shared = shared::bytes(size)?;
    let mut own = vec![0u8; size + PAGE];
    let start = own.as_ptr().align_offset(PAGE);
    let own = &mut own[start..start + size];
    timed(count, || {
        own.copy_from_slice(std::hint::black_box(shared));
        std::hint::black_box(&mut *own);
        Ok(())
    })
}

fn timed(count: u32, mut operation: impl FnMut() -> std::io::Result<()>) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..count {
        operation()?;
    }
    Ok(start.elapsed())
}
