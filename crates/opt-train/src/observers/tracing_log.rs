//! Progress in the `tracing` log.

use opt_core::{Event, Observer};

use super::text;

/// An observer that hands events to [`tracing`]: tasks and their figures at the level `info`,
/// single steps at `trace`, under the target `opt_train`.
#[derive(Debug, Clone, Default)]
pub struct TracingLog {
    task: String,
}

impl TracingLog {
    /// An observer without a task yet.
    pub fn new() -> TracingLog {
        TracingLog::default()
    }
}

impl Observer for TracingLog {
    fn event(&mut self, event: &Event) {
        const TARGET: &str = "opt_train";
        let task = self.task.clone();
        match event {
            Event::Started { task, total } => {
                self.task.clone_from(task);
                tracing::info!(target: TARGET, task, total, "started");
            }
            Event::Progress { done, metrics } => {
                tracing::trace!(target: TARGET, task, done, "{}", text(metrics));
            }
            Event::Metrics { label, metrics } => {
                tracing::info!(target: TARGET, task, label, "{}", text(metrics));
            }
            Event::Finished { task } => tracing::info!(target: TARGET, task, "finished"),
            Event::Note(note) => tracing::info!(target: TARGET, task, "{note}"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Metadata, Subscriber};

    use super::*;

    /// A subscriber that writes events down.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            write!(self.0, " {}={value:?}", field.name()).unwrap();
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut line = Line(event.metadata().level().to_string());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn events_are_logged_with_their_task() {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.clone(), || {
            let mut log = TracingLog::new();
            let task = "tune".to_string();
            let metrics = vec![("loss", 0.5)];
            log.event(&Event::Started {
                task: task.clone(),
                total: 3,
            });
            log.event(&Event::Progress {
                done: 1,
                metrics: metrics.clone(),
            });
            let label = "epoch 0".to_string();
            log.event(&Event::Metrics { label, metrics });
            log.event(&Event::Finished { task });
        });
        let lines = lines.0.lock().unwrap();
        let [started, progress, metrics, finished] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert!(started.starts_with("INFO") && started.contains("total=3"));
        assert!(progress.starts_with("TRACE") && progress.contains("task=\"tune\""));
        assert!(metrics.contains("label=\"epoch 0\"") && metrics.contains("loss 0.5000"));
        assert!(finished.contains("finished"));
    }
}
