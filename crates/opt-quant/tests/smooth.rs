//! SmoothQuant keeps the function and helps where activations have outliers.

use opt_core::nn::{LayerNorm, Linear, ModelBuilder};
use opt_core::random::Philox;
use opt_core::{Backend, Context, DType, ErrorKind, Graph, Pass, Pipeline, Tensor};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_quant::{QuantizeDynamic, QuantizeStatic, SmoothQuant};

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let stream = Philox::new(seed);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f64> = (0..len).map(|i| stream.normal(0, i)).collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

/// A feed-forward block whose normalization makes two channels a hundred times as large as the
/// others; with a residual connection if `held`, so that the normalization's output is added too.
fn block(held: bool) -> Graph {
    let mut m = ModelBuilder::new("block", 1);
    let x = m.batch("x", [3, 16]).unwrap();
    let h = m.layer("norm", LayerNorm::new(), x).unwrap();
    let y = m.layer("up", Linear::new(32), h).unwrap();
    let y = m.gelu(y).unwrap();
    let mut y = m.layer("down", Linear::new(16), y).unwrap();
    if held {
        y = m.add(y, h).unwrap();
    }
    m.output("y", y).unwrap();
    let mut graph = m.finish().unwrap();
    let scale = graph.find("norm.weight").unwrap();
    let mut factors = vec![1f32; 16];
    (factors[3], factors[9]) = (100.0, 60.0);
    let factors = Tensor::new([16], factors).unwrap();
    graph.set_variable(scale, factors).unwrap();
    // What reads the large channels has small weights.
    let up = graph.find("up.weight").unwrap();
    let weight = graph.value(up).tensor().unwrap().to_f64s().into_iter();
    let weight: Vec<f64> = weight
        .enumerate()
        .map(|(i, w)| if matches!(i % 16, 3 | 9) { w * 0.01 } else { w })
        .collect();
    let weight = Tensor::from_f64s(DType::F32, [32, 16], &weight).unwrap();
    graph.set_variable(up, weight).unwrap();
    graph
}

fn run(graph: &Graph, x: &Tensor) -> Vec<f64> {
    let inputs = std::slice::from_ref(x);
    NdarrayBackend::new().run_once(graph, inputs).unwrap()[0].to_f64s()
}

fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    let noise: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (noise / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

#[test]
fn the_function_stays_and_quantizing_it_gets_better() {
    let backend = NdarrayBackend::new();
    let samples = TensorDataset::new(vec![random(2, &[64, 3, 16])]).unwrap();
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples);
    let x = random(3, &[32, 3, 16]);
    let exact = run(&block(false), &x);
    for smooth in [SmoothQuant::new(), SmoothQuant::new().alpha(0.5)] {
        let (graph, report) = smooth.apply(block(false), &mut cx).unwrap();
        assert_eq!(report.changed, 1, "the products after the normalization");
        assert!(report.notes.iter().any(|n| n.contains("down.weight")));
        assert!(relative_error(&exact, &run(&graph, &x)) < 1e-5);
        let apart = |graph: Graph, pass: &dyn Pass, cx: &mut Context<'_>| {
            let (small, _) = pass.apply(graph, cx).unwrap();
            relative_error(&exact, &run(&small, &x))
        };
        let dynamic = QuantizeDynamic::new().per_channel();
        let fixed = QuantizeStatic::new();
        for pass in [&dynamic as &dyn Pass, &fixed] {
            let before = apart(block(false), pass, &mut cx);
            let after = apart(graph.clone(), pass, &mut cx);
            assert!(after < 0.5 * before, "{}: {before} {after}", pass.name());
        }
    }
}

#[test]
fn factors_that_nothing_takes_are_multiplied_if_asked_for() {
    let backend = NdarrayBackend::new();
    let samples = TensorDataset::new(vec![random(2, &[64, 3, 16])]).unwrap();
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples);
    let error = SmoothQuant::new().apply(block(true), &mut cx).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    let smooth = SmoothQuant::new().with_multiplications();
    let (graph, report) = smooth.apply(block(true), &mut cx).unwrap();
    assert!(report.figures.contains_key("alpha of up.weight"));
    let x = random(3, &[32, 3, 16]);
    let exact = run(&block(true), &x);
    assert!(relative_error(&exact, &run(&graph, &x)) < 1e-5);
    let pipeline = Pipeline::new().then(smooth).then(QuantizeStatic::new());
    let (after, _) = pipeline.run(block(true), &mut cx).unwrap();
    assert!(relative_error(&exact, &run(&after, &x)) < 0.05);
    let error = SmoothQuant::new().alpha(1.5).apply(block(true), &mut cx);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
}
