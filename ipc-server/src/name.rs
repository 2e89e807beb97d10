//! Names of POSIX objects: which are names, and which error the others get.

use crate::limits::{MQ_NAME_MAX, SEM_NAME_MAX};
use m3ipc::Errno;
use m3ipc::errno::numbers::{EACCES, EINVAL, ENAMETOOLONG, ENOENT};

/// The name of a semaphore without its slash. As glibc: any number of slashes may lead, none may follow.
pub(crate) fn semaphore(payload: &[u8]) -> Result<&[u8], Errno> {
    let slashes = payload.iter().take_while(|byte| **byte == b'/').count();
    let name = &payload[slashes..];
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::new(EINVAL));
    }
    if name.len() > SEM_NAME_MAX {
        return Err(Errno::new(ENAMETOOLONG));
    }
    Ok(name)
}

/// The name of a message queue without its slash. As mq_open(3): exactly one slash, in front.
pub(crate) fn queue(payload: &[u8]) -> Result<&[u8], Errno> {
    let name = payload.strip_prefix(b"/").ok_or(Errno::new(EINVAL))?;
    if name.contains(&0) {
        return Err(Errno::new(EINVAL));
    }
    if name.is_empty() {
        return Err(Errno::new(ENOENT));
    }
    if name.len() > MQ_NAME_MAX {
        return Err(Errno::new(ENAMETOOLONG));
    }
    if name.contains(&b'/') || name == b"." || name == b".." {
        return Err(Errno::new(EACCES));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A payload, and the name in it or the errno.
    type Case<'a> = (&'a [u8], Result<&'a [u8], i32>);

    fn outcome(name: Result<&[u8], Errno>) -> Result<&[u8], i32> {
        name.map_err(|errno| errno.errno)
    }

    #[test]
    fn names_of_semaphores_are_judged_as_by_glibc() {
        let longest = [b'x'; SEM_NAME_MAX];
        let too_long = [b'x'; SEM_NAME_MAX + 1];
        let table: [Case<'_>; 9] = [
            (b"/name", Ok(b"name")),
            (b"name", Ok(b"name")),
            (b"//name", Ok(b"name")),
            (b"", Err(EINVAL)),
            (b"/", Err(EINVAL)),
            (b"/a/b", Err(EINVAL)),
            (b"/a\0b", Err(EINVAL)),
            (&longest, Ok(&longest)),
            (&too_long, Err(ENAMETOOLONG)),
        ];
        for (payload, expected) in table {
            assert_eq!(outcome(semaphore(payload)), expected, "{payload:?}");
        }
    }

    #[test]
    fn names_of_queues_are_judged_as_by_linux() {
        let longest = [&b"/"[..], &[b'x'; MQ_NAME_MAX]].concat();
        let too_long = [&b"/"[..], &[b'x'; MQ_NAME_MAX + 1]].concat();
        let table: [Case<'_>; 10] = [
            (b"/name", Ok(b"name")),
            (b"name", Err(EINVAL)),
            (b"", Err(EINVAL)),
            (b"/", Err(ENOENT)),
            (b"//name", Err(EACCES)),
            (b"/a/b", Err(EACCES)),
            (b"/..", Err(EACCES)),
            (b"/a\0b", Err(EINVAL)),
            (&longest, Ok(&longest[1..])),
            (&too_long, Err(ENAMETOOLONG)),
        ];
        for (payload, expected) in table {
            assert_eq!(outcome(queue(payload)), expected, "{payload:?}");
        }
    }
}
