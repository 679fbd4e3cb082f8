//! The objective of a student of teachers that run in its training graph.

use std::collections::HashMap;
use std::sync::Arc;

use opt_core::graph::Inlined;
use opt_core::pass::EvalMode;
use opt_core::{Error, Graph, GraphBuilder, Result, ResultExt, TensorType, ValueId};
use opt_train::{ModelIo, Objective};

use crate::adapt::adapt;
use crate::distillation::Total;
use crate::ensemble::averaged;
use crate::inline::inline;
use crate::layers::{LayerPair, find};
use crate::math::{expect_positive, in_loss_dtype};
use crate::{Distillation, FeatureLoss, Features};

/// The scope of what an objective adds to a training graph beside the teachers.
pub(crate) const SCOPE: &str = "distil";

/// The objective of a student of one or more teachers: see [`Distillation::from_teacher`]. The
/// teachers are put into the training graph in evaluation mode, frozen.
#[derive(Debug, Clone)]
pub struct FromTeacher {
    distillation: Distillation,
    teachers: Vec<(f64, Arc<Graph>)>,
}

/// A teacher, and where its values are in a training graph.
struct Inside {
    weight: f64,
    graph: Graph,
    values: HashMap<ValueId, ValueId>,
    output: ValueId,
}

/// The logits of a model: its first output.
pub(crate) fn first_output(model: &ModelIo) -> Result<ValueId> {
    model
        .outputs
        .first()
        .copied()
        .ok_or_else(|| Error::invalid("the student has no output"))
}

/// A teacher as it is run: in evaluation mode, with nothing assigned.
pub(crate) fn frozen(teacher: &Graph) -> Result<Graph> {
    if teacher.outputs().len() == 0 {
        return Err(Error::invalid("the teacher has no output"));
    }
    let (graph, _) = EvalMode::switch(teacher.clone())?;
    graph.extract(graph.named_outputs(), false)
}

impl FromTeacher {
    pub(crate) fn new(distillation: Distillation, teachers: Vec<(f64, Arc<Graph>)>) -> FromTeacher {
        FromTeacher {
            distillation,
            teachers,
        }
    }

    /// Puts the teachers into the training graph.
    fn inside(&self, b: &mut GraphBuilder, inputs: &[ValueId]) -> Result<Vec<Inside>> {
        let mut all = Vec::new();
        for (i, (weight, teacher)) in self.teachers.iter().enumerate() {
            let name = match self.teachers.len() {
                1 => "teacher".to_string(),
                _ => format!("teacher{i}"),
            };
            let mut put = || {
                expect_positive("weight of a teacher", *weight)?;
                let graph = frozen(teacher)?;
                let values = inline(b, &graph, inputs, &name, Inlined::Frozen)?;
                let output = graph.outputs().next().expect("checked by `frozen`");
                Ok(Inside {
                    weight: *weight,
                    output: values[&output],
                    values,
                    graph,
                })
            };
            all.push(put().at(|| name.clone())?);
        }
        if all.is_empty() {
            return Err(Error::invalid("there is no teacher"));
        }
        Ok(all)
    }

    /// Adds the loss between one pair of layers.
    fn feature_term(
        &self,
        b: &mut GraphBuilder,
        loss: &dyn FeatureLoss,
        pair: &LayerPair,
        student: ValueId,
        teachers: &[Inside],
        stream: u64,
    ) -> Result<ValueId> {
        let teacher = teachers.get(pair.of).ok_or_else(|| {
            Error::invalid(format!(
                "a pair of layers is of teacher {}, there are {}",
                pair.of,
                teachers.len()
            ))
        })?;
        let layer = find(&teacher.graph, "teacher", &pair.teacher)?;
        let layer = teacher.values[&layer];
        let seed = self.distillation.seed;
        let (s, t) = adapt(b, pair, loss.matching(), student, layer, seed, stream)?;
        let features = Features {
            student: s,
            teacher: t,
            teacher_layer: layer,
            teacher_output: Some(teacher.output),
        };
        loss.build(b, &features)
    }
}

impl Objective for FromTeacher {
    fn targets(&self, b: &GraphBuilder, model: &ModelIo) -> Result<Vec<TensorType>> {
        self.distillation.check()?;
        let logits = b.type_of(first_output(model)?);
        Ok(self.distillation.label_type(logits)?.into_iter().collect())
    }

    fn build(&self, b: &mut GraphBuilder, model: &ModelIo, targets: &[ValueId]) -> Result<ValueId> {
        let distillation = &self.distillation;
        distillation.check()?;
        let student = first_output(model)?;
        // Looked up before the teachers are in the graph, whose layers are no layers of the
        // student.
        let mut layers = Vec::new();
        for (.., map) in &distillation.features {
            for pair in &map.0 {
                layers.push(find(b.graph(), "student", &pair.student)?);
            }
        }
        let teachers = self.inside(b, &model.inputs)?;
        b.scope(SCOPE, |b| {
            let mut total = Total::default();
            let mut combined = |b: &mut GraphBuilder, temperature: f64| {
                let mut logits = Vec::new();
                for teacher in &teachers {
                    // In the dtype of the losses before anything is averaged.
                    let (z, _) = in_loss_dtype(b, teacher.output, student)?;
                    logits.push((teacher.weight, z));
                }
                averaged(b, &logits, distillation.average, temperature)
            };
            let labels = targets.first().copied();
            distillation.logit_terms(b, &mut total, student, labels, &mut combined)?;
            let mut layers = layers.into_iter();
            let mut stream = 0;
            for (i, (weight, loss, map)) in distillation.features.iter().enumerate() {
                for (j, (pair, student)) in map.0.iter().zip(&mut layers).enumerate() {
                    let term = b.scope(format!("features{i}.{j}"), |b| {
                        self.feature_term(b, loss.as_ref(), pair, student, &teachers, stream)
                    })?;
                    stream += 1;
                    total.add(b, *weight, term)?;
                }
            }
            total.sum()
        })
    }
}
