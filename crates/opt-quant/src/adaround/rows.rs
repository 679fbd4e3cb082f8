//! Rows of inputs and targets that a layer is fitted on.

use std::collections::HashSet;

use opt_core::ops::{Op, Unary, UnaryOp, Window};
use opt_core::random::Philox;
use opt_core::{Error, ErrorKind, Graph, Result, Tensor, ValueId};

use crate::batches::Batches;
use crate::layers::Layer;

/// What a layer reads and should make, a row for each product: `[groups, rows, inputs]` and
/// `[groups, rows, outputs]`.
pub(super) struct Rows {
    pub(super) count: usize,
    pub(super) inputs: Vec<f32>,
    pub(super) targets: Vec<f32>,
}

/// The values that nothing but a ReLU reads.
pub(super) fn before_relu(graph: &Graph) -> HashSet<ValueId> {
    let consumers = graph.consumers();
    let outputs: HashSet<ValueId> = graph.outputs().collect();
    let relu = Op::from(Unary { op: UnaryOp::Relu });
    let only = consumers.iter().filter(|(v, readers)| {
        let all = readers
            .iter()
            .all(|(node, _)| *graph.node(*node).op() == relu);
        all && !outputs.contains(v)
    });
    only.map(|(&v, _)| v).collect()
}

/// Where the entries of one row of a convolution's input lie.
struct Patches<'a> {
    window: &'a Window,
    kernel: Vec<usize>,
    /// Channels of a group.
    channels: usize,
    groups: usize,
}

impl Patches<'_> {
    /// Appends the patch of a group at a place of the output, zeros beyond the edges.
    fn push(
        &self,
        x: &[f32],
        shape: &[usize],
        (n, group, place): (usize, usize, &[usize]),
        row: &mut Vec<f32>,
    ) {
        let spatial = &shape[2..];
        let area: usize = spatial.iter().product();
        for c in 0..self.channels {
            let plane = (n * shape[1] + group * self.channels + c) * area;
            crate::scales::field::for_each_index(&self.kernel, |tap| {
                let mut at = 0;
                let mut inside = true;
                for (a, (&t, &size)) in tap.iter().zip(spatial).enumerate() {
                    let i = place[a] * self.window.strides[a] + t * self.window.dilations[a];
                    let i = i.wrapping_sub(self.window.pads_begin[a]);
                    inside &= i < size;
                    at = at * size + i.min(size.saturating_sub(1));
                }
                row.push(if inside { x[plane + at] } else { 0.0 });
            });
        }
    }
}

impl Rows {
    /// Draws rows: targets from the exact graph, inputs from the one that rounds.
    pub(super) fn draw(
        (exact, layer): (&Graph, &Layer),
        (simulated, same): (&Graph, &Layer),
        batches: &Batches<'_>,
        samples: usize,
        seed: u64,
    ) -> Result<Rows> {
        let quota = samples.div_ceil(batches.len());
        let mut targets = Vec::new();
        let output = [("y".to_string(), layer.output)];
        let mut places: Vec<Vec<usize>> = Vec::new();
        let stream = Philox::new(seed);
        let op = exact.node(layer.node).op();
        let groups = match op {
            Op::Conv(op) => op.groups,
            _ => 1,
        };
        let mut target_rows: Vec<Vec<f32>> = vec![Vec::new(); groups];
        batches.run(&exact.extract(&output, false)?, |_, mut outputs| {
            let y = finite(outputs.swap_remove(0))?;
            let shape = y.shape().to_vec();
            let data = y.as_slice::<f32>()?;
            let channels = shape[layer.channels];
            let area: usize = shape[layer.channels + 1..].iter().product();
            let count = data.len() / channels.max(1);
            let mut chosen = match count > quota {
                true => stream.permutation(places.len() as u64, count),
                false => (0..count).collect(),
            };
            chosen.truncate(quota);
            for &p in &chosen {
                let (n, at) = (p / area.max(1), p % area.max(1));
                for c in 0..channels {
                    let value = data[(n * channels + c) * area + at];
                    target_rows[c * groups / channels].push(value);
                }
            }
            places.push(chosen);
            Ok(())
        })?;
        targets.extend(target_rows.into_iter().flatten());
        let mut input_rows: Vec<Vec<f32>> = vec![Vec::new(); groups];
        let input = [("x".to_string(), same.input)];
        let out_shape = &exact.type_of(layer.output).shape;
        let spatial: Option<Vec<usize>> = (2..out_shape.rank())
            .map(|a| out_shape[a].as_fixed())
            .collect();
        let mut batch = 0;
        batches.run(&simulated.extract(&input, false)?, |_, mut outputs| {
            let x = finite(outputs.swap_remove(0))?;
            let shape = x.shape().to_vec();
            let data = x.as_slice::<f32>()?;
            let chosen = &places[batch];
            batch += 1;
            let Op::Conv(op) = op else {
                let width = shape[shape.len() - 1];
                for &p in chosen {
                    input_rows[0].extend(&data[p * width..(p + 1) * width]);
                }
                return Ok(());
            };
            let spatial = spatial.as_ref().ok_or_else(|| {
                Error::unsupported("rounding convolutions over images of unknown size")
            })?;
            let weight = exact.type_of(layer.weight).shape.fixed()?;
            let patches = Patches {
                window: &op.window,
                kernel: weight[2..].to_vec(),
                channels: weight[1],
                groups,
            };
            let area: usize = spatial.iter().product();
            for &p in chosen {
                let (n, mut rest) = (p / area, p % area);
                let mut place = vec![0; spatial.len()];
                for a in (0..spatial.len()).rev() {
                    place[a] = rest % spatial[a];
                    rest /= spatial[a];
                }
                for (g, rows) in input_rows.iter_mut().enumerate().take(patches.groups) {
                    patches.push(data, &shape, (n, g, &place), rows);
                }
            }
            Ok(())
        })?;
        Ok(Rows {
            count: places.iter().map(Vec::len).sum(),
            inputs: input_rows.into_iter().flatten().collect(),
            targets,
        })
    }
}

fn finite(tensor: Tensor) -> Result<Tensor> {
    if tensor.is_finite() {
        return Ok(tensor.contiguous());
    }
    let what = "a value at calibration is NaN or infinite";
    Err(Error::new(ErrorKind::Data, what))
}
