//! TLS settings of the client.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::ClientError;

pub(crate) fn trust_pem(file: &Path) -> Result<Arc<ClientConfig>, ClientError> {
    let name = file.display();
    let certificates =
        CertificateDer::pem_file_iter(file).map_err(|error| ClientError::Tls(format!("{name}: {error}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| ClientError::Tls(format!("{name}: {error}")))?;
        roots.add(certificate).map_err(|error| ClientError::Tls(format!("{name}: {error}")))?;
    }
    Ok(with_roots(roots))
}

pub(crate) fn trust_none() -> Arc<ClientConfig> {
    with_roots(RootCertStore::empty())
}

fn with_roots(roots: RootCertStore) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("invariant: the provider supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Harmless after STARTTLS, and required by some multiplexers for direct TLS.
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    Arc::new(config)
}
