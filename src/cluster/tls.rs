//! Whom to believe when TLS is spoken with the place where the servers meet.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::credentials::Credentials;
use super::trouble::{Kind, Trouble};

/// Believes the certificates that were named, else those that the system believes.
pub fn roots(credentials: &Credentials) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    let problem = |what: String| Trouble::new(Kind::Denied, what);
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

/// What speaks TLS.
pub fn client(credentials: &Credentials) -> Result<Arc<ClientConfig>, Trouble> {
    let problem = |error: rustls::Error| Trouble::new(Kind::Denied, error.to_string());
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots(credentials)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(problem)?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
