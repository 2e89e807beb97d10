//! rename(2) with RENAME_NOREPLACE and RENAME_EXCHANGE.

use crate::VfsServer;
use crate::answer::{Result, err};
use crate::inode::time;
use crate::keys::{Entry, Inode};
use crate::limits::SUBDIRECTORY_MAX;
use crate::linux::{RENAME_EXCHANGE, RENAME_NOREPLACE, W_OK};
use crate::name;
use crate::permission;
use calls::vfs::{ROOT_INO, Rename, Renamed};
use dvk::server::{Call, Context};
use dvk::store::Store;
use m3ipc::Cred;
use m3ipc::errno::numbers::{EEXIST, EINVAL, EISDIR, EMLINK, ENOENT, ENOTDIR, ENOTEMPTY};

/// A name and what it stands for.
struct Named<'a> {
    name: &'a [u8],
    entry: Entry,
    inode: Inode,
    /// Does the caller know that it is this inode?
    is_forgotten: bool,
}

impl VfsServer {
    pub(crate) fn rename(
        &mut self,
        row: Rename,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Renamed, Vec<u8>)> {
        if !matches!(row.flags, 0 | RENAME_NOREPLACE | RENAME_EXCHANGE) {
            return err(EINVAL);
        }
        let (old_name, new_name) = name::split(call.payload, row.name_len)?;
        let old_dir = self.searchable(row.parent, call.cred, cx)?;
        let new_dir = self.searchable(row.new_parent, call.cred, cx)?;
        let (old_name, new_name) = (name::to_rename(old_name)?, name::to_rename(new_name)?);

        let entry = self.existing(&old_dir, old_name, cx)?;
        let is_forgotten = row.forgotten == entry.ino;
        self.look(entry.ino, call, cx)?;
        let old = Named { name: old_name, entry, inode: self.inode(entry.ino, cx)?, is_forgotten };
        let target = match self.find(&new_dir, new_name, cx)? {
            Some(entry) => {
                let is_forgotten = row.new_forgotten == entry.ino;
                self.look(entry.ino, call, cx)?;
                let inode = self.inode(entry.ino, cx)?;
                Some(Named { name: new_name, entry, inode, is_forgotten })
            }
            None => None,
        };
        match (&target, row.flags) {
            (Some(_), RENAME_NOREPLACE) => return err(EEXIST),
            (None, RENAME_EXCHANGE) => return err(ENOENT),
            _ => {}
        }
        self.check_no_loop(&old_dir, &new_dir, &old, target.as_ref(), row.flags, cx)?;
        match target {
            // Both names stay.
            Some(new) if new.inode.ino == old.inode.ino => {}
            Some(new) if row.flags == RENAME_EXCHANGE => {
                self.exchange(old_dir, new_dir, old, new, call, cx)?;
            }
            Some(new) => {
                self.replace(old_dir, new_dir, old, new, call, cx)?;
                return Ok(self.renamed(row, entry.ino, call, cx));
            }
            None => {
                self.move_name(old_dir, new_dir, old, new_name, call, cx)?;
                return Ok(self.renamed(row, entry.ino, call, cx));
            }
        }
        Ok((Renamed::default(), Vec::new()))
    }

    /// What the caller may remember of inode `ino`, which it has renamed.
    fn renamed(
        &mut self,
        row: Rename,
        ino: u64,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> (Renamed, Vec<u8>) {
        let from = self.lease_after(row.parent, 0, call, cx);
        let to = self.lease_after(row.new_parent, ino, call, cx);
        let Ok(inode) = self.inode(ino, cx) else { return (Renamed::default(), Vec::new()) };
        let mut payload =
            if to.attr != 0 { inode.attr(cx.store).bytes().into() } else { Vec::new() };
        payload.extend(self.parent_after(row.parent, from.name, call, cx));
        if row.new_parent != row.parent {
            payload.extend(self.parent_after(row.new_parent, to.name, call, cx));
        }
        let (name, owner, new_name, new_owner) = (from.name, from.owner, to.name, to.owner);
        (Renamed { ino, attr: to.attr, name, owner, new_name, new_owner }, payload)
    }

    /// A directory must not come to be below itself.
    ///
    /// # Errors
    /// EINVAL; ENOTEMPTY if the name to be replaced is a directory above the old one.
    fn check_no_loop(
        &mut self,
        old_dir: &Inode,
        new_dir: &Inode,
        old: &Named<'_>,
        target: Option<&Named<'_>>,
        flags: u32,
        cx: &Context<'_>,
    ) -> Result<()> {
        if old_dir.ino == new_dir.ino {
            return Ok(());
        }
        if old.inode.is_directory() && self.is_above(old.inode.ino, new_dir, cx)? {
            return err(EINVAL);
        }
        if let Some(target) = target
            && target.inode.is_directory()
            && self.is_above(target.inode.ino, old_dir, cx)?
        {
            return err(if flags == RENAME_EXCHANGE { EINVAL } else { ENOTEMPTY });
        }
        Ok(())
    }

    /// Is directory `ino` the same as, or above, `dir`?
    fn is_above(&mut self, ino: u64, dir: &Inode, cx: &Context<'_>) -> Result<bool> {
        let mut at = *dir;
        while at.ino != ino && at.ino != ROOT_INO {
            at = self.directory(at.parent, cx)?;
        }
        Ok(at.ino == ino)
    }

    fn move_name(
        &mut self,
        mut old_dir: Inode,
        mut new_dir: Inode,
        mut old: Named<'_>,
        new_name: &[u8],
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        permission::remove_entry(&old_dir, &old.inode, call.cred, cx.store)?;
        permission::add_entry(&new_dir, call.cred, cx.store)?;
        check_move(&old_dir, &new_dir, &old.inode, call.cred, cx.store)?;
        self.check_trees(&old_dir, &new_dir, &old.inode, None, cx)?;
        if old.inode.is_directory()
            && old_dir.ino != new_dir.ino
            && new_dir.nlink >= SUBDIRECTORY_MAX
        {
            return err(EMLINK);
        }
        self.claim(
            &[(old_dir.ino, true), (new_dir.ino, true), (old.inode.ino, old.is_forgotten)],
            call,
            cx,
        )?;
        self.leave(&mut old_dir, old.name, &old.entry, cx);
        if old_dir.ino == new_dir.ino {
            new_dir = old_dir;
        }
        self.enter(&mut new_dir, new_name, &old.inode, cx);
        self.moved(&mut old.inode, &old_dir, &new_dir, cx);
        Ok(())
    }

    fn replace(
        &mut self,
        mut old_dir: Inode,
        mut new_dir: Inode,
        mut old: Named<'_>,
        new: Named<'_>,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        permission::remove_entry(&old_dir, &old.inode, call.cred, cx.store)?;
        permission::remove_entry(&new_dir, &new.inode, call.cred, cx.store)?;
        match (old.inode.is_directory(), new.inode.is_directory()) {
            (true, false) => return err(ENOTDIR),
            (false, true) => return err(EISDIR),
            _ => {}
        }
        check_move(&old_dir, &new_dir, &old.inode, call.cred, cx.store)?;
        if new.inode.is_directory() && new.inode.size > 0 {
            return err(ENOTEMPTY);
        }
        let is_last = new.inode.nlink == 1 || new.inode.is_directory();
        let freed = (is_last && !self.opens.is_open(new.inode.ino)).then_some(&new.inode);
        self.check_trees(&old_dir, &new_dir, &old.inode, freed, cx)?;
        self.claim(
            &[
                (old_dir.ino, true),
                (new_dir.ino, true),
                (old.inode.ino, old.is_forgotten),
                (new.inode.ino, new.is_forgotten),
            ],
            call,
            cx,
        )?;
        self.leave(&mut old_dir, old.name, &old.entry, cx);
        if old_dir.ino == new_dir.ino {
            new_dir = old_dir;
        }
        self.repoint(&mut new_dir, new.name, &new.entry, &old.inode, cx);
        self.moved(&mut old.inode, &old_dir, &new_dir, cx);
        self.unlinked(new.inode, new.is_forgotten, call, cx);
        Ok(())
    }

    fn exchange(
        &mut self,
        mut old_dir: Inode,
        mut new_dir: Inode,
        mut old: Named<'_>,
        mut new: Named<'_>,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        permission::remove_entry(&old_dir, &old.inode, call.cred, cx.store)?;
        permission::remove_entry(&new_dir, &new.inode, call.cred, cx.store)?;
        check_move(&old_dir, &new_dir, &old.inode, call.cred, cx.store)?;
        check_move(&old_dir, &new_dir, &new.inode, call.cred, cx.store)?;
        self.check_trees(&old_dir, &new_dir, &old.inode, Some(&new.inode), cx)?;
        self.check_trees(&new_dir, &old_dir, &new.inode, Some(&old.inode), cx)?;
        self.claim(
            &[
                (old_dir.ino, true),
                (new_dir.ino, true),
                (old.inode.ino, old.is_forgotten),
                (new.inode.ino, new.is_forgotten),
            ],
            call,
            cx,
        )?;
        self.repoint(&mut old_dir, old.name, &old.entry, &new.inode, cx);
        if old_dir.ino == new_dir.ino {
            new_dir = old_dir;
        }
        self.repoint(&mut new_dir, new.name, &new.entry, &old.inode, cx);
        self.moved(&mut old.inode, &old_dir, &new_dir, cx);
        self.moved(&mut new.inode, &new_dir, &old_dir, cx);
        Ok(())
    }

    /// `inode` has a name in `dir` now, and not any more in `from`.
    fn moved(&mut self, inode: &mut Inode, from: &Inode, dir: &Inode, cx: &mut Context<'_>) {
        if inode.is_directory() {
            inode.parent = dir.ino;
        }
        inode.ctime = time(cx.wall);
        // Of a file with names in several trees nothing says that it is to be counted in this one.
        let is_elsewhere = !inode.is_directory() && inode.nlink > 1 && from.tree == dir.tree;
        if !is_elsewhere || !self.is_settled() {
            self.join_tree(inode, dir.tree, cx);
        }
        self.save(inode, cx);
    }
}

/// A directory that gets another parent is itself changed: its `..`.
///
/// # Errors
/// EACCES.
fn check_move(
    old_dir: &Inode,
    new_dir: &Inode,
    inode: &Inode,
    cred: &Cred,
    store: &dyn Store,
) -> Result<()> {
    if inode.is_directory() && old_dir.ino != new_dir.ino {
        permission::access(inode, cred, W_OK, store)?;
    }
    Ok(())
}
