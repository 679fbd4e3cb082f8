//! The models of `benches/peers/torch_models.py` in burn.

use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, Embedding, EmbeddingConfig, LayerNorm, Linear};
use burn::tensor::activation::{gelu, relu};
use burn::tensor::module::attention;
use burn::tensor::ops::{AttentionModuleOptions, PadMode};
use burn::tensor::{Int, Tensor, s};
use opt_peers::Failure;

use crate::weights::Weights;

/// Convolutions, each with a max pool behind it, then linear layers with ReLUs between them:
/// LeNet-5, and without convolutions an MLP.
#[derive(Module, Debug)]
pub struct Plain {
    convolutions: Vec<Conv2d>,
    pool: MaxPool2d,
    linears: Vec<Linear>,
}

impl Plain {
    pub fn load(weights: &Weights) -> Result<Plain, Failure> {
        let mut convolutions = Vec::new();
        while weights.has(&format!("conv{}.weight", convolutions.len() + 1)) {
            let name = format!("conv{}", convolutions.len() + 1);
            convolutions.push(weights.convolution(&name, 1)?);
        }
        let mut linears = Vec::new();
        while weights.has(&format!("fc{}.weight", linears.len() + 1)) {
            linears.push(weights.linear(&format!("fc{}", linears.len() + 1))?);
        }
        let pool = MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init();
        Ok(Plain {
            convolutions,
            pool,
            linears,
        })
    }

    pub fn features(&self, mut x: Tensor<2>) -> Tensor<2> {
        for (i, layer) in self.linears.iter().enumerate() {
            x = layer.forward(x);
            if i + 1 < self.linears.len() {
                x = relu(x);
            }
        }
        x
    }

    pub fn images(&self, mut x: Tensor<4>) -> Tensor<2> {
        for convolution in &self.convolutions {
            x = self.pool.forward(convolution.forward(x));
        }
        self.features(x.flatten(1, 3))
    }
}

#[derive(Module, Debug)]
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
}

impl Block {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = relu(self.bn1.forward(self.conv1.forward(x.clone())));
        let y = self.bn2.forward(self.conv2.forward(y));
        let ([_, inputs, size, _], [_, outputs, smaller, _]) = (x.dims(), y.dims());
        let mut short = x;
        if smaller < size {
            short = short.slice(s![.., .., ..;2, ..;2]);
        }
        if outputs > inputs {
            let before = (outputs - inputs) / 2;
            let after = outputs - inputs - before;
            let zero = PadMode::Constant(0.0);
            short = short.pad([(before, after), (0, 0), (0, 0)], zero);
        }
        relu(y + short)
    }
}

/// ResNet-20 for small images, with shortcuts that have no parameters.
#[derive(Module, Debug)]
pub struct ResNet20 {
    conv1: Conv2d,
    bn1: BatchNorm,
    blocks: Vec<Block>,
    fc: Linear,
}

impl ResNet20 {
    pub fn load(weights: &Weights) -> Result<ResNet20, Failure> {
        let mut blocks = Vec::new();
        for (stage, block) in (1..4).flat_map(|stage| (0..3).map(move |block| (stage, block))) {
            let stride = if stage > 1 && block == 0 { 2 } else { 1 };
            let name = format!("layer{stage}.{block}");
            blocks.push(Block {
                conv1: weights.convolution(&format!("{name}.conv1"), stride)?,
                bn1: weights.batch_norm(&format!("{name}.bn1"))?,
                conv2: weights.convolution(&format!("{name}.conv2"), 1)?,
                bn2: weights.batch_norm(&format!("{name}.bn2"))?,
            });
        }
        Ok(ResNet20 {
            conv1: weights.convolution("conv1", 1)?,
            bn1: weights.batch_norm("bn1")?,
            blocks,
            fc: weights.linear("fc")?,
        })
    }

    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let mut x = relu(self.bn1.forward(self.conv1.forward(x)));
        for block in &self.blocks {
            x = block.forward(x);
        }
        let [batch, channels, ..] = x.dims();
        let x = x.reshape([batch as i32, channels as i32, -1]).mean_dim(2);
        self.fc.forward(x.reshape([batch, channels]))
    }
}

#[derive(Module, Debug)]
struct EncoderLayer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm1: LayerNorm,
    linear1: Linear,
    linear2: Linear,
    norm2: LayerNorm,
    heads: usize,
}

impl EncoderLayer {
    fn load(weights: &Weights, name: &str, heads: usize) -> Result<EncoderLayer, Failure> {
        let projection = |part| {
            let entry = |of: &str| format!("{name}.self_attn.in_proj_{of}");
            weights.linear_part(&entry("weight"), &entry("bias"), part, 3)
        };
        let linear = |part: &str| weights.linear(&format!("{name}.{part}"));
        Ok(EncoderLayer {
            query: projection(0)?,
            key: projection(1)?,
            value: projection(2)?,
            output: linear("self_attn.out_proj")?,
            norm1: weights.layer_norm(&format!("{name}.norm1"))?,
            linear1: linear("linear1")?,
            linear2: linear("linear2")?,
            norm2: weights.layer_norm(&format!("{name}.norm2"))?,
            heads,
        })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, steps, width] = x.dims();
        let y = self.norm1.forward(x.clone());
        let split = |layer: &Linear| {
            let part = layer.forward(y.clone());
            let part = part.reshape([batch, steps, self.heads, width / self.heads]);
            part.swap_dims(1, 2)
        };
        let (q, k, v) = (split(&self.query), split(&self.key), split(&self.value));
        let mixed = attention(q, k, v, None, None, AttentionModuleOptions::default());
        let mixed = mixed.swap_dims(1, 2).reshape([batch, steps, width]);
        let x = x + self.output.forward(mixed);
        let y = self.linear1.forward(self.norm2.forward(x.clone()));
        x + self.linear2.forward(gelu(y))
    }
}

/// A pre-norm transformer encoder with GELU over tokens.
#[derive(Module, Debug)]
pub struct Encoder {
    embedding: Embedding,
    position: Param<Tensor<2>>,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    fc: Linear,
}

impl Encoder {
    pub fn load(weights: &Weights, heads: usize) -> Result<Encoder, Failure> {
        let mut layers = Vec::new();
        while weights.has(&format!("layers.{}.norm1.weight", layers.len())) {
            let name = format!("layers.{}", layers.len());
            layers.push(EncoderLayer::load(weights, &name, heads)?);
        }
        let mut embedding = EmbeddingConfig::new(1, 1).init(weights.device);
        embedding.weight = weights.parameter("embedding.weight")?;
        Ok(Encoder {
            embedding,
            position: weights.parameter("position")?,
            layers,
            norm: weights.layer_norm("norm")?,
            fc: weights.linear("fc")?,
        })
    }

    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<2> {
        let mut x = self.embedding.forward(tokens) + self.position.val().unsqueeze();
        for layer in &self.layers {
            x = layer.forward(x);
        }
        let [batch, _, width] = x.dims();
        let x = self.norm.forward(x).mean_dim(1).reshape([batch, width]);
        self.fc.forward(x)
    }
}
