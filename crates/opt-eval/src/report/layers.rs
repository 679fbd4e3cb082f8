//! Layer by layer: bytes, time and sparsity as bars, weights as histograms, and the tables.

use super::axis::Unit;
use super::page::{Cell, cards, details, legend, table};
use super::plots::bars::{Bars, Group, bars};
use super::plots::histogram::histogram;
use super::{Counted, format};
use crate::layers::Layers;
use crate::size::live_values;
use crate::weights::parameters;
use crate::{LayerCost, LayerTime};
use opt_core::{Result, ResultExt};

/// The most layers whose weights are drawn.
const MOST: usize = 12;

/// The names of all layers: the first model's, then those that only others have.
fn union<'a>(lists: impl IntoIterator<Item = Vec<&'a str>>) -> Vec<&'a str> {
    let mut seen = std::collections::HashSet::new();
    let mut out: Vec<&str> = lists.into_iter().flatten().collect();
    out.retain(|name| seen.insert(*name));
    out
}

pub(super) fn charts(models: &[&Counted<'_>], times: &[(String, Vec<LayerTime>)]) -> String {
    let series: Vec<String> = models.iter().map(|m| m.name.to_string()).collect();
    let names = union(models.iter().map(|m| {
        let with = m.cost.layers.iter().filter(|l| l.parameters > 0);
        with.map(|l| l.name.as_str()).collect()
    }));
    let of_layers = |value: fn(&LayerCost) -> Option<f64>| -> Vec<Group> {
        let group = |name: &&str| Group {
            name: name.to_string(),
            values: models
                .iter()
                .map(|m| {
                    m.cost
                        .layers
                        .iter()
                        .find(|l| l.name == **name)
                        .and_then(value)
                })
                .collect(),
        };
        names.iter().map(group).collect()
    };
    let bytes = of_layers(|l| (l.parameters > 0).then_some(l.bytes as f64));
    let bytes = bars(
        Bars {
            id: "bytes",
            heading: "Bytes per layer",
            axis: "bytes of weights",
            caption: "What is stored of each layer with parameters: weights, running statistics, \
                      scales and zero points.",
            unit: Unit::Bytes,
        },
        &series,
        &bytes,
    );
    let shares = of_layers(LayerCost::sparsity);
    let any = shares
        .iter()
        .flat_map(|g| &g.values)
        .any(|v| *v > Some(0.0));
    let sparsity = bars(
        Bars {
            id: "sparsity",
            heading: "Sparsity per layer",
            axis: "share of parameters that are 0",
            caption: "The share of each layer's parameters that are 0; a quantized one is 0 at its \
                      zero point.",
            unit: Unit::Percent,
        },
        &series,
        &shares,
    );
    let drawn = [bytes, time_chart(&series, times), sparsity.filter(|_| any)];
    let mut out = cards(drawn.into_iter().flatten());
    if !names.is_empty() && !any {
        out.push_str("<p class=\"note\">No parameter of these models is 0.</p>\n");
    }
    for model in models.iter().filter(|m| !m.cost.layers.is_empty()) {
        let timed = times.iter().find(|(name, _)| name == model.name);
        let summary = format!("All layers of {}", model.name);
        out.push_str(&details(
            &summary,
            &layer_table(model, timed.map(|t| &t.1[..])),
        ));
    }
    out
}

fn time_chart(
    series: &[String],
    times: &[(String, Vec<LayerTime>)],
) -> Option<super::plots::Figure> {
    let timed: Vec<(&String, &[LayerTime])> = series
        .iter()
        .filter_map(|name| {
            let found = times.iter().find(|(model, _)| model == name)?;
            Some((name, &found.1[..]))
        })
        .collect();
    let all = union(
        timed
            .iter()
            .map(|(_, t)| t.iter().map(|t| t.name.as_str()).collect()),
    );
    let group = |name: &str| Group {
        name: name.to_string(),
        // Every series keeps its colour, timed or not.
        values: series
            .iter()
            .map(|s| {
                let (_, times) = timed.iter().find(|(model, _)| *model == s)?;
                times.iter().find(|t| t.name == name).map(|t| t.median_us)
            })
            .collect(),
    };
    let groups: Vec<Group> = all.into_iter().map(group).collect();
    let untimed: Vec<&str> = series
        .iter()
        .filter(|s| timed.iter().all(|(model, _)| model != s))
        .map(String::as_str)
        .collect();
    let runs = || {
        timed
            .iter()
            .flat_map(|(_, times)| times.iter().map(|t| t.runs))
    };
    let runs = match (runs().min(), runs().max()) {
        (Some(least), Some(most)) if least == most => most.to_string(),
        (Some(least), Some(most)) => format!("{least} to {most}"),
        _ => return None,
    };
    let mut caption = format!(
        "The median time of {runs} runs of each layer, compiled and run as a graph of its own. \
         Kernels that cover several layers are not seen, so the times do not add up to the model's \
         latency."
    );
    if !untimed.is_empty() {
        caption.push_str(&format!(" Not timed: {}.", untimed.join(", ")));
    }
    bars(
        Bars {
            id: "time",
            heading: "Time per layer",
            axis: "median time",
            caption: &caption,
            unit: Unit::Microseconds,
        },
        series,
        &groups,
    )
}

fn layer_table(model: &Counted<'_>, times: Option<&[LayerTime]>) -> String {
    let mut header = vec![
        "layer",
        "op",
        "output",
        "parameters",
        "sparsity",
        "bytes",
        "multiply-adds",
    ];
    if times.is_some() {
        header.push("median time");
    }
    let row = |layer: &LayerCost| {
        let mut cells = vec![
            Cell::plain(&layer.name),
            Cell::plain(&layer.op),
            Cell::plain(layer.output.to_string()),
            Cell::plain(format::count(layer.parameters as f64)),
            Cell::or_dash(layer.sparsity().map(format::percent)),
            Cell::plain(format::bytes(layer.bytes as f64)),
            Cell::plain(format::count(layer.macs as f64)),
        ];
        if let Some(times) = times {
            let time = times.iter().find(|t| t.name == layer.name);
            cells.push(Cell::or_dash(
                time.map(|t| format::microseconds(t.median_us)),
            ));
        }
        cells
    };
    let rows: Vec<Vec<Cell>> = model.cost.layers.iter().map(row).collect();
    table(&format!("Layers of {}", model.name), &header, &rows)
}

/// Histograms of the weights of matrices and kernels, layer by layer.
pub(super) fn weights(models: &[&Counted<'_>]) -> Result<String> {
    let mut of_models: Vec<Vec<(String, Vec<f64>)>> = Vec::with_capacity(models.len());
    for model in models {
        of_models.push(layer_weights(model).at(|| model.name.to_string())?);
    }
    let mut names = union(
        of_models
            .iter()
            .map(|layers| layers.iter().map(|(name, _)| name.as_str()).collect()),
    );
    let all = names.len();
    if all > MOST {
        let size = |name: &str| {
            let found = of_models.iter().flatten().filter(|(n, _)| n == name);
            found.map(|(_, w)| w.len()).max().unwrap_or(0)
        };
        let mut by_size: Vec<(usize, usize)> = names.iter().map(|n| size(n)).zip(0..).collect();
        by_size.sort_unstable_by_key(|&(size, i)| (std::cmp::Reverse(size), i));
        let mut kept: Vec<usize> = by_size[..MOST].iter().map(|&(_, i)| i).collect();
        kept.sort_unstable();
        names = kept.into_iter().map(|i| names[i]).collect();
    }
    let series: Vec<String> = models.iter().map(|m| m.name.to_string()).collect();
    let mut drawn = String::new();
    for (i, name) in names.iter().enumerate() {
        let of = |layers: &Vec<(String, Vec<f64>)>| {
            let found = layers.iter().find(|(n, _)| n == name);
            found.map_or_else(Vec::new, |(_, w)| w.clone())
        };
        let weights: Vec<Vec<f64>> = of_models.iter().map(of).collect();
        if let Some(svg) = histogram(&format!("weights{i}"), name, &series, &weights) {
            drawn.push_str(&svg);
            drawn.push('\n');
        }
    }
    if drawn.is_empty() {
        return Ok(drawn);
    }
    let mut caption = "The weights of matrices and kernels that are not 0, as the network sees \
                       them (quantized ones dequantized): for each model the share of its weights \
                       in 41 bins of equal width."
        .to_string();
    if all > MOST {
        caption.push_str(&format!(" The {MOST} largest of {all} layers are shown."));
    }
    Ok(format!(
        "<figure>{}<div class=\"grid small\">\n{drawn}</div><figcaption>{caption}</figcaption></figure>\n",
        legend(&series)
    ))
}

/// The entries of each layer's parameters of rank 2 or more; biases and norms would be a second
/// population in the same plot.
fn layer_weights(model: &Counted<'_>) -> Result<Vec<(String, Vec<f64>)>> {
    let live = live_values(&model.graph);
    let layers = Layers::of(&model.graph, &live)?;
    let mut out: Vec<(String, Vec<f64>)> = layers
        .layers
        .iter()
        .map(|layer| (layer.name.clone(), Vec::new()))
        .collect();
    for parameter in parameters(&model.graph, &live) {
        if let (Some(layer), true) = (layers.of_value(parameter.id), parameter.tensor.rank() >= 2) {
            out[layer].1.extend(parameter.values()?);
        }
    }
    out.retain(|(_, weights)| !weights.is_empty());
    Ok(out)
}
