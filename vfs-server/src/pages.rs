//! Leases on pages: what of files the kernels of nodes may have, and may let programs change.
//!
//! An agent's kernel keeps pages that it got by `ReadPages`, and loses them before a `LetGo` says so. Pages that programs may write to are held by one
//! agent, *exclusively*: nobody is told when a mapping is first written to. What is read or written here waits until those that are in the
//! way are given back, after a kernel has written back what was changed in them (`WritePages`). So every byte has one truth, wherever it is
//! mapped: of pages that nobody holds exclusively the blob's, of others their holder's.
//!
//! Exclusive holders are in the store (`P`): after a crash of the server they may have changed anything, and write it back before they begin a
//! new session. Who has lost its session has lost its pages: what it would write back is refused.
//!
//! Calls that wait for the same pages are served in the order in which they came.

use crate::VfsServer;
use crate::answer::{Result, err};
use crate::keys;
use crate::limits::{FILE_SIZE_MAX, GIVE_BACK_TIME, PAGE_RUNS_MAX};
use calls::vfs::PAGE_SIZE;
use dvk::server::{Call, Context, Nanos};
use dvk::store::Store;
use m3ipc::Endpoint;
use m3ipc::errno::numbers::EPERM;
use rangemap::RangeSet;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Behind the last page of every file.
pub(crate) const PAGES_END: u64 = FILE_SIZE_MAX.div_ceil(PAGE_SIZE);

/// The pages on which `count` bytes from `offset` on are.
pub(crate) fn pages_of(offset: u64, count: u64) -> Range<u64> {
    let end = offset.saturating_add(count).div_ceil(PAGE_SIZE);
    (offset / PAGE_SIZE).min(PAGES_END)..end.min(PAGES_END)
}

/// What a call wants of pages: nobody else may hold them exclusively meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageClaim {
    pub ino: u64,
    pub pages: Range<u64>,
    /// Nor at all.
    pub is_exclusive: bool,
    pub own: Own,
}

/// What of the caller's own pages is in a claim's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// Nothing: what its kernel has changed it writes back before it asks.
    Nothing,
    /// Nothing, and the caller makes the file shorter: meanwhile its kernel writes no pages of it back.
    Cut,
    /// Those that it is to give back.
    Recalled,
    /// As others'.
    All,
}

impl PageClaim {
    /// To see what is there.
    pub(crate) fn read(ino: u64, pages: Range<u64>) -> PageClaim {
        PageClaim { ino, pages, is_exclusive: false, own: Own::Nothing }
    }

    /// To change it.
    pub(crate) fn change(ino: u64, pages: Range<u64>, own: Own) -> PageClaim {
        PageClaim { ino, pages, is_exclusive: true, own }
    }

    /// Must one of the two wait for the other?
    fn excludes(&self, other: &PageClaim) -> bool {
        self.ino == other.ino
            && (self.is_exclusive || other.is_exclusive)
            && self.pages.start < other.pages.end
            && other.pages.start < self.pages.end
    }
}

/// The pages of one file that one agent holds.
#[derive(Clone, Debug, Default)]
struct Held {
    shared: RangeSet<u64>,
    exclusive: RangeSet<u64>,
    /// Of these, those that it is to give back.
    recalled: RangeSet<u64>,
    /// Of these, those that somebody else has cut off meanwhile: what comes back is of no use.
    cut: RangeSet<u64>,
}

impl Held {
    fn runs(&self) -> usize {
        self.shared.len() + self.exclusive.len()
    }

    /// Those of `pages` that are held; if `is_exclusive` also those that are shared.
    fn part(&self, pages: &Range<u64>, is_exclusive: bool) -> RangeSet<u64> {
        let mut part: RangeSet<u64> = overlap(&self.exclusive, pages).collect();
        if is_exclusive {
            part.extend(overlap(&self.shared, pages));
        }
        part
    }
}

/// All leases on pages.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    of_inode: BTreeMap<u64, BTreeMap<Endpoint, Held>>,
    of_agent: BTreeMap<Endpoint, Holdings>,
}

/// All that one agent holds.
#[derive(Debug, Default)]
struct Holdings {
    inodes: BTreeSet<u64>,
    /// Runs of pages.
    runs: usize,
    /// Pages that it is to give back, and when it last gave some back or had none to.
    owed: u64,
    since: Nanos,
}

impl Pages {
    /// `is_there`: may that agent still give them back?
    pub(crate) fn open(store: &dyn Store, is_there: impl Fn(Endpoint) -> bool) -> Pages {
        let mut pages = Pages::default();
        keys::collect(store, &keys::all_pages(), |key, _| {
            if let Some([ino, endpoint]) = keys::numbers(key) {
                let source = Endpoint::from_bits(endpoint);
                if is_there(source) {
                    pages.insert(ino, source, 0..PAGES_END, true);
                }
            }
        });
        pages
    }

    /// What of `source`'s claim is in the hands of whom, besides those that `is_passed_over`.
    pub(crate) fn in_the_way(
        &self,
        claim: &PageClaim,
        source: Endpoint,
        is_passed_over: impl Fn(Endpoint) -> bool,
    ) -> Vec<(Endpoint, RangeSet<u64>)> {
        let PageClaim { ino, ref pages, is_exclusive, own } = *claim;
        let Some(holders) = self.of_inode.get(&ino) else { return Vec::new() };
        if pages.is_empty() {
            return Vec::new();
        }
        let in_the_way = |(holder, held): (&Endpoint, &Held)| {
            let part = match own {
                _ if *holder != source => held.part(pages, is_exclusive),
                Own::All => held.part(pages, is_exclusive),
                Own::Recalled => overlap(&held.recalled, pages).collect(),
                Own::Nothing | Own::Cut => RangeSet::new(),
            };
            (!part.is_empty() && !is_passed_over(*holder)).then_some((*holder, part))
        };
        holders.iter().filter_map(in_the_way).collect()
    }

    /// Does `source` hold all pages of `claim`, and keep them? Then it waits for nobody's claim.
    pub(crate) fn has(&self, source: Endpoint, claim: &PageClaim) -> bool {
        let Some(held) = self.of(claim.ino, source) else { return false };
        let holds_all = || {
            let mut missing = RangeSet::from_iter([claim.pages.clone()]);
            for run in held.part(&claim.pages, !claim.is_exclusive) {
                missing.remove(run);
            }
            missing.is_empty()
        };
        !claim.pages.is_empty()
            && match claim.own {
                Own::All | Own::Cut => false,
                // Also what it is to give back: until it has, it may look at it.
                Own::Nothing => holds_all(),
                Own::Recalled => !held.recalled.overlaps(&claim.pages) && holds_all(),
            }
    }

    /// Makes a file shorter: pages of others that are gone now need not come back.
    pub(crate) fn cut(&mut self, ino: u64, pages: &Range<u64>, source: Endpoint) {
        for (holder, held) in self.of_inode.get_mut(&ino).into_iter().flatten() {
            if *holder != source {
                held.cut.extend(overlap(&held.exclusive, pages));
            }
        }
    }

    /// What of `bytes`, which `source` writes back, is still of use.
    pub(crate) fn of_use(&self, source: Endpoint, ino: u64, bytes: &Range<u64>) -> Vec<Range<u64>> {
        let pages = pages_of(bytes.start, bytes.end - bytes.start);
        let Some(held) = self.of(ino, source) else { return Vec::new() };
        let to_bytes = |run: Range<u64>| {
            (run.start * PAGE_SIZE).max(bytes.start)..(run.end * PAGE_SIZE).min(bytes.end)
        };
        held.cut.gaps(&pages).map(to_bytes).collect()
    }

    /// May `source` write these pages back?
    pub(crate) fn may_write_back(&self, source: Endpoint, ino: u64, pages: &Range<u64>) -> bool {
        self.of(ino, source).is_some_and(|held| held.exclusive.gaps(pages).next().is_none())
    }

    /// `source` is to give back what of `pages` it holds. Returns what it had not been told.
    pub(crate) fn recall(
        &mut self,
        ino: u64,
        source: Endpoint,
        pages: &RangeSet<u64>,
        now: Nanos,
    ) -> Vec<Range<u64>> {
        let held = self.of_inode.get_mut(&ino).and_then(|holders| holders.get_mut(&source));
        let (Some(held), Some(holdings)) = (held, self.of_agent.get_mut(&source)) else {
            return Vec::new();
        };
        let gaps = |run: &Range<u64>| held.recalled.gaps(run).collect::<Vec<Range<u64>>>();
        let new: Vec<Range<u64>> = pages.iter().flat_map(gaps).collect();
        held.recalled.extend(new.iter().cloned());
        if holdings.owed == 0 {
            holdings.since = now;
        }
        holdings.owed += length(&new);
        new
    }

    /// Those who have had pages to give back for [`GIVE_BACK_TIME`], and have given back none.
    pub(crate) fn debtors(&self, now: Nanos) -> Vec<Endpoint> {
        let is_debtor = |holdings: &Holdings| {
            holdings.owed > 0 && holdings.since.saturating_add(GIVE_BACK_TIME) <= now
        };
        let those = self.of_agent.iter().filter(|(_, holdings)| is_debtor(holdings));
        those.map(|(source, _)| *source).collect()
    }

    /// Who holds pages of an inode, and which.
    pub(crate) fn holders(&self, ino: u64) -> Vec<(Endpoint, RangeSet<u64>)> {
        let everything = 0..PAGES_END;
        let holders = self.of_inode.get(&ino).into_iter().flatten();
        holders.map(|(holder, held)| (*holder, held.part(&everything, true))).collect()
    }

    /// Does `source` hold so many runs that it is to give all back?
    pub(crate) fn is_full(&self, source: Endpoint) -> bool {
        self.of_agent.get(&source).is_some_and(|holdings| holdings.runs >= PAGE_RUNS_MAX)
    }

    fn of(&self, ino: u64, source: Endpoint) -> Option<&Held> {
        self.of_inode.get(&ino)?.get(&source)
    }

    /// True: they are the first exclusive ones of that inode.
    fn insert(
        &mut self,
        ino: u64,
        source: Endpoint,
        pages: Range<u64>,
        is_exclusive: bool,
    ) -> bool {
        let held = self.of_inode.entry(ino).or_default().entry(source).or_default();
        let (before, had_none) = (held.runs(), held.exclusive.is_empty());
        // What its kernel had of them it has lost, else it would not ask: what comes back from now on is new.
        held.cut.remove(pages.clone());
        if is_exclusive {
            held.shared.remove(pages.clone());
            held.exclusive.insert(pages);
        } else {
            let new: Vec<Range<u64>> = held.exclusive.gaps(&pages).collect();
            held.shared.extend(new);
        }
        let after = held.runs();
        let holdings = self.of_agent.entry(source).or_default();
        holdings.inodes.insert(ino);
        holdings.runs = (holdings.runs + after).saturating_sub(before);
        is_exclusive && had_none
    }

    /// True: it has no exclusive ones of that inode any more.
    fn remove(&mut self, ino: u64, source: Endpoint, pages: Range<u64>, now: Nanos) -> bool {
        let Some(holders) = self.of_inode.get_mut(&ino) else { return false };
        let Some(held) = holders.get_mut(&source) else { return false };
        let (before, had_some) = (held.runs(), !held.exclusive.is_empty());
        let given: Vec<Range<u64>> = overlap(&held.recalled, &pages).collect();
        for set in [&mut held.shared, &mut held.exclusive, &mut held.recalled, &mut held.cut] {
            set.remove(pages.clone());
        }
        let (after, has_none) = (held.runs(), held.exclusive.is_empty());
        if after == 0 {
            holders.remove(&source);
            if holders.is_empty() {
                self.of_inode.remove(&ino);
            }
        }
        if let Some(holdings) = self.of_agent.get_mut(&source) {
            holdings.runs = (holdings.runs + after).saturating_sub(before);
            if !given.is_empty() {
                holdings.owed = holdings.owed.saturating_sub(length(&given));
                holdings.since = now;
            }
            if after == 0 {
                holdings.inodes.remove(&ino);
            }
            if holdings.inodes.is_empty() {
                self.of_agent.remove(&source);
            }
        }
        had_some && has_none
    }

    /// All inodes of which `source` holds pages.
    fn inodes_of(&self, source: Endpoint) -> Vec<u64> {
        let holdings = self.of_agent.get(&source);
        holdings.into_iter().flat_map(|holdings| holdings.inodes.iter().copied()).collect()
    }
}

/// Those runs of `set` that are in `pages`, cut to them.
fn overlap(set: &RangeSet<u64>, pages: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let (start, end) = (pages.start, pages.end);
    let runs: Vec<Range<u64>> =
        if start < end { set.overlapping(start..end).cloned().collect() } else { Vec::new() };
    runs.into_iter().map(move |run| run.start.max(start)..run.end.min(end))
}

/// How many pages these are.
fn length(runs: &[Range<u64>]) -> u64 {
    runs.iter().map(|run| run.end - run.start).sum()
}

/// Has an earlier claim come for what `claim` is for?
pub(crate) fn is_behind<'a>(
    claim: &PageClaim,
    earlier: impl IntoIterator<Item = &'a PageClaim>,
) -> bool {
    earlier.into_iter().any(|earlier| earlier.excludes(claim))
}

impl VfsServer {
    /// The caller of `call` keeps `pages` of an inode.
    pub(crate) fn keep_pages(&mut self, claim: &PageClaim, call: &Call<'_>, cx: &mut Context<'_>) {
        let source = call.id.source;
        let PageClaim { ino, ref pages, is_exclusive, .. } = *claim;
        if pages.is_empty() {
            return;
        }
        if self.leases.pages.insert(ino, source, pages.clone(), is_exclusive) {
            cx.store.put(&keys::pages(ino, source), &[]);
        }
        self.leases.end_if_full(source, cx);
    }

    /// An agent says that its kernel has lost pages.
    ///
    /// # Errors
    /// EPERM: a program.
    pub(crate) fn let_go_of_pages(
        &mut self,
        row: calls::vfs::LetGo,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        if (call.cred.pid, call.cred.uid) != (0, 0) {
            return err(EPERM);
        }
        let source = call.id.source;
        let pages = row.first..row.first.saturating_add(row.count).min(PAGES_END);
        if self.leases.is_session(source, row.session) && !pages.is_empty() {
            self.drop_pages(row.ino, source, pages, cx);
            self.take_up(cx);
        }
        Ok(())
    }

    /// `source` holds none of these pages any more.
    fn drop_pages(&mut self, ino: u64, source: Endpoint, pages: Range<u64>, cx: &mut Context<'_>) {
        if self.leases.pages.remove(ino, source, pages, cx.now) {
            cx.store.remove(&keys::pages(ino, source));
        }
    }

    /// `source` holds no pages any more.
    pub(crate) fn drop_all_pages(&mut self, source: Endpoint, cx: &mut Context<'_>) {
        for ino in self.leases.pages.inodes_of(source) {
            self.drop_pages(ino, source, 0..PAGES_END, cx);
        }
    }

    /// Inode `ino` is no more: who has pages of it may lose them some time.
    pub(crate) fn recall_pages_late(&mut self, ino: u64, cx: &mut Context<'_>) {
        for (holder, pages) in self.leases.pages.holders(ino) {
            self.leases.recall_pages(ino, holder, &pages, cx);
        }
    }
}
