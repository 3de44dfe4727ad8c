"""Idempotency-Keys while PostgreSQL is away, slow, and back again: the provider is called once for a
key all the same."""

import asyncio
import time

import pytest

from lib.asks import gather, of_chat, of_json, of_stream, until
from lib.keys import BY_KEY, TOOLS, a_key, keyed, recycled
from lib.provider import say
from test_spool import AWAY, drained

pytestmark = pytest.mark.own_store


@pytest.fixture
def pg_dac(postgres, make_dac):
    dac = make_dac(
        {
            "store": {"postgres": postgres.conninfo(), "commit_timeout": "500ms"},
            "flight": {"result_ttl": "200ms"},
        }
    )
    dac.allow_log += AWAY
    return dac


def keys_in(postgres):
    return postgres.value("SELECT count(*) FROM idempotency")


async def gone(dac, how):
    if how == "recycled":
        await recycled(dac)
    else:
        await asyncio.to_thread(dac.stop)
        await asyncio.to_thread(dac.start)


@pytest.mark.parametrize("how", ["recycled", "restart"])
@pytest.mark.limit(90)
async def test_a_key_of_before_and_one_of_the_outage(pg_dac, postgres, mock, how):
    dac = pg_dac
    thread = await dac.thread()
    before, during, chat = keyed(a_key()), keyed(a_key()), keyed(a_key())
    one, two = say("Kumquat one?", tokens=3), say("Kumquat two?", tokens=3, tool_calls=True)
    first = of_json(await dac.ask_json(thread, one, headers=before, tools=TOOLS))
    assert first.stored == "postgres"
    await asyncio.to_thread(postgres.stop)
    second = (await dac.ask_json(thread, two, headers=during, tools=TOOLS)).json()
    assert second["stored"] == "spool"
    third = of_chat(await dac.chat(one, headers=chat, tools=TOOLS))
    await gone(dac, how)

    async def all_replayed():
        for _ in range(3):
            r = await dac.ask_json(thread, one, headers=before, tools=TOOLS)
            assert r.get("cache-status") == BY_KEY
            assert of_json(r).turn_id == first.turn_id and of_json(r).text == first.text
            r = await dac.ask_json(thread, two, headers=during, tools=TOOLS)
            assert r.json()["assistant_message"] == second["assistant_message"]
            s = of_stream(await dac.ask_stream(thread, two, headers=during, tools=TOOLS))
            assert s.turn_id == second["turn_id"] and s.role == "hit"
            assert of_chat(await dac.chat(one, headers=chat, tools=TOOLS)).turn_id == third.turn_id
        for head in (before, during, chat):
            assert (await dac.ask_json(thread, "Kumquat three?", headers=head)).status == 422
            assert (await dac.chat("Kumquat three?", headers=head)).status == 422

    await all_replayed()
    await asyncio.to_thread(postgres.start)
    await drained(dac)
    await all_replayed()
    assert keys_in(postgres) == 3
    await gone(dac, "restart")
    await all_replayed()
    assert await mock.calls() == 3
    assert postgres.value("SELECT count(*) FROM turns") == 3


async def test_an_answer_that_only_postgresql_has_is_not_asked_for_again(pg_dac, postgres, mock):
    """The spool remembers the key, but keeps no stateless answers."""
    dac = pg_dac
    key, question = keyed(a_key()), say(tokens=3)
    first = of_chat(await dac.chat(question, headers=key))
    await recycled(dac)
    await asyncio.to_thread(postgres.stop)
    for _ in range(2):
        r = await dac.chat(question, headers=key, timeout=10)
        assert r.status == 503 and r.json()["code"] == "store_unavailable"
        assert r.get("retry-after")
    assert (await dac.chat(question + "?", headers=key)).status == 422
    await asyncio.to_thread(postgres.start)

    async def told():
        r = await dac.chat(question, headers=key)
        return r if r.status == 200 else None

    r = await until(told, "PostgreSQL is back")
    assert of_chat(r).turn_id == first.turn_id and r.json() == first.raw.json()
    assert await mock.calls() == 1


async def test_a_new_key_waits_for_no_silent_database(pg_dac, postgres, mock):
    dac = pg_dac
    thread = await dac.thread()
    assert (await dac.ask_json(thread, say(tokens=2))).status == 200
    with postgres.frozen():
        for n in range(5):
            key, question = keyed(a_key()), say(f"Kumquat {n}?", tokens=2)
            began = time.monotonic()
            first = of_json(await dac.ask_json(thread, question, headers=key, tools=TOOLS))
            assert time.monotonic() - began < 2.5  # of which one commit_timeout, once
            again = of_json(await dac.ask_json(thread, question, headers=key, tools=TOOLS))
            assert again.turn_id == first.turn_id
    await drained(dac)
    assert await mock.calls() == 6
    assert keys_in(postgres) == 5


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.limit(120)
async def test_the_database_is_restarted_under_load(pg_dac, postgres, mock, mode):
    """Three at the same instant for each key, and one that comes back later."""
    dac = pg_dac
    threads = [await dac.thread() for _ in range(4)]
    over = asyncio.Event()
    asked = []

    async def insist(thread, question, key):
        while True:
            r = await dac.ask_json(thread, question, headers=key, tools=TOOLS)
            if r.status != 503:
                return of_json(r)
            await asyncio.sleep(0.1)

    async def client(n):
        i = 0
        while not over.is_set():
            i += 1
            key, thread = keyed(a_key()), threads[n % 4]
            question = say(f"Kumquat {n} {i}?", tokens=2)
            told = await gather(*[insist(thread, question, key) for _ in range(3)])
            assert len({t.turn_id for t in told}) == 1
            asked.append((thread, question, key, told[0].turn_id))

    clients = [asyncio.create_task(client(n)) for n in range(8)]
    for _ in range(2):
        await asyncio.sleep(1)
        await asyncio.to_thread(postgres.restart, mode)
    await asyncio.sleep(1)
    over.set()
    await gather(*clients)
    await drained(dac)
    await recycled(dac)
    assert len(asked) > 20
    for thread, question, key, turn in asked[:: 1 + len(asked) // 60]:
        assert (await insist(thread, question, key)).turn_id == turn
    assert await mock.calls() == len(asked)
    assert keys_in(postgres) == len(asked) == postgres.value("SELECT count(*) FROM turns")
