//! Putting a graph into another.

use std::collections::HashMap;

use super::{Graph, GraphBuilder, ValueId, ValueKind};
use crate::{Error, Result, ResultExt};

/// What becomes of the variables of an inlined graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inlined {
    /// They stay variables, and keep their facts.
    Variables,
    /// They become constants: a frozen teacher.
    Frozen,
}

impl GraphBuilder {
    /// Adds the nodes of another graph under a scope, reading the given values in place of its
    /// inputs, and returns the values of its outputs.
    ///
    /// ```
    /// use opt_core::{DType, GraphBuilder, TensorType, graph::Inlined};
    ///
    /// # fn main() -> opt_core::Result<()> {
    /// let ty = TensorType::new(DType::F32, [2]);
    /// let mut teacher = GraphBuilder::new("teacher");
    /// let x = teacher.input("x", ty.clone())?;
    /// let y = teacher.relu(x)?;
    /// teacher.output("y", y)?;
    /// let teacher = teacher.finish()?;
    ///
    /// let mut b = GraphBuilder::new("both");
    /// let x = b.input("x", ty)?;
    /// let outputs = b.inline(&teacher, &[x], "teacher", Inlined::Frozen)?;
    /// assert_eq!(outputs.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the number or a type of the inputs is not the graph's (naming the input), or a name is
    /// taken.
    pub fn inline(
        &mut self,
        graph: &Graph,
        inputs: &[ValueId],
        scope: &str,
        variables: Inlined,
    ) -> Result<Vec<ValueId>> {
        if inputs.len() != graph.inputs().len() {
            return Err(Error::invalid(format!(
                "`{}` takes {} inputs, {} were given",
                graph.name(),
                graph.inputs().len(),
                inputs.len()
            )));
        }
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        for (&own, &given) in graph.inputs().iter().zip(inputs) {
            let (expected, found) = (graph.type_of(own), self.type_of(given));
            if expected != found {
                return Err(Error::shape(format!(
                    "`{}` takes {expected}, `{}` is {found}",
                    graph.name(),
                    self.graph().value(given).name()
                ))
                .at(graph.value(own).name().to_string()));
            }
            map.insert(own, given);
        }
        self.scope(scope, |b| {
            for (id, value) in graph.values() {
                let new = match value.kind() {
                    ValueKind::Constant(t) => b.named_constant(value.name(), t.clone()),
                    ValueKind::Variable(t) if variables == Inlined::Frozen => {
                        b.named_constant(value.name(), t.clone())
                    }
                    ValueKind::Variable(t) => {
                        let new = b.variable(value.name(), t.clone())?;
                        for (_, fact) in graph.facts().iter().filter(|(v, _)| *v == id) {
                            b.graph.facts.insert(new, fact.clone());
                        }
                        new
                    }
                    _ => continue,
                };
                map.insert(id, new);
            }
            for (_, node) in graph.nodes() {
                let inputs: Vec<ValueId> = node.inputs().iter().map(|v| map[v]).collect();
                let outputs = b
                    .named_node(node.name(), node.op().clone(), &inputs)
                    .at(|| node.name().to_string())?;
                map.extend(node.outputs().iter().copied().zip(outputs));
            }
            Ok(())
        })?;
        Ok(graph.outputs().map(|v| map[&v]).collect())
    }
}
