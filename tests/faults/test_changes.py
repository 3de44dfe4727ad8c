"""A call for memory, a descriptor or a mapping fails while the service is asked to read its
configuration again, while it replaces a process that died, and while it stops."""

import asyncio
import os
import signal
import time
from functools import partial

import pytest

from lib import procs
from lib.provider import say
from load import PATIENCE, all_is_well, crashes, mix, settled, stored_once
from shim import numbers
from test_requests import SETTINGS, healthy


async def reload(dac, mock, thread, label, acknowledged, arm):
    """SIGHUP under load; the master says that it heard it."""
    before = dac.log.count("received SIGHUP")
    arm()
    asking = asyncio.create_task(mix(dac, mock, thread, label, acknowledged))
    os.kill(dac.pid, signal.SIGHUP)
    deadline = time.monotonic() + PATIENCE
    while dac.log.count("received SIGHUP") == before:
        assert time.monotonic() < deadline, "SIGHUP was not heard"
        await asyncio.sleep(0.01)
    await asking


async def replace(dac, mock, thread, label, acknowledged, arm):
    """The worker that fetches dies in the middle of an answer: another one takes over, and is
    followed by a new process."""
    question = say(f"Replaced kumquat {label}?", tokens=6, token_size=12, barrier=f"hold{label}@3")
    streams = [await dac.open_ask(thread, question) for _ in range(4)]
    await mock.wait(waiting=1, barrier=f"hold{label}")
    fetchers = [p for p in dac.workers() if procs.connections_to(p, mock.port)]
    arm()
    os.kill(fetchers[0], signal.SIGKILL)
    await asyncio.sleep(0.1)
    await mock.open(f"hold{label}")
    text = await mock.text(question)
    for s in await asyncio.gather(*[s.rest(PATIENCE) for s in streams]):
        if s.named("done"):
            assert s.complete and s.text == text, (s.text, text)
            acknowledged.append((s.one("meta").data["turn_id"], text))
        elif s.complete:
            assert s.one("error").data["code"]
    deadline = time.monotonic() + PATIENCE
    while len(dac.workers()) < 2:
        assert time.monotonic() < deadline, f"workers: {dac.workers()}"
        await asyncio.sleep(0.02)


CHANGES = {"reload": reload, "replace": replace}


@pytest.mark.limit(800)
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize(
    ("change", "kind", "role", "samples"),
    [
        ("reload", "alloc", "any", 6),
        ("reload", "fd", "any", 4),
        ("replace", "alloc", "worker", 10),
        ("replace", "alloc", "master", 4),
        ("replace", "fd", "any", 6),
        ("replace", "mmap", "any", 4),
    ],
)
async def test_the_service_goes_on(make_dac, mock, faults, change, kind, role, samples, count):
    dac = make_dac(SETTINGS, env=faults.env, workers=2)
    dac.allow_log.append(".")
    thread = await dac.thread()
    acknowledged = []
    if change == "replace":
        count = min(count, 4)  # each death delays the next start
    await CHANGES[change](dac, mock, thread, "0", acknowledged, lambda: faults.arm(kind, role))
    seen, _ = faults.disarm()
    await settled(dac, mock)
    for n in numbers(seen, samples):
        with faults.explained(kind, role, n, count):
            await CHANGES[change](
                dac, mock, thread, f"{n}", acknowledged, partial(faults.arm, kind, role, n, count)
            )
            faults.disarm()
            await settled(dac, mock)
            await healthy(dac, mock, n)
            assert not crashes(dac), crashes(dac)
    await all_is_well(dac, acknowledged)
    print(f"{change}: {kind} in {role}, {count} in a row: {seen} calls")


@pytest.mark.limit(800)
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize(
    ("kind", "role", "samples"),
    [("alloc", "worker", 6), ("alloc", "recorder", 6), ("alloc", "master", 3), ("fd", "any", 4), ("mmap", "any", 3)],
)
async def test_it_stops_in_time(make_dac, mock, faults, kind, role, samples, count):
    """Exit code 0, or another one and a message; the answers that were given are stored."""

    async def stop(label, first):
        dac = make_dac({**SETTINGS, "server": {"drain_timeout": "2s"}}, env=faults.env, workers=2)
        dac.allow_log.append(".")
        acknowledged = []
        thread = await dac.thread()
        running = say(f"Running kumquat {label}?", tokens=4, token_size=12, barrier=f"hold{label}@2")
        s = await dac.open_ask(thread, running)
        await mock.wait(waiting=1, barrier=f"hold{label}")
        with faults.explained(kind, role, first, count):
            faults.arm(kind, role, first, count)
            os.kill(dac.pid, signal.SIGTERM)
            await mock.open(f"hold{label}")
            await s.rest(PATIENCE)
            if s.named("done"):
                acknowledged.append((s.one("meta").data["turn_id"], await mock.text(running)))
            code = await asyncio.to_thread(dac.process.wait, PATIENCE)
            seen, _ = faults.disarm()
            assert code >= 0 and not crashes(dac), (code, crashes(dac))
            assert code == 0 or " ERROR " in dac.log, f"exit code {code} without a message"
            dac.expect_exit = code
            stored_once(dac, acknowledged)
            dac.stop()
            return seen

    seen = await stop("0", 1 << 62)
    for n in numbers(seen, samples if count == 1 else samples // 2):
        await stop(f"{n}", n)
    print(f"stop: {kind} in {role}, {count} in a row: {seen} calls")
