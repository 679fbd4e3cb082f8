//! Evaluation, cost and comparison of a real classifier on real data: nearest centroids of the
//! embedded digits, which as a graph is one matrix product.

use opt_core::{DType, Dim, Graph, GraphBuilder, Tensor, TensorType};
use opt_data::{Dataset, Per, Standardize, TrainTest, digits};
use opt_eval::{
    Average, Candidate, CompareOptions, LatencyBench, ModelCost, compare, evaluate, predict,
};
use opt_ndarray::NdarrayBackend;

fn data() -> TrainTest {
    let digits = digits().unwrap();
    let scaler = Standardize::fit(&digits.train, 0, Per::Dataset).unwrap();
    TrainTest {
        train: digits.train.map(0, &scaler).unwrap(),
        test: digits.test.map(0, &scaler).unwrap(),
    }
}

/// The mean image of each class.
fn centroids(data: &TrainTest) -> Vec<[f32; 64]> {
    let images = data.train.fields()[0].to_vec::<f32>().unwrap();
    let labels = data.train.labels(1).unwrap();
    let mut means = vec![[0f32; 64]; 10];
    for (image, &label) in images.chunks(64).zip(labels) {
        let count = labels.iter().filter(|&&l| l == label).count() as f32;
        for (m, v) in means[label as usize].iter_mut().zip(image) {
            *m += v / count;
        }
    }
    means
}

/// `|x - c|^2` is smallest where `x . c - |c|^2 / 2` is largest.
fn classifier(centroids: &[[f32; 64]]) -> Graph {
    let mut b = GraphBuilder::new("centroids");
    let shape: [Dim; 4] = ["batch".into(), 1.into(), 8.into(), 8.into()];
    let x = b
        .input("image", TensorType::new(DType::F32, shape))
        .unwrap();
    let x = b.flatten(x, 1).unwrap();
    let weight = Tensor::new([10, 64], centroids.concat()).unwrap();
    let weight = weight.transpose(&[1, 0]).unwrap().contiguous();
    let weight = b.variable("weight", weight).unwrap();
    let half = |c: &[f32; 64]| -c.iter().map(|v| v * v).sum::<f32>() / 2.0;
    let bias = Tensor::new([10], centroids.iter().map(half).collect::<Vec<_>>()).unwrap();
    let bias = b.variable("bias", bias).unwrap();
    let y = b.matmul(x, weight).unwrap();
    let y = b.add(y, bias).unwrap();
    b.output("scores", y).unwrap();
    b.finish().unwrap()
}

#[test]
fn predictions_are_the_nearest_centroids() {
    let data = data();
    let centroids = centroids(&data);
    let graph = classifier(&centroids);
    let backend = NdarrayBackend::new().threads(1);

    let images = data.test.fields()[0].to_vec::<f32>().unwrap();
    let distance =
        |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum() };
    let nearest = |image: &[f32]| {
        let all = centroids.iter().map(|c| distance(image, c)).enumerate();
        all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0 as i64
    };
    let expected: Vec<i64> = images.chunks(64).map(nearest).collect();

    // 100 leaves a smaller last batch.
    let evaluation = evaluate(&graph, &data.test, &backend, 100).unwrap();
    assert_eq!(evaluation.predictions, expected);
    assert_eq!(evaluation.labels, data.test.labels(1).unwrap());
    let matrix = evaluation.confusion().unwrap();
    assert_eq!(matrix.accuracy(), evaluation.accuracy());
    assert!(matrix.accuracy() > 0.85, "{}", matrix.accuracy());
    assert!((matrix.f1(Average::Macro) - matrix.accuracy()).abs() < 0.02);

    let whole = predict(&graph, &data.test, &backend, 360).unwrap();
    let parts = predict(&graph, &data.test, &backend, 7).unwrap();
    assert_eq!(whole.shape(), [360, 10]);
    for (a, b) in whole.to_f64s().into_iter().zip(parts.to_f64s()) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} {b}");
    }
}

#[test]
fn comparisons_measure_what_the_graphs_cost() {
    let data = data();
    let dense = centroids(&data);
    let mut sparse = dense.clone();
    for row in &mut sparse {
        row[..32].fill(0.0);
    }
    let (dense, sparse) = (classifier(&dense), classifier(&sparse));
    let cost = ModelCost::of_one(&dense).unwrap();
    assert_eq!((cost.parameters, cost.macs), (650, 640));
    let zeros = dense
        .variables()
        .flat_map(|(_, _, t)| t.to_f64s())
        .filter(|v| *v == 0.0);
    assert_eq!(cost.nonzeros, 650 - zeros.count() as u64);
    let half = ModelCost::of_one(&sparse).unwrap();
    assert_eq!((half.parameters, half.bytes), (cost.parameters, cost.bytes));
    assert!(half.nonzeros <= 330);

    let options = CompareOptions::new().latency(LatencyBench::new().warmup(2).runs(20));
    let backend = NdarrayBackend::new().threads(1);
    let models = [("dense", &dense), ("half", &sparse)];
    let table = compare(&models, &data.test, &backend, &options).unwrap();
    let row = table.row("dense").unwrap();
    assert_eq!(
        (row.parameters, row.macs, row.bytes),
        (650, 640, cost.bytes)
    );
    assert!(table.rows().iter().all(|r| r.latency_us.unwrap() > 0.0));
    assert!(row.accuracy > table.row("half").unwrap().accuracy);
}

#[test]
fn errors_name_the_model() {
    let data = data();
    let graph = classifier(&centroids(&data));
    let backend = NdarrayBackend::new().threads(1);
    let wrong = [Tensor::zeros(DType::F32, [1, 64]).unwrap()];
    let candidate = Candidate {
        name: "centroids",
        graph: &graph,
        inputs: &wrong,
    };
    let error = LatencyBench::new()
        .measure(&backend, &[candidate])
        .unwrap_err();
    assert!(
        error.to_string().starts_with("centroids: image: expected"),
        "{error}"
    );
    let none = data.test.select(&[]).unwrap_err();
    assert_eq!(none.kind(), opt_eval::ErrorKind::Data);
    assert_eq!(data.test.len(), 360);
}
