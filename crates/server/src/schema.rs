//! The history of the database's schema. Only ever append: see [`trunkline_store::Migration`].
//!
//! Rows carry the id of their host and their account; ids of accounts are never used again, so that what a removed
//! account left somewhere can't become another person's.

use trunkline_store::Migration;

/// Every migration, oldest first.
pub const MIGRATIONS: &[Migration] = &[
    ACCOUNTS,
    MESSAGING,
    INVITES,
    BOUNDS,
    WAITING,
    ONE_INDEX,
    CONTROL,
    CONSENT,
    EYES,
    DEVICES,
    ARCHIVES,
    SIGNALS,
    LEVELS,
    PUSH,
    NODES,
    CONSENT_BOUNDS,
    REPORT_WEIGHT,
    FOLLOWERS,
    PROFILES,
    NOTICES,
    RETRACTIONS,
    PAYERS,
];

const ACCOUNTS: Migration = Migration {
    name: "accounts",
    sql: "
        CREATE TABLE hosts (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE
        ) STRICT;
        CREATE TABLE accounts (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            host_id INTEGER NOT NULL REFERENCES hosts (id),
            local TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            disabled INTEGER NOT NULL DEFAULT 0,
            UNIQUE (host_id, local)
        ) STRICT;
        CREATE TABLE credentials (
            account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            mechanism TEXT NOT NULL,
            salt BLOB NOT NULL,
            iterations INTEGER NOT NULL,
            stored_key BLOB NOT NULL,
            server_key BLOB NOT NULL,
            PRIMARY KEY (account_id, mechanism)
        ) STRICT;
    ",
};

/// Roster, log and what else belongs to an account. Everything goes with the account (`ON DELETE CASCADE`):
/// that is how its data is erased.
const MESSAGING: Migration = Migration {
    name: "messaging",
    sql: "
        ALTER TABLE hosts ADD COLUMN secret BLOB;
        ALTER TABLE accounts ADD COLUMN roster_version INTEGER NOT NULL DEFAULT 0;
        CREATE TABLE roster (
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            jid TEXT NOT NULL,
            name TEXT,
            state INTEGER NOT NULL,
            groups_json TEXT NOT NULL,
            version INTEGER NOT NULL,
            request BLOB,
            removed INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (account, jid)
        ) STRICT;
        CREATE TABLE blocked (
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            jid TEXT NOT NULL,
            PRIMARY KEY (account, jid)
        ) STRICT;
        CREATE TABLE archive (
            id INTEGER PRIMARY KEY,
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            peer TEXT NOT NULL,
            flags INTEGER NOT NULL,
            stanza BLOB NOT NULL
        ) STRICT;
        CREATE INDEX archive_by_account ON archive (account, id);
        CREATE INDEX archive_by_peer ON archive (account, peer, id);
        CREATE TABLE pending (
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            id INTEGER NOT NULL,
            PRIMARY KEY (account, id)
        ) STRICT;
        CREATE TABLE outbound (
            id INTEGER PRIMARY KEY,
            local_domain TEXT NOT NULL,
            peer_domain TEXT NOT NULL,
            sender TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            expires_at INTEGER NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            stanza BLOB NOT NULL
        ) STRICT;
        CREATE INDEX outbound_by_pair ON outbound (local_domain, peer_domain, id);
        CREATE INDEX outbound_by_expiry ON outbound (expires_at);
        CREATE TABLE vcards (
            account INTEGER PRIMARY KEY REFERENCES accounts (id) ON DELETE CASCADE,
            xml BLOB NOT NULL
        ) STRICT;
        CREATE TABLE private_xml (
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            ns TEXT NOT NULL,
            name TEXT NOT NULL,
            xml BLOB NOT NULL,
            PRIMARY KEY (account, ns, name)
        ) STRICT;
        CREATE TABLE session_snapshots (
            hash BLOB PRIMARY KEY,
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            data TEXT NOT NULL
        ) STRICT;
        CREATE TABLE present (
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            resource TEXT NOT NULL,
            PRIMARY KEY (account, resource)
        ) STRICT;
    ",
};

/// Invitations: the hash of each token and what it is good for (see [`crate::invites`]).
const INVITES: Migration = Migration {
    name: "invites",
    sql: "
        CREATE TABLE invites (
            token_hash BLOB PRIMARY KEY,
            host_id INTEGER NOT NULL REFERENCES hosts (id),
            inviter INTEGER REFERENCES accounts (id) ON DELETE CASCADE,
            local TEXT,
            creates_account INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            expires_at INTEGER NOT NULL,
            used_at INTEGER
        ) STRICT;
        CREATE INDEX invites_by_inviter ON invites (inviter);
        CREATE INDEX invites_by_name ON invites (host_id, local);
        CREATE INDEX invites_by_expiry ON invites (expires_at);
    ",
};

/// What bounds need to know: the size of each archive row, in the index, so that sums read no stanzas; how far back
/// the deletions in a roster are remembered; and a row to find out whether the disk takes writes.
const BOUNDS: Migration = Migration {
    name: "bounds",
    sql: "
        ALTER TABLE archive ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
        UPDATE archive SET size = LENGTH(stanza);
        DROP INDEX archive_by_account;
        CREATE INDEX archive_by_account ON archive (account, id, size);
        ALTER TABLE accounts ADD COLUMN roster_floor INTEGER NOT NULL DEFAULT 0;
        CREATE TABLE heartbeat (
            id INTEGER PRIMARY KEY,
            at INTEGER NOT NULL,
            ballast BLOB NOT NULL
        ) STRICT;
    ",
};

/// What waits has its size beside it: the offline queue's bound is looked at without touching a message.
const WAITING: Migration = Migration {
    name: "waiting",
    sql: "
        CREATE TABLE waiting (
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            id INTEGER NOT NULL,
            size INTEGER NOT NULL,
            PRIMARY KEY (account, id)
        ) STRICT, WITHOUT ROWID;
        INSERT INTO waiting SELECT p.account, p.id, a.size FROM pending p JOIN archive a ON a.id = p.id;
        DROP TABLE pending;
        ALTER TABLE waiting RENAME TO pending;
    ",
};

/// What is seen of peer domains, and who may look: counters with their history (see [`crate::control::traffic`]),
/// tokens of the HTTP API, second factors of the console.
const EYES: Migration = Migration {
    name: "eyes",
    sql: "
        CREATE TABLE peer_domains (
            domain TEXT PRIMARY KEY,
            first_seen INTEGER NOT NULL,
            last_seen INTEGER NOT NULL,
            facts TEXT NOT NULL
        ) STRICT;
        CREATE TABLE traffic_history (
            domain TEXT NOT NULL,
            step INTEGER NOT NULL,
            at INTEGER NOT NULL,
            stanzas_in INTEGER NOT NULL,
            stanzas_out INTEGER NOT NULL,
            bytes_in INTEGER NOT NULL,
            bytes_out INTEGER NOT NULL,
            refused INTEGER NOT NULL,
            held INTEGER NOT NULL,
            reports INTEGER NOT NULL,
            PRIMARY KEY (domain, step, at)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX traffic_history_by_time ON traffic_history (step, at);
        CREATE TABLE api_tokens (
            name TEXT PRIMARY KEY,
            hash BLOB NOT NULL UNIQUE,
            scopes TEXT NOT NULL,
            created_by TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            until INTEGER,
            last_used_at INTEGER
        ) STRICT;
        CREATE TABLE totp (
            account INTEGER PRIMARY KEY REFERENCES accounts (id) ON DELETE CASCADE,
            secret BLOB NOT NULL,
            enrolled_at INTEGER NOT NULL,
            last_step INTEGER NOT NULL
        ) STRICT;
    ",
};

/// Each index of the archive costs a page of the disk for almost every message, because neighbours in time are not
/// neighbours in it. What nothing reads is not worth that.
const ONE_INDEX: Migration = Migration { name: "one-index", sql: "DROP INDEX archive_by_peer;" };

/// What outsiders may do: rules, blocks, levels of the breaker, and the log of every change of theirs. The log is
/// append-only, and the database sees to it: not even `INSERT OR REPLACE` changes an entry.
const CONTROL: Migration = Migration {
    name: "control",
    sql: "
        CREATE TABLE audit (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at INTEGER NOT NULL,
            who TEXT NOT NULL,
            face TEXT NOT NULL,
            what TEXT NOT NULL,
            why TEXT NOT NULL,
            before TEXT,
            after TEXT
        ) STRICT;
        CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
            BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
        CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
            BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
        CREATE TRIGGER audit_is_not_replaced BEFORE INSERT ON audit
            WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
            BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
        CREATE TABLE federation_rules (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            position INTEGER NOT NULL,
            rule TEXT NOT NULL,
            set_by TEXT NOT NULL,
            set_at INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE federation_preset (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            preset TEXT NOT NULL,
            shadow INTEGER NOT NULL,
            set_by TEXT NOT NULL,
            set_at INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE federation_blocks (
            domain TEXT PRIMARY KEY,
            subdomains INTEGER NOT NULL,
            reason TEXT NOT NULL,
            until INTEGER,
            set_by TEXT NOT NULL,
            set_at INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE federation_levels (
            domain TEXT PRIMARY KEY,
            level TEXT NOT NULL,
            reason TEXT NOT NULL,
            until INTEGER,
            set_by TEXT NOT NULL,
            set_at INTEGER NOT NULL
        ) STRICT;
    ",
};

/// Consent before first contact (design/011): who may write to whom, what came from strangers and is not sorted yet,
/// what is held, and how users of other domains were answered.
const CONSENT: Migration = Migration {
    name: "consent",
    sql: "
        CREATE TABLE consents (
            hash BLOB NOT NULL,
            why INTEGER NOT NULL,
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            peer TEXT NOT NULL,
            domain TEXT NOT NULL,
            relation INTEGER NOT NULL,
            used_at INTEGER NOT NULL,
            PRIMARY KEY (hash, why)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX consents_by_account ON consents (account, why, used_at);
        CREATE TABLE consents_built (
            id INTEGER PRIMARY KEY,
            at INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE intake (
            id INTEGER PRIMARY KEY,
            stanza BLOB NOT NULL
        ) STRICT;
        CREATE TABLE first_contacts (
            id INTEGER PRIMARY KEY,
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            peer TEXT NOT NULL,
            domain TEXT NOT NULL,
            state INTEGER NOT NULL,
            asks INTEGER NOT NULL,
            stanzas INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            changed_at INTEGER NOT NULL,
            UNIQUE (account, peer)
        ) STRICT;
        CREATE INDEX first_contacts_by_peer ON first_contacts (domain, state, peer);
        CREATE INDEX first_contacts_by_age ON first_contacts (state, changed_at);
        CREATE TABLE held (
            id INTEGER PRIMARY KEY,
            contact INTEGER NOT NULL REFERENCES first_contacts (id) ON DELETE CASCADE,
            size INTEGER NOT NULL,
            stanza BLOB NOT NULL
        ) STRICT;
        CREATE INDEX held_by_contact ON held (contact, id);
        CREATE TABLE first_contact_answers (
            domain TEXT PRIMARY KEY,
            accepted INTEGER NOT NULL,
            declined INTEGER NOT NULL,
            changed_at INTEGER NOT NULL
        ) STRICT;
    ",
};

/// The devices of an account and their tokens, the current and the next one of each (see [`crate::devices`]).
const DEVICES: Migration = Migration {
    name: "devices",
    sql: "
        CREATE TABLE devices (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            agent BLOB NOT NULL,
            handle TEXT NOT NULL,
            software TEXT,
            device TEXT,
            first_seen INTEGER NOT NULL,
            last_seen INTEGER NOT NULL,
            password INTEGER NOT NULL,
            mechanism TEXT,
            seed BLOB,
            expires INTEGER,
            next_mechanism TEXT,
            next_seed BLOB,
            next_expires INTEGER,
            UNIQUE (account, agent)
        ) STRICT;
        CREATE INDEX devices_by_age ON devices (last_seen);
    ",
};

/// Reading archives. The index tells everything but the stanza, so that a search for an address reads no stanzas and
/// the messages of each account still touch one page of one index. What users want archived (rule 0: always, 1:
/// never, 2: contacts; the empty address stands for those that are not listed). The full-text index, from which a
/// message goes with its row, and how far each account's archive is in it.
const ARCHIVES: Migration = Migration {
    name: "archives",
    sql: "
        DROP INDEX archive_by_account;
        CREATE INDEX archive_by_account ON archive (account, id, size, flags, peer);
        CREATE TABLE archive_rules (
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            jid TEXT NOT NULL,
            rule INTEGER NOT NULL,
            PRIMARY KEY (account, jid)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE archive_searched (
            account INTEGER PRIMARY KEY REFERENCES accounts (id) ON DELETE CASCADE,
            indexed_until INTEGER NOT NULL
        ) STRICT;
        CREATE VIRTUAL TABLE archive_words USING fts5
            (owner, body, tokenize = 'unicode61 remove_diacritics 2');
        INSERT INTO archive_words (archive_words, rank) VALUES ('secure-delete', 1);
        CREATE TRIGGER archive_gone AFTER DELETE ON archive WHEN old.flags & 2 = 0 BEGIN
            DELETE FROM archive_words WHERE rowid = old.id;
        END;
    ",
};

/// What users and others say about outsiders: reports, block lists with their entries and subscribers, reputation; and
/// whether an account was made by the operator (XEP-0489: `member`) or by its user (`registered`).
const SIGNALS: Migration = Migration {
    name: "signals",
    sql: "
        CREATE TABLE reports (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at INTEGER NOT NULL,
            account INTEGER REFERENCES accounts (id) ON DELETE CASCADE,
            reporter TEXT NOT NULL,
            origin TEXT NOT NULL,
            affiliation TEXT NOT NULL,
            about TEXT NOT NULL,
            domain TEXT NOT NULL,
            reason TEXT NOT NULL,
            words TEXT NOT NULL,
            stanza_ids TEXT NOT NULL,
            messages TEXT NOT NULL,
            may_forward INTEGER NOT NULL,
            may_share INTEGER NOT NULL,
            state TEXT NOT NULL,
            forwarded_to TEXT,
            forwarded_at INTEGER,
            actions TEXT NOT NULL
        ) STRICT;
        CREATE INDEX reports_by_state ON reports (state, origin, id);
        CREATE INDEX reports_by_account ON reports (account, at);
        CREATE INDEX reports_by_reporter ON reports (reporter, at);
        CREATE INDEX reports_by_domain ON reports (domain, id);
        CREATE TABLE lists (
            name TEXT PRIMARY KEY,
            service TEXT NOT NULL,
            node TEXT NOT NULL,
            action TEXT,
            run_time INTEGER NOT NULL,
            changed_at INTEGER
        ) STRICT;
        CREATE TABLE list_entries (
            list TEXT NOT NULL REFERENCES lists (name) ON DELETE CASCADE,
            entry TEXT NOT NULL,
            reason TEXT NOT NULL,
            PRIMARY KEY (list, entry)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE own_list (
            item TEXT PRIMARY KEY,
            entry TEXT NOT NULL,
            reason TEXT NOT NULL,
            at INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE list_subscribers (
            host TEXT NOT NULL,
            node TEXT NOT NULL,
            jid TEXT NOT NULL,
            domain TEXT NOT NULL,
            at INTEGER NOT NULL,
            PRIMARY KEY (host, node, jid)
        ) STRICT;
        CREATE TABLE reputation (
            domain TEXT PRIMARY KEY,
            first_seen INTEGER NOT NULL,
            accepted INTEGER NOT NULL,
            declined INTEGER NOT NULL,
            reports INTEGER NOT NULL,
            refused INTEGER NOT NULL,
            stanzas INTEGER NOT NULL,
            at INTEGER NOT NULL
        ) STRICT;
        ALTER TABLE accounts ADD COLUMN member INTEGER NOT NULL DEFAULT 0;
    ",
};

/// Levels of the breaker by who set them: what a trigger pulls no longer replaces what somebody set by hand.
const LEVELS: Migration = Migration {
    name: "levels",
    sql: "
        CREATE TABLE levels (
            domain TEXT NOT NULL,
            source TEXT NOT NULL,
            level TEXT NOT NULL,
            reason TEXT NOT NULL,
            until INTEGER,
            set_by TEXT NOT NULL,
            set_at INTEGER NOT NULL,
            PRIMARY KEY (domain, source)
        ) STRICT;
        INSERT INTO levels (domain, source, level, reason, until, set_by, set_at)
            SELECT domain, CASE WHEN set_by LIKE 'trigger: %' THEN set_by ELSE '' END,
                level, reason, until, set_by, set_at FROM federation_levels;
        DROP TABLE federation_levels;
        ALTER TABLE levels RENAME TO federation_levels;
    ",
};

/// What wakes devices (see [`crate::push`]). What a device enabled goes with the device.
const PUSH: Migration = Migration {
    name: "push",
    sql: "
        CREATE TABLE push_services (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            service TEXT NOT NULL,
            node TEXT NOT NULL,
            device INTEGER NOT NULL,
            resource TEXT NOT NULL,
            options BLOB,
            secret BLOB,
            most INTEGER NOT NULL,
            enabled_at INTEGER NOT NULL,
            failures INTEGER NOT NULL,
            disabled_at INTEGER,
            reason TEXT,
            UNIQUE (account, service, node)
        ) STRICT;
        CREATE INDEX push_services_by_device ON push_services (device);
        CREATE TRIGGER push_services_of_device AFTER DELETE ON devices BEGIN
            DELETE FROM push_services WHERE device = old.id;
        END;
    ",
};

/// Nodes and what is in them (see [`crate::pubsub`]): `place` is `#` and the number of the account at whose address a
/// node is, or the domain of a service; `account` is who pays for it. `kept_for` is how long items are kept, in
/// milliseconds; `redirect` is where to look instead of a node that is gone.
const NODES: Migration = Migration {
    name: "nodes",
    sql: "
        CREATE TABLE pubsub_nodes (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            account INTEGER REFERENCES accounts (id) ON DELETE CASCADE,
            place TEXT NOT NULL,
            name TEXT NOT NULL,
            config TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            kept_for INTEGER,
            redirect TEXT,
            UNIQUE (place, name)
        ) STRICT;
        CREATE INDEX pubsub_nodes_by_account ON pubsub_nodes (account);
        CREATE INDEX pubsub_nodes_by_age ON pubsub_nodes (kept_for) WHERE kept_for IS NOT NULL;
        CREATE TABLE pubsub_items (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            node INTEGER NOT NULL REFERENCES pubsub_nodes (id) ON DELETE CASCADE,
            item TEXT NOT NULL,
            payload BLOB NOT NULL,
            publisher TEXT NOT NULL,
            at INTEGER NOT NULL,
            size INTEGER NOT NULL,
            UNIQUE (node, item)
        ) STRICT;
        CREATE INDEX pubsub_items_in_order ON pubsub_items (node, seq, size);
        CREATE INDEX pubsub_items_by_publisher ON pubsub_items (publisher);
        CREATE TABLE pubsub_subscriptions (
            node INTEGER NOT NULL REFERENCES pubsub_nodes (id) ON DELETE CASCADE,
            jid TEXT NOT NULL,
            owner TEXT NOT NULL,
            pending INTEGER NOT NULL,
            options TEXT NOT NULL,
            expires INTEGER,
            PRIMARY KEY (node, jid)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX pubsub_subscriptions_by_owner ON pubsub_subscriptions (owner);
        CREATE INDEX pubsub_subscriptions_by_end ON pubsub_subscriptions (expires) WHERE expires IS NOT NULL;
        CREATE TABLE pubsub_affiliations (
            node INTEGER NOT NULL REFERENCES pubsub_nodes (id) ON DELETE CASCADE,
            jid TEXT NOT NULL,
            affiliation TEXT NOT NULL,
            PRIMARY KEY (node, jid)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX pubsub_affiliations_by_jid ON pubsub_affiliations (jid);
    ",
};

/// What can't be sorted is set aside; nodes of services elsewhere that users are subscribed to; how much is held
/// altogether, kept by triggers because deletions cascade.
const CONSENT_BOUNDS: Migration = Migration {
    name: "consent bounds",
    sql: "
        ALTER TABLE intake ADD COLUMN aside INTEGER NOT NULL DEFAULT 0;
        CREATE TABLE subscribed_nodes (
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            hash BLOB NOT NULL,
            node BLOB NOT NULL,
            PRIMARY KEY (hash, node)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX subscribed_nodes_by_account ON subscribed_nodes (account);
        CREATE TABLE first_contact_totals (
            id INTEGER PRIMARY KEY,
            contacts INTEGER NOT NULL,
            bytes INTEGER NOT NULL
        ) STRICT;
        INSERT INTO first_contact_totals (id, contacts, bytes)
            SELECT 1, COUNT(*), COALESCE(SUM(bytes), 0) FROM first_contacts;
        CREATE TRIGGER first_contact_comes AFTER INSERT ON first_contacts BEGIN
            UPDATE first_contact_totals SET contacts = contacts + 1, bytes = bytes + new.bytes;
        END;
        CREATE TRIGGER first_contact_changes AFTER UPDATE OF bytes ON first_contacts BEGIN
            UPDATE first_contact_totals SET bytes = bytes + new.bytes - old.bytes;
        END;
        CREATE TRIGGER first_contact_goes AFTER DELETE ON first_contacts BEGIN
            UPDATE first_contact_totals SET contacts = contacts - 1, bytes = bytes - old.bytes;
        END;
    ",
};

/// Since when a report counts against the reputation of the domain that it is about, if it does. Until now the first
/// one of a reporter about a domain counted each day.
const REPORT_WEIGHT: Migration = Migration {
    name: "report weight",
    sql: "
        ALTER TABLE reports ADD COLUMN counted_at INTEGER;
        ALTER TABLE reports ADD COLUMN taken_back INTEGER NOT NULL DEFAULT 0;
        UPDATE reports SET counted_at = at WHERE id IN
            (SELECT MIN(id) FROM reports WHERE origin = 'user' GROUP BY reporter, domain, at / 86400000);
        CREATE INDEX reports_counted ON reports (reporter, domain, counted_at) WHERE counted_at IS NOT NULL;
    ",
};

/// Since when somebody follows our own list; of those before it is known when they last renewed it.
const FOLLOWERS: Migration = Migration {
    name: "followers",
    sql: "
        ALTER TABLE list_subscribers ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
        UPDATE list_subscribers SET since = at;
    ",
};

/// The hash of the picture that presence shows: `NULL`, never one; empty, none any more. And whose vCard and nodes are
/// still to be brought into step, once.
const PROFILES: Migration = Migration {
    name: "profiles",
    sql: "
        ALTER TABLE accounts ADD COLUMN avatar TEXT;
        CREATE TABLE profiles_to_adopt (
            account INTEGER PRIMARY KEY REFERENCES accounts (id) ON DELETE CASCADE
        ) STRICT;
        INSERT INTO profiles_to_adopt (account) SELECT account FROM vcards UNION SELECT account FROM pubsub_nodes
            WHERE name IN ('urn:xmpp:vcard4', 'urn:xmpp:avatar:metadata') AND place = '#' || account;
    ",
};

/// Who was here when; the message of the day, and which one an account got last.
const NOTICES: Migration = Migration {
    name: "notices",
    sql: "
        ALTER TABLE accounts ADD COLUMN last_login INTEGER;
        ALTER TABLE accounts ADD COLUMN motd INTEGER NOT NULL DEFAULT 0;
        CREATE TABLE motd (
            host INTEGER PRIMARY KEY REFERENCES hosts (id),
            id INTEGER NOT NULL,
            text TEXT NOT NULL,
            at INTEGER NOT NULL
        ) STRICT;
    ",
};

/// Messages that their senders take back (see [`crate::log::tombstones`]), until it is done: `id` is that of the
/// retraction, with which the row goes.
const RETRACTIONS: Migration = Migration {
    name: "retractions",
    sql: "
        CREATE TABLE retractions (
            id INTEGER PRIMARY KEY REFERENCES archive (id) ON DELETE CASCADE,
            account INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            outside INTEGER NOT NULL,
            peer TEXT NOT NULL,
            sent INTEGER NOT NULL,
            room INTEGER NOT NULL,
            target TEXT NOT NULL,
            name TEXT NOT NULL
        ) STRICT;
        CREATE INDEX retractions_in_turn ON retractions (outside, account, id);
        CREATE INDEX retractions_by_account ON retractions (account);
    ",
};

/// Whose quota counts a node at a service that somebody elsewhere made: that of the domain. `NULL` where an account pays.
const PAYERS: Migration = Migration {
    name: "payers",
    sql: "
        ALTER TABLE pubsub_nodes ADD COLUMN payer TEXT;
        UPDATE pubsub_nodes SET payer = COALESCE(
            (SELECT SUBSTR(a.jid, INSTR(a.jid, '@') + 1) FROM pubsub_affiliations a
                WHERE a.node = pubsub_nodes.id AND a.affiliation = 'owner' ORDER BY a.jid LIMIT 1),
            place) WHERE account IS NULL;
    ",
};
