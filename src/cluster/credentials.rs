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
use crate::config::credentials::from_systemd;
use crate::config::options::Credentials;
use shared::text::without_errno;

/// Largest size of a credential file in bytes.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// User and password, if there is a password; without a user, the service's default is meant.
pub type Login = Option<(Option<String>, String)>;

impl Credentials {
    /// Reads the user and the password for Redis or etcd.
    pub fn login(&self) -> Result<Login> {
        read_login(&self.cluster_user_file, &self.cluster_password_file)
    }

    /// Reads those for the Sentinels, which are those for Redis unless there is a Sentinel password.
    pub fn sentinel_login(&self) -> Result<Login> {
        match &self.cluster_sentinel_password_file {
            None => self.login(),
            password => read_login(&self.cluster_sentinel_user_file, password),
        }
    }

    /// Adds the files that systemd passes, where an option names none.
    pub fn or_from_systemd(mut self) -> Self {
        for (file, name) in [
            (&mut self.cluster_user_file, "user"),
            (&mut self.cluster_password_file, "password"),
            (&mut self.cluster_ca_file, "ca"),
            (&mut self.cluster_certificate_file, "certificate"),
            (&mut self.cluster_key_file, "key"),
            (&mut self.cluster_sentinel_user_file, "sentinel-user"),
            (
                &mut self.cluster_sentinel_password_file,
                "sentinel-password",
            ),
        ] {
            if file.is_none() {
                *file = from_systemd(&format!("cluster-{name}"));
            }
        }
        self
    }

    /// Checks that the files can be read and are well-formed.
    pub fn check(&self) -> Result<()> {
        let (user, sentinel_user) = (&self.cluster_user_file, &self.cluster_sentinel_user_file);
        let sentinel = read_login(sentinel_user, &self.cluster_sentinel_password_file)?;
        for (login, user, flag) in [
            (self.login()?, user, "--cluster"),
            (sentinel, sentinel_user, "--cluster-sentinel"),
        ] {
            if login.is_none() && user.is_some() {
                return Err(ClusterError::denied(format!(
                    "{flag}-user-file names a user without a password: give it a {flag}-password-file"
                )));
            }
        }
        let (ca, key) = (&self.cluster_ca_file, &self.cluster_key_file);
        match (ca, &self.cluster_certificate_file, key) {
            (None, None, None) => Ok(()),
            _ => self.tls().map(|_| ()),
        }
    }

    /// Creates the TLS configuration. It trusts the certificates of the configured file, or those
    /// that the system trusts, and presents the client certificate if one is configured.
    pub fn tls(&self) -> Result<Arc<ClientConfig>> {
        let roots = match &self.cluster_ca_file {
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
        let (certificate, key) = match (&self.cluster_certificate_file, &self.cluster_key_file) {
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

fn read_login(user: &Option<PathBuf>, password: &Option<PathBuf>) -> Result<Login> {
    let user = user.as_deref().map(read_line).transpose()?;
    let password = password.as_deref().map(read_line).transpose()?;
    Ok(password.map(|password| (user, password)))
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
    if metadata.len() > MAX_FILE_SIZE {
        return Err(error("it is larger than 1 MiB"));
    }
    fs::read_to_string(file).map_err(failed)
}

fn problem(file: &Path, what: impl std::fmt::Display) -> ClusterError {
    ClusterError::denied(format!("{} {what}", file.display()))
}
