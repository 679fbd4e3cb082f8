//! Observers: the range of values that stream by, in bounded memory, mergeable.

mod histogram;
mod kl;
mod min_max;
mod mse;
mod percentile;

pub use histogram::Histogram;
pub use kl::Kl;
pub use min_max::MinMax;
pub use mse::Mse;
pub use percentile::Percentile;

use opt_core::{Error, ErrorKind, Result, Tensor};

use crate::Scheme;

/// Watches tensors and proposes the range to quantize.
///
/// ```
/// use opt_core::Tensor;
/// use opt_quant::{ObserverKind, Scheme};
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
    /// If a percentile is not in `(0, 1]`.
    pub fn observer(self) -> Result<Box<dyn RangeObserver>> {
        Ok(match self {
            ObserverKind::MinMax => Box::new(MinMax::new()),
            ObserverKind::Percentile(share) => Box::new(Percentile::new(share)?),
            ObserverKind::Kl => Box::new(Kl::new()),
            ObserverKind::Mse => Box::new(Mse::new()),
        })
    }
}

/// The values of a tensor, all finite.
fn finite(tensor: &Tensor) -> Result<Vec<f64>> {
    let data = tensor.to_f64s();
    match data.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Error::new(
            ErrorKind::Data,
            format!("value {i} is {} at calibration", data[i]),
        )),
        None => Ok(data),
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

    const KINDS: [ObserverKind; 4] = [
        ObserverKind::MinMax,
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
        for kind in KINDS {
            let mut all = kind.observer().unwrap();
            all.update(&a).unwrap();
            all.update(&b).unwrap();
            let (mut one, mut two) = (kind.observer().unwrap(), kind.observer().unwrap());
            one.update(&a).unwrap();
            two.update(&b).unwrap();
            one.merge(two.as_ref()).unwrap();
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
                ObserverKind::MinMax => assert_eq!(high, 100.0),
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
    }
}
