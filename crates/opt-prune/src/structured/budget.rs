//! What a pruned model may cost.

use std::fmt;
use std::sync::Arc;

use opt_core::graph::Bindings;
use opt_core::{Context, Dim, Error, Graph, Result, Symbol, Tensor};
use opt_eval::{Candidate, LatencyBench, ModelCost, weights_bytes};

/// A share of a cost that may be left after pruning: see
/// [`ChannelPrune::to_budget`](crate::ChannelPrune::to_budget).
#[derive(Debug, Clone)]
pub struct Budget {
    share: f64,
    measure: Measure,
    bindings: Bindings,
}

#[derive(Clone)]
enum Measure {
    Parameters,
    Macs,
    Bytes,
    Latency {
        bench: LatencyBench,
        inputs: Vec<Tensor>,
    },
    Custom {
        name: String,
        cost: Arc<dyn Fn(&Graph) -> Result<f64> + Send + Sync>,
    },
}

impl fmt::Debug for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Measure {
    fn name(&self) -> &str {
        match self {
            Measure::Parameters => "parameters",
            Measure::Macs => "multiply-adds",
            Measure::Bytes => "bytes",
            Measure::Latency { .. } => "latency",
            Measure::Custom { name, .. } => name,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the {}", self.share, self.measure.name())
    }
}

impl Budget {
    fn new(share: f64, measure: Measure) -> Budget {
        Budget {
            share,
            measure,
            bindings: Bindings::new(),
        }
    }

    /// A share, in `(0, 1]`, of the [parameters](Graph::parameter_count).
    pub fn parameters(share: f64) -> Budget {
        Budget::new(share, Measure::Parameters)
    }

    /// A share of the multiply-adds of one run. Symbols that are the first axis of an input are
    /// taken as 1; others have to be [bound](Budget::bind).
    pub fn macs(share: f64) -> Budget {
        Budget::new(share, Measure::Macs)
    }

    /// A share of the bytes of the weights as a file
    /// ([`weights_bytes`](opt_eval::weights_bytes)).
    pub fn bytes(share: f64) -> Budget {
        Budget::new(share, Measure::Bytes)
    }

    /// A share of the median latency on the context's backend, for inputs that are given. Each
    /// candidate takes turns with the original ([`LatencyBench`]), so that the ratio is fair; it
    /// is still a measurement, and two searches may end a few channels apart.
    pub fn latency(share: f64, bench: LatencyBench, inputs: Vec<Tensor>) -> Budget {
        Budget::new(share, Measure::Latency { bench, inputs })
    }

    /// A share of a cost of your own, of which errors speak by a name (in the plural); it must
    /// not grow when channels are removed.
    ///
    /// ```
    /// use opt_prune::Budget;
    ///
    /// let nodes = Budget::of("nodes", 0.5, |graph| Ok(graph.nodes().count() as f64));
    /// assert_eq!(nodes.to_string(), "0.5 of the nodes");
    /// ```
    pub fn of(
        name: impl Into<String>,
        share: f64,
        cost: impl Fn(&Graph) -> Result<f64> + Send + Sync + 'static,
    ) -> Budget {
        let measure = Measure::Custom {
            name: name.into(),
            cost: Arc::new(cost),
        };
        Budget::new(share, measure)
    }

    /// Binds a symbolic dimension, such as a sequence's length, for counting multiply-adds.
    #[must_use]
    pub fn bind(mut self, symbol: impl AsRef<str>, size: usize) -> Budget {
        self.bindings.insert(Symbol::new(symbol), size);
        self
    }

    pub(super) fn needs_backend(&self) -> bool {
        matches!(self.measure, Measure::Latency { .. })
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.share > 0.0 && self.share <= 1.0 {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "a budget of {self}, expected a share in (0, 1]"
        )))
    }

    pub(super) fn met_by(&self, share: f64) -> bool {
        share <= self.share
    }

    /// The share of the original's cost that a graph has.
    pub(super) fn share_left(
        &self,
        original: &Graph,
        graph: &Graph,
        cx: &Context<'_>,
    ) -> Result<f64> {
        let (before, after) = match &self.measure {
            Measure::Latency { bench, inputs } => {
                let candidate = |name, graph| Candidate {
                    name,
                    graph,
                    inputs,
                };
                let both = [candidate("original", original), candidate("pruned", graph)];
                let times = bench.measure(cx.backend()?, &both)?;
                (times[0].median_us(), times[1].median_us())
            }
            Measure::Custom { cost, .. } => (cost(original)?, cost(graph)?),
            _ => (self.cost(original)?, self.cost(graph)?),
        };
        if before > 0.0 && before.is_finite() && after.is_finite() {
            return Ok(after / before);
        }
        Err(Error::invalid(format!(
            "the {} are {before} before and {after} after pruning: no share of them can be met",
            self.measure.name()
        )))
    }

    fn cost(&self, graph: &Graph) -> Result<f64> {
        let count = match self.measure {
            Measure::Parameters => graph.parameter_count() as u64,
            Measure::Bytes => weights_bytes(graph)?,
            _ => {
                let mut bindings = self.bindings.clone();
                for &input in graph.inputs() {
                    if let Some(Dim::Symbol(symbol)) = graph.type_of(input).shape.dims().first() {
                        bindings.entry(symbol.clone()).or_insert(1);
                    }
                }
                ModelCost::of(graph, &bindings)?.macs
            }
        };
        Ok(count as f64)
    }
}
