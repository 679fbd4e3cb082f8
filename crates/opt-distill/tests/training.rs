//! Students trained by each method.

mod common;

use common::{accuracy, cnn, images, logits, mlp, trainer, unlabelled, weights};
use opt_core::data::Dataset;
use opt_core::observer::Silent;
use opt_core::ops::Op;
use opt_core::{Graph, Tensor};
use opt_data::TensorDataset;
use opt_distill::{
    AttentionTransfer, Average, BornAgain, Dist, Distillation, Dkd, FeatureLoss, Hint, LayerMap,
    LayerPair, LogitLoss, Mutual, Pad, Rkd, SoftTargets, SoftmaxRegression, with_teacher_logits,
};
use opt_ndarray::NdarrayBackend;
use opt_train::{CrossEntropy, Sgd, StepOptions, training_graph};

fn teacher(data: &TensorDataset) -> Graph {
    let (graph, _) = trainer(5e-3)
        .epochs(6)
        .fit(cnn("teacher", [8, 12], 1), data, &NdarrayBackend::new())
        .unwrap();
    graph
}

#[test]
fn a_student_learns_digits_from_logits_alone() {
    let (train, test) = images(900, 360);
    let teacher = teacher(&train);
    let taught = accuracy(&teacher, &test);
    assert!(taught > 0.9, "{taught}");
    let backend = NdarrayBackend::new();
    let losses: [(&str, Distillation); 3] = [
        ("soft", SoftTargets::only(4.0).into()),
        ("dist", Distillation::new().logits(1.0, Dist::default())),
        ("dkd", Distillation::new().logits(1.0, Dkd::default())),
    ];
    for (name, distillation) in losses {
        // Without a label, but for DKD, which splits the logits by them.
        let (distillation, data) = match name {
            "dkd" => (distillation, train.clone()),
            _ => (distillation.unlabelled(), unlabelled(&train)),
        };
        let objective = distillation.from_teacher(teacher.clone());
        let (student, history) = trainer(5e-3)
            .objective(objective)
            .epochs(14)
            .fit(mlp("student", 24, 3), &data, &backend)
            .unwrap();
        let (first, last) = (history.epochs[0].loss, history.epochs[13].loss);
        assert!(last < 0.5 * first, "{name}: {first} to {last}");
        let reached = accuracy(&student, &test);
        assert!(reached > 0.85, "{name}: {reached}");
    }
}

/// The student is trained by one loss between layers; what that loss compares gets closer.
fn align(loss: impl FeatureLoss + 'static, pair: LayerPair, factor: f64) {
    let (train, _) = images(160, 1);
    let name = format!("{loss:?}");
    let student = cnn("student", [4, 6], 5);
    let objective = Distillation::new()
        .features(1.0, loss, pair)
        .unlabelled()
        .from_teacher(cnn("teacher", [8, 12], 1));
    let (trained, history) = trainer(1e-2)
        .objective(objective)
        .epochs(12)
        .fit(student.clone(), &unlabelled(&train), &NdarrayBackend::new())
        .unwrap();
    let (first, last) = (history.epochs[0].loss, history.epochs[11].loss);
    assert!(last < factor * first, "{name}: {first} to {last}");
    let names = |g: &Graph| -> Vec<String> { weights(g).into_iter().map(|(n, _)| n).collect() };
    assert_eq!(names(&trained), names(&student), "{name}");
    // The classifier takes no part.
    assert_eq!(weights(&trained).last(), weights(&student).last(), "{name}");
}

#[test]
fn layers_align() {
    let n2 = || LayerPair::new("n2", "n2");
    align(Hint::mse(), n2().project(), 0.6);
    align(Hint::huber(0.5), n2().project_if_needed(), 0.6);
    align(AttentionTransfer::default(), n2(), 0.6);
    align(
        AttentionTransfer::default(),
        LayerPair::new("n2", "c1").pool(),
        0.6,
    );
    align(Rkd::distance_and_angle(1.0, 2.0), n2(), 0.6);
    align(SoftmaxRegression::mse(), n2().project(), 0.6);
    align(SoftmaxRegression::kl_div(2.0), n2().project(), 0.6);
    // The logarithm of the variances makes the loss negative where the student is good.
    align(Pad::default(), n2().project(), 0.6);
}

#[test]
fn a_projection_is_trained_saved_and_gone() {
    let (train, _) = images(96, 1);
    let objective = || {
        Distillation::new()
            .logits(1.0, SoftTargets::only(2.0))
            .features(10.0, Hint::mse(), LayerPair::new("n2", "n2").project())
            .features(1.0, Pad::default(), LayerPair::new("fc", "fc"))
            .labels(0.5, CrossEntropy)
            .seed(7)
            .from_teacher(cnn("teacher", [5, 7], 1))
    };
    let student = cnn("student", [3, 4], 2);
    let step = training_graph(
        &student,
        &objective(),
        &Sgd::default(),
        &StepOptions::default(),
    )
    .unwrap();
    let assigned: Vec<&str> = step
        .nodes()
        .filter(|(_, n)| matches!(n.op(), Op::Assign(_)))
        .map(|(_, n)| step.value(n.inputs()[0]).name())
        .collect();
    for name in [
        "distil.features0.0.projection.weight",
        "distil.features0.0.projection.bias",
        "distil.features1.0.variance.weight",
    ] {
        assert!(assigned.contains(&name), "{name} in {assigned:?}");
    }
    let weight = step.find("distil.features0.0.projection.weight").unwrap();
    let start = step.value(weight).tensor().unwrap();
    assert_eq!(start.shape(), [7, 4, 1, 1]);
    assert!(start.to_f64s().iter().all(|v| v.abs() <= 0.5));

    let backend = NdarrayBackend::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("half.safetensors");
    let trainer = trainer(1e-2).objective(objective());
    let fit = |trainer: opt_train::Trainer| {
        trainer
            .fit_with(student.clone(), &train, Some(&train), &backend, &mut Silent)
            .unwrap()
    };
    let (expected, history) = fit(trainer.clone().epochs(4));
    fit(trainer.clone().epochs(2).checkpoint(&path));
    let (resumed, again) = fit(trainer.clone().epochs(4).resume(&path));
    assert_eq!(weights(&resumed), weights(&expected));
    assert_eq!(again, history);
    assert_eq!(resumed.variables().count(), student.variables().count());
    // Another seed of the projection is another run.
    let other = trainer.objective(
        Distillation::new()
            .features(10.0, Hint::mse(), LayerPair::new("n2", "n2").project())
            .seed(8)
            .from_teacher(cnn("teacher", [5, 7], 1)),
    );
    let (other, _) = fit(other.epochs(1));
    assert_ne!(weights(&other), weights(&expected));
}

#[test]
fn a_teacher_that_has_run_teaches_the_same() {
    let (train, test) = images(128, 64);
    let backend = NdarrayBackend::new();
    let teacher = cnn("teacher", [5, 7], 1);
    let distillation = Distillation::new()
        .logits(1.0, Dkd::default())
        .labels(0.5, CrossEntropy);
    let student = mlp("student", 8, 2);
    let trainer = trainer(1e-2).epochs(3);
    let (live, _) = trainer
        .clone()
        .objective(distillation.clone().from_teacher(teacher.clone()))
        .fit(student.clone(), &train, &backend)
        .unwrap();
    // Batches of another size than training's, and a smaller last one.
    let cached = with_teacher_logits(&teacher, train.clone(), &backend, 50).unwrap();
    assert_eq!(cached.len(), 128);
    assert_eq!(cached.logits().shape(), [128, 10]);
    let validation = with_teacher_logits(&teacher, test, &backend, 64).unwrap();
    let (ahead, history) = trainer
        .clone()
        .objective(distillation.clone().from_logits())
        .fit_with(
            student.clone(),
            &cached,
            Some(&validation),
            &backend,
            &mut Silent,
        )
        .unwrap();
    assert!(history.epochs[2].val_loss.is_some());
    for ((name, a), (_, b)) in weights(&live).into_iter().zip(weights(&ahead)) {
        for (a, b) in a.into_iter().zip(b) {
            assert!((a - b).abs() < 1e-4 * (1.0 + a.abs()), "{name}: {a} {b}");
        }
    }
    // Layers are not in the logits.
    let objective = distillation
        .features(1.0, Hint::mse(), LayerPair::new("hidden", "n2"))
        .from_logits();
    let error = trainer
        .objective(objective)
        .fit(student, &cached, &backend)
        .unwrap_err();
    assert!(error.to_string().contains("teacher itself"), "{error}");
}

#[test]
fn data_that_a_teacher_cannot_run_on_is_an_error() {
    let (train, _) = images(4, 1);
    let backend = NdarrayBackend::new();
    let teacher = cnn("teacher", [2, 2], 1);
    let fail = |data: TensorDataset, size: usize| {
        with_teacher_logits(&teacher, data, &backend, size)
            .unwrap_err()
            .to_string()
    };
    assert!(fail(train.clone(), 0).contains("batch size"));
    let wide = TensorDataset::new(vec![
        Tensor::zeros(opt_core::DType::F32, [3, 1, 9, 8]).unwrap(),
    ]);
    let error = fail(wide.unwrap(), 2);
    assert!(error.contains('x') && error.contains('9'), "{error}");
    // The logarithm of 0, in the second example.
    let mut b = opt_core::nn::ModelBuilder::new("logarithm", 0);
    let x = b.batch("x", [2]).unwrap();
    let y = b.log(x).unwrap();
    b.output("y", y).unwrap();
    let data = Tensor::new([3, 2], [1f32, 2.0, 3.0, 0.0, 4.0, 5.0]).unwrap();
    let data = TensorDataset::new(vec![data]).unwrap();
    let error = with_teacher_logits(&b.finish().unwrap(), data, &backend, 3).unwrap_err();
    assert!(error.to_string().contains("example 1 is NaN"), "{error}");
}

#[test]
fn a_teacher_twice_is_that_teacher() {
    let (train, _) = images(64, 1);
    let backend = NdarrayBackend::new();
    let teacher = cnn("teacher", [3, 4], 1);
    let run = |objective: opt_distill::FromTeacher| {
        let (_, history) = trainer(1e-2)
            .objective(objective)
            .epochs(2)
            .fit(mlp("student", 6, 2), &train, &backend)
            .unwrap();
        history.epochs[1].loss
    };
    let new = || Distillation::new().logits(1.0, SoftTargets::default());
    let alone = run(new().from_teacher(teacher.clone()));
    for average in [Average::Probabilities, Average::Logits] {
        let twice = [(1.0, teacher.clone()), (3.0, teacher.clone())];
        let both = run(new().average(average).from_teachers(twice));
        assert!((alone - both).abs() < 1e-4 * alone, "{alone} {both}");
    }
    // Each pair of layers names its teacher.
    let wide = cnn("wide", [3, 9], 4);
    let pair = LayerPair::new("head", "n2").of_teacher(1);
    let objective = new()
        .features(1.0, Rkd::distance(), pair)
        .from_teachers([(1.0, teacher.clone()), (1.0, wide)]);
    run(objective);
    let objective = new()
        .features(
            1.0,
            Rkd::distance(),
            LayerPair::new("head", "n2").of_teacher(1),
        )
        .from_teacher(teacher);
    let error = trainer(1e-2)
        .objective(objective)
        .fit(mlp("student", 6, 2), &train, &backend)
        .unwrap_err();
    assert!(error.to_string().contains("there are 1"), "{error}");
}

#[test]
fn stages_of_the_same_resolution_are_paired() {
    let (student, teacher) = (cnn("student", [3, 4], 2), cnn("teacher", [5, 7], 1));
    let map = LayerMap::auto(&student, &teacher).unwrap();
    let pairs: Vec<_> = map.pairs().collect();
    // Of each resolution the last value: the ReLUs before the poolings, then the last pooling.
    assert_eq!(
        pairs,
        [
            ("relu:out", "relu:out"),
            ("relu_1:out", "relu_1:out"),
            ("maxpool_1:out", "maxpool_1:out")
        ]
    );
    let (train, _) = images(64, 1);
    let objective = Distillation::new()
        .logits(1.0, SoftTargets::default())
        .features(1.0, Hint::mse(), map.clone())
        .features(10.0, AttentionTransfer::default(), map)
        .from_teacher(teacher);
    let (_, history) = trainer(1e-2)
        .objective(objective)
        .epochs(3)
        .fit(student.clone(), &train, &NdarrayBackend::new())
        .unwrap();
    assert!(history.epochs[2].loss < history.epochs[0].loss);
    // No resolution in common, but as many: in order, pooled to the smaller.
    let plain = |name: &str, kernel: usize, width: usize| {
        let mut b = opt_core::nn::ModelBuilder::new(name, 0);
        let mut x = b.batch("x", [1, 8, 8]).unwrap();
        for i in 0..2 {
            let layer = opt_core::nn::Conv::new(width, [kernel, kernel]);
            x = b.layer(&format!("c{i}"), layer, x).unwrap();
        }
        let x = b.flatten(x, 1).unwrap();
        let y = b.layer("fc", opt_core::nn::Linear::new(10), x).unwrap();
        b.output("logits", y).unwrap();
        b.finish().unwrap()
    };
    let (small, large) = (plain("small", 4, 2), plain("large", 2, 5));
    let map = LayerMap::auto(&small, &large).unwrap();
    let pairs: Vec<_> = map.pairs().collect();
    assert_eq!(
        pairs,
        [
            ("c0.conv:out", "c0.conv:out"),
            ("c1.conv:out", "c1.conv:out")
        ]
    );
    let objective = Distillation::new()
        .features(1.0, Hint::mse(), map)
        .from_teacher(large.clone());
    let (_, history) = trainer(1e-2)
        .objective(objective)
        .epochs(3)
        .fit(small.clone(), &train, &NdarrayBackend::new())
        .unwrap();
    assert!(history.epochs[2].loss < history.epochs[0].loss);
    // 7x7 and 6x6 against 8x8, 4x4 and 2x2.
    let error = LayerMap::auto(&large, &student).unwrap_err().to_string();
    assert!(
        error.contains("7x7, 6x6") && error.contains("8x8, 4x4, 2x2"),
        "{error}"
    );
    let error = LayerMap::auto(&student, &mlp("teacher", 4, 1)).unwrap_err();
    assert!(error.to_string().contains("[N, C, H, W]"), "{error}");
    let none: [&str; 0] = [];
    for (s, t) in [(vec!["a", "b"], vec!["c"]), (none.to_vec(), vec!["c"])] {
        assert!(LayerMap::uniform(s, t).is_err());
    }
}

#[test]
fn students_teach_each_other() {
    let (train, test) = images(600, 200);
    let backend = NdarrayBackend::new();
    let students = vec![mlp("a", 12, 1), mlp("b", 20, 2), mlp("c", 12, 3)];
    let trainer = trainer(1e-2).epochs(10).keep_best();
    let (trained, history) = Mutual::default()
        .fit_with(
            students.clone(),
            &trainer,
            &train,
            Some(&test),
            &backend,
            &mut Silent,
        )
        .unwrap();
    assert!(history.best.is_some());
    for (trained, before) in trained.iter().zip(&students) {
        assert_eq!(trained.name(), before.name());
        let names = |g: &Graph| -> Vec<String> { weights(g).into_iter().map(|w| w.0).collect() };
        assert_eq!(names(trained), names(before));
        let reached = accuracy(trained, &test);
        assert!(reached > 0.85, "{}: {reached}", trained.name());
    }
    // They agree more than students that learn apart.
    let apart: Vec<Graph> = students
        .iter()
        .map(|s| {
            let trainer = common::trainer(1e-2).epochs(10);
            trainer.fit(s.clone(), &train, &backend).unwrap().0
        })
        .collect();
    let distance = |all: &[Graph]| {
        let p: Vec<Vec<f64>> = all[..2]
            .iter()
            .map(|g| softmax(&logits(g, &test)))
            .collect();
        p[0].iter()
            .zip(&p[1])
            .map(|(a, b)| (a - b).abs())
            .sum::<f64>()
    };
    let (together, apart) = (distance(&trained), distance(&apart));
    assert!(together < apart, "{together} {apart}");
    let fail = |students: Vec<Graph>, mutual: Mutual| {
        mutual
            .fit(students, &trainer, &train, &backend)
            .unwrap_err()
            .to_string()
    };
    let one = vec![mlp("a", 3, 1)];
    assert!(fail(one, Mutual::default()).contains("two students"));
    let cold = Mutual {
        temperature: 0.0,
        weight: 1.0,
    };
    assert!(fail(students, cold).contains("temperature"));
}

fn softmax(logits: &Tensor) -> Vec<f64> {
    let rows = logits.to_f64s();
    let rows = rows.chunks(logits.shape()[1]).flat_map(|row| {
        let powers: Vec<f64> = row.iter().map(|v| v.exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(move |p| p / sum)
    });
    rows.collect()
}

#[test]
fn generations_teach_the_next() {
    let (train, test) = images(400, 200);
    let backend = NdarrayBackend::new();
    let trainer = trainer(1e-2).epochs(30);
    let (first, _) = trainer.fit(mlp("first", 16, 0), &train, &backend).unwrap();
    let taught = accuracy(&first, &test);
    let born = BornAgain::new(SoftTargets::default(), trainer).generations(2);
    let mut seeds = Vec::new();
    let student = |generation| {
        seeds.push(generation);
        Ok(mlp("student", 16, generation))
    };
    let all = born.fit(first.clone(), student, &train, &backend).unwrap();
    assert_eq!(seeds, [1, 2]);
    assert_eq!(all.len(), 2);
    for (graph, history) in &all {
        let reached = accuracy(graph, &test);
        assert!(reached > taught - 0.03, "{reached} after {taught}");
        assert_eq!(history.epochs.len(), 30);
    }
    // The second generation learned from the first student, not from the teacher.
    let objective = SoftTargets::default().from_teacher(all[0].0.clone());
    let (again, _) = common::trainer(1e-2)
        .epochs(30)
        .objective(objective)
        .fit(mlp("student", 16, 2), &train, &backend)
        .unwrap();
    assert_eq!(weights(&again), weights(&all[1].0));
    let error = born
        .clone()
        .generations(0)
        .fit(first, |_| unreachable!(), &train, &backend)
        .unwrap_err();
    assert!(error.to_string().contains("generations"), "{error}");
}

/// A user's own loss.
#[derive(Debug)]
struct Regression;

impl LogitLoss for Regression {
    fn build(
        &self,
        b: &mut opt_core::GraphBuilder,
        student: opt_core::ValueId,
        teacher: opt_core::ValueId,
        labels: Option<opt_core::ValueId>,
    ) -> opt_core::Result<opt_core::ValueId> {
        assert!(labels.is_none(), "it does not read them");
        let difference = b.sub(student, teacher)?;
        let square = b.mul(difference, difference)?;
        b.mean_all(square)
    }
}

#[test]
fn examples_keep_their_labels_though_no_loss_reads_them() {
    let (train, test) = images(64, 32);
    let objective = Distillation::new()
        .logits(1.0, Regression)
        .from_teacher(mlp("teacher", 8, 1));
    let (_, history) = trainer(1e-2)
        .objective(objective)
        .epochs(2)
        .fit_with(
            mlp("student", 4, 2),
            &train,
            Some(&test),
            &NdarrayBackend::new(),
            &mut Silent,
        )
        .unwrap();
    assert!(history.epochs[1].val_accuracy.is_some());
}
