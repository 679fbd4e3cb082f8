//! The range of most of the values.

use opt_core::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Histogram, RangeObserver, nothing_seen, same_kind};
use crate::Scheme;

/// The range that leaves out an equal share of values at either end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Percentile {
    share: f64,
    histogram: Histogram,
}

impl Percentile {
    /// Keeps a share, in `(0, 1]`, of the values inside the range.
    ///
    /// # Errors
    /// If the share is out of range.
    pub fn new(share: f64) -> Result<Percentile> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::invalid(format!(
                "a percentile of {share}, not in (0, 1]"
            )));
        }
        Ok(Percentile {
            share,
            histogram: Histogram::default(),
        })
    }
}

impl RangeObserver for Percentile {
    fn update(&mut self, tensor: &Tensor) -> Result<()> {
        self.histogram.add_all(tensor)
    }

    fn merge(&mut self, other: &dyn RangeObserver) -> Result<()> {
        let other = same_kind::<Percentile>(other)?;
        if other.share != self.share {
            return Err(Error::invalid(format!(
                "cannot merge percentiles of {} and {}",
                self.share, other.share
            )));
        }
        self.histogram.merge(&other.histogram);
        Ok(())
    }

    fn range(&self, _: &Scheme) -> Result<(f64, f64)> {
        let (low, high) = self.histogram.range().ok_or_else(nothing_seen)?;
        let tail = (1.0 - self.share) / 2.0 * self.histogram.count() as f64;
        let half = self.histogram.width() / 2.0;
        let bins = self.histogram.bins();
        let end = |bins: &mut dyn Iterator<Item = &(f64, u64)>| -> Option<f64> {
            let mut seen = 0.0;
            for &(middle, count) in bins {
                seen += count as f64;
                if seen > tail {
                    return Some(middle);
                }
            }
            None
        };
        let below = end(&mut bins.iter()).map_or(low, |m| if m == 0.0 { 0.0 } else { m - half });
        let above =
            end(&mut bins.iter().rev()).map_or(high, |m| if m == 0.0 { 0.0 } else { m + half });
        Ok((below.max(low), above.min(high)))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    share: f64,
    histogram: Histogram,
}

impl From<Percentile> for Stored {
    fn from(observer: Percentile) -> Stored {
        Stored {
            share: observer.share,
            histogram: observer.histogram,
        }
    }
}

impl TryFrom<Stored> for Percentile {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Percentile> {
        Ok(Percentile {
            histogram: stored.histogram,
            ..Percentile::new(stored.share)?
        })
    }
}
