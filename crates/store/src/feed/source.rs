//! Sources of feeds: files, and what comes compressed by gzip.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

/// The bytes of a feed.
pub type Source = Box<dyn Read + Send>;

/// The first bytes of what gzip has compressed (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A file, and how much of it was read.
pub struct FileFeed {
    /// Its content, decompressed.
    pub source: Source,
    /// Its length in bytes, if it is known.
    pub length: Option<u64>,
    /// Number of its bytes that were read.
    pub position: Arc<AtomicU64>,
}

/// Counts what is read.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Opens a file with a feed; `-` is standard input.
pub fn open(path: &Path) -> io::Result<FileFeed> {
    let position = Arc::new(AtomicU64::new(0));
    let (file, length): (Source, _) = match path.as_os_str() == "-" {
        true => (Box::new(io::stdin()), None),
        false => {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        }
    };
    Ok(FileFeed {
        source: decompressed(Counted(file, position.clone()))?,
        length,
        position,
    })
}

/// Returns the bytes, decompressed if gzip has compressed them.
pub fn decompressed(reader: impl Read + Send + 'static) -> io::Result<Source> {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    Ok(match reader.fill_buf()?.starts_with(&GZIP) {
        true => Box::new(MultiGzDecoder::new(reader)),
        false => Box::new(reader),
    })
}
