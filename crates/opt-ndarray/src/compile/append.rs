//! Concatenations that begin with the same pieces, as densely connected networks have them: each
//! piece is copied once, behind the ones before it. Of others the pieces are computed in place.

use std::collections::HashSet;
use std::sync::Arc;

use opt_core::ops::Op;
use opt_core::{DType, Result};

use super::fuse::producers;
use super::plan::{Id, Ir, Kind, Lowered, Step};
use crate::kernels::append::Append;
use crate::kernels::{CompileCx, Kernel};

#[derive(Debug)]
struct Appended {
    grows: bool,
    used: usize,
}

impl Lowered for Appended {
    fn compile(&self, _: &CompileCx<'_>) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Append {
            grows: self.grows,
            used: self.used,
        }))
    }

    fn bytes(&self) -> usize {
        0
    }
}

/// Makes chains of concatenations grow in the memory of the last. Runs after all passes that look
/// at what values are: the shorter ones become views of the first bytes of a larger value.
pub(super) fn chain(ir: &mut Ir) -> Result<()> {
    let kept: HashSet<Id> = (ir.outputs.iter())
        .chain(ir.assigns.iter().map(|a| &a.1))
        .map(|&v| ir.alias[v])
        .collect();
    // The concatenations whose pieces lie one after the other.
    let flat = |ir: &Ir, step: &Step| -> bool {
        let Kind::Op(Op::Concat(concat)) = &step.kind else {
            return false;
        };
        let shape = ir.types[step.outputs[0]].shape.fixed();
        let dtype = ir.types[step.outputs[0]].dtype;
        shape.is_ok_and(|s| s[..concat.axis].iter().product::<usize>() == 1)
            && !dtype.is_packed()
            && !kept.contains(&step.outputs[0])
    };
    let all: Vec<usize> = (0..ir.steps.len())
        .filter(|&i| flat(ir, &ir.steps[i]))
        .collect();
    let mut chains: Vec<Vec<usize>> = Vec::new();
    for &at in &all {
        let inputs = &ir.steps[at].inputs;
        let parent = (chains.iter_mut())
            .filter(|chain| {
                let last = &ir.steps[*chain.last().expect("never empty")];
                axis(last) == axis(&ir.steps[at])
                    && last.inputs.len() < inputs.len()
                    && inputs[..last.inputs.len()] == last.inputs[..]
            })
            .max_by_key(|chain| ir.steps[*chain.last().expect("never empty")].inputs.len());
        match parent {
            Some(chain) => chain.push(at),
            None => chains.push(vec![at]),
        }
    }
    for chain in chains.iter().filter(|chain| chain.len() > 1) {
        let last = ir.steps[chain[chain.len() - 1]].outputs[0];
        let ty = ir.types[last].clone();
        let mut so_far: Option<(Id, usize, usize)> = None;
        for &at in chain {
            let (inputs, out) = (ir.steps[at].inputs.clone(), ir.steps[at].outputs[0]);
            let grown = ir.add_value(ty.clone());
            for alias in &mut ir.alias {
                if *alias == out {
                    *alias = grown;
                }
            }
            let (before, pieces, used) = so_far.map_or((None, 0, 0), |(v, n, b)| (Some(v), n, b));
            let own = &ir.types[out];
            so_far = Some((grown, inputs.len(), own.dtype.bytes(own.shape.len()?)));
            let grows = before.is_some();
            let step = &mut ir.steps[at];
            step.kind = Kind::Lowered(Arc::new(Appended { grows, used }));
            step.inputs = before
                .into_iter()
                .chain(inputs[pieces..].iter().copied())
                .collect();
            step.outputs = vec![grown];
        }
    }
    Ok(())
}

/// Has the pieces of a concatenation computed where it has them, where each is the result of one
/// kernel that nothing else reads, and they lie one after the other. Runs after [`chain`].
pub(super) fn in_parts(ir: &mut Ir) -> Result<()> {
    let uses = ir.uses();
    let producers = producers(ir);
    for at in 0..ir.steps.len() {
        let step = &ir.steps[at];
        let Kind::Op(Op::Concat(concat)) = &step.kind else {
            continue;
        };
        let out = step.outputs[0];
        let shape = ir.types[out].shape.fixed()?;
        let flat = shape[..concat.axis].iter().product::<usize>() == 1;
        let computed = |&v: &Id| -> bool {
            let step = producers.get(&v).map(|&from| &ir.steps[from]);
            let serves = step.is_some_and(|step| {
                let kernel = matches!(&step.kind, Kind::Op(Op::Conv(_) | Op::MaxPool(_)));
                kernel && step.outputs == [v]
            });
            serves && ir.alias[v] == v && uses[v] == 1
        };
        if !flat || ir.types[out].dtype != DType::F32 || !step.inputs.iter().all(computed) {
            continue;
        }
        let step = ir.steps[at].clone();
        let mut offset = 0;
        for &v in &step.inputs {
            ir.parts.insert(v, (out, offset));
            offset += ir.types[v].dtype.bytes(ir.types[v].shape.len()?);
        }
        // There is nothing left to do; the last piece stands for it.
        let last = step.inputs.iter().map(|v| producers[v]).max();
        ir.steps[last.expect("a concatenation has pieces")]
            .nodes
            .extend(step.nodes);
        ir.steps[at].outputs.clear();
    }
    ir.steps.retain(|step| !step.outputs.is_empty());
    Ok(())
}

fn axis(step: &Step) -> Option<usize> {
    match &step.kind {
        Kind::Op(Op::Concat(concat)) => Some(concat.axis),
        _ => None,
    }
}
