use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::net::pki::{Authority, Leaf, Pem, self_signed};
use crate::net::stream::HandshakeError;
use crate::net::tls::{PossessionOnly, anonymous_outgoing, provider, read_chain};
use crate::net::{CertSource, CertStore, Side, TlsError, TlsInfo, Transport, inspect};

struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Files {
        Files { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self, name: &str, pem: &Pem) -> CertSource {
        let (chain, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        pem.write(&chain, &key).unwrap();
        CertSource { domains: Vec::new(), chain, key }
    }

    fn own(&self, domain: &str) -> CertSource {
        self.source(domain, &self_signed(&Leaf::new(domain, 30)).unwrap())
    }
}

struct Handshake<'a> {
    server: &'a CertStore,
    side: Side,
    hint: Option<&'a str>,
    config: Arc<rustls::ClientConfig>,
    domain: &'a str,
    alpn: Option<&'a str>,
}

impl Handshake<'_> {
    async fn run(self) -> (Result<Transport, HandshakeError>, Result<Transport, HandshakeError>) {
        let (a, b) = Transport::pair();
        tokio::join!(
            a.accept_tls(self.server, self.side, self.hint),
            b.connect_with(self.config, self.domain, self.alpn)
        )
    }

    async fn infos(self) -> (Arc<TlsInfo>, Arc<TlsInfo>) {
        let (server, client) = self.run().await;
        (server.unwrap().tls().unwrap().clone(), client.unwrap().tls().unwrap().clone())
    }
}

fn as_client<'a>(server: &'a CertStore, domain: &'a str) -> Handshake<'a> {
    let config = anonymous_outgoing().unwrap();
    Handshake { server, side: Side::Clients, hint: None, config, domain, alpn: Some("xmpp-client") }
}

fn tls12() -> Arc<rustls::ClientConfig> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PossessionOnly::new(&provider())))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

fn own_name(info: &TlsInfo) -> String {
    crate::net::CertInfo::read(&info.peer_chain[0]).unwrap().names[0].to_string()
}

#[tokio::test]
async fn handshake_is_post_quantum_and_binds_the_channel_on_both_sides() {
    let files = Files::new();
    let store = CertStore::load(&[files.own("north.example")]).unwrap();
    let (server, client) = as_client(&store, "north.example").infos().await;
    assert_eq!((server.version, client.version), ("TLSv1.3", "TLSv1.3"));
    assert_eq!(server.key_exchange, "X25519MLKEM768");
    assert!(server.cipher.starts_with("TLS_"), "{}", server.cipher);
    assert_eq!(server.alpn.as_deref(), Some("xmpp-client"));
    assert_eq!(server.sni.as_deref(), Some("north.example"));
    assert!(server.peer_chain.is_empty(), "clients are not asked for certificates");
    assert!(server.exporter.is_some());
    assert_eq!(server.exporter, client.exporter);
    assert_eq!(server.end_point.as_ref().map(Vec::len), Some(32));
    assert_eq!(server.end_point, client.end_point);
}

#[tokio::test]
async fn tls_1_2_has_bindings_too_and_each_connection_its_own() {
    let files = Files::new();
    let store = CertStore::load(&[files.own("north.example")]).unwrap();
    let connect = || Handshake { config: tls12(), ..as_client(&store, "north.example") };
    let (server, _) = connect().infos().await;
    let (again, _) = connect().infos().await;
    assert_eq!(server.version, "TLSv1.2");
    // Sound because clients without the extended master secret are turned away.
    assert!(store.for_domain(None).server(Side::Clients).require_ems);
    assert!(server.exporter.is_some());
    assert_ne!(server.exporter, again.exporter);
    assert_eq!(server.end_point, again.end_point);
    // Between servers it is not required, so there the exporter is not vouched for.
    let (server, _) = Handshake { side: Side::Servers, alpn: None, ..connect() }.infos().await;
    assert_eq!(server.exporter, None);
}

#[tokio::test]
async fn certificate_is_chosen_by_name_hint_or_default() {
    let files = Files::new();
    let mut configured = files.own("other.example");
    configured.domains = vec!["Bücher.example".into()];
    let store =
        CertStore::load(&[files.own("north.example"), files.own("south.example"), configured]).unwrap();
    for (sni, hint, expected) in [
        ("south.example", None, "south.example"),
        ("rooms.south.example", None, "south.example"),
        ("a.rooms.south.example", None, "north.example"),
        ("xn--bcher-kva.example", None, "other.example"),
        ("bücher.example", None, "other.example"),
        ("unknown.example", None, "north.example"),
        ("192.0.2.1", Some("south.example"), "south.example"),
        ("192.0.2.1", Some("bücher.example"), "other.example"),
        ("192.0.2.1", None, "north.example"),
        ("north.example", Some("south.example"), "north.example"),
    ] {
        let (server, client) = Handshake { hint, ..as_client(&store, sni) }.infos().await;
        assert_eq!(own_name(&client), expected, "for {sni} with {hint:?}");
        assert_eq!(server.end_point, client.end_point);
    }
}

#[tokio::test]
async fn alpn_may_be_missing_but_not_wrong() {
    let files = Files::new();
    let store = CertStore::load(&[files.own("north.example")]).unwrap();
    let (server, _) = Handshake { alpn: None, ..as_client(&store, "north.example") }.infos().await;
    assert_eq!(server.alpn, None);
    let (server, client) =
        Handshake { alpn: Some("http/1.1"), ..as_client(&store, "north.example") }.run().await;
    assert_eq!(server.unwrap_err().label(), "alpn");
    assert_eq!(client.unwrap_err().label(), "peer-alert");
}

#[tokio::test]
async fn reload_serves_the_new_certificate_and_keeps_live_connections() {
    let files = Files::new();
    let sources = [files.own("north.example")];
    let store = CertStore::load(&sources).unwrap();
    let (server, client) = as_client(&store, "north.example").run().await;
    let (mut server, mut client) = (server.unwrap(), client.unwrap());
    let before = client.tls().unwrap().end_point.clone();

    files.own("north.example");
    store.reload(&sources).unwrap();
    let (_, renewed) = as_client(&store, "north.example").infos().await;
    assert_ne!(renewed.end_point, before);

    client.write_all(b"still here").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 10];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");

    std::fs::write(&sources[0].chain, "rubbish").unwrap();
    assert!(store.reload(&sources).is_err());
    let (_, kept) = as_client(&store, "north.example").infos().await;
    assert_eq!(kept.end_point, renewed.end_point, "a failed reload changes nothing");
}

#[tokio::test]
async fn clients_resume_sessions_until_the_certificate_changes() {
    let files = Files::new();
    let sources = [files.own("north.example")];
    let store = CertStore::load(&sources).unwrap();
    let mut config = (*anonymous_outgoing().unwrap()).clone();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    let talk = async |resumed: bool| {
        let handshake = Handshake { config: config.clone(), ..as_client(&store, "north.example") };
        let (server, client) = handshake.run().await;
        let (mut server, mut client) = (server.unwrap(), client.unwrap());
        // The ticket comes with the first bytes.
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        let (server, client) = (server.tls().unwrap().clone(), client.tls().unwrap().clone());
        assert_eq!((server.resumed, client.resumed), (resumed, resumed));
        assert_eq!(server.end_point, client.end_point);
        assert_eq!(server.exporter, client.exporter);
    };
    talk(false).await;
    talk(true).await;
    files.own("north.example");
    store.reload(&sources).unwrap();
    talk(false).await;
}

#[tokio::test]
async fn servers_show_certificates_or_not_and_both_get_in() {
    let files = Files::new();
    let north = CertStore::load(&[files.own("north.example")]).unwrap();
    let south = CertStore::load(&[files.own("south.example")]).unwrap();
    let base =
        || Handshake { side: Side::Servers, alpn: Some("xmpp-server"), ..as_client(&north, "north.example") };

    let config = south.for_domain(None).outgoing().clone();
    let (server, client) = Handshake { config, ..base() }.infos().await;
    assert_eq!(own_name(&server), "south.example");
    assert_eq!(own_name(&client), "north.example");
    assert_eq!(server.alpn.as_deref(), Some("xmpp-server"));

    let (server, _) = base().infos().await;
    assert!(server.peer_chain.is_empty());

    let (server, _) = Handshake { config: tls12(), alpn: None, ..base() }.infos().await;
    assert_eq!(server.version, "TLSv1.2");
}

#[tokio::test]
async fn a_certificate_without_its_key_fails_the_handshake() {
    let files = Files::new();
    let store = CertStore::load(&[files.own("north.example")]).unwrap();
    let (victim, thief) = (files.own("victim.example"), files.own("thief.example"));
    let stolen = stolen_identity(&victim.chain, &thief.key);
    let mut config = (*anonymous_outgoing().unwrap()).clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
    let config = Arc::new(config);
    let handshake =
        Handshake { side: Side::Servers, alpn: None, config, ..as_client(&store, "north.example") };
    let (server, _) = handshake.run().await;
    assert_eq!(server.unwrap_err().label(), "bad-certificate");
}

fn stolen_identity(chain: &Path, key: &Path) -> CertifiedKey {
    use rustls_pki_types::pem::PemObject;
    let key = rustls_pki_types::PrivateKeyDer::from_pem_file(key).unwrap();
    CertifiedKey::new(read_chain(chain).unwrap(), provider().key_provider.load_private_key(key).unwrap())
}

#[tokio::test]
async fn closing_tells_the_peer_and_a_cut_counts_as_end() {
    let files = Files::new();
    let store = CertStore::load(&[files.own("north.example")]).unwrap();
    let (server, client) = as_client(&store, "north.example").run().await;
    let (mut server, mut client) = (server.unwrap(), client.unwrap());
    client.write_all(b"bye").await.unwrap();
    client.close().await.unwrap();
    assert_eq!(server.read_with(<[u8]>::to_vec).await.unwrap(), b"bye");
    assert_eq!(server.read_with(<[u8]>::len).await.unwrap(), 0);
    server.write_all(b"and bye").await.unwrap();
    server.flush().await.unwrap();
    assert_eq!(client.read_with(<[u8]>::to_vec).await.unwrap(), b"and bye");
    drop(server);
    assert_eq!(client.read_with(<[u8]>::len).await.unwrap(), 0, "cut without a closing alert");
}

#[tokio::test]
async fn rubbish_and_tls_in_tls_are_refused_by_name() {
    let files = Files::new();
    let store = CertStore::load(&[files.own("north.example")]).unwrap();
    let (a, mut b) = Transport::pair();
    b.write_all(b"<?xml version='1.0'?><stream:stream>").await.unwrap();
    assert_eq!(a.accept_tls(&store, Side::Clients, None).await.unwrap_err().label(), "not-tls");
    let (a, b) = Transport::pair();
    drop(b);
    assert_eq!(a.accept_tls(&store, Side::Clients, None).await.unwrap_err().label(), "closed");
    let (server, _client) = as_client(&store, "north.example").run().await;
    let again = server.unwrap().accept_tls(&store, Side::Clients, None).await;
    assert_eq!(again.unwrap_err().label(), "already-encrypted");
}

#[test]
fn bad_files_are_named_with_the_reason() {
    let files = Files::new();
    let good = files.own("north.example");
    let other = files.own("south.example");
    let write = |name: &str, content: &str| {
        let path = files.path(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let load = |chain: &Path, key: &Path| {
        let source = CertSource { domains: Vec::new(), chain: chain.into(), key: key.into() };
        CertStore::load(&[source]).unwrap_err()
    };
    let key_pem = std::fs::read_to_string(&good.key).unwrap();
    let chain_pem = std::fs::read_to_string(&good.chain).unwrap();

    let missing = files.path("missing.crt");
    let error = load(&missing, &good.key);
    assert!(matches!(error, TlsError::Read { .. }));
    assert!(error.to_string().contains("missing.crt"), "{error}");
    assert!(matches!(load(&good.chain, &missing), TlsError::Read { .. }));
    assert!(matches!(load(&good.key, &good.key), TlsError::NoCertificate { .. }));
    assert!(matches!(load(&good.chain, &good.chain), TlsError::NoKey { .. }));
    assert!(matches!(load(&good.chain, &other.key), TlsError::Mismatch { .. }));
    let cut = write("cut.crt", &chain_pem[..chain_pem.len() / 2]);
    assert!(matches!(load(&cut, &good.key), TlsError::BadPem { .. } | TlsError::NoCertificate { .. }));
    let swapped = write("swapped.crt", &key_pem.replace("PRIVATE KEY", "CERTIFICATE"));
    assert!(matches!(load(&swapped, &good.key), TlsError::BadCertificate { .. }));
    let no_key = write("no.key", &chain_pem.replace("CERTIFICATE", "PRIVATE KEY"));
    assert!(matches!(load(&good.chain, &no_key), TlsError::BadKey { .. }));
    let locked = write("locked.key", &key_pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
    assert!(matches!(load(&good.chain, &locked), TlsError::EncryptedKey { .. }));
    assert!(matches!(CertStore::load(&[]), Err(TlsError::Empty)));
    // Certificate and key in one file is fine.
    let both = write("both.pem", &format!("{key_pem}{chain_pem}"));
    CertStore::load(&[CertSource { domains: Vec::new(), chain: both.clone(), key: both }]).unwrap();
}

#[test]
fn inspecting_tells_names_and_dates_and_keys_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new();
    let own = files.own("bücher.example");
    let info = inspect(&own.chain).unwrap();
    let names: Vec<String> = info.names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["xn--bcher-kva.example", "*.xn--bcher-kva.example"]);
    assert!(info.self_signed);
    assert!(info.covers("bücher.example") && info.covers("rooms.BÜCHER.example") && !info.covers("example"));
    assert!(info.not_before < jiff::Timestamp::now() && jiff::Timestamp::now() < info.not_after);
    assert_eq!(std::fs::metadata(&own.key).unwrap().permissions().mode() & 0o777, 0o600);

    let authority = Authority::new("Demo authority").unwrap();
    let issued = files.source("issued", &authority.issue(&Leaf::new("north.example", 30)).unwrap());
    let info = inspect(&issued.chain).unwrap();
    assert!(!info.self_signed);
    assert_eq!(info.issuer, "CN=Demo authority");
}
