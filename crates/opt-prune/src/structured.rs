//! Whole channels and neurons, physically removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use opt_core::pass::{AxisGroup, AxisGroups, AxisMap, shrink};
use opt_core::{Context, Error, ErrorKind, Graph, Pass, Report, Result, Tensor, ValueId};

use crate::criterion::{Criterion, Magnitude, scores};
use crate::select::{Patterns, sparsity_in_range, weights};

/// Removes the channels and neurons with the lowest scores, and all that hangs together with
/// them: biases, batch-norm entries, the matching inputs of what reads them, through residual
/// adds, concatenations, grouped convolutions and flattening.
///
/// A layer's channels that feed a graph output, or an op that mixes or counts them, stay. The
/// score of a channel is the sum of its weights' scores, each weight's scores divided by their
/// mean so that layers compare.
#[derive(Debug, Clone)]
pub struct ChannelPrune {
    sparsity: f64,
    widths: BTreeMap<String, usize>,
    criterion: Arc<dyn Criterion>,
    global: bool,
    min_channels: usize,
    patterns: Patterns,
}

/// What a [`ChannelPrune`] chose: the groups to remove.
#[derive(Debug, Clone)]
pub struct ChannelSelection {
    groups: Vec<AxisGroup>,
}

/// The channels of a layer that may go, lowest score first.
struct Layer {
    name: String,
    total: usize,
    channels: Vec<(f64, AxisGroup)>,
}

impl ChannelPrune {
    /// Removes a share, in `[0, 1]`, of each layer's channels by L1 magnitude; at least one
    /// stays.
    pub fn new(sparsity: f64) -> ChannelPrune {
        ChannelPrune {
            sparsity,
            widths: BTreeMap::new(),
            criterion: Arc::new(Magnitude::l1()),
            global: false,
            min_channels: 1,
            patterns: Patterns::default(),
        }
    }

    /// Prunes named layers to numbers of channels; a layer is named by a part of its weight's
    /// name. Other layers stay.
    pub fn to_widths<N: Into<String>>(
        widths: impl IntoIterator<Item = (N, usize)>,
    ) -> ChannelPrune {
        ChannelPrune {
            widths: widths.into_iter().map(|(n, w)| (n.into(), w)).collect(),
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

    /// Leaves out layers whose weights' names contain the pattern.
    #[must_use]
    pub fn exclude(mut self, pattern: impl Into<String>) -> ChannelPrune {
        self.patterns.exclude.push(pattern.into());
        self
    }

    /// Chooses what goes, without removing it.
    ///
    /// # Errors
    /// If the sparsity is out of range, or a pattern or layer name matches nothing.
    pub fn select(&self, graph: &Graph, seed: u64) -> Result<ChannelSelection> {
        sparsity_in_range(self.sparsity)?;
        let layers = self.layers(graph, seed)?;
        let mut gone: Vec<usize> = vec![0; layers.len()];
        if !self.widths.is_empty() {
            for (name, &width) in &self.widths {
                let mut matched = false;
                for (layer, gone) in layers.iter().zip(&mut gone) {
                    if layer.name.contains(name.as_str()) {
                        matched = true;
                        if width == 0 || width > layer.total {
                            return Err(Error::invalid(format!(
                                "a width of {width} for {} channels",
                                layer.total
                            ))
                            .at(layer.name.clone()));
                        }
                        *gone = self.bounded(layer, layer.total - width);
                        if *gone < layer.total - width {
                            return Err(Error::invalid(format!(
                                "only {} of {} channels may go: an op or output holds the others",
                                layer.channels.len(),
                                layer.total
                            ))
                            .at(layer.name.clone()));
                        }
                    }
                }
                if !matched {
                    return Err(Error::new(
                        ErrorKind::NoEffect,
                        format!("no layer whose channels may go is named `{name}`"),
                    ));
                }
            }
        } else if self.global {
            let mut order: Vec<(f64, usize)> = layers
                .iter()
                .enumerate()
                .flat_map(|(l, layer)| layer.channels.iter().map(move |(s, _)| (*s, l)))
                .collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let count = (self.sparsity * order.len() as f64).round() as usize;
            for &(_, l) in &order[..count] {
                gone[l] = self.bounded(&layers[l], gone[l] + 1);
            }
        } else {
            for (layer, gone) in layers.iter().zip(&mut gone) {
                let count = (self.sparsity * layer.channels.len() as f64).round() as usize;
                *gone = self.bounded(layer, count);
            }
        }
        let groups = layers
            .into_iter()
            .zip(gone)
            .flat_map(|(layer, gone)| layer.channels.into_iter().take(gone).map(|(_, g)| g))
            .collect();
        Ok(ChannelSelection { groups })
    }

    /// A number of channels to remove, bounded by what may go and by what must stay.
    fn bounded(&self, layer: &Layer, count: usize) -> usize {
        let most = layer.total.saturating_sub(self.min_channels);
        count.min(layer.channels.len()).min(most)
    }

    fn layers(&self, graph: &Graph, seed: u64) -> Result<Vec<Layer>> {
        let all = weights(graph);
        let names: Vec<&str> = all.iter().map(|&v| graph.value(v).name()).collect();
        self.patterns.check(&names)?;
        let mut entry_scores: BTreeMap<ValueId, Vec<f64>> = BTreeMap::new();
        for &v in &all {
            let tensor = graph.value(v).tensor().expect("a variable");
            let mut s = scores(self.criterion.as_ref(), graph, v, tensor, seed)?;
            let mean = s.iter().sum::<f64>() / s.len().max(1) as f64;
            if mean > 0.0 {
                s.iter_mut().for_each(|s| *s /= mean);
            }
            entry_scores.insert(v, s);
        }
        // Groups with the same set of (value, axis) are the channels of one layer.
        let mut layers: BTreeMap<Vec<(ValueId, usize)>, Vec<&AxisGroup>> = BTreeMap::new();
        let groups = AxisGroups::of(graph)?;
        for group in groups.iter() {
            if group
                .entries
                .keys()
                .any(|(v, _)| entry_scores.contains_key(v))
            {
                let places: Vec<_> = group.entries.keys().copied().collect();
                layers.entry(places).or_default().push(group);
            }
        }
        let mut out = Vec::new();
        for (places, groups) in layers {
            let names: Vec<&str> = places
                .iter()
                .filter(|(v, axis)| entry_scores.contains_key(v) && *axis == 0)
                .map(|(v, _)| graph.value(*v).name())
                .collect();
            let name = names.join(", ");
            if names.iter().any(|n| !self.patterns.allows(n)) || names.is_empty() {
                continue;
            }
            let total = groups.len();
            let mut channels: Vec<(f64, AxisGroup)> = groups
                .into_iter()
                .filter(|g| !g.blocked)
                .map(|g| (group_score(graph, g, &entry_scores), g.clone()))
                .collect();
            channels.sort_by(|a, b| a.0.total_cmp(&b.0));
            if !channels.is_empty() {
                out.push(Layer {
                    name,
                    total,
                    channels,
                });
            }
        }
        Ok(out)
    }
}

/// The sum of the scores of a group's weight entries.
fn group_score(graph: &Graph, group: &AxisGroup, scores: &BTreeMap<ValueId, Vec<f64>>) -> f64 {
    let mut total = 0.0;
    for ((value, axis), indices) in &group.entries {
        let Some(scores) = scores.get(value) else {
            continue;
        };
        let shape = graph.value(*value).tensor().expect("a variable").shape();
        let inner: usize = shape[axis + 1..].iter().product();
        let outer: usize = shape[..*axis].iter().product();
        for &i in indices {
            for o in 0..outer {
                let start = (o * shape[*axis] + i) * inner;
                total += scores[start..start + inner].iter().sum::<f64>();
            }
        }
    }
    total
}

impl ChannelSelection {
    /// The number of channels that go.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether none go.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The graph without the channels.
    ///
    /// # Errors
    /// If an op cannot be expressed for what is left, at its node.
    pub fn shrink(&self, graph: &Graph) -> Result<Graph> {
        shrink(graph, &self.axis_map(graph)?)
    }

    /// The graph with the channels' parameters set to zero instead: it computes the same as the
    /// [shrunk](ChannelSelection::shrink) one.
    ///
    /// # Errors
    /// None for graphs that verify.
    pub fn mask(&self, graph: &Graph) -> Result<Graph> {
        let mut out = graph.clone();
        for (id, value, tensor) in graph.variables() {
            if !value.ty().dtype.is_float() {
                continue;
            }
            let mut data = tensor.to_f64s();
            let mut touched = false;
            for group in &self.groups {
                for ((_, axis), indices) in group.entries.iter().filter(|((v, _), _)| *v == id) {
                    let inner: usize = tensor.shape()[axis + 1..].iter().product();
                    for (i, v) in data.iter_mut().enumerate() {
                        if indices.contains(&(i / inner.max(1) % tensor.shape()[*axis])) {
                            *v = 0.0;
                            touched = true;
                        }
                    }
                }
            }
            if touched {
                let masked = Tensor::from_f64s(tensor.dtype(), tensor.shape(), &data)?;
                out.set_variable(id, masked)?;
            }
        }
        Ok(out)
    }

    /// Which indices of each value stay; slices optimizer state and the like.
    ///
    /// # Errors
    /// If the graph is not the one that the selection was made for.
    pub fn axis_map(&self, graph: &Graph) -> Result<AxisMap> {
        AxisMap::removing(graph, &self.groups)
    }
}

impl Pass for ChannelPrune {
    fn name(&self) -> &str {
        "channel_prune"
    }

    fn config(&self) -> String {
        let mut out = format!("sparsity = {:?}\nglobal = {}\n", self.sparsity, self.global);
        for (name, width) in &self.widths {
            out += &format!("widths.{name:?} = {width}\n");
        }
        out
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let selection = self.select(&graph, cx.seed())?;
        let before = graph.parameter_count();
        let shrunk = selection.shrink(&graph)?;
        let report = Report::new(selection.len())
            .figure("channels removed", selection.len() as f64)
            .figure("parameters before", before as f64)
            .figure("parameters after", shrunk.parameter_count() as f64);
        Ok((shrunk, report))
    }
}
