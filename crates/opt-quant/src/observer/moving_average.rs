//! Smallest and largest values of batches, averaged.

use opt_core::{Error, ErrorKind, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{RangeObserver, extremes, in_order, nothing_seen, same_kind};
use crate::Scheme;

/// An exponential moving average of the smallest and of the largest value of each batch: the first
/// batch sets the range, and of each further one `range += constant * (batch - range)`, as PyTorch's
/// `MovingAverageMinMaxObserver`.
///
/// The range depends on the order of the batches and on their size. Merging appends: the result is
/// what one observer would have found that saw the batches of the first and then those of the
/// second, but for rounding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct MovingAverage {
    constant: f64,
    seen: Option<Seen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    batches: u64,
    /// The range of the first batch, whose share a merge has to take out again.
    first: (f64, f64),
    average: (f64, f64),
}

impl MovingAverage {
    /// PyTorch's averaging constant.
    pub const CONSTANT: f64 = 0.01;

    /// An observer that has seen nothing; a batch has this share of the average when it comes.
    ///
    /// # Errors
    /// If the constant is not in `(0, 1]`.
    pub fn new(constant: f64) -> Result<MovingAverage> {
        if !(constant > 0.0 && constant <= 1.0) {
            return Err(Error::invalid(format!(
                "an averaging constant of {constant}, not in (0, 1]"
            )));
        }
        Ok(MovingAverage {
            constant,
            seen: None,
        })
    }

    /// The share that is left of an average after more batches.
    fn decay(&self, batches: u64) -> f64 {
        (1.0 - self.constant).powf(batches as f64)
    }
}

impl RangeObserver for MovingAverage {
    fn update(&mut self, tensor: &Tensor) -> Result<()> {
        let Some(batch) = extremes(tensor)? else {
            return Ok(());
        };
        let step = |average: f64, new: f64| average + self.constant * (new - average);
        self.seen = Some(match self.seen {
            None => Seen {
                batches: 1,
                first: batch,
                average: batch,
            },
            Some(seen) => Seen {
                batches: seen.batches.saturating_add(1),
                first: seen.first,
                average: (step(seen.average.0, batch.0), step(seen.average.1, batch.1)),
            },
        });
        Ok(())
    }

    fn merge(&mut self, other: &dyn RangeObserver) -> Result<()> {
        let other = same_kind::<MovingAverage>(other)?;
        if other.constant != self.constant {
            return Err(Error::invalid(format!(
                "cannot merge averages with constants {} and {}",
                self.constant, other.constant
            )));
        }
        self.seen = match (self.seen, other.seen) {
            (Some(a), Some(b)) => {
                // The second began at its first batch instead of at the average of the first.
                let decay = self.decay(b.batches);
                let join = |average: f64, first: f64, then: f64| then + decay * (average - first);
                let low = join(a.average.0, b.first.0, b.average.0);
                let high = join(a.average.1, b.first.1, b.average.1);
                Some(Seen {
                    batches: a.batches.saturating_add(b.batches),
                    first: a.first,
                    // An average of ordered pairs, which rounding must not turn around.
                    average: (low.min(high), high.max(low)),
                })
            }
            (one, two) => one.or(two),
        };
        Ok(())
    }

    fn range(&self, _: &Scheme) -> Result<(f64, f64)> {
        Ok(self.seen.ok_or_else(nothing_seen)?.average)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    constant: f64,
    seen: Option<Seen>,
}

impl From<MovingAverage> for Stored {
    fn from(observer: MovingAverage) -> Stored {
        Stored {
            constant: observer.constant,
            seen: observer.seen,
        }
    }
}

impl TryFrom<Stored> for MovingAverage {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<MovingAverage> {
        let mut observer = MovingAverage::new(stored.constant)?;
        if let Some(seen) = stored.seen {
            in_order(seen.first)?;
            in_order(seen.average)?;
            if seen.batches == 0 {
                return Err(Error::new(ErrorKind::Data, "an average of no batches"));
            }
        }
        observer.seen = stored.seen;
        Ok(observer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn observer(constant: f64, batches: &[(f32, f32)]) -> MovingAverage {
        let mut observer = MovingAverage::new(constant).unwrap();
        for &(a, b) in batches {
            observer.update(&Tensor::new([2], [a, b]).unwrap()).unwrap();
        }
        observer
    }

    fn range(observer: &MovingAverage) -> (f64, f64) {
        observer.range(&Scheme::activations()).unwrap()
    }

    /// What `torch.ao.quantization.MovingAverageMinMaxObserver` finds for these three batches.
    #[test]
    fn averages_are_those_of_pytorch() {
        let batches = [(-1.0, 2.0), (-3.0, 1.0), (0.5, 8.0)];
        let (low, high) = range(&observer(0.01, &batches));
        assert!((low - -1.0048).abs() < 1e-6, "{low}");
        assert!((high - 2.0501).abs() < 1e-6, "{high}");
        let (low, high) = range(&observer(0.5, &batches));
        assert_eq!((low, high), (-0.75, 4.75));
    }

    #[test]
    fn constants_are_checked() {
        for constant in [0.0, -0.1, 1.5, f64::NAN] {
            assert!(MovingAverage::new(constant).is_err(), "{constant}");
        }
        let (mut a, b) = (observer(0.1, &[(0.0, 1.0)]), observer(0.2, &[(0.0, 1.0)]));
        assert!(a.merge(&b).is_err());
    }

    proptest! {
        #[test]
        fn merging_appends(
            batches in proptest::collection::vec((-9f32..9.0, -9f32..9.0), 1..40),
            cut in 0usize..40,
            cut2 in 0usize..40,
            constant in 0.001f64..=1.0,
        ) {
            let (cut, cut2) = (cut.min(batches.len()), cut2.min(batches.len()));
            let (one, two) = (cut.min(cut2), cut.max(cut2));
            let parts = [&batches[..one], &batches[one..two], &batches[two..]];
            let parts = parts.map(|part| observer(constant, part));
            let expected = range(&observer(constant, &batches));
            // (a b) c and a (b c).
            let (mut left, mut right) = (parts[0].clone(), parts[1].clone());
            left.merge(&parts[1]).unwrap();
            left.merge(&parts[2]).unwrap();
            right.merge(&parts[2]).unwrap();
            let mut first = parts[0].clone();
            first.merge(&right).unwrap();
            for merged in [left, first] {
                let found = range(&merged);
                prop_assert!((found.0 - expected.0).abs() < 1e-12);
                prop_assert!((found.1 - expected.1).abs() < 1e-12);
            }
        }
    }
}
