"""What is not shared: by flag (environment and env file), by tools, by Cache-Control."""

import asyncio

import pytest

from lib.asks import ask, gather, kinds, of_json
from lib.provider import say

TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


async def at_once(dac, mock, question, modes, **more):
    """All asks run at the same time: the provider holds the first token until all are there."""
    thread = await dac.thread()
    asks = [asyncio.create_task(ask(dac, thread, question, kind, **more)) for kind in modes]
    await asyncio.sleep(0.4)
    await mock.open("go")
    return await gather(*asks), thread


def question(text="a kumquat"):
    return say(text, tokens=4, barrier="go")


@pytest.mark.smoke
@pytest.mark.parametrize("where", ["environment", "env_file"])
async def test_coalescing_off(make_dac, mock, where):
    dac = make_dac(env={"COALESCE_ENABLED": "0"} if where == "environment" else {}, start=False)
    if where == "env_file":
        dac.env_file.write_text("# flags\nCOALESCE_ENABLED=0\n")
    dac.start()
    answers, thread = await at_once(dac, mock, question(), kinds("mixed", 8))
    assert await mock.calls() == 8
    assert {a.role for a in answers} == {"leader"}
    assert len({a.turn_id for a in answers}) == 8
    assert len(dac.messages(thread)) == 16
    await ask(dac, thread, question(), "json")
    assert await mock.calls() == 9, "no hits either"
    await gather(*[dac.chat(question("chat")) for _ in range(3)])
    assert await mock.calls() == 12


async def test_the_env_file_wins_over_the_environment(make_dac, mock):
    dac = make_dac(env={"COALESCE_ENABLED": "0"}, start=False)
    dac.env_file.write_text("COALESCE_ENABLED=1\n")
    dac.start()
    await at_once(dac, mock, question(), kinds("mixed", 8))
    assert await mock.calls() == 1


@pytest.mark.smoke
async def test_fan_out_off(make_dac, mock):
    """Every streaming client has its own call; those that don't stream still share."""
    dac = make_dac(env={"STREAM_FANOUT_ENABLED": "0"})
    answers, thread = await at_once(dac, mock, question(), kinds("stream", 5))
    assert await mock.calls() == 5
    assert {a.text for a in answers} == {await mock.text(question())}
    await ask(dac, thread, question(), "stream")
    assert await mock.calls() == 6, "streaming clients get no hits"
    other = say("another kumquat", tokens=4, ttft="300ms")
    answers = await gather(*[ask(dac, thread, other, "json") for _ in range(5)])
    assert await mock.calls() == 7
    assert sorted(a.role for a in answers) == ["follower"] * 4 + ["leader"]


@pytest.mark.smoke
async def test_tools_are_never_shared(dac, mock):
    answers, thread = await at_once(dac, mock, question(), kinds("mixed", 4), tools=TOOLS)
    assert await mock.calls() == 4 and len({a.turn_id for a in answers}) == 4
    assert (await mock.requests())[0]["tools"] == TOOLS
    assert len(dac.messages(thread)) == 8, "their turns are stored like all others"
    plain = of_json(await dac.ask_json(thread, question()))
    assert plain.role == "leader"
    await gather(*[dac.chat(question("chat"), tools=TOOLS) for _ in range(3)])
    assert await mock.calls() == 8
    await dac.chat(question("chat"), tools=[])
    assert await mock.calls() == 9


@pytest.mark.smoke
async def test_no_store_is_never_joined(dac, mock):
    no_store = {"headers": {"cache-control": "no-store"}}
    answers, thread = await at_once(dac, mock, question(), kinds("mixed", 4), **no_store)
    assert await mock.calls() == 4
    assert len(dac.messages(thread)) == 8, "their turns are stored like all others"
    plain = of_json(await dac.ask_json(thread, question()))
    assert plain.role == "leader", "what opted out of sharing serves nobody"
    assert plain.turn_id not in {a.turn_id for a in answers}
    again = of_json(await dac.ask_json(thread, question(), **no_store))
    assert again.role == "leader" and await mock.calls() == 6


@pytest.mark.smoke
async def test_no_cache_joins_what_runs_and_takes_nothing_finished(dac, mock):
    no_cache = {"headers": {"cache-control": "max-age=0, no-cache"}}
    thread = await dac.thread()
    slow = say("a kumquat", tokens=4, ttft="300ms")
    first = of_json(await dac.ask_json(thread, slow))
    fresh = asyncio.create_task(dac.ask_json(thread, slow, **no_cache))
    await mock.wait(calls=2)
    joined = of_json(await dac.ask_json(thread, slow, **no_cache))
    fresh = of_json(await fresh)
    assert (fresh.role, joined.role) == ("leader", "follower")
    assert fresh.turn_id == joined.turn_id != first.turn_id
    later = of_json(await dac.ask_json(thread, slow))
    assert later.role == "hit" and later.turn_id == fresh.turn_id, "the newest is found"
    assert await mock.calls() == 2
