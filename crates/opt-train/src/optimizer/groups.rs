//! Optimizers for groups of parameters.

use std::sync::Arc;

use opt_core::{Error, ErrorKind, Graph, GraphBuilder, Result, ValueId};

use super::{Optimizer, Slots, in_range};

/// Different optimizers, or learning rates, for different parameters (PyTorch's parameter groups).
///
/// ```
/// use opt_train::{AdamW, Groups, Sgd};
///
/// // The backbone of a fine-tuned model moves ten times slower than its head, and its biases
/// // do not decay.
/// let slow = AdamW::default();
/// let mut plain = AdamW::default();
/// plain.weight_decay = 0.0;
/// let optimizer = Groups::new(AdamW::default())
///     .group(".bias", 0.1, plain)
///     .group("backbone.", 0.1, slow);
/// # let _ = optimizer;
/// ```
#[derive(Debug, Clone)]
pub struct Groups {
    rest: Arc<dyn Optimizer>,
    groups: Vec<Group>,
}

#[derive(Debug, Clone)]
struct Group {
    pattern: String,
    factor: f64,
    optimizer: Arc<dyn Optimizer>,
}

impl Groups {
    /// The optimizer of all parameters that no group has.
    pub fn new(rest: impl Optimizer + 'static) -> Groups {
        Groups {
            rest: Arc::new(rest),
            groups: Vec::new(),
        }
    }

    /// Gives the parameters whose names contain `pattern` to another optimizer, and multiplies
    /// their learning rate. The first group that matches has a parameter.
    #[must_use]
    pub fn group(
        mut self,
        pattern: impl Into<String>,
        lr_factor: f64,
        optimizer: impl Optimizer + 'static,
    ) -> Groups {
        self.groups.push(Group {
            pattern: pattern.into(),
            factor: lr_factor,
            optimizer: Arc::new(optimizer),
        });
        self
    }
}

impl Optimizer for Groups {
    fn update(
        &self,
        b: &mut GraphBuilder,
        param: ValueId,
        grad: ValueId,
        lr: ValueId,
        slots: &mut Slots,
    ) -> Result<ValueId> {
        let name = b.graph().value(param).name();
        let group = self.groups.iter().find(|g| name.contains(&g.pattern));
        let Some(group) = group else {
            return self.rest.update(b, param, grad, lr, slots);
        };
        in_range(
            "learning-rate factor of a group",
            group.factor,
            0.0,
            f64::INFINITY,
        )?;
        let lr = b.mul_scalar(lr, group.factor)?;
        group.optimizer.update(b, param, grad, lr, slots)
    }

    fn check(&self, graph: &Graph, parameters: &[ValueId]) -> Result<()> {
        for Group { pattern, .. } in &self.groups {
            let name = |&p: &ValueId| graph.value(p).name();
            if !parameters.iter().any(|p| name(p).contains(pattern)) {
                let names: Vec<&str> = parameters.iter().map(name).collect();
                return Err(Error::new(
                    ErrorKind::NoEffect,
                    format!("the group `{pattern}` matches none of the parameters {names:?}"),
                ));
            }
        }
        for optimizer in self.groups.iter().map(|g| &g.optimizer) {
            optimizer.check(graph, parameters)?;
        }
        self.rest.check(graph, parameters)
    }
}
