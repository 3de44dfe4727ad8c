"""GET /api/turns/{id}: while the turn runs, after it, from memory and from the store."""

import pytest

from lib.asks import of_chat
from lib.dacd import STORED
from lib.provider import say

pytestmark = pytest.mark.store


@pytest.mark.smoke
async def test_running_then_complete_then_from_the_store(make_dac, mock):
    dac = make_dac({"flight": {"result_ttl": "1s"}})
    thread = await dac.thread()
    question = say(tokens=6, token_size=16, barrier="hold@3")
    s = await dac.open_ask(thread, question)
    turn = (await s.until("meta")).data["turn_id"]
    while len(s.text) < 48:
        await s.until("delta")
    running = (await dac.get(f"/api/turns/{turn}")).json()
    assert running["turn_id"] == turn and running["thread_id"] == thread
    assert running["status"] == "running"
    assert running["assistant_message"]["content"] == s.text
    await mock.open("hold")
    await s.rest()
    done = (await dac.get(f"/api/turns/{turn}")).json()
    text = await mock.text(question)
    assert done["status"] == "complete" and done["finish_reason"] == "stop"
    assert done["user_message"]["content"] == question
    assert done["assistant_message"]["content"] == text
    assert done["stored"] == STORED
    assert done["usage"]["completion_tokens"] == 6
    assert set(done["timing"]) == {"ttft_ms", "latency_ms", "queue_wait_ms"}
    dac.stop()
    dac.start()
    stored = (await dac.get(f"/api/turns/{turn}")).json()
    for key in ("turn_id", "thread_id", "status", "finish_reason", "usage", "stored"):
        assert stored[key] == done[key], key
    for key in ("id", "role", "content"):
        assert stored["assistant_message"][key] == done["assistant_message"][key]
        assert stored["user_message"][key] == done["user_message"][key]


@pytest.mark.smoke
async def test_the_answer_of_an_ask_has_the_documented_members(dac, mock):
    thread = await dac.thread()
    r = (await dac.ask_json(thread, say(tokens=5, citations=2))).json()
    assert set(r) >= {
        "turn_id", "thread_id", "status", "user_message", "assistant_message", "finish_reason",
        "usage", "timing", "coalesce", "stored",
    }  # fmt: skip
    assert r["thread_id"] == thread and r["coalesce"] == "leader" and r["stored"] == STORED
    assert set(r["user_message"]) >= {"id", "role", "content"}
    assert set(r["assistant_message"]) >= {"id", "role", "content", "citations"}
    assert len(r["assistant_message"]["citations"]) == 2
    assert r["usage"]["completion_tokens"] == 5
    assert r["usage"]["total_tokens"] == r["usage"]["prompt_tokens"] + 5
    assert 0 <= r["timing"]["ttft_ms"] <= r["timing"]["latency_ms"]
    (row,) = dac.audit()
    assert row["id"] == r["turn_id"] and row["answer"] == r["assistant_message"]["content"]
    assert row["completion_tokens"] == 5


async def test_another_orgs_turn_is_a_404(dac, mock):
    thread = await dac.thread()
    question = say(tokens=6, barrier="hold@3")
    s = await dac.open_ask(thread, question)
    turn = (await s.until("meta")).data["turn_id"]
    for _ in ("running", "done"):
        assert (await dac.get(f"/api/turns/{turn}")).status == 200
        assert (await dac.get(f"/api/turns/{turn}", org="org_other")).status == 404
        r = await dac.post(f"/api/turns/{turn}/cancel", org="org_other", body={})
        assert r.status == 404
        await mock.open("hold")
        await s.rest()
    assert s.one("done")
    for nowhere in ("018f0000-0000-7000-8000-000000000001", "x"):
        assert (await dac.get(f"/api/turns/{nowhere}")).status in (400, 404)


@pytest.mark.smoke
async def test_turns_of_stateless_chat_are_stored_under_the_headers_id(dac, mock):
    question = say(tokens=3)
    answer = of_chat(await dac.chat(question))
    assert answer.turn_id
    turn = (await dac.get(f"/api/turns/{answer.turn_id}")).json()
    assert turn["status"] == "complete" and turn["thread_id"] in (None, "")
    assert turn["assistant_message"]["content"] == answer.text
    s = await dac.chat_stream(say("another kumquat", tokens=3))
    turn = (await dac.get(f"/api/turns/{s.head.get('x-dac-turn-id')}")).json()
    assert turn["assistant_message"]["content"] == s.chat_text
    assert len(dac.turns()) == 2 and {t["thread_id"] for t in dac.turns()} == {None}
