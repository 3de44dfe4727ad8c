"""Idempotency-Keys through deaths: of the fetcher, the recorder, everybody, and of each at each of its
steps; and through stalls and want of memory. Whoever insists gets the one turn of its key."""

import asyncio
import contextlib
import os
import signal

import pytest

from lib import wire
from lib.asks import gather, of_chat_stream, of_json, of_stream, until
from lib.keys import SHORT, TOOLS, a_key, keyed, recycled
from lib.provider import say
from test_dacctl_check import check, words
from test_deaths_under_load import all_free_again, crash_points
from test_fetcher_dies import fetcher
from test_stopped_at_crash_points import AFTER_A_DEATH, ELSEWHERE, comes_there

pytestmark = pytest.mark.store

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
