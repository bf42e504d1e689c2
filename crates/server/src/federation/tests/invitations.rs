//! XEP-0379 between providers: a link makes two people contacts, whoever of them is online where.

use super::stage::{World, settle};

#[tokio::test(start_paused = true)]
async fn a_link_makes_contacts_across_providers() {
    let world = World::new(&["north.example", "south.example"]);
    let north = world.site("north.example", &[]).await;
    let south = world.site("south.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    romeo
        .send(
            "<iq type='set' id='i' to='north.example'>\
             <command xmlns='http://jabber.org/protocol/commands' node='urn:xmpp:invite#invite'/></iq>",
        )
        .await;
    let answer = romeo.arrived().await.join("");
    let (_, rest) = answer.split_once("roster;preauth=").unwrap();
    let (token, _) = rest.split_once("</value>").unwrap();

    // XEP-0379 s.3.4: Juliet's client approves beforehand, then asks with the token.
    juliet
        .send(&format!(
            "<presence to='romeo@north.example' type='subscribed'/>\
             <presence to='romeo@north.example' type='subscribe'><preauth xmlns='urn:xmpp:pars:0' token='{token}'/></presence>"
        ))
        .await;
    settle().await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("type='subscribed'") && seen.contains("romeo@north.example/a"), "{seen}");
    let seen = romeo.arrived().await.join("");
    assert!(!seen.contains("type='subscribe'") && seen.contains("juliet@south.example/b"), "{seen}");

    for (person, contact) in [(&mut romeo, "juliet@south.example"), (&mut juliet, "romeo@north.example")] {
        person.send("<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq>").await;
        let roster = person.arrived().await.join("");
        assert!(roster.contains(contact) && roster.contains("subscription='both'"), "{roster}");
    }

    // The token is used up: the next one waits for Romeo's own decision.
    let mut tybalt = south.person("tybalt@south.example/c").await;
    tybalt
        .send(&format!(
            "<presence to='romeo@north.example' type='subscribe'><preauth xmlns='urn:xmpp:pars:0' token='{token}'/></presence>"
        ))
        .await;
    settle().await;
    assert!(tybalt.arrived().await.iter().all(|xml| !xml.contains("type='subscribed'")));
    assert!(romeo.arrived().await.join("").contains("type='subscribe'"));
}

#[tokio::test(start_paused = true)]
async fn commands_are_not_for_other_providers() {
    let world = World::new(&["north.example", "south.example"]);
    let north = world.site("north.example", &["accounts.admins=[\"romeo@north.example\"]"]).await;
    let south = world.site("south.example", &[]).await;
    let _romeo = north.person("romeo@north.example/a").await;
    let mut iago = south.person("iago@south.example/b").await;
    for node in ["urn:xmpp:invite#invite", "http://jabber.org/protocol/admin#add-user"] {
        iago.send(&format!(
            "<iq type='set' id='i' to='north.example'><command xmlns='http://jabber.org/protocol/commands' node='{node}'/></iq>"
        ))
        .await;
        settle().await;
        let answer = iago.arrived().await.join("");
        assert!(answer.contains("<forbidden"), "{node}: {answer}");
    }
    iago.send(
        "<iq type='get' id='d' to='north.example'><query xmlns='http://jabber.org/protocol/disco#items' \
         node='http://jabber.org/protocol/commands'/></iq>\
         <iq type='set' id='r' to='north.example'><query xmlns='jabber:iq:register'><remove/></query></iq>",
    )
    .await;
    settle().await;
    let answers = iago.arrived().await.join("");
    // What a peer may ask for is its own standing.
    assert_eq!(answers.matches("<item").count(), 1, "{answers}");
    assert!(answers.contains("node='https://trunkline.im/protocol/standing'"), "{answers}");
    assert!(answers.contains("<service-unavailable"), "{answers}");
}
