//! TLS settings of the client.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

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

pub(crate) fn trust_anything() -> Arc<ClientConfig> {
    let provider = provider();
    let builder =
        builder(&provider).dangerous().with_custom_certificate_verifier(Arc::new(Anything(provider)));
    finish(builder.with_no_client_auth())
}

fn with_roots(roots: RootCertStore) -> Arc<ClientConfig> {
    finish(builder(&provider()).with_root_certificates(roots).with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn builder(provider: &Arc<CryptoProvider>) -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("invariant: the provider supports the default versions")
}

/// The protocol name is harmless after STARTTLS and required by some multiplexers for direct TLS.
fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    Arc::new(config)
}

/// Accepts every certificate, but still checks that the server holds its key.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
