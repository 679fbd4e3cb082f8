//! Confusion matrices and the metrics of the classes.

use super::page::{Cell, cards, details, table};
use super::plots::confusion::{MOST, confusion};
use super::{escape, format};
use crate::{Average, ConfusionMatrix};

/// The most mistakes that are listed where there are too many classes to draw.
const MISTAKES: usize = 10;

pub(super) fn section(confusions: &[(String, ConfusionMatrix, Vec<String>)]) -> String {
    let draw = |(i, (model, matrix, names)): (usize, &(String, ConfusionMatrix, Vec<String>))| {
        confusion(&format!("confusion{i}"), model, matrix, names)
    };
    let mut out = cards(confusions.iter().enumerate().filter_map(draw));
    for (model, matrix, names) in confusions {
        if matrix.classes() > MOST {
            let heading = format!("The most frequent mistakes of {model}");
            out.push_str(&format!("<h3>{}</h3>\n", escape(&heading)));
            out.push_str(&mistakes(&heading, matrix, names));
        }
        let summary = format!("Precision, recall and F1 of {model}");
        out.push_str(&details(&summary, &classes(&summary, matrix, names)));
    }
    out
}

fn classes(label: &str, matrix: &ConfusionMatrix, names: &[String]) -> String {
    let row = |name: &str, of: [f64; 3], support: u64| {
        let mut cells = vec![Cell::plain(name)];
        cells.extend(of.map(|v| Cell::plain(format::percent(v))));
        cells.push(Cell::plain(format::count(support as f64)));
        cells
    };
    let mut rows = Vec::with_capacity(names.len() + 1);
    for (class, name) in names.iter().enumerate() {
        let metrics = matrix.class(class);
        let of = [metrics.precision, metrics.recall, metrics.f1];
        rows.push(row(name, of, metrics.support));
    }
    let mean = Average::Macro;
    let of = [matrix.precision(mean), matrix.recall(mean), matrix.f1(mean)];
    rows.push(row("macro average", of, matrix.rows().flatten().sum()));
    table(
        label,
        &["class", "precision", "recall", "F1", "examples"],
        &rows,
    )
}

fn mistakes(label: &str, matrix: &ConfusionMatrix, names: &[String]) -> String {
    let mut pairs: Vec<(u64, usize, usize)> = Vec::new();
    for (truth, row) in matrix.rows().enumerate() {
        let wrong = row
            .iter()
            .enumerate()
            .filter(|&(p, &n)| p != truth && n > 0);
        pairs.extend(wrong.map(|(predicted, &n)| (n, truth, predicted)));
    }
    pairs.sort_unstable_by_key(|&(n, truth, predicted)| (std::cmp::Reverse(n), truth, predicted));
    pairs.truncate(MISTAKES);
    let rows: Vec<Vec<Cell>> = pairs
        .into_iter()
        .map(|(n, truth, predicted)| {
            let count = Cell::plain(format::count(n as f64));
            vec![
                Cell::plain(&names[truth]),
                Cell::plain(&names[predicted]),
                count,
            ]
        })
        .collect();
    table(label, &["true class", "predicted as", "examples"], &rows)
}
