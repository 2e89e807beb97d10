//! What the agents remember: how often the server is asked, and that nobody is told what is not so any more.

use crate::programs::World;
use calls::Row;
use calls::vfs::{Flush, Fsync, Getattr, Lookup, Recalls};
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::{Cred, Endpoint, Wait};

/// Calls `R` and `S` that running `script` makes.
fn asked<R: Row, S: Row>(world: &World, script: &str) -> usize {
    let before = world.vos.served::<R>() + world.vos.served::<S>();
    world.python(script);
    world.vos.served::<R>() + world.vos.served::<S>() - before
}

#[test]
fn what_is_remembered_nobody_is_asked_for_again() {
    let Some(world) = World::new(2) else { return };
    world.sh("mkdir -p a/b; echo 1 > a/b/f; chmod 700 a/b");
    let script = "
f = open('a/b/f')
for i in range(100):
    assert os.stat('a/b/f').st_size == 2 and os.fstat(f.fileno()).st_size == 2
    assert not os.path.exists('a/b/no') and not os.path.exists('no/no')
";
    // A machine that is busy may let the session lapse now and then.
    let counts: Vec<usize> = (0..20).map(|_| asked::<Lookup, Getattr>(&world, script)).collect();
    assert!(counts.iter().any(|count| *count < 40), "of 800 looks: {counts:?}");
}

#[test]
fn closing_a_file_asks_only_for_who_has_locked_it() {
    let Some(world) = World::new(1) else { return };
    world.sh(": > f");
    let close = "
for i in range(50):
    a = os.open('f', os.O_RDWR); b = os.dup(a); os.close(a); os.close(b)
";
    assert_eq!(asked::<Flush, Fsync>(&world, close), 0);
    // As POSIX has it: closing any descriptor of the file drops all its locks.
    let locked = "
a = os.open('f', os.O_RDWR); b = os.open('f', os.O_RDWR)
fcntl.lockf(a, fcntl.LOCK_EX)
def lock(f):
    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(f, fcntl.LOCK_UN)
def is_locked():
    fails(errno.EAGAIN, lock, os.open('f', os.O_RDWR))
join(spawn(is_locked))
os.close(b)
join(spawn(lambda: lock(os.open('f', os.O_RDWR))))
fcntl.lockf(a, fcntl.LOCK_EX)
join(spawn(is_locked))
os.close(a)
join(spawn(lambda: lock(os.open('f', os.O_RDWR))))
";
    assert!(asked::<Flush, Fsync>(&world, locked) > 0);
}

#[test]
fn an_agent_that_is_not_answered_for_a_while_tells_nothing_from_memory() {
    let Some(world) = World::new(2) else { return };
    world.sh("mkdir d; echo 1 > d/f");
    world.python("for i in range(100): os.stat('d/f')");
    // Calls end with an error now; the other node's are not made at all.
    world.vos.set_down(true);
    // Until the session lapses; then there is nobody to ask.
    world.sh_outside("while stat $N1/d/f > /dev/null 2>&1; do :; done");
    world.vos.set_down(false);
    world.sh("test $(stat -c %s d/f) = 2; echo 22 > $N2/d/f; test $(stat -c %s d/f) = 3");
}

#[test]
fn only_an_agent_speaks_of_leases() {
    let world = crate::hosted::Vos::new();
    let node = world.node(1);
    let begin = |cred: Cred| {
        let mut encoded = [0; CRED_SIZE_MAX];
        let len = cred.encode(&mut encoded);
        let row = Recalls { session: 0, forgotten: 0 };
        calls::call(&node, Endpoint::VFS, &row, &[&encoded[..len]], &mut [], Wait::FOREVER)
            .map(|(recalled, _)| recalled.session != 0)
            .map_err(|error| error.errno)
    };
    assert_eq!(begin(Cred::new(7, 0, 0)), Err(libc::EPERM));
    assert_eq!(begin(Cred::new(0, 7, 0)), Err(libc::EPERM));
    assert_eq!(begin(Cred::new(0, 0, 0)), Ok(true));
}
