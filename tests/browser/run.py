"""The console in Debian's Chromium: how every page looks and is used, then in front of a real exchange and a Prosody;
and the web chat.

    python run.py --trunkline target/debug/trunkline --screenshots target/screenshots
    python run.py --trunkline target/debug/trunkline --suites exchange --only breaker

Prints one line a check, and `N passed, N failed` last. Every page's picture is kept in the directory of screenshots.
"""

import argparse
import asyncio
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "interop"))

from clients import Client, Timeout, bounce, message  # noqa: E402
from control_signals import EVENT, NODE, PUBSUB, ListingProsody, digest  # noqa: E402
from nameserver import Dns  # noqa: E402
from pki import Pki  # noqa: E402
from servers import Setting, Trunkline, World, free_ports  # noqa: E402
from slixmpp.xmlstream import ET  # noqa: E402

PATIENCE = 60
SUITES = ["looks", "exchange", "chat"]


class Exchange(Trunkline):
    """Ours, with the console on a port of its own."""

    def init_settings(self):
        self.console, self.page = free_ports("127.0.0.1", 2)
        return super().init_settings() | {
            "console.listen": f"127.0.0.1:{self.console}",
            "http.listen": f"127.0.0.1:{self.page}",
            "http.plain_from_loopback": "true",
            "accounts.admins": f"admin@{self.domain}",
            "accounts.moderators": f"moderator@{self.domain}",
            "accounts.registration": "invite",
        }


class Stage:
    """What people with XMPP clients do when the browser's script says so: one line of JSON each way."""

    def __init__(self, ours, theirs):
        self.ours, self.theirs, self.people, self.listing = ours, theirs, {}, False

    async def enter(self):
        for name, home in (("juliet", self.ours), ("mercutio", self.ours), ("romeo", self.theirs),
                           ("tybalt", self.theirs), ("paris", self.theirs)):
            self.people[name] = await Client(home, name).login(timeout=PATIENCE)
        # Ours writes first: from then on the two may talk.
        for name in ("romeo", "tybalt"):
            await self.passes("juliet", name, f"hello {name}")

    async def leave(self):
        await asyncio.gather(*(c.logout() for c in self.people.values()), return_exceptions=True)

    async def passes(self, sender, receiver, text, patience=PATIENCE):
        """A message that arrives; sent again while streams come back after a cut."""
        one, two = self.people[sender], self.people[receiver]
        end = time.monotonic() + patience
        while True:
            one.say(two.boundjid.bare, text)
            try:
                return await two.expect(text, message(text=text, sender=one.boundjid.bare), 5)
            except Timeout:
                if time.monotonic() > end:
                    raise

    async def talk(self):
        stamp = f"{time.monotonic()}"
        await self.passes("juliet", "romeo", f"out {stamp}")
        await self.passes("romeo", "juliet", f"in {stamp}")

    async def inside(self):
        await self.passes("juliet", "mercutio", f"inside {time.monotonic()}")

    async def say(self, **fields):
        return self.people[fields["from"]].say(fields["to"], fields["text"])

    async def picture(self, who, data):
        """Somebody's vCard gets a photo (XEP-0054)."""
        photo = f"<PHOTO><TYPE>image/png</TYPE><BINVAL>{data}</BINVAL></PHOTO>"
        answer = await self.people[who].iq(None, f"<vCard xmlns='vcard-temp'>{photo}</vCard>", type="set")
        assert answer.get("type") == "result", ET.tostring(answer, encoding="unicode")

    async def got(self, who, text, seconds):
        try:
            await self.people[who].expect(text, message(text=text), seconds)
        except Timeout:
            return False
        return True

    async def bounce(self, who, id):
        """The error to a message, as text."""
        return ET.tostring(await self.people[who].expect("an error", bounce(id), PATIENCE), encoding="unicode")

    async def streams(self, domain):
        """Streams to a domain, or to all; waits for the last one to end. How soon they end is measured elsewhere."""
        end = time.monotonic() + PATIENCE
        while True:
            status = json.loads(await self.ours.ctl("federation", "status", "--json"))
            left = sum(len(peer["streams"]) for peer in status["peers"] if domain in (None, peer["domain"]))
            if left == 0 or time.monotonic() > end:
                return left
            await asyncio.sleep(0.2)

    async def pubsub(self, who, service, payload):
        answer = await self.people[who].iq(service, f"<pubsub xmlns='{PUBSUB}'>{payload}</pubsub>", "set", PATIENCE)
        assert answer.get("type") == "result", ET.tostring(answer, encoding="unicode")

    async def follow(self, who, node):
        """Somebody outside follows our own list."""
        await self.pubsub(who, self.ours.domain, f"<subscribe node='{node}' jid='{self.people[who].boundjid.bare}'/>")

    async def told(self, who, entry):
        """Whether a follower of our list is told of an entry."""
        try:
            await self.people[who].expect(
                "an event", lambda x: any(item.get("id") == entry for item in x.iter(f"{EVENT}item")), PATIENCE)
        except Timeout:
            return False
        return True

    async def ban(self, who, reason=""):
        """Theirs publish a list; romeo is their admin. The reason is empty: no longer."""
        if not self.listing:
            await self.pubsub("romeo", self.theirs.domain, f"<create node='{NODE}'/>")
            self.listing = True
        item = digest(who) if "@" in who else who
        report = f"<report xmlns='urn:xmpp:reporting:1' reason='urn:xmpp:reporting:spam'><text>{escape(reason)}</text></report>"
        change = (f"<publish node='{NODE}'><item id='{item}'>{report}</item></publish>" if reason
                  else f"<retract node='{NODE}' notify='true'><item id='{item}'/></retract>")
        await self.pubsub("romeo", self.theirs.domain, change)
        return item

    async def report(self, who, about, text, message="you will regret this"):
        """A message is reported (XEP-0377) while its sender is blocked (XEP-0191)."""
        name = about.partition("@")[0]
        sent = await self.passes(name, who, f"{message} {time.monotonic()}")
        stanza_id = sent.find("{urn:xmpp:sid:0}stanza-id")
        named = "" if stanza_id is None else ET.tostring(stanza_id, encoding="unicode")
        answer = await self.people[who].iq(self.people[who].boundjid.bare, f"""
            <block xmlns='urn:xmpp:blocking'><item jid='{about}'>
              <report xmlns='urn:xmpp:reporting:1' reason='urn:xmpp:reporting:abuse'>{named}<text>{escape(text)}</text></report>
            </item></block>""", "set", PATIENCE)
        assert answer.get("type") == "result", ET.tostring(answer, encoding="unicode")
        return sent.get("id")

    async def login(self, who, password, resource=""):
        if before := self.people.get(who):
            await before.logout()
        client = Client(self.ours, who, password, resource)
        self.people[who] = await client.login(timeout=PATIENCE)
        self.gone = asyncio.get_running_loop().create_future()
        client.add_event_handler("disconnected", lambda _: self.gone.done() or self.gone.set_result(True))

    async def ended(self, who):
        try:
            return await asyncio.wait_for(self.gone, PATIENCE)
        except TimeoutError:
            return False

    async def serve(self, reader, writer):
        acts = ("talk", "inside", "say", "picture", "got", "bounce", "streams", "follow", "told", "ban", "report", "login", "ended")
        while line := await reader.readline():
            asked = json.loads(line)
            act = asked.pop("act")
            try:
                assert act in acts, f"there is no act {act}"
                answer = {"result": await getattr(self, act)(**asked)}
            except Exception as error:
                answer = {"error": str(error) or repr(error)}
            writer.write((json.dumps(answer) + "\n").encode())
            await writer.drain()
        writer.close()


async def script(name, *arguments) -> tuple[int, int]:
    """Runs a suite; its lines are ours, its last one is its result."""
    process = await asyncio.create_subprocess_exec(
        "node", str(HERE / name), *arguments, cwd=HERE, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE)
    counts = (0, 1)
    try:
        while line := (await process.stdout.readline()).decode():
            if found := re.fullmatch(r"(\d+) passed, (\d+) failed\n", line):
                counts = (int(found[1]), int(found[2]))
            else:
                print(line, end="", flush=True)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if code and not counts[1]:
        print(f"FAIL  {name} ended with {code}")
        return counts[0], 1
    return counts


def exchange(world) -> Stage:
    """Ours and a Prosody that federate."""
    ours, theirs = Exchange(world, "trunkline.example", Setting()), ListingProsody(world, "prosody.example", Setting())
    ours.peers, theirs.peers = [theirs], [ours]
    return Stage(ours, theirs)


async def people_of_exchange(stage) -> str:
    """Everybody's accounts and clients; where the console is."""
    ours, theirs = stage.ours, stage.theirs
    await asyncio.gather(ours.start(), theirs.start())
    for name in ("admin", "moderator", "juliet", "mercutio"):
        await ours.add_user(name, "secret")
    for name in ("romeo", "tybalt", "paris"):
        await theirs.add_user(name, "secret")
    await stage.enter()
    return f"http://127.0.0.1:{ours.console}/"


def chat(world) -> Stage:
    """Ours alone."""
    ours = Exchange(world, "chat.example", Setting())
    return Stage(ours, ours)


async def people_of_chat(stage) -> str:
    """People with browsers, and Juliet with another client; where the web chat is."""
    ours = stage.ours
    await ours.start()
    for name in ("juliet", "rosaline", "benvolio"):
        await ours.add_user(name, "secret")
    juliet = stage.people["juliet"] = await Client(ours, "juliet").login()
    for name in ("rosaline", "benvolio"):
        other = await Client(ours, name).login()
        for one, two in ((juliet, other), (other, juliet)):
            one.presence(two.boundjid.bare, "subscribe")
        for one, two in ((juliet, other), (other, juliet)):
            one.presence(two.boundjid.bare, "subscribed")
        await other.expect("presence of a friend", lambda x: x.get("from") == str(juliet.boundjid) and not x.get("type"))
        await other.logout()
    return f"http://127.0.0.1:{ours.page}/"


STAGES = {"exchange": (exchange, people_of_exchange), "chat": (chat, people_of_chat)}


async def perform(name, arguments, root) -> tuple[int, int]:
    """Runs a suite in front of real servers, on which people act as its script says."""
    world = World(root, Pki(root / "pki"), Dns(), arguments.trunkline.resolve())
    await world.dns.start()
    build, enter = STAGES[name]
    stage = build(world)
    try:
        base = await enter(stage)
        door = await asyncio.start_server(stage.serve, "127.0.0.1", 0)
        play = {"base": base, "port": door.sockets[0].getsockname()[1], "ours": stage.ours.domain,
                "theirs": stage.theirs.domain, "shots": str(arguments.screenshots.resolve())}
        return await script(f"{name}.mjs", json.dumps(play), *arguments.only)
    except (RuntimeError, OSError, Timeout) as error:
        print(f"FAIL  the stage: {error}")
        return 0, 1
    finally:
        await stage.leave()
        for server in world.servers:
            await server.kill()
        world.dns.stop()


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunkline", type=Path, required=True, help="the binary under test")
    parser.add_argument("--screenshots", type=Path, required=True, help="pictures of every page are kept here")
    parser.add_argument("--suites", nargs="*", default=SUITES, choices=SUITES)
    parser.add_argument("--only", nargs="*", default=[], help="only checks whose name contains one of these")
    parser.add_argument("--keep", type=Path, help="keep servers' directories and logs here")
    arguments = parser.parse_args()
    # Asked to end, it still stops what it has started.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="trunkline-browser-"))
    if arguments.keep:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
    passed = failed = 0
    try:
        for suite in arguments.suites:
            shots = str(arguments.screenshots.resolve())
            (root / suite).mkdir(exist_ok=True)
            if suite in STAGES:
                work = perform(suite, arguments, (root / suite).resolve())
            else:
                work = script(f"{suite}.mjs", shots, *arguments.only)
            good, bad = await work
            passed, failed = passed + good, failed + bad
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
