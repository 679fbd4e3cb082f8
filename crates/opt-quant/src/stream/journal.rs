//! A file in the making: written in any order, taken up again where a run was cut off.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use opt_core::{Error, Result, ResultExt};

/// Bytes that a cut-off run may have to write again.
const SYNC: u64 = 64 << 20;

/// `OUTPUT.partial`, and `OUTPUT.journal`, which says what of it is done: a line that identifies the
/// work, then a line for each part that is on disk.
#[derive(Debug)]
pub(super) struct Partial {
    output: PathBuf,
    file: File,
    journal: File,
    done: BTreeSet<usize>,
    /// Parts that are written but perhaps not on disk.
    pending: Vec<usize>,
    pending_bytes: u64,
}

fn beside(output: &Path, extension: &str) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(extension);
    name.into()
}

impl Partial {
    /// Opens the partial file of an output of `len` bytes, and what is done of it if `identity` is
    /// that of the run which was cut off; else begins anew.
    pub(super) fn open(output: &Path, len: u64, identity: &str) -> Result<Partial> {
        let open = |extension: &str| -> Result<File> {
            let path = beside(output, extension);
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|e| Error::from(e).at(path.display().to_string()))
        };
        let (file, mut journal) = (open(".partial")?, open(".journal")?);
        journal.try_lock().map_err(|e| {
            let message = format!("another run writes `{}`: {e}", output.display());
            Error::new(opt_core::ErrorKind::Io, message)
        })?;
        let mut text = String::new();
        // A journal that is not text is not one of ours.
        let read = journal.read_to_string(&mut text).is_ok();
        let (known, lines) = text.split_once('\n').unwrap_or_default();
        let mut done = BTreeSet::new();
        if read && known == identity && file.metadata()?.len() == len {
            // A line that was cut off has no end, and does not count.
            let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
            done.extend(whole.lines().filter_map(|line| line.parse::<usize>().ok()));
        } else {
            file.set_len(0)?;
            file.set_len(len)?;
        }
        let mut text = format!("{identity}\n");
        for part in &done {
            text += &format!("{part}\n");
        }
        journal.set_len(0)?;
        journal.seek(SeekFrom::Start(0))?;
        journal.write_all(text.as_bytes())?;
        journal.sync_data()?;
        Ok(Partial {
            output: output.to_path_buf(),
            file,
            journal,
            done,
            pending: Vec::new(),
            pending_bytes: 0,
        })
    }

    /// Whether a part was done by the run before.
    pub(super) fn is_done(&self, part: usize) -> bool {
        self.done.contains(&part)
    }

    /// Writes bytes at a place.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let write = |file: &mut File| -> Result<()> {
            file.seek(SeekFrom::Start(at))?;
            Ok(file.write_all(bytes)?)
        };
        write(&mut self.file).at(|| self.output.display().to_string())?;
        self.pending_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Notes that a part is written.
    pub(super) fn finished(&mut self, part: usize) -> Result<()> {
        self.pending.push(part);
        match self.pending_bytes >= SYNC {
            true => self.sync(),
            false => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<()> {
        // The content first: a journal must not promise what a power cut takes away.
        self.file.sync_data()?;
        let lines: String = self.pending.iter().map(|p| format!("{p}\n")).collect();
        self.journal.write_all(lines.as_bytes())?;
        self.journal.sync_data()?;
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }

    /// Gives the file its name.
    pub(super) fn commit(mut self) -> Result<()> {
        self.file.sync_all()?;
        self.pending.clear();
        std::fs::rename(beside(&self.output, ".partial"), &self.output)
            .map_err(Error::from)
            .at(|| self.output.display().to_string())?;
        // The output is there; a journal that stays behind is not taken for another work's.
        let _ = std::fs::remove_file(beside(&self.output, ".journal"));
        Ok(())
    }
}

impl Drop for Partial {
    /// A run that ends by an error keeps what it has done.
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            let _ = self.sync();
        }
    }
}
