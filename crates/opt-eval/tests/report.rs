//! The HTML report: what it says, and that no input breaks it.

use opt_core::graph::{Applied, Bindings};
use opt_core::nn::{Linear, ModelBuilder};
use opt_core::{DType, Dim, Graph, GraphBuilder, Tensor, TensorType};
use opt_eval::{
    Candidate, Comparison, ConfusionMatrix, Curve, HtmlReport, LatencyBench, Row, layer_times,
};
use opt_ndarray::NdarrayBackend;

fn mlp(hidden: usize) -> Graph {
    let mut b = ModelBuilder::new("mlp", 0);
    let x = b.batch("x", [16]).unwrap();
    let x = b.layer("hidden", Linear::new(hidden), x).unwrap();
    let x = b.relu(x).unwrap();
    let y = b.layer("out", Linear::new(3), x).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

fn row(name: &str, accuracy: Option<f64>, bytes: u64, latency_us: Option<f64>) -> Row {
    Row {
        name: name.into(),
        accuracy,
        parameters: bytes / 4,
        bytes,
        macs: bytes / 4,
        latency_us,
    }
}

/// Every element is closed by its own tag, every attribute is quoted, no id stands twice and no
/// number of a drawing is NaN or infinite.
#[track_caller]
fn assert_well_formed(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut ids: Vec<&str> = Vec::new();
    let mut rest = html.strip_prefix("<!DOCTYPE html>").unwrap();
    while let Some(start) = rest.find('<') {
        assert!(
            !rest[..start].contains('>'),
            "a lone > in {:?}",
            &rest[..start]
        );
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "at </{name}>");
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap();
        if name == "style" {
            // Style sheets have > in selectors.
            rest = &rest[rest.find("</style>").unwrap() + "</style>".len()..];
            continue;
        }
        let parts: Vec<&str> = tag.split('"').collect();
        assert_eq!(parts.len() % 2, 1, "quotes of <{tag}>");
        for pair in parts.chunks_exact(2) {
            assert!(pair[0].ends_with('=') && !pair[1].contains('<'), "<{tag}>");
            if pair[0].ends_with(" id=") {
                assert!(!ids.contains(&pair[1]), "the id {} stands twice", pair[1]);
                ids.push(pair[1]);
            }
            let numeric = [
                " x=",
                " y=",
                " width=",
                " height=",
                " d=",
                " cx=",
                " cy=",
                " viewBox=",
            ];
            if numeric.iter().any(|n| pair[0].ends_with(n)) {
                assert!(
                    !pair[1].contains("NaN") && !pair[1].contains("inf"),
                    "<{tag}>"
                );
            }
        }
        if !tag.ends_with('/') && !["meta", "br"].contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn a_report_has_all_sections_and_the_same_bytes_each_time() {
    let (before, mut after) = (mlp(64), mlp(4));
    let weight = after.find("hidden.weight").unwrap();
    let shape = after.value(weight).tensor().unwrap().shape().to_vec();
    let mut content = vec![0.5f32; 64];
    content[..16].fill(0.0);
    let content = Tensor::new(shape, content).unwrap();
    after.set_variable(weight, content).unwrap();
    after.push_log(Applied {
        pass: "channel_prune".into(),
        config: String::new(),
        summary: "60 changed, sparsity 0.123456789".into(),
    });
    let table = Comparison::new(vec![
        row("before", Some(0.98), 5_000, Some(10.0)),
        row("after", Some(0.97), 400, Some(12.5)),
    ]);
    let input = [Tensor::new([1, 16], [0.5f32; 16]).unwrap()];
    let candidate = |name, graph| Candidate {
        name,
        graph,
        inputs: &input,
    };
    let models = [candidate("before", &before), candidate("after", &after)];
    let bench = LatencyBench::new().warmup(0).runs(2);
    let backend = NdarrayBackend::new().threads(1);
    let mut times = layer_times(&models, &backend, &bench).unwrap();
    let matrix = ConfusionMatrix::new(&[0, 1, 2, 2], &[0, 1, 2, 1], 3).unwrap();
    let report = HtmlReport::new("Smaller")
        .paragraph("On four examples.")
        .comparison(&table)
        .model("before", &before)
        .model("after", &after)
        .layer_times("after", times.pop().unwrap())
        .layer_times("before", times.pop().unwrap())
        .confusion("after", &matrix, ["cat", "dog"])
        .curves(
            "Loss",
            "epoch",
            "loss",
            [Curve::new("after", [(1.0, 2.0), (2.0, 0.01)])],
        );
    let html = report.to_html().unwrap();
    assert_well_formed(&html);
    assert_eq!(html, report.to_html().unwrap());
    for expected in [
        "<h1>Smaller</h1>",
        "<p>On four examples.</p>",
        "1.25x slower",
        "12.5x smaller",
        "-1.00 points",
        "<h3>Accuracy against size</h3>",
        "<h3>Accuracy against latency</h3>",
        "<h3>Bytes per layer</h3>",
        "<h3>Time per layer</h3>",
        "<h3>Sparsity per layer</h3>",
        "hidden, after: 23.53 %",
        "hidden, before: 0.00 %",
        "The median time of 2 runs of each layer",
        "<title id=\"weights0-t\">Weights of hidden</title>",
        "1 of class 2 predicted as dog",
        "on a logarithmic axis",
        "channel_prune: 60 changed, sparsity 0.1235.",
        "<pre class=\"mermaid\"><code>flowchart LR",
    ] {
        assert!(html.contains(expected), "{expected}");
    }
    // No speed-up is claimed where the model became slower, and nothing comes from elsewhere.
    for absent in ["faster", "://", "<script", "<link", "url("] {
        assert!(!html.contains(absent), "{absent}");
    }
}

#[test]
fn names_are_text_wherever_they_stand() {
    const EVIL: &str = "<script>alert(1)</script>\"'&\u{202e}]";
    let graph = |width: usize| {
        let mut b = GraphBuilder::new(EVIL);
        let shape: [Dim; 2] = ["batch".into(), 4.into()];
        let x = b.input(EVIL, TensorType::new(DType::F32, shape)).unwrap();
        let w = Tensor::full(DType::F32, [4, width], 0.5).unwrap();
        let w = b.variable("weight", w).unwrap();
        let matmul = opt_core::ops::MatMul {
            trans_a: false,
            trans_b: false,
        };
        let y = b.named_node(EVIL, matmul, &[x, w]).unwrap()[0];
        b.output(EVIL, y).unwrap();
        let mut graph = b.finish().unwrap();
        graph.push_log(Applied {
            pass: EVIL.into(),
            config: EVIL.into(),
            summary: EVIL.into(),
        });
        graph
    };
    let (before, after) = (graph(3), graph(2));
    let other = format!("{EVIL}2");
    let table = Comparison::new(vec![
        row(EVIL, Some(0.5), 48, Some(2.0)),
        row(&other, Some(0.25), 32, Some(1.0)),
    ]);
    let input = [Tensor::new([1, 4], [0.5f32; 4]).unwrap()];
    let models = [Candidate {
        name: EVIL,
        graph: &before,
        inputs: &input,
    }];
    let bench = LatencyBench::new().warmup(0).runs(1);
    let times = layer_times(&models, &NdarrayBackend::new().threads(1), &bench).unwrap();
    let matrix = ConfusionMatrix::new(&[0, 1], &[1, 1], 2).unwrap();
    let many = ConfusionMatrix::new(&[0, 1], &[1, 40], 41).unwrap();
    let html = HtmlReport::new(EVIL)
        .paragraph(EVIL)
        .comparison(&table)
        .model(EVIL, &before)
        .model(other.as_str(), &after)
        .layer_times(EVIL, times[0].clone())
        .confusion(EVIL, &matrix, [EVIL, EVIL])
        .confusion(EVIL, &many, [EVIL; 41])
        .curves(EVIL, EVIL, EVIL, [Curve::new(EVIL, [(0.0, 1.0)])])
        .layer_bars(EVIL, EVIL, [bar_series(EVIL, &[(EVIL, 1.0)])])
        .to_html()
        .unwrap();
    assert_well_formed(&html);
    assert!(!html.contains("<script"));
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!html.contains('\u{202e}'));
}

fn bar_series(name: &str, values: &[(&str, f64)]) -> (String, Vec<(String, f64)>) {
    let values = values.iter().map(|(layer, v)| (layer.to_string(), *v));
    (name.into(), values.collect())
}

#[test]
fn bars_stand_beside_each_other_by_layer() {
    let one = bar_series("int8", &[("a", 0.25), ("b", 3.0)]);
    // In another order, and without a number for one layer.
    let two = bar_series("int4", &[("c", f64::INFINITY), ("b", 4.0), ("a", -1.0)]);
    let html = HtmlReport::new("bars")
        .layer_bars("Sensitivity", "error", [one.clone(), two])
        .to_html()
        .unwrap();
    assert_well_formed(&html);
    for said in ["a, int8: 0.25", "b, int8: 3", "b, int4: 4"] {
        assert!(html.contains(said), "{said}");
    }
    assert!(!html.contains("a, int4:") && !html.contains("c, int"));
    let report = HtmlReport::new("bars");
    assert!(
        report
            .clone()
            .layer_bars("many", "x", vec![one; 5])
            .to_html()
            .is_err()
    );
    assert!(report.layer_bars("none", "x", []).to_html().is_err());
}

#[test]
fn odd_numbers_and_nothing_at_all_break_no_drawing() {
    let empty = HtmlReport::new("").to_html().unwrap();
    assert_well_formed(&empty);
    assert!(!empty.contains("<h2>") && !empty.contains("<svg"));
    let dense = mlp(2);
    let dense = HtmlReport::new("").model("a", &dense).to_html().unwrap();
    assert!(dense.contains("No parameter of these models is 0."));
    assert!(!dense.contains("Sparsity per layer"));

    let nothing = {
        let mut b = GraphBuilder::new("identity");
        let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
        b.output("x", x).unwrap();
        b.finish().unwrap()
    };
    let mut odd = mlp(2);
    let (weight, zeros) = (
        odd.find("hidden.weight").unwrap(),
        odd.find("out.weight").unwrap(),
    );
    let mut content = odd.value(weight).tensor().unwrap().contiguous();
    let values = content.as_slice_mut::<f32>().unwrap();
    (values[0], values[1], values[2]) = (f32::NAN, f32::INFINITY, f32::MAX);
    odd.set_variable(weight, content).unwrap();
    let content = Tensor::zeros(DType::F32, odd.value(zeros).tensor().unwrap().shape()).unwrap();
    odd.set_variable(zeros, content).unwrap();
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let table = Comparison::new(vec![
        row("odd", Some(nan), 0, Some(inf)),
        row("nothing", Some(-inf), u64::MAX, Some(nan)),
        row("zero", Some(0.0), 0, Some(0.0)),
        row("huge", Some(1e300), u64::MAX, Some(1e300)),
        row("not measured", None, 1, None),
    ]);
    let curves = |points: Vec<(f64, f64)>| vec![Curve::new("c", points)];
    let one_class = ConfusionMatrix::new(&[0], &[0], 1).unwrap();
    let html = HtmlReport::new("odd")
        .comparison(&table)
        .model("odd", &odd)
        .model("nothing", &nothing)
        .layer_times("odd", [])
        .confusion(
            "odd",
            &one_class,
            ["a name that is much longer than its cell can be"],
        )
        .curves("no curves", "x", "y", [])
        .layer_bars("no bars", "x", [bar_series("s", &[])])
        .layer_bars(
            "odd bars",
            "x",
            [bar_series("s", &[("a", nan), ("b", 1e300), ("c", 0.0)])],
        )
        .curves("no points", "x", "y", curves(vec![]))
        .curves("no numbers", "x", "y", curves(vec![(nan, 1.0), (1.0, inf)]))
        .curves("one point", "x", "y", curves(vec![(1.0, 5.0), (2.0, nan)]))
        .curves(
            "constant",
            "x",
            "y",
            curves(vec![(1e300, 0.0), (0.0, 0.0), (1.0, 0.0)]),
        )
        .curves(
            "far apart",
            "x",
            "y",
            curves(vec![(-1e99, 1e-99), (1e99, 1e99)]),
        )
        .curves(
            "tiny",
            "x",
            "y",
            curves(vec![(0.0, -1e-300), (1e-300, 1e-300)]),
        )
        .to_html()
        .unwrap();
    assert_well_formed(&html);
    assert!(html.contains("1 points that are not finite are left out"));
    assert!(!html.contains("no numbers"), "there is nothing to draw");
}

#[test]
fn mistakes_are_errors_that_name_the_model() {
    let graph = mlp(2);
    let error = |report: HtmlReport<'_>| report.to_html().unwrap_err().to_string();
    let report = || HtmlReport::new("t").model("a", &graph);
    assert!(error(report().model("a", &graph)).contains("two models are named `a`"));
    assert!(error(report().focus(["b"])).contains("`b` among [\"a\"]"));
    assert!(error(report().focus(Vec::<String>::new())).contains("found 0"));
    assert!(error(report().focus(["a"; 5])).contains("found 5"));
    let unbound = HtmlReport::new("t").model_at("a", &graph, Bindings::new());
    assert!(error(unbound).starts_with("a: "));
}

#[test]
fn files_are_written_whole_or_not_at_all() {
    let graph = mlp(2);
    let folder = std::env::temp_dir().join(format!("opt-eval-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("report.html");
    let report = HtmlReport::new("t").model("a", &graph);
    report.write(&path).unwrap();
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written, report.to_html().unwrap());
    assert!(report.clone().focus(["b"]).write(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), written);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    let missing = report.write(folder.join("none/report.html")).unwrap_err();
    assert_eq!(missing.kind(), opt_eval::ErrorKind::Io);
    std::fs::remove_dir_all(folder).unwrap();
}
