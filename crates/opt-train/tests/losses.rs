//! Losses and their gradients against PyTorch's (`xtask/oracle/losses.py`).

use opt_core::autodiff::grad;
use opt_core::{Backend, DType, GraphBuilder, Tensor, TensorType};
use opt_ndarray::NdarrayBackend;
use opt_train::{
    Bce, CrossEntropy, Huber, KlDiv, Loss, Mae, Mse, SmoothedCrossEntropy, SoftCrossEntropy,
};
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

#[test]
fn values_and_gradients_equal_pytorchs() {
    let golden: Value =
        serde_json::from_str(include_str!("golden/losses.json")).expect("golden JSON");
    let cases = golden.as_array().expect("a list of cases");
    assert_eq!(cases.len(), 50);
    for case in cases {
        let name = case["loss"].as_str().expect("a name");
        let loss: &dyn Loss = match name {
            "cross_entropy" => &CrossEntropy,
            "soft_cross_entropy" => &SoftCrossEntropy,
            "mse" => &Mse,
            "bce" => &Bce,
            "kl_div" => &KlDiv,
            "mae" => &Mae,
            "huber" => &Huber { delta: 0.7 },
            "smoothed_cross_entropy" => &SmoothedCrossEntropy {
                label_smoothing: 0.2,
            },
            other => panic!("the script has a loss `{other}` that the test does not know"),
        };
        let prediction = tensor(&case["prediction"], DType::F64);
        let mut b = GraphBuilder::new(name);
        let ty = TensorType::new(DType::F64, prediction.shape());
        let target_type = loss.target_type(&ty).unwrap();
        let target = tensor(&case["target"], target_type.dtype);
        let x = b.input("prediction", ty).unwrap();
        let t = b.input("target", target_type).unwrap();
        let value = loss.build(&mut b, x, t).unwrap();
        let gradient = grad(&mut b, value, &[x]).unwrap().of(x).unwrap();
        b.output("value", value).unwrap();
        b.output("gradient", gradient).unwrap();
        let out = NdarrayBackend::new()
            .run_once(&b.finish().unwrap(), &[prediction, target])
            .unwrap();
        let expected = case["value"].as_f64().expect("a number");
        let found = out[0].item().unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-10 * (1.0 + b.abs());
        assert!(close(found, expected), "{name}: {found} against {expected}");
        let expected = tensor(&case["gradient"], DType::F64).to_f64s();
        for (found, expected) in out[1].to_f64s().into_iter().zip(expected) {
            assert!(close(found, expected), "{name}: {found} against {expected}");
        }
    }
}

#[test]
fn settings_out_of_range_are_errors() {
    let ty = TensorType::new(DType::F32, [2, 3]);
    let cases: [(&dyn Loss, &str); 4] = [
        (&Huber { delta: 0.0 }, "delta"),
        (&Huber { delta: f64::NAN }, "delta"),
        (
            &SmoothedCrossEntropy {
                label_smoothing: 1.1,
            },
            "label smoothing",
        ),
        (
            &SmoothedCrossEntropy {
                label_smoothing: f64::NAN,
            },
            "label smoothing",
        ),
    ];
    for (loss, name) in cases {
        let error = loss.target_type(&ty).unwrap_err().to_string();
        assert!(error.contains(name), "{loss:?}: {error}");
    }
}
