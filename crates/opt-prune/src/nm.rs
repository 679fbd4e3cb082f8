//! N:M patterns.

use std::sync::Arc;

use opt_core::pass::Needs;
use opt_core::{
    Context, Error, ErrorKind, Fact, FactKind, Graph, Pass, Report, Result, Tensor, ValueId,
};

use crate::criterion::{Criterion, Magnitude, checked_scores};
use crate::masks::set_mask;
use crate::select::{Patterns, weights};

/// Keeps the N weights with the highest scores of each M consecutive inputs and sets the others to
/// zero: 2:4 is what sparse tensor cores run (Mishra et al. 2021, "Accelerating Sparse Deep Neural
/// Networks").
///
/// Runs of M lie along the axis that the layer sums over: of a linear weight `[O, I]` along I, of
/// a convolution's `[O, I, height, width]` along I at each place of the kernel. A weight whose
/// axis M does not divide stays dense, and the report has a note that names it; so do embeddings,
/// which nothing is summed over. What is masked already stays masked and counts among the zeros.
///
/// Each weight gets a [`Fact::Mask`], which training keeps, and a [`Fact::NmPattern`], which
/// [`Graph::verify`] tests.
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::{Context, FactKind, Pass};
/// use opt_prune::NmPrune;
///
/// # fn main() -> opt_core::Result<()> {
/// let model = zoo::lenet_300_100(64, 10, 0)?;
/// let (sparse, report) = NmPrune::new(2, 4).apply(model, &mut Context::new())?;
/// assert_eq!(report.figures["sparsity"], 0.5);
/// let w = sparse.find("fc1.weight")?;
/// assert!(sparse.facts().get(w, FactKind::NmPattern).is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct NmPrune {
    n: usize,
    m: usize,
    criterion: Arc<dyn Criterion>,
    patterns: Patterns,
}

impl NmPrune {
    /// At most `n` non-zeros of each `m`, by magnitude.
    pub fn new(n: usize, m: usize) -> NmPrune {
        NmPrune {
            n,
            m,
            criterion: Arc::new(Magnitude::l1()),
            patterns: Patterns::default(),
        }
    }

    /// Ranks by another criterion.
    #[must_use]
    pub fn criterion(mut self, criterion: impl Criterion + 'static) -> NmPrune {
        self.criterion = Arc::new(criterion);
        self
    }

    /// Treats only weights whose names contain one of the included patterns.
    #[must_use]
    pub fn include(mut self, pattern: impl Into<String>) -> NmPrune {
        self.patterns.include.push(pattern.into());
        self
    }

    /// Leaves out weights whose names contain the pattern.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> NmPrune {
        self.patterns.exclude.push(pattern.into());
        self
    }

    /// Which entries stay of a tensor with runs along an axis.
    fn keep(&self, scores: &[f64], shape: &[usize], axis: usize) -> Vec<bool> {
        let inner: usize = shape[axis + 1..].iter().product();
        let run = self.m * inner;
        let mut keep = vec![false; scores.len()];
        let mut order: Vec<usize> = Vec::with_capacity(self.m);
        for start in (0..scores.len()).step_by(run.max(1)) {
            for offset in start..start + inner {
                order.clear();
                order.extend((0..self.m).map(|k| offset + k * inner));
                // The sort is stable: ties go by position, the earlier first.
                order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
                for &i in &order[self.m - self.n..] {
                    keep[i] = true;
                }
            }
        }
        keep
    }
}

impl Pass for NmPrune {
    fn name(&self) -> &str {
        "nm_prune"
    }

    fn config(&self) -> String {
        format!("n = {}\nm = {}\n", self.n, self.m)
    }

    fn needs(&self) -> Needs {
        self.criterion.needs()
    }

    fn establishes(&self) -> Vec<FactKind> {
        vec![FactKind::Mask, FactKind::NmPattern]
    }

    /// # Errors
    /// [`ErrorKind::InvalidArgument`] unless `1 <= n <= m`; [`ErrorKind::NoEffect`] if a name
    /// pattern matches nothing, or M divides the axis of no weight.
    fn apply(&self, mut graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (n, m) = (self.n, self.m);
        if n == 0 || n > m {
            return Err(Error::invalid(format!(
                "an {n}:{m} pattern, expected 1 <= N <= M"
            )));
        }
        let all = weights(&graph);
        let names: Vec<&str> = all.iter().map(|w| graph.value(w.value).name()).collect();
        self.patterns.check(&names)?;
        let mut report = Report::default();
        let mut chosen = Vec::new();
        for (weight, name) in all.iter().zip(names) {
            if !weight.reduces || !self.patterns.allows(name) {
                continue;
            }
            let shape = graph
                .value(weight.value)
                .tensor()
                .expect("a variable")
                .shape();
            match shape[weight.inputs].is_multiple_of(m) && !shape.contains(&0) {
                true => chosen.push(*weight),
                false => {
                    let size = shape[weight.inputs];
                    let note = format!("{name} stays dense: {m} does not divide its {size} inputs");
                    report = report.note(note);
                }
            }
        }
        if chosen.is_empty() {
            let notes = report.notes.join("; ");
            return Err(Error::new(
                ErrorKind::NoEffect,
                format!("no weight can have an {n}:{m} pattern; {notes}"),
            ));
        }
        let values: Vec<ValueId> = chosen.iter().map(|w| w.value).collect();
        let scores = checked_scores(self.criterion.as_ref(), &graph, &values, cx)?;
        let (mut zeros, mut total) = (0, 0);
        for (weight, mut scores) in chosen.iter().zip(scores) {
            let id = weight.value;
            let shape = graph
                .value(id)
                .tensor()
                .expect("a variable")
                .shape()
                .to_vec();
            let before = match graph.facts().mask(id).map(Tensor::to_vec_bool) {
                Some(mask) => mask?,
                None => vec![true; scores.len()],
            };
            for (score, keep) in scores.iter_mut().zip(&before) {
                if !keep {
                    *score = -1.0;
                }
            }
            let mut keep = self.keep(&scores, &shape, weight.inputs);
            keep.iter_mut().zip(&before).for_each(|(k, b)| *k &= b);
            let gone = keep.iter().filter(|k| !**k).count();
            report.changed += gone - before.iter().filter(|k| !**k).count();
            zeros += gone;
            total += keep.len();
            set_mask(&mut graph, id, &keep)?;
            let axis = weight.inputs;
            graph.facts_mut().insert(id, Fact::NmPattern { n, m, axis });
        }
        let sparsity = zeros as f64 / total.max(1) as f64;
        Ok((graph, report.figure("sparsity", sparsity)))
    }
}
