//! The model files: made once by `benches/peers/onnx_models.py`, and compared with what ONNX
//! Runtime computed then.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::rows::model_file;
use crate::{Result, oracle, root};

/// The folder of the models.
pub(crate) fn folder() -> PathBuf {
    root().join("target/bench/models")
}

/// A model's file: `onnx`, `safetensors` (its inputs) or `expected` (its outputs).
pub(crate) fn file(name: &str, extension: &str) -> PathBuf {
    folder().join(format!("{name}.{extension}"))
}

/// Makes the files of these rows that are not there, all of them if the script or a library has
/// changed.
pub(crate) fn make(rows: &[Value]) -> Result {
    let names: Vec<&str> = rows.iter().filter_map(model_file).collect();
    if names.is_empty() {
        return Ok(());
    }
    let peers = root().join("benches/peers");
    let requirements = peers.join("requirements.txt");
    oracle::install(&requirements)?;
    let script = "benches/peers/onnx_models.py";
    // Of the oracle's libraries only these have a part in it.
    let libraries = read(&oracle::requirements())?;
    let libraries = libraries
        .lines()
        .filter(|line| line.starts_with("torch") || line.starts_with("onnx"));
    let libraries: String = libraries.map(|line| format!("{line}\n")).collect();
    let made_by = read(&root().join(script))? + &read(&requirements)? + &libraries;
    let stamp = folder().join("made-by.txt");
    if !fs::read_to_string(&stamp).is_ok_and(|text| text == made_by) {
        let _ = fs::remove_dir_all(folder());
        fs::create_dir_all(folder()).map_err(|e| format!("{}: {e}", folder().display()))?;
        fs::write(&stamp, made_by).map_err(|e| format!("{}: {e}", stamp.display()))?;
    }
    let missing: Vec<&str> = names
        .into_iter()
        .filter(|name| !file(name, "onnx").exists())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let folder = folder().display().to_string();
    oracle::script(script, &[&[folder.as_str()], &missing[..]].concat())
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))
}

/// How far outputs in a file are from those expected: the largest difference, relative to the
/// largest expected entry.
pub(crate) fn difference(found: &Path, expected: &Path) -> Result<f64> {
    let (found, expected) = (entries(found)?, entries(expected)?);
    if found.len() != expected.len() {
        let (found, expected) = (found.len(), expected.len());
        return Err(format!("its outputs have {found} entries, not {expected}"));
    }
    if let Some(at) = found.iter().position(|x| !x.is_finite()) {
        return Err(format!("entry {at} of its outputs is {}", found[at]));
    }
    let pairs = found.iter().zip(&expected);
    let most = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    Ok(most / largest)
}

fn entries(file: &Path) -> Result<Vec<f64>> {
    let bytes = fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let (entries, rest) = bytes.as_chunks::<4>();
    match rest {
        [] => Ok(entries
            .iter()
            .map(|b| f64::from(f32::from_le_bytes(*b)))
            .collect()),
        _ => Err(format!("{} is not of 32-bit floats", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_to_the_largest_entry() {
        let folder = std::env::temp_dir().join(format!("xtask-models-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, entries: &[f32]| {
            let bytes: Vec<u8> = entries.iter().flat_map(|x| x.to_le_bytes()).collect();
            let file = folder.join(name);
            fs::write(&file, bytes).unwrap();
            file
        };
        let expected = write("expected", &[1.0, -4.0, 0.0]);
        let found = write("found", &[1.5, -4.0, 0.25]);
        let short = write("short", &[1.0, -4.0]);
        let nan = write("nan", &[1.0, f32::NAN, 0.0]);
        assert_eq!(difference(&expected, &expected), Ok(0.0));
        assert_eq!(difference(&found, &expected), Ok(0.125));
        assert!(
            difference(&short, &expected)
                .unwrap_err()
                .contains("2 entries")
        );
        assert!(difference(&nan, &expected).unwrap_err().contains("entry 1"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
