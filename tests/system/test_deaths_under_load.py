"""Workers and the recorder are killed at random while many ask: what was promised is kept, and
nothing stays behind in shared memory."""

import asyncio
import os
import random
import re
import signal

import pytest

from lib.dacd import BUILD, ROOT
from lib.provider import say
from lib.service import dacctl

SECONDS = 6


def crash_points():
    """Names of the points at which a build with --enable-crashpoints can kill itself."""
    if not (BUILD / "dacd").exists() or b"DAC_CRASH_AT" not in (BUILD / "dacd").read_bytes():
        return []
    found = set()
    for folder in ("shm", "src"):
        for path in (ROOT / folder).rglob("*.c"):
            found |= set(re.findall(r'CRASH_POINT\("(\w+)"\)', path.read_text()))
    return sorted(found)


async def client(dac, thread, n, until, most, seen):
    """Asks again and again, sometimes with an Idempotency-Key that others use, too; notes each answer
    that was said to be stored."""
    loop = asyncio.get_running_loop()
    rng = random.Random(n)
    for _ in range(most):
        if loop.time() >= until:
            break
        question = say(f"Kumquat {rng.randrange(6)}?", tokens=rng.randrange(1, 12), gap="3ms")
        key = f"{thread} {question} {rng.randrange(8)}" if rng.random() < 0.4 else None
        try:
            s = await dac.open_ask(thread, question, {"Idempotency-Key": key})
            if s.status == 200:
                await s.rest(timeout=25)
                ends = [e.name for e in s.named("done", "error")]
                assert len(ends) <= 1 and (ends or not s.complete), s.events[-3:]
                if ends == ["done"]:
                    seen.append((s.one("meta").data["turn_id"], s.text, key))
            else:
                await s.body()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # its worker died; a TimeoutError is a client that was stuck
        await asyncio.sleep(rng.random() * 0.02)


async def killer(dac, until):
    loop = asyncio.get_running_loop()
    rng = random.Random(7)
    kills = 0
    while loop.time() < until:
        await asyncio.sleep(0.15 + rng.random() * 0.2)
        victims = [p for p, t in dac.processes().items() if "worker" in t or "recorder" in t]
        os.kill(rng.choice(victims), signal.SIGKILL)
        kills += 1
    return kills


def busy(status):
    return [s for s in ("claimed", "queued", "fetching", "streaming", "orphaned") if status["flights"][s]]


async def load(dac, seconds, clients, most=1_000_000):
    """Asks from many clients for some seconds, `most` times each, then checks that all is as it was promised."""
    threads = [await dac.thread() for _ in range(4)]
    seen = []
    until = asyncio.get_running_loop().time() + seconds
    await asyncio.gather(*[client(dac, threads[n % 4], n, until, most, seen) for n in range(clients)])

    # Whatever a client was told is done is stored as it was told.
    stored = {t["id"]: t for t in dac.turns()}
    texts = {m["turn_id"]: m["content"] for m in dac.messages() if m["role"] == "assistant"}
    turns = {}
    for turn, text, key in seen:
        assert stored[turn]["status"] == "complete"
        assert texts[turn] == text
        assert key is None or turns.setdefault(key, turn) == turn
    for turn in stored.values():
        assert turn["status"] in ("complete", "incomplete", "failed", "cancelled")
    return len(seen)


async def all_free_again(dac, mock):
    """Nothing runs any more; with their time all flights, blocks and permits are free. A recorder
    that dies again and again frees some in each of its lives, with a growing delay between them."""
    status = {}
    for _ in range(600):
        status = dacctl(dac, "status", "--json")
        if status["flights"]["free"] == status["flights"]["total"]:
            break
        await asyncio.sleep(0.1)
    assert busy(status) == []
    assert status["flights"]["free"] == status["flights"]["total"], dacctl(dac, "flights")
    assert status["blocks"]["used"] == 0
    assert status["providers"][0]["in_flight"] == 0
    await mock.wait(active=0)


SHORT = {"flight": {"result_ttl": "200ms", "error_ttl": "200ms", "reconnect_grace": "500ms"}}


@pytest.mark.limit(120)
async def test_promises_are_kept_and_nothing_leaks(make_dac, mock):
    dac = make_dac(SHORT)
    until = asyncio.get_running_loop().time() + SECONDS
    kills, seen = await asyncio.gather(killer(dac, until), load(dac, SECONDS, 24))
    assert kills > 8 and seen > 50
    await all_free_again(dac, mock)
    thread = await dac.thread()
    assert (await dac.ask_stream(thread, say("And now, kumquat?", tokens=3))).one("done")


@pytest.mark.crashpoints
@pytest.mark.parametrize("role", ["worker", "recorder"])
@pytest.mark.parametrize("point", crash_points())
@pytest.mark.limit(120)
async def test_every_crash_point(make_dac, mock, point, role):
    """Each process of a kind kills itself at its 40th pass of a point, again and again. A recorder
    that dies at each 40th lock frees 20 flights a life, with up to 5 s between two: so it is the
    number of questions that is bounded, whatever the machine's speed."""
    dac = make_dac(SHORT, env={"DAC_CRASH_AT": f"{point}:40", "DAC_CRASH_ROLE": role}, workers=3)
    await load(dac, 2, 12, most=25)
    await all_free_again(dac, mock)
