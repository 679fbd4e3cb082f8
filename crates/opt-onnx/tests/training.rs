//! Imported models train as they do in PyTorch, and go back to ONNX trained.

use std::path::PathBuf;

use opt_core::pass::EvalMode;
use opt_core::{Backend, Graph, Tensor};
use opt_data::npz::Npz;
use opt_ndarray::NdarrayBackend;
use opt_onnx::{Exporter, Importer, trainable};
use opt_train::{AdamW, CrossEntropy, Optimizer, Sgd, StepOptions, training_graph};

const BATCH: usize = 16;
const STEPS: usize = 20;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/training")
        .join(name)
}

fn losses() -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(golden("losses.json")).unwrap()).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(list) => list.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

/// The inputs of the graph and the labels, as the rows of a data set.
fn data(graph: &Graph, file: &str) -> Vec<Tensor> {
    let mut npz = Npz::open(golden(file)).unwrap();
    let names = graph
        .inputs()
        .iter()
        .map(|&id| graph.value(id).name().to_string());
    let names: Vec<String> = names.chain(["label".into()]).collect();
    names.iter().map(|n| npz.tensor(n).unwrap()).collect()
}

fn rows(all: &[Tensor], step: usize) -> Vec<Tensor> {
    let index: Vec<usize> = (step * BATCH..(step + 1) * BATCH).collect();
    all.iter()
        .map(|t| t.select(0, &index).unwrap().contiguous())
        .collect()
}

fn close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * (1e-3 + b.abs()).max(tolerance),
            "{what}: entry {i} is {a}, PyTorch has {b}"
        );
    }
}

/// Trains for 20 steps; the losses before each update and the trained model.
fn train(model: &str, file: &str, optimizer: &dyn Optimizer, lr: f32) -> (Vec<f64>, Graph) {
    let graph = Importer::new().load(golden(model)).unwrap();
    let all = data(&graph, file);
    let graph = trainable(graph, |_| true).unwrap();
    let step = training_graph(&graph, &CrossEntropy, optimizer, &StepOptions::default());
    let step = step.unwrap();
    let backend = NdarrayBackend::new().threads(1);
    let mut inputs = rows(&all, 0);
    inputs.push(Tensor::scalar(lr));
    let mut spec = opt_core::backend::CompileSpec::new();
    spec.bindings = opt_core::backend::bindings_of(&step, &inputs).unwrap();
    let mut session = backend.compile(&step, &spec).unwrap().session().unwrap();
    let mut found = Vec::new();
    for k in 0..STEPS {
        let mut inputs = rows(&all, k);
        inputs.push(Tensor::scalar(lr));
        found.push(session.run(&inputs).unwrap()[0].item().unwrap());
    }
    let mut trained = graph;
    let ids: Vec<_> = trained.variables().map(|(id, ..)| id).collect();
    for id in ids {
        // Parameters that the loss does not depend on are in no training step.
        if let Ok(content) = session.variable(id) {
            trained.set_variable(id, content).unwrap();
        }
    }
    (found, trained)
}

fn check(model: &str, golden_name: &str, file: &str) {
    let expected = &losses()[golden_name];
    let (found, trained) = train(model, file, &Sgd::momentum(0.9), 0.05);
    close(
        &found,
        &numbers(&expected["sgd"]),
        1e-4,
        &format!("{model} with SGD"),
    );

    // The trained model goes to ONNX and comes back with PyTorch's answers.
    let (trained, _) = EvalMode::switch(trained).unwrap();
    let bytes = Exporter::new().to_bytes(&trained).unwrap();
    let back = Importer::new().read(bytes).unwrap();
    let mut inputs = rows(&data(&back, file), 0);
    inputs.pop();
    let outputs = NdarrayBackend::new().run_once(&back, &inputs).unwrap();
    let expected_outputs = numbers(&expected["trained"]);
    for (a, b) in outputs[0].to_f64s().iter().zip(&expected_outputs) {
        assert!(
            (a - b).abs() < 1e-3 * (1.0 + b.abs()),
            "{model} trained: {a} against {b}"
        );
    }

    let (found, _) = train(model, file, &AdamW::default(), 1e-3);
    close(
        &found,
        &numbers(&expected["adamw"]),
        1e-4,
        &format!("{model} with AdamW"),
    );
}

#[test]
fn a_multi_layer_perceptron_trains_like_in_pytorch() {
    check("mlp_torchscript.onnx", "mlp", "mlp.npz");
    check("mlp_dynamo.onnx", "mlp", "mlp.npz");
}

#[test]
fn a_residual_network_with_batch_norm_trains_like_in_pytorch() {
    check("cnn_torchscript.onnx", "cnn", "cnn.npz");
    check("cnn_dynamo.onnx", "cnn", "cnn.npz");
}

#[test]
fn parameters_that_were_stored_once_are_trained_apart() {
    check("cnn_fresh_torchscript.onnx", "cnn_fresh", "cnn.npz");
}

#[test]
fn an_lstm_trains_like_in_pytorch() {
    check("lstm_torchscript.onnx", "lstm", "lstm.npz");
    check("lstm_dynamo_optimized.onnx", "lstm", "lstm.npz");
}

#[test]
fn an_encoder_trains_like_in_pytorch() {
    check("bert_torchscript.onnx", "bert", "bert.npz");
    check("bert_dynamo_optimized.onnx", "bert", "bert.npz");
}
