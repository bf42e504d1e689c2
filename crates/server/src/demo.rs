//! `trunkline demo`: two providers on this machine, a conversation between their users, and an invitation to join in.
//!
//! Each provider is this same program in a process of its own, set up with `trunkline init` and `trunkline user add` as
//! an operator would. They share nothing but a certificate authority made for the occasion: what passes between them
//! passes through TLS with certificates checked on both sides.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use trunkline_client::{Client, ClientError, Login, Target, Trust};
use trunkline_xml::{Element, Node};

use crate::net::pki::{Authority, Leaf, PkiError};

/// For everybody in the demo.
const PASSWORD: &str = "demo";

/// How long any one thing may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);

/// The first port of each provider, so that one can log in with the same settings every time.
const PORTS: [u16; 2] = [15222, 25222];

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct Demo {
    /// Stop after the conversation.
    pub once: bool,
    /// Where data goes. Without one: a temporary directory, removed in the end.
    pub directory: Option<PathBuf>,
}

/// Why the demo did not succeed.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The machine's, as a rule.
    #[error("{0}: {1}")]
    System(String, io::Error),
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] PkiError),
    /// A command or a server of the demo has failed.
    #[error("{what}\n{output}")]
    Failed {
        /// The command.
        what: String,
        /// What it printed.
        output: String,
    },
    /// Something expected did not arrive, or was refused.
    #[error("{who}: {error}")]
    Conversation {
        /// Whose client.
        who: String,
        /// What happened.
        error: ClientError,
    },
    /// Something arrived that is not as it should be.
    #[error("{0}")]
    Wrong(&'static str),
}

/// Runs the demo until its end, or until Ctrl-C.
pub async fn run(demo: Demo) -> Result<(), DemoError> {
    let directory = Directory::make(demo.directory)?;
    let stage = Stage { begin: Instant::now() };
    stage.title("Two providers start")?;
    let [mut north, mut south] = providers(&directory.path)?;
    let result = tokio::select! {
        done = perform(&stage, &mut north, &mut south, demo.once) => done,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    if result.is_err() {
        stage.servers_words(&[&north, &south])?;
    }
    north.stop().await;
    south.stop().await;
    result
}

async fn perform(
    stage: &Stage,
    north: &mut Provider,
    south: &mut Provider,
    once: bool,
) -> Result<(), DemoError> {
    let (northern, southern) = (north.address_of_peers(), south.address_of_peers());
    north.set_up(&southern, &["romeo", "you"]).await?;
    south.set_up(&northern, &["juliet", "you"]).await?;
    for provider in [&mut *north, &mut *south] {
        let start = Instant::now();
        provider.start().await?;
        let how = format!(
            "{} serves clients at {}, other servers at {}",
            provider.domain, provider.clients, provider.peers
        );
        stage.line(&how, Some(start))?;
    }
    let arrived = conversation(stage, north, south).await?;
    stage.title("How north.localhost sees the other provider")?;
    let status = north.command(&["federation", "status"], "").await?;
    status.lines().try_for_each(|line| stage.plain(&format!("  {line}")))?;
    let took = stage.begin.elapsed().as_secs_f64();
    stage.title(&format!("All {arrived} expected stanzas have arrived, {took:.1} s after the beginning"))?;
    if once {
        return Ok(());
    }
    stage.plain("Log in with any XMPP client; the password is always \"demo\":")?;
    for provider in [&*north, &*south] {
        stage.plain(&format!(
            "  you@{}   server 127.0.0.1, port {} (STARTTLS) or {} (direct TLS)",
            provider.domain,
            provider.clients.port(),
            provider.clients_tls.port()
        ))?;
    }
    stage.plain(&format!("  the certificates are vouched for by {}", north.ca.display()))?;
    stage.plain(&format!(
        "  for example: profanity, then /connect you@{} server 127.0.0.1 port {} tls trust",
        north.domain,
        north.clients.port()
    ))?;
    stage.plain(
        "romeo@north.localhost and juliet@south.localhost are accounts like yours. Ctrl-C ends the demo.",
    )?;
    tokio::select! {
        end = north.ended() => Err(end),
        end = south.ended() => Err(end),
    }
}

/// The play. Returns how many stanzas were expected, all of which have arrived.
async fn conversation(stage: &Stage, north: &Provider, south: &Provider) -> Result<usize, DemoError> {
    stage.title("Romeo, of the one provider, and Juliet, of the other, log in")?;
    let mut romeo = Actor::log_in(stage, north, "romeo").await?;
    let mut juliet = Actor::log_in(stage, south, "juliet").await?;
    let (r, j) = (romeo.jid.clone(), juliet.jid.clone());

    stage.title("Each subscribes to the other's presence")?;
    let sent = romeo.say(&presence("subscribe", &j), "asks Juliet to see whether she is there").await?;
    juliet.sees("the request", sent, |it| is_presence(it, "subscribe", &r)).await?;
    let sent = juliet.say(&presence("subscribed", &r), "agrees").await?;
    romeo.sees("that she agrees", sent, |it| is_presence(it, "subscribed", &j)).await?;
    romeo.sees("that she is there", sent, |it| is_presence(it, "", &j)).await?;
    let sent = juliet.say(&presence("subscribe", &r), "asks in turn").await?;
    romeo.sees("the request", sent, |it| is_presence(it, "subscribe", &j)).await?;
    let sent = romeo.say(&presence("subscribed", &j), "agrees").await?;
    juliet.sees("that he agrees", sent, |it| is_presence(it, "subscribed", &r)).await?;
    juliet.sees("that he is there", sent, |it| is_presence(it, "", &r)).await?;

    stage.title("They talk")?;
    for (from_romeo, text) in [
        (true, "She speaks. O, speak again, bright angel!"),
        (false, "O Romeo, Romeo, wherefore art thou Romeo?"),
        (true, "Shall I hear more, or shall I speak at this?"),
        (false, "What's in a name? A domain, after all, is but a name \u{1F339}"),
    ] {
        let (speaker, listener) =
            if from_romeo { (&mut romeo, &mut juliet) } else { (&mut juliet, &mut romeo) };
        let sent = speaker.say(&message(&listener.jid, text), &format!("\u{201C}{text}\u{201D}")).await?;
        listener.sees("just that", sent, |it| is_message(it, &speaker.jid, text)).await?;
    }

    stage.title("Juliet leaves; Romeo writes nevertheless; Juliet returns")?;
    let mut arrived = juliet.arrived;
    let left = juliet.log_out().await?;
    romeo.sees("that she is gone", left, |it| is_presence(it, "unavailable", &j)).await?;
    let text = "Good night, good night! Parting is such sweet sorrow.";
    romeo.say(&message(&j, text), &format!("\u{201C}{text}\u{201D}")).await?;
    // Stream management: now the message is on a disk of his provider, whatever happens to hers.
    romeo.all_acknowledged().await?;
    let mut juliet = Actor::log_in(stage, south, "juliet").await?;
    let back = Instant::now();
    let late = juliet.sees("what he wrote, marked as delayed", back, |it| is_message(it, &r, text)).await?;
    if late.root().child("urn:xmpp:delay", "delay").is_none() {
        return Err(DemoError::Wrong("the message to somebody offline came without the time it was sent"));
    }
    romeo.sees("that she is there again", back, |it| is_presence(it, "", &j)).await?;
    arrived += juliet.arrived + romeo.arrived;
    juliet.log_out().await?;
    romeo.log_out().await?;
    Ok(arrived)
}

/// Somebody with a client.
struct Actor<'a> {
    stage: &'a Stage,
    jid: String,
    client: Client,
    arrived: usize,
}

impl<'a> Actor<'a> {
    /// Logs in, asks for the roster and says that one is there.
    async fn log_in(stage: &'a Stage, provider: &Provider, name: &str) -> Result<Actor<'a>, DemoError> {
        let start = Instant::now();
        let jid = format!("{name}@{}", provider.domain);
        let failed = |error| DemoError::Conversation { who: jid.clone(), error };
        let trust = Trust::pem_file(&provider.ca).map_err(failed)?;
        let target = Target::new(provider.clients, provider.domain).trust(trust).timeout(PATIENCE);
        let mut client = Client::connect(&target, &Login::new(name, PASSWORD)).await.map_err(failed)?;
        client.enable_acks().await.map_err(failed)?;
        client.iq("get", "", "<query xmlns='jabber:iq:roster'/>").await.map_err(failed)?;
        client.send(b"<presence/>").await.map_err(failed)?;
        stage.line(&format!("{jid} is logged in"), Some(start))?;
        Ok(Actor { stage, jid, client, arrived: 0 })
    }

    /// Sends a stanza and shows what it says.
    async fn say(&mut self, stanza: &str, shown: &str) -> Result<Instant, DemoError> {
        self.stage.line(&format!("{}: {shown}", self.jid), None)?;
        let now = Instant::now();
        self.client.send(stanza.as_bytes()).await.map_err(|error| self.failed(error))?;
        Ok(now)
    }

    /// Waits for a stanza, and shows how long it took.
    async fn sees(
        &mut self,
        what: &str,
        since: Instant,
        matches: impl Fn(&Element) -> bool,
    ) -> Result<Element, DemoError> {
        let seen = self.client.expect(what, PATIENCE, matches).await.map_err(|error| self.failed(error))?;
        self.stage.line(&format!("    {} sees {what}", self.jid), Some(since))?;
        self.arrived += 1;
        Ok(seen)
    }

    async fn all_acknowledged(&mut self) -> Result<(), DemoError> {
        let start = Instant::now();
        self.client.all_acked(PATIENCE).await.map_err(|error| self.failed(error))?;
        self.stage.line(&format!("    {}'s provider has it on disk", self.jid), Some(start))
    }

    async fn log_out(self) -> Result<Instant, DemoError> {
        let Actor { stage, jid, client, .. } = self;
        let now = Instant::now();
        client.close().await.map_err(|error| DemoError::Conversation { who: jid.clone(), error })?;
        stage.line(&format!("{jid} logs out"), None)?;
        Ok(now)
    }

    fn failed(&self, error: ClientError) -> DemoError {
        DemoError::Conversation { who: self.jid.clone(), error }
    }
}

fn presence(kind: &str, to: &str) -> String {
    format!("<presence type='{kind}' to='{to}'/>")
}

fn message(to: &str, text: &str) -> String {
    let id = uuid::Uuid::now_v7();
    format!(
        "<message type='chat' id='{id}' to='{to}'><body>{}</body></message>",
        trunkline_xml::escape_text(text)
    )
}

fn from(root: Node<'_>, bare: &str) -> bool {
    root.attr("from").is_some_and(|from| from.split('/').next() == Some(bare))
}

fn is_presence(it: &Element, kind: &str, bare: &str) -> bool {
    let root = it.root();
    root.name() == "presence" && root.attr("type").unwrap_or_default() == kind && from(root, bare)
}

fn is_message(it: &Element, bare: &str, text: &str) -> bool {
    let root = it.root();
    let body = root.children().find(|child| child.name() == "body");
    root.name() == "message" && from(root, bare) && body.is_some_and(|body| body.text() == text)
}

/// One of the two servers.
#[derive(Debug)]
struct Provider {
    domain: &'static str,
    directory: PathBuf,
    ca: PathBuf,
    clients: SocketAddr,
    clients_tls: SocketAddr,
    peers: SocketAddr,
    peers_tls: SocketAddr,
    process: Option<Child>,
}

/// Where another provider finds this one: in the place of DNS.
struct PeerAddress {
    domain: &'static str,
    address: SocketAddr,
}

/// Chooses ports and makes certificates.
fn providers(directory: &Path) -> Result<[Provider; 2], DemoError> {
    let ca = directory.join("demo-ca.pem");
    let authority = Authority::new("Trunkline demo")?;
    std::fs::write(&ca, authority.pem()).map_err(system("demo-ca.pem"))?;
    let make = |domain: &'static str, first: u16| {
        let directory = directory.join(domain);
        make_directory(&directory)?;
        let certificate = authority.issue(&Leaf::new(domain, 365))?;
        certificate
            .write(&directory.join("certificate.pem"), &directory.join("key.pem"))
            .map_err(system("certificate and key"))?;
        let [clients, clients_tls, peers, peers_tls] = addresses(first)?;
        let ca = ca.clone();
        Ok::<_, DemoError>(Provider {
            domain,
            directory,
            ca,
            clients,
            clients_tls,
            peers,
            peers_tls,
            process: None,
        })
    };
    Ok([make("north.localhost", PORTS[0])?, make("south.localhost", PORTS[1])?])
}

impl Provider {
    fn address_of_peers(&self) -> PeerAddress {
        PeerAddress { domain: self.domain, address: self.peers }
    }

    /// What an operator does: `init`, then an account for each.
    async fn set_up(&self, peer: &PeerAddress, users: &[&str]) -> Result<(), DemoError> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let settings = [
            format!("clients.listen={}", self.clients),
            format!("clients.listen_tls={}", self.clients_tls),
            format!("federation.listen={}", self.peers),
            format!("federation.listen_tls={}", self.peers_tls),
            format!("federation.trust={}", self.ca.display()),
            "federation.dialback=false".to_owned(),
            format!("federation.routes.\"{}\"={}", peer.domain, peer.address),
            "web.listen=[]".to_owned(),
            "console.listen=[]".to_owned(),
            format!("tls.certificate={}", file("certificate.pem")),
            format!("tls.key={}", file("key.pem")),
        ];
        let data = file("data");
        let mut arguments = vec!["init", "--domain", self.domain, "--dir", &data];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        run_to_end(own_program(&arguments)?, "").await?;
        for user in users {
            let jid = format!("{user}@{}", self.domain);
            self.command(&["user", "add", &jid, "--password-stdin"], &format!("{PASSWORD}\n")).await?;
        }
        Ok(())
    }

    /// Runs `trunkline ARGUMENTS --config FILE` and returns what it printed.
    async fn command(&self, arguments: &[&str], input: &str) -> Result<String, DemoError> {
        let mut command = own_program(arguments)?;
        command.arg("--config").arg(self.config());
        run_to_end(command, input).await
    }

    fn config(&self) -> PathBuf {
        self.directory.join("data/trunkline.toml")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    async fn start(&mut self) -> Result<(), DemoError> {
        let open = || std::fs::File::options().create(true).append(true).open(self.log());
        let (out, err) = (open().map_err(system("server.log"))?, open().map_err(system("server.log"))?);
        let mut command = own_program(&["serve"])?;
        command.arg("--config").arg(self.config()).stdin(Stdio::null()).stdout(out).stderr(err);
        // A group of its own: Ctrl-C is for the demo, which then stops its servers in order.
        command.process_group(0).kill_on_drop(true);
        self.process = Some(command.spawn().map_err(system("trunkline serve"))?);
        let end = Instant::now() + PATIENCE;
        for address in [self.clients, self.peers] {
            while TcpStream::connect(address).await.is_err() {
                let gone = self.process.as_mut().is_none_or(|it| !matches!(it.try_wait(), Ok(None)));
                if gone || Instant::now() > end {
                    return Err(DemoError::Failed {
                        what: format!("{} did not start", self.domain),
                        output: String::new(),
                    });
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(())
    }

    /// Returns only when the server has ended, which it should not have.
    async fn ended(&mut self) -> DemoError {
        match &mut self.process {
            Some(process) => match process.wait().await {
                Ok(status) => DemoError::Failed {
                    what: format!("{} has ended: {status}", self.domain),
                    output: String::new(),
                },
                Err(error) => DemoError::System(self.domain.to_owned(), error),
            },
            None => {
                DemoError::Failed { what: format!("{} was not started", self.domain), output: String::new() }
            }
        }
    }

    /// Asks the server to end and waits for it; dropping its handle kills it if it does not.
    async fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        if let Some(id) = process.id() {
            // The shell's own `kill` exists on machines that have no program of that name.
            let asked = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &id.to_string()]).status().await;
            if asked.is_ok_and(|it| it.success()) {
                drop(tokio::time::timeout(Duration::from_secs(10), process.wait()).await);
            }
        }
    }
}

fn own_program(arguments: &[&str]) -> Result<Command, DemoError> {
    let mut command = Command::new(std::env::current_exe().map_err(system("this program"))?);
    command.args(arguments);
    Ok(command)
}

async fn run_to_end(mut command: Command, input: &str) -> Result<String, DemoError> {
    let arguments: Vec<_> = command.as_std().get_args().map(|it| it.to_string_lossy().into_owned()).collect();
    let what = format!("trunkline {}", arguments.join(" "));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(system(&what))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input says why in its output.
        drop(stdin.write_all(input.as_bytes()).await);
    }
    let output = match tokio::time::timeout(PATIENCE, child.wait_with_output()).await {
        Ok(output) => output.map_err(system(&what))?,
        Err(_) => return Err(DemoError::Failed { what, output: "it did not end".to_owned() }),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(DemoError::Failed { what, output: String::from_utf8_lossy(&text).into_owned() })
}

/// The ports from `first` on, or any when one of them is taken.
fn addresses(first: u16) -> Result<[SocketAddr; 4], DemoError> {
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let wanted = [first, first + 1, first + 47, first + 48];
    let listeners: Vec<TcpListener> = match wanted.into_iter().map(bind).collect::<io::Result<_>>() {
        Ok(listeners) => listeners,
        Err(_) => (0..4).map(|_| bind(0)).collect::<io::Result<_>>().map_err(system("a port on loopback"))?,
    };
    let addresses: Vec<SocketAddr> = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<io::Result<_>>()
        .map_err(system("a port on loopback"))?;
    Ok(addresses.try_into().expect("invariant: four listeners have four addresses"))
}

/// Where the demo keeps its things.
struct Directory {
    path: PathBuf,
    temporary: bool,
}

impl Directory {
    fn make(given: Option<PathBuf>) -> Result<Directory, DemoError> {
        let temporary = given.is_none();
        let name = || std::env::temp_dir().join(format!("trunkline-demo-{}", uuid::Uuid::now_v7()));
        let path = given.unwrap_or_else(name);
        make_directory(&path)?;
        let path = path.canonicalize().map_err(system("the demo's directory"))?;
        Ok(Directory { path, temporary })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.temporary {
            // What can't be removed from a directory for temporary files is harmless.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn make_directory(path: &Path) -> Result<(), DemoError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(system(&path.display().to_string()))
}

fn system(what: &str) -> impl FnOnce(io::Error) -> DemoError {
    let what = what.to_owned();
    |error| DemoError::System(what, error)
}

/// Where the transcript appears.
struct Stage {
    begin: Instant,
}

impl Stage {
    fn title(&self, text: &str) -> Result<(), DemoError> {
        self.plain(&format!("\n{text}"))
    }

    /// One line of the transcript, with the time since the beginning and what this step took.
    fn line(&self, text: &str, since: Option<Instant>) -> Result<(), DemoError> {
        let at = self.begin.elapsed().as_secs_f64();
        let took =
            since.map(|it| format!("  {:.1} ms", it.elapsed().as_secs_f64() * 1000.0)).unwrap_or_default();
        self.plain(&format!("{at:8.3}  {text}{took}"))
    }

    fn plain(&self, text: &str) -> Result<(), DemoError> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(system("standard output"))
    }

    /// After a failure: the last lines of the servers' logs.
    fn servers_words(&self, providers: &[&Provider]) -> Result<(), DemoError> {
        for provider in providers {
            let log = std::fs::read_to_string(provider.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            if !lines.is_empty() {
                self.title(&format!("The last lines of {}'s log", provider.domain))?;
            }
            lines
                .iter()
                .skip(lines.len().saturating_sub(20))
                .try_for_each(|line| self.plain(&format!("  {line}")))?;
        }
        Ok(())
    }
}
