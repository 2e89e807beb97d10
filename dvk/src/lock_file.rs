//! A file in a directory that one process at a time has locked, as long as it lives.

use crate::limits::LOCK_WAIT;
use anyhow::{Context, Result, bail};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Locks the file `lock` in `directory` until the returned file is closed.
///
/// A lock is shared with the children that a process has just forked and that have not executed their program yet:
/// it may outlive its owner, who was killed, by so long. Therefore it is waited for a moment.
///
/// # Errors
/// `in_use`, or which file cannot be opened.
pub(crate) fn lock(directory: &Path, in_use: &str) -> Result<File> {
    let path = directory.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let limit = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < limit => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => bail!("{in_use}"),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_given_up_in_a_moment_is_waited_for_and_one_that_is_not_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path(), "taken").unwrap();
        let error = lock(directory.path(), "taken").unwrap_err();
        assert_eq!(error.to_string(), "taken");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| lock(directory.path(), "taken"));
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
