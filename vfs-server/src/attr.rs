//! getattr, setattr (chmod, chown, truncate, utimensat) and access.

use crate::VfsServer;
use crate::acl;
use crate::answer::{Result, err};
use crate::inode::time;
use crate::keys::Inode;
use crate::linux::{R_OK, S_IALLUGO, S_IFDIR, S_IFLNK, S_IFREG, S_ISGID, W_OK, X_OK};
use crate::pages::{Own, PAGES_END, PageClaim};
use crate::permission;
use crate::snapshot::refuse_change;
use calls::vfs::{Access, Getattr, Leased, PAGE_SIZE, SetAttr, Setattr, Time, set};
use calls::wire::Wire;
use dvk::server::{Call, Context};
use dvk::store::Store;
use m3ipc::Cred;
use m3ipc::errno::numbers::{EINVAL, EISDIR, EOPNOTSUPP, EPERM};

/// All bits of [`SetAttr::valid`].
const ALL: u32 = set::MODE
    | set::UID
    | set::GID
    | set::SIZE
    | set::ATIME
    | set::MTIME
    | set::ATIME_NOW
    | set::MTIME_NOW;

impl VfsServer {
    pub(crate) fn getattr(
        &mut self,
        row: Getattr,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Leased, Vec<u8>)> {
        if row.fh != 0 {
            self.handle(row.fh, row.ino, call.id.source)?;
        }
        let inode = self.inode(row.ino, cx)?;
        let attr = self.lease(&inode, call, cx);
        let leased = Leased { attr, ..Leased::default() };
        Ok((leased, inode.attr(cx.store).bytes().into()))
    }

    /// All of it or nothing: everything is checked before the first change.
    pub(crate) fn setattr(
        &mut self,
        row: Setattr,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Leased, Vec<u8>)> {
        let Some(change) = SetAttr::get(call.payload) else { return err(EINVAL) };
        let mut inode = self.inode(row.ino, cx)?;
        let cred = call.cred;
        self.check_size(&inode, &change, row.fh, call, cx.store)?;
        check(&inode, &change, cred, cx.store)?;
        if change.valid != 0 {
            let is_cut = change.valid & set::SIZE != 0 && change.size < inode.size;
            let cut = change.size / PAGE_SIZE..PAGES_END;
            let pages = is_cut.then(|| PageClaim::change(inode.ino, cut, Own::Cut));
            self.claim_all(&[(inode.ino, true)], pages.as_slice(), call, cx)?;
        }

        if change.valid & set::SIZE != 0 {
            let is_cut = change.size < inode.size;
            self.resize(&mut inode, change.size, cred, cx)?;
            if is_cut {
                // Who still has some of these pages is about to give them back.
                let pages = change.size.div_ceil(PAGE_SIZE)..PAGES_END;
                self.leases.pages.cut(inode.ino, &pages, call.id.source);
            }
        }
        if change.valid != 0 {
            self::change(&mut inode, &change, time(cx.wall), cred, cx.store);
            self.save(&inode, cx);
        }
        let attr = self.lease(&inode, call, cx);
        Ok((Leased { attr, ..Leased::default() }, inode.attr(cx.store).bytes().into()))
    }

    pub(crate) fn access(
        &mut self,
        row: Access,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        if row.mask & !(R_OK | W_OK | X_OK) != 0 {
            return err(EINVAL);
        }
        let inode = self.inode(row.ino, cx)?;
        if row.mask & W_OK != 0 && matches!(inode.kind(), S_IFREG | S_IFDIR) {
            refuse_change(inode.ino)?;
        }
        permission::access(&inode, call.cred, row.mask, cx.store)
    }

    /// ftruncate(2) was allowed when the file was opened; truncate(2) is now.
    fn check_size(
        &self,
        inode: &Inode,
        change: &SetAttr,
        fh: u64,
        call: &Call<'_>,
        store: &dyn Store,
    ) -> Result<()> {
        if change.valid & set::SIZE == 0 {
            return Ok(());
        }
        match inode.kind() {
            S_IFREG => {}
            S_IFDIR => return err(EISDIR),
            _ => return err(EINVAL),
        }
        if fh == 0 {
            return permission::access(inode, call.cred, W_OK, store);
        }
        self.writable_handle(fh, inode.ino, call.id.source, EINVAL).map(|_| ())
    }
}

/// May `cred` change owner, mode and times so?
///
/// # Errors
/// EPERM, EACCES, EINVAL, EOPNOTSUPP.
pub(crate) fn check(inode: &Inode, change: &SetAttr, cred: &Cred, store: &dyn Store) -> Result<()> {
    if change.valid & !ALL != 0 {
        return err(EINVAL);
    }
    check_owner(inode, change, cred)?;
    check_mode(inode, change, cred)?;
    check_times(inode, change, cred, store)
}

/// Changes owner, mode and times at `now`, which was [checked](check).
pub(crate) fn change(
    inode: &mut Inode,
    change: &SetAttr,
    now: Time,
    cred: &Cred,
    store: &mut dyn Store,
) {
    if change.valid & (set::UID | set::GID) != 0 {
        change_owner(inode, change, cred, store);
    }
    if change.valid & set::MODE != 0 {
        change_mode(inode, change.mode, cred);
        acl::follow_mode(inode, store);
    }
    change_times(inode, change, now);
    inode.ctime = now;
}

/// The owner may give a file to a group of hers; only the superuser gives it to another user.
fn check_owner(inode: &Inode, change: &SetAttr, cred: &Cred) -> Result<()> {
    let uid = (change.valid & set::UID != 0).then_some(change.uid);
    let gid = (change.valid & set::GID != 0).then_some(change.gid);
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return err(EINVAL);
    }
    let owner = cred.uid == inode.uid;
    let uid_allowed = uid.is_none_or(|uid| owner && uid == inode.uid);
    let gid_allowed = gid.is_none_or(|gid| owner && (gid == inode.gid || cred.in_group(gid)));
    if cred.uid == 0 || uid_allowed && gid_allowed { Ok(()) } else { err(EPERM) }
}

fn check_mode(inode: &Inode, change: &SetAttr, cred: &Cred) -> Result<()> {
    if change.valid & set::MODE == 0 {
        return Ok(());
    }
    if inode.kind() == S_IFLNK {
        return err(EOPNOTSUPP);
    }
    if permission::owner(inode, cred) { Ok(()) } else { err(EPERM) }
}

/// Who may write a file may set both its times to now; only the owner may set anything else.
fn check_times(inode: &Inode, change: &SetAttr, cred: &Cred, store: &dyn Store) -> Result<()> {
    let has = |bit| change.valid & bit != 0;
    let explicit_atime = has(set::ATIME) && !has(set::ATIME_NOW);
    let explicit_mtime = has(set::MTIME) && !has(set::MTIME_NOW);
    let malformed = |time: Time| time.nanos >= 1_000_000_000;
    if explicit_atime && malformed(change.atime) || explicit_mtime && malformed(change.mtime) {
        return err(EINVAL);
    }
    let explicit = explicit_atime || explicit_mtime;
    let now = has(set::ATIME_NOW) || has(set::MTIME_NOW);
    // Kernels send the time of a truncation with it; the truncation is allowed already.
    let with_truncation = has(set::SIZE) && !explicit;
    if !explicit && !now || with_truncation || permission::owner(inode, cred) {
        return Ok(());
    }
    if explicit || !(has(set::ATIME_NOW) && has(set::MTIME_NOW)) {
        return err(EPERM);
    }
    permission::access(inode, cred, W_OK, store)
}

/// chown(2): a program must not run with the rights of an owner who did not make it so.
fn change_owner(inode: &mut Inode, change: &SetAttr, cred: &Cred, store: &mut dyn Store) {
    if !inode.is_directory() {
        inode.drop_set_ids(cred);
        inode.drop_capability(store);
    }
    if change.valid & set::UID != 0 {
        inode.uid = change.uid;
    }
    if change.valid & set::GID != 0 {
        inode.gid = change.gid;
    }
}

/// chmod(2): who is not of the file's group cannot make it run with that group.
fn change_mode(inode: &mut Inode, mode: u32, cred: &Cred) {
    let allowed = if permission::group(inode.gid, cred) { S_IALLUGO } else { S_IALLUGO & !S_ISGID };
    inode.mode = inode.kind() | mode & allowed;
}

fn change_times(inode: &mut Inode, change: &SetAttr, now: Time) {
    let chosen = |bit, now_bit, time_given| {
        if change.valid & now_bit != 0 {
            Some(now)
        } else {
            (change.valid & bit != 0).then_some(time_given)
        }
    };
    inode.atime = chosen(set::ATIME, set::ATIME_NOW, change.atime).unwrap_or(inode.atime);
    inode.mtime = chosen(set::MTIME, set::MTIME_NOW, change.mtime).unwrap_or(inode.mtime);
}
