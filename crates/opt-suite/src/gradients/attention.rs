//! Scaled dot-product attention.

use opt_core::Tensor;
use opt_core::ops::Attention;

use super::{differences, signed, tensor, values};
use crate::Case;

/// The cases of the family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let qkv = |lead: &[usize], l: usize, s: usize, e: usize, v: usize| {
        let shape = |rows, columns| [lead, &[rows, columns]].concat();
        vec![
            signed(&shape(l, e), 60, 0.1, 1.5),
            signed(&shape(s, e), 61, 0.1, 1.5),
            signed(&shape(s, v), 62, 0.1, 1.5),
        ]
    };
    for (lead, l, s, causal, scale) in [
        (&[] as &[usize], 2, 3, false, None),
        (&[2], 3, 3, true, None),
        (&[2], 2, 4, true, Some(0.3)),
        (&[2, 2], 3, 2, true, None),
        (&[1, 2], 1, 1, false, Some(1.0)),
    ] {
        let name = format!("gradient/Attention {lead:?} {l} {s} {causal} {scale:?}");
        cases.push(differences(&name, qkv(lead, l, s, 3, 2), |b, x| {
            b.op(Attention { scale, causal }, x)
        }));
    }
    for shape in [&[2usize, 3, 4][..], &[3, 4], &[2, 1, 4], &[]] {
        let name = format!("gradient/Attention with a mask to add {shape:?}");
        let mut inputs = qkv(&[2], 3, 4, 3, 2);
        inputs.push(signed(shape, 63, 0.1, 1.5));
        cases.push(differences(&name, inputs, |b, x| {
            b.attention(x[0], x[1], x[2], Some(x[3]), true)
        }));
    }
    let visible = [
        true, false, true, true, true, true, false, true, false, false, true, false,
    ];
    let mask = Tensor::from_bools([3, 4], visible).expect("12 entries");
    let name = "gradient/Attention with a boolean mask";
    cases.push(differences(name, qkv(&[2], 3, 4, 3, 2), |b, x| {
        let mask = b.constant(mask);
        b.attention(x[0], x[1], x[2], Some(mask), false)
    }));
    // The second query sees no key: zeros flow, not NaN.
    let inputs = vec![
        tensor(&[2, 1], &[1.0, 2.0]),
        tensor(&[2, 1], &[0.5, -0.5]),
        tensor(&[2, 1], &[3.0, 4.0]),
    ];
    let mask = Tensor::from_bools([2, 2], [true, false, false, false]).expect("4 entries");
    let infinite = tensor(
        &[2, 2],
        &[0.0, -f64::INFINITY, -f64::INFINITY, -f64::INFINITY],
    );
    let expected = vec![
        tensor(&[2, 1], &[0.0, 0.0]),
        tensor(&[2, 1], &[0.0, 0.0]),
        tensor(&[2, 1], &[1.0, 0.0]),
    ];
    for (what, mask) in [("false", mask), ("-inf", infinite)] {
        let name = format!("gradient/Attention of a query that sees no key, {what}");
        let ones = tensor(&[2, 1], &[1.0; 2]);
        cases.push(values(
            &name,
            inputs.clone(),
            ones,
            expected.clone(),
            |b, x| {
                let mask = b.constant(mask);
                b.attention(x[0], x[1], x[2], Some(mask), false)
            },
        ));
    }
    cases
}
