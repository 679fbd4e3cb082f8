//! Which scale goes with which entry of a tensor.

use opt_core::{Error, Result, Tensor};

use crate::scheme::{Granularity, Scheme};

/// The axes of a weight that schemes go by.
///
/// ```
/// use opt_core::Tensor;
/// use opt_quant::{Axes, Scheme, quantize_along};
///
/// // A weight `[in, out]`, as `x w` has it: output channels along axis 1, sums along axis 0.
/// let weight = Tensor::new([4, 2], [1f32, 8.0, -2.0, 4.0, 0.5, 2.0, 1.0, 1.0])?;
/// let axes = Axes { channel: 1, sum: 0 };
/// let quantized = quantize_along(&weight, &Scheme::int8(), axes)?;
/// assert_eq!(quantized.scales().unwrap().shape(), [2]);
/// let quantized = quantize_along(&weight, &Scheme::int4().group(2), axes)?;
/// assert_eq!(quantized.scales().unwrap().shape(), [2, 2]);
/// # Ok::<(), opt_quant::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axes {
    /// The axis of output channels.
    pub channel: usize,
    /// The axis that a product sums over, along which groups lie.
    pub sum: usize,
}

impl Axes {
    /// Output channels along the first axis, sums along the last.
    pub(crate) fn rows(tensor: &Tensor) -> Axes {
        Axes {
            channel: 0,
            sum: tensor.rank().saturating_sub(1),
        }
    }
}

/// How scales lie against a tensor, as `Dequantize` has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) axis: Option<usize>,
    pub(crate) block: Option<usize>,
    /// The size of the axis, of what is before it and of what is after it.
    outer: usize,
    size: usize,
    inner: usize,
}

impl Layout {
    pub(crate) fn new(
        shape: &[usize],
        axis: Option<usize>,
        block: Option<usize>,
    ) -> Result<Layout> {
        if let Some(axis) = axis.filter(|&a| a >= shape.len()) {
            return Err(Error::invalid(format!("axis {axis} of shape {shape:?}")));
        }
        let (outer, size, inner) = match axis {
            None => (1, 1, shape.iter().product()),
            Some(a) => (
                shape[..a].iter().product(),
                shape[a],
                shape[a + 1..].iter().product(),
            ),
        };
        Ok(Layout {
            axis,
            block,
            outer,
            size,
            inner,
        })
    }

    /// The layout of a scheme. A tensor of rank 0 has one scale.
    pub(crate) fn of(scheme: &Scheme, shape: &[usize], axes: Axes) -> Result<Layout> {
        match scheme.granularity() {
            Granularity::Channel if !shape.is_empty() => {
                Layout::new(shape, Some(axes.channel), None)
            }
            Granularity::Group(size) if !shape.is_empty() => {
                Layout::new(shape, Some(axes.sum), Some(size))
            }
            _ => Layout::new(shape, None, None),
        }
    }

    /// Blocks along the axis.
    fn blocks(&self) -> usize {
        self.size.div_ceil(self.block.unwrap_or(1).max(1))
    }

    /// How many scales there are.
    pub(crate) fn count(&self) -> usize {
        match (self.axis, self.block) {
            (None, _) => 1,
            (Some(_), None) => self.size,
            (Some(_), Some(_)) => self.outer * self.blocks() * self.inner,
        }
    }

    /// The shape of the scales of a tensor.
    pub(crate) fn scale_shape(&self, shape: &[usize]) -> Vec<usize> {
        match (self.axis, self.block) {
            (None, _) => Vec::new(),
            (Some(_), None) => vec![self.size],
            (Some(axis), Some(_)) => {
                let mut shape = shape.to_vec();
                shape[axis] = self.blocks();
                shape
            }
        }
    }

    /// The number of the scale of an entry.
    pub(crate) fn at(&self, i: usize) -> usize {
        let along = i / self.inner % self.size;
        match (self.axis, self.block) {
            (None, _) => 0,
            (_, None) => along,
            (_, Some(block)) => {
                let outer = i / (self.inner * self.size);
                (outer * self.blocks() + along / block) * self.inner + i % self.inner
            }
        }
    }

    /// The least and the greatest entry that each scale is for; 0 and 0 where there is none.
    pub(crate) fn ranges(&self, data: &[f64]) -> Vec<(f64, f64)> {
        let mut ranges = vec![(f64::INFINITY, f64::NEG_INFINITY); self.count()];
        for (i, &v) in data.iter().enumerate() {
            let range = &mut ranges[self.at(i)];
            *range = (range.0.min(v), range.1.max(v));
        }
        for range in &mut ranges {
            if range.0 > range.1 {
                *range = (0.0, 0.0);
            }
        }
        ranges
    }
}
