//! Convolution, its transpose and its gradient by the weight.

use opt_core::Result;
use opt_core::ops::{Conv, ConvGradWeight, ConvTranspose, Window};

use tch::Tensor;

use super::{CompileCx, Kernel, int, ints, sizes};
use crate::Device;
use crate::native::{Arg, Outs, aten, atens};

/// `at::MemoryFormat::ChannelsLast`
const CHANNELS_LAST: i64 = 2;

/// A window as libtorch's operators take it.
#[derive(Debug, Clone)]
pub(crate) struct Geometry {
    pub(crate) strides: Vec<i64>,
    /// The padding on both sides of each axis that the operator does itself.
    pub(crate) pads: Vec<i64>,
    pub(crate) dilations: Vec<i64>,
    /// What is padded before, for `constant_pad_nd`; empty where the sides are alike.
    pub(crate) before: Vec<i64>,
    /// Zeros: only a transposed convolution pads its output.
    output_padding: Vec<i64>,
    pub(crate) groups: i64,
}

impl Geometry {
    pub(crate) fn new(window: &Window, groups: usize) -> Result<Geometry> {
        let (begin, end) = (ints(&window.pads_begin)?, ints(&window.pads_end)?);
        let alike = begin == end;
        let mut before = Vec::new();
        if !alike {
            for (b, e) in begin.iter().zip(&end).rev() {
                before.extend([*b, *e]);
            }
        }
        let zeros = vec![0; window.rank()];
        Ok(Geometry {
            strides: ints(&window.strides)?,
            pads: if alike { begin } else { zeros.clone() },
            dilations: ints(&window.dilations)?,
            before,
            output_padding: zeros,
            groups: int(groups)?,
        })
    }

    /// The input with the padding that the operator cannot do.
    pub(crate) fn padded(&self, x: &Tensor) -> Result<Tensor> {
        match self.before.is_empty() {
            true => Ok(x.shallow_clone()),
            false => aten!("constant_pad_nd", x, &self.before, 0.0),
        }
    }

    /// A gradient by the padded input without the padding.
    pub(crate) fn cropped(&self, g: Tensor, shape: &[i64]) -> Result<Tensor> {
        if self.before.is_empty() {
            return Ok(g);
        }
        let mut g = g;
        let rank = shape.len();
        for (i, pair) in self.before.chunks(2).enumerate() {
            let axis = rank - 1 - i;
            g = aten!("narrow", &g, int(axis)?, pair[0], shape[axis])?;
        }
        Ok(g)
    }

    pub(crate) fn forward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let x = self.padded(x)?;
        aten!(
            "convolution",
            &x,
            weight,
            bias,
            &self.strides,
            &self.pads,
            &self.dilations,
            false,
            &self.output_padding,
            self.groups,
        )
    }

    /// The gradients by input, weight and bias that are wanted.
    pub(crate) fn backward(
        &self,
        g: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<i64>,
        wanted: [bool; 3],
    ) -> Result<Outs> {
        let padded = self.padded(x)?;
        let bias = bias.map(|n| [n]);
        let mut outs = atens!(
            "convolution_backward",
            g,
            &padded,
            weight,
            bias.as_ref().map_or(Arg::None, |n| Arg::Ints(n)),
            &self.strides,
            &self.pads,
            &self.dilations,
            false,
            &self.output_padding,
            self.groups,
            &wanted,
        )?;
        if wanted[0] {
            let gx = std::mem::replace(&mut outs[0], Tensor::new());
            outs[0] = self.cropped(gx, &x.size())?;
        }
        Ok(outs)
    }
}

/// Whether a convolution of these runs faster with channels last: on the tensor cores of a GPU.
pub(crate) fn channels_last(cx: &CompileCx<'_>) -> bool {
    matches!(cx.device, Device::Cuda(_))
        && cx.inputs[0].dtype.bits() == 16
        && cx.inputs[0].rank() == 4
}

/// The same tensor with channels last in memory.
pub(crate) fn to_channels_last(x: &Tensor) -> Result<Tensor> {
    aten!("contiguous", x, CHANNELS_LAST)
}

pub(super) fn compile_conv(op: &Conv, cx: &CompileCx<'_>) -> Result<Kernel> {
    let geometry = Geometry::new(&op.window, op.groups)?;
    let last = channels_last(cx);
    Ok(Kernel::one("convolution", move |x| {
        let bias = x.get(2).copied();
        match last {
            true => geometry.forward(&to_channels_last(x[0])?, &to_channels_last(x[1])?, bias),
            false => geometry.forward(x[0], x[1], bias),
        }
    }))
}

pub(super) fn compile_conv_grad_weight(op: &ConvGradWeight, cx: &CompileCx<'_>) -> Result<Kernel> {
    let geometry = Geometry::new(&op.window, op.groups)?;
    let shape = cx.out_shape(0)?;
    Ok(Kernel::one("convolution_backward", move |x| {
        // Only its sizes and type are looked at.
        let weight = aten!("new_empty", x[1], &shape)?;
        let mut outs = geometry.backward(x[1], x[0], &weight, None, [false, true, false])?;
        Ok(outs.swap_remove(1))
    }))
}

pub(super) fn compile_conv_transpose(op: &ConvTranspose, cx: &CompileCx<'_>) -> Result<Kernel> {
    let window = &op.window;
    let (strides, dilations) = (ints(&window.strides)?, ints(&window.dilations)?);
    let extra = ints(&op.output_padding)?;
    let (begin, end) = (ints(&window.pads_begin)?, ints(&window.pads_end)?);
    let groups = int(op.groups)?;
    let zeros = vec![0; strides.len()];
    let native = begin == end
        && (0..strides.len()).all(|i| extra[i] < strides[i].max(dilations[i]) || extra[i] == 0);
    if native {
        return Ok(Kernel::one("convolution_transposed", move |x| {
            aten!(
                "convolution",
                x[0],
                x[1],
                x.get(2).copied(),
                &strides,
                &begin,
                &dilations,
                true,
                &extra,
                groups,
            )
        }));
    }
    // The whole product, then the part that is asked for; the bias comes last, so that what the
    // output padding adds has it too.
    let shape = sizes(&cx.outputs[0])?;
    Ok(Kernel::one("convolution_transposed", move |x| {
        let mut y = aten!(
            "convolution",
            x[0],
            x[1],
            Arg::None,
            &strides,
            &zeros,
            &dilations,
            true,
            &zeros,
            groups,
        )?;
        let full = y.size();
        let mut pads = Vec::new();
        for i in (0..strides.len()).rev() {
            let missing = shape[i + 2] + begin[i] - full[i + 2];
            pads.extend([0, missing.max(0)]);
        }
        y = aten!("constant_pad_nd", &y, &pads, 0.0)?;
        for i in 0..strides.len() {
            y = aten!("narrow", &y, int(i + 2)?, begin[i], shape[i + 2])?;
        }
        match x.get(2) {
            None => Ok(y),
            Some(bias) => {
                let mut along = vec![1; shape.len()];
                along[1] = shape[1];
                aten!("add.Tensor", &y, &aten!("reshape", *bias, &along)?)
            }
        }
    }))
}

/// The gradients of a convolution in one call; inputs are the gradient by its output, its input
/// and its weight.
pub(crate) fn compile_conv_grad(
    op: &Conv,
    cx: &CompileCx<'_>,
    wanted: [bool; 3],
) -> Result<Kernel> {
    let geometry = Geometry::new(&op.window, op.groups)?;
    let channels = cx.shape(0)?[1];
    let last = channels_last(cx);
    Ok(Kernel::new("convolution_backward", move |x, _| {
        let bias = wanted[2].then_some(channels);
        let outs = match last {
            true => {
                let [g, x, w] = [
                    to_channels_last(x[0])?,
                    to_channels_last(x[1])?,
                    to_channels_last(x[2])?,
                ];
                geometry.backward(&g, &x, &w, bias, wanted)?
            }
            false => geometry.backward(x[0], x[1], x[2], bias, wanted)?,
        };
        let chosen = outs.into_iter().zip(wanted).filter(|(_, w)| *w);
        Ok(chosen.map(|(t, _)| t).collect())
    }))
}
