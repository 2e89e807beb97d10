//! What C hands over: strings, buffers and results, checked for null once.
#![expect(unsafe_code, reason = "C hands over pointers")]
//!
//! Parameters of these types have the layout of the pointers they stand for. That a pointer which is not
//! null is valid for the call is the C caller's promise, as for every function of libc.

use core::ffi::{CStr, c_char};
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::slice;
use m3ipc::Errno;
use m3ipc::errno::numbers::EFAULT;

/// Where a result goes.
pub type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// `const char *`, a string that ends with a NUL.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Text<'a>(*const c_char, PhantomData<&'a c_char>);

/// `const T *`, with a count beside it. `T` is a type of which any bytes are a value.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Array<'a, T>(*const T, PhantomData<&'a T>);

/// `const void *`, with a length beside it.
pub type Bytes<'a> = Array<'a, u8>;

/// `void *`, with a length beside it.
#[derive(Debug)]
#[repr(transparent)]
pub struct BytesMut<'a>(*mut u8, PhantomData<&'a mut u8>);

impl<'a> Text<'a> {
    /// The string at `address`.
    pub const fn at(address: *const c_char) -> Text<'a> {
        Text(address, PhantomData)
    }

    pub const fn address(self) -> *const c_char {
        self.0
    }

    /// The bytes before the NUL.
    ///
    /// # Errors
    /// EFAULT: null.
    pub fn bytes(self) -> Result<&'a [u8], Errno> {
        if self.0.is_null() {
            return Err(Errno::new(EFAULT));
        }
        // SAFETY: not null, so it is a string that ends with a NUL (the caller's promise).
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }
}

impl<'a, T: Copy> Array<'a, T> {
    pub const fn at(address: *const T) -> Array<'a, T> {
        Array(address, PhantomData)
    }

    pub const fn address(self) -> *const T {
        self.0
    }

    /// `count` of them; of none, null is as good as any.
    ///
    /// # Errors
    /// EFAULT: null, or more than an object can have.
    pub fn get(self, count: usize) -> Result<&'a [T], Errno> {
        if count == 0 {
            return Ok(&[]);
        }
        let size = count.checked_mul(size_of::<T>());
        if self.0.is_null() || size.is_none_or(|size| isize::try_from(size).is_err()) {
            return Err(Errno::new(EFAULT));
        }
        // SAFETY: `count` of them are readable here (the caller's promise).
        Ok(unsafe { slice::from_raw_parts(self.0, count) })
    }
}

impl<'a> BytesMut<'a> {
    pub const fn at(address: *mut u8) -> BytesMut<'a> {
        BytesMut(address, PhantomData)
    }

    pub const fn address(&self) -> *mut u8 {
        self.0
    }

    /// `len` bytes; of none, null is as good as any.
    ///
    /// # Errors
    /// EFAULT: null, or more than an object can have.
    pub fn get(self, len: usize) -> Result<&'a mut [u8], Errno> {
        if len == 0 {
            return Ok(&mut []);
        }
        if self.0.is_null() || isize::try_from(len).is_err() {
            return Err(Errno::new(EFAULT));
        }
        // SAFETY: `len` bytes are writable here (the caller's promise); what is in them does not matter
        // to a byte.
        Ok(unsafe { slice::from_raw_parts_mut(self.0, len) })
    }
}

/// Stores a result.
///
/// # Errors
/// EFAULT: null.
pub fn put<T>(out: Out<'_, T>, value: T) -> Result<(), Errno> {
    out.ok_or(Errno::new(EFAULT))?.write(value);
    Ok(())
}
