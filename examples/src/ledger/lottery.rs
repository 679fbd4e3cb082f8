//! Frankle & Carbin 2019.

use opt_core::Result;
use opt_prune::{LotteryTicket, Reinitialize, UnstructuredPrune};

use super::{Claim, Figures, Judgement, Lab, Verdict};

/// What is left of a network trains well from its own initial values, not from others.
#[derive(Debug)]
pub(super) struct Lottery;

/// The share of weights that stays.
const LEFT: f64 = 0.082;

/// Smaller than elsewhere: large steps leave the initial values behind.
const RATE: f64 = 2e-3;

const DENSE: &str = "all weights";
const TICKET: &str = "8.2 %, initial values";
const CONTROL: &str = "8.2 %, initialised anew";
const EARLY_TICKET: &str = "after 10 epochs: initial values";
const EARLY_CONTROL: &str = "after 10 epochs: initialised anew";

impl Claim for Lottery {
    fn name(&self) -> &'static str {
        "lottery"
    }

    fn title(&self) -> &'static str {
        "A lottery ticket: what pruning leaves trains well from its initial values only"
    }

    fn paper(&self) -> &'static str {
        "Frankle & Carbin, \"The lottery ticket hypothesis\", ICLR 2019, section 2: LeNet-300-100 on \
         MNIST; winning tickets down to a few per cent of the weights reach the accuracy of the \
         full network, and when they are initialised anew they learn more slowly and end worse (at \
         21 % of the weights by half a point)."
    }

    fn method(&self) -> &'static str {
        "Eleven rounds: train LeNet-300-100 for 40 epochs, remove the smallest fifth of each layer's \
         weights (the last layer's at half the rate), put the rest back to their initial values, \
         until 8.2 % are left; train that, and the same mask with new initial values (each layer's \
         own initial values in random order), and the full network likewise. Reproduced if the ticket's \
         error is lower than that of the control by more than two standard errors, and above that \
         of the full network by at most half a point; partly if only the first."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let initial = lab.lenet()?;
        // The last layer keeps as much as half the rate would leave it.
        let last = 1.0 - (1.0 + LEFT.powf(1.0 / 11.0)).powi(11) / 2f64.powi(11);
        let prune = UnstructuredPrune::new(1.0 - LEFT).layer("fc3", last);
        let search = LotteryTicket::new(prune, lab.tune(40, RATE))
            .rounds(11)
            .untrained();
        let ticket = lab.apply(initial.clone(), &search)?;
        let control = lab.apply(ticket.clone(), &Reinitialize::like(&initial))?;
        let mut figures = vec![(DENSE, lab.error(&lab.apply(initial, &lab.tune(60, RATE))?)?)];
        for (start, early_name, name) in [
            (ticket, EARLY_TICKET, TICKET),
            (control, EARLY_CONTROL, CONTROL),
        ] {
            let early = lab.apply(start.clone(), &lab.tune(10, RATE))?;
            let trained = lab.apply(start, &lab.tune(60, RATE))?;
            figures.push((early_name, lab.error(&early)?));
            figures.push((name, lab.error(&trained)?));
        }
        Ok(figures)
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let against = figures.difference(TICKET, CONTROL);
        let dense = figures.difference(TICKET, DENSE);
        let early = figures.difference(EARLY_TICKET, EARLY_CONTROL);
        let verdict = match (against.is_below(), dense.mean <= 0.5) {
            (true, true) => Verdict::Reproduced,
            (true, false) => Verdict::Partly,
            (false, _) => Verdict::NotReproduced,
        };
        let mean = |name| figures.of(name).mean();
        Judgement {
            verdict,
            headline: format!(
                "{:.2} against {:.2} % initialised anew ({against})",
                mean(TICKET),
                mean(CONTROL)
            ),
            reason: format!(
                "With 8.2 % of its weights the ticket's error is {against} points from that of the \
                 same mask initialised anew: the initial values matter. After ten epochs the \
                 difference is {early} points. From the full network's error it is {dense} points\
                 {}.",
                match dense.mean <= 0.5 {
                    true => "",
                    false =>
                        ", more than the paper's tickets lose: here they do not reach the full \
                              network",
                }
            ),
        }
    }
}
