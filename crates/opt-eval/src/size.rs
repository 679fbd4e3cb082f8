//! How many bytes a model's weights take on disk.

use opt_core::{DType, Error, Graph, Result, ResultExt, Tensor, ValueId};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

/// The tensors that a graph's outputs depend on: variables and constants, with their names. They
/// are what has to be stored of a model beside its structure: weights, running statistics, and
/// quantization scales and zero points. What only a training step reads (optimizer state) is not
/// among them.
pub fn weights(graph: &Graph) -> Vec<(ValueId, &str, &Tensor)> {
    let live = live_values(graph);
    graph
        .values()
        .filter(|(id, _)| live[id.index()])
        .filter_map(|(id, value)| Some((id, value.name(), value.tensor()?)))
        .collect()
}

/// The exact length in bytes of the safetensors file that holds a graph's [`weights`], without
/// metadata: 8 bytes for the header's length, the header as JSON padded to a multiple of 8, and
/// the data. Packed 4-bit tensors count as the `U8` bytes they are stored in.
///
/// ```
/// use opt_core::{DType, GraphBuilder, Tensor, TensorType};
///
/// let mut b = GraphBuilder::new("bias");
/// let x = b.input("x", TensorType::new(DType::F32, [1, 100]))?;
/// let bias = b.variable("b", Tensor::zeros(DType::F32, [100])?)?;
/// let y = b.add(x, bias)?;
/// b.output("y", y)?;
/// // {"b":{"dtype":"F32","shape":[100],"data_offsets":[0,400]}} takes 58 bytes, 64 when padded.
/// assert_eq!(opt_eval::weights_bytes(&b.finish()?)?, 8 + 64 + 400);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Unsupported`](opt_core::ErrorKind::Unsupported) if safetensors has no such dtype.
pub fn weights_bytes(graph: &Graph) -> Result<u64> {
    file_bytes(weights(graph).into_iter().map(|(_, name, t)| (name, t)))
}

/// The exact length of a safetensors file of named tensors, without metadata.
fn file_bytes<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<u64> {
    let mut entries = Vec::new();
    for (name, tensor) in tensors {
        let (dtype, shape) = stored(tensor).at(|| name.to_string())?;
        entries.push((dtype, name.to_string(), shape, tensor.size_in_bytes()));
    }
    // The order in which `safetensors::serialize` lays tensors out: it decides how many digits
    // the offsets have.
    entries.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let mut offset = 0;
    let infos = entries.into_iter().map(|(dtype, name, shape, bytes)| {
        let info = TensorInfo {
            dtype,
            shape,
            data_offsets: (offset, offset + bytes),
        };
        offset += bytes;
        (name, info)
    });
    let fail = |e: &dyn std::fmt::Display| Error::invalid(format!("safetensors header: {e}"));
    let metadata = Metadata::new(None, infos.collect()).map_err(|e| fail(&e))?;
    let header = serde_json::to_string(&metadata).map_err(|e| fail(&e))?;
    Ok((8 + header.len().next_multiple_of(8) + offset) as u64)
}

/// The dtype and shape that a tensor has in a safetensors file.
fn stored(tensor: &Tensor) -> Result<(Dtype, Vec<usize>)> {
    let dtype = match tensor.dtype() {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I8 => Dtype::I8,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
        DType::I4 | DType::U4 => return Ok((Dtype::U8, vec![tensor.size_in_bytes()])),
        other => {
            return Err(Error::unsupported(format!(
                "safetensors has no dtype {other}"
            )));
        }
    };
    Ok((dtype, tensor.shape().to_vec()))
}

/// Which values the outputs depend on, indexed by value.
pub(crate) fn live_values(graph: &Graph) -> Vec<bool> {
    let mut live = vec![false; graph.value_bound()];
    for output in graph.outputs() {
        live[output.index()] = true;
    }
    for (_, node) in graph.nodes().rev() {
        if node.outputs().iter().any(|o| live[o.index()]) {
            for input in node.inputs() {
                live[input.index()] = true;
            }
        }
    }
    live
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use proptest::prelude::*;

    struct View<'a>(&'a Tensor);

    impl safetensors::View for View<'_> {
        fn dtype(&self) -> Dtype {
            stored(self.0).unwrap().0
        }
        fn shape(&self) -> &[usize] {
            self.0.shape()
        }
        fn data(&self) -> Cow<'_, [u8]> {
            Cow::Borrowed(self.0.bytes().unwrap())
        }
        fn data_len(&self) -> usize {
            self.0.size_in_bytes()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_length_is_that_of_the_file(
            tensors in prop::collection::btree_map(
                "[a-z.\"\\\\é]{1,12}",
                (0usize..DType::ALL.len() - 2, prop::collection::vec(0usize..20, 0..3)),
                0..12,
            )
        ) {
            let tensors: Vec<(String, Tensor)> = tensors
                .into_iter()
                .map(|(name, (d, shape))| (name, Tensor::zeros(DType::ALL[d], shape).unwrap()))
                .collect();
            let file = safetensors::serialize(
                tensors.iter().map(|(name, t)| (name.as_str(), View(t))),
                None,
            )
            .unwrap();
            let length = file_bytes(tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
            prop_assert_eq!(length, file.len() as u64);
        }
    }

    #[test]
    fn packed_tensors_count_their_bytes() {
        let packed = Tensor::zeros(DType::I4, [3, 5]).unwrap();
        let bytes = Tensor::zeros(DType::U8, [8]).unwrap();
        let length = |t: &Tensor| file_bytes([("w", t)].into_iter()).unwrap();
        assert_eq!(length(&packed), length(&bytes));
    }
}
