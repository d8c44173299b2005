//! Credential files: user, password, trusted certificates and client certificate for Redis, the
//! Sentinels or etcd.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::settings::{ClusterArgs, wrong};
use crate::error::Error;
use shared::text::without_errno;

/// Largest size of a credential file in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Paths of the credential files. They are read for each connection, so that their contents may
/// change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    user: Option<PathBuf>,
    password: Option<PathBuf>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    sentinel_user: Option<PathBuf>,
    sentinel_password: Option<PathBuf>,
}

/// Client certificate: the certificate of this server, the intermediate ones after it, and the
/// private key.
pub struct ClientCertificate {
    /// The certificate of this server first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key of the first certificate; the two match.
    pub key: PrivateKeyDer<'static>,
    /// PEM text in which that key is the first.
    pub pem: String,
}

impl Credentials {
    /// Finds the files: those that the options name, else those that systemd passes
    /// (systemd.exec(5), `LoadCredential=`). A blank file from systemd counts as absent: the unit's
    /// `SetCredential=` creates it.
    pub fn find(given: &ClusterArgs) -> Self {
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
            certificate: find(&given.certificate_file, "cluster-certificate"),
            key: find(&given.key_file, "cluster-key"),
            sentinel_user: find(&given.sentinel_user_file, "cluster-sentinel-user"),
            sentinel_password: find(&given.sentinel_password_file, "cluster-sentinel-password"),
        }
    }

    /// Checks that the files can be read and are well-formed.
    pub fn check(&self) -> Result<(), Error> {
        let user = self.user().map_err(wrong)?;
        let password = self.password().map_err(wrong)?;
        if user.is_some() && password.is_none() {
            return Err(wrong(
                "--cluster-user-file names a user without a password: give it a --cluster-password-file",
            ));
        }
        let (user, password) = (&self.sentinel_user, &self.sentinel_password);
        let user = word(user.as_deref()).map_err(wrong)?;
        let password = word(password.as_deref()).map_err(wrong)?;
        if user.is_some() && password.is_none() {
            return Err(wrong(
                "--cluster-sentinel-user-file names a user without a password: give it a --cluster-sentinel-password-file",
            ));
        }
        self.certificates().map_err(wrong)?;
        self.client_certificate().map_err(wrong)?;
        Ok(())
    }

    /// Returns the user, if one is configured.
    pub fn user(&self) -> Result<Option<String>, String> {
        word(self.user.as_deref())
    }

    /// Returns the password, if one is configured.
    pub fn password(&self) -> Result<Option<String>, String> {
        word(self.password.as_deref())
    }

    /// Returns the user and the password for the Sentinels: those for Redis, unless a Sentinel
    /// password is configured.
    pub fn for_sentinels(&self) -> Result<(Option<String>, Option<String>), String> {
        match word(self.sentinel_password.as_deref())? {
            Some(password) => Ok((word(self.sentinel_user.as_deref())?, Some(password))),
            None => Ok((self.user()?, self.password()?)),
        }
    }

    /// Returns whether a Sentinel password is configured.
    pub fn are_sentinels_apart(&self) -> bool {
        self.sentinel_password.is_some()
    }

    /// Returns the trusted certificates, if configured; otherwise those of the system apply.
    pub fn certificates(&self) -> Result<Option<Vec<CertificateDer<'static>>>, String> {
        let Some(file) = &self.ca else {
            return Ok(None);
        };
        certificates(file).map(Some)
    }

    /// Returns the client certificate, if one is configured.
    pub fn client_certificate(&self) -> Result<Option<ClientCertificate>, String> {
        let (certificate, key) = match (&self.certificate, &self.key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(certificate), None) => {
                return Err(format!(
                    "{} is a certificate without its private key: name that with --cluster-key-file",
                    certificate.display()
                ));
            }
            (None, Some(key)) => {
                return Err(format!(
                    "{} is a private key without its certificate: name that with --cluster-certificate-file",
                    key.display()
                ));
            }
        };
        let pem = read(key)?;
        let shown = ClientCertificate {
            chain: certificates(certificate)?,
            key: private_key(key, &pem)?,
            pem,
        };
        let (chain, der) = (shown.chain.clone(), shown.key.clone_key());
        let provider = rustls::crypto::ring::default_provider();
        match CertifiedKey::from_der(chain, der, &provider) {
            Ok(_) => Ok(Some(shown)),
            Err(rustls::Error::InconsistentKeys(_)) => Err(format!(
                "{} is not the private key of the first certificate in {}",
                key.display(),
                certificate.display()
            )),
            Err(rustls::Error::General(_)) => Err(format!(
                "{} holds a private key of a kind that is not supported: take RSA with 2048 bits or more, ECDSA with P-256 or \
                 P-384, or Ed25519",
                key.display()
            )),
            Err(error) => Err(format!("{}: {error}", certificate.display())),
        }
    }
}

/// Returns all certificates in `file`, at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!(
            "{} holds no whole certificate in the PEM format",
            file.display()
        )),
    }
}

/// Returns the first private key in the `text` of `file`.
fn private_key(file: &Path, text: &str) -> Result<PrivateKeyDer<'static>, String> {
    // PKCS #8 declares encryption in the first line, the older formats in the second.
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        || text.contains("Proc-Type: 4,ENCRYPTED")
    {
        return Err(format!(
            "{} holds an encrypted private key, and there is nobody to ask for its passphrase: decrypt it with openssl pkey",
            file.display()
        ));
    }
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
        format!(
            "{} holds no whole private key in the PEM format",
            file.display()
        )
    })
}

/// Returns the only line of `file`; blank lines may follow it.
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
    let failed = |error: io::Error| problem(&without_errno(&error));
    // Credentials are read for each connection, but a pipe can be read only once.
    if !fs::metadata(file).map_err(failed)?.is_file() {
        return Err(problem("it is not a regular file"));
    }
    let mut text = String::new();
    let mut file = File::open(file).map_err(failed)?.take(LARGEST_FILE + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(problem("it is larger than 1 MiB"));
    }
    Ok(text)
}
