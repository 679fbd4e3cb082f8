//! From a graph to a plan: bind shapes, lower, fold constants, fuse, place in memory.

mod append;
mod conv_norm;
mod epilogue;
mod fold;
mod fuse;
mod memory;
mod norms;
pub(crate) mod plan;
mod qdq;

use std::collections::HashMap;

use opt_core::ops::Cost;
use opt_core::{CompileSpec, Graph, Result, ResultExt};

use crate::kernels::int8::IntPath;
use plan::{Ir, Plan};

/// Multiply-adds, or elements, of a whole graph below which it runs on the calling thread:
/// handing work to others takes longer.
const PARALLEL: u64 = 1 << 20;

/// Compiles a graph for a number of threads.
pub(crate) fn compile(
    graph: &Graph,
    spec: &CompileSpec,
    threads: usize,
    ints: IntPath,
) -> Result<Plan> {
    compile_with(graph, spec, threads, true, ints)
}

/// [`compile`], with fusion or without: what the tests compare.
pub(crate) fn compile_with(
    graph: &Graph,
    spec: &CompileSpec,
    threads: usize,
    fusion: bool,
    ints: IntPath,
) -> Result<Plan> {
    ints.check()?;
    let graph = graph.bind(&spec.bindings)?;
    let mut ir = Ir::new(&graph)?;
    let costs = costs(&graph)?;
    let work = |cost: &Cost| cost.macs.saturating_add(cost.elements);
    let work = costs.values().map(work).fold(0, u64::saturating_add);
    let threads = if work < PARALLEL { 1 } else { threads };
    ir.remove_dead();
    // Before folding, which would dequantize the weights once and for all, and before fusion,
    // which joins the nodes with others.
    if fusion {
        qdq::lower(&mut ir, ints)?;
    }
    fold::fold(&mut ir)?;
    if fusion {
        conv_norm::fold(&mut ir);
        norms::fuse(&mut ir);
        fuse::fuse(&mut ir)?;
        append::chain(&mut ir)?;
        append::in_parts(&mut ir)?;
    }
    ir.remove_dead();
    memory::plan(ir, threads, &costs)
}

/// What each node costs to run, by its name.
fn costs(graph: &Graph) -> Result<HashMap<String, Cost>> {
    let mut costs = HashMap::new();
    for (_, node) in graph.nodes() {
        let types = |ids: &[opt_core::ValueId]| -> Vec<_> {
            ids.iter().map(|&v| graph.type_of(v).clone()).collect()
        };
        let (inputs, outputs) = (types(node.inputs()), types(node.outputs()));
        let cost = node
            .op()
            .rules()
            .cost(&inputs, &outputs)
            .at(|| node.name().to_string())?;
        costs.insert(node.name().to_string(), cost);
    }
    Ok(costs)
}
