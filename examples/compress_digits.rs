//! The main job on real handwritten digits: train a convolutional network, then prune, distil
//! and quantize it, and compare what each method and all together make of it.
//!
//! `cargo run --release --example compress_digits -- --help` lists the options.

use std::path::PathBuf;

use clap::Parser;
use opt_core::nn::{BatchNorm, Conv, Linear, ModelBuilder};
use opt_core::observer::Observer;
use opt_core::ops::UnaryOp;
use opt_core::{Backend, Context, Graph, Pipeline, Result};
use opt_data::{
    Chain, Csv, Dataset, GaussianNoise, RandomAffine, Scale, TensorDataset, TrainTest, digits,
    split_stratified,
};
use opt_distill::{Distil, SoftTargets};
use opt_eval::{
    Candidate, CompareOptions, Comparison, HtmlReport, LatencyBench, TrainingCurves, compare,
    evaluate, layer_times,
};
use opt_examples::BackendArgs;
use opt_prune::{ChannelPrune, PolynomialDecay, PruneRetrain, UnstructuredPrune};
use opt_quant::{Config, QuantizeAware, QuantizeStatic};
use opt_train::checkpoint::save_weights;
use opt_train::{AdamW, Cosine, CrossEntropy, FineTune, ProgressBar, Trainer, Warmup};

/// Trains, prunes, distils and quantizes a network for handwritten digits.
#[derive(Debug, Parser)]
struct Options {
    /// A CSV file (or .csv.gz): pixels, then the label, one image a line; the embedded digits if
    /// not given.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Channels, height and width of an image of --data.
    #[arg(long, value_delimiter = ',', default_value = "1,8,8")]
    shape: Vec<usize>,
    /// Seed of all that is random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Latencies are of one image on one thread.
    #[command(flatten)]
    backend: BackendArgs,
    /// Writes the table to a file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes the models' weights, the table as Markdown and a report as HTML to a folder.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Three convolutions with batch normalization, two poolings, one linear layer.
fn network(shape: &[usize], classes: usize, seed: u64) -> Result<Graph> {
    let mut b = ModelBuilder::new("cnn", seed);
    let mut x = b.batch("x", shape)?;
    for (name, channels) in [("c1", 36), ("c2", 80), ("c3", 164)] {
        x = b.layer(name, Conv::new(channels, [3, 3]).pad(1).bias(false), x)?;
        x = b.layer(&format!("{name}n"), BatchNorm::new(), x)?;
        x = b.unary(UnaryOp::Relu, x)?;
        if name != "c1" {
            x = b.max_pool(x, 2)?;
        }
    }
    let x = b.flatten(x, 1)?;
    let y = b.layer("fc", Linear::new(classes), x)?;
    b.output("logits", y)?;
    b.finish()
}

/// The channels that the compressed network keeps.
const WIDTHS: [(&str, usize); 3] = [("c1.", 6), ("c2.", 10), ("c3.", 18)];

fn trainer(options: &Options, task: &str, epochs: u64, lr: f64) -> Result<Trainer> {
    let schedule = Warmup {
        steps: 40,
        then: Cosine::new(lr),
    };
    let pixels = options.shape.last().map_or(8.0, |&w| w as f32) / 8.0;
    let augment = Chain::new()
        .then(RandomAffine::new(pixels, 10.0, 0.0)?)
        .then(GaussianNoise::new(0.05)?);
    Ok(Trainer::new(CrossEntropy, AdamW::default(), schedule)
        .task(task)
        .epochs(epochs)
        .batch_size(64)
        .seed(options.seed)
        .augment(augment))
}

fn load(options: &Options) -> Result<(TrainTest, f32)> {
    match &options.data {
        None => Ok((digits()?, 16.0)),
        Some(path) => {
            let data = Csv::new().shape(&options.shape).read(path)?;
            let largest = data.field(0)?.to_f64s().into_iter().fold(0.0, f64::max);
            Ok((TrainTest::every(&data, 5)?, largest.max(1e-6) as f32))
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let backend = options.backend.build()?;
    let (data, largest) = load(&options)?;
    let scale = Scale::new(1.0 / largest, 0.0)?;
    let train = data.train.map(0, &scale)?;
    let test = data.test.map(0, &scale)?;
    let classes = train.classes(1)?.max(test.classes(1)?);
    let (train, validation) = split_stratified(train, 1, 0.1, options.seed)?;
    println!(
        "{} training, {} validation and {} test images of {:?}, {classes} classes",
        train.len(),
        validation.len(),
        test.len(),
        options.shape
    );
    let mut progress = TrainingCurves::over(ProgressBar::new());
    let models = build(
        &options,
        &*backend,
        &train,
        &validation,
        classes,
        &mut progress,
    )?;
    report(&options, &models, &test, &progress)
}

/// Trains the teacher and compresses it by each method and by all of them.
fn build(
    options: &Options,
    backend: &dyn Backend,
    train: &dyn Dataset,
    validation: &dyn Dataset,
    classes: usize,
    progress: &mut dyn Observer,
) -> Result<Vec<(String, Graph)>> {
    let (teacher, _) = trainer(options, "teacher", 18, 4e-3)?
        .keep_best()
        .fit_with(
            network(&options.shape, classes, options.seed)?,
            train,
            Some(validation),
            backend,
            progress,
        )?;
    let mut run = |pipeline: Pipeline, from: &Graph| -> Result<Graph> {
        let mut cx = Context::new()
            .with_backend(backend)
            .with_training(train)
            .with_calibration(train)
            .with_validation(validation)
            .with_teacher(&teacher)
            .with_seed(options.seed)
            .with_observer(&mut *progress);
        Ok(pipeline.run(from.clone(), &mut cx)?.0)
    };
    let soft = SoftTargets::default();
    let distil = |task: &str, epochs: u64, lr: f64| -> Result<Distil> {
        Ok(Distil::new(
            soft,
            trainer(options, task, epochs, lr)?.keep_best(),
        ))
    };
    let prune = || ChannelPrune::to_widths(WIDTHS);

    let magnitude = PruneRetrain::new(
        UnstructuredPrune::new(0.9),
        PolynomialDecay::new(0.0, 0.9)?,
        4,
        FineTune(trainer(options, "prune weights", 3, 3e-3)?),
    );
    let sparse = run(Pipeline::new().then(magnitude), &teacher)?;

    let tune = FineTune(trainer(options, "prune channels", 25, 1e-2)?.keep_best());
    let pruned = run(Pipeline::new().then(prune()).then(tune), &teacher)?;

    let int8 = run(Pipeline::new().then(QuantizeStatic::new()), &teacher)?;

    let compress = Pipeline::new()
        .then(prune())
        .then(distil("prune + distil", 60, 1.2e-2)?);
    let small = run(compress, &teacher)?;
    let aware = QuantizeAware::new(Config::default(), distil("quantization-aware", 15, 3e-3)?);
    let last = run(Pipeline::new().then(aware), &small)?;
    Ok([
        ("teacher", teacher),
        ("weights pruned 90 %", sparse),
        ("channels pruned", pruned),
        ("int8 after training", int8),
        ("pruned + distilled", small),
        ("pruned + distilled + int8", last),
    ]
    .map(|(name, graph)| (name.to_string(), graph))
    .into())
}

/// Measures the models on the test images, and prints and writes what came out.
fn report(
    options: &Options,
    models: &[(String, Graph)],
    test: &TensorDataset,
    training: &TrainingCurves<ProgressBar>,
) -> Result<()> {
    let rows: Vec<(&str, &Graph)> = models.iter().map(|(n, g)| (n.as_str(), g)).collect();
    let single = options.backend.single()?;
    let bench = LatencyBench::new();
    let table = compare(&rows, test, &*single, &CompareOptions::new().latency(bench))?;
    println!("{table}");
    if let Some(path) = &options.json {
        std::fs::write(path, table.to_json()?)?;
    }
    if let Some(folder) = &options.out {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("comparison.md"), table.to_markdown())?;
        for (name, graph) in models {
            let words = name.split(|c: char| !c.is_alphanumeric());
            let file: Vec<&str> = words.filter(|w| !w.is_empty()).collect();
            let file = file.join("-");
            save_weights(graph, folder.join(format!("{file}.safetensors")))?;
        }
        html(&rows, &table, test, &*single, training)?.write(folder.join("report.html"))?;
    }
    Ok(())
}

/// The report as a page: the table, and what can be drawn of the models.
fn html<'a>(
    models: &[(&str, &'a Graph)],
    table: &Comparison,
    test: &TensorDataset,
    backend: &dyn Backend,
    training: &TrainingCurves<ProgressBar>,
) -> Result<HtmlReport<'a>> {
    // Layer by layer: the teacher, one with the same layers and many zeros, and the smallest.
    let drawn = [models[0], models[1], models[models.len() - 1]];
    let image = test.batch(&[0])?;
    let candidate = |(name, graph)| Candidate {
        name,
        graph,
        inputs: &image[..1],
    };
    let bench = LatencyBench::new().runs(100);
    let times = layer_times(&drawn.map(candidate), backend, &bench)?;

    let mut report =
        HtmlReport::new("Handwritten digits: a network and what compression makes of it")
            .paragraph(format!(
                "A convolutional network (the teacher) was trained, then compressed by each method \
             alone and by all of them. Accuracies are on {} test images, which no method saw. \
             Latencies are of one image on one thread.",
                test.len()
            ))
            .comparison(table)
            .focus(drawn.map(|(name, _)| name))
            .curves("Training loss", "epoch", "loss", training.curves("loss"))
            .curves(
                "Validation loss",
                "epoch",
                "loss",
                training.curves("val_loss"),
            )
            .curves(
                "Validation accuracy",
                "epoch",
                "accuracy",
                training.curves("val_accuracy"),
            );
    for &(name, graph) in models {
        report = report.model(name, graph);
    }
    for ((name, graph), times) in drawn.into_iter().zip(times) {
        let matrix = evaluate(graph, test, backend, 256)?.confusion()?;
        let classes: [&str; 0] = [];
        report = report
            .layer_times(name, times)
            .confusion(name, &matrix, classes);
    }
    Ok(report)
}
