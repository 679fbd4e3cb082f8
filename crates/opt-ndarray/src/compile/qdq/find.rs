//! Looking around in the steps.

use std::collections::HashMap;

use opt_core::ops::{Binary, BinaryOp, Cast, Op, Unary, UnaryOp};
use opt_core::{DType, TensorType};

use super::super::plan::{Id, Ir, Kind, Step};
use super::Found;
use crate::kernels::{Extras, elementwise};

/// The graph's steps by what they define and read.
pub(super) struct Index {
    pub(super) producer: HashMap<Id, usize>,
    readers: HashMap<Id, Vec<usize>>,
    uses: Vec<usize>,
}

impl Index {
    pub(super) fn new(ir: &Ir) -> Index {
        let (mut producer, mut readers) = (HashMap::new(), HashMap::<Id, Vec<usize>>::new());
        for (i, step) in ir.steps.iter().enumerate() {
            for &v in &step.outputs {
                producer.insert(v, i);
            }
            for &v in &step.inputs {
                readers.entry(ir.alias[v]).or_default().push(i);
            }
        }
        Index {
            producer,
            readers,
            uses: ir.uses(),
        }
    }

    /// The only step that reads a value, if nothing else does.
    pub(super) fn only_reader(&self, ir: &Ir, v: Id) -> Option<usize> {
        let root = ir.alias[v];
        match self.readers.get(&root)?[..] {
            [one] if self.uses.get(root) == Some(&1) => Some(one),
            _ => None,
        }
    }

    /// The step that makes a value, or the value whose memory it has.
    pub(super) fn maker<'a>(&self, ir: &'a Ir, v: Id) -> Option<(usize, &'a Op)> {
        let step = *self.producer.get(&ir.alias[v])?;
        Some((step, op(ir, step)?))
    }
}

/// The op of a step that is one.
pub(super) fn op(ir: &Ir, step: usize) -> Option<&Op> {
    match &ir.steps[step].kind {
        Kind::Op(op) if ir.steps[step].epilogue.is_empty() && ir.steps[step].extras.is_empty() => {
            Some(op)
        }
        _ => None,
    }
}

/// A value on a grid: the integers, the scale and the zero point, and the axis along which they
/// lie if they are several.
pub(super) struct OnGrid {
    pub(super) q: Id,
    pub(super) scale: Id,
    pub(super) zero: Id,
    pub(super) axis: Option<usize>,
}

/// The integers behind a float value that a `Dequantize` makes, by reshaping at most.
pub(super) fn on_grid(ir: &Ir, index: &Index, v: Id) -> Option<OnGrid> {
    let (step, Op::Dequantize(d)) = index.maker(ir, v)? else {
        return None;
    };
    let inputs = &ir.steps[step].inputs;
    // Along an axis only if it is still the same one.
    let direct = ir.types[v].shape == ir.types[inputs[0]].shape;
    if d.block.is_some() || (d.axis.is_some() && !direct) {
        return None;
    }
    Some(OnGrid {
        q: inputs[0],
        scale: inputs[1],
        zero: *inputs.get(2)?,
        axis: d.axis,
    })
}

/// The constant scale and zero point of a whole tensor.
pub(super) fn scalar_grid(ir: &Ir, grid: &OnGrid) -> Option<(f64, i32)> {
    let one = |v: Id| match ir.constant(v)?.to_f64s()[..] {
        [one] => Some(one),
        _ => None,
    };
    Some((one(grid.scale)?, one(grid.zero)? as i32))
}

/// The same memory as `v` in another shape.
pub(super) fn view(ir: &mut Ir, v: Id, shape: Vec<usize>) -> Id {
    let ty = TensorType::new(ir.types[v].dtype, shape.as_slice());
    if ir.types[v] == ty {
        return v;
    }
    let root = ir.alias[v];
    let id = ir.add_value(ty);
    ir.alias[id] = root;
    id
}

/// Whether a value has an entry for each of the last axis, or a single one.
pub(super) fn is_row(ty: &TensorType, channels: usize) -> bool {
    let (Ok(shape), Ok(len)) = (ty.shape.fixed(), ty.shape.len()) else {
        return false;
    };
    len == 1 || (len == channels && shape.last() == Some(&channels))
}

/// What becomes of a product, and the steps that say so.
#[derive(Clone)]
pub(super) struct Chain<'a> {
    pub(super) index: &'a Index,
    covered: Vec<usize>,
    nodes: Vec<String>,
    pub(super) value: Id,
}

impl<'a> Chain<'a> {
    /// One that starts with a step.
    pub(super) fn new(index: &'a Index, ir: &Ir, at: usize) -> Chain<'a> {
        Chain {
            index,
            covered: vec![at],
            nodes: ir.steps[at].nodes.clone(),
            value: ir.steps[at].outputs[0],
        }
    }

    /// Goes on through functions of one operand, which it gives.
    pub(super) fn functions(&mut self, ir: &Ir) -> Vec<UnaryOp> {
        let mut functions = Vec::new();
        while let Some(n) = self.next(ir)
            && let Some(Op::Unary(unary)) = op(ir, n)
            && elementwise::applies(unary.op)
            && ir.types[ir.steps[n].outputs[0]] == ir.types[self.value]
        {
            functions.push(unary.op);
            self.take(ir, n);
        }
        functions
    }

    /// The step that stands for all.
    pub(super) fn end(self, kind: Kind, inputs: Vec<Id>) -> Found {
        let Chain {
            mut covered,
            nodes,
            value,
            ..
        } = self;
        covered.sort_unstable();
        let step = Step {
            kind,
            inputs,
            outputs: vec![value],
            epilogue: Vec::new(),
            extras: Extras::default(),
            nodes,
        };
        Found { step, covered }
    }

    /// The only step that reads the value.
    pub(super) fn next(&self, ir: &Ir) -> Option<usize> {
        self.index.only_reader(ir, self.value)
    }

    pub(super) fn take(&mut self, ir: &Ir, step: usize) {
        self.covered.push(step);
        self.nodes.extend(ir.steps[step].nodes.clone());
        self.value = ir.steps[step].outputs[0];
    }

    /// Goes on if the next step is this cast.
    pub(super) fn cast(&mut self, ir: &Ir, to: DType) -> bool {
        match self.next(ir) {
            Some(step) if op(ir, step) == Some(&Op::Cast(Cast { dtype: to })) => {
                self.take(ir, step);
                true
            }
            _ => false,
        }
    }

    /// The next step and its other operand, if it is this function of the value and another.
    pub(super) fn binary(&self, ir: &Ir, which: BinaryOp) -> Option<(usize, Id)> {
        let step = self.next(ir)?;
        let Op::Binary(Binary { op }) = op(ir, step)? else {
            return None;
        };
        let own = ir.alias[self.value];
        let mut others = ir.steps[step].inputs.iter().copied();
        let other = others.find(|&v| ir.alias[v] != own)?;
        let same = ir.types[ir.steps[step].outputs[0]].shape == ir.types[self.value].shape;
        (*op == which && same).then_some((step, other))
    }

    /// Goes on if the next step is a ReLU.
    pub(super) fn relu(&mut self, ir: &Ir) -> bool {
        match self.next(ir) {
            Some(r) if op(ir, r) == Some(&Op::Unary(Unary { op: UnaryOp::Relu })) => {
                self.take(ir, r);
                true
            }
            _ => false,
        }
    }
}
