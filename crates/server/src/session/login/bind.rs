//! Binding a resource (RFC 6120 s.7) or resuming a session (XEP-0198 s.5).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use trunkline_xml::{Node, Writer};
use trunkline_xmpp::error::{Condition, StanzaError, StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, Stanza};

use super::{Negotiation, Stop};
use crate::exchange::Exchange;
use crate::logging::Refusal;
use crate::route::account::{Account, Resource};
use crate::session::client::Seat;
use crate::session::management::Begun;
use crate::session::{Close, Session, management};

impl Negotiation {
    /// RFC 6120 s.7, or XEP-0198 s.5. The features are sent.
    pub(super) async fn bind(&mut self, account: Arc<Account>) -> Result<Seat, Stop> {
        loop {
            let element = self.element().await?;
            let root = element.root();
            if root.is(ns::SM, "resume") {
                let (seat, answer) = self.resume(&account, &Resume::of(&root)).await?;
                self.send(&answer).await?;
                match seat {
                    Some(seat) => return Ok(seat),
                    None => continue,
                }
            }
            if root.is(ns::SM, "enable") {
                // XEP-0198 s.3: only after binding.
                self.send(&management::failed(Condition::UnexpectedRequest, None)).await?;
                continue;
            }
            if root.ns() != ns::CLIENT {
                return Err(self
                    .desk
                    .refusal(StreamCondition::UnsupportedStanzaType, "no stanza, before binding"));
            }
            let Ok(stanza) = Stanza::from_element(element, ns::CLIENT, self.lang.as_deref()) else {
                return Err(self.desk.refusal(StreamCondition::NotAuthorized, "no stanza, before binding"));
            };
            let bind = stanza.first_child().filter(|payload| payload.is(ns::BIND, "bind"));
            let (Kind::Iq(IqType::Set), Some(bind)) = (stanza.head.kind, bind) else {
                // RFC 6120 s.7.1: nothing before the resource is bound.
                return Err(self.desk.refusal(StreamCondition::NotAuthorized, "a stanza before binding"));
            };
            let wanted = bind
                .child(ns::BIND, "resource")
                .map(|resource| resource.text().into_owned())
                .filter(|resource| !resource.is_empty());
            let full = match wanted {
                Some(wanted) => account.jid.with_resource(&wanted),
                None => account.jid.with_resource(&crate::ids::token(9)),
            };
            let full = match full {
                Ok(full) => full,
                Err(_) => {
                    let error = StanzaError::new(Condition::BadRequest).text("That is no resource.");
                    self.answer(&stanza, &error).await?;
                    continue;
                }
            };
            match self.desk.exchange.bind(account.clone(), (full, self.desk.serial), Wanted::default()) {
                Ok((session, _)) => {
                    let seat = Seat::new(&self.desk.exchange, &session, self.desk.serial);
                    let mut w = Writer::new();
                    w.open("bind").attr("xmlns", ns::BIND);
                    w.open("jid").text(session.jid.as_str()).close();
                    w.close();
                    let mut out = Vec::new();
                    stanza.reply().payload(w.finish()).done().write(&mut out);
                    self.send(&out).await?;
                    return Ok(seat);
                }
                Err(error) => self.answer(&stanza, &error).await?,
            }
        }
    }

    async fn answer(&mut self, stanza: &Stanza, error: &StanzaError) -> Result<(), Stop> {
        let mut out = Vec::new();
        if let Some(answer) = stanza.error(error) {
            answer.write(&mut out);
        }
        self.send(&out).await
    }

    /// XEP-0198 s.5. The answer is to be sent; `None`: it is `<failed/>`, and the client may bind.
    pub(super) async fn resume(
        &mut self,
        account: &Arc<Account>,
        wanted: &Resume,
    ) -> Result<(Option<Seat>, Vec<u8>), Stop> {
        let (Some(previous), Some(h)) = (&wanted.previous, wanted.h) else {
            return Ok((None, management::failed(Condition::BadRequest, None)));
        };
        let session = self.desk.exchange.resumable.lock().get(&management::hash(previous)).cloned();
        let session = session.filter(|session| session.account.id == account.id && !session.is_ended());
        let Some((session, ledger)) =
            session.and_then(|session| Some((Arc::clone(&session), session.ledger()?)))
        else {
            // After a crash, or too late. The kept messages come again with a delay.
            return Ok((None, management::failed(Condition::ItemNotFound, None)));
        };
        // The old connection, if it still believes to be there, goes without ending the session.
        session.attach(self.desk.serial);
        let seat = Seat::new(&self.desk.exchange, &session, self.desk.serial);
        for _ in 0..10 {
            if ledger.is_settled() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let handled = ledger.rewind();
        let kept = match session.with_outbox(|outbox| outbox.resumed(h)) {
            Ok(kept) => kept,
            Err(sent) => {
                self.desk.refused("resume-count-too-high", "<resume/> counts more than was sent");
                return Err(Stop::Error(management::too_high(h, sent)));
            }
        };
        crate::log::delivered(&self.desk.exchange.db, account, &kept);
        let mut w = Writer::new();
        w.open("resumed")
            .attr("xmlns", ns::SM)
            .attr("h", &handled.to_string())
            .attr("previd", previous)
            .close();
        self.desk.exchange.metrics.resumed.inc();
        // After a restart of the server nobody knows any more what it wants.
        self.desk.exchange.note_caps(&session);
        Ok((Some(seat), w.finish()))
    }
}

/// `<resume/>`, as far as it could be read.
#[derive(Clone, Debug)]
pub(super) struct Resume {
    previous: Option<String>,
    h: Option<u32>,
}

impl Resume {
    /// Reads it.
    pub(super) fn of(element: &Node<'_>) -> Resume {
        Resume {
            previous: element.attr("previd").map(|previous| previous.into_owned()),
            h: element.attr("h").and_then(|h| h.parse().ok()),
        }
    }
}

/// How a session is to begin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    pub(super) carbons: bool,
    /// XEP-0352 s.4.
    pub(super) inactive: bool,
    pub(super) management: Option<management::Wish>,
    /// Which device it is; 0: unknown.
    pub(super) device: i64,
}

impl Exchange {
    /// Binds a resource: a new session wins, the old one of the same name gets `conflict`
    /// (RFC 6120 s.7.7.2.2). It is as wanted before anybody can reach it.
    pub(super) fn bind(
        self: &Arc<Self>,
        account: Arc<Account>,
        (full, serial): (Jid, u64),
        wanted: Wanted,
    ) -> Result<(Arc<Session>, Option<Begun>), StanzaError> {
        let most = self.config.load().clients.max_sessions_per_account;
        let mut state = loop {
            let state = account.state();
            let old = state.resource(full.resource().unwrap_or_default());
            // Two may bind the same resource at the same time: only under the lock nobody comes in between.
            let Some(old) = old.map(|resource| Arc::clone(&resource.session)) else { break state };
            drop(state);
            old.close(Close { error: Some(StreamError::new(StreamCondition::Conflict)), resumable: false });
            self.end_session(&old, Some("Replaced by new connection"));
        };
        if state.removed {
            return Err(StanzaError::new(Condition::NotAuthorized));
        }
        if state.resources.len() >= most {
            let peer = account.jid.as_str();
            let detail = "too many devices of one account";
            self.refusals.report(Refusal { name: "too-many-sessions", peer, conn: serial, detail });
            return Err(StanzaError::new(Condition::ResourceConstraint)
                .text(format!("An account may have {most} devices connected, and none is left.")));
        }
        let session = Session::new(serial, full, Arc::clone(&account), self.bounds());
        session.device.store(wanted.device, Ordering::Relaxed);
        let begun = wanted.management.map(|wish| management::begin(self, &session, wish));
        session.with_outbox(|outbox| {
            if begun.is_some() {
                outbox.manage();
            }
            outbox.set_inactive(wanted.inactive);
        });
        let mut resource = Resource::new(Arc::clone(&session));
        resource.carbons = wanted.carbons;
        state.resources.push(resource);
        drop(state);
        if let Some(begun) = &begun {
            begun.publish(self, &session);
        }
        self.metrics.sessions.inc();
        Ok((session, begun))
    }
}
