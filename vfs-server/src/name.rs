//! Names of directory entries: what is one, and what `.` and `..` mean to each call.

use crate::answer::{Result, err};
use calls::vfs::NAME_MAX;
use m3ipc::errno::numbers::{EBUSY, EEXIST, EINVAL, EISDIR, ENAMETOOLONG, ENOENT, ENOTEMPTY};

/// A name as it comes with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// An ordinary entry.
    Entry(&'a [u8]),
    /// The directory itself.
    Dot,
    /// The directory it is in.
    DotDot,
}

/// Checks a payload that is a name.
///
/// # Errors
/// ENOENT if it is empty, ENAMETOOLONG, EINVAL if a slash or NUL is in it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Name<'_>> {
    match bytes {
        b"" => err(ENOENT),
        b"." => Ok(Name::Dot),
        b".." => Ok(Name::DotDot),
        _ if bytes.len() > NAME_MAX => err(ENAMETOOLONG),
        _ if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) => err(EINVAL),
        _ => Ok(Name::Entry(bytes)),
    }
}

/// The name of an entry to be made: `.` and `..` are there already.
pub(crate) fn to_make(bytes: &[u8]) -> Result<&[u8]> {
    match parse(bytes)? {
        Name::Entry(name) => Ok(name),
        Name::Dot | Name::DotDot => err(EEXIST),
    }
}

/// The name of an entry that unlink(2) is to remove.
pub(crate) fn to_unlink(bytes: &[u8]) -> Result<&[u8]> {
    match parse(bytes)? {
        Name::Entry(name) => Ok(name),
        Name::Dot | Name::DotDot => err(EISDIR),
    }
}

/// The name of a directory that rmdir(2) is to remove.
pub(crate) fn to_rmdir(bytes: &[u8]) -> Result<&[u8]> {
    match parse(bytes)? {
        Name::Entry(name) => Ok(name),
        Name::Dot => err(EINVAL),
        Name::DotDot => err(ENOTEMPTY),
    }
}

/// A name that rename(2) is to move or make.
pub(crate) fn to_rename(bytes: &[u8]) -> Result<&[u8]> {
    match parse(bytes)? {
        Name::Entry(name) => Ok(name),
        Name::Dot | Name::DotDot => err(EBUSY),
    }
}

/// Takes a payload of two parts apart.
///
/// # Errors
/// EINVAL if the first part would be longer than the payload.
pub(crate) fn split(payload: &[u8], first_len: u16) -> Result<(&[u8], &[u8])> {
    match payload.split_at_checked(usize::from(first_len)) {
        Some(parts) => Ok(parts),
        None => err(EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::Errno;

    #[test]
    fn a_name_is_one_to_255_bytes_without_slash_and_nul() {
        let longest = [b'x'; NAME_MAX];
        let too_long = [b'x'; NAME_MAX + 1];
        for (bytes, want) in [
            (&b"a"[..], Ok(Name::Entry(b"a"))),
            (b"...", Ok(Name::Entry(b"..."))),
            (b"\xff\n ", Ok(Name::Entry(b"\xff\n "))),
            (&longest, Ok(Name::Entry(&longest))),
            (&too_long, Err(Errno::new(ENAMETOOLONG))),
            (b"", Err(Errno::new(ENOENT))),
            (b".", Ok(Name::Dot)),
            (b"..", Ok(Name::DotDot)),
            (b"a/b", Err(Errno::new(EINVAL))),
            (b"a\0", Err(Errno::new(EINVAL))),
        ] {
            assert_eq!(parse(bytes), want, "{bytes:?}");
        }
    }
}
