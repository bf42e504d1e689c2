//! Components and other providers: a component's domain is ours to them, wherever the component stands.

use super::stage::{World, settle};

const NAMES: &[&str] = &["north.example", "south.example", "globe.north.example"];

async fn talk(side: &str) {
    let world = World::new(NAMES);
    let settings = [
        "components.entries.\"globe.north.example\".secret=s3cret".to_owned(),
        format!("components.entries.\"globe.north.example\".side={side}"),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let north = world.site("north.example", &settings).await;
    let south = world.site("south.example", &[]).await;
    world.also(&north, "globe.north.example");
    let mut juliet = south.person("juliet@south.example/b").await;

    // Nobody there: the sender hears of it.
    juliet
        .send("<message to='stage@globe.north.example' type='chat' id='m0'><body>anybody?</body></message>")
        .await;
    let answer = juliet.arrived().await.join("");
    assert!(answer.contains("remote-server-timeout"), "{side}: {answer}");

    let mut globe = north.component("globe.north.example", "s3cret").await;
    juliet.send("<message to='stage@globe.north.example' type='chat'><body>good day</body></message>").await;
    assert_eq!(globe.bodies().await, ["good day"], "{side}");
    globe
        .send(
            "<message from='stage@globe.north.example/puck' to='juliet@south.example' type='chat'>\
             <body>good night</body></message>",
        )
        .await;
    settle().await;
    assert_eq!(juliet.bodies().await, ["good night"], "{side}");
}

#[tokio::test(start_paused = true)]
async fn a_component_inside_talks_with_other_providers() {
    talk("inside").await;
}

#[tokio::test(start_paused = true)]
async fn a_component_outside_talks_with_other_providers() {
    talk("outside").await;
}

#[tokio::test(start_paused = true)]
async fn nobody_relays_through_us() {
    let world = World::new(&["north.example", "south.example", "globe.north.example", "west.example"]);
    let settings = [
        "components.entries.\"globe.north.example\".secret=s3cret",
        "components.entries.\"globe.north.example\".side=outside",
    ];
    let north = world.site("north.example", &settings).await;
    let _south = world.site("south.example", &[]).await;
    let mut globe = north.component("globe.north.example", "s3cret").await;
    // In another provider's name: the end of the stream.
    globe
        .send("<message from='a@west.example' to='juliet@south.example'><body>forged</body></message>")
        .await;
    let answer = globe.arrived().await.join("");
    assert!(answer.contains("invalid-from"), "{answer}");
}
