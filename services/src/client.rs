//! The client half of a connection: threads ask, and each gets its own answers.
//!
//! No thread of its own: of those who wait one reads for all. What comes for a request that nobody waits for any more is
//! dropped.

use crate::limits::{CHUNK, LINE_MAX, OPEN_MAX, PATIENCE};
use crate::lines::Lines;
use crate::record::{Op, Reply, Request, Told};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A connection to dvkd on which requests are taken.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// Lines are written one behind the other.
    writing: Mutex<()>,
    state: Mutex<State>,
    news: Condvar,
}

/// Why there is no answer, nor ever will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The session may have ended, as told: what it held may be somebody else's.
    Lost(String),
    /// dvkd has ended, or the connection. What was asked may have happened.
    Gone,
    /// What dvkd says is not understood.
    Broken,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Lost(why) => f.write_str(why),
            Ended::Gone => f.write_str("dvkd has ended; what was asked may have happened"),
            Ended::Broken => f.write_str("dvkd's answer is not understood; is it another version?"),
        }
    }
}

impl std::error::Error for Ended {}

#[derive(Debug)]
struct State {
    last: u64,
    /// Answers to open requests.
    open: BTreeMap<u64, VecDeque<Reply>>,
    lines: Lines,
    /// A thread reads.
    is_read: bool,
    ended: Option<Ended>,
}

impl Client {
    /// On a stream or SEQPACKET socket that is connected with dvkd's services. What dvkd says of the connection itself
    /// is the answer to request 0.
    pub fn new(socket: OwnedFd) -> Client {
        let open = BTreeMap::from([(0, VecDeque::new())]);
        let lines = Lines::new(LINE_MAX);
        let state = State { last: 0, open, lines, is_read: false, ended: None };
        Client { socket, writing: Mutex::default(), state: Mutex::new(state), news: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks; returns the number by which [`Client::next`] finds the answers. It takes `timeout_ms`, or as long as it
    /// takes others. While [`OPEN_MAX`] requests are open it waits, up to `until`; then there is none.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn post(
        &self,
        op: Op,
        timeout_ms: Option<u64>,
        until: Option<Instant>,
    ) -> Result<Option<u64>, Ended> {
        let mut state = self.state();
        // One of them is number 0.
        while state.open.len() > OPEN_MAX && state.ended.is_none() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            state = self.sleep(state, left);
        }
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        state.last += 1;
        let id = state.last;
        state.open.insert(id, VecDeque::new());
        drop(state);
        let written = self.write(&Request { id, op, timeout_ms });
        if written.is_err() {
            self.state().open.remove(&id);
        }
        written.map(|()| Some(id))
    }

    /// The next answer to the request `id`; none if `until` comes first. The last one ends the request.
    ///
    /// # Errors
    /// The connection has ended, and nothing more has come.
    pub fn next(&self, id: u64, until: Option<Instant>) -> Result<Option<Reply>, Ended> {
        let mut state = self.state();
        loop {
            let found = state.open.get_mut(&id).map(VecDeque::pop_front);
            match found {
                Some(Some(reply @ Reply::Waiting { .. })) => return Ok(Some(reply)),
                Some(Some(reply)) => {
                    if id != 0 {
                        state.open.remove(&id);
                        self.news.notify_all();
                    }
                    return Ok(Some(reply));
                }
                // It has had its answer.
                None => return Ok(None),
                Some(None) => {}
            }
            if let Some(ended) = &state.ended {
                return Err(ended.clone());
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            state = self.wait(state, left);
        }
    }

    /// Waits for news as long as `left`: reads, unless another thread does.
    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        left: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        if state.is_read {
            return self.sleep(state, left);
        }
        state.is_read = true;
        drop(state);
        let mut piece = vec![0; CHUNK];
        let got = self.read(&mut piece, left);
        let mut state = self.state();
        state.is_read = false;
        match got {
            Ok(None) => {}
            Ok(Some(0)) | Err(_) => state.end(Ended::Gone),
            Ok(Some(length)) => state.take(&piece[..length]),
        }
        self.news.notify_all();
        state
    }

    /// Waits for another thread to say that there are news.
    fn sleep<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        left: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match left {
            None => self.news.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(left) => {
                self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// One piece; none if nothing comes in time. Zero bytes are the end.
    fn read(&self, piece: &mut [u8], left: Option<Duration>) -> Result<Option<usize>, Errno> {
        let timeout = left.map(timespec);
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        match recv(&self.socket, piece, RecvFlags::DONTWAIT) {
            Ok((length, _)) => Ok(Some(length)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Nobody waits for the answer to this request any more: dvkd is told, and gives up what the request waits for.
    pub fn forget(&self, id: u64) {
        if self.state().open.remove(&id).is_none() {
            return;
        }
        self.news.notify_all();
        // If the connection has ended, so has the request.
        self.write(&Request { id: u64::MAX, op: Op::Cancel { id }, timeout_ms: None }).ok();
    }

    fn write(&self, request: &Request) -> Result<(), Ended> {
        let mut line = serde_json::to_vec(request).map_err(|_| Ended::Broken)?;
        line.push(b'\n');
        let until = Instant::now() + PATIENCE;
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = &line[..];
        while !rest.is_empty() {
            let piece = &rest[..rest.len().min(CHUNK)];
            match send(&self.socket, piece, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() < until => {
                    let left = timespec(until.saturating_duration_since(Instant::now()));
                    // Whether there is room is seen by the next attempt.
                    poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&left)).ok();
                }
                // Half a line has been written, so nothing can follow.
                Err(_) => {
                    drop(writing);
                    self.state().end(Ended::Gone);
                    self.news.notify_all();
                    return Err(Ended::Gone);
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl State {
    fn end(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
    }

    fn take(&mut self, piece: &[u8]) {
        self.lines.push(piece);
        loop {
            let line = match self.lines.take() {
                Ok(Some(line)) => line,
                Ok(None) => return,
                Err(()) => return self.end(Ended::Broken),
            };
            match serde_json::from_slice::<Told>(&line) {
                Ok(Told { id: 0, reply: Reply::Lost { why } }) => self.end(Ended::Lost(why)),
                Ok(Told { id, reply }) => {
                    if let Some(replies) = self.open.get_mut(&id) {
                        replies.push_back(reply);
                    }
                }
                Err(_) => return self.end(Ended::Broken),
            }
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    // Longer than anybody waits at once.
    time.min(Duration::from_secs(1 << 30)).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Client, BufReader<UnixStream>) {
        let (one, other) = UnixStream::pair().unwrap();
        (Client::new(one.into()), BufReader::new(other))
    }

    fn request(server: &mut BufReader<UnixStream>) -> Request {
        let mut line = String::new();
        server.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn tell(server: &mut BufReader<UnixStream>, id: u64, reply: Reply) {
        let line = serde_json::to_string(&Told { id, reply }).unwrap() + "\n";
        server.get_mut().write_all(line.as_bytes()).unwrap();
    }

    const NEVER: Duration = Duration::from_secs(20);

    #[test]
    fn each_thread_gets_its_own_answers_in_whatever_order_they_come() {
        let (client, mut server) = pair();
        std::thread::scope(|scope| {
            let threads = (0..8_u64).map(|number| {
                let client = &client;
                scope.spawn(move || {
                    let id =
                        client.post(Op::Grant { ttl_ms: number }, None, None).unwrap().unwrap();
                    let reply = client.next(id, Some(Instant::now() + NEVER)).unwrap();
                    assert_eq!(reply, Some(Reply::Leased { lease: number }));
                })
            });
            let threads: Vec<_> = threads.collect();
            let mut requests: Vec<Request> = (0..8).map(|_| request(&mut server)).collect();
            requests.reverse();
            for Request { id, op, .. } in requests {
                let Op::Grant { ttl_ms } = op else { panic!("{op:?}") };
                tell(&mut server, id, Reply::Leased { lease: ttl_ms });
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn what_nobody_waits_for_is_cancelled_and_its_answer_dropped() {
        let (client, mut server) = pair();
        let first = client.post(Op::Leave { group: "g".into() }, Some(5), None).unwrap().unwrap();
        assert_eq!(client.next(first, Some(Instant::now())), Ok(None));
        client.forget(first);
        let second = client.post(Op::Leave { group: "h".into() }, None, None).unwrap().unwrap();
        assert_eq!(request(&mut server).timeout_ms, Some(5));
        assert_eq!(request(&mut server).op, Op::Cancel { id: first });
        tell(&mut server, first, Reply::Done);
        tell(&mut server, second, Reply::Passed);
        assert_eq!(client.next(second, Some(Instant::now() + NEVER)), Ok(Some(Reply::Passed)));
    }

    #[test]
    fn the_end_of_the_session_or_the_connection_is_everybodys_answer() {
        for (line, ended) in [
            ("{\"id\":0,\"reply\":{\"Lost\":{\"why\":\"w\"}}}\n", Ended::Lost("w".into())),
            ("junk\n", Ended::Broken),
            ("", Ended::Gone),
        ] {
            let (client, mut server) = pair();
            let id = client.post(Op::Grant { ttl_ms: 1 }, None, None).unwrap().unwrap();
            server.get_mut().write_all(line.as_bytes()).unwrap();
            if ended == Ended::Gone {
                drop(server);
            }
            assert_eq!(client.next(id, None), Err(ended.clone()));
            assert_eq!(client.post(Op::Grant { ttl_ms: 1 }, None, None), Err(ended));
        }
    }

    #[test]
    fn so_many_requests_are_open_and_the_next_gives_up_or_comes_when_one_is_done() {
        let (client, mut server) = pair();
        let post = |until| client.post(Op::Grant { ttl_ms: 1 }, None, until).unwrap();
        let first = post(None).unwrap();
        (1..OPEN_MAX).for_each(|_| assert!(post(None).is_some()));
        assert_eq!(post(Some(Instant::now())), None);
        tell(&mut server, first, Reply::Done);
        assert_eq!(client.next(first, None), Ok(Some(Reply::Done)));
        assert!(post(Some(Instant::now())).is_some());
    }
}
