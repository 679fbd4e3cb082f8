//! How a model was made: the passes that its graph logged, as boxes and arrows, and as Mermaid.

use super::super::axis::WIDTH;
use super::super::svg::{Anchor, Svg, shorten, text_width};
use super::Figure;
use opt_core::graph::Applied;

const HEIGHT: f64 = 30.0;
const ARROW: f64 = 22.0;

/// Boxes from left to right, line under line.
pub(crate) fn chain(id: &str, model: &str, log: &[Applied]) -> Figure {
    let mut boxes: Vec<(&str, String, String)> = vec![(
        "box end",
        "input".to_string(),
        "The graph that the pipeline was given".to_string(),
    )];
    for applied in log {
        let said = match applied.config.as_str() {
            "" => applied.summary.clone(),
            config => format!("{config}: {}", applied.summary),
        };
        boxes.push(("box", applied.pass.clone(), said));
    }
    boxes.push(("box end", model.to_string(), model.to_string()));
    let most = WIDTH - 2.0 - ARROW;
    let mut places = Vec::with_capacity(boxes.len());
    let (mut x, mut y) = (1.0, 1.0);
    for (i, (_, label, _)) in boxes.iter().enumerate() {
        let width = (text_width(label) + 20.0).min(most - ARROW);
        if i > 0 && x + ARROW + width > WIDTH - 1.0 {
            // The next line starts with the arrow's head.
            (x, y) = (1.0, y + HEIGHT + 14.0);
        }
        let left = if i > 0 { x + ARROW } else { x };
        places.push((left, y, width));
        x = left + width;
    }
    let mut svg = Svg::new(WIDTH, y + HEIGHT + 2.0);
    for ((class, label, said), &(left, top, width)) in boxes.iter().zip(&places) {
        svg.rect(class, (left, top), (width, HEIGHT), " rx=\"6\"", said);
        let middle = (left + width / 2.0, top + HEIGHT / 2.0 + 4.0);
        let label = shorten(label, width - 12.0);
        svg.text("label", middle, Anchor::Middle, &label);
        if left > 1.0 {
            let (tip, row) = (left - 3.0, top + HEIGHT / 2.0);
            svg.line("arrow", (left - ARROW + 3.0, row), (tip, row));
            svg.path(
                "arrow",
                &[(tip - 5.0, row - 4.0), (tip, row), (tip - 5.0, row + 4.0)],
            );
        }
    }
    let names: Vec<&str> = boxes.iter().map(|(_, label, _)| label.as_str()).collect();
    Figure {
        heading: model.to_string(),
        svg: svg.finish(id, &format!("How {model} was made"), &names.join(", then ")),
        caption: log
            .iter()
            .map(|a| format!("{}: {}.", a.pass, rounded(a.summary.trim_end_matches('.'))))
            .collect::<Vec<_>>()
            .join("\n"),
        legend: Vec::new(),
    }
}

/// The same chains as a Mermaid flow chart.
pub(crate) fn mermaid(chains: &[(&str, &[Applied])]) -> String {
    let label = |text: &str| {
        let text = text.replace('#', "#35;").replace('"', "#quot;");
        text.replace(['\n', '\r'], " ")
    };
    let mut out = String::from("flowchart LR\n");
    for (c, (model, log)) in chains.iter().enumerate() {
        let mut line = format!("  c{c}_start([input])");
        for (i, applied) in log.iter().enumerate() {
            line.push_str(&format!(" --> c{c}_{i}[\"{}\"]", label(&applied.pass)));
        }
        line.push_str(&format!(" --> c{c}_end([\"{}\"])\n", label(model)));
        out.push_str(&line);
    }
    out
}

/// Text with its long fractions rounded to four decimals.
fn rounded(text: &str) -> String {
    let word = |word: &str| {
        let number = word.trim_end_matches([',', ';']);
        let decimals = number.split_once('.').map_or(0, |(_, after)| after.len());
        match number.parse::<f64>() {
            Ok(v) if decimals > 4 && v.abs() >= 0.01 => {
                format!("{v:.4}{}", &word[number.len()..])
            }
            _ => word.to_string(),
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_rounded_and_names_are_not() {
        assert_eq!(
            rounded("sparsity 0.9000026510431854, sparsity of c1.weight 0.25; v1.23456 1e-7"),
            "sparsity 0.9000, sparsity of c1.weight 0.25; v1.23456 1e-7"
        );
    }

    #[test]
    fn mermaid_labels_cannot_end_their_quotes() {
        let applied = Applied {
            pass: "a\"] --> x[\"#b".to_string(),
            config: String::new(),
            summary: String::new(),
        };
        assert_eq!(
            mermaid(&[("m", &[applied])]),
            "flowchart LR\n  c0_start([input]) --> c0_0[\"a#quot;] --> x[#quot;#35;b\"] \
             --> c0_end([\"m\"])\n"
        );
    }
}
