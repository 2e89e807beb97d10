//! Names that the kernel remembers: how often it asks, and that nobody finds what is not so any more.

use crate::programs::World;

#[test]
fn what_is_looked_at_all_the_time_nobody_is_asked_for() {
    let Some(world) = World::new(2) else { return };
    world.sh("mkdir -p a/b; : > a/b/f");
    let before = world.requests();
    let looks: u64 = world
        .python(
            "
looks, end = 0, time.monotonic() + 4
while time.monotonic() < end:
    os.stat('a/b/f')
    assert not os.path.exists('a/b/no')
    looks += 2
print(looks)
",
        )
        .parse()
        .unwrap();
    let asked = world.requests() - before;
    // Three requests each if nothing is remembered, one if the path is.
    assert!(asked < looks / 2, "{asked} requests for {looks} looks");
}

#[test]
fn what_is_listed_with_attributes_all_the_time_nobody_is_asked_for() {
    let Some(world) = World::new(2) else { return };
    world.sh("mkdir d; cd d; seq 0 299 | xargs touch");
    let listed = |world: &World| {
        let before = world.requests();
        let looks: u64 = world
            .python(
                "
looks, end = 0, time.monotonic() + 2.5
while time.monotonic() < end:
    with os.scandir('d') as found:
        for entry in found:
            assert entry.stat().st_size == 0
            looks += 1
print(looks)
",
            )
            .parse()
            .unwrap();
        let asked = world.requests() - before;
        // By itself each look is a request.
        (asked < looks / 10, (asked, looks))
    };
    let counts: Vec<_> = (0..5).map(|_| listed(&world)).collect();
    assert!(counts.iter().any(|(are_few, _)| *are_few), "{counts:?}");
}

/// Looks that go on while others act, each of which must see what was said to be done before it.
const LOOKERS: &str = "
said, looks = multiprocessing.Array('q', 8, lock=False), multiprocessing.Array('q', 8, lock=False)
END = 7
def looker(me, uid, look):
    if uid: os.setuid(uid)
    while said[END] == 0:
        least = said[me]
        found = look()
        assert found >= least, (me, found, least)
        looks[me] += 1
def look_on(them):
    'until the kernel may remember what they look at'
    until = time.monotonic() + 1.5
    count = list(looks)
    while time.monotonic() < until or any(looks[me] < count[me] + 100 for me in range(len(them))):
        assert all(one.is_alive() for one in them)
def some_looks(first):
    count = looks[0]
    while looks[0] < count + 1000: assert first.is_alive()
def end(them):
    said[END] = 1
    join(*them)
";

#[test]
fn a_name_that_another_node_has_changed_is_found_as_it_is() {
    let Some(world) = World::new(2) else { return };
    world.sh("mkdir d; : > d/f");
    world.python(&format!(
        "{LOOKERS}
here, there = N[1] + '/d/', N[2] + '/d/'
def size(): return os.stat(here + 'f').st_size
def last():
    'the first that is missing'
    at = said[1]
    while os.path.exists(here + str(at)): at += 1
    return at
def gone():
    'the first that is there'
    at = said[2]
    while not os.path.exists(here + 'x%d' % at): at += 1
    return at
for at in range(5): open(here + 'x%d' % at, 'w').close()
def listed():
    'the size that a listing tells'
    with os.scandir(here) as found:
        return next(entry.stat().st_size for entry in found if entry.name == 'f')
them = [spawn(looker, at, 0, look) for at, look in enumerate([size, last, gone, listed])]
for at in range(4):
    look_on(them)
    with open(there + 'tmp', 'w') as f: f.truncate(at + 1)
    os.rename(there + 'tmp', there + 'f')
    said[0] = said[3] = at + 1
    open(there + str(at), 'w').close()
    said[1] = at + 1
    os.unlink(there + 'x%d' % at)
    said[2] = at + 1
end(them)
"
    ));
}

#[test]
fn a_name_that_is_carried_to_another_directory_is_found_there_as_long_as_it_is() {
    let Some(world) = World::new(2) else { return };
    world.sh("mkdir a b");
    world.python(&format!(
        "{LOOKERS}
here, there = N[1] + '/', N[2] + '/'
# It is in a, goes, is in b, is removed, is in neither, and another is made in a.
open(here + 'a/0', 'w').close()
def carried():
    at = said[0]
    turn, state = divmod(at, 6)
    found = os.path.exists(here + ('a/%d' % turn if state == 0 else 'b/y'))
    return at if state % 2 == 1 or found == (state != 4) or said[0] != at else -1
them = [spawn(looker, 0, 0, carried)]
for turn in range(3):
    look_on(them)
    said[0] += 1
    os.rename(here + 'a/%d' % turn, here + 'b/y')
    said[0] += 1
    said[0] += 1
    os.unlink(there + 'b/y')
    said[0] += 1
    some_looks(them[0])
    said[0] += 1
    open(there + 'a/%d' % (turn + 1), 'w').close()
    said[0] += 1
end(them)
"
    ));
}

#[test]
fn who_may_not_search_any_more_finds_nothing() {
    let Some(world) = World::new(2) else { return };
    world.sh("chmod 755 .; mkdir d; : > d/f");
    world.python(&format!(
        "{LOOKERS}
def may():
    'as nobody: 1 when it may not'
    try:
        os.stat(N[1] + '/d/f')
        return 0
    except PermissionError:
        return 1
them = [spawn(looker, 0, 65534, may)]
for node in 1, 2:
    look_on(them)
    os.chmod(N[node] + '/d', 0o700)
    said[0] = 1
    some_looks(them[0])
    said[0] = 0
    some_looks(them[0])
    os.chmod(N[node] + '/d', 0o755)
end(them)
"
    ));
}
