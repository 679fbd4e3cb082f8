//! burn on its backend `flex`: linear layers with ReLUs, and LeNet-5.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::relu};
use opt_peers::tensors::{self, Tensor as Given};
use opt_peers::{Engine, Failure, Load, serve};

type Weights = BTreeMap<String, Given>;

/// Either model: convolutions, each with a max pool behind it, then linear layers.
#[derive(Module, Debug)]
struct Model {
    convolutions: Vec<Conv2d>,
    pool: MaxPool2d,
    linears: Vec<Linear>,
}

impl Model {
    fn load(weights: &Weights, device: &Device) -> Result<Model, Failure> {
        let has = |name: &str| weights.contains_key(&format!("model.{name}.weight"));
        let mut convolutions = Vec::new();
        while has(&format!("conv{}", convolutions.len() + 1)) {
            let name = format!("model.conv{}", convolutions.len() + 1);
            convolutions.push(convolution(weights, &name, device)?);
        }
        let mut linears = Vec::new();
        while has(&format!("fc{}", linears.len() + 1)) {
            let name = format!("model.fc{}", linears.len() + 1);
            linears.push(linear(weights, &name, device)?);
        }
        let pool = MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init();
        Ok(Model {
            convolutions,
            pool,
            linears,
        })
    }

    fn linears(&self, mut x: Tensor<2>) -> Tensor<2> {
        for (i, layer) in self.linears.iter().enumerate() {
            x = layer.forward(x);
            if i + 1 < self.linears.len() {
                x = relu(x);
            }
        }
        x
    }

    fn forward(&self, input: &Input) -> Tensor<2> {
        match input {
            Input::Features(x) => self.linears(x.clone()),
            Input::Images(x) => {
                let mut x = x.clone();
                for convolution in &self.convolutions {
                    x = self.pool.forward(convolution.forward(x));
                }
                self.linears(x.flatten(1, 3))
            }
        }
    }
}

fn parameter<const D: usize>(given: &Given, device: &Device) -> Result<Param<Tensor<D>>, Failure> {
    let data = TensorData::new(given.f32s()?.to_vec(), given.shape.clone());
    Ok(Param::from_data(data, device))
}

fn convolution(weights: &Weights, name: &str, device: &Device) -> Result<Conv2d, Failure> {
    let weight = tensors::get(weights, &format!("{name}.weight"))?;
    let &[outputs, inputs, height, width] = weight.shape.as_slice() else {
        return Err(format!("{name} has the shape {:?}", weight.shape).into());
    };
    let mut layer = Conv2dConfig::new([inputs, outputs], [height, width]).init(device);
    layer.weight = parameter(weight, device)?;
    layer.bias = Some(parameter(tensors::get(weights, &format!("{name}.bias"))?, device)?);
    Ok(layer)
}

fn linear(weights: &Weights, name: &str, device: &Device) -> Result<Linear, Failure> {
    let weight = tensors::get(weights, &format!("{name}.weight"))?;
    let &[outputs, inputs] = weight.shape.as_slice() else {
        return Err(format!("{name} has the shape {:?}", weight.shape).into());
    };
    // It keeps inputs first, PyTorch outputs.
    let data = weight.f32s()?;
    let turned = (0..inputs * outputs).map(|i| data[i % outputs * inputs + i / outputs]);
    let turned = TensorData::new(turned.collect::<Vec<f32>>(), [inputs, outputs]);
    let mut layer = LinearConfig::new(inputs, outputs).init(device);
    layer.weight = Param::from_data(turned, device);
    layer.bias = Some(parameter(tensors::get(weights, &format!("{name}.bias"))?, device)?);
    Ok(layer)
}

enum Input {
    Features(Tensor<2>),
    Images(Tensor<4>),
}

struct Burn {
    model: Model,
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
            return Err("burn translates ONNX files when a program is built, not when it runs".into());
        }
        let kind = load.row["model"]["kind"].as_str();
        if !matches!(kind, Some("mlp" | "lenet5")) {
            return Err(format!("not expressed with this library: model {kind:?}").into());
        }
        let trains = load.trains("adam")?;
        let device = match trains {
            true => Device::flex().autodiff(),
            false => Device::flex(),
        };
        let given = tensors::read(&load.weights)?;
        let input = tensors::get(&given, "input")?;
        let data = TensorData::new(input.f32s()?.to_vec(), input.shape.clone());
        let input = match input.shape.len() {
            2 => Input::Features(Tensor::from_data(data, &device)),
            4 => Input::Images(Tensor::from_data(data, &device)),
            rank => return Err(format!("an input of rank {rank}").into()),
        };
        let target = tensors::get(&given, "target")?;
        let target = TensorData::new(target.i64s()?.to_vec(), target.shape.clone());
        Ok(Burn {
            model: Model::load(&given, &device)?,
            input,
            target: Tensor::from_data(target, &device),
            criterion: CrossEntropyLossConfig::new().init(&device),
            // As PyTorch has it; burn's default is 1e-5.
            optimizer: trains.then(|| AdamConfig::new().with_epsilon(1e-8).init()),
            loss: None,
            logits: None,
        })
    }

    fn parameters(&self) -> usize {
        self.model.num_params()
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
        let logits = self.logits.clone().ok_or("a step that trains gives no outputs")?;
        Ok(logits.into_data().to_vec::<f32>().map_err(|e| format!("{e:?}"))?)
    }
}

fn main() -> Result<(), Failure> {
    serve::<Burn>()
}
