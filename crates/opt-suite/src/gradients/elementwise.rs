//! Element-wise ops.

use opt_core::DType;
use opt_core::ops::{Binary, BinaryOp, UnaryOp};

use super::{differences, signed, tensor, uniform, values};
use crate::Case;

/// The cases of the family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    unary(&mut cases);
    binary(&mut cases);
    choice(&mut cases);
    at_zero(&mut cases);
    cases
}

fn unary(cases: &mut Vec<Case>) {
    use UnaryOp::*;
    let all = (0.1, 2.5, true);
    let positive = (0.1, 3.0, false);
    let unit = (0.05, 0.95, true);
    for (op, (low, high, sign)) in [
        (Neg, all),
        (Abs, all),
        (Exp, all),
        (Log, positive),
        (Log1p, positive),
        (Log1p, unit),
        (Expm1, all),
        (Sqrt, positive),
        (Reciprocal, all),
        (Sin, all),
        (Cos, all),
        (Tan, (0.1, 1.2, true)),
        (Asin, unit),
        (Acos, unit),
        (Atan, all),
        (Sinh, all),
        (Cosh, all),
        (Erf, all),
        (Relu, all),
        (LeakyRelu { alpha: 0.01 }, all),
        (LeakyRelu { alpha: -0.5 }, all),
        (Elu { alpha: 1.0 }, all),
        (Elu { alpha: 0.3 }, all),
        (Selu, all),
        (Sigmoid, (0.1, 30.0, true)),
        (
            HardSigmoid {
                alpha: 0.2,
                beta: 0.5,
            },
            (0.0, 2.4, true),
        ),
        (
            HardSigmoid {
                alpha: 0.2,
                beta: 0.5,
            },
            (2.6, 5.0, true),
        ),
        (Tanh, all),
        (Gelu { tanh: false }, (0.1, 5.0, true)),
        (Gelu { tanh: true }, (0.1, 5.0, true)),
        (Silu, (0.1, 8.0, true)),
        (HardSwish, (0.0, 2.9, true)),
        (HardSwish, (3.1, 6.0, true)),
        (Mish, (0.1, 8.0, true)),
        (Softplus, (0.1, 40.0, true)),
        (Softsign, all),
    ] {
        for shape in [&[] as &[usize], &[5], &[2, 3], &[2, 1, 3]] {
            let name = format!("gradient/{op:?} {low}..{high} {shape:?}");
            let seed = 1 + shape.len() as u64;
            let x = match sign {
                true => signed(shape, seed, low, high),
                false => uniform(shape, seed, low, high),
            };
            cases.push(differences(&name, vec![x], |b, x| b.unary(op, x[0])));
        }
    }
    for op in [Sign, Floor, Ceil, Round] {
        let name = format!("gradient/{op:?} is 0");
        let x = tensor(&[4], &[-1.3, -0.2, 0.4, 2.7]);
        let zero = tensor(&[4], &[0.0; 4]);
        let ones = tensor(&[4], &[1.0; 4]);
        cases.push(values(&name, vec![x], ones, vec![zero], |b, x| {
            b.unary(op, x[0])
        }));
    }
}

fn binary(cases: &mut Vec<Case>) {
    use BinaryOp::*;
    let shapes: [(&[usize], &[usize]); 7] = [
        (&[], &[]),
        (&[3], &[3]),
        (&[2, 3], &[3]),
        (&[2, 1], &[1, 3]),
        (&[], &[2, 2]),
        (&[4, 1, 2], &[3, 1]),
        (&[1], &[2, 3]),
    ];
    for op in [Add, Sub, Mul, Div, Pow, Max, Min, Mod, PRelu] {
        for (i, (a, b)) in shapes.into_iter().enumerate() {
            let name = format!("gradient/{op:?} {a:?} {b:?}");
            let seed = 10 + i as u64;
            // Powers need a positive base; remainders must stay off the jumps.
            let (x, y) = match op {
                Pow => (uniform(a, seed, 0.3, 2.0), signed(b, seed + 50, 0.3, 2.5)),
                Mod => (uniform(a, seed, 2.1, 2.9), uniform(b, seed + 50, 0.95, 1.0)),
                _ => (signed(a, seed, 0.3, 2.0), signed(b, seed + 50, 0.3, 2.0)),
            };
            cases.push(differences(&name, vec![x, y], |b, x| {
                b.op(Binary { op }, &[x[0], x[1]])
            }));
        }
    }
    for p in [-1.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.5] {
        let x = match p == 4.5 || p == 0.5 || p == -1.5 {
            true => uniform(&[5], 3, 0.3, 2.0),
            false => signed(&[5], 3, 0.3, 2.0),
        };
        let name = format!("gradient/Pow by the constant {p}");
        cases.push(differences(&name, vec![x], |b, x| {
            let p = b.scalar_like(x[0], p)?;
            b.pow(x[0], p)
        }));
    }
    let x = signed(&[2, 3], 5, 0.1, 1.0);
    cases.push(differences(
        "gradient/Div by a constant",
        vec![x],
        |b, x| {
            let c = b.constant(tensor(&[3], &[2.0, -4.0, 0.5]));
            b.div(x[0], c)
        },
    ));
    let x = signed(&[2, 3], 6, 0.1, 2.0);
    cases.push(differences("gradient/clip", vec![x], |b, x| {
        b.clip(x[0], -0.7, 0.9)
    }));
    let x = signed(&[4], 7, 0.1, 2.0);
    cases.push(differences(
        "gradient/a value used twice",
        vec![x],
        |b, x| {
            let square = b.mul(x[0], x[0])?;
            b.add(square, x[0])
        },
    ));
}

fn choice(cases: &mut Vec<Case>) {
    for (c, x, y) in [
        (&[2usize, 3][..], &[2usize, 3][..], &[2usize, 3][..]),
        (&[2, 1], &[3], &[]),
        (&[], &[2, 2], &[2]),
    ] {
        let name = format!("gradient/Where {c:?} {x:?} {y:?}");
        let condition = signed(c, 8, 0.1, 1.0);
        let inputs = vec![signed(x, 9, 0.1, 1.0), signed(y, 10, 0.1, 1.0)];
        cases.push(differences(&name, inputs, |b, x| {
            let c = b.constant(condition);
            let zero = b.scalar_like(c, 0.0)?;
            let c = b.greater(c, zero)?;
            b.select(c, x[0], x[1])
        }));
    }
    let x = tensor(&[3], &[0.5, -1.25, 2.0]);
    let twos = tensor(&[3], &[2.0; 3]);
    let name = "gradient/Cast to f32 and back";
    cases.push(values(name, vec![x], twos.clone(), vec![twos], |b, x| {
        let y = b.cast(x[0], DType::F32)?;
        b.cast(y, DType::F64)
    }));
}

/// Where the cotangent is 0, or the derivative is a limit, there must be no NaN.
fn at_zero(cases: &mut Vec<Case>) {
    use BinaryOp::{Div, Pow};
    let t = |data: &[f64]| tensor(&[data.len()], data);
    let inf = f64::INFINITY;
    let unary = [
        (
            UnaryOp::Sqrt,
            t(&[0.0, 0.0, 4.0]),
            t(&[0.0, 1.0, 1.0]),
            t(&[0.0, inf, 0.25]),
        ),
        (
            UnaryOp::Log,
            t(&[0.0, 0.0, 2.0]),
            t(&[0.0, 1.0, 1.0]),
            t(&[0.0, inf, 0.5]),
        ),
        (
            UnaryOp::Log1p,
            t(&[-1.0, 1.0]),
            t(&[0.0, 1.0]),
            t(&[0.0, 0.5]),
        ),
        (
            UnaryOp::Reciprocal,
            t(&[0.0, 2.0]),
            t(&[0.0, 1.0]),
            t(&[0.0, -0.25]),
        ),
        (
            UnaryOp::Asin,
            t(&[1.0, -1.0]),
            t(&[0.0, 1.0]),
            t(&[0.0, inf]),
        ),
        (
            UnaryOp::Acos,
            t(&[1.0, -1.0]),
            t(&[0.0, 1.0]),
            t(&[0.0, -inf]),
        ),
        (
            UnaryOp::Softplus,
            t(&[-800.0, 800.0]),
            t(&[1.0, 1.0]),
            t(&[0.0, 1.0]),
        ),
        (
            UnaryOp::Sigmoid,
            t(&[-800.0, 800.0]),
            t(&[1.0, 1.0]),
            t(&[0.0, 0.0]),
        ),
        (
            UnaryOp::Mish,
            t(&[-800.0, 800.0]),
            t(&[1.0, 1.0]),
            t(&[0.0, 1.0]),
        ),
        (
            UnaryOp::Silu,
            t(&[-800.0, 800.0]),
            t(&[1.0, 1.0]),
            t(&[0.0, 1.0]),
        ),
    ];
    for (op, x, g, expected) in unary {
        let name = format!("gradient/{op:?} at its limits");
        cases.push(values(&name, vec![x], g, vec![expected], |b, x| {
            b.unary(op, x[0])
        }));
    }
    let binary = [
        (
            Div,
            [t(&[1.0, 0.0, 1.0]), t(&[0.0, 0.0, 2.0])],
            t(&[0.0, 0.0, 1.0]),
            [t(&[0.0, 0.0, 0.5]), t(&[0.0, 0.0, -0.25])],
        ),
        (
            // 0^0, 0^1, 0^2, 0^0.5 without cotangent, 2^0.
            Pow,
            [t(&[0.0, 0.0, 0.0, 0.0, 2.0]), t(&[0.0, 1.0, 2.0, 0.5, 0.0])],
            t(&[1.0, 1.0, 1.0, 0.0, 1.0]),
            [
                t(&[0.0, 1.0, 0.0, 0.0, 0.0]),
                t(&[0.0, 0.0, 0.0, 0.0, 2f64.ln()]),
            ],
        ),
    ];
    for (op, inputs, g, expected) in binary {
        let name = format!("gradient/{op:?} at its limits");
        cases.push(values(&name, inputs.into(), g, expected.into(), |b, x| {
            b.op(Binary { op }, &[x[0], x[1]])
        }));
    }
    // The usual guard: a safe value is chosen before the root, and 0 after it.
    let x = t(&[0.0, 4.0]);
    let name = "gradient/Where around a root at 0";
    cases.push(values(
        name,
        vec![x],
        t(&[1.0; 2]),
        vec![t(&[0.0, 0.25])],
        |b, x| {
            let zero = b.scalar_like(x[0], 0.0)?;
            let positive = b.greater(x[0], zero)?;
            let root = b.sqrt(x[0])?;
            b.select(positive, root, zero)
        },
    ));
}
