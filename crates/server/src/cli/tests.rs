//! Every operation has a command: each is typed here, and what reaches the server is seen.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::admin::socket::ControlSocket;
use crate::admin::table;

/// A server that does nothing but note what it is asked for.
#[derive(Default)]
struct Recorder(Mutex<Vec<Operation>>);

impl crate::admin::Admin for Recorder {
    async fn run(&self, _: &Actor, operation: Operation) -> Result<Outcome, OpError> {
        self.0.lock().push(operation);
        Err(OpError::NotPossible("noted".into()))
    }
}

const COMMANDS: &[&str] = &[
    "user add a@b.example --password-stdin",
    "user passwd a@b.example --password-stdin",
    "user remove a@b.example --yes",
    "user disable a@b.example",
    "user enable a@b.example",
    "user list",
    "user clients a@b.example",
    "user client-end a@b.example phone",
    "user kick a@b.example",
    "user totp reset a@b.example",
    "user show a@b.example",
    "user count",
    "announce maintenance",
    "motd show",
    "motd set welcome",
    "motd edit welcome",
    "motd delete",
    "invite create",
    "token create t --scope read --scope audit",
    "token list",
    "token revoke t",
    "reload",
    "status",
    "federation status",
    "federation close a.example",
    "federation close --all",
    "federation open",
    "federation now",
    "federation domains",
    "federation domain a.example",
    "federation history",
    "federation policy show",
    "federation policy preset open --why w",
    "federation policy add drop --domain a.example --reason r",
    "federation policy replace 1 drop --domain a.example --reason r",
    "federation policy move 1 0 --why w",
    "federation policy remove 1 --why w",
    "federation policy test <message/>",
    "federation block a.example --reason r",
    "federation unblock a.example --why w",
    "federation blocks export",
    "federation blocks import FILE --format json --why w",
    "federation breaker show",
    "federation breaker set text-only --why w",
    "federation requests list",
    "federation requests drop a.example --why w",
    "federation reports list",
    "federation reports show 1",
    "federation reports dismiss 1",
    "federation lists show",
    "federation lists subscribe l lists.example muc_bans_sha256",
    "federation lists unsubscribe l",
    "federation lists items l",
    "federation lists publish a.example r",
    "federation lists retract a.example",
    "federation lists subscribers",
    "federation lists remove-subscriber a.example",
    "audit",
];

#[test]
fn every_operation_has_a_command() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trunkline.toml");
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(&file, format!("domain = \"b.example\"\ndata_dir = {data:?}\n")).unwrap();
    std::fs::write(directory.path().join("blocks.json"), "[]").unwrap();
    let socket = Config::load(&file).unwrap().control_socket();
    let recorder = Arc::new(Recorder::default());
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    {
        let _inside = server.enter();
        let socket = ControlSocket::bind(&socket).unwrap();
        server.spawn(socket.serve(Arc::clone(&recorder), std::future::pending::<()>()));
    }
    let file = file.display().to_string();
    let blocks = directory.path().join("blocks.json").display().to_string();
    let mut seen = BTreeSet::new();
    for command in COMMANDS {
        let words = command.split(' ').map(|word| if word == "FILE" { blocks.as_str() } else { word });
        let line = ["trunkline"].into_iter().chain(words).chain(["--config", &file]);
        let cli = Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{command}: {error}"));
        let refused = run(cli.command);
        assert!(refused.is_err_and(|error| error.to_string().contains("noted")), "{command}");
        let operation = recorder.0.lock().pop().unwrap();
        let row = operation.row().unwrap();
        seen.insert((row.op, row.act));
        if let Operation::FederationClose { domain, all } = operation {
            assert_eq!(all, domain.is_none(), "{command}");
        }
    }
    assert_eq!(seen, table::TABLE.iter().map(|row| (row.op, row.act)).collect());
    // Nobody cuts off the outside by leaving out a word.
    assert!(Cli::try_parse_from(["trunkline", "federation", "close"]).is_err());
    assert!(Cli::try_parse_from(["trunkline", "federation", "close", "a.example", "--all"]).is_err());
}
