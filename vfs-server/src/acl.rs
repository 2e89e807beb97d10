//! Access control lists (acl(5), the withdrawn POSIX.1e draft 17): their form as attributes, what they grant, and how they
//! follow the mode and make that of new files.
//!
//! A list that says no more than the mode is not kept. One that is kept has the mode's permissions in it: the owner's and
//! the others' in their entries, the group's in the mask.

use crate::VfsServer;
use crate::answer::{Result, err};
use crate::inode::time;
use crate::keys::{self, Inode, mark};
use crate::limits::ACL_ENTRIES_MAX;
use crate::linux::{S_IFDIR, S_IFLNK, S_IFMT, S_ISGID};
use crate::permission;
use dvk::server::{Call, Context};
use dvk::store::Store;
use m3ipc::Cred;
use m3ipc::errno::numbers::{EACCES, EINVAL, ENOSPC, EOPNOTSUPP, EPERM};

/// Name of the attribute that says who may access a file.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of a directory's attribute that says who may access what is made in it.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Version of the form, in front of the entries (`POSIX_ACL_XATTR_VERSION` of `linux/posix_acl_xattr.h`).
const VERSION: u32 = 2;
/// Size of an entry: tag and permissions (16 bits each), then the id (32), all little-endian.
const ENTRY_SIZE: usize = 8;
/// The id of an entry that names nobody.
const NOBODY: u32 = u32::MAX;

/// Which users an entry is about (`ACL_*` of `linux/posix_acl.h`). They stand in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    /// Of 4, 2 and 1.
    permissions: u32,
    /// Of a named user or group.
    id: u32,
}

/// A list: complete and in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

/// Is `name` that of an access control list?
pub(crate) fn is_name(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

impl Acl {
    /// The list in an attribute's value; `None` if it is empty or has no entries, which means: none.
    ///
    /// # Errors
    /// EOPNOTSUPP for another version; EINVAL for what is no list; ENOSPC for too many entries.
    fn parse(value: &[u8]) -> Result<Option<Acl>> {
        if value.is_empty() {
            return Ok(None);
        }
        let Some((version, body)) = value.split_first_chunk() else { return err(EINVAL) };
        if u32::from_le_bytes(*version) != VERSION {
            return err(EOPNOTSUPP);
        }
        let (entries, rest) = body.as_chunks::<ENTRY_SIZE>();
        if !rest.is_empty() {
            return err(EINVAL);
        }
        if entries.len() > ACL_ENTRIES_MAX {
            return err(ENOSPC);
        }
        let parsed: Option<Vec<Entry>> = entries.iter().map(Entry::parse).collect();
        match parsed.map(Acl) {
            Some(acl) if acl.0.is_empty() => Ok(None),
            Some(acl) if acl.is_valid() => Ok(Some(acl)),
            _ => err(EINVAL),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for Entry { tag, permissions, id } in &self.0 {
            bytes.extend_from_slice(&(*tag as u16).to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes()[..2]);
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    /// One entry each for the owner, its group and others, in order; and a mask if there are others' names.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let has_names = count(Tag::User) + count(Tag::Group) > 0;
        [Tag::Owner, Tag::OwningGroup, Tag::Other].into_iter().all(|tag| count(tag) == 1)
            && count(Tag::Mask) <= 1
            && (count(Tag::Mask) == 1 || !has_names)
            && self.0.is_sorted_by_key(|entry| entry.tag)
    }

    /// The entries that the mode's three groups of bits stand for, and by how much those are shifted.
    fn classes(&mut self) -> [(&mut Entry, u32); 3] {
        let has_mask = self.0.iter().any(|entry| entry.tag == Tag::Mask);
        let group = if has_mask { Tag::Mask } else { Tag::OwningGroup };
        let mut found = self.0.iter_mut().filter_map(|entry| match entry.tag {
            Tag::Owner => Some((entry, 6)),
            Tag::Other => Some((entry, 0)),
            tag if tag == group => Some((entry, 3)),
            _ => None,
        });
        std::array::from_fn(|_| found.next().expect("a list is complete"))
    }

    /// Does it say more than a mode?
    fn is_extended(&self) -> bool {
        self.0.len() > 3
    }

    /// The nine bits of the mode that say the same, or, of an extended one, what it grants at most.
    fn mode(&self) -> u32 {
        self.clone()
            .classes()
            .into_iter()
            .fold(0, |mode, (entry, shift)| mode | entry.permissions << shift)
    }

    /// Follows chmod(2).
    fn set_mode(&mut self, mode: u32) {
        for (entry, shift) in self.classes() {
            entry.permissions = mode >> shift & 7;
        }
    }

    /// The list of a new file that is made with `mode` where this is the default: neither grants what the other does not.
    fn restricted_to(mut self, mode: u32) -> Acl {
        for (entry, shift) in self.classes() {
            entry.permissions &= mode >> shift & 7;
        }
        self
    }

    /// May `cred`, who is not the owner, access what belongs to group `gid` in every way of `mask`?
    fn grants(&self, gid: u32, cred: &Cred, mask: u32) -> bool {
        let has_all = |permissions: u32| permissions & mask == mask;
        let most = self.0.iter().find(|entry| entry.tag == Tag::Mask);
        let most = most.map_or(7, |entry| entry.permissions);
        let of = |tag| self.0.iter().filter(move |entry| entry.tag == tag);
        if let Some(entry) = of(Tag::User).find(|entry| entry.id == cred.uid) {
            return has_all(entry.permissions & most);
        }
        let groups = of(Tag::OwningGroup)
            .map(|entry| (gid, entry))
            .chain(of(Tag::Group).map(|entry| (entry.id, entry)));
        let mut own =
            groups.filter(|(gid, _)| cred.in_group(*gid)).map(|(_, entry)| entry).peekable();
        if own.peek().is_some() {
            return own.any(|entry| has_all(entry.permissions & most));
        }
        of(Tag::Other).any(|entry| has_all(entry.permissions))
    }
}

impl Entry {
    fn parse(bytes: &[u8; ENTRY_SIZE]) -> Option<Entry> {
        let [tag, tag_high, permissions, permissions_high, id @ ..] = *bytes;
        let tag = match u16::from_le_bytes([tag, tag_high]) {
            0x01 => Tag::Owner,
            0x02 => Tag::User,
            0x04 => Tag::OwningGroup,
            0x08 => Tag::Group,
            0x10 => Tag::Mask,
            0x20 => Tag::Other,
            _ => return None,
        };
        let permissions = u32::from(u16::from_le_bytes([permissions, permissions_high]));
        let is_named = matches!(tag, Tag::User | Tag::Group);
        let id = if is_named { u32::from_le_bytes(id) } else { NOBODY };
        (permissions <= 7 && is_named == (id != NOBODY)).then_some(Entry { tag, permissions, id })
    }
}

/// What an inode's list says for who is not its owner; `None` if it has none.
pub(crate) fn grants(inode: &Inode, cred: &Cred, mask: u32, store: &dyn Store) -> Option<bool> {
    let acl = stored(inode, ACCESS, mark::ACL_ACCESS, store)?;
    Some(acl.grants(inode.gid, cred, mask))
}

fn stored(inode: &Inode, name: &[u8], mark: u16, store: &dyn Store) -> Option<Acl> {
    if inode.marks & mark == 0 {
        return None;
    }
    Acl::parse(&store.get(&keys::xattr(inode.ino, name))?).ok().flatten()
}

/// Keeps, or takes away, one of an inode's lists.
fn keep(inode: &mut Inode, name: &[u8], acl: Option<&Acl>, store: &mut dyn Store) {
    let mark = if name == ACCESS { mark::ACL_ACCESS } else { mark::ACL_DEFAULT };
    match acl {
        Some(acl) => {
            store.put(&keys::xattr(inode.ino, name), &acl.bytes());
            inode.marks |= mark;
        }
        None => {
            store.remove(&keys::xattr(inode.ino, name));
            inode.marks &= !mark;
        }
    }
}

/// The mode of an inode has been changed: its list says so too.
pub(crate) fn follow_mode(inode: &mut Inode, store: &mut dyn Store) {
    if let Some(mut acl) = stored(inode, ACCESS, mark::ACL_ACCESS, store) {
        acl.set_mode(inode.mode);
        keep(inode, ACCESS, Some(&acl), store);
    }
}

/// The lists of a new inode in `dir`, and its mode: from `mode` by the directory's default list, or else by `umask`.
pub(crate) struct Inherited {
    pub(crate) mode: u32,
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Inherited {
    pub(crate) fn of(dir: &Inode, mode: u32, umask: u32, store: &dyn Store) -> Inherited {
        let kind = mode & S_IFMT;
        let default = match kind {
            S_IFLNK => None,
            _ => stored(dir, DEFAULT, mark::ACL_DEFAULT, store),
        };
        let Some(default) = default else {
            let mode = mode & !(umask & 0o777);
            return Inherited { mode, access: None, default: None };
        };
        let acl = default.clone().restricted_to(mode);
        let mode = mode & !0o777 | acl.mode();
        let access = acl.is_extended().then_some(acl);
        Inherited { mode, access, default: (kind == S_IFDIR).then_some(default) }
    }

    /// Gives them to the inode.
    pub(crate) fn give(&self, inode: &mut Inode, store: &mut dyn Store) {
        for (name, acl) in [(ACCESS, &self.access), (DEFAULT, &self.default)] {
            if acl.is_some() {
                keep(inode, name, acl.as_ref(), store);
            }
        }
    }
}

impl VfsServer {
    /// setxattr(2) of a list.
    ///
    /// # Errors
    /// As [`Acl::parse`]; EPERM to who is not the owner; EACCES for the default of what is no directory; EOPNOTSUPP for a
    /// symbolic link; ENOSPC.
    pub(crate) fn set_acl(
        &mut self,
        mut inode: Inode,
        name: &[u8],
        value: &[u8],
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let acl = Acl::parse(value)?;
        check(&inode, call.cred)?;
        if acl.is_some() && name == DEFAULT && !inode.is_directory() {
            return err(EACCES);
        }
        self.claim(&[(inode.ino, true)], call, cx)?;
        if acl.is_some() {
            self.take_metadata_space(cx)?;
            // Who looks for room may have found this.
            inode = self.inode(inode.ino, cx)?;
        }
        if name == DEFAULT {
            keep(&mut inode, DEFAULT, acl.as_ref(), cx.store);
        } else {
            if let Some(acl) = &acl {
                inode.mode = inode.mode & !0o777 | acl.mode();
                if !permission::group(inode.gid, call.cred) {
                    inode.mode &= !S_ISGID;
                }
            }
            keep(&mut inode, ACCESS, acl.filter(Acl::is_extended).as_ref(), cx.store);
        }
        inode.ctime = time(cx.wall);
        self.save(&inode, cx);
        Ok(())
    }

    /// removexattr(2) of a list, which need not be there. The mode stays.
    ///
    /// # Errors
    /// EPERM, EOPNOTSUPP as [`VfsServer::set_acl`].
    pub(crate) fn remove_acl(
        &mut self,
        mut inode: Inode,
        name: &[u8],
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        check(&inode, call.cred)?;
        self.claim(&[(inode.ino, true)], call, cx)?;
        keep(&mut inode, name, None, cx.store);
        inode.ctime = time(cx.wall);
        self.save(&inode, cx);
        Ok(())
    }
}

/// May `cred` change lists of `inode`?
///
/// # Errors
/// EOPNOTSUPP for a symbolic link, EPERM to who is not the owner.
pub(crate) fn check(inode: &Inode, cred: &Cred) -> Result<()> {
    if inode.kind() == S_IFLNK {
        return err(EOPNOTSUPP);
    }
    if permission::owner(inode, cred) { Ok(()) } else { err(EPERM) }
}

/// Are an inode's marks, its lists and its mode in step?
#[cfg(test)]
pub(crate) fn is_in_step(inode: &Inode, store: &dyn Store) -> bool {
    let is_marked = |name, mark: u16| {
        let is_there = store.get(&keys::xattr(inode.ino, name)).is_some();
        let list = stored(inode, name, mark, store);
        (is_there == (inode.marks & mark != 0) && is_there == list.is_some()).then_some(list)
    };
    let access = is_marked(ACCESS, mark::ACL_ACCESS);
    let is_the_modes = |acl: &Acl| acl.is_extended() && acl.mode() == inode.mode & 0o777;
    access.is_some_and(|acl| acl.is_none_or(|acl| is_the_modes(&acl)))
        && is_marked(DEFAULT, mark::ACL_DEFAULT)
            .is_some_and(|acl| acl.is_none() || inode.is_directory())
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::Errno;
    use proptest::prelude::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    fn list(entries: &[(u16, u16, u32)]) -> Acl {
        Acl::parse(&value(entries)).unwrap().unwrap()
    }

    const NO: u32 = NOBODY;
    const RICH: [(u16, u16, u32); 7] =
        [(1, 7, NO), (2, 6, 10), (2, 0, 11), (4, 4, NO), (8, 7, 20), (16, 5, NO), (32, 1, NO)];

    #[test]
    fn a_list_is_complete_and_in_order_or_none() {
        let check = |entries: &[(u16, u16, u32)], expected: std::result::Result<bool, i32>| {
            let parsed = Acl::parse(&value(entries)).map(|acl| acl.is_some());
            assert_eq!(parsed, expected.map_err(Errno::new), "{entries:?}");
        };
        check(&[], Ok(false));
        check(&[(1, 7, NO), (4, 7, NO), (32, 7, NO)], Ok(true));
        check(&RICH, Ok(true));
        check(&[(1, 7, NO), (4, 7, NO)], Err(EINVAL));
        check(&[(4, 7, NO), (1, 7, NO), (32, 7, NO)], Err(EINVAL));
        check(&[(1, 7, NO), (2, 7, 9), (4, 7, NO), (32, 7, NO)], Err(EINVAL));
        check(&[(1, 8, NO), (4, 7, NO), (32, 7, NO)], Err(EINVAL));
        check(&[(1, 7, NO), (2, 7, NO), (4, 7, NO), (16, 7, NO), (32, 7, NO)], Err(EINVAL));
        check(&[(1, 7, NO), (4, 7, NO), (16, 7, NO), (16, 7, NO), (32, 7, NO)], Err(EINVAL));
        check(&[(1, 7, NO), (4, 7, NO), (64, 7, NO)], Err(EINVAL));
        let many: Vec<_> = std::iter::once((1, 7, NO))
            .chain((0..500).map(|id| (2, 7, id)))
            .chain([(4, 7, NO), (16, 7, NO), (32, 7, NO)])
            .collect();
        check(&many, Err(ENOSPC));
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), err(EOPNOTSUPP));
        assert_eq!(Acl::parse(&[2, 0, 0]), err(EINVAL));
    }

    #[test]
    fn the_first_class_that_fits_decides_and_of_groups_any_that_grants() {
        let acl = list(&RICH);
        let check = |cred: Cred, granted: u32| {
            for mask in [4, 2, 1] {
                assert_eq!(acl.grants(30, &cred, mask), granted & mask != 0, "{cred:?} {mask}");
            }
        };
        check(Cred::new(1, 10, 99), 4);
        check(Cred::new(1, 11, 20), 0);
        check(Cred::new(1, 12, 30), 4);
        check(Cred::new(1, 12, 20), 5);
        check(Cred::new(1, 12, 30).with_groups([20]), 5);
        check(Cred::new(1, 12, 99), 1);
        // Of no single group everything.
        let split = list(&[(1, 0, NO), (4, 4, NO), (8, 2, 20), (16, 7, NO), (32, 7, NO)]);
        assert!(!split.grants(30, &Cred::new(1, 12, 30).with_groups([20]), 6));
    }

    #[test]
    fn mode_and_list_follow_each_other() {
        let mut acl = list(&RICH);
        assert_eq!(acl.mode(), 0o751);
        acl.set_mode(0o640);
        assert_eq!(acl.mode(), 0o640);
        assert_eq!(acl.0[3], Entry { tag: Tag::OwningGroup, permissions: 4, id: NOBODY });
        let mut plain = list(&[(1, 7, NO), (4, 7, NO), (32, 7, NO)]);
        plain.set_mode(0o421);
        assert!(!plain.is_extended() && plain.mode() == 0o421);
        assert_eq!(list(&RICH).restricted_to(0o666).mode(), 0o640);
    }

    proptest! {
        #[test]
        fn no_value_makes_the_reader_panic_and_a_list_is_written_as_it_was_read(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            entries in proptest::collection::vec((0..7u32, 0..9u16, 0..3u32), 0..8),
        ) {
            Acl::parse(&bytes).ok();
            let entries: Vec<_> =
                entries.iter().map(|(tag, permissions, id)| (1u16 << tag, *permissions, *id)).collect();
            if let Ok(Some(acl)) = Acl::parse(&value(&entries)) {
                prop_assert_eq!(Acl::parse(&acl.bytes()), Ok(Some(acl)));
            }
        }
    }
}
