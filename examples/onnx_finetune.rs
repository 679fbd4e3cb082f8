//! Trains an ONNX model further:
//! `cargo run --release --example onnx_finetune -- MODEL OUT --data TRAIN.npz --labels y --loss
//! cross_entropy --optimizer sgd --lr 0.05 --batch 16 --steps 100`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use opt_core::backend::{CompileSpec, bindings_of};
use opt_core::file::write_atomically;
use opt_core::pass::EvalMode;
use opt_core::random::Philox;
use opt_core::{
    Backend, Context, DType, Error, ErrorKind, Event, Graph, Observer, Pass, Result, Tensor,
};
use opt_data::TensorDataset;
use opt_distill::SoftTargets;
use opt_examples::{BackendArgs, OptimizerArgs, arrays, fixed_batch, load, matching, run};
use opt_onnx::{Exporter, Importer, trainable};
use opt_prune::UnstructuredPrune;
use opt_quant::{Config, ConvertQat, PrepareQat};
use opt_train::{
    Bce, CrossEntropy, Huber, Mae, Mse, Objective, SmoothedCrossEntropy, StepOptions, Supervised,
    training_graph,
};

/// Trains an ONNX model on arrays from an npz file.
#[derive(Debug, Parser)]
struct Args {
    /// The model.
    model: PathBuf,
    /// Where to write the trained model.
    out: PathBuf,
    /// Arrays named by the model's inputs, and the labels; samples first.
    #[arg(long)]
    data: PathBuf,
    /// The array of the labels: class indices (int64) or values.
    #[arg(long)]
    labels: String,
    /// `cross_entropy`, `mse`, `mae`, `huber` or `bce`, of the model's first output.
    #[arg(long)]
    loss: String,
    /// The probability that `cross_entropy` spreads over all classes.
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f64,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    /// The learning rate.
    #[arg(long)]
    lr: f32,
    /// Samples a step.
    #[arg(long)]
    batch: usize,
    /// Steps.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Takes the samples in their order.
    #[arg(long)]
    no_shuffle: bool,
    /// The seed of the shuffling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Trains with the rounding of 8-bit integers and writes the quantized model.
    #[arg(long)]
    qat: bool,
    /// The share of weights set to zero first, which stay so.
    #[arg(long)]
    sparsity: Option<f64>,
    /// Learns from this model's outputs too.
    #[arg(long)]
    teacher: Option<PathBuf>,
    /// The temperature of the teacher's outputs.
    #[arg(long, default_value_t = 4.0, requires = "teacher")]
    temperature: f64,
    /// The weight of the teacher's outputs against the labels, 0 to 1.
    #[arg(long, default_value_t = 0.9, requires = "teacher")]
    alpha: f64,
    /// Where to write the loss of each step.
    #[arg(long)]
    log: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| command(&args))
}

/// The labels, as the loss takes them.
fn labels(args: &Args, model: &Graph, given: &[(String, Tensor)]) -> Result<Tensor> {
    let name = &args.labels;
    let Some((_, labels)) = given.iter().find(|(n, _)| n == name) else {
        let names: Vec<&str> = given.iter().map(|(n, _)| n.as_str()).collect();
        return Err(Error::invalid(format!(
            "there are no labels `{name}` among {names:?}"
        )));
    };
    let output = model
        .outputs()
        .next()
        .ok_or_else(|| Error::invalid("the model has no output"))?;
    let output = model.type_of(output);
    let (dtype, shape) = (labels.dtype(), labels.shape());
    if args.loss != "cross_entropy" {
        return match dtype.is_float() {
            true => Ok(labels.cast(output.dtype)),
            false => Err(Error::invalid(format!(
                "the labels `{name}` are {dtype}{shape:?}; {} takes floats like the output's \
                 {output}",
                args.loss
            ))),
        };
    }
    if !matches!(dtype, DType::I32 | DType::I64) || shape.is_empty() {
        return Err(Error::invalid(format!(
            "the labels `{name}` are {dtype}{shape:?}; cross_entropy takes class indices (i64), \
             one a sample, for the output {output}"
        )));
    }
    if let Some(classes) = output.shape.dims().get(1).and_then(|d| d.as_fixed()) {
        let values = labels.to_f64s();
        let bad = |v: &f64| *v < 0.0 || *v >= classes as f64;
        if let Some(at) = values.iter().position(bad) {
            let sample = at / (values.len() / shape[0]);
            return Err(Error::new(
                ErrorKind::Data,
                format!(
                    "the label {} of sample {sample} is not in 0..{classes}",
                    values[at]
                ),
            ));
        }
    }
    Ok(labels.cast(DType::I64))
}

fn objective(args: &Args) -> Result<Box<dyn Objective>> {
    match (args.loss.as_str(), &args.teacher) {
        ("cross_entropy", None) if args.label_smoothing == 0.0 => Ok(Box::new(CrossEntropy)),
        ("cross_entropy", None) => Ok(Box::new(Supervised(SmoothedCrossEntropy {
            label_smoothing: args.label_smoothing,
        }))),
        (loss, _) if args.label_smoothing != 0.0 => Err(Error::invalid(format!(
            "`--label-smoothing` is for cross_entropy with labels alone, not for {loss}{}",
            args.teacher.as_ref().map_or("", |_| " with `--teacher`")
        ))),
        ("mse", None) => Ok(Box::new(Supervised(Mse))),
        ("mae", None) => Ok(Box::new(Supervised(Mae))),
        ("huber", None) => Ok(Box::new(Supervised(Huber::default()))),
        ("bce", None) => Ok(Box::new(Supervised(Bce))),
        ("cross_entropy", Some(path)) => {
            let targets = SoftTargets {
                temperature: args.temperature,
                alpha: args.alpha,
            };
            Ok(Box::new(targets.from_teacher(Importer::new().load(path)?)))
        }
        ("mse" | "mae" | "huber" | "bce", Some(_)) => Err(Error::invalid(
            "a teacher's outputs are classes; use `--loss cross_entropy` with `--teacher`",
        )),
        (other, _) => Err(Error::invalid(format!(
            "there is no loss `{other}`; use cross_entropy, mse, mae, huber or bce"
        ))),
    }
}

/// The order in which samples are taken.
struct Order {
    indices: Vec<usize>,
    at: usize,
    shuffle: Option<Philox>,
    epoch: u64,
}

impl Order {
    fn new(samples: usize, shuffle: Option<Philox>) -> Order {
        let mut order = Order {
            indices: (0..samples).collect(),
            at: 0,
            shuffle,
            epoch: 0,
        };
        order.start();
        order
    }

    fn start(&mut self) {
        self.at = 0;
        if let Some(random) = &self.shuffle {
            self.indices = random.permutation(self.epoch, self.indices.len());
        }
        self.epoch += 1;
    }

    /// The next samples; a batch that the end cuts short is left out.
    fn next(&mut self, batch: usize) -> &[usize] {
        if self.at + batch > self.indices.len() {
            self.start();
        }
        self.at += batch;
        &self.indices[self.at - batch..self.at]
    }
}

fn command(args: &Args) -> Result<()> {
    if !args.lr.is_finite() || args.lr < 0.0 {
        return Err(Error::invalid(format!(
            "a learning rate of {}; it has to be finite, and 0 or more",
            args.lr
        )));
    }
    let optimizer = args.optimizer.build()?;
    let objective = objective(args)?;
    let given = arrays(&args.data)?;
    let imported = load(&args.model, &[])?;
    let mut fields = matching(&imported, &given, &[&args.labels], true)?;
    fields.push(labels(args, &imported, &given)?);
    let data = TensorDataset::new(fields.clone())?;
    let samples = fields[0].shape().first().copied().unwrap_or(0);
    let fixed = fixed_batch(&imported);
    if args.batch == 0 || args.batch > samples || fixed.is_some_and(|n| n != args.batch) {
        return Err(Error::invalid(match fixed {
            Some(n) => format!("a batch of {}; the model is made for {n}", args.batch),
            None => format!("a batch of {} of {samples} samples", args.batch),
        }));
    }
    let backend = args.backend.build()?;
    let mut model = trainable(imported, |_| true)?;
    let mut cx = Context::new()
        .with_backend(&*backend)
        .with_calibration(&data)
        .with_seed(args.seed);
    if let Some(sparsity) = args.sparsity {
        let (pruned, report) = UnstructuredPrune::new(sparsity).apply(model, &mut cx)?;
        println!("{report}");
        model = pruned;
    }
    let mut config = Config::default();
    config.calibration.batch_size = args.batch;
    // Whole batches, as in training: a model may be made for their size.
    let most = samples.min(config.calibration.max_examples).max(args.batch);
    config.calibration.max_examples = most / args.batch * args.batch;
    if args.qat {
        let prepare = PrepareQat {
            config: config.clone(),
        };
        (model, _) = prepare.apply(model, &mut cx)?;
    }
    let step = training_graph(&model, &*objective, &*optimizer, &StepOptions::default())?;
    train(args, &*backend, &step, &fields, &mut model)?;
    (model, _) = EvalMode::switch(model)?;
    if args.qat {
        let convert = ConvertQat { config };
        (model, _) = convert.apply(model, &mut cx)?;
    }
    Exporter::new().save(&model, &args.out)
}

fn train(
    args: &Args,
    backend: &dyn Backend,
    step: &Graph,
    fields: &[Tensor],
    model: &mut Graph,
) -> Result<()> {
    let samples = fields[0].shape()[0];
    let shuffle = (!args.no_shuffle).then(|| Philox::new(args.seed));
    let mut order = Order::new(samples, shuffle);
    let mut session = None;
    let mut log = String::from("step,loss\n");
    let mut progress = opt_train::ProgressBar::new();
    progress.event(&Event::Started {
        task: "fine-tuning".into(),
        total: args.steps,
    });
    let mut outputs = Vec::new();
    let mut diverged = None;
    for k in 1..=args.steps {
        let rows = order.next(args.batch);
        let mut inputs = Vec::with_capacity(fields.len() + 1);
        for field in fields {
            inputs.push(field.select(0, rows)?.contiguous());
        }
        inputs.push(Tensor::scalar(args.lr));
        let session = match &mut session {
            Some(session) => session,
            none => {
                let mut spec = CompileSpec::new();
                spec.bindings = bindings_of(step, &inputs)?;
                none.insert(backend.compile(step, &spec)?.session()?)
            }
        };
        session.run_into(&inputs, &mut outputs)?;
        let loss = outputs[0].item()?;
        let _ = writeln!(log, "{k},{loss}");
        if !loss.is_finite() {
            diverged = Some(format!("the loss of step {k} is {loss}"));
            break;
        }
        progress.event(&Event::Progress {
            done: k,
            metrics: vec![("loss", loss)],
        });
    }
    progress.event(&Event::Finished {
        task: "fine-tuning".into(),
    });
    if let Some(session) = &session {
        let ids: Vec<_> = model.variables().map(|(id, ..)| id).collect();
        for id in ids {
            // What the loss does not depend on is in no training step.
            let Ok(content) = session.variable(id) else {
                continue;
            };
            let before = model.value(id).tensor().is_none_or(Tensor::is_finite);
            if before && !content.is_finite() && diverged.is_none() {
                let name = model.value(id).name();
                diverged = Some(format!("`{name}` is not finite after the last step"));
            }
            model.set_variable(id, content)?;
        }
    }
    // The log of a run that failed tells where.
    if let Some(path) = &args.log {
        write_atomically(path, |file| Ok(file.write_all(log.as_bytes())?))?;
    }
    if let Some(what) = diverged {
        return Err(Error::new(
            ErrorKind::Data,
            format!("{what}; try a smaller learning rate"),
        ));
    }
    let last = log.lines().last().unwrap_or_default();
    println!("{} steps; last step and loss: {last}", args.steps);
    Ok(())
}
