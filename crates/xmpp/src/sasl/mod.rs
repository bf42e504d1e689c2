//! RFC 6120 s.6 SASL: SCRAM with and without channel binding (RFC 5802, RFC 7677, RFC 9266), PLAIN (RFC 4616),
//! EXTERNAL (RFC 4422 appendix A), ANONYMOUS (RFC 4505), and tokens (SASL HT, for XEP-0484).
//!
//! [`Server`] and [`client`] hold a conversation without doing I/O. Texts go in and come out in base64, as the
//! elements of the stream carry them.

pub mod client;
mod scram;
mod server;
mod token;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

pub use scram::{DEFAULT_ITERATIONS, Hash, PasswordError, Salt, ScramKeys};
pub use server::{Server, Step};
pub use token::{TokenLogin, TokenMechanism, token_answer, token_initial, token_verify};

/// Bytes a message may have after decoding. The longest honest ones are PLAIN's: two addresses and a password.
pub const MAX_MESSAGE: usize = 8192;

/// Why a login failed. Of one wire condition there may be several, so that logs and counters can tell what the
/// peer is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{}", self.name())]
pub enum Failure {
    /// The client gave up.
    Aborted,
    /// The account is disabled.
    AccountDisabled,
    /// The password has expired.
    CredentialsExpired,
    /// The mechanism is offered inside TLS only.
    EncryptionRequired,
    /// Not base64.
    IncorrectEncoding,
    /// The client asked to act for somebody else, or the certificate does not prove whom it names.
    InvalidAuthzid,
    /// A mechanism that was not offered.
    InvalidMechanism,
    /// A message that does not follow the mechanism's grammar, or comes out of turn.
    MalformedRequest,
    /// A message longer than [`MAX_MESSAGE`].
    TooLong,
    /// A mandatory SCRAM extension, of which we know none.
    UnknownExtension,
    /// The mechanism is weaker than the account's policy allows.
    MechanismTooWeak,
    /// The user is unknown or the password is wrong.
    NotAuthorized,
    /// RFC 5802 s.6: the client believes that we offered no channel binding, but we did: somebody has changed the
    /// list of mechanisms on its way.
    Downgrade,
    /// A channel-binding type that this connection does not provide.
    BindingUnsupported,
    /// The channel bindings differ: the client's TLS connection ends elsewhere.
    BindingMismatch,
    /// The nonce or the header was not repeated as it was.
    NonceMismatch,
    /// XEP-0509 s.2.2: the client has chosen from features that are no longer those of the stream.
    OtherFeatures,
    /// A fault of this server, or a limit on attempts.
    TemporaryAuthFailure,
}

impl Failure {
    /// The condition's name on the wire (RFC 6120 s.6.5).
    pub fn condition(self) -> &'static str {
        match self {
            Failure::Aborted | Failure::OtherFeatures => "aborted",
            Failure::AccountDisabled => "account-disabled",
            Failure::CredentialsExpired => "credentials-expired",
            Failure::EncryptionRequired => "encryption-required",
            Failure::IncorrectEncoding => "incorrect-encoding",
            Failure::InvalidAuthzid => "invalid-authzid",
            Failure::InvalidMechanism => "invalid-mechanism",
            Failure::MalformedRequest | Failure::TooLong | Failure::UnknownExtension => "malformed-request",
            Failure::MechanismTooWeak => "mechanism-too-weak",
            Failure::NotAuthorized
            | Failure::Downgrade
            | Failure::BindingUnsupported
            | Failure::BindingMismatch
            | Failure::NonceMismatch => "not-authorized",
            Failure::TemporaryAuthFailure => "temporary-auth-failure",
        }
    }

    /// A stable label, one per variant.
    pub fn name(self) -> &'static str {
        match self {
            Failure::TooLong => "too-long",
            Failure::UnknownExtension => "unknown-extension",
            Failure::Downgrade => "channel-binding-downgrade",
            Failure::BindingUnsupported => "channel-binding-unsupported",
            Failure::BindingMismatch => "channel-binding-mismatch",
            Failure::NonceMismatch => "nonce-mismatch",
            Failure::OtherFeatures => "config-version-mismatch",
            other => other.condition(),
        }
    }
}

/// What binds a login to its TLS connection, as far as the connection provides it. Empty without TLS.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ChannelBindings {
    /// RFC 9266 `tls-exporter`: 32 bytes exported with the label `EXPORTER-Channel-Binding`. TLS 1.3, and
    /// TLS 1.2 with the extended master secret only.
    pub exporter: Option<Vec<u8>>,
    /// RFC 5929 s.4 `tls-server-end-point`: hash of the server's certificate.
    pub server_end_point: Option<Vec<u8>>,
    /// RFC 5929 s.3 `tls-unique`: TLS 1.2 with the extended master secret only.
    pub unique: Option<Vec<u8>>,
}

impl ChannelBindings {
    /// The data of the type with this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all().find(|(known, _)| *known == name).map(|(_, data)| data)
    }

    /// XEP-0440: the types to announce, best first.
    pub fn types(&self) -> Vec<&'static str> {
        self.all().map(|(name, _)| name).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let named = [
            ("tls-exporter", &self.exporter),
            ("tls-unique", &self.unique),
            ("tls-server-end-point", &self.server_end_point),
        ];
        named.into_iter().filter_map(|(name, data)| Some((name, data.as_deref()?)))
    }
}

/// The data is not secret, but says much about a connection: it stays out of logs.
impl std::fmt::Debug for ChannelBindings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ChannelBindings").field(&self.types()).finish()
    }
}

/// A mechanism by its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// SCRAM.
    Scram {
        /// With which hash function.
        hash: Hash,
        /// Whether it is the variant with channel binding.
        plus: bool,
    },
    /// The password itself.
    Plain,
    /// The client's certificate.
    External,
    /// A temporary account.
    Anonymous,
}

impl Mechanism {
    /// All of them, in the order in which they are announced.
    pub const ALL: [Mechanism; 9] = [
        Mechanism::External,
        Mechanism::Scram { hash: Hash::Sha512, plus: true },
        Mechanism::Scram { hash: Hash::Sha256, plus: true },
        Mechanism::Scram { hash: Hash::Sha1, plus: true },
        Mechanism::Scram { hash: Hash::Sha512, plus: false },
        Mechanism::Scram { hash: Hash::Sha256, plus: false },
        Mechanism::Scram { hash: Hash::Sha1, plus: false },
        Mechanism::Plain,
        Mechanism::Anonymous,
    ];

    /// The registered name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Scram { hash, plus: false } => hash.mechanism(),
            Mechanism::Scram { hash: Hash::Sha1, plus: true } => "SCRAM-SHA-1-PLUS",
            Mechanism::Scram { hash: Hash::Sha256, plus: true } => "SCRAM-SHA-256-PLUS",
            Mechanism::Scram { hash: Hash::Sha512, plus: true } => "SCRAM-SHA-512-PLUS",
            Mechanism::Plain => "PLAIN",
            Mechanism::External => "EXTERNAL",
            Mechanism::Anonymous => "ANONYMOUS",
        }
    }

    /// The mechanism with this name.
    pub fn parse(name: &str) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|mechanism| mechanism.name() == name)
    }
}

/// The name as a label of bounded number, if there is a mechanism of that name: the peer chooses what it sends.
pub fn known(name: &str) -> Option<&'static str> {
    Mechanism::parse(name)
        .map(Mechanism::name)
        .or_else(|| TokenMechanism::parse(name).map(TokenMechanism::name))
}

/// XEP-0474 s.5.1: the hash of what a server announces, so that a client notices when somebody has changed the lists
/// on their way. `types` empty: none are announced.
pub(crate) fn announcement(hash: Hash, mechanisms: &[&str], types: &[&str]) -> String {
    let sorted = |names: &[&str]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.join("\x1e")
    };
    let mut text = sorted(mechanisms);
    if !types.is_empty() {
        text.push('\x1f');
        text.push_str(&sorted(types));
    }
    encode(hash.h(text.as_bytes()))
}

/// What a server offers on one connection, and so the list that a downgrade is measured against.
#[derive(Clone, Debug)]
pub struct Offer {
    mechanisms: Vec<Mechanism>,
    domain: Option<String>,
    identities: Vec<String>,
    decoys: Option<Decoys>,
    decoy_name: Option<String>,
    protected: bool,
}

impl Offer {
    /// SCRAM with all hash functions; with channel binding if the connection provides one; PLAIN inside TLS.
    pub fn new(tls: bool, bindings: &ChannelBindings) -> Offer {
        let offered = |mechanism: &Mechanism| match mechanism {
            Mechanism::Scram { plus, .. } => !plus || !bindings.is_empty(),
            Mechanism::Plain => tls,
            Mechanism::External | Mechanism::Anonymous => false,
        };
        Offer {
            mechanisms: Mechanism::ALL.into_iter().filter(offered).collect(),
            domain: None,
            identities: Vec::new(),
            decoys: None,
            decoy_name: None,
            protected: false,
        }
    }

    /// Nothing but what is added: a server's offer to another server.
    pub fn none() -> Offer {
        Offer {
            mechanisms: Vec::new(),
            domain: None,
            identities: Vec::new(),
            decoys: None,
            decoy_name: None,
            protected: false,
        }
    }

    /// Offers EXTERNAL, to a peer whose certificate proves `identities` (bare JIDs or domains, canonical). An empty
    /// authorization identity means the first of them (XEP-0178 s.2 and s.3).
    pub fn external(mut self, identities: Vec<String>) -> Offer {
        if !identities.is_empty() {
            self.mechanisms.insert(0, Mechanism::External);
            self.identities = identities;
        }
        self
    }

    /// Offers ANONYMOUS (XEP-0175).
    pub fn anonymous(mut self) -> Offer {
        self.mechanisms.push(Mechanism::Anonymous);
        self
    }

    /// Takes an authorization identity `user@domain` for the user's own (RFC 6120 s.6.3.8). Without it only an
    /// empty one or the plain user name are taken.
    pub fn domain(mut self, domain: &str) -> Offer {
        self.domain = Some(domain.to_owned());
        self
    }

    /// What unknown users are answered with. Without it each start of the process has a secret of its own, which
    /// would let a patient attacker tell unknown users by their changing salts.
    pub fn decoys(mut self, decoys: Decoys) -> Offer {
        self.decoys = Some(decoys);
        self
    }

    /// The name that an unknown user's decoy is made of, where users may write theirs in several ways: an unknown
    /// user's salt must not change with the way either.
    pub fn decoy_name(mut self, name: &str) -> Offer {
        self.decoy_name = Some(name.to_owned());
        self
    }

    /// XEP-0474: tells in SCRAM what was announced, for this to be signed with the password. The list on the stream
    /// must be that of [`Offer::names`], with the binding types of [`ChannelBindings::types`].
    pub fn protected(mut self) -> Offer {
        self.protected = true;
        self
    }

    /// Withdraws mechanisms, as a policy may want.
    pub fn without(mut self, unwanted: impl Fn(Mechanism) -> bool) -> Offer {
        self.mechanisms.retain(|mechanism| !unwanted(*mechanism));
        self
    }

    /// The names to announce, best first.
    pub fn names(&self) -> Vec<&'static str> {
        self.mechanisms.iter().map(|mechanism| mechanism.name()).collect()
    }

    fn has(&self, mechanism: Mechanism) -> bool {
        self.mechanisms.contains(&mechanism)
    }

    fn has_plus(&self) -> bool {
        self.mechanisms.iter().any(|mechanism| matches!(mechanism, Mechanism::Scram { plus: true, .. }))
    }
}

/// Makes the keys that unknown users are answered with: the same for the same user as long as nothing changes, and
/// costing the same work as those of a known one.
#[derive(Clone)]
pub struct Decoys {
    secret: Arc<[u8]>,
    /// Iteration counts and how many accounts have each; never empty.
    counts: Arc<[(u32, u32)]>,
}

impl Decoys {
    /// `secret` must be kept over restarts; `iterations` is what new accounts get.
    pub fn new(secret: &[u8], iterations: u32) -> Decoys {
        Decoys { secret: secret.into(), counts: [(iterations.max(1), 1)].into() }
    }

    /// Keys with iteration counts as they occur: pairs of a count and how many accounts have it. The configured
    /// count changes and most passwords don't: a stand-in with the new one would be known by it.
    pub fn among(mut self, counts: &[(u32, u32)]) -> Decoys {
        let sound = |(count, accounts): &&(u32, u32)| *count > 0 && *accounts > 0;
        let counts: Vec<(u32, u32)> = counts.iter().filter(sound).copied().collect();
        if !counts.is_empty() {
            self.counts = counts.into();
        }
        self
    }

    /// The user's count. Weighted rendezvous hashing: each count is drawn as often as it occurs, and when accounts
    /// move from one to another only as many users move as they are, as if they had a new password.
    fn iterations(&self, user: &str) -> u32 {
        let score = |(count, accounts): &(u32, u32)| {
            let tag =
                Hash::Sha256.hmac(&self.secret, format!("trunkline iterations {count} {user}").as_bytes());
            let drawn = tag.as_ref().iter().take(4).fold(0, |n: u32, byte| n << 8 | u32::from(*byte));
            -((f64::from(drawn) + 0.5) / 4_294_967_296.0).ln() / f64::from(*accounts)
        };
        let nearest = self.counts.iter().min_by(|a, b| score(a).total_cmp(&score(b)));
        nearest.map_or(DEFAULT_ITERATIONS, |(count, _)| *count)
    }
}

impl std::fmt::Debug for Decoys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoys").field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// RFC 6120 s.6.4.2 and s.6.4.3: base64 without white space; `=` stands for an empty message.
fn decode(text: &str) -> Result<Vec<u8>, Failure> {
    if text.len() > MAX_MESSAGE.div_ceil(3) * 4 {
        return Err(Failure::TooLong);
    }
    if text == "=" {
        return Ok(Vec::new());
    }
    let message = BASE64.decode(text).map_err(|_| Failure::IncorrectEncoding)?;
    if message.len() > MAX_MESSAGE { Err(Failure::TooLong) } else { Ok(message) }
}

fn decode_text(text: &str) -> Result<String, Failure> {
    String::from_utf8(decode(text)?).map_err(|_| Failure::MalformedRequest)
}

fn encode(message: impl AsRef<[u8]>) -> String {
    BASE64.encode(message)
}

/// Unpredictable text for nonces and temporary names: 144 bits.
fn random_text() -> Result<String, Failure> {
    let mut bytes = [0; 18];
    getrandom::fill(&mut bytes).map_err(|_| Failure::TemporaryAuthFailure)?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests;
