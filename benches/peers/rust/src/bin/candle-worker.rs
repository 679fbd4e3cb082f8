//! candle: models of files by `candle-onnx`, and linear layers with ReLUs.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Linear, Module, Optimizer, ParamsAdamW, loss};
use candle_onnx::onnx::ModelProto;
use opt_peers::tensors::{self, Content};
use opt_peers::{Engine, Failure, Load, serve};

enum Candle {
    Onnx {
        model: Box<ModelProto>,
        inputs: HashMap<String, Tensor>,
        outputs: HashMap<String, Tensor>,
    },
    Mlp(Mlp),
}

struct Mlp {
    layers: Vec<Linear>,
    variables: Vec<Var>,
    /// Where it trains.
    optimizer: Option<AdamW>,
    input: Tensor,
    target: Tensor,
    logits: Option<Tensor>,
    loss: Option<Tensor>,
}

fn tensor(from: &tensors::Tensor) -> Result<Tensor, Failure> {
    let shape = from.shape.as_slice();
    Ok(match &from.content {
        Content::F32(data) => Tensor::from_slice(data, shape, &Device::Cpu)?,
        Content::I64(data) => Tensor::from_slice(data, shape, &Device::Cpu)?,
        Content::U8(data) => Tensor::from_slice(data, shape, &Device::Cpu)?,
        Content::I8(_) => return Err("candle has no 8-bit signed integers".into()),
    })
}

impl Mlp {
    fn load(load: &Load) -> Result<Mlp, Failure> {
        let trains = load.trains(&["adam"])?;
        let given = tensors::read(&load.weights)?;
        let (mut layers, mut variables) = (Vec::new(), Vec::new());
        while given.contains_key(&format!("model.fc{}.weight", layers.len() + 1)) {
            let name = format!("model.fc{}", layers.len() + 1);
            let mut part = |of: &str| -> Result<Tensor, Failure> {
                let given = tensor(tensors::get(&given, &format!("{name}.{of}"))?)?;
                let variable = Var::from_tensor(&given)?;
                variables.push(variable.clone());
                Ok(match trains {
                    true => variable.as_tensor().clone(),
                    false => given,
                })
            };
            layers.push(Linear::new(part("weight")?, Some(part("bias")?)));
        }
        let optimizer = match trains {
            // Adam is AdamW without decay.
            true => {
                let settings = ParamsAdamW {
                    weight_decay: 0.0,
                    ..ParamsAdamW::default()
                };
                Some(AdamW::new(variables.clone(), settings)?)
            }
            false => None,
        };
        Ok(Mlp {
            layers,
            variables,
            optimizer,
            input: tensor(tensors::get(&given, "input")?)?,
            target: tensor(tensors::get(&given, "target")?)?,
            logits: None,
            loss: None,
        })
    }

    fn forward(&self) -> Result<Tensor, Failure> {
        let mut x = self.input.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x)?;
            if i + 1 < self.layers.len() {
                x = x.relu()?;
            }
        }
        Ok(x)
    }

    fn step(&mut self, lr: f64) -> Result<(), Failure> {
        let logits = self.forward()?;
        if let Some(optimizer) = &mut self.optimizer {
            let loss = loss::cross_entropy(&logits, &self.target)?;
            optimizer.set_learning_rate(lr);
            optimizer.backward_step(&loss)?;
            self.loss = Some(loss);
        }
        self.logits = Some(logits);
        Ok(())
    }

    fn loss(&self) -> Result<Option<f64>, Failure> {
        let loss = match (&self.loss, &self.logits) {
            (Some(loss), _) => loss.clone(),
            (None, Some(logits)) => loss::cross_entropy(logits, &self.target)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(f64::from(loss.to_scalar::<f32>()?)))
    }
}

impl Engine for Candle {
    const PACKAGE: &'static str = "candle-core";
    const SETTINGS: &'static str = "-C target-cpu=native, as its repository builds it";

    fn load(load: &Load) -> Result<Candle, Failure> {
        if load.row["model"]["kind"] == "mlp" {
            return Ok(Candle::Mlp(Mlp::load(load)?));
        }
        let model = Box::new(candle_onnx::read_file(load.onnx()?)?);
        let mut inputs = HashMap::new();
        for (name, given) in tensors::read(&load.weights)? {
            inputs.insert(name, tensor(&given)?);
        }
        let outputs = HashMap::new();
        Ok(Candle::Onnx {
            model,
            inputs,
            outputs,
        })
    }

    fn parameters(&self) -> usize {
        match self {
            Candle::Onnx { .. } => 0,
            Candle::Mlp(mlp) => mlp.variables.iter().map(|v| v.elem_count()).sum(),
        }
    }

    fn step(&mut self, lr: f64) -> Result<(), Failure> {
        match self {
            Candle::Onnx {
                model,
                inputs,
                outputs,
            } => *outputs = candle_onnx::simple_eval(model, inputs.clone())?,
            Candle::Mlp(mlp) => mlp.step(lr)?,
        }
        Ok(())
    }

    fn loss(&mut self) -> Result<Option<f64>, Failure> {
        match self {
            Candle::Onnx { .. } => Ok(None),
            Candle::Mlp(mlp) => mlp.loss(),
        }
    }

    fn outputs(&mut self) -> Result<Vec<f32>, Failure> {
        let mut all = Vec::new();
        let mut add = |tensor: &Tensor| -> Result<(), Failure> {
            let flat = tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?;
            all.extend(flat.to_vec1::<f32>()?);
            Ok(())
        };
        match self {
            Candle::Onnx { model, outputs, .. } => {
                let graph = model.graph.as_ref().ok_or("the model has no graph")?;
                for output in &graph.output {
                    let found = outputs.get(&output.name);
                    add(found.ok_or_else(|| format!("there is no output {}", output.name))?)?;
                }
            }
            Candle::Mlp(mlp) => add(mlp.logits.as_ref().ok_or("no step has run")?)?,
        }
        Ok(all)
    }
}

fn main() -> Result<(), Failure> {
    serve::<Candle>()
}
