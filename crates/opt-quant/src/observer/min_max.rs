//! The smallest and the largest value.

use opt_core::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{RangeObserver, extremes, in_order, nothing_seen, same_kind};
use crate::Scheme;

/// The full range: nothing is clipped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct MinMax {
    range: Option<(f64, f64)>,
}

impl MinMax {
    /// An observer that has seen nothing.
    pub fn new() -> MinMax {
        MinMax::default()
    }

    fn widen(&mut self, (low, high): (f64, f64)) {
        self.range = Some(match self.range {
            Some((l, h)) => (l.min(low), h.max(high)),
            None => (low, high),
        });
    }
}

impl RangeObserver for MinMax {
    fn update(&mut self, tensor: &Tensor) -> Result<()> {
        if let Some(range) = extremes(tensor)? {
            self.widen(range);
        }
        Ok(())
    }

    fn merge(&mut self, other: &dyn RangeObserver) -> Result<()> {
        if let Some(range) = same_kind::<MinMax>(other)?.range {
            self.widen(range);
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

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    range: Option<(f64, f64)>,
}

impl From<MinMax> for Stored {
    fn from(observer: MinMax) -> Stored {
        Stored {
            range: observer.range,
        }
    }
}

impl TryFrom<Stored> for MinMax {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<MinMax> {
        stored.range.map_or(Ok(()), in_order)?;
        Ok(MinMax {
            range: stored.range,
        })
    }
}
