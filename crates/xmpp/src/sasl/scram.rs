//! RFC 5802 SCRAM: keys, and the grammar of its messages (s.7).

use std::borrow::Cow;
use std::num::NonZeroU32;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};

use super::Failure;
use crate::prep::{Profile, Unassigned, prepare};

/// PBKDF2 iterations of new keys where nothing else is configured.
pub const DEFAULT_ITERATIONS: u32 = 10_000;

const SALT_BYTES: usize = 16;

/// The hash function of a SCRAM mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hash {
    /// RFC 5802.
    Sha1,
    /// RFC 7677.
    Sha256,
    /// draft-melnikov-scram-sha-512.
    Sha512,
}

impl Hash {
    /// All of them, weakest first.
    pub const ALL: [Hash; 3] = [Hash::Sha1, Hash::Sha256, Hash::Sha512];

    /// The mechanism's name, without channel binding; what stores may key by.
    pub fn mechanism(self) -> &'static str {
        match self {
            Hash::Sha1 => "SCRAM-SHA-1",
            Hash::Sha256 => "SCRAM-SHA-256",
            Hash::Sha512 => "SCRAM-SHA-512",
        }
    }

    /// Bytes of a hash.
    pub fn bytes(self) -> usize {
        self.digest().output_len()
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Hash::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Hash::Sha256 => &digest::SHA256,
            Hash::Sha512 => &digest::SHA512,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Hash::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
            Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }

    pub(super) fn h(self, data: &[u8]) -> digest::Digest {
        digest::digest(self.digest(), data)
    }

    pub(super) fn hmac(self, key: &[u8], data: &[u8]) -> hmac::Tag {
        let algorithm = match self {
            Hash::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Hash::Sha256 => hmac::HMAC_SHA256,
            Hash::Sha512 => hmac::HMAC_SHA512,
        };
        hmac::sign(&hmac::Key::new(algorithm, key), data)
    }

    /// RFC 5802 s.2.2 `Hi()`.
    pub(super) fn hi(self, password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Vec<u8> {
        let mut salted = vec![0; self.bytes()];
        pbkdf2::derive(self.pbkdf2(), iterations, salt, password, &mut salted);
        salted
    }
}

/// What a server keeps of a password (RFC 5802 s.3). Whoever has it can check logins but not log in.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// The hash function.
    pub hash: Hash,
    /// Random, public.
    pub salt: Vec<u8>,
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// `H(ClientKey)`.
    pub stored_key: Vec<u8>,
    /// `HMAC(SaltedPassword, "Server Key")`.
    pub server_key: Vec<u8>,
}

/// Keys stay out of logs.
impl std::fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScramKeys")
            .field("hash", &self.hash)
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

/// What a client makes new keys of its password with (XEP-0480 s.4).
#[derive(Clone, Debug)]
pub struct Salt {
    bytes: Vec<u8>,
    rounds: NonZeroU32,
}

impl Salt {
    /// A new one. Zero iterations count as one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new(iterations: u32) -> Result<Salt, PasswordError> {
        let mut bytes = vec![0; SALT_BYTES];
        getrandom::fill(&mut bytes).map_err(|_| PasswordError::Random)?;
        Ok(Salt { bytes, rounds: NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN) })
    }

    /// In base64.
    pub fn text(&self) -> String {
        super::encode(&self.bytes)
    }

    /// PBKDF2 iterations.
    pub fn iterations(&self) -> u32 {
        self.rounds.get()
    }
}

/// Why a password can't be used. The fault of who chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Empty, or nothing is left of it after SASLprep.
    #[error("the password is empty")]
    Empty,
    /// RFC 4013: a control character or one without a meaning of its own, or writing directions mixed.
    #[error("the password has characters that can't be used in passwords")]
    Characters,
    /// Longer than 1023 bytes.
    #[error("the password is too long")]
    TooLong,
    /// A fault of this machine.
    #[error("the system gives no random numbers")]
    Random,
}

impl ScramKeys {
    /// Keys of a password with a new salt.
    pub fn new(hash: Hash, password: &str, iterations: u32) -> Result<ScramKeys, PasswordError> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|_| PasswordError::Random)?;
        ScramKeys::derive(hash, password, &salt, iterations)
    }

    /// Keys of a password. Zero iterations count as one. Costs milliseconds: not for threads that serve others.
    pub fn derive(
        hash: Hash,
        password: &str,
        salt: &[u8],
        iterations: u32,
    ) -> Result<ScramKeys, PasswordError> {
        let password = prepare_password(password)?;
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        let salted = hash.hi(password.as_bytes(), salt, rounds);
        Ok(ScramKeys::of_salted(hash, &salted, (salt, rounds)))
    }

    fn of_salted(hash: Hash, salted: &[u8], (salt, rounds): (&[u8], NonZeroU32)) -> ScramKeys {
        let client_key = hash.hmac(salted, b"Client Key");
        ScramKeys {
            hash,
            salt: salt.to_vec(),
            iterations: rounds.get(),
            stored_key: hash.h(client_key.as_ref()).as_ref().to_vec(),
            server_key: hash.hmac(salted, b"Server Key").as_ref().to_vec(),
        }
    }

    /// XEP-0480 s.4: keys of the SaltedPassword that a client worked out from a [`Salt`] of ours; in base64.
    ///
    /// # Errors
    /// No base64, or not of the hash's length.
    pub fn upgraded(hash: Hash, salt: &Salt, salted: &str) -> Result<ScramKeys, Failure> {
        let salted = super::decode(salted)?;
        if salted.len() != hash.bytes() {
            return Err(Failure::MalformedRequest);
        }
        Ok(ScramKeys::of_salted(hash, &salted, (&salt.bytes, salt.rounds)))
    }

    /// Whether the keys are of this password. As costly as [`ScramKeys::derive`].
    pub fn verify_password(&self, password: &str) -> bool {
        let derived = ScramKeys::derive(self.hash, password, &self.salt, self.iterations);
        derived.is_ok_and(|derived| same(&derived.stored_key, &self.stored_key))
    }

    /// Whether the keys can be used at all: a store may hold anything.
    pub(super) fn sound(&self, hash: Hash) -> bool {
        self.hash == hash
            && self.iterations > 0
            && !self.salt.is_empty()
            && self.stored_key.len() == hash.bytes()
            && self.server_key.len() == hash.bytes()
    }

    /// Keys nobody has the password of, the same for the same user at all times. Case is folded as for
    /// known users, whose salt does not depend on the case they type.
    pub(super) fn decoy(hash: Hash, user: &str, decoys: &super::Decoys) -> ScramKeys {
        let user = prepare(user, Profile::Node, Unassigned::Allow).unwrap_or(Cow::Borrowed(user));
        let iterations = decoys.iterations(&user);
        let part = |what: &str| {
            // Another count comes with another salt, as with a new password.
            let message = format!("trunkline {what} {} {iterations} {user}", hash.mechanism());
            hash.hmac(&decoys.secret, message.as_bytes()).as_ref().to_vec()
        };
        let mut salt = part("salt");
        salt.truncate(SALT_BYTES);
        ScramKeys { hash, salt, iterations, stored_key: part("stored key"), server_key: part("server key") }
    }
}

/// RFC 5802 s.2.2: SASLprep. Code points that Unicode 3.2 did not know are taken although RFC 4013 s.2.5 would
/// refuse them in stored strings, because people have emoji in their passwords and clients send them as they are.
pub(super) fn prepare_password(password: &str) -> Result<Cow<'_, str>, PasswordError> {
    if password.len() > 1023 {
        return Err(PasswordError::TooLong);
    }
    let prepared =
        prepare(password, Profile::Sasl, Unassigned::Allow).map_err(|_| PasswordError::Characters)?;
    if prepared.is_empty() { Err(PasswordError::Empty) } else { Ok(prepared) }
}

/// Compares in constant time.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

pub(super) fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

/// RFC 5802 s.7 `gs2-cbind-flag`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gs2Flag {
    /// `n`: the client can't bind.
    Unsupported,
    /// `y`: the client can bind, but believes that the server can't.
    NotOffered,
    /// `p=`: bound with this type.
    Bound(String),
}

/// RFC 5802 s.7 `client-first-message`.
#[derive(Debug)]
pub(super) struct ClientFirst {
    pub(super) flag: Gs2Flag,
    pub(super) authzid: Option<String>,
    /// Flag and authzid as they came; repeated in the client's final message.
    pub(super) gs2_header: String,
    /// The rest as it came.
    pub(super) bare: String,
    pub(super) user: String,
    pub(super) nonce: String,
}

impl ClientFirst {
    pub(super) fn parse(message: &str) -> Result<ClientFirst, Failure> {
        let malformed = Failure::MalformedRequest;
        let mut parts = message.splitn(3, ',');
        let (flag, authzid, bare) = match (parts.next(), parts.next(), parts.next()) {
            (Some(flag), Some(authzid), Some(bare)) => (flag, authzid, bare),
            _ => return Err(malformed),
        };
        let gs2_header = message[..message.len() - bare.len()].to_owned();
        let flag = match flag {
            "n" => Gs2Flag::Unsupported,
            "y" => Gs2Flag::NotOffered,
            _ => Gs2Flag::Bound(cb_name(flag.strip_prefix("p=").ok_or(malformed)?)?),
        };
        let authzid = match authzid {
            "" => None,
            text => Some(unescape(text.strip_prefix("a=").ok_or(malformed)?)?),
        };
        if bare.starts_with("m=") {
            return Err(Failure::UnknownExtension);
        }
        let mut attributes = bare.split(',');
        let user = attributes.next().and_then(|a| a.strip_prefix("n=")).ok_or(malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(malformed)?;
        if !printable(nonce) || !attributes.all(is_attribute) {
            return Err(malformed);
        }
        let user = unescape(user)?;
        let user = prepare(&user, Profile::Sasl, Unassigned::Allow).map_err(|_| malformed)?;
        if user.is_empty() {
            return Err(malformed);
        }
        Ok(ClientFirst {
            flag,
            authzid,
            gs2_header,
            bare: bare.to_owned(),
            user: user.into_owned(),
            nonce: nonce.to_owned(),
        })
    }
}

/// RFC 5802 s.7 `client-final-message`.
#[derive(Debug)]
pub(super) struct ClientFinal<'a> {
    pub(super) binding: Vec<u8>,
    pub(super) nonce: &'a str,
    pub(super) proof: Vec<u8>,
    pub(super) without_proof: &'a str,
}

impl ClientFinal<'_> {
    pub(super) fn parse(message: &str) -> Result<ClientFinal<'_>, Failure> {
        let malformed = Failure::MalformedRequest;
        // The proof comes last, and base64 has no comma.
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(malformed)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|a| a.strip_prefix("c=")).ok_or(malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(malformed)?;
        if !attributes.all(is_attribute) {
            return Err(malformed);
        }
        let binding = super::decode(binding).map_err(|_| malformed)?;
        let proof = super::decode(proof).map_err(|_| malformed)?;
        Ok(ClientFinal { binding, nonce, proof, without_proof })
    }
}

/// RFC 5802 s.7 `server-first-message`.
#[derive(Debug)]
pub(super) struct ServerFirst<'a> {
    pub(super) nonce: &'a str,
    pub(super) salt: Vec<u8>,
    pub(super) iterations: NonZeroU32,
    /// XEP-0474 `h`.
    pub(super) announcement: Option<&'a str>,
}

impl ServerFirst<'_> {
    pub(super) fn parse(message: &str) -> Option<ServerFirst<'_>> {
        let mut attributes = message.split(',');
        let nonce = attributes.next()?.strip_prefix("r=")?;
        let salt = super::decode(attributes.next()?.strip_prefix("s=")?).ok()?;
        let iterations = attributes.next()?.strip_prefix("i=")?.parse().ok()?;
        let announcement = attributes.clone().find_map(|attribute| attribute.strip_prefix("h="));
        attributes.all(is_attribute).then_some(ServerFirst { nonce, salt, iterations, announcement })
    }
}

/// RFC 5802 s.5.1: `=2C` and `=3D` stand for comma and equals sign; another `=` is an error.
fn unescape(name: &str) -> Result<String, Failure> {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('=') {
        plain.push_str(&rest[..at]);
        plain.push(match rest.get(at..at + 3) {
            Some("=2C") => ',',
            Some("=3D") => '=',
            _ => return Err(Failure::MalformedRequest),
        });
        rest = &rest[at + 3..];
    }
    plain.push_str(rest);
    if plain.is_empty() || plain.contains('\0') { Err(Failure::MalformedRequest) } else { Ok(plain) }
}

pub(super) fn escape(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

fn cb_name(name: &str) -> Result<String, Failure> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        return Err(Failure::MalformedRequest);
    }
    Ok(name.to_owned())
}

fn printable(nonce: &str) -> bool {
    !nonce.is_empty() && nonce.len() <= 1024 && nonce.bytes().all(|b| b.is_ascii_graphic() && b != b',')
}

/// An optional extension, which is ignored: one letter, `=`, a value.
fn is_attribute(attribute: &str) -> bool {
    matches!(attribute.as_bytes(), [letter, b'=', _, ..] if letter.is_ascii_alphabetic() && *letter != b'm')
}
