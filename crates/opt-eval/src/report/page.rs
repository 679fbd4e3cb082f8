//! Parts of the page: figures, tables, the frame around it all.

use super::plots::Figure;
use super::svg::escape;

const STYLE: &str = include_str!("style.css");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A cell: what it says, how that compares, and whether that is better.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    pub(crate) value: String,
    pub(crate) change: Option<(String, Verdict)>,
}

/// Whether a change is for the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Better,
    Same,
    Worse,
}

impl Cell {
    pub(crate) fn plain(value: impl Into<String>) -> Cell {
        Cell {
            value: value.into(),
            change: None,
        }
    }

    pub(crate) fn or_dash(value: Option<String>) -> Cell {
        Cell::plain(value.unwrap_or_else(|| "–".to_string()))
    }
}

/// A table whose first column names the rows; on narrow screens each row becomes a card.
pub(crate) fn table(label: &str, header: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut out = format!(
        "<table role=\"table\" aria-label=\"{}\"><thead role=\"rowgroup\"><tr role=\"row\">",
        escape(label)
    );
    for name in header {
        out.push_str(&format!(
            "<th scope=\"col\" role=\"columnheader\">{}</th>",
            escape(name)
        ));
    }
    out.push_str("</tr></thead>\n<tbody role=\"rowgroup\">\n");
    for row in rows {
        out.push_str("<tr role=\"row\">");
        for (i, (cell, name)) in row.iter().zip(header).enumerate() {
            let value = escape(&cell.value);
            if i == 0 {
                out.push_str(&format!(
                    "<th scope=\"row\" role=\"rowheader\">{value}</th>"
                ));
                continue;
            }
            let change = cell.change.as_ref().map(|(text, verdict)| {
                let class = match verdict {
                    Verdict::Better => " class=\"better\"",
                    Verdict::Same => "",
                    Verdict::Worse => " class=\"worse\"",
                };
                format!("<small{class}>{}</small>", escape(text))
            });
            out.push_str(&format!(
                "<td role=\"cell\" data-label=\"{}\"><span>{value}</span>{}</td>",
                escape(name),
                change.unwrap_or_default()
            ));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table>\n");
    out
}

/// The names of series beside their colours; those that share a colour with another have dashes.
pub(crate) fn legend(names: &[String]) -> String {
    let item = |(i, name): (usize, &String)| {
        let (colour, dash) = super::plots::style_of(i);
        format!(
            "<li><i class=\"k{colour} d{dash}\"></i>{}</li>",
            escape(name)
        )
    };
    let items: String = names.iter().enumerate().map(item).collect();
    format!("<ul class=\"legend\">{items}</ul>")
}

/// Escaped text with a break at each end of a line.
fn lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(escape).collect();
    lines.join("<br>")
}

/// A figure with heading, drawing and caption.
pub(crate) fn figure(figure: &Figure) -> String {
    let legend = match figure.legend.is_empty() {
        true => String::new(),
        false => legend(&figure.legend),
    };
    format!(
        "<figure><h3>{}</h3>{legend}{}<figcaption>{}</figcaption></figure>\n",
        escape(&figure.heading),
        figure.svg,
        lines(&figure.caption)
    )
}

/// A section with a heading; nothing if it is empty.
pub(crate) fn section(heading: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!(
        "<section><h2>{}</h2>\n{content}</section>\n",
        escape(heading)
    )
}

/// Content that is folded away.
pub(crate) fn details(summary: &str, content: &str) -> String {
    format!(
        "<details><summary>{}</summary>\n{content}</details>\n",
        escape(summary)
    )
}

/// Figures side by side, as many as fit.
pub(crate) fn cards(figures: impl IntoIterator<Item = Figure>) -> String {
    let figures: String = figures.into_iter().map(|f| figure(&f)).collect();
    match figures.is_empty() {
        true => figures,
        false => format!("<div class=\"grid cards\">\n{figures}</div>\n"),
    }
}

/// The whole document.
pub(crate) fn page(title: &str, intro: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header><h1>{title}</h1>\n{intro}</header>\n{body}\
         <footer>Written by opt-eval {VERSION}.</footer>\n</main>\n</body>\n</html>\n"
    )
}
