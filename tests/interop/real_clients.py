"""Unmodified clients: slixmpp for what a script can check, profanity driven in a terminal by its keyboard."""

import asyncio
import base64
import hashlib
import os
import shlex
import struct
import time
import zlib

from clients import Client, Timeout, body, condition, kind, message, presence, roster_push
from scenarios import PATIENCE, befriend, people, play
from servers import KINDS, Setting

FORWARDED = "{urn:xmpp:carbons:2}%s/{urn:xmpp:forward:0}forwarded/{jabber:client}message"


async def run(report, world, kinds=("trunkline", "prosody")):
    """Clients on the first server, some with a friend on the second."""
    name = kinds[0]
    checks = []
    for direct in (False, True):
        for mechanism in ("SCRAM-SHA-1", "SCRAM-SHA-256", "PLAIN", None):
            where = "direct TLS" if direct else "STARTTLS"
            checks.append((f"{name} slixmpp: login, {where}, {mechanism or 'its own choice'}",
                           login(direct, mechanism)))
    # What XEP-0398 and XEP-0411 want of a server, the other one does in its own way or in part.
    ours = (profile, bookmarks) if name == "trunkline" else ()
    for scenario in (wrong_password, roster, carbons, *ours, resumption):
        checks.append((f"{name} slixmpp: {scenario.__name__}", scenario))
    checks.append((f"{name} trunkline-client: logins, acknowledgements, resumption", own_client))
    checks.append((f"{name} profanity: local chat", profanity_local))
    checks.append((f"{name} profanity: chat with {kinds[1]}", profanity_federated))
    if not any(report.wanted(check) for check, _ in checks):
        return
    left = KINDS[kinds[0]](world, f"{kinds[0]}.example", Setting())
    right = KINDS[kinds[1]](world, f"{kinds[1]}.example", Setting())
    await play(report, f"{name}: clients", (left, right), checks)


def login(direct, mechanism):
    async def scenario(pair):
        client = Client(pair.left, "romeo", direct=direct, mechanism=mechanism)
        used = []
        client.add_event_handler("auth_success", lambda _: used.append(client["feature_mechanisms"].mech.name))
        try:
            await client.login()
            if mechanism:
                assert used == [mechanism], used
            answer = await client.iq(pair.left.domain, "<ping xmlns='urn:xmpp:ping'/>")
            assert answer.get("type") == "result", condition(answer)
        finally:
            await client.logout()
        return f"{used[0]}, {client.boundjid.full}" if used else ""
    return scenario


async def wrong_password(pair):
    """A wrong password and an unknown user are refused, and look the same."""
    for user, password in (("romeo", "wrong"), ("nobody", "secret")):
        client = Client(pair.left, user, password)
        reasons = []
        client.add_event_handler("failed_auth", lambda x: reasons.append(x["condition"]))
        try:
            await client.login()
        except Timeout:
            pass
        else:
            raise AssertionError(f"{user} with password {password!r} got in")
        finally:
            await client.logout()
        assert reasons and set(reasons) <= {"not-authorized"}, reasons


async def roster(pair):
    """A change of the roster reaches all devices, and is there at the next login."""
    phone, laptop = Client(pair.left, "romeo"), Client(pair.left, "romeo")
    query = "<query xmlns='jabber:iq:roster'><item jid='nurse@%s' %s/></query>"
    try:
        await phone.login()
        await laptop.login()
        answer = await phone.iq(None, query % (pair.left.domain, "name='The Nurse'"), "set")
        assert answer.get("type") == "result", condition(answer)
        for device in (phone, laptop):
            await device.expect("push", roster_push(f"nurse@{pair.left.domain}", "none"))
        answer = await laptop.iq(None, "<query xmlns='jabber:iq:roster'/>")
        names = [i.get("name") for i in answer.iter("{jabber:iq:roster}item")]
        assert "The Nurse" in names, names
        answer = await laptop.iq(None, query % (pair.left.domain, "subscription='remove'"), "set")
        assert answer.get("type") == "result", condition(answer)
        await phone.expect("push", roster_push(f"nurse@{pair.left.domain}", "remove"))
    finally:
        await asyncio.gather(phone.logout(), laptop.logout())


async def carbons(pair):
    """XEP-0280: the other device sees what one device sends and what it receives."""
    phone, laptop, juliet = Client(pair.left, "romeo"), Client(pair.left, "romeo"), Client(pair.right, "juliet")
    try:
        await asyncio.gather(*(c.login() for c in (phone, laptop, juliet)))
        for device in (phone, laptop):
            answer = await device.iq(None, "<enable xmlns='urn:xmpp:carbons:2'/>", "set")
            assert answer.get("type") == "result", condition(answer)

        def copy(direction, text):
            def match(x):
                inner = x.find(FORWARDED % direction)
                return kind(x) == "message" and inner is not None and body(inner) == text
            return match

        phone.say(juliet.boundjid.bare, "from the phone")
        await juliet.expect("message", message(text="from the phone"), PATIENCE)
        await laptop.expect("copy of what was sent", copy("sent", "from the phone"))
        juliet.say(phone.boundjid.full, "to the phone")
        await phone.expect("message", message(text="to the phone"), PATIENCE)
        await laptop.expect("copy of what was received", copy("received", "to the phone"))
        await phone.absent("copy on the device that has the original", copy("received", "to the phone"), 0.5)
    finally:
        await asyncio.gather(phone.logout(), laptop.logout(), juliet.logout())


def png() -> bytes:
    """A picture, 1 by 1."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"\0\1\2\3")) + chunk(b"IEND", b""))


async def profile(pair):
    """XEP-0398: a picture published in PEP is in the vCard and in presence, for a contact at the other provider too, and
    the other way round; a vCard4 (XEP-0292) and a vCard of XEP-0054 say the same."""
    picture, plugins = png(), ["xep_0054", "xep_0060", "xep_0084", "xep_0163", "xep_0292"]
    name = hashlib.sha1(picture).hexdigest()
    update = "{vcard-temp:x:update}x/{vcard-temp:x:update}photo"

    def shows(sender, text):
        def match(x):
            photo = x.find(update)
            return presence(sender)(x) and photo is not None and (photo.text or "") == text
        return match

    async with people(pair, plugins=plugins) as (romeo, juliet):
        await befriend(romeo, juliet)
        me = romeo.boundjid.bare
        await romeo["xep_0084"].publish_avatar(picture, timeout=10)
        await romeo["xep_0084"].publish_avatar_metadata(
            [{"id": name, "type": "image/png", "bytes": str(len(picture))}], timeout=10)
        await juliet.expect("presence with the hash", shows(me, name), PATIENCE)
        seen = (await juliet["xep_0054"].get_vcard(me, timeout=10))["vcard_temp"]
        assert seen["PHOTO"]["BINVAL"] == picture, "another picture"
        # Back: a vCard without it takes it away, and says the other things in the vCard4.
        card = romeo["xep_0054"].make_vcard()
        card["FN"] = "Romeo M."
        await romeo["xep_0054"].publish_vcard(card, timeout=10)
        await juliet.expect("presence without a hash", shows(me, ""), PATIENCE)
        new = await juliet["xep_0060"].get_item(me, "urn:xmpp:vcard4", "current", timeout=10)
        names = [fn.text for fn in new.xml.iterfind(".//{%s}fn/{%s}text" % (("urn:ietf:params:xml:ns:vcard-4.0",) * 2))]
        assert names == ["Romeo M."], new
        # A client that writes only the old one.
        card["PHOTO"]["TYPE"], card["PHOTO"]["BINVAL"] = "image/png", picture
        await romeo["xep_0054"].publish_vcard(card, timeout=10)
        await juliet.expect("presence with the hash again", shows(me, name), PATIENCE)
        data = await juliet["xep_0084"].retrieve_avatar(me, name, timeout=10)
        assert base64.b64decode("".join(data.xml.itertext())) == picture, "another picture"
        # And one that writes only the new one.
        await romeo["xep_0292"].publish_vcard(full_name="Romeo Montague", note="in love", node="urn:xmpp:vcard4", timeout=10)
        seen = (await juliet["xep_0054"].get_vcard(me, timeout=10))["vcard_temp"]
        found = {field.tag.rpartition("}")[2]: field.text for field in seen.xml}
        assert (found["FN"], found["NOTE"]) == ("Romeo Montague", "in love"), seen
        assert seen["PHOTO"]["BINVAL"] == picture, "the picture is gone"
        for one, other in ((romeo, juliet), (juliet, romeo)):
            item = f"<item jid='{other.boundjid.bare}' subscription='remove'/>"
            await one.iq(None, f"<query xmlns='jabber:iq:roster'>{item}</query>", "set")


async def bookmarks(pair):
    """XEP-0411: a bookmark of XEP-0402 is in private XML, and one put there is an item of XEP-0402."""
    plugins = ["xep_0048", "xep_0049", "xep_0060", "xep_0163", "xep_0402"]
    phone = Client(pair.left, "romeo", plugins=plugins)
    node = "urn:xmpp:bookmarks:1"
    try:
        await phone.login()
        conference = phone["xep_0402"].stanza.Conference()
        conference["name"], conference["nick"], conference["autojoin"] = "The Balcony", "Romeo", True
        await phone["xep_0163"].publish(conference, node=node, id="balcony@rooms.example", timeout=10)
        old = (await phone["xep_0048"].get_bookmarks(method="xep_0049", timeout=10))["private"]["bookmarks"]
        [room] = old["conferences"]
        assert (str(room["jid"]), room["nick"], room["autojoin"]) == ("balcony@rooms.example", "Romeo", True), room
        old.add_conference("orchard@rooms.example", "Romeo", autojoin=False)
        await phone["xep_0048"].set_bookmarks(old, method="xep_0049", timeout=10)
        items = await phone["xep_0060"].get_items(None, node, timeout=10)
        found = {i["id"]: i["conference"]["autojoin"] for i in items["pubsub"]["items"]}
        assert found == {"balcony@rooms.example": True, "orchard@rooms.example": False}, found
        for room in found:
            await phone["xep_0060"].retract(None, node, room, timeout=10)
        old = (await phone["xep_0048"].get_bookmarks(method="xep_0049", timeout=10))["private"]["bookmarks"]
        assert not list(old["conferences"]), old
    finally:
        await phone.logout()


async def resumption(pair):
    """XEP-0198: the connection is cut, messages go on, the client resumes and misses nothing."""
    romeo, juliet = Client(pair.left, "romeo", plugins=["xep_0198"]), Client(pair.right, "juliet")
    try:
        await asyncio.gather(romeo.login(), juliet.login())
        for _ in range(50):
            if romeo["xep_0198"].sm_id:
                break
            await asyncio.sleep(0.1)
        assert romeo["xep_0198"].sm_id, "no resumable session"
        resumed = asyncio.get_running_loop().create_future()
        romeo.add_event_handler("session_resumed", lambda _: resumed.done() or resumed.set_result(True))
        romeo.add_event_handler("session_start", lambda _: resumed.done() or resumed.set_result(False))
        full = romeo.boundjid.full
        romeo.transport.abort()
        await asyncio.sleep(0.2)
        ids = [juliet.say(full, f"during the cut, {n}") for n in range(5)]
        await juliet.iq(pair.left.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
        romeo.connect(pair.left.address, pair.left.c2s)
        assert await asyncio.wait_for(resumed, 20), "a new session instead of the old one"
        for id in ids:
            await romeo.expect("message sent during the cut", message(id))
        assert romeo.boundjid.full == full
        await romeo.absent("second copy", message(ids[0]), 0.5)
    finally:
        await asyncio.gather(romeo.logout(), juliet.logout())


async def own_client(pair):
    """The client of crates/client, on which the demo, the crash test and the load generator stand."""
    server, program = pair.left, pair.left.world.client_check
    if not (program and program.exists()):
        raise RuntimeError("there is no client-check binary (--client-check)")
    process = await asyncio.create_subprocess_exec(
        str(program), f"{server.address}:{server.c2s}", f"{server.address}:{server.c2s_tls}", server.domain,
        str(server.world.pki.ca_file), "romeo", "secret",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, out.decode(errors="replace")


class Profanity:
    """profanity in a tmux of its own; `type` presses keys, `see` waits until the screen shows a text."""

    count = 0

    def __init__(self, server, user: str):
        Profanity.count += 1
        self.server, self.user = server, user
        self.home = server.dir / f"profanity-{Profanity.count}"
        self.socket = str(self.home / "tmux")

    async def tmux(self, *arguments) -> str:
        process = await asyncio.create_subprocess_exec(
            "tmux", "-f", "/dev/null", "-S", self.socket, *arguments, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(os.environ, LC_ALL="C.UTF-8", TERM="xterm", TMUX="", HOME=str(self.home)))
        out, _ = await asyncio.wait_for(process.communicate(), 10)
        if process.returncode:
            raise RuntimeError(f"tmux {arguments[0]}: {out.decode(errors='replace')}")
        return out.decode(errors="replace")

    async def __aenter__(self):
        for folder in (".config", ".local/share", ".cache"):
            (self.home / folder).mkdir(parents=True)
        directories = (f"HOME={self.home} XDG_CONFIG_HOME={self.home}/.config XDG_DATA_HOME={self.home}/.local/share "
                       f"XDG_CACHE_HOME={self.home}/.cache")
        await self.tmux("new-session", "-d", "-x", "180", "-y", "50",
                        f"env {directories} profanity -l DEBUG 2>{shlex.quote(str(self.home / 'stderr'))}")
        try:
            await self.see("Profanity", 20)
            await self.type("/wins autotidy off")
            await self.type(f"/connect {self.user}@{self.server.domain} server {self.server.address} "
                            f"port {self.server.c2s} tls trust")
            await self.see("Enter password", 20)
            await self.type("secret")
            await self.see("logged in successfully", 30)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_):
        try:
            await self.type("/quit")
            await asyncio.sleep(0.5)
            await self.tmux("kill-server")
        except RuntimeError:
            pass  # it has ended by itself

    async def type(self, text: str):
        await self.tmux("send-keys", "-l", text)
        await self.tmux("send-keys", "Enter")

    async def see(self, text: str, seconds: float = 20) -> str:
        end = time.monotonic() + seconds
        while True:
            screen = await self.tmux("capture-pane", "-p")
            if text in screen:
                return screen
            if time.monotonic() > end:
                lines = "\n".join(line for line in screen.splitlines() if line.strip())
                raise Timeout(f"profanity does not show {text!r}:\n{lines}")
            await asyncio.sleep(0.1)


async def profanity_local(pair):
    """Two people with profanity on one server find each other and talk."""
    async with Profanity(pair.left, "romeo") as romeo, Profanity(pair.left, "juliet") as juliet:
        await romeo.type(f"/msg juliet@{pair.left.domain} it is the east")
        await juliet.see("romeo@")
        await juliet.type("/win 2")
        await juliet.see("it is the east")
        await juliet.type("wherefore art thou")
        await romeo.see("wherefore art thou")


async def profanity_federated(pair):
    """profanity here, slixmpp there: subscription by keyboard, then a message each way."""
    juliet = Client(pair.right, "juliet")
    try:
        await juliet.login()
        async with Profanity(pair.left, "romeo") as romeo:
            mine = f"romeo@{pair.left.domain}"
            await romeo.type(f"/sub request {juliet.boundjid.bare}")
            await juliet.expect("subscription request", presence(mine, "subscribe"), PATIENCE)
            juliet.presence(mine, "subscribed")
            await juliet.iq(pair.left.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
            await romeo.type(f"/msg {juliet.boundjid.bare} good night, good night")
            got = await juliet.expect("message", message(text="good night, good night"), PATIENCE)
            juliet.say(got.get("from"), "parting is such sweet sorrow")
            await romeo.see("parting is such sweet sorrow")
    finally:
        await juliet.logout()
