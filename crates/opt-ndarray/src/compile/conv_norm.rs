//! Batch normalizations by constants go into the convolutions before or after them.

use std::collections::HashMap;

use opt_core::DType;
use opt_core::ops::{Op, Unary, UnaryOp};

use super::fuse::producers;
use super::plan::{Id, Ir, Kind, Step};
use crate::kernels::Normalize;
use crate::kernels::conv::Geometry;

/// Moves each batch normalization in evaluation mode into the convolution whose result it takes,
/// or else, with a ReLU that follows, into the one of a kernel of one entry that reads it.
pub(super) fn fold(ir: &mut Ir) {
    let uses = ir.uses();
    let producers = producers(ir);
    let mut readers: HashMap<Id, usize> = HashMap::new();
    for (i, step) in ir.steps.iter().enumerate() {
        for &v in &step.inputs {
            readers.insert(ir.alias[v], i);
        }
    }
    // The only step that reads the only result of a step, as it is.
    let next = |ir: &Ir, at: usize| -> Option<usize> {
        let [out] = ir.steps[at].outputs[..] else {
            return None;
        };
        let reader = *readers.get(&out).filter(|_| uses[out] == 1)?;
        ir.steps[reader].inputs.contains(&out).then_some(reader)
    };
    for at in 0..ir.steps.len() {
        let step = &ir.steps[at];
        let Kind::Op(Op::BatchNorm(op)) = &step.kind else {
            continue;
        };
        let constant = |v: Id| ir.constant(v).or_else(|| ir.frozen(v)).is_some();
        let all_constant = step.inputs.len() == 5 && step.inputs[1..].iter().all(|&v| constant(v));
        let types = step.inputs.iter().map(|&v| ir.types[v].dtype);
        if op.training || !all_constant || !types.clone().all(|dtype| dtype == DType::F32) {
            continue;
        }
        let mut norm = Normalize {
            epsilon: op.epsilon,
            relu: false,
        };
        let (x, params, out) = (step.inputs[0], step.inputs[1..].to_vec(), step.outputs[0]);
        let from = producers.get(&x).copied().filter(|&from| {
            let conv = &ir.steps[from];
            let rest = conv.inputs[1..].iter().all(|&v| constant(v));
            let plain = conv.extras.after.is_none() && conv.outputs == [x];
            is_conv(conv) && plain && rest && uses[x] == 1 && ir.alias[x] == x
        });
        if let Some(from) = from {
            let mut conv = ir.steps[from].clone();
            conv.extras.after = Some(norm);
            conv.inputs.extend(params);
            conv.outputs = vec![out];
            let names = std::mem::take(&mut ir.steps[at].nodes);
            conv.nodes.extend(names);
            // Where its result is read at the earliest.
            ir.steps[from].outputs.clear();
            ir.steps[at] = conv;
            continue;
        }
        let Some(mut reader) = next(ir, at) else {
            continue;
        };
        let mut gone = vec![at];
        let mut value = out;
        let relu = Op::Unary(Unary { op: UnaryOp::Relu });
        if matches!(&ir.steps[reader].kind, Kind::Op(op) if *op == relu) {
            norm.relu = true;
            gone.push(reader);
            value = ir.steps[reader].outputs[0];
            let Some(after) = next(ir, reader) else {
                continue;
            };
            reader = after;
        }
        let conv = &ir.steps[reader];
        let own = conv.extras.is_empty() && conv.epilogue.is_empty();
        if !own || conv.inputs[0] != value || !reads_pixels(ir, conv) {
            continue;
        }
        let mut nodes = Vec::new();
        for i in gone {
            nodes.append(&mut ir.steps[i].nodes);
            ir.steps[i].outputs.clear();
        }
        let conv = &mut ir.steps[reader];
        conv.inputs[0] = x;
        conv.inputs.extend(params);
        conv.extras.before = Some(norm);
        nodes.append(&mut conv.nodes);
        conv.nodes = nodes;
    }
    ir.steps.retain(|step| !step.outputs.is_empty());
}

fn is_conv(step: &Step) -> bool {
    matches!(&step.kind, Kind::Op(Op::Conv(_))) && step.epilogue.is_empty()
}

/// Whether a step is a convolution of all channels that reads one pixel for each of its output,
/// and no padding.
fn reads_pixels(ir: &Ir, step: &Step) -> bool {
    let Kind::Op(Op::Conv(conv)) = &step.kind else {
        return false;
    };
    let shape = |v: Id| ir.types[v].shape.fixed().ok();
    let (Some(x), Some(w), Some(y)) = (
        shape(step.inputs[0]),
        shape(step.inputs[1]),
        shape(step.outputs[0]),
    ) else {
        return false;
    };
    let one = w[2..].iter().all(|&size| size == 1) && conv.groups == 1 && conv.window.rank() == 2;
    one && Geometry::new(&x[2..], &y[2..], &w[2..], &conv.window).is_unpadded()
}
