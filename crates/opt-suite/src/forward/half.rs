//! Ops on `f16` and `bf16` against the same ops on `f32`.
//!
//! Backends compute these ops in `f32` and round the result once, so an entry differs by the unit
//! roundoff. Attention and recurrences may round what lies between (fused kernels do): they have
//! eight times as much.

use opt_core::ops::{Attention, MatMul, Op};
use opt_core::{DType, GraphBuilder, Result, Tensor, TensorType};

use super::golden::listed;
use crate::{Case, Check, roundoff, uniform};

/// An op, its inputs in the dtype, and the factor of the unit roundoff that a result may be off.
pub(crate) struct Rounded {
    pub(crate) name: String,
    pub(crate) op: Op,
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) factor: f64,
}

/// What there is on 16-bit floats: the ops of the golden file, products and attention. Batch
/// normalization stands there with parameters of either dtype.
///
/// # Panics
/// If the golden file is not what the script writes.
pub(crate) fn ops(dtype: DType) -> Vec<Rounded> {
    let random = |shape: &[usize], seed| uniform(DType::F64, shape, seed, -1.0, 1.0);
    let random = |shape: &[usize], seed| random(shape, seed).expect("small shapes");
    let mut all = listed();
    let matmul = |trans_a, trans_b| Op::from(MatMul { trans_a, trans_b });
    let attention = |causal| {
        Op::from(Attention {
            scale: None,
            causal,
        })
    };
    let scores = || {
        let shapes: [&[usize]; 3] = [&[2, 5, 8], &[2, 5, 8], &[2, 5, 6]];
        shapes.map(|s| random(s, s[2] as u64)).to_vec()
    };
    let products: [(&str, Op, Vec<Tensor>); 5] = [
        (
            "matmul",
            matmul(false, false),
            vec![random(&[7, 70], 1), random(&[70, 9], 2)],
        ),
        (
            "matmul of transposed",
            matmul(true, true),
            vec![random(&[70, 7], 3), random(&[9, 70], 4)],
        ),
        (
            "matmul of stacks",
            matmul(false, true),
            vec![random(&[3, 7, 20], 5), random(&[3, 9, 20], 6)],
        ),
        ("attention", attention(false), scores()),
        ("attention causal", attention(true), scores()),
    ];
    all.extend(products.map(|(name, op, inputs)| (name.to_string(), op, inputs)));
    let mut found = Vec::new();
    for (name, op, inputs) in all {
        let rounded = |t: &Tensor| t.cast(dtype);
        let factor = match op {
            Op::Attention(_) | Op::Lstm(_) | Op::Gru(_) => 8.0,
            _ => 1.0,
        };
        if matches!(op, Op::BatchNorm(_)) {
            let parameters = inputs[1..].iter().map(|t| t.cast(DType::F32));
            found.push(Rounded {
                name: format!("{name} {dtype} with f32"),
                op: op.clone(),
                inputs: std::iter::once(rounded(&inputs[0]))
                    .chain(parameters)
                    .collect(),
                factor,
            });
        }
        found.push(Rounded {
            name: format!("{name} {dtype}"),
            inputs: inputs.iter().map(rounded).collect(),
            op,
            factor,
        });
    }
    found
}

/// All cases.
///
/// # Panics
/// If a graph cannot be built: the case is wrong.
pub fn cases() -> Vec<Case> {
    let dtypes = [DType::BF16, DType::F16];
    dtypes.into_iter().flat_map(of_dtype).collect()
}

fn of_dtype(dtype: DType) -> Vec<Case> {
    let case = |r: Rounded| {
        let graph = |wide: bool| -> Result<_> {
            let mut b = GraphBuilder::new(&r.name);
            let mut ids = Vec::new();
            for (i, t) in r.inputs.iter().enumerate() {
                let dtype = if wide { DType::F32 } else { t.dtype() };
                ids.push(b.input(&format!("x{i}"), TensorType::new(dtype, t.shape()))?);
            }
            for (i, v) in b.node(r.op.clone(), &ids)?.into_iter().enumerate() {
                b.output(&format!("y{i}"), v)?;
            }
            b.finish()
        };
        let build = |wide| graph(wide).unwrap_or_else(|e| panic!("{}: {e}", r.name));
        let check = Check::Widened {
            graph: build(true),
            tolerance: roundoff(dtype) * r.factor,
        };
        Case {
            graph: build(false),
            name: r.name,
            inputs: r.inputs,
            check,
        }
    };
    ops(dtype).into_iter().map(case).collect()
}
