//! Extended attributes: get, set, list, remove, with the rules of xattr(7) for each namespace.
//!
//! Of `system.` there are the access control lists (`acl.rs`); all else is refused with EOPNOTSUPP.

use crate::VfsServer;
use crate::acl;
use crate::answer::{Result, err};
use crate::inode::{CAPABILITY, time};
use crate::keys::{self, Inode, mark};
use crate::limits::{XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_TOTAL_MAX};
use crate::linux::{R_OK, S_ISVTX, W_OK, XATTR_CREATE, XATTR_REPLACE};
use crate::name;
use crate::permission;
use calls::vfs::{Count, Getxattr, Listxattr, Removexattr, Setxattr};
use dvk::server::{Call, Context};
use dvk::store::Store;
use m3ipc::Cred;
use m3ipc::errno::numbers::{E2BIG, EEXIST, EINVAL, ENODATA, ENOSPC, EOPNOTSUPP, EPERM, ERANGE};

/// Whose business an attribute is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    /// Anybody who may read or write the file or directory.
    User,
    /// The superuser only; others do not even see them.
    Trusted,
    /// Security modules: everybody reads, the superuser writes.
    Security,
    /// The two access control lists: everybody reads, the owner writes.
    AccessControl,
}

impl VfsServer {
    pub(crate) fn getxattr(
        &mut self,
        row: Getxattr,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Count, Vec<u8>)> {
        let inode = self.inode(row.ino, cx)?;
        match namespace(call.payload)? {
            Namespace::User if !carries_user_attributes(&inode) => return err(ENODATA),
            Namespace::User => permission::access(&inode, call.cred, R_OK, cx.store)?,
            Namespace::Trusted if call.cred.uid != 0 => return err(ENODATA),
            Namespace::Trusted | Namespace::Security | Namespace::AccessControl => {}
        }
        match cx.store.get(&keys::xattr(row.ino, call.payload)) {
            Some(value) => fit(value, row.size),
            None => err(ENODATA),
        }
    }

    pub(crate) fn setxattr(
        &mut self,
        row: Setxattr,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let (name, value) = name::split(call.payload, row.name_len)?;
        if row.flags & !(XATTR_CREATE | XATTR_REPLACE) != 0 {
            return err(EINVAL);
        }
        let namespace = namespace(name)?;
        if value.len() > XATTR_SIZE_MAX {
            return err(E2BIG);
        }
        let inode = self.inode(row.ino, cx)?;
        if namespace == Namespace::AccessControl {
            // As Linux has it, the flags mean nothing for these.
            return self.set_acl(inode, name, value, call, cx);
        }
        check_change(&inode, namespace, call.cred, cx.store)?;
        let key = keys::xattr(row.ino, name);
        let old = cx.store.get(&key);
        match &old {
            Some(_) if row.flags & XATTR_CREATE != 0 => return err(EEXIST),
            None if row.flags & XATTR_REPLACE != 0 => return err(ENODATA),
            _ => {}
        }
        let replaced = old.map_or(0, |old| name.len() + old.len());
        if total(row.ino, cx.store) - replaced + name.len() + value.len() > XATTR_TOTAL_MAX {
            return err(ENOSPC);
        }
        self.claim(&[(inode.ino, true)], call, cx)?;
        self.take_metadata_space(cx)?;
        self.take_space(value.len() as u64, cx)?;
        // Who looks for room may have found this.
        let mut inode = self.inode(row.ino, cx)?;
        cx.store.put(&key, value);
        if name == CAPABILITY {
            inode.marks |= mark::CAPABILITY;
        }
        inode.ctime = time(cx.wall);
        self.save(&inode, cx);
        Ok(())
    }

    pub(crate) fn listxattr(
        &mut self,
        row: Listxattr,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Count, Vec<u8>)> {
        self.inode(row.ino, cx)?;
        let mut names = Vec::new();
        keys::collect(cx.store, &keys::xattrs(row.ino), |key, _| {
            let name = keys::xattr_name(key);
            if call.cred.uid == 0 || !name.starts_with(b"trusted.") {
                names.extend_from_slice(name);
                names.push(0);
            }
        });
        fit(names, row.size)
    }

    pub(crate) fn removexattr(
        &mut self,
        row: Removexattr,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let name = call.payload;
        let namespace = namespace(name)?;
        let mut inode = self.inode(row.ino, cx)?;
        if namespace == Namespace::AccessControl {
            return self.remove_acl(inode, name, call, cx);
        }
        check_change(&inode, namespace, call.cred, cx.store)?;
        let key = keys::xattr(row.ino, name);
        if cx.store.get(&key).is_none() {
            return err(ENODATA);
        }
        self.claim(&[(inode.ino, true)], call, cx)?;
        cx.store.remove(&key);
        if name == CAPABILITY {
            inode.marks &= !mark::CAPABILITY;
        }
        inode.ctime = time(cx.wall);
        self.save(&inode, cx);
        Ok(())
    }
}

/// The namespace of an attribute's name.
///
/// # Errors
/// ERANGE if the name's length is none; EINVAL if nothing follows the prefix, or a NUL is in it;
/// EOPNOTSUPP if the namespace is none of ours.
fn namespace(name: &[u8]) -> Result<Namespace> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return err(ERANGE);
    }
    if name.contains(&0) {
        return err(EINVAL);
    }
    if acl::is_name(name) {
        return Ok(Namespace::AccessControl);
    }
    for (prefix, namespace) in [
        (&b"user."[..], Namespace::User),
        (b"trusted.", Namespace::Trusted),
        (b"security.", Namespace::Security),
    ] {
        match name.strip_prefix(prefix) {
            Some(b"") => return err(EINVAL),
            Some(_) => return Ok(namespace),
            None => {}
        }
    }
    err(EOPNOTSUPP)
}

/// On other types the mode says who may use them, not who may write attributes.
fn carries_user_attributes(inode: &Inode) -> bool {
    inode.is_regular() || inode.is_directory()
}

/// May `cred` set or remove an attribute?
///
/// # Errors
/// EPERM, EACCES.
fn check_change(inode: &Inode, namespace: Namespace, cred: &Cred, store: &dyn Store) -> Result<()> {
    match namespace {
        Namespace::User if !carries_user_attributes(inode) => err(EPERM),
        // In a directory like /tmp everybody may write, but not label the directory itself.
        Namespace::User
            if inode.is_directory()
                && inode.mode & S_ISVTX != 0
                && !permission::owner(inode, cred) =>
        {
            err(EPERM)
        }
        Namespace::User => permission::access(inode, cred, W_OK, store),
        Namespace::Trusted | Namespace::Security if cred.uid != 0 => err(EPERM),
        Namespace::Trusted | Namespace::Security => Ok(()),
        Namespace::AccessControl => acl::check(inode, cred),
    }
}

/// Bytes of all names and values of `ino`.
fn total(ino: u64, store: &dyn Store) -> usize {
    let mut total = 0;
    keys::collect(store, &keys::xattrs(ino), |key, value| {
        total += keys::xattr_name(key).len() + value.len();
    });
    total
}

/// A value for a caller with a buffer of `size` bytes; with 0 it asks for the length only.
fn fit(value: Vec<u8>, size: u32) -> Result<(Count, Vec<u8>)> {
    let count = value.len() as u64;
    match size {
        0 => Ok((Count { count }, Vec::new())),
        _ if count > u64::from(size) => err(ERANGE),
        _ => Ok((Count { count }, value)),
    }
}
