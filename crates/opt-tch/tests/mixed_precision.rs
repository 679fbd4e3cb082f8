//! Training in bf16, and in f16 with a scaled loss, follows the CPU backend, whose losses are
//! compared with PyTorch's (`opt-train/tests/mixed_precision.rs`).

use opt_core::pass::MixedPrecision;
use opt_core::{Backend, CompileSpec, DType, Graph, Tensor};
use opt_ndarray::NdarrayBackend;
use opt_suite::mixed_precision::{cnn, transformer};
use opt_tch::{Device, TchBackend};
use opt_train::loss_scale::{GROWTH_TRACKER, SCALE};
use opt_train::{AdamW, CrossEntropy, LossScale, Optimizer, Sgd, StepOptions, training_graph};

const BATCH: usize = 16;

fn tch() -> TchBackend {
    TchBackend::new(Device::Cpu).unwrap()
}

fn input(graph: &Graph) -> Tensor {
    let ty = graph.type_of(graph.inputs()[0]);
    match ty.dtype {
        DType::I64 => {
            let ids: Vec<i64> = (0..BATCH as i64 * 6)
                .map(|i| (i * i + 3 * i) % 12)
                .collect();
            Tensor::new([BATCH, 6], ids).unwrap()
        }
        dtype => opt_suite::uniform(dtype, &[BATCH, 1, 8, 8], 1, -1.0, 1.0).unwrap(),
    }
}

/// The losses of 20 steps, and the scale and its tracker after each where there is one.
fn train(backend: &dyn Backend, step: &Graph, x: &Tensor, lr: f32) -> (Vec<f64>, Vec<f64>) {
    let labels: Vec<i64> = (0..BATCH as i64).map(|i| i % 4).collect();
    let inputs = [
        x.clone(),
        Tensor::new([BATCH], labels).unwrap(),
        Tensor::scalar(lr),
    ];
    let spec = CompileSpec::new().bind("batch", BATCH);
    let mut session = backend.compile(step, &spec).unwrap().session().unwrap();
    let (mut losses, mut scales) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        losses.push(session.run(&inputs).unwrap()[0].item().unwrap());
        for name in [SCALE, GROWTH_TRACKER] {
            if let Ok(id) = step.find(name) {
                scales.push(session.variable(id).unwrap().item().unwrap());
            }
        }
    }
    (losses, scales)
}

/// Single roundings go the other way with the order of a sum, and grow from step to step: the
/// tolerance is that of the comparison with PyTorch.
const TOLERANCE: f64 = 5e-3;

fn compare(pass: MixedPrecision, options: &StepOptions) {
    let optimizers: [(&dyn Optimizer, f32); 2] =
        [(&Sgd::momentum(0.9), 0.05), (&AdamW::default(), 0.003)];
    for model in [cnn().unwrap(), transformer().unwrap()] {
        let x = input(&model);
        let (mixed, _) = pass.convert(model.clone()).unwrap();
        for (optimizer, lr) in optimizers {
            let step = training_graph(&mixed, &CrossEntropy, optimizer, options).unwrap();
            let (found, scales) = train(&tch(), &step, &x, lr);
            let (expected, expected_scales) = train(&NdarrayBackend::new(), &step, &x, lr);
            assert_eq!(scales, expected_scales, "{}", model.name());
            for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (a - b).abs() <= TOLERANCE * b.abs().max(0.1),
                    "{} with {optimizer:?}, loss {i}: {a} against {b}",
                    model.name()
                );
            }
            assert!(found[19] < found[0], "{found:?}");
        }
    }
}

#[test]
fn losses_in_bf16_follow_the_cpu_backend() {
    compare(MixedPrecision::bf16(), &StepOptions::default());
}

#[test]
fn losses_in_f16_with_a_scale_that_overflows_at_first_follow_it_too() {
    let mut options = StepOptions::default();
    options.loss_scale = Some(LossScale {
        initial: 2f64.powi(30),
        growth_interval: 4,
        ..LossScale::default()
    });
    compare(MixedPrecision::f16(), &options);
    // Leaving a step out is part of the fused kernel.
    let (mixed, _) = MixedPrecision::f16().convert(cnn().unwrap()).unwrap();
    let optimizers: [(&dyn Optimizer, &str); 3] = [
        (&Sgd::momentum(0.9), "_fused_sgd_"),
        (&Sgd::nesterov(0.9), "_fused_sgd_"),
        (&AdamW::default(), "_fused_adamw_"),
    ];
    for (optimizer, kernel) in optimizers {
        let step = training_graph(&mixed, &CrossEntropy, optimizer, &options).unwrap();
        let spec = CompileSpec::new().bind("batch", BATCH);
        let steps = tch().compile(&step, &spec).unwrap().steps();
        assert!(steps.iter().any(|s| s.kernel == kernel), "{kernel}");
    }
}

#[test]
fn steps_in_bf16_run_fused_kernels_in_bf16() {
    let (mixed, _) = MixedPrecision::bf16().convert(cnn().unwrap()).unwrap();
    let options = StepOptions::default();
    let step = training_graph(&mixed, &CrossEntropy, &AdamW::default(), &options).unwrap();
    let spec = CompileSpec::new().bind("batch", BATCH);
    let steps = tch().compile(&step, &spec).unwrap().steps();
    let count = |kernel: &str| steps.iter().filter(|s| s.kernel == kernel).count();
    for (kernel, times) in [
        ("convolution_backward", 3),
        ("batch_norm_backward", 2),
        ("threshold_backward", 3),
        ("max_pool_backward", 1),
        ("_fused_adamw_", 1),
    ] {
        assert_eq!(count(kernel), times, "{kernel}: {steps:#?}");
    }
}
