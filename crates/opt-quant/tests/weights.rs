//! Weight-only quantization in every number format, run on the CPU backend.

use opt_core::nn::{Conv, Embedding, Linear, ModelBuilder};
use opt_core::ops::Op;
use opt_core::{Backend, Context, DType, ErrorKind, Graph, Pass, Tensor};
use opt_ndarray::NdarrayBackend;
use opt_quant::{
    Axes, QuantizeDynamic, QuantizeWeights, Rules, Scheme, Select, quantize_along, quantize_tensor,
};

fn random(step: u64, shape: &[usize]) -> Tensor {
    let stream = opt_core::random::Philox::new(9);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f64> = (0..len).map(|i| stream.normal(step, i)).collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

fn run(graph: &Graph, x: &Tensor) -> Tensor {
    let backend = NdarrayBackend::new();
    backend
        .run_once(graph, std::slice::from_ref(x))
        .unwrap()
        .remove(0)
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.shape(), b.shape());
    let size = b.to_f64s().iter().fold(1e-6f64, |m, v| m.max(v.abs()));
    for (x, y) in a.to_f64s().into_iter().zip(b.to_f64s()) {
        assert!((x - y).abs() <= tolerance * size, "{x} against {y}");
    }
}

fn apply(pass: &dyn Pass, graph: Graph) -> Graph {
    pass.apply(graph, &mut Context::new()).unwrap().0
}

/// The graph with a constant in a variable's place.
fn with_constant(graph: &Graph, name: &str, content: Tensor) -> Graph {
    let mut patch = opt_core::GraphPatch::new(graph.clone());
    let constant = patch.constant(content);
    let old = graph.find(name).unwrap();
    patch.replace(old, constant).unwrap();
    patch.finish().unwrap()
}

fn schemes() -> Vec<Scheme> {
    vec![
        Scheme::int8(),
        Scheme::uint8().per_tensor(),
        Scheme::int8().group(16),
        Scheme::int4(),
        Scheme::uint4().group(7),
        Scheme::int2(),
        Scheme::uint2().group(16),
        Scheme::fp8_e4m3(),
        Scheme::fp8_e5m2().group(16),
        Scheme::nf4(),
        Scheme::nf4().group(7),
        Scheme::nf4().per_channel(),
        Scheme::nf4().per_tensor(),
        Scheme::mxfp8(),
        Scheme::mxfp8_e5m2(),
        Scheme::mxfp6(),
        Scheme::mxfp6_e3m2(),
        Scheme::mxfp4(),
        Scheme::nvfp4(),
        Scheme::f16(),
        Scheme::bf16(),
    ]
}

/// A product `x w` with the weight `[in, out]`, or `x w^T` with `[out, in]`.
fn product(content: &Tensor, trans_b: bool) -> Graph {
    let mut b = opt_core::GraphBuilder::new("product");
    let inner = content.shape()[usize::from(trans_b)];
    let shape = opt_core::TensorType::new(DType::F32, [3, inner]);
    let x = b.input("x", shape).unwrap();
    let w = b.variable("w", content.clone()).unwrap();
    let y = b.matmul_t(x, w, false, trans_b).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

/// The magnitudes of a tensor's entries.
fn absolute(t: &Tensor) -> Tensor {
    let sizes: Vec<f32> = t.to_vec::<f32>().unwrap().iter().map(|v| v.abs()).collect();
    Tensor::new(t.shape(), sizes).unwrap()
}

#[test]
fn products_with_every_scheme_equal_those_with_the_dequantized_weight() {
    // 70 is a multiple of no group but 7.
    for (inner, outer) in [(70, 5), (64, 6)] {
        for trans_b in [false, true] {
            let shape = match trans_b {
                true => [outer, inner],
                false => [inner, outer],
            };
            let weight = random(1, &shape);
            let x = random(2, &[3, inner]);
            let axes = match trans_b {
                true => Axes { channel: 0, sum: 1 },
                false => Axes { channel: 1, sum: 0 },
            };
            for scheme in schemes() {
                let graph = product(&weight, trans_b);
                let got = apply(&QuantizeWeights::new(scheme), graph.clone());
                let stored = quantize_along(&weight, &scheme, axes).unwrap();
                let exact = with_constant(&graph, "w", stored.dequantize().unwrap());
                // Packed weights are scaled after the sum of a group: as many roundings, in
                // another order.
                let sizes = with_constant(&graph, "w", absolute(&stored.dequantize().unwrap()));
                let sizes = run(&sizes, &absolute(&x)).to_f64s();
                let bound = (inner + 2) as f64 * f64::from(f32::EPSILON);
                let (found, exact) = (run(&got, &x).to_f64s(), run(&exact, &x).to_f64s());
                for ((a, b), size) in found.into_iter().zip(exact).zip(sizes) {
                    assert!(
                        (a - b).abs() <= bound * size,
                        "{scheme} of {shape:?}: {a} {b}"
                    );
                }
                // What the graph keeps is what the scheme says, but for the levels of NF4.
                let constants = got.values().filter_map(|(_, v)| v.tensor());
                let bytes: usize = constants
                    .filter(|t| t.len() > 16 || t.dtype() != DType::F32 || t.rank() != 1)
                    .filter(|t| t.dtype() != DType::I64)
                    .map(Tensor::size_in_bytes)
                    .sum();
                let small = stored.scales().is_some_and(|s| s.rank() == 1);
                if !small {
                    assert_eq!(bytes, stored.storage_bytes(), "{scheme}");
                }
            }
        }
    }
}

#[test]
fn convolutions_have_groups_along_channels_and_taps() {
    let mut m = ModelBuilder::new("conv", 3);
    let x = m.batch("x", [3, 6, 6]).unwrap();
    let y = m.layer("c", Conv::new(4, [3, 3]), x).unwrap();
    m.output("y", y).unwrap();
    let graph = m.finish().unwrap();
    let content = graph
        .value(graph.find("c.weight").unwrap())
        .tensor()
        .unwrap()
        .clone();
    let x = random(5, &[2, 3, 6, 6]);
    for scheme in schemes() {
        let got = apply(&QuantizeWeights::new(scheme), graph.clone());
        let stored = match scheme.group_size() {
            Some(_) => {
                let rows = content.reshape([4, 27]).unwrap();
                quantize_tensor(&rows, &scheme).unwrap()
            }
            None => quantize_tensor(&content, &scheme).unwrap(),
        };
        let back = stored
            .dequantize()
            .unwrap()
            .reshape(content.shape())
            .unwrap();
        let exact = with_constant(&graph, "c.weight", back);
        close(&run(&got, &x), &run(&exact, &x), 1e-6);
    }
}

fn embedded(tied: bool) -> Graph {
    let mut m = ModelBuilder::new("embedded", 3);
    let ids = m
        .input("ids", opt_core::TensorType::new(DType::I64, [2usize, 5]))
        .unwrap();
    let h = m.layer("embed", Embedding::new(20, 33), ids).unwrap();
    let table = m.graph().find("embed.weight").unwrap();
    let y = match tied {
        true => m.matmul_t(h, table, false, true).unwrap(),
        false => m.layer("fc", Linear::new(4), h).unwrap(),
    };
    m.output("y", y).unwrap();
    m.finish().unwrap()
}

#[test]
fn embeddings_are_looked_up_in_their_codes() {
    let ids: Vec<i64> = vec![0, 19, 7, 7, 3, 1, 0, 12, 18, 5];
    let ids = Tensor::new([2, 5], ids).unwrap();
    for tied in [false, true] {
        let graph = embedded(tied);
        let weight = graph.find("embed.weight").unwrap();
        let content = graph.value(weight).tensor().unwrap().clone();
        for scheme in schemes() {
            let rules = Rules::new().apply(Select::name("embed.weight"), scheme);
            let pass = QuantizeWeights::new(Scheme::int8()).rules(rules);
            let got = apply(&pass, graph.clone());
            let back = quantize_tensor(&content, &scheme)
                .unwrap()
                .dequantize()
                .unwrap();
            let exact = with_constant(&graph, "embed.weight", back);
            let exact = match tied {
                true => exact,
                false => apply(&QuantizeWeights::int8().exclude("embed"), exact),
            };
            close(&run(&got, &ids), &run(&exact, &ids), 1e-5);
            if scheme == Scheme::int8() && !tied {
                let floats = got.values().filter_map(|(_, v)| v.tensor());
                assert!(
                    floats
                        .filter(|t| t.dtype() == DType::F32)
                        .all(|t| t.len() <= 20)
                );
            }
        }
    }
}

/// Scales of embeddings in 16 bits: the codes are those of the scales as they are stored.
#[test]
fn scales_of_embeddings_may_be_half_as_long() {
    let ids: Vec<i64> = vec![0, 19, 7, 7, 3, 1, 0, 12, 18, 5];
    let ids = Tensor::new([2, 5], ids).unwrap();
    let only = QuantizeWeights::int8().exclude("fc").half_scales();
    for (graph, pass) in [
        (embedded(false), only),
        (embedded(true), QuantizeWeights::int8().half_scales()),
    ] {
        let weight = graph.find("embed.weight").unwrap();
        let content = graph.value(weight).tensor().unwrap().clone();
        let got = apply(&pass, graph.clone());
        let stored = |name: &str| {
            let id = got.find(name).unwrap();
            got.value(id).tensor().unwrap().clone()
        };
        let (codes, scales) = (stored("embed.weight.q"), stored("embed.weight.s"));
        assert_eq!((scales.dtype(), scales.shape()), (DType::F16, &[20][..]));
        let mut back = Vec::new();
        for (i, code) in codes.to_f64s().into_iter().enumerate() {
            let scale = scales.to_f64s()[i / 33];
            let exact = content.to_f64s()[i];
            assert!((code * scale - exact).abs() <= 0.5001 * scale || code.abs() >= 127.0);
            back.push((code * scale) as f32);
        }
        let exact = with_constant(&graph, "embed.weight", Tensor::new([20, 33], back).unwrap());
        close(&run(&got, &ids), &run(&exact, &ids), 1e-5);
    }
}

#[test]
fn rules_decide_and_bad_tensors_are_named() {
    let graph = embedded(false);
    let keep = QuantizeWeights::new(Scheme::nf4()).rules(Rules::new().keep(Select::op("Gather")));
    let kept = apply(&keep, graph.clone());
    assert!(kept.find("embed.weight").is_ok() && kept.find("fc.weight").is_err());
    let nowhere = QuantizeWeights::int8().exclude("nowhere");
    let error = nowhere.apply(graph, &mut Context::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);

    let mut content = random(1, &[4, 8]).to_vec::<f32>().unwrap();
    content[9] = f32::NAN;
    let graph = product(&Tensor::new([4, 8], content).unwrap(), true);
    for scheme in schemes() {
        let pass = QuantizeWeights::new(scheme);
        let error = pass.apply(graph.clone(), &mut Context::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains('w'), "{error}");
        assert!(error.to_string().contains("entry 9"), "{error}");
    }
}

/// Each row of activations on a grid of its own, as the formula has it.
#[test]
fn rows_of_activations_have_scales_of_their_own() {
    let weight = random(1, &[6, 16]);
    let mut x = random(2, &[3, 16]).to_vec::<f32>().unwrap();
    x[16..32].iter_mut().for_each(|v| *v *= 1e4);
    x[32..].fill(0.0);
    let x = Tensor::new([3, 16], x).unwrap();
    let pass = QuantizeDynamic::new().per_token().per_channel();
    let got = apply(&pass, product(&weight, true));
    assert!(got.nodes().any(|(_, n)| matches!(n.op(), Op::Quantize(_))));
    let rows: Vec<f32> = x
        .to_vec::<f32>()
        .unwrap()
        .chunks(16)
        .flat_map(|row| {
            let (low, high) = row
                .iter()
                .fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
            let scale = (high / 255.0 - low / 255.0).max(f32::MIN_POSITIVE);
            let zero = (-low / scale).round_ties_even().min(255.0);
            let back = move |v: &f32| {
                let q = ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0);
                (q - zero) * scale
            };
            row.iter().map(back).collect::<Vec<_>>()
        })
        .collect();
    let rounded = Tensor::new([3, 16], rows).unwrap();
    let exact = quantize_tensor(&weight, &Scheme::int8()).unwrap();
    let exact = product(&exact.dequantize().unwrap(), true);
    let (got, exact) = (run(&got, &x), run(&exact, &rounded));
    for row in 0..3 {
        let row = |y: &Tensor| y.slice(0, row, row + 1).unwrap();
        close(&row(&got), &row(&exact), 1e-5);
    }
}

/// Weights of unsigned bytes with zero points, in products with quantized activations.
#[test]
fn dynamic_products_take_asymmetric_weights() {
    let weight = random(1, &[16, 6]).to_vec::<f32>().unwrap();
    let weight: Vec<f32> = weight.into_iter().map(|w| w.abs() + 0.5).collect();
    let weight = Tensor::new([16, 6], weight).unwrap();
    let x = random(2, &[3, 16]);
    let float = run(&product(&weight, false), &x);
    let error = |scheme: Scheme| {
        let pass = QuantizeDynamic::new().weights(scheme);
        let got = run(&apply(&pass, product(&weight, false)), &x).to_f64s();
        let off = got.iter().zip(float.to_f64s());
        off.map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
    };
    let size = float.to_f64s().iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(error(Scheme::uint8()) < 0.02 * size);
    assert!(error(Scheme::uint8().per_tensor()) < 0.02 * size);
    for scheme in [Scheme::int4(), Scheme::fp8_e4m3(), Scheme::int8().group(4)] {
        let pass = QuantizeDynamic::new().weights(scheme);
        let refused = pass.apply(product(&weight, false), &mut Context::new());
        assert!(refused.is_err(), "{scheme}");
    }
}

/// Products and embeddings in one pass, and what rules leave alone.
#[test]
fn the_recommended_pass_takes_products_and_embeddings() {
    let mut m = ModelBuilder::new("model", 0);
    let ids = m.batch_of(DType::I64, "ids", [7]).unwrap();
    let x = m.layer("embed", Embedding::new(50, 16), ids).unwrap();
    let h = m.layer("fc1", Linear::new(32), x).unwrap();
    let h = m.gelu(h).unwrap();
    let y = m.layer("fc2", Linear::new(8), h).unwrap();
    m.output("y", y).unwrap();
    let graph = m.finish().unwrap();
    let ids: Vec<i64> = (0..21).map(|i| i * 7 % 50).collect();
    let ids = Tensor::new([3, 7], ids).unwrap();
    let float = run(&graph, &ids).to_f64s();
    let off = |pass: &QuantizeDynamic| {
        let got = run(&apply(pass, graph.clone()), &ids).to_f64s();
        let squares = got.iter().zip(&float).map(|(a, b)| (a - b).powi(2));
        (squares.sum::<f64>() / float.iter().map(|v| v * v).sum::<f64>()).sqrt()
    };
    let pass = QuantizeDynamic::recommended();
    assert!(off(&pass) < 0.02, "{}", off(&pass));
    let (_, report) = pass.apply(graph.clone(), &mut Context::new()).unwrap();
    assert_eq!(report.changed, 3);
    assert!(
        !report.notes.iter().any(|n| n.contains("float")),
        "{:?}",
        report.notes
    );

    for (name, changed) in [("embed", 2), ("fc2", 2)] {
        let pass = pass.clone().exclude(name);
        let (kept, report) = pass.apply(graph.clone(), &mut Context::new()).unwrap();
        assert_eq!(report.changed, changed);
        assert!(kept.find(&format!("{name}.weight")).is_ok());
    }
    let nowhere = pass.exclude("nowhere");
    let error = nowhere.apply(graph, &mut Context::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
}
