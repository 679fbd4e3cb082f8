//! Gradient accumulation inside a training graph.

use opt_core::{DType, GraphBuilder, Result, Shape, Tensor, TensorType, ValueId};

/// The input with the weight of a batch among those that make an update.
pub const WEIGHT: &str = "accumulate.weight";

/// The input that says whether parameters are updated after this batch.
pub const UPDATE: &str = "accumulate.update";

/// The sums of gradients of a training graph that is being built.
#[derive(Debug)]
pub(crate) struct Accumulation {
    weight: ValueId,
    pub(crate) update: ValueId,
}

impl Accumulation {
    /// Adds the inputs.
    pub(crate) fn new(b: &mut GraphBuilder) -> Result<Accumulation> {
        Ok(Accumulation {
            weight: b.input(WEIGHT, TensorType::new(DType::F32, Shape::default()))?,
            update: b.input(UPDATE, TensorType::new(DType::Bool, Shape::default()))?,
        })
    }

    /// Replaces gradients by their weighted sums since the last update.
    pub(crate) fn sum(
        &self,
        b: &mut GraphBuilder,
        parameters: &[ValueId],
        grads: &mut [ValueId],
    ) -> Result<()> {
        for (&param, gradient) in parameters.iter().zip(grads) {
            let ty = b.type_of(*gradient).clone();
            let name = format!("accumulated.{}", b.graph().value(param).name());
            let sum = b.variable(&name, Tensor::zeros(ty.dtype, ty.shape.fixed()?)?)?;
            let weight = b.cast(self.weight, ty.dtype)?;
            let part = b.mul(*gradient, weight)?;
            let total = b.add(sum, part)?;
            let zero = b.scalar_like(total, 0.0)?;
            let next = b.select(self.update, zero, total)?;
            b.assign(sum, next)?;
            *gradient = total;
        }
        Ok(())
    }
}

/// For each batch of an epoch, its weight in its update and whether it is the last one of it.
///
/// Updates take `every` batches, the epoch's last one what is left. The weights are the batches'
/// shares of the examples, so that an update is that of one large batch.
pub(crate) fn plan(
    examples: usize,
    batch: usize,
    drop_last: bool,
    every: usize,
) -> Vec<(f64, bool)> {
    let whole = vec![batch; examples / batch];
    let rest = (!drop_last && !examples.is_multiple_of(batch)).then_some(examples % batch);
    let sizes: Vec<usize> = whole.into_iter().chain(rest).collect();
    let groups = sizes.chunks(every).flat_map(|group| {
        let total: usize = group.iter().sum();
        let last = group.len() - 1;
        let part = move |(i, &size)| (size as f64 / total as f64, i == last);
        group.iter().enumerate().map(part)
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_update_takes_what_is_left() {
        let third = 1.0 / 3.0;
        let found = plan(14, 4, false, 3);
        assert_eq!(
            found,
            [(third, false), (third, false), (third, true), (1.0, true)]
        );
        assert_eq!(
            plan(10, 4, false, 3),
            [(0.4, false), (0.4, false), (0.2, true)]
        );
        assert_eq!(plan(10, 4, true, 3), [(0.5, false), (0.5, true)]);
        assert!(plan(3, 4, true, 3).is_empty());
    }
}
