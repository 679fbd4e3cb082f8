//! Where the ranges of activations come from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use opt_core::pass::{FoldBatchNorm, Needs};
use opt_core::{Context, Error, ErrorKind, Graph, Result, ResultExt, ValueId};

use crate::calibrate::calibrate;
use crate::known::{Bounds, known};
use crate::observations::Observations;
use crate::params::QParams;
use crate::plan::Plan;
use crate::static_pass::Config;

impl Config {
    /// Takes the ranges from what a calibration has seen, and looks at no examples. The observer of
    /// the configuration is not used: the observations have theirs.
    #[must_use]
    pub fn observations(mut self, observations: Observations) -> Config {
        self.observations = Some(observations);
        self
    }

    /// Gives a value, such as an input, a range that is used for it whatever examples show.
    ///
    /// With it and the ranges that functions have (ReLU6 from 0 to 6, sigmoid from 0 to 1) a network
    /// may need no examples.
    ///
    /// ```
    /// use opt_core::nn::{Linear, ModelBuilder};
    /// use opt_core::{Context, Pass};
    /// use opt_quant::{Config, QuantizeStatic};
    ///
    /// # fn main() -> opt_core::Result<()> {
    /// let mut m = ModelBuilder::new("perceptron", 0);
    /// let x = m.batch("image", [64])?;
    /// let h = m.layer("fc1", Linear::new(32), x)?;
    /// let h = m.sigmoid(h)?;
    /// let y = m.layer("fc2", Linear::new(10), h)?;
    /// m.output("logits", y)?;
    ///
    /// let config = Config::default().range("image", 0.0, 1.0).without_examples();
    /// let (int8, report) = QuantizeStatic::with(config).apply(m.finish()?, &mut Context::new())?;
    /// assert_eq!(report.changed, 2);
    /// # let _ = int8;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn range(mut self, name: impl Into<String>, low: f64, high: f64) -> Config {
        self.ranges.insert(name.into(), (low, high));
        self
    }

    /// Looks at no examples: all ranges have to be known from the functions that make the values, or
    /// be [given](Config::range). An error names those that are not.
    #[must_use]
    pub fn without_examples(mut self) -> Config {
        self.without_examples = true;
        self
    }

    /// What a pass with this configuration takes from its context.
    pub(crate) fn needs(&self) -> Needs {
        match self.observations.is_some() || self.without_examples {
            true => Needs::NOTHING,
            false => Needs::CALIBRATION,
        }
    }

    /// Observes the values whose ranges a pass with this configuration takes from calibration
    /// examples (training examples if there are none), for [`Config::observations`].
    ///
    /// # Errors
    /// If the context has no examples or no backend, nothing is to be quantized, or a value is NaN or
    /// infinite.
    pub fn observe(&self, graph: &Graph, cx: &Context<'_>) -> Result<Observations> {
        self.check()?;
        let (graph, _) = FoldBatchNorm::fold(graph.clone())?;
        let plan = Plan::of(&graph, &self.rules, &self.weights)?;
        self.observe_plan(&graph, &plan, cx)
    }

    fn observe_plan(&self, graph: &Graph, plan: &Plan, cx: &Context<'_>) -> Result<Observations> {
        let data = cx.calibration().or_else(|e| cx.training().map_err(|_| e))?;
        calibrate(
            graph,
            &plan.origins(),
            data,
            cx.backend()?,
            &self.calibration,
        )
    }

    /// Scales and zero points of the plan's activations.
    pub(crate) fn ranges(
        &self,
        graph: &Graph,
        plan: &Plan,
        cx: &Context<'_>,
    ) -> Result<BTreeMap<ValueId, QParams>> {
        let mut given = BTreeMap::new();
        for (name, &range) in &self.ranges {
            let (low, high) = range;
            if !(low.is_finite() && high.is_finite() && low <= high) {
                let what = format!("a range from {low} to {high}");
                return Err(Error::invalid(what).at(name.clone()));
            }
            given.insert(graph.find(name)?, range);
        }
        let known = known(graph, &given);
        let whole = |v: &ValueId| known.get(v).and_then(|bounds| bounds.ends());
        let observed = match &self.observations {
            Some(observations) => Some(Cow::Borrowed(observations)),
            None if self.without_examples => None,
            // Without examples a graph whose ranges are all known needs none.
            None if !cx.available().calibration
                && !cx.available().training
                && plan.origins().iter().all(|v| whole(v).is_some()) =>
            {
                None
            }
            None => Some(Cow::Owned(self.observe_plan(graph, plan, cx)?)),
        };
        let mut out = BTreeMap::new();
        let mut unknown = Vec::new();
        for v in plan.origins() {
            let name = graph.value(v).name();
            let range = match (given.get(&v), &observed) {
                (Some(&range), _) => range,
                (None, Some(observed)) => {
                    let range = observed.range(name, &self.activations)?;
                    within(range, known.get(&v)).at(|| name.to_string())?
                }
                (None, None) => match whole(&v) {
                    Some(range) => range,
                    None => {
                        unknown.push(name);
                        continue;
                    }
                },
            };
            let params = self.activations.parameters(&[range], None);
            out.insert(v, params.at(|| name.to_string())?);
        }
        match unknown.is_empty() {
            true => Ok(out),
            false => Err(Error::new(
                ErrorKind::Data,
                format!(
                    "without examples the ranges of {unknown:?} are not known; give them with \
                     `Config::range`"
                ),
            )),
        }
    }
}

/// An observed range, within what is known.
fn within((low, high): (f64, f64), known: Option<&Bounds>) -> Result<(f64, f64)> {
    let Some(bounds) = known else {
        return Ok((low, high));
    };
    let (inner_low, inner_high) = (low.max(bounds.low), high.min(bounds.high));
    match inner_low <= inner_high {
        true => Ok((inner_low, inner_high)),
        false => Err(Error::new(
            ErrorKind::Data,
            format!(
                "observed from {low} to {high}, but the graph and given ranges say from {} to {}",
                bounds.low, bounds.high
            ),
        )),
    }
}
