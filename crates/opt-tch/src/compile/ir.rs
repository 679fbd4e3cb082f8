//! A bound graph as a list of steps over numbered values: what compiling rewrites.

use std::collections::HashMap;

use opt_core::{
    Error, Graph, Op, Result, ResultExt, Tensor as Host, TensorType, ValueId, ValueKind,
};

use super::fused::Fused;
use crate::Device;
use crate::kernels::{self, CompileCx, Kernel};

/// A value's number: its id's in the graph, or one after them.
pub(crate) type Value = usize;

/// What a step runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Op(Op),
    Fused(Fused),
}

/// A node, or several that run as one.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) kind: Kind,
    pub(crate) inputs: Vec<Value>,
    pub(crate) outputs: Vec<Value>,
    /// Names of the graph's nodes that it covers.
    pub(crate) nodes: Vec<String>,
}

impl Step {
    /// The op of a step that is one node.
    pub(crate) fn op(&self) -> Option<&Op> {
        match &self.kind {
            Kind::Op(op) => Some(op),
            Kind::Fused(_) => None,
        }
    }

    pub(crate) fn compile(&self, ir: &Ir, device: Device) -> Result<Kernel> {
        let types = |list: &[Value]| -> Vec<TensorType> {
            list.iter().map(|&v| ir.types[v].clone()).collect()
        };
        let (inputs, outputs) = (types(&self.inputs), types(&self.outputs));
        let constants: Vec<Option<Host>> = self
            .inputs
            .iter()
            .map(|v| ir.constants.get(v).cloned())
            .collect();
        let cx = CompileCx {
            inputs: &inputs,
            outputs: &outputs,
            constants: &constants,
            device,
        };
        let kernel = match &self.kind {
            Kind::Op(op) => kernels::compile(op, &cx),
            Kind::Fused(fused) => fused.compile(&cx),
        };
        kernel.at(|| self.nodes.first().cloned().unwrap_or_default())
    }
}

/// A variable of the graph.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) id: ValueId,
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) content: Host,
}

/// The graph.
#[derive(Debug)]
pub(crate) struct Ir {
    pub(crate) types: Vec<TensorType>,
    pub(crate) constants: HashMap<Value, Host>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) inputs: Vec<(String, Value)>,
    pub(crate) outputs: Vec<Value>,
    pub(crate) steps: Vec<Step>,
    /// (variable, new value): done at the end of a run.
    pub(crate) assignments: Vec<(Value, Value)>,
}

impl Ir {
    pub(crate) fn new(graph: &Graph) -> Result<Ir> {
        let filler = TensorType::new(opt_core::DType::F32, [0]);
        let mut ir = Ir {
            types: vec![filler; graph.value_bound()],
            constants: HashMap::new(),
            variables: Vec::new(),
            inputs: Vec::new(),
            outputs: graph.outputs().map(ValueId::index).collect(),
            steps: Vec::new(),
            assignments: Vec::new(),
        };
        for (id, value) in graph.values() {
            ir.types[id.index()] = value.ty().clone();
            match value.kind() {
                ValueKind::Constant(content) => {
                    ir.constants.insert(id.index(), content.clone());
                }
                ValueKind::Variable(content) => ir.variables.push(Variable {
                    id,
                    name: value.name().to_string(),
                    value: id.index(),
                    content: content.clone(),
                }),
                _ => {}
            }
        }
        for &id in graph.inputs() {
            let value = graph.value(id);
            value.ty().shape.fixed().at(|| value.name().to_string())?;
            ir.inputs.push((value.name().to_string(), id.index()));
        }
        for (_, node) in graph.nodes() {
            let index = |ids: &[ValueId]| ids.iter().map(|v| v.index()).collect::<Vec<_>>();
            let (inputs, outputs) = (index(node.inputs()), index(node.outputs()));
            if matches!(node.op(), Op::Assign(_)) {
                ir.assignments.push((inputs[0], inputs[1]));
            }
            ir.steps.push(Step {
                kind: Kind::Op(node.op().clone()),
                inputs,
                outputs,
                nodes: vec![node.name().to_string()],
            });
        }
        Ok(ir)
    }

    /// A new value.
    pub(crate) fn value(&mut self, ty: TensorType) -> Value {
        self.types.push(ty);
        self.types.len() - 1
    }

    /// The step that gives each value.
    pub(crate) fn producers(&self) -> HashMap<Value, usize> {
        let mut producers = HashMap::new();
        for (i, step) in self.steps.iter().enumerate() {
            producers.extend(step.outputs.iter().map(|&v| (v, i)));
        }
        producers
    }

    /// The steps that read each value, and at which input.
    pub(crate) fn consumers(&self) -> HashMap<Value, Vec<(usize, usize)>> {
        let mut consumers: HashMap<Value, Vec<(usize, usize)>> = HashMap::new();
        for (i, step) in self.steps.iter().enumerate() {
            for (slot, &v) in step.inputs.iter().enumerate() {
                consumers.entry(v).or_default().push((i, slot));
            }
        }
        consumers
    }

    /// Whether a value is read outside of the steps.
    pub(crate) fn is_result(&self, value: Value) -> bool {
        self.outputs.contains(&value) || self.assignments.iter().any(|&(_, v)| v == value)
    }

    /// Reads one value for another everywhere.
    pub(crate) fn replace(&mut self, with: &HashMap<Value, Value>) {
        if with.is_empty() {
            return;
        }
        let root = |v: Value| {
            let mut v = v;
            while let Some(&next) = with.get(&v) {
                v = next;
            }
            v
        };
        for step in &mut self.steps {
            for v in &mut step.inputs {
                *v = root(*v);
            }
        }
        for v in &mut self.outputs {
            *v = root(*v);
        }
        for (_, v) in &mut self.assignments {
            *v = root(*v);
        }
    }

    /// Removes the steps that nothing depends on.
    pub(crate) fn remove_dead(&mut self) {
        let mut live = vec![false; self.types.len()];
        for &v in &self.outputs {
            live[v] = true;
        }
        for &(_, v) in &self.assignments {
            live[v] = true;
        }
        let steps = std::mem::take(&mut self.steps);
        for step in steps.into_iter().rev() {
            let effect = matches!(&step.kind, Kind::Fused(f) if f.writes());
            if effect || step.outputs.iter().any(|&v| live[v]) {
                for &v in &step.inputs {
                    live[v] = true;
                }
                self.steps.push(step);
            }
        }
        self.steps.reverse();
        self.constants.retain(|&v, _| live[v]);
    }

    /// [`Ir::remove_dead`] for steps in any order.
    pub(crate) fn remove_dead_unsorted(&mut self) -> Result<()> {
        self.sort()?;
        self.remove_dead();
        Ok(())
    }

    /// Orders the steps so that each comes after those whose results it reads; those that write
    /// variables come last.
    pub(crate) fn sort(&mut self) -> Result<()> {
        let producers = self.producers();
        let steps = std::mem::take(&mut self.steps);
        let mut waiting: Vec<usize> = vec![0; steps.len()];
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); steps.len()];
        for (i, step) in steps.iter().enumerate() {
            for v in &step.inputs {
                if let Some(&p) = producers.get(v) {
                    waiting[i] += 1;
                    readers[p].push(i);
                }
            }
        }
        // Of those that can run, the first in the old order: values stay as short-lived as the
        // graph has them.
        let mut ready: std::collections::BTreeSet<(bool, usize)> =
            std::collections::BTreeSet::new();
        let writes = |i: usize| matches!(&steps[i].kind, Kind::Fused(f) if f.writes());
        for (i, &n) in waiting.iter().enumerate() {
            if n == 0 {
                ready.insert((writes(i), i));
            }
        }
        let mut order = Vec::with_capacity(steps.len());
        while let Some((_, i)) = ready.pop_first() {
            order.push(i);
            for &r in &readers[i] {
                waiting[r] -= 1;
                if waiting[r] == 0 {
                    ready.insert((writes(r), r));
                }
            }
        }
        if order.len() != steps.len() {
            return Err(Error::invalid("the steps depend on each other in a circle"));
        }
        let mut steps: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
        self.steps = order.into_iter().filter_map(|i| steps[i].take()).collect();
        Ok(())
    }
}
