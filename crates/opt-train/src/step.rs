//! A training step as one graph.

use std::collections::HashSet;

use opt_core::autodiff::grad;
use opt_core::ops::Op;
use opt_core::pass::{TrainMode, enforce_masks};
use opt_core::{DType, Error, ErrorKind, Graph, GraphBuilder, Result, Shape, TensorType, ValueId};

use crate::accumulate::Accumulation;
use crate::loss_scale::{LossScale, Scaling, all_finite, guard};
use crate::optimizer::{Optimizer, STEP, Slots};
use crate::{Loss, ema, loss};

/// The input that carries the learning rate.
pub const LR: &str = "lr";

/// The inputs and outputs of the model inside a training graph.
#[derive(Debug, Clone)]
pub struct ModelIo {
    /// The model's inputs.
    pub inputs: Vec<ValueId>,
    /// The model's outputs.
    pub outputs: Vec<ValueId>,
}

/// What training minimises: a loss against targets, or against a teacher.
pub trait Objective: std::fmt::Debug + Send + Sync {
    /// The types of the targets that each example carries after the model's inputs.
    ///
    /// # Errors
    /// If the model's outputs do not suit the objective.
    fn targets(&self, b: &GraphBuilder, model: &ModelIo) -> Result<Vec<TensorType>>;

    /// Whether the only target is a distribution over classes, so that a class index can stand for
    /// it; at first not.
    fn takes_probabilities(&self) -> bool {
        false
    }

    /// Adds the loss, a value of rank 0.
    ///
    /// # Errors
    /// If the types do not fit.
    fn build(&self, b: &mut GraphBuilder, model: &ModelIo, targets: &[ValueId]) -> Result<ValueId>;
}

/// A loss between the model's first output and one target.
#[derive(Debug, Clone)]
pub struct Supervised<L>(
    /// The loss.
    pub L,
);

impl<L: Loss> Objective for Supervised<L> {
    fn targets(&self, b: &GraphBuilder, model: &ModelIo) -> Result<Vec<TensorType>> {
        let output = first_output(model)?;
        Ok(vec![self.0.target_type(b.type_of(output))?])
    }

    fn takes_probabilities(&self) -> bool {
        self.0.takes_probabilities()
    }

    fn build(&self, b: &mut GraphBuilder, model: &ModelIo, targets: &[ValueId]) -> Result<ValueId> {
        self.0.build(b, first_output(model)?, targets[0])
    }
}

impl Objective for loss::CrossEntropy {
    fn targets(&self, b: &GraphBuilder, model: &ModelIo) -> Result<Vec<TensorType>> {
        Supervised(*self).targets(b, model)
    }

    fn build(&self, b: &mut GraphBuilder, model: &ModelIo, targets: &[ValueId]) -> Result<ValueId> {
        Supervised(*self).build(b, model, targets)
    }
}

fn first_output(model: &ModelIo) -> Result<ValueId> {
    model
        .outputs
        .first()
        .copied()
        .ok_or_else(|| Error::invalid("the model has no output"))
}

/// How gradients are bounded before the update.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Clip {
    /// All gradients together to a Euclidean norm (PyTorch's `clip_grad_norm_`).
    Norm(f64),
    /// Each entry to `[-value, value]`.
    Value(f64),
}

/// What a training step has beside its objective and optimizer.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct StepOptions {
    /// Factor of the sum of the weights' absolute values, added to the loss; weights are
    /// parameters of rank 2 at least.
    pub l1: f64,
    /// Factor of the sum of the weights' squares, added to the loss.
    pub l2: f64,
    /// Bound of the gradients.
    pub clip: Option<Clip>,
    /// Scaling of the loss, for a model that runs in `f16`.
    pub loss_scale: Option<LossScale>,
    /// Whether gradients are summed over several runs before parameters change: the step then has
    /// the inputs [`WEIGHT`](crate::accumulate::WEIGHT) (`f32`) and
    /// [`UPDATE`](crate::accumulate::UPDATE) (`bool`) after `lr`.
    pub accumulate: bool,
    /// Decay of the parameters' moving averages, in `[0, 1)`; they are the variables
    /// `ema.<parameter>`.
    pub ema: Option<f64>,
    /// Parameters whose names contain one of these are not trained; one that matches nothing is
    /// an error.
    pub frozen: Vec<String>,
}

/// Builds the graph of a training step from a model in either mode.
///
/// Inputs: those of the model, then `target`, `target_1`, .. as the objective has them, then the
/// scalar `lr`. Outputs: `loss`, then those of the model. Every parameter that the loss depends
/// on is assigned its new value; pruning masks hold. With a [`LossScale`] a step whose gradients
/// are not finite assigns no parameter; with [`StepOptions::accumulate`] no step does that is not
/// told to.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] if an option is out of its range;
/// [`ErrorKind::NoEffect`] if there is nothing to train or a frozen pattern matches nothing;
/// [`ErrorKind::NoGradient`] at the first op without one.
pub fn training_graph(
    model: &Graph,
    objective: &dyn Objective,
    optimizer: &dyn Optimizer,
    options: &StepOptions,
) -> Result<Graph> {
    let (model, _) = TrainMode::switch(model.clone())?;
    let outputs = model.named_outputs().to_vec();
    let assigned: HashSet<ValueId> = model
        .nodes()
        .filter(|(_, n)| matches!(n.op(), Op::Assign(_)))
        .map(|(_, n)| n.inputs()[0])
        .collect();
    let mut b = GraphBuilder::extend(model);
    let io = ModelIo {
        inputs: b.graph().inputs().to_vec(),
        outputs: outputs.iter().map(|(_, v)| *v).collect(),
    };
    b.clear_outputs();
    let mut loss = objective_nodes(&mut b, objective, &io)?;
    let parameters = trained(b.graph(), loss, &assigned, &options.frozen)?;
    optimizer.check(b.graph(), &parameters)?;
    loss = regularized(&mut b, loss, &parameters, options)?;
    let lr = b.input(LR, TensorType::new(DType::F32, Shape::default()))?;
    let scaling = options.loss_scale.map(|s| Scaling::new(&mut b, s));
    let scaling = scaling.transpose()?;
    let scaled = match &scaling {
        Some(scaling) => scaling.scaled(&mut b, loss)?,
        None => loss,
    };
    let gradients = grad(&mut b, scaled, &parameters)?;
    let mut grads = parameters
        .iter()
        .map(|&p| gradients.of(p))
        .collect::<Result<Vec<_>>>()?;
    let mut finite = match &scaling {
        Some(scaling) => Some(scaling.unscale(&mut b, &mut grads)?),
        None => None,
    };
    let accumulation = options.accumulate.then(|| Accumulation::new(&mut b));
    let accumulation = accumulation.transpose()?;
    if let Some(accumulation) = &accumulation {
        accumulation.sum(&mut b, &parameters, &mut grads)?;
        if finite.is_some() {
            finite = Some(all_finite(&mut b, &grads)?);
        }
    }
    mask_gradients(&mut b, &parameters, &mut grads)?;
    clip(&mut b, &mut grads, options.clip)?;
    let before = b.node_count();
    let mut counter = None;
    for (&param, &gradient) in parameters.iter().zip(&grads) {
        let dtype = b.type_of(param).dtype;
        let rate = b.cast(lr, dtype)?;
        let mut slots = Slots::new(&mut b, param)?;
        let new = optimizer.update(&mut b, param, gradient, rate, &mut slots)?;
        b.assign(param, new)?;
        if let Some(decay) = options.ema {
            ema::average(&mut b, param, new, decay, &mut slots)?;
        }
        counter = Some(b.graph().find(STEP)?);
    }
    if let Some(counter) = counter {
        let next = b.add_scalar(counter, 1.0)?;
        b.assign(counter, next)?;
    }
    let updates = b.nodes_since(before);
    let before = b.node_count();
    if let (Some(scaling), Some(finite)) = (&scaling, finite) {
        scaling.update(&mut b, finite)?;
    }
    let scale_updates = b.nodes_since(before);
    b.output("loss", loss)?;
    for (name, v) in outputs {
        let name = if name == "loss" {
            "model.loss".to_string()
        } else {
            name
        };
        b.output(&name, v)?;
    }
    let mut graph = b.finish()?;
    ema::copy_masks(&mut graph);
    if let Some(finite) = finite {
        graph = guard(graph, &updates, finite)?;
    }
    if let Some(accumulation) = &accumulation {
        graph = guard(graph, &updates, accumulation.update)?;
        graph = guard(graph, &scale_updates, accumulation.update)?;
    }
    Ok(enforce_masks(graph)?.0)
}

/// Adds the inputs of the targets and the objective's loss.
pub(crate) fn objective_nodes(
    b: &mut GraphBuilder,
    objective: &dyn Objective,
    io: &ModelIo,
) -> Result<ValueId> {
    let mut targets = Vec::new();
    for (i, ty) in objective.targets(b, io)?.into_iter().enumerate() {
        let name = match i {
            0 => "target".to_string(),
            i => format!("target_{i}"),
        };
        targets.push(b.input(&name, ty)?);
    }
    objective.build(b, io, &targets)
}

/// The parameters to train: floating-point variables that the loss depends on, no state that the
/// model assigns itself, nothing frozen.
fn trained(
    graph: &Graph,
    loss: ValueId,
    assigned: &HashSet<ValueId>,
    frozen: &[String],
) -> Result<Vec<ValueId>> {
    let mut needed: HashSet<ValueId> = [loss].into();
    for (_, node) in graph.nodes().rev() {
        let stops = matches!(node.op(), Op::StopGradient(_) | Op::Assign(_));
        if stops || !node.outputs().iter().any(|o| needed.contains(o)) {
            continue;
        }
        match node.op() {
            // Statistics, scales and counters that no gradient reaches.
            Op::BatchNorm(_) => needed.extend(&node.inputs()[..3]),
            _ => needed.extend(node.inputs()),
        }
    }
    for pattern in frozen {
        if !graph
            .variables()
            .any(|(_, v, _)| v.name().contains(pattern))
        {
            return Err(Error::new(
                ErrorKind::NoEffect,
                format!("the frozen pattern `{pattern}` matches no variable"),
            ));
        }
    }
    let found: Vec<ValueId> = graph
        .variables()
        .filter(|(id, v, _)| {
            v.ty().dtype.is_float()
                && needed.contains(id)
                && !assigned.contains(id)
                && !frozen.iter().any(|p| v.name().contains(p.as_str()))
        })
        .map(|(id, _, _)| id)
        .collect();
    if found.is_empty() {
        return Err(Error::new(
            ErrorKind::NoEffect,
            "the loss depends on no variable that may be trained",
        ));
    }
    Ok(found)
}

fn regularized(
    b: &mut GraphBuilder,
    loss: ValueId,
    parameters: &[ValueId],
    options: &StepOptions,
) -> Result<ValueId> {
    let mut loss = loss;
    let dtype = b.type_of(loss).dtype;
    for (factor, square) in [(options.l1, false), (options.l2, true)] {
        if !factor.is_finite() || factor < 0.0 {
            return Err(Error::invalid(format!(
                "a regularization factor is {factor}, not a number of 0 or more"
            )));
        }
        if factor == 0.0 {
            continue;
        }
        for &p in parameters
            .iter()
            .filter(|&&p| b.type_of(p).rank() >= 2)
            .collect::<Vec<_>>()
        {
            let size = if square { b.mul(p, p)? } else { b.abs(p)? };
            let total = b.sum_all(size)?;
            let total = b.cast(total, dtype)?;
            let term = b.mul_scalar(total, factor)?;
            loss = b.add(loss, term)?;
        }
    }
    Ok(loss)
}

/// Multiplies the gradients of masked parameters by their masks: what is pruned adds neither to
/// the norm that clipping bounds nor to an optimizer's slots.
fn mask_gradients(
    b: &mut GraphBuilder,
    parameters: &[ValueId],
    grads: &mut [ValueId],
) -> Result<()> {
    for (&param, gradient) in parameters.iter().zip(grads) {
        let Some(mask) = b.graph().facts().mask(param).cloned() else {
            continue;
        };
        let dtype = b.type_of(*gradient).dtype;
        let keep = b.named_constant("mask", mask.cast(dtype));
        *gradient = b.mul(*gradient, keep)?;
    }
    Ok(())
}

fn clip(b: &mut GraphBuilder, grads: &mut [ValueId], clip: Option<Clip>) -> Result<()> {
    let positive = |v: f64| match v > 0.0 && v.is_finite() {
        true => Ok(()),
        false => Err(Error::invalid(format!("a gradient bound of {v}"))),
    };
    match clip {
        None => Ok(()),
        Some(Clip::Value(limit)) => {
            positive(limit)?;
            for g in grads {
                *g = b.clip(*g, -limit, limit)?;
            }
            Ok(())
        }
        Some(Clip::Norm(limit)) => {
            positive(limit)?;
            let mut total = None;
            for &g in grads.iter() {
                let square = b.mul(g, g)?;
                let sum = b.sum_all(square)?;
                let sum = b.cast(sum, DType::F32)?;
                total = Some(match total {
                    Some(t) => b.add(t, sum)?,
                    None => sum,
                });
            }
            let Some(total) = total else { return Ok(()) };
            let norm = b.sqrt(total)?;
            // PyTorch adds 1e-6 so that a norm of zero divides.
            let norm = b.add_scalar(norm, 1e-6)?;
            let bound = b.scalar_like(norm, limit)?;
            let ratio = b.div(bound, norm)?;
            let one = b.scalar_like(ratio, 1.0)?;
            let ratio = b.minimum(ratio, one)?;
            for g in grads {
                let dtype = b.type_of(*g).dtype;
                let ratio = b.cast(ratio, dtype)?;
                *g = b.mul(*g, ratio)?;
            }
            Ok(())
        }
    }
}
