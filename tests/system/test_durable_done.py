"""SIGKILL to everything right after a client saw `done`: the turn is there after the restart."""

import pytest

from lib.dacd import STORED
from lib.provider import say

pytestmark = pytest.mark.store


async def check_stored(dac, thread, turn, question, text):
    dac.kill_all()
    dac.start()
    got = (await dac.get(f"/api/turns/{turn}")).json()
    assert got["status"] == "complete", got
    assert got["assistant_message"]["content"] == text
    if thread:
        listed = (await dac.get(f"/api/threads/{thread}/messages")).json()["messages"]
        assert [(m["role"], m["content"]) for m in listed if m["turn_id"] == turn] == [
            ("user", question),
            ("assistant", text),
        ]


@pytest.mark.smoke
@pytest.mark.parametrize("how", ["stream", "json", "chat", "chat stream"])
async def test_kill_everything_after_done(dac, mock, how):
    thread = await dac.thread()
    for i in range(3):
        question = say(f"kumquat {how} {i}", tokens=5)
        if how == "stream":
            s = await dac.open_ask(thread, question)
            await s.until("done")
            turn, text = s.one("meta").data["turn_id"], s.text
        elif how == "json":
            d = (await dac.ask_json(thread, question)).json()
            turn, text = d["turn_id"], d["assistant_message"]["content"]
        elif how == "chat":
            r = await dac.chat(question)
            turn, text = r.get("x-dac-turn-id"), r.json()["choices"][0]["message"]["content"]
        else:
            s = await dac.open_chat(question)
            while (event := await s.next()) is not None and event.data != "[DONE]":
                pass
            turn, text = s.head.get("x-dac-turn-id"), s.chat_text
        assert text == await mock.text(question)
        await check_stored(dac, thread if "chat" not in how else None, turn, question, text)
    assert len(dac.turns()) == 3
    assert len(dac.messages()) == 6


async def test_a_segment_left_by_a_killed_master_is_replaced(dac, mock):
    from pathlib import Path

    thread = await dac.thread()
    s = await dac.open_ask(thread, say(tokens=5, barrier="never@2"))
    await s.until("delta")
    dac.kill_all()
    assert list(Path("/dev/shm").glob(f"*{dac.name}*")), "SIGKILL leaves it behind"
    dac.start()
    question = say("another kumquat", tokens=5)
    assert (await dac.ask_stream(thread, question)).text == await mock.text(question)
    await mock.wait(active=0)


async def test_the_recorder_dies_while_an_answer_runs(dac, mock):
    """Its death loses nothing: the next one stores what has ended."""
    import os

    thread = await dac.thread()
    dac.allow_log.append(r"recorder|SIGKILL|signal")
    question = say(tokens=10, barrier="hold@5")
    s = await dac.open_ask(thread, question)
    await s.until("delta")
    os.kill(dac.recorder(), 9)
    await mock.open("hold")
    await s.rest()
    assert s.text == await mock.text(question) and s.one("done").data["stored"] == STORED
    assert len(dac.turns()) == 1 and len(dac.messages()) == 2
