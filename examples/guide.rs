//! The program of `docs/GUIDE.md`: one whole case, from data to a report.
//! `cargo run --release --example guide`

use std::path::Path;
use std::process::ExitCode;

use opt_core::nn::{BatchNorm, Conv, Linear, ModelBuilder};
use opt_core::{Backend, Context, Graph, Observer, Pass, Pipeline, Result};
use opt_data::{
    Chain, GaussianNoise, MinMax, Per, RandomShift, StratifiedKFold, Subset, TensorDataset, digits,
    split_stratified,
};
use opt_distill::{Distil, SoftTargets};
use opt_eval::{
    CompareOptions, Comparison, HtmlReport, LatencyBench, TrainingCurves, compare, evaluate,
};
use opt_ndarray::NdarrayBackend;
use opt_onnx::Exporter;
use opt_prune::{
    BatchNormScale, Budget, ChannelPrune, Criterion, Fpgm, Magnitude, PruneReport, Random, Taylor,
};
use opt_quant::{Config, ObserverKind, QuantizeAware, QuantizeStatic};
use opt_train::{AdamW, Cosine, CrossEntropy, FineTune, ProgressBar, Trainer, Warmup};

/// The three parts of the data, on one scale.
#[derive(Debug)]
pub struct Data {
    train: Subset<TensorDataset>,
    validation: Subset<TensorDataset>,
    test: TensorDataset,
}

fn load() -> Result<Data> {
    let digits = digits()?;
    // Fitted on the training part, applied to both.
    let scale = MinMax::fit(&digits.train, 0, Per::Dataset, (0.0, 1.0))?;
    let train = digits.train.map(0, &scale)?;
    let test = digits.test.map(0, &scale)?;
    // A tenth to decide by: when to stop, which criterion, which method. The test part decides
    // nothing.
    let (train, validation) = split_stratified(train, 1, 0.1, 0)?;
    Ok(Data {
        train,
        validation,
        test,
    })
}

fn network(seed: u64) -> Result<Graph> {
    let mut m = ModelBuilder::new("cnn", seed);
    let mut x = m.batch("image", [1, 8, 8])?;
    for (name, channels) in [("conv1", 24), ("conv2", 48)] {
        x = m.layer(name, Conv::new(channels, [3, 3]).pad(1).bias(false), x)?;
        x = m.layer(&format!("{name}.norm"), BatchNorm::new(), x)?;
        x = m.relu(x)?;
        x = m.max_pool(x, 2)?;
    }
    let x = m.flatten(x, 1)?;
    let logits = m.layer("head", Linear::new(10), x)?;
    m.output("logits", logits)?;
    m.finish()
}

fn trainer(task: &str, epochs: u64, lr: f64) -> Result<Trainer> {
    let schedule = Warmup {
        steps: 20,
        then: Cosine::new(lr),
    };
    let augment = Chain::new()
        .then(RandomShift::new(0.7)?)
        .then(GaussianNoise::new(0.05)?);
    Ok(Trainer::new(CrossEntropy, AdamW::default(), schedule)
        .task(task)
        .epochs(epochs)
        .batch_size(64)
        .augment(augment)
        .keep_best())
}

/// How much a figure moves from one division of the data to the next.
fn folds(data: &Data, backend: &dyn Backend, epochs: u64) -> Result<()> {
    let folds = StratifiedKFold::new(4)?.shuffled(0).split(&data.train, 1)?;
    let result = trainer("folds", epochs, 3e-3)?.cross_validate(
        &folds,
        &data.train,
        |fold| network(fold as u64),
        backend,
    )?;
    println!("cross-validation: {result}");
    Ok(())
}

fn teacher(
    data: &Data,
    backend: &dyn Backend,
    epochs: u64,
    observer: &mut dyn Observer,
) -> Result<Graph> {
    let (teacher, history) = trainer("teacher", epochs, 3e-3)?.fit_with(
        network(0)?,
        &data.train,
        Some(&data.validation),
        backend,
        observer,
    )?;
    let best = history
        .best
        .and_then(|best| history.epochs.get(best as usize));
    println!("teacher: best epoch {best:?}");
    Ok(teacher)
}

/// What is left of the accuracy when half of the channels go and nothing is trained after.
fn criteria(teacher: &Graph, data: &Data, backend: &dyn Backend) -> Result<()> {
    let candidates: [(&str, Box<dyn Criterion>); 5] = [
        ("random", Box::new(Random)),
        ("L1 norm", Box::new(Magnitude::l1())),
        ("geometric median", Box::new(Fpgm)),
        ("batch-norm scale", Box::new(BatchNormScale)),
        ("Taylor", Box::new(Taylor::new(CrossEntropy))),
    ];
    for (name, criterion) in candidates {
        let mut cx = Context::new()
            .with_backend(backend)
            .with_training(&data.train);
        // Batch normalization scales the convolutions' channels; the head has none.
        let prune = ChannelPrune::new(0.5).criterion(criterion);
        let (small, _) = prune.apply(teacher.clone(), &mut cx)?;
        let accuracy = evaluate(&small, &data.validation, backend, 256)?.accuracy();
        println!("half of the channels by {name}: {:.1} %", accuracy * 100.0);
    }
    Ok(())
}

/// A tenth of the multiply-adds, in a network that is physically smaller.
fn prune() -> ChannelPrune {
    ChannelPrune::to_budget(Budget::macs(0.1)).criterion(Taylor::new(CrossEntropy))
}

fn compress(
    teacher: &Graph,
    data: &Data,
    backend: &dyn Backend,
    epochs: u64,
    observer: &mut dyn Observer,
) -> Result<Vec<(&'static str, Graph)>> {
    let mut run = |pipeline: Pipeline, from: &Graph| -> Result<Graph> {
        let mut cx = Context::new()
            .with_backend(backend)
            .with_training(&data.train)
            .with_validation(&data.validation)
            .with_calibration(&data.train)
            .with_teacher(teacher)
            .with_observer(observer);
        Ok(pipeline.run(from.clone(), &mut cx)?.0)
    };
    let tune = FineTune(trainer("fine-tune", epochs, 3e-3)?);
    let tuned = run(Pipeline::new().then(prune()).then(tune), teacher)?;
    println!("{}", PruneReport::between(teacher, &tuned)?);

    // The same, but the teacher shows how sure it is of every class.
    let distil = |task, epochs, lr| -> Result<Distil> {
        Ok(Distil::new(
            SoftTargets::default(),
            trainer(task, epochs, lr)?,
        ))
    };
    let learned = distil("distil", epochs, 3e-3)?;
    let distilled = run(Pipeline::new().then(prune()).then(learned), teacher)?;

    // 8-bit integers after training, and with training that feels the rounding.
    let config = Config::default().observer(ObserverKind::Mse);
    let static8 = QuantizeStatic::with(config.clone());
    let static8 = run(Pipeline::new().then(static8), &distilled)?;
    let aware = QuantizeAware::new(config, distil("quantization-aware", epochs / 2 + 1, 1e-3)?);
    let aware8 = run(Pipeline::new().then(aware), &distilled)?;
    Ok(vec![
        ("teacher", teacher.clone()),
        ("pruned and tuned", tuned),
        ("pruned and distilled", distilled),
        ("int8 after training", static8),
        ("int8 by training", aware8),
    ])
}

fn report(
    models: &[(&'static str, Graph)],
    data: &Data,
    training: &TrainingCurves<ProgressBar>,
    folder: &Path,
) -> Result<Comparison> {
    let rows: Vec<(&str, &Graph)> = models.iter().map(|(n, g)| (*n, g)).collect();
    let single = NdarrayBackend::new().threads(1);
    let options = CompareOptions::new().latency(LatencyBench::new());
    let table = compare(&rows, &data.test, &single, &options)?;
    println!("{table}");

    let mut page = HtmlReport::new("Digits, compressed")
        .paragraph("Accuracy on 360 test images; latency of one image on one thread.")
        .comparison(&table)
        .curves(
            "Validation loss",
            "epoch",
            "loss",
            training.curves("val_loss"),
        );
    for (name, graph) in models {
        page = page.model(*name, graph);
    }
    page.write(folder.join("report.html"))?;
    for (name, graph) in models {
        let file = name.replace(' ', "-") + ".onnx";
        Exporter::new().save(graph, folder.join(file))?;
    }
    Ok(table)
}

/// The whole case, with so many epochs of training.
///
/// # Errors
/// If the folder cannot be written.
pub fn guide(epochs: u64, folder: &Path) -> Result<Comparison> {
    let backend = NdarrayBackend::new();
    let mut training = TrainingCurves::over(ProgressBar::new());
    let data = load()?;
    folds(&data, &backend, epochs / 4 + 1)?;
    let teacher = teacher(&data, &backend, epochs, &mut training)?;
    criteria(&teacher, &data, &backend)?;
    let models = compress(&teacher, &data, &backend, 2 * epochs, &mut training)?;
    std::fs::create_dir_all(folder)?;
    report(&models, &data, &training, folder)
}

fn main() -> ExitCode {
    opt_examples::run(|| guide(20, Path::new("guide-report")).map(drop))
}
