//! Optimizers against PyTorch's, over 50 steps (`xtask/oracle/optimizers.py`).

use opt_core::Backend;
use opt_core::{CompileSpec, DType, GraphBuilder, Tensor, TensorType};
use opt_ndarray::NdarrayBackend;
use opt_train::{
    Adadelta, Adagrad, Adam, AdamW, Adamax, GradientDescent, Lion, Mse, NAdam, Optimizer, RAdam,
    RmsProp, Sgd, StepOptions, Supervised, training_graph,
};
use serde_json::Value;

/// The optimizer and learning rate of a setting of the script.
fn setting(name: &str) -> (Box<dyn Optimizer>, f32) {
    match name {
        "gradient_descent" => (Box::new(GradientDescent), 0.05),
        "sgd_decay" => {
            let sgd = Sgd {
                weight_decay: 0.1,
                ..Sgd::default()
            };
            (Box::new(sgd), 0.05)
        }
        "momentum" => (Box::new(Sgd::momentum(0.9)), 0.02),
        "momentum_dampening" => {
            let sgd = Sgd {
                dampening: 0.3,
                ..Sgd::momentum(0.8)
            };
            (Box::new(sgd), 0.05)
        }
        "nesterov" => (Box::new(Sgd::nesterov(0.9)), 0.02),
        "rmsprop" => (Box::new(RmsProp::default()), 0.01),
        "rmsprop_centered" => {
            let rms = RmsProp {
                alpha: 0.9,
                centered: true,
                momentum: 0.5,
                weight_decay: 0.01,
                ..RmsProp::default()
            };
            (Box::new(rms), 0.01)
        }
        "adagrad" => (Box::new(Adagrad::default()), 0.1),
        "adagrad_decay" => {
            let adagrad = Adagrad {
                lr_decay: 0.05,
                initial_accumulator: 0.1,
                ..Adagrad::default()
            };
            (Box::new(adagrad), 0.1)
        }
        "adam" => (Box::new(Adam::default()), 0.02),
        "adam_decay" => {
            let adam = Adam {
                beta1: 0.8,
                beta2: 0.95,
                weight_decay: 0.1,
                ..Adam::default()
            };
            (Box::new(adam), 0.02)
        }
        "adamw" => {
            let adamw = AdamW {
                weight_decay: 0.1,
                ..AdamW::default()
            };
            (Box::new(adamw), 0.02)
        }
        "adadelta" => (Box::new(Adadelta::default()), 1.0),
        "adadelta_decay" => {
            let adadelta = Adadelta {
                rho: 0.8,
                eps: 1e-4,
                weight_decay: 0.1,
            };
            (Box::new(adadelta), 2.0)
        }
        "amsgrad" => {
            let adam = Adam {
                beta1: 0.8,
                beta2: 0.9,
                amsgrad: true,
                ..Adam::default()
            };
            (Box::new(adam), 0.05)
        }
        "amsgrad_decoupled" => {
            let adam = Adam {
                amsgrad: true,
                ..Adam::default()
            };
            let weight_decay = 0.1;
            (Box::new(AdamW { adam, weight_decay }), 0.05)
        }
        "adamax" => (Box::new(Adamax::default()), 0.02),
        "adamax_decay" => {
            let adamax = Adamax {
                beta1: 0.8,
                beta2: 0.95,
                weight_decay: 0.1,
                ..Adamax::default()
            };
            (Box::new(adamax), 0.02)
        }
        "nadam" => (Box::new(NAdam::default()), 0.01),
        "nadam_decay" => {
            let nadam = NAdam {
                beta1: 0.8,
                beta2: 0.95,
                weight_decay: 0.1,
                momentum_decay: 0.02,
                ..NAdam::default()
            };
            (Box::new(nadam), 0.02)
        }
        "radam" => (Box::new(RAdam::default()), 0.02),
        "radam_decay" => {
            let radam = RAdam {
                beta1: 0.8,
                beta2: 0.95,
                weight_decay: 0.1,
                ..RAdam::default()
            };
            (Box::new(radam), 0.02)
        }
        "lion" => (Box::new(Lion::default()), 0.005),
        "lion_decay" => {
            let lion = Lion {
                beta1: 0.8,
                beta2: 0.9,
                weight_decay: 0.5,
            };
            (Box::new(lion), 0.005)
        }
        other => panic!("the script has a setting `{other}` that the test does not know"),
    }
}

fn numbers(value: &Value) -> Vec<f32> {
    let list = value.as_array().expect("a list");
    list.iter()
        .map(|v| v.as_f64().expect("a number") as f32)
        .collect()
}

#[test]
fn trajectories_equal_pytorchs() {
    let golden: Value =
        serde_json::from_str(include_str!("golden/optimizers.json")).expect("golden JSON");
    let x = Tensor::new([12, 5], numbers(&golden["x"])).unwrap();
    let y = Tensor::new([12, 3], numbers(&golden["y"])).unwrap();
    let settings = golden["settings"].as_object().expect("settings");
    assert_eq!(settings.len(), 24);
    for (name, expected) in settings {
        let (optimizer, lr) = setting(name);
        let mut b = GraphBuilder::new("linear");
        let input = b.input("x", TensorType::new(DType::F32, [12, 5])).unwrap();
        let start = Tensor::new([3, 5], numbers(&golden["w"])).unwrap();
        let w = b.variable("w", start).unwrap();
        let out = b.matmul_t(input, w, false, true).unwrap();
        b.output("y", out).unwrap();
        let step = training_graph(
            &b.finish().unwrap(),
            &Supervised(Mse),
            optimizer.as_ref(),
            &StepOptions::default(),
        )
        .unwrap();
        let backend = NdarrayBackend::new().threads(1);
        let mut session = backend
            .compile(&step, &CompileSpec::new())
            .unwrap()
            .session()
            .unwrap();
        for (i, loss) in numbers(&expected["losses"]).into_iter().enumerate() {
            let inputs = [x.clone(), y.clone(), Tensor::scalar(lr)];
            let found = session.run(&inputs).unwrap()[0].item().unwrap() as f32;
            let error = (found - loss).abs() / loss.abs();
            assert!(
                error < 1e-5,
                "{name}, step {i}: loss {found} against {loss}"
            );
        }
        let found = session.variable(w).unwrap().to_vec::<f32>().unwrap();
        let expected = numbers(&expected["w"]);
        let norm = expected.iter().map(|v| v * v).sum::<f32>().sqrt();
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() < 1e-5 * norm,
                "{name}: {found} against {expected}"
            );
        }
    }
}

#[test]
fn hyper_parameters_out_of_range_are_errors() {
    let sgd = Sgd::default();
    let cases: Vec<(&str, Box<dyn Optimizer>)> = vec![
        ("Nesterov", Box::new(Sgd::nesterov(0.0))),
        ("Nesterov", {
            let dampening = 0.1;
            Box::new(Sgd {
                dampening,
                ..Sgd::nesterov(0.9)
            })
        }),
        ("dampening", {
            let dampening = f64::NAN;
            Box::new(Sgd { dampening, ..sgd })
        }),
        ("momentum", Box::new(Sgd::momentum(1.0))),
        ("weight decay", {
            let weight_decay = -1.0;
            Box::new(Adam {
                weight_decay,
                ..Adam::default()
            })
        }),
        ("beta2", {
            let beta2 = 1.0;
            Box::new(Adam {
                beta2,
                ..Adam::default()
            })
        }),
        ("weight decay", {
            let weight_decay = f64::INFINITY;
            Box::new(RmsProp {
                weight_decay,
                ..RmsProp::default()
            })
        }),
        ("initial accumulator", {
            let initial_accumulator = -0.5;
            Box::new(Adagrad {
                initial_accumulator,
                ..Adagrad::default()
            })
        }),
    ];
    for (name, optimizer) in cases {
        let mut b = GraphBuilder::new("linear");
        let x = b.input("x", TensorType::new(DType::F32, [2, 2])).unwrap();
        let w = b
            .variable("w", Tensor::zeros(DType::F32, [2, 2]).unwrap())
            .unwrap();
        let y = b.matmul(x, w).unwrap();
        b.output("y", y).unwrap();
        let error = training_graph(
            &b.finish().unwrap(),
            &Supervised(Mse),
            optimizer.as_ref(),
            &StepOptions::default(),
        )
        .unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
}
