//! XEP-0494 Client Access Management 0.1.0: a user sees the devices that can sign in to the account, and ends one.

use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::stanza::IqType::{Get, Set};
use trunkline_xmpp::{ns, time};

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::devices::{Device, Ended, Ender};

/// Lists and ends devices.
pub fn module() -> Module {
    Module::new("client-access", "Show a user's devices and end one")
        .xep(494, "0.1.0", Level::Complete)
        .feature(Scope::Account, ns::CLIENT_ACCESS)
        .iq(Scope::Account, Get, (ns::CLIENT_ACCESS, "list"), list)
        .iq(Scope::Account, Set, (ns::CLIENT_ACCESS, "revoke"), revoke)
}

/// s.3.1.
async fn list(request: Request) -> Answer {
    let Some(account) = request.account.as_ref().filter(|_| request.session.is_some()) else {
        return Err(StanzaError::new(Condition::Forbidden));
    };
    let devices = request.exchange.devices(account).await;
    let devices = devices.map_err(|_| StanzaError::new(Condition::InternalServerError))?;
    let mut w = Writer::new();
    w.open("clients").attr("xmlns", ns::CLIENT_ACCESS);
    for device in &devices {
        write(&mut w, device);
    }
    w.close();
    Ok(w.finish().into())
}

fn write(w: &mut Writer, device: &Device) {
    w.open("client")
        .attr("connected", if device.connected { "true" } else { "false" })
        .attr("id", &device.id)
        .attr("type", "session");
    for (name, at) in [("first-seen", device.first_seen), ("last-seen", device.last_seen)] {
        if let Some(at) = at {
            w.text_element(name, &time::format_millis(at));
        }
    }
    w.open("auth");
    for (name, has) in [("password", device.password), ("fast", device.token)] {
        if has {
            w.empty(name);
        }
    }
    w.close();
    // Whoever has signed in may do everything that the user may.
    w.open("permission").attr("status", "unrestricted").close();
    if device.software.is_some() || device.device.is_some() {
        w.open("user-agent");
        for (name, text) in [("software", &device.software), ("device", &device.device)] {
            if let Some(text) = text {
                w.text_element(name, text);
            }
        }
        w.close();
    }
    w.close();
}

/// s.3.2.
async fn revoke(request: Request) -> Answer {
    let (Some(account), Some(session)) = (&request.account, &request.session) else {
        return Err(StanzaError::new(Condition::Forbidden));
    };
    let id = request.stanza.first_child().and_then(|revoke| revoke.attr("id").map(|id| id.into_owned()));
    let id = id.ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    // The session that asks stays, whatever it ends: it gets the answer, and can leave by itself.
    match request.exchange.end_device(account, &id, Ender::User(session)).await {
        Ok(Ended::Gone) => Ok(Reply::Empty),
        Ok(Ended::KnowsPassword) => {
            let mut w = Writer::new();
            w.open("password-reset-required").attr("xmlns", ns::CLIENT_ACCESS).close();
            Err(StanzaError::new(Condition::ServiceUnavailable)
                .text("It was signed out, but it has the password and may come back: change the password.")
                .app(w.finish()))
        }
        Ok(Ended::Unknown) => Err(StanzaError::new(Condition::ItemNotFound)),
        Err(_) => Err(StanzaError::new(Condition::InternalServerError)),
    }
}
