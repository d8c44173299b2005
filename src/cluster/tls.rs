//! TLS towards Redis, the Sentinels and etcd: trusted certificates and the client certificate.

use std::io;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription as Alert, ClientConfig, RootCertStore};

use super::credentials::{ClientCertificate, Credentials};
use super::error::{ClusterError, ErrorKind};
use shared::text::without_errno;

/// Returns the trusted certificates: those of the configured file, or those that the system trusts.
pub fn roots(credentials: &Credentials) -> Result<Vec<CertificateDer<'static>>, ClusterError> {
    let problem = |what: String| ClusterError::new(ErrorKind::Denied, what);
    if let Some(named) = credentials.certificates().map_err(problem)? {
        return Ok(named);
    }
    match rustls_native_certs::load_native_certs().certs {
        none if none.is_empty() => Err(problem(
            "this system believes no certificate: name those to believe with --cluster-ca-file"
                .to_string(),
        )),
        certificates => Ok(certificates),
    }
}

/// Returns the client certificate, if one is configured.
pub fn client_certificate(
    credentials: &Credentials,
) -> Result<Option<ClientCertificate>, ClusterError> {
    let problem = |what: String| ClusterError::new(ErrorKind::Denied, what);
    credentials.client_certificate().map_err(problem)
}

/// Creates a TLS client configuration.
pub fn client(credentials: &Credentials) -> Result<Arc<ClientConfig>, ClusterError> {
    let problem = |error: rustls::Error| ClusterError::new(ErrorKind::Denied, error.to_string());
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots(credentials)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(problem)?
        .with_root_certificates(store);
    let config = match client_certificate(credentials)? {
        Some(ClientCertificate { chain, key, .. }) => {
            config.with_client_auth_cert(chain, key).map_err(problem)?
        }
        None => config.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Describes a connection error, with advice if the other side rejected this server's certificate.
pub fn explain(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let advice = match inner {
        Some(rustls::Error::AlertReceived(
            Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate,
        )) => " (of this server, or for want of one: --cluster-certificate-file)",
        _ => "",
    };
    without_errno(error) + advice
}
