//! Presence subscriptions as a pure state machine: RFC 6121 s.3 and Appendix A.
//!
//! Nothing here does I/O. [`Subscription`] is what the server of one side knows of one contact; the
//! four `subscribe / subscribed / unsubscribe / unsubscribed` stanzas move it, outbound (from our user)
//! or inbound (from the contact).

use trunkline_xmpp::stanza::PresenceType;

/// State of one roster item's subscription (RFC 6121 Appendix A.1), with pre-approval (s.3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Subscription {
    /// We receive the contact's presence.
    pub to: bool,
    /// The contact receives ours.
    pub from: bool,
    /// We asked and have no answer.
    pub pending_out: bool,
    /// The contact asked and our user has not answered.
    pub pending_in: bool,
    /// Our user approved a request that has not come yet.
    pub approved: bool,
}

/// What follows from an outbound stanza of our user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The state afterwards.
    pub next: Subscription,
    /// The stanza is passed on to the contact.
    pub route: bool,
}

/// What follows from an inbound stanza of a contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// The state afterwards.
    pub next: Subscription,
    /// The user's clients are told.
    pub deliver: bool,
    /// The server answers by itself (`subscribed` for a contact that has it already or was pre-approved).
    pub reply: Option<PresenceType>,
}

impl Subscription {
    /// `none`, `to`, `from` or `both` (RFC 6121 s.2.1.2.5).
    pub fn as_str(self) -> &'static str {
        match (self.to, self.from) {
            (false, false) => "none",
            (true, false) => "to",
            (false, true) => "from",
            (true, true) => "both",
        }
    }

    /// Five flags in one integer, for the store.
    pub fn to_bits(self) -> i64 {
        i64::from(self.to)
            | i64::from(self.from) << 1
            | i64::from(self.pending_out) << 2
            | i64::from(self.pending_in) << 3
            | i64::from(self.approved) << 4
    }

    /// The reverse of [`Subscription::to_bits`].
    pub fn from_bits(bits: i64) -> Subscription {
        let bit = |n: u32| bits >> n & 1 == 1;
        Subscription { to: bit(0), from: bit(1), pending_out: bit(2), pending_in: bit(3), approved: bit(4) }
    }

    /// The item is shown in the roster: a contact that merely asked is not (RFC 6121 s.2.1.2.5:
    /// "None + Pending In" is not pushed to the client).
    pub fn in_roster(self) -> bool {
        self.to || self.from || self.pending_out || self.approved
    }

    /// RFC 6121 Appendix A.2: our user sends `kind` to the contact.
    pub fn outbound(self, kind: PresenceType) -> Outbound {
        let mut next = self;
        let route = match kind {
            // A.2.1; a repeated request is routed again: the first may have been lost.
            PresenceType::Subscribe => {
                if !self.to {
                    next.pending_out = true;
                }
                !self.to
            }
            // A.2.2
            PresenceType::Unsubscribe => {
                next.to = false;
                next.pending_out = false;
                true
            }
            // A.2.3; without a request it is a pre-approval and stays here (s.3.4.2).
            PresenceType::Subscribed => {
                if self.pending_in {
                    next.pending_in = false;
                    next.from = true;
                    next.approved = false;
                    true
                } else {
                    if !self.from {
                        next.approved = true;
                    }
                    false
                }
            }
            // A.2.4; a cancelled pre-approval stays here (s.3.4.3).
            PresenceType::Unsubscribed => {
                next.approved = false;
                next.pending_in = false;
                next.from = false;
                self.from || self.pending_in
            }
            _ => false,
        };
        Outbound { next, route }
    }

    /// RFC 6121 Appendix A.3: the contact sends `kind` to our user.
    pub fn inbound(self, kind: PresenceType) -> Inbound {
        let mut next = self;
        let mut reply = None;
        let deliver = match kind {
            // A.3.1; s.3.1.3: who has it already gets the answer again.
            PresenceType::Subscribe => {
                if self.from {
                    reply = Some(PresenceType::Subscribed);
                    false
                } else if self.approved {
                    next.from = true;
                    next.approved = false;
                    next.pending_in = false;
                    reply = Some(PresenceType::Subscribed);
                    false
                } else {
                    next.pending_in = true;
                    !self.pending_in
                }
            }
            // A.3.2
            PresenceType::Unsubscribe => {
                next.from = false;
                next.pending_in = false;
                self.from || self.pending_in
            }
            // A.3.3: only for somebody who asked; else it is ignored (s.3.1.6).
            PresenceType::Subscribed if self.pending_out && !self.to => {
                next.to = true;
                next.pending_out = false;
                true
            }
            // A.3.4
            PresenceType::Unsubscribed => {
                next.to = false;
                next.pending_out = false;
                self.to || self.pending_out
            }
            _ => false,
        };
        Inbound { next, deliver, reply }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PresenceType::{Subscribe, Subscribed, Unsubscribe, Unsubscribed};

    /// "to from out in approved" as letters.
    fn state(text: &str) -> Subscription {
        Subscription {
            to: text.contains('t'),
            from: text.contains('f'),
            pending_out: text.contains('o'),
            pending_in: text.contains('i'),
            approved: text.contains('a'),
        }
    }

    #[test]
    fn outbound_follows_appendix_a_2() {
        // (before, stanza, after, routed)
        let table = [
            ("", Subscribe, "o", true),
            ("o", Subscribe, "o", true),
            ("i", Subscribe, "oi", true),
            ("t", Subscribe, "t", false),
            ("ti", Subscribe, "ti", false),
            ("f", Subscribe, "fo", true),
            ("tf", Subscribe, "tf", false),
            ("", Unsubscribe, "", true),
            ("o", Unsubscribe, "", true),
            ("oi", Unsubscribe, "i", true),
            ("t", Unsubscribe, "", true),
            ("tf", Unsubscribe, "f", true),
            ("", Subscribed, "a", false),
            ("o", Subscribed, "oa", false),
            ("i", Subscribed, "f", true),
            ("oi", Subscribed, "fo", true),
            ("ti", Subscribed, "tf", true),
            ("f", Subscribed, "f", false),
            ("tf", Subscribed, "tf", false),
            ("", Unsubscribed, "", false),
            ("a", Unsubscribed, "", false),
            ("i", Unsubscribed, "", true),
            ("oi", Unsubscribed, "o", true),
            ("ti", Unsubscribed, "t", true),
            ("f", Unsubscribed, "", true),
            ("tf", Unsubscribed, "t", true),
        ];
        for (before, kind, after, route) in table {
            let expected = Outbound { next: state(after), route };
            assert_eq!(state(before).outbound(kind), expected, "{before:?} sends {kind:?}");
        }
    }

    #[test]
    fn inbound_follows_appendix_a_3() {
        // (before, stanza, after, delivered, answered)
        let table = [
            ("", Subscribe, "i", true, None),
            ("o", Subscribe, "oi", true, None),
            ("i", Subscribe, "i", false, None),
            ("t", Subscribe, "ti", true, None),
            ("f", Subscribe, "f", false, Some(Subscribed)),
            ("tf", Subscribe, "tf", false, Some(Subscribed)),
            ("a", Subscribe, "f", false, Some(Subscribed)),
            ("oa", Subscribe, "fo", false, Some(Subscribed)),
            ("", Unsubscribe, "", false, None),
            ("i", Unsubscribe, "", true, None),
            ("oi", Unsubscribe, "o", true, None),
            ("ti", Unsubscribe, "t", true, None),
            ("f", Unsubscribe, "", true, None),
            ("tf", Unsubscribe, "t", true, None),
            ("", Subscribed, "", false, None),
            ("o", Subscribed, "t", true, None),
            ("oi", Subscribed, "ti", true, None),
            ("fo", Subscribed, "tf", true, None),
            ("t", Subscribed, "t", false, None),
            ("i", Subscribed, "i", false, None),
            ("", Unsubscribed, "", false, None),
            ("o", Unsubscribed, "", true, None),
            ("oi", Unsubscribed, "i", true, None),
            ("t", Unsubscribed, "", true, None),
            ("tf", Unsubscribed, "f", true, None),
            ("fo", Unsubscribed, "f", true, None),
        ];
        for (before, kind, after, deliver, reply) in table {
            let expected = Inbound { next: state(after), deliver, reply };
            assert_eq!(state(before).inbound(kind), expected, "{before:?} receives {kind:?}");
        }
    }

    #[test]
    fn bits_come_back() {
        for bits in 0..32 {
            assert_eq!(Subscription::from_bits(bits).to_bits(), bits);
        }
    }
}
