//! The user's terminal: raw while a program on another node has it, and as before afterwards.

use anyhow::Result;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in raw mode. As before when dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes standard input's terminal raw: every key goes to the program.
    ///
    /// # Errors
    /// It is no terminal, or gone.
    pub(crate) fn enter() -> Result<RawTerminal> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let raw = RawTerminal { before };
        raw.again()?;
        Ok(raw)
    }

    /// Raw once more, after it was restored for a stop.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(crate) fn again(&self) -> Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        Ok(tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &raw)?)
    }

    /// As before.
    pub(crate) fn restore(&self) {
        // Its terminal may be gone: then there is nothing to restore.
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before).ok();
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Are standard input and standard output a terminal?
pub(crate) fn is_interactive() -> bool {
    isatty(rustix::stdio::stdin()) && isatty(rustix::stdio::stdout())
}

/// Rows and columns of standard output's terminal; 24 × 80 if it does not know.
pub(crate) fn size() -> (u16, u16) {
    match tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}
