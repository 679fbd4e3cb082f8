//! The fewest layers in float that a metric's bound asks for.

use std::fmt;

use opt_core::pass::Needs;
use opt_core::{Context, Error, ErrorKind, Graph, Pass, Report, Result};

use super::sensitivity::{Quantizer, alone};
use crate::rules::{Rules, Select};
use crate::scheme::Scheme;
use crate::stored::{Kinds, find};

/// Quantizes, and keeps as few layers in float as a bound on a metric's drop asks for.
///
/// All layers are quantized first. If the metric drops too much, each layer is quantized alone to
/// see how far it moves the outputs (as [`sensitivity`](super::sensitivity) does); the layers that
/// move them most are kept in float, as few as are enough, found by bisection; and of those each
/// that can be quantized after all is. The number of evaluations of the metric is at most
/// `2 + log2(layers) + kept`.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Graph, Pass, Result, Tensor};
/// use opt_data::TensorDataset;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::analysis::{AccuracyControl, compare};
/// use opt_quant::{QuantizeWeights, Rules, Scheme};
///
/// let mut m = ModelBuilder::new("model", 0);
/// let x = m.batch("x", [64])?;
/// let h = m.layer("fc1", Linear::new(64), x)?;
/// let y = m.layer("fc2", Linear::new(3), h)?;
/// m.output("y", y)?;
/// let float = m.finish()?;
/// let x: Vec<f32> = (0..640).map(|i| (i as f32).sin()).collect();
/// let data = TensorDataset::new(vec![Tensor::new([10, 64], x)?])?;
///
/// // The metric is any function of a graph, the higher the better; here how true the outputs are.
/// let (reference, examples) = (float.clone(), data.clone());
/// let metric = move |graph: &Graph| -> Result<f64> {
///     let table = compare(&reference, graph, &examples, &NdarrayBackend::new())?;
///     Ok(table.get("y").map_or(0.0, |y| y.cosine))
/// };
/// let pass = |rules: &Rules| {
///     Box::new(QuantizeWeights::new(Scheme::int2()).rules(rules.clone())) as Box<dyn Pass>
/// };
/// let control = AccuracyControl::new(Scheme::int2(), pass, metric).max_drop(0.1);
/// let backend = NdarrayBackend::new();
/// let mut cx = Context::new().with_backend(&backend).with_calibration(&data);
/// let (graph, report) = control.run(float, &mut cx)?;
/// println!("{report}");
/// assert!(report.float - report.quantized <= 0.1);
/// # Ok::<(), opt_quant::Error>(())
/// ```
pub struct AccuracyControl {
    scheme: Scheme,
    quantizer: Box<dyn Quantizer + Send + Sync>,
    metric: Metric,
    max_drop: f64,
}

/// A figure of a graph, the higher the better.
type Metric = Box<dyn Fn(&Graph) -> Result<f64> + Send + Sync>;

/// What an [`AccuracyControl`] came to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AccuracyReport {
    /// The metric of the graph in float.
    pub float: f64,
    /// The metric with all layers quantized.
    pub all: f64,
    /// The metric of the result.
    pub quantized: f64,
    /// The weights that are kept in float, the one that moves the outputs most first.
    pub kept: Vec<String>,
    /// How often the metric was evaluated.
    pub evaluations: usize,
}

impl fmt::Display for AccuracyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "float {:.6}, all quantized {:.6}, with {} layers in float {:.6} ({} evaluations)",
            self.float,
            self.all,
            self.kept.len(),
            self.quantized,
            self.evaluations
        )?;
        for name in &self.kept {
            write!(f, "\n  {name}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for AccuracyControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccuracyControl")
            .field("scheme", &self.scheme)
            .field("max_drop", &self.max_drop)
            .finish_non_exhaustive()
    }
}

impl AccuracyControl {
    /// With the pass that quantizes, its scheme of weights, and a metric, the higher the better. The
    /// drop is 0.01 at most, unless [`max_drop`](AccuracyControl::max_drop) says otherwise.
    pub fn new(
        scheme: Scheme,
        quantizer: impl Quantizer + Send + Sync + 'static,
        metric: impl Fn(&Graph) -> Result<f64> + Send + Sync + 'static,
    ) -> AccuracyControl {
        AccuracyControl {
            scheme,
            quantizer: Box::new(quantizer),
            metric: Box::new(metric),
            max_drop: 0.01,
        }
    }

    /// By how much the metric may be lower than in float, in its own units.
    #[must_use]
    pub fn max_drop(mut self, drop: f64) -> AccuracyControl {
        self.max_drop = drop;
        self
    }

    /// Quantizes a graph.
    ///
    /// # Errors
    /// Those of the pass and the metric; [`NoEffect`](ErrorKind::NoEffect) if the metric drops too
    /// much whichever layer is quantized; [`Data`](ErrorKind::Data) if it is NaN.
    pub fn run(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, AccuracyReport)> {
        let mut search = Search {
            control: self,
            graph: &graph,
            evaluations: 0,
            least: 0.0,
        };
        let float = search.measure(&graph)?;
        search.least = float - self.max_drop;
        let (quantized, all) = search.quantize(&[], cx)?;
        let report = |kept: Vec<String>, quantized: f64, evaluations: usize| AccuracyReport {
            float,
            all,
            quantized,
            kept,
            evaluations,
        };
        if all >= search.least {
            return Ok((quantized, report(Vec::new(), all, search.evaluations)));
        }
        let ranked = search.ranked(cx)?;
        // `low` layers in float are too few, `high` are enough.
        let (mut low, mut high) = (0, ranked.len());
        let mut found = None;
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            let (graph, metric) = search.quantize(&ranked[..middle], cx)?;
            if metric >= search.least {
                high = middle;
                found = Some((graph, metric));
            } else {
                low = middle;
            }
        }
        let Some((mut best, mut metric)) = found else {
            return Err(Error::new(
                ErrorKind::NoEffect,
                format!(
                    "the metric drops from {float} by more than {} whichever layer is quantized",
                    self.max_drop
                ),
            ));
        };
        let mut kept = ranked[..high].to_vec();
        // That fewer suffice where they are not the first ones shows only by trying.
        for i in (0..kept.len().saturating_sub(1)).rev() {
            let mut fewer = kept.clone();
            fewer.remove(i);
            let (graph, now) = search.quantize(&fewer, cx)?;
            if now >= search.least {
                (best, metric, kept) = (graph, now, fewer);
            }
        }
        Ok((best, report(kept, metric, search.evaluations)))
    }
}

/// A search under way.
struct Search<'a> {
    control: &'a AccuracyControl,
    graph: &'a Graph,
    evaluations: usize,
    /// What the metric may be.
    least: f64,
}

impl Search<'_> {
    fn measure(&mut self, graph: &Graph) -> Result<f64> {
        self.evaluations += 1;
        let metric = (self.control.metric)(graph)?;
        match metric.is_nan() {
            false => Ok(metric),
            true => Err(Error::new(ErrorKind::Data, "the metric is NaN")),
        }
    }

    /// Quantizes with some layers in float, and measures.
    fn quantize(&mut self, kept: &[String], cx: &mut Context<'_>) -> Result<(Graph, f64)> {
        let keep = |rules: Rules, name: &String| rules.keep(Select::name(name));
        let rules = kept.iter().fold(Rules::new(), keep);
        let pass = self.control.quantizer.pass(&rules);
        let (graph, _) = pass.apply(self.graph.clone(), cx)?;
        let metric = self.measure(&graph)?;
        Ok((graph, metric))
    }

    /// The weights that the pass quantizes, the one that moves the outputs most first.
    fn ranked(&self, cx: &mut Context<'_>) -> Result<Vec<String>> {
        let scheme = self.control.scheme;
        let (layers, _) = find(self.graph, &Rules::new(), &scheme, Kinds::All)?;
        let mut names: Vec<String> = Vec::new();
        for layer in layers {
            let name = self.graph.value(layer.weight).name().to_string();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let mut ranked = Vec::new();
        for name in names {
            match alone(self.graph, &*self.control.quantizer, scheme, &name, cx) {
                Ok(moved) => ranked.push((moved.relative(), name)),
                // A weight of a kind that the pass does not quantize.
                Err(e) if e.kind() == ErrorKind::NoEffect => {}
                Err(e) => return Err(e.at(name)),
            }
        }
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(ranked.into_iter().map(|(_, name)| name).collect())
    }
}

impl Pass for AccuracyControl {
    fn name(&self) -> &str {
        "accuracy_control"
    }

    fn config(&self) -> String {
        format!(
            "scheme = \"{}\"\nmax_drop = {}\n",
            self.scheme, self.max_drop
        )
    }

    fn needs(&self) -> Needs {
        Needs::CALIBRATION
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (graph, found) = self.run(graph, cx)?;
        let mut report = Report::new(1)
            .figure("metric in float", found.float)
            .figure("metric with all layers quantized", found.all)
            .figure("metric", found.quantized)
            .figure("layers in float", found.kept.len() as f64);
        for name in found.kept {
            report = report.note(format!("{name} stays in float"));
        }
        Ok((graph, report))
    }
}
