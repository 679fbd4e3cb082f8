//! One pass over a field of a data set, and what is computed from it.

use super::{Per, run_length};
use crate::{Batches, Dataset, Error, ErrorKind, Result, ResultExt, Tensor};

/// Examples that are read at a time.
const BATCH: usize = 256;

/// Whether a field may have NaN, which stands for a missing value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Refused,
    /// They are visited as well.
    Allowed,
}

/// Mean and sum of squared differences of a stream (Welford 1962): constant streams give exactly
/// 0, and large means do not cancel.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moments {
    pub(super) count: f64,
    pub(super) mean: f64,
    pub(super) squares: f64,
}

impl Moments {
    pub(super) fn push(&mut self, value: f64) {
        self.count += 1.0;
        let delta = value - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (value - self.mean);
    }

    /// The standard deviation; 1 where the variance is within rounding of 0, by scikit-learn's
    /// rule (`_is_constant_feature`).
    pub(super) fn scale(&self) -> f64 {
        let variance = self.squares / self.count;
        let rounding = self.count * f64::EPSILON;
        let bound = rounding * variance + (rounding * self.mean).powi(2);
        if variance <= bound {
            1.0
        } else {
            variance.sqrt()
        }
    }
}

/// Calls `visit` with each batch of an `f32` field: the index of its first example, the elements
/// in row-major order, and the shape of an example, which has elements and is given back.
pub(super) fn each_batch(
    data: &dyn Dataset,
    field: usize,
    missing: Missing,
    mut visit: impl FnMut(usize, &[f32], &[usize]) -> Result<()>,
) -> Result<Vec<usize>> {
    let place = || format!("field {field}");
    let mut shape: Option<Vec<usize>> = None;
    for (b, batch) in Batches::new(data, BATCH)?.enumerate() {
        let batch = batch?;
        let x = batch
            .get(field)
            .ok_or_else(|| Error::invalid(format!("no field {field}: there are {}", batch.len())))?
            .contiguous();
        let example = shape.get_or_insert_with(|| x.shape()[1..].to_vec());
        if x.shape()[1..] != **example {
            return Err(Error::shape(format!(
                "expected examples of shape {example:?}, found {:?}",
                &x.shape()[1..]
            ))
            .at(place()));
        }
        let width = example.iter().product::<usize>();
        if width == 0 {
            break;
        }
        let values = x.as_slice::<f32>().at(place)?;
        let bad = |v: &f32| !(v.is_finite() || missing == Missing::Allowed && v.is_nan());
        if let Some(at) = values.iter().position(bad) {
            let message = match (missing, values[at].is_nan()) {
                (Missing::Refused, true) => "is NaN; fill missing values with an `Imputer` first",
                _ => "is infinite",
            };
            return Err(
                Error::new(ErrorKind::Data, format!("element {} {message}", at % width))
                    .at(format!("row {}", b * BATCH + at / width))
                    .at(place()),
            );
        }
        visit(b * BATCH, values, example).at(place)?;
    }
    shape
        .filter(|s| s.iter().all(|&d| d > 0))
        .ok_or_else(|| Error::new(ErrorKind::Data, format!("field {field} holds no elements")))
}

/// Calls `visit` with the parameter's index and the value for each element of a field without
/// missing values; returns the shape of an example.
pub(super) fn for_each(
    data: &dyn Dataset,
    field: usize,
    per: Per,
    mut visit: impl FnMut(usize, f64),
) -> Result<Vec<usize>> {
    each_batch(data, field, Missing::Refused, |_, values, example| {
        if per == Per::Channel && example.is_empty() {
            return Err(Error::shape("a scalar field has no channels"));
        }
        let width: usize = example.iter().product();
        let run = run_length(example, per);
        for (i, &value) in values.iter().enumerate() {
            visit(i % width / run, f64::from(value));
        }
        Ok(())
    })
}

/// The values of each parameter of a field, missing ones left out; and the shape of an example.
/// This holds the field once more.
pub(super) fn columns(
    data: &dyn Dataset,
    field: usize,
    per: Per,
) -> Result<(Vec<Vec<f32>>, Vec<usize>)> {
    let mut columns: Vec<Vec<f32>> = Vec::new();
    let shape = for_each(data, field, per, |at, value| {
        if at >= columns.len() {
            columns.resize(at + 1, Vec::new());
        }
        columns[at].push(value as f32);
    })?;
    Ok((columns, shape))
}

/// A quantile of sorted values, which are not none: linear between neighbours (Hyndman & Fan 1996,
/// type 7; numpy's default), rounded as numpy does.
pub(super) fn quantile(sorted: &[f32], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let below = (position as usize).min(sorted.len() - 1);
    let above = (below + 1).min(sorted.len() - 1);
    let (a, b) = (f64::from(sorted[below]), f64::from(sorted[above]));
    let t = position - below as f64;
    if t < 0.5 {
        a + (b - a) * t
    } else {
        b - (b - a) * (1.0 - t)
    }
}

/// 1 for a scale within rounding of 0, that of a constant feature, and the scale itself otherwise
/// (scikit-learn's `_handle_zeros_in_scale`).
pub(super) fn nonzero_scale(scale: f64) -> f64 {
    if scale < 10.0 * f64::EPSILON {
        1.0
    } else {
        scale
    }
}

/// A tensor of `f32` rows that are made from rows of a field.
pub(super) fn map_rows(
    field: &Tensor,
    width: usize,
    shape: &[usize],
    mut row: impl FnMut(&[f32], &mut [f32]) -> Result<()>,
) -> Result<Tensor> {
    let n = field.shape()[0];
    let field = field.contiguous();
    let out_width: usize = shape.iter().product();
    let shape = [&[n], shape].concat();
    let mut out = Tensor::zeros(opt_core::DType::F32, shape)?;
    let to = out.as_slice_mut::<f32>()?;
    let from = field.as_slice::<f32>()?.chunks_exact(width.max(1));
    for (i, (from, to)) in from.zip(to.chunks_exact_mut(out_width.max(1))).enumerate() {
        row(from, to).at(|| format!("row {i}"))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_linear_between_neighbours() {
        let x = [1f32, 2., 4., 8.];
        assert_eq!(quantile(&x, 0.0), 1.0);
        assert_eq!(quantile(&x, 1.0), 8.0);
        assert_eq!(quantile(&x, 0.5), 3.0);
        assert_eq!(quantile(&x, 0.25), 1.75);
        assert_eq!(quantile(&x, 0.75), 5.0);
        assert_eq!(quantile(&x[..1], 0.3), 1.0);
    }
}
