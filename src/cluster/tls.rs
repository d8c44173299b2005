//! TLS client configuration for Redis, the Sentinels and etcd.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::credentials::Credentials;
use super::error::{ClusterError, Result};

/// Creates the TLS configuration. It trusts the certificates of the configured file, or those that
/// the system trusts, and presents the client certificate if one is configured.
pub fn client(credentials: &Credentials) -> Result<Arc<ClientConfig>> {
    let roots = match credentials.trusted_certificates()? {
        Some(configured) => configured,
        None => rustls_native_certs::load_native_certs().certs,
    };
    if roots.is_empty() {
        return Err(ClusterError::denied(
            "this system believes no certificate: name those to believe with --cluster-ca-file",
        ));
    }
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    let denied = |error: rustls::Error| ClusterError::denied(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(denied)?
        .with_root_certificates(store);
    let config = match credentials.client_certificate()? {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(denied)?,
        None => config.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}
