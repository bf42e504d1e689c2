"""Runs the portable plays of crates/server/tests/plays over TCP against this server, Prosody and ejabberd.

    python3 tests/interop/plays.py [--trunkline target/debug/trunkline]

Prints, for each play that some server does not do as written, what that server did instead. The answers to "who is
right" are people's work: docs/differences.md.
"""

import argparse
import glob
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def prosody(directory: Path, port: int) -> tuple[list[str], dict[str, str]]:
    modules = ["roster", "saslauth", "disco", "private", "vcard_legacy", "version", "time", "ping", "blocklist",
               "smacks", "offline", "carbons", "posix", "pep", "uptime", "register_ibr", "csi_simple", "mam",
               "vcard4", "bookmarks", "adhoc", "admin_adhoc", "user_account_management"]
    config = directory / "prosody.cfg.lua"
    config.write_text(f"""
run_as_root = true
data_path = "{directory}/data"
daemonize = false
log = {{ info = "{directory}/prosody.log" }}
modules_enabled = {{ {"; ".join(f'"{module}"' for module in modules)} }}
modules_disabled = {{ "s2s"; "tls"; "http" }}
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {port} }}
c2s_direct_tls_ports = {{ }}
authentication = "internal_plain"
allow_registration = true
c2s_require_encryption = false
limits = {{ }}
VirtualHost "north.localhost"
Component "pubsub.north.localhost" "pubsub"
    pubsub_max_items = 256
    autocreate_on_publish = true
    add_permissions = {{ ["prosody:registered"] = {{ "pubsub:create-node" }} }}
""")
    return ["prosody", "--config", str(config), "-F"], {}


def ejabberd(directory: Path, port: int) -> tuple[list[str], dict[str, str]]:
    (directory / "ejabberd.yml").write_text(f"""
loglevel: warning
hosts: ["north.localhost"]
auth_password_format: plain
registration_timeout: infinity
listen:
  - {{port: {port}, ip: "127.0.0.1", module: ejabberd_c2s, max_stanza_size: 262144, access: all}}
modules:
  mod_adhoc: {{}}
  mod_blocking: {{}}
  mod_caps: {{}}
  mod_carboncopy: {{}}
  mod_client_state: {{}}
  mod_configure: {{}}
  mod_disco: {{}}
  mod_last: {{}}
  mod_mam: {{default: always, assume_mam_usage: true}}
  mod_offline: {{}}
  mod_ping: {{}}
  mod_privacy: {{}}
  mod_private: {{}}
  mod_pubsub: {{plugins: [flat, pep], access_createnode: all, max_items_node: 1000}}
  mod_push: {{}}
  mod_register: {{access: all, ip_access: all}}
  mod_roster: {{versioning: true}}
  mod_stream_mgmt: {{}}
  mod_time: {{}}
  mod_vcard: {{}}
  mod_version: {{}}
""")
    (directory / "spool").mkdir()
    libraries = glob.glob("/usr/lib/*/ejabberd-*") + glob.glob("/usr/lib/ejabberd-*")
    return ["erl", "-noinput", "-mnesia", "dir", f'"{directory}/spool"', "-s", "ejabberd"], dict(
        HOME=str(directory), ERL_LIBS=str(Path(libraries[0]).parent),
        EJABBERD_CONFIG_PATH=str(directory / "ejabberd.yml"),
        EJABBERD_LOG_PATH=str(directory / "ejabberd.log"), ERL_CRASH_DUMP_BYTES="0")


def trunkline(binary: str):
    def settings(directory: Path, port: int) -> tuple[list[str], dict[str, str]]:
        data = directory / "data"
        command = [binary, "init", "--domain", "north.localhost", "--dir", str(data), "--dev"]
        for setting in (f"clients.listen=127.0.0.1:{port}", "clients.listen_tls=[]", "clients.tls=optional",
                        "federation.listen=[]", "web.listen=[]", "console.listen=[]", "accounts.registration=open",
                        "accounts.registrations_per_address=100000", "accounts.password_iterations=4096",
                        "limits.enabled=false", "federation.enabled=false"):
            command += ["--set", setting]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [binary, "serve", "--config", str(data / "trunkline.toml")], {}

    return settings


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def outcomes(make) -> dict[str, str]:
    """What became of each play: "as written", or where it went another way."""
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        command, environment = make(Path(directory), port)
        with open(Path(directory) / "console.log", "wb") as log:
            server = subprocess.Popen(command, env=dict(os.environ, LC_ALL="C.UTF-8", **environment),
                                      cwd=directory, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(600):
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if server.poll() is not None:
                    raise RuntimeError((Path(directory) / "console.log").read_text(errors="replace")[-2000:])
                time.sleep(0.1)
            time.sleep(1)
            run = subprocess.run(
                ["cargo", "test", "-q", "-p", "trunkline-server", "--test", "plays", "--", "--nocapture"],
                cwd=ROOT, env=dict(os.environ, PLAY_SERVER=f"127.0.0.1:{port}"), capture_output=True, text=True,
                timeout=300)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    found, name = {}, None
    for line in run.stdout.splitlines():
        start = re.match(r"play (\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.startswith("  | "):
            found[name] += "\n" + line[4:]
    if not found:
        raise RuntimeError(run.stdout + run.stderr)
    return found


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--trunkline", default=str(ROOT / "target" / "debug" / "trunkline"))
    options = arguments.parse_args()
    servers = {"trunkline": trunkline(options.trunkline), "prosody": prosody, "ejabberd": ejabberd}
    results = {name: outcomes(make) for name, make in servers.items()}
    plays = results["trunkline"]
    differing = 0
    for play in plays:
        others = {name: result[play] for name, result in results.items() if result[play] != "as written"}
        for name, what in others.items():
            differing += 1
            print(f"{play}: {name}: {what}\n")
    print(f"{len(plays)} portable plays; {differing} times a server did something else")
    sys.exit(1 if any(plays[play] != "as written" for play in plays) else 0)


if __name__ == "__main__":
    main()
