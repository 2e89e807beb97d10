//! The rows: for people, or one JSON object each.
#![expect(clippy::print_stdout, reason = "the rows are what the bench is for")]

use crate::budget::{BUDGETS, Standing};
use crate::plot::{self, Bar};
use crate::rounds::Time;
use anyhow::Result;
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// Rows that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    /// One message there and one back, beside what Linux has
    Messages,
    /// Copies out of another program's memory
    Copies,
    /// Small calls between nodes while a copy fills the link
    Beside,
    /// Many pairs, and many threads, at once
    Crowds,
    /// Small files through the mount
    Files,
    /// Programs that work with many files
    Workloads,
    /// What nodes and endpoints cost while nothing happens
    Idle,
    /// What programs wait for when a file agent is killed
    Takeover,
    /// Copies over slow links, compressed and not
    Slow,
    /// A file server with very many files
    Scale,
}

/// Where rows go.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    filter: String,
    only: Vec<Group>,
    /// The rows so far that have a baseline.
    bars: RefCell<Vec<Bar>>,
    /// Ratios and figures so far, by name.
    measured: RefCell<BTreeMap<String, f64>>,
}

impl Report {
    pub(crate) fn new(json: bool, filter: &str, only: &[Group]) -> Report {
        let (filter, only) = (filter.to_owned(), only.to_vec());
        Report { json, filter, only, bars: RefCell::default(), measured: RefCell::default() }
    }

    /// Prints how each budget stands. True: all are met.
    pub(crate) fn budgets(&self) -> bool {
        let measured = self.measured.borrow();
        if !self.json {
            println!();
        }
        let mut are_met = true;
        for budget in &BUDGETS {
            let standing = budget.standing(&measured);
            are_met &= matches!(standing, Standing::Met(_));
            if self.json {
                let (value, is_met) = match standing {
                    Standing::Met(value) => (Some(value), Some(true)),
                    Standing::Missed(value) => (Some(value), Some(false)),
                    Standing::Unknown => (None, None),
                };
                println!("{}", json!({"budget": budget.path, "value": value, "met": is_met}));
            } else {
                println!("{}", budget.line(standing));
            }
        }
        are_met
    }

    /// Draws what has been reported.
    pub(crate) fn draw(&self, path: &Path) -> Result<()> {
        plot::draw(path, &self.bars.borrow())
    }

    /// Are the rows of this group wanted?
    pub(crate) fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }

    /// A row for each baseline, then for each of ours a row beside each baseline.
    pub(crate) fn beside(&self, ours: &[Time], baselines: &[Time]) {
        for baseline in baselines {
            self.row(&baseline.name, baseline.nanos, None);
        }
        for time in ours {
            for baseline in baselines {
                self.row(&time.name, time.nanos, Some(baseline));
            }
        }
    }

    /// Something that is no time of an operation.
    pub(crate) fn figure(&self, name: &str, value: f64, unit: &str) {
        self.measured.borrow_mut().insert(name.to_owned(), value);
        if !name.contains(&self.filter) {
            return;
        }
        if self.json {
            println!("{}", json!({"name": name, "value": value, "unit": unit}));
        } else {
            println!("{name:<56} {value:>9.2} {unit}");
        }
    }

    /// One time, in nanoseconds, beside that of `baseline` if there is one.
    pub(crate) fn row(&self, name: &str, nanos: f64, baseline: Option<&Time>) {
        let full =
            baseline.map_or(name.to_owned(), |baseline| format!("{name} / {}", baseline.name));
        if !full.contains(&self.filter) {
            return;
        }
        if let Some(baseline) = baseline {
            let (ours, baseline) = (micros(nanos), micros(baseline.nanos));
            self.bars.borrow_mut().push(Bar { name: full.clone(), ours, baseline });
        }
        let ratio = baseline.map(|baseline| nanos / baseline.nanos);
        if let Some(ratio) = ratio {
            self.measured.borrow_mut().insert(full.clone(), ratio);
        }
        if self.json {
            let baseline = baseline.map(|baseline| micros(baseline.nanos));
            println!(
                "{}",
                json!({"name": full, "value": micros(nanos), "unit": "us", "baseline": baseline, "ratio": ratio})
            );
            return;
        }
        match (baseline, ratio) {
            (Some(baseline), Some(ratio)) => {
                println!(
                    "{full:<56} {:>9.2} µs {:>9.2} µs {ratio:>7.2} ×",
                    micros(nanos),
                    micros(baseline.nanos)
                );
            }
            _ => println!("{full:<56} {:>9.2} µs", micros(nanos)),
        }
    }
}

fn micros(nanos: f64) -> f64 {
    nanos.round() / 1000.0
}
