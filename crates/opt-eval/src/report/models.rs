//! The table of models and the plots of accuracy against cost.

use super::axis::Unit;
use super::page::{Cell, Verdict, table as html_table};
use super::plots::Figure;
use super::plots::scatter::{Point, scatter};
use super::{Counted, format};
use crate::compare::{FASTER_SLOWER, ratio};
use crate::{Comparison, ModelCost, Row};

/// A model's figures, measured or counted.
#[derive(Debug, Clone)]
struct Entry {
    name: String,
    accuracy: Option<f64>,
    parameters: Option<f64>,
    nonzeros: Option<f64>,
    bytes: Option<f64>,
    macs: Option<f64>,
    peak: Option<f64>,
    latency: Option<f64>,
}

impl Entry {
    fn new(name: &str, row: Option<&Row>, cost: Option<&ModelCost>) -> Entry {
        let either = |row: Option<u64>, cost: Option<u64>| row.or(cost).map(|v| v as f64);
        Entry {
            name: name.to_string(),
            accuracy: row.and_then(|r| r.accuracy),
            parameters: either(row.map(|r| r.parameters), cost.map(|c| c.parameters)),
            nonzeros: cost.map(|c| c.nonzeros as f64),
            bytes: either(row.map(|r| r.bytes), cost.map(|c| c.bytes)),
            macs: either(row.map(|r| r.macs), cost.map(|c| c.macs)),
            peak: cost.map(|c| c.peak_activation_bytes as f64),
            latency: row.and_then(|r| r.latency_us),
        }
    }
}

/// A column of counts: its name, the figure, how it reads, and the words for less and more.
type Column = (
    &'static str,
    fn(&Entry) -> Option<f64>,
    fn(f64) -> String,
    [&'static str; 2],
);

const COLUMNS: [Column; 6] = [
    (
        "parameters",
        |e| e.parameters,
        format::count,
        ["fewer", "more"],
    ),
    (
        "non-zeros",
        |e| e.nonzeros,
        format::count,
        ["fewer", "more"],
    ),
    ("size", |e| e.bytes, format::bytes, ["smaller", "larger"]),
    (
        "multiply-adds",
        |e| e.macs,
        format::count,
        ["fewer", "more"],
    ),
    (
        "peak activations",
        |e| e.peak,
        format::bytes,
        ["smaller", "larger"],
    ),
    (
        "median latency",
        |e| e.latency,
        format::microseconds,
        FASTER_SLOWER,
    ),
];

/// Rows of the comparison first, then models that were not measured.
fn entries(comparison: &Comparison, models: &[Counted<'_>]) -> Vec<Entry> {
    let cost = |name: &str| models.iter().find(|m| m.name == name).map(|m| &m.cost);
    let rows = comparison.rows().iter();
    let measured = rows.map(|row| Entry::new(&row.name, Some(row), cost(&row.name)));
    let counted = models.iter().filter(|m| comparison.row(m.name).is_none());
    measured
        .chain(counted.map(|m| Entry::new(m.name, None, Some(&m.cost))))
        .collect()
}

pub(super) fn table(comparison: &Comparison, models: &[Counted<'_>]) -> String {
    let entries = entries(comparison, models);
    let Some(first) = entries.first() else {
        return String::new();
    };
    let shown: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| entries.iter().any(|e| column.1(e).is_some()))
        .collect();
    let accuracy = entries.iter().any(|e| e.accuracy.is_some());
    let mut header = vec!["model"];
    if accuracy {
        header.push("accuracy");
    }
    header.extend(shown.iter().map(|column| column.0));
    let mut rows = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        // The first is compared with nothing.
        let before = (i > 0).then_some(first);
        let mut cells = vec![Cell::plain(&entry.name)];
        if accuracy {
            cells.push(accuracy_cell(entry, before));
        }
        cells.extend(shown.iter().map(|column| cell(column, entry, before)));
        rows.push(cells);
    }
    let mut note = String::new();
    if entries.len() > 1 {
        note.push_str(&format!("Changes are against {}. ", first.name));
    }
    if shown.iter().any(|column| column.0 == "peak activations") {
        note.push_str(
            "Size is that of the weights as a safetensors file. Peak activations are the inputs \
             and intermediate results that are needed at the same time when the nodes run in the \
             graph's order; a backend that fuses nodes, as integer layers are, takes \
             less. ",
        );
    }
    if entries.iter().any(|e| e.latency.is_some()) {
        note.push_str("Latency is the median of one run on one example; ");
        note.push_str("where it was not measured, nothing is said about speed.");
    }
    let note = super::escape(note.trim_end());
    let table = html_table("Models", &header, &rows);
    format!("{table}<p class=\"note\">{note}</p>\n")
}

fn accuracy_cell(entry: &Entry, before: Option<&Entry>) -> Cell {
    let Some(accuracy) = entry.accuracy else {
        return Cell::or_dash(None);
    };
    let mut cell = Cell::plain(format::percent(accuracy));
    if let Some(before) = before.and_then(|b| b.accuracy) {
        let points = ((accuracy - before) * 1e4).round() / 100.0 + 0.0;
        if points.is_finite() {
            let verdict = match points {
                p if p > 0.0 => Verdict::Better,
                p if p < 0.0 => Verdict::Worse,
                _ => Verdict::Same,
            };
            cell.change = Some((format!("{points:+.2} points"), verdict));
        }
    }
    cell
}

fn cell(column: &Column, entry: &Entry, before: Option<&Entry>) -> Cell {
    let (_, of, text, [less, more]) = column;
    let Some(value) = of(entry) else {
        return Cell::or_dash(None);
    };
    let mut cell = Cell::plain(text(value));
    let change = before
        .and_then(of)
        .and_then(|b| ratio(b, value, less, more));
    cell.change = change.map(|words| {
        let verdict = match &words {
            words if words.ends_with(less) => Verdict::Better,
            words if words.ends_with(more) => Verdict::Worse,
            _ => Verdict::Same,
        };
        (words, verdict)
    });
    cell
}

/// Accuracy against size and against latency, where both were measured.
pub(super) fn trade_offs(
    comparison: &Comparison,
    models: &[Counted<'_>],
    series: impl Fn(&str) -> Option<usize>,
) -> Vec<Figure> {
    let entries = entries(comparison, models);
    let points = |x: fn(&Entry) -> Option<f64>| -> Vec<Point> {
        let point = |e: &Entry| {
            Some(Point {
                name: e.name.clone(),
                x: x(e)?,
                y: e.accuracy?,
                series: series(&e.name),
            })
        };
        entries.iter().filter_map(point).collect()
    };
    let plots: [(&str, &str, &str, Unit, fn(&Entry) -> Option<f64>); 3] = [
        (
            "size",
            "Accuracy against size",
            "size of the weights",
            Unit::Bytes,
            |e| e.bytes,
        ),
        (
            "latency",
            "Accuracy against latency",
            "median latency",
            Unit::Microseconds,
            |e| e.latency,
        ),
        (
            "work",
            "Accuracy against work",
            "multiply-adds",
            Unit::Number,
            |e| e.macs,
        ),
    ];
    plots
        .into_iter()
        .filter_map(|(id, heading, x_label, unit, x)| {
            scatter(id, heading, x_label, unit, &points(x))
        })
        .collect()
}
