//! Files that were not written by a friend: an error each time, no panic, no memory beyond what
//! the file's size explains.

use std::path::PathBuf;

use opt_core::ErrorKind;
use prost::Message;

use super::models::*;
use crate::proto::{FunctionProto, OperatorSetIdProto};
use crate::{Importer, Unsupported};

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/training");
    std::fs::read(folder.join(name)).unwrap()
}

fn refused(bytes: Vec<u8>, what: &str) {
    assert!(Importer::new().read(bytes).is_err(), "{what} was read");
}

#[test]
fn a_truncated_file_is_an_error() {
    for name in [
        "mlp_torchscript.onnx",
        "cnn_dynamo.onnx",
        "bert_torchscript.onnx",
    ] {
        let whole = golden(name);
        for end in (0..whole.len()).step_by(1024) {
            refused(whole[..end].to_vec(), &format!("{name} cut at {end}"));
        }
    }
}

#[test]
fn flipped_bytes_are_no_panic() {
    let files = [
        golden("mlp_torchscript.onnx"),
        golden("lstm_torchscript.onnx"),
    ];
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for k in 0..10_000 {
        let mut bytes = files[k % 2].clone();
        for _ in 0..1 + next() % 3 {
            let at = next() as usize % bytes.len();
            bytes[at] ^= 1 << (next() % 8);
        }
        // What is still a model has to be a valid graph.
        if let Ok(graph) = Importer::new().read(bytes) {
            graph.verify().unwrap();
        }
    }
}

#[test]
fn sizes_that_cannot_be_are_errors() {
    let relu = || vec![node("Relu", &["x"], &["y"])];
    for dims in [
        &[1 << 62][..],
        &[-2],
        &[1 << 40, 1 << 40],
        &[i64::MIN],
        &[i64::MAX, 0],
    ] {
        refused(
            bytes(graph(relu(), vec![], dims)),
            &format!("an input of {dims:?}"),
        );
    }
    for dims in [&[1 << 62][..], &[-1], &[1 << 40, 1 << 40], &[2], &[0]] {
        let add = vec![node("Add", &["x", "w"], &["y"])];
        let w = f32s("w", dims, &[1.0]);
        refused(
            bytes(graph(add, vec![w], &[1])),
            &format!("an initializer of {dims:?}"),
        );
    }
}

#[test]
fn attributes_that_cannot_be_are_errors() {
    let extremes = [
        i64::MIN,
        i64::MIN + 1,
        -1_000_000_007,
        i64::MAX,
        1 << 62,
        1 << 40,
    ];
    for &v in &extremes {
        let cases: Vec<(&str, Vec<_>)> = vec![
            ("Softmax", vec![int("axis", v)]),
            ("Flatten", vec![int("axis", v)]),
            ("ArgMax", vec![int("axis", v)]),
            ("Transpose", vec![ints("perm", &[v, 0, 1, 2])]),
            ("DepthToSpace", vec![int("blocksize", v)]),
            ("SpaceToDepth", vec![int("blocksize", v)]),
            ("LRN", vec![int("size", v)]),
            ("MaxPool", vec![ints("kernel_shape", &[v, v])]),
            (
                "MaxPool",
                vec![ints("kernel_shape", &[2, 2]), ints("pads", &[v, v, v, v])],
            ),
            (
                "MaxPool",
                vec![ints("kernel_shape", &[2, 2]), ints("strides", &[v, v])],
            ),
            (
                "AveragePool",
                vec![ints("kernel_shape", &[2, 2]), ints("dilations", &[v, v])],
            ),
            (
                "MaxPool",
                vec![
                    ints("kernel_shape", &[2, 2]),
                    ints("dilations", &[v, v]),
                    text("auto_pad", "SAME_UPPER"),
                ],
            ),
            ("LpNormalization", vec![int("p", v)]),
            ("LayerNormalization", vec![int("axis", v)]),
            ("GroupNormalization", vec![int("num_groups", v)]),
            ("Cast", vec![int("to", v)]),
        ];
        for (op, attributes) in cases {
            let inputs: &[&str] = match op {
                "LayerNormalization" => &["x", "x"],
                "GroupNormalization" => &["x", "x", "x"],
                _ => &["x"],
            };
            // A stride beyond the input is odd but has an answer.
            let odd = op == "MaxPool" && attributes.len() == 2;
            let nodes = vec![with(node(op, inputs, &["y"]), attributes)];
            let result = Importer::new().read(bytes(graph(nodes, vec![], &[1, 4, 6, 6])));
            assert!(odd || result.is_err(), "{op} with {v}");
        }
    }
    for equation in [
        "->", "i,j->ij", "ij->kk", "...->...", "i->", "", "ii,", "€->a", "i j->",
    ] {
        let nodes = vec![with(
            node("Einsum", &["x"], &["y"]),
            vec![text("equation", equation)],
        )];
        // Some of these mean something; none may panic.
        let _ = Importer::new().read(bytes(graph(nodes, vec![], &[2, 2])));
    }
}

#[test]
fn lists_that_cannot_be_are_errors() {
    for v in [i64::MIN, i64::MAX, 1 << 62, 1 << 40, -7] {
        for op in [
            "Reshape",
            "Expand",
            "Tile",
            "Squeeze",
            "Unsqueeze",
            "Split",
            "ReduceSum",
            "TopK",
        ] {
            let nodes = vec![node(op, &["x", "s"], &["y"])];
            let list = if op == "Tile" {
                i64s("s", &[v, v])
            } else {
                i64s("s", &[v])
            };
            let read = Importer::new().read(bytes(graph(nodes, vec![list], &[2, 3])));
            // A large broadcast is legal; nothing of it is computed while reading.
            assert!(
                read.is_err() || (op == "Expand" && v > 0) || op == "Tile",
                "{op} with {v}"
            );
        }
        let slice = vec![node("Slice", &["x", "s", "s", "a", "s"], &["y"])];
        let lists = vec![i64s("s", &[v]), i64s("a", &[0])];
        let _ = Importer::new().read(bytes(graph(slice, lists, &[2, 3])));
        let pad = vec![node("Pad", &["x", "s"], &["y"])];
        let _ = Importer::new().read(bytes(graph(pad, vec![i64s("s", &[v, v, v, v])], &[2, 3])));
        let fill = vec![
            node("ConstantOfShape", &["s"], &["c"]),
            node("Add", &["x", "c"], &["y"]),
        ];
        let _ = Importer::new().read(bytes(graph(fill, vec![i64s("s", &[v])], &[1])));
        let range = vec![
            node("Range", &["a", "s", "d"], &["r"]),
            node("Cast", &["r"], &["c"]),
            node("Add", &["x", "c"], &["y"]),
        ];
        let lists = vec![scalar("a", 0), scalar("s", v), scalar("d", 1)];
        let _ = Importer::new().read(bytes(graph(range, lists, &[1])));
    }
}

fn scalar(name: &str, v: i64) -> crate::proto::TensorProto {
    crate::proto::TensorProto {
        dims: vec![],
        ..i64s(name, &[v])
    }
}

#[test]
fn graphs_that_are_none_are_errors() {
    let cycle = vec![
        node("Add", &["x", "b"], &["a"]),
        node("Relu", &["a"], &["b"]),
    ];
    refused(bytes(graph(cycle, vec![], &[1])), "a cycle");
    let own = vec![node("Add", &["x", "y"], &["y"])];
    refused(bytes(graph(own, vec![], &[1])), "a node that reads itself");
    let twice = vec![node("Relu", &["x"], &["y"]), node("Abs", &["x"], &["y"])];
    refused(
        bytes(graph(twice, vec![], &[1])),
        "a value that is defined twice",
    );
    let shadow = vec![node("Relu", &["x"], &["x"])];
    refused(
        bytes(graph(shadow, vec![], &[1])),
        "an input that is defined again",
    );
    let unknown = vec![node("Relu", &["z"], &["y"])];
    refused(
        bytes(graph(unknown, vec![], &[1])),
        "a value that nothing defines",
    );
    refused(
        bytes(graph(vec![], vec![], &[1])),
        "an output that nothing defines",
    );
    let doubled = vec![f32s("w", &[1], &[1.0]), f32s("w", &[1], &[2.0])];
    let add = vec![node("Add", &["x", "w"], &["y"])];
    refused(
        bytes(graph(add, doubled, &[1])),
        "two initializers of one name",
    );
}

#[test]
fn long_chains_are_read_without_recursion() {
    for op in ["Relu", "Identity"] {
        const N: usize = 100_000;
        let name = |i: usize| match i {
            0 => "x".to_string(),
            N => "y".to_string(),
            i => format!("v{i}"),
        };
        // Backwards, so that the order has to be found.
        let nodes = (0..N)
            .rev()
            .map(|i| node(op, &[&name(i)], &[&name(i + 1)]))
            .collect();
        let graph = Importer::new()
            .read(bytes(graph(nodes, vec![], &[2])))
            .unwrap();
        assert_eq!(graph.nodes().count(), if op == "Relu" { N } else { 0 });
    }
}

#[test]
fn branches_nested_without_end_are_errors() {
    let mut inner = graph(vec![node("Relu", &["x"], &["y"])], vec![], &[1]);
    inner.input.clear();
    for _ in 0..200 {
        let branches = vec![
            graph_attribute("then_branch", inner.clone()),
            graph_attribute("else_branch", graph(vec![], vec![], &[])),
        ];
        inner = graph(
            vec![with(node("If", &["c"], &["y"]), branches)],
            vec![],
            &[1],
        );
        inner.input.clear();
    }
    inner.input = vec![value("x", 1, &[1])];
    let condition = crate::proto::TensorProto {
        name: Some("c".into()),
        data_type: Some(9),
        int32_data: vec![1],
        ..Default::default()
    };
    inner.initializer.push(condition);
    refused(bytes(inner), "branches 200 deep");
}

#[test]
fn functions_that_call_each_other_without_end_are_errors() {
    let function = |name: &str, body: Vec<_>| FunctionProto {
        name: Some(name.into()),
        domain: Some("f".into()),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node: body,
        opset_import: ["", "f"]
            .map(|d| OperatorSetIdProto {
                domain: Some(d.into()),
                version: Some(1),
            })
            .to_vec(),
        ..FunctionProto::default()
    };
    let call = |f: &str, from: &str, to: &str| crate::proto::NodeProto {
        domain: Some("f".into()),
        ..node(f, &[from], &[to])
    };
    let main = || graph(vec![call("f0", "x", "y")], vec![], &[1]);
    let own = function("f0", vec![call("f0", "a", "b")]);
    refused(
        model(main(), vec![own]).encode_to_vec(),
        "a function that calls itself",
    );
    // Each calls the next twice: 2^40 nodes in a few hundred bytes.
    let mut functions: Vec<_> = (0..40)
        .map(|i| {
            let next = format!("f{}", i + 1);
            function(
                &format!("f{i}"),
                vec![call(&next, "a", "m"), call(&next, "m", "b")],
            )
        })
        .collect();
    functions.push(function("f40", vec![node("Relu", &["a"], &["b"])]));
    refused(
        model(main(), functions).encode_to_vec(),
        "functions that double",
    );
}

#[test]
fn content_outside_of_the_folder_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("models");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(folder.path().join("secret"), [0u8; 64]).unwrap();
    std::fs::write(inside.join("data"), [0u8; 16]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path().join("secret"), inside.join("link")).unwrap();
    let absolute = folder.path().join("secret").display().to_string();
    let read = |entries: &[(&str, &str)]| {
        let add = vec![node("Add", &["x", "w"], &["y"])];
        let w = external("w", &[4], entries);
        let path = inside.join("model.onnx");
        std::fs::write(&path, bytes(graph(add, vec![w], &[4]))).unwrap();
        Importer::new().load(&path)
    };
    assert!(read(&[("location", "data")]).is_ok());
    assert!(read(&[("location", "./data"), ("offset", "0"), ("length", "16")]).is_ok());
    let bad: &[&[(&str, &str)]] = &[
        &[],
        &[("location", "")],
        &[("location", "../secret")],
        &[("location", "sub/../../secret")],
        &[("location", &absolute)],
        &[("location", "link")],
        &[("location", "missing")],
        &[("location", ".")],
        &[("location", "data\0")],
        &[("location", "data"), ("offset", "4")],
        &[("location", "data"), ("offset", "-4")],
        &[("location", "data"), ("offset", "18446744073709551615")],
        &[("location", "data"), ("length", "12")],
        &[("location", "data"), ("length", "99999999999999999999")],
    ];
    for entries in bad {
        assert!(read(entries).is_err(), "{entries:?} was read");
    }
}

#[test]
fn everything_that_is_not_supported_is_listed_at_once() {
    let nodes = vec![
        node("Frobnicate", &["x"], &["a"]),
        node("Relu", &["a"], &["b"]),
        node("NonZero", &["b"], &["c"]),
        node("StringSplit", &["x"], &["d"]),
        node("Add", &["a", "x"], &["y"]),
    ];
    let error = Importer::new()
        .read(bytes(graph(nodes, vec![], &[1])))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let source = std::error::Error::source(&error).unwrap();
    let all = source.downcast_ref::<Unsupported>().unwrap();
    let ops: Vec<&str> = all.list().iter().map(|r| r.op.as_str()).collect();
    assert_eq!(ops, ["Frobnicate", "StringSplit"]);
    assert!(
        error
            .to_string()
            .contains("node `a` (ai.onnx.Frobnicate, opset 21)"),
        "{error}"
    );
}

#[test]
fn what_a_lowering_does_not_understand_is_refused() {
    let odd = with(node("Relu", &["x"], &["y"]), vec![int("sideways", 1)]);
    let error = Importer::new()
        .read(bytes(graph(vec![odd], vec![], &[1])))
        .unwrap_err();
    assert!(error.to_string().contains("sideways"), "{error}");
    let more = node("Relu", &["x", "x"], &["y"]);
    let error = Importer::new()
        .read(bytes(graph(vec![more], vec![], &[1])))
        .unwrap_err();
    assert!(error.to_string().contains("input 1"), "{error}");
}
