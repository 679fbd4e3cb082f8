//! Reductions, top-k, running sums, softmax.

use opt_core::ops::{CumSum, ReduceOp, TopK};

use super::{differences, signed, tensor, values};
use crate::Case;

/// The cases of the family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: [(&[usize], &[usize]); 7] = [
        (&[], &[]),
        (&[3], &[0]),
        (&[2, 3], &[0]),
        (&[2, 3], &[1]),
        (&[2, 3, 2], &[0, 2]),
        (&[2, 3, 2], &[0, 1, 2]),
        (&[2, 3], &[]),
    ];
    for op in [
        ReduceOp::Sum,
        ReduceOp::Mean,
        ReduceOp::Max,
        ReduceOp::Min,
        ReduceOp::Prod,
    ] {
        for (i, (shape, axes)) in shapes.into_iter().enumerate() {
            for keepdims in [false, true] {
                let name = format!("gradient/{} {shape:?} {axes:?} {keepdims}", op.name());
                let x = signed(shape, 20 + i as u64, 0.3, 2.0);
                cases.push(differences(&name, vec![x], |b, x| {
                    b.reduce(op, x[0], axes, keepdims)
                }));
            }
        }
    }
    // One zero, two zeros, none: the product of the others.
    let x = tensor(&[3, 3], &[0.0, 2.0, 3.0, 0.0, 0.0, 5.0, 1.0, 2.0, 4.0]);
    let expected = tensor(&[3, 3], &[6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0, 4.0, 2.0]);
    let ones = tensor(&[3], &[1.0; 3]);
    let name = "gradient/ReduceProd with zeros";
    cases.push(values(name, vec![x], ones, vec![expected], |b, x| {
        b.reduce(ReduceOp::Prod, x[0], &[1], false)
    }));
    for (k, axis, largest) in [(2, 1, true), (1, 0, false), (3, 1, false), (0, 1, true)] {
        let name = format!("gradient/TopK {k} {axis} {largest}");
        let x = signed(&[2, 3, 2], 30, 0.1, 2.0);
        cases.push(differences(&name, vec![x], |b, x| {
            let op = TopK { k, axis, largest };
            Ok(b.node(op, &[x[0]])?[0])
        }));
    }
    for (axis, exclusive, reverse) in [
        (0, false, false),
        (1, true, false),
        (2, false, true),
        (1, true, true),
    ] {
        let name = format!("gradient/CumSum {axis} {exclusive} {reverse}");
        let x = signed(&[2, 3, 2], 31, 0.1, 2.0);
        cases.push(differences(&name, vec![x], |b, x| {
            let op = CumSum {
                axis,
                exclusive,
                reverse,
            };
            b.op(op, &[x[0]])
        }));
    }
    for (shape, axis) in [
        (&[4usize][..], 0),
        (&[2, 3], 1),
        (&[2, 3], 0),
        (&[2, 3, 2], 1),
    ] {
        let x = signed(shape, 32, 0.1, 3.0);
        let name = format!("gradient/Softmax {shape:?} {axis}");
        cases.push(differences(&name, vec![x.clone()], |b, x| {
            b.softmax(x[0], axis)
        }));
        let name = format!("gradient/LogSoftmax {shape:?} {axis}");
        cases.push(differences(&name, vec![x], |b, x| {
            b.log_softmax(x[0], axis)
        }));
    }
    cases
}
