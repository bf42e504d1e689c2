//! XEP-0198 Stream Management: what was sent and not acknowledged, what was received.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ClientError;

pub(crate) const NS: &str = "urn:xmpp:sm:3";

/// Counters and the queue of one session's stream management. It outlives connections.
#[derive(Clone, Debug, Default)]
pub struct Acks {
    /// The name under which the session can be resumed.
    pub(crate) id: Option<String>,
    /// Stanzas received since the session was made, modulo 2^32.
    handled: u32,
    /// What the server has acknowledged of ours, modulo 2^32.
    acked: u32,
    /// Stanzas sent after those, oldest first.
    unacked: VecDeque<Bytes>,
}

impl Acks {
    pub(crate) fn new(id: Option<String>) -> Acks {
        Acks { id, ..Acks::default() }
    }

    /// Stanzas received, modulo 2^32: the `h` of our acknowledgements.
    pub fn handled(&self) -> u32 {
        self.handled
    }

    /// Stanzas that the server has acknowledged, modulo 2^32.
    pub fn acked(&self) -> u32 {
        self.acked
    }

    /// Stanzas sent that the server has not acknowledged, oldest first.
    pub fn unacked(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.unacked.iter()
    }

    /// Replaces the name under which the session is asked for: to test what a server answers to an unknown one.
    pub fn forget_id(&mut self, other: &str) {
        self.id = Some(other.to_owned());
    }

    pub(crate) fn sent(&mut self, stanza: &[u8]) {
        self.unacked.push_back(Bytes::copy_from_slice(stanza));
    }

    pub(crate) fn received(&mut self) {
        self.handled = self.handled.wrapping_add(1);
    }

    /// Takes in an `h`. More than was sent is the server's error (XEP-0198 s.4).
    pub(crate) fn acknowledged(&mut self, h: &str) -> Result<(), ClientError> {
        let refused =
            || ClientError::Unexpected { expected: "a count of stanzas sent", got: format!("h='{h}'") };
        let h: u32 = h.trim().parse().map_err(|_| refused())?;
        let newly = h.wrapping_sub(self.acked) as usize;
        if newly > self.unacked.len() {
            return Err(refused());
        }
        self.unacked.drain(..newly);
        self.acked = h;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_wrap() {
        let mut acks = Acks { acked: u32::MAX - 1, ..Acks::default() };
        for stanza in [b"1", b"2", b"3"] {
            acks.sent(stanza);
        }
        acks.acknowledged("0").unwrap();
        assert_eq!(acks.unacked().collect::<Vec<_>>(), [&b"3"[..]]);
        acks.acknowledged("0").unwrap();
        assert!(acks.acknowledged("2").is_err(), "more than was sent");
        assert!(acks.acknowledged("4294967295").is_err(), "going back");
        acks.acknowledged("1").unwrap();
        assert_eq!(acks.unacked().len(), 0);
    }
}
