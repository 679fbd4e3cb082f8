//! What the columns of a file are: names, roles and categories.

use std::collections::BTreeMap;

use super::value::{shortened, text};
use super::{Csv, Target};
use crate::{Error, ErrorKind, Result, ResultExt, TensorDataset};

/// A column of a file: its name in the header, or its position, counted from 0.
///
/// A `&str`, a `String` or a `usize` becomes one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ColumnRef {
    /// The position, counted from 0.
    Index(usize),
    /// The name in the header, without white space and quotes around it.
    Name(String),
}

impl From<usize> for ColumnRef {
    fn from(index: usize) -> ColumnRef {
        ColumnRef::Index(index)
    }
}

impl From<&str> for ColumnRef {
    fn from(name: &str) -> ColumnRef {
        ColumnRef::Name(name.to_string())
    }
}

impl From<String> for ColumnRef {
    fn from(name: String) -> ColumnRef {
        ColumnRef::Name(name)
    }
}

/// What a column of a table was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Column {
    /// The name in the header; none without a header.
    pub name: Option<String>,
    /// Of a column of text, its categories in the order of their codes 0, 1, ..; none for numbers.
    pub categories: Option<Vec<String>>,
}

/// What the columns of a table are. The schema of the training file, given to
/// [`Csv::schema`](super::Csv::schema), gives the same text the same code in other files.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Schema {
    /// The feature columns, in the order of the first field's last axis.
    pub features: Vec<Column>,
    /// The label column, or the target columns in the order of the second field's last axis.
    pub targets: Vec<Column>,
}

/// A file with what its columns are.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Table {
    /// The features, then the labels or targets.
    pub data: TensorDataset,
    /// Names and categories.
    pub schema: Schema,
}

/// What becomes of the cells of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Skip,
    Feature,
    Label,
    /// The position among the targets.
    Target(usize),
}

/// Codes of the categories of a column: as they come, or fixed.
#[derive(Debug)]
pub(super) struct Categories {
    codes: BTreeMap<String, usize>,
    fixed: bool,
}

/// The most categories of a column: an `f32` holds every integer up to here.
const MAX_CATEGORIES: usize = 1 << 24;

impl Categories {
    fn new(known: Option<&Vec<String>>) -> Categories {
        let codes = known.into_iter().flatten().cloned().zip(0..).collect();
        Categories {
            codes,
            fixed: known.is_some(),
        }
    }

    /// The code of a text; none if it is not among those that are fixed.
    pub(super) fn code(&mut self, text: &str) -> Result<Option<usize>> {
        if let Some(&code) = self.codes.get(text) {
            return Ok(Some(code));
        }
        if self.fixed {
            return Ok(None);
        }
        let code = self.codes.len();
        if code == MAX_CATEGORIES {
            let message = format!("a column of more than {MAX_CATEGORIES} categories");
            return Err(Error::new(ErrorKind::Data, message));
        }
        self.codes.insert(text.to_string(), code);
        Ok(Some(code))
    }

    /// The categories in their final order, and that order's code for each code given out.
    pub(super) fn finish(self) -> (Vec<String>, Vec<usize>) {
        let mut codes = vec![0; self.codes.len()];
        let mut by_code: Vec<(usize, String)> = Vec::with_capacity(codes.len());
        for (sorted, (text, code)) in self.codes.into_iter().enumerate() {
            let new = if self.fixed { code } else { sorted };
            codes[code] = new;
            by_code.push((new, text));
        }
        by_code.sort_unstable();
        (by_code.into_iter().map(|(_, text)| text).collect(), codes)
    }
}

/// The columns of the file that is being read.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) roles: Vec<Role>,
    pub(super) categories: Vec<Option<Categories>>,
    names: Option<Vec<String>>,
    pub(super) features: usize,
    pub(super) targets: usize,
}

impl Plan {
    /// From the first record, which holds the names or the first example.
    pub(super) fn new<'a>(
        csv: &Csv,
        cells: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Plan> {
        let width = cells.len();
        let names = match csv.header {
            false => None,
            true => {
                let name = |(i, cell)| -> Result<String> {
                    let name = text(cell).at(|| format!("column {}", i + 1))?;
                    Ok(name.trim().to_string())
                };
                Some(cells.enumerate().map(name).collect::<Result<Vec<_>>>()?)
            }
        };
        let mut plan = Plan {
            roles: vec![Role::Feature; width],
            categories: (0..width).map(|_| None).collect(),
            names,
            features: 0,
            targets: 0,
        };
        for column in &csv.skip {
            let at = plan.find(column)?;
            plan.roles[at] = Role::Skip;
        }
        match &csv.target {
            Target::None => {}
            Target::Last => plan.take(width.saturating_sub(1), Role::Label)?,
            Target::Label(column) => {
                let at = plan.find(column)?;
                plan.take(at, Role::Label)?;
            }
            Target::Values(columns) => {
                for (i, column) in columns.iter().enumerate() {
                    let at = plan.find(column)?;
                    plan.take(at, Role::Target(i))?;
                }
            }
        }
        for column in &csv.categories {
            let at = plan.find(column)?;
            match plan.roles[at] {
                Role::Feature | Role::Label => {
                    plan.categories[at] = Some(Categories::new(None));
                }
                Role::Skip | Role::Target(_) => {
                    return Err(Error::invalid(format!(
                        "{} is to hold categories, but it is no feature and no label",
                        plan.name(at)
                    )));
                }
            }
        }
        plan.features = plan.roles.iter().filter(|r| **r == Role::Feature).count();
        plan.targets = plan
            .roles
            .iter()
            .filter(|r| matches!(r, Role::Target(_)))
            .count();
        if plan.features == 0 {
            let message = match width {
                1 => "expected features and a label, found one column".to_string(),
                _ => format!("none of the {width} columns is a feature"),
            };
            return Err(Error::new(ErrorKind::Format, message));
        }
        if let Some(schema) = &csv.schema {
            plan.adopt(schema)?;
        }
        Ok(plan)
    }

    fn take(&mut self, at: usize, role: Role) -> Result<()> {
        match self.roles.get(at) {
            Some(Role::Feature) => self.roles[at] = role,
            Some(Role::Skip) => {
                return Err(Error::invalid(format!(
                    "{} is skipped, and the label or a target",
                    self.name(at)
                )));
            }
            _ => {
                return Err(Error::invalid(format!(
                    "{} is a target twice",
                    self.name(at)
                )));
            }
        }
        Ok(())
    }

    fn name(&self, at: usize) -> String {
        match self.names.as_ref().and_then(|names| names.get(at)) {
            Some(name) => format!("column `{}`", shortened(name)),
            None => format!("column {}", at + 1),
        }
    }

    fn find(&self, column: &ColumnRef) -> Result<usize> {
        let width = self.roles.len();
        match column {
            ColumnRef::Index(at) if *at < width => Ok(*at),
            ColumnRef::Index(at) => Err(Error::invalid(format!(
                "no column of index {at}: the file has {width} columns"
            ))),
            ColumnRef::Name(name) => {
                let names = self.names.as_ref().ok_or_else(|| {
                    Error::invalid(format!(
                        "column `{name}` needs names, but the file is read without a header; \
                         call `Csv::header(true)`"
                    ))
                })?;
                let mut found = (0..width).filter(|&i| names[i] == *name);
                match (found.next(), found.next()) {
                    (Some(at), None) => Ok(at),
                    (Some(_), Some(_)) => Err(Error::invalid(format!(
                        "two columns have the name `{name}`; select one by its index"
                    ))),
                    (None, _) => {
                        let few: Vec<String> =
                            names.iter().take(20).map(|n| shortened(n)).collect();
                        let more = if width > 20 { ", .." } else { "" };
                        Err(Error::invalid(format!(
                            "no column `{name}`; the file has {}{more}",
                            few.join(", ")
                        )))
                    }
                }
            }
        }
    }

    /// Takes over the categories of a schema, whose columns have to be those of the file.
    fn adopt(&mut self, schema: &Schema) -> Result<()> {
        let places = |wanted: fn(&Role) -> bool| -> Vec<usize> {
            (0..self.roles.len())
                .filter(|&i| wanted(&self.roles[i]))
                .collect()
        };
        let features = places(|r| *r == Role::Feature);
        let labels = places(|r| *r == Role::Label);
        if features.len() != schema.features.len() {
            return Err(Error::new(
                ErrorKind::Format,
                format!(
                    "expected {} feature columns by the schema, found {}",
                    schema.features.len(),
                    features.len()
                ),
            ));
        }
        let columns = features.iter().zip(&schema.features);
        // A file without labels is read with the schema of one that has them.
        for (&at, column) in columns.chain(labels.iter().zip(&schema.targets)) {
            let found = self.names.as_ref().map(|names| &names[at]);
            if let (Some(expected), Some(found)) = (&column.name, found)
                && expected != found
            {
                return Err(Error::new(
                    ErrorKind::Format,
                    format!("expected column `{expected}` by the schema, found `{found}`"),
                )
                .at(format!("column {}", at + 1)));
            }
            self.categories[at] = column.categories.as_ref().map(|c| Categories::new(Some(c)));
        }
        Ok(())
    }

    /// The schema; and, by column, the final codes for those given out.
    pub(super) fn finish(self) -> (Schema, Vec<Option<Vec<usize>>>) {
        let mut schema = Schema {
            features: Vec::new(),
            targets: Vec::new(),
        };
        let mut targets = Vec::new();
        let mut codes = Vec::with_capacity(self.roles.len());
        for (at, (role, categories)) in self.roles.iter().zip(self.categories).enumerate() {
            let (categories, final_codes) = categories.map(Categories::finish).unzip();
            codes.push(final_codes);
            let name = self.names.as_ref().map(|names| names[at].clone());
            let column = Column { name, categories };
            match role {
                Role::Skip => {}
                Role::Feature => schema.features.push(column),
                Role::Label => schema.targets.push(column),
                Role::Target(i) => targets.push((*i, column)),
            }
        }
        targets.sort_by_key(|(i, _)| *i);
        schema.targets.extend(targets.into_iter().map(|(_, c)| c));
        (schema, codes)
    }
}
