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
pub fn operate(
    port: &impl Sendrec,
    id: i32,
    operations: &[SemOp],
    deadline: Deadline,
) -> Result<(), Errno> {
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
pub fn control(
    port: &impl Sendrec,
    id: i32,
    number: i32,
    command: i32,
    value: i32,
) -> Result<i32, Errno> {
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

#[cfg(test)]
mod tests {
    use super::{SEMOPM, command, get, operate, set_values, stat, values};
    use crate::deadline::{Deadline, Timespec};
    use crate::fake::Fake;
    use calls::ipc::{FOREVER, SemCtl, SemGet, SemOp, SemOps, SemStat, Value};
    use calls::wire::Wire;
    use m3ipc::Wait;
    use m3ipc::errno::numbers::{E2BIG, EINVAL, EPROTO, ERANGE};
    use std::vec;

    #[test]
    fn operations_travel_in_order_and_a_handler_interrupts_them() {
        let fake = Fake::answering([]);
        let operations =
            [SemOp { number: 1, op: -2, flags: 0x1000 }, SemOp { number: 0, op: 3, flags: 0 }];
        assert_eq!(operate(&fake, 6, &operations, Deadline::Never), Ok(()));
        assert_eq!(fake.row::<SemOps>(), SemOps { id: 6, wait_ns: FOREVER });
        assert_eq!(fake.payload(), [operations[0].bytes(), operations[1].bytes()].concat());
        assert_eq!(fake.last().wait, Wait::INTERRUPT);
    }

    #[test]
    fn what_linux_refuses_is_refused_without_a_call() {
        let fake = Fake::answering([]);
        let many = vec![SemOp::default(); SEMOPM + 1];
        let check = |id, operations: &[SemOp], deadline, errno| {
            assert_eq!(
                operate(&fake, id, operations, deadline).map_err(|error| error.errno),
                Err(errno)
            );
        };
        check(6, &[], Deadline::Never, EINVAL);
        check(-1, &many[..1], Deadline::Never, EINVAL);
        check(6, &many, Deadline::Never, E2BIG);
        check(6, &many[..1], Deadline::After(Timespec { sec: 0, nsec: -1 }), EINVAL);
        assert_eq!(get(&fake, 1, -1, 0).map_err(|error| error.errno), Err(EINVAL));
        assert_eq!(
            set_values(&fake, 6, &[0, 0, 0, 0x80]).map_err(|error| error.errno),
            Err(ERANGE)
        );
        assert_eq!(fake.calls(), 0);
        assert_eq!(operate(&fake, 6, &many[..SEMOPM], Deadline::Never), Ok(()));
    }

    #[test]
    fn a_set_is_described_whole_or_not_at_all() {
        let described = SemStat { semaphores: 3, otime: 4, ctime: 5, ..SemStat::default() };
        let fake = Fake::replying::<SemCtl>(&Value { value: 8 }, described.bytes());
        assert_eq!(stat(&fake, 2, command::SEM_STAT), Ok((8, described)));
        assert_eq!(
            fake.row::<SemCtl>(),
            SemCtl { id: 2, number: 0, command: command::SEM_STAT, value: 0 }
        );
        for cut in 0..SemStat::SIZE {
            let fake = Fake::replying::<SemCtl>(&Value { value: 8 }, &described.bytes()[..cut]);
            assert_eq!(stat(&fake, 2, command::IPC_STAT).map_err(|error| error.errno), Err(EPROTO));
        }
    }

    #[test]
    fn values_go_both_ways_and_get_takes_keys_of_any_sign() {
        let fake = Fake::replying::<SemCtl>(&Value { value: 0 }, [1, 0, 2, 0]);
        let mut found = [0; 4];
        assert_eq!((values(&fake, 2, &mut found), found), (Ok(4), [1, 0, 2, 0]));
        let fake = Fake::replying::<SemCtl>(&Value { value: 0 }, []);
        assert_eq!(set_values(&fake, 2, &[1, 0, 0xff, 0x7f]), Ok(()));
        assert_eq!(fake.payload(), [1, 0, 0xff, 0x7f]);
        let fake = Fake::replying::<SemGet>(&Value { value: 11 }, []);
        assert_eq!(get(&fake, -5, 2, 0o1600), Ok(11));
        assert_eq!(fake.row::<SemGet>(), SemGet { key: -5, count: 2, flags: 0o1600 });
    }
}
