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
use trunkline_xmpp::time;

use super::{Level, Module};
use crate::admin::actor::Actor;
use crate::admin::schema::{self, FieldKind};
use crate::admin::{
    AccountView, Admin as _, Counts, Only, Operation, Outcome, PAGE, Password, output, table,
};
use crate::commands::{Access, Answered, Call, Command, Report, Stage, bad_payload};
use crate::exchange::Host;
use crate::notices::MotdOp;
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
    /// What the outcomes are reported as.
    report: fn(&Answer<'_>, &[Outcome]) -> Vec<Field>,
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
        report: |_, _| Vec::new(),
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
        report: |_, _| Vec::new(),
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
        report: |_, _| Vec::new(),
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
        report: |_, _| Vec::new(),
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
        report: |_, _| Vec::new(),
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
        report: |_, _| Vec::new(),
        changes: true,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-registered-users-num",
        name: "Number of registered users",
        instructions: "",
        fields: Vec::new,
        operations: count,
        report: |_, outcomes| counted("registeredusersnum", outcomes, |counts| counts.registered),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-disabled-users-num",
        name: "Number of disabled users",
        instructions: "",
        fields: Vec::new,
        operations: count,
        report: |_, outcomes| counted("disabledusersnum", outcomes, |counts| counts.disabled),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-online-users-num",
        name: "Number of users who are online",
        instructions: "",
        fields: Vec::new,
        operations: count,
        report: |_, outcomes| counted("onlineusersnum", outcomes, |counts| counts.online),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-active-users-num",
        name: "Number of users who are active",
        instructions: "",
        fields: Vec::new,
        operations: count,
        report: |_, outcomes| counted("activeusersnum", outcomes, |counts| counts.active),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-idle-users-num",
        name: "Number of users who are away",
        instructions: "",
        fields: Vec::new,
        operations: count,
        report: |_, outcomes| counted("idleusersnum", outcomes, |counts| counts.idle),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-registered-users-list",
        name: "List of registered users",
        instructions: "Fill out this form to get the list.",
        fields: || vec![max_items()],
        operations: |answer| list(answer, None),
        report: |answer, outcomes| listed("registereduserjids", answer, outcomes),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-disabled-users-list",
        name: "List of disabled users",
        instructions: "Fill out this form to get the list.",
        fields: || vec![max_items()],
        operations: |answer| list(answer, Some(Only::Disabled)),
        report: |answer, outcomes| listed("disableduserjids", answer, outcomes),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-online-users-list",
        name: "List of users who are online",
        instructions: "Fill out this form to get the list.",
        fields: || vec![max_items()],
        operations: |answer| list(answer, Some(Only::Online)),
        report: |answer, outcomes| listed("onlineuserjids", answer, outcomes),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-active-users",
        name: "List of users who are active",
        instructions: "Fill out this form to get the list.",
        fields: || vec![max_items()],
        operations: |answer| list(answer, Some(Only::Active)),
        report: |answer, outcomes| listed("activeuserjids", answer, outcomes),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-idle-users",
        name: "List of users who are away",
        instructions: "Fill out this form to get the list.",
        fields: || vec![max_items()],
        operations: |answer| list(answer, Some(Only::Idle)),
        // s.4.22: the field has that name there, too.
        report: |answer, outcomes| listed("activeuserjids", answer, outcomes),
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#get-user-lastlogin",
        name: "When users were here last",
        instructions: "Fill out this form to see when users logged in last.",
        fields: || vec![Field::jid_multi("accountjids").label("The addresses to look up").required()],
        operations: |answer| {
            let show = |address| Operation::UserShow { address };
            Ok(answer.many("accountjids")?.into_iter().map(show).collect())
        },
        report: |_, outcomes| {
            let accounts = || shown(outcomes);
            let jids =
                accounts().fold(Field::jid_multi("accountjids"), |field, view| field.value(&view.address));
            // In the order of the addresses; empty: never, or before it was noted.
            let times = accounts().map(|view| view.last_login.map(time::format_millis).unwrap_or_default());
            let field = match outcomes.len() {
                1 => Field::text_single("lastlogin"),
                _ => Field::text_multi("lastlogin"),
            };
            vec![jids, times.fold(field, |field, time| field.value(&time))]
        },
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#user-stats",
        name: "What is known of a user",
        instructions: "Addresses of sessions and what goes through them are not kept.",
        fields: || vec![Field::jid_single("accountjid").label("The address to look up").required()],
        operations: |answer| Ok(vec![Operation::UserShow { address: answer.one("accountjid")? }]),
        report: |_, outcomes| {
            let fields = shown(outcomes).flat_map(|view| {
                let resources = Field::text_multi("onlineresources");
                [
                    Field::text_single("rostersize").value(&view.contacts.to_string()),
                    view.resources.iter().fold(resources, |field, name| field.value(name)),
                ]
            });
            fields.collect()
        },
        changes: false,
    },
    Row {
        node: "http://jabber.org/protocol/admin#announce",
        name: "Send an announcement to users who are online",
        instructions: "",
        fields: || vec![Field::text_multi("announcement").label("Announcement").required()],
        operations: |answer| {
            let text = answer.text("announcement")?;
            Ok(vec![Operation::Announce { text, domain: Some(answer.domain()), all: false }])
        },
        report: |_, _| Vec::new(),
        changes: true,
    },
    Row {
        node: "http://jabber.org/protocol/admin#set-motd",
        name: "Set a message of the day",
        instructions: "Everybody gets it once.",
        fields: || vec![Field::text_multi("motd").label("Message of the day").required()],
        operations: |answer| {
            let text = answer.text("motd")?;
            Ok(vec![Operation::Motd(MotdOp::Set { domain: Some(answer.domain()), text })])
        },
        report: |_, _| Vec::new(),
        changes: true,
    },
    Row {
        node: "http://jabber.org/protocol/admin#edit-motd",
        name: "Correct the message of the day",
        instructions: "Who got it already does not get it again.",
        fields: || vec![Field::text_multi("motd").label("Message of the day").required()],
        operations: |answer| {
            let text = answer.text("motd")?;
            Ok(vec![Operation::Motd(MotdOp::Edit { domain: Some(answer.domain()), text })])
        },
        report: |_, _| Vec::new(),
        changes: true,
    },
    Row {
        node: "http://jabber.org/protocol/admin#delete-motd",
        name: "Take the message of the day back",
        instructions: "",
        fields: Vec::new,
        operations: |answer| Ok(vec![Operation::Motd(MotdOp::Delete { domain: Some(answer.domain()) })]),
        report: |_, _| Vec::new(),
        changes: true,
    },
];

/// Numbers that a list can be cut at (s.4.18).
const CUTS: [usize; 6] = [25, 50, 75, 100, 150, 200];

fn max_items() -> Field {
    let field = Field::list_single("max_items").label("Maximum number of items to show").required();
    let field = CUTS.iter().map(ToString::to_string).fold(field, |field, cut| field.option(&cut, &cut));
    field.option("none", "None")
}

fn list(answer: &Answer<'_>, only: Option<Only>) -> Result<Vec<Operation>, StanzaError> {
    answer.most()?;
    Ok(vec![Operation::UserList { domain: Some(answer.domain()), after: None, only }])
}

fn listed(var: &str, answer: &Answer<'_>, outcomes: &[Outcome]) -> Vec<Field> {
    let most = answer.most().unwrap_or(PAGE);
    let users = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Users { users, .. } => Some(users),
        _ => None,
    });
    let users = users.flatten().take(most);
    vec![users.fold(Field::jid_multi(var), |field, user| field.value(&user.address))]
}

fn count(answer: &Answer<'_>) -> Result<Vec<Operation>, StanzaError> {
    Ok(vec![Operation::UserCount { domain: Some(answer.domain()) }])
}

fn counted(var: &str, outcomes: &[Outcome], of: fn(&Counts) -> u64) -> Vec<Field> {
    match outcomes {
        [Outcome::Counts(counts)] => vec![Field::text_single(var).value(&of(counts).to_string())],
        _ => Vec::new(),
    }
}

fn shown(outcomes: &[Outcome]) -> impl Iterator<Item = &AccountView> {
    outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Account(view) => Some(&**view),
        _ => None,
    })
}

/// Lets administrators work from their client.
pub fn module() -> Module {
    let mut module = Module::new("administration", "Administer the server from a client").xep(
        133,
        "1.3.1",
        Level::Partial(
            "no lists of administrators and of blocked addresses (XMPP has the operations of its own for those), no rosters \
             of others, no welcome message, no restart and no shutdown",
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
    let nothing = Submission::default();
    let form = match call.answers.first() {
        None if !fields.is_empty() => {
            let form = Form::form(ns::ADMIN).title(row.name).instructions(row.instructions);
            return Ok(Stage::AskLast(fields.into_iter().fold(form, Form::field)));
        }
        None => &nothing,
        Some(form) => form,
    };
    let answer = Answer { form, host: &call.host };
    let mut outcomes = Vec::new();
    for operation in (row.operations)(&answer)? {
        // Durable operations one by one: when one fails, those before it are done, and the error says which failed.
        outcomes.push(admin.run(&actor, operation).await.map_err(|error| stanza_error(&error))?);
    }
    let mut notes: Vec<&str> = Vec::new();
    for outcome in &outcomes {
        match outcome {
            Outcome::Done { text } => notes.push(text),
            Outcome::Users { more: true, .. } => notes.push("There are more."),
            _ => {}
        }
    }
    let report = (row.report)(&answer, &outcomes);
    tracing::info!(by = %call.session.account.jid, command = row.node, "an administrator ran a command");
    Ok(Stage::Done(Report {
        form: (!report.is_empty()).then(|| report.into_iter().fold(Form::result(ns::ADMIN), Form::field)),
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

    /// The domain that is addressed.
    fn domain(&self) -> String {
        self.host.domain.domain().to_owned()
    }

    /// A text, which comes line by line (XEP-0004 s.3.3).
    fn text(&self, var: &str) -> Result<String, StanzaError> {
        let text = self.form.values(var).collect::<Vec<_>>().join("\n");
        if text.trim().is_empty() { Err(bad_payload(&format!("{var} is missing."))) } else { Ok(text) }
    }

    /// How many items a list is to have.
    fn most(&self) -> Result<usize, StanzaError> {
        match self.form.value("max_items").map(str::trim) {
            None | Some("" | "none") => Ok(PAGE),
            Some(most) => match most.parse() {
                Ok(most) => Ok(std::cmp::min(most, PAGE)),
                Err(_) => Err(bad_payload("max_items is no number.")),
            },
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
