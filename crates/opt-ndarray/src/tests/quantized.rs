//! Quantized patterns against the same graph step by step.

use opt_core::ops::{Binary, BinaryOp, Dequantize, MatMul, MaxPool, UnaryOp, Window};
use opt_core::random::Philox;
use opt_core::{Backend, CompileSpec, DType, Graph, GraphBuilder, Tensor, TensorType, ValueId};
use proptest::prelude::*;

use super::fusion::{noise, run};
use crate::NdarrayBackend;

/// Numbers of all values of an integer type.
fn codes(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let stream = Philox::new(seed);
    let (low, high) = dtype.int_range().unwrap();
    let span = f64::from(high - low + 1);
    let len: usize = shape.iter().product();
    let data: Vec<f64> = (0..len as u64)
        .map(|i| (stream.uniform(0, i) * span).floor() + f64::from(low))
        .collect();
    Tensor::from_f64s(dtype, shape, &data).unwrap()
}

fn scales(shape: &[usize], seed: u64) -> Tensor {
    let stream = Philox::new(seed);
    let len: usize = shape.iter().product();
    let data: Vec<f32> = (0..len as u64)
        .map(|i| 0.01 + stream.uniform(0, i) as f32 * 0.02)
        .collect();
    Tensor::new(shape, data).unwrap()
}

fn kernels(graph: &Graph) -> Vec<String> {
    let executable = NdarrayBackend::new()
        .threads(1)
        .compile(graph, &CompileSpec::new())
        .unwrap();
    executable
        .steps()
        .iter()
        .map(|s| s.kernel.clone())
        .collect()
}

fn input(b: &mut GraphBuilder, dtype: DType, shape: &[usize]) -> ValueId {
    b.input("x", TensorType::new(dtype, shape)).unwrap()
}

/// ONNX's `MatMulInteger` as it is read: the product of centred integers in `f64`.
fn matmul_integer(
    b: &mut GraphBuilder,
    [q, zero]: [ValueId; 2],
    [w, zeros]: [ValueId; 2],
) -> ValueId {
    let mut centred = |x, zero| {
        let x = b.cast(x, DType::F64).unwrap();
        let zero = b.cast(zero, DType::F64).unwrap();
        b.sub(x, zero).unwrap()
    };
    let (x, w) = (centred(q, zero), centred(w, zeros));
    let y = b.matmul(x, w).unwrap();
    b.cast(y, DType::I32).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Dynamic quantization as ONNX has it: the same bits.
    #[test]
    fn products_of_integers_are_those_of_the_nodes(
        m in 1usize..40, k in 1usize..90, n in 1usize..50, unsigned: bool, channels: bool,
        bias: bool, seed in 0u64..1 << 40,
    ) {
        let mut b = GraphBuilder::new("dynamic");
        let x = input(&mut b, DType::F32, &[2, m, k]);
        let [q, scale, zero] = b.dynamic_quantize(x).unwrap();
        let dtype = if unsigned { DType::U8 } else { DType::I8 };
        let w = b.constant(codes(dtype, &[k, n], seed));
        let middle = if unsigned { 128.0 } else { 0.0 };
        let zeros = b.constant(Tensor::from_f64s(dtype, [], &[middle]).unwrap());
        let y = matmul_integer(&mut b, [q, zero], [w, zeros]);
        let y = b.cast(y, DType::F32).unwrap();
        let shape = if channels { vec![n] } else { vec![] };
        let own = b.constant(scales(&shape, seed + 1));
        let factor = b.mul(scale, own).unwrap();
        let mut y = b.mul(y, factor).unwrap();
        if bias {
            let v = b.constant(noise(&[n], seed + 2));
            y = b.add(v, y).unwrap();
        }
        let y = b.unary(UnaryOp::Tanh, y).unwrap();
        b.output("y", y).unwrap();
        let graph = b.finish().unwrap();
        prop_assert_eq!(kernels(&graph), ["dynamic_quantize", "int matmul+dequantize+tanh"]);
        let x = noise(&[2, m, k], seed + 3);
        let plain = run(&graph, std::slice::from_ref(&x), 1, false);
        for threads in [1, 3] {
            prop_assert_eq!(&run(&graph, std::slice::from_ref(&x), threads, true), &plain);
        }
    }

    /// Products of integers alone.
    #[test]
    fn sums_of_integers_stay_integers(
        m in 1usize..40, k in 1usize..90, n in 1usize..50, signed: bool, seed in 0u64..1 << 40,
    ) {
        let dtype = if signed { DType::I8 } else { DType::U8 };
        let mut b = GraphBuilder::new("integers");
        let q = input(&mut b, dtype, &[m, k]);
        let zero = b.constant(Tensor::from_f64s(dtype, [], &[9.0]).unwrap());
        let w = b.constant(codes(DType::I8, &[k, n], seed));
        let zeros = b.constant(Tensor::zeros(DType::I8, [n]).unwrap());
        let y = matmul_integer(&mut b, [q, zero], [w, zeros]);
        b.output("y", y).unwrap();
        let graph = b.finish().unwrap();
        prop_assert_eq!(kernels(&graph), ["int matmul"]);
        let x = codes(dtype, &[m, k], seed + 1);
        let plain = run(&graph, std::slice::from_ref(&x), 1, false);
        prop_assert_eq!(run(&graph, std::slice::from_ref(&x), 2, true), plain);
    }

    /// Quantized sums are within rounding of the steps', which is one code at a tie.
    #[test]
    fn sums_of_quantized_values_are_those_of_the_nodes(
        len in 1usize..2000, relu: bool, zeros: (u8, u8, u8), seed in 0u64..1 << 40,
    ) {
        let mut b = GraphBuilder::new("residual");
        let mut grid = |zero: u8, seed: u64| {
            let scale = b.constant(scales(&[], seed));
            (scale, b.constant(Tensor::scalar(zero)))
        };
        let [ga, gb, gy] = [(zeros.0, 1), (zeros.1, 2), (zeros.2, 3)].map(|(z, i)| grid(z, seed + i));
        let x = b.input("a", TensorType::new(DType::U8, [2, len])).unwrap();
        let y = b.input("b", TensorType::new(DType::U8, [2, len])).unwrap();
        let x = b.dequantize(x, ga.0, ga.1, None).unwrap();
        let y = b.dequantize(y, gb.0, gb.1, None).unwrap();
        let mut sum = b.add(x, y).unwrap();
        if relu {
            sum = b.relu(sum).unwrap();
        }
        let q = b.quantize(sum, gy.0, gy.1, None).unwrap();
        b.output("y", q).unwrap();
        let graph = b.finish().unwrap();
        prop_assert_eq!(kernels(&graph), ["int add+requantize"]);
        let inputs = [codes(DType::U8, &[2, len], seed), codes(DType::U8, &[2, len], seed + 9)];
        let plain = run(&graph, &inputs, 1, false)[0].to_f64s();
        let found = run(&graph, &inputs, 2, true)[0].to_f64s();
        let differ = plain.iter().zip(&found).filter(|(a, b)| a != b).count();
        prop_assert!(plain.iter().zip(&found).all(|(a, b)| (a - b).abs() <= 1.0));
        prop_assert!(differ <= 1 + len / 50, "{} of {} differ", differ, 2 * len);
    }

    /// Weights of 4 and 8 bits in every layout that passes write.
    #[test]
    fn products_by_packed_weights_are_those_of_dequantized_ones(
        m in 1usize..20, words in 1usize..12, n in 1usize..40, rows: bool, layout in 0usize..3,
        dtype in prop::sample::select(vec![DType::I4, DType::U4, DType::I8, DType::U8]),
        bias: bool, seed in 0u64..1 << 40,
    ) {
        let (k, block) = (8 * words, 16);
        let mut b = GraphBuilder::new("weights");
        let x = input(&mut b, DType::F32, &[m, k]);
        let shape = if rows { [n, k] } else { [k, n] };
        let inputs = usize::from(rows);
        let (axis, block, grid) = match layout {
            0 => (None, None, vec![]),
            1 => (Some(1 - inputs), None, vec![n]),
            _ => {
                let mut grid = shape.to_vec();
                grid[inputs] = k.div_ceil(block);
                (Some(inputs), Some(block), grid)
            }
        };
        let q = b.constant(codes(dtype, &shape, seed));
        let scale = b.constant(scales(&grid, seed + 1));
        let zero = b.constant(codes(dtype, &grid, seed + 2));
        let w = b.op(Dequantize { axis, block }, &[q, scale, zero]).unwrap();
        let op = MatMul { trans_a: false, trans_b: rows };
        let mut y = b.op(op, &[x, w]).unwrap();
        if bias {
            let v = b.constant(noise(&[n], seed + 3));
            y = b.add(y, v).unwrap();
        }
        let y = b.relu(y).unwrap();
        b.output("y", y).unwrap();
        let graph = b.finish().unwrap();
        let bits = if matches!(dtype, DType::I4 | DType::U4) { 4 } else { 8 };
        prop_assert_eq!(kernels(&graph), [format!("matmul of {bits}-bit weights+relu")]);
        let x = noise(&[m, k], seed + 4);
        let plain = run(&graph, std::slice::from_ref(&x), 1, false)[0].to_f64s();
        let found = run(&graph, std::slice::from_ref(&x), 2, true)[0].to_f64s();
        // Either is within half a unit an operation of the exact sum; weights are at most 7.7.
        let bound = 2.0 * (k + 10) as f64 * f64::from(f32::EPSILON) / 2.0 * (k as f64 * 7.7 + 1.0);
        for (a, b) in plain.iter().zip(&found) {
            prop_assert!((a - b).abs() <= bound, "{} is not {}", b, a);
        }
    }
}

/// A product of a quantized activation by a square weight whose scales lie along `axis`.
fn square(axis: usize, zeros: &[f64]) -> Graph {
    let mut b = GraphBuilder::new("square");
    let q = input(&mut b, DType::U8, &[3, 16]);
    let one = b.constant(Tensor::scalar(0.5f32));
    let none = b.constant(Tensor::scalar(3u8));
    let x = b.dequantize(q, one, none, None).unwrap();
    let w = b.constant(codes(DType::I8, &[16, 16], 5));
    let scale = b.constant(scales(&[16], 6));
    let zero = b.constant(Tensor::from_f64s(DType::I8, [16], zeros).unwrap());
    let w = b.dequantize(w, scale, zero, Some(axis)).unwrap();
    let y = b.matmul(x, w).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

#[test]
fn scales_along_the_inputs_and_wide_zero_points_are_left_to_floats() {
    let x = codes(DType::U8, &[3, 16], 7);
    let close = |graph: &Graph| {
        let plain = run(graph, std::slice::from_ref(&x), 1, false)[0].to_f64s();
        let found = run(graph, std::slice::from_ref(&x), 1, true)[0].to_f64s();
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-3 * (1.0 + a.abs());
        assert!(plain.iter().zip(&found).all(near));
        kernels(graph)
    };
    assert_eq!(close(&square(1, &[0.0; 16])), ["int matmul+dequantize"]);
    assert!(!close(&square(0, &[0.0; 16])).contains(&"int matmul+dequantize".to_string()));
    // Centred weights that do not fit 8 bits.
    assert!(!close(&square(1, &[100.0; 16])).contains(&"int matmul+dequantize".to_string()));
}

#[test]
fn convolutions_take_the_grid_of_a_run_and_a_float_bias() {
    let mut b = GraphBuilder::new("conv");
    let x = input(&mut b, DType::F32, &[2, 3, 9, 9]);
    let [q, scale, zero] = b.dynamic_quantize(x).unwrap();
    let x = b.dequantize(q, scale, zero, None).unwrap();
    let w = b.constant(codes(DType::I8, &[5, 3, 3, 3], 1));
    let own = b.constant(scales(&[5], 2));
    let zeros = b.constant(Tensor::zeros(DType::I8, [5]).unwrap());
    let w = b.dequantize(w, own, zeros, Some(0)).unwrap();
    let bias = b.constant(noise(&[5], 3));
    let y = b.conv(x, w, Some(bias), Window::new(2).pad(1), 1).unwrap();
    let y = b.relu(y).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();
    assert_eq!(kernels(&graph), ["dynamic_quantize", "int conv+dequantize"]);
    let x = noise(&[2, 3, 9, 9], 4);
    let plain = run(&graph, std::slice::from_ref(&x), 1, false)[0].to_f64s();
    let found = run(&graph, std::slice::from_ref(&x), 2, true)[0].to_f64s();
    for (a, b) in plain.iter().zip(&found) {
        assert!((a - b).abs() <= 1e-4 * (1.0 + a.abs()), "{b} is not {a}");
    }
}

#[test]
fn pooling_between_quantizations_works_on_bytes() {
    let mut b = GraphBuilder::new("pool");
    let q = input(&mut b, DType::I8, &[1, 3, 11, 13]);
    let scale = b.constant(Tensor::scalar(0.1f32));
    let zero = b.constant(Tensor::scalar(-4i8));
    let x = b.dequantize(q, scale, zero, None).unwrap();
    let pool = MaxPool {
        kernel: [3, 3].to_vec().into(),
        window: Window::new(2).pad(1).stride(2),
        ceil_mode: false,
    };
    let y = b.op(pool, &[x]).unwrap();
    let y = b.quantize(y, scale, zero, None).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();
    assert_eq!(kernels(&graph), ["int max pool"]);
    let x = codes(DType::I8, &[1, 3, 11, 13], 4);
    let plain = run(&graph, std::slice::from_ref(&x), 1, false);
    assert_eq!(run(&graph, &[x], 2, true), plain);
}

#[test]
fn other_functions_of_quantized_values_stay_as_they_are() {
    let mut b = GraphBuilder::new("product");
    let q = input(&mut b, DType::U8, &[40]);
    let scale = b.constant(Tensor::scalar(0.1f32));
    let zero = b.constant(Tensor::scalar(7u8));
    let x = b.dequantize(q, scale, zero, None).unwrap();
    let y = b.op(Binary { op: BinaryOp::Mul }, &[x, x]).unwrap();
    let y = b.quantize(y, scale, zero, None).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();
    let x = codes(DType::U8, &[40], 4);
    let plain = run(&graph, std::slice::from_ref(&x), 1, false);
    assert_eq!(run(&graph, &[x], 2, true), plain);
}
