//! Leases: what agents remember is true, changes wait for them and for nothing longer, whatever fails.

use crate::answer::RESTART;
use crate::limits::{
    AGENTS_MAX, CONTESTED_FIRST, LEASE, LEASES_PER_AGENT_MAX, POLL_TIME, PUT_OFF_BYTES_MAX,
    PUT_OFF_MAX, RECALLS_PER_ANSWER,
};
use crate::tests::driver::{Client, Got, ROOT, USER, World, attr};
use crate::tests::errors::world;
use calls::Row;
use calls::vfs::{
    Attr, Create, Created, Forget, Getattr, Leased, Link, Lookup, Mkdir, Opened, Parent, PutOff,
    ROOT_INO, Read, Recalled, Recalls, Rename, Renamed, Rmdir, SetAttr, Setattr, Setxattr, Unlink,
    Write, WriteBack, WrittenBack, attributes, search, set,
};
use calls::wire::Wire;
use dvk::server::{Gone, Server};
use dvk::store::Store as _;
use m3ipc::errno::numbers::{ENOENT, ENOLCK, EPERM};
use m3ipc::{CallId, Cred, Endpoint, Message, NodeId, Tag};
use proptest::prelude::{Strategy, any, prop_oneof, proptest};
use std::collections::{BTreeMap, BTreeSet};

/// The agent of a node.
pub(crate) fn agent(node: u16) -> Client {
    Client { endpoint: Endpoint::new(NodeId(node), 9, 1), cred: Cred::new(0, 0, 0) }
}

pub(crate) fn message<R: Row>(row: &R) -> Message {
    let mut message = Message::request(R::NUMBER);
    row.put(&mut message.args);
    message
}

fn recalled((message, payload): (Message, Vec<u8>)) -> (Recalled, Vec<u64>) {
    let inodes = payload.chunks(Forget::SIZE).map(|one| Forget::get(one).unwrap().ino).collect();
    (Recalled::get(&message.args).unwrap(), inodes)
}

impl World {
    pub(crate) fn begin(&mut self, agent: &Client) -> u64 {
        let row = Recalls { session: 0, forgotten: 0 };
        let (reply, _) = self.call(agent, &row, &[]).unwrap();
        assert_ne!(reply.session, 0);
        assert_eq!(u64::from(reply.lease) * 1_000_000, LEASE);
        reply.session
    }

    fn poll(&mut self, agent: &Client, session: u64, forgotten: u64) -> CallId {
        self.send(agent, message(&Recalls { session, forgotten }), &[])
    }

    fn told(&mut self, poll: CallId) -> Option<(Recalled, Vec<u64>)> {
        self.answer(poll).map(|answer| recalled(answer.unwrap()))
    }

    fn look(&mut self, agent: &Client, parent: u64, name: &str) -> Got<(Leased, Attr)> {
        let (leased, payload) = self.call(agent, &Lookup { parent }, name.as_bytes())?;
        Ok((leased, Attr::get(&payload).unwrap()))
    }

    fn leases_attr(&mut self, agent: &Client, ino: u64) -> bool {
        let (leased, _) = self.call(agent, &Getattr { ino, fh: 0 }, &[]).unwrap();
        leased.attr != 0
    }

    fn chmod_later(&mut self, client: &Client, ino: u64, mode: u32) -> CallId {
        let change = SetAttr { valid: set::MODE, mode, ..SetAttr::default() };
        self.send(client, message(&Setattr { ino, fh: 0 }), &change.bytes())
    }
}

#[test]
fn a_change_waits_until_others_have_forgotten() {
    let mut w = world();
    let (a, b) = (agent(1), agent(2));
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let [of_a, of_b] = [&a, &b].map(|agent| w.begin(agent));
    let [poll_a, poll_b] =
        [(&a, of_a), (&b, of_b)].map(|(agent, session)| w.poll(agent, session, 0));
    assert!(w.leases_attr(&a, ino) && w.leases_attr(&b, ino));
    let change = w.chmod_later(&a, ino, 0o640);
    assert!(w.answer(change).is_none(), "b remembers it");
    assert_eq!(w.getattr(&ROOT, ino).unwrap().mode & 0o777, 0o644, "nothing has changed yet");
    assert!(!w.leases_attr(&b, ino), "it is about to change");
    let (told, inodes) = w.told(poll_b).unwrap();
    assert_eq!(inodes, [ino]);
    assert!(w.told(poll_a).is_none(), "who changes it knows");
    // Without the word that it was forgotten, it is told again.
    let again = w.poll(&b, of_b, 0);
    assert_eq!(w.told(again).unwrap(), (told, inodes));
    assert!(w.answer(change).is_none());
    let poll_b = w.poll(&b, of_b, told.batch);
    assert_eq!(w.answer(change).unwrap().map(|_| ()), Ok(()));
    assert_eq!(w.getattr(&ROOT, ino).unwrap().mode & 0o777, 0o640);
    assert!(w.told(poll_b).is_none(), "there is nothing more to forget");
    // It is contested now; the one that has it keeps it.
    assert!(!w.leases_attr(&b, ino) && w.leases_attr(&a, ino));
    w.clock += CONTESTED_FIRST;
    assert!(w.leases_attr(&b, ino));
}

#[test]
fn a_name_is_leased_to_whom_its_directory_may_be_searched_by() {
    let mut w = world();
    let a = agent(1);
    let (dir, owner) = {
        let dir = w.stat(&ROOT, "/u").unwrap();
        (dir.ino, dir.uid)
    };
    let before = w.look(&a, dir, "f").unwrap().0;
    assert_eq!(before, Leased { owner, ..Leased::default() }, "it has no session");
    assert_eq!(w.look(&a, dir, "no").map(drop), Err(ENOENT));
    let mut check = |mode: u32, expected: u8| {
        // It forgets what it has.
        w.begin(&a);
        w.chmod(&ROOT, "/u", mode).unwrap();
        let (leased, found) = w.look(&a, dir, "no").unwrap();
        assert_eq!((leased.name, leased.owner, found.ino), (expected, owner, 0), "{mode:o}");
        let (leased, found) = w.look(&a, dir, "f").unwrap();
        assert_eq!((leased.name, leased.attr & attributes::KEPT), (expected, 1), "{mode:o}");
        assert_ne!(found.ino, 0);
    };
    check(0o755, search::SUPERUSER | search::OWNER | search::EVERYBODY);
    check(0o751, search::SUPERUSER | search::OWNER | search::EVERYBODY);
    check(0o750, search::SUPERUSER | search::OWNER);
    check(0o055, search::SUPERUSER);
}

#[test]
fn a_file_is_leased_with_whether_everybody_may_read_it() {
    let mut w = world();
    let a = agent(1);
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let mut check = |change: &dyn Fn(&mut World), expected: bool| {
        w.begin(&a);
        change(&mut w);
        let (leased, _) = w.call(&a, &Getattr { ino, fh: 0 }, &[]).unwrap();
        let is_readable = leased.attr & attributes::READABLE != 0;
        assert_eq!((leased.attr & attributes::KEPT, is_readable), (1, expected));
    };
    check(&|w| w.chmod(&ROOT, "/u/f", 0o444).map(drop).unwrap(), true);
    check(&|w| w.chmod(&ROOT, "/u/f", 0o640).map(drop).unwrap(), false);
    check(&|w| w.chmod(&ROOT, "/u/f", 0o044).map(drop).unwrap(), false);
    check(&|w| w.chmod(&ROOT, "/u/f", 0o644).map(drop).unwrap(), true);
    // user 5 may nothing; the mask and others may read.
    let entries = [
        (1_u16, 6_u16, u32::MAX),
        (2, 0, 5),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 4, u32::MAX),
    ];
    let list: Vec<u8> = 2_u32
        .to_le_bytes()
        .into_iter()
        .chain(entries.into_iter().flat_map(|(tag, rights, id)| {
            let [a, b] = [tag.to_le_bytes(), rights.to_le_bytes()];
            [&a[..], &b, &id.to_le_bytes()].concat()
        }))
        .collect();
    check(&|w| w.setxattr(&ROOT, "/u/f", "system.posix_acl_access", &list, 0).unwrap(), false);
}

#[test]
fn who_does_not_answer_is_waited_for_as_long_as_its_session_lasts() {
    let mut w = world();
    let (a, b) = (agent(1), agent(2));
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    w.begin(&b);
    let begun = w.clock;
    assert!(w.leases_attr(&b, ino));
    for gone in [None, Some(Gone::Endpoint(b.endpoint)), Some(Gone::Node(NodeId(2)))] {
        gone.into_iter().for_each(|gone| w.gone(gone));
        let change = w.chmod_later(&a, ino, 0o600);
        assert!(w.answer(change).is_none(), "its kernel may go on telling programs: {gone:?}");
        w.cancel(change);
        assert!(w.answer(change).is_some());
    }
    let change = w.chmod_later(&a, ino, 0o600);
    w.clock = begun + LEASE - 10_000;
    w.tick();
    assert!(w.answer(change).is_none());
    assert_eq!(w.server.deadline(), Some(begun + LEASE));
    w.clock = begun + LEASE;
    w.tick();
    assert!(w.answer(change).unwrap().is_ok());
    assert_eq!(w.server.deadline(), None, "nothing is left of it");
}

#[test]
fn a_session_goes_on_by_being_answered_and_ends_with_a_farewell() {
    let mut w = world();
    let b = agent(2);
    let session = w.begin(&b);
    let mut forgotten = 0;
    for _ in 0..20 {
        let poll = w.poll(&b, session, forgotten);
        assert!(w.told(poll).is_none());
        w.clock += POLL_TIME;
        w.tick();
        let (told, inodes) = w.told(poll).unwrap();
        assert_eq!((told.session, inodes.len()), (session, 0));
        forgotten = told.batch;
    }
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    assert!(w.leases_attr(&b, ino));
    let strange = w.poll(&b, session + 2, forgotten);
    assert_eq!(w.told(strange).unwrap().0, Recalled::default(), "a session that is none");
    let farewell = w.poll(&b, session, u64::MAX);
    assert_eq!(w.told(farewell).unwrap().0, Recalled::default());
    assert!(!w.leases_attr(&b, ino));
    assert_eq!(w.server.deadline(), None);
    let change = w.chmod_later(&ROOT, ino, 0o600);
    assert!(w.answer(change).unwrap().is_ok());
}

#[test]
fn after_a_crash_of_the_server_changes_wait_for_those_that_were_there() {
    for answers in [true, false] {
        let mut w = world();
        let (a, b) = (agent(1), agent(2));
        let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
        let session = w.begin(&b);
        assert!(w.leases_attr(&b, ino));
        w.restart();
        assert_eq!(w.server.deadline(), Some(0), "their time is to be counted");
        w.tick();
        let begun = w.clock;
        let change = w.chmod_later(&a, ino, 0o600);
        assert!(w.answer(change).is_none());
        let own = w.chmod_later(&b, ino, 0o604);
        assert!(w.answer(own).unwrap().is_ok(), "its own memory it knows");
        if answers {
            let poll = w.poll(&b, session, 0);
            assert_eq!(w.told(poll).unwrap().0, Recalled::default(), "it is to begin anew");
            assert!(w.answer(change).is_none());
            w.begin(&b);
        } else {
            w.clock = begun + LEASE;
            w.tick();
        }
        assert!(w.answer(change).unwrap().is_ok());
        w.restart();
    }
}

#[test]
fn what_an_agent_cannot_know_it_is_told_of_its_own_changes_too() {
    let mut w = world();
    let a = agent(1);
    let dir = w.stat(&ROOT, "/u").unwrap().ino;
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let session = w.begin(&a);
    let poll = w.poll(&a, session, 0);
    assert!(w.leases_attr(&a, ino));
    let unlink = w.send(&a, message(&Unlink { parent: dir, forgotten: 0 }), b"f");
    assert!(w.answer(unlink).is_none());
    let (told, inodes) = w.told(poll).unwrap();
    assert_eq!(inodes, [ino]);
    w.poll(&a, session, told.batch);
    assert!(w.answer(unlink).unwrap().is_ok());
    // It knows of this one.
    let ino = w.stat(&ROOT, "/u/d").unwrap().ino;
    assert!(w.leases_attr(&a, ino));
    let rmdir = w.send(&a, message(&Rmdir { parent: dir, forgotten: ino }), b"d");
    assert!(w.answer(rmdir).is_some());
}

#[test]
fn what_is_recalled_is_bounded_and_told_in_parts() {
    let mut w = world();
    let (a, b) = (agent(1), agent(2));
    let session = w.begin(&b);
    let count = RECALLS_PER_ANSWER as u64 + 5;
    let dir = w.mkdir(&ROOT, "/many", 0o755).unwrap().ino;
    let mut inodes = Vec::new();
    for index in 0..count {
        let made = w.mkdir(&ROOT, &format!("/many/{index}"), 0o755).unwrap().ino;
        assert!(w.leases_attr(&b, made));
        inodes.push(made);
    }
    w.poll(&b, session, 0);
    let changes: Vec<CallId> = inodes.iter().map(|ino| w.chmod_later(&a, *ino, 0o700)).collect();
    let mut forgotten = 0;
    let mut parts = Vec::new();
    while changes.iter().any(|change| w.server.leases.is_put_off(*change)) {
        let poll = w.poll(&b, session, forgotten);
        let (told, inodes) = w.told(poll).unwrap_or_default();
        forgotten = told.batch;
        parts.push(inodes.len());
    }
    assert!(parts.iter().all(|part| *part <= RECALLS_PER_ANSWER), "{parts:?}");
    assert!(parts.contains(&RECALLS_PER_ANSWER), "{parts:?}");
    assert!(changes.iter().all(|change| w.answer(*change).unwrap().is_ok()));
    assert_ne!(dir, 0);
}

#[test]
fn calls_that_are_put_off_are_bounded() {
    let mut w = world();
    let b = agent(2);
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    w.begin(&b);
    assert!(w.leases_attr(&b, ino));
    let file = w.open(&ROOT, "/u/f", 2).unwrap();
    let write = message(&Write { fh: file.fh, ino, offset: 0 });
    let large = vec![7; 128 * 1024];
    let room = PUT_OFF_BYTES_MAX / large.len();
    let calls: Vec<CallId> = (0..=room).map(|_| w.send(&ROOT, write, &large)).collect();
    assert_eq!(w.answer(calls[room]).unwrap().map(drop), Err(RESTART), "too many bytes");
    let small: Vec<CallId> =
        (room..PUT_OFF_MAX).map(|_| w.chmod_later(&ROOT, ino, 0o600)).collect();
    let refused: Vec<_> = small.iter().filter_map(|id| w.answer(*id)).collect();
    assert!(refused.iter().all(|answer| answer.as_ref().map(|_| ()) == Err(&RESTART)));
    w.gone(Gone::Endpoint(ROOT.endpoint));
    w.clock += LEASE;
    w.tick();
    assert!(calls[..room].iter().all(|id| w.answer(*id).is_none()), "nobody wants their answers");
}

#[test]
fn agents_and_their_leases_are_bounded() {
    let mut w = world();
    assert_eq!(
        w.call(&ROOT, &Recalls { session: 0, forgotten: 0 }, &[]).map(drop),
        Err(EPERM),
        "a program"
    );
    for number in (10..).take(AGENTS_MAX) {
        let one = Client { endpoint: Endpoint::new(NodeId(1), number, 1), ..agent(1) };
        w.begin(&one);
    }
    let b = agent(2);
    assert_eq!(w.call(&b, &Recalls { session: 0, forgotten: 0 }, &[]).map(drop), Err(ENOLCK));
    w.pass(3);
    let session = w.begin(&b);
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let dir = w.stat(&ROOT, "/u").unwrap().ino;
    w.server.leases.fill(b.endpoint, 1 << 40, LEASES_PER_AGENT_MAX - 1);
    assert!(w.leases_attr(&b, ino));
    assert!(!w.leases_attr(&b, dir), "it is one too many");
    let poll = w.poll(&b, session, 0);
    assert_eq!(w.told(poll).unwrap().0, Recalled::default(), "it is to forget all");
    let change = w.chmod_later(&agent(3), ino, 0o600);
    assert!(w.answer(change).is_none(), "it has not yet");
    w.begin(&b);
    assert!(w.answer(change).unwrap().is_ok());
    assert!(w.leases_attr(&b, dir));
}

/// What a kernel's agent would remember, and what is under way.
#[derive(Debug, Default)]
struct Remembering {
    session: u64,
    /// When the session may be over.
    until: u64,
    attrs: BTreeMap<u64, Attr>,
    names: BTreeMap<(u64, u8), u64>,
    poll: Option<(CallId, Message, u64)>,
    told: Option<(Recalled, Vec<u64>, u64)>,
    /// Calls without an answer.
    open: Vec<Open>,
    /// Answers to changes are on their way, the last sent comes first.
    is_late: bool,
    /// When something has happened to an inode last, in steps of `stamp`: a change began or ended, or it was recalled.
    happened: BTreeMap<u64, u64>,
    stamp: u64,
    /// The handles of files of which it is the sole writer, and how often something was put off since it was written back.
    soles: BTreeMap<u64, (u64, u64)>,
    /// Directories of which it knows all names.
    all: BTreeSet<u64>,
}

/// A call without an answer.
#[derive(Clone, Debug)]
struct Open {
    id: CallId,
    message: Message,
    payload: Vec<u8>,
    /// What it may change, and when that began for each.
    changes: Vec<(u64, u64)>,
    asked: u64,
    session: u64,
    /// Of `changes`, those directories of which all names were known.
    all: BTreeSet<u64>,
    /// Its answer was not looked for when it may have come.
    is_old: bool,
}

impl Remembering {
    fn happens(&mut self, ino: u64) -> u64 {
        self.stamp += 1;
        self.happened.insert(ino, self.stamp);
        self.stamp
    }

    /// Is `ino` being changed?
    fn changes(&self, ino: u64) -> bool {
        self.open.iter().any(|open| open.changes.iter().any(|(changed, _)| *changed == ino))
    }

    /// Keeps what `open`, which is not among those under way any more, has made of things, if nothing else has happened to them.
    fn keep(&mut self, open: &Open, reply: &Message, payload: &[u8]) {
        let is_alone = |this: &Remembering, ino: u64| {
            let since = open.changes.iter().find(|(changed, _)| *changed == ino);
            open.session == this.session
                && this.session != 0
                && !this.changes(ino)
                && this.happened.get(&ino).copied().unwrap_or(0)
                    <= since.map_or(open.asked, |(_, stamp)| *stamp)
        };
        let args = &open.message.args;
        let name = |at: usize| open.payload[at] - b'0';
        let attr = Attr::get(payload);
        let keep_name = |this: &mut Remembering, leased: u8, parent: u64, name: u8, ino: u64| {
            if leased != 0 && is_alone(this, parent) {
                this.names.insert((parent, name), ino);
                if open.all.contains(&parent) {
                    this.all.insert(parent);
                }
            }
        };
        // What is told of a directory stands behind what is told of the inode.
        let keep_parent = |this: &mut Remembering, at: usize| {
            if let Some(Parent { leased, attr }) = payload.get(at..).and_then(Parent::get)
                && leased != 0
                && is_alone(this, attr.ino)
            {
                this.attrs.insert(attr.ino, attr);
            }
        };
        let leased = Leased::get(&reply.args);
        let (parent, may_keep) = match (open.message.call, leased) {
            (calls::vfs::Open::NUMBER, _) => {
                let opened = Opened::get(&reply.args).unwrap();
                let ino = attr.map_or(0, |attr| attr.ino);
                if opened.attr & attributes::SOLE != 0 && is_alone(self, ino) {
                    self.soles.insert(ino, (opened.fh, 0));
                    self.attrs.insert(ino, attr.unwrap());
                }
                return;
            }
            (Lookup::NUMBER, Some(leased)) => (Lookup::get(args).unwrap().parent, leased),
            (Getattr::NUMBER, Some(leased)) => (0, leased),
            (Mkdir::NUMBER, Some(leased)) => (Mkdir::get(args).unwrap().parent, leased),
            (Link::NUMBER, Some(leased)) => (Link::get(args).unwrap().new_parent, leased),
            (Setattr::NUMBER, Some(leased)) => (0, leased),
            (Unlink::NUMBER, Some(leased)) => {
                let parent = Unlink::get(args).unwrap().parent;
                keep_parent(self, 0);
                return keep_name(self, leased.name, parent, name(0), 0);
            }
            (Rmdir::NUMBER, Some(leased)) => {
                let parent = Rmdir::get(args).unwrap().parent;
                keep_parent(self, 0);
                return keep_name(self, leased.name, parent, name(0), 0);
            }
            (Create::NUMBER, _) => {
                let Created { fh, name, attr: may_keep, owner } =
                    Created::get(&reply.args).unwrap();
                let ino = attr.unwrap().ino;
                if may_keep & attributes::SOLE != 0 && is_alone(self, ino) {
                    self.soles.insert(ino, (fh, 0));
                }
                let attr = may_keep;
                (Create::get(args).unwrap().parent, Leased { name, attr, owner })
            }
            (Rename::NUMBER, _) => {
                let row = Rename::get(args).unwrap();
                let renamed = Renamed::get(&reply.args).unwrap();
                if renamed.ino == 0 {
                    return;
                }
                keep_name(self, renamed.name, row.parent, name(0), 0);
                keep_name(self, renamed.new_name, row.new_parent, name(1), renamed.ino);
                let first = if renamed.attr == 0 { 0 } else { Attr::SIZE };
                let second = first + if renamed.name == 0 { 0 } else { Parent::SIZE };
                keep_parent(self, first);
                keep_parent(self, second);
                (0, Leased { attr: renamed.attr, ..Leased::default() })
            }
            _ => return,
        };
        if may_keep.name != 0 {
            keep_name(self, may_keep.name, parent, name(0), attr.unwrap().ino);
        }
        if may_keep.attr != 0 && is_alone(self, attr.unwrap().ino) {
            self.attrs.insert(attr.unwrap().ino, attr.unwrap());
            if open.message.call == Mkdir::NUMBER {
                self.all.insert(attr.unwrap().ino);
            }
        }
        if matches!(open.message.call, Mkdir::NUMBER | Link::NUMBER | Create::NUMBER) {
            keep_parent(self, Attr::SIZE);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Lookup {
        parent: usize,
        name: u8,
    },
    Getattr {
        ino: usize,
    },
    Make {
        parent: usize,
        name: u8,
        is_dir: bool,
    },
    Remove {
        parent: usize,
        name: u8,
        is_dir: bool,
    },
    Rename {
        parent: usize,
        name: u8,
        new_parent: usize,
        new_name: u8,
        flags: u32,
    },
    Link {
        ino: usize,
        parent: usize,
        name: u8,
    },
    Change {
        ino: usize,
        how: u8,
    },
    /// Takes what it is told, and polls again.
    Hear,
    Pass(u64),
    Restart,
    Farewell,
    Late(bool),
    /// A program writes to a file of which its agent is the sole writer.
    PutOff {
        ino: usize,
    },
    /// To be written.
    Open {
        ino: usize,
    },
}

fn a_step() -> impl Strategy<Value = (u16, Step)> {
    let (dir, ino, name) = (0..4_usize, 0..8_usize, 0..3_u8);
    let step = prop_oneof![
        6 => (dir.clone(), name.clone()).prop_map(|(parent, name)| Step::Lookup { parent, name }),
        4 => ino.clone().prop_map(|ino| Step::Getattr { ino }),
        3 => (dir.clone(), name.clone(), any::<bool>())
            .prop_map(|(parent, name, is_dir)| Step::Make { parent, name, is_dir }),
        2 => (dir.clone(), name.clone(), any::<bool>())
            .prop_map(|(parent, name, is_dir)| Step::Remove { parent, name, is_dir }),
        2 => (dir.clone(), name.clone(), dir.clone(), name.clone(), 0..3_u32).prop_map(
            |(parent, name, new_parent, new_name, flags)| Step::Rename {
                parent, name, new_parent, new_name, flags,
            }
        ),
        1 => (ino.clone(), dir, name).prop_map(|(ino, parent, name)| Step::Link { ino, parent, name }),
        3 => (ino, 0..6_u8).prop_map(|(ino, how)| Step::Change { ino, how }),
        8 => proptest::strategy::Just(Step::Hear),
        3 => (0..2_600_u64).prop_map(Step::Pass),
        1 => proptest::strategy::Just(Step::Restart),
        1 => proptest::strategy::Just(Step::Farewell),
        3 => any::<bool>().prop_map(Step::Late),
        6 => (0..8_usize).prop_map(|ino| Step::PutOff { ino }),
        2 => (0..8_usize).prop_map(|ino| Step::Open { ino }),
    ];
    (0..3_u16, step)
}

/// Three agents that remember, and a server.
struct Cluster {
    w: World,
    agents: [Remembering; 3],
    /// Inodes that somebody has heard of, the oldest first.
    inodes: Vec<u64>,
    files: [BTreeMap<u64, u64>; 3],
    calls: u64,
}

impl Cluster {
    fn new() -> Cluster {
        let mut w = World::new();
        let inodes = vec![ROOT_INO, w.mkdir(&ROOT, "/d", 0o777).unwrap().ino];
        Cluster { w, agents: Default::default(), inodes, files: Default::default(), calls: 0 }
    }

    fn inode(&self, index: usize) -> u64 {
        self.inodes[self.inodes.len().saturating_sub(8) + index % self.inodes.len().min(8)]
    }

    fn directory(&self, index: usize) -> u64 {
        if index == 0 { ROOT_INO } else { self.inode(index * 2) }
    }

    /// A call whose answer may come later; meanwhile nothing of `changes` is remembered.
    fn change<R: Row>(&mut self, at: u16, row: &R, payload: Vec<u8>, changes: Vec<u64>) {
        let remembering = &mut self.agents[usize::from(at)];
        let changes: BTreeSet<u64> = changes.into_iter().filter(|ino| *ino != 0).collect();
        let all = changes.intersection(&remembering.all).copied().collect();
        for ino in &changes {
            remembering.attrs.remove(ino);
            remembering.all.remove(ino);
        }
        let asked = remembering.stamp;
        let changes = changes.into_iter().map(|ino| (ino, remembering.happens(ino))).collect();
        let session = remembering.session;
        let message = message(row);
        let id = self.w.send(&agent(at + 1), message, &payload);
        self.agents[usize::from(at)].open.push(Open {
            id,
            message,
            payload,
            changes,
            asked,
            session,
            all,
            is_old: false,
        });
        self.collect();
    }

    /// The agent has the server do what it has put off. An agent whose session lasts has lost none of it.
    fn write_back(&mut self, at: u16, which: impl Fn(u64) -> bool) {
        let remembering = &mut self.agents[usize::from(at)];
        let soles = remembering.soles.iter_mut();
        let put_off: Vec<(u64, u64, u64)> = soles
            .filter(|(ino, (_, count))| *count > 0 && which(**ino))
            .map(|(ino, (fh, count))| (*ino, *fh, std::mem::take(count)))
            .collect();
        let lasts = self.w.clock < remembering.until;
        for (ino, fh, count) in put_off {
            let part = |number: u64| {
                let head = PutOff { offset: number * 3, age: 7, len: 3, kind: PutOff::WRITE };
                [&head.bytes()[..], b"abc"].concat()
            };
            let payload: Vec<u8> = (0..count).flat_map(part).collect();
            let row = WriteBack { fh, ino, sync: 0 };
            match self.w.call(&agent(at + 1), &row, &payload) {
                Ok((WrittenBack { errno: 0, .. }, payload)) => {
                    assert!(Attr::get(&payload).unwrap().size >= count * 3);
                }
                outcome => {
                    assert!(!lasts, "agent {at} has put off writes to {ino} in vain: {outcome:?}");
                }
            }
            self.agents[usize::from(at)].happens(ino);
        }
    }

    /// A question whose answer may come later.
    fn ask<R: Row>(&mut self, at: u16, row: &R, payload: Vec<u8>) {
        self.change(at, row, payload, Vec::new());
    }

    fn known(&mut self, at: u16, parent: u64, name: u8) -> u64 {
        self.agents[usize::from(at)].names.remove(&(parent, name)).unwrap_or(0)
    }

    /// Takes the answers that have come.
    fn collect(&mut self) {
        let clock = self.w.clock;
        let put_off: Vec<(usize, u64)> = self
            .agents
            .iter()
            .enumerate()
            .filter(|(_, remembering)| clock < remembering.until)
            .flat_map(|(at, remembering)| {
                let some = remembering.soles.iter().filter(|(_, (_, count))| *count > 0);
                some.map(move |(ino, _)| (at, *ino))
            })
            .collect();
        for (at, remembering) in self.agents.iter_mut().enumerate() {
            let w = &mut self.w;
            if remembering.is_late {
                remembering.open.iter_mut().for_each(|open| open.is_old = true);
            }
            let open = if remembering.is_late { Vec::new() } else { remembering.open.clone() };
            for open in open.into_iter().rev() {
                let Some(answer) = w.answer(open.id) else { continue };
                remembering.open.retain(|other| other.id != open.id);
                if let Ok((reply, payload)) = answer {
                    let told = Attr::get(&payload)
                        .filter(|_| matches!(open.message.call, Lookup::NUMBER | Getattr::NUMBER));
                    let told = told.map(|attr| attr.ino);
                    for ino in open.changes.iter().map(|(ino, _)| *ino).chain(told) {
                        let is_put_off =
                            |(writer, its): &(usize, u64)| *its == ino && *writer != at;
                        // Directories have no writers; an answer that came late was given before.
                        assert!(
                            open.is_old || !put_off.iter().any(is_put_off),
                            "agent {at} is told of {ino} without what is put off: {open:?}"
                        );
                    }
                    remembering.keep(&open, &reply, &payload);
                    if let (Mkdir::NUMBER | Create::NUMBER, Some(made)) =
                        (open.message.call, Attr::get(&payload))
                    {
                        self.inodes.push(made.ino);
                        if open.message.call == Create::NUMBER {
                            let created = Created::get(&reply.args).unwrap();
                            self.files[at].insert(made.ino, created.fh);
                        }
                    }
                }
                for (ino, _) in open.changes {
                    remembering.happens(ino);
                }
            }
            if let Some((id, _, sent)) = remembering.poll
                && let Some((told, inodes)) = w.told(id)
            {
                remembering.poll = None;
                remembering.told = Some((told, inodes, sent));
            }
        }
    }

    fn hear(&mut self, at: u16) {
        let client = agent(at + 1);
        let sent = self.w.clock;
        let remembering = &mut self.agents[usize::from(at)];
        if remembering.poll.is_some() {
            return;
        }
        let news = remembering.told.take();
        let session = remembering.session;
        let recalled: BTreeSet<u64> =
            news.iter().flat_map(|(_, inodes, _)| inodes).copied().collect();
        let goes_on =
            news.as_ref().is_some_and(|(told, ..)| told.session == session && told.session != 0);
        self.write_back(at, |ino| !goes_on || recalled.contains(&ino));
        let remembering = &mut self.agents[usize::from(at)];
        remembering.soles.retain(|ino, _| goes_on && !recalled.contains(ino));
        let forgotten = match news {
            Some((told, inodes, sent)) if goes_on => {
                for ino in inodes {
                    remembering.happens(ino);
                    remembering.attrs.remove(&ino);
                    remembering.all.remove(&ino);
                    remembering.names.retain(|(parent, _), _| *parent != ino);
                }
                remembering.until = sent + LEASE;
                told.batch
            }
            _ => {
                // None, or none any more.
                remembering.attrs.clear();
                remembering.names.clear();
                remembering.all.clear();
                let session = self.w.begin(&client);
                let remembering = &mut self.agents[usize::from(at)];
                (remembering.session, remembering.until) = (session, sent + LEASE);
                0
            }
        };
        let session = self.agents[usize::from(at)].session;
        let poll = message(&Recalls { session, forgotten });
        let sent = self.w.clock;
        let id = self.w.send(&client, poll, &[]);
        self.agents[usize::from(at)].poll = Some((id, poll, sent));
        self.collect();
    }

    fn step(&mut self, at: u16, step: &Step) {
        let client = agent(at + 1);
        self.calls += 1;
        let is_call = !matches!(
            step,
            Step::Hear | Step::Pass(_) | Step::Restart | Step::Late(_) | Step::PutOff { .. }
        );
        if is_call {
            self.write_back(at, |_| true);
        }
        match *step {
            Step::PutOff { ino } => {
                let ino = self.inode(ino);
                let clock = self.w.clock;
                let remembering = &mut self.agents[usize::from(at)];
                if clock < remembering.until
                    && let Some((_, count)) = remembering.soles.get_mut(&ino)
                {
                    *count += 1;
                    remembering.attrs.remove(&ino);
                    remembering.happens(ino);
                }
            }
            Step::Open { ino } => {
                let ino = self.inode(ino);
                self.ask(at, &calls::vfs::Open { ino, flags: 2 }, Vec::new());
            }
            Step::Lookup { parent, name } => {
                let parent = self.directory(parent);
                self.ask(at, &Lookup { parent }, name.to_string().into_bytes());
            }
            Step::Getattr { ino } => {
                let ino = self.inode(ino);
                self.ask(at, &Getattr { ino, fh: 0 }, Vec::new());
            }
            Step::Make { parent, name, is_dir } => {
                let parent = self.directory(parent);
                let forgotten = self.known(at, parent, name);
                let payload = name.to_string().into_bytes();
                let changes = vec![parent, forgotten];
                if is_dir {
                    self.change(at, &Mkdir { parent, mode: 0o777, umask: 0 }, payload, changes);
                } else {
                    let flags = 2 | crate::linux::O_CREAT | crate::linux::O_TRUNC;
                    let row = Create { parent, forgotten, mode: 0o666, umask: 0, flags };
                    self.change(at, &row, payload, changes);
                }
            }
            Step::Remove { parent, name, is_dir } => {
                let parent = self.directory(parent);
                let forgotten = self.known(at, parent, name);
                let payload = name.to_string().into_bytes();
                let changes = vec![parent, forgotten];
                if is_dir {
                    self.change(at, &Rmdir { parent, forgotten }, payload, changes);
                } else {
                    self.change(at, &Unlink { parent, forgotten }, payload, changes);
                }
            }
            Step::Rename { parent, name, new_parent, new_name, flags } => {
                let (parent, new_parent) = (self.directory(parent), self.directory(new_parent));
                let forgotten = self.known(at, parent, name);
                let new_forgotten = self.known(at, new_parent, new_name);
                let payload = format!("{name}{new_name}").into_bytes();
                let changes = vec![parent, new_parent, forgotten, new_forgotten];
                let row =
                    Rename { parent, new_parent, forgotten, new_forgotten, name_len: 1, flags };
                self.change(at, &row, payload, changes);
            }
            Step::Link { ino, parent, name } => {
                let (ino, new_parent) = (self.inode(ino), self.directory(parent));
                self.known(at, new_parent, name);
                let payload = name.to_string().into_bytes();
                self.change(at, &Link { ino, new_parent }, payload, vec![ino, new_parent]);
            }
            Step::Change { ino, how } => {
                let ino = self.inode(ino);
                let fh = self.files[usize::from(at)].get(&ino).copied().unwrap_or(0);
                let changes = vec![ino];
                match how {
                    0 | 1 => {
                        // It may not be searched any more, or again.
                        self.agents[usize::from(at)].names.retain(|(parent, _), _| *parent != ino);
                        let mode = if how == 0 { 0o700 } else { 0o755 };
                        let change = SetAttr { valid: set::MODE, mode, ..SetAttr::default() };
                        self.change(at, &Setattr { ino, fh: 0 }, change.bytes().into(), changes);
                    }
                    2 => {
                        let change = SetAttr { valid: set::SIZE, size: 5, ..SetAttr::default() };
                        self.change(at, &Setattr { ino, fh: 0 }, change.bytes().into(), changes);
                    }
                    3 => self.change(at, &Write { fh, ino, offset: 3 }, b"xyz".to_vec(), changes),
                    4 => {
                        self.change(at, &Read { fh, ino, offset: 0, size: 9 }, Vec::new(), changes)
                    }
                    _ => {
                        let row = Setxattr { ino, name_len: 6, flags: 0 };
                        self.change(at, &row, b"user.av".to_vec(), changes);
                    }
                }
            }
            Step::Hear => self.hear(at),
            Step::Late(is_late) => {
                self.agents[usize::from(at)].is_late = is_late;
                self.collect();
            }
            Step::Pass(milliseconds) => {
                let end = self.w.clock + milliseconds * 1_000_000;
                while let Some(due) = self.w.server.deadline().filter(|due| *due < end) {
                    self.w.clock = self.w.clock.max(due);
                    self.w.tick();
                }
                self.w.clock = end;
                self.collect();
            }
            Step::Restart => {
                self.on_time();
                self.w.restart();
                // Calls that were kept arrive again, in some order.
                for at in 0..3_u16 {
                    let client = agent(at + 1);
                    for Open { id, message, payload, .. } in
                        self.agents[usize::from(at)].open.clone()
                    {
                        self.w.send_as(id, &client, message, &payload);
                    }
                    if let Some((id, message, _)) = self.agents[usize::from(at)].poll {
                        self.w.send_as(id, &client, message, &[]);
                    }
                }
                self.collect();
            }
            Step::Farewell => {
                let remembering = &mut self.agents[usize::from(at)];
                let session = remembering.session;
                if remembering.poll.is_none() && session != 0 {
                    *remembering = Remembering {
                        open: std::mem::take(&mut remembering.open),
                        is_late: remembering.is_late,
                        happened: std::mem::take(&mut remembering.happened),
                        stamp: remembering.stamp,
                        ..Remembering::default()
                    };
                    self.w.call(&client, &Recalls { session, forgotten: u64::MAX }, &[]).unwrap();
                    self.collect();
                }
            }
        }
    }

    /// All answers have come.
    fn on_time(&mut self) {
        self.agents.iter_mut().for_each(|one| one.is_late = false);
        self.collect();
    }

    /// Everything that may be told from memory is so.
    fn check(&mut self) {
        for (at, remembering) in self.agents.iter().enumerate() {
            if remembering.session == 0 || self.w.clock >= remembering.until {
                continue;
            }
            for (ino, attr) in &remembering.attrs {
                let inode = self.w.server.inodes.find(*ino, &self.w.store).unwrap();
                let is_put_off = |(other, one): (usize, &Remembering)| {
                    let is_live = other != at && self.w.clock < one.until;
                    is_live && one.soles.get(ino).is_some_and(|(_, count)| *count > 0)
                };
                let is_any = self.agents.iter().enumerate().any(is_put_off);
                assert!(!is_any, "agent {at} remembers {ino}, of which something is put off");
                // What is no more nobody asks for. How much room it takes may be told a little late (`reclaim.rs`).
                let now = inode.map(|inode| Attr {
                    blocks: attr.blocks,
                    atime: attr.atime,
                    ..inode.attr(&self.w.store)
                });
                assert!(now.is_none_or(|now| now == *attr), "agent {at}: {attr:?}, but {now:?}");
            }
            for dir in &remembering.all {
                if remembering.changes(*dir) {
                    continue;
                }
                for name in 0..3 {
                    let key = crate::keys::entry(*dir, name.to_string().as_bytes());
                    let is_there = self.w.store.map.get(&key).is_some();
                    let is_known = remembering.names.contains_key(&(*dir, name));
                    assert!(is_known || !is_there, "agent {at}: {name} in {dir}");
                }
            }
            for ((parent, name), ino) in &remembering.names {
                let key = crate::keys::entry(*parent, name.to_string().as_bytes());
                let entry = crate::keys::read::<crate::keys::Entry>(&self.w.store, &key).unwrap();
                assert_eq!(
                    entry.map_or(0, |entry| entry.ino),
                    *ino,
                    "agent {at}: {name} in {parent}"
                );
            }
        }
    }

    /// Everybody hears and answers: nothing may be left waiting.
    fn end(&mut self) {
        self.on_time();
        self.check();
        for _ in 0..4 {
            for at in 0..3 {
                self.hear(at);
                self.check();
            }
        }
        let open: BTreeSet<CallId> =
            self.agents.iter().flat_map(|one| one.open.iter().map(|open| open.id)).collect();
        assert!(open.is_empty(), "{open:?} wait for nobody");
    }
}

proptest! {
    #[test]
    fn what_agents_remember_is_true_and_no_change_waits_for_ever(
        steps in proptest::collection::vec(a_step(), 1..120),
    ) {
        let mut cluster = Cluster::new();
        for (at, step) in steps {
            cluster.step(at, &step);
            cluster.check();
        }
        cluster.end();
    }
}

#[test]
fn a_call_that_comes_again_while_it_waits_is_executed_once() {
    let mut w = world();
    let (a, b) = (agent(1), agent(2));
    let dir = w.stat(&ROOT, "/u").unwrap().ino;
    let session = w.begin(&b);
    let poll = w.poll(&b, session, 0);
    w.look(&b, dir, "new").unwrap();
    let made = CallId { source: a.endpoint, tag: Tag::new(1, 1) };
    let mkdir = message(&Mkdir { parent: dir, mode: 0o755, umask: 0 });
    w.send_as(made, &a, mkdir, b"new");
    w.send_as(made, &a, mkdir, b"new");
    assert!(w.answer(made).is_none());
    let (told, _) = w.told(poll).unwrap();
    w.poll(&b, session, told.batch);
    let answer = w.answer(made).unwrap().unwrap();
    assert_eq!(attr(((), answer.1)).nlink, 2);
    assert_eq!(w.ls(&USER, "/u").unwrap().iter().filter(|name| *name == "new").count(), 1);
}
