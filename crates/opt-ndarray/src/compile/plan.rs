//! What a graph is lowered to: steps over numbered values, which the passes of the compiler
//! rewrite, and at last the plan that sessions run.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use opt_core::backend::Step as StepInfo;
use opt_core::ops::{Cost, Op, UnaryOp};
use opt_core::profile::StepProfile;
use opt_core::tensor::Dims;
use opt_core::{DType, Error, Graph, Result, ResultExt, Tensor, TensorType, ValueId, ValueKind};

use crate::kernels::elementwise::Spec;
use crate::kernels::{self, CompileCx, Extras, Kernel};

/// The number of a value; those of the graph's values are their indices.
pub(crate) type Id = usize;

/// What a step computes.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// An op of the graph.
    Op(Op),
    /// Fused element-wise ops.
    Fused(Spec),
    /// The input, in memory of its own.
    Copy,
    /// Something that the compiler made of several nodes.
    Lowered(Arc<dyn Lowered>),
}

/// What a pass of the compiler made of several nodes.
pub(crate) trait Lowered: fmt::Debug + Send + Sync {
    /// Compiles it for the types of the step's inputs and outputs.
    fn compile(&self, cx: &CompileCx<'_>) -> Result<Box<dyn Kernel>>;

    /// Bytes of the constants that it holds beside its inputs.
    fn bytes(&self) -> usize;
}

/// One kernel to run.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) kind: Kind,
    pub(crate) inputs: Vec<Id>,
    pub(crate) outputs: Vec<Id>,
    /// Functions applied to the only output.
    pub(crate) epilogue: Vec<UnaryOp>,
    /// What else the kernel does; the bounds come after the functions.
    pub(crate) extras: Extras,
    /// The names of the graph's nodes that it covers; errors are reported at the first.
    pub(crate) nodes: Vec<String>,
}

impl Step {
    /// Compiles it; `constant` gives the content of inputs that do not change while a kernel
    /// lives.
    pub(crate) fn compile(
        &self,
        types: &[TensorType],
        constant: impl Fn(Id) -> Option<Tensor>,
        threads: usize,
    ) -> Result<Box<dyn Kernel>> {
        let of =
            |ids: &[Id]| -> Vec<TensorType> { ids.iter().map(|&v| types[v].clone()).collect() };
        let (inputs, outputs) = (of(&self.inputs), of(&self.outputs));
        let constants: Vec<_> = self.inputs.iter().map(|&v| constant(v)).collect();
        let cx = CompileCx {
            inputs: &inputs,
            outputs: &outputs,
            constants: &constants,
            epilogue: &self.epilogue,
            extras: self.extras,
            threads,
        };
        match &self.kind {
            Kind::Op(op) => kernels::compile(op, &cx),
            Kind::Fused(spec) => kernels::elementwise::program(spec, threads),
            Kind::Copy => Ok(Box::new(kernels::Copy) as Box<dyn Kernel>),
            Kind::Lowered(lowered) => lowered.compile(&cx),
        }
        .at(|| self.nodes.first().cloned().unwrap_or_default())
    }
}

/// A variable.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) id: ValueId,
    pub(crate) name: String,
    pub(crate) content: Tensor,
    /// Whether the graph assigns to it; the others are constant between calls of
    /// `set_variable`, so that kernels may pack them.
    pub(crate) assigned: bool,
}

/// A lowered graph.
#[derive(Debug)]
pub(crate) struct Ir {
    /// The type of each value, without symbols.
    pub(crate) types: Vec<TensorType>,
    /// The value whose memory a value has: itself, but for views such as reshapes.
    pub(crate) alias: Vec<Id>,
    /// In an order in which they can run.
    pub(crate) steps: Vec<Step>,
    pub(crate) inputs: Vec<(Id, String)>,
    pub(crate) outputs: Vec<Id>,
    pub(crate) constants: BTreeMap<Id, Tensor>,
    pub(crate) variables: Vec<Variable>,
    /// Values that are parts of the memory of others, and where their bytes start there.
    pub(crate) parts: HashMap<Id, (Id, usize)>,
    /// Target variables and the values they get.
    pub(crate) assigns: Vec<(Id, Id)>,
}

impl Ir {
    /// Lowers a graph whose dimensions are all bound.
    pub(crate) fn new(graph: &Graph) -> Result<Ir> {
        let bound = graph.value_bound();
        let mut ir = Ir {
            types: vec![TensorType::new(DType::F32, [0usize; 0]); bound],
            alias: (0..bound).collect(),
            steps: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            constants: BTreeMap::new(),
            variables: Vec::new(),
            parts: HashMap::new(),
            assigns: Vec::new(),
        };
        for (id, value) in graph.values() {
            for dim in value.ty().shape.dims() {
                if dim.as_fixed().is_none() {
                    return Err(Error::shape(format!(
                        "the dimension `{dim}` of `{}` ({}) is not bound; bind it in the \
                         `CompileSpec`",
                        value.name(),
                        value.ty()
                    )));
                }
            }
            // Also refuses sizes that cannot be addressed.
            value.ty().shape.len().at(|| value.name().to_string())?;
            ir.types[id.index()] = value.ty().clone();
            match value.kind() {
                ValueKind::Constant(t) => {
                    ir.constants.insert(id.index(), t.contiguous());
                }
                ValueKind::Variable(t) => ir.variables.push(Variable {
                    id,
                    name: value.name().to_string(),
                    content: t.contiguous(),
                    assigned: false,
                }),
                _ => {}
            }
        }
        for &id in graph.inputs() {
            ir.inputs
                .push((id.index(), graph.value(id).name().to_string()));
        }
        for (_, node) in graph.nodes() {
            let inputs: Vec<Id> = node.inputs().iter().map(|v| ir.same(v.index())).collect();
            let outputs: Vec<Id> = node.outputs().iter().map(|v| v.index()).collect();
            if let Op::Assign(_) = node.op() {
                ir.assigns.push((inputs[0], inputs[1]));
                ir.alias[outputs[0]] = ir.alias[inputs[1]];
            } else if let Some(content) = from_sizes(node.op())? {
                ir.constants.insert(outputs[0], content);
            } else if is_view(node.op()) {
                ir.alias[outputs[0]] = ir.alias[inputs[0]];
            } else {
                ir.steps.push(Step {
                    kind: Kind::Op(node.op().clone()),
                    inputs,
                    outputs,
                    epilogue: Vec::new(),
                    extras: Extras::default(),
                    nodes: vec![node.name().to_string()],
                });
            }
        }
        for variable in &mut ir.variables {
            variable.assigned = ir.assigns.iter().any(|a| a.0 == variable.id.index());
        }
        ir.outputs = graph.outputs().map(|v| v.index()).collect();
        Ok(ir)
    }

    /// The value that a value is another name of: the one whose memory it has, if it has the
    /// same type.
    pub(crate) fn same(&self, v: Id) -> Id {
        let root = self.alias[v];
        if self.types[root] == self.types[v] {
            root
        } else {
            v
        }
    }

    /// Adds a value.
    pub(crate) fn add_value(&mut self, ty: TensorType) -> Id {
        self.types.push(ty);
        self.alias.push(self.alias.len());
        self.types.len() - 1
    }

    /// The content of a value that is constant whatever happens.
    pub(crate) fn constant(&self, v: Id) -> Option<Tensor> {
        let tensor = self.constants.get(&self.alias[v])?;
        // A view has the elements of its root in another shape.
        tensor.reshape(self.types[v].shape.fixed().ok()?).ok()
    }

    /// The content of a variable that nothing assigns to.
    pub(crate) fn frozen(&self, v: Id) -> Option<Tensor> {
        let root = self.alias[v];
        let variable = self
            .variables
            .iter()
            .find(|x| x.id.index() == root && !x.assigned)?;
        variable
            .content
            .reshape(self.types[v].shape.fixed().ok()?)
            .ok()
    }

    /// How often each memory is read: by steps, outputs and assignments.
    pub(crate) fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.types.len()];
        let steps = self.steps.iter().flat_map(|s| &s.inputs);
        for &v in steps
            .chain(&self.outputs)
            .chain(self.assigns.iter().map(|a| &a.1))
        {
            uses[self.alias[v]] += 1;
        }
        uses
    }

    /// Removes the steps that nothing depends on.
    pub(crate) fn remove_dead(&mut self) {
        let mut live = vec![false; self.types.len()];
        for &v in self.outputs.iter().chain(self.assigns.iter().map(|a| &a.1)) {
            live[self.alias[v]] = true;
        }
        let mut kept = Vec::with_capacity(self.steps.len());
        for step in std::mem::take(&mut self.steps).into_iter().rev() {
            let whole = |&v: &Id| self.parts.get(&v).map_or(v, |&(whole, _)| whole);
            if step.outputs.iter().any(|v| live[whole(v)]) {
                for &v in &step.inputs {
                    live[self.alias[v]] = true;
                }
                kept.push(step);
            }
        }
        kept.reverse();
        self.steps = kept;
    }
}

/// The content of an op that depends on sizes alone; they are bound here.
fn from_sizes(op: &Op) -> Result<Option<Tensor>> {
    let counts: Vec<i64> = match op {
        Op::Sizes(op) => op.dims.fixed()?.iter().map(|&n| n as i64).collect(),
        Op::Iota(op) => (0..op.len.fixed()? as i64).collect(),
        _ => return Ok(None),
    };
    Tensor::new([counts.len()], counts).map(Some)
}

/// Whether an op gives its first input's bytes under another shape or name.
fn is_view(op: &Op) -> bool {
    match op {
        Op::Reshape(_)
        | Op::Squeeze(_)
        | Op::Unsqueeze(_)
        | Op::Identity(_)
        | Op::StopGradient(_) => true,
        Op::Dropout(dropout) => !dropout.training,
        _ => false,
    }
}

/// Where the bytes of an operand are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// An input of the run.
    Input(usize),
    /// A constant of the plan.
    Constant(usize),
    /// A variable of the session.
    Variable(usize),
    /// A slot of the session.
    Slot(usize),
    /// Given up for an output that is computed in place.
    Given,
}

/// An operand or result of a planned step.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) place: Place,
    pub(crate) dtype: DType,
    pub(crate) shape: Dims,
    pub(crate) bytes: usize,
    /// Where it starts there; of results only.
    pub(crate) offset: usize,
}

impl Port {
    pub(crate) fn new(place: Place, ty: &TensorType) -> Result<Port> {
        let shape = ty.shape.fixed()?;
        Ok(Port {
            place,
            dtype: ty.dtype,
            bytes: ty.dtype.bytes(ty.shape.len()?),
            offset: 0,
            shape,
        })
    }
}

/// A step with everything decided.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) kernel: Box<dyn Kernel>,
    pub(crate) args: Vec<Port>,
    /// In slots, or over the variables that they are assigned to.
    pub(crate) outs: Vec<Port>,
    pub(crate) scratch: usize,
    /// Bytes of what it reads.
    pub(crate) reads: u64,
    /// The cost of the nodes that it covers.
    pub(crate) cost: Cost,
    /// What it was compiled from, to compile it again for other content of its variables.
    pub(crate) step: Step,
    /// The inputs that are given up for outputs.
    pub(crate) given: Vec<(usize, usize)>,
    /// Indices of the unassigned variables that the kernel may have packed.
    pub(crate) packs: Vec<usize>,
}

/// An assignment at the end of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Assignment {
    pub(crate) variable: usize,
    pub(crate) slot: usize,
    /// Whether variable and slot change places; else the bytes are copied.
    pub(crate) swap: bool,
}

/// What an executable runs.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) types: Vec<TensorType>,
    pub(crate) steps: Vec<Planned>,
    pub(crate) inputs: Vec<(String, Port)>,
    pub(crate) outputs: Vec<Port>,
    /// For each output the slot that is handed over with it: of its size, and nobody else's at the
    /// end of a run.
    pub(crate) handed: Vec<Option<usize>>,
    pub(crate) constants: Vec<Tensor>,
    pub(crate) variables: Vec<Variable>,
    /// Copies first, then swaps.
    pub(crate) assignments: Vec<Assignment>,
    /// Bytes of each slot.
    pub(crate) slots: Vec<usize>,
    /// Bytes of the scratch memory that steps share.
    pub(crate) scratch: usize,
    /// How many threads steps may use.
    pub(crate) threads: usize,
}

impl Plan {
    pub(crate) fn infos(&self) -> Vec<StepInfo> {
        self.steps
            .iter()
            .map(|s| StepInfo::new(s.kernel.name(), s.step.nodes.clone()))
            .collect()
    }

    /// The steps with what they cost, before they have run.
    pub(crate) fn profiles(&self) -> Vec<StepProfile> {
        let costs = self.steps.iter().zip(self.infos()).map(|(step, info)| {
            let written = step.outs.iter().map(|port| port.bytes as u64);
            let written = written.fold(0, u64::saturating_add);
            StepProfile::new(info)
                .bytes(step.reads, written)
                .cost(step.cost)
        });
        costs.collect()
    }
}
