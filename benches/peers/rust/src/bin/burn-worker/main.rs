//! burn on its backend `flex`, with the models that are built.

mod models;
mod weights;

use burn::module::Module;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::optim::{AdamConfig, AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor, TensorData};
use opt_peers::tensors::{self, Content};
use opt_peers::{Engine, Failure, Load, serve, unwritten};

use models::{Encoder, Plain, ResNet20};
use weights::Weights;

#[derive(Module, Debug)]
enum Model {
    Plain(Plain),
    ResNet20(ResNet20),
    Encoder(Encoder),
}

impl Model {
    fn load(load: &Load, weights: &Weights) -> Result<Model, Failure> {
        let model = &load.row["model"];
        Ok(match model["kind"].as_str() {
            Some("mlp" | "lenet5") => Model::Plain(Plain::load(weights)?),
            Some("resnet20") => Model::ResNet20(ResNet20::load(weights)?),
            Some("encoder") => {
                let heads = model["heads"].as_u64().ok_or("an encoder has heads")?;
                Model::Encoder(Encoder::load(weights, heads as usize)?)
            }
            _ => return Err(unwritten(&model["kind"])),
        })
    }

    fn forward(&self, input: &Input) -> Tensor<2> {
        match (self, input) {
            (Model::Plain(model), Input::Features(x)) => model.features(x.clone()),
            (Model::Plain(model), Input::Images(x)) => model.images(x.clone()),
            (Model::ResNet20(model), Input::Images(x)) => model.forward(x.clone()),
            (Model::Encoder(model), Input::Tokens(x)) => model.forward(x.clone()),
            _ => panic!("the model has another kind of input"),
        }
    }
}

enum Input {
    Features(Tensor<2>),
    Images(Tensor<4>),
    Tokens(Tensor<2, Int>),
}

impl Input {
    fn new(given: &tensors::Tensor, device: &Device) -> Result<Input, Failure> {
        let shape = given.shape.clone();
        Ok(match (&given.content, shape.len()) {
            (Content::F32(data), 2) => Input::Features(Tensor::from_data(
                TensorData::new(data.clone(), shape),
                device,
            )),
            (Content::F32(data), 4) => Input::Images(Tensor::from_data(
                TensorData::new(data.clone(), shape),
                device,
            )),
            (Content::I64(data), 2) => Input::Tokens(Tensor::from_data(
                TensorData::new(data.clone(), shape),
                device,
            )),
            _ => return Err(format!("an input of shape {shape:?}").into()),
        })
    }
}

struct Burn {
    model: Model,
    /// Number of entries of running statistics, which burn counts as parameters.
    statistics: usize,
    input: Input,
    target: Tensor<1, Int>,
    criterion: CrossEntropyLoss,
    /// Where it trains.
    optimizer: Option<ModuleOptimizer>,
    loss: Option<Tensor<1>>,
    logits: Option<Tensor<2>>,
}

impl Engine for Burn {
    const PACKAGE: &'static str = "burn";
    const SETTINGS: &'static str = "backend flex, features rayon, simd and x86-v4";

    fn load(load: &Load) -> Result<Burn, Failure> {
        if load.onnx.is_some() {
            return Err(
                "burn translates ONNX files when a program is built, not when it runs".into(),
            );
        }
        // PyTorch's defaults; burn's own differ in epsilon and decay.
        let optimizer = match load.row["optimizer"].as_str() {
            Some("adamw") => {
                let settings = AdamWConfig::new().with_epsilon(1e-8);
                settings.with_weight_decay(0.01).init()
            }
            _ => AdamConfig::new().with_epsilon(1e-8).init(),
        };
        let trains = load.trains(&["adam", "adamw"])?;
        let device = match trains {
            true => Device::flex().autodiff(),
            false => Device::flex(),
        };
        let given = tensors::read(&load.weights)?;
        let target = tensors::get(&given, "target")?;
        let target = TensorData::new(target.i64s()?.to_vec(), target.shape.clone());
        let weights = Weights {
            entries: &given,
            device: &device,
        };
        let statistics = given
            .iter()
            .filter(|(name, _)| name.contains(".running_"))
            .map(|(_, tensor)| tensor.shape.iter().product::<usize>());
        Ok(Burn {
            model: Model::load(load, &weights)?,
            statistics: statistics.sum(),
            input: Input::new(tensors::get(&given, "input")?, &device)?,
            target: Tensor::from_data(target, &device),
            criterion: CrossEntropyLossConfig::new().init(&device),
            optimizer: trains.then_some(optimizer),
            loss: None,
            logits: None,
        })
    }

    fn parameters(&self) -> usize {
        self.model.num_params() - self.statistics
    }

    fn step(&mut self, lr: f64) -> Result<(), Failure> {
        let logits = self.model.forward(&self.input);
        if let Some(optimizer) = &mut self.optimizer {
            let loss = self.criterion.forward(logits, self.target.clone());
            let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
            self.model = optimizer.step(lr, self.model.clone(), gradients);
            self.loss = Some(loss);
        } else {
            self.logits = Some(logits);
        }
        Ok(())
    }

    fn loss(&mut self) -> Result<Option<f64>, Failure> {
        let loss = match (&self.loss, &self.logits) {
            (Some(loss), _) => loss.clone(),
            (None, Some(logits)) => self.criterion.forward(logits.clone(), self.target.clone()),
            (None, None) => return Ok(None),
        };
        Ok(Some(f64::from(loss.into_scalar::<f32>())))
    }

    fn outputs(&mut self) -> Result<Vec<f32>, Failure> {
        let logits = self
            .logits
            .clone()
            .ok_or("a step that trains gives no outputs")?;
        Ok(logits
            .into_data()
            .try_to_vec::<f32>()
            .map_err(|e| format!("{e:?}"))?)
    }
}

fn main() -> Result<(), Failure> {
    serve::<Burn>()
}
