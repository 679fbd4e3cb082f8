//! The report's drawings, one kind a file. Each is a figure for the page: an SVG element and its
//! caption.

pub(crate) mod bars;
pub(crate) mod chain;
pub(crate) mod confusion;
pub(crate) mod curves;
pub(crate) mod histogram;
pub(crate) mod scatter;

/// How many colours for series there are in the style sheet.
pub(crate) const SERIES: usize = 4;

/// The colour of a line and its pattern of dashes, by classes of the style sheet.
pub(crate) fn style_of(series: usize) -> (usize, usize) {
    (series % SERIES, series / SERIES % 3)
}

/// A drawing with its caption, as plain text of one or more lines.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) heading: String,
    pub(crate) svg: String,
    pub(crate) caption: String,
    /// The names of the series, in the order of their colours; none where points are labelled.
    pub(crate) legend: Vec<String>,
}
