//! Ad-hoc commands as a service (XEP-0050 Ad-Hoc Commands 1.3.0): modules bring [`Command`]s as data, this keeps the
//! sessions.
//!
//! A command is a function of the answers given so far: with none it asks its first form, with all of them it does its
//! work. So going back (`prev`) is calling it with one answer less, and a command keeps no state of its own.
//!
//! Deliberately absent: a command that somebody from another domain may run. Who asks is one of our clients, on the
//! domain that is asked.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::{Form, Submission};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use crate::exchange::{Exchange, Host};
use crate::modules::Request;
use crate::session::Session;

/// Milliseconds a session waits for its next form.
const PATIENCE: i64 = 10 * 60 * 1000;
/// Sessions of one account.
const MOST_OF_ONE: usize = 8;
/// Sessions of all.
const MOST: usize = 1024;

/// One command: a row of a module's table.
#[derive(Clone)]
pub struct Command {
    /// Its node in service discovery.
    pub node: &'static str,
    /// For people.
    pub name: &'static str,
    /// Who may run it, and only they see it.
    pub access: Access,
    run: Run,
}

/// Who may run a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every account of the domain.
    Users,
    /// Administrators (`accounts.admins`).
    Admins,
}

/// One call of a command.
#[derive(Clone)]
pub struct Call {
    /// The server.
    pub exchange: Arc<Exchange>,
    /// The domain that was addressed.
    pub host: Arc<Host>,
    /// The client that asks.
    pub session: Arc<Session>,
    /// What was answered to the forms so far.
    pub answers: Vec<Submission>,
}

/// What comes of a call.
#[derive(Debug)]
pub enum Stage {
    /// A form is to be filled in, and there will be another one.
    Ask(Form),
    /// A form is to be filled in, the last one.
    AskLast(Form),
    /// It is done.
    Done(Report),
}

/// What a command that is done has to say.
#[derive(Debug, Default)]
pub struct Report {
    /// Results for programs.
    pub form: Option<Form>,
    /// One sentence for people.
    pub note: Option<String>,
}

/// What a command returns. An error leaves the session where it was: the form can be sent once more.
pub type Answered = Result<Stage, StanzaError>;
type Answering = Pin<Box<dyn Future<Output = Answered> + Send>>;
type Run = Arc<dyn Fn(Call) -> Answering + Send + Sync>;

impl Command {
    /// A command. `run` is called with the answers so far, also when somebody goes back.
    pub fn new<F, Fut>(node: &'static str, name: &'static str, access: Access, run: F) -> Command
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answered> + Send + 'static,
    {
        Command { node, name, access, run: Arc::new(move |call| Box::pin(run(call))) }
    }

    /// Whether who asks may run it.
    fn permits(&self, request: &Request) -> bool {
        let Some(session) = &request.session else { return false };
        if session.account.jid.domain() != request.host.domain.as_str() {
            return self.access == Access::Admins && request.exchange.is_admin(&session.account.jid);
        }
        match self.access {
            Access::Users => true,
            Access::Admins => request.exchange.is_admin(&session.account.jid),
        }
    }
}

/// Commands under way.
#[derive(Debug, Default)]
pub struct Sessions {
    open: Mutex<HashMap<String, Open>>,
    mark: std::sync::OnceLock<String>,
}

/// One command under way; it is taken out of the table while it runs, so that a form counts once.
struct Open {
    by: Jid,
    host: i64,
    node: &'static str,
    answers: Vec<Submission>,
    /// The current form is the last one.
    last: bool,
    touched: i64,
}

impl Sessions {
    /// Ids carry a mark of this process: what has the mark and is unknown has expired.
    fn mark(&self) -> &str {
        self.mark.get_or_init(|| crate::ids::token(6))
    }

    fn open(&self, open: Open, id: Option<String>) -> Result<String, StanzaError> {
        let mut table = self.open.lock();
        let now = open.touched;
        table.retain(|_, other| now - other.touched < PATIENCE);
        let of_one = table.values().filter(|other| other.by.same_bare(&open.by)).count();
        if of_one >= MOST_OF_ONE || table.len() >= MOST {
            return Err(
                StanzaError::new(Condition::ResourceConstraint).text("Too many commands are under way.")
            );
        }
        let id = id.unwrap_or_else(|| format!("{}.{}", self.mark(), crate::ids::token(12)));
        table.insert(id.clone(), open);
        Ok(id)
    }

    fn take(&self, id: &str, asked: &Asked<'_>, now: i64) -> Result<Open, StanzaError> {
        let mut table = self.open.lock();
        // s.4.3: a session is between one requester and one responder.
        let fits =
            |open: &Open| open.by == *asked.by && open.host == asked.host && open.node == asked.command.node;
        match table.get(id) {
            Some(open) if !fits(open) => Err(refusal(Condition::BadRequest, "bad-sessionid")),
            Some(open) if now - open.touched >= PATIENCE => {
                table.remove(id);
                Err(refusal(Condition::NotAllowed, "session-expired"))
            }
            Some(_) => table.remove(id).ok_or_else(|| refusal(Condition::BadRequest, "bad-sessionid")),
            None if id.split_once('.').is_some_and(|(mark, _)| mark == self.mark()) => {
                Err(refusal(Condition::NotAllowed, "session-expired"))
            }
            None => Err(refusal(Condition::BadRequest, "bad-sessionid")),
        }
    }
}

struct Asked<'a> {
    by: &'a Jid,
    host: i64,
    command: &'a Command,
}

/// What somebody wants with a command (s.5.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Execute,
    Next,
    Complete,
    Prev,
    Cancel,
}

/// Answers `<command/>` on a domain: the payload of the result.
///
/// # Errors
/// Those of s.4.4 and of the command itself.
pub async fn answer(request: &Request) -> Result<Vec<u8>, StanzaError> {
    let bad = || StanzaError::new(Condition::BadRequest);
    let element = request.stanza.child(ns::COMMANDS, "command").ok_or_else(bad)?;
    let node = element.attr("node").ok_or_else(bad)?;
    let action = match element.attr("action").as_deref() {
        None | Some("execute") => Action::Execute,
        Some("next") => Action::Next,
        Some("complete") => Action::Complete,
        Some("prev") => Action::Prev,
        Some("cancel") => Action::Cancel,
        Some(_) => return Err(refusal(Condition::BadRequest, "malformed-action")),
    };
    let sessionid = element.attr("sessionid").map(|id| id.into_owned());
    let submission =
        element.child(ns::DATA_FORMS, "x").map(Submission::parse).transpose().map_err(|_| bad_payload(""))?;
    let command = request
        .exchange
        .modules
        .commands()
        .find(|command| command.node == node)
        .ok_or_else(|| StanzaError::new(Condition::ItemNotFound))?
        .clone();
    let Some(session) = request.session.clone().filter(|_| command.permits(request)) else {
        return Err(StanzaError::new(Condition::Forbidden));
    };
    let asked = Asked { by: &session.jid.clone(), host: request.host.id, command: &command };
    let now = request.exchange.clock().now();
    let sessions = &request.exchange.commands;
    let Some(id) = sessionid else {
        // s.4.3: who has no session starts one.
        if action != Action::Execute {
            return Err(refusal(Condition::BadRequest, "bad-action"));
        }
        let call = Call {
            exchange: Arc::clone(&request.exchange),
            host: Arc::clone(&request.host),
            session,
            answers: Vec::new(),
        };
        return match (command.run)(call).await? {
            Stage::Done(report) => {
                let id = format!("{}.{}", sessions.mark(), crate::ids::token(12));
                Ok(done(&command, &id, &report))
            }
            Stage::Ask(form) => open(sessions, &asked, (form, false), now),
            Stage::AskLast(form) => open(sessions, &asked, (form, true), now),
        };
    };
    let mut open = sessions.take(&id, &asked, now)?;
    let call = |answers: Vec<Submission>| Call {
        exchange: Arc::clone(&request.exchange),
        host: Arc::clone(&request.host),
        session: Arc::clone(&session),
        answers,
    };
    let before = open.answers.clone();
    let action = match action {
        // s.4.4: `execute` is what the form said it would be.
        Action::Execute if open.last => Action::Complete,
        Action::Execute => Action::Next,
        other => other,
    };
    let outcome = match action {
        Action::Cancel => return Ok(head(&command, &id, "canceled").finish()),
        Action::Prev if open.answers.pop().is_some() => (command.run)(call(open.answers.clone())).await,
        Action::Next if !open.last => go_on(&command, call, &mut open.answers, submission).await,
        Action::Complete if open.last => go_on(&command, call, &mut open.answers, submission).await,
        _ => Err(refusal(Condition::BadRequest, "bad-action")),
    };
    open.touched = now;
    let (form, last) = match outcome {
        Ok(Stage::Done(report)) => return Ok(done(&command, &id, &report)),
        Ok(Stage::Ask(form)) => (form, false),
        Ok(Stage::AskLast(form)) => (form, true),
        Err(error) => {
            open.answers = before;
            sessions.open(open, Some(id))?;
            return Err(error);
        }
    };
    open.last = last;
    let first = open.answers.is_empty();
    sessions.open(open, Some(id.clone()))?;
    Ok(ask(&command, &id, &form, Actions { last, first }))
}

async fn go_on(
    command: &Command,
    call: impl FnOnce(Vec<Submission>) -> Call,
    answers: &mut Vec<Submission>,
    submission: Option<Submission>,
) -> Answered {
    answers.push(submission.ok_or_else(|| bad_payload("There is no form."))?);
    (command.run)(call(answers.clone())).await
}

fn open(
    sessions: &Sessions,
    asked: &Asked<'_>,
    (form, last): (Form, bool),
    now: i64,
) -> Result<Vec<u8>, StanzaError> {
    let open = Open {
        by: asked.by.clone(),
        host: asked.host,
        node: asked.command.node,
        answers: Vec::new(),
        last,
        touched: now,
    };
    let id = sessions.open(open, None)?;
    Ok(ask(asked.command, &id, &form, Actions { last, first: true }))
}

struct Actions {
    last: bool,
    first: bool,
}

fn ask(command: &Command, id: &str, form: &Form, actions: Actions) -> Vec<u8> {
    let forward = if actions.last { "complete" } else { "next" };
    let mut w = head(command, id, "executing");
    w.open("actions").attr("execute", forward);
    if !actions.first {
        w.empty("prev");
    }
    w.empty(forward);
    w.close();
    form.write(&mut w);
    w.close();
    w.finish()
}

fn done(command: &Command, id: &str, report: &Report) -> Vec<u8> {
    let mut w = head(command, id, "completed");
    if let Some(form) = &report.form {
        form.write(&mut w);
    }
    if let Some(note) = &report.note {
        w.open("note").attr("type", "info").text(note).close();
    }
    w.close();
    w.finish()
}

fn head(command: &Command, id: &str, status: &str) -> Writer {
    let mut w = Writer::new();
    w.open("command")
        .attr("xmlns", ns::COMMANDS)
        .attr("node", command.node)
        .attr("sessionid", id)
        .attr("status", status);
    w
}

/// An error of s.4.4 with its specific condition.
fn refusal(condition: Condition, specific: &str) -> StanzaError {
    let mut w = Writer::new();
    w.open(specific).attr("xmlns", ns::COMMANDS).close();
    StanzaError::new(condition).app(w.finish())
}

/// The form that was sent can't be used (s.4.4).
pub fn bad_payload(text: &str) -> StanzaError {
    let error = refusal(Condition::BadRequest, "bad-payload");
    if text.is_empty() { error } else { error.text(text) }
}

/// Service discovery of [`ns::COMMANDS`] (s.2.2): what the asker may run.
pub fn items(request: &Request) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::DISCO_ITEMS).attr("node", ns::COMMANDS);
    for command in request.exchange.modules.commands().filter(|command| command.permits(request)) {
        w.open("item")
            .attr("jid", request.host.domain.as_str())
            .attr("node", command.node)
            .attr("name", command.name)
            .close();
    }
    w.close();
    w.finish()
}

/// Service discovery of one node (s.2.3): of the list, or of a command that the asker may run.
pub fn info(request: &Request, node: &str) -> Option<trunkline_xmpp::disco::Info> {
    let mut info = trunkline_xmpp::disco::Info::new();
    if node == ns::COMMANDS {
        info.identity("automation", "command-list", Some("Commands"));
        return Some(info);
    }
    let command = request
        .exchange
        .modules
        .commands()
        .find(|command| command.node == node && command.permits(request))?;
    info.identity("automation", "command-node", Some(command.name));
    info.feature(ns::COMMANDS);
    info.feature(ns::DATA_FORMS);
    Some(info)
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("node", &self.node)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Without the answers: there may be passwords among them.
impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("by", &self.by).field("node", &self.node).finish_non_exhaustive()
    }
}
