//! What a container says of its processes: the payload of Report, checked.

use calls::pm::{COMMAND_MAX, Process};
use calls::wire::Wire;
use m3ipc::Errno;
use m3ipc::errno::numbers::EINVAL;

/// A process and its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reported {
    pub(crate) process: Process,
    pub(crate) command: Vec<u8>,
}

impl Reported {
    /// With the command cut to `COMMAND_MAX`, its NULs made spaces, and both in agreement.
    pub(crate) fn new(process: Process, command: &[u8]) -> Reported {
        let mut command: Vec<u8> = command.iter().take(COMMAND_MAX).copied().collect();
        command.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        let command_len = u8::try_from(command.len()).expect("COMMAND_MAX is below 256");
        Reported { process: Process { command_len, ..process }, command }
    }

    /// As in a payload.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.process.bytes()[..], &self.command].concat()
    }

    /// Takes one from the front of `payload`.
    pub(crate) fn take(payload: &[u8]) -> Option<(Reported, &[u8])> {
        let process = Process::get(payload)?;
        let (command, rest) =
            payload[Process::SIZE..].split_at_checked(usize::from(process.command_len))?;
        (command.len() <= COMMAND_MAX).then(|| (Reported::new(process, command), rest))
    }
}

const _: () = assert!(COMMAND_MAX <= u8::MAX as usize);

/// All processes of a report, or EINVAL: a report that is not sound is not used at all.
pub(crate) fn parse(mut payload: &[u8]) -> Result<Vec<Reported>, Errno> {
    let mut all = Vec::new();
    while !payload.is_empty() {
        let (reported, rest) = Reported::take(payload).ok_or(Errno::new(EINVAL))?;
        if !is_pid(reported.process.pid) {
            return Err(Errno::new(EINVAL));
        }
        all.push(reported);
        payload = rest;
    }
    Ok(all)
}

/// Can a process have this pid?
pub(crate) fn is_pid(pid: u32) -> bool {
    pid != 0 && i32::try_from(pid).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let process = |pid| Process { pid, ppid: 1, start: 77, ..Process::default() };
        let one = Reported::new(process(100_001), b"sh\0-c\0true");
        let two = Reported::new(process(100_002), &[b'x'; 300]);
        [one.bytes(), two.bytes()].concat()
    }

    #[test]
    fn commands_are_cut_and_have_no_nul() {
        let all = parse(&sample()).unwrap();
        assert_eq!(all[0].command, b"sh -c true");
        assert_eq!(all[1].command, [b'x'; COMMAND_MAX]);
    }

    #[test]
    fn a_report_that_is_cut_anywhere_is_refused() {
        let sample = sample();
        let first = Process::SIZE + b"sh -c true".len();
        for cut in 1..sample.len() {
            assert_eq!(parse(&sample[..cut]).is_ok(), cut == first, "cut at {cut}");
        }
    }

    #[test]
    fn impossible_pids_and_lengths_are_refused() {
        for (pid, command_len) in [(0, 0), (1 << 31, 0), (u32::MAX, 0), (7, 129), (7, 255)] {
            let process = Process { pid, command_len, ..Process::default() };
            let payload = [&process.bytes()[..], &[b'x'; 255]].concat();
            let end = Process::SIZE + usize::from(command_len);
            assert!(parse(&payload[..end]).is_err(), "{pid} {command_len}");
        }
    }

    proptest! {
        #[test]
        fn what_is_parsed_says_the_same_again(
            bytes in prop::collection::vec(prop_oneof![3 => Just(1u8), 1 => any::<u8>()], 0..200),
        ) {
            if let Ok(all) = parse(&bytes) {
                let again: Vec<u8> = all.iter().flat_map(Reported::bytes).collect();
                prop_assert_eq!(again.len(), bytes.len());
                prop_assert_eq!(parse(&again).unwrap(), all);
            }
        }
    }
}
