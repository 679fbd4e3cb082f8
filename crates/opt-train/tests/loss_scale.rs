//! Loss scaling against `torch.amp.GradScaler` (`xtask/oracle/grad_scaler.py`).

use opt_core::{
    Backend, CompileSpec, DType, Fact, Graph, GraphBuilder, Session, Tensor, TensorType,
};
use opt_ndarray::NdarrayBackend;
use opt_train::loss_scale::{GROWTH_TRACKER, SCALE};
use opt_train::optimizer::STEP;
use opt_train::{
    Adam, AdamW, Clip, LossScale, Mse, Optimizer, Sgd, StepOptions, Supervised, training_graph,
};
use serde_json::Value;

fn golden(text: &str) -> Value {
    serde_json::from_str(text).expect("golden JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn optimizer(name: &str) -> (Box<dyn Optimizer>, f32) {
    let weight_decay = 0.1;
    if name.starts_with("momentum") {
        return (Box::new(Sgd::momentum(0.9)), 0.05);
    }
    let adamw = AdamW {
        weight_decay,
        ..AdamW::default()
    };
    (Box::new(adamw), 0.02)
}

fn open(graph: &Graph) -> Box<dyn Session> {
    let backend = NdarrayBackend::new().threads(1);
    let exe = backend.compile(graph, &CompileSpec::new()).unwrap();
    exe.session().unwrap()
}

/// Least squares on `x` `[6, 4]` by `w` `[2, 4]`, as the script has it.
fn least_squares(w: Tensor) -> Graph {
    let mut b = GraphBuilder::new("linear");
    let x = b.input("x", TensorType::new(DType::F32, [6, 4])).unwrap();
    let w = b.variable("w", w).unwrap();
    let y = b.matmul_t(x, w, false, true).unwrap();
    b.output("y", y).unwrap();
    b.finish().unwrap()
}

#[test]
fn loss_scales_equal_grad_scalers() {
    let golden = golden(include_str!("golden/grad_scaler.json"));
    let tensor = |field: &str, shape: [usize; 2]| {
        Tensor::from_f64s(DType::F32, shape, &numbers(&golden[field])).unwrap()
    };
    let (x, y, w) = (
        tensor("x", [6, 4]),
        tensor("y", [6, 2]),
        tensor("w", [2, 4]),
    );
    let huge: Vec<f64> = x.to_f64s().iter().map(|v| v * 2f64.powi(62)).collect();
    let huge = Tensor::from_f64s(DType::F32, [6, 4], &huge).unwrap();
    let base = LossScale::default();
    let settings = [
        (
            "momentum",
            LossScale {
                initial: 1024.0,
                growth_interval: 3,
                ..base
            },
            None,
        ),
        (
            "adamw",
            LossScale {
                initial: 1024.0,
                growth_interval: 4,
                growth_factor: 3.0,
                ..base
            },
            None,
        ),
        (
            "momentum_clip",
            LossScale {
                initial: 512.0,
                growth_interval: 2,
                backoff_factor: 0.25,
                ..base
            },
            Some(Clip::Norm(0.3)),
        ),
        ("adamw_defaults", base, None),
        (
            "momentum_huge",
            LossScale {
                initial: 2f64.powi(125),
                growth_interval: 1,
                ..base
            },
            None,
        ),
    ];
    assert_eq!(
        golden["settings"].as_object().unwrap().len(),
        settings.len()
    );
    for (name, loss_scale, clip) in settings {
        let expected = &golden["settings"][name];
        let overflows: Vec<f64> = numbers(&expected["overflows"]);
        let mut options = StepOptions::default();
        options.clip = clip;
        options.loss_scale = Some(loss_scale);
        let (optimizer, lr) = optimizer(name);
        let model = least_squares(w.clone());
        let step = training_graph(&model, &Supervised(Mse), optimizer.as_ref(), &options).unwrap();
        let id = |n: &str| step.find(n).unwrap();
        let mut session = open(&step);
        let mut taken = 0;
        for (i, expected) in expected["steps"].as_array().unwrap().iter().enumerate() {
            let over = overflows.contains(&(i as f64));
            let x = if over { huge.clone() } else { x.clone() };
            let before: Vec<Tensor> = step
                .variables()
                .filter(|(_, v, _)| !v.name().starts_with("loss_scale"))
                .map(|(id, _, _)| session.variable(id).unwrap())
                .collect();
            let inputs = [x, y.clone(), Tensor::scalar(lr)];
            let loss = session.run(&inputs).unwrap()[0].item().unwrap();
            let after: Vec<Tensor> = step
                .variables()
                .filter(|(_, v, _)| !v.name().starts_with("loss_scale"))
                .map(|(id, _, _)| session.variable(id).unwrap())
                .collect();
            let at = format!("{name}, step {i}");
            if over {
                assert_eq!(before, after, "{at}: nothing changes");
            }
            taken += usize::from(!over);
            let of = |n: &str| session.variable(id(n)).unwrap();
            assert_eq!(
                of(SCALE).item().unwrap(),
                expected["scale"].as_f64().unwrap(),
                "{at}"
            );
            let tracker = expected["tracker"].as_f64().unwrap();
            assert_eq!(of(GROWTH_TRACKER).item().unwrap(), tracker, "{at}");
            let expected_loss = expected["loss"].as_f64().unwrap();
            assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{at}");
            for (f, e) in of("w").to_f64s().iter().zip(numbers(&expected["w"])) {
                assert!((f - e).abs() < 1e-5, "{at}: {f} against {e}");
            }
        }
        if name == "momentum_huge" {
            continue;
        }
        assert_eq!(
            session.variable(id(STEP)).unwrap().item().unwrap(),
            taken as f64
        );
    }
}

#[test]
fn options_out_of_range_are_errors() {
    let base = LossScale::default();
    for (part, loss_scale) in [
        (
            "initial",
            LossScale {
                initial: 0.0,
                ..base
            },
        ),
        (
            "initial",
            LossScale {
                initial: -1.0,
                ..base
            },
        ),
        (
            "initial",
            LossScale {
                initial: 1e39,
                ..base
            },
        ),
        (
            "initial",
            LossScale {
                initial: f64::NAN,
                ..base
            },
        ),
        (
            "growth factor",
            LossScale {
                growth_factor: 1.0,
                ..base
            },
        ),
        (
            "growth factor",
            LossScale {
                growth_factor: f64::INFINITY,
                ..base
            },
        ),
        (
            "back-off",
            LossScale {
                backoff_factor: 1.0,
                ..base
            },
        ),
        (
            "back-off",
            LossScale {
                backoff_factor: 0.0,
                ..base
            },
        ),
        (
            "interval",
            LossScale {
                growth_interval: 0,
                ..base
            },
        ),
    ] {
        let mut options = StepOptions::default();
        options.loss_scale = Some(loss_scale);
        let model = least_squares(Tensor::zeros(DType::F32, [2, 4]).unwrap());
        let error =
            training_graph(&model, &Supervised(Mse), &Adam::default(), &options).unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[test]
fn masks_hold_where_steps_are_left_out() {
    let w = Tensor::new([2, 4], [0.0f32, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0]).unwrap();
    let keep = w.to_f64s().iter().map(|v| *v != 0.0).collect::<Vec<_>>();
    let mut model = least_squares(w);
    let id = model.find("w").unwrap();
    let mask = Tensor::from_bools([2, 4], keep.clone()).unwrap();
    model.facts_mut().insert(id, Fact::Mask(mask));
    let mut options = StepOptions::default();
    options.loss_scale = Some(LossScale::default());
    let step = training_graph(&model, &Supervised(Mse), &Sgd::momentum(0.9), &options).unwrap();
    let mut session = open(&step);
    let y = Tensor::full(DType::F32, [6, 2], 1.0).unwrap();
    for scale in [1.0, 1e19, 1.0] {
        let before = session.variable(id).unwrap();
        let x = Tensor::full(DType::F32, [6, 4], scale).unwrap();
        session
            .run(&[x, y.clone(), Tensor::scalar(0.05f32)])
            .unwrap();
        let after = session.variable(id).unwrap();
        assert_eq!(before == after, scale > 1.0);
        for (v, keep) in after.to_f64s().iter().zip(&keep) {
            assert_eq!(*v != 0.0, *keep);
        }
    }
}
