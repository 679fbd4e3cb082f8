//! What training keeps about variables between passes.

use std::collections::BTreeMap;

use super::AxisMap;
use crate::{Graph, Result, ResultExt, Tensor};

/// Tensors that belong to the variables of a graph but not to the model, such as an optimizer's
/// moments, and tensors that belong to all of them, such as its count of steps.
///
/// A [`Context`](super::Context) carries them from pass to pass: training that goes on after a
/// pruning step keeps its momentum.
///
/// ```
/// use opt_core::pass::VariableState;
/// use opt_core::Tensor;
///
/// let mut state = VariableState::default();
/// state.insert("fc.weight", "exp_avg", Tensor::new([2], [0.5f32, 0.1])?);
/// state.insert_shared("step", Tensor::scalar(12.0f64));
/// assert_eq!(state.get("fc.weight", "exp_avg").unwrap().shape(), [2]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VariableState {
    slots: BTreeMap<(String, String), Tensor>,
    shared: BTreeMap<String, Tensor>,
}

impl VariableState {
    /// The tensor of a variable, by the variable's name and the slot's.
    pub fn get(&self, variable: &str, slot: &str) -> Option<&Tensor> {
        self.slots.get(&(variable.to_string(), slot.to_string()))
    }

    /// Sets a tensor of a variable.
    pub fn insert(&mut self, variable: impl Into<String>, slot: impl Into<String>, tensor: Tensor) {
        self.slots.insert((variable.into(), slot.into()), tensor);
    }

    /// Sets a tensor of all variables.
    pub fn insert_shared(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.shared.insert(name.into(), tensor);
    }

    /// The tensors of variables: variable, slot, content.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &Tensor)> {
        let slots = self.slots.iter();
        slots.map(|((variable, slot), t)| (variable.as_str(), slot.as_str(), t))
    }

    /// The tensors of all variables together: name, content.
    pub fn shared(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.shared.iter().map(|(name, t)| (name.as_str(), t))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.shared.is_empty()
    }

    /// The state of a graph from which entries of axes are removed: tensors of a variable's shape
    /// lose what the variable loses; others stay.
    ///
    /// # Errors
    /// None for maps of this graph.
    pub fn shrink(&self, graph: &Graph, map: &AxisMap) -> Result<VariableState> {
        let mut out = self.clone();
        for ((variable, slot), tensor) in &mut out.slots {
            let Ok(id) = graph.find(variable) else {
                continue;
            };
            if graph.type_of(id).shape.fixed()?.as_slice() == tensor.shape() {
                *tensor = map
                    .slice(id, tensor)
                    .at(|| format!("{slot} of {variable}"))?;
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::AxisGroups;
    use crate::{DType, GraphBuilder, TensorType};

    #[test]
    fn slots_lose_what_their_variables_lose() {
        let mut b = GraphBuilder::new("g");
        let x = b.input("x", TensorType::new(DType::F32, [1, 2])).unwrap();
        let content = Tensor::new([3, 2], [1f32; 6]).unwrap();
        let w = b.variable("w", content).unwrap();
        let v = b
            .variable("v", Tensor::zeros(DType::F32, [1, 3]).unwrap())
            .unwrap();
        let h = b.matmul_t(x, w, false, true).unwrap();
        let y = b.matmul_t(h, v, false, true).unwrap();
        b.output("y", y).unwrap();
        let graph = b.finish().unwrap();
        let groups = AxisGroups::of(&graph).unwrap();
        let gone = groups.of_entry(w, 0, 1).unwrap();
        let map = AxisMap::removing(&graph, [gone]).unwrap();

        let mut state = VariableState::default();
        assert!(state.is_empty());
        let moment = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
        state.insert("w", "m", Tensor::new([3, 2], moment(6)).unwrap());
        state.insert("v", "m", Tensor::new([1, 3], moment(3)).unwrap());
        state.insert("v", "count", Tensor::scalar(7.0f64));
        state.insert("gone", "m", Tensor::new([3], moment(3)).unwrap());
        state.insert_shared("step", Tensor::scalar(3.0f64));
        let small = state.shrink(&graph, &map).unwrap();
        let of = |variable| small.get(variable, "m").unwrap().to_f64s();
        assert_eq!(of("w"), [0.0, 1.0, 4.0, 5.0]);
        assert_eq!(of("v"), [0.0, 2.0]);
        assert_eq!(of("gone").len(), 3);
        assert_eq!(small.get("v", "count").unwrap().item().unwrap(), 7.0);
        assert_eq!(small.iter().count(), 4);
        assert_eq!(small.shared().next().unwrap().0, "step");
    }
}
