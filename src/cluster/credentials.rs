//! Who this server is to the place where the servers meet, and whom it believes there: what its files say.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::settings::{Given, wrong};
use crate::error::{Error, plain};

/// The most bytes of a file with a user, a password or certificates.
const LARGEST_FILE: u64 = 1 << 20;

/// The files that say who this server is to the place where the servers meet, and whom to believe there. They are read for each
/// connection, so that what is in them may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    user: Option<PathBuf>,
    password: Option<PathBuf>,
    ca: Option<PathBuf>,
}

impl Credentials {
    /// The files that were named, else those that systemd passes (systemd.exec(5), `LoadCredential=`). One that systemd passes
    /// blank is not there: the unit's `SetCredential=` makes it.
    pub fn find(given: &Given) -> Self {
        let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let is_blank =
            |file: &PathBuf| fs::read(file).is_ok_and(|text| text.trim_ascii().is_empty());
        let find = |file: &Option<PathBuf>, name: &str| {
            let passed = || directory.as_ref().map(|directory| directory.join(name));
            file.clone()
                .or_else(|| passed().filter(|file| file.exists() && !is_blank(file)))
        };
        Credentials {
            user: find(&given.user_file, "cluster-user"),
            password: find(&given.password_file, "cluster-password"),
            ca: find(&given.ca_file, "cluster-ca"),
        }
    }

    /// Refuses files that can't be read, or hold something else.
    pub fn check(&self) -> Result<(), Error> {
        let user = self.user().map_err(wrong)?;
        let password = self.password().map_err(wrong)?;
        if user.is_some() && password.is_none() {
            return Err(wrong(
                "--cluster-user-file names a user without a password: give it a --cluster-password-file",
            ));
        }
        self.certificates().map_err(wrong)?;
        Ok(())
    }

    /// The user, if there is one.
    pub fn user(&self) -> Result<Option<String>, String> {
        word(self.user.as_deref())
    }

    /// The password, if there is one.
    pub fn password(&self) -> Result<Option<String>, String> {
        word(self.password.as_deref())
    }

    /// Certificates of those whom to believe, if not those whom the system believes.
    pub fn certificates(&self) -> Result<Option<Vec<CertificateDer<'static>>>, String> {
        let Some(file) = &self.ca else {
            return Ok(None);
        };
        let text = read(file)?;
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(Some(certificates)),
            _ => Err(format!(
                "{} holds no whole certificate in the PEM format",
                file.display()
            )),
        }
    }
}

/// The first line of `file`.
fn word(file: Option<&Path>) -> Result<Option<String>, String> {
    let Some(file) = file else { return Ok(None) };
    let text = read(file)?;
    let mut lines = text.lines();
    let word = lines.next().unwrap_or_default();
    if word.is_empty() || lines.any(|line| !line.is_empty()) {
        let file = file.display();
        return Err(format!("{file} must hold one line, and does not"));
    }
    Ok(Some(word.to_string()))
}

fn read(file: &Path) -> Result<String, String> {
    let problem = |why: &str| format!("can't read {}: {why}", file.display());
    let failed = |error: io::Error| problem(&plain(&error));
    // A pipe is read once, and it is read for each connection.
    if !fs::metadata(file).map_err(failed)?.is_file() {
        return Err(problem("it is no regular file"));
    }
    let mut text = String::new();
    let mut file = File::open(file).map_err(failed)?.take(LARGEST_FILE + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(problem("it is larger than 1 MiB"));
    }
    Ok(text)
}
