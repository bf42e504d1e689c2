"""What Conversations and Dino need of a server, by their own lists, looked for where each of them looks.

Conversations: the README's "XMPP Features", and the tests of its compliance suite (compliance.conversations.im, source
`caas`). Dino: the specifications in `dino.doap` that have a server's part, and where its source asks for them.
"""

import asyncio
import ssl
from dataclasses import dataclass

from clients import Client
from servers import Setting, Trunkline
from slixmpp.xmlstream import ET

FEATURES = "{http://etherx.jabber.org/streams}features"
INFO = "{http://jabber.org/protocol/disco#info}"
HEADER = ("<?xml version='1.0'?><stream:stream to='%s' version='1.0' xmlns='jabber:client' "
          "xmlns:stream='http://etherx.jabber.org/streams'>")
BOTH = ("Conversations", "Dino")


@dataclass
class Need:
    """`what` by its number, `where` to look (the names of `places`), `sign` to find, `by` whose list."""

    what: str
    where: str
    sign: str
    by: tuple


def table(text: str) -> list[Need]:
    """A need a line: what, where, sign, whose."""
    cells = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return [Need(what, where, sign, BOTH if by == "both" else (by,)) for what, where, sign, by in cells]


NEEDS = table("""
RFC 6120 STARTTLS                | plain   | {urn:ietf:params:xml:ns:xmpp-tls}starttls                         | both
RFC 6120 SCRAM-SHA-1             | login   | mechanism SCRAM-SHA-1                                             | both
RFC 6120 PLAIN inside TLS        | login   | mechanism PLAIN                                                   | both
0368 direct TLS                  | direct  | mechanism SCRAM-SHA-1                                             | both
0388 SASL2                       | login   | {urn:xmpp:sasl:2}authentication                                   | both
0386 Bind 2                      | login   | {urn:xmpp:bind:0}bind                                             | both
0484 FAST                        | login   | {urn:xmpp:fast:0}fast                                             | Conversations
0440 channel bindings            | login   | {urn:xmpp:sasl-cb:0}sasl-channel-binding                          | Conversations
0198 stream management           | session | {urn:xmpp:sm:3}sm                                                 | both
0352 client state                | session | {urn:xmpp:csi:0}csi                                               | Conversations
0237 roster versioning           | session | {urn:xmpp:features:rosterver}ver                                  | both
0115 capabilities                | session | {http://jabber.org/protocol/caps}c                                | both
0191 blocking                    | host    | urn:xmpp:blocking                                                 | both
0280 carbons                     | host    | urn:xmpp:carbons:2                                                | both
0160 offline messages            | host    | msgoffline                                                        | Conversations
0157 abuse address               | host    | form http://jabber.org/network/serverinfo                         | Conversations
0199 ping                        | host    | urn:xmpp:ping                                                     | both
0202 time                        | host    | urn:xmpp:time                                                     | Dino
0092 version                     | host    | jabber:iq:version                                                 | Conversations
0313 archive                     | account | urn:xmpp:mam:2                                                    | both
0163 personal eventing           | account | identity pubsub/pep                                               | both
0384 OMEMO: publish-options      | account | http://jabber.org/protocol/pubsub#publish-options                 | both
0357 push                        | account | urn:xmpp:push:0                                                   | Conversations
0359 stanza ids                  | account | urn:xmpp:sid:0                                                    | Dino
0054 vcard-temp                  | host    | vcard-temp                                                        | both
0049 private XML                 | host    | jabber:iq:private                                                 | Dino
0156 WebSocket found by HTTP     | web     | urn:xmpp:alt-connections:websocket                                | Conversations
0156 BOSH found by HTTP          | web     | urn:xmpp:alt-connections:xbosh                                    | Conversations
0398 avatar conversion           | account | urn:xmpp:pep-vcard-conversion:0                                   | both
0411 bookmarks conversion        | account | urn:xmpp:bookmarks-conversion:0                                   | Conversations
0402 bookmarks, compatible       | account | urn:xmpp:bookmarks:1#compat                                       | both
""")

# On the lists, within this server's extent, and told as missing while they are; then they belong above.
MISSING = []

# What is outside this server's present extent: rooms, files, calls.
LATER = ["0045 rooms", "0065 SOCKS5 bytestreams", "0215 external services", "0363 HTTP upload", "0410 self-ping of rooms"]


async def stream_features(server, direct=False):
    """The features of a stream: before TLS, and inside it."""
    context = ssl.create_default_context(cafile=str(server.world.pki.ca_file))
    found = {}

    async def features(reader, writer, name):
        writer.write((HEADER % server.domain).encode())
        parser, text = ET.XMLPullParser(("end",)), b""
        while True:
            data = await asyncio.wait_for(reader.read(65536), 10)
            assert data, f"the stream ends after {text!r}"
            text += data
            parser.feed(data)
            for _, element in parser.read_events():
                if element.tag == FEATURES:
                    assert text.lstrip().startswith(b"<?xml"), "no XML declaration"
                    found[name] = {e.tag for e in element.iter()} | {
                        f"mechanism {e.text}" for e in element.iter() if e.tag.endswith("}mechanism")}
                    return

    if direct:
        context.set_alpn_protocols(["xmpp-client"])
        reader, writer = await asyncio.open_connection(
            server.address, server.c2s_tls, ssl=context, server_hostname=server.domain)
        await features(reader, writer, "direct")
    else:
        reader, writer = await asyncio.open_connection(server.address, server.c2s)
        await features(reader, writer, "plain")
        writer.write(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
        answer = await asyncio.wait_for(reader.read(1024), 10)
        assert b"<proceed" in answer, answer
        await writer.start_tls(context, server_hostname=server.domain)
        await features(reader, writer, "login")
    writer.close()
    return found


async def host_meta(server):
    """The ways in that a browser is told of."""
    context = ssl.create_default_context(cafile=str(server.world.pki.ca_file))
    reader, writer = await asyncio.open_connection(
        server.address, server.page_tls, ssl=context, server_hostname=server.domain)
    writer.write(f"GET /.well-known/host-meta HTTP/1.1\r\nHost: {server.domain}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).decode().partition("\r\n\r\n")
    writer.close()
    assert head.startswith("HTTP/1.1 200") and "access-control-allow-origin: *" in head.lower(), head
    return {link.get("rel") for link in ET.fromstring(body) if link.get("href")}


class Reader(Client):
    """A client that keeps the features it was shown last: those after login."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.shown = set()
        self.add_filter("in", self.show)

    def show(self, stanza):
        if stanza.xml.tag == FEATURES:
            self.shown = {element.tag for element in stanza.xml.iter()}
        return stanza


async def places(server):
    """Everything a client is told, by the place where it is told."""
    found = await stream_features(server) | await stream_features(server, direct=True)
    found["web"] = await host_meta(server)
    client = Reader(server, "romeo")
    try:
        await client.login()
        found["session"] = client.shown
        for place, jid in (("host", server.domain), ("account", client.boundjid.bare)):
            answer = await client.iq(jid, f"<query xmlns='{INFO[1:-1]}'/>")
            query = answer.find(f"{INFO}query")
            assert query is not None, f"no disco of the {place}"
            found[place] = {f.get("var") for f in query.iter(f"{INFO}feature")}
            found[place] |= {f"identity {i.get('category')}/{i.get('type')}" for i in query.iter(f"{INFO}identity")}
            found[place] |= {f"form {v.text}" for f in query.iter("{jabber:x:data}field")
                             if f.get("var") == "FORM_TYPE" for v in f}
    finally:
        await client.logout()
    return found


def needs_of(client, server):
    async def scenario():
        found = await places(server)
        wanted = [need for need in NEEDS if client in need.by]
        missing = [f"{need.what} ({need.where}: {need.sign})" for need in wanted if need.sign not in found[need.where]]
        assert not missing, f"missing of {len(wanted)}: {'; '.join(missing)}"
        still = [need.what for need in MISSING if client in need.by and need.sign not in found[need.where]]
        return f"{len(wanted)} present; missing: {', '.join(still) or 'none'}; outside: {', '.join(LATER)}"
    return scenario


async def run(report, world):
    checks = [f"{client}: all it needs of a server" for client in BOTH]
    if not any(report.wanted(check) for check in checks):
        return
    server = Trunkline(world, "needs.example", Setting())
    try:
        await server.start()
        await server.add_user("romeo", "secret")
        for client, check in zip(BOTH, checks, strict=True):
            await report.check(check, needs_of(client, server)(), 60)
    except (RuntimeError, OSError) as error:
        report.fail(checks[0], f"the server did not start: {error}")
    finally:
        await server.stop()
