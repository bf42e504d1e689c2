"""What two federated servers must do for their users. Each scenario is a coroutine that takes a `Pair`."""

import asyncio
import time
from dataclasses import dataclass

from clients import (DELAY, Client, bare, body, bounce, condition, kind, message, presence,
                     roster_push)

# To cover a peer that answers nothing at all, and a first connection with DNS, TCP, TLS and login.
PATIENCE = 30


@dataclass
class Pair:
    """Two running servers that federate with each other."""

    left: object
    right: object

    def swapped(self):
        return Pair(self.right, self.left)

    async def people(self, names=("romeo", "juliet"), **options):
        """Somebody logged in on each side."""
        one, two = Client(self.left, names[0], **options), Client(self.right, names[1], **options)
        await asyncio.gather(one.login(), two.login())
        return one, two


class people:
    """`async with people(pair) as (romeo, juliet)`: logged in on each side, and out again whatever happens."""

    def __init__(self, pair, names=("romeo", "juliet"), **options):
        self.pair, self.names, self.options, self.clients = pair, names, options, ()

    async def __aenter__(self):
        self.clients = await self.pair.people(self.names, **self.options)
        return self.clients

    async def __aexit__(self, *_):
        await asyncio.gather(*(c.logout() for c in self.clients))


async def play(report, name, servers, checks, patience=90):
    """Starts two servers that know each other, with everybody's accounts, runs `checks` (name, scenario), stops them."""
    left, right = servers
    left.peers, right.peers = [right], [left]
    try:
        await asyncio.gather(left.start(), right.start())
        for server in servers:
            for user in USERS:
                await server.add_user(user, "secret")
        for check, scenario in checks:
            await report.check(check, scenario(Pair(left, right)), patience)
    except (RuntimeError, OSError) as error:
        report.fail(name, f"servers did not start: {error}")
    finally:
        await asyncio.gather(left.stop(), right.stop(), return_exceptions=True)


async def befriend(one, two):
    """RFC 6121 s.3.1: both subscribe to each other, from `one`'s first step."""
    a, b = one.boundjid.bare, two.boundjid.bare
    one.presence(b, "subscribe")
    await two.expect("subscription request", presence(a, "subscribe"), PATIENCE)
    two.presence(a, "subscribed")
    await one.expect("approval", presence(b, "subscribed"), PATIENCE)
    await one.expect("roster push to", roster_push(b, "to"))
    await one.expect("the contact's presence", presence(b), PATIENCE)
    two.presence(a, "subscribe")
    await one.expect("subscription request back", presence(b, "subscribe"), PATIENCE)
    one.presence(b, "subscribed")
    await two.expect("approval", presence(a, "subscribed"), PATIENCE)
    await two.expect("roster push both", roster_push(a, "both"))
    await one.expect("roster push both", roster_push(b, "both"))
    await two.expect("the contact's presence", presence(a), PATIENCE)


async def subscription(pair):
    """Subscription both ways, presence changes, going offline and coming back, then unsubscribing."""
    async with people(pair) as (romeo, juliet):
        await befriend(romeo, juliet)
        a, b = romeo.boundjid.bare, juliet.boundjid.bare
        romeo.send_presence(pshow="away", pstatus="in the garden")
        seen = await juliet.expect(
            "away", lambda x: presence(a)(x) and x.findtext("{jabber:client}show") == "away", PATIENCE)
        assert seen.findtext("{jabber:client}status") == "in the garden", "status was changed on the way"
        await juliet.logout()
        await romeo.expect("unavailable", presence(b, "unavailable"), PATIENCE)
        again = Client(pair.right, "juliet")
        try:
            await again.login()
            await romeo.expect("presence after return", presence(b), PATIENCE)
            await again.expect("answer to the probe", presence(a), PATIENCE)
            again.inbox.clear()
            romeo.presence(b, "unsubscribe")
            await again.expect("roster push", roster_push(a, "to"), PATIENCE)
            romeo.presence(b, "unsubscribed")
            await again.expect("roster push", roster_push(a, "none"), PATIENCE)
        finally:
            await again.logout()


def ours_first(one, two):
    """Both directions. Who writes from Trunkline begins: an answer needs no consent (control_consent.py has the rest)."""
    return ((two, one), (one, two)) if two.home.kind == "trunkline" else ((one, two), (two, one))


async def messages(pair):
    """Messages both ways, in order, with bodies and ids unchanged; to bare and full addresses."""
    async with people(pair) as (romeo, juliet):
        for sender, receiver in ours_first(romeo, juliet):
            for to in (receiver.boundjid.bare, receiver.boundjid.full):
                ids = [sender.say(to, f"{n}: <soft> & 'light' \" \u2713 \U0001f319") for n in range(10)]
                for n, id in enumerate(ids):
                    got = await receiver.expect(f"message {n}", message(sender=sender.boundjid.bare), PATIENCE)
                    assert got.get("id") == id, f"order: expected {id} at {n}"
                    assert body(got) == f"{n}: <soft> & 'light' \" \u2713 \U0001f319", "body was changed"
                    assert got.get("from") == sender.boundjid.full, "sender's full address expected"


async def iqs(pair):
    """Version of client and server, ping, and disco, each way; an unknown query is refused by name."""
    async with people(pair) as (romeo, juliet):
        for asker, other in ((romeo, juliet), (juliet, romeo)):
            domain, full = other.boundjid.domain, other.boundjid.full
            answer = await asker.iq(domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
            assert answer.get("type") == "result", f"ping of a server: {condition(answer)}"
            answer = await asker.iq(full, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
            if "trunkline" not in (asker.home.kind, other.home.kind) or answer.get("type") == "result":
                assert answer.get("type") == "result", f"ping of a client: {condition(answer)}"
            else:
                # Without a subscription an outsider learns nothing of a resource.
                assert condition(answer) == "service-unavailable", condition(answer)
            answer = await asker.iq(domain, "<query xmlns='http://jabber.org/protocol/disco#info'/>")
            info = answer.find("{http://jabber.org/protocol/disco#info}query")
            assert any(c.get("category") == "server" for c in info), "no server identity"
            answer = await asker.iq(domain, "<query xmlns='jabber:iq:version'/>")
            assert answer.get("type") == "result", f"version of a server: {condition(answer)}"
            answer = await asker.iq(domain, "<query xmlns='urn:example:unknown'/>")
            assert condition(answer) in ("service-unavailable", "feature-not-implemented"), condition(answer)
        await befriend(romeo, juliet)
        for asker, other in ((romeo, juliet), (juliet, romeo)):
            answer = await asker.iq(other.boundjid.full, "<query xmlns='jabber:iq:version'/>", timeout=PATIENCE)
            assert answer.get("type") == "result", f"version of a friend's client: {condition(answer)}"
    await unfriend(pair)


async def unfriend(pair, names=("romeo", "juliet")):
    """Takes the contacts off both rosters, so that the next scenario starts from nothing."""
    async with people(pair, names) as (one, two):
        for me, other in ((one, two), (two, one)):
            await me.iq(
                me.boundjid.bare, "<query xmlns='jabber:iq:roster'><item subscription='remove' "
                f"jid='{other.boundjid.bare}'/></query>", "set")
        await asyncio.sleep(0.3)


async def offline(pair):
    """A message to somebody offline waits, and comes stamped with the time it was received (XEP-0203)."""
    async with people(pair) as (romeo, juliet):
        await befriend(romeo, juliet)
        b = juliet.boundjid.bare
        await juliet.logout()
        await romeo.expect("unavailable", presence(b, "unavailable"), PATIENCE)
        ids = [romeo.say(b, f"while you were out, {n}") for n in range(3)]
        # An answer from the same server comes after it has taken the messages: one stream keeps order.
        await romeo.iq(juliet.boundjid.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
        again = Client(pair.right, "juliet")
        try:
            await again.login()
            for n, id in enumerate(ids):
                got = await again.expect(f"offline message {n}", message(sender=romeo.boundjid.bare), PATIENCE)
                assert got.get("id") == id, "offline messages out of order"
                assert got.find(DELAY) is not None, "no delay stamp"
            await again.absent("second copy", message(sender=romeo.boundjid.bare), 0.5)
        finally:
            await again.logout()
    await unfriend(pair)


async def large(pair):
    """A message of 60 kB passes whole."""
    async with people(pair) as (romeo, juliet):
        text = "".join(f"{n:06} " for n in range(60_000 // 7))
        for sender, receiver in ours_first(romeo, juliet):
            id = sender.say(receiver.boundjid.bare, text)
            got = await receiver.expect("large message", message(id), PATIENCE)
            assert body(got) == text, "the text was changed"


async def unicode(pair):
    """Addresses beyond ASCII in local part and resource."""
    async with people(pair, ("r\u00f6m\u00e9o", "\u0436\u0443\u043b\u044c\u0435\u0442\u0442\u0430"), resource="\u30d0\u30eb\u30b3\u30cb\u30fc") as (a, b):
        for sender, receiver in ours_first(a, b):
            id = sender.say(receiver.boundjid.full, "\u00e9t\u00e9")
            got = await receiver.expect("message", message(id), PATIENCE)
            assert got.get("from") == sender.boundjid.full, f"from is {got.get('from')}"


async def blocked(pair):
    """XEP-0191: what a blocked contact sends never arrives, and arrives again after unblocking."""
    async with people(pair) as (romeo, juliet):
        item = f"<item jid='{romeo.boundjid.bare}'/>"
        answer = await juliet.iq(
            juliet.boundjid.bare, f"<block xmlns='urn:xmpp:blocking'>{item}</block>", "set")
        assert answer.get("type") == "result", condition(answer)
        id = romeo.say(juliet.boundjid.bare, "can you hear me?")
        await romeo.iq(juliet.boundjid.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
        await juliet.absent("message of a blocked contact", message(id), 0.5)
        answer = await juliet.iq(
            juliet.boundjid.bare, f"<unblock xmlns='urn:xmpp:blocking'>{item}</unblock>", "set")
        assert answer.get("type") == "result", condition(answer)
        if juliet.home.kind == "trunkline":
            # The block has ended the conversation: she takes it up again.
            id = juliet.say(romeo.boundjid.bare, "sorry")
            await romeo.expect("message", message(id), PATIENCE)
        id = romeo.say(juliet.boundjid.bare, "and now?")
        await juliet.expect("message after unblocking", message(id), PATIENCE)


async def nobody(pair):
    """A message to nobody: an error, or from Trunkline to an outsider nothing, but never a hint."""
    async with people(pair) as (romeo, juliet):
        for sender, server in ((romeo, pair.right), (juliet, pair.left)):
            id = sender.say(f"nobody@{server.domain}", "hello?")
            await sender.iq(server.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=PATIENCE)
            if server.kind == "trunkline":
                await sender.absent("bounce that tells there is no such account", bounce(id), 0.5)
            else:
                error = await sender.expect("bounce", bounce(id))
                assert condition(error) in ("service-unavailable", "item-not-found"), condition(error)


async def no_such_server(pair):
    """A domain that does not exist: the sender gets remote-server-not-found or -timeout."""
    async with people(pair) as (romeo, juliet):
        for sender in (romeo, juliet):
            id = sender.say("somebody@missing.example", "hello?")
            error = await sender.expect("bounce", bounce(id), PATIENCE)
            assert condition(error).startswith("remote-server-"), condition(error)


async def restart(pair):
    """The right server restarts in mid-conversation: every message arrives or is bounced, none under two ids."""
    async with people(pair) as (romeo, juliet):
        await befriend(romeo, juliet)
        b = juliet.boundjid.bare
        await juliet.logout()
        await romeo.expect("unavailable", presence(b, "unavailable"), PATIENCE)
        sent: dict[str, float] = {}

        async def talk():
            for n in range(60):
                id = romeo.say(b, f"line {n}")
                sent[id] = time.monotonic()
                await asyncio.sleep(0.05)

        talking = asyncio.create_task(talk())
        await asyncio.sleep(1.0)
        cut = time.monotonic()
        await pair.right.stop()
        await asyncio.sleep(0.5)
        await pair.right.launch()
        await talking
        again = Client(pair.right, "juliet")
        arrived: list[str] = []
        bounced: set[str] = set()
        try:
            await again.login()
            end = time.monotonic() + 60
            while time.monotonic() < end and len(set(arrived) | bounced) < len(sent):
                for person, store in ((again, arrived.append), (romeo, bounced.add)):
                    for x in list(person.inbox):
                        if kind(x) == "message" and x.get("id") in sent:
                            person.inbox.remove(x)
                            if (x.get("type") == "error") == (person is romeo):
                                store(x.get("id"))
                await asyncio.sleep(0.1)
        finally:
            await again.logout()
        assert len(set(arrived)) + len(bounced - set(arrived)) >= 30, "hardly anything arrived or bounced"
        missing = [id for id in sent if id not in bounced and id not in arrived]
        # A peer without acknowledgements may lose what was written to it just before it went down: a stated limit,
        # as nobody can tell. Everything else is a failure.
        acknowledges = pair.left.kind == "trunkline" and pair.right.kind != "ejabberd"
        unexcused = [id for id in missing if acknowledges or not cut - 1 < sent[id] < cut + 2]
        assert not unexcused, f"{len(unexcused)} of {len(sent)} messages neither arrived nor bounced"
        await unfriend(pair)
        return (f"{len(sent)} sent, {len(set(arrived))} arrived, {len(bounced)} bounced, "
                f"{len(arrived) - len(set(arrived))} repeated under their id, {len(missing)} within the stated limit")


async def refused(pair):
    """The right server shows a certificate that must not be trusted: nothing passes, and the sender is told."""
    judge = pair.left
    async with people(pair) as (romeo, juliet):
        id = romeo.say(juliet.boundjid.bare, "is it you?")
        if judge.kind == "trunkline":
            # Certificates are renewed: a message waits, as for a peer that is down. A request is refused at once.
            error = await romeo.iq(juliet.boundjid.domain, "<ping xmlns='urn:xmpp:ping'/>", timeout=45)
            assert error.get("type") == "error", "an answer from a server that did not prove its name"
        else:
            error = await romeo.expect("bounce", bounce(id), 45)
        assert condition(error).startswith("remote-server-"), condition(error)
        await juliet.absent("message for another server than hers", message(id), 0.5)
        id = juliet.say(romeo.boundjid.bare, "it is me, honestly")
        await romeo.absent("message of a server that did not prove its name", message(id), 3)
        if judge.kind == "trunkline":
            # The operator is told by name what is wrong with the certificate.
            status = await judge.ctl("federation", "status")
            word = REASONS[pair.right.setting.certificate]
            assert word in status, f"federation status does not say {word!r}:\n{status}"
        return f"sender told: {condition(error)}"


REASONS = {"expired": "certificate expired", "wrong-name": "certificate is for wrong.example",
           "self-signed": "self-signed"}


async def status(pair):
    """`trunkline federation status` tells how each side has proved itself, and that TLS is as it was meant to be."""
    ours, other = (pair.left, pair.right) if pair.left.kind == "trunkline" else (pair.right, pair.left)
    await accepted(pair)
    text = await ours.ctl("federation", "status")
    proof = "dialback" if ours.setting.mode == "dialback" else "external"
    for word in (other.domain, "connected", "TLS 1.", proof):
        assert word in text, f"no {word!r} in:\n{text}"
    assert ("(direct)" in text) == (ours.setting.mode == "direct"), f"direct TLS?\n{text}"


async def accepted(pair):
    """One message each way: the certificate is good enough."""
    async with people(pair) as (romeo, juliet):
        for sender, receiver in ours_first(romeo, juliet):
            id = sender.say(receiver.boundjid.bare, "good evening")
            await receiver.expect("message", message(id), PATIENCE)


FULL = [messages, subscription, iqs, offline, large, unicode, blocked, nobody, no_such_server, restart]
SHORT = [messages, subscription, offline]
USERS = ["romeo", "juliet", "r\u00f6m\u00e9o", "\u0436\u0443\u043b\u044c\u0435\u0442\u0442\u0430"]
