//! Rotation keeps the function, spreads outliers and makes quantization better.

use opt_core::nn::{Init, LayerNorm, Linear, ModelBuilder, RmsNorm, TransformerEncoderLayer};
use opt_core::random::Philox;
use opt_core::{Backend, Context, DType, Graph, Pass, Tensor, TensorType, ValueId};
use opt_ndarray::NdarrayBackend;
use opt_quant::{QuantizeDynamic, QuantizeWeights, Rotate, Scheme};

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let stream = Philox::new(seed);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f64> = (0..len).map(|i| stream.normal(0, i)).collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

fn run(graph: &Graph, x: &Tensor) -> Vec<f64> {
    let inputs = std::slice::from_ref(x);
    NdarrayBackend::new().run_once(graph, inputs).unwrap()[0].to_f64s()
}

fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    let noise: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (noise / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

fn rotate(graph: &Graph, pass: &Rotate) -> (Graph, opt_core::Report) {
    pass.apply(graph.clone(), &mut Context::new()).unwrap()
}

/// Every one-dimensional parameter (scales and biases) away from its plain start.
fn shaken(mut graph: Graph) -> Graph {
    let vectors: Vec<(ValueId, Tensor)> = graph
        .variables()
        .filter(|(_, _, t)| t.rank() == 1)
        .map(|(id, v, t)| {
            let noise = random(id.index() as u64, t.shape()).to_f64s().into_iter();
            let scale = if v.name().contains("norm") { 0.5 } else { 0.1 };
            let sums = noise.zip(t.to_f64s()).map(|(n, v)| v + scale * n);
            let content = Tensor::from_f64s(DType::F32, t.shape(), &sums.collect::<Vec<_>>());
            (id, content.unwrap())
        })
        .collect();
    for (id, content) in vectors {
        graph.set_variable(id, content).unwrap();
    }
    graph
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Head,
    Mean,
}

/// Encoder layers over positions of an embedding, normalized before each branch.
fn encoder(width: usize, end: End) -> Graph {
    let mut m = ModelBuilder::new("encoder", 5);
    let x = m.batch("x", [6, 20]).unwrap();
    let h = m.layer("embed", Linear::new(width), x).unwrap();
    let position = m.parameter(
        "position",
        [6, width],
        &Init::Normal {
            mean: 0.0,
            std: 1.0,
        },
    );
    let mut h = m.add(h, position.unwrap()).unwrap();
    for i in 0..2 {
        let layer = TransformerEncoderLayer::new(2, 2 * width).norm_first(true);
        h = m.layer(&format!("layer{i}"), layer, h).unwrap();
    }
    h = m.layer("norm", LayerNorm::new(), h).unwrap();
    if end == End::Mean {
        h = m.mean(h, &[1], false).unwrap();
    }
    // Without a bias: that of the normalization needs a place.
    let y = m.layer("head", Linear::new(7).bias(false), h).unwrap();
    m.output("y", y).unwrap();
    shaken(m.finish().unwrap())
}

#[test]
fn the_function_of_an_encoder_stays() {
    let x = random(3, &[4, 6, 20]);
    // A power of two, 12 and 28 times one, and a size without a Hadamard matrix.
    for (width, hadamard) in [(16, 1.0), (48, 1.0), (56, 1.0), (18, 0.0)] {
        for end in [End::Head, End::Mean] {
            let graph = encoder(width, end);
            let exact = run(&graph, &x);
            let (rotated, report) = rotate(&graph, &Rotate::new().seed(9));
            let error = relative_error(&exact, &run(&rotated, &x));
            assert!(error < 1e-5, "{width}: {error}");
            assert_eq!(report.changed, 5);
            assert_eq!(report.figures["by Hadamard matrices"], hadamard);
            let online = f64::from(u8::from(end == End::Mean));
            assert_eq!(report.figures["products in each run"], online);
            let norms = rotated
                .nodes()
                .filter(|(_, n)| n.op().name() == "LayerNorm");
            assert_eq!(norms.count(), 0, "means are taken off by weights");
            // The rotation is one: weights are others than before.
            let name = "layer1.linear2.weight";
            let weight = |g: &Graph| g.value(g.find(name).unwrap()).tensor().unwrap().to_f64s();
            assert!(relative_error(&weight(&graph), &weight(&rotated)) > 0.5);
        }
    }
}

/// A decoder with one table for the embedding and the scores, normalized by root mean squares; its
/// stream is an output of the graph, too.
fn decoder(width: usize) -> Graph {
    let mut m = ModelBuilder::new("decoder", 6);
    let ids = m.input("ids", TensorType::new(DType::I64, [5])).unwrap();
    let table = m
        .parameter(
            "table",
            [11, width],
            &Init::Normal {
                mean: 0.0,
                std: 1.0,
            },
        )
        .unwrap();
    let mut h = m.gather(table, ids, 0).unwrap();
    for i in 0..2 {
        let n = m.layer(&format!("norm{i}"), RmsNorm::new(1e-6), h).unwrap();
        let up = m
            .layer(&format!("up{i}"), Linear::new(3 * width).bias(false), n)
            .unwrap();
        let gate = m
            .layer(&format!("gate{i}"), Linear::new(3 * width).bias(false), n)
            .unwrap();
        let gate = m.silu(gate).unwrap();
        let y = m.mul(up, gate).unwrap();
        let y = m
            .layer(&format!("down{i}"), Linear::new(width).bias(false), y)
            .unwrap();
        h = m.add(h, y).unwrap();
    }
    let n = m.layer("norm", RmsNorm::new(1e-6), h).unwrap();
    let y = m.matmul_t(n, table, false, true).unwrap();
    m.output("scores", y).unwrap();
    m.output("stream", h).unwrap();
    shaken(m.finish().unwrap())
}

#[test]
fn the_function_of_a_decoder_with_a_tied_table_stays() {
    let ids = Tensor::new([5], [3i64, 0, 10, 3, 7]).unwrap();
    for width in [16, 20, 24] {
        let graph = decoder(width);
        let (rotated, report) = rotate(&graph, &Rotate::new());
        assert_eq!(report.changed, 3);
        assert_eq!(report.figures["products in each run"], 1.0);
        let inputs = std::slice::from_ref(&ids);
        let outputs = |g: &Graph| NdarrayBackend::new().run_once(g, inputs).unwrap();
        for (a, b) in outputs(&graph).iter().zip(outputs(&rotated)) {
            let error = relative_error(&a.to_f64s(), &b.to_f64s());
            assert!(error < 1e-5, "{width}: {error}");
        }
    }
}

#[test]
fn networks_that_normalize_sums_are_refused_by_name() {
    let mut m = ModelBuilder::new("bert", 5);
    let mut h = m.batch("x", [6, 16]).unwrap();
    for i in 0..3 {
        let layer = TransformerEncoderLayer::new(2, 32);
        h = m.layer(&format!("layer{i}"), layer, h).unwrap();
    }
    m.output("y", h).unwrap();
    let graph = shaken(m.finish().unwrap());
    let mut cx = Context::new();
    let error = Rotate::new().apply(graph.clone(), &mut cx).unwrap_err();
    assert!(error.message().contains("layer1.norm1"), "{error}");
    // With products in each run it is right all the same.
    let (rotated, _) = rotate(&graph, &Rotate::new().online(100));
    let x = random(3, &[2, 6, 16]);
    let error = relative_error(&run(&graph, &x), &run(&rotated, &x));
    assert!(error < 1e-5, "{error}");

    let mut m = ModelBuilder::new("plain", 0);
    let x = m.batch("x", [4]).unwrap();
    let y = m.layer("fc", Linear::new(4), x).unwrap();
    m.output("y", y).unwrap();
    let error = Rotate::new()
        .apply(m.finish().unwrap(), &mut cx)
        .unwrap_err();
    assert_eq!(error.kind(), opt_core::ErrorKind::NoEffect);
}

/// The decoder with a channel of its stream forty times as large as the others, and one that
/// normalizations make small and weights large again.
fn planted(width: usize) -> Graph {
    let mut graph = decoder(width);
    let names: Vec<(ValueId, String, Tensor)> = graph
        .variables()
        .map(|(id, v, t)| (id, v.name().to_string(), t.clone()))
        .collect();
    for (id, name, content) in names {
        let shape = content.shape().to_vec();
        // Of the stream's channel, in weights of [outputs, inputs], tables and vectors.
        let factor = |i: usize| match (name.as_str(), i % width) {
            ("table", 3) => 40.0,
            ("norm.weight", 3) => 0.005,
            (n, _) if n.starts_with("down") && i / (3 * width) == 3 => 40.0,
            ("norm0.weight" | "norm1.weight", 9) => 0.1,
            (n, 9) if n.starts_with("up") || n.starts_with("gate") => 10.0,
            _ => 1.0,
        };
        let values = content.to_f64s().into_iter().enumerate();
        let values: Vec<f64> = values.map(|(i, v)| v * factor(i)).collect();
        let content = Tensor::from_f64s(DType::F32, shape, &values).unwrap();
        graph.set_variable(id, content).unwrap();
    }
    graph
}

#[test]
fn outliers_are_spread_and_rounding_costs_less() {
    let ids = Tensor::new([5], [3i64, 0, 10, 3, 7]).unwrap();
    let graph = planted(64);
    let (rotated, _) = rotate(&graph, &Rotate::new());
    let exact = run(&graph, &ids);
    assert!(relative_error(&exact, &run(&rotated, &ids)) < 1e-5);

    // What layers read: the largest entry of a token against the root mean square.
    let peak = |graph: &Graph| {
        let read: Vec<(String, ValueId)> = graph
            .nodes()
            .filter(|(_, n)| n.op().name() == "RmsNorm")
            .enumerate()
            .map(|(i, (_, n))| (format!("n{i}"), n.outputs()[0]))
            .collect();
        let watched = graph.extract(&read, false).unwrap();
        let tensors = NdarrayBackend::new()
            .run_once(&watched, std::slice::from_ref(&ids))
            .unwrap();
        let rows = tensors.iter().flat_map(|t| {
            let data = t.to_f64s();
            let rows: Vec<f64> = data
                .chunks(64)
                .map(|row| {
                    let largest = row.iter().fold(0f64, |m, v| m.max(v.abs()));
                    largest / (row.iter().map(|v| v * v).sum::<f64>() / 64.0).sqrt()
                })
                .collect();
            rows
        });
        rows.fold(0f64, f64::max)
    };
    let (before, after) = (peak(&graph), peak(&rotated));
    assert!(
        before > 5.5 && after < 0.6 * before,
        "{before} then {after}"
    );

    let mut cx = Context::new();
    let mut error = |graph: &Graph, pass: &dyn Pass| {
        let (quantized, _) = pass.apply(graph.clone(), &mut cx).unwrap();
        relative_error(&exact, &run(&quantized, &ids))
    };
    let int4 = QuantizeWeights::new(Scheme::int4());
    let (before, after) = (error(&graph, &int4), error(&rotated, &int4));
    assert!(after < 0.7 * before, "4-bit weights: {before} then {after}");
    let int8 = QuantizeDynamic::new();
    let (before, after) = (error(&graph, &int8), error(&rotated, &int8));
    assert!(
        after < 0.7 * before,
        "8-bit activations: {before} then {after}"
    );
}
