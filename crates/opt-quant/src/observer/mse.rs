//! The range with the smallest squared error.

use opt_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Histogram, RangeObserver, nothing_seen, same_kind};
use crate::Scheme;

/// Tries shrunken copies of the full range and keeps that whose grid has the smallest mean
/// squared error, rounding and clipping together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mse {
    histogram: Histogram,
}

/// Shares of the full range that are tried.
const TRIALS: usize = 128;

impl Mse {
    /// An observer that has seen nothing.
    pub fn new() -> Mse {
        Mse::default()
    }
}

impl RangeObserver for Mse {
    fn update(&mut self, tensor: &Tensor) -> Result<()> {
        self.histogram.add_all(tensor)
    }

    fn merge(&mut self, other: &dyn RangeObserver) -> Result<()> {
        self.histogram.merge(&same_kind::<Mse>(other)?.histogram);
        Ok(())
    }

    fn range(&self, scheme: &Scheme) -> Result<(f64, f64)> {
        let (low, high) = self.histogram.range().ok_or_else(nothing_seen)?;
        let (qmin, qmax) = scheme.grid()?;
        let bins = self.histogram.bins();
        let mut best = (f64::INFINITY, (low, high));
        for trial in (1..=TRIALS).rev() {
            let share = trial as f64 / TRIALS as f64;
            let range = (low * share, high * share);
            let (scale, zero) = scheme.scale(range.0, range.1)?;
            let (scale, zero) = (f64::from(scale), f64::from(zero));
            let error: f64 = bins
                .iter()
                .map(|&(v, count)| {
                    let q = (v / scale).round_ties_even() + zero;
                    let back = (q.clamp(f64::from(qmin), f64::from(qmax)) - zero) * scale;
                    (v - back).powi(2) * count as f64
                })
                .sum();
            if error < best.0 {
                best = (error, range);
            }
        }
        Ok(best.1)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
