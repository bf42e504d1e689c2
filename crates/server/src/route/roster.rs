//! The roster (RFC 6121 s.2): items in memory while the account is loaded, rows in the store.

use std::collections::BTreeMap;

use trunkline_store::{Batch, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use super::subscription::Subscription;

/// Bit of the `state` column beside those of [`Subscription::to_bits`].
const LISTED: i64 = 1 << 5;
const UNASKED: i64 = 1 << 6;
/// Deletions that one account's roster remembers.
const MOST_DELETIONS: i64 = 200;

/// One contact.
#[derive(Clone, Debug, Default)]
pub struct Item {
    /// The user's name for the contact.
    pub name: Option<String>,
    /// The user's groups.
    pub groups: Vec<String>,
    /// The user has the contact in the roster; else the item only holds the contact's request.
    pub listed: bool,
    /// The subscription's state.
    pub subscription: Subscription,
    /// The contact's request, as it came, while `pending_in` (RFC 6121 s.3.1.3: it is shown again at
    /// each login).
    pub request: Option<Stanza>,
    /// The request stands for what a stranger wrote, who did not ask for a subscription: see [`super::consent`].
    pub unasked: bool,
    /// Roster version of the last change (RFC 6121 s.2.6).
    pub version: i64,
}

impl Item {
    /// What the `state` column says.
    pub fn of_state(state: i64) -> Item {
        Item {
            subscription: Subscription::from_bits(state),
            listed: state & LISTED != 0,
            unasked: state & UNASKED != 0,
            ..Item::default()
        }
    }

    /// No request waits any more.
    pub fn unask(&mut self) {
        self.subscription.pending_in = false;
        self.unasked = false;
        self.request = None;
    }

    /// What a client is shown of the item.
    pub fn shown(&self) -> (Option<&str>, &[String], Subscription) {
        let subscription = Subscription { pending_in: false, ..self.subscription };
        (self.name.as_deref(), &self.groups, subscription)
    }
}

/// All contacts of one account, by bare JID.
#[derive(Debug, Default)]
pub struct Roster {
    items: BTreeMap<Jid, Item>,
    /// Of the newest change, deletions included.
    pub version: i64,
}

impl Roster {
    /// Reads the rows of [`Roster::QUERY`].
    pub fn load(rows: &trunkline_store::Rows, version: i64) -> Roster {
        let mut roster = Roster { items: BTreeMap::new(), version };
        for row in rows.iter() {
            let Ok(jid) = Jid::parse(row.text(0)) else {
                tracing::error!("a roster row has an address that can't be read");
                continue;
            };
            let item = Item {
                name: row.opt_text(1).map(str::to_owned),
                groups: serde_json::from_str(row.text(3)).unwrap_or_default(),
                version: row.int(4),
                request: row.opt_blob(5).and_then(|bytes| Stanza::parse(bytes).ok()),
                ..Item::of_state(row.int(2))
            };
            roster.items.insert(jid, item);
        }
        roster
    }

    /// Selects one account's items: `?1` is its domain, `?2` its local part.
    pub const QUERY: &'static str = "SELECT jid, name, state, groups_json, version, request FROM roster \
         WHERE removed = 0 AND account = (SELECT a.id FROM accounts a JOIN hosts h ON h.id = a.host_id \
         WHERE h.name = ?1 AND a.local = ?2)";

    /// The contact's item.
    pub fn get(&self, jid: &Jid) -> Option<&Item> {
        if jid.is_full() { self.items.get(&jid.bare()) } else { self.items.get(jid) }
    }

    /// The subscription's state; default for strangers.
    pub fn subscription(&self, jid: &Jid) -> Subscription {
        self.get(jid).map(|item| item.subscription).unwrap_or_default()
    }

    /// The oldest version from which all deletions are remembered (`?1` is the account): who has an older one needs
    /// the whole roster.
    pub const FLOOR: &'static str = "SELECT roster_floor FROM accounts WHERE id = ?1";

    /// All items, those included that only hold a request.
    pub fn iter(&self) -> impl Iterator<Item = (&Jid, &Item)> {
        self.items.iter()
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// No items.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Puts or removes (`None`) an item; the row was written by [`save`].
    pub fn apply(&mut self, jid: &Jid, item: Option<Item>, version: i64) {
        self.version = self.version.max(version);
        match item {
            Some(item) => {
                self.items.insert(jid.clone(), item);
            }
            None => {
                self.items.remove(jid);
            }
        }
    }
}

/// Adds the statements that make `item` (or its absence) durable.
pub fn save(batch: &mut Batch, account: i64, jid: &Jid, item: Option<&Item>, version: i64) {
    let (name, state, groups, request) = match item {
        Some(item) => (
            item.name.clone(),
            item.subscription.to_bits()
                | if item.listed { LISTED } else { 0 }
                | if item.unasked { UNASKED } else { 0 },
            serde_json::to_string(&item.groups).unwrap_or_else(|_| "[]".to_owned()),
            item.request.as_ref().map(|stanza| {
                let mut bytes = Vec::new();
                stanza.write(&mut bytes);
                bytes
            }),
        ),
        None => (None, 0, "[]".to_owned(), None),
    };
    batch.push(
        sql("INSERT INTO roster (account, jid, name, state, groups_json, version, request, removed) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
             ON CONFLICT (account, jid) DO UPDATE SET name = excluded.name, state = excluded.state, \
             groups_json = excluded.groups_json, version = excluded.version, request = excluded.request, \
             removed = excluded.removed")
        .bind(account)
        .bind(jid.as_str())
        .bind(name)
        .bind(state)
        .bind(groups)
        .bind(version)
        .bind(request)
        .bind(i64::from(item.is_none())),
    );
    batch.push(
        sql("UPDATE accounts SET roster_version = ?2 WHERE id = ?1")
            .bind(account)
            .bind(version)
            .must_change(),
    );
    if item.is_none() {
        forget_oldest_deletions(batch, account);
    }
}

/// Who asks for a subscription and withdraws leaves such a row too: their number must not be up to strangers.
fn forget_oldest_deletions(batch: &mut Batch, account: i64) {
    batch.push(
        sql("UPDATE accounts SET roster_floor = COALESCE((SELECT version FROM roster \
             WHERE account = ?1 AND removed = 1 ORDER BY version DESC LIMIT 1 OFFSET ?2), roster_floor) \
             WHERE id = ?1")
        .bind(account)
        .bind(MOST_DELETIONS),
    );
    batch.push(
        sql("DELETE FROM roster WHERE account = ?1 AND removed = 1 \
             AND version <= (SELECT roster_floor FROM accounts WHERE id = ?1)")
        .bind(account),
    );
}

/// Writes `<item/>` (RFC 6121 s.2.1.2); `None` is a removal.
pub fn write_item(w: &mut Writer, jid: &Jid, item: Option<&Item>) {
    w.open("item").attr("jid", jid.as_str());
    match item {
        None => {
            w.attr("subscription", "remove");
        }
        Some(item) => {
            if let Some(name) = &item.name {
                w.attr("name", name);
            }
            w.attr("subscription", item.subscription.as_str());
            if item.subscription.pending_out {
                w.attr("ask", "subscribe");
            }
            if item.subscription.approved {
                w.attr("approved", "true");
            }
            for group in &item.groups {
                w.open("group").text(group).close();
            }
        }
    }
    w.close();
}
