//! Checks everything that must hold in the store, and that the caches say the same.

use crate::acl;
use crate::keys::{
    self, Bytes, Counters, Entry, Inode, Layer, LockRecord, OpenRecord, Place, Tree, mark,
};
use crate::linux::S_IFLNK;
use crate::tests::driver::{TestStore, World};
use calls::vfs::{IN_SNAPSHOT, ROOT_INO};
use calls::wire::Wire;
use dvk::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Panics if something is wrong.
pub(crate) fn check(world: &mut World) {
    let store = &world.store;
    let inodes = read_inodes(store);
    let opens = read_opens(store);
    let mut names: BTreeMap<u64, u32> = BTreeMap::new();
    let mut subdirectories: BTreeMap<u64, u32> = BTreeMap::new();
    for dir in inodes.values().filter(|inode| inode.is_directory()) {
        for entry in check_directory(store, dir) {
            let inode = &inodes[&entry.ino];
            assert_eq!(entry.kind, inode.entry_kind(), "{inode:?}");
            *names.entry(entry.ino).or_default() += 1;
            if inode.is_directory() {
                assert_eq!(inode.parent, dir.ino);
                *subdirectories.entry(dir.ino).or_default() += 1;
            }
        }
    }
    let held: BTreeSet<u64> = opens.values().map(|open| open.ino).collect();
    for inode in inodes.values() {
        let ino = inode.ino;
        let named = names.get(&ino).copied().unwrap_or(0) + u32::from(ino == ROOT_INO);
        let links = match (inode.is_directory(), named) {
            (true, 0) => 0,
            (true, _) => {
                assert_eq!(named, 1, "a directory has one name: {inode:?}");
                2 + subdirectories.get(&ino).copied().unwrap_or(0)
            }
            (false, _) => named,
        };
        assert_eq!(inode.nlink, links, "{inode:?}");
        assert!(acl::is_in_step(inode, store), "{inode:?}");
        let garbage = store.get(&keys::garbage(ino)).is_some();
        assert_eq!(garbage, links == 0 && !held.contains(&ino), "{inode:?}");
        assert_eq!(garbage, inode.marks & mark::GARBAGE != 0, "{inode:?}");
        assert_eq!(store.get(&keys::target(ino)).is_some(), inode.kind() == S_IFLNK);
    }
    check_ownership(store, &inodes, &opens);
    check_trees(store, &inodes);
    check_snapshots(store, &inodes);
    let counters: Counters = keys::read(store, keys::COUNTERS).unwrap().unwrap();
    assert_eq!(counters.inodes, inodes.len() as u64);
    assert!(inodes.keys().all(|ino| *ino < counters.ino_limit));
    assert!(opens.keys().all(|fh| *fh < counters.fh_limit));
    check_caches(world, &inodes, &opens);
}

fn check_directory(store: &dyn Store, dir: &Inode) -> Vec<Entry> {
    let mut entries = Vec::new();
    keys::collect(store, &keys::places_from(dir.ino, 0), |key, value| {
        let [_, cookie] = keys::numbers(key).unwrap();
        let place = Place::get(value).unwrap();
        let by_name = keys::read::<Entry>(store, &keys::entry(dir.ino, &value[Place::SIZE..]));
        let entry = Entry { ino: place.ino, cookie, kind: place.kind };
        assert_eq!(by_name.unwrap(), Some(entry), "by name and by cookie");
        assert!(cookie < dir.next_cookie);
        entries.push(entry);
    });
    let (from, to) = (keys::entry(dir.ino, &[]), keys::entry(dir.ino + 1, &[]));
    let mut count = 0;
    store.range(&from, &to, &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    });
    assert_eq!((count, count as u64), (entries.len(), dir.size), "{dir:?}");
    entries
}

/// Trees with a quota count what is in them; and an entry is counted with its directory, or will be.
fn check_trees(store: &dyn Store, inodes: &BTreeMap<u64, Inode>) {
    let mut trees: BTreeMap<u16, Tree> = BTreeMap::new();
    keys::collect(store, &keys::trees(), |key, value| {
        let [number] = keys::numbers(key).unwrap();
        trees.insert(u16::try_from(number).unwrap(), Tree::get(value).unwrap());
    });
    let mut counted: BTreeMap<u16, (u64, u64)> = trees.keys().map(|tree| (*tree, (0, 0))).collect();
    for inode in inodes.values().filter(|inode| inode.marks & mark::GARBAGE == 0) {
        let mut number = inode.tree;
        while number != 0 {
            let (blocks, inodes) = counted.get_mut(&number).expect("there is such a tree");
            *blocks += if inode.is_regular() { inode.size.div_ceil(4096) } else { 0 };
            *inodes += 1;
            number = trees[&number].parent;
        }
    }
    for (number, tree) in &trees {
        assert_eq!((tree.blocks, tree.inodes), counted[number], "{tree:?}");
        assert!(tree.inodes > 0, "{tree:?}");
        assert!(tree.root == 0 || inodes[&tree.root].tree == *number, "{tree:?}");
    }
    let roots: BTreeMap<u64, u16> =
        trees.iter().map(|(number, tree)| (tree.root, *number)).collect();
    for dir in inodes.values().filter(|inode| inode.is_directory()) {
        let walk = keys::read::<u64>(store, &keys::walk(dir.ino)).unwrap();
        for entry in check_directory(store, dir) {
            let inode = &inodes[&entry.ino];
            let tree = roots.get(&entry.ino).map_or(inode.tree, |root| trees[root].parent);
            let is_spread = inode.is_spread() || !inode.is_directory() && inode.nlink > 1;
            let is_to_come = walk.is_some_and(|cookie| cookie <= entry.cookie);
            assert!(tree == dir.tree || is_to_come || is_spread, "{dir:?} {inode:?} {walk:?}");
        }
    }
}

/// Each blob is a file's, or a snapshot's, or the parent of one; and nothing else is kept.
fn check_snapshots(store: &TestStore, inodes: &BTreeMap<u64, Inode>) {
    let all = |tag: u8| {
        let mut pairs = Vec::new();
        keys::collect(store, &(vec![tag], vec![tag + 1]), |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
        });
        pairs
    };
    let number = |key: &[u8]| u64::from_be_bytes(key[1..9].try_into().unwrap());
    let snapshots: BTreeSet<u64> = all(b'S').iter().map(|(key, _)| number(key)).collect();
    let regular = |inode: &&Inode| inode.is_regular();
    let mut used: BTreeSet<u64> = inodes.values().filter(regular).map(|inode| inode.ino).collect();
    for (key, value) in all(b'B') {
        let (ino, blob) = (number(&key), Bytes::get(&value).unwrap().blob);
        assert!(used.remove(&ino), "{ino} is no file");
        assert!(used.insert(blob), "blob {blob:x} is two files'");
    }
    for (key, value) in all(b'Z') {
        assert!(snapshots.contains(&number(&key)), "kept for nothing: {key:?}");
        let kept = keys::kept_key(&key);
        if kept[0] == b'B' {
            let blob = match value[0] {
                0 => number(kept),
                _ => Bytes::get(&value[1..]).unwrap().blob,
            };
            assert!(used.insert(blob), "blob {blob:x} is kept twice");
        }
    }
    let merges: BTreeSet<u64> = all(b'J').iter().map(|(key, _)| number(key)).collect();
    let layers: BTreeMap<u64, Layer> =
        all(b'A').iter().map(|(key, value)| (number(key), Layer::get(value).unwrap())).collect();
    for (blob, layer) in &layers {
        assert_eq!(layer.is_used != 0, used.contains(blob), "{blob:x} {layer:?}");
        assert_eq!(layer.is_used == 0, merges.contains(blob), "{blob:x} {layer:?}");
        assert!(layer.is_used != 0 || layer.child != 0, "{blob:x} {layer:?}");
        assert!(layer.parent == 0 || layers[&layer.parent].child == *blob, "{blob:x} {layer:?}");
        assert!(layer.child == 0 || layers[&layer.child].parent == *blob, "{blob:x} {layer:?}");
    }
    assert!(merges.iter().all(|blob| layers.contains_key(blob)));
    for (key, _) in all(b'M') {
        assert!(layers[&number(&key)].parent != 0, "a bitmap of no layer");
    }
    used.extend(merges);
    used.extend(&store.lost);
    let left: Vec<&u64> = store.present.difference(&used).collect();
    assert!(left.is_empty(), "blobs of nobody: {left:x?}");
}

/// Attributes and open files have an inode, locks have a handle.
fn check_ownership(
    store: &dyn Store,
    inodes: &BTreeMap<u64, Inode>,
    opens: &BTreeMap<u64, OpenRecord>,
) {
    keys::collect(store, &(vec![b'X'], vec![b'Y']), |key, _| {
        let ino = u64::from_be_bytes(key[1..9].try_into().unwrap());
        assert!(inodes.contains_key(&ino), "an attribute of {ino}");
    });
    keys::collect(store, &keys::all_garbage(), |key, _| {
        let [ino] = keys::numbers(key).unwrap();
        assert!(inodes.contains_key(&ino), "garbage {ino}");
    });
    for open in opens.values().filter(|open| open.ino & IN_SNAPSHOT == 0) {
        assert!(inodes.contains_key(&open.ino), "{open:?}");
    }
    keys::collect(store, &keys::locks(), |key, value| {
        let [ino, _, endpoint, _, _] = keys::numbers(key).unwrap();
        let lock = LockRecord::get(value).unwrap();
        let open = &opens[&lock.fh];
        assert_eq!((open.ino, open.owner.to_bits()), (ino, endpoint), "{lock:?}");
    });
}

/// A server opened now knows what the running one knows.
fn check_caches(
    world: &mut World,
    inodes: &BTreeMap<u64, Inode>,
    opens: &BTreeMap<u64, OpenRecord>,
) {
    for inode in inodes.values() {
        let cached = world.server.inodes.find(inode.ino, &world.store).unwrap();
        assert_eq!(cached, Some(*inode));
    }
    let fresh = crate::VfsServer::open(&mut world.store.map.clone(), world.clock).unwrap();
    assert_eq!(format!("{:?}", fresh.opens), format!("{:?}", world.server.opens));
    assert_eq!(fresh.holders(), world.server.holders());
    assert!(
        opens.keys().all(|fh| format!("{:?}", fresh.opens).contains(&format!("{fh}: OpenRecord")))
    );
    assert!(fresh.trees.is_as(&world.server.trees));
    assert!(fresh.snapshots.is_as(&world.server.snapshots));
    assert_eq!(fresh.locks.all_held(), world.server.locks.all_held());
}

fn read_inodes(store: &dyn Store) -> BTreeMap<u64, Inode> {
    let mut inodes = BTreeMap::new();
    keys::collect(store, &(vec![b'I'], vec![b'J']), |key, value| {
        let inode = Inode::get(value).unwrap();
        assert_eq!(keys::numbers(key), Some([inode.ino]));
        inodes.insert(inode.ino, inode);
    });
    assert!(inodes.contains_key(&ROOT_INO));
    inodes
}

fn read_opens(store: &dyn Store) -> BTreeMap<u64, OpenRecord> {
    let mut opens = BTreeMap::new();
    keys::collect(store, &keys::opens(), |key, value| {
        let [fh] = keys::numbers(key).unwrap();
        opens.insert(fh, OpenRecord::get(value).unwrap());
    });
    opens
}
