//! An observer of any kind, as data.

use opt_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Kl, MinMax, MovingAverage, Mse, Percentile, RangeObserver};
use crate::Scheme;

/// An observer of one of the kinds that there are, which can be copied, compared and written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AnyObserver {
    /// The full range.
    MinMax(MinMax),
    /// The average of batches' ranges.
    MovingAverage(MovingAverage),
    /// The range of most values.
    Percentile(Percentile),
    /// The range with the smallest loss of information.
    Kl(Kl),
    /// The range with the smallest squared error.
    Mse(Mse),
}

impl AnyObserver {
    fn inner(&self) -> &dyn RangeObserver {
        match self {
            AnyObserver::MinMax(o) => o,
            AnyObserver::MovingAverage(o) => o,
            AnyObserver::Percentile(o) => o,
            AnyObserver::Kl(o) => o,
            AnyObserver::Mse(o) => o,
        }
    }

    fn inner_mut(&mut self) -> &mut dyn RangeObserver {
        match self {
            AnyObserver::MinMax(o) => o,
            AnyObserver::MovingAverage(o) => o,
            AnyObserver::Percentile(o) => o,
            AnyObserver::Kl(o) => o,
            AnyObserver::Mse(o) => o,
        }
    }
}

impl RangeObserver for AnyObserver {
    fn update(&mut self, tensor: &Tensor) -> Result<()> {
        self.inner_mut().update(tensor)
    }

    fn merge(&mut self, other: &dyn RangeObserver) -> Result<()> {
        self.inner_mut().merge(other)
    }

    fn range(&self, scheme: &Scheme) -> Result<(f64, f64)> {
        self.inner().range(scheme)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self.inner().as_any()
    }
}
