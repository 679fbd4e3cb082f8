//! Watching long work: progress bars, logs and CSV files are observers.

/// Something that happened during long work.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Work of a known length begins, such as `train` with a number of steps.
    Started {
        /// What is being done.
        task: String,
        /// How many steps it has.
        total: u64,
    },
    /// A step of the current task is done.
    Progress {
        /// Steps done so far.
        done: u64,
        /// Current figures, such as `loss`.
        metrics: Vec<(&'static str, f64)>,
    },
    /// An epoch, round or pass is over, with its figures.
    Metrics {
        /// Its number or name.
        label: String,
        /// The figures, such as `val_accuracy`.
        metrics: Vec<(&'static str, f64)>,
    },
    /// The current task is over.
    Finished {
        /// What was done.
        task: String,
    },
    /// Something a user should know.
    Note(String),
}

/// Receives [`Event`]s; the libraries print nothing themselves.
pub trait Observer {
    /// Takes an event.
    fn event(&mut self, event: &Event);
}

/// An observer that ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event) {}
}

impl<F: FnMut(&Event)> Observer for F {
    fn event(&mut self, event: &Event) {
        self(event);
    }
}
