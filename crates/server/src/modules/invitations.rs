//! XEP-0401 Ad-hoc Account Invitation Generation 0.6.0, and the server's help with XEP-0379 Pre-Authenticated Roster
//! Subscription 0.3.3 (in [`crate::route::presence`]).

use std::sync::Arc;

use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::{Field, Form};
use trunkline_xmpp::ns;

use super::{Level, Module};
use crate::admin::accounts;
use crate::admin::actor::Actor;
use crate::commands::{Access, Answered, Call, Command, Report, Stage, bad_payload};
use crate::config::Registration;
use crate::invites::{InviteError, Made, Wish};
use crate::operations::{Operator, stanza_error};
use crate::route::message::store_trouble;

/// FORM_TYPE of an invitation (XEP-0401 s.5.1).
const FORM_TYPE: &str = "urn:xmpp:invite#invitation";

/// Makes links that bring contacts and users.
pub fn module() -> Module {
    Module::new("invitations", "Invite contacts and users with a link")
        .xep(401, "0.6.0", Level::Partial("without a landing page of the server's own"))
        .xep(379, "0.3.3", Level::Complete)
        .command(Command::new(ns::INVITE_CONTACT, "Invite a contact", Access::Users, invite))
        .command(Command::new(
            ns::INVITE_ACCOUNT,
            "Create an account invitation",
            Access::Admins,
            create_account,
        ))
}

/// XEP-0401 s.5.1: at once, without a form.
async fn invite(call: Call) -> Answered {
    let creates_account = {
        let config = call.exchange.config.load();
        config.accounts.registration != Registration::Closed && config.accounts.user_invites
    };
    let account = &call.session.account;
    let wish = Wish { inviter: Some((account.id, account.jid.clone())), creates_account, ..Wish::default() };
    make(&call, wish).await
}

/// XEP-0401 s.5.4.
async fn create_account(call: Call) -> Answered {
    if call.exchange.config.load().accounts.registration == Registration::Closed {
        return Err(StanzaError::new(Condition::NotAllowed)
            .text("Nobody can register: accounts.registration is \"closed\"."));
    }
    // What `invite-create` of the table is, with a name: the same holds for it.
    let account = &call.session.account;
    let actor = Actor::ad_hoc(account.jid.as_str(), call.exchange.scopes_of(&account.jid));
    let operator = Operator(Arc::clone(&call.exchange));
    operator.check_second_factor(&actor, true).await.map_err(|error| stanza_error(&error))?;
    let Some(answer) = call.answers.first() else {
        return Ok(Stage::AskLast(
            Form::form(FORM_TYPE)
                .title("Create an account invitation")
                .instructions("The link registers one account. Without a name the invited choose their own.")
                .field(Field::text_single("username").label("Username"))
                .field(Field::boolean("roster-subscription").label("Roster subscription")),
        ));
    };
    let local = match answer.value("username").map(str::trim).filter(|name| !name.is_empty()) {
        None => None,
        Some(name) => {
            let config = call.exchange.config.load_full();
            let address = format!("{name}@{}", call.host.domain.as_str());
            let jid =
                accounts::new_address(&address, &config).map_err(|error| bad_payload(&error.to_string()))?;
            jid.local().map(str::to_owned)
        }
    };
    let befriends = matches!(answer.value("roster-subscription"), Some("1" | "true"));
    let inviter = befriends.then(|| (account.id, account.jid.clone()));
    let whom = format!("{}@{}", local.as_deref().unwrap_or("*"), call.host.domain.as_str());
    let audit = call.exchange.control.audit.entry(&actor, "invite create", "", (None, Some(whom)));
    let wish = Wish { inviter, creates_account: true, local, audit: Some(audit) };
    make(&call, wish).await
}

async fn make(call: &Call, wish: Wish) -> Answered {
    let made = call.exchange.invite(&call.host, wish).await.map_err(|error| match error {
        InviteError::TooMany => StanzaError::new(Condition::ResourceConstraint).text(error.to_string()),
        InviteError::Taken(_) => StanzaError::new(Condition::Conflict).text(error.to_string()),
        InviteError::Store(error) => store_trouble(&error),
    })?;
    Ok(Stage::Done(Report { form: Some(result(&made)), note: None }))
}

fn result(made: &Made) -> Form {
    Form::result(FORM_TYPE)
        .field(Field::text_single("uri").value(&made.uri))
        .field(Field::text_single("expire").value(&trunkline_xmpp::time::format_millis(made.expires_at)))
}
