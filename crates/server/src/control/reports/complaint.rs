//! What somebody says with a report (XEP-0377), before it is one.

use trunkline_xml::Node;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::Stanza;

use crate::control::asking::short;

/// Reports in one request.
const MOST_AT_ONCE: usize = 20;
/// Stanzas that one report can name.
const MOST_STANZAS: usize = 20;
/// Characters of a stanza's id.
const MOST_ID: usize = 128;
/// Characters that a reporter can write.
const MOST_TEXT: usize = 2000;

/// What a user says with a report, before it is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Whom it is about: a bare address or a domain.
    pub about: Jid,
    /// `spam`, `abuse`, or another reason's URN.
    pub reason: String,
    /// In the reporter's words.
    pub text: String,
    /// Ids of stanzas (XEP-0359).
    pub stanza_ids: Vec<String>,
    /// XEP-0377 s.5: the provider of whom it is about may be told.
    pub may_forward: bool,
    /// XEP-0377 s.5: others may be told.
    pub may_share: bool,
}

impl Complaint {
    /// Reads `<report/>` about `about`.
    ///
    /// # Errors
    /// s.4: a report without a reason; or one that is too large.
    pub fn read(report: Node<'_>, about: Jid) -> Result<Complaint, StanzaError> {
        let bad = |text: &str| StanzaError::new(Condition::BadRequest).text(text);
        let reason = report.attr("reason").ok_or_else(|| bad("A report needs a reason."))?;
        let reason = match &*reason {
            ns::REPORTING_SPAM => "spam".to_owned(),
            ns::REPORTING_ABUSE => "abuse".to_owned(),
            // s.9: reasons can be registered.
            other => short(other, MOST_ID),
        };
        let children = || report.children().filter(|child| child.ns() == ns::REPORTING);
        let texts: Vec<String> = children()
            .filter(|child| child.name() == "text")
            .take(MOST_STANZAS)
            .map(|text| text.text().trim().to_owned())
            .collect();
        let mut complaint = Complaint {
            about: about.bare(),
            reason,
            text: texts.join("\n").chars().take(MOST_TEXT).collect(),
            stanza_ids: Vec::new(),
            may_forward: children().any(|child| child.name() == "report-origin"),
            may_share: children().any(|child| child.name() == "third-party"),
        };
        for id in report.children().filter(|child| child.is(ns::STANZA_ID, "stanza-id")) {
            let id = id.attr("id").ok_or_else(|| bad("A stanza-id without an id."))?;
            let id = short(&id, MOST_ID);
            if complaint.stanza_ids.contains(&id) {
                continue;
            }
            if complaint.stanza_ids.len() == MOST_STANZAS {
                return Err(StanzaError::new(Condition::ResourceConstraint)
                    .text(format!("A report names {MOST_STANZAS} messages at most.")));
            }
            complaint.stanza_ids.push(id);
        }
        Ok(complaint)
    }

    /// Every report in a request to block (XEP-0377 s.6).
    ///
    /// # Errors
    /// Those of [`Complaint::read`].
    pub fn of_block(stanza: &Stanza) -> Result<Vec<Complaint>, StanzaError> {
        let Some(command) = stanza.first_child() else { return Ok(Vec::new()) };
        let mut complaints = Vec::new();
        for item in command.children().filter(|child| child.is(ns::BLOCKING, "item")) {
            let Some(report) = item.child(ns::REPORTING, "report") else { continue };
            let about = item.attr("jid").and_then(|jid| Jid::parse(&jid).ok());
            let about = about.ok_or_else(|| StanzaError::new(Condition::JidMalformed))?;
            if complaints.len() == MOST_AT_ONCE {
                return Err(StanzaError::new(Condition::ResourceConstraint)
                    .text(format!("{MOST_AT_ONCE} reports at once, at most.")));
            }
            complaints.push(Complaint::read(report, about)?);
        }
        Ok(complaints)
    }
}
