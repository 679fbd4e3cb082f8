//! Imported models train as they do in PyTorch, on every backend, and go back to ONNX trained.

use std::path::PathBuf;

use opt_core::pass::EvalMode;
use opt_core::{Backend, Error, Graph, Result, ResultExt, Tensor};
use opt_data::npz::Npz;
use opt_onnx::{Exporter, Importer, trainable};
use opt_train::{AdamW, CrossEntropy, Optimizer, Sgd, StepOptions, training_graph};

/// Rows of a batch.
const BATCH: usize = 16;
const STEPS: usize = 20;

/// The models, the names of their losses and the files of their data.
const MODELS: [(&str, &str, &str); 9] = [
    ("mlp_torchscript.onnx", "mlp", "mlp.npz"),
    ("mlp_dynamo.onnx", "mlp", "mlp.npz"),
    ("cnn_torchscript.onnx", "cnn", "cnn.npz"),
    ("cnn_dynamo.onnx", "cnn", "cnn.npz"),
    ("cnn_fresh_torchscript.onnx", "cnn_fresh", "cnn.npz"),
    ("lstm_torchscript.onnx", "lstm", "lstm.npz"),
    ("lstm_dynamo_optimized.onnx", "lstm", "lstm.npz"),
    ("bert_torchscript.onnx", "bert", "bert.npz"),
    ("bert_dynamo_optimized.onnx", "bert", "bert.npz"),
];

/// Trains models that PyTorch exported (multi-layer perceptron, residual network with batch
/// normalization, LSTM, encoder) for 20 steps with SGD and with AdamW, and compares the losses
/// with PyTorch's; one line for each model that does not train alike.
pub fn failures(backend: &dyn Backend) -> Vec<String> {
    let run = |(model, golden, file): &(&str, &str, &str)| {
        let checked = check(backend, model, golden, file).at(|| model.to_string());
        checked.err().map(|e| e.to_string())
    };
    MODELS.iter().filter_map(run).collect()
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../opt-onnx/tests/golden/training")
        .join(name)
}

fn losses() -> Result<serde_json::Value> {
    let text = std::fs::read_to_string(golden("losses.json"))?;
    serde_json::from_str(&text).map_err(|e| Error::invalid(format!("losses.json: {e}")))
}

fn numbers(value: &serde_json::Value) -> Result<Vec<f64>> {
    match value {
        serde_json::Value::Array(list) => {
            let lists: Vec<Vec<f64>> = list.iter().map(numbers).collect::<Result<_>>()?;
            Ok(lists.concat())
        }
        other => match other.as_f64() {
            Some(number) => Ok(vec![number]),
            None => Err(Error::invalid(format!("`{other}` is no number"))),
        },
    }
}

/// The inputs of the graph and the labels, as the rows of a data set.
fn data(graph: &Graph, file: &str) -> Result<Vec<Tensor>> {
    let mut npz = Npz::open(golden(file))?;
    let names = graph
        .inputs()
        .iter()
        .map(|&id| graph.value(id).name().to_string());
    let names: Vec<String> = names.chain(["label".into()]).collect();
    names.iter().map(|n| npz.tensor(n)).collect()
}

fn rows(all: &[Tensor], step: usize) -> Result<Vec<Tensor>> {
    let index: Vec<usize> = (step * BATCH..(step + 1) * BATCH).collect();
    let select = |t: &Tensor| Ok(t.select(0, &index)?.contiguous());
    all.iter().map(select).collect()
}

/// Fails unless losses are within 1e-4 of those expected.
fn close(found: &[f64], expected: &[f64]) -> Result<()> {
    const TOLERANCE: f64 = 1e-4;
    if found.len() != expected.len() {
        return Err(Error::invalid(format!(
            "{} losses for {}",
            found.len(),
            expected.len()
        )));
    }
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let near = (a - b).abs() <= TOLERANCE * (1e-3 + b.abs()).max(TOLERANCE);
        if !near {
            return Err(Error::invalid(format!("loss {i} is {a}, PyTorch has {b}")));
        }
    }
    Ok(())
}

/// Trains for 20 steps; the losses before each update and the trained model.
fn train(
    backend: &dyn Backend,
    model: &str,
    file: &str,
    optimizer: &dyn Optimizer,
    lr: f32,
) -> Result<(Vec<f64>, Graph)> {
    let graph = Importer::new().load(golden(model))?;
    let all = data(&graph, file)?;
    let graph = trainable(graph, |_| true)?;
    let step = training_graph(&graph, &CrossEntropy, optimizer, &StepOptions::default())?;
    let mut inputs = rows(&all, 0)?;
    inputs.push(Tensor::scalar(lr));
    let mut spec = opt_core::backend::CompileSpec::new();
    spec.bindings = opt_core::backend::bindings_of(&step, &inputs)?;
    let mut session = backend.compile(&step, &spec)?.session()?;
    let mut found = Vec::new();
    for k in 0..STEPS {
        let mut inputs = rows(&all, k)?;
        inputs.push(Tensor::scalar(lr));
        found.push(session.run(&inputs)?[0].item()?);
    }
    let mut trained = graph;
    let ids: Vec<_> = trained.variables().map(|(id, ..)| id).collect();
    for id in ids {
        // Parameters that the loss does not depend on are in no training step.
        if let Ok(content) = session.variable(id) {
            trained.set_variable(id, content)?;
        }
    }
    Ok((found, trained))
}

fn check(backend: &dyn Backend, model: &str, name: &str, file: &str) -> Result<()> {
    let expected = &losses()?[name];
    let (found, trained) = train(backend, model, file, &Sgd::momentum(0.9), 0.05)?;
    close(&found, &numbers(&expected["sgd"])?).at(|| "SGD")?;

    // The trained model goes to ONNX and comes back with PyTorch's answers.
    let (trained, _) = EvalMode::switch(trained)?;
    let bytes = Exporter::new().to_bytes(&trained)?;
    let back = Importer::new().read(bytes)?;
    let mut inputs = rows(&data(&back, file)?, 0)?;
    inputs.pop();
    let outputs = backend.run_once(&back, &inputs)?;
    let answers = numbers(&expected["trained"])?;
    for (a, b) in outputs[0].to_f64s().iter().zip(&answers) {
        let near = (a - b).abs() < 1e-3 * (1.0 + b.abs());
        if !near {
            return Err(Error::invalid(format!("trained: {a} against {b}")));
        }
    }

    let (found, _) = train(backend, model, file, &AdamW::default(), 1e-3)?;
    close(&found, &numbers(&expected["adamw"])?).at(|| "AdamW")
}
