//! One run of a trainer.

use std::collections::BTreeMap;

use opt_core::backend::CompileSpec;
use opt_core::data::Dataset;
use opt_core::observer::Observer;
use opt_core::pass::VariableState;
use opt_core::{
    Backend, DType, Dim, Error, ErrorKind, Event, Graph, GraphBuilder, Result, ResultExt, Session,
    Symbol, Tensor, ValueId,
};
use opt_data::{Batches, one_hot};

use super::{Epoch, History, Trainer};
use crate::accumulate;
use crate::checkpoint::Checkpoint;
use crate::ema::averaged;
use crate::loss_scale::SCALE;
use crate::optimizer::{STEP, slot_name};
use crate::step::{LR, ModelIo, objective_nodes, training_graph};

/// A graph compiled for the batch sizes that occur, and the session that holds the current
/// variables.
struct Sessions<'a> {
    backend: &'a dyn Backend,
    graph: Graph,
    symbol: Option<Symbol>,
    open: BTreeMap<usize, Box<dyn Session>>,
    variables: Vec<ValueId>,
    current: Option<usize>,
}

impl<'a> Sessions<'a> {
    fn new(backend: &'a dyn Backend, graph: Graph, symbol: Option<Symbol>) -> Sessions<'a> {
        let variables = graph.variables().map(|(id, _, _)| id).collect();
        Sessions {
            backend,
            graph,
            symbol,
            open: BTreeMap::new(),
            variables,
            current: None,
        }
    }

    /// The session for a batch size, with the current variables in it.
    fn of(&mut self, batch: usize) -> Result<&mut dyn Session> {
        if !self.open.contains_key(&batch) {
            let mut spec = CompileSpec::new();
            if let Some(symbol) = &self.symbol {
                spec.bindings.insert(symbol.clone(), batch);
            }
            let session = self.backend.compile(&self.graph, &spec)?.session()?;
            self.open.insert(batch, session);
        }
        if let Some(from) = self.current.filter(|&from| from != batch) {
            let contents = self.contents(from)?;
            let session = self.open.get_mut(&batch).expect("opened above");
            for (id, tensor) in contents {
                session.set_variable(id, &tensor)?;
            }
        } else if self.current.is_none() {
            let session = self.open.get_mut(&batch).expect("opened above");
            for (id, _, tensor) in self.graph.variables() {
                session.set_variable(id, tensor)?;
            }
        }
        self.current = Some(batch);
        Ok(self.open.get_mut(&batch).expect("opened above").as_mut())
    }

    fn contents(&self, batch: usize) -> Result<Vec<(ValueId, Tensor)>> {
        let session = &self.open[&batch];
        self.variables
            .iter()
            .map(|&id| Ok((id, session.variable(id)?)))
            .collect()
    }

    /// The factor of a scaled loss after an epoch; an error where it has shrunk to nothing, so
    /// that no step is taken any more.
    fn loss_scale(&self, epoch: u64) -> Result<Option<f64>> {
        let (Ok(id), Some(batch)) = (self.graph.find(SCALE), self.current) else {
            return Ok(None);
        };
        let scale = self.open[&batch].variable(id)?.item()?;
        if scale >= f64::from(f32::MIN_POSITIVE) {
            return Ok(Some(scale));
        }
        Err(Error::new(
            ErrorKind::Data,
            format!(
                "the loss scale is {scale} after epoch {epoch}: the gradients are not finite at \
                 any scale"
            ),
        ))
    }

    /// Writes the current variables into the graph.
    fn sync(&mut self) -> Result<&Graph> {
        if let Some(batch) = self.current {
            for (id, tensor) in self.contents(batch)? {
                self.graph.set_variable(id, tensor)?;
            }
        }
        Ok(&self.graph)
    }

    /// Replaces variables by those of the same name in another graph.
    fn load(&mut self, from: &Graph) -> Result<()> {
        for (id, tensor) in shared(&self.graph, from) {
            self.graph.set_variable(id, tensor)?;
        }
        self.current = None;
        Ok(())
    }
}

/// The variables of `to` that `from` has by the same name and type, with `from`'s content.
fn shared(to: &Graph, from: &Graph) -> Vec<(ValueId, Tensor)> {
    let contents: BTreeMap<&str, &Tensor> =
        from.variables().map(|(_, v, t)| (v.name(), t)).collect();
    to.variables()
        .filter_map(|(id, v, old)| {
            let new = contents.get(v.name())?;
            let same = new.dtype() == old.dtype() && new.shape() == old.shape();
            same.then(|| (id, (*new).clone()))
        })
        .collect()
}

/// The symbol of the first dimension of the model's inputs, if it has one.
fn batch_symbol(model: &Graph) -> Option<Symbol> {
    model
        .inputs()
        .iter()
        .find_map(|&v| match model.type_of(v).shape.dims().first() {
            Some(Dim::Symbol(s)) => Some(s.clone()),
            _ => None,
        })
}

/// The graph that validation runs: the objective's loss and the outputs, nothing assigned.
fn validation_graph(trainer: &Trainer, model: &Graph) -> Result<Graph> {
    let outputs = model.named_outputs().to_vec();
    let mut b = GraphBuilder::extend(model.clone());
    let io = ModelIo {
        inputs: b.graph().inputs().to_vec(),
        outputs: outputs.iter().map(|(_, v)| *v).collect(),
    };
    let loss = objective_nodes(&mut b, trainer.objective.as_ref(), &io)?;
    let mut wanted = vec![("validation loss".to_string(), loss)];
    wanted.extend(outputs);
    b.finish()?.extract(&wanted, false)
}

/// Fails unless there are examples and the labels are class indices of the model.
fn check_data(graph: &Graph, data: &dyn Dataset, classes: Option<usize>) -> Result<()> {
    if data.is_empty() {
        return Err(Error::new(ErrorKind::Data, "the data set has no examples"));
    }
    let fields = data.get(0)?.len();
    let expected = graph.inputs().len();
    if fields != expected {
        let names: Vec<_> = graph
            .inputs()
            .iter()
            .map(|&v| format!("{} {}", graph.value(v).name(), graph.type_of(v)))
            .collect();
        return Err(Error::new(
            ErrorKind::Data,
            format!("an example has {fields} fields, the step takes {expected}: {names:?}"),
        ));
    }
    let Some(classes) = classes else {
        return Ok(());
    };
    for i in 0..data.len() {
        let label = data.get(i)?.pop().expect("has fields");
        if label.dtype() != DType::I64 {
            break;
        }
        if let Some(bad) = label
            .to_f64s()
            .into_iter()
            .find(|&l| l < 0.0 || l >= classes as f64)
        {
            return Err(Error::new(
                ErrorKind::Data,
                format!("the label {bad} of example {i} is not in 0..{classes}"),
            ));
        }
    }
    Ok(())
}

/// What the examples' last field is, if there is one target for the first output.
#[derive(Debug, Default, PartialEq)]
struct Targets {
    /// The number of classes, where targets are class indices or probabilities of classes.
    classes: Option<usize>,
    /// Whether the objective takes probabilities. Data may have class indices all the same.
    probabilities: bool,
}

impl Targets {
    fn of(trainer: &Trainer, step: &Graph, model: &Graph) -> Targets {
        let targets = (step.find("target").ok(), model.outputs().next());
        let (Some(target), Some(output)) = targets else {
            return Targets::default();
        };
        let second = step.inputs().get(model.inputs().len() + 1);
        let one = second.is_none_or(|&v| step.value(v).name() == LR);
        let (target, output) = (step.type_of(target), model.type_of(output));
        let indices = target.dtype == DType::I64 && output.rank() == target.rank() + 1;
        let probabilities = trainer.objective.takes_probabilities() && output.rank() == 2;
        if !one || output.rank() < 2 || !(indices || probabilities) {
            return Targets::default();
        }
        Targets {
            classes: output.shape[1].as_fixed(),
            probabilities,
        }
    }
}

/// Turns class indices, if the last field is any, into probabilities of 0 and 1.
fn as_probabilities(inputs: &mut [Tensor], classes: usize) -> Result<()> {
    match inputs.last_mut() {
        Some(labels) if labels.dtype() == DType::I64 => {
            *labels = one_hot(labels, classes)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Share of the labels that the largest entry along axis 1 names, as a count of hits and total.
fn hits(logits: &Tensor, labels: &Tensor) -> Result<(usize, usize)> {
    let (classes, labels) = (logits.shape()[1], labels.to_vec::<i64>()?);
    let inner: usize = logits.shape()[2..].iter().product();
    let logits = logits.to_f64s();
    let mut correct = 0;
    for (i, &label) in labels.iter().enumerate() {
        let (n, p) = (i / inner.max(1), i % inner.max(1));
        let at = |c: usize| logits[(n * classes + c) * inner + p];
        let best = (1..classes).fold(0, |best, c| if at(c) > at(best) { c } else { best });
        correct += usize::from(best as i64 == label);
    }
    Ok((correct, labels.len()))
}

pub(super) fn fit(
    trainer: &Trainer,
    model: Graph,
    data: &dyn Dataset,
    validation: Option<&dyn Dataset>,
    backend: &dyn Backend,
    observer: &mut dyn Observer,
    mut carried: Option<&mut VariableState>,
) -> Result<(Graph, History)> {
    if trainer.batch_size == 0 {
        return Err(Error::invalid("the batch size is 0"));
    }
    if trainer.accumulate == 0 {
        return Err(Error::invalid("gradients of 0 batches make no update"));
    }
    trainer.schedule.check()?;
    if validation.is_none() && trainer.patience.is_some() {
        return Err(Error::invalid("early stopping needs a validation set"));
    }
    // What comes back is the model as it was given.
    let run = match &trainer.mixed_precision {
        None => model.clone(),
        Some(pass) => pass.convert(model.clone()).at(|| "mixed precision")?.0,
    };
    let step_graph = training_graph(
        &run,
        trainer.objective.as_ref(),
        trainer.optimizer.as_ref(),
        &trainer.options,
    )?;
    let Targets {
        classes,
        probabilities,
    } = Targets::of(trainer, &step_graph, &model);
    let probabilities = classes.filter(|_| probabilities);
    let symbol = batch_symbol(&model);
    let without_lr = validation_graph(trainer, &run)?;
    check_data(&without_lr, data, classes).at(|| "training data")?;
    if let Some(validation) = validation {
        check_data(&without_lr, validation, classes).at(|| "validation data")?;
    }
    let mut steps = Sessions::new(backend, step_graph, symbol.clone());
    let mut eval = Sessions::new(backend, without_lr, symbol);
    let plan = accumulate::plan(
        data.len(),
        trainer.batch_size,
        trainer.drop_last,
        trainer.accumulate,
    );
    let batches = plan.len() as u64;
    let updates = plan.iter().filter(|(_, update)| *update).count() as u64;
    if batches == 0 {
        return Err(Error::new(
            ErrorKind::Data,
            format!(
                "{} examples make no batch of {}, and smaller ones are dropped",
                data.len(),
                trainer.batch_size
            ),
        )
        .at("training data"));
    }
    // Early stopping makes any number of epochs a valid bound.
    let total = batches.saturating_mul(trainer.epochs);
    let total_updates = updates.saturating_mul(trainer.epochs);
    if let Some(carried) = &carried {
        let graph = with_state(&steps.graph, carried).at(|| "the state of earlier training")?;
        steps.load(&graph)?;
    }
    let mut state = State::default();
    if let Some(path) = &trainer.resume {
        let checkpoint = Checkpoint::read(path)?;
        checkpoint.expect_seed(trainer.seed)?;
        let graph = checkpoint.restore(&steps.graph)?;
        steps.load(&graph)?;
        let (epoch, history, best) = checkpoint.into_state(&graph)?;
        state = State {
            epoch,
            history,
            best,
        };
    }
    observer.event(&Event::Started {
        task: trainer.task.clone(),
        total,
    });
    for epoch in state.epoch..trainer.epochs {
        let epoch_batches = Batches::new(data, trainer.batch_size)?
            .drop_last(trainer.drop_last)
            .shuffled(trainer.seed, epoch);
        let pace = Pace {
            epoch,
            plan: &plan,
            updates,
            total_updates,
            probabilities,
            history: &state.history.epochs,
        };
        let loss = match trainer.prefetch {
            0 => train_epoch(trainer, &mut steps, epoch_batches, &pace, observer)?,
            ahead => std::thread::scope(|scope| {
                let epoch_batches = epoch_batches.prefetch(ahead, scope)?;
                train_epoch(trainer, &mut steps, epoch_batches, &pace, observer)
            })?,
        };
        let mut record = Epoch::new(epoch, loss);
        let scale = steps.loss_scale(epoch)?;
        if let Some(validation) = validation {
            eval.load(&averaged(steps.sync()?)?)?;
            validate(
                &mut eval,
                trainer,
                validation,
                classes,
                probabilities,
                &mut record,
            )?;
        }
        report(observer, &record, scale);
        let stop = state.record(trainer, record, &mut steps)?;
        if let Some(path) = &trainer.checkpoint {
            let graph = steps.sync()?;
            // The last good checkpoint stays where this epoch's last update diverged.
            for (_, value, tensor) in graph.variables() {
                expect_finite(value.name(), tensor)?;
            }
            state.checkpoint(trainer, graph).write(path)?;
        }
        if stop {
            break;
        }
    }
    observer.event(&Event::Finished {
        task: trainer.task.clone(),
    });
    if let Some(carried) = &mut carried {
        **carried = state_of(steps.sync()?, &model);
    }
    let mut trained = model;
    let source = match state.best.take() {
        Some(best) if trainer.keep_best => best.graph,
        _ => steps.sync()?.clone(),
    };
    for (id, tensor) in shared(&trained, &averaged(&source)?) {
        expect_finite(trained.value(id).name(), &tensor)?;
        trained.set_variable(id, tensor)?;
    }
    trained.verify()?;
    Ok((trained, state.history))
}

/// Where an epoch is in its run.
struct Pace<'a> {
    epoch: u64,
    /// For each batch its weight in its update, and whether it is the last of it.
    plan: &'a [(f64, bool)],
    /// Updates of an epoch.
    updates: u64,
    total_updates: u64,
    /// The number of classes, where the objective takes probabilities.
    probabilities: Option<usize>,
    history: &'a [Epoch],
}

/// Takes the steps of an epoch; its mean loss.
fn train_epoch(
    trainer: &Trainer,
    steps: &mut Sessions<'_>,
    batches: impl Iterator<Item = Result<Vec<Tensor>>>,
    pace: &Pace<'_>,
    observer: &mut dyn Observer,
) -> Result<f64> {
    let (mut sum, mut seen) = (0.0, 0);
    for (i, batch) in batches.enumerate() {
        let mut inputs = batch?;
        let step = pace.epoch * pace.plan.len() as u64 + i as u64;
        if let Some(augment) = &trainer.augment {
            augment.augment_batch(&mut inputs, trainer.seed, step)?;
        }
        if let Some(classes) = pace.probabilities {
            as_probabilities(&mut inputs, classes)?;
        }
        let size = inputs[0].shape().first().copied().unwrap_or(1);
        let update = pace.epoch * pace.updates + (i / trainer.accumulate) as u64;
        let schedule = &trainer.schedule;
        let lr = schedule.lr_after(update, pace.total_updates, pace.history);
        inputs.push(Tensor::scalar(lr as f32));
        if trainer.options.accumulate {
            let (weight, last) = pace.plan[i];
            inputs.push(Tensor::scalar(weight as f32));
            inputs.push(Tensor::from_bools([], [last])?);
        }
        let outputs = steps.of(size)?.run(&inputs).at(|| format!("step {step}"))?;
        let loss = outputs[0].item()?;
        if !loss.is_finite() {
            let keep = trainer
                .mixed_precision
                .as_ref()
                .map_or_else(String::new, |pass| {
                    format!(", or keep layers that overflow {} in f32", pass.dtype())
                });
            return Err(Error::new(
                ErrorKind::Data,
                format!(
                    "the loss is {loss} at step {step}; lower the learning rate ({lr}), clip the \
                     gradients or check the data for NaN{keep}"
                ),
            ));
        }
        sum += loss * size as f64;
        seen += size;
        observer.event(&Event::Progress {
            done: step + 1,
            metrics: vec![("loss", loss), ("lr", lr)],
        });
    }
    Ok(sum / seen as f64)
}

/// A step graph with the optimizer's slots from a state.
fn with_state(step: &Graph, state: &VariableState) -> Result<Graph> {
    let mut out = step.clone();
    let slots = state.iter().filter(|(of, _, _)| step.find(of).is_ok());
    let slots = slots.map(|(of, slot, t)| (slot_name(of, slot), t));
    let shared = state.shared().map(|(name, t)| (name.to_string(), t));
    for (name, tensor) in slots.chain(shared) {
        let place = || name.clone();
        let slot = step
            .find(&name)
            .map_err(|_| Error::invalid("this optimizer keeps nothing of that name").at(place()))?;
        out.set_variable(slot, tensor.clone()).at(place)?;
    }
    Ok(out)
}

/// The optimizer's slots in a step graph, of the parameters that the model has.
fn state_of(step: &Graph, model: &Graph) -> VariableState {
    let mut state = VariableState::default();
    for (_, parameter, _) in model.variables() {
        let prefix = slot_name(parameter.name(), "");
        for (_, slot, tensor) in step.variables() {
            // A parameter's name may begin with another's and a dot.
            let slot = slot.name().strip_prefix(&prefix);
            if let Some(slot) = slot.filter(|slot| !slot.contains('.')) {
                state.insert(parameter.name(), slot, tensor.clone());
            }
        }
    }
    if let Some(count) = step.find(STEP).ok().and_then(|id| step.value(id).tensor()) {
        state.insert_shared(STEP, count.clone());
    }
    state
}

fn expect_finite(name: &str, tensor: &Tensor) -> Result<()> {
    if tensor.is_finite() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Data,
        "training made this variable NaN or infinite",
    )
    .at(name))
}

fn validate(
    eval: &mut Sessions<'_>,
    trainer: &Trainer,
    data: &dyn Dataset,
    classes: Option<usize>,
    probabilities: Option<usize>,
    record: &mut Epoch,
) -> Result<()> {
    let (mut loss, mut correct, mut seen) = (0.0, 0, 0);
    let size = trainer.batch_size.max(64).min(data.len());
    for batch in Batches::new(data, size)? {
        let mut inputs = batch?;
        let labels = inputs.last().expect("has a target").clone();
        if let Some(classes) = probabilities {
            as_probabilities(&mut inputs, classes)?;
        }
        let n = inputs[0].shape().first().copied().unwrap_or(1);
        let outputs = eval.of(n)?.run(&inputs)?;
        loss += outputs[0].item()? * n as f64;
        if classes.is_some() && labels.dtype() == DType::I64 {
            let (c, s) = hits(&outputs[1], &labels)?;
            correct += c;
            seen += s;
        }
    }
    let loss = loss / data.len() as f64;
    if !loss.is_finite() {
        return Err(Error::new(
            ErrorKind::Data,
            format!("the validation loss is {loss} after epoch {}", record.epoch),
        ));
    }
    record.val_loss = Some(loss);
    if seen > 0 {
        record.val_accuracy = Some(correct as f64 / seen as f64);
    }
    Ok(())
}

fn report(observer: &mut dyn Observer, record: &Epoch, loss_scale: Option<f64>) {
    let mut metrics = vec![("loss", record.loss)];
    metrics.extend(record.val_loss.map(|v| ("val_loss", v)));
    metrics.extend(record.val_accuracy.map(|v| ("val_accuracy", v)));
    metrics.extend(loss_scale.map(|v| ("loss_scale", v)));
    observer.event(&Event::Metrics {
        label: format!("epoch {}", record.epoch),
        metrics,
    });
}

/// The best epoch so far.
#[derive(Debug)]
pub(crate) struct Best {
    pub(crate) epoch: u64,
    pub(crate) accuracy: f64,
    pub(crate) loss: f64,
    pub(crate) graph: Graph,
}

/// What a run carries from epoch to epoch beside the variables.
#[derive(Debug, Default)]
struct State {
    epoch: u64,
    history: History,
    best: Option<Best>,
}

impl State {
    /// Records an epoch; whether to stop.
    fn record(
        &mut self,
        trainer: &Trainer,
        record: Epoch,
        steps: &mut Sessions<'_>,
    ) -> Result<bool> {
        self.epoch = record.epoch + 1;
        if let Some(loss) = record.val_loss {
            let accuracy = record.val_accuracy.unwrap_or(0.0);
            // Accuracies tie often on small validation sets; the loss decides then.
            let better = self
                .best
                .as_ref()
                .is_none_or(|b| accuracy > b.accuracy || (accuracy == b.accuracy && loss < b.loss));
            if better {
                self.history.best = Some(record.epoch);
                self.best = Some(Best {
                    epoch: record.epoch,
                    accuracy,
                    loss,
                    graph: steps.sync()?.clone(),
                });
            }
        }
        let epoch = record.epoch;
        self.history.epochs.push(record);
        let waited = self.best.as_ref().map_or(0, |b| epoch - b.epoch);
        Ok(trainer.patience.is_some_and(|p| waited > p))
    }

    fn checkpoint(&self, trainer: &Trainer, graph: &Graph) -> Checkpoint {
        Checkpoint::new(
            graph,
            self.epoch,
            trainer.seed,
            &self.history,
            self.best.as_ref(),
        )
    }
}
