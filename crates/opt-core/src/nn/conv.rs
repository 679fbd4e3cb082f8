//! Convolutions.

use super::linear::default_bias;
use super::{Init, Layer, ModelBuilder};
use crate::ops::Window;
use crate::tensor::Dims;
use crate::{Error, Result, ValueId};

/// Convolution over as many spatial axes as the kernel has: `[N, C, ..] -> [N, O, ..]`, with
/// `weight` `[O, C / groups, kernel..]` and `bias` `[O]` as in PyTorch.
///
/// ```
/// use opt_core::nn::{Conv, ModelBuilder};
///
/// let mut m = ModelBuilder::new("conv", 0);
/// let x = m.batch("x", [8, 32, 32])?;
/// let depthwise = Conv::new(8, [3, 3]).pad(1).stride(2).groups(8).bias(false);
/// let y = m.layer("depthwise", depthwise, x)?;
/// assert_eq!(m.type_of(y).to_string(), "f32[batch,8,16,16]");
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Conv {
    outputs: usize,
    kernel: Dims,
    window: Window,
    groups: usize,
    bias: bool,
    init: Init,
}

macro_rules! conv_options {
    ($($name:ident)*) => {$(
        impl $name {
            /// Stride 1, no padding, no dilation, one group, with a bias; the sizes of the
            /// kernel say over how many axes it moves. Weight and bias start uniformly within
            /// `1 / sqrt(fan in)`.
            pub fn new(outputs: usize, kernel: impl AsRef<[usize]>) -> $name {
                let kernel: Dims = kernel.as_ref().into();
                $name {
                    outputs,
                    window: Window::new(kernel.len()),
                    kernel,
                    groups: 1,
                    bias: true,
                    init: Init::LINEAR,
                }
            }

            /// The same stride on every axis.
            #[must_use]
            pub fn stride(mut self, stride: usize) -> $name {
                self.window = self.window.stride(stride);
                self
            }

            /// The same padding on both sides of every axis.
            #[must_use]
            pub fn pad(mut self, pad: usize) -> $name {
                self.window = self.window.pad(pad);
                self
            }

            /// The same dilation on every axis.
            #[must_use]
            pub fn dilation(mut self, dilation: usize) -> $name {
                self.window = self.window.dilation(dilation);
                self
            }

            /// Strides, padding and dilation of each axis.
            #[must_use]
            pub fn window(mut self, window: Window) -> $name {
                self.window = window;
                self
            }

            /// The number of groups, which divides input and output channels.
            #[must_use]
            pub fn groups(mut self, groups: usize) -> $name {
                self.groups = groups;
                self
            }

            /// Whether there is a bias.
            #[must_use]
            pub fn bias(mut self, bias: bool) -> $name {
                self.bias = bias;
                self
            }

            /// How the weight starts.
            #[must_use]
            pub fn init(mut self, init: Init) -> $name {
                self.init = init;
                self
            }

            /// The part of `size` channels that belongs to one group.
            fn per_group(&self, size: usize, what: &str) -> Result<usize> {
                if self.groups == 0 || size % self.groups != 0 {
                    return Err(Error::invalid(format!(
                        "{size} {what} channels do not divide into {} groups",
                        self.groups
                    )));
                }
                Ok(size / self.groups)
            }

            /// Adds weight and bias.
            fn parameters(
                &self,
                m: &mut ModelBuilder,
                channels: [usize; 2],
            ) -> Result<(ValueId, Option<ValueId>)> {
                let shape = [&channels[..], &self.kernel[..]].concat();
                let weight = m.parameter("weight", &shape, &self.init)?;
                let bias = match self.bias {
                    true => Some(m.parameter("bias", [self.outputs], &default_bias(&shape)?)?),
                    false => None,
                };
                Ok((weight, bias))
            }
        }
    )*};
}

conv_options!(Conv ConvTranspose);

impl Layer for Conv {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let inputs = self.per_group(m.size(x, 1)?, "input")?;
        let (weight, bias) = self.parameters(m, [self.outputs, inputs])?;
        m.conv(x, weight, bias, self.window.clone(), self.groups)
    }
}

/// Transposed convolution: `[N, C, ..] -> [N, O, ..]`, with `weight` `[C, O / groups, kernel..]`
/// and `bias` `[O]` as in PyTorch.
#[derive(Debug, Clone)]
pub struct ConvTranspose {
    outputs: usize,
    kernel: Dims,
    window: Window,
    groups: usize,
    bias: bool,
    init: Init,
}

impl Layer for ConvTranspose {
    fn build(&self, m: &mut ModelBuilder, x: ValueId) -> Result<ValueId> {
        let inputs = m.size(x, 1)?;
        self.per_group(inputs, "input")?;
        let outputs = self.per_group(self.outputs, "output")?;
        let (weight, bias) = self.parameters(m, [inputs, outputs])?;
        m.conv_transpose(x, weight, bias, self.window.clone(), self.groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_parameters_are_pytorchs() {
        let mut m = ModelBuilder::new("m", 0);
        let x = m.batch("x", [4, 9]).unwrap();
        let y = m.layer("c", Conv::new(6, [3]).groups(2), x).unwrap();
        m.layer("t", ConvTranspose::new(4, [3]).groups(2).stride(2), y)
            .unwrap();
        let shape = |name: &str| {
            let id = m.graph().find(name).unwrap();
            m.type_of(id).to_string()
        };
        assert_eq!(shape("c.weight"), "f32[6,2,3]");
        assert_eq!(shape("c.bias"), "f32[6]");
        assert_eq!(shape("t.weight"), "f32[6,2,3]");
        assert_eq!(shape("t.bias"), "f32[4]");
    }

    #[test]
    fn groups_must_divide() {
        let mut m = ModelBuilder::new("m", 0);
        let x = m.batch("x", [4, 9]).unwrap();
        assert!(m.layer("a", Conv::new(6, [3]).groups(3), x).is_err());
        assert!(m.layer("b", Conv::new(6, [3]).groups(0), x).is_err());
    }
}
