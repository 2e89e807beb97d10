//! The shim that `dvs` carries: the library that programs of a container are started with.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// `libdvs_preload.so`, as built with this `dvs`.
pub(crate) static SHIM: &[u8] = include_bytes!(env!("DVS_SHIM"));

/// The file's name: also what a C program that is linked to it looks for (its SONAME).
pub(crate) const NAME: &str = "libdvs_preload.so";

/// Puts the shim at `path`, readable and executable for all. Programs that run with an older one keep theirs.
///
/// # Errors
/// As the file system says.
pub(crate) fn install(path: &Path) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == SHIM) {
        return Ok(());
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = Path::new(&fresh);
    let written = write(fresh).and_then(|()| fs::rename(fresh, path));
    if written.is_err() {
        fs::remove_file(fresh).ok();
    }
    written
}

fn write(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(SHIM)?;
    file.set_permissions(Permissions::from_mode(0o755))
}
