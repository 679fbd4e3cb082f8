//! Whole channels, neurons and attention heads, physically removed.

mod budget;
mod layers;
mod selection;
mod target;

use std::sync::Arc;

pub use budget::Budget;
use opt_core::pass::{AxisGroup, AxisMap, Needs, shrink};
use opt_core::{Context, Error, ErrorKind, Graph, Pass, Report, Result};
pub use selection::ChannelSelection;
use target::{Layer, Target, chosen};

use crate::criterion::{Criterion, Magnitude, checked_structure_scores};
use crate::select::{Patterns, sparsity_in_range, weights};

/// What structured pruning treats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Channels, neurons and heads.
    All,
    /// Attention heads only.
    Heads,
    /// All but attention heads.
    Channels,
}

/// Removes the channels, neurons and attention heads with the lowest scores, and all that hangs
/// together with them: biases, batch-norm entries, the matching inputs of what reads them, through
/// residual adds, concatenations, grouped convolutions, flattening and the reshapes of attention.
///
/// A layer's channels that feed a graph output, or an op that mixes or counts them, stay. The
/// score of a channel is what the [`Criterion`] says; for one that scores entries it is the sum
/// of its weights' scores, each weight's scores divided by their mean so that layers compare.
#[derive(Debug, Clone)]
pub struct ChannelPrune {
    target: Target,
    criterion: Arc<dyn Criterion>,
    global: bool,
    min_channels: usize,
    max_sparsity: f64,
    round_to: usize,
    layers: Vec<(String, f64)>,
    patterns: Patterns,
    kind: Kind,
}

impl ChannelPrune {
    /// Removes a share, in `[0, 1]`, of each layer's channels by L1 magnitude; at least one
    /// stays.
    pub fn new(sparsity: f64) -> ChannelPrune {
        ChannelPrune {
            target: Target::Share(sparsity),
            criterion: Arc::new(Magnitude::l1()),
            global: false,
            min_channels: 1,
            max_sparsity: 1.0,
            round_to: 1,
            layers: Vec::new(),
            patterns: Patterns::default(),
            kind: Kind::All,
        }
    }

    /// Removes a share, in `[0, 1]`, of the heads of each attention layer and nothing else, with
    /// their rows and columns of the query, key, value and output projections (Michel et al. 2019,
    /// "Are Sixteen Heads Really Better than One?"); at least one stays. Works on `Attention` ops
    /// and on graphs that spell attention out, as ONNX exporters do, with projections of their own
    /// or one for all three. Heads stay where a reshape merges them with a batch that is not 1, as
    /// PyTorch's `MultiheadAttention` does.
    ///
    /// ```
    /// use opt_core::nn::{MultiHeadAttention, ModelBuilder};
    /// use opt_core::{Context, Pass};
    /// use opt_prune::ChannelPrune;
    ///
    /// # fn main() -> opt_core::Result<()> {
    /// let mut m = ModelBuilder::new("attention", 0);
    /// let x = m.batch("x", [10, 32])?;
    /// let y = m.layer("attn", MultiHeadAttention::new(4), x)?;
    /// m.output("y", y)?;
    /// let (small, _) = ChannelPrune::heads(0.25).apply(m.finish()?, &mut Context::new())?;
    /// // Three of four heads of width 8.
    /// let weight = small.find("attn.q_proj.weight")?;
    /// assert_eq!(small.type_of(weight).to_string(), "f32[24,32]");
    /// # Ok(())
    /// # }
    /// ```
    pub fn heads(sparsity: f64) -> ChannelPrune {
        ChannelPrune::new(sparsity).heads_only()
    }

    /// Treats attention heads only, as [`ChannelPrune::heads`]; for widths and budgets.
    #[must_use]
    pub fn heads_only(mut self) -> ChannelPrune {
        self.kind = Kind::Heads;
        self
    }

    /// Leaves attention heads as they are.
    #[must_use]
    pub fn keep_heads(mut self) -> ChannelPrune {
        self.kind = Kind::Channels;
        self
    }

    /// Prunes named layers to numbers of channels; a layer is named by a part of its weight's
    /// name. Other layers stay.
    pub fn to_widths<N: Into<String>>(
        widths: impl IntoIterator<Item = (N, usize)>,
    ) -> ChannelPrune {
        ChannelPrune {
            target: Target::Widths(widths.into_iter().map(|(n, w)| (n.into(), w)).collect()),
            ..ChannelPrune::new(0.0)
        }
    }

    /// Prunes until a budget is met and no further: the fewest channels go, lowest scores first,
    /// in the order that [`ChannelPrune::global`] has, or the same share of each layer without it.
    ///
    /// ```
    /// use opt_core::nn::zoo;
    /// use opt_core::{Context, Pass};
    /// use opt_eval::ModelCost;
    /// use opt_prune::{Budget, ChannelPrune};
    ///
    /// # fn main() -> opt_core::Result<()> {
    /// let model = zoo::lenet5([1, 28, 28], 10, 0)?;
    /// let prune = ChannelPrune::to_budget(Budget::macs(0.5));
    /// let (small, _) = prune.apply(model.clone(), &mut Context::new())?;
    /// let (before, after) = (ModelCost::of_one(&model)?, ModelCost::of_one(&small)?);
    /// assert!(after.macs * 2 <= before.macs && after.macs * 9 > before.macs * 4);
    /// # Ok(())
    /// # }
    /// ```
    pub fn to_budget(budget: Budget) -> ChannelPrune {
        ChannelPrune {
            target: Target::Budget(budget),
            ..ChannelPrune::new(0.0)
        }
    }

    /// Ranks by another criterion.
    #[must_use]
    pub fn criterion(mut self, criterion: impl Criterion + 'static) -> ChannelPrune {
        self.criterion = Arc::new(criterion);
        self
    }

    /// Ranks the channels of all layers together.
    #[must_use]
    pub fn global(mut self) -> ChannelPrune {
        self.global = true;
        self
    }

    /// Keeps at least this many channels of each layer.
    #[must_use]
    pub fn min_channels(mut self, channels: usize) -> ChannelPrune {
        self.min_channels = channels.max(1);
        self
    }

    /// Removes at most this share, in `[0, 1]`, of any layer's channels, also where all are ranked
    /// together or a budget asks for more.
    #[must_use]
    pub fn max_sparsity(mut self, sparsity: f64) -> ChannelPrune {
        self.max_sparsity = sparsity;
        self
    }

    /// Keeps a multiple of this many channels of each layer, such as 8 for matrix units: fewer go
    /// than would without. Heads are not rounded, nor widths that are given.
    #[must_use]
    pub fn round_to(mut self, multiple: usize) -> ChannelPrune {
        self.round_to = multiple;
        self
    }

    /// Removes a share of their own of layers whose weights' names contain a pattern; of several
    /// patterns that match, the one given last holds. Where pruning goes in rounds the share goes
    /// in proportion, as that of [`UnstructuredPrune::layer`](crate::UnstructuredPrune::layer).
    ///
    /// ```
    /// use opt_core::nn::zoo;
    /// use opt_core::{Context, Pass};
    /// use opt_prune::ChannelPrune;
    ///
    /// # fn main() -> opt_core::Result<()> {
    /// let prune = ChannelPrune::new(0.5).layer("fc2", 0.2).round_to(8);
    /// let model = zoo::lenet_300_100(64, 10, 0)?;
    /// let (small, _) = prune.apply(model, &mut Context::new())?;
    /// let shape = |name| small.find(name).map(|w| small.type_of(w).to_string());
    /// assert_eq!(shape("fc1.weight")?, "f32[152,64]");
    /// assert_eq!(shape("fc2.weight")?, "f32[80,152]");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn layer(mut self, pattern: impl Into<String>, sparsity: f64) -> ChannelPrune {
        self.layers.push((pattern.into(), sparsity));
        self
    }

    /// Leaves out layers of which a weight's name contains the pattern.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> ChannelPrune {
        self.patterns.exclude.push(pattern.into());
        self
    }

    /// Treats only layers of which a weight's name contains one of the included patterns: layers
    /// that residual sums couple, and the projections of attention, go together.
    #[must_use]
    pub fn include(mut self, pattern: impl Into<String>) -> ChannelPrune {
        self.patterns.include.push(pattern.into());
        self
    }

    /// The pass that goes on from one share of the channels removed to another.
    pub(crate) fn between(&self, from: f64, to: f64) -> Result<ChannelPrune> {
        sparsity_in_range(from)?;
        sparsity_in_range(to)?;
        let Target::Share(last) = self.target else {
            return Err(Error::unsupported(
                "channels are pruned to widths or a budget, not by a sparsity",
            ));
        };
        // Of what is left, since what is gone is not there to be counted.
        let share = |from: f64, to: f64| match from < 1.0 && to > from {
            true => (to - from) / (1.0 - from),
            false => 0.0,
        };
        let mut out = self.clone();
        out.target = Target::Share(share(from, to));
        for (_, own) in &mut out.layers {
            let at = |sparsity: f64| match (sparsity > 0.0, last > 0.0) {
                (false, _) => 0.0,
                (true, true) => *own * sparsity / last,
                (true, false) => *own,
            };
            *own = share(at(from), at(to));
        }
        Ok(out)
    }

    /// Fails if an option is out of its range, or a pattern matches none of the names.
    fn check(&self, names: &[&str]) -> Result<()> {
        if let Target::Share(sparsity) = self.target {
            sparsity_in_range(sparsity)?;
        }
        let max = |e: Error| e.at("max_sparsity");
        sparsity_in_range(self.max_sparsity).map_err(max)?;
        if self.round_to == 0 {
            return Err(Error::invalid("channels rounded to multiples of 0"));
        }
        self.patterns.check(names)?;
        Patterns::shares(&self.layers, names)
    }

    /// Chooses what goes, without removing it.
    ///
    /// # Errors
    /// If the sparsity is out of range, a pattern or layer name matches nothing, or the context
    /// lacks what the criterion needs.
    pub fn select(&self, graph: &Graph, cx: &mut Context<'_>) -> Result<ChannelSelection> {
        let layers = self.layers(graph, cx)?;
        let gone = match &self.target {
            Target::Share(sparsity) => self.lowest(&layers, *sparsity),
            Target::Widths(widths) => self.down_to(&layers, widths)?,
            Target::Budget(budget) => self.within(&layers, budget, graph, cx)?,
        };
        Ok(chosen(&layers, &gone))
    }

    /// Which indices of each value would stay: what [`shrink`] takes, and
    /// what slices an optimizer's state by [`AxisMap::slice`].
    ///
    /// ```
    /// use opt_core::nn::zoo;
    /// use opt_core::{Context, pass::shrink};
    /// use opt_prune::ChannelPrune;
    ///
    /// # fn main() -> opt_core::Result<()> {
    /// let graph = zoo::lenet_300_100(64, 10, 0)?;
    /// let map = ChannelPrune::new(0.5).plan(&graph, &mut Context::new())?;
    /// let small = shrink(&graph, &map)?;
    /// let w = graph.find("fc1.weight")?;
    /// # let momentum = opt_core::Tensor::zeros(opt_core::DType::F32, [300, 64])?;
    /// let momentum = map.slice(w, &momentum)?;
    /// assert_eq!(momentum.shape(), [150, 64]);
    /// assert_eq!(small.type_of(w).to_string(), "f32[150,64]");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`ChannelPrune::select`].
    pub fn plan(&self, graph: &Graph, cx: &mut Context<'_>) -> Result<AxisMap> {
        self.select(graph, cx)?.axis_map(graph)
    }

    fn layers(&self, graph: &Graph, cx: &mut Context<'_>) -> Result<Vec<Layer>> {
        let all = weights(graph);
        let names: Vec<&str> = all.iter().map(|w| graph.value(w.value).name()).collect();
        self.check(&names)?;
        let mut layers = layers::layers(graph, &all)?;
        layers.retain(|layer| {
            let names = layer.weights.iter().map(|(v, _)| graph.value(*v).name());
            let names: Vec<&str> = names.collect();
            let kind = match self.kind {
                Kind::All => true,
                Kind::Heads => layer.heads,
                Kind::Channels => !layer.heads,
            };
            kind && self.patterns.allow_all(&names)
        });
        if self.kind == Kind::Heads && layers.is_empty() {
            return Err(Error::new(
                ErrorKind::NoEffect,
                "no attention whose heads may go was found",
            ));
        }
        let values: Vec<_> = all.iter().map(|w| w.value).collect();
        let scores =
            checked_structure_scores(self.criterion.as_ref(), graph, &layers, &values, cx)?;
        let ranked = layers.into_iter().zip(scores).map(|(layer, scores)| {
            let mut channels: Vec<(f64, AxisGroup)> =
                scores.into_iter().zip(layer.groups).collect();
            channels.sort_by(|a, b| a.0.total_cmp(&b.0));
            Layer {
                name: layer.layer,
                total: layer.total,
                heads: layer.heads,
                channels,
            }
        });
        Ok(ranked.collect())
    }
}

impl Pass for ChannelPrune {
    fn name(&self) -> &str {
        "channel_prune"
    }

    fn config(&self) -> String {
        let mut out = match &self.target {
            Target::Share(sparsity) => format!("sparsity = {sparsity:?}\n"),
            Target::Budget(budget) => format!("budget = {:?}\n", budget.to_string()),
            Target::Widths(widths) => widths
                .iter()
                .map(|(name, width)| format!("widths.{name:?} = {width}\n"))
                .collect(),
        };
        out += &format!("global = {}\n", self.global);
        out += &format!("min_channels = {}\n", self.min_channels);
        if self.max_sparsity != 1.0 {
            out += &format!("max_sparsity = {:?}\n", self.max_sparsity);
        }
        if self.round_to != 1 {
            out += &format!("round_to = {}\n", self.round_to);
        }
        for (pattern, sparsity) in &self.layers {
            out += &format!("layer.{pattern:?} = {sparsity:?}\n");
        }
        match self.kind {
            Kind::All => {}
            Kind::Heads => out += "structures = \"heads\"\n",
            Kind::Channels => out += "structures = \"channels\"\n",
        }
        out
    }

    fn needs(&self) -> Needs {
        let mut needs = self.criterion.needs();
        if let Target::Budget(budget) = &self.target {
            needs.backend |= budget.needs_backend();
        }
        needs
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let selection = self.select(&graph, cx)?;
        let before = graph.parameter_count();
        let map = selection.axis_map(&graph)?;
        let shrunk = shrink(&graph, &map)?;
        *cx.state_mut() = cx.state().shrink(&graph, &map)?;
        let report = Report::new(selection.len())
            .figure("channels removed", selection.len() as f64)
            .figure("parameters before", before as f64)
            .figure("parameters after", shrunk.parameter_count() as f64);
        Ok((shrunk, report))
    }
}
