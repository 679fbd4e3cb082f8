//! Quantized graphs: products of integers are exact, and the steps say how they are computed.

use opt_core::nn::zoo::{self, TransformerClassifier};
use opt_core::ops::{Conv, Dequantize, MatMul, Op, Window};
use opt_core::pass::{Context, Pass};
use opt_core::random::Philox;
use opt_core::{Backend, CompileSpec, DType, Graph, GraphBuilder, Tensor, TensorType, ValueId};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_quant::{QuantizeDynamic, QuantizeStatic, QuantizeWeights, Scheme};
use opt_tch::{Device, TchBackend};

fn backend() -> TchBackend {
    TchBackend::new(Device::Cpu).unwrap()
}

/// Integers over the whole range of a type, its ends among them.
fn integers(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let (low, high) = dtype.int_range().unwrap();
    let stream = Philox::new(seed);
    let len: usize = shape.iter().product();
    let values: Vec<f64> = (0..len as u64)
        .map(|i| match i % 7 {
            0 => f64::from(low),
            1 => f64::from(high),
            _ => (f64::from(low) + f64::from(high - low + 1) * stream.uniform(0, i)).floor(),
        })
        .collect();
    Tensor::from_f64s(dtype, shape, &values).unwrap()
}

fn scales(len: usize, seed: u64) -> Vec<f64> {
    let stream = Philox::new(seed);
    (0..len as u64)
        .map(|i| 0.001 + 0.01 * stream.uniform(1, i))
        .collect()
}

/// A dequantized input or constant in f64; with `axis`, scales and zero points are of its entries.
fn on_grid(
    b: &mut GraphBuilder,
    q: ValueId,
    axis: Option<usize>,
    symmetric: bool,
    seed: u64,
) -> ValueId {
    let ty = b.type_of(q).clone();
    let shape = ty.shape.fixed().unwrap();
    let (count, dims) = match axis {
        None => (1, vec![]),
        Some(a) => (shape[a], vec![shape[a]]),
    };
    let scale = b.constant(Tensor::from_f64s(DType::F64, &dims, &scales(count, seed)).unwrap());
    let (low, high) = ty.dtype.int_range().unwrap();
    let zeros: Vec<f64> = (0..count)
        .map(|i| match symmetric {
            true => 0.0,
            false => f64::from(low + (i as i32 * 37 + 100) % (high - low)),
        })
        .collect();
    let zero = b.constant(Tensor::from_f64s(ty.dtype, &dims, &zeros).unwrap());
    b.op(Dequantize { axis, block: None }, &[q, scale, zero])
        .unwrap()
}

fn kernels(backend: &TchBackend, graph: &Graph) -> Vec<String> {
    let executable = backend.compile(graph, &CompileSpec::new()).unwrap();
    executable.steps().into_iter().map(|s| s.kernel).collect()
}

fn compare(graph: &Graph, inputs: &[Tensor], kernel: &str) {
    let names = kernels(&backend(), graph);
    assert!(
        names.iter().any(|k| k == kernel),
        "{names:?} without {kernel}"
    );
    let fused = backend().run_once(graph, inputs).unwrap();
    let plain = backend().fusion(false).run_once(graph, inputs).unwrap();
    opt_suite::close(&fused[0], &plain[0], 1e-12).unwrap();
}

#[test]
fn matrix_products_of_bytes_are_exact() {
    let mut seed = 0;
    for (a_type, b_type) in [
        (DType::U8, DType::I8),
        (DType::I8, DType::I8),
        (DType::I8, DType::U8),
        (DType::U8, DType::U8),
    ] {
        for (a, b, trans_b, axis, symmetric, kernel) in [
            (vec![5, 40], vec![40, 7], false, Some(1), true, "_int_mm"),
            (vec![5, 40], vec![40, 7], false, Some(1), false, "_int_mm"),
            (vec![2, 3, 33], vec![9, 33], true, Some(0), false, "_int_mm"),
            (vec![1, 2000], vec![2000, 4], false, None, false, "_int_mm"),
            (
                vec![2, 3, 1500],
                vec![2, 1500, 4],
                false,
                None,
                false,
                "matmul (dequantized)",
            ),
        ] {
            seed += 1;
            let mut g = GraphBuilder::new("product");
            let x = g.input("x", TensorType::new(a_type, &a[..])).unwrap();
            let w = g.constant(integers(b_type, &b, seed));
            let (x, w) = (
                on_grid(&mut g, x, None, symmetric, seed),
                on_grid(&mut g, w, axis, symmetric, seed + 100),
            );
            let y = g
                .op(
                    MatMul {
                        trans_a: false,
                        trans_b,
                    },
                    &[x, w],
                )
                .unwrap();
            g.output("y", y).unwrap();
            compare(
                &g.finish().unwrap(),
                &[integers(a_type, &a, seed + 50)],
                kernel,
            );
        }
    }
}

#[test]
fn convolutions_of_bytes_are_exact() {
    for (i, (x_shape, w_shape, groups, stride, symmetric)) in [
        ([2, 3, 8, 8], [6, 3, 3, 3], 1, 1, true),
        ([1, 200, 5, 5], [4, 200, 3, 3], 1, 2, false),
        ([1, 4, 6, 6], [8, 2, 3, 3], 2, 1, false),
        ([1, 1, 40, 40], [2, 1, 33, 33], 1, 1, false),
    ]
    .into_iter()
    .enumerate()
    {
        let seed = i as u64;
        let mut g = GraphBuilder::new("convolution");
        let x = g.input("x", TensorType::new(DType::U8, x_shape)).unwrap();
        let w = g.constant(integers(DType::I8, &w_shape, seed));
        let bias = g
            .constant(Tensor::from_f64s(DType::F64, [w_shape[0]], &scales(w_shape[0], 3)).unwrap());
        let (x, w) = (
            on_grid(&mut g, x, None, symmetric, seed),
            on_grid(&mut g, w, Some(0), symmetric, seed + 10),
        );
        let window = Window::new(2).stride(stride).pad(1);
        let y = g
            .op(Op::from(Conv { window, groups }), &[x, w, bias])
            .unwrap();
        g.output("y", y).unwrap();
        let x = integers(DType::U8, &x_shape, seed + 20);
        compare(&g.finish().unwrap(), &[x], "convolution (dequantized)");
    }
}

/// Examples for the transformer: rows of token ids.
fn tokens(rows: usize) -> TensorDataset {
    let ids: Vec<i64> = (0..rows as i64 * 16)
        .map(|i| (i * 7 + i / 5) % 50)
        .collect();
    TensorDataset::new(vec![Tensor::new([rows, 16], ids).unwrap()]).unwrap()
}

#[test]
fn quantized_models_agree_with_what_their_graphs_say() {
    let config = TransformerClassifier {
        vocabulary: 50,
        steps: 16,
        width: 64,
        heads: 4,
        feedforward: 128,
        layers: 2,
        dropout: 0.0,
        classes: 5,
    };
    let model = zoo::transformer_classifier(&config, 3).unwrap();
    let data = tokens(32);
    let backend = backend();
    let passes: Vec<(Box<dyn Pass>, &str)> = vec![
        (Box::new(QuantizeStatic::new()), "_int_mm"),
        (Box::new(QuantizeDynamic::new()), "_int_mm"),
        (Box::new(QuantizeWeights::int4(32)), "_weight_int4pack_mm"),
        (
            Box::new(QuantizeWeights::int4(32).asymmetric()),
            "_weight_int4pack_mm",
        ),
    ];
    for (pass, kernel) in passes {
        let mut cx = Context::new()
            .with_backend(&backend)
            .with_calibration(&data);
        let (graph, _) = pass.apply(model.clone(), &mut cx).unwrap();
        let graph = graph
            .bind(&[(opt_core::Symbol::new("batch"), 2)].into())
            .unwrap();
        let names = kernels(&backend, &graph);
        assert!(
            names.iter().any(|k| k == kernel),
            "{}: {names:?}",
            pass.name()
        );
        let ids: Vec<i64> = (0..32).map(|i| i * 3 % 50).collect();
        let x = [Tensor::new([2, 16], ids).unwrap()];
        let fused = backend.run_once(&graph, &x).unwrap();
        let plain = backend.clone().fusion(false).run_once(&graph, &x).unwrap();
        // Where a sum ends on the border between two grid points, f32 rounding decides.
        let tolerance = if kernel == "_int_mm" { 2e-2 } else { 1e-5 };
        opt_suite::close(&fused[0], &plain[0], tolerance).unwrap();
    }
}

/// Weights in every number format give what the CPU backend makes of them.
#[test]
fn weights_of_every_format_agree_with_the_other_backend() {
    use opt_core::nn::{Linear, ModelBuilder};
    let mut m = ModelBuilder::new("layers", 3);
    let x = m.batch("x", [64]).unwrap();
    let h = m.layer("fc1", Linear::new(32), x).unwrap();
    let h = m.relu(h).unwrap();
    let y = m.layer("fc2", Linear::new(5), h).unwrap();
    m.output("y", y).unwrap();
    let model = m.finish().unwrap();
    let stream = Philox::new(5);
    let data: Vec<f64> = (0..3 * 64).map(|i| stream.normal(0, i)).collect();
    let x = [Tensor::from_f64s(DType::F32, [3, 64], &data).unwrap()];
    for scheme in [
        Scheme::int8(),
        Scheme::int4(),
        Scheme::uint4().group(24),
        Scheme::int2(),
        Scheme::uint2(),
        Scheme::fp8_e4m3(),
        Scheme::fp8_e5m2().group(16),
        Scheme::nf4(),
        Scheme::mxfp8(),
        Scheme::mxfp6(),
        Scheme::mxfp4(),
        Scheme::nvfp4(),
        Scheme::f16(),
        Scheme::bf16(),
    ] {
        let pass = QuantizeWeights::new(scheme);
        let (graph, _) = pass.apply(model.clone(), &mut Context::new()).unwrap();
        let expected = NdarrayBackend::new().run_once(&graph, &x).unwrap();
        let found = backend().run_once(&graph, &x).unwrap();
        // libtorch's packed 4-bit products round activations to bf16 on some processors.
        let tolerance = if scheme.dtype().bits() == 4 {
            2e-2
        } else {
            1e-5
        };
        opt_suite::close(&found[0], &expected[0], tolerance)
            .unwrap_or_else(|e| panic!("{scheme}: {e}"));
        let plain = backend().fusion(false).run_once(&graph, &x).unwrap();
        opt_suite::close(&plain[0], &expected[0], 1e-5).unwrap_or_else(|e| panic!("{scheme}: {e}"));
    }
    let pass = QuantizeDynamic::new().per_token();
    let (graph, _) = pass.apply(model, &mut Context::new()).unwrap();
    let expected = NdarrayBackend::new().run_once(&graph, &x).unwrap();
    let found = backend().run_once(&graph, &x).unwrap();
    opt_suite::close(&found[0], &expected[0], 1e-5).unwrap();
}
