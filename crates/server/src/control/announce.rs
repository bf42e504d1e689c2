//! Telling of it when the breaker moves: a headline from the domain to users who have contacts outside, and the file of
//! XEP-0455 Service Outage Status 0.4.0 for clients that can't be told otherwise.
//!
//! One task tells, account after account and not faster than [`BATCH`] every [`PAUSE`]: a change must not become a storm.
//! If the breaker moves again meanwhile, those who were not told of the old level hear only of the new one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::blocks::date;
use super::breaker::{Level, LevelView, above};
use crate::config::WhenClosed;
use crate::exchange::Exchange;

/// Accounts that are told at once, ...
const BATCH: usize = 50;
/// ... and how long until the next ones.
const PAUSE: Duration = Duration::from_millis(20);

/// Changes that wait to be told.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By domain; all have an empty name. Not more than there are levels.
    waiting: BTreeMap<String, LevelView>,
    running: bool,
}

/// The breaker has moved for `view.domain`.
pub(super) fn moved(exchange: &Arc<Exchange>, view: LevelView) {
    if view.domain.is_none() {
        write_file(exchange, &view);
    }
    let announcer = &exchange.control.announcer;
    let mut state = announcer.state.lock();
    state.waiting.insert(view.domain.clone().unwrap_or_default(), view);
    if state.running {
        return;
    }
    state.running = true;
    drop(state);
    let told = Arc::clone(exchange);
    exchange.spawn(async move {
        while let Some(view) = next(&told) {
            tell(&told, &view).await;
        }
    });
}

fn next(exchange: &Exchange) -> Option<LevelView> {
    let mut state = exchange.control.announcer.state.lock();
    let next = state.waiting.pop_first().map(|(_, view)| view);
    state.running = next.is_some();
    next
}

async fn tell(exchange: &Arc<Exchange>, view: &LevelView) {
    let text = words(view, exchange.config.load().federation.when_closed);
    let key = view.domain.clone().unwrap_or_default();
    for batch in exchange.accounts.all().chunks(BATCH) {
        for account in batch {
            let concerned = {
                let state = account.state();
                state.resources.iter().any(|resource| resource.presence.is_some())
                    && state.roster.iter().any(|(contact, item)| {
                        item.listed && concerns(exchange, view.domain.as_deref(), contact)
                    })
            };
            if concerned {
                exchange.send(headline(&account.jid, &text));
            }
        }
        tokio::time::sleep(PAUSE).await;
        if exchange.control.announcer.state.lock().waiting.contains_key(&key) {
            // It has moved again: what comes next tells everybody.
            return;
        }
    }
    if view.level != Level::Closed {
        let goes_on = || !exchange.control.announcer.state.lock().waiting.contains_key(&key);
        exchange
            .refresh_presence(|contact| concerns(exchange, view.domain.as_deref(), contact), goes_on)
            .await;
    }
}

/// `contact` is somebody whom the change separates from its user.
fn concerns(exchange: &Exchange, domain: Option<&str>, contact: &Jid) -> bool {
    match domain {
        Some(domain) => above(contact.domain()).any(|name| name == domain),
        None => exchange.served(contact.domain()).is_none(),
    }
}

fn headline(account: &Jid, text: &str) -> Stanza {
    Stanza::build(Kind::Message(MessageType::Headline))
        .from(account.domain_jid())
        .to(account.clone())
        .body(|w| {
            w.text_element("subject", "Other providers");
            w.text_element("body", text);
        })
        .done()
}

/// What has happened, for people.
fn words(view: &LevelView, when_closed: WhenClosed) -> String {
    let whom = view.domain.clone().unwrap_or_else(|| "other providers".into());
    let mut text = match view.level {
        Level::Normal => return format!("People at {whom} can be reached again as usual."),
        Level::NoNewContacts => {
            format!("For the time being, new contacts with people at {whom} are not possible.")
        }
        Level::GrantedOnly => {
            format!("For the time being, you can talk with people at {whom} only if they are your contacts.")
        }
        Level::TextOnly => format!(
            "For the time being, you can talk with people at {whom} only if they are your contacts, and only in text."
        ),
        Level::Closed => {
            let messages = match when_closed {
                WhenClosed::Refuse => "Messages to them come back with an error.",
                WhenClosed::Queue => "Messages to them wait until this is over.",
            };
            format!(
                "For the time being, people at {whom} can't be reached. {messages} Everything else works as usual."
            )
        }
    };
    if !view.reason.is_empty() {
        text.push_str(&format!(" The reason: {}.", view.reason.trim_end_matches('.')));
    }
    if let Some(until) = view.until {
        text.push_str(&format!(" This is expected to end at {}.", crate::admin::output::time(until)));
    }
    text
}

/// Writes the file of XEP-0455, if there is to be one: what holds for all, or an empty object.
pub(super) fn write_file(exchange: &Arc<Exchange>, view: &LevelView) {
    let config = exchange.config.load();
    let Some(path) = config.federation.outage_file.clone() else { return };
    let status = match view.level {
        Level::Normal => serde_json::json!({}),
        _ => {
            let mut status = serde_json::json!({
                "beginning": date(view.set_at),
                "message": { "default": words(view, config.federation.when_closed) },
            });
            if let Some(until) = view.until {
                status["expected_end"] = date(until).into();
            }
            status
        }
    };
    let write = move || {
        if let Err(error) = replace(&path, status.to_string().as_bytes()) {
            tracing::error!(path = %path.display(), %error, "the outage file can't be written");
        }
    };
    // Files are written where it may take its time; one after the other, so that the last one is what stays.
    let turn = Arc::clone(&exchange.control.file_turn);
    exchange.runtime.spawn(async move {
        let turn = turn.lock_owned().await;
        let _ = tokio::task::spawn_blocking(move || {
            write();
            drop(turn);
        })
        .await;
    });
}

/// Whoever reads it reads the old file or the new one.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    std::fs::write(&new, content)?;
    std::fs::rename(&new, path)
}
