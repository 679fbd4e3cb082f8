//! Models side by side: a table for the terminal, Markdown or JSON.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use opt_core::data::Dataset;
use opt_core::{Backend, Error, ErrorKind, Graph, Result, ResultExt};
use serde::{Deserialize, Serialize};

use crate::{Candidate, LatencyBench, ModelCost, evaluate};

/// A model's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The model's name.
    pub name: String,
    /// The share of test examples predicted as their class, in [0, 1]; `None` where it was not
    /// measured.
    pub accuracy: Option<f64>,
    /// The number of parameters ([`ModelCost::parameters`]).
    pub parameters: u64,
    /// Bytes on disk ([`ModelCost::bytes`]).
    pub bytes: u64,
    /// Multiply-adds of one example ([`ModelCost::macs`]).
    pub macs: u64,
    /// The median time of one run on one example, in microseconds; `None` where it was not timed.
    pub latency_us: Option<f64>,
}

/// Models side by side; the first is the one that the others are compared with.
///
/// A ratio stands only where both figures were measured: without a measured latency no model is
/// called faster, and one that became slower is said to be slower. Latencies within 3 % of each
/// other are called the same.
///
/// ```
/// use opt_eval::{Comparison, Row};
///
/// let row = |name: &str, accuracy, bytes, latency_us| Row {
///     name: name.into(),
///     accuracy: Some(accuracy),
///     parameters: bytes / 4,
///     bytes,
///     macs: bytes * 10,
///     latency_us,
/// };
/// let table = Comparison::new(vec![
///     row("teacher", 0.99, 400_000, Some(90.0)),
///     row("student", 0.98, 4_000, Some(30.0)),
///     row("pruned", 0.985, 100_000, None),
/// ]);
/// println!("{table}");
/// let markdown = table.to_markdown();
/// assert!(markdown.contains("4,000 (100x smaller)"));
/// assert!(markdown.contains("30.0 us (3.00x faster)"));
/// assert_eq!(Comparison::from_json(&table.to_json()?)?, table);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Comparison {
    rows: Vec<Row>,
}

/// What [`compare`] measures, and how.
#[derive(Debug, Clone)]
pub struct CompareOptions {
    batch_size: usize,
    latency: Option<LatencyBench>,
}

impl Default for CompareOptions {
    fn default() -> CompareOptions {
        CompareOptions {
            batch_size: 256,
            latency: Some(LatencyBench::new()),
        }
    }
}

impl CompareOptions {
    /// Batches of 256 for accuracy, and latency as [`LatencyBench::new`] measures it.
    pub fn new() -> CompareOptions {
        CompareOptions::default()
    }

    /// Examples evaluated at once.
    #[must_use]
    pub fn batch_size(mut self, batch_size: usize) -> CompareOptions {
        self.batch_size = batch_size;
        self
    }

    /// How latency is measured; `None` is not at all.
    #[must_use]
    pub fn latency(mut self, bench: impl Into<Option<LatencyBench>>) -> CompareOptions {
        self.latency = bench.into();
        self
    }
}

/// Measures classifiers on a test set: accuracy, parameters, bytes and multiply-adds for each,
/// and their latencies on the first example in one go, taking turns.
///
/// # Errors
/// If there are no models, and those of [`evaluate`], [`ModelCost::of_one`] and
/// [`LatencyBench::measure`], with the model's name in the path.
pub fn compare(
    models: &[(&str, &Graph)],
    test: &dyn Dataset,
    backend: &dyn Backend,
    options: &CompareOptions,
) -> Result<Comparison> {
    if models.is_empty() {
        return Err(Error::invalid("no models to compare"));
    }
    let mut rows = Vec::with_capacity(models.len());
    for &(name, graph) in models {
        let place = || name.to_string();
        let accuracy = evaluate(graph, test, backend, options.batch_size)
            .at(place)?
            .accuracy();
        let cost = ModelCost::of_one(graph).at(place)?;
        rows.push(Row {
            name: name.to_string(),
            accuracy: Some(accuracy),
            parameters: cost.parameters,
            bytes: cost.bytes,
            macs: cost.macs,
            latency_us: None,
        });
    }
    if let Some(bench) = &options.latency {
        let example = test.batch(&[0])?;
        let candidates: Vec<Candidate<'_>> = models
            .iter()
            .map(|&(name, graph)| Candidate {
                name,
                graph,
                inputs: &example[..graph.inputs().len()],
            })
            .collect();
        let measured = bench.measure(backend, &candidates)?;
        for (row, latency) in rows.iter_mut().zip(measured) {
            row.latency_us = Some(latency.median_us());
        }
    }
    Ok(Comparison { rows })
}

impl Comparison {
    /// A comparison of rows, the reference first.
    pub fn new(rows: Vec<Row>) -> Comparison {
        Comparison { rows }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The row of a name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The rows as a JSON list of `{name, accuracy, parameters, bytes, macs, latency_us}`; a
    /// figure that was not measured is `null`.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if an accuracy or a latency is NaN or infinite: JSON has no such
    /// numbers.
    pub fn to_json(&self) -> Result<String> {
        for row in &self.rows {
            let mut measured = row.accuracy.iter().chain(&row.latency_us);
            if let Some(value) = measured.find(|v| !v.is_finite()) {
                let message = format!("a figure is {value}");
                return Err(Error::new(ErrorKind::Data, message).at(row.name.clone()));
            }
        }
        serde_json::to_string_pretty(&self.rows)
            .map_err(|e| Error::new(ErrorKind::Format, e.to_string()).with_source(e))
    }

    /// Reads what [`Comparison::to_json`] wrote.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if the text is something else; the message names line and column.
    pub fn from_json(json: &str) -> Result<Comparison> {
        let rows = serde_json::from_str(json)
            .map_err(|e| Error::new(ErrorKind::Format, e.to_string()).with_source(e))?;
        Ok(Comparison { rows })
    }

    /// The table in GitHub's Markdown.
    pub fn to_markdown(&self) -> String {
        let mut out = format!("| {} |\n", HEADER.join(" | "));
        out.push_str("| --- | ---: | ---: | ---: | ---: | ---: |\n");
        for row in &self.rows {
            let mut cells = self.cells(row);
            // A name is the user's text: it must not break the table or start a tag.
            cells[0] = cells[0]
                .replace('\\', "\\\\")
                .replace('|', "\\|")
                .replace('<', "&lt;")
                .replace(['\n', '\r'], " ");
            out.push_str(&format!("| {} |\n", cells.join(" | ")));
        }
        out
    }

    fn cells(&self, row: &Row) -> [String; 6] {
        // The first row is compared with nothing.
        let first = self.rows.first().filter(|first| !std::ptr::eq(*first, row));
        let counted = |of: fn(&Row) -> u64, less: &str, more: &str| {
            let value = of(row);
            let change = first.and_then(|first| ratio(of(first) as f64, value as f64, less, more));
            with_change(thousands(value), change)
        };
        let accuracy = row.accuracy.map(|accuracy| {
            let change = first.and_then(|first| first.accuracy).map(|before| {
                let points = (accuracy - before) * 100.0;
                // No "-0.00".
                let points = (points * 100.0).round() / 100.0 + 0.0;
                format!("{points:+.2}")
            });
            with_change(format!("{:.2} %", accuracy * 100.0), change)
        });
        let latency = row.latency_us.map(|us| {
            let before = first.and_then(|first| first.latency_us);
            let change = before.and_then(|before| {
                let [less, more] = FASTER_SLOWER;
                ratio(before, us, less, more)
            });
            with_change(format!("{us:.1} us"), change)
        });
        let missing = || "-".to_string();
        [
            row.name.clone(),
            accuracy.unwrap_or_else(missing),
            counted(|r| r.parameters, "fewer", "more"),
            counted(|r| r.bytes, "smaller", "larger"),
            counted(|r| r.macs, "fewer", "more"),
            latency.unwrap_or_else(missing),
        ]
    }
}

const HEADER: [&str; 6] = [
    "model",
    "accuracy",
    "parameters",
    "bytes",
    "multiply-adds",
    "median latency",
];

fn with_change(value: String, change: Option<String>) -> String {
    match change {
        Some(change) => format!("{value} ({change})"),
        None => value,
    }
}

/// The words for a latency that changed.
pub(crate) const FASTER_SLOWER: [&str; 2] = ["faster", "slower"];

/// Medians of equal models differ by a few per cent from one measurement to the next; sizes are
/// exact, and shown to two places.
fn same_below(less: &str) -> f64 {
    match less == FASTER_SLOWER[0] {
        true => 1.03,
        false => 1.005,
    }
}

/// How `before` became `after`, in words; `None` where there is no ratio.
pub(crate) fn ratio(before: f64, after: f64, less: &str, more: &str) -> Option<String> {
    let positive = |v: f64| v.is_finite() && v > 0.0;
    if !positive(before) || !positive(after) {
        return None;
    }
    let (factor, word) = if after <= before {
        (before / after, less)
    } else {
        (after / before, more)
    };
    Some(match factor {
        _ if factor < same_below(less) => "same".to_string(),
        _ if factor < 9.995 => format!("{factor:.2}x {word}"),
        _ if factor < 99.95 => format!("{factor:.1}x {word}"),
        _ => format!("{factor:.0}x {word}"),
    })
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl fmt::Display for Comparison {
    /// The table for a terminal, without colours.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(HEADER);
        for row in &self.rows {
            table.add_row(self.cells(row));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        fmt::Display::fmt(&table, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Echo, Fields, echo};
    use opt_core::Tensor;

    fn row(name: &str, accuracy: Option<f64>, size: u64, latency_us: Option<f64>) -> Row {
        Row {
            name: name.into(),
            accuracy,
            parameters: size,
            bytes: size * 4,
            macs: size * 10,
            latency_us,
        }
    }

    #[test]
    fn a_speed_up_needs_two_times_and_slower_is_slower() {
        let table = Comparison::new(vec![
            row("teacher", Some(0.9944), 150_000, Some(40.0)),
            row("fast", Some(0.9889), 1_000, Some(12.5)),
            row("slow", Some(0.9944), 75_000, Some(50.0)),
            row("untimed", None, 300_000, None),
        ]);
        let markdown = table.to_markdown();
        let lines: Vec<&str> = markdown.lines().collect();
        assert_eq!(
            lines[2..],
            [
                "| teacher | 99.44 % | 150,000 | 600,000 | 1,500,000 | 40.0 us |",
                "| fast | 98.89 % (-0.55) | 1,000 (150x fewer) | 4,000 (150x smaller) \
                 | 10,000 (150x fewer) | 12.5 us (3.20x faster) |",
                "| slow | 99.44 % (+0.00) | 75,000 (2.00x fewer) | 300,000 (2.00x smaller) \
                 | 750,000 (2.00x fewer) | 50.0 us (1.25x slower) |",
                "| untimed | - | 300,000 (2.00x more) | 1,200,000 (2.00x larger) \
                 | 3,000,000 (2.00x more) | - |",
            ]
        );
        let terminal = table.to_string();
        assert!(terminal.contains("50.0 us (1.25x slower)"));
        assert_eq!(terminal.matches("faster").count(), 1);
    }

    #[test]
    fn no_ratio_to_an_untimed_reference_or_to_nothing() {
        let table = Comparison::new(vec![
            row("reference", None, 0, None),
            row("timed", Some(0.5), 10, Some(1.0)),
        ]);
        let last = table.to_markdown().lines().last().unwrap().to_string();
        assert_eq!(last, "| timed | 50.00 % | 10 | 40 | 100 | 1.0 us |");
        assert!(Comparison::default().to_string().contains("model"));
    }

    #[test]
    fn equal_rows_are_the_same_and_names_cannot_break_the_table() {
        let table = Comparison::new(vec![
            row("a", Some(0.5), 10, Some(1.0)),
            row("b|<i>\n", Some(0.5), 10, Some(1.02)),
        ]);
        let last = table.to_markdown().lines().last().unwrap().to_string();
        assert_eq!(
            last,
            "| b\\|&lt;i>  | 50.00 % (+0.00) | 10 (same) | 40 (same) | 100 (same) | 1.0 us (same) |"
        );
    }

    #[test]
    fn json_has_the_documented_keys() {
        let table = Comparison::new(vec![row("a", Some(0.5), 10, None)]);
        let value: serde_json::Value = serde_json::from_str(&table.to_json().unwrap()).unwrap();
        assert_eq!(
            value,
            serde_json::json!([{
                "name": "a", "accuracy": 0.5, "parameters": 10, "bytes": 40, "macs": 100,
                "latency_us": null
            }])
        );
        assert_eq!(
            Comparison::from_json("[{}]").unwrap_err().kind(),
            ErrorKind::Format
        );
        let nan = Comparison::new(vec![row("a", Some(f64::NAN), 1, None)]);
        assert_eq!(nan.to_json().unwrap_err().kind(), ErrorKind::Data);
    }

    #[test]
    fn compare_measures_every_column() {
        let test = Fields(vec![
            Tensor::new([2, 3], [0f32, 1., 2., 3., 2., 1.]).unwrap(),
            Tensor::new([2], [2i64, 1]).unwrap(),
        ]);
        let graph = echo();
        let models = [("one", &graph), ("two", &graph)];
        let options = CompareOptions::new();
        let table = compare(&models, &test, &Echo, &options).unwrap();
        assert_eq!(table.row("two").unwrap().accuracy, Some(0.5));
        assert!(table.rows().iter().all(|r| r.latency_us.is_some()));
        let options = options.batch_size(1).latency(None);
        let table = compare(&models, &test, &Echo, &options).unwrap();
        assert!(table.rows().iter().all(|r| r.latency_us.is_none()));
        assert!(compare(&[], &test, &Echo, &options).is_err());
    }
}
