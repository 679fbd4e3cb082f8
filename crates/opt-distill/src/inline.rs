//! Putting a whole model into a training graph, on the inputs of another.

use std::collections::{BTreeMap, HashMap, HashSet};

use opt_core::graph::Inlined;
use opt_core::ops::{Expand, GatherGrad, Iota, Op, Random, Reshape, Sizes, SliceGrad};
use opt_core::{
    Dim, Error, Graph, GraphBuilder, Result, ResultExt, Shape, SizeExpr, SizeFactor, Symbol,
    ValueId, ValueKind,
};

/// What the symbols of an inlined graph are in the graph around it.
type Symbols = BTreeMap<Symbol, Dim>;

/// Adds a model on the given inputs, under a scope, and returns where its values are.
///
/// Inputs are matched by their names if all of the model's have one of the given, else by their
/// order. A symbol of the model, such as the batch size, becomes the given input's dimension.
pub(crate) fn inline(
    b: &mut GraphBuilder,
    model: &Graph,
    inputs: &[ValueId],
    scope: &str,
    variables: Inlined,
) -> Result<HashMap<ValueId, ValueId>> {
    let (mut map, symbols) = matched(b, model, inputs)?;
    b.scope(scope, |b| {
        for (id, value) in model.values() {
            let new = match value.kind() {
                ValueKind::Constant(t) => b.named_constant(value.name(), t.clone()),
                ValueKind::Variable(t) if variables == Inlined::Variables => {
                    let new = b.variable(value.name(), t.clone())?;
                    for (_, fact) in model.facts().iter().filter(|(v, _)| *v == id) {
                        b.graph_mut().facts_mut().insert(new, fact.clone());
                    }
                    new
                }
                ValueKind::Variable(t) => b.named_constant(value.name(), t.clone()),
                _ => continue,
            };
            map.insert(id, new);
        }
        for (_, node) in model.nodes() {
            let inputs: Vec<ValueId> = node.inputs().iter().map(|v| map[v]).collect();
            let op = renamed(node.op(), &symbols)?;
            let outputs = b
                .named_node(node.name(), op, &inputs)
                .at(|| node.name().to_string())?;
            map.extend(node.outputs().iter().copied().zip(outputs));
        }
        Ok(())
    })?;
    Ok(map)
}

/// The given input for each of the model's, and what its symbols stand for.
fn matched(
    b: &GraphBuilder,
    model: &Graph,
    given: &[ValueId],
) -> Result<(HashMap<ValueId, ValueId>, Symbols)> {
    let own = model.inputs();
    let name = |&v: &ValueId| model.value(v).name();
    if own.len() != given.len() {
        let names = |list: &[&str]| list.join("`, `");
        let (a, b): (Vec<_>, Vec<_>) = (
            own.iter().map(name).collect(),
            given.iter().map(|&v| b.graph().value(v).name()).collect(),
        );
        return Err(Error::invalid(format!(
            "`{}` takes {} inputs (`{}`), {} were given (`{}`)",
            model.name(),
            own.len(),
            names(&a),
            given.len(),
            names(&b)
        )));
    }
    let by_name: HashMap<&str, ValueId> = given
        .iter()
        .map(|&v| (b.graph().value(v).name(), v))
        .collect();
    let all_named = own.iter().all(|v| by_name.contains_key(name(v)));
    let (mut map, mut symbols) = (HashMap::new(), Symbols::new());
    for (v, &by_order) in own.iter().zip(given) {
        let to = if all_named {
            by_name[name(v)]
        } else {
            by_order
        };
        let (expected, found) = (model.type_of(*v), b.type_of(to));
        let fail = |more: &str| {
            Error::shape(format!(
                "`{}` takes {expected}, `{}` is {found}{more}",
                model.name(),
                b.graph().value(to).name()
            ))
            .at(name(v))
        };
        if expected.dtype != found.dtype || expected.rank() != found.rank() {
            return Err(fail(""));
        }
        for (own, given) in expected.shape.dims().iter().zip(found.shape.dims()) {
            match own {
                Dim::Symbol(s) => {
                    let known = symbols.entry(s.clone()).or_insert_with(|| given.clone());
                    if known != given {
                        let more = format!(", where `{}` is {known} already", s.as_str());
                        return Err(fail(&more));
                    }
                }
                Dim::Fixed(_) if own != given && given.as_fixed().is_none() => {
                    return Err(fail("; give the graph a symbolic size there"));
                }
                Dim::Fixed(_) if own != given => return Err(fail("")),
                // Checked below, when all symbols are known.
                _ => {}
            }
        }
        map.insert(*v, to);
    }
    for (&own, &to) in &map {
        let (expected, found) = (model.type_of(own), b.type_of(to));
        let shape = renamed_shape(&expected.shape, &symbols)?;
        if shape != found.shape {
            return Err(Error::shape(format!(
                "`{}` takes {expected}, `{}` is {found}",
                model.name(),
                b.graph().value(to).name()
            ))
            .at(model.value(own).name()));
        }
    }
    Ok((map, symbols))
}

/// An op with the symbols in its attributes replaced.
fn renamed(op: &Op, symbols: &Symbols) -> Result<Op> {
    let shape = |s: &Shape| renamed_shape(s, symbols);
    Ok(match op {
        Op::Reshape(op) => Reshape {
            shape: shape(&op.shape)?,
        }
        .into(),
        Op::Expand(op) => Expand {
            shape: shape(&op.shape)?,
        }
        .into(),
        Op::Sizes(op) => Sizes {
            dims: shape(&op.dims)?,
        }
        .into(),
        Op::Iota(op) => Iota {
            len: renamed_dim(&op.len, symbols)?,
        }
        .into(),
        Op::SliceGrad(op) => SliceGrad {
            slice: op.slice.clone(),
            shape: shape(&op.shape)?,
        }
        .into(),
        Op::GatherGrad(op) => GatherGrad {
            axis: op.axis,
            size: renamed_dim(&op.size, symbols)?,
        }
        .into(),
        Op::Random(op) => Random {
            shape: shape(&op.shape)?,
            ..op.clone()
        }
        .into(),
        other => other.clone(),
    })
}

fn renamed_shape(shape: &Shape, symbols: &Symbols) -> Result<Shape> {
    let dims = shape.dims().iter().map(|d| renamed_dim(d, symbols));
    Ok(Shape::new(dims.collect::<Result<Vec<Dim>>>()?))
}

fn renamed_dim(dim: &Dim, symbols: &Symbols) -> Result<Dim> {
    match dim {
        Dim::Fixed(_) => Ok(dim.clone()),
        _ => renamed_expr(&dim.expr(), symbols)?.dim(),
    }
}

fn renamed_expr(expr: &SizeExpr, symbols: &Symbols) -> Result<SizeExpr> {
    let mut sum = SizeExpr::from(0);
    for (coefficient, factors) in expr.terms() {
        let mut term = SizeExpr::from(coefficient);
        for factor in factors {
            let factor = match factor {
                SizeFactor::Symbol(s) => match symbols.get(&s) {
                    Some(dim) => dim.expr(),
                    None => s.into(),
                },
                SizeFactor::Quotient(of, by) => renamed_expr(&of, symbols)?.div_floor(by)?,
            };
            term = term.mul(&factor)?;
        }
        sum = sum.add(&term)?;
    }
    Ok(sum)
}

/// The values that a value is computed from, itself among them.
pub(crate) fn ancestors(graph: &Graph, of: ValueId) -> HashSet<ValueId> {
    let mut needed: HashSet<ValueId> = [of].into();
    for (_, node) in graph.nodes().rev() {
        if node.outputs().iter().any(|o| needed.contains(o)) {
            needed.extend(node.inputs());
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use opt_core::{DType, TensorType};

    #[test]
    fn symbols_become_what_they_stand_for() {
        let symbols: Symbols = [
            (Symbol::new("n"), Dim::from("batch")),
            (Symbol::new("t"), Dim::from(6)),
        ]
        .into();
        let n = Dim::from("n");
        let renamed = |d: Dim| renamed_dim(&d, &symbols).unwrap().to_string();
        assert_eq!(renamed(n.clone()), "batch");
        assert_eq!(renamed(Dim::from("t")), "6");
        assert_eq!(renamed(Dim::from("other")), "other");
        assert_eq!(renamed(n.mul(3).unwrap().add(1).unwrap()), "3*batch+1");
        assert_eq!(renamed(n.times(&"t".into()).unwrap()), "6*batch");
        let half = n.add(1).unwrap().div_floor(2).unwrap();
        assert_eq!(renamed(half), "floor((batch+1)/2)");
    }

    #[test]
    fn attributes_follow_the_symbols() {
        let mut model = GraphBuilder::new("model");
        let shape = Shape::new([Dim::from("n"), 2.into(), 3.into()]);
        let x = model
            .input("x", TensorType::new(DType::F32, shape))
            .unwrap();
        let y = model.flatten(x, 1).unwrap();
        model.output("y", y).unwrap();
        let model = model.finish().unwrap();
        let mut b = GraphBuilder::new("around");
        let shape = Shape::new([Dim::from("batch"), 2.into(), 3.into()]);
        let given = b
            .input("pixels", TensorType::new(DType::F32, shape))
            .unwrap();
        let map = inline(&mut b, &model, &[given], "inner", Inlined::Frozen).unwrap();
        assert_eq!(b.type_of(map[&y]).to_string(), "f32[batch,6]");
        b.output("y", map[&y]).unwrap();
        b.finish().unwrap();
    }
}
