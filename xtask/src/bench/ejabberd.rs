//! Debian's ejabberd with the settings of its package, shapers and limits off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::accounts::{Accounts, Keys};
use super::field::Field;
use super::ours::run;
use super::servers::{Plan, tied};

/// Runs the machine of Erlang with what Debian's `ejabberdctl` gives it. Not `ejabberdctl` itself: that changes to the
/// package's user and needs the port mapper. A node without a name needs neither.
pub(super) fn command(plan: &Plan, field: &Field) -> Result<Command, String> {
    let directory = plan.directory(field);
    let write = |name: &str, text: &str| {
        let file = directory.join(name);
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
    };
    fs::create_dir_all(directory.join("spool")).map_err(|error| error.to_string())?;
    write("resolv.conf", "")?;
    let dns = field.dns.address;
    let inetrc = format!(
        "{{lookup,[dns]}}.\n{{hosts_file,\"\"}}.\n{{resolv_conf,\"{}/resolv.conf\"}}.\n{{nameserver,{{{}}},{}}}.\n",
        directory.display(),
        dns.ip().to_string().replace('.', ","),
        dns.port()
    );
    write("inetrc", &inetrc)?;
    write("ejabberd.yml", &configuration(plan, field)?)?;
    let mut command = tied(Path::new("erl"));
    command
        .args(["+K", "true", "+P", "250000", "-noinput", "-mnesia", "dir"])
        .arg(format!("\"{}/spool\"", directory.display()))
        .args(["-s", "ejabberd"])
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", &directory)
        .env("ERL_LIBS", libraries()?)
        .env("ERL_MAX_PORTS", "32000")
        .env("ERL_MAX_ETS_TABLES", "1400")
        .env("ERL_INETRC", directory.join("inetrc"))
        .env("EJABBERD_CONFIG_PATH", directory.join("ejabberd.yml"))
        .env("EJABBERD_LOG_PATH", directory.join("ejabberd.log"))
        .env("ERL_CRASH_DUMP_BYTES", "0");
    Ok(command)
}

fn libraries() -> Result<PathBuf, String> {
    let places = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|it| it.path());
    places
        .chain(["/usr/lib".into()])
        .find(|place| {
            fs::read_dir(place)
                .into_iter()
                .flatten()
                .flatten()
                .any(|it| it.file_name().to_string_lossy().starts_with("ejabberd-"))
        })
        .ok_or_else(|| "ejabberd is not installed: run `cargo xtask install-tools`".to_owned())
}

fn configuration(plan: &Plan, field: &Field) -> Result<String, String> {
    let certificate = field.certificate(&plan.domain)?;
    let archive = if plan.archive { "  mod_mam: {default: always}\n" } else { "" };
    Ok(format!(
        r#"loglevel: warning
log_rotate_count: 0
hosts: ["{domain}"]
certfiles: ["{both}"]
ca_file: "{ca}"
s2s_cafile: "{ca}"
define_macro:
  'TLS_CIPHERS': "HIGH:!aNULL:!eNULL:!3DES:@STRENGTH"
  'TLS_OPTIONS': [no_sslv3, no_tlsv1, no_tlsv1_1, cipher_server_preference, no_compression]
c2s_ciphers: 'TLS_CIPHERS'
s2s_ciphers: 'TLS_CIPHERS'
c2s_protocol_options: 'TLS_OPTIONS'
s2s_protocol_options: 'TLS_OPTIONS'
s2s_use_starttls: required
cache_size: 50000
auth_password_format: scram
auth_scram_hash: sha256
disable_sasl_mechanisms: ["digest-md5", "X-OAUTH2"]
listen:
  - {{port: {clients}, ip: "{address}", module: ejabberd_c2s, max_stanza_size: 262144, starttls_required: true,
     backlog: 1024, shaper: none}}
  - {{port: {federation}, ip: "{address}", module: ejabberd_s2s_in, max_stanza_size: 524288, backlog: 1024,
     shaper: none}}
shaper_rules:
  max_user_sessions: 10
  max_user_offline_messages: 5000
modules:
  mod_adhoc: {{}}
  mod_admin_extra: {{}}
  mod_announce: {{}}
  mod_avatar: {{}}
  mod_blocking: {{}}
  mod_caps: {{}}
  mod_carboncopy: {{}}
  mod_client_state: {{}}
  mod_configure: {{}}
  mod_disco: {{}}
  mod_last: {{}}
{archive}  mod_muc:
    host: "rooms.{domain}"
    max_users: 1000
    default_room_options: {{mam: false, max_users: 1000}}
  mod_muc_admin: {{}}
  mod_offline: {{access_max_user_messages: max_user_offline_messages}}
  mod_ping: {{}}
  mod_privacy: {{}}
  mod_private: {{}}
  mod_pubsub: {{plugins: [flat, pep]}}
  mod_push: {{}}
  mod_push_keepalive: {{}}
  mod_roster: {{versioning: true}}
  mod_s2s_dialback: {{}}
  mod_shared_roster: {{}}
  mod_sic: {{}}
  mod_stream_mgmt: {{resend_on_timeout: if_offline}}
  mod_vcard: {{search: false}}
  mod_vcard_xupdate: {{}}
  mod_version: {{}}
"#,
        domain = plan.domain,
        both = certificate.both.display(),
        ca = field.authority.file().display(),
        clients = plan.clients,
        federation = plan.federation,
        address = plan.address,
    ))
}

/// Puts the accounts into ejabberd's own database, if they are not there yet.
pub(super) fn prepare(plan: &Plan, field: &Field, (wanted, keys): (&Accounts, &Keys)) -> Result<(), String> {
    let directory = plan.directory(field);
    let marker = directory.join("accounts");
    if marker.exists() {
        return Ok(());
    }
    fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let group = |(prefix, count): &(&str, u32)| format!("{{<<\"{prefix}\">>,{count}}}");
    let groups: Vec<String> = wanted.groups.iter().map(group).collect();
    let bytes = |bytes: &[u8]| {
        let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
        format!("base64:encode(<<{}>>)", numbers.join(","))
    };
    let program = format!(
        "Keys = {{scram,{stored},{server},{salt},sha256,{iterations}}}, \
         [ok = mnesia:dirty_write({{passwd,{{<<P/binary,(integer_to_binary(N))/binary>>,<<\"{domain}\">>}},Keys}}) \
          || {{P,C}} <- [{groups}], N <- lists:seq(0, C - 1)], \
         D = <<\"{domain}\">>, \
         [ok = mnesia:dirty_write({{roster,{{A,D,{{B,D,<<>>}}}},{{A,D}},{{B,D,<<>>}},<<>>,both,none,[],<<>>,[]}}) \
          || {{P,C}} <- [{star}], N <- lists:seq(1, C - 1), \
             F <- [<<P/binary,\"0\">>], O <- [<<P/binary,(integer_to_binary(N))/binary>>], {{A,B}} <- [{{F,O}},{{O,F}}]], \
         ok = file:write_file(\"{marker}\", <<>>), init:stop().",
        stored = bytes(&keys.stored_key),
        server = bytes(&keys.server_key),
        salt = bytes(&keys.salt),
        iterations = keys.iterations,
        domain = plan.domain,
        groups = groups.join(","),
        star = wanted.star.as_ref().map(group).unwrap_or_default(),
        marker = marker.display(),
    );
    run(command(plan, field)?.args(["-eval", &program]), "")?;
    if marker.exists() { Ok(()) } else { Err("ejabberd did not take the accounts".to_owned()) }
}
