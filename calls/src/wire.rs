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

/// Writes fields one after the other.
#[derive(Debug)]
pub struct Writer<'a> {
    rest: &'a mut [u8],
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut [u8]) -> Writer<'a> {
        Writer { rest: out }
    }

    /// Writes `field`; the room is there, as the sizes of rows and structs are checked at compile time.
    pub fn put<T: Wire>(self, field: &T) -> Writer<'a> {
        field.put(self.rest);
        Writer { rest: &mut self.rest[T::SIZE..] }
    }
}

/// Reads fields one after the other.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Reader<'a> {
    pub fn new(from: &'a [u8]) -> Reader<'a> {
        Reader { rest: Some(from) }
    }

    /// The next field; `None` if it is cut off or not a value.
    pub fn get<T: Wire>(&mut self) -> Option<T> {
        let rest = self.rest.take()?;
        let field = T::get(rest)?;
        self.rest = rest.get(T::SIZE..);
        Some(field)
    }

    /// Were all fields there?
    pub fn done(&mut self) -> bool {
        self.rest.is_some()
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
            fn put(&self, out: &mut [u8]) {
                $crate::wire::Writer::new(out)$(.put(&self.$field))*;
            }
            fn get(from: &[u8]) -> Option<Self> {
                let mut reader = $crate::wire::Reader::new(from);
                let value = $name { $($field: reader.get()?),* };
                reader.done().then_some(value)
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
