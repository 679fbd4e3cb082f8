//! What a student learns from: weighted losses, and the objective that they make with a teacher.

use std::fmt::Write;
use std::sync::Arc;

use opt_core::{DType, Error, Graph, GraphBuilder, Result, ResultExt, TensorType, ValueId};
use opt_train::{CrossEntropy, Loss};

use crate::layers::{LayerMap, LayerPair};
use crate::math::{expect_positive, in_loss_dtype};
use crate::{Average, FeatureLoss, FromLogits, FromTeacher, LogitLoss};

/// What a student learns from: weighted losses between its logits and its teacher's, between
/// layers of both, and between its logits and the labels. The objective is their weighted sum.
///
/// Teacher and student are any graphs with the same inputs; what they have in common is named by
/// [`LayerPair`]s. The first outputs of both are the logits. What losses are not computed in `f64`
/// is computed in `f32`.
///
/// ```
/// use opt_distill::{AttentionTransfer, Distillation, Dkd, Hint, LayerPair, Rkd};
/// use opt_train::CrossEntropy;
///
/// let distillation = Distillation::new()
///     .logits(1.0, Dkd::default())
///     .features(50.0, Hint::mse(), LayerPair::new("c2", "layer2").project())
///     .features(1000.0, AttentionTransfer::default(), LayerPair::new("c1", "layer1"))
///     .features(1.0, Rkd::distance_and_angle(25.0, 50.0), LayerPair::new("pool", "pool"))
///     .labels(1.0, CrossEntropy);
/// # let _ = distillation;
/// ```
///
/// [`Distillation::from_teacher`] makes it an objective of a [`Trainer`](opt_train::Trainer),
/// [`Distil`](crate::Distil) a pass.
///
/// # Labels
///
/// Examples carry a label behind the inputs even if no loss reads it, so that the same data set
/// serves every objective and validation counts correct answers: of the type of the label losses'
/// target, else class indices for the logits. [`Distillation::unlabelled`] is for examples
/// without.
#[derive(Debug, Clone, Default)]
pub struct Distillation {
    pub(crate) logits: Vec<(f64, Arc<dyn LogitLoss>)>,
    pub(crate) features: Vec<(f64, Arc<dyn FeatureLoss>, LayerMap)>,
    labels: Vec<(f64, Arc<dyn Loss>)>,
    pub(crate) average: Average,
    pub(crate) seed: u64,
    unlabelled: bool,
}

impl Distillation {
    /// No losses yet.
    pub fn new() -> Distillation {
        Distillation::default()
    }

    /// Adds a weighted loss between the logits of student and teacher.
    #[must_use]
    pub fn logits(mut self, weight: f64, loss: impl LogitLoss + 'static) -> Distillation {
        self.logits.push((weight, Arc::new(loss)));
        self
    }

    /// Adds a weighted loss between layers: one [`LayerPair`] or each of a [`LayerMap`].
    #[must_use]
    pub fn features(
        mut self,
        weight: f64,
        loss: impl FeatureLoss + 'static,
        layers: impl Into<LayerMap>,
    ) -> Distillation {
        self.features.push((weight, Arc::new(loss), layers.into()));
        self
    }

    /// Adds a weighted loss between the student's logits and the labels.
    #[must_use]
    pub fn labels(mut self, weight: f64, loss: impl Loss + 'static) -> Distillation {
        self.labels.push((weight, Arc::new(loss)));
        self
    }

    /// How the logits of several teachers are averaged; their probabilities at first.
    #[must_use]
    pub fn average(mut self, average: Average) -> Distillation {
        self.average = average;
        self
    }

    /// The seed of projections; 0 at first.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Distillation {
        self.seed = seed;
        self
    }

    /// The examples have no labels.
    #[must_use]
    pub fn unlabelled(mut self) -> Distillation {
        self.unlabelled = true;
        self
    }

    /// The objective of a student of this teacher.
    pub fn from_teacher(self, teacher: Graph) -> FromTeacher {
        self.from_teachers([(1.0, teacher)])
    }

    /// The objective of a student of several teachers. Their logits are averaged with these
    /// weights, which need not sum to 1; a layer is that of the teacher that its pair names.
    pub fn from_teachers(self, teachers: impl IntoIterator<Item = (f64, Graph)>) -> FromTeacher {
        let shared = |(weight, graph)| (weight, Arc::new(graph));
        self.taught_by(teachers.into_iter().map(shared).collect())
    }

    pub(crate) fn taught_by(self, teachers: Vec<(f64, Arc<Graph>)>) -> FromTeacher {
        FromTeacher::new(self, teachers)
    }

    /// The objective of a student whose examples carry the teacher's logits behind the label, as
    /// [`with_teacher_logits`](crate::with_teacher_logits) adds them. There is no teacher to take
    /// layers from, and validation, which finds two targets, reports the loss but no accuracy.
    pub fn from_logits(self) -> FromLogits {
        FromLogits::new(self)
    }

    /// All settings as TOML.
    pub(crate) fn config(&self) -> String {
        let mut text = format!("seed = {}\n", self.seed);
        let average = match self.average {
            Average::Probabilities => "probabilities",
            Average::Logits => "logits",
        };
        text += &format!("average = {average:?}\nunlabelled = {}\n", self.unlabelled);
        let quoted = |loss: &dyn std::fmt::Debug| format!("{:?}", format!("{loss:?}"));
        let mut table = |name: &str, weight: f64, loss: String, layers: &str| {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "[[{name}]]\nweight = {weight:?}\nloss = {loss}\n{layers}"
            );
        };
        for (weight, loss) in &self.logits {
            table("logits", *weight, quoted(loss), "");
        }
        for (weight, loss, map) in &self.features {
            let pairs: Vec<String> = map.0.iter().map(pair_config).collect();
            let layers = format!("layers = [{}]\n", pairs.join(", "));
            table("features", *weight, quoted(loss), &layers);
        }
        for (weight, loss) in &self.labels {
            table("labels", *weight, quoted(loss), "");
        }
        text
    }

    /// Fails unless the losses make an objective.
    pub(crate) fn check(&self) -> Result<()> {
        let weights = self.logits.iter().map(|t| t.0);
        let weights = weights.chain(self.features.iter().map(|t| t.0));
        for weight in weights.chain(self.labels.iter().map(|t| t.0)) {
            expect_positive("weight of a loss", weight)?;
        }
        if self.logits.is_empty() && self.features.is_empty() {
            return Err(Error::invalid(
                "the distillation has no loss against a teacher; add `logits` or `features`",
            ));
        }
        let reads = self.logits.iter().find(|(_, l)| l.needs_labels());
        match (self.unlabelled, reads, self.labels.first()) {
            (true, Some((_, loss)), _) => Err(Error::invalid(format!(
                "{loss:?} needs labels, but the examples have none"
            ))),
            (true, _, Some((_, loss))) => Err(Error::invalid(format!(
                "{loss:?} needs labels, but the examples have none"
            ))),
            _ if self.features.iter().any(|(.., map)| map.0.is_empty()) => Err(Error::invalid(
                "a loss between layers has no pair of layers",
            )),
            _ => Ok(()),
        }
    }

    /// The type of the labels, if there are any.
    pub(crate) fn label_type(&self, logits: &TensorType) -> Result<Option<TensorType>> {
        if self.unlabelled {
            return Ok(None);
        }
        let mut types = Vec::new();
        for (_, loss) in &self.labels {
            types.push((loss, loss.target_type(logits)?));
        }
        let Some((first, ty)) = types.first() else {
            return CrossEntropy.target_type(logits).map(Some).at(|| {
                "labels; say `unlabelled` of a distillation whose examples have none".to_string()
            });
        };
        if let Some((other, found)) = types.iter().find(|(_, t)| t != ty) {
            return Err(Error::invalid(format!(
                "{first:?} takes labels {ty}, {other:?} takes {found}"
            )));
        }
        Ok(Some(ty.clone()))
    }

    /// Adds the weighted losses between the student's logits and the labels and what `teacher`
    /// gives as the teacher's logits at a temperature.
    pub(crate) fn logit_terms(
        &self,
        b: &mut GraphBuilder,
        total: &mut Total,
        student: ValueId,
        labels: Option<ValueId>,
        teacher: &mut dyn FnMut(&mut GraphBuilder, f64) -> Result<ValueId>,
    ) -> Result<()> {
        for (i, (weight, loss)) in self.logits.iter().enumerate() {
            let term = b.scope(format!("logits{i}"), |b| {
                let teacher = teacher(b, loss.temperature())?;
                let (s, t) = in_loss_dtype(b, student, teacher)?;
                let labels = labels.filter(|_| loss.needs_labels());
                loss.build(b, s, t, labels)
            })?;
            total.add(b, *weight, term)?;
        }
        for (i, (weight, loss)) in self.labels.iter().enumerate() {
            let term = b.scope(format!("labels{i}"), |b| {
                let labels = labels.ok_or_else(|| Error::invalid("there are no labels"))?;
                loss.build(b, student, labels)
            })?;
            total.add(b, *weight, term)?;
        }
        Ok(())
    }
}

fn pair_config(pair: &LayerPair) -> String {
    let LayerPair {
        student,
        teacher,
        project,
        pool,
        of,
    } = pair;
    format!(
        "{{ student = {student:?}, teacher = {teacher:?}, project = \"{project:?}\", pool = \
         {pool}, of = {of} }}"
    )
}

/// A weighted sum of losses.
#[derive(Default)]
pub(crate) struct Total(Option<ValueId>);

impl Total {
    pub(crate) fn add(&mut self, b: &mut GraphBuilder, weight: f64, term: ValueId) -> Result<()> {
        let dtype = b.type_of(term).dtype;
        let term = match dtype {
            DType::F64 => term,
            _ => b.cast(term, DType::F32)?,
        };
        let term = match weight == 1.0 {
            true => term,
            false => b.mul_scalar(term, weight)?,
        };
        self.0 = Some(match self.0 {
            Some(sum) => {
                let (sum, term) = in_loss_dtype(b, sum, term)?;
                b.add(sum, term)?
            }
            None => term,
        });
        Ok(())
    }

    pub(crate) fn sum(self) -> Result<ValueId> {
        self.0
            .ok_or_else(|| Error::invalid("the distillation has no loss"))
    }
}
