//! Fixed-width little-endian fields, and structs made of them.

use m3ipc::Endpoint;

/// A value with a fixed size on the wire.
pub trait Wire: Sized {
    const SIZE: usize;
    /// Writes `SIZE` bytes to the front of `out`, which is at least that long.
    fn put(&self, out: &mut [u8]);
    /// Reads `SIZE` bytes from the front of `from`; `None` if it is too short or not a value.
    fn get(from: &[u8]) -> Option<Self>;
}

macro_rules! integers {
    ($($int:ty)*) => {$(
        impl Wire for $int {
            const SIZE: usize = size_of::<$int>();
            fn put(&self, out: &mut [u8]) {
                out[..Self::SIZE].copy_from_slice(&self.to_le_bytes());
            }
            fn get(from: &[u8]) -> Option<Self> {
                Some(<$int>::from_le_bytes(*from.first_chunk()?))
            }
        }
    )*};
}
integers!(u8 u16 u32 u64 i32 i64);

impl Wire for () {
    const SIZE: usize = 0;
    fn put(&self, _: &mut [u8]) {}
    fn get(_: &[u8]) -> Option<()> {
        Some(())
    }
}

impl Wire for Endpoint {
    const SIZE: usize = 8;
    fn put(&self, out: &mut [u8]) {
        self.to_bits().put(out);
    }
    fn get(from: &[u8]) -> Option<Endpoint> {
        u64::get(from).map(Endpoint::from_bits)
    }
}

/// Declares plain structs whose fields are [`Wire`], in that order, without padding.
#[macro_export]
macro_rules! wire_structs {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $ty:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty),* }

        impl $crate::wire::Wire for $name {
            const SIZE: usize = 0 $(+ <$ty as $crate::wire::Wire>::SIZE)*;
            #[allow(unused_variables, unused_mut, unused_assignments, reason = "a struct may have no fields")]
            fn put(&self, out: &mut [u8]) {
                let mut at = 0;
                $(
                    $crate::wire::Wire::put(&self.$field, &mut out[at..]);
                    at += <$ty as $crate::wire::Wire>::SIZE;
                )*
            }
            #[allow(unused_variables, unused_mut, unused_assignments, reason = "a struct may have no fields")]
            fn get(from: &[u8]) -> Option<Self> {
                let mut at = 0;
                $(
                    let $field = <$ty as $crate::wire::Wire>::get(from.get(at..)?)?;
                    at += <$ty as $crate::wire::Wire>::SIZE;
                )*
                Some($name { $($field),* })
            }
        }

        impl $name {
            /// The encoded form, for a payload.
            pub fn bytes(&self) -> [u8; <$name as $crate::wire::Wire>::SIZE] {
                let mut out = [0; <$name as $crate::wire::Wire>::SIZE];
                $crate::wire::Wire::put(self, &mut out);
                out
            }
        }
    )*};
}
