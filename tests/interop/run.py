"""Runs the interop suite: real servers federate with each other and real clients log in.

    python run.py --trunkline target/debug/trunkline            everything
    python run.py --pairs prosody-ejabberd                      validates the harness without Trunkline
    python run.py --pairs trunkline-prosody --only offline -v

Prints one line a check, and `N passed, N failed` last. Exit code 0 only when nothing failed.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import control_policy
import control_consent
import control_signals
import end_to_end
import libraries
import needs
import real_clients
import scenarios
from clients import Timeout
from nameserver import Dns
from pki import Pki
from servers import KINDS, Setting, World

PAIRS = ["prosody-ejabberd", "trunkline-prosody", "trunkline-ejabberd"]
BAD = ["expired", "wrong-name", "self-signed"]


class Report:
    def __init__(self, arguments):
        self.arguments, self.results = arguments, []

    def wanted(self, name: str) -> bool:
        only = self.arguments.only
        return not only or any(part in name for part in only)

    async def check(self, name: str, work, timeout: float = 150):
        """Runs one check; whatever goes wrong in it is a failure with a reason, and the run goes on."""
        if not self.wanted(name):
            work.close()
            return
        start, note, passed = time.monotonic(), "", True
        try:
            note = await asyncio.wait_for(work, timeout) or ""
        except TimeoutError:
            passed, note = False, f"not done within {timeout:.0f} s"
        except (AssertionError, Timeout, RuntimeError, OSError) as error:
            passed, note = False, str(error) or repr(error)
        except Exception:
            passed, note = False, traceback.format_exc()
        seconds = time.monotonic() - start
        self.results.append({"name": name, "passed": passed, "seconds": round(seconds, 1), "note": note})
        print(f"{'pass' if passed else 'FAIL'}  {name:<64} {seconds:6.1f} s  {note}", flush=True)

    def fail(self, name: str, note: str):
        self.results.append({"name": name, "passed": False, "seconds": 0, "note": note})
        print(f"FAIL  {name:<64}           {note}", flush=True)


async def with_pair(report, world, kinds, settings, checks):
    """Starts two servers with `settings`, runs `checks` (name, scenario, swapped) and stops them."""
    names = [name for name, _, _ in checks]
    if not any(report.wanted(name) for name in names):
        return
    left = KINDS[kinds[0]](world, f"{kinds[0]}.example", settings[0])
    right = KINDS[kinds[1]](world, f"{kinds[1]}.example", settings[1])
    left.peers, right.peers = [right], [left]
    try:
        try:
            for result in await asyncio.gather(left.start(), right.start(), return_exceptions=True):
                if result:
                    raise result
            for server in (left, right):
                for user in scenarios.USERS:
                    await server.add_user(user, "secret")
        except (RuntimeError, OSError) as error:
            reason = f"servers did not start: {error}"
            for name in filter(report.wanted, names):
                report.fail(name, reason)
                reason = "servers did not start, see above"
            return
        pair = scenarios.Pair(left, right)
        for name, scenario, swapped in checks:
            await report.check(name, scenario(pair.swapped() if swapped else pair))
    finally:
        for server in (left, right):
            try:
                await server.stop()
            except RuntimeError as error:
                report.fail(f"{kinds[0]}-{kinds[1]}: {server.kind} stops", str(error))


async def federation(report, world, kinds):
    """All that one pair of servers is to do together."""
    pair = "-".join(kinds)
    for mode in ("starttls", "direct", "dialback"):
        certificate = "self-signed" if mode == "dialback" else "good"
        settings = (Setting(mode, certificate), Setting(mode, certificate))
        if mode == "starttls":
            checks = []
            for scenario in scenarios.FULL:
                both = scenario in (scenarios.offline, scenarios.blocked, scenarios.restart)
                checks.append((f"{pair} {mode}: {scenario.__name__}", scenario, False))
                if both:
                    checks.append((f"{pair} {mode}: {scenario.__name__}, other way", scenario, True))
        else:
            checks = [(f"{pair} {mode}: {s.__name__}", s, False) for s in scenarios.SHORT]
        if "trunkline" in kinds:
            checks.insert(1, (f"{pair} {mode}: status", scenarios.status, False))
        if mode == "starttls" and kinds == ("trunkline", "prosody"):
            checks += [(f"{pair} control: {s.__name__}", s, False) for s in control_policy.ALL]
        await with_pair(report, world, kinds, settings, checks)
    for swapped in (False, True):
        shower = kinds[0] if swapped else kinds[1]
        judge = kinds[1] if swapped else kinds[0]
        for variant in [*BAD, "no-client-auth"]:
            bad, good = Setting("starttls", variant), Setting("starttls", "good")
            settings = (bad, good) if swapped else (good, bad)
            fine = variant == "no-client-auth"
            # Whether the others accept a certificate without the client purpose is theirs to know.
            if fine and judge != "trunkline":
                continue
            verb = "accepts" if fine else "refuses"
            scenario = scenarios.accepted if fine else scenarios.refused
            name = f"{pair} certificates: {judge} {verb} {variant} of {shower}"
            await with_pair(report, world, kinds, settings, [(name, scenario, swapped)])


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunkline", type=Path, help="the binary under test")
    parser.add_argument("--client-check", type=Path, help="the example of crates/client")
    parser.add_argument("--pairs", nargs="*", default=PAIRS, choices=PAIRS)
    parser.add_argument("--only", nargs="*", help="only checks whose name contains one of these")
    parser.add_argument("--no-clients", action="store_true", help="leave out the clients' checks")
    parser.add_argument("--keep", type=Path, help="keep servers' directories and logs here")
    parser.add_argument("--json", type=Path, help="write the results here")
    report = Report(arguments := parser.parse_args())
    # Asked to end, it still stops the servers it has started.
    me = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="trunkline-interop-"))
    if arguments.keep:
        shutil.rmtree(root, ignore_errors=True)
    binary = arguments.trunkline.resolve() if arguments.trunkline else None
    client_check = arguments.client_check.resolve() if arguments.client_check else None
    world = World(root.resolve(), Pki(root.resolve() / "pki"), Dns(), binary, client_check)
    await world.dns.start()
    try:
        for pair in arguments.pairs:
            kinds = tuple(pair.split("-"))
            missing = "trunkline" in kinds and not (binary and binary.exists())
            if missing:
                report.fail(f"{pair}", "there is no trunkline binary (--trunkline)")
            else:
                await federation(report, world, kinds)
        if "trunkline-prosody" in arguments.pairs and binary and binary.exists():
            checks = [(f"consent: {s.__name__}", s, False) for s in control_consent.ALL]
            good = Setting("starttls", "good")
            await with_pair(report, world, ("trunkline", "prosody"), (good, good), checks)
            await control_signals.run(report, world)
        if not arguments.no_clients:
            if "prosody-ejabberd" in arguments.pairs:
                await real_clients.run(report, world, ("prosody", "ejabberd"))
                await end_to_end.run(report, world, ("prosody", "prosody"))
                await libraries.run(report, world, ("prosody", "ejabberd"))
            if set(arguments.pairs) != {"prosody-ejabberd"} and binary and binary.exists():
                await real_clients.run(report, world, ("trunkline", "prosody"))
                await end_to_end.run(report, world, ("trunkline", "prosody"))
                await libraries.run(report, world, ("trunkline", "prosody"))
                await needs.run(report, world)
    finally:
        for server in world.servers:
            await server.kill()
        world.dns.stop()
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
    failed = sum(not r["passed"] for r in report.results)
    if arguments.json:
        arguments.json.write_text(json.dumps(report.results, indent=1))
    print(f"{len(report.results) - failed} passed, {failed} failed")
    return 1 if failed or not report.results else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
