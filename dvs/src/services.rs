//! What the commands that use the system group have in common: whom they ask, how long, and what failures mean.

use crate::exit::{self, Failure as Exit};
use crate::{place, state, token};
use anyhow::{Context, Result, bail};
use dvk::dvkd::admin;
use dvk::dvkd::services::{Client, Failure, Op, Reply, Text};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// At the end of the help of commands that answer.
pub(crate) const HELP: &str = "\
Exit status: 0 done; 1 the answer is no (no such key, another revision); 2 usage; 124 the system group cannot be asked, \
as no majority of its voters is there or this node is cut off from it; 125 anything else.";

/// Whom to ask.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// The node of the lab to ask; every node gives the same answer [default: the first; in a container, its own]
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Give up after: a number with ms, s, m, h or d
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) timeout: Option<Duration>,
    /// Use the keys and names of this container's programs [default: those of the administrator; in a container, its own]
    #[arg(long, value_name = "NAME")]
    pub(crate) dc: Option<String>,
    #[command(flatten)]
    pub(crate) state: state::StateOption,
}

/// A connection to the services, and how to speak of it.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) client: Client,
    timeout_ms: Option<u64>,
}

impl Options {
    /// Connects to the node's dvkd: as the administrator, or in a container as one of its programs.
    ///
    /// # Errors
    /// One sentence: no dvkd, or it has no system group.
    pub(crate) fn connect(&self) -> Result<Services> {
        let is_named = self.node.is_some() || self.dc.is_some() || self.state.is_named();
        let client = match place::own_door().filter(|_| !is_named) {
            Some(door) => Client::enter(&door),
            None => {
                let config = self.state.config_of(self.node.as_deref())?;
                let dc = self.dc.as_deref().map(|name| dc_number(&config.run, name)).transpose()?;
                Client::connect(&config.run, dc)
            }
        };
        let client = client.map_err(|error| Exit::error(exit::NODE_DOWN, format!("{error:#}")))?;
        let timeout = self.timeout.map(|timeout| timeout.as_millis());
        let timeout_ms = timeout.map(|timeout| u64::try_from(timeout).unwrap_or(u64::MAX));
        Ok(Services { client, timeout_ms })
    }
}

impl Services {
    /// Asks; what is waited for is said on standard error.
    ///
    /// # Errors
    /// One sentence, with its exit code.
    pub(crate) fn ask(&mut self, op: Op) -> Result<Reply> {
        self.client.send(op, self.timeout_ms)?;
        self.next()
    }

    /// Asks for something that is not waited for longer than `patience`.
    ///
    /// # Errors
    /// As [`Services::ask`].
    pub(crate) fn ask_for(&mut self, op: Op, patience: Duration) -> Result<()> {
        self.client.send(op, self.timeout_ms)?;
        self.client.receive(Some(patience)).map(drop)
    }

    /// The next answer to what was asked before.
    ///
    /// # Errors
    /// As [`Services::ask`].
    pub(crate) fn next(&mut self) -> Result<Reply> {
        loop {
            match self.client.receive(None)? {
                Some(Reply::Waiting { why }) => eprintln!("dvs: waiting: {why}"),
                Some(Reply::Failed { failure, why }) => return Err(failed(failure, why)),
                Some(Reply::Lost { why }) => return Err(Exit::error(exit::NODE_DOWN, why)),
                Some(reply) => return Ok(reply),
                None => {
                    let why = "dvkd has ended; what was asked may have happened";
                    return Err(Exit::error(exit::NODE_DOWN, why));
                }
            }
        }
    }
}

/// The number of the container `name`.
fn dc_number(run: &Path, name: &str) -> Result<u32> {
    let status =
        admin::status(run).map_err(|error| Exit::error(exit::NODE_DOWN, format!("{error:#}")))?;
    let found = status.dcs.iter().find(|dc| dc.name == name).map(|dc| dc.id);
    found.with_context(|| format!("there is no container {name} on this node"))
}

fn failed(failure: Failure, why: String) -> anyhow::Error {
    let code = match failure {
        Failure::Unavailable | Failure::Fenced => exit::NODE_DOWN,
        Failure::Timeout | Failure::Taken => exit::NOT_TAKEN,
        Failure::Revision(_) | Failure::Broken | Failure::NotHeld => exit::FAILED,
        Failure::Forgotten(_) | Failure::Refused | Failure::Limit => exit::RUN_FAILED,
    };
    let why = match failure {
        Failure::Unavailable => format!("{why}; what was asked may have happened"),
        Failure::Fenced => format!("{why}; nothing was done"),
        _ => why,
    };
    Exit::error(code, why)
}

/// An answer that does not fit the question.
///
/// # Errors
/// Always.
pub(crate) fn unexpected<T>(reply: &Reply) -> Result<T> {
    bail!("dvkd's answer is not understood ({reply:?}); is it another version?")
}

/// Words of the command line as bytes.
pub(crate) fn text(word: &OsStr) -> Text {
    Text(word.as_bytes().to_vec())
}

/// A word, or standard input if it is `-`.
///
/// # Errors
/// It cannot be read, or is too long.
pub(crate) fn text_or_input(word: &OsString) -> Result<Text> {
    if word != "-" {
        return Ok(text(word));
    }
    let mut bytes = Vec::new();
    // One byte more than fits: dvkd then says what the limit is.
    let limit = 64 << 10;
    std::io::Read::read_to_end(
        &mut std::io::Read::take(std::io::stdin().lock(), limit),
        &mut bytes,
    )
    .context("cannot read standard input")?;
    Ok(Text(bytes))
}

/// A time such as `500ms`, `90s` or `10m`.
///
/// # Errors
/// It is none.
pub(crate) fn parse_time(text: &str) -> Result<Duration> {
    match text.strip_suffix("ms").map(str::parse::<u64>) {
        Some(Ok(milliseconds)) if milliseconds > 0 => Ok(Duration::from_millis(milliseconds)),
        Some(_) => bail!("a time is a number with ms, s, m, h or d, such as 10s"),
        None => token::parse_time(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_be_milliseconds() {
        let check = |text: &str, expected: Option<u128>| {
            assert_eq!(parse_time(text).ok().map(|time| time.as_millis()), expected, "{text:?}");
        };
        check("500ms", Some(500));
        check("2s", Some(2000));
        check("0ms", None);
        check("ms", None);
        check("1.5ms", None);
    }
}
