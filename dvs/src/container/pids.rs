//! The range of a node's process numbers, so that a number is one process in the whole DC.

use crate::limits::{PID_RANGE, PID_RANGE_STEP, PID_RANGE_USED};
use std::path::Path;

/// The kernel's own limit: PID_MAX_LIMIT, exclusive.
const PID_LIMIT: u32 = 4 << 20;
/// Since Linux 6.14 a pid namespace has its own `pid_max`; writing it before changes the whole machine.
const OWN_LIMIT_SINCE: (u32, u32) = (6, 14);

/// The numbers of the pid namespace of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PidRange {
    base: u32,
}

impl PidRange {
    /// The range of `node`, if there are that many numbers.
    fn of(node: u16) -> Option<PidRange> {
        let base = u32::from(node) * PID_RANGE;
        (base + PID_RANGE <= PID_LIMIT).then_some(PidRange { base })
    }

    /// Makes this pid namespace give out the numbers of `node`. `None`: it cannot, and gives out
    /// small ones, which are then not unique in the DC. `earlier`: how many containers this node has
    /// had; each begins elsewhere, so that a number is not soon another process's.
    pub(crate) fn claim(node: u16, earlier: u32) -> Option<PidRange> {
        let range = PidRange::of(node)?;
        let end = range.base + PID_RANGE;
        if kernel_version() >= Some(OWN_LIMIT_SINCE) {
            write("pid_max", end).ok()?;
        } else if read("pid_max")? < end {
            return None;
        }
        write("ns_last_pid", range.first(earlier)).ok()?;
        Some(range)
    }

    /// The number before the first one of container number `earlier`.
    fn first(self, earlier: u32) -> u32 {
        self.base + earlier.wrapping_mul(PID_RANGE_STEP) % PID_RANGE_USED
    }

    /// Goes back to the front before the numbers are used up: the kernel would go on at 300.
    pub(crate) fn keep(self) {
        if read("ns_last_pid").is_some_and(|last| self.is_nearly_used(last)) {
            // If it fails, the numbers stay valid, only not unique in the DC.
            write("ns_last_pid", self.base).ok();
        }
    }

    fn is_nearly_used(self, last: u32) -> bool {
        !(self.base..self.base + PID_RANGE_USED).contains(&last)
    }
}

fn read(name: &str) -> Option<u32> {
    let path = Path::new("/proc/sys/kernel").join(name);
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn write(name: &str, value: u32) -> std::io::Result<()> {
    std::fs::write(Path::new("/proc/sys/kernel").join(name), value.to_string())
}

fn kernel_version() -> Option<(u32, u32)> {
    parse_version(rustix::system::uname().release().to_str().ok()?)
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_nodes_do_not_meet_and_stay_below_the_kernels_limit() {
        let ranges: Vec<PidRange> = (1..=4095).map_while(PidRange::of).collect();
        assert_eq!(ranges.len(), 40);
        assert!(ranges.windows(2).all(|pair| pair[0].base + PID_RANGE <= pair[1].base));
        assert_eq!(PidRange::of(41), None);
    }

    #[test]
    fn the_next_number_goes_back_before_the_range_ends_and_after_a_wrap() {
        let range = PidRange::of(2).unwrap();
        assert!(!range.is_nearly_used(200_000));
        assert!(!range.is_nearly_used(279_999));
        assert!(range.is_nearly_used(280_000));
        assert!(range.is_nearly_used(305));
    }

    #[test]
    fn each_container_of_a_node_begins_elsewhere() {
        let range = PidRange::of(2).unwrap();
        assert_eq!([0, 1, 7, 8].map(|n| range.first(n)), [200_000, 210_000, 270_000, 200_000]);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse_version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_version("6.1.0-18-amd64"), Some((6, 1)));
        assert!(parse_version("6.2") < Some(OWN_LIMIT_SINCE));
        assert!(parse_version("7.0-rc1") >= Some(OWN_LIMIT_SINCE));
        assert_eq!(parse_version("linux"), None);
    }
}
