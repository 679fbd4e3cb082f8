//! Whole graphs: variables, assignments, errors, fusion, threads.

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
    assert_eq!(s.run(&[x.clone()]).unwrap()[0], x);
    s.set_variable(w, &f32s(&[2, 2], &[0., 1., 1., 0.]))
        .unwrap();
    assert_eq!(
        s.run(&[x.clone()]).unwrap()[0],
        f32s(&[3, 2], &[2., 1., 4., 3., 6., 5.])
    );
    assert_eq!(other.run(&[x.clone()]).unwrap()[0], x);
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
