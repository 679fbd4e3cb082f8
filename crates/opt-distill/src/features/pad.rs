//! Prime-aware adaptive distillation.

use opt_core::{DType, Error, GraphBuilder, Result, Tensor, ValueId};

use super::{FeatureLoss, Features, Matching, channel_axis, positions};
use crate::math::expect_positive;

/// Prime-aware adaptive distillation (Zhang, Lan, Dai, Zeng, Bai, Chang & Wei, "Prime-aware
/// adaptive distillation", 2020): `(t - s)^2 / v + ln v`, the mean over all entries, where v is a
/// variance that a branch on the student's layer predicts for each example and channel. Examples
/// that the student finds hard get a large variance and weigh less.
///
/// The branch is one trainable linear layer on the layer's mean over the positions, and its
/// output l gives `v = e^l + eps`. It starts with zeros, so that training starts with the mean
/// squared error, all examples alike; the authors' branch has a batch normalization behind the
/// linear layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pad {
    /// The least variance, above 0: it bounds the loss from below, by its logarithm.
    pub eps: f64,
}

impl Default for Pad {
    /// A least variance of `1e-5`.
    fn default() -> Pad {
        Pad { eps: 1e-5 }
    }
}

impl FeatureLoss for Pad {
    fn matching(&self) -> Matching {
        Matching::Shape
    }

    fn build(&self, b: &mut GraphBuilder, features: &Features) -> Result<ValueId> {
        expect_positive("least variance", self.eps)?;
        let ty = b.type_of(features.student).clone();
        if ty.rank() < 2 {
            return Err(Error::shape(format!(
                "variances are predicted for [N, C, ..], found {ty}"
            )));
        }
        let channels = ty.shape[channel_axis(&ty.shape)].fixed()?;
        let dtype: DType = ty.dtype;
        let teacher = b.stop_gradient(features.teacher)?;
        let axes = positions(&ty.shape);
        let pooled = match axes.is_empty() {
            true => features.student,
            false => b.mean(features.student, &axes, false)?,
        };
        let log = b.scope("variance", |b| {
            let weight = b.variable("weight", Tensor::zeros(dtype, [channels, channels])?)?;
            let bias = b.variable("bias", Tensor::zeros(dtype, [channels])?)?;
            let y = b.matmul_t(pooled, weight, false, true)?;
            b.add(y, bias)
        })?;
        // ln(e^l + eps), which does not overflow.
        let floor = self.eps.ln();
        let log = b.add_scalar(log, -floor)?;
        let log = b.softplus(log)?;
        let log = b.add_scalar(log, floor)?;
        let log = match axes.is_empty() {
            true => log,
            false => b.unsqueeze(log, &axes)?,
        };
        let precision = b.neg(log)?;
        let precision = b.exp(precision)?;
        let difference = b.sub(features.student, teacher)?;
        let square = b.mul(difference, difference)?;
        let weighed = b.mul(square, precision)?;
        let loss = b.add(weighed, log)?;
        b.mean_all(loss)
    }
}
