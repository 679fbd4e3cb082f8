//! Files quantized some rows at a time, against whole tensors; runs that are cut off.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use opt_core::observer::{Event, Silent};
use opt_core::{DType, ErrorKind, Tensor, safetensors};
use opt_quant::gguf::{self, GgufType};
use opt_quant::stream::{QuantizeFile, read};
use opt_quant::{Rules, Scheme, Select, quantize_tensor};

/// A folder of a test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("opt-stream-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Entries of both signs and several scales.
fn matrix(rows: usize, cols: usize, seed: f32) -> Tensor {
    let entry = |i: usize| (i as f32 * 0.37 + seed).sin() * (1.0 + (i % 7) as f32);
    Tensor::new(
        [rows, cols],
        (0..rows * cols).map(entry).collect::<Vec<_>>(),
    )
    .unwrap()
}

fn write(path: &Path, tensors: &[(&str, &Tensor)]) {
    let bytes = safetensors::encode(tensors.iter().copied(), &[("by", "test")]).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn open(path: &Path) -> safetensors::File {
    safetensors::File::parse(Arc::new(std::fs::read(path).unwrap())).unwrap()
}

fn schemes() -> Vec<Scheme> {
    let mut all = vec![
        Scheme::int8(),
        Scheme::int8().per_tensor(),
        Scheme::uint8(),
        Scheme::uint8().per_tensor(),
        Scheme::int4(),
        Scheme::int4().group(16).asymmetric(),
        Scheme::uint4(),
        Scheme::int2(),
        Scheme::uint2(),
        Scheme::fp8_e4m3(),
        Scheme::fp8_e5m2().per_tensor(),
        Scheme::nf4(),
        Scheme::mxfp8(),
        Scheme::mxfp6(),
        Scheme::mxfp4(),
        Scheme::nvfp4(),
        Scheme::f16(),
        Scheme::bf16(),
    ];
    all.retain(|s| s.check().is_ok());
    assert!(all.len() >= 17, "{}", all.len());
    all
}

#[test]
fn rows_at_a_time_are_the_whole_tensor() {
    let folder = Folder::new();
    let (input, output) = (folder.file("in"), folder.file("out"));
    // Rows that end within a group and within a byte, and more of them than a chunk has.
    let weight = matrix(83, 51, 0.0);
    let bias = Tensor::new([83], vec![0.5f32; 83]).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let weight = weight.cast(dtype);
        write(&input, &[("fc.weight", &weight), ("fc.bias", &bias)]);
        for scheme in schemes() {
            let run = QuantizeFile::new(scheme).chunk(51 * 4 * 16);
            let report = run.to_safetensors(&input, &output, &mut Silent).unwrap();
            assert_eq!((report.quantized(), report.resumed), (1, 0));
            let file = open(&output);
            let expected = quantize_tensor(&weight, &scheme).unwrap();
            assert_eq!(read(&file, "fc.weight").unwrap(), expected, "{scheme}");
            assert_eq!(file.get("fc.bias").unwrap(), bias);
            assert_eq!(file.metadata()["by"], "test");
            let after = report.bytes().1 as usize;
            assert_eq!(after, expected.storage_bytes() + 83 * 4, "{scheme}");
            assert_eq!(folder.names(), ["in", "out"]);
        }
    }
}

#[test]
fn gguf_files_have_blocks_and_the_rest_as_it_is() {
    let folder = Folder::new();
    let (input, output) = (folder.file("in"), folder.file("out"));
    let (weight, odd) = (matrix(37, 64, 0.0), matrix(3, 31, 1.0));
    let norm = Tensor::new([4], [1f32, 2.0, 3.0, 4.0])
        .unwrap()
        .cast(DType::F16);
    write(
        &input,
        &[("a.weight", &weight), ("b.weight", &odd), ("norm", &norm)],
    );
    let run = QuantizeFile::new(Scheme::int4()).chunk(64 * 4 * 8);
    let notes = [("general.architecture", "test".into())];
    let rename = |name: &str| name.replace("a.", "blk.0.");
    let report = run
        .to_gguf(&input, &output, GgufType::Q4_0, &notes, rename, &mut Silent)
        .unwrap();
    assert_eq!(report.quantized(), 1);
    let bytes = std::fs::read(&output).unwrap();
    let mut whole = gguf::Builder::new();
    whole.metadata("general.architecture", "test").unwrap();
    whole
        .tensor("blk.0.weight", GgufType::Q4_0, &weight)
        .unwrap();
    whole.tensor("b.weight", GgufType::F32, &odd).unwrap();
    whole.tensor("norm", GgufType::F16, &norm).unwrap();
    assert_eq!(bytes, whole.encode().unwrap());
    let both = |_: &str| "same".to_string();
    let error = run
        .to_gguf(&input, &output, GgufType::Q4_0, &notes, both, &mut Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(std::fs::read(&output).unwrap(), bytes, "the output stays");
}

#[test]
fn a_run_that_is_cut_off_goes_on() {
    let folder = Folder::new();
    let (input, output) = (folder.file("in"), folder.file("out"));
    let tensors: Vec<Tensor> = (0..6).map(|i| matrix(16, 32, i as f32)).collect();
    let names: Vec<String> = (0..6).map(|i| format!("w{i}")).collect();
    let all = |tensors: &[Tensor]| {
        let pairs: Vec<_> = names.iter().map(String::as_str).zip(tensors).collect();
        write(&input, &pairs);
    };
    all(&tensors);
    let run = QuantizeFile::new(Scheme::int4());
    run.to_safetensors(&input, folder.file("whole"), &mut Silent)
        .unwrap();
    let cut = std::panic::catch_unwind(|| {
        let mut steps = 0;
        let mut stop = |event: &Event| {
            if let Event::Progress { .. } = event {
                steps += 1;
                assert!(steps < 4, "cut off");
            }
        };
        run.to_safetensors(&input, &output, &mut stop)
    });
    assert!(cut.is_err());
    assert_eq!(
        folder.names(),
        ["in", "out.journal", "out.partial", "whole"]
    );
    // Other settings are other work.
    let other = QuantizeFile::new(Scheme::int8());
    let elsewhere = folder.file("elsewhere");
    for extension in [".partial", ".journal"] {
        let from = folder.file(&format!("out{extension}"));
        std::fs::copy(from, folder.file(&format!("elsewhere{extension}"))).unwrap();
    }
    let report = other
        .to_safetensors(&input, &elsewhere, &mut Silent)
        .unwrap();
    assert_eq!(report.resumed, 0);
    let report = run.to_safetensors(&input, &output, &mut Silent).unwrap();
    assert_eq!(report.resumed, 4);
    let bytes = |name: &str| std::fs::read(folder.file(name)).unwrap();
    assert_eq!(bytes("out"), bytes("whole"));
    assert_eq!(folder.names(), ["elsewhere", "in", "out", "whole"]);
}

#[test]
fn rules_and_shards() {
    let folder = Folder::new();
    let (a, b) = (matrix(8, 32, 0.0), matrix(8, 32, 1.0));
    write(&folder.file("one.safetensors"), &[("a", &a)]);
    write(&folder.file("two.safetensors"), &[("b", &b)]);
    let index = folder.file("model.safetensors.index.json");
    let text =
        r#"{"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    std::fs::write(&index, text).unwrap();
    let rules = Rules::new().keep(Select::name("a"));
    let run = QuantizeFile::new(Scheme::mxfp4()).rules(rules);
    let output = folder.file("out");
    run.to_safetensors(&index, &output, &mut Silent).unwrap();
    let file = open(&output);
    assert_eq!(file.get("a").unwrap(), a);
    let expected = quantize_tensor(&b, &Scheme::mxfp4()).unwrap();
    assert_eq!(read(&file, "b").unwrap(), expected);
    assert!(read(&file, "a").is_err());
    // A rule that decides about nothing, and files that lie elsewhere.
    let unused = QuantizeFile::new(Scheme::int8()).rules(Rules::new().keep(Select::name("c")));
    let error = unused
        .to_safetensors(&index, &output, &mut Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    std::fs::write(&index, r#"{"weight_map": {"a": "../one.safetensors"}}"#).unwrap();
    let error = run
        .to_safetensors(&index, &output, &mut Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    std::fs::write(
        &index,
        r#"{"weight_map": {"a": "one.safetensors", "x": "two"}}"#,
    )
    .unwrap();
    let error = run
        .to_safetensors(&index, &output, &mut Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn what_cannot_be_quantized_names_the_tensor_and_leaves_the_output() {
    let folder = Folder::new();
    let (input, output) = (folder.file("in"), folder.file("out"));
    std::fs::write(&output, b"old").unwrap();
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let mut entries = vec![0f32; 16 * 32];
        entries[300] = bad;
        let weight = Tensor::new([16, 32], entries).unwrap();
        write(&input, &[("layer.weight", &weight)]);
        for scheme in schemes() {
            let run = QuantizeFile::new(scheme);
            let result = run.to_safetensors(&input, &output, &mut Silent);
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data, "{scheme}");
            assert!(error.to_string().contains("layer.weight"), "{error}");
            assert_eq!(std::fs::read(&output).unwrap(), b"old");
        }
    }
    let norm = Tensor::new([4], [1f32; 4]).unwrap();
    write(&input, &[("norm", &norm)]);
    let run = QuantizeFile::new(Scheme::int8());
    let error = run
        .to_safetensors(&input, &output, &mut Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    std::fs::write(&input, b"not a file of tensors").unwrap();
    let error = run
        .to_safetensors(&input, &output, &mut Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    assert!(error.to_string().contains("in: "), "{error}");
}
