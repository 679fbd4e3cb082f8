//! What is private: the generator in operators, places of values, errors.

use opt_core::random::Philox;
use opt_core::{Backend, CompileSpec, DType, ErrorKind, GraphBuilder, Shape, Tensor, TensorType};

use crate::{Device, TchBackend};

fn backend() -> TchBackend {
    TchBackend::new(Device::Cpu).unwrap()
}

#[test]
fn the_generator_in_operators_gives_the_same_words() {
    for (seed, step, len) in [
        (0, 0, 5),
        (7, 3, 64),
        (u64::MAX, i64::MAX, 9),
        (1 << 40, 1 << 33, 1),
    ] {
        let found = crate::kernels::random::words_on(seed, step, len).unwrap();
        let stream = Philox::new(seed);
        let expected =
            (0..len as u64).map(|i| f64::from(stream.block(step as u64, i / 4)[(i % 4) as usize]));
        assert!(found.into_iter().eq(expected), "{seed} {step}");
    }
}

#[test]
fn a_variable_is_read_before_it_is_written() {
    let mut b = GraphBuilder::new("swap");
    let x = b
        .variable("x", Tensor::new([2], [1f32, 2.]).unwrap())
        .unwrap();
    let y = b
        .variable("y", Tensor::new([2], [3f32, 4.]).unwrap())
        .unwrap();
    b.assign(x, y).unwrap();
    b.assign(y, x).unwrap();
    let (was, shape) = (b.reshape(x, [1, 2]).unwrap(), Shape::from([2, 1]));
    let other = b.reshape(y, shape).unwrap();
    b.output("x", was).unwrap();
    b.output("y", other).unwrap();
    let graph = b.finish().unwrap();
    let executable = backend().compile(&graph, &CompileSpec::new()).unwrap();
    let mut session = executable.session().unwrap();
    for (first, second) in [([1., 2.], [3., 4.]), ([3., 4.], [1., 2.])] {
        let out = session.run(&[]).unwrap();
        assert_eq!(out[0].to_vec::<f32>().unwrap(), first);
        assert_eq!(out[1].to_vec::<f32>().unwrap(), second);
    }
    assert_eq!(
        session.variable(x).unwrap().to_vec::<f32>().unwrap(),
        [1., 2.]
    );
    // Another session starts from the graph's content.
    let fresh = executable.session().unwrap();
    assert_eq!(
        fresh.variable(y).unwrap().to_vec::<f32>().unwrap(),
        [3., 4.]
    );
}

/// A gradient step on `sum(w x)`, whose fused kernel writes in place, with an average of the
/// weight beside it and the weight as an output.
#[test]
fn steps_in_place_change_nothing_that_is_read() {
    let mut b = GraphBuilder::new("step");
    let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
    let lr = b
        .input("lr", TensorType::new(DType::F32, Shape::default()))
        .unwrap();
    let w = b
        .variable("w", Tensor::new([2], [1f32, 1.]).unwrap())
        .unwrap();
    let last = b
        .variable("last", Tensor::new([2], [0f32, 0.]).unwrap())
        .unwrap();
    let step = b.mul(x, lr).unwrap();
    let new = b.sub(w, step).unwrap();
    b.assign(w, new).unwrap();
    b.assign(last, w).unwrap();
    b.output("w", w).unwrap();
    let graph = b.finish().unwrap();
    let executable = backend().compile(&graph, &CompileSpec::new()).unwrap();
    assert!(executable.steps().iter().any(|s| s.kernel == "_fused_sgd_"));
    let mut session = executable.session().unwrap();
    let inputs = [
        Tensor::new([2], [1f32, 2.]).unwrap(),
        Tensor::scalar(0.5f32),
    ];
    let out = session.run(&inputs).unwrap();
    assert_eq!(out[0].to_vec::<f32>().unwrap(), [1., 1.]);
    assert_eq!(
        session.variable(w).unwrap().to_vec::<f32>().unwrap(),
        [0.5, 0.]
    );
    assert_eq!(
        session.variable(last).unwrap().to_vec::<f32>().unwrap(),
        [1., 1.]
    );
    session.run(&inputs).unwrap();
    assert_eq!(
        session.variable(last).unwrap().to_vec::<f32>().unwrap(),
        [0.5, 0.]
    );
}

#[test]
fn profiles_are_refused_by_name() {
    let mut b = GraphBuilder::new("same");
    let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
    b.output("y", x).unwrap();
    let executable = backend()
        .compile(&b.finish().unwrap(), &CompileSpec::new())
        .unwrap();
    let x = Tensor::new([2], [1f32, 2.]).unwrap();
    let options = opt_core::ProfileOptions::new();
    let error = executable.profile(&[x], &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("`tch`"), "{error}");
}

#[test]
fn a_failed_run_leaves_the_variables() {
    let mut b = GraphBuilder::new("fails");
    let i = b.input("i", TensorType::new(DType::I64, [1])).unwrap();
    let table = b
        .variable("table", Tensor::new([2, 1], [1f32, 2.]).unwrap())
        .unwrap();
    let twice = b.mul_scalar(table, 2.0).unwrap();
    b.assign(table, twice).unwrap();
    let row = b.embedding(table, i).unwrap();
    b.output("row", row).unwrap();
    let graph = b.finish().unwrap();
    let mut session = backend()
        .compile(&graph, &CompileSpec::new())
        .unwrap()
        .session()
        .unwrap();
    let error = session
        .run(&[Tensor::new([1], [5i64]).unwrap()])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert_eq!(
        session.variable(table).unwrap().to_vec::<f32>().unwrap(),
        [1., 2.]
    );
    session.run(&[Tensor::new([1], [1i64]).unwrap()]).unwrap();
    assert_eq!(
        session.variable(table).unwrap().to_vec::<f32>().unwrap(),
        [2., 4.]
    );
}

#[test]
fn running_out_of_memory_is_an_error_that_says_how_much() {
    let mut b = GraphBuilder::new("huge");
    let x = b
        .input("x", TensorType::new(DType::F32, [1 << 22, 1]))
        .unwrap();
    let y = b
        .input("y", TensorType::new(DType::F32, [1, 1 << 22]))
        .unwrap();
    let z = b.add(x, y).unwrap();
    let s = b.sum_all(z).unwrap();
    b.output("s", s).unwrap();
    let graph = b.finish().unwrap();
    let x = Tensor::zeros(DType::F32, [1 << 22, 1]).unwrap();
    let y = Tensor::zeros(DType::F32, [1, 1 << 22]).unwrap();
    // 64 TiB.
    let error = backend().run_once(&graph, &[x, y]).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Backend, "{text}");
    // The allocator's own header adds 64 bytes.
    assert!(text.contains("70368744177728"), "{text}");
    if cfg!(target_os = "linux") {
        assert!(text.contains("bytes of memory are free"), "{text}");
    }
    // The process lives on.
    let one = Tensor::scalar(1f32);
    let mut b = GraphBuilder::new("small");
    let x = b
        .input("x", TensorType::new(DType::F32, Shape::default()))
        .unwrap();
    let y = b.neg(x).unwrap();
    b.output("y", y).unwrap();
    let out = backend().run_once(&b.finish().unwrap(), &[one]).unwrap();
    assert_eq!(out[0].item().unwrap(), -1.0);
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let error = TchBackend::new(Device::Cuda(200)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Backend);
    let text = error.to_string();
    assert!(
        text.contains("cuda:200") && text.contains("doctor"),
        "{text}"
    );
}

#[test]
fn executables_are_shared_between_threads() {
    let mut b = GraphBuilder::new("shared");
    let x = b.input("x", TensorType::new(DType::F32, [64, 64])).unwrap();
    let w = b.constant(Tensor::full(DType::F32, [64, 64], 0.5).unwrap());
    let y = b.matmul(x, w).unwrap();
    b.output("y", y).unwrap();
    let executable = backend()
        .compile(&b.finish().unwrap(), &CompileSpec::new())
        .unwrap();
    std::thread::scope(|scope| {
        for i in 0..4 {
            let executable = executable.clone();
            scope.spawn(move || {
                let mut session = executable.session().unwrap();
                let x = Tensor::full(DType::F32, [64, 64], f64::from(i)).unwrap();
                for _ in 0..20 {
                    let y = session.run(std::slice::from_ref(&x)).unwrap();
                    assert_eq!(y[0].to_f64s()[5], 32.0 * f64::from(i));
                }
            });
        }
    });
}

/// Each dtype, the packed ones with an odd number of elements.
#[test]
fn outputs_are_written_where_the_last_run_left_them() {
    let tensor = |dtype, data: &[f64]| match dtype {
        DType::I4 | DType::U4 | DType::I2 | DType::U2 => {
            let data: Vec<i8> = data.iter().map(|&v| v as i8).collect();
            Tensor::pack(dtype, [3], &data).unwrap()
        }
        _ => Tensor::from_f64s(dtype, [3], data).unwrap(),
    };
    let mut b = GraphBuilder::new("outputs");
    for (i, dtype) in DType::ALL.into_iter().enumerate() {
        let x = b
            .input(&format!("x{i}"), TensorType::new(dtype, [3]))
            .unwrap();
        let y = b.op(opt_core::ops::Identity, &[x]).unwrap();
        b.output(&format!("y{i}"), y).unwrap();
    }
    let mut session = backend()
        .compile(&b.finish().unwrap(), &CompileSpec::new())
        .unwrap()
        .session()
        .unwrap();
    let mut outputs = Vec::new();
    let places = |outputs: &[Tensor]| -> Vec<*const u8> {
        let owned = outputs.iter().filter(|y| !y.dtype().is_storage());
        owned.map(|y| y.bytes().unwrap().as_ptr()).collect()
    };
    let mut last = None;
    for data in [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]] {
        let inputs = DType::ALL.map(|d| tensor(d, &data));
        session.run_into(&inputs, &mut outputs).unwrap();
        assert_eq!(outputs, inputs);
        let now = places(&outputs);
        assert_eq!(*last.get_or_insert(now.clone()), now);
    }
}

/// A mask of every rank, boolean or to add, on a layer that is causal too.
#[test]
fn masks_and_the_triangle_go_together() {
    for lead in [&[][..], &[2], &[2, 3], &[2, 2, 3]] {
        let operand = |len: usize, seed| {
            let shape = [lead, &[len, 4]].concat();
            opt_suite::uniform(DType::F32, &shape, seed, -1.0, 1.0).unwrap()
        };
        let operands = [operand(3, 1), operand(5, 2), operand(5, 3)];
        let whole = [lead, &[3, 5]].concat();
        for mask in (0..=whole.len()).map(|cut| &whole[cut..]) {
            let added = opt_suite::uniform(DType::F32, mask, 4, -1.0, 1.0).unwrap();
            let seen: Vec<bool> = added.to_f64s().iter().map(|&v| v > -0.3).collect();
            for mask in [added, Tensor::from_bools(mask, seen).unwrap()] {
                let mut b = GraphBuilder::new("attention");
                let mut inputs = operands.to_vec();
                inputs.push(mask);
                let ids: Vec<_> = inputs
                    .iter()
                    .enumerate()
                    .map(|(i, x)| {
                        let ty = TensorType::new(x.dtype(), x.shape());
                        b.input(&format!("x{i}"), ty).unwrap()
                    })
                    .collect();
                let y = b
                    .attention(ids[0], ids[1], ids[2], Some(ids[3]), true)
                    .unwrap();
                b.output("y", y).unwrap();
                let graph = b.finish().unwrap();
                let found = backend().run_once(&graph, &inputs).unwrap();
                let expected = opt_ndarray::NdarrayBackend::default()
                    .run_once(&graph, &inputs)
                    .unwrap();
                opt_suite::close(&found[0], &expected[0], 1e-5).unwrap();
            }
        }
    }
}

/// RMSprop, clipping and weight decay of parameters of several shapes, with multi-tensor calls and
/// without.
#[test]
fn lists_of_tensors_compute_what_each_would() {
    use opt_core::nn::{Linear, ModelBuilder};
    use opt_train::{Clip, CrossEntropy, RmsProp, StepOptions, training_graph};

    let mut m = ModelBuilder::new("mlp", 1).with_dtype(DType::F64);
    let x = m.batch("x", [6]).unwrap();
    let x = m.layer("a", Linear::new(5), x).unwrap();
    let x = m.relu(x).unwrap();
    let y = m.layer("b", Linear::new(3), x).unwrap();
    m.output("y", y).unwrap();
    let mut options = StepOptions::default();
    options.clip = Some(Clip::Norm(0.1));
    let rms = RmsProp {
        weight_decay: 0.01,
        ..RmsProp::default()
    };
    let step = training_graph(&m.finish().unwrap(), &CrossEntropy, &rms, &options).unwrap();
    let spec = CompileSpec::new().bind("batch", 4);
    let run = |foreach: bool| {
        let mut backend = backend();
        backend.options.foreach = foreach;
        let executable = backend.compile(&step, &spec).unwrap();
        let lists = executable
            .steps()
            .iter()
            .filter(|s| s.kernel.starts_with("_foreach"))
            .count();
        let mut session = executable.session().unwrap();
        let x = opt_suite::uniform(DType::F64, &[4, 6], 3, -1.0, 1.0).unwrap();
        let labels = Tensor::new([4], [0i64, 1, 2, 0]).unwrap();
        let inputs = [x, labels, Tensor::scalar(0.01f32)];
        for _ in 0..3 {
            session.run(&inputs).unwrap();
        }
        let ids = step.variables().map(|(id, ..)| id);
        let all: Vec<Tensor> = ids.map(|id| session.variable(id).unwrap()).collect();
        (lists, all)
    };
    let ((lists, with), (none, without)) = (run(true), run(false));
    assert!(lists >= 8 && none == 0, "{lists} {none}");
    for (a, b) in with.iter().zip(&without) {
        opt_suite::close(a, b, 1e-12).unwrap();
    }
}

/// What a GPU's runs do with indices, on tensors of the processor.
#[test]
fn indices_out_of_range_are_clamped_and_reported() {
    use crate::convert::{from_host, to_host};
    use crate::kernels::RunCx;

    for (indices, fault) in [([0i64, 2, 1], false), ([0, 3, 1], true), ([-1, 0, 2], true)] {
        let cx = RunCx::new(Device::Cuda(0));
        let given = from_host(&Tensor::new([3], indices).unwrap(), Device::Cpu).unwrap();
        let safe = cx.guard(given, 3, "a table").unwrap();
        let safe = to_host(&safe, DType::I64).unwrap().to_f64s();
        let clamped = indices.map(|i| i.clamp(0, 2) as f64);
        assert_eq!(safe, clamped);
        let checked = cx.check();
        assert_eq!(checked.is_err(), fault, "{indices:?}");
        if let Err(error) = checked {
            assert_eq!(error.kind(), ErrorKind::Data);
            assert!(error.to_string().contains("a table"), "{error}");
        }
        // A fault is told once.
        cx.check().unwrap();
    }
}
