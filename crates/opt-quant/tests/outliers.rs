//! Outlier channels apart: the function stays, and quantizing the rest costs what the formula says.

use opt_core::data::Dataset;
use opt_core::nn::{Linear, ModelBuilder};
use opt_core::random::Philox;
use opt_core::{Backend, Context, DType, ErrorKind, Graph, Pass, Tensor};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_quant::{
    Config, QuantizeDynamic, QuantizeStatic, QuantizeWeights, Rules, Scheme, SplitOutliers,
};

const WIDTH: usize = 64;
const OUTLIERS: [usize; 3] = [5, 20, 41];

fn random(seed: u64, shape: &[usize], size: impl Fn(usize) -> f64) -> Tensor {
    let stream = Philox::new(seed);
    let len = shape.iter().product::<usize>();
    let data: Vec<f64> = (0..len)
        .map(|i| stream.normal(0, i as u64) * size(i))
        .collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

/// Rows whose entries in three channels are fifty times as large as in the others.
fn rows(n: usize) -> Tensor {
    random(1, &[n, WIDTH], |i| {
        if OUTLIERS.contains(&(i % WIDTH)) {
            50.0
        } else {
            1.0
        }
    })
}

/// Two layers that read the input, and one after them.
fn network() -> Graph {
    let mut m = ModelBuilder::new("network", 2);
    let x = m.batch("x", [WIDTH]).unwrap();
    let a = m.layer("a", Linear::new(32), x).unwrap();
    let b = m.layer("b", Linear::new(32), x).unwrap();
    let h = m.add(a, b).unwrap();
    let h = m.relu(h).unwrap();
    let y = m.layer("c", Linear::new(8), h).unwrap();
    m.output("y", y).unwrap();
    m.finish().unwrap()
}

fn one_layer() -> Graph {
    let mut m = ModelBuilder::new("layer", 2);
    let x = m.batch("x", [WIDTH]).unwrap();
    let y = m.layer("fc", Linear::new(48).bias(false), x).unwrap();
    m.output("y", y).unwrap();
    m.finish().unwrap()
}

fn run(graph: &Graph, x: &Tensor) -> Vec<f64> {
    let inputs = std::slice::from_ref(x);
    NdarrayBackend::new().run_once(graph, inputs).unwrap()[0].to_f64s()
}

fn rms(a: &[f64], b: &[f64]) -> f64 {
    let noise: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (noise / a.len() as f64).sqrt()
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    rms(a, b) / rms(a, &vec![0.0; a.len()])
}

/// Applies a pass with the rows as calibration examples.
fn apply(pass: &dyn Pass, graph: &Graph) -> opt_core::Result<(Graph, opt_core::Report)> {
    let backend = NdarrayBackend::new();
    let data = TensorDataset::new(vec![rows(256)]).unwrap();
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&data);
    pass.apply(graph.clone(), &mut cx)
}

fn count(graph: &Graph, op: &str) -> usize {
    graph.nodes().filter(|(_, n)| n.op().name() == op).count()
}

#[test]
fn the_function_stays_and_inputs_are_split_once() {
    let graph = network();
    let x = rows(40);
    let exact = run(&graph, &x);
    let (split, report) = apply(&SplitOutliers::above(6.0).exclude("c.weight"), &graph).unwrap();
    assert_eq!(report.changed, 2);
    assert_eq!(report.figures["share of outlier channels"], 3.0 / 64.0);
    assert_eq!((count(&split, "Gather"), count(&split, "MatMul")), (2, 5));
    assert!(relative(&exact, &run(&split, &x)) < 1e-6);
    let weight = split.find("a.weight.outliers").unwrap();
    assert_eq!(split.type_of(weight).to_string(), "f32[32,3]");
    for pass in [SplitOutliers::largest(3), SplitOutliers::largest_weights(3)] {
        let (split, report) = apply(&pass, &graph).unwrap();
        assert_eq!(report.changed, 3);
        assert!(relative(&exact, &run(&split, &x)) < 1e-6);
    }
    // By weights, without examples.
    let pass = SplitOutliers::largest_weights(3);
    assert!(!pass.needs().calibration);
    assert!(pass.apply(graph.clone(), &mut Context::new()).is_ok());
}

#[test]
fn what_would_do_nothing_is_an_error() {
    let graph = one_layer();
    for pass in [
        SplitOutliers::above(1e6),
        SplitOutliers::above(1e-6),
        SplitOutliers::largest(0),
        SplitOutliers::largest(WIDTH),
    ] {
        let error = apply(&pass, &graph).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoEffect, "{error}");
    }
    for magnitude in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(apply(&SplitOutliers::above(magnitude), &graph).is_err());
    }
    assert!(apply(&SplitOutliers::largest(3).exclude("nothing"), &graph).is_err());

    // A NaN is told, also where later batches have none.
    let mut values = rows(256).to_f64s();
    values[7] = f64::NAN;
    let data = Unchecked(values);
    let backend = NdarrayBackend::new();
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&data);
    let error = SplitOutliers::largest(3).apply(graph, &mut cx).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
}

/// Rows that may hold anything.
struct Unchecked(Vec<f64>);

impl Dataset for Unchecked {
    fn len(&self) -> usize {
        self.0.len() / WIDTH
    }

    fn get(&self, index: usize) -> opt_core::Result<Vec<Tensor>> {
        let row = &self.0[index * WIDTH..(index + 1) * WIDTH];
        Ok(vec![Tensor::from_f64s(DType::F32, [WIDTH], row)?])
    }
}

/// The root mean square of the error that rounding some columns costs: half a step is uniform noise of
/// `step^2 / 12`, in the activations (one scale for the tensor, a range with 0) times the weights, and
/// in the weights (one scale for each output) times the activations.
fn predicted(x: &Tensor, weight: &Tensor, columns: &[usize]) -> f64 {
    let (x, w) = (x.to_f64s(), weight.to_f64s());
    let n = x.len() / WIDTH;
    let entries = || (0..n).flat_map(|r| columns.iter().map(move |&c| r * WIDTH + c));
    let low = entries().map(|i| x[i]).fold(0.0, f64::min);
    let high = entries().map(|i| x[i]).fold(0.0, f64::max);
    let step = (high - low) / 255.0;
    let squares: f64 = entries().map(|i| x[i] * x[i]).sum::<f64>() / n as f64;
    let outputs = w.len() / WIDTH;
    let noise = (0..outputs).map(|o| {
        let row: Vec<f64> = columns.iter().map(|&c| w[o * WIDTH + c]).collect();
        let energy: f64 = row.iter().map(|v| v * v).sum();
        let most = row.iter().fold(0f64, |m, v| m.max(v.abs()));
        energy * step * step / 12.0 + squares * (most / 127.0).powi(2) / 12.0
    });
    (noise.sum::<f64>() / outputs as f64).sqrt()
}

#[test]
fn the_error_drops_by_the_predicted_factor() {
    let graph = one_layer();
    let x = rows(256);
    let weight = graph
        .value(graph.find("fc.weight").unwrap())
        .tensor()
        .unwrap();
    let exact = run(&graph, &x);
    let (split, _) = apply(&SplitOutliers::above(6.0), &graph).unwrap();

    let all: Vec<usize> = (0..WIDTH).collect();
    let rest: Vec<usize> = all
        .iter()
        .copied()
        .filter(|c| !OUTLIERS.contains(c))
        .collect();
    let error = |graph: &Graph, rules: Rules| {
        let pass = QuantizeDynamic::new().per_channel().rules(rules);
        let (quantized, _) = apply(&pass, graph).unwrap();
        rms(&exact, &run(&quantized, &x))
    };
    let before = error(&graph, Rules::new());
    let after = error(&split, SplitOutliers::keep());
    let expected = [predicted(&x, weight, &all), predicted(&x, weight, &rest)];
    assert!(
        (before / expected[0] - 1.0).abs() < 0.1,
        "{before} {expected:?}"
    );
    assert!(
        (after / expected[1] - 1.0).abs() < 0.1,
        "{after} {expected:?}"
    );
    assert!(before / after > 20.0, "{before} then {after}");
}

#[test]
fn static_and_weight_only_quantization_gain_too() {
    let graph = one_layer();
    let x = rows(256);
    let exact = run(&graph, &x);
    let (split, _) = apply(&SplitOutliers::largest(3), &graph).unwrap();
    let error = |graph: &Graph, rules: Rules| {
        let pass = QuantizeStatic::with(Config::default().rules(rules));
        relative(&exact, &run(&apply(&pass, graph).unwrap().0, &x))
    };
    let (before, after) = (
        error(&graph, Rules::new()),
        error(&split, SplitOutliers::keep()),
    );
    assert!(after < 0.1 * before, "static: {before} then {after}");

    // Large weights in a channel spoil groups of four bits.
    let mut graph = graph;
    let id = graph.find("fc.weight").unwrap();
    let large = random(7, &[48, WIDTH], |i| {
        if OUTLIERS.contains(&(i % WIDTH)) {
            20.0
        } else {
            1.0
        }
    });
    graph.set_variable(id, large).unwrap();
    let even = random(8, &[256, WIDTH], |_| 1.0);
    let exact = run(&graph, &even);
    let (split, _) = apply(&SplitOutliers::largest_weights(3), &graph).unwrap();
    let error = |graph: &Graph, rules: Rules| {
        let pass = QuantizeWeights::new(Scheme::int4()).rules(rules);
        relative(&exact, &run(&apply(&pass, graph).unwrap().0, &even))
    };
    let (before, after) = (
        error(&graph, Rules::new()),
        error(&split, SplitOutliers::keep()),
    );
    assert!(after < 0.3 * before, "4 bits: {before} then {after}");
}
