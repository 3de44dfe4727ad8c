"""When the process that fetches dies, another one takes over: clients that can begin anew get the
whole new answer, the others a clear error, and a client that lost its own worker goes on."""

import asyncio
import os
import signal

import pytest

from lib import procs
from lib.asks import connected, gather
from lib.dacd import STORED
from lib.provider import say
from lib.wire import Stream
from test_fetcher_dies import fetcher

SIZE = 16  # bytes of a token


async def listeners(dac, thread, question, n, at):
    """n streams that have got the first `at` tokens, over several workers."""
    streams = [await dac.open_ask(thread, question) for _ in range(n)]
    for s in streams:
        await s.until("meta")
        while len(s.text) < SIZE * at:
            await s.until("delta")
    return streams


def ids_never_go_back(s):
    ids = [tuple(map(int, e.id.split("-"))) for e in s.events if e.id]
    assert ids == sorted(ids), s.events


@pytest.fixture
def allowed(dac):
    dac.allow_log.append(r"worker|signal")
    return dac


@pytest.mark.smoke
async def test_nothing_streamed_yet_is_only_a_delay(allowed, mock):
    dac = allowed
    thread = await dac.thread()
    question = say(tokens=10, token_size=SIZE, barrier="hold@0")
    streams = await listeners(dac, thread, question, 24, 0)
    waiting = [asyncio.create_task(dac.ask_json(thread, question)) for _ in range(8)]
    await connected(dac, 32)
    await mock.wait(waiting=1)
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    await mock.wait(calls=2, waiting=1)
    late = await listeners(dac, thread, question, 12, 0)
    await mock.open("hold")
    ended = await gather(*[s.rest() for s in streams + late])
    whole = await asyncio.gather(*waiting, return_exceptions=True)
    text = await mock.text(question)
    kept = [s for s in ended if s.complete]
    assert len(kept) > 12
    for s in kept:
        assert s.text == text and s.one("done") and not s.named("reset", "error")
        ids_never_go_back(s)
    for r in whole:
        if not isinstance(r, BaseException):
            assert r.status == 200 and r.json()["assistant_message"]["content"] == text
    assert await mock.calls() == 2 and await dac.counter("dac_takeovers_total") == 1
    (turn,) = await dac.stored_turns(1)
    assert (turn["status"], turn["generation"]) == ("complete", 1)


@pytest.mark.smoke
async def test_in_the_middle_native_clients_begin_anew(allowed, mock):
    dac = allowed
    thread = await dac.thread()
    question = say(tokens=10, token_size=SIZE, barrier="hold@4")
    streams = await listeners(dac, thread, question, 24, 4)
    waiting = [asyncio.create_task(dac.ask_json(thread, question)) for _ in range(8)]
    await connected(dac, 32)
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    await mock.wait(calls=2, waiting=1)
    late = await dac.open_ask(thread, question)
    await mock.open("hold")
    ended = await gather(*[s.rest() for s in streams])
    whole = await asyncio.gather(*waiting, return_exceptions=True)
    text = await mock.text(question)
    kept = [s for s in ended if s.complete]
    assert kept
    for s in kept:
        reset = s.one("reset")
        assert (reset.data["reason"], reset.data["generation"]) == ("fetcher_died", 1)
        assert s.text == text
        ids_never_go_back(s)
        behind = s.events[s.events.index(reset) :]
        assert all(e.id.startswith("1-") for e in behind if e.id)
        assert s.one("done").id == f"1-{len(text)}"
    for r in whole:
        if not isinstance(r, BaseException):
            assert r.status == 200 and r.json()["assistant_message"]["content"] == text
    await late.rest()
    assert late.text == text and not late.named("reset")  # it never saw the old generation
    assert await mock.calls() == 2
    assert [m["content"] for m in dac.messages(thread) if m["role"] == "assistant"] == [text]


async def test_ids_that_began_without_content_are_of_the_present_answer(make_dac, mock):
    """The second takeover needs no RESET, since there is no content behind that of the first; a
    stream that has only its id, of generation 2, goes on without one."""
    dac = make_dac(workers=6)
    dac.allow_log.append(r"worker|signal")
    answer = {"tokens": 10, "token_size": SIZE}
    held = {**answer, "barrier": "start"}
    await mock.script({**answer, "barrier": "hold@4"}, held, held)
    thread = await dac.thread()
    streams = await listeners(dac, thread, "Kumquat?", 60, 4)
    for calls in (2, 3):
        os.kill(fetcher(dac, mock), signal.SIGKILL)
        await mock.wait(calls=calls, waiting=1)
    late = await dac.open_ask(thread, "Kumquat?")
    meta = await late.until("meta")
    assert meta.id == "2-0"
    headers = {"x-org-id": "org_demo", "Last-Event-ID": meta.id}
    path = f"/api/turns/{meta.data['turn_id']}/stream"
    resumed = await Stream.open("127.0.0.1", dac.port, path, headers, method="GET")
    await resumed.until("meta")
    await mock.open("start")
    for s in await gather(late.rest(), resumed.rest()):
        assert s.one("done") and len(s.text) == 10 * SIZE and not s.named("reset")
        ids_never_go_back(s)
    for s in await gather(*[s.rest() for s in streams]):
        assert not s.complete or (s.text == late.text and len(s.named("reset")) == 1)


async def chat_listeners(dac, question, n, at):
    """n OpenAI streams that have got the first `at` tokens."""
    streams = [await dac.open_chat(question) for _ in range(n)]
    for s in streams:
        while len(s.chat_text) < SIZE * at:
            assert await s.next() is not None
    return streams


async def test_a_dialect_without_a_reset_gets_an_error(allowed, mock):
    dac = allowed
    streams = await chat_listeners(dac, say(tokens=10, token_size=SIZE, barrier="hold@4"), 24, 4)
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    ended = await gather(*[s.rest() for s in streams])
    # Its readers say that they cannot begin anew, so nobody waits for one who could.
    assert "ended as incomplete: none of its readers can begin anew" in dac.log
    kept = [s for s in ended if s.complete]
    assert kept and not any(s.chat_done for s in ended)
    for s in kept:
        assert "error" in s.events[-1].data
    assert await mock.calls() == 1  # nobody could begin anew
    (turn,) = await dac.stored_turns(1)
    assert turn["status"] == "incomplete"


async def test_the_setting_fail_takes_nothing_over(make_dac, mock):
    dac = make_dac({"flight": {"on_fetcher_death": "fail"}})
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=10, token_size=SIZE, barrier="hold@4")
    streams = await listeners(dac, thread, question, 24, 4)
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    ended = await gather(*[s.rest() for s in streams])
    assert any(s.complete for s in ended)
    assert all(s.one("error").data["code"] == "fetcher_died" for s in ended if s.complete)
    assert await mock.calls() == 1


async def test_resuming_what_the_recorder_ended_needs_no_reset(make_dac, mock):
    dac = make_dac({"flight": {"on_fetcher_death": "fail", "error_ttl": "5s"}})
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=10, token_size=SIZE, barrier="hold@4")
    streams = await listeners(dac, thread, question, 12, 4)
    turn = streams[0].one("meta").data["turn_id"]
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    await gather(*[s.rest() for s in streams])
    await dac.stored_turns(1)
    headers = {"x-org-id": "org_demo", "Last-Event-ID": f"0-{SIZE * 3}"}
    s = await Stream.open("127.0.0.1", dac.port, f"/api/turns/{turn}/stream", headers, method="GET")
    await s.rest()
    assert not s.named("reset") and s.text == (await mock.text(question))[SIZE * 3 : SIZE * 4]
    assert s.one("error").data["code"] == "fetcher_died"


async def test_after_takeover_max_it_is_a_clear_error(make_dac, mock):
    dac = make_dac({"flight": {"takeover_max": "2"}}, workers=6)
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=10, token_size=SIZE, barrier="hold@2")
    streams = await listeners(dac, thread, question, 60, 2)
    for n in range(1, 4):
        await mock.wait(calls=n, waiting=1)
        os.kill(fetcher(dac, mock), signal.SIGKILL)
    ended = await gather(*[s.rest() for s in streams])
    kept = [s for s in ended if s.complete]
    assert kept
    for s in kept:
        assert [e.data["generation"] for e in s.named("reset")] == [1, 2]
        assert s.one("error").data["code"] == "fetcher_died"
    assert await mock.calls() == 3


@pytest.mark.smoke
async def test_a_client_whose_worker_died_goes_on_from_its_byte(allowed, mock):
    dac = allowed
    thread = await dac.thread()
    question = say(tokens=10, token_size=SIZE, barrier="hold@4")
    streams = await listeners(dac, thread, question, 24, 4)
    turn = streams[0].one("meta").data["turn_id"]
    busy = fetcher(dac, mock)
    victim = next(p for p in dac.workers() if p != busy and procs.connections(p, dac.port))
    os.kill(victim, signal.SIGKILL)

    async def rest_of(s):
        """Reads to the end; a stream that broke off is resumed where it was."""
        await asyncio.sleep(0)
        await s.rest()
        if s.complete:
            return s.text, False
        last = [e.id for e in s.events if e.id][-1]
        more = await Stream.open(
            "127.0.0.1",
            dac.port,
            f"/api/turns/{turn}/stream",
            {"x-org-id": "org_demo", "Last-Event-ID": last},
            method="GET",
        )
        await more.rest()
        return s.text + more.text, True

    ends = [asyncio.create_task(rest_of(s)) for s in streams]
    await connected(dac, 24)
    await mock.open("hold")
    results = await gather(*ends)
    text = await mock.text(question)
    assert {t for t, _ in results} == {text}
    assert any(resumed for _, resumed in results) and not all(r for _, r in results)
    assert await mock.calls() == 1


async def test_the_last_reader_dies_with_the_fetcher_and_a_newcomer_goes_on(make_dac, mock):
    dac = make_dac({"flight": {"reconnect_grace": "5s"}})
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=10, token_size=SIZE, barrier="hold@4")
    (only,) = await listeners(dac, thread, question, 1, 4)
    turn = only.one("meta").data["turn_id"]
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    await only.rest()
    await asyncio.sleep(1)
    again = await dac.open_ask(thread, question)
    assert (await again.until("meta")).data["turn_id"] == turn
    await mock.open("hold")
    await again.rest()
    assert again.text == await mock.text(question)
    assert len(await dac.stored_turns(1)) == 1


async def test_the_last_reader_dies_with_the_fetcher_and_nobody_comes(make_dac, mock):
    dac = make_dac({"flight": {"reconnect_grace": "1s"}})
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=10, token_size=SIZE, barrier="hold@4")
    (only,) = await listeners(dac, thread, question, 1, 4)
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    await only.rest()
    (turn,) = await dac.stored_turns(1, timeout=5)
    assert turn["status"] == "incomplete"
    assert await mock.calls() == 1


async def test_a_client_whose_worker_died_did_not_leave(make_dac, mock):
    """The fetcher lives, its only reader's worker dies: the call goes on for reconnect_grace."""
    dac = make_dac({"flight": {"reconnect_grace": "2s"}}, workers=4)
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=10, token_size=SIZE, barrier="hold@4")
    streams = await listeners(dac, thread, question, 24, 4)
    busy = fetcher(dac, mock)
    turn = streams[0].one("meta").data["turn_id"]
    for victim in [p for p in dac.workers() if p != busy]:
        os.kill(victim, signal.SIGKILL)
    await asyncio.sleep(0.3)
    for s in streams:
        s.close()
    await asyncio.sleep(1)
    assert (await mock.stats())["client_gone"] == 0
    back = await Stream.open(
        "127.0.0.1",
        dac.port,
        f"/api/turns/{turn}/stream?from={SIZE * 4}",
        {"x-org-id": "org_demo"},
        method="GET",
    )
    await mock.open("hold")
    await back.rest()
    assert back.text == (await mock.text(question))[SIZE * 4 :]


@pytest.mark.smoke
async def test_positions_to_resume_from(dac, mock):
    thread = await dac.thread()
    question = say(tokens=4, token_size=SIZE)
    first = await dac.ask_stream(thread, question)
    turn, text = first.one("meta").data["turn_id"], first.text

    async def resume(position, by="header"):
        headers = {"x-org-id": "org_demo"}
        path = f"/api/turns/{turn}/stream"
        if by == "header":
            headers["Last-Event-ID"] = position
        else:
            path += f"?from={position}"
        return await Stream.open("127.0.0.1", dac.port, path, headers, method="GET")

    for position, rest in [("0-0", text), ("0-16", text[16:]), ("16", text[16:]), (f"0-{len(text)}", "")]:
        for by in ["header", "query"]:
            s = await (await resume(position, by)).rest()
            assert (s.status, s.text) == (200, rest), (position, by)
            assert s.one("meta").id == f"0-{len(text) - len(rest)}"  # it can be cut off again here
            assert s.one("done").id == f"0-{len(text)}"
    s = await (await resume("7-16")).rest()
    assert s.one("reset").data["generation"] == 0 and s.text == text
    assert s.one("meta").id == "7-16" and s.one("reset").id == "0-0"  # until then it has the old text
    for position, status in [("x", 400), ("0-", 400), ("-1", 400), ("0-9999", 416), ("9999", 416), ("99999-1", 400)]:
        s = await resume(position)
        await s.body()
        assert s.status == status, position


async def test_resuming_a_turn_that_left_memory(make_dac, mock):
    dac = make_dac({"flight": {"result_ttl": "0s"}})
    thread = await dac.thread()
    first = await dac.ask_stream(thread, say(tokens=4, token_size=SIZE))
    turn, text = first.one("meta").data["turn_id"], first.text
    await asyncio.sleep(1)
    for position, rest in [("0-16", text[16:]), ("0-0", text)]:
        s = await Stream.open(
            "127.0.0.1",
            dac.port,
            f"/api/turns/{turn}/stream",
            {"x-org-id": "org_demo", "Last-Event-ID": position},
            method="GET",
        )
        await s.rest()
        assert s.text == rest and s.one("done").data["stored"] == STORED
        assert s.one("meta").id == position  # it can be cut off again here
    assert await mock.calls() == 1
