//! Comma-separated values, plain and gzipped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::{Error, ErrorKind, Result, ResultExt, Tensor, TensorDataset};

/// Reads a table of numbers: one line an example, the last column the class label, all others
/// the features.
///
/// The result has two fields: the features as `f32` `[N, columns - 1]`, or `[N, ..shape]` with
/// [`Csv::shape`], and the labels as `i64` `[N]`. A file that begins with gzip's magic number is
/// decompressed while it is read. White space and quotes around a value, empty lines and a byte
/// order mark are skipped.
///
/// ```
/// use opt_data::{Csv, Dataset};
///
/// let text = "width,height,label\n1.5,2,0\n3,4.5,1\n";
/// let data = Csv::new().header(true).read_from(text.as_bytes(), "boxes.csv")?;
/// assert_eq!(data.len(), 2);
/// assert_eq!(data.fields()[0].shape(), [2, 2]);
///
/// let error = Csv::new().read_from("1,2,0\n3,nan,1\n".as_bytes(), "boxes.csv").unwrap_err();
/// assert_eq!(error.to_string(), "boxes.csv: line 2: column 2: `nan` is not a finite number");
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Csv {
    header: bool,
    delimiter: u8,
    shape: Option<Vec<usize>>,
    classes: Option<usize>,
    limit: u64,
}

impl Default for Csv {
    fn default() -> Csv {
        Csv {
            header: false,
            delimiter: b',',
            shape: None,
            classes: None,
            limit: 1 << 30,
        }
    }
}

impl Csv {
    /// A reader for files without a header.
    pub fn new() -> Csv {
        Csv::default()
    }

    /// Whether the first line that is not empty holds names, to be skipped. Default: false.
    #[must_use]
    pub fn header(mut self, header: bool) -> Csv {
        self.header = header;
        self
    }

    /// The byte between columns. Default: a comma.
    #[must_use]
    pub fn delimiter(mut self, delimiter: u8) -> Csv {
        self.delimiter = delimiter;
        self
    }

    /// The shape of the features of an example, such as `[channels, height, width]`, in row-major
    /// order of the columns. Default: one axis.
    #[must_use]
    pub fn shape(mut self, shape: impl AsRef<[usize]>) -> Csv {
        self.shape = Some(shape.as_ref().to_vec());
        self
    }

    /// The number of classes: a label not below it is an error. Default: any label from 0 on.
    #[must_use]
    pub fn classes(mut self, classes: usize) -> Csv {
        self.classes = Some(classes);
        self
    }

    /// The most bytes of (decompressed) text to read, against files that expand without end; a
    /// longer text is an error. Default: 1 GiB.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Csv {
        self.limit = bytes;
        self
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The path of the error names the file and, where there is one, the line and the column
    /// (both counted from 1).
    /// - [`ErrorKind::Io`]: the file cannot be read.
    /// - [`ErrorKind::Format`]: a line has another number of columns than the first, a value is
    ///   no number, the text is not UTF-8, longer than [`Csv::limit`], or the gzip stream is cut
    ///   off or damaged.
    /// - [`ErrorKind::Data`]: there are no examples; a value is NaN, infinite or too large for
    ///   `f32`; a label is negative, no integer, or not below [`Csv::classes`].
    /// - [`ErrorKind::Shape`]: the columns are not as many as [`Csv::shape`] needs.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<TensorDataset> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::from).at(|| name.clone())?;
        let mut reader = BufReader::new(file);
        let named_gz = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("gz"));
        if named_gz {
            let head = reader.fill_buf().map_err(Error::from).at(|| name.clone())?;
            if !head.starts_with(&GZIP) {
                let message = "the file is named .gz but holds no gzip stream";
                return Err(Error::new(ErrorKind::Format, message).at(name));
            }
        }
        self.read_from(reader, &name)
    }

    /// Reads from any source of bytes; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Csv::read`].
    pub fn read_from(&self, source: impl Read, name: &str) -> Result<TensorDataset> {
        let mut source = BufReader::new(source);
        let head = source
            .fill_buf()
            .map_err(Error::from)
            .at(|| name.to_string())?;
        let result = if head.starts_with(&GZIP) {
            self.parse(flate2::bufread::MultiGzDecoder::new(source))
        } else {
            self.parse(source)
        };
        result.at(|| name.to_string())
    }

    fn parse(&self, source: impl Read) -> Result<TensorDataset> {
        let features = match &self.shape {
            None => None,
            Some(shape) => Some(
                shape
                    .iter()
                    .try_fold(1usize, |n, &d| n.checked_mul(d))
                    .ok_or_else(|| Error::shape(format!("shape {shape:?} is too large")))?,
            ),
        };
        let mut source = BufReader::new(Limited {
            source,
            left: self.limit,
            limit: self.limit,
        });
        let mut header = self.header;
        let mut columns: Option<usize> = None;
        let mut pixels: Vec<f32> = Vec::new();
        let mut labels: Vec<i64> = Vec::new();
        let mut bytes = Vec::new();
        for line in 1u64.. {
            let place = || format!("line {line}");
            bytes.clear();
            let read = source.read_until(b'\n', &mut bytes);
            if read.map_err(from_io).at(place)? == 0 {
                break;
            }
            let mut record = &bytes[..];
            if line == 1 {
                record = record.strip_prefix(b"\xef\xbb\xbf").unwrap_or(record);
            }
            let record = record.trim_ascii();
            if record.is_empty() {
                continue;
            }
            let names = std::mem::take(&mut header);
            if names && record.contains(&b'"') {
                continue;
            }
            let found = record.split(|b| *b == self.delimiter).count();
            let expected = *columns.get_or_insert(found);
            if found != expected {
                return Err(Error::new(
                    ErrorKind::Format,
                    format!("expected {expected} columns, found {found}"),
                )
                .at(place()));
            }
            if expected < 2 {
                let message = "expected features and a label, found one column";
                return Err(Error::new(ErrorKind::Format, message).at(place()));
            }
            if let (Some(features), Some(shape)) = (features, &self.shape)
                && features != expected - 1
            {
                return Err(Error::shape(format!(
                    "shape {shape:?} needs {features} columns before the label, found {}",
                    expected - 1
                ))
                .at(place()));
            }
            if names {
                continue;
            }
            for (c, cell) in record.split(|b| *b == self.delimiter).enumerate() {
                let column = || format!("column {}", c + 1);
                if c + 1 < expected {
                    pixels.push(number(cell).at(column).at(place)?);
                } else {
                    labels.push(self.label(cell).at(column).at(place)?);
                }
            }
        }
        let n = labels.len();
        if n == 0 {
            return Err(Error::new(ErrorKind::Data, "the file holds no examples"));
        }
        let mut shape = vec![n];
        match &self.shape {
            Some(rest) => shape.extend(rest),
            None => shape.push(pixels.len() / n),
        }
        TensorDataset::new(vec![Tensor::new(shape, pixels)?, Tensor::new([n], labels)?])
    }

    fn label(&self, cell: &[u8]) -> Result<i64> {
        let text = text(cell)?;
        let fail = |why: String| Error::new(ErrorKind::Data, why);
        let label = match text.parse::<i64>() {
            Ok(label) => label,
            // Spreadsheets and data frames write `3.0`; 2^53 bounds what an f64 holds exactly.
            Err(_) => match text.parse::<f64>() {
                Ok(v) if v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0 => v as i64,
                Ok(_) => return Err(fail(format!("label `{text}` is no integer"))),
                Err(_) => return Err(not_a_number(text)),
            },
        };
        if label < 0 {
            return Err(fail(format!("label {label} is negative")));
        }
        match self.classes {
            Some(classes) if label as u64 >= classes as u64 => {
                Err(fail(format!("label {label} is not in 0..{classes}")))
            }
            _ => Ok(label),
        }
    }
}

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A cell without the white space and the pair of quotes around it.
fn text(cell: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(cell)
        .map_err(|e| Error::new(ErrorKind::Format, "the value is not UTF-8").with_source(e))?
        .trim();
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    Ok(inner.map_or(text, str::trim))
}

fn number(cell: &[u8]) -> Result<f32> {
    let text = text(cell)?;
    let value: f32 = text.parse().map_err(|_| not_a_number(text))?;
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::new(
        ErrorKind::Data,
        match text.parse::<f64>() {
            Ok(v) if v.is_finite() => format!("`{text}` is too large for f32"),
            _ => format!("`{}` is not a finite number", shortened(text)),
        },
    ))
}

fn not_a_number(text: &str) -> Error {
    let message = match text {
        "" => "the value is missing".to_string(),
        _ => format!("`{}` is no number", shortened(text)),
    };
    Error::new(ErrorKind::Format, message)
}

/// At most 40 characters, so that a binary file makes no page-long message.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}..", &text[..at]),
        None => text.to_string(),
    }
}

/// A stream that is damaged, cut off or too long is an error of the format, not of the disk.
fn from_io(error: std::io::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    let kind = match error.kind() {
        InvalidData | InvalidInput | UnexpectedEof => ErrorKind::Format,
        _ => ErrorKind::Io,
    };
    Error::new(kind, error.to_string()).with_source(error)
}

/// A reader that fails, rather than ends, once it has given `limit` bytes and more follow.
struct Limited<R> {
    source: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            return match self.source.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    format!("the text is longer than the limit of {} bytes", self.limit),
                )),
            };
        }
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let n = self.source.read(&mut buffer[..most])?;
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::Dataset;
    use proptest::prelude::*;

    fn read(csv: &Csv, text: impl AsRef<[u8]>) -> Result<TensorDataset> {
        csv.read_from(text.as_ref(), "f.csv")
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn plain_and_gzipped_files_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let text = b"\xef\xbb\xbf0, 1.5,2,\"3\",7\r\n4,5,-6e-1,0,0\n\n1,1,1,1, 3.0 \n";
        let plain = dir.path().join("a.csv");
        let zipped = dir.path().join("a.csv.gz");
        std::fs::write(&plain, text).unwrap();
        // Two members one after the other are one stream.
        let two = [gzip(&text[..10]), gzip(&text[10..])].concat();
        std::fs::write(&zipped, two).unwrap();
        for path in [plain, zipped] {
            let data = Csv::new().shape([1, 2, 2]).read(path).unwrap();
            assert_eq!(data.len(), 3);
            let x = &data.fields()[0];
            assert_eq!(x.shape(), [3, 1, 2, 2]);
            assert_eq!(
                x.to_vec::<f32>().unwrap()[..7],
                [0., 1.5, 2., 3., 4., 5., -0.6]
            );
            assert_eq!(data.labels(1).unwrap(), [7, 0, 3]);
        }
    }

    #[test]
    fn bad_files_are_errors_that_name_the_place() {
        let plain = Csv::new();
        let header = Csv::new().header(true);
        let cases: [(&Csv, &[u8], ErrorKind, &str); 20] = [
            (&plain, b"", ErrorKind::Data, "the file holds no examples"),
            (
                &plain,
                b"\n\n",
                ErrorKind::Data,
                "the file holds no examples",
            ),
            (
                &header,
                b"a,b\n",
                ErrorKind::Data,
                "the file holds no examples",
            ),
            (
                &plain,
                b"1,2,0\n\n3,1\n",
                ErrorKind::Format,
                "line 3: expected 3 columns, found 2",
            ),
            (
                &header,
                b"a,b\n1,2,0\n",
                ErrorKind::Format,
                "line 2: expected 2 columns, found 3",
            ),
            (
                &plain,
                b"1\n",
                ErrorKind::Format,
                "line 1: expected features and a label, found one column",
            ),
            (
                &plain,
                b"1,x,0",
                ErrorKind::Format,
                "line 1: column 2: `x` is no number",
            ),
            (
                &header,
                b"\n\"a,b\",c\n\n1,2,0\n1,\"x\",0\n",
                ErrorKind::Format,
                "line 5: column 2: `x` is no number",
            ),
            (
                &plain,
                b"1,,0",
                ErrorKind::Format,
                "line 1: column 2: the value is missing",
            ),
            (
                &plain,
                b"1,\xff,0",
                ErrorKind::Format,
                "line 1: column 2: the value is not UTF-8",
            ),
            (
                &plain,
                b"1,2,0\nNaN,2,0",
                ErrorKind::Data,
                "line 2: column 1: `NaN` is not a finite number",
            ),
            (
                &plain,
                b"1,-inf,0",
                ErrorKind::Data,
                "line 1: column 2: `-inf` is not a finite number",
            ),
            (
                &plain,
                b"1e39,2,0",
                ErrorKind::Data,
                "line 1: column 1: `1e39` is too large for f32",
            ),
            (
                &plain,
                b"1,2,0.5",
                ErrorKind::Data,
                "line 1: column 3: label `0.5` is no integer",
            ),
            (
                &plain,
                b"1,2,inf",
                ErrorKind::Data,
                "line 1: column 3: label `inf` is no integer",
            ),
            (
                &plain,
                b"1,2,-1",
                ErrorKind::Data,
                "line 1: column 3: label -1 is negative",
            ),
            (
                &plain,
                b"1,2,cat",
                ErrorKind::Format,
                "line 1: column 3: `cat` is no number",
            ),
            (
                &Csv::new().classes(10),
                b"1,2,10",
                ErrorKind::Data,
                "line 1: column 3: label 10 is not in 0..10",
            ),
            (
                &Csv::new().shape([1, 3]),
                b"1,2,1",
                ErrorKind::Shape,
                "line 1: shape [1, 3] needs 3 columns before the label, found 2",
            ),
            (
                &Csv::new().limit(5),
                b"1,2,1\n",
                ErrorKind::Format,
                "line 1: the text is longer than the limit of 5 bytes",
            ),
        ];
        for (csv, text, kind, message) in cases {
            let error = read(csv, text).unwrap_err();
            assert_eq!(
                (error.kind(), error.to_string()),
                (kind, format!("f.csv: {message}"))
            );
        }
        assert!(read(&Csv::new().limit(6), "1,2,1\n").is_ok());
        assert!(read(&Csv::new().shape([usize::MAX, 2]), "1,2,1\n").is_err());
    }

    #[test]
    fn damaged_gzip_streams_are_errors() {
        let good = gzip(b"1,2,0\n3,4,1\n");
        assert_eq!(read(&Csv::new(), &good).unwrap().len(), 2);
        for cut in 2..good.len() {
            let error = read(&Csv::new(), &good[..cut]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format, "cut at {cut}: {error}");
        }
        let mut flipped = good.clone();
        let at = good.len() - 6;
        flipped[at] ^= 1;
        assert_eq!(
            read(&Csv::new(), &flipped).unwrap_err().kind(),
            ErrorKind::Format
        );
    }

    #[test]
    fn a_stream_that_expands_without_end_stops_at_the_limit() {
        let bomb = gzip(&b"1,2,0\n".repeat(100_000));
        assert!(bomb.len() < 10_000);
        let error = read(&Csv::new().limit(10_000), bomb).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("longer than the limit of 10000 bytes")
        );
    }

    #[test]
    fn files_that_are_missing_or_misnamed_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none.csv");
        let error = Csv::new().read(&missing).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(
            error
                .to_string()
                .starts_with(&missing.display().to_string())
        );
        let path = dir.path().join("plain.csv.gz");
        std::fs::write(&path, "1,2,0\n").unwrap();
        let error = Csv::new().read(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format);
        assert!(error.to_string().ends_with("holds no gzip stream"));
        assert!(Csv::new().read(dir.path()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), gz: bool) {
            if gz {
                bytes.splice(0..0, GZIP);
            }
            let _ = read(&Csv::new(), &bytes);
            let _ = read(&Csv::new().header(true).shape([2]), &bytes);
        }

        #[test]
        fn what_is_written_is_read(
            rows in prop::collection::vec((any::<[f32; 3]>(), 0i64..1000), 1..20)
        ) {
            let finite = |x: f32| if x.is_finite() { x } else { 0.0 };
            let text: String = rows
                .iter()
                .map(|(x, l)| format!("{},{:e},{},{l}\n", finite(x[0]), finite(x[1]), finite(x[2])))
                .collect();
            let data = read(&Csv::new(), &text).unwrap();
            let expected: Vec<f32> = rows.iter().flat_map(|(x, _)| x.map(finite)).collect();
            prop_assert_eq!(data.fields()[0].to_vec::<f32>().unwrap(), expected);
            let labels: Vec<i64> = rows.iter().map(|(_, l)| *l).collect();
            prop_assert_eq!(data.labels(1).unwrap(), labels);
        }
    }
}
