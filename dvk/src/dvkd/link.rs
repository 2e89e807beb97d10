//! One link to another node: a byte stream, read by one thread and written by any.
//!
//! [`Stream`] is the seam for TLS: what follows needs no more of a transport than that.

use crate::limits::SPIN_READER;
use bytes::Bytes;
use m3ipc::spin::Spin;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A connection to another node. Neither read nor write waits: they return `WouldBlock`.
pub(super) trait Stream: Send + Sync + std::fmt::Debug {
    fn read(&self, buffer: &mut [u8]) -> Result<usize>;
    fn write(&self, parts: &[IoSlice<'_>]) -> Result<usize>;
    /// Waits until there is something to read, or for `timeout`.
    fn await_readable(&self, timeout: Option<Duration>) -> Result<()>;
    /// Waits until something can be written.
    fn await_writable(&self) -> Result<()>;
    /// Ends both directions; whoever waits returns.
    fn close(&self);
}

/// Plain TCP, for links inside one trusted network.
#[derive(Debug)]
pub(super) struct Tcp(TcpStream);

impl Tcp {
    pub(super) fn new(stream: TcpStream) -> Result<Tcp> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Tcp(stream))
    }

    fn wait(&self, flags: PollFlags, timeout: Option<Duration>) -> Result<()> {
        let mut fds = [PollFd::new(&self.0, flags)];
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Stream for Tcp {
    fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        (&self.0).read(buffer)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> Result<usize> {
        (&self.0).write_vectored(parts)
    }

    fn await_readable(&self, timeout: Option<Duration>) -> Result<()> {
        self.wait(PollFlags::IN, timeout)
    }

    fn await_writable(&self) -> Result<()> {
        self.wait(PollFlags::OUT, None)
    }

    fn close(&self) {
        // Already closed by the other side: nothing to do.
        self.0.shutdown(Shutdown::Both).ok();
    }
}

/// A link: the stream, and what could not be written to it yet.
#[derive(Debug)]
pub(super) struct Link {
    stream: Box<dyn Stream>,
    queue: Mutex<Queue>,
    /// The queue has something, or the link is closed.
    filled: Condvar,
    /// Bytes that may be queued.
    queue_max: usize,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// How much of the first frame has been written.
    written: usize,
    closed: bool,
}

/// Frames that go out with one write at most.
const BATCH: usize = 64;

impl Link {
    /// `queue_max`: bytes that may be queued, usually `LINK_QUEUE`.
    pub(super) fn new(stream: Box<dyn Stream>, queue_max: usize) -> Link {
        Link { stream, queue: Mutex::default(), filled: Condvar::new(), queue_max }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame; [`Link::flush`] follows. A peer that does not read loses its link: everything that
    /// matters is sent again on the next one.
    pub(super) fn send(&self, frame: Bytes) {
        let mut queue = self.queue();
        if queue.closed {
            return;
        }
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        if queue.bytes > self.queue_max {
            tracing::warn!("a node reads too slowly; its link is dropped");
            drop(queue);
            self.close();
        }
    }

    /// Writes what can be written without waiting. The rest is the flush thread's.
    pub(super) fn flush(&self) {
        let mut queue = self.queue();
        match queue.write_to(&*self.stream) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.filled.notify_one(),
            Err(error) => {
                tracing::debug!(%error, "cannot write to a link");
                drop(queue);
                self.close();
            }
        }
    }

    /// Ends the link; its reader notices.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.frames.clear();
        queue.bytes = 0;
        queue.written = 0;
        self.stream.close();
        self.filled.notify_one();
    }

    /// The body of the flush thread: writes what had to be queued, until the link is closed.
    pub(super) fn flush_queued(&self) {
        let mut queue = self.queue();
        while !queue.closed {
            if queue.frames.is_empty() {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(queue);
            let waited = self.stream.await_writable();
            queue = self.queue();
            match waited.and_then(|()| queue.write_to(&*self.stream)) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    drop(queue);
                    self.close();
                    return;
                }
                _ => {}
            }
        }
    }

    /// Reads more, waiting for it; 0 is the end. Looks for a while first, if that has been paying off.
    pub(super) fn read(&self, buffer: &mut [u8], spin: &Spin) -> Result<usize> {
        loop {
            let mut result = self.try_read(buffer);
            if result.is_none() {
                let start = Instant::now();
                spin.until(|| {
                    if result.is_none() && start.elapsed() < SPIN_READER {
                        result = self.try_read(buffer);
                    }
                    result.is_some()
                });
            }
            match result {
                Some(result) => return result,
                None => self.stream.await_readable(None)?,
            }
        }
    }

    /// Reads without waiting.
    fn try_read(&self, buffer: &mut [u8]) -> Option<Result<usize>> {
        match self.stream.read(buffer) {
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                None
            }
            result => Some(result),
        }
    }

    /// Waits at most until `deadline` for the first bytes of a connection: its Hello.
    pub(super) fn read_by(&self, buffer: &mut [u8], deadline: Instant) -> Result<usize> {
        loop {
            if let Some(result) = self.try_read(buffer) {
                return result;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.await_readable(Some(left))?;
        }
    }
}

impl Queue {
    fn write_to(&mut self, stream: &dyn Stream) -> Result<()> {
        while !self.frames.is_empty() {
            let mut parts = [IoSlice::new(&[]); BATCH];
            let count = self.frames.len().min(BATCH);
            for (index, (part, frame)) in parts.iter_mut().zip(&self.frames).enumerate() {
                *part = IoSlice::new(&frame[if index == 0 { self.written } else { 0 }..]);
            }
            match stream.write(&parts[..count]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.frames.front() {
            let left = first.len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.bytes -= first.len();
            self.written = 0;
            self.frames.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::Arc;

    const QUEUE: usize = 32 << 20;

    fn pair() -> (Arc<Link>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = Arc::new(Link::new(Box::new(Tcp::new(ours).unwrap()), QUEUE));
        (link, listener.accept().unwrap().0)
    }

    #[test]
    fn what_does_not_fit_the_socket_is_written_later_in_order() {
        let (link, mut theirs) = pair();
        let flusher = link.clone();
        let thread = std::thread::spawn(move || flusher.flush_queued());
        let frames: Vec<Bytes> = (0..200_u8).map(|n| Bytes::from(vec![n; 100_000])).collect();
        for frame in &frames {
            link.send(frame.clone());
            link.flush();
        }
        let mut got = vec![0; 100_000];
        for frame in &frames {
            theirs.read_exact(&mut got).unwrap();
            assert_eq!(&got[..], &frame[..]);
        }
        link.close();
        thread.join().unwrap();
    }

    #[test]
    fn a_peer_that_does_not_read_loses_its_link_not_our_memory() {
        let (link, mut theirs) = pair();
        let frame = Bytes::from(vec![1; 1 << 20]);
        for _ in 0..2 * QUEUE / frame.len() {
            link.send(frame.clone());
            link.flush();
        }
        assert_eq!(link.queue().bytes, 0);
        assert!(link.queue().closed);
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).ok();
        assert!(rest.len() < QUEUE);
    }
}
