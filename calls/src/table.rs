//! What a row fixes, and how a call is made and answered by it.

use crate::wire::Wire;
use m3ipc::errno::numbers::EPROTO;
use m3ipc::message::ARGS_SIZE;
use m3ipc::{Endpoint, Errno, Interrupt, IpcError, Message, Note, Part, Sendrec, Tag, Wait};

/// What may be done with a call whose answer got lost with a server or a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Executing it twice is the same as once: it is simply sent again.
    Safe,
    /// It must be executed once: the server keeps its last answer per lane, stored together with
    /// the effect, and a repeated tag gets that answer.
    Once,
}

/// One call: a row of a server's table. The struct itself is the arguments.
pub trait Row: Sized {
    /// Number on the wire.
    const NUMBER: u16;
    /// The call's name, for traces.
    const NAME: &'static str;
    const RETRY: Retry;
    /// What the reply carries in its arguments; more comes as payload.
    type Reply: Wire;
    fn put(&self, args: &mut [u8; ARGS_SIZE]);
    fn get(args: &[u8; ARGS_SIZE]) -> Option<Self>;
}

/// Makes one call and waits for its answer. Returns the reply and the length of what is in `receive`.
///
/// # Errors
/// The server's errno, or the one that stands for the [`m3ipc::IpcError`] if no answer came.
pub fn call<R: Row>(
    port: &(impl Sendrec + ?Sized),
    to: Endpoint,
    row: &R,
    send: &[&[u8]],
    receive: &mut [u8],
    wait: Wait,
) -> Result<(R::Reply, usize), Errno> {
    by_row(row, |message| port.sendrec(to, message, send, receive, wait))
}

/// As [`call`] without a limit, and `note` is told of it.
///
/// # Errors
/// As there.
pub fn call_noted<R: Row>(
    port: &(impl Sendrec + ?Sized),
    to: Endpoint,
    row: &R,
    send: &[&[u8]],
    receive: &mut [u8],
    note: &mut dyn Note,
) -> Result<(R::Reply, usize), Errno> {
    by_row(row, |message| port.sendrec_noted(to, message, send, receive, note))
}

/// As [`call_noted`], a call that an earlier process may have made with tag `tag` ([`Sendrec::repeat`]).
///
/// # Errors
/// As there.
pub fn call_again<R: Row>(
    port: &(impl Sendrec + ?Sized),
    (to, tag): (Endpoint, Tag),
    row: &R,
    send: &[&[u8]],
    receive: &mut [u8],
    note: &mut dyn Note,
) -> Result<(R::Reply, usize), Errno> {
    by_row(row, |message| {
        message.tag = tag;
        port.repeat(to, message, send, receive, note)
    })
}

/// What the answer to a call of row `R` says, which has a payload of `len` bytes.
///
/// # Errors
/// As [`call`].
pub fn answered<R: Row>(answer: &Message, len: usize) -> Result<(R::Reply, usize), Errno> {
    reply::<R>(answer, len)
}

/// As [`call`] without a limit, but `interrupt` cancels the call as a signal does ([`Sendrec::interrupt`]).
///
/// # Errors
/// As there; EINTR if it was interrupted, and not executed.
pub fn call_until<R: Row>(
    port: &(impl Sendrec + ?Sized),
    to: Endpoint,
    row: &R,
    send: &[&[u8]],
    receive: &mut [u8],
    interrupt: &Interrupt,
) -> Result<(R::Reply, usize), Errno> {
    by_row(row, |message| port.sendrec_until(to, message, send, receive, interrupt))
}

/// One of several calls that are made at once.
#[derive(Debug)]
pub struct Each<'a, R> {
    pub row: R,
    pub send: &'a [&'a [u8]],
    pub receive: &'a mut [u8],
}

/// Makes several calls at once, `N` at a time ([`Sendrec::sendrec_all`]). Calls `done` with the outcome of each, as of
/// [`call`], in their order.
pub fn call_all<'a, const N: usize, R: Row>(
    port: &(impl Sendrec + ?Sized),
    to: Endpoint,
    calls: impl IntoIterator<Item = Each<'a, R>>,
    wait: Wait,
    mut done: impl FnMut(Result<(R::Reply, usize), Errno>),
) {
    let mut calls = calls.into_iter().fuse();
    loop {
        let mut count = 0;
        let mut parts: [Part<'a>; N] = core::array::from_fn(|_| {
            let mut message = Message::request(R::NUMBER);
            let Some(Each { row, send, receive }) = calls.next() else {
                return Part { message, send: &[], receive: &mut [], outcome: Ok(0) };
            };
            count += 1;
            row.put(&mut message.args);
            Part { message, send, receive, outcome: Ok(0) }
        });
        let parts = &mut parts[..count];
        if parts.is_empty() {
            return;
        }
        port.sendrec_all(to, parts, wait);
        for Part { message, outcome, .. } in parts {
            done(outcome.map_err(Errno::from).and_then(|len| reply::<R>(message, len)));
        }
    }
}

/// Makes the message of `row`, has it sent, and reads the reply.
fn by_row<R: Row>(
    row: &R,
    send: impl FnOnce(&mut Message) -> Result<usize, IpcError>,
) -> Result<(R::Reply, usize), Errno> {
    let mut message = Message::request(R::NUMBER);
    row.put(&mut message.args);
    let len = send(&mut message)?;
    reply::<R>(&message, len)
}

/// What an answer with a payload of `len` bytes says.
fn reply<R: Row>(answer: &Message, len: usize) -> Result<(R::Reply, usize), Errno> {
    answer.outcome()??;
    let reply = R::Reply::get(&answer.args).ok_or(Errno::new(EPROTO))?;
    Ok((reply, len))
}

/// The reply message of a successful call of row `R`.
pub fn answer<R: Row>(reply: &R::Reply) -> Message {
    const { assert!(R::Reply::SIZE <= ARGS_SIZE, "a reply's arguments must fit the message") };
    let mut message = Message::request(R::NUMBER);
    reply.put(&mut message.args);
    message
}

/// Arguments ride in the message itself; a row for which they do not fit does not compile.
pub(crate) const fn fits(size: usize) {
    assert!(size <= ARGS_SIZE, "the arguments of a row must fit the message");
}

/// Declares the rows of one server and the enum of all of them.
///
/// `$number Name { field: type, … } -> Reply, retry;` becomes a struct `Name` with [`Row`], and a
/// variant of the enum. Arguments that do not fit the message do not compile, nor does a server
/// whose `match` forgets a row.
macro_rules! calls {
    ($(#[$enum_meta:meta])* $vis:vis enum $all:ident = $base:literal;
     $($(#[$meta:meta])* $number:literal $name:ident { $($field:ident: $ty:ty),* $(,)? } -> $reply:ty, $retry:ident;)*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name { $(pub $field: $ty),* }

            const _: () = $crate::table::fits(0 $(+ <$ty as $crate::wire::Wire>::SIZE)*);

            impl $crate::Row for $name {
                const NUMBER: u16 = $base + $number;
                const NAME: &'static str = stringify!($name);
                const RETRY: $crate::Retry = $crate::Retry::$retry;
                type Reply = $reply;
                fn put(&self, args: &mut [u8; m3ipc::message::ARGS_SIZE]) {
                    $crate::wire::Writer::new(args)$(.put(&self.$field))*;
                }
                fn get(args: &[u8; m3ipc::message::ARGS_SIZE]) -> Option<Self> {
                    let mut reader = $crate::wire::Reader::new(args);
                    let row = $name { $($field: reader.get()?),* };
                    reader.done().then_some(row)
                }
            }
        )*

        $(#[$enum_meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $all { $($name($name)),* }

        impl $all {
            /// The call in a request; `None` if its number or arguments are not of this server.
            pub fn decode(message: &m3ipc::Message) -> Option<$all> {
                match message.call {
                    $(<$name as $crate::Row>::NUMBER => <$name as $crate::Row>::get(&message.args).map($all::$name),)*
                    _ => None,
                }
            }

            /// May this request simply be repeated?
            pub fn retry(message: &m3ipc::Message) -> $crate::Retry {
                match message.call {
                    $(<$name as $crate::Row>::NUMBER => <$name as $crate::Row>::RETRY,)*
                    _ => $crate::Retry::Safe,
                }
            }

            /// The call's name, for traces.
            pub fn name(&self) -> &'static str {
                match self { $($all::$name(_) => stringify!($name)),* }
            }
        }
    };
}
