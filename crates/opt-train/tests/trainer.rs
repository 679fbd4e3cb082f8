//! Whole training runs.

use opt_core::{DType, Dim, ErrorKind, Fact, Graph, GraphBuilder, Shape, Tensor, TensorType};
use opt_data::TensorDataset;
use opt_ndarray::NdarrayBackend;
use opt_train::{Adam, Clip, Constant, Cosine, CrossEntropy, Mse, Sgd, Supervised, Trainer};

/// Points of two classes, in a ring and around the origin.
fn data(n: usize) -> TensorDataset {
    let stream = opt_core::random::Philox::new(9);
    let (mut points, mut labels) = (Vec::new(), Vec::new());
    for i in 0..n as u64 {
        let label = (i % 2) as i64;
        let radius = if label == 0 { 0.5 } else { 2.0 };
        let angle = std::f64::consts::TAU * stream.uniform(0, i);
        points.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
        labels.push(label);
    }
    TensorDataset::new(vec![
        Tensor::new([n, 2], points).unwrap(),
        Tensor::new([n], labels).unwrap(),
    ])
    .unwrap()
}

fn model(dropout: f64) -> Graph {
    let stream = opt_core::random::Philox::new(1);
    let random = |n: u64, shape: [usize; 2]| {
        let len = (shape[0] * shape[1]) as u64;
        let data: Vec<f64> = (0..len).map(|i| stream.normal(n, i) * 0.5).collect();
        Tensor::from_f64s(DType::F32, shape, &data).unwrap()
    };
    let mut b = GraphBuilder::new("mlp");
    let shape = Shape::new([Dim::from("batch"), 2.into()]);
    let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
    let w1 = b.variable("w1", random(0, [16, 2])).unwrap();
    let b1 = b
        .variable("b1", Tensor::zeros(DType::F32, [16]).unwrap())
        .unwrap();
    let w2 = b.variable("w2", random(1, [2, 16])).unwrap();
    let h = b.matmul_t(x, w1, false, true).unwrap();
    let h = b.add(h, b1).unwrap();
    let mut h = b.relu(h).unwrap();
    if dropout > 0.0 {
        h = b.dropout(h, dropout, 3).unwrap();
    }
    let y = b.matmul_t(h, w2, false, true).unwrap();
    b.output("logits", y).unwrap();
    b.finish().unwrap()
}

fn weights(graph: &Graph) -> Vec<Vec<u8>> {
    graph
        .variables()
        .map(|(_, _, t)| t.bytes().unwrap().to_vec())
        .collect()
}

fn trainer() -> Trainer {
    Trainer::new(CrossEntropy, Adam::default(), Cosine::new(0.02))
        .batch_size(24)
        .seed(3)
}

#[test]
fn a_network_learns_and_keeps_the_best_epoch() {
    let (train, val) = (data(200), data(100));
    let backend = NdarrayBackend::new();
    let (trained, history) = trainer()
        .epochs(20)
        .keep_best()
        .fit_with(
            model(0.0),
            &train,
            Some(&val),
            &backend,
            &mut opt_core::observer::Silent,
        )
        .unwrap();
    assert_eq!(history.epochs.len(), 20);
    let best = history.best.unwrap() as usize;
    assert!(history.epochs[best].val_accuracy.unwrap() > 0.97);
    assert_eq!(trained.inputs().len(), 1);
    assert!(trained.find("lr").is_err(), "nothing of the step stays");
}

#[test]
fn a_resumed_run_equals_the_uninterrupted_one() {
    let backend = NdarrayBackend::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("half.safetensors");
    let (train, val) = (data(100), data(40));
    let mut silent = opt_core::observer::Silent;
    let full = trainer().epochs(6).keep_best();
    let (expected, history) = full
        .fit_with(model(0.3), &train, Some(&val), &backend, &mut silent)
        .unwrap();
    // A run that is cut off after its third epoch leaves the checkpoint of that epoch.
    let mut epochs = 0;
    let kept = dir.path().join("kept.safetensors");
    let mut copy = |event: &opt_core::Event| {
        if let opt_core::Event::Metrics { .. } = event {
            if epochs == 3 {
                std::fs::copy(&path, &kept).unwrap();
            }
            epochs += 1;
        }
    };
    full.clone()
        .checkpoint(&path)
        .fit_with(model(0.3), &train, Some(&val), &backend, &mut copy)
        .unwrap();
    let (resumed, again) = full
        .clone()
        .resume(&kept)
        .fit_with(model(0.3), &train, Some(&val), &backend, &mut silent)
        .unwrap();
    assert_eq!(weights(&resumed), weights(&expected));
    assert_eq!(again, history);
    let other = full.seed(4).resume(&kept).fit(model(0.3), &train, &backend);
    assert!(other.unwrap_err().to_string().contains("seed"));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let run = |threads| {
        let backend = NdarrayBackend::new().threads(threads);
        let (graph, _) = trainer()
            .epochs(2)
            .fit(model(0.2), &data(100), &backend)
            .unwrap();
        weights(&graph)
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn masks_hold_through_training() {
    let mut graph = model(0.0);
    let w = graph.find("w1").unwrap();
    let keep: Vec<bool> = (0..32).map(|i| i % 3 != 0).collect();
    let mut content = graph.value(w).tensor().unwrap().to_vec::<f32>().unwrap();
    for (v, &k) in content.iter_mut().zip(&keep) {
        if !k {
            *v = 0.0;
        }
    }
    graph
        .set_variable(w, Tensor::new([16, 2], content).unwrap())
        .unwrap();
    let mask = Tensor::from_bools([16, 2], keep.clone()).unwrap();
    graph.facts_mut().insert(w, Fact::Mask(mask));
    let before = weights(&graph);
    let (trained, _) = trainer()
        .epochs(2)
        .fit(graph, &data(60), &NdarrayBackend::new())
        .unwrap();
    let after = trained.value(w).tensor().unwrap().to_vec::<f32>().unwrap();
    for (v, k) in after.iter().zip(keep) {
        assert_eq!(*v == 0.0, !k);
    }
    assert_ne!(weights(&trained), before);
}

#[test]
fn frozen_parameters_stay() {
    let graph = model(0.0);
    let (trained, _) = trainer()
        .epochs(1)
        .freeze("w1")
        .fit(graph.clone(), &data(60), &NdarrayBackend::new())
        .unwrap();
    let of = |g: &Graph, n: &str| g.value(g.find(n).unwrap()).tensor().unwrap().clone();
    assert_eq!(of(&trained, "w1"), of(&graph, "w1"));
    assert_ne!(of(&trained, "w2"), of(&graph, "w2"));
}

#[test]
fn bad_input_is_an_error_that_says_where() {
    let backend = NdarrayBackend::new();
    let labels = |l: Vec<i64>| {
        TensorDataset::new(vec![
            Tensor::zeros(DType::F32, [l.len(), 2]).unwrap(),
            Tensor::new([l.len()], l).unwrap(),
        ])
        .unwrap()
    };
    let cases: Vec<(&str, opt_core::Error)> = vec![
        (
            "example 1",
            trainer()
                .fit(model(0.0), &labels(vec![0, 2]), &backend)
                .unwrap_err(),
        ),
        (
            "batch size",
            trainer()
                .batch_size(0)
                .fit(model(0.0), &data(10), &backend)
                .unwrap_err(),
        ),
        (
            "validation",
            trainer()
                .early_stopping(2)
                .fit(model(0.0), &data(10), &backend)
                .unwrap_err(),
        ),
        (
            "nowhere",
            trainer()
                .freeze("nowhere")
                .fit(model(0.0), &data(10), &backend)
                .unwrap_err(),
        ),
        (
            "step",
            Trainer::new(CrossEntropy, Sgd::default(), Constant(1e30))
                .epochs(3)
                .fit(model(0.0), &data(64), &backend)
                .unwrap_err(),
        ),
        (
            "gradient bound",
            trainer()
                .clip(Clip::Norm(-1.0))
                .fit(model(0.0), &data(10), &backend)
                .unwrap_err(),
        ),
    ];
    for (place, error) in cases {
        assert!(error.to_string().contains(place), "{place}: {error}");
    }
    let mse = Trainer::new(Supervised(Mse), Adam::default(), Constant(0.1));
    let error = mse.fit(model(0.0), &data(10), &backend).unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Shape | ErrorKind::DType | ErrorKind::InvalidArgument
        ),
        "{error}"
    );
}

/// A linear model of two weights, and eight examples whose first feature is `first`.
fn linear(first: f32) -> (Graph, TensorDataset) {
    let mut b = GraphBuilder::new("linear");
    let shape = Shape::new([Dim::from("batch"), 2.into()]);
    let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
    let start = Tensor::new([1, 2], [0.0f32, 0.5]).unwrap();
    let w = b.variable("w", start).unwrap();
    let y = b.matmul_t(x, w, false, true).unwrap();
    b.output("y", y).unwrap();
    let points: Vec<f32> = (0..8).flat_map(|i| [first, 0.1 * i as f32]).collect();
    let targets: Vec<f32> = (0..8).map(|i| i as f32).collect();
    let data = TensorDataset::new(vec![
        Tensor::new([8, 2], points).unwrap(),
        Tensor::new([8, 1], targets).unwrap(),
    ]);
    (b.finish().unwrap(), data.unwrap())
}

fn least_squares(lr: f64) -> Trainer {
    Trainer::new(Supervised(Mse), Sgd::default(), Constant(lr)).batch_size(8)
}

#[test]
fn masked_weights_take_no_part_in_the_clipped_norm() {
    let run = |first| {
        let (mut graph, data) = linear(first);
        let w = graph.find("w").unwrap();
        let mask = Tensor::from_bools([1, 2], [false, true]).unwrap();
        graph.facts_mut().insert(w, Fact::Mask(mask));
        let trainer = least_squares(0.01).epochs(1).clip(Clip::Norm(1.0));
        let (graph, _) = trainer.fit(graph, &data, &NdarrayBackend::new()).unwrap();
        graph.value(w).tensor().unwrap().to_vec::<f32>().unwrap()
    };
    // The gradient of the masked weight is 0 in one, thousands in the other.
    let (small, huge) = (run(0.0), run(1000.0));
    assert_eq!(small, huge);
    assert!((small[1] - 0.51).abs() < 1e-6, "{small:?}");
}

#[test]
fn an_infinite_validation_loss_is_an_error() {
    let (graph, data) = linear(0.0);
    let (_, validation) = linear(0.0);
    let far = TensorDataset::new(vec![
        Tensor::full(DType::F32, [4, 2], 3e38).unwrap(),
        Tensor::full(DType::F32, [4, 1], -3e38).unwrap(),
    ])
    .unwrap();
    let fit = |validation: &TensorDataset| {
        least_squares(1e-3).epochs(2).keep_best().fit_with(
            graph.clone(),
            &data,
            Some(validation),
            &NdarrayBackend::new(),
            &mut opt_core::observer::Silent,
        )
    };
    fit(&validation).unwrap();
    let error = fit(&far).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("epoch 0"), "{error}");
}

#[test]
fn a_diverged_epoch_leaves_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.safetensors");
    let (graph, data) = linear(1000.0);
    let backend = NdarrayBackend::new();
    let good = least_squares(0.0).epochs(1).checkpoint(&path);
    good.fit(graph.clone(), &data, &backend).unwrap();
    let before = std::fs::read(&path).unwrap();
    // The loss of the only step is finite, what it assigns is not.
    let bad = least_squares(1e38).epochs(1).checkpoint(&path);
    let error = bad.fit(graph, &data, &backend).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().starts_with("w: "), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn the_last_partial_batch_can_be_dropped() {
    let (graph, data) = linear(0.0);
    let backend = NdarrayBackend::new();
    let steps = |trainer: Trainer| {
        let mut last = 0;
        let mut count = |event: &opt_core::Event| {
            if let opt_core::Event::Progress { done, .. } = event {
                last = *done;
            }
        };
        trainer
            .fit_with(graph.clone(), &data, None, &backend, &mut count)
            .map(|(_, history)| (last, history.epochs[0].loss))
    };
    // At a rate of 0 the loss of an epoch is a mean over the examples it saw.
    let trainer = least_squares(0.0).epochs(2).batch_size(3);
    let (kept, loss) = steps(trainer.clone()).unwrap();
    let (dropped, partial) = steps(trainer.clone().drop_last(true)).unwrap();
    assert_eq!((kept, dropped), (6, 4));
    assert_ne!(loss, partial);
    let error = steps(trainer.batch_size(9).drop_last(true)).unwrap_err();
    assert!(error.to_string().contains("training data"), "{error}");
}

#[test]
fn early_stopping_bounds_any_number_of_epochs() {
    let (graph, data) = linear(0.0);
    let trainer = least_squares(0.0)
        .epochs(u64::MAX)
        .batch_size(3)
        .early_stopping(1);
    let (_, history) = trainer
        .fit_with(
            graph,
            &data,
            Some(&data),
            &NdarrayBackend::new(),
            &mut opt_core::observer::Silent,
        )
        .unwrap();
    assert_eq!((history.epochs.len(), history.best), (3, Some(0)));
}

#[test]
fn accumulated_gradients_are_those_of_a_large_batch() {
    let data = data(50);
    let backend = NdarrayBackend::new();
    let fit = |trainer: Trainer| {
        let trainer = trainer.epochs(4).l2(0.01).clip(Clip::Norm(0.3));
        trainer.fit(model(0.0), &data, &backend).unwrap()
    };
    // 50 examples make batches of 24, 24 and 2, or of 4 (six an update) the same examples.
    let (large, history) = fit(trainer());
    let (small, small_history) = fit(trainer().batch_size(4).accumulate(6));
    assert!(history.epochs[3].loss < history.epochs[0].loss);
    assert_eq!(small_history.epochs.len(), 4);
    for ((_, value, a), (_, _, b)) in large.variables().zip(small.variables()) {
        for (a, b) in a.to_f64s().into_iter().zip(b.to_f64s()) {
            assert!((a - b).abs() < 1e-5, "{}: {a} against {b}", value.name());
        }
    }
}

#[test]
fn accumulation_works_with_a_loss_scale() {
    let data = data(50);
    let backend = NdarrayBackend::new();
    let scale = opt_train::LossScale::default();
    let fit = |trainer: Trainer| {
        trainer
            .epochs(3)
            .fit(model(0.0), &data, &backend)
            .unwrap()
            .0
    };
    let plain = fit(trainer().batch_size(4).accumulate(6));
    let scaled = fit(trainer().batch_size(4).accumulate(6).loss_scale(scale));
    for ((_, _, a), (_, _, b)) in plain.variables().zip(scaled.variables()) {
        for (a, b) in a.to_f64s().into_iter().zip(b.to_f64s()) {
            assert!((a - b).abs() < 1e-5, "{a} against {b}");
        }
    }
}

#[test]
fn averages_are_those_of_the_parameters_after_each_update() {
    let data = data(48);
    let backend = NdarrayBackend::new();
    let decay = 0.8;
    let plain = |epochs: u64| {
        let trainer = Trainer::new(CrossEntropy, Sgd::momentum(0.5), Constant(0.1));
        trainer.batch_size(48).seed(3).epochs(epochs)
    };
    // One update an epoch.
    let last = plain(2).fit(model(0.0), &data, &backend).unwrap().0;
    let first = plain(1).fit(model(0.0), &data, &backend).unwrap().0;
    let averaged = plain(2)
        .ema(decay)
        .fit(model(0.0), &data, &backend)
        .unwrap()
        .0;
    let contents = |g: &Graph| {
        g.variables()
            .flat_map(|(_, _, t)| t.to_f64s())
            .collect::<Vec<_>>()
    };
    let parts = contents(&first).into_iter().zip(contents(&last));
    for ((first, last), found) in parts.zip(contents(&averaged)) {
        let expected = decay * first + (1.0 - decay) * last;
        assert!(
            (found - expected).abs() < 1e-6,
            "{found} against {expected}"
        );
    }
    for decay in [1.0, -0.1, f64::NAN] {
        let error = plain(1)
            .ema(decay)
            .fit(model(0.0), &data, &backend)
            .unwrap_err();
        assert!(error.to_string().contains("moving average"), "{error}");
    }
    assert!(
        plain(1)
            .accumulate(0)
            .fit(model(0.0), &data, &backend)
            .is_err()
    );
}

#[test]
fn averages_of_masked_weights_stay_masked() {
    let mut graph = model(0.0);
    let w1 = graph.find("w1").unwrap();
    let keep: Vec<bool> = (0..32).map(|i| i % 3 == 0).collect();
    let mask = Tensor::from_bools([16, 2], keep).unwrap();
    let content = graph.value(w1).tensor().unwrap().to_f64s();
    let content: Vec<f64> = content
        .into_iter()
        .enumerate()
        .map(|(i, v)| if i % 3 == 0 { v } else { 0.0 })
        .collect();
    let content = Tensor::from_f64s(DType::F32, [16, 2], &content).unwrap();
    graph.set_variable(w1, content).unwrap();
    graph.facts_mut().insert(w1, Fact::Mask(mask));
    let backend = NdarrayBackend::new();
    let trainer = trainer().epochs(3).ema(0.9).accumulate(2);
    let (trained, _) = trainer.fit(graph, &data(50), &backend).unwrap();
    trained.verify().unwrap();
    let content = trained.value(w1).tensor().unwrap().to_f64s();
    assert!(
        content
            .iter()
            .enumerate()
            .all(|(i, v)| i % 3 == 0 || *v == 0.0)
    );
}

#[test]
fn a_resumed_run_with_averages_and_accumulation_goes_on_as_it_would_have() {
    let (data, backend) = (data(50), NdarrayBackend::new());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.safetensors");
    let schedule = opt_train::ReduceOnPlateau {
        patience: 0,
        threshold: 0.2,
        ..opt_train::ReduceOnPlateau::new(Constant(0.05))
    };
    let trainer = Trainer::new(CrossEntropy, Adam::default(), schedule)
        .batch_size(8)
        .accumulate(2)
        .ema(0.9)
        .seed(4);
    let (whole, history) = trainer
        .clone()
        .epochs(6)
        .fit(model(0.2), &data, &backend)
        .unwrap();
    let part = trainer.clone().epochs(3).checkpoint(&path);
    part.fit(model(0.2), &data, &backend).unwrap();
    let rest = trainer.epochs(6).resume(&path);
    let (resumed, rest_history) = rest.fit(model(0.2), &data, &backend).unwrap();
    assert_eq!(weights(&whole), weights(&resumed));
    assert_eq!(history, rest_history);
}

#[test]
fn an_elastic_net_is_both_penalties() {
    let (data, backend) = (data(50), NdarrayBackend::new());
    let fit = |trainer: Trainer| {
        trainer
            .epochs(2)
            .fit(model(0.0), &data, &backend)
            .unwrap()
            .0
    };
    let both = fit(trainer().l1(0.03).l2(0.035));
    assert_eq!(
        weights(&fit(trainer().elastic_net(0.1, 0.3))),
        weights(&both)
    );
    assert_ne!(weights(&fit(trainer())), weights(&both));
}

#[test]
fn the_optimizers_state_goes_on_from_pass_to_pass() {
    use opt_core::{Context, Pass};
    use opt_train::FineTune;
    let (data, backend) = (data(48), NdarrayBackend::new());
    let trainer = |epochs| {
        let adam = Trainer::new(CrossEntropy, Adam::default(), Constant(0.02));
        adam.batch_size(48).epochs(epochs)
    };
    // One batch is the whole data set, so that the order of epochs does not matter but for
    // rounding.
    let (whole, _) = trainer(6).fit(model(0.0), &data, &backend).unwrap();
    let twice = |trainer: Trainer| {
        let mut cx = Context::new().with_backend(&backend).with_training(&data);
        let pass = FineTune(trainer);
        let (graph, _) = pass.apply(model(0.0), &mut cx).unwrap();
        let (graph, _) = pass.apply(graph, &mut cx).unwrap();
        (graph, cx.state().clone())
    };
    let (carried, state) = twice(trainer(3).carry_state());
    let (fresh, none) = twice(trainer(3));
    let contents = |g: &Graph| {
        g.variables()
            .flat_map(|(_, _, t)| t.to_f64s())
            .collect::<Vec<_>>()
    };
    let far = |a: &Graph, b: &Graph| {
        let pairs = contents(a).into_iter().zip(contents(b));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    assert!(far(&whole, &carried) < 1e-4, "{}", far(&whole, &carried));
    assert!(far(&whole, &fresh) > 1e-3);
    assert!(none.is_empty());
    assert_eq!(state.iter().count(), 6);
    let count = state.shared().next().unwrap().1.item().unwrap();
    assert_eq!(count, 6.0);

    // Another optimizer, or another shape, is an error that names the slot.
    let mut cx = Context::new().with_backend(&backend).with_training(&data);
    *cx.state_mut() = state.clone();
    let sgd = Trainer::new(CrossEntropy, Sgd::momentum(0.9), Constant(0.1)).carry_state();
    let error = FineTune(sgd).apply(model(0.0), &mut cx).unwrap_err();
    assert!(error.to_string().contains("exp_avg"), "{error}");
    *cx.state_mut() = state;
    cx.state_mut()
        .insert("w1", "exp_avg", Tensor::zeros(DType::F32, [3]).unwrap());
    let error = FineTune(trainer(1).carry_state())
        .apply(model(0.0), &mut cx)
        .unwrap_err();
    assert!(
        error.to_string().contains("optimizer.w1.exp_avg"),
        "{error}"
    );
}

#[test]
fn every_fold_is_a_run_of_its_own() {
    use opt_data::StratifiedKFold;
    let (data, backend) = (data(60), NdarrayBackend::new());
    let folds = StratifiedKFold::new(4)
        .unwrap()
        .shuffled(1)
        .split(&data, 1)
        .unwrap();
    let trainer = trainer().epochs(6);
    let result = trainer
        .cross_validate(&folds, &data, |_| Ok(model(0.0)), &backend)
        .unwrap();
    let mut accuracies = Vec::new();
    for (fold, result) in folds.iter().zip(&result.folds) {
        let (train, test) = fold.of(&data).unwrap();
        let alone = trainer
            .fit_with(
                model(0.0),
                &train,
                Some(&test),
                &backend,
                &mut opt_core::observer::Silent,
            )
            .unwrap();
        assert_eq!(weights(&alone.0), weights(&result.model));
        assert_eq!(alone.1, result.history);
        accuracies.push(alone.1.epochs[5].val_accuracy.unwrap());
    }
    let score = result.accuracy().unwrap();
    let mean = accuracies.iter().sum::<f64>() / 4.0;
    let variance = accuracies.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / 3.0;
    assert!((score.mean - mean).abs() < 1e-12 && (score.std - variance.sqrt()).abs() < 1e-12);
    assert!(result.to_string().starts_with("4 folds, loss "), "{result}");

    let best = trainer.clone().keep_best().epochs(4);
    let best = best
        .cross_validate(&folds, &data, |_| Ok(model(0.0)), &backend)
        .unwrap();
    for fold in &best.folds {
        let epochs = &fold.history.epochs;
        let most = epochs
            .iter()
            .filter_map(|e| e.val_accuracy)
            .fold(0.0, f64::max);
        assert_eq!(fold.kept().unwrap().val_accuracy, Some(most));
    }
    assert!(
        trainer
            .cross_validate(&[], &data, |_| Ok(model(0.0)), &backend)
            .is_err()
    );
    let failing = |i| match i {
        2 => Err(opt_core::Error::invalid("no model")),
        _ => Ok(model(0.0)),
    };
    let error = trainer
        .cross_validate(&folds, &data, failing, &backend)
        .unwrap_err();
    assert!(error.to_string().contains("fold 2"), "{error}");
}

#[test]
fn reading_ahead_changes_nothing() {
    let (data, backend) = (data(50), NdarrayBackend::new());
    let fit = |trainer: Trainer| trainer.epochs(3).fit(model(0.2), &data, &backend).unwrap();
    let (plain, history) = fit(trainer());
    let (ahead, ahead_history) = fit(trainer().prefetch(2));
    assert_eq!(weights(&plain), weights(&ahead));
    assert_eq!(history, ahead_history);
}

#[test]
fn class_indices_serve_where_probabilities_are_wanted() {
    use opt_data::MixUp;
    use opt_train::SoftCrossEntropy;
    let (data, backend) = (data(60), NdarrayBackend::new());
    let soft = Supervised(SoftCrossEntropy);
    let fit = |trainer: Trainer| {
        let mut silent = opt_core::observer::Silent;
        let trainer = trainer.epochs(8);
        trainer
            .fit_with(model(0.0), &data, Some(&data), &backend, &mut silent)
            .unwrap()
    };
    let (_, indices) = fit(trainer());
    let (_, probabilities) = fit(trainer().objective(soft.clone()));
    for (a, b) in indices.epochs.iter().zip(&probabilities.epochs) {
        assert!((a.loss - b.loss).abs() < 1e-5);
        assert!((a.val_loss.unwrap() - b.val_loss.unwrap()).abs() < 1e-5);
        assert_eq!(a.val_accuracy, b.val_accuracy);
    }
    let mixed = trainer()
        .objective(soft)
        .augment(MixUp::new(0.4, 2).unwrap());
    let (_, mixed) = fit(mixed);
    let last = mixed.epochs.last().unwrap();
    assert!(
        last.loss > probabilities.epochs[7].loss,
        "mixed labels are harder"
    );
    assert!(last.val_accuracy.unwrap() > 0.8);
    // A loss of class indices does not take them mixed.
    let wrong = trainer().augment(MixUp::new(0.4, 2).unwrap());
    assert!(wrong.fit(model(0.0), &data, &backend).is_err());
}
