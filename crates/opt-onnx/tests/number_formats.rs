//! Weights of few bits in files: written, read back, and the same.

use opt_core::ops::{Dequantize, Quantize, ReduceOp};
use opt_core::{
    Backend, Context, DType, ErrorKind, Graph, GraphBuilder, Pass, Tensor, TensorType, ValueKind,
};
use opt_ndarray::NdarrayBackend;
use opt_onnx::{Exporter, Importer};
use opt_quant::{QuantizeDynamic, QuantizeWeights, Scheme, SplitOutliers};

fn random(step: u64, shape: &[usize]) -> Tensor {
    let stream = opt_core::random::Philox::new(3);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f64> = (0..len).map(|i| stream.normal(step, i)).collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

/// A product with a weight `[70, 5]` or its transpose: 70 is a multiple of no usual block.
fn product(trans_b: bool) -> Graph {
    let mut b = GraphBuilder::new("product");
    let x = b
        .input("x", TensorType::new(DType::F32, [2, 3, 70]))
        .unwrap();
    let shape = if trans_b { [5, 70] } else { [70, 5] };
    let w = b.variable("w", random(1, &shape)).unwrap();
    let y = b.matmul_t(x, w, false, trans_b).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

fn run(graph: &Graph) -> Tensor {
    let x = random(2, &[2, 3, 70]);
    NdarrayBackend::new()
        .run_once(graph, &[x])
        .unwrap()
        .remove(0)
}

fn quantized(scheme: Scheme, trans_b: bool) -> Graph {
    let pass = QuantizeWeights::new(scheme);
    pass.apply(product(trans_b), &mut Context::new()).unwrap().0
}

fn text(graph: &Graph) -> String {
    let mut out = graph.to_string();
    for (_, value) in graph.values() {
        if let ValueKind::Constant(t) | ValueKind::Variable(t) = value.kind() {
            out += &format!("{} {t:?} {:?}\n", value.name(), t.to_f64s());
        }
    }
    out
}

#[test]
fn every_scheme_comes_back_as_it_was() {
    for (scheme, opset) in [
        (Scheme::int8(), 21),
        (Scheme::uint8().group(16), 21),
        (Scheme::int4(), 21),
        (Scheme::uint4().group(16), 21),
        (Scheme::int2(), 25),
        (Scheme::uint2(), 25),
        (Scheme::fp8_e4m3(), 21),
        (Scheme::fp8_e5m2().group(16), 21),
        (Scheme::nf4(), 21),
        (Scheme::nf4().group(14), 21),
        (Scheme::mxfp8(), 24),
        (Scheme::mxfp6(), 28),
        (Scheme::mxfp6_e3m2(), 28),
        (Scheme::mxfp4(), 24),
        (Scheme::nvfp4(), 23),
        (Scheme::f16(), 21),
        (Scheme::bf16(), 21),
    ] {
        let graph = quantized(scheme, false);
        let bytes = Exporter::new().to_bytes(&graph).unwrap();
        let back = Importer::new().read(bytes).unwrap();
        assert_eq!(back.metadata()["onnx.opset"], opset.to_string(), "{scheme}");
        assert_eq!(run(&back), run(&graph), "{scheme}");
        // What was read once is written and read as it is.
        let again = Exporter::new().to_bytes(&back).unwrap();
        let again = Importer::new().read(again).unwrap();
        assert_eq!(text(&again), text(&back), "{scheme}");
        let stored = |graph: &Graph| -> usize {
            let constants = graph.values().filter_map(|(_, v)| v.tensor());
            constants
                .filter(|t| t.dtype().bits() <= 8)
                .map(Tensor::size_in_bytes)
                .sum()
        };
        assert_eq!(stored(&back), stored(&graph), "{scheme}");
        if opset > 21 {
            let old = Exporter::new().opset(21).to_bytes(&graph).unwrap_err();
            assert_eq!(old.kind(), ErrorKind::Unsupported, "{scheme}");
        }
    }
}

/// Fails unless two graphs compute the same; another order of the weight may change the order of a
/// sum.
fn same(a: &Graph, b: &Graph, scheme: Scheme) {
    let (a, b) = (run(a), run(b));
    assert_eq!(a.shape(), b.shape());
    for (x, y) in a.to_f64s().into_iter().zip(b.to_f64s()) {
        assert!((x - y).abs() < 1e-4, "{scheme}: {x} {y}");
    }
}

#[test]
fn products_become_matmul_nbits_and_come_back() {
    let named = |bytes: &[u8]| bytes.windows(11).any(|w| w == b"MatMulNBits");
    for scheme in [
        Scheme::int4(),
        Scheme::int4().asymmetric().group(16),
        Scheme::uint4().group(64),
        Scheme::int8().group(32),
        Scheme::uint8().group(128),
        Scheme::int2().group(16),
        Scheme::uint2().group(256),
    ] {
        for trans_b in [false, true] {
            let graph = quantized(scheme, trans_b);
            let exporter = Exporter::new().opset(25).matmul_nbits(true);
            let bytes = exporter.to_bytes(&graph).unwrap();
            assert!(named(&bytes), "{scheme}");
            let back = Importer::new().read(bytes).unwrap();
            same(&back, &graph, scheme);
        }
    }
    // Blocks that the operator does not have stay in ONNX's form.
    for scheme in [Scheme::int4().group(24), Scheme::int8(), Scheme::nf4()] {
        let exporter = Exporter::new().matmul_nbits(true);
        let bytes = exporter.to_bytes(&quantized(scheme, true)).unwrap();
        assert!(!named(&bytes), "{scheme}");
        let back = Importer::new().read(bytes).unwrap();
        same(&back, &quantized(scheme, true), scheme);
    }
    let bytes = Exporter::new().to_bytes(&quantized(Scheme::int4(), true));
    assert!(!named(&bytes.unwrap()), "only where it is asked for");
}

#[test]
fn quantization_without_zero_points_is_written_for_old_and_new_sets() {
    let mut b = GraphBuilder::new("whole");
    let x = b
        .input("x", TensorType::new(DType::F32, [2, 3, 70]))
        .unwrap();
    let scale = b.scalar(DType::F32, 0.05).unwrap();
    for (i, dtype) in [DType::I8, DType::U8, DType::F8E4M3]
        .into_iter()
        .enumerate()
    {
        let op = opt_core::ops::Quantize {
            dtype,
            axis: None,
            block: None,
        };
        let q = b.op(op, &[x, scale]).unwrap();
        let op = opt_core::ops::Dequantize {
            axis: None,
            block: None,
        };
        let y = b.op(op, &[q, scale]).unwrap();
        b.output(&format!("y{i}"), y).unwrap();
    }
    let graph = b.finish().unwrap();
    let x = [random(2, &[2, 3, 70])];
    let backend = NdarrayBackend::new();
    let expected = backend.run_once(&graph, &x).unwrap();
    for opset in [19, 21, 25] {
        let bytes = Exporter::new().opset(opset).to_bytes(&graph).unwrap();
        let back = Importer::new().read(bytes).unwrap();
        assert_eq!(backend.run_once(&back, &x).unwrap(), expected, "{opset}");
    }
}

/// Rows with scales and zero points of their own: `MatMulInteger`, and the terms of the zero points
/// taken from its sums.
#[test]
fn products_by_rows_become_products_of_integers() {
    for (trans_b, scheme) in [
        (false, Scheme::int8()),
        (true, Scheme::int8()),
        (false, Scheme::uint8()),
        (true, Scheme::uint8().per_tensor()),
    ] {
        let pass = QuantizeDynamic::new().per_token().weights(scheme);
        let graph = pass.apply(product(trans_b), &mut Context::new()).unwrap().0;
        let bytes = Exporter::new().to_bytes(&graph).unwrap();
        let written = String::from_utf8_lossy(&bytes).into_owned();
        assert!(written.contains("MatMulInteger"), "{scheme}");
        assert!(!written.contains("DequantizeLinear"), "{scheme}");
        let back = Importer::new().read(bytes).unwrap();
        let (ours, theirs) = (run(&graph).to_f64s(), run(&back).to_f64s());
        // Sums of integers are exact there, and rounded in each step here.
        let size = ours.iter().fold(0f64, |m, v| m.max(v.abs()));
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() <= 1e-5 * size, "{scheme}: {a} against {b}");
        }
        let old = Exporter::new().opset(20).to_bytes(&graph);
        assert_eq!(old.unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

/// Symmetric rows, in a product and by themselves.
#[test]
fn symmetric_rows_need_no_term_of_zero_points() {
    let mut b = GraphBuilder::new("rows");
    let shape = TensorType::new(DType::F32, [2, 3, 70]);
    let x = b.input("x", shape).unwrap();
    let size = b.abs(x).unwrap();
    let size = b.reduce(ReduceOp::Max, size, &[2], true).unwrap();
    let scale = b.mul_scalar(size, 1.0 / 127.0).unwrap();
    let (axis, block) = (Some(2), Some(70));
    let dtype = DType::I8;
    let q = b.op(Quantize { dtype, axis, block }, &[x, scale]).unwrap();
    let rows = b.op(Dequantize { axis, block }, &[q, scale]).unwrap();
    b.output("rows", rows).unwrap();
    let rows = b.op(Dequantize { axis, block }, &[q, scale]).unwrap();
    let w: Vec<i8> = (0..350).map(|i| (i * 37 % 255 - 127) as i8).collect();
    let w = b.constant(Tensor::new([70, 5], w).unwrap());
    let of_w = b.constant(Tensor::new([5], [0.1f32, 0.2, 0.3, 0.4, 0.5]).unwrap());
    let op = Dequantize {
        axis: Some(1),
        block: None,
    };
    let w = b.op(op, &[w, of_w]).unwrap();
    let y = b.matmul(rows, w).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();

    let bytes = Exporter::new().to_bytes(&graph).unwrap();
    let written = String::from_utf8_lossy(&bytes).into_owned();
    assert!(written.contains("MatMulInteger") && !written.contains("Sub"));
    let back = Importer::new().read(bytes).unwrap();
    let backend = NdarrayBackend::new();
    let x = [random(2, &[2, 3, 70])];
    let (ours, theirs) = (
        backend.run_once(&graph, &x).unwrap(),
        backend.run_once(&back, &x).unwrap(),
    );
    assert_eq!(ours[0], theirs[0]);
    let size = ours[1].to_f64s().iter().fold(0f64, |m, v| m.max(v.abs()));
    for (a, b) in ours[1].to_f64s().iter().zip(theirs[1].to_f64s()) {
        assert!((a - b).abs() <= 1e-5 * size, "{a} against {b}");
    }
}

/// Products that are split by channels, one in integers and one in floats.
#[test]
fn split_products_come_back_as_they_were() {
    let mut cx = Context::new();
    for trans_b in [false, true] {
        let pass = SplitOutliers::largest_weights(6);
        let (split, _) = pass.apply(product(trans_b), &mut cx).unwrap();
        let pass = QuantizeDynamic::new()
            .per_channel()
            .rules(SplitOutliers::keep());
        let (int8, report) = pass.apply(split, &mut cx).unwrap();
        assert_eq!(report.changed, 1);
        let bytes = Exporter::new().to_bytes(&int8).unwrap();
        let back = Importer::new().read(bytes).unwrap();
        let (a, b) = (run(&int8), run(&back));
        assert_eq!(a.shape(), b.shape());
        for (a, b) in a.to_f64s().into_iter().zip(b.to_f64s()) {
            assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} {b}");
        }
    }
}
