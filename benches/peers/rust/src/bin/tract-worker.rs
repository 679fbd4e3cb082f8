//! tract.

use opt_peers::tensors::{self, Content};
use opt_peers::{Engine, Failure, Load, serve};
use tract_onnx::prelude::multithread::{self, Executor};
use tract_onnx::prelude::*;

struct Tract {
    model: Arc<TypedRunnableModel>,
    inputs: TVec<TValue>,
    outputs: TVec<TValue>,
}

impl Engine for Tract {
    const PACKAGE: &'static str = "tract-onnx";
    const SETTINGS: &'static str = "feature multithread-mm of tract-linalg";

    fn load(load: &Load) -> Result<Tract, Failure> {
        multithread::set_default_executor(match load.threads {
            1 => Executor::SingleThread,
            threads => Executor::multithread(threads),
        });
        let model = tract_onnx::onnx().model_for_path(load.onnx()?)?;
        let given = tensors::read(&load.weights)?;
        let mut inputs = TVec::new();
        for id in model.input_outlets()? {
            let tensor = tensors::get(&given, &model.node(id.node).name)?;
            let shape = tensor.shape.as_slice();
            let tensor = match &tensor.content {
                Content::F32(data) => Tensor::from_shape(shape, data)?,
                Content::I64(data) => Tensor::from_shape(shape, data)?,
                Content::I8(data) => Tensor::from_shape(shape, data)?,
                Content::U8(data) => Tensor::from_shape(shape, data)?,
            };
            inputs.push(tensor.into_tvalue());
        }
        let model = model.into_optimized()?.into_runnable()?;
        Ok(Tract {
            model,
            inputs,
            outputs: TVec::new(),
        })
    }

    fn step(&mut self, _lr: f64) -> Result<(), Failure> {
        self.outputs = self.model.run(self.inputs.clone())?;
        Ok(())
    }

    fn loss(&mut self) -> Result<Option<f64>, Failure> {
        Ok(None)
    }

    fn outputs(&mut self) -> Result<Vec<f32>, Failure> {
        let mut all = Vec::new();
        for value in &self.outputs {
            let floats = value.cast_to::<f32>()?;
            all.extend_from_slice(floats.try_as_plain_ram()?.as_slice::<f32>()?);
        }
        Ok(all)
    }
}

fn main() -> Result<(), Failure> {
    serve::<Tract>()
}
