//! Element-wise steps of optimizers that have no kernel of their own, for all parameters at once.
//!
//! What only assignments read is the update of some parameter. Updates of one formula are the same
//! steps on other tensors: those that are equally far from their last assignment's inputs, with
//! one op and one pattern of operands, become one multi-tensor call. On a GPU that is one launch
//! for a list instead of one for each tensor.

use std::collections::{BTreeMap, HashMap, HashSet};

use opt_core::Op;
use opt_core::ops::{BinaryOp, UnaryOp};

use super::Fused;
use crate::compile::ir::{Ir, Kind, Step, Value};

/// An operand of a multi-tensor call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    /// One tensor for each entry.
    List,
    /// One number for all.
    Number(f64),
    /// One tensor of one entry for all.
    One,
}

/// A multi-tensor call. Inputs of the step: the operands that are lists, one after the other, then
/// the one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Foreach {
    pub(crate) op: Op,
    /// The second operand, of a function of two; the first is a list.
    pub(crate) second: Option<Operand>,
    /// How many entries the lists have.
    pub(crate) count: usize,
}

pub(super) fn fuse(ir: &mut Ir) {
    let levels = levels(ir);
    let mut groups: BTreeMap<(usize, String), Vec<usize>> = BTreeMap::new();
    for (&i, &level) in &levels {
        if let Some((second, one)) = operands(ir, &ir.steps[i]) {
            let step = &ir.steps[i];
            let (op, dtype) = (step.op(), ir.types[step.outputs[0]].dtype);
            let key = format!("{op:?} {dtype} {second:?} {one:?}");
            groups.entry((level, key)).or_default().push(i);
        }
    }
    let mut gone: HashSet<usize> = HashSet::new();
    let mut new = Vec::new();
    for mut members in groups.into_values().filter(|m| m.len() > 1) {
        members.sort_unstable();
        let steps: Vec<&Step> = members.iter().map(|&i| &ir.steps[i]).collect();
        let (Some((second, one)), Some(op)) = (operands(ir, steps[0]), steps[0].op()) else {
            continue;
        };
        let mut inputs: Vec<Value> = steps.iter().map(|s| s.inputs[0]).collect();
        if second == Some(Operand::List) {
            inputs.extend(steps.iter().map(|s| s.inputs[1]));
        }
        inputs.extend(one);
        let foreach = Foreach {
            op: op.clone(),
            second,
            count: steps.len(),
        };
        new.push(Step {
            kind: Kind::Fused(Fused::Foreach(foreach)),
            inputs,
            outputs: steps.iter().map(|s| s.outputs[0]).collect(),
            nodes: steps.iter().flat_map(|s| s.nodes.clone()).collect(),
        });
        gone.extend(&members);
    }
    let mut i = 0;
    ir.steps.retain(|_| {
        i += 1;
        !gone.contains(&(i - 1))
    });
    ir.steps.extend(new);
}

/// The steps that only assignments depend on, with the length of the longest way to each from
/// what other steps read too.
fn levels(ir: &Ir) -> HashMap<usize, usize> {
    let (producers, consumers) = (ir.producers(), ir.consumers());
    let mut updates: HashSet<usize> = HashSet::new();
    for (i, step) in ir.steps.iter().enumerate().rev() {
        let inside = step.outputs.iter().all(|v| {
            let readers = consumers.get(v).map_or(&[][..], Vec::as_slice);
            !ir.outputs.contains(v)
                && readers
                    .iter()
                    .all(|(r, _)| updates.contains(r) || ends(&ir.steps[*r]))
        });
        let plain = matches!(step.op(), Some(Op::Unary(_) | Op::Binary(_)));
        if inside && plain {
            updates.insert(i);
        }
    }
    let mut levels: HashMap<usize, usize> = HashMap::new();
    for i in 0..ir.steps.len() {
        if updates.contains(&i) {
            let before = ir.steps[i].inputs.iter().filter_map(|v| producers.get(v));
            let level = before.filter_map(|p| levels.get(p)).max();
            levels.insert(i, level.map_or(0, |l| l + 1));
        }
    }
    levels
}

/// Whether a step gives variables their new content.
fn ends(step: &Step) -> bool {
    match &step.kind {
        Kind::Op(op) => matches!(op, Op::Assign(_)),
        Kind::Fused(fused) => fused.writes(),
    }
}

/// The second operand, and the one tensor, of a step that a multi-tensor call can run.
fn operands(ir: &Ir, step: &Step) -> Option<(Option<Operand>, Option<Value>)> {
    let output = &ir.types[step.outputs[0]];
    if !output.dtype.is_float() || output.rank() == 0 {
        return None;
    }
    let whole = |v: Value| ir.types[v] == *output;
    match step.op()? {
        Op::Unary(op) => {
            let known = matches!(
                op.op,
                UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Sqrt | UnaryOp::Reciprocal | UnaryOp::Sign
            );
            (known && whole(step.inputs[0])).then_some((None, None))
        }
        Op::Binary(op) => {
            let (a, b) = (step.inputs[0], step.inputs[1]);
            if !whole(a) {
                return None;
            }
            let number = ir.constants.get(&b).and_then(|c| c.item().ok());
            let arithmetic = matches!(
                op.op,
                BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div
            );
            let extreme = matches!(op.op, BinaryOp::Max | BinaryOp::Min);
            match number {
                Some(number) if arithmetic || (extreme && !number.is_nan()) => {
                    Some((Some(Operand::Number(number)), None))
                }
                None if whole(b) && (arithmetic || extreme) => Some((Some(Operand::List), None)),
                // Differences from one tensor have no call of their own.
                None if ir.types[b].rank() == 0 && arithmetic && op.op != BinaryOp::Sub => {
                    Some((Some(Operand::One), Some(b)))
                }
                _ => None,
            }
        }
        _ => None,
    }
}
