//! Leases on pages: whoever maps, reads or writes a file sees what was last put there, and nobody is waited for who does not answer.
#![expect(clippy::cast_possible_truncation, reason = "numbers of a few pages")]

use crate::limits::{GIVE_BACK_TIME, LEASE, PAGE_RUNS_MAX};
use crate::tests::driver::{Client, ROOT, World};
use crate::tests::errors::world;
use crate::tests::leases::{agent, message};
use calls::vfs::{
    Count, Forget, Fsync, Getattr, LetGo, PAGE_SIZE, Paged, Read, ReadPages, Recalled, Recalls,
    Seek, SetAttr, Setattr, WRITE_AT, Write, WritePages, pages, set,
};
use calls::wire::Wire;
use m3ipc::errno::numbers::{EBADF, EINVAL, EIO, EPERM};
use m3ipc::{CallId, Message};
use proptest::prelude::{Strategy, any, prop_oneof, proptest};
use std::collections::BTreeMap;

/// Pages of the file that is mapped.
const PAGES: u64 = 3;
const PAGE: usize = PAGE_SIZE as usize;

/// A page that a kernel has.
#[derive(Clone, Debug)]
struct Cached {
    data: Vec<u8>,
    is_dirty: bool,
    is_exclusive: bool,
}

/// What an agent is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// A page, and whether something has been recalled since.
    Page {
        page: u64,
        is_exclusive: bool,
        is_void: bool,
    },
    Read {
        page: u64,
    },
    Write {
        page: u64,
        value: u8,
    },
    /// The file has so many pages then, until it is as long as before.
    Cut {
        keep: u64,
    },
    Grow,
}

/// An agent and its node's kernel.
#[derive(Debug)]
struct Node {
    client: Client,
    fh: u64,
    /// It has the file open for writing, so it reads pages exclusively.
    writes: bool,
    session: u64,
    batch: u64,
    poll: Option<CallId>,
    cached: BTreeMap<u64, Cached>,
    open: Vec<(CallId, Wanted)>,
    /// Pages that it is to give back and has not yet.
    giving: Vec<u64>,
    /// The server has begun anew, and has not heard of it since.
    is_old: bool,
}

impl Node {
    /// Its kernel makes the file shorter, and writes nothing back.
    fn is_cutting(&self) -> bool {
        self.open.iter().any(|(_, wanted)| matches!(wanted, Wanted::Cut { .. } | Wanted::Grow))
    }
}

/// Nodes that map one file, and what everybody must see in it.
struct Cluster {
    w: World,
    ino: u64,
    nodes: Vec<Node>,
    truth: [u8; PAGES as usize],
}

fn uniform(data: &[u8]) -> u8 {
    let first = data.first().copied().unwrap_or(0);
    assert!(data.iter().all(|byte| *byte == first), "a torn page");
    first
}

impl Cluster {
    fn new(writers: &[bool]) -> Cluster {
        let mut w = world();
        w.put(&ROOT, "/t/map", 0o666, &[0; PAGES as usize * PAGE]).unwrap();
        let ino = w.stat(&ROOT, "/t/map").unwrap().ino;
        let nodes = (1..).zip(writers).map(|(number, writes)| {
            let client = agent(number);
            let fh = w.open(&client, "/t/map", if *writes { 2 } else { 0 }).unwrap().fh;
            let session = w.begin(&client);
            Node {
                client,
                fh,
                writes: *writes,
                session,
                batch: 0,
                poll: None,
                cached: BTreeMap::new(),
                open: Vec::new(),
                giving: Vec::new(),
                is_old: false,
            }
        });
        let nodes = nodes.collect();
        let mut cluster = Cluster { w, ino, nodes, truth: [0; PAGES as usize] };
        (0..cluster.nodes.len()).for_each(|at| cluster.poll(at));
        cluster
    }

    fn poll(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let row = Recalls { session: node.session, forgotten: node.batch };
        node.poll = Some(self.w.send(&node.client, message(&row), &[]));
    }

    fn send(&mut self, at: usize, message: Message, payload: &[u8], wanted: Wanted) {
        let id = self.w.send(&self.nodes[at].client, message, payload);
        self.nodes[at].open.push((id, wanted));
        self.collect();
    }

    fn wants(&self, at: usize, is: impl Fn(&Wanted) -> bool) -> bool {
        self.nodes[at].open.iter().any(|(_, wanted)| is(wanted))
    }

    /// Has a page read, unless that is under way.
    fn fetch(&mut self, at: usize, page: u64) {
        if self.nodes[at].is_old {
            return;
        }
        if self.wants(
            at,
            |wanted| matches!(wanted, Wanted::Page { page: other, .. } if *other == page),
        ) {
            return;
        }
        let node = &self.nodes[at];
        let row = ReadPages {
            fh: node.fh,
            ino: self.ino,
            offset: page * PAGE_SIZE,
            size: PAGE_SIZE as u32,
            exclusive: node.writes.into(),
            waits: 1,
        };
        let wanted = Wanted::Page { page, is_exclusive: node.writes, is_void: false };
        self.send(at, message(&row), &[], wanted);
    }

    /// Takes the answers that have come, in their order.
    fn collect(&mut self) {
        while !self.w.answered.is_empty() {
            let id = self.w.answered.remove(0);
            let is_its = |node: &Node| node.open.iter().any(|(other, _)| *other == id);
            let Some(at) = self.nodes.iter().position(is_its) else { continue };
            let Some(answer) = self.w.answer(id) else { continue };
            let index = self.nodes[at].open.iter().position(|(other, _)| *other == id).unwrap();
            let (_, wanted) = self.nodes[at].open.remove(index);
            let (reply, data) = answer.unwrap();
            match wanted {
                Wanted::Page { is_void: true, .. } => {}
                Wanted::Page { page, is_exclusive, .. } => {
                    assert_eq!(Paged::get(&reply.args).unwrap().kept, pages::KEPT);
                    let mut data = data;
                    data.resize(PAGE, 0);
                    assert_eq!(uniform(&data), self.truth[page as usize], "page {page} of {at}");
                    let cached = Cached { data, is_dirty: false, is_exclusive };
                    // What is there is not read again.
                    self.nodes[at].cached.entry(page).or_insert(cached);
                }
                Wanted::Read { page } => {
                    let data = uniform(&data);
                    assert_eq!(data, self.truth[page as usize], "{at} reads page {page}");
                }
                Wanted::Write { page, value } => {
                    assert_eq!(Count::get(&reply.args).unwrap().count, PAGE_SIZE);
                    self.truth[page as usize] = value;
                }
                Wanted::Grow => {}
                Wanted::Cut { keep } => {
                    self.truth[keep as usize..].fill(0);
                    self.nodes[at].cached.retain(|page, _| *page < keep);
                    let size = PAGES * PAGE_SIZE;
                    let grow = SetAttr { valid: set::SIZE, size, ..SetAttr::default() };
                    let row = Setattr { ino: self.ino, fh: self.nodes[at].fh };
                    self.send(at, message(&row), &grow.bytes(), Wanted::Grow);
                }
            }
        }
        for at in 0..self.nodes.len() {
            self.give(at);
        }
    }

    /// Writes a page back that has been changed. It never waits for pages.
    fn write_back(&mut self, at: usize, page: u64) {
        let node = &mut self.nodes[at];
        let Some(cached) = node.cached.get_mut(&page).filter(|cached| cached.is_dirty) else {
            return;
        };
        cached.is_dirty = false;
        let row = WritePages { fh: node.fh, ino: self.ino, offset: page * PAGE_SIZE };
        let (reply, _) = self.w.call(&node.client, &row, &cached.data).unwrap();
        assert_eq!(reply.count, PAGE_SIZE);
    }

    /// Gives back what is to be, if the kernel can write.
    fn give(&mut self, at: usize) {
        if self.nodes[at].is_cutting() {
            return;
        }
        while let Some(page) = self.nodes[at].giving.pop() {
            self.write_back(at, page);
            let node = &mut self.nodes[at];
            node.cached.remove(&page);
            for (_, wanted) in &mut node.open {
                if let Wanted::Page { page: other, is_void, .. } = wanted {
                    *is_void |= *other == page;
                }
            }
            let row = LetGo { session: node.session, ino: self.ino, first: page, count: 1 };
            let client = node.client;
            self.w.call(&client, &row, &[]).unwrap();
            self.collect();
        }
    }

    /// Hears what is to be given back; or writes everything back and begins a new session.
    fn hear(&mut self, at: usize) {
        if self.nodes[at].is_old {
            (0..PAGES).for_each(|page| self.write_back(at, page));
            let node = &mut self.nodes[at];
            node.cached.clear();
            node.is_old = false;
            node.batch = 0;
            let client = node.client;
            self.nodes[at].session = self.w.begin(&client);
            self.poll(at);
            self.collect();
            return;
        }
        let Some(answer) = self.nodes[at].poll.and_then(|poll| self.w.answer(poll)) else { return };
        let (reply, payload) = answer.unwrap();
        let told = Recalled::get(&reply.args).unwrap();
        assert_eq!(told.session, self.nodes[at].session);
        self.nodes[at].batch = told.batch;
        for forget in payload.chunks(Forget::SIZE).map(|one| Forget::get(one).unwrap()) {
            let all = forget.first..forget.first + forget.count;
            self.nodes[at].giving.extend(all);
        }
        self.give(at);
        self.poll(at);
        self.collect();
    }

    fn step(&mut self, at: usize, step: &Step) {
        let page = step.page();
        let is_cutting = self.nodes[at].is_cutting();
        match *step {
            Step::Hear => self.hear(at),
            _ if is_cutting => {}
            Step::Load(_) => match self.nodes[at].cached.get(&page) {
                Some(cached) => {
                    let seen = uniform(&cached.data);
                    assert_eq!(seen, self.truth[page as usize], "{at} loads page {page}");
                }
                None => self.fetch(at, page),
            },
            Step::Store(..) if self.nodes.iter().any(Node::is_cutting) => {}
            // What it reads at the same moment may be what was before.
            Step::Store(..) if self.wants(at, |wanted| *wanted == Wanted::Read { page }) => {}
            Step::Store(_, value) => match self.nodes[at].cached.get_mut(&page) {
                Some(cached) if cached.is_exclusive => {
                    cached.data.fill(value);
                    cached.is_dirty = true;
                    self.truth[page as usize] = value;
                }
                Some(_) => {}
                None => self.fetch(at, page),
            },
            Step::WriteBack(_) => self.write_back(at, page),
            Step::Evict(_) => {
                self.write_back(at, page);
                self.nodes[at].cached.remove(&page);
            }
            Step::Read(_) => {
                self.write_back(at, page);
                let fh = self.nodes[at].fh;
                let offset = page * PAGE_SIZE;
                let row = Read { fh, ino: self.ino, offset, size: PAGE_SIZE as u32 };
                self.send(at, message(&row), &[], Wanted::Read { page });
            }
            Step::Write(_, value) if self.nodes[at].writes => {
                self.write_back(at, page);
                self.nodes[at].cached.remove(&page);
                let fh = self.nodes[at].fh;
                let row = Write { fh, ino: self.ino, offset: (page * PAGE_SIZE) | WRITE_AT };
                self.send(at, message(&row), &[value; PAGE], Wanted::Write { page, value });
            }
            Step::Cut(keep) if self.nodes[at].writes => {
                let size = keep * PAGE_SIZE;
                let cut = SetAttr { valid: set::SIZE, size, ..SetAttr::default() };
                let row = Setattr { ino: self.ino, fh: self.nodes[at].fh };
                self.send(at, message(&row), &cut.bytes(), Wanted::Cut { keep });
            }
            Step::Write(..) | Step::Cut(_) => {}
            Step::Crash => self.crash(),
        }
    }

    /// The server dies and comes back. Nothing of what was written is lost; calls that waited are not made again.
    fn crash(&mut self) {
        if self.nodes.iter().any(Node::is_cutting) {
            return;
        }
        self.w.restart();
        self.w.tick();
        for node in &mut self.nodes {
            node.open.clear();
            node.giving.clear();
            node.is_old = true;
        }
    }

    /// Everybody hears what there is until nothing is under way.
    fn settle(&mut self) {
        for _ in 0..200 {
            (0..self.nodes.len()).for_each(|at| self.hear(at));
            if self.nodes.iter().all(|node| node.open.is_empty()) {
                return;
            }
        }
        let open: Vec<_> = self.nodes.iter().map(|node| &node.open).collect();
        panic!("these wait for each other: {open:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Load(u64),
    Store(u64, u8),
    WriteBack(u64),
    Evict(u64),
    Read(u64),
    Write(u64, u8),
    /// To so many pages.
    Cut(u64),
    Hear,
    Crash,
}

impl Step {
    fn page(&self) -> u64 {
        match *self {
            Step::Load(page)
            | Step::Store(page, _)
            | Step::WriteBack(page)
            | Step::Evict(page)
            | Step::Read(page)
            | Step::Write(page, _) => page,
            Step::Cut(_) | Step::Hear | Step::Crash => 0,
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let page = || 0..PAGES;
    prop_oneof![
        8 => page().prop_map(Step::Load),
        8 => (page(), any::<u8>()).prop_map(|(page, value)| Step::Store(page, value)),
        2 => page().prop_map(Step::WriteBack),
        1 => page().prop_map(Step::Evict),
        3 => page().prop_map(Step::Read),
        3 => (page(), any::<u8>()).prop_map(|(page, value)| Step::Write(page, value)),
        1 => proptest::prelude::Just(Step::Cut(0)),
        12 => proptest::prelude::Just(Step::Hear),
        1 => proptest::prelude::Just(Step::Crash),
    ]
}

proptest! {
    /// Loads, reads and pages show what was stored or written last, on whatever node, and nobody waits for ever.
    #[test]
    fn every_byte_has_one_truth(
        writers in (any::<bool>(), any::<bool>()),
        keep in 0..PAGES,
        steps in proptest::collection::vec((0..3_usize, step()), 1..120),
    ) {
        let mut cluster = Cluster::new(&[true, writers.0, writers.1]);
        for (at, step) in &steps {
            // Who cuts a file while another does, to another size, may see its own old pages a little longer.
            let step = if matches!(step, Step::Cut(_)) { &Step::Cut(keep) } else { step };
            cluster.step(*at, step);
        }
        cluster.settle();
        for page in 0..PAGES {
            for at in 0..3 {
                cluster.step(at, &Step::Read(page));
                cluster.settle();
            }
        }
    }
}

impl Cluster {
    fn read_pages(&mut self, at: usize, page: u64, count: u64, exclusive: u8, waits: u8) -> u8 {
        let node = &self.nodes[at];
        let size = u32::try_from(count * PAGE_SIZE).unwrap();
        let offset = page * PAGE_SIZE;
        let row = ReadPages { fh: node.fh, ino: self.ino, offset, size, exclusive, waits };
        let client = node.client;
        self.w.call(&client, &row, &[]).unwrap().0.kept
    }
}

#[test]
fn pages_are_shared_by_those_who_only_read() {
    let mut c = Cluster::new(&[true, false, false]);
    assert_eq!(c.read_pages(1, 0, 3, 0, 1), pages::KEPT);
    assert_eq!(c.read_pages(2, 0, 3, 0, 0), pages::KEPT);
    // Who would write does not wait if it does not want to, and then nobody has to give anything up.
    assert_eq!(c.read_pages(0, 0, 1, 1, 0), pages::TAKEN);
    c.hear(1);
    assert_eq!(c.read_pages(2, 0, 3, 0, 0), pages::KEPT);
    c.fetch(0, 1);
    assert!(!c.nodes[0].cached.contains_key(&1));
    assert_eq!(c.read_pages(1, 1, 1, 0, 0), pages::TAKEN, "it would be behind");
    c.hear(1);
    assert!(!c.nodes[0].cached.contains_key(&1));
    c.hear(2);
    assert!(c.nodes[0].cached.contains_key(&1));
    assert_eq!(c.read_pages(1, 0, 1, 0, 0), pages::KEPT, "only that one was recalled");
}

#[test]
fn who_comes_later_waits_behind_who_waits() {
    let mut c = Cluster::new(&[true, false, false]);
    assert_eq!(c.read_pages(1, 0, 3, 0, 1), pages::KEPT);
    c.fetch(0, 1);
    assert_eq!(c.read_pages(2, 1, 1, 0, 0), pages::TAKEN, "it would go on for ever");
    assert_eq!(c.read_pages(2, 0, 1, 0, 0), pages::KEPT);
    // Who has a page may look at it until it has given it back.
    c.step(1, &Step::Read(1));
    assert!(c.nodes[1].open.is_empty());
    c.step(2, &Step::Read(1));
    assert_eq!(c.nodes[2].open.len(), 1);
    c.settle();
}

#[test]
fn what_is_read_anew_after_two_have_made_a_file_shorter_comes_back() {
    let mut c = Cluster::new(&[true, false, true]);
    let loads = [(0, 0), (1, 0)].map(|(at, page)| (at, Step::Load(page)));
    let cuts = [(2, Step::Load(0)), (0, Step::Cut(0)), (2, Step::Cut(0))];
    let both = [(0, Step::Hear), (1, Step::Hear)];
    let first = [(0, Step::Hear), (0, Step::Load(1)), (0, Step::Hear)];
    // The second finds its page, which the first has cut off and did not wait for.
    let stores = [(2, Step::Store(0, 0)), (2, Step::Store(0, 1))];
    for (at, step) in loads.iter().chain(&first).chain(&cuts).chain(&both).chain(&stores) {
        c.step(*at, step);
    }
    c.settle();
    c.step(0, &Step::Read(0));
    c.settle();
}

#[test]
fn two_that_make_a_file_shorter_do_not_wait_for_each_other() {
    let mut c = Cluster::new(&[true, true]);
    c.fetch(0, 0);
    c.fetch(1, 1);
    c.step(0, &Step::Store(0, 7));
    c.step(1, &Step::Cut(0));
    c.step(0, &Step::Cut(1));
    // Their kernels write nothing back, and no agent says anything.
    assert!(!c.wants(1, |wanted| matches!(wanted, Wanted::Cut { .. })));
    c.settle();
    c.step(1, &Step::Read(0));
    c.settle();
}

#[test]
fn who_does_not_give_pages_back_is_waited_for_as_long_as_its_session_lasts_and_is_fenced() {
    let mut c = Cluster::new(&[true, true]);
    c.fetch(0, 0);
    c.step(0, &Step::Store(0, 7));
    c.fetch(1, 0);
    c.step(1, &Step::Read(0));
    assert_eq!(c.nodes[1].open.len(), 2, "it may have been changed");
    // Its changes are lost with it.
    c.truth[0] = 0;
    for _ in 0..4 {
        c.w.clock += LEASE / 4;
        c.w.tick();
        c.hear(1);
    }
    assert_eq!(c.nodes[1].open.len(), 0);
    let node = &c.nodes[0];
    let row = WritePages { fh: node.fh, ino: c.ino, offset: 0 };
    assert_eq!(c.w.call(&node.client, &row, &[7; PAGE]).map(drop), Err(EIO));
    let row = LetGo { session: node.session, ino: c.ino, first: 0, count: PAGES };
    let client = node.client;
    c.w.call(&client, &row, &[]).unwrap();
    assert_eq!(c.read_pages(0, 0, 1, 1, 1), pages::NO_SESSION);
    c.nodes[0].session = c.w.begin(&client);
    // A word of the session before is not taken for one of this.
    assert_eq!(c.read_pages(0, 1, 1, 1, 1), pages::KEPT);
    c.w.call(&client, &row, &[]).unwrap();
    assert_eq!(c.read_pages(1, 1, 1, 1, 0), pages::TAKEN);
}

#[test]
fn a_crash_of_the_server_does_not_let_others_see_what_was_before() {
    let mut c = Cluster::new(&[true, true]);
    c.fetch(0, 0);
    c.step(0, &Step::Store(0, 7));
    c.w.restart();
    c.w.tick();
    let reader = c.nodes[1].client;
    let row = Read { fh: c.nodes[1].fh, ino: c.ino, offset: 0, size: 1 };
    let read = c.w.send(&reader, message(&row), &[]);
    assert!(c.w.answer(read).is_none());
    c.write_back(0, 0);
    let client = c.nodes[0].client;
    c.w.begin(&client);
    assert_eq!(c.w.answer(read).unwrap().unwrap().1, [7]);
    // Nobody has pages now.
    c.w.restart();
    c.w.tick();
    assert_eq!(c.w.call(&reader, &row, &[]).unwrap().1, [7]);
}

#[test]
fn a_crash_of_the_server_lets_nobody_change_what_others_share() {
    let mut c = Cluster::new(&[true, false]);
    assert_eq!(c.read_pages(1, 0, 1, 0, 1), pages::KEPT);
    c.w.restart();
    c.w.tick();
    c.nodes.iter_mut().for_each(|node| node.is_old = true);
    c.hear(0);
    assert_eq!(c.read_pages(0, 0, 1, 1, 0), pages::TAKEN);
    c.hear(1);
    assert_eq!(c.read_pages(0, 0, 1, 1, 0), pages::KEPT);
}

#[test]
fn who_calls_but_never_gives_pages_back_is_waited_for_no_longer_some_time() {
    let mut c = Cluster::new(&[true, true]);
    c.fetch(0, 0);
    c.fetch(1, 0);
    let waits = |c: &Cluster| !c.nodes[1].open.is_empty();
    let pass = |c: &mut Cluster, time: u64| {
        for _ in 0..time / (LEASE / 4) {
            c.w.clock += LEASE / 4;
            c.w.tick();
            for at in 0..2 {
                let poll = c.nodes[at].poll.take().unwrap();
                c.w.answer(poll);
                c.poll(at);
            }
            c.collect();
        }
    };
    pass(&mut c, GIVE_BACK_TIME - LEASE);
    assert!(waits(&c));
    pass(&mut c, LEASE);
    assert!(!waits(&c));
}

#[test]
fn what_looks_at_a_whole_file_waits_for_what_was_written_to_mappings() {
    let mut c = Cluster::new(&[true, true]);
    for number in 0..2 {
        c.fetch(0, 2);
        c.step(0, &Step::Store(2, 7 + number));
        let other = &c.nodes[1];
        let call = if number == 0 {
            message(&Fsync { fh: other.fh, ino: c.ino, datasync: 1 })
        } else {
            message(&Seek { fh: other.fh, ino: c.ino, offset: 0, whence: 3 })
        };
        let client = other.client;
        let id = c.w.send(&client, call, &[]);
        assert!(c.w.answer(id).is_none());
        c.hear(0);
        assert!(c.w.answer(id).unwrap().is_ok());
        c.step(1, &Step::Read(2));
        assert!(c.nodes[1].open.is_empty());
    }
}

#[test]
fn pages_that_come_back_never_make_a_file_longer() {
    let mut c = Cluster::new(&[true]);
    assert_eq!(c.read_pages(0, 0, PAGES + 5, 1, 1), pages::KEPT);
    let (client, fh, ino) = (c.nodes[0].client, c.nodes[0].fh, c.ino);
    let size = SetAttr { valid: set::SIZE, size: PAGE_SIZE + 5, ..SetAttr::default() };
    c.w.call(&client, &Setattr { ino, fh }, &size.bytes()).unwrap();
    for offset in [0, PAGE_SIZE, 2 * PAGE_SIZE] {
        let written = c.w.call(&client, &WritePages { fh, ino, offset }, &[9; PAGE]).unwrap().0;
        assert_eq!(written.count, PAGE_SIZE);
    }
    assert_eq!(c.w.getattr(&ROOT, ino).unwrap().size, PAGE_SIZE + 5);
    // It must hold all of them, and exclusively.
    let row = WritePages { fh, ino, offset: (PAGES + 4) * PAGE_SIZE };
    assert_eq!(c.w.call(&client, &row, &[9; 2 * PAGE]).map(drop), Err(EIO));
}

#[test]
fn calls_about_pages_are_checked() {
    let mut c = Cluster::new(&[true, false]);
    let (ino, fh, client) = (c.ino, c.nodes[0].fh, c.nodes[0].client);
    let good = ReadPages { fh, ino, offset: 0, size: 1, exclusive: 0, waits: 0 };
    let read = |c: &mut Cluster, row: ReadPages| c.w.call(&client, &row, &[]).map(drop);
    assert_eq!(read(&mut c, ReadPages { fh: 99, ..good }), Err(EBADF));
    assert_eq!(read(&mut c, ReadPages { offset: 5, ..good }), Err(EINVAL));
    assert_eq!(read(&mut c, ReadPages { offset: 1 << 63, ..good }), Err(EINVAL));
    assert_eq!(read(&mut c, ReadPages { offset: i64::MAX as u64 & !4095, ..good }), Ok(()));
    assert_eq!(read(&mut c, ReadPages { size: u32::MAX, ..good }), Ok(()));
    assert_eq!(read(&mut c, ReadPages { size: 0, ..good }), Ok(()));
    let let_go = LetGo { session: c.nodes[0].session, ino, first: 5, count: u64::MAX };
    assert_eq!(c.w.call(&ROOT, &let_go, &[]).map(drop), Err(EPERM), "a program");
    c.w.call(&client, &let_go, &[]).unwrap();
    c.w.call(&client, &LetGo { count: 0, first: 0, ..let_go }, &[]).unwrap();
    assert_eq!(c.read_pages(1, 0, 1, 1, 0), pages::TAKEN, "it is still shared");
    let reader = c.nodes[1].client;
    let row = WritePages { fh: c.nodes[1].fh, ino, offset: 0 };
    assert_eq!(c.w.call(&reader, &row, &[1]).map(drop), Err(EBADF), "opened to read");
    assert_eq!(c.w.call(&client, &WritePages { fh, ino, offset: 0 }, &[1]).map(drop), Err(EIO));
    let row = WritePages { fh, ino, offset: u64::MAX };
    assert_eq!(c.w.call(&client, &row, &[1]).map(drop), Err(EINVAL));
    assert!(c.w.call(&client, &Getattr { ino, fh }, &[]).is_ok());
}

#[test]
fn pages_are_bounded() {
    let mut c = Cluster::new(&[true]);
    let fetch = |c: &mut Cluster, run: usize| {
        let node = &c.nodes[0];
        let offset = 2 * run as u64 * PAGE_SIZE;
        let row = ReadPages { fh: node.fh, ino: c.ino, offset, size: 1, exclusive: 1, waits: 1 };
        let client = node.client;
        c.w.call(&client, &row, &[]).unwrap().0.kept
    };
    let client = c.nodes[0].client;
    let told = |c: &mut Cluster| c.nodes[0].poll.and_then(|poll| c.w.answer(poll));
    for run in 0..PAGE_RUNS_MAX - 1 {
        assert_eq!(fetch(&mut c, run), pages::KEPT);
    }
    assert!(told(&mut c).is_none());
    assert_eq!(fetch(&mut c, PAGE_RUNS_MAX - 1), pages::KEPT);
    let (told, _) = told(&mut c).unwrap().unwrap();
    assert_eq!(Recalled::get(&told.args).unwrap(), Recalled::default(), "it is to begin anew");
    assert_eq!(fetch(&mut c, 2 * PAGE_RUNS_MAX), pages::NO_SESSION);
    c.w.begin(&client);
    assert_eq!(fetch(&mut c, 0), pages::KEPT);
}
