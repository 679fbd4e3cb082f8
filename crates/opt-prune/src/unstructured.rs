//! Single weights to zero.

use std::sync::Arc;

use opt_core::pass::Needs;
use opt_core::{Context, Error, ErrorKind, FactKind, Graph, Pass, Report, Result, ValueId};

use crate::blocks::Tiles;
use crate::criterion::{Criterion, Magnitude, checked_scores};
use crate::masks::{keep_all_but_lowest, set_mask};
use crate::select::{Patterns, Weight, sparsity_in_range, weights};

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

/// Sets the weights with the lowest scores to zero and records a [`Fact::Mask`](opt_core::Fact),
/// which training keeps. Exactly `round(sparsity * n)` weights are zero afterwards; those masked
/// before stay masked; ties go by position.
///
/// Weights are floating-point variables of rank 2 at least that a convolution, matrix product,
/// recurrence or embedding reads; biases and normalization stay dense.
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::{Context, Pass};
/// use opt_prune::{Scope, UnstructuredPrune};
///
/// # fn main() -> opt_core::Result<()> {
/// let model = zoo::lenet_300_100(64, 10, 0)?;
/// // 95 % of all weights together; of the last layer's only half, ranked on its own.
/// let prune = UnstructuredPrune::new(0.95).scope(Scope::Global).layer("fc3", 0.5);
/// let (sparse, report) = prune.apply(model, &mut Context::new())?;
/// assert_eq!(report.figures["sparsity of fc3.weight"], 0.5);
/// assert!(sparse.facts().mask(sparse.find("fc1.weight")?).is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct UnstructuredPrune {
    sparsity: f64,
    layers: Vec<(String, f64)>,
    criterion: Arc<dyn Criterion>,
    scope: Scope,
    block: [usize; 2],
    patterns: Patterns,
}

impl UnstructuredPrune {
    /// Local pruning by magnitude to a sparsity in `[0, 1]`, the share of zeros.
    pub fn new(sparsity: f64) -> UnstructuredPrune {
        UnstructuredPrune {
            sparsity,
            layers: Vec::new(),
            criterion: Arc::new(Magnitude::l1()),
            scope: Scope::Local,
            block: [1, 1],
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

    /// Keeps or removes tiles of `outputs` by `inputs` weights as a whole, each at one place of a
    /// convolution's kernel: 1 by 4 for vector instructions, 16 by 16 for matrix units. A tile
    /// scores the mean of its weights, those at the end of an axis may be smaller, and the
    /// sparsity is the share of tiles.
    ///
    /// ```
    /// use opt_core::nn::zoo;
    /// use opt_core::{Context, Pass};
    /// use opt_prune::{Magnitude, UnstructuredPrune};
    ///
    /// # fn main() -> opt_core::Result<()> {
    /// let prune = UnstructuredPrune::new(0.75).block(4, 4).criterion(Magnitude::l2());
    /// let (sparse, _) = prune.apply(zoo::lenet_300_100(64, 10, 0)?, &mut Context::new())?;
    /// # sparse.verify()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn block(mut self, outputs: usize, inputs: usize) -> UnstructuredPrune {
        self.block = [outputs, inputs];
        self
    }

    /// Gives weights whose names contain a pattern a sparsity of their own, whatever the scope;
    /// of several patterns that match a name, the one given last holds.
    ///
    /// Where pruning goes in rounds by a schedule, the layer's sparsity goes in proportion: it is
    /// the given one when the schedule has come to this pass's sparsity.
    #[must_use]
    pub fn layer(mut self, pattern: impl Into<String>, sparsity: f64) -> UnstructuredPrune {
        self.layers.push((pattern.into(), sparsity));
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

    /// The sparsity it prunes to.
    pub fn sparsity(&self) -> f64 {
        self.sparsity
    }

    /// The same with another sparsity; those of single [layers](UnstructuredPrune::layer) change
    /// in proportion.
    #[must_use]
    pub fn with_sparsity(&self, sparsity: f64) -> UnstructuredPrune {
        let mut out = self.clone();
        if self.sparsity > 0.0 {
            let factor = sparsity / self.sparsity;
            out.layers.iter_mut().for_each(|(_, s)| *s *= factor);
        }
        out.sparsity = sparsity;
        out
    }

    /// The sparsity that a weight has of its own.
    fn own_sparsity(&self, name: &str) -> Option<f64> {
        let mut own = self.layers.iter().rev();
        own.find(|(p, _)| name.contains(p.as_str()))
            .map(|(_, s)| *s)
    }

    fn check(&self, names: &[&str]) -> Result<()> {
        sparsity_in_range(self.sparsity)?;
        let [rows, columns] = self.block;
        if rows == 0 || columns == 0 {
            return Err(Error::invalid(format!(
                "blocks of {rows} by {columns} weights"
            )));
        }
        self.patterns.check(names)?;
        Patterns::shares(&self.layers, names)
    }

    /// Indices of weights that are ranked together, with the sparsity they come to.
    fn ranks(&self, names: &[&str]) -> Vec<(Vec<usize>, f64)> {
        let mut ranks: Vec<(Vec<usize>, f64)> = Vec::new();
        let mut together = Vec::new();
        for (i, name) in names.iter().enumerate() {
            match (self.own_sparsity(name), self.scope) {
                (Some(own), _) => ranks.push((vec![i], own)),
                (None, Scope::Local) => ranks.push((vec![i], self.sparsity)),
                (None, Scope::Global) => together.push(i),
            }
        }
        ranks.push((together, self.sparsity));
        ranks
    }
}

impl Pass for UnstructuredPrune {
    fn establishes(&self) -> Vec<FactKind> {
        vec![FactKind::Mask]
    }

    fn name(&self) -> &str {
        "unstructured_prune"
    }

    fn config(&self) -> String {
        let global = self.scope == Scope::Global;
        let mut out = format!("sparsity = {:?}\nglobal = {global}\n", self.sparsity);
        if self.block != [1, 1] {
            out += &format!("block = {:?}\n", self.block);
        }
        for (pattern, sparsity) in &self.layers {
            out += &format!("layer.{pattern:?} = {sparsity:?}\n");
        }
        out
    }

    fn needs(&self) -> Needs {
        self.criterion.needs()
    }

    fn apply(&self, mut graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let all = weights(&graph);
        let names: Vec<&str> = all.iter().map(|w| graph.value(w.value).name()).collect();
        self.check(&names)?;
        let chosen: Vec<Weight> = all
            .iter()
            .zip(&names)
            .filter(|(_, name)| self.patterns.allows(name))
            .map(|(w, _)| *w)
            .collect();
        if chosen.is_empty() {
            return Err(Error::new(
                ErrorKind::NoEffect,
                "the graph has no weights to prune",
            ));
        }
        let values: Vec<ValueId> = chosen.iter().map(|w| w.value).collect();
        let names: Vec<String> = values
            .iter()
            .map(|&v| graph.value(v).name().to_string())
            .collect();
        let mut scores = checked_scores(self.criterion.as_ref(), &graph, &values, cx)?;
        // What is masked goes first.
        let mut before = Vec::new();
        for (scores, &value) in scores.iter_mut().zip(&values) {
            let mask = match graph.facts().mask(value) {
                Some(mask) => mask.to_vec_bool()?,
                None => vec![true; scores.len()],
            };
            for (score, _) in scores.iter_mut().zip(&mask).filter(|(_, keep)| !**keep) {
                *score = -1.0;
            }
            before.push(mask);
        }
        let mut tiles = Vec::new();
        if self.block != [1, 1] {
            for (weight, scores) in chosen.iter().zip(&mut scores) {
                let shape = graph
                    .value(weight.value)
                    .tensor()
                    .expect("a variable")
                    .shape();
                let of_weight = Tiles::of(shape, weight, self.block);
                *scores = of_weight.scores(scores);
                tiles.push(of_weight);
            }
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut report = Report::default();
        let (mut zeros, mut total) = (0, 0);
        for (indices, sparsity) in self.ranks(&names) {
            let lists: Vec<&[f64]> = indices.iter().map(|&i| &scores[i][..]).collect();
            let len: usize = lists.iter().map(|l| l.len()).sum();
            let masked = lists.iter().flat_map(|l| l.iter()).filter(|s| **s < 0.0);
            let count = ((sparsity * len as f64).round() as usize).max(masked.count());
            for (&i, units) in indices.iter().zip(keep_all_but_lowest(&lists, count)) {
                let mut keep = match tiles.get(i) {
                    Some(tiles) => tiles.entries(&units),
                    None => units,
                };
                keep.iter_mut().zip(&before[i]).for_each(|(k, b)| *k &= b);
                set_mask(&mut graph, values[i], &keep)?;
                let gone = |keep: &[bool]| keep.iter().filter(|k| !**k).count();
                let share = gone(&keep) as f64 / keep.len().max(1) as f64;
                report = report.figure(format!("sparsity of {}", names[i]), share);
                report.changed += gone(&keep) - gone(&before[i]);
                zeros += gone(&keep);
                total += keep.len();
            }
        }
        let sparsity = zeros as f64 / total.max(1) as f64;
        Ok((graph, report.figure("sparsity", sparsity)))
    }
}
