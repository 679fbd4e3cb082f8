//! Layers from the entries of a PyTorch state dict.

use std::collections::BTreeMap;

use burn::module::{Param, RunningState};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, PaddingConfig2d,
};
use burn::tensor::{Device, Tensor, TensorData};
use opt_peers::Failure;
use opt_peers::tensors::{self, Tensor as Given};

/// The entries, each named `model.NAME` in the file, and where tensors go.
pub struct Weights<'a> {
    pub entries: &'a BTreeMap<String, Given>,
    pub device: &'a Device,
}

impl Weights<'_> {
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(&format!("model.{name}"))
    }

    fn get(&self, name: &str) -> Result<&Given, Failure> {
        tensors::get(self.entries, &format!("model.{name}"))
    }

    fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>, Failure> {
        let given = self.get(name)?;
        let data = TensorData::new(given.f32s()?.to_vec(), given.shape.clone());
        Ok(Tensor::from_data(data, self.device))
    }

    pub fn parameter<const D: usize>(&self, name: &str) -> Result<Param<Tensor<D>>, Failure> {
        let given = self.get(name)?;
        let data = TensorData::new(given.f32s()?.to_vec(), given.shape.clone());
        Ok(Param::from_data(data, self.device))
    }

    /// A convolution; one without a bias keeps the size of its image, as those before batch norms
    /// do.
    pub fn convolution(&self, name: &str, stride: usize) -> Result<Conv2d, Failure> {
        let weight = &self.get(&format!("{name}.weight"))?.shape;
        let &[outputs, inputs, height, width] = weight.as_slice() else {
            return Err(format!("{name} has the shape {weight:?}").into());
        };
        let bias = self.has(&format!("{name}.bias"));
        let pad = match bias {
            true => PaddingConfig2d::Valid,
            false => PaddingConfig2d::Explicit(height / 2, width / 2, height / 2, width / 2),
        };
        let mut layer = Conv2dConfig::new([inputs, outputs], [height, width])
            .with_stride([stride, stride])
            .with_padding(pad)
            .with_bias(bias)
            .init(self.device);
        layer.weight = self.parameter(&format!("{name}.weight"))?;
        if bias {
            layer.bias = Some(self.parameter(&format!("{name}.bias"))?);
        }
        Ok(layer)
    }

    pub fn linear(&self, name: &str) -> Result<Linear, Failure> {
        let [weight, bias] = ["weight", "bias"].map(|part| format!("{name}.{part}"));
        self.linear_part(&weight, &bias, 0, 1)
    }

    /// Part `part` of `parts` of the outputs of a linear layer.
    pub fn linear_part(
        &self,
        weight: &str,
        bias: &str,
        part: usize,
        parts: usize,
    ) -> Result<Linear, Failure> {
        let (weight, bias) = (self.get(weight)?, self.get(bias)?);
        let &[rows, inputs] = weight.shape.as_slice() else {
            return Err(format!("a linear layer has the shape {:?}", weight.shape).into());
        };
        let outputs = rows / parts;
        let first = part * outputs;
        let data = &weight.f32s()?[first * inputs..][..outputs * inputs];
        // It keeps inputs first, PyTorch outputs.
        let turned = (0..inputs * outputs).map(|i| data[i % outputs * inputs + i / outputs]);
        let turned = TensorData::new(turned.collect::<Vec<f32>>(), [inputs, outputs]);
        let bias = TensorData::new(bias.f32s()?[first..][..outputs].to_vec(), [outputs]);
        let mut layer = LinearConfig::new(inputs, outputs).init(self.device);
        layer.weight = Param::from_data(turned, self.device);
        layer.bias = Some(Param::from_data(bias, self.device));
        Ok(layer)
    }

    pub fn batch_norm(&self, name: &str) -> Result<BatchNorm, Failure> {
        let entry = |part: &str| format!("{name}.{part}");
        let size = self.get(&entry("weight"))?.shape.iter().product();
        let mut layer = BatchNormConfig::new(size).init(self.device);
        layer.gamma = self.parameter(&entry("weight"))?;
        layer.beta = self.parameter(&entry("bias"))?;
        layer.running_mean = RunningState::new(self.tensor(&entry("running_mean"))?);
        layer.running_var = RunningState::new(self.tensor(&entry("running_var"))?);
        Ok(layer)
    }

    pub fn layer_norm(&self, name: &str) -> Result<LayerNorm, Failure> {
        let entry = |part: &str| format!("{name}.{part}");
        let size = self.get(&entry("weight"))?.shape.iter().product();
        let mut layer = LayerNormConfig::new(size).init(self.device);
        layer.gamma = self.parameter(&entry("weight"))?;
        layer.beta = Some(self.parameter(&entry("bias"))?);
        Ok(layer)
    }
}
