"""Finished answers that nobody reads make room for newcomers, who are refused only when there
is none, and then told when to come again."""

import asyncio

import pytest

from lib.provider import say

SMALL = {"memory": {"shm_size": "4380k", "max_flights": "64"}, "flight": {"flight_max_bytes": "2m"}}


@pytest.mark.smoke
async def test_large_questions_push_finished_answers_out(make_dac):
    dac = make_dac(SMALL, workers=2)
    thread = await dac.thread()
    for i in range(12):  # until about three quarters of the memory hold finished answers
        r = await dac.ask_json(thread, say(f"kumquat {i}", tokens=200, token_size=1000))
        assert r.status == 200, r.text
    for i in range(6):
        r = await dac.ask_json(thread, say(f"kumquat {i} " + "x" * 900_000, tokens=2))
        assert r.status == 200, r.text


async def test_who_finds_no_room_is_told_when_to_come_again(make_dac, mock):
    dac = make_dac(SMALL, workers=2)
    thread = await dac.thread()
    asks = [
        asyncio.create_task(
            dac.ask_json(thread, say(f"kumquat {i} " + "x" * 900_000, tokens=2, barrier="go"))
        )
        for i in range(8)
    ]
    await asyncio.sleep(1.5)
    await mock.open("go")
    answers = await asyncio.gather(*asks)
    refused = [r for r in answers if r.status != 200]
    assert 0 < len(refused) < len(answers)
    for r in refused:
        assert r.status == 503 and int(r.get("retry-after")) >= 1
    assert (await dac.ask_json(thread, say("kumquat again", tokens=2))).status == 200
