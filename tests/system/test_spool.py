"""While PostgreSQL is away turns go to the spool before `done`, and from there to PostgreSQL, once and
in order; threads in use stay askable and readable."""

import asyncio
import contextlib
import os
import signal
import sqlite3

import pytest

from lib.asks import until
from lib.provider import say

pytestmark = pytest.mark.own_store

AWAY = ["PostgreSQL", "lost", "recorder", "worker"]


@pytest.fixture
def pg_dac(postgres, make_dac):
    dac = make_dac({"store": {"postgres": postgres.conninfo(), "commit_timeout": "500ms"}})
    dac.allow_log += AWAY
    return dac


async def drained(dac, timeout=20):
    async def empty():
        return await dac.counter("dac_spool_rows") == 0 and await dac.counter("dac_store_up") == 1

    await until(empty, "the spool is empty", timeout)


def stored(postgres):
    return {str(t["id"]): t for t in postgres.sql("SELECT * FROM turns ORDER BY created_at, id")}


async def ask(dac, thread, question, tokens=3):
    r = await dac.ask_json(thread, say(question, tokens=tokens))
    assert r.status == 200, r.text
    return r.json()


async def test_an_outage_is_noticed_by_nobody(pg_dac, postgres, mock):
    dac = pg_dac
    thread = await dac.thread("before")
    first = await ask(dac, thread, "Kumquat 1?")
    assert first["stored"] == "postgres"
    await asyncio.to_thread(postgres.stop)
    told = [first["turn_id"]]
    for n in range(2, 8):
        answer = await ask(dac, thread, f"Kumquat {n}?")
        assert answer["stored"] == "spool"
        told.append(answer["turn_id"])
        # Readable over every worker, the turn of a moment ago included.
        for _ in range(4):
            r = await dac.get(f"/api/threads/{thread}/messages")
            assert r.status == 200, r.text
            assert [m["turn_id"] for m in r.json()["messages"]] == [t for t in told for _ in range(2)]
        r = await dac.get(f"/api/turns/{answer['turn_id']}")
        assert r.status == 200 and r.json()["status"] == "complete"
    # The provider gets the history also of what only the spool has.
    assert (await dac.get("/readyz")).status == 200

    async def counted():
        return await dac.counter("dac_store_up") == 0 and await dac.counter("dac_spool_rows") >= 6

    await until(counted, "the figures say so")
    made = await dac.thread("in between")
    assert (await ask(dac, made, "Kumquat in between?"))["stored"] == "spool"
    await asyncio.to_thread(postgres.start)
    await drained(dac)
    rows = stored(postgres)
    assert [t for t in rows if t in told] == told
    assert len(rows) == len(told) + 1
    assert postgres.value("SELECT count(*) FROM rejected") == 0
    assert (await ask(dac, thread, "Kumquat after?"))["stored"] == "postgres"
    assert (await dac.get(f"/api/threads/{thread}/messages")).json()["messages"][-1]["role"] == "assistant"


async def test_the_history_goes_along(pg_dac, postgres, mock):
    dac = pg_dac
    thread = await dac.thread()
    await ask(dac, thread, "Kumquat one?")
    await asyncio.to_thread(postgres.stop)
    await ask(dac, thread, "Kumquat two?")
    await ask(dac, thread, "Kumquat three?")
    sent = (await mock.requests())[-1]["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "user", "assistant", "user"]
    assert "one" in sent[0]["content"] and "two" in sent[2]["content"]


async def test_a_start_without_postgresql(postgres, make_dac, mock):
    await asyncio.to_thread(postgres.stop)
    dac = make_dac({"store": {"postgres": postgres.conninfo()}})
    dac.allow_log += AWAY
    thread = await dac.thread()
    assert (await ask(dac, thread, "Kumquat?"))["stored"] == "spool"
    await asyncio.to_thread(postgres.start)
    await drained(dac)
    assert len(stored(postgres)) == 1


async def test_an_unknown_thread_waits_and_is_refused(pg_dac, postgres, mock):
    dac = pg_dac
    await asyncio.to_thread(postgres.stop)
    r = await dac.get("/api/threads/018f0000-0000-7000-8000-000000000001")
    assert r.status == 503 and r.json()["code"] == "store_unavailable"
    assert r.get("retry-after")


@pytest.mark.limit(90)
async def test_what_only_postgresql_has_is_refused_for_now(pg_dac, postgres, mock):
    """Lists, threads that the spool does not keep, and one of which it has not got the older turns yet."""
    dac = pg_dac
    kept, other, half = [await dac.thread(name) for name in ("kept", "other", "half")]
    for thread in (kept, other, half):
        await ask(dac, thread, "Kumquat one?")
    dac.stop()
    for path in dac.folder.glob("spool.db*"):
        path.unlink()
    dac.start()
    for thread in (kept, half):
        await ask(dac, thread, "Kumquat two?")

    def depth(thread):
        with contextlib.closing(sqlite3.connect(dac.folder / "spool.db", timeout=5)) as db:
            return next(iter(db.execute("SELECT depth FROM spool_threads WHERE thread_id = ?", (thread,))), None)

    async def filled():
        return depth(kept) == (1,) == depth(half)

    await until(filled, "both are filled")
    with contextlib.closing(sqlite3.connect(dac.folder / "spool.db", timeout=5)) as db:
        db.execute("UPDATE spool_threads SET depth = 0 WHERE thread_id = ?", (half,))  # as before that
        db.commit()
    await asyncio.to_thread(postgres.stop)
    calls = await mock.calls()
    loop = asyncio.get_running_loop()

    async def refused(code, what):
        began = loop.time()
        r = await what
        took = loop.time() - began
        assert r.status == 503, r.text
        assert r.json()["code"] == code and int(r.get("retry-after")) >= 1 and r.json()["retryable"]
        assert took < 4, took
        assert code == "history_unavailable" or took > 1.5

    async def streamed(thread):
        s = await dac.ask_stream(thread, say("Kumquat stream?"))
        assert s.status == 503 or (s.one("error").data["code"] == "history_unavailable" and not s.named("done"))

    unknown = "018f0000-0000-7000-8000-000000000001"
    await asyncio.gather(
        *[refused("store_unavailable", dac.get("/api/threads/")) for _ in range(8)],
        *[refused("store_unavailable", dac.get(f"/api/threads/{t}/messages")) for t in (other, half, unknown)],
        *[refused("store_unavailable", dac.get(f"/api/threads/{t}")) for t in (other, unknown)],
        *[refused("store_unavailable", dac.ask_json(t, say("Kumquat three?"))) for t in (other, unknown)],
        refused("history_unavailable", dac.ask_json(half, say("Kumquat three?"))),
        streamed(half),
    )
    assert await mock.calls() == calls
    assert (await ask(dac, kept, "Kumquat three?"))["stored"] == "spool"
    assert (await dac.get(f"/api/threads/{half}")).status == 200  # its title is known
    await asyncio.to_thread(postgres.start)
    await drained(dac)
    for thread in (kept, other, half):
        await ask(dac, thread, "Kumquat four?")
    assert len((await dac.get("/api/threads/")).json()["threads"]) == 3


@pytest.mark.limit(90)
@pytest.mark.parametrize("traffic", ["all the time", "only afterwards"])
async def test_who_reads_finds_postgresql_within_a_second(pg_dac, postgres, mock, traffic):
    """Behind an outage that made attempts to connect rare. Lists come from PostgreSQL alone."""
    dac = pg_dac
    thread = await dac.thread()
    await ask(dac, thread, "Kumquat?")
    loop = asyncio.get_running_loop()
    back, over, good = None, asyncio.Event(), []

    async def reader():
        while not over.is_set():
            r = await dac.get("/api/threads/")
            if r.status == 200 and back is not None:
                good.append(loop.time() - back)
                return
            assert r.status in (200, 503), r.text
            await asyncio.sleep(0.05)

    readers = 16  # over four workers
    await asyncio.to_thread(postgres.stop)
    tasks = [asyncio.create_task(reader()) for _ in range(readers if traffic == "all the time" else 0)]
    await asyncio.sleep(10)
    await asyncio.to_thread(postgres.start)
    back = loop.time()
    tasks += [asyncio.create_task(reader()) for _ in range(readers - len(tasks))]
    stored = None
    while stored != "postgres" and loop.time() - back < 10:
        stored = (await ask(dac, thread, f"Kumquat {loop.time()}?"))["stored"]
    took = loop.time() - back
    await asyncio.sleep(max(0, 3 - took))
    over.set()
    await asyncio.gather(*tasks)
    print(f"first good reads after {min(good):.2f} to {max(good):.2f} s, first turn there after {took:.2f} s")
    assert len(good) == readers
    assert max(good) < 1 and took < 1.5, (max(good), took)


async def test_changes_of_threads_go_through_the_spool(pg_dac, postgres, mock):
    dac = pg_dac
    kept, gone = await dac.thread("kept"), await dac.thread("gone")
    await asyncio.to_thread(postgres.stop)
    r = await dac.request("PATCH", f"/api/threads/{kept}", body={"title": "renamed"})
    assert r.status == 200, r.text
    assert (await dac.request("DELETE", f"/api/threads/{gone}")).status == 204
    assert (await dac.get(f"/api/threads/{kept}")).json()["title"] == "renamed"
    assert (await dac.get(f"/api/threads/{gone}")).status == 404
    await asyncio.to_thread(postgres.start)
    await drained(dac)
    rows = {str(t["id"]): t for t in postgres.sql("SELECT * FROM threads")}
    assert rows[kept]["title"] == "renamed" and rows[gone]["deleted_at"]


@pytest.mark.limit(120)
@pytest.mark.parametrize("trouble", ["stop", "kill", "terminate", "frozen", "read only", "locked", "recorder"])
async def test_under_load_nothing_is_lost_or_doubled(pg_dac, postgres, mock, trouble):
    dac = pg_dac
    threads = [await dac.thread() for _ in range(4)]
    told = {t: [] for t in threads}
    over = asyncio.Event()

    async def client(thread):
        n = 0
        while not over.is_set():
            n += 1
            try:
                r = await dac.ask_json(thread, say(f"Kumquat {thread} {n}?", tokens=2))
            except (ConnectionError, asyncio.IncompleteReadError):
                continue
            if r.status == 200:
                told[thread].append(r.json()["turn_id"])

    clients = [asyncio.create_task(client(t)) for t in threads]
    await asyncio.sleep(0.5)
    for _ in range(2):
        if trouble in ("stop", "kill"):
            await asyncio.to_thread(postgres.stop, "fast" if trouble == "stop" else "kill")
            await asyncio.sleep(1)
            await asyncio.to_thread(postgres.start)
        elif trouble == "terminate":
            postgres.terminate()
        elif trouble == "frozen":
            with postgres.frozen():
                await asyncio.sleep(2)
        elif trouble == "read only":
            postgres.read_only(True)
            await asyncio.sleep(1)
            postgres.read_only(False)
        elif trouble == "locked":
            with postgres.locked():
                await asyncio.sleep(2)
        else:
            os.kill(dac.recorder(), signal.SIGKILL)
        await asyncio.sleep(1)
    over.set()
    await asyncio.gather(*clients)
    await drained(dac)
    rows = stored(postgres)
    for thread, turns in told.items():
        assert len(turns) > 3
        assert [t for t in rows if t in set(turns)] == turns  # all there, in order
    assert postgres.value("SELECT count(*) FROM rejected") == 0
    assert (
        postgres.value(
            "SELECT count(*) FROM turns t WHERE status = 'complete' AND "
            "(SELECT count(*) FROM messages m WHERE m.turn_id = t.id) <> 2"
        )
        == 0
    )
