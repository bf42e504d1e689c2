"""Consent before first contact: people of a Prosody write to users of Trunkline who do not know them.

The left server is Trunkline. Each scenario has people of its own, so that nobody knows anybody from before.
"""

import asyncio

from clients import DELAY, Client, body, bounce, condition, kind, message, presence, roster_push

PATIENCE = 30
STATUS = "{jabber:client}status"


class strangers:
    """`async with strangers(pair, "amy", "bob") as (amy, bob)`: amy on Trunkline, bob on the other; both new."""

    def __init__(self, pair, ours, theirs):
        self.pair, self.names, self.clients = pair, (ours, theirs), ()

    async def __aenter__(self):
        for server, name in zip((self.pair.left, self.pair.right), self.names):
            await server.add_user(name, "secret")
        self.clients = Client(self.pair.left, self.names[0]), Client(self.pair.right, self.names[1])
        await asyncio.gather(*(client.login() for client in self.clients))
        return self.clients

    async def __aexit__(self, *_):
        await asyncio.gather(*(client.logout() for client in self.clients))


def from_(person):
    """Matches anything that a person sent, errors included."""
    return lambda x: (x.get("from") or "").partition("/")[0] == person.boundjid.bare


async def accepted(pair):
    """The user gets one request with a harmless text, accepts, and gets everything in order; the stranger no presence."""
    async with strangers(pair, "amy", "bob") as (amy, bob):
        ids = [bob.say(amy.boundjid.bare, text) for text in ("see http://evil.example/x", "two", "three")]
        request = await amy.expect("request", presence(bob.boundjid.bare, "subscribe"), PATIENCE)
        assert request.findtext(STATUS) == "see http[:]//evil[.]example/x", request.findtext(STATUS)
        await amy.absent("more than the request", from_(bob), 1)
        waiting = await pair.left.ctl("federation", "requests", "list")
        assert bob.boundjid.bare in waiting and "evil" not in waiting, waiting
        amy.presence(bob.boundjid.bare, "subscribed")
        for id in ids:
            got = await amy.expect("held message", message(sender=bob.boundjid.bare), PATIENCE)
            assert got.get("id") == id, "held messages out of order"
            assert got.find(DELAY) is not None, "no delay stamp"
        await bob.absent("an answer to a request that was never made", from_(amy), 1)
        id = bob.say(amy.boundjid.bare, "thank you")
        got = await amy.expect("message after consent", message(id), PATIENCE)
        assert got.find(DELAY) is None and body(got) == "thank you"


async def asked(pair):
    """A stranger who really asks gets the answer and presence."""
    async with strangers(pair, "cleo", "dan") as (cleo, dan):
        dan.presence(cleo.boundjid.bare, "subscribe")
        await cleo.expect("request", presence(dan.boundjid.bare, "subscribe"), PATIENCE)
        cleo.presence(dan.boundjid.bare, "subscribed")
        await dan.expect("approval", presence(cleo.boundjid.bare, "subscribed"), PATIENCE)
        await dan.expect("roster push", roster_push(cleo.boundjid.bare, "to"))
        await dan.expect("presence", presence(cleo.boundjid.bare), PATIENCE)


async def declined(pair):
    """Who is declined is not told, and not heard again."""
    async with strangers(pair, "eve", "finn") as (eve, finn):
        finn.say(eve.boundjid.bare, "hello")
        await eve.expect("request", presence(finn.boundjid.bare, "subscribe"), PATIENCE)
        eve.presence(finn.boundjid.bare, "unsubscribed")
        await asyncio.sleep(0.5)
        id = finn.say(eve.boundjid.bare, "hello?")
        await eve.absent("message of somebody who was declined", from_(finn), 1.5)
        await finn.absent("an answer", lambda x: from_(eve)(x) or bounce(id)(x), 0.5)


async def blocked(pair):
    """A block drops what is held; after the block ends the stranger is a stranger."""
    async with strangers(pair, "gwen", "hal") as (gwen, hal):
        hal.say(gwen.boundjid.bare, "hello")
        await gwen.expect("request", presence(hal.boundjid.bare, "subscribe"), PATIENCE)
        item = f"<item jid='{hal.boundjid.bare}'/>"
        for what in ("block", "unblock"):
            answer = await gwen.iq(
                gwen.boundjid.bare, f"<{what} xmlns='urn:xmpp:blocking'>{item}</{what}>", "set")
            assert answer.get("type") == "result", condition(answer)
            if what == "block":
                hal.say(gwen.boundjid.bare, "hello?")
                await gwen.absent("message of somebody who is blocked", from_(hal), 1.5)
        hal.say(gwen.boundjid.bare, "and now?")
        request = await gwen.expect("request", presence(hal.boundjid.bare, "subscribe"), PATIENCE)
        assert request.findtext(STATUS) == "and now?", "what was blocked is gone"


async def answered(pair):
    """Our user writes first: the other side may answer at once."""
    async with strangers(pair, "ida", "jon") as (ida, jon):
        id = ida.say(jon.boundjid.bare, "are you there?")
        await jon.expect("message", message(id), PATIENCE)
        id = jon.say(ida.boundjid.bare, "yes")
        await ida.expect("answer", message(id), PATIENCE)


async def unknowable(pair):
    """A stranger gets the same answers for addresses that are online, missing, offline and that block the stranger."""
    async with strangers(pair, "kim", "leo") as (kim, leo):
        left = pair.left
        for name in ("kit", "ken"):
            await left.add_user(name, "secret")
        ken = Client(left, "ken")
        await ken.login()
        answer = await ken.iq(ken.boundjid.bare, f"<block xmlns='urn:xmpp:blocking'><item jid='{leo.boundjid.bare}'/>"
                              "</block>", "set")
        assert answer.get("type") == "result", condition(answer)
        there = [kim.boundjid.bare, kim.boundjid.full, ken.boundjid.bare]
        addresses = there + [f"kit@{left.domain}", f"nobody@{left.domain}"]
        seen = []
        for to in addresses:
            account, answers = to.partition("/")[0], []
            for payload in ("<query xmlns='http://jabber.org/protocol/disco#info'/>", "<vCard xmlns='vcard-temp'/>",
                            "<query xmlns='jabber:iq:last'/>", "<query xmlns='jabber:iq:version'/>",
                            "<ping xmlns='urn:xmpp:ping'/>"):
                answer = await leo.iq(to, payload, timeout=PATIENCE)
                answers.append((answer.get("type"), condition(answer)))
            # Probes are the plays' matter: Prosody's users neither send them nor see their answers.
            leo.say(to, "hello")
            # What follows a ping to the server is behind whatever the message is answered with.
            await leo.iq(left.domain, "<ping xmlns='urn:xmpp:ping'/>")
            await leo.absent("an answer to a message", lambda x: (x.get("from") or "").partition("/")[0] == account, 1)
            seen.append(answers)
        await ken.logout()
        for to, answers in zip(addresses, seen):
            assert answers == [("error", "service-unavailable")] * 5, (to, answers)


ALL = [accepted, asked, declined, blocked, answered, unknowable]
