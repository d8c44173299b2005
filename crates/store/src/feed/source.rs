//! Sources of feeds: files, and what comes compressed by gzip.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The bytes of a feed.
pub type Source = Box<dyn Read + Send>;

/// Interval at which a reader that waits looks whether it is to stop.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

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

/// Reads what comes by and by, until it is told to stop.
struct Stoppable<F>(File, F);

impl<F: Fn() -> bool> Read for Stoppable<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if (self.1)() {
                return Err(io::Error::other("it was stopped"));
            }
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, Some(&LOOK)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.0.read(buffer),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Opens a file with a feed; `-` is standard input. What waits for input ends soon after `is_stopped`.
pub fn open(path: &Path, is_stopped: impl Fn() -> bool + Send + 'static) -> io::Result<FileFeed> {
    let position = Arc::new(AtomicU64::new(0));
    let file = match path.as_os_str() == "-" {
        true => File::from(io::stdin().as_fd().try_clone_to_owned()?),
        false => File::open(path)?,
    };
    let metadata = file.metadata()?;
    let length = metadata.is_file().then_some(metadata.len());
    let file = Stoppable(file, is_stopped);
    Ok(FileFeed {
        source: decompressed(Counted(file, position.clone()))?,
        length,
        position,
    })
}

/// Returns the bytes, decompressed if gzip has compressed them.
pub fn decompressed(reader: impl Read + Send + 'static) -> io::Result<Source> {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    // They may come one by one.
    let mut first = Vec::with_capacity(GZIP.len());
    { &mut reader }
        .take(GZIP.len() as u64)
        .read_to_end(&mut first)?;
    let is_compressed = first == GZIP;
    let reader = io::Cursor::new(first).chain(reader);
    Ok(match is_compressed {
        true => Box::new(MultiGzDecoder::new(reader)),
        false => Box::new(reader),
    })
}
