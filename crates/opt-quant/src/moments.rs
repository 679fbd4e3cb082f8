//! Means and deviations of channels over the calibration examples.

use opt_core::ops::ReduceOp;
use opt_core::{Context, Error, ErrorKind, Graph, GraphBuilder, Result, ResultExt, ValueId};

use crate::batches::Batches;
use crate::calibrate::Calibration;
use crate::layers::Layers;

/// The mean and the standard deviation of a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Moments {
    pub(crate) mean: f64,
    pub(crate) deviation: f64,
}

/// The moments of the channels of layers' outputs, over the context's calibration examples (its
/// training examples if it has none).
pub(crate) fn channel_moments(
    graph: &Graph,
    values: &[ValueId],
    cx: &Context<'_>,
) -> Result<Vec<Vec<Moments>>> {
    let data = cx.calibration().or_else(|e| cx.training().map_err(|_| e))?;
    moments_over(
        graph,
        values,
        &Batches::new(data, cx.backend()?, &Calibration::default())?,
    )
}

/// The moments of the channels of layers' outputs over batches.
pub(crate) fn moments_over(
    graph: &Graph,
    values: &[ValueId],
    batches: &Batches<'_>,
) -> Result<Vec<Vec<Moments>>> {
    let layers = Layers::of(graph);
    let mut b = GraphBuilder::extend(graph.clone());
    let mut wanted = Vec::new();
    for (i, &v) in values.iter().enumerate() {
        let layer = layers.iter().find(|l| l.output == v);
        let layer = layer.ok_or_else(|| Error::invalid("no layer's output"))?;
        let ty = b.type_of(v).clone();
        let axes: Vec<usize> = (0..ty.rank()).filter(|&a| a != layer.channels).collect();
        let mean = b.reduce(ReduceOp::Mean, v, &axes, false)?;
        let square = b.mul(v, v)?;
        let square = b.reduce(ReduceOp::Mean, square, &axes, false)?;
        wanted.push((format!("mean {i}"), mean));
        wanted.push((format!("square {i}"), square));
    }
    let watched = b.into_graph().extract(&wanted, false)?;
    let mut sums: Vec<Vec<f64>> = vec![Vec::new(); wanted.len()];
    let mut total = 0.0;
    batches.run(&watched, |count, outputs| {
        total += count as f64;
        for (sum, tensor) in sums.iter_mut().zip(&outputs) {
            sum.resize(tensor.len(), 0.0);
            for (s, v) in sum.iter_mut().zip(tensor.to_f64s()) {
                *s += v * count as f64;
            }
        }
        Ok(())
    })?;
    let mut out = Vec::new();
    for (pair, &v) in sums.chunks(2).zip(values) {
        let channels = pair[0].iter().zip(&pair[1]).map(|(m, s)| {
            let mean = m / total;
            Moments {
                mean,
                deviation: (s / total - mean * mean).max(0.0).sqrt(),
            }
        });
        let channels: Vec<Moments> = channels.collect();
        if channels.iter().any(|m| !m.mean.is_finite()) {
            let what = "a mean over the calibration examples is NaN or infinite";
            return Err(Error::new(ErrorKind::Data, what)).at(|| graph.value(v).name().to_string());
        }
        out.push(channels);
    }
    Ok(out)
}
