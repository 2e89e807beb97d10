//! The algebra of record locks: one owner's ranges on one inode, set and cleared as fcntl(2) says.
//!
//! The ranges of an owner are sorted and do not overlap; two that touch are of different kinds.
//! Ends are inclusive and at most [`END`].

/// Read locks share, write locks exclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// The end of every file: `l_len` 0.
pub(crate) const END: u64 = i64::MAX as u64;

/// A locked range, the process it is reported for, and the handle it was taken through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub start: u64,
    pub end: u64,
    pub kind: Kind,
    pub pid: u32,
    pub fh: u64,
}

/// A change of sorted ranges: those from index `from` up to `to` give way to `with`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Splice {
    pub from: usize,
    pub to: usize,
    pub with: Vec<Range>,
}

/// What locking `new` does: it replaces what it covers and merges with its own kind beside it.
pub(crate) fn set(ranges: &[Range], mut new: Range) -> Splice {
    let from = ranges.partition_point(|old| old.end + 1 < new.start);
    let to = from + ranges[from..].partition_point(|old| old.start <= new.end + 1);
    let (mut left, mut right) = (None, None);
    let (start, end) = (new.start, new.end);
    for old in &ranges[from..to] {
        if old.kind == new.kind {
            new.start = new.start.min(old.start);
            new.end = new.end.max(old.end);
        } else {
            // Only the first can begin before the new one, only the last can end behind it.
            left = left.or(before(old, start));
            right = after(old, end);
        }
    }
    Splice { from, to, with: left.into_iter().chain([new]).chain(right).collect() }
}

/// What unlocking `start..=end` does.
pub(crate) fn clear(ranges: &[Range], start: u64, end: u64) -> Splice {
    let from = ranges.partition_point(|old| old.end < start);
    let to = from + ranges[from..].partition_point(|old| old.start <= end);
    let affected = &ranges[from..to];
    let left = affected.first().and_then(|old| before(old, start));
    let right = affected.last().and_then(|old| after(old, end));
    Splice { from, to, with: left.into_iter().chain(right).collect() }
}

/// The first of another owner's ranges that a lock of `wanted` cannot be beside.
pub(crate) fn conflict<'a>(ranges: &'a [Range], wanted: &Range) -> Option<&'a Range> {
    let first = ranges.partition_point(|held| held.end < wanted.start);
    ranges[first..]
        .iter()
        .take_while(|held| held.start <= wanted.end)
        .find(|held| held.kind == Kind::Write || wanted.kind == Kind::Write)
}

/// The part of `old` before `start`.
fn before(old: &Range, start: u64) -> Option<Range> {
    (old.start < start).then(|| Range { end: old.end.min(start - 1), ..*old })
}

/// The part of `old` behind `end`.
fn after(old: &Range, end: u64) -> Option<Range> {
    (old.end > end).then(|| Range { start: old.start.max(end + 1), ..*old })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

    const FILE: usize = 24;

    fn range(start: u64, end: u64, kind: Kind) -> Range {
        Range { start, end, kind, pid: 0, fh: 0 }
    }

    fn apply(ranges: &mut Vec<Range>, splice: Splice) {
        ranges.splice(splice.from..splice.to, splice.with);
    }

    fn at(start: u64, end: u64) -> std::ops::RangeInclusive<usize> {
        usize::try_from(start).unwrap()..=usize::try_from(end).unwrap()
    }

    /// The same, a byte at a time.
    fn bytes(ranges: &[Range]) -> [Option<Kind>; FILE] {
        let mut bytes = [None; FILE];
        for range in ranges {
            for byte in &mut bytes[at(range.start, range.end)] {
                assert_eq!(byte.replace(range.kind), None, "it is in two ranges");
            }
        }
        bytes
    }

    fn an_operation() -> impl Strategy<Value = (u64, u64, Option<Kind>)> {
        (0..FILE as u64, 0..FILE as u64, any::<Option<bool>>()).prop_map(|(a, b, kind)| {
            let kind = kind.map(|write| if write { Kind::Write } else { Kind::Read });
            (a.min(b), a.max(b), kind)
        })
    }

    proptest! {
        #[test]
        fn ranges_are_what_a_lock_per_byte_would_be(
            operations in proptest::collection::vec(an_operation(), 1..40),
            (start, end, _) in an_operation(),
        ) {
            let mut ranges = Vec::new();
            let mut model = [None; FILE];
            for (start, end, kind) in operations {
                let splice = match kind {
                    Some(kind) => set(&ranges, range(start, end, kind)),
                    None => clear(&ranges, start, end),
                };
                apply(&mut ranges, splice);
                model[at(start, end)].fill(kind);
                prop_assert_eq!(bytes(&ranges), model);
                for pair in ranges.windows(2) {
                    prop_assert!(pair[0].end < pair[1].start, "not sorted: {:?}", pair);
                    let merged = pair[0].end + 1 < pair[1].start || pair[0].kind != pair[1].kind;
                    prop_assert!(merged, "not merged: {:?}", pair);
                }
            }
            for kind in [Kind::Read, Kind::Write] {
                let clashes = |held: &Option<Kind>| *held == Some(Kind::Write) || (held.is_some() && kind == Kind::Write);
                let want = model[at(start, end)].iter().any(clashes);
                prop_assert_eq!(conflict(&ranges, &range(start, end, kind)).is_some(), want);
            }
        }
    }

    #[test]
    fn the_whole_file_and_its_last_byte_are_ranges_like_others() {
        let mut ranges = Vec::new();
        let splice = set(&ranges, range(0, END, Kind::Write));
        apply(&mut ranges, splice);
        let splice = set(&ranges, range(END, END, Kind::Read));
        apply(&mut ranges, splice);
        let splice = clear(&ranges, 0, 0);
        apply(&mut ranges, splice);
        assert_eq!(ranges, [range(1, END - 1, Kind::Write), range(END, END, Kind::Read)]);
        let splice = clear(&ranges, 0, END);
        apply(&mut ranges, splice);
        assert_eq!(ranges, []);
    }
}
