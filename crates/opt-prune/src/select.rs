//! Which parameters a pass treats.

use opt_core::ops::Op;
use opt_core::{Error, ErrorKind, Graph, Result, ValueId, ValueKind};

/// Name patterns: a name matches if it contains one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patterns {
    pub(crate) include: Vec<String>,
    pub(crate) exclude: Vec<String>,
}

impl Patterns {
    pub(crate) fn allows(&self, name: &str) -> bool {
        let hit = |list: &[String]| list.iter().any(|p| name.contains(p.as_str()));
        (self.include.is_empty() || hit(&self.include)) && !hit(&self.exclude)
    }

    /// Fails if a pattern matches none of the names.
    pub(crate) fn check(&self, names: &[&str]) -> Result<()> {
        for pattern in self.include.iter().chain(&self.exclude) {
            if !names.iter().any(|n| n.contains(pattern.as_str())) {
                return Err(Error::new(
                    ErrorKind::NoEffect,
                    format!("the pattern `{pattern}` matches none of {names:?}"),
                ));
            }
        }
        Ok(())
    }
}

/// The weights of a graph: floating-point variables of rank 2 at least that a convolution, matrix
/// product, recurrence or gather reads as its parameter.
pub(crate) fn weights(graph: &Graph) -> Vec<ValueId> {
    let mut found = Vec::new();
    for (_, node) in graph.nodes() {
        let inputs: &[ValueId] = match node.op() {
            Op::Conv(_) | Op::ConvTranspose(_) => &node.inputs()[1..2],
            Op::MatMul(_) => node.inputs(),
            Op::Lstm(_) | Op::Gru(_) => &node.inputs()[1..3],
            Op::Gather(_) => &node.inputs()[..1],
            _ => continue,
        };
        for &v in inputs {
            let value = graph.value(v);
            let is_weight = matches!(value.kind(), ValueKind::Variable(_))
                && value.ty().dtype.is_float()
                && value.ty().rank() >= 2;
            if is_weight && !found.contains(&v) {
                found.push(v);
            }
        }
    }
    found
}

/// Fails unless a sparsity is a number in `[0, 1]`.
pub(crate) fn sparsity_in_range(sparsity: f64) -> Result<()> {
    if (0.0..=1.0).contains(&sparsity) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the sparsity is {sparsity}, not in [0, 1]"
    )))
}
