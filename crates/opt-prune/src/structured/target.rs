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

    /// How many of each layer are among the lowest share.
    pub(super) fn lowest(&self, layers: &[Layer], share: f64) -> Vec<usize> {
        let count = |channels: usize| (share * channels as f64).round() as usize;
        if !self.global {
            let of_layer = |l: &Layer| self.bounded(l, count(l.channels.len()));
            return layers.iter().map(of_layer).collect();
        }
        let mut order: Vec<(f64, usize)> = layers
            .iter()
            .enumerate()
            .flat_map(|(l, layer)| layer.channels.iter().map(move |(s, _)| (*s, l)))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut gone = vec![0; layers.len()];
        for &(_, l) in &order[..count(order.len())] {
            gone[l] = self.bounded(&layers[l], gone[l] + 1);
        }
        gone
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
