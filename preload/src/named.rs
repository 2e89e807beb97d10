//! Which `sem_t` of this process stands for which semaphore of the DC.
#![expect(unsafe_code, reason = "the region is mapped memory that is shared by address")]
//!
//! sem_open(3) hands out addresses in a region of its own. It is ordinary memory, so a child of fork
//! has the same semaphores; exec takes them away, as POSIX has it.

use crate::kernel::{self, call};
use crate::unnamed::SemT;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use m3ipc::Errno;
use m3ipc::errno::numbers::EINVAL;

/// Semaphores that a process may have open. libc's limit is memory; this is one MiB of address space,
/// of which only what is used becomes memory.
const SLOTS: usize = 32_768;

/// One semaphore; as large as libc's `sem_t`, so that addresses are as far apart.
#[repr(C)]
struct Slot {
    /// [`MAGIC`] while the slot is in use.
    magic: AtomicU32,
    /// How often it is open.
    references: AtomicU32,
    id: AtomicU64,
    unused: [u64; 2],
}

const _: () = assert!(size_of::<Slot>() == size_of::<SemT>());

const MAGIC: u32 = u32::from_le_bytes(*b"DVSs");

static REGION: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
/// No slot from here on has been used yet.
static TOP: AtomicU32 = AtomicU32::new(0);
static LOCK: AtomicU32 = AtomicU32::new(0);

/// Is it an address of the region?
pub(crate) fn contains(semaphore: *const SemT) -> bool {
    slot(semaphore).is_some()
}

/// The semaphore of the DC at this address, if it is one.
///
/// # Errors
/// EINVAL: it was one, but is closed.
pub(crate) fn id(semaphore: *const SemT) -> Result<Option<u64>, Errno> {
    let Some(slot) = slot(semaphore) else { return Ok(None) };
    if slot.magic.load(Ordering::Acquire) != MAGIC {
        return Err(Errno::new(EINVAL));
    }
    Ok(Some(slot.id.load(Ordering::Relaxed)))
}

/// The address of semaphore `id`, open once more. One semaphore has one address (sem_open(3)).
pub(crate) fn add(id: u64) -> Option<*mut SemT> {
    let slots = slots()?;
    let _locked = Locked::new();
    let top = TOP.load(Ordering::Relaxed) as usize;
    let used = |slot: &&Slot| slot.magic.load(Ordering::Relaxed) == MAGIC;
    let known =
        slots.iter().take(top).filter(used).find(|slot| slot.id.load(Ordering::Relaxed) == id);
    if let Some(slot) = known {
        slot.references.fetch_add(1, Ordering::Relaxed);
        return Some(address(slot));
    }
    let (index, slot) = slots.iter().enumerate().find(|(_, slot)| !used(slot))?;
    slot.id.store(id, Ordering::Relaxed);
    slot.references.store(1, Ordering::Relaxed);
    slot.magic.store(MAGIC, Ordering::Release);
    if index >= top {
        TOP.store(u32::try_from(index + 1).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
    Some(address(slot))
}

/// The semaphore at this address is open once less; its number.
pub(crate) fn remove(semaphore: *const SemT) -> Option<u64> {
    let slot = slot(semaphore)?;
    let _locked = Locked::new();
    if slot.magic.load(Ordering::Relaxed) != MAGIC {
        return None;
    }
    if slot.references.fetch_sub(1, Ordering::Relaxed) == 1 {
        slot.magic.store(0, Ordering::Release);
    }
    Some(slot.id.load(Ordering::Relaxed))
}

fn slot(semaphore: *const SemT) -> Option<&'static Slot> {
    let region = REGION.load(Ordering::Acquire);
    let offset = semaphore.addr().wrapping_sub(region.addr());
    if region.is_null()
        || offset >= SLOTS * size_of::<Slot>()
        || !offset.is_multiple_of(size_of::<Slot>())
    {
        return None;
    }
    // SAFETY: inside the region, which is mapped for ever, and on a slot; zeros are a slot too.
    Some(unsafe { &*region.wrapping_byte_add(offset) })
}

fn address(slot: &Slot) -> *mut SemT {
    ptr::from_ref(slot).cast_mut().cast()
}

/// The region, mapped when it is first needed.
fn slots() -> Option<&'static [Slot]> {
    const PROT_READ_WRITE: i32 = 3;
    const MAP_PRIVATE_ANONYMOUS_NORESERVE: i32 = 0x4022;
    let mut region = REGION.load(Ordering::Acquire);
    if region.is_null() {
        let size = SLOTS * size_of::<Slot>();
        let nowhere = ptr::null::<Slot>();
        let mapped =
            call!(mmap, nowhere, size, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_NORESERVE, -1, 0);
        let fresh = ptr::with_exposed_provenance_mut(mapped.ok()?);
        region = match REGION.compare_exchange(
            ptr::null_mut(),
            fresh,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => fresh,
            Err(other) => {
                call!(munmap, fresh, size).ok();
                other
            }
        };
    }
    // SAFETY: SLOTS slots of zeros or more, mapped for ever, changed only as atomics.
    Some(unsafe { core::slice::from_raw_parts(region, SLOTS) })
}

/// Held for some loads and stores, never over a wait. A child of fork may find it held by a thread that
/// it does not have: then the number in it is not its own, and it takes the lock. What the other was
/// changing is whole at every moment.
pub(crate) struct Locked;

impl Locked {
    pub(crate) fn new() -> Locked {
        let me = kernel::process_id();
        let mut holder = 0;
        loop {
            match LOCK.compare_exchange(holder, me, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Locked,
                Err(now) if now == me => {
                    kernel::sched_yield();
                    holder = 0;
                }
                Err(now) => holder = now,
            }
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        LOCK.store(0, Ordering::Release);
    }
}
