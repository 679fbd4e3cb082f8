//! Static quantization after training.

use std::collections::BTreeMap;

use opt_core::pass::{FoldBatchNorm, Needs};
use opt_core::{Context, DType, Error, Graph, Pass, Report, Result, ResultExt, ValueId};

use crate::calibrate::Calibration;
use crate::emit::emit;
use crate::observations::Observations;
use crate::observer::ObserverKind;
use crate::params::QParams;
use crate::plan::Plan;
use crate::rules::{Rules, Select};
use crate::scheme::{Granularity, Scheme};

/// What to quantize and how.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The integers of weights; [`Scheme::weights`] at first.
    pub weights: Scheme,
    /// The integers of activations, i8 or u8 with one scale; [`Scheme::activations`] at first.
    pub activations: Scheme,
    /// How ranges of activations are found.
    pub calibration: Calibration,
    /// Whether quantization-aware training learns the scales of weights (LSQ, Esser et al. 2020)
    /// rather than taking them from the weights' range in every step. Below 4 bits the largest
    /// weight is a poor scale for the others.
    pub learn_scales: bool,
    /// Whether quantization-aware training learns the ranges of activations; see
    /// [`Config::learn_ranges`].
    pub learn_ranges: bool,
    /// Whether quantization-aware training goes on training batch normalization; see
    /// [`Config::train_batch_norm`].
    pub train_batch_norm: bool,
    /// Which layers have another scheme of weights, or stay in float.
    pub rules: Rules,
    /// What an earlier calibration has seen; see [`Config::observations`].
    pub observations: Option<Observations>,
    /// Ranges that are given, by the value's name; see [`Config::range`].
    pub ranges: BTreeMap<String, (f64, f64)>,
    /// Whether no examples are looked at; see [`Config::without_examples`].
    pub without_examples: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            weights: Scheme::weights(),
            activations: Scheme::activations(),
            calibration: Calibration::default(),
            learn_scales: false,
            learn_ranges: false,
            train_batch_norm: false,
            rules: Rules::new(),
            observations: None,
            ranges: BTreeMap::new(),
            without_examples: false,
        }
    }
}

impl Config {
    /// Finds ranges with another observer.
    #[must_use]
    pub fn observer(mut self, observer: ObserverKind) -> Config {
        self.calibration.observer = observer;
        self
    }

    /// Lays weights on another grid.
    #[must_use]
    pub fn weights(mut self, scheme: Scheme) -> Config {
        self.weights = scheme;
        self
    }

    /// Lays activations on another grid.
    #[must_use]
    pub fn activations(mut self, scheme: Scheme) -> Config {
        self.activations = scheme;
        self
    }

    /// Learns the scales of weights in quantization-aware training.
    ///
    /// ```
    /// use opt_quant::{Config, Scheme};
    ///
    /// let two_bits = Scheme::int2().per_channel();
    /// let config = Config::default().weights(two_bits).learn_scales();
    /// # let _ = config;
    /// ```
    #[must_use]
    pub fn learn_scales(mut self) -> Config {
        self.learn_scales = true;
        self
    }

    /// Adds rules after those that there are.
    ///
    /// ```
    /// use opt_quant::{Config, Rules, Scheme, Select};
    ///
    /// let rules = Rules::new()
    ///     .keep(Select::name("classifier.weight"))
    ///     .apply(Select::op("Conv"), Scheme::int8().per_tensor());
    /// let config = Config::default().rules(rules);
    /// # let _ = config;
    /// ```
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> Config {
        self.rules = self.rules.then(rules);
        self
    }

    /// Leaves out layers whose name, or whose weight's, contains the pattern; one that matches
    /// nothing is an error.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> Config {
        self.rules = self.rules.keep(Select::contains(pattern));
        self
    }

    /// The configuration as TOML, for logs.
    pub(crate) fn to_toml(&self) -> String {
        let Calibration {
            observer,
            batch_size,
            max_examples,
        } = self.calibration;
        let ranges = self.ranges.iter();
        let ranges: Vec<String> = ranges
            .map(|(name, (low, high))| {
                format!("{{ name = {name:?}, low = {low:?}, high = {high:?} }}")
            })
            .collect();
        format!(
            "weights = \"{}\"\nactivations = \"{}\"\nobserver = \"{observer:?}\"\n\
             batch_size = {batch_size}\nmax_examples = {max_examples}\nlearn_scales = {}\n\
             learn_ranges = {}\ntrain_batch_norm = {}\nrules = {}\n\
             observed_examples = {}\nwithout_examples = {}\nranges = [{}]\n",
            self.weights,
            self.activations,
            self.learn_scales,
            self.learn_ranges,
            self.train_batch_norm,
            self.rules,
            self.observations.as_ref().map_or(0, Observations::examples),
            self.without_examples,
            ranges.join(", ")
        )
    }

    /// The graph with batch normalization folded, what is quantized of it, and the scales and zero
    /// points of its activations.
    pub(crate) fn plan(
        &self,
        graph: Graph,
        cx: &Context<'_>,
    ) -> Result<(Graph, Plan, BTreeMap<ValueId, QParams>)> {
        self.check()?;
        let (graph, _) = FoldBatchNorm::fold(graph)?;
        let plan = Plan::of(&graph, &self.rules, &self.weights)?;
        let ranges = self.ranges(&graph, &plan, cx)?;
        Ok((graph, plan, ranges))
    }

    /// Fails for activations that are no integers of 8 bits with one scale.
    pub(crate) fn check(&self) -> Result<()> {
        self.activations.grid().at(|| "activations")?;
        let whole = self.activations.granularity() == Granularity::Tensor;
        if !matches!(self.activations.dtype(), DType::I8 | DType::U8) || !whole {
            return Err(Error::invalid(format!(
                "activations are quantized to i8 or u8 per tensor, not as `{}`",
                self.activations
            )));
        }
        Ok(())
    }
}

/// Quantizes convolutions and matrix products after training, by ranges from the context's
/// calibration examples (its training examples if it has none), from [observations](Config::observations)
/// of an earlier calibration, or, without examples, from what the graph's functions and
/// [given ranges](Config::range) say. Batch normalization is folded first.
///
/// See the [crate's page](crate) for the form of the result.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::{Context, Pass};
/// use opt_data::digits;
/// use opt_ndarray::NdarrayBackend;
/// use opt_quant::{Config, ObserverKind, QuantizeStatic};
///
/// # fn main() -> opt_core::Result<()> {
/// let mut m = ModelBuilder::new("perceptron", 0);
/// let x = m.batch("image", [1, 8, 8])?;
/// let h = m.flatten(x, 1)?;
/// let h = m.layer("fc1", Linear::new(32), h)?;
/// let h = m.relu(h)?;
/// let y = m.layer("fc2", Linear::new(10), h)?;
/// m.output("logits", y)?;
///
/// let (backend, samples) = (NdarrayBackend::new(), digits()?.train);
/// let mut cx = Context::new().with_backend(&backend).with_calibration(&samples);
/// // Ranges that leave out the outermost of a thousand values; the last layer stays in float.
/// let config = Config::default().observer(ObserverKind::Percentile(0.999)).exclude("fc2");
/// let (int8, report) = QuantizeStatic::with(config).apply(m.finish()?, &mut cx)?;
/// assert_eq!(report.changed, 1);
/// assert!(int8.find("fc2.weight").is_ok());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct QuantizeStatic {
    config: Config,
}

impl QuantizeStatic {
    /// 8 bits, weights per channel, activations by their full range.
    pub fn new() -> QuantizeStatic {
        QuantizeStatic::default()
    }

    /// With a configuration.
    pub fn with(config: Config) -> QuantizeStatic {
        QuantizeStatic { config }
    }
}

impl Pass for QuantizeStatic {
    fn name(&self) -> &str {
        "quantize_static"
    }

    fn config(&self) -> String {
        self.config.to_toml()
    }

    fn needs(&self) -> Needs {
        self.config.needs()
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (graph, plan, ranges) = self.config.plan(graph, cx)?;
        emit(graph, &plan, &ranges, &BTreeMap::new())
    }
}
