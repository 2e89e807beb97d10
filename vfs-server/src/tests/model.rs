//! Random programs against a tree in memory that is too simple to be wrong, with crashes between.

use crate::linux::{O_APPEND, O_EXCL, O_TRUNC, RENAME_EXCHANGE, RENAME_NOREPLACE};
use crate::tests::driver::{File, Got, ROOT, World};
use crate::tests::{fsck, snapshot};
use dvk::host::disk::DiskStore;
use dvk::server::Server;
use m3ipc::errno::numbers::{
    EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, EPERM,
};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir(BTreeMap<String, usize>),
    File(Vec<u8>),
    Link(String),
}

/// Nodes by number, the root is 0. None is ever taken away: what has no name is just not found.
#[derive(Clone, Debug)]
struct Model {
    nodes: Vec<Node>,
}

impl Model {
    fn new() -> Model {
        Model { nodes: vec![Node::Dir(BTreeMap::new())] }
    }

    fn entries(&self, node: usize) -> Got<&BTreeMap<String, usize>> {
        match &self.nodes[node] {
            Node::Dir(entries) => Ok(entries),
            _ => Err(ENOTDIR),
        }
    }

    fn entries_mut(&mut self, node: usize) -> &mut BTreeMap<String, usize> {
        match &mut self.nodes[node] {
            Node::Dir(entries) => entries,
            _ => panic!("checked before"),
        }
    }

    fn parent<'p>(&self, path: &'p str) -> Got<(usize, &'p str)> {
        let (parents, name) = path.rsplit_once('/').unwrap();
        let mut at = 0;
        for name in parents.split('/').filter(|name| !name.is_empty()) {
            at = *self.entries(at)?.get(name).ok_or(ENOENT)?;
        }
        Ok((at, name))
    }

    fn find(&self, path: &str) -> Got<usize> {
        let (dir, name) = self.parent(path)?;
        self.entries(dir)?.get(name).copied().ok_or(ENOENT)
    }

    fn make(&mut self, path: &str, node: Node) -> Got<usize> {
        let (dir, name) = self.parent(path)?;
        if self.entries(dir)?.contains_key(name) {
            return Err(EEXIST);
        }
        self.nodes.push(node);
        let made = self.nodes.len() - 1;
        self.entries_mut(dir).insert(name.to_string(), made);
        Ok(made)
    }

    fn link(&mut self, old: &str, new: &str) -> Got<()> {
        let node = self.find(old)?;
        let (dir, name) = self.parent(new)?;
        if self.entries(dir)?.contains_key(name) {
            return Err(EEXIST);
        }
        if matches!(self.nodes[node], Node::Dir(_)) {
            return Err(EPERM);
        }
        self.entries_mut(dir).insert(name.to_string(), node);
        Ok(())
    }

    fn remove(&mut self, path: &str, want_dir: bool) -> Got<()> {
        let (dir, name) = self.parent(path)?;
        let node = *self.entries(dir)?.get(name).ok_or(ENOENT)?;
        match (&self.nodes[node], want_dir) {
            (Node::Dir(_), false) => return Err(EISDIR),
            (Node::Dir(entries), true) if !entries.is_empty() => return Err(ENOTEMPTY),
            (Node::File(_) | Node::Link(_), true) => return Err(ENOTDIR),
            _ => {}
        }
        self.entries_mut(dir).remove(name);
        Ok(())
    }

    /// Is directory `above` the same as, or above, `node`?
    fn is_above(&self, above: usize, node: usize) -> bool {
        above == node
            || match &self.nodes[above] {
                Node::Dir(entries) => entries.values().any(|child| self.is_above(*child, node)),
                _ => false,
            }
    }

    fn rename(&mut self, old: &str, new: &str, flags: u32) -> Got<()> {
        let (old_dir, old_name) = self.parent(old)?;
        let (new_dir, new_name) = self.parent(new)?;
        let (old_entries, new_entries) = (self.entries(old_dir)?, self.entries(new_dir)?);
        let node = *old_entries.get(old_name).ok_or(ENOENT)?;
        let target = new_entries.get(new_name).copied();
        match (target, flags) {
            (Some(_), RENAME_NOREPLACE) => return Err(EEXIST),
            (None, RENAME_EXCHANGE) => return Err(ENOENT),
            _ => {}
        }
        let is_dir = |node: usize| matches!(self.nodes[node], Node::Dir(_));
        if old_dir != new_dir && is_dir(node) && self.is_above(node, new_dir) {
            return Err(EINVAL);
        }
        let exchange = flags == RENAME_EXCHANGE;
        if let Some(target) = target {
            if old_dir != new_dir && is_dir(target) && self.is_above(target, old_dir) {
                return Err(if exchange { EINVAL } else { ENOTEMPTY });
            }
            if target == node {
                return Ok(());
            }
            match (is_dir(node), is_dir(target)) {
                _ if exchange => {}
                (true, false) => return Err(ENOTDIR),
                (false, true) => return Err(EISDIR),
                (true, true) if !self.entries(target)?.is_empty() => return Err(ENOTEMPTY),
                _ => {}
            }
        }
        self.entries_mut(old_dir).remove(old_name);
        if let Some(target) = target.filter(|_| exchange) {
            self.entries_mut(old_dir).insert(old_name.to_string(), target);
        }
        self.entries_mut(new_dir).insert(new_name.to_string(), node);
        Ok(())
    }

    fn open(&mut self, path: &str, truncate: bool) -> Got<usize> {
        let node = self.find(path)?;
        match &mut self.nodes[node] {
            Node::Dir(_) => Err(EISDIR),
            Node::Link(_) => Err(ELOOP),
            Node::File(data) => {
                if truncate {
                    data.clear();
                }
                Ok(node)
            }
        }
    }

    fn data(&mut self, node: usize) -> &mut Vec<u8> {
        match &mut self.nodes[node] {
            Node::File(data) => data,
            _ => panic!("only files are open"),
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Mkdir(String),
    Create(String, u32),
    Symlink(String, String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, u32),
    Open(String, u32),
    Truncate(String, u16),
    Write(usize, u16, u8, u8),
    Punch(usize, u16, u16),
    Release(usize),
    Pass,
    Restart,
    TakeSnapshot,
    RemoveSnapshot(usize),
    /// A little of what is to be done in the background.
    Tick,
    /// The operation happens, and then a crash undoes what the map has not committed.
    Crash(Box<Op>),
}

pub(crate) fn a_path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..4)
        .prop_map(|names| names.iter().flat_map(|name| ["/", name]).collect())
}

fn an_op() -> impl Strategy<Value = Op> {
    let change = prop_oneof![
        3 => a_path().prop_map(Op::Mkdir),
        3 => (a_path(), prop_oneof![Just(2), Just(2 | O_EXCL), Just(2 | O_TRUNC), Just(2 | O_APPEND)])
            .prop_map(|(path, flags)| Op::Create(path, flags)),
        1 => (a_path(), a_path()).prop_map(|(path, target)| Op::Symlink(path, target)),
        2 => (a_path(), a_path()).prop_map(|(old, new)| Op::Link(old, new)),
        3 => a_path().prop_map(Op::Unlink),
        1 => a_path().prop_map(Op::Rmdir),
        5 => (a_path(), a_path(), 0..3_u32).prop_map(|(old, new, flags)| Op::Rename(old, new, flags)),
        2 => (a_path(), prop_oneof![Just(2), Just(2 | O_TRUNC), Just(2 | O_APPEND)])
            .prop_map(|(path, flags)| Op::Open(path, flags)),
        2 => (a_path(), 0..300_u16).prop_map(|(path, size)| Op::Truncate(path, size)),
        2 => any::<usize>().prop_map(Op::Release),
        1 => Just(Op::Pass),
    ]
    .boxed();
    let write = (any::<usize>(), 0..300_u16, any::<u8>(), 1..100_u8)
        .prop_map(|(file, offset, byte, len)| Op::Write(file, offset, byte, len))
        .boxed();
    let punch = (any::<usize>(), 0..300_u16, 1..300_u16)
        .prop_map(|(file, at, len)| Op::Punch(file, at, len));
    let crash =
        prop_oneof![5 => change.clone(), 2 => write.clone()].prop_map(|op| Op::Crash(Box::new(op)));
    prop_oneof![10 => change, 4 => write, 1 => punch, 1 => Just(Op::Restart), 2 => crash]
}

/// As [`an_op`], with snapshots.
fn an_op_with_snapshots() -> impl Strategy<Value = Op> {
    let snapshot = prop_oneof![
        3 => Just(Op::TakeSnapshot),
        2 => any::<usize>().prop_map(Op::RemoveSnapshot),
        3 => Just(Op::Tick),
    ]
    .boxed();
    let write = (any::<usize>(), 0..2000_u16, any::<u8>(), 1..250_u8)
        .prop_map(|(file, offset, byte, len)| Op::Write(file, offset, byte, len))
        .boxed();
    let punch = (any::<usize>(), 0..2000_u16, 1..1000_u16)
        .prop_map(|(file, at, len)| Op::Punch(file, at, len))
        .boxed();
    let truncate =
        (a_path(), 0..2500_u16).prop_map(|(path, size)| Op::Truncate(path, size)).boxed();
    let change = prop_oneof![6 => snapshot, 12 => write, 3 => punch, 3 => truncate].boxed();
    let crash = change.clone().prop_map(|op| Op::Crash(Box::new(op)));
    prop_oneof![12 => an_op(), 20 => change, 2 => crash]
}

/// The server, the model, and the files open in both; and the trees that snapshots have.
struct Pair {
    world: World,
    model: Model,
    files: Vec<(File, usize, u32)>,
    snapshots: Vec<(String, Model)>,
    taken: usize,
}

impl Pair {
    /// Does it in both, and compares what comes of it.
    fn step(&mut self, op: &Op) {
        let Pair { world, model, files, snapshots, taken } = self;
        match op {
            Op::Mkdir(path) => {
                let made = model.make(path, Node::Dir(BTreeMap::new())).map(drop);
                assert_eq!(world.mkdir(&ROOT, path, 0o755).map(drop), made);
            }
            Op::Create(path, flags) => {
                let exists = model.find(path);
                let want = match exists {
                    Ok(_) if flags & O_EXCL != 0 => Err(EEXIST),
                    Ok(_) => model.open(path, flags & O_TRUNC != 0),
                    Err(_) => model.make(path, Node::File(Vec::new())),
                };
                let got = world.create(&ROOT, path, 0o644, *flags);
                assert_eq!(got.map(drop), want.map(drop), "{op:?}");
                files.extend(got.ok().zip(want.ok()).map(|(file, node)| (file, node, *flags)));
            }
            Op::Symlink(path, target) => {
                let made = model.make(path, Node::Link(target.clone())).map(drop);
                assert_eq!(world.symlink(&ROOT, path, target).map(drop), made);
            }
            Op::Link(old, new) => {
                assert_eq!(world.link(&ROOT, old, new).map(drop), model.link(old, new));
            }
            Op::Unlink(path) => assert_eq!(world.unlink(&ROOT, path), model.remove(path, false)),
            Op::Rmdir(path) => assert_eq!(world.rmdir(&ROOT, path), model.remove(path, true)),
            Op::Rename(old, new, flags) => {
                assert_eq!(
                    world.rename(&ROOT, old, new, *flags),
                    model.rename(old, new, *flags),
                    "{op:?}"
                );
            }
            Op::Open(path, flags) => {
                let want = model.open(path, flags & O_TRUNC != 0);
                let got = world.open(&ROOT, path, *flags);
                assert_eq!(got.map(drop), want.map(drop), "{op:?}");
                files.extend(got.ok().zip(want.ok()).map(|(file, node)| (file, node, *flags)));
            }
            Op::Truncate(path, size) => {
                let want =
                    model.open(path, false).map(|node| model.data(node).resize((*size).into(), 0));
                let want = want.map_err(|errno| if errno == ELOOP { EINVAL } else { errno });
                assert_eq!(world.truncate(&ROOT, path, (*size).into()).map(drop), want);
            }
            Op::Write(index, offset, byte, len) if !files.is_empty() => {
                let (file, node, flags) = files[index % files.len()];
                let data = model.data(node);
                let bytes = vec![*byte; (*len).into()];
                let at = if flags & O_APPEND == 0 { (*offset).into() } else { data.len() };
                data.resize(data.len().max(at + bytes.len()), 0);
                data[at..at + bytes.len()].copy_from_slice(&bytes);
                assert_eq!(world.write(&file, (*offset).into(), &bytes), Ok((*len).into()));
            }
            Op::Punch(index, offset, len) if !files.is_empty() => {
                let (file, node, _) = files[index % files.len()];
                let data = model.data(node);
                let end = usize::from(offset + len).min(data.len());
                if let Some(hole) = data.get_mut((*offset).into()..end) {
                    hole.fill(0);
                }
                world.fallocate(&file, (*offset).into(), (*len).into(), 3).unwrap();
            }
            Op::Release(index) if !files.is_empty() => {
                let (file, _, _) = files.remove(index % files.len());
                world.release(&file).unwrap();
                assert_eq!(world.read(&file, 0, 1), Err(EBADF));
            }
            Op::Write(..) | Op::Punch(..) | Op::Release(_) => {}
            Op::TakeSnapshot => {
                *taken += 1;
                let name = format!("s{taken}");
                match snapshot::take(world, &name) {
                    Err(ENOSPC) => {}
                    outcome => {
                        outcome.unwrap();
                        snapshots.push((name, model.clone()));
                    }
                }
            }
            Op::RemoveSnapshot(index) if !snapshots.is_empty() => {
                let (name, _) = snapshots.remove(index % snapshots.len());
                snapshot::remove(world, &name).unwrap();
            }
            Op::RemoveSnapshot(_) => {}
            Op::Tick => {
                world.clock = world.clock.max(world.server.deadline().unwrap_or(0));
                world.tick();
            }
            Op::Pass => world.pass(1),
            Op::Restart => world.restart(),
            // Of a write within the file a crash may leave the bytes, and of a hole the zeros.
            Op::Crash(op) if self.writes_within(op) => {}
            // Its rounds were committed, but perhaps the last.
            Op::Crash(op) if matches!(**op, Op::Pass) => self.step(&Op::Crash(Box::new(Op::Tick))),
            Op::Crash(op) => {
                let (model, files) = (self.model.clone(), self.files.clone());
                let snapshots = self.snapshots.clone();
                let (map, clock) = (self.world.store.map.clone(), self.world.clock);
                let taken = self.taken;
                self.world.store.crashes = true;
                self.step(op);
                self.world.store.crashes = false;
                self.world.store.removed.clear();
                self.world.store.map = map;
                self.world.clock = self.world.clock.max(clock);
                self.world.restart();
                (self.model, self.files, self.snapshots) = (model, files, snapshots);
                self.taken = taken;
            }
        }
    }

    fn writes_within(&mut self, op: &Op) -> bool {
        let Op::Write(index, offset, ..) = op else { return matches!(op, Op::Punch(..)) };
        let Some((_, node, flags)) = self.files.get(index % self.files.len().max(1)).copied()
        else {
            return false;
        };
        flags & O_APPEND == 0 && usize::from(*offset) < self.model.data(node).len()
    }

    /// Both trees are the same, and so are the open files, those without a name too.
    fn compare(&mut self, path: &str, model: &Model, node: usize) {
        match model.nodes[node].clone() {
            Node::Dir(entries) => {
                let mut names =
                    self.world.ls(&ROOT, if path.is_empty() { "/" } else { path }).unwrap();
                names.sort();
                assert_eq!(names, entries.keys().cloned().collect::<Vec<_>>(), "{path}");
                for (name, child) in entries {
                    self.compare(&format!("{path}/{name}"), model, child);
                }
            }
            Node::File(data) => assert_eq!(self.world.cat(&ROOT, path), Ok(data), "{path}"),
            Node::Link(target) => {
                assert_eq!(self.world.readlink(&ROOT, path), Ok(target), "{path}")
            }
        }
    }

    fn compare_files(&mut self) {
        for (file, node, _) in self.files.clone() {
            let want = self.model.data(node).clone();
            let found = self.world.read(&file, 0, 1 << 16).unwrap();
            let differs =
                (0..found.len().max(want.len())).find(|at| found.get(*at) != want.get(*at));
            assert_eq!(differs, None, "of {}, found {}: {file:?}", want.len(), found.len());
        }
    }
}

fn check(world: World, ops: &[Op]) {
    let (files, snapshots) = (Vec::new(), Vec::new());
    let mut pair = Pair { world, model: Model::new(), files, snapshots, taken: 0 };
    for (at, op) in ops.iter().enumerate() {
        pair.step(op);
        pair.compare_files();
        let looks_back = at % 8 == 7 || at + 1 == ops.len();
        for (name, model) in pair.snapshots.clone().into_iter().filter(|_| looks_back) {
            pair.compare(&format!("/.snapshots/{name}"), &model, 0);
        }
        fsck::check(&mut pair.world);
    }
    let model = pair.model.clone();
    pair.compare("", &model, 0);
    let open = pair.files.len();
    assert_eq!(pair.world.server.holders().len(), open.min(1));
}

proptest! {
    #[test]
    fn random_programs_do_what_the_model_does(ops in proptest::collection::vec(an_op(), 1..80)) {
        check(World::new(), &ops);
    }
}

proptest! {
    #[test]
    fn snapshots_stay_as_they_were_whatever_happens(ops in proptest::collection::vec(an_op_with_snapshots(), 1..120)) {
        let mut world = World::new();
        world.store.is_sparse = true;
        check(world, &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn snapshots_do_so_with_blobs_in_sparse_files(ops in proptest::collection::vec(an_op_with_snapshots(), 1..120)) {
        let directory = tempfile::tempdir().unwrap();
        check(World::with_blobs(Box::new(DiskStore::open(directory.path()).unwrap())), &ops);
    }

    #[test]
    fn they_do_the_same_with_blobs_in_sparse_files(ops in proptest::collection::vec(an_op(), 1..80)) {
        let directory = tempfile::tempdir().unwrap();
        check(World::with_blobs(Box::new(DiskStore::open(directory.path()).unwrap())), &ops);
    }
}
