//! Can a stranger tell by the time whether an address exists? A server, its federation listener on loopback, and peers
//! that prove a domain each and measure: docs/control/consent.md has the results.
//!
//! ```text
//! cargo build --release -p trunkline-server --example timing
//! target/release/examples/timing --seconds 50 --out samples.txt      appends samples; repeat until there are enough
//! target/release/examples/timing --report samples.txt
//! ```
//!
//! Four classes of addresses: online, offline, blocking (the user blocks the stranger's domain) and missing. In each
//! round a stream measures one stanza to an address of each class, in random order, from a sender never seen before.
//! A sample is the time from before the write to the answer: the acknowledgement (XEP-0198) for `message` and
//! `subscribe`, the answering stanza for `iq`, `groupchat` and `probe`. For `afterwards` a message goes to the address,
//! and the sample is the mean time of pings to the server on the same stream while the message is sorted (240 ms).
//!
//! The report computes the area under the ROC curve of the best threshold classifier for each pair of classes: the
//! probability that a sample of the one took longer than one of the other. 0.5 is chance.

#![allow(clippy::print_stdout, reason = "its output")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use trunkline_server::config::Config;
use trunkline_server::config::overrides::Overrides;
use trunkline_server::net::Transport;
use trunkline_server::net::pki::{Authority, Leaf, Pem};
use trunkline_server::serve::{Parts, Server};
use trunkline_store::{Batch, Lane, sql};
use trunkline_xmpp::jid::Jid;

const CLASSES: [&str; 4] = ["online", "offline", "blocking", "missing"];
const KINDS: [&str; 6] = ["message", "subscribe", "iq", "groupchat", "probe", "afterwards"];
/// Addresses of each class and kind: each holds 200 requests.
const ADDRESSES: usize = 50;
/// How long a first contact takes to be sorted, at most.
const SORTED: Duration = Duration::from_millis(240);

/// Samples that were refused because too much waited.
static REFUSED: AtomicU64 = AtomicU64::new(0);

struct Options {
    seconds: u64,
    streams: usize,
    kinds: Vec<String>,
    archive: bool,
    out: String,
    report: Option<String>,
}

fn options() -> Options {
    let mut options = Options {
        seconds: 50,
        streams: 8,
        kinds: KINDS[..5].iter().map(|&kind| kind.to_owned()).collect(),
        archive: true,
        out: "samples.txt".into(),
        report: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_else(|| panic!("{name} needs a value"));
        match name.as_str() {
            "--seconds" => options.seconds = value.parse().expect("the option has a value of its kind"),
            "--streams" => options.streams = value.parse().expect("the option has a value of its kind"),
            "--kinds" => options.kinds = value.split(',').map(str::to_owned).collect(),
            "--archive" => options.archive = value.parse().expect("the option has a value of its kind"),
            "--out" => options.out = value,
            "--report" => options.report = Some(value),
            _ => panic!("unknown option {name}"),
        }
    }
    options
}

fn main() {
    let options = options();
    if let Some(file) = &options.report {
        return report(file);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let field = Field::new(directory.path(), &options);
    let server = runtime.block_on(field.start(&options));
    let samples: Arc<Mutex<String>> = Arc::default();
    let each = Duration::from_secs(options.seconds) / u32::try_from(options.kinds.len()).expect("few kinds");
    for kind in &options.kinds {
        let threads: Vec<_> = (0..options.streams)
            .map(|number| {
                let mut peer = Peer::connect(&field, number);
                let (kind, samples) = (kind.clone(), Arc::clone(&samples));
                std::thread::spawn(move || peer.measure(&kind, each, &samples))
            })
            .collect();
        for thread in threads {
            thread.join().expect("no measuring thread ends early");
        }
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&options.out)
        .expect("the file of samples can be written");
    file.write_all(samples.lock().expect("no measuring thread ends early").as_bytes())
        .expect("the file of samples can be written");
    runtime.block_on(async {
        let db = &server.exchange().db;
        let count = |text| async move {
            db.read(sql(text)).await.expect("a count is a row").first().expect("a count is a row").int(0)
        };
        println!(
            "held: {} stanzas in {} first contacts; {} samples refused and left out",
            count("SELECT COUNT(*) FROM held").await,
            count("SELECT COUNT(*) FROM first_contacts").await,
            REFUSED.load(Ordering::Relaxed)
        );
        server.stop().await;
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// Certificates, ports, files.
struct Field {
    authority: Authority,
    directory: std::path::PathBuf,
    port: u16,
}

impl Field {
    fn new(directory: &Path, _: &Options) -> Field {
        // A port that was free a moment ago.
        let port =
            TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("a free port").port();
        Field {
            authority: Authority::new("Timing").expect("an authority"),
            directory: directory.to_owned(),
            port,
        }
    }

    fn issue(&self, domain: &str) -> Pem {
        self.authority.issue(&Leaf { client_auth: true, ..Leaf::new(domain, 1) }).expect("a certificate")
    }

    async fn start(&self, options: &Options) -> Arc<Server> {
        let file = |name: &str| self.directory.join(name);
        std::fs::write(file("ca.pem"), self.authority.pem()).expect("files can be written");
        self.issue("here.example").write(&file("here.crt"), &file("here.key")).expect("files can be written");
        let mut presets = Overrides::default();
        let path = |name| file(name).display().to_string();
        for (key, value) in [
            ("domain", "here.example".to_owned()),
            ("data_dir", path("data")),
            ("clients.listen", "[]".into()),
            ("clients.listen_tls", "[]".into()),
            ("web.listen", "[]".into()),
            ("federation.listen", "[]".into()),
            ("federation.listen_tls", format!("127.0.0.1:{}", self.port)),
            ("federation.trust", path("ca.pem")),
            ("tls.certificate", path("here.crt")),
            ("tls.key", path("here.key")),
            ("accounts.archive", options.archive.to_string()),
            // What is measured are answers, not brakes: each sample is held by a user who is there.
            ("limits.enabled", "false".into()),
            ("consent.domain_requests", "1000000".into()),
            ("consent.intake_stanzas", "1000000".into()),
            ("consent.intake_peer_stanzas", "1000000".into()),
            ("log.level", "error".into()),
        ] {
            presets.set(&format!("{key}={value}")).expect("the setting is known");
        }
        std::fs::create_dir_all(file("data")).expect("a directory can be made");
        let text = trunkline_server::config::template(&presets);
        let config = Config::parse(&text, &file("trunkline.toml")).expect("the configuration is right");
        let server = Server::start(config, Parts::default()).await.expect("the server starts");
        self.people(&server, options).await;
        server
    }

    async fn people(&self, server: &Arc<Server>, options: &Options) {
        let exchange = server.exchange();
        let host = exchange.host("here.example").expect("the domain is served").id;
        let mut batch = Batch::new(Lane::Inside);
        for class in &CLASSES[..3] {
            for kind in KINDS {
                for number in 0..ADDRESSES {
                    batch.push(
                        sql("INSERT INTO accounts (host_id, local, created_at) VALUES (?1, ?2, 0)")
                            .bind(host)
                            .bind(name(class, kind, number)),
                    );
                }
            }
        }
        for peer in 0..options.streams {
            batch.push(
                sql("INSERT INTO blocked (account, jid) SELECT id, ?1 FROM accounts WHERE local LIKE 'x-%'")
                    .bind(peer_domain(peer)),
            );
        }
        exchange.db.run(batch).await.expect("the store takes the rows");
        for kind in KINDS {
            for number in 0..ADDRESSES {
                let jid: Jid = format!("{}@here.example", name("online", kind, number))
                    .parse()
                    .expect("a right address");
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                server.seat(Transport::from(theirs), &jid);
                let (mut reader, mut writer) = tokio::io::split(ours);
                writer
                    .write_all(
                        b"<stream:stream to='here.example' version='1.0' xmlns='jabber:client' \
                          xmlns:stream='http://etherx.jabber.org/streams'><iq type='set' id='b'>\
                          <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq><presence/>",
                    )
                    .await
                    .expect("the stream is open");
                tokio::spawn(async move {
                    let _writer = writer;
                    let mut buffer = [0; 4096];
                    while reader.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
                });
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// All of the same length.
fn name(class: &str, kind: &str, number: usize) -> String {
    let class = match class {
        "online" => 'a',
        "offline" => 'o',
        "blocking" => 'x',
        _ => 'm',
    };
    format!("{class}-{}{number:03}", &kind[..1])
}

fn peer_domain(number: usize) -> String {
    format!("evil{number:02}.example")
}

/// One stream of another provider.
struct Peer {
    stream: StreamOwned<ClientConnection, TcpStream>,
    domain: String,
    input: Vec<u8>,
    /// What came up to and with what was last waited for.
    passed: Vec<u8>,
    sent: u32,
    received: u32,
    random: u64,
}

impl Peer {
    fn connect(field: &Field, number: usize) -> Peer {
        let domain = peer_domain(number);
        let pem = field.issue(&domain);
        let mut roots = RootCertStore::empty();
        roots.add(field.authority.der()).expect("a right certificate");
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.chain.as_bytes())
            .collect::<Result<_, _>>()
            .expect("right PEM");
        let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).expect("right PEM");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS is set up")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("TLS is set up");
        config.alpn_protocols = vec![b"xmpp-server".to_vec()];
        let name = ServerName::try_from("here.example").expect("a right name");
        let tls = ClientConnection::new(Arc::new(config), name).expect("TLS is set up");
        let socket =
            TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], field.port))).expect("the server listens");
        socket.set_nodelay(true).expect("TCP");
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the system gives random bytes");
        let random = u64::from_le_bytes(seed) | 1;
        let mut peer = Peer {
            stream: StreamOwned::new(tls, socket),
            domain,
            input: Vec::new(),
            passed: Vec::new(),
            sent: 0,
            received: 0,
            random,
        };
        let hello = format!(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:server' \
             xmlns:stream='http://etherx.jabber.org/streams' from='{}' to='here.example' version='1.0'>",
            peer.domain
        );
        peer.send(&hello);
        peer.until("</stream:features>");
        let identity = base64::engine::general_purpose::STANDARD.encode(&peer.domain);
        peer.send(&format!(
            "<bidi xmlns='urn:xmpp:bidi'/><auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' \
             mechanism='EXTERNAL'>{identity}</auth>"
        ));
        peer.until("<success");
        peer.send(&format!("{hello}<enable xmlns='urn:xmpp:sm:3'/>"));
        peer.until("<enabled");
        peer
    }

    fn send(&mut self, xml: &str) {
        self.stream.write_all(xml.as_bytes()).expect("the stream is open");
        self.stream.flush().expect("the stream is open");
    }

    /// Reads until `text` has come.
    fn until(&mut self, text: &str) {
        loop {
            if let Some(at) = find(&self.input, text.as_bytes()) {
                self.passed = self.input.drain(..at + text.len()).collect();
                return;
            }
            let mut buffer = [0; 16384];
            let read = self.stream.read(&mut buffer).expect("the stream is open");
            assert!(read > 0, "the server ended the stream: {}", String::from_utf8_lossy(&self.input));
            self.input.extend_from_slice(&buffer[..read]);
        }
    }

    /// xorshift64*.
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let high = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).expect("64 bits") % below
    }

    fn measure(&mut self, kind: &str, time: Duration, samples: &Mutex<String>) {
        let end = Instant::now() + time;
        let mut lines = String::new();
        let mut round = 0_usize;
        while Instant::now() < end {
            let mut order = [0, 1, 2, 3];
            for at in (1..4).rev() {
                order.swap(at, self.random(at + 1));
            }
            for class in order {
                let number = self.random(ADDRESSES);
                let to = format!("{}@here.example", name(CLASSES[class], kind, number));
                let sample = self.sample(kind, &to, round * 4 + class);
                // More than can be sorted: this is no first contact. Rarely, and for every class alike.
                if find(&self.passed, b"<resource-constraint").is_some() {
                    self.received();
                    REFUSED.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(500));
                    continue;
                }
                // The first ones warm up.
                if round >= 10 {
                    writeln!(lines, "{kind} {} {}", CLASSES[class], sample.as_nanos())
                        .expect("a string takes it");
                }
            }
            round += 1;
        }
        samples.lock().expect("no measuring thread ends early").push_str(&lines);
    }

    fn sample(&mut self, kind: &str, to: &str, number: usize) -> Duration {
        let from = format!("s{number:08}@{}", self.domain);
        let id = format!("i{number:08}");
        self.sent = self.sent.wrapping_add(1);
        let (xml, answer) = match kind {
            "message" | "afterwards" => (
                format!(
                    "<message from='{from}/r' to='{to}' type='chat' id='{id}'><body>Hello there</body></message>\
                     <r xmlns='urn:xmpp:sm:3'/>"
                ),
                self.acknowledged(),
            ),
            "subscribe" => (
                format!(
                    "<presence from='{from}' to='{to}' type='subscribe' id='{id}'/><r xmlns='urn:xmpp:sm:3'/>"
                ),
                self.acknowledged(),
            ),
            "iq" => (
                format!(
                    "<iq from='{from}/r' to='{to}' type='get' id='{id}'>\
                     <query xmlns='http://jabber.org/protocol/disco#info'/></iq>"
                ),
                format!("id='{id}'"),
            ),
            "groupchat" => (
                format!(
                    "<message from='{from}/r' to='{to}' type='groupchat' id='{id}'><body>x</body></message>"
                ),
                format!("id='{id}'"),
            ),
            "probe" => (format!("<presence from='{from}' to='{to}' type='probe'/>"), format!("to='{from}'")),
            _ => panic!("unknown kind {kind}"),
        };
        let begin = Instant::now();
        self.send(&xml);
        self.until(&answer);
        let taken = begin.elapsed();
        if matches!(kind, "iq" | "groupchat" | "probe") {
            self.received();
        }
        if kind != "afterwards" {
            return taken;
        }
        let (mut pings, begin) = (0_u32, Instant::now());
        while begin.elapsed() < SORTED {
            self.sent = self.sent.wrapping_add(1);
            self.send(&format!(
                "<iq from='{from}' to='here.example' type='get' id='p{number}-{pings}'><ping xmlns='urn:xmpp:ping'/></iq>"
            ));
            self.until(&format!("id='p{number}-{pings}'"));
            self.received();
            pings += 1;
        }
        begin.elapsed() / pings
    }

    /// A stanza has come: now and then the server is told, or it would wait.
    fn received(&mut self) {
        self.received = self.received.wrapping_add(1);
        if self.received.is_multiple_of(100) {
            self.send(&format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", self.received));
        }
    }

    fn acknowledged(&self) -> String {
        format!("h='{}'", self.sent)
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn report(file: &str) {
    let text = std::fs::read_to_string(file).expect("the file of samples can be read");
    let mut samples: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (kind, class, nanos) = (
            words.next().expect("a sample has three words"),
            words.next().expect("a sample has three words"),
            words.next().expect("a sample has three words"),
        );
        samples.entry((kind, class)).or_default().push(nanos.parse().expect("a sample ends with a number"));
    }
    println!("| stanza | class | samples | median, ms | 99 % |");
    println!("|---|---|---|---|---|");
    for ((kind, class), values) in &mut samples {
        values.sort_unstable();
        let at = |share: f64| values[(values.len() as f64 * share) as usize] as f64 / 1e6;
        println!("| {kind} | {class} | {} | {:.3} | {:.3} |", values.len(), at(0.5), at(0.99));
    }
    println!("\n| stanza | pair | AUC |");
    println!("|---|---|---|");
    for kind in KINDS {
        for (at, one) in CLASSES.iter().enumerate() {
            for other in &CLASSES[at + 1..] {
                if let (Some(a), Some(b)) = (samples.get(&(kind, *one)), samples.get(&(kind, *other))) {
                    println!("| {kind} | {one}, {other} | {:.4} |", auc(a, b));
                }
            }
        }
    }
}

/// The probability that a value of `b` is greater than one of `a`, equal ones counting half. Both are sorted.
fn auc(a: &[u64], b: &[u64]) -> f64 {
    let (mut below, mut upto, mut sum) = (0, 0, 0.0);
    for value in b {
        while below < a.len() && a[below] < *value {
            below += 1;
        }
        while upto < a.len() && a[upto] <= *value {
            upto += 1;
        }
        sum += (below + upto) as f64 / 2.0;
    }
    sum / (a.len() as f64 * b.len() as f64)
}
