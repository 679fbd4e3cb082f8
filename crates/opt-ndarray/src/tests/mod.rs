//! Whole graphs: variables, assignments, errors, fusion, threads.

mod batch_norm;
mod conv_fusion;
mod fusion;
mod half;
mod kernels;
mod outputs;
mod profile;
mod quantized;
mod updates;

use opt_core::{Backend, CompileSpec, DType, ErrorKind, GraphBuilder, Tensor, TensorType};

use crate::NdarrayBackend;

fn f32s(shape: &[usize], data: &[f32]) -> Tensor {
    Tensor::new(shape, data).unwrap()
}

#[test]
fn assignments_take_effect_after_the_run() {
    let mut b = GraphBuilder::new("counter");
    let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
    let v = b.variable("v", f32s(&[2], &[1., 2.])).unwrap();
    let w = b.variable("w", f32s(&[2], &[5., 6.])).unwrap();
    let sum = b.add(v, x).unwrap();
    let new = b.assign(v, sum).unwrap();
    // Reads the old content of `v`.
    b.assign(w, v).unwrap();
    let twice = b.add(v, v).unwrap();
    b.output("twice", twice).unwrap();
    b.output("new", new).unwrap();
    b.output("old", v).unwrap();
    let graph = b.finish().unwrap();
    for threads in [1, 2] {
        let exe = NdarrayBackend::new()
            .threads(threads)
            .compile(&graph, &CompileSpec::new())
            .unwrap();
        let mut s = exe.session().unwrap();
        let x = f32s(&[2], &[10., 10.]);
        let mut out = Vec::new();
        s.run_into(std::slice::from_ref(&x), &mut out).unwrap();
        assert_eq!(out[0], f32s(&[2], &[2., 4.]));
        assert_eq!(out[1], f32s(&[2], &[11., 12.]));
        assert_eq!(out[2], f32s(&[2], &[1., 2.]));
        assert_eq!(s.variable(v).unwrap(), f32s(&[2], &[11., 12.]));
        assert_eq!(s.variable(w).unwrap(), f32s(&[2], &[1., 2.]));
        s.run_into(std::slice::from_ref(&x), &mut out).unwrap();
        assert_eq!(s.variable(v).unwrap(), f32s(&[2], &[21., 22.]));
        assert_eq!(s.variable(w).unwrap(), f32s(&[2], &[11., 12.]));
        s.set_variable(v, &f32s(&[2], &[0., 0.])).unwrap();
        assert_eq!(s.run(&[x]).unwrap()[0], f32s(&[2], &[0., 0.]));
        // Another session starts from the graph's content.
        assert_eq!(
            exe.session().unwrap().variable(v).unwrap(),
            f32s(&[2], &[1., 2.])
        );
    }
}

#[test]
fn weights_that_are_set_are_packed_again() {
    let mut b = GraphBuilder::new("linear");
    let x = b.input("x", TensorType::new(DType::F32, [3, 2])).unwrap();
    let w = b.variable("w", f32s(&[2, 2], &[1., 0., 0., 1.])).unwrap();
    let y = b.matmul(x, w).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();
    let exe = NdarrayBackend::new()
        .threads(1)
        .compile(&graph, &CompileSpec::new())
        .unwrap();
    let (mut s, mut other) = (exe.session().unwrap(), exe.session().unwrap());
    let x = f32s(&[3, 2], &[1., 2., 3., 4., 5., 6.]);
    assert_eq!(s.run(std::slice::from_ref(&x)).unwrap()[0], x);
    s.set_variable(w, &f32s(&[2, 2], &[0., 1., 1., 0.]))
        .unwrap();
    assert_eq!(
        s.run(std::slice::from_ref(&x)).unwrap()[0],
        f32s(&[3, 2], &[2., 1., 4., 3., 6., 5.])
    );
    assert_eq!(other.run(std::slice::from_ref(&x)).unwrap()[0], x);
    let wrong = s.set_variable(w, &f32s(&[4], &[0.; 4])).unwrap_err();
    assert_eq!(wrong.path().next(), Some("w"));
}

#[test]
fn wrong_inputs_are_named() {
    let mut b = GraphBuilder::new("g");
    let ty = TensorType::new(
        DType::F32,
        opt_core::Shape::new(["batch".into(), opt_core::Dim::Fixed(2)]),
    );
    let x = b.input("x", ty).unwrap();
    let y = b.relu(x).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();
    let backend = NdarrayBackend::new().threads(1);
    let unbound = backend.compile(&graph, &CompileSpec::new()).unwrap_err();
    assert!(unbound.to_string().contains("batch"), "{unbound}");
    let mut s = backend
        .compile(&graph, &CompileSpec::new().bind("batch", 3))
        .unwrap()
        .session()
        .unwrap();
    assert_eq!(s.run(&[]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let e = s.run(&[f32s(&[2, 2], &[0.; 4])]).unwrap_err();
    assert_eq!((e.kind(), e.path().next()), (ErrorKind::Shape, Some("x")));
    let e = s
        .run(&[Tensor::zeros(DType::F64, [3, 2]).unwrap()])
        .unwrap_err();
    assert_eq!((e.kind(), e.path().next()), (ErrorKind::DType, Some("x")));
    // A strided view is as good as a copy.
    let t = f32s(&[2, 3], &[1., -2., 3., -4., 5., -6.])
        .transpose(&[1, 0])
        .unwrap();
    assert_eq!(
        s.run(&[t]).unwrap()[0],
        f32s(&[3, 2], &[1., 0., 0., 5., 3., 0.])
    );
}

/// The kernels that a graph compiles to.
fn steps(graph: &opt_core::Graph) -> Vec<String> {
    let exe = NdarrayBackend::new()
        .threads(1)
        .compile(graph, &CompileSpec::new())
        .unwrap();
    exe.steps().into_iter().map(|s| s.kernel).collect()
}

#[test]
fn bias_and_activation_become_part_of_the_product() {
    let mut b = GraphBuilder::new("mlp");
    let x = b.input("x", TensorType::new(DType::F32, [4, 3])).unwrap();
    let w = b
        .variable("w", f32s(&[3, 2], &[1., -1., 0.5, 2., -3., 1.]))
        .unwrap();
    let bias = b.variable("bias", f32s(&[2], &[0.5, -0.25])).unwrap();
    let y = b.matmul(x, w).unwrap();
    let y = b.add(y, bias).unwrap();
    let y = b.relu(y).unwrap();
    let y = b.sigmoid(y).unwrap();
    b.output("y", y).unwrap();
    let graph = b.finish().unwrap();
    assert_eq!(steps(&graph), ["matmul+relu+sigmoid"]);
    let x: Vec<f32> = (0..12).map(|i| i as f32 * 0.3 - 1.5).collect();
    let out = NdarrayBackend::new()
        .threads(1)
        .run_once(&graph, &[f32s(&[4, 3], &x)])
        .unwrap();
    let (w, bias) = ([1., -1., 0.5, 2., -3., 1.], [0.5, -0.25]);
    for i in 0..4 {
        for j in 0..2 {
            let sum: f32 = (0..3).map(|k| x[i * 3 + k] * w[k * 2 + j]).sum::<f32>() + bias[j];
            let want = 1.0 / (1.0 + (-sum.max(0.0)).exp());
            assert!((out[0].to_vec::<f32>().unwrap()[i * 2 + j] - want).abs() < 1e-6);
        }
    }
}

/// Adam's update of a parameter, as an optimizer writes it.
fn adam(n: usize) -> (opt_core::Graph, [opt_core::ValueId; 3]) {
    let mut b = GraphBuilder::new("adam");
    let g = b.input("g", TensorType::new(DType::F32, [n])).unwrap();
    let lr = b
        .input("lr", TensorType::new(DType::F32, [0usize; 0]))
        .unwrap();
    let correction = b
        .input("c", TensorType::new(DType::F32, [0usize; 0]))
        .unwrap();
    let p = b
        .variable("p", Tensor::full(DType::F32, [n], 1.0).unwrap())
        .unwrap();
    let m = b
        .variable("m", Tensor::full(DType::F32, [n], 0.1).unwrap())
        .unwrap();
    let v = b
        .variable("v", Tensor::full(DType::F32, [n], 0.2).unwrap())
        .unwrap();
    let (m1, g1) = (b.mul_scalar(m, 0.9).unwrap(), b.mul_scalar(g, 0.1).unwrap());
    let m2 = b.add(m1, g1).unwrap();
    let gg = b.mul(g, g).unwrap();
    let (v1, g2) = (
        b.mul_scalar(v, 0.999).unwrap(),
        b.mul_scalar(gg, 0.001).unwrap(),
    );
    let v2 = b.add(v1, g2).unwrap();
    let root = b.sqrt(v2).unwrap();
    let root = b.mul(root, correction).unwrap();
    let root = b.add_scalar(root, 1e-8).unwrap();
    let step = b.div(m2, root).unwrap();
    let step = b.mul(step, lr).unwrap();
    let p2 = b.sub(p, step).unwrap();
    b.assign(p, p2).unwrap();
    b.assign(m, m2).unwrap();
    b.assign(v, v2).unwrap();
    (b.finish().unwrap(), [p, m, v])
}

#[test]
fn an_adam_update_is_one_kernel() {
    let n = 1500;
    let (graph, [p, m, v]) = adam(n);
    assert_eq!(steps(&graph).len(), 1, "{:?}", steps(&graph));
    let exe = NdarrayBackend::new()
        .threads(1)
        .compile(&graph, &CompileSpec::new())
        .unwrap();
    let mut s = exe.session().unwrap();
    let g: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    let (lr, c) = (Tensor::scalar(0.01f32), Tensor::scalar(0.9f32));
    let (mut p0, mut m0, mut v0) = (vec![1f64; n], vec![0.1f64; n], vec![0.2f64; n]);
    for _ in 0..3 {
        s.run(&[f32s(&[n], &g), lr.clone(), c.clone()]).unwrap();
        for i in 0..n {
            let g = f64::from(g[i]);
            m0[i] = 0.9 * m0[i] + 0.1 * g;
            v0[i] = 0.999 * v0[i] + 0.001 * g * g;
            p0[i] -= 0.01 * m0[i] / (v0[i].sqrt() * 0.9 + 1e-8);
        }
    }
    for (id, want) in [(p, p0), (m, m0), (v, v0)] {
        for (found, want) in s.variable(id).unwrap().to_f64s().iter().zip(want) {
            assert!((found - want).abs() < 1e-6, "{found} {want}");
        }
    }
}

#[test]
fn programs_do_not_reach_around_other_steps() {
    // y = x + sum(exp(x)): the sum has to run between the two element-wise steps.
    let mut b = GraphBuilder::new("g");
    let x = b.input("x", TensorType::new(DType::F32, [3])).unwrap();
    let e = b.exp(x).unwrap();
    let s = b.sum(e, &[0], true).unwrap();
    let s = b.expand(s, [3]).unwrap();
    let y = b.mul(e, s).unwrap();
    let z = b.add(y, e).unwrap();
    b.output("z", z).unwrap();
    let graph = b.finish().unwrap();
    assert_eq!(steps(&graph), ["exp", "reducesum", "mul+add"]);
    let out = NdarrayBackend::new()
        .threads(1)
        .run_once(&graph, &[f32s(&[3], &[0., 1., 2.])])
        .unwrap();
    let e: Vec<f32> = [0f32, 1., 2.].iter().map(|x| x.exp()).collect();
    let s: f32 = e.iter().sum();
    for (found, e) in out[0].to_vec::<f32>().unwrap().iter().zip(&e) {
        assert!((found - (e * s + e)).abs() < 1e-4);
    }
}

#[test]
fn constants_are_folded() {
    let mut b = GraphBuilder::new("g");
    let x = b.input("x", TensorType::new(DType::F32, [2, 2])).unwrap();
    let c = b.constant(f32s(&[2, 2], &[1., 2., 3., 4.]));
    let c = b.transpose(c, &[1, 0]).unwrap();
    let c = b.mul_scalar(c, 2.0).unwrap();
    let y = b.add(x, c).unwrap();
    b.output("y", y).unwrap();
    b.output("c", c).unwrap();
    let graph = b.finish().unwrap();
    assert_eq!(steps(&graph), ["add"]);
    let out = NdarrayBackend::new()
        .threads(1)
        .run_once(&graph, &[f32s(&[2, 2], &[0.; 4])])
        .unwrap();
    assert_eq!(out[0], f32s(&[2, 2], &[2., 6., 4., 8.]));
    assert_eq!(out[1], out[0]);
}
