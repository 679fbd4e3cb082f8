//! Files mapped into memory.

use std::fs::File;

/// A file mapped for reading.
#[derive(Debug)]
pub(crate) struct Mapped(Option<memmap2::Mmap>);

impl Mapped {
    /// Maps a file as it is now.
    pub(crate) fn new(file: &File) -> std::io::Result<Mapped> {
        if file.metadata()?.len() == 0 {
            // An empty mapping is an error on some systems.
            return Ok(Mapped(None));
        }
        #[expect(unsafe_code, reason = "memory mapping")]
        // SAFETY: the mapping is private to this process and only read. A program that shortens
        // or rewrites the file meanwhile breaks this process (or changes tensors), as it would any
        // reader of mapped files; the documentation of what maps files says so.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Mapped(Some(map)))
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Fills a buffer from an offset of a file, without moving its cursor.
pub(crate) fn read_at(file: &File, offset: u64, to: &mut [u8]) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, to, offset)
    }
    #[cfg(not(unix))]
    {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(to)
    }
}
