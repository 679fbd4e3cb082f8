//! Criteria: how much an entry of a parameter matters.

mod magnitude;
mod random;

pub use magnitude::Magnitude;
pub use random::Random;

use opt_core::{Graph, Result, Tensor, ValueId};

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

/// Scores the entries of a parameter: the lowest go first.
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
    /// One score of 0 or more for each entry of the tensor, in row-major order. A channel's score
    /// is the sum of its entries'.
    ///
    /// # Errors
    /// If the tensor holds NaN or infinities.
    fn score(&self, cx: &ScoreContext<'_>) -> Result<Vec<f64>>;
}

impl Criterion for Box<dyn Criterion> {
    fn score(&self, cx: &ScoreContext<'_>) -> Result<Vec<f64>> {
        self.as_ref().score(cx)
    }
}

/// The scores of a criterion, checked: one a entry, finite, not negative.
pub(crate) fn scores(
    criterion: &dyn Criterion,
    graph: &Graph,
    value: ValueId,
    tensor: &Tensor,
    seed: u64,
) -> Result<Vec<f64>> {
    use opt_core::{Error, ErrorKind, ResultExt};
    let cx = ScoreContext {
        graph,
        value,
        tensor,
        seed,
    };
    let place = || graph.value(value).name().to_string();
    let scores = criterion.score(&cx).at(place)?;
    let good = scores.len() == tensor.len() && scores.iter().all(|s| s.is_finite() && *s >= 0.0);
    if good {
        return Ok(scores);
    }
    Err(Error::new(
        ErrorKind::Data,
        format!(
            "{criterion:?} must give {} finite scores of 0 or more; does the parameter hold NaN?",
            tensor.len()
        ),
    )
    .at(place()))
}
