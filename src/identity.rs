//! The id of this server: a UUID that is kept in the state directory, so that it survives a restart.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, RenameFlags};
use uuid::Uuid;

use crate::error::Error;

/// The file in the state directory that holds the id: the UUID's 36 characters and an LF.
pub const FILE: &str = "server-id";

/// Where a new id is written until it is whole. Left over from a crash, it is overwritten.
const UNFINISHED: &str = "server-id.new";

/// Who this server is.
#[derive(Debug)]
pub struct Identity {
    /// Its id.
    pub id: Uuid,
    /// Where that came from.
    pub origin: Origin,
    /// The state directory, locked while this lives.
    _lock: Option<File>,
}

/// Where an id came from.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    /// From `--server-id`.
    Given,
    /// From this file.
    Kept(PathBuf),
    /// It was made just now, and is in this file for the next time.
    Created(PathBuf),
    /// It was made for this process alone.
    Passing,
}

impl Identity {
    /// This id, as the operator gave it.
    pub fn given(id: Uuid) -> Self {
        Identity {
            id,
            origin: Origin::Given,
            _lock: None,
        }
    }

    /// An id that ends with the process.
    pub fn passing() -> Self {
        Identity {
            id: Uuid::new_v4(),
            origin: Origin::Passing,
            _lock: None,
        }
    }

    /// The id kept in `directory`, created there if there is none. The directory is this process's own from now on.
    pub fn in_directory(directory: &Path) -> Result<Self, Error> {
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        let (id, origin) = match read(&path) {
            Ok(content) => (parse(&path, &content)?, Origin::Kept(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = Uuid::new_v4();
                create(directory, &lock, id).map_err(failed("write the server's id to", &path))?;
                (id, Origin::Created(path))
            }
            Err(error) => return Err(failed("read the server's id from", &path)(error)),
        };
        Ok(Identity {
            id,
            origin,
            _lock: Some(lock),
        })
    }
}

/// The beginning of the file, which is more than an id may have. A thing that is no file is not waited for.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut content = Vec::new();
    file.take(128).read_to_end(&mut content)?;
    Ok(content)
}

/// Opens and locks `directory`. The lock ends with the process, however that ends.
fn lock(directory: &Path) -> Result<File, Error> {
    let handle = File::open(directory).map_err(failed("open the state directory", directory))?;
    let kind = handle
        .metadata()
        .map_err(failed("open the state directory", directory))?;
    if !kind.is_dir() {
        return Err(failed("use the state directory", directory)(
            io::ErrorKind::NotADirectory.into(),
        ));
    }
    match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(handle),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::StateInUse {
            directory: directory.to_path_buf(),
        }),
        Err(error) => Err(failed("lock the state directory", directory)(error.into())),
    }
}

/// What the file says, which must be exactly one UUID.
fn parse(path: &Path, content: &[u8]) -> Result<Uuid, Error> {
    let damaged = |problem: String| Error::IdDamaged {
        path: path.to_path_buf(),
        problem,
    };
    let text = content.trim_ascii();
    if text.is_empty() {
        return Err(damaged("it is empty".to_string()));
    }
    let id = Uuid::try_parse_ascii(text)
        .map_err(|_| damaged(format!("its {} bytes are not a UUID", content.len())))?;
    if id.is_nil() {
        return Err(damaged("it is the nil UUID, which is nobody's".to_string()));
    }
    Ok(id)
}

/// Writes the file whole or not at all: beside its place first, on the disk, then moved there.
fn create(directory: &Path, handle: &File, id: Uuid) -> io::Result<()> {
    let unfinished = directory.join(UNFINISHED);
    let written = (|| {
        // What a crash left over goes first, and nothing is followed that may stand in its place.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create_new(&unfinished)?;
        writeln!(file, "{}", id.hyphenated())?;
        file.sync_all()?;
        rustix::fs::renameat_with(handle, UNFINISHED, handle, FILE, RenameFlags::NOREPLACE)?;
        handle.sync_all()
    })();
    if written.is_err() {
        // Nothing to be done if that fails too: it will be overwritten.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

fn failed(verb: &str, object: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let action = format!("{verb} {}", object.display());
    |source| Error::State { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_one_uuid_is_damaged() {
        let path = Path::new("server-id");
        let good = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
        assert!(parse(path, format!("{good}\n").as_bytes()).is_ok());
        for bad in [
            "",
            "\n",
            "6f0c2a52-5f0e",
            "00000000-0000-0000-0000-000000000000",
            &format!("{good}\n{good}\n"),
            "\0\0\0\0",
        ] {
            let error = parse(path, bad.as_bytes()).unwrap_err();
            assert_eq!(error.exit_status(), 78, "{bad:?}");
        }
    }
}
