//! Locks: fcntl, flock and OFD, waiting and not, on one node and across nodes.

use crate::programs::World;

#[test]
fn a_waiting_lock_is_granted_when_the_holder_lets_go() {
    let Some(world) = World::new(2) else { return };
    for (lock, number) in [("lockf", "FCNTL"), ("flock", "FLOCK")] {
        world.python(&format!(
            "
f = open('{lock}', 'w'); fcntl.{lock}(f, fcntl.LOCK_EX)
def waiter(place):
    g = open(place + '/{lock}', 'r+')
    fails(errno.EAGAIN, fcntl.{lock}, g, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.{lock}(g, fcntl.LOCK_EX)
    assert g.read() == 'released'
ps = [spawn(waiter, N[1]), spawn(waiter, N[2])]
for p in ps:
    waits_in(p, {number})
f.write('released'); f.flush()
fcntl.{lock}(f, fcntl.LOCK_UN)
join(*ps)
"
        ));
    }
}

#[test]
fn a_counter_under_a_lock_loses_no_step() {
    let Some(world) = World::new(3) else { return };
    for lock in ["lockf", "flock"] {
        world.python(&format!(
            "
open('{lock}', 'w').write('0')
def count(place):
    for _ in range(100):
        with open(place + '/{lock}', 'r+') as f:
            fcntl.{lock}(f, fcntl.LOCK_EX)
            value = int(f.read()); f.seek(0); f.write(str(value + 1))
join(*[spawn(count, place) for place in N[1:]])
assert open('{lock}').read() == '300', open('{lock}').read()
"
        ));
    }
}

#[test]
fn flock_and_record_locks_do_not_see_each_other() {
    let Some(world) = World::new(2) else { return };
    world.python(
        "
f = open('a', 'w'); fcntl.flock(f, fcntl.LOCK_EX)
def child():
    for place in N[1:]:
        g = open(place + '/a', 'r+')
        fails(errno.EAGAIN, fcntl.flock, g, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(g, fcntl.LOCK_UN)
join(spawn(child))
fcntl.flock(f, fcntl.LOCK_UN)
fcntl.lockf(f, fcntl.LOCK_EX)
def child():
    for place in N[1:]:
        g = open(place + '/a', 'r+')
        fails(errno.EAGAIN, fcntl.lockf, g, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(g, fcntl.LOCK_UN)
join(spawn(child))
",
    );
}

#[test]
fn each_kind_of_lock_goes_when_posix_says() {
    let Some(world) = World::new(2) else { return };
    world.python(
        "
def free(lock):
    def probe():
        g = open(N[2] + '/a', 'r+')
        try:
            lock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            sys.exit(1 if e.errno == errno.EAGAIN else 2)
    p = spawn(probe); p.join()
    assert p.exitcode in (0, 1)
    return p.exitcode == 0
f = open('a', 'w')
fcntl.lockf(f, fcntl.LOCK_EX)
assert not free(fcntl.lockf)
open('a').close()
assert free(fcntl.lockf), 'a record lock goes with any close of the file by its process'
fcntl.flock(f, fcntl.LOCK_EX); dup = os.dup(f.fileno()); f.close()
assert not free(fcntl.flock), 'a flock stays until the last descriptor is closed'
open('a').close()
assert not free(fcntl.flock)
os.close(dup)
while not free(fcntl.flock):  # RELEASE is not waited for by close
    os.sched_yield()
f = open('a', 'r+')
OFD = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)
fcntl.fcntl(f, 37, OFD)
assert not free(fcntl.lockf)
open('a').close()
assert not free(fcntl.lockf), 'an OFD lock stays with its description'
f.close()
while not free(fcntl.lockf):
    os.sched_yield()
def holder():
    g = open('a', 'r+'); fcntl.lockf(g, fcntl.LOCK_EX); fcntl.flock(g, fcntl.LOCK_EX)
    os.kill(os.getpid(), signal.SIGKILL)
p = spawn(holder); p.join()
while not (free(fcntl.lockf) and free(fcntl.flock)):
    os.sched_yield()
",
    );
}

#[test]
fn a_lock_in_the_way_is_told_and_a_deadlock_is_refused() {
    let Some(world) = World::new(1) else { return };
    world.python(
        "
f = open('a', 'w+'); f.write('x' * 100); f.flush()
fcntl.lockf(f, fcntl.LOCK_EX, 10, 20)
def child():
    g = open('a', 'r+')
    def get(kind, start, length):
        asked = struct.pack('hhqqi4x', kind, 0, start, length, 0)
        return struct.unpack('hhqqi4x', fcntl.fcntl(g, fcntl.F_GETLK, asked))
    assert get(fcntl.F_RDLCK, 0, 0) == (fcntl.F_WRLCK, 0, 20, 10, os.getppid())
    assert get(fcntl.F_WRLCK, 30, 5)[0] == fcntl.F_UNLCK
    fcntl.lockf(g, fcntl.LOCK_EX, 10, 50)
    os.write(w, b'!')
    sys.exit(refused(g, 20))
def refused(file, start):
    'both want what the other has: one of them is refused, and gives up what it has'
    try:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, start)
        return 0
    except OSError as e:
        assert e.errno == errno.EDEADLK
        return 1
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)
r, w = os.pipe()
p = spawn(child)
os.read(r, 1)
here = refused(f, 50)
p.join()
assert here + p.exitcode == 1, (here, p.exitcode)
",
    );
}

#[test]
fn those_who_wait_for_locks_hold_up_nobody_else() {
    let Some(world) = World::new(1) else { return };
    world.python(
        "
f = open('a', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)
def waiter():
    fcntl.lockf(open('a', 'r+'), fcntl.LOCK_EX)
ps = [spawn(waiter) for _ in range(40)]
for p in ps:
    waits_in(p, FCNTL)
for i in range(100):
    open(f'f{i}', 'w').write('x')
assert len(os.listdir('.')) == 101
fcntl.lockf(f, fcntl.LOCK_UN)
join(*ps)
",
    );
}

#[test]
fn the_command_flock_excludes_between_nodes() {
    let Some(world) = World::new(2) else { return };
    world.sh("
        echo 0 > n; : > l
        step() { flock $1/l sh -c 'echo $(($(cat $0/n) + 1)) > $0/n' $1; }
        many() { for i in $(seq 25); do step $1; done; }
        many $N1 & a=$!; many $N2 & b=$!; wait $a; wait $b
        test $(cat n) = 50
    ");
}
