//! The process's umask, read without changing it: what names are created with depends on it.

use rustix::fs::{Mode, OFlags};

/// When the umask cannot be found out: fewer rights, never more.
const STRICT: u32 = 0o077;

/// `mode` as a file, semaphore or queue created by this process gets it.
pub fn apply(mode: u32) -> u32 {
    mode & 0o777 & !current()
}

/// umask(2) can only be asked by changing it, which other threads would see; proc(5) tells it too.
pub(crate) fn current() -> u32 {
    let mut buffer = [0u8; 256];
    let status =
        rustix::fs::open(c"/proc/self/status", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let read = status.and_then(|status| rustix::io::read(status, &mut buffer));
    parse(buffer.get(..read.unwrap_or(0)).unwrap_or_default()).unwrap_or(STRICT)
}

/// The value of the line "Umask:" of a process's status.
fn parse(status: &[u8]) -> Option<u32> {
    let line =
        status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Umask:\t"))?;
    let digit = |byte: &u8| char::from(*byte).to_digit(8);
    (line.len() <= 4).then_some(())?;
    line.iter().try_fold(0, |mask, byte| Some(mask << 3 | digit(byte)?))
}

#[cfg(test)]
mod tests {
    use super::{apply, current, parse};

    #[test]
    fn the_umask_is_the_octal_number_of_its_line() {
        assert_eq!(parse(b"Name:\tsh\nUmask:\t0022\nState:\tR\n"), Some(0o022));
        assert_eq!(parse(b"Name:\tUmask:\t1\nState:\tR\n"), None);
        assert_eq!(parse(b"Name:\tsh\nUmask:\t0092\n"), None);
        assert_eq!(parse(b"Name:\tsh\nUmask:\t77777777777777777\n"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_mode_of_what_is_created_loses_the_bits_of_the_umask() {
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
        assert_eq!(current(), 0o027);
        assert_eq!(apply(0o7666), 0o640);
        rustix::process::umask(mask);
    }
}
