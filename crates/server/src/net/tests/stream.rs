//! Data over TLS: every way of cutting it, both versions, and peers that break the rules.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, PeerMisbehaved, ServerConfig, SupportedCipherSuite,
    Tls13CipherSuite,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::net::handshake::Tap;
use crate::net::pki::{Leaf, self_signed};
use crate::net::tls::{PossessionOnly, provider};
use crate::net::{CertSource, CertStore, Side, Transport};

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

struct World {
    store: Arc<CertStore>,
    _files: TempDir,
}

impl World {
    fn new() -> World {
        let files = tempfile::tempdir().unwrap();
        let (chain, key) = (files.path().join("a.crt"), files.path().join("a.key"));
        self_signed(&Leaf::new("north.example", 30)).unwrap().write(&chain, &key).unwrap();
        let store = CertStore::load(&[CertSource { domains: Vec::new(), chain, key }]).unwrap();
        World { store, _files: files }
    }

    /// A client that is worked by hand, and our end of its connection.
    async fn meet(&self, client: ClientConfig) -> (Transport, Raw) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let mut raw = Raw::new(client, theirs);
        let accept = Transport::from(ours).accept_tls(&self.store, Side::Clients, None);
        let (server, ()) = tokio::join!(accept, raw.greet());
        (server.unwrap(), raw)
    }
}

fn client(version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
    with_provider(provider(), version)
}

fn with_provider(
    provider: Arc<CryptoProvider>,
    version: &'static rustls::SupportedProtocolVersion,
) -> ClientConfig {
    ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PossessionOnly::new(&provider)))
        .with_no_client_auth()
}

/// A client whose bytes are ours to cut, to keep back and to spoil.
struct Raw {
    tls: ClientConnection,
    wire: DuplexStream,
}

impl Raw {
    fn new(config: ClientConfig, wire: DuplexStream) -> Raw {
        let tls = ClientConnection::new(Arc::new(config), "north.example".try_into().unwrap()).unwrap();
        Raw { tls, wire }
    }

    async fn greet(&mut self) {
        while self.tls.is_handshaking() {
            let out = self.outgoing();
            self.wire.write_all(&out).await.unwrap();
            if self.tls.is_handshaking() {
                self.pull().await;
            }
        }
        let out = self.outgoing();
        self.wire.write_all(&out).await.unwrap();
    }

    fn outgoing(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out).unwrap();
        }
        out
    }

    /// `data` in records.
    fn sealed(&mut self, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in data.chunks(16 * 1024) {
            self.tls.writer().write_all(chunk).unwrap();
            out.extend(self.outgoing());
        }
        out
    }

    async fn pull(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let read = self.wire.read(&mut bytes).await.unwrap();
        let mut left = &bytes[..read];
        let mut data = Vec::new();
        while !left.is_empty() {
            self.tls.read_tls(&mut left).unwrap();
            self.tls.process_new_packets().unwrap();
            let _ = self.tls.reader().read_to_end(&mut data);
        }
        data
    }

    async fn expect(&mut self, expected: &[u8]) {
        let mut data = Vec::new();
        while data.len() < expected.len() {
            data.extend(self.pull().await);
        }
        assert!(data == expected, "{} bytes came, {} were sent", data.len(), expected.len());
    }
}

/// Bytes of which no two stretches are alike.
fn story(length: usize) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

async fn say(server: &mut Transport, data: &[u8]) {
    server.write_all(data).await.unwrap();
    server.flush().await.unwrap();
}

async fn hear(server: &mut Transport, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    server.read_exact(&mut heard).await.unwrap();
    assert!(heard == expected);
}

#[tokio::test]
async fn bytes_come_one_by_one_and_the_socket_takes_one_at_a_time() {
    let world = World::new();
    for version in VERSIONS {
        let (ours, theirs) = tokio::io::duplex(1);
        let (server, client) = tokio::join!(
            Transport::from(ours).accept_tls(&world.store, Side::Clients, None),
            Transport::from(theirs).connect_with(Arc::new(client(version)), "north.example", None)
        );
        let (mut server, mut client) = (server.unwrap(), client.unwrap());
        let story = story(20_000);
        tokio::join!(say(&mut client, &story), hear(&mut server, &story));
        tokio::join!(say(&mut server, &story), hear(&mut client, &story));
        tokio::join!(async { server.close().await.unwrap() }, async {
            assert_eq!(client.read_with(<[u8]>::len).await.unwrap(), 0);
        });
    }
}

#[tokio::test]
async fn large_records_and_many_at_once_reach_readers_of_any_size() {
    let world = World::new();
    for version in VERSIONS {
        let (mut server, mut raw) = world.meet(client(version)).await;
        let story = story(200_000);
        let sealed = raw.sealed(&story);
        raw.wire.write_all(&sealed).await.unwrap();
        let mut heard = Vec::new();
        for size in [1, 7, 1000, 16 * 1024, 100_000].into_iter().cycle() {
            let mut buffer = vec![0; size];
            let read = server.read(&mut buffer).await.unwrap();
            assert_ne!(read, 0);
            heard.extend_from_slice(&buffer[..read]);
            if heard.len() == story.len() {
                break;
            }
        }
        assert!(heard == story);
        // Three hundred records of ten bytes.
        let sealed: Vec<u8> = story[..3000].chunks(10).flat_map(|chunk| raw.sealed(chunk)).collect();
        raw.wire.write_all(&sealed).await.unwrap();
        hear(&mut server, &story[..3000]).await;
    }
}

#[tokio::test]
async fn data_right_behind_the_handshake_is_data() {
    let world = World::new();
    for version in VERSIONS {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let mut raw = Raw::new(client(version), theirs);
        let accept = Transport::from(ours).accept_tls(&world.store, Side::Clients, None);
        let greet = async {
            loop {
                let mut out = raw.outgoing();
                if !raw.tls.is_handshaking() {
                    // The last message of the handshake, data, new keys and half a record in one piece.
                    out.extend(raw.sealed(b"hello "));
                    if version.version == rustls::ProtocolVersion::TLSv1_3 {
                        raw.tls.refresh_traffic_keys().unwrap();
                    }
                    out.extend(raw.sealed(b"wor"));
                    let rest = raw.sealed(b"ld");
                    out.extend_from_slice(&rest[..7]);
                    raw.wire.write_all(&out).await.unwrap();
                    return rest[7..].to_vec();
                }
                raw.wire.write_all(&out).await.unwrap();
                raw.pull().await;
            }
        };
        let (server, rest) = tokio::join!(accept, greet);
        let mut server = server.unwrap();
        raw.wire.write_all(&rest).await.unwrap();
        hear(&mut server, b"hello world").await;
        say(&mut server, b"and hello").await;
        raw.expect(b"and hello").await;
    }
}

#[tokio::test]
async fn accepted_tls_1_3_has_records_of_its_own() {
    let world = World::new();
    let (server, _raw) = world.meet(client(VERSIONS[0])).await;
    assert!(format!("{server:?}").contains("Records"), "{server:?}");
    let (server, _raw) = world.meet(client(VERSIONS[1])).await;
    assert!(format!("{server:?}").contains("Buffered"), "{server:?}");
}

#[tokio::test]
async fn every_cipher_carries_data() {
    let world = World::new();
    for suite in &provider().cipher_suites {
        let only = CryptoProvider { cipher_suites: vec![*suite], ..(*provider()).clone() };
        let version = if suite.tls13().is_some() { VERSIONS[0] } else { VERSIONS[1] };
        // The certificate has an ECDSA key.
        if suite.suite().as_str().unwrap().contains("RSA") {
            continue;
        }
        let (mut server, mut raw) = world.meet(with_provider(Arc::new(only), version)).await;
        let tls = server.tls().unwrap().clone();
        assert_eq!(tls.cipher, suite.suite().as_str().unwrap().replace("TLS13_", "TLS_"));
        let sealed = raw.sealed(b"romeo");
        raw.wire.write_all(&sealed).await.unwrap();
        hear(&mut server, b"romeo").await;
        if suite.tls13().is_some() {
            raw.tls.refresh_traffic_keys().unwrap();
        }
        let sealed = raw.sealed(b"juliet");
        raw.wire.write_all(&sealed).await.unwrap();
        hear(&mut server, b"juliet").await;
        say(&mut server, b"capulet").await;
        raw.expect(b"capulet").await;
    }
    assert_eq!(provider().cipher_suites[0].suite(), CipherSuite::TLS13_AES_256_GCM_SHA384);
}

#[tokio::test]
async fn keys_change_as_often_as_the_peer_wants_if_it_sends_data_too() {
    let world = World::new();
    let (mut server, mut raw) = world.meet(client(VERSIONS[0])).await;
    for round in 0..200u8 {
        raw.tls.refresh_traffic_keys().unwrap();
        let sealed = raw.sealed(&[round; 50]);
        raw.wire.write_all(&sealed).await.unwrap();
        hear(&mut server, &[round; 50]).await;
        say(&mut server, &[round; 60]).await;
        raw.expect(&[round; 60]).await;
    }
    // Several requests have one answer.
    for _ in 0..5 {
        raw.tls.refresh_traffic_keys().unwrap();
    }
    let sealed = raw.sealed(b"still there?");
    raw.wire.write_all(&sealed).await.unwrap();
    hear(&mut server, b"still there?").await;
    say(&mut server, b"yes").await;
    raw.expect(b"yes").await;
    for _ in 0..33 {
        raw.tls.refresh_traffic_keys().unwrap();
    }
    let sealed = raw.sealed(b"no end");
    raw.wire.write_all(&sealed).await.unwrap();
    let error = server.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(misbehaviour(&error), Some(&PeerMisbehaved::TooManyKeyUpdateRequests));
}

fn tls_error(error: &std::io::Error) -> &rustls::Error {
    error.get_ref().unwrap().downcast_ref().unwrap()
}

fn misbehaviour(error: &std::io::Error) -> Option<&PeerMisbehaved> {
    match tls_error(error) {
        rustls::Error::PeerMisbehaved(how) => Some(how),
        _ => None,
    }
}

#[tokio::test]
async fn our_own_keys_are_renewed_before_they_wear_out() {
    let SupportedCipherSuite::Tls13(usual) = provider().cipher_suites[0] else {
        panic!("TLS 1.3 comes first")
    };
    let weak: &'static Tls13CipherSuite = Box::leak(Box::new(Tls13CipherSuite {
        common: rustls::CipherSuiteCommon {
            suite: usual.common.suite,
            hash_provider: usual.common.hash_provider,
            confidentiality_limit: 10,
        },
        hkdf_provider: usual.hkdf_provider,
        aead_alg: usual.aead_alg,
        quic: None,
    }));
    let weak =
        CryptoProvider { cipher_suites: vec![SupportedCipherSuite::Tls13(weak)], ..(*provider()).clone() };
    let world = World::new();
    let usual = world.store.for_domain(None).server(Side::Clients).clone();
    let mut config = ServerConfig::builder_with_provider(Arc::new(weak))
        .with_protocol_versions(&[VERSIONS[0]])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(usual.cert_resolver.clone());
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(Tap);
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let mut raw = Raw::new(client(VERSIONS[0]), theirs);
    let (server, ()) = tokio::join!(Transport::from(ours).accept_with(Arc::new(config)), raw.greet());
    let mut server = server.unwrap();
    for round in 0..100u8 {
        say(&mut server, &[round; 30]).await;
        raw.expect(&[round; 30]).await;
    }
    let story = story(500_000);
    tokio::join!(say(&mut server, &story), raw.expect(&story));
    let sealed = raw.sealed(b"heard");
    raw.wire.write_all(&sealed).await.unwrap();
    hear(&mut server, b"heard").await;
}

#[tokio::test]
async fn a_spoilt_record_ends_reading_after_what_was_sound() {
    let world = World::new();
    type Spoil = fn(&mut Vec<u8>);
    let spoil: [(Spoil, &str); 6] = [
        (|record| *record.last_mut().unwrap() ^= 1, "DecryptError"),
        (|record| record[20] ^= 1, "DecryptError"),
        (|record| record[0] = 22, "record in the clear"),
        (|record| record[0] = 99, "record in the clear"),
        (|record| record[3] = 0x7f, "PeerSentOversizedRecord"),
        (|record| record.splice(..5, [23, 3, 3, 0, 0]).for_each(drop), "DecryptError"),
    ];
    for (spoil, expected) in spoil {
        let (mut server, mut raw) = world.meet(client(VERSIONS[0])).await;
        let mut bytes = raw.sealed(b"sound");
        let mut spoilt = raw.sealed(b"spoilt, and long enough for all of the above");
        spoil(&mut spoilt);
        bytes.extend(spoilt);
        bytes.extend(raw.sealed(b"never read"));
        raw.wire.write_all(&bytes).await.unwrap();
        hear(&mut server, b"sound").await;
        for _ in 0..2 {
            let error = server.read(&mut [0; 100]).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
            assert!(format!("{error:?}").contains(expected), "{error:?} instead of {expected}");
        }
        assert!(server.write_all(b"too late").await.is_err());
        // The peer is told.
        let mut bytes = vec![0; 4096];
        let read = raw.wire.read(&mut bytes).await.unwrap();
        let mut left = &bytes[..read];
        raw.tls.read_tls(&mut left).unwrap();
        let told = raw.tls.process_new_packets();
        assert!(matches!(told, Err(rustls::Error::AlertReceived(_))), "{told:?}");
        server.close().await.unwrap();
    }
}

#[tokio::test]
async fn no_cut_and_no_spoilt_byte_makes_up_data() {
    let world = World::new();
    let story = story(600);
    for at in (0..900).step_by(13) {
        let (mut server, mut raw) = world.meet(client(VERSIONS[0])).await;
        let mut sealed: Vec<u8> = story.chunks(100).flat_map(|chunk| raw.sealed(chunk)).collect();
        let at = at % sealed.len();
        // RFC 8446 s.5.1: the version of a record, its second and third byte, is not looked at.
        let unseen = matches!(at % (sealed.len() / 6), 1 | 2);
        if at.is_multiple_of(2) || unseen {
            sealed.truncate(at);
        } else {
            sealed[at] ^= 0x40;
        }
        raw.wire.write_all(&sealed).await.unwrap();
        drop(raw);
        let mut heard = Vec::new();
        let _ = server.read_to_end(&mut heard).await;
        assert!(story.starts_with(&heard));
        assert!(heard.len() < story.len());
    }
}

#[tokio::test]
async fn a_cut_within_a_record_is_an_end_and_a_closing_alert_too() {
    let world = World::new();
    for version in VERSIONS {
        let (mut server, mut raw) = world.meet(client(version)).await;
        let sealed = raw.sealed(b"never complete");
        raw.wire.write_all(&sealed[..sealed.len() - 1]).await.unwrap();
        raw.wire.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 10]).await.unwrap(), 0);
        assert_eq!(server.read(&mut [0; 10]).await.unwrap(), 0);

        let (mut server, mut raw) = world.meet(client(version)).await;
        let mut bytes = raw.sealed(b"bye");
        raw.tls.send_close_notify();
        bytes.extend(raw.outgoing());
        bytes.extend([23, 3, 3, 0, 20]);
        bytes.extend([7; 20]);
        raw.wire.write_all(&bytes).await.unwrap();
        hear(&mut server, b"bye").await;
        assert_eq!(server.read(&mut [0; 10]).await.unwrap(), 0, "what follows the alert is ignored");
        say(&mut server, b"good bye").await;
        raw.expect(b"good bye").await;
        server.close().await.unwrap();
        server.close().await.unwrap();
        assert!(server.write_all(b"more").await.is_err());
        let mut bytes = Vec::new();
        raw.wire.read_to_end(&mut bytes).await.unwrap();
        raw.tls.read_tls(&mut &bytes[..]).unwrap();
        assert!(raw.tls.process_new_packets().unwrap().peer_has_closed());
    }
}

#[tokio::test(start_paused = true)]
async fn cancelled_reads_and_writes_lose_nothing() {
    let world = World::new();
    let moment = Duration::from_millis(1);
    for version in VERSIONS {
        let (mut server, mut raw) = world.meet(client(version)).await;
        let sealed = raw.sealed(b"in pieces");
        for byte in sealed {
            raw.wire.write_all(&[byte]).await.unwrap();
            let mut buffer = [0; 20];
            let read = tokio::time::timeout(moment, server.read(&mut buffer)).await;
            if let Ok(read) = read {
                assert_eq!(&buffer[..read.unwrap()], b"in pieces");
            }
        }
        // A write that was given up has taken a prefix, whatever the socket has taken.
        let (ours, theirs) = tokio::io::duplex(100);
        let (server, client) = tokio::join!(
            Transport::from(ours).accept_tls(&world.store, Side::Clients, None),
            Transport::from(theirs).connect_with(Arc::new(client(version)), "north.example", None)
        );
        let (mut server, mut client) = (server.unwrap(), client.unwrap());
        let story = story(400_000);
        let (mut sent, mut heard) = (0, Vec::new());
        while heard.len() < story.len() {
            while let Ok(wrote) = tokio::time::timeout(moment, server.write(&story[sent..])).await {
                let wrote = wrote.unwrap();
                sent += wrote;
                if wrote == 0 {
                    break;
                }
            }
            assert!(sent - heard.len() <= 2 * 64 * 1024, "{} bytes wait", sent - heard.len());
            let _ = tokio::time::timeout(moment, server.flush()).await;
            let mut buffer = vec![0; 5000];
            if let Ok(read) = tokio::time::timeout(moment, client.read(&mut buffer)).await {
                heard.extend_from_slice(&buffer[..read.unwrap()]);
            }
        }
        assert!(heard == story);
    }
}
