//! TLS settings.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, NamedGroup, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::error::LoadError;
use crate::options::KeyExchange;

/// Whose certificates are accepted.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// Those of the system's authorities.
    System,
    /// Those of the authorities in a PEM file.
    File(std::path::PathBuf),
    /// All.
    Anything,
}

/// Settings for clients, without resumption of sessions.
pub(crate) fn client(trust: &Trust, exchange: KeyExchange) -> Result<ClientConfig, LoadError> {
    let mut provider = aws_lc_rs::default_provider();
    if exchange == KeyExchange::Classic {
        let classic = [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];
        provider.kx_groups.retain(|group| classic.contains(&group.name()));
    }
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(LoadError::Tls)?;
    let mut config = match trust {
        Trust::System => builder.with_root_certificates(system()).with_no_client_auth(),
        Trust::File(file) => builder.with_root_certificates(authorities(file)?).with_no_client_auth(),
        Trust::Anything => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anything(provider)))
            .with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    // Some multiplexers require it for direct TLS (XEP-0368 s.5); it does no harm after STARTTLS.
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    Ok(config)
}

/// The same, with a memory of its own for session tickets.
pub(crate) fn resuming(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    config.resumption = Resumption::in_memory_sessions(8);
    config
}

fn system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn authorities(file: &Path) -> Result<RootCertStore, LoadError> {
    let unusable =
        |error: &dyn std::fmt::Display| LoadError::Usage(format!("--ca {}: {error}", file.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unusable(&error))? {
        roots.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&"there is no certificate in it"));
    }
    Ok(roots)
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
