//! Teacher and student in one graph.

use opt_core::Backend;
use opt_core::graph::Bindings;
use opt_core::ops::Op;
use opt_core::{DType, Dim, Graph, GraphBuilder, Shape, Symbol, Tensor, TensorType};
use opt_distill::SoftTargets;
use opt_ndarray::NdarrayBackend;
use opt_train::{CrossEntropy, Sgd, StepOptions, training_graph};

fn mlp(name: &str, hidden: usize, classes: usize) -> Graph {
    let random = |step, shape: [usize; 2]| {
        let stream = opt_core::random::Philox::new(2);
        let data: Vec<f64> = (0..(shape[0] * shape[1]) as u64)
            .map(|i| stream.normal(step, i))
            .collect();
        Tensor::from_f64s(DType::F32, shape, &data).unwrap()
    };
    let mut b = GraphBuilder::new(name);
    let shape = Shape::new([Dim::from("batch"), 4.into()]);
    let x = b.input("x", TensorType::new(DType::F32, shape)).unwrap();
    let w1 = b.variable("w1", random(0, [hidden, 4])).unwrap();
    let w2 = b.variable("w2", random(1, [classes, hidden])).unwrap();
    let h = b.matmul_t(x, w1, false, true).unwrap();
    let h = b.relu(h).unwrap();
    let y = b.matmul_t(h, w2, false, true).unwrap();
    b.output("logits", y).unwrap();
    b.finish().unwrap()
}

fn count(graph: &Graph, name: &str) -> usize {
    graph.nodes().filter(|(_, n)| n.op().name() == name).count()
}

#[test]
fn the_teacher_adds_its_forward_and_nothing_else() {
    let student = mlp("student", 3, 5);
    let options = StepOptions::default();
    let alone = training_graph(&student, &CrossEntropy, &Sgd::default(), &options).unwrap();
    let objective = SoftTargets::default().from_teacher(mlp("teacher", 64, 5));
    let both = training_graph(&student, &objective, &Sgd::default(), &options).unwrap();
    // Two forward products; a backward pass would add at least two more.
    assert_eq!(count(&both, "MatMul"), count(&alone, "MatMul") + 2);
    let assigned: Vec<_> = both
        .nodes()
        .filter(|(_, n)| matches!(n.op(), Op::Assign(_)))
        .map(|(_, n)| both.value(n.inputs()[0]).name().to_string())
        .collect();
    assert!(
        assigned.iter().all(|n| !n.contains("teacher")),
        "{assigned:?}"
    );
}

#[test]
fn the_loss_is_the_papers_formula() {
    let (teacher, student) = (mlp("teacher", 8, 3), mlp("student", 2, 3));
    let (t, alpha) = (3.0, 0.7);
    let targets = SoftTargets {
        temperature: t,
        alpha,
    };
    let objective = targets.from_teacher(teacher.clone());
    let options = StepOptions::default();
    let step = training_graph(&student, &objective, &Sgd::default(), &options).unwrap();
    let bindings: Bindings = [(Symbol::new("batch"), 2)].into();
    let backend = NdarrayBackend::new();
    let x = Tensor::new([2, 4], [0.3f32, -1.0, 0.5, 2.0, 1.0, 0.0, -0.5, 0.2]).unwrap();
    let labels = [1i64, 2];
    let inputs = [
        x.clone(),
        Tensor::new([2], labels).unwrap(),
        Tensor::scalar(0f32),
    ];
    let found = backend
        .run_once(&step.bind(&bindings).unwrap(), &inputs)
        .unwrap()[0]
        .item()
        .unwrap();
    let logits = |g: &Graph| backend.run_once(g, std::slice::from_ref(&x)).unwrap()[0].to_f64s();
    let softmax = |z: &[f64], t: f64| -> Vec<f64> {
        let e: Vec<f64> = z.iter().map(|v| (v / t).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|v| v / sum).collect()
    };
    let (zs, zt) = (logits(&student), logits(&teacher));
    let mut expected = 0.0;
    for (n, label) in labels.iter().enumerate() {
        let (s, z) = (&zs[3 * n..3 * n + 3], &zt[3 * n..3 * n + 3]);
        let (p, q) = (softmax(z, t), softmax(s, t));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        let ce = -softmax(s, 1.0)[*label as usize].ln();
        expected += (alpha * t * t * kl + (1.0 - alpha) * ce) / 2.0;
    }
    assert!(
        (found - expected).abs() < 1e-5 * (1.0 + expected),
        "{found} {expected}"
    );
}

#[test]
fn mismatches_name_what_does_not_fit() {
    let student = mlp("student", 3, 5);
    let options = StepOptions::default();
    let step = |targets: SoftTargets, teacher: Graph| {
        let objective = targets.from_teacher(teacher);
        training_graph(&student, &objective, &Sgd::default(), &options).unwrap_err()
    };
    let error = step(SoftTargets::default(), mlp("teacher", 3, 4));
    assert!(error.to_string().contains("logits"), "{error}");
    for (temperature, alpha) in [(0.0, 0.5), (f64::NAN, 0.5), (1.0, 1.5)] {
        let targets = SoftTargets { temperature, alpha };
        step(targets, mlp("teacher", 3, 5));
    }
    let mut b = GraphBuilder::new("other");
    let x = b
        .input("pixels", TensorType::new(DType::F32, [2, 9]))
        .unwrap();
    b.output("y", x).unwrap();
    let error = step(SoftTargets::default(), b.finish().unwrap());
    assert!(error.to_string().contains("pixels"), "{error}");
}
