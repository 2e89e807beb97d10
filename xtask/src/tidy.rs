//! The house rules that a program can check, as tables and code.

mod layers;
mod licences;
mod text;
mod tree;

use anyhow::{Result, bail};
use std::fmt;

/// One violation: where, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) rule: &'static str,
    pub(crate) path: String,
    /// Counted from 1; 0 means the whole file.
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.path, self.line, self.rule, self.message)
    }
}

/// Checks every rule and lists all violations.
pub(crate) fn run() -> Result<()> {
    let root = crate::root();
    let files = tree::files(&root)?;
    let mut findings = text::check(&files);
    findings.extend(layers::check(&files));
    findings.extend(licences::check(&root)?);
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} violations in {} files", findings.len(), files.len());
    }
    eprintln!("tidy: {} files, all rules kept", files.len());
    Ok(())
}
