//! Batch normalization in training, joined with what surrounds it in a residual network: the sum
//! with the shortcut and the ReLU that follow, and their gradients before its own.

use std::collections::HashMap;
use std::sync::Arc;

use opt_core::ops::{BinaryOp, Op, UnaryOp};
use opt_core::{DType, Tensor};

use super::fuse::producers;
use super::plan::{Id, Ir, Kind, Lowered, Step};
use crate::kernels::Extras;
use crate::kernels::batch_norm::{Normalize, NormalizeGrad};

/// Joins what can be.
pub(super) fn fuse(ir: &mut Ir) {
    if !ir.steps.iter().any(|step| {
        matches!(
            &step.kind,
            Kind::Op(Op::BatchNorm(_) | Op::BatchNormGrad(_))
        ) && step.inputs.iter().all(|&v| ir.types[v].dtype == DType::F32)
    }) {
        return;
    }
    forward(ir);
    backward(ir);
    ir.remove_dead();
}

/// What reads each memory: the indices of steps, and how often outputs and assignments do.
struct Readers {
    steps: Vec<Vec<usize>>,
    others: Vec<usize>,
}

impl Readers {
    fn new(ir: &Ir) -> Readers {
        let mut readers = Readers {
            steps: vec![Vec::new(); ir.types.len()],
            others: vec![0; ir.types.len()],
        };
        for (i, step) in ir.steps.iter().enumerate() {
            for &v in &step.inputs {
                readers.steps[ir.alias[v]].push(i);
            }
        }
        for &v in ir.outputs.iter().chain(ir.assigns.iter().map(|a| &a.1)) {
            readers.others[ir.alias[v]] += 1;
        }
        readers
    }

    /// The one step that reads a value, if nothing else does.
    fn only(&self, ir: &Ir, v: Id) -> Option<usize> {
        match self.steps[v][..] {
            [step] if ir.alias[v] == v && self.others[v] == 0 => Some(step),
            _ => None,
        }
    }
}

/// Whether a value is there before a step runs.
fn before(ir: &Ir, producers: &HashMap<Id, usize>, v: Id, at: usize) -> bool {
    producers.get(&ir.alias[v]).is_none_or(|&from| from < at)
}

/// A step of a kind of its own in place of another one.
fn lowered(kind: impl Lowered + 'static, inputs: Vec<Id>, outputs: Vec<Id>, of: &Step) -> Step {
    Step {
        kind: Kind::Lowered(Arc::new(kind)),
        inputs,
        outputs,
        epilogue: Vec::new(),
        extras: Extras::default(),
        nodes: of.nodes.clone(),
    }
}

fn forward(ir: &mut Ir) {
    let readers = Readers::new(ir);
    let producers = producers(ir);
    for at in 0..ir.steps.len() {
        let step = &ir.steps[at];
        let Kind::Op(Op::BatchNorm(op)) = &step.kind else {
            continue;
        };
        let single = step.inputs.iter().all(|&v| ir.types[v].dtype == DType::F32);
        if !op.training || !single {
            continue;
        }
        let (op, mut inputs, mut out) = (op.clone(), step.inputs.clone(), step.outputs[0]);
        let mut taken = Vec::new();
        // Where it runs: later than it would if what is added comes later.
        let mut place = at;
        if let Some(reader) = readers.only(ir, out)
            && let Kind::Op(Op::Binary(binary)) = &ir.steps[reader].kind
            && binary.op == BinaryOp::Add
        {
            let (sum, operands) = (ir.steps[reader].outputs[0], &ir.steps[reader].inputs);
            let other = operands[usize::from(operands[0] == out)];
            let alike = ir.types[other] == ir.types[out] && ir.types[sum] == ir.types[out];
            let can_wait = || {
                let others = step.outputs[1..].iter();
                let mut readers = others.flat_map(|&v| &readers.steps[v]);
                readers.all(|&i| i > reader)
            };
            let early = before(ir, &producers, other, at);
            if alike && (early || can_wait()) {
                inputs.push(other);
                (taken, out) = (vec![reader], sum);
                place = if early { at } else { reader };
            }
        }
        let add = !taken.is_empty();
        let mut relu = false;
        if let Some(reader) = readers.only(ir, out)
            && let Kind::Op(Op::Unary(unary)) = &ir.steps[reader].kind
            && unary.op == UnaryOp::Relu
        {
            taken.push(reader);
            (relu, out) = (true, ir.steps[reader].outputs[0]);
        }
        if taken.is_empty() {
            continue;
        }
        let mut outputs = ir.steps[at].outputs.clone();
        outputs[0] = out;
        let mut step = lowered(Normalize { op, add, relu }, inputs, outputs, &ir.steps[at]);
        for &i in &taken {
            step.nodes.extend(std::mem::take(&mut ir.steps[i].nodes));
        }
        for i in taken.into_iter().chain([at]) {
            ir.steps[i].outputs.clear();
            ir.steps[i].inputs.clear();
        }
        ir.steps[place] = step;
    }
    ir.steps.retain(|step| !step.outputs.is_empty());
}

/// Whether a value is one zero.
fn is_zero(ir: &Ir, v: Id) -> bool {
    ir.constant(v)
        .is_some_and(|c: Tensor| c.len() == 1 && c.to_f64s() == [0.0])
}

fn backward(ir: &mut Ir) {
    let readers = Readers::new(ir);
    let producers = producers(ir);
    let mut removed = vec![false; ir.steps.len()];
    for at in 0..ir.steps.len() {
        let step = &ir.steps[at];
        let Kind::Op(Op::BatchNormGrad(_)) = &step.kind else {
            continue;
        };
        let masked = step.inputs[4];
        let single = step.inputs.iter().all(|&v| ir.types[v].dtype == DType::F32);
        // where(y > 0, gradient, 0)
        let Some(&select) = producers.get(&masked).filter(|_| single) else {
            continue;
        };
        let (Kind::Op(Op::Where(_)), false) = (&ir.steps[select].kind, removed[select]) else {
            continue;
        };
        let [condition, mut g, zero] = ir.steps[select].inputs[..] else {
            continue;
        };
        let Some(Kind::Op(Op::Binary(binary))) =
            producers.get(&condition).map(|&i| &ir.steps[i].kind)
        else {
            continue;
        };
        let [y, bound] = ir.steps[producers[&condition]].inputs[..] else {
            continue;
        };
        let same = [y, g].iter().all(|&v| ir.types[v] == ir.types[masked]);
        let zeros = is_zero(ir, zero) && is_zero(ir, bound);
        if binary.op != BinaryOp::Greater || !same || !zeros {
            continue;
        }
        // All that it reads is there where the gradient is masked; what it gives is not needed
        // earlier than that, nor than it was there.
        let early = step.inputs[..4]
            .iter()
            .all(|&v| before(ir, &producers, v, select));
        if !early {
            continue;
        }
        let keep = readers.only(ir, masked).is_none();
        let mut inputs = step.inputs.clone();
        let mut taken = vec![select];
        let mut second = None;
        if let Some(&sum) = producers.get(&g)
            && readers.only(ir, g) == Some(select)
            && let Kind::Op(Op::Binary(binary)) = &ir.steps[sum].kind
            && binary.op == BinaryOp::Add
            && ir.steps[sum]
                .inputs
                .iter()
                .all(|&v| ir.types[v] == ir.types[masked])
        {
            taken.push(sum);
            (g, second) = (ir.steps[sum].inputs[0], Some(ir.steps[sum].inputs[1]));
        }
        inputs[4] = g;
        inputs.push(y);
        inputs.extend(second);
        let mut outputs = step.outputs.clone();
        if keep {
            outputs.push(masked);
        }
        let what = NormalizeGrad {
            relu: true,
            add: second.is_some(),
            keep,
        };
        let mut new = lowered(what, inputs, outputs, step);
        for i in taken {
            removed[i] = true;
            new.nodes.extend(std::mem::take(&mut ir.steps[i].nodes));
        }
        removed[at] = true;
        removed[select] = false;
        ir.steps[select] = new;
    }
    let mut removed = removed.into_iter();
    ir.steps.retain(|_| !removed.next().unwrap_or(false));
}
