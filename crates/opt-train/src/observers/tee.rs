//! Several observers at once.

use opt_core::{Event, Observer};

/// Tells several observers.
///
/// ```no_run
/// use opt_train::{CsvLog, ProgressBar, Tee};
///
/// # fn main() -> opt_core::Result<()> {
/// let (mut bar, mut log) = (ProgressBar::new(), CsvLog::create("training.csv")?);
/// let mut both = Tee::new().and(&mut bar).and(&mut log);
/// // trainer.fit_with(model, &train, Some(&validation), &backend, &mut both)?;
/// # let _ = &mut both;
/// log.finish()
/// # }
/// ```
#[derive(Default)]
pub struct Tee<'a> {
    observers: Vec<&'a mut dyn Observer>,
}

impl std::fmt::Debug for Tee<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tee")
            .field("observers", &self.observers.len())
            .finish()
    }
}

impl<'a> Tee<'a> {
    /// Nobody yet.
    pub fn new() -> Tee<'a> {
        Tee::default()
    }

    /// Adds an observer.
    #[must_use]
    pub fn and(mut self, observer: &'a mut dyn Observer) -> Tee<'a> {
        self.observers.push(observer);
        self
    }
}

impl Observer for Tee<'_> {
    fn event(&mut self, event: &Event) {
        for observer in &mut self.observers {
            observer.event(event);
        }
    }
}
