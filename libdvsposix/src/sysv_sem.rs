//! SysV semaphores: semget(2), semop(2), semctl(2).

use crate::deadline::Deadline;
use calls::call;
use calls::ipc::{SemCtl, SemGet, SemOp, SemOps, SemStat, SetPerm};
use calls::wire::Wire;
use m3ipc::errno::numbers::{E2BIG, EINVAL, EPROTO, ERANGE};
use m3ipc::{Endpoint, Errno, Sendrec, Wait};

/// Most operations of one semop(2), as Linux has it by default.
pub const SEMOPM: usize = 500;

/// Commands of semctl(2) and msgctl(2).
pub mod command {
    pub const IPC_RMID: i32 = 0;
    pub const IPC_SET: i32 = 1;
    pub const IPC_STAT: i32 = 2;
    pub const IPC_INFO: i32 = 3;
    pub const GETPID: i32 = 11;
    pub const GETVAL: i32 = 12;
    pub const GETALL: i32 = 13;
    pub const GETNCNT: i32 = 14;
    pub const GETZCNT: i32 = 15;
    pub const SETVAL: i32 = 16;
    pub const SETALL: i32 = 17;
    pub const SEM_STAT: i32 = 18;
    pub const SEM_INFO: i32 = 19;
    pub const SEM_STAT_ANY: i32 = 20;
    pub const MSG_STAT: i32 = 11;
    pub const MSG_INFO: i32 = 12;
    pub const MSG_STAT_ANY: i32 = 13;
}

/// semget(2).
///
/// # Errors
/// As semget(2).
pub fn get(port: &impl Sendrec, key: i32, count: i32, flags: i32) -> Result<i32, Errno> {
    let count = u32::try_from(count).map_err(|_| Errno::new(EINVAL))?;
    let row = SemGet { key, count, flags: flags.cast_unsigned() };
    call(port, Endpoint::IPC, &row, &[], &mut [], Wait::FOREVER).map(|(value, _)| value.value)
}

/// semtimedop(2); a signal handler always interrupts it.
///
/// # Errors
/// As semtimedop(2).
pub fn operate(port: &impl Sendrec, id: i32, operations: &[SemOp], deadline: Deadline) -> Result<(), Errno> {
    if operations.is_empty() || id < 0 {
        return Err(Errno::new(EINVAL));
    }
    if operations.len() > SEMOPM {
        return Err(Errno::new(E2BIG));
    }
    let row = SemOps { id, wait_ns: deadline.wait_ns()? };
    let mut bytes = [0; SEMOPM * SemOp::SIZE];
    for (operation, bytes) in operations.iter().zip(bytes.chunks_exact_mut(SemOp::SIZE)) {
        operation.put(bytes);
    }
    let payload = bytes.get(..operations.len() * SemOp::SIZE).unwrap_or_default();
    call(port, Endpoint::IPC, &row, &[payload], &mut [], Wait::INTERRUPT).map(|_| ())
}

/// semctl(2) of the commands that take a number or nothing: GETVAL, GETPID, GETNCNT, GETZCNT, SETVAL, IPC_RMID.
///
/// # Errors
/// As semctl(2).
pub fn control(port: &impl Sendrec, id: i32, number: i32, command: i32, value: i32) -> Result<i32, Errno> {
    let row = SemCtl { id, number, command, value };
    call(port, Endpoint::IPC, &row, &[], &mut [], Wait::FOREVER).map(|(value, _)| value.value)
}

/// semctl with IPC_STAT of `id`, or SEM_STAT or SEM_STAT_ANY of place `id` of the table: what semctl
/// returns, and the set.
///
/// # Errors
/// EACCES, EIDRM, EINVAL.
pub fn stat(port: &impl Sendrec, id: i32, command: i32) -> Result<(i32, SemStat), Errno> {
    let mut bytes = [0; SemStat::SIZE];
    let row = SemCtl { id, number: 0, command, value: 0 };
    let (value, len) = call(port, Endpoint::IPC, &row, &[], &mut bytes, Wait::FOREVER)?;
    let stat = SemStat::get(bytes.get(..len).unwrap_or_default()).ok_or(Errno::new(EPROTO))?;
    Ok((value.value, stat))
}

/// semctl with IPC_INFO or SEM_INFO: the highest place of the table in use, and `struct seminfo`.
///
/// # Errors
/// EINVAL.
pub fn info(port: &impl Sendrec, command: i32) -> Result<(i32, [u8; 40]), Errno> {
    let mut bytes = [0; 40];
    let row = SemCtl { id: 0, number: 0, command, value: 0 };
    let (value, _) = call(port, Endpoint::IPC, &row, &[], &mut bytes, Wait::FOREVER)?;
    Ok((value.value, bytes))
}

/// semctl(IPC_SET).
///
/// # Errors
/// EIDRM, EINVAL, EPERM.
pub fn set_perm(port: &impl Sendrec, id: i32, perm: SetPerm) -> Result<(), Errno> {
    let row = SemCtl { id, number: 0, command: command::IPC_SET, value: 0 };
    call(port, Endpoint::IPC, &row, &[&perm.bytes()], &mut [], Wait::FOREVER).map(|_| ())
}

/// semctl(GETALL) into `values`, little-endian u16s; `values` is as long as the set is ([`stat`]).
///
/// # Errors
/// EACCES, EIDRM, EINVAL.
pub fn values(port: &impl Sendrec, id: i32, values: &mut [u8]) -> Result<usize, Errno> {
    let row = SemCtl { id, number: 0, command: command::GETALL, value: 0 };
    call(port, Endpoint::IPC, &row, &[], values, Wait::FOREVER).map(|(_, len)| len)
}

/// semctl(SETALL) from `values`, little-endian u16s, as many as the set has.
///
/// # Errors
/// EACCES, EIDRM, EINVAL, ERANGE.
pub fn set_values(port: &impl Sendrec, id: i32, values: &[u8]) -> Result<(), Errno> {
    let too_large = |pair: &[u8]| pair.last().is_some_and(|high| *high > 0x7f);
    if values.chunks_exact(2).any(too_large) {
        return Err(Errno::new(ERANGE));
    }
    let row = SemCtl { id, number: 0, command: command::SETALL, value: 0 };
    call(port, Endpoint::IPC, &row, &[values], &mut [], Wait::FOREVER).map(|_| ())
}
