//! How many channels of which layer go.

use std::collections::BTreeMap;

use opt_core::pass::AxisGroup;
use opt_core::{Context, Error, ErrorKind, Graph, Result};

use super::{Budget, ChannelPrune, ChannelSelection};

/// What a structured pruning comes to.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// A share of the channels goes.
    Share(f64),
    /// Layers, by parts of their names, keep numbers of channels.
    Widths(BTreeMap<String, usize>),
    /// As many go as it takes.
    Budget(Budget),
}

/// The channels of a layer that may go, lowest score first.
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) total: usize,
    pub(super) heads: bool,
    pub(super) channels: Vec<(f64, AxisGroup)>,
}

/// The groups that go when a number of each layer's channels do.
pub(super) fn chosen(layers: &[Layer], gone: &[usize]) -> ChannelSelection {
    let groups = layers.iter().zip(gone).flat_map(|(layer, &gone)| {
        let channels = layer.channels.iter().take(gone);
        channels.map(|(_, group)| group.clone())
    });
    ChannelSelection {
        groups: groups.collect(),
    }
}

impl ChannelPrune {
    /// A number of channels to remove, bounded by what may go and by what must stay.
    fn bounded(&self, layer: &Layer, count: usize) -> usize {
        let most = layer.total.saturating_sub(self.min_channels);
        count.min(layer.channels.len()).min(most)
    }

    /// The same with the limits that hold where numbers of channels are not given.
    fn limited(&self, layer: &Layer, count: usize) -> usize {
        // A hair more, so that 0.7 of 10 is 7.
        let most = (self.max_sparsity * layer.total as f64 + 1e-9) as usize;
        let count = self.bounded(layer, count.min(most));
        if layer.heads || self.round_to <= 1 {
            return count;
        }
        let kept = (layer.total - count).next_multiple_of(self.round_to);
        layer.total.saturating_sub(kept)
    }

    /// The share of a layer that goes whatever the others lose.
    fn own_share(&self, layer: &Layer) -> Option<f64> {
        let mut own = self.layers.iter().rev();
        own.find(|(p, _)| layer.name.contains(p.as_str()))
            .map(|(_, s)| *s)
    }

    /// How many of each layer are among the lowest share.
    pub(super) fn lowest(&self, layers: &[Layer], share: f64) -> Vec<usize> {
        let count = |channels: usize, share: f64| (share * channels as f64).round() as usize;
        let mut gone: Vec<usize> = layers
            .iter()
            .map(|l| {
                let together = if self.global { 0.0 } else { share };
                count(l.channels.len(), self.own_share(l).unwrap_or(together))
            })
            .collect();
        if self.global {
            let ranked = layers.iter().enumerate();
            let mut order: Vec<(f64, usize)> = ranked
                .filter(|(_, layer)| self.own_share(layer).is_none())
                .flat_map(|(l, layer)| layer.channels.iter().map(move |(s, _)| (*s, l)))
                .collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for &(_, l) in &order[..count(order.len(), share)] {
                gone[l] += 1;
            }
        }
        let limits = layers.iter().zip(gone);
        limits.map(|(l, count)| self.limited(l, count)).collect()
    }

    /// How many of each layer go so that those named keep a number.
    pub(super) fn down_to(
        &self,
        layers: &[Layer],
        widths: &BTreeMap<String, usize>,
    ) -> Result<Vec<usize>> {
        let mut gone = vec![0; layers.len()];
        for (name, &width) in widths {
            let mut matched = false;
            for (layer, gone) in layers.iter().zip(&mut gone) {
                if !layer.name.contains(name.as_str()) {
                    continue;
                }
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
            if !matched {
                return Err(Error::new(
                    ErrorKind::NoEffect,
                    format!("no layer whose channels may go is named `{name}`"),
                ));
            }
        }
        Ok(gone)
    }

    /// The least removal within a budget, by bisection: what is left only shrinks as more goes.
    pub(super) fn within(
        &self,
        layers: &[Layer],
        budget: &Budget,
        graph: &Graph,
        cx: &mut Context<'_>,
    ) -> Result<Vec<usize>> {
        budget.check()?;
        // Steps of one channel of all.
        let steps: usize = layers.iter().map(|l| l.channels.len()).sum();
        let at = |step: usize| self.lowest(layers, step as f64 / steps.max(1) as f64);
        let left = |step: usize| -> Result<f64> {
            let smaller = chosen(layers, &at(step)).shrink(graph)?;
            budget.share_left(graph, &smaller, cx)
        };
        if budget.met_by(1.0) {
            return Ok(vec![0; layers.len()]);
        }
        let least = left(steps)?;
        if !budget.met_by(least) {
            return Err(Error::invalid(format!(
                "a budget of {budget} cannot be met: {least:.4} of them are left when all \
                 channels go that may"
            )));
        }
        let (mut over, mut within) = (0, steps);
        while within - over > 1 {
            let middle = over + (within - over) / 2;
            match budget.met_by(left(middle)?) {
                true => within = middle,
                false => over = middle,
            }
        }
        Ok(at(within))
    }
}
