//! The client's side of a login: for our own client, the tests, and servers that log in to others.

use std::num::NonZeroU32;

use super::scram::{ServerFirst, escape, prepare_password, same, xor};
use super::{Hash, decode, encode, random_text};
use crate::prep::{Profile, Unassigned, prepare};

/// Iterations a server may ask for: beyond that it only burns our time.
const MAX_ITERATIONS: u32 = 10_000_000;
/// RFC 5802 s.5.1: below that the server, or somebody in between, is after our password.
const MIN_ITERATIONS: u32 = 4096;

/// Why a login can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Our user's fault: user name or password have no prepared form.
    #[error("the user name or password has characters that can't be used")]
    Credentials,
    /// The server's message does not follow the grammar, or comes out of turn.
    #[error("the server's message is malformed")]
    Malformed,
    /// The server's nonce does not begin with ours.
    #[error("the server did not repeat our nonce")]
    Nonce,
    /// The server asks for too few or too many iterations.
    #[error("the server asks for {0} iterations")]
    Iterations(u32),
    /// The server does not know our password either: it is an impostor.
    #[error("the server did not prove that it knows the password")]
    ServerSignature,
    /// XEP-0474: the server did not announce what came here: somebody has changed the lists on their way.
    #[error("somebody has changed the list of mechanisms or channel bindings on its way")]
    Downgrade,
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// RFC 5802 s.7 `gs2-cbind-flag`: what the client says about channel binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// `n`: it can't.
    Unsupported,
    /// `y`: it can, but the server did not offer it. If the server did, it will refuse.
    NotOffered,
    /// `p`: for a `-PLUS` mechanism.
    Bound {
        /// Name of the type, such as `tls-exporter`.
        name: String,
        /// What the TLS connection gives for it.
        data: Vec<u8>,
    },
}

/// What the password and the server's salt give. A client that logs in often may keep it (RFC 5802 s.5.1, `i`): it
/// saves PBKDF2, and is as secret as the password.
#[derive(Clone)]
pub struct ClientKeys {
    hash: Hash,
    salt: Vec<u8>,
    iterations: NonZeroU32,
    client_key: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

/// Keys stay out of logs.
impl std::fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientKeys").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl ClientKeys {
    fn derive(hash: Hash, password: &str, first: &ServerFirst<'_>) -> ClientKeys {
        let salted = hash.hi(password.as_bytes(), &first.salt, first.iterations);
        let client_key = hash.hmac(&salted, b"Client Key").as_ref().to_vec();
        ClientKeys {
            hash,
            salt: first.salt.clone(),
            iterations: first.iterations,
            stored_key: hash.h(&client_key).as_ref().to_vec(),
            client_key,
            server_key: hash.hmac(&salted, b"Server Key").as_ref().to_vec(),
        }
    }

    fn fits(&self, hash: Hash, first: &ServerFirst<'_>) -> bool {
        self.hash == hash && self.salt == first.salt && self.iterations == first.iterations
    }
}

/// A SCRAM login.
pub struct Scram {
    hash: Hash,
    password: String,
    gs2_header: String,
    binding_data: Vec<u8>,
    first_bare: String,
    nonce: String,
    /// What the server must have announced.
    announcement: Option<String>,
    server_signature: Option<Vec<u8>>,
}

/// The password stays out of logs.
impl std::fmt::Debug for Scram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scram").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl Scram {
    /// Begins a login of `user` (a local part).
    pub fn new(hash: Hash, user: &str, password: &str, binding: Binding) -> Result<Scram, ClientError> {
        let nonce = random_text().map_err(|_| ClientError::Random)?;
        Scram::with_nonce(hash, (user, password), binding, nonce)
    }

    pub(super) fn with_nonce(
        hash: Hash,
        (user, password): (&str, &str),
        binding: Binding,
        nonce: String,
    ) -> Result<Scram, ClientError> {
        let user = prepare(user, Profile::Sasl, Unassigned::Allow).map_err(|_| ClientError::Credentials)?;
        let password = prepare_password(password).map_err(|_| ClientError::Credentials)?;
        let (flag, binding_data) = match binding {
            Binding::Unsupported => ("n".to_owned(), Vec::new()),
            Binding::NotOffered => ("y".to_owned(), Vec::new()),
            Binding::Bound { name, data } => (format!("p={name}"), data),
        };
        Ok(Scram {
            hash,
            password: password.into_owned(),
            gs2_header: format!("{flag},,"),
            binding_data,
            first_bare: format!("n={},r={nonce}", escape(&user)),
            nonce,
            announcement: None,
            server_signature: None,
        })
    }

    /// XEP-0474 s.5.2: what came as the server's announcement. If the server signs another one the login is given up.
    pub fn announced(mut self, mechanisms: &[&str], types: &[&str]) -> Scram {
        self.announcement = Some(super::announcement(self.hash, mechanisms, types));
        self
    }

    /// The text of `<auth/>`.
    pub fn initial(&self) -> String {
        encode(format!("{}{}", self.gs2_header, self.first_bare))
    }

    /// Takes the text of the `<challenge/>`, gives that of the `<response/>`. Costs milliseconds.
    pub fn respond(&mut self, challenge: &str) -> Result<String, ClientError> {
        self.respond_with(challenge, &mut None)
    }

    /// The same, with the keys of an earlier login of the same user if they still fit; otherwise new ones are put
    /// there.
    pub fn respond_with(
        &mut self,
        challenge: &str,
        kept: &mut Option<ClientKeys>,
    ) -> Result<String, ClientError> {
        let message = decode(challenge).map_err(|_| ClientError::Malformed)?;
        let message = std::str::from_utf8(&message).map_err(|_| ClientError::Malformed)?;
        let first = ServerFirst::parse(message).ok_or(ClientError::Malformed)?;
        if !first.nonce.starts_with(&self.nonce) || first.nonce.len() == self.nonce.len() {
            return Err(ClientError::Nonce);
        }
        let iterations = first.iterations.get();
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err(ClientError::Iterations(iterations));
        }
        if let (Some(ours), Some(theirs)) = (&self.announcement, first.announcement)
            && ours != theirs
        {
            return Err(ClientError::Downgrade);
        }
        let hash = self.hash;
        if !kept.as_ref().is_some_and(|keys| keys.fits(hash, &first)) {
            *kept = None;
        }
        let keys = kept.get_or_insert_with(|| ClientKeys::derive(hash, &self.password, &first));
        let mut binding = self.gs2_header.clone().into_bytes();
        binding.extend_from_slice(&self.binding_data);
        let without_proof = format!("c={},r={}", encode(binding), first.nonce);
        let auth_message = format!("{},{message},{without_proof}", self.first_bare);
        let signature = hash.hmac(&keys.stored_key, auth_message.as_bytes());
        let proof = xor(&keys.client_key, signature.as_ref());
        self.server_signature = Some(hash.hmac(&keys.server_key, auth_message.as_bytes()).as_ref().to_vec());
        Ok(encode(format!("{without_proof},p={}", encode(proof))))
    }

    /// Takes the text of `<success/>` (or of the last challenge). Only then is the server known to be genuine.
    pub fn verify(&mut self, success: &str) -> Result<(), ClientError> {
        let message = decode(success).map_err(|_| ClientError::Malformed)?;
        let message = std::str::from_utf8(&message).map_err(|_| ClientError::Malformed)?;
        let verifier =
            message.split(',').next().and_then(|a| a.strip_prefix("v=")).ok_or(ClientError::Malformed)?;
        let verifier = decode(verifier).map_err(|_| ClientError::Malformed)?;
        let expected = self.server_signature.take().ok_or(ClientError::Malformed)?;
        if same(&verifier, &expected) { Ok(()) } else { Err(ClientError::ServerSignature) }
    }
}

/// XEP-0480 s.4: the SaltedPassword, in base64, for the salt that a server asks new keys for. Costs milliseconds.
///
/// # Errors
/// The password has no prepared form, or the salt or the count can't be used.
pub fn salted_password(
    hash: Hash,
    password: &str,
    salt: &str,
    iterations: u32,
) -> Result<String, ClientError> {
    let password = prepare_password(password).map_err(|_| ClientError::Credentials)?;
    let salt = decode(salt).map_err(|_| ClientError::Malformed)?;
    let rounds = NonZeroU32::new(iterations)
        .filter(|rounds| (MIN_ITERATIONS..=MAX_ITERATIONS).contains(&rounds.get()))
        .ok_or(ClientError::Iterations(iterations))?;
    Ok(encode(hash.hi(password.as_bytes(), &salt, rounds)))
}

/// The text of `<auth/>` for PLAIN. Inside TLS only.
pub fn plain(user: &str, password: &str) -> String {
    encode(format!("\0{user}\0{password}"))
}

/// The text of `<auth/>` for EXTERNAL: the identity asked for; between servers our own domain (XEP-0178 s.3).
pub fn external(identity: &str) -> String {
    if identity.is_empty() { "=".to_owned() } else { encode(identity) }
}
