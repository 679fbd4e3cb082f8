//! Observers of long work: a progress bar, a CSV file, the `tracing` log, and several at once.

mod csv_log;
#[cfg(feature = "progress")]
mod progress;
mod tee;
mod tracing_log;

pub use csv_log::CsvLog;
#[cfg(feature = "progress")]
pub use progress::ProgressBar;
pub use tee::Tee;
pub use tracing_log::TracingLog;

/// Figures as text: `loss 0.1234  lr 0.0010`.
fn text(metrics: &[(&str, f64)]) -> String {
    let one = |(name, value): &(&str, f64)| format!("{name} {value:.4}");
    metrics.iter().map(one).collect::<Vec<_>>().join("  ")
}
