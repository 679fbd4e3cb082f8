//! The confusion matrix as a heat map.

use super::super::axis::WIDTH;
use super::super::format;
use super::super::svg::{Anchor, Svg, num, shorten, text_width};
use super::Figure;
use crate::ConfusionMatrix;

/// The most classes that are drawn.
pub(crate) const MOST: usize = 40;

/// `None` if there are no classes, or more than [`MOST`].
pub(crate) fn confusion(
    id: &str,
    model: &str,
    matrix: &ConfusionMatrix,
    names: &[String],
) -> Option<Figure> {
    let n = matrix.classes();
    if n == 0 || n > MOST {
        return None;
    }
    let longest = names
        .iter()
        .map(|name| text_width(name))
        .fold(0.0, f64::max);
    let labels = longest.clamp(8.0, 90.0);
    let cell = ((WIDTH - labels - 32.0) / n as f64).min(40.0);
    let side = cell * n as f64;
    let margin = (WIDTH - labels - 32.0 - side) / 2.0;
    let left = labels + 28.0 + margin;
    // Names that are wider than their column read upwards.
    let upright = longest > cell - 2.0;
    let below = if upright { labels + 8.0 } else { 14.0 };
    let (top, right) = (4.0, left + side);
    let mut svg = Svg::new(WIDTH, top + side + below + 28.0);
    let most = matrix.rows().flatten().copied().max().unwrap_or(0).max(1);
    for truth in 0..n {
        for predicted in 0..n {
            let count = matrix.count(truth, predicted);
            let at = (left + cell * predicted as f64, top + cell * truth as f64);
            // A single mistake has to be seen; all shades are light enough for the number on them
            // in either theme.
            let (class, least) = match truth == predicted {
                true => ("cell hit", 0.12),
                false => ("cell miss", 0.25),
            };
            let opacity = match count {
                0 => 0.0,
                count => least + (0.55 - least) * count as f64 / most as f64,
            };
            let style = format!(" fill-opacity=\"{}\"", num(opacity));
            let said = format!(
                "{count} of class {} predicted as {}",
                names[truth], names[predicted]
            );
            svg.rect(class, at, (cell, cell), &style, &said);
            let text = format::count(count as f64);
            if count > 0 && text_width(&text) < cell - 2.0 {
                let middle = (at.0 + cell / 2.0, at.1 + cell / 2.0 + 4.0);
                svg.text("count", middle, Anchor::Middle, &text);
            }
        }
    }
    let every = (13.0 / cell).ceil().max(1.0) as usize;
    for class in (0..n).step_by(every) {
        let middle = cell * (class as f64 + 0.5);
        let name = shorten(&names[class], 90.0);
        svg.text("tick", (left - 6.0, top + middle + 3.5), Anchor::End, &name);
        if upright {
            let end = (left + middle + 3.5, top + side + 6.0);
            svg.text_up("tick", end, Anchor::End, &name);
        } else {
            let under = (left + middle, top + side + 14.0);
            svg.text("tick", under, Anchor::Middle, &name);
        }
    }
    let beside = (margin + 12.0, top + side / 2.0);
    svg.text_up("axis-label", beside, Anchor::Middle, "true class");
    let under = ((left + right) / 2.0, top + side + below + 18.0);
    svg.text("axis-label", under, Anchor::Middle, "predicted class");
    let total: u64 = matrix.rows().flatten().sum();
    let wrong = total - (0..n).map(|c| matrix.count(c, c)).sum::<u64>();
    let heading = format!("Confusion matrix of {model}");
    let desc = format!("{wrong} of {total} examples are predicted as another class");
    Some(Figure {
        svg: svg.finish(id, &heading, &desc),
        heading,
        caption: format!(
            "Rows are true classes, columns predicted ones, numbers are examples; the more, the \
             stronger the shade. {desc}."
        ),
        legend: Vec::new(),
    })
}
