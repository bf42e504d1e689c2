//! Debian's Prosody with the settings of its package, limits off.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::accounts::{Accounts, Keys};
use super::field::Field;
use super::servers::{Plan, tied};

/// What Debian's configuration enables, without `limits` and what administrates.
const MODULES: &[&str] = &[
    "disco",
    "roster",
    "saslauth",
    "tls",
    "blocklist",
    "bookmarks",
    "carbons",
    "dialback",
    "pep",
    "private",
    "smacks",
    "vcard4",
    "vcard_legacy",
    "csi_simple",
    "ping",
    "register",
    "time",
    "uptime",
    "version",
    "posix",
];

pub(super) fn command(plan: &Plan, field: &Field) -> Result<Command, String> {
    let directory = plan.directory(field);
    let file = directory.join("prosody.cfg.lua");
    let text = configuration(plan, field, &directory)?;
    fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    fs::create_dir_all(directory.join("data")).map_err(|error| error.to_string())?;
    let mut command = tied(Path::new("prosody"));
    command.arg("--config").arg(file).arg("-F").env("LC_ALL", "C.UTF-8");
    Ok(command)
}

fn configuration(plan: &Plan, field: &Field, directory: &Path) -> Result<String, String> {
    let certificate = field.certificate(&plan.domain)?;
    let mut modules: Vec<String> = MODULES.iter().map(|name| format!("\"{name}\"")).collect();
    if plan.archive {
        modules.push("\"mam\"".to_owned());
    }
    let mut text = String::new();
    let _ = write!(
        text,
        r#"run_as_root = true
daemonize = false
pidfile = "{dir}/prosody.pid"
data_path = "{dir}/data"
certificates = "{dir}"
log = {{ warn = "{dir}/prosody.log" }}
network_backend = "epoll"
modules_enabled = {{ {modules} }}
modules_disabled = {{ "http" }}
interfaces = {{ "{address}" }}
c2s_ports = {{ {clients} }}
s2s_ports = {{ {federation} }}
c2s_direct_tls_ports = {{ }}
s2s_direct_tls_ports = {{ }}
authentication = "internal_hashed"
password_hash = "SHA-256"
archive_expires_after = "1w"
allow_registration = false
c2s_require_encryption = true
s2s_require_encryption = true
s2s_secure_auth = true
ssl = {{ certificate = "{chain}"; key = "{key}"; cafile = "{ca}"; }}
limits = {{ }}
unbound = {{ resolvconf = false; hoststxt = false; forward = "{dns_host}@{dns_port}";
    options = {{ ["do-not-query-localhost:"] = "no" }} }}
VirtualHost "{domain}"
Component "rooms.{domain}" "muc"
"#,
        dir = directory.display(),
        modules = modules.join("; "),
        address = plan.address,
        clients = plan.clients,
        federation = plan.federation,
        chain = certificate.chain.display(),
        key = certificate.key.display(),
        ca = field.authority.file().display(),
        dns_host = field.dns.address.ip(),
        dns_port = field.dns.address.port(),
        domain = plan.domain,
    );
    Ok(text)
}

/// Writes the accounts, if they are not there yet, as Prosody's own store writes them.
pub(super) fn prepare(plan: &Plan, field: &Field, (wanted, keys): (&Accounts, &Keys)) -> Result<(), String> {
    let host = plan.directory(field).join("data").join(escaped(&plan.domain));
    let (folder, rosters) = (host.join("accounts"), host.join("roster"));
    if folder.exists() {
        return Ok(());
    }
    let failed = |error| format!("{}: {error}", host.display());
    fs::create_dir_all(&folder).map_err(failed)?;
    fs::create_dir_all(&rosters).map_err(failed)?;
    let salt: String = keys.salt.iter().map(|byte| format!("\\{byte:03}")).collect();
    let text = format!(
        "return {{ [\"iteration_count\"] = {}; [\"salt\"] = \"{salt}\"; [\"stored_key\"] = \"{}\"; [\"server_key\"] = \"{}\"; }};\n",
        keys.iterations,
        hex(&keys.stored_key),
        hex(&keys.server_key)
    );
    for name in wanted.names() {
        fs::write(folder.join(format!("{name}.dat")), &text).map_err(failed)?;
    }
    let mut contacts: BTreeMap<String, String> = BTreeMap::new();
    for (account, contact) in wanted.friendships() {
        let item =
            format!("[\"{contact}@{}\"] = {{ subscription = \"both\"; groups = {{}}; }};\n", plan.domain);
        contacts.entry(account).or_default().push_str(&item);
    }
    for (account, items) in contacts {
        let text = format!("return {{ [false] = {{ version = 1; pending = {{}}; }};\n{items}}};\n");
        fs::write(rosters.join(format!("{account}.dat")), text).map_err(failed)?;
    }
    Ok(())
}

/// Prosody's file names: every byte that is no ASCII letter or digit as %xx.
fn escaped(name: &str) -> String {
    name.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02x}")
                }
            },
        )
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
