//! Concatenations that begin with the same pieces, as densely connected networks have them: each
//! piece is copied once, behind the ones before it.

use std::collections::HashSet;
use std::sync::Arc;

use opt_core::Result;
use opt_core::ops::Op;

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

fn axis(step: &Step) -> Option<usize> {
    match &step.kind {
        Kind::Op(Op::Concat(concat)) => Some(concat.axis),
        _ => None,
    }
}
