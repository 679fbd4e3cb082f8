//! Distance from the geometric median.

use opt_core::{Context, Graph, Result, ValueId};

use super::{Criterion, Structures, each_slice};

/// Filter pruning via geometric median (He et al. 2019): a filter scores the sum of its Euclidean
/// distances to the other filters of its layer that may go, so that those go first that the others
/// can stand in for. Where residual sums couple filters of several layers, their sums add up, each
/// divided by its layer's mean.
///
/// It scores channels only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fpgm;

impl Criterion for Fpgm {
    fn score_structures(
        &self,
        graph: &Graph,
        layers: &[Structures],
        _: &[ValueId],
        _: &mut Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let score = |layer: &Structures| -> Vec<f64> {
            let mut total = vec![0.0; layer.groups.len()];
            for place in &layer.weights {
                let tensor = graph.value(place.0).tensor().expect("a variable");
                let data = tensor.to_f64s();
                let filters: Vec<Vec<f64>> = layer
                    .groups
                    .iter()
                    .map(|group| {
                        let mut filter = Vec::new();
                        each_slice(tensor.shape(), place.1, &group.entries[place], |range| {
                            filter.extend_from_slice(&data[range]);
                        });
                        filter
                    })
                    .collect();
                let sums = distance_sums(&filters);
                let mean = match layer.weights.len() {
                    1 => 1.0,
                    _ => sums.iter().sum::<f64>() / sums.len().max(1) as f64,
                };
                if mean > 0.0 {
                    total.iter_mut().zip(sums).for_each(|(t, s)| *t += s / mean);
                }
            }
            total
        };
        Ok(layers.iter().map(score).collect())
    }
}

/// For each point the sum of its distances to the others.
fn distance_sums(points: &[Vec<f64>]) -> Vec<f64> {
    let mut sums = vec![0.0; points.len()];
    for i in 0..points.len() {
        for j in 0..i {
            let distance = squared_distance(&points[i], &points[j]).sqrt();
            sums[i] += distance;
            sums[j] += distance;
        }
    }
    sums
}

/// Sums in lanes, which compilers turn into vector instructions.
fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let mut total: f64 = rest.map(|(a, b)| (a - b) * (a - b)).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..8 {
            lanes[lane] += (a[lane] - b[lane]) * (a[lane] - b[lane]);
        }
    }
    total += lanes.iter().sum::<f64>();
    total
}
