//! XEP-0133 Service Administration 1.3.1: commands on a domain for the administrators of the configuration.
//!
//! [`TABLE`] is all there is to a command: the form it asks and the operations of [`crate::admin`] that the answer
//! stands for. A further one is a further row.

use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::{Field, Form, Submission};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::{Level, Module};
use crate::admin::actor::Actor;
use crate::admin::{Admin as _, Operation, Outcome, Password};
use crate::commands::{Access, Answered, Call, Command, Report, Stage, bad_payload};
use crate::exchange::Host;
use crate::operations::{Operator, stanza_error};

/// Addresses in one form.
const MOST: usize = 100;

/// One command of XEP-0133.
struct Row {
    node: &'static str,
    name: &'static str,
    instructions: &'static str,
    /// The form; empty: it runs at once.
    fields: fn() -> Vec<Field>,
    /// What the answer stands for.
    operations: fn(&Answer<'_>) -> Result<Vec<Operation>, StanzaError>,
    /// What the last outcome is reported as.
    report: fn(&Outcome) -> Option<Field>,
}

const TABLE: &[Row] = &[
    Row {
        node: "http://jabber.org/protocol/admin#add-user",
        name: "Add a user",
        instructions: "Fill out this form to add a user.",
        fields: || {
            vec![
                Field::jid_single("accountjid").label("The address of the account to be added").required(),
                Field::text_private("password").label("The password for this account").required(),
                Field::text_private("password-verify").label("Retype password").required(),
            ]
        },
        operations: |answer| {
            let password = answer.password()?;
            Ok(vec![Operation::UserAdd { address: answer.one("accountjid")?, password }])
        },
        report: |_| None,
    },
    Row {
        node: "http://jabber.org/protocol/admin#delete-user",
        name: "Delete users",
        instructions: "The accounts are removed with everything they own.",
        fields: || vec![Field::jid_multi("accountjids").label("The addresses to delete").required()],
        operations: |answer| {
            let remove = |address| Operation::UserRemove { address };
            Ok(answer.many("accountjids")?.into_iter().map(remove).collect())
        },
        report: |_| None,
    },
    Row {
        node: "http://jabber.org/protocol/admin#change-user-password",
        name: "Change a user's password",
        instructions: "Fill out this form to change a user's password.",
        fields: || {
            vec![
                Field::jid_single("accountjid").label("The address of the account").required(),
                Field::text_private("password").label("The new password").required(),
            ]
        },
        operations: |answer| {
            let password = answer.password()?;
            Ok(vec![Operation::UserPasswd { address: answer.one("accountjid")?, password }])
        },
        report: |_| None,
    },
    Row {
        node: "http://jabber.org/protocol/admin#end-user-session",
        name: "End users' sessions",
        instructions: "An address with a resource ends that session, without one all of the user's.",
        fields: || vec![Field::jid_multi("accountjids").label("The addresses to end sessions of").required()],
        operations: |answer| {
            let kick = |address| Operation::Kick { address };
            Ok(answer.many("accountjids")?.into_iter().map(kick).collect())
        },
        report: |_| None,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-registered-users-num",
        name: "Number of registered users",
        instructions: "",
        fields: Vec::new,
        operations: |_| Ok(vec![Operation::Status]),
        report: |outcome| match outcome {
            Outcome::Status(status) => {
                Some(Field::text_single("registeredusersnum").value(&status.accounts.to_string()))
            }
            _ => None,
        },
    },
];

/// Lets administrators work from their client.
pub fn module() -> Module {
    let mut module = Module::new("administration", "Administer the server from a client").xep(
        133,
        "1.3.1",
        Level::Partial("add, delete and end sessions of users, change passwords, count users"),
    );
    for row in TABLE {
        let run = move |call| run(row, call);
        module = module.command(Command::new(row.node, row.name, Access::Admins, run));
    }
    module
}

async fn run(row: &'static Row, call: Call) -> Answered {
    let fields = (row.fields)();
    let operations = match call.answers.first() {
        None if !fields.is_empty() => {
            let form = Form::form(ns::ADMIN).title(row.name).instructions(row.instructions);
            return Ok(Stage::AskLast(fields.into_iter().fold(form, Form::field)));
        }
        None => (row.operations)(&Answer { form: &Submission::default(), host: &call.host })?,
        Some(form) => (row.operations)(&Answer { form, host: &call.host })?,
    };
    let admin = Operator(std::sync::Arc::clone(&call.exchange));
    let actor = Actor::ad_hoc(call.session.account.jid.as_str());
    let mut notes = Vec::new();
    let mut field = None;
    for operation in operations {
        // Durable operations one by one: when one fails, those before it are done, and the error says which failed.
        let outcome = admin.run(&actor, operation).await.map_err(|error| stanza_error(&error))?;
        field = (row.report)(&outcome);
        if let Outcome::Done { text } = outcome {
            notes.push(text);
        }
    }
    tracing::info!(by = %call.session.account.jid, command = row.node, "an administrator ran a command");
    Ok(Stage::Done(Report {
        form: field.map(|field| Form::result(ns::ADMIN).field(field)),
        note: (!notes.is_empty()).then(|| notes.join(" ")),
    }))
}

/// A filled-in form, and the domain that it was sent to.
struct Answer<'a> {
    form: &'a Submission,
    host: &'a Host,
}

impl Answer<'_> {
    fn one(&self, var: &str) -> Result<String, StanzaError> {
        let address = self.form.value(var).map(str::trim).filter(|text| !text.is_empty());
        self.of_host(address.ok_or_else(|| bad_payload(&format!("{var} is missing.")))?)
    }

    fn many(&self, var: &str) -> Result<Vec<String>, StanzaError> {
        let addresses = self.form.values(var).map(str::trim).filter(|text| !text.is_empty());
        let addresses: Vec<String> =
            addresses.map(|address| self.of_host(address)).collect::<Result<_, _>>()?;
        match addresses.len() {
            0 => Err(bad_payload(&format!("{var} is missing."))),
            1..=MOST => Ok(addresses),
            _ => Err(bad_payload(&format!("At most {MOST} addresses at once."))),
        }
    }

    /// The command was sent to one domain and is about its accounts.
    fn of_host(&self, address: &str) -> Result<String, StanzaError> {
        let jid = Jid::parse(address).map_err(|_| StanzaError::new(Condition::JidMalformed))?;
        if jid.domain() == self.host.domain.as_str() {
            return Ok(address.to_owned());
        }
        Err(StanzaError::new(Condition::NotAllowed)
            .text(format!("{address} is not an address of {}.", self.host.domain.as_str())))
    }

    fn password(&self) -> Result<Password, StanzaError> {
        let password = self.form.value("password").filter(|text| !text.is_empty());
        let password = password.ok_or_else(|| bad_payload("The password is missing."))?;
        if self.form.value("password-verify").is_some_and(|again| again != password) {
            return Err(bad_payload("The passwords are not the same."));
        }
        Ok(Password::new(password))
    }
}
