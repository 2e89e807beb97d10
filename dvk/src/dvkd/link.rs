//! A track of a link to another node: a byte stream, read by one thread and written by any. Two are a link.
//!
//! What is small is written by the thread that brings it. What is bulk is encrypted and written by a thread of its own:
//! nobody who has a small frame for any node waits for that.
//!
//! [`Stream`] is what it needs of a transport: TLS (`super::tls`).

use super::control;
use super::packing::{self, PACKED_MIN, Packer, Packing};
use crate::frame::{Frame, Hello, Packet, Track};
use crate::host::solo::monotonic;
use crate::limits::{FRAME_MAX, GROUP_QUEUED, GROUP_QUEUED_BYTES, LINK_STALL, SMALL_MAX};
use crate::server::Nanos;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// A connection to another node. Neither read nor write waits: they return `WouldBlock`.
pub(super) trait Stream: Send + Sync + std::fmt::Debug {
    fn read(&self, buffer: &mut [u8]) -> Result<usize>;
    fn write(&self, parts: &[IoSlice<'_>]) -> Result<usize>;
    /// Passes on what `write` has taken; `WouldBlock` if some of it has to wait.
    fn flush(&self) -> Result<()>;
    /// Waits until there is something to read, or for `timeout`.
    fn await_readable(&self, timeout: Option<Duration>) -> Result<()>;
    /// Waits until something can be written, or for `timeout`; then false.
    fn await_writable(&self, timeout: Option<Duration>) -> Result<bool>;
    /// Ends both directions; whoever waits returns.
    fn close(&self);
    /// How long the connection has had something under way, if that is known.
    fn busy(&self) -> Option<Nanos> {
        None
    }
}

/// The two tracks of a link. When one ends, both do.
#[derive(Clone, Debug)]
pub(super) struct Tracks {
    pub(super) small: Arc<Link>,
    pub(super) bulk: Arc<Link>,
}

impl Tracks {
    pub(super) fn of(&self, track: Track) -> &Arc<Link> {
        match track {
            Track::Small => &self.small,
            Track::Bulk => &self.bulk,
        }
    }

    /// The track for a message between daemons of `length` bytes.
    pub(super) fn for_length(&self, length: usize) -> &Arc<Link> {
        if length > SMALL_MAX { &self.bulk } else { &self.small }
    }

    /// From now on large frames are compressed when that pays.
    pub(super) fn pack(&self, packing: Packing) {
        self.bulk.queue().packer = Packer::new(packing);
    }

    pub(super) fn close(&self) {
        self.small.close();
        self.bulk.close();
    }
}

/// A track: the stream, and what could not be written to it yet.
#[derive(Debug)]
pub(super) struct Link {
    track: Track,
    stream: Box<dyn Stream>,
    queue: Mutex<Queue>,
    /// The queue has something, or the link is closed.
    filled: Condvar,
    /// Bytes that may be queued.
    queue_max: usize,
    /// What has been read and not been taken. Whoever holds this reads.
    reading: Mutex<Reading>,
    /// The proxy thread reads for the time being; the link's own reader waits for `let_go`.
    led: Mutex<bool>,
    let_go: Condvar,
    /// On the bulk track: what comes next is to be taken after small frames that have not come yet.
    held: Mutex<bool>,
    unheld: Condvar,
    /// When it was used last, on the monotonic clock.
    used: AtomicU64,
}

/// What has come over a link and is not yet a whole frame.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Shared only while frames are taken: payloads may be parts of it meanwhile.
    bytes: Arc<Vec<u8>>,
    /// Bytes of it that have been read.
    end: usize,
    /// Calls that it has brought and whose answers nobody looks for yet.
    pub(super) calls: usize,
    /// On the bulk track: its first frame has to wait for small ones.
    pub(super) is_early: bool,
    /// Why the link is at its end.
    pub(super) ended: Option<String>,
}

/// Keeps what has been read as long as a payload is a part of it.
struct Kept(Arc<Vec<u8>>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Reading {
    /// Begins with what came behind the Hello.
    pub(super) fn begin(&mut self, rest: Vec<u8>) {
        self.end = rest.len();
        self.bytes = Arc::new(rest);
    }

    /// Where the next bytes go: room for the rest of the longest frame, and then some.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let end = self.end;
        if Arc::get_mut(&mut self.bytes).is_none() {
            // Somebody keeps a payload.
            self.bytes = Arc::new(self.bytes[..end].to_vec());
        }
        let bytes = Arc::get_mut(&mut self.bytes).expect("nobody else has it");
        if bytes.len() < end + FRAME_MAX {
            bytes.resize(end + FRAME_MAX, 0);
        }
        &mut bytes[end..]
    }

    /// So many bytes have been read; false if there was room for more.
    pub(super) fn note_read(&mut self, count: usize) -> bool {
        self.end += count;
        self.end == self.bytes.len()
    }

    /// What has been read and not been taken.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// The same, of which payloads can be kept.
    pub(super) fn whole(&self) -> Bytes {
        Bytes::from_owner(Kept(self.bytes.clone())).slice(..self.end)
    }

    /// The first so many bytes have been taken.
    pub(super) fn remove(&mut self, count: usize) {
        match Arc::get_mut(&mut self.bytes) {
            Some(bytes) => bytes.copy_within(count..self.end, 0),
            None => self.bytes = Arc::new(self.bytes[count..self.end].to_vec()),
        }
        self.end -= count;
    }
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Queued>,
    bytes: usize,
    /// Those that may get lost, and their bytes.
    lossy: usize,
    lossy_bytes: usize,
    /// How many of the first are being written.
    in_flight: usize,
    /// How much of the first frame has been written.
    written: usize,
    /// Somebody writes.
    writing: bool,
    /// All frames are written, but the stream has not passed all of them on.
    unflushed: bool,
    closed: bool,
    /// If frames are compressed.
    packer: Option<Packer>,
    /// Bytes of frames that have gone out since it was told, and how long their compression took.
    sent: usize,
    packing: Nanos,
}

/// Something that is to be written.
#[derive(Debug)]
struct Queued {
    bytes: Bytes,
    /// Before it was compressed.
    length: usize,
    is_lossy: bool,
    /// It is as it is to be sent.
    is_ready: bool,
}

impl Queued {
    fn new(bytes: Bytes, is_lossy: bool) -> Queued {
        let is_ready = is_lossy || bytes.len() < PACKED_MIN || !control::is_kernels(&bytes);
        Queued { length: bytes.len(), bytes, is_lossy, is_ready }
    }
}

/// Frames that go out with one write at most.
const BATCH: usize = 64;

/// Frames that are compressed before they go out: few, so that the network has something to do meanwhile.
const PACKED_BATCH: usize = 4;

impl Link {
    /// `queue_max`: bytes that may be queued, usually `LINK_QUEUE`.
    pub(super) fn new(track: Track, stream: Box<dyn Stream>, queue_max: usize) -> Link {
        Link {
            track,
            stream,
            queue: Mutex::default(),
            filled: Condvar::new(),
            queue_max,
            reading: Mutex::default(),
            led: Mutex::new(false),
            let_go: Condvar::new(),
            held: Mutex::new(false),
            unheld: Condvar::new(),
            used: AtomicU64::new(0),
        }
    }

    pub(super) fn track(&self) -> Track {
        self.track
    }

    /// The Hello has said that this is the other track.
    pub(super) fn into_bulk(self) -> Link {
        Link { track: Track::Bulk, ..self }
    }

    /// Says Hello, before anybody else writes: there is room for that in any socket.
    pub(super) fn begin(&self, hello: Hello) {
        self.send(Bytes::from(Packet::alone(Frame::Hello(hello)).encode()));
        if self.write_queued().is_err() {
            self.close();
        }
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
        queue.frames.push_back(Queued::new(frame, false));
        if queue.bytes > self.queue_max {
            tracing::warn!("a node reads too slowly; its link is dropped");
            drop(queue);
            self.close();
        }
    }

    /// Queues something that may get lost and overtakes what is not being written yet; [`Link::flush`] follows. If
    /// too many such wait, it is dropped, and this is false.
    pub(super) fn offer(&self, bytes: Bytes) -> bool {
        let mut queue = self.queue();
        let total = queue.lossy_bytes + bytes.len();
        if queue.closed || queue.lossy >= GROUP_QUEUED || total > GROUP_QUEUED_BYTES {
            return false;
        }
        // The first may have been written in part.
        let begun = if queue.writing { queue.in_flight } else { usize::from(queue.written > 0) };
        let behind = queue.frames.iter().skip(begun).take_while(|frame| frame.is_lossy).count();
        queue.bytes += bytes.len();
        (queue.lossy, queue.lossy_bytes) = (queue.lossy + 1, total);
        queue.frames.insert(begun + behind, Queued::new(bytes, true));
        true
    }

    /// Writes what can be written without waiting. The rest is the flush thread's; on the bulk track all is.
    pub(super) fn flush(&self) {
        self.note_use(monotonic());
        if self.track == Track::Bulk {
            return self.filled.notify_one();
        }
        match self.write_queued() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.filled.notify_one(),
            Err(error) => {
                tracing::debug!(%error, "cannot write to a link");
                self.close();
            }
        }
    }

    /// Writes the queue, if nobody else is at it; whoever is finds what has been added. The queue is not locked
    /// during a write: those who add to it hold the node's lock.
    fn write_queued(&self) -> Result<()> {
        let mut queue = self.queue();
        if std::mem::replace(&mut queue.writing, true) {
            return Ok(());
        }
        let result = loop {
            if queue.is_packing() {
                queue = self.pack(queue);
            }
            let batch = queue.batch();
            let written = queue.written;
            queue.in_flight = batch.len();
            drop(queue);
            let result = match batch[..] {
                [] => self.stream.flush().map(|()| 0),
                _ => write_batch(&*self.stream, &batch, written),
            };
            queue = self.queue();
            queue.in_flight = 0;
            queue.unflushed = result.is_err();
            match result {
                Ok(_) if batch.is_empty() && queue.frames.is_empty() => break Ok(()),
                Ok(count) => {
                    queue.advance(count);
                    queue.tell_packer(&*self.stream);
                }
                Err(error) => break Err(error),
            }
        };
        queue.writing = false;
        result
    }

    /// Compresses the next frames. As for a write, the queue is not locked meanwhile.
    fn pack<'a>(&'a self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        let next: Vec<(usize, Bytes)> = queue.next_to_pack().collect();
        queue.in_flight = PACKED_BATCH.min(queue.frames.len());
        drop(queue);
        let start = monotonic();
        let packed: Vec<(usize, Option<Bytes>)> = next
            .into_iter()
            .map(|(index, frame)| {
                let packed = packing::pack(&frame);
                (index, packed.map(|packed| control::Control::Packed(&packed).encode()))
            })
            .collect();
        let took = monotonic() - start;
        let mut queue = self.queue();
        queue.in_flight = 0;
        // Of a closed link they are gone.
        if !queue.closed {
            queue.packing += took;
            for (index, packed) in packed {
                queue.replace(index, packed);
            }
        }
        queue
    }

    /// Ends the link; its reader notices.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.frames.clear();
        (queue.bytes, queue.lossy, queue.lossy_bytes) = (0, 0, 0);
        queue.written = 0;
        queue.unflushed = false;
        self.stream.close();
        self.filled.notify_one();
        drop(queue);
        self.lead(false);
        self.hold(false);
    }

    /// The body of the flush thread: writes what had to be queued, until the link is closed. One that takes
    /// nothing for `LINK_STALL` is closed.
    pub(super) fn flush_queued(&self) {
        loop {
            let mut queue = self.queue();
            while !queue.closed && (queue.writing || queue.frames.is_empty() && !queue.unflushed) {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.closed {
                return;
            }
            drop(queue);
            match self.stream.await_writable(Some(LINK_STALL)) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!("a node takes nothing; its link is dropped");
                    return self.close();
                }
                Err(_) => return self.close(),
            }
            match self.write_queued() {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return self.close(),
                _ => {}
            }
        }
    }

    /// The right to read, if nobody else has it.
    pub(super) fn try_reading(&self) -> Option<MutexGuard<'_, Reading>> {
        match self.reading.try_lock() {
            Ok(reading) => Some(reading),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The right to read.
    pub(super) fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the proxy thread reads, or does not any more.
    pub(super) fn lead(&self, is_led: bool) {
        *self.led.lock().unwrap_or_else(PoisonError::into_inner) = is_led;
        if !is_led {
            self.let_go.notify_all();
        }
    }

    /// Says that what comes next has to wait for small frames, or does not any more.
    pub(super) fn hold(&self, is_held: bool) {
        let was_held = std::mem::replace(
            &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner),
            is_held,
        );
        if was_held && !is_held {
            self.unheld.notify_all();
        }
    }

    #[cfg(test)]
    pub(super) fn is_held(&self) -> bool {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what comes next may be taken; false if the link is closed.
    pub(super) fn await_unheld(&self) -> bool {
        // Whoever closes it does so before it lets go.
        if self.queue().closed {
            return false;
        }
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.unheld.wait_while(held, |held| *held).unwrap_or_else(PoisonError::into_inner));
        true
    }

    /// Waits until there is something to read that nobody else reads.
    pub(super) fn await_turn(&self) -> Result<()> {
        let led = self.led.lock().unwrap_or_else(PoisonError::into_inner);
        if *led {
            drop(self.let_go.wait_while(led, |led| *led).unwrap_or_else(PoisonError::into_inner));
            return Ok(());
        }
        drop(led);
        self.stream.await_readable(None)
    }

    pub(super) fn note_use(&self, now: Nanos) {
        self.used.store(now, Ordering::Relaxed);
    }

    pub(super) fn last_use(&self) -> Nanos {
        self.used.load(Ordering::Relaxed)
    }

    /// Reads without waiting.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> Option<Result<usize>> {
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

/// One write of several frames, of the first only what comes after `written` bytes.
fn write_batch(stream: &dyn Stream, batch: &[Bytes], written: usize) -> Result<usize> {
    let mut parts = [IoSlice::new(&[]); BATCH];
    for (index, (part, frame)) in parts.iter_mut().zip(batch).enumerate() {
        *part = IoSlice::new(&frame[if index == 0 { written } else { 0 }..]);
    }
    loop {
        match stream.write(&parts[..batch.len()]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Queue {
    fn is_packing(&self) -> bool {
        self.packer.as_ref().is_some_and(Packer::is_packing)
    }

    /// What goes out with the next write.
    fn batch(&self) -> Vec<Bytes> {
        // Some have come while others were compressed.
        let is_packing = self.is_packing();
        let begun = usize::from(self.written > 0);
        let next = self.frames.iter().take(BATCH).enumerate();
        next.take_while(|(index, frame)| !is_packing || frame.is_ready || *index < begun)
            .map(|(_, frame)| frame.bytes.clone())
            .collect()
    }

    /// Those of the next frames that are to be compressed, with their places.
    fn next_to_pack(&self) -> impl Iterator<Item = (usize, Bytes)> {
        // The first may have been written in part.
        let begun = usize::from(self.written > 0);
        let next = self.frames.iter().enumerate().take(PACKED_BATCH).skip(begun);
        next.filter(|(_, frame)| !frame.is_ready).map(|(index, frame)| (index, frame.bytes.clone()))
    }

    /// The frame at `index` has been compressed, unless that does not make it shorter.
    fn replace(&mut self, index: usize, packed: Option<Bytes>) {
        let frame = &mut self.frames[index];
        frame.is_ready = true;
        if let Some(packed) = packed {
            self.bytes = self.bytes - frame.bytes.len() + packed.len();
            frame.bytes = packed;
        }
    }

    /// Tells the packer what has been sent.
    fn tell_packer(&mut self, stream: &dyn Stream) {
        if let Some(packer) = &mut self.packer {
            packer.note_sent(self.sent, self.packing, || stream.busy());
        }
        (self.sent, self.packing) = (0, 0);
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.frames.front() {
            let left = first.bytes.len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.bytes -= first.bytes.len();
            self.sent += first.length;
            if first.is_lossy {
                self.lossy -= 1;
                self.lossy_bytes -= first.bytes.len();
            }
            self.written = 0;
            self.frames.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    /// Plain TCP: what a link does is seen best without encryption.
    #[derive(Debug)]
    struct Tcp(TcpStream);

    impl Tcp {
        fn new(stream: TcpStream) -> Result<Tcp> {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(Tcp(stream))
        }

        fn wait(&self, flags: PollFlags, timeout: Option<Duration>) -> Result<bool> {
            let mut fds = [PollFd::new(&self.0, flags)];
            let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
            Ok(poll(&mut fds, timeout.as_ref())? > 0)
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
            self.wait(PollFlags::IN, timeout).map(|_| ())
        }

        fn flush(&self) -> Result<()> {
            Ok(())
        }

        fn await_writable(&self, timeout: Option<Duration>) -> Result<bool> {
            self.wait(PollFlags::OUT, timeout)
        }

        fn close(&self) {
            // Already closed by the other side: nothing to do.
            self.0.shutdown(Shutdown::Both).ok();
        }
    }

    const QUEUE: usize = 32 << 20;

    fn pair() -> (Arc<Link>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = Arc::new(Link::new(Track::Small, Box::new(Tcp::new(ours).unwrap()), QUEUE));
        (link, listener.accept().unwrap().0)
    }

    #[test]
    fn what_is_kept_of_a_reading_stays_and_without_that_its_memory_is_used_again() {
        let mut reading = Reading::default();
        reading.begin(b"whole frame and a pa".to_vec());
        let kept = reading.whole().slice(6..11);
        reading.remove(16);
        reading.room()[..2].copy_from_slice(b"rt");
        assert!(!reading.note_read(2));
        assert_eq!((reading.unread(), &kept[..]), (&b"a part"[..], &b"frame"[..]));
        let place = reading.unread().as_ptr();
        drop(reading.whole());
        reading.remove(2);
        reading.room();
        assert_eq!((reading.unread(), reading.unread().as_ptr()), (&b"part"[..], place));
        // Kept while more is read.
        let kept = reading.whole();
        reading.room().fill(0);
        assert_eq!((reading.unread(), &kept[..]), (&b"part"[..], &b"part"[..]));
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
    fn a_peer_that_takes_nothing_for_a_while_loses_its_link_and_one_that_takes_little_does_not() {
        let (link, theirs) = pair();
        let begin = Instant::now();
        // More than the buffers of two sockets grow to (tcp(7): 4 and 6 MiB by default).
        for _ in 0..QUEUE >> 20 {
            link.send(Bytes::from(vec![1; 1 << 20]));
            link.flush();
        }
        // It returns when the link is closed; the socket was full all the time.
        link.flush_queued();
        assert!(link.queue().closed);
        assert!(begin.elapsed() >= LINK_STALL, "it had its time");
        drop(theirs);
        let (link, mut theirs) = pair();
        while link.queue().frames.is_empty() {
            link.send(Bytes::from(vec![1; 1 << 20]));
            link.flush();
        }
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| link.flush_queued());
            let mut piece = vec![0; 1 << 20];
            while !link.queue().frames.is_empty() {
                theirs.read_exact(&mut piece).unwrap();
            }
            assert!(!link.queue().closed);
            link.close();
            flusher.join().unwrap();
        });
    }

    #[test]
    fn what_may_get_lost_is_bounded_and_overtakes_what_is_not_begun() {
        let (link, mut theirs) = pair();
        let bulk = Bytes::from(vec![1; 1 << 20]);
        while link.queue().frames.len() < 3 {
            link.send(bulk.clone());
            link.flush();
        }
        let waiting = link.queue().frames.len();
        let taken = (0..2 * GROUP_QUEUED).filter(|_| link.offer(Bytes::from_static(b"x"))).count();
        assert_eq!(taken, GROUP_QUEUED);
        assert!(!link.offer(bulk.clone()), "neither count nor bytes allow more");
        {
            let queue = link.queue();
            assert!(!queue.closed && queue.frames.len() == waiting + taken);
            let first = usize::from(queue.written > 0);
            assert!(queue.frames.range(first..first + taken).all(|frame| frame.is_lossy));
        }
        let flusher = link.clone();
        let thread = std::thread::spawn(move || flusher.flush_queued());
        let reader = std::thread::spawn(move || theirs.read_to_end(&mut Vec::new()));
        while !link.queue().frames.is_empty() {
            std::thread::yield_now();
        }
        {
            let queue = link.queue();
            assert_eq!((queue.lossy, queue.lossy_bytes), (0, 0));
        }
        assert!(link.offer(Bytes::from_static(b"x")), "there is room again");
        link.close();
        thread.join().unwrap();
        reader.join().unwrap().unwrap();
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
