//! What papers claim about making networks smaller, measured on the embedded digits.
//!
//! A [`Claim`] is a paper's statement and an experiment. It is measured on several random divisions
//! of the 1,797 digits into 898 to train on and 899 to test on, and judged by its figures alone:
//! thresholds are written down before anything is run.

mod few_bits;
mod few_images;
mod gptq;
mod large_sparse;
mod lottery;
mod markdown;
mod missing_digit;
mod pruning;
mod repair;
mod stats;
mod structured;
mod two_bits;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use opt_core::nn::zoo;
use opt_core::random::Philox;
use opt_core::{
    Backend, Context, Error, Event, Graph, Observer, Pass, Pipeline, Report, Result, ResultExt,
    Tensor,
};
use opt_data::{Dataset, Scale, TensorDataset, digits};
use opt_distill::{Distil, SoftTargets};
use opt_eval::evaluate;
use opt_ndarray::NdarrayBackend;
use opt_train::{Adam, Cosine, CrossEntropy, FineTune, Trainer};

pub use markdown::document;
pub use stats::{Paired, Series, Summary};

/// A statement of a paper and the experiment that tests it.
pub trait Claim: Sync {
    /// A short name, for the command line.
    fn name(&self) -> &'static str;

    /// What is claimed, as a heading.
    fn title(&self) -> &'static str;

    /// The paper, and its figures.
    fn paper(&self) -> &'static str;

    /// What is done here.
    fn method(&self) -> &'static str;

    /// The figures of one division, in percent, each with its name; the same names every time.
    ///
    /// # Errors
    /// Those of the passes.
    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>>;

    /// What the figures say.
    fn judge(&self, figures: &Figures) -> Judgement;
}

/// All claims, in the order of the ledger.
pub fn claims() -> Vec<Box<dyn Claim>> {
    vec![
        Box::new(pruning::Pruning),
        Box::new(large_sparse::LargeSparse),
        Box::new(lottery::Lottery),
        Box::new(missing_digit::MissingDigit),
        Box::new(few_images::FewImages),
        Box::new(two_bits::TwoBits),
        Box::new(few_bits::FewBits),
        Box::new(repair::Equalization),
        Box::new(repair::Rounding),
        Box::new(gptq::Gptq),
        Box::new(structured::Structured),
    ]
}

/// Whether a claim holds here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The effect is there, and as large as claimed or as the threshold asks for.
    Reproduced,
    /// Part of it is, or the direction is right and the difference is not beyond its error.
    Partly,
    /// It is not, or the figures say the opposite.
    NotReproduced,
}

impl Verdict {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Reproduced => "reproduced",
            Verdict::Partly => "partly reproduced",
            Verdict::NotReproduced => "**not reproduced**",
        }
    }
}

/// A verdict and the sentences that give its reason.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// One line for the table.
    pub headline: String,
    /// What was found, plainly.
    pub reason: String,
}

/// The figures of a claim over all divisions.
#[derive(Debug, Clone)]
pub struct Figures {
    /// One series a figure, in the order in which they were measured.
    pub series: Vec<Series>,
}

impl Figures {
    /// The figures of a name.
    ///
    /// # Panics
    /// If the claim measures no such figure.
    pub fn of(&self, name: &str) -> &Series {
        let found = self.series.iter().find(|s| s.name == name);
        found.unwrap_or_else(|| panic!("no figure `{name}`"))
    }

    /// `a - b`, division by division.
    ///
    /// # Panics
    /// As [`Figures::of`].
    pub fn difference(&self, a: &str, b: &str) -> Paired {
        Paired::of(self.of(a), self.of(b))
    }
}

/// A claim with its figures.
pub struct Entry<'a> {
    /// The claim.
    pub claim: &'a dyn Claim,
    /// What was measured.
    pub figures: Figures,
    /// What that says.
    pub judgement: Judgement,
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("claim", &self.claim.name())
            .field("figures", &self.figures)
            .field("judgement", &self.judgement)
            .finish()
    }
}

/// The learning rate of most experiments. It and the L2 penalty were chosen by the error of pruned
/// networks on divisions that are not in the ledger (1000 and on).
pub const LR: f64 = 8e-3;

/// One division of the digits, and what experiments on it share.
#[derive(Debug)]
pub struct Lab {
    /// 898 images `[64]` with pixels in `[0, 1]`, and their labels.
    pub train: TensorDataset,
    /// 899 others.
    pub test: TensorDataset,
    /// The division's number, and the seed of all that is random.
    pub seed: u64,
    backend: NdarrayBackend,
    effort: f64,
}

impl Lab {
    /// The division of a number. `effort` multiplies the epochs of all training.
    ///
    /// # Errors
    /// None but of memory.
    pub fn new(seed: u64, effort: f64) -> Result<Lab> {
        let digits = digits()?;
        let scale = Scale::new(1.0 / 16.0, 0.0)?;
        let field = |i: usize| -> Result<Tensor> {
            let parts = [&digits.train, &digits.test].map(|part| part.fields()[i].clone());
            Tensor::concat(&parts, 0)
        };
        let (pixels, labels) = (field(0)?, field(1)?);
        let all = pixels.shape()[0];
        let pixels = pixels.reshape([all, 64])?;
        let data = TensorDataset::new(vec![pixels, labels])?.map(0, &scale)?;
        let order = Philox::new(seed).permutation(u64::MAX, all);
        let (train, test) = order.split_at(all / 2);
        Ok(Lab {
            train: data.select(train)?,
            test: data.select(test)?,
            seed,
            backend: NdarrayBackend::new().threads(1),
            effort,
        })
    }

    /// LeNet-300-100 for 64 pixels, untrained.
    ///
    /// # Errors
    /// None.
    pub fn lenet(&self) -> Result<Graph> {
        zoo::lenet_300_100(64, 10, self.seed)
    }

    /// A perceptron with two hidden layers, untrained.
    ///
    /// # Errors
    /// None for widths above 0.
    pub fn perceptron(&self, widths: [usize; 2]) -> Result<Graph> {
        use opt_core::nn::{Linear, ModelBuilder};
        let mut m = ModelBuilder::new("perceptron", self.seed);
        let mut x = m.batch("features", [64])?;
        for (name, width) in [("fc1", widths[0]), ("fc2", widths[1])] {
            x = m.layer(name, Linear::new(width), x)?;
            x = m.relu(x)?;
        }
        let logits = m.layer("fc3", Linear::new(10), x)?;
        m.output("logits", logits)?;
        m.finish()
    }

    /// The trainer of all experiments: Adam, a rate that falls from `lr` along a cosine, batches of
    /// 50, an L2 penalty.
    pub fn trainer(&self, epochs: u64, lr: f64) -> Trainer {
        let epochs = (epochs as f64 * self.effort).round().max(1.0) as u64;
        Trainer::new(CrossEntropy, Adam::default(), Cosine::new(lr))
            .epochs(epochs)
            .batch_size(50)
            .l2(3e-4)
            .seed(self.seed)
    }

    /// Training on labels.
    pub fn tune(&self, epochs: u64, lr: f64) -> FineTune {
        FineTune(self.trainer(epochs, lr))
    }

    /// Training on a teacher's soft targets alone.
    pub fn distil(&self, temperature: f64, epochs: u64, lr: f64) -> Distil {
        let alpha = 1.0;
        Distil::new(SoftTargets { temperature, alpha }, self.trainer(epochs, lr))
    }

    /// LeNet-300-100 trained on the labels for 60 epochs: where most experiments start.
    ///
    /// # Errors
    /// Those of training.
    pub fn trained(&self) -> Result<Graph> {
        self.apply(self.lenet()?, &self.tune(60, LR))
    }

    /// A pass on the training images.
    ///
    /// # Errors
    /// Those of the pass.
    pub fn apply(&self, graph: Graph, pass: &dyn Pass) -> Result<Graph> {
        Ok(pass.apply(graph, &mut self.context(&self.train))?.0)
    }

    /// A pipeline on the training images.
    ///
    /// # Errors
    /// Those of its passes.
    pub fn run(&self, graph: Graph, pipeline: &Pipeline) -> Result<Graph> {
        Ok(pipeline.run(graph, &mut self.context(&self.train))?.0)
    }

    /// A pipeline on the training images, with what its passes report.
    ///
    /// # Errors
    /// Those of its passes.
    pub fn run_with_reports(
        &self,
        graph: Graph,
        pipeline: &Pipeline,
    ) -> Result<(Graph, Vec<(String, Report)>)> {
        pipeline.run(graph, &mut self.context(&self.train))
    }

    /// A pass on other images, with a teacher.
    ///
    /// # Errors
    /// Those of the pass.
    pub fn teach(
        &self,
        graph: Graph,
        pass: &dyn Pass,
        data: &dyn Dataset,
        teacher: &Graph,
    ) -> Result<Graph> {
        let mut cx = self.context(data).with_teacher(teacher);
        Ok(pass.apply(graph, &mut cx)?.0)
    }

    fn context<'a>(&'a self, data: &'a dyn Dataset) -> Context<'a> {
        Context::new()
            .with_backend(&self.backend)
            .with_training(data)
            .with_calibration(data)
            .with_seed(self.seed)
    }

    /// The backend that everything runs on.
    pub fn backend(&self) -> &dyn Backend {
        &self.backend
    }

    /// The share of the test images that a classifier takes for another digit, in percent.
    ///
    /// # Errors
    /// If the graph is no classifier of the images.
    pub fn error(&self, graph: &Graph) -> Result<f64> {
        let found = evaluate(graph, &self.test, &self.backend, 512)?;
        Ok(100.0 * (1.0 - found.accuracy()))
    }
}

/// Measures claims on divisions of the digits, on `threads` threads.
///
/// # Errors
/// The first of an experiment, with the claim and the division in the path.
pub fn measure<'a>(
    claims: &[&'a dyn Claim],
    divisions: std::ops::Range<u64>,
    effort: f64,
    threads: usize,
    observer: &mut (dyn Observer + Send),
) -> Result<Vec<Entry<'a>>> {
    if divisions.end.saturating_sub(divisions.start) < 2 {
        return Err(Error::invalid("a standard error takes 2 divisions or more"));
    }
    let jobs: Vec<(usize, u64)> = divisions
        .flat_map(|d| (0..claims.len()).map(move |c| (c, d)))
        .collect();
    let total = jobs.len() as u64;
    observer.event(&Event::Started {
        task: "measure".into(),
        total,
    });
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let observer = Mutex::new(observer);
    let work = || -> Result<Vec<(usize, u64, Vec<(&'static str, f64)>)>> {
        let mut found = Vec::new();
        while let Some(&(c, division)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let claim = claims[c];
            let place = || format!("{}, division {division}", claim.name());
            let lab = Lab::new(division, effort).at(place)?;
            found.push((c, division, claim.measure(&lab).at(place)?));
            let done = done.fetch_add(1, Ordering::Relaxed) as u64 + 1;
            if let Ok(mut observer) = observer.lock() {
                let metrics = Vec::new();
                observer.event(&Event::Progress { done, metrics });
            }
        }
        Ok(found)
    };
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|w| match w.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Result<Vec<_>>>()
    })?;
    let mut results: Vec<_> = results.into_iter().flatten().collect();
    results.sort_by_key(|(c, division, _)| (*c, *division));
    let mut entries = Vec::new();
    for (c, &claim) in claims.iter().enumerate() {
        let runs = results.iter().filter(|(of, _, _)| *of == c);
        let mut series: Vec<Series> = Vec::new();
        for (_, _, figures) in runs {
            for (i, &(name, value)) in figures.iter().enumerate() {
                if series.len() == i {
                    series.push(Series::new(name));
                }
                debug_assert_eq!(series[i].name, name);
                series[i].values.push(value);
            }
        }
        let figures = Figures { series };
        let judgement = claim.judge(&figures);
        entries.push(Entry {
            claim,
            figures,
            judgement,
        });
    }
    if let Ok(mut observer) = observer.lock() {
        let task = "measure".into();
        observer.event(&Event::Finished { task });
    }
    Ok(entries)
}
