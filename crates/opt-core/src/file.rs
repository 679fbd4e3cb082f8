//! Files that are never half written.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Writes a file by way of a temporary one beside it, which then takes its name: whoever opens
/// the path sees the old content or the new, whatever fails in between.
///
/// ```
/// use std::io::Write;
/// use opt_core::file::write_atomically;
///
/// let path = std::env::temp_dir().join(format!("opt-doc-{}", std::process::id()));
/// write_atomically(&path, |file| Ok(file.write_all(b"new")?))?;
/// assert_eq!(std::fs::read(&path)?, b"new");
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), opt_core::Error>(())
/// ```
///
/// # Errors
/// The closure's, with the path added; [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot
/// be created, written or renamed. The path has its old content then, and the temporary file is
/// gone.
pub fn write_atomically(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut File) -> Result<()>,
) -> Result<()> {
    // Threads of one process may write the same path at the same time.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let path = path.as_ref();
    let mut temporary = path.as_os_str().to_owned();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}.{count}.tmp", std::process::id()));
    let all = || -> Result<()> {
        let mut file = File::create(&temporary)?;
        write(&mut file)?;
        // On disk before the name changes hands, or a power cut leaves an empty file behind it.
        file.sync_all()?;
        drop(file);
        Ok(std::fs::rename(&temporary, path)?)
    };
    all().map_err(|e: Error| {
        // The temporary file may not exist; the first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
        e.at(path.display().to_string())
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let name = format!("opt-core-file-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.bin");
        write_atomically(&path, |f| Ok(f.write_all(b"old")?)).unwrap();
        let error = write_atomically(&path, |f| {
            f.write_all(b"ne")?;
            Err(Error::invalid("stopped"))
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("a.bin: stopped"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        let missing = folder.join("none/b.bin");
        let error = write_atomically(&missing, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
