//! Single weights to zero.

use std::sync::Arc;

use opt_core::{Context, Error, ErrorKind, Fact, Graph, Pass, Report, Result, Tensor, ValueId};

use crate::criterion::{Criterion, Magnitude, scores};
use crate::select::{Patterns, sparsity_in_range, weights};

/// Over what the scores are ranked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// Each tensor on its own: all reach the sparsity.
    #[default]
    Local,
    /// All tensors together: the sparsity is that of the whole.
    Global,
}

/// Sets the weights with the lowest scores to zero and records a [`Fact::Mask`], which training
/// keeps. Exactly `round(sparsity * n)` weights are zero afterwards; those masked before stay
/// masked; ties go by position.
#[derive(Debug, Clone)]
pub struct UnstructuredPrune {
    sparsity: f64,
    criterion: Arc<dyn Criterion>,
    scope: Scope,
    patterns: Patterns,
}

impl UnstructuredPrune {
    /// Local pruning by magnitude to a sparsity in `[0, 1]`, the share of zeros.
    pub fn new(sparsity: f64) -> UnstructuredPrune {
        UnstructuredPrune {
            sparsity,
            criterion: Arc::new(Magnitude::l1()),
            scope: Scope::Local,
            patterns: Patterns::default(),
        }
    }

    /// Ranks by another criterion.
    #[must_use]
    pub fn criterion(mut self, criterion: impl Criterion + 'static) -> UnstructuredPrune {
        self.criterion = Arc::new(criterion);
        self
    }

    /// Ranks each tensor on its own, or all together.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> UnstructuredPrune {
        self.scope = scope;
        self
    }

    /// Treats only weights whose names contain one of the included patterns.
    #[must_use]
    pub fn include(mut self, pattern: impl Into<String>) -> UnstructuredPrune {
        self.patterns.include.push(pattern.into());
        self
    }

    /// Leaves out weights whose names contain the pattern.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> UnstructuredPrune {
        self.patterns.exclude.push(pattern.into());
        self
    }

    /// The same with another sparsity.
    #[must_use]
    pub(crate) fn with_sparsity(&self, sparsity: f64) -> UnstructuredPrune {
        UnstructuredPrune {
            sparsity,
            ..self.clone()
        }
    }
}

/// A weight with the scores of its entries; masked ones come first in any order.
struct Scored {
    value: ValueId,
    content: Tensor,
    scores: Vec<f64>,
}

impl Pass for UnstructuredPrune {
    fn establishes(&self) -> Vec<opt_core::FactKind> {
        vec![opt_core::FactKind::Mask]
    }

    fn name(&self) -> &str {
        "unstructured_prune"
    }

    fn config(&self) -> String {
        format!(
            "sparsity = {:?}\nglobal = {}\n",
            self.sparsity,
            self.scope == Scope::Global
        )
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        sparsity_in_range(self.sparsity)?;
        let all = weights(&graph);
        let names: Vec<&str> = all.iter().map(|&v| graph.value(v).name()).collect();
        self.patterns.check(&names)?;
        let mut scored = Vec::new();
        for &value in &all {
            if !self.patterns.allows(graph.value(value).name()) {
                continue;
            }
            let content = graph.value(value).tensor().expect("a variable").clone();
            let mut s = scores(self.criterion.as_ref(), &graph, value, &content, cx.seed())?;
            if let Some(mask) = graph.facts().mask(value) {
                for (s, keep) in s.iter_mut().zip(mask.to_vec_bool()?) {
                    if !keep {
                        *s = -1.0;
                    }
                }
            }
            scored.push(Scored {
                value,
                content,
                scores: s,
            });
        }
        if scored.is_empty() {
            return Err(Error::new(
                ErrorKind::NoEffect,
                "the graph has no weights to prune",
            ));
        }
        let mut keep: Vec<Vec<bool>> = scored.iter().map(|s| vec![true; s.scores.len()]).collect();
        let groups: Vec<Vec<usize>> = match self.scope {
            Scope::Global => vec![(0..scored.len()).collect()],
            Scope::Local => (0..scored.len()).map(|i| vec![i]).collect(),
        };
        for group in groups {
            let mut order: Vec<(f64, usize, usize)> = group
                .iter()
                .flat_map(|&t| {
                    let entries = scored[t].scores.iter().enumerate();
                    entries.map(move |(i, &s)| (s, t, i))
                })
                .collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            let zeros = (self.sparsity * order.len() as f64).round() as usize;
            let masked = order.iter().take_while(|(s, _, _)| *s < 0.0).count();
            for &(_, t, i) in &order[..zeros.max(masked)] {
                keep[t][i] = false;
            }
        }
        let mut graph = graph;
        let (mut changed, mut zeros, mut total) = (0, 0, 0);
        let mut report = Report::default();
        for (scored, keep) in scored.iter().zip(keep) {
            let before = scored.content.to_f64s();
            let after: Vec<f64> = before
                .iter()
                .zip(&keep)
                .map(|(&v, &k)| if k { v } else { 0.0 })
                .collect();
            let gone = keep.iter().filter(|&&k| !k).count();
            let were = scored.scores.iter().filter(|&&s| s < 0.0).count();
            changed += gone - were;
            zeros += gone;
            total += keep.len();
            let content = &scored.content;
            let tensor = Tensor::from_f64s(content.dtype(), content.shape(), &after)?;
            graph.set_variable(scored.value, tensor)?;
            let mask = Tensor::from_bools(content.shape(), keep)?;
            let name = graph.value(scored.value).name().to_string();
            report = report.figure(
                format!("sparsity of {name}"),
                gone as f64 / content.len().max(1) as f64,
            );
            graph.facts_mut().insert(scored.value, Fact::Mask(mask));
        }
        report.changed = changed;
        Ok((
            graph,
            report.figure("sparsity", zeros as f64 / total.max(1) as f64),
        ))
    }
}
