//! XEP-0357 Push Notifications 0.4.1: devices say how they are woken. The service is [`crate::push`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use trunkline_xml::Node;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::Submission;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Set;

use super::{Answer, Flow, Level, Module, Passage, Reply, Request, Scope, Step, Way};
use crate::config::Config;
use crate::push::{Arrival, KEY, MOST_NODE, MOST_OPTIONS, Secret, Wish};

/// Wakes devices that sleep.
pub fn module() -> Module {
    let pushes: fn(&Config) -> bool = |config| config.push.enabled;
    Module::new("push", "Wake devices that sleep")
        .xep(
            357,
            "0.4.1",
            Level::Partial("an app server's notice that it stops is not read: its errors tell"),
        )
        .feature_if(Scope::Account, ns::PUSH, pushes)
        .feature_if(Scope::Account, ns::PUSH_ENCRYPT, pushes)
        .feature_if(Scope::Account, ns::PUSH_ENCRYPT_AES, pushes)
        .iq(Scope::Account, Set, (ns::PUSH, "enable"), enable)
        .iq(Scope::Account, Set, (ns::PUSH, "disable"), disable)
        .iq(Scope::Contact, Set, (ns::PUSH, "enable"), forbidden)
        .iq(Scope::Contact, Set, (ns::PUSH, "disable"), forbidden)
        .on(Way::Received, Step::Notify, notify)
}

async fn forbidden(_: Request) -> Answer {
    Err(StanzaError::new(Condition::Forbidden))
}

fn bad(text: &str) -> StanzaError {
    StanzaError::new(Condition::BadRequest).text(text)
}

/// `jid` and `node` of an `<enable/>` or `<disable/>`.
fn target(node: Node<'_>) -> Result<(Jid, Option<String>), StanzaError> {
    let jid = node.attr("jid").ok_or_else(|| bad("The address of the push service is missing."))?;
    let jid = Jid::parse(&jid).map_err(|_| StanzaError::new(Condition::JidMalformed))?;
    let name = node.attr("node").map(|name| name.into_owned());
    if name.as_ref().is_some_and(|name| name.len() > MOST_NODE) {
        return Err(StanzaError::new(Condition::NotAcceptable)
            .text(format!("The name of a node may have {MOST_NODE} bytes.")));
    }
    Ok((jid, name))
}

/// s.5.
async fn enable(request: Request) -> Answer {
    let exchange = &request.exchange;
    if !exchange.config.load().push.enabled {
        return Err(StanzaError::new(Condition::ServiceUnavailable).text("Nobody is woken here."));
    }
    let Some(session) = &request.session else { return Err(StanzaError::new(Condition::Forbidden)) };
    let enable = request.stanza.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    let (service, node) = target(enable)?;
    // Users and the server itself take no pushes; components do.
    if exchange.host(service.domain()).is_some() {
        return Err(StanzaError::new(Condition::NotAllowed).text("That is no push service."));
    }
    let wish =
        Wish { service, node: node.unwrap_or_default(), options: options(enable)?, secret: secret(enable)? };
    exchange.enable_push(session, wish).await?;
    Ok(Reply::Empty)
}

/// The form that is given to the service with each push, as it came.
fn options(enable: Node<'_>) -> Result<Option<Vec<u8>>, StanzaError> {
    let Some(form) = enable.child(ns::DATA_FORMS, "x") else { return Ok(None) };
    let read = Submission::parse(form).map_err(|_| bad("That is no form of publish options."))?;
    if read.form_type() != Some(ns::PUBSUB_PUBLISH_OPTIONS) {
        return Err(bad("A form of publish options is wanted."));
    }
    let xml = form.to_standalone(ns::PUBSUB);
    if xml.len() > MOST_OPTIONS {
        return Err(StanzaError::new(Condition::NotAcceptable)
            .text(format!("The options may have {MOST_OPTIONS} bytes; these have {}.", xml.len())));
    }
    Ok(Some(xml))
}

/// "Encrypted Push Notifications", s.4.2.
fn secret(enable: Node<'_>) -> Result<Option<Secret>, StanzaError> {
    let Some(encrypt) = enable.child(ns::PUSH_ENCRYPT, "encrypt") else { return Ok(None) };
    let known = encrypt.attr("alg").is_some_and(|alg| alg == "aes-128-gcm" || alg == ns::PUSH_ENCRYPT_AES);
    if !known {
        return Err(StanzaError::new(Condition::FeatureNotImplemented).text("Known is aes-128-gcm."));
    }
    let key = STANDARD.decode(encrypt.text().trim()).ok().and_then(|key| <[u8; KEY]>::try_from(key).ok());
    let key = key.ok_or_else(|| bad("A key has 16 bytes, in base64."))?;
    let most = encrypt.attr("max-size").map(|most| most.trim().parse::<u32>());
    let most = most.transpose().map_err(|_| bad("max-size is a number of bytes."))?;
    Ok(Some(Secret { key, most: most.map_or(0, i64::from) }))
}

/// s.6. What is not enabled can be disabled.
async fn disable(request: Request) -> Answer {
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::Forbidden)) };
    let disable = request.stanza.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    let (service, node) = target(disable)?;
    request.exchange.disable_push(account, &service, node.as_deref()).await?;
    Ok(Reply::Empty)
}

fn notify(passage: &mut Passage<'_>) -> Flow {
    if passage.class.push.yes
        && !passage.state.pushes.is_empty()
        && passage.exchange.config.load().push.enabled
    {
        let arrival = Arrival {
            exchange: passage.exchange,
            account: passage.account,
            state: passage.state,
            stanza: &passage.stanza,
            kept: passage.id.filter(|_| passage.class.offline.yes),
            targets: &passage.targets,
            copied: passage.class.copy.yes,
        };
        passage.orders = arrival.orders();
    }
    Flow::Pass
}
