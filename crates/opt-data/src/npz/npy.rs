//! The `.npy` format: a header as a Python literal, then the elements.

use std::io::{Read, Write};

use opt_core::DType;
use opt_core::tensor::Buffer;

use crate::{Error, ErrorKind, Result, Tensor};

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The longest header that is read; numpy's own default.
const MAX_HEADER: usize = 10_000;

/// The most axes that numpy has.
const MAX_RANK: usize = 64;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) dtype: DType,
    big_endian: bool,
    fortran: bool,
    shape: Vec<usize>,
    /// Bytes of the elements.
    pub(super) data: usize,
    /// Bytes from the start of the file to the elements.
    pub(super) start: usize,
}

pub(super) fn damaged(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}

/// The error of reading: a file that ends too early is damaged, all else is the system's matter.
pub(super) fn read_error(e: std::io::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    match e.kind() {
        UnexpectedEof => damaged("the file is cut off"),
        InvalidData | InvalidInput | Other => damaged(e.to_string()).with_source(e),
        _ => Error::from(e),
    }
}

impl Header {
    pub(super) fn read(from: &mut impl Read) -> Result<Header> {
        let mut start = [0u8; 8];
        from.read_exact(&mut start).map_err(read_error)?;
        if !start.starts_with(MAGIC) {
            return Err(damaged(
                "not a .npy file: it does not begin with \\x93NUMPY",
            ));
        }
        let (len, fixed) = match start[6] {
            1 => {
                let mut len = [0u8; 2];
                from.read_exact(&mut len).map_err(read_error)?;
                (usize::from(u16::from_le_bytes(len)), 10)
            }
            2 | 3 => {
                let mut len = [0u8; 4];
                from.read_exact(&mut len).map_err(read_error)?;
                let len = u32::from_le_bytes(len);
                (usize::try_from(len).unwrap_or(usize::MAX), 12)
            }
            other => {
                return Err(Error::unsupported(format!(
                    "version {other}.{} of the .npy format; 1 to 3 are known",
                    start[7]
                )));
            }
        };
        if len > MAX_HEADER {
            return Err(damaged(format!(
                "a header of {len} bytes; at most {MAX_HEADER} are read"
            )));
        }
        let mut text = vec![0u8; len];
        from.read_exact(&mut text).map_err(read_error)?;
        let text = std::str::from_utf8(&text)
            .map_err(|_| damaged("the header is neither ASCII nor UTF-8"))?;
        Header::parse(text, fixed + len)
    }

    fn parse(text: &str, start: usize) -> Result<Header> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        let mut rest = Literal(text);
        rest.expect('{')?;
        while !rest.eat('}') {
            let key = rest.string()?;
            rest.expect(':')?;
            let again = match key {
                "descr" => descr.replace(rest.descr()?).is_some(),
                "fortran_order" => fortran.replace(rest.bool()?).is_some(),
                "shape" => shape.replace(rest.tuple()?).is_some(),
                other => return Err(damaged(format!("unknown key {other:?} in the header"))),
            };
            if again {
                return Err(damaged(format!("the header has the key {key:?} twice")));
            }
            if !rest.eat(',') {
                rest.expect('}')?;
                break;
            }
        }
        rest.end()?;
        let missing = |key| damaged(format!("the header has no key {key:?}"));
        let (dtype, big_endian) = element(descr.ok_or_else(|| missing("descr"))?)?;
        let fortran = fortran.ok_or_else(|| missing("fortran_order"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        let size = dtype.bits() / 8;
        // An axis of size 0 must not hide others that overflow: strides are their products.
        let mut entries = shape.iter().map(|&d| d.max(1));
        let bound = entries.try_fold(size, |all, d| all.checked_mul(d));
        if bound.is_none_or(|b| b > isize::MAX as usize / 8) {
            return Err(damaged(format!("shape {shape:?} has too many elements")));
        }
        Ok(Header {
            dtype,
            big_endian,
            fortran,
            data: size * shape.iter().product::<usize>(),
            shape,
            start,
        })
    }

    /// Reads the elements, and makes sure that nothing follows them. The caller has compared
    /// [`Header::data`] with what there can be.
    pub(super) fn tensor(&self, from: &mut impl Read) -> Result<Tensor> {
        let mut buffer = Buffer::zeroed(self.data);
        from.read_exact(buffer.bytes_mut()).map_err(read_error)?;
        // At its end an archive's entry compares its checksum.
        if from.read(&mut [0]).map_err(read_error)? != 0 {
            return Err(damaged(format!(
                "bytes follow the {} of {}{:?}",
                self.data, self.dtype, self.shape
            )));
        }
        if self.big_endian {
            let size = self.dtype.bits() / 8;
            for element in buffer.bytes_mut().chunks_exact_mut(size) {
                element.reverse();
            }
        }
        if !self.fortran {
            return Tensor::from_buffer(self.dtype, &self.shape, buffer);
        }
        let reversed: Vec<usize> = self.shape.iter().rev().copied().collect();
        let axes: Vec<usize> = (0..reversed.len()).rev().collect();
        let columns = Tensor::from_buffer(self.dtype, reversed, buffer)?;
        Ok(columns.transpose(&axes)?.contiguous())
    }
}

/// The element type that a `descr` names, and whether its bytes are in big-endian order.
fn element(descr: &str) -> Result<(DType, bool)> {
    let unsupported = |what: &str| {
        Err(Error::unsupported(format!(
            "elements of numpy's dtype {descr:?} ({what})"
        )))
    };
    if descr.starts_with('[') {
        return unsupported("structured: save its fields one by one");
    }
    let (order, kind) = match descr.split_at_checked(1) {
        Some((order @ ("<" | ">" | "|" | "="), kind)) => (order, kind),
        _ => ("=", descr),
    };
    let dtype = match kind {
        "f4" => DType::F32,
        "f8" => DType::F64,
        "f2" => DType::F16,
        "i8" => DType::I64,
        "i4" => DType::I32,
        "i1" => DType::I8,
        "u1" => DType::U8,
        "b1" => DType::Bool,
        "i2" => return unsupported("i16: save it as int32"),
        "u2" => return unsupported("u16: save it as int32"),
        "u4" => return unsupported("u32: save it as int64"),
        "u8" => return unsupported("u64: save it as int64"),
        _ => {
            return match kind.chars().next() {
                Some('O') => unsupported("Python objects, which only Python can read"),
                Some('U') => unsupported("unicode text"),
                Some('S' | 'a') => unsupported("byte strings"),
                Some('c') => unsupported("complex numbers: save the two parts"),
                Some('M' | 'm') => unsupported("dates and durations"),
                Some('V') => unsupported("raw bytes, such as of bfloat16: save it as float32"),
                Some('f') => unsupported("a float of another size than 2, 4 and 8 bytes"),
                _ => Err(damaged(format!("the header has no dtype, but {descr:?}"))),
            };
        }
    };
    Ok((dtype, order == ">"))
}

/// What is left of a Python literal.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    fn skip(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn eat(&mut self, c: char) -> bool {
        self.skip();
        match self.0.strip_prefix(c) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// An error that quotes what comes next.
    fn expected<T>(&self, what: &str) -> Result<T> {
        let next: String = self.0.chars().take(20).collect();
        Err(damaged(format!(
            "expected {what} in the header, found {next:?}"
        )))
    }

    fn expect(&mut self, c: char) -> Result<()> {
        match self.eat(c) {
            true => Ok(()),
            false => self.expected(&format!("{c:?}")),
        }
    }

    fn end(&mut self) -> Result<()> {
        self.skip();
        match self.0.is_empty() {
            true => Ok(()),
            false => self.expected("the end"),
        }
    }

    fn string(&mut self) -> Result<&'a str> {
        self.skip();
        for quote in ['\'', '"'] {
            let text = self.0.strip_prefix(quote);
            if let Some((text, rest)) = text.and_then(|t| t.split_once(quote)) {
                self.0 = rest;
                return Ok(text);
            }
        }
        self.expected("text in quotes")
    }

    /// The value of `descr`: text, or for structured dtypes a list, which is given as it stands.
    fn descr(&mut self) -> Result<&'a str> {
        self.skip();
        if !self.0.starts_with('[') {
            return self.string();
        }
        let mut depth = 0usize;
        for (i, c) in self.0.char_indices() {
            match c {
                '[' => depth += 1,
                ']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let (list, rest) = self.0.split_at(i + 1);
                self.0 = rest;
                return Ok(list);
            }
        }
        self.expected("a list that ends")
    }

    fn bool(&mut self) -> Result<bool> {
        self.skip();
        for (name, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.0.strip_prefix(name) {
                self.0 = rest;
                return Ok(value);
            }
        }
        self.expected("True or False")
    }

    fn tuple(&mut self) -> Result<Vec<usize>> {
        let mut sizes = Vec::new();
        self.expect('(')?;
        while !self.eat(')') {
            self.skip();
            let digits = self.0.len()
                - self
                    .0
                    .trim_start_matches(|c: char| c.is_ascii_digit())
                    .len();
            let (number, rest) = self.0.split_at(digits);
            let Ok(size) = number.parse() else {
                return self.expected("a size");
            };
            if sizes.len() == MAX_RANK {
                return Err(damaged(format!("more than {MAX_RANK} axes")));
            }
            sizes.push(size);
            // Python 2 wrote long integers so.
            self.0 = rest.strip_prefix('L').unwrap_or(rest);
            if !self.eat(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(sizes)
    }
}

/// numpy's name of an element type.
fn descr(dtype: DType) -> Result<&'static str> {
    Ok(match dtype {
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::F16 => "<f2",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::I8 => "|i1",
        DType::U8 => "|u1",
        DType::Bool => "|b1",
        DType::BF16 => {
            return Err(Error::unsupported(
                "numpy has no bf16; cast the tensor to f32",
            ));
        }
        other => {
            return Err(Error::unsupported(format!(
                "numpy has no {other}; cast the tensor to another dtype"
            )));
        }
    })
}

/// Writes a tensor, byte for byte as `numpy.save` does.
pub(super) fn write(to: &mut impl Write, tensor: &Tensor) -> Result<()> {
    let descr = descr(tensor.dtype())?;
    if tensor.rank() > MAX_RANK {
        return Err(Error::unsupported(format!(
            "numpy has at most {MAX_RANK} axes, the tensor has {}",
            tensor.rank()
        )));
    }
    let sizes: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
    let shape = match &sizes[..] {
        [one] => format!("({one},)"),
        sizes => format!("({})", sizes.join(", ")),
    };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // numpy leaves room for the first axis to grow to 21 digits in place.
    let room = sizes.first().map_or(0, |s| 21usize.saturating_sub(s.len()));
    header.extend(std::iter::repeat_n(' ', room));
    let len = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.extend(std::iter::repeat_n(' ', len - 1 - header.len()));
    header.push('\n');
    let field = u16::try_from(len).expect("64 sizes of 20 digits");
    to.write_all(MAGIC)?;
    to.write_all(&[1, 0])?;
    to.write_all(&field.to_le_bytes())?;
    to.write_all(header.as_bytes())?;
    to.write_all(tensor.contiguous().bytes()?)?;
    Ok(())
}
