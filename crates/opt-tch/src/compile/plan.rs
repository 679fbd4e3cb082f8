//! A plan: kernels in order, and when each value is last used.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use opt_core::backend::Step as StepInfo;
use opt_core::{DType, Op, Result, ValueId};
use tch::Tensor;

use super::Options;
use super::ir::{Ir, Kind, Step, Value, Variable};
use crate::convert::from_host;
use crate::kernels::Kernel;

/// Where a value is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Input(usize),
    Constant(usize),
    Variable(usize),
    /// A result of this run.
    Slot(usize),
}

/// A step of the plan.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) kernel: Kernel,
    pub(crate) args: Vec<Place>,
    /// Where results go; `None` for those that nothing reads.
    pub(crate) outs: Vec<Option<usize>>,
    /// The input that the result is written over.
    pub(crate) over: Option<usize>,
    /// Slots that nothing reads after this step.
    pub(crate) done: Vec<usize>,
    pub(crate) nodes: Vec<String>,
}

/// A variable gets a new value at the end of a run.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) variable: usize,
    pub(crate) from: Place,
    /// Whether the value may share memory with something that lives on.
    pub(crate) copy: bool,
}

/// What an input has to be.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
}

/// A compiled graph.
pub(crate) struct Plan {
    pub(crate) inputs: Vec<Input>,
    /// On the device; sessions take references of their own.
    constants: Mutex<Vec<Tensor>>,
    /// With the content that a session begins with.
    pub(crate) variables: Vec<Variable>,
    pub(crate) steps: Vec<Planned>,
    pub(crate) slots: usize,
    pub(crate) outputs: Vec<(Place, DType)>,
    pub(crate) assignments: Vec<Assignment>,
    /// From which step on variables are written in place: outputs and faults are looked at
    /// before.
    pub(crate) effects: usize,
    /// What it was compiled with.
    pub(crate) options: Options,
}

impl Plan {
    pub(crate) fn new(ir: Ir, options: Options) -> Result<Plan> {
        let device = options.device;
        let mut places: HashMap<Value, Place> = HashMap::new();
        for (i, (_, v)) in ir.inputs.iter().enumerate() {
            places.insert(*v, Place::Input(i));
        }
        for (i, variable) in ir.variables.iter().enumerate() {
            places.insert(variable.value, Place::Variable(i));
        }
        let mut used: Vec<bool> = vec![false; ir.types.len()];
        for step in &ir.steps {
            for &v in &step.inputs {
                used[v] = true;
            }
        }
        for &v in ir
            .outputs
            .iter()
            .chain(ir.assignments.iter().map(|(_, v)| v))
        {
            used[v] = true;
        }
        let mut constants = Vec::new();
        let mut order: Vec<Value> = ir.constants.keys().copied().collect();
        order.sort_unstable();
        for v in order.into_iter().filter(|&v| used[v]) {
            places.insert(v, Place::Constant(constants.len()));
            constants.push(from_host(&ir.constants[&v], device)?);
        }
        let mut slots = 0;
        for step in &ir.steps {
            for &v in step.outputs.iter().filter(|&&v| used[v]) {
                places.insert(v, Place::Slot(slots));
                slots += 1;
            }
        }
        let mut last: Vec<Option<usize>> = vec![None; slots];
        let mut kept = vec![false; slots];
        for (i, step) in ir.steps.iter().enumerate() {
            for v in &step.inputs {
                if let Some(Place::Slot(s)) = places.get(v) {
                    last[*s] = Some(i);
                }
            }
        }
        for v in ir
            .outputs
            .iter()
            .chain(ir.assignments.iter().map(|(_, v)| v))
        {
            if let Some(Place::Slot(s)) = places.get(v) {
                kept[*s] = true;
            }
        }
        let place = |v: &Value| {
            places.get(v).copied().ok_or_else(|| {
                opt_core::Error::invalid(format!("value {v} is read and never given"))
            })
        };
        let (producers, consumers) = (ir.producers(), ir.consumers());
        let fresh = |v: &Value| match producers.get(v).map(|&i| &ir.steps[i].kind) {
            Some(Kind::Op(op)) => gives_new_memory(op),
            Some(Kind::Fused(fused)) => fused.gives_new_memory(),
            None => false,
        };
        let mut effects = None;
        let mut steps = Vec::new();
        for (i, step) in ir.steps.iter().enumerate() {
            if effects.is_none() && matches!(&step.kind, Kind::Fused(f) if f.writes()) {
                effects = Some(i);
            }
            let mut done: Vec<usize> = Vec::new();
            for v in &step.inputs {
                if let Some(Place::Slot(s)) = places.get(v)
                    && last[*s] == Some(i)
                    && !kept[*s]
                    && !done.contains(s)
                {
                    done.push(*s);
                }
            }
            let kernel = step.compile(&ir, device)?;
            let over = over(&ir, &fresh, &consumers, step, &kernel);
            let slot = |v: &Value| match places.get(v) {
                Some(Place::Slot(s)) if used[*v] => Some(*s),
                _ => None,
            };
            steps.push(Planned {
                kernel,
                over,
                args: step.inputs.iter().map(place).collect::<Result<_>>()?,
                outs: step.outputs.iter().map(slot).collect(),
                done,
                nodes: step.nodes.clone(),
            });
        }
        let mut taken: Vec<Value> = Vec::new();
        let mut assignments = Vec::new();
        for (target, value) in &ir.assignments {
            let Place::Variable(variable) = place(target)? else {
                return Err(opt_core::Error::invalid("an assignment to no variable"));
            };
            let copy = !fresh(value) || taken.contains(value);
            taken.push(*value);
            assignments.push(Assignment {
                variable,
                from: place(value)?,
                copy,
            });
        }
        let mut outputs = Vec::new();
        for v in &ir.outputs {
            outputs.push((place(v)?, ir.types[*v].dtype));
        }
        let mut inputs = Vec::new();
        for (name, v) in &ir.inputs {
            let ty = &ir.types[*v];
            inputs.push(Input {
                name: name.clone(),
                dtype: ty.dtype,
                shape: ty.shape.fixed()?.to_vec(),
            });
        }
        Ok(Plan {
            inputs,
            constants: Mutex::new(constants),
            effects: effects.unwrap_or(steps.len()),
            steps,
            slots,
            outputs,
            assignments,
            options,
            variables: ir.variables,
        })
    }

    /// References to the constants.
    pub(crate) fn constants(&self) -> Vec<Tensor> {
        let constants = self
            .constants
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        constants.iter().map(Tensor::shallow_clone).collect()
    }

    /// The variables' first content, on the device.
    pub(crate) fn initial(&self) -> Result<Vec<Tensor>> {
        let each = self
            .variables
            .iter()
            .map(|v| from_host(&v.content, self.options.device));
        each.collect()
    }

    pub(crate) fn infos(&self) -> Vec<StepInfo> {
        let info = |s: &Planned| StepInfo::new(s.kernel.name(), s.nodes.clone());
        self.steps.iter().map(info).collect()
    }

    pub(crate) fn variable(&self, id: ValueId) -> Option<usize> {
        self.variables.iter().position(|v| v.id == id)
    }
}

/// The input that a step can write its result over: one of the result's type whose memory is its
/// own and which nothing else reads.
fn over(
    ir: &Ir,
    fresh: &dyn Fn(&Value) -> bool,
    consumers: &HashMap<Value, Vec<(usize, usize)>>,
    step: &Step,
    kernel: &Kernel,
) -> Option<usize> {
    let [output] = step.outputs[..] else {
        return None;
    };
    kernel.can_replace().iter().copied().find(|&i| {
        let v = step.inputs[i];
        let alone = consumers.get(&v).is_some_and(|c| c.len() == 1);
        alone && fresh(&v) && !ir.is_result(v) && ir.types[v] == ir.types[output]
    })
}

/// Whether an op's results share no memory with its inputs.
fn gives_new_memory(op: &Op) -> bool {
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::Where(_) | Op::Cast(_) => true,
        Op::MatMul(_) | Op::Conv(_) | Op::ConvTranspose(_) | Op::ConvGradWeight(_) => true,
        Op::Softmax(_) | Op::LogSoftmax(_) | Op::SoftmaxCrossEntropy(_) => true,
        Op::LayerNorm(_) | Op::BatchNormGrad(_) | Op::Gather(_) | Op::GatherGrad(_) => true,
        Op::MaxPool(_) | Op::MaxPoolGrad(_) | Op::AvgPool(_) | Op::AvgPoolGrad(_) => true,
        Op::BatchNorm(op) => op.training,
        Op::Reduce(op) => !op.axes.is_empty(),
        _ => false,
    }
}
