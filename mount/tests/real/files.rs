//! Files of one node, used by programs that nobody rewrote.

use crate::programs::{World, have};

#[test]
fn the_shell_and_its_tools_work() {
    let Some(world) = World::new(1) else { return };
    world.sh("
        echo one > a; echo two >> a; test \"$(cat a)\" = \"one
two\"
        mkdir -p d/e/f; cp a d/e/f/g; cp -r d d2; diff -r d d2
        cp -a d d3; test $(stat -c %Y d/e/f/g) = $(stat -c %Y d3/e/f/g)
        mv d2 d/moved; test -f d/moved/e/f/g
        mv a b; test ! -e a
        ln b hard; test $(stat -c %h b) = 2; ln -s b soft; test $(readlink soft) = b
        echo three >> soft; tail -n 1 hard | grep -x three
        rm b; test $(stat -c %h hard) = 1; fails cat soft
        seq 1000 | sort -R | sort -n > sorted; seq 1000 | cmp - sorted
        find . -name g | sort | tr '\\n' ' ' | grep -x './d/e/f/g ./d/moved/e/f/g ./d3/e/f/g '
        tar cf d.tar d; mkdir x; tar xf d.tar -C x; diff -r d x/d
        rm -rf d d3 x; test $(ls | wc -l) = 4
        fails rmdir none; mkdir full; touch full/x; fails rmdir full
        df . | grep -q dvs; ls -la | grep -q ' \\.\\.$'
    ");
}

/// What the FUSE of Linux 5.15 has (ABI 7.34): the flags below `FUSE_INIT_EXT`.
const FEATURES_OF_5_15: u64 = (1 << 30) - 1;

#[test]
fn a_kernel_of_2021_has_all_it_needs() {
    let Some(world) = World::with_features(2, FEATURES_OF_5_15) else { return };
    world.python(
        "
with open('a', 'w') as f: f.write('x' * 300000)
assert open(N[2] + '/a').read() == 'x' * 300000
with open('a', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m: m[5:8] = b'abc'; m.flush()
assert open(N[2] + '/a').read(9) == 'xxxxxabcx'
with open(N[2] + '/a', 'a') as f: f.write('end')
assert open('a').read().endswith('xend')
f = open('a', 'r+'); fcntl.lockf(f, fcntl.LOCK_EX)
def child():
    fails(errno.EAGAIN, fcntl.lockf, open(N[2] + '/a', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)
join(spawn(child))
os.symlink('a', 'l'); os.link('a', 'h'); os.mkdir('d'); os.rename('h', 'd/h')
assert sorted(os.listdir(N[2])) == ['a', 'd', 'l'] and os.stat('d/h').st_nlink == 2
os.setxattr('a', 'user.x', b'y'); assert os.getxattr(N[2] + '/d/h', 'user.x') == b'y'
",
    );
}

#[test]
fn a_file_without_a_name_is_gone_when_it_is_closed_unless_it_is_given_one() {
    let Some(world) = World::new(2) else { return };
    world.python(
        "
libc = ctypes.CDLL(None, use_errno=True)
def named(fd, to):
    'open(2): how to name such a file'
    if libc.linkat(-100, f'/proc/self/fd/{fd}'.encode(), -100, to.encode(), 0x400) != 0:
        raise OSError(ctypes.get_errno(), to)
os.mkdir('d')
free = os.statvfs('.').f_ffree
fd = os.open('d', os.O_TMPFILE | os.O_RDWR, 0o640)
assert os.listdir('d') == [] and os.fstat(fd).st_nlink == 0
assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
os.write(fd, b'secret'); assert os.pread(fd, 9, 0) == b'secret'
named(fd, 'd/named')
os.write(fd, b' told'); os.close(fd)
assert open(N[2] + '/d/named').read() == 'secret told' and os.stat('d/named').st_nlink == 1
fd = os.open('d', os.O_TMPFILE | os.O_RDWR | os.O_EXCL)
fails(errno.ENOENT, named, fd, 'd/no'); os.close(fd)
fails(errno.EINVAL, os.open, 'd', os.O_TMPFILE | os.O_RDONLY)
fails(errno.ENOTDIR, os.open, 'd/named', os.O_TMPFILE | os.O_RDWR)
os.chmod('d', 0o555)
def other():
    os.setuid(65534); fails(errno.EACCES, os.open, 'd', os.O_TMPFILE | os.O_RDWR)
join(spawn(other))
fds = [os.open('d', os.O_TMPFILE | os.O_RDWR) for _ in range(50)]
for fd in fds: os.close(fd)
os.chmod('d', 0o755); os.unlink('d/named'); os.rmdir('d')
",
    );
}

#[test]
fn files_are_copied_inside_the_server() {
    let Some(world) = World::new(2) else { return };
    world.python(
        "
data = os.urandom(3_000_000) + bytes(2_000_000) + b'end'
open('a', 'wb').write(data)
def copied(a, b, length, from_, to):
    'as much as it copies at once; the kernel asks the server for it'
    return os.copy_file_range(a, b, length, from_, to)
a, b = os.open('a', os.O_RDONLY), os.open('b', os.O_RDWR | os.O_CREAT)
at = 0
while (more := copied(a, b, 1 << 30, at, at)) > 0: at += more
assert at == len(data) and open(N[2] + '/b', 'rb').read() == data
assert copied(a, b, 10, len(data), 0) == 0
assert copied(a, b, 5, 0, len(data) + 5) == 5
assert open('b', 'rb').read()[len(data):] == bytes(5) + data[:5]
both = os.open('b', os.O_RDWR)
assert copied(both, both, 10, 0, 10) == 10
assert os.pread(both, 20, 0) == data[:10] * 2
fails(errno.EINVAL, copied, both, both, 10, 0, 5)
fails(errno.EBADF, copied, a, a, 10, 0, 100)
fails(errno.EBADF, copied, a, os.open('b', os.O_RDWR | os.O_APPEND), 10, 0, 100)
",
    );
    // Whoever copies over a set-user-id program does not get its owner's rights.
    world.sh("
        cp a c; cmp a c; cp /bin/true t; chmod 4777 t; ls -l t | grep -q ^-rws
        python3 -c \"
import os
os.setuid(65534)
f = os.open('t', os.O_RDWR); assert os.copy_file_range(os.open('a', 0), f, 10, 0, 0) == 10\"
        ls -l t | grep -q ^-rwx
    ");
}

#[test]
fn a_pipe_in_the_tree_joins_two_processes() {
    let Some(world) = World::new(1) else { return };
    world.sh("mkfifo p; test -p p; (echo through > p) & test \"$(cat p)\" = through; wait");
}

#[test]
fn times_are_kept_to_the_nanosecond_and_before_the_epoch() {
    let Some(world) = World::new(1) else { return };
    world.sh("
        touch -d '2021-02-03 04:05:06.123456789' a
        test \"$(stat -c %y a)\" = '2021-02-03 04:05:06.123456789 +0000'
        ls -l a | grep -q 'Feb  3  2021 a'
        touch -d '1960-01-01 00:00:00.250000000' a
        test \"$(stat -c %y a)\" = '1960-01-01 00:00:00.250000000 +0000'
        touch a; test $(( $(date +%s) - $(stat -c %Y a) )) -le 1
    ");
    world.python(
        "
open('x', 'w').close()
libc = ctypes.CDLL(None, use_errno=True)
for second in (-2**63, 2**63 - 1, -1, 2**40):
    # The kernel cuts what it cannot say; nothing may break.
    for _ in range(4):
        times = (ctypes.c_long * 4)(second, 5, second, 5)
        assert libc.utimensat(-100, b'x', times, 0) == 0, ctypes.get_errno()
    assert os.stat('x').st_mtime_ns // 10**9 == second
os.utime('x', (5, 6))
assert os.stat('x').st_mtime == 6
",
    );
}

#[test]
fn sizes_holes_and_space_are_as_posix_says() {
    let Some(world) = World::new(1) else { return };
    world.sh("
        truncate -s 5G big; test $(stat -c %s big) = 5368709120
        echo end | dd of=big bs=1 seek=5368709120 conv=notrunc status=none
        tail -c 4 big | grep -x end; truncate -s 3 big; test $(stat -c %s big) = 3
        truncate -s 5 big; od -An -c big | grep -q '\\\\0  *\\\\0  *\\\\0  *\\\\0  *\\\\0'
        fallocate -l 10000 f; test $(stat -c %s f) = 10000
        fallocate -n -l 20000 f; test $(stat -c %s f) = 10000
        echo data > t; : > t; test $(stat -c %s t) = 0
    ");
    world.python(
        "
fd = os.open('holes', os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b'x' * 4096, 0)
assert os.lseek(fd, 0, os.SEEK_DATA) == 0
assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
fails(errno.ENXIO, os.lseek, fd, 4096, os.SEEK_DATA)
assert os.lseek(fd, 0, os.SEEK_END) == 4096
os.posix_fallocate(fd, 0, 9000)
assert os.fstat(fd).st_size == 9000
libc = ctypes.CDLL(None, use_errno=True)
assert libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(100)) == 0
assert os.pread(fd, 200, 0) == bytes(100) + b'x' * 100
os.fsync(fd); os.fdatasync(fd)
d = os.open('.', os.O_RDONLY | os.O_DIRECTORY); os.fsync(d)
assert os.statvfs('.').f_namemax == 255
fails(errno.ENAMETOOLONG, os.stat, 'n' * 256)
fails(errno.EISDIR, os.open, '.', os.O_WRONLY)
fails(errno.ENOTDIR, os.open, 'holes', os.O_DIRECTORY)
",
    );
}

#[test]
fn a_large_file_survives_in_any_block_size_and_with_o_direct() {
    let Some(world) = World::new(1) else { return };
    world.sh("
        head -c 3000001 /dev/urandom > $N1/a
        for size in 511 4096 131072 1000000 4194304; do
            dd if=a of=b bs=$size status=none; cmp a b; rm b
        done
        dd if=/dev/zero of=direct bs=4096 count=100 oflag=direct status=none
        dd if=direct of=/dev/null bs=1M iflag=direct status=none
        test $(stat -c %s direct) = 409600; head -c 409600 /dev/zero | cmp - direct
    ");
}

#[test]
fn a_directory_of_many_names_is_listed_whole_and_once() {
    let Some(world) = World::new(1) else { return };
    world.python(
        "
names = {f'{i:05}' + 'n' * (i % 200) for i in range(3000)}
os.mkdir('d')
for name in names:
    os.mknod('d/' + name)
listed = os.listdir('d')
assert len(listed) == 3000 and set(listed) == names
kinds = {e.name: e.is_file(follow_symlinks=False) for e in os.scandir('d')}
assert all(kinds.values()) and len(kinds) == 3000
# What is removed while it is read does not hide the others.
with os.scandir('d') as entries:
    for entry in entries:
        os.unlink(entry.path)
assert os.listdir('d') == []
os.rmdir('d')
",
    );
}

#[test]
fn what_is_unlinked_while_open_stays_until_it_is_closed() {
    let Some(world) = World::new(1) else { return };
    world.python(
        "
f = open('a', 'w+'); f.write('before'); f.flush()
os.unlink('a')
assert not os.path.exists('a')
f.write(' after'); f.seek(0)
assert f.read() == 'before after'
assert os.fstat(f.fileno()).st_nlink == 0
os.ftruncate(f.fileno(), 3)
assert os.fstat(f.fileno()).st_size == 3
os.mkdir('d'); os.chdir('d'); os.rmdir(N[1] + '/d')
fails(errno.ENOENT, open, 'x', 'w')
",
    );
}

#[test]
fn a_shared_mapping_and_the_calls_see_the_same_bytes() {
    let Some(world) = World::new(1) else { return };
    world.python(
        "
f = open('m', 'wb+'); f.write(bytes(10000)); f.flush()
a = mmap.mmap(f.fileno(), 10000)
a[5:8] = b'abc'
assert os.pread(f.fileno(), 3, 5) == b'abc', 'a read sees a store'
os.pwrite(f.fileno(), b'xyz', 6000)
assert a[6000:6003] == b'xyz', 'the mapping sees a write'
def child():
    g = open('m', 'rb+'); b = mmap.mmap(g.fileno(), 10000)
    assert b[5:8] == b'abc'
    b[9000:9002] = b'hi'
join(spawn(child))
assert a[9000:9002] == b'hi', 'two mappings are one memory'
os.stat('m'); a[1:2] = b'q'; os.stat('m')
a.flush(); a.close()
assert open('m', 'rb').read()[9000:9002] == b'hi'
private = mmap.mmap(f.fileno(), 10000, mmap.MAP_PRIVATE)
private[0:1] = b'p'
assert os.pread(f.fileno(), 2, 0) == b'\\0q'
",
    );
}

#[test]
fn dirty_pages_of_a_file_opened_for_appending_stay_where_they_are() {
    let Some(world) = World::new(1) else { return };
    world.python(
        "
open('m', 'wb').write(bytes(8192))
fd = os.open('m', os.O_RDWR | os.O_APPEND)
a = mmap.mmap(fd, 8192); a[10:13] = b'abc'; a.flush(); a.close()
assert os.fstat(fd).st_size == 8192
os.write(fd, b'end')
assert os.pread(fd, 5, 8192) == b'end' and os.pread(fd, 3, 10) == b'abc'
",
    );
}

#[test]
fn programs_and_scripts_run_from_the_tree() {
    let Some(world) = World::new(1) else { return };
    world.sh("
        cp /bin/echo e; test \"$(./e hello)\" = hello
        printf '#!/bin/sh\\necho script $1\\n' > s; chmod +x s; test \"$(./s 1)\" = 'script 1'
        chmod -x s; fails ./s
    ");
}

#[test]
fn extended_attributes_are_kept() {
    let Some(world) = World::new(1) else { return };
    world.python(
        "
open('a', 'w').close()
os.setxattr('a', 'user.one', b'1'); os.setxattr('a', 'user.big', b'b' * 5000)
assert os.getxattr('a', 'user.one') == b'1' and os.getxattr('a', 'user.big') == b'b' * 5000
assert sorted(os.listxattr('a')) == ['user.big', 'user.one']
fails(errno.EEXIST, os.setxattr, 'a', 'user.one', b'', os.XATTR_CREATE)
fails(errno.ENODATA, os.setxattr, 'a', 'user.two', b'', os.XATTR_REPLACE)
os.removexattr('a', 'user.one')
fails(errno.ENODATA, os.getxattr, 'a', 'user.one')
os.setxattr('a', 'user.empty', b'')
assert os.getxattr('a', 'user.empty') == b''
",
    );
}

#[test]
fn a_rename_replaces_or_exchanges_or_refuses() {
    let Some(world) = World::new(1) else { return };
    world.python(
        "
libc = ctypes.CDLL(None, use_errno=True)
def renameat2(a, b, flags):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), flags):
        raise OSError(ctypes.get_errno(), 'renameat2')
def put(name, text):
    open(name, 'w').write(text)
put('a', 'A'); put('b', 'B')
fails(errno.EEXIST, renameat2, 'a', 'b', 1)
renameat2('a', 'b', 2)
assert open('a').read() == 'B' and open('b').read() == 'A'
fails(errno.EINVAL, renameat2, 'a', 'b', 4)
os.rename('a', 'b')
assert open('b').read() == 'B' and not os.path.exists('a')
os.makedirs('d/e'); fails(errno.EINVAL, os.rename, 'd', 'd/e/f')
fails(errno.ENOENT, os.rename, 'none', 'x')
",
    );
}

#[test]
fn sqlite_loses_nothing_with_either_journal() {
    let Some(world) = World::new(1).filter(|_| have("sqlite3")) else { return };
    for journal in ["delete", "wal"] {
        world.sh(&format!(
            "
            sqlite3 {journal}.db 'pragma journal_mode={journal}; create table t(n);' | grep -qx {journal}
            work() {{
                i=0; while test $i -lt 15; do i=$((i+1))
                    sqlite3 -cmd '.timeout 60000' {journal}.db \"insert into t values('$1-$i')\"
                done
            }}
            work a & a=$!; work b & b=$!; work c & c=$!
            wait $a; wait $b; wait $c
            test $(sqlite3 {journal}.db 'select count(distinct n) from t') = 45
            test $(sqlite3 {journal}.db 'pragma integrity_check') = ok
            "
        ));
    }
}

#[test]
fn git_keeps_a_history() {
    let Some(world) = World::new(1).filter(|_| have("git")) else { return };
    world.sh("
        export HOME=$N1 GIT_CONFIG_NOSYSTEM=1
        git init -q r; cd r; git config user.email a@b; git config user.name n
        seq 100 > f; git add f; git commit -qm one
        seq 200 > f; mkdir d; echo x > d/y; git add -A; git commit -qm two
        git gc -q; git fsck --strict 2>/dev/null; cd ..; git clone -q r c
        test \"$(git -C c log --format=%s | tr '\\n' ' ')\" = 'two one '; cmp r/f c/f
        git -C r status --porcelain | wc -l | grep -x 0
    ");
}

#[test]
fn a_program_that_runs_is_neither_opened_for_writing_nor_cut_off() {
    let Some(world) = World::new(1) else { return };
    world.python(
        "
import subprocess
for i in range(20):
    path = N[1] + f'/sleep{i}'
    with open('/usr/bin/sleep', 'rb') as a, open(path, 'wb') as b: b.write(a.read())
    os.chmod(path, 0o755)
    program = subprocess.Popen([path, '1000'])
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC):
        fails(errno.ETXTBSY, os.open, path, flags)
    size = os.stat(path).st_size
    assert size == os.stat('/usr/bin/sleep').st_size, size
    program.kill()
    assert program.wait() == -9, program.returncode
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert os.stat(path).st_size == 0
",
    );
}

#[test]
fn inotify_tells_what_programs_of_the_node_do() {
    let Some(world) = World::new(1) else { return };
    let told = world.python(
        "
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir('d')
watcher = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(watcher, b'd', 0xfff) == 1
with open('d/f', 'w') as file:
    file.write('text')
open('d/f').read()
os.chmod('d/f', 0o600)
os.rename('d/f', 'd/g')
os.mkdir('d/e')
os.unlink('d/g')
data, at, names = os.read(watcher, 65536), 0, {}
kinds = {1: 'access', 2: 'modify', 4: 'attrib', 8: 'close_write', 0x10: 'close', 0x20: 'open',
         0x40: 'from', 0x80: 'to', 0x100: 'create', 0x200: 'delete'}
while at < len(data):
    _, mask, _, size = struct.unpack_from('iIII', data, at)
    name = data[at + 16:at + 16 + size].rstrip(b'\\0').decode()
    print(kinds[mask & 0xfff] + ':' + name, end=' ')
    at += 16 + size
",
    );
    let want = "create:f open:f modify:f close_write:f open:f access:f close:f attrib:f from:f to:g create:e delete:g";
    assert_eq!(told.trim(), want);
}
