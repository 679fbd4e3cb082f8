//! Distillation losses and their gradients against formulas in PyTorch
//! (`xtask/oracle/distillation.py`), as terms of an objective between two graphs.

use opt_core::autodiff::grad;
use opt_core::{Backend, DType, Graph, GraphBuilder, Result, Tensor, TensorType, ValueId};
use opt_distill::{
    AttentionTransfer, Average, Dist, Distillation, Dkd, Hint, LayerPair, Mutual, Pad, Rkd,
    SelfDistillation, SoftTargets, SoftmaxRegression,
};
use opt_ndarray::NdarrayBackend;
use opt_train::{ModelIo, Objective};
use serde_json::Value;

fn tensor(value: &Value, dtype: DType) -> Tensor {
    let list = |v: &Value| v.as_array().expect("a list").clone();
    let shape: Vec<usize> = list(&value["shape"])
        .iter()
        .map(|d| d.as_u64().expect("a size") as usize)
        .collect();
    let data: Vec<f64> = list(&value["data"])
        .iter()
        .map(|d| d.as_f64().expect("a number"))
        .collect();
    Tensor::from_f64s(dtype, shape, &data).expect("as many entries as the shape has")
}

/// The inputs of both graphs: what stands for the student's layer and for the teacher's.
fn inputs(b: &mut GraphBuilder, s: &Tensor, t: &Tensor) -> [ValueId; 2] {
    [("s", s), ("t", t)].map(|(name, tensor)| {
        let ty = TensorType::new(tensor.dtype(), tensor.shape());
        b.input(name, ty).unwrap()
    })
}

/// A graph whose layer `layer` is an input as it is, and whose output `head` makes of it.
fn network(
    s: &Tensor,
    t: &Tensor,
    which: usize,
    head: impl Fn(&mut GraphBuilder, ValueId) -> Result<ValueId>,
) -> Graph {
    let mut b = GraphBuilder::new("network");
    let x = inputs(&mut b, s, t)[which];
    let layer = b.scope("layer", |b| b.add_scalar(x, 0.0)).unwrap();
    let y = head(&mut b, layer).unwrap();
    b.output("logits", y).unwrap();
    b.finish().unwrap()
}

/// The loss and its gradients by the student's layer and by the parameters that it adds. The
/// student's outputs are equal parts of its layer.
fn run(
    objective: &dyn Objective,
    s: &Tensor,
    t: &Tensor,
    labels: Option<&Tensor>,
    parameters: &[(String, Tensor)],
    outputs: usize,
) -> Result<Vec<Tensor>> {
    let student = network(s, t, 0, |_, layer| Ok(layer));
    let layer = student.outputs().next().expect("it has one");
    let mut b = GraphBuilder::extend(student);
    if outputs > 1 {
        b.clear_outputs();
        let width = s.shape()[1] / outputs;
        for (i, part) in b
            .split(layer, 1, &vec![width; outputs])?
            .into_iter()
            .enumerate()
        {
            b.output(&format!("part{i}"), part)?;
        }
    }
    let io = ModelIo {
        inputs: b.graph().inputs().to_vec(),
        outputs: b.graph().outputs().collect(),
    };
    b.clear_outputs();
    let mut given = vec![s.clone(), t.clone()];
    let mut targets = Vec::new();
    for ty in objective.targets(&b, &io)? {
        targets.push(b.input("labels", ty)?);
        given.extend(labels.cloned());
    }
    let loss = objective.build(&mut b, &io, &targets)?;
    let mut by = vec![io.inputs[0]];
    for (name, content) in parameters {
        let id = b.graph().find(name)?;
        b.graph_mut().set_variable(id, content.clone())?;
        by.push(id);
    }
    assert_eq!(b.graph().variables().count(), parameters.len());
    let gradients = grad(&mut b, loss, &by)?;
    b.output("loss", loss)?;
    for (i, &v) in by.iter().enumerate() {
        b.output(&format!("gradient{i}"), gradients.of(v)?)?;
    }
    NdarrayBackend::new().run_once(&b.finish()?, &given)
}

fn close(found: f64, expected: f64, tolerance: f64, scale: f64, what: &str) {
    assert!(
        (found - expected).abs() <= tolerance * scale.max(1e-3),
        "{what}: {found} against {expected}"
    );
}

#[test]
fn losses_and_gradients_equal_the_formulas() {
    let golden: Value =
        serde_json::from_str(include_str!("golden/distillation.json")).expect("golden JSON");
    let cases = golden.as_array().expect("a list of cases");
    assert_eq!(cases.len(), 55);
    // 32 bits lose digits in differences: up to a hundredfold of the rounding.
    for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 2e-5)] {
        for (i, case) in cases.iter().enumerate() {
            check(case, i, dtype, tolerance);
        }
    }
}

fn check(case: &Value, index: usize, dtype: DType, tolerance: f64) {
    let name = case["loss"].as_str().expect("a name");
    let what = format!("case {index}, {name}, {dtype}");
    let set = |key: &str| case["settings"][key].as_f64().expect("a setting");
    let (s, t) = (
        tensor(&case["student"], dtype),
        tensor(&case["teacher"], dtype),
    );
    let labels = case.get("labels").map(|l| tensor(l, DType::I64));
    let read = |key: &str| -> Vec<(String, Tensor)> {
        let Some(Value::Object(entries)) = case.get(key) else {
            return Vec::new();
        };
        entries
            .iter()
            .map(|(k, v)| (k.clone(), tensor(v, dtype)))
            .collect()
    };
    let mut parameters = read("parameters");
    let mut expected = vec![tensor(&case["gradient"], dtype)];
    let pair = LayerPair::new("layer", "layer");
    let new = match labels {
        Some(_) => Distillation::new(),
        None => Distillation::new().unlabelled(),
    };
    let mut teachers = vec![(1.0, network(&s, &t, 1, |_, layer| Ok(layer)))];
    let mut scope = "variance";
    let distillation = match name {
        "soft_targets" => new.logits(1.0, SoftTargets::only(set("temperature"))),
        "dkd" => new.logits(
            1.0,
            Dkd {
                alpha: set("alpha"),
                beta: set("beta"),
                temperature: set("temperature"),
            },
        ),
        "dist" => new.logits(
            1.0,
            Dist {
                beta: set("beta"),
                gamma: set("gamma"),
                tau: set("tau"),
            },
        ),
        "attention_transfer" => new.features(1.0, AttentionTransfer { p: set("p") }, pair),
        "rkd" => new.features(
            1.0,
            Rkd::distance_and_angle(set("distance"), set("angle")),
            pair,
        ),
        "pad" => new.features(1.0, Pad { eps: set("eps") }, pair),
        "pooled_mse" => new.features(1.0, Hint::mse(), pair.pool()),
        "projected_mse" => {
            scope = "projection";
            if s.rank() == 4 {
                let (_, weight) = &mut parameters[1];
                let [o, i] = [weight.shape()[0], weight.shape()[1]];
                *weight = weight.reshape([o, i, 1, 1]).unwrap();
            }
            new.features(1.0, Hint::mse(), pair.project())
        }
        "regression" => {
            let (_, weight) = parameters.remove(0);
            teachers = vec![(
                1.0,
                network(&s, &t, 1, |b, layer| {
                    let pooled = b.mean(layer, &[2, 3], false)?;
                    let weight = b.variable("weight", weight.clone())?;
                    b.matmul_t(pooled, weight, false, true)
                }),
            )];
            let loss = match set("temperature") {
                0.0 => SoftmaxRegression::mse(),
                temperature => SoftmaxRegression::kl_div(temperature),
            };
            new.features(1.0, loss, pair)
        }
        "averaged" => {
            let classes = s.shape()[1];
            let part = |k| {
                network(&s, &t, 1, |b, x| {
                    b.slice(x, 1, k * classes, (k + 1) * classes)
                })
            };
            teachers = vec![(1.0, part(0)), (2.0, part(1)), (5.0, part(2))];
            let average = match case["settings"]["average"].as_str() {
                Some("logits") => Average::Logits,
                _ => Average::Probabilities,
            };
            new.logits(1.0, SoftTargets::only(set("temperature")))
                .average(average)
        }
        // Objectives of their own.
        "mutual" | "self_distillation" => new,
        other => panic!("the script has a loss `{other}` that the test does not know"),
    };
    if !parameters.is_empty() {
        expected.extend(read("parameter_gradients").into_iter().map(|(_, t)| t));
    }
    for (name, _) in &mut parameters {
        *name = format!("distil.features0.0.{scope}.{name}");
    }
    let from_teachers = distillation.from_teachers(teachers);
    let (objective, outputs): (&dyn Objective, usize) = match name {
        "mutual" => (
            &Mutual {
                temperature: set("temperature"),
                weight: set("weight"),
            },
            3,
        ),
        "self_distillation" => (
            &SelfDistillation {
                exits: SoftTargets {
                    temperature: set("temperature"),
                    alpha: set("alpha"),
                },
            },
            3,
        ),
        _ => (&from_teachers, 1),
    };
    let out = run(objective, &s, &t, labels.as_ref(), &parameters, outputs)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let value = case["value"].as_f64().expect("a number");
    close(
        out[0].item().unwrap(),
        value,
        tolerance,
        value.abs().max(1.0),
        &what,
    );
    assert_eq!(out.len(), 1 + expected.len(), "{what}");
    for (found, expected) in out[1..].iter().zip(&expected) {
        let (found, expected) = (found.to_f64s(), expected.to_f64s());
        assert_eq!(found.len(), expected.len(), "{what}");
        let scale = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
        for (found, expected) in found.into_iter().zip(expected) {
            close(
                found,
                expected,
                tolerance,
                scale,
                &format!("{what}, gradient"),
            );
        }
    }
}
