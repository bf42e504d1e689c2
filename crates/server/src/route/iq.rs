//! IQ requests: to a device as they are, to an account or the server by the module that is responsible.
//! RFC 6120 s.8.2.3, RFC 6121 s.8.5.

use std::sync::Arc;

use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::stanza::{IqType, Kind, Stanza};

use super::account::Loaded;
use super::message::store_trouble;
use super::{Mail, Routed};
use crate::exchange::{Exchange, Host};
use crate::modules::{Reply, Request, Scope};
use crate::session::{Push, Queued};

impl Exchange {
    /// Routes an IQ to a local account.
    pub(super) fn route_iq(self: &Arc<Self>, kind: IqType, mail: Mail) -> Routed {
        let Some(to) = mail.stanza.head.to.as_ref() else { return Routed::Done };
        if to.resource().is_some() {
            self.iq_to_device(kind, &mail);
            return Routed::Done;
        }
        match kind {
            // What the server asks in an account's name: what clients can do.
            IqType::Result | IqType::Error => {
                self.control.asking.answered(&mail.stanza);
                Routed::Done
            }
            IqType::Get | IqType::Set => {
                let exchange = Arc::clone(self);
                Routed::Later(Box::pin(async move { exchange.answer_account(mail).await }))
            }
        }
    }

    /// RFC 6121 s.8.5.3.1 and s.8.5.3.2.3.
    fn iq_to_device(self: &Arc<Self>, kind: IqType, mail: &Mail) {
        let unavailable = StanzaError::new(Condition::ServiceUnavailable);
        let Some(to) = mail.stanza.head.to.as_ref() else { return };
        let Some(from) = mail.stanza.head.from.as_ref() else { return };
        let request = matches!(kind, IqType::Get | IqType::Set);
        let Some(account) = self.accounts.online(to) else {
            if request {
                self.refuse(mail, None, &unavailable);
            }
            return;
        };
        let state = account.state();
        // Promise 5: a stranger from outside learns nothing, not even that a device is there. Answers to
        // the user's own requests pass.
        let stranger = request && mail.is_strange_to(&state);
        // XEP-0191 s.3.2: requests of blocked contacts get service-unavailable.
        let blocked = request && state.blocks(from);
        let session = state
            .resource(to.resource().unwrap_or_default())
            .filter(|_| !stranger && !blocked)
            .map(|resource| Arc::clone(&resource.session));
        drop(state);
        let Some(session) = session else {
            if request {
                self.bounce(&mail.stanza, &unavailable);
            }
            return;
        };
        let queued =
            Queued { stanza: mail.stanza.clone(), kept: None, outside: mail.is_outside(), lazy: false };
        if let Push::Refused(why) = session.push(queued) {
            self.not_queued(&session, why);
            if request {
                let full = StanzaError::new(Condition::ResourceConstraint)
                    .text("Too much waits for this device; try again later.");
                self.bounce(&mail.stanza, &full);
            }
        }
    }

    /// The account's server answers for it (RFC 6121 s.8.5.2.1.3).
    async fn answer_account(self: Arc<Self>, mail: Mail) {
        let (Some(to), Some(from)) = (mail.stanza.head.to.clone(), mail.stanza.head.from.clone()) else {
            return;
        };
        let unavailable = StanzaError::new(Condition::ServiceUnavailable);
        let own = !mail.is_outside() && from.same_bare(&to);
        let loaded: Loaded = match self.accounts.load_in(mail.lane(), &self.db, &to).await {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return self.refuse(&mail, None, &unavailable),
            Err(error) => return self.bounce(&mail.stanza, &store_trouble(&error)),
        };
        if !own {
            let state = loaded.state();
            let stranger = mail.is_strange_to(&state);
            let closed = stranger || state.blocks(&from);
            drop(state);
            if closed {
                return self.bounce(&mail.stanza, &unavailable);
            }
        }
        let Some(host) = self.host(to.domain()).cloned() else { return };
        let scope = if own { Scope::Account } else { Scope::Contact };
        self.answer(scope, host, Some(&loaded), mail).await;
    }

    /// The server answers for itself.
    pub(super) fn answer_host(self: &Arc<Self>, host: Arc<Host>, mail: Mail) -> Routed {
        let exchange = Arc::clone(self);
        Routed::Later(Box::pin(async move { exchange.answer(Scope::Host, host, None, mail).await }))
    }

    /// A service answers.
    pub(crate) fn answer_service(self: &Arc<Self>, host: &Arc<Host>, mail: Mail) -> Routed {
        let (exchange, host) = (Arc::clone(self), Arc::clone(host));
        Routed::Later(Box::pin(async move { exchange.answer(Scope::Service, host, None, mail).await }))
    }

    async fn answer(self: &Arc<Self>, scope: Scope, host: Arc<Host>, account: Option<&Loaded>, mail: Mail) {
        let Some(from) = mail.stanza.head.from.clone() else { return };
        let request = Request {
            exchange: Arc::clone(self),
            host,
            from,
            session: mail.session().cloned(),
            account: account.map(|loaded| Arc::clone(loaded)),
            outside: mail.is_outside(),
            stanza: mail.stanza.clone(),
        };
        let answer = match self.modules.answer(scope, request) {
            Some(answering) => answering.await,
            None => Err(StanzaError::new(Condition::ServiceUnavailable)),
        };
        match answer {
            Ok(Reply::Empty) => self.answer_with(mail.stanza.reply().done()),
            Ok(Reply::Payload(payload)) => self.answer_with(mail.stanza.reply().payload(payload).done()),
            Ok(Reply::Sent) => {}
            Err(error) => self.bounce(&mail.stanza, &error),
        }
    }

    /// Sends an IQ request of the server's own to one session (pushes); its answer is not awaited.
    pub(crate) fn push_iq(&self, session: &Arc<crate::session::Session>, payload: Vec<u8>) {
        let stanza = Stanza::build(Kind::Iq(IqType::Set))
            .to(session.jid.clone())
            .id(self.ids.short())
            .payload(payload)
            .done();
        session.push(Queued::plain(stanza));
    }
}
