//! Lines out of the pieces that a socket brings, none longer than it may be.

/// Bytes that have come and are not a whole line yet.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Up to here there is no end of a line.
    searched: usize,
    longest: usize,
}

impl Lines {
    /// For lines of `longest` bytes at most.
    pub fn new(longest: usize) -> Lines {
        Lines { buffer: Vec::new(), searched: 0, longest }
    }

    /// Takes bytes that have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that have come and are not a whole line yet.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole line, without its end; `None`: more must come.
    ///
    /// # Errors
    /// The line is too long.
    #[expect(clippy::result_unit_err, reason = "there is one reason")]
    pub fn take(&mut self) -> Result<Option<Vec<u8>>, ()> {
        let found = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(end) = found.map(|at| self.searched + at) else {
            self.searched = self.buffer.len();
            return if self.buffer.len() > self.longest { Err(()) } else { Ok(None) };
        };
        if end > self.longest {
            return Err(());
        }
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.truncate(end);
        self.searched = 0;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_are_cut(
            text in "[ab\n]{0,60}",
            cuts in prop::collection::vec(1..7usize, 1..60),
        ) {
            let mut lines = Lines::new(60);
            let (mut rest, mut found) = (text.as_bytes(), Vec::new());
            for cut in cuts.iter().cycle() {
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                lines.push(piece);
                while let Some(line) = lines.take().unwrap() {
                    found.push(String::from_utf8(line).unwrap());
                }
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            let mut wanted: Vec<String> = text.split('\n').map(str::to_owned).collect();
            wanted.pop();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_before_its_end_and_with_it() {
        let check = |text: &str, fits: bool| {
            let mut lines = Lines::new(3);
            lines.push(text.as_bytes());
            assert_eq!(lines.take().is_ok(), fits, "{text:?}");
        };
        check("abc", true);
        check("abc\n", true);
        check("abcd", false);
        check("abcd\n", false);
    }
}
