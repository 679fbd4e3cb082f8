//! Normalization.

use super::{Init, Layer, ModelBuilder};
use crate::tensor::Dims;
use crate::{Error, Result, ValueId, ops};

/// Batch normalization over axis 1, with `weight`, `bias`, `running_mean` and `running_var` of
/// shape `[C]` as in PyTorch. In eval mode until the pass `TrainMode` switches it.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm {
    epsilon: f64,
    momentum: f64,
}

impl Default for BatchNorm {
    fn default() -> BatchNorm {
        BatchNorm::new()
    }
}

impl BatchNorm {
    /// Epsilon 1e-5, momentum 0.1.
    pub fn new() -> BatchNorm {
        BatchNorm {
            epsilon: 1e-5,
            momentum: 0.1,
        }
    }

    /// What is added to the variance.
    #[must_use]
    pub fn epsilon(mut self, epsilon: f64) -> BatchNorm {
        self.epsilon = epsilon;
        self
    }

    /// The weight of a batch in the running statistics.
    #[must_use]
    pub fn momentum(mut self, momentum: f64) -> BatchNorm {
        self.momentum = momentum;
        self
    }
}

impl Layer for BatchNorm {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let channels = [m.size(x, 1)?];
        let scale = m.parameter("weight", channels, &Init::ONES)?;
        let bias = m.parameter("bias", channels, &Init::ZEROS)?;
        let mean = m.parameter("running_mean", channels, &Init::ZEROS)?;
        let var = m.parameter("running_var", channels, &Init::ONES)?;
        let op = ops::BatchNorm {
            epsilon: self.epsilon,
            momentum: self.momentum,
            training: false,
        };
        m.op(op, &[x, scale, bias, mean, var])
    }
}

/// The sizes of the last `axes` axes of a value, and the first of them.
fn last_axes(m: &ModelBuilder, x: ValueId, axes: usize) -> Result<(usize, Dims)> {
    let rank = m.type_of(x).rank();
    let first = rank.checked_sub(axes).filter(|_| axes > 0).ok_or_else(|| {
        Error::shape(format!(
            "cannot normalize the last {axes} axes of {}",
            m.type_of(x)
        ))
    })?;
    let sizes = (first..rank).map(|a| m.size(x, a)).collect::<Result<_>>()?;
    Ok((first, sizes))
}

/// Layer normalization over the last axes, with `weight` and `bias` of their shape.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm {
    axes: usize,
    epsilon: f64,
    bias: bool,
}

impl Default for LayerNorm {
    fn default() -> LayerNorm {
        LayerNorm::new()
    }
}

impl LayerNorm {
    /// Over the last axis, with a bias, epsilon 1e-5.
    pub fn new() -> LayerNorm {
        LayerNorm {
            axes: 1,
            epsilon: 1e-5,
            bias: true,
        }
    }

    /// Over how many of the last axes.
    #[must_use]
    pub fn axes(mut self, axes: usize) -> LayerNorm {
        self.axes = axes;
        self
    }

    /// What is added to the variance.
    #[must_use]
    pub fn epsilon(mut self, epsilon: f64) -> LayerNorm {
        self.epsilon = epsilon;
        self
    }

    /// Whether there is a bias.
    #[must_use]
    pub fn bias(mut self, bias: bool) -> LayerNorm {
        self.bias = bias;
        self
    }
}

impl Layer for LayerNorm {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let (axis, sizes) = last_axes(m, x, self.axes)?;
        let scale = m.parameter("weight", &sizes, &Init::ONES)?;
        let bias = match self.bias {
            true => Some(m.parameter("bias", &sizes, &Init::ZEROS)?),
            false => None,
        };
        m.layer_norm(x, scale, bias, axis, self.epsilon)
    }
}

/// Root-mean-square normalization over the last axis, with `weight` of its size.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    epsilon: f64,
}

impl RmsNorm {
    /// With what is added to the mean square.
    pub fn new(epsilon: f64) -> RmsNorm {
        RmsNorm { epsilon }
    }
}

impl Layer for RmsNorm {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let (axis, sizes) = last_axes(m, x, 1)?;
        let scale = m.parameter("weight", &sizes, &Init::ONES)?;
        let op = ops::RmsNorm {
            axis,
            epsilon: self.epsilon,
        };
        m.op(op, &[x, scale])
    }
}

/// Group normalization over runs of channels of axis 1, with `weight` and `bias` `[C]`.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm {
    groups: usize,
    epsilon: f64,
}

impl GroupNorm {
    /// With the number of groups, which divides the channels; epsilon 1e-5.
    pub fn new(groups: usize) -> GroupNorm {
        GroupNorm {
            groups,
            epsilon: 1e-5,
        }
    }

    /// What is added to the variance.
    #[must_use]
    pub fn epsilon(mut self, epsilon: f64) -> GroupNorm {
        self.epsilon = epsilon;
        self
    }
}

impl Layer for GroupNorm {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let channels = [m.size(x, 1)?];
        let scale = m.parameter("weight", channels, &Init::ONES)?;
        let bias = m.parameter("bias", channels, &Init::ZEROS)?;
        let op = ops::GroupNorm {
            groups: self.groups,
            epsilon: self.epsilon,
        };
        m.op(op, &[x, scale, bias])
    }
}
