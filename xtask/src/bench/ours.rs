//! Our own server: configuration made by `trunkline init`, accounts put into its store while it is stopped.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::accounts::{self, Accounts};
use super::field::Field;
use super::servers::{Plan, password, tied};

pub(super) fn command(plan: &Plan, field: &Field) -> Result<Command, String> {
    init(plan, field)?;
    let mut command = tied(&field.trunkline);
    command.arg("serve").arg("--config").arg(config(plan, field));
    Ok(command)
}

/// Makes the store with these accounts, if it is not there yet.
pub(super) fn prepare(plan: &Plan, field: &Field, wanted: &Accounts) -> Result<(), String> {
    let database = database(plan, field);
    if database.exists() {
        return Ok(());
    }
    fs::create_dir_all(plan.directory(field)).map_err(|error| error.to_string())?;
    init(plan, field)?;
    let mut add = Command::new(&field.trunkline);
    add.args(["user", "add", &format!("{}@{}", accounts::TEMPLATE, plan.domain), "--password-stdin"]);
    run(add.arg("--config").arg(config(plan, field)), &format!("{}\n", password()))?;
    accounts::fill(&database, wanted).map_err(|error| format!("{}: {error}", database.display()))
}

pub(super) fn database(plan: &Plan, field: &Field) -> PathBuf {
    plan.directory(field).join("etc/data/trunkline.db")
}

fn config(plan: &Plan, field: &Field) -> PathBuf {
    plan.directory(field).join("etc/trunkline.toml")
}

fn init(plan: &Plan, field: &Field) -> Result<(), String> {
    let certificate = field.certificate(&plan.domain)?;
    let directory = plan.directory(field).join("etc");
    // `init` rightly refuses to begin where something is: what the store has is put aside meanwhile.
    let (data, aside) = (directory.join("data"), plan.directory(field).join("aside"));
    let failed = |error| format!("{}: {error}", data.display());
    let kept = data.exists();
    if kept {
        fs::rename(&data, &aside).map_err(failed)?;
        fs::remove_dir_all(&directory).map_err(failed)?;
    }
    let mut settings = vec![
        ("clients.listen".to_owned(), format!("{}:{}", plan.address, plan.clients)),
        ("clients.listen_tls".into(), "[]".into()),
        ("clients.max_connections".into(), "200000".into()),
        ("federation.listen".into(), format!("{}:{}", plan.address, plan.federation)),
        ("federation.listen_tls".into(), "[]".into()),
        ("federation.trust".into(), field.authority.file().to_string_lossy().into_owned()),
        ("web.listen".into(), "[]".into()),
        ("console.listen".into(), "[]".into()),
        ("tls.certificate".into(), certificate.chain.to_string_lossy().into_owned()),
        ("tls.key".into(), certificate.key.to_string_lossy().into_owned()),
        ("limits.enabled".into(), "false".into()),
        ("log.level".into(), "warn".into()),
    ];
    if field.knows_archive {
        settings.push(("accounts.archive".into(), plan.archive.to_string()));
    }
    if field.knows_presets {
        // Whoever writes is let in, as the others do: people of the two servers write without being introduced.
        settings.push(("federation.preset".into(), "open".into()));
    }
    if let Some(own) = &plan.as_shipped {
        let ours = ["limits.enabled", "accounts.archive", "federation.preset"];
        settings.retain(|(name, _)| !ours.contains(&name.as_str()));
        settings.retain(|(name, _)| own.iter().all(|(other, _)| other != name));
        settings.extend(own.iter().cloned());
    }
    if let Some((domain, address, port)) = &plan.other {
        settings.push((format!("federation.routes.\"{domain}\""), format!("{address}:{port}")));
    }
    let mut command = Command::new(&field.trunkline);
    command.args(["init", "--domain", &plan.domain, "--dir"]).arg(&directory);
    for (key, value) in settings {
        command.args(["--set", &format!("{key}={value}")]);
    }
    run(&mut command, "")?;
    if kept {
        let _ = fs::remove_dir_all(&data);
        fs::rename(&aside, &data).map_err(failed)?;
    }
    Ok(())
}

/// Runs a short command and gives what it printed.
pub(super) fn run(command: &mut Command, input: &str) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let first = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
    let shown = format!("{program} {first}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{shown}: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have ended without reading: its status tells.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| format!("{shown}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{shown}: {text}{}", String::from_utf8_lossy(&output.stderr).trim()))
}
