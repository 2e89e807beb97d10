//! Exit codes of `dvs` and `dvs-run`, and failures that choose one.

/// Anything that has no code of its own.
pub(crate) const FAILED: u8 = 1;
/// dvs-run: there is no such node.
pub(crate) const NO_NODE: u8 = 121;
/// dvs lock: it was not one's turn.
pub(crate) const NOT_TAKEN: u8 = 121;
/// dvs-run: there is no such distributed container.
pub(crate) const NO_DC: u8 = 122;
/// dvs-run: no DVS is running here.
pub(crate) const NO_DVS: u8 = 123;
/// dvs-run: the node, or the program's connection to it, is down. The system group cannot be asked.
pub(crate) const NODE_DOWN: u8 = 124;
/// dvs-run itself failed.
pub(crate) const RUN_FAILED: u8 = 125;
/// dvs-run: the command cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// dvs-run: there is no such command.
pub(crate) const NOT_FOUND: u8 = 127;
/// dvs-run: the program was ended by signal `n`: this plus `n`.
pub(crate) const SIGNAL_BASE: u8 = 128;

/// For `--help`.
pub(crate) const RUN_HELP: &str = "\
Exit status:
  0-120    the program's own
  121      there is no such node
  122      there is no such distributed container
  123      no DVS is running here (dvs lab up starts one)
  124      the node is down, or went down while the program ran
  125      dvs-run itself failed
  126      the command cannot be executed
  127      there is no such command
  128+N    the program was ended by signal N
A program may itself exit with one of the codes above; only then is there no message of dvs-run.";

/// A failure with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) code: u8,
    message: String,
}

impl Failure {
    /// As an error on its way to `main`.
    pub(crate) fn error(code: u8, message: impl Into<String>) -> anyhow::Error {
        Failure { code, message: message.into() }.into()
    }
}

/// The exit code for an error.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Failure>().map_or(FAILED, |failure| failure.code)
}
