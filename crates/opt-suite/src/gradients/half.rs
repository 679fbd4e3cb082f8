//! Gradients on `f16` and `bf16` against those on `f32`.
//!
//! A gradient is rounded once where one op computes it. Those of attention and of recurrences are
//! made of several ops that round, or start from rounded states: they have sixteen times as much.

use opt_core::autodiff::grad;
use opt_core::ops::Op;
use opt_core::{DType, Graph, GraphBuilder, Result, Tensor, TensorType, ValueId};

use crate::forward::half::{Rounded, ops};
use crate::{Case, Check, roundoff, uniform};

/// All cases.
///
/// # Panics
/// If a graph cannot be built: the case is wrong.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::BF16, DType::F16] {
        for r in ops(dtype) {
            // These are composed of many ops, and run in `f32` in mixed precision.
            let composed = matches!(
                r.op,
                Op::LayerNorm(_) | Op::GroupNorm(_) | Op::InstanceNorm(_) | Op::RmsNorm(_)
            );
            if !composed {
                cases.push(case(dtype, r));
            }
        }
    }
    cases
}

fn case(dtype: DType, r: Rounded) -> Case {
    let build = |wide| graph(dtype, &r, wide).unwrap_or_else(|e| panic!("{}: {e}", r.name));
    let factor = if r.factor > 1.0 { 16.0 } else { 1.0 };
    let check = Check::Widened {
        graph: build(true),
        tolerance: roundoff(dtype) * factor,
    };
    Case {
        graph: build(false),
        name: format!("gradient of {}", r.name),
        inputs: r.inputs,
        check,
    }
}

/// The gradients of `sum(y * cotangent)` by what has one.
fn graph(dtype: DType, r: &Rounded, wide: bool) -> Result<Graph> {
    let own = |t: &Tensor| if wide { t.cast(DType::F32) } else { t.clone() };
    let mut b = GraphBuilder::new(&r.name);
    let mut ids: Vec<ValueId> = Vec::new();
    for (i, t) in r.inputs.iter().enumerate() {
        let ty = TensorType::new(own(t).dtype(), t.shape());
        ids.push(b.input(&format!("x{i}"), ty)?);
    }
    let y = b.node(r.op.clone(), &ids)?[0];
    let shape = b.type_of(y).shape.fixed()?;
    let cotangent = uniform(DType::F64, &shape, 11, -1.0, 1.0)?.cast(dtype);
    let cotangent = b.constant(own(&cotangent));
    let weighted = b.mul(y, cotangent)?;
    let loss = b.sum_all(weighted)?;
    if let Op::BatchNorm(_) = r.op {
        ids.truncate(3);
    }
    let gradients = grad(&mut b, loss, &ids)?;
    for (i, &v) in ids.iter().enumerate() {
        b.output(&format!("g{i}"), gradients.of(v)?)?;
    }
    b.finish()
}
