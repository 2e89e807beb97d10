//! INIT: the kernel says what it can, we say what of that is used.

use super::abi::{self, init};
use super::device::{Arrival, Device};
use super::reply;
use super::request::{Header, Malformed};
use crate::limits::{CONGESTION, IO_SIZE_MAX, REQUESTS_BACKGROUND};
use anyhow::{Context as _, Result, bail, ensure};
use zerocopy::{FromBytes, IntoBytes};

/// Pages of one request; a page has 4 KiB at least.
const PAGES_MAX: u16 = 256;
const _: () = assert!(IO_SIZE_MAX == PAGES_MAX as u32 * 4096);

/// The minor of Linux 5.15, the oldest that this is tested with.
const OLDEST_MINOR: u32 = 34;

/// Without these, locks would be local to a node, or the umask would not reach the server. (`FUSE_ATOMIC_O_TRUNC` is not among
/// them: a program that is running would be cut off under its feet by an open(2) that then fails with ETXTBSY.)
const NEEDED: u64 = init::POSIX_LOCKS | init::FLOCK_LOCKS | init::DONT_MASK | init::BIG_WRITES;

/// These make it faster, or better: the server drops set-user-id bits itself, so that a write need not ask for xattrs first;
/// of files that are not opened for direct I/O, pages go when mtime or size have changed;
/// who lists a directory and looks at what is in it gets both at once; what an agent has not answered that dies comes again; requests have more than 32 pages; files opened for direct I/O can be mapped.
const WELCOME: u64 = init::ASYNC_READ
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::PARALLEL_DIROPS
    | init::HANDLE_KILLPRIV_V2
    | init::MAX_PAGES
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP
    | init::HAS_RESEND;

/// Answers the kernel's INIT, the first request of a mount, of which only `allowed` features are believed. Returns those
/// that are used, and the minor version.
///
/// # Errors
/// One sentence: the kernel is too old, or something else is written there.
pub(crate) fn shake_hands(device: &Device, allowed: u64, buffer: &mut [u8]) -> Result<(u64, u32)> {
    loop {
        let len = match device.read(buffer).context("the kernel's FUSE does not begin")? {
            Arrival::Request(len) => len,
            Arrival::Nothing => continue,
            Arrival::End => bail!("the mount was taken away before it was there"),
        };
        match begin(&buffer[..len], allowed) {
            Answer::Agreed(reply, flags, minor) => {
                let is_told = device.write(&reply).context("the kernel refuses the handshake")?;
                ensure!(is_told, "the mount was taken away before it was there");
                return Ok((flags, minor));
            }
            // It speaks ours, and asks again.
            Answer::OurVersion(reply) => {
                device.write(&reply).context("the kernel refuses the handshake")?;
            }
            Answer::Refused(reply, why) => {
                // The mount is taken away in any case.
                device.write(&reply).ok();
                bail!(why);
            }
        }
    }
}

/// What a first request is answered with.
#[derive(Debug)]
enum Answer {
    Agreed(Vec<u8>, u64, u32),
    OurVersion(Vec<u8>),
    Refused(Vec<u8>, String),
}

fn begin(request: &[u8], allowed: u64) -> Answer {
    let refused = |unique, why: String| {
        let header = reply::header(unique, 0, Err(libc::EPROTO));
        Answer::Refused(header.into(), why)
    };
    let (head, body) = match Header::decode(request) {
        Ok(found) => found,
        Err(Malformed { unique, .. }) => {
            return refused(unique.unwrap_or(0), "the kernel's FUSE request is malformed".into());
        }
    };
    if head.opcode != abi::opcode::INIT {
        let why = format!("the kernel's FUSE begins with operation {}, not INIT", head.opcode);
        return refused(head.unique, why);
    }
    // Before flags2 there were only the first four.
    let mut whole = [0; size_of::<abi::fuse_init_in>()];
    let known = body.len().min(whole.len());
    whole[..known].copy_from_slice(&body[..known]);
    let offer = abi::fuse_init_in::read_from_bytes(&whole).unwrap_or_default();
    let version = abi::fuse_init_out {
        major: abi::FUSE_KERNEL_VERSION,
        minor: abi::FUSE_KERNEL_MINOR_VERSION.min(offer.minor),
        ..Default::default()
    };
    if offer.major > abi::FUSE_KERNEL_VERSION {
        let ours = abi::fuse_init_out { minor: abi::FUSE_KERNEL_MINOR_VERSION, ..version };
        return Answer::OurVersion(whole_reply(head.unique, &ours));
    }
    if offer.major < abi::FUSE_KERNEL_VERSION || offer.minor < OLDEST_MINOR {
        let found = (offer.major, offer.minor);
        return refused(
            head.unique,
            format!(
                "the kernel's FUSE has version {}.{}: Linux 5.15 (7.{OLDEST_MINOR}) or newer is needed",
                found.0, found.1
            ),
        );
    }
    let offered = (u64::from(offer.flags) | u64::from(offer.flags2) << 32) & allowed;
    let missing = NEEDED & !offered;
    if missing != 0 {
        return refused(
            head.unique,
            format!("the kernel's FUSE lacks features {missing:#x}: Linux 5.15 or newer is needed"),
        );
    }
    let mut flags = offered & (NEEDED | WELCOME);
    if flags & init::INIT_EXT == 0 {
        flags &= u64::from(u32::MAX);
    }
    tracing::debug!("FUSE 7.{}, features {flags:#x} of {offered:#x}", offer.minor);
    let [low, high] = halves(flags);
    let agreed = abi::fuse_init_out {
        // The kernel's own wish may be smaller already.
        max_readahead: offer.max_readahead.min(IO_SIZE_MAX),
        flags: low,
        flags2: high,
        max_background: REQUESTS_BACKGROUND,
        congestion_threshold: CONGESTION,
        max_write: IO_SIZE_MAX,
        // Times are exact to the nanosecond.
        time_gran: 1,
        max_pages: PAGES_MAX,
        ..version
    };
    Answer::Agreed(whole_reply(head.unique, &agreed), flags, agreed.minor)
}

/// `flags` and `flags2`.
fn halves(flags: u64) -> [u32; 2] {
    [flags, flags >> 32].map(|half| u32::try_from(half & u64::from(u32::MAX)).unwrap_or_default())
}

fn whole_reply(unique: u64, init: &abi::fuse_init_out) -> Vec<u8> {
    let payload = init.as_bytes();
    [&reply::header(unique, payload.len(), Ok(())), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(init: &abi::fuse_init_in, opcode: u32) -> Vec<u8> {
        let head = Header { len: 40 + 64, opcode, unique: 2, ..Default::default() };
        [head.as_bytes(), init.as_bytes()].concat()
    }

    fn offer(flags: u64) -> abi::fuse_init_in {
        let [low, high] = halves(flags);
        abi::fuse_init_in {
            major: 7,
            minor: 45,
            max_readahead: 4096,
            flags: low,
            flags2: high,
            unused: [0; 11],
        }
    }

    fn ask(init: &abi::fuse_init_in, allowed: u64) -> Answer {
        begin(&request(init, abi::opcode::INIT), allowed)
    }

    #[test]
    fn what_both_can_do_is_used() {
        let Answer::Agreed(reply, flags, minor) = ask(&offer(u64::MAX), u64::MAX) else { panic!() };
        assert_eq!(flags, NEEDED | WELCOME);
        let told = abi::fuse_init_out::read_from_bytes(&reply[16..]).unwrap();
        assert_eq!((told.major, told.minor, told.max_readahead), (7, 45, 4096));
        assert_eq!(minor, 45);
        assert_eq!(u64::from(told.flags) | u64::from(told.flags2) << 32, flags);
        let old = NEEDED | init::AUTO_INVAL_DATA | init::DIRECT_IO_ALLOW_MMAP;
        let Answer::Agreed(_, flags, _) = ask(&offer(old), u64::MAX) else { panic!() };
        assert_eq!(flags, NEEDED | init::AUTO_INVAL_DATA, "flags2 says nothing without INIT_EXT");
        let Answer::Agreed(_, flags, _) = ask(&offer(u64::MAX), NEEDED) else { panic!() };
        assert_eq!(flags, NEEDED, "what is masked is not used");
    }

    #[test]
    fn a_kernel_that_is_too_old_is_told_and_a_newer_one_speaks_ours() {
        let check = |init: abi::fuse_init_in, part: &str| match ask(&init, u64::MAX) {
            Answer::Refused(reply, why) => {
                assert!(why.contains(part), "{why}");
                assert_eq!(reply[4..8], (-libc::EPROTO).to_ne_bytes());
            }
            other => panic!("{other:?}"),
        };
        check(abi::fuse_init_in { minor: 33, ..offer(u64::MAX) }, "7.33");
        check(abi::fuse_init_in { major: 6, ..offer(u64::MAX) }, "6.45");
        check(offer(!init::FLOCK_LOCKS), "0x400");
        let newer = abi::fuse_init_in { major: 8, ..offer(0) };
        let Answer::OurVersion(reply) = ask(&newer, u64::MAX) else { panic!() };
        assert_eq!(reply[16..24], [7, 0, 0, 0, 45, 0, 0, 0]);
        let lookup = begin(&request(&offer(u64::MAX), abi::opcode::LOOKUP), u64::MAX);
        assert!(matches!(lookup, Answer::Refused(_, why) if why.contains("not INIT")));
    }

    proptest! {
        #[test]
        fn no_first_request_makes_it_panic(bytes: Vec<u8>, body in any::<[u8; 64]>(), len in 0..=104usize) {
            begin(&bytes, u64::MAX);
            let mut whole = request(&offer(u64::MAX), abi::opcode::INIT);
            whole[40..].copy_from_slice(&body);
            whole.truncate(len);
            begin(&whole, u64::MAX);
            whole.splice(..whole.len().min(4), u32::try_from(len).unwrap().to_ne_bytes());
            begin(&whole, u64::MAX);
        }
    }
}
