//! Who is calling, as the operating system's kernel says: never as the caller says.

use crate::limits::GROUPS_MAX;

/// Credentials of a caller. They come from SO_PEERCRED, from FUSE or from a seccomp notification.
///
/// On a channel whose other end is trusted (a `dvkd`, a file agent) they stand in front of each
/// request's payload, because that end speaks for many processes; otherwise they belong to the
/// channel. Encoded: pid, uid, gid, count (u32 each), then the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cred {
    /// Process id inside the DC (its pid namespace), 0 if unknown.
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
    group_count: u32,
    group_list: [u32; GROUPS_MAX],
}

/// Bytes of an encoded [`Cred`] at most.
pub const CRED_SIZE_MAX: usize = 16 + 4 * GROUPS_MAX;

impl Cred {
    /// The superuser, process 0: the DVS itself.
    pub const ROOT: Cred = Cred::new(0, 0, 0);

    pub const fn new(pid: u32, uid: u32, gid: u32) -> Cred {
        Cred { pid, uid, gid, group_count: 0, group_list: [0; GROUPS_MAX] }
    }

    /// With supplementary groups; those beyond `GROUPS_MAX` are dropped (fewer rights, never more).
    pub fn with_groups(mut self, groups: impl IntoIterator<Item = u32>) -> Cred {
        self.group_count = 0;
        for group in groups.into_iter().take(GROUPS_MAX) {
            self.group_list[self.group_count as usize] = group;
            self.group_count += 1;
        }
        self
    }

    /// Supplementary groups.
    pub fn groups(&self) -> &[u32] {
        &self.group_list[..self.group_count as usize]
    }

    /// Is `gid` the caller's group or one of the supplementary ones?
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups().contains(&gid)
    }

    /// Writes the encoded form, returns its length.
    pub fn encode(&self, out: &mut [u8; CRED_SIZE_MAX]) -> usize {
        let head = [self.pid, self.uid, self.gid, self.group_count];
        let mut at = 0;
        for word in head.iter().chain(self.groups()) {
            out[at..at + 4].copy_from_slice(&word.to_le_bytes());
            at += 4;
        }
        at
    }

    /// Reads the encoded form from the front of `bytes`; `None` if it is malformed.
    pub fn decode(bytes: &[u8]) -> Option<(Cred, &[u8])> {
        let (head, mut rest) = bytes.split_at_checked(16)?;
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut cred = Cred::new(word(0), word(4), word(8));
        let count = word(12);
        if count as usize > GROUPS_MAX {
            return None;
        }
        for group in &mut cred.group_list[..count as usize] {
            let (bytes, tail) = rest.split_first_chunk::<4>()?;
            *group = u32::from_le_bytes(*bytes);
            rest = tail;
        }
        cred.group_count = count;
        Some((cred, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cred_survives_the_wire_and_a_cut_one_is_refused() {
        let cred = Cred::new(7, 1000, 100).with_groups([4, 24, 27]);
        let mut bytes = [0; CRED_SIZE_MAX];
        let len = cred.encode(&mut bytes);
        assert_eq!(Cred::decode(&bytes[..len]), Some((cred, &[][..])));
        for cut in 0..len {
            assert_eq!(Cred::decode(&bytes[..cut]), None, "cut at {cut}");
        }
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Cred::decode(&bytes), None);
    }
}
