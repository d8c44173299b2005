//! Credential files: user, password, trusted certificates and client certificate for Redis, the
//! Sentinels or etcd; and the TLS configuration that they make.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::error::{ClusterError, Result};
use crate::config::options::Options;
use shared::text::without_errno;

/// Largest size of a credential file in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Paths of the credential files. They are read for each connection, so that their contents may
/// change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User and password for Redis or etcd.
    pub login: Login,
    /// User and password for the Sentinels, if they differ.
    pub sentinel_login: Login,
    /// `--cluster-ca-file`.
    pub ca: Option<PathBuf>,
    /// `--cluster-certificate-file`.
    pub certificate: Option<PathBuf>,
    /// `--cluster-key-file`.
    pub key: Option<PathBuf>,
}

/// Paths of the files with a user and a password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    /// `--cluster-user-file` or `--cluster-sentinel-user-file`.
    pub user: Option<PathBuf>,
    /// `--cluster-password-file` or `--cluster-sentinel-password-file`.
    pub password: Option<PathBuf>,
}

impl Login {
    /// Reads the user and the password; `None` without a password.
    pub fn read(&self) -> Result<Option<(Option<String>, String)>> {
        let user = self.user.as_deref().map(read_line).transpose()?;
        let password = self.password.as_deref().map(read_line).transpose()?;
        Ok(password.map(|password| (user, password)))
    }
}

impl Credentials {
    /// Returns the files that these options name.
    pub fn new(options: &Options) -> Self {
        Credentials {
            login: Login {
                user: options.cluster_user_file.clone(),
                password: options.cluster_password_file.clone(),
            },
            sentinel_login: Login {
                user: options.cluster_sentinel_user_file.clone(),
                password: options.cluster_sentinel_password_file.clone(),
            },
            ca: options.cluster_ca_file.clone(),
            certificate: options.cluster_certificate_file.clone(),
            key: options.cluster_key_file.clone(),
        }
    }

    /// Adds the files that systemd passes (systemd.exec(5), `LoadCredential=`), where an option
    /// names none. A blank file from systemd counts as absent: the unit's `SetCredential=` creates
    /// it.
    pub fn or_from_systemd(mut self) -> Self {
        let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from) else {
            return self;
        };
        for (file, name) in [
            (&mut self.login.user, "user"),
            (&mut self.login.password, "password"),
            (&mut self.ca, "ca"),
            (&mut self.certificate, "certificate"),
            (&mut self.key, "key"),
            (&mut self.sentinel_login.user, "sentinel-user"),
            (&mut self.sentinel_login.password, "sentinel-password"),
        ] {
            let passed = directory.join(format!("cluster-{name}"));
            let is_blank = fs::read(&passed).is_ok_and(|text| text.trim_ascii().is_empty());
            if file.is_none() && passed.exists() && !is_blank {
                *file = Some(passed);
            }
        }
        self
    }

    /// Checks that the files can be read and are well-formed.
    pub fn check(&self) -> Result<()> {
        for (login, flag) in [
            (&self.login, "--cluster"),
            (&self.sentinel_login, "--cluster-sentinel"),
        ] {
            if login.read()?.is_none() && login.user.is_some() {
                return Err(ClusterError::denied(format!(
                    "{flag}-user-file names a user without a password: give it a {flag}-password-file"
                )));
            }
        }
        match (&self.ca, &self.certificate, &self.key) {
            (None, None, None) => Ok(()),
            _ => self.tls().map(|_| ()),
        }
    }

    /// Returns the files for the Sentinels: those for Redis, unless a Sentinel password is
    /// configured.
    pub fn for_sentinels(&self) -> &Login {
        match self.sentinel_login.password {
            Some(_) => &self.sentinel_login,
            None => &self.login,
        }
    }

    /// Creates the TLS configuration. It trusts the certificates of the configured file, or those
    /// that the system trusts, and presents the client certificate if one is configured.
    pub fn tls(&self) -> Result<Arc<ClientConfig>> {
        let roots = match &self.ca {
            Some(file) => certificates(file)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        if roots.is_empty() {
            return Err(ClusterError::denied(
                "this system believes no certificate: name those to believe with --cluster-ca-file",
            ));
        }
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ClusterError::denied(error.to_string()))?
            .with_root_certificates(store);
        let (certificate, key) = match (&self.certificate, &self.key) {
            (None, None) => return Ok(Arc::new(config.with_no_client_auth())),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(certificate), None) => {
                return Err(problem(
                    certificate,
                    "is a certificate without its private key: name that with --cluster-key-file",
                ));
            }
            (None, Some(key)) => {
                return Err(problem(
                    key,
                    "is a private key without its certificate: name that with --cluster-certificate-file",
                ));
            }
        };
        // The intermediate certificates follow that of this server.
        let config = config.with_client_auth_cert(certificates(certificate)?, private_key(key)?);
        config.map(Arc::new).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let what = "is not the private key of the first certificate in";
                problem(key, format!("{what} {}", certificate.display()))
            }
            rustls::Error::General(_) => problem(
                key,
                "holds a private key of a kind that is not supported: take RSA with 2048 bits or more, ECDSA with P-256 or \
                 P-384, or Ed25519",
            ),
            error => problem(certificate, format!("is not usable: {error}")),
        })
    }
}

/// Reads all certificates of `file`, at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let certificates = certificates.ok().filter(|found| !found.is_empty());
    certificates.ok_or_else(|| problem(file, "holds no whole certificate in the PEM format"))
}

/// Reads the first private key of `file`.
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = read(file)?;
    // PKCS #8 declares encryption in the first line, the older formats in the second.
    let encrypted = [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----",
        "Proc-Type: 4,ENCRYPTED",
    ];
    if encrypted.iter().any(|mark| text.contains(mark)) {
        return Err(problem(
            file,
            "holds an encrypted private key, and there is nobody to ask for its passphrase: decrypt it with openssl pkey",
        ));
    }
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| problem(file, "holds no whole private key in the PEM format"))
}

/// Reads the only line of `file`; blank lines may follow it.
fn read_line(file: &Path) -> Result<String> {
    let text = read(file)?;
    let mut lines = text.lines();
    match lines.next() {
        Some(line) if !line.is_empty() && lines.all(str::is_empty) => Ok(line.to_string()),
        _ => Err(problem(file, "must hold one line, and does not")),
    }
}

fn read(file: &Path) -> Result<String> {
    let error = |why: &str| ClusterError::denied(format!("can't read {}: {why}", file.display()));
    let failed = |source: io::Error| error(&without_errno(&source));
    let metadata = fs::metadata(file).map_err(failed)?;
    // Credentials are read for each connection, but a pipe can be read only once.
    if !metadata.is_file() {
        return Err(error("it is not a regular file"));
    }
    if metadata.len() > LARGEST_FILE {
        return Err(error("it is larger than 1 MiB"));
    }
    fs::read_to_string(file).map_err(failed)
}

fn problem(file: &Path, what: impl std::fmt::Display) -> ClusterError {
    ClusterError::denied(format!("{} {what}", file.display()))
}
