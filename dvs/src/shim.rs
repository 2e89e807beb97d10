//! The shim that `dvs` carries: the library that programs of a container are started with.

/// `libdvs_preload.so`, as built with this `dvs`.
pub(crate) static SHIM: &[u8] = include_bytes!(env!("DVS_SHIM"));
