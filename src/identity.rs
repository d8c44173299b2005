//! The id of this server: a UUID that is kept in the state directory, so that it survives a restart.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use log::info;
use rustix::fs::{Access, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::error::{Error, plain};

/// The file in the state directory that holds the id: the UUID's 36 characters and an LF.
pub const FILE: &str = "server-id";

/// No file that holds an id has so many bytes.
const LONGEST: u64 = 128;

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
    Ephemeral,
}

impl Identity {
    /// This id, as the operator gave it. If there is a `directory`, it is this process's own all the same.
    pub fn given(id: Uuid, directory: Option<&Path>) -> Result<Self, Error> {
        Ok(Identity {
            id,
            origin: Origin::Given,
            _lock: directory.map(lock).transpose()?,
        })
    }

    /// An id that ends with the process.
    pub fn ephemeral() -> Self {
        Identity {
            id: Uuid::new_v4(),
            origin: Origin::Ephemeral,
            _lock: None,
        }
    }

    /// Goes on with the id of the process before, unless there is one that is kept.
    pub fn adopt(&mut self, id: Option<Uuid>) {
        if let (Origin::Ephemeral, Some(id)) = (&self.origin, id) {
            self.id = id;
        }
    }

    /// Whether a server could use this directory, and find an id there or make one unless one is `given`, but for the lock
    /// that another server may have.
    pub fn check(directory: &Path, given: bool) -> Result<(), Error> {
        match lock(directory) {
            Ok(_) | Err(Error::StateInUse { .. }) => {}
            Err(error) => return Err(error),
        }
        let path = directory.join(FILE);
        if !given && kept(&path)?.is_none() {
            rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|error| failed("write the server's id to", &path)(error.into()))?;
        }
        Ok(())
    }

    /// The id kept in `directory`, created there if there is none. The directory is this process's own from now on.
    pub fn in_directory(directory: &Path) -> Result<Self, Error> {
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        let (id, origin) = match kept(&path)? {
            Some(id) => (id, Origin::Kept(path)),
            None => {
                let id = Uuid::new_v4();
                create(directory, &lock, id)?;
                (id, Origin::Created(path))
            }
        };
        Ok(Identity {
            id,
            origin,
            _lock: Some(lock),
        })
    }
}

/// The id in this file, if there is one.
fn kept(path: &Path) -> Result<Option<Uuid>, Error> {
    let parsed = read(path)?.map(|content| parse(content.trim_ascii()));
    parsed.transpose().map_err(|problem| damaged(path, problem))
}

/// What the file holds; nothing if there is none. A thing that is no file is not waited for, and not replaced.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let failed = |source| failed("read the server's id from", path)(source);
    let opened = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::symlink_metadata(path) {
                Ok(_) => Err(damaged(path, "it is a symbolic link to nothing")),
                Err(_) => Ok(None),
            };
        }
        // A socket (open(2)).
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Err(damaged(path, "it is no regular file"));
        }
        Err(error) => return Err(failed(error)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(damaged(path, "it is no regular file"));
    }
    let mut content = Vec::new();
    file.take(LONGEST)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 == LONGEST {
        return Err(damaged(path, "it is longer than an id"));
    }
    Ok(Some(content))
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
        Err(Errno::WOULDBLOCK) => Err(Error::StateInUse {
            directory: directory.to_path_buf(),
        }),
        Err(error) => Err(Error::StateLock {
            directory: directory.to_path_buf(),
            source: error.into(),
        }),
    }
}

/// The UUID that `text` is, in its usual form of 36 characters (RFC 9562, section 4), or what is wrong with it.
pub fn parse(text: &[u8]) -> Result<Uuid, &'static str> {
    match Uuid::try_parse_ascii(text) {
        Ok(id) if id.is_nil() => Err("the nil UUID is nobody's id"),
        // The package knows other forms, too.
        Ok(id) if text.len() == uuid::fmt::Hyphenated::LENGTH => Ok(id),
        _ if text.is_empty() => Err("it is empty"),
        _ => Err("not a UUID, such as 6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e (uuidgen makes one)"),
    }
}

/// Writes the file whole or not at all: beside its place first, on the disk, then moved there.
fn create(directory: &Path, handle: &File, id: Uuid) -> Result<(), Error> {
    let (unfinished, path) = (directory.join(UNFINISHED), directory.join(FILE));
    // What a crash left over goes first, and nothing is followed that may stand in its place.
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(failed("remove", &unfinished)(error));
        }
        // If there is something that can't be removed, the file can't be made, which says so.
        _ => {}
    }
    let written = (|| {
        // Whatever the umask: this user reads it at the next start, and nobody else writes it.
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&unfinished)?;
        let mode = file.metadata()?.permissions().mode();
        // A file system without permissions refuses it.
        let _ = file.set_permissions(Permissions::from_mode(mode | 0o600));
        writeln!(file, "{}", id.hyphenated())?;
        sync(&file)?;
        match rustix::fs::renameat_with(handle, UNFINISHED, handle, FILE, RenameFlags::NOREPLACE) {
            // Not every file system has it (renameat2(2)), and some sandboxes forbid it; the lock keeps other servers away.
            Err(error) if error != Errno::EXIST => {
                rustix::fs::renameat(handle, UNFINISHED, handle, FILE)
            }
            renamed => renamed,
        }?;
        sync(handle)
    })();
    if written.is_err() {
        // Nothing to be done if that fails too: it will be overwritten.
        let _ = fs::remove_file(&unfinished);
    }
    written.map_err(failed("write the server's id to", &path))
}

/// Has the disk keep it, if its file system can do that: some can't with directories.
fn sync(file: &File) -> io::Result<()> {
    match rustix::fs::fsync(file) {
        Err(error @ (Errno::INVAL | Errno::BADF | Errno::NOTSUP | Errno::NOSYS)) => {
            let why = plain(&error.into());
            info!(why:%; "a power failure now may lose the new id: the state directory can't be synced");
            Ok(())
        }
        synced => Ok(synced?),
    }
}

fn damaged(path: &Path, problem: &'static str) -> Error {
    Error::IdDamaged {
        path: path.to_path_buf(),
        problem,
    }
}

fn failed(verb: &str, object: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let action = format!("{verb} {}", object.display());
    |source| Error::State { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_one_uuid_in_its_usual_form_is_refused() {
        let good = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
        assert!(parse(good.as_bytes()).is_ok());
        assert!(parse(good.to_uppercase().as_bytes()).is_ok());
        for bad in [
            "",
            "6f0c2a52-5f0e",
            "00000000-0000-0000-0000-000000000000",
            &format!("{good}\n{good}"),
            &format!("{{{good}}}"),
            &format!("urn:uuid:{good}"),
            &good.replace('-', ""),
            "\0\0\0\0",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
