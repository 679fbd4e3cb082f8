//! Writing the QDQ graph.

use std::collections::BTreeMap;

use opt_core::{DType, Error, ErrorKind, Graph, GraphPatch, Report, Result, Tensor, ValueId};

use crate::params::QParams;
use crate::plan::Plan;
use crate::simulate::{rounded, weight_grid, within_grid};

/// The signal-to-noise ratio of what became of a tensor, in dB.
pub(crate) fn sqnr(exact: &Tensor, back: &Tensor) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for (a, b) in exact.to_f64s().into_iter().zip(back.to_f64s()) {
        signal += a * a;
        noise += (a - b) * (a - b);
    }
    if noise == 0.0 {
        f64::INFINITY
    } else {
        10.0 * (signal / noise).log10()
    }
}

/// Weight scales under which the biases fit `i32` at the scale of the products, and keep their
/// digits in channels whose rounded weights are all zero, where any scale will do.
fn with_room(
    scale: &Tensor,
    weight: &Tensor,
    axis: usize,
    bias: &Tensor,
    input_scale: f64,
) -> Result<Tensor> {
    let inner: usize = weight.shape()[axis + 1..].iter().product();
    let mut zero = vec![true; weight.shape()[axis]];
    for (i, w) in weight.to_f64s().into_iter().enumerate() {
        zero[i / inner.max(1) % weight.shape()[axis]] &= w == 0.0;
    }
    let mut scales = scale.to_f64s();
    let per_channel = scales.len() > 1;
    for (c, b) in bias.to_f64s().into_iter().enumerate() {
        let s = &mut scales[if per_channel { c } else { 0 }];
        if b != 0.0 && zero[c] && per_channel {
            *s = b.abs() / (input_scale * f64::from(1 << 20));
        }
        *s = s.max(b.abs() / (input_scale * f64::from(1 << 30)));
    }
    Tensor::from_f64s(DType::F32, scale.shape(), &scales)
}

/// Whether the scale of the products is fine enough to round biases to: it has as many levels as
/// weights and activations have together, of which 2^10 are enough for 8 bits of the result.
fn products_are_fine(weight: &QParams, input: &QParams) -> bool {
    let levels = |(low, high): (i32, i32)| i64::from(high) - i64::from(low) + 1;
    levels(weight.grid) * levels(input.grid) >= 1 << 10
}

/// The graph with the plan's layers and activations quantized: weights by the scales that were
/// learned for them, else by their range.
pub(crate) fn emit(
    graph: Graph,
    plan: &Plan,
    ranges: &BTreeMap<ValueId, QParams>,
    learned: &BTreeMap<ValueId, QParams>,
) -> Result<(Graph, Report)> {
    let original = graph.clone();
    let content = |v: ValueId| {
        original
            .value(v)
            .tensor()
            .expect("planned as stored")
            .clone()
    };
    let name = |v: ValueId| original.value(v).name().to_string();
    let mut patch = GraphPatch::new(graph);
    let mut report = Report::new(plan.layers.len());
    let mut constants: BTreeMap<ValueId, (ValueId, ValueId)> = BTreeMap::new();
    for (&value, origin) in &plan.activations {
        let params = ranges.get(origin).ok_or_else(|| {
            Error::new(ErrorKind::Data, "no range is known for this value").at(name(*origin))
        })?;
        let (scale, zero) = *constants.entry(*origin).or_insert_with(|| {
            (
                patch.named_constant("s", params.scale.clone()),
                patch.named_constant("z", params.zero_point.clone()),
            )
        });
        let inside = within_grid(&mut patch, value, params)?;
        let q = patch.quantize(inside, scale, zero, None)?;
        let dq = patch.dequantize(q, scale, zero, None)?;
        patch.replace(value, dq)?;
    }
    for layer in &plan.layers {
        let exact = content(layer.weight);
        let mut params = match learned.get(&layer.weight) {
            Some(params) => params.clone(),
            None => weight_grid(&original, layer)?,
        };
        // What is left of the weights: a channel may round to zeros.
        let kept = rounded(&exact, &params)?;
        let input = &ranges[&plan.activations[&layer.input]];
        let input_scale = input.scale.item()?;
        let exact_bias = layer.bias.filter(|_| !products_are_fine(&params, input));
        if let Some(bias) = layer.bias.filter(|_| exact_bias.is_none()) {
            params.scale = with_room(
                &params.scale,
                &kept,
                layer.axis,
                &content(bias),
                input_scale,
            )?;
        }
        report = report.figure(
            format!("SQNR of {}", name(layer.weight)),
            sqnr(&exact, &kept),
        );
        let base = name(layer.weight);
        let q = patch.named_constant(&format!("{base}.q"), params.quantize(&kept)?);
        let scale = patch.named_constant(&format!("{base}.s"), params.scale.clone());
        let zero = patch.named_constant(&format!("{base}.z"), params.zero_point.clone());
        let dq = patch.dequantize(q, scale, zero, params.axis)?;
        patch.replace(layer.weight, dq)?;
        if let Some(bias) = exact_bias {
            let constant = patch.named_constant(&format!("{}.f", name(bias)), content(bias));
            patch.replace(bias, constant)?;
            continue;
        }
        let Some(bias) = layer.bias else { continue };
        let input_scale = input_scale as f32;
        let scales: Vec<f32> = params
            .scale
            .to_f64s()
            .into_iter()
            .map(|s| input_scale * s as f32)
            .collect();
        let exact = content(bias);
        let levels: Vec<i32> = exact
            .to_f64s()
            .into_iter()
            .enumerate()
            .map(|(i, b)| {
                let scale = scales[if scales.len() == 1 { 0 } else { i }];
                (b / f64::from(scale)).round_ties_even() as i32
            })
            .collect();
        let base = name(bias);
        let shape = params.scale.shape();
        let q = patch.named_constant(&format!("{base}.q"), Tensor::new(exact.shape(), levels)?);
        let scale = patch.named_constant(&format!("{base}.s"), Tensor::new(shape, scales)?);
        let zero = Tensor::zeros(DType::I32, shape)?;
        let zero = patch.named_constant(&format!("{base}.z"), zero);
        let dq = patch.dequantize(q, scale, zero, params.axis.map(|_| 0))?;
        patch.replace(bias, dq)?;
    }
    Ok((patch.finish()?, report))
}
