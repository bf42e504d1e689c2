"""More unmodified clients at work: aioxmpp, xmpp.js (xmppjs/client.mjs), and slixmpp where real_clients.py leaves off."""

import asyncio
import base64
import json
import logging
import os
import struct
import uuid
import zlib
from pathlib import Path

import aiosasl
import aioxmpp
import aioxmpp.avatar
import aioxmpp.bookmarks.xso
import aioxmpp.connector
import aioxmpp.misc
import aioxmpp.rsm.xso
import aioxmpp.security_layer
import aioxmpp.vcard
import aioxmpp.version
import OpenSSL.SSL

from clients import Client, bare, condition, message, presence
from scenarios import PATIENCE, befriend, play, unfriend
from servers import KINDS, Setting, Trunkline, free_ports

XMPPJS = Path(__file__).with_name("xmppjs") / "client.mjs"
# What goes wrong is told by the checks, once.
QUIET = logging.getLogger("aioxmpp")
QUIET.setLevel(logging.CRITICAL)


class Workplace(Trunkline):
    """Ours, with what push services connect to."""

    def init_settings(self):
        (self.components,) = free_ports(self.address, 1)
        return super().init_settings() | {
            "components.listen": f"{self.address}:{self.components}",
            f'components.entries."push.{self.domain}".secret': "s3cret",
        }


async def run(report, world, kinds=("trunkline", "prosody")):
    """Clients on the first server, some with a friend on the second."""
    name = kinds[0]
    checks = [(f"{name} aioxmpp: login, {word}", aio_login(connector)) for word, connector in CONNECTORS.items()]
    checks += [(f"{name} aioxmpp: {s.__name__[4:]}", s) for s in AIOXMPP]
    if name == "trunkline":
        # Debian's releases of the others know nothing of SASL2, and the harness gives them no archive.
        checks += [(f"{name} aioxmpp: {s.__name__[4:]}", s) for s in AIOXMPP_OURS]
        checks += [(f"{name} slixmpp: {s.__name__[5:]}", s) for s in SLIXMPP]
        for transport in TRANSPORTS:
            scenarios_of = [s for s in XMPP_JS if (transport, s) not in XMPP_JS_CANNOT]
            checks += [(f"{name} xmpp.js over {transport}: {s}", xmppjs(transport, s)) for s in scenarios_of]
    if not any(report.wanted(check) for check, _ in checks):
        return
    left = (Workplace if name == "trunkline" else KINDS[name])(world, f"work.{name}.example", Setting())
    right = KINDS[kinds[1]](world, f"work.{kinds[1]}.example", Setting())
    await play(report, f"{name}: libraries", (left, right), checks)


def png(red: int) -> bytes:
    """A picture of one colour, 8 by 8, different for every `red`."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes((red, 64, 128)) * 8 for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


# aioxmpp -------------------------------------------------------------------------------------------------------------

CONNECTORS = {"STARTTLS": aioxmpp.connector.STARTTLSConnector, "direct TLS": aioxmpp.connector.XMPPOverTLSConnector}


class Aio:
    """`async with Aio(server, "romeo", services...) as romeo`: connected, with presence; `romeo[Service]`."""

    def __init__(self, server, name, *services, **options):
        connector = options.get("connector", aioxmpp.connector.STARTTLSConnector)
        def context(transport=None):
            made = OpenSSL.SSL.Context(OpenSSL.SSL.TLS_CLIENT_METHOD)
            made.set_min_proto_version(OpenSSL.SSL.TLS1_2_VERSION)
            made.load_verify_locations(str(server.world.pki.ca_file))
            return made

        async def answer(jid, attempt):
            return options.get("password", "secret") if attempt == 0 else None

        layers = aioxmpp.security_layer
        security = layers.SecurityLayer(
            context, layers.PKIXCertificateVerifier, True, (layers.PasswordSASLProvider(answer),))
        direct = connector is aioxmpp.connector.XMPPOverTLSConnector
        peer = options.get("peer", (server.address, server.c2s_tls if direct else server.c2s))
        self.client = aioxmpp.PresenceManagedClient(
            aioxmpp.JID(name, server.domain, None), security, max_initial_attempts=1, logger=QUIET,
            override_peer=[(*peer, connector())])
        self.services = {service: self.client.summon(service) for service in services}
        self.inbox = asyncio.Queue()
        dispatcher = self.client.summon(aioxmpp.dispatcher.SimpleMessageDispatcher)
        dispatcher.register_callback(aioxmpp.MessageType.CHAT, None, self.inbox.put_nowait)
        # Carbons come from oneself, of any type.
        dispatcher.register_callback(aioxmpp.MessageType.NORMAL, None, self.inbox.put_nowait)
        self.connected = self.client.connected(presence=aioxmpp.PresenceState(True))

    def __getitem__(self, service):
        return self.services[service]

    async def __aenter__(self):
        await asyncio.wait_for(self.connected.__aenter__(), PATIENCE)
        self.jid = self.client.local_jid
        return self

    async def __aexit__(self, *error):
        await asyncio.wait_for(self.connected.__aexit__(*error), PATIENCE)

    async def say(self, to, text):
        note = aioxmpp.Message(type_=aioxmpp.MessageType.CHAT, to=to)
        note.body[None] = text
        await self.client.send(note)

    async def expect(self, what, match):
        async def search():
            while not match(found := await self.inbox.get()):
                pass
            return found

        try:
            return await asyncio.wait_for(search(), PATIENCE)
        except TimeoutError:
            raise AssertionError(f"{self.client.local_jid}: no {what}") from None


def said(text):
    return lambda note: note.body.any() == text if note.body else False


async def until(what, look, seconds=PATIENCE):
    for _ in range(seconds * 20):
        if found := look():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"no {what} within {seconds} s")


def aio_login(connector):
    async def scenario(pair):
        """The library's own check of the certificate, SCRAM, binding, roster, presence; a wrong password fails."""
        async with Aio(pair.left, "romeo", aioxmpp.DiscoClient, connector=connector) as romeo:
            domain = aioxmpp.JID.fromstr(pair.left.domain)
            await aioxmpp.ping.ping(romeo.client, domain)
            version = await aioxmpp.version.query_version(romeo.client.stream, domain)
            info = await romeo[aioxmpp.DiscoClient].query_info(domain)
            assert ("server", "im") in {(i.category, i.type_) for i in info.identities}, "no server"
            assert romeo.client.stream.sm_enabled, "no stream management"
        try:
            async with Aio(pair.left, "romeo", connector=connector, password="wrong"):
                raise AssertionError("a wrong password got in")
        except aiosasl.AuthenticationFailure:
            pass
        return version.name
    return scenario


async def aio_roster(pair):
    """Subscription both ways between two people, with the library's bookkeeping of both rosters."""
    services = aioxmpp.RosterClient, aioxmpp.PresenceClient
    async with Aio(pair.left, "romeo", *services) as romeo, Aio(pair.left, "juliet", *services) as juliet:
        for me in (romeo, juliet):
            me[aioxmpp.RosterClient].on_subscribe.connect(lambda x, me=me: me[aioxmpp.RosterClient].approve(x.from_))
        for me, other in ((romeo, juliet), (juliet, romeo)):
            await me[aioxmpp.RosterClient].set_entry(other.jid.bare(), name="a friend", add_to_groups={"Verona"})
            me[aioxmpp.RosterClient].subscribe(other.jid.bare())
        for me, other in ((romeo, juliet), (juliet, romeo)):
            items, jid = me[aioxmpp.RosterClient].items, other.jid.bare()
            await until("subscription both", lambda: jid in items and items[jid].subscription == "both")
            assert items[jid].name == "a friend" and items[jid].groups == {"Verona"}, items[jid].export_as_json()
            await until("presence", lambda: me[aioxmpp.PresenceClient].get_peer_resources(jid))
        for me, other in ((romeo, juliet), (juliet, romeo)):
            await me[aioxmpp.RosterClient].remove_entry(other.jid.bare())


async def aio_carbons(pair):
    """Two devices and a friend on the other server: messages both ways, and their copies (XEP-0280)."""
    juliet = Client(pair.right, "juliet")
    try:
        await juliet.login()
        async with Aio(pair.left, "romeo", aioxmpp.CarbonsClient) as phone, \
                Aio(pair.left, "romeo", aioxmpp.CarbonsClient) as laptop:
            for device in (phone, laptop):
                await device[aioxmpp.CarbonsClient].enable()
            text = f"sent {uuid.uuid4()}"
            await phone.say(aioxmpp.JID.fromstr(juliet.boundjid.bare), text)
            await juliet.expect("message", message(text=text), PATIENCE)

            def copy(way, text):
                def match(note):
                    carbon = getattr(note, way)
                    return carbon is not None and said(text)(carbon.stanza)
                return match

            await laptop.expect("copy of what was sent", copy("xep0280_sent", text))
            text = f"received {uuid.uuid4()}"
            juliet.say(str(phone.jid), text)
            await phone.expect("message", said(text))
            await laptop.expect("copy of what was received", copy("xep0280_received", text))
    finally:
        await juliet.logout()


async def aio_blocking(pair):
    """XEP-0191: the list is pushed to the other device, and the blocked are silent until they are let in again."""
    service = aioxmpp.BlockingClient
    async with Aio(pair.left, "romeo", service) as phone, Aio(pair.left, "romeo", service) as laptop, \
            Aio(pair.left, "juliet") as juliet:
        jid = juliet.jid.bare()
        await phone[service].block_jids([jid])
        await until("push of the block list", lambda: jid in laptop[service].blocklist)
        try:
            await aioxmpp.ping.ping(juliet.client, phone.jid)
            raise AssertionError("the blocked may ping")
        except aioxmpp.errors.XMPPCancelError:
            pass
        await laptop[service].unblock_all()
        await until("push of the end", lambda: not phone[service].blocklist)
        text = f"again {uuid.uuid4()}"
        await juliet.say(phone.jid, text)
        await phone.expect("message of who is let in again", said(text))


async def aio_bookmarks(pair):
    """XEP-0048 in private XML: kept, and there for the next device."""
    room = aioxmpp.bookmarks.xso.Conference("The Balcony", aioxmpp.JID.fromstr("balcony@rooms.example"), nick="Romeo")
    async with Aio(pair.left, "romeo", aioxmpp.BookmarkClient) as phone:
        await phone[aioxmpp.BookmarkClient].set_bookmarks([])
        await phone[aioxmpp.BookmarkClient].add_bookmark(room)
    async with Aio(pair.left, "romeo", aioxmpp.BookmarkClient) as laptop:
        kept = await laptop[aioxmpp.BookmarkClient].get_bookmarks()
        assert [(b.name, str(b.jid), b.nick) for b in kept] == [("The Balcony", "balcony@rooms.example", "Romeo")], kept
        await laptop[aioxmpp.BookmarkClient].set_bookmarks([])


async def aio_vcard(pair):
    """vcard-temp with a photo: set by one, read by another."""
    picture = png(1)
    service = aioxmpp.vcard.VCardService
    async with Aio(pair.left, "romeo", service) as romeo, Aio(pair.left, "juliet", service) as juliet:
        card = await romeo[service].get_vcard()
        card.set_photo_data("image/png", picture)
        await romeo[service].set_vcard(card)
        seen = await juliet[service].get_vcard(romeo.jid.bare())
        assert seen.get_photo_data() == picture, "another photo"
        card.clear_photo_data()
        await romeo[service].set_vcard(card)


class Relay:
    """A line between client and server that can be cut, as a lost network would."""

    async def start(self, address, port):
        self.target, self.pipes = (address, port), set()
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def accept(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        self.pipes |= {writer, far_writer}
        await asyncio.gather(self.copy(reader, far_writer), self.copy(far_reader, writer))

    async def copy(self, reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    def cut(self):
        for writer in self.pipes:
            writer.transport.abort()
        self.pipes = set()


async def aio_resumption(pair):
    """The connection is cut; the library comes back by itself, resumes, and nothing is missing or twice."""
    relay = await Relay().start(pair.left.address, pair.left.c2s)
    try:
        async with Aio(pair.left, "romeo", peer=("127.0.0.1", relay.port)) as romeo, Aio(pair.left, "juliet") as juliet:
            resumed, lost = asyncio.Event(), []
            romeo.client.on_stream_resumed.connect(resumed.set)
            romeo.client.on_stream_destroyed.connect(lambda *_: lost.append(1))
            relay.cut()
            texts = [f"during the cut {n} {uuid.uuid4()}" for n in range(5)]
            for text in texts:
                await juliet.say(romeo.jid, text)
            await asyncio.wait_for(resumed.wait(), PATIENCE)
            came = [(await romeo.expect("message of the cut", lambda _: True)).body.any() for _ in texts]
            assert came == texts, came
            await asyncio.sleep(0.3)
            assert romeo.inbox.empty() and not lost, "twice, or a new session instead of the old one"
    finally:
        relay.server.close()


async def aio_avatar(pair):
    """XEP-0084: one publishes a picture, a contact is told of it unasked and fetches it."""
    services = (aioxmpp.EntityCapsService, aioxmpp.RosterClient, aioxmpp.PEPClient, aioxmpp.AvatarService)
    async with Aio(pair.left, "romeo", *services) as romeo, Aio(pair.left, "juliet", *services) as juliet:
        for me in (romeo, juliet):
            me[aioxmpp.RosterClient].on_subscribe.connect(lambda x, me=me: me[aioxmpp.RosterClient].approve(x.from_))
        for me, other in ((romeo, juliet), (juliet, romeo)):
            me[aioxmpp.RosterClient].subscribe(other.jid.bare())
        for me, other in ((romeo, juliet), (juliet, romeo)):
            items, jid = me[aioxmpp.RosterClient].items, other.jid.bare()
            await until("subscription both", lambda: jid in items and items[jid].subscription == "both")
        assert await romeo[aioxmpp.PEPClient].available(), "the library finds no PEP"
        told = []
        juliet[aioxmpp.AvatarService].on_metadata_changed.connect(lambda jid, found: told.append((jid, found)))
        picture = png(3)
        pictures = aioxmpp.avatar.AvatarSet()
        pictures.add_avatar_image("image/png", image_bytes=picture)
        await romeo[aioxmpp.AvatarService].publish_avatar_set(pictures)
        jid = romeo.jid.bare()
        await until("news of the picture", lambda: [1 for who, found in told if who.bare() == jid and found])
        found = next(found for who, found in reversed(told) if who.bare() == jid and found)
        assert await found[0].get_image_bytes() == picture, "another picture"
        await romeo[aioxmpp.AvatarService].disable_avatar()
        await until("news that it is gone", lambda: [1 for who, found in told[-1:] if who.bare() == jid and not found])
        for me, other in ((romeo, juliet), (juliet, romeo)):
            await me[aioxmpp.RosterClient].remove_entry(other.jid.bare())


class Kept(aioxmpp.xso.XSO):
    """A message of an archive; of XEP-0313 and XEP-0357 the library has nothing, but the means to say it."""

    TAG = ("urn:xmpp:mam:2", "result")
    forwarded = aioxmpp.xso.Child([aioxmpp.misc.Forwarded], required=True)


@aioxmpp.IQ.as_payload_class
class Query(aioxmpp.xso.XSO):
    TAG = ("urn:xmpp:mam:2", "query")
    page = aioxmpp.xso.Child([aioxmpp.rsm.xso.ResultSetMetadata])


@aioxmpp.IQ.as_payload_class
class Fin(aioxmpp.xso.XSO):
    TAG = ("urn:xmpp:mam:2", "fin")
    complete = aioxmpp.xso.Attr("complete", type_=aioxmpp.xso.Bool(), default=False)
    page = aioxmpp.xso.Child([aioxmpp.rsm.xso.ResultSetMetadata])


@aioxmpp.IQ.as_payload_class
class Enable(aioxmpp.xso.XSO):
    TAG = ("urn:xmpp:push:0", "enable")
    jid = aioxmpp.xso.Attr("jid")
    node = aioxmpp.xso.Attr("node")


@aioxmpp.IQ.as_payload_class
class Disable(aioxmpp.xso.XSO):
    TAG = ("urn:xmpp:push:0", "disable")
    jid = aioxmpp.xso.Attr("jid")


aioxmpp.Message.kept = aioxmpp.xso.Child([Kept])


async def aio_history(pair):
    """XEP-0313: all that was said, on the device that was not there, read by pages of ten."""
    word = uuid.uuid4().hex
    texts = [f"{word} {n}" for n in range(25)]
    async with Aio(pair.left, "romeo") as romeo, Aio(pair.left, "juliet") as juliet:
        for text in texts:
            await romeo.say(juliet.jid.bare(), text)
            await juliet.expect("message", said(text))
    async with Aio(pair.left, "juliet") as laptop:
        page, found, pages = aioxmpp.rsm.xso.ResultSetMetadata.limit(10), [], 0
        while True:
            query = Query()
            query.page = page
            fin = await laptop.client.send(aioxmpp.IQ(type_=aioxmpp.IQType.SET, payload=query))
            pages += 1
            while not laptop.inbox.empty():
                note = laptop.inbox.get_nowait()
                if note.kept and (text := note.kept.forwarded.stanza.body.any()).startswith(word):
                    found.append(text)
            if fin.complete:
                break
            page = fin.page.next_page(max_=10)
    assert found == texts, found
    return f"{pages} pages"


async def aio_push(pair):
    """XEP-0357 with the stand-in: who is gone is woken, and finds what it was woken for."""
    node = f"phone-{uuid.uuid4().hex}"
    async with PushService(pair.left) as service, Aio(pair.left, "juliet") as juliet:
        async with Aio(pair.left, "romeo") as phone:
            enable = Enable()
            enable.jid, enable.node = f"push.{pair.left.domain}", node
            await phone.client.send(aioxmpp.IQ(type_=aioxmpp.IQType.SET, payload=enable))
            jid = phone.jid.bare()
        text = f"wake up {uuid.uuid4()}"
        await juliet.say(jid, text)
        push = await service.woken(node)
        assert text not in push, f"it tells too much: {push}"
        async with Aio(pair.left, "romeo") as phone:
            await phone.expect("message that it was woken for", said(text))
            disable = Disable()
            disable.jid = enable.jid
            await phone.client.send(aioxmpp.IQ(type_=aioxmpp.IQType.SET, payload=disable))


AIOXMPP = [aio_roster, aio_carbons, aio_blocking, aio_bookmarks, aio_vcard, aio_resumption, aio_avatar]
# The harness gives the others no archive and no push.
AIOXMPP_OURS = [aio_history, aio_push]


# slixmpp -------------------------------------------------------------------------------------------------------------

async def slix_history(pair):
    """XEP-0313 by the library's own iterator: all that was said, in order, by pages, and by partner.

    Not backwards: slixmpp 1.17 stops at the first page if the server tells index and count (XEP-0059 s.2.6); xmpp.js
    reads that way.
    """
    romeo, juliet, nurse = Client(pair.left, "romeo"), Client(pair.left, "juliet"), Client(pair.right, "juliet")
    reader = Client(pair.left, "romeo", plugins=["xep_0313"])
    try:
        await asyncio.gather(romeo.login(), juliet.login(), nurse.login())
        word, said = uuid.uuid4().hex, []
        for n in range(55):
            if n % 5 == 4:
                romeo.say(nurse.boundjid.bare, text := f"{word} {n} to the nurse")
                await nurse.expect("message", message(text=text), PATIENCE)
            elif n % 2:
                romeo.say(juliet.boundjid.bare, text := f"{word} {n} to juliet")
                await juliet.expect("message", message(text=text))
            else:
                juliet.say(romeo.boundjid.bare, text := f"{word} {n} from juliet")
                await romeo.expect("message", message(text=text))
            said.append(text)
        await reader.login(presence=False)

        async def texts(**how):
            found = reader.plugin["xep_0313"].iterate(rsm={"max": 10}, **how)
            every = [str(x["mam_result"]["forwarded"]["message"]["body"]) async for x in found]
            return [text for text in every if text.startswith(word)]

        assert await texts() == said, "not all that was said, in order"
        with_nurse = await texts(with_jid=nurse.boundjid.bare)
        assert with_nurse == [text for text in said if "nurse" in text], with_nurse
        metadata = await reader.plugin["xep_0313"].get_archive_metadata()
        assert metadata["mam_metadata"]["end"]["id"], "no last id"
        return f"{len(said)} messages"
    finally:
        await asyncio.gather(*(c.logout() for c in (romeo, juliet, nurse, reader)))


class Pictured(Client):
    """A client that shows and sees avatars; with a resource of its own choice, as `end_to_end.Device`."""

    def __init__(self, server, name):
        super().__init__(server, name, resource=uuid.uuid4().hex, plugins=["xep_0115", "xep_0084"])

    async def show(self, picture: bytes) -> str:
        """Publishes a picture; its id."""
        avatars = self.plugin["xep_0084"]
        await avatars.publish_avatar(picture)
        id = avatars.generate_id(picture)
        await avatars.publish_avatar_metadata({"id": id, "type": "image/png", "bytes": len(picture)})
        return id

    async def sees(self, jid: str, id: str, picture: bytes):
        """Is told of somebody's picture, and fetches it."""
        info = "{http://jabber.org/protocol/pubsub#event}event//{urn:xmpp:avatar:metadata}info"

        def told(x):
            return bare(x.get("from")) == jid and any(i.get("id") == id for i in x.findall(info))

        await self.expect("news of the picture", told, PATIENCE)
        answer = await self.plugin["xep_0084"].retrieve_avatar(jid, id)
        assert answer["pubsub"]["items"]["item"]["avatar_data"]["value"] == picture, "another picture"


async def slix_avatar(pair):
    """XEP-0084 between two providers: each is told of the other's picture unasked, also when coming back."""
    romeo, juliet = Pictured(pair.left, "romeo"), Pictured(pair.right, "juliet")
    again = Pictured(pair.right, "juliet")
    try:
        await asyncio.gather(romeo.login(), juliet.login())
        a, b = romeo.boundjid.bare, juliet.boundjid.bare
        # What was shown before the two knew each other comes with the subscription.
        first = png(4)
        id = await romeo.show(first)
        await befriend(romeo, juliet)
        await juliet.sees(a, id, first)
        await romeo.sees(b, await juliet.show(png(5)), png(5))
        second = png(6)
        await juliet.sees(a, id := await romeo.show(second), second)
        await juliet.logout()
        await romeo.expect("juliet gone", presence(b, "unavailable"), PATIENCE)
        await again.login()
        await again.sees(a, id, second)
    finally:
        await asyncio.gather(*(c.logout() for c in (romeo, juliet, again)), return_exceptions=True)
        await unfriend(pair)


class PushService:
    """The stand-in for an app's push service, of trunkline-load; `published` has a line for each push."""

    def __init__(self, server):
        self.server, self.published = server, []

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            str(self.server.world.trunkline.with_name("trunkline-load")), "push-service",
            "--component", f"{self.server.address}:{self.server.components}",
            "--domain", f"push.{self.server.domain}", "--secret", "s3cret",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        first = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE)
        assert b"connected" in first, f"the push service did not connect: {first!r}"
        self.reading = asyncio.create_task(self.read())
        return self

    async def read(self):
        while line := await self.process.stdout.readline():
            self.published.append(json.loads(line))

    async def __aexit__(self, *_):
        self.reading.cancel()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def woken(self, node):
        """Waits for a push to `node`, and takes it."""
        push = await until(f"push to {node}", lambda: next((p for p in self.published if node in json.dumps(p)), None))
        self.published.remove(push)
        return json.dumps(push)


async def slix_push(pair):
    """XEP-0357 with the stand-in: a phone that sleeps is woken for a message, says nothing of it, and finds it."""
    phone, juliet = Client(pair.left, "romeo"), Client(pair.right, "juliet")
    again, node = Client(pair.left, "romeo"), f"phone-{uuid.uuid4().hex}"
    try:
        async with PushService(pair.left) as service:
            await asyncio.gather(phone.login(), juliet.login())
            # Who is written to may answer.
            id = phone.say(juliet.boundjid.bare, "write to me")
            await juliet.expect("message", message(id), PATIENCE)
            enable = f"<enable xmlns='urn:xmpp:push:0' jid='push.{pair.left.domain}' node='{node}'/>"
            answer = await phone.iq(None, enable, "set")
            assert answer.get("type") == "result", condition(answer)
            id = juliet.say(phone.boundjid.bare, "awake")
            await phone.expect("message", message(id), PATIENCE)
            await phone.logout()
            id = juliet.say(phone.boundjid.bare, text := f"wake up {uuid.uuid4()}")
            push = await service.woken(node)
            assert text not in push and juliet.boundjid.bare not in push, f"it tells too much: {push}"
            await again.login()
            await again.expect("message that it was woken for", message(id, text), PATIENCE)
            disable = f"<disable xmlns='urn:xmpp:push:0' jid='push.{pair.left.domain}'/>"
            assert (await again.iq(None, disable, "set")).get("type") == "result"
            await again.logout()
            juliet.say(phone.boundjid.bare, "sleep on")
            await juliet.iq(pair.left.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
            await asyncio.sleep(1)
            assert not service.published, f"woken again: {service.published}"
    finally:
        await asyncio.gather(*(c.logout() for c in (phone, juliet, again)), return_exceptions=True)


SLIXMPP = [slix_history, slix_avatar, slix_push]


# xmpp.js -------------------------------------------------------------------------------------------------------------

TRANSPORTS = {
    "STARTTLS": lambda server: f"xmpp://{server.domain}:{server.c2s}",
    "direct TLS": lambda server: f"xmpps://{server.domain}:{server.c2s_tls}",
    "WebSocket": lambda server: f"wss://{server.domain}:{server.page_tls}/xmpp-websocket",
}
XMPP_JS = ["sign_in", "wrong_password", "fast", "resumption", "sync", "avatar", "push"]
# xmpp.js 0.14 writes while it handles `<resumed/>`; Node's TLS then hands it what waits inside that call, and its parser
# is not made for being entered twice. What a server sends at once after the resumption is garbled there.
XMPP_JS_CANNOT = {("STARTTLS", "resumption"), ("direct TLS", "resumption")}


def xmppjs(transport, scenario):
    async def check(pair):
        if scenario != "push":
            return await work(pair.left)
        async with PushService(pair.left) as service:
            node = await work(pair.left)
            await service.woken(node)
            return node

    async def work(server):
        world = {"service": TRANSPORTS[transport](server), "domain": server.domain, "address": server.address,
                 "password": "secret", "picture": base64.b64encode(png(2)).decode()}
        process = await asyncio.create_subprocess_exec(
            "node", str(XMPPJS), scenario, json.dumps(world), stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=dict(os.environ, NODE_EXTRA_CA_CERTS=str(server.world.pki.ca_file)))
        try:
            out, err = await asyncio.wait_for(process.communicate(), 80)
        except TimeoutError:
            process.kill()
            raise
        lines = out.decode(errors="replace").strip().splitlines()
        if not lines:
            raise RuntimeError(f"xmpp.js said nothing: {err.decode(errors='replace')[-1500:]}")
        result = json.loads(lines[-1])
        assert result["ok"], result["error"]
        return result["note"]
    return check
