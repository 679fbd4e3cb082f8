//! The rules that every op has: types, gradient, axes and cost.

use crate::graph::{Bindings, GraphBuilder, TensorType, ValueId};
use crate::{DType, Error, Result};

/// What an op costs to compute once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-adds of matrix products, convolutions and recurrences.
    pub macs: u64,
    /// Other arithmetic, in elements processed.
    pub elements: u64,
}

impl Cost {
    /// A cost of multiply-adds only.
    pub fn macs(macs: usize) -> Cost {
        Cost {
            macs: macs as u64,
            elements: 0,
        }
    }

    /// A cost of as many element operations as the outputs have elements.
    ///
    /// # Errors
    /// If a shape is symbolic.
    pub fn elementwise(outputs: &[TensorType]) -> Result<Cost> {
        let mut elements = 0;
        for ty in outputs {
            elements += ty.shape.len()? as u64;
        }
        Ok(Cost { macs: 0, elements })
    }
}

/// Which side of a node an axis belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// The node's input of that index.
    Input(usize),
    /// The node's output of that index.
    Output(usize),
}

/// How the indices of one axis correspond to those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexMap {
    /// Index `i` is index `i`; both axes have the same size.
    Same,
    /// Index `i` of the first is index `i + offset` of the second (concat, slice, pad, split).
    Offset(usize),
    /// Index `i` of the first (size `n`) is every index `j` of the second with
    /// `(j / inner) % n == i`: the first axis is merged into the second between `outer` slower
    /// and `inner` faster axes (reshape, grouped convolution, tile).
    Merge {
        /// Product of the faster axes.
        inner: usize,
    },
    /// Indices that are equal modulo this number go together; the axis may be linked to itself
    /// (positions within the groups of a grouped convolution).
    Modulo(usize),
}

/// Two axes whose entries live and die together: removing an entry of one removes the
/// corresponding entries of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AxisLink {
    /// The first axis.
    pub a: (Port, usize),
    /// The second axis.
    pub b: (Port, usize),
    /// From indices of `a` to indices of `b`.
    pub map: IndexMap,
}

/// How the axes of an op's inputs and outputs hang together; what structured pruning follows.
///
/// An axis of an input or output that appears in no link, is not [free](AxisRules::free) and not
/// [blocked](AxisRules::block) is an error in the rule: `verify` in debug builds checks it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AxisRules {
    /// Linked axes.
    pub links: Vec<AxisLink>,
    /// Axes of which no entry may be removed, because the op mixes or counts its entries
    /// (softmax, layer norm, mean).
    pub blocked: Vec<(Port, usize)>,
    /// Axes of which any entry may go without a trace elsewhere (the summed axis of a weight).
    pub free: Vec<(Port, usize)>,
}

impl AxisRules {
    /// No rules yet.
    pub fn new() -> AxisRules {
        AxisRules::default()
    }

    /// Links two axes index by index.
    pub fn same(&mut self, a: (Port, usize), b: (Port, usize)) {
        self.link(a, b, IndexMap::Same);
    }

    /// Links two axes through an index map.
    pub fn link(&mut self, a: (Port, usize), b: (Port, usize), map: IndexMap) {
        self.links.push(AxisLink { a, b, map });
    }

    /// Marks an axis as one of which nothing may be removed.
    pub fn block(&mut self, axis: (Port, usize)) {
        self.blocked.push(axis);
    }

    /// Marks every axis of a port as one of which nothing may be removed.
    pub fn block_all(&mut self, port: Port, rank: usize) {
        self.blocked.extend((0..rank).map(|a| (port, a)));
    }

    /// Marks an axis as free.
    pub fn free(&mut self, axis: (Port, usize)) {
        self.free.push(axis);
    }

    /// Rules of an element-wise op: each axis of each (broadcast) input is the output axis it
    /// lines up with; broadcast axes of size 1 are free.
    pub fn broadcast(inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for (o, out) in outputs.iter().enumerate() {
            for (i, input) in inputs.iter().enumerate() {
                let lead = out.rank() - input.rank();
                for axis in 0..input.rank() {
                    let (a, b) = ((Port::Input(i), axis), (Port::Output(o), lead + axis));
                    if input.shape[axis] == out.shape[lead + axis] {
                        rules.same(a, b);
                    } else {
                        rules.free(a);
                    }
                }
            }
        }
        rules
    }

    /// Fails unless every axis of every input and output is linked, blocked or free, and every
    /// axis named exists; [`Graph::verify`](crate::Graph::verify) calls it in debug builds.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidGraph`](crate::ErrorKind::InvalidGraph), naming the axis.
    pub fn check(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Result<()> {
        let bad = |m: String| Error::new(crate::ErrorKind::InvalidGraph, m);
        let dim = |(port, axis): (Port, usize)| {
            let ty = match port {
                Port::Input(i) => inputs.get(i),
                Port::Output(o) => outputs.get(o),
            };
            ty.and_then(|ty| ty.shape.dims().get(axis))
                .ok_or_else(|| bad(format!("an axis rule names {port:?} axis {axis}")))
        };
        let mut seen = std::collections::HashSet::new();
        for link in &self.links {
            let (a, b) = (dim(link.a)?, dim(link.b)?);
            if link.map == IndexMap::Same && a != b {
                return Err(bad(format!(
                    "an axis rule links {:?} of size {a} to {:?} of size {b}",
                    link.a, link.b
                )));
            }
            seen.extend([link.a, link.b]);
        }
        for &axis in self.blocked.iter().chain(&self.free) {
            dim(axis)?;
            seen.insert(axis);
        }
        let inputs = inputs.iter().enumerate().map(|(i, t)| (Port::Input(i), t));
        let outputs = outputs
            .iter()
            .enumerate()
            .map(|(o, t)| (Port::Output(o), t));
        for (port, ty) in inputs.chain(outputs) {
            if let Some(axis) = (0..ty.rank()).find(|&a| !seen.contains(&(port, a))) {
                return Err(bad(format!("no axis rule for {port:?} axis {axis}")));
            }
        }
        Ok(())
    }

    /// Rules of an op of which nothing may be removed anywhere.
    pub fn blocked(inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules {
        let mut rules = AxisRules::new();
        for (i, ty) in inputs.iter().enumerate() {
            rules.block_all(Port::Input(i), ty.rank());
        }
        for (o, ty) in outputs.iter().enumerate() {
            rules.block_all(Port::Output(o), ty.rank());
        }
        rules
    }
}

/// The sides of a node after a shrink, from which an op corrects its attributes.
#[derive(Debug)]
pub struct ShrinkCx<'a> {
    /// The types of the inputs before.
    pub old_inputs: &'a [TensorType],
    /// The types of the outputs before.
    pub old_outputs: &'a [TensorType],
    /// The types of the inputs after.
    pub new_inputs: &'a [TensorType],
    /// The shapes that the outputs must have after.
    pub new_outputs: &'a [TensorType],
    /// The indices kept of each axis of which some were removed.
    pub kept: &'a std::collections::BTreeMap<(Port, usize), Vec<usize>>,
}

/// What a gradient rule works with: the node's values, the incoming gradients, and the builder
/// that the new nodes go to.
#[derive(Debug)]
pub struct Vjp<'a> {
    /// Where to add nodes.
    pub b: &'a mut GraphBuilder,
    /// The node's inputs.
    pub inputs: &'a [ValueId],
    /// The node's outputs.
    pub outputs: &'a [ValueId],
    /// The gradient of the loss by each output; `None` where the loss does not depend on it.
    pub grads: &'a [Option<ValueId>],
    /// Which inputs a gradient is asked for; a rule may skip the work for the others.
    pub wanted: &'a [bool],
}

impl Vjp<'_> {
    /// The gradient by the first output.
    ///
    /// # Errors
    /// If the loss does not depend on it (only multi-output ops can see that).
    pub fn grad(&self) -> Result<ValueId> {
        self.grads
            .first()
            .copied()
            .flatten()
            .ok_or_else(|| Error::invalid("no gradient arrives at the first output"))
    }

    /// The type of an input.
    pub fn input_type(&self, index: usize) -> TensorType {
        self.b.type_of(self.inputs[index]).clone()
    }
}

/// A gradient for each input, in order; `None` where there is none (integer inputs, or not
/// [wanted](Vjp::wanted)). A gradient may still have the broadcast shape of the output: the
/// driver sums it to the input's shape, in one place.
pub type InputGrads = Vec<Option<ValueId>>;

/// The rules of an op. Each op is a struct of its attributes that implements this; there are no
/// defaults for what a pass relies on, so that a missing rule does not compile.
pub trait OpRules {
    /// The types of the outputs from those of the inputs.
    ///
    /// # Errors
    /// If the number of inputs, a dtype or a shape is not what the op takes; the message says
    /// what was expected and found.
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>>;

    /// Adds the nodes that compute the gradients by the inputs.
    ///
    /// # Errors
    /// [`ErrorKind::NoGradient`](crate::ErrorKind::NoGradient) if the op has none.
    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<InputGrads>;

    /// How the axes of inputs and outputs hang together.
    fn axes(&self, inputs: &[TensorType], outputs: &[TensorType]) -> AxisRules;

    /// Other rules that hold as well, each in the place of [`OpRules::axes`], where entries of one
    /// axis or of another may go but not of several at once. Where nothing may go by the first
    /// rules, the search for groups takes those that leave most entries free.
    fn axes_alternatives(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Vec<AxisRules> {
        let _ = (inputs, outputs);
        Vec::new()
    }

    /// What it costs.
    ///
    /// # Errors
    /// If a shape is symbolic.
    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Result<Cost>;

    /// The op with its attributes corrected after entries of its axes were removed; `None` where
    /// the attributes hold no sizes.
    ///
    /// # Errors
    /// If the op cannot be expressed for the new sizes.
    fn shrink(&self, cx: &ShrinkCx<'_>) -> Result<Option<super::Op>> {
        let _ = cx;
        Ok(None)
    }

    /// The op with the symbols in its attributes bound; `None` where it has none.
    ///
    /// # Errors
    /// If a size would be negative.
    fn bind(&self, bindings: &Bindings) -> Result<Option<super::Op>> {
        let _ = bindings;
        Ok(None)
    }

    /// Whether two runs on equal inputs give equal outputs, so that equal nodes may be merged
    /// and constants folded. Random sources return false.
    fn is_deterministic(&self) -> bool {
        true
    }
}

/// Fails unless the number of inputs is in a range.
pub(crate) fn arity(inputs: &[TensorType], range: std::ops::RangeInclusive<usize>) -> Result<()> {
    if range.contains(&inputs.len()) {
        return Ok(());
    }
    let expected = if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{} to {}", range.start(), range.end())
    };
    Err(Error::invalid(format!(
        "expected {expected} inputs, found {}",
        inputs.len()
    )))
}

/// Fails unless an input's dtype is a floating-point type.
pub(crate) fn float(ty: &TensorType, what: &str) -> Result<()> {
    if ty.dtype.is_float() {
        return Ok(());
    }
    Err(Error::dtype(format!(
        "{what} must be floating-point, found {ty}"
    )))
}

/// Fails unless an input has a dtype.
pub(crate) fn of_dtype(ty: &TensorType, dtype: DType, what: &str) -> Result<()> {
    if ty.dtype == dtype {
        return Ok(());
    }
    Err(Error::dtype(format!("{what} must be {dtype}, found {ty}")))
}

/// Fails unless two inputs have the same dtype.
pub(crate) fn same_dtype(a: &TensorType, b: &TensorType) -> Result<()> {
    if a.dtype == b.dtype {
        return Ok(());
    }
    Err(Error::dtype(format!(
        "inputs must have one dtype, found {a} and {b}; insert a cast"
    )))
}

/// Fails unless an axis is below the rank.
pub(crate) fn axis_in(axis: usize, rank: usize) -> Result<()> {
    if axis < rank {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "axis {axis} is out of range for rank {rank}"
    )))
}

/// The error of an op without a gradient.
pub(crate) fn no_gradient(op: &str, why: &str) -> Error {
    Error::new(
        crate::ErrorKind::NoGradient,
        format!("{op} has no gradient: {why}"),
    )
}
