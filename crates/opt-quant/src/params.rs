//! Scales and zero points of integers.

use opt_core::{Error, ErrorKind, Result, Tensor};

use crate::layout::{Axes, Layout};
use crate::scheme::Scheme;

impl Scheme {
    /// The scale and zero point of a range.
    ///
    /// Symmetric: `scale = max(|low|, |high|) / 127` for i8 (so that -128 is not used). Else the
    /// range is widened to hold 0, `scale = (high - low) / 255`, and the zero point is the grid
    /// point nearest to 0. A range that is only 0 (an all-zero channel, a constant feature of 0)
    /// has scale 1, which keeps 0 exact. No scale is a subnormal number: those have too few bits
    /// to divide by.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if a bound is NaN or infinite or they are the wrong way round; if the
    /// scheme is none of integers.
    pub fn scale(&self, low: f64, high: f64) -> Result<(f32, i32)> {
        if !low.is_finite() || !high.is_finite() || low > high {
            return Err(Error::new(
                ErrorKind::Data,
                format!("the range of the values is {low}..{high}; do they hold NaN or infinity?"),
            ));
        }
        let (qmin, qmax) = self.grid()?;
        if self.is_symmetric() {
            let middle = if qmin < 0 { 0 } else { (qmax + 1) / 2 };
            let size = low.abs().max(high.abs());
            return Ok((usable(size / f64::from(qmax - middle)), middle));
        }
        let (low, high) = (low.min(0.0), high.max(0.0));
        if low == high {
            return Ok((1.0, qmin.max(0)));
        }
        let scale = usable((high - low) / f64::from(qmax - qmin));
        let zero = (f64::from(qmin) - low / f64::from(scale)).round_ties_even();
        Ok((scale, (zero as i32).clamp(qmin, qmax)))
    }

    /// The parameters of ranges: one range for per-tensor, else one a channel of `axis`.
    ///
    /// # Errors
    /// As [`Scheme::scale`].
    pub fn parameters(&self, ranges: &[(f64, f64)], axis: Option<usize>) -> Result<QParams> {
        let pairs = ranges
            .iter()
            .map(|&(low, high)| self.scale(low, high))
            .collect::<Result<Vec<_>>>()?;
        let shape: &[usize] = if axis.is_some() { &[pairs.len()] } else { &[] };
        let scales: Vec<f32> = pairs.iter().map(|p| p.0).collect();
        let zeros: Vec<f64> = pairs.iter().map(|p| f64::from(p.1)).collect();
        Ok(QParams {
            scale: Tensor::new(shape, scales)?,
            zero_point: Tensor::from_f64s(self.dtype(), shape, &zeros)?,
            axis,
            block: None,
            grid: self.grid()?,
        })
    }

    /// The parameters that cover a tensor's own range, for each channel or group if the scheme has
    /// them.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if it holds NaN or infinities; if an axis is beyond its rank.
    pub fn of_tensor(&self, tensor: &Tensor, axes: Axes) -> Result<QParams> {
        let grid = self.grid()?;
        let data = finite(tensor)?;
        let layout = Layout::of(self, tensor.shape(), axes)?;
        let ranges = layout.ranges(&data);
        let pairs = ranges
            .into_iter()
            .map(|(low, high)| self.scale(low, high))
            .collect::<Result<Vec<_>>>()?;
        let shape = layout.scale_shape(tensor.shape());
        let scales: Vec<f32> = pairs.iter().map(|p| p.0).collect();
        let zeros: Vec<f64> = pairs.iter().map(|p| f64::from(p.1)).collect();
        Ok(QParams {
            scale: Tensor::new(&shape, scales)?,
            zero_point: Tensor::from_f64s(self.dtype(), &shape, &zeros)?,
            axis: layout.axis,
            block: layout.block,
            grid,
        })
    }
}

/// A scale as `f32`: 1 for 0, and no subnormal number.
pub(crate) fn usable(scale: f64) -> f32 {
    match scale > 0.0 {
        true => (scale as f32).clamp(f32::MIN_POSITIVE, f32::MAX),
        false => 1.0,
    }
}

/// The entries of a tensor, all finite.
pub(crate) fn finite(tensor: &Tensor) -> Result<Vec<f64>> {
    let data = tensor.to_f64s();
    match data.iter().position(|v| !v.is_finite()) {
        None => Ok(data),
        Some(i) => Err(Error::new(
            ErrorKind::Data,
            format!("entry {i} of a tensor to quantize is {}", data[i]),
        )),
    }
}

/// Scales and zero points of integers: scalars, one an entry of `axis`, or one for each block of it.
#[derive(Debug, Clone, PartialEq)]
pub struct QParams {
    /// The `f32` scales.
    pub scale: Tensor,
    /// The zero points, of the integer type.
    pub zero_point: Tensor,
    /// The axis of channels or blocks.
    pub axis: Option<usize>,
    /// Entries of the axis that share a scale; `None` is one an entry.
    pub block: Option<usize>,
    /// The lowest and the highest integer.
    pub grid: (i32, i32),
}

impl QParams {
    /// The layout on a tensor, if the parameters go with it.
    fn layout(&self, tensor: &Tensor) -> Result<Layout> {
        let layout = Layout::new(tensor.shape(), self.axis, self.block)?;
        let count = layout.count();
        if self.scale.len() == count && self.zero_point.len() == count {
            return Ok(layout);
        }
        Err(Error::shape(format!(
            "{tensor:?} needs {count} scales and zero points, found {} and {}",
            self.scale.len(),
            self.zero_point.len()
        )))
    }

    /// `clamp(round_half_even(x / scale) + zero_point)`, in `f32`, as the op has it.
    ///
    /// ```
    /// use opt_core::Tensor;
    /// use opt_quant::{Axes, Scheme};
    ///
    /// // Two output channels, each on a grid of its own: scales of 2 / 127 and 0.5 / 127.
    /// let weight = Tensor::new([2, 2], [2.0f32, -1.0, 0.5, 0.25])?;
    /// let params = Scheme::int8().of_tensor(&weight, Axes { channel: 0, sum: 1 })?;
    /// let integers = params.quantize(&weight)?;
    /// assert_eq!(integers, Tensor::new([2, 2], [127i8, -64, 127, 64])?);
    ///
    /// let back = params.dequantize(&integers)?;
    /// let half = [1.0 / 127.0, 0.25 / 127.0];
    /// for (i, (a, b)) in weight.to_f64s().into_iter().zip(back.to_f64s()).enumerate() {
    ///     assert!((a - b).abs() <= half[i / 2] + 1e-7);
    /// }
    /// # Ok::<(), opt_quant::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the parameters' type is no integer grid, they do not go with the tensor's shape, or it
    /// holds NaN or infinities.
    pub fn quantize(&self, tensor: &Tensor) -> Result<Tensor> {
        let layout = self.layout(tensor)?;
        let data = finite(tensor)?;
        let dtype = self.zero_point.dtype();
        let (low, high) = self.grid;
        let (least, most) = dtype.int_range()?;
        if low < least || high > most || low >= high {
            return Err(Error::invalid(format!(
                "a grid from {low} to {high} in {dtype}"
            )));
        }
        let (scale, zero) = (self.scale.to_f64s(), self.zero_point.to_f64s());
        let level = |(i, v): (usize, f64)| {
            let c = layout.at(i);
            let q = f64::from((v as f32 / scale[c] as f32).round_ties_even());
            (q + zero[c]).clamp(f64::from(low), f64::from(high))
        };
        let levels: Vec<f64> = data.into_iter().enumerate().map(level).collect();
        Tensor::from_f64s(dtype, tensor.shape(), &levels)
    }

    /// `(q - zero_point) * scale`, in `f32`.
    ///
    /// # Errors
    /// If the parameters do not go with the tensor's shape.
    pub fn dequantize(&self, tensor: &Tensor) -> Result<Tensor> {
        let layout = self.layout(tensor)?;
        let (scale, zero) = (self.scale.to_f64s(), self.zero_point.to_f64s());
        let value = |(i, q): (usize, f64)| {
            let c = layout.at(i);
            (q - zero[c]) as f32 * scale[c] as f32
        };
        let data = tensor.to_f64s().into_iter().enumerate();
        Tensor::new(tensor.shape(), data.map(value).collect::<Vec<f32>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opt_core::DType;

    const AXES: Axes = Axes { channel: 0, sum: 1 };

    #[test]
    fn ranges_become_scales() {
        let weights = Scheme::weights();
        assert_eq!(
            weights.scale(-1.0, 0.5).unwrap(),
            ((1.0f64 / 127.0) as f32, 0)
        );
        assert_eq!(weights.scale(0.0, 0.0).unwrap(), (1.0, 0));
        let acts = Scheme::activations();
        assert_eq!(
            acts.scale(0.0, 2.55).unwrap(),
            ((2.55f64 / 255.0) as f32, 0)
        );
        assert_eq!(acts.scale(-1.0, 1.55).unwrap().1, 100);
        assert_eq!(acts.scale(1.0, 2.55).unwrap().1, 0, "widened to hold 0");
        assert_eq!(acts.scale(-2.0, -1.0).unwrap().1, 255);
        assert_eq!(acts.scale(0.0, 0.0).unwrap(), (1.0, 0));
        for (low, high) in [(f64::NAN, 1.0), (0.0, f64::INFINITY), (1.0, -1.0)] {
            assert_eq!(acts.scale(low, high).unwrap_err().kind(), ErrorKind::Data);
        }
        let narrow = weights.bits(3);
        assert_eq!(narrow.scale(-1.5, 0.5).unwrap(), (0.5, 0));
        assert_eq!(acts.bits(2).scale(0.0, 3.0).unwrap(), (1.0, 0));
        // Scales are finite and divide without loss whatever the range is.
        for size in [1e-300, 1e-45, 1e-38, f64::from(f32::MAX)] {
            for scheme in [weights, acts, Scheme::int2(), Scheme::uint2()] {
                let (scale, _) = scheme.scale(-size, size).unwrap();
                assert!(scale.is_normal(), "{scheme} {size}: {scale}");
            }
        }
    }

    #[test]
    fn tensors_go_there_and_back_within_half_a_step() {
        let x = Tensor::new([2, 3], [0.1f32, -0.4, 0.25, 10.0, 0.0, -20.0]).unwrap();
        let params = Scheme::weights().of_tensor(&x, AXES).unwrap();
        assert_eq!(params.scale.shape(), [2]);
        let q = params.quantize(&x).unwrap();
        let y = params.dequantize(&q).unwrap().to_f64s();
        let scale = params.scale.to_f64s();
        for (i, (a, b)) in x.to_f64s().into_iter().zip(y).enumerate() {
            assert!((a - b).abs() <= scale[i / 3] * 0.5001, "{a} {b}");
        }
        let zeros = Tensor::zeros(DType::F32, [2, 2]).unwrap();
        let params = Scheme::weights().of_tensor(&zeros, AXES).unwrap();
        assert_eq!(params.scale.to_f64s(), [1.0, 1.0]);
        let nan = Tensor::full(DType::F32, [2], f64::NAN).unwrap();
        assert!(Scheme::weights().of_tensor(&nan, AXES).is_err());
    }
}
