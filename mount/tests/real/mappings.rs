//! Files that programs of two nodes have mapped: memory that they share.

use crate::programs::World;

/// `shared(node, name)`: a mapping of 16 pages, and the file.
const SHARED: &str = "
PAGE = 4096
import faulthandler; faulthandler.enable()
def shared(node, name, prot=mmap.PROT_READ | mmap.PROT_WRITE):
    flags = os.O_RDWR | os.O_CREAT if prot & mmap.PROT_WRITE else os.O_RDONLY
    fd = os.open(N[node] + '/' + name, flags, 0o666)
    if prot & mmap.PROT_WRITE:
        os.ftruncate(fd, 16 * PAGE)
    return mmap.mmap(fd, 16 * PAGE, mmap.MAP_SHARED, prot), fd
";

/// Runs a script; nobody has been given up meanwhile.
fn python(world: &World, script: &str) {
    world.python(&format!("{SHARED}{script}"));
    assert_eq!(world.vos.sessions(), 2, "somebody has waited until a session was over");
}

#[test]
fn what_one_node_stores_the_other_loads() {
    let Some(world) = World::new(2) else { return };
    python(
        &world,
        "
(a, fa), (b, fb) = shared(1, 'm'), shared(2, 'm')
r, fr = shared(2, 'm', mmap.PROT_READ)
for i in range(100):
    p = i % 16 * PAGE
    a[p] = i; assert b[p] == i and r[p] == i
    b[p + 7] = i + 1; assert a[p + 7] == i + 1 and a[p] == i and r[p + 7] == i + 1
",
    );
}

#[test]
fn read_and_write_see_mappings_and_are_seen_in_them() {
    let Some(world) = World::new(2) else { return };
    python(
        &world,
        "
(a, fa), (b, fb) = shared(1, 'm'), shared(2, 'm')
for i in range(60):
    p = i % 16 * PAGE
    a[p] = i + 1
    assert os.pread(fb, 2, p) == bytes([i + 1, 0])
    assert os.pread(fa, 1, p) == bytes([i + 1])
    os.pwrite(fb, b'xyz', p + 1)
    assert a[p:p + 5] == bytes([i + 1]) + b'xyz\\0' and b[p + 3] == ord('z')
    os.pwrite(fa, b'Y', p + 2)
    assert b[p + 1:p + 4] == b'xYz' and a[p + 2] == ord('Y')
    assert open(N[2] + '/m', 'rb').read()[p:p + 4] == bytes([i + 1]) + b'xYz'
    a[p:p + 4] = bytes(4)
    if i % 7 == 0:
        a.flush()
",
    );
}

#[test]
fn stores_of_two_nodes_to_one_page_are_all_there() {
    let Some(world) = World::new(2) else { return };
    python(
        &world,
        "
a, _ = shared(1, 'm')
def fill(node):
    m, fd = shared(node, 'm')
    for i in range(node, PAGE, 2):
        m[i] = node; m[PAGE + i] = node
    for i in range(node, PAGE, 2):
        assert m[i] == node and m[PAGE + i] == node
join(spawn(fill, 1), spawn(fill, 2))
assert a[1:PAGE] == bytes([1, 2] * (PAGE // 2))[:PAGE - 1]
assert open('m', 'rb').read()[PAGE + 1:2 * PAGE] == a[1:PAGE]
",
    );
}

#[test]
fn what_a_lock_protects_in_a_mapping_it_protects_on_all_nodes() {
    let Some(world) = World::new(2) else { return };
    python(
        &world,
        "
m, fd = shared(1, 'm')
def add(node):
    m, fd = shared(node, 'm')
    for _ in range(100):
        fcntl.lockf(fd, fcntl.LOCK_EX)
        old, = struct.unpack('i', m[8:12]); m[8:12] = struct.pack('i', old + 1)
        fcntl.lockf(fd, fcntl.LOCK_UN)
join(spawn(add, 1), spawn(add, 2), spawn(add, 2))
assert struct.unpack('i', m[8:12]) == (300,)
",
    );
}

#[test]
fn a_file_that_is_cut_or_punched_is_so_in_all_mappings() {
    let Some(world) = World::new(2) else { return };
    python(
        &world,
        "
libc = ctypes.CDLL(None, use_errno=True)
(a, fa), (b, fb) = shared(1, 'm'), shared(2, 'm')
for i in range(20):
    a[0:16 * PAGE] = bytes([65 + i]) * 16 * PAGE
    assert b[5 * PAGE] == 65 + i
    b[5 * PAGE] = 1; b[100] = 2
    os.ftruncate(fa, 100)
    os.ftruncate(fb, 16 * PAGE)
    # Its kernel asks how long the file is by now.
    assert os.fstat(fa).st_size == 16 * PAGE
    assert a[99] == 65 + i and a[100] == 0 and a[5 * PAGE] == 0, i
    assert b[99] == 65 + i and b[100] == 0 and b[5 * PAGE] == 0, i
    a[3 * PAGE] = 3; b[4 * PAGE] = 4; a[6 * PAGE] = 5
    assert libc.fallocate(fb, 3, ctypes.c_long(3 * PAGE), ctypes.c_long(2 * PAGE)) == 0
    assert a[3 * PAGE] == a[4 * PAGE] == b[3 * PAGE] == b[4 * PAGE] == 0 and b[6 * PAGE] == 5
    a[7 * PAGE] = 7
    assert os.copy_file_range(fb, fb, PAGE, 7 * PAGE, 8 * PAGE) == PAGE
    assert a[8 * PAGE] == 7
    a[9 * PAGE] = 9
    assert os.lseek(fb, 9 * PAGE, os.SEEK_DATA) == 9 * PAGE
    a[10 * PAGE] = 10
    assert os.lseek(fa, 10 * PAGE, os.SEEK_DATA) == 10 * PAGE
",
    );
}

#[test]
fn who_cuts_a_file_that_others_have_changed_and_cut_does_not_wait_for_them() {
    let Some(world) = World::new(2) else { return };
    python(
        &world,
        "
maps = [None, shared(1, 'm'), shared(2, 'm')]
def cut(node):
    m, fd = maps[node]
    for i in range(100):
        os.ftruncate(fd, 16 * PAGE)
        try:
            os.pwrite(fd, b'x', 16 * PAGE - 1)
            m[node * PAGE] = i & 255
        finally:
            os.ftruncate(fd, 8 * PAGE)
join(spawn(cut, 1), spawn(cut, 2))
(m, fd), (n, _) = maps[1:]
os.ftruncate(fd, 16 * PAGE)
m[PAGE] = 9
assert n[PAGE] == 9
",
    );
}

#[test]
fn a_file_that_is_mapped_can_be_read_ahead_and_executed() {
    let Some(world) = World::new(2) else { return };
    world.sh("
        cp /bin/ls $N1/ls; $N2/ls $N2 > /dev/null; cat $N2/ls | cmp - /bin/ls
        head -c 3000000 /dev/urandom > $N1/big; cmp $N1/big $N2/big
    ");
    python(
        &world,
        "
size = 3000000
fd = os.open(N[2] + '/big', os.O_RDWR)
b = mmap.mmap(fd, size)
whole = open(N[1] + '/big', 'rb').read()
assert b[:] == whole
a = mmap.mmap(os.open(N[1] + '/big', os.O_RDWR), size)
for i in range(0, size, 50000):
    a[i] = 7
    assert b[i] == 7
assert b[:] == a[:]
",
    );
}

#[test]
fn who_has_looked_how_long_a_file_is_may_use_it_to_its_end() {
    let Some(world) = World::new(2) else { return };
    python(
        &world,
        "
(a, fa), (b, fb) = shared(1, 'm'), shared(2, 'm')
r, w = os.pipe()
def disturb(m):
    'page 0 goes to and fro, of which the kernel is told as of an inode that has changed'
    os.close(w)
    os.set_blocking(r, False)
    i = 0
    while True:
        try:
            if os.read(r, 1) == b'':
                return
        except BlockingIOError:
            pass
        i += 1
        m[i % 1000] = i & 255
all = [spawn(disturb, a), spawn(disturb, b), spawn(disturb, b)]
os.close(r)
for i in range(20):
    os.ftruncate(fa, PAGE)
    assert os.fstat(fb).st_size == PAGE
    for n in range(2, 17):
        os.ftruncate(fa, n * PAGE)
        assert os.fstat(fb).st_size == n * PAGE
        assert b[n * PAGE - 1] == 0
        b[n * PAGE - 1] = n
        assert a[n * PAGE - 1] == n
os.close(w)
join(*all)
",
    );
}
