"""Turns go to PostgreSQL, once, whatever happens to the server or to the recorder."""

import asyncio
import os
import signal

import psycopg
import pytest

from lib import asks
from lib.provider import say
from lib.service import run_dacd, until

pytestmark = pytest.mark.own_store

AWAY = ["PostgreSQL cannot be used", "PostgreSQL is away", "did not take", "could not store"]


@pytest.fixture
def pg_dac(postgres, make_dac):
    """A dacd whose store is `postgres`."""
    return make_dac({"store": {"postgres": postgres.conninfo(), "done_timeout": "30s"}})


async def ask(dac, thread, i, tokens=3):
    """One turn; its id once it was said to be stored."""
    r = await dac.ask_json(thread, say(f"damson {i}", tokens=tokens))
    if r.status != 200:
        return None
    d = r.json()
    assert d["stored"] in ("postgres", "spool"), d
    return d["turn_id"]


async def check_rows(dac, postgres, told):
    """What clients were told is there, whole, and nothing twice, once the spool is empty."""

    async def empty():
        return await dac.counter("dac_spool_rows") == 0 and await dac.counter("dac_store_up") == 1

    await asks.until(empty, "the spool is empty", 20)
    ids = [str(r["id"]) for r in postgres.sql("SELECT id FROM turns")]
    assert len(ids) == len(set(ids))
    assert set(told) <= set(ids), set(told) - set(ids)
    assert postgres.value("SELECT count(*) FROM rejected") == 0
    messages = "(SELECT count(*) FROM messages m WHERE m.turn_id = t.id)"
    assert postgres.value(f"SELECT count(*) FROM turns t WHERE status = 'complete' AND {messages} <> 2") == 0


async def test_a_turn_is_stored_and_read_again(pg_dac, postgres):
    dac = pg_dac
    thread = await dac.thread(title="plums")
    stream = await dac.ask_stream(thread, say("damson", tokens=5))
    done = stream.one("done").data
    assert done["stored"] == "postgres"
    turn = stream.one("meta").data["turn_id"]
    row = postgres.sql("SELECT * FROM turn_audit")[0]
    assert str(row["id"]) == turn and row["org"] == "org_demo" and row["answer"] == stream.text
    dac.kill_all()  # memory is gone: what follows comes from the database
    dac.start()
    assert (await dac.get(f"/api/turns/{turn}")).json()["stored"] == "postgres"
    listed = (await dac.get(f"/api/threads/{thread}/messages")).json()["messages"]
    assert [m["role"] for m in listed] == ["user", "assistant"]
    assert await ask(dac, thread, 1)
    assert postgres.value("SELECT count(*) FROM messages") == 4


async def load(dac, told, stop, n=4):
    """Clients that ask in threads of their own until `stop` is set."""

    async def client(k):
        thread = await dac.thread()
        i = 0
        while not stop.is_set():
            turn = await ask(dac, thread, f"{k} {i}")
            if turn:
                told.append(turn)
            i += 1

    await asyncio.gather(*(client(k) for k in range(n)))


@pytest.mark.limit(120)
@pytest.mark.parametrize("trouble", ["terminate", "restart", "immediate", "kill the recorder"])
async def test_what_was_told_is_stored_once(pg_dac, postgres, trouble):
    dac = pg_dac
    dac.allow_log = [*AWAY, "recorder", "lost"]
    told, stop = [], asyncio.Event()
    running = asyncio.create_task(load(dac, told, stop))
    for _ in range(3):
        before = len(told)
        async with asyncio.timeout(30):
            while len(told) < before + 8:
                await asyncio.sleep(0.02)
        if trouble == "terminate":
            postgres.terminate()
        elif trouble == "restart":
            await asyncio.to_thread(postgres.restart)
        elif trouble == "immediate":
            await asyncio.to_thread(postgres.restart, "immediate")
        else:
            os.kill(dac.recorder(), signal.SIGKILL)
    stop.set()
    await running
    await check_rows(dac, postgres, told)


async def test_a_service_starts_while_the_server_is_away(postgres, make_dac):
    postgres.stop()
    dac = make_dac({"store": {"postgres": postgres.conninfo(), "done_timeout": "30s"}})
    dac.allow_log = AWAY
    r = await dac.chat(say("damson"))
    assert r.status == 200
    postgres.start()
    await check_rows(dac, postgres, [r.get("x-dac-turn-id")])


def test_a_newer_database_ends_the_start(postgres, make_dac):
    make_dac({"store": {"postgres": postgres.conninfo()}}).stop()
    postgres.sql("INSERT INTO schema_migrations (version, name, applied_at) VALUES (99, 'future', now())")
    dac = make_dac({"store": {"postgres": postgres.conninfo()}}, start=False)
    dac.start(wait=False)
    assert until(lambda: dac.process.poll() is not None and [dac.process.poll()], "its end") == [2]
    assert "99" in dac.log and "newer release" in dac.log
    dac.process = None


def test_a_string_that_libpq_does_not_take_is_told_without_it(make_dac):
    dac = make_dac({"store": {"postgres": "host=a passwort=hunter2"}}, start=False)
    dac.start(wait=False)
    until(lambda: dac.process.poll() is not None, "its end")
    dac.process = None
    code, out, err = run_dacd("-t", "-c", dac.conf)
    assert code != 0
    assert "postgres: is no connection string of libpq" in out + err
    assert "hunter2" not in out + err


async def test_it_works_behind_a_pooler_in_transaction_mode(pgbouncer, postgres, make_dac):
    dac = make_dac({"store": {"postgres": pgbouncer.conninfo(), "done_timeout": "30s"}})
    told, stop = [], asyncio.Event()
    running = asyncio.create_task(load(dac, told, stop))
    async with asyncio.timeout(40):
        while len(told) < 60:
            await asyncio.sleep(0.02)
    stop.set()
    await running
    await check_rows(dac, postgres, told)


async def test_a_pooler_s_sessions_are_left_as_they_were(pgbouncer, postgres, make_dac):
    """What a transaction needs it sets for itself alone: the session is another client's next."""
    postgres.set(synchronous_commit="off")
    dac = make_dac({"store": {"postgres": pgbouncer.conninfo()}})
    postgres.sql(
        "CREATE TABLE seen (sync text, timeout text); GRANT ALL ON seen TO PUBLIC;"
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES"
        " (current_setting('synchronous_commit'), current_setting('statement_timeout')); RETURN NULL; END $$;"
        "CREATE TRIGGER t AFTER INSERT ON turns EXECUTE FUNCTION f()"
    )
    for n in range(5):
        assert (await dac.chat(say(f"damson {n}"))).status == 200
    assert postgres.sql("SELECT count(*) AS n, sync, timeout FROM seen GROUP BY sync, timeout") == [
        {"n": 5, "sync": "on", "timeout": "1801ms"}
    ]
    wanted = [{"name": "enable_seqscan", "setting": "on"}, {"name": "statement_timeout", "setting": "0"},
              {"name": "synchronous_commit", "setting": "off"}]  # fmt: skip
    with psycopg.connect(pgbouncer.conninfo(), prepare_threshold=None, autocommit=True) as db:
        for _ in range(5):
            rows = db.execute(
                "SELECT name, setting FROM pg_settings WHERE name IN"
                " ('enable_seqscan', 'statement_timeout', 'synchronous_commit') ORDER BY name"
            ).fetchall()
            assert rows == [(w["name"], w["setting"]) for w in wanted]


async def test_a_session_of_its_own_is_told_once(postgres, make_dac):
    """Without a pooler a turn is one statement: nothing is set anew for each."""
    postgres.set(log_statement="all")
    dac = make_dac({"store": {"postgres": postgres.conninfo()}})
    for n in range(10):
        assert (await dac.chat(say(f"damson {n}"))).status == 200
    told = [line for line in postgres.log.splitlines() if "dac: recorder" in line and "set_config" in line]
    assert 1 <= len(told) <= 3, told
