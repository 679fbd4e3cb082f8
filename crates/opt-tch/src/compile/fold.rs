//! Constant folding and common sub-expressions.

use std::collections::HashMap;

use opt_core::{Op, Result, ResultExt, Tensor as Host};

use super::ir::{Ir, Kind, Value};
use super::template::COMPARED;
use crate::Device;
use crate::convert::{from_host, to_host};
use crate::kernels::RunCx;

/// Results up to this many bytes are folded even if they are larger than what they come from.
const SMALL: usize = 1 << 16;

/// Computes the deterministic steps whose inputs are all constants, on the processor.
pub(super) fn fold(ir: &mut Ir) -> Result<()> {
    let steps = std::mem::take(&mut ir.steps);
    let cx = RunCx::new(Device::Cpu);
    for step in steps {
        let pure = match &step.kind {
            Kind::Op(Op::Assign(_)) | Kind::Fused(_) => false,
            Kind::Op(op) => op.rules().is_deterministic(),
        };
        let inputs: Option<Vec<Host>> = match pure {
            true => step
                .inputs
                .iter()
                .map(|v| ir.constants.get(v).cloned())
                .collect(),
            false => None,
        };
        let Some(inputs) = inputs else {
            ir.steps.push(step);
            continue;
        };
        let from: usize = inputs.iter().map(Host::size_in_bytes).sum();
        let mut to = 0;
        for &v in &step.outputs {
            to += ir.types[v].dtype.bytes(ir.types[v].shape.len()?);
        }
        // A scalar expanded to a large tensor is cheaper to expand at each run than to keep.
        if to > SMALL && to > 8 * from {
            ir.steps.push(step);
            continue;
        }
        let kernel = step.compile(ir, Device::Cpu)?;
        let inputs: Vec<_> = inputs
            .iter()
            .map(|x| from_host(x, Device::Cpu))
            .collect::<Result<_>>()?;
        let outs = kernel
            .run(&inputs.iter().collect::<Vec<_>>(), &cx)
            .at(|| step.nodes.first().cloned().unwrap_or_default())?;
        for (&v, out) in step.outputs.iter().zip(&outs) {
            let host = to_host(out, ir.types[v].dtype)?;
            ir.constants.insert(v, host);
        }
    }
    Ok(())
}

/// Merges constants of one content up to a size, and steps that apply one op to the same values.
pub(super) fn merge(ir: &mut Ir) {
    merge_into(ir, &mut []);
}

/// [`merge`], which also renames values kept beside the graph.
pub(super) fn merge_into(ir: &mut Ir, kept: &mut [Option<Value>]) {
    let mut with: HashMap<Value, Value> = HashMap::new();
    let mut seen: HashMap<(Vec<u8>, String), Value> = HashMap::new();
    let mut constants: Vec<Value> = ir.constants.keys().copied().collect();
    constants.sort_unstable();
    for v in constants {
        let content = &ir.constants[&v];
        if content.size_in_bytes() > COMPARED {
            continue;
        }
        let Ok(bytes) = content.contiguous().bytes().map(<[u8]>::to_vec) else {
            continue;
        };
        let first = *seen.entry((bytes, ir.types[v].to_string())).or_insert(v);
        if first != v {
            with.insert(v, first);
        }
    }
    ir.replace(&with);
    ir.constants.retain(|v, _| !with.contains_key(v));
    rename(kept, &with);
    let mut done: HashMap<(String, Vec<Value>), Vec<usize>> = HashMap::new();
    let mut with: HashMap<Value, Value> = HashMap::new();
    for i in 0..ir.steps.len() {
        let inputs: Vec<Value> = ir.steps[i]
            .inputs
            .iter()
            .map(|v| with.get(v).copied().unwrap_or(*v))
            .collect();
        ir.steps[i].inputs.clone_from(&inputs);
        let Some(op) = ir.steps[i].op() else { continue };
        if !op.rules().is_deterministic() || matches!(op, Op::Assign(_)) {
            continue;
        }
        let alike = done.entry((op.name().to_string(), inputs)).or_default();
        match alike
            .iter()
            .find(|&&j| ir.steps[j].kind == ir.steps[i].kind)
        {
            Some(&j) => {
                let (old, new) = (&ir.steps[i].outputs, &ir.steps[j].outputs);
                with.extend(old.iter().copied().zip(new.iter().copied()));
            }
            None => alike.push(i),
        }
    }
    ir.replace(&with);
    rename(kept, &with);
}

fn rename(kept: &mut [Option<Value>], with: &HashMap<Value, Value>) {
    for v in kept.iter_mut().flatten() {
        while let Some(&next) = with.get(v) {
            *v = next;
        }
    }
}
