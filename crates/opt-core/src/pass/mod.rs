//! Passes: graph in, graph and report out; and how they compose.

mod cse;
mod dead_code;
mod fold_batch_norm;
mod fold_constants;
mod masks;
mod mixed_precision;
mod mode;
mod pipeline;
mod shrink;
mod state;

use std::collections::BTreeMap;
use std::fmt;

pub use cse::CommonSubexpressions;
pub use dead_code::DeadCode;
pub use fold_batch_norm::FoldBatchNorm;
pub use fold_constants::FoldConstants;
pub use masks::enforce_masks;
pub use mixed_precision::MixedPrecision;
pub use mode::{EvalMode, RNG_STEP, TrainMode};
pub use pipeline::{Pipeline, Registry};
pub use shrink::{AxisGroup, AxisGroups, AxisMap, shrink};
pub use state::VariableState;

use crate::data::Dataset;
use crate::observer::{Event, Observer};
use crate::{Backend, FactKind, Graph, Result};

/// What a pass takes beside the graph; checked by a pipeline before anything runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Needs {
    /// Examples of inputs, without labels.
    pub calibration: bool,
    /// Examples with targets, to train on.
    pub training: bool,
    /// A teacher graph.
    pub teacher: bool,
    /// A backend to run graphs on.
    pub backend: bool,
}

impl Needs {
    /// Nothing beside the graph.
    pub const NOTHING: Needs = Needs {
        calibration: false,
        training: false,
        teacher: false,
        backend: false,
    };

    /// A backend.
    pub const BACKEND: Needs = Needs {
        backend: true,
        ..Needs::NOTHING
    };

    /// Calibration examples and a backend.
    pub const CALIBRATION: Needs = Needs {
        calibration: true,
        ..Needs::BACKEND
    };

    /// Training examples and a backend.
    pub const TRAINING: Needs = Needs {
        training: true,
        ..Needs::BACKEND
    };

    /// Training examples, a teacher and a backend.
    pub const TEACHER: Needs = Needs {
        teacher: true,
        ..Needs::TRAINING
    };

    /// What either of two passes takes.
    ///
    /// ```
    /// use opt_core::pass::Needs;
    ///
    /// let both = Needs::CALIBRATION.union(Needs::TEACHER);
    /// assert!(both.calibration && both.teacher && both.training && both.backend);
    /// ```
    #[must_use]
    pub fn union(self, other: Needs) -> Needs {
        Needs {
            calibration: self.calibration || other.calibration,
            training: self.training || other.training,
            teacher: self.teacher || other.teacher,
            backend: self.backend || other.backend,
        }
    }
}

/// Which facts of earlier passes a pass keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preserves {
    /// All of them.
    All,
    /// All but these kinds; a pipeline refuses the pass where such a fact exists.
    AllBut(Vec<FactKind>),
}

impl Preserves {
    /// Whether facts of a kind survive.
    pub fn keeps(&self, kind: FactKind) -> bool {
        match self {
            Preserves::All => true,
            Preserves::AllBut(kinds) => !kinds.contains(&kind),
        }
    }
}

/// What a pass did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// How many nodes, tensors or entries it changed; 0 is an error unless allowed.
    pub changed: usize,
    /// Figures, in order, such as `("parameters", 1234.0)`.
    pub figures: BTreeMap<String, f64>,
    /// Sentences for a person.
    pub notes: Vec<String>,
}

impl Report {
    /// A report of a number of changes.
    pub fn new(changed: usize) -> Report {
        Report {
            changed,
            ..Report::default()
        }
    }

    /// Adds a figure.
    #[must_use]
    pub fn figure(mut self, name: impl Into<String>, value: f64) -> Report {
        self.figures.insert(name.into(), value);
        self
    }

    /// Adds a sentence.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Report {
        self.notes.push(note.into());
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} changed", self.changed)?;
        for (name, value) in &self.figures {
            write!(f, ", {name} {value}")?;
        }
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        Ok(())
    }
}

/// What passes work with beside the graph.
pub struct Context<'a> {
    backend: Option<&'a dyn Backend>,
    calibration: Option<&'a dyn Dataset>,
    training: Option<&'a dyn Dataset>,
    validation: Option<&'a dyn Dataset>,
    teacher: Option<&'a Graph>,
    observer: Option<&'a mut dyn Observer>,
    seed: u64,
    state: VariableState,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("available", &self.available())
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl Default for Context<'_> {
    fn default() -> Self {
        Context::new()
    }
}

impl<'a> Context<'a> {
    /// A context with nothing in it and seed 0.
    pub fn new() -> Context<'a> {
        Context {
            backend: None,
            calibration: None,
            training: None,
            validation: None,
            teacher: None,
            observer: None,
            seed: 0,
            state: VariableState::default(),
        }
    }

    /// Sets the backend that passes run graphs on.
    #[must_use]
    pub fn with_backend(mut self, backend: &'a dyn Backend) -> Context<'a> {
        self.backend = Some(backend);
        self
    }

    /// Sets the examples for calibration.
    #[must_use]
    pub fn with_calibration(mut self, calibration: &'a dyn Dataset) -> Context<'a> {
        self.calibration = Some(calibration);
        self
    }

    /// Sets the examples to train on.
    #[must_use]
    pub fn with_training(mut self, training: &'a dyn Dataset) -> Context<'a> {
        self.training = Some(training);
        self
    }

    /// Sets the examples to select models by.
    #[must_use]
    pub fn with_validation(mut self, validation: &'a dyn Dataset) -> Context<'a> {
        self.validation = Some(validation);
        self
    }

    /// Sets the teacher, in eval mode.
    #[must_use]
    pub fn with_teacher(mut self, teacher: &'a Graph) -> Context<'a> {
        self.teacher = Some(teacher);
        self
    }

    /// Sets who is told of progress.
    #[must_use]
    pub fn with_observer(mut self, observer: &'a mut dyn Observer) -> Context<'a> {
        self.observer = Some(observer);
        self
    }

    /// Sets the seed of all that is random.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Context<'a> {
        self.seed = seed;
        self
    }

    /// The backend.
    ///
    /// # Errors
    /// [`ErrorKind::Pipeline`](crate::ErrorKind::Pipeline) if the context has none.
    pub fn backend(&self) -> Result<&'a dyn Backend> {
        self.backend
            .ok_or_else(|| missing("backend", "with_backend"))
    }

    /// The calibration examples.
    ///
    /// # Errors
    /// [`ErrorKind::Pipeline`](crate::ErrorKind::Pipeline) if the context has none.
    pub fn calibration(&self) -> Result<&'a dyn Dataset> {
        self.calibration
            .ok_or_else(|| missing("calibration examples", "with_calibration"))
    }

    /// The training examples.
    ///
    /// # Errors
    /// [`ErrorKind::Pipeline`](crate::ErrorKind::Pipeline) if the context has none.
    pub fn training(&self) -> Result<&'a dyn Dataset> {
        self.training
            .ok_or_else(|| missing("training examples", "with_training"))
    }

    /// The teacher.
    ///
    /// # Errors
    /// [`ErrorKind::Pipeline`](crate::ErrorKind::Pipeline) if the context has none.
    pub fn teacher(&self) -> Result<&'a Graph> {
        self.teacher
            .ok_or_else(|| missing("teacher", "with_teacher"))
    }

    /// The validation examples, if any.
    pub fn validation(&self) -> Option<&'a dyn Dataset> {
        self.validation
    }

    /// The seed of all that is random.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What earlier passes kept about the graph's variables. A pass that removes entries of axes
    /// [shrinks](VariableState::shrink) it.
    pub fn state(&self) -> &VariableState {
        &self.state
    }

    /// What earlier passes kept about the graph's variables, to change.
    pub fn state_mut(&mut self) -> &mut VariableState {
        &mut self.state
    }

    /// Tells the observer, if there is one.
    pub fn emit(&mut self, event: &Event) {
        if let Some(observer) = &mut self.observer {
            observer.event(event);
        }
    }

    /// What the context has, in the terms of what passes need.
    pub fn available(&self) -> Needs {
        Needs {
            calibration: self.calibration.is_some(),
            training: self.training.is_some(),
            teacher: self.teacher.is_some(),
            backend: self.backend.is_some(),
        }
    }
}

fn missing(what: &str, how: &str) -> crate::Error {
    crate::Error::new(
        crate::ErrorKind::Pipeline,
        format!("the context has no {what}; add it by `Context::{how}`"),
    )
}

/// A step of model optimization: a graph in, a graph and a report out.
///
/// A pass is pure: it takes the graph by value, so that a caller who wants the old one clones it
/// (tensors are shared). Facts that earlier passes recorded on the graph hold after it, but for
/// those that [`Pass::preserves`] leaves out.
///
/// A pass of one's own, in a [`Pipeline`] with another:
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_core::ops::{Op, Unary, UnaryOp};
/// use opt_core::pass::CommonSubexpressions;
/// use opt_core::{Context, Graph, GraphPatch, Pass, Pipeline, Report, Result};
///
/// /// Replaces every ReLU by a SiLU.
/// #[derive(Debug)]
/// struct ReluToSilu;
///
/// impl Pass for ReluToSilu {
///     fn name(&self) -> &str {
///         "relu_to_silu"
///     }
///
///     fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
///         let nodes: Vec<_> = graph.nodes().map(|(_, n)| n.clone()).collect();
///         let mut patch = GraphPatch::new(graph);
///         let mut changed = 0;
///         for node in nodes {
///             if *node.op() == Op::from(Unary { op: UnaryOp::Relu }) {
///                 let y = patch.silu(node.inputs()[0])?;
///                 patch.replace(node.outputs()[0], y)?;
///                 changed += 1;
///             }
///         }
///         Ok((patch.finish()?, Report::new(changed)))
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let mut m = ModelBuilder::new("net", 0);
/// let x = m.batch("x", [8])?;
/// let h = m.layer("hidden", Linear::new(16), x)?;
/// let (a, b) = (m.relu(h)?, m.relu(h)?);
/// let y = m.add(a, b)?;
/// m.output("y", y)?;
///
/// let pipeline = Pipeline::new().then(CommonSubexpressions).then(ReluToSilu);
/// let (graph, reports) = pipeline.run(m.finish()?, &mut Context::new())?;
/// // The two ReLUs were one by then.
/// assert_eq!(reports[1].1.changed, 1);
/// assert!(graph.nodes().all(|(_, n)| n.op().name() != "Relu"));
/// # Ok(())
/// # }
/// ```
pub trait Pass: fmt::Debug + Send + Sync {
    /// Its name, in snake case, as pipeline files write it.
    fn name(&self) -> &str;

    /// Its parameters as TOML, from which a [`Registry`] can make it again.
    fn config(&self) -> String {
        String::new()
    }

    /// What it takes beside the graph.
    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    /// Which facts of earlier passes it keeps.
    fn preserves(&self) -> Preserves {
        Preserves::All
    }

    /// Which kinds of facts it establishes, so that pipelines can check what follows.
    fn establishes(&self) -> Vec<FactKind> {
        Vec::new()
    }

    /// Applies it.
    ///
    /// # Errors
    /// If the graph cannot be treated, at the node; [`ErrorKind::NoEffect`](crate::ErrorKind)
    /// if a name or rule given to it matches nothing.
    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)>;
}
