//! Normalizations.

use opt_core::Result;
use opt_core::ops::{BatchNorm, LayerNorm, RmsNorm};

use super::{CompileCx, Kernel, int};
use crate::native::{Arg, Outs, aten, atens};

pub(super) fn compile_batch_norm(op: &BatchNorm) -> Result<Kernel> {
    let (momentum, epsilon) = (op.momentum, op.epsilon);
    if !op.training {
        return Ok(Kernel::one("batch_norm", move |x| {
            aten!(
                "native_batch_norm",
                x[0],
                x[1],
                x[2],
                x[3],
                x[4],
                false,
                momentum,
                epsilon
            )
        }));
    }
    Ok(Kernel::new("batch_norm", move |x, _| {
        // The operator writes the running statistics in place.
        let (mean, var) = (aten!("clone", x[3])?, aten!("clone", x[4])?);
        let mut outs = atens!(
            "native_batch_norm",
            x[0],
            x[1],
            x[2],
            &mean,
            &var,
            true,
            momentum,
            epsilon
        )?;
        let (inverse, batch) = (outs.swap_remove(2), outs.swap_remove(1));
        let y = outs.swap_remove(0);
        Ok(Outs::from_vec(vec![y, mean, var, batch, inverse]))
    }))
}

pub(super) fn compile_batch_norm_grad() -> Result<Kernel> {
    Ok(Kernel::new("batch_norm_backward", |x, _| {
        // The running statistics are of no use in training mode.
        atens!(
            "native_batch_norm_backward",
            x[4],
            x[0],
            x[1],
            Arg::None,
            Arg::None,
            x[2],
            x[3],
            true,
            0.0,
            &[true; 3]
        )
    }))
}

pub(super) fn compile_layer_norm(op: &LayerNorm, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = cx.shape(0)?.split_off(op.axis);
    let epsilon = op.epsilon;
    // The second and third results, mean and inverse deviation, are for the gradient.
    Ok(Kernel::new("layer_norm", move |x, _| {
        atens!(
            "native_layer_norm",
            x[0],
            &shape,
            x[1],
            x.get(2).copied(),
            epsilon
        )
    }))
}

/// The gradients of a layer normalization; inputs are the gradient by its output, x, scale, and
/// the mean and inverse deviation that the forward gave.
pub(crate) fn compile_layer_norm_grad(
    op: &LayerNorm,
    shape: &[i64],
    wanted: [bool; 3],
) -> Result<Kernel> {
    let tail = shape[op.axis..].to_vec();
    Ok(Kernel::new("layer_norm_backward", move |x, _| {
        let outs = atens!(
            "native_layer_norm_backward",
            x[0],
            x[1],
            &tail,
            x[3],
            x[4],
            x[2],
            // Stands for the bias, whose content plays no part.
            x[2],
            &wanted
        )?;
        let chosen = outs.into_iter().zip(wanted).filter(|(_, w)| *w);
        Ok(chosen.map(|(t, _)| t).collect())
    }))
}

pub(super) fn compile_group_norm(
    groups: usize,
    epsilon: f64,
    cx: &CompileCx<'_>,
) -> Result<Kernel> {
    let shape = cx.shape(0)?;
    let (n, c, groups) = (shape[0], shape[1], int(groups)?);
    let inner: i64 = shape[2..].iter().product();
    Ok(Kernel::one("group_norm", move |x| {
        let input = aten!("contiguous", x[0])?;
        aten!(
            "native_group_norm",
            &input,
            x[1],
            x[2],
            n,
            c,
            inner,
            groups,
            epsilon
        )
    }))
}

pub(super) fn compile_instance_norm(epsilon: f64, cx: &CompileCx<'_>) -> Result<Kernel> {
    let channels = cx.shape(0)?[1];
    compile_group_norm(usize::try_from(channels).unwrap_or(1), epsilon, cx)
}

pub(super) fn compile_rms_norm(op: &RmsNorm, cx: &CompileCx<'_>) -> Result<Kernel> {
    let shape = cx.shape(0)?.split_off(op.axis);
    let epsilon = op.epsilon;
    Ok(Kernel::one("rms_norm", move |x| {
        aten!("rms_norm", x[0], &shape, x[1], epsilon)
    }))
}
