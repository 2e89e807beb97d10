//! Which container a process lives in: none of them gets in at the door of another one.
//!
//! Files and mounts keep a container's programs from the other doors. This does so too when somebody has mounted
//! them there, or when root of a container takes a mount away. A program cannot leave its container's tree of processes:
//! orphans become children of the first process of its pid namespace (`pid_namespaces(7)`), which stays the
//! container's child.

use m3ipc::DcId;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Ancestors that are looked at, and how often it is begun anew when one of them has ended meanwhile. Who has more,
/// or whose ancestors end that fast, is not let in: each is a file to read (some microseconds) while the node waits,
/// and nobody is to make it wait long by a deep tree of processes.
const ANCESTORS_MAX: usize = 256;
const TRIES: usize = 4;

/// The processes that are containers here.
#[derive(Debug, Default)]
pub(super) struct Confined {
    containers: Mutex<BTreeMap<u32, DcId>>,
}

/// Where a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// In this container.
    In(DcId),
    /// In none.
    Outside,
    /// It cannot be found out.
    Unknown,
}

impl Home {
    /// May it come in at the door of `dc`?
    pub(super) fn may_enter(self, dc: DcId) -> bool {
        self == Home::Outside || self == Home::In(dc)
    }
}

impl Confined {
    /// The process `pid`, as this daemon sees it, is the container of `dc` now.
    pub(super) fn started(&self, pid: u32, dc: DcId) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, dc);
    }

    /// It has ended, and all its descendants with it.
    pub(super) fn ended(&self, pid: u32) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }

    /// Where the process `pid` lives.
    pub(super) fn home_of(&self, pid: u32) -> Home {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if containers.is_empty() {
            return Home::Outside;
        }
        climb(pid, &containers, parent)
    }
}

/// Looks for a container among a process and its ancestors.
fn climb(pid: u32, containers: &BTreeMap<u32, DcId>, parent: impl Fn(u32) -> Option<u32>) -> Home {
    (0..TRIES).find_map(|_| climb_once(pid, containers, &parent)).unwrap_or(Home::Unknown)
}

/// `None`: an ancestor has ended meanwhile.
fn climb_once(
    mut pid: u32,
    containers: &BTreeMap<u32, DcId>,
    parent: &impl Fn(u32) -> Option<u32>,
) -> Option<Home> {
    for _ in 0..ANCESTORS_MAX {
        if let Some(dc) = containers.get(&pid) {
            return Some(Home::In(*dc));
        }
        // The first process of this pid namespace has none, or one that cannot be seen.
        if pid <= 1 {
            return Some(Home::Outside);
        }
        pid = parent(pid)?;
    }
    Some(Home::Unknown)
}

/// The parent of a process (`PPid:` in proc(5)).
fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::process::{Command, Stdio};

    const A: DcId = DcId(1);
    const B: DcId = DcId(2);

    #[test]
    fn a_process_is_where_its_nearest_ancestor_that_is_a_container_is() {
        // 10 is A's container, 20 B's; 30 is in A, 31 below it; 40 is in none.
        let containers = BTreeMap::from([(10, A), (20, B)]);
        let parents =
            BTreeMap::from([(10, 5), (20, 5), (30, 10), (31, 30), (21, 20), (40, 5), (5, 1)]);
        let home = |pid| climb(pid, &containers, |pid| parents.get(&pid).copied());
        for (pid, expected) in [
            (10, Home::In(A)),
            (31, Home::In(A)),
            (21, Home::In(B)),
            (40, Home::Outside),
            (1, Home::Outside),
            (77, Home::Unknown),
        ] {
            assert_eq!(home(pid), expected, "{pid}");
        }
        assert!(home(31).may_enter(A) && !home(31).may_enter(B));
        assert!(home(40).may_enter(A) && !home(77).may_enter(A));
    }

    #[test]
    fn an_ancestor_that_ends_meanwhile_is_asked_for_again_but_not_for_ever() {
        let containers = BTreeMap::from([(10, A)]);
        // 30's parent 29 has ended the first time; then 30 has been adopted by 10.
        let asked = Cell::new(0);
        let adopted = |pid| {
            asked.set(asked.get() + 1);
            match (pid, asked.get()) {
                (30, 1) => Some(29),
                (30, _) => Some(10),
                _ => None,
            }
        };
        assert_eq!(climb(30, &containers, adopted), Home::In(A));
        // One that changes its parent all the time, and a tree without end.
        assert_eq!(climb(30, &containers, |pid| (pid == 30).then_some(29)), Home::Unknown);
        assert_eq!(climb(30, &containers, |pid| Some(pid + 1)), Home::Unknown);
    }

    #[test]
    fn a_child_of_a_container_is_in_it_and_this_process_is_not() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let confined = Confined::default();
        assert_eq!(confined.home_of(child.id()), Home::Outside, "there are no containers");
        confined.started(child.id(), A);
        assert_eq!(confined.home_of(child.id()), Home::In(A));
        assert_eq!(confined.home_of(std::process::id()), Home::Outside);
        confined.started(std::process::id(), B);
        assert_eq!(confined.home_of(child.id()), Home::In(A));
        confined.ended(child.id());
        assert_eq!(confined.home_of(child.id()), Home::In(B));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
