"""Idempotency-Key: for a day every request of an org with the same key gets the same turn, wherever
that is by then, and the provider is called once."""

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3

import pytest

from lib import wire
from lib.asks import gather, of_chat, of_chat_stream, of_json, of_stream, until
from lib.dacd import STORED
from lib.provider import say
from lib.service import dacctl
from test_dacctl_check import check, words
from test_deaths_under_load import all_free_again, crash_points
from test_fetcher_dies import fetcher
from test_stopped_at_crash_points import AFTER_A_DEATH, ELSEWHERE, comes_there

pytestmark = pytest.mark.store

TOOLS = [{"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}]
SHORT = {"flight": {"result_ttl": "1s"}}  # keys make it 5 s
BY_KEY = "dac; hit; detail=idempotency_key"
_number = itertools.count(1)


def a_key():
    return f"kumquat-key-{os.getpid()}-{next(_number)}"


def keyed(key, **more):
    return {"Idempotency-Key": key, **more}


async def recycled(dac):
    """Until nothing is left in memory: a key stays there for 5 s."""

    async def empty():
        return dacctl(dac, "flights", "--json")["flights"] == []

    await until(empty, "memory is empty", 20)


async def leaves_memory(dac, how):
    """What a turn may have gone through when its key comes again."""
    if how == "restart":
        dac.stop()
        dac.start()
    elif how == "killed":
        await asyncio.to_thread(dac.kill_all)
        dac.start()
    elif how == "recycled":
        await recycled(dac)


# --- what is refused ---

BAD = {
    "empty": "",
    "too long": "k" * 256,
    "a control character": "a\tb",
    "not ASCII": "schlüssel",
    "twice": "one\r\nIdempotency-Key: two",
    "the same twice": "one\r\nIdempotency-Key: one",
}


@pytest.mark.smoke
@pytest.mark.parametrize("what", BAD)
async def test_a_malformed_header_is_a_400_on_every_route(dac, mock, what):
    thread = await dac.thread()
    question = say(tokens=3)
    answers = [
        await dac.ask_json(thread, question, headers=keyed(BAD[what])),
        await dac.post(
            f"/api/threads/{thread}/messages/stream", dac.question(question), headers=keyed(BAD[what])
        ),
        await dac.chat(question, headers=keyed(BAD[what])),
        await dac.chat(question, headers=keyed(BAD[what]), stream=True),
    ]
    for r in answers:
        assert r.status == 400, r.text
        problem = r.json()
        assert problem["code"] == "bad_header" and problem["field"] == "Idempotency-Key"
        assert "1 to 255 printable ASCII characters" in problem["detail"]
        assert problem["error"]["param"] == "Idempotency-Key"
    assert await mock.calls() == 0


@pytest.mark.parametrize("key", ["x", "k" * 255, '"quoted; with = all, of it~!"', "two  blanks"])
async def test_every_printable_character_is_welcome(dac, mock, key):
    thread = await dac.thread()
    question = say(tokens=3)
    first = of_json(await dac.ask_json(thread, question, headers=keyed(key), tools=TOOLS))
    again = of_json(await dac.ask_json(thread, question, headers=keyed(key), tools=TOOLS))
    assert again.turn_id == first.turn_id
    assert await mock.calls() == 1


@pytest.mark.smoke
@pytest.mark.parametrize("how", ["running", "finished", "restart", "recycled"])
async def test_another_request_with_the_same_key_is_a_422(make_dac, mock, how):
    dac = make_dac(SHORT)
    thread, other = await dac.thread(), await dac.thread()
    question = say(tokens=6, barrier="hold@3")
    key = keyed(a_key())
    s = await dac.open_ask(thread, question, headers=key)
    await s.until("delta")
    if how != "running":
        await mock.open("hold")
        await s.rest()
    await leaves_memory(dac, how)
    calls = await mock.calls()
    another = [
        await dac.ask_json(thread, question + "!", headers=key),
        await dac.ask_json(other, question, headers=key),
        await dac.ask_json(thread, question, headers=key, temperature=1),
        await dac.ask_json(thread, question, headers=key, abandon_grace_ms=1000),
        await dac.chat(question, headers=key),
        await dac.chat(question, headers=key, stream=True),
    ]
    for r in another:
        assert r.status == 422, r.text
        problem = r.json()
        assert problem["code"] == "idempotency_key_reused"
        assert problem["field"] == problem["error"]["param"] == "Idempotency-Key"
        assert "Idempotency-Key" in problem["detail"]
    assert await mock.calls() == calls == 1
    await mock.open("hold")
    # The key is still the first request's.
    again = of_json(await dac.ask_json(thread, question, headers=key))
    assert again.text == await mock.text(question) and await mock.calls() == 1
    s.close()


async def test_the_order_of_members_and_the_route_make_no_other_request(dac, mock):
    thread = await dac.thread()
    question = say(tokens=3)
    key = keyed(a_key())
    body = dac.question(question, temperature=0.5, top_p=0.25)
    turned = dict(reversed(body.items()))
    path = f"/api/threads/{thread}/messages"
    first = of_json(await dac.post(path, body, headers=key))
    assert of_json(await dac.post(path, turned, headers=key)).turn_id == first.turn_id
    s = await dac.stream(path + "/stream", turned, key)
    assert of_stream(await s.rest()).turn_id == first.turn_id
    s = await dac.stream(path, body, {**key, "Accept": "text/event-stream"})
    assert of_stream(await s.rest()).turn_id == first.turn_id
    assert await mock.calls() == 1


async def test_keys_are_an_orgs_own(dac, mock):
    key = keyed(a_key())
    question = say(tokens=3)
    turns = set()
    for org in ("org_demo", "org_other"):
        a, b = [of_chat(await dac.chat(question, headers=key, org=org)) for _ in range(2)]
        assert a.turn_id == b.turn_id
        turns.add(a.turn_id)
        assert (await dac.chat(question + "?", headers=key, org=org)).status == 422
    assert len(turns) == 2 and await mock.calls() == 2


async def test_posts_that_make_no_turn_ignore_it(dac, mock):
    key = keyed(a_key())
    threads = [await dac.post("/api/threads/", {"title": "a"}, headers=key) for _ in range(2)]
    assert {r.status for r in threads} == {201}
    assert len({r.json()["thread_id"] for r in threads}) == 2
    thread = threads[0].json()["thread_id"]
    first = of_json(await dac.ask_json(thread, say(tokens=3), headers=key))
    for header in (key, keyed("")):
        r = await dac.post(f"/api/turns/{first.turn_id}/cancel", headers=header)
        assert r.status == 200
    assert dac.sql("SELECT count(*) AS n FROM idempotency")[0]["n"] == 1


# --- one turn ---


@pytest.mark.smoke
async def test_a_repeated_request_is_a_hit(dac, mock):
    question = say(tokens=5, citations=2)
    thread = await dac.thread()
    key = keyed(a_key())
    r = await dac.ask_json(thread, question, headers=key, tools=TOOLS)
    assert r.get("cache-status") == "dac; fwd=bypass"
    first = of_json(r)
    assert first.role == "leader"
    r = await dac.ask_json(thread, question, headers=key, tools=TOOLS)
    assert r.get("cache-status") == BY_KEY and r.get("x-dac-turn-id") == first.turn_id
    again = of_json(r)
    assert again.role == "hit" and again.text == first.text
    assert (await dac.performance())["coalesce"] == {"leaders": 1, "followers": 0, "hits": 1}
    assert await dac.counter("dac_hits_total") == 1
    assert await mock.calls() == 1
    (row,) = dac.sql("SELECT * FROM idempotency")
    assert row["org"] == "org_demo" and str(row["turn_id"]) == first.turn_id
    assert "kumquat" not in str(row).lower()


QUESTIONS = {
    "plain": {},
    "tools": {"tools": TOOLS},
    "temperature": {"temperature": 1.5},
}


@pytest.mark.smoke
@pytest.mark.parametrize("what", [*QUESTIONS, "no-store", "no-cache"])
async def test_a_crowd_at_the_same_instant_makes_one_call(make_dac, mock, what):
    dac = make_dac(SHORT)
    thread = await dac.thread()
    question = say(tokens=8, gap="5ms", ttft="50ms")
    more = QUESTIONS.get(what, {})
    head = keyed(a_key(), **({"Cache-Control": what} if what.startswith("no-") else {}))
    asks = []
    for _ in range(12):
        asks.append(dac.ask_json(thread, question, headers=head, **more))
        asks.append(dac.ask_stream(thread, question, headers=head, **more))
    told = [of_json(r) if hasattr(r, "json") else of_stream(r) for r in await gather(*asks)]
    assert len({t.turn_id for t in told}) == 1
    assert {t.text for t in told} == {await mock.text(question)}
    roles = [t.role for t in told]
    assert roles.count("leader") == 1
    assert await mock.calls() == 1
    (row,) = dac.turns()
    await recycled(dac)
    (row,) = dac.turns()
    assert row["followers"] + row["hits"] == 23


@pytest.mark.limit(120)
async def test_many_keys_raced_for_by_two_each(dac, mock):
    """Two at the same instant, again and again: nobody finds the moment at which both lead."""
    thread = await dac.thread()

    async def race(n):
        key = keyed(a_key())
        question = say(f"Kumquat {n}?", tokens=1 + n % 3)
        both = await gather(
            *[dac.ask_json(thread, question, headers=key, tools=TOOLS, timeout=30) for _ in range(3)]
        )
        assert len({of_json(r).turn_id for r in both}) == 1

    for start in range(0, 300, 30):
        await gather(*[race(n) for n in range(start, start + 30)])
    assert await mock.calls() == 300
    assert len(dac.turns()) == 300
    assert dac.sql("SELECT count(*) AS n FROM idempotency")[0]["n"] == 300


async def test_two_keys_may_share_a_question(dac, mock):
    thread = await dac.thread()
    question = say(tokens=5, barrier="hold@2")
    keys = [keyed(a_key()) for _ in range(3)]
    streams = [await dac.open_ask(thread, question, headers=k) for k in keys[:2]]
    for s in streams:
        await s.until("delta")
    await mock.open("hold")
    turns = {of_stream(await s.rest()).turn_id for s in streams}
    late = of_json(await dac.ask_json(thread, question, headers=keys[2]))
    assert late.role == "hit" and {late.turn_id} == turns
    assert late.raw.get("cache-status").startswith("dac; hit; ttl=")

    async def all_stored():
        return dac.sql("SELECT count(*) AS n FROM idempotency")[0]["n"] == 3

    await until(all_stored, "all keys are stored")
    dac.stop()
    dac.start()
    for k in keys:
        again = of_json(await dac.ask_json(thread, question, headers=k))
        assert {again.turn_id} == turns and again.role == "hit"
    assert await mock.calls() == 1


@pytest.mark.sqlite
@pytest.mark.parametrize("kind", ["json", "stream"])
async def test_a_hit_is_told_when_its_key_is_stored(dac, mock, kind):
    """The database is locked when a second key finds the answer, and everything is killed as soon
    as that is told."""
    thread = await dac.thread()
    question = say(tokens=3)
    first = of_json(await dac.ask_json(thread, question, headers=keyed(a_key())))
    key = keyed(a_key())
    asks = [dac.ask_json if kind == "json" else dac.ask_stream] * 2
    with contextlib.closing(sqlite3.connect(dac.db_path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        told = [asyncio.create_task(ask(thread, question, headers=key)) for ask in asks]
        done, _ = await asyncio.wait(told, timeout=1)
        assert not done
        db.execute("ROLLBACK")
    for r in await gather(*told):
        assert (of_json if kind == "json" else of_stream)(r).turn_id == first.turn_id
    await asyncio.to_thread(dac.kill_all)
    dac.start()
    assert of_json(await dac.ask_json(thread, question, headers=key)).turn_id == first.turn_id
    assert await mock.calls() == 1


async def test_more_keys_than_one_batch_takes(make_dac, mock):
    """All of them bound to one turn before it ends, and all of them stored."""
    dac = make_dac({"memory": {"max_flights": "256", "shm_size": "32m"}})
    thread = await dac.thread()
    question = say(tokens=3, barrier="hold@1")
    keys = [keyed(a_key()) for _ in range(600)]
    asks = [asyncio.create_task(dac.ask_json(thread, question, headers=k)) for k in keys]
    await mock.wait(waiting=1, barrier="hold")

    async def all_joined():
        return await dac.counter("dac_followers_total") == len(keys) - 1

    await until(all_joined, "all joined", 30)
    await mock.open("hold")
    turns = {of_json(r).turn_id for r in await gather(*asks)}
    assert len(turns) == 1
    dac.stop()
    assert dac.sql("SELECT count(*) AS n FROM idempotency")[0]["n"] == len(keys)
    dac.start()
    for k in keys[::97]:
        assert {of_json(await dac.ask_json(thread, question, headers=k)).turn_id} == turns
    assert await mock.calls() == 1


async def test_the_key_outlives_its_clients(dac, mock):
    """A client that left comes to what became of its question: here it was cancelled."""
    thread = await dac.thread()
    question = say(tokens=10, token_size=16, barrier="hold@4")
    key = keyed(a_key())
    s = await dac.open_ask(thread, question, headers=key, tools=TOOLS)
    while len(s.text) < 64:
        await s.until("delta")
    s.close()
    (row,) = await dac.stored_turns(1)
    assert row["status"] == "cancelled"
    for how in ("memory", "restart"):
        await leaves_memory(dac, how)
        r = await dac.ask_json(thread, question, headers=key, tools=TOOLS)
        assert r.status == 200 and r.json()["status"] == "cancelled"
        assert r.json()["assistant_message"]["content"] == (await mock.text(question))[:64]
        s = await dac.ask_stream(thread, question, headers=key, tools=TOOLS)
        assert s.complete and s.one("done").data["finish_reason"] == "cancelled"
        assert s.one("meta").data["turn_id"] == str(row["id"])
        assert s.one("meta").data["role"] == "hit"
    assert await mock.calls() == 1


async def test_a_client_that_comes_back_within_its_grace_goes_on(dac, mock):
    thread = await dac.thread()
    question = say(tokens=10, token_size=16, barrier="hold@4")
    key = keyed(a_key())
    ask = {"headers": key, "tools": TOOLS, "abandon_grace_ms": 5000}
    s = await dac.open_ask(thread, question, **ask)
    await s.until("delta")
    s.reset()
    s = await dac.open_ask(thread, question, **ask)
    assert (await s.until("meta")).data["role"] == "follower"
    assert s.head.get("cache-status") == "dac; fwd=miss; collapsed"
    await mock.open("hold")
    assert of_stream(await s.rest()).text == await mock.text(question)
    assert await mock.calls() == 1


# --- from the store ---


@pytest.mark.smoke
@pytest.mark.parametrize("how", ["memory", "recycled", "restart", "killed"])
@pytest.mark.limit(90)
async def test_every_dialect_is_replayed(make_dac, mock, how):
    dac = make_dac(SHORT)
    thread = await dac.thread()
    question = say(tokens=7, utf8=True, citations=2)
    text = await mock.text(question)
    native, chat, chat_streamed = keyed(a_key()), keyed(a_key()), keyed(a_key())
    usage = {"stream_options": {"include_usage": True}}
    whole = of_json(await dac.ask_json(thread, question, headers=native, tools=TOOLS))
    plain = of_chat(await dac.chat(question, headers=chat, temperature=1))
    piece = of_chat_stream(await dac.chat_stream(question, headers=chat_streamed, tools=TOOLS, **usage))
    assert await mock.calls() == 3
    await leaves_memory(dac, how)

    again = of_json(await dac.ask_json(thread, question, headers=native, tools=TOOLS))
    assert again.turn_id == whole.turn_id and again.text == text and again.role == "hit"
    was, now = whole.raw.json(), again.raw.json()
    for member in ("thread_id", "user_message", "assistant_message", "finish_reason", "usage", "stored"):
        assert now[member] == was[member], member
    assert set(now) == set(was)
    assert now["timing"]["latency_ms"] == pytest.approx(was["timing"]["latency_ms"], abs=0.01)
    heads = [again.raw.head]

    s = await dac.ask_stream(thread, question, headers=native, tools=TOOLS)
    told = of_stream(s)
    assert told.turn_id == whole.turn_id and told.text == text and told.role == "hit"
    assert s.names()[:2] == ["ping", "meta"] and s.names()[-1] == "done"
    assert sorted(s.names()[2:-1]) == ["citations", "delta", "first_token"]
    done = s.one("done").data
    assert done["usage"] == was["usage"] and done["stored"] == STORED
    assert s.one("citations").data["citations"] == was["assistant_message"]["citations"]
    heads.append(s.head)

    r = await dac.chat(question, headers=chat, temperature=1)
    assert of_chat(r).turn_id == plain.turn_id
    assert r.json() == plain.raw.json()
    heads.append(r.head)

    s = await dac.chat_stream(question, headers=chat_streamed, tools=TOOLS, **usage)
    assert of_chat_stream(s).turn_id == piece.turn_id and s.chat_text == text
    for member in ("id", "created", "model"):
        assert {c[member] for c in s.chunks} == {piece.raw.chunks[0][member]}
    assert s.chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert s.chunks[-1]["usage"] == piece.raw.chunks[-1]["usage"]
    assert [c["citations"] for c in s.chunks if "citations" in c] == [was["assistant_message"]["citations"]]
    heads.append(s.head)

    assert {h.get("cache-status") for h in heads} == {BY_KEY}
    assert all(h.get("x-dac-turn-id") for h in heads)
    assert await mock.calls() == 3


@pytest.mark.smoke
@pytest.mark.parametrize("text", [{}, {"tokens": 4}], ids=["without a text", "with one"])
@pytest.mark.parametrize("how", ["memory", "restart"])
async def test_tool_calls_are_replayed(make_dac, mock, text, how):
    """Also those of an answer that has no text."""
    dac = make_dac(SHORT)
    thread = await dac.thread()
    question = say(tool_calls=True, **text)
    native, chat = keyed(a_key()), keyed(a_key())
    first = (await dac.ask_json(thread, question, headers=native, tools=TOOLS)).json()
    calls = first["assistant_message"]["tool_calls"]
    assert len(calls) == 1 and all(c["id"] and c["function"]["name"] for c in calls)
    plain = (await dac.chat(question, headers=chat, tools=TOOLS)).json()
    assert plain["choices"][0]["finish_reason"] == "tool_calls"
    await leaves_memory(dac, how)
    again = await dac.ask_json(thread, question, headers=native, tools=TOOLS)
    assert again.json()["assistant_message"] == first["assistant_message"]
    r = await dac.get(f"/api/turns/{first['turn_id']}")
    assert r.json()["assistant_message"] == first["assistant_message"]
    assert (await dac.chat(question, headers=chat, tools=TOOLS)).json() == plain

    def put_together(pieces):
        whole = {}
        for piece in pieces:
            call = whole.setdefault(piece["index"], {"function": {}})
            call.update({k: v for k, v in piece.items() if k not in ("index", "function")})
            for k, v in piece["function"].items():
                call["function"][k] = call["function"].get(k, "") + v
        return [whole[i] for i in sorted(whole)]

    s = await dac.ask_stream(thread, question, headers=native, tools=TOOLS)
    assert put_together(p for e in s.named("tool_calls") for p in e.data["tool_calls"]) == calls
    assert s.one("first_token") and s.one("done").data["finish_reason"] == "tool_calls"
    assert s.text == first["assistant_message"]["content"]
    assert bool(s.text) == bool(text)
    assert await mock.calls() == 2
    rows = dac.sql("SELECT tool_calls FROM turn_audit")
    assert len(rows) == 2 and all("call" in str(r["tool_calls"]) for r in rows)


async def test_it_stays_one_turn_after_many_restarts_and_a_long_answer(dac, mock):
    thread = await dac.thread()
    question = say(tokens=300, token_size=4096)
    key = keyed(a_key())
    first = of_json(await dac.ask_json(thread, question, headers=key))
    for how in ("restart", "killed", "restart"):
        await leaves_memory(dac, how)
        assert of_json(await dac.ask_json(thread, question, headers=key)).text == first.text
        s = of_stream(await dac.ask_stream(thread, question, headers=key))
        assert s.text == first.text and s.turn_id == first.turn_id
    assert await mock.calls() == 1


async def test_after_a_day_the_key_is_new(dac, mock):
    key = keyed(a_key())
    question = say(tokens=3)
    first = of_chat(await dac.chat(question, headers=key, temperature=1))
    dac.stop()
    age(dac, hours=23.9)
    dac.start()
    assert of_chat(await dac.chat(question, headers=key, temperature=1)).turn_id == first.turn_id
    dac.stop()
    age(dac, hours=0.2)
    dac.start()
    r = await dac.chat(question + "?", headers=key, temperature=1)
    assert of_chat(r).turn_id != first.turn_id and r.get("cache-status") == "dac; fwd=miss"
    assert (await dac.chat(question, headers=key, temperature=1)).status == 422
    dac.stop()
    (row,) = dac.sql("SELECT * FROM idempotency")
    assert str(row["turn_id"]) == of_chat(r).turn_id
    dac.start()
    again = await dac.chat(question + "?", headers=key, temperature=1)
    assert of_chat(again).turn_id == of_chat(r).turn_id
    assert await mock.calls() == 2


def age(dac, hours):
    """All keys were used so much earlier, in the spool's memory, too."""
    if dac.database is not None:
        dac.sql("UPDATE idempotency SET created_at = created_at - ? * interval '1 hour'", hours)
        path, update = dac.folder / "spool.db", "UPDATE spool_aliases SET created_us = created_us - ?"
        shift = int(hours * 3600e6)
    else:
        path, shift = dac.db_path, f"-{hours * 3600:.0f} seconds"
        update = (
            "UPDATE idempotency SET created_at ="
            " strftime('%Y-%m-%d %H:%M:%f', created_at, ?) || substr(created_at, 24)"
        )
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        assert db.execute(update, (shift,)).rowcount > 0


# --- failures ---

FAILING = {"flight": {"error_ttl": "1s"}, "provider perplexity": {"retry_deadline": "0s"}}


@pytest.mark.smoke
@pytest.mark.parametrize("more", QUESTIONS.values(), ids=QUESTIONS)
async def test_a_failure_gives_the_key_free(make_dac, mock, more):
    dac = make_dac(FAILING)
    thread = await dac.thread()
    question = say(tokens=3)
    key = keyed(a_key())
    await mock.script("status=500")
    first = await dac.ask_json(thread, question, headers=key, **more)
    assert first.status == 502
    shared = await gather(*[dac.ask_json(thread, question, headers=key, **more) for _ in range(8)])
    assert {r.status for r in shared} == {502}
    assert {r.json()["turn_id"] for r in shared} == {first.json()["turn_id"]}
    assert (await dac.ask_json(thread, question + "?", headers=key, **more)).status == 422
    assert await mock.calls() == 1
    await asyncio.sleep(1.2)
    again = await gather(*[dac.ask_json(thread, question, headers=key, **more) for _ in range(12)])
    assert len({of_json(r).turn_id for r in again}) == 1
    assert await mock.calls() == 2
    assert dac.sql("SELECT count(*) AS n FROM idempotency")[0]["n"] == 1
    dac.stop()
    dac.start()
    after = of_json(await dac.ask_json(thread, question, headers=key, **more))
    assert after.turn_id == of_json(again[0]).turn_id
    assert await mock.calls() == 2


async def test_a_failed_key_may_be_used_for_something_else(make_dac, mock):
    dac = make_dac(FAILING)
    thread = await dac.thread()
    key = keyed(a_key())
    await mock.script("status=500")
    assert (await dac.ask_json(thread, say(tokens=3), headers=key)).status == 502
    await asyncio.sleep(1.2)
    other = say("Another kumquat?", tokens=3)
    assert of_json(await dac.ask_json(thread, other, headers=key)).role == "leader"
    assert (await dac.ask_json(thread, say(tokens=3), headers=key)).status == 422


async def test_a_failure_is_not_in_the_way_after_a_restart(make_dac, mock):
    dac = make_dac(FAILING)
    key = keyed(a_key())
    question = say(tokens=3)
    await mock.script("status=500")
    assert (await dac.chat(question, headers=key)).status == 502
    dac.stop()
    assert dac.sql("SELECT count(*) AS n FROM idempotency")[0]["n"] == 0
    dac.start()
    of_chat(await dac.chat(question, headers=key))
    assert await mock.calls() == 2


async def test_what_broke_off_is_replayed_as_it_is(make_dac, mock):
    dac = make_dac(FAILING)
    thread = await dac.thread()
    question = say(tokens=8, token_size=16, cut=3)
    key, chat = keyed(a_key()), keyed(a_key())
    first = await dac.ask_json(thread, question, headers=key)
    assert first.status == 502, first.text
    assert (await dac.chat(question, headers=chat)).status == 502
    partial = (await mock.text(question))[:48]
    calls = await mock.calls()
    for how in ("memory", "later", "restart"):
        if how == "later":
            await asyncio.sleep(1.5)
        await leaves_memory(dac, how)
        r = await dac.ask_json(thread, question, headers=key)
        assert r.status == 502, r.text
        assert r.json()["code"] == first.json()["code"]
        assert r.json()["turn_id"] == first.json()["turn_id"]
        turn = r.json()["turn"]
        assert turn["status"] == "incomplete" and turn["assistant_message"]["content"] == partial
        s = await dac.ask_stream(thread, question, headers=key)
        assert s.text == partial and not s.named("done")
        assert s.one("error").data["code"] == first.json()["code"]
        assert s.one("meta").data["role"] == "hit"
        assert (await dac.chat(question, headers=chat)).status == 502
    assert await mock.calls() == calls == 2


# --- deaths ---


@pytest.mark.smoke
@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize("kind", ["thread", "chat"])
async def test_the_fetcher_is_killed_and_the_retry_takes_over(dac, mock, kind, at):
    """The only client was the dead worker's own: it comes back with the same key."""
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=10, token_size=16, barrier=f"hold@{at}")
    key = keyed(a_key())

    def open_it():
        if kind == "thread":
            return dac.open_ask(thread, question, headers=key, tools=TOOLS)
        return dac.open_chat(question, headers=key, tools=TOOLS)

    async def orphaned():
        return await dac.counter("dac_flights_orphaned_total") == 1

    s = asyncio.create_task(open_it())
    await mock.wait(waiting=1, barrier="hold")
    if at:
        s = await s
        while len(s.text if kind == "thread" else s.chat_text) < 16 * at:
            await s.next()
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    if at:
        await s.rest()
    else:
        await asyncio.gather(s, return_exceptions=True)
    # Before the death is noticed a retry would hear the old answer's bytes, and could not be told
    # to forget them in a dialect that has no reset.
    await until(orphaned, "its death was noticed")
    again = asyncio.create_task(open_it())
    await mock.wait(calls=2)
    await mock.open("hold")
    s = await (await again).rest()
    told = of_stream(s) if kind == "thread" else of_chat_stream(s)
    assert told.text == await mock.text(question)
    assert s.head.get("cache-status") == "dac; fwd=miss; collapsed"
    rows = await dac.stored_turns(1)
    assert [str(r["id"]) for r in rows] == [told.turn_id]
    s = await (await open_it()).rest()
    assert (of_stream(s) if kind == "thread" else of_chat_stream(s)).turn_id == told.turn_id
    assert await mock.calls() == 2  # the dead one's, and its successor's


async def test_everything_is_killed_in_the_middle(dac, mock):
    """Nothing was stored: the key is as new. What was stored stays."""
    dac.allow_log.append(".")
    thread = await dac.thread()
    question = say(tokens=6, barrier="hold@3")
    key, stored = keyed(a_key()), keyed(a_key())
    kept = of_json(await dac.ask_json(thread, say("Kumquat one?", tokens=3), headers=stored))
    s = await dac.open_ask(thread, question, headers=key)
    await s.until("delta")
    await asyncio.to_thread(dac.kill_all)
    dac.start()
    await mock.open("hold")
    told = of_json(await dac.ask_json(thread, question, headers=key))
    again = of_json(await dac.ask_json(thread, question, headers=key))
    assert again.turn_id == told.turn_id and await mock.calls() == 3
    assert of_json(
        await dac.ask_json(thread, say("Kumquat one?", tokens=3), headers=stored)
    ).turn_id == kept.turn_id
    assert await mock.calls() == 3
    s.close()


async def test_the_recorder_is_killed_again_and_again(dac, mock):
    dac.allow_log.append(r"recorder|signal")
    thread = await dac.thread()
    keys = {}
    for n in range(40):
        question = say(f"Kumquat {n}?", tokens=2)
        keys[question] = keyed(a_key())
        ask = asyncio.create_task(dac.ask_json(thread, question, headers=keys[question], tools=TOOLS))
        if n % 8 == 4:
            os.kill(dac.recorder(), signal.SIGKILL)
            await asyncio.sleep(0.3)
        keys[question]["turn"] = of_json(await ask).turn_id
    for _ in range(2):
        for question, head in keys.items():
            head = dict(head)
            turn = head.pop("turn")
            assert of_json(await dac.ask_json(thread, question, headers=head, tools=TOOLS)).turn_id == turn
        dac.stop()
        assert dac.sql("SELECT count(*) AS n FROM idempotency")[0]["n"] == 40
        dac.start()
    assert await mock.calls() == 40 and len(dac.turns()) == 40


async def test_memory_runs_short(make_dac, mock):
    """Finished turns leave early; their keys are found in the store, and nobody leads twice."""
    dac = make_dac({"memory": {"max_flights": "64", "shm_size": "16m"}})
    thread = await dac.thread()

    async def both(n):
        key = keyed(a_key())
        question = say(f"Kumquat {n}?", tokens=2)
        turns = set()
        for _ in range(3):
            while (r := await dac.ask_json(thread, question, headers=key, tools=TOOLS)).status == 503:
                await asyncio.sleep(0.05)
            turns.add(of_json(r).turn_id)
        assert len(turns) == 1

    for start in range(0, 400, 80):
        await gather(*[both(n) for n in range(start, start + 80)])
    assert await mock.calls() == 400
    assert len(dac.turns()) == 400


# --- at each step ---

# A thread to create comes to some of them, too.
A_FLIGHT_S = ("claim_after", "claim_filled", "index_bucket", "index_linked")
A_KEY_S = [p for p in crash_points() if p.startswith(("alias_", "key_")) and p not in ELSEWHERE.split()]
A_WORKER_S = [
    p for p in crash_points() if comes_there(p, "worker") and (p in A_KEY_S or p in (*A_FLIGHT_S, "question_before"))
]  # fmt: skip
A_FAILURE_S = [p for p in crash_points() if p in ("alias_dropped", "alias_replaced")]
THE_RECORDER_S = [
    p for p in crash_points()
    if p.startswith(("recorder_", "alias_marked")) and p not in AFTER_A_DEATH["recorder"].split()
]  # fmt: skip


async def insist(ask):
    """Asks until there is an answer, as a client does that has a key."""
    for _ in range(200):
        try:
            r = await ask()
        except (ConnectionError, asyncio.IncompleteReadError):
            r = None
        if r is not None and r.complete and r.status != 503:
            return of_json(r)
        await asyncio.sleep(0.02)
    raise AssertionError("no answer")


def dying_at(make_dac, folder, point, role):
    folder.chmod(0o777)
    at = f"{role}/{point}:{3 if point in A_FLIGHT_S else 1}"
    env = {"DAC_CRASH_AT": at, "DAC_CRASH_ONCE": str(folder / "hit")}
    dac = make_dac({"flight": {"result_ttl": "200ms", "error_ttl": "200ms"}}, env=env, workers=3)
    dac.allow_log.append(r"worker|recorder|signal")
    return dac


@pytest.mark.crashpoints
@pytest.mark.parametrize("point", A_WORKER_S)
async def test_a_worker_dies_at_each_step(make_dac, mock, tmp_path, point):
    """Two ask at the same instant, and come back until they have an answer: it is one turn. There is
    one call, and one more if the call of the dead one may have begun."""
    dac = dying_at(make_dac, tmp_path, point, "worker")
    thread = await dac.thread()
    hit = tmp_path / f"hit.{point}"
    for n in range(30):
        question = say(f"Kumquat {n}?", tokens=3, gap="5ms")
        more = {"headers": keyed(a_key()), "tools": TOOLS}
        before = await mock.calls()
        told = await gather(*[insist(lambda: dac.ask_json(thread, question, **more)) for _ in range(2)])
        assert len({t.turn_id for t in told}) == 1
        assert told[0].text == await mock.text(question)
        # What finds an end meanwhile.
        later = await insist(lambda: dac.ask_json(thread, question, headers=keyed(a_key())))
        again = await insist(lambda: dac.ask_json(thread, question, **more))
        assert again.turn_id == told[0].turn_id
        calls = await mock.calls() - before - (later.turn_id != told[0].turn_id)
        assert calls == 1 or (calls == 2 and hit.exists())
        if hit.exists():
            break
    assert hit.exists(), "no worker came there"
    await all_sound(dac, mock)


@pytest.mark.crashpoints
@pytest.mark.parametrize("point", A_FAILURE_S)
async def test_a_worker_dies_when_a_key_is_given_free(make_dac, mock, tmp_path, point):
    dac = dying_at(make_dac, tmp_path, point, "worker")
    thread = await dac.thread()
    question = say(tokens=3, ttft="30ms")
    one, two = keyed(a_key()), keyed(a_key())
    await mock.script({"status": 500, "times": 2})  # the retry, too
    first = await dac.ask_json(thread, question, headers=one)
    assert first.status == 502
    with contextlib.suppress(ConnectionError):  # shares the failure, so its key is dropped
        assert (await dac.ask_json(thread, question, headers=two)).status == 502
    await asyncio.sleep(0.3)
    told = await gather(*[insist(lambda: dac.ask_json(thread, question, headers=one)) for _ in range(3)])
    assert (tmp_path / f"hit.{point}").exists()
    assert len({t.turn_id for t in told}) == 1 and told[0].turn_id != first.json()["turn_id"]
    other = await insist(lambda: dac.ask_json(thread, say("Another kumquat?", tokens=2), headers=two))
    assert other.turn_id != told[0].turn_id
    assert await mock.calls() == 4
    await all_sound(dac, mock)


async def all_sound(dac, mock):
    await all_free_again(dac, mock)
    code, report = await asyncio.to_thread(check, dac)
    assert code == 0, words(report)


@pytest.mark.crashpoints
@pytest.mark.parametrize("point", THE_RECORDER_S)
async def test_the_recorder_dies_at_each_step(make_dac, mock, tmp_path, point):
    dac = dying_at(make_dac, tmp_path, point, "recorder")
    thread = await dac.thread()
    question = say(tokens=3)
    keys = [keyed(a_key()) for _ in range(3)]
    asks = [insist(lambda k=k: dac.ask_json(thread, question, headers=k)) for k in keys]
    turns = {t.turn_id for t in await gather(*asks)}
    late = keyed(a_key())  # of a turn that is stored, or about to be
    turns.add((await insist(lambda: dac.ask_json(thread, question, headers=late))).turn_id)
    assert (tmp_path / f"hit.{point}").exists()
    await all_sound(dac, mock)
    assert dac.sql("SELECT count(*) AS n FROM idempotency")[0]["n"] == 4
    for k in [*keys, late]:
        assert (await insist(lambda k=k: dac.ask_json(thread, question, headers=k))).turn_id in turns
    assert await mock.calls() == len(turns) <= 2


@pytest.mark.limit(150)
async def test_no_alias_is_free(make_dac, mock):
    """More keys than memory has names for, all of one running turn: the last ones are refused, those
    without a key are not. When that turn has ended and left, there is room again."""
    dac = make_dac({"memory": {"max_flights": "64", "shm_size": "24m"}, **SHORT})
    thread = await dac.thread()
    question = say(tokens=2, barrier="hold@1")
    keys = [keyed(a_key()) for _ in range(4096)]
    asks = []
    for start in range(0, len(keys), 256):
        for k in keys[start : start + 256]:
            asks.append(asyncio.create_task(dac.ask_json(thread, question, headers=k, timeout=120)))

        async def joined(n=start + 256 - 1):
            return await dac.counter("dac_followers_total") == n

        await until(joined, "they joined", 30)
    for _ in range(3):
        r = await dac.ask_json(thread, question, headers=keyed(a_key()), timeout=10)
        assert r.status == 503 and r.json()["code"] == "no_room" and r.get("retry-after")
    # Whoever has one already, or none, is as welcome as ever.
    asks.append(asyncio.create_task(dac.ask_json(thread, question, timeout=120)))
    asks.append(asyncio.create_task(dac.ask_json(thread, question, headers=keys[7], timeout=120)))
    await asyncio.sleep(0.3)
    await mock.open("hold")
    turns = {of_json(r).turn_id for r in await gather(*asks)}
    assert len(turns) == 1
    late = await insist(lambda: dac.ask_json(thread, say("Another kumquat?", tokens=2), headers=keyed(a_key())))
    assert late.role == "leader"
    await recycled(dac)
    assert dac.sql("SELECT count(*) AS n FROM idempotency")[0]["n"] == len(keys) + 1
    for k in keys[::500]:
        assert {of_json(await dac.ask_json(thread, question, headers=k)).turn_id} == turns
    assert await mock.calls() == 2


@pytest.mark.own_store
async def test_clients_leave_while_their_key_is_looked_for(postgres, make_dac, mock):
    """And the service stops meanwhile."""
    dac = make_dac({"store": {"postgres": postgres.conninfo()}})
    dac.allow_log += ["PostgreSQL", "lost"]
    thread = await dac.thread()
    assert (await dac.ask_json(thread, say(tokens=2))).status == 200
    question = say("Kumquat two?", tokens=2)
    with postgres.frozen():
        for _ in range(3):
            conns = [await dac.connect() for _ in range(8)]
            for c in conns:
                body = dac.question(question)
                path = f"/api/threads/{thread}/messages"
                await c.send(wire.encode_request("POST", path, {"x-org-id": "org_demo", **keyed(a_key())}, body))
            await asyncio.sleep(0.05)
            for c in conns:
                c.reset()
        waiting = [asyncio.create_task(dac.ask_json(thread, question, headers=keyed(a_key()))) for _ in range(8)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(dac.stop)
    for r in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(r, ConnectionError) or r.status in (200, 503)


@pytest.mark.crashpoints
@pytest.mark.skipif(not crash_points(), reason="needs a build with --enable-crashpoints")
async def test_a_key_in_the_hands_of_one_who_stands_still(make_dac, mock, tmp_path):
    """The others are told to come again, soon, and whoever has nothing to do with that key is served."""
    tmp_path.chmod(0o777)
    env = {"DAC_CRASH_AT": "worker/key_claimed=STOP", "DAC_CRASH_ONCE": str(tmp_path / "hit")}
    dac = make_dac({"server": {"watchdog_timeout": "3s"}, **SHORT}, env=env, workers=3)
    dac.allow_log.append("has not beaten")
    thread = await dac.thread()
    key, question = keyed(a_key()), say(tokens=3)
    ask = lambda: dac.ask_json(thread, question, headers=key, tools=TOOLS)  # noqa: E731
    stuck = asyncio.create_task(insist(ask))
    while not (tmp_path / "hit.key_claimed").exists():
        await asyncio.sleep(0.01)
    began = asyncio.get_running_loop().time()
    answers = await asyncio.gather(*[ask() for _ in range(6)], return_exceptions=True)
    told = [r for r in answers if not isinstance(r, BaseException)]
    assert told and {r.status for r in told} == {503}
    assert {r.json()["code"] for r in told} == {"busy"} and all(r.get("retry-after") for r in told)
    assert asyncio.get_running_loop().time() - began < 2
    other = await insist(lambda: dac.ask_json(thread, say("Kumquat two?", tokens=2), headers=keyed(a_key())))
    assert other.role == "leader"
    turns = {(await stuck).turn_id, (await insist(ask)).turn_id}
    assert len(turns) == 1 and await mock.calls() == 2
    await all_sound(dac, mock)
