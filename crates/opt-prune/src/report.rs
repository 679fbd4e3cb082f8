//! What pruning did, layer by layer.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use opt_core::{Error, ErrorKind, Fact, FactKind, Graph, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::select::weights;

/// A weight before and after pruning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRow {
    /// Its name.
    pub name: String,
    /// Its shape before.
    pub shape_before: Vec<usize>,
    /// Its shape after.
    pub shape_after: Vec<usize>,
    /// Entries before that are not 0.
    pub nonzeros_before: u64,
    /// Entries after that are not 0.
    pub nonzeros_after: u64,
    /// Its N:M pattern, such as `2:4`, if it has one.
    pub pattern: Option<String>,
}

/// The weights of a model before and after pruning: `{}` prints a table, JSON is for machines.
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::{Context, Pass};
/// use opt_prune::{ChannelPrune, PruneReport, UnstructuredPrune};
///
/// # fn main() -> opt_core::Result<()> {
/// let dense = zoo::lenet_300_100(64, 10, 0)?;
/// let mut cx = Context::new();
/// let (small, _) = ChannelPrune::new(0.5).apply(dense.clone(), &mut cx)?;
/// let (sparse, _) = UnstructuredPrune::new(0.8).apply(small, &mut cx)?;
/// let report = PruneReport::between(&dense, &sparse)?;
/// println!("{report}");
/// assert_eq!(report.layers[0].shape_after, [150, 64]);
/// assert!((report.layers[0].sparsity() - 0.8).abs() < 1e-9);
/// // Half the width and a fifth of what is left: a tenth of the first layer.
/// assert!((report.layers[0].left() - 0.1).abs() < 1e-9);
/// assert_eq!(PruneReport::from_json(&report.to_json()?)?, report);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// The weights, in the order of the model before.
    pub layers: Vec<LayerRow>,
    /// All [parameters](Graph::parameter_count) before, with biases and normalization.
    pub parameters_before: u64,
    /// All parameters after.
    pub parameters_after: u64,
    /// Of all parameters, those that are not 0, before.
    pub nonzeros_before: u64,
    /// And after.
    pub nonzeros_after: u64,
}

impl LayerRow {
    /// The share of zeros among the entries that there are, after.
    pub fn sparsity(&self) -> f64 {
        let len: usize = self.shape_after.iter().product();
        1.0 - self.nonzeros_after as f64 / len.max(1) as f64
    }

    /// The share of the entries before, whatever they were, that is there and not 0 after.
    pub fn left(&self) -> f64 {
        let len: usize = self.shape_before.iter().product();
        self.nonzeros_after as f64 / len.max(1) as f64
    }
}

impl PruneReport {
    /// Compares a model with what pruning made of it; weights are matched by name.
    ///
    /// # Errors
    /// If the second lacks a weight of the first, at its name.
    pub fn between(before: &Graph, after: &Graph) -> Result<PruneReport> {
        let mut layers = Vec::new();
        for weight in weights(before) {
            let value = before.value(weight.value);
            let name = value.name();
            let then = value.tensor().expect("a variable");
            let lacking = || Error::invalid("the pruned graph has no such weight").at(name);
            let id = after.find(name).map_err(|_| lacking())?;
            let now = after.value(id).tensor().ok_or_else(lacking)?;
            let pattern = match after.facts().get(id, FactKind::NmPattern) {
                Some(Fact::NmPattern { n, m, .. }) => Some(format!("{n}:{m}")),
                _ => None,
            };
            layers.push(LayerRow {
                name: name.to_string(),
                shape_before: then.shape().to_vec(),
                shape_after: now.shape().to_vec(),
                nonzeros_before: nonzeros(then),
                nonzeros_after: nonzeros(now),
                pattern,
            });
        }
        let all = |graph: &Graph| -> u64 {
            let tensors = graph.parameters();
            let tensors = tensors.iter().filter_map(|&v| graph.value(v).tensor());
            tensors.map(nonzeros).sum()
        };
        Ok(PruneReport {
            layers,
            parameters_before: before.parameter_count() as u64,
            parameters_after: after.parameter_count() as u64,
            nonzeros_before: all(before),
            nonzeros_after: all(after),
        })
    }

    /// The report as JSON.
    ///
    /// # Errors
    /// None for finite figures.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| format_error(&e))
    }

    /// A report from JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if the text is none.
    pub fn from_json(text: &str) -> Result<PruneReport> {
        serde_json::from_str(text).map_err(|e| format_error(&e))
    }
}

fn format_error(error: &serde_json::Error) -> Error {
    Error::new(ErrorKind::Format, format!("a pruning report: {error}"))
}

fn nonzeros(tensor: &Tensor) -> u64 {
    tensor.to_f64s().iter().filter(|v| **v != 0.0).count() as u64
}

/// `a` as a share of `b` in percent.
fn percent(a: u64, b: u64) -> String {
    format!("{:.2} %", 100.0 * a as f64 / b.max(1) as f64)
}

impl fmt::Display for PruneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["weight", "before", "after", "zeros", "pattern", "left"]);
        for row in &self.layers {
            let len: usize = row.shape_after.iter().product();
            table.add_row([
                row.name.clone(),
                format!("{:?}", row.shape_before),
                format!("{:?}", row.shape_after),
                percent(len as u64 - row.nonzeros_after, len as u64),
                row.pattern.clone().unwrap_or_default(),
                percent(
                    row.nonzeros_after,
                    row.shape_before.iter().product::<usize>() as u64,
                ),
            ]);
        }
        table.add_row([
            "all parameters".to_string(),
            self.parameters_before.to_string(),
            self.parameters_after.to_string(),
            percent(
                self.parameters_after - self.nonzeros_after,
                self.parameters_after,
            ),
            String::new(),
            percent(self.nonzeros_after, self.parameters_before),
        ]);
        for column in [1, 2, 3, 5] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        write!(f, "{table}")
    }
}
