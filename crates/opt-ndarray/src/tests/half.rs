//! 16-bit floats: what is computed in `f32` is rounded once, and nothing else is.

use opt_core::ops::{
    Attention, AvgPool, BatchNorm, Conv, ConvGradWeight, ConvTranspose, FakeQuantize, GatherGrad,
    MatMul, MaxPool, MaxPoolGrad, Op, Window,
};
use opt_core::random::Philox;
use opt_core::{Backend, DType, ErrorKind, Graph, GraphBuilder, Tensor, TensorType};

use crate::NdarrayBackend;

const HALVES: [DType; 2] = [DType::F16, DType::BF16];

fn noise(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let stream = Philox::new(seed);
    let len: usize = shape.iter().product();
    let data: Vec<f64> = (0..len as u64)
        .map(|i| stream.uniform(0, i) * 2.0 - 1.0)
        .collect();
    Tensor::from_f64s(dtype, shape, &data).unwrap()
}

fn graph(op: &Op, inputs: &[Tensor], constant: bool) -> Graph {
    let mut b = GraphBuilder::new("test");
    let mut ids = Vec::new();
    for (i, x) in inputs.iter().enumerate() {
        ids.push(if constant && i == 1 {
            b.constant(x.clone())
        } else {
            let ty = TensorType::new(x.dtype(), x.shape());
            b.input(&format!("x{i}"), ty).unwrap()
        });
    }
    for (i, y) in b.node(op.clone(), &ids).unwrap().into_iter().enumerate() {
        b.output(&format!("y{i}"), y).unwrap();
    }
    b.finish().unwrap()
}

fn run(op: &Op, inputs: &[Tensor], constant: bool, threads: usize) -> Vec<Tensor> {
    let given: Vec<Tensor> = inputs
        .iter()
        .enumerate()
        .filter(|(i, _)| !constant || *i != 1)
        .map(|(_, t)| t.clone())
        .collect();
    NdarrayBackend::new()
        .threads(threads)
        .run_once(&graph(op, inputs, constant), &given)
        .unwrap()
}

fn wide(t: &Tensor) -> Tensor {
    match HALVES.contains(&t.dtype()) {
        true => t.cast(DType::F32),
        false => t.clone(),
    }
}

/// Ops with inputs in `f64`, large enough for more than one task and ragged at the ends.
fn ops() -> Vec<(Op, Vec<Tensor>)> {
    let t = |shape: &[usize], seed| noise(DType::F64, shape, seed);
    let window = Window::new(2).stride(2).pad(1);
    let conv = Conv {
        window: window.clone(),
        groups: 1,
    };
    let grouped = Conv {
        window: window.clone(),
        groups: 3,
    };
    let transposed = ConvTranspose {
        window: window.clone(),
        groups: 1,
        output_padding: [1, 1].into_iter().collect(),
    };
    let by_weight = ConvGradWeight {
        window: window.clone(),
        groups: 1,
        kernel: [3, 3].into_iter().collect(),
    };
    let pool = MaxPool {
        kernel: [3, 3].into_iter().collect(),
        window: window.clone(),
        ceil_mode: false,
    };
    let average = AvgPool {
        kernel: [3, 3].into_iter().collect(),
        window,
        ceil_mode: false,
        count_include_pad: true,
    };
    let image = t(&[9, 3, 33, 32], 1);
    vec![
        (
            conv.into(),
            vec![image.clone(), t(&[5, 3, 3, 3], 2), t(&[5], 3)],
        ),
        (grouped.into(), vec![image.clone(), t(&[6, 1, 3, 3], 2)]),
        (
            transposed.into(),
            vec![t(&[3, 4, 9, 8], 4), t(&[4, 5, 3, 3], 5)],
        ),
        (by_weight.into(), vec![image.clone(), t(&[9, 4, 17, 16], 6)]),
        (pool.clone().into(), vec![image.clone()]),
        (
            MaxPoolGrad { pool }.into(),
            vec![image.clone(), t(&[9, 3, 17, 16], 7)],
        ),
        (average.into(), vec![image]),
        (
            MatMul::default().into(),
            vec![t(&[67, 129], 8), t(&[129, 65], 9)],
        ),
        (
            Attention {
                scale: None,
                causal: true,
            }
            .into(),
            vec![
                t(&[2, 3, 17, 8], 10),
                t(&[2, 3, 17, 8], 11),
                t(&[2, 3, 17, 4], 12),
            ],
        ),
    ]
}

#[test]
fn results_are_those_of_f32_rounded_once() {
    for dtype in HALVES {
        for (op, inputs) in ops() {
            // Where the processor has tiles of `bf16`, sums of products go another order.
            if dtype == DType::BF16 && matches!(op, Op::MatMul(_)) {
                continue;
            }
            let inputs: Vec<Tensor> = inputs.iter().map(|t| t.cast(dtype)).collect();
            let full: Vec<Tensor> = inputs.iter().map(wide).collect();
            for (constant, threads) in [(false, 1), (false, 2), (inputs.len() > 1, 1)] {
                let found = run(&op, &inputs, constant, threads);
                let expected = run(&op, &full, constant, threads);
                for (found, expected) in found.iter().zip(expected) {
                    assert_eq!(*found, expected.cast(dtype), "{} of {dtype}", op.name());
                }
            }
        }
    }
}

#[test]
fn a_bias_and_a_function_are_applied_before_the_result_is_rounded() {
    let build = |dtype: DType| {
        let mut b = GraphBuilder::new("linear");
        let x = b.input("x", TensorType::new(dtype, [40, 50])).unwrap();
        let w = b.input("w", TensorType::new(dtype, [30, 50])).unwrap();
        let bias = b.input("bias", TensorType::new(dtype, [30])).unwrap();
        let y = b.matmul_t(x, w, false, true).unwrap();
        let y = b.add(y, bias).unwrap();
        let y = b.tanh(y).unwrap();
        b.output("y", y).unwrap();
        b.finish().unwrap()
    };
    for dtype in HALVES {
        let inputs = [([40, 50].as_slice(), 1), (&[30, 50], 2), (&[30], 3)];
        let inputs = inputs.map(|(shape, seed)| noise(dtype, shape, seed));
        let backend = NdarrayBackend::new();
        let found = backend.run_once(&build(dtype), &inputs).unwrap();
        let full = inputs.each_ref().map(wide);
        let expected = backend.run_once(&build(DType::F32), &full).unwrap();
        let rounded = expected[0].cast(dtype).to_f64s();
        for ((f, r), e) in found[0]
            .to_f64s()
            .iter()
            .zip(&rounded)
            .zip(expected[0].to_f64s())
        {
            assert_eq!(f, r, "{dtype} {e}");
        }
    }
}

#[test]
fn statistics_of_half_precision_batches_are_f32() {
    // A mean of 300 and a variance of 1: sums in f16 would be infinite.
    let x: Vec<f64> = noise(DType::F64, &[64, 2, 30, 30], 1)
        .to_f64s()
        .iter()
        .map(|v| 300.0 + 3f64.sqrt() * v)
        .collect();
    let x = Tensor::from_f64s(DType::F16, [64, 2, 30, 30], &x).unwrap();
    let ones = || Tensor::full(DType::F32, [2], 1.0).unwrap();
    let zeros = || Tensor::zeros(DType::F32, [2]).unwrap();
    let inputs = [x, ones(), zeros(), zeros(), ones()];
    let op = Op::from(BatchNorm {
        epsilon: 1e-5,
        momentum: 1.0,
        training: true,
    });
    let found = run(&op, &inputs, false, 2);
    let full = run(&op, &inputs.each_ref().map(wide), false, 2);
    assert_eq!(found[0].dtype(), DType::F16);
    for (found, full) in found[1..].iter().zip(&full[1..]) {
        assert_eq!(found.dtype(), DType::F32);
        for (a, b) in found.to_f64s().iter().zip(full.to_f64s()) {
            assert!((a - b).abs() < 1e-5 * b.abs(), "{a} {b}");
        }
    }
    for (a, b) in found[0].to_f64s().iter().zip(full[0].to_f64s()) {
        assert!((a - b).abs() <= b.abs() / 1024.0 + 1e-4, "{a} {b}");
    }
}

#[test]
fn repeated_indices_add_in_f32() {
    // 1000 ones in one place: in bf16 the sum stops at 256.
    let op = Op::from(GatherGrad {
        axis: 0,
        size: 2.into(),
    });
    let indices = Tensor::new([1000], vec![1i64; 1000]).unwrap();
    for dtype in HALVES {
        let g = Tensor::full(dtype, [1000, 1], 1.0).unwrap();
        let found = run(&op, &[indices.clone(), g], false, 1);
        assert_eq!(
            found[0],
            Tensor::new([2, 1], [0f32, 1000.0]).unwrap().cast(dtype)
        );
    }
}

#[test]
fn what_there_is_not_names_op_and_dtype() {
    let op = Op::from(FakeQuantize {
        low: -8,
        high: 7,
        axis: None,
    });
    for dtype in HALVES {
        let one = || Tensor::full(dtype, [], 1.0).unwrap();
        let inputs = [noise(dtype, &[4], 1), one(), one()];
        let error = NdarrayBackend::new()
            .run_once(&graph(&op, &inputs, false), &inputs)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(text.contains("FakeQuantize"), "{text}");
        assert!(text.contains(&dtype.to_string()), "{text}");
    }
}
