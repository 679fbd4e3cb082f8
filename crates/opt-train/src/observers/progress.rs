//! Progress bars.

use indicatif::{ProgressBar as Bar, ProgressStyle};
use opt_core::{Event, Observer};

use super::text;

/// An observer that draws a progress bar for each task on standard error; draws nothing where
/// that is no terminal.
#[derive(Debug, Default)]
pub struct ProgressBar {
    bar: Option<Bar>,
    metrics: String,
}

impl ProgressBar {
    /// An observer without a task yet.
    pub fn new() -> ProgressBar {
        ProgressBar::default()
    }
}

impl Observer for ProgressBar {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { task, total } => {
                let bar = Bar::new(*total);
                let style = ProgressStyle::with_template(
                    "{prefix:>24} [{bar:30}] {pos}/{len} {elapsed} {msg}",
                );
                if let Ok(style) = style {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_prefix(task.clone());
                self.metrics.clear();
                self.bar = Some(bar);
            }
            Event::Progress { done, metrics } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(*done);
                    if self.metrics.is_empty() && done % 16 == 0 {
                        bar.set_message(text(metrics));
                    }
                }
            }
            Event::Metrics { metrics, .. } => {
                if let Some(bar) = &self.bar {
                    self.metrics = text(metrics);
                    bar.set_message(self.metrics.clone());
                }
            }
            Event::Finished { .. } => {
                if let Some(bar) = self.bar.take() {
                    bar.finish();
                }
            }
            Event::Note(note) => match &self.bar {
                Some(bar) => bar.println(note),
                None => Bar::hidden().println(note),
            },
            _ => {}
        }
    }
}
