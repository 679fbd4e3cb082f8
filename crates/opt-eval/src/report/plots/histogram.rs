//! The weights of a layer as a histogram, models over each other.

use super::super::axis::{Scale, Unit, drawable};
use super::super::svg::{Anchor, Svg, shorten};

const BINS: usize = 41;

/// What could be drawn of one model's weights.
#[derive(Debug)]
struct Counted {
    /// The share of the non-zero weights in each bin.
    shares: [f64; BINS],
    counted: usize,
    zeros: usize,
    all: usize,
}

/// A drawing of the non-zero weights of a layer; `weights` has one list a series, empty where a
/// model does not have the layer. `None` if there is no finite weight but 0.
pub(crate) fn histogram(
    id: &str,
    layer: &str,
    series: &[String],
    weights: &[Vec<f64>],
) -> Option<String> {
    let usable = |v: &f64| drawable(*v) && *v != 0.0;
    let most = weights
        .iter()
        .flatten()
        .filter(|v| usable(v))
        .map(|v| v.abs());
    let most = most.fold(0.0, f64::max);
    if most == 0.0 {
        return None;
    }
    let counted: Vec<Counted> = weights.iter().map(|w| count(w, most)).collect();
    let (width, height) = (260.0, 176.0);
    let (left, right, top, bottom) = (44.0, width - 10.0, 24.0, height - 36.0);
    let x = Scale::over([-most, most].into_iter(), 0.0, Unit::Number).place(left, right);
    let highest = counted.iter().flat_map(|c| c.shares);
    let y = Scale::zero_to(highest, Unit::Percent).place(bottom, top);
    let mut svg = Svg::new(width, height);
    svg.text(
        "plot-title",
        (4.0, 13.0),
        Anchor::Start,
        // Bold letters are wider.
        &shorten(layer, (width - 4.0) / 1.3),
    );
    for (v, text) in y.ticks(3) {
        svg.line("rule", (left, y.at(v)), (right, y.at(v)));
        svg.text("tick", (left - 5.0, y.at(v) + 3.5), Anchor::End, &text);
    }
    super::super::axis::x_axis(&mut svg, &x, 4, (top, bottom), "weight");
    let mut desc = Vec::new();
    for (s, (c, name)) in counted.iter().zip(series).enumerate() {
        if c.counted == 0 {
            continue;
        }
        let edge = |bin: usize| left + (right - left) * bin as f64 / BINS as f64;
        let mut steps = vec![(left, bottom)];
        for (bin, &share) in c.shares.iter().enumerate() {
            steps.extend([(edge(bin), y.at(share)), (edge(bin + 1), y.at(share))]);
        }
        steps.push((right, bottom));
        svg.path(&format!("steps f{s} l{s}"), &steps);
        desc.push(format!("{name}: {} weights, {} of them 0", c.all, c.zeros));
        let odd = c.all - c.zeros - c.counted;
        if odd > 0 {
            desc.push(format!("{odd} weights of {name} are not finite"));
        }
    }
    let title = format!("Weights of {layer}");
    Some(svg.finish(id, &title, &desc.join("; ")))
}

fn count(weights: &[f64], most: f64) -> Counted {
    let mut out = Counted {
        shares: [0.0; BINS],
        counted: 0,
        zeros: 0,
        all: weights.len(),
    };
    for &w in weights {
        if w == 0.0 {
            out.zeros += 1;
        } else if drawable(w) {
            // Halves first: twice the largest number is none.
            let share = (w / 2.0 + most / 2.0) / most;
            out.shares[((share * BINS as f64) as usize).min(BINS - 1)] += 1.0;
            out.counted += 1;
        }
    }
    let counted = out.counted.max(1) as f64;
    out.shares.iter_mut().for_each(|s| *s /= counted);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_nonzero_weights() {
        let c = count(&[0.0, 0.0, 1.0, -1.0, 0.01, f64::NAN], 1.0);
        assert_eq!((c.counted, c.zeros, c.all), (3, 2, 6));
        assert_eq!(c.shares[0], 1.0 / 3.0);
        assert_eq!(c.shares[BINS / 2], 1.0 / 3.0);
        assert_eq!(c.shares[BINS - 1], 1.0 / 3.0);
    }

    #[test]
    fn nothing_to_draw_is_no_drawing() {
        let names = ["a".to_string()];
        for weights in [vec![], vec![0.0; 3], vec![f64::NAN]] {
            assert!(histogram("h", "layer", &names, &[weights]).is_none());
        }
        let drawn = histogram("h", "layer", &names, &[vec![1e-30, f64::INFINITY]]).unwrap();
        assert!(drawn.contains("1 weights of a are not finite"));
        assert!(!drawn.contains("NaN"));
    }
}
