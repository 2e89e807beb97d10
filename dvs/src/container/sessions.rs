//! The sessions of a container: programs with their streams, served call by call without waiting.
//!
//! A stream is read only when its reader asks, so a reader that stops, stops the program, as a full
//! pipe does. Calls that must wait are kept; `ready`, `reaped` or `gone` answer them.

use super::start::{self, Outcome, Starter, Streams};
use crate::limits::{REQUEST_MAX, SESSIONS_MAX, SESSIONS_PER_OWNER};
use crate::session::Request;
use calls::container::{
    CloseStream, ContainerCall, ERROR, INPUT, OUTPUT, Prepare, PrepareMore, ReadStream, Resize,
    Session as SessionId, Signal, Spawn, Status, WaitExit, WriteInput, step,
};
use calls::{Row, answer};
use dvk::server::{Answer, Answers, Call, Gone};
use m3ipc::errno::numbers::{EBADF, EBUSY, EINVAL, EMFILE, ENOSYS, EPERM, EPIPE, ESRCH};
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{CallId, Endpoint, Errno, IpcError, Message};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno as Os;
use rustix::process::{Pid, Signal as Sig};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// All sessions of this container.
#[derive(Debug)]
pub(crate) struct Sessions {
    table: BTreeMap<u64, Session>,
    next: u64,
    epoll: OwnedFd,
    starter: Starter,
    events: Vec<Event>,
}

/// What pm-server is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Started { pid: i32, command: Vec<u8> },
    Exited { pid: i32, status: i32 },
}

/// One program with its streams.
#[derive(Debug)]
struct Session {
    owner: Endpoint,
    state: State,
    input: Input,
    outputs: [Output; 2],
    terminal: bool,
    waiting: Vec<CallId>,
}

#[derive(Debug)]
enum State {
    /// The request is arriving.
    Preparing {
        request: Vec<u8>,
        total: usize,
    },
    /// The process exists, but has not become the program yet.
    Starting {
        pid: i32,
        call: CallId,
        report: OwnedFd,
        said: Vec<u8>,
        command: Vec<u8>,
    },
    Running {
        pid: i32,
    },
    Ended {
        status: i32,
    },
}

/// What the program reads.
#[derive(Debug, Default)]
struct Input {
    file: Option<OwnedFd>,
    /// A call whose bytes, from the number on, have not been taken yet.
    writing: Option<(CallId, Vec<u8>, usize)>,
}

/// What the program writes.
#[derive(Debug, Default)]
struct Output {
    file: Option<OwnedFd>,
    /// A call that waits for at most so many bytes.
    reading: Option<(CallId, usize)>,
    /// After the program's end: what was in the pipe then. Processes that it left behind may go on
    /// writing for ever; that is not its output.
    left: Option<usize>,
}

/// What an event of the poll thread is about: the session and the stream, or [`REPORT`].
const REPORT: u8 = 3;

impl Sessions {
    /// # Errors
    /// The kernel has no descriptor left.
    pub(crate) fn new(starter: Starter) -> std::io::Result<Sessions> {
        // Numbers are not used again, not even by a container started anew after a crash.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Sessions {
            table: BTreeMap::new(),
            next: now.as_secs() << 24,
            epoll,
            starter,
            events: Vec::new(),
        })
    }

    /// The descriptor that tells which streams are ready; see [`Sessions::ready`].
    pub(crate) fn epoll(&self) -> std::io::Result<OwnedFd> {
        self.epoll.try_clone()
    }

    /// Handles one call.
    pub(crate) fn serve(&mut self, call: &Call<'_>, answers: &mut Answers) {
        let outcome = match ContainerCall::decode(call.message) {
            Some(decoded) => self.handle(decoded, call, answers),
            None => Err(Errno::new(ENOSYS)),
        };
        if let Err(errno) = outcome {
            send(answers, call.id, Message::failed(call.message.call, errno), Vec::new());
        }
    }

    fn handle(
        &mut self,
        decoded: ContainerCall,
        call: &Call<'_>,
        answers: &mut Answers,
    ) -> Result<(), Errno> {
        match decoded {
            ContainerCall::Prepare(row) => self.prepare(row, call, answers),
            ContainerCall::PrepareMore(row) => self.prepare_more(row, call, answers),
            ContainerCall::Spawn(row) => self.spawn(row, call, answers),
            ContainerCall::ReadStream(row) => self.read_stream(row, call, answers),
            ContainerCall::WriteInput(row) => self.write_input(row, call, answers),
            ContainerCall::CloseStream(row) => self.close_stream(row, call, answers),
            ContainerCall::Signal(row) => self.signal(row, call, answers),
            ContainerCall::Resize(row) => self.resize(row, call, answers),
            ContainerCall::WaitExit(row) => self.wait_exit(row, call, answers),
        }
    }

    fn prepare(
        &mut self,
        row: Prepare,
        call: &Call<'_>,
        answers: &mut Answers,
    ) -> Result<(), Errno> {
        let total = usize::try_from(row.total).unwrap_or(usize::MAX);
        if total > REQUEST_MAX || call.payload.len() > total {
            return Err(Errno::new(EINVAL));
        }
        let owner = call.id.source;
        let owned = self.table.values().filter(|session| session.owner == owner).count();
        if owned >= SESSIONS_PER_OWNER || self.table.len() >= SESSIONS_MAX {
            return Err(Errno::new(EMFILE));
        }
        self.next += 1;
        let request = call.payload.to_vec();
        self.table.insert(
            self.next,
            Session {
                owner,
                state: State::Preparing { request, total },
                input: Input::default(),
                outputs: Default::default(),
                terminal: false,
                waiting: Vec::new(),
            },
        );
        reply::<Prepare>(answers, call.id, &SessionId { id: self.next });
        Ok(())
    }

    fn prepare_more(
        &mut self,
        row: PrepareMore,
        call: &Call<'_>,
        answers: &mut Answers,
    ) -> Result<(), Errno> {
        let State::Preparing { request, total } = &mut self.owned(row.id, call)?.0.state else {
            return Err(Errno::new(EBUSY));
        };
        let fits = request.len() + call.payload.len() <= *total;
        if !fits || usize::try_from(row.offset) != Ok(request.len()) {
            return Err(Errno::new(EINVAL));
        }
        request.extend_from_slice(call.payload);
        reply::<PrepareMore>(answers, call.id, &());
        Ok(())
    }

    fn spawn(&mut self, row: Spawn, call: &Call<'_>, answers: &mut Answers) -> Result<(), Errno> {
        let State::Preparing { request, total } = &self.owned(row.id, call)?.0.state else {
            return Err(Errno::new(EBUSY));
        };
        let request = (request.len() == *total).then(|| Request::decode(request)).flatten();
        let request = request.ok_or(Errno::new(EINVAL))?;
        let window = (row.terminal == 1).then_some((row.rows, row.columns));
        let Streams { pid, input, output, error, report } =
            match self.starter.start(&request, call.cred, window) {
                Ok(streams) => streams,
                Err(error) => {
                    self.table.remove(&row.id);
                    reply::<Spawn>(answers, call.id, &Outcome::unprepared(&error).spawned(0));
                    return Ok(());
                }
            };
        let (session, watch) = self.owned(row.id, call)?;
        session.terminal = window.is_some();
        session.input.file = Some(input);
        session.outputs[0].file = Some(output);
        session.outputs[1].file = error;
        let command = request.argv.join(&b' ');
        session.state = State::Starting { pid, call: call.id, report, said: Vec::new(), command };
        let started = session.advance_start(&watch, answers);
        self.events.extend(started);
        Ok(())
    }

    fn read_stream(
        &mut self,
        row: ReadStream,
        call: &Call<'_>,
        answers: &mut Answers,
    ) -> Result<(), Errno> {
        let (session, watch) = self.owned(row.id, call)?;
        let output = session.output(row.stream)?;
        if output.reading.is_some() {
            return Err(Errno::new(EBUSY));
        }
        let size = usize::try_from(row.size).unwrap_or(usize::MAX).clamp(1, PAYLOAD_MAX);
        output.reading = Some((call.id, size));
        session.advance_output(&watch, row.stream, answers);
        Ok(())
    }

    fn write_input(
        &mut self,
        row: WriteInput,
        call: &Call<'_>,
        answers: &mut Answers,
    ) -> Result<(), Errno> {
        let (session, watch) = self.owned(row.id, call)?;
        if session.input.writing.is_some() {
            return Err(Errno::new(EBUSY));
        }
        session.input.writing = Some((call.id, call.payload.to_vec(), 0));
        session.advance_input(&watch, answers);
        Ok(())
    }

    fn close_stream(
        &mut self,
        row: CloseStream,
        call: &Call<'_>,
        answers: &mut Answers,
    ) -> Result<(), Errno> {
        let (session, watch) = self.owned(row.id, call)?;
        match row.stream {
            INPUT => {
                session.input.file = None;
                session.advance_input(&watch, answers);
            }
            stream => {
                session.output(stream)?.file = None;
                session.advance_output(&watch, stream, answers);
            }
        }
        reply::<CloseStream>(answers, call.id, &());
        Ok(())
    }

    fn signal(&mut self, row: Signal, call: &Call<'_>, answers: &mut Answers) -> Result<(), Errno> {
        let pid = self.owned(row.id, call)?.0.pid().ok_or(Errno::new(ESRCH))?;
        super::kill::kill(-pid, row.signal, call.cred.uid)?;
        reply::<Signal>(answers, call.id, &());
        Ok(())
    }

    fn resize(&mut self, row: Resize, call: &Call<'_>, answers: &mut Answers) -> Result<(), Errno> {
        let (session, _) = self.owned(row.id, call)?;
        let Some(file) = session.input.file.as_ref().filter(|_| session.terminal) else {
            return Err(Errno::new(EBADF));
        };
        start::set_window(file, row.rows, row.columns).map_err(|_| Errno::new(EBADF))?;
        reply::<Resize>(answers, call.id, &());
        Ok(())
    }

    fn wait_exit(
        &mut self,
        row: WaitExit,
        call: &Call<'_>,
        answers: &mut Answers,
    ) -> Result<(), Errno> {
        let (session, _) = self.owned(row.id, call)?;
        match session.state {
            State::Preparing { .. } => return Err(Errno::new(ESRCH)),
            State::Ended { status } => reply::<WaitExit>(answers, call.id, &Status { status }),
            _ => session.waiting.push(call.id),
        }
        Ok(())
    }

    /// The caller of a kept call has been interrupted.
    pub(crate) fn cancel(&mut self, id: CallId, answers: &mut Answers) {
        for session in self.table.values_mut() {
            let Some(number) = session.forget(id) else { continue };
            let ended = Message::undelivered(number, IpcError::Interrupted);
            send(answers, id, ended, Vec::new());
        }
    }

    /// A caller is gone: its programs get SIGHUP, as if their terminal had been closed.
    pub(crate) fn gone(&mut self, gone: Gone) {
        let is_gone = |owner: Endpoint| match gone {
            Gone::Endpoint(endpoint) => owner == endpoint,
            Gone::Node(node) => owner.node() == node,
        };
        self.table.retain(|_, session| {
            if !is_gone(session.owner) {
                return true;
            }
            if let Some(pid) = session.pid().and_then(Pid::from_raw) {
                for signal in [Sig::HUP, Sig::CONT] {
                    // It may be gone already, which is what is wanted.
                    rustix::process::kill_process_group(pid, signal).ok();
                }
            }
            false
        });
    }

    /// The poll thread says that a stream of a session is ready (an event's data).
    pub(crate) fn ready(&mut self, data: u64, answers: &mut Answers) {
        let (id, what) = (data >> 2, data.to_le_bytes()[0] & 3);
        let watch = Watch { epoll: &self.epoll, id };
        let Some(session) = self.table.get_mut(&id) else { return };
        match what {
            INPUT => session.advance_input(&watch, answers),
            REPORT => self.events.extend(session.advance_start(&watch, answers)),
            stream => session.advance_output(&watch, stream, answers),
        }
    }

    /// A child has been reaped; `status` is as wait(2) has it.
    pub(crate) fn reaped(&mut self, reaped: i32, status: i32, answers: &mut Answers) {
        let found = self.table.iter_mut().find(|(_, session)| session.pid() == Some(reaped));
        if let Some((id, session)) = found {
            let watch = Watch { epoll: &self.epoll, id: *id };
            // What it said about its start comes first.
            self.events.extend(session.advance_start(&watch, answers));
            session.end(&watch, status, answers);
        }
        self.events.push(Event::Exited { pid: reaped, status });
    }

    /// What has happened to programs since the last time.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The session `id`, if it is the caller's.
    fn owned(&mut self, id: u64, call: &Call<'_>) -> Result<(&mut Session, Watch<'_>), Errno> {
        let session = self.table.get_mut(&id).ok_or(Errno::new(ESRCH))?;
        if session.owner != call.id.source {
            return Err(Errno::new(EPERM));
        }
        Ok((session, Watch { epoll: &self.epoll, id }))
    }
}

impl Session {
    /// The program's process, while there is one.
    fn pid(&self) -> Option<i32> {
        match self.state {
            State::Starting { pid, .. } | State::Running { pid } => Some(pid),
            State::Preparing { .. } | State::Ended { .. } => None,
        }
    }

    fn output(&mut self, stream: u8) -> Result<&mut Output, Errno> {
        match stream {
            OUTPUT => Ok(&mut self.outputs[0]),
            ERROR => Ok(&mut self.outputs[1]),
            _ => Err(Errno::new(EBADF)),
        }
    }

    /// Reads how the start went. That the report is closed without a word means that the process
    /// has become the program.
    fn advance_start(&mut self, watch: &Watch<'_>, answers: &mut Answers) -> Option<Event> {
        let State::Starting { pid, call, report, said, command } = &mut self.state else {
            return None;
        };
        if read_to_end(report, said) == Err(Os::AGAIN) {
            // The kernel refuses only what is watched already.
            watch.reading(report, REPORT).ok();
            return None;
        }
        let (pid, call, command) = (*pid, *call, std::mem::take(command));
        let spawned = Outcome::decode(said).spawned(pid);
        self.state = State::Running { pid };
        reply::<Spawn>(answers, call, &spawned);
        (spawned.step == step::RUNNING).then_some(Event::Started { pid, command })
    }

    fn end(&mut self, watch: &Watch<'_>, status: i32, answers: &mut Answers) {
        self.state = State::Ended { status };
        for waiting in self.waiting.drain(..) {
            reply::<WaitExit>(answers, waiting, &Status { status });
        }
        for output in &mut self.outputs {
            output.left = Some(output.file.as_ref().map_or(0, waiting_bytes));
        }
        self.advance_output(watch, OUTPUT, answers);
        self.advance_output(watch, ERROR, answers);
    }

    /// Answers the call that reads `stream`, if it can be answered now.
    fn advance_output(&mut self, watch: &Watch<'_>, stream: u8, answers: &mut Answers) {
        let Ok(output) = self.output(stream) else { return };
        let Some((call, size)) = output.reading else { return };
        let Some(bytes) = output.take(size, |file| watch.reading(file, stream)) else { return };
        output.reading = None;
        send(answers, call, answer::<ReadStream>(&()), bytes);
    }

    /// Answers the call that writes, if all its bytes can be taken now.
    fn advance_input(&mut self, watch: &Watch<'_>, answers: &mut Answers) {
        let Some((call, bytes, at)) = &mut self.input.writing else { return };
        let call = *call;
        let outcome = match &self.input.file {
            None => Err(Os::PIPE),
            Some(file) => write_all(file, bytes, at).or_else(|error| match error {
                Os::AGAIN => watch.writing(file, INPUT).and(Err(Os::AGAIN)),
                other => Err(other),
            }),
        };
        let message = match outcome {
            Err(Os::AGAIN) => return,
            Ok(()) => answer::<WriteInput>(&()),
            // Closed by the program; a terminal says EIO.
            Err(_) => Message::failed(WriteInput::NUMBER, Errno::new(EPIPE)),
        };
        self.input.writing = None;
        send(answers, call, message, Vec::new());
    }

    /// Forgets call `id`; returns its number if it was kept here.
    fn forget(&mut self, id: CallId) -> Option<u16> {
        if self.input.writing.take_if(|(call, ..)| *call == id).is_some() {
            return Some(WriteInput::NUMBER);
        }
        for output in &mut self.outputs {
            if output.reading.take_if(|(call, _)| *call == id).is_some() {
                return Some(ReadStream::NUMBER);
            }
        }
        let at = self.waiting.iter().position(|call| *call == id)?;
        self.waiting.remove(at);
        Some(WaitExit::NUMBER)
    }
}

impl Output {
    /// At most `size` bytes; none at the end. `None`: not yet, `watch` will tell.
    fn take(
        &mut self,
        size: usize,
        watch: impl FnOnce(&OwnedFd) -> Result<(), Os>,
    ) -> Option<Vec<u8>> {
        let size = self.left.map_or(size, |left| size.min(left));
        let mut bytes = vec![0; size];
        let outcome = match &self.file {
            Some(file) if size > 0 => {
                match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut bytes)) {
                    Err(Os::AGAIN) if self.left.is_none() => watch(file).and(Err(Os::AGAIN)),
                    outcome => outcome,
                }
            }
            _ => Ok(0),
        };
        let count = match outcome {
            Err(Os::AGAIN) if self.left.is_none() => return None,
            Ok(count) => count,
            // A terminal that all programs have closed says EIO.
            Err(_) => 0,
        };
        if count == 0 {
            self.file = None;
        }
        self.left = self.left.map(|left| left - count);
        bytes.truncate(count);
        Some(bytes)
    }
}

/// Asks epoll(7) to tell, once, about a stream of a session.
struct Watch<'a> {
    epoll: &'a OwnedFd,
    id: u64,
}

impl Watch<'_> {
    fn reading(&self, file: &OwnedFd, what: u8) -> Result<(), Os> {
        self.once(file, what, EventFlags::IN)
    }

    fn writing(&self, file: &OwnedFd, what: u8) -> Result<(), Os> {
        self.once(file, what, EventFlags::OUT)
    }

    fn once(&self, file: &OwnedFd, what: u8, flags: EventFlags) -> Result<(), Os> {
        let data = EventData::new_u64(self.id << 2 | u64::from(what));
        let flags = flags | EventFlags::ONESHOT;
        match epoll::add(self.epoll, file, data, flags) {
            Err(Os::EXIST) => epoll::modify(self.epoll, file, data, flags),
            outcome => outcome,
        }
    }
}

fn read_to_end(file: &OwnedFd, said: &mut Vec<u8>) -> Result<(), Os> {
    let mut bytes = [0; 64];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut bytes))? {
            0 => return Ok(()),
            count => said.extend_from_slice(&bytes[..count]),
        }
    }
}

fn write_all(file: &OwnedFd, bytes: &[u8], at: &mut usize) -> Result<(), Os> {
    while *at < bytes.len() {
        *at += rustix::io::retry_on_intr(|| rustix::io::write(file, &bytes[*at..]))?;
    }
    Ok(())
}

/// Bytes that can be read now.
fn waiting_bytes(file: &OwnedFd) -> usize {
    rustix::io::ioctl_fionread(file).ok().and_then(|count| count.try_into().ok()).unwrap_or(0)
}

fn reply<R: Row>(answers: &mut Answers, to: CallId, reply: &R::Reply) {
    send(answers, to, answer::<R>(reply), Vec::new());
}

fn send(answers: &mut Answers, to: CallId, message: Message, payload: Vec<u8>) {
    answers.list.push(Answer { to, message, payload });
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::errno::numbers::EINTR;
    use m3ipc::{Cred, NodeId, Tag};
    use rustix::fs::OFlags;
    use rustix::pipe::{PipeFlags, pipe_with};

    /// Sessions with one running program, made of pipes; the other ends are the test's.
    struct Bench {
        sessions: Sessions,
        id: u64,
        sequence: u64,
        answers: Answers,
        program_input: Option<OwnedFd>,
        program_output: Option<OwnedFd>,
    }

    const OWNER: Endpoint = Endpoint::new(NodeId(1), 7, 1);
    const STRANGER: Endpoint = Endpoint::new(NodeId(2), 7, 1);
    /// A number that no process has: above the kernel's limit.
    const PID: i32 = 1 << 30;

    impl Bench {
        fn new() -> Bench {
            let mut sessions = Sessions::new(Starter::default()).unwrap();
            let (program_input, input) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let (output, program_output) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            for fd in [&input, &output, &program_output] {
                rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK).unwrap();
            }
            let session = Session {
                owner: OWNER,
                state: State::Running { pid: PID },
                input: Input { file: Some(input), writing: None },
                outputs: [Output { file: Some(output), ..Output::default() }, Output::default()],
                terminal: false,
                waiting: Vec::new(),
            };
            sessions.table.insert(1, session);
            Bench {
                sessions,
                id: 1,
                sequence: 0,
                answers: Answers::default(),
                program_input: Some(program_input),
                program_output: Some(program_output),
            }
        }

        /// Makes a call and returns its answer, if it is there at once.
        fn call<R: Row>(&mut self, from: Endpoint, row: &R, payload: &[u8]) -> Option<Answer> {
            self.sequence += 1;
            let id = CallId { source: from, tag: Tag::new(0, self.sequence) };
            let mut message = Message::request(R::NUMBER);
            row.put(&mut message.args);
            let cred = Cred::new(1, 1000, 1000);
            let call = Call { id, cred: &cred, message: &message, payload };
            self.sessions.serve(&call, &mut self.answers);
            self.answer()
        }

        fn read(&mut self) -> Option<Answer> {
            let row = ReadStream { id: self.id, stream: OUTPUT, size: 100_000 };
            self.call(OWNER, &row, &[])
        }

        /// The one answer that there is now.
        fn answer(&mut self) -> Option<Answer> {
            assert!(self.answers.list.len() <= 1, "{:?}", self.answers);
            self.answers.list.pop()
        }

        /// What epoll(7) has to tell is told.
        fn poll(&mut self) -> Option<Answer> {
            let mut ready = Vec::with_capacity(8);
            let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let epoll = self.sessions.epoll().unwrap();
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut ready), Some(&none)).unwrap();
            for event in ready {
                self.sessions.ready(event.data.u64(), &mut self.answers);
            }
            self.answer()
        }

        fn write(&self, bytes: &[u8]) {
            rustix::io::write(self.program_output.as_ref().unwrap(), bytes).unwrap();
        }

        fn end(&mut self, status: i32) -> Option<Answer> {
            self.sessions.reaped(PID, status, &mut self.answers);
            self.answer()
        }
    }

    fn errno(answer: Option<Answer>) -> i32 {
        answer.unwrap().message.outcome().unwrap().map_or_else(|errno| errno.errno, |()| 0)
    }

    fn payload(answer: Option<Answer>) -> Vec<u8> {
        let answer = answer.unwrap();
        assert_eq!(answer.message.outcome(), Ok(Ok(())));
        answer.payload
    }

    #[test]
    fn output_is_there_at_once_or_when_it_comes() {
        let mut bench = Bench::new();
        bench.write(b"first");
        assert_eq!(payload(bench.read()), b"first");
        assert!(bench.read().is_none());
        assert_eq!(errno(bench.read()), EBUSY, "one reader at a time");
        assert!(bench.poll().is_none());
        bench.write(b"second");
        assert_eq!(payload(bench.poll()), b"second");
        assert!(bench.read().is_none());
        bench.program_output = None;
        assert_eq!(payload(bench.poll()), b"", "the end");
        assert_eq!(payload(bench.read()), b"", "for ever");
    }

    #[test]
    fn after_the_programs_end_only_what_it_had_written_is_its_output() {
        let mut bench = Bench::new();
        bench.write(b"last words");
        assert!(bench.end(3 << 8).is_none());
        // Somebody whom the program has left behind goes on.
        bench.write(b" and more");
        assert_eq!(payload(bench.read()), b"last words");
        assert_eq!(payload(bench.read()), b"");
    }

    #[test]
    fn a_reader_that_waits_hears_of_the_programs_end() {
        let mut bench = Bench::new();
        assert!(bench.read().is_none());
        assert_eq!(payload(bench.end(0)), b"");
        let status = bench.call(OWNER, &WaitExit { id: 1 }, &[]);
        assert_eq!(errno(status), 0);
    }

    #[test]
    fn all_who_wait_are_told_the_status() {
        let mut bench = Bench::new();
        assert!(bench.call(OWNER, &WaitExit { id: 1 }, &[]).is_none());
        assert!(bench.call(OWNER, &WaitExit { id: 1 }, &[]).is_none());
        bench.sessions.reaped(PID, 9, &mut bench.answers);
        let statuses: Vec<Option<Status>> =
            bench.answers.list.drain(..).map(|a| calls::wire::Wire::get(&a.message.args)).collect();
        assert_eq!(statuses, [Some(Status { status: 9 }); 2]);
        assert_eq!(bench.sessions.events(), [Event::Exited { pid: PID, status: 9 }]);
    }

    #[test]
    fn input_is_taken_when_there_is_room_for_all_of_it() {
        let mut bench = Bench::new();
        let bytes = vec![7; 100_000];
        assert!(bench.call(OWNER, &WriteInput { id: 1 }, &bytes).is_none(), "a pipe holds 64 KiB");
        let mut read = Vec::new();
        let mut answer = None;
        while read.len() < bytes.len() {
            let mut some = [0; 50_000];
            let program = bench.program_input.as_ref().unwrap();
            let count = rustix::io::read(program, &mut some).unwrap();
            read.extend_from_slice(&some[..count]);
            answer = answer.or(bench.poll());
        }
        assert_eq!(errno(answer), 0);
        assert_eq!(read, bytes);
        bench.program_input = None;
        assert_eq!(errno(bench.call(OWNER, &WriteInput { id: 1 }, b"x")), EPIPE);
    }

    #[test]
    fn closing_the_input_is_the_end_of_file_for_the_program() {
        let mut bench = Bench::new();
        assert_eq!(errno(bench.call(OWNER, &CloseStream { id: 1, stream: INPUT }, &[])), 0);
        let program = bench.program_input.as_ref().unwrap();
        assert_eq!(rustix::io::read(program, &mut [0; 1]), Ok(0));
        assert_eq!(errno(bench.call(OWNER, &CloseStream { id: 1, stream: 9 }, &[])), EBADF);
    }

    #[test]
    fn a_session_is_its_makers_only() {
        let mut bench = Bench::new();
        let read = ReadStream { id: 1, stream: OUTPUT, size: 1 };
        let signal = Signal { id: 1, signal: 9 };
        assert_eq!(errno(bench.call(STRANGER, &read, &[])), EPERM);
        assert_eq!(errno(bench.call(STRANGER, &signal, &[])), EPERM);
        assert_eq!(errno(bench.call(STRANGER, &WriteInput { id: 1 }, b"x")), EPERM);
        assert_eq!(errno(bench.call(OWNER, &WaitExit { id: 2 }, &[])), ESRCH);
        assert_eq!(errno(bench.call(OWNER, &Resize { id: 1, rows: 1, columns: 1 }, &[])), EBADF);
    }

    #[test]
    fn a_given_up_call_ends_once() {
        let mut bench = Bench::new();
        assert!(bench.read().is_none());
        let id = CallId { source: OWNER, tag: Tag::new(0, bench.sequence) };
        bench.sessions.cancel(id, &mut bench.answers);
        let answer = bench.answer().unwrap();
        assert_eq!(answer.message.outcome(), Err(IpcError::Interrupted));
        assert_eq!(Errno::from(IpcError::Interrupted).errno, EINTR);
        bench.sessions.cancel(id, &mut bench.answers);
        assert!(bench.answer().is_none());
        bench.write(b"kept for the next one");
        assert_eq!(payload(bench.read()), b"kept for the next one");
    }

    #[test]
    fn the_sessions_of_who_is_gone_are_closed() {
        let mut bench = Bench::new();
        bench.sessions.gone(Gone::Endpoint(STRANGER));
        bench.sessions.gone(Gone::Node(NodeId(2)));
        assert_eq!(bench.sessions.table.len(), 1);
        bench.sessions.gone(Gone::Node(NodeId(1)));
        assert!(bench.sessions.table.is_empty());
        let program = bench.program_input.as_ref().unwrap();
        assert_eq!(rustix::io::read(program, &mut [0; 1]), Ok(0));
    }

    #[test]
    fn a_request_arrives_in_order_and_whole_or_not_at_all() {
        let mut bench = Bench::new();
        let begin = |bench: &mut Bench, total: u32, first: &[u8]| -> u64 {
            let answer = bench.call(OWNER, &Prepare { total }, first).unwrap();
            calls::wire::Wire::get(&answer.message.args).map(|SessionId { id }| id).unwrap()
        };
        let id = begin(&mut bench, 4, b"ab");
        let spawn = Spawn { id, terminal: 0, rows: 0, columns: 0 };
        assert_eq!(errno(bench.call(OWNER, &spawn, &[])), EINVAL, "half a request");
        let mut more = |offset: u32, bytes: &[u8]| {
            errno(bench.call(OWNER, &PrepareMore { id, offset }, bytes))
        };
        assert_eq!(more(1, b"c"), EINVAL);
        assert_eq!(more(2, b"cde"), EINVAL);
        assert_eq!(more(2, b"c"), 0);
        assert_eq!(more(3, b"d"), 0);
        assert_eq!(errno(bench.call(OWNER, &spawn, &[])), EINVAL, "not a request");
        let too_long = u32::try_from(REQUEST_MAX).unwrap() + 1;
        assert_eq!(errno(bench.call(OWNER, &Prepare { total: too_long }, &[])), EINVAL);
        assert_eq!(errno(bench.call(OWNER, &Prepare { total: 1 }, b"ab")), EINVAL);
        for _ in 2..SESSIONS_PER_OWNER {
            begin(&mut bench, 4, b"ab");
        }
        assert_eq!(errno(bench.call(OWNER, &Prepare { total: 4 }, &[])), EMFILE);
        assert_ne!(begin_of(&mut bench, STRANGER), 0, "the others are not disturbed");
    }

    fn begin_of(bench: &mut Bench, from: Endpoint) -> u64 {
        let answer = bench.call(from, &Prepare { total: 4 }, &[]).unwrap();
        calls::wire::Wire::get(&answer.message.args).map(|SessionId { id }| id).unwrap()
    }

    #[test]
    fn a_call_that_is_none_is_refused() {
        let mut bench = Bench::new();
        let id = CallId { source: OWNER, tag: Tag::new(0, 1) };
        let message = Message::request(0x4ff);
        let call = Call { id, cred: &Cred::ROOT, message: &message, payload: &[] };
        bench.sessions.serve(&call, &mut bench.answers);
        assert_eq!(errno(bench.answer()), ENOSYS);
    }
}
