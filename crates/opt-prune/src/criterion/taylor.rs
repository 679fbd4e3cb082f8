//! What the loss would change by, to first order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use opt_core::autodiff::grad;
use opt_core::backend::{CompileSpec, Session, bindings_of};
use opt_core::graph::Bindings;
use opt_core::pass::{EvalMode, Needs};
use opt_core::{
    Context, DType, Error, ErrorKind, Graph, GraphBuilder, Result, ResultExt, Tensor, ValueId,
};
use opt_train::{ModelIo, Objective};

use super::{Criterion, Structures, each_slice};

/// First-order Taylor expansion of the loss (Molchanov et al. 2019, "Importance Estimation for
/// Neural Network Pruning"), from gradients over the context's training examples.
///
/// With g the gradient of a batch's loss: a single weight scores the mean over the batches of
/// `|g w|`. A channel scores the mean over the batches of `(sum g w)^2`, the sum over the filter
/// that makes the channel (equation 9); where residual sums couple several filters, or a head has
/// several projections, their squares add up. Layers compare without normalization.
///
/// Gradients are computed in evaluation mode: batch normalization by its running statistics, no
/// dropout. Weights that the loss does not depend on score 0.
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::{Context, DType, Pass, Tensor};
/// use opt_data::TensorDataset;
/// use opt_ndarray::NdarrayBackend;
/// use opt_prune::{ChannelPrune, Taylor};
/// use opt_train::CrossEntropy;
///
/// # fn main() -> opt_core::Result<()> {
/// let data = TensorDataset::new(vec![
///     Tensor::full(DType::F32, [6, 8], 0.5)?,
///     Tensor::new([6], [0i64, 1, 2, 0, 1, 2])?,
/// ])?;
/// let backend = NdarrayBackend::new();
/// let mut cx = Context::new().with_backend(&backend).with_training(&data);
/// let prune = ChannelPrune::new(0.5).criterion(Taylor::new(CrossEntropy).batch_size(3));
/// let (small, _) = prune.apply(zoo::lenet_300_100(8, 3, 0)?, &mut cx)?;
/// assert_eq!(small.type_of(small.find("fc1.weight")?).to_string(), "f32[150,8]");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Taylor {
    objective: Arc<dyn Objective>,
    batch_size: usize,
    batches: Option<usize>,
}

impl Taylor {
    /// By the gradients of an objective over all training examples, in batches of 32.
    pub fn new(objective: impl Objective + 'static) -> Taylor {
        Taylor {
            objective: Arc::new(objective),
            batch_size: 32,
            batches: None,
        }
    }

    /// The number of examples a batch. Examples are taken in the data set's order; a last batch
    /// that is smaller counts only where it is the only one.
    #[must_use]
    pub fn batch_size(mut self, size: usize) -> Taylor {
        self.batch_size = size;
        self
    }

    /// Stops after a number of batches.
    #[must_use]
    pub fn batches(mut self, batches: usize) -> Taylor {
        self.batches = Some(batches);
        self
    }

    /// Calls a function with `g w` of the weights for each batch; returns the number of batches.
    fn each_batch(
        &self,
        graph: &Graph,
        values: &[ValueId],
        cx: &Context<'_>,
        mut f: impl FnMut(&BTreeMap<ValueId, Vec<f64>>),
    ) -> Result<usize> {
        let (data, backend) = (cx.training()?, cx.backend()?);
        if self.batch_size == 0 || self.batches == Some(0) {
            return Err(Error::invalid("a Taylor criterion without examples"));
        }
        if data.is_empty() {
            return Err(Error::new(ErrorKind::Data, "no training examples"));
        }
        let (graph, values) = self.gradient_graph(graph, values)?;
        let size = self.batch_size.min(data.len());
        let count = (data.len() / size).min(self.batches.unwrap_or(usize::MAX));
        let mut open: Option<(Bindings, Box<dyn Session>)> = None;
        for batch in 0..count {
            let place = || format!("batch {batch}");
            let indices: Vec<usize> = (batch * size..(batch + 1) * size).collect();
            let inputs = data.batch(&indices)?;
            let bindings = bindings_of(&graph, &inputs).at(place)?;
            // Batches may differ in a sequence's length.
            let session = match &mut open {
                Some((bound, session)) if *bound == bindings => session,
                _ => {
                    let mut spec = CompileSpec::new();
                    spec.bindings = bindings.clone();
                    let session = backend.compile(&graph, &spec)?.session()?;
                    &mut open.insert((bindings, session)).1
                }
            };
            let products = session.run(&inputs).at(place)?;
            let products: BTreeMap<ValueId, Vec<f64>> = values
                .iter()
                .copied()
                .zip(products.iter().skip(1).map(Tensor::to_f64s))
                .collect();
            for (&id, product) in &products {
                if product.iter().any(|p| !p.is_finite()) {
                    let name = graph.value(id).name();
                    let message = "the gradient is not finite; does the parameter hold NaN?";
                    return Err(Error::new(ErrorKind::Data, message).at(name).at(place()));
                }
            }
            f(&products);
        }
        Ok(count)
    }

    /// A graph whose outputs are the loss and `g w` of those weights that the loss depends on.
    fn gradient_graph(&self, graph: &Graph, values: &[ValueId]) -> Result<(Graph, Vec<ValueId>)> {
        let (graph, _) = EvalMode::switch(graph.clone())?;
        let io = ModelIo {
            inputs: graph.inputs().to_vec(),
            outputs: graph.outputs().collect(),
        };
        let mut b = GraphBuilder::extend(graph);
        b.clear_outputs();
        let mut targets = Vec::new();
        for (i, ty) in self.objective.targets(&b, &io)?.into_iter().enumerate() {
            let name = match i {
                0 => "target".to_string(),
                i => format!("target_{i}"),
            };
            targets.push(b.input(&name, ty)?);
        }
        let loss = self.objective.build(&mut b, &io, &targets)?;
        let mut needed: BTreeSet<ValueId> = [loss].into();
        for (_, node) in b.graph().nodes().rev() {
            let stops = matches!(node.op(), opt_core::ops::Op::StopGradient(_));
            if !stops && node.outputs().iter().any(|o| needed.contains(o)) {
                needed.extend(node.inputs());
            }
        }
        let values: Vec<ValueId> = values
            .iter()
            .copied()
            .filter(|v| needed.contains(v))
            .collect();
        if values.is_empty() {
            return Err(Error::new(
                ErrorKind::NoGradient,
                "the loss depends on none of the weights",
            ));
        }
        let gradients = grad(&mut b, loss, &values)?;
        // The loss checks the targets, which gradients alone do not.
        b.output("loss", loss)?;
        for (i, &v) in values.iter().enumerate() {
            // A product of 16-bit floats may be too small for them.
            let wide = match b.type_of(v).dtype {
                DType::F16 | DType::BF16 => DType::F32,
                dtype => dtype,
            };
            let (g, w) = (b.cast(gradients.of(v)?, wide)?, b.cast(v, wide)?);
            let product = b.mul(g, w)?;
            b.output(&format!("product_{i}"), product)?;
        }
        let outputs = b.graph().named_outputs().to_vec();
        // Without assignments of a training graph.
        Ok((b.finish()?.extract(&outputs, false)?, values))
    }
}

impl Criterion for Taylor {
    fn needs(&self) -> Needs {
        Needs::TRAINING
    }

    fn score_all(
        &self,
        graph: &Graph,
        values: &[ValueId],
        cx: &mut Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut scores: BTreeMap<ValueId, Vec<f64>> = values
            .iter()
            .map(|&v| (v, vec![0.0; graph.value(v).tensor().map_or(0, Tensor::len)]))
            .collect();
        let count = self.each_batch(graph, values, cx, |products| {
            for (id, product) in products {
                let scores = scores.get_mut(id).expect("asked for");
                for (s, p) in scores.iter_mut().zip(product) {
                    *s += p.abs();
                }
            }
        })?;
        let mean = |v| -> Vec<f64> { scores[v].iter().map(|s| s / count as f64).collect() };
        Ok(values.iter().map(mean).collect())
    }

    fn score_structures(
        &self,
        graph: &Graph,
        layers: &[Structures],
        weights: &[ValueId],
        cx: &mut Context<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut scores: Vec<Vec<f64>> = layers.iter().map(|l| vec![0.0; l.groups.len()]).collect();
        let count = self.each_batch(graph, weights, cx, |products| {
            for (layer, scores) in layers.iter().zip(&mut scores) {
                for (group, score) in layer.groups.iter().zip(scores) {
                    for place in &layer.weights {
                        let Some(product) = products.get(&place.0) else {
                            continue;
                        };
                        let shape = graph.value(place.0).tensor().expect("a variable").shape();
                        let mut sum = 0.0;
                        each_slice(shape, place.1, &group.entries[place], |range| {
                            sum += product[range].iter().sum::<f64>();
                        });
                        *score += sum * sum;
                    }
                }
            }
        })?;
        for score in scores.iter_mut().flatten() {
            *score /= count as f64;
        }
        Ok(scores)
    }
}
