//! A workload that is ready to run: weights, a batch, a compiled step.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opt_core::backend::bindings_of;
use opt_core::nn::Init;
use opt_core::pass::{MixedPrecision, Pass};
use opt_core::random::Philox;
use opt_core::safetensors;
use opt_core::{
    Backend, CompileSpec, Context, DType, Error, Executable, Graph, Profile, ProfileOptions,
    Result, Session, Tensor, ValueId,
};
use opt_onnx::Importer;
use opt_train::optimizer::STEP;
use opt_train::{Adam, AdamW, CrossEntropy, StepOptions, training_graph};

use crate::models;
use crate::protocol::{Mode, Model, Optimizer, Precision, Row};
use crate::torch_names::state_dict;

/// Seed of the initial weights and the batch.
const SEED: u64 = 7;

/// A compiled step with its inputs.
pub struct Work {
    session: Box<dyn Session>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// The labels, where there is a loss.
    target: Option<Vec<i64>>,
    /// The variable that counts the steps, where the step trains.
    counter: Option<ValueId>,
    /// Number of trained entries.
    pub parameters: usize,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work")
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

/// The model of a workload and its one batch.
#[derive(Debug, Clone)]
pub struct Start {
    model: Graph,
    input: Tensor,
    target: Tensor,
}

impl Start {
    /// Builds the model and draws the batch.
    ///
    /// # Errors
    /// If the sizes do not fit each other.
    pub fn new(row: &Row) -> Result<Start> {
        let model = models::build(&row.model, SEED)?;
        let (input, target) = batch(row, &model)?;
        Ok(Start {
            model,
            input,
            target,
        })
    }

    /// A safetensors file of the batch and the initial weights, as [`crate::protocol`] says.
    ///
    /// # Errors
    /// If the weights have no names in PyTorch.
    pub fn write(&self, to: &mut impl std::io::Write) -> Result<()> {
        let entries = state_dict(self.model.variables().map(|(_, v, t)| (v.name(), t)))?;
        let mut named: Vec<(String, &Tensor)> = entries
            .iter()
            .map(|(name, t)| (format!("model.{name}"), t))
            .collect();
        named.push(("input".into(), &self.input));
        named.push(("target".into(), &self.target));
        safetensors::write(to, named.iter().map(|(n, t)| (&n[..], *t)), &[])
    }

    /// Compiles the step.
    ///
    /// # Errors
    /// If the backend cannot run it, or the row asks for what there is not.
    pub fn step(self, row: &Row, backend: &dyn Backend) -> Result<Step> {
        let parameters = self.model.parameter_count();
        let model = match row.precision {
            Precision::F32 => self.model,
            Precision::Bf16 => mixed_precision(self.model)?,
            Precision::Int8 => return Err(Error::invalid("only files have 8-bit integers")),
        };
        let target = self.target.to_vec::<i64>()?;
        let (graph, inputs) = match row.mode {
            Mode::Forward | Mode::Onnx => (model, vec![self.input]),
            Mode::Train => {
                let lr = Tensor::scalar(0f32);
                let graph = training(&model, row.optimizer)?;
                (graph, vec![self.input, self.target, lr])
            }
        };
        let counter = match row.mode {
            Mode::Forward | Mode::Onnx => None,
            Mode::Train => Some(graph.find(STEP)?),
        };
        let spec = CompileSpec::new().bind("batch", row.batch);
        Ok(Step {
            executable: backend.compile(&graph, &spec)?,
            inputs,
            target: Some(target),
            counter,
            parameters,
        })
    }

    /// Compiles the step and starts a session.
    ///
    /// # Errors
    /// As [`Start::step`].
    pub fn compile(self, row: &Row, backend: &dyn Backend) -> Result<Work> {
        self.step(row, backend)?.start()
    }
}

/// A compiled step that has not run.
#[derive(Debug)]
pub struct Step {
    executable: Arc<dyn Executable>,
    inputs: Vec<Tensor>,
    target: Option<Vec<i64>>,
    counter: Option<ValueId>,
    parameters: usize,
}

impl Step {
    /// Compiles a forward pass of an ONNX file on inputs from a safetensors file.
    ///
    /// # Errors
    /// If either cannot be read, they do not fit each other, or the backend cannot run the model.
    pub fn onnx(model: &Path, inputs: &Path, backend: &dyn Backend) -> Result<Step> {
        let graph = Importer::new().load(model)?;
        let given = safetensors::File::parse(Arc::new(std::fs::read(inputs)?))?;
        let names = graph.inputs().iter().map(|&id| graph.value(id).name());
        let inputs = names
            .map(|name| given.get(name))
            .collect::<Result<Vec<_>>>()?;
        let mut spec = CompileSpec::new();
        spec.bindings = bindings_of(&graph, &inputs)?;
        Ok(Step {
            executable: backend.compile(&graph, &spec)?,
            inputs,
            target: None,
            counter: None,
            parameters: 0,
        })
    }

    /// Starts a session.
    ///
    /// # Errors
    /// If the backend cannot.
    pub fn start(self) -> Result<Work> {
        Ok(Work {
            session: self.executable.session()?,
            inputs: self.inputs,
            outputs: Vec::new(),
            target: self.target,
            counter: self.counter,
            parameters: self.parameters,
        })
    }

    /// What it spends its time on; a step that trains does so at this rate.
    ///
    /// # Errors
    /// If the backend has no profiles, or a run fails.
    pub fn profile(mut self, lr: f64, options: &ProfileOptions) -> Result<Profile> {
        if self.counter.is_some() {
            self.inputs[2] = Tensor::scalar(lr as f32);
        }
        self.executable.profile(&self.inputs, options)
    }
}

/// The model with products and convolutions in bfloat16.
fn mixed_precision(model: Graph) -> Result<Graph> {
    let (model, _) = MixedPrecision::bf16().apply(model, &mut Context::new())?;
    Ok(model)
}

fn training(model: &Graph, optimizer: Option<Optimizer>) -> Result<Graph> {
    let options = StepOptions::default();
    match optimizer {
        Some(Optimizer::Adam) => training_graph(model, &CrossEntropy, &Adam::default(), &options),
        Some(Optimizer::AdamW) => training_graph(model, &CrossEntropy, &AdamW::default(), &options),
        None => Err(Error::invalid("a row that trains names an optimizer")),
    }
}

/// Standard normal pixels or uniform tokens, and uniform labels.
fn batch(row: &Row, model: &Graph) -> Result<(Tensor, Tensor)> {
    let integers = |stream: u64, shape: &[usize], below: usize| {
        let random = Philox::new(SEED);
        let count: usize = shape.iter().product();
        let draw = |i: usize| (random.uniform(stream, i as u64) * below as f64) as i64;
        Tensor::new(shape, (0..count).map(draw).collect::<Vec<_>>())
    };
    let normal = Init::Normal {
        mean: 0.0,
        std: 1.0,
    };
    let pixels = |sizes: &[usize]| {
        let shape = [&[row.batch], sizes].concat();
        normal.tensor(DType::F32, shape, SEED, 1)
    };
    let input = match &row.model {
        Model::Encoder {
            vocabulary, steps, ..
        } => integers(1, &[row.batch, *steps], *vocabulary),
        Model::Mlp { features, .. } => pixels(&[*features]),
        Model::Lenet5 { image, .. }
        | Model::Resnet20 { image, .. }
        | Model::Resnet50 { image, .. } => pixels(image),
        Model::Onnx { file } => Err(Error::invalid(format!("{file} has inputs of its own"))),
    }?;
    let logits = model
        .outputs()
        .next()
        .ok_or_else(|| Error::invalid("the model has no output"))?;
    let classes = model.type_of(logits).shape[1].fixed()?;
    Ok((input, integers(2, &[row.batch], classes)?))
}

impl Work {
    /// Runs steps. Gives the time of all, with the device idle before and after, and the loss of
    /// the last one, where the workload has one.
    ///
    /// # Errors
    /// If the session fails, or no step is asked for.
    pub fn run(&mut self, steps: usize, lr: f64) -> Result<(Duration, Option<f64>)> {
        if steps == 0 {
            return Err(Error::invalid("a run has one step at least"));
        }
        if self.counter.is_some() {
            self.inputs[2] = Tensor::scalar(lr as f32);
        }
        let start = Instant::now();
        for _ in 0..steps {
            self.session.run_into(&self.inputs, &mut self.outputs)?;
        }
        // Outputs may be there before the last update has ended; a variable never is.
        if let Some(counter) = self.counter {
            self.session.variable(counter)?;
        }
        let took = start.elapsed();
        let loss = match (&self.target, self.counter) {
            (None, _) => None,
            (Some(_), Some(_)) => Some(self.outputs[0].item()?),
            (Some(target), None) => Some(cross_entropy(&self.outputs[0], target)?),
        };
        Ok((took, loss))
    }

    /// Runs a forward pass; the entries of all its outputs, in their order.
    ///
    /// # Errors
    /// If the session fails, or a step would train.
    pub fn outputs(&mut self) -> Result<Vec<f32>> {
        if self.counter.is_some() {
            return Err(Error::invalid("a step that trains has a loss to compare"));
        }
        self.session.run_into(&self.inputs, &mut self.outputs)?;
        let entries = self.outputs.iter().flat_map(Tensor::to_f64s);
        Ok(entries.map(|x| x as f32).collect())
    }
}

/// The mean cross-entropy of logits `[N, C]` with class indices.
fn cross_entropy(logits: &Tensor, target: &[i64]) -> Result<f64> {
    let classes = logits.shape()[1];
    let logits = logits.to_f64s();
    let mut total = 0.0;
    for (row, &label) in logits.chunks(classes).zip(target) {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - top).exp()).sum();
        total += top + sum.ln() - row[label as usize];
    }
    Ok(total / target.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;

    fn row(mode: &str, precision: &str) -> Row {
        let row = format!(
            r#"{{"name": "r", "mode": "{mode}", "batch": 4, "optimizer": "adam",
            "precision": "{precision}",
            "model": {{"kind": "mlp", "features": 6, "hidden": [5], "classes": 3}}}}"#
        );
        serde_json::from_str(&row).unwrap()
    }

    fn work(row: &Row) -> Result<Work> {
        let backend = backend::open("ndarray", "cpu", 1).unwrap();
        Start::new(row)?.compile(row, &*backend)
    }

    #[test]
    fn steps_train_at_the_rate_of_the_run() {
        let mut train = work(&row("train", "f32")).unwrap();
        let mut forward = work(&row("forward", "f32")).unwrap();
        let loss = |work: &mut Work, steps, lr| work.run(steps, lr).unwrap().1.unwrap();
        let first = loss(&mut train, 1, 0.0);
        let again = loss(&mut train, 2, 0.0);
        let logits = loss(&mut forward, 1, 0.0);
        assert_eq!(first, again);
        assert!((first - logits).abs() < 1e-6, "{first} {logits}");
        let later = loss(&mut train, 20, 0.1);
        assert!(later < 0.5 * first, "{later} {first}");
        assert!(train.outputs().is_err());
        assert_eq!(forward.outputs().unwrap().len(), 4 * 3);
        assert!(train.run(0, 0.1).is_err());
    }

    #[test]
    fn profiles_have_the_products_of_the_step() {
        let backend = backend::open("ndarray", "cpu", 1).unwrap();
        let options = ProfileOptions::new().warmup(1).runs(2);
        let macs = |mode: &str| {
            let row = row(mode, "f32");
            let step = Start::new(&row).unwrap().step(&row, &*backend).unwrap();
            let profile = step.profile(0.1, &options).unwrap();
            profile.steps.iter().map(|s| s.macs).sum::<u64>()
        };
        let (first, second) = (4 * 6 * 5, 4 * 5 * 3);
        assert_eq!(macs("forward"), first + second);
        // Both weights' gradients, and that of the hidden layer.
        assert_eq!(macs("train"), 2 * first + 3 * second);
    }

    #[test]
    fn the_file_has_the_weights_and_the_batch() {
        let mut bytes = Vec::new();
        Start::new(&row("train", "f32"))
            .unwrap()
            .write(&mut bytes)
            .unwrap();
        let file = safetensors::File::parse(Arc::new(bytes)).unwrap();
        let mut names = file.names().to_vec();
        names.sort();
        let weights = [
            "model.fc1.bias",
            "model.fc1.weight",
            "model.fc2.bias",
            "model.fc2.weight",
        ];
        assert_eq!(names, [&["input"], &weights[..], &["target"]].concat());
        assert_eq!(file.get("input").unwrap().shape(), [4, 6]);
        let labels = file.get("target").unwrap().to_vec::<i64>().unwrap();
        assert!(labels.iter().all(|l| (0..3).contains(l)) && labels.len() == 4);
    }

    #[test]
    fn rows_in_bf16_multiply_in_bf16() {
        let mut work = work(&row("train", "bf16")).unwrap();
        let before = work.run(1, 0.01).unwrap().1.unwrap();
        let after = work.run(5, 0.01).unwrap().1.unwrap();
        assert!(before.is_finite() && after < before, "{before} {after}");
    }
}
