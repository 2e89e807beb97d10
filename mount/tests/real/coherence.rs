//! Two nodes, one tree: what one has changed the other sees at once.

use crate::programs::World;

#[test]
fn a_change_is_seen_everywhere_as_soon_as_its_call_has_returned() {
    let Some(world) = World::new(2) else { return };
    world.sh("
        echo 1 > $N1/a; test $(cat $N2/a) = 1; echo 22 > $N2/a; test $(cat $N1/a) = 22
        test $(stat -c %s $N1/a) = 3; echo 333 >> $N1/a; test $(stat -c %s $N2/a) = 7
        chmod 600 $N2/a; test $(stat -c %a $N1/a) = 600
        test ! -e $N2/b; : > $N1/b; test -e $N2/b; rm $N2/b; test ! -e $N1/b
        mkdir $N1/d; ls $N2 | grep -qx d; : > $N2/d/x; ls $N1/d | grep -qx x
        mv $N2/d $N2/e; test ! -e $N1/d; test -e $N1/e/x
        ln -s one $N1/s; ln -sfn two $N2/s; test $(readlink $N1/s) = two
        truncate -s 100 $N2/a; test $(wc -c < $N1/a) = 100
        test $(stat -c %i $N1/e/x) = $(stat -c %i $N2/e/x)
    ");
}

#[test]
fn an_open_file_and_a_new_mapping_show_what_the_other_node_has_written() {
    let Some(world) = World::new(2) else { return };
    world.python(
        "
a = open(N[1] + '/f', 'wb+', buffering=0); b = open(N[2] + '/f', 'rb+', buffering=0)
for i in range(50):
    data = bytes([i]) * (i * 300 + 1)
    a.seek(0); a.write(data)
    assert os.pread(b.fileno(), 20000, 0) == data
    assert os.fstat(b.fileno()).st_size == len(data)
    m = mmap.mmap(b.fileno(), len(data), mmap.MAP_SHARED, mmap.PROT_READ)
    assert m[:] == data
    m.close()
a.truncate(2)
assert os.lseek(b.fileno(), 0, os.SEEK_END) == 2
m = mmap.mmap(b.fileno(), 2); m[0:2] = b'mm'; m.flush(); m.close()
assert os.pread(a.fileno(), 10, 0) == b'mm'
",
    );
}

#[test]
fn appends_of_all_nodes_are_all_there_and_whole() {
    let Some(world) = World::new(2) else { return };
    world.python(
        "
def late(path):
    'O_APPEND set after open, as fdopen(3) does'
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd
def early(path):
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def append(opener, place, who):
    fd = opener(place + '/log')
    for i in range(200):
        os.write(fd, f'{who} {i}\\n'.encode() * 3)
join(*[spawn(append, opener, N[n], opener.__name__ + str(n)) for opener in (early, late) for n in (1, 2)])
lines = open('log').read().splitlines()
assert len(lines) == 4 * 200 * 3
assert all(lines[i] == lines[i + 1] == lines[i + 2] for i in range(0, len(lines), 3))
assert len(set(lines)) == 4 * 200
fd = early('log'); fcntl.fcntl(fd, fcntl.F_SETFL, 0)
os.pwrite(fd, b'START', 0)
assert open('log').read(5) == 'START'
",
    );
}

#[test]
fn large_records_are_appended_and_written_whole() {
    let Some(world) = World::new(2) else { return };
    world.python(
        "
SIZE = 300000
def append(place, who):
    fd = os.open(place + '/log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for i in range(20):
        assert os.write(fd, bytes([who]) * SIZE) == SIZE
def write(place, who):
    fd = os.open(place + '/one', os.O_RDWR | os.O_CREAT)
    for i in range(20):
        assert os.pwrite(fd, bytes([who]) * SIZE, 5) == SIZE
join(*[spawn(append, N[n], 2 * n + k) for n in (1, 2) for k in (0, 1)])
join(*[spawn(write, N[n], n) for n in (1, 2)])
data = open('log', 'rb').read()
assert len(data) == 80 * SIZE
records = [data[i:i + SIZE] for i in range(0, len(data), SIZE)]
assert all(r == r[:1] * SIZE for r in records), [set(r) for r in records]
data = open('one', 'rb').read()[5:]
assert data == data[:1] * SIZE
big = os.urandom(5000000)
fd = os.open('big', os.O_RDWR | os.O_CREAT)
assert os.write(fd, big) == len(big) and os.pread(fd, len(big), 0) == big
",
    );
}

#[test]
fn a_name_that_is_replaced_is_there_all_the_time() {
    let Some(world) = World::new(2) else { return };
    world.python(
        "
open('a', 'w').write('x')
r, w = os.pipe()
def replace():
    i = 0
    while os.read(r, 1) == b'.':
        for _ in range(3):
            open(N[2] + '/tmp', 'w').write('x'); os.rename(N[2] + '/tmp', N[2] + '/a')
p = spawn(replace)
os.close(r)
for _ in range(300):
    os.write(w, b'.')
    assert open('a').read() == 'x'
    os.stat('a'); os.chmod('a', 0o644); os.access('a', os.R_OK); os.listxattr('a')
os.write(w, b'-')
join(p)
",
    );
}

#[test]
fn one_of_many_creators_wins() {
    let Some(world) = World::new(2) else { return };
    world.python(
        "
def create(place, w):
    won = 0
    for i in range(200):
        try:
            os.close(os.open(f'{place}/{i}', os.O_CREAT | os.O_EXCL | os.O_WRONLY)); won += 1
        except FileExistsError:
            pass
        try:
            os.mkdir(f'{place}/d{i}'); won += 1
        except FileExistsError:
            pass
        os.close(os.open(f'{place}/both{i}', os.O_CREAT | os.O_WRONLY))
    os.write(w, struct.pack('i', won))
r, w = os.pipe()
join(spawn(create, N[1], w), spawn(create, N[2], w))
assert sum(struct.unpack('2i', os.read(r, 8))) == 400
",
    );
}

#[test]
fn a_server_that_is_down_is_told_to_the_program_and_forgiven() {
    let Some(world) = World::new(1) else { return };
    world.sh("echo 1 > a");
    world.vos.set_down(true);
    let down = world.sh_outside("LC_ALL=C cat $N1/a 2>&1 || true");
    assert!(down.ends_with("Host is down"), "{down}");
    world.vos.set_down(false);
    world.sh("test $(cat a) = 1; echo 2 > a; python3 -c 'import os; os.setxattr(\"a\", \"user.x\", b\"1\")'");
}
