//! How long a TCP connection has had something under way: sent, and not acknowledged yet.
#![expect(
    unsafe_code,
    reason = "neither rustix nor nix has TCP_INFO, and libc has its first fields only"
)]

use crate::server::Nanos;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Where `tcpi_busy_time` (microseconds) is in `struct tcp_info` (linux/tcp.h), since Linux 4.10.
const BUSY_AT: usize = 168;
const SIZE: usize = BUSY_AT + size_of::<u64>();
const LEN: libc::socklen_t = 176;
const _: () = assert!(LEN as usize == SIZE);

/// None: Linux does not say.
pub(super) fn busy(stream: &TcpStream) -> Option<Nanos> {
    let mut info = [0_u8; SIZE];
    let mut len = LEN;
    let (fd, to) = (stream.as_raw_fd(), info.as_mut_ptr().cast());
    // SAFETY: the descriptor is open as `stream` has it, and `to` has `len` bytes, of which Linux writes at most that many.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &mut len) };
    let is_whole = result == 0 && len as usize >= SIZE;
    let micros = is_whole.then(|| info.last_chunk().map(|bytes| u64::from_ne_bytes(*bytes)))??;
    Some(micros.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn what_nobody_reads_keeps_a_connection_busy() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _peer = listener.accept().unwrap();
        assert_eq!(busy(&stream), Some(0));
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[7; 1 << 16]).is_ok() {}
        let before = busy(&stream).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while busy(&stream).unwrap() <= before {
            assert!(std::time::Instant::now() < until, "time passes");
        }
    }
}
