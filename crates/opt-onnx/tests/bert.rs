//! A BERT encoder of PyTorch: `xtask/oracle/bert.py`.

use opt_core::{Backend, ErrorKind, Tensor, safetensors};
use opt_ndarray::NdarrayBackend;
use opt_onnx::hub::bert::{Bert, BertConfig, load};
use opt_onnx::safetensors::SafeTensors;
use serde_json::{Value, json};

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/bert.json")).unwrap()
}

fn model(golden: &Value) -> Vec<u8> {
    let digits: Vec<u8> = golden["model"]
        .as_str()
        .unwrap()
        .chars()
        .map(|c| c.to_digit(16).unwrap() as u8)
        .collect();
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}

fn tensor(value: &Value) -> (Vec<usize>, Vec<f64>) {
    let shape: Vec<usize> = serde_json::from_value(value["shape"].clone()).unwrap();
    (
        shape,
        serde_json::from_value(value["data"].clone()).unwrap(),
    )
}

fn inputs(golden: &Value) -> Vec<Tensor> {
    ["input_ids", "attention_mask", "token_type_ids"]
        .iter()
        .map(|name| {
            let (shape, data) = tensor(&golden["inputs"][name]);
            let data: Vec<i64> = data.into_iter().map(|v| v as i64).collect();
            Tensor::new(shape, data).unwrap()
        })
        .collect()
}

/// Runs a model and compares its outputs with the golden ones of an activation.
#[track_caller]
fn compare(golden: &Value, model: &Bert, activation: &str) {
    let backend = NdarrayBackend::new();
    let outputs = backend.run_once(&model.graph, &inputs(golden)).unwrap();
    let named = model.graph.named_outputs();
    assert_eq!(outputs.len(), named.len());
    for ((name, _), output) in named.iter().zip(&outputs) {
        let (shape, expected) = tensor(&golden["outputs"][activation][name]);
        assert_eq!(output.shape(), shape);
        for (found, expected) in output.to_f64s().into_iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{name}: {found}, {expected}"
            );
        }
    }
}

fn config(golden: &Value, changes: &[(&str, Value)]) -> BertConfig {
    let mut config = golden["config"].clone();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    BertConfig::from_json(config.to_string().as_bytes()).unwrap()
}

#[test]
fn a_folder_of_the_hub_is_loaded() {
    let golden = golden();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("config.json", golden["config"].to_string().as_bytes());
    write("model.safetensors", &model(&golden));
    let model = load(folder.path()).unwrap();
    assert!(model.report.unexpected.is_empty() && model.report.cast.is_empty());
    assert_eq!(model.graph.named_outputs().len(), 2);
    compare(&golden, &model, "gelu");
}

#[test]
fn activations_are_pytorchs() {
    let golden = golden();
    let file = SafeTensors::from_bytes(model(&golden)).unwrap();
    for activation in ["gelu_new", "relu"] {
        let config = config(&golden, &[("hidden_act", json!(activation))]);
        compare(&golden, &config.load(&file).unwrap(), activation);
    }
}

/// The golden file with other names.
fn renamed(golden: &Value, rename: impl Fn(&str) -> Option<String>) -> SafeTensors {
    let file = SafeTensors::from_bytes(model(golden)).unwrap();
    let tensors: Vec<(String, Tensor)> = file
        .names()
        .iter()
        .filter_map(|name| Some((rename(name)?, file.get(name).unwrap())))
        .collect();
    let list = tensors.iter().map(|(name, t)| (name.as_str(), t));
    SafeTensors::from_bytes(safetensors::encode(list, &[]).unwrap()).unwrap()
}

#[test]
fn old_names_prefixes_and_a_missing_pooler_are_understood() {
    let golden = golden();
    let file = renamed(&golden, |name| {
        let name = name
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta");
        match name.strip_prefix("pooler.") {
            Some(rest) => Some(format!("cls.{rest}")),
            None => Some(format!("bert.{name}")),
        }
    });
    let model = config(&golden, &[]).load(&file).unwrap();
    assert_eq!(
        model.report.unexpected,
        ["cls.dense.bias", "cls.dense.weight"]
    );
    assert_eq!(model.graph.named_outputs().len(), 1);
    compare(&golden, &model, "gelu");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let golden = golden();
    let whole = SafeTensors::from_bytes(model(&golden)).unwrap();
    for (key, value) in [
        ("vocab_size", json!(1u64 << 40)),
        ("hidden_size", json!(64)),
        ("num_hidden_layers", json!(1u64 << 40)),
        ("intermediate_size", json!(1u64 << 40)),
        ("max_position_embeddings", json!(0)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(5)),
    ] {
        let config = config(&golden, &[(key, value)]);
        assert!(config.load(&whole).is_err(), "{key}");
    }
    let without = renamed(&golden, |name| {
        let keep = !name.ends_with("layer.1.output.dense.bias");
        keep.then(|| name.to_string())
    });
    let error = config(&golden, &[]).load(&without).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    assert!(
        error
            .to_string()
            .contains("encoder.layer.1.output.dense.bias"),
        "{error}"
    );
    let other = renamed(&golden, |name| Some(format!("x{name}")));
    assert!(config(&golden, &[]).load(&other).is_err());

    for (key, value) in [
        ("model_type", json!("roberta")),
        ("is_decoder", json!(true)),
        ("position_embedding_type", json!("relative_key")),
        ("hidden_act", json!("mish")),
    ] {
        let mut config = golden["config"].clone();
        config[key] = value;
        let error = BertConfig::from_json(config.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{key}");
    }
    let error = BertConfig::from_json(b"{}").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
}
