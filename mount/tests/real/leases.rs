//! What the agents remember: how often the server is asked, and that nobody is told what is not so any more.

use crate::programs::World;
use calls::Row;
use calls::vfs::{Flush, Fsync, Getattr, Lookup, Open, Read, Readdir, Recalls, Release};
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
fn what_a_program_has_made_it_need_not_ask_for() {
    let Some(world) = World::new(1) else { return };
    world.sh("mkdir d; : > d/warm");
    let script = "
for i in range(1000): os.stat('d/warm')
os.mkdir('d/sub')
for i in range(50):
    name = f'd/sub/{i}'
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600))
    assert os.stat(name).st_mode == 0o100600
    os.chmod(name, 0o640)
    assert os.stat(name).st_mode == 0o100640
    os.rename(name, name + 'x')
    assert not os.path.exists(name) and os.stat(name + 'x').st_mode == 0o100640
    os.link(name + 'x', name)
    assert os.stat(name).st_nlink == 2
    os.unlink(name + 'x')
    assert not os.path.exists(name + 'x') and os.stat(name).st_nlink == 1
    os.symlink('x', name + 'l')
    assert os.lstat(name + 'l').st_size == 1
    os.unlink(name + 'l')
    os.unlink(name)
    assert not os.path.lexists(name)
os.rmdir('d/sub')
assert not os.path.exists('d/sub')
";
    // Of 25 looks a round three are the first at a name, and one at a file whose other name has gone; and with each of eight changes
    // the directory's own attributes change. A machine that is busy may let the session lapse now and then.
    let counts: Vec<usize> = (0..20).map(|_| asked::<Lookup, Getattr>(&world, script)).collect();
    assert!(counts.iter().any(|count| *count < 50 * 3), "{counts:?}");
}

#[test]
fn a_file_that_is_made_and_removed_costs_three_calls() {
    let Some(world) = World::new(1) else { return };
    let made = || {
        let before = (world.requests(), world.vos.served_in_all());
        world.python(
            "
for i in range(200): os.path.exists('f')
for i in range(200):
    os.close(os.open('f', os.O_CREAT | os.O_RDWR))
    os.unlink('f')
",
        );
        let count = (world.requests() - before.0, world.vos.served_in_all() - before.1);
        // And the first looks, and some of the interpreter's.
        count.0 < 200 + 200 * 7 + 60 && count.1 < 200 * 3 + 60
    };
    // Create, Release, Unlink; the kernel asks for two LOOKUP and FLUSH besides, and says FORGET.
    assert!((0..20).any(|_| made()));
}

#[test]
fn a_file_that_is_read_again_and_again_is_opened_without_asking() {
    let Some(world) = World::new(2) else { return };
    world.sh("echo 12345 > f; mkdir d");
    let script = "
for i in range(300):
    with open('f', 'rb', buffering=0) as f:
        assert f.read(100) == b'12345\\n'
        assert os.fstat(f.fileno()).st_size == 6
";
    let counts: Vec<usize> = (0..20).map(|_| asked::<Open, Read>(&world, script)).collect();
    assert!(counts.iter().any(|count| *count < 100), "{counts:?}");
    let counts: Vec<usize> = (0..5).map(|_| asked::<Release, Release>(&world, script)).collect();
    assert!(counts.iter().any(|count| *count < 100), "{counts:?}");
}

#[test]
fn a_directory_that_is_listed_again_and_again_is_listed_without_asking() {
    let Some(world) = World::new(2) else { return };
    world.sh("mkdir d; cd d; seq 0 499 | xargs touch; mkdir -m 700 ../secret; : > ../secret/x");
    let script = "
for i in range(50):
    with os.scandir('d') as found: assert {int(entry.name) for entry in found} == set(range(500))
";
    let counts: Vec<usize> = (0..20).map(|_| asked::<Open, Readdir>(&world, script)).collect();
    assert!(counts.iter().any(|count| *count < 20), "{counts:?}");
    world.python(
        "
said, looks = multiprocessing.Array('q', 2, lock=False), multiprocessing.Array('q', 1, lock=False)
def look():
    'what was said to be made before is there, what was said to be removed is not'
    held = os.open(N[1] + '/d', os.O_RDONLY)
    while said[1] == 0:
        least = said[0]
        for where in N[1] + '/d', held:
            if where == held: os.lseek(held, 0, os.SEEK_SET)
            names = set(os.listdir(where))
            assert all(f'new{i}' in names for i in range(least)), (least, names)
            assert all(str(i) not in names for i in range(least)), least
        looks[0] += 1
one = spawn(look)
for i in range(60):
    node = N[1 + i % 2]
    open(f'{node}/d/new{i}', 'w').close()
    os.unlink(f'{node}/d/{i}')
    said[0] = i + 1
    if i % 10 == 0:
        # Long enough for it to be remembered again.
        count = looks[0]
        while looks[0] < count + 200: assert one.is_alive()
said[1] = 1
join(one)
for i in range(50): assert os.listdir('secret') == ['x']
def as_nobody():
    os.setgid(65534)
    os.setuid(65534)
    for i in range(50):
        os.stat('secret')
        fails(errno.EACCES, os.listdir, 'secret')
os.chmod(N[1], 0o755)
join(spawn(as_nobody))
",
    );
}

#[test]
fn a_file_that_was_opened_without_asking_is_open_whatever_becomes_of_it() {
    let Some(world) = World::new(2) else { return };
    world.sh("chmod 777 .");
    world.python(
        "
os.umask(0)
def fresh(name, mode=0o644):
    path = N[1] + '/' + name
    with open(path, 'w') as f: f.write(name)
    os.chmod(path, mode)
    # Until it may be opened without asking.
    for i in range(50):
        os.stat(path)
        os.close(os.open(path, os.O_RDONLY))
    return path
def unlinks(path): os.unlink(path)
def replaces(path):
    open(path + '.new', 'w').close()
    os.rename(path + '.new', path)
def closes(path): os.chmod(path, 0)
def writes(path):
    with open(path, 'r+') as f: f.write('X')
def as_nobody():
    'opens each file while it may, and reads it when it has been taken away'
    os.setgid(65534)
    os.setuid(65534)
    for number, act in enumerate([unlinks, replaces, closes, writes]):
        for node in 1, 2:
            name = f'f{number}{node}'
            go[0] += 1
            while go[1] < go[0]: os.sched_yield()
            path = N[1] + '/' + name
            some = [os.open(path, os.O_RDONLY) for i in range(3)]
            go[0] += 1
            while go[1] < go[0]: os.sched_yield()
            for fd in some:
                found = os.pread(fd, 100, 0).decode()
                assert found == ('X' + name[1:] if act == writes else name), (act, node, found)
                assert os.fstat(fd).st_nlink == (0 if act in (unlinks, replaces) else 1)
                os.close(fd)
            if act == closes: fails(errno.EACCES, os.open, path, os.O_RDONLY)
go = multiprocessing.Array('q', 2, lock=False)
opener = spawn(as_nobody)
def reached(count):
    while go[0] < count: assert opener.is_alive()
count = 0
for number, act in enumerate([unlinks, replaces, closes, writes]):
    for node in 1, 2:
        name = f'f{number}{node}'
        count += 1
        reached(count)
        fresh(name)
        go[1] = count
        count += 1
        reached(count)
        act(N[node] + '/' + name)
        go[1] = count
join(opener)
",
    );
}

#[test]
fn who_may_not_read_opens_nothing_from_memory() {
    let Some(world) = World::new(1) else { return };
    world.sh(
        "chmod 755 .; : > list; : > own; : > group; chmod 644 list; chmod 200 own; chmod 640 group",
    );
    world.python(
        "
# An access control list with an entry for user 65534, which may nothing (linux/posix_acl_xattr.h).
entries = [(1, 6, 2**32 - 1), (2, 0, 65534), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 4, 2**32 - 1)]
value = struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)
os.setxattr('list', 'system.posix_acl_access', value)
os.chown('own', 65534, 0)
for i in range(500):
    for name in ['list', 'own', 'group']: os.close(os.open(name, os.O_RDONLY))
def as_nobody():
    os.setgid(65534)
    os.setuid(65534)
    for i in range(500):
        for name in ['list', 'own', 'group']:
            os.stat(name)
            fails(errno.EACCES, os.open, name, os.O_RDONLY)
join(spawn(as_nobody))
",
    );
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
fn pages_that_the_kernel_has_are_read_without_asking_and_never_old() {
    let Some(world) = World::new(2) else { return };
    let before = world.vos.served::<Read>();
    let output = world.python(
        "
said, reads = (multiprocessing.Array('q', 4, lock=False) for _ in range(2))
path = ['', N[1] + '/f', N[2] + '/f']
with open(path[2], 'wb') as f: f.write(bytes(8192))
def number(data):
    numbers = set(struct.unpack('512q', data))
    assert len(numbers) == 1, numbers
    return numbers.pop()
def reader(me, look):
    'what was said to be written before a look is seen by it'
    while said[1] == 0:
        least = said[0]
        found = look()
        assert found >= least, (me, found, least)
        reads[me] += 1
# Until there is a session.
for i in range(1000): os.stat(path[1])
kept = os.open(path[1], os.O_RDONLY)
os.pread(kept, 8192, 0)
def by_kept(): return number(os.pread(kept, 4096, 4096))
def by_fresh():
    with open(path[1], 'rb', buffering=0) as f:
        f.seek(4096)
        return number(f.read(4096))
def by_mapping():
    with open(path[1], 'rb') as f:
        with mmap.mmap(f.fileno(), 8192, prot=mmap.PROT_READ) as m: return number(m[4096:])
# A mapping shows what it did when it was made, or later.
readers = [spawn(reader, at, look) for at, look in enumerate([by_kept, by_fresh])]
def write(node, at):
    with open(path[node], 'r+b', buffering=0) as f:
        for i in range(at, at + 10):
            f.seek(4096)
            f.write(struct.pack('q', i) * 512)
            # As if nothing had happened: same size, same time.
            os.utime(f.fileno(), (5, 5))
            said[0] = i
at = 1
for burst in range(6):
    # Mostly from the other node, and now and then from this one.
    write(1 if burst == 3 else 2, at)
    at += 10
    # Long enough for leases to be given again.
    count = list(reads)
    while any(reads[k] < count[k] + 10000 for k in (0, 1)):
        assert all(r.is_alive() for r in readers)
    assert by_mapping() == at - 1
said[1] = 1
join(*readers)
print(sum(reads))
",
    );
    let asked = world.vos.served::<Read>() - before;
    let reads: usize = output.parse().unwrap();
    assert!(asked < reads / 2, "{asked} of {reads} reads were asked for");
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
