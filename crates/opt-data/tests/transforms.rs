//! Fitted transforms against scikit-learn: `xtask/oracle/transforms.py`.

use opt_core::Tensor;
use opt_data::{
    Fill, Imputer, Keep, LabelEncoder, MinMax, OneHot, Ordinal, Outliers, Pca, Per, Robust, Score,
    SelectKBest, Standardize, TensorDataset, Transform,
};
use serde_json::{Value, json};

fn golden(key: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_str(include_str!("golden/transforms.json")).unwrap();
    golden[key].as_array().unwrap().clone()
}

/// Numbers in any depth of lists; null is NaN.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        Value::Null => vec![f64::NAN],
        Value::String(text) => vec![text.parse().unwrap()],
        value => vec![value.as_f64().unwrap()],
    }
}

fn matrix(value: &Value) -> Tensor {
    let rows = value.as_array().unwrap();
    let x: Vec<f32> = numbers(value).into_iter().map(|v| v as f32).collect();
    Tensor::new([rows.len(), x.len() / rows.len()], x).unwrap()
}

fn data(value: &Value) -> TensorDataset {
    TensorDataset::with_missing(vec![matrix(value)]).unwrap()
}

fn close(what: &str, found: &[f64], expected: &Value, tolerance: f64) {
    compare(what, found, expected, tolerance, 1e-3);
}

/// Fails unless the error is within the tolerance of the expected number, and `of_largest` of the
/// tolerance of the largest one.
fn compare(what: &str, found: &[f64], expected: &Value, tolerance: f64, of_largest: f64) {
    let expected = numbers(expected);
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().filter(|v| v.is_finite());
    let size = size.fold(1e-300f64, |m, v| m.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let equal = f == &e
            || f.is_nan() && e.is_nan()
            || (f - e).abs() <= tolerance * (e.abs() + size * of_largest);
        assert!(equal, "{what} {i}: found {f}, expected {e}");
    }
}

const PARAMETERS: f64 = 1e-12;
const OUTPUTS: f64 = 1e-6;

fn applied(transform: &dyn Transform, test: &Value) -> Vec<f64> {
    transform.apply(&matrix(test)).unwrap().to_f64s()
}

#[test]
fn scalers() {
    let cases = golden("scaling");
    assert_eq!(cases.len(), 3);
    for case in cases {
        let (train, test) = (data(&case["train"]), &case["test"]);
        let fitted = Standardize::fit(&train, 0, Per::Feature).unwrap();
        let expected = &case["standard"];
        close("mean", fitted.mean(), &expected["mean"], PARAMETERS);
        close("std", fitted.std(), &expected["std"], PARAMETERS);
        close(
            "standard",
            &applied(&fitted, test),
            &expected["test"],
            OUTPUTS,
        );
        for (key, clip) in [("min_max", false), ("min_max_clipped", true)] {
            let fitted = MinMax::fit(&train, 0, Per::Feature, (-1.0, 2.0)).unwrap();
            let fitted = fitted.clipped(clip);
            close("min", fitted.min(), &case[key]["min"], 0.0);
            close(key, &applied(&fitted, test), &case[key]["test"], OUTPUTS);
        }
        for (key, range) in [("robust", (0.25, 0.75)), ("robust_wide", (0.1, 0.8))] {
            let fitted = Robust::fit(&train, 0, Per::Feature, range).unwrap();
            close("center", fitted.median(), &case[key]["center"], PARAMETERS);
            close("scale", fitted.scale(), &case[key]["scale"], PARAMETERS);
            close(key, &applied(&fitted, test), &case[key]["test"], OUTPUTS);
        }
    }
}

#[test]
fn outliers() {
    let (mut inside, mut outside) = (0, 0);
    for case in golden("scaling") {
        let (train, test) = (data(&case["train"]), matrix(&case["test"]));
        let iqr = Outliers::iqr(&train, 0, 1.5).unwrap();
        let z = Outliers::z_score(&train, 0, 1.5).unwrap();
        for (key, fitted) in [("iqr", iqr), ("z_score", z)] {
            let mask = fitted.mask(&test).unwrap().to_f64s();
            close(key, &mask, &case[key], 0.0);
            outside += mask.iter().filter(|&&v| v == 1.0).count();
            inside += mask.iter().filter(|&&v| v == 0.0).count();
        }
    }
    assert!(inside > 20 && outside > 20);
}

#[test]
fn imputers() {
    for case in golden("imputing") {
        let train = data(&case["train"]);
        for (name, fill) in [
            ("mean", Fill::Mean),
            ("median", Fill::Median),
            ("most_frequent", Fill::MostFrequent),
            ("max", Fill::Max),
            ("constant", Fill::Constant(-7.5)),
        ] {
            let fitted = Imputer::fit(&train, 0, fill).unwrap();
            let expected = &case["fills"][name];
            let values: Vec<f64> = fitted.values().iter().map(|&v| f64::from(v)).collect();
            close(name, &values, &expected["values"], OUTPUTS);
            let test = applied(&fitted, &case["test"]);
            close(name, &test, &expected["test"], OUTPUTS);
        }
    }
}

#[test]
fn encoders() {
    for case in golden("encoding") {
        let train = data(&case["train"]);
        let columns: Vec<usize> = (0..train.fields()[0].shape()[1]).collect();
        let one_hot = OneHot::fit(&train, 0, &columns)
            .unwrap()
            .ignore_unknown(true);
        let categories = case["categories"].as_array().unwrap();
        for (c, expected) in categories.iter().enumerate() {
            let found: Vec<f64> = one_hot
                .categories(c)
                .unwrap()
                .iter()
                .map(|&v| v.into())
                .collect();
            close("categories", &found, expected, 0.0);
        }
        let test = &case["test"];
        close("one-hot", &applied(&one_hot, test), &case["one_hot"], 0.0);
        let ordinal = Ordinal::fit(&train, 0, &columns)
            .unwrap()
            .unknown_value(-1.0);
        close("ordinal", &applied(&ordinal, test), &case["ordinal"], 0.0);
        let labels: Vec<i64> = serde_json::from_value(case["labels"].clone()).unwrap();
        let labels = Tensor::new([labels.len()], labels).unwrap();
        let train = TensorDataset::new(vec![labels.clone()]).unwrap();
        let encoder = LabelEncoder::fit(&train, 0).unwrap();
        let codes = encoder.apply(&labels).unwrap();
        close("labels", &codes.to_f64s(), &case["codes"], 0.0);
        assert_eq!(encoder.inverse(&codes).unwrap(), labels);
    }
}

#[test]
fn selections() {
    for case in golden("selecting") {
        let labels: Vec<i64> = serde_json::from_value(case["y"].clone()).unwrap();
        let labels = Tensor::new([labels.len()], labels).unwrap();
        let train = TensorDataset::new(vec![matrix(&case["x"]), labels]).unwrap();
        for (name, score) in [
            ("chi2", Score::ChiSquared),
            ("f", Score::AnovaF),
            ("mutual_info", Score::MutualInformation),
        ] {
            let expected = &case["scores"][name];
            for kept in expected["kept"].as_array().unwrap() {
                let k = kept.as_array().unwrap().len();
                let fitted = SelectKBest::fit(&train, 0, 1, score, k).unwrap();
                close(name, fitted.scores(), &expected["scores"], 1e-11);
                assert_eq!(&json!(fitted.indices()), kept, "{name}");
            }
        }
    }
}

#[test]
fn principal_components() {
    let cases = golden("pca");
    assert_eq!(cases.len(), 5);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let keep = match case["keep"].as_u64() {
            Some(k) => Keep::Components(k as usize),
            None => Keep::Variance(case["keep"].as_f64().unwrap()),
        };
        let pca = Pca::fit(&data(&case["train"]), 0, keep).unwrap();
        let pca = pca.whiten(case["whiten"].as_bool().unwrap());
        close(name, pca.mean(), &case["mean"], PARAMETERS);
        let components: Vec<f64> = pca.components().flatten().copied().collect();
        close(name, &components, &case["components"], 1e-7);
        close(name, pca.explained_variance(), &case["variance"], 1e-10);
        close(name, pca.explained_variance_ratio(), &case["ratio"], 1e-10);
        close(name, pca.singular_values(), &case["singular"], 1e-10);
        // Eigenvectors of a covariance are as exact as the largest variance allows, so numbers that
        // are small beside others are less so.
        let projected = applied(&pca, &case["test"]);
        compare(name, &projected, &case["projected"], OUTPUTS, 1.0);
        let back = pca.inverse(&matrix(&case["projected"])).unwrap();
        compare(name, &back.to_f64s(), &case["back"], OUTPUTS, 1.0);
    }
}
