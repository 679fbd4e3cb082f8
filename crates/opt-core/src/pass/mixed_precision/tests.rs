use super::*;
use crate::autodiff::grad;
use crate::nn::zoo;
use crate::nn::{BatchNorm, Conv, Linear, ModelBuilder};
use crate::ops::FakeQuantize;
use crate::pass::{Registry, TrainMode};
use crate::{GraphBuilder, Pipeline, Tensor};

/// The zoo's models that have something to lower.
fn models() -> impl Iterator<Item = Graph> {
    let all = zoo::tests::models().into_iter();
    all.filter(|graph| graph.nodes().any(|(_, n)| n.op().name() == "MatMul"))
}

/// The dtypes of the first outputs of all nodes of an op.
fn dtypes(graph: &Graph, op: &str) -> Vec<DType> {
    let nodes = graph.nodes().filter(|(_, n)| n.op().name() == op);
    nodes
        .map(|(_, n)| graph.type_of(n.outputs()[0]).dtype)
        .collect()
}

fn types(graph: &Graph) -> Vec<TensorType> {
    graph.outputs().map(|v| graph.type_of(v).clone()).collect()
}

/// A graph of one op on two `f32` inputs `[2, 4]` that come out of products.
fn after_products(
    build: impl FnOnce(&mut GraphBuilder, ValueId, ValueId) -> Result<ValueId>,
) -> Graph {
    let mut b = GraphBuilder::new("g");
    let x = b.input("x", TensorType::new(DType::F32, [2, 4])).unwrap();
    let w = Tensor::full(DType::F32, [4, 4], 0.5).unwrap();
    let w = b.variable("w", w).unwrap();
    let p = b.matmul(x, w).unwrap();
    let y = build(&mut b, x, p).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

#[test]
fn zoo_models_convert_and_keep_their_types() {
    for graph in models() {
        for pass in [MixedPrecision::bf16(), MixedPrecision::f16()] {
            let name = graph.name().to_string();
            let (mixed, report) = pass.convert(graph.clone()).unwrap();
            mixed.verify().unwrap();
            assert_eq!(types(&mixed), types(&graph), "{name}");
            assert_eq!(mixed.inputs(), graph.inputs());
            for op in ["MatMul", "Conv", "Attention"] {
                let low = dtypes(&mixed, op);
                assert_eq!(low.len(), dtypes(&graph, op).len());
                assert!(low.iter().all(|&d| d == pass.dtype()), "{name}: {op}");
            }
            for op in ["Softmax", "LayerNorm", "ReduceMean", "Lstm"] {
                assert!(dtypes(&mixed, op).iter().all(|&d| d == DType::F32));
            }
            for op in ["BatchNorm", "MaxPool", "Relu"] {
                assert!(dtypes(&mixed, op).iter().all(|&d| d == pass.dtype()));
            }
            // The nodes have the ids and names that they had.
            for (id, node) in mixed.nodes().filter(|(_, n)| n.op().name() != "Cast") {
                assert_eq!(graph.node(id).name(), node.name());
            }
            let products = ["MatMul", "Conv", "Attention"].map(|op| dtypes(&mixed, op).len());
            assert_eq!(report.changed, products.iter().sum::<usize>(), "{name}");
            let mut seen = HashSet::new();
            let mut casts = 0;
            for (_, node) in mixed.nodes() {
                if let Op::Cast(cast) = node.op() {
                    casts += 1;
                    let from = node.inputs()[0];
                    assert!(seen.insert((from, cast.dtype)), "{name}: cast twice");
                    let source = mixed.producer(from).map(|(_, n)| n.op().name().to_string());
                    assert_ne!(
                        source.as_deref(),
                        Some("Cast"),
                        "{name}: cast and cast back"
                    );
                }
            }
            assert_eq!(report.figures["casts"], f64::from(casts), "{name}");
        }
    }
}

#[test]
fn gradients_by_the_master_weights_are_f32() {
    for graph in models() {
        let (mixed, _) = MixedPrecision::f16().convert(graph).unwrap();
        for training in [false, true] {
            let mixed = match training {
                true => TrainMode::switch(mixed.clone()).unwrap().0,
                false => mixed.clone(),
            };
            let (parameters, out) = (mixed.parameters(), mixed.outputs().next().unwrap());
            let mut b = GraphBuilder::extend(mixed);
            let loss = b.mean_all(out).unwrap();
            let gradients = grad(&mut b, loss, &parameters).unwrap();
            for (i, &p) in parameters.iter().enumerate() {
                let g = gradients.of(p).unwrap();
                assert_eq!(b.type_of(g), b.type_of(p));
                assert_eq!(b.type_of(g).dtype, DType::F32);
                b.output(&format!("grad{i}"), g).unwrap();
            }
            b.finish().unwrap();
        }
    }
}

#[test]
fn ops_run_in_the_dtype_of_the_table() {
    use crate::ops::ReduceOp;
    type Build = fn(&mut GraphBuilder, ValueId, ValueId) -> Result<ValueId>;
    let (low, high) = (DType::BF16, DType::F32);
    let table: [(&str, DType, Build); 22] = [
        ("Relu", low, |b, _, p| b.relu(p)),
        ("Gelu", low, |b, _, p| b.gelu(p)),
        ("Sigmoid", low, |b, _, p| b.sigmoid(p)),
        ("Exp", high, |b, _, p| b.exp(p)),
        ("Log", high, |b, _, p| b.log(p)),
        ("Softplus", high, |b, _, p| b.softplus(p)),
        ("Pow", high, |b, _, p| b.pow(p, p)),
        ("Mul", low, |b, _, p| b.mul(p, p)),
        ("Add", high, |b, x, p| b.add(p, x)),
        ("Concat", high, |b, x, p| b.concat(&[p, x], 0)),
        ("Concat", low, |b, _, p| b.concat(&[p, p], 0)),
        ("Transpose", low, |b, _, p| b.transpose(p, &[1, 0])),
        ("Softmax", high, |b, _, p| b.softmax(p, 1)),
        ("ReduceSum", high, |b, _, p| b.sum(p, &[1], false)),
        ("ReduceMean", high, |b, _, p| b.mean(p, &[1], false)),
        ("ReduceMax", low, |b, _, p| {
            b.reduce(ReduceOp::Max, p, &[1], false)
        }),
        // Numbers of rank 0 promote nothing, unless they would be infinite.
        ("Mul", low, |b, _, p| b.mul_scalar(p, 1e9)),
        ("Add", low, |b, _, p| {
            let s = b.variable("s", Tensor::scalar(2f32))?;
            b.add(p, s)
        }),
        ("Max", high, |b, _, p| {
            let c = b.scalar(DType::F32, -3.4e38)?;
            b.maximum(p, c)
        }),
        // The bias of a linear layer, but no other stored vector.
        ("Add", low, |b, _, p| {
            let bias = b.variable("bias", Tensor::zeros(DType::F32, [4])?)?;
            b.add(bias, p)
        }),
        ("Mul", high, |b, _, p| {
            let scale = b.variable("scale", Tensor::zeros(DType::F32, [4])?)?;
            b.mul(p, scale)
        }),
        ("PRelu", low, |b, _, p| {
            let slope = b.variable("slope", Tensor::zeros(DType::F32, [4])?)?;
            b.prelu(p, slope)
        }),
    ];
    for (op, expected, build) in table {
        let graph = after_products(build);
        let (mixed, _) = MixedPrecision::bf16().convert(graph).unwrap();
        assert_eq!(dtypes(&mixed, op), [expected], "{op}");
    }
}

#[test]
fn a_number_that_half_precision_cannot_hold_promotes_it_only() {
    let clip = || {
        after_products(|b, _, p| {
            let c = b.scalar(DType::F32, -1e9)?;
            b.maximum(p, c)
        })
    };
    let (mixed, _) = MixedPrecision::f16().convert(clip()).unwrap();
    assert_eq!(dtypes(&mixed, "Max"), [DType::F32]);
    let (mixed, _) = MixedPrecision::bf16().convert(clip()).unwrap();
    assert_eq!(dtypes(&mixed, "Max"), [DType::BF16]);
    // An epsilon that would be 0.
    let graph = || after_products(|b, _, p| b.add_scalar(p, 1e-8));
    let (mixed, _) = MixedPrecision::f16().convert(graph()).unwrap();
    assert_eq!(dtypes(&mixed, "Add"), [DType::F32]);
    let (mixed, _) = MixedPrecision::bf16().convert(graph()).unwrap();
    assert_eq!(dtypes(&mixed, "Add"), [DType::BF16]);
}

#[test]
fn a_weight_that_is_read_twice_is_cast_once() {
    let graph = after_products(|b, _, p| {
        let w = b.graph().find("w")?;
        let p = b.relu(p)?;
        b.matmul(p, w)
    });
    let (mixed, report) = MixedPrecision::bf16().convert(graph).unwrap();
    // The input, the weight, and the output back.
    assert_eq!((report.changed, report.figures["casts"]), (2, 3.0));
    assert_eq!(dtypes(&mixed, "Cast").len(), 3);
}

#[test]
fn applied_twice_it_says_so() {
    for graph in models() {
        let (mixed, _) = MixedPrecision::bf16().convert(graph).unwrap();
        let error = MixedPrecision::bf16().convert(mixed.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoEffect);
        assert!(error.to_string().contains("already"), "{error}");
        let error = MixedPrecision::f16().convert(mixed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoEffect);
        assert!(error.to_string().contains("bf16"), "{error}");
    }
}

#[test]
fn a_kept_layer_can_follow_later_without_a_detour() {
    let graph = zoo::lenet5([1, 28, 28], 10, 0).unwrap();
    let (whole, _) = MixedPrecision::bf16().convert(graph.clone()).unwrap();
    let (part, report) = MixedPrecision::bf16().keep("fc2").convert(graph).unwrap();
    assert!(report.notes.iter().any(|n| n.contains("kept")));
    assert_eq!(dtypes(&part, "MatMul")[1], DType::F32);
    let (later, report) = MixedPrecision::bf16().convert(part).unwrap();
    assert_eq!(report.changed, 1);
    assert_eq!(dtypes(&later, "MatMul"), dtypes(&whole, "MatMul"));
    let product = later
        .nodes()
        .filter(|(_, n)| n.op().name() == "MatMul")
        .nth(1)
        .map(|(_, n)| n.inputs()[0])
        .unwrap();
    let source = later.producer(product).unwrap().1.op().name();
    assert_ne!(source, "Cast", "what was widened is read from before");
}

#[test]
fn a_pattern_that_matches_nothing_is_an_error() {
    let graph = zoo::lenet5([1, 28, 28], 10, 0).unwrap();
    let error = MixedPrecision::bf16()
        .keep("nowhere")
        .convert(graph.clone())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    assert!(error.to_string().contains("nowhere"));
    let error = MixedPrecision::bf16().keep("").convert(graph).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    let graph = zoo::matrix_factorization(4, 5, 2, 3.0, 0);
    let kind = MixedPrecision::bf16()
        .convert(graph.unwrap())
        .unwrap_err()
        .kind();
    assert_eq!(kind, ErrorKind::NoEffect);
}

#[test]
fn pipelines_write_read_and_log_it() {
    let pipeline = Pipeline::new().then(MixedPrecision::f16().keep("fc\"1").keep("conv"));
    let text = pipeline.to_toml();
    let read = Pipeline::from_toml(&text, &Registry::core()).unwrap();
    assert_eq!(read.to_toml(), text);
    let graph = zoo::lenet5([1, 28, 28], 10, 0).unwrap();
    let text = "[[pass]]\nname = \"mixed_precision\"\ndtype = \"bf16\"\n";
    let pipeline = Pipeline::from_toml(text, &Registry::core()).unwrap();
    let (graph, _) = pipeline.run(graph, &mut Context::new()).unwrap();
    let logged = graph.log().last().unwrap();
    assert_eq!(logged.pass, "mixed_precision");
    assert_eq!(logged.config, "dtype = \"bf16\"\nkeep = []\n");
    for (text, part) in [
        ("", "dtype"),
        ("dtype = \"f32\"", "dtype"),
        ("dtype = \"f16\"\nkeep = \"x\"", "keep"),
        ("dtype = \"f16\"\nkeep = [1]", "keep"),
        ("dtype = \"f16\"\nspeed = 1", "speed"),
        ("dtype", "TOML"),
    ] {
        let error = MixedPrecision::from_toml(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Pipeline);
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

#[test]
fn quantized_parts_stay_as_they_are() {
    let graph = |all: bool| {
        let mut b = GraphBuilder::new("g");
        let x = b.input("x", TensorType::new(DType::F32, [2, 4])).unwrap();
        let w = Tensor::full(DType::F32, [4, 4], 0.5).unwrap();
        let w = b.variable("w", w).unwrap();
        let scale = b.scalar(DType::F32, 0.1).unwrap();
        let zero = b.scalar(DType::F32, 0.0).unwrap();
        let (low, high) = (-127, 127);
        let axis = None;
        let fake = b.op(FakeQuantize { low, high, axis }, &[w, scale, zero]);
        let fake = b.transpose(fake.unwrap(), &[1, 0]).unwrap();
        let y = b.matmul(x, fake).unwrap();
        let z = match all {
            true => y,
            false => b.matmul(y, w).unwrap(),
        };
        b.output("z", z).unwrap();
        b.finish().unwrap()
    };
    let (mixed, report) = MixedPrecision::bf16().convert(graph(false)).unwrap();
    assert_eq!(dtypes(&mixed, "MatMul"), [DType::F32, DType::BF16]);
    assert_eq!(dtypes(&mixed, "FakeQuantize"), [DType::F32]);
    assert!(
        report.to_string().contains("1 quantization node"),
        "{report}"
    );
    let error = MixedPrecision::bf16().convert(graph(true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEffect);
    assert!(error.to_string().contains("quantized"), "{error}");
}

#[test]
fn statistics_that_are_assigned_stay_f32() {
    let mut m = ModelBuilder::new("m", 0);
    let x = m.batch("x", [3, 8, 8]).unwrap();
    let x = m.layer("conv", Conv::new(4, [3, 3]), x).unwrap();
    let x = m.layer("norm", BatchNorm::new(), x).unwrap();
    let x = m.flatten(x, 1).unwrap();
    let y = m.layer("fc", Linear::new(3), x).unwrap();
    m.output("y", y).unwrap();
    let graph = m.finish().unwrap();
    let (training, _) = TrainMode::switch(graph.clone()).unwrap();
    let (a, _) = MixedPrecision::bf16().convert(training).unwrap();
    let (mixed, _) = MixedPrecision::bf16().convert(graph).unwrap();
    let (b, _) = TrainMode::switch(mixed).unwrap();
    for graph in [a, b] {
        let norm = graph.nodes().find(|(_, n)| n.op().name() == "BatchNorm");
        let (_, norm) = norm.unwrap();
        let of = |v: &ValueId| graph.type_of(*v).dtype;
        let (inputs, outputs): (Vec<_>, Vec<_>) = (
            norm.inputs().iter().map(of).collect(),
            norm.outputs().iter().map(of).collect(),
        );
        let (f32, bf16) = (DType::F32, DType::BF16);
        assert_eq!(inputs, [bf16, f32, f32, f32, f32]);
        assert_eq!(outputs, [bf16, f32, f32, f32, f32]);
        assert_eq!(dtypes(&graph, "Assign"), [f32, f32]);
    }
}

#[test]
fn a_graph_with_gradients_is_refused_at_the_node() {
    let graph = zoo::lenet5([1, 28, 28], 10, 0).unwrap();
    let (parameters, out) = (graph.parameters(), graph.outputs().next().unwrap());
    let mut b = GraphBuilder::extend(graph);
    let loss = b.mean_all(out).unwrap();
    let gradients = grad(&mut b, loss, &parameters).unwrap();
    b.output("g", gradients.of(parameters[0]).unwrap()).unwrap();
    let error = MixedPrecision::bf16()
        .convert(b.finish().unwrap())
        .unwrap_err();
    assert!(error.to_string().contains("Grad)"), "{error}");
}

#[test]
fn what_holds_f64_is_left_alone() {
    let graph = after_products(|b, _, p| {
        let wide = b.cast(p, DType::F64)?;
        let y = b.matmul_t(wide, wide, false, true)?;
        b.cast(y, DType::F32)
    });
    let (mixed, report) = MixedPrecision::f16().convert(graph).unwrap();
    assert_eq!(dtypes(&mixed, "MatMul"), [DType::F16, DType::F64]);
    assert_eq!(report.changed, 1);
    assert!(report.notes[0].contains("f64"), "{report}");
}
