//! A small convolutional network through static and quantization-aware quantization.

use opt_core::ops::{Op, Window};
use opt_core::{
    Backend, Context, DType, Dim, ErrorKind, Graph, GraphBuilder, Pass, Shape, Tensor, TensorType,
};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_quant::{
    Config, ConvertQat, Mse, ObserverKind, PrepareQat, QuantizeAware, QuantizeStatic, Scheme,
};
use opt_train::{Adam, Constant, Cosine, CrossEntropy, FineTune, Trainer};

fn random(step: u64, shape: &[usize], size: f64) -> Tensor {
    let stream = opt_core::random::Philox::new(4);
    let len = shape.iter().product::<usize>() as u64;
    let data: Vec<f64> = (0..len).map(|i| stream.normal(step, i) * size).collect();
    Tensor::from_f64s(DType::F32, shape, &data).unwrap()
}

fn cnn() -> Graph {
    let mut b = GraphBuilder::new("cnn");
    let shape = Shape::new([Dim::from("batch"), 1.into(), 8.into(), 8.into()]);
    let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
    let w1 = b
        .variable("c1.weight", random(0, &[4, 1, 3, 3], 0.4))
        .unwrap();
    let b1 = b.variable("c1.bias", random(1, &[4], 0.2)).unwrap();
    let w2 = b
        .variable("c2.weight", random(2, &[6, 4, 3, 3], 0.3))
        .unwrap();
    let b2 = b.variable("c2.bias", random(3, &[6], 0.2)).unwrap();
    let w3 = b.variable("fc.weight", random(4, &[3, 96], 0.1)).unwrap();
    let b3 = b.variable("fc.bias", random(5, &[3], 0.1)).unwrap();
    let window = || Window::new(2).pad(1);
    let y = b.conv(x, w1, Some(b1), window(), 1).unwrap();
    let y = b.relu(y).unwrap();
    let y = b.conv(y, w2, Some(b2), window(), 1).unwrap();
    let y = b.relu(y).unwrap();
    let y = b.max_pool(y, 2).unwrap();
    let y = b.flatten(y, 1).unwrap();
    let y = b.matmul_t(y, w3, false, true).unwrap();
    let y = b.add(y, b3).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

fn data(n: usize) -> TensorDataset {
    let labels: Vec<i64> = (0..n as i64).map(|i| i % 3).collect();
    TensorDataset::new(vec![
        random(9, &[n, 1, 8, 8], 1.0),
        Tensor::new([n], labels).unwrap(),
    ])
    .unwrap()
}

fn run(graph: &Graph) -> Vec<f64> {
    let x = random(10, &[16, 1, 8, 8], 1.0);
    NdarrayBackend::new().run_once(graph, &[x]).unwrap()[0].to_f64s()
}

fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    let noise: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (noise / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

fn count(graph: &Graph, name: &str) -> usize {
    graph.nodes().filter(|(_, n)| n.op().name() == name).count()
}

#[test]
fn static_quantization_keeps_the_function() {
    let (backend, samples) = (NdarrayBackend::new(), data(64));
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples);
    for observer in [
        ObserverKind::MinMax,
        ObserverKind::Percentile(0.9999),
        ObserverKind::Mse,
        ObserverKind::Kl,
    ] {
        let config = Config::default().observer(observer);
        let (int8, report) = QuantizeStatic::with(config).apply(cnn(), &mut cx).unwrap();
        assert_eq!(report.changed, 3);
        // Input, two ReLUs, the pooled and the flattened values.
        assert_eq!(count(&int8, "Quantize"), 5);
        assert_eq!(count(&int8, "Dequantize"), 5 + 6);
        assert_eq!(int8.variables().count(), 0);
        let error = relative_error(&run(&cnn()), &run(&int8));
        assert!(error < 0.05, "{observer:?}: {error}");
    }
    let _ = Mse::new();
}

#[test]
fn the_trained_graph_and_its_integers_agree() {
    let (backend, samples) = (NdarrayBackend::new(), data(64));
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples)
        .with_training(&samples);
    let (prepared, _) = PrepareQat::default().apply(cnn(), &mut cx).unwrap();
    let train = FineTune(
        Trainer::new(CrossEntropy, Adam::default(), Constant(0.01))
            .epochs(3)
            .batch_size(16),
    );
    let (trained, _) = train.apply(prepared.clone(), &mut cx).unwrap();
    assert_ne!(run(&trained), run(&prepared));
    let (int8, _) = ConvertQat::default()
        .apply(trained.clone(), &mut cx)
        .unwrap();
    assert!(
        int8.nodes()
            .all(|(_, n)| !matches!(n.op(), Op::FakeQuantize(_)))
    );
    // One step of the last layer's input moves an output by at most that step times a weight.
    let (a, b) = (run(&trained), run(&int8));
    let error = relative_error(&a, &b);
    assert!(error < 0.01, "{error}");
    let (whole, report) = QuantizeAware::new(Config::default(), train)
        .apply(cnn(), &mut cx)
        .unwrap();
    assert_eq!(run(&whole), b);
    assert_eq!(report.changed, 3);
}

#[test]
fn layers_can_be_left_out_and_patterns_must_match() {
    let (backend, samples) = (NdarrayBackend::new(), data(8));
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples);
    let config = Config::default().exclude("fc");
    let (int8, report) = QuantizeStatic::with(config).apply(cnn(), &mut cx).unwrap();
    assert_eq!(report.changed, 2);
    assert!(int8.find("fc.weight").is_ok());
    let config = Config::default().exclude("nowhere");
    let error = QuantizeStatic::with(config)
        .apply(cnn(), &mut cx)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
}

#[test]
fn bad_calibration_is_an_error_at_the_value() {
    let backend = NdarrayBackend::new();
    let mut cx = Context::new().with_backend(&backend);
    let error = QuantizeStatic::new().apply(cnn(), &mut cx).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Pipeline);
    let mut graph = cnn();
    let w = graph.find("c1.weight").unwrap();
    let infinite = Tensor::full(DType::F32, [4, 1, 3, 3], f64::INFINITY).unwrap();
    graph.set_variable(w, infinite).unwrap();
    let samples = data(8);
    let mut cx = cx.with_calibration(&samples);
    let error = QuantizeStatic::new().apply(graph, &mut cx).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    let mut zero = cnn();
    let dead = Tensor::zeros(DType::F32, [4, 1, 3, 3]).unwrap();
    zero.set_variable(w, dead).unwrap();
    let exact = run(&zero);
    let (int8, _) = QuantizeStatic::new().apply(zero, &mut cx).unwrap();
    // The biases of the dead channels are all that the next layers see.
    assert!(relative_error(&exact, &run(&int8)) < 0.02);
}

#[test]
fn integer_kernels_run_and_all_paths_agree_bit_for_bit() {
    use opt_ndarray::IntPath;
    let samples = data(64);
    let backend = NdarrayBackend::new();
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples);
    let (int8, _) = QuantizeStatic::new().apply(cnn(), &mut cx).unwrap();
    let spec = opt_core::CompileSpec::new().bind("batch", 16);
    let steps = backend.compile(&int8, &spec).unwrap().steps();
    let kernels: Vec<&str> = steps.iter().map(|s| s.kernel.as_str()).collect();
    assert_eq!(
        kernels,
        [
            "quantize",
            "int conv+requantize",
            "int conv+requantize",
            "int max pool",
            "int matmul+dequantize"
        ]
    );
    let x = random(10, &[16, 1, 8, 8], 1.0);
    let run = |path: IntPath, threads: usize| {
        let backend = NdarrayBackend::new().threads(threads).int_path(path);
        backend.run_once(&int8, std::slice::from_ref(&x)).unwrap()[0]
            .bytes()
            .unwrap()
            .to_vec()
    };
    let reference = run(IntPath::Portable, 1);
    for path in [IntPath::Auto, IntPath::Amx, IntPath::Vnni] {
        if path.is_available() {
            assert_eq!(run(path, 1), reference, "{path:?}");
            assert_eq!(run(path, 2), reference, "{path:?}");
        } else {
            let backend = NdarrayBackend::new().int_path(path);
            let error = backend.compile(&int8, &spec).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{path:?}: {error}");
        }
    }
}

/// A configuration with weights of 2 bits.
fn two_bits() -> Config {
    Config::default().weights(Scheme::int2().per_channel())
}

#[test]
fn learned_scales_train_two_bit_weights_and_agree_with_their_integers() {
    let (backend, samples) = (NdarrayBackend::new(), data(64));
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_calibration(&samples)
        .with_training(&samples);
    let config = two_bits().learn_scales();
    let prepare = PrepareQat {
        config: config.clone(),
    };
    let (prepared, _) = prepare.apply(cnn(), &mut cx).unwrap();
    let scale = prepared.find("c2.weight.scale").unwrap();
    let before = prepared.value(scale).tensor().unwrap().to_f64s();
    let weight = random(2, &[6, 4, 3, 3], 0.3).to_f64s();
    for (start, channel) in before.iter().zip(weight.chunks(36)) {
        let mean = channel.iter().map(|w| w.abs()).sum::<f64>() / 36.0;
        assert!((start - 2.0 * mean).abs() < 1e-6);
    }
    let train = FineTune(
        Trainer::new(CrossEntropy, Adam::default(), Cosine::new(0.02))
            .epochs(60)
            .batch_size(16),
    );
    let (trained, _) = train.apply(prepared, &mut cx).unwrap();
    let after = trained.value(scale).tensor().unwrap().to_f64s();
    assert!(before.iter().zip(&after).all(|(a, b)| a != b));
    let convert = ConvertQat { config };
    let (small, _) = convert.apply(trained.clone(), &mut cx).unwrap();
    let weights = small.find("c2.weight.q").unwrap();
    let mut levels = small.value(weights).tensor().unwrap().to_f64s();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    assert_eq!(levels, [-2.0, -1.0, 0.0, 1.0]);
    assert_eq!(small.variables().count(), 0);
    // The integers are those that training rounded to; activations may round to a neighbour.
    let trained_weight = trained.value(trained.find("c2.weight").unwrap());
    let expected = trained_weight.tensor().unwrap().to_f64s();
    let found = small.value(weights).tensor().unwrap().to_f64s();
    for (i, (w, q)) in expected.into_iter().zip(found).enumerate() {
        let level = (w as f32 / after[i / 36] as f32).round_ties_even();
        assert_eq!(f64::from(level.clamp(-2.0, 1.0)), q);
    }
    let error = relative_error(&run(&trained), &run(&small));
    assert!(error < 0.02, "{error}");

    // Random labels are learned by heart, which rounding to the nearest forgets.
    let accuracy = |graph: &Graph| {
        let x = random(9, &[64, 1, 8, 8], 1.0);
        let y = backend.run_once(graph, &[x]).unwrap()[0].to_f64s();
        let right = y.chunks(3).enumerate().filter(|(i, row)| {
            let best = (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            best == Some(i % 3)
        });
        right.count()
    };
    let (exact, _) = train.apply(cnn(), &mut cx).unwrap();
    let (nearest, _) = QuantizeStatic::with(two_bits())
        .apply(exact, &mut cx)
        .unwrap();
    let (learned, nearest) = (accuracy(&small), accuracy(&nearest));
    assert!(
        learned > 58 && nearest < 50,
        "{learned} and {nearest} of 64"
    );

    // A graph that was prepared without scales to learn has none.
    let (plain, _) = PrepareQat { config: two_bits() }
        .apply(cnn(), &mut cx)
        .unwrap();
    let error = convert.apply(plain, &mut cx).unwrap_err().to_string();
    assert!(
        error.contains("learned scale") && error.contains("c1.weight"),
        "{error}"
    );
}
