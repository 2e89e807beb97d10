//! The C API, declared and documented in `include/dvk.h`.
//!
//! `dvk_bind` binds the process, `dvk_tbind` the thread; a call is made as the thread's endpoint if it has one, else as
//! the process's. Functions return 0 or more, or a negative error number of the prototype (`EDVS…`).
#![expect(unsafe_code, reason = "C's pointers")]
#![allow(
    clippy::missing_safety_doc,
    reason = "dvk.h says of each pointer what it must point to; null is an error"
)]

use crate::bound::Bound;
use crate::memory::{Access, Grant};
use m3ipc::connection::Connection;
use m3ipc::info::{DcInfo, DvsInfo, EndpointInfo, NodeInfo};
use m3ipc::load::{DcLoad, NodeLoad};
use m3ipc::port::Kind;
use m3ipc::{Endpoint, IpcError, Message, NodeId, Rights};
use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_long, c_void};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

static PROCESS: RwLock<Option<Arc<Bound>>> = RwLock::new(None);

/// Endpoints that belong to no thread: each call is made as one of them by whichever thread has switched to it.
static USER: RwLock<Vec<Arc<Bound>>> = RwLock::new(Vec::new());

thread_local! {
    static THREAD: RefCell<Option<Arc<Bound>>> = const { RefCell::new(None) };
    /// Of [`USER`], the one to which this thread has switched.
    static SWITCHED: RefCell<Option<Arc<Bound>>> = const { RefCell::new(None) };
}

/// What a C function returns for an error: the prototype's number, negative.
fn code(error: IpcError) -> c_int {
    -match error {
        IpcError::Interrupted => 4,
        IpcError::WouldBlock => 11,
        IpcError::Fault => 14,
        IpcError::Exhausted => 28,
        IpcError::TimedOut => 61,
        IpcError::TooLarge => 73,
        IpcError::Deadlock => 101,
        IpcError::Denied => 104,
        IpcError::Protocol => 107,
        IpcError::SourceDied => 108,
        IpcError::DestinationDied => 109,
        IpcError::Stale => 306,
        IpcError::NotBound => 310,
        IpcError::NodeDown => 316,
        IpcError::NotWaiting => 324,
        IpcError::Overrun => 330,
        IpcError::Moved => 332,
        IpcError::InUse => 337,
        IpcError::WokenUp => 348,
    }
}

/// An endpoint as C has it, which is also how it stands in a message: the slot in the lower half.
fn to_c(endpoint: Endpoint) -> u64 {
    u64::from(endpoint.generation) << 32 | u64::from(endpoint.slot)
}

fn from_c(ep: u64) -> Endpoint {
    Endpoint::from_bits(ep.rotate_left(32))
}

/// There is no such DC here.
const BAD_DC: c_int = -302;
/// A value without a meaning.
const INVALID: c_int = -22;
/// Not this node, or no node.
const BAD_NODE: c_int = -301;
/// The node's servers are the DC's, or it is this one.
const NODE_IN_USE: c_int = -315;
/// The DVS is there already.
const DVS_RUNS: c_int = -318;
/// The DC is there already.
const DC_RUNS: c_int = -323;
/// The DC spans the node already.
const DC_HAS_NODE: c_int = -326;

fn done(result: Result<(), IpcError>) -> c_int {
    result.map_or_else(code, |()| 0)
}

/// The endpoint as which this thread calls.
fn current() -> Result<Arc<Bound>, IpcError> {
    let switched = SWITCHED.with(|bound| bound.borrow().clone());
    switched
        .or_else(|| THREAD.with(|bound| bound.borrow().clone()))
        .or_else(|| PROCESS.read().unwrap_or_else(PoisonError::into_inner).clone())
        .ok_or(IpcError::NotBound)
}

fn with(act: impl FnOnce(&Bound) -> Result<(), IpcError>) -> c_int {
    done(current().and_then(|bound| act(&bound)))
}

/// Milliseconds; negative is for ever.
fn wait(timeout: c_long) -> Option<Duration> {
    u64::try_from(timeout).ok().map(Duration::from_millis)
}

fn is_dc(bound: &Bound, dcid: c_int) -> bool {
    dcid == 0 || u32::try_from(dcid) == Ok(bound.dc().0)
}

/// Writes `value` where `place` points.
///
/// # Safety
/// `place` is null or valid for a write.
unsafe fn put<T>(place: *mut T, value: T) -> Result<(), IpcError> {
    if place.is_null() {
        return Err(IpcError::Fault);
    }
    // SAFETY: not null, and the caller's contract.
    unsafe { place.write(value) };
    Ok(())
}

/// Reads what `place` points to.
///
/// # Safety
/// `place` is null or valid for a read.
unsafe fn get<T: Copy>(place: *const T) -> Result<T, IpcError> {
    if place.is_null() {
        return Err(IpcError::Fault);
    }
    // SAFETY: not null, and the caller's contract.
    Ok(unsafe { place.read() })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_open() -> c_int {
    let socket = crate::bound::default_socket();
    done(Connection::connect(socket.as_os_str().as_bytes()).map(|_| ()))
}

/// Binds, and keeps the endpoint by `keep`, unless that has one.
fn bind(
    dcid: c_int,
    number: c_int,
    keep: impl FnOnce(Arc<Bound>) -> Result<(), IpcError>,
) -> Result<Endpoint, c_int> {
    let number = u32::try_from(number).map_err(|_| INVALID)?;
    keep_bound(Bound::bind(None, number), dcid, keep)
}

fn keep_bound(
    bound: Result<Bound, IpcError>,
    dcid: c_int,
    keep: impl FnOnce(Arc<Bound>) -> Result<(), IpcError>,
) -> Result<Endpoint, c_int> {
    let bound = bound.map_err(code)?;
    if !is_dc(&bound, dcid) {
        return Err(BAD_DC);
    }
    let endpoint = bound.endpoint();
    let bound = Arc::new(bound);
    keep(Arc::clone(&bound)).map_err(|error| {
        // It is gone when this returns: a backup that nobody has must not be promoted.
        bound.unbind_other(Endpoint::NONE).ok();
        code(error)
    })?;
    Ok(endpoint)
}

/// # Safety
/// `ep` is null or valid for a write.
unsafe fn bound_as(bound: Result<Endpoint, c_int>, ep: *mut u64) -> c_int {
    match bound {
        Ok(endpoint) if !ep.is_null() => {
            // SAFETY: not null, and the caller's contract.
            unsafe { ep.write(to_c(endpoint)) };
            0
        }
        Ok(_) => 0,
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_bind(dcid: c_int, number: c_int, ep: *mut u64) -> c_int {
    let bound = bind(dcid, number, keep_for_process);
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(bound, ep) }
}

fn keep_for_process(bound: Arc<Bound>) -> Result<(), IpcError> {
    let mut process = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    if process.is_some() {
        return Err(IpcError::InUse);
    }
    *process = Some(bound);
    Ok(())
}

fn keep_for_thread(bound: Arc<Bound>) -> Result<(), IpcError> {
    THREAD.with(|thread| {
        let mut thread = thread.borrow_mut();
        if thread.is_some() {
            return Err(IpcError::InUse);
        }
        *thread = Some(bound);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_tbind(dcid: c_int, number: c_int, ep: *mut u64) -> c_int {
    let bound = bind(dcid, number, keep_for_thread);
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(bound, ep) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_umbind(dcid: c_int, number: c_int, ep: *mut u64) -> c_int {
    let bound = bind(dcid, number, |bound| {
        USER.write().unwrap_or_else(PoisonError::into_inner).push(bound);
        Ok(())
    });
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(bound, ep) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_umswitch(ep: u64) -> c_int {
    let wanted = from_c(ep);
    let user = USER.read().unwrap_or_else(PoisonError::into_inner);
    let is_it = |bound: &&Arc<Bound>| wanted != Endpoint::NONE && wanted.names(bound.endpoint());
    let found = user.iter().find(is_it).cloned();
    if found.is_none() && wanted != Endpoint::NONE {
        return code(IpcError::Stale);
    }
    SWITCHED.with(|switched| *switched.borrow_mut() = found);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_replbind(dcid: c_int, number: c_int, ep: *mut u64) -> c_int {
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(bind_replica(dcid, number, keep_for_process), ep) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_treplbind(dcid: c_int, number: c_int, ep: *mut u64) -> c_int {
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(bind_replica(dcid, number, keep_for_thread), ep) }
}

fn bind_replica(
    dcid: c_int,
    number: c_int,
    keep: impl FnOnce(Arc<Bound>) -> Result<(), IpcError>,
) -> Result<Endpoint, c_int> {
    let number = u32::try_from(number).map_err(|_| INVALID)?;
    keep_bound(Bound::bind_replica(None, number), dcid, keep)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_bkupbind(
    dcid: c_int,
    of: u64,
    takes_over: c_int,
    ep: *mut u64,
) -> c_int {
    let backup = Bound::bind_backup(None, from_c(of), takes_over != 0);
    let bound = keep_bound(backup, dcid, keep_for_process);
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(bound, ep) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_tbkupbind(
    dcid: c_int,
    of: u64,
    takes_over: c_int,
    ep: *mut u64,
) -> c_int {
    let backup = Bound::bind_backup(None, from_c(of), takes_over != 0);
    let bound = keep_bound(backup, dcid, keep_for_thread);
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(bound, ep) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_wait4promote_T(ep: *mut u64, timeout: c_long) -> c_int {
    let promoted = current().and_then(|bound| bound.wait_promoted(wait(timeout)));
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(promoted.map_err(code), ep) }
}

/// Makes a call of the caller's endpoint, if `dcid` is its DC.
fn within(dcid: c_int, act: impl FnOnce(&Bound) -> Result<(), IpcError>) -> c_int {
    match current() {
        Ok(bound) if !is_dc(&bound, dcid) => BAD_DC,
        Ok(bound) => done(act(&bound)),
        Err(error) => code(error),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_migr_start(dcid: c_int, ep: u64) -> c_int {
    within(dcid, |bound| bound.migrate_start(from_c(ep)).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_migr_commit(
    dcid: c_int,
    ep: u64,
    nodeid: c_int,
    backup: u64,
) -> c_int {
    let Ok(node) = u16::try_from(nodeid) else { return INVALID };
    let backup = Some(from_c(backup)).filter(|backup| *backup != Endpoint::NONE);
    within(dcid, |bound| bound.migrate_commit(from_c(ep), NodeId(node), backup).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_migr_rollback(dcid: c_int, ep: u64) -> c_int {
    within(dcid, |bound| bound.migrate_rollback(from_c(ep)).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_inherited(list: *mut Message, room: c_int) -> c_int {
    let found = current().and_then(|bound| bound.inherited());
    let (Ok(room), false) = (usize::try_from(room), list.is_null() && room != 0) else {
        return INVALID;
    };
    match found {
        Ok(found) => {
            for (at, message) in found.iter().take(room).enumerate() {
                // SAFETY: dvk.h: room for that many messages.
                let place = unsafe { list.add(at) };
                // SAFETY: as above.
                unsafe { place.write(*message) };
            }
            c_int::try_from(found.len()).unwrap_or(c_int::MAX)
        }
        Err(error) => code(error),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_wakeup(dcid: c_int, ep: u64) -> c_int {
    within(dcid, |bound| bound.wakeup(from_c(ep)).map(|_| ()))
}

/// The number of a node, if this one has it.
fn is_here(bound: &Bound, nodeid: c_int) -> bool {
    u16::try_from(nodeid) == Ok(bound.node().0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_getdvsinfo(info: *mut DvsInfo) -> c_int {
    // SAFETY: dvk.h: a record's place.
    with(|bound| bound.dvs_info().and_then(|found| unsafe { put(info, found) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_dvs_init(nodeid: c_int, info: *mut DvsInfo) -> c_int {
    match current() {
        Ok(bound) if !is_here(&bound, nodeid) => BAD_NODE,
        Ok(bound) => match bound.dvs_info() {
            Ok(found) => {
                if !info.is_null() {
                    // SAFETY: not null, and dvk.h: a record's place.
                    unsafe { info.write(found) };
                }
                DVS_RUNS
            }
            Err(error) => code(error),
        },
        Err(error) => code(error),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_dc_init(dcid: c_int) -> c_int {
    match current() {
        Ok(bound) if is_dc(&bound, dcid) => DC_RUNS,
        // A process reaches its own DC's door only, so it has no say in others.
        Ok(_) => code(IpcError::Denied),
        Err(error) => code(error),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_dc_end(dcid: c_int) -> c_int {
    let bound = match current() {
        Ok(bound) if !is_dc(&bound, dcid) => return code(IpcError::Denied),
        Ok(bound) => bound,
        Err(error) => return code(error),
    };
    let ended = bound.unbind_all();
    if ended.is_ok() {
        forget(&bound);
    }
    done(ended)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_add_node(dcid: c_int, nodeid: c_int) -> c_int {
    change_nodes(dcid, nodeid, Bound::add_node, DC_HAS_NODE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_del_node(dcid: c_int, nodeid: c_int) -> c_int {
    change_nodes(dcid, nodeid, Bound::del_node, NODE_IN_USE)
}

/// Changes which nodes the DC spans; `in_use` is what `IpcError::InUse` means then.
fn change_nodes(
    dcid: c_int,
    nodeid: c_int,
    act: impl FnOnce(&Bound, NodeId) -> Result<(), IpcError>,
    in_use: c_int,
) -> c_int {
    let Ok(node) = u16::try_from(nodeid) else { return BAD_NODE };
    match current() {
        Ok(bound) if !is_dc(&bound, dcid) => BAD_DC,
        Ok(bound) => match act(&bound, NodeId(node)) {
            Err(IpcError::InUse) => in_use,
            changed => done(changed),
        },
        Err(error) => code(error),
    }
}

/// Steers the link to a node.
fn steer(nodeid: c_int, act: impl FnOnce(&Bound, NodeId) -> Result<(), IpcError>) -> c_int {
    let Ok(node) = u16::try_from(nodeid) else { return INVALID };
    with(|bound| act(bound, NodeId(node)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_node_up(nodeid: c_int) -> c_int {
    steer(nodeid, Bound::node_up)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_node_down(nodeid: c_int) -> c_int {
    steer(nodeid, Bound::node_down)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_proxy_conn(nodeid: c_int, status: c_int) -> c_int {
    match status {
        1 | 2 => steer(nodeid, Bound::connect),
        3 | 4 => steer(nodeid, Bound::disconnect),
        _ => INVALID,
    }
}

/// The bytes that C lends for one call.
///
/// # Safety
/// `start` is null or valid for reads of `bytes`, for as long as the slice is used.
unsafe fn lent<'a>(start: *const c_void, bytes: c_long) -> Result<&'a [u8], IpcError> {
    match usize::try_from(bytes) {
        Ok(0) => Ok(&[]),
        Ok(_) if start.is_null() => Err(IpcError::Fault),
        // SAFETY: the caller's contract.
        Ok(len) => Ok(unsafe { std::slice::from_raw_parts(start.cast(), len) }),
        Err(_) => Err(IpcError::TooLarge),
    }
}

/// The room that C lends for one call.
///
/// # Safety
/// `start` is null or valid for reads and writes of `bytes`, for as long as the slice is used.
unsafe fn room<'a>(start: *mut c_void, bytes: c_long) -> Result<&'a mut [u8], IpcError> {
    match usize::try_from(bytes) {
        Ok(0) => Ok(&mut []),
        Ok(_) if start.is_null() => Err(IpcError::Fault),
        // SAFETY: the caller's contract.
        Ok(len) => Ok(unsafe { std::slice::from_raw_parts_mut(start.cast(), len) }),
        Err(_) => Err(IpcError::TooLarge),
    }
}

/// A length, or an error.
fn length(outcome: Result<usize, IpcError>) -> c_long {
    outcome
        .map_or_else(|error| code(error).into(), |len| c_long::try_from(len).unwrap_or(c_long::MAX))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_sendp_T(
    ep: u64,
    message: *const Message,
    payload: *const c_void,
    bytes: c_long,
    timeout: c_long,
) -> c_int {
    with(|bound| {
        // SAFETY: dvk.h: a message.
        let message = unsafe { get(message) }?;
        // SAFETY: dvk.h: that many bytes.
        let payload = unsafe { lent(payload, bytes) }?;
        bound.send(from_c(ep), &message, payload, wait(timeout))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_sendrecp_T(
    ep: u64,
    message: *mut Message,
    payload: *const c_void,
    bytes: c_long,
    answer: *mut c_void,
    answer_room: c_long,
    timeout: c_long,
) -> c_long {
    length(current().and_then(|bound| {
        // SAFETY: dvk.h: a message.
        let mut copy = unsafe { get(message) }?;
        // SAFETY: dvk.h: that many bytes.
        let payload = unsafe { lent(payload, bytes) }?;
        // SAFETY: dvk.h: that many bytes, and no others of the call's.
        let answer = unsafe { room(answer, answer_room) }?;
        let len = bound.sendrec(from_c(ep), &mut copy, payload, answer, wait(timeout))?;
        // SAFETY: dvk.h: a message's place.
        unsafe { put(message, copy) }.map(|()| len)
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_receivep_T(
    ep: u64,
    message: *mut Message,
    payload: *mut c_void,
    payload_room: c_long,
    timeout: c_long,
) -> c_long {
    length(current().and_then(|bound| {
        if message.is_null() {
            return Err(IpcError::Fault);
        }
        // SAFETY: dvk.h: that many bytes.
        let payload = unsafe { room(payload, payload_room) }?;
        let mut got = bound.receive(from_c(ep), payload, wait(timeout))?;
        if let Kind::Notification(value) = got.kind {
            got.message.args[..8].copy_from_slice(&value.to_le_bytes());
        }
        // SAFETY: dvk.h: a message's place.
        unsafe { put(message, got.message) }.map(|()| got.payload_len)
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_rcvrqstp_T(
    message: *mut Message,
    payload: *mut c_void,
    payload_room: c_long,
    timeout: c_long,
) -> c_long {
    length(current().and_then(|bound| {
        if message.is_null() {
            return Err(IpcError::Fault);
        }
        // SAFETY: dvk.h: that many bytes.
        let payload = unsafe { room(payload, payload_room) }?;
        let got = bound.rcvrqst(payload, wait(timeout))?;
        // SAFETY: dvk.h: a message's place.
        unsafe { put(message, got.message) }.map(|()| got.payload_len)
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_replyp(
    ep: u64,
    message: *const Message,
    payload: *const c_void,
    bytes: c_long,
) -> c_int {
    with(|bound| {
        // SAFETY: dvk.h: a message.
        let message = unsafe { get(message) }?;
        // SAFETY: dvk.h: that many bytes.
        let payload = unsafe { lent(payload, bytes) }?;
        bound.reply(from_c(ep), &Message { status: 0, ..message }, payload)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_lclbind(
    dcid: c_int,
    pid: c_int,
    number: c_int,
    ep: *mut u64,
) -> c_int {
    let bound = current().map_err(code).and_then(|bound| {
        if !is_dc(&bound, dcid) {
            return Err(BAD_DC);
        }
        let pid = u32::try_from(pid).map_err(|_| INVALID)?;
        bound.bind_other(pid, u32::try_from(number).map_err(|_| INVALID)?).map_err(code)
    });
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(bound, ep) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_rmtbind(
    dcid: c_int,
    name: *const c_char,
    ep: u64,
    nodeid: c_int,
) -> c_int {
    let _ = name;
    let endpoint = from_c(ep);
    if u16::try_from(nodeid) != Ok(endpoint.node().0) {
        return INVALID;
    }
    match current() {
        Ok(bound) if !is_dc(&bound, dcid) => BAD_DC,
        Ok(bound) => {
            done(bound.wait_bind(endpoint, Some(Duration::ZERO)).map(|_| ()).map_err(|error| {
                if error == IpcError::WouldBlock { IpcError::NotBound } else { error }
            }))
        }
        Err(error) => code(error),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_unbind(dcid: c_int, ep: u64) -> c_int {
    let endpoint = from_c(ep);
    let bound = match current() {
        Ok(bound) if !is_dc(&bound, dcid) => return BAD_DC,
        Ok(bound) => bound,
        Err(error) => return code(error),
    };
    let unbound = bound.unbind_other(endpoint);
    if endpoint == bound.endpoint() && unbound.is_ok() {
        forget(&bound);
    }
    done(unbound)
}

/// The process or thread has no endpoint any more.
fn forget(bound: &Arc<Bound>) {
    let is_it =
        |kept: &Option<Arc<Bound>>| kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, bound));
    THREAD.with(|thread| {
        if is_it(&thread.borrow()) {
            thread.borrow_mut().take();
        }
    });
    SWITCHED.with(|switched| {
        if is_it(&switched.borrow()) {
            switched.borrow_mut().take();
        }
    });
    let mut user = USER.write().unwrap_or_else(PoisonError::into_inner);
    user.retain(|kept| !Arc::ptr_eq(kept, bound));
    drop(user);
    let mut process = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    if is_it(&process) {
        process.take();
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_getself(ep: *mut u64) -> c_int {
    // SAFETY: dvk.h: an endpoint's place.
    with(|bound| unsafe { put(ep, to_c(bound.endpoint())) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_getep(pid: c_int, ep: *mut u64) -> c_int {
    with(|bound| {
        let pid = u32::try_from(pid).map_err(|_| IpcError::NotBound)?;
        let found = to_c(bound.getep(pid)?);
        // SAFETY: dvk.h: an endpoint's place.
        unsafe { put(ep, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_wait4bindep_T(ep: u64, owner: *mut u64, timeout: c_long) -> c_int {
    let waited = current().and_then(|bound| bound.wait_bind(from_c(ep), wait(timeout)));
    // SAFETY: dvk.h: null or an endpoint's place.
    unsafe { bound_as(waited.map_err(code), owner) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_wait4unbind_T(ep: u64, timeout: c_long) -> c_int {
    with(|bound| bound.wait_unbind(from_c(ep), wait(timeout)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_send_T(ep: u64, message: *const Message, timeout: c_long) -> c_int {
    with(|bound| {
        // SAFETY: dvk.h: a message.
        let message = unsafe { get(message) }?;
        bound.send(from_c(ep), &message, &[], wait(timeout))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_sendrec_T(ep: u64, message: *mut Message, timeout: c_long) -> c_int {
    with(|bound| {
        // SAFETY: dvk.h: a message.
        let mut copy = unsafe { get(message) }?;
        bound.sendrec(from_c(ep), &mut copy, &[], &mut [], wait(timeout))?;
        // SAFETY: dvk.h: a message's place.
        unsafe { put(message, copy) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_receive_T(ep: u64, message: *mut Message, timeout: c_long) -> c_int {
    with(|bound| {
        if message.is_null() {
            return Err(IpcError::Fault);
        }
        let mut got = bound.receive(from_c(ep), &mut [], wait(timeout))?;
        if let Kind::Notification(value) = got.kind {
            got.message.args[..8].copy_from_slice(&value.to_le_bytes());
        }
        // SAFETY: dvk.h: a message's place.
        unsafe { put(message, got.message) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_rcvrqst_T(message: *mut Message, timeout: c_long) -> c_int {
    with(|bound| {
        if message.is_null() {
            return Err(IpcError::Fault);
        }
        let got = bound.rcvrqst(&mut [], wait(timeout))?;
        // SAFETY: dvk.h: a message's place.
        unsafe { put(message, got.message) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_reply(ep: u64, message: *const Message) -> c_int {
    with(|bound| {
        // SAFETY: dvk.h: a message.
        let message = unsafe { get(message) }?;
        // The prototype has no status: a reply is a success of the transport.
        bound.reply(from_c(ep), &Message { status: 0, ..message }, &[])
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_ntfy_value(ep: u64, value: u64) -> c_int {
    with(|bound| bound.notify(from_c(ep), value))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_relay(ep: u64, message: *const Message) -> c_int {
    with(|bound| {
        // SAFETY: dvk.h: a message.
        let message = unsafe { get(message) }?;
        bound.relay(&message, from_c(ep))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_src_notify(source: u64, ep: u64, value: u64) -> c_int {
    with(|bound| bound.notify_as(from_c(source), from_c(ep), value))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_hdw_notify(dcid: c_int, ep: u64, value: u64) -> c_int {
    within(dcid, |bound| bound.notify_hardware(from_c(ep), value))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_grant(
    ep: u64,
    start: *const c_void,
    bytes: c_long,
    access: c_int,
) -> c_long {
    let Some(access) = access_from_c(access) else { return INVALID.into() };
    let Ok(len) = usize::try_from(bytes) else { return INVALID.into() };
    let granted = current().and_then(|bound| {
        // SAFETY: dvk.h: the caller leaves these bytes to the others until it revokes.
        unsafe { bound.grant(from_c(ep), start.cast(), len, access) }
    });
    match granted {
        Ok(grant) => c_long::try_from(grant.number()).unwrap_or(c_long::MAX),
        Err(error) => code(error).into(),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_lend(
    ep: u64,
    bytes: c_long,
    access: c_int,
    start: *mut *mut c_void,
) -> c_long {
    let (Ok(len), Some(access)) = (usize::try_from(bytes), access_from_c(access)) else {
        return INVALID.into();
    };
    let lent = current().and_then(|bound| {
        let shared = bound.lend(from_c(ep), len, access)?;
        // SAFETY: dvk.h: null or room for a pointer. Without it `shared` is dropped, and nothing is lent.
        unsafe { put(start, shared.as_ptr().as_ptr().cast()) }?;
        Ok(bound.keep(shared))
    });
    match lent {
        Ok(grant) => c_long::try_from(grant.number()).unwrap_or(c_long::MAX),
        Err(error) => code(error).into(),
    }
}

fn access_from_c(access: c_int) -> Option<Access> {
    match access {
        1 => Some(Access::Read),
        2 => Some(Access::Write),
        3 => Some(Access::Both),
        _ => None,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_revoke(grant: c_long) -> c_int {
    match u64::try_from(grant) {
        Ok(number) => with(|bound| bound.revoke(Grant::from_number(number))),
        Err(_) => INVALID,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_vcopy(
    src_ep: u64,
    src_addr: *const c_void,
    dst_ep: u64,
    dst_addr: *mut c_void,
    bytes: c_long,
) -> c_long {
    let Ok(len) = usize::try_from(bytes) else { return INVALID.into() };
    let bound = match current() {
        Ok(bound) => bound,
        Err(error) => return code(error).into(),
    };
    let (source, destination) = (from_c(src_ep), from_c(dst_ep));
    // SAFETY: dvk.h: a range of the caller's own is the caller's.
    let moved = unsafe { bound.vcopy(source, src_addr as u64, destination, dst_addr as u64, len) };
    match moved {
        Ok(()) => bytes,
        Err(failed) if failed.copied > 0 => c_long::try_from(failed.copied).unwrap_or(bytes),
        Err(failed) => code(failed.error).into(),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_getdcinfo(dcid: c_int, info: *mut DcInfo) -> c_int {
    match current() {
        Ok(bound) if !is_dc(&bound, dcid) => BAD_DC,
        // SAFETY: dvk.h: a record's place.
        Ok(bound) => done(bound.dc_info().and_then(|found| unsafe { put(info, found) })),
        Err(error) => code(error),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_getprocinfo(ep: u64, info: *mut EndpointInfo) -> c_int {
    with(|bound| {
        let found = bound.endpoint_info(from_c(ep))?;
        // SAFETY: dvk.h: a record's place.
        unsafe { put(info, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_getnodeinfo(nodeid: c_int, info: *mut NodeInfo) -> c_int {
    with(|bound| {
        let node = u16::try_from(nodeid).map_err(|_| IpcError::NotBound)?;
        let found = bound.node_info(NodeId(node))?;
        // SAFETY: dvk.h: a record's place.
        unsafe { put(info, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_getnodeload(
    nodeid: c_int,
    seconds_ago: c_long,
    load: *mut NodeLoad,
) -> c_int {
    with(|bound| {
        let (node, ago) = (node_of(nodeid)?, ago(seconds_ago)?);
        let found = bound.node_load(node, ago)?;
        // SAFETY: dvk.h: a record's place.
        unsafe { put(load, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_getdcload(
    nodeid: c_int,
    seconds_ago: c_long,
    load: *mut DcLoad,
) -> c_int {
    with(|bound| {
        let (node, ago) = (node_of(nodeid)?, ago(seconds_ago)?);
        let found = bound.dc_load(node, ago)?;
        // SAFETY: dvk.h: a record's place.
        unsafe { put(load, found) }
    })
}

fn node_of(nodeid: c_int) -> Result<NodeId, IpcError> {
    u16::try_from(nodeid).map(NodeId).map_err(|_| IpcError::NotBound)
}

/// A time that is not in the future.
fn ago(seconds: c_long) -> Result<Duration, IpcError> {
    u64::try_from(seconds).map(Duration::from_secs).map_err(|_| IpcError::WouldBlock)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_getpriv(ep: u64, rights: *mut Rights) -> c_int {
    with(|bound| {
        let found = bound.get_priv(from_c(ep))?;
        // SAFETY: dvk.h: a record's place.
        unsafe { put(rights, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvk_setpriv(ep: u64, rights: *const Rights) -> c_int {
    with(|bound| {
        // SAFETY: dvk.h: a record.
        let rights = unsafe { get(rights) }?;
        let bytes = zerocopy::IntoBytes::as_bytes(&rights);
        let rights = Rights::decode(bytes).ok_or(IpcError::Protocol)?;
        bound.set_priv(from_c(ep), &rights)
    })
}
