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
        self.allow_all(&[name])
    }

    /// Whether things that go together are treated: one of them is included, none left out.
    pub(crate) fn allow_all(&self, names: &[&str]) -> bool {
        let hit = |list: &[String]| {
            let mut names = names.iter();
            names.any(|name| list.iter().any(|p| name.contains(p.as_str())))
        };
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

impl Patterns {
    /// Fails if a pattern that has a share of its own matches no name, or the share is out of
    /// range.
    pub(crate) fn shares(shares: &[(String, f64)], names: &[&str]) -> Result<()> {
        for (pattern, share) in shares {
            sparsity_in_range(*share).map_err(|e| e.at(pattern.clone()))?;
        }
        let patterns = Patterns {
            include: shares.iter().map(|(p, _)| p.clone()).collect(),
            exclude: Vec::new(),
        };
        patterns.check(names)
    }
}

/// A parameter of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weight {
    pub(crate) value: ValueId,
    /// The axis of the layer's outputs.
    pub(crate) outputs: usize,
    /// The axis of the layer's inputs.
    pub(crate) inputs: usize,
    /// Whether the layer sums over its inputs; an embedding picks one of them.
    pub(crate) reduces: bool,
}

/// The weights of a graph: floating-point variables of rank 2 at least that a convolution, matrix
/// product, recurrence or gather reads as its parameter.
pub(crate) fn weights(graph: &Graph) -> Vec<Weight> {
    let mut found: Vec<Weight> = Vec::new();
    for (_, node) in graph.nodes() {
        let rank = |i: usize| node.inputs().get(i).map_or(0, |&v| graph.type_of(v).rank());
        // Inputs that are weights, with the axes of outputs and inputs.
        let read: Vec<(usize, usize, usize)> = match node.op() {
            Op::Conv(_) => vec![(1, 0, 1)],
            Op::ConvTranspose(_) => vec![(1, 1, 0)],
            Op::Lstm(_) | Op::Gru(_) => vec![(1, 1, 2), (2, 1, 2)],
            Op::MatMul(op) => {
                let (a, b) = (rank(0), rank(1));
                let first = match op.trans_a {
                    true => (0, a - 1, a - 2),
                    false => (0, a - 2, a - 1),
                };
                let second = match op.trans_b {
                    true => (1, b - 2, b - 1),
                    false => (1, b - 1, b - 2),
                };
                vec![first, second]
            }
            Op::Gather(op) if rank(0) >= 2 => {
                let last = rank(0) - 1;
                let outputs = if op.axis == last { last - 1 } else { last };
                vec![(0, outputs, op.axis)]
            }
            _ => continue,
        };
        for (input, outputs, inputs) in read {
            let value = node.inputs()[input];
            let ty = graph.type_of(value);
            let is_weight = matches!(graph.value(value).kind(), ValueKind::Variable(_))
                && ty.dtype.is_float()
                && ty.rank() >= 2;
            if is_weight && !found.iter().any(|w| w.value == value) {
                found.push(Weight {
                    value,
                    outputs,
                    inputs,
                    reduces: !matches!(node.op(), Op::Gather(_)),
                });
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
