//! vcopy between any two of requester, source and destination, on one node and on two.
#![expect(unsafe_code, reason = "memory is granted, and copied, by address")]

use crate::cluster::{Cluster, wait_until};
use dvk_client::{Access, Bound, Endpoint, IpcError, Shared};
use m3ipc::limits::LENT_MAX;

/// Lends a buffer.
fn lend(bound: &Bound, to: Endpoint, buffer: &mut [u8], access: Access) -> dvk_client::Grant {
    // SAFETY: the tests use a buffer only when no copy is under way.
    unsafe { bound.grant(to, buffer.as_ptr(), buffer.len(), access) }.unwrap()
}

fn copy(
    by: &Bound,
    (source, from): (Endpoint, u64),
    (destination, to): (Endpoint, u64),
    len: usize,
) -> Result<(), (usize, IpcError)> {
    // SAFETY: as in `lend`.
    unsafe { by.vcopy(source, from, destination, to, len) }
        .map_err(|failed| (failed.copied, failed.error))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

#[test]
fn every_side_may_be_anybody_on_any_node() {
    let cluster = Cluster::start();
    let bounds = [cluster.bind(1), cluster.bind(1), cluster.bind(2), cluster.bind(2)];
    // Not a multiple of a piece, and more than one call of the protocol.
    let len = (1 << 20) + 70_001;
    for requester in &bounds {
        for source in &bounds {
            for destination in &bounds {
                let (mut from, mut to) = (pattern(len), vec![0; len]);
                let by = requester.endpoint();
                let read = lend(source, by, &mut from, Access::Read);
                let written = lend(destination, by, &mut to, Access::Write);
                let places = (from.as_ptr() as u64, to.as_mut_ptr() as u64);
                let ends = ((source.endpoint(), places.0), (destination.endpoint(), places.1));
                assert_eq!(copy(requester, ends.0, ends.1, len), Ok(()));
                assert!(from == to, "{requester:?} {source:?} {destination:?}");
                source.revoke(read).unwrap();
                destination.revoke(written).unwrap();
            }
        }
    }
}

#[test]
fn only_what_is_granted_is_copied_and_only_so() {
    let cluster = Cluster::start();
    for node in [1, 2] {
        let (owner, friend, stranger) = (cluster.bind(node), cluster.bind(1), cluster.bind(1));
        let mut lent = pattern(1000);
        let mut own = vec![0; 2000];
        let (at, into) = (lent.as_ptr() as u64, own.as_mut_ptr() as u64);
        let try_read = |by: &Bound, from: u64, len: usize| {
            copy(by, (owner.endpoint(), from), (by.endpoint(), into), len)
        };
        let never = try_read(&friend, at, 10);
        assert_eq!(never, Err((0, IpcError::Stale)), "it has granted nothing at all");
        let grant = lend(&owner, friend.endpoint(), &mut lent, Access::Read);
        assert_eq!(try_read(&friend, at, 1000), Ok(()));
        assert_eq!(try_read(&friend, at + 990, 10), Ok(()));
        for (from, len) in [(at + 991, 10), (at - 1, 10), (at, 1001), (u64::MAX - 4, 10)] {
            assert_eq!(try_read(&friend, from, len), Err((0, IpcError::Denied)));
        }
        assert_eq!(try_read(&stranger, at, 10), Err((0, IpcError::Denied)));
        let write = copy(&friend, (friend.endpoint(), into), (owner.endpoint(), at), 10);
        assert_eq!(write, Err((0, IpcError::Denied)), "to be read only");
        owner.revoke(grant).unwrap();
        assert_eq!(owner.revoke(grant), Err(IpcError::Stale));
        assert_eq!(try_read(&friend, at, 10), Err((0, IpcError::Denied)));
    }
}

#[test]
fn a_copy_that_ends_early_says_how_much_has_arrived() {
    let cluster = Cluster::start();
    for node in [1, 2] {
        let (owner, by) = (cluster.bind(node), cluster.bind(1));
        let mut lent = pattern(300 * 1024);
        let mut own = vec![0; lent.len()];
        let (at, into) = (lent.as_ptr() as u64, own.as_mut_ptr() as u64);
        lend(&owner, by.endpoint(), &mut lent[..200 * 1024], Access::Read);
        let failed = copy(&by, (owner.endpoint(), at), (by.endpoint(), into), 300 * 1024);
        assert_eq!(failed, Err((128 * 1024, IpcError::Denied)), "whole pieces");
        assert_eq!(own[..128 * 1024], lent[..128 * 1024]);
        // An address that is nobody's.
        // SAFETY: nothing is there that a copy could change.
        unsafe {
            owner.grant(Endpoint::ANY, std::ptr::without_provenance(4096), 100, Access::Both)
        }
        .unwrap();
        let failed = copy(&by, (owner.endpoint(), 4096), (by.endpoint(), into), 100);
        assert_eq!(failed, Err((0, IpcError::Fault)));
        assert_eq!(
            copy(&by, (by.endpoint(), 4096), (by.endpoint(), into), 1),
            Err((0, IpcError::Fault))
        );
        let name = owner.endpoint();
        owner.unbind().unwrap();
        let gone = copy(&by, (name, at), (by.endpoint(), into), 10).unwrap_err();
        assert!(matches!(gone.1, IpcError::Stale | IpcError::DestinationDied), "{gone:?}");
    }
}

/// Bytes of lent memory.
fn bytes(lent: &Shared) -> Vec<u8> {
    // SAFETY: they are mapped as long as `lent`, and no copy is under way.
    unsafe { std::slice::from_raw_parts(lent.as_ptr().as_ptr(), lent.len()) }.to_vec()
}

#[test]
fn lent_memory_is_mapped_after_the_first_copy_and_no_longer_lent_when_it_is_dropped() {
    let cluster = Cluster::start();
    let len = 300 * 1024;
    for node in [1, 2] {
        let (owner, friend, stranger) = (cluster.bind(node), cluster.bind(1), cluster.bind(1));
        let lent = owner.lend(friend.endpoint(), len, Access::Read).unwrap();
        let mut own = vec![0; len];
        let into = own.as_mut_ptr() as u64;
        let read = |by: &Bound, from: u64, len: usize| {
            copy(by, (owner.endpoint(), from), (by.endpoint(), into), len)
        };
        // The first copy is made by calls, the others out of the mapping, if there can be one.
        for round in 0..3u8 {
            // SAFETY: as many bytes are there, and no copy is under way.
            unsafe { lent.as_ptr().write_bytes(round + 1, len) };
            assert_eq!(friend.mapped_count(), usize::from(round > 0 && node == 1), "{node}");
            assert_eq!(read(&friend, lent.address(), len), Ok(()));
            assert!(own.iter().all(|byte| *byte == round + 1), "round {round}");
        }
        assert_eq!(read(&friend, lent.address() + 1, len), Err((256 * 1024, IpcError::Denied)));
        assert_eq!(read(&friend, lent.address() - 1, 10), Err((0, IpcError::Denied)));
        let write =
            copy(&friend, (friend.endpoint(), into), (owner.endpoint(), lent.address()), 10);
        assert_eq!(write, Err((0, IpcError::Denied)), "to be read only");
        assert_eq!(read(&stranger, lent.address(), 10), Err((0, IpcError::Denied)));
        assert_eq!(stranger.mapped_count(), 0);
        let at = lent.address();
        drop(lent);
        assert_eq!(read(&friend, at, 10), Err((0, IpcError::Denied)));
        assert_eq!(friend.mapped_count(), 0, "it holds nothing any more");
    }
}

#[test]
fn lent_memory_is_written_if_it_may_be_and_ends_with_its_owner() {
    let cluster = Cluster::start();
    let (owner, friend) = (cluster.bind(1), cluster.bind(1));
    let lent = owner.lend(Endpoint::ANY, 5000, Access::Both).unwrap();
    let (mut own, name) = (pattern(5000), owner.endpoint());
    let own_at = own.as_mut_ptr() as u64;
    for round in 0..3u8 {
        own[4999] = round;
        let written = copy(&friend, (friend.endpoint(), own_at), (name, lent.address()), 5000);
        assert_eq!((written, bytes(&lent) == own), (Ok(()), true));
    }
    assert_eq!(friend.mapped_count(), 1);
    let mut back = vec![0; 5000];
    let back_at = back.as_mut_ptr() as u64;
    assert_eq!(copy(&friend, (name, lent.address()), (friend.endpoint(), back_at), 5000), Ok(()));
    assert!(back == own);
    let at = lent.address();
    owner.unbind().unwrap();
    // The mapping is used until dvkd has closed the channel to its owner.
    let read = || copy(&friend, (name, at), (friend.endpoint(), back_at), 10);
    wait_until("its owner is gone", || read().is_err());
    let gone = read().unwrap_err();
    assert!(matches!(gone.1, IpcError::Stale | IpcError::DestinationDied), "{gone:?}");
    assert_eq!(friend.mapped_count(), 0);
    let other = cluster.bind(1);
    let many: Vec<_> = (0..LENT_MAX).map(|_| other.lend(Endpoint::ANY, 1, Access::Read)).collect();
    assert!(many.iter().all(Result::is_ok));
    assert_eq!(other.lend(Endpoint::ANY, 1, Access::Read).err(), Some(IpcError::Exhausted));
    drop(many);
    other.lend(Endpoint::ANY, 1, Access::Read).unwrap();
}
