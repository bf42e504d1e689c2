"""OMEMO end to end (XEP-0384): slixmpp with slixmpp-omemo, both unmodified, on two providers.

What the servers keep is searched for the plaintext afterwards: databases, logs, everything in their directories.
"""

import asyncio
import base64
import logging
import mmap
import os
import uuid
from functools import partial

from omemo.storage import Just, Maybe, Nothing, Storage
from slixmpp import Message
from slixmpp.plugins import register_plugin
from slixmpp_omemo import XEP_0384, TrustLevel

from clients import Client, kind, presence
from scenarios import PATIENCE, befriend, play
from servers import KINDS, Setting

OMEMO = "{eu.siacs.conversations.axolotl}"
DEVICES = "eu.siacs.conversations.axolotl.devicelist"
CARBON = "{urn:xmpp:carbons:2}%s/{urn:xmpp:forward:0}forwarded/{jabber:client}message"
ARCHIVED = "{urn:xmpp:mam:2}result/{urn:xmpp:forward:0}forwarded/{jabber:client}message"


class Memory(Storage):
    """Keys in memory; given to the next connection they are the same device again."""

    def __init__(self):
        super().__init__(True)
        self.values = {}

    async def _load(self, key: str) -> Maybe:
        return Just(self.values[key]) if key in self.values else Nothing()

    async def _store(self, key: str, value):
        self.values[key] = value

    async def _delete(self, key: str):
        self.values.pop(key, None)


class Omemo(XEP_0384):
    """The plugin with what it leaves to applications: where keys are kept, and whom to trust (here: everybody)."""

    name = "xep_0384"
    default_config = XEP_0384.default_config | {"memory": None}

    @property
    def storage(self) -> Storage:
        return self.memory

    @property
    def _btbv_enabled(self) -> bool:
        return True

    async def _prompt_manual_trust(self, manually_trusted, identifier):
        session_manager = await self.get_session_manager()
        for device in manually_trusted:
            await session_manager.set_trust(
                device.bare_jid, device.identity_key, TrustLevel.TRUSTED.value)


register_plugin(Omemo)
logging.getLogger("omemo").setLevel(logging.CRITICAL)


class Device(Client):
    """A client with OMEMO and carbons. `knows` is for its view of somebody's devices."""

    def __init__(self, server, name: str, memory: Memory | None = None):
        # With a resource of its own choice: the library notes its interests for the address it has before it is bound.
        super().__init__(server, name, resource=uuid.uuid4().hex, plugins=["xep_0115", "xep_0280", "xep_0313"])
        self.memory = memory or Memory()
        self.register_plugin("xep_0384", {"memory": self.memory}, module=__import__(__name__))
        self.ready = asyncio.Event()
        self.add_event_handler("omemo_initialized", lambda _: self.ready.set())

    async def enter(self):
        await self.login()
        await asyncio.wait_for(self.ready.wait(), PATIENCE)
        answer = await self.iq(None, "<enable xmlns='urn:xmpp:carbons:2'/>", "set")
        assert answer.get("type") == "result", "no carbons"
        return self

    async def devices(self, jid: str) -> set[int]:
        manager = await self.plugin["xep_0384"].get_session_manager()
        return {d.device_id for d in await manager.get_device_information(jid) if dict(d.active).get(OMEMO[1:-1])}

    async def own(self) -> int:
        manager = await self.plugin["xep_0384"].get_session_manager()
        return (await manager.get_own_device_information())[0].device_id

    async def knows(self, jid: str, ids: set[int]):
        """Waits until the device list of somebody has come by itself: nobody asks for it here."""
        for _ in range(PATIENCE * 10):
            if ids <= await self.devices(jid):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{self.boundjid} knows {await self.devices(jid)} of {jid}, not {ids}: no push of {DEVICES}")

    async def whisper(self, to: str, text: str) -> str:
        """Sends `text`, encrypted; the id of the message."""
        plain = self.make_message(mto=to, mtype="chat")
        plain["body"], plain["id"] = text, uuid.uuid4().hex
        encrypted, errors = await self.plugin["xep_0384"].encrypt_message(plain, plain["to"])
        assert encrypted is not None and not errors, f"not encrypted for every device: {errors}"
        assert encrypted["body"] != text
        encrypted.send()
        return plain["id"]

    async def reads(self, id: str, text: str, path: str = ""):
        """Expects the message `id`, itself or inside what `path` leads to, and decrypts it."""

        def inner(x):
            return x.find(path) if path else x

        def match(x):
            m = inner(x) if kind(x) == "message" else None
            return m is not None and m.get("id") == id and m.get("type") != "error"

        xml = inner(await self.expect("encrypted message", match, PATIENCE))
        assert xml.find(f"{OMEMO}encrypted") is not None, "it came without its encrypted part"
        message, _ = await self.plugin["xep_0384"].decrypt_message(Message(self, xml))
        assert message["body"] == text, f"decrypted to {message['body']!r}"


async def whispers(pair, secrets):
    """Device lists come by +notify, bundles on request, and what is said is read by the right devices only."""
    romeo, juliet = Device(pair.left, "romeo"), Device(pair.right, "juliet")
    laptop, again = Device(pair.left, "romeo"), Device(pair.right, "juliet", juliet.memory)
    try:
        await asyncio.gather(romeo.enter(), juliet.enter())
        a, b = romeo.boundjid.bare, juliet.boundjid.bare
        await befriend(romeo, juliet)
        await asyncio.gather(romeo.knows(b, {await juliet.own()}), juliet.knows(a, {await romeo.own()}))
        # The first message of a session carries the key exchange, those after the first answer only the ratchet.
        for n in range(3):
            for one, other in ((romeo, juliet), (juliet, romeo)):
                text = secrets.new(f"{n}")
                await other.reads(await one.whisper(other.boundjid.bare, text), text)
        # What is sent to somebody offline waits, encrypted.
        await juliet.logout()
        await romeo.expect("juliet gone", presence(b, "unavailable"), PATIENCE)
        text = secrets.new("offline")
        id = await romeo.whisper(b, text)
        await romeo.iq(juliet.boundjid.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
        secrets.look("while it waits")
        await again.enter()
        await again.reads(id, text)
        # A second device of romeo's: its list reaches the contact, and from then on it reads too.
        await laptop.enter()
        both = {await romeo.own(), await laptop.own()}
        assert len(both) == 2
        await asyncio.gather(again.knows(a, both), romeo.knows(a, both))
        text = secrets.new("two devices")
        id = await again.whisper(a, text)
        await asyncio.gather(romeo.reads(id, text), laptop.reads(id, text))
        text = secrets.new("a copy of what was sent")
        id = await romeo.whisper(b, text)
        await asyncio.gather(again.reads(id, text), laptop.reads(id, text, CARBON % "sent"))
        return f"{len(secrets.texts)} messages"
    finally:
        await asyncio.gather(*(d.logout() for d in (romeo, juliet, laptop, again)), return_exceptions=True)


async def archived(pair, secrets):
    """A new device reads from the archive what was said to it while it was away, and it alone can."""
    romeo, juliet = Device(pair.left, "romeo"), Device(pair.right, "juliet")
    later = Device(pair.left, "romeo", romeo.memory)
    try:
        await asyncio.gather(romeo.enter(), juliet.enter())
        a, b = romeo.boundjid.bare, juliet.boundjid.bare
        # They are friends since the scenario before.
        await asyncio.gather(romeo.knows(b, {await juliet.own()}), juliet.knows(a, {await romeo.own()}))
        await romeo.logout()
        await juliet.expect("romeo gone", presence(a, "unavailable"), PATIENCE)
        text = secrets.new("for the archive")
        id = await juliet.whisper(a, text)
        await juliet.iq(romeo.boundjid.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
        # Without presence nothing is delivered: it comes from the archive.
        await later.login(presence=False)
        query = ("<query xmlns='urn:xmpp:mam:2'><x xmlns='jabber:x:data' type='submit'>"
                 "<field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field>"
                 f"<field var='with'><value>{b}</value></field></x>"
                 "<set xmlns='http://jabber.org/protocol/rsm'><max>1</max><before/></set></query>")
        answer = await later.iq(None, query, "set")
        assert answer.get("type") == "result", "the archive does not answer"
        await later.reads(id, text, ARCHIVED)
    finally:
        await asyncio.gather(*(d.logout() for d in (romeo, juliet, later)), return_exceptions=True)


class Secrets:
    """What was said, and the search for it in all that the servers have written."""

    def __init__(self, servers):
        self.servers, self.texts, self.searched = servers, [], 0

    def new(self, what: str) -> str:
        self.texts.append(f"{uuid.uuid4().hex} {what}: a name I call my own")
        return self.texts[-1]

    def look(self, when: str):
        for server in self.servers:
            files, size = 0, 0
            for path, data in files_of(server.dir):
                files, size = files + 1, size + len(data)
                for text in self.texts:
                    assert not found(data, text), f"plaintext in {path.relative_to(server.dir)} of {server.kind}, {when}"
            assert files and size, f"nothing was searched at {server.kind}"
            self.searched += size

    def seen_in_the_clear(self, text: str) -> dict[str, list[str]]:
        """The proof that the search finds: where something that was not encrypted stands."""
        return {server.kind: [path.name for path, data in files_of(server.dir) if found(data, text)]
                for server in self.servers}


def files_of(directory):
    for folder, _, names in os.walk(directory):
        for name in sorted(names):
            path = directory.__class__(folder) / name
            if path.is_file() and path.stat().st_size:
                with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    yield path, data


def found(data, text: str) -> bool:
    """The text itself, or the random word it begins with: as bytes, as UTF-16, in hexadecimal, in base64."""
    word = text.split(" ", 1)[0]
    raw = word.encode()
    # Three ways to lie between the groups of base64; the ends depend on the neighbours.
    shifted = [base64.b64encode(b"\0" * n + raw)[4 if n else 0:-4] for n in range(3)]
    forms = [raw, word.encode("utf-16-le"), raw.hex().encode(), raw.hex().upper().encode(), *shifted]
    return any(data.find(form) >= 0 for form in forms)


async def search(pair, secrets):
    """Neither database nor log has the plaintext, running or stopped; a message in the clear is found by the same search."""
    romeo, juliet = Client(pair.left, "romeo"), Client(pair.right, "juliet")
    plain = f"{uuid.uuid4().hex} in the clear"
    try:
        await asyncio.gather(romeo.login(), juliet.login())
        await juliet.logout()
        await romeo.expect("juliet gone", presence(juliet.boundjid.bare, "unavailable"), PATIENCE)
        id = romeo.say(juliet.boundjid.bare, plain)
        await romeo.iq(juliet.boundjid.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
    finally:
        await asyncio.gather(romeo.logout(), juliet.logout(), return_exceptions=True)
    assert id
    assert secrets.texts, "nothing was said"
    secrets.look("running")
    await asyncio.gather(pair.left.stop(), pair.right.stop())
    secrets.look("stopped")
    places = secrets.seen_in_the_clear(plain)
    for server in secrets.servers:
        assert places[server.kind], f"the search does not find a message in the clear at {server.kind}"
        if server.kind == "trunkline":
            assert b" DEBUG " in (server.dir / "console.log").read_bytes(), "not all was logged that can be"
            logs = [name for name in places[server.kind] if name.endswith(".log")]
            assert not logs, f"a message's text is in the log: {logs}"
    return f"{len(secrets.texts)} texts, {secrets.searched / 1e6:.0f} MB; one in the clear stands in {places}"


async def run(report, world, kinds):
    """OMEMO between two servers; the first one's archive is used if it is ours."""
    name = f"{'-'.join(kinds)} omemo"
    scenarios = [whispers, archived, search] if kinds[0] == "trunkline" else [whispers, search]
    checks = [(f"{name}: {s.__name__}", s) for s in scenarios]
    if not any(report.wanted(check) for check, _ in checks):
        return
    left = KINDS[kinds[0]](world, f"left.{kinds[0]}.example", Setting())
    right = KINDS[kinds[1]](world, f"right.{kinds[1]}.example", Setting())
    for server in (left, right):
        server.verbose = True
    secrets = Secrets([left, right])
    await play(report, name, (left, right), [(check, partial(s, secrets=secrets)) for check, s in checks], 120)

