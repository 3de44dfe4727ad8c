"""The database and the spool are full, refuse or break: clients hear the truth, what was said to be
stored is there, and all goes on by itself when the trouble is over."""

import asyncio
import contextlib
import os
import re
import signal
import sqlite3

import pytest

from lib.asks import gather, until
from lib.disk import needs_mount
from lib.provider import say
from lib.service import run_dacd
from test_deaths_under_load import crash_points

pytestmark = [pytest.mark.own_store, pytest.mark.limit(110)]

AWAY = ["PostgreSQL", "lost", "could not store", "is not stored"]


@pytest.fixture
def make_pg_dac(make_dac, postgres):
    def make(server=None, memory=None, **store):
        settings = {"postgres": (server or postgres).conninfo(), "commit_timeout": "500ms", **store}
        dac = make_dac({"store": settings, "memory": memory or {}})
        dac.allow_log += AWAY
        return dac

    return make


async def takes(dac, timeout=30):
    """Until the database takes turns and the spool is empty. The figures are some moments old."""
    await asyncio.sleep(0.6)

    async def empty():
        return await dac.counter("dac_spool_rows") == 0 and await dac.counter("dac_store_up") == 1

    await until(empty, "the spool is empty", timeout)


async def turns_of(postgres):
    return {str(r["id"]): r for r in await asyncio.to_thread(postgres.sql, "SELECT * FROM turns")}


async def check_told(postgres, told):
    rows = await turns_of(postgres)
    assert set(told) <= set(rows), set(told) - set(rows)
    whole = "SELECT turn_id FROM messages GROUP BY turn_id HAVING count(*) = 2"
    assert set(told) <= {str(r["turn_id"]) for r in postgres.sql(whole)}
    assert postgres.value("SELECT count(*) FROM rejected") == 0
    return rows


def refused(r, code):
    return r.status == 503 and r.json()["code"] == code and int(r.get("retry-after")) >= 1


async def fill_spool(dac, thread, told):
    """Asks until newcomers are refused; whoever is answered was stored."""
    for n in range(400):
        r = await dac.ask_json(thread, say(f"Kumquat {n}?", tokens=64, token_size=4096))
        if r.status != 200:
            assert refused(r, "spool_full"), r.text
            return r
        assert r.json()["stored"] == "spool"
        told.append(r.json()["turn_id"])
    raise AssertionError("the spool is never full")


async def test_a_full_spool_refuses_newcomers_and_takes_who_runs(make_pg_dac, postgres, mock):
    dac = make_pg_dac(spool_max="16m")
    thread = await dac.thread()
    question = say("Kumquat running?", tokens=9, barrier="go@3")
    running = await dac.open_ask(thread, question)
    await running.until("delta")
    await asyncio.to_thread(postgres.stop)
    told = []
    await fill_spool(dac, thread, told)
    assert len(told) > 5
    assert refused(await dac.get("/readyz"), "spool_full")
    calls = await mock.calls()
    for r in await gather(*[dac.ask_json(thread, say(f"Kumquat new {n}?")) for n in range(8)]):
        assert refused(r, "spool_full")
    assert refused(await dac.chat(say("Kumquat chat?")), "spool_full")
    assert await mock.calls() == calls
    await mock.open("go")
    await running.rest()
    assert running.one("done").data["stored"] == "spool"
    told.append(running.one("meta").data["turn_id"])
    await asyncio.to_thread(postgres.start)
    await takes(dac)

    async def ready():
        return (await dac.get("/readyz")).status == 200

    await until(ready, "newcomers are taken again")
    r = await dac.ask_json(thread, say("Kumquat after?"))
    assert r.status == 200 and r.json()["stored"] == "postgres"
    assert len(await check_told(postgres, told)) == len(told) + 1


async def beyond_the_spool(dac, mock, thread, n, away, tokens=16):
    """More running answers than there is room for: each ends as stored or with an honest error."""
    streams = [
        await dac.open_ask(thread, say(f"Kumquat {i}?", tokens=tokens, token_size=4096, barrier="go@2"))
        for i in range(n)
    ]
    await gather(*[s.until("delta") for s in streams])
    await away()
    await mock.open("go")
    await gather(*[s.rest(timeout=30) for s in streams])
    told, untold = [], []
    for s in streams:
        turn = s.one("meta").data["turn_id"]
        if s.named("done"):
            told.append((turn, s.one("done").data["stored"]))
        else:
            assert s.one("error").data["code"] == "not_stored", s.events[-2:]
            untold.append(turn)
    return told, untold


async def test_more_than_the_spool_holds_is_an_honest_error(make_pg_dac, postgres, mock):
    dac = make_pg_dac(spool_max="16m", done_timeout="2s", memory={"shm_size": "160m"})
    thread = await dac.thread()
    told, untold = await beyond_the_spool(dac, mock, thread, 60, lambda: asyncio.to_thread(postgres.stop), 256)
    assert untold and refused(await dac.ask_json(thread, say("Kumquat?")), "spool_full")
    assert {place for _, place in told} <= {"spool", "postgres"}
    assert len(told) >= 12  # of a MiB
    assert (dac.folder / "spool.db").stat().st_size <= 16 << 20
    await asyncio.to_thread(postgres.start)
    await takes(dac)

    async def stored():
        return len(await turns_of(postgres)) >= len(told) + len(untold)

    # Memory still had them: an error is no loss.
    await until(stored, "all are stored in the end")
    rows = await check_told(postgres, [t for t, _ in told] + untold)
    assert len(rows) == len(told) + len(untold)
    assert (await dac.ask_json(thread, say("Kumquat after?"))).json()["stored"] == "postgres"


async def test_threads_that_are_kept_make_way_for_turns(make_pg_dac, postgres, mock):
    dac = make_pg_dac(spool_max="16m", memory={"shm_size": "96m"})
    threads = [await dac.thread() for _ in range(10)]
    told, kept = [], []
    for n, thread in enumerate(threads * 3):  # almost half of the spool
        r = await dac.ask_json(thread, say(f"Kumquat kept {n}?", tokens=64, token_size=4096))
        assert r.json()["stored"] == "postgres"
        kept.append(r.json()["turn_id"])
    await asyncio.to_thread(postgres.stop)
    await fill_spool(dac, threads[0], told)
    assert len(told) >= 45
    assert (dac.folder / "spool.db").stat().st_size <= 16 << 20
    await asyncio.to_thread(postgres.start)
    await takes(dac)
    await check_told(postgres, told + kept)


async def back_from_full(server):
    """A server whose log did not fit has ended itself."""
    server.free_disk()
    if server.process.poll() is not None:
        server.process = None
        await asyncio.to_thread(server.start)
    else:
        await asyncio.to_thread(server.wait_ready)


def fill_server(server):
    """Leaves a server no byte, and lets it notice."""
    server.fill_disk()
    with contextlib.suppress(Exception):
        for _ in range(40):
            server.sql("INSERT INTO ballast SELECT repeat('x', 1000) FROM generate_series(1, 10000)")


@needs_mount
@pytest.mark.parametrize("spool", ["a spool with room", "a full spool"])
async def test_the_servers_disk_is_full(make_pg_dac, make_postgres, disk, mock, spool):
    server = make_postgres(disk="160m")
    server.sql("CREATE TABLE ballast (v text)")
    dac = make_pg_dac(server, spool=disk.path / "spool.db", done_timeout="3s")
    thread = await dac.thread()
    full = spool == "a full spool"

    async def away():
        await asyncio.to_thread(fill_server, server)
        if full:
            disk.fill()

    told, untold = await beyond_the_spool(dac, mock, thread, 12, away)
    if full:
        assert untold == [] or told == [] or {place for _, place in told} <= {"postgres", "spool"}
        assert untold
        assert refused(await dac.ask_json(thread, say("Kumquat?")), "spool_full")
        assert refused(await dac.get("/readyz"), "spool_full")
        disk.free()
    else:
        assert untold == []
    await back_from_full(server)
    await takes(dac, 60)

    async def stored():
        return len(await turns_of(server)) >= 12

    await until(stored, "all are stored in the end", 30)
    await check_told(server, [t for t, _ in told] + untold)
    r = await dac.ask_json(thread, say("Kumquat after?"))
    assert r.status == 200 and r.json()["stored"] == "postgres", r.text


@needs_mount
async def test_a_full_disk_below_the_spool_alone_is_no_trouble_while_the_database_is_there(
    make_pg_dac, postgres, disk, mock
):
    dac = make_pg_dac(spool=disk.path / "spool.db")
    thread = await dac.thread()
    disk.fill()
    told = []
    for n in range(30):
        r = await dac.ask_json(thread, say(f"Kumquat {n}?", tokens=8, token_size=4096))
        assert r.status == 200 and r.json()["stored"] == "postgres"
        told.append(r.json()["turn_id"])
    assert (await dac.get("/readyz")).status == 200
    listed = (await dac.get(f"/api/threads/{thread}/messages?limit=100")).json()["messages"]
    assert {m["turn_id"] for m in listed} == set(told)
    await check_told(postgres, told)


async def test_no_connection_is_left(make_pg_dac, postgres, mock):
    dac = make_pg_dac()
    thread = await dac.thread()
    told = [(await dac.ask_json(thread, say("Kumquat one?"))).json()["turn_id"]]
    postgres.limit_connections(0)
    postgres.terminate()
    for n in range(5):
        r = await dac.ask_json(thread, say(f"Kumquat {n}?"))
        assert r.status == 200 and r.json()["stored"] == "spool", r.text
        told.append(r.json()["turn_id"])
    await asyncio.sleep(1)
    assert not postgres.sessions()
    listed = (await dac.get(f"/api/threads/{thread}/messages")).json()["messages"]
    assert [m["turn_id"] for m in listed[::2]] == told
    postgres.limit_connections(-1)
    await takes(dac)
    await check_told(postgres, told)


async def test_a_lock_is_not_waited_for_and_no_session_is_left_in_it(make_pg_dac, postgres, mock):
    dac = make_pg_dac()
    thread = await dac.thread()
    told = []
    with postgres.locked("turns"):
        for n in range(6):
            r = await dac.ask_json(thread, say(f"Kumquat {n}?"))
            assert r.status == 200 and r.json()["stored"] == "spool", r.text
            told.append(r.json()["turn_id"])
        await asyncio.sleep(2)
        waiting = [s for s in postgres.sessions("dac: recorder%") if s["wait_event_type"] == "Lock"]
        assert len(waiting) <= 1, waiting
    await takes(dac)
    await check_told(postgres, told)


async def test_the_servers_own_timeouts_are_no_loss(make_pg_dac, postgres, mock):
    postgres.sql("ALTER ROLE dac SET lock_timeout = '50ms'")
    dac = make_pg_dac(commit_timeout="10s")
    thread = await dac.thread()
    with postgres.locked("turns"):
        async with asyncio.timeout(5):
            r = await dac.ask_json(thread, say("Kumquat?"))
        assert r.status == 200 and r.json()["stored"] == "spool", r.text
    await takes(dac)
    await check_told(postgres, [r.json()["turn_id"]])


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN IF NEW.content LIKE '%poison%' THEN RAISE EXCEPTION 'not in this house'; END IF; RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION refuse();
"""


async def test_a_turn_that_the_database_refuses_is_set_aside_alone(make_pg_dac, postgres, mock):
    dac = make_pg_dac()
    thread = await dac.thread()
    postgres.sql(REFUSE)
    questions = [say(f"Kumquat {n} {'poison' if n % 5 == 0 else ''}?", tokens=4, barrier="go") for n in range(20)]

    async def go():
        await mock.wait(waiting=20, barrier="go")
        await mock.open("go")

    *streams, _ = await gather(*[dac.ask_stream(thread, q) for q in questions], go())
    for n, s in enumerate(streams):
        if n % 5 == 0:
            assert s.one("error").data["code"] == "not_stored" and not s.named("done")
        else:
            assert s.one("done").data["stored"] == "postgres"
    refused_ids = {s.one("meta").data["turn_id"] for s in streams[::5]}
    rows = postgres.sql("SELECT * FROM rejected")
    assert {str(r["id"]) for r in rows} == refused_ids
    assert all("P0001" in r["reason"] for r in rows)
    assert len(await turns_of(postgres)) == 16


async def test_a_turn_from_the_spool_that_the_database_refuses_is_set_aside_alone(make_pg_dac, postgres, mock):
    dac = make_pg_dac()
    dac.allow_log.append("a row of the spool was set aside")
    thread = await dac.thread()
    postgres.sql(REFUSE)
    await asyncio.to_thread(postgres.stop)
    told = []
    for n in range(10):
        r = await dac.ask_json(thread, say(f"Kumquat {n} {'poison' if n == 4 else ''}?"))
        assert r.json()["stored"] == "spool"
        told.append(r.json()["turn_id"])
    await asyncio.to_thread(postgres.start)
    await takes(dac)
    assert set(await turns_of(postgres)) == set(told) - {told[4]}
    (row,) = postgres.sql("SELECT * FROM rejected")
    assert str(row["id"]) == told[4] and "P0001" in row["reason"]
    assert "a row of the spool was set aside" in dac.log


# --- the file of the spool ---


def aside(dac):
    return [p.name for p in dac.folder.glob("spool.db.*aside*")]


def spoil(path, how):
    if how == "junk":
        path.write_bytes(os.urandom(40000))
    elif how == "torn":
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open(path, "r+b") as f:
            f.seek(100)
            f.write(b"\x5a" * 8192)
    else:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize("how", ["junk", "torn", "newer"])
async def test_a_spool_of_no_use_is_set_aside_at_the_start(make_pg_dac, postgres, mock, how):
    dac = make_pg_dac()
    dac.allow_log += ["of no use and was set aside", "the reason:"]
    dac.stop()
    path = dac.folder / "spool.db"
    spoil(path, how)
    before = path.read_bytes()
    await asyncio.to_thread(postgres.stop)
    dac.start()
    (name,) = [n for n in aside(dac) if not n.endswith(("-wal", "-shm"))]
    assert f'"{path}" is of no use and was set aside as "{dac.folder / name}"' in dac.log
    if how != "newer":
        assert (dac.folder / name).read_bytes() == before
    thread = await dac.thread()
    r = await dac.ask_json(thread, say("Kumquat?"))
    assert r.json()["stored"] == "spool"
    await asyncio.to_thread(postgres.start)
    await takes(dac)
    await check_told(postgres, [r.json()["turn_id"]])


@pytest.mark.parametrize("table", ["turns", "messages"])
async def test_a_spool_that_breaks_while_it_is_used_is_set_aside(make_pg_dac, postgres, mock, table):
    dac = make_pg_dac(done_timeout="8s")
    dac.allow_log += ["spool", "the reason:", "recorder"]
    thread = await dac.thread()
    told = [(await dac.ask_json(thread, say("Kumquat one?"))).json()["turn_id"]]
    await asyncio.to_thread(postgres.stop)
    assert (await dac.ask_json(thread, say("Kumquat two?"))).json()["stored"] == "spool"
    # A page that nobody reads at the opening; its recorder had it in memory.
    path = dac.folder / "spool.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with open(path, "r+b") as f:
        f.seek((page - 1) * size)
        f.write(b"\x5a" * size)
    os.kill(dac.recorder(), signal.SIGKILL)
    for n in range(5):
        r = await dac.ask_json(thread, say(f"Kumquat after {n}?"))
        if r.status == 200:
            told.append(r.json()["turn_id"])
    chat = await dac.chat(say("Kumquat chat?"))
    assert chat.status == 200, chat.text
    told.append(chat.get("x-dac-turn-id"))
    assert aside(dac) and "set aside as" in dac.log
    await asyncio.to_thread(postgres.start)
    await takes(dac)
    rows = await turns_of(postgres)
    assert set(told) <= set(rows)

    async def as_ever():  # a worker that has not got its connection again knows no thread
        r = await dac.ask_json(thread, say("Kumquat last?"))
        return r.status == 200 and r.json()["stored"] == "postgres"

    await until(as_ever, "the thread is there as ever")


@needs_mount
def test_a_spool_that_cannot_be_written_ends_the_start(make_dac, postgres, disk):
    disk.read_only()
    for path in (disk.path / "spool.db", disk.path.parent / "missing" / "spool.db"):
        dac = make_dac(
            {"store": {"postgres": postgres.conninfo(), "spool": path}},
            start=False,
        )
        dac.allow_log = ["spool.db"]
        dac.expect_exit = 2
        dac.start(wait=False)
        assert dac.process.wait(10) == 2
        assert str(path) in dac.log
        assert run_dacd("-t", "-c", dac.conf)[0] == 0
        print(dac.log)


# --- its recorder dies at the worst moments ---


@pytest.mark.crashpoints
@pytest.mark.skipif(not crash_points(), reason="needs a build with --enable-crashpoints")
@pytest.mark.parametrize("where", ["postgres", "spool", "drain"])
@pytest.mark.parametrize("point", ["recorder_before_commit", "recorder_after_commit", "recorder_before_stored"])
async def test_the_recorder_dies_around_a_commit(make_dac, postgres, mock, tmp_path, where, point):
    dac = make_dac(
        {"store": {"postgres": postgres.conninfo(), "commit_timeout": "500ms"}},
        # After a death rows of the spool go in small batches, of several commits each.
        env={"DAC_CRASH_AT": f"recorder/{point}:{40 if where == 'drain' else 12}"},
    )
    dac.allow_log += [*AWAY, "recorder", "SIGKILL", "signal"]
    threads = [await dac.thread() for _ in range(4)]
    if where != "postgres":
        await asyncio.to_thread(postgres.stop)
    told = {t: [] for t in threads}

    async def client(thread):
        for n in range(15):
            r = await dac.ask_json(thread, say(f"Kumquat {thread} {n}?", tokens=2))
            assert r.status == 200, r.text
            told[thread].append(r.json()["turn_id"])

    work = asyncio.gather(*[client(t) for t in threads])
    if where == "drain":
        await asyncio.sleep(1)
        await asyncio.to_thread(postgres.start)
    await work
    if where == "spool":
        await asyncio.to_thread(postgres.start)
    await takes(dac)
    assert re.search(r"recorder \(pid \d+\) was ended by signal 9", dac.log)
    rows = sorted((await turns_of(postgres)).values(), key=lambda r: (r["created_at"], r["id"]))
    for turns in told.values():
        assert [str(r["id"]) for r in rows if str(r["id"]) in turns] == turns
    assert len(rows) == 60
    await check_told(postgres, [t for turns in told.values() for t in turns])
