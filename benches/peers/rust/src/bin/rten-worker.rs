//! rten.

use std::sync::Arc;

use opt_peers::tensors::{self, Content};
use opt_peers::{Engine, Failure, Load, serve};
use rten::{Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView};
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

struct Rten {
    model: Model,
    inputs: Vec<(NodeId, Value)>,
    pool: Arc<ThreadPool>,
    outputs: Vec<Value>,
}

impl Engine for Rten {
    const PACKAGE: &'static str = "rten";
    const SETTINGS: &'static str = "weights prepacked";

    fn load(load: &Load) -> Result<Rten, Failure> {
        let model = ModelOptions::with_all_ops()
            .prepack_weights(true)
            .load_file(load.onnx()?)?;
        let mut inputs = Vec::new();
        for (name, tensor) in tensors::read(&load.weights)? {
            let shape = tensor.shape.as_slice();
            let value: Value = match tensor.content {
                Content::F32(data) => Tensor::from_data(shape, data).into(),
                // It computes with 32 bits where a model has 64.
                Content::I64(data) => {
                    let data: Result<Vec<i32>, _> = data.into_iter().map(i32::try_from).collect();
                    Tensor::from_data(shape, data?).into()
                }
                Content::I8(data) => Tensor::from_data(shape, data).into(),
                Content::U8(data) => Tensor::from_data(shape, data).into(),
            };
            inputs.push((model.node_id(&name)?, value));
        }
        let pool = Arc::new(ThreadPool::with_num_threads(load.threads));
        Ok(Rten {
            model,
            inputs,
            pool,
            outputs: Vec::new(),
        })
    }

    fn step(&mut self, _lr: f64) -> Result<(), Failure> {
        let inputs = self.inputs.iter();
        let inputs: Vec<(NodeId, ValueOrView)> = inputs
            .map(|(id, value)| (*id, value.as_view().into()))
            .collect();
        let mut options = RunOptions::default();
        options.thread_pool = Some(self.pool.clone());
        self.outputs = self
            .model
            .run(inputs, self.model.output_ids(), Some(options))?;
        Ok(())
    }

    fn loss(&mut self) -> Result<Option<f64>, Failure> {
        Ok(None)
    }

    fn outputs(&mut self) -> Result<Vec<f32>, Failure> {
        let mut all = Vec::new();
        for value in &self.outputs {
            match value {
                Value::FloatTensor(t) => all.extend(t.iter().copied()),
                Value::Int32Tensor(t) => all.extend(t.iter().map(|&x| x as f32)),
                _ => return Err("an output is neither f32 nor i32".into()),
            }
        }
        Ok(all)
    }
}

fn main() -> Result<(), Failure> {
    serve::<Rten>()
}
