//! The server's side of a login.

use std::sync::OnceLock;

use super::scram::{ClientFinal, ClientFirst, Gs2Flag, same, xor};
use super::{
    ChannelBindings, DEFAULT_ITERATIONS, Decoys, Failure, Hash, Mechanism, Offer, ScramKeys, announcement,
    decode, decode_text, encode, random_text,
};
use crate::prep::{Profile, Unassigned, prepare};

/// What the server has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this as a challenge (it may be empty), then call [`Server::response`].
    Challenge(String),
    /// Look up the user's keys for this hash, then call [`Server::credentials`], with `None` for unknown users.
    NeedCredentials {
        /// The user name after SASLprep; not yet a local part.
        user: String,
        /// Which keys.
        hash: Hash,
    },
    /// It is over: send the condition.
    Failed(Failure),
    /// It is over: send success.
    Done {
        /// Who it is: for EXTERNAL one of the identities that were offered, for ANONYMOUS a new local part, else
        /// the user name.
        user: String,
        /// What goes with the success, in base64.
        data: Option<String>,
    },
}

/// One login. Ask [`Server::step`], do it, and ask again.
#[derive(Debug)]
pub struct Server {
    offer: Offer,
    bindings: ChannelBindings,
    mechanism: Mechanism,
    state: State,
    next: Step,
    user: Option<String>,
    authzid: Option<String>,
}

/// What the next call has to bring.
enum State {
    /// The client's first message.
    First,
    /// Keys, to send a salt.
    ScramKeys(Box<ClientFirst>),
    /// The client's proof.
    ScramProof(Box<Proof>),
    /// Keys, to check a password.
    PlainKeys(String),
    Over,
}

/// Passwords and keys stay out of logs.
impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::First => "First",
            State::ScramKeys(_) => "ScramKeys",
            State::ScramProof(_) => "ScramProof",
            State::PlainKeys(_) => "PlainKeys",
            State::Over => "Over",
        })
    }
}

/// What a SCRAM proof is checked against.
struct Proof {
    keys: ScramKeys,
    /// The user exists. Checked last, when the work is done.
    genuine: bool,
    binding: Vec<u8>,
    nonce: String,
    /// `client-first-message-bare "," server-first-message ","`.
    auth_message: String,
}

impl Server {
    /// Begins a login with what `<auth/>` says: the mechanism, and its text, which may be empty.
    pub fn start(
        mechanism: &str,
        initial: &str,
        offer: &Offer,
        bindings: &ChannelBindings,
    ) -> Result<Server, Failure> {
        let mechanism = Mechanism::parse(mechanism).ok_or(Failure::InvalidMechanism)?;
        if !offer.has(mechanism) {
            let insecure = mechanism == Mechanism::Plain && bindings.is_empty();
            return Err(if insecure { Failure::EncryptionRequired } else { Failure::InvalidMechanism });
        }
        let mut server = Server {
            offer: offer.clone(),
            bindings: bindings.clone(),
            mechanism,
            state: State::First,
            next: Step::Challenge(String::new()),
            user: None,
            authzid: None,
        };
        // RFC 6120 s.6.4.2: no initial response is asked for with an empty challenge; "=" is an empty one.
        if !initial.is_empty() {
            server.response(initial);
        }
        Ok(server)
    }

    /// What to do next. Asked twice for the same step, it fails.
    pub fn step(&mut self) -> Step {
        std::mem::replace(&mut self.next, Step::Failed(Failure::MalformedRequest))
    }

    /// The user the client claims to be, as soon as it has said so.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Whom the client asked to act for in so many words; the same user, or the login fails.
    pub fn authzid(&self) -> Option<&str> {
        self.authzid.as_deref()
    }

    /// Takes the text of a `<response/>`.
    pub fn response(&mut self, text: &str) {
        let state = std::mem::replace(&mut self.state, State::Over);
        let next = match state {
            State::First => self.first(text),
            State::ScramProof(proof) => check_proof(*proof, text, self.user.clone().unwrap_or_default()),
            State::ScramKeys(_) | State::PlainKeys(_) | State::Over => Err(Failure::MalformedRequest),
        };
        self.go_on(next);
    }

    /// Takes the keys asked for, or `None` for a user that does not exist.
    pub fn credentials(&mut self, keys: Option<ScramKeys>) {
        let state = std::mem::replace(&mut self.state, State::Over);
        let user = self.user.clone().unwrap_or_default();
        let next = match state {
            State::ScramKeys(first) => self.challenge(*first, keys, &user),
            State::PlainKeys(password) => {
                let (keys, genuine) = self.keys_or_decoy(PLAIN_HASH, keys, &user);
                if keys.verify_password(&password) && genuine {
                    Ok(Step::Done { user, data: None })
                } else {
                    Err(Failure::NotAuthorized)
                }
            }
            State::First | State::ScramProof(_) | State::Over => Err(Failure::MalformedRequest),
        };
        self.go_on(next);
    }

    fn go_on(&mut self, next: Result<Step, Failure>) {
        self.next = next.unwrap_or_else(|failure| {
            self.state = State::Over;
            Step::Failed(failure)
        });
    }

    fn first(&mut self, text: &str) -> Result<Step, Failure> {
        match self.mechanism {
            Mechanism::Scram { hash, plus } => self.first_scram(text, hash, plus),
            Mechanism::Plain => self.first_plain(text),
            Mechanism::External => {
                let asked = decode_text(text)?;
                let wanted = |identity: &&String| asked.is_empty() || **identity == canonical(&asked);
                let user = self.offer.identities.iter().find(wanted).ok_or(Failure::InvalidAuthzid)?;
                Ok(Step::Done { user: user.clone(), data: None })
            }
            Mechanism::Anonymous => {
                // RFC 4505 s.2: trace information, which is nobody's business.
                decode(text)?;
                Ok(Step::Done { user: random_text()?.to_ascii_lowercase(), data: None })
            }
        }
    }

    fn first_scram(&mut self, text: &str, hash: Hash, plus: bool) -> Result<Step, Failure> {
        let first = ClientFirst::parse(&decode_text(text)?)?;
        self.user = Some(first.user.clone());
        match &first.flag {
            Gs2Flag::Bound(_) if !plus => return Err(Failure::MalformedRequest),
            Gs2Flag::Bound(name) if self.bindings.get(name).is_none() => {
                return Err(Failure::BindingUnsupported);
            }
            Gs2Flag::Unsupported | Gs2Flag::NotOffered if plus => return Err(Failure::MalformedRequest),
            // RFC 5802 s.6: "the server MUST fail authentication".
            Gs2Flag::NotOffered if self.offer.has_plus() => return Err(Failure::Downgrade),
            _ => {}
        }
        self.authzid = first.authzid.clone();
        self.check_authzid(first.authzid.as_deref(), &first.user)?;
        let user = first.user.clone();
        self.state = State::ScramKeys(Box::new(first));
        Ok(Step::NeedCredentials { user, hash })
    }

    /// RFC 4616 s.2: `[authzid] NUL authcid NUL passwd`.
    fn first_plain(&mut self, text: &str) -> Result<Step, Failure> {
        let message = decode_text(text)?;
        let mut parts = message.split('\0');
        let (Some(authzid), Some(user), Some(password), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Failure::MalformedRequest);
        };
        let user = prepare(user, Profile::Sasl, Unassigned::Allow)
            .map_err(|_| Failure::MalformedRequest)?
            .into_owned();
        if user.is_empty() || password.is_empty() {
            return Err(Failure::MalformedRequest);
        }
        self.user = Some(user.clone());
        self.authzid = Some(authzid.to_owned()).filter(|authzid| !authzid.is_empty());
        self.check_authzid(Some(authzid), &user)?;
        self.state = State::PlainKeys(password.to_owned());
        Ok(Step::NeedCredentials { user, hash: PLAIN_HASH })
    }

    /// RFC 6120 s.6.3.8: nobody may act for somebody else here.
    fn check_authzid(&self, authzid: Option<&str>, user: &str) -> Result<(), Failure> {
        let Some(authzid) = authzid.filter(|authzid| !authzid.is_empty() && *authzid != user) else {
            return Ok(());
        };
        let domain = self.offer.domain.as_deref().ok_or(Failure::InvalidAuthzid)?;
        let own = canonical(&format!("{user}@{domain}"));
        if canonical(authzid) == own { Ok(()) } else { Err(Failure::InvalidAuthzid) }
    }

    fn challenge(
        &mut self,
        first: ClientFirst,
        keys: Option<ScramKeys>,
        user: &str,
    ) -> Result<Step, Failure> {
        let Mechanism::Scram { hash, .. } = self.mechanism else { return Err(Failure::MalformedRequest) };
        let (keys, genuine) = self.keys_or_decoy(hash, keys, user);
        self.challenge_with(first, keys, genuine, random_text()?)
    }

    fn challenge_with(
        &mut self,
        first: ClientFirst,
        keys: ScramKeys,
        genuine: bool,
        ours: String,
    ) -> Result<Step, Failure> {
        let nonce = first.nonce + &ours;
        let mut message = format!("r={nonce},s={},i={}", encode(&keys.salt), keys.iterations);
        if self.offer.protected {
            let announced = announcement(keys.hash, &self.offer.names(), &self.bindings.types());
            message.push_str(",h=");
            message.push_str(&announced);
        }
        let mut binding = first.gs2_header.into_bytes();
        if let Gs2Flag::Bound(name) = &first.flag {
            binding.extend_from_slice(self.bindings.get(name).ok_or(Failure::BindingUnsupported)?);
        }
        let auth_message = format!("{},{message},", first.bare);
        self.state = State::ScramProof(Box::new(Proof { keys, genuine, binding, nonce, auth_message }));
        Ok(Step::Challenge(encode(message)))
    }

    /// Keys that can't be used count as none.
    fn keys_or_decoy(&self, hash: Hash, keys: Option<ScramKeys>, user: &str) -> (ScramKeys, bool) {
        let user = self.offer.decoy_name.as_deref().unwrap_or(user);
        // Made in any case, so that it costs the same.
        let decoy =
            ScramKeys::decoy(hash, user, self.offer.decoys.as_ref().unwrap_or_else(|| decoys_of_process()));
        match keys.filter(|keys| keys.sound(hash)) {
            Some(keys) => (keys, true),
            None => (decoy, false),
        }
    }

    #[cfg(test)]
    pub(super) fn credentials_with_nonce(&mut self, keys: ScramKeys, ours: &str) {
        let State::ScramKeys(first) = std::mem::replace(&mut self.state, State::Over) else {
            panic!("no SCRAM")
        };
        let next = self.challenge_with(*first, keys, true, ours.to_owned());
        self.go_on(next);
    }
}

/// Which keys a password is checked with.
const PLAIN_HASH: Hash = Hash::Sha256;

fn check_proof(proof: Proof, text: &str, user: String) -> Result<Step, Failure> {
    let message = decode_text(text)?;
    let last = ClientFinal::parse(&message)?;
    if last.nonce != proof.nonce {
        return Err(Failure::NonceMismatch);
    }
    if !same(&last.binding, &proof.binding) {
        return Err(Failure::BindingMismatch);
    }
    let hash = proof.keys.hash;
    let auth_message = proof.auth_message + last.without_proof;
    let signature = hash.hmac(&proof.keys.stored_key, auth_message.as_bytes());
    let client_key = xor(signature.as_ref(), &last.proof);
    let stored_key = hash.h(&client_key);
    let server_signature = hash.hmac(&proof.keys.server_key, auth_message.as_bytes());
    let right = last.proof.len() == hash.bytes() && same(stored_key.as_ref(), &proof.keys.stored_key);
    if !(right && proof.genuine) {
        return Err(Failure::NotAuthorized);
    }
    Ok(Step::Done { user, data: Some(encode(format!("v={}", encode(server_signature)))) })
}

/// An address in canonical form; what is none as it is.
fn canonical(address: &str) -> String {
    crate::Jid::parse(address).map_or_else(|_| address.to_owned(), |jid| jid.to_string())
}

fn decoys_of_process() -> &'static Decoys {
    static DECOYS: OnceLock<Decoys> = OnceLock::new();
    DECOYS.get_or_init(|| {
        // Without random numbers nobody could log in anyway: nonces need them too.
        let secret = random_text().unwrap_or_default();
        Decoys::new(secret.as_bytes(), DEFAULT_ITERATIONS)
    })
}
