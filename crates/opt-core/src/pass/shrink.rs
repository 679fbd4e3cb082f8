//! Removing entries of axes: which hang together, and the surgery.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::ops::{AxisRules, IndexMap, Port, ShrinkCx};
use crate::{
    Dim, Error, ErrorKind, Fact, Graph, Node, Result, ResultExt, Tensor, TensorType, ValueId,
    ValueKind,
};

/// Entries of axes that live and die together: a set of (value, axis, index).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AxisGroup {
    /// For each value and axis the indices in the group.
    pub entries: BTreeMap<(ValueId, usize), Vec<usize>>,
    /// Whether an op, an input or an output of the graph holds the group in place.
    pub blocked: bool,
}

/// The groups of coupled entries of a graph: a union-find over (value, axis, index) along the
/// links that the ops declare ([`OpRules::axes`](crate::ops::OpRules::axes)); where
/// nothing may go by those, along its
/// [alternatives](crate::ops::OpRules::axes_alternatives).
#[derive(Debug, Clone)]
pub struct AxisGroups {
    groups: Vec<AxisGroup>,
}

struct Union {
    parent: Vec<u32>,
    blocked: Vec<bool>,
}

impl Union {
    fn find(&mut self, mut i: u32) -> u32 {
        while self.parent[i as usize] != i {
            let up = self.parent[self.parent[i as usize] as usize];
            self.parent[i as usize] = up;
            i = up;
        }
        i
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        if a != b {
            self.parent[b as usize] = a;
            self.blocked[a as usize] |= self.blocked[b as usize];
        }
    }

    fn block(&mut self, i: u32) {
        let root = self.find(i);
        self.blocked[root as usize] = true;
    }

    /// The number of entries that nothing holds.
    fn free(&mut self) -> usize {
        let all = 0..self.parent.len() as u32;
        all.filter(|&i| {
            let root = self.find(i);
            !self.blocked[root as usize]
        })
        .count()
    }
}

/// Where the entries of each axis stand in a union-find over all of them.
struct Places {
    /// The first entry, and how many there are.
    start: HashMap<(ValueId, usize), (u32, usize)>,
    total: u32,
}

impl Places {
    fn of(graph: &Graph) -> Result<Places> {
        let mut start = HashMap::new();
        let mut total = 0usize;
        for (id, value) in graph.values() {
            for (axis, dim) in value.ty().shape.dims().iter().enumerate() {
                if let Some(size) = dim.as_fixed() {
                    start.insert((id, axis), (total as u32, size));
                    total = total.saturating_add(size);
                }
            }
        }
        match u32::try_from(total) {
            Ok(total) => Ok(Places { start, total }),
            Err(_) => Err(Error::unsupported("a graph with over 2^32 entries of axes")),
        }
    }

    fn block(&self, union: &mut Union, place: (ValueId, usize)) {
        if let Some(&(at, size)) = self.start.get(&place) {
            (0..size as u32).for_each(|i| union.block(at + i));
        }
    }

    /// The entries joined by the rules of each node.
    fn union(&self, graph: &Graph, rules: &[AxisRules]) -> Union {
        let mut union = Union {
            parent: (0..self.total).collect(),
            blocked: vec![false; self.total as usize],
        };
        for ((_, node), rules) in graph.nodes().zip(rules) {
            let value = |(port, axis): (Port, usize)| match port {
                Port::Input(i) => (node.inputs()[i], axis),
                Port::Output(o) => (node.outputs()[o], axis),
            };
            for &place in &rules.blocked {
                self.block(&mut union, value(place));
            }
            for link in &rules.links {
                self.join(&mut union, value(link.a), value(link.b), link.map);
            }
        }
        for v in graph.inputs().iter().copied().chain(graph.outputs()) {
            for axis in 0..graph.type_of(v).rank() {
                self.block(&mut union, (v, axis));
            }
        }
        union
    }

    /// Whether any entry may go of the axes that a node splits or merges.
    fn may_go(&self, union: &mut Union, node: &Node, rules: &AxisRules) -> bool {
        let merged = rules.links.iter();
        let mut merged = merged.filter(|l| matches!(l.map, IndexMap::Merge { .. }));
        merged.any(|link| {
            let place = match link.a {
                (Port::Input(i), axis) => (node.inputs()[i], axis),
                (Port::Output(o), axis) => (node.outputs()[o], axis),
            };
            let (at, size) = self.start.get(&place).copied().unwrap_or_default();
            (at..at + size as u32).any(|i| {
                let root = union.find(i);
                !union.blocked[root as usize]
            })
        })
    }

    fn join(&self, union: &mut Union, a: (ValueId, usize), b: (ValueId, usize), map: IndexMap) {
        let (Some(&(at, n)), Some(&(to, m))) = (self.start.get(&a), self.start.get(&b)) else {
            // A symbolic side: nothing of the other may go.
            self.block(union, a);
            self.block(union, b);
            return;
        };
        match map {
            IndexMap::Same => {
                for i in 0..n.min(m) as u32 {
                    union.join(at + i, to + i);
                }
            }
            IndexMap::Offset(offset) => {
                for i in 0..n.min(m.saturating_sub(offset)) {
                    union.join(at + i as u32, to + (i + offset) as u32);
                }
            }
            IndexMap::Merge { inner } => {
                for j in 0..m {
                    let i = j / inner.max(1) % n.max(1);
                    union.join(at + i as u32, to + j as u32);
                }
            }
            IndexMap::Modulo(period) => {
                for j in 0..m {
                    union.join(at + (j % period.max(1)) as u32, to + j as u32);
                }
            }
        }
    }
}

impl AxisGroups {
    /// Finds the groups of a graph.
    ///
    /// Entries of symbolic axes belong to no group; those of the graph's inputs and outputs are
    /// blocked.
    ///
    /// # Errors
    /// If the graph has more than 2^32 entries of axes.
    pub fn of(graph: &Graph) -> Result<AxisGroups> {
        let places = Places::of(graph)?;
        let mut rules: Vec<AxisRules> = Vec::with_capacity(graph.nodes().count());
        let mut choices = Vec::new();
        for (_, node) in graph.nodes() {
            let types = |ids: &[ValueId]| -> Vec<TensorType> {
                ids.iter().map(|&v| graph.type_of(v).clone()).collect()
            };
            let (inputs, outputs) = (types(node.inputs()), types(node.outputs()));
            let of_op = node.op().rules();
            let others = of_op.axes_alternatives(&inputs, &outputs);
            if !others.is_empty() {
                choices.push((rules.len(), node, others));
            }
            rules.push(of_op.axes(&inputs, &outputs));
        }
        let mut union = places.union(graph, &rules);
        for (at, node, others) in choices {
            if places.may_go(&mut union, node, &rules[at]) {
                continue;
            }
            for other in others {
                let before = std::mem::replace(&mut rules[at], other);
                let mut found = places.union(graph, &rules);
                match found.free() > union.free() {
                    true => union = found,
                    false => rules[at] = before,
                }
            }
        }
        let start = places.start;
        let mut places: Vec<_> = start.into_iter().collect();
        places.sort_unstable_by_key(|(_, (at, _))| *at);
        let mut number: HashMap<u32, usize> = HashMap::new();
        let mut groups: Vec<AxisGroup> = Vec::new();
        for (place, (at, size)) in places {
            for i in 0..size {
                let root = union.find(at + i as u32);
                let g = *number.entry(root).or_insert_with(|| {
                    groups.push(AxisGroup {
                        entries: BTreeMap::new(),
                        blocked: union.blocked[root as usize],
                    });
                    groups.len() - 1
                });
                groups[g].entries.entry(place).or_default().push(i);
            }
        }
        Ok(AxisGroups { groups })
    }

    /// All groups.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &AxisGroup> {
        self.groups.iter()
    }

    /// The group of an entry.
    pub fn of_entry(&self, value: ValueId, axis: usize, index: usize) -> Option<&AxisGroup> {
        self.groups.iter().find(|g| {
            g.entries
                .get(&(value, axis))
                .is_some_and(|e| e.contains(&index))
        })
    }

    /// A group in words: each value's name, axis and indices.
    pub fn details(&self, graph: &Graph, group: &AxisGroup) -> String {
        let line = |((id, axis), indices): (&(ValueId, usize), &Vec<usize>)| {
            let name = graph.get(*id).map_or("?", |v| v.name());
            format!("{name} axis {axis}: {indices:?}")
        };
        group
            .entries
            .iter()
            .map(line)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Which indices stay, for each (value, axis) of which some go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AxisMap {
    kept: BTreeMap<(ValueId, usize), Vec<usize>>,
}

impl AxisMap {
    /// The map that removes groups from a graph.
    ///
    /// # Errors
    /// If a group is blocked, naming a value of it.
    pub fn removing<'a>(
        graph: &Graph,
        groups: impl IntoIterator<Item = &'a AxisGroup>,
    ) -> Result<AxisMap> {
        let mut gone: BTreeMap<(ValueId, usize), BTreeSet<usize>> = BTreeMap::new();
        for group in groups {
            if group.blocked {
                let place = group.entries.keys().next();
                let name = place.map_or("?", |(v, _)| graph.value(*v).name());
                return Err(Error::invalid(
                    "an op, an input or an output of the graph holds this channel in place",
                )
                .at(name.to_string()));
            }
            for (&place, indices) in &group.entries {
                gone.entry(place).or_default().extend(indices);
            }
        }
        let mut kept = BTreeMap::new();
        for ((value, axis), gone) in gone {
            let size = graph.type_of(value).shape[axis].fixed()?;
            let left: Vec<usize> = (0..size).filter(|i| !gone.contains(i)).collect();
            kept.insert((value, axis), left);
        }
        Ok(AxisMap { kept })
    }

    /// The indices that stay of an axis; `None` where all do.
    pub fn kept(&self, value: ValueId, axis: usize) -> Option<&[usize]> {
        self.kept.get(&(value, axis)).map(Vec::as_slice)
    }

    /// Whether nothing is removed.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// A tensor of a value's shape without what goes: the content itself, a mask, an optimizer's
    /// moment.
    ///
    /// # Errors
    /// If the tensor is smaller than the value was.
    pub fn slice(&self, value: ValueId, tensor: &Tensor) -> Result<Tensor> {
        let mut out = tensor.clone();
        for axis in 0..tensor.rank() {
            if let Some(kept) = self.kept(value, axis) {
                out = out.select(axis, kept)?;
            }
        }
        Ok(out)
    }

    fn ty(&self, value: ValueId, ty: &TensorType) -> TensorType {
        let mut out = ty.clone();
        for axis in 0..ty.rank() {
            if let Some(kept) = self.kept(value, axis) {
                out.shape.dims_mut()[axis] = Dim::from(kept.len());
            }
        }
        out
    }
}

/// Removes entries of axes everywhere: variables, constants and their facts are sliced, ops
/// correct their attributes, types are inferred again.
///
/// ```
/// use opt_core::nn::zoo;
/// use opt_core::pass::{AxisGroups, AxisMap, shrink};
///
/// let graph = zoo::lenet5([1, 28, 28], 10, 0)?;
/// let groups = AxisGroups::of(&graph)?;
/// // The first output channel of the second convolution, and what goes with it.
/// let weight = graph.find("conv2.weight")?;
/// let group = groups.of_entry(weight, 0, 0).expect("an entry of a fixed axis");
/// let small = shrink(&graph, &AxisMap::removing(&graph, [group])?)?;
///
/// let shape = |name: &str| small.find(name).map(|v| small.type_of(v).to_string());
/// assert_eq!(shape("conv2.weight")?, "f32[49,20,5,5]");
/// assert_eq!(shape("conv2.bias")?, "f32[49]");
/// // Its 4x4 pixels are columns of the next layer.
/// assert_eq!(shape("fc1.weight")?, "f32[500,784]");
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// If an axis would become empty, or an op cannot be expressed for what is left, at its node.
pub fn shrink(graph: &Graph, map: &AxisMap) -> Result<Graph> {
    if let Some(((value, axis), _)) = map.kept.iter().find(|(_, kept)| kept.is_empty()) {
        return Err(Error::invalid(format!("nothing is left of axis {axis}"))
            .at(graph.value(*value).name().to_string()));
    }
    let mut out = graph.clone();
    for (_, node) in graph.nodes() {
        let before = |ids: &[ValueId]| -> Vec<TensorType> {
            ids.iter().map(|&v| graph.type_of(v).clone()).collect()
        };
        let after = |ids: &[ValueId]| -> Vec<TensorType> {
            ids.iter().map(|&v| map.ty(v, graph.type_of(v))).collect()
        };
        let mut kept = BTreeMap::new();
        let ports = (0..node.inputs().len())
            .map(Port::Input)
            .zip(node.inputs())
            .chain(
                (0..node.outputs().len())
                    .map(Port::Output)
                    .zip(node.outputs()),
            );
        for (port, &v) in ports {
            for axis in 0..graph.type_of(v).rank() {
                if let Some(indices) = map.kept(v, axis) {
                    kept.insert((port, axis), indices.to_vec());
                }
            }
        }
        if kept.is_empty() {
            continue;
        }
        let cx = ShrinkCx {
            old_inputs: &before(node.inputs()),
            old_outputs: &before(node.outputs()),
            new_inputs: &after(node.inputs()),
            new_outputs: &after(node.outputs()),
            kept: &kept,
        };
        let op = node.op().rules().shrink(&cx).at(|| node.describe())?;
        if let Some(op) = op {
            out.set_op(node, op);
        }
    }
    let mut facts = Vec::new();
    for (id, value) in graph.values() {
        let (ValueKind::Constant(tensor) | ValueKind::Variable(tensor)) = value.kind() else {
            continue;
        };
        let sliced = map.slice(id, tensor)?;
        out.replace_content(id, sliced);
        for (_, fact) in graph.facts().iter().filter(|(v, _)| *v == id) {
            facts.push((id, sliced_fact(map, id, fact)?));
        }
    }
    for (id, fact) in facts {
        out.facts_mut().insert(id, fact);
    }
    out.infer_types()?;
    // What the ops infer has to be what the groups said; an op whose links are wrong shows here.
    for (id, value) in graph.values() {
        let (expected, found) = (map.ty(id, value.ty()), out.type_of(id));
        if expected != *found {
            return Err(Error::new(
                ErrorKind::InvalidGraph,
                format!("the shrunk value should be {expected}, its op gives {found}"),
            )
            .at(value.name().to_string()));
        }
    }
    out.verify()?;
    Ok(out)
}

fn sliced_fact(map: &AxisMap, id: ValueId, fact: &Fact) -> Result<Fact> {
    Ok(match fact {
        Fact::Mask(mask) => Fact::Mask(map.slice(id, mask)?),
        Fact::Grid {
            dtype,
            scale,
            zero_point,
            axis,
        } => {
            let select = |t: &Tensor| match axis.and_then(|a| map.kept(id, a)) {
                Some(kept) if t.rank() == 1 => t.select(0, kept),
                _ => Ok(t.clone()),
            };
            Fact::Grid {
                dtype: *dtype,
                scale: select(scale)?,
                zero_point: select(zero_point)?,
                axis: *axis,
            }
        }
        other => other.clone(),
    })
}
