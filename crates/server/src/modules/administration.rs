//! XEP-0133 Service Administration 1.3.1: commands on a domain for the administrators of the configuration.
//!
//! [`TABLE`] is all there is to a command: the form it asks and the operations of [`crate::admin`] that the answer
//! stands for. A further one is a further row. Beside these every operation of [`crate::admin::table`] is a command of
//! its own, with the fields of its schema.

use std::sync::OnceLock;

use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::{Field, Form, Submission};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::{Level, Module};
use crate::admin::actor::Actor;
use crate::admin::schema::{self, FieldKind};
use crate::admin::{Admin as _, Operation, Outcome, Password, output, table};
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
    /// Not for those with a second factor.
    changes: bool,
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
        changes: true,
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
        changes: true,
    },
    Row {
        node: "http://jabber.org/protocol/admin#disable-user",
        name: "Disable users",
        instructions: "Nobody can log in to a disabled account. What it owns stays.",
        fields: || vec![Field::jid_multi("accountjids").label("The addresses to disable").required()],
        operations: |answer| {
            let disable = |address| Operation::UserDisable { address };
            Ok(answer.many("accountjids")?.into_iter().map(disable).collect())
        },
        report: |_| None,
        changes: true,
    },
    Row {
        node: "http://jabber.org/protocol/admin#reenable-user",
        name: "Enable users again",
        instructions: "Disabled accounts can be used again.",
        fields: || vec![Field::jid_multi("accountjids").label("The addresses to enable again").required()],
        operations: |answer| {
            let enable = |address| Operation::UserEnable { address };
            Ok(answer.many("accountjids")?.into_iter().map(enable).collect())
        },
        report: |_| None,
        changes: true,
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
        changes: true,
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
        changes: true,
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
        changes: false,
    },
];

/// Lets administrators work from their client.
pub fn module() -> Module {
    let mut module = Module::new("administration", "Administer the server from a client").xep(
        133,
        "1.3.1",
        Level::Partial(
            "add, delete, disable and enable users, end their sessions, change passwords, count users",
        ),
    );
    for row in TABLE {
        let run = move |call| run(row, call);
        module = module.command(Command::new(row.node, row.name, Access::Admins, run));
    }
    for (row, node) in table::TABLE.iter().zip(nodes()) {
        let run = move |call| run_operation(row, node, call);
        module = module.command(Command::new(node, row.summary, Access::Scope(row.scope), run));
    }
    module
}

/// What the nodes of [`table::TABLE`]'s commands begin with.
pub const NODES: &str = "urn:trunkline:admin:0#";

/// A node for each operation: they live as long as the program.
fn nodes() -> impl Iterator<Item = &'static str> {
    static ALL: OnceLock<Vec<String>> = OnceLock::new();
    let node = |row: &table::Row| match row.act {
        "" => format!("{NODES}{}", row.op),
        act => format!("{NODES}{}-{act}", row.op),
    };
    ALL.get_or_init(|| table::TABLE.iter().map(node).collect()).iter().map(String::as_str)
}

/// One operation: a form with its fields, then the operation itself.
async fn run_operation(row: &'static table::Row, node: &'static str, call: Call) -> Answered {
    let account = &call.session.account.jid;
    let actor = Actor::ad_hoc(account.as_str(), call.exchange.scopes_of(account));
    let admin = Operator(std::sync::Arc::clone(&call.exchange));
    // Before a form asks for anything.
    let may = admin.check_second_factor(&actor, row.changes()).await;
    may.map_err(|error| stanza_error(&error))?;
    let fields = schema::fields(row);
    let given = match call.answers.first() {
        None if fields.is_empty() => serde_json::Map::new(),
        None => {
            let form = Form::form(node).title(row.summary);
            return Ok(Stage::AskLast(fields.iter().map(form_field).fold(form, Form::field)));
        }
        Some(form) => {
            let mut given = serde_json::Map::new();
            for field in fields {
                let values: Vec<&str> = form.values(&field.name).filter(|value| !value.is_empty()).collect();
                // Texts of several lines come line by line (XEP-0004 s.3.3).
                let text = match field.kind {
                    FieldKind::SomeOf(_) => values.join(","),
                    _ => values.join("\n"),
                };
                if !text.is_empty() {
                    let value = field.read(&text).map_err(|error| bad_payload(&error.to_string()))?;
                    given.insert(field.name.clone(), value);
                }
            }
            given
        }
    };
    let operation = schema::operation(row, given).map_err(|error| bad_payload(&error.to_string()))?;
    let outcome = admin.run(&actor, operation).await.map_err(|error| stanza_error(&error))?;
    tracing::info!(by = %account, command = node, "an operation was run from a client");
    if let Outcome::Done { text } = outcome {
        return Ok(Stage::Done(Report { form: None, note: Some(text) }));
    }
    let now = call.exchange.clock().now();
    let json =
        serde_json::to_string(&outcome).map_err(|_| StanzaError::new(Condition::InternalServerError))?;
    let people = output::human(&outcome, now);
    let people =
        people.lines().fold(Field::text_multi("text").label("For people"), |field, line| field.value(line));
    let form = Form::result(node).title(row.summary).field(people);
    Ok(Stage::Done(Report { form: Some(form.field(Field::text_single("json").value(&json))), note: None }))
}

/// A field as a form asks for it.
fn form_field(field: &schema::Field) -> Field {
    let made = match &field.kind {
        FieldKind::Text | FieldKind::Number => Field::text_single(&field.name),
        FieldKind::Secret => Field::text_private(&field.name),
        FieldKind::Bool => Field::boolean(&field.name),
        FieldKind::Json => Field::text_multi(&field.name),
        FieldKind::OneOf(words) => {
            words.iter().fold(Field::list_single(&field.name), |made, word| made.option(word, word))
        }
        FieldKind::SomeOf(words) => {
            words.iter().fold(Field::list_multi(&field.name), |made, word| made.option(word, word))
        }
    };
    let label = match field.kind {
        FieldKind::Json => format!("{} (JSON)", field.summary),
        _ => field.summary.clone(),
    };
    let made = made.label(&label);
    if field.required { made.required() } else { made }
}

async fn run(row: &'static Row, call: Call) -> Answered {
    let admin = Operator(std::sync::Arc::clone(&call.exchange));
    let account = &call.session.account.jid;
    let actor = Actor::ad_hoc(account.as_str(), call.exchange.scopes_of(account));
    let may = admin.check_second_factor(&actor, row.changes).await;
    may.map_err(|error| stanza_error(&error))?;
    let fields = (row.fields)();
    let operations = match call.answers.first() {
        None if !fields.is_empty() => {
            let form = Form::form(ns::ADMIN).title(row.name).instructions(row.instructions);
            return Ok(Stage::AskLast(fields.into_iter().fold(form, Form::field)));
        }
        None => (row.operations)(&Answer { form: &Submission::default(), host: &call.host })?,
        Some(form) => (row.operations)(&Answer { form, host: &call.host })?,
    };
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::admin::accounts::{self, NewAccount};
    use crate::admin::totp;
    use crate::config::Config;
    use crate::ids::Clock;
    use crate::serve::{Parts, Server};
    use crate::session::{Bounds, Session};

    /// With a second factor no form asks for anything: neither those of XEP-0133 nor those of the table.
    #[tokio::test(start_paused = true)]
    async fn who_has_a_second_factor_is_sent_elsewhere() {
        let text = "domain = \"north.example\"\ndata_dir = \"/nonexistent\"\n[accounts]\n\
                    admins = [\"admin@north.example\"]\nregistration = \"invite\"\npassword_iterations = 4096\n";
        let config = Config::parse(text, Path::new("/nonexistent/trunkline.toml")).unwrap();
        let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
        let server = Server::start(config, parts).await.unwrap();
        let exchange = server.exchange();
        let jid = Jid::parse("admin@north.example").unwrap();
        let new = NewAccount { jid: &jid, password: &Password::new("x"), iterations: 4096, now: 0 };
        accounts::add(&exchange.db, new, None).await.unwrap();
        let account = exchange.accounts.load(&exchange.db, &jid).await.unwrap().unwrap();
        let full = jid.with_resource("desk").unwrap();
        let session = Session::new(1, full, Arc::clone(&account), Bounds::default());
        let call = || Call {
            exchange: Arc::clone(exchange),
            host: Arc::clone(exchange.host("north.example").unwrap()),
            session: Arc::clone(&session),
            answers: Vec::new(),
        };
        for enrolled in [false, true] {
            if enrolled {
                let actor = Actor::ad_hoc("admin@north.example", Vec::new());
                let audit = exchange.control.audit.entry(&actor, "test", "", (None, None));
                totp::enrol(&exchange.db, &jid, &totp::Secret::random(), (0, 0), audit).await.unwrap();
            }
            let told = |answered: Answered| match answered {
                Err(error) => format!("{error:?}").contains("second factor"),
                Ok(_) => false,
            };
            let mut commands = exchange.modules.commands();
            let invite = commands.find(|command| command.node == ns::INVITE_ACCOUNT).unwrap();
            assert_eq!(told(invite.run(call()).await), enrolled);
            for row in TABLE {
                assert_eq!(told(run(row, call()).await), enrolled && row.changes, "{}", row.node);
            }
            for (row, node) in table::TABLE.iter().zip(nodes()).filter(|(row, _)| row.op != "reload") {
                let answered = run_operation(row, node, call()).await;
                assert_eq!(told(answered), enrolled && row.changes(), "{node}");
            }
        }
    }
}
