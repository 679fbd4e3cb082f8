//! Schemes, scales and zero points.

use opt_core::{DType, Error, ErrorKind, Result, Tensor};

/// How values are laid on an integer grid.
///
/// ```
/// use opt_core::{DType, Tensor};
/// use opt_quant::{Scheme, dequantize_tensor, quantize_tensor};
///
/// // Two output channels, each on a grid of its own: scales of 2 / 127 and 0.5 / 127.
/// let weight = Tensor::new([2, 2], [2.0f32, -1.0, 0.5, 0.25])?;
/// let params = Scheme::weights().of_tensor(&weight, 0)?;
/// let integers = quantize_tensor(&weight, &params)?;
/// assert_eq!(integers, Tensor::new([2, 2], [127i8, -64, 127, 64])?);
///
/// let back = dequantize_tensor(&integers, &params)?;
/// let half = [1.0 / 127.0, 0.25 / 127.0];
/// for (i, (a, b)) in weight.to_f64s().into_iter().zip(back.to_f64s()).enumerate() {
///     assert!((a - b).abs() <= half[i / 2] + 1e-7);
/// }
/// # Ok::<(), opt_quant::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scheme {
    /// The integer type: i8, u8, i4 or u4.
    pub dtype: DType,
    /// Whether the zero point is the middle of the grid (0 for signed types).
    pub symmetric: bool,
    /// Whether each channel has a scale of its own.
    pub per_channel: bool,
    /// Bits of the grid, 2 or more, where it is narrower than the type that holds it.
    pub bits: Option<u32>,
}

impl Scheme {
    /// Signed, symmetric, a scale a channel: the usual choice for weights.
    pub fn weights() -> Scheme {
        Scheme {
            dtype: DType::I8,
            symmetric: true,
            per_channel: true,
            bits: None,
        }
    }

    /// Unsigned, asymmetric, one scale: the usual choice for activations.
    pub fn activations() -> Scheme {
        Scheme {
            dtype: DType::U8,
            symmetric: false,
            per_channel: false,
            bits: None,
        }
    }

    /// The same on another integer type.
    ///
    /// # Errors
    /// If it is no 8-bit or 4-bit integer.
    pub fn with_dtype(self, dtype: DType) -> Result<Scheme> {
        dtype.int_range()?;
        Ok(Scheme { dtype, ..self })
    }

    /// The same on a grid of fewer bits than the type has: 2 bits of a signed type are -2, -1, 0
    /// and 1.
    ///
    /// ```
    /// use opt_core::DType;
    /// use opt_quant::Scheme;
    ///
    /// let scheme = Scheme::weights().with_dtype(DType::I4)?.with_bits(2)?;
    /// assert_eq!(scheme.grid()?, (-2, 1));
    /// # Ok::<(), opt_quant::Error>(())
    /// ```
    ///
    /// # Errors
    /// If they are below 2 or more than the type's.
    pub fn with_bits(self, bits: u32) -> Result<Scheme> {
        let scheme = Scheme {
            bits: Some(bits),
            ..self
        };
        scheme.grid()?;
        Ok(scheme)
    }

    /// The lowest and the highest integer.
    ///
    /// # Errors
    /// If the type is no integer grid, or has fewer bits than the scheme.
    pub fn grid(&self) -> Result<(i32, i32)> {
        let (low, high) = self.dtype.int_range()?;
        let Some(bits) = self.bits else {
            return Ok((low, high));
        };
        let most = (high - low).count_ones();
        if !(2..=most).contains(&bits) {
            return Err(Error::invalid(format!(
                "a grid of {bits} bits in {}; it has 2 to {most}",
                self.dtype
            )));
        }
        let size = 1 << bits;
        Ok(match low < 0 {
            true => (-size / 2, size / 2 - 1),
            false => (0, size - 1),
        })
    }

    /// One scale for the whole tensor.
    #[must_use]
    pub fn per_tensor(self) -> Scheme {
        Scheme {
            per_channel: false,
            ..self
        }
    }

    /// The scale and zero point of a range.
    ///
    /// Symmetric: `scale = max(|low|, |high|) / 127` for i8 (so that -128 is not used). Else the
    /// range is widened to hold 0, `scale = (high - low) / 255`, and the zero point is the grid
    /// point nearest to 0. A range that is only 0 (an all-zero channel, a constant feature of 0)
    /// has scale 1, which keeps 0 exact.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if a bound is NaN or infinite or they are the wrong way round.
    pub fn scale(&self, low: f64, high: f64) -> Result<(f32, i32)> {
        if !low.is_finite() || !high.is_finite() || low > high {
            return Err(Error::new(
                ErrorKind::Data,
                format!("the range of the values is {low}..{high}; do they hold NaN or infinity?"),
            ));
        }
        let (qmin, qmax) = self.grid()?;
        if self.symmetric {
            let middle = if qmin < 0 { 0 } else { (qmax + 1) / 2 };
            let size = low.abs().max(high.abs());
            let scale = (size / f64::from(qmax - middle)) as f32;
            return Ok((if scale > 0.0 { scale } else { 1.0 }, middle));
        }
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = ((high - low) / f64::from(qmax - qmin)) as f32;
        if scale <= 0.0 {
            return Ok((1.0, qmin.max(0)));
        }
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
            zero_point: Tensor::from_f64s(self.dtype, shape, &zeros)?,
            axis,
            grid: self.grid()?,
        })
    }

    /// The parameters that cover a tensor's own range, per channel of `axis` if the scheme is.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if it holds NaN or infinities.
    pub fn of_tensor(&self, tensor: &Tensor, axis: usize) -> Result<QParams> {
        if self.per_channel && tensor.rank() > 0 && axis >= tensor.rank() {
            return Err(Error::invalid(format!("channel axis {axis} of {tensor:?}")));
        }
        let data = tensor.to_f64s();
        if let Some(bad) = data.iter().find(|v| !v.is_finite()) {
            return Err(Error::new(ErrorKind::Data, format!("an entry is {bad}")));
        }
        let (channels, inner, axis) = if self.per_channel && tensor.rank() > 0 {
            let inner: usize = tensor.shape()[axis + 1..].iter().product();
            (tensor.shape()[axis], inner, Some(axis))
        } else {
            (1, data.len(), None)
        };
        let mut ranges = vec![(f64::INFINITY, f64::NEG_INFINITY); channels];
        for (i, &v) in data.iter().enumerate() {
            let range = &mut ranges[i / inner.max(1) % channels];
            *range = (range.0.min(v), range.1.max(v));
        }
        for range in &mut ranges {
            if range.0 > range.1 {
                *range = (0.0, 0.0);
            }
        }
        self.parameters(&ranges, axis)
    }
}

/// Scales and zero points: scalars, or one an entry of `axis`.
#[derive(Debug, Clone, PartialEq)]
pub struct QParams {
    /// The `f32` scales.
    pub scale: Tensor,
    /// The zero points, of the integer type.
    pub zero_point: Tensor,
    /// The channel axis.
    pub axis: Option<usize>,
    /// The lowest and the highest integer.
    pub grid: (i32, i32),
}

impl QParams {
    /// Fails unless the parameters go with the tensor.
    fn check(&self, tensor: &Tensor) -> Result<()> {
        let count = match self.axis {
            None => 1,
            Some(axis) if axis < tensor.rank() => tensor.shape()[axis],
            Some(axis) => {
                return Err(Error::invalid(format!("channel axis {axis} of {tensor:?}")));
            }
        };
        if self.scale.len() == count && self.zero_point.len() == count {
            return Ok(());
        }
        Err(Error::shape(format!(
            "{tensor:?} needs {count} scales and zero points, found {} and {}",
            self.scale.len(),
            self.zero_point.len()
        )))
    }

    fn at(&self, tensor: &Tensor, i: usize) -> usize {
        match self.axis {
            None => 0,
            Some(axis) => {
                let inner: usize = tensor.shape()[axis + 1..].iter().product();
                i / inner.max(1) % tensor.shape()[axis]
            }
        }
    }
}

/// `clamp(round_half_even(x / scale) + zero_point)`, in `f32`, as the op has it.
///
/// # Errors
/// If the parameters' type is no integer grid, they do not go with the tensor's shape, or it holds
/// NaN or infinities.
pub fn quantize_tensor(tensor: &Tensor, params: &QParams) -> Result<Tensor> {
    params.check(tensor)?;
    if !tensor.is_finite() {
        return Err(Error::new(
            ErrorKind::Data,
            "a tensor to quantize holds NaN or infinity",
        ));
    }
    let dtype = params.zero_point.dtype();
    let (low, high) = params.grid;
    let (least, most) = dtype.int_range()?;
    if low < least || high > most || low >= high {
        return Err(Error::invalid(format!(
            "a grid from {low} to {high} in {dtype}"
        )));
    }
    let (scale, zero) = (params.scale.to_f64s(), params.zero_point.to_f64s());
    let data: Vec<f64> = tensor
        .to_f64s()
        .into_iter()
        .enumerate()
        .map(|(i, v)| {
            let c = params.at(tensor, i);
            let q = f64::from((v as f32 / scale[c] as f32).round_ties_even());
            (q + zero[c]).clamp(f64::from(low), f64::from(high))
        })
        .collect();
    Tensor::from_f64s(dtype, tensor.shape(), &data)
}

/// `(q - zero_point) * scale`, in `f32`.
///
/// # Errors
/// If the parameters do not go with the tensor's shape.
pub fn dequantize_tensor(tensor: &Tensor, params: &QParams) -> Result<Tensor> {
    params.check(tensor)?;
    let (scale, zero) = (params.scale.to_f64s(), params.zero_point.to_f64s());
    let data: Vec<f64> = tensor
        .to_f64s()
        .into_iter()
        .enumerate()
        .map(|(i, q)| {
            let c = params.at(tensor, i);
            f64::from((q - zero[c]) as f32 * scale[c] as f32)
        })
        .collect();
    Tensor::from_f64s(DType::F32, tensor.shape(), &data)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(weights.with_dtype(DType::F32).is_err());
        let narrow = weights.with_bits(3).unwrap();
        assert_eq!(narrow.grid().unwrap(), (-4, 3));
        assert_eq!(narrow.scale(-1.5, 0.5).unwrap(), (0.5, 0));
        assert_eq!(
            acts.with_bits(2).unwrap().scale(0.0, 3.0).unwrap(),
            (1.0, 0)
        );
        for bits in [0, 1, 9, u32::MAX] {
            assert!(weights.with_bits(bits).is_err(), "{bits}");
        }
        assert!(narrow.with_dtype(DType::I4).unwrap().with_bits(5).is_err());
    }

    #[test]
    fn tensors_go_there_and_back_within_half_a_step() {
        let x = Tensor::new([2, 3], [0.1f32, -0.4, 0.25, 10.0, 0.0, -20.0]).unwrap();
        let params = Scheme::weights().of_tensor(&x, 0).unwrap();
        assert_eq!(params.scale.shape(), [2]);
        let q = quantize_tensor(&x, &params).unwrap();
        let y = dequantize_tensor(&q, &params).unwrap().to_f64s();
        let scale = params.scale.to_f64s();
        for (i, (a, b)) in x.to_f64s().into_iter().zip(y).enumerate() {
            assert!((a - b).abs() <= scale[i / 3] * 0.5001, "{a} {b}");
        }
        let zeros = Tensor::zeros(DType::F32, [2, 2]).unwrap();
        let params = Scheme::weights().of_tensor(&zeros, 0).unwrap();
        assert_eq!(params.scale.to_f64s(), [1.0, 1.0]);
        let nan = Tensor::full(DType::F32, [2], f64::NAN).unwrap();
        assert!(Scheme::weights().of_tensor(&nan, 0).is_err());
    }
}
