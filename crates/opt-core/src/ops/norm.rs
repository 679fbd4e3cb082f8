//! Batch, layer, group, instance and root-mean-square normalization.

mod rules;

use crate::{GraphBuilder, Result, ValueId};

/// Batch normalization over axis 1 of `[N, C, ..]` (Ioffe & Szegedy 2015). Inputs: x, scale
/// `[C]`, bias `[C]`, running mean `[C]`, running variance `[C]`.
///
/// In eval mode one output: `(x - mean) / sqrt(var + epsilon) * scale + bias`.
///
/// In training mode five: y normalized by the batch's own statistics; the new running mean and
/// variance, `(1 - momentum) * running + momentum * batch` (PyTorch's momentum, unbiased
/// variance); the batch mean; the batch's `1 / sqrt(var + epsilon)` (biased variance). Only y
/// carries a gradient.
///
/// The parameters have x's dtype; beside an x of `f16` or `bf16` they may all be `f32` (PyTorch's
/// mixed precision). y has x's dtype, the statistics and what is saved have the parameters', and
/// so have the gradients by scale and bias. What is made from 16-bit floats is computed in `f32`.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f64,
    /// Weight of the batch in the running statistics.
    pub momentum: f64,
    /// Whether to normalize by the batch's statistics.
    pub training: bool,
}

/// Gradient of [`BatchNorm`] in training mode: inputs are x, scale, the saved batch mean and
/// inverse standard deviation, and the gradient by y; outputs are the gradients by x, scale and
/// bias. No gradient itself.
///
/// x and the gradient by y have one dtype, which the gradient by x has too; scale, mean and
/// deviation have one, which the gradients by scale and bias have: the same, or `f32` beside an x
/// of `f16` or `bf16`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchNormGrad;

/// Layer normalization over the axes from `axis` on (Ba et al. 2016). Inputs: x, scale and
/// optional bias of the shape of those axes.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm {
    /// The first normalized axis.
    pub axis: usize,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Group normalization of `[N, C, ..]` over each of `groups` runs of channels (Wu & He 2018).
/// Inputs: x, scale `[C]`, bias `[C]`.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupNorm {
    /// Number of groups; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Instance normalization of `[N, C, ..]` over the spatial axes of each channel (Ulyanov et al.
/// 2016). Inputs: x, scale `[C]`, bias `[C]`.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceNorm {
    /// Added to the variance.
    pub epsilon: f64,
}

/// `x / sqrt(mean(x^2) + epsilon) * scale` over the axes from `axis` on (Zhang & Sennrich 2019).
/// Inputs: x, scale of the shape of those axes.
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNorm {
    /// The first normalized axis.
    pub axis: usize,
    /// Added to the mean square.
    pub epsilon: f64,
}

impl GraphBuilder {
    /// Batch normalization in eval mode; the pass `TrainMode` switches it to training.
    ///
    /// # Errors
    /// If a parameter's shape is not `[C]`, or its dtype neither x's nor `f32` beside a 16-bit x.
    pub fn batch_norm(
        &mut self,
        x: ValueId,
        scale: ValueId,
        bias: ValueId,
        mean: ValueId,
        var: ValueId,
        epsilon: f64,
    ) -> Result<ValueId> {
        let op = BatchNorm {
            epsilon,
            momentum: 0.1,
            training: false,
        };
        self.op(op, &[x, scale, bias, mean, var])
    }

    /// Layer normalization over the axes from `axis` on.
    ///
    /// # Errors
    /// If a parameter's shape is not that of the normalized axes.
    pub fn layer_norm(
        &mut self,
        x: ValueId,
        scale: ValueId,
        bias: Option<ValueId>,
        axis: usize,
        epsilon: f64,
    ) -> Result<ValueId> {
        let mut inputs = vec![x, scale];
        inputs.extend(bias);
        self.op(LayerNorm { axis, epsilon }, &inputs)
    }
}
