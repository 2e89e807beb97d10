//! Checks which tables fjall's trees have before fjall reads that.
//!
//! A tree (lsm-tree 3.1) is a directory; its file `current` names the newest of its lists of tables, and has the checksum of
//! that file, which lsm-tree writes and does not look at. One flipped byte in a list would be other tables, and those that it
//! does not name are deleted.
//!
//! ```text
//! current = number:u64 checksum:u128 0:u8     (little-endian)     of the file `v` number; XXH3-128
//! ```

use anyhow::{Context, Result, ensure};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

/// Checks the lists of all trees of a database.
///
/// # Errors
/// A sentence that names the file.
pub(crate) fn check_all(database: &Path) -> Result<()> {
    let trees = database.join("keyspaces");
    let failed = || format!("cannot list {}", trees.display());
    let entries = match std::fs::read_dir(&trees) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(failed)?,
    };
    for entry in entries {
        check(&entry.with_context(failed)?.path())?;
    }
    Ok(())
}

fn check(tree: &Path) -> Result<()> {
    let path = tree.join("current");
    let current = match std::fs::read(&path) {
        // One that was being made.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        current => current.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let (number, checksum) = parse(&current).with_context(|| {
        format!("{} is damaged: restore the store from a backup", path.display())
    })?;
    let list = tree.join(format!("v{number}"));
    let bytes = std::fs::read(&list).with_context(|| {
        format!("cannot read {}, which {} names", list.display(), path.display())
    })?;
    ensure!(
        xxh3_128(&bytes) == checksum,
        "{} or {} is damaged: restore the store from a backup",
        list.display(),
        path.display()
    );
    Ok(())
}

fn parse(current: &[u8]) -> Option<(u64, u128)> {
    let (number, rest) = current.split_first_chunk::<8>()?;
    let (checksum, kind) = rest.split_first_chunk::<16>()?;
    (kind == [0]).then(|| (u64::from_le_bytes(*number), u128::from_le_bytes(*checksum)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_which_list_counts_has_one_length_and_one_kind() {
        let current = [&[1, 0, 0, 0, 0, 0, 0, 0], &[2; 16][..], &[0]].concat();
        assert_eq!(parse(&current), Some((1, u128::from_le_bytes([2; 16]))));
        for cut in 0..current.len() {
            assert_eq!(parse(&current[..cut]), None);
        }
        assert_eq!(parse(&[&current[..24], &[1]].concat()), None);
        assert_eq!(parse(&[&current[..], &[0]].concat()), None);
    }
}
