//! What is written is what was read.

use std::path::PathBuf;

use opt_core::{Graph, ValueKind};

use super::models::*;
use crate::{Exporter, Importer};

/// A graph by its names: what every node computes from what.
fn text(graph: &Graph) -> String {
    let mut out = graph.to_string();
    for (_, value) in graph.values() {
        if let ValueKind::Constant(t) | ValueKind::Variable(t) = value.kind() {
            out += &format!("{} {:?}\n", value.name(), t.to_f64s());
        }
    }
    out
}

#[test]
fn models_come_back_as_they_were() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/training");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "onnx") {
            continue;
        }
        let trains = path.to_string_lossy().ends_with("_train.onnx");
        let graph = Importer::new().load(&path).unwrap();
        if trains {
            assert!(Exporter::new().to_bytes(&graph).is_err());
            continue;
        }
        for opset in [13, 17, 21, 23] {
            let bytes = Exporter::new().opset(opset).to_bytes(&graph).unwrap();
            let again = Importer::new().read(bytes).unwrap();
            if opset >= 20 {
                assert_eq!(
                    text(&graph),
                    text(&again),
                    "{} in opset {opset}",
                    path.display()
                );
            }
        }
        seen += 1;
    }
    assert!(seen >= 8);
}

#[test]
fn mixed_precision_comes_back_as_it_was() {
    use opt_core::nn::zoo;
    use opt_core::pass::MixedPrecision;
    for pass in [MixedPrecision::bf16(), MixedPrecision::f16()] {
        let graph = zoo::resnet20([3, 8, 8], 10, 0).unwrap();
        let (graph, _) = pass.convert(graph).unwrap();
        let bytes = Exporter::new().opset(21).to_bytes(&graph).unwrap();
        let again = Importer::new().read(bytes).unwrap();
        let ops = |g: &Graph| -> Vec<_> {
            let node = |n: &opt_core::Node| {
                let types = n.inputs().iter().chain(n.outputs());
                let dtypes: Vec<_> = types.map(|&v| g.type_of(v).dtype).collect();
                (n.op().name().to_string(), dtypes)
            };
            g.nodes().map(|(_, n)| node(n)).collect()
        };
        assert_eq!(ops(&again), ops(&graph));
        let error = Exporter::new().opset(13).to_bytes(&graph).unwrap_err();
        assert!(error.to_string().contains("batch normalization"), "{error}");
    }
}

#[test]
fn names_documentation_and_properties_are_kept() {
    let mut relu = node("Relu", &["x"], &["y"]);
    relu.name = Some("activation".into());
    relu.doc_string = Some("keeps what is positive".into());
    let mut inner = graph(vec![relu], vec![], &[-1, 3]);
    inner.doc_string = Some("a graph".into());
    inner.input[0].doc_string = Some("an input".into());
    let mut whole = model(inner, vec![]);
    whole.doc_string = Some("a model".into());
    whole.model_version = Some(7);
    whole
        .metadata_props
        .push(crate::proto::StringStringEntryProto {
            key: Some("author".into()),
            value: Some("somebody".into()),
        });
    let first = prost::Message::encode_to_vec(&whole);
    let graph = Importer::new().read(first).unwrap();
    assert_eq!(graph.metadata()["author"], "somebody");
    let bytes = Exporter::new().to_bytes(&graph).unwrap();
    let back: crate::proto::ModelProto = prost::Message::decode(&bytes[..]).unwrap();
    assert_eq!(back.doc_string(), "a model");
    assert_eq!(back.model_version(), 7);
    assert_eq!(back.metadata_props[0].key(), "author");
    let inner = back.graph.unwrap();
    assert_eq!(inner.doc_string(), "a graph");
    assert_eq!(inner.node[0].name(), "activation");
    assert_eq!(inner.node[0].doc_string(), "keeps what is positive");
    assert_eq!(inner.input[0].doc_string(), "an input");
    assert_eq!(inner.output[0].name(), "y");
}

#[test]
fn large_tensors_lie_in_a_file_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let weight: Vec<f32> = (0..4096).map(|i| i as f32).collect();
    let add = vec![node("Add", &["x", "w"], &["y"])];
    let graph = graph(add, vec![f32s("w", &[4096], &weight)], &[4096]);
    let graph = Importer::new().read(bytes(graph)).unwrap();
    Exporter::new()
        .external_data(true)
        .save(&graph, &path)
        .unwrap();
    assert_eq!(
        std::fs::metadata(folder.path().join("model.onnx.data"))
            .unwrap()
            .len(),
        4 * 4096
    );
    assert!(std::fs::metadata(&path).unwrap().len() < 1000);
    let again = Importer::new().load(&path).unwrap();
    assert_eq!(text(&graph), text(&again));
}

/// Each narrow type, as `raw_data` and as `int32_data` have it.
#[test]
fn tensors_of_few_bits_are_read_from_both_fields() {
    use crate::proto::TensorProto;
    use opt_core::{DType, Tensor};
    use prost::Message;
    for dtype in DType::ALL.into_iter().filter(|d| d.is_storage()) {
        for len in [0usize, 1, 3, 4, 5, 9] {
            let mask = (1u16 << dtype.bits()) - 1;
            let codes: Vec<u8> = (0..len as u16).map(|i| ((i * 11) & mask) as u8).collect();
            let tensor = Tensor::from_codes(dtype, [len], &codes).unwrap();
            let header = crate::tensor::header("t", &tensor).unwrap();
            let raw = TensorProto {
                raw_data: Some(tensor.bytes().unwrap().to_vec().into()),
                ..header.clone()
            };
            // Types of 2 and 4 bits fill bytes; those of 6 bits have a field each.
            let fields = match dtype.bits() {
                2 | 4 => tensor.bytes().unwrap().to_vec(),
                _ => codes.clone(),
            };
            let ints = TensorProto {
                int32_data: fields.into_iter().map(i32::from).collect(),
                ..header
            };
            for proto in [raw, ints] {
                let (name, read) = crate::read_tensor(&proto.encode_to_vec()).unwrap();
                assert_eq!(name, "t");
                assert_eq!(read.dtype(), dtype);
                assert_eq!(read.codes().unwrap(), codes, "{dtype} {len}");
            }
        }
    }
}
