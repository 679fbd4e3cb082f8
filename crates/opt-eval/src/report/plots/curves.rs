//! Lines: a figure over epochs, steps or anything else.

use super::super::axis::{Frame, Scale, Unit, drawable};
use super::{Figure, style_of};
use crate::report::Curve;

/// The most points of a line that are drawn; of more, every second, third and so on.
const MOST: usize = 800;

/// `None` if there are no points to draw.
pub(crate) fn curves(
    id: &str,
    heading: &str,
    labels: (&str, &str),
    curves: &[Curve],
) -> Option<Figure> {
    let fits = |p: &&(f64, f64)| drawable(p.0) && drawable(p.1);
    let shown = || curves.iter().flat_map(|c| c.points.iter().filter(fits));
    shown().next()?;
    let x = Scale::over(shown().map(|p| p.0), 0.0, Unit::Number);
    let (y, log) = y_scale(|| shown().map(|p| p.1));
    let mut frame = Frame::new(300.0, (x, labels.0), (y, labels.1));
    let mut desc = Vec::new();
    let mut left_out = 0;
    for (s, curve) in curves.iter().enumerate() {
        let points: Vec<&(f64, f64)> = curve.points.iter().filter(fits).collect();
        left_out += curve.points.len() - points.len();
        let every = points.len().div_ceil(MOST).max(1);
        let places: Vec<(f64, f64)> = points
            .iter()
            .enumerate()
            .filter(|(i, _)| i % every == 0 || i + 1 == points.len())
            .map(|(_, p)| (frame.x.at(p.0), frame.y.at(p.1)))
            .collect();
        let (colour, dash) = style_of(s);
        let class = format!("curve l{colour} d{dash}");
        frame.svg.path(&class, &places);
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            let text = |v: f64| Unit::Number.text(v);
            let (from, to) = (text(first.1), text(last.1));
            let said = format!("{}: from {from} to {to}", curve.name);
            // A single point is no line.
            let mark = format!("point f{colour}");
            frame
                .svg
                .circle(&mark, places[places.len() - 1], 3.0, &said);
            desc.push(said);
        }
    }
    let axis = if log { ", on a logarithmic axis" } else { "" };
    let mut caption = format!("The dot is the last value of {}{axis}.", labels.1);
    if left_out > 0 {
        caption.push_str(&format!(
            " {left_out} points that are not finite are left out."
        ));
    }
    Some(Figure {
        heading: heading.to_string(),
        svg: frame.svg.finish(id, heading, &desc.join("; ")),
        caption,
        legend: curves.iter().map(|c| c.name.clone()).collect(),
    })
}

/// Linear, or logarithmic where positive values spread over more than two decades, and whether it
/// is.
fn y_scale<I: Iterator<Item = f64>>(values: impl Fn() -> I) -> (Scale, bool) {
    let high = values().fold(f64::MIN, f64::max);
    let low = values().fold(f64::MAX, f64::min);
    if low > 0.0 && high / low > 100.0 {
        return (Scale::log_over(values(), Unit::Number), true);
    }
    let y = Scale::over(values(), 0.06, Unit::Number);
    // Errors, losses and shares have no values below 0, so neither has their axis.
    if low >= 0.0 {
        return (y.within(0.0, f64::INFINITY), false);
    }
    (y, false)
}
