"""Block lists and reports with a real Prosody: its pubsub is followed, its abuse address gets a report, its users follow
our list."""

import asyncio
import hashlib
import json
import time

from clients import CLIENT, Client, body, bounce, condition, kind, message
from servers import Prosody, Setting, Trunkline

PATIENCE = 30
PUBSUB = "http://jabber.org/protocol/pubsub"
EVENT = "{http://jabber.org/protocol/pubsub#event}"
REPORT = "{urn:xmpp:reporting:1}report"
NODE = "muc_bans_sha256"
USERS = ["romeo", "juliet", "abuse"]


class ListingProsody(Prosody):
    """Prosody with a pubsub service on its domain, and with an abuse address (XEP-0157)."""

    def write_config(self):
        super().write_config()
        path = self.dir / "prosody.cfg.lua"
        text = path.read_text().replace("modules_enabled = { ", 'modules_enabled = { "server_contact_info"; ', 1)
        path.write_text(text + f"""
    modules_enabled = {{ "pubsub" }}
    admins = {{ "romeo@{self.domain}" }}
    contact_info = {{ abuse = {{ "mailto:abuse@{self.domain}", "xmpp:abuse@{self.domain}" }} }}
""")


class Stage:
    """Both servers, with somebody at each who has written to the other."""

    def __init__(self, ours, theirs):
        self.ours, self.theirs, self.people = ours, theirs, []

    async def person(self, server, name):
        person = Client(server, name)
        await person.login()
        self.people.append(person)
        return person

    async def acquaint(self, one, other):
        """Who is written to may answer: no first contact is left between the two."""
        id = one.say(other.boundjid.bare, "hello")
        await other.expect("a greeting", message(id), PATIENCE)

    async def leave(self):
        await asyncio.gather(*(person.logout() for person in self.people))
        self.people = []


def digest(jid: str) -> str:
    return hashlib.sha256(jid.encode()).hexdigest()


async def pubsub(person, payload: str):
    answer = await person.iq(
        person.boundjid.domain, f"<pubsub xmlns='{PUBSUB}'>{payload}</pubsub>", "set", PATIENCE)
    assert answer.get("type") == "result", f"{payload}: {condition(answer)}"


async def until(what: str, look, seconds: float):
    """Waits until `look` says yes; how long it took."""
    start = time.monotonic()
    while not await look():
        assert time.monotonic() - start < seconds, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - start


async def list_subscription(stage):
    """A list on Prosody's pubsub is followed; a ban and its end take effect at once."""
    owner = await stage.person(stage.theirs, "romeo")
    spammer = await stage.person(stage.theirs, "juliet")
    victim = await stage.person(stage.ours, "romeo")
    await stage.acquaint(victim, spammer)
    await pubsub(owner, f"<create node='{NODE}'/>")
    reason = "<report xmlns='urn:xmpp:reporting:1' reason='urn:xmpp:reporting:spam'><text>Pills</text></report>"
    first = digest("first@bad.example")
    await pubsub(owner, f"<publish node='{NODE}'><item id='{first}'>{reason}</item></publish>")
    await stage.ours.ctl(
        "federation", "lists", "subscribe", "theirs", stage.theirs.domain, NODE, "--action", "reject")

    async def view():
        outcome = json.loads(await stage.ours.ctl("federation", "lists", "show", "--json"))
        return next(each for each in outcome["lists"] if each["name"] == "theirs")

    async def subscribed():
        return (await view())["state"] == "subscribed"

    await until("subscribed", subscribed, PATIENCE)
    assert (await view())["entries"] == 1, "what was on the list before"
    victim_jid = victim.boundjid.bare
    id = spammer.say(victim_jid, "before")
    await victim.expect("a message before the ban", message(id), PATIENCE)

    ban = digest(spammer.boundjid.bare)
    await pubsub(owner, f"<publish node='{NODE}'><item id='{ban}'>{reason}</item></publish>")
    published = time.monotonic()
    while True:
        id = spammer.say(victim_jid, "is it in effect?")
        arrived = asyncio.ensure_future(victim.expect("a message", message(id), 5))
        refused = asyncio.ensure_future(spammer.expect("an error", bounce(id), 5))
        done, pending = await asyncio.wait([arrived, refused], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if refused in done and not refused.exception():
            assert condition(refused.result()) == "policy-violation", condition(refused.result())
            break
        assert time.monotonic() - published < 1, "a ban has no effect after a second"
    took = time.monotonic() - published
    assert took < 1, f"a ban took effect only after {took:.1f} s"
    items = await stage.ours.ctl("federation", "lists", "items", "theirs")
    assert "Pills" in items, items

    await pubsub(owner, f"<retract node='{NODE}' notify='true'><item id='{ban}'/></retract>")

    async def gone():
        return (await view())["entries"] == 1

    await until("taken off the list", gone, 5)
    id = spammer.say(victim_jid, "after")
    await victim.expect("a message after the ban", message(id), PATIENCE)

    # The last state stays in force when the server starts again, whether the service is there or not.
    await stage.leave()
    await stage.ours.stop()
    await stage.ours.launch()
    assert (await view())["entries"] == 1
    await until("subscribed again", subscribed, 60)
    return f"a ban takes effect within {took * 1000:.0f} ms"


async def report_forwarded(stage):
    """A report goes to Prosody's abuse address, without the reporter's name."""
    desk = await stage.person(stage.theirs, "abuse")
    spammer = await stage.person(stage.theirs, "juliet")
    victim = await stage.person(stage.ours, "juliet")
    await stage.acquaint(victim, spammer)
    id = spammer.say(victim.boundjid.bare, "cheap pills")
    got = await victim.expect("spam", message(id), PATIENCE)
    sid = got.find("{urn:xmpp:sid:0}stanza-id").get("id")
    answer = await victim.iq(
        victim.boundjid.bare,
        f"<block xmlns='urn:xmpp:blocking'><item jid='{spammer.boundjid.bare}'>"
        "<report xmlns='urn:xmpp:reporting:1' reason='urn:xmpp:reporting:spam'>"
        f"<stanza-id xmlns='urn:xmpp:sid:0' by='{victim.boundjid.bare}' id='{sid}'/>"
        "<text>Pills again.</text><report-origin/></report></item></block>", "set")
    assert answer.get("type") == "result", condition(answer)
    outcome = json.loads(await stage.ours.ctl("federation", "reports", "list", "--json"))
    report = outcome["reports"][0]
    assert report["about"] == spammer.boundjid.bare and report["state"] == "open", report
    text = await stage.ours.ctl("federation", "reports", "forward", str(report["id"]), "--why", "please look")
    assert f"abuse@{stage.theirs.domain}" in text, text
    got = await desk.expect("the report", lambda x: kind(x) == "message" and x.find(REPORT) is not None, PATIENCE)
    element = got.find(REPORT)
    assert element.get("reason") == "urn:xmpp:reporting:spam"
    assert element.findtext("{urn:xmpp:jid:0}jid") == spammer.boundjid.bare
    assert element.findtext("{urn:xmpp:reporting:1}text") == "Pills again."
    assert spammer.boundjid.bare in body(got)
    forwarded = got.find(f"{{urn:xmpp:forward:0}}forwarded/{{{CLIENT}}}message")
    assert forwarded.findtext(f"{{{CLIENT}}}body") == "cheap pills"
    from slixmpp.xmlstream import ET
    assert victim.boundjid.bare not in ET.tostring(got, encoding="unicode"), "the reporter is named"
    assert got.get("from") == stage.ours.domain
    shown = await stage.ours.ctl("federation", "reports", "show", str(report["id"]))
    assert "forwarded to" in shown and "please look" in shown, shown
    await stage.leave()


async def own_list(stage):
    """Somebody at Prosody follows our own list."""
    follower = await stage.person(stage.theirs, "romeo")
    jid = follower.boundjid.bare
    answer = await follower.iq(
        stage.ours.domain, f"<pubsub xmlns='{PUBSUB}'><subscribe node='spam_source_domains' jid='{jid}'/></pubsub>",
        "set", PATIENCE)
    assert answer.get("type") == "result", condition(answer)
    await stage.ours.ctl("federation", "lists", "publish", "worse.example", "Pills")

    def event(name):
        return lambda x: kind(x) == "message" and x.find(f"{EVENT}event/{EVENT}items/{EVENT}{name}") is not None

    got = await follower.expect("an event", event("item"), PATIENCE)
    assert got.find(f"{EVENT}event/{EVENT}items/{EVENT}item").get("id") == "worse.example"
    answer = await follower.iq(
        stage.ours.domain, f"<pubsub xmlns='{PUBSUB}'><items node='spam_source_domains'/></pubsub>", "get", PATIENCE)
    items = answer.findall(f"{{{PUBSUB}}}pubsub/{{{PUBSUB}}}items/{{{PUBSUB}}}item")
    assert [item.get("id") for item in items] == ["worse.example"], "items"
    await stage.ours.ctl("federation", "lists", "retract", "worse.example")
    await follower.expect("a retraction", event("retract"), PATIENCE)
    await stage.leave()


CHECKS = [("list subscription from a real Prosody pubsub", list_subscription),
          ("report forwarded to a real Prosody", report_forwarded),
          ("our own list is followed from Prosody", own_list)]


async def run(report, world):
    """Runs the checks on a pair of servers of their own."""
    names = [f"signals: {name}" for name, _ in CHECKS]
    if not any(report.wanted(name) for name in names):
        return
    ours = Trunkline(world, "trunkline.example", Setting())
    theirs = ListingProsody(world, "prosody.example", Setting())
    ours.peers, theirs.peers = [theirs], [ours]
    stage = Stage(ours, theirs)
    try:
        try:
            await asyncio.gather(ours.start(), theirs.start())
            for server in (ours, theirs):
                for user in USERS:
                    await server.add_user(user, "secret")
        except (RuntimeError, OSError) as error:
            for name in filter(report.wanted, names):
                report.fail(name, f"servers did not start: {error}")
            return
        for name, (_, check) in zip(names, CHECKS):
            try:
                await report.check(name, check(stage))
            finally:
                await stage.leave()
    finally:
        for server in (ours, theirs):
            try:
                await server.stop()
            except RuntimeError as error:
                report.fail(f"signals: {server.kind} stops", str(error))
