//! A removed account leaves nothing: every table of the schema has an answer here to what becomes of a person's data,
//! and the answer is tried. A new table without one fails.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use trunkline_server::admin::accounts;
use trunkline_server::schema::MIGRATIONS;
use trunkline_store::{Batch, Db, Lane, Options, Rows, Value, sql};
use trunkline_xmpp::jid::Jid;

/// What becomes of the rows of a table when the account that this is about is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Rows belong to the account in this column and go with it.
    Goes(&'static str),
    /// Rows belong to a row of another table in this column, and go with it.
    Follows(&'static str, &'static str),
    /// The account's own row.
    Account,
    /// A part of the full-text index, which has no columns of its own: a row goes with its message.
    Index,
    /// Nothing about a person stands there, or it goes by itself soon; why.
    Stays(&'static str),
}
use Answer::{Account, Follows, Goes, Index, Stays};

const ANSWERS: &[(&str, Answer)] = &[
    ("schema", Stays("the versions of the schema")),
    ("sqlite_sequence", Stays("the last id of an account, so that none is given twice")),
    ("hosts", Stays("the server's domains")),
    ("accounts", Account),
    ("credentials", Goes("account_id")),
    ("roster", Goes("account")),
    ("blocked", Goes("account")),
    ("archive", Goes("account")),
    ("archive_rules", Goes("account")),
    ("retractions", Goes("account")),
    ("archive_searched", Goes("account")),
    ("archive_words", Index),
    ("archive_words_data", Index),
    ("archive_words_idx", Index),
    ("archive_words_content", Index),
    ("archive_words_docsize", Index),
    ("archive_words_config", Index),
    ("pending", Goes("account")),
    ("outbound", Stays("on its way to another provider, for federation.queue_age at most")),
    ("vcards", Goes("account")),
    ("motd", Stays("set by the staff, for everybody")),
    ("profiles_to_adopt", Goes("account")),
    ("private_xml", Goes("account")),
    ("session_snapshots", Goes("account")),
    ("present", Goes("account")),
    ("invites", Goes("inviter")),
    ("heartbeat", Stays("shows that the disk takes writes")),
    ("audit", Stays("who of the staff did what: append-only by law of the house")),
    ("federation_rules", Stays("set by the staff, about domains")),
    ("federation_preset", Stays("set by the staff")),
    ("federation_blocks", Stays("set by the staff, about domains")),
    ("federation_levels", Stays("set by the staff, about domains")),
    ("consents", Goes("account")),
    ("consents_built", Stays("a mark that the table was filled")),
    (
        "intake",
        Stays("what came from outside and is sorted within seconds, or at the next start if it can't be"),
    ),
    ("first_contacts", Goes("account")),
    ("held", Follows("contact", "first_contacts")),
    ("first_contact_answers", Stays("counts, by domain")),
    ("first_contact_totals", Stays("counts")),
    ("subscribed_nodes", Goes("account")),
    ("peer_domains", Stays("about domains")),
    ("traffic_history", Stays("counts, by domain")),
    ("api_tokens", Stays("of programs, made by the staff")),
    ("totp", Goes("account")),
    ("devices", Goes("account")),
    ("push_services", Goes("account")),
    ("reports", Goes("account")),
    ("lists", Stays("set by the staff")),
    ("list_entries", Stays("of lists that the staff chose")),
    ("own_list", Stays("what the staff publishes")),
    ("list_subscribers", Stays("domains of other providers")),
    ("reputation", Stays("about domains")),
    ("pubsub_nodes", Goes("account")),
    ("pubsub_items", Follows("node", "pubsub_nodes")),
    ("pubsub_subscriptions", Follows("node", "pubsub_nodes")),
    ("pubsub_affiliations", Follows("node", "pubsub_nodes")),
];

const DOOMED: &str = "doomed-secret";
const KEPT: &str = "kept-secret";

/// Statements are static, and these are made of the schema.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

async fn read(db: &Db, text: String) -> Rows {
    db.read(sql(leak(text))).await.unwrap()
}

async fn tables(db: &Db) -> BTreeSet<String> {
    let rows = read(db, "SELECT name FROM sqlite_schema WHERE type = 'table'".to_owned()).await;
    rows.iter().map(|row| row.text(0).to_owned()).collect()
}

/// The answers for the tables that there are.
async fn answers(db: &Db) -> Vec<(&'static str, Answer)> {
    let tables = tables(db).await;
    ANSWERS.iter().filter(|(table, _)| tables.contains(*table)).copied().collect()
}

/// A row with this mark in every column that takes one.
async fn fill(db: &Db, table: &str, (owner, id): (&str, i64), mark: &str) {
    let keys = read(db, format!("SELECT \"from\", \"table\" FROM pragma_foreign_key_list('{table}')")).await;
    let columns = read(db, format!("SELECT name, type FROM pragma_table_info('{table}')")).await;
    let mut values: Vec<Value> = Vec::new();
    for column in columns.iter() {
        let name = column.text(0);
        let refers = keys.iter().find(|key| key.text(0) == name).map(|key| key.text(1));
        values.push(match (refers, column.text(1)) {
            _ if name == owner => id.into(),
            (Some("accounts"), _) => id.into(),
            (Some("hosts"), _) => 1.into(),
            (Some(_), _) => id.into(),
            // Of the archive: what is only kept for delivery is not searched.
            (None, "INTEGER") if name == "flags" => 0.into(),
            (None, "INTEGER") => id.into(),
            (None, "BLOB") => mark.as_bytes().to_vec().into(),
            (None, _) => mark.into(),
        });
    }
    let names: Vec<&str> = columns.iter().map(|column| column.text(0)).collect();
    let places: Vec<String> = (1..=names.len()).map(|number| format!("?{number}")).collect();
    let text = format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), places.join(", "));
    let statement = values.into_iter().fold(sql(leak(text)), |statement, value| statement.bind(value));
    db.run(Batch::new(Lane::Inside).with(statement)).await.unwrap_or_else(|error| panic!("{table}: {error}"));
}

/// Rows with the mark in any column.
async fn marked(db: &Db, table: &str, mark: &str) -> i64 {
    let columns = read(db, format!("SELECT name FROM pragma_table_info('{table}')")).await;
    let anywhere: Vec<String> = columns
        .iter()
        .map(|column| format!("INSTR(CAST(\"{}\" AS BLOB), CAST('{mark}' AS BLOB)) > 0", column.text(0)))
        .collect();
    let rows = read(db, format!("SELECT COUNT(*) FROM {table} WHERE {}", anywhere.join(" OR "))).await;
    rows.first().unwrap().int(0)
}

#[tokio::test]
async fn every_table_has_an_answer() {
    let db = Db::open(Options::memory(MIGRATIONS)).unwrap();
    let answered: BTreeSet<String> = ANSWERS.iter().map(|(table, _)| (*table).to_owned()).collect();
    let without: Vec<String> = tables(&db).await.difference(&answered).cloned().collect();
    assert!(
        without.is_empty(),
        "what becomes of a removed person's data in {without:?}? ANSWERS does not say"
    );
    for (table, answer) in answers(&db).await {
        let text = format!("SELECT \"from\", \"table\", on_delete FROM pragma_foreign_key_list('{table}')");
        let keys = read(&db, text).await;
        for key in keys.iter().filter(|key| key.text(1) == "accounts") {
            assert_eq!(
                (answer, key.text(2)),
                (Goes(leak(key.text(0).to_owned())), "CASCADE"),
                "{table} refers to accounts"
            );
        }
        let cascades = keys.iter().any(|key| key.text(1) == "accounts");
        assert_eq!(matches!(answer, Goes(_)), cascades, "{table}: {answer:?}");
        if let Follows(column, other) = answer {
            let follows = |key: trunkline_store::Row<'_>| {
                (key.text(0), key.text(1), key.text(2)) == (column, other, "CASCADE")
            };
            assert!(keys.iter().any(follows), "{table} does not follow {other}");
        }
    }
}

#[tokio::test]
async fn nothing_of_a_removed_account_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("erasure.db");
    let db = Db::open(Options::file(&file, MIGRATIONS)).unwrap();
    let host = sql("INSERT INTO hosts (id, name) VALUES (1, 'north.example')");
    db.run(Batch::new(Lane::Inside).with(host)).await.unwrap();
    for (id, mark) in [(7, DOOMED), (8, KEPT)] {
        let account = sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (?1, 1, ?2, 0)");
        db.run(Batch::new(Lane::Inside).with(account.bind(id).bind(mark))).await.unwrap();
        for (table, answer) in answers(&db).await {
            match answer {
                Goes(owner) => fill(&db, table, (owner, id), mark).await,
                // Numbers that are not chosen are the account's: so its rows in the other table have them too.
                Follows(column, _) => fill(&db, table, (column, id), mark).await,
                Account | Index | Stays(_) => {}
            }
        }
        let words = sql("INSERT INTO archive_words (rowid, owner, body) VALUES (?1, 'a', ?2)");
        db.run(Batch::new(Lane::Inside).with(words.bind(id).bind(mark))).await.unwrap();
    }
    assert_eq!(marked(&db, "archive_words_content", DOOMED).await, 1);

    let doomed = Jid::parse(&format!("{DOOMED}@north.example")).unwrap();
    accounts::remove(&db, &doomed, None).await.unwrap();

    for (table, answer) in answers(&db).await {
        assert_eq!(marked(&db, table, DOOMED).await, 0, "{table} remembers");
        if let Goes(owner) | Follows(owner, _) = answer {
            let rows = read(&db, format!("SELECT {owner} FROM {table}")).await;
            let owners: Vec<i64> = rows.iter().map(|row| row.int(0)).collect();
            assert_eq!(owners, [8], "{table}: the other account's row stays");
        }
    }
    assert_eq!(marked(&db, "archive_words_content", KEPT).await, 1);
    let found = read(&db, "SELECT rowid FROM archive_words WHERE archive_words MATCH 'secret'".into()).await;
    assert_eq!(found.iter().map(|row| row.int(0)).collect::<Vec<_>>(), [8]);

    // Overwritten, not only unlinked: closing copies the log into the file and removes it.
    db.shutdown();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let mark = DOOMED.as_bytes();
        assert!(!bytes.windows(mark.len()).any(|part| part == mark), "the file remembers");
    }
}
