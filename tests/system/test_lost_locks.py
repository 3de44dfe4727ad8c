"""Locks of the key index that nobody can have again: the instance moves to fresh shared memory
while it serves. Streams go on, newcomers are refused for a moment at most, nothing is lost."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess

import pytest

from lib import procs
from lib.asks import ask, gather, until
from lib.dacd import BUILD, STORED
from lib.disk import needs_mount
from lib.provider import say
from lib.service import dacctl
from lib.service import until as wait_until

LOST = r"a lock of shared memory can never be had again; renewing it"


def break_locks(dac, which="all"):
    """All locks, or those under which there are flights ("used")."""
    args = ["used"] if which == "used" else []
    inside = ["nsenter", "-t", str(dac.pid), "-m"] if dac.wrapper else []
    subprocess.run([*inside, BUILD / "tests/system/break_locks", dac.name, *args], check=True, timeout=20)


def check(dac):
    p = subprocess.run(
        [BUILD / "dacctl", "-n", dac.name, "--json", "check"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return json.loads(p.stdout)


def status(dac):
    return dacctl(dac, "status", "--json")


async def renewed(dac, times=1, timeout=10):
    async def is_new():
        return status(dac)["renewals"] == times

    await until(is_new, "the new shared memory has the name", timeout)


async def left(dac, timeout=10):
    """Until the old generation is gone: as many processes as there are to be."""

    async def is_alone():
        return len(dac.processes()) == 2 + len(status(dac)["processes"]) - 1 and len(dac.workers()) == 4

    await until(is_alone, "the old processes are gone", timeout)


async def counters(dac):
    r = await dac.get("/metrics")
    if r.status == 503:  # by an old process, to who was connected before
        assert r.json()["code"] == "moved"
        return {}
    assert r.status == 200
    return {
        m[1]: float(m[2])
        for m in re.finditer(r"^(dac_\w+_total(?:\{[^}]*\})?|dac_uptime_seconds) (\S+)$", r.text, re.M)
    }


async def watch_counters(dac, stop):
    """Asks for the metrics again and again; none may ever go back."""
    last, asked = {}, 0
    while not stop.is_set():
        now = await counters(dac)
        for name, value in now.items():
            assert value >= last.get(name, 0), f"{name} went back from {last[name]} to {value}"
        last, asked = last | now, asked + 1
        await asyncio.sleep(0.005)
    return asked


async def insist(dac, thread, question, seconds=10):
    """Asks until there is an answer; all there may be until then is 503 with Retry-After."""
    refused = 0
    async with asyncio.timeout(seconds):
        while True:
            s = await dac.open_ask(thread, question)
            if s.status == 200:
                return await s.rest(), refused
            assert s.status == 503 and float(s.head.get("retry-after")) >= 1, (s.status, s.head)
            await s.body()
            refused += 1
            await asyncio.sleep(0.02)


async def two_generations(make_dac, drain, streams=1):
    """A dacd that has moved: (it, a thread, streams on the old memory, held before their token 3)."""
    dac = make_dac({"server": {"drain_timeout": drain}})
    dac.allow_log.append(LOST)
    thread = await dac.thread()
    held = say("old kumquat", tokens=9, barrier="go@3")
    on_old = [await dac.open_ask(thread, held) for _ in range(streams)]
    for s in on_old:
        await s.until("delta")
    break_locks(dac)
    await insist(dac, thread, say("kumquat", tokens=2))
    await renewed(dac)
    return dac, thread, on_old


@pytest.mark.smoke
@pytest.mark.parametrize("which", ["used", "all"])
async def test_streams_go_on_and_newcomers_come_in(make_dac, mock, which):
    # Of so many locks hardly any newcomer hits one of the seven by chance.
    many = {"max_flights": 32768, "shm_size": "160m"} if which == "used" else {}
    news = 10 if which == "used" else 40
    dac = make_dac({"server": {"drain_timeout": "15s"}, "memory": many})
    dac.allow_log.append(LOST)
    before = [await dac.thread() for _ in range(6)]
    await dac.ask_stream(before[0], say("a kumquat of old", tokens=3))
    questions = [say(f"kumquat {i}", tokens=9, barrier="go@4") for i in range(6)]
    streams = [await dac.open_ask(t, q) for t, q in zip(before, questions, strict=True) for _ in range(3)]
    for s in streams:
        await s.until("delta")
    old = set(dac.processes())
    stop = asyncio.Event()
    watcher = asyncio.create_task(watch_counters(dac, stop))
    break_locks(dac, which)
    newcomers = [asyncio.create_task(insist(dac, before[0], say(f"new {i}", tokens=3))) for i in range(news)]
    answers = [a for a, _ in await gather(*newcomers)]
    if which == "used":
        # Nobody asked what belongs to those locks, so nobody has found out.
        assert status(dac)["renewals"] == 0
        again, refused = await insist(dac, before[0], say("a kumquat of old", tokens=3))
        assert refused > 0 and again.text == await mock.text(say("a kumquat of old", tokens=3))
    await renewed(dac)
    assert [a.text for a in answers] == [await mock.text(say(f"new {i}", tokens=3)) for i in range(news)]
    # The recorder, and those workers that have streams.
    assert len(set(dac.processes()) & old) >= 3
    report = check(dac)
    assert report["wrong"] == 0, report

    await mock.open("go")
    for s in await gather(*[s.rest() for s in streams]):
        assert s.complete and s.one("done").data["stored"] == STORED and not s.named("error")
    texts = [await mock.text(q) for q in questions for _ in range(3)]
    assert [s.text for s in streams] == texts
    await left(dac)
    stop.set()
    assert await watcher > 5
    assert not (set(dac.processes()) & old) - {dac.pid}
    assert "the old shared memory is left" in dac.log
    assert await dac.counter("dac_locks_lost_total") >= 1
    assert await dac.counter("dac_renewals_total") == 1

    # All that was acknowledged is stored, once.
    acknowledged = [s.one("meta").data["turn_id"] for s in streams + answers]
    stored = [t["id"] for t in dac.turns()]
    assert set(acknowledged) <= set(stored) and len(stored) == len(set(stored))
    assert all(t["status"] == "complete" for t in dac.turns())
    assert (await dac.performance())["turns"] >= news
    report = check(dac)
    assert report["wrong"] == 0 and report["state"] == "live", report


async def test_a_load_of_clients_loses_nothing(make_dac, mock):
    """All locks at once under a mixed load, three times."""
    dac = make_dac()
    dac.allow_log.append(LOST)
    threads = [await dac.thread() for _ in range(4)]
    stop = asyncio.Event()
    done, refused = [], 0

    async def client(i):
        nonlocal refused
        n = 0
        while not stop.is_set():
            n += 1
            # Two and two ask the same.
            q = say(f"kumquat {i // 2} {n}", tokens=6, gap="10ms")
            s, times = await insist(dac, threads[i % 4], q)
            refused += times
            assert s.complete and not s.named("error"), s.events[-2:]
            assert s.text == await mock.text(q)
            done.append(s.one("meta").data["turn_id"])

    watcher = asyncio.create_task(watch_counters(dac, stop))
    clients = [asyncio.create_task(client(i)) for i in range(24)]
    for times in range(1, 4):
        await asyncio.sleep(0.5)
        break_locks(dac)
        await renewed(dac, times)
        await left(dac)
    stop.set()
    await gather(watcher, *clients)
    stored = [t["id"] for t in dac.turns()]
    assert set(done) <= set(stored) and len(stored) == len(set(stored))
    assert len(done) > 100 and refused > 0
    report = check(dac)
    assert report["wrong"] == 0, report


async def test_what_is_lost_says_so(make_dac, mock):
    """Before the master could renew: status and check say it in words, /metrics counts it."""
    dac = make_dac()
    dac.allow_log += [LOST, r"could not renew shared memory"]
    thread = await dac.thread()
    blocked = f"/dev/shm/.{dac.name}.next"
    os.mkdir(blocked)  # the new segment cannot be made
    try:
        break_locks(dac)
        s = await dac.open_ask(thread, say("kumquat", tokens=2))
        assert s.status == 503 and s.head.get("retry-after")
        await s.body()
        wait_until(lambda: "could not renew shared memory" in dac.log, "the failure is told")
        said = dacctl(dac, "status")
        assert "can never be had again; their questions are refused" in said
        assert status(dac)["locks_lost"] >= 1
        report = check(dac)
        assert report["wrong"] == 4096
        assert "its lock can never be had again" in report["problems"][0]["words"]
        assert await dac.counter("dac_locks_lost_total") >= 1
        assert len(dac.processes()) == 6
    finally:
        os.rmdir(blocked)
    # It is tried again by itself.
    answer, _ = await insist(dac, thread, say("kumquat", tokens=2))
    assert answer.one("done")
    await left(dac)
    assert status(dac)["renewals"] == 1 and status(dac)["locks_lost"] == 0


@needs_mount
async def test_a_small_dev_shm(make_dac, mock):
    """There is no room for two: 64 MiB, as a container has, for segments of 48."""
    dac = make_dac({"server": {"drain_timeout": "15s"}}, start=False)
    dac.allow_log.append(LOST)
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    dac.wrapper = ["unshare", "-m", "sh", "-c", mount, "sh"]
    dac.start()
    thread = await dac.thread()
    s = await dac.open_ask(thread, say("old kumquat", tokens=9, barrier="go@3"))
    await s.until("delta")
    break_locks(dac)
    await insist(dac, thread, say("kumquat", tokens=2))
    assert await dac.counter("dac_renewals_total") == 1
    assert "has no room for a second segment" in dac.log
    await mock.open("go")
    assert (await s.rest()).one("done")
    wait_until(lambda: "the old shared memory is left" in dac.log, "the old one's end")
    # And back to the whole size, since there is room now.
    break_locks(dac)
    await insist(dac, thread, say("kumquat 2", tokens=2))
    assert await dac.counter("dac_renewals_total") == 2
    assert await dac.counter("dac_blocks") > 20000
    assert dac.log.count("has no room for a second segment") == 1


async def test_what_cannot_be_joined_can_be_left(make_dac, mock):
    """The last client leaves a flight whose lock is lost: its call is ended all the same."""
    dac = make_dac({"server": {"drain_timeout": "15s"}})
    dac.allow_log += [LOST]
    thread = await dac.thread()
    s = await dac.open_ask(thread, say("kumquat", tokens=9, barrier="never@3"))
    await s.until("delta")
    break_locks(dac)
    await insist(dac, thread, say("another kumquat", tokens=2))
    await renewed(dac)
    s.close()
    await mock.wait(active=0, timeout="3s")
    await left(dac, 5)

    async def stored():
        return sorted(t["status"] for t in dac.turns()) == ["cancelled", "complete"]

    await until(stored, "what had come is stored as cancelled")


@pytest.mark.smoke
async def test_stop_while_the_old_one_drains(make_dac, mock):
    dac, thread, (on_old,) = await two_generations(make_dac, "10s")
    on_new = await dac.open_ask(thread, say("new kumquat", tokens=9, barrier="go@3"))
    await on_new.until("delta")
    os.kill(dac.pid, signal.SIGTERM)
    wait_until(lambda: "stopping: " in dac.log, "both drain")
    await mock.open("go")
    for s in await gather(on_old.rest(), on_new.rest()):
        assert s.complete and s.one("done")
    await asyncio.to_thread(dac.process.wait, 10)
    assert [t["status"] for t in dac.turns()] == ["complete"] * 3


async def test_the_master_dies_while_the_old_one_drains(make_dac, mock):
    dac, thread, (on_old,) = await two_generations(make_dac, "2s")
    on_new = await dac.open_ask(thread, say("new kumquat", tokens=9, barrier="go@3"))
    await on_new.until("delta")
    os.kill(dac.pid, signal.SIGKILL)
    dac.process.wait()
    dac.retired.append(dac.pid)
    dac.start()
    assert "its shared memory is replaced" in dac.log
    await mock.open("go")
    for s in await gather(on_old.rest(), on_new.rest()):
        assert s.complete and s.one("done")
    wait_until(lambda: not procs.session(dac.retired[0]), "the end of the old processes")
    assert [t["status"] for t in dac.turns()] == ["complete"] * 3


async def test_the_second_loss_waits_for_the_end_of_the_first(make_dac, mock):
    dac, thread, (s,) = await two_generations(make_dac, "15s")
    await asyncio.sleep(1.3)
    old = set(dac.processes())
    assert len(old) == 8, "who has a stream, and the recorders"
    break_locks(dac)
    refused = await dac.open_ask(thread, say("kumquat 2", tokens=2))
    assert refused.status == 503
    await refused.body()
    await asyncio.sleep(0.6)
    assert status(dac)["renewals"] == 1 and dac.processes().keys() & old == old
    await mock.open("go")
    assert (await s.rest()).one("done")
    await insist(dac, thread, say("kumquat 2", tokens=2))
    await renewed(dac, 2)
    await left(dac)


@pytest.mark.parametrize("victim", ["old worker", "old recorder", "new worker", "new recorder"])
async def test_deaths_while_the_old_one_drains(make_dac, mock, victim):
    """Each is started again where it is needed; what the old generation had is stored."""
    dac = make_dac({"server": {"drain_timeout": "10s"}})
    dac.allow_log += [LOST, r"worker|recorder|signal"]
    thread = await dac.thread()
    old = dac.processes()
    streams = [await dac.open_ask(thread, say("old kumquat", tokens=9, barrier="go@3")) for _ in range(12)]
    for s in streams:
        await s.until("delta")
    break_locks(dac)
    await insist(dac, thread, say("kumquat", tokens=2))
    await renewed(dac)
    await asyncio.sleep(1.2)  # those without a stream are gone
    is_old = victim.startswith("old")
    pool = {p: t for p, t in dac.processes().items() if (p in old) == is_old}
    os.kill(next(p for p, t in pool.items() if victim.split()[1] in t), signal.SIGKILL)
    await asyncio.sleep(0.3)
    await mock.open("go")
    ended = await gather(*[s.rest() for s in streams])
    whole = [s for s in ended if s.complete]
    text = await mock.text(say("old kumquat", tokens=9, barrier="go@3"))
    assert whole and all(s.text == text and s.one("done") for s in whole if not s.named("reset"))
    if victim != "old worker":
        assert len(whole) == 12
    await insist(dac, thread, say("last kumquat", tokens=2))
    await left(dac)
    (turn,) = {s.one("meta").data["turn_id"] for s in ended}
    (stored,) = [t for t in dac.turns() if t["id"] == turn]
    assert stored["status"] == "complete"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_old_worker_that_stands_still(make_dac, mock, when):
    """It holds the handover up for a second at most, and the watchdog ends it in its generation, too."""
    dac = make_dac({"server": {"drain_timeout": "10s", "watchdog_timeout": "2s"}})
    dac.allow_log += [LOST, r"has not beaten", r"worker|signal"]
    thread = await dac.thread()
    question = say("old kumquat", tokens=9, barrier="go@3")
    streams = [await dac.open_ask(thread, question) for _ in range(12)]
    for s in streams:
        await s.until("delta")
    victim = next(p for p in dac.workers() if procs.connections(p, dac.port))
    if when == "before":
        os.kill(victim, signal.SIGSTOP)
    break_locks(dac)
    await insist(dac, thread, say("kumquat", tokens=2), 5)
    await renewed(dac)
    if when == "after":
        os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: f"pid {victim} (slot" in dac.log and "has not beaten" in dac.log, "the watchdog's word")
    await mock.open("go")
    ended = await gather(*[s.rest() for s in streams])
    text = await mock.text(question)
    whole = [s for s in ended if s.complete]
    assert whole and all(s.one("done") for s in whole)
    assert all(s.text == text for s in whole if not s.named("reset"))
    await left(dac)
    assert all(t["status"] == "complete" for t in dac.turns())


@pytest.mark.smoke
async def test_the_provider_hears_no_more_than_it_allows(make_dac, mock):
    """Calls of the old and of the new together stay within the limit."""
    dac = make_dac({"provider perplexity": {"concurrency": 3}, "server": {"drain_timeout": "15s"}})
    dac.allow_log.append(LOST)
    threads = [await dac.thread() for _ in range(3)]
    held = [await dac.open_ask(threads[i % 3], say(f"old {i}", tokens=6, barrier=f"go{i}@3")) for i in range(5)]
    for s in held:
        await s.until("meta")
    await mock.wait(active=3)
    break_locks(dac)
    probe = await dac.open_ask(threads[0], say("probe", tokens=1))
    await probe.body()
    await renewed(dac)
    asks = [
        asyncio.create_task(ask(dac, threads[i % 3], say(f"new {i}", tokens=5, gap="20ms"), "stream"))
        for i in range(9)
    ]
    await asyncio.sleep(1)
    assert (await mock.stats())["max_concurrent"] == 3
    for i in range(5):
        await mock.open(f"go{i}")
        await asyncio.sleep(0.1)
    await gather(*[s.rest() for s in held])
    await gather(*asks)
    stats = await mock.stats()
    assert stats["max_concurrent"] == 3 and stats["calls"] == 14
    await left(dac)
    assert status(dac)["providers"][0]["concurrency"] == 3


@pytest.mark.sqlite
async def test_a_generation_that_does_not_come_up(make_dac, mock):
    """Its recorder cannot open the store: the old generation serves on, and it is tried again."""
    dac = make_dac()
    dac.allow_log += [LOST, r"could not", r"newer release"]
    thread = await dac.thread()
    s = await dac.open_ask(thread, say("old kumquat", tokens=9, barrier="go@3"))
    await s.until("delta")
    old = set(dac.processes())
    with contextlib.closing(sqlite3.connect(dac.db_path, isolation_level=None)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute("PRAGMA user_version = 999")  # as a newer release would leave it
        break_locks(dac)
        assert (await dac.open_ask(thread, say("kumquat", tokens=2))).status == 503
        wait_until(lambda: "could not renew shared memory: recorder" in dac.log, "the failure is told")
        assert status(dac)["renewals"] == 0

        async def are_gone():
            return set(dac.processes()) == old

        await until(are_gone, "those that came are gone")
        db.execute(f"PRAGMA user_version = {version}")
    answer, _ = await insist(dac, thread, say("kumquat", tokens=2))
    assert answer.one("done") and status(dac)["renewals"] == 1
    await mock.open("go")
    assert (await s.rest()).one("done")
    await left(dac)
    assert [t["status"] for t in dac.turns()] == ["complete"] * 2
