"""Starts and stops real XMPP servers, each in a directory of its own, on a loopback address of its own."""

import asyncio
import glob
import json
import os
import signal
import socket
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Setting:
    """How a server is to federate in one part of the test."""

    mode: str = "starttls"  # starttls | direct | dialback
    certificate: str = "good"  # one of pki.VARIANTS


@dataclass
class World:
    """What all servers of one run share."""

    root: Path
    pki: object
    dns: object
    trunkline: Path | None = None
    client_check: Path | None = None
    servers: list = field(default_factory=list)
    count: int = 0


class Server:
    """One server. `start`, `stop` (clean), `kill`, `restart`, `add_user`; `c2s` and `c2s_tls` are its ports."""

    kind = "none"
    verbose = False  # all that ours can log

    def __init__(self, world: World, domain: str, setting: Setting):
        world.count += 1
        self.world, self.domain, self.setting = world, domain, setting
        self.address = f"127.0.{7 + world.count // 200}.{world.count % 200 + 2}"
        ports = free_ports(self.address, 8)
        self.c2s, self.c2s_tls, self.s2s, self.s2s_tls, self.http, self.console, self.page, self.page_tls = ports
        self.dir = world.root / f"{world.count:02}-{self.kind}-{setting.mode}-{setting.certificate}"
        self.dir.mkdir(parents=True)
        self.crt, self.key = world.pki.issue(domain, setting.certificate)
        self.process = None
        self.peers: list[Server] = []
        world.servers.append(self)
        world.dns.host(domain, self.address)
        direct = setting.mode == "direct"
        world.dns.service("xmpp-server", domain, None if direct else (self.address, self.s2s))
        world.dns.service("xmpps-server", domain, (self.address, self.s2s_tls) if direct else None)

    async def start(self):
        self.write_config()
        await self.launch()

    async def launch(self):
        log = open(self.dir / "console.log", "ab")
        self.process = await asyncio.create_subprocess_exec(
            *self.command(), cwd=self.dir, env=self.environment(), stdin=asyncio.subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True)
        log.close()
        end = time.monotonic() + 60
        while not (is_open(self.address, self.c2s) and is_open(self.address, self.s2s)):
            if self.process.returncode is not None or time.monotonic() > end:
                tail = (self.dir / "console.log").read_text(errors="replace")[-1500:]
                raise RuntimeError(f"{self.kind} did not start: {tail}")
            await asyncio.sleep(0.05)

    async def stop(self):
        """A clean stop; a server that does not end within 20 s is killed and that is an error."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), 20)
        except TimeoutError:
            await self.kill()
            raise RuntimeError(f"{self.kind} did not stop within 20 s of SIGTERM") from None

    async def kill(self):
        if self.process is not None and self.process.returncode is None:
            # Its own session, so that helpers of the Erlang machine end too.
            os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()

    async def add_user(self, name: str, password: str):
        raise NotImplementedError

    def environment(self):
        return dict(os.environ, LC_ALL="C.UTF-8")


class Prosody(Server):
    kind = "prosody"

    def write_config(self):
        external = self.setting.mode != "dialback"
        modules = ["roster", "saslauth", "tls", "disco", "private", "vcard_legacy", "version", "time", "ping",
                   "blocklist", "smacks", "offline", "carbons", "posix", "pep", "uptime"]
        if not external:
            modules.append("dialback")
        if self.setting.mode == "direct":
            modules.append("s2s_bidi")
        tls = f'{{ certificate = "{self.crt}"; key = "{self.key}"; cafile = "{self.world.pki.ca_file}"; }}'
        dns_host, dns_port = self.world.dns.address
        names = "; ".join(f'"{m}"' for m in modules)
        (self.dir / "prosody.cfg.lua").write_text(f"""
run_as_root = true
pidfile = "{self.dir}/prosody.pid"
data_path = "{self.dir}/data"
certificates = "{self.dir}"
daemonize = false
log = {{ debug = "{self.dir}/prosody.log" }}
modules_enabled = {{ {names} }}
modules_disabled = {{ "http"{'; "dialback"' if external else ''} }}
interfaces = {{ "{self.address}" }}
c2s_ports = {{ {self.c2s} }}
c2s_direct_tls_ports = {{ {self.c2s_tls} }}
s2s_ports = {{ {self.s2s} }}
s2s_direct_tls_ports = {{ {self.s2s_tls} }}
authentication = "internal_plain"
c2s_require_encryption = true
s2s_require_encryption = true
s2s_secure_auth = {'true' if external else 'false'}
ssl = {tls}
c2s_direct_tls_ssl = {tls}
s2s_direct_tls_ssl = {tls}
limits = {{ }}
unbound = {{ resolvconf = false; hoststxt = false; forward = "{dns_host}@{dns_port}";
    options = {{ ["do-not-query-localhost:"] = "no"; ["cache-max-ttl:"] = "1";
        ["cache-max-negative-ttl:"] = "1" }} }}
VirtualHost "{self.domain}"
""")
        (self.dir / "data").mkdir(exist_ok=True)

    def command(self):
        return ["prosody", "--config", str(self.dir / "prosody.cfg.lua"), "-F"]

    async def add_user(self, name, password):
        folder = self.dir / "data" / escaped(self.domain) / "accounts"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{escaped(name)}.dat").write_text(f'return {{ ["password"] = "{password}" }};\n')


def escaped(name: str) -> str:
    """Prosody's file names: every byte that is no ASCII letter or digit as %xx."""
    return "".join(chr(b) if chr(b).isalnum() and b < 128 else f"%{b:02x}" for b in name.encode())


class Ejabberd(Server):
    kind = "ejabberd"

    def write_config(self):
        dialback = self.setting.mode == "dialback"
        (self.dir / "both.pem").write_bytes(self.crt.read_bytes() + self.key.read_bytes())
        dns_host, dns_port = self.world.dns.address
        (self.dir / "resolv.conf").write_text("")
        (self.dir / "inetrc").write_text(
            '{lookup,[dns]}.\n{hosts_file,""}.\n'
            f'{{resolv_conf,"{self.dir}/resolv.conf"}}.\n'
            f'{{nameserver,{{{dns_host.replace(".", ",")}}},{dns_port}}}.\n'
            '{cache_size,0}.\n')
        (self.dir / "ejabberd.yml").write_text(f"""
loglevel: debug
hosts: ["{self.domain}"]
certfiles: ["{self.dir}/both.pem"]
ca_file: "{self.world.pki.ca_file}"
s2s_cafile: "{self.world.pki.ca_file}"
s2s_use_starttls: {'optional' if dialback else 'required'}
s2s_dns_timeout: 5
s2s_max_retry_delay: 2
auth_password_format: plain
disable_sasl_mechanisms: ["digest-md5"]
listen:
  - {{port: {self.c2s}, ip: "{self.address}", module: ejabberd_c2s, starttls_required: true,
     max_stanza_size: 262144}}
  - {{port: {self.c2s_tls}, ip: "{self.address}", module: ejabberd_c2s, tls: true, max_stanza_size: 262144}}
  - {{port: {self.s2s}, ip: "{self.address}", module: ejabberd_s2s_in, max_stanza_size: 524288}}
  - {{port: {self.s2s_tls}, ip: "{self.address}", module: ejabberd_s2s_in, tls: true, max_stanza_size: 524288}}
  - {{port: {self.http}, ip: "{self.address}", module: ejabberd_http, request_handlers: {{/api: mod_http_api}}}}
acl: {{loopback: {{ip: ["127.0.0.0/8"]}}}}
api_permissions: {{all: {{who: [{{access: [{{allow: loopback}}]}}], what: "*"}}}}
modules:
  mod_adhoc: {{}}
  mod_admin_extra: {{}}
  mod_blocking: {{}}
  mod_caps: {{}}
  mod_carboncopy: {{}}
  mod_disco: {{}}
  mod_http_api: {{}}
  mod_last: {{}}
  mod_offline: {{}}
  mod_ping: {{}}
  mod_privacy: {{}}
  mod_private: {{}}
  mod_roster: {{versioning: true}}
  {'mod_s2s_dialback: {}' if dialback else ''}
  mod_stream_mgmt: {{}}
  mod_time: {{}}
  mod_vcard: {{}}
  mod_version: {{}}
""")
        (self.dir / "spool").mkdir(exist_ok=True)

    def command(self):
        # Not ejabberdctl: that switches to the package's user and needs the port mapper daemon. A node without
        # a name needs neither.
        return ["erl", "-noinput", "-mnesia", "dir", f'"{self.dir}/spool"', "-s", "ejabberd"]

    def environment(self):
        libraries = glob.glob("/usr/lib/*/ejabberd-*") + glob.glob("/usr/lib/ejabberd-*")
        if not libraries:
            raise RuntimeError("ejabberd is not installed: run `cargo xtask install-tools`")
        return dict(
            super().environment(), HOME=str(self.dir), ERL_LIBS=str(Path(libraries[0]).parent),
            ERL_INETRC=str(self.dir / "inetrc"), EJABBERD_CONFIG_PATH=str(self.dir / "ejabberd.yml"),
            EJABBERD_LOG_PATH=str(self.dir / "ejabberd.log"), ERL_CRASH_DUMP_BYTES="0")

    async def add_user(self, name, password):
        def call():
            body = json.dumps({"user": name, "host": self.domain, "password": password}).encode()
            request = urllib.request.Request(
                f"http://{self.address}:{self.http}/api/register", body, {"Content-Type": "application/json"})
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            opener.open(request, timeout=10).read()

        for attempt in range(40):
            try:
                return await asyncio.to_thread(call)
            except OSError:
                if attempt == 39:
                    raise
                await asyncio.sleep(0.25)


class Trunkline(Server):
    kind = "trunkline"

    def init_settings(self) -> dict[str, str]:
        external = self.setting.mode != "dialback"
        settings = {
            "clients.listen": f"{self.address}:{self.c2s}",
            "clients.listen_tls": f"{self.address}:{self.c2s_tls}",
            "federation.listen": f"{self.address}:{self.s2s}",
            "federation.listen_tls": f"{self.address}:{self.s2s_tls}",
            "federation.trust": str(self.world.pki.ca_file),
            "federation.dialback": "false" if external else "true",
            "web.listen": f"{self.address}:{self.http}",
            "console.listen": f"{self.address}:{self.console}",
            "http.listen": f"{self.address}:{self.page}",
            "http.listen_tls": f"{self.address}:{self.page_tls}",
            "tls.certificate": str(self.crt),
            "tls.key": str(self.key),
            "limits.enabled": "false",
        }
        if self.verbose:
            settings["log.level"] = "trace"
        for peer in self.peers:
            port = peer.s2s_tls if peer.setting.mode == "direct" else peer.s2s
            scheme = "tls://" if peer.setting.mode == "direct" else ""
            settings[f'federation.routes."{peer.domain}"'] = f"{scheme}{peer.address}:{port}"
        return settings

    def write_config(self):
        import subprocess
        command = [str(self.world.trunkline), "init", "--domain", self.domain, "--dir", str(self.dir / "data")]
        for key, value in self.init_settings().items():
            command += ["--set", f"{key}={value}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

    @property
    def config(self):
        return self.dir / "data" / "trunkline.toml"

    def command(self):
        return [str(self.world.trunkline), "serve", "--config", str(self.config)]

    def environment(self):
        return dict(super().environment(), RUST_LOG=os.environ.get("RUST_LOG", "info,trunkline=debug"))

    async def ctl(self, *arguments, stdin: str = "") -> str:
        """Runs a command of the binary and returns what it printed."""
        process = await asyncio.create_subprocess_exec(
            str(self.world.trunkline), *arguments, "--config", str(self.config), env=self.environment(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        out, _ = await asyncio.wait_for(process.communicate(stdin.encode()), 30)
        if process.returncode:
            raise RuntimeError(f"trunkline {' '.join(arguments)}: {out.decode(errors='replace')}")
        return out.decode()

    async def add_user(self, name, password):
        await self.ctl("user", "add", f"{name}@{self.domain}", "--password-stdin", stdin=password + "\n")


KINDS = {server.kind: server for server in (Prosody, Ejabberd, Trunkline)}


def free_ports(address: str, count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind((address, 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def is_open(address: str, port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex((address, port)) == 0
