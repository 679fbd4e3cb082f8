//! The range with the smallest loss of information.

use opt_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Histogram, RangeObserver, nothing_seen, same_kind};
use crate::Scheme;

/// Clips the magnitudes where the Kullback-Leibler divergence between the distribution, with the
/// clipped values at its end, and its quantized form is smallest (Migacz 2017, as TensorRT and
/// ONNX Runtime's entropy calibration).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kl {
    histogram: Histogram,
}

impl Kl {
    /// An observer that has seen nothing.
    pub fn new() -> Kl {
        Kl::default()
    }
}

/// Bins of magnitudes; thresholds lie at their ends.
const BINS: usize = 1024;

/// The divergence when the first `cut` bins are quantized to `levels`.
fn divergence(bins: &[f64], cut: usize, levels: usize) -> f64 {
    let mut p = bins[..cut].to_vec();
    p[cut - 1] += bins[cut..].iter().sum::<f64>();
    let mut q = vec![0.0; cut];
    for level in 0..levels {
        let (start, end) = (level * cut / levels, (level + 1) * cut / levels);
        let filled = bins[start..end].iter().filter(|&&v| v > 0.0).count();
        let sum: f64 = bins[start..end].iter().sum();
        for i in start..end {
            if bins[i] > 0.0 {
                q[i] = sum / filled as f64;
            }
        }
    }
    let (total_p, total_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
    if total_q == 0.0 {
        return f64::INFINITY;
    }
    // A bin that only the clipped values fill has no quantized counterpart; a small mass there
    // makes its divergence large instead of infinite.
    p.iter()
        .zip(&q)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, q)| {
            let (p, q) = (p / total_p, (q / total_q).max(1e-10));
            p * (p / q).ln()
        })
        .sum()
}

impl RangeObserver for Kl {
    fn update(&mut self, tensor: &Tensor) -> Result<()> {
        self.histogram.add_all(tensor)
    }

    fn merge(&mut self, other: &dyn RangeObserver) -> Result<()> {
        self.histogram.merge(&same_kind::<Kl>(other)?.histogram);
        Ok(())
    }

    fn range(&self, scheme: &Scheme) -> Result<(f64, f64)> {
        let (low, high) = self.histogram.range().ok_or_else(nothing_seen)?;
        let largest = low.abs().max(high.abs());
        if largest == 0.0 {
            return Ok((0.0, 0.0));
        }
        let (qmin, qmax) = scheme.grid()?;
        // A range on one side of zero has all levels for its magnitudes.
        let levels = if low >= 0.0 || high <= 0.0 {
            qmax - qmin + 1
        } else {
            (qmax - qmin + 1) / 2
        } as usize;
        let mut bins = vec![0.0; BINS];
        for (v, count) in self.histogram.bins() {
            // Exact zeros are representable whatever the range is.
            if v != 0.0 {
                let at = (v.abs() / largest * BINS as f64) as usize;
                bins[at.min(BINS - 1)] += count as f64;
            }
        }
        let mut best = (f64::INFINITY, BINS);
        for cut in (levels.min(BINS)..=BINS).step_by(4) {
            let d = divergence(&bins, cut, levels.min(cut));
            if d < best.0 {
                best = (d, cut);
            }
        }
        let limit = largest * best.1 as f64 / BINS as f64;
        Ok((low.max(-limit), high.min(limit)))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
