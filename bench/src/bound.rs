//! M3-IPC between two programs: bound endpoints that call, notify, and copy from each other.
#![expect(unsafe_code, reason = "memory is granted and copied by address")]

use crate::beside::Neighbour;
use crate::cpus::Layout;
use crate::place::Place;
use crate::rounds::Subject;
use anyhow::{Context, Result, anyhow, bail, ensure};
use dvk_client::{Access, Bound, Endpoint, IpcError, Kind, Message, NodeId};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::{Duration, Instant};

/// What the operations of a worker begin with that are this module's.
pub(crate) const PREFIX: &str = "m3ipc ";

/// Numbers that receivers are bound under; the ones after it are those of further pairs.
pub(crate) const RECEIVER: u32 = 900;
pub(crate) const REQUESTS_ONLY: u32 = 899;

/// Largest copy; what a receiver lends. Long enough that only the stream counts.
pub(crate) const COPY_MAX: usize = 16 << 20;

/// Calls that a receiver answers: with nothing, and with the addresses of what it lends: ordinary memory, and memory that
/// others may map.
const CALL: u16 = 0x1001;
const WHERE: u16 = 0x1002;

/// A notification that does not come back in this time is lost.
const PATIENCE: Duration = Duration::from_secs(5);

fn failed(error: IpcError) -> anyhow::Error {
    anyhow!("M3-IPC: {error:?}")
}

/// The endpoints of one worker.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    caller: Option<Caller>,
    /// Bound, and nothing else.
    idle: Vec<Bound>,
    neighbour: Option<Neighbour>,
}

impl Endpoints {
    /// `operation` is `serve NUMBER`, `rcvrqst NUMBER`, `bind`, what a neighbour does (`busy`, `scribble`, `rest`), or a
    /// call: `sendrec`, `send`, `notify`, `vcopy`, `vcopy-lent`, `threads`, each with the node and the number of the
    /// receiver, the last three with one more number.
    pub(crate) fn perform(&mut self, operation: &str, count: u32) -> Result<Duration> {
        let mut words = operation.split_whitespace();
        let what = words.next().context("an operation has a name")?;
        let numbers: Vec<u32> = words.map(str::parse).collect::<Result<_, _>>()?;
        match (what, numbers[..].first()) {
            ("serve" | "rcvrqst", Some(number)) => serve(what == "rcvrqst", *number),
            ("bind", _) => self.bind(count),
            ("busy" | "scribble" | "rest", _) => {
                self.neighbour = match what {
                    "busy" => Some(Neighbour::busy()),
                    "scribble" => Some(Neighbour::scribbler()?),
                    _ => None,
                };
                Ok(Duration::ZERO)
            }
            _ => {
                let caller = match self.caller.take() {
                    Some(caller) => caller,
                    None => Caller::bind()?,
                };
                self.caller.insert(caller).call(what, &numbers, count)
            }
        }
    }

    /// Binds `count` endpoints, which stay until the worker ends.
    fn bind(&mut self, count: u32) -> Result<Duration> {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
        let start = Instant::now();
        for _ in 0..count {
            self.idle.push(Bound::bind(None, 0).map_err(failed)?);
        }
        Ok(start.elapsed())
    }
}

/// Binds a receiver; a thread answers until the process ends.
fn serve(requests_only: bool, number: u32) -> Result<Duration> {
    let bound = Bound::bind(None, number).map_err(failed)?;
    // Of this program, over and over: bytes as they are, neither noise nor zeros.
    let program = std::fs::read("/proc/self/exe")?;
    let contents: Vec<u8> = program.iter().copied().cycle().take(COPY_MAX).collect();
    let lent = contents.leak().as_mut_ptr();
    // SAFETY: the bytes are never freed, and nobody has a reference to them.
    unsafe { bound.grant(Endpoint::ANY, lent, COPY_MAX, Access::Both) }.map_err(failed)?;
    let shared = bound.lend(Endpoint::ANY, COPY_MAX, Access::Read).map_err(failed)?;
    // SAFETY: as many bytes are there, and nobody reads them yet.
    unsafe { shared.as_ptr().write_bytes(7, COPY_MAX) };
    let mut place = Message::request(WHERE);
    place.args[..8].copy_from_slice(&(lent as u64).to_le_bytes());
    place.args[8..16].copy_from_slice(&shared.address().to_le_bytes());
    std::thread::spawn(move || {
        let _shared = shared;
        let answer = Message::request(CALL);
        loop {
            let got = if requests_only {
                bound.rcvrqst(&mut [], None)
            } else {
                bound.receive(Endpoint::ANY, &mut [], None)
            };
            let Ok(got) = got else { return };
            let from = got.message.source;
            let done = match got.kind {
                Kind::Request if got.message.call == WHERE => bound.reply(from, &place, &[]),
                Kind::Request => bound.reply(from, &answer, &[]),
                Kind::Notification(value) => bound.notify(from, value),
                _ => Ok(()),
            };
            // A caller that has gone is none of its business.
            done.ok();
        }
    });
    Ok(Duration::ZERO)
}

/// One who calls receivers.
#[derive(Debug)]
struct Caller {
    bound: Bound,
    bytes: Vec<u8>,
    /// What was asked last: whose memory, and its addresses.
    lent: Option<(Endpoint, [u64; 2])>,
}

impl Caller {
    fn bind() -> Result<Caller> {
        let bound = Bound::bind(None, 0).map_err(failed)?;
        Ok(Caller { bound, bytes: vec![0; COPY_MAX], lent: None })
    }

    fn call(&mut self, what: &str, numbers: &[u32], count: u32) -> Result<Duration> {
        let [node, number, rest @ ..] = numbers else { bail!("{what} of whom?") };
        let to = Endpoint::well_known(NodeId(u16::try_from(*node)?), *number);
        let last = || rest.first().copied().with_context(|| format!("{what} of how many?"));
        let start = Instant::now();
        match what {
            "sendrec" => repeat(count, || self.sendrec(to))?,
            "send" => {
                repeat(count, || self.bound.send(to, &Message::request(CALL), &[], None))?;
            }
            "notify" => repeat(count, || {
                self.bound.notify(to, 7)?;
                self.bound.receive(Endpoint::ANY, &mut [], Some(PATIENCE)).map(drop)
            })?,
            "vcopy" | "vcopy-lent" => {
                let (len, [ordinary, lent]) = (last()? as usize, self.lent(to)?);
                let from = if what == "vcopy" { ordinary } else { lent };
                ensure!(len <= COPY_MAX, "{len} bytes are more than is lent");
                let (bytes, own) = (self.bytes.as_mut_ptr() as u64, self.bound.endpoint());
                repeat(count, || {
                    // SAFETY: the bytes at `bytes` are this caller's, and nobody else uses them.
                    unsafe { self.bound.vcopy(to, from, own, bytes, len) }
                        .map_err(|failed| failed.error)
                })?;
            }
            "threads" => {
                let threads = last()?;
                std::thread::scope(|scope| {
                    let all: Vec<_> = (0..threads)
                        .map(|_| {
                            scope.spawn(|| repeat(count.div_ceil(threads), || self.sendrec(to)))
                        })
                        .collect();
                    all.into_iter().try_for_each(|one| one.join().expect("it does not panic"))
                })?;
            }
            _ => bail!("no operation {what}"),
        }
        Ok(start.elapsed())
    }

    fn sendrec(&self, to: Endpoint) -> Result<(), IpcError> {
        self.bound.sendrec(to, &mut Message::request(CALL), &[], &mut [], None).map(drop)
    }

    /// Where the memory is that `to` lends.
    fn lent(&mut self, to: Endpoint) -> Result<[u64; 2]> {
        if let Some((of, addresses)) = self.lent
            && of == to
        {
            return Ok(addresses);
        }
        let mut message = Message::request(WHERE);
        self.bound.sendrec(to, &mut message, &[], &mut [], None).map_err(failed)?;
        let addresses = [0, 8].map(|at| {
            let bytes = message.args[at..].first_chunk().expect("a message has that much");
            u64::from_le_bytes(*bytes)
        });
        self.lent = Some((to, addresses));
        Ok(addresses)
    }
}

fn repeat(count: u32, mut operation: impl FnMut() -> Result<(), IpcError>) -> Result<()> {
    (0..count).try_for_each(|_| operation()).map_err(failed)
}

/// A worker that calls another one.
pub(crate) struct Pair<'a> {
    pub(crate) name: String,
    pub(crate) caller: &'a Place,
    pub(crate) receiver: &'a Place,
    /// As a worker has it.
    pub(crate) operation: String,
}

impl Subject for Pair<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.caller.pin(layout.asks)?;
        self.receiver.pin(layout.answers)
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        self.caller.perform(count, &self.operation)
    }
}
