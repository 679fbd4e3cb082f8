use opt_core::nn::{Gru, Linear, Lstm, ModelBuilder};
use opt_core::ops::Direction;
use opt_core::{DType, Fact, Graph, GraphBuilder};
use proptest::prelude::*;

use super::*;

fn graph(variables: &[(&str, Tensor)]) -> Graph {
    let mut b = GraphBuilder::new("g");
    for (name, tensor) in variables {
        b.variable(name, tensor.clone()).unwrap();
    }
    b.finish().unwrap()
}

fn ramp(shape: &[usize]) -> Tensor {
    let len = shape.iter().product::<usize>();
    Tensor::new(shape, (0..len).map(|i| i as f32).collect::<Vec<_>>()).unwrap()
}

fn checkpoint(tensors: &[(&str, Tensor)]) -> SafeTensors {
    let list = tensors.iter().map(|(n, t)| (*n, t));
    SafeTensors::from_bytes(safetensors::encode(list, &[]).unwrap()).unwrap()
}

fn content(graph: &Graph, name: &str) -> Vec<f64> {
    let id = graph.find(name).unwrap();
    graph.value(id).tensor().unwrap().to_f64s()
}

fn strict(graph: &mut Graph, file: &SafeTensors, names: &NameMap) -> Result<LoadReport> {
    load_into(graph, file, names, LoadOptions::new())
}

#[test]
fn everything_that_does_not_fit_is_told_at_once() {
    let zero = |shape: &[usize]| Tensor::zeros(DType::F32, shape).unwrap();
    let before = graph(&[
        ("fc.weight", zero(&[2, 3])),
        ("fc.bias", zero(&[2])),
        ("head.weight", zero(&[4])),
        ("half", zero(&[2])),
    ]);
    let file = checkpoint(&[
        ("fc.weight", ramp(&[3, 2])),
        ("fc.bias_", ramp(&[2])),
        ("position_ids", ramp(&[5])),
        ("half", ramp(&[2]).cast(DType::F16)),
    ]);
    let mut loaded = before.clone();
    let error = strict(&mut loaded, &file, &NameMap::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    let expected = "the checkpoint does not fit the graph `g`:
  missing in the checkpoint (2):
    fc.bias; similar: `fc.bias_`
    head.weight
  not in the graph (2):
    fc.bias_
    position_ids
  of another type (2):
    fc.weight: the graph has f32[2,3], the checkpoint f32[3,2]; `NameMap::transpose` turns it
    half: the graph has f32[2], the checkpoint f16[2]; `LoadOptions::cast` converts it";
    let text = error.to_string();
    let mut lines: Vec<&str> = text.lines().collect();
    let mut wanted: Vec<&str> = expected.lines().collect();
    // The order of what is left over is that of the file's bytes.
    lines.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(lines, wanted);
    assert_eq!(loaded, before, "unchanged");

    let names = NameMap::new().transpose(r"^fc\.weight$").unwrap();
    let lenient = LoadOptions::new()
        .allow_missing(true)
        .allow_unexpected(true)
        .cast(true);
    let report = load_into(&mut loaded, &file, &names, lenient).unwrap();
    assert_eq!(report.loaded, ["fc.weight", "half"]);
    assert_eq!(report.cast, ["half"]);
    assert_eq!(report.missing, ["fc.bias", "head.weight"]);
    assert_eq!(report.unexpected.len(), 2);
    assert_eq!(
        content(&loaded, "fc.weight"),
        [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]
    );
    assert_eq!(content(&loaded, "half"), [0.0, 1.0]);
    assert_eq!(content(&loaded, "fc.bias"), [0.0, 0.0]);
}

#[test]
fn what_has_no_effect_is_an_error() {
    let mut g = graph(&[("a", ramp(&[2]))]);
    let file = checkpoint(&[("b", ramp(&[2]))]);
    let lenient = LoadOptions::new()
        .allow_missing(true)
        .allow_unexpected(true);
    let error = load_into(&mut g, &file, &NameMap::new(), lenient.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    let names = NameMap::new().pair("a", "b").pair("c", "d");
    let error = strict(&mut g, &file, &names).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    assert!(error.to_string().contains("pair(`c`)"), "{error}");
    let allowed = LoadOptions::new().allow_unused_rules(true);
    load_into(&mut g, &file, &names, allowed).unwrap();
    assert!(NameMap::new().replace("(", "").is_err());
}

#[test]
fn files_come_back_through_any_map() {
    let g = graph(&[
        ("net.a.weight", ramp(&[2, 3])),
        ("net.conv.weight", ramp(&[2, 3, 4, 5])),
        ("net.b", ramp(&[4]).cast(DType::I8)),
        ("tied", ramp(&[2, 3])),
        ("packed", Tensor::pack(DType::I4, [3], &[-8, 7, 1]).unwrap()),
    ]);
    let names = NameMap::new()
        .pair("tied", "m/a_weight")
        .strip_prefix("net.")
        .replace(r"\.", "_")
        .unwrap()
        .add_prefix("m/")
        .transpose("^(net.a.weight|tied)$")
        .unwrap()
        .permute("conv", &[2, 3, 1, 0])
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    save(&path, &g, &names, Content::Variables).unwrap();
    let file = SafeTensors::open(&path).unwrap();
    let mut found = file.names().to_vec();
    found.sort();
    assert_eq!(found, ["m/a_weight", "m/b", "m/conv_weight", "m/packed"]);
    assert_eq!(file.get("m/conv_weight").unwrap().shape(), [4, 5, 3, 2]);
    assert_eq!(file.metadata()["format"], "pt");
    let mut zeros = g.clone();
    for (id, _, t) in g.variables() {
        let zero = Tensor::zeros(t.dtype(), t.shape()).unwrap();
        zeros.set_variable(id, zero).unwrap();
    }
    strict(&mut zeros, &file, &names).unwrap();
    assert_eq!(zeros, g);
    // A file may be replaced while tensors of it live, where the system lets it.
    if cfg!(unix) {
        save(&path, &g, &names, Content::Variables).unwrap();
        assert_eq!(zeros, g);
    }

    let clash = NameMap::new().pair("net.b", "tied");
    assert!(save(&path, &g, &clash, Content::Variables).is_err());
    let scalar = NameMap::new().transpose("net.b").unwrap();
    assert!(save(&path, &g, &scalar, Content::Variables).is_err());
    let wrong = NameMap::new().permute("net.a", &[0, 0]).unwrap();
    assert!(save(&path, &g, &wrong, Content::Variables).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn content_that_breaks_a_mask_is_refused() {
    let mut g = graph(&[("w", Tensor::zeros(DType::F32, [2]).unwrap())]);
    let id = g.find("w").unwrap();
    let mask = Tensor::from_bools([2], [true, false]).unwrap();
    g.facts_mut().insert(id, Fact::Mask(mask));
    let before = g.clone();
    let file = checkpoint(&[("w", ramp(&[2]))]);
    let error = strict(&mut g, &file, &NameMap::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FactViolated);
    assert_eq!(g, before);
}

#[test]
fn constants_are_loaded_when_asked_for() {
    let model = |scale: f32| {
        let mut b = GraphBuilder::new("g");
        let w = b.variable("w", ramp(&[2])).unwrap();
        let s = b.named_constant("scale", Tensor::scalar(scale));
        let y = b.mul(w, s).unwrap();
        b.output("y", y).unwrap();
        b.finish().unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let all = Content::VariablesAndConstants;
    save(&path, &model(2.0), &NameMap::new(), all).unwrap();
    let file = SafeTensors::open(&path).unwrap();
    let mut g = model(3.0);
    assert!(
        strict(&mut g, &file, &NameMap::new()).is_err(),
        "scale is left over"
    );
    let options = LoadOptions::new().content(all);
    load_into(&mut g, &file, &NameMap::new(), options).unwrap();
    assert_eq!(g, model(2.0));
}

/// Both directions of a layer, whose gate `g` of part `p` is full of `100 p + g`.
fn torch(gates: usize, hidden: usize, width: usize) -> Vec<(String, Tensor)> {
    let mut tensors = Vec::new();
    for (d, end) in ["", "_reverse"].iter().enumerate() {
        let parts = [
            ("weight_ih", vec![gates * hidden, width]),
            ("weight_hh", vec![gates * hidden, hidden]),
            ("bias_ih", vec![gates * hidden]),
            ("bias_hh", vec![gates * hidden]),
        ];
        for (p, (stem, shape)) in parts.into_iter().enumerate() {
            let row = shape.iter().product::<usize>() / gates;
            let value = |i: usize| (1000 * d + 100 * p + i / row) as f32;
            let data: Vec<f32> = (0..gates * row).map(value).collect();
            tensors.push((
                format!("rnn.{stem}_l1{end}"),
                Tensor::new(shape, data).unwrap(),
            ));
        }
    }
    tensors
}

#[test]
fn recurrent_layers_of_pytorch_are_turned_into_the_graphs_layout() {
    for (kind, gates, order) in [
        (Recurrent::Lstm, 4, &[0.0, 3.0, 1.0, 2.0][..]),
        (Recurrent::Gru, 3, &[1.0, 0.0, 2.0]),
    ] {
        let mut m = ModelBuilder::new("m", 0);
        let x = m.batch("x", [7, 3]).unwrap();
        let y = match kind {
            Recurrent::Lstm => m.layer("l", Lstm::new(2).direction(Direction::Bidirectional), x),
            Recurrent::Gru => m.layer("l", Gru::new(2).direction(Direction::Bidirectional), x),
        };
        m.output("y", y.unwrap()).unwrap();
        let mut g = m.finish().unwrap();
        let tensors = torch(gates, 2, 3);
        let list = tensors.iter().map(|(n, t)| (n.as_str(), t));
        let bytes = safetensors::encode(list, &[("format", "pt")]).unwrap();
        let file = SafeTensors::from_bytes(bytes.clone()).unwrap();
        let names = NameMap::new().recurrent(kind, "l", "rnn", 1);
        assert_eq!(names.file_name("l.weight"), "rnn.weight_ih_l1");
        strict(&mut g, &file, &names).unwrap();
        let bias = content(&g, "l.bias");
        let each = |base: f64| order.iter().flat_map(move |g| [base + g; 2]);
        let expected: Vec<f64> = [200.0, 300.0, 1200.0, 1300.0]
            .into_iter()
            .flat_map(each)
            .collect();
        assert_eq!(bias, expected, "{kind:?}");
        let weight = content(&g, "l.weight");
        let firsts: Vec<f64> = weight.iter().step_by(6).copied().collect();
        let expected: Vec<f64> = [0.0, 1000.0]
            .iter()
            .flat_map(|b| order.iter().map(move |g| b + g))
            .collect();
        assert_eq!(firsts, expected, "{kind:?}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &g, &names, Content::Variables).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{kind:?}");
    }
}

#[test]
fn rows_that_gates_do_not_divide_are_refused() {
    let mut m = ModelBuilder::new("m", 0);
    let x = m.batch("x", [7, 3]).unwrap();
    let y = m.layer("l", Lstm::new(2), x).unwrap();
    m.output("y", y).unwrap();
    let mut g = m.finish().unwrap();
    let odd = |shape: &[usize]| Tensor::zeros(DType::F32, shape).unwrap();
    let file = checkpoint(&[
        ("l.weight_ih_l0", odd(&[7, 3])),
        ("l.weight_hh_l0", odd(&[])),
        ("l.bias_ih_l0", odd(&[8])),
        ("l.bias_hh_l0", odd(&[9])),
    ]);
    let names = NameMap::new().recurrent(Recurrent::Lstm, "l", "l", 0);
    let error = strict(&mut g, &file, &names).unwrap_err().to_string();
    assert!(error.contains("of another type (3)"), "{error}");
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, tensors: &[(&str, Tensor)]| {
        let list = tensors.iter().map(|(n, t)| (*n, t));
        let bytes = safetensors::encode(list, &[]).unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
    };
    let index = |text: &str| {
        let path = folder.path().join("model.safetensors.index.json");
        std::fs::write(&path, text).unwrap();
    };
    assert_eq!(
        SafeTensors::open(folder.path()).unwrap_err().kind(),
        ErrorKind::Io
    );
    write("1.safetensors", &[("a", ramp(&[2])), ("b", ramp(&[3]))]);
    write("2.safetensors", &[("c", ramp(&[4]))]);
    index(
        r#"{"metadata": {"total_size": 36},
            "weight_map": {"c": "2.safetensors", "a": "1.safetensors", "b": "1.safetensors"}}"#,
    );
    let file = SafeTensors::open(folder.path()).unwrap();
    assert_eq!(file.names(), ["a", "b", "c"]);
    assert_eq!(file.metadata()["total_size"], "36");
    for (name, len) in [("a", 2), ("b", 3), ("c", 4)] {
        assert_eq!(file.get(name).unwrap().shape(), [len]);
    }
    for (text, says) in [
        (
            r#"{"weight_map": {"d": "1.safetensors"}}"#,
            "`d`, which it has not",
        ),
        (
            r#"{"weight_map": {"a": "../1.safetensors"}}"#,
            "no file beside it",
        ),
        (
            r#"{"weight_map": {"a": "/etc/passwd"}}"#,
            "no file beside it",
        ),
        (r#"{"weight_map": {"a": ".."}}"#, "no file beside it"),
        (r#"{"weight_map": {"a": "3.safetensors"}}"#, "3.safetensors"),
        ("{}", "weight_map"),
        ("[", "not an index"),
    ] {
        index(text);
        let error = SafeTensors::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn tensors_of_a_mapped_file_are_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let t = ramp(&[1000]);
    let bytes = safetensors::encode([("t", &t)], &[]).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let file = SafeTensors::open(&path).unwrap();
    let (a, b) = (file.get("t").unwrap(), file.get("t").unwrap());
    assert!(std::ptr::eq(a.bytes().unwrap(), b.bytes().unwrap()));
    drop(file);
    assert_eq!(a.to_f64s(), t.to_f64s());
    std::fs::write(folder.path().join("empty.safetensors"), []).unwrap();
    let error = SafeTensors::open(folder.path().join("empty.safetensors")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    let error = SafeTensors::from_bytes(bytes)
        .unwrap()
        .get("tt")
        .unwrap_err();
    assert!(error.to_string().contains("did you mean `t`?"), "{error}");
}

#[test]
fn loading_fits_what_the_layers_build() {
    let build = |seed| {
        let mut m = ModelBuilder::new("m", seed);
        let x = m.batch("x", [5]).unwrap();
        let y = m.layer("fc", Linear::new(2), x).unwrap();
        m.output("y", y).unwrap();
        m.finish().unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    opt_train::checkpoint::save_weights(&build(1), &path).unwrap();
    let mut g = build(2);
    strict(&mut g, &SafeTensors::open(&path).unwrap(), &NameMap::new()).unwrap();
    assert_eq!(g, build(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_files_are_no_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let tensors = [("a", ramp(&[2, 3])), ("b", Tensor::from_bools([2], [true, false]).unwrap())];
        let list = tensors.iter().map(|(n, t)| (*n, t));
        let mut bytes = safetensors::encode(list, &[("k", "v")]).unwrap();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        bytes.truncate(bytes.len() - cut.index(bytes.len()) / 8);
        if let Ok(file) = SafeTensors::from_bytes(bytes) {
            for name in file.names() {
                let _ = file.get(name);
            }
            let mut g = graph(&[("a", ramp(&[2, 3]))]);
            let _ = strict(&mut g, &file, &NameMap::new());
        }
    }

    #[test]
    fn similar_names_are_found(a in "[ab.]{0,8}", b in "[ab.]{0,8}") {
        let found = names::closest(&a, [b.as_str()]);
        prop_assert_eq!(found.is_some(), names::closest(&b, [a.as_str()]).is_some());
        prop_assert_eq!(names::closest(&a, ["zzzzzzzzzzzz", &a]), Some(a.as_str()));
    }
}
