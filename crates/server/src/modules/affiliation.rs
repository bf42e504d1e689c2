//! XEP-0489 Reporting Account Affiliations 0.1.0: whom this server trusts how much.
//!
//! Contacts may ask; whoever has no consent gets what everybody gets (promise 5).

use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Get;

use super::{Answer, Level, Module, Request, Scope};
use crate::route::message::store_trouble;

/// Tells an account's affiliation.
pub fn module() -> Module {
    Module::new("affiliation", "Tell contacts how well the server knows an account")
        .xep(
            489,
            "0.1.0",
            Level::Partial("answers queries of those who have consent; nothing is embedded in stanzas"),
        )
        .feature(Scope::Host, ns::AFFILIATION_REPORT)
        .iq(Scope::Account, Get, (ns::AFFILIATION_REPORT, "query"), tell)
        .iq(Scope::Contact, Get, (ns::AFFILIATION_REPORT, "query"), tell)
}

async fn tell(request: Request) -> Answer {
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::ServiceUnavailable)) };
    // s.4.2: what the asker may not see is forbidden; to outsiders it must look like everything else.
    let own = request.from.same_bare(&account.jid);
    let may =
        own || request.exchange.is_admin(&request.from) || account.state().shows_presence_to(&request.from);
    if !may {
        return Err(StanzaError::new(Condition::ServiceUnavailable));
    }
    let known = request.exchange.affiliation(account).await.map_err(|error| store_trouble(&error))?;
    let mut w = Writer::new();
    w.open("info")
        .attr("xmlns", ns::AFFILIATION_REPORT)
        .attr("affiliation", known.name)
        .attr("since", &trunkline_xmpp::time::format_millis(known.since))
        .close();
    Ok(w.finish().into())
}
