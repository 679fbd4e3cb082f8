//! Tensors in IDX files, the format of MNIST.
//!
//! A file is a magic number (two zero bytes, the element type, the number of axes), the sizes of
//! the axes as 32-bit integers, and the elements, all in big-endian order (Y. LeCun, C. Cortes &
//! C. Burges, "The MNIST database of handwritten digits", 1998). MNIST, Fashion-MNIST, Kuzushiji-MNIST
//! and EMNIST are published so.
//!
//! Files may come from anywhere: no memory is taken for elements that are not there, whatever the
//! header says.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use opt_core::DType;
use opt_core::tensor::Buffer;

use crate::source::{Source, open, read_full, unpacked};
use crate::{Error, ErrorKind, Result, ResultExt, Tensor, TensorDataset, TrainTest};

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdxOptions {
    /// The most bytes that the elements of a file may take. Default: 1 GiB.
    pub max_bytes: u64,
}

impl Default for IdxOptions {
    fn default() -> IdxOptions {
        IdxOptions { max_bytes: 1 << 30 }
    }
}

impl IdxOptions {
    /// Another limit on the bytes of the elements.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> IdxOptions {
        self.max_bytes = bytes;
        self
    }
}

/// Reads an IDX file, plain or gzipped (recognised by its content).
///
/// The element types are read as `U8`, `I8`, `I32`, `F32` and `F64`; 16-bit integers become `I32`.
///
/// ```
/// use opt_core::DType;
/// use opt_data::idx;
///
/// # let path = std::env::temp_dir().join(format!("opt-idx-doc-{}", std::process::id()));
/// // Two bytes, of which the type is 8 and the rank 1.
/// std::fs::write(&path, [0, 0, 8, 1, 0, 0, 0, 2, 7, 9])?;
/// let labels = idx::read(&path, idx::IdxOptions::default())?;
/// assert_eq!((labels.dtype(), labels.to_f64s()), (DType::U8, vec![7.0, 9.0]));
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// The path of the error names the file and the byte in it, counted from 0 and after unpacking.
/// - [`ErrorKind::Io`]: the file cannot be read.
/// - [`ErrorKind::Format`]: it does not begin as an IDX file, has fewer or more elements than its
///   header says, or the gzip stream is damaged.
/// - [`ErrorKind::InvalidArgument`]: the elements take more than [`IdxOptions::max_bytes`].
pub fn read(path: impl AsRef<Path>, options: IdxOptions) -> Result<Tensor> {
    let path = path.as_ref();
    open(path)
        .and_then(|source| parse(source, options))
        .at(|| path.display().to_string())
}

/// Reads the bytes of an IDX file, plain or gzipped.
///
/// # Errors
/// As [`read`].
pub fn from_bytes(bytes: &[u8], options: IdxOptions) -> Result<Tensor> {
    parse(unpacked(bytes, Some(bytes.len() as u64))?, options)
}

fn damaged(at: u64, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message).at(format!("byte {at}"))
}

fn parse(mut source: Source<'_>, options: IdxOptions) -> Result<Tensor> {
    let from = &mut source.bytes;
    let [zero, nought, kind, rank] = word(from, 0, "the magic number")?;
    if (zero, nought) != (0, 0) {
        return Err(damaged(
            0,
            format!("not an IDX file: expected two zero bytes, found {zero:#04x} {nought:#04x}"),
        ));
    }
    // The bytes of an element in the file, and what it is read as.
    let (size, dtype) = match kind {
        0x08 => (1, DType::U8),
        0x09 => (1, DType::I8),
        0x0b => (2, DType::I32),
        0x0c => (4, DType::I32),
        0x0d => (4, DType::F32),
        0x0e => (8, DType::F64),
        other => {
            return Err(damaged(
                2,
                format!(
                    "unknown element type {other:#04x}; expected 0x08 (u8), 0x09 (i8), 0x0b \
                     (i16), 0x0c (i32), 0x0d (f32) or 0x0e (f64)"
                ),
            ));
        }
    };
    let mut shape = Vec::with_capacity(usize::from(rank));
    for axis in 0..u64::from(rank) {
        let size = u32::from_be_bytes(word(from, 4 + 4 * axis, "the size of an axis")?);
        shape.push(size as usize);
    }
    let start = 4 + 4 * u64::from(rank);
    // An axis of size 0 must not hide others that overflow: strides are their products.
    let bound = shape
        .iter()
        .try_fold(8usize, |all, &d| all.checked_mul(d.max(1)));
    if bound.is_none_or(|b| b > isize::MAX as usize) {
        return Err(damaged(4, format!("shape {shape:?} has too many elements")));
    }
    let count: usize = shape.iter().product();
    let need = count * size;
    // What is not in a plain file is known before memory is taken.
    if let Some(len) = source.len {
        let there = len.saturating_sub(start);
        if there != need as u64 {
            return Err(damaged(start, elements(&shape, need, there)));
        }
    }
    let taken = dtype.bytes(count).max(need) as u64;
    if taken > options.max_bytes {
        return Err(Error::invalid(format!(
            "the elements take {taken} bytes, the limit is {}; raise `IdxOptions::max_bytes` if \
             the file can be trusted",
            options.max_bytes
        )));
    }
    let mut buffer = match source.len {
        Some(_) => {
            let mut buffer = Buffer::zeroed(need);
            let there = read_full(from, buffer.bytes_mut()).at(|| format!("byte {start}"))?;
            if there != need {
                return Err(damaged(start, elements(&shape, need, there as u64)));
            }
            buffer
        }
        None => grow(from, &shape, need, start)?,
    };
    let end = start + need as u64;
    if read_full(from, &mut [0]).at(|| format!("byte {end}"))? != 0 {
        let message = format!("bytes follow the elements of shape {shape:?}");
        return Err(damaged(end, message));
    }
    if size > 1 {
        for element in buffer.bytes_mut().chunks_exact_mut(size) {
            element.reverse();
        }
    }
    if kind == 0x0b {
        let wide = buffer.bytes().chunks_exact(2);
        let wide: Vec<i32> = wide
            .map(|b| i32::from(i16::from_le_bytes([b[0], b[1]])))
            .collect();
        buffer = Buffer::from_slice(&wide);
    }
    Tensor::from_buffer(dtype, shape, buffer)
}

fn elements(shape: &[usize], need: usize, there: u64) -> String {
    format!("the elements of shape {shape:?} take {need} bytes, {there} are there")
}

fn word(from: &mut impl BufRead, at: u64, what: &str) -> Result<[u8; 4]> {
    let mut word = [0; 4];
    match read_full(from, &mut word).at(|| format!("byte {at}"))? {
        4 => Ok(word),
        n => Err(damaged(
            at + n as u64,
            format!("the file is cut off in {what}"),
        )),
    }
}

/// Reads elements of a stream that may end before: memory follows what arrives.
fn grow(from: &mut impl Read, shape: &[usize], need: usize, start: u64) -> Result<Buffer> {
    const BLOCK: usize = 1 << 20;
    let mut blocks = Vec::new();
    let mut left = need;
    while left > 0 {
        let mut block = Vec::new();
        let read = from
            .by_ref()
            .take(left.min(BLOCK) as u64)
            .read_to_end(&mut block);
        read.map_err(crate::source::from_io)
            .at(|| format!("byte {}", start + (need - left) as u64))?;
        if block.is_empty() {
            let message = elements(shape, need, (need - left) as u64);
            return Err(damaged(start, message));
        }
        left -= block.len();
        blocks.push(block);
    }
    let mut buffer = Buffer::zeroed(need);
    let mut rest = buffer.bytes_mut();
    for block in blocks {
        let (head, tail) = rest.split_at_mut(block.len());
        head.copy_from_slice(&block);
        rest = tail;
    }
    Ok(buffer)
}

/// A data set of a file of images and a file of labels: `f32` `[N, 1, H, W]` with pixels in
/// 0..=255 (scale them with [`Scale`](crate::Scale) or a fitted transform), and `i64` `[N]`.
///
/// [`mnist`] finds files by their usual names; this is for others, such as EMNIST's.
///
/// # Errors
/// As [`read`]; [`ErrorKind::Shape`] if the images are not `[N, H, W]`, the labels not `[N]`, or
/// their numbers differ; [`ErrorKind::DType`] if one is not of bytes; [`ErrorKind::Data`] if there
/// are no examples.
pub fn labelled_images(
    images: impl AsRef<Path>,
    labels: impl AsRef<Path>,
    options: IdxOptions,
) -> Result<TensorDataset> {
    let (images, labels) = (images.as_ref(), labels.as_ref());
    let pixels = || bytes(images, options, "images [N, H, W]", 3);
    let pixels = pixels().at(|| images.display().to_string())?;
    let classes = || -> Result<Tensor> {
        let classes = bytes(labels, options, "labels [N]", 1)?;
        let (found, expected) = (classes.len(), pixels.shape()[0]);
        if found != expected {
            return Err(Error::shape(format!(
                "expected {expected} labels, one an image, found {found}"
            )));
        }
        Ok(classes.cast(DType::I64))
    };
    let classes = classes().at(|| labels.display().to_string())?;
    let &[n, h, w] = pixels.shape() else {
        unreachable!("the rank is checked")
    };
    let pixels = pixels.cast(DType::F32).reshape([n, 1, h, w])?;
    TensorDataset::new(vec![pixels, classes]).at(|| images.display().to_string())
}

fn bytes(path: &Path, options: IdxOptions, what: &str, rank: usize) -> Result<Tensor> {
    let tensor = parse(open(path)?, options)?;
    if tensor.rank() != rank {
        return Err(Error::shape(format!(
            "expected {what}, found shape {:?}",
            tensor.shape()
        )));
    }
    if tensor.dtype() != DType::U8 {
        return Err(Error::dtype(format!(
            "expected {what} of u8, found {}",
            tensor.dtype()
        )));
    }
    Ok(tensor)
}

/// MNIST, or a data set of the same files and ten classes (Fashion-MNIST, Kuzushiji-MNIST), from a
/// folder: images `f32` `[N, 1, H, W]` with pixels in 0..=255, and labels `i64` in 0..10.
///
/// The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`
/// and `t10k-labels-idx1-ubyte`, each as it is or with `.gz`, also with a dot before `idx`. They
/// lie in the folder itself or in its `MNIST/raw` or `raw`, where torchvision puts them.
///
/// ```no_run
/// use opt_data::{Scale, mnist};
///
/// let data = mnist("data/mnist")?;
/// let scale = Scale::new(1.0 / 255.0, 0.0)?;
/// let (train, test) = (data.train.map(0, &scale)?, data.test.map(0, &scale)?);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// As [`labelled_images`]; [`ErrorKind::Io`] if a file is not there; [`ErrorKind::Data`] if a label
/// is not below 10.
pub fn mnist(folder: impl AsRef<Path>) -> Result<TrainTest> {
    let folder = folder.as_ref();
    let part = |part: &str| -> Result<TensorDataset> {
        let images = find(folder, &format!("{part}-images"), "idx3-ubyte")?;
        let labels = find(folder, &format!("{part}-labels"), "idx1-ubyte")?;
        let data = labelled_images(images, &labels, IdxOptions::default())?;
        data.check_labels(1, 10)
            .at(|| labels.display().to_string())?;
        Ok(data)
    };
    Ok(TrainTest {
        train: part("train")?,
        test: part("t10k")?,
    })
}

fn find(folder: &Path, stem: &str, kind: &str) -> Result<PathBuf> {
    for place in ["", "MNIST/raw", "raw"] {
        for separator in ["-", "."] {
            for end in ["", ".gz"] {
                let path = folder
                    .join(place)
                    .join(format!("{stem}{separator}{kind}{end}"));
                if path.is_file() {
                    return Ok(path);
                }
            }
        }
    }
    Err(Error::new(
        ErrorKind::Io,
        format!("expected a file {stem}-{kind} or {stem}-{kind}.gz"),
    )
    .at(folder.display().to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::Dataset;
    use proptest::prelude::*;

    fn file(kind: u8, shape: &[u32], elements: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, kind, shape.len() as u8];
        shape.iter().for_each(|d| out.extend(d.to_be_bytes()));
        out.extend(elements);
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn tensor(bytes: &[u8]) -> Result<Tensor> {
        from_bytes(bytes, IdxOptions::default())
    }

    #[test]
    fn every_element_type_plain_and_gzipped() {
        let be = |v: Vec<Vec<u8>>| v.concat();
        let cases = [
            (
                0x08,
                DType::U8,
                vec![0, 127, 128, 255],
                vec![0., 127., 128., 255.],
            ),
            (
                0x09,
                DType::I8,
                vec![0, 127, 128, 255],
                vec![0., 127., -128., -1.],
            ),
            (
                0x0b,
                DType::I32,
                be([0i16, -2, 300, i16::MIN]
                    .map(|v| v.to_be_bytes().to_vec())
                    .to_vec()),
                vec![0., -2., 300., -32768.],
            ),
            (
                0x0c,
                DType::I32,
                be([0i32, -2, 70000, i32::MAX]
                    .map(|v| v.to_be_bytes().to_vec())
                    .to_vec()),
                vec![0., -2., 70000., f64::from(i32::MAX)],
            ),
            (
                0x0d,
                DType::F32,
                be([0f32, -2.5, 1e30, 0.125]
                    .map(|v| v.to_be_bytes().to_vec())
                    .to_vec()),
                vec![0., -2.5, f64::from(1e30f32), 0.125],
            ),
            (
                0x0e,
                DType::F64,
                be([0f64, -2.5, 1e300, 0.1]
                    .map(|v| v.to_be_bytes().to_vec())
                    .to_vec()),
                vec![0., -2.5, 1e300, 0.1],
            ),
        ];
        for (kind, dtype, elements, values) in cases {
            let plain = file(kind, &[2, 2], &elements);
            for bytes in [gzip(&plain), plain] {
                let read = tensor(&bytes).unwrap();
                assert_eq!((read.dtype(), read.shape()), (dtype, &[2, 2][..]));
                assert_eq!(read.to_f64s(), values);
            }
        }
        assert_eq!(tensor(&file(8, &[], &[5])).unwrap().item().unwrap(), 5.0);
        assert_eq!(tensor(&file(8, &[0, 3], &[])).unwrap().shape(), [0, 3]);
    }

    #[test]
    fn bad_files_are_errors_that_name_the_byte() {
        let huge = [u32::MAX; 9];
        let cases: [(Vec<u8>, &str); 9] = [
            (vec![], "byte 0: the file is cut off in the magic number"),
            (
                vec![0, 0, 8],
                "byte 3: the file is cut off in the magic number",
            ),
            (
                vec![1, 0, 8, 1],
                "byte 0: not an IDX file: expected two zero bytes, found 0x01 0x00",
            ),
            (
                file(7, &[1], &[1]),
                "byte 2: unknown element type 0x07; expected 0x08 (u8), 0x09 (i8), 0x0b (i16), \
                 0x0c (i32), 0x0d (f32) or 0x0e (f64)",
            ),
            (
                vec![0, 0, 8, 2, 0, 0, 0, 1, 0],
                "byte 9: the file is cut off in the size of an axis",
            ),
            (
                file(8, &[2, 3], &[1; 5]),
                "byte 12: the elements of shape [2, 3] take 6 bytes, 5 are there",
            ),
            (
                file(0xd, &[2], &[1; 9]),
                "byte 8: the elements of shape [2] take 8 bytes, 9 are there",
            ),
            (
                file(8, &huge, &[]),
                "byte 4: shape [4294967295, 4294967295, 4294967295, 4294967295, 4294967295, \
                 4294967295, 4294967295, 4294967295, 4294967295] has too many elements",
            ),
            (
                file(8, &[0, u32::MAX, u32::MAX, u32::MAX], &[]),
                "byte 4: shape [0, 4294967295, 4294967295, 4294967295] has too many elements",
            ),
        ];
        for (bytes, message) in cases {
            let error = tensor(&bytes).unwrap_err();
            assert_eq!(
                (error.kind(), error.to_string()),
                (ErrorKind::Format, message.into())
            );
        }
        // What a gzipped stream holds shows only when it is unpacked.
        let cut = gzip(&file(8, &[2, 3], &[1; 5]));
        let error = tensor(&cut).unwrap_err().to_string();
        assert_eq!(
            error,
            "byte 12: the elements of shape [2, 3] take 6 bytes, 5 are there"
        );
        let long = gzip(&file(8, &[2, 3], &[1; 7]));
        let error = tensor(&long).unwrap_err().to_string();
        assert_eq!(error, "byte 18: bytes follow the elements of shape [2, 3]");
        let whole = gzip(&file(8, &[2, 3], &[1; 6]));
        for end in 2..whole.len() {
            assert_eq!(
                tensor(&whole[..end]).unwrap_err().kind(),
                ErrorKind::Format,
                "{end}"
            );
        }
    }

    #[test]
    fn sizes_are_bounded_by_the_limit_and_by_what_is_there() {
        let bytes = gzip(&file(8, &[1 << 20], &vec![0; 1 << 20]));
        let limit = IdxOptions::default().max_bytes(1000);
        let error = from_bytes(&bytes, limit).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        // A gigabyte by the header, in a stream of a few bytes: it is not taken.
        let claim = gzip(&file(8, &[1 << 30], &[1; 10]));
        let error = tensor(&claim).unwrap_err();
        assert_eq!(
            error.to_string(),
            "byte 8: the elements of shape [1073741824] take 1073741824 bytes, 10 are there"
        );
    }

    fn write_mnist(folder: &Path, gz: bool, label: u8) {
        std::fs::create_dir_all(folder).unwrap();
        for (part, n) in [("train", 3u32), ("t10k", 2)] {
            let pixels: Vec<u8> = (0..n * 12).map(|v| v as u8 * 7).collect();
            let labels: Vec<u8> = (0..n).map(|v| label + v as u8).collect();
            let images = file(8, &[n, 3, 4], &pixels);
            let labels = file(8, &[n], &labels);
            let (end, images, labels) = match gz {
                true => (".gz", gzip(&images), gzip(&labels)),
                false => ("", images, labels),
            };
            std::fs::write(
                folder.join(format!("{part}-images-idx3-ubyte{end}")),
                images,
            )
            .unwrap();
            std::fs::write(
                folder.join(format!("{part}-labels-idx1-ubyte{end}")),
                labels,
            )
            .unwrap();
        }
    }

    #[test]
    fn mnist_is_found_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        let zipped = dir.path().join("zipped");
        write_mnist(&plain, false, 5);
        write_mnist(&zipped.join("MNIST/raw"), true, 5);
        for folder in [plain, zipped] {
            let data = mnist(folder).unwrap();
            assert_eq!((data.train.len(), data.test.len()), (3, 2));
            let images = &data.test.fields()[0];
            assert_eq!(images.shape(), [2, 1, 3, 4]);
            let expected = (0..24).map(|v| f64::from(v as u8 * 7));
            assert!(images.to_f64s().into_iter().eq(expected));
            assert_eq!(data.train.labels(1).unwrap(), [5, 6, 7]);
        }
    }

    #[test]
    fn a_folder_that_is_not_mnist_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let error = mnist(folder).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        let expected = "expected a file train-images-idx3-ubyte or train-images-idx3-ubyte.gz";
        assert_eq!(
            error.to_string(),
            format!("{}: {expected}", folder.display())
        );
        write_mnist(folder, false, 8);
        let error = mnist(folder).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        let place = folder.join("train-labels-idx1-ubyte");
        assert_eq!(
            error.to_string(),
            format!(
                "{}: field 1: row 2: label 10 is not in 0..10",
                place.display()
            )
        );
        std::fs::write(&place, file(8, &[2], &[1, 2])).unwrap();
        let error = mnist(folder).unwrap_err();
        assert!(error.to_string().ends_with("one an image, found 2"));
        std::fs::write(&place, file(9, &[3], &[1, 2, 3])).unwrap();
        assert_eq!(mnist(folder).unwrap_err().kind(), ErrorKind::DType);
        std::fs::write(&place, file(8, &[3, 1], &[1, 2, 3])).unwrap();
        assert_eq!(mnist(folder).unwrap_err().kind(), ErrorKind::Shape);
        let images = folder.join("train-images-idx3-ubyte");
        std::fs::write(&place, file(8, &[0], &[])).unwrap();
        std::fs::write(images, file(8, &[0, 2, 2], &[])).unwrap();
        assert_eq!(mnist(folder).unwrap_err().kind(), ErrorKind::Data);
        let gz = folder.join("fake.gz");
        std::fs::write(&gz, file(8, &[1], &[1])).unwrap();
        let error = read(&gz, IdxOptions::default()).unwrap_err();
        assert!(error.to_string().ends_with("holds no gzip stream"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_bytes_make_it_panic(
            kind in 7u8..16,
            shape in prop::collection::vec(prop_oneof![0u32..4, any::<u32>()], 0..4),
            rest in prop::collection::vec(any::<u8>(), 0..40),
            cut in 0usize..60,
            gz: bool,
        ) {
            let mut bytes = file(kind, &shape, &rest);
            bytes.truncate(cut);
            let bytes = if gz { gzip(&bytes) } else { bytes };
            if let Ok(read) = tensor(&bytes) {
                prop_assert_eq!(read.to_f64s().len(), read.len());
            }
        }
    }
}
