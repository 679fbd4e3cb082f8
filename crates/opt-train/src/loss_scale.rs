//! Scaling of the loss, for gradients that pass through half precision.

use opt_core::ops::Op;
use opt_core::{DType, Error, Graph, GraphBuilder, GraphPatch, NodeId, Result, Tensor, ValueId};

/// The variable with the factor of the loss, an `f32` scalar.
pub const SCALE: &str = "loss_scale.scale";

/// The variable that counts the steps since the factor changed, an `i32` scalar.
pub const GROWTH_TRACKER: &str = "loss_scale.growth_tracker";

/// Scaling of the loss with back-off: PyTorch's `torch.amp.GradScaler`, and its defaults.
///
/// The loss is multiplied by a factor, so that gradients that would be zeros in `f16` are not, and
/// the gradients by the parameters are divided by it in `f32` before anything else sees them. If
/// one of them is NaN or infinite then, the step is left out: no parameter, no slot of the
/// optimizer and no count of steps changes, and the factor is multiplied by `backoff_factor`.
/// After `growth_interval` steps in a row that were taken it is multiplied by `growth_factor`,
/// unless that is infinite. Running statistics of batch normalization and counters of random ops
/// go on in any case, as in PyTorch.
///
/// All of it is nodes of the training graph, with the state in the variables [`SCALE`] and
/// [`GROWTH_TRACKER`], which checkpoints hold. The loss that a step reports is not scaled.
///
/// ```
/// use opt_train::LossScale;
///
/// let careful = LossScale { initial: 1024.0, growth_interval: 100, ..LossScale::default() };
/// assert_eq!(careful.backoff_factor, 0.5);
/// ```
///
/// Source: Micikevicius et al. 2018, *Mixed Precision Training*.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// The factor at first, above 0 and finite in `f32`: 65536.
    pub initial: f64,
    /// What the factor is multiplied by to grow, above 1: 2.
    pub growth_factor: f64,
    /// What the factor is multiplied by after gradients that are not finite, in `(0, 1)`: 0.5.
    pub backoff_factor: f64,
    /// Steps in a row after which the factor grows, 1 at least: 2000.
    pub growth_interval: u32,
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale {
            initial: 65536.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2000,
        }
    }
}

impl LossScale {
    fn check(&self) -> Result<()> {
        let initial = self.initial as f32;
        let growth = self.growth_factor as f32;
        let backoff = self.backoff_factor as f32;
        let bad = |what: &str, value: f64, range: &str| {
            Err(Error::invalid(format!(
                "the loss scale's {what} is {value}, not {range}"
            )))
        };
        if !initial.is_normal() || initial < 0.0 {
            return bad("initial factor", self.initial, "a positive number of f32");
        }
        if !growth.is_finite() || growth <= 1.0 {
            return bad("growth factor", self.growth_factor, "above 1");
        }
        if !(backoff > 0.0 && backoff < 1.0) {
            return bad("back-off factor", self.backoff_factor, "between 0 and 1");
        }
        if self.growth_interval == 0 || i32::try_from(self.growth_interval).is_err() {
            let interval = f64::from(self.growth_interval);
            return bad("growth interval", interval, "in 1..2^31");
        }
        Ok(())
    }
}

/// The loss scale of a training graph that is being built.
#[derive(Debug)]
pub(crate) struct Scaling {
    options: LossScale,
    scale: ValueId,
    tracker: ValueId,
}

impl Scaling {
    /// Adds the variables.
    pub(crate) fn new(b: &mut GraphBuilder, options: LossScale) -> Result<Scaling> {
        options.check()?;
        let tracker = Tensor::scalar(0i32);
        Ok(Scaling {
            options,
            scale: b.variable(SCALE, Tensor::scalar(options.initial as f32))?,
            tracker: b.variable(GROWTH_TRACKER, tracker)?,
        })
    }

    /// The loss times the factor, in `f32` unless it is wider.
    pub(crate) fn scaled(&self, b: &mut GraphBuilder, loss: ValueId) -> Result<ValueId> {
        let dtype = wide(b, loss);
        let loss = b.cast(loss, dtype)?;
        let scale = b.cast(self.scale, dtype)?;
        b.mul(loss, scale)
    }

    /// Divides the gradients by the factor, in `f32` unless they are wider; returns whether all of
    /// them are finite then.
    pub(crate) fn unscale(&self, b: &mut GraphBuilder, grads: &mut [ValueId]) -> Result<ValueId> {
        // The reciprocal is PyTorch's: taken in f64.
        let inverse = b.cast(self.scale, DType::F64)?;
        let inverse = b.reciprocal(inverse)?;
        let mut wide_grads = Vec::with_capacity(grads.len());
        for gradient in grads {
            let (own, dtype) = (b.type_of(*gradient).dtype, wide(b, *gradient));
            let factor = b.cast(inverse, DType::F32)?;
            let factor = b.cast(factor, dtype)?;
            let g = b.cast(*gradient, dtype)?;
            let g = b.mul(g, factor)?;
            wide_grads.push(g);
            *gradient = b.cast(g, own)?;
        }
        all_finite(b, &wide_grads)
    }

    /// Adds the factor's update.
    pub(crate) fn update(&self, b: &mut GraphBuilder, finite: ValueId) -> Result<()> {
        let next = b.add_scalar(self.tracker, 1.0)?;
        let interval = b.scalar_like(next, f64::from(self.options.growth_interval))?;
        let due = b.equal(next, interval)?;
        let none = b.scalar_like(next, 0.0)?;
        let counted = b.select(due, none, next)?;
        let counted = b.select(finite, counted, none)?;
        b.assign(self.tracker, counted)?;

        let grown = b.mul_scalar(self.scale, self.options.growth_factor)?;
        let infinite = b.scalar_like(grown, f64::INFINITY)?;
        let fits = b.less(grown, infinite)?;
        let grows = b.and(due, fits)?;
        let kept = b.select(grows, grown, self.scale)?;
        let smaller = b.mul_scalar(self.scale, self.options.backoff_factor)?;
        let scale = b.select(finite, kept, smaller)?;
        b.assign(self.scale, scale)?;
        Ok(())
    }
}

/// Whether all entries of all gradients are finite.
pub(crate) fn all_finite(b: &mut GraphBuilder, grads: &[ValueId]) -> Result<ValueId> {
    let mut total = b.scalar(DType::F32, 0.0)?;
    for &gradient in grads {
        // 0 where it is finite, else NaN.
        let zeros = b.mul_scalar(gradient, 0.0)?;
        let zero = b.sum_all(zeros)?;
        let zero = b.cast(zero, DType::F32)?;
        total = b.add(total, zero)?;
    }
    let zero = b.scalar(DType::F32, 0.0)?;
    b.equal(total, zero)
}

/// The dtype in which a value is scaled.
fn wide(b: &GraphBuilder, v: ValueId) -> DType {
    match b.type_of(v).dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// Lets assignments take effect only where a condition holds; else the variables keep what they
/// have.
pub(crate) fn guard(graph: Graph, nodes: &[NodeId], condition: ValueId) -> Result<Graph> {
    let mut patch = GraphPatch::new(graph);
    for &id in nodes {
        let node = patch.graph().node(id);
        let (Op::Assign(_), [variable, new]) = (node.op(), node.inputs()) else {
            continue;
        };
        let (variable, new) = (*variable, *new);
        let chosen = patch.select(condition, new, variable)?;
        patch.rewire(id, 1, chosen)?;
    }
    patch.finish()
}
