//! Whom to believe when TLS is spoken with the place where the servers meet.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::credentials::Credentials;
use super::trouble::{Kind, Trouble};

/// Believes the certificates that were named, else those that the system believes.
pub fn roots(credentials: &Credentials) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    let problem = |what: String| Trouble::new(Kind::Denied, what);
    let Some(text) = credentials.certificates().map_err(problem)? else {
        let found = rustls_native_certs::load_native_certs();
        return match found.certs {
            none if none.is_empty() => Err(problem(
                "this system believes no certificate: name those to believe with --cluster-ca-file"
                    .to_string(),
            )),
            certificates => Ok(certificates),
        };
    };
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| problem(format!("--cluster-ca-file is damaged: {error}")))
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
