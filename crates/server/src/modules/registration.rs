//! XEP-0077 In-Band Registration 2.4 and XEP-0445 Pre-Authenticated In-Band Registration 0.2.0.
//!
//! Making an account from a client is off by default (`accounts.registration`). Changing the password and removing
//! one's own account work always: they need a login, not a registration.

use std::net::IpAddr;
use std::sync::Arc;

use trunkline_store::Statement;
use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::{Field, Form, Submission};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::{Get, Set};
use trunkline_xmpp::stanza::{IqType, Kind, Stanza};

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::admin::accounts::{self, NewAccount};
use crate::admin::{OpError, Password};
use crate::config::Registration;
use crate::exchange::{Exchange, Host};
use crate::invites::Invite;
use crate::logging::Refusal;
use crate::operations::stanza_error;
use crate::route::Queued;
use crate::route::message::store_trouble;

/// Tokens and names that one connection may try (for the store's sake, and so that nobody asks for all names).
const MOST_ATTEMPTS: u32 = 10;
/// XEP-0077 s.3.1 example 5 and s.4: FORM_TYPE of the registration form.
const FORM_TYPE: &str = "jabber:iq:register";

/// Lets people register, change their password and leave.
pub fn module() -> Module {
    Module::new("registration", "Register accounts from clients, change passwords, remove accounts")
        .xep(77, "2.4", Level::Complete)
        .xep(445, "0.2.0", Level::Complete)
        .feature(Scope::Host, ns::REGISTER)
        .iq(Scope::Host, Get, (ns::REGISTER, "query"), get)
        .iq(Scope::Host, Set, (ns::REGISTER, "query"), set)
        .iq(Scope::Account, Get, (ns::REGISTER, "query"), get)
        .iq(Scope::Account, Set, (ns::REGISTER, "query"), set)
}

/// Who registers.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The domain of the stream.
    pub host: &'a Arc<Host>,
    /// Where the connection comes from.
    pub address: IpAddr,
}

/// What a connection has shown before its login.
#[derive(Debug, Default)]
pub struct Preauth {
    invite: Option<Invite>,
    attempts: u32,
    registered: bool,
}

/// Answers an IQ of a client that has not logged in: registration, and the token for it. The answer must not repeat
/// the request, which may have a password in it (XEP-0077 s.3.3).
///
/// # Errors
/// Those of XEP-0077 s.3.1 and XEP-0445 s.4.
pub async fn before_login(
    exchange: &Arc<Exchange>,
    asker: Asker<'_>,
    preauth: &mut Preauth,
    stanza: &Stanza,
) -> Answer {
    let policy = exchange.config.load().accounts.registration;
    let elsewhere = stanza.head.to.as_ref().is_some_and(|to| *to != asker.host.domain);
    if policy == Registration::Closed || elsewhere {
        return Err(StanzaError::new(Condition::ServiceUnavailable));
    }
    let payload = stanza.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    match (stanza.head.kind, payload.ns(), payload.name()) {
        (Kind::Iq(IqType::Set), ns::PARS, "preauth") => {
            let token = payload.attr("token").map(|token| token.into_owned()).unwrap_or_default();
            show_token(exchange, asker, preauth, &token).await
        }
        (Kind::Iq(IqType::Get), ns::REGISTER, "query") => {
            if policy == Registration::Invite && preauth.invite.is_none() {
                return Err(by_invitation_only());
            }
            Ok(registration_form(asker.host, preauth.invite.as_ref()).into())
        }
        (Kind::Iq(IqType::Set), ns::REGISTER, "query") => {
            if payload.child(ns::REGISTER, "remove").is_some() {
                // s.3.2: there is nobody yet whose registration it could be.
                return Err(StanzaError::new(Condition::UnexpectedRequest));
            }
            if policy == Registration::Invite && preauth.invite.is_none() {
                return Err(by_invitation_only());
            }
            let wanted = Wanted::parse(stanza)?;
            register(exchange, asker, preauth, wanted).await
        }
        _ => Err(StanzaError::new(Condition::ServiceUnavailable)),
    }
}

fn by_invitation_only() -> StanzaError {
    StanzaError::new(Condition::NotAllowed).text("Accounts here are by invitation only.")
}

/// XEP-0445 s.4. The token is used up when an account is made with it, not before.
async fn show_token(
    exchange: &Arc<Exchange>,
    asker: Asker<'_>,
    preauth: &mut Preauth,
    token: &str,
) -> Answer {
    attempt(exchange, asker, preauth)?;
    let found = exchange.find_invite(asker.host, token).await.map_err(|error| store_trouble(&error))?;
    match found.filter(|invite| invite.creates_account) {
        Some(invite) => {
            preauth.invite = Some(invite);
            Ok(Reply::Empty)
        }
        None => {
            refused(exchange, asker, "registration-bad-token", "a token that can't be used");
            Err(StanzaError::new(Condition::ItemNotFound).text("The provided token is invalid or expired"))
        }
    }
}

fn attempt(exchange: &Exchange, asker: Asker<'_>, preauth: &mut Preauth) -> Result<(), StanzaError> {
    preauth.attempts += 1;
    if preauth.attempts > MOST_ATTEMPTS {
        refused(exchange, asker, "registration-attempts", "too many tokens or names on one connection");
        return Err(StanzaError::new(Condition::ResourceConstraint).text(format!(
            "One connection has {MOST_ATTEMPTS} attempts, and none is left; connect again later."
        )));
    }
    Ok(())
}

fn refused(exchange: &Exchange, asker: Asker<'_>, name: &'static str, detail: &str) {
    let peer = asker.address.to_string();
    exchange.refusals.report(Refusal { name, peer: &peer, conn: 0, detail });
}

/// XEP-0077 s.3.1: the fields, for old clients and as a form.
fn registration_form(host: &Host, invite: Option<&Invite>) -> Vec<u8> {
    let reserved = invite.and_then(|invite| invite.local.as_deref());
    let instructions = match reserved {
        Some(local) => format!("Choose a password for {local}@{}.", host.domain.as_str()),
        None => format!("Choose a name and a password for your account at {}.", host.domain.as_str()),
    };
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::REGISTER);
    w.open("instructions").text(&instructions).close();
    w.open("username").text(reserved.unwrap_or_default()).close();
    w.empty("password");
    let mut username = Field::text_single("username").label("Name").required();
    if let Some(local) = reserved {
        username = username.value(local);
    }
    Form::form(FORM_TYPE)
        .title("Registration")
        .instructions(&instructions)
        .field(username)
        .field(Field::text_private("password").label("Password").required())
        .write(&mut w);
    w.close();
    w.finish()
}

/// What a client wrote into the fields or the form.
struct Wanted {
    username: String,
    password: Password,
}

impl Wanted {
    /// s.3.1: every field has to be filled in. With a form the fields beside it don't count (s.4).
    fn parse(stanza: &Stanza) -> Result<Wanted, StanzaError> {
        let missing = || StanzaError::new(Condition::NotAcceptable).text("Give a name and a password.");
        let query = stanza.first_child().ok_or_else(missing)?;
        let (username, password) = match query.child(ns::DATA_FORMS, "x") {
            Some(x) => {
                let form = Submission::parse(x).map_err(|_| missing())?;
                let text = |var: &str| form.value(var).map(str::to_owned);
                (text("username"), text("password"))
            }
            None => {
                let text = |name: &str| query.child(ns::REGISTER, name).map(|node| node.text().into_owned());
                (text("username"), text("password"))
            }
        };
        let username = username.filter(|text| !text.is_empty()).ok_or_else(missing)?;
        let password = password.filter(|text| !text.is_empty()).ok_or_else(missing)?;
        Ok(Wanted { username, password: Password::new(password) })
    }
}

async fn register(
    exchange: &Arc<Exchange>,
    asker: Asker<'_>,
    preauth: &mut Preauth,
    wanted: Wanted,
) -> Answer {
    if preauth.registered {
        // s.3.1.1: a second identity on the same stream.
        return Err(
            StanzaError::new(Condition::NotAcceptable).text("You have registered already; log in now.")
        );
    }
    attempt(exchange, asker, preauth)?;
    let config = exchange.config.load_full();
    let address = format!("{}@{}", wanted.username, asker.host.domain.as_str());
    let jid = match accounts::new_address(&address, &config) {
        Ok(jid) if !wanted.username.contains(['@', '/']) => jid,
        _ => {
            return Err(StanzaError::new(Condition::NotAcceptable)
                .text("This name can't be used: write it with small letters, digits, dots and dashes."));
        }
    };
    let local = jid.local().unwrap_or_default();
    if let Some(reserved) = preauth.invite.as_ref().and_then(|invite| invite.local.as_deref())
        && reserved != local
    {
        return Err(StanzaError::new(Condition::NotAcceptable)
            .text(format!("This invitation is for the name {reserved}.")));
    }
    let limited = config.limits.enabled
        && exchange.registrations.from_address(asker.address) >= config.accounts.registrations_per_address;
    if limited {
        refused(
            exchange,
            asker,
            "registration-rate-address",
            "accounts.registrations_per_address is reached",
        );
        let most = config.accounts.registrations_per_address;
        return Err(StanzaError::new(Condition::ResourceConstraint).text(format!(
            "{most} accounts may be registered from one network within an hour, and none is left; try again later."
        )));
    }
    let taken = exchange.is_name_taken(asker.host, local, preauth.invite.as_ref()).await;
    // An address with a role (`accounts.admins`) that nobody has yet is the operator's to make, or to invite to.
    let invited = preauth.invite.as_ref().is_some_and(|invite| invite.local.as_deref() == Some(local));
    let reserved = !invited && !exchange.scopes_of(&jid).is_empty();
    if taken.map_err(|error| store_trouble(&error))? || reserved {
        return Err(StanzaError::new(Condition::Conflict).text("Somebody has that name."));
    }
    // Before the work of deriving keys, so that many at once don't pass the limit together.
    exchange.registrations.failed_from(asker.address);
    let now = exchange.clock().now();
    let new = NewAccount {
        jid: &jid,
        password: &wanted.password,
        iterations: config.accounts.password_iterations,
        now,
    };
    let redeem: Vec<Statement> = preauth.invite.iter().map(|invite| invite.redeem(now)).collect();
    let with_invite = !redeem.is_empty();
    match accounts::add_with(&exchange.db, new, redeem).await {
        Ok(()) => {}
        // The token's statement found nothing: another connection was faster.
        Err(OpError::NotPossible(_)) if with_invite => {
            preauth.invite = None;
            return Err(
                StanzaError::new(Condition::ItemNotFound).text("The provided token is invalid or expired")
            );
        }
        Err(error) => return Err(stanza_error(&error)),
    }
    preauth.registered = true;
    tracing::info!(account = %jid, invited = with_invite, "an account was registered");
    if let Some(inviter) = preauth.invite.take().and_then(|invite| invite.inviter)
        && let Err(error) = exchange.befriend(&inviter, &jid).await
    {
        // The account is there; the two can still subscribe by hand.
        tracing::warn!(?error, account = %jid, "the inviter could not be made a contact");
    }
    Ok(Reply::Empty)
}

/// The account of the client that asks, if it is one of the addressed domain's.
fn own(request: &Request) -> Result<Jid, StanzaError> {
    match &request.session {
        Some(session) if session.account.jid.domain() == request.host.domain.as_str() => {
            Ok(session.account.jid.clone())
        }
        // s.3.2, table 1.
        Some(_) => Err(StanzaError::new(Condition::RegistrationRequired)),
        None => Err(StanzaError::new(Condition::ServiceUnavailable)),
    }
}

/// s.3.1: who has an account is told so.
async fn get(request: Request) -> Answer {
    let jid = own(&request)?;
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::REGISTER);
    w.open("instructions").text("You have an account. You can change its password or remove it.").close();
    w.empty("registered");
    w.open("username").text(jid.local().unwrap_or_default()).close();
    w.empty("password");
    w.close();
    Ok(w.finish().into())
}

async fn set(request: Request) -> Answer {
    match change(&request).await {
        Ok(reply) => Ok(reply),
        Err(error) => {
            // s.3.3: errors don't repeat the password.
            let mut w = Writer::new();
            w.open("query").attr("xmlns", ns::REGISTER).close();
            request.exchange.bounce(&request.stanza.with_payload(w.finish()), &error);
            Ok(Reply::Sent)
        }
    }
}

async fn change(request: &Request) -> Answer {
    let jid = own(request)?;
    let session = request.session.clone().ok_or_else(|| StanzaError::new(Condition::ServiceUnavailable))?;
    let query = request.stanza.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    if query.child(ns::REGISTER, "remove").is_some() {
        // s.3.2: the only child.
        if query.children().count() != 1 {
            return Err(StanzaError::new(Condition::BadRequest));
        }
        let erased =
            request.exchange.erase_account(&jid, None).await.map_err(|error| stanza_error(&error))?;
        tracing::info!(account = %jid, "an account was removed by its user");
        // Before the streams are closed; afterwards there is no address to send it to.
        session.push(Queued::plain(request.stanza.reply().done()));
        erased.depart().await;
        return Ok(Reply::Sent);
    }
    // s.3.3: an empty password changes nothing.
    let wanted = Wanted::parse(&request.stanza)
        .map_err(|_| StanzaError::new(Condition::BadRequest).text("Give your name and the new password."))?;
    let named = if wanted.username.contains('@') {
        wanted.username.clone()
    } else {
        format!("{}@{}", wanted.username, jid.domain())
    };
    if Jid::parse(&named).ok().as_ref() != Some(&jid) {
        return Err(StanzaError::new(Condition::NotAllowed).text("This is not your account."));
    }
    request
        .exchange
        .change_password(&session, &wanted.password)
        .await
        .map_err(|error| stanza_error(&error))?;
    tracing::info!(account = %jid, "a password was changed by its user");
    Ok(Reply::Empty)
}
