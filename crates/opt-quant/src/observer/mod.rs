//! Observers: the range of values that stream by, in bounded memory, mergeable.

mod any;
mod histogram;
mod kl;
mod min_max;
mod moving_average;
mod mse;
mod percentile;

pub use any::AnyObserver;
pub use histogram::Histogram;
pub use kl::Kl;
pub use min_max::MinMax;
pub use moving_average::MovingAverage;
pub use mse::Mse;
pub use percentile::Percentile;

use opt_core::{Error, ErrorKind, Result, Tensor};

use crate::Scheme;

/// Watches tensors and proposes the range to quantize.
///
/// ```
/// use opt_core::Tensor;
/// use opt_quant::{ObserverKind, RangeObserver, Scheme};
///
/// let mut values = vec![0.5f32; 9_999];
/// values.push(80.0);
/// let batch = Tensor::new([10_000], values)?;
/// let range = |kind: ObserverKind| -> opt_quant::Result<(f64, f64)> {
///     let mut observer = kind.observer()?;
///     observer.update(&batch)?;
///     observer.range(&Scheme::activations())
/// };
/// assert_eq!(range(ObserverKind::MinMax)?, (0.5, 80.0));
/// let (_, high) = range(ObserverKind::Percentile(0.999))?;
/// assert!(high < 1.0, "the one outlier is clipped");
/// # Ok::<(), opt_quant::Error>(())
/// ```
pub trait RangeObserver: std::fmt::Debug + Send {
    /// Takes in a tensor's values.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if one is NaN or infinite.
    fn update(&mut self, tensor: &Tensor) -> Result<()>;

    /// Takes in what another observer of the same kind has seen.
    ///
    /// # Errors
    /// If it is of another kind.
    fn merge(&mut self, other: &dyn RangeObserver) -> Result<()>;

    /// The range for a scheme.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if nothing was seen.
    fn range(&self, scheme: &Scheme) -> Result<(f64, f64)>;

    /// The observer as `Any`, for [`RangeObserver::merge`].
    fn as_any(&self) -> &dyn std::any::Any;
}

/// Which observer to use.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum ObserverKind {
    /// [`MinMax`].
    #[default]
    MinMax,
    /// [`MovingAverage`] with this averaging constant, such as [`MovingAverage::CONSTANT`].
    MovingAverage(f64),
    /// [`Percentile`] with this share of values inside, such as 0.9999.
    Percentile(f64),
    /// [`Kl`].
    Kl,
    /// [`Mse`].
    Mse,
}

impl ObserverKind {
    /// A new observer of the kind.
    ///
    /// # Errors
    /// If a percentile or an averaging constant is not in `(0, 1]`.
    pub fn observer(self) -> Result<AnyObserver> {
        Ok(match self {
            ObserverKind::MinMax => AnyObserver::MinMax(MinMax::new()),
            ObserverKind::MovingAverage(constant) => {
                AnyObserver::MovingAverage(MovingAverage::new(constant)?)
            }
            ObserverKind::Percentile(share) => AnyObserver::Percentile(Percentile::new(share)?),
            ObserverKind::Kl => AnyObserver::Kl(Kl::new()),
            ObserverKind::Mse => AnyObserver::Mse(Mse::new()),
        })
    }
}

/// The values of a tensor of `f32` that is no strided view.
fn singles(tensor: &Tensor) -> Option<&[f32]> {
    tensor.as_slice::<f32>().ok()
}

/// The smallest and the largest value of a tensor; `None` if it is empty.
///
/// # Errors
/// [`ErrorKind::Data`] if a value is NaN or infinite.
fn extremes(tensor: &Tensor) -> Result<Option<(f64, f64)>> {
    let found = match singles(tensor) {
        Some(values) => extremes_of(values).map(|(l, h)| (f64::from(l), f64::from(h))),
        None => tensor.to_f64s().into_iter().try_fold(
            (f64::INFINITY, f64::NEG_INFINITY),
            |(low, high): (f64, f64), v| v.is_finite().then(|| (low.min(v), high.max(v))),
        ),
    };
    if let Some((low, high)) = found {
        return Ok((low <= high).then_some((low, high)));
    }
    let data = tensor.to_f64s();
    let (i, v) = data
        .iter()
        .enumerate()
        .find(|(_, v)| !v.is_finite())
        .expect("one was found");
    Err(Error::new(
        ErrorKind::Data,
        format!("value {i} is {v} at calibration"),
    ))
}

/// The smallest and the largest of some numbers, the wrong way round if there are none; `None` if one
/// is NaN or infinite.
fn extremes_of(values: &[f32]) -> Option<(f32, f32)> {
    // As many as a register holds, which have nothing to do with each other.
    const LANES: usize = 16;
    let mut low = [f32::INFINITY; LANES];
    let mut high = [f32::NEG_INFINITY; LANES];
    let mut wrong = [0u32; LANES];
    let mut take = |chunk: &[f32]| {
        for (i, &v) in chunk.iter().enumerate() {
            low[i] = if v < low[i] { v } else { low[i] };
            high[i] = if v > high[i] { v } else { high[i] };
            wrong[i] |= u32::from(!v.is_finite());
        }
    };
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    chunks.for_each(&mut take);
    take(rest);
    let all = |ends: [f32; LANES], f: fn(f32, f32) -> f32, start| ends.into_iter().fold(start, f);
    wrong.iter().all(|&w| w == 0).then(|| {
        (
            all(low, f32::min, f32::INFINITY),
            all(high, f32::max, f32::NEG_INFINITY),
        )
    })
}

/// Fails unless a range that was read is one of finite numbers, from the lower to the higher.
fn in_order((low, high): (f64, f64)) -> Result<()> {
    match low.is_finite() && high.is_finite() && low <= high {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Data,
            format!("a range from {low} to {high}"),
        )),
    }
}

fn nothing_seen() -> Error {
    Error::new(ErrorKind::Data, "the observer has seen no values")
}

/// The other observer, if it is of this kind.
fn same_kind<T: 'static>(other: &dyn RangeObserver) -> Result<&T> {
    other
        .as_any()
        .downcast_ref()
        .ok_or_else(|| Error::invalid(format!("cannot merge with {other:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ObserverKind; 5] = [
        ObserverKind::MinMax,
        ObserverKind::MovingAverage(0.01),
        ObserverKind::Percentile(0.999),
        ObserverKind::Kl,
        ObserverKind::Mse,
    ];

    fn normal(seed: u64, n: u64, scale: f64) -> Tensor {
        let stream = opt_core::random::Philox::new(seed);
        let data: Vec<f64> = (0..n).map(|i| stream.normal(0, i) * scale).collect();
        Tensor::from_f64s(opt_core::DType::F32, [n as usize], &data).unwrap()
    }

    #[test]
    fn merging_equals_seeing_all() {
        let (a, b) = (normal(1, 5000, 1.0), normal(2, 3000, 7.0));
        // Averages are merged but for rounding, and tested where they are.
        for kind in KINDS
            .into_iter()
            .filter(|k| *k != ObserverKind::MovingAverage(0.01))
        {
            let mut all = kind.observer().unwrap();
            all.update(&a).unwrap();
            all.update(&b).unwrap();
            let (mut one, mut two) = (kind.observer().unwrap(), kind.observer().unwrap());
            one.update(&a).unwrap();
            two.update(&b).unwrap();
            one.merge(&two).unwrap();
            let scheme = Scheme::activations();
            assert_eq!(
                one.range(&scheme).unwrap(),
                all.range(&scheme).unwrap(),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn outliers_are_clipped_by_all_but_min_max() {
        let mut data = normal(3, 20_000, 1.0).to_f64s();
        data.push(100.0);
        let x = Tensor::from_f64s(opt_core::DType::F32, [data.len()], &data).unwrap();
        for kind in KINDS {
            let mut observer = kind.observer().unwrap();
            observer.update(&x).unwrap();
            let (_, high) = observer.range(&Scheme::activations()).unwrap();
            // One far value of 20,001 is little information, but much squared error.
            match kind {
                ObserverKind::MinMax | ObserverKind::MovingAverage(_) => assert_eq!(high, 100.0),
                ObserverKind::Mse => assert!((60.0..100.0).contains(&high), "{high}"),
                _ => assert!((2.0..60.0).contains(&high), "{kind:?}: {high}"),
            }
        }
    }

    #[test]
    fn nothing_and_nan_are_errors_and_zeros_are_a_range() {
        for kind in KINDS {
            let mut observer = kind.observer().unwrap();
            assert!(observer.range(&Scheme::activations()).is_err());
            let nan = Tensor::new([2], [1.0f32, f32::NAN]).unwrap();
            assert_eq!(observer.update(&nan).unwrap_err().kind(), ErrorKind::Data);
            let zeros = Tensor::new([3], [0f32; 3]).unwrap();
            observer.update(&zeros).unwrap();
            assert_eq!(observer.range(&Scheme::activations()).unwrap(), (0.0, 0.0));
        }
        assert!(ObserverKind::Percentile(0.0).observer().is_err());
        assert!(ObserverKind::MovingAverage(0.0).observer().is_err());
    }

    #[test]
    fn extremes_are_those_of_any_layout_and_length() {
        for length in [1, 15, 16, 17, 40] {
            let wide = normal(4, length, 3.0);
            let values = wide.to_f64s();
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(extremes(&wide).unwrap(), Some((low, high)));
            let double = wide.cast(opt_core::DType::F64);
            assert_eq!(extremes(&double).unwrap(), Some((low, high)));
            for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut values = values.clone();
                *values.last_mut().unwrap() = wrong;
                let x = Tensor::from_f64s(opt_core::DType::F32, [values.len()], &values).unwrap();
                let error = extremes(&x).unwrap_err();
                assert!(error.message().contains(&format!("value {}", length - 1)));
            }
        }
        let view = normal(5, 12, 1.0).reshape([3, 4]).unwrap();
        let turned = view.transpose(&[1, 0]).unwrap();
        assert_eq!(extremes(&turned).unwrap(), extremes(&view).unwrap());
        assert_eq!(extremes(&normal(5, 0, 1.0)).unwrap(), None);
    }

    #[test]
    fn kinds_and_settings_do_not_mix() {
        for a in KINDS {
            for b in KINDS {
                let merged = a.observer().unwrap().merge(&b.observer().unwrap());
                assert_eq!(merged.is_ok(), a == b, "{a:?} {b:?}");
            }
        }
        let (a, b) = (
            ObserverKind::Percentile(0.99),
            ObserverKind::Percentile(0.9),
        );
        assert!(a.observer().unwrap().merge(&b.observer().unwrap()).is_err());
    }
}
