//! The ledger as a document.

use std::fmt::Write as _;

use super::Entry;

/// The document of measured claims.
pub fn document(entries: &[Entry<'_>], divisions: u64) -> String {
    let mut out = format!(
        "# Do the papers' claims hold?\n\n\
         Written by `cargo run --release --example reproduce`. Every claim is measured on {divisions} \
         random divisions of the 1,797 handwritten digits (8 x 8 pixels, UCI) into 898 images to train \
         on and 899 to test on, on the CPU backend. Figures are shares of the test images in percent, \
         mean ± standard error over the divisions; differences are taken division by division, and \
         their standard errors are of the paired differences. The last epoch counts: nothing is \
         chosen by test images. Learning rates, the L2 penalty and temperatures were chosen on other \
         divisions (numbers 1000 and on, which share their images with these). What makes a claim reproduced was written down with each method \
         before it was run. The task is small and the networks are too: a claim that holds here need \
         not hold for yours, and the other way round.\n\n\
         | claim | here | verdict |\n| --- | --- | --- |\n"
    );
    for entry in entries {
        let _ = writeln!(
            out,
            "| [{}](#{}) | {} | {} |",
            entry.claim.title(),
            anchor(entry.claim.title()),
            entry.judgement.headline,
            entry.judgement.verdict.text()
        );
    }
    for entry in entries {
        let claim = entry.claim;
        let _ = write!(
            out,
            "\n## {}\n\n*The paper.* {}\n\n*Here.* {}\n\n\
             | figure | mean ± standard error | lowest | highest |\n| --- | ---: | ---: | ---: |\n",
            claim.title(),
            claim.paper(),
            claim.method()
        );
        for series in &entry.figures.series {
            let summary = series.summary();
            let _ = writeln!(
                out,
                "| {} | {summary} % | {:.2} | {:.2} |",
                series.name, summary.least, summary.most
            );
        }
        let verdict = entry.judgement.verdict.text();
        let _ = write!(
            out,
            "\n*Verdict:* {verdict}. {}\n\nAlone: `cargo run --release --example reproduce -- --only {} \
             --out {}.md`\n",
            entry.judgement.reason,
            claim.name(),
            claim.name()
        );
    }
    out
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let words = heading.to_lowercase();
    let kept = words
        .chars()
        .filter(|c| c.is_alphanumeric() || " -".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}
