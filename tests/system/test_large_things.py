"""An answer of 4 MiB and a thread of 10,000 messages, in every store and while PostgreSQL is away."""

import asyncio
import contextlib
import hashlib
import json
import re
import sqlite3
import statistics
import time
import uuid

import pytest

from lib import asks
from lib.provider import say

MIB = 1 << 20
pytestmark = pytest.mark.limit(110)


async def messages(dac, thread, limit=50, times=None):
    """All of a thread, page by page; what each page took is added to `times`."""
    after = ""
    while after is not None:
        began = time.monotonic()
        page = (await dac.get(f"/api/threads/{thread}/messages?limit={limit}{after}")).json()
        if times is not None:
            times.append(time.monotonic() - began)
        assert len(page["messages"]) <= limit
        for m in page["messages"]:
            yield m
        after = None if page["next"] is None else "&after=" + page["next"]


# --- a long answer ---


def long_answer(n, **more):
    """A question whose answer has 4 MiB; its characters have 1 to 4 bytes."""
    return say(f"Kumquat {n}?", tokens=1024, token_size=4096, utf8=True, **more)


async def read_back(dac, thread, turn, question, text, stored=None):
    """The turn in every way to read it."""
    got = (await dac.get(f"/api/turns/{turn}")).json()
    assert got["status"] == "complete" and got["assistant_message"]["content"] == text
    assert stored is None or got["stored"] == stored
    listed = [m async for m in messages(dac, thread)]
    assert [m["content"] for m in listed if m["turn_id"] == turn] == [question, text]
    s = await dac.stream(f"/api/turns/{turn}/stream", None, method="GET")
    await s.rest()
    assert s.text == text and s.one("done")


def digest_in(dac_or_server, turn, kind):
    column = "encode(convert_to(content, 'UTF8'), 'hex')" if kind == "postgres" else "hex(content)"
    (row,) = dac_or_server.sql(f"SELECT {column} AS v FROM messages WHERE turn_id = ? AND role = 'assistant'", turn)
    return hashlib.sha256(bytes.fromhex(row["v"])).hexdigest()


@pytest.mark.store
async def test_an_answer_of_4_mib(dac, mock):
    from lib.dacd import STORED

    thread = await dac.thread()
    for n, how in enumerate(("stream", "json")):
        question = long_answer(n)
        text = await mock.text(question)
        assert len(text.encode()) == 4 * MIB
        if how == "stream":
            s = await dac.ask_stream(thread, question)
            turn, got, stored = s.one("meta").data["turn_id"], s.text, s.one("done").data["stored"]
        else:
            d = (await dac.ask_json(thread, question)).json()
            turn, got, stored = d["turn_id"], d["assistant_message"]["content"], d["stored"]
        assert got == text and stored == STORED
        assert digest_in(dac, turn, STORED) == hashlib.sha256(text.encode()).hexdigest()
        await read_back(dac, thread, turn, question, text)
        dac.kill_all()  # memory is gone
        dac.start()
        await read_back(dac, thread, turn, question, text, STORED)
    # Neither fits into the context of the next question, which is asked all the same.
    r = await dac.ask_json(thread, say("Kumquat at last?"))
    assert r.status == 200
    assert [m["role"] for m in (await mock.requests())[-1]["messages"]] == ["user"]


@pytest.mark.own_store
async def test_an_answer_of_4_mib_while_postgresql_is_away(postgres, make_dac, mock):
    dac = make_dac({"store": {"postgres": postgres.conninfo(), "spool_max": "64m"}})
    dac.allow_log += ["PostgreSQL"]
    thread = await dac.thread()
    first = long_answer("before")
    assert (await dac.ask_json(thread, first)).json()["stored"] == "postgres"
    await asyncio.to_thread(postgres.stop)
    turns = {}
    for n in range(3):
        question = long_answer(n)
        s = await dac.ask_stream(thread, question)
        assert s.one("done").data["stored"] == "spool"
        turns[s.one("meta").data["turn_id"]] = (question, s.text)
        assert s.text == await mock.text(question)
    # One that streams while the server comes back.
    running = await dac.open_ask(thread, long_answer("across", barrier="go@512"))
    await running.until("delta")
    for turn, (question, text) in turns.items():
        await read_back(dac, thread, turn, question, text)
    dac.kill_all()
    dac.start()
    for turn, (question, text) in turns.items():
        await read_back(dac, thread, turn, question, text, "spool")
    await asyncio.to_thread(postgres.start)

    async def drained():
        return await dac.counter("dac_spool_rows") == 0 and await dac.counter("dac_store_up") == 1

    await asks.until(drained, "the spool is empty", 30)
    for turn, (question, text) in turns.items():
        assert digest_in(postgres, turn, "postgres") == hashlib.sha256(text.encode()).hexdigest()
        await read_back(dac, thread, turn, question, text, "postgres")


# --- a long thread ---

TURNS = 5000
ORG = "org_demo"

PUT_POSTGRES = """
INSERT INTO threads (id, org, title, created_at) VALUES ('{thread}', '{org}', 'long', now());
INSERT INTO threads (id, org, title, created_at)
  SELECT gen_random_uuid(), 'org_' || n % 7, 'x', now() - interval '1 year' + n * interval '1 minute'
    FROM generate_series(1, 1000) n;
WITH t AS (
  SELECT n, md5('turn ' || n)::uuid AS id, timestamptz '2025-01-01 UTC' + n * interval '1 second' AS at, org, thread
    FROM (SELECT n, '{org}' AS org, '{thread}'::uuid AS thread FROM generate_series(1, {turns}) n
          UNION ALL SELECT {turns} + row_number() OVER (), org, id FROM threads, generate_series(1, 4)
           WHERE id <> '{thread}') s),
turned AS (
  INSERT INTO turns (id, org, thread_id, provider, model, status, latency_ms, key_digest, created_at, finished_at)
  SELECT id, org, thread, 'p', 'm', 'complete', 1, sha256(n::text::bytea), at, at FROM t RETURNING 1)
INSERT INTO messages (id, turn_id, thread_id, role, content, created_at)
  SELECT md5(role || n)::uuid, t.id, thread, role, role || ' ' || n, at FROM t, (VALUES ('user'), ('assistant')) r(role);
"""


def put_postgres(server):
    """A thread that the service never saw; its id."""
    thread = str(uuid.uuid4())
    server.psql(PUT_POSTGRES.format(org=ORG, thread=thread, turns=TURNS))
    return thread


def put_sqlite(path):
    """The same in SQLite."""
    thread = str(uuid.uuid4())
    numbers = f"WITH RECURSIVE s(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM s WHERE n < {TURNS})"
    at = "datetime('2025-01-01', '+' || n || ' seconds') || '.000000'"

    def as_id(text):
        return str(uuid.UUID(hashlib.md5(text.encode()).hexdigest()))

    with contextlib.closing(sqlite3.connect(path, timeout=10)) as db, db:
        db.create_function("as_id", 1, as_id)
        db.execute("INSERT INTO threads (id, org, title, created_at) VALUES (?, ?, 'long', '2025-01-01 00:00:00.000000')",
                   (thread, ORG))  # fmt: skip
        db.execute(
            f"{numbers} INSERT INTO turns (id, org, thread_id, provider, model, status, latency_ms, key_digest,"
            f" created_at, finished_at) SELECT as_id('turn ' || n), ?, ?, 'p', 'm', 'complete', 1, zeroblob(32), {at}, {at}"
            " FROM s",
            (ORG, thread),
        )
        db.execute(
            f"{numbers} INSERT INTO messages (id, turn_id, thread_id, role, content, created_at)"
            f" SELECT as_id(r || n), as_id('turn ' || n), ?, r, r || ' ' || n, {at}"
            " FROM s, (SELECT 'user' AS r UNION ALL SELECT 'assistant')",
            (thread,),
        )
    return thread


EXPECTED = [(role, f"{role} {n}") for n in range(1, TURNS + 1) for role in ("user", "assistant")]


async def check_pages(dac, thread):
    """No gap, nothing twice, in order; and the last page takes no longer than the first."""
    times = []
    seen = [m async for m in messages(dac, thread, 200, times)]
    assert [(m["role"], m["content"]) for m in seen] == EXPECTED
    assert len({m["id"] for m in seen}) == len(seen)
    first, last = statistics.median(times[:15]), statistics.median(times[-15:])
    print(f"pages of 200: first {first * 1e3:.1f} ms, last {last * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")
    assert last < 3 * first + 0.02 and max(times) < 2, times
    odd = [m async for m in messages(dac, thread, 67)]
    assert odd == seen
    return seen


async def check_questions(dac, mock, thread):
    """The newest of the thread is the context, whatever lies before it."""
    times = []
    for n in range(8):
        began = time.monotonic()
        r = await dac.ask_json(thread, say(f"Kumquat {n}?", tokens=2))
        times.append(time.monotonic() - began)
        assert r.status == 200, r.text
        sent = (await mock.requests())[-1]["messages"]
        assert 20 <= len(sent) <= 41 and sent[-1]["content"] == f"Kumquat {n}? [mock tokens=2]"
        context = [m["content"] for m in sent[:-1]]
        older = [text for _, text in EXPECTED[-len(context) + 2 * n :]]
        assert context[: len(older)] == older
    print(f"a question: median {statistics.median(times) * 1e3:.1f} ms")
    assert statistics.median(times) < 0.3, times


@pytest.mark.sqlite
async def test_a_thread_of_10_000_messages(dac, mock):
    thread = await asyncio.to_thread(put_sqlite, dac.db_path)
    await check_pages(dac, thread)
    await check_questions(dac, mock, thread)


def plans_in(log):
    """The plans that a server with auto_explain has logged: [(statement, plan)]."""
    found = []
    for m in re.finditer(r"duration: [0-9.]+ ms  plan:\n((?:\t.*\n)+)", log):
        d = json.loads(m[1])
        found.append((d["Query Text"], d["Plan"]))
    return found


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.mark.own_store
@pytest.mark.parametrize("statistics", ["known", "none"])
async def test_a_thread_of_10_000_messages_in_postgresql(make_postgres, make_dac, mock, statistics):
    """Also before the server has any statistics of its tables no table is read as a whole."""
    server = make_postgres(settings={
        "session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": "0",
        "auto_explain.log_format": "json", "auto_explain.log_analyze": "on", "autovacuum": "off", "jit": "on",
    })  # fmt: skip
    dac = make_dac({"store": {"postgres": server.conninfo(), "commit_timeout": "10s"}})
    thread = await asyncio.to_thread(put_postgres, server)
    if statistics == "known":
        server.sql("ANALYZE")
    mark = len(server.log)
    seen = await check_pages(dac, thread)
    await check_questions(dac, mock, thread)
    assert (await dac.get(f"/api/turns/{seen[-1]['turn_id']}")).status == 200
    listed = (await dac.get("/api/threads/?limit=20")).json()
    assert listed["threads"][0]["thread_id"] == thread
    plans = plans_in(server.log[mark:])
    assert len(plans) > 200
    assert "JIT" not in server.log[mark:]
    for text, plan in plans:
        for node in nodes(plan):
            what = f"{node['Node Type']} on {node.get('Relation Name')} in {text[:120]}\n{json.dumps(plan)}"
            assert node["Node Type"] != "Seq Scan" or node["Relation Name"] == "schema_migrations", what
            visited = node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0)
            assert visited <= 1100, what


@pytest.mark.own_store
async def test_a_thread_of_10_000_messages_while_postgresql_is_away(postgres, make_dac, mock):
    """Its newest messages stay readable, and are the context."""
    dac = make_dac({"store": {"postgres": postgres.conninfo(), "commit_timeout": "500ms"}})
    dac.allow_log += ["PostgreSQL"]
    thread = await asyncio.to_thread(put_postgres, postgres)
    await check_questions(dac, mock, thread)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(postgres.stop)
    r = await dac.ask_json(thread, say("Kumquat away?", tokens=2))
    assert r.status == 200 and r.json()["stored"] == "spool", r.text
    sent = (await mock.requests())[-1]["messages"]
    assert len(sent) == 41 and [m["content"] for m in sent[:24]] == [text for _, text in EXPECTED[-24:]]
