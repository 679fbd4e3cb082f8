//! Attention transfer.

use opt_core::{Error, GraphBuilder, Result, ValueId};

use super::{FeatureLoss, Features, Matching, channel_axis, positions};
use crate::math::unit;

/// Activation-based attention transfer (Zagoruyko & Komodakis, "Paying more attention to
/// attention", 2017): where the student looks is to be where the teacher looks.
///
/// An attention map is the mean of `|x|^p` over the channels, as a vector over the positions
/// divided by its Euclidean norm; the loss is the mean squared difference of the maps over examples
/// and positions, as in the authors' code. The numbers of channels need not agree.
///
/// A map that is 0 everywhere (a squared norm of `1e-24` at most) stays 0 and has gradient 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionTransfer {
    /// The power, 1 at least.
    pub p: f64,
}

impl Default for AttentionTransfer {
    /// The authors' power: 2.
    fn default() -> AttentionTransfer {
        AttentionTransfer { p: 2.0 }
    }
}

impl AttentionTransfer {
    fn map(self, b: &mut GraphBuilder, x: ValueId) -> Result<ValueId> {
        let ty = b.type_of(x).clone();
        let axes = positions(&ty.shape);
        if axes.is_empty() {
            return Err(Error::shape(format!(
                "attention is over positions, as in [N, C, H, W] or [N, T, C]; found {ty}"
            )));
        }
        let power = if self.p == 2.0 {
            b.mul(x, x)?
        } else {
            let size = b.abs(x)?;
            if self.p == 1.0 {
                size
            } else {
                let p = b.scalar_like(size, self.p)?;
                b.pow(size, p)?
            }
        };
        let map = b.mean(power, &[channel_axis(&ty.shape)], true)?;
        unit(b, map, &axes, 1e-24)
    }
}

impl FeatureLoss for AttentionTransfer {
    fn matching(&self) -> Matching {
        Matching::Positions
    }

    fn build(&self, b: &mut GraphBuilder, features: &Features) -> Result<ValueId> {
        if !self.p.is_finite() || self.p < 1.0 {
            return Err(Error::invalid(format!(
                "the power of attention transfer is {}, not a number of 1 or more",
                self.p
            )));
        }
        let teacher = b.stop_gradient(features.teacher)?;
        let s = self.map(b, features.student)?;
        let t = self.map(b, teacher)?;
        let difference = b.sub(s, t)?;
        let square = b.mul(difference, difference)?;
        b.mean_all(square)
    }
}
