//! CIFAR-10 and CIFAR-100 in their binary version.
//!
//! A file is a run of records: the label (CIFAR-100: the coarse label, then the fine one), then
//! 3 x 32 x 32 bytes, the red plane first, each in row-major order (A. Krizhevsky, "Learning
//! Multiple Layers of Features from Tiny Images", 2009;
//! <https://www.cs.toronto.edu/~kriz/cifar.html>). The memory taken follows from the sizes of the
//! files.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use opt_core::DType;
use opt_core::tensor::Buffer;

use crate::source::read_full;
use crate::{Error, ErrorKind, Result, ResultExt, Tensor, TensorDataset, TrainTest};

const PIXELS: usize = 3 * 32 * 32;

/// Which labels a record has, and which of them is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CifarLabel {
    /// CIFAR-10: the one label, in 0..10.
    Ten,
    /// CIFAR-100: the class, in 0..100.
    Fine,
    /// CIFAR-100: the superclass, in 0..20.
    Coarse,
}

impl CifarLabel {
    /// The number of classes.
    pub fn classes(self) -> usize {
        match self {
            CifarLabel::Ten => 10,
            CifarLabel::Fine => 100,
            CifarLabel::Coarse => 20,
        }
    }

    /// Labels at the start of a record, and the position of the one that is read.
    fn layout(self) -> (usize, usize) {
        match self {
            CifarLabel::Ten => (1, 0),
            CifarLabel::Coarse => (2, 0),
            CifarLabel::Fine => (2, 1),
        }
    }

    fn record(self) -> usize {
        self.layout().0 + PIXELS
    }
}

/// CIFAR-10 from a folder: images `f32` `[N, 3, 32, 32]` with pixels in 0..=255 (scale them with
/// [`Scale`](crate::Scale) or a fitted transform), and labels `i64` in 0..10.
///
/// The files are `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, in the folder
/// itself or in its `cifar-10-batches-bin`.
///
/// ```no_run
/// use opt_data::{Per, Standardize, cifar10};
///
/// let data = cifar10("data")?;
/// let scaler = Standardize::fit(&data.train, 0, Per::Channel)?;
/// let (train, test) = (data.train.map(0, &scaler)?, data.test.map(0, &scaler)?);
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// As [`read`].
pub fn cifar10(folder: impl AsRef<Path>) -> Result<TrainTest> {
    let folder = within(folder.as_ref(), "cifar-10-batches-bin", "test_batch.bin");
    let batches: Vec<PathBuf> = (1..=5)
        .map(|i| folder.join(format!("data_batch_{i}.bin")))
        .collect();
    Ok(TrainTest {
        train: read(&batches, CifarLabel::Ten)?,
        test: read(&[folder.join("test_batch.bin")], CifarLabel::Ten)?,
    })
}

/// CIFAR-100 from a folder, with the fine or the coarse labels; images as [`cifar10`].
///
/// The files are `train.bin` and `test.bin`, in the folder itself or in its `cifar-100-binary`.
///
/// # Errors
/// As [`read`]; [`ErrorKind::InvalidArgument`] for [`CifarLabel::Ten`].
pub fn cifar100(folder: impl AsRef<Path>, label: CifarLabel) -> Result<TrainTest> {
    if label == CifarLabel::Ten {
        return Err(Error::invalid(
            "CIFAR-100 has fine and coarse labels, not CIFAR-10's",
        ));
    }
    let folder = within(folder.as_ref(), "cifar-100-binary", "test.bin");
    Ok(TrainTest {
        train: read(&[folder.join("train.bin")], label)?,
        test: read(&[folder.join("test.bin")], label)?,
    })
}

/// The folder that the archive unpacks to, if it is there.
fn within(folder: &Path, name: &str, file: &str) -> PathBuf {
    let inner = folder.join(name);
    match inner.join(file).is_file() && !folder.join(file).is_file() {
        true => inner,
        false => folder.to_path_buf(),
    }
}

/// Reads files of records, one after the other, as one data set.
///
/// # Errors
/// The path of the error names the file and the byte in it, counted from 0.
/// - [`ErrorKind::Io`]: a file cannot be read.
/// - [`ErrorKind::Format`]: a file is no whole number of records.
/// - [`ErrorKind::Data`]: there are no records, or a label is out of range.
pub fn read(files: &[impl AsRef<Path>], label: CifarLabel) -> Result<TensorDataset> {
    let mut counts = Vec::with_capacity(files.len());
    for path in files {
        let path = path.as_ref();
        let count = || records(std::fs::metadata(path)?.len(), label);
        counts.push(count().at(|| path.display().to_string())?);
    }
    let mut examples = Examples::new(counts.iter().sum())?;
    for (path, count) in files.iter().zip(counts) {
        let path = path.as_ref();
        let mut fill = || {
            let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
            examples.fill(&mut file, count, label)
        };
        fill().at(|| path.display().to_string())?;
    }
    examples.finish()
}

/// Reads the bytes of a file of records.
///
/// # Errors
/// As [`read`].
pub fn from_bytes(mut bytes: &[u8], label: CifarLabel) -> Result<TensorDataset> {
    let count = records(bytes.len() as u64, label)?;
    let mut examples = Examples::new(count)?;
    examples.fill(&mut bytes, count, label)?;
    examples.finish()
}

/// The records in a file of a size.
fn records(len: u64, label: CifarLabel) -> Result<usize> {
    let record = label.record() as u64;
    if len == 0 {
        return Err(Error::new(ErrorKind::Data, "the file holds no records"));
    }
    if !len.is_multiple_of(record) {
        let whole = len / record;
        return Err(Error::new(
            ErrorKind::Format,
            format!(
                "expected records of {record} bytes, found {} after {whole} of them",
                len % record
            ),
        )
        .at(format!("byte {}", whole * record)));
    }
    usize::try_from(len / record)
        .map_err(|_| Error::new(ErrorKind::Format, "the file has too many records"))
}

/// Images and labels, as many of which are read as there are labels.
struct Examples {
    images: Buffer,
    labels: Vec<i64>,
    count: usize,
}

impl Examples {
    fn new(count: usize) -> Result<Examples> {
        let bytes = count
            .checked_mul(PIXELS * size_of::<f32>())
            .filter(|&b| b <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::Data, "too many records"))?;
        Ok(Examples {
            images: Buffer::zeroed(bytes),
            labels: Vec::with_capacity(count),
            count,
        })
    }

    fn fill(&mut self, from: &mut dyn BufRead, count: usize, label: CifarLabel) -> Result<()> {
        let (labels, position) = label.layout();
        let classes = label.classes();
        let mut record = vec![0; label.record()];
        let images = self.images.typed_mut::<f32>();
        for i in 0..count {
            let at = i * record.len();
            let place = || format!("byte {at}");
            let there = read_full(from, &mut record).at(place)?;
            if there < record.len() {
                // The size of the file said otherwise.
                let message = "the file became shorter while it was read";
                return Err(Error::new(ErrorKind::Format, message).at(place()));
            }
            let class = record[position];
            if usize::from(class) >= classes {
                let message = format!("label {class} is not in 0..{classes}");
                return Err(
                    Error::new(ErrorKind::Data, message).at(format!("byte {}", at + position))
                );
            }
            let image = &mut images[self.labels.len() * PIXELS..][..PIXELS];
            for (to, &pixel) in image.iter_mut().zip(&record[labels..]) {
                *to = f32::from(pixel);
            }
            self.labels.push(i64::from(class));
        }
        Ok(())
    }

    fn finish(self) -> Result<TensorDataset> {
        let images = Tensor::from_buffer(DType::F32, [self.count, 3, 32, 32], self.images)?;
        TensorDataset::new(vec![images, Tensor::new([self.count], self.labels)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;

    /// Records whose pixels tell their place.
    fn file(labels: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, labels) in labels.iter().enumerate() {
            out.extend(*labels);
            out.extend((0..PIXELS).map(|p| (p + i) as u8));
        }
        out
    }

    #[test]
    fn cifar10_is_found_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cifar-10-batches-bin");
        std::fs::create_dir(&folder).unwrap();
        for i in 1..=5u8 {
            let bytes = file(&[&[i], &[9 - i]]);
            std::fs::write(folder.join(format!("data_batch_{i}.bin")), bytes).unwrap();
        }
        std::fs::write(folder.join("test_batch.bin"), file(&[&[3]])).unwrap();
        for folder in [dir.path(), &folder] {
            let data = cifar10(folder).unwrap();
            assert_eq!(
                data.train.labels(1).unwrap(),
                [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]
            );
            assert_eq!(data.test.labels(1).unwrap(), [3]);
            let images = &data.train.fields()[0];
            assert_eq!(images.shape(), [10, 3, 32, 32]);
            let values = images.to_f64s();
            // Red, green and blue planes of the fourth record, which is the second of its file.
            for p in [0, 1, 255, 1024, 3071] {
                assert_eq!(values[3 * PIXELS + p], ((p + 1) % 256) as f64);
            }
        }
        std::fs::remove_file(folder.join("data_batch_4.bin")).unwrap();
        let error = cifar10(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("data_batch_4.bin"));
    }

    #[test]
    fn cifar100_has_two_labels() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("train.bin"), file(&[&[19, 99], &[3, 42]])).unwrap();
        std::fs::write(dir.path().join("test.bin"), file(&[&[0, 1]])).unwrap();
        let fine = cifar100(dir.path(), CifarLabel::Fine).unwrap();
        assert_eq!(fine.train.labels(1).unwrap(), [99, 42]);
        let coarse = cifar100(dir.path(), CifarLabel::Coarse).unwrap();
        assert_eq!(coarse.train.labels(1).unwrap(), [19, 3]);
        assert_eq!(coarse.train.fields()[0], fine.train.fields()[0]);
        assert_eq!(coarse.train.len(), 2);
        assert!(cifar100(dir.path(), CifarLabel::Ten).is_err());
    }

    #[test]
    fn bad_files_are_errors_that_name_file_and_byte() {
        let good = file(&[&[1], &[2]]);
        let cases: [(&[u8], ErrorKind, &str); 4] = [
            (&[], ErrorKind::Data, "the file holds no records"),
            (
                &good[..3072],
                ErrorKind::Format,
                "byte 0: expected records of 3073 bytes, found 3072 after 0 of them",
            ),
            (
                &good[..3074],
                ErrorKind::Format,
                "byte 3073: expected records of 3073 bytes, found 1 after 1 of them",
            ),
            (
                &file(&[&[1], &[10]]),
                ErrorKind::Data,
                "byte 3073: label 10 is not in 0..10",
            ),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        for (bytes, kind, message) in cases {
            let error = from_bytes(bytes, CifarLabel::Ten).unwrap_err();
            assert_eq!((error.kind(), error.to_string()), (kind, message.into()));
            std::fs::write(&path, bytes).unwrap();
            let error = read(&[&path], CifarLabel::Ten).unwrap_err();
            assert_eq!(error.to_string(), format!("{}: {message}", path.display()));
        }
        let bytes = file(&[&[20, 5]]);
        assert!(from_bytes(&bytes, CifarLabel::Fine).is_ok());
        let error = from_bytes(&bytes, CifarLabel::Coarse).unwrap_err();
        assert_eq!(error.to_string(), "byte 0: label 20 is not in 0..20");
        assert!(read(&[] as &[&Path], CifarLabel::Ten).is_err());
    }
}
