//! Server id: a UUID in the state directory, so that it survives a restart.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::info;
use rustix::fs::{Access, FlockOperation};
use rustix::io::Errno;
use uuid::Uuid;

use crate::error::Error;
use shared::args::server_id;
use shared::text::without_errno;

/// File in the state directory that holds the id: the UUID's 36 characters and an LF.
pub const ID_FILE: &str = "server-id";

/// Size in bytes that a file with an id never reaches.
const MAX_ID_SIZE: u64 = 128;

/// Temporary file for a new id. One that a crash has left is replaced.
const TEMPORARY_ID_FILE: &str = "server-id.new";

/// Time for which a locked state directory is tried again.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Interval between these attempts.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Identity of this server.
#[derive(Debug)]
pub struct Identity {
    /// Id of the server.
    pub id: Uuid,
    /// Origin of the id.
    pub origin: Origin,
    /// The state directory, locked as long as this value exists.
    _lock: Option<File>,
}

/// Origin of an id.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    /// Given by `--server-id`.
    Given,
    /// Read from this file.
    Stored(PathBuf),
    /// Created just now, and written to this file for the next start.
    Created(PathBuf),
    /// Created for this process only.
    Ephemeral,
}

impl Identity {
    /// Uses the id that the operator gave. Locks the state `directory`, if there is one.
    pub fn given(id: Uuid, directory: Option<&Path>) -> Result<Self, Error> {
        Ok(Identity {
            id,
            origin: Origin::Given,
            _lock: directory.map(lock).transpose()?,
        })
    }

    /// Creates an id that ends with the process.
    pub fn ephemeral() -> Self {
        Identity {
            id: Uuid::new_v4(),
            origin: Origin::Ephemeral,
            _lock: None,
        }
    }

    /// Replaces an ephemeral id with that of the previous process.
    pub fn adopt(&mut self, id: Option<Uuid>) {
        if let (Origin::Ephemeral, Some(id)) = (&self.origin, id) {
            self.id = id;
        }
    }

    /// Checks that a server could use this directory: that it can read the id there or create one,
    /// unless an id is `given`. Ignores the lock that another server may hold.
    pub fn check(directory: &Path, given: bool) -> Result<(), Error> {
        match try_lock(directory) {
            Ok(_) | Err(Error::StateInUse(_)) => {}
            Err(error) => return Err(error),
        }
        let path = directory.join(ID_FILE);
        if !given && stored(&path)?.is_none() {
            rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|error| failed("write the server's id to", &path)(error.into()))?;
        }
        Ok(())
    }

    /// Reads the id in `directory`, or creates one there. Locks the directory for this process.
    pub fn in_directory(directory: &Path) -> Result<Self, Error> {
        let lock = lock(directory)?;
        let path = directory.join(ID_FILE);
        let (id, origin) = match stored(&path)? {
            Some(id) => (id, Origin::Stored(path)),
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

/// Returns the id in this file; `None` without a file. Does not read, and does not replace,
/// anything but a regular file.
fn stored(path: &Path) -> Result<Option<Uuid>, Error> {
    let failed = |source| failed("read the server's id from", path)(source);
    let content = match fs::metadata(path) {
        Ok(file) if !file.is_file() => return Err(damaged(path, "it is not a regular file")),
        Ok(file) if file.len() >= MAX_ID_SIZE => {
            return Err(damaged(path, "it is longer than an id"));
        }
        Ok(_) => fs::read(path).map_err(failed)?,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Err(_) if path.is_symlink() => {
            return Err(damaged(path, "it is a symbolic link to nothing"));
        }
        Err(_) => return Ok(None),
    };
    let id = server_id(content.trim_ascii());
    id.map(Some).map_err(|problem| damaged(path, problem))
}

/// Opens and locks `directory`. The lock ends with the process, however the process ends. Tries for
/// a while: a check of the settings takes the lock for a moment, too.
fn lock(directory: &Path) -> Result<File, Error> {
    let started = Instant::now();
    loop {
        match try_lock(directory) {
            Err(Error::StateInUse(_)) if started.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(LOCK_INTERVAL);
            }
            locked => return locked,
        }
    }
}

fn try_lock(directory: &Path) -> Result<File, Error> {
    let opened = File::open(directory).and_then(|handle| match handle.metadata()?.is_dir() {
        true => Ok(handle),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    let handle = opened.map_err(failed("open the state directory", directory))?;
    match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(handle),
        Err(Errno::WOULDBLOCK) => Err(Error::StateInUse(format!(
            "the state directory {} is used by another process; give each server its own --state-directory",
            directory.display()
        ))),
        Err(error) => Err(Error::System(format!(
            "can't lock the state directory {}: {}; if its file system has no locks, choose a directory on a local disk, or set \
             --server-id instead of the state directory",
            directory.display(),
            without_errno(&error.into())
        ))),
    }
}

/// Writes the file atomically: to a temporary file first, then synced, then renamed.
fn create(directory: &Path, handle: &File, id: Uuid) -> Result<(), Error> {
    let (temporary, path) = (directory.join(TEMPORARY_ID_FILE), directory.join(ID_FILE));
    // Remove what a crash has left, and never follow a link in its place.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(failed("remove", &temporary)(error));
        }
        // If it can't be removed, creating the file fails and reports the problem.
        _ => {}
    }
    let written = (|| {
        // Whatever the umask: this user must be able to read the file at the next start, and nobody
        // else may write it.
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temporary)?;
        let mode = file.metadata()?.permissions().mode();
        // File systems without permissions refuse this.
        let _ = file.set_permissions(Permissions::from_mode(mode | 0o600));
        writeln!(file, "{}", id.hyphenated())?;
        sync(&file)?;
        // The lock keeps other servers away.
        fs::rename(&temporary, &path)?;
        sync(handle)
    })();
    if written.is_err() {
        // A failure is harmless: the next attempt replaces the file.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed("write the server's id to", &path))
}

/// Syncs the file to disk, if its file system supports that: some do not for directories.
fn sync(file: &File) -> io::Result<()> {
    match rustix::fs::fsync(file) {
        Err(error @ (Errno::INVAL | Errno::BADF | Errno::NOTSUP | Errno::NOSYS)) => {
            let why = without_errno(&error.into());
            info!(why:%; "a power failure now may lose the new id: the state directory can't be synced");
            Ok(())
        }
        synced => Ok(synced?),
    }
}

fn damaged(path: &Path, problem: &str) -> Error {
    Error::Configuration(format!(
        "the server's id in {} is damaged: {problem}; write the right id into it, or remove it to \
         get a new one",
        path.display()
    ))
}

fn failed(verb: &str, object: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let action = format!("{verb} {}", object.display());
    move |source| Error::state(action, &source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_one_uuid_in_its_usual_form_is_refused() {
        let good = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
        assert!(server_id(good.as_bytes()).is_ok());
        assert!(server_id(good.to_uppercase().as_bytes()).is_ok());
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
            assert!(server_id(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
