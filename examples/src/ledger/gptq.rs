//! Frantar et al. 2023.

use opt_core::{Pass, Result};
use opt_quant::{Gptq as Method, QuantizeWeights, Scheme};

use super::{Claim, Figures, Judgement, Lab, Verdict};

/// Weights of few bits after training, if their errors make up for each other.
#[derive(Debug)]
pub(super) struct Gptq;

const DENSE: &str = "32-bit weights";
/// Bits, and the figures of rounding to nearest, of GPTQ, and of the second's output error.
const WIDTHS: [(u32, [&str; 3]); 3] = [
    (
        4,
        [
            "4 bits, rounded to nearest",
            "4 bits, GPTQ",
            "4 bits: output error, GPTQ of nearest",
        ],
    ),
    (
        3,
        [
            "3 bits, rounded to nearest",
            "3 bits, GPTQ",
            "3 bits: output error, GPTQ of nearest",
        ],
    ),
    (
        2,
        [
            "2 bits, rounded to nearest",
            "2 bits, GPTQ",
            "2 bits: output error, GPTQ of nearest",
        ],
    ),
];

impl Claim for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn title(&self) -> &'static str {
        "Weights of 3 bits without training, if each rounding makes up for those before it"
    }

    fn paper(&self) -> &'static str {
        "Frantar, Ashkboos, Hoefler & Alistarh, \"GPTQ\", ICLR 2023, table 3: OPT-175B has a \
         perplexity of 8.34 on WikiText2; with weights of 4 bits 10.54 rounded to nearest and 8.37 \
         by GPTQ, of 3 bits 7,300 and 8.68."
    }

    fn method(&self) -> &'static str {
        "LeNet-300-100 with weights of 4, 3 and 2 bits, a scale and a zero point for each neuron, \
         without training: rounded to nearest, or by GPTQ on the training images, layer after layer. \
         The output error is the squared error of all layers' outputs on the training images, GPTQ's \
         as a share of rounding's. Reproduced if GPTQ is within half a point of full precision at 4 \
         and 3 bits, takes away at least half of what rounding costs at 2 bits, and has at most a \
         fifth of the output error at each; partly if it is better than rounding at 3 and 2 bits."
    }

    fn measure(&self, lab: &Lab) -> Result<Vec<(&'static str, f64)>> {
        let dense = lab.trained()?;
        let mut out = vec![(DENSE, lab.error(&dense)?)];
        for (bits, names) in WIDTHS {
            let scheme = Scheme::uint4().bits(bits).per_channel();
            let nearest = lab.apply(dense.clone(), &QuantizeWeights::new(scheme))?;
            let method = Method::new().act_order().sequential();
            let pass = QuantizeWeights::new(scheme).method(method);
            let (graph, report) = pass.apply(dense.clone(), &mut lab.context(&lab.train))?;
            let sum = |start: &str| -> f64 {
                let found = report.figures.iter().filter(|(n, _)| n.starts_with(start));
                found.map(|(_, value)| value).sum()
            };
            let share = sum("output error of") / sum("output error to nearest of");
            out.push((names[0], lab.error(&nearest)?));
            out.push((names[1], lab.error(&graph)?));
            out.push((names[2], 100.0 * share));
        }
        Ok(out)
    }

    fn judge(&self, figures: &Figures) -> Judgement {
        let mean = |name| figures.of(name).mean();
        let [four, three, two] = WIDTHS.map(|(_, names)| names);
        let loss = |name| figures.difference(name, DENSE);
        let near = [four, three].map(|names| loss(names[1]).mean <= 0.5);
        let halved = loss(two[1]).mean <= 0.5 * loss(two[0]).mean;
        let outputs = [four, three, two]
            .iter()
            .all(|names| mean(names[2]) <= 20.0);
        let better = [three, two].map(|n| figures.difference(n[1], n[0]).mean < 0.0);
        let verdict = match (near == [true; 2] && halved && outputs, better == [true; 2]) {
            (true, _) => Verdict::Reproduced,
            (false, true) => Verdict::Partly,
            _ => Verdict::NotReproduced,
        };
        Judgement {
            verdict,
            headline: format!(
                "error at 3 bits {:.1} % rounded, {:.2} % by GPTQ; at 2 bits {:.1} % and {:.1} % (32 \
                 bits: {:.2} %)",
                mean(three[0]),
                mean(three[1]),
                mean(two[0]),
                mean(two[1]),
                mean(DENSE)
            ),
            reason: format!(
                "Rounding to nearest costs {}, {} and {} points at 4, 3 and 2 bits, GPTQ {}, {} and \
                 {}. The squared error of the layers' outputs is {:.1} %, {:.1} % and {:.1} % of \
                 rounding's.",
                loss(four[0]),
                loss(three[0]),
                loss(two[0]),
                loss(four[1]),
                loss(three[1]),
                loss(two[1]),
                mean(four[2]),
                mean(three[2]),
                mean(two[2])
            ),
        }
    }
}
