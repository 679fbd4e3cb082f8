//! What training reported, kept for plots.

use opt_core::observer::{Event, Observer, Silent};

use crate::Curve;

/// An observer that keeps the figures of each epoch, task by task, and passes all events on.
///
/// ```
/// use opt_core::observer::{Event, Observer};
/// use opt_eval::TrainingCurves;
///
/// let mut curves = TrainingCurves::new();
/// // What a trainer sends:
/// curves.event(&Event::Started { task: "teacher".into(), total: 20 });
/// for (epoch, loss) in [0.9, 0.4].into_iter().enumerate() {
///     curves.event(&Event::Metrics {
///         label: format!("epoch {epoch}"),
///         metrics: vec![("loss", loss)],
///     });
/// }
/// let loss = curves.curves("loss");
/// assert_eq!(loss[0].name, "teacher");
/// assert_eq!(loss[0].points, [(1.0, 0.9), (2.0, 0.4)]);
/// ```
#[derive(Debug, Clone, Default)]
pub struct TrainingCurves<O = Silent> {
    inner: O,
    tasks: Vec<Task>,
    /// Which of them runs.
    current: usize,
}

#[derive(Debug, Clone)]
struct Task {
    name: String,
    /// Of each epoch the figures that were reported.
    epochs: Vec<Vec<(&'static str, f64)>>,
}

impl TrainingCurves {
    /// Keeps figures, and passes the events on to nobody.
    pub fn new() -> TrainingCurves {
        TrainingCurves::default()
    }
}

impl<O: Observer> TrainingCurves<O> {
    /// Keeps figures, and passes the events on to another observer, such as a progress bar.
    pub fn over(inner: O) -> TrainingCurves<O> {
        TrainingCurves {
            inner,
            tasks: Vec::new(),
            current: 0,
        }
    }

    /// A figure such as `val_accuracy` over the epochs, the first being 1: one line a task, in
    /// the order in which they began. A task that began more than once, as the rounds of an
    /// iterative pruning do, is one line. Tasks without the figure are left out.
    pub fn curves(&self, metric: &str) -> Vec<Curve> {
        let curve = |task: &Task| {
            let point = |(epoch, metrics): (usize, &Vec<(&'static str, f64)>)| {
                let found = metrics.iter().find(|(name, _)| *name == metric)?;
                Some((epoch as f64 + 1.0, found.1))
            };
            let points = task.epochs.iter().enumerate().filter_map(point);
            Curve::new(task.name.clone(), points)
        };
        let mut curves: Vec<Curve> = self.tasks.iter().map(curve).collect();
        curves.retain(|c| !c.points.is_empty());
        curves
    }
}

impl<O: Observer> Observer for TrainingCurves<O> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { task, .. } => {
                let known = self.tasks.iter().position(|t| t.name == *task);
                self.current = known.unwrap_or(self.tasks.len());
                if known.is_none() {
                    self.tasks.push(Task {
                        name: task.clone(),
                        epochs: Vec::new(),
                    });
                }
            }
            Event::Metrics { metrics, .. } => {
                if let Some(task) = self.tasks.get_mut(self.current) {
                    task.epochs.push(metrics.clone());
                }
            }
            _ => {}
        }
        self.inner.event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_a_task_are_one_line_and_events_are_passed_on() {
        let mut seen = 0;
        let mut curves = TrainingCurves::over(|_: &Event| seen += 1);
        let started = |task: &str| Event::Started {
            task: task.into(),
            total: 1,
        };
        let metrics = |name, value| Event::Metrics {
            label: "epoch 0".into(),
            metrics: vec![("lr", 0.1), (name, value)],
        };
        for event in [
            // Before any task: no line to belong to.
            metrics("loss", 9.0),
            started("prune"),
            metrics("loss", 0.5),
            started("teacher"),
            metrics("val_loss", 0.7),
            started("prune"),
            metrics("loss", 0.25),
        ] {
            curves.event(&event);
        }
        let loss = curves.curves("loss");
        assert_eq!(loss, [Curve::new("prune", [(1.0, 0.5), (2.0, 0.25)])]);
        assert_eq!(curves.curves("val_loss").len(), 1);
        assert!(curves.curves("accuracy").is_empty());
        drop(curves);
        assert_eq!(seen, 7);
    }
}
