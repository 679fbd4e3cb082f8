//! Tensors in the number format of a scheme.

use opt_core::tensor::MiniFloat;
use opt_core::{DType, Error, Result, Tensor};

use crate::layout::{Axes, Layout};
use crate::params::{QParams, finite, usable};
use crate::scheme::{Format, Scheme};

/// The levels of NF4: quantiles of the normal distribution, scaled to -1..1, with an exact 0
/// (Dettmers et al. 2023, appendix E).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The number of the level nearest to `x`; of two as near the lower one.
fn nf4_level(x: f32) -> u8 {
    let above = |pair: &[f32]| x > (pair[0] + pair[1]) * 0.5;
    NF4.windows(2).take_while(|pair| above(pair)).count() as u8
}

/// A tensor in the number format of a [`Scheme`]: codes, and what they are scaled by.
///
/// ```
/// use opt_core::Tensor;
/// use opt_quant::{Scheme, quantize_tensor};
///
/// let weight = Tensor::new([2, 64], (0..128).map(|i| (i as f32).sin()).collect::<Vec<_>>())?;
/// let packed = quantize_tensor(&weight, &Scheme::mxfp4())?;
/// // 4 bits an entry, and 8 bits for each 32.
/// assert_eq!(packed.storage_bytes(), 64 + 4);
/// assert_eq!(packed.bits_per_weight(), 4.25);
/// let back = packed.dequantize()?;
/// let far = |(a, b): (f64, f64)| (a - b).abs() > 0.26;
/// assert!(!weight.to_f64s().into_iter().zip(back.to_f64s()).any(far));
/// # Ok::<(), opt_quant::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedTensor {
    pub(crate) scheme: Scheme,
    pub(crate) codes: Tensor,
    pub(crate) scales: Option<Tensor>,
    pub(crate) zero_points: Option<Tensor>,
    pub(crate) tensor_scale: Option<Tensor>,
    pub(crate) axis: Option<usize>,
    pub(crate) block: Option<usize>,
}

/// Quantizes a tensor whose output channels lie along its first axis and whose groups lie along its
/// last, as those of a weight `[out, in]`.
///
/// # Errors
/// If the scheme fails its [check](Scheme::check); [`ErrorKind::Data`](opt_core::ErrorKind::Data)
/// if the tensor holds NaN or infinities.
pub fn quantize_tensor(tensor: &Tensor, scheme: &Scheme) -> Result<QuantizedTensor> {
    quantize_along(tensor, scheme, Axes::rows(tensor))
}

/// Quantizes a tensor with channels and groups along other axes.
///
/// # Errors
/// As [`quantize_tensor`]; if an axis is beyond the tensor's rank.
pub fn quantize_along(tensor: &Tensor, scheme: &Scheme, axes: Axes) -> Result<QuantizedTensor> {
    quantize(tensor, scheme, axes, None)
}

/// Quantizes some rows of a tensor, of whose entries the range is known.
pub(crate) fn quantize_rows_of(
    rows: &Tensor,
    scheme: &Scheme,
    whole: Option<(f64, f64)>,
) -> Result<QuantizedTensor> {
    quantize(rows, scheme, Axes::rows(rows), whole)
}

/// Quantizes a tensor; `whole` is the range that it has as a part of another.
fn quantize(
    tensor: &Tensor,
    scheme: &Scheme,
    axes: Axes,
    whole: Option<(f64, f64)>,
) -> Result<QuantizedTensor> {
    scheme.check()?;
    let layout = Layout::of(scheme, tensor.shape(), axes)?;
    let parts = |codes, scales, tensor_scale| QuantizedTensor {
        scheme: *scheme,
        codes,
        scales,
        zero_points: None,
        tensor_scale,
        axis: layout.axis,
        block: layout.block,
    };
    if let Format::Int(_) = scheme.format() {
        let params = match (whole, layout.axis) {
            (Some(range), None) => scheme.parameters(&[range], None)?,
            _ => scheme.of_tensor(tensor, axes)?,
        };
        let codes = params.quantize(tensor)?;
        return Ok(QuantizedTensor {
            zero_points: (params.zero_point.to_f64s().iter().any(|&z| z != 0.0)
                || !scheme.is_symmetric())
            .then_some(params.zero_point),
            ..parts(codes, Some(params.scale), None)
        });
    }
    let data = finite(tensor)?;
    if let Format::Half(dtype) = scheme.format() {
        let codes = Tensor::from_f64s(dtype, tensor.shape(), &data)?;
        if !codes.is_finite() {
            return Err(Error::new(
                opt_core::ErrorKind::Data,
                format!("an entry of a tensor to quantize is beyond {dtype}"),
            ));
        }
        return Ok(parts(codes, None, None));
    }
    let shape = layout.scale_shape(tensor.shape());
    let mut sizes: Vec<f64> = layout
        .ranges(&data)
        .into_iter()
        .map(|(low, high)| low.abs().max(high.abs()))
        .collect();
    let whole = whole.map(|(low, high)| low.abs().max(high.abs()));
    if let (Some(whole), None) = (whole, layout.axis) {
        sizes = vec![whole];
    }
    let (scales, tensor_scale) = scales_of(scheme, &sizes, &shape, whole)?;
    let factors = factors(&scales, tensor_scale.as_ref())?;
    let code = |(i, &v): (usize, &f64)| {
        let x = v as f32 / factors[layout.at(i)];
        match scheme.minifloat() {
            Some(format) => format.encode(f64::from(x)),
            None => nf4_level(x),
        }
    };
    let codes: Vec<u8> = data.iter().enumerate().map(code).collect();
    let codes = Tensor::from_codes(scheme.dtype(), tensor.shape(), &codes)?;
    Ok(parts(codes, Some(scales), tensor_scale))
}

/// The scales of groups with these largest magnitudes, and the tensor's own; `whole` is the
/// largest of all groups where these are not all.
fn scales_of(
    scheme: &Scheme,
    sizes: &[f64],
    shape: &[usize],
    whole: Option<f64>,
) -> Result<(Tensor, Option<Tensor>)> {
    let singles = |most: f64| -> Result<Tensor> {
        let scales: Vec<f32> = sizes.iter().map(|&s| usable(s / most)).collect();
        Tensor::new(shape, scales)
    };
    let most = scheme.minifloat().map_or(1.0, |f| f64::from(f.max()));
    match scheme.format() {
        Format::Mx(dtype) => {
            let exponent = MiniFloat::of(dtype).map_or(0, MiniFloat::max_exponent);
            // A group of zeros has scale 1, as integers have it.
            let power = |&size: &f64| match size > 0.0 {
                true => f64::from(floor_log2(size) - exponent).exp2(),
                false => 1.0,
            };
            let scales: Vec<f64> = sizes.iter().map(power).collect();
            Ok((Tensor::from_f64s(DType::F8E8M0, shape, &scales)?, None))
        }
        Format::NvFp4 => {
            let format = MiniFloat::of(DType::F8E4M3).expect("a float of 8 bits");
            let largest = whole.unwrap_or_else(|| sizes.iter().copied().fold(0.0, f64::max));
            let whole = usable(largest / (most * f64::from(format.max())));
            let least = f64::from(format.min_positive());
            // A scale of 0 would lose its group and divide by 0.
            let scale = |&size: &f64| match size > 0.0 {
                true => (size / most / f64::from(whole)).max(least),
                false => 1.0,
            };
            let scales: Vec<f64> = sizes.iter().map(scale).collect();
            let scales = Tensor::from_f64s(DType::F8E4M3, shape, &scales)?;
            Ok((scales, Some(Tensor::scalar(whole))))
        }
        _ => Ok((singles(most)?, None)),
    }
}

/// `floor(log2(x))` of a positive `f64` that an `f32` was widened to: no such number is subnormal.
fn floor_log2(x: f64) -> i32 {
    (x.to_bits() >> 52 & 0x7FF) as i32 - 1023
}

/// What codes are multiplied by, as dequantization in the graph has it.
fn factors(scales: &Tensor, tensor_scale: Option<&Tensor>) -> Result<Vec<f32>> {
    let whole = match tensor_scale {
        Some(t) => t.item()? as f32,
        None => 1.0,
    };
    let scales = scales.to_f64s();
    Ok(scales.into_iter().map(|s| s as f32 * whole).collect())
}

impl QuantizedTensor {
    /// Of parts whose dtypes and shapes are those that the scheme gives a tensor `[out, in]`.
    pub(crate) fn from_rows(
        scheme: Scheme,
        codes: Tensor,
        scales: Option<Tensor>,
        zero_points: Option<Tensor>,
        tensor_scale: Option<Tensor>,
    ) -> Result<QuantizedTensor> {
        let layout = Layout::of(&scheme, codes.shape(), Axes::rows(&codes))?;
        Ok(QuantizedTensor {
            scheme,
            codes,
            scales,
            zero_points,
            tensor_scale,
            axis: layout.axis,
            block: layout.block,
        })
    }

    /// The scheme.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The codes, packed, in the shape of the tensor.
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// The scales: `f32`, or E8M0 of microscaling formats, or E4M3 of NVFP4; a scalar, one a
    /// channel, or in the shape of the tensor with the axis of groups divided by their size, rounded
    /// up. `None` for 16-bit floats.
    pub fn scales(&self) -> Option<&Tensor> {
        self.scales.as_ref()
    }

    /// The zero points of the scales, unless all are 0 by the scheme.
    pub fn zero_points(&self) -> Option<&Tensor> {
        self.zero_points.as_ref()
    }

    /// The `f32` that multiplies all scales of NVFP4.
    pub fn tensor_scale(&self) -> Option<&Tensor> {
        self.tensor_scale.as_ref()
    }

    /// The axis that scales lie along.
    pub fn axis(&self) -> Option<usize> {
        self.axis
    }

    /// Entries of the axis that share a scale; `None` is one an entry.
    pub fn block(&self) -> Option<usize> {
        self.block
    }

    /// Bytes of codes, scales and zero points.
    pub fn storage_bytes(&self) -> usize {
        let parts = [&self.scales, &self.zero_points, &self.tensor_scale];
        let rest = parts.into_iter().flatten().map(Tensor::size_in_bytes);
        self.codes.size_in_bytes() + rest.sum::<usize>()
    }

    /// The bits of [`QuantizedTensor::storage_bytes`] for each entry; 0 if there is none.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.storage_bytes() as f64 / self.codes.len().max(1) as f64
    }

    /// The numbers that the codes stand for, in `f32`, as the nodes of a quantized graph compute
    /// them.
    ///
    /// # Errors
    /// None for what [`quantize_tensor`] made.
    pub fn dequantize(&self) -> Result<Tensor> {
        let Some(scales) = &self.scales else {
            return Ok(self.codes.cast(DType::F32));
        };
        if let Format::Int(_) = self.scheme.format() {
            let zeros = Tensor::zeros(self.codes.dtype(), scales.shape())?;
            let params = QParams {
                scale: scales.clone(),
                zero_point: self.zero_points.clone().unwrap_or(zeros),
                axis: self.axis,
                block: self.block,
                grid: self.scheme.grid()?,
            };
            return params.dequantize(&self.codes);
        }
        let layout = Layout::new(self.codes.shape(), self.axis, self.block)?;
        let factors = factors(scales, self.tensor_scale.as_ref())?;
        let codes = self.codes.codes()?;
        let table = match self.scheme.minifloat() {
            Some(format) => format.table().to_vec(),
            None => NF4.to_vec(),
        };
        let value = |(i, &code): (usize, &u8)| table[usize::from(code)] * factors[layout.at(i)];
        let values: Vec<f32> = codes.iter().enumerate().map(value).collect();
        Tensor::new(self.codes.shape(), values)
    }
}

#[cfg(test)]
mod tests;
