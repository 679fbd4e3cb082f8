//! Criteria: how much an entry of a parameter, or a whole channel, matters.

mod batch_norm;
mod fpgm;
mod lamp;
mod magnitude;
mod random;
mod taylor;

pub use batch_norm::BatchNormScale;
pub use fpgm::Fpgm;
pub use lamp::Lamp;
pub use magnitude::Magnitude;
pub use random::Random;
pub use taylor::Taylor;

use std::collections::BTreeMap;

use opt_core::pass::{AxisGroup, Needs};
use opt_core::{Context, Error, ErrorKind, Graph, Result, ResultExt, Tensor, ValueId};

/// What a criterion looks at.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ScoreContext<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// The parameter.
    pub value: ValueId,
    /// Its content.
    pub tensor: &'a Tensor,
    /// The seed of what is random.
    pub seed: u64,
}

/// The channels, neurons or attention heads of a layer: what structured pruning ranks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Structures {
    /// The names of the weights that make them, joined by `, `.
    pub layer: String,
    /// The weights that make them (a convolution's kernel, with the axis of its outputs), in the
    /// graph's order; more than one where a residual sum couples layers.
    pub weights: Vec<(ValueId, usize)>,
    /// How many there are, with those that may not go.
    pub total: usize,
    /// Whether they are attention heads.
    pub heads: bool,
    /// Those that may go.
    pub groups: Vec<AxisGroup>,
}

/// Scores the entries of parameters, and channels: the lowest go first.
///
/// A criterion that looks at one parameter at a time implements [`Criterion::score`] alone. One
/// that looks at data, or at all parameters, implements [`Criterion::score_all`]; one that is no
/// sum over the entries of a channel implements [`Criterion::score_structures`].
///
/// ```
/// use opt_core::Result;
/// use opt_prune::{Criterion, ScoreContext};
///
/// /// Entries near the end of a tensor matter less.
/// #[derive(Debug)]
/// struct Position;
///
/// impl Criterion for Position {
///     fn score(&self, cx: &ScoreContext<'_>) -> Result<Vec<f64>> {
///         Ok((0..cx.tensor.len()).rev().map(|i| i as f64).collect())
///     }
/// }
/// ```
pub trait Criterion: std::fmt::Debug + Send + Sync {
    /// One score of 0 or more for each entry of the tensor, in row-major order.
    ///
    /// # Errors
    /// If the tensor holds NaN or infinities; [`ErrorKind::Unsupported`] if the criterion scores
    /// whole channels only, which is what it does unless it is implemented.
    fn score(&self, cx: &ScoreContext<'_>) -> Result<Vec<f64>> {
        let _ = cx;
        Err(Error::unsupported(format!(
            "{self:?} does not score single weights; it is for channels"
        )))
    }

    /// What it takes beside the graph.
    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    /// The scores of several parameters; unless implemented, those of [`Criterion::score`].
    ///
    /// # Errors
    /// As [`Criterion::score`], at the parameter's name; and if the context lacks what the
    /// criterion [needs](Criterion::needs).
    fn score_all(
        &self,
        graph: &Graph,
        values: &[ValueId],
        cx: &mut Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let score = |&value: &ValueId| {
            let content = graph.value(value);
            let tensor = content.tensor().ok_or_else(|| {
                Error::invalid("neither a variable nor a constant").at(content.name())
            })?;
            let context = ScoreContext {
                graph,
                value,
                tensor,
                seed: cx.seed(),
            };
            self.score(&context).at(|| content.name().to_string())
        };
        values.iter().map(score).collect()
    }

    /// The scores of channels, 0 or more: a list a layer, a score for each of its
    /// [groups](Structures::groups). `weights` are the parameters that may be scored by entry.
    ///
    /// Unless implemented, a channel's score is the sum over its weights' entries, each weight's
    /// scores divided by their mean so that layers compare.
    ///
    /// # Errors
    /// As [`Criterion::score_all`].
    fn score_structures(
        &self,
        graph: &Graph,
        layers: &[Structures],
        weights: &[ValueId],
        cx: &mut Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut scores = checked_scores(self, graph, weights, cx)?;
        for s in &mut scores {
            let mean = s.iter().sum::<f64>() / s.len().max(1) as f64;
            if mean > 0.0 {
                s.iter_mut().for_each(|s| *s /= mean);
            }
        }
        let scores: BTreeMap<ValueId, Vec<f64>> = weights.iter().copied().zip(scores).collect();
        Ok(sums(graph, layers, &scores))
    }
}

impl Criterion for Box<dyn Criterion> {
    fn score(&self, cx: &ScoreContext<'_>) -> Result<Vec<f64>> {
        self.as_ref().score(cx)
    }

    fn needs(&self) -> Needs {
        self.as_ref().needs()
    }

    fn score_all(
        &self,
        graph: &Graph,
        values: &[ValueId],
        cx: &mut Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        self.as_ref().score_all(graph, values, cx)
    }

    fn score_structures(
        &self,
        graph: &Graph,
        layers: &[Structures],
        weights: &[ValueId],
        cx: &mut Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        self.as_ref().score_structures(graph, layers, weights, cx)
    }
}

/// For each structure the sum over the entries of its parameters, of those that have numbers.
pub(crate) fn sums(
    graph: &Graph,
    layers: &[Structures],
    entries: &BTreeMap<ValueId, Vec<f64>>,
) -> Vec<Vec<f64>> {
    let of_group = |group: &AxisGroup| {
        let mut total = 0.0;
        for (&(value, axis), indices) in &group.entries {
            if let Some(entries) = entries.get(&value) {
                let shape = graph.value(value).tensor().expect("a variable").shape();
                each_slice(shape, axis, indices, |range| {
                    total += entries[range].iter().sum::<f64>();
                });
            }
        }
        total
    };
    layers
        .iter()
        .map(|layer| layer.groups.iter().map(of_group).collect())
        .collect()
}

/// Calls a function for each contiguous range of row-major entries at some indices of an axis.
pub(crate) fn each_slice(
    shape: &[usize],
    axis: usize,
    indices: &[usize],
    mut f: impl FnMut(std::ops::Range<usize>),
) {
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    for &i in indices {
        for o in 0..outer {
            let start = (o * shape[axis] + i) * inner;
            f(start..start + inner);
        }
    }
}

/// The scores of a criterion by entry, checked: one an entry, finite, not negative.
pub(crate) fn checked_scores<C: Criterion + ?Sized>(
    criterion: &C,
    graph: &Graph,
    values: &[ValueId],
    cx: &mut Context<'_>,
) -> Result<Vec<Vec<f64>>> {
    let scores = criterion.score_all(graph, values, cx)?;
    if scores.len() != values.len() {
        return Err(Error::new(
            ErrorKind::Data,
            format!(
                "{criterion:?} must score {} parameters, it gave {}",
                values.len(),
                scores.len()
            ),
        ));
    }
    for (scores, &value) in scores.iter().zip(values) {
        let expected = graph.value(value).tensor().map_or(0, Tensor::len);
        check(criterion, scores, expected, graph.value(value).name())?;
    }
    Ok(scores)
}

/// The scores of a criterion by structure, checked likewise.
pub(crate) fn checked_structure_scores(
    criterion: &dyn Criterion,
    graph: &Graph,
    layers: &[Structures],
    weights: &[ValueId],
    cx: &mut Context<'_>,
) -> Result<Vec<Vec<f64>>> {
    let scores = criterion.score_structures(graph, layers, weights, cx)?;
    if scores.len() != layers.len() {
        return Err(Error::new(
            ErrorKind::Data,
            format!(
                "{criterion:?} must score {} layers, it gave {}",
                layers.len(),
                scores.len()
            ),
        ));
    }
    for (scores, layer) in scores.iter().zip(layers) {
        check(criterion, scores, layer.groups.len(), &layer.layer)?;
    }
    Ok(scores)
}

fn check<C: Criterion + ?Sized>(
    criterion: &C,
    scores: &[f64],
    expected: usize,
    place: &str,
) -> Result<()> {
    if scores.len() == expected && scores.iter().all(|s| s.is_finite() && *s >= 0.0) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Data,
        format!(
            "{criterion:?} must give {expected} finite scores of 0 or more; does a parameter \
             hold NaN?"
        ),
    )
    .at(place))
}
