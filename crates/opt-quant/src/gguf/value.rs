//! What a GGUF file notes about its model.

use super::damaged;
use opt_core::{Error, Result};

/// Arrays in arrays that are read.
const DEPTH: usize = 4;

/// A value of a file's metadata.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// An unsigned 8-bit integer.
    U8(u8),
    /// A signed 8-bit integer.
    I8(i8),
    /// An unsigned 16-bit integer.
    U16(u16),
    /// A signed 16-bit integer.
    I16(i16),
    /// An unsigned 32-bit integer.
    U32(u32),
    /// A signed 32-bit integer.
    I32(i32),
    /// Single precision.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// Values of one type.
    Array(Vec<Value>),
    /// An unsigned 64-bit integer.
    U64(u64),
    /// A signed 64-bit integer.
    I64(i64),
    /// Double precision.
    F64(f64),
}

macro_rules! from {
    ($($type:ty => $variant:ident),*) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Value {
                Value::$variant(value.into())
            }
        })*
    };
}

from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool,
    &str => String, String => String, u64 => U64, i64 => I64, f64 => F64);

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Value {
        Value::Array(values.into_iter().map(Into::into).collect())
    }
}

impl Value {
    /// The number of its type in the format.
    fn code(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::String(_) => 8,
            Value::Array(_) => 9,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// Appends the number of its type, and itself.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<()> {
        out.extend(self.code().to_le_bytes());
        self.write_content(out, 0)
    }

    fn write_content(&self, out: &mut Vec<u8>, depth: usize) -> Result<()> {
        match self {
            Value::U8(x) => out.push(*x),
            Value::I8(x) => out.extend(x.to_le_bytes()),
            Value::U16(x) => out.extend(x.to_le_bytes()),
            Value::I16(x) => out.extend(x.to_le_bytes()),
            Value::U32(x) => out.extend(x.to_le_bytes()),
            Value::I32(x) => out.extend(x.to_le_bytes()),
            Value::F32(x) => out.extend(x.to_le_bytes()),
            Value::Bool(x) => out.push(u8::from(*x)),
            Value::String(x) => write_text(x, out),
            Value::U64(x) => out.extend(x.to_le_bytes()),
            Value::I64(x) => out.extend(x.to_le_bytes()),
            Value::F64(x) => out.extend(x.to_le_bytes()),
            Value::Array(items) => {
                if depth == DEPTH {
                    return Err(too_deep());
                }
                // An empty array has to have a type all the same.
                let code = items.first().map_or(0, Value::code);
                if items.iter().any(|item| item.code() != code) {
                    return Err(Error::invalid("an array of a GGUF file has one type"));
                }
                out.extend(code.to_le_bytes());
                out.extend((items.len() as u64).to_le_bytes());
                for item in items {
                    item.write_content(out, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// Reads the number of a type and a value of it.
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Value> {
        let code = from.u32()?;
        Value::read_content(code, from, 0)
    }

    fn read_content(code: u32, from: &mut Reader<'_>, depth: usize) -> Result<Value> {
        Ok(match code {
            0 => Value::U8(from.array::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(from.array()?)),
            2 => Value::U16(u16::from_le_bytes(from.array()?)),
            3 => Value::I16(i16::from_le_bytes(from.array()?)),
            4 => Value::U32(from.u32()?),
            5 => Value::I32(i32::from_le_bytes(from.array()?)),
            6 => Value::F32(f32::from_le_bytes(from.array()?)),
            7 => match from.array::<1>()?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(from.damaged(format!("{other} where 0 or 1 is expected"))),
            },
            8 => Value::String(from.text()?),
            9 if depth == DEPTH => return Err(too_deep()),
            9 => {
                let code = from.u32()?;
                let len = from.u64()?;
                // Every element takes at least a byte, so that the file's length bounds memory.
                if len > from.left() as u64 {
                    return Err(from.damaged(format!("an array of {len} entries does not fit")));
                }
                let items = (0..len).map(|_| Value::read_content(code, from, depth + 1));
                Value::Array(items.collect::<Result<_>>()?)
            }
            10 => Value::U64(from.u64()?),
            11 => Value::I64(i64::from_le_bytes(from.array()?)),
            12 => Value::F64(f64::from_le_bytes(from.array()?)),
            other => return Err(from.damaged(format!("no type has the number {other}"))),
        })
    }

    /// The value as an index or size, if it is an integer of any type that is not negative.
    pub fn as_usize(&self) -> Option<usize> {
        match *self {
            Value::U8(x) => Some(x.into()),
            Value::U16(x) => Some(x.into()),
            Value::U32(x) => usize::try_from(x).ok(),
            Value::U64(x) => usize::try_from(x).ok(),
            Value::I8(x) => usize::try_from(x).ok(),
            Value::I16(x) => usize::try_from(x).ok(),
            Value::I32(x) => usize::try_from(x).ok(),
            Value::I64(x) => usize::try_from(x).ok(),
            _ => None,
        }
    }
}

fn too_deep() -> Error {
    Error::unsupported(format!("arrays within {DEPTH} arrays in a GGUF file"))
}

/// Appends the length of a text, and the text.
pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A file's bytes, read from the front.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Where the next byte is read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// How many bytes have not been read.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn damaged(&self, message: impl std::fmt::Display) -> Error {
        damaged(format!("at byte {}: {message}", self.at))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let found = self.bytes[self.at..].get(..len);
        let found = found.ok_or_else(|| self.damaged("it ends there"))?;
        self.at += len;
        Ok(found)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let start = self.at;
        let len = self.u64()?;
        let len = usize::try_from(len).ok().filter(|&len| len <= self.left());
        let len = len.ok_or_else(|| damaged(format!("at byte {start}: a text beyond its end")))?;
        let text = std::str::from_utf8(self.take(len)?);
        let text = text.map_err(|e| damaged(format!("at byte {start}: {e}")).with_source(e))?;
        Ok(text.to_string())
    }
}
