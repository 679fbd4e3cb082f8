//! Which slot each result lives in: as few bytes as a greedy choice in running order gives.

use std::collections::{HashMap, HashSet};

use opt_core::ops::{Cost, Op};
use opt_core::{Result, Tensor};
use smallvec::SmallVec;

use super::plan::{Assignment, Id, Ir, Kind, Place, Plan, Planned, Port, Step};
use crate::kernels::{Extras, Kernel};

/// The slots while they are handed out.
#[derive(Default)]
struct Slots {
    bytes: Vec<usize>,
    free: Vec<usize>,
}

impl Slots {
    /// The smallest free slot that is large enough; else the largest one, grown; else a new one.
    fn take(&mut self, bytes: usize) -> usize {
        let fits = self
            .free
            .iter()
            .copied()
            .filter(|&s| self.bytes[s] >= bytes);
        let best = fits
            .min_by_key(|&s| self.bytes[s])
            .or_else(|| self.free.iter().copied().max_by_key(|&s| self.bytes[s]));
        let Some(slot) = best else {
            self.bytes.push(bytes);
            return self.bytes.len() - 1;
        };
        self.free.retain(|&s| s != slot);
        self.bytes[slot] = self.bytes[slot].max(bytes);
        slot
    }

    /// A slot of exactly this size.
    fn take_exact(&mut self, bytes: usize) -> usize {
        match self.free.iter().position(|&s| self.bytes[s] == bytes) {
            Some(at) => self.free.swap_remove(at),
            None => {
                self.bytes.push(bytes);
                self.bytes.len() - 1
            }
        }
    }
}

/// Assignments take their value from a slot, and from no other variable's slot: a value that no
/// step computes is copied by a step of its own.
fn copy_assigned(ir: &mut Ir) {
    let computed: Vec<bool> = {
        let mut computed = vec![false; ir.types.len()];
        for &v in ir.steps.iter().flat_map(|s| &s.outputs) {
            computed[v] = true;
        }
        computed
    };
    for i in 0..ir.assigns.len() {
        let source = ir.assigns[i].1;
        if computed[ir.alias[source]] {
            continue;
        }
        let copy = ir.add_value(ir.types[source].clone());
        ir.steps.push(Step {
            kind: Kind::Copy,
            inputs: vec![source],
            outputs: vec![copy],
            epilogue: Vec::new(),
            extras: Extras::default(),
            nodes: Vec::new(),
        });
        ir.assigns[i].1 = copy;
    }
}

/// Moves the steps to the end that cannot fail and that only assignments and outputs need: they
/// may then write over the variables, since nothing that could fail comes after. Returns how many
/// steps come before them.
fn sink_updates(ir: &mut Ir) -> usize {
    let mut early = vec![false; ir.types.len()];
    let mut last = vec![false; ir.steps.len()];
    for (i, step) in ir.steps.iter().enumerate().rev() {
        let cannot_fail = match &step.kind {
            Kind::Fused(_) => true,
            Kind::Op(op) => matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Where(_)),
            _ => false,
        };
        last[i] = cannot_fail && !step.outputs.iter().any(|&v| early[v]);
        if !last[i] {
            for &v in &step.inputs {
                early[ir.alias[v]] = true;
            }
        }
    }
    let steps = std::mem::take(&mut ir.steps).into_iter().zip(last);
    let (first, last): (Vec<_>, Vec<_>) = steps.partition(|(_, last)| !last);
    let count = first.len();
    ir.steps = first
        .into_iter()
        .chain(last)
        .map(|(step, _)| step)
        .collect();
    count
}

/// For values that one variable is assigned, and nothing else, the number of that variable.
fn targets(ir: &Ir) -> HashMap<Id, usize> {
    let mut targets: HashMap<Id, Option<usize>> = HashMap::new();
    for &(target, source) in &ir.assigns {
        let variable = ir.variables.iter().position(|x| x.id.index() == target);
        targets
            .entry(ir.alias[source])
            .and_modify(|known| *known = None)
            .or_insert(variable);
    }
    targets
        .into_iter()
        .filter_map(|(v, variable)| Some((v, variable?)))
        .collect()
}

/// Compiles the steps and gives every value its place; `costs` are those of the graph's nodes.
pub(super) fn plan(mut ir: Ir, threads: usize, costs: &HashMap<String, Cost>) -> Result<Plan> {
    copy_assigned(&mut ir);
    let sunk = sink_updates(&mut ir);
    let targets = targets(&ir);
    let mut last_use: HashMap<Id, usize> = HashMap::new();
    for (i, step) in ir.steps.iter().enumerate() {
        for &v in &step.inputs {
            last_use.insert(ir.alias[v], i);
        }
    }
    for &v in ir.outputs.iter().chain(ir.assigns.iter().map(|a| &a.1)) {
        last_use.insert(ir.alias[v], usize::MAX);
    }
    // Values whose slot may change places with the buffer of a variable or of an output.
    let assigned = ir.assigns.iter().map(|a| &a.1);
    let exact: HashSet<Id> = ir
        .outputs
        .iter()
        .chain(assigned)
        .map(|&v| ir.alias[v])
        .collect();

    let mut places: HashMap<Id, Place> = HashMap::new();
    for (i, (v, _)) in ir.inputs.iter().enumerate() {
        places.insert(*v, Place::Input(i));
    }
    for (i, variable) in ir.variables.iter().enumerate() {
        places.insert(variable.id.index(), Place::Variable(i));
    }
    let mut constants: Vec<Tensor> = Vec::new();
    let mut slots = Slots::default();
    let mut scratch = 0;
    let mut planned = Vec::with_capacity(ir.steps.len());
    for (at, step) in std::mem::take(&mut ir.steps).into_iter().enumerate() {
        let constant = |v| ir.constant(v).or_else(|| ir.frozen(v));
        let mut kernel = step.compile(&ir.types, constant, threads)?;
        let mut args = Vec::with_capacity(step.inputs.len());
        let mut packs = Vec::new();
        for &v in &step.inputs {
            let root = ir.alias[v];
            let place = *places.entry(root).or_insert_with(|| {
                constants.push(ir.constants[&root].clone());
                Place::Constant(constants.len() - 1)
            });
            if let Place::Variable(i) = place
                && !ir.variables[i].assigned
            {
                packs.push(i);
            }
            args.push(Port::new(place, &ir.types[v])?);
        }
        let reads = bytes_read(&step, &args);
        let mut outs = Vec::with_capacity(step.outputs.len());
        for &v in &step.outputs {
            outs.push(Port::new(Place::Given, &ir.types[v])?);
        }
        let given = in_place(&*kernel, &args, &outs, |i, o| {
            let last = last_use.get(&ir.alias[step.inputs[i]]) == Some(&at);
            let part = ir.parts.contains_key(&step.outputs[o]);
            last && !part
                && match args[i].place {
                    Place::Slot(_) => true,
                    // Over a variable only what it is assigned anyway.
                    Place::Variable(x) => at >= sunk && targets.get(&step.outputs[o]) == Some(&x),
                    _ => false,
                }
        });
        kernel.give(&given);
        for (o, &v) in step.outputs.iter().enumerate() {
            let over = given
                .iter()
                .find(|(_, out)| *out == o)
                .map(|&(i, _)| args[i].place);
            outs[o].place = match over {
                Some(place) => place,
                None if ir.parts.contains_key(&v) => {
                    let (whole, offset) = ir.parts[&v];
                    outs[o].offset = offset;
                    match places.get(&whole) {
                        Some(&place) => place,
                        None => {
                            let ty = &ir.types[whole];
                            let bytes = ty.dtype.bytes(ty.shape.len()?);
                            let place = Place::Slot(match exact.contains(&whole) {
                                true => slots.take_exact(bytes),
                                false => slots.take(bytes),
                            });
                            places.insert(whole, place);
                            place
                        }
                    }
                }
                None if exact.contains(&v) => Place::Slot(slots.take_exact(outs[o].bytes)),
                None => Place::Slot(slots.take(outs[o].bytes)),
            };
            places.insert(v, outs[o].place);
        }
        for &(i, _) in &given {
            args[i].place = Place::Given;
        }
        for &v in &step.inputs {
            let root = ir.alias[v];
            let is_given = given.iter().any(|&(i, _)| ir.alias[step.inputs[i]] == root);
            if let (Some(&Place::Slot(slot)), Some(&last)) =
                (places.get(&root), last_use.get(&root))
                && last == at
                && !is_given
                && !slots.free.contains(&slot)
            {
                slots.free.push(slot);
            }
        }
        for &v in &step.outputs {
            // An output that nothing reads.
            let part = ir.parts.contains_key(&v);
            if let (None, false, Place::Slot(slot)) = (last_use.get(&v), part, places[&v]) {
                slots.free.push(slot);
            }
        }
        scratch = scratch.max(kernel.scratch());
        let mut cost = Cost::default();
        for node in step.nodes.iter().filter_map(|name| costs.get(name)) {
            cost.macs = cost.macs.saturating_add(node.macs);
            cost.elements = cost.elements.saturating_add(node.elements);
        }
        planned.push(Planned {
            scratch: kernel.scratch(),
            kernel,
            reads,
            cost,
            args,
            outs,
            step,
            packs,
            given,
        });
    }

    let mut place_of = |v: Id, constants: &mut Vec<Tensor>| {
        let root = ir.alias[v];
        *places.entry(root).or_insert_with(|| {
            constants.push(ir.constants[&root].clone());
            Place::Constant(constants.len() - 1)
        })
    };
    let mut outputs = Vec::new();
    for &v in &ir.outputs {
        let place = place_of(v, &mut constants);
        outputs.push(Port::new(place, &ir.types[v])?);
    }
    let mut inputs = Vec::new();
    for (i, (v, name)) in ir.inputs.iter().enumerate() {
        inputs.push((name.clone(), Port::new(Place::Input(i), &ir.types[*v])?));
    }
    let mut assignments: Vec<Assignment> = Vec::new();
    for &(target, source) in &ir.assigns {
        let (variable, slot) = match (
            place_of(target, &mut constants),
            place_of(source, &mut constants),
        ) {
            (Place::Variable(variable), Place::Slot(slot)) => (variable, slot),
            // Written in place.
            (Place::Variable(a), Place::Variable(b)) if a == b => continue,
            _ => unreachable!("`copy_assigned` has put assigned values into slots"),
        };
        let same_size = slots.bytes[slot] == ir.variables[variable].content.size_in_bytes();
        let taken = assignments.iter().any(|a| a.slot == slot && a.swap);
        assignments.push(Assignment {
            variable,
            slot,
            swap: same_size && !taken,
        });
    }
    assignments.sort_by_key(|a| a.swap);
    let handed = |port: &Port| match port.place {
        Place::Slot(slot) => {
            let alone = outputs.iter().filter(|o| o.place == port.place).count() == 1;
            let assigned = assignments.iter().any(|a| a.slot == slot);
            (alone && !assigned && slots.bytes[slot] == port.bytes).then_some(slot)
        }
        _ => None,
    };
    Ok(Plan {
        handed: outputs.iter().map(handed).collect(),
        types: ir.types,
        steps: planned,
        inputs,
        outputs,
        constants,
        variables: ir.variables,
        assignments,
        slots: slots.bytes,
        scratch,
        threads,
    })
}

/// The bytes of what a step reads, each operand once however often it is read.
fn bytes_read(step: &Step, args: &[Port]) -> u64 {
    let held = match &step.kind {
        Kind::Lowered(lowered) => lowered.bytes(),
        _ => 0,
    };
    let once =
        |&(i, port): &(usize, &Port)| args[..i].iter().all(|other| other.place != port.place);
    let operands = args.iter().enumerate().filter(once);
    operands
        .map(|(_, port)| port.bytes)
        .fold(held, usize::saturating_add) as u64
}

/// The inputs that are given up for outputs: that `may` be, read by no other operand, of the
/// output's size.
fn in_place(
    kernel: &dyn Kernel,
    args: &[Port],
    outs: &[Port],
    may: impl Fn(usize, usize) -> bool,
) -> Vec<(usize, usize)> {
    let mut given: Vec<(usize, usize)> = Vec::new();
    // What a variable is assigned goes there first, whatever else could.
    let mut pairs: SmallVec<[(usize, usize); 8]> = kernel.in_place().iter().copied().collect();
    pairs.sort_by_key(|&(i, _)| !matches!(args[i].place, Place::Variable(_)));
    for (i, o) in pairs {
        let fits = args[i].bytes == outs[o].bytes;
        let alone = args.iter().filter(|a| a.place == args[i].place).count() == 1;
        let free = given.iter().all(|&(a, b)| a != i && b != o);
        if fits && alone && free && may(i, o) {
            given.push((i, o));
        }
    }
    given
}
