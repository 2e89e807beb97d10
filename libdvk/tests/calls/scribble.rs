//! A process that writes garbage into everything it has mapped harms only itself.
#![expect(unsafe_code, reason = "writes where it has no business to")]

use crate::cluster::{Cluster, NEVER, wait_until, well_known};
use dvk_client::{Bound, Endpoint, Kind, Message};
use m3ipc::limits::PAYLOAD_MAX;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;

const CALL: u16 = 0x1003;
/// Receivers on node 1 and on node 2.
const NEAR: u32 = 80;
const FAR: u32 = 81;

/// The door of the process that scribbles.
const SOCKET: &str = "DVK_TEST_SCRIBBLE";

/// Calls that an honest process makes of each receiver meanwhile.
const ROUNDS: u64 = 3_000;

fn ask(bound: &Bound, to: Endpoint, value: u64) -> u64 {
    let mut message = Message::request(CALL);
    message.args[..8].copy_from_slice(&value.to_le_bytes());
    let mut answer = [0; 8];
    let len = bound.sendrec(to, &mut message, &value.to_le_bytes(), &mut answer, NEVER).unwrap();
    assert_eq!((len, message.source.slot == to.slot), (8, true));
    u64::from_le_bytes(answer)
}

/// Not a test by itself: the process that scribbles, until it is killed.
#[test]
fn child_that_scribbles() {
    let Some(socket) = std::env::var_os(SOCKET).map(PathBuf::from) else { return };
    let bound = Bound::bind(Some(&socket), 0).unwrap();
    // A channel to the receiver itself, and one to dvkd, which speaks for the other node.
    assert_eq!(ask(&bound, well_known(1, NEAR), 1), 2);
    assert_eq!(ask(&bound, well_known(2, FAR), 1), 2);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut places = Vec::new();
    for line in maps.lines().filter(|line| line.contains("/memfd:dvs-") && line.contains(" rw-s "))
    {
        let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|number| usize::from_str_radix(number, 16).unwrap());
        // Of a channel the lanes and the first payloads; of a bell all.
        places.push((start, (end - start).min(64 << 10)));
    }
    println!("\nscribbles over {} mappings", places.len());
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    loop {
        for (start, len) in &places {
            let at = start + usize::try_from(random()).unwrap() % len / 8 * 8;
            // States, bits and lengths that look right get further than noise.
            let value = match random() % 4 {
                0 => random() % 5,
                1 => (random() % 5) << 20 | random() & 0xffff,
                _ => random(),
            };
            // SAFETY: the word is inside a writable mapping of this process, aligned; others expect anything there.
            unsafe { std::ptr::write_volatile(at as *mut u64, value) };
        }
    }
}

struct Scribbler(Child);

impl Scribbler {
    /// Starts it, and waits until it has channels.
    fn start(cluster: &Cluster) -> Scribbler {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["scribble::child_that_scribbles", "--exact", "--nocapture", "--test-threads=1"])
            .env(SOCKET, cluster.socket(1))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map_while(Result::ok).find(|line| line.starts_with("scribbles over"));
        // Two channels, and its own bell.
        assert_eq!(said.as_deref(), Some("scribbles over 3 mappings"));
        Scribbler(child)
    }
}

impl Drop for Scribbler {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Tells those who answer to stop, also if the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers requests with one more than they say, until told to stop; notes who sent something.
fn serve(bound: &Bound, stop: &AtomicBool, seen: &Mutex<BTreeSet<Endpoint>>) {
    let mut payload = vec![0; PAYLOAD_MAX];
    while !stop.load(Ordering::Relaxed) {
        let Ok(got) = bound.receive(Endpoint::ANY, &mut payload, crate::cluster::SHORT) else {
            continue;
        };
        seen.lock().unwrap().insert(got.message.source);
        if got.kind == Kind::Request {
            let value = u64::from_le_bytes(got.message.args[..8].try_into().unwrap());
            let answer = value.wrapping_add(1).to_le_bytes();
            let reply = Message { tag: got.message.tag, ..Message::request(CALL) };
            // The one who scribbles may have overwritten that it waits.
            bound.reply(got.message.source, &reply, &answer).ok();
        }
    }
}

#[test]
fn garbage_in_every_page_that_a_process_can_write_harms_only_itself() {
    let cluster = Cluster::start();
    let (near, far) = (cluster.bind_as(1, NEAR), cluster.bind_as(2, FAR));
    let honest = cluster.bind(1);
    let (stop, seen) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    scope(|threads| {
        let over = Over(&stop);
        threads.spawn(|| serve(&near, &stop, &seen));
        threads.spawn(|| serve(&far, &stop, &seen));
        let scribbler = Scribbler::start(&cluster);
        let errors = || cluster.protocol_errors(1);
        let before = errors();
        // Once is enough: mostly it has written that its channel is closed, and then nobody looks. A call makes dvkd look.
        wait_until("dvkd has met the garbage", || {
            assert_eq!(ask(&honest, well_known(2, FAR), 3), 4);
            errors() > before
        });
        for round in 0..ROUNDS {
            assert_eq!(ask(&honest, well_known(1, NEAR), round), round + 1);
            assert_eq!(ask(&honest, well_known(2, FAR), round), round + 1);
        }
        let who = honest.getep(scribbler.0.id()).unwrap();
        drop(scribbler);
        honest.wait_unbind(who, NEVER).unwrap();
        assert_eq!(ask(&honest, well_known(1, NEAR), 7), 8);
        drop(over);
        // Whatever it wrote as the source of its messages.
        let expected = BTreeSet::from([honest.endpoint(), who]);
        assert_eq!(*seen.lock().unwrap(), expected);
    });
}
