//! What /proc says of processes: text that a process can shape, so parsed with care (proc(5)).

use std::collections::BTreeMap;
use std::path::Path;

/// The fields of `/proc/PID/stat` that are of use here. Times are in clock ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) command: Vec<u8>,
    pub(crate) state: u8,
    pub(crate) ppid: i32,
    pub(crate) pgid: i32,
    pub(crate) sid: i32,
    /// User and system time.
    pub(crate) cpu: u64,
    /// After the boot.
    pub(crate) start: u64,
}

/// Clock ticks per second in /proc: USER_HZ, the same on every x86-64 Linux.
pub(crate) const TICKS_PER_SECOND: u64 = 100;

/// A process's `stat`; `None` if it is gone.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses a line of `/proc/PID/stat`. The command stands in parentheses and may itself have any
/// byte in it, parentheses and newlines too; it ends at the last one.
pub(crate) fn parse_stat(line: &[u8]) -> Option<Stat> {
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')').filter(|close| *close > open)?;
    let pid = std::str::from_utf8(&line[..open]).ok()?.trim().parse().ok()?;
    let rest = std::str::from_utf8(&line[close + 1..]).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field 3 of the manual page is fields[0].
    let number = |field: usize| -> Option<i32> { fields.get(field - 3)?.parse().ok() };
    let ticks = |field: usize| -> Option<u64> { fields.get(field - 3)?.parse().ok() };
    Some(Stat {
        pid,
        command: line[open + 1..close].to_vec(),
        state: *fields.first()?.as_bytes().first()?,
        ppid: number(4)?,
        pgid: number(5)?,
        sid: number(6)?,
        cpu: ticks(14)?.saturating_add(ticks(15)?),
        start: ticks(22)?,
    })
}

/// The real user id in `/proc/PID/status`.
pub(crate) fn parse_uid(status: &[u8]) -> Option<u32> {
    // The name comes first and has its newlines escaped, so a line cannot be forged.
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

/// The signals that this process has been told to ignore: bit n-1 is signal n.
pub(crate) fn ignored_signals() -> Option<u64> {
    parse_ignored(&std::fs::read("/proc/self/status").ok()?)
}

fn parse_ignored(status: &[u8]) -> Option<u64> {
    let mut lines = status.split(|byte| *byte == b'\n');
    let mask = lines.find_map(|line| line.strip_prefix(b"SigIgn:"))?;
    u64::from_str_radix(std::str::from_utf8(mask).ok()?.trim(), 16).ok()
}

/// `/proc/PID/cmdline` as one line: NULs and control characters become spaces. Empty for zombies
/// and the kernel's threads.
pub(crate) fn command_line(cmdline: &[u8]) -> Vec<u8> {
    let text = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    text.iter().map(|byte| if byte.is_ascii_control() { b' ' } else { *byte }).collect()
}

/// All process numbers in a /proc, ascending.
pub(crate) fn pids(proc: &Path) -> std::io::Result<Vec<i32>> {
    let mut pids: Vec<i32> = std::fs::read_dir(proc)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid > 0)
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// Seconds since the epoch at which the machine booted, from `/proc/stat`.
pub(crate) fn boot_time() -> Option<i64> {
    parse_boot_time(&std::fs::read_to_string("/proc/stat").ok()?)
}

fn parse_boot_time(stat: &str) -> Option<i64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The environment a process was started with.
pub(crate) fn environment(pid: i32) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    Some(parse_environment(&std::fs::read(format!("/proc/{pid}/environ")).ok()?))
}

fn parse_environment(environ: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let pairs = environ.split(|byte| *byte == 0).filter_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        Some((pair[..equals].to_vec(), pair[equals + 1..].to_vec()))
    });
    pairs.collect()
}

/// A mount of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: Vec<u8>,
    pub(crate) kind: Vec<u8>,
}

/// The mounts of this process's namespace, in the order they were made.
pub(crate) fn mounts() -> std::io::Result<Vec<Mount>> {
    Ok(parse_mounts(&std::fs::read("/proc/self/mountinfo")?))
}

fn parse_mounts(mountinfo: &[u8]) -> Vec<Mount> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let point = unescape(fields.nth(4)?);
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?.to_vec();
            Some(Mount { point, kind })
        })
        .collect()
}

/// Space, tab, newline and backslash stand as `\ooo` in mountinfo.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *byte == b'\\');
        let code =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = &tail[3..];
            }
            None => {
                plain.push(*byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &str = "4711 (a) R (b\nc) S 1 4711 4710 34816 4720 4194304 100 0 0 0 7 5 0 0 20 0 1 0 \
                        123456 1000 200 18446744073709551615 1 1 0 0 0";

    #[test]
    fn a_command_cannot_forge_the_fields_behind_it() {
        let stat = parse_stat(LINE.as_bytes()).unwrap();
        assert_eq!(stat.command, b"a) R (b\nc");
        assert_eq!((stat.pid, stat.state, stat.ppid), (4711, b'S', 1));
        assert_eq!((stat.pgid, stat.sid), (4711, 4710));
        assert_eq!((stat.cpu, stat.start), (12, 123_456));
    }

    #[test]
    fn a_cut_line_is_refused_until_all_fields_are_there() {
        let start = LINE.find("123456").unwrap();
        for cut in 0..start {
            assert_eq!(parse_stat(&LINE.as_bytes()[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn this_process_is_found_in_proc() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(stat(pid).unwrap().pid, pid);
        assert!(pids(Path::new("/proc")).unwrap().contains(&pid));
        let status = std::fs::read("/proc/self/status").unwrap();
        assert_eq!(parse_uid(&status), Some(rustix::process::getuid().as_raw()));
        assert!(boot_time().is_some_and(|time| time > 1_000_000_000));
        assert!(mounts().unwrap().iter().any(|mount| mount.point == b"/proc"));
    }

    #[test]
    fn a_command_line_is_one_line() {
        assert_eq!(command_line(b"sh\0-c\0a\nb\x1b[m\0"), b"sh -c a b [m");
        assert_eq!(command_line(b""), b"");
    }

    #[test]
    fn escaped_mount_points_are_read_as_they_are() {
        let line = b"36 35 98:0 / /mnt/a\\040b\\134c rw,noatime shared:1 - ext4 /dev/root rw\n";
        let mount = Mount { point: b"/mnt/a b\\c".to_vec(), kind: b"ext4".to_vec() };
        assert_eq!(parse_mounts(line), [mount]);
        assert_eq!(unescape(b"a\\9"), b"a\\9");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse_stat(&text);
            parse_uid(&text);
            parse_ignored(&text);
            parse_mounts(&text);
            parse_environment(&text);
            command_line(&text);
            unescape(&text);
        }

        #[test]
        fn any_command_is_read_whole(command in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut line = b"7 (".to_vec();
            line.extend(&command);
            line.extend(b") R 1 2 3 0 0 0 0 0 0 0 1 1 0 0 0 0 0 0 9 0");
            prop_assert_eq!(parse_stat(&line).map(|stat| stat.command), Some(command));
        }
    }
}
