//! The disk is full: what cannot be kept is refused by name, everybody stays online, and when there is room again all
//! goes on without a restart. Nothing that was acknowledged is missing.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use trunkline_server::ids::Clock;
use trunkline_store::testvfs::Survival;
use trunkline_store::{Batch, Lane, Options, sql};

use super::world::{Person, World, message_ids, paused};

/// More than a commit of one message takes.
const LITTLE: usize = 128 * 1024;

#[test]
fn a_full_disk_refuses_and_recovers() {
    paused(async {
        let mut world = World::new();
        world.start().await.unwrap();
        world.add(&["romeo", "juliet", "nurse"]).await;
        let mut fill = Filling::begin(&world).await;
        for round in 0..3 {
            world.disk.set_capacity(Some(world.disk.used() + LITTLE));
            fill.until_refused(round).await;
            fill.chat_goes_on(&world).await;
            assert!(!Filling::is_store_well(&world).await, "a full disk and all is well");
            world.disk.set_capacity(None);
            fill.there_is_room().await;
            assert!(Filling::is_store_well(&world).await);
        }
        fill.all_is_there(&mut world).await;
        // And it is all on the disk.
        world.kill();
        world.disk.power_on(Survival::Nothing);
        world.start().await.unwrap();
        world.db().check().await.unwrap();
    });
}

/// XEP-0357: nobody is woken for what is not on the disk.
#[test]
fn nobody_is_woken_for_what_could_not_be_kept() {
    paused(async {
        let mut world = World::new();
        world.start().await.unwrap();
        world.add(&["romeo", "juliet", "nurse"]).await;
        let mut fill = Filling::begin(&world).await;
        // A service that can't be reached: each try is counted.
        let service = sql(
            "INSERT INTO push_services (account, service, node, device, resource, most, enabled_at, \
             failures) SELECT id, 'push.nowhere.example', 'n', 0, 'r', 0, 0, 0 FROM accounts WHERE local = 'nurse'",
        );
        world.db().run(Batch::new(Lane::Inside).with(service)).await.unwrap();
        let tried =
            |world: &World| world.server().exchange().metrics.encode().contains("trunkline_pushes_total{");
        // No room for a message of this size.
        world.disk.set_capacity(Some(world.disk.used()));
        let body = "wherefore ".repeat(10_000);
        let message =
            format!("<message type='chat' to='nurse@north.localhost' id='b'><body>{body}</body></message>");
        fill.romeo.send(&message).await;
        assert_eq!(fill.errors().await, 1, "it was refused");
        assert!(!tried(&world), "woken for what was refused");
        world.disk.set_capacity(None);
        for _ in 0..5 {
            fill.there_is_room().await;
        }
        assert!(tried(&world), "woken for what is kept");
    });
}

/// The system's own errors, on a real file system of a few megabytes. Only root can make one.
#[test]
fn a_full_file_system_refuses_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::new(directory.path()) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::with_clock(Clock::System);
        let database = directory.path().join("trunkline.sqlite");
        world.options = Options::file(&database, trunkline_server::schema::MIGRATIONS);
        world.start().await.unwrap();
        world.add(&["romeo", "juliet", "nurse"]).await;
        let mut fill = Filling::begin(&world).await;
        let ballast = directory.path().join("ballast");
        for round in 0..2 {
            // Somebody else takes all the room, to the last byte.
            let mut size = 8 << 20;
            while size > 0 {
                use std::io::Write as _;
                let file = std::fs::File::options().create(true).append(true).open(&ballast).unwrap();
                if (&file).write_all(&vec![1; size]).is_err() {
                    size /= 2;
                }
            }
            fill.until_refused(round).await;
            fill.chat_goes_on(&world).await;
            assert!(!Filling::is_store_well(&world).await, "a full disk and all is well");
            std::fs::remove_file(&ballast).unwrap();
            fill.there_is_room().await;
        }
        fill.all_is_there(&mut world).await;
        world.stop().await;
        world.start().await.unwrap();
        world.db().check().await.unwrap();
        world.stop().await;
    });
}

struct Filling {
    romeo: Person,
    juliet: Person,
    next: u32,
    sent: Vec<String>,
    refused: BTreeSet<String>,
    seen_by_juliet: Vec<String>,
}

impl Filling {
    async fn begin(world: &World) -> Filling {
        let mut fill = Filling {
            romeo: Person::new("romeo@north.localhost/orchard"),
            juliet: Person::new("juliet@north.localhost/balcony"),
            next: 0,
            sent: Vec::new(),
            refused: BTreeSet::new(),
            seen_by_juliet: Vec::new(),
        };
        assert!(fill.romeo.online(world).await && fill.juliet.online(world).await);
        for _ in 0..5 {
            fill.there_is_room().await;
        }
        fill
    }

    /// To Juliet, who is there, and to her nurse, who is not; until three in a row come back.
    async fn until_refused(&mut self, round: u32) {
        let mut in_a_row = 0;
        for _ in 0..2000 {
            for to in ["juliet", "nurse"] {
                self.message(to).await;
            }
            in_a_row = if self.errors().await > 0 { in_a_row + 1 } else { 0 };
            if in_a_row == 3 {
                // What is acknowledged includes what was refused: both are handled.
                self.romeo.ask().await;
                self.errors().await;
                assert_eq!(self.romeo.counts.as_ref().unwrap().unacked.len(), 0, "round {round}");
                return;
            }
        }
        panic!("the disk never was full");
    }

    async fn message(&mut self, to: &str) {
        self.next += 1;
        let id = format!("{to}{}", self.next);
        let body = "wherefore ".repeat(100);
        let to = format!("{to}@north.localhost");
        self.romeo
            .send(&format!("<message type='chat' to='{to}' id='{id}'><body>{body}</body></message>"))
            .await;
        self.sent.push(id);
    }

    /// Takes in what came back. Each is a resource-constraint, type wait: the sender may try again.
    async fn errors(&mut self) -> usize {
        let came = self.romeo.all().await;
        let mut new = 0;
        for element in came.iter().filter(|element| element.root().name() == "message") {
            let root = element.root();
            assert_eq!(root.attr("type").as_deref(), Some("error"));
            let error = root.child("jabber:client", "error").unwrap();
            assert_eq!(error.attr("type").as_deref(), Some("wait"));
            assert!(error.child("urn:ietf:params:xml:ns:xmpp-stanzas", "resource-constraint").is_some());
            self.refused.insert(root.attr("id").unwrap().into_owned());
            new += 1;
        }
        let came = self.juliet.all().await;
        self.seen_by_juliet.extend(message_ids(&came));
        new
    }

    /// As `/healthz` tells it.
    async fn is_store_well(world: &World) -> bool {
        let health = world.server().health()().await;
        assert!(health.iter().any(|health| health.name == "listeners" && health.state.is_ok()));
        health.iter().any(|health| health.name == "store" && health.state.is_ok())
    }

    /// What needs no disk goes on; what changes something on it is refused.
    async fn chat_goes_on(&mut self, world: &World) {
        self.romeo.send("<presence to='juliet@north.localhost/balcony'><show>dnd</show></presence>").await;
        self.romeo
            .send("<message type='chat' to='juliet@north.localhost/balcony'><composing xmlns='http://jabber.org/protocol/chatstates'/></message>")
            .await;
        self.romeo
            .send("<iq type='get' id='ping' to='north.localhost'><ping xmlns='urn:xmpp:ping'/></iq>")
            .await;
        self.romeo
            .send("<iq type='set' id='add'><query xmlns='jabber:iq:roster'><item jid='x@example.org'/></query></iq>")
            .await;
        let answer = |id: &'static str| {
            move |element: &trunkline_xml::Element| {
                element.root().name() == "iq" && element.root().attr("id").as_deref() == Some(id)
            }
        };
        let pong = self.romeo.wait("an answer to the ping", answer("ping")).await.unwrap();
        assert_eq!(pong.root().attr("type").as_deref(), Some("result"));
        let refused = self.romeo.wait("an answer to the roster set", answer("add")).await.unwrap();
        let error =
            refused.root().child("jabber:client", "error").expect("the roster was changed on a full disk");
        assert!(error.child("urn:ietf:params:xml:ns:xmpp-stanzas", "resource-constraint").is_some());
        let came = self.juliet.all().await;
        assert!(came.iter().any(|element| element.root().name() == "presence"), "presence goes on");
        assert!(
            came.iter().any(|element| element
                .root()
                .child("http://jabber.org/protocol/chatstates", "composing")
                .is_some()),
            "what is not kept goes on"
        );
        self.seen_by_juliet.extend(message_ids(&came));
        // Somebody can log in: what is read is there.
        let mut visitor = Person::new("romeo@north.localhost/visit");
        assert!(visitor.online(world).await);
        visitor.write("</stream:stream>").await;
        visitor.look().await;
        visitor.vanish().await;
    }

    async fn there_is_room(&mut self) {
        for to in ["juliet", "nurse"] {
            self.message(to).await;
            let id = self.sent.last().unwrap().clone();
            self.errors().await;
            assert!(!self.refused.contains(&id), "there is room again and {id} is refused");
        }
    }

    /// All that was not refused arrived once, at Juliet's at once and at the nurse's when she comes.
    async fn all_is_there(&mut self, world: &mut World) {
        let kept = |name: &str| -> Vec<String> {
            self.sent
                .iter()
                .filter(|id| id.starts_with(name) && !self.refused.contains(*id))
                .cloned()
                .collect()
        };
        assert!(kept("juliet").len() > 3 && !self.refused.is_empty());
        let mut seen = self.seen_by_juliet.clone();
        // People who are online get it before the disk has it: some of it was refused afterwards.
        seen.retain(|id| !self.refused.contains(id));
        assert_eq!(seen, kept("juliet"));
        let mut nurse = Person::new("nurse@north.localhost/hall");
        assert!(nurse.online(world).await);
        assert_eq!(message_ids(&nurse.all().await), kept("nurse"));
        let rows = world.read(sql("SELECT COUNT(*) FROM archive WHERE flags & 1 = 1")).await;
        // One for each that the sender has in the archive; the recipient's may have been the one without room.
        let sent = usize::try_from(rows.first().unwrap().int(0)).unwrap();
        assert!(sent >= kept("juliet").len() + kept("nurse").len());
    }
}

/// A small file system in memory.
struct Mount<'a>(&'a Path);

impl Mount<'_> {
    #[expect(clippy::print_stderr, reason = "says why the test did nothing")]
    fn new(path: &Path) -> Option<Mount<'_>> {
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "trunkline-test"]).arg(path).output();
        match mount {
            Ok(output) if output.status.success() => Some(Mount(path)),
            other => {
                eprintln!("skipped: cannot mount a tmpfs: {other:?}");
                None
            }
        }
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // Lazily: the database in it may still be open when an assertion failed.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
