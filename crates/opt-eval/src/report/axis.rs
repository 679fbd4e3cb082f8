//! Scales, ticks and axes.

use super::format;
use super::svg::{Anchor, Svg};

/// Whether a number has a place on an axis; what is larger would overflow the arithmetic.
pub(crate) fn drawable(v: f64) -> bool {
    v.abs() <= 1e100
}

/// What an axis' numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Number,
    Bytes,
    Microseconds,
    Percent,
}

impl Unit {
    /// A value with its unit.
    pub(crate) fn text(self, v: f64) -> String {
        match self {
            Unit::Number if v.abs() >= 1e4 || v.fract() == 0.0 => {
                let sign = if v < 0.0 { "-" } else { "" };
                format!("{sign}{}", format::count(v.abs()))
            }
            Unit::Number => format!("{v:.4}"),
            Unit::Bytes => format::bytes(v),
            Unit::Microseconds => format::microseconds(v),
            Unit::Percent => format::percent(v),
        }
    }

    /// What a tick says; `step` is the distance to the next.
    fn tick(self, v: f64, step: f64) -> String {
        let trimmed = |text: String| match text.split_once(' ') {
            Some((number, unit)) if number.contains('.') => {
                let number = number.trim_end_matches('0').trim_end_matches('.');
                format!("{number} {unit}")
            }
            _ => text,
        };
        let decimals = |step: f64| (-step.log10().floor()).clamp(0.0, 6.0) as usize;
        // No "-0".
        let v = v + 0.0;
        match self {
            _ if v == 0.0 => "0".to_string(),
            Unit::Percent => format!("{:.*} %", decimals(step * 100.0), v * 100.0),
            Unit::Number if v.abs() < 1e-4 || v.abs() >= 1e15 => format!("{v:.1e}"),
            Unit::Number if v.abs() < 1e4 => format!("{v:.*}", decimals(step)),
            _ => trimmed(self.text(v)),
        }
    }
}

/// How values become places: linear or logarithmic, with ticks.
#[derive(Debug, Clone)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
    unit: Unit,
}

impl Scale {
    /// From 0 to the largest of some values, for bars.
    pub(crate) fn zero_to(values: impl Iterator<Item = f64>, unit: Unit) -> Scale {
        let high = values.filter(|v| drawable(*v)).fold(0.0, f64::max);
        Scale::new(0.0, if high > 0.0 { high } else { 1.0 }, false, unit)
    }

    /// Over values with a margin of a share of their range; values that have no place are left
    /// out.
    pub(crate) fn over(values: impl Iterator<Item = f64>, margin: f64, unit: Unit) -> Scale {
        let (low, high) = range(values.filter(|v| drawable(*v)));
        let span = high - low;
        // Equal values, or so nearly equal that ticks could not tell them apart.
        let pad = if span > 1e-9 * low.abs().max(high.abs()) {
            span * margin
        } else {
            (low.abs() * 0.1).max(1e-3)
        };
        Scale::new(low - pad, high + pad, false, unit)
    }

    /// Logarithmic, over the positive values.
    pub(crate) fn log_over(values: impl Iterator<Item = f64>, unit: Unit) -> Scale {
        let (low, high) = range(values.filter(|v| drawable(*v) && *v > 1e-100));
        let (low, high) = if low > 0.0 { (low, high) } else { (1.0, 10.0) };
        let pad = (high / low).powf(0.08).max(1.3);
        Scale::new(low / pad, high * pad, true, unit)
    }

    fn new(low: f64, high: f64, log: bool, unit: Unit) -> Scale {
        Scale {
            low,
            high,
            log,
            from: 0.0,
            to: 1.0,
            unit,
        }
    }

    /// Keeps the ends within limits, such as 0 and 1 for shares.
    pub(crate) fn within(mut self, low: f64, high: f64) -> Scale {
        self.low = self.low.max(low);
        self.high = self.high.min(high);
        self
    }

    /// Places it between two coordinates.
    pub(crate) fn place(mut self, from: f64, to: f64) -> Scale {
        (self.from, self.to) = (from, to);
        self
    }

    pub(crate) fn low(&self) -> f64 {
        self.low
    }

    /// The place of a value; ends of the axis for what lies outside.
    pub(crate) fn at(&self, v: f64) -> f64 {
        let share = if self.log {
            (v.max(1e-300).ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (v - self.low) / (self.high - self.low)
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Round values with what they are called, about `most` of them.
    pub(crate) fn ticks(&self, most: usize) -> Vec<(f64, String)> {
        if self.log {
            return self.log_ticks(most);
        }
        // Bytes have round numbers in the unit that they are shown in.
        let unit = match self.unit {
            Unit::Bytes => 1024f64.powf(self.high.max(1.0).log(1024.0).floor().clamp(0.0, 4.0)),
            _ => 1.0,
        };
        let step = nice((self.high - self.low) / unit / most.max(1) as f64) * unit;
        let first = (self.low / step - 1e-9).ceil();
        (0..=most + 1)
            .map(|i| (first + i as f64) * step)
            .take_while(|v| *v <= self.high + step * 1e-9)
            .map(|v| (v, self.unit.tick(v, step)))
            .collect()
    }

    fn log_ticks(&self, most: usize) -> Vec<(f64, String)> {
        let base: f64 = if self.unit == Unit::Bytes { 2.0 } else { 10.0 };
        let (low, high) = (self.low.log(base), self.high.log(base));
        let step = ((high - low) / most.max(1) as f64).ceil().max(1.0);
        let first = (low / step - 1e-9).ceil();
        let powers = (0..=most + 1).map(|i| (first + i as f64) * step);
        let mut ticks: Vec<f64> = powers
            .take_while(|p| *p <= high + 1e-9)
            .map(|p| base.powf(p))
            .collect();
        if base == 10.0 && ticks.len() < 3 {
            // Less than two decades: 1, 2 and 5 of each.
            let decades = (low.floor() as i32)..=(high.floor() as i32);
            ticks = decades
                .flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d)))
                .filter(|v| (self.low..=self.high).contains(v))
                .take(most + 2)
                .collect();
        }
        ticks
            .into_iter()
            .map(|v| (v, self.unit.tick(v, v)))
            .collect()
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// The smallest of 1, 2 and 5 times a power of ten that is no less.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.max(1e-300).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| *s >= step * (1.0 - 1e-9))
        .unwrap_or(power)
}

/// The frame of a plot with x and y axes, in a drawing of the width that all plots share.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) svg: Svg,
    pub(crate) x: Scale,
    pub(crate) y: Scale,
    pub(crate) left: f64,
    pub(crate) right: f64,
    pub(crate) top: f64,
    pub(crate) bottom: f64,
}

/// The width of a plot; the page shows it at about this many pixels.
pub(crate) const WIDTH: f64 = 400.0;

impl Frame {
    /// Axes with ticks, grid lines and labels.
    pub(crate) fn new(height: f64, x: (Scale, &str), y: (Scale, &str)) -> Frame {
        let (left, right, top, bottom) = (66.0, WIDTH - 12.0, 10.0, height - 40.0);
        let mut frame = Frame {
            svg: Svg::new(WIDTH, height),
            x: x.0.place(left, right),
            y: y.0.place(bottom, top),
            left,
            right,
            top,
            bottom,
        };
        frame.y_axis(y.1);
        frame.x_axis(6, x.1);
        frame
    }

    fn y_axis(&mut self, label: &str) {
        for (v, text) in self.y.ticks(5) {
            let y = self.y.at(v);
            self.svg.line("rule", (self.left, y), (self.right, y));
            self.svg
                .text("tick", (self.left - 6.0, y + 3.5), Anchor::End, &text);
        }
        let middle = (self.top + self.bottom) / 2.0;
        self.svg
            .text_up("axis-label", (12.0, middle), Anchor::Middle, label);
    }

    fn x_axis(&mut self, most: usize, label: &str) {
        x_axis(&mut self.svg, &self.x, most, (self.top, self.bottom), label);
    }
}

/// A horizontal axis below a plot, with grid lines up to its top. Ticks that would touch the one
/// before are left out.
pub(crate) fn x_axis(svg: &mut Svg, scale: &Scale, most: usize, rows: (f64, f64), label: &str) {
    let (top, bottom) = rows;
    let (from, to) = (scale.from.min(scale.to), scale.from.max(scale.to));
    let mut free = f64::NEG_INFINITY;
    for (v, text) in scale.ticks(most) {
        let x = scale.at(v);
        svg.line("rule", (x, top), (x, bottom));
        let half = super::svg::text_width(&text) / 2.0;
        if x - half > free {
            svg.text("tick", (x, bottom + 14.0), Anchor::Middle, &text);
            free = x + half + 4.0;
        }
    }
    svg.line("axis", (from, bottom), (to, bottom));
    svg.text(
        "axis-label",
        ((from + to) / 2.0, bottom + 32.0),
        Anchor::Middle,
        label,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<String> {
        scale.ticks(5).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round() {
        let number = |low, high| labels(Scale::new(low, high, false, Unit::Number));
        assert_eq!(number(0.0, 10.0), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(number(-0.1, 0.1), ["-0.10", "-0.05", "0", "0.05", "0.10"]);
        let share = Scale::new(0.95, 1.0, false, Unit::Percent);
        assert_eq!(
            labels(share),
            ["95 %", "96 %", "97 %", "98 %", "99 %", "100 %"]
        );
        let bytes = Scale::new(0.0, 500_000.0, false, Unit::Bytes);
        assert_eq!(
            labels(bytes),
            ["0", "100 KiB", "200 KiB", "300 KiB", "400 KiB"]
        );
        let log = Scale::new(3000.0, 700_000.0, true, Unit::Bytes);
        assert_eq!(labels(log), ["4 KiB", "16 KiB", "64 KiB", "256 KiB"]);
        let log = Scale::new(7.0, 300.0, true, Unit::Microseconds);
        assert_eq!(labels(log), ["10 µs", "20 µs", "50 µs", "100 µs", "200 µs"]);
    }

    #[test]
    fn no_values_give_finite_places_and_bounded_ticks() {
        let odd: [&[f64]; 8] = [
            &[],
            &[f64::NAN],
            &[f64::INFINITY, f64::NEG_INFINITY],
            &[0.0],
            &[5.0, 5.0],
            &[1e100, -1e100],
            &[1e100],
            &[1.0, 1.0 + f64::EPSILON, f64::MAX],
        ];
        for values in odd {
            for scale in [
                Scale::over(values.iter().copied(), 0.1, Unit::Number),
                Scale::zero_to(values.iter().copied(), Unit::Bytes),
                Scale::log_over(values.iter().copied(), Unit::Microseconds),
                Scale::log_over(values.iter().copied(), Unit::Bytes),
            ] {
                let scale = scale.place(10.0, 110.0);
                let ticks = scale.ticks(5);
                assert!(ticks.len() <= 8, "{values:?} {ticks:?}");
                for v in values.iter().copied().chain(ticks.iter().map(|t| t.0)) {
                    let at = scale.at(v);
                    assert!(
                        v.is_nan() || (10.0..=110.0).contains(&at),
                        "{values:?} {v} {at}"
                    );
                }
            }
        }
    }
}
