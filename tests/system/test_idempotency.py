"""Idempotency-Key: for a day every request of an org with the same key gets the same turn, wherever
that is by then, and the provider is called once."""

import asyncio
import contextlib
import sqlite3

import pytest

from lib.asks import gather, of_chat, of_chat_stream, of_json, of_stream, until
from lib.dacd import STORED
from lib.keys import BY_KEY, SHORT, TOOLS, a_key, keyed, leaves_memory, recycled
from lib.provider import say

pytestmark = pytest.mark.store

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
