//! Calibration in parts, from files, and without examples.

use opt_core::nn::{Linear, ModelBuilder};
use opt_core::{Backend, Context, DType, ErrorKind, Graph, Pass, Tensor};
use opt_data::{Subset, TensorDataset};
use opt_ndarray::NdarrayBackend;
use opt_quant::{Config, Observations, ObserverKind, QuantizeStatic};
use proptest::prelude::*;

const KINDS: [ObserverKind; 5] = [
    ObserverKind::MinMax,
    ObserverKind::MovingAverage(0.01),
    ObserverKind::Percentile(0.999),
    ObserverKind::Kl,
    ObserverKind::Mse,
];

/// Two layers with a bounded function between.
fn network(relu6: bool) -> Graph {
    let mut m = ModelBuilder::new("network", 3);
    let x = m.batch("x", [8]).unwrap();
    let h = m.layer("fc1", Linear::new(16), x).unwrap();
    let h = match relu6 {
        true => {
            let (zero, six) = (
                m.constant(Tensor::scalar(0f32)),
                m.constant(Tensor::scalar(6f32)),
            );
            let low = m.maximum(h, zero).unwrap();
            m.minimum(low, six).unwrap()
        }
        false => m.relu(h).unwrap(),
    };
    let y = m.layer("fc2", Linear::new(4), h).unwrap();
    m.output("y", y).unwrap();
    m.finish().unwrap()
}

fn data(n: usize) -> TensorDataset {
    let stream = opt_core::random::Philox::new(11);
    let values: Vec<f64> = (0..8 * n as u64).map(|i| stream.normal(1, i)).collect();
    TensorDataset::new(vec![
        Tensor::from_f64s(DType::F32, [n, 8], &values).unwrap(),
    ])
    .unwrap()
}

fn observe(config: &Config, graph: &Graph, data: &dyn opt_core::data::Dataset) -> Observations {
    let backend = NdarrayBackend::new();
    let cx = Context::new().with_backend(&backend).with_calibration(data);
    config.observe(graph, &cx).unwrap()
}

fn config(kind: ObserverKind) -> Config {
    let mut config = Config::default().observer(kind);
    config.calibration.batch_size = 8;
    config
}

/// The scales and zero points of a quantized graph.
fn constants(graph: &Graph) -> Vec<(String, Tensor)> {
    let all = graph.values().filter_map(|(_, v)| {
        let tensor = v.tensor()?.clone();
        Some((v.name().to_string(), tensor))
    });
    all.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Parts in any order, by way of text, give the state of one pass.
    #[test]
    fn parts_merge_to_one_pass(cuts in (0usize..=9, 0usize..=9), turn in 0usize..3) {
        let graph = network(false);
        let all = data(80);
        let (one, two) = (1 + cuts.0.min(cuts.1), 2 + cuts.0.max(cuts.1));
        // Shards end where batches do, which matters to averages.
        let bounds = [0, one.min(8) * 8, two.min(9) * 8, 80];
        for kind in KINDS {
            let config = config(kind);
            let whole = observe(&config, &graph, &all);
            let parts: Vec<Observations> = bounds
                .windows(2)
                .map(|w| Subset::new(&all, (w[0]..w[1]).collect::<Vec<_>>()).unwrap())
                .map(|part| observe(&config, &graph, &part))
                .map(|part| serde_json::from_str(&serde_json::to_string(&part).unwrap()).unwrap())
                .collect();
            let average = matches!(kind, ObserverKind::MovingAverage(_));
            // The order of parts is that of the data where it matters.
            let start = if average { 0 } else { turn };
            let mut merged = parts[start].clone();
            for i in 1..3 {
                merged.merge(&parts[(start + i) % 3]).unwrap();
            }
            prop_assert_eq!(merged.examples(), 80);
            if !average {
                prop_assert_eq!(&merged, &whole);
                continue;
            }
            for (name, _) in whole.values() {
                let scheme = config.activations;
                let (a, b) = (whole.range(name, &scheme).unwrap(), merged.range(name, &scheme).unwrap());
                prop_assert!((a.0 - b.0).abs() < 1e-12 && (a.1 - b.1).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn observations_from_a_file_quantize_like_examples() {
    let (graph, all) = (network(false), data(40));
    let backend = NdarrayBackend::new();
    let file = std::env::temp_dir().join(format!("opt-observations-{}", std::process::id()));
    for kind in KINDS {
        let config = config(kind);
        let mut cx = Context::new().with_backend(&backend).with_calibration(&all);
        let pass = QuantizeStatic::with(config.clone());
        let (direct, _) = pass.apply(graph.clone(), &mut cx).unwrap();
        observe(&config, &graph, &all).save(&file).unwrap();
        let read = Observations::load(&file).unwrap();
        let pass = QuantizeStatic::with(config.observations(read));
        assert!(!pass.needs().calibration && !pass.needs().backend);
        let (later, _) = pass.apply(graph.clone(), &mut Context::new()).unwrap();
        assert_eq!(constants(&direct), constants(&later), "{kind:?}");
    }
    std::fs::write(&file, "{\"version\":2,\"examples\":0,\"values\":{}}").unwrap();
    let error = Observations::load(&file).unwrap_err();
    assert!(error.message().contains("version 2"), "{error}");
    for text in [
        "",
        "{}",
        "[]",
        "{\"version\":1,\"examples\":1,\"values\":{\"x\":{\"min_max\":{\"range\":[1,0]}}}}",
        "{\"version\":1,\"examples\":1,\"values\":{\"x\":{\"min_max\":{\"range\":[0,1e999]}}}}",
        "{\"version\":1,\"examples\":1,\"values\":{\"x\":{\"percentile\":{\"share\":2,\
         \"histogram\":{\"exponent\":0,\"range\":null,\"zeros\":0,\"bins\":[]}}}}}",
        "{\"version\":1,\"examples\":1,\"values\":{\"x\":{\"moving_average\":{\"constant\":0.1,\
         \"seen\":{\"batches\":0,\"first\":[0,1],\"average\":[0,1]}}}}}",
    ] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(
            Observations::load(&file).unwrap_err().kind(),
            ErrorKind::Data,
            "{text}"
        );
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(Observations::load(&file).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn what_does_not_belong_together_is_not_merged() {
    let (graph, all) = (network(false), data(16));
    let whole = observe(&config(ObserverKind::Kl), &graph, &all);
    let mut other = whole.clone();
    let min_max = observe(&config(ObserverKind::MinMax), &graph, &all);
    assert!(other.merge(&min_max).is_err());
    let fewer = config(ObserverKind::Kl).exclude("fc2");
    let fewer = observe(&fewer, &graph, &all);
    assert!(other.merge(&fewer).is_err());
    assert_eq!(other, whole, "nothing is changed");
    // Observations that lack a value name it.
    let pass = QuantizeStatic::with(Config::default().observations(fewer));
    let error = pass.apply(graph, &mut Context::new()).unwrap_err();
    assert!(error.message().contains("not observed"), "{error}");
}

#[test]
fn known_ranges_need_no_examples() {
    let graph = network(true);
    let config = Config::default().range("x", -4.0, 4.0);
    for config in [config.clone(), config.clone().without_examples()] {
        let pass = QuantizeStatic::with(config);
        let (int8, _) = pass.apply(graph.clone(), &mut Context::new()).unwrap();
        let scales: Vec<f64> = int8
            .nodes()
            .filter(|(_, n)| n.op().name() == "Quantize")
            .map(|(_, n)| int8.value(n.inputs()[1]).tensor().unwrap().item().unwrap())
            .collect();
        let expected = [8.0 / 255.0, 6.0 / 255.0].map(|s: f64| f64::from(s as f32));
        assert_eq!(scales, expected);
        // It computes what the network does.
        let x = data(32).batch_of(32);
        let run = |g: &Graph| {
            NdarrayBackend::new()
                .run_once(g, std::slice::from_ref(&x))
                .unwrap()[0]
                .to_f64s()
        };
        let (exact, near) = (run(&graph), run(&int8));
        let noise: f64 = exact.iter().zip(&near).map(|(a, b)| (a - b).powi(2)).sum();
        let signal: f64 = exact.iter().map(|a| a * a).sum();
        assert!(noise / signal < 1e-3, "{}", noise / signal);
    }
    // Half a range is not enough, and what is missing is named.
    let relu = network(false);
    let pass = QuantizeStatic::with(config.clone().without_examples());
    let error = pass.apply(relu.clone(), &mut Context::new()).unwrap_err();
    let hidden = relu.nodes().find(|(_, n)| n.op().name() == "Relu").unwrap();
    let name = relu.value(hidden.1.outputs()[0]).name();
    assert!(error.message().contains(name), "{error}");
    assert!(!error.message().contains("\"x\""), "{error}");
    // Without the option an incomplete graph asks for examples.
    let error = QuantizeStatic::with(config.clone())
        .apply(relu, &mut Context::new())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Pipeline);
    for (name, low, high) in [("nothing", 0.0, 1.0), ("x", 1.0, 0.0), ("x", f64::NAN, 0.0)] {
        let config = Config::default().range(name, low, high).without_examples();
        let pass = QuantizeStatic::with(config);
        assert!(pass.apply(graph.clone(), &mut Context::new()).is_err());
    }
}

#[test]
fn given_ranges_go_before_examples() {
    let (graph, all) = (network(false), data(16));
    let backend = NdarrayBackend::new();
    let config = Config::default().range("x", -100.0, 155.0);
    let mut cx = Context::new().with_backend(&backend).with_calibration(&all);
    let (int8, _) = QuantizeStatic::with(config).apply(graph, &mut cx).unwrap();
    let first = int8
        .nodes()
        .find(|(_, n)| n.op().name() == "Quantize")
        .unwrap();
    let scale = int8.value(first.1.inputs()[1]).tensor().unwrap();
    assert_eq!(scale.item().unwrap(), 1.0);
}

trait First {
    fn batch_of(&self, n: usize) -> Tensor;
}

impl First for TensorDataset {
    fn batch_of(&self, n: usize) -> Tensor {
        let indices: Vec<usize> = (0..n).collect();
        opt_core::data::Dataset::batch(self, &indices)
            .unwrap()
            .remove(0)
    }
}
