//! The files of the project: what git tracks, or would.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// One file.
#[derive(Debug)]
pub(crate) struct File {
    /// From the project's folder, with `/`.
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Empty if it is not UTF-8.
    pub(crate) text: String,
}

/// All files that are tracked, or new and not ignored.
pub(crate) fn files(root: &Path) -> Result<Vec<File>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git: tidy looks at the files that it tracks")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut files = Vec::new();
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        let full = root.join(path);
        // Deleted but not committed yet, or a link: nothing to read.
        if !full.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        let bytes = std::fs::read(&full).with_context(|| format!("cannot read {path}"))?;
        let size = bytes.len() as u64;
        files.push(File {
            path: path.to_owned(),
            size,
            text: String::from_utf8(bytes).unwrap_or_default(),
        });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}
