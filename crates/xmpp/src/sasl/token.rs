//! Logins with a token (SASL HT, draft-schmaus-kitten-sasl-ht-09), the mechanisms of XEP-0484 FAST: one message there
//! and one back, each an HMAC of the token over what binds it to the TLS connection.

use super::scram::same;
use super::{ChannelBindings, Failure, Hash, decode, encode};
use crate::prep::{Profile, Unassigned, prepare};

/// A mechanism of the family, by what binds it to the connection. All are with SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenMechanism {
    /// `tls-exporter` (RFC 9266).
    Exporter,
    /// `tls-unique` (RFC 5929 s.3).
    Unique,
    /// `tls-server-end-point` (RFC 5929 s.4).
    EndPoint,
    /// Nothing: for clients that can't see their TLS connection.
    Unbound,
}

impl TokenMechanism {
    /// All of them, best first.
    pub const ALL: [TokenMechanism; 4] =
        [TokenMechanism::Exporter, TokenMechanism::Unique, TokenMechanism::EndPoint, TokenMechanism::Unbound];

    /// The registered name.
    pub fn name(self) -> &'static str {
        match self {
            TokenMechanism::Exporter => "HT-SHA-256-EXPR",
            TokenMechanism::Unique => "HT-SHA-256-UNIQ",
            TokenMechanism::EndPoint => "HT-SHA-256-ENDP",
            TokenMechanism::Unbound => "HT-SHA-256-NONE",
        }
    }

    /// The mechanism with this name.
    pub fn parse(name: &str) -> Option<TokenMechanism> {
        TokenMechanism::ALL.into_iter().find(|mechanism| mechanism.name() == name)
    }

    /// What binds it to a connection; `None`: the connection does not provide it, so the mechanism can't be used.
    pub fn data(self, bindings: &ChannelBindings) -> Option<&[u8]> {
        match self {
            TokenMechanism::Exporter => bindings.exporter.as_deref(),
            TokenMechanism::Unique => bindings.unique.as_deref(),
            TokenMechanism::EndPoint => bindings.server_end_point.as_deref(),
            TokenMechanism::Unbound => Some(&[]),
        }
    }

    /// Those that a connection allows, best first.
    pub fn offered(bindings: &ChannelBindings) -> impl Iterator<Item = TokenMechanism> {
        TokenMechanism::ALL.into_iter().filter(|mechanism| mechanism.data(bindings).is_some())
    }
}

/// The client's message: who it is, and the proof that it has the token.
pub struct TokenLogin {
    user: String,
    proof: Vec<u8>,
}

/// The proof stays out of logs.
impl std::fmt::Debug for TokenLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenLogin").field("user", &self.user).finish_non_exhaustive()
    }
}

impl TokenLogin {
    /// Reads the initial response, in base64: `authcid NUL HMAC(token, "Initiator" cb-data)`.
    ///
    /// # Errors
    /// No base64, too long, or not of this grammar.
    pub fn parse(initial: &str) -> Result<TokenLogin, Failure> {
        let message = decode(initial)?;
        let nul = message.iter().position(|byte| *byte == 0).ok_or(Failure::MalformedRequest)?;
        let user = std::str::from_utf8(&message[..nul]).map_err(|_| Failure::MalformedRequest)?;
        let user = prepare(user, Profile::Sasl, Unassigned::Allow)
            .map_err(|_| Failure::MalformedRequest)?
            .into_owned();
        let proof = message[nul + 1..].to_vec();
        if user.is_empty() || proof.len() != Hash::Sha256.bytes() {
            return Err(Failure::MalformedRequest);
        }
        Ok(TokenLogin { user, proof })
    }

    /// The user the client claims to be; not yet a local part.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether the client has this token, on the connection with this binding. In constant time.
    pub fn proves(&self, token: &str, data: &[u8]) -> bool {
        same(&self.proof, &hashed(token, "Initiator", data))
    }
}

/// The server's message, in base64: that it knows the token too.
pub fn token_answer(token: &str, data: &[u8]) -> String {
    encode(hashed(token, "Responder", data))
}

/// The client's message, in base64.
pub fn token_initial(user: &str, token: &str, data: &[u8]) -> String {
    let mut message = user.as_bytes().to_vec();
    message.push(0);
    message.extend_from_slice(&hashed(token, "Initiator", data));
    encode(message)
}

/// Whether the server's message shows that it knows the token.
pub fn token_verify(answer: &str, token: &str, data: &[u8]) -> bool {
    decode(answer).is_ok_and(|answer| same(&answer, &hashed(token, "Responder", data)))
}

fn hashed(token: &str, who: &str, data: &[u8]) -> Vec<u8> {
    let mut message = who.as_bytes().to_vec();
    message.extend_from_slice(data);
    Hash::Sha256.hmac(token.as_bytes(), &message).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_proves_itself_on_its_connection_only() {
        let initial = token_initial("romeo", "secret", b"connection");
        let login = TokenLogin::parse(&initial).unwrap();
        assert_eq!(login.user(), "romeo");
        assert!(login.proves("secret", b"connection"));
        assert!(!login.proves("secret", b"another"));
        assert!(!login.proves("Secret", b"connection"));
        let answer = token_answer("secret", b"connection");
        assert!(token_verify(&answer, "secret", b"connection"));
        assert!(!token_verify(&answer, "secret", b"another"));
        // Each side says something else: an echo proves nothing.
        assert!(!token_verify(&encode(&login.proof), "secret", b"connection"));
    }

    #[test]
    fn the_hash_is_that_of_the_draft() {
        // HMAC-SHA-256 with the key "key" over "Initiator", worked out with another implementation.
        let login = TokenLogin::parse(&token_initial("u", "key", b"")).unwrap();
        let hex: String = login.proof.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "8c227a576b09afe4f967c42bd08de633818ee579ef7dc96010bf82db6b717d78");
    }

    #[test]
    fn grammar() {
        let long = encode([b"x".as_slice(), &[0; 32]].concat());
        assert!(TokenLogin::parse(&long).is_err(), "31 bytes of proof");
        let fits = encode([b"x\0".as_slice(), &[7; 32]].concat());
        assert!(TokenLogin::parse(&fits).is_ok());
        for (text, failure) in [
            ("", Failure::MalformedRequest),
            ("=", Failure::MalformedRequest),
            ("not base64", Failure::IncorrectEncoding),
            (&*encode(b"romeo"), Failure::MalformedRequest),
            (&*encode([b"\0".as_slice(), &[7; 32]].concat()), Failure::MalformedRequest),
            (&*encode([b"\xff\0".as_slice(), &[7; 32]].concat()), Failure::MalformedRequest),
            (&*encode([b"x\0".as_slice(), &[7; 33]].concat()), Failure::MalformedRequest),
            (&*encode(vec![b'x'; 9000]), Failure::TooLong),
        ] {
            assert_eq!(TokenLogin::parse(text).err(), Some(failure), "{text:.40}");
        }
    }
}
