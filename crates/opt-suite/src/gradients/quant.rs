//! Fake quantization, whose gradients are straight-through by definition, and dequantization.

use opt_core::ops::{Dequantize, FakeQuantize};
use opt_core::{DType, Tensor};

use super::{differences, tensor, uniform, values};
use crate::Case;

/// The cases of the family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // On a grid of -4..=3 with scale 0.5 and zero point 1: -2.5 is the lowest number, 1 the
    // highest. x/s is -8, -1.2, 0.5 (rounds with its zero point to 2), 1.9, 6.
    let x = [-4.0, -0.6, 0.25, 0.95, 3.0];
    let (s, z) = (0.5, 1.0);
    let g = [1.0, 2.0, 3.0, 4.0, 5.0];
    let inside = [false, true, true, true, false];
    let grid = [-4.0, 0.0, 2.0, 3.0, 3.0];
    let (mut by_x, mut by_s, mut by_z) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..5 {
        by_x.push(if inside[i] { g[i] } else { 0.0 });
        by_s.push(match inside[i] {
            true => g[i] * (grid[i] - (x[i] / s + z)),
            false => g[i] * (grid[i] - z),
        });
        by_z.push(if inside[i] { 0.0 } else { -g[i] * s });
    }
    let sum = |v: &[f64]| tensor(&[], &[v.iter().sum()]);
    let fake = |axis| FakeQuantize {
        low: -4,
        high: 3,
        axis,
    };
    cases.push(values(
        "gradient/FakeQuantize per tensor",
        vec![tensor(&[5], &x), tensor(&[], &[s]), tensor(&[], &[z])],
        tensor(&[5], &g),
        vec![tensor(&[5], &by_x), sum(&by_s), sum(&by_z)],
        |b, x| b.op(fake(None), x),
    ));
    // The same entries as two channels along axis 1 of [3, 2]; the sixth is 0 and inside.
    let last = [
        [x[0], x[1], x[2], x[3], x[4], 0.0],
        [g[0], g[1], g[2], g[3], g[4], 6.0],
    ];
    by_x.push(6.0);
    let columns = |v: &[f64]| tensor(&[2], &[v[0] + v[2] + v[4], v[1] + v[3]]);
    cases.push(values(
        "gradient/FakeQuantize per channel",
        vec![
            tensor(&[3, 2], &last[0]),
            tensor(&[2], &[s, s]),
            tensor(&[2], &[z, z]),
        ],
        tensor(&[3, 2], &last[1]),
        vec![tensor(&[3, 2], &by_x), columns(&by_s), columns(&by_z)],
        |b, x| b.op(fake(Some(1)), x),
    ));
    let ints = |dtype, shape: &[usize], seed| {
        Tensor::from_f64s(dtype, shape, &uniform(shape, seed, -8.0, 8.0).to_f64s())
            .expect("a small shape")
    };
    for (name, axis, block, shape) in [
        ("per tensor", None, None, &[] as &[usize]),
        ("per channel", Some(1), None, &[4]),
        ("per block", Some(1), Some(2), &[3, 2]),
    ] {
        for dtype in [DType::I8, DType::I4, DType::I32] {
            let name = format!("gradient/Dequantize {name} {dtype}");
            let (q, z) = (ints(dtype, &[3, 4], 70), ints(dtype, shape, 71));
            let scale = uniform(shape, 72, 0.1, 1.0);
            cases.push(differences(&name, vec![scale], |b, x| {
                let (q, z) = (b.constant(q), b.constant(z));
                b.op(Dequantize { axis, block }, &[q, x[0], z])
            }));
        }
    }
    cases
}
