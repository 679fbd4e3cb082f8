//! Which layer of a student goes with which of its teacher.

use std::collections::{BTreeMap, BTreeSet};

use opt_core::ops::Op;
use opt_core::{Error, ErrorKind, Graph, Result, ValueId, ValueKind};

use crate::inline::ancestors;

/// When a student's layer is projected to the teacher's number of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Project {
    #[default]
    Never,
    /// Where the loss compares channels and their numbers differ.
    IfNeeded,
    Always,
}

/// A layer of the student and the layer of the teacher that it learns from.
///
/// A layer is named by a value's name, by a node's (whose first output it is), or by the name
/// that a [`ModelBuilder`](opt_core::nn::ModelBuilder) gave the layer (whose last value it is).
/// Imported ONNX models have the names of the file.
///
/// ```
/// use opt_distill::LayerPair;
///
/// // The student's layer `c2` through a trainable projection against the teacher's `layer3`.
/// let pair = LayerPair::new("c2", "layer3").project();
/// # let _ = pair;
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LayerPair {
    pub(crate) student: String,
    pub(crate) teacher: String,
    pub(crate) project: Project,
    pub(crate) pool: bool,
    pub(crate) of: usize,
}

impl LayerPair {
    /// A pair: the student's layer, then the teacher's.
    pub fn new(student: impl Into<String>, teacher: impl Into<String>) -> LayerPair {
        LayerPair {
            student: student.into(),
            teacher: teacher.into(),
            project: Project::Never,
            pool: false,
            of: 0,
        }
    }

    /// Compares a trainable linear map of the student's channels to the teacher's number of
    /// channels: a convolution of size 1 for `[N, C, H, W]`, a linear layer for `[N, C]` and
    /// `[N, T, C]`, with a bias. It starts as PyTorch starts such layers, by
    /// [`Distillation::seed`](crate::Distillation::seed), is trained (and regularized) as the
    /// student's parameters are, and is no part of the student that comes back.
    #[must_use]
    pub fn project(mut self) -> LayerPair {
        self.project = Project::Always;
        self
    }

    /// As [`LayerPair::project`], where the loss compares channels and their numbers differ.
    #[must_use]
    pub fn project_if_needed(mut self) -> LayerPair {
        self.project = Project::IfNeeded;
        self
    }

    /// Where the numbers of positions along an axis differ, averages the larger down to the
    /// smaller (PyTorch's `adaptive_avg_pool`).
    #[must_use]
    pub fn pool(mut self) -> LayerPair {
        self.pool = true;
        self
    }

    /// Of an ensemble of teachers, takes the layer of that of an index; 0 at first.
    #[must_use]
    pub fn of_teacher(mut self, index: usize) -> LayerPair {
        self.of = index;
        self
    }
}

/// Pairs of layers that one loss compares; the losses of the pairs are added.
///
/// ```
/// use opt_distill::{LayerMap, LayerPair};
///
/// let by_hand = LayerMap::new([
///     LayerPair::new("c1", "layer1").project(),
///     LayerPair::new("c2", "layer2").project(),
/// ]);
/// // Six blocks learn from twelve: every second one.
/// let student = (0..6).map(|i| format!("block{i}"));
/// let teacher = (0..12).map(|i| format!("encoder.{i}"));
/// let blocks = LayerMap::uniform(student, teacher)?;
/// assert_eq!(blocks.pairs().count(), 6);
/// assert_eq!(blocks.pairs().last(), Some(("block5", "encoder.11")));
/// # let _ = by_hand;
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerMap(pub(crate) Vec<LayerPair>);

impl From<LayerPair> for LayerMap {
    fn from(pair: LayerPair) -> LayerMap {
        LayerMap(vec![pair])
    }
}

impl LayerMap {
    /// A map of these pairs.
    pub fn new(pairs: impl IntoIterator<Item = LayerPair>) -> LayerMap {
        LayerMap(pairs.into_iter().collect())
    }

    /// Pairs the student's layers with as many of the teacher's, evenly spaced up to the last (the
    /// uniform strategy of TinyBERT, Jiao et al. 2020): of S and T layers, the student's i-th,
    /// counted from 1, with the teacher's `i * T / S`-th, rounded down. Layers are projected and
    /// pooled where that is needed.
    ///
    /// # Errors
    /// If the student has no layer or more than the teacher.
    pub fn uniform(
        student: impl IntoIterator<Item = impl Into<String>>,
        teacher: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<LayerMap> {
        let student: Vec<String> = student.into_iter().map(Into::into).collect();
        let teacher: Vec<String> = teacher.into_iter().map(Into::into).collect();
        let (s, t) = (student.len(), teacher.len());
        if s == 0 || s > t {
            return Err(Error::invalid(format!(
                "{s} layers of the student cannot be spread over {t} of the teacher"
            )));
        }
        let pair = |(i, name): (usize, String)| {
            let with = &teacher[(i + 1) * t / s - 1];
            LayerPair::new(name, with).project_if_needed().pool()
        };
        Ok(LayerMap(
            student.into_iter().enumerate().map(pair).collect(),
        ))
    }

    /// Pairs the stages of two convolutional networks. A stage is a run of values `[N, C, H, W]`
    /// of one resolution on the way to the first output, and its last value stands for it;
    /// single positions are left out. Stages of the same resolution are paired; where no
    /// resolution is in both, as many stages are paired in their order. Layers are projected and
    /// pooled where that is needed.
    ///
    /// # Errors
    /// If a graph has no output or no stage, or the stages have no resolution in common and
    /// differ in number; the message lists them.
    pub fn auto(student: &Graph, teacher: &Graph) -> Result<LayerMap> {
        let (s, t) = (stages(student)?, stages(teacher)?);
        let pair = |s: &String, t: &String| {
            LayerPair::new(s.as_str(), t.as_str())
                .project_if_needed()
                .pool()
        };
        let mut pairs: Vec<LayerPair> = s
            .iter()
            .filter_map(|(size, name)| {
                let (_, with) = t.iter().find(|(other, _)| other == size)?;
                Some(pair(name, with))
            })
            .collect();
        if pairs.is_empty() && s.len() == t.len() {
            pairs = s
                .iter()
                .zip(&t)
                .map(|((_, s), (_, t))| pair(s, t))
                .collect();
        }
        if pairs.is_empty() {
            let sizes = |stages: &[([usize; 2], String)]| {
                let text = |(s, _): &([usize; 2], String)| format!("{}x{}", s[0], s[1]);
                stages.iter().map(text).collect::<Vec<_>>().join(", ")
            };
            return Err(Error::new(
                ErrorKind::NoEffect,
                format!(
                    "the student's stages ({}) have no resolution in common with the teacher's \
                     ({}), and are not as many; pair layers by name",
                    sizes(&s),
                    sizes(&t)
                ),
            ));
        }
        Ok(LayerMap(pairs))
    }

    /// The names of the layers: the student's, then the teacher's.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|p| (p.student.as_str(), p.teacher.as_str()))
    }
}

/// The last value of each resolution of a network, in order.
fn stages(graph: &Graph) -> Result<Vec<([usize; 2], String)>> {
    let output = graph
        .outputs()
        .next()
        .ok_or_else(|| Error::invalid(format!("`{}` has no output", graph.name())))?;
    let needed = ancestors(graph, output);
    let mut last: BTreeMap<[usize; 2], (usize, String)> = BTreeMap::new();
    for (at, (_, node)) in graph.nodes().enumerate() {
        let value = node.outputs()[0];
        let ty = graph.type_of(value);
        let [_, _, height, width] = ty.shape.dims() else {
            continue;
        };
        let (Some(height), Some(width)) = (height.as_fixed(), width.as_fixed()) else {
            continue;
        };
        if needed.contains(&value) && height * width > 1 && ty.dtype.is_float() {
            let name = graph.value(value).name().to_string();
            last.insert([height, width], (at, name));
        }
    }
    if last.is_empty() {
        return Err(Error::new(
            ErrorKind::NoEffect,
            format!(
                "`{}` computes no value [N, C, H, W] of a known size on the way to its output",
                graph.name()
            ),
        ));
    }
    let mut stages: Vec<_> = last
        .into_iter()
        .map(|(size, (at, name))| (at, size, name))
        .collect();
    stages.sort();
    Ok(stages.into_iter().map(|(_, s, n)| (s, n)).collect())
}

/// The value of a layer.
pub(crate) fn find(graph: &Graph, whose: &str, name: &str) -> Result<ValueId> {
    if let Ok(id) = graph.find(name) {
        return match graph.value(id).kind() {
            ValueKind::Constant(_) | ValueKind::Variable(_) => Err(Error::invalid(format!(
                "`{name}` is a parameter of the {whose}, not the output of a layer"
            ))),
            _ => Ok(id),
        };
    }
    if let Some((_, node)) = graph.nodes().find(|(_, n)| n.name() == name) {
        return Ok(node.outputs()[0]);
    }
    let prefix = format!("{name}.");
    let of_scope = graph.nodes().rev().find_map(|(_, n)| {
        let outputs = n.outputs();
        let named = |v: &&ValueId| graph.value(**v).name().starts_with(&prefix);
        let first = n.name().starts_with(&prefix).then_some(&outputs[0]);
        let found = first.or_else(|| outputs.iter().find(named))?;
        (!matches!(n.op(), Op::Assign(_))).then_some(*found)
    });
    match of_scope {
        Some(value) => Ok(value),
        None => Err(Error::invalid(format!(
            "the {whose} has no layer `{name}`{}",
            near(graph, name)
        ))),
    }
}

/// Names of layers that resemble a name, as the end of a sentence.
fn near(graph: &Graph, name: &str) -> String {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for (_, node) in graph.nodes() {
        if matches!(node.op(), Op::Assign(_)) {
            continue;
        }
        names.insert(node.name());
        names.extend(
            node.name()
                .match_indices('.')
                .map(|(i, _)| &node.name()[..i]),
        );
    }
    let mut found: Vec<(usize, &str)> = names.iter().map(|n| (distance(name, n), *n)).collect();
    found.sort_by_key(|&(distance, _)| distance);
    let names: Vec<String> = found
        .iter()
        .take(5)
        .map(|(_, n)| format!("`{n}`"))
        .collect();
    match names.is_empty() {
        true => "; it has no layers".to_string(),
        false => format!("; near are {}", names.join(", ")),
    }
}

/// The edit distance of two names (Levenshtein 1966), over their first hundred characters.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(100).collect(), b.chars().take(100).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distances_are_the_textbooks() {
        for (a, b, expected) in [
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("abc", "", 3),
            ("same", "same", 0),
            ("flaw", "lawn", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
