//! Tensors of safetensors files.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::Failure;

/// What a tensor holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    F32(Vec<f32>),
    I64(Vec<i64>),
    I8(Vec<i8>),
    U8(Vec<u8>),
}

/// A tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub content: Content,
}

impl Tensor {
    /// Its content, which has to be `f32`.
    pub fn f32s(&self) -> Result<&[f32], Failure> {
        match &self.content {
            Content::F32(data) => Ok(data),
            _ => Err("a tensor is not f32".into()),
        }
    }

    /// Its content, which has to be `i64`.
    pub fn i64s(&self) -> Result<&[i64], Failure> {
        match &self.content {
            Content::I64(data) => Ok(data),
            _ => Err("a tensor is not i64".into()),
        }
    }
}

/// All tensors of a file by name.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, Failure> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let content = match view.dtype() {
            Dtype::F32 => Content::F32(bytemuck::allocation::pod_collect_to_vec(data)),
            Dtype::I64 => Content::I64(bytemuck::allocation::pod_collect_to_vec(data)),
            Dtype::I8 => Content::I8(bytemuck::allocation::pod_collect_to_vec(data)),
            Dtype::U8 => Content::U8(data.to_vec()),
            other => return Err(format!("{name} has the dtype {other:?}").into()),
        };
        let shape = view.shape().to_vec();
        tensors.insert(name, Tensor { shape, content });
    }
    Ok(tensors)
}

/// The tensor of this name.
pub fn get<'a>(tensors: &'a BTreeMap<String, Tensor>, name: &str) -> Result<&'a Tensor, Failure> {
    tensors
        .get(name)
        .ok_or_else(|| format!("there is no tensor {name}").into())
}
