//! vcopy between any two of requester, source and destination, on one node and on two.
#![expect(unsafe_code, reason = "memory is granted, and copied, by address")]

use crate::cluster::{Cluster, wait_until};
use dvk_client::{Access, Bound, Endpoint, IpcError, Shared};
use m3ipc::bell::Bell;
use m3ipc::connection::Connection;
use m3ipc::door::{Ask, ask, kind, tell};
use m3ipc::lent::Lent;
use m3ipc::limits::LENT_MAX;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

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

#[test]
fn memory_lent_for_writing_is_not_read_by_those_who_have_mapped_it_either() {
    let cluster = Cluster::start();
    for node in [1, 2] {
        let (owner, friend) = (cluster.bind(node), cluster.bind(1));
        let lent = owner.lend(friend.endpoint(), 8192, Access::Write).unwrap();
        let mut own = pattern(8192);
        let place = (friend.endpoint(), own.as_mut_ptr() as u64);
        for _ in 0..3 {
            assert_eq!(copy(&friend, place, (owner.endpoint(), lent.address()), 8192), Ok(()));
            let read = copy(&friend, (owner.endpoint(), lent.address()), place, 8192);
            assert_eq!(read, Err((0, IpcError::Denied)), "node {node}");
        }
        assert_eq!(bytes(&lent), own);
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

/// A process that speaks with its dvkd as it likes, without the library.
struct Raw {
    connection: Connection,
    endpoint: Endpoint,
    _bell: Bell,
}

impl Raw {
    fn bind(cluster: &Cluster, hello: Ask) -> Raw {
        let (bell, fd) = Bell::create().unwrap();
        let connection = Connection::connect(cluster.socket(1).as_os_str().as_bytes()).unwrap();
        let endpoint = connection.hello(hello, Some(fd.as_fd())).unwrap().endpoint;
        Raw { connection, endpoint, _bell: bell }
    }

    fn ask(&self, asked: Ask, fd: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>, IpcError> {
        self.connection.ask(&asked, fd).unwrap();
        let (told, [first, _]) = self.connection.hear().unwrap();
        told.expect(tell::DONE).map(|_| first)
    }

    fn map(&self, of: Endpoint, name: u64) -> Result<Option<OwnedFd>, IpcError> {
        self.ask(Ask { value: name, ..Ask::new(ask::MAP, of) }, None)
    }
}

#[test]
fn dvkd_gives_lent_memory_to_nobody_else_and_takes_nothing_that_could_end_a_borrower() {
    let cluster = Cluster::start();
    let (owner, friend) = (cluster.bind(1), cluster.bind(1));
    let stranger = Raw::bind(&cluster, Ask::hello(kind::PEER, 0, 7));
    let lent = owner.lend(friend.endpoint(), 5000, Access::Read).unwrap();
    let for_all = owner.lend(Endpoint::ANY, 5000, Access::Read).unwrap();
    let memory = owner.endpoint().memory();
    // Without a channel, which dvkd gives to those who may copy: nothing.
    for name in [1, 2, 3] {
        assert_eq!(stranger.map(memory, name).err(), Some(IpcError::Denied), "{name}");
    }
    stranger.connection.open(memory).unwrap();
    assert_eq!(stranger.map(memory, 1).err(), Some(IpcError::Denied), "it is another's");
    assert_eq!(stranger.map(memory, 3).err(), Some(IpcError::Stale), "there is no such");
    assert_eq!(stranger.map(owner.endpoint(), 2).err(), Some(IpcError::Denied));
    let fd = stranger.map(memory, 2).unwrap().unwrap();
    let seen = Lent::map(fd.as_fd(), 5000, false).unwrap();
    assert!(seen.is_lent());
    // To be read only: neither mapped nor written through the descriptor, nor made shorter, nor with a hole in it.
    assert_eq!(Lent::map(fd.as_fd(), 5000, true).err(), Some(IpcError::Denied));
    assert!(rustix::io::write(&fd, b"x").is_err());
    assert!(rustix::fs::ftruncate(&fd, 0).is_err());
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert!(rustix::fs::fallocate(&fd, hole, 0, 4096).is_err());
    drop(for_all);
    assert!(!seen.is_lent());
    assert_eq!(stranger.map(memory, 2).err(), Some(IpcError::Stale));
    drop(lent);
    // Only a memory side lends, and only what is always there.
    let memory_of = Ask { to: stranger.endpoint, ..Ask::hello(kind::MEMORY, 0, 8) };
    let side = Raw::bind(&cluster, memory_of);
    let lend = |by: &Raw, fd: BorrowedFd<'_>| {
        by.ask(Ask { value: 1, ..Ask::new(ask::LEND, Endpoint::ANY) }, Some(fd)).map(drop)
    };
    let (_own, good) = Lent::create(5000, false).unwrap();
    assert_eq!(lend(&stranger, good.as_fd()), Err(IpcError::Protocol));
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert_eq!(lend(&side, file.as_fd()), Err(IpcError::Protocol));
    let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
    let unsealed = rustix::fs::memfd_create("unsealed", flags).unwrap();
    rustix::fs::ftruncate(&unsealed, 12_288).unwrap();
    assert_eq!(lend(&side, unsealed.as_fd()), Err(IpcError::Protocol));
    assert_eq!(lend(&side, good.as_fd()), Ok(()));
}
