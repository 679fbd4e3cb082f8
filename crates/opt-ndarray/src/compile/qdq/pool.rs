//! Pooling of quantized images.

use opt_core::DType;
use opt_core::ops::Op;

use super::super::plan::{Id, Ir, Kind, Step};
use crate::kernels::conv::Geometry;
use crate::kernels::int8::pool::IntMaxPool;

/// The kernel on bytes for a max pooling in two dimensions, if every window has an input.
pub(super) fn max_pool(ir: &Ir, step: &Step, out: Id) -> Option<IntMaxPool> {
    let Kind::Op(Op::MaxPool(pool)) = &step.kind else {
        return None;
    };
    let window = &pool.window;
    let x = ir.types[step.inputs[0]].shape.fixed().ok()?;
    let y = ir.types[out].shape.fixed().ok()?;
    let dtype = ir.types[out].dtype;
    let fits = window.rank() == 2
        && matches!(dtype, DType::U8 | DType::I8)
        && window.dilations.iter().all(|&d| d == 1)
        && (0..2).all(|i| {
            let pads = window.pads_begin[i].max(window.pads_end[i]);
            let last = (y[2 + i].max(1) - 1) * window.strides[i];
            pads < pool.kernel[i] && last < x[2 + i] + window.pads_begin[i]
        });
    fits.then(|| IntMaxPool {
        geometry: Geometry::new(&x[2..], &y[2..], &pool.kernel, window),
        dtype,
    })
}
