//! More than a link takes at once: it waits where it is, and nobody is refused.
#![expect(unsafe_code, reason = "memory is granted, and copied, by address")]

use crate::cluster::Cluster;
use dvk_client::{Access, Bound, Endpoint};
use m3ipc::limits::COPY_MAX;
use std::thread::scope;

/// Processes that copy, and threads of each: together more than may be kept for one node.
const COPIERS: usize = 12;
const THREADS: usize = 8;

/// Copies of each thread.
const ROUNDS: usize = 2;

/// All copy at once, to or from the memory of `owner`.
fn copy(copiers: &[Bound], owner: Endpoint, at: u64, is_push: bool) {
    scope(|threads| {
        for copier in copiers {
            for _ in 0..THREADS {
                threads.spawn(move || {
                    let mut own = vec![7_u8; COPY_MAX];
                    let here = (copier.endpoint(), own.as_mut_ptr() as u64);
                    let (from, to) =
                        if is_push { (here, (owner, at)) } else { ((owner, at), here) };
                    for _ in 0..ROUNDS {
                        // SAFETY: the buffer is used for nothing else meanwhile.
                        unsafe { copier.vcopy(from.0, from.1, to.0, to.1, COPY_MAX) }.unwrap();
                    }
                });
            }
        }
    });
}

#[test]
fn a_flood_of_large_messages_waits_and_none_is_refused() {
    let cluster = Cluster::start();
    let copiers: Vec<Bound> = (0..COPIERS).map(|_| cluster.bind(1)).collect();
    let owner = cluster.bind(2);
    let mut memory = vec![7_u8; COPY_MAX];
    // SAFETY: nobody relies on what is in it.
    unsafe { owner.grant(Endpoint::ANY, memory.as_mut_ptr(), COPY_MAX, Access::Both) }.unwrap();
    let at = memory.as_mut_ptr() as u64;
    copy(&copiers, owner.endpoint(), at, true);
    copy(&copiers, owner.endpoint(), at, false);
    drop(owner);
    assert!(memory.iter().all(|byte| *byte == 7));
}
