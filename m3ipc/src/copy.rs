//! Copies between this process's memory and memory that it shares.
#![expect(unsafe_code, reason = "a peer may change what is copied, so there is no reference to it")]

/// Bytes that are copied at once. For a little more libc takes `rep movsb`, which on some processors (Zen 3) is ten
/// times slower than anything else if the target begins a few bytes behind a page, as all large memory of malloc(3) does.
const PIECE: usize = 2048;

/// Copies `len` bytes. If somebody writes to `from` meanwhile, what arrives is arbitrary.
///
/// # Safety
/// Both ranges are mapped, `to` writable, and they do not overlap.
pub unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // Not known to the compiler, or it makes one large copy of it again.
    let piece = core::hint::black_box(PIECE);
    let mut at = 0;
    while at < len {
        let next = piece.min(len - at);
        // SAFETY: `at` is less than `len`, so inside the caller's range.
        let source = unsafe { from.add(at) };
        // SAFETY: as above.
        let target = unsafe { to.add(at) };
        // SAFETY: `next` bytes from here are inside the caller's ranges, which do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(source, target, next) };
        at += next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn every_byte_arrives_and_no_other_is_touched() {
        let source: Vec<u8> = (0..=250).cycle().take(3 * PIECE + 9).collect();
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 8] {
            let mut target = vec![0xff; len + 2];
            // SAFETY: both have so many bytes behind the first, and are two vectors.
            unsafe {
                copy(source.as_ptr().wrapping_add(1), target.as_mut_ptr().wrapping_add(1), len)
            };
            assert_eq!(target[1..=len], source[1..=len]);
            assert_eq!((target[0], target[len + 1]), (0xff, 0xff));
        }
    }
}
