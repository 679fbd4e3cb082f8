//! The one-cycle policy.

use std::f64::consts::PI;

use opt_core::Result;

use super::{Schedule, expect, rates};

/// How a phase of [`OneCycle`] goes from one rate to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Anneal {
    /// Along a cosine.
    #[default]
    Cosine,
    /// Along a line.
    Linear,
}

/// Up to a large rate and down to almost nothing over the whole run (Smith & Topin 2018; PyTorch's
/// `OneCycleLR`, without its cycle of the momentum).
///
/// ```
/// use opt_train::{OneCycle, Schedule};
///
/// let schedule = OneCycle::new(0.1);
/// let rates = [0, 299, 999].map(|step| schedule.lr(step, 1000));
/// assert!((rates[0] - 0.004).abs() < 1e-12);
/// assert!((rates[1] - 0.1).abs() < 1e-12);
/// assert!(rates[2] < 1e-6);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OneCycle {
    /// The largest rate.
    pub max_lr: f64,
    /// The share of the run in which the rate rises, in `(0, 1)`; below a half if there are three
    /// phases.
    pub rise: f64,
    /// The first rate is `max_lr` divided by this.
    pub div_factor: f64,
    /// The last rate is the first divided by this.
    pub final_div_factor: f64,
    /// How the rate changes.
    pub anneal: Anneal,
    /// Whether the rate first falls as it rose, and then to the last one.
    pub three_phase: bool,
}

impl OneCycle {
    /// PyTorch's settings: three tenths of the run rise, from a 25th of the rate, along cosines.
    pub fn new(max_lr: f64) -> OneCycle {
        OneCycle {
            max_lr,
            rise: 0.3,
            div_factor: 25.0,
            final_div_factor: 1e4,
            anneal: Anneal::Cosine,
            three_phase: false,
        }
    }
}

impl Schedule for OneCycle {
    fn lr(&self, step: u64, total: u64) -> f64 {
        let (step, total) = (step as f64, total as f64);
        let first = self.max_lr / self.div_factor;
        let last = first / self.final_div_factor;
        let top = self.rise * total - 1.0;
        // Each phase: its last step, and the rate there.
        let phases = match self.three_phase {
            true => vec![(top, self.max_lr), (2.0 * top, first), (total - 1.0, last)],
            false => vec![(top, self.max_lr), (total - 1.0, last)],
        };
        let (mut start, mut from) = (0.0, first);
        for (end, to) in phases {
            if step <= end {
                // In a run of a few steps a phase may have no length.
                let done = match end > start {
                    true => (step - start) / (end - start),
                    false => 1.0,
                };
                return match self.anneal {
                    Anneal::Linear => from + (to - from) * done,
                    Anneal::Cosine => to + (from - to) / 2.0 * (1.0 + (PI * done).cos()),
                };
            }
            (start, from) = (end, to);
        }
        last
    }

    fn check(&self) -> Result<()> {
        let most = if self.three_phase { 0.5 } else { 1.0 };
        let rise = self.rise > 0.0 && self.rise < most;
        let range = format!("between 0 and {most}");
        expect(rise, "share of rising", self.rise, &range)?;
        for (what, factor) in [
            ("div_factor", self.div_factor),
            ("final_div_factor", self.final_div_factor),
        ] {
            let good = factor.is_finite() && factor > 0.0;
            expect(good, what, factor, "a number above 0")?;
        }
        rates(&[self.max_lr])
    }
}
