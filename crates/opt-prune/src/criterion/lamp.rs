//! Layer-adaptive magnitude.

use opt_core::Result;

use super::{Criterion, ScoreContext};

/// Layer-adaptive magnitude (LAMP; Lee et al. 2021, equation 6): `w^2` divided by the sum of the
/// squares of the tensor's weights that are no smaller. By it a
/// [global](crate::Scope::Global) ranking keeps at least one weight of each layer unless all go,
/// and needs no sparsity a layer. Within one tensor the order is that of
/// [`Magnitude`](crate::Magnitude).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lamp;

impl Criterion for Lamp {
    fn score(&self, cx: &ScoreContext<'_>) -> Result<Vec<f64>> {
        let squares: Vec<f64> = cx.tensor.to_f64s().into_iter().map(|w| w * w).collect();
        let mut order: Vec<usize> = (0..squares.len()).collect();
        // Of equal weights the later ones count as larger: ties go by position.
        order.sort_by(|&a, &b| squares[a].total_cmp(&squares[b]));
        let mut scores = vec![0.0; squares.len()];
        let mut sum = 0.0;
        for i in order.into_iter().rev() {
            sum += squares[i];
            scores[i] = match sum > 0.0 {
                true => squares[i] / sum,
                false => squares[i],
            };
        }
        Ok(scores)
    }
}
