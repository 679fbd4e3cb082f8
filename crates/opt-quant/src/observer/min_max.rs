//! The smallest and the largest value.

use opt_core::{Result, Tensor};

use super::{RangeObserver, finite, nothing_seen, same_kind};
use crate::Scheme;

/// The full range: nothing is clipped.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MinMax {
    range: Option<(f64, f64)>,
}

impl MinMax {
    /// An observer that has seen nothing.
    pub fn new() -> MinMax {
        MinMax::default()
    }

    fn widen(&mut self, low: f64, high: f64) {
        self.range = Some(match self.range {
            Some((l, h)) => (l.min(low), h.max(high)),
            None => (low, high),
        });
    }
}

impl RangeObserver for MinMax {
    fn update(&mut self, tensor: &Tensor) -> Result<()> {
        for v in finite(tensor)? {
            self.widen(v, v);
        }
        Ok(())
    }

    fn merge(&mut self, other: &dyn RangeObserver) -> Result<()> {
        if let Some((low, high)) = same_kind::<MinMax>(other)?.range {
            self.widen(low, high);
        }
        Ok(())
    }

    fn range(&self, _: &Scheme) -> Result<(f64, f64)> {
        self.range.ok_or_else(nothing_seen)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
