//! Convolutions.

use opt_core::ops::{Conv, ConvTranspose, Window};
use opt_core::tensor::Dims;
use opt_core::{DType, Dim, Error, Result, Shape, ValueId};

use super::{Lower, count, counts};
use crate::import::Cx;
use crate::import::node::{Node, V};

pub(super) fn find(op: &str) -> Option<Lower> {
    Some(match op {
        "Conv" => conv,
        "ConvInteger" => conv_integer,
        "ConvTranspose" => conv_transpose,
        _ => return None,
    })
}

fn list(node: &Node<'_>, name: &str, spatial: usize, default: usize) -> Result<Dims> {
    match node.ints(name)? {
        None => Ok(smallvec::smallvec![default; spatial]),
        Some(values) if values.len() == spatial => Ok(counts(&values, name)?.into()),
        Some(values) => Err(Error::invalid(format!(
            "`{name}` is {values:?} for {spatial} spatial axes"
        ))),
    }
}

/// The window of a convolution or pooling over an input of a shape.
pub(super) fn window(node: &Node<'_>, input: &Shape, kernel: &[usize]) -> Result<Window> {
    let spatial = kernel.len();
    if input.rank() != spatial + 2 {
        return Err(Error::shape(format!(
            "a kernel of {spatial} spatial axes for an input of shape {input}"
        )));
    }
    let mut window = Window {
        strides: list(node, "strides", spatial, 1)?,
        dilations: list(node, "dilations", spatial, 1)?,
        ..Window::new(spatial)
    };
    if window.strides.contains(&0) || window.dilations.contains(&0) {
        return Err(Error::invalid("strides and dilations must be at least 1"));
    }
    let pads = node.ints("pads")?;
    match node.text_or("auto_pad", "NOTSET")? {
        "NOTSET" => {
            if let Some(pads) = pads {
                if pads.len() != 2 * spatial {
                    return Err(Error::invalid(format!(
                        "`pads` is {pads:?} for {spatial} spatial axes"
                    )));
                }
                window.pads_begin = counts(&pads[..spatial], "`pads`")?.into();
                window.pads_end = counts(&pads[spatial..], "`pads`")?.into();
            }
        }
        "VALID" => {}
        same @ ("SAME_UPPER" | "SAME_LOWER") => {
            for axis in 0..spatial {
                let extent = kernel[axis]
                    .saturating_sub(1)
                    .saturating_mul(window.dilations[axis])
                    .saturating_add(1);
                let stride = window.strides[axis];
                // With stride 1 the padding does not depend on the size.
                let total = if stride == 1 {
                    extent - 1
                } else {
                    let size = input[axis + 2].fixed()?;
                    let steps = size.div_ceil(stride);
                    (steps.saturating_sub(1) * stride + extent).saturating_sub(size)
                };
                let small = total / 2;
                let (begin, end) = if same == "SAME_UPPER" {
                    (small, total - small)
                } else {
                    (total - small, small)
                };
                window.pads_begin[axis] = begin;
                window.pads_end[axis] = end;
            }
        }
        other => return Err(Error::unsupported(format!("auto_pad = `{other}`"))),
    }
    Ok(window)
}

/// The kernel's sizes: an attribute, or those of the weight.
fn kernel(cx: &Cx<'_>, node: &Node<'_>, weight: ValueId) -> Result<Vec<usize>> {
    let shape = cx.b.type_of(weight).shape.clone();
    let of_weight: Vec<usize> = shape
        .dims()
        .get(2..)
        .unwrap_or_default()
        .iter()
        .map(Dim::fixed)
        .collect::<Result<_>>()?;
    if let Some(given) = node.ints("kernel_shape")?
        && counts(&given, "`kernel_shape`")? != of_weight
    {
        return Err(Error::invalid(format!(
            "`kernel_shape` is {given:?}, the weight has {shape}"
        )));
    }
    Ok(of_weight)
}

/// A convolution of a node's attributes with given operands.
pub(super) fn convolve(
    cx: &mut Cx<'_>,
    node: &Node<'_>,
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
) -> Result<ValueId> {
    let kernel = kernel(cx, node, weight)?;
    let op = Conv {
        window: window(node, &cx.b.type_of(x).shape.clone(), &kernel)?,
        groups: count(node.int_or("group", 1)?, "`group`")?,
    };
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    cx.b.op(op, &inputs)
}

fn conv(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, w) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let bias = cx.maybe_x(node, 2)?;
    let y = convolve(cx, node, x, w, bias)?;
    Ok(cx.one(y))
}

fn conv_integer(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, w) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let zero_x = cx.maybe_x(node, 2)?;
    let mut zero_w = cx.maybe_x(node, 3)?;
    if let Some(z) = zero_w
        && cx.b.type_of(z).rank() == 1
    {
        let axes: Vec<usize> = (1..cx.b.type_of(w).rank()).collect();
        zero_w = Some(cx.b.unsqueeze(z, &axes)?);
    }
    // Padding is with the zero point, which is 0 once it is subtracted.
    let x = super::matmul::centred(cx, x, zero_x, false)?;
    let w = super::matmul::centred(cx, w, zero_w, false)?;
    let y = convolve(cx, node, x, w, None)?;
    let y = cx.b.cast(y, DType::I32)?;
    Ok(cx.one(y))
}

fn conv_transpose(cx: &mut Cx<'_>, node: &Node<'_>) -> Result<Vec<V>> {
    let (x, w) = (cx.x(node, 0)?, cx.x(node, 1)?);
    let bias = cx.maybe_x(node, 2)?;
    let kernel = kernel(cx, node, w)?;
    let spatial = kernel.len();
    let input = cx.b.type_of(x).shape.clone();
    if input.rank() != spatial + 2 {
        return Err(Error::shape(format!(
            "a kernel of {spatial} spatial axes for an input of shape {input}"
        )));
    }
    let mut op = ConvTranspose {
        window: Window {
            strides: list(node, "strides", spatial, 1)?,
            dilations: list(node, "dilations", spatial, 1)?,
            ..Window::new(spatial)
        },
        groups: count(node.int_or("group", 1)?, "`group`")?,
        output_padding: list(node, "output_padding", spatial, 0)?,
    };
    let pads = node.ints("pads")?;
    let auto = node.text_or("auto_pad", "NOTSET")?;
    let target = match node.ints("output_shape")? {
        // Some files give batch and channels too.
        Some(shape) => {
            let from = shape.len().saturating_sub(spatial);
            Some(counts(&shape[from..], "`output_shape`")?)
        }
        None => None,
    };
    for axis in 0..spatial {
        let extent = kernel[axis].saturating_sub(1) * op.window.dilations[axis] + 1;
        let stride = op.window.strides[axis];
        let wanted = match (&target, auto) {
            (Some(target), _) => Some(target[axis]),
            (None, "SAME_UPPER" | "SAME_LOWER") => Some(input[axis + 2].fixed()? * stride),
            _ => None,
        };
        if let Some(wanted) = wanted {
            let size = input[axis + 2].fixed()?;
            let full = stride * size.saturating_sub(1) + op.output_padding[axis] + extent;
            if full < wanted {
                op.output_padding[axis] += wanted - full;
            }
            let total = full.saturating_sub(wanted);
            let small = total / 2;
            // The specification puts the larger half at the end for SAME_UPPER only.
            let (begin, end) = if auto == "SAME_UPPER" {
                (small, total - small)
            } else {
                (total - small, small)
            };
            op.window.pads_begin[axis] = begin;
            op.window.pads_end[axis] = end;
        } else if let (Some(pads), "NOTSET") = (&pads, auto) {
            if pads.len() != 2 * spatial {
                return Err(Error::invalid(format!(
                    "`pads` is {pads:?} for {spatial} spatial axes"
                )));
            }
            op.window.pads_begin[axis] = count(pads[axis], "`pads`")?;
            op.window.pads_end[axis] = count(pads[spatial + axis], "`pads`")?;
        } else if !matches!(auto, "NOTSET" | "VALID") {
            return Err(Error::unsupported(format!("auto_pad = `{auto}`")));
        }
        // Padding may remove what output padding added.
        let take = op.output_padding[axis].min(op.window.pads_end[axis]);
        if op.output_padding[axis] >= stride.max(op.window.dilations[axis]) {
            op.output_padding[axis] -= take;
            op.window.pads_end[axis] -= take;
        }
    }
    let mut inputs = vec![x, w];
    inputs.extend(bias);
    let y = cx.b.op(op, &inputs)?;
    Ok(cx.one(y))
}
