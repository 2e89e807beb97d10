//! A process that sleeps on others' bells, or has their owners sleep elsewhere, takes no call from them.
#![expect(unsafe_code, reason = "reads a word of a bell's page by its address")]

use crate::cluster::{Cluster, NEVER, well_known};
use dvk_client::{Bound, Endpoint, Message};
use rustix::thread::futex;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::scope;

const CALL: u16 = 0x1003;
/// Ends a receiver.
const END: u16 = 0x1004;
/// Receivers on node 1 and on node 2.
const NEAR: u32 = 80;
const FAR: u32 = 81;
/// The door of the process that sleeps.
const SOCKET: &str = "DVK_TEST_SLEEPERS";
/// Threads that sleep on each bell.
const SLEEPERS: usize = 2;
/// Calls that an honest process makes of each receiver meanwhile.
const ROUNDS: usize = 200;
/// How the process robs others.
const WAY: &str = "DVK_TEST_SLEEPERS_WAY";
const SLEEP: &str = "sleep";
const REQUEUE: &str = "requeue";

fn ask(bound: &Bound, to: Endpoint, call: u16) {
    bound.sendrec(to, &mut Message::request(call), b"", &mut [], NEVER).unwrap();
}

/// Not a test by itself: the process that sleeps on the bells of all it has called, until its input ends.
#[test]
fn child_that_sleeps_on_bells() {
    let Some(socket) = std::env::var_os(SOCKET).map(PathBuf::from) else { return };
    let bound = Bound::bind(Some(&socket), 0).unwrap();
    // The bells of the receiver itself, and of dvkd, which speaks for the other node.
    ask(&bound, well_known(1, NEAR), CALL);
    ask(&bound, well_known(2, FAR), CALL);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let is_others = |line: &&str| line.contains("/memfd:dvs-bell") && line.contains(" r--s ");
    let places: Vec<usize> = maps
        .lines()
        .filter(is_others)
        .map(|line| usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap())
        .collect();
    println!("\nsleeps on {} bells", places.len());
    let sleeps = std::env::var(WAY).unwrap() == SLEEP;
    for at in places.into_iter().flat_map(|at| [at; SLEEPERS]) {
        std::thread::spawn(move || {
            let elsewhere = AtomicU32::new(0);
            let none = futex::Flags::empty();
            // SAFETY: the page stays mapped as long as the endpoint, which is as long as the process; all use the word
            // atomically.
            let word = unsafe { AtomicU32::from_ptr(at as *mut u32) };
            loop {
                let ticket = word.load(Ordering::SeqCst);
                match ticket & 1 {
                    1 if sleeps => futex::wait(word, none, ticket, None).unwrap_or(()),
                    1 => _ = futex::requeue(word, none, 0, i32::MAX.cast_unsigned(), &elsewhere),
                    _ => std::hint::spin_loop(),
                }
            }
        });
    }
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Ends it, also if the test fails.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Answers until it is told to end. It waits for longer than who calls: a ring that is lost is not made good by its own
/// clock.
fn serve(bound: &Bound) {
    loop {
        let got = bound.rcvrqst(&mut [], NEVER.map(|time| time * 2)).unwrap();
        let reply = Message { tag: got.message.tag, ..Message::request(CALL) };
        bound.reply(got.message.source, &reply, b"").ok();
        if got.message.call == END {
            return;
        }
    }
}

/// Has an honest process call while another one robs.
fn rob(way: &str) {
    let cluster = Cluster::start();
    let (near, far) = (cluster.bind_as(1, NEAR), cluster.bind_as(2, FAR));
    let honest = cluster.bind(1);
    scope(|threads| {
        threads.spawn(|| serve(&near));
        threads.spawn(|| serve(&far));
        let mut child = cluster
            .as_nobody(1, "sleepers::child_that_sleeps_on_bells")
            .env(SOCKET, cluster.socket(1))
            .env(WAY, way)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map(Ended)
            .unwrap();
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let said = lines.map_while(Result::ok).find(|line| line.starts_with("sleeps on"));
        assert_eq!(said.as_deref(), Some("sleeps on 2 bells"));
        for _ in 0..ROUNDS {
            ask(&honest, well_known(1, NEAR), CALL);
            ask(&honest, well_known(2, FAR), CALL);
        }
        drop(child);
        ask(&honest, well_known(1, NEAR), END);
        ask(&honest, well_known(2, FAR), END);
    });
}

#[test]
fn who_sleeps_on_the_bells_of_others_does_not_make_them_miss_a_call() {
    rob(SLEEP);
}

#[test]
fn who_has_others_sleep_on_a_word_of_its_own_does_not_make_them_miss_a_call() {
    rob(REQUEUE);
}
