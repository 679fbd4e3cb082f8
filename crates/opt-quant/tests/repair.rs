//! Bias correction, learned rounding, and training with learned ranges and batch normalization.

use opt_core::nn::{BatchNorm, Conv, Linear, ModelBuilder};
use opt_core::random::Philox;
use opt_core::{Backend, Context, DType, ErrorKind, Fact, FactKind, Graph, Pass, Pipeline, Tensor};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_quant::{
    AdaRound, Config, ConvertQat, CorrectBias, FreezeBatchNorm, ObserverKind, PrepareQat,
    QuantizeAware, QuantizeStatic, Scheme,
};
use opt_train::{Adam, Constant, CrossEntropy, FineTune, Trainer};
use proptest::prelude::*;

fn random(seed: u64, shape: &[usize], size: f64) -> Tensor {
    let stream = Philox::new(seed);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f64> = (0..len).map(|i| stream.normal(0, i) * size).collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

/// Random entries of which most are positive, so that rounding moves means.
fn positive(seed: u64, shape: &[usize]) -> Tensor {
    let values = random(seed, shape, 1.0).to_f64s();
    let data: Vec<f64> = values.into_iter().map(|v| v.abs() + 0.1).collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

fn cnn(seed: u64) -> Graph {
    let mut m = ModelBuilder::new("cnn", seed);
    let x = m.batch("x", [2, 6, 6]).unwrap();
    let y = m
        .layer("c1", Conv::new(4, [3, 3]).pad(1).bias(false), x)
        .unwrap();
    let y = m.layer("n1", BatchNorm::new(), y).unwrap();
    let y = m.relu(y).unwrap();
    let y = m
        .layer("c2", Conv::new(4, [3, 3]).pad(1).groups(4), y)
        .unwrap();
    let y = m.layer("n2", BatchNorm::new(), y).unwrap();
    let y = m.relu(y).unwrap();
    let y = m.max_pool(y, 2).unwrap();
    let y = m.flatten(y, 1).unwrap();
    let y = m.layer("fc", Linear::new(3), y).unwrap();
    m.output("y", y).unwrap();
    let mut graph = m.finish().unwrap();
    // Statistics and factors as after training, one of them 0.
    for (k, name) in ["n1", "n2"].into_iter().enumerate() {
        for (part, content) in [
            (
                "weight",
                Tensor::new([4], [0.5f32, -1.5, 0.0, 2.0]).unwrap(),
            ),
            ("bias", random(seed + 7 + k as u64, &[4], 0.5)),
            ("running_mean", random(seed + 9 + k as u64, &[4], 0.5)),
            (
                "running_var",
                Tensor::new([4], [0.5f32, 2.0, 1.0, 0.1]).unwrap(),
            ),
        ] {
            let id = graph.find(&format!("{name}.{part}")).unwrap();
            graph.set_variable(id, content).unwrap();
        }
    }
    graph
}

fn data(n: usize) -> TensorDataset {
    let labels: Vec<i64> = (0..n as i64).map(|i| i % 3).collect();
    TensorDataset::new(vec![
        positive(9, &[n, 2, 6, 6]),
        Tensor::new([n], labels).unwrap(),
    ])
    .unwrap()
}

fn run(graph: &Graph, x: &Tensor) -> Vec<f64> {
    let inputs = std::slice::from_ref(x);
    NdarrayBackend::new().run_once(graph, inputs).unwrap()[0].to_f64s()
}

fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    let noise: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (noise / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

/// The mean of each output over a batch.
fn means(graph: &Graph, x: &Tensor) -> Vec<f64> {
    let y = run(graph, x);
    let n = x.shape()[0];
    let width = y.len() / n;
    let mean = |c: usize| y.iter().skip(c).step_by(width).sum::<f64>() / n as f64;
    (0..width).map(mean).collect()
}

#[test]
fn corrected_biases_give_outputs_their_means_back() {
    let (backend, samples) = (NdarrayBackend::new(), data(96));
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples);
    let config = Config::default().weights(Scheme::int4().per_tensor().bits(3));
    let quantize = QuantizeStatic::with(config.clone());
    let (plain, _) = quantize.apply(cnn(1), &mut cx).unwrap();
    let pipeline = Pipeline::new()
        .then(CorrectBias::new(config))
        .then(quantize);
    let (corrected, reports) = pipeline.run(cnn(1), &mut cx).unwrap();
    assert_eq!(reports[0].1.changed, 3);
    assert!(reports[0].1.figures["shift of fc.weight"] > 0.0);
    let x = &samples.fields()[0];
    let exact = means(&cnn(1), x);
    let apart = |graph: &Graph| {
        let found = means(graph, x);
        let each = exact.iter().zip(&found).map(|(a, b)| (a - b).abs());
        each.fold(0.0f64, f64::max)
    };
    let (before, after) = (apart(&plain), apart(&corrected));
    assert!(after < 0.05 * before, "{before} before, {after} after");
    let x = positive(77, &[64, 2, 6, 6]);
    let (a, b) = (run(&cnn(1), &x), run(&corrected, &x));
    assert!(relative_error(&a, &b) < relative_error(&a, &run(&plain, &x)));
}

/// One neuron of six weights.
fn neuron(seed: u64) -> Graph {
    let mut m = ModelBuilder::new("neuron", 0);
    let x = m.batch("x", [6]).unwrap();
    let y = m.layer("fc", Linear::new(1), x).unwrap();
    m.output("y", y).unwrap();
    let mut graph = m.finish().unwrap();
    let w = graph.find("fc.weight").unwrap();
    graph.set_variable(w, random(seed, &[1, 6], 1.0)).unwrap();
    graph
}

#[test]
fn learned_rounding_is_near_the_best_of_all_roundings() {
    let backend = NdarrayBackend::new();
    let mut ratios = Vec::new();
    for seed in 0..6 {
        // Inputs that hang together, so that errors can cancel.
        let base = positive(seed + 50, &[256, 6]);
        let samples = TensorDataset::new(vec![base.clone()]).unwrap();
        let mut cx = Context::new()
            .with_backend(&backend)
            .with_calibration(&samples);
        let config = Config::default().weights(Scheme::int4().per_channel().bits(3));
        let learn = |steps: usize, cx: &mut Context<'_>| {
            let pass = AdaRound::new(config.clone()).iterations(steps);
            let (graph, report) = pass.apply(neuron(seed), cx).unwrap();
            let w = graph.find("fc.weight").unwrap();
            let fact = graph.facts().get(w, FactKind::Grid).cloned().unwrap();
            let content = graph.value(w).tensor().unwrap().to_f64s();
            (content, fact, report.figures["error of fc.weight"])
        };
        let (learned, fact, share) = learn(1000, &mut cx);
        assert_eq!(learned, learn(1000, &mut cx).0, "the same every time");
        assert!(share <= 1.0);
        let Fact::Grid { scale, .. } = fact else {
            panic!("no grid")
        };
        let scale = scale.to_f64s()[0];
        let exact = random(seed, &[1, 6], 1.0).to_f64s();
        let rows = base.to_f64s();
        let error = |w: &[f64]| {
            let each = rows.chunks(6).map(|x| {
                let sum: f64 = x
                    .iter()
                    .zip(w.iter().zip(&exact))
                    .map(|(x, (a, b))| x * (a - b))
                    .sum();
                sum * sum
            });
            each.sum::<f64>()
        };
        let floor: Vec<f64> = exact.iter().map(|w| (w / scale).floor()).collect();
        let all = (0..64u32).map(|mask| {
            let w: Vec<f64> = (0..6)
                .map(|i| (floor[i] + f64::from(mask >> i & 1)).clamp(-4.0, 3.0) * scale)
                .collect();
            error(&w)
        });
        let best = all.fold(f64::INFINITY, f64::min);
        let (nearest, _, _) = learn(0, &mut cx);
        assert!(error(&learned) <= error(&nearest) * 1.001);
        ratios.push((error(&learned) / best, error(&nearest) / best));
    }
    let geometric = |of: &dyn Fn(&(f64, f64)) -> f64| {
        (ratios.iter().map(|r| of(r).ln()).sum::<f64>() / ratios.len() as f64).exp()
    };
    let (learned, nearest) = (geometric(&|r| r.0), geometric(&|r| r.1));
    // Some neurons have nothing to gain.
    assert!(learned < 1.2, "{learned} times the best: {ratios:?}");
    assert!(nearest > 1.5, "{nearest} times the best: {ratios:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn quantizing_keeps_the_learned_rounding(seed in 0u64..1000, per_channel: bool, wide: bool) {
        let (backend, samples) = (NdarrayBackend::new(), data(32));
        let mut cx = Context::new().with_backend(&backend).with_calibration(&samples).with_seed(seed);
        let scheme = if wide { Scheme::int8() } else { Scheme::int4() };
        let scheme = if per_channel { scheme.per_channel() } else { scheme.per_tensor() };
        let config = Config::default().weights(scheme);
        let pass = AdaRound::new(config.clone()).iterations(60).samples(200);
        let (rounded, report) = pass.apply(cnn(seed), &mut cx).unwrap();
        prop_assert!(report.figures.values().all(|&share| share <= 1.0));
        let (small, _) = QuantizeStatic::with(config).apply(rounded.clone(), &mut cx).unwrap();
        for name in ["c1.weight", "c2.weight", "fc.weight"] {
            let exact = rounded.value(rounded.find(name).unwrap()).tensor().unwrap();
            let part = |what: &str| {
                let found = small.find(&format!("{name}.{what}")).unwrap();
                small.value(found).tensor().unwrap().to_f64s()
            };
            let (q, s) = (part("q"), part("s"));
            let inner = q.len() / s.len();
            for (i, w) in exact.to_f64s().into_iter().enumerate() {
                prop_assert!((w - q[i] * s[i / inner]).abs() < 1e-6);
            }
        }
        // Another grid than the one that it was rounded for.
        let other = Config::default().weights(Scheme::int8().per_tensor().bits(5));
        let error = QuantizeStatic::with(other).apply(rounded, &mut cx).unwrap_err();
        prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

/// Weights and activations of four bits with learned scales.
fn four_bits() -> Config {
    Config::default()
        .weights(Scheme::int4().per_channel())
        .activations(Scheme::activations().bits(4))
        .observer(ObserverKind::Mse)
        .learn_scales()
        .learn_ranges()
}

fn tune(epochs: u64) -> FineTune {
    let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(0.01));
    FineTune(trainer.epochs(epochs).batch_size(16))
}

#[test]
fn learned_ranges_move_and_agree_with_the_integers() {
    let (backend, samples) = (NdarrayBackend::new(), data(64));
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples)
        .with_training(&samples);
    let config = four_bits();
    let prepare = PrepareQat {
        config: config.clone(),
    };
    let (prepared, _) = prepare.apply(cnn(3), &mut cx).unwrap();
    let scale = prepared.find("x.scale").unwrap();
    let (trained, _) = tune(3).apply(prepared.clone(), &mut cx).unwrap();
    let of = |graph: &Graph| graph.value(scale).tensor().unwrap().item().unwrap();
    assert_ne!(of(&prepared), of(&trained));
    let (small, _) = ConvertQat { config }
        .apply(trained.clone(), &mut cx)
        .unwrap();
    assert_eq!(small.variables().count(), 0);
    let x = positive(5, &[16, 2, 6, 6]);
    let (a, b) = (run(&trained, &x), run(&small, &x));
    // An activation on the edge between two levels may fall to the other side.
    assert!(relative_error(&a, &b) < 0.03, "{}", relative_error(&a, &b));
    let integers = small.nodes().filter(|(_, n)| n.op().name() == "Quantize");
    for (_, node) in integers {
        let q = node.outputs()[0];
        let g = small.extract(&[("q".into(), q)], false).unwrap();
        assert!(run(&g, &x).iter().all(|&v| (0.0..=15.0).contains(&v)));
    }
}

#[test]
fn trained_batch_normalization_is_rounded_as_it_will_be_folded() {
    let (backend, samples) = (NdarrayBackend::new(), data(64));
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples)
        .with_training(&samples);
    let x = positive(5, &[16, 2, 6, 6]);
    for config in [Config::default(), four_bits()] {
        let folded = PrepareQat {
            config: config.clone(),
        };
        let config = config.train_batch_norm();
        let trained = PrepareQat {
            config: config.clone(),
        };
        let (a, _) = folded.apply(cnn(4), &mut cx).unwrap();
        let (b, _) = trained.apply(cnn(4), &mut cx).unwrap();
        let apart = relative_error(&run(&a, &x), &run(&b, &x));
        assert!(apart < 1e-2, "{apart}");
        let (b, _) = tune(3).apply(b, &mut cx).unwrap();
        let mean = |g: &Graph| {
            let id = g.find("n1.running_mean").unwrap();
            g.value(id).tensor().unwrap().to_f64s()
        };
        assert_ne!(mean(&b), mean(&cnn(4)), "statistics go on");
        let freeze = FreezeBatchNorm {
            config: config.clone(),
        };
        let (frozen, report) = freeze.apply(b.clone(), &mut cx).unwrap();
        assert_eq!(report.changed, 2);
        assert!(frozen.nodes().all(|(_, n)| n.op().name() != "BatchNorm"));
        let apart = relative_error(&run(&b, &x), &run(&frozen, &x));
        assert!(apart < 1e-2, "{apart}");
        let convert = ConvertQat {
            config: config.clone(),
        };
        for graph in [b, frozen] {
            let (small, _) = convert.apply(graph.clone(), &mut cx).unwrap();
            let apart = relative_error(&run(&graph, &x), &run(&small, &x));
            assert!(apart < 0.03, "{apart}");
        }
        let whole = QuantizeAware::new(config, tune(1)).then_frozen(tune(1));
        let (small, _) = whole.apply(cnn(4), &mut cx).unwrap();
        assert!(small.nodes().all(|(_, n)| n.op().name() != "FakeQuantize"));
        let error = freeze.apply(cnn(4), &mut cx).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoEffect);
    }
}
