//! What the measurements must show: each budget with the worst ratio that was measured for it.

use std::collections::BTreeMap;

/// One budget.
#[derive(Debug)]
pub(crate) struct Budget {
    /// What it is about.
    pub(crate) path: &'static str,
    /// The rows, or figures, that it is about; of several the worst counts.
    rows: &'static [&'static str],
    /// The most that a ratio to the baseline, or a figure, may be.
    most: f64,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    Met(f64),
    Missed(f64),
    /// Not all of its rows were measured.
    Unknown,
}

/// The budgets of the system's design for messages, copies, and what is idle.
pub(crate) const BUDGETS: [Budget; 13] = [
    Budget {
        path: "sendrec, same node, two CPUs: of shared memory",
        rows: &["sendrec same node, two CPUs / shared memory, two CPUs"],
        most: 1.3,
    },
    Budget {
        path: "sendrec, same node, two CPUs: of a pipe",
        rows: &["sendrec same node, two CPUs / pipe, two CPUs"],
        most: 0.2,
    },
    Budget {
        path: "sendrec, same node, one CPU: of a pipe",
        rows: &["sendrec same node, one CPU / pipe, one CPU"],
        most: 1.2,
    },
    Budget {
        path: "sendrec, other node: of TLS",
        rows: &[
            "sendrec across nodes, two CPUs / tls across nodes, two CPUs",
            "sendrec across nodes, one CPU / tls across nodes, one CPU",
        ],
        most: 1.5,
    },
    Budget {
        path: "sendrec, other node: of TCP",
        rows: &[
            "sendrec across nodes, two CPUs / tcp across nodes, two CPUs",
            "sendrec across nodes, one CPU / tcp across nodes, one CPU",
        ],
        most: 1.8,
    },
    Budget {
        path: "vcopy of lent memory, 64 KiB to 1 MiB: of memcpy",
        rows: &[
            "vcopy of lent memory same node 64 KiB, two CPUs / memcpy 64 KiB, two CPUs",
            "vcopy of lent memory same node 256 KiB, two CPUs / memcpy 256 KiB, two CPUs",
            "vcopy of lent memory same node 1024 KiB, two CPUs / memcpy 1024 KiB, two CPUs",
        ],
        most: 1.0 / 0.8,
    },
    Budget {
        path: "vcopy of any memory, 64 KiB to 1 MiB: of memcpy",
        rows: &[
            "vcopy same node 64 KiB, two CPUs / memcpy 64 KiB, two CPUs",
            "vcopy same node 256 KiB, two CPUs / memcpy 256 KiB, two CPUs",
            "vcopy same node 1024 KiB, two CPUs / memcpy 1024 KiB, two CPUs",
        ],
        most: 1.0 / 0.8,
    },
    Budget {
        path: "vcopy 1 MiB, other node: of TLS",
        rows: &[
            "vcopy across nodes 1024 KiB, two CPUs / tls 1024 KiB, two CPUs",
            "vcopy across nodes 1024 KiB, one CPU / tls 1024 KiB, one CPU",
        ],
        most: 1.0 / 0.85,
    },
    Budget {
        path: "stat and read of what is remembered: of tmpfs",
        rows: &[
            "stat on /dvs, home node / stat on tmpfs",
            "stat on /dvs, other node / stat on tmpfs",
            "stat of no file on /dvs, home node / stat of no file on tmpfs",
            "stat of no file on /dvs, other node / stat of no file on tmpfs",
            "read 4 KiB, opened to read on /dvs, home node / read 4 KiB, opened to read on tmpfs",
            "read 4 KiB, opened to read on /dvs, other node / read 4 KiB, opened to read on tmpfs",
        ],
        most: 1.0 / 0.9,
    },
    Budget {
        path: "ls -l of 1000 remembered files: of tmpfs",
        rows: &[
            "list 1000 files with stat on /dvs, home node / list 1000 files with stat on tmpfs",
            "list 1000 files with stat on /dvs, other node / list 1000 files with stat on tmpfs",
        ],
        most: 3.0,
    },
    Budget {
        path: "names changed, home node: of an empty FUSE",
        rows: &[
            "create on /dvs, home node / create on empty FUSE",
            "unlink on /dvs, home node / unlink on empty FUSE",
            "rename on /dvs, home node / rename on empty FUSE",
        ],
        most: 1.5,
    },
    Budget {
        path: "names changed, other node: of an empty FUSE",
        rows: &[
            "create on /dvs, other node / create on empty FUSE",
            "unlink on /dvs, other node / unlink on empty FUSE",
            "rename on /dvs, other node / rename on empty FUSE",
        ],
        most: 1.5,
    },
    Budget {
        path: "idle node: microseconds of CPU per second",
        rows: &["idle node, CPU per second"],
        most: 5000.0,
    },
];

impl Budget {
    /// How it stands, with what was measured by name.
    pub(crate) fn standing(&self, measured: &BTreeMap<String, f64>) -> Standing {
        let values: Option<Vec<f64>> =
            self.rows.iter().map(|row| measured.get(*row).copied()).collect();
        match values.map(|values| values.into_iter().fold(0.0, f64::max)) {
            None => Standing::Unknown,
            Some(worst) if worst <= self.most => Standing::Met(worst),
            Some(worst) => Standing::Missed(worst),
        }
    }

    /// A line for people.
    pub(crate) fn line(&self, standing: Standing) -> String {
        let (value, word) = match standing {
            Standing::Met(value) => (format!("{value:.2}"), "met"),
            Standing::Missed(value) => (format!("{value:.2}"), "missed"),
            Standing::Unknown => ("-".to_owned(), "not measured"),
        };
        format!("{:<56} {value:>9} of {:>7.2}  {word}", self.path, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_row_decides_and_a_missing_one_is_not_met() {
        let budget = Budget { path: "a", rows: &["x", "y"], most: 1.25 };
        let measured = |rows: &[(&str, f64)]| -> BTreeMap<String, f64> {
            rows.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
        };
        assert_eq!(budget.standing(&measured(&[("x", 0.5), ("y", 1.25)])), Standing::Met(1.25));
        assert_eq!(budget.standing(&measured(&[("x", 1.3), ("y", 1.0)])), Standing::Missed(1.3));
        assert_eq!(budget.standing(&measured(&[("x", 1.0)])), Standing::Unknown);
        assert!(budget.line(Standing::Missed(1.3)).ends_with("missed"));
    }
}
