//! Rows for people (aligned columns) or for programs (one JSON object per row).

use anyhow::Result;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Rows under headings.
#[derive(Debug)]
pub(crate) struct Table {
    title: Option<&'static str>,
    headings: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Text(String),
    /// Aligned to the right.
    Number(i64),
}

impl Cell {
    pub(crate) fn text(text: impl Display) -> Cell {
        Cell::Text(text.to_string())
    }

    /// A number; one that JSON cannot carry becomes text.
    pub(crate) fn number(number: impl TryInto<i64> + Display + Copy) -> Cell {
        number.try_into().map_or_else(|_| Cell::text(number), Cell::Number)
    }

    fn shown(&self) -> String {
        match self {
            // Names come from programs: nothing in them may steer the terminal.
            Cell::Text(text) => {
                text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
            }
            Cell::Number(number) => number.to_string(),
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Cell::Text(text) => text.as_str().into(),
            Cell::Number(number) => (*number).into(),
        }
    }
}

impl Table {
    pub(crate) fn new(headings: &'static [&'static str]) -> Table {
        Table { title: None, headings, rows: Vec::new() }
    }

    /// Under a title, as ipcs(1) has it; JSON objects have it as `kind`.
    pub(crate) fn titled(self, title: &'static str) -> Table {
        Table { title: Some(title), ..self }
    }

    /// Adds a row, a cell per heading.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Prints the rows.
    ///
    /// # Errors
    /// Standard output cannot be written (that nobody reads it is no error).
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        say(&if json { self.json() } else { self.text() })
    }

    /// Aligned columns.
    pub(crate) fn text(&self) -> String {
        let heads = self.headings.iter().map(|heading| heading.chars().count());
        let mut widths: Vec<usize> = heads.collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.shown().chars().count());
            }
        }
        let is_number = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            !self.rows.is_empty() && cells.into_iter().all(|cell| matches!(cell, Cell::Number(_)))
        };
        let headings: Vec<String> = self.headings.iter().map(|&heading| heading.into()).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(Cell::shown).collect());
        let mut text =
            self.title.map_or_else(String::new, |title| format!("------ {title} ------\n"));
        for row in std::iter::once(headings).chain(rows) {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if is_number(column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            text.push_str(cells.collect::<Vec<String>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    fn json(&self) -> String {
        let objects = self.rows.iter().map(|row| {
            let names = self.headings.iter().map(|heading| heading.to_lowercase());
            let pairs = names.zip(row.iter().map(Cell::json));
            let kind = self.title.map(|title| ("kind".to_owned(), title.into()));
            let pairs = kind.into_iter().chain(pairs);
            serde_json::Value::Object(pairs.collect()).to_string() + "\n"
        });
        objects.collect()
    }
}

/// Writes to standard output. A reader that has had enough (`| head`) is no failure.
///
/// # Errors
/// It cannot be written.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["PID", "COMMAND"]);
        table.row(vec![Cell::number(100_001), Cell::text("sh -c \x1b[31m")]);
        table.row(vec![Cell::number(2u64), Cell::text("ls")]);
        table
    }

    #[test]
    fn columns_are_aligned_and_nothing_steers_the_terminal() {
        assert_eq!(table().text(), "   PID  COMMAND\n100001  sh -c ?[31m\n     2  ls\n");
        assert_eq!(Table::new(&["A", "B"]).text(), "A  B\n");
    }

    #[test]
    fn each_row_is_one_json_object() {
        let json = table().json();
        let rows: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows[0]["pid"], 100_001);
        assert_eq!(rows[0]["command"], "sh -c \x1b[31m");
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn a_number_too_large_for_json_stays_exact() {
        assert_eq!(Cell::number(u64::MAX), Cell::text(u64::MAX));
    }
}
