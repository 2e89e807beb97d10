//! The C API of the group services, declared and documented in `include/dvk_group.h`.
//!
//! A session is a pointer to [`Services`]. Records that have no fixed size are allocated here and freed here.
#![expect(unsafe_code, reason = "C's pointers")]
#![allow(
    clippy::missing_safety_doc,
    reason = "dvk_group.h says of each pointer what it must point to; null is an error"
)]

use crate::group::{Ended, Entry, Failure, GroupError, Item, Lease, Services};
use m3ipc::IpcError;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::mem::MaybeUninit;
use std::time::Duration;

thread_local! {
    /// What the last failed call of this thread said.
    static WHY: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A key and its value, or a change of it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct KvEntry {
    pub key: *const c_void,
    pub key_len: usize,
    pub value: *const c_void,
    pub value_len: usize,
    pub created: u64,
    pub modified: u64,
    pub version: u64,
    pub lease: u64,
    pub deleted: c_int,
    pub reserved: c_int,
}

/// Entries or changes.
#[derive(Debug)]
#[repr(C)]
pub struct KvList {
    pub entries: *const KvEntry,
    pub count: usize,
    pub revision: u64,
    pub more: c_int,
    pub reserved: c_int,
}

/// What a member gets.
#[derive(Debug)]
#[repr(C)]
pub struct GroupItem {
    pub number: u64,
    pub from: u64,
    pub data: *const c_void,
    pub data_len: usize,
    pub members: *const u64,
    pub member_count: usize,
    pub kind: c_int,
    pub fresh: c_int,
    pub gives: c_int,
    pub reserved: c_int,
}

/// A list with what it points to. C sees the first field.
#[repr(C)]
struct OwnedList {
    list: KvList,
    _entries: Vec<KvEntry>,
    _bytes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An item with what it points to. C sees the first field.
#[repr(C)]
struct OwnedItem {
    item: GroupItem,
    _bytes: Vec<u8>,
    _members: Vec<u64>,
}

const MESSAGE: c_int = 1;
const VIEW: c_int = 2;
const STATE: c_int = 3;

/// In place of a lease: the key ends with the session.
const OWN_LEASE: u64 = u64::MAX;

/// Why a call failed.
#[derive(Debug)]
enum Fault {
    /// A pointer is NULL.
    Null,
    /// A name is not UTF-8.
    NotUtf8,
    /// It is longer than there is room.
    TooLong,
    /// There is no such key, or no leader.
    NoEntry,
    /// Nothing has changed before time was over.
    Unchanged,
    Group(GroupError),
}

impl From<GroupError> for Fault {
    fn from(error: GroupError) -> Fault {
        Fault::Group(error)
    }
}

impl Fault {
    /// What a C function returns for it.
    fn code(&self) -> c_int {
        -match self {
            Fault::NoEntry => 2,
            Fault::Null => 14,
            Fault::NotUtf8 => 22,
            Fault::Unchanged => 61,
            Fault::TooLong => 73,
            Fault::Group(GroupError::Failed(failure, _)) => match failure {
                Failure::Taken => 16,
                Failure::Refused => 22,
                Failure::Limit => 28,
                Failure::Timeout => 61,
                Failure::Unavailable => 400,
                Failure::Fenced => 401,
                Failure::Revision(_) => 402,
                Failure::Forgotten(_) => 403,
                Failure::Broken => 404,
                Failure::NotHeld => 405,
            },
            Fault::Group(GroupError::Door(IpcError::Denied)) => 104,
            Fault::Group(GroupError::Door(IpcError::Exhausted)) => 28,
            Fault::Group(GroupError::Door(IpcError::NotBound)) => 310,
            Fault::Group(GroupError::Door(_) | GroupError::Ended(Ended::Broken)) => 107,
            Fault::Group(GroupError::Ended(Ended::Lost(_) | Ended::Gone)) => 406,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fault::Null => "a pointer is NULL",
            Fault::NotUtf8 => "a name is not UTF-8",
            Fault::TooLong => "it is longer than there is room",
            Fault::NoEntry => "there is none",
            Fault::Unchanged => "nothing has changed",
            Fault::Group(error) => return error.fmt(f),
        })
    }
}

type Result<T> = std::result::Result<T, Fault>;

/// A result as C has it: 0 or more.
fn answer(act: impl FnOnce() -> Result<c_int>) -> c_int {
    act().unwrap_or_else(|fault| {
        // Destructors of a thread that ends may call, when its sentence is gone.
        WHY.try_with(|last| *last.borrow_mut() = fault.to_string()).ok();
        fault.code()
    })
}

/// # Safety
/// `services` is null or comes from `dvk_group_open`.
unsafe fn session<'a>(services: *const Services) -> Result<&'a Services> {
    // SAFETY: the caller's contract: it points to a `Services` that has not been closed.
    unsafe { services.as_ref() }.ok_or(Fault::Null)
}

/// A session and the name that it is asked for.
///
/// # Safety
/// As [`session`]; `name` is null or points to characters that end with NUL, as long as the result is used.
unsafe fn named<'a>(
    services: *const Services,
    name: *const c_char,
) -> Result<(&'a Services, &'a str)> {
    // SAFETY: the caller's contract.
    let services = unsafe { session(services) }?;
    if name.is_null() {
        return Err(Fault::Null);
    }
    // SAFETY: not null, and the caller's contract.
    let name = unsafe { CStr::from_ptr(name) };
    Ok((services, name.to_str().map_err(|_| Fault::NotUtf8)?))
}

/// A session and the key that it is asked for.
///
/// # Safety
/// As [`session`] and [`bytes`].
unsafe fn keyed<'a>(
    services: *const Services,
    key: *const c_void,
    len: usize,
) -> Result<(&'a Services, &'a [u8])> {
    // SAFETY: the caller's contract.
    let services = unsafe { session(services) }?;
    // SAFETY: the caller's contract.
    Ok((services, unsafe { bytes(key, len) }?))
}

/// # Safety
/// `data` is null or `len` bytes can be read there as long as the result is used.
unsafe fn bytes<'a>(data: *const c_void, len: usize) -> Result<&'a [u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() || isize::try_from(len).is_err() {
        return Err(Fault::Null);
    }
    // SAFETY: not null, no longer than an object can be, and the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) })
}

/// # Safety
/// As [`bytes`].
unsafe fn optional<'a>(data: *const c_void, len: usize) -> Result<Option<&'a [u8]>> {
    if data.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's contract.
    unsafe { bytes(data, len) }.map(Some)
}

/// Where a result that must be taken goes.
///
/// # Safety
/// `place` is null or valid for a write as long as the result is used.
unsafe fn place<'a, T>(place: *mut T) -> Result<&'a mut MaybeUninit<T>> {
    // SAFETY: the caller's contract; nothing is read there.
    unsafe { place.cast::<MaybeUninit<T>>().as_mut() }.ok_or(Fault::Null)
}

/// Writes `value` where `place` points, if it does.
///
/// # Safety
/// `place` is null or valid for a write.
unsafe fn put<T>(place: *mut T, value: T) {
    if !place.is_null() {
        // SAFETY: not null, and the caller's contract.
        unsafe { place.write(value) };
    }
}

/// Copies `value` to `room` bytes at `place`; returns its length.
///
/// # Safety
/// `place` is null or `room` bytes can be written there.
unsafe fn fill(place: *mut c_void, room: usize, value: &[u8]) -> Result<c_int> {
    if value.len() > room {
        return Err(Fault::TooLong);
    }
    if !value.is_empty() {
        if place.is_null() {
            return Err(Fault::Null);
        }
        // SAFETY: there is room for it, by the caller's contract, and `value` is memory of this library.
        unsafe { place.cast::<u8>().copy_from_nonoverlapping(value.as_ptr(), value.len()) };
    }
    c_int::try_from(value.len()).map_err(|_| Fault::TooLong)
}

/// Milliseconds; negative is for ever.
fn wait(timeout: c_long) -> Option<Duration> {
    u64::try_from(timeout).ok().map(Duration::from_millis)
}

fn lease(number: u64) -> Lease {
    match number {
        0 => Lease::None,
        OWN_LEASE => Lease::Connection,
        held => Lease::Held(held),
    }
}

/// An entry without its bytes.
fn entry(found: &Entry) -> KvEntry {
    KvEntry {
        key: std::ptr::null(),
        key_len: found.key.0.len(),
        value: std::ptr::null(),
        value_len: found.value.0.len(),
        created: found.created,
        modified: found.modified,
        version: found.version,
        lease: found.lease.unwrap_or(0),
        deleted: 0,
        reserved: 0,
    }
}

fn list(found: Vec<(KvEntry, Vec<u8>, Vec<u8>)>, revision: u64, more: bool) -> *mut KvList {
    let mut entries = Vec::with_capacity(found.len());
    let mut all = Vec::with_capacity(found.len());
    for (entry, key, value) in found {
        // Bytes stay where they are when their vectors are moved.
        let (key_at, value_at) = (key.as_ptr().cast(), value.as_ptr().cast());
        entries.push(KvEntry { key: key_at, value: value_at, ..entry });
        all.push((key, value));
    }
    let (first, count) = (entries.as_ptr(), entries.len());
    let list = KvList { entries: first, count, revision, more: more.into(), reserved: 0 };
    Box::into_raw(Box::new(OwnedList { list, _entries: entries, _bytes: all })).cast()
}

fn item(number: u64, item: Item) -> *mut GroupItem {
    let (kind, from, bytes, members, fresh, gives) = match item {
        Item::Message { from, bytes } => (MESSAGE, from, bytes.0, Vec::new(), false, false),
        Item::View { members, fresh, gives } => (VIEW, 0, Vec::new(), members, fresh, gives),
        Item::State { bytes } => (STATE, 0, bytes.0, Vec::new(), false, false),
    };
    let item = GroupItem {
        number,
        from,
        data: bytes.as_ptr().cast(),
        data_len: bytes.len(),
        members: members.as_ptr(),
        member_count: members.len(),
        kind,
        fresh: fresh.into(),
        gives: gives.into(),
        reserved: 0,
    };
    Box::into_raw(Box::new(OwnedItem { item, _bytes: bytes, _members: members })).cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_group_open(session: *mut *mut Services) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h: `session` is null or valid for a write.
        let session = unsafe { place(session) }?;
        session.write(Box::into_raw(Box::new(Services::open(None)?)));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_group_close(session: *mut Services) {
    if !session.is_null() {
        // SAFETY: by dvk_group.h it comes from `dvk_group_open`, and nobody uses it any more.
        drop(unsafe { Box::from_raw(session) });
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_group_error(text: *mut c_char, room: usize) -> c_int {
    let why = WHY.try_with(|why| why.borrow().clone()).unwrap_or_default();
    let mut end = why.len().min(room.saturating_sub(1));
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    let shown = [&why.as_bytes()[..end], &[0]].concat();
    // SAFETY: dvk_group.h: `room` bytes can be written at `text`. If there is no room for anything, nothing is.
    unsafe { fill(text.cast(), room, &shown) }.ok();
    c_int::try_from(why.len()).unwrap_or(c_int::MAX)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_kv_get(
    session: *const Services,
    key: *const c_void,
    key_len: usize,
    value: *mut c_void,
    room: usize,
    info: *mut KvEntry,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of these what `keyed()` asks for.
        let (services, key) = unsafe { keyed(session, key, key_len) }?;
        let found = services.get(key)?.ok_or(Fault::NoEntry)?;
        // SAFETY: `info` is null or valid for a write.
        unsafe { put(info, entry(&found)) };
        // SAFETY: `room` bytes can be written at `value`.
        unsafe { fill(value, room, &found.value.0) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_kv_put(
    session: *const Services,
    key: *const c_void,
    key_len: usize,
    value: *const c_void,
    value_len: usize,
    lease: u64,
    revision: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of these what `keyed()` asks for.
        let (services, key) = unsafe { keyed(session, key, key_len) }?;
        // SAFETY: and of `value` and `value_len` what `bytes()` asks for.
        let value = unsafe { bytes(value, value_len) }?;
        let new = services.put(key, value, self::lease(lease))?;
        // SAFETY: `revision` is null or valid for a write.
        unsafe { put(revision, new) };
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_kv_delete(
    session: *const Services,
    key: *const c_void,
    key_len: usize,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of these what `keyed()` asks for.
        let (services, key) = unsafe { keyed(session, key, key_len) }?;
        Ok(services.delete(key)?.into())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_kv_cas(
    session: *const Services,
    key: *const c_void,
    key_len: usize,
    expected: u64,
    value: *const c_void,
    value_len: usize,
    lease: u64,
    revision: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of these what `keyed()` asks for.
        let (services, key) = unsafe { keyed(session, key, key_len) }?;
        // SAFETY: and of `value` and `value_len` what `optional()` asks for.
        let value = unsafe { optional(value, value_len) }?;
        let swapped = services.compare_and_swap(key, expected, value, self::lease(lease));
        if let Ok(now) | Err(GroupError::Failed(Failure::Revision(now), _)) = &swapped {
            // SAFETY: `revision` is null or valid for a write.
            unsafe { put(revision, *now) };
        }
        swapped?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_kv_range(
    session: *const Services,
    start: *const c_void,
    start_len: usize,
    end: *const c_void,
    end_len: usize,
    limit: usize,
    list: *mut *mut KvList,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of these what `keyed()` asks for.
        let (services, start) = unsafe { keyed(session, start, start_len) }?;
        // SAFETY: and of `end` and `end_len` what `optional()` asks for.
        let end = unsafe { optional(end, end_len) }?;
        // SAFETY: `list` is null or valid for a write.
        let list = unsafe { place(list) }?;
        let range = services.range(start, end, limit)?;
        let found = range.entries.into_iter();
        let found = found.map(|one| (entry(&one), one.key.0, one.value.0)).collect();
        list.write(self::list(found, range.revision, range.more));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_kv_watch(
    session: *const Services,
    start: *const c_void,
    start_len: usize,
    end: *const c_void,
    end_len: usize,
    from: u64,
    timeout: c_long,
    list: *mut *mut KvList,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of these what `keyed()` asks for.
        let (services, start) = unsafe { keyed(session, start, start_len) }?;
        // SAFETY: and of `end` and `end_len` what `optional()` asks for.
        let end = unsafe { optional(end, end_len) }?;
        // SAFETY: `list` is null or valid for a write.
        let list = unsafe { place(list) }?;
        let from = Some(from).filter(|from| *from != 0);
        let (changes, next) = services.changes_from(start, end, from, wait(timeout))?;
        if changes.is_empty() && from.is_some() {
            return Err(Fault::Unchanged);
        }
        let found = changes.into_iter().map(|change| {
            let deleted = change.value.is_none().into();
            let (key, value) = (change.key, change.value.unwrap_or_default());
            let modified = change.revision;
            let one = Entry { key, value, created: 0, modified, version: 0, lease: None };
            (KvEntry { deleted, ..entry(&one) }, one.key.0, one.value.0)
        });
        list.write(self::list(found.collect(), next, false));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_kv_free(list: *mut KvList) {
    if !list.is_null() {
        // SAFETY: by dvk_group.h it comes from `dvk_kv_range` or `_watch`: the first field of an `OwnedList`.
        drop(unsafe { Box::from_raw(list.cast::<OwnedList>()) });
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_lease_grant(
    session: *const Services,
    ttl_ms: u64,
    lease: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of `session` what `session()` asks for.
        let services = unsafe { self::session(session) }?;
        // SAFETY: `lease` is null or valid for a write.
        let lease = unsafe { place(lease) }?;
        lease.write(services.grant(Duration::from_millis(ttl_ms))?);
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_lease_renew(session: *const Services, lease: u64) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of `session` what `session()` asks for.
        let services = unsafe { self::session(session) }?;
        services.renew(lease)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_lease_revoke(session: *const Services, lease: u64) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of `session` what `session()` asks for.
        let services = unsafe { self::session(session) }?;
        services.revoke(lease)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_lock(
    session: *const Services,
    name: *const c_char,
    timeout: c_long,
    token: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        let taken = services.lock(name, wait(timeout))?;
        // SAFETY: `token` is null or valid for a write.
        unsafe { put(token, taken) };
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_unlock(session: *const Services, name: *const c_char) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        services.unlock(name)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_campaign(
    session: *const Services,
    name: *const c_char,
    value: *const c_void,
    value_len: usize,
    timeout: c_long,
    epoch: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        // SAFETY: and of `value` and `value_len` what `bytes()` asks for.
        let value = unsafe { bytes(value, value_len) }?;
        let elected = services.campaign(name, value, wait(timeout))?;
        // SAFETY: `epoch` is null or valid for a write.
        unsafe { put(epoch, elected) };
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_resign(session: *const Services, name: *const c_char) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        services.resign(name)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_leader(
    session: *const Services,
    name: *const c_char,
    value: *mut c_void,
    room: usize,
    epoch: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        let leader = services.leader(name)?.ok_or(Fault::NoEntry)?;
        // SAFETY: `epoch` is null or valid for a write.
        unsafe { put(epoch, leader.epoch) };
        // SAFETY: `room` bytes can be written at `value`.
        unsafe { fill(value, room, &leader.value) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_barrier(
    session: *const Services,
    name: *const c_char,
    parties: u32,
    timeout: c_long,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        services.barrier(name, parties, wait(timeout))?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_group_join(
    session: *const Services,
    name: *const c_char,
    member: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        let (number, _) = services.join_as(name)?;
        // SAFETY: `member` is null or valid for a write.
        unsafe { put(member, number) };
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_group_cast(
    session: *const Services,
    name: *const c_char,
    data: *const c_void,
    data_len: usize,
    number: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        // SAFETY: and of `data` and `data_len` what `bytes()` asks for.
        let data = unsafe { bytes(data, data_len) }?;
        let sent = services.cast(name, data)?;
        // SAFETY: `number` is null or valid for a write.
        unsafe { put(number, sent) };
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_group_receive(
    session: *const Services,
    name: *const c_char,
    after: u64,
    timeout: c_long,
    item: *mut *mut GroupItem,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        // SAFETY: `item` is null or valid for a write.
        let item = unsafe { place(item) }?;
        let (number, got) = services.receive(name, after, wait(timeout))?;
        item.write(self::item(number, got));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_group_free(item: *mut GroupItem) {
    if !item.is_null() {
        // SAFETY: by dvk_group.h it comes from `dvk_group_receive`: the first field of an `OwnedItem`.
        drop(unsafe { Box::from_raw(item.cast::<OwnedItem>()) });
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_group_give(
    session: *const Services,
    name: *const c_char,
    view: u64,
    state: *const c_void,
    state_len: usize,
) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        // SAFETY: and of `state` and `state_len` what `bytes()` asks for.
        let state = unsafe { bytes(state, state_len) }?;
        services.give(name, view, state)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_group_leave(session: *const Services, name: *const c_char) -> c_int {
    answer(|| {
        // SAFETY: dvk_group.h says of both what `named()` asks for.
        let (services, name) = unsafe { named(session, name) }?;
        services.leave(name)?;
        Ok(0)
    })
}
