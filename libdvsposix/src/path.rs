//! Paths of the VOS tree, walked from its root: what the kernel does above the mount, for the C API.

use crate::file;
use calls::vfs::{Attr, NAME_MAX, ROOT_INO};
use m3ipc::errno::numbers::{ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR};
use m3ipc::{Errno, Sendrec};

/// Longest path, as Linux has it.
pub const PATH_MAX: usize = 4096;
/// Most symbolic links followed in one path, as Linux has it.
const LINKS_MAX: usize = 40;

/// What a path leads to.
#[derive(Debug)]
pub struct Place {
    /// The directory of the last component.
    pub parent: u64,
    /// The last component; "." for the root itself.
    name: [u8; NAME_MAX],
    name_len: usize,
    /// What is there, if anything.
    pub attr: Option<Attr>,
    /// The path ends in a slash, or in "." or "..": only a directory is meant.
    pub directory: bool,
}

impl Place {
    pub fn name(&self) -> &[u8] {
        self.name.get(..self.name_len).unwrap_or_default()
    }
}

/// Type bits of `Attr::mode`.
pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;

/// Walks `path` from the root of the tree; symbolic links are followed, the last one only if
/// `follow`. An absolute target starts at the root of the tree again.
///
/// # Errors
/// EACCES, ELOOP, ENAMETOOLONG, ENOENT (a directory on the way), ENOTDIR.
pub fn walk(port: &impl Sendrec, path: &[u8], follow: bool) -> Result<Place, Errno> {
    if path.is_empty() {
        return Err(Errno::new(ENOENT));
    }
    let mut rest = Rest::new(path)?;
    let mut links = 0;
    let mut parent = ROOT_INO;
    let mut place = Place { parent, name: [0; NAME_MAX], name_len: 0, attr: None, directory: true };
    place.set_name(b".")?;
    place.attr = Some(file::getattr(port, ROOT_INO, 0)?);
    while let Some(component) = rest.next() {
        let name = component.name(&rest);
        let here = place.attr.ok_or(Errno::new(ENOENT))?;
        if here.mode & S_IFMT != S_IFDIR {
            return Err(Errno::new(ENOTDIR));
        }
        parent = here.ino;
        if name.len() > NAME_MAX {
            return Err(Errno::new(ENAMETOOLONG));
        }
        // Above the root is the root; the server knows every other "..".
        let found = if name == b"." || (name == b".." && here.ino == ROOT_INO) {
            Some(here)
        } else {
            absent(file::lookup(port, parent, name))?
        };
        let link = found.filter(|attr| {
            attr.mode & S_IFMT == S_IFLNK && (follow || !component.last || component.slash)
        });
        if let Some(link) = link {
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::new(ELOOP));
            }
            let absolute = rest.replace_by_link(port, link.ino)?;
            place.attr =
                if absolute { Some(file::getattr(port, ROOT_INO, 0)?) } else { Some(here) };
            continue;
        }
        place.parent = parent;
        place.set_name(name)?;
        place.attr = found;
        place.directory = component.slash || name == b"." || name == b"..";
        if !component.last && found.is_none() {
            return Err(Errno::new(ENOENT));
        }
    }
    if place.directory && place.attr.is_some_and(|attr| attr.mode & S_IFMT != S_IFDIR) {
        return Err(Errno::new(ENOTDIR));
    }
    Ok(place)
}

/// As [`walk`], of something that is there.
///
/// # Errors
/// As [`walk`]; ENOENT.
pub fn find(port: &impl Sendrec, path: &[u8], follow: bool) -> Result<Attr, Errno> {
    walk(port, path, follow)?.attr.ok_or(Errno::new(ENOENT))
}

impl Place {
    fn set_name(&mut self, name: &[u8]) -> Result<(), Errno> {
        let target = self.name.get_mut(..name.len()).ok_or(Errno::new(ENAMETOOLONG))?;
        target.copy_from_slice(name);
        self.name_len = name.len();
        Ok(())
    }
}

/// What is still to be walked.
struct Rest {
    bytes: [u8; PATH_MAX],
    at: usize,
    len: usize,
}

/// One component: where it is in [`Rest`], and what follows it.
struct Component {
    start: usize,
    end: usize,
    last: bool,
    slash: bool,
}

impl Component {
    fn name<'a>(&self, rest: &'a Rest) -> &'a [u8] {
        rest.bytes.get(self.start..self.end).unwrap_or_default()
    }
}

impl Rest {
    fn new(path: &[u8]) -> Result<Rest, Errno> {
        let mut rest = Rest { bytes: [0; PATH_MAX], at: 0, len: path.len() };
        // PATH_MAX counts the final NUL.
        let target = rest.bytes.get_mut(..path.len()).filter(|_| path.len() < PATH_MAX);
        target.ok_or(Errno::new(ENAMETOOLONG))?.copy_from_slice(path);
        Ok(rest)
    }

    fn next(&mut self) -> Option<Component> {
        let start = self.skip(self.at, true);
        let end = self.skip(start, false);
        let next = self.skip(end, true);
        self.at = next;
        (start < end).then_some(Component { start, end, last: next == self.len, slash: next > end })
    }

    /// The first position from `at` on that is not a slash (`slashes`), or that is one.
    fn skip(&self, at: usize, slashes: bool) -> usize {
        let rest = self.bytes.get(at..self.len).unwrap_or_default();
        rest.iter().position(|byte| (*byte == b'/') != slashes).map_or(self.len, |found| at + found)
    }

    /// Puts the target of symbolic link `ino` in front of what is left. Is it absolute?
    fn replace_by_link(&mut self, port: &impl Sendrec, ino: u64) -> Result<bool, Errno> {
        let mut target = [0; PATH_MAX];
        let len = file::readlink(port, ino, &mut target)?;
        let target = target.get(..len).unwrap_or_default();
        if target.is_empty() {
            return Err(Errno::new(ENOENT));
        }
        // The slashes before `at` belong to what is left: "link/" means a directory.
        let mut from = self.at;
        while from > 0 && self.bytes.get(from - 1) == Some(&b'/') {
            from -= 1;
        }
        let left = self.len - from;
        if len + left >= PATH_MAX {
            return Err(Errno::new(ENAMETOOLONG));
        }
        self.bytes.copy_within(from..self.len, len);
        let front = self.bytes.get_mut(..len).ok_or(Errno::new(ENAMETOOLONG))?;
        front.copy_from_slice(target);
        (self.at, self.len) = (0, len + left);
        Ok(target.first() == Some(&b'/'))
    }
}

fn absent(found: Result<Attr, Errno>) -> Result<Option<Attr>, Errno> {
    match found {
        Ok(attr) => Ok(Some(attr)),
        Err(error) if error.errno == ENOENT => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::{PATH_MAX, S_IFDIR, S_IFLNK, find, walk};
    use calls::Row;
    use calls::vfs::{Attr, Getattr, Lookup, ROOT_INO, Readlink};
    use m3ipc::errno::numbers::{EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR};
    use m3ipc::{Endpoint, Errno, IpcError, Message, Sendrec, Wait};
    use std::string::String;
    use std::vec::Vec;

    const S_IFREG: u32 = 0o100_000;

    /// (parent, name, inode, kind, target)
    type Entry = (u64, &'static str, u64, u32, &'static str);

    const TREE: [Entry; 8] = [
        (1, "dir", 2, S_IFDIR, ""),
        (2, "file", 3, S_IFREG, ""),
        (2, "sub", 4, S_IFDIR, ""),
        (4, "..", 2, S_IFDIR, ""),
        (1, "link", 5, S_IFLNK, "dir/sub"),
        (4, "up", 6, S_IFLNK, "../file"),
        (2, "absolute", 7, S_IFLNK, "/dir"),
        (1, "loop", 8, S_IFLNK, "loop"),
    ];

    struct Tree;

    impl Tree {
        fn answer(message: &Message, payload: &[u8]) -> Result<Vec<u8>, i32> {
            let attr = |ino: u64, kind: u32| {
                Attr { ino, mode: kind | 0o755, ..Attr::default() }.bytes().to_vec()
            };
            if let Some(Lookup { parent }) = row::<Lookup>(message) {
                let found =
                    TREE.iter().find(|entry| entry.0 == parent && entry.1.as_bytes() == payload);
                return found.map(|entry| attr(entry.2, entry.3)).ok_or(ENOENT);
            }
            if let Some(Readlink { ino }) = row::<Readlink>(message) {
                let found = TREE.iter().find(|entry| entry.2 == ino && entry.3 == S_IFLNK);
                return found.map(|entry| entry.4.as_bytes().to_vec()).ok_or(EINVAL);
            }
            match row::<Getattr>(message) {
                Some(Getattr { ino: ROOT_INO, .. }) => Ok(attr(ROOT_INO, S_IFDIR)),
                _ => Err(ENOENT),
            }
        }
    }

    fn row<R: Row>(message: &Message) -> Option<R> {
        (message.call == R::NUMBER).then(|| R::get(&message.args)).flatten()
    }

    impl Sendrec for Tree {
        fn sendrec(
            &self,
            _: Endpoint,
            message: &mut Message,
            send: &[&[u8]],
            receive: &mut [u8],
            _: Wait,
        ) -> Result<usize, IpcError> {
            match Tree::answer(message, &send.concat()) {
                Ok(bytes) => {
                    receive[..bytes.len()].copy_from_slice(&bytes);
                    *message = Message::request(message.call);
                    Ok(bytes.len())
                }
                Err(errno) => {
                    *message = Message::failed(message.call, Errno::new(errno));
                    Ok(0)
                }
            }
        }
    }

    #[test]
    fn paths_lead_where_the_kernel_would_go() {
        let check = |path: &str, follow, expected: Result<u64, i32>| {
            let found = find(&Tree, path.as_bytes(), follow).map(|attr| attr.ino);
            assert_eq!(found.map_err(|error| error.errno), expected, "{path}");
        };
        check("/", true, Ok(1));
        check("//", true, Ok(1));
        check("/..", true, Ok(1));
        check("/../dir/.", false, Ok(2));
        check("dir", true, Ok(2));
        check("/dir/file", true, Ok(3));
        check("/dir//sub/", true, Ok(4));
        check("/dir/sub/../file", true, Ok(3));
        check("/link", true, Ok(4));
        check("/link", false, Ok(5));
        check("/link/", false, Ok(4));
        check("/link/up", true, Ok(3));
        check("/link/up", false, Ok(6));
        check("/link/.", true, Ok(4));
        check("/dir/absolute/file", true, Ok(3));
        check("/dir/absolute", true, Ok(2));
        check("", true, Err(ENOENT));
        check("/dir/none", true, Err(ENOENT));
        check("/none/file", true, Err(ENOENT));
        check("/dir/file/", true, Err(ENOTDIR));
        check("/dir/file/x", true, Err(ENOTDIR));
        check("/link/up/", true, Err(ENOTDIR));
        check("/loop", true, Err(ELOOP));
        check("/loop", false, Ok(8));
        check("/loop/x", false, Err(ELOOP));
    }

    #[test]
    fn what_is_not_there_yet_has_a_parent_and_a_name() {
        let place = walk(&Tree, b"/link/fresh", true).expect("its directory is there");
        assert_eq!((place.parent, place.name(), place.attr), (4, &b"fresh"[..], None));
        assert!(!place.directory);
        assert!(walk(&Tree, b"/dir/fresh/", true).expect("its directory is there").directory);
    }

    #[test]
    fn lengths_are_limited_as_by_linux() {
        let errno = |path: &str| {
            find(&Tree, path.as_bytes(), true).map(|attr| attr.ino).map_err(|error| error.errno)
        };
        assert_eq!(errno(&"x".repeat(256)), Err(ENAMETOOLONG));
        assert_eq!(errno(&"x".repeat(255)), Err(ENOENT));
        assert_eq!(errno(&"/".repeat(PATH_MAX - 1)), Ok(1));
        assert_eq!(errno(&"/".repeat(PATH_MAX)), Err(ENAMETOOLONG));
        // The target of a link counts, too.
        let long: String = std::format!("/link{}x", "/".repeat(PATH_MAX - 8));
        assert_eq!(errno(&long), Err(ENAMETOOLONG));
    }
}
