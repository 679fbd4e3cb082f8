//! Making two layers comparable: projection of channels, pooling of positions.

use opt_core::nn::Init;
use opt_core::ops::Window;
use opt_core::{DType, Dim, Error, GraphBuilder, Result, Tensor, ValueId};

use crate::features::{Matching, channel_axis, positions};
use crate::layers::{LayerPair, Project};
use crate::math::in_loss_dtype;

/// Brings two layers to one dtype and to shapes that agree as `matching` says.
pub(crate) fn adapt(
    b: &mut GraphBuilder,
    pair: &LayerPair,
    matching: Matching,
    student: ValueId,
    teacher: ValueId,
    seed: u64,
    stream: u64,
) -> Result<(ValueId, ValueId)> {
    let (before_s, before_t) = (b.type_of(student).clone(), b.type_of(teacher).clone());
    let fail = |why: &str| {
        Error::shape(format!(
            "the student's layer `{}` is {before_s}, the teacher's `{}` is {before_t}{why}",
            pair.student, pair.teacher
        ))
    };
    if before_s.rank() == 0 || before_t.rank() == 0 {
        return Err(fail("; a layer has an axis of examples"));
    }
    let (mut s, mut t) = in_loss_dtype(b, student, teacher)?;
    if matching != Matching::Batch {
        if before_s.rank() != before_t.rank() {
            return Err(fail("; the loss compares layers of the same rank"));
        }
        if pair.pool {
            (s, t) = pool(b, s, t)?;
        }
    }
    let project = match pair.project {
        Project::Never => false,
        Project::Always => true,
        Project::IfNeeded => {
            let axis = channel_axis(&before_s.shape);
            matching == Matching::Shape
                && before_s.shape.dims().get(axis) != before_t.shape.dims().get(axis)
        }
    };
    if project {
        let channels = (before_t.rank() >= 2)
            .then(|| before_t.shape[channel_axis(&before_t.shape)].as_fixed())
            .flatten();
        let own = (before_s.rank() >= 2)
            .then(|| before_s.shape[channel_axis(&before_s.shape)].as_fixed())
            .flatten();
        let (Some(inputs), Some(outputs)) = (own, channels) else {
            return Err(fail("; a projection needs known numbers of channels"));
        };
        s = projected(b, s, inputs, outputs, seed, stream)?;
    }
    let (found_s, found_t) = (b.type_of(s).clone(), b.type_of(t).clone());
    let agrees = |axis: usize| found_s.shape.dims().get(axis) == found_t.shape.dims().get(axis);
    if !agrees(0) {
        return Err(fail("; the numbers of examples differ"));
    }
    if matching != Matching::Batch && !positions(&found_s.shape).into_iter().all(agrees) {
        return Err(fail(match pair.pool {
            true => "; their positions cannot be pooled to one size",
            false => "; `LayerPair::pool` brings their positions to one size",
        }));
    }
    if matching == Matching::Shape && found_s.rank() > 1 && !agrees(channel_axis(&found_s.shape)) {
        return Err(fail(
            "; `LayerPair::project` brings the student's channels to the teacher's number",
        ));
    }
    Ok((s, t))
}

/// A trainable linear map over the channels.
fn projected(
    b: &mut GraphBuilder,
    x: ValueId,
    inputs: usize,
    outputs: usize,
    seed: u64,
    stream: u64,
) -> Result<ValueId> {
    let ty = b.type_of(x).clone();
    let axis = channel_axis(&ty.shape);
    let bound = 1.0 / (inputs.max(1) as f64).sqrt();
    let start = Init::Uniform {
        low: -bound,
        high: bound,
    };
    let spatial = ty.rank().saturating_sub(2);
    let last = axis + 1 == ty.rank();
    let mut shape = vec![outputs, inputs];
    if !last {
        shape.resize(2 + spatial, 1);
    }
    let weight = start.tensor(ty.dtype, &shape, seed, 2 * stream)?;
    let bias = start.tensor(ty.dtype, [outputs], seed, 2 * stream + 1)?;
    b.scope("projection", |b| {
        let weight = b.variable("weight", weight)?;
        let bias = b.variable("bias", bias)?;
        if last {
            let y = b.matmul_t(x, weight, false, true)?;
            return b.add(y, bias);
        }
        b.conv(x, weight, Some(bias), Window::new(spatial), 1)
    })
}

/// Averages the larger of two layers down to the smaller along every axis of positions whose
/// sizes are known and differ.
fn pool(b: &mut GraphBuilder, s: ValueId, t: ValueId) -> Result<(ValueId, ValueId)> {
    let (mut s, mut t) = (s, t);
    for axis in positions(&b.type_of(s).shape.clone()) {
        let sizes = [s, t].map(|v| b.type_of(v).shape.dims()[axis].as_fixed());
        let [Some(own), Some(other)] = sizes else {
            continue;
        };
        if own > other {
            s = averaged(b, s, axis, own, other)?;
        } else if other > own {
            t = averaged(b, t, axis, other, own)?;
        }
    }
    Ok((s, t))
}

/// PyTorch's adaptive average pooling along one axis, as a product with a constant matrix: entry i
/// of the output is the mean of the entries from `floor(i * from / to)` up to `ceil((i + 1) * from
/// / to)`.
fn averaged(
    b: &mut GraphBuilder,
    x: ValueId,
    axis: usize,
    from: usize,
    to: usize,
) -> Result<ValueId> {
    let ty = b.type_of(x).clone();
    let matrix = pooling_matrix(ty.dtype, from, to)?;
    let matrix = b.named_constant("pool", matrix);
    let last = ty.rank() - 1;
    let mut swap: Vec<usize> = (0..=last).collect();
    swap.swap(axis, last);
    let moved = match axis == last {
        true => x,
        false => b.transpose(x, &swap)?,
    };
    let pooled = b.matmul_t(moved, matrix, false, true)?;
    match axis == last {
        true => Ok(pooled),
        false => b.transpose(pooled, &swap),
    }
}

fn pooling_matrix(dtype: DType, from: usize, to: usize) -> Result<Tensor> {
    // Sizes of layers that exist; their product is that of a plane.
    let entries = Dim::from(from).mul(to)?.fixed()?;
    let mut data = vec![0.0; entries];
    for i in 0..to {
        let (start, end) = (i * from / to, ((i + 1) * from).div_ceil(to));
        data[i * from + start..i * from + end].fill(1.0 / (end - start) as f64);
    }
    Tensor::from_f64s(dtype, [to, from], &data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.nn.functional.adaptive_avg_pool1d(torch.eye(5)[None], 3)`, whose windows overlap.
    #[test]
    fn windows_are_pytorchs() {
        let found = pooling_matrix(DType::F64, 5, 3).unwrap().to_f64s();
        let third = 1.0 / 3.0;
        let expected = [
            [0.5, 0.5, 0.0, 0.0, 0.0],
            [0.0, third, third, third, 0.0],
            [0.0, 0.0, 0.0, 0.5, 0.5],
        ];
        assert_eq!(found, expected.concat());
    }
}
