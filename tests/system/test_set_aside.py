"""A turn over which the recorder dies twice is set aside in `rejected` with its reason: its clients get
an error, and all the others are stored."""

import asyncio

import pytest

from lib.provider import say
from lib.service import until
from test_deaths_under_load import crash_points

pytestmark = [
    pytest.mark.crashpoints,
    pytest.mark.skipif(not crash_points(), reason="needs a build with --enable-crashpoints"),
]
POISON = "poison"
DIED = [r"recorder", r"is not stored"]


def deadly(make_dac, *points, store=None):
    """The recorder dies at these points whenever it comes there with a turn of model POISON."""
    at = ",".join(f"recorder/{p}" for p in points)
    dac = make_dac({"store": store} if store else None, env={"DAC_CRASH_AT": at, "DAC_CRASH_TEXT": POISON})
    dac.allow_log += DIED
    return dac


async def ask_all(dac, mock, threads):
    """One poisoned turn among good ones that end at the same time."""
    ends = [
        asyncio.create_task(
            dac.ask_stream(t, say(f"Kumquat {n}?", tokens=2, barrier="go"), model=POISON if n == 3 else "m-1")
        )
        for n, t in enumerate(threads)
    ]
    await mock.wait(waiting=len(threads), barrier="go")
    await mock.open("go")
    streams = await asyncio.gather(*ends)
    return streams[3], streams[:3] + streams[4:]


def check(bad, good, where):
    assert bad.one("error").data["code"] == "not_stored" and not bad.named("done")
    assert {s.one("done").data["stored"] for s in good} == {where}


async def test_it_alone_is_set_aside_with_its_content(make_dac, mock):
    dac = deadly(make_dac, "recorder_row_made")
    bad, good = await ask_all(dac, mock, [await dac.thread() for _ in range(8)])
    check(bad, good, "sqlite")
    (row,) = dac.sql("SELECT *, data ->> 'id' AS turn, data ->> 'answer' AS answer FROM rejected")
    assert (row["kind"], row["org"], row["answer"]) == ("turn", "org_demo", bad.text)
    assert row["id"] == row["turn"] == bad.one("meta").data["turn_id"]
    assert "twice" in row["reason"]
    assert len(dac.turns()) == 7


async def test_without_its_content_if_that_kills(make_dac, mock):
    dac = deadly(make_dac, "recorder_flight_read")
    bad, good = await ask_all(dac, mock, [await dac.thread() for _ in range(8)])
    check(bad, good, "sqlite")
    (row,) = dac.sql("SELECT * FROM rejected")
    assert (row["id"], row["kind"]) == (bad.one("meta").data["turn_id"], "turn")
    assert (row["org"], row["data"]) == (None, None)
    assert len(dac.turns()) == 7


@pytest.mark.parametrize("away", [False, True])
async def test_in_postgresql_at_once_or_when_it_is_back(make_dac, mock, postgres, away):
    dac = deadly(make_dac, "recorder_row_made", store={"postgres": postgres.conninfo()})
    threads = [await dac.thread() for _ in range(8)]
    if away:
        dac.allow_log += ["PostgreSQL"]
        postgres.stop()
    bad, good = await ask_all(dac, mock, threads)
    check(bad, good, "spool" if away else "postgres")
    if away:
        postgres.start()
        until(lambda: postgres.value("SELECT count(*) FROM turns") == 7, "the spool to be drained")
        until(lambda: postgres.value("SELECT count(*) FROM rejected") == 1, "what was set aside")
    (row,) = postgres.sql("SELECT * FROM rejected")
    assert (str(row["id"]), row["kind"]) == (bad.one("meta").data["turn_id"], "turn")
    assert row["data"]["answer"] == bad.text
    assert postgres.value("SELECT count(*) FROM turns") == 7


async def test_a_turn_that_was_committed_is_no_error(make_dac, mock):
    """The recorder dies behind the commit, twice: the turn is in the store, and its client hears so."""
    dac = deadly(make_dac, "recorder_row_committed")
    stream = await dac.ask_stream(await dac.thread(), say("Kumquat?", tokens=2), model=POISON)
    assert stream.one("done").data["stored"] == "sqlite"
    assert dac.log.count("was in hand when a recorder died") == 2
    assert len(dac.turns()) == 1
    assert dac.sql("SELECT * FROM rejected") == []
