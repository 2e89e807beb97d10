//! Names of semaphores and queues: what libc and Linux do to them before anybody looks them up.

use calls::vfs::NAME_MAX;
use m3ipc::Errno;
use m3ipc::errno::numbers::{EACCES, EINVAL, ENAMETOOLONG, ENOENT};

/// A name as the server wants it: one leading slash, no other.
#[derive(Debug, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; NAME_MAX + 1],
    len: usize,
}

/// libc keeps named semaphores as files "sem.NAME".
const SEMAPHORE_PREFIX: usize = 4;

impl Name {
    /// The name of a semaphore (sem_open): leading slashes do not count.
    ///
    /// # Errors
    /// EINVAL: empty, or a slash inside. ENAMETOOLONG.
    pub fn semaphore(name: &[u8]) -> Result<Name, Errno> {
        let start = name.iter().position(|byte| *byte != b'/').unwrap_or(name.len());
        let name = name.get(start..).unwrap_or_default();
        if name.is_empty() || name.contains(&b'/') {
            return Err(Errno::new(EINVAL));
        }
        Name::with_slash(name, NAME_MAX - SEMAPHORE_PREFIX)
    }

    /// The name of a queue as mq_open(2), the system call, has it: without the leading slash.
    ///
    /// # Errors
    /// ENOENT: empty. EACCES: a slash inside, or a dot name. ENAMETOOLONG.
    pub fn queue(name: &[u8]) -> Result<Name, Errno> {
        if name.is_empty() {
            return Err(Errno::new(ENOENT));
        }
        if name.contains(&b'/') || name == b"." || name == b".." {
            return Err(Errno::new(EACCES));
        }
        Name::with_slash(name, NAME_MAX)
    }

    /// The name of a queue as mq_open(3), the function, has it: with the leading slash.
    ///
    /// # Errors
    /// EINVAL: no slash. Else as [`Name::queue`].
    pub fn slash_queue(name: &[u8]) -> Result<Name, Errno> {
        Name::queue(name.strip_prefix(b"/").ok_or(Errno::new(EINVAL))?)
    }

    /// With the slash.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn with_slash(name: &[u8], longest: usize) -> Result<Name, Errno> {
        let mut bytes = [0; NAME_MAX + 1];
        let target = bytes.get_mut(1..name.len() + 1).filter(|_| name.len() <= longest);
        target.ok_or(Errno::new(ENAMETOOLONG))?.copy_from_slice(name);
        bytes[0] = b'/';
        Ok(Name { bytes, len: name.len() + 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::Name;
    use m3ipc::Errno;
    use m3ipc::errno::numbers::{EACCES, EINVAL, ENAMETOOLONG, ENOENT};
    use std::vec;
    use std::vec::Vec;

    fn check(name: Result<Name, Errno>, expected: Result<&[u8], i32>) {
        let got: Result<Vec<u8>, i32> =
            name.map(|name| name.bytes().to_vec()).map_err(|error| error.errno);
        assert_eq!(got, expected.map(<[u8]>::to_vec));
    }

    #[test]
    fn semaphores_are_named_as_libc_names_them() {
        check(Name::semaphore(b"/a"), Ok(b"/a"));
        check(Name::semaphore(b"a"), Ok(b"/a"));
        check(Name::semaphore(b"///a"), Ok(b"/a"));
        check(Name::semaphore(b""), Err(EINVAL));
        check(Name::semaphore(b"//"), Err(EINVAL));
        check(Name::semaphore(b"/a/b"), Err(EINVAL));
        check(Name::semaphore(b"/a/"), Err(EINVAL));
        let longest = vec![b'x'; 251];
        assert_eq!(Name::semaphore(&longest).map(|name| name.bytes().len()), Ok(252));
        check(Name::semaphore(&vec![b'x'; 252]), Err(ENAMETOOLONG));
    }

    #[test]
    fn queues_are_named_as_linux_names_them() {
        check(Name::slash_queue(b"/q"), Ok(b"/q"));
        check(Name::slash_queue(b"q"), Err(EINVAL));
        check(Name::slash_queue(b""), Err(EINVAL));
        check(Name::slash_queue(b"/"), Err(ENOENT));
        check(Name::slash_queue(b"/q/r"), Err(EACCES));
        check(Name::slash_queue(b"//q"), Err(EACCES));
        check(Name::slash_queue(b"/."), Err(EACCES));
        check(Name::slash_queue(b"/.."), Err(EACCES));
        assert_eq!(Name::queue(&vec![b'x'; 255]).map(|name| name.bytes().len()), Ok(256));
        check(Name::queue(&vec![b'x'; 256]), Err(ENAMETOOLONG));
    }
}
