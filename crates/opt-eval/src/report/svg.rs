//! Writing SVG: escaped text, short numbers, one element a call.

use std::fmt::Write;

/// Text that is safe between tags and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(' '),
            // Controls are not allowed in HTML; overrides of the writing direction would turn
            // round what stands behind them.
            c if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) => out.push('\u{fffd}'),
            '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The width of text in the drawings' font, roughly, in units of the drawing.
pub(crate) fn text_width(text: &str) -> f64 {
    text.chars()
        .map(|c| if c.is_ascii() { 6.0 } else { 11.0 })
        .sum()
}

/// Text cut to a width, with an ellipsis in the middle: names often differ at their ends.
pub(crate) fn shorten(text: &str, width: f64) -> String {
    if text_width(text) <= width {
        return text.to_string();
    }
    let (mut head, mut tail) = (String::new(), Vec::new());
    let mut left = width - 8.0;
    let mut rest = text.chars();
    loop {
        let first = head.chars().count() <= tail.len();
        let next = if first { rest.next() } else { rest.next_back() };
        let Some(c) = next else { break };
        left -= text_width(c.encode_utf8(&mut [0; 4]));
        if left < 0.0 {
            break;
        }
        if first {
            head.push(c);
        } else {
            tail.push(c);
        }
    }
    head.push('…');
    head.extend(tail.into_iter().rev());
    head
}

/// A coordinate with two decimals at most; 0 for what is no number, so that no drawing breaks.
pub(crate) fn num(v: f64) -> String {
    if !v.is_finite() {
        return "0".to_string();
    }
    let text = format!("{v:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0" } else { text }.to_string()
}

/// Where text stands relative to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

/// A drawing. Colours come from the style sheet, by class.
#[derive(Debug)]
pub(crate) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub(crate) fn new(width: f64, height: f64) -> Svg {
        Svg {
            width,
            height,
            body: String::new(),
        }
    }

    pub(crate) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let _ = write!(
            self.body,
            "<line class=\"{class}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>",
            num(from.0),
            num(from.1),
            num(to.0),
            num(to.1)
        );
    }

    /// A rectangle from its upper left corner; `attributes` are written as they are.
    pub(crate) fn rect(
        &mut self,
        class: &str,
        at: (f64, f64),
        size: (f64, f64),
        attributes: &str,
        title: &str,
    ) {
        let _ = write!(
            self.body,
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"{attributes}>\
             <title>{}</title></rect>",
            num(at.0),
            num(at.1),
            num(size.0.max(0.0)),
            num(size.1.max(0.0)),
            escape(title)
        );
    }

    pub(crate) fn circle(&mut self, class: &str, at: (f64, f64), radius: f64, title: &str) {
        let _ = write!(
            self.body,
            "<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"{}\"><title>{}</title></circle>",
            num(at.0),
            num(at.1),
            num(radius),
            escape(title)
        );
    }

    pub(crate) fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = anchor.name();
        let _ = write!(
            self.body,
            "<text class=\"{class}\" x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            num(at.0),
            num(at.1),
            escape(text)
        );
    }

    /// Text that reads upwards.
    pub(crate) fn text_up(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let (x, y) = (num(at.0), num(at.1));
        let _ = write!(
            self.body,
            "<text class=\"{class}\" text-anchor=\"{}\" \
             transform=\"translate({x} {y}) rotate(-90)\">{}</text>",
            anchor.name(),
            escape(text)
        );
    }

    /// A line through points; the style sheet says whether it is filled.
    pub(crate) fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        if points.is_empty() {
            return;
        }
        let _ = write!(self.body, "<path class=\"{class}\" d=\"");
        for (i, &(x, y)) in points.iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            let _ = write!(self.body, "{command}{} {}", num(x), num(y));
        }
        self.body.push_str("\"/>");
    }

    /// The element. `id` has to be unique in the page; `title` and `desc` are what a screen
    /// reader says.
    pub(crate) fn finish(self, id: &str, title: &str, desc: &str) -> String {
        let (w, h) = (num(self.width), num(self.height));
        format!(
            "<svg viewBox=\"0 0 {w} {h}\" style=\"max-width:{}px\" role=\"img\" \
             aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title>\
             <desc id=\"{id}-d\">{}</desc>{}</svg>",
            num(self.width * 1.3),
            escape(title),
            escape(desc),
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(
            escape("<script>alert('\"&')</script>"),
            "&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;"
        );
        assert_eq!(escape("a\0b\u{202e}c\nd"), "a\u{fffd}b\u{fffd}c d");
    }

    #[test]
    fn numbers_are_short_and_never_nan() {
        let found = [1.0, -0.001, 2.345, f64::NAN, f64::INFINITY].map(num);
        assert_eq!(found, ["1", "0", "2.35", "0", "0"]);
    }

    #[test]
    fn shortened_text_fits() {
        assert_eq!(shorten("conv", 60.0), "conv");
        assert_eq!(shorten("a long name of a layer", 60.0), "a lo…ayer");
        for width in [0.0, 10.0, 30.0, 100.0] {
            let text = shorten("a long name of a layer", width);
            assert!(text_width(&text) <= width.max(8.0) + 3.0, "{text}");
        }
        assert_eq!(shorten("語語語語語語", 41.0), "語語…語");
    }
}
