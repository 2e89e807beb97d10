//! `dvs lab demo`: shows on real programs that three nodes are one machine.

use anyhow::Result;

/// `dvs lab demo`: exit code 0 if everything shown was as it should be.
///
/// # Errors
/// The lab cannot be started.
pub(crate) fn main() -> Result<u8> {
    anyhow::bail!("not yet")
}
