//! What an endpoint may do: which calls, and to and from whom. The DC's administrator decides (`set_priv`).

use crate::endpoint::Endpoint;
use crate::errno::IpcError;
use crate::limits::RIGHTS_LIST;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the record [`Rights`].
pub const VERSION: u32 = 1;

/// Levels, as in the prototype. The level says which calls an endpoint has when it is bound.
pub mod level {
    pub const USER: u32 = 0;
    pub const SERVER: u32 = 1;
    pub const TASK: u32 = 2;
    pub const SYSTEM: u32 = 3;
}

/// Bits of [`Rights::calls`].
pub mod call {
    pub const SEND: u32 = 1;
    pub const RECEIVE: u32 = 1 << 1;
    pub const SENDREC: u32 = 1 << 2;
    pub const RCVRQST: u32 = 1 << 3;
    pub const REPLY: u32 = 1 << 4;
    pub const NOTIFY: u32 = 1 << 5;
    pub const VCOPY: u32 = 1 << 6;
    /// Passing a request that it has received on to another receiver.
    pub const RELAY: u32 = 1 << 7;
    pub const ALL: u32 = (1 << 8) - 1;
    /// What others feel: checked by dvkd and by whoever receives, never by the caller alone.
    pub const OUTWARD: u32 = SEND | SENDREC | NOTIFY | VCOPY;
}

/// Slots that an endpoint may exchange messages with. An endpoint's generation plays no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Allowed {
    /// Not 0: everybody.
    pub all: u32,
    /// How many of `slots` count.
    pub count: u32,
    pub slots: [u32; RIGHTS_LIST],
}

/// The rights of an endpoint: a record with a version, the same for Rust, C and the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Rights {
    pub version: u32,
    /// One of [`level`].
    pub level: u32,
    /// Bits of [`call`].
    pub calls: u32,
    pub reserved: u32,
    /// To whom it may send, notify, and whose memory it may ask for.
    pub to: Allowed,
    /// Whose messages it may get.
    pub from: Allowed,
}

const _: () = assert!(size_of::<Rights>() == 128);

impl Allowed {
    pub const EVERYBODY: Allowed = Allowed { all: 1, count: 0, slots: [0; RIGHTS_LIST] };
    pub const NOBODY: Allowed = Allowed { all: 0, count: 0, slots: [0; RIGHTS_LIST] };

    /// Exactly these endpoints, `RIGHTS_LIST` at most.
    ///
    /// # Errors
    /// [`IpcError::TooLarge`] for more.
    pub fn only(endpoints: &[Endpoint]) -> Result<Allowed, IpcError> {
        let mut allowed = Allowed::NOBODY;
        if endpoints.len() > RIGHTS_LIST {
            return Err(IpcError::TooLarge);
        }
        for (slot, endpoint) in allowed.slots.iter_mut().zip(endpoints) {
            *slot = endpoint.slot;
            allowed.count += 1;
        }
        Ok(allowed)
    }

    /// Is it `endpoint`, or the endpoint whose memory side that is?
    pub fn contains(&self, endpoint: Endpoint) -> bool {
        let slot = if endpoint.is_memory() { endpoint.of_memory().slot } else { endpoint.slot };
        self.all != 0 || self.slots.iter().take(self.count as usize).any(|allowed| *allowed == slot)
    }
}

impl Rights {
    /// What an endpoint has when it is bound: a system process all calls, another (as in the prototype) `sendrec`
    /// and what follows from granting memory. To and from everybody of its DC.
    pub const fn of_level(level: u32) -> Rights {
        Rights {
            version: VERSION,
            level,
            calls: if level == level::USER { call::SENDREC } else { call::ALL },
            reserved: 0,
            to: Allowed::EVERYBODY,
            from: Allowed::EVERYBODY,
        }
    }

    /// Rights from a record; `None` if it has another size or version, or a value without a meaning.
    pub fn decode(bytes: &[u8]) -> Option<Rights> {
        let rights = Rights::read_from_bytes(bytes).ok()?;
        let fits = |allowed: &Allowed| allowed.count as usize <= RIGHTS_LIST;
        let is_known = rights.version == VERSION
            && rights.level <= level::SYSTEM
            && rights.calls & !call::ALL == 0
            && rights.reserved == 0;
        (is_known && fits(&rights.to) && fits(&rights.from)).then_some(rights)
    }

    /// May it make all of these calls?
    pub const fn may(&self, calls: u32) -> bool {
        self.calls & calls == calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::NodeId;

    #[test]
    fn rights_survive_the_wire_and_strange_ones_are_refused() {
        let peer = Endpoint::new(NodeId(2), 70, 5);
        let rights =
            Rights { to: Allowed::only(&[peer]).expect("one"), ..Rights::of_level(level::SERVER) };
        let bytes = rights.as_bytes();
        assert_eq!(Rights::decode(bytes), Some(rights));
        for cut in 0..bytes.len() {
            assert_eq!(Rights::decode(&bytes[..cut]), None, "cut at {cut}");
        }
        for strange in [
            Rights { version: 2, ..rights },
            Rights { level: 9, ..rights },
            Rights { calls: 1 << 30, ..rights },
            Rights { reserved: 1, ..rights },
            Rights { from: Allowed { count: 13, ..Allowed::NOBODY }, ..rights },
        ] {
            assert_eq!(Rights::decode(strange.as_bytes()), None, "{strange:?}");
        }
    }

    #[test]
    fn a_list_names_slots_with_their_memory_and_nobody_else() {
        let peer = Endpoint::new(NodeId(2), 70, 5);
        let allowed = Allowed::only(&[peer]).expect("one");
        assert!(allowed.contains(peer) && allowed.contains(peer.memory()));
        assert!(allowed.contains(Endpoint { generation: 6, ..peer }), "a slot, not an owner");
        assert!(!allowed.contains(Endpoint::VFS) && !Allowed::NOBODY.contains(peer));
        assert!(Allowed::EVERYBODY.contains(peer));
        assert_eq!(Allowed::only(&[peer; RIGHTS_LIST + 1]), Err(IpcError::TooLarge));
    }
}
