//! Gradients of one op, gathered from the nodes that its rule wrote.

use std::collections::{HashMap, HashSet};

use opt_core::ops::UnaryOp;
use opt_core::{DType, Op, Result, TensorType};

use super::Fused;
use crate::compile::ir::{Ir, Kind, Step, Value};
use crate::compile::template::{Found, Index, Template};

/// What is to be done to a graph: a backward step.
struct Change {
    backward: Backward,
    /// Another forward step, whose new results the backward step reads too.
    recorded: Option<Recorded>,
}

/// A forward step that gives results beside its own.
struct Recorded {
    forward: usize,
    kind: Kind,
    /// How many results are new.
    extra: usize,
}

impl From<Backward> for Change {
    fn from(backward: Backward) -> Change {
        Change {
            backward,
            recorded: None,
        }
    }
}

/// A backward step.
struct Backward {
    kind: Kind,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// The step whose place and name it takes.
    at: usize,
}

/// Whether libtorch has the gradient of an activation, and whether from the output.
fn activation(op: UnaryOp) -> Option<bool> {
    match op {
        UnaryOp::Relu | UnaryOp::Sigmoid | UnaryOp::Tanh => Some(true),
        UnaryOp::LeakyRelu { .. }
        | UnaryOp::Elu { .. }
        | UnaryOp::Selu
        | UnaryOp::Gelu { .. }
        | UnaryOp::Silu
        | UnaryOp::HardSwish
        | UnaryOp::Mish
        | UnaryOp::Softplus => Some(false),
        _ => None,
    }
}

/// Whether a template is worth looking for.
fn has_backward(op: &Op) -> bool {
    match op {
        Op::Unary(op) => activation(op.op).is_some(),
        Op::Softmax(_)
        | Op::LogSoftmax(_)
        | Op::SoftmaxCrossEntropy(_)
        | Op::Conv(_)
        | Op::LayerNorm(_)
        | Op::Attention(_) => true,
        _ => false,
    }
}

pub(super) fn fuse(ir: &mut Ir) -> Result<()> {
    let changes = find(ir)?;
    let mut removed: HashSet<Value> = HashSet::new();
    let mut added: Vec<Step> = Vec::new();
    let filler = TensorType::new(DType::F32, [0]);
    for change in changes {
        let mut backward = change.backward;
        if let Some(recorded) = change.recorded {
            let new = (0..recorded.extra).map(|_| ir.value(filler.clone()));
            let new: Vec<Value> = new.collect();
            backward.inputs.extend(&new);
            let forward = &mut ir.steps[recorded.forward];
            forward.kind = recorded.kind;
            forward.outputs.extend(&new);
        }
        removed.extend(&backward.outputs);
        added.push(Step {
            kind: backward.kind,
            inputs: std::mem::take(&mut backward.inputs),
            outputs: backward.outputs,
            nodes: ir.steps[backward.at].nodes.clone(),
        });
    }
    ir.steps
        .retain(|s| !s.outputs.iter().any(|v| removed.contains(v)));
    ir.steps.extend(added);
    ir.remove_dead_unsorted()?;
    Ok(())
}

fn find(ir: &Ir) -> Result<Vec<Change>> {
    let index = Index::new(ir);
    let mut templates: HashMap<String, Option<Template>> = HashMap::new();
    let mut changes = Vec::new();
    let mut claimed: HashSet<Value> = HashSet::new();
    for (i, step) in ir.steps.iter().enumerate() {
        let Some(op) = step.op() else { continue };
        if let Some(change) = of_node(ir, &index, i, op) {
            changes.push(change);
            continue;
        }
        if !has_backward(op) {
            continue;
        }
        let types: Vec<TensorType> = step.inputs.iter().map(|&v| ir.types[v].clone()).collect();
        let key = format!("{op:?} {types:?}");
        let template = match templates.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Template::of(op, &types)?)
            }
        };
        let Some(found) = template.as_ref().and_then(|t| t.find(&index, step)) else {
            continue;
        };
        let leaving: Vec<Value> = found.leaving.iter().flatten().copied().collect();
        // Each value is given by one step; two places cannot both give it.
        let whole = leaving.iter().all(|&v| {
            !claimed.contains(&v)
                && index
                    .producer(v)
                    .is_some_and(|s| s.outputs.iter().all(|o| leaving.contains(o)))
        });
        if !whole {
            continue;
        }
        if let Some(change) = change(ir, i, op, &found) {
            claimed.extend(&leaving);
            changes.push(change);
        }
    }
    Ok(changes)
}

fn change(ir: &Ir, i: usize, op: &Op, found: &Found) -> Option<Change> {
    let step = &ir.steps[i];
    let (x, y) = (step.inputs[0], step.outputs[0]);
    let backward = |kind: Fused, inputs: Vec<Value>| Backward {
        kind: Kind::Fused(kind),
        inputs,
        outputs: found.leaving.iter().flatten().copied().collect(),
        at: i,
    };
    let g = found.arriving;
    let wanted = |n: usize| found.leaving.get(n).copied().flatten().is_some();
    let three = [wanted(0), wanted(1), wanted(2)];
    Some(match op {
        Op::Unary(unary) => {
            let kept = if activation(unary.op)? { y } else { x };
            backward(Fused::ActivationGrad(unary.op), vec![g, kept]).into()
        }
        Op::Softmax(op) => {
            let fused = Fused::SoftmaxGrad {
                axis: op.axis,
                log: false,
            };
            backward(fused, vec![g, y]).into()
        }
        Op::LogSoftmax(op) => {
            let fused = Fused::SoftmaxGrad {
                axis: op.axis,
                log: true,
            };
            backward(fused, vec![g, y]).into()
        }
        Op::SoftmaxCrossEntropy(_) => Change {
            backward: backward(Fused::CrossEntropyGrad, vec![g, step.inputs[1]]),
            recorded: Some(Recorded {
                forward: i,
                kind: Kind::Fused(Fused::CrossEntropy),
                extra: 1,
            }),
        },
        Op::Conv(op) => {
            let fused = Fused::ConvGrad {
                op: op.clone(),
                wanted: three,
            };
            backward(fused, vec![g, x, step.inputs[1]]).into()
        }
        Op::LayerNorm(op) => Change {
            backward: backward(
                Fused::LayerNormGrad {
                    op: op.clone(),
                    wanted: three,
                },
                vec![g, x, step.inputs[1]],
            ),
            recorded: Some(Recorded {
                forward: i,
                kind: step.kind.clone(),
                extra: 2,
            }),
        },
        // All three gradients come at once, and a mask's does not come at all.
        Op::Attention(op) if three == [true; 3] && !wanted(3) => Change {
            backward: backward(Fused::AttentionGrad(op.clone()), vec![g]),
            recorded: Some(Recorded {
                forward: i,
                kind: Kind::Fused(Fused::Attention(op.clone())),
                extra: 4,
            }),
        },
        _ => return None,
    })
}

/// Gradients that are nodes of their own, and read what the forward could have kept.
fn of_node(ir: &Ir, index: &Index<'_>, i: usize, op: &Op) -> Option<Change> {
    if !matches!(op, Op::MaxPool(_) | Op::Lstm(_) | Op::Gru(_)) {
        return None;
    }
    let forward = &ir.steps[i];
    let readers = index.consumers(forward.inputs[0]).iter();
    let mut readers = readers.filter(|(_, slot)| *slot == 0).map(|&(s, _)| s);
    // A network's gradient reads first what the network reads.
    let same = |s: usize| ir.steps[s].inputs.starts_with(&forward.inputs);
    match op {
        Op::MaxPool(pool) => {
            let at = readers.find(
                |&s| matches!(ir.steps[s].op(), Some(Op::MaxPoolGrad(op)) if op.pool == *pool),
            )?;
            let step = &ir.steps[at];
            Some(Change {
                backward: Backward {
                    kind: step.kind.clone(),
                    inputs: step.inputs.clone(),
                    outputs: step.outputs.clone(),
                    at,
                },
                recorded: Some(Recorded {
                    forward: i,
                    kind: Kind::Fused(Fused::MaxPoolIndices(pool.clone())),
                    extra: 1,
                }),
            })
        }
        Op::Lstm(op) => {
            let at = readers.find(|&s| {
                matches!(ir.steps[s].op(), Some(Op::LstmGrad(g)) if g.lstm == *op) && same(s)
            })?;
            let fused = (Fused::Lstm(op.clone()), Fused::LstmGrad(op.clone()));
            Some(network(ir, i, at, fused))
        }
        Op::Gru(op) if op.linear_before_reset => {
            let at = readers.find(|&s| {
                matches!(ir.steps[s].op(), Some(Op::GruGrad(g)) if g.gru == *op) && same(s)
            })?;
            let fused = (Fused::Gru(op.clone()), Fused::GruGrad(op.clone()));
            Some(network(ir, i, at, fused))
        }
        _ => None,
    }
}

/// The change for a recurrent network at `forward` whose gradient is the step `at`, to steps that
/// are recorded and read what was.
fn network(ir: &Ir, forward: usize, at: usize, (kind, grad): (Fused, Fused)) -> Change {
    let step = &ir.steps[at];
    let (n, outputs) = (
        ir.steps[forward].inputs.len(),
        ir.steps[forward].outputs.len(),
    );
    Change {
        backward: Backward {
            kind: Kind::Fused(grad),
            inputs: step.inputs[n..].to_vec(),
            outputs: step.outputs.clone(),
            at,
        },
        recorded: Some(Recorded {
            forward,
            kind: Kind::Fused(kind),
            extra: outputs + n,
        }),
    }
}
