//! What the allocator keeps: frames of up to 128 KiB come and go all the time.
#![expect(unsafe_code, reason = "mallopt(3) has no safe wrapper")]

use crate::limits::{HEAP_KEPT, HEAP_LARGE};

/// Keeps freed memory for the next frame. By default glibc gives each back to the kernel, which makes and clears its
/// pages again: that takes longer than to copy it.
pub(super) fn keep_freed() {
    let wishes = [(libc::M_MMAP_THRESHOLD, HEAP_LARGE), (libc::M_TRIM_THRESHOLD, HEAP_KEPT)];
    for (what, bytes) in wishes {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        // SAFETY: two numbers; it changes only how later calls of the allocator behave.
        let is_taken = unsafe { libc::mallopt(what, bytes) };
        if is_taken == 0 {
            tracing::warn!(what, "the allocator does not keep freed memory: large copies are slow");
        }
    }
}
