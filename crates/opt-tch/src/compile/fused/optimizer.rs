//! Optimizer steps: the update of each parameter is recognised by its formula, and all that have
//! the same settings become one multi-tensor call that writes the variables in place.

use std::collections::{BTreeMap, HashMap, HashSet};

use opt_core::ops::{BinaryOp, Cast, Unary, UnaryOp};
use opt_core::{DType, Op, Result, Shape, TensorType};

use super::Fused;
use crate::compile::ir::{Ir, Kind, Step, Value};

/// Adam with or without decoupled weight decay. Inputs of the step: the learning rate, the step
/// count, whether to leave the step out where that is asked, then the parameters, gradients, first
/// and second moments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Adam {
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    pub(crate) decoupled: bool,
    /// Whether an input says to leave the step out.
    pub(crate) guarded: bool,
    /// Number of parameters.
    pub(crate) count: usize,
}

/// SGD. Inputs of the step: the learning rate, whether to leave the step out where that is asked,
/// then the parameters, gradients and, with momentum, the buffers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sgd {
    pub(crate) momentum: f64,
    pub(crate) nesterov: bool,
    pub(crate) weight_decay: f64,
    /// Whether an input says to leave the step out.
    pub(crate) guarded: bool,
    /// Number of parameters.
    pub(crate) count: usize,
}

/// The update of one parameter.
struct Update {
    kind: Fused,
    lr: Value,
    /// The step's number, for Adam.
    t: Option<Value>,
    /// Parameter, gradient and slots.
    tensors: Vec<Value>,
    /// What the new value is multiplied by.
    mask: Option<Value>,
    /// Without which nothing changes: the gradients were finite.
    condition: Option<Value>,
}

pub(super) fn fuse(ir: &mut Ir) -> Result<()> {
    let mut groups: BTreeMap<String, Vec<Update>> = BTreeMap::new();
    {
        let formulas = Formulas::new(ir);
        for &(param, value) in &ir.assignments {
            let Some(update) = formulas.update(param, value) else {
                continue;
            };
            let dtype = ir.types[param].dtype;
            let (lr, t, condition) = (update.lr, update.t, update.condition);
            let key = format!("{dtype} {:?} {lr} {t:?} {condition:?}", update.kind);
            groups.entry(key).or_default().push(update);
        }
    }
    let mut counts: HashMap<Value, Value> = HashMap::new();
    for updates in groups.into_values() {
        let Some(first) = updates.first() else {
            continue;
        };
        let mut inputs = vec![first.lr];
        if let Some(t) = first.t {
            inputs.push(*counts.entry(t).or_insert_with(|| as_f32(ir, t)));
        }
        let guarded = first.condition.is_some();
        if let Some(condition) = first.condition {
            inputs.push(negated(ir, condition));
        }
        let slots = first.tensors.len();
        for slot in 0..slots {
            inputs.extend(updates.iter().map(|u| u.tensors[slot]));
        }
        let count = updates.len();
        let kind = match &first.kind {
            Fused::Adam(adam) => Fused::Adam(Adam {
                count,
                guarded,
                ..adam.clone()
            }),
            Fused::Sgd(sgd) => Fused::Sgd(Sgd {
                count,
                guarded,
                ..sgd.clone()
            }),
            other => other.clone(),
        };
        // All but the gradient are variables, which the kernel writes.
        let written = |u: &Update| -> Vec<Value> {
            let tensors = u.tensors.iter().enumerate();
            tensors.filter(|(i, _)| *i != 1).map(|(_, &v)| v).collect()
        };
        let written: HashSet<Value> = updates.iter().flat_map(written).collect();
        let mut nodes = Vec::new();
        for step in &ir.steps {
            if matches!(step.op(), Some(Op::Assign(_))) && written.contains(&step.inputs[0]) {
                nodes.extend(step.nodes.clone());
            }
        }
        ir.assignments.retain(|(v, _)| !written.contains(v));
        ir.steps.retain(|step| {
            !(matches!(step.op(), Some(Op::Assign(_))) && written.contains(&step.inputs[0]))
        });
        ir.steps.push(Step {
            kind: Kind::Fused(kind),
            inputs,
            outputs: Vec::new(),
            nodes: nodes.clone(),
        });
        for update in &updates {
            if let Some(mask) = update.mask {
                ir.steps.push(Step {
                    kind: Kind::Fused(Fused::Mask),
                    inputs: vec![update.tensors[0], mask],
                    outputs: Vec::new(),
                    nodes: nodes.clone(),
                });
            }
        }
    }
    Ok(())
}

/// The count of steps as libtorch wants it.
fn as_f32(ir: &mut Ir, t: Value) -> Value {
    if ir.types[t].dtype == DType::F32 {
        return t;
    }
    let v = ir.value(TensorType::new(DType::F32, Shape::default()));
    ir.steps.push(Step {
        kind: Kind::Op(Op::from(Cast { dtype: DType::F32 })),
        inputs: vec![t],
        outputs: vec![v],
        nodes: vec!["optimizer.step".into()],
    });
    v
}

/// 1 in f32 where a condition does not hold, else 0.
fn negated(ir: &mut Ir, condition: Value) -> Value {
    let ty = ir.types[condition].clone();
    let number = ir.value(ty.with_dtype(DType::F32));
    let not = ir.value(ty);
    let op = Op::from(Unary { op: UnaryOp::Not });
    let cast = Op::from(Cast { dtype: DType::F32 });
    for (op, input, output) in [(op, condition, not), (cast, not, number)] {
        ir.steps.push(Step {
            kind: Kind::Op(op),
            inputs: vec![input],
            outputs: vec![output],
            nodes: vec!["loss_scale".into()],
        });
    }
    number
}

/// Reads formulas off a graph.
struct Formulas<'a> {
    ir: &'a Ir,
    producers: HashMap<Value, usize>,
    consumers: HashMap<Value, Vec<(usize, usize)>>,
    /// What each variable is assigned.
    assigned: HashMap<Value, Value>,
}

impl<'a> Formulas<'a> {
    fn new(ir: &'a Ir) -> Formulas<'a> {
        Formulas {
            ir,
            producers: ir.producers(),
            consumers: ir.consumers(),
            assigned: ir.assignments.iter().copied().collect(),
        }
    }

    fn step(&self, v: Value) -> Option<&'a Step> {
        self.producers.get(&v).map(|&i| &self.ir.steps[i])
    }

    fn binary(&self, v: Value, op: BinaryOp) -> Option<(Value, Value)> {
        let step = self.step(v)?;
        match step.op()? {
            Op::Binary(b) if b.op == op => Some((step.inputs[0], step.inputs[1])),
            _ => None,
        }
    }

    fn unary(&self, v: Value, op: UnaryOp) -> Option<Value> {
        let step = self.step(v)?;
        match step.op()? {
            Op::Unary(u) if u.op == op => Some(step.inputs[0]),
            _ => None,
        }
    }

    /// The value before a cast, or itself.
    fn uncast(&self, v: Value) -> Value {
        match self.step(v) {
            Some(step) if matches!(step.op(), Some(Op::Cast(_))) => step.inputs[0],
            _ => v,
        }
    }

    fn scalar(&self, v: Value) -> Option<f64> {
        self.ir.constants.get(&v)?.item().ok()
    }

    fn is_scalar(&self, v: Value) -> bool {
        self.ir.types[v].rank() == 0
    }

    fn is_variable(&self, v: Value) -> bool {
        self.ir.variables.iter().any(|x| x.value == v)
    }

    /// `x op c`
    fn by_constant(&self, v: Value, op: BinaryOp) -> Option<(Value, f64)> {
        let (x, c) = self.binary(v, op)?;
        Some((x, self.scalar(c)?))
    }

    /// `a x + c y`
    fn blend(&self, v: Value) -> Option<(f64, Value, f64, Value)> {
        let (x, y) = self.binary(v, BinaryOp::Add)?;
        let (x, a) = self.by_constant(x, BinaryOp::Mul)?;
        let (y, c) = self.by_constant(y, BinaryOp::Mul)?;
        Some((a, x, c, y))
    }

    /// The gradient and the weight decay that is added to it.
    fn decayed(&self, v: Value, param: Value) -> (Value, f64) {
        let found = self.binary(v, BinaryOp::Add).and_then(|(g, term)| {
            let (x, decay) = self.by_constant(term, BinaryOp::Mul)?;
            (x == param).then_some((g, decay))
        });
        found.unwrap_or((v, 0.0))
    }

    /// Whether nothing but steps of the update reads a new value.
    fn only_read_by(&self, v: Value, allowed: &[Value]) -> bool {
        let consumers = self.consumers.get(&v).map_or(&[][..], Vec::as_slice);
        !self.ir.outputs.contains(&v)
            && consumers.iter().all(|&(i, _)| {
                let step = &self.ir.steps[i];
                matches!(step.op(), Some(Op::Assign(_)))
                    || step.outputs.iter().all(|o| allowed.contains(o))
            })
    }

    /// Whether what an assignment gives back is read by nothing.
    fn silent(&self, param: Value) -> bool {
        self.ir.steps.iter().all(|step| {
            !matches!(step.op(), Some(Op::Assign(_)))
                || step.inputs[0] != param
                || step.outputs.iter().all(|o| {
                    !self.ir.outputs.contains(o)
                        && !self.ir.assignments.iter().any(|(_, v)| v == o)
                        && self.consumers.get(o).is_none_or(Vec::is_empty)
                })
        })
    }

    /// The choice between a new value and a variable's old one, as condition and new value.
    fn guarded(&self, v: Value, variable: Value) -> Option<(Value, Value)> {
        let step = self.step(v)?;
        let guard = matches!(step.op(), Some(Op::Where(_)))
            && step.inputs[2] == variable
            && self.is_scalar(step.inputs[0]);
        guard.then(|| (step.inputs[0], step.inputs[1]))
    }

    /// What a slot is assigned, under a condition or not.
    fn is_assigned(&self, slot: Value, new: Value, condition: Option<Value>) -> bool {
        let Some(&assigned) = self.assigned.get(&slot) else {
            return false;
        };
        match condition {
            None => assigned == new,
            Some(condition) => {
                self.guarded(assigned, slot) == Some((condition, new))
                    && self.only_read_by(assigned, &[])
            }
        }
    }

    fn update(&self, param: Value, value: Value) -> Option<Update> {
        if !self.ir.types[param].dtype.is_float() || !self.is_variable(param) {
            return None;
        }
        // The new value may be chosen and masked, in either order.
        let (mut new, mut mask, mut condition) = (value, None, None);
        let mut chain = vec![value];
        for _ in 0..2 {
            if let Some((holds, inner)) = self.guarded(new, param).filter(|_| condition.is_none()) {
                (condition, new) = (Some(holds), inner);
            } else if let Some((inner, factor)) = self.masked(new, param).filter(|_| mask.is_none())
            {
                (mask, new) = (Some(factor), inner);
            } else {
                break;
            }
            chain.push(new);
        }
        let mut update = self
            .adam(param, new, condition)
            .or_else(|| self.sgd(param, new, condition))?;
        (update.mask, update.condition) = (mask, condition);
        let ty = &self.ir.types[param];
        let alike = update.tensors.iter().all(|&v| self.ir.types[v] == *ty);
        let whole = chain.iter().all(|&v| self.only_read_by(v, &chain));
        let variables = update.tensors.iter().enumerate().filter(|(i, _)| *i != 1);
        let quiet = variables.into_iter().all(|(_, &v)| self.silent(v));
        (alike && whole && quiet).then_some(update)
    }

    /// A new value times a constant mask.
    fn masked(&self, v: Value, param: Value) -> Option<(Value, Value)> {
        self.binary(v, BinaryOp::Mul).filter(|(_, mask)| {
            self.ir.constants.contains_key(mask) && self.ir.types[*mask] == self.ir.types[param]
        })
    }

    fn adam(&self, param: Value, new: Value, condition: Option<Value>) -> Option<Update> {
        let (from, d) = self.binary(new, BinaryOp::Sub)?;
        let (quotient, rate) = self.binary(d, BinaryOp::Mul)?;
        let (m, root) = self.binary(quotient, BinaryOp::Div)?;
        let (lr, first) = self.binary(rate, BinaryOp::Mul)?;
        let (scaled, eps) = self.by_constant(root, BinaryOp::Add)?;
        let (deviation, second) = self.binary(scaled, BinaryOp::Mul)?;
        let v = self.unary(deviation, UnaryOp::Sqrt)?;
        let (beta1, old_m, rest1, g) = self.blend(m)?;
        let (beta2, old_v, rest2, square) = self.blend(v)?;
        let (s1, s2) = self.binary(square, BinaryOp::Mul)?;
        let (t, power1) = self.correction(first, false)?;
        let (t2, power2) = self.correction(second, true)?;
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6;
        let right = s1 == g
            && s2 == g
            && t == t2
            && near(rest1, 1.0 - beta1)
            && near(rest2, 1.0 - beta2)
            && near(power1, beta1)
            && near(power2, beta2)
            && self.is_assigned(old_m, m, condition)
            && self.is_assigned(old_v, v, condition)
            && self.is_scalar(lr)
            && self.only_read_by(m, &[quotient, self.assigned[&old_m]])
            && self.only_read_by(v, &[deviation, self.assigned[&old_v]]);
        if !right {
            return None;
        }
        let (grad, decay) = self.decayed(g, param);
        let decoupled = self.shrink(from, param, lr);
        let (weight_decay, decoupled) = match (decay, decoupled) {
            (decay, Some(0.0)) => (decay, false),
            (0.0, Some(shrink)) => (shrink, true),
            _ => return None,
        };
        Some(Update {
            kind: Fused::Adam(Adam {
                // The powers are of f64, the factors of the parameter's dtype.
                beta1: power1,
                beta2: power2,
                eps,
                weight_decay,
                decoupled,
                guarded: false,
                count: 0,
            }),
            lr,
            t: Some(t),
            tensors: vec![param, grad, old_m, old_v],
            mask: None,
            condition: None,
        })
    }

    /// `1 / (1 - beta^t)` or, with `root`, `1 / sqrt(1 - beta^t)`: t and beta.
    fn correction(&self, v: Value, root: bool) -> Option<(Value, f64)> {
        let rest = self.unary(self.uncast(v), UnaryOp::Reciprocal)?;
        let rest = match root {
            true => self.unary(rest, UnaryOp::Sqrt)?,
            false => rest,
        };
        let (minus, one) = self.by_constant(rest, BinaryOp::Add)?;
        let power = self.unary(minus, UnaryOp::Neg)?;
        let (beta, t) = self.binary(power, BinaryOp::Pow)?;
        let beta = self.scalar(beta)?;
        (one == 1.0 && self.is_scalar(t)).then_some((t, beta))
    }

    /// The decoupled decay of `param * (1 - lr * decay)`; 0 for the parameter itself.
    fn shrink(&self, from: Value, param: Value, lr: Value) -> Option<f64> {
        if from == param {
            return Some(0.0);
        }
        let (x, factor) = self.binary(from, BinaryOp::Mul)?;
        let (term, one) = self.by_constant(factor, BinaryOp::Add)?;
        let (rate, decay) = self.by_constant(term, BinaryOp::Mul)?;
        (x == param && rate == lr && one == 1.0 && decay < 0.0).then_some(-decay)
    }

    fn sgd(&self, param: Value, new: Value, condition: Option<Value>) -> Option<Update> {
        let (from, step) = self.binary(new, BinaryOp::Sub)?;
        let (d, lr) = self.binary(step, BinaryOp::Mul)?;
        if from != param || !self.is_scalar(lr) {
            return None;
        }
        let (buffer, gradient, momentum, nesterov) = match self.velocity(d, step, condition) {
            Some((buffer, g, momentum)) => (Some(buffer), g, momentum, false),
            None => match self.nesterov(d, condition) {
                Some((buffer, g, momentum)) => (Some(buffer), g, momentum, true),
                None => (None, d, 0.0, false),
            },
        };
        let (grad, weight_decay) = self.decayed(gradient, param);
        let mut tensors = vec![param, grad];
        tensors.extend(buffer);
        Some(Update {
            kind: Fused::Sgd(Sgd {
                momentum,
                nesterov,
                weight_decay,
                guarded: false,
                count: 0,
            }),
            lr,
            t: None,
            tensors,
            mask: None,
            condition: None,
        })
    }

    /// The buffer, gradient and momentum of a new buffer that one value is made of.
    fn velocity(
        &self,
        v: Value,
        reader: Value,
        condition: Option<Value>,
    ) -> Option<(Value, Value, f64)> {
        let (momentum, buffer, rest, g) = self.blend(v)?;
        let right = rest == 1.0
            && self.is_assigned(buffer, v, condition)
            && self.only_read_by(v, &[reader, self.assigned[&buffer]]);
        right.then_some((buffer, g, momentum))
    }

    /// `g + momentum * velocity`
    fn nesterov(&self, d: Value, condition: Option<Value>) -> Option<(Value, Value, f64)> {
        let (_, ahead) = self.binary(d, BinaryOp::Add)?;
        let (one, g, momentum, velocity) = self.blend(d)?;
        let (buffer, from, own) = self.velocity(velocity, ahead, condition)?;
        (one == 1.0 && from == g && own == momentum).then_some((buffer, g, momentum))
    }
}
