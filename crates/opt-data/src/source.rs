//! Files as streams of bytes, plain or gzipped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::{Error, ErrorKind, Result};

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A stream, and the bytes that it has where that is known before it is read.
pub(crate) struct Source<'a> {
    pub(crate) bytes: Box<dyn BufRead + 'a>,
    /// Of a plain file; what a gzipped one unpacks to shows when it is read.
    pub(crate) len: Option<u64>,
}

/// Opens a file; gzip is recognised by its magic number. Errors do not name the file.
pub(crate) fn open(path: &Path) -> Result<Source<'static>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let source = unpacked(file, Some(len))?;
    let named_gz = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    if named_gz && source.len.is_some() {
        let message = "the file is named .gz but holds no gzip stream";
        return Err(Error::new(ErrorKind::Format, message));
    }
    Ok(source)
}

/// A stream, unpacked if it begins as gzip does.
pub(crate) fn unpacked<'a>(bytes: impl Read + 'a, len: Option<u64>) -> Result<Source<'a>> {
    let mut bytes = BufReader::with_capacity(1 << 16, bytes);
    if bytes.fill_buf().map_err(from_io)?.starts_with(&GZIP) {
        let unpacked = flate2::bufread::MultiGzDecoder::new(bytes);
        return Ok(Source {
            bytes: Box::new(BufReader::with_capacity(1 << 16, unpacked)),
            len: None,
        });
    }
    let bytes = Box::new(bytes);
    Ok(Source { bytes, len })
}

/// A stream that is damaged, cut off or too long is an error of the format, not of the disk.
pub(crate) fn from_io(error: std::io::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    let kind = match error.kind() {
        InvalidData | InvalidInput | UnexpectedEof => ErrorKind::Format,
        _ => ErrorKind::Io,
    };
    Error::new(kind, error.to_string()).with_source(error)
}

/// Reads until the buffer is full or the stream ends; gives the bytes read.
pub(crate) fn read_full(source: &mut dyn BufRead, buffer: &mut [u8]) -> Result<usize> {
    let mut at = 0;
    while at < buffer.len() {
        match source.read(&mut buffer[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(from_io(e)),
        }
    }
    Ok(at)
}
