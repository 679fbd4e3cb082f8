//! Kernels against naive references.

use opt_core::ops::{
    BinaryOp, CumSum, Op, Pad, PadMode, ReduceOp, ScatterElements, ScatterReduction, Slice, TopK,
    UnaryOp,
};
use opt_core::random::Philox;
use opt_core::{Backend, DType, Error, ErrorKind, GraphBuilder, Tensor, TensorType, ValueId};
use proptest::prelude::*;

use crate::NdarrayBackend;

/// The outputs of a graph of the given inputs.
fn eval_with(
    threads: usize,
    inputs: &[Tensor],
    build: impl FnOnce(&mut GraphBuilder, &[ValueId]) -> opt_core::Result<Vec<ValueId>>,
) -> opt_core::Result<Vec<Tensor>> {
    let mut b = GraphBuilder::new("test");
    let mut ids = Vec::new();
    for (i, x) in inputs.iter().enumerate() {
        ids.push(b.input(&format!("x{i}"), TensorType::new(x.dtype(), x.shape()))?);
    }
    for (i, y) in build(&mut b, &ids)?.into_iter().enumerate() {
        b.output(&format!("y{i}"), y)?;
    }
    NdarrayBackend::new()
        .threads(threads)
        .run_once(&b.finish()?, inputs)
}

fn eval(
    inputs: &[Tensor],
    build: impl FnOnce(&mut GraphBuilder, &[ValueId]) -> opt_core::Result<ValueId>,
) -> Tensor {
    eval_with(1, inputs, |b, x| Ok(vec![build(b, x)?]))
        .unwrap()
        .remove(0)
}

/// A node with any op.
fn node(op: impl Into<Op>, inputs: &[Tensor]) -> opt_core::Result<Vec<Tensor>> {
    let op = op.into();
    eval_with(1, inputs, |b, x| b.node(op, x))
}

fn noise(dtype: DType, shape: &[usize], seed: u64, low: f64, high: f64) -> Tensor {
    let stream = Philox::new(seed);
    let len: usize = shape.iter().product();
    let data: Vec<f64> = (0..len)
        .map(|i| low + (high - low) * stream.uniform(0, i as u64))
        .collect();
    Tensor::from_f64s(dtype, shape, &data).unwrap()
}

fn assert_close(found: &Tensor, expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.to_f64s().iter().zip(expected).enumerate() {
        let same = a == b || a.is_nan() && b.is_nan();
        assert!(
            same || (a - b).abs() <= tolerance * (1.0 + b.abs()),
            "{what} [{i}]: {a} against {b}"
        );
    }
}

const DTYPES: [DType; 8] = [
    DType::F32,
    DType::F64,
    DType::F16,
    DType::BF16,
    DType::I64,
    DType::I32,
    DType::I8,
    DType::U8,
];

/// What rounding to a dtype may lose.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-6,
        DType::F64 => 1e-14,
        DType::F16 => 2e-3,
        DType::BF16 => 2e-2,
        _ => 0.0,
    }
}

fn exact_unary(op: UnaryOp, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Sign => {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x
            }
        }
        UnaryOp::Exp => x.exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Log1p => x.ln_1p(),
        UnaryOp::Expm1 => x.exp_m1(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Reciprocal => 1.0 / x,
        UnaryOp::Floor => x.floor(),
        UnaryOp::Ceil => x.ceil(),
        UnaryOp::Round => x.round_ties_even(),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Tan => x.tan(),
        UnaryOp::Asin => x.asin(),
        UnaryOp::Acos => x.acos(),
        UnaryOp::Atan => x.atan(),
        UnaryOp::Sinh => x.sinh(),
        UnaryOp::Cosh => x.cosh(),
        UnaryOp::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        UnaryOp::LeakyRelu { alpha } => {
            if x > 0.0 {
                x
            } else {
                alpha * x
            }
        }
        UnaryOp::Elu { alpha } => {
            if x > 0.0 {
                x
            } else {
                alpha * x.exp_m1()
            }
        }
        UnaryOp::Selu => {
            1.050_700_987_355_480_5
                * if x > 0.0 {
                    x
                } else {
                    1.673_263_242_354_377_2 * x.exp_m1()
                }
        }
        UnaryOp::Sigmoid => sigmoid(x),
        UnaryOp::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Gelu { tanh: true } => {
            0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh())
        }
        UnaryOp::Silu => x * sigmoid(x),
        UnaryOp::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        UnaryOp::Mish => x * softplus(x).tanh(),
        UnaryOp::Softplus => softplus(x),
        UnaryOp::Softsign => x / (1.0 + x.abs()),
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn unary_functions_agree_with_the_definition() {
    use UnaryOp::*;
    let all = [
        Neg,
        Abs,
        Sign,
        Exp,
        Log,
        Log1p,
        Expm1,
        Sqrt,
        Reciprocal,
        Floor,
        Ceil,
        Round,
        Sin,
        Cos,
        Tan,
        Asin,
        Acos,
        Atan,
        Sinh,
        Cosh,
        Relu,
        LeakyRelu { alpha: 0.1 },
        Elu { alpha: 1.5 },
        Selu,
        Sigmoid,
        HardSigmoid {
            alpha: 0.2,
            beta: 0.5,
        },
        Tanh,
        Gelu { tanh: true },
        Silu,
        HardSwish,
        Mish,
        Softplus,
        Softsign,
    ];
    for op in all {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let x = noise(dtype, &[7, 101], 1, -3.0, 3.0);
            let want: Vec<f64> = x.to_f64s().iter().map(|&x| exact_unary(op, x)).collect();
            let y = eval(&[x], |b, x| b.unary(op, x[0]));
            // Tangents have poles, at which the input's own rounding counts.
            let slack = if op == Tan { 100.0 } else { 1.0 };
            assert_close(
                &y,
                &want,
                slack * tolerance(dtype),
                &format!("{op:?} of {dtype}"),
            );
        }
    }
    for op in [Neg, Abs, Sign] {
        for dtype in [DType::I64, DType::I32, DType::I8] {
            let x = noise(dtype, &[50], 1, -50.0, 50.0);
            let want: Vec<f64> = x.to_f64s().iter().map(|&x| exact_unary(op, x)).collect();
            assert_close(
                &eval(&[x], |b, x| b.unary(op, x[0])),
                &want,
                0.0,
                &format!("{op:?}"),
            );
        }
    }
}

#[test]
fn special_values_follow_ieee() {
    let x = Tensor::new([5], [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 1.0]).unwrap();
    let f = |op| eval(std::slice::from_ref(&x), |b, x| b.unary(op, x[0]));
    assert_eq!(
        f(UnaryOp::IsNan).to_vec_bool().unwrap(),
        [true, false, false, false, false]
    );
    assert_eq!(
        f(UnaryOp::IsInf).to_vec_bool().unwrap(),
        [false, true, true, false, false]
    );
    assert!(f(UnaryOp::Relu).to_f64s()[0].is_nan());
    let nan = Tensor::scalar(f32::NAN);
    for op in [BinaryOp::Max, BinaryOp::Min] {
        for order in [[0, 1], [1, 0]] {
            let y = eval(&[x.clone(), nan.clone()], |b, v| {
                b.op(opt_core::ops::Binary { op }, &[v[order[0]], v[order[1]]])
            });
            assert!(y.to_f64s().iter().all(|v| v.is_nan()));
        }
    }
}

fn exact_binary(op: BinaryOp, a: f64, b: f64, integer: bool) -> f64 {
    let truth = |x: bool| f64::from(u8::from(x));
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div if integer && b == 0.0 => 0.0,
        BinaryOp::Div if integer => (a / b).trunc(),
        BinaryOp::Div => a / b,
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Max => a.max(b),
        BinaryOp::Min => a.min(b),
        BinaryOp::Mod if integer && b == 0.0 => 0.0,
        BinaryOp::Mod => a - b * (a / b).floor(),
        BinaryOp::Equal => truth(a == b),
        BinaryOp::NotEqual => truth(a != b),
        BinaryOp::Less => truth(a < b),
        BinaryOp::LessOrEqual => truth(a <= b),
        BinaryOp::Greater => truth(a > b),
        BinaryOp::GreaterOrEqual => truth(a >= b),
        BinaryOp::PRelu => {
            if a > 0.0 {
                a
            } else {
                a * b
            }
        }
        other => unreachable!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn binary_functions_broadcast(
        shape in prop::collection::vec(1usize..6, 1..5), drop_a in 0usize..3, mask in 0u8..255,
        kind in 0usize..DTYPES.len(),
    ) {
        use BinaryOp::*;
        let dtype = DTYPES[kind];
        let integer = dtype.is_int();
        let (low, high) = if integer { (0.0, 6.0) } else { (0.3, 3.0) };
        let side = |bits: u8, drop: usize| -> Vec<usize> {
            shape.iter().enumerate().skip(drop.min(shape.len()))
                .map(|(i, &n)| if bits >> i & 1 == 1 { 1 } else { n }).collect()
        };
        let (sa, sb) = (side(mask & 15, drop_a), side(mask >> 4, 0));
        let a = noise(dtype, &sa, 1, low, high);
        let b = noise(dtype, &sb, 2, low, high);
        let out: Vec<usize> = (0..shape.len()).map(|i| {
            let at = |s: &[usize]| (i + s.len()).checked_sub(shape.len()).map_or(1, |j| s[j]);
            at(&sa).max(at(&sb))
        }).collect();
        let wide = |t: &Tensor| t.broadcast_to(&out).unwrap().to_f64s();
        for op in [Add, Sub, Mul, Div, Pow, Max, Min, Mod, Equal, NotEqual, Less, LessOrEqual,
            Greater, GreaterOrEqual, PRelu]
        {
            if integer && matches!(op, Pow | PRelu) || dtype == DType::U8 && op == Sub {
                continue;
            }
            // A remainder jumps where the quotient is close to an integer.
            if op == Mod && !integer {
                continue;
            }
            let want: Vec<f64> = wide(&a).iter().zip(wide(&b))
                .map(|(&a, b)| exact_binary(op, a, b, integer)).collect();
            let y = eval(&[a.clone(), b.clone()], |g, v| g.op(opt_core::ops::Binary { op }, v));
            prop_assert_eq!(y.shape(), &out[..]);
            assert_close(&y, &want, 4.0 * tolerance(dtype), &format!("{op:?} of {dtype}"));
        }
    }

    #[test]
    fn reductions_agree_with_the_definition(
        shape in prop::collection::vec(1usize..7, 1..5), bits in 0u8..16, keepdims: bool,
        kind in 0usize..DTYPES.len(),
    ) {
        let dtype = DTYPES[kind];
        let axes: Vec<usize> = (0..shape.len()).filter(|i| bits >> i & 1 == 1).collect();
        let (low, high) = if dtype.is_int() { (0.0, 3.0) } else { (-1.0, 1.0) };
        let x = noise(dtype, &shape, 3, low, high);
        let mut groups: std::collections::BTreeMap<Vec<usize>, Vec<f64>> = Default::default();
        for (i, v) in x.to_f64s().into_iter().enumerate() {
            let mut rest = i;
            let mut index = vec![0; shape.len()];
            for a in (0..shape.len()).rev() {
                index[a] = if axes.contains(&a) { 0 } else { rest % shape[a] };
                rest /= shape[a];
            }
            groups.entry(index).or_default().push(v);
        }
        for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min, ReduceOp::Prod] {
            if op == ReduceOp::Mean && !dtype.is_float() { continue; }
            // Sums and products of small integers wrap around.
            let wraps = matches!(dtype, DType::I8 | DType::U8);
            if wraps && !matches!(op, ReduceOp::Max | ReduceOp::Min) { continue; }
            let want: Vec<f64> = groups.values().map(|g| match op {
                ReduceOp::Sum => g.iter().sum(),
                ReduceOp::Mean => g.iter().sum::<f64>() / g.len() as f64,
                ReduceOp::Max => g.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                ReduceOp::Min => g.iter().copied().fold(f64::INFINITY, f64::min),
                _ if dtype == DType::I32 => g.iter().fold(1i32, |p, &x| p.wrapping_mul(x as i32)).into(),
                _ if dtype == DType::I64 => {
                    g.iter().fold(1i64, |p, &x| p.wrapping_mul(x as i64)) as f64
                }
                _ => g.iter().product(),
            }).collect();
            let y = eval(std::slice::from_ref(&x), |b, v| b.reduce(op, v[0], &axes, keepdims));
            assert_close(&y, &want, 4.0 * tolerance(dtype), &format!("{op:?} of {dtype}"));
        }
    }

    #[test]
    fn moves_agree_with_tensor_views(
        shape in prop::collection::vec(1usize..20, 1..5), seed in 0u64..1000, step in 1isize..3,
        kind in 0usize..DTYPES.len(),
    ) {
        let x = noise(DTYPES[kind], &shape, seed, 0.0, 100.0);
        let rank = shape.len();
        let one = |op: Op| node(op, std::slice::from_ref(&x)).unwrap().remove(0);
        let perm = Philox::new(seed).permutation(0, rank);
        let y = one(opt_core::ops::Transpose { perm: perm.clone().into() }.into());
        prop_assert_eq!(&y, &x.transpose(&perm).unwrap().contiguous());

        let axis = seed as usize % rank;
        let n = shape[axis] as isize;
        let start = seed as isize % n;
        let indices: Vec<usize> = (start..n).step_by(step as usize).map(|i| i as usize).collect();
        let slice = |start: isize, end: isize, step: isize| -> Op {
            Slice {
                axes: vec![axis].into(), starts: vec![start].into(), ends: vec![end].into(), steps: vec![step].into(),
            }.into()
        };
        prop_assert_eq!(&one(slice(start, n, step)), &x.select(axis, &indices).unwrap());
        let back: Vec<usize> = (0..=start).rev().step_by(step as usize).map(|i| i as usize).collect();
        prop_assert_eq!(&one(slice(start, -1, -step)), &x.select(axis, &back).unwrap());

        let wide = [&[3][..], &shape].concat();
        let y = one(opt_core::ops::Expand { shape: wide[..].into() }.into());
        prop_assert_eq!(&y, &x.broadcast_to(&wide).unwrap().contiguous());
        let mut repeats = vec![1; rank];
        repeats[axis] = 2;
        let y = one(opt_core::ops::Tile { repeats: repeats.into() }.into());
        prop_assert_eq!(&y, &Tensor::concat(&[x.clone(), x.clone()], axis).unwrap());

        let other = noise(DTYPES[kind], &shape, seed + 1, 0.0, 100.0);
        let both = eval(&[x.clone(), other.clone()], |b, v| b.concat(v, axis));
        prop_assert_eq!(&both, &Tensor::concat(&[x.clone(), other.clone()], axis).unwrap());
        let parts = eval_with(1, &[both], |b, v| b.split(v[0], axis, &[shape[axis]; 2])).unwrap();
        prop_assert!(parts[0] == x && parts[1] == other);
    }

    #[test]
    fn softmax_sums_to_one(
        shape in prop::collection::vec(1usize..40, 1..4), axis in 0usize..3, scale in 0.1f64..100.0,
    ) {
        let axis = axis % shape.len();
        let x = noise(DType::F32, &shape, 5, -scale, scale);
        let wide = x.cast(DType::F64);
        for log in [false, true] {
            let build = |b: &mut GraphBuilder, v: &[ValueId]| {
                if log { b.log_softmax(v[0], axis) } else { b.softmax(v[0], axis) }
            };
            // The f64 path is the plain definition.
            let want = eval(std::slice::from_ref(&wide), build).to_f64s();
            assert_close(&eval(std::slice::from_ref(&x), build), &want, 2e-6, "softmax");
        }
        let y = eval(&[wide], |b, v| {
            let y = b.softmax(v[0], axis)?;
            b.sum(y, &[axis], false)
        });
        prop_assert!(y.to_f64s().iter().all(|s| (s - 1.0).abs() < 1e-12));
    }

    #[test]
    fn gathers_agree_with_select(
        shape in prop::collection::vec(1usize..6, 1..4), axis in 0usize..3, seed in 0u64..99,
    ) {
        let axis = axis % shape.len();
        let n = shape[axis];
        let x = noise(DType::F32, &shape, seed, -1.0, 1.0);
        let raw: Vec<i64> = (0..7).map(|i| (i * 5 + seed as i64) % (2 * n as i64) - n as i64).collect();
        let plain: Vec<usize> = raw.iter().map(|&i| i.rem_euclid(n as i64) as usize).collect();
        let want = x.select(axis, &plain).unwrap();
        for dtype in [DType::I64, DType::I32] {
            let indices = Tensor::new([7], raw.clone()).unwrap().cast(dtype);
            let y = eval(&[x.clone(), indices.clone()], |b, v| b.gather(v[0], v[1], axis));
            prop_assert_eq!(&y, &want);
            // The gradient adds every entry back to where it came from.
            let grad = opt_core::ops::GatherGrad { axis, size: n.into() };
            let back = node(grad, &[indices, want.clone()]).unwrap().remove(0);
            let mut sums = Tensor::zeros(DType::F64, &shape).unwrap();
            for (j, &i) in plain.iter().enumerate() {
                let one = |t: &Tensor, at| t.slice(axis, at, at + 1).unwrap().to_f64s();
                let mut parts: Vec<Tensor> =
                    (0..n).map(|k| sums.slice(axis, k, k + 1).unwrap().contiguous()).collect();
                let old = one(&sums, i);
                let add = one(&want, j);
                let new: Vec<f64> = old.iter().zip(add).map(|(a, b)| a + b).collect();
                parts[i] = Tensor::new(parts[i].shape(), new).unwrap();
                sums = Tensor::concat(&parts, axis).unwrap();
            }
            assert_close(&back, &sums.to_f64s(), 1e-6, "gather's gradient");
        }
    }

    #[test]
    fn top_k_and_running_sums(rows in 1usize..5, len in 1usize..20, k in 0usize..20, largest: bool) {
        let k = k.min(len);
        // Few values, so that there are ties.
        let x = noise(DType::I32, &[rows, len], 8, 0.0, 6.0);
        let out = node(TopK { k, axis: 1, largest }, std::slice::from_ref(&x)).unwrap();
        let data = x.to_f64s();
        for r in 0..rows {
            let row = &data[r * len..][..len];
            let mut order: Vec<usize> = (0..len).collect();
            order.sort_by(|&a, &b| {
                let by = row[a].total_cmp(&row[b]);
                if largest { by.reverse() } else { by }
            });
            let indices: Vec<i64> = order[..k].iter().map(|&i| i as i64).collect();
            let values: Vec<f64> = order[..k].iter().map(|&i| row[i]).collect();
            prop_assert_eq!(out[1].slice(0, r, r + 1).unwrap().to_vec::<i64>().unwrap(), indices);
            prop_assert_eq!(out[0].slice(0, r, r + 1).unwrap().to_f64s(), values);
        }
        for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
            let op = CumSum { axis: 1, exclusive, reverse };
            let y = node(op, std::slice::from_ref(&x)).unwrap().remove(0).to_f64s();
            for r in 0..rows {
                let row = &data[r * len..][..len];
                for i in 0..len {
                    let part = if reverse { &row[i..] } else { &row[..=i] };
                    let own = if exclusive { row[i] } else { 0.0 };
                    prop_assert_eq!(y[r * len + i], part.iter().sum::<f64>() - own);
                }
            }
        }
    }

    #[test]
    fn products_broadcast_over_batches(
        batch in prop::collection::vec(1usize..4, 0..3), bits in 0u8..255,
        m in 1usize..9, n in 1usize..9, k in 1usize..9, ta: bool, tb: bool,
    ) {
        let side = |bits: u8| -> Vec<usize> {
            let drop = usize::from(bits >> 2 & 1).min(batch.len());
            batch[drop..].iter().enumerate()
                .map(|(i, &d)| if bits >> i & 1 == 1 { 1 } else { d }).collect()
        };
        let (ba, bb) = (side(bits & 7), side(bits >> 4 & 3));
        let a_shape = [&ba[..], &if ta { [k, m] } else { [m, k] }].concat();
        let b_shape = [&bb[..], &if tb { [n, k] } else { [k, n] }].concat();
        let want = {
            let a = noise(DType::F64, &a_shape, 1, -1.0, 1.0);
            let b = noise(DType::F64, &b_shape, 2, -1.0, 1.0);
            let swap = |t: &Tensor, yes: bool| {
                let r = t.rank();
                let mut perm: Vec<usize> = (0..r).collect();
                if yes { perm.swap(r - 2, r - 1); }
                t.transpose(&perm).unwrap()
            };
            let (a, b) = (swap(&a, ta), swap(&b, tb));
            let rank = batch.len();
            let lead: Vec<usize> = (0..rank).map(|i| {
                let at = |s: &[usize]| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
                at(&ba).max(at(&bb))
            }).collect();
            let a = a.broadcast_to([&lead[..], &[m, k]].concat()).unwrap().to_f64s();
            let b = b.broadcast_to([&lead[..], &[k, n]].concat()).unwrap().to_f64s();
            let count: usize = lead.iter().product();
            let mut out = Vec::new();
            for c in 0..count {
                for i in 0..m {
                    for j in 0..n {
                        out.push((0..k)
                            .map(|p| a[(c * m + i) * k + p] * b[(c * k + p) * n + j])
                            .sum::<f64>());
                    }
                }
            }
            out
        };
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let a = noise(dtype, &a_shape, 1, -1.0, 1.0);
            let b = noise(dtype, &b_shape, 2, -1.0, 1.0);
            let y = eval(&[a, b], |g, v| g.matmul_t(v[0], v[1], ta, tb));
            assert_close(&y, &want, 8.0 * tolerance(dtype), &format!("{dtype}"));
        }
        for (da, db) in [(DType::I8, DType::I8), (DType::U8, DType::I8), (DType::U8, DType::U8)] {
            let a = noise(da, &a_shape, 1, 0.0, 100.0);
            let b = noise(db, &b_shape, 2, 0.0, 100.0);
            let y = eval(&[a.clone(), b.clone()], |g, v| g.matmul_t(v[0], v[1], ta, tb));
            let wide = eval(&[a.cast(DType::F64), b.cast(DType::F64)], |g, v| {
                g.matmul_t(v[0], v[1], ta, tb)
            });
            prop_assert_eq!(y.dtype(), DType::I32);
            prop_assert_eq!(y.to_f64s(), wide.to_f64s());
        }
    }
}

#[test]
fn casts_are_those_of_tensors() {
    let x = Tensor::new([6], [1.9f32, -1.9, 300.0, f32::NAN, 0.0, -7.5]).unwrap();
    for from in DTYPES {
        let x = x.cast(from);
        for to in DTYPES.into_iter().chain([DType::Bool]) {
            let y = eval(std::slice::from_ref(&x), |b, v| b.cast(v[0], to));
            let want = x.cast(to);
            assert_eq!(y.dtype(), to);
            assert_eq!(format!("{y:?}"), format!("{want:?}"), "{from} to {to}");
        }
    }
}

#[test]
fn padding_modes() {
    let x = Tensor::new([2, 3], [1f32, 2., 3., 4., 5., 6.]).unwrap();
    let pad = |mode| Pad {
        begin: [1, 2].as_slice().into(),
        end: [0, 1].as_slice().into(),
        mode,
    };
    let of = |mode| {
        node(pad(mode), std::slice::from_ref(&x))
            .unwrap()
            .remove(0)
            .to_f64s()
    };
    assert_eq!(
        of(PadMode::Constant(9.0)),
        [
            9., 9., 9., 9., 9., 9., 9., 9., 1., 2., 3., 9., 9., 9., 4., 5., 6., 9.
        ]
    );
    assert_eq!(
        of(PadMode::Reflect),
        [
            6., 5., 4., 5., 6., 5., 3., 2., 1., 2., 3., 2., 6., 5., 4., 5., 6., 5.
        ]
    );
    assert_eq!(
        of(PadMode::Edge),
        [
            1., 1., 1., 2., 3., 3., 1., 1., 1., 2., 3., 3., 4., 4., 4., 5., 6., 6.
        ]
    );
    let ones = Tensor::full(DType::F32, [3, 6], 1.0).unwrap();
    let grad = opt_core::ops::PadGrad {
        pad: pad(PadMode::Edge),
    };
    let y = node(grad, &[ones]).unwrap().remove(0);
    assert_eq!(y.to_f64s(), [6., 2., 4., 3., 1., 2.]);
}

#[test]
fn scatter_one_hot_and_elements() {
    let data = Tensor::new([3, 2], [1f32, 2., 3., 4., 5., 6.]).unwrap();
    let indices = Tensor::new([2, 2], [0i64, -1, 0, 1]).unwrap();
    let updates = Tensor::new([2, 2], [10f32, 20., 30., 40.]).unwrap();
    let scatter = |reduction| {
        let op = ScatterElements { axis: 0, reduction };
        node(op, &[data.clone(), indices.clone(), updates.clone()])
            .unwrap()
            .remove(0)
            .to_f64s()
    };
    assert_eq!(scatter(ScatterReduction::None), [30., 2., 3., 40., 5., 20.]);
    assert_eq!(scatter(ScatterReduction::Add), [41., 2., 3., 44., 5., 26.]);
    let y = eval(&[data, indices.clone()], |b, v| {
        b.gather_elements(v[0], v[1], 0)
    });
    assert_eq!(y.to_f64s(), [1., 6., 1., 4.]);
    let labels = Tensor::new([3], [2i64, 0, 7]).unwrap();
    let y = eval(&[labels], |b, v| b.one_hot(v[0], 3, DType::F32));
    assert_eq!(y.to_f64s(), [0., 0., 1., 1., 0., 0., 0., 0., 0.]);
}

#[test]
fn bad_indices_are_errors_at_the_node() {
    let data = noise(DType::F32, &[3, 2], 1, 0.0, 1.0);
    let far = Tensor::new([1], [3i64]).unwrap();
    let far2 = Tensor::new([1, 2], [i64::MIN, 0]).unwrap();
    let check = |e: Error, node: &str| {
        assert_eq!(
            (e.kind(), e.path().next()),
            (ErrorKind::InvalidArgument, Some(node)),
            "{e}"
        );
    };
    let run =
        |inputs: &[Tensor],
         build: fn(&mut GraphBuilder, &[ValueId]) -> opt_core::Result<ValueId>| {
            eval_with(1, inputs, |b, v| Ok(vec![build(b, v)?])).unwrap_err()
        };
    check(
        run(&[data.clone(), far.clone()], |b, v| b.gather(v[0], v[1], 0)),
        "gather",
    );
    check(
        run(&[data.clone(), far2], |b, v| {
            b.gather_elements(v[0], v[1], 0)
        }),
        "gatherelements",
    );
    let labels = Tensor::new([3], [0i64, 2, 1]).unwrap();
    check(
        run(&[data, labels], |b, v| b.softmax_cross_entropy(v[0], v[1])),
        "softmaxcrossentropy",
    );
}

#[test]
fn arg_max_takes_the_first_or_the_last() {
    let x = Tensor::new([2, 3], [1f32, 5., 5., f32::NAN, 2., 9.]).unwrap();
    let op = |last| opt_core::ops::ArgReduce {
        largest: true,
        axis: 1,
        keepdims: false,
        last,
    };
    let of = |last| {
        node(op(last), std::slice::from_ref(&x))
            .unwrap()
            .remove(0)
            .to_f64s()
    };
    assert_eq!(of(false), [1., 0.]);
    assert_eq!(of(true), [2., 0.]);
}

#[test]
fn cross_entropy_of_rows_and_of_maps() {
    let x = noise(DType::F32, &[4, 5], 3, -3.0, 3.0);
    let labels = Tensor::new([4], [0i64, 4, 2, 1]).unwrap();
    let y = eval(&[x.clone(), labels.clone()], |b, v| {
        b.softmax_cross_entropy(v[0], v[1])
    });
    let data = x.to_f64s();
    let want: Vec<f64> = [0, 4, 2, 1]
        .iter()
        .enumerate()
        .map(|(r, &label)| {
            let row = &data[r * 5..][..5];
            row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[label]
        })
        .collect();
    assert_close(&y, &want, 1e-6, "rows");
    // The same with a trailing axis.
    let map = x.reshape([4, 5, 1]).unwrap();
    let wide = Tensor::concat(&[map.clone(), map], 2).unwrap();
    let labels = labels.reshape([4, 1]).unwrap();
    let labels = Tensor::concat(&[labels.clone(), labels], 1).unwrap();
    let y = eval(&[wide, labels], |b, v| b.softmax_cross_entropy(v[0], v[1]));
    let twice: Vec<f64> = want.iter().flat_map(|&v| [v, v]).collect();
    assert_close(&y, &twice, 1e-6, "maps");
}

/// Attention of a leading index and head by the definition, in `f64`, with a bias on each score.
fn attention_reference(
    [q, k, v]: [&Tensor; 3],
    [queries, keys, width, values]: [usize; 4],
    bias: impl Fn(usize, usize, usize) -> f64,
) -> Vec<f64> {
    let leads = q.len() / (queries * width);
    let [q, k, v] = [q, k, v].map(Tensor::to_f64s);
    let mut out = Vec::new();
    for (lead, i) in (0..leads).flat_map(|l| (0..queries).map(move |i| (l, i))) {
        let q = &q[(lead * queries + i) * width..][..width];
        let score = |j: usize| {
            let k = &k[(lead * keys + j) * width..][..width];
            let dot: f64 = q.iter().zip(k).map(|(a, b)| a * b).sum();
            dot / (width as f64).sqrt() + bias(lead, i, j)
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = match max > f64::NEG_INFINITY {
            true => scores.iter().map(|s| (s - max).exp()).collect(),
            false => vec![0.0; keys],
        };
        let sum = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        out.extend((0..values).map(|d| {
            let at = |j: usize| v[(lead * keys + j) * values + d];
            weights
                .iter()
                .enumerate()
                .map(|(j, w)| w * at(j))
                .sum::<f64>()
                / sum
        }));
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn attention_agrees_with_the_definition(
        batch in 1usize..3, heads in 1usize..3, queries in 1usize..75, keys in 1usize..75,
        width in 1usize..20, values in 1usize..20, causal: bool, kind in 0usize..3, threads in 1usize..3,
    ) {
        let tensor = |seed, rows, cols| noise(DType::F32, &[batch, heads, rows, cols], seed, -2.0, 2.0);
        let (q, k, v) = (tensor(1, queries, width), tensor(2, keys, width), tensor(3, keys, values));
        let hidden = |lead: usize, i: usize, j: usize| (lead / heads * 7 + i + 3 * j).is_multiple_of(5) || i == 3;
        let shape = [batch, 1, queries, keys];
        let places = || (0..batch).flat_map(|b| (0..queries).flat_map(move |i| (0..keys).map(move |j| (b, i, j))));
        let mask = match kind {
            0 => None,
            1 => Some(Tensor::from_bools(shape, places().map(|(b, i, j)| !hidden(b * heads, i, j)).collect::<Vec<_>>()).unwrap()),
            _ => Some(noise(DType::F32, &shape, 4, -1.0, 1.0)),
        };
        let added = mask.as_ref().filter(|_| kind == 2).map(Tensor::to_f64s);
        let expected = attention_reference([&q, &k, &v], [queries, keys, width, values], |lead, i, j| {
            let unseen = causal && j > i || kind == 1 && hidden(lead, i, j);
            let added = added.as_ref().map_or(0.0, |a| a[(lead / heads * queries + i) * keys + j]);
            if unseen { f64::NEG_INFINITY } else { added }
        });
        let mut inputs = vec![q, k, v];
        inputs.extend(mask);
        let found = eval_with(threads, &inputs, |b, x| {
            Ok(vec![b.attention(x[0], x[1], x[2], x.get(3).copied(), causal)?])
        }).unwrap().remove(0);
        assert_close(&found, &expected, 1e-4, "attention");
    }

    #[test]
    fn gradients_of_halving_go_to_the_first_maximum(
        planes in 1usize..4, height in 2usize..9, width in 2usize..40, levels in 1u32..6,
    ) {
        // Few levels make ties.
        let x = noise(DType::F32, &[1, planes, height, width], 5, 0.0, f64::from(levels)).to_f64s();
        let x: Vec<f32> = x.into_iter().map(|v| if v < 0.1 { f32::NAN } else { v as f32 }.floor()).collect();
        let (h, w) = (height / 2, width / 2);
        let g = noise(DType::F32, &[1, planes, h, w], 6, 1.0, 2.0);
        let mut expected = vec![0.0; x.len()];
        for (o, &g) in g.to_f64s().iter().enumerate() {
            let (p, i, j) = (o / (h * w), o / w % h, o % w);
            let at = |d: usize| (p * height + 2 * i + d / 2) * width + 2 * j + d % 2;
            let larger = |a: usize, b: usize| x[at(b)] > x[at(a)] || x[at(b)].is_nan();
            let best = (1..4).fold(0, |best, d| if larger(best, d) { d } else { best });
            expected[at(best)] = g;
        }
        let x = Tensor::new([1, planes, height, width], x).unwrap();
        let found = eval(&[x, g], |b, x| {
            let y = b.max_pool(x[0], 2)?;
            let weighted = b.mul(y, x[1])?;
            let sum = b.sum_all(weighted)?;
            opt_core::autodiff::grad(b, sum, &x[..1])?.of(x[0])
        });
        assert_close(&found, &expected, 1e-6, "gradient of max pooling");
    }
}
