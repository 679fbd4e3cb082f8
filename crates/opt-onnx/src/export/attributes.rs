//! Attributes of nodes.

use bytes::Bytes;

use crate::proto::AttributeProto;
use crate::proto::attribute_proto::AttributeType;

fn named(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_string()),
        r#type: Some(kind as i32),
        ..AttributeProto::default()
    }
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        i: Some(value),
        ..named(name, AttributeType::Int)
    }
}

pub(super) fn float(name: &str, value: f64) -> AttributeProto {
    AttributeProto {
        f: Some(value as f32),
        ..named(name, AttributeType::Float)
    }
}

pub(super) fn ints(name: &str, values: impl IntoIterator<Item = i64>) -> AttributeProto {
    AttributeProto {
        ints: values.into_iter().collect(),
        ..named(name, AttributeType::Ints)
    }
}

pub(super) fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        s: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..named(name, AttributeType::String)
    }
}

/// Sizes as the integers of an attribute or initializer.
pub(super) fn signed(values: &[usize]) -> Vec<i64> {
    values.iter().map(|&v| v as i64).collect()
}
