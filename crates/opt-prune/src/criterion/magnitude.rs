//! Magnitude.

use opt_core::Result;

use super::{Criterion, ScoreContext};

/// The size of an entry: `|w|` (L1) or `w^2` (L2); for single entries both give one order, for
/// channels the sums differ (Li et al. 2017 use L1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Magnitude {
    squared: bool,
}

impl Magnitude {
    /// `|w|`.
    pub fn l1() -> Magnitude {
        Magnitude { squared: false }
    }

    /// `w^2`.
    pub fn l2() -> Magnitude {
        Magnitude { squared: true }
    }
}

impl Criterion for Magnitude {
    fn score(&self, cx: &ScoreContext<'_>) -> Result<Vec<f64>> {
        let size = |w: f64| if self.squared { w * w } else { w.abs() };
        Ok(cx.tensor.to_f64s().into_iter().map(size).collect())
    }
}
