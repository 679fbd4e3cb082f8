//! Mixed precision as trainers have it. What it computes is compared with PyTorch on every backend,
//! by the suite.

use std::collections::BTreeMap;

use opt_core::pass::MixedPrecision;
use opt_core::{DType, Dim, GraphBuilder, Shape, Tensor, TensorType};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_suite::mixed_precision::cnn;
use opt_train::{Adam, Constant, CrossEntropy, FineTune, LossScale, Mse, Sgd, Supervised, Trainer};

fn labelled() -> TensorDataset {
    let labels: Vec<i64> = (0..40).map(|i| i % 4).collect();
    let images: Vec<f32> = (0..40 * 64)
        .map(|i| {
            let (n, p) = (i / 64, i % 64);
            // The class is the frequency along the rows.
            ((p / 8) as f32 * (1.0 + (n % 4) as f32) * 0.4 + n as f32).sin()
        })
        .collect();
    TensorDataset::new(vec![
        Tensor::new([40, 1, 8, 8], images).unwrap(),
        Tensor::new([40], labels).unwrap(),
    ])
    .unwrap()
}

fn trainer() -> Trainer {
    Trainer::new(CrossEntropy, Adam::default(), Constant(0.01))
        .batch_size(16)
        .seed(5)
}

#[test]
fn trainers_train_in_either_dtype_and_hand_back_the_model() {
    let (data, backend) = (labelled(), NdarrayBackend::new().threads(1));
    let graph = cnn().unwrap();
    for pass in [MixedPrecision::bf16(), MixedPrecision::f16().keep("fc")] {
        let mut scales = Vec::new();
        let mut watch = |event: &opt_core::Event| {
            if let opt_core::Event::Metrics { metrics, .. } = event {
                let metrics: BTreeMap<_, _> = metrics.iter().copied().collect();
                scales.push(metrics.get("loss_scale").copied());
            }
        };
        let dtype = pass.dtype();
        let (trained, history) = trainer()
            .epochs(12)
            .mixed_precision(pass)
            .fit_with(graph.clone(), &data, Some(&data), &backend, &mut watch)
            .unwrap();
        let last = history.epochs.last().unwrap();
        assert!(
            last.loss < 0.7 * history.epochs[0].loss,
            "{dtype}: {history:?}"
        );
        let expected = (dtype == DType::F16).then_some(65536.0);
        assert!(scales.iter().all(|s| *s == expected), "{dtype}: {scales:?}");
        // The given model with other content: no casts, nothing of the step.
        assert_eq!(trained.nodes().count(), graph.nodes().count());
        for ((_, a, _), (_, b, content)) in graph.variables().zip(trained.variables()) {
            assert_eq!((a.name(), a.ty()), (b.name(), b.ty()));
            assert!(content.is_finite());
        }
    }
}

#[test]
fn a_resumed_run_has_the_scale_it_had() {
    let (data, backend) = (labelled(), NdarrayBackend::new().threads(1));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("half.safetensors");
    let scale = LossScale {
        initial: 2f64.powi(40),
        growth_interval: 4,
        ..LossScale::default()
    };
    let run = |trainer: Trainer| {
        let mut scales = Vec::new();
        let mut watch = |event: &opt_core::Event| {
            if let opt_core::Event::Metrics { metrics, .. } = event {
                scales.extend(metrics.iter().filter(|m| m.0 == "loss_scale").map(|m| m.1));
            }
        };
        let (graph, _) = trainer
            .mixed_precision(MixedPrecision::f16())
            .loss_scale(scale)
            .fit_with(cnn().unwrap(), &data, None, &backend, &mut watch)
            .unwrap();
        let weights: Vec<Tensor> = graph.variables().map(|(_, _, t)| t.clone()).collect();
        (weights, scales)
    };
    let (expected, scales) = run(trainer().epochs(10));
    // Overflows at first, then steps that are taken.
    assert!(scales[0] < scale.initial, "{scales:?}");
    run(trainer().epochs(6).checkpoint(&path));
    let (resumed, again) = run(trainer().epochs(10).resume(&path));
    assert_eq!(resumed, expected);
    assert_eq!(again, scales[6..]);
}

#[test]
fn a_scale_that_shrinks_to_nothing_is_an_error() {
    let mut b = GraphBuilder::new("linear");
    let shape = Shape::new([Dim::from("batch"), 2.into()]);
    let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
    let w = b
        .variable("w", Tensor::full(DType::F32, [1, 2], 1.0).unwrap())
        .unwrap();
    let y = b.matmul_t(x, w, false, true).unwrap();
    let half = b.scalar(DType::F32, 0.5).unwrap();
    let y = b.pow(y, half).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();
    let data = |x: f64| {
        TensorDataset::new(vec![
            Tensor::full(DType::F32, [8, 2], x).unwrap(),
            Tensor::full(DType::F32, [8, 1], 1.0).unwrap(),
        ])
        .unwrap()
    };
    let fit = |x: f64, scale: f64| {
        let loss_scale = LossScale {
            initial: scale,
            ..LossScale::default()
        };
        Trainer::new(Supervised(Mse), Sgd::default(), Constant(1e-3))
            .epochs(3)
            .batch_size(1)
            .mixed_precision(MixedPrecision::f16())
            .loss_scale(loss_scale)
            .fit(graph.clone(), &data(x), &NdarrayBackend::new())
    };
    // The sum is infinite in f16.
    let error = fit(60000.0, 1.0).unwrap_err();
    assert!(error.to_string().contains("f16 in f32"), "{error}");
    // The root of 0 is finite, its derivative is not, at whatever scale.
    let error = fit(0.0, 2e-37).unwrap_err();
    assert!(error.to_string().contains("loss scale"), "{error}");
    assert!(fit(1.0, 1024.0).is_ok());
}

#[test]
fn fine_tuning_says_what_it_runs_in() {
    use opt_core::Pass;
    let plain = FineTune(trainer());
    let mixed = FineTune(trainer().mixed_precision(MixedPrecision::f16().keep("fc")));
    assert!(!plain.config().contains("mixed"));
    let line = "mixed_precision = { dtype = \"f16\", keep = [\"fc\"] }\n";
    assert!(mixed.config().ends_with(line), "{}", mixed.config());
}
