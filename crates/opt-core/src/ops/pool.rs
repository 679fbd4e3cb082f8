//! Max and average pooling and their gradients.

mod rules;

use super::Window;
use crate::tensor::Dims;
use crate::{GraphBuilder, Result, ValueId};

/// The maximum over a window: `[N, C, spatial..] -> [N, C, spatial'..]`. Padding never wins. The
/// gradient goes to the first maximum of a window (PyTorch).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxPool {
    /// The window's size on each spatial axis.
    pub kernel: Dims,
    /// Strides, padding, dilation.
    pub window: Window,
    /// Whether the output size is rounded up; a window that starts in the end padding is left
    /// out (PyTorch).
    pub ceil_mode: bool,
}

/// Gradient of [`MaxPool`]: inputs are its input and the gradient by its output, the output has
/// the shape of its input. No gradient itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxPoolGrad {
    /// The pooling.
    pub pool: MaxPool,
}

/// The mean over a window: `[N, C, spatial..] -> [N, C, spatial'..]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvgPool {
    /// The window's size on each spatial axis.
    pub kernel: Dims,
    /// Strides, padding, dilation.
    pub window: Window,
    /// Whether the output size is rounded up.
    pub ceil_mode: bool,
    /// Whether padding counts in the divisor.
    pub count_include_pad: bool,
}

/// Gradient of [`AvgPool`]: input is the gradient by its output, the output has its input's
/// spatial sizes, `spatial`. No gradient itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvgPoolGrad {
    /// The pooling.
    pub pool: AvgPool,
    /// The spatial sizes of the pooling's input.
    pub spatial: Dims,
}

impl GraphBuilder {
    /// Max pooling with a cubic kernel, its stride equal to it, no padding.
    ///
    /// # Errors
    /// If the input has no spatial axes or the kernel is larger than one.
    pub fn max_pool(&mut self, x: ValueId, kernel: usize) -> Result<ValueId> {
        let spatial = self.type_of(x).rank().saturating_sub(2);
        let op = MaxPool {
            kernel: smallvec::smallvec![kernel; spatial],
            window: Window::new(spatial).stride(kernel),
            ceil_mode: false,
        };
        self.op(op, &[x])
    }

    /// Average pooling with a cubic kernel, its stride equal to it, no padding.
    ///
    /// # Errors
    /// If the input has no spatial axes or the kernel is larger than one.
    pub fn avg_pool(&mut self, x: ValueId, kernel: usize) -> Result<ValueId> {
        let spatial = self.type_of(x).rank().saturating_sub(2);
        let op = AvgPool {
            kernel: smallvec::smallvec![kernel; spatial],
            window: Window::new(spatial).stride(kernel),
            ceil_mode: false,
            count_include_pad: true,
        };
        self.op(op, &[x])
    }

    /// The mean over all spatial axes, which stay with size 1.
    ///
    /// # Errors
    /// If the dtype is not floating-point.
    pub fn global_avg_pool(&mut self, x: ValueId) -> Result<ValueId> {
        let axes: Vec<usize> = (2..self.type_of(x).rank()).collect();
        self.mean(x, &axes, true)
    }
}
