//! Figures in a CSV file.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use opt_core::file::write_atomically;
use opt_core::{Error, Event, Observer, Result, ResultExt};

/// An observer that writes the figures of every epoch, round or pass to a CSV file: a line each,
/// with the columns `task`, `label` and one a figure, in the order in which they first occur. A
/// figure that a line does not have is empty.
///
/// Lines are on disk when the event returns. What cannot be written does not stop the work: it is
/// the error of [`CsvLog::finish`].
///
/// ```
/// use opt_core::{Event, Observer};
/// use opt_train::CsvLog;
///
/// # fn main() -> opt_core::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("training.csv");
/// let mut log = CsvLog::create(&path)?;
/// log.event(&Event::Started { task: "train".into(), total: 100 });
/// log.event(&Event::Metrics { label: "epoch 0".into(), metrics: vec![("loss", 0.5)] });
/// log.finish()?;
/// assert_eq!(std::fs::read_to_string(&path)?, "task,label,loss\ntrain,epoch 0,0.5\n");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CsvLog {
    path: PathBuf,
    file: Option<File>,
    task: String,
    columns: Vec<&'static str>,
    rows: Vec<Row>,
    failed: Option<Error>,
}

#[derive(Debug)]
struct Row {
    task: String,
    label: String,
    metrics: Vec<(&'static str, f64)>,
}

impl CsvLog {
    /// Writes to a file; one that exists is replaced.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<CsvLog> {
        let mut log = CsvLog {
            path: path.as_ref().to_path_buf(),
            file: None,
            task: String::new(),
            columns: Vec::new(),
            rows: Vec::new(),
            failed: None,
        };
        log.rewrite()?;
        Ok(log)
    }

    /// Closes the file.
    ///
    /// # Errors
    /// The first line that could not be written.
    pub fn finish(self) -> Result<()> {
        match self.failed {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn line(&self, row: &Row) -> String {
        let mut line = format!("{},{}", quoted(&row.task), quoted(&row.label));
        for column in &self.columns {
            line.push(',');
            if let Some((_, value)) = row.metrics.iter().find(|(name, _)| name == column) {
                line += &value.to_string();
            }
        }
        line.push('\n');
        line
    }

    /// Writes all lines anew: the columns are others.
    fn rewrite(&mut self) -> Result<()> {
        let names: Vec<String> = self.columns.iter().map(|c| quoted(c)).collect();
        let mut text = ["task", "label"].join(",");
        for name in names {
            text.push(',');
            text += &name;
        }
        text.push('\n');
        for row in &self.rows {
            text += &self.line(row);
        }
        let place = || self.path.display().to_string();
        // An open file would be the replaced one.
        self.file = None;
        write_atomically(&self.path, |file| Ok(file.write_all(text.as_bytes())?)).at(place)?;
        let file = OpenOptions::new().append(true).open(&self.path);
        self.file = Some(file.map_err(|e| Error::from(e).at(place()))?);
        Ok(())
    }

    fn add(&mut self, row: Row) -> Result<()> {
        let before = self.columns.len();
        for (name, _) in &row.metrics {
            if !self.columns.contains(name) {
                self.columns.push(name);
            }
        }
        let line = self.line(&row);
        self.rows.push(row);
        match &mut self.file {
            Some(file) if self.columns.len() == before => {
                let place = || self.path.display().to_string();
                file.write_all(line.as_bytes())
                    .map_err(|e| Error::from(e).at(place()))
            }
            _ => self.rewrite(),
        }
    }
}

impl Observer for CsvLog {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { task, .. } => self.task.clone_from(task),
            Event::Metrics { label, metrics } => {
                let row = Row {
                    task: self.task.clone(),
                    label: label.clone(),
                    metrics: metrics.clone(),
                };
                if let Err(error) = self.add(row) {
                    self.failed.get_or_insert(error);
                }
            }
            _ => {}
        }
    }
}

/// A field as RFC 4180 has it.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(label: &str, metrics: &[(&'static str, f64)]) -> Event {
        Event::Metrics {
            label: label.into(),
            metrics: metrics.to_vec(),
        }
    }

    #[test]
    fn new_figures_become_columns_and_names_are_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.csv");
        let mut log = CsvLog::create(&path).unwrap();
        let read = || std::fs::read_to_string(&path).unwrap();
        assert_eq!(read(), "task,label\n");
        log.event(&metrics("a, \"b\"", &[("loss", 0.1)]));
        log.event(&metrics("c", &[("loss", f64::NAN)]));
        assert_eq!(read(), "task,label,loss\n,\"a, \"\"b\"\"\",0.1\n,c,NaN\n");
        log.event(&metrics("d", &[("accuracy", 1e-300)]));
        let lines: Vec<String> = read().lines().map(String::from).collect();
        assert_eq!(lines[0], "task,label,loss,accuracy");
        assert_eq!(lines[2], ",c,NaN,");
        assert_eq!(lines[3].split(',').nth(3).unwrap().parse(), Ok(1e-300));
        log.finish().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_told_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        std::fs::create_dir(&gone).unwrap();
        assert!(CsvLog::create(gone.join("no/log.csv")).is_err());
        let mut log = CsvLog::create(gone.join("log.csv")).unwrap();
        std::fs::remove_dir_all(&gone).unwrap();
        log.event(&metrics("a", &[("loss", 1.0)]));
        log.event(&metrics("b", &[("loss", 1.0)]));
        let error = log.finish().unwrap_err().to_string();
        assert!(error.contains("log.csv"), "{error}");
    }
}
