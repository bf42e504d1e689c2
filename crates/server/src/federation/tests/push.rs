//! XEP-0357 between two providers: the push service of an app is mostly elsewhere.

use super::stage::{World, settle};

#[tokio::test(start_paused = true)]
async fn a_push_goes_to_another_provider_and_its_answer_comes_back() {
    let world = World::new(&["north.example", "south.example"]);
    let north = world.site("north.example", &[]).await;
    let south = world.site("south.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = north.person("juliet@north.example/b").await;
    // A service may be a client of its provider. It lets the other server in.
    let mut app = south.person("app@south.example/gate").await;
    app.send("<presence to='north.example'/>").await;
    settle().await;
    app.arrived().await;
    for (id, jid) in [("e1", "app@south.example/gate"), ("e2", "push.nowhere.example")] {
        juliet
            .send(&format!(
                "<iq type='set' id='{id}'><enable xmlns='urn:xmpp:push:0' jid='{jid}' node='phone'/></iq>"
            ))
            .await;
        assert!(juliet.arrived().await.join("").contains("type='result'"));
    }
    juliet.send("</stream:stream>").await;
    romeo.send("<message to='juliet@north.example' type='chat' id='m1'><body>secret</body></message>").await;
    settle().await;
    let told = app.arrived().await.join("");
    assert!(told.contains("from='north.example'") && told.contains("<publish node='phone'>"), "{told}");
    assert!(!told.contains("secret") && !told.contains("romeo"), "{told}");
    let id = told.split_once(" id='").unwrap().1.split('\'').next().unwrap().to_owned();
    // Nobody else answers in its name.
    let mut iago = south.person("iago@south.example/tent").await;
    iago.send(&format!("<iq type='result' id='{id}' to='north.example'/>")).await;
    settle().await;
    let counted = |wanted: &str| north.exchange().metrics.encode().contains(wanted);
    assert!(!counted("trunkline_pushes_total{result=\"sent\"}"));
    app.send(&format!("<iq type='result' id='{id}' to='north.example'/>")).await;
    settle().await;
    assert!(counted("trunkline_pushes_total{result=\"sent\"} 1"), "{}", north.exchange().metrics.encode());
    // The other one is not there, which is no matter of the first.
    tokio::time::sleep(std::time::Duration::from_secs(35)).await;
    settle().await;
    assert!(counted("trunkline_pushes_total{result=\"failed\"}"));
    romeo.send("<message to='juliet@north.example' type='chat' id='m2'><body>two</body></message>").await;
    settle().await;
    assert!(app.arrived().await.join("").contains("<publish node='phone'>"));
}
