//! Putting a model's bytes into files.

use std::io::{Seek, Write};
use std::path::Path;

use bytes::Bytes;
use opt_core::file::write_atomically;
use opt_core::{Error, Result, Tensor};
use prost::Message;

use crate::proto::{ModelProto, StringStringEntryProto, tensor_proto};

/// Protobuf messages cannot be longer than 2 GiB.
const LIMIT: usize = i32::MAX as usize;
/// Room for what is no tensor content, which is small.
const MARGIN: usize = 64 << 20;
/// Tensors smaller than this stay in the model's file.
const SMALL: usize = 1024;
/// Content in a file of its own starts at multiples of this, so that it can be mapped.
const ALIGNMENT: u64 = 64;

fn total(tensors: &[Tensor]) -> usize {
    tensors.iter().map(Tensor::size_in_bytes).sum()
}

/// Puts content into the model's message.
fn inline(model: &mut ModelProto, tensors: &[Tensor], below: usize) -> Result<()> {
    let graph = model.graph.as_mut().expect("the exporter made it");
    for (proto, tensor) in graph.initializer.iter_mut().zip(tensors) {
        if tensor.size_in_bytes() < below {
            proto.raw_data = Some(Bytes::copy_from_slice(tensor.bytes()?));
        }
    }
    Ok(())
}

pub(super) fn bytes(mut model: ModelProto, tensors: &[Tensor]) -> Result<Vec<u8>> {
    if total(tensors) > LIMIT - MARGIN {
        return Err(Error::unsupported(format!(
            "{} bytes of tensors are more than one ONNX file can hold; save the model to a path, \
             with external data",
            total(tensors)
        )));
    }
    inline(&mut model, tensors, usize::MAX)?;
    Ok(model.encode_to_vec())
}

pub(super) fn save(
    mut model: ModelProto,
    tensors: &[Tensor],
    path: &Path,
    external: Option<bool>,
) -> Result<()> {
    let large = total(tensors) > LIMIT - MARGIN;
    if !external.unwrap_or(large) {
        let bytes = bytes(model, tensors)?;
        return write_atomically(path, |file| Ok(file.write_all(&bytes)?));
    }
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| Error::invalid("the path has no file name that is UTF-8"))?;
    let location = format!("{name}.data");
    inline(&mut model, tensors, SMALL)?;
    let graph = model.graph.as_mut().expect("the exporter made it");
    write_atomically(path.with_file_name(&location), |file| {
        let mut file = std::io::BufWriter::new(file);
        for (proto, tensor) in graph.initializer.iter_mut().zip(tensors) {
            if proto.raw_data.is_some() {
                continue;
            }
            let offset = file.stream_position()?.next_multiple_of(ALIGNMENT);
            file.seek(std::io::SeekFrom::Start(offset))?;
            file.write_all(tensor.bytes()?)?;
            proto.data_location = Some(tensor_proto::DataLocation::External as i32);
            let entries = [
                ("location", location.clone()),
                ("offset", offset.to_string()),
                ("length", tensor.size_in_bytes().to_string()),
            ];
            proto.external_data = entries
                .into_iter()
                .map(|(key, value)| StringStringEntryProto {
                    key: Some(key.into()),
                    value: Some(value),
                })
                .collect();
        }
        Ok(file.flush()?)
    })?;
    let bytes = model.encode_to_vec();
    write_atomically(path, |file| Ok(file.write_all(&bytes)?))
}
