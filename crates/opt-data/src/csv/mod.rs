//! Comma-separated values, plain and gzipped.

mod record;
mod table;
mod value;

use std::io::{BufReader, Read};
use std::path::Path;

use crate::blocks::Blocks;
use crate::source::{Source, open, unpacked};
use crate::{Error, ErrorKind, Result, ResultExt, TensorDataset};
use record::Records;
pub use table::{Column, ColumnRef, Schema, Table};
use table::{Plan, Role};
use value::{label, number, shortened, text};

/// Reads a table: one line an example. Unless told otherwise, the last column is the class label
/// and all others are features.
///
/// The result has two fields: the features as `f32` `[N, features]`, or `[N, ..shape]` with
/// [`Csv::shape`], in the order of the columns; and the labels as `i64` `[N]`, or targets as `f32`
/// `[N, targets]` with [`Csv::targets`]. A file that begins with gzip's magic number is
/// decompressed while it is read. White space around a value, empty lines and a byte order mark
/// are skipped. Quotes are those of RFC 4180: a quoted value may hold delimiters, line ends, and
/// quotes written twice.
///
/// The file is read as a stream: beyond the tensors and one further copy of their elements, the
/// memory taken does not depend on the number of lines. A line may have up to 16 MiB.
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
///
/// A table with names, text and missing values:
///
/// ```
/// use opt_data::Csv;
///
/// let text = "id,species,length,colour\n7,cat,40.5,black\n8,dog,?,brown\n9,dog,61,black\n";
/// let csv = Csv::new()
///     .header(true)
///     .label("species")
///     .skip("id")
///     .category("species")
///     .category("colour")
///     .missing(["", "NA", "?"]);
/// let table = csv.read_table_from(text.as_bytes(), "pets.csv")?;
/// assert_eq!(table.schema.targets[0].categories.as_ref().unwrap(), &["cat", "dog"]);
/// assert_eq!(table.data.labels(1)?, [0, 1, 1]);
/// let x = table.data.fields()[0].to_f64s();
/// assert!(x[2].is_nan());
///
/// // The test part gets the codes of the training part.
/// let test = "id,species,length,colour\n1,dog,50,brown\n";
/// let test = csv.schema(table.schema).read_from(test.as_bytes(), "test.csv")?;
/// assert_eq!(test.fields()[0].to_f64s(), [50.0, 1.0]);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Csv {
    header: bool,
    delimiter: u8,
    shape: Option<Vec<usize>>,
    classes: Option<usize>,
    limit: u64,
    target: Target,
    skip: Vec<ColumnRef>,
    categories: Vec<ColumnRef>,
    missing: Option<Vec<String>>,
    schema: Option<Schema>,
    unknown_as_missing: bool,
}

/// What is in the second field.
#[derive(Debug, Clone)]
enum Target {
    /// The class label in the last column.
    Last,
    Label(ColumnRef),
    Values(Vec<ColumnRef>),
    /// There is no second field.
    None,
}

impl Default for Csv {
    fn default() -> Csv {
        Csv {
            header: false,
            delimiter: b',',
            shape: None,
            classes: None,
            limit: 1 << 30,
            target: Target::Last,
            skip: Vec::new(),
            categories: Vec::new(),
            missing: None,
            schema: None,
            unknown_as_missing: false,
        }
    }
}

impl Csv {
    /// A reader for files without a header.
    pub fn new() -> Csv {
        Csv::default()
    }

    /// Whether the first line that is not empty holds the names of the columns. Default: false.
    #[must_use]
    pub fn header(mut self, header: bool) -> Csv {
        self.header = header;
        self
    }

    /// The byte between columns, such as `b';'` or `b'\t'`. Default: a comma.
    #[must_use]
    pub fn delimiter(mut self, delimiter: u8) -> Csv {
        self.delimiter = delimiter;
        self
    }

    /// The column of the class label, by its name or its index from 0. Default: the last.
    #[must_use]
    pub fn label(mut self, column: impl Into<ColumnRef>) -> Csv {
        self.target = Target::Label(column.into());
        self
    }

    /// Columns of numbers to predict, instead of a class label: the second field is `f32`
    /// `[N, columns]`, in the order given here.
    #[must_use]
    pub fn targets(mut self, columns: impl IntoIterator<Item = impl Into<ColumnRef>>) -> Csv {
        self.target = Target::Values(columns.into_iter().map(Into::into).collect());
        self
    }

    /// All columns are features: the data set has one field.
    #[must_use]
    pub fn features_only(mut self) -> Csv {
        self.target = Target::None;
        self
    }

    /// Leaves out a column; call it once for each. What the column holds is not looked at.
    #[must_use]
    pub fn skip(mut self, column: impl Into<ColumnRef>) -> Csv {
        self.skip.push(column.into());
        self
    }

    /// A feature column, or the label, that holds text; call it once for each. The texts are
    /// sorted and numbered from 0, and the numbers are the values ([`Table`] has the texts); encode
    /// them further with [`OneHot`](crate::OneHot).
    #[must_use]
    pub fn category(mut self, column: impl Into<ColumnRef>) -> Csv {
        self.categories.push(column.into());
        self
    }

    /// Texts that stand for a missing value in a feature column, such as `["", "NA", "?"]`: the
    /// value is NaN, for an [`Imputer`](crate::Imputer) to fill. Default: a missing value is an
    /// error. In labels and targets it always is.
    #[must_use]
    pub fn missing(mut self, texts: impl IntoIterator<Item = impl Into<String>>) -> Csv {
        self.missing = Some(texts.into_iter().map(Into::into).collect());
        self
    }

    /// Takes over the categories of another file, and fails unless the feature columns are as many
    /// and, where both have a header, have the same names. A text that the other file did not have
    /// is an error.
    #[must_use]
    pub fn schema(mut self, schema: Schema) -> Csv {
        self.schema = Some(schema);
        self
    }

    /// Whether a text in a feature column that is not among the categories of [`Csv::schema`] is a
    /// missing value, NaN, rather than an error. Default: false.
    #[must_use]
    pub fn unknown_as_missing(mut self, yes: bool) -> Csv {
        self.unknown_as_missing = yes;
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
    ///   no number or missing, a quote is not closed, the text is not UTF-8, longer than
    ///   [`Csv::limit`], its columns are not those of [`Csv::schema`], or the gzip stream is cut
    ///   off or damaged.
    /// - [`ErrorKind::Data`]: there are no examples; a value is NaN, infinite or too large for
    ///   `f32`; a label is negative, no integer, or not below [`Csv::classes`]; a text is not
    ///   among the categories of [`Csv::schema`].
    /// - [`ErrorKind::Shape`]: the feature columns are not as many as [`Csv::shape`] needs.
    /// - [`ErrorKind::InvalidArgument`]: a column that an option names is not there, or is asked
    ///   to be two things; the delimiter is a quote or a line end.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<TensorDataset> {
        Ok(self.read_table(path)?.data)
    }

    /// Reads from any source of bytes; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Csv::read`].
    pub fn read_from(&self, source: impl Read, name: &str) -> Result<TensorDataset> {
        Ok(self.read_table_from(source, name)?.data)
    }

    /// Reads a file, with the names and the categories of its columns.
    ///
    /// # Errors
    /// As [`Csv::read`].
    pub fn read_table(&self, path: impl AsRef<Path>) -> Result<Table> {
        let path = path.as_ref();
        open(path)
            .and_then(|source| self.parse(source))
            .at(|| path.display().to_string())
    }

    /// Reads from any source of bytes, with the names and the categories of the columns.
    ///
    /// # Errors
    /// As [`Csv::read`].
    pub fn read_table_from(&self, source: impl Read, name: &str) -> Result<Table> {
        unpacked(source, None)
            .and_then(|source| self.parse(source))
            .at(|| name.to_string())
    }

    fn parse(&self, source: Source<'_>) -> Result<Table> {
        if matches!(self.delimiter, b'"' | b'\n' | b'\r') {
            return Err(Error::invalid(format!(
                "{:?} cannot be the delimiter",
                char::from(self.delimiter)
            )));
        }
        let limited = Limited {
            source: source.bytes,
            left: self.limit,
            limit: self.limit,
        };
        let mut records = Records::new(BufReader::new(limited), self.delimiter);
        let none = || Error::new(ErrorKind::Data, "the file holds no examples");
        let first = records.next()?.ok_or_else(none)?;
        let place = || format!("line {first}");
        let mut plan = Plan::new(self, records.cells()).at(place)?;
        let shape = self.example_shape(plan.features).at(place)?;
        let mut columns = Columns::default();
        let mut line = match self.header {
            true => records.next()?,
            false => Some(first),
        };
        while let Some(at) = line {
            let place = || format!("line {at}");
            let (expected, found) = (plan.roles.len(), records.cells().len());
            if found != expected {
                return Err(Error::new(
                    ErrorKind::Format,
                    format!("expected {expected} columns, found {found}"),
                )
                .at(place()));
            }
            self.example(records.cells(), &mut plan, &mut columns)
                .at(place)?;
            line = records.next()?;
        }
        if columns.examples == 0 {
            return Err(none());
        }
        self.table(plan, columns, &shape)
    }

    fn example_shape(&self, features: usize) -> Result<Vec<usize>> {
        let Some(shape) = &self.shape else {
            return Ok(vec![features]);
        };
        let need = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .ok_or_else(|| Error::shape(format!("shape {shape:?} is too large")))?;
        if need != features {
            return Err(Error::shape(format!(
                "shape {shape:?} needs {need} feature columns, found {features}"
            )));
        }
        Ok(shape.clone())
    }

    fn example<'a>(
        &self,
        cells: impl Iterator<Item = &'a [u8]>,
        plan: &mut Plan,
        columns: &mut Columns,
    ) -> Result<()> {
        columns.row.resize(plan.targets, 0.0);
        for (c, cell) in cells.enumerate() {
            let role = plan.roles[c];
            if role == Role::Skip {
                continue;
            }
            let column = || format!("column {}", c + 1);
            let value = text(cell).at(column)?;
            let missing = self.missing.as_ref();
            let missing = missing.is_some_and(|texts| texts.iter().any(|t| *t == value.trim()));
            if missing && role != Role::Feature {
                let message = "the value is missing; labels and targets have to be there";
                return Err(Error::new(ErrorKind::Format, message).at(column()));
            }
            let code = match &mut plan.categories[c] {
                Some(categories) if !missing => self
                    .code(categories.code(&value), &value, role)
                    .at(column)?,
                _ => None,
            };
            match role {
                Role::Feature => columns.features.push(match code {
                    Some(code) => code as f32,
                    None if missing || plan.categories[c].is_some() => f32::NAN,
                    None => number(&value).at(column)?,
                }),
                Role::Label => columns.labels.push(match code {
                    Some(code) => code as i64,
                    None => label(&value, self.classes).at(column)?,
                }),
                Role::Target(i) => columns.row[i] = number(&value).at(column)?,
                Role::Skip => {}
            }
        }
        columns.row.iter().for_each(|&v| columns.targets.push(v));
        columns.examples += 1;
        Ok(())
    }

    /// The code of a text; none where it is unknown and that is allowed.
    fn code(&self, code: Result<Option<usize>>, value: &str, role: Role) -> Result<Option<usize>> {
        let code = code?;
        if value.trim().is_empty() {
            let message = "the value is missing; name the empty text in `Csv::missing`";
            return Err(Error::new(ErrorKind::Format, message));
        }
        if code.is_none() && !(self.unknown_as_missing && role == Role::Feature) {
            return Err(Error::new(
                ErrorKind::Data,
                format!("`{}` is none of the known categories", shortened(value)),
            ));
        }
        Ok(code)
    }

    fn table(&self, plan: Plan, mut columns: Columns, example: &[usize]) -> Result<Table> {
        let n = columns.examples;
        let features: Vec<usize> = positions(&plan, Role::Feature);
        let labels = positions(&plan, Role::Label);
        let (has_label, has_targets) = (!labels.is_empty(), plan.targets > 0);
        let targets = plan.targets;
        let (schema, codes) = plan.finish();
        if features.iter().any(|&c| codes[c].is_some()) {
            let by_feature: Vec<Option<&Vec<usize>>> =
                features.iter().map(|&c| codes[c].as_ref()).collect();
            for (i, value) in columns.features.iter_mut().enumerate() {
                if let Some(codes) = by_feature[i % by_feature.len()]
                    && !value.is_nan()
                {
                    *value = codes[*value as usize] as f32;
                }
            }
        }
        if let Some(codes) = labels.first().and_then(|&c| codes[c].as_ref()) {
            if let Some(classes) = self.classes
                && codes.len() > classes
            {
                return Err(Error::new(
                    ErrorKind::Data,
                    format!("the label has {} categories, not {classes}", codes.len()),
                ));
            }
            for label in columns.labels.iter_mut() {
                *label = codes[*label as usize] as i64;
            }
        }
        let shape = [&[n], example].concat();
        let mut fields = vec![columns.features.into_tensor(&shape)?];
        if has_label {
            fields.push(columns.labels.into_tensor(&[n])?);
        }
        if has_targets {
            fields.push(columns.targets.into_tensor(&[n, targets])?);
        }
        let data = TensorDataset::with_missing(fields)?;
        Ok(Table { data, schema })
    }
}

fn positions(plan: &Plan, role: Role) -> Vec<usize> {
    (0..plan.roles.len())
        .filter(|&c| plan.roles[c] == role)
        .collect()
}

/// What has been read.
#[derive(Default)]
struct Columns {
    features: Blocks<f32>,
    labels: Blocks<i64>,
    targets: Blocks<f32>,
    examples: usize,
    /// The targets of one example.
    row: Vec<f32>,
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
mod tests;
