//! The committed workloads.

use std::fs;

use serde_json::Value;

use super::options::Options;
use crate::{Result, root};

/// What tables are grouped by: names, and the headings of the tables.
pub(crate) const GROUPS: [(&str, &str); 4] = [
    ("training", "Training steps"),
    ("forward", "Forward passes of the models that are trained"),
    ("inference", "Inference of ONNX files, f32"),
    ("int8", "Inference of ONNX files, 8-bit integers"),
];

/// All workloads.
pub(crate) fn rows() -> Result<Vec<Value>> {
    let file = root().join("benches/rows.json");
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let text = fs::read_to_string(&file).map_err(|e| fail(&e))?;
    serde_json::from_str(&text).map_err(|e| fail(&e))
}

pub(crate) fn name_of(row: &Value) -> &str {
    row["name"].as_str().unwrap_or("?")
}

/// The group of a row.
pub(crate) fn group_of(row: &Value) -> &'static str {
    match (row["mode"].as_str(), row["precision"].as_str()) {
        (Some("train"), _) => "training",
        (Some("forward"), _) => "forward",
        (_, Some("int8")) => "int8",
        _ => "inference",
    }
}

/// The name of the file in `target/bench/models` that a row runs.
pub(crate) fn model_file(row: &Value) -> Option<&str> {
    match row["mode"] == "onnx" {
        true => row["model"]["file"].as_str(),
        false => None,
    }
}

/// The rows that are asked for, by name or group, or all that suit the device.
pub(crate) fn select(rows: &[Value], options: &Options) -> Result<Vec<Value>> {
    let cpu = options.device == "cpu";
    // What is too large for a processor, and what is only compared on one.
    let suits = |row: &Value| match cpu {
        true => row["gpu"] != true,
        false => row["mode"] != "onnx",
    };
    if options.only.is_empty() {
        return Ok(rows.iter().filter(|row| suits(row)).cloned().collect());
    }
    let is_group = |name: &String| GROUPS.iter().any(|(group, _)| group == name);
    for name in &options.only {
        if !is_group(name) && !rows.iter().any(|row| name_of(row) == name) {
            let names: Vec<_> = rows.iter().map(name_of).collect();
            let groups = GROUPS.map(|(group, _)| group).join(", ");
            return Err(format!(
                "no row {name}; there are {}, and the groups {groups}",
                names.join(", ")
            ));
        }
    }
    let asked = |row: &&Value| {
        let mut only = options.only.iter();
        only.any(|name| name == name_of(row) || (name == group_of(row) && suits(row)))
    };
    Ok(rows.iter().filter(asked).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::options;

    fn names(arguments: &[&str]) -> Result<Vec<String>> {
        let options = options::parse(arguments, 1)?;
        let rows = select(&rows()?, &options)?;
        Ok(rows.iter().map(|row| name_of(row).to_string()).collect())
    }

    #[test]
    fn large_rows_run_on_other_devices_or_by_name() {
        let large = "train-resnet50-bf16";
        let cpu = names(&[]).unwrap();
        assert!(cpu.contains(&"train-mlp".to_string()) && !cpu.contains(&large.to_string()));
        let cuda = names(&["--device", "cuda:0"]).unwrap();
        assert!(cuda.contains(&large.to_string()) && !cuda.contains(&"infer-minilm".into()));
        let two = ["--only", large, "--only", "train-mlp"];
        assert_eq!(names(&two).unwrap(), ["train-mlp", large]);
        assert!(names(&["--only", "train"]).unwrap_err().contains(large));
    }

    #[test]
    fn groups_are_picked_whole() {
        let int8 = names(&["--only", "int8"]).unwrap();
        assert!(int8.len() >= 3 && int8.iter().all(|name| name.starts_with("int8-")));
        let training = names(&["--only", "training"]).unwrap();
        assert!(training.iter().all(|name| name.starts_with("train-")));
        assert!(!training.contains(&"train-encoder-large".to_string()));
    }

    #[test]
    fn every_row_has_a_group_and_files_a_name() {
        for row in rows().unwrap() {
            let group = group_of(&row);
            assert!(GROUPS.iter().any(|(name, _)| *name == group));
            let file = matches!(group, "inference" | "int8");
            assert_eq!(model_file(&row).is_some(), file, "{}", name_of(&row));
        }
    }
}
