//! Convolution in one, two and three dimensions, its transpose and its gradient.

mod rules;

use crate::tensor::Dims;
use crate::{GraphBuilder, Result, ValueId};

/// How a window moves over the spatial axes (those from axis 2 on): the attributes that
/// convolution and pooling share. Each list has one entry a spatial axis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Window {
    /// Step of the window.
    pub strides: Dims,
    /// Padding before each spatial axis.
    pub pads_begin: Dims,
    /// Padding after each spatial axis.
    pub pads_end: Dims,
    /// Distance between the entries of the window.
    pub dilations: Dims,
}

impl Window {
    /// A window over `spatial` axes with stride 1, no padding and no dilation.
    pub fn new(spatial: usize) -> Window {
        Window {
            strides: smallvec::smallvec![1; spatial],
            pads_begin: smallvec::smallvec![0; spatial],
            pads_end: smallvec::smallvec![0; spatial],
            dilations: smallvec::smallvec![1; spatial],
        }
    }

    /// The same stride on every axis.
    #[must_use]
    pub fn stride(mut self, stride: usize) -> Window {
        self.strides.fill(stride);
        self
    }

    /// The same padding on both sides of every axis.
    #[must_use]
    pub fn pad(mut self, pad: usize) -> Window {
        self.pads_begin.fill(pad);
        self.pads_end.fill(pad);
        self
    }

    /// The same dilation on every axis.
    #[must_use]
    pub fn dilation(mut self, dilation: usize) -> Window {
        self.dilations.fill(dilation);
        self
    }

    /// The number of spatial axes.
    pub fn rank(&self) -> usize {
        self.strides.len()
    }
}

/// Convolution (cross-correlation, as in every framework): input `[N, C, spatial..]`, weight
/// `[O, C / groups, kernel..]`, optional bias `[O]`, output `[N, O, spatial'..]` with
/// `spatial' = (spatial + pads - dilation * (kernel - 1) - 1) / stride + 1`, rounded down.
///
/// `groups == C` is depthwise convolution. Source: ONNX `Conv`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv {
    /// Strides, padding, dilation.
    pub window: Window,
    /// Number of groups; divides C and O.
    pub groups: usize,
}

/// Transposed convolution: input `[N, C, spatial..]`, weight `[C, O / groups, kernel..]`,
/// optional bias `[O]`, output `[N, O, spatial'..]` with `spatial' = (spatial - 1) * stride +
/// dilation * (kernel - 1) + 1 - pads + output_padding`. Source: ONNX `ConvTranspose`.
///
/// With the attributes of a [`Conv`] and its weight, it is that convolution's gradient by the
/// input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvTranspose {
    /// Strides, padding (removed from the output), dilation.
    pub window: Window,
    /// Number of groups; divides C and O.
    pub groups: usize,
    /// Extra size at the end of each spatial axis.
    pub output_padding: Dims,
}

/// The gradient of a [`Conv`] by its weight: inputs are the convolution's input
/// `[N, C, spatial..]` and the gradient by its output `[N, O, spatial'..]`, the output is
/// `[O, C / groups, kernel..]`. It has no gradient itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvGradWeight {
    /// The convolution's window.
    pub window: Window,
    /// The convolution's groups.
    pub groups: usize,
    /// The kernel's size on each spatial axis.
    pub kernel: Dims,
}

impl GraphBuilder {
    /// Convolution with an optional bias.
    ///
    /// # Errors
    /// If ranks or channels do not agree, or the window is larger than the padded input.
    pub fn conv(
        &mut self,
        x: ValueId,
        weight: ValueId,
        bias: Option<ValueId>,
        window: Window,
        groups: usize,
    ) -> Result<ValueId> {
        let mut inputs = vec![x, weight];
        inputs.extend(bias);
        self.op(Conv { window, groups }, &inputs)
    }

    /// Transposed convolution with an optional bias and no output padding.
    ///
    /// # Errors
    /// If ranks or channels do not agree.
    pub fn conv_transpose(
        &mut self,
        x: ValueId,
        weight: ValueId,
        bias: Option<ValueId>,
        window: Window,
        groups: usize,
    ) -> Result<ValueId> {
        let mut inputs = vec![x, weight];
        inputs.extend(bias);
        let output_padding = smallvec::smallvec![0; window.rank()];
        let op = ConvTranspose {
            window,
            groups,
            output_padding,
        };
        self.op(op, &inputs)
    }
}
