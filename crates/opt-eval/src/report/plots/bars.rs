//! Grouped horizontal bars: one group a layer, one bar a model.

use super::super::axis::{Scale, Unit, WIDTH, drawable, x_axis};
use super::super::svg::{Anchor, Svg, shorten, text_width};
use super::Figure;

/// The most layers that are drawn; the others are left out, and the caption says so.
const MOST: usize = 30;

/// A layer's values, one a series; `None` where a model does not have the layer.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<f64>>,
}

/// What the bars are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bars<'a> {
    pub(crate) id: &'a str,
    pub(crate) heading: &'a str,
    pub(crate) axis: &'a str,
    pub(crate) caption: &'a str,
    pub(crate) unit: Unit,
}

/// `None` if there is nothing to draw.
pub(crate) fn bars(what: Bars<'_>, series: &[String], groups: &[Group]) -> Option<Figure> {
    let value = |v: &Option<f64>| v.filter(|v| drawable(*v));
    let largest = |g: &Group| g.values.iter().filter_map(value).fold(f64::MIN, f64::max);
    let mut shown: Vec<&Group> = groups
        .iter()
        .filter(|g| g.values.iter().any(|v| value(v).is_some()))
        .collect();
    if shown.is_empty() {
        return None;
    }
    let all = shown.len();
    if all > MOST {
        let mut sizes: Vec<f64> = shown.iter().map(|g| largest(g)).collect();
        sizes.sort_unstable_by(|a, b| b.total_cmp(a));
        let least = sizes[MOST - 1];
        shown.retain(|g| largest(g) >= least);
        shown.truncate(MOST);
    }
    let shares = what.unit == Unit::Percent;
    let scale = match shares {
        true => Scale::zero_to([1.0].into_iter(), what.unit),
        false => Scale::zero_to(shown.iter().map(|g| largest(g)), what.unit),
    };
    let longest = shown
        .iter()
        .map(|g| text_width(&g.name))
        .fold(0.0, f64::max);
    // Long names stand above their bars.
    let above = longest > 110.0;
    let left = if above { 8.0 } else { longest.max(20.0) + 12.0 };
    // Room for the value behind the longest bar.
    let right = WIDTH - 62.0;
    let (bar, gap) = (13.0, if above { 22.0 } else { 9.0 });
    let group = bar * series.len() as f64 + gap;
    let (top, bottom) = (6.0, 6.0 + group * shown.len() as f64);
    let scale = scale.place(left, right);
    let mut svg = Svg::new(WIDTH, bottom + 42.0);
    x_axis(&mut svg, &scale, 5, (top, bottom), what.axis);
    svg.line("axis", (left, top), (left, bottom));
    let mut desc = Vec::new();
    for (i, g) in shown.iter().enumerate() {
        let y = top + group * i as f64 + if above { gap - 4.0 } else { gap / 2.0 };
        let middle = y + bar * series.len() as f64 / 2.0 + 4.0;
        if above {
            let name = shorten(&g.name, WIDTH - left - 8.0);
            svg.text("label", (left + 4.0, y - 4.0), Anchor::Start, &name);
        } else {
            svg.text("label", (left - 6.0, middle), Anchor::End, &g.name);
        }
        for (s, name) in series.iter().enumerate() {
            let y = y + bar * s as f64;
            let base = y + bar / 2.0 + 3.5;
            let Some(v) = g.values.get(s).and_then(value) else {
                svg.text("none", (left + 5.0, base), Anchor::Start, "none");
                continue;
            };
            let text = what.unit.text(v);
            let said = format!("{}, {name}: {text}", g.name);
            let width = scale.at(v) - left;
            let class = format!("bar f{s}");
            svg.rect(&class, (left, y + 1.0), (width, bar - 2.0), "", &said);
            let at = (left + width + 4.0, base);
            svg.text("value", at, Anchor::Start, &text);
            desc.push(said);
        }
    }
    let mut caption = what.caption.to_string();
    if shown.len() < all {
        caption.push_str(&format!(
            " Shown are the {MOST} of {all} layers with the largest values."
        ));
    }
    Some(Figure {
        heading: what.heading.to_string(),
        svg: svg.finish(what.id, what.heading, &desc.join("; ")),
        caption,
        legend: series.to_vec(),
    })
}
