//! The engine within a whole server, in memory: bounds that take many people, and who waits for whom.

use std::path::Path;
use std::time::Duration;

use trunkline_store::{Batch, sql};
use trunkline_xml::{Element, Writer};
use trunkline_xmpp::rsm;

use super::config::Filled;
use super::*;
use crate::admin::Password;
use crate::admin::accounts::{self, NewAccount};
use crate::config::Config;
use crate::ids::Clock;
use crate::serve::{Parts, Server};

struct Stage(Arc<Server>);

impl Stage {
    async fn new() -> Stage {
        let text = "domain = \"north.example\"\ndata_dir = \"/nonexistent\"\n[accounts]\npassword_iterations = 4096\n";
        let config = Config::parse(text, Path::new("/nonexistent/trunkline.toml")).unwrap();
        let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
        let stage = Stage(Server::start(config, parts).await.unwrap());
        for name in ["romeo", "juliet"] {
            let jid = jid(&format!("{name}@north.example"));
            let new = NewAccount { jid: &jid, password: &Password::new("x"), iterations: 4096, now: 0 };
            accounts::add(&stage.exchange().db, new, None).await.unwrap();
        }
        stage
    }

    fn exchange(&self) -> &Arc<Exchange> {
        self.0.exchange()
    }

    /// Somebody at the service, or at an account.
    async fn desk(&self, who: &str, place: &str) -> Desk {
        let exchange = Arc::clone(self.exchange());
        let place = match exchange.pubsub.service(place) {
            Some(service) => Place::Service(Arc::clone(service)),
            None => {
                let account = exchange.accounts.load(&exchange.db, &jid(place)).await.unwrap().unwrap();
                Place::Account(Arc::clone(&account))
            }
        };
        let who = jid(who);
        let lane = if exchange.host(who.domain()).is_some() { Lane::Inside } else { Lane::Outside };
        Desk { exchange, place, who, lane, ours: false }
    }

    async fn run(&self, statement: &'static str) {
        self.exchange().db.run(Batch::new(Lane::Inside).with(sql(statement))).await.unwrap();
    }
}

const SERVICE: &str = "pubsub.north.example";

fn jid(text: &str) -> Jid {
    Jid::parse(text).unwrap()
}

fn item(id: &str) -> Vec<NewItem> {
    vec![NewItem { id: Some(id.to_owned()), payload: b"<e xmlns='urn:e'/>".to_vec() }]
}

fn access(model: &str) -> Filled {
    let form = format!(
        "<c><x xmlns='jabber:x:data' type='submit'><field var='pubsub#access_model'><value>{model}</value></field></x></c>"
    );
    let element = Element::parse(form, trunkline_xmpp::ns::CLIENT).unwrap();
    Filled::read(element.root(), "").unwrap()
}

async fn subscribe(desk: &Desk, node: &str) -> Result<(), StanzaError> {
    desk.subscribe(node, desk.who.clone(), Filled::Nothing).await.map(drop)
}

/// The specific condition, and what it says to people.
fn refused(result: Result<(), StanzaError>) -> String {
    let error = result.unwrap_err();
    let app = String::from_utf8(error.app.unwrap_or_default().to_vec()).unwrap();
    format!("{app} {}", error.text.unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_node_a_domain_and_a_person_have_their_share_of_subscriptions() {
    let stage = Stage::new().await;
    let romeo = stage.desk("romeo@north.example/x", SERVICE).await;
    romeo.create(Some("news"), Filled::Nothing).await.unwrap();
    // 999 of one domain elsewhere; a longer name that ends like it is another one.
    stage
        .run(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999) \
             INSERT INTO pubsub_subscriptions (node, jid, owner, pending, options) SELECT (SELECT id FROM pubsub_nodes), \
             'u' || i || '@one.example', 'u' || i || '@one.example', 0, '{}' FROM n",
        )
        .await;
    let of_one = stage.desk("last@one.example/x", SERVICE).await;
    subscribe(&of_one, "news").await.unwrap();
    let of_one = stage.desk("more@one.example/x", SERVICE).await;
    let text = refused(subscribe(&of_one, "news").await);
    assert!(text.contains("too-many-subscriptions") && text.contains("and 0 more are possible;"), "{text}");
    subscribe(&stage.desk("a@sub.one.example/x", SERVICE).await, "news").await.unwrap();
    // 5,000 altogether.
    stage
        .run(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3998) \
             INSERT INTO pubsub_subscriptions (node, jid, owner, pending, options) SELECT (SELECT id FROM pubsub_nodes), \
             'u@d' || i || '.example', 'u@d' || i || '.example', 0, '{}' FROM n",
        )
        .await;
    let juliet = stage.desk("juliet@north.example/x", SERVICE).await;
    subscribe(&juliet, "news").await.unwrap();
    let text = refused(subscribe(&romeo, "news").await);
    assert!(text.contains("too-many-subscriptions") && text.contains("and 0 more are possible;"), "{text}");
    // Who is subscribed may change their options all the same, and whoever goes makes room.
    subscribe(&juliet, "news").await.unwrap();
    juliet.unsubscribe("news", &juliet.who).await.unwrap();
    subscribe(&romeo, "news").await.unwrap();
    // An owner is bound as well.
    let wanted = vec![(jid("juliet@north.example"), "subscribed".to_owned())];
    let text = refused(romeo.set_subscriptions("news", wanted).await);
    assert!(text.contains("5000 subscribers at most; 0 more"), "{text}");
    // All of them are told, each once.
    let opened = romeo.open("news").await.unwrap();
    assert_eq!(romeo.everybody(&opened.node).await.len(), 5000);
    // 500 of one person.
    stage
        .run(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) \
             INSERT INTO pubsub_nodes (place, name, config, created_at) SELECT 'pubsub.north.example', 'n' || i, \
             '{\"access\":\"open\"}', 0 FROM n",
        )
        .await;
    stage
        .run(
            "INSERT INTO pubsub_subscriptions (node, jid, owner, pending, options) SELECT id, 'juliet@north.example', \
             'juliet@north.example', 0, '{}' FROM pubsub_nodes WHERE name LIKE 'n_%' AND name <> 'n1' AND name <> 'news'",
        )
        .await;
    subscribe(&juliet, "n1").await.unwrap();
    let romeos = Box::pin(romeo.create(Some("another"), Filled::Nothing)).await.unwrap();
    let text = refused(subscribe(&juliet, &romeos).await);
    assert!(text.contains("too-many-subscriptions") && text.ends_with("and 0 more are possible."), "{text}");
}

/// Whoever has a right, or none, to do something at a place that somebody is changing just now.
#[tokio::test(start_paused = true)]
async fn who_may_not_takes_no_turn() {
    let stage = Stage::new().await;
    let pubsub = &stage.exchange().pubsub;
    let own = stage.desk("romeo@north.example/x", "romeo@north.example").await;
    own.publish("urn:n", item("1"), Terms::Any).await.unwrap();
    let romeo = stage.desk("romeo@north.example/x", SERVICE).await;
    romeo.publish("news", item("1"), Terms::Any).await.unwrap();
    let payer = romeo.payer().await.unwrap();
    let held = [pubsub.turn(&own.place.key()).await, pubsub.turn(&format!("{SERVICE} {payer}")).await];
    let soon = Duration::from_secs(3600);
    for who in ["juliet@north.example/x", "iago@south.example/x"] {
        for (place, node) in [("romeo@north.example", "urn:n"), (SERVICE, "news")] {
            let desk = stage.desk(who, place).await;
            let told = tokio::time::timeout(soon, async {
                vec![
                    desk.publish(node, item("2"), Terms::Any).await.map(drop),
                    desk.retract(node, &["1".to_owned()], true).await,
                    desk.purge(node).await,
                    desk.delete(node, None).await,
                    desk.configure(node, access("open")).await,
                    desk.set_affiliations(node, vec![(jid(who), Affiliation::Owner)]).await,
                    desk.set_subscriptions(node, vec![(jid(who), "subscribed".into())]).await,
                ]
            });
            for told in told.await.expect("nobody waits who may not") {
                assert_eq!(told.unwrap_err().condition, Condition::Forbidden, "{who} at {place}");
            }
        }
    }
    // Who may does wait, and at a service for those only whose nodes the same account pays for.
    for desk in [&own, &romeo] {
        let node = if desk.is_own() { "urn:n" } else { "news" };
        let waits = tokio::time::timeout(soon, desk.publish(node, item("3"), Terms::Any)).await;
        assert!(waits.is_err(), "it is not done while somebody else changes the node");
    }
    let juliet = stage.desk("juliet@north.example/x", SERVICE).await;
    juliet.publish("hers", item("1"), Terms::Any).await.unwrap();
    // Nor do those wait who subscribe; and who is at home here does not wait for those who are not.
    let from_outside = stage.desk("iago@south.example/x", SERVICE).await;
    let outside = from_outside.turn_of_subscribers("news").await;
    subscribe(&juliet, "news").await.unwrap();
    assert!(tokio::time::timeout(soon, subscribe(&from_outside, "news")).await.is_err());
    drop(outside);
    subscribe(&from_outside, "news").await.unwrap();
    drop(held);
    own.publish("urn:n", item("3"), Terms::Any).await.unwrap();
    romeo.publish("news", item("3"), Terms::Any).await.unwrap();
}

/// Domains elsewhere pay for what is made in their names, each for itself, and together they leave room for others.
#[tokio::test(start_paused = true)]
async fn each_domain_elsewhere_pays_for_itself() {
    let stage = Stage::new().await;
    let db = &stage.exchange().db;
    let iago = stage.desk("iago@south.example/x", SERVICE).await;
    let west = stage.desk("nurse@west.example/x", SERVICE).await;
    let romeo = stage.desk("romeo@north.example/x", SERVICE).await;
    let make = async |desk: &Desk, name: &str| {
        let mut batch = Batch::new(Lane::Inside);
        desk.create_in(&mut batch, name, &desk.default_config()).await.map(drop)?;
        db.run(batch).await.unwrap();
        Ok::<(), StanzaError>(())
    };
    make(&iago, "his").await.unwrap();
    // Who waits for whom.
    let payer = iago.open("his").await.unwrap().node.payer;
    assert_eq!(payer, Payer::Domain("south.example".into()));
    let held = stage.exchange().pubsub.turn(&format!("{SERVICE} {payer}")).await;
    make(&west, "hers").await.unwrap();
    west.publish("hers", item("1"), Terms::Any).await.unwrap();
    let waits =
        tokio::time::timeout(Duration::from_secs(3600), iago.publish("his", item("1"), Terms::Any)).await;
    assert!(waits.is_err(), "the domain's turn is taken");
    drop(held);
    // All bytes of one domain are none of another's; ten domains' worth is what there is for all of them.
    let full = "INSERT INTO pubsub_items (node, item, payload, publisher, at, size) SELECT id, 'big', x'', '', 0, \
                16000000 FROM pubsub_nodes WHERE name = 'hers'";
    stage.run(full).await;
    west.publish("hers", item("2"), Terms::Any).await.unwrap_err();
    iago.publish("his", item("1"), Terms::Any).await.unwrap();
    stage.run("UPDATE pubsub_items SET size = 160000000 WHERE item = 'big'").await;
    iago.publish("his", item("2"), Terms::Any).await.unwrap_err();
    romeo.publish("ours", item("1"), Terms::Any).await.unwrap();
    // Nodes alike: 500 of one, 5,000 of all.
    stage
        .run(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 499) \
             INSERT INTO pubsub_nodes (place, name, config, created_at, payer) SELECT 'pubsub.north.example', \
             'n' || i, '{}', 0, 'west.example' FROM n",
        )
        .await;
    assert_eq!(make(&west, "more").await.unwrap_err().condition, Condition::ResourceConstraint);
    make(&iago, "more").await.unwrap();
    stage
        .run(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4498) \
             INSERT INTO pubsub_nodes (place, name, config, created_at, payer) SELECT 'pubsub.north.example', \
             'm' || i, '{}', 0, i || '.example' FROM n",
        )
        .await;
    assert_eq!(make(&iago, "most").await.unwrap_err().condition, Condition::ResourceConstraint);
    make(&romeo, "most").await.unwrap();
}

/// Who could not be noted as a subscriber is asked about when they come again.
#[tokio::test(start_paused = true)]
async fn who_is_not_on_the_disk_was_not_asked_about() {
    let stage = Stage::new().await;
    let romeo = stage.desk("romeo@north.example/x", SERVICE).await;
    romeo.create(Some("club"), access("authorize")).await.unwrap();
    let juliet = stage.desk("juliet@north.example/x", SERVICE).await;
    stage
        .run(
            "CREATE TRIGGER refuse BEFORE INSERT ON pubsub_subscriptions BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .await;
    subscribe(&juliet, "club").await.unwrap_err();
    stage.run("DROP TRIGGER refuse").await;
    let node = juliet.open("club").await.unwrap().node;
    let asking = || stage.exchange().pubsub.approvals.ask(&juliet.person(&node), juliet.now());
    assert_eq!(asking(), approvals::Asking::Now);
    assert_eq!(asking(), approvals::Asking::Asked);
}

/// What somebody decides at the same moment is not undone.
#[tokio::test(start_paused = true)]
async fn two_at_once() {
    let stage = Stage::new().await;
    let romeo = stage.desk("romeo@north.example/x", SERVICE).await;
    let juliet = stage.desk("juliet@north.example/x", SERVICE).await;
    romeo.create(Some("club"), access("authorize")).await.unwrap();
    subscribe(&juliet, "club").await.unwrap();
    let opened = juliet.open("club").await.unwrap();
    // Approved between the moment when her request was looked at and the one when it is written.
    let mut again = opened.subscriptions[0].clone();
    assert!(again.pending);
    again.options.deliver = false;
    let db = &stage.exchange().db;
    let approve = subscribe::approve(&opened.node, &juliet.who);
    db.run(Batch::new(Lane::Inside).with(approve)).await.unwrap();
    db.run(Batch::new(Lane::Inside).with(subscribe::put(&opened.node, &again))).await.unwrap();
    let now = juliet.open("club").await.unwrap();
    assert!(now.is_subscribed() && !now.subscriptions[0].options.deliver);
    // The node went meanwhile: nothing is written for what is there no more.
    romeo.delete("club", Some("xmpp:elsewhere.example")).await.unwrap();
    let late = db.run(Batch::new(Lane::Inside).with(subscribe::put(&opened.node, &again))).await;
    assert!(matches!(late, Err(trunkline_store::StoreError::Conflict)));
    // Two make a node of the same name: there is one, and it is its first maker's.
    let mut batch = Batch::new(Lane::Inside);
    let config = romeo.default_config();
    romeo.create_in(&mut batch, "both", &config).await.unwrap();
    juliet.create(Some("both"), Filled::Nothing).await.unwrap();
    assert!(matches!(db.run(batch).await, Err(trunkline_store::StoreError::Conflict)));
    assert_eq!(romeo.open("both").await.unwrap().affiliation, Affiliation::None);
}

/// The nodes or items in an answer, and the ends of its page.
fn listed(w: Writer, attr: &str) -> (Vec<String>, Option<(String, String)>) {
    let text = format!("<q>{}</q>", String::from_utf8(w.finish()).unwrap());
    let element = Element::parse(text, trunkline_xmpp::ns::DISCO_ITEMS).unwrap();
    let items = element.root().children().filter(|child| child.name() == "item");
    let items = items.map(|item| item.attr(attr).unwrap().into_owned()).collect();
    let set = element.root().child(trunkline_xmpp::ns::RSM, "set");
    let end = |name| set?.child(trunkline_xmpp::ns::RSM, name).map(|end| end.text().into_owned());
    (items, end("first").zip(end("last")))
}

/// However many nodes there are: all of them are found page by page, those that are not for everybody by those only for
/// whom they are.
#[tokio::test(start_paused = true)]
async fn many_nodes_are_listed_page_by_page() {
    let stage = Stage::new().await;
    stage
        .run(
            "WITH RECURSIVE n (i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 2999) \
             INSERT INTO pubsub_nodes (place, name, config, created_at) SELECT 'pubsub.north.example', 'n' || i, \
             CASE WHEN i % 4 = 0 THEN '{\"access\":\"open\"}' ELSE '{\"access\":\"whitelist\"}' END, 0 FROM n",
        )
        .await;
    let juliet = stage.desk("juliet@north.example/x", SERVICE).await;
    let page = async |page: Option<rsm::Request>| {
        let mut w = Writer::new();
        juliet.list_nodes(page, &mut w).await.unwrap();
        listed(w, "node")
    };
    let (all, ends) = page(None).await;
    assert_eq!((all.len(), all[0].as_str(), all[499].as_str(), ends), (500, "n1000", "n2996", None));
    let of = |max: usize| rsm::Request { max: Some(max), ..rsm::Request::default() };
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let (nodes, ends) = page(Some(rsm::Request { after, ..of(150) })).await;
        let Some((first, last)) = ends else { break };
        assert_eq!((&nodes[0], &nodes[nodes.len() - 1]), (&first, &last));
        found.extend(nodes);
        after = Some(last);
    }
    assert_eq!(found, all);
    let (nodes, _) = page(Some(rsm::Request { before: Some(String::new()), ..of(2) })).await;
    assert_eq!(nodes, ["n2992", "n2996"]);
    let (nodes, _) = page(Some(rsm::Request { before: Some("n2992".into()), ..of(2) })).await;
    assert_eq!(nodes, ["n2984", "n2988"]);
    // What is cut off without a word about pages says where to go on.
    stage.run("UPDATE pubsub_nodes SET config = '{\"access\":\"open\"}' WHERE name = 'n2999'").await;
    let (nodes, ends) = page(None).await;
    assert_eq!((nodes.len(), ends.unwrap().1.as_str()), (500, "n2996"));
    // Items, newest first.
    let romeo = stage.desk("romeo@north.example/x", SERVICE).await;
    for id in ["a", "b", "c", "d"] {
        romeo.publish("news", item(id), Terms::Any).await.unwrap();
    }
    let page = async |page: Option<rsm::Request>| {
        let mut w = Writer::new();
        juliet.list_items("news", page, &mut w).await.map(|()| listed(w, "name").0)
    };
    assert_eq!(page(None).await.unwrap(), ["d", "c", "b", "a"]);
    assert_eq!(page(Some(rsm::Request { after: Some("d".into()), ..of(2) })).await.unwrap(), ["c", "b"]);
    assert_eq!(page(Some(rsm::Request { before: Some("b".into()), ..of(1) })).await.unwrap(), ["c"]);
    assert_eq!(page(Some(rsm::Request { before: Some(String::new()), ..of(2) })).await.unwrap(), ["b", "a"]);
    let gone = page(Some(rsm::Request { after: Some("x".into()), ..of(2) })).await;
    assert_eq!(gone.unwrap_err().condition, Condition::ItemNotFound);
}
