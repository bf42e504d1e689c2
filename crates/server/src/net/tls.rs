//! TLS with rustls: our certificates by domain, the configurations for each side, the roots we trust.
//!
//! TLS 1.2 and 1.3 only, post-quantum key exchange (X25519MLKEM768) preferred. Towards servers a handshake never fails
//! over trust: the peer must prove that it has the key of the certificate it shows, and nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoClientAuth, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};

use super::cert::{CertInfo, CertName, dns_matches, end_point, to_ascii};
use super::handshake::Tap;

/// What is wrong with a certificate, a key or a list of roots. The operator's fault, so it names the file.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TlsError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: contains no certificate (a PEM file with BEGIN CERTIFICATE is wanted)", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{}: contains no private key (PEM with BEGIN PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY)", path.display())]
    NoKey { path: PathBuf },
    #[error("{}: the private key is encrypted; the server needs it without a passphrase", path.display())]
    EncryptedKey { path: PathBuf },
    #[error("{}: not valid PEM: {reason}", path.display())]
    BadPem { path: PathBuf, reason: String },
    #[error("{}: {reason}", path.display())]
    BadCertificate { path: PathBuf, reason: String },
    #[error("{}: the private key cannot be used: {reason}", path.display())]
    BadKey { path: PathBuf, reason: String },
    #[error("{} and {} do not belong together: the key is not the certificate's", key.display(), chain.display())]
    Mismatch { chain: PathBuf, key: PathBuf },
    #[error("no certificate is configured")]
    Empty,
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// Which of our listeners a connection came in through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Clients: no certificate is asked for, sessions can be resumed, ALPN `xmpp-client`.
    Clients,
    /// Other servers: a certificate is asked for but not required, no resumption, ALPN `xmpp-server`.
    Servers,
    /// Browsers and programs: no certificate is asked for, no resumption, ALPN `http/1.1`.
    Web,
}

/// Where a certificate is found.
#[derive(Clone, Debug)]
pub struct CertSource {
    /// Domains it was configured for (they take precedence over the names in it); may be empty.
    pub domains: Vec<String>,
    /// PEM: own certificate first, then the intermediates.
    pub chain: PathBuf,
    /// PEM: PKCS #8, SEC1 or PKCS #1. May be the same file.
    pub key: PathBuf,
}

/// One of our certificates, ready for use.
#[derive(Debug)]
pub struct Identity {
    /// What the certificate says.
    pub info: CertInfo,
    /// `tls-server-end-point` of our certificate, RFC 5929; None for Ed25519.
    pub end_point: Option<Vec<u8>>,
    domains: Vec<String>,
    clients: Arc<ServerConfig>,
    servers: Arc<ServerConfig>,
    web: Arc<ServerConfig>,
    outgoing: Arc<ClientConfig>,
}

impl Identity {
    /// The configuration of a listener.
    pub fn server(&self, side: Side) -> &Arc<ServerConfig> {
        match side {
            Side::Clients => &self.clients,
            Side::Servers => &self.servers,
            Side::Web => &self.web,
        }
    }

    /// The configuration of connections to other servers: presents this certificate.
    pub fn outgoing(&self) -> &Arc<ClientConfig> {
        &self.outgoing
    }
}

/// Our certificates by domain; exchanged as a whole on reload. Live connections keep the one they began with.
#[derive(Debug)]
pub struct CertStore {
    identities: ArcSwap<Vec<Arc<Identity>>>,
}

impl CertStore {
    /// Loads all certificates; the first is the default.
    pub fn load(sources: &[CertSource]) -> Result<Arc<CertStore>, TlsError> {
        Ok(Arc::new(CertStore { identities: ArcSwap::from_pointee(load_all(sources)?) }))
    }

    /// Loads all certificates again. An error changes nothing.
    pub fn reload(&self, sources: &[CertSource]) -> Result<(), TlsError> {
        self.identities.store(Arc::new(load_all(sources)?));
        Ok(())
    }

    /// The certificate for `domain` (server name of a handshake, or a stream's `to`): configured for it, naming it,
    /// naming it by wildcard, the default.
    pub fn for_domain(&self, domain: Option<&str>) -> Arc<Identity> {
        let all = self.identities.load();
        let wanted = domain.and_then(to_ascii);
        let exact = |i: &&Arc<Identity>, wanted: &str| {
            i.info.names.iter().any(|name| matches!(name, CertName::Dns(name) if name == wanted))
        };
        let wild = |i: &&Arc<Identity>, wanted: &str| {
            i.info.names.iter().any(|name| matches!(name, CertName::Dns(name) if dns_matches(name, wanted)))
        };
        let found = wanted.as_deref().and_then(|wanted| {
            all.iter()
                .find(|i| i.domains.iter().any(|domain| domain == wanted))
                .or_else(|| all.iter().find(|i| exact(i, wanted)))
                .or_else(|| all.iter().find(|i| wild(i, wanted)))
        });
        found.unwrap_or(&all[0]).clone()
    }

    /// All certificates, the default first.
    pub fn all(&self) -> Arc<Vec<Arc<Identity>>> {
        self.identities.load_full()
    }
}

fn load_all(sources: &[CertSource]) -> Result<Vec<Arc<Identity>>, TlsError> {
    if sources.is_empty() {
        return Err(TlsError::Empty);
    }
    sources.iter().map(|source| load_identity(source).map(Arc::new)).collect()
}

fn load_identity(source: &CertSource) -> Result<Identity, TlsError> {
    let chain = read_chain(&source.chain)?;
    let info = CertInfo::read(&chain[0])
        .map_err(|reason| TlsError::BadCertificate { path: source.chain.clone(), reason })?;
    let end_point = end_point(&chain[0]);
    let key = read_key(&source.key)?;
    let provider = provider();
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { chain: source.chain.clone(), key: source.key.clone() }
        }
        rustls::Error::InvalidCertificate(e) => {
            TlsError::BadCertificate { path: source.chain.clone(), reason: format!("{e:?}") }
        }
        other => TlsError::BadKey { path: source.key.clone(), reason: other.to_string() },
    })?;
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    Ok(Identity {
        info,
        end_point,
        domains: source.domains.iter().filter_map(|domain| to_ascii(domain)).collect(),
        clients: clients_config(&provider, resolver.clone()).map_err(TlsError::Setup)?,
        servers: servers_config(&provider, resolver.clone()).map_err(TlsError::Setup)?,
        web: web_config(&provider, resolver.clone()).map_err(TlsError::Setup)?,
        outgoing: outgoing_config(&provider, Some(resolver)).map_err(TlsError::Setup)?,
    })
}

fn clients_config(
    provider: &Arc<CryptoProvider>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(quick_first(provider)))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(NoClientAuth))
        .with_cert_resolver(resolver);
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    // The ticket's key belongs to this certificate and dies with it on reload: so a resumed session has the same
    // `tls-server-end-point` as the one it continues.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    // RFC 9266 s.4.2: `tls-exporter` under TLS 1.2 is only sound with the extended master secret (RFC 7627), and
    // rustls does not tell whether it was used.
    config.require_ems = true;
    lend_keys(&mut config);
    Ok(Arc::new(config))
}

/// AES-128-GCM goes first: processors compute its SHA-256 in hardware, which few do for the SHA-384 that comes with
/// AES-256, and a handshake hashes a lot (a tenth of a login, design/007-transport.md).
fn quick_first(provider: &CryptoProvider) -> CryptoProvider {
    let mut provider = provider.clone();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn servers_config(
    provider: &Arc<CryptoProvider>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(PossessionOnly::new(provider)))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"xmpp-server".to_vec()];
    // Each connection proves possession of its key afresh.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    lend_keys(&mut config);
    Ok(Arc::new(config))
}

fn web_config(
    provider: &Arc<CryptoProvider>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(NoClientAuth))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    lend_keys(&mut config);
    Ok(Arc::new(config))
}

/// After a handshake of TLS 1.3 the records are ours: [`Records`](super::record::Records).
fn lend_keys(config: &mut ServerConfig) {
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(Tap);
}

/// The configuration of connections to other servers without a certificate of ours.
pub fn anonymous_outgoing() -> Result<Arc<ClientConfig>, TlsError> {
    outgoing_config(&provider(), None).map_err(TlsError::Setup)
}

fn outgoing_config(
    provider: &Arc<CryptoProvider>,
    resolver: Option<Arc<SingleCertAndKey>>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PossessionOnly::new(provider)));
    let mut config = match resolver {
        Some(resolver) => builder.with_client_cert_resolver(resolver),
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// aws-lc-rs; with its default groups X25519MLKEM768 comes first.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Checks that the peer has the key of the certificate it shows, and leaves open what the certificate is worth:
/// [`verify_peer`](super::verify_peer) decides that once the stream says for which domain it is.
#[derive(Debug)]
pub(super) struct PossessionOnly {
    algorithms: WebPkiSupportedAlgorithms,
}

impl PossessionOnly {
    pub(super) fn new(provider: &CryptoProvider) -> PossessionOnly {
        PossessionOnly { algorithms: provider.signature_verification_algorithms }
    }
}

/// What both of rustls' traits ask for, word for word.
macro_rules! checks_possession {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for PossessionOnly {
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

    checks_possession!();
}

impl ClientCertVerifier for PossessionOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    checks_possession!();
}

/// The roots that other servers' certificates are checked against.
#[derive(Debug, Default)]
pub struct TrustRoots {
    anchors: Vec<TrustAnchor<'static>>,
    pinned: Vec<CertificateDer<'static>>,
}

impl TrustRoots {
    /// The system's roots, and those in the operator's own file (`federation.trust`). Reading the system's takes some
    /// hundred milliseconds.
    pub fn system(extra: Option<&Path>) -> Result<TrustRoots, TlsError> {
        let mut roots = match extra {
            Some(path) => TrustRoots::file(path)?,
            None => TrustRoots::default(),
        };
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "a system root certificate cannot be read");
        }
        // One odd root in the system's store is no reason to trust none.
        roots.anchors.extend(native.certs.iter().filter_map(|cert| anchor(cert).ok()));
        if roots.anchors.is_empty() {
            tracing::warn!("no root certificates found: other servers' certificates cannot be trusted");
        }
        Ok(roots)
    }

    /// Only those in a PEM file. A certificate in it that is no authority is trusted as it is.
    pub fn file(path: &Path) -> Result<TrustRoots, TlsError> {
        TrustRoots::certificates(read_chain(path)?)
            .map_err(|reason| TlsError::BadCertificate { path: path.into(), reason })
    }

    /// Only those given.
    pub fn certificates(certs: Vec<CertificateDer<'static>>) -> Result<TrustRoots, String> {
        let anchors =
            certs.iter().map(|cert| anchor(cert).map_err(|e| e.to_string())).collect::<Result<_, _>>()?;
        Ok(TrustRoots { anchors, pinned: certs })
    }

    /// How many roots there are.
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Whether nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Whether the operator trusts this very certificate.
    pub(super) fn is_pinned(&self, cert: &CertificateDer<'_>) -> bool {
        self.pinned.iter().any(|pinned| pinned == cert)
    }
}

fn anchor(cert: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, webpki::Error> {
    webpki::anchor_from_trusted_cert(cert).map(|anchor| anchor.to_owned())
}

/// Reads all certificates of a PEM file: at least one.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| TlsError::BadPem { path: path.into(), reason: e.to_string() })?;
    if chain.is_empty() { Err(TlsError::NoCertificate { path: path.into() }) } else { Ok(chain) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read(path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        rustls_pki_types::pem::Error::NoItemsFound if contains(&pem, b"BEGIN ENCRYPTED PRIVATE KEY") => {
            TlsError::EncryptedKey { path: path.into() }
        }
        rustls_pki_types::pem::Error::NoItemsFound => TlsError::NoKey { path: path.into() },
        other => TlsError::BadPem { path: path.into(), reason: other.to_string() },
    })
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.into(), source })
}
