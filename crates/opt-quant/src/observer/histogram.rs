//! A histogram of bounded size over an unbounded range.

use opt_core::{Result, Tensor};

use super::finite;

/// Bins on each side of zero.
const HALF: usize = 1024;

/// Counts of values in `2 * 1024` equal bins around zero. When a value falls outside, the width
/// doubles and neighbouring bins are added; widths are powers of two, so that two histograms
/// merge into what one would have counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The width is `2^exponent`.
    exponent: i32,
    /// Bin `HALF + i` counts `[i * width, (i + 1) * width)`.
    bins: Vec<u64>,
    low: f64,
    high: f64,
    zeros: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            exponent: -60,
            bins: vec![0; 2 * HALF],
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
            zeros: 0,
        }
    }
}

impl Histogram {
    /// Counts the values of a tensor, or none of them and an error if one is not finite.
    pub(super) fn add_all(&mut self, tensor: &Tensor) -> Result<()> {
        finite(tensor)?.into_iter().for_each(|v| self.add(v));
        Ok(())
    }

    /// Counts a finite value.
    pub fn add(&mut self, value: f64) {
        self.low = self.low.min(value);
        self.high = self.high.max(value);
        if value == 0.0 {
            self.zeros += 1;
            return;
        }
        loop {
            let bin = (value / self.width()).floor() + HALF as f64;
            if bin >= 0.0 && bin < 2.0 * HALF as f64 {
                self.bins[bin as usize] += 1;
                return;
            }
            self.double();
        }
    }

    fn double(&mut self) {
        let mut bins = vec![0; 2 * HALF];
        for (i, &count) in self.bins.iter().enumerate() {
            // floor(i / 2) of the signed bin number.
            bins[(i + HALF) / 2] += count;
        }
        self.bins = bins;
        self.exponent += 1;
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Histogram) {
        let mut other = other.clone();
        while self.exponent < other.exponent {
            self.double();
        }
        while other.exponent < self.exponent {
            other.double();
        }
        for (a, b) in self.bins.iter_mut().zip(&other.bins) {
            *a += b;
        }
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
        self.zeros += other.zeros;
    }

    /// The width of a bin.
    pub fn width(&self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    /// The smallest and largest value; `None` if nothing was counted.
    pub fn range(&self) -> Option<(f64, f64)> {
        (self.low <= self.high).then_some((self.low, self.high))
    }

    /// The number of values.
    pub fn count(&self) -> u64 {
        self.zeros + self.bins.iter().sum::<u64>()
    }

    /// The bins that hold values, as (middle, count), ascending; exact zeros are a bin of their
    /// own.
    pub fn bins(&self) -> Vec<(f64, u64)> {
        let width = self.width();
        let mut out = Vec::new();
        for (i, &count) in self.bins.iter().enumerate() {
            if i == HALF && self.zeros > 0 {
                out.push((0.0, self.zeros));
            }
            if count > 0 {
                out.push(((i as f64 - HALF as f64 + 0.5) * width, count));
            }
        }
        out
    }
}
