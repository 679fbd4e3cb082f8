//! The memory that reading a table takes. In a file of its own: the allocator counts for the whole
//! process.

use std::io::Read;

use opt_data::{Csv, Dataset};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const FEATURES: usize = 7;

/// A table that is written as it is read, so that its text is never in memory.
struct Lines {
    rows: usize,
    next: usize,
    line: Vec<u8>,
    at: usize,
    given: usize,
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.line.len() {
            if self.next == self.rows {
                return Ok(0);
            }
            self.line.clear();
            for column in 0..FEATURES {
                let value = (self.next * FEATURES + column) % 1000;
                self.line.extend(format!("{value}.125000,").bytes());
            }
            let colour = ["red", "green", "blue"][self.next % 3];
            self.line
                .extend(format!("{colour},{}\n", self.next % 10).bytes());
            self.next += 1;
            self.at = 0;
        }
        let n = buffer.len().min(self.line.len() - self.at);
        buffer[..n].copy_from_slice(&self.line[self.at..self.at + n]);
        self.at += n;
        self.given += n;
        Ok(n)
    }
}

/// Reads a table of many rows; gives its text's bytes, its tensors' bytes, and the most memory
/// that was in use at a time.
fn measure(rows: usize) -> (usize, usize, usize) {
    let mut lines = Lines {
        rows,
        next: 0,
        line: Vec::new(),
        at: 0,
        given: 0,
    };
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let csv = Csv::new().category(FEATURES);
    let data = csv.read_from(&mut lines, "lines").unwrap();
    let peak = ALLOCATOR.peak_usage() - before;
    assert_eq!(data.len(), rows);
    assert_eq!(data.fields()[0].shape(), [rows, FEATURES + 1]);
    let result = data.fields().iter().map(|f| f.size_in_bytes()).sum();
    (lines.given, result, peak)
}

#[test]
fn memory_beyond_the_tensors_does_not_grow_with_the_text() {
    const SLACK: usize = 2 << 20;
    for (rows, text) in [(10_000, 700_000), (900_000, 64 << 20)] {
        let (given, result, peak) = measure(rows);
        assert!(given >= text, "{given} bytes of text");
        // The tensors, and what they are assembled from.
        assert!(
            peak <= 2 * result + SLACK,
            "{rows} rows: a peak of {peak} bytes for tensors of {result}"
        );
        println!("{given} bytes of text, tensors of {result}, peak {peak}");
    }
}
