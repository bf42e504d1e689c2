"""The policy and the breaker against a real server. The left server of each pair is Trunkline."""

import asyncio
import base64
import json
import ssl
import time
from contextlib import asynccontextmanager

from clients import Client, body, bounce, condition, kind, message
from scenarios import PATIENCE, befriend, people, unfriend


def headline(x):
    return kind(x) == "message" and x.get("type") == "headline"


async def known(romeo, juliet):
    """Romeo has written to juliet: she may answer, whatever the preset."""
    id = romeo.say(juliet.boundjid.bare, "good evening")
    await juliet.expect("first message", message(id), PATIENCE)
    id = juliet.say(romeo.boundjid.bare, "good evening")
    await romeo.expect("answer", message(id), PATIENCE)


@asynccontextmanager
async def rule(server, *arguments):
    """A rule for as long as the block lasts; yields what `policy show` has of it."""
    said = await server.ctl("federation", "policy", "add", *arguments, "--reason", "a test")
    id = said.split()[1]
    try:
        async def show():
            view = json.loads(await server.ctl("federation", "policy", "show", "--json"))
            return next(one for one in view["rules"] if str(one["id"]) == id)
        yield show
    finally:
        await server.ctl("federation", "policy", "remove", id, "--why", "the test is over")


async def streams(server, domain):
    status = json.loads(await server.ctl("federation", "status", "--json"))
    return sum(len(peer["streams"]) for peer in status["peers"] if peer["domain"] == domain)


async def gone(server, domain):
    """Waits until no stream with `domain` is left."""
    end = time.monotonic() + 10
    while await streams(server, domain):
        assert time.monotonic() < end, "streams are still there"
        await asyncio.sleep(0.02)


async def block(pair):
    """A block ends the streams, tells our users why, lets nothing in, and can be taken back."""
    ours, other = pair.left, pair.right
    async with people(pair) as (romeo, juliet):
        await known(romeo, juliet)
        assert await streams(ours, other.domain), "no stream before"
        await ours.ctl("federation", "block", other.domain, "--reason", "they send spam")
        await gone(ours, other.domain)
        id = romeo.say(juliet.boundjid.bare, "can you hear me?")
        error = await romeo.expect("error that says why", bounce(id), PATIENCE)
        text = "".join(error.itertext())
        assert condition(error) == "policy-violation" and "they send spam" in text, text
        id = juliet.say(romeo.boundjid.bare, "where are you?")
        await romeo.absent("message of a blocked domain", message(id), 3)
        exported = await ours.ctl("federation", "blocks", "export")
        assert other.domain in exported and "they send spam" in exported, exported
        await ours.ctl("federation", "unblock", other.domain, "--why", "the test is over")
        await until_back(romeo, juliet)
        log = await ours.ctl("audit", "--search", other.domain)
        assert f"policy block {other.domain}: they send spam" in log, log


async def until_back(romeo, juliet):
    """Messages pass again, both ways; a peer that was cut off may take its time to come back."""
    for sender, receiver in ((romeo, juliet), (juliet, romeo)):
        end = time.monotonic() + 60
        while True:
            id = sender.say(receiver.boundjid.bare, "back again")
            try:
                await receiver.expect("message after the cut", message(id), 5)
                break
            except Exception:
                if time.monotonic() > end:
                    raise
        sender.inbox.clear()
        receiver.inbox.clear()


async def limit(pair):
    """So many pass in a minute, the others come back with an error that says to wait."""
    ours, other = pair.left, pair.right
    async with people(pair) as (romeo, juliet):
        await known(romeo, juliet)
        async with rule(ours, "limit", "--per-minute", "3", "--domain", other.domain, "--direction", "in",
                        "--kind", "message"):
            ids = [juliet.say(romeo.boundjid.bare, f"line {n}") for n in range(6)]
            for id in ids[:3]:
                await romeo.expect("message within the limit", message(id), PATIENCE)
            for id in ids[3:]:
                error = await juliet.expect("error beyond the limit", bounce(id), PATIENCE)
                assert condition(error) == "resource-constraint", condition(error)
        id = juliet.say(romeo.boundjid.bare, "without a limit")
        await romeo.expect("message without the rule", message(id), PATIENCE)


async def shadow(pair):
    """A rule in shadow decides and counts and lets pass; the same rule in earnest does not."""
    ours, other = pair.left, pair.right
    async with people(pair) as (romeo, juliet):
        await known(romeo, juliet)
        arguments = ("reject", "--domain", other.domain, "--direction", "in", "--kind", "message")
        async with rule(ours, *arguments, "--shadow") as show:
            id = juliet.say(romeo.boundjid.bare, "in the shadow")
            await romeo.expect("message", message(id), PATIENCE)
            seen = await show()
            assert (seen["hits"], seen["shadow_hits"]) == (0, 1), seen
        async with rule(ours, *arguments) as show:
            id = juliet.say(romeo.boundjid.bare, "in the light")
            error = await juliet.expect("error", bounce(id), PATIENCE)
            assert condition(error) == "policy-violation", condition(error)
            assert (await show())["hits"] == 1


async def set_level(server, level, *domain):
    await server.ctl("federation", "breaker", "set", level, *domain, "--why", "a drill")


async def breaker(pair):
    """Every level lets through what it says: a contact, somebody romeo has written to, and a stranger."""
    ours, other = pair.left, pair.right
    stranger = Client(pair.right, "\u0436\u0443\u043b\u044c\u0435\u0442\u0442\u0430")
    written = Client(pair.right, "r\u00f6m\u00e9o")
    await asyncio.gather(stranger.login(), written.login())
    note = ""
    try:
        async with people(pair) as (romeo, juliet):
            await befriend(romeo, juliet)
            await known(romeo, written)
            for level, passes in (("no-new-contacts", (True, True, False)), ("granted-only", (True, False, False)),
                                  ("text-only", (True, False, False))):
                await set_level(ours, level)
                told = await romeo.expect(f"headline of {level}", headline, PATIENCE)
                assert "a drill" in body(told), body(told)
                for person, may in zip((juliet, written, stranger), passes):
                    id = person.say(romeo.boundjid.bare, "see https://example.org/x now")
                    if may:
                        got = await romeo.expect(f"{level}: message", message(id), PATIENCE)
                        text = "see [link removed] now" if level == "text-only" else "see https://example.org/x now"
                        assert body(got) == text, f"{level}: {body(got)}"
                    else:
                        error = await person.expect(f"{level}: error", bounce(id), PATIENCE)
                        assert condition(error) == "policy-violation", condition(error)
                id = romeo.say(stranger.boundjid.bare, "who are you?")
                error = await romeo.expect(f"{level}: no new contact of ours", bounce(id), PATIENCE)
                assert "a drill" in "".join(error.itertext()), "without the reason"
            assert await streams(ours, other.domain), "these levels keep streams"
            start = time.monotonic()
            await set_level(ours, "closed")
            await gone(ours, other.domain)
            note = f"cut off {time.monotonic() - start:.2f} s after the command began"
            await romeo.expect("headline of closed", headline, PATIENCE)
            id = romeo.say(juliet.boundjid.bare, "can you hear me?")
            error = await romeo.expect("error while closed", bounce(id), PATIENCE)
            assert "cut off" in "".join(error.itertext()), "does not say why"
            id = juliet.say(romeo.boundjid.bare, "where are you?")
            await romeo.absent("message while closed", message(id), 3)
            # It is not forgotten at a restart.
            await ours.stop()
            await ours.launch()
            view = json.loads(await ours.ctl("federation", "breaker", "show", "--json"))
            assert view["all"]["level"] == "closed", view
            again = Client(ours, "romeo")
            try:
                await again.login()
                await set_level(ours, "normal")
                await again.expect("headline of normal", headline, PATIENCE)
                await until_back(again, juliet)
            finally:
                await again.logout()
    finally:
        await set_level(ours, "normal")
        await asyncio.gather(stranger.logout(), written.logout())
    await unfriend(pair)
    return note


MANY = 500


async def stream(server, context, domain):
    """A proved stream from `domain` (EXTERNAL), over TLS from the first byte."""
    reader, writer = await asyncio.open_connection(
        server.address, server.s2s_tls, ssl=context, server_hostname=server.domain)
    hello = (f"<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' version='1.0' "
             f"from='{domain}' to='{server.domain}'>")
    name = base64.b64encode(domain.encode()).decode()
    auth = f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>{name}</auth>"
    for say, until in ((hello, b"</stream:features>"), (auth, b"<success"), (hello, b"features")):
        writer.write(say.encode())
        await asyncio.wait_for(reader.readuntil(until), 30)
    return reader, writer


async def many(pair):
    """Closed ends many streams at once, and new connections with them, while our users go on."""
    ours = pair.left
    certificate, key = ours.world.pki.issue("crowd.example")
    context = ssl.create_default_context(cafile=ours.world.pki.ca_file)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["xmpp-server"])
    streams = []
    try:
        for n in range(0, MANY, 20):
            names = [f"d{n + k}.crowd.example" for k in range(20)]
            streams += await asyncio.gather(*(stream(ours, context, name) for name in names))

        async def end(reader):
            while await reader.read(4096):
                pass
            return time.monotonic()

        start = time.monotonic()
        ends = [asyncio.ensure_future(end(reader)) for reader, _ in streams]
        await set_level(ours, "closed")
        said = time.monotonic()
        last = max(await asyncio.wait_for(asyncio.gather(*ends), 30))
        try:
            reader, _ = await asyncio.open_connection(ours.address, ours.s2s)
            assert await asyncio.wait_for(reader.read(1), 5) == b"", "a new connection is served"
        except ConnectionError:
            pass
        first, second = Client(ours, "romeo"), Client(ours, "r\u00f6m\u00e9o")
        await asyncio.gather(first.login(), second.login())
        try:
            id = first.say(second.boundjid.bare, "inside goes on")
            await second.expect("message inside", message(id), PATIENCE)
        finally:
            await asyncio.gather(first.logout(), second.logout())
        assert last - start < 5, f"the last stream ended after {last - start:.1f} s"
        return f"{MANY} streams ended {last - start:.2f} s after the command began, which took {said - start:.2f} s"
    finally:
        for _, writer in streams:
            writer.close()
        await set_level(ours, "normal")


ALL = [block, limit, shadow, breaker, many]
