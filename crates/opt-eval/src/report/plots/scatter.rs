//! Accuracy against a cost: one labelled point a model.

use super::super::axis::{Frame, Scale, Unit, drawable};
use super::super::svg::{Anchor, shorten, text_width};
use super::Figure;

/// A model: its name, cost and accuracy, and its colour (a series, or none).
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) series: Option<usize>,
}

/// A rectangle: left, top, right, bottom.
type Area = (f64, f64, f64, f64);

fn overlap(a: Area, b: Area) -> f64 {
    let w = a.2.min(b.2) - a.0.max(b.0);
    let h = a.3.min(b.3) - a.1.max(b.1);
    if w > 0.0 && h > 0.0 { w * h } else { 0.0 }
}

/// `None` if no point can be drawn.
pub(crate) fn scatter(
    id: &str,
    heading: &str,
    x_label: &str,
    unit: Unit,
    points: &[Point],
) -> Option<Figure> {
    let fits = |p: &&Point| drawable(p.x) && drawable(p.y) && p.x > 0.0;
    let shown: Vec<&Point> = points.iter().filter(fits).collect();
    if shown.is_empty() {
        return None;
    }
    let x = Scale::log_over(shown.iter().map(|p| p.x), unit);
    let y = Scale::over(shown.iter().map(|p| p.y), 0.15, Unit::Percent).within(0.0, 1.0);
    let cut = y.low() > 0.0;
    let mut frame = Frame::new(300.0, (x, x_label), (y, "accuracy"));
    let places: Vec<(f64, f64)> = shown
        .iter()
        .map(|p| (frame.x.at(p.x), frame.y.at(p.y)))
        .collect();
    let mut taken: Vec<Area> = places
        .iter()
        .map(|&(x, y)| (x - 6.0, y - 6.0, x + 6.0, y + 6.0))
        .collect();
    // Those with a colour of their own on top: models can share a place.
    let mut order: Vec<_> = shown.iter().zip(&places).collect();
    order.sort_by_key(|(p, _)| p.series.is_some());
    for (p, &at) in order {
        let class = match p.series {
            Some(series) => format!("point f{series}"),
            None => "point other".to_string(),
        };
        let (cost, accuracy) = (unit.text(p.x), Unit::Percent.text(p.y));
        let title = format!("{}: {accuracy} at {cost}", p.name);
        frame.svg.circle(&class, at, 5.0, &title);
    }
    for (p, &(x, y)) in shown.iter().zip(&places) {
        let label = shorten(&p.name, 170.0);
        let (area, anchor, base) = place_label(&frame, &taken, (x, y), text_width(&label));
        taken.push(area);
        // A line to labels that stand away from their point.
        let (near_x, near_y) = (x.clamp(area.0, area.2), y.clamp(area.1, area.3));
        if (near_x - x).hypot(near_y - y) > 12.0 {
            frame.svg.line("lead", (x, y), (near_x, near_y));
        }
        frame.svg.text("label", base, anchor, &label);
    }
    let mut caption = format!(
        "Accuracy on the test set against {x_label} on a logarithmic axis; up and to the left is \
         better."
    );
    if cut {
        caption.push_str(" The accuracy axis does not start at 0.");
    }
    match points.len() - shown.len() {
        0 => {}
        1 => caption.push_str(" One model without a finite, positive value is left out."),
        n => caption.push_str(&format!(
            " {n} models without finite, positive values are left out."
        )),
    }
    let list = |p: &&Point| {
        let (cost, accuracy) = (unit.text(p.x), Unit::Percent.text(p.y));
        format!("{}: {accuracy} at {cost}", p.name)
    };
    let desc: Vec<String> = shown.iter().map(list).collect();
    Some(Figure {
        heading: heading.to_string(),
        svg: frame.svg.finish(id, heading, &desc.join("; ")),
        caption,
        legend: Vec::new(),
    })
}

/// Where a label covers the least: beside its point, above or below it, farther away if need be.
fn place_label(
    frame: &Frame,
    taken: &[Area],
    (x, y): (f64, f64),
    width: f64,
) -> (Area, Anchor, (f64, f64)) {
    const HEIGHT: f64 = 12.0;
    let mut best: Option<(f64, (Area, Anchor, (f64, f64)))> = None;
    for distance in (0..8).map(|step| f64::from(step) * 9.0) {
        for (left, middle, anchor, base_x) in [
            (x + 9.0, y + distance, Anchor::Start, x + 9.0),
            (x - 9.0 - width, y + distance, Anchor::End, x - 9.0),
            (x + 9.0, y - distance, Anchor::Start, x + 9.0),
            (x - 9.0 - width, y - distance, Anchor::End, x - 9.0),
            (x - width / 2.0, y - 13.0 - distance, Anchor::Middle, x),
            (x - width / 2.0, y + 13.0 + distance, Anchor::Middle, x),
        ] {
            let (top, bottom) = (middle - HEIGHT / 2.0, middle + HEIGHT / 2.0);
            let area = (left, top, left + width, bottom);
            let covered: f64 = taken.iter().map(|&t| overlap(t, area)).sum();
            let inside = (frame.left, frame.top, frame.right, frame.bottom);
            let outside = width * HEIGHT - overlap(area, inside);
            let cost = covered + 4.0 * outside + distance * 0.1;
            if best.as_ref().is_none_or(|(least, _)| cost < *least - 1e-9) {
                best = Some((cost, (area, anchor, (base_x, middle + 4.0))));
            }
        }
    }
    best.expect("there are candidates").1
}
