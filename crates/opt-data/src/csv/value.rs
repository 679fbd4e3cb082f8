//! What a cell holds: text, a number, a label.

use std::borrow::Cow;

use crate::{Error, ErrorKind, Result};

/// A cell without the white space and the quotes around it.
pub(super) fn text(cell: &[u8]) -> Result<Cow<'_, str>> {
    let text = std::str::from_utf8(cell)
        .map_err(|e| Error::new(ErrorKind::Format, "the value is not UTF-8").with_source(e))?
        .trim();
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    Ok(match inner {
        None => Cow::Borrowed(text),
        Some(inner) if inner.contains('"') => Cow::Owned(inner.replace("\"\"", "\"")),
        Some(inner) => Cow::Borrowed(inner),
    })
}

pub(super) fn number(text: &str) -> Result<f32> {
    let text = text.trim();
    let value: f32 = text.parse().map_err(|_| not_a_number(text))?;
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::new(
        ErrorKind::Data,
        match text.parse::<f64>() {
            Ok(v) if v.is_finite() => format!("`{text}` is too large for f32"),
            _ => format!("`{}` is not a finite number", shortened(text)),
        },
    ))
}

/// A class label, below `classes` where they are given.
pub(super) fn label(text: &str, classes: Option<usize>) -> Result<i64> {
    let text = text.trim();
    let fail = |why: String| Error::new(ErrorKind::Data, why);
    let label = match text.parse::<i64>() {
        Ok(label) => label,
        // Spreadsheets and data frames write `3.0`; 2^53 bounds what an f64 holds exactly.
        Err(_) => match text.parse::<f64>() {
            Ok(v) if v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0 => v as i64,
            Ok(_) => return Err(fail(format!("label `{}` is no integer", shortened(text)))),
            Err(_) => return Err(not_a_number(text)),
        },
    };
    if label < 0 {
        return Err(fail(format!("label {label} is negative")));
    }
    match classes {
        Some(classes) if label as u64 >= classes as u64 => {
            Err(fail(format!("label {label} is not in 0..{classes}")))
        }
        _ => Ok(label),
    }
}

fn not_a_number(text: &str) -> Error {
    let message = match text {
        "" => "the value is missing".to_string(),
        _ => format!("`{}` is no number", shortened(text)),
    };
    Error::new(ErrorKind::Format, message)
}

/// At most 40 characters, so that a binary file makes no page-long message.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}..", &text[..at]),
        None => text.to_string(),
    }
}
