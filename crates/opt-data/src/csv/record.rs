//! Lines split into cells, with quotes as RFC 4180 has them.

use std::io::{BufRead, Read};
use std::ops::Range;

use crate::source::from_io;
use crate::{Error, ErrorKind, Result, ResultExt};

/// The longest record: text without line ends must not fill the memory.
const MAX_RECORD: usize = 16 << 20;

/// One record after the other, over one buffer.
pub(super) struct Records<R> {
    source: R,
    delimiter: u8,
    /// Lines read.
    lines: u64,
    bytes: Vec<u8>,
    cells: Vec<Range<usize>>,
}

/// Where in a cell the splitting is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space yet.
    Start,
    Plain,
    Quoted,
    /// After the quote that ends the cell, unless another follows.
    Closed,
}

impl<R: BufRead> Records<R> {
    pub(super) fn new(source: R, delimiter: u8) -> Records<R> {
        Records {
            source,
            delimiter,
            lines: 0,
            bytes: Vec::new(),
            cells: Vec::new(),
        }
    }

    /// The cells of the last record, with the white space and the quotes around them.
    pub(super) fn cells(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.cells.iter().map(|cell| &self.bytes[cell.clone()])
    }

    /// Goes to the next record that is not blank; gives the line it begins on, counted from 1.
    pub(super) fn next(&mut self) -> Result<Option<u64>> {
        loop {
            self.bytes.clear();
            let line = self.lines + 1;
            if !self.line().at(|| format!("line {line}"))? {
                return Ok(None);
            }
            if self.lines == 1 && self.bytes.starts_with(b"\xef\xbb\xbf") {
                self.bytes.drain(..3);
            }
            let blank = |b: &u8| b.is_ascii_whitespace() && *b != self.delimiter;
            if !self.bytes.iter().all(blank) {
                return self
                    .split()
                    .at(|| format!("line {line}"))
                    .map(|()| Some(line));
            }
        }
    }

    /// Appends a line, with its end; false at the end of the file.
    fn line(&mut self) -> Result<bool> {
        let room = MAX_RECORD - self.bytes.len() + 1;
        let mut source = (&mut self.source).take(room as u64);
        let read = source.read_until(b'\n', &mut self.bytes).map_err(from_io)?;
        if self.bytes.len() > MAX_RECORD {
            let message = format!("a record is longer than {MAX_RECORD} bytes");
            return Err(Error::new(ErrorKind::Format, message));
        }
        self.lines += u64::from(read > 0);
        Ok(read > 0)
    }

    fn split(&mut self) -> Result<()> {
        self.cells.clear();
        let (mut start, mut at, mut state) = (0, 0, State::Start);
        loop {
            while let Some(&b) = self.bytes.get(at) {
                state = match state {
                    State::Quoted if b == b'"' => State::Closed,
                    State::Quoted => State::Quoted,
                    // Two quotes within quotes are one of the text.
                    State::Closed if b == b'"' && self.bytes[at - 1] == b'"' => State::Quoted,
                    _ if b == self.delimiter => {
                        self.cells.push(start..at);
                        start = at + 1;
                        State::Start
                    }
                    State::Start if b == b'"' => State::Quoted,
                    State::Start | State::Closed if b.is_ascii_whitespace() => state,
                    State::Closed => {
                        return Err(self.bad("text follows the quote that ends the value"));
                    }
                    State::Start | State::Plain => State::Plain,
                };
                at += 1;
            }
            if state != State::Quoted {
                self.cells.push(start..at);
                return Ok(());
            }
            if !self.line()? {
                return Err(self.bad("a quote is not closed before the file ends"));
            }
        }
    }

    /// An error in the cell that comes next.
    fn bad(&self, message: &str) -> Error {
        Error::new(ErrorKind::Format, message).at(format!("column {}", self.cells.len() + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csv::value::text;

    fn records(delimiter: u8, input: &str) -> Result<Vec<(u64, Vec<String>)>> {
        let mut records = Records::new(input.as_bytes(), delimiter);
        let mut out = Vec::new();
        while let Some(line) = records.next()? {
            let cells = records.cells().map(|c| text(c).unwrap().into_owned());
            out.push((line, cells.collect()));
        }
        Ok(out)
    }

    fn cells(line: u64, cells: &[&str]) -> (u64, Vec<String>) {
        (line, cells.iter().map(|c| c.to_string()).collect())
    }

    #[test]
    fn quotes_hold_delimiters_quotes_and_line_ends() {
        let input = "a, b ,c\r\n\n\"x,y\",\"say \"\"hi\"\"\", \" z \" \n\"two\nlines\",\"\",\n1,2\"3,\"\"\"\"";
        assert_eq!(
            records(b',', input).unwrap(),
            [
                cells(1, &["a", "b", "c"]),
                cells(3, &["x,y", "say \"hi\"", " z "]),
                cells(4, &["two\nlines", "", ""]),
                cells(6, &["1", "2\"3", "\""]),
            ]
        );
        assert_eq!(
            records(b',', "1,\"\n\n\"\r\n2").unwrap(),
            [cells(1, &["1", "\n\n"]), cells(4, &["2"])]
        );
    }

    #[test]
    fn white_space_may_be_the_delimiter() {
        assert_eq!(
            records(b'\t', "\ta\t\n \n\t\t\nb\t \"c\td\"\t3\n").unwrap(),
            [
                cells(1, &["", "a", ""]),
                cells(3, &["", "", ""]),
                cells(4, &["b", "c\td", "3"])
            ]
        );
        assert_eq!(
            records(b' ', "1 \"2 3\" 4\n").unwrap(),
            [cells(1, &["1", "2 3", "4"])]
        );
    }

    #[test]
    fn open_quotes_and_text_after_quotes_are_errors() {
        for (input, message) in [
            (
                "1,2\n3,\"4\n5,6\n",
                "line 2: column 2: a quote is not closed before the file ends",
            ),
            (
                "1,\"2\"3",
                "line 1: column 2: text follows the quote that ends the value",
            ),
            (
                "\"2\" \"",
                "line 1: column 1: text follows the quote that ends the value",
            ),
            (
                "\"",
                "line 1: column 1: a quote is not closed before the file ends",
            ),
        ] {
            assert_eq!(records(b',', input).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_record_without_end_is_an_error() {
        let long = "1".repeat(MAX_RECORD + 1);
        let error = records(b',', &long).unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 1: a record is longer than 16777216 bytes"
        );
        let quoted = format!("1\n\"{}", "ab\n".repeat(MAX_RECORD / 3 + 1));
        let error = records(b',', &quoted).unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 2: a record is longer than 16777216 bytes"
        );
    }
}
