"""PostgreSQL is there, but slow with what is large: batches become as small as it takes, and grow
again; nobody waits for long, and no turn stays behind."""

import asyncio
import contextlib
import os
import signal

import pytest

from lib.asks import gather, until
from lib.provider import say

pytestmark = [pytest.mark.own_store, pytest.mark.limit(110)]

# Takes as long as is configured for each MiB of text.
SLOW = """
CREATE TABLE pace (seconds_per_mib float8);
INSERT INTO pace VALUES (0);
GRANT SELECT ON pace TO PUBLIC;
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
    PERFORM pg_sleep(length(NEW.content) / 1048576.0 * (SELECT seconds_per_mib FROM pace));
    RETURN NEW;
END $$;
CREATE TRIGGER slow BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION slow();
"""


@pytest.fixture
def slow_dac(postgres, make_dac):
    dac = make_dac(
        {
            "store": {"postgres": postgres.conninfo(), "commit_timeout": "500ms"},
            "memory": {"shm_size": "160m"},
        }
    )
    dac.allow_log += ["PostgreSQL"]
    postgres.sql(SLOW)
    return dac


async def empty(dac, timeout):
    async def spool_is_empty():
        return await dac.counter("dac_spool_rows") == 0 and await dac.counter("dac_store_up") == 1

    await asyncio.sleep(0.6)
    await until(spool_is_empty, "the spool is empty", timeout)


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def end_at_once(dac, mock, thread, n, gate="go"):
    """n answers of a MiB, which the recorder finds all at the same time; where each is stored."""
    streams = [
        await dac.open_ask(thread, say(f"Kumquat {i}?", tokens=256, token_size=4096, barrier=f"{gate}@2"))
        for i in range(n)
    ]
    await gather(*[s.until("delta") for s in streams])
    with stopped(dac.recorder()):
        await mock.open(gate)
        await mock.wait(active=0)
        await asyncio.sleep(0.3)
    await gather(*[s.rest(timeout=30) for s in streams])
    return [s.one("done").data["stored"] for s in streams]


async def test_batches_become_as_small_as_it_takes(slow_dac, postgres, mock):
    dac = slow_dac
    thread = await dac.thread()
    postgres.sql("UPDATE pace SET seconds_per_mib = 0.1")
    rounds = []
    for n in range(4):
        rounds.append(await end_at_once(dac, mock, thread, 12, f"go{n}"))
        await empty(dac, 30)
        if set(rounds[-1]) == {"postgres"}:
            break
    assert set(rounds[0]) == {"spool"}  # 1.2 s for all of them
    assert set(rounds[-1]) == {"postgres"}, rounds
    assert postgres.value("SELECT count(*) FROM turns") == 12 * len(rounds)


async def test_the_queue_goes_in_smaller_batches(slow_dac, postgres, mock):
    dac = slow_dac
    thread = await dac.thread()
    await asyncio.to_thread(postgres.stop)
    assert set(await end_at_once(dac, mock, thread, 12)) == {"spool"}
    await asyncio.to_thread(postgres.start)
    postgres.sql("UPDATE pace SET seconds_per_mib = 1.2")
    await empty(dac, 60)
    assert postgres.value("SELECT count(*) FROM turns") == 12


async def test_a_single_row_gets_the_time_it_needs(slow_dac, postgres, mock):
    dac = slow_dac
    thread = await dac.thread()
    postgres.sql("UPDATE pace SET seconds_per_mib = 6")
    r = await dac.ask_json(thread, say("Kumquat?", tokens=512, token_size=4096))
    assert r.status == 200 and r.json()["stored"] == "spool", r.text
    turn = r.json()["turn_id"]
    await empty(dac, 60)
    assert postgres.value("SELECT id FROM turns") == turn
    assert f"PostgreSQL did not commit turn {turn} of the spool in 10 s" in dac.log
