"""slixmpp, unmodified, behind the few calls that scenarios need: log in, send, expect."""

import asyncio
import logging
import ssl
import time
import uuid

from slixmpp import ClientXMPP
from slixmpp.xmlstream import ET

CLIENT = "jabber:client"
DELAY = "{urn:xmpp:delay}delay"


class Timeout(Exception):
    """Something expected did not arrive; the text says what did."""


class Client(ClientXMPP):
    """A logged-in client. `inbox` holds every stanza received and not yet taken by `expect`."""

    def __init__(self, server, name: str, password: str = "secret", resource: str = "", **options):
        jid = f"{name}@{server.domain}" + (f"/{resource}" if resource else "")
        super().__init__(jid, password, sasl_mech=options.get("mechanism"))
        self.home, self.inbox, self.arrived = server, [], asyncio.Event()
        self.roster.auto_authorize = None
        self.roster.auto_subscribe = False
        self.direct = options.get("direct", False)
        self.resume = options.get("resume", False)
        self.enable_direct_tls, self.enable_starttls = self.direct, not self.direct
        self.ssl_context = ssl.create_default_context(cafile=str(server.world.pki.ca_file))
        if server.setting.certificate not in ("good", "no-client-auth") or server.setting.mode == "dialback":
            # What the server shows to other servers is under test there, not what it shows to clients.
            self.ssl_context.check_hostname = False
            self.ssl_context.verify_mode = ssl.CERT_NONE
        plugins = ["xep_0030", "xep_0092", "xep_0199", "xep_0203"] + options.get("plugins", [])
        for plugin in plugins:
            self.register_plugin(plugin)
        self.add_filter("in", self._record)

    def _record(self, stanza):
        if stanza.xml.tag.startswith(f"{{{CLIENT}}}"):
            self.inbox.append(stanza.xml)
            self.arrived.set()
        return stanza

    async def login(self, presence: bool = True, timeout: float = 20):
        """Connects and negotiates; with `presence`, the roster is asked for and initial presence sent."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def finish(value):
            if not done.done():
                done.set_result(value)

        self.add_event_handler("session_start", lambda _: finish(None))
        self.add_event_handler("failed_all_auth", lambda _: finish("no mechanism let the client in"))
        self.add_event_handler("connection_failed", lambda e: finish(f"connection failed: {e}"))
        self.connect(self.home.address, self.home.c2s_tls if self.direct else self.home.c2s)
        try:
            error = await asyncio.wait_for(done, timeout)
        except TimeoutError:
            await self.logout()
            raise Timeout(f"{self.boundjid}: no session within {timeout} s") from None
        if error:
            await self.logout()
            raise Timeout(f"{self.boundjid}: {error}")
        if presence:
            await self.get_roster(timeout=10)
            if "xep_0115" in self.plugin:
                # What plugins have announced they announced for an address that had no resource yet.
                await self.plugin["xep_0115"].update_caps(broadcast=False)
            self.send_presence()
            # One's own presence comes back when the server has processed it, in order with what it triggers.
            await self.expect("own presence", lambda x: kind(x) == "presence" and x.get("from") == str(self.boundjid))
        return self

    async def logout(self):
        self.cancel_connection_attempt()
        try:
            await asyncio.wait_for(asyncio.shield(self.disconnect(wait=1)), 3)
        except (TimeoutError, asyncio.CancelledError):
            pass
        self.abort()

    async def expect(self, what: str, match, timeout: float = 20):
        """The first stanza that `match`es, taken out of the inbox."""
        end = time.monotonic() + timeout
        while True:
            for i, xml in enumerate(self.inbox):
                if match(xml):
                    return self.inbox.pop(i)
            self.arrived.clear()
            try:
                await asyncio.wait_for(self.arrived.wait(), max(0.01, end - time.monotonic()))
            except TimeoutError:
                seen = "; ".join(ET.tostring(x, encoding="unicode")[:200] for x in self.inbox[-6:])
                raise Timeout(f"{self.boundjid}: no {what} in {timeout} s; there was: {seen}") from None

    async def absent(self, what: str, match, seconds: float = 1.0):
        """Asserts that nothing matching arrives within `seconds`."""
        try:
            xml = await self.expect(what, match, seconds)
        except Timeout:
            return
        raise AssertionError(f"{self.boundjid} received {what}: {ET.tostring(xml, encoding='unicode')[:300]}")

    def say(self, to: str, body: str, id: str | None = None, type: str = "chat") -> str:
        message = self.make_message(mto=to, mbody=body, mtype=type)
        message["id"] = id or uuid.uuid4().hex
        message.send()
        return message["id"]

    def presence(self, to: str, type: str):
        self.send_presence(pto=to, ptype=type)

    async def iq(self, to: str, payload: str, type: str = "get", timeout: float = 20):
        """Sends an IQ and returns the answer's element, result or error."""
        iq = self.make_iq(id=uuid.uuid4().hex, ito=to, itype=type)
        iq.append(ET.fromstring(payload))
        id = iq["id"]
        iq.send(callback=lambda _: None, timeout=timeout)
        return await self.expect(
            f"answer to {payload[:60]}",
            lambda x: kind(x) == "iq" and x.get("id") == id and x.get("type") in ("result", "error"), timeout)


def kind(xml) -> str:
    return xml.tag.rpartition("}")[2]


def body(xml) -> str | None:
    return xml.findtext(f"{{{CLIENT}}}body")


def bare(jid: str | None) -> str:
    return (jid or "").partition("/")[0]


def condition(xml) -> str:
    """The defined condition of a stanza error, or an empty text."""
    error = xml.find(f"{{{CLIENT}}}error")
    return "" if error is None or not len(error) else error[0].tag.rpartition("}")[2]


def message(id: str | None = None, text: str | None = None, sender: str | None = None):
    """Matches a message that is no error."""
    return lambda x: (
        kind(x) == "message" and x.get("type") != "error" and (id is None or x.get("id") == id)
        and (text is None or body(x) == text) and (sender is None or bare(x.get("from")) == sender))


def bounce(id: str):
    return lambda x: kind(x) == "message" and x.get("type") == "error" and x.get("id") == id


def presence(sender: str, type: str | None = None):
    return lambda x: kind(x) == "presence" and bare(x.get("from")) == sender and x.get("type") == type


def roster_push(contact: str, subscription: str):
    def match(x):
        item = x.find("{jabber:iq:roster}query/{jabber:iq:roster}item")
        return (kind(x) == "iq" and x.get("type") == "set" and item is not None
                and item.get("jid") == contact and item.get("subscription") == subscription)
    return match


logging.getLogger("slixmpp").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
