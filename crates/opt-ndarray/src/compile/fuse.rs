//! Fusion: several nodes in one pass over memory.
//!
//! First a bias and functions of one operand move into the product or convolution before them.
//! Then element-wise steps of one shape that feed each other become one program; two of them
//! join unless a step outside would have to run between them. Expansions before element-wise
//! steps go, since those broadcast by themselves.

use std::collections::{BTreeSet, HashMap};

use opt_core::ops::Op;
use opt_core::{DType, Result};
use smallvec::SmallVec;

use super::plan::{Id, Ir, Kind, Step};
use crate::kernels::Extras;
use crate::kernels::elementwise::{Operand, Spec, SpecNode};

/// The most nodes of a program: beyond, its registers leave the first-level cache.
const NODES: usize = 48;

/// Fuses what can be.
pub(super) fn fuse(ir: &mut Ir) -> Result<()> {
    super::epilogue::epilogues(ir)?;
    skip_expansions(ir);
    programs(ir)
}

/// Element-wise steps broadcast what they read: they need no expanded operand.
fn skip_expansions(ir: &mut Ir) {
    let mut narrow: HashMap<Id, Id> = HashMap::new();
    for step in &mut ir.steps {
        match &step.kind {
            Kind::Op(Op::Expand(_)) => {
                narrow.insert(step.outputs[0], step.inputs[0]);
            }
            Kind::Op(Op::Unary(_) | Op::Binary(_) | Op::Where(_)) => {
                for v in &mut step.inputs {
                    *v = narrow.get(v).copied().unwrap_or(*v);
                }
            }
            _ => {}
        }
    }
    ir.remove_dead();
}

/// For each value the step that computes it.
pub(super) fn producers(ir: &Ir) -> HashMap<Id, usize> {
    let steps = ir.steps.iter().enumerate();
    steps
        .flat_map(|(i, s)| s.outputs.iter().map(move |&v| (v, i)))
        .collect()
}

/// Sets of steps that run as one.
struct Groups {
    /// The group of each step.
    of: Vec<usize>,
    members: Vec<Vec<usize>>,
    /// For each group the groups that it depends on, however indirectly.
    before: Vec<BitSet>,
    /// For each group the groups that it reads from.
    reads: Vec<BTreeSet<usize>>,
}

impl Groups {
    /// Whether two groups may run as one: no third has to run between them.
    fn can_merge(&self, a: usize, b: usize) -> bool {
        let between = |first: usize, second: usize| {
            self.reads[second]
                .iter()
                .any(|&q| q != first && q != second && self.before[q].contains(first))
        };
        !between(a, b) && !between(b, a)
    }

    /// Makes two groups one, which keeps the name of the first.
    fn merge(&mut self, a: usize, b: usize) {
        let members = std::mem::take(&mut self.members[b]);
        for &s in &members {
            self.of[s] = a;
        }
        self.members[a].extend(members);
        let reads = std::mem::take(&mut self.reads[b]);
        self.reads[a].extend(reads);
        self.reads[a].remove(&a);
        self.reads[a].remove(&b);
        let other = std::mem::take(&mut self.before[b]);
        self.before[a].extend(&other);
        self.before[a].remove(a);
        self.before[a].remove(b);
        let own = self.before[a].clone();
        for g in 0..self.members.len() {
            if self.before[g].remove(b) {
                self.before[g].insert(a);
            }
            if self.reads[g].remove(&b) {
                self.reads[g].insert(a);
            }
            if self.before[g].contains(a) {
                self.before[g].extend(&own);
            }
        }
    }
}

#[derive(Debug, Clone, Default)]
struct BitSet(Vec<u64>);

impl BitSet {
    fn insert(&mut self, i: usize) {
        if self.0.len() <= i / 64 {
            self.0.resize(i / 64 + 1, 0);
        }
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn contains(&self, i: usize) -> bool {
        self.0.get(i / 64).is_some_and(|w| w >> (i % 64) & 1 == 1)
    }

    fn remove(&mut self, i: usize) -> bool {
        let found = self.contains(i);
        if found {
            self.0[i / 64] &= !(1 << (i % 64));
        }
        found
    }

    fn extend(&mut self, other: &BitSet) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a |= b;
        }
    }
}

/// The float dtype of a step that a program can take: all its values are of that dtype or
/// boolean. Other steps run alone.
fn fusible(ir: &Ir, step: &Step) -> Option<DType> {
    let Kind::Op(Op::Unary(_) | Op::Binary(_) | Op::Where(_) | Op::Cast(_)) = &step.kind else {
        return None;
    };
    let mut dtype = DType::F32;
    for (i, &v) in step.inputs.iter().chain(&step.outputs).enumerate() {
        match ir.types[v].dtype {
            DType::Bool => {}
            DType::F64 if i == 0 || dtype == DType::F64 => dtype = DType::F64,
            DType::F64 if step.inputs.iter().all(|&v| ir.types[v].dtype != DType::F32) => {
                dtype = DType::F64;
            }
            DType::F32 if dtype == DType::F32 => {}
            _ => return None,
        }
    }
    Some(dtype)
}

/// Joins element-wise steps.
fn programs(ir: &mut Ir) -> Result<()> {
    let count = ir.steps.len();
    let producers = producers(ir);
    let kinds: Vec<Option<DType>> = ir.steps.iter().map(|s| fusible(ir, s)).collect();
    let mut groups = Groups {
        of: (0..count).collect(),
        members: (0..count).map(|i| vec![i]).collect(),
        before: vec![BitSet::default(); count],
        reads: vec![BTreeSet::new(); count],
    };
    for at in 0..count {
        let sources: SmallVec<[usize; 4]> = ir.steps[at]
            .inputs
            .iter()
            .filter_map(|&v| producers.get(&ir.alias[v]).copied())
            .collect();
        for &s in &sources {
            let g = groups.of[s];
            groups.reads[at].insert(g);
            groups.before[at].insert(g);
            let before = groups.before[g].clone();
            groups.before[at].extend(&before);
        }
        let Some(dtype) = kinds[at] else { continue };
        for i in 0..ir.steps[at].inputs.len() {
            let v = ir.steps[at].inputs[i];
            let Some(&source) = producers.get(&v) else {
                continue;
            };
            let (a, b) = (groups.of[source], groups.of[at]);
            let same = ir.types[v].shape == ir.types[ir.steps[at].outputs[0]].shape;
            // A group of booleans only has no dtype of its own, but counts as `f32`.
            let compatible = kinds[source] == Some(dtype);
            let small = groups.members[a].len() + groups.members[b].len() <= NODES;
            if a != b && same && compatible && small && groups.can_merge(a, b) {
                groups.merge(a, b);
            }
        }
    }
    rebuild(ir, groups, &producers)
}

/// Replaces the steps by one a group, in an order in which they can run.
fn rebuild(ir: &mut Ir, groups: Groups, producers: &HashMap<Id, usize>) -> Result<()> {
    let mut readers: HashMap<Id, BTreeSet<usize>> = HashMap::new();
    for (i, step) in ir.steps.iter().enumerate() {
        for &v in &step.inputs {
            readers.entry(ir.alias[v]).or_default().insert(groups.of[i]);
        }
    }
    let roots = ir.outputs.iter().chain(ir.assigns.iter().map(|a| &a.1));
    let kept: BTreeSet<Id> = roots.map(|&v| ir.alias[v]).collect();

    // Kahn's algorithm; of the groups that are ready the one whose last member came first.
    let key = |g: usize| groups.members[g].iter().max().copied().unwrap_or(0);
    let mut waiting: HashMap<usize, usize> = HashMap::new();
    let mut next: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut ready = BTreeSet::new();
    for (g, members) in groups.members.iter().enumerate() {
        if members.is_empty() {
            continue;
        }
        let sources: BTreeSet<usize> = members
            .iter()
            .flat_map(|&m| &ir.steps[m].inputs)
            .filter_map(|&v| producers.get(&ir.alias[v]).map(|&p| groups.of[p]))
            .filter(|&s| s != g)
            .collect();
        waiting.insert(g, sources.len());
        if sources.is_empty() {
            ready.insert((key(g), g));
        }
        for s in sources {
            next.entry(s).or_default().push(g);
        }
    }
    let mut steps = Vec::new();
    while let Some((_, g)) = ready.pop_first() {
        let mut members = groups.members[g].clone();
        members.sort_unstable();
        if let [single] = members[..] {
            steps.push(ir.steps[single].clone());
        } else {
            let leaves = |v: Id| {
                kept.contains(&v)
                    || readers
                        .get(&v)
                        .is_some_and(|gs| gs.iter().any(|&reader| reader != g))
            };
            steps.push(program(ir, &members, leaves)?);
        }
        for &n in next.get(&g).into_iter().flatten() {
            let left = waiting.get_mut(&n).expect("every group waits");
            *left -= 1;
            if *left == 0 {
                ready.insert((key(n), n));
            }
        }
    }
    ir.steps = steps;
    Ok(())
}

/// One step of several element-wise ones.
fn program(ir: &Ir, members: &[usize], leaves: impl Fn(Id) -> bool) -> Result<Step> {
    let mut own: HashMap<Id, usize> = HashMap::new();
    let mut inputs: Vec<Id> = Vec::new();
    let mut spec = Spec {
        shape: ir.types[ir.steps[members[0]].outputs[0]].shape.fixed()?,
        inputs: Vec::new(),
        nodes: Vec::new(),
        outputs: Vec::new(),
    };
    let mut outputs = Vec::new();
    let mut nodes = Vec::new();
    for (i, &m) in members.iter().enumerate() {
        let step = &ir.steps[m];
        let mut operands = SmallVec::new();
        for &v in &step.inputs {
            operands.push(match own.get(&v) {
                Some(&node) => Operand::Node(node),
                None => {
                    let at = inputs.iter().position(|&x| x == v).unwrap_or(inputs.len());
                    if at == inputs.len() {
                        inputs.push(v);
                        spec.inputs
                            .push((ir.types[v].dtype, ir.types[v].shape.fixed()?));
                    }
                    Operand::Input(at)
                }
            });
        }
        let Kind::Op(op) = &step.kind else {
            unreachable!("only ops are fusible")
        };
        let out = step.outputs[0];
        spec.nodes.push(SpecNode {
            op: op.clone(),
            operands,
            dtype: ir.types[out].dtype,
        });
        own.insert(out, i);
        if leaves(out) {
            spec.outputs.push(i);
            outputs.push(out);
        }
        nodes.extend(step.nodes.iter().cloned());
    }
    Ok(Step {
        kind: Kind::Fused(spec),
        inputs,
        outputs,
        epilogue: Vec::new(),
        extras: Extras::default(),
        nodes,
    })
}
