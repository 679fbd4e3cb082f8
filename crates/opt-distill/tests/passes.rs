//! Distillation as a pass: with masks, after pruning, within quantization-aware training, in
//! mixed precision, from imported teachers; and what is refused.

mod common;

use common::{cnn, images, logits, mlp, trainer, unlabelled, weights};
use opt_core::nn::{Dropout, Linear, ModelBuilder};
use opt_core::ops::Op;
use opt_core::pass::{MixedPrecision, TrainMode};
use opt_core::{
    Context, DType, Dim, Fact, Graph, GraphBuilder, Needs, Pass, Pipeline, Shape, Tensor,
    TensorType,
};
use opt_distill::{
    AttentionTransfer, Distil, Distillation, Dkd, FromTeacher, Hint, LayerMap, LayerPair, Mutual,
    SelfDistillation, SoftTargets,
};
use opt_ndarray::NdarrayBackend;
use opt_onnx::{Exporter, Importer};
use opt_prune::{ChannelPrune, UnstructuredPrune};
use opt_quant::{Config, QuantizeAware};
use opt_train::{CrossEntropy, Sgd, StepOptions, training_graph};

fn distillation() -> Distillation {
    Distillation::new()
        .logits(1.0, SoftTargets::only(4.0))
        .features(2.0, Hint::mse(), LayerPair::new("n2", "n2").project())
        .features(
            10.0,
            AttentionTransfer::default(),
            LayerPair::new("n1", "n1"),
        )
        .labels(0.1, CrossEntropy)
}

fn run(pipeline: Pipeline, student: Graph, teacher: &Graph) -> opt_core::Result<Graph> {
    let (train, _) = images(96, 1);
    let backend = NdarrayBackend::new();
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_training(&train)
        .with_calibration(&train)
        .with_validation(&train)
        .with_teacher(teacher);
    Ok(pipeline.run(student, &mut cx)?.0)
}

#[test]
fn masks_hold() {
    let teacher = cnn("teacher", [5, 7], 1);
    let pipeline = Pipeline::new()
        .then(UnstructuredPrune::new(0.6))
        .then(Distil::new(distillation(), trainer(1e-2).epochs(2)));
    let before = cnn("student", [4, 6], 2);
    let after = run(pipeline, before.clone(), &teacher).unwrap();
    let mut masked = 0;
    for (id, v, content) in after.variables() {
        if let Some(mask) = after.facts().mask(id) {
            Fact::Mask(mask.clone()).check(content).unwrap();
            let zeros = content.to_f64s().iter().filter(|&&w| w == 0.0).count();
            assert!(zeros * 2 > content.len(), "{}", v.name());
            masked += 1;
        }
    }
    assert_eq!(masked, 3);
    assert_ne!(weights(&after), weights(&before));
}

#[test]
fn a_pruned_and_quantized_student_has_the_same_layers() {
    let teacher = cnn("teacher", [8, 12], 1);
    let distil = |epochs| Distil::new(distillation(), trainer(5e-3).epochs(epochs));
    let pipeline = Pipeline::new()
        .then(ChannelPrune::to_widths([("c1.", 3), ("c2.", 5)]))
        .then(distil(2));
    let small = run(pipeline, teacher.clone(), &teacher).unwrap();
    let weight = small.find("c2.weight").unwrap();
    assert_eq!(small.type_of(weight).to_string(), "f32[5,3,3,3]");
    let aware = QuantizeAware::new(Config::default(), distil(1));
    let int8 = run(Pipeline::new().then(aware), small.clone(), &teacher).unwrap();
    let quantized = int8
        .nodes()
        .filter(|(_, n)| matches!(n.op(), Op::Quantize(_)))
        .count();
    assert!(quantized > 0);
    let names = |g: &Graph| g.values().any(|(_, v)| v.name().contains("distil"));
    assert!(!names(&small) && !names(&int8));
    let (_, test) = images(1, 50);
    assert!(logits(&int8, &test).is_finite());
}

#[test]
fn mixed_precision_distils_in_f32() {
    let (train, _) = images(96, 1);
    let teacher = cnn("teacher", [5, 7], 1);
    let student = cnn("student", [3, 4], 2);
    let losses = |mixed: Option<MixedPrecision>| {
        let mut trainer = trainer(5e-3).epochs(3);
        if let Some(pass) = mixed {
            trainer = trainer.mixed_precision(pass);
        }
        let objective = distillation().from_teacher(teacher.clone());
        let (_, history) = trainer
            .objective(objective)
            .fit(student.clone(), &train, &NdarrayBackend::new())
            .unwrap();
        (history.epochs[0].loss, history.epochs[2].loss)
    };
    let (first, last) = losses(None);
    for pass in [MixedPrecision::bf16(), MixedPrecision::f16()] {
        let (a, b) = losses(Some(pass));
        assert!((a - first).abs() < 0.02 * first, "{a} {first}");
        assert!((b - last).abs() < 0.05 * last, "{b} {last}");
    }
}

#[test]
fn an_imported_teacher_has_its_own_symbols_and_names() {
    let (train, _) = images(64, 1);
    let backend = NdarrayBackend::new();
    // The same network whose batch has another name, written and read.
    let mut b = GraphBuilder::new("exported");
    let dims = [Dim::from("N"), 1.into(), 8.into(), 8.into()];
    let x = b
        .input("pixels", TensorType::new(DType::F32, Shape::new(dims)))
        .unwrap();
    let x = b.flatten(x, 1).unwrap();
    let w = opt_core::nn::Init::LINEAR
        .tensor(DType::F32, [10, 64], 1, 0)
        .unwrap();
    let w = b.variable("weight", w).unwrap();
    let h = b.matmul_t(x, w, false, true).unwrap();
    b.rename(h, "encoder/hidden").unwrap();
    let y = b.mul_scalar(h, 2.0).unwrap();
    b.output("logits", y).unwrap();
    let graph = b.finish().unwrap();
    let bytes = Exporter::new().to_bytes(&graph).unwrap();
    let teacher = Importer::new().read(bytes).unwrap();
    let pair = || LayerPair::new("head", "encoder/hidden");
    let objective = Distillation::new()
        .logits(1.0, SoftTargets::default())
        .features(1.0, Hint::mse(), pair())
        .from_teacher(teacher);
    let trainer = trainer(1e-2).epochs(2);
    let fit = |objective: FromTeacher| {
        let trainer = trainer.clone().objective(objective);
        trainer.fit(mlp("student", 6, 2), &train, &backend).unwrap()
    };
    let (imported, _) = fit(objective);
    let objective = Distillation::new()
        .logits(1.0, SoftTargets::default())
        .features(1.0, Hint::mse(), pair())
        .from_teacher(graph);
    let (built, _) = fit(objective);
    for ((_, a), (_, b)) in weights(&imported).iter().zip(weights(&built)) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}

#[test]
fn a_teacher_in_training_mode_teaches_in_evaluation_mode() {
    let (train, _) = images(64, 1);
    let teacher = cnn("teacher", [5, 7], 1);
    let (training, changed) = TrainMode::switch(teacher.clone()).unwrap();
    assert_eq!(changed, 2);
    let fit = |teacher: Graph| {
        let (graph, _) = trainer(1e-2)
            .objective(distillation().from_teacher(teacher))
            .epochs(2)
            .fit(cnn("student", [3, 4], 2), &train, &NdarrayBackend::new())
            .unwrap();
        weights(&graph)
    };
    assert_eq!(fit(training), fit(teacher));
}

/// A network with dropout, in training mode, whose hidden layer is masked.
fn masked(seed: u64) -> Graph {
    let mut b = ModelBuilder::new("masked", seed);
    let x = b.batch("x", [1, 8, 8]).unwrap();
    let x = b.flatten(x, 1).unwrap();
    let x = b.layer("hidden", Linear::new(8), x).unwrap();
    let x = b.relu(x).unwrap();
    let x = b.layer("drop", Dropout::new(0.2), x).unwrap();
    let y = b.layer("head", Linear::new(10), x).unwrap();
    b.output("logits", y).unwrap();
    let (mut graph, _) = TrainMode::switch(b.finish().unwrap()).unwrap();
    let weight = graph.find("hidden.weight").unwrap();
    let keep: Vec<bool> = (0..8 * 64).map(|i| i % 3 != 0).collect();
    let mut content = graph.value(weight).tensor().unwrap().to_f64s();
    for (w, &keep) in content.iter_mut().zip(&keep) {
        *w *= f64::from(u8::from(keep));
    }
    let content = Tensor::from_f64s(DType::F32, [8, 64], &content).unwrap();
    graph.set_variable(weight, content).unwrap();
    let mask = Tensor::from_bools([8, 64], keep).unwrap();
    graph.facts_mut().insert(weight, Fact::Mask(mask));
    graph
}

#[test]
fn students_that_learn_together_keep_masks_and_modes() {
    let (train, _) = images(64, 1);
    let students = vec![masked(1), masked(2)];
    let (trained, history) = Mutual::default()
        .fit(
            students.clone(),
            &trainer(1e-2).epochs(3),
            &train,
            &NdarrayBackend::new(),
        )
        .unwrap();
    assert!(history.epochs[2].loss < history.epochs[0].loss);
    for (trained, before) in trained.iter().zip(&students) {
        trained.verify().unwrap();
        let training = |g: &Graph| {
            g.nodes()
                .any(|(_, n)| matches!(n.op(), Op::Dropout(d) if d.training))
        };
        assert!(training(trained));
        let hidden = |g: &Graph| {
            let id = g.find("hidden.weight").unwrap();
            assert!(g.facts().mask(id).is_some());
            g.value(id).tensor().unwrap().to_f64s()
        };
        assert_ne!(hidden(trained), hidden(before));
    }
}

fn two_inputs(order: [&str; 2], scale: f64) -> Graph {
    let mut b = GraphBuilder::new("two");
    for name in order {
        let size = if name == "a" { 2 } else { 3 };
        let shape = Shape::new([Dim::from("batch"), size.into()]);
        b.input(name, TensorType::new(DType::F32, shape)).unwrap();
    }
    let [a, c] = ["a", "b"].map(|n| b.graph().find(n).unwrap());
    let both = b.concat(&[a, c], 1).unwrap();
    let w = Tensor::full(DType::F32, [5], scale).unwrap();
    let w = b.variable("w", w).unwrap();
    let y = b.mul(both, w).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

#[test]
fn inputs_are_matched_by_name() {
    let objective = SoftTargets::default().from_teacher(two_inputs(["b", "a"], 2.0));
    let student = two_inputs(["a", "b"], 1.0);
    training_graph(
        &student,
        &objective,
        &Sgd::default(),
        &StepOptions::default(),
    )
    .unwrap();
}

fn refused(student: &Graph, objective: FromTeacher) -> String {
    training_graph(
        student,
        &objective,
        &Sgd::default(),
        &StepOptions::default(),
    )
    .unwrap_err()
    .to_string()
}

#[test]
fn what_does_not_fit_is_named() {
    let (student, teacher) = (cnn("student", [3, 4], 2), cnn("teacher", [5, 7], 1));
    let new = || Distillation::new().logits(1.0, SoftTargets::default());
    let features = |pair: LayerPair| {
        let objective = new().features(1.0, Hint::mse(), pair);
        refused(&student, objective.from_teacher(teacher.clone()))
    };
    let says = |error: String, parts: &[&str]| {
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    };
    // Layers.
    let error = features(LayerPair::new("n3", "n2"));
    says(error, &["the student has no layer `n3`", "`n1`", "`n2`"]);
    let error = features(LayerPair::new("n2", "layer2"));
    says(error, &["the teacher has no layer `layer2`", "near are"]);
    let error = features(LayerPair::new("c1.weight", "n2"));
    says(error, &["`c1.weight` is a parameter of the student"]);
    let error = features(LayerPair::new("teacher.n2", "n2"));
    says(error, &["the student has no layer `teacher.n2`"]);
    // Shapes.
    let error = features(LayerPair::new("n2", "n2"));
    says(error, &["f32[batch,4,4,4]", "f32[batch,7,4,4]", "project"]);
    let error = features(LayerPair::new("n1", "n2").project());
    says(error, &["f32[batch,3,8,8]", "f32[batch,7,4,4]", "pool"]);
    let error = features(LayerPair::new("fc", "n2").project());
    says(error, &["f32[batch,10]", "f32[batch,7,4,4]", "rank"]);
    // Teachers.
    let error = refused(&student, new().from_teacher(two_inputs(["a", "b"], 1.0)));
    says(error, &["takes 2 inputs (`a`, `b`)", "`x`"]);
    let mut b = GraphBuilder::new("fixed");
    let x = b
        .input("image", TensorType::new(DType::F32, [1, 1, 8, 8]))
        .unwrap();
    let y = b.flatten(x, 1).unwrap();
    b.output("y", y).unwrap();
    let error = refused(&student, new().from_teacher(b.finish().unwrap()));
    says(error, &["image", "f32[1,1,8,8]", "symbolic"]);
    let error = refused(&student, new().from_teachers([]));
    says(error, &["no teacher"]);
    let error = refused(&student, new().from_teachers([(-1.0, teacher.clone())]));
    says(error, &["weight of a teacher"]);
    // Settings.
    let error = refused(&student, Distillation::new().from_teacher(teacher.clone()));
    says(error, &["no loss against a teacher"]);
    for weight in [0.0, -1.0, f64::NAN] {
        let objective = Distillation::new().logits(weight, SoftTargets::default());
        let error = refused(&student, objective.from_teacher(teacher.clone()));
        says(error, &["weight of a loss"]);
    }
    let objective = Distillation::new().logits(1.0, Dkd::default()).unlabelled();
    let error = refused(&student, objective.from_teacher(teacher.clone()));
    says(error, &["Dkd", "needs labels"]);
    let objective = new().features(1.0, Hint::mse(), LayerMap::default());
    let error = refused(&student, objective.from_teacher(teacher.clone()));
    says(error, &["no pair of layers"]);
    let error = training_graph(
        &student,
        &SelfDistillation::default(),
        &Sgd::default(),
        &StepOptions::default(),
    );
    says(error.unwrap_err().to_string(), &["1 outputs", "exit"]);
    // Students of different inputs.
    let (train, _) = images(8, 1);
    let error = Mutual::default()
        .fit(
            vec![mlp("a", 3, 1), two_inputs(["a", "b"], 1.0)],
            &trainer(1e-2),
            &train,
            &NdarrayBackend::new(),
        )
        .unwrap_err();
    says(error.to_string(), &["student1", "takes 2 inputs"]);
}

#[test]
fn data_that_does_not_fit_is_an_error() {
    let (train, _) = images(8, 1);
    let backend = NdarrayBackend::new();
    let run = |distillation: Distillation, data: &opt_data::TensorDataset| {
        trainer(1e-2)
            .objective(distillation.from_teacher(mlp("teacher", 4, 1)))
            .fit(mlp("student", 3, 2), data, &backend)
            .unwrap_err()
            .to_string()
    };
    let new = || Distillation::new().logits(1.0, SoftTargets::only(2.0));
    let error = run(new(), &unlabelled(&train));
    assert!(error.contains("target i64[batch]"), "{error}");
    let error = run(new().unlabelled(), &train);
    assert!(error.contains("2 fields"), "{error}");
    let labels = Tensor::full(DType::I64, [8], 10.0).unwrap();
    let wrong = opt_data::TensorDataset::new(vec![train.fields()[0].clone(), labels]).unwrap();
    let error = run(new(), &wrong);
    assert!(error.contains("the label 10"), "{error}");
}

#[test]
fn the_configuration_states_all_settings() {
    let distillation = Distillation::new()
        .logits(2.0, Dkd::default())
        .features(
            50.0,
            Hint::mse(),
            LayerPair::new("c2", "layer2").project().pool(),
        )
        .labels(0.5, CrossEntropy)
        .seed(3);
    let pass = Distil::new(distillation.clone(), trainer(1e-2).epochs(7));
    let text = pass.config();
    let table: toml::Table = text.parse().unwrap();
    assert_eq!(table["features"][0]["weight"].as_float(), Some(50.0));
    for line in [
        "seed = 3",
        "average = \"probabilities\"",
        "unlabelled = false",
        "loss = \"Dkd { alpha: 1.0, beta: 8.0, temperature: 4.0 }\"",
        "layers = [{ student = \"c2\", teacher = \"layer2\", project = \"Always\", pool = true, of \
         = 0 }]",
        "loss = \"CrossEntropy\"",
        "epochs = 7",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(pass.needs(), Needs::TEACHER);
    let pass = Distil::new(distillation, trainer(1e-2)).teachers([(1.0, mlp("t", 2, 1))]);
    assert_eq!(pass.needs(), Needs::TRAINING);
    assert!(pass.config().contains("graph = \"t\""));
}

#[test]
fn a_pass_with_its_own_teachers_needs_no_other() {
    let (train, _) = images(32, 1);
    let backend = NdarrayBackend::new();
    let teachers = [(1.0, mlp("t", 4, 1)), (2.0, mlp("t", 6, 3))];
    let pass = Distil::new(SoftTargets::default(), trainer(1e-2).epochs(1)).teachers(teachers);
    let mut cx = Context::new().with_backend(&backend).with_training(&train);
    let (_, report) = Pipeline::new()
        .then(pass)
        .run(mlp("student", 3, 2), &mut cx)
        .map(|(g, r)| (g, r.len()))
        .unwrap();
    assert_eq!(report, 1);
}
