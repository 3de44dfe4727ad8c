"""A timeout or a break never produces an answer that the provider did not give."""

import pytest

from lib.provider import say

FAST = {
    "provider perplexity": {
        "first_token_timeout": "300ms",
        "stall_timeout": "300ms",
        "retry_deadline": "0s",
    }
}


@pytest.mark.smoke
async def test_a_timeout_is_an_error_and_nothing_else(make_dac, mock):
    dac = make_dac(FAST)
    thread = await dac.thread()
    question = say(ttft="20s")
    r = await dac.ask_json(thread, question)
    assert r.status == 504
    assert "assistant_message" not in r.json() and "choices" not in r.json()
    s = await dac.ask_stream(thread, say("another kumquat", ttft="20s"))
    assert s.text == "" and s.named("error") and not s.named("done", "delta")
    r = await dac.chat(question)
    assert r.status == 504 and "choices" not in r.json()
    assert {t["status"] for t in await dac.stored_turns(3)} == {"failed"}
    assert [m["role"] for m in dac.messages()] == ["user"] * 3
    listed = (await dac.get(f"/api/threads/{thread}/messages")).json()["messages"]
    assert {m["role"] for m in listed} == {"user"}
    turn = (await dac.get(f"/api/turns/{dac.turns()[0]['id']}")).json()
    assert turn["status"] == "failed"
    assert not (turn.get("assistant_message") or {}).get("content")
    await mock.wait(active=0)


@pytest.mark.smoke
async def test_a_stalled_answer_is_what_came_and_not_more(make_dac, mock):
    dac = make_dac(FAST)
    thread = await dac.thread()
    question = say(tokens=10, token_size=16, stall=4)
    s = await dac.ask_stream(thread, question)
    assert s.text == (await mock.text(question))[:64]
    assert s.named("error") and not s.named("done")
    (turn,) = await dac.stored_turns(1)
    assert turn["status"] == "incomplete" and turn["finish_reason"] in (None, "")
    assert dac.messages(thread)[-1]["content"] == s.text
    got = (await dac.get(f"/api/turns/{turn['id']}")).json()
    assert got["status"] == "incomplete" and got["assistant_message"]["content"] == s.text


async def test_an_incomplete_answer_is_never_a_hit(make_dac, mock):
    dac = make_dac({**FAST, "flight": {"error_ttl": "0s"}})
    thread = await dac.thread()
    await mock.script("cut=2")
    question = say(tokens=5)
    assert (await dac.ask_json(thread, question)).status == 502
    r = await dac.ask_json(thread, question)
    assert r.status == 200 and r.json()["coalesce"] == "leader"
    assert r.json()["assistant_message"]["content"] == await mock.text(question)


async def test_what_failed_is_no_history(make_dac, mock):
    """The next question's context holds no user message without an answer."""
    dac = make_dac(FAST)
    thread = await dac.thread()
    await dac.ask_json(thread, say("a failed kumquat", status=500))
    await dac.ask_json(thread, say("a good kumquat", tokens=2))
    sent = (await mock.requests())[-1]["messages"]
    assert [m["role"] for m in sent] == ["user"]
